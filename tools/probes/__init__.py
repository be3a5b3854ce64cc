"""What a network does inside: firing rates, operations, rasters."""

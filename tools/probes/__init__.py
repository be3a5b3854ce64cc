"""What a network does inside: firing rates, membrane potentials, operations, rasters."""

"""Numbers from predictions and from spike trains."""

"""Training: the loop, and runs with their folder, checkpoints and log."""

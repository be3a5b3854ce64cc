"""The testing of trained networks: `run` is where to start."""

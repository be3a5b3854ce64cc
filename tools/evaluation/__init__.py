"""Evaluation of trained networks; `run` is where to start."""

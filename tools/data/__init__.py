"""Data sets in memory, their batches, and their augmentation."""

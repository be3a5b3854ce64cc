"""Kernels that run a layer of neurons over a sequence; `models.functional` picks one."""

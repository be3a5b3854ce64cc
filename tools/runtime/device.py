"""The device a run is on, and how PyTorch uses the machine."""

import ctypes

import torch


def set_up_torch(config):
    """Apply `threads`, let memory be reused, and return the device."""
    keep_freed_memory()
    if config.threads:
        torch.set_num_threads(config.threads)
    return chosen_device(config)


def chosen_device(config):
    """The device that a configuration names, or the best one; ValueError for none."""
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(config.device)
    except RuntimeError as error:
        raise ValueError(f"--device {config.device}: {error}") from error


def keep_freed_memory():
    """Let the C library keep the memory of freed tensors, instead of handing it back and fetching it anew.

    Activations are allocated and freed in every step; by default each of 32 MiB or more is mapped from
    the system and faulted in page by page, which can cost more than what computes on it. Does nothing
    where the C library is not glibc.
    """
    m_trim_threshold, m_mmap_max = -1, -4  # of glibc's malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(m_mmap_max, 0)
    mallopt(m_trim_threshold, 2**31 - 1)

"""The device of a run, and how PyTorch uses the machine."""

import ctypes
from typing import Protocol

import torch

from tools.errors import UserError


class DeviceSettings(Protocol):
    """The part of a configuration that is used here: --device and --threads."""

    device: str
    threads: int


def set_up_torch(config: DeviceSettings) -> torch.device:
    """Apply `threads`, keep freed memory, and return the device."""
    keep_freed_memory()
    if config.threads:
        torch.set_num_threads(config.threads)
    return chosen_device(config)


def chosen_device(config: DeviceSettings) -> torch.device:
    """The device that a configuration names; "auto" is CUDA where there is one.

    Raises:
        UserError: if PyTorch does not know the device.
    """
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(config.device)
    except RuntimeError as error:
        raise UserError(f"--device {config.device}: {error}") from error


def keep_freed_memory() -> None:
    """Let the C library keep the memory of freed tensors instead of returning it to the system.

    Activations are allocated and freed in every step; by default each of 32 MiB or more is mapped from
    the system and faulted in page by page, which can cost more than computing on it. Does nothing
    where the C library is not glibc.
    """
    m_trim_threshold, m_mmap_max = -1, -4  # of glibc's malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(m_mmap_max, 0)
    mallopt(m_trim_threshold, 2**31 - 1)

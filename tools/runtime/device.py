"""The device of a run, and how PyTorch uses the machine."""

import ctypes

import torch

from tools.errors import UserError


def set_up_torch(device: str, threads: int) -> torch.device:
    """Apply --threads (0: PyTorch's choice), keep freed memory, and return the device that --device names.

    UserError if it cannot be used on this machine.
    """
    keep_freed_memory()
    if threads:
        torch.set_num_threads(threads)
    chosen = chosen_device(device)
    try:
        torch.zeros(1, device=chosen).item()
    except (AssertionError, ImportError, RuntimeError) as error:  # depending on the kind of device
        reason = str(error).partition("\n")[0]
        raise UserError(f"--device {device} cannot be used: {reason}") from error
    return chosen


def chosen_device(name: str) -> torch.device:
    """The device that --device names; "auto" is CUDA if available. UserError if PyTorch does not know it."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise UserError(f"--device {name}: {error}") from error


def keep_freed_memory() -> None:
    """Let the C library keep the memory of freed tensors instead of returning it to the system.

    Activations are allocated and freed in every step. By default, each of 32 MiB or more is mapped from the system and
    faulted in page by page, which can take longer than computing on it. Does nothing if the C library is not glibc.
    """
    m_trim_threshold, m_mmap_max = -1, -4  # of glibc's malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(m_mmap_max, 0)
    mallopt(m_trim_threshold, 2**31 - 1)


def is_fast_in_bf16(device: torch.device) -> bool:
    """Whether a device has instructions for bfloat16, with which it is faster than in float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    capabilities = getattr(torch.cpu, "get_capabilities", dict)  # earlier versions of torch lack it
    return device.type == "cpu" and bool(capabilities().get("avx512_bf16"))

"""The code, libraries and machine behind a result."""

import importlib.metadata
import platform
import subprocess
from pathlib import Path

import numpy as np
import torch


def provenance() -> dict[str, str | int | None]:
    """Code revision, library versions and machine, as plain data for config.yaml and results."""
    return {
        "git": _git_revision(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torchvision": importlib.metadata.version("torchvision"),  # importing it takes as long as PyTorch
        "numpy": str(np.__version__),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def processor(device: torch.device | str) -> str:
    """The name of the processor, or of the accelerator if `device` is one."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    about = Path("/proc/cpuinfo")  # of Linux
    lines = about.read_text().splitlines() if about.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _git_revision():
    """Commit of this source tree, with "-dirty" if changed since; "unknown" outside git."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():  # a copy inside another repository does not have that repository's revision
        return "unknown"
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"

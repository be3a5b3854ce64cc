"""Which code, libraries and machine made a result."""

import platform
import subprocess
from pathlib import Path

import numpy as np
import torch
import torchvision


def provenance():
    """Which code, libraries and machine: plain data for config.yaml and for results."""
    return {
        "git": _git_revision(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "numpy": str(np.__version__),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _git_revision():
    """Commit of this source tree, with "-dirty" if it was changed since; "unknown" outside git."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():  # a copy inside another repository is not that repository's revision
        return "unknown"
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"

"""Neurons of other libraries, and networks in the format NIR: `spikingjelly`, `snntorch`, `norse`, `sinabs`, `nir`.

Each of these modules imports its library when it is first used, and needs it to be installed.
"""

import importlib
from typing import Any

from .conversion import PEERS, Report, convert
from .mapping import NotMapped

__all__ = ["PEERS", "NotMapped", "Report", "convert"]


def __getattr__(name: str) -> Any:
    if name not in (*PEERS, "nir"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return importlib.import_module(f".{name}", __name__)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != name:
            raise
        raise ModuleNotFoundError(f"{name} is not installed: pip install {name}", name=name) from error

"""Neurons of other libraries, and networks in the format NIR: `spikingjelly`, `snntorch`, `norse`, `sinabs`, `nir`.

Each of these modules imports its library when it is first used, and needs it to be installed.
"""

from typing import Any

from .conversion import PEERS, Report, convert, load
from .surrogates import NotMapped

__all__ = ["PEERS", "NotMapped", "Report", "convert"]


def __getattr__(name: str) -> Any:
    if name not in (*PEERS, "nir"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return load(name)

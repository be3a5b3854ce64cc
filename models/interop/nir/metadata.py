"""What NIR has no words for, in the metadata of a node: noise, surrogate gradient, and how the input enters."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...noise import LAWS, NoiseLaw, by_name
from ...parameters import ArgumentError


def of_law(prefix: str, law: NoiseLaw) -> dict[str, Any]:
    """A law as plain data; ArgumentError for one of your own, which readers would not know."""
    if type(law) not in LAWS:
        raise ArgumentError(f"NIR metadata can name {', '.join(by_name(LAWS))}, not {law!r}")
    scale: Any = law.scale
    if isinstance(scale, Tensor):
        scale = scale.detach().cpu().numpy() if scale.dim() else scale.item()
    return {prefix: type(law).__name__, f"{prefix}_scale": scale, f"{prefix}_loc": law.loc}


def law_of(prefix: str, metadata: dict[str, Any]) -> NoiseLaw | None:
    """The law that `of_law` described; None if there is none."""
    if prefix not in metadata:
        return None
    name, laws = text(metadata[prefix]), by_name(LAWS)
    if name not in laws:
        raise ArgumentError(f"the metadata name the noise law {name!r}; known are {', '.join(laws)}")
    scale = np.asarray(metadata[f"{prefix}_scale"])
    known = float(scale) if scale.ndim == 0 else torch.from_numpy(scale)
    return laws[name](known, loc=float(metadata[f"{prefix}_loc"]))


def text(value: Any) -> str:
    """A string, as it was written or as HDF5 reads it."""
    return value.decode() if isinstance(value, bytes) else str(value)

"""Random generators: their seeds, numbers and state."""

import hashlib
import json
import logging
import random
from collections.abc import Callable

import numpy as np
import torch
from torch import Generator, Tensor

logger = logging.getLogger(__name__)


def derived_seed(seed: int, *purpose: str | int) -> int:
    """A seed in [0, 2^63) for one purpose, such as "noise", 3, independent of those for all others."""
    digest = hashlib.sha256(json.dumps([seed, *purpose]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def draw(sampler: Callable[..., Tensor], shape: tuple[int, ...], generator: Generator, like: Tensor) -> Tensor:
    """Numbers from `sampler` (torch.rand or torch.randn), moved to the device and dtype of `like`."""
    return sampler(shape, generator=generator, device=generator.device).to(like.device, like.dtype)


def seed_generators(seed: int) -> None:
    """Seed every random generator a run may use."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def rng_state() -> dict:
    """The state of every random generator a run may use, as plain data."""
    algorithm, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [algorithm, keys.tolist(), position, has_gauss, cached],
        "python": random.getstate(),
    }


def set_rng_state(state: dict) -> None:
    """Restore what `rng_state` returned."""
    torch.set_rng_state(state["torch"])
    had, have = len(state["cuda"]), torch.cuda.device_count() if torch.cuda.is_available() else 0
    if had == have:
        torch.cuda.set_rng_state_all(state["cuda"])
    else:
        counts = f"the run had {had} CUDA devices, this machine has {have}"
        logger.warning("%s: noise differs from an uninterrupted run", counts)
    algorithm, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((algorithm, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    random.setstate(state["python"])

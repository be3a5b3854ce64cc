"""Noise laws of equal width, so that they can be compared."""

import math

import torch

from models import Gaussian, NoiseLaw


def law_of_std(law: type[NoiseLaw], std: float) -> NoiseLaw:
    """The law with this standard deviation, or (Cauchy has none) with the quartiles of the Gaussian that has it."""
    unit = law(1.0)
    if math.isfinite(unit.std):
        return law(std / unit.std)
    upper = torch.tensor(0.75, dtype=torch.float64)
    return law(std * Gaussian(1.0).icdf(upper).item() / unit.icdf(upper).item())

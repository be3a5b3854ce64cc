"""Noise laws of equal width, so that kinds of noise can be compared."""

import torch

from models import Cauchy, Gaussian, Logistic, Triangular, Uniform

LAWS = (Gaussian, Logistic, Triangular, Uniform, Cauchy)


def law_of_std(law, std):
    """A law of `LAWS` with this standard deviation.

    The Cauchy law has none: it gets the quartiles of the Gaussian, so that half of its noise is within 0.674 std.
    """
    if law is Cauchy:
        return Cauchy(std * torch.special.ndtri(torch.tensor(0.75, dtype=torch.float64)).item())
    return law(std / law(1.0).std)

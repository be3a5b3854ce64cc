"""Which noise law has the gradient of a surrogate function, found from what the function does."""

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..noise import LAWS, NoiseLaw
from ..parameters import ArgumentError

Function = Callable[[Tensor], Tensor]


class NotMapped(ArgumentError):
    """A layer of another library that has no exact equal here; the message says why."""


class DoubleExponential(NoiseLaw):
    """Laplace's law: `F'(x) = exp(-|z|) / (2 scale)`, z = (x - loc) / scale."""

    unit_std = math.sqrt(2)

    def cdf(self, x: Tensor) -> Tensor:
        z = self._standardise(x)
        tail = 0.5 * torch.exp(-z.abs())
        return torch.where(z < 0, tail, 1 - tail)

    def pdf(self, x: Tensor) -> Tensor:
        return torch.exp(-self._standardise(x).abs()) * (0.5 / self.scale)

    def icdf(self, p: Tensor) -> Tensor:
        return self._destandardise(-torch.sign(p - 0.5) * torch.log(2 * torch.minimum(p, 1 - p)))


class FastSigmoid(NoiseLaw):
    """The law `F'(x) = 1 / (2 scale (1 + |z|)^2)`, z = (x - loc) / scale: without mean or variance.

    Note:
        Zenke and Ganguli, "SuperSpike", Neural Computation 30, 2018, section 3.3.2.
    """

    unit_std = math.inf

    def cdf(self, x: Tensor) -> Tensor:
        z = self._standardise(x)
        tail = 0.5 / (1 + z.abs())
        return torch.where(z < 0, tail, 1 - tail)

    def pdf(self, x: Tensor) -> Tensor:
        return (1 + self._standardise(x).abs()).square().reciprocal() * (0.5 / self.scale)

    def icdf(self, p: Tensor) -> Tensor:
        return self._destandardise(torch.sign(p - 0.5) * (0.5 / torch.minimum(p, 1 - p) - 1))


class Weighted(NoiseLaw):
    """A surrogate gradient that is `factor` times the density of a law, and so not a density."""

    def __init__(self, law: NoiseLaw, factor: float) -> None:
        super().__init__(law.scale, law.loc)
        self.law, self.factor = law, factor

    def __repr__(self) -> str:
        return f"{self.factor:g} * {self.law!r}"

    def pdf(self, x: Tensor) -> Tensor:
        return self.factor * self.law.pdf(x)

    def cdf(self, x: Tensor) -> Tensor:
        raise ArgumentError(f"the surrogate gradient {self!r} is not a density, and so has no mean field")

    def icdf(self, p: Tensor) -> Tensor:
        return self.cdf(p)


@dataclasses.dataclass(frozen=True)
class Firing:
    """What a surrogate function does: whether it fires at the threshold itself, and the law of its gradient."""

    at_threshold: bool
    law: NoiseLaw | None  # None: no law has this gradient


def observe(function: Function) -> Firing:
    """Call a surrogate function, of u - threshold, and find out what it does.

    Raises:
        NotMapped: unless it is 0 below the threshold and 1 above.
    """
    x = torch.logspace(-6, 3, 200, dtype=torch.float64)
    x = torch.cat([-x.flip(0), torch.zeros(1, dtype=torch.float64), x])
    try:
        with torch.no_grad():
            spikes = function(x).double()
        law = _law_of(lambda x: _slope(function, x))
    except (RuntimeError, TypeError, ValueError) as error:
        raise NotMapped(f"its surrogate function fails: {error}") from error
    at_threshold = bool(spikes[200] == 1)
    if not torch.equal(spikes, ((x >= 0) if at_threshold else (x > 0)).double()):
        raise NotMapped("its output is not 0 below the threshold and 1 above")
    return Firing(at_threshold, law)


def _slope(function: Function, x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        y = function(x)
    if not y.requires_grad:
        return torch.zeros_like(x)
    return torch.autograd.grad(y.sum(), x)[0]


def _law_of(gradient: Function) -> NoiseLaw | None:
    """The law whose density, perhaps times a factor, is this gradient."""
    zero = torch.zeros(1, dtype=torch.float64)
    peak = gradient(zero).item()
    width = _half_width(gradient, peak)
    if width is None:
        return None
    x = width * torch.linspace(-20, 20, 805, dtype=torch.float64)  # no point on the edge of a box
    slope = gradient(x)
    families: tuple[type[NoiseLaw], ...] = (*LAWS, DoubleExponential, FastSigmoid)
    for family in families:
        unit = family(1.0)
        unit_width = _half_width(unit.pdf, unit.pdf(zero).item())
        if unit_width is None:
            continue
        law = family(float(f"{width / unit_width:.12g}"))  # 0.04 rather than 0.0399999999999998
        factor = float(f"{peak / law.pdf(zero).item():.9g}")
        if torch.allclose(slope, factor * law.pdf(x), rtol=1e-5, atol=1e-6 * peak):
            return law if abs(factor - 1) < 1e-6 else Weighted(law, factor)
    return None


def _half_width(gradient: Function, peak: float) -> float | None:
    """Where a bell-shaped function first falls below half of its peak; None if it does not."""
    if not 0 < peak < math.inf:
        return None
    grid = torch.logspace(-9, 6, 1501, dtype=torch.float64)
    for _ in range(5):  # each time between two points of the grid before
        below = (gradient(grid) < peak / 2).nonzero()
        if len(below) == 0 or below[0] == 0:
            return None
        first = int(below[0])
        grid = torch.linspace(grid[first - 1].item(), grid[first].item(), 1001, dtype=torch.float64)
    return grid[-1].item()

"""Noise laws: one object for the noise of a neuron and for its surrogate gradient.

A neuron that fires when its potential `u` exceeds a noisy threshold does so with probability `F(u - threshold)`, F
being the distribution function of the noise. Its derivative is the density `F'`: a surrogate gradient.
All laws are symmetric about `loc`. Each class says by which name its density is known as a surrogate.
"""

import abc
import contextlib
import copy
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor, nn

from . import parameters
from .checkpointing import draw_from, refuse_unkept_noise
from .contexts import GENERATOR_BLOCKS, Block, left_to_python
from .parameters import ArgumentError

Device = torch.device | str | int | None
DType = torch.dtype | None


def noise_generator(generator: Generator) -> contextlib.AbstractContextManager[Generator]:
    """Context manager: all noise inside the block is drawn from `generator`, instead of from torch's default one.

    It holds for all copies of this package in the process; see `models.contexts` for where. Numbers are drawn on the
    device of the generator and then moved: a CPU generator gives the same noise on any device, a CUDA one is faster.

    Raises:
        TypeError: if `generator` is not a torch.Generator.
    """
    if not isinstance(generator, Generator):
        raise TypeError(f"noise_generator takes a torch.Generator, got {type(generator).__name__}")
    return Block(GENERATOR_BLOCKS, generator)


def _draw(
    sampler: Callable[..., Tensor], shape: Sequence[int], generator: Generator | None, device: Device, dtype: DType
) -> Tensor:
    """Call `sampler` (such as torch.rand) with the generator that applies here."""
    block = None
    if generator is None and (blocks := GENERATOR_BLOCKS.in_effect()):
        block = blocks[0]
        generator = block.value
    dtype = dtype or torch.get_default_dtype()
    if generator is None:
        if not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1:
            refuse_unkept_noise()
        return sampler(shape, device=device, dtype=dtype)
    draw = functools.partial(sampler, shape, device=generator.device, dtype=dtype)
    numbers = draw_from(generator, block, lambda drawn_from: draw(generator=drawn_from))
    return numbers.to(device) if device is not None else numbers


def draw_seeds(count: int, device: Device) -> Tensor:
    """Independent 64-bit seeds for the fused kernels: int64 [count], from the generator that applies here."""
    return _draw(functools.partial(torch.randint, -(2**63), 2**63 - 1), (count,), None, device, torch.int64)


class _Immutable(abc.ABCMeta):
    """Metaclass of classes whose instances cannot change after construction."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        law = super().__call__(*args, **kwargs)
        if not isinstance(law.scale, Tensor):  # whose values may be on another device
            parameters.check("scale", law.scale)
        law.__dict__["_complete"] = True
        return law


class NoiseLaw(metaclass=_Immutable):
    """A symmetric noise law, immutable; subclass it with `cdf`, `pdf` and `icdf` to add your own.

    To anneal the noise of a neuron, give it another law: `neuron.noise = Gaussian(0.2)`.

    Args:
        scale: width of the law, in units of the membrane potential; positive and finite. A tensor of one value, or [C]
            for `x` [..., C]; in a neuron, one value for each channel. A parameter is learnt by the neuron.
        loc: mean (centre) of the law, in the same units.

    Raises:
        TypeError: if `scale` is neither a number nor a floating point tensor.
        ValueError: if `scale` is not positive and finite, or `loc` is not finite.

    Note:
        A subclass that does not call `super().__init__` has scale 1 and loc 0; `learnable_scale` stretches about loc.
        One that has its own constructor, or functions that do not follow `scale`, takes a number for it.
    """

    neuron_name: ClassVar[str]  # name of the noisy neuron in the registry; an entry of `LAWS` must have one
    unit_std: ClassVar[float | None] = None  # standard deviation at scale 1; None: found by quadrature
    scale: float = 1.0
    loc: float = 0.0

    def __init__(self, scale: float | Tensor, loc: float = 0.0) -> None:
        parameters.check("scale", scale)
        if isinstance(loc, Tensor) and loc.requires_grad:
            raise ArgumentError("loc is not learnt: give a number")
        try:
            is_finite = math.isfinite(loc)
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(f"loc must be a number, got {loc!r}") from None
        if not is_finite:
            raise ArgumentError(f"loc must be finite, got {loc}")
        if not isinstance(scale, Tensor):
            scale = float(scale)
        elif not isinstance(scale, nn.Parameter) and not scale.requires_grad:
            scale = scale.clone()  # later in-place changes of the tensor do not affect the law
        self.scale = scale  # type: ignore[assignment]  # a number, except where a docstring allows a tensor
        self.loc = float(loc)

    def __setattr__(self, name: str, value: object) -> None:
        self._refuse_change(name)
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        self._refuse_change(name)
        super().__delattr__(name)

    def _refuse_change(self, name: str) -> None:
        if "_complete" in self.__dict__:
            law = type(self).__name__
            reason = f"cannot change {name} of {self!r}, as laws are immutable"
            raise AttributeError(f"{reason}: set neuron.noise = {law}(...) instead")

    def __repr__(self) -> str:
        loc = f", loc={self.loc:g}" if self.loc else ""
        scale = parameters.shown(self.scale) if isinstance(self.scale, Tensor) else f"{self.scale:g}"
        return f"{type(self).__name__}({scale}{loc})"

    @abc.abstractmethod
    def cdf(self, x: Tensor) -> Tensor:
        """Distribution function F(x) = P(noise <= x), elementwise."""

    @abc.abstractmethod
    def pdf(self, x: Tensor) -> Tensor:
        """Density F'(x), per unit of `x`, elementwise."""

    @abc.abstractmethod
    def icdf(self, p: Tensor) -> Tensor:
        """Quantile: the x with F(x) = p, for p in (0, 1), elementwise."""

    def widened(self, factor: float) -> "NoiseLaw":
        """The same law, stretched about its `loc`: its scale times `factor`."""
        scale = self.scale * factor
        parameters.check("scale", scale)
        return self.with_scale(scale)

    def with_scale(self, scale: float | Tensor) -> "NoiseLaw":
        """The same law, stretched about its `loc` to another scale; the values of a tensor are not checked.

        Raises:
            ValueError: if a number is not positive and finite.
            TypeError: if its scale is a tensor, and its class has its own constructor or does not follow its scale.
        """
        if not isinstance(scale, Tensor):
            parameters.check("scale", scale)
        has_constructor = type(self).__init__ is not NoiseLaw.__init__
        if has_constructor or not _follows_its_scale(type(self)):
            if isinstance(self.scale, Tensor):
                reason = "its own constructor" if has_constructor else "functions that do not follow its scale"
                raise TypeError(f"{type(self).__name__} has {reason}: its scale must be a number")
            return Rescaled(self, scale)
        law = copy.copy(self)
        for name in vars(self):  # computed from the old scale
            if isinstance(getattr(type(self), name, None), functools.cached_property):
                del law.__dict__[name]
        law.__dict__["scale"] = scale
        return law

    @property
    def std(self) -> float:
        """Standard deviation: by `unit_std`, else by quadrature of the density on a grid that is dense at `loc`.

        A subclass that has infinite variance, or is not centred on its `loc`, must define its own.

        Raises:
            TypeError: if the scale is a tensor and `unit_std` is unknown.
        """
        if self.unit_std is not None:
            return self.unit_std * self.scale
        if isinstance(self.scale, Tensor):
            raise TypeError(f"the standard deviation of {self!r} is known for a scale that is a number, not a tensor")
        t = torch.linspace(-20.0, 20.0, 200_001, dtype=torch.float64)
        deviation = self.scale * torch.sinh(t)
        density = self.pdf(self.loc + deviation) * self.scale * torch.cosh(t)
        return math.sqrt(torch.trapezoid(deviation.square() * density, t).item())

    def sample(
        self, shape: Sequence[int], generator: Generator | None = None, device: Device = None, dtype: DType = None
    ) -> Tensor:
        """Draw independent noise.

        Args:
            generator: `torch.Generator`; by default that of `noise_generator`, else torch's own.
            device, dtype: of the result; by default the generator's device, torch's dtype.
        """
        p = _draw(torch.rand, shape, generator, device, dtype)
        # torch.rand includes 0, whose quantile may be infinite; it never returns 1.
        return self.icdf(p.clamp(min=torch.finfo(p.dtype).eps / 4)).to(p.dtype)

    def _standardise(self, x: Tensor) -> Tensor:
        """z = (x - loc) / scale, limited: if z^2 overflowed, the backward pass would have 0 * infinity, a NaN.

        At the limit, the densities and their slopes are negligible.
        """
        limit = math.sqrt(torch.finfo(x.dtype).max) / 4
        return ((x - self.loc) / self.scale).clamp(-limit, limit)

    def _destandardise(self, z: Tensor) -> Tensor:
        return z * self.scale + self.loc


class Gaussian(NoiseLaw):
    """Normal noise of standard deviation `scale`: `F(x) = Phi(z)`, z = (x - loc) / scale; as a surrogate: "erf"."""

    neuron_name = "NILIF"
    unit_std = 1.0

    def cdf(self, x: Tensor) -> Tensor:
        # erfc, and not torch.special.ndtr: that loses all digits of the lower tail in float32.
        return 0.5 * torch.erfc(self._standardise(x) * -math.sqrt(0.5))

    def pdf(self, x: Tensor) -> Tensor:
        z = self._standardise(x)
        return torch.exp(-0.5 * z * z) * (1 / (self.scale * math.sqrt(2 * math.pi)))

    def icdf(self, p: Tensor) -> Tensor:
        return self._destandardise(torch.special.ndtri(p))

    def sample(
        self, shape: Sequence[int], generator: Generator | None = None, device: Device = None, dtype: DType = None
    ) -> Tensor:
        # Not in place: a checkpoint of PyTorch may keep what is drawn for its second run.
        drawn = _draw(torch.randn, shape, generator, device, dtype)
        noise = (drawn * self.scale).to(drawn.dtype)
        return noise + self.loc if self.loc else noise


class Logistic(NoiseLaw):
    """Logistic noise: `F(x) = 1 / (1 + exp(-z))`, z = (x - loc) / scale; as a surrogate: "sigmoid", slope 1 / scale."""

    neuron_name = "NILIF_sigmoid"
    unit_std = math.pi / math.sqrt(3)

    def cdf(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self._standardise(x))

    def pdf(self, x: Tensor) -> Tensor:
        z = self._standardise(x)
        return torch.sigmoid(z) * torch.sigmoid(-z) / self.scale

    def icdf(self, p: Tensor) -> Tensor:
        return self._destandardise(torch.logit(p))


class Triangular(NoiseLaw):
    """Triangular noise: `F'(x) = max(0, 1 - |z|) / scale`, z = (x - loc) / scale; as a surrogate: "triangular"."""

    neuron_name = "NILIF_triang"
    unit_std = 1 / math.sqrt(6)

    def cdf(self, x: Tensor) -> Tensor:
        z = self._standardise(x).clamp(-1.0, 1.0)
        return 0.5 + z * (1 - 0.5 * z.abs())

    def pdf(self, x: Tensor) -> Tensor:
        return (1 - self._standardise(x).abs()).clamp(min=0.0) / self.scale

    def icdf(self, p: Tensor) -> Tensor:
        tail = torch.minimum(p, 1 - p)
        return self._destandardise(torch.sign(p - 0.5) * (1 - torch.sqrt(2 * tail)))


class Uniform(NoiseLaw):
    """Uniform noise: `F'(x) = [|z| <= 1] / (2 scale)`, z = (x - loc) / scale; as a surrogate: "rectangular"."""

    neuron_name = "NILIF_uniform"
    unit_std = 1 / math.sqrt(3)

    def cdf(self, x: Tensor) -> Tensor:
        return 0.5 * (1 + self._standardise(x).clamp(-1.0, 1.0))

    def pdf(self, x: Tensor) -> Tensor:
        z = self._standardise(x)
        # `z * 0` ties the (piecewise constant) density to x, so that its gradient is 0, not an error.
        return (z.abs() <= 1).to(z.dtype) * (0.5 / self.scale) + z * 0

    def icdf(self, p: Tensor) -> Tensor:
        return self._destandardise(2 * p - 1)


class Cauchy(NoiseLaw):
    """Cauchy noise, without mean or variance: `F(x) = 1/2 + arctan(z) / pi`, z = (x - loc) / scale; "arctangent"."""

    neuron_name = "NILIF_atan"
    unit_std = math.inf

    def cdf(self, x: Tensor) -> Tensor:
        z = self._standardise(x)
        # arctan(z) + pi/2 as the angle of (-z, 1): keeps its digits in the lower tail.
        return torch.atan2(torch.ones_like(z), -z) / math.pi

    def pdf(self, x: Tensor) -> Tensor:
        z = self._standardise(x)
        return 1 / (math.pi * self.scale * (1 + z * z))

    def icdf(self, p: Tensor) -> Tensor:
        tail = torch.minimum(p, 1 - p)
        return self._destandardise(torch.sign(p - 0.5) / torch.tan(math.pi * tail))


_FOLLOWING: dict[type[NoiseLaw], bool] = {Gaussian: True, Logistic: True, Triangular: True, Uniform: True, Cauchy: True}


def _follows_its_scale(law: type[NoiseLaw]) -> bool:
    """Whether the functions of a law are stretched with its scale, found by trying it once."""
    if law not in _FOLLOWING:
        _FOLLOWING[law] = _try_scales(law)
    return _FOLLOWING[law]


@left_to_python("laws of your own with a tensor for their scale must be used once outside of a full graph")
def _try_scales(law: type[NoiseLaw]) -> bool:
    from .kernels.selftest import without_modes  # which imports this module

    def is_stretched() -> bool:
        one, two = law(1.0), law(2.0)
        p = torch.linspace(0.1, 0.9, 9, dtype=torch.float64, device="cpu")
        x = one.icdf(p)
        pairs = (two.icdf(p), 2 * x), (two.cdf(2 * x), one.cdf(x)), (2 * two.pdf(2 * x), one.pdf(x))
        return all(torch.allclose(found, right, rtol=1e-3, atol=1e-6) for found, right in pairs)

    return without_modes(is_stretched)


# A law that is added here, and has a `neuron_name`, is known everywhere; it runs on the eager kernel.
LAWS: tuple[type[NoiseLaw], ...] = (Gaussian, Logistic, Triangular, Uniform, Cauchy)


def by_name(laws: Iterable[type[NoiseLaw]]) -> dict[str, type[NoiseLaw]]:
    """Laws by the names of their classes, which kernels know them by; ArgumentError for a name that two have."""
    found: dict[str, type[NoiseLaw]] = {}
    for law in laws:
        if found.setdefault(law.__name__, law) is not law:
            raise ArgumentError(f"two laws of LAWS are called {law.__name__}: give one class another name")
    return found


class Rescaled(NoiseLaw):
    """Another law, stretched about its `loc` to a new scale, a number or a tensor that broadcasts."""

    def __init__(self, law: NoiseLaw, scale: float | Tensor) -> None:
        if isinstance(law.scale, Tensor):
            law = law.with_scale(1.0)
        self.law = law
        self.loc = law.loc
        self.scale = scale  # type: ignore[assignment]

    def __repr__(self) -> str:
        scale = parameters.shown(self.scale) if isinstance(self.scale, Tensor) else f"{self.scale:g}"
        return f"{self.law!r}.with_scale({scale})"

    @property
    def _ratio(self) -> Any:
        return self.scale / self.law.scale

    def with_scale(self, scale: float | Tensor) -> NoiseLaw:
        return Rescaled(self.law, scale)

    def cdf(self, x: Tensor) -> Tensor:
        return self.law.cdf((x - self.loc) / self._ratio + self.loc)

    def pdf(self, x: Tensor) -> Tensor:
        return self.law.pdf((x - self.loc) / self._ratio + self.loc) / self._ratio

    def icdf(self, p: Tensor) -> Tensor:
        return (self.law.icdf(p) - self.loc) * self._ratio + self.loc

    @property
    def std(self) -> float:
        return self.law.std * self._ratio

    def sample(self, *args: Any, **kwargs: Any) -> Tensor:
        drawn = self.law.sample(*args, **kwargs)
        return ((drawn - self.loc) * self._ratio + self.loc).to(drawn.dtype)

"""Neurons of this package as nodes of NIR, and back; the equations are in the docstring of the package."""

import math
from typing import Any

import nir
import numpy as np
import torch
from torch import Tensor, nn

from ...base import SpikingNeuron
from ...composed import Synaptic
from ...neurons import IF, LIF, NoisyIF, NoisyLIF, NoisyParametricLIF, ParametricLIF
from ...noise import NoiseLaw
from ...parameters import ArgumentError
from .metadata import law_of, of_law, text

KINDS = (LIF, IF, ParametricLIF, NoisyLIF, NoisyIF, NoisyParametricLIF)


def node_of(neuron: Any, shape: tuple[int, ...], dt: float) -> Any:
    """A neuron as a node for a layer of this shape.

    Raises:
        ArgumentError: if NIR has no words for it.
    """
    inner: Any = neuron.neuron if isinstance(neuron, Synaptic) else neuron
    if type(inner) not in KINDS:
        known = ", ".join(kind.__name__ for kind in KINDS)
        name = f"{type(inner).__module__}.{type(inner).__qualname__}"
        raise ArgumentError(f"{name} cannot be written, only {known} of this package, and Synaptic around them")
    if inner.reset != "zero":
        raise ArgumentError(f"neurons of NIR reset to a value, not by reset={inner.reset!r}")

    def full(value: float | Tensor) -> np.ndarray:
        known = value.detach().cpu().double() if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.double)
        by_channel = known.reshape(-1, *[1] * (len(shape) - 1)) if known.numel() > 1 else known.reshape(())
        return by_channel.expand(shape).numpy().copy()

    decay, ones = full(inner.decay), np.ones(shape)
    metadata = _metadata(inner)
    if isinstance(neuron, Synaptic):
        return _synaptic_node(full(neuron.alpha), decay, full, inner, metadata, dt)
    potentials = {"v_threshold": full(inner.threshold), "v_reset": full(inner.v_reset), "v_leak": full(inner.v_leak)}
    if (decay == 1).all():
        if (potentials.pop("v_leak") != potentials["v_reset"]).any():
            raise ArgumentError("neurons of NIR without a leak start from v_reset: v_leak must be the same")
        return nir.IF(r=ones / dt, metadata=metadata, **potentials)
    if (decay == 1).any():
        raise ArgumentError("NIR has neurons with and without a leak, but not in one layer")
    unit = ones if inner.decay_input else 1 - decay  # v / u
    return nir.LIF(
        tau=dt / (1 - decay), r=ones, metadata=metadata, **{name: unit * u for name, u in potentials.items()}
    )


def _synaptic_node(
    alpha: np.ndarray, decay: np.ndarray, full: Any, inner: Any, metadata: dict[str, Any], dt: float
) -> Any:
    if (alpha == 1).any() or (decay == 1).any() or inner.decay_input or full(inner.v_leak).any():
        raise ArgumentError("synaptic neurons of NIR leak to 0, and their decay_input is False")
    return nir.CubaLIF(
        tau_syn=dt / (1 - alpha),
        tau_mem=dt / (1 - decay),
        r=1 / (1 - decay),
        w_in=1 / (1 - alpha),
        v_leak=np.zeros_like(decay),
        v_threshold=full(inner.threshold),
        v_reset=full(inner.v_reset),
        metadata=metadata,
    )


def _metadata(neuron: Any) -> dict[str, Any]:
    """What NIR has no words for."""
    found: dict[str, Any] = dict(decay_input=neuron.decay_input, detach_reset=neuron.detach_reset)
    if neuron.surrogate is not None:
        found |= of_law("surrogate", neuron.surrogate)
    if hasattr(neuron, "noise"):
        scale = neuron.scale
        now = scale.detach().squeeze() if isinstance(scale, Tensor) else scale  # one value may be [1]
        found |= {**of_law("noise", neuron.noise.with_scale(now)), "placement": neuron.placement}
    return found


def neuron_of(node: Any, dt: float, noise: NoiseLaw | str | None, placement: str) -> nn.Module:
    """The neuron that a node describes, at a time step of `dt` seconds.

    Args:
        noise, placement: see `read`.
    """
    metadata = node.metadata
    settings: dict[str, Any] = dict(detach_reset=bool(metadata.get("detach_reset", False)))
    alpha = None
    if isinstance(node, nir.IF):
        if not (np.allclose(node.r, 1, rtol=1e-6) or np.allclose(node.r, 1 / dt, rtol=1e-6)):
            raise ArgumentError(f"an IF node has r = {node.r.flat[0]:g}; known are 1 and 1 / dt = {1 / dt:g}")
        decay, unit, v_leak = np.ones_like(node.r), np.ones_like(node.r), node.v_reset  # from which it starts
    elif isinstance(node, nir.CubaLIF):
        alpha, decay, v_leak = 1 - dt / node.tau_syn, 1 - dt / node.tau_mem, node.v_leak
        unit = node.r * dt / node.tau_mem * node.w_in * dt / node.tau_syn
    else:
        decay, v_leak = 1 - dt / node.tau, node.v_leak
        unit = node.r * dt / node.tau
        if metadata.get("decay_input", np.allclose(node.r, 1)):
            settings["decay_input"] = True
            unit = unit / (1 - decay)
    for name, factor in {"decay": decay, "alpha": alpha}.items():
        if factor is not None and not ((factor >= 0) & (factor <= 1)).all():
            raise ArgumentError(f"a node has a time constant shorter than dt = {dt:g} s: its {name} would be negative")
    if not (unit > 0).all():
        raise ArgumentError("a node has r <= 0, by which its input would be negated or ignored")
    for name, v in {"threshold": node.v_threshold, "v_reset": node.v_reset, "v_leak": v_leak}.items():
        settings[name] = _value(name, v / unit)
    settings["decay"] = _value("decay", decay)
    neuron = _made(metadata, noise, placement, settings)
    return neuron if alpha is None else Synaptic(_value("alpha", alpha), neuron)


def _made(
    metadata: dict[str, Any], noise: NoiseLaw | str | None, placement: str, settings: dict[str, Any]
) -> SpikingNeuron:
    surrogate, written = law_of("surrogate", metadata), law_of("noise", metadata)
    if noise == "metadata" and written is not None:
        return NoisyLIF(written, placement=text(metadata["placement"]), surrogate=surrogate, **settings)
    if isinstance(noise, str) and noise != "metadata":
        raise ArgumentError(f'noise must be "metadata", None or a noise law, got {noise!r}')
    if noise is not None and not isinstance(noise, str):
        return NoisyLIF(noise, placement=placement, **settings)
    gradient = surrogate or written
    return LIF(**settings) if gradient is None else LIF(gradient, **settings)


def _value(name: str, values: np.ndarray) -> float | Tensor:
    """A number, or a tensor with one value for each channel; ArgumentError if it differs within a channel."""
    values = np.asarray(values, dtype=np.float64)
    if (values == values.flat[0]).all():
        return float(f"{values.flat[0]:.12g}")  # 1 rather than 1.0000000000000002
    by_channel = values.reshape(len(values), -1)
    if (by_channel != by_channel[:, :1]).any():
        raise ArgumentError(f"{name} differs within a channel; one value for each channel is possible")
    return torch.from_numpy(by_channel[:, 0].copy()).float()


class Integrator(nn.Module):
    """A neuron that never fires, and gives its potential, `unit` times that of `neuron`: [T, B, ...] -> the same."""

    def __init__(self, neuron: SpikingNeuron, unit: float | Tensor) -> None:
        super().__init__()
        self.neuron, self.unit = neuron, unit

    def forward(self, x: Tensor) -> Tensor:
        return self.neuron.run(x, keep_state=False, potentials=True)[2] * self.unit


def integrator_of(node: Any, dt: float) -> Integrator:
    """The leaky integrator that an LI node describes, at a time step of `dt` seconds."""
    decay, unit = 1 - dt / node.tau, _value("r", node.r)
    if isinstance(unit, Tensor):
        raise ArgumentError("r of an LI node differs between neurons")
    if unit == 0:
        raise ArgumentError("an LI node has r = 0, by which it would ignore its input")
    rest = _value("v_leak", node.v_leak / unit)
    neuron = LIF(threshold=math.inf, decay=_value("decay", decay), reset="none", decay_input=True, v_leak=rest)
    return Integrator(neuron, unit)

"""Stateless layers, and the base class of all networks."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from . import memory
from .contexts import STREAM
from .kernels import normed
from .neurons import IF, LIF, NoisyIF, NoisyLIF, NoisyParametricLIF, ParametricLIF
from .parameters import ArgumentError

MakeNeuron = Callable[[], nn.Module]
FUSED = (IF, LIF, ParametricLIF, NoisyIF, NoisyLIF, NoisyParametricLIF)  # not their subclasses, which may do otherwise


def over_time(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply a stateless layer to all steps at once: x [T, B, ...] -> layer(x as [T * B, ...]) as [T, B, ...]."""
    return layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])


def run_over_time(layer: Callable[[Tensor], Tensor], x: Tensor, timesteps: int | None) -> Tensor:
    """`over_time`; or, with `timesteps`, the output [T, B, ...] for one step x [B, ...] that is shown so many times."""
    if timesteps is None:
        return over_time(layer, x)
    output = layer(x)
    return output.expand((timesteps,) + output.shape)


class Normalize(nn.Module):
    """(x - mean) / std of x [..., C, H, W]; as a layer of the model, so that attacks and perturbations see raw pixels.

    Args:
        mean, std: one number per channel, in pixel units ([0, 1] images).

    Raises:
        ValueError: if their lengths differ, or a `std` is not positive.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self._given = [float(value) for value in mean], [float(value) for value in std]
        self.register_buffer("mean", torch.as_tensor(mean, dtype=torch.float32).reshape(-1, 1, 1))
        self.register_buffer("std", torch.as_tensor(std, dtype=torch.float32).reshape(-1, 1, 1))
        if self.mean.shape != self.std.shape or not all(value > 0 for value in self._given[1]):
            raise ArgumentError(f"mean and std need one number per channel, std positive; got {mean} and {std}")

    def reset_parameters(self) -> None:
        """Fill the buffers again, after `to_empty`."""
        for buffer, values in zip((self.mean, self.std), self._given):
            buffer.copy_(torch.tensor(values, device="cpu").reshape(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class ConvNorm(nn.Sequential):
    """Convolution and, where `norm` is "bn", batch normalisation: [N, C, H, W] -> [N, C', H', W'].

    Raises:
        ValueError: if `norm` is neither "bn" nor None.
    """

    conv: nn.Module

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int, norm: str | None, bias: bool = False
    ) -> None:
        super().__init__()
        padding = kernel_size // 2
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, bias=bias)
        if norm == "bn":
            self.norm = nn.BatchNorm2d(out_channels)
        elif norm is not None:
            raise ArgumentError(f'norm must be "bn" or None, got {norm!r}')


def fire(
    neuron: Any,
    layer: Any,
    x: Tensor,
    plus: Tensor | None = None,
    timesteps: int | None = None,
    plus_layer: Any = None,
) -> Tensor:
    """The spikes of neuron(over_time(layer, x) + plus); batch norm and neuron are one operation where nothing differs.

    Args:
        timesteps: if given, x is one step [B, ...]; the layer runs once, and its output is shown for so many steps.
        plus_layer: a stateless layer that `plus` goes through first.
    """
    is_one, plus_norm, plus_again = _can_be_one(neuron, layer, x), None, None
    if plus is not None and plus_layer is not None:
        if is_one and hasattr(plus_layer, "norm") and _can_be_one(neuron, plus_layer, plus):
            plus_norm, plus_again = plus_layer.norm, _again(plus_layer.conv, plus, None)
            plus = over_time(plus_layer.conv, plus)
        else:
            plus = over_time(plus_layer, plus)
    if not is_one:
        current = run_over_time(layer, x, timesteps)
        return neuron(current if plus is None else current + plus)
    output = layer.conv(x) if timesteps else over_time(layer.conv, x)
    norm, again = getattr(layer, "norm", None), _again(layer.conv, x, timesteps)
    before = normed.Before(output, norm, plus, timesteps, again, plus_norm, plus_again)
    if normed.serves(before):
        return neuron._fire(before.shown(), before=before, keep_state=False)[0]
    return neuron(before.currents())


def _can_be_one(neuron: nn.Module, layer: nn.Module, x: Tensor) -> bool:
    """Whether the parts are this package's, and nobody watches them."""
    if torch.compiler.is_compiling() or type(x) not in (Tensor, nn.Parameter) or STREAM.get() is not None:
        return False
    if type(layer) is not ConvNorm or type(neuron) not in FUSED or torch_module._has_any_global_hook():
        return False
    if tuple(layer._modules) not in (("conv",), ("conv", "norm")):
        return False
    return not any(map(_is_changed, (layer, getattr(layer, "norm", layer), neuron)))


def _again(conv: Any, x: Tensor, timesteps: int | None) -> normed.Again | None:
    """How to compute conv(x) again; None if its output is to be kept."""
    if memory.setting() != "smallest" or type(conv) is not nn.Conv2d or _is_changed(conv):
        return None
    device = x.device.type
    autocast = device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)

    def run(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # those of the call, whatever the layer has now
        with torch.no_grad(), torch.autocast(*autocast):
            if timesteps:
                return conv._conv_forward(x, weight, bias)
            return over_time(lambda x: conv._conv_forward(x, weight, bias), x)

    return normed.Again(run, (x, conv.weight, conv.bias))


def _is_changed(module: nn.Module) -> bool:
    """Whether a call of the module runs more than its class does."""
    hooks = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
    methods = ("forward", "run", "step")  # which may be replaced on this one
    is_compiled = module._compiled_call_impl is not None
    return any(hooks) or is_compiled or any(method in vars(module) for method in methods)


def scaled(channels: int, width: float) -> int:
    """Number of channels of a network of the given relative width; at least 1."""
    return max(1, round(channels * width))


def check_timesteps(timesteps: int | None) -> None:
    """Raise ArgumentError unless this is None or a number of time steps."""
    if timesteps is not None and (not isinstance(timesteps, int) or isinstance(timesteps, bool) or timesteps < 1):
        hint = ": give FX concrete_args" if isinstance(timesteps, torch.fx.Proxy) else ""
        raise ArgumentError(f"timesteps must be a whole number of at least 1, got {timesteps!r}{hint}")


class SpikingNetwork(nn.Module):
    """Base of all networks: normalisation, the stem, and the direct coding of images.

    A subclass has `stem`, the layers before the first neurons ([N, C, H, W] -> [N, ...]), and `body`, all the rest
    ([T, B, ...] -> logits [T, B, K]); or, instead of `body`, those neurons as `stem_neuron`, and `after_stem`.

    Shape:
        x [T, B, C, H, W] -> logits [T, B, K]; or, with `timesteps` = T, an image [B, C, H, W] that is the same at every
        step ("direct coding"): the stem then runs once, not T times.
    """

    stem: nn.Module
    stem_neuron: nn.Module
    memory = "fast"  # see `build_model`

    def __init__(self, in_shape: Sequence[int]) -> None:
        super().__init__()
        self.in_shape = tuple(in_shape)
        self.normalize: nn.Module = nn.Identity()

    def body(self, current: Tensor) -> Tensor:
        """All layers after the stem: currents of the first neurons [T, B, ...] -> logits [T, B, K]."""
        return self.after_stem(self.stem_neuron(current))

    def after_stem(self, x: Tensor) -> Tensor:
        """All layers after the first neurons: their spikes [T, B, ...] -> logits [T, B, K]."""
        raise NotImplementedError(f"{type(self).__name__} has no body")

    def forward(self, x: Tensor, timesteps: int | None = None) -> Tensor:
        self._check_shape(x, timesteps)
        if self.memory == "fast" or torch.compiler.is_compiling():
            return self._run(self.normalize(x), timesteps)
        with memory.used_as(self.memory):
            return self._run(self.normalize(x), timesteps)

    def _run(self, x: Tensor, timesteps: int | None) -> Tensor:
        if type(self).body is SpikingNetwork.body:
            return self.after_stem(fire(self.stem_neuron, self.stem, x, timesteps=timesteps))
        return self.body(run_over_time(self.stem, x, timesteps))

    def _check_shape(self, x: Tensor, timesteps: int | None) -> None:
        check_timesteps(timesteps)
        if isinstance(x, torch.fx.Proxy) or torch.jit.is_tracing():
            return  # their shapes are not numbers
        if x.dim() != (5 if timesteps is None else 4) or tuple(x.shape[-3:]) != self.in_shape:
            # The message is formatted only here: torch.compile would otherwise specialise on the value of `timesteps`.
            shape = ", ".join(map(str, self.in_shape))
            wanted, got = f"[T, B, {shape}]", "without timesteps"
            if timesteps is not None:
                wanted, got = f"[B, {shape}] together with timesteps", f"with timesteps={timesteps}"
            raise ArgumentError(f"expected input {wanted}, got {list(x.shape)} {got}")

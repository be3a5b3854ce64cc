"""Stateless layers, and the base class of all networks."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from .parameters import ArgumentError

MakeNeuron = Callable[[], nn.Module]


def over_time(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply a stateless layer to all steps at once: x [T, B, ...] -> layer(x as [T * B, ...]) as [T, B, ...]."""
    return layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])


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
    ([T, B, ...] -> logits [T, B, K]).

    Shape:
        x [T, B, C, H, W] -> logits [T, B, K]; or, with `timesteps` = T, an image [B, C, H, W] that is the same at every
        step ("direct coding"): the stem then runs once, not T times.
    """

    stem: nn.Module

    def __init__(self, in_shape: Sequence[int]) -> None:
        super().__init__()
        self.in_shape = tuple(in_shape)
        self.normalize: nn.Module = nn.Identity()

    def body(self, current: Tensor) -> Tensor:
        """All layers after the stem: currents of the first neurons [T, B, ...] -> logits [T, B, K]."""
        raise NotImplementedError(f"{type(self).__name__} has no body")

    def forward(self, x: Tensor, timesteps: int | None = None) -> Tensor:
        self._check_shape(x, timesteps)
        if timesteps is None:
            current = over_time(self.stem, self.normalize(x))
        else:
            current = self.stem(self.normalize(x))
            current = current.expand((timesteps,) + current.shape)
        return self.body(current)

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

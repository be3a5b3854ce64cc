"""From a trained rectifier network to spikes: what `models.convert` puts in the places of rectifiers and max pools."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .contexts import STREAM
from .kernels.common import arithmetic_dtype
from .layers import over_time
from .parameters import ArgumentError, device_of
from .tracing import in_mode

QUANTILES = (0.9, 0.95, 0.97, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995, 1.0)  # to choose from
ENOUGH = 1000  # values of a channel for a quantile: smaller batches are put together


class Balanced(nn.Module):
    """A neuron in the place of a rectifier: its threshold of 1 stands for `scale`, above which the rate saturates.

    Shape:
        x [T, B, C, ...], scale [C] -> spikes * scale, as x.
    """

    scale: Tensor

    def __init__(self, neuron: nn.Module, scale: Tensor) -> None:
        super().__init__()
        self.neuron = neuron
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.scale.to(x.dtype).reshape(-1, *(1,) * (x.dim() - 3))
        return self.neuron(x / scale) * scale


class MaxOfSums(nn.Module):
    """Max pooling by the sums over time: out[1] + ... + out[t] = pool(x[1] + ... + x[t]).

    The mean over time is thus the pool of the means, which pooling at each step would exceed, and of spikes of one size
    each output is again a spike of this size or 0.

    Args:
        pool: [B, C, ...] -> [B, C, ...].

    Shape:
        x [T, B, C, ...] -> the pooled sequence.

    Note:
        Rueckauer et al. 2017 (see `models.convert`) let the input of the highest rate through, to the same end.
    """

    is_streamed = True  # a `Stream` keeps its state, the sum [B, C, ...]

    def __init__(self, pool: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling() and (stream := STREAM.get()) is not None:
            return stream.advance(self, x)
        return self.run(x)[0]

    def run(self, x: Tensor, state: Tensor | None = None, keep_state: bool = True) -> tuple[Tensor, Tensor]:
        """As `SpikingNeuron.run`."""
        sums = x.to(arithmetic_dtype(x.dtype)).cumsum(0)
        if state is not None:
            sums = sums + state
        pooled = over_time(self.pool, sums)
        before = torch.zeros_like(pooled[:1]) if state is None else self.pool(state).unsqueeze(0)
        return torch.diff(pooled, dim=0, prepend=before).to(x.dtype), sums[-1]


class Recorder(nn.Module):
    """A rectifier that notes a scale for each channel: x [T, B, C, ...] -> the same.

    The scale is a quantile of the channel's values; without a given one, that of `QUANTILES` with which the rates of
    `timesteps` steps come nearest to the values, in the mean square.
    """

    def __init__(self, rectifier: nn.Module, quantile: float | None, timesteps: int) -> None:
        super().__init__()
        self.rectifier, self.timesteps = rectifier, timesteps
        self.quantiles = QUANTILES if quantile is None else (quantile,)
        self.waiting: list[Tensor] = []  # values [C, values] of batches
        self.found: list[tuple[int, Tensor]] = []  # numbers of values, and the scales [C] for them

    def forward(self, x: Tensor) -> Tensor:
        x = self.rectifier(x)
        values = x.flatten(0, 1).transpose(0, 1).flatten(1).to(torch.float32, copy=True)  # [C, values]
        if not values.isfinite().all():
            raise ArgumentError("values that are not finite cannot be calibrated with")
        self.waiting.append(values)
        self._use_waiting(ENOUGH)
        return x

    def _use_waiting(self, enough: int) -> None:
        count = sum(values.shape[1] for values in self.waiting)
        if count < enough:
            return
        values = torch.cat(self.waiting, 1)
        self.waiting.clear()
        scales = torch.stack([values.kthvalue(max(1, round(q * count))).values for q in self.quantiles])
        nearest = torch.stack([self._error(values, scale) for scale in scales]).argmin(0, keepdim=True)
        self.found.append((count, scales.gather(0, nearest)[0]))

    def scale(self) -> Tensor | None:
        """The mean of what was found, [C]; None if there were no values."""
        self._use_waiting(1)
        total = sum(count for count, _ in self.found)
        return torch.stack([scale * (count / total) for count, scale in self.found]).sum(0) if total else None

    def _error(self, values: Tensor, scale: Tensor) -> Tensor:
        """The mean square error, for each channel, of the rates of neurons that start at half their threshold."""
        size = scale[:, None] / self.timesteps  # of a spike in the mean over time
        spikes = (values / size + 0.5).floor().clamp(max=self.timesteps).nan_to_num()  # a scale may be 0
        return (spikes * size - values).square().mean(1)


@torch.no_grad()
def scales(net: nn.Module, batches: Iterable[Any]) -> dict[str, Tensor]:
    """{name of a `Recorder` in a network over time: scale of each channel [C]}.

    Raises:
        ArgumentError: if a recorder gets no values, or nothing but zeros.
    """
    with in_mode(net, False):
        for batch in batches:
            x = batch[0] if isinstance(batch, tuple | list) and batch else batch
            if not isinstance(x, Tensor):
                raise ArgumentError(
                    "a batch to calibrate with must be a tensor, or a tuple or list that begins with one, not a "
                    f"{type(x).__name__}: give calibrate=(batch['images'] for batch in loader), or what fits yours"
                )
            net(x.to(device_of(net)), timesteps=1)
    found = {}
    for name, recorder in net.named_modules():
        if isinstance(recorder, Recorder):
            if (scale := recorder.scale()) is None:
                raise ArgumentError(f"nothing to calibrate {name!r} with: no batch, or it runs in training mode alone")
            if not scale.max() > 0:
                raise ArgumentError(f"nothing to calibrate {name!r} with: the quantiles of all its channels are 0")
            found[name] = scale.clamp(min=0.1 * scale.max())  # a channel that is silent here need not always be
    return found

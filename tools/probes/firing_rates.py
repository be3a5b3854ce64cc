"""Firing rates of a network, by layer."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tools.runtime.processes import Processes

from .hooks import neuron_hooks


class FiringRates:
    """Mean firing rate per layer, over all passes inside `firing_rates`."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, name: str, spikes: Tensor) -> None:
        """Add the spikes [T, B, ...] of one call of a layer."""
        # The sums stay on the device: reading them here would stall it at every layer.
        self._sums[name] = self._sums.get(name, 0) + spikes.detach().float().mean() * spikes.numel()
        self._counts[name] = self._counts.get(name, 0) + spikes.numel()

    def rates(self, processes: Processes = Processes()) -> dict[str, float]:
        """{layer name: spikes per neuron and time step}, in the order of the layers, over all processes."""
        counts = processes.sum(torch.tensor(list(self._counts.values()), dtype=torch.float64)).tolist()
        sums = processes.sum(torch.tensor([float(total) for total in self._sums.values()], dtype=torch.float64))
        return {name: total / count for name, total, count in zip(self._sums, sums.tolist(), counts)}


@contextlib.contextmanager
def firing_rates(net: nn.Module) -> Iterator[FiringRates]:
    """Context manager: record the firing rates of every neuron layer of `net` in the block.

    Yields:
        `FiringRates`, whose `rates()` can be read inside the block and after it.
    """
    record = FiringRates()

    def attach(name: str, neuron: nn.Module) -> RemovableHandle:
        return neuron.register_forward_hook(lambda module, args, spikes: record.add(name, spikes))

    with neuron_hooks(net, attach):
        yield record

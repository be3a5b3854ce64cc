"""Firing rates of a network, by layer."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from crits.watching import is_run_again
from tools.errors import UserError
from tools.runtime.processes import Processes

from .hooks import neuron_hooks


class FiringRates:
    """Mean firing rate of each layer over all passes inside `firing_rates`."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, layer: str, spikes: Tensor) -> None:
        """Add the spikes [T, B, ...] of one call of a layer."""
        while torch._C._functorch.is_functorch_wrapped_tensor(spikes):  # under torch.vmap: samples of all calls
            spikes = torch._C._functorch.get_unwrapped(spikes)
        if not spikes.numel() or is_run_again():  # they have no mean, or have been counted
            return
        # The sums stay on the device: reading them at every layer would stall it.
        self._sums[layer] = self._sums.get(layer, 0) + spikes.detach().float().mean() * spikes.numel()
        self._counts[layer] = self._counts.get(layer, 0) + spikes.numel()

    def rates(self, processes: Processes = Processes()) -> dict[str, float]:
        """{layer: spikes per neuron and time step}, in the order of the layers, over all processes.

        Layers that were not called are left out; UserError if none was.
        """
        if not self._sums:
            raise UserError(
                "no spikes were recorded: inside the block, run the network itself (not a copy of it, or what was "
                "exported or traced from it), on a batch that is not empty"
            )
        sums, counts = [float(total) for total in self._sums.values()], list(self._counts.values())
        sums, counts = processes.sum(torch.tensor([sums, counts], dtype=torch.float64))
        return dict(zip(self._sums, (sums / counts).tolist()))


@contextlib.contextmanager
def firing_rates(net: nn.Module) -> Iterator[FiringRates]:
    """Context manager: record the rates of every neuron layer in the block, to be read in it or after it.

    Calls of `run` and `step` count too. In the block nothing runs compiled. A thread or task that opens its own block
    records only its own calls.
    """
    record = FiringRates()
    with neuron_hooks(net, lambda layer, neuron, spikes, continues: record.add(layer, spikes)):
        yield record

"""Batches of images or event frames: their number and their order."""

import dataclasses
from collections.abc import Callable, Iterator, Sized

import torch

from tools.errors import UserError
from tools.runtime.processes import Processes

# Inputs; labels [B] or probabilities of the classes [B, K]; and, if they differ, the numbers of frames of each sample
# [B]: see `crits.losses.mean_over_time`.
Batch = tuple[torch.Tensor, ...]


@dataclasses.dataclass(eq=False)
class Batches:
    """Batches of a labelled data set; a subclass makes one batch in `_batch`.

    A shuffled pass drops an incomplete last batch, in which each sample would weigh more; an ordered one keeps it.
    UserError if a step takes several batches and there are not enough samples for one.
    """

    data: Sized
    batch_size: int
    device: torch.device
    shuffle: bool = False  # a new order for each pass, by torch's default CPU generator
    augment: Callable[..., torch.Tensor] | None = None  # (inputs, labels, ...) -> inputs, for each batch
    memory_format: torch.memory_format = torch.contiguous_format
    limit: int | None = None  # most steps per pass
    accumulate: int = 1  # batches of a step
    processes: Processes = Processes()  # those that share the samples of each step

    def __post_init__(self):
        available, samples = len(self.data), self.batch_size * self.accumulate * self.processes.count  # of a step
        if samples > available and samples > self.batch_size:
            raise UserError(
                f"{available} samples are not enough for a step of {self.processes.count} (processes) x "
                f"{self.accumulate} (accumulated batches) x {self.batch_size} (samples)"
            )
        drop_last = self.shuffle and available >= samples
        steps = available // samples if drop_last else -(-available // samples)
        self.batches = self.accumulate * min(steps, self.limit or steps)

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[Batch]:
        return self.passing(self.order())

    def order(self) -> torch.Tensor:
        """Indices of the samples in the order of a pass, int64 [N]."""
        return torch.randperm(len(self.data)) if self.shuffle else torch.arange(len(self.data))

    def passing(self, order: torch.Tensor, first: int = 0) -> Iterator[Batch]:
        """The batches of a pass in the given order, from number `first` on."""
        for number in range(first, self.batches):
            start = (number * self.processes.count + self.processes.rank) * self.batch_size
            yield self._batch(order[start : start + self.batch_size])

    def _batch(self, chosen: torch.Tensor) -> Batch:
        """Inputs and labels on the device; `chosen`: indices of the samples, int64 on the CPU."""
        raise NotImplementedError

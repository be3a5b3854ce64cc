"""What batches of images and batches of event frames have in common: their number and their order."""

import torch

from tools.runtime.processes import Processes


class Batches:
    """Iterate over batches of a labelled data set; a subclass has `_batch`, which makes one.

    Args:
        data: has a length.
        batch_size: samples per batch. A shuffled pass drops an incomplete last batch, which would
            weigh its samples more; an ordered one keeps it.
        device: where the batches go.
        shuffle: a new order for every pass, from torch's default CPU generator.
        augment: what the subclass does to a training batch, or None.
        memory_format: of the batches.
        limit: largest number of steps per pass, or None.
        accumulate: batches that make a step of a shuffled pass.
        processes: `Processes`, which share the samples of each step of a shuffled pass.

    Raises:
        ValueError: if several batches make a step, and the samples do not suffice for one.
    """

    def __init__(
        self,
        data,
        batch_size,
        device,
        shuffle=False,
        augment=None,
        memory_format=torch.contiguous_format,
        limit=None,
        accumulate=1,
        processes=Processes(),
    ):
        self.data = data
        self.batch_size = batch_size
        self.device = device
        self.shuffle = shuffle
        self.augment = augment
        self.memory_format = memory_format
        self.processes = processes
        samples = batch_size * accumulate * processes.count  # of a step
        if samples > len(data) and samples > batch_size:
            raise ValueError(
                f"{len(data)} samples do not suffice for a step of {processes.count} (processes) x {accumulate} "
                f"(accumulated batches) x {batch_size} (samples)"
            )
        drop_last = shuffle and len(data) >= samples
        steps = len(data) // samples if drop_last else -(-len(data) // samples)
        self.batches = accumulate * min(steps, limit or steps)

    def __len__(self):
        return self.batches

    def __iter__(self):
        return self.passing(self.order())

    def order(self):
        """Indices of the samples in the order of a pass, int64 [N]: a new one for each pass that is shuffled."""
        return torch.randperm(len(self.data)) if self.shuffle else torch.arange(len(self.data))

    def passing(self, order, first=0):
        """The batches of a pass in a given order, from batch number `first` on."""
        for number in range(first, self.batches):
            start = (number * self.processes.count + self.processes.rank) * self.batch_size
            yield self._batch(order[start : start + self.batch_size])

    def _batch(self, chosen):
        """(inputs, labels) on the device, of the samples with the indices `chosen` (int64, on the CPU)."""
        raise NotImplementedError

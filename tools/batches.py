"""What batches of images and batches of event frames have in common: their number and their order."""

import torch


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
        limit: largest number of batches per pass, or None.
    """

    def __init__(
        self, data, batch_size, device, shuffle=False, augment=None, memory_format=torch.contiguous_format, limit=None
    ):
        self.data = data
        self.batch_size = batch_size
        self.device = device
        self.shuffle = shuffle
        self.augment = augment
        self.memory_format = memory_format
        drop_last = shuffle and len(data) >= batch_size
        batches = len(data) // batch_size if drop_last else -(-len(data) // batch_size)
        self.batches = min(batches, limit or batches)

    def __len__(self):
        return self.batches

    def __iter__(self):
        order = torch.randperm(len(self.data)) if self.shuffle else torch.arange(len(self.data))
        for batch in range(self.batches):
            yield self._batch(order[batch * self.batch_size : (batch + 1) * self.batch_size])

    def _batch(self, chosen):
        """(inputs, labels) on the device, of the samples with the indices `chosen` (int64, on the CPU)."""
        raise NotImplementedError

"""Labelled images that are read from their files in every pass, because they do not fit into memory."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, default_collate

from tools.errors import UserError

from .batches import Batch, Batches
from .images import ImageBatches


@dataclasses.dataclass
class StreamedImages:
    """N image files with their labels, int64 [N]; each is fitted into `size`, (width, height)."""

    files: Sequence[Path]
    labels: torch.Tensor
    size: tuple[int, int]
    workers: int  # processes that decode

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor | UserError, torch.Tensor]:
        """One image, uint8 [3, H, W], or why it cannot be read; and its label."""
        from .image_folder import fitted  # Pillow is slow to import

        try:
            return torch.from_numpy(fitted(self.files[index], self.size).copy()), self.labels[index]
        except UserError as error:  # raised by a process of a DataLoader, it would become the text of a traceback
            return error, self.labels[index]

    def subset(self, indices: torch.Tensor) -> "StreamedImages":
        """The images with these indices, in this order."""
        files = [self.files[index] for index in indices.tolist()]
        return dataclasses.replace(self, files=files, labels=self.labels[indices])

    def batches(self, batch_size: int, device: torch.device, **options: Any) -> "StreamedBatches":
        """Batches of these images; see `Batches` for the options."""
        return StreamedBatches(self, batch_size, device, **options)


def _collated(samples: list[tuple[torch.Tensor | UserError, torch.Tensor]]) -> list[torch.Tensor] | UserError:
    """The images and labels of a batch, or why one of them cannot be read."""
    errors = [image for image, _ in samples if isinstance(image, UserError)]
    return errors[0] if errors else default_collate(samples)


@dataclasses.dataclass(eq=False)
class StreamedBatches(ImageBatches):
    """The same batches as `ImageBatches` has, of `StreamedImages`, decoded ahead by processes of their own."""

    mix: Callable[[torch.Tensor, torch.Tensor], Batch] | None = None

    def __post_init__(self):
        Batches.__post_init__(self)
        self.chosen: list[list[int]] = []  # the samples of each batch of the present pass
        self.loader: DataLoader | None = None

    def passing(self, order: torch.Tensor, first: int = 0) -> Iterator[Batch]:
        """The batches of a pass in the given order, from number `first` on."""
        starts = [
            (number * self.processes.count + self.processes.rank) * self.batch_size
            for number in range(first, self.batches)
        ]
        self.chosen[:] = [order[start : start + self.batch_size].tolist() for start in starts]
        if self.loader is None:
            workers = self.data.workers
            self.loader = DataLoader(
                self.data,
                batch_sampler=self.chosen,
                collate_fn=_collated,
                num_workers=workers,
                persistent_workers=workers > 0,
                multiprocessing_context="spawn" if workers > 0 else None,  # a fork copies locks of other threads
                generator=torch.Generator(),  # so that it draws nothing from that of the training
            )
        for batch in self.loader:
            if isinstance(batch, UserError):
                raise batch
            pixels, labels = batch
            yield self._finished(pixels.to(self.device), labels.to(self.device))

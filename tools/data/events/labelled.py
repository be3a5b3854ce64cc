"""Labelled recordings, and the batches of frames made of them."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from tools.data.batches import Batch, Batches

from .frames import CELLS, VALUES, Framing, cell_area, count_frames, stacked
from .recordings import Recording
from .store import FrameStore


@dataclasses.dataclass
class LabelledRecordings:
    """N recordings with their frames."""

    recordings: Sequence[Recording]
    counts: FrameStore | np.ndarray  # frames of these recordings, perhaps among others: [..., T, 2, H, W], unsigned
    rows: np.ndarray  # the row of each recording in `counts`, int64 [N]
    labels: torch.Tensor  # int64 [N]
    framing: Framing  # how the frames were made
    values: str  # what the network sees of the counts, one of `frames.VALUES`
    cells: str = "sum"  # one of `frames.CELLS`
    lenient: bool = False  # see `Recording.load`
    lengths: np.ndarray | None = None  # number of frames of each recording, int64 [N], if they differ

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Sequence[int] | np.ndarray | torch.Tensor) -> "LabelledRecordings":
        """The recordings with these indices, in this order."""
        indices = np.asarray(indices)
        recordings, labels = [self.recordings[index] for index in indices], self.labels[torch.from_numpy(indices)]
        lengths = None if self.lengths is None else self.lengths[indices]
        rows = self.rows[indices]
        return dataclasses.replace(self, recordings=recordings, rows=rows, labels=labels, lengths=lengths)

    def batches(self, batch_size: int, device: torch.device, **options: Any) -> "FrameBatches":
        """Batches of these recordings; see `Batches` for the options."""
        return FrameBatches(self, batch_size, device, **options)

    def events(self, index: int) -> np.ndarray:
        """The events of one recording, of dtype `EVENT`."""
        return self.recordings[index].load(self.framing.sensor, self.lenient).events

    def perturbed(self, perturb: Callable[..., np.ndarray], strength: float, seed: int) -> "LabelledRecordings":
        """The same recordings, with events perturbed by a function of `tools.perturb.events` and framed in memory.

        Each recording has its own generator, from the seed and its index. Raises what `Recording.load` does.
        """
        frames = []
        for index in range(len(self)):
            random = np.random.default_rng([seed, index])
            events = perturb(self.events(index), strength, random, self.framing.sensor)
            frames.append(count_frames(events, self.framing))
        lengths = None if self.lengths is None else np.array([len(one) for one in frames])
        return dataclasses.replace(self, counts=stacked(frames), rows=np.arange(len(self)), lengths=lengths)


def frame_values(counts: torch.Tensor, values: str, area: torch.Tensor | None = None) -> torch.Tensor:
    """The input of a network, from counts. Shape: [..., 2, H, W] -> float32 of the same shape.

    Args:
        values: "count"; "binary": 1 where there was an event; "normalised": each frame (of both polarities) is divided
            by its maximum, and an empty one stays zero.
        area: `frames.cell_area`, to average over the sensor pixels of a cell; None: cells hold their sum.

    Raises:
        ValueError: for other `values`.
    """
    if values == "binary":
        return (counts > 0).float()
    counts = counts.float()
    if area is not None:
        counts = counts / area
    if values == "count":
        return counts
    if values == "normalised":
        return counts / counts.amax((-3, -2, -1), keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    raise ValueError(f"values of frames are {', '.join(VALUES)}; got {values!r}")


class FrameBatches(Batches):
    """Batches of frames [T, B, 2, H, W], float32, with their labels [B], of `LabelledRecordings`.

    Recordings of different lengths come with their lengths, int64 [B]; frames are zero after the end of a shorter one.

    `augment`: (counts [B, T, 2, H, W] on the device, labels, and lengths if they differ) -> counts. ValueError for
    unknown `cells` of the data.
    """

    def __post_init__(self):
        super().__post_init__()
        self.area = None
        if self.data.cells == "average":
            self.area = torch.from_numpy(cell_area(self.data.framing)).to(self.device)
        elif self.data.cells != "sum":
            raise ValueError(f"cells of frames hold {' or '.join(CELLS)}; got {self.data.cells!r}")

    def _batch(self, chosen: torch.Tensor) -> Batch:
        labels = self.data.labels[chosen].to(self.device)
        counts = self.data.counts[self.data.rows[chosen.numpy()]].astype(np.int32)  # torch lacks most unsigned types
        lengths = ()
        if self.data.lengths is not None:
            of_these = torch.from_numpy(self.data.lengths[chosen.numpy()])
            counts, lengths = counts[:, : of_these.max()], (of_these.to(self.device),)
        counts = torch.from_numpy(counts).to(self.device)
        if self.augment is not None:
            counts = self.augment(counts, labels, *lengths)
        frames = frame_values(counts, self.data.values, self.area).transpose(0, 1)  # [T, B, 2, H, W]
        folded = frames.flatten(0, 1).contiguous(memory_format=self.memory_format)
        return folded.unflatten(0, frames.shape[:2]), labels, *lengths

"""The parts of a loaded data set."""

import dataclasses

from .events.labelled import LabelledRecordings
from .images import LabelledImages
from .streamed import StreamedImages

Labelled = LabelledImages | StreamedImages | LabelledRecordings


@dataclasses.dataclass(frozen=True)
class LabelledParts:
    """The labelled samples to train on, to choose the epoch with, and to test with."""

    train: Labelled
    val: Labelled
    test: Labelled

"""The parts of a loaded data set."""

import dataclasses

from .events.labelled import LabelledRecordings
from .images import LabelledImages


@dataclasses.dataclass(frozen=True)
class LabelledParts:
    """The labelled samples to train on, to choose the epoch with, and to test with."""

    train: LabelledImages | LabelledRecordings
    val: LabelledImages | LabelledRecordings
    test: LabelledImages | LabelledRecordings

"""What a script asks of its data set."""

from collections.abc import Callable, Sequence
from typing import Protocol

from .fields import RunConfig
from .train import TrainConfig


class Dataset(Protocol):
    """A data set, as `dataset_utils` has them.

    Args:
        name: as in main_<name>.py and in results.
        classes, num_classes: names of the classes, in the order of the labels, and how many there are.
        mean, std: of each channel, in [0, 1] pixel units, by which the network normalises its inputs.
        has_pixels: whether it has images, which tests perturb by pixels; it has events otherwise.
    """

    name: str
    classes: Sequence[str]
    num_classes: int
    mean: Sequence[float]
    std: Sequence[float]
    has_pixels: bool

    def input_shape(self, config: RunConfig) -> tuple[int, int, int]:
        """(C, H, W) of what a network with this configuration sees."""

    def load(self, config: TrainConfig | None = None) -> dict:
        """The labelled samples {"train", "val", "test"}."""

    def augmentation(self, config: TrainConfig) -> Callable:
        """The augmentation of training batches."""

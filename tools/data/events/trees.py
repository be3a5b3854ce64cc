"""The event data sets that people download, and where their recordings are in a folder.

To add one, write a function like `list_nmnist` and an entry in `TREES`; `dataset_utils.DATASETS` takes it from there.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from tools.errors import UserError
from tools.io.files import read_bytes

from .gestures import MAX_LABEL_BYTES, read_gesture_labels
from .reading import EventFormatError
from .recordings import Parts, Recording

GESTURE_CLASSES = (
    "hand clapping",
    "right hand wave",
    "left hand wave",
    "right arm clockwise",
    "right arm counterclockwise",
    "left arm clockwise",
    "left arm counterclockwise",
    "arm roll",
    "air drums",
    "air guitar",
    "other gestures",
)
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10_TRAINING = {"9:1": 0.9, "7:3": 0.7}  # share of the recordings of each class


@dataclasses.dataclass(frozen=True)
class Tree:
    """An event data set and its layout on the disk.

    `list_recordings` gives the recordings in a folder, for a split. It raises FileNotFoundError if the folder does not
    hold the data set, and UserError for lists or names that cannot be read.
    """

    classes: tuple[str, ...]  # their names, in the order of the labels
    sensor: tuple[int, int]  # (width, height) of the camera, in pixels
    size: tuple[int, int]  # (width, height) of the frames, unless --frame_size says otherwise
    list_recordings: Callable[[Path, str], Parts]
    flippable: tuple[str, ...] = ()  # the classes that a mirror does not change, so that --flip may mirror them
    folders: tuple[str, ...] = ()  # its possible names under the data root; none: it is simulated
    splits: bool = False  # whether `list_recordings` heeds the split, as the data set has no official one
    download: str = ""  # where to get it, for the message that it is missing
    validation_fraction: float = 0.1  # share of the training recordings that are held out to choose the best epoch

    def frame_size(self, side: int = 0) -> tuple[int, int]:
        """(width, height) of frames with this side, in pixels; 0: `size`."""
        return (side, side) if side else self.size


class Layout(NamedTuple):
    """Where the recordings of a data set are in its folder."""

    train: str  # pattern of the training files
    test: str
    label_of: Callable[[Path], int]  # the label of a path


def list_nmnist(folder: Path, split: str = "") -> Parts:
    """List N-MNIST (Orchard et al. 2015): {Train,Test}/<digit>/<number>.bin."""
    layout = Layout("Train/[0-9]/[!.]*.bin", "Test/[0-9]/[!.]*.bin", _number_of_folder)
    return _matching(folder, [layout], "{Train,Test}/<digit>/*.bin of N-MNIST")


def _matching(folder: Path, layouts: Sequence[Layout], what: str) -> Parts:
    """The recordings of the first layout that is found."""
    for layout in layouts:
        train = [Recording(path, layout.label_of(path)) for path in sorted(folder.glob(layout.train))]
        test = [Recording(path, layout.label_of(path)) for path in sorted(folder.glob(layout.test))]
        if train and test:
            return Parts(train, test)
    raise _missing(folder, what)


def list_dvsgesture(folder: Path, split: str = "") -> Parts:
    """List DVS-Gesture (Amir et al., CVPR 2017), whose training and test users are disjoint.

    Either the official folder, where trials_to_train.txt and trials_to_test.txt list `.aedat` files, each with a
    `_labels.csv`; or what SpikingJelly (events_np/{train,test}/<label>/*.npz) or tonic
    (ibmGesture{Train,Test}/<user>/<label>.npy) have extracted from it.
    """
    train_list, test_list = folder / "trials_to_train.txt", folder / "trials_to_test.txt"
    if train_list.exists() and test_list.exists():
        parts = Parts(_official_gestures(train_list), _official_gestures(test_list))
        if parts.train and parts.test:
            return parts
    spikingjelly = Layout("events_np/train/[0-9]*/[!.]*.npz", "events_np/test/[0-9]*/[!.]*.npz", _number_of_folder)
    tonic = Layout("ibmGestureTrain/*/[!.]*.npy", "ibmGestureTest/*/[!.]*.npy", _number)
    what = "trials_to_train.txt, nor events_np/{train,test}, nor ibmGesture{Train,Test} of DVS-Gesture"
    return _matching(folder, [spikingjelly, tonic], what)


def _official_gestures(trials: Path) -> list[Recording]:
    """The gestures in the files named by a list; all of them must be in the folder of the list."""
    names = read_bytes(trials, MAX_LABEL_BYTES).decode(errors="replace").split()
    for name in names:
        if not re.fullmatch(r"\w[\w.-]*\.aedat", name):
            raise EventFormatError(trials, 0, f"expected names of .aedat files beside it, got {name[:80]!r}")
    recordings = []
    for path in map(trials.with_name, names):
        try:
            for label, start_us, end_us in read_gesture_labels(path.with_name(f"{path.stem}_labels.csv")):
                recordings.append(Recording(path, label, (start_us, end_us)))
        except (UserError, FileNotFoundError) as error:  # one damaged file must not hide all others
            recordings.append(Recording(path, None, problem=str(error)))
    return recordings


def list_dvscifar10(folder: Path, split: str = "9:1") -> Parts:
    """List DVS-CIFAR10 (Li et al. 2017): <class>/*, as .aedat, .npz, .npy or .mat files.

    The data set has no official split. Here each class has its first 90 % of numbers (70 % with split "7:3"), from 0 to
    the highest, in the training part: 0 to 899 of the complete data set, whatever files are missing.

    Note: The `.mat` and `.npz` files that the data set's dat2mat.m and SpikingJelly make have mirrored or swapped axes,
    unlike the `.aedat` files, and are read as they are. So test a network on the kind of file it was trained on.
    """
    folder = folder / "events_np" if (folder / "events_np").is_dir() else folder
    parts = Parts([], [])
    for label, name in enumerate(CIFAR10_CLASSES):
        numbered = sorted((_number(path), path) for path in _of_one_kind(folder / name))
        cut = round(CIFAR10_TRAINING[split] * (numbered[-1][0] + 1))
        for number, path in numbered:
            part = parts.train if number < cut else parts.test
            part.append(Recording(path, label))
    if not (parts.train and parts.test):
        raise _missing(folder, "recordings of DVS-CIFAR10 for training and for testing")
    return parts


def _of_one_kind(folder: Path) -> list[Path]:
    """The recordings in a folder, each once: files of several kinds hold the same recordings."""
    files = [path for path in folder.glob("*") if not path.name.startswith(".")]
    for suffix in (".aedat", ".npz", ".npy", ".mat"):
        if chosen := [path for path in files if path.suffix.lower() == suffix]:
            return chosen
    raise _missing(folder, "recordings (.aedat, .npz, .npy or .mat) of DVS-CIFAR10")


def _number(path: Path) -> int:
    """The number at the end of a name, before the suffix."""
    found = re.search(r"(\d+)$", path.stem)
    if found is None or len(found[1]) > 9:
        raise UserError(f"{path} has no number at the end of its name, which recordings of this data set have")
    return int(found[1])


def _number_of_folder(path: Path) -> int:
    return _number(path.parent)


def _missing(folder: Path, what: str) -> FileNotFoundError:
    return FileNotFoundError(f"{folder.resolve()} has no {what}")


TREES = {
    "nmnist": Tree(
        classes=tuple("0123456789"),
        sensor=(34, 34),
        size=(34, 34),
        list_recordings=list_nmnist,
        folders=("nmnist", "NMNIST", "N-MNIST", "nmnist-small"),
        download="https://www.garrickorchard.com/datasets/n-mnist",
        validation_fraction=0.2,
    ),
    "dvsgesture": Tree(
        classes=GESTURE_CLASSES,
        sensor=(128, 128),
        size=(48, 48),
        list_recordings=list_dvsgesture,
        flippable=("hand clapping", "arm roll", "air drums", "air guitar", "other gestures"),  # no left and right
        folders=("DvsGesture", "DVSGesture", "DVS128Gesture", "dvsgesture"),
        download="https://research.ibm.com/interactive/dvsgesture/",
    ),
    "dvscifar10": Tree(
        classes=CIFAR10_CLASSES,
        sensor=(128, 128),
        size=(48, 48),
        list_recordings=list_dvscifar10,
        flippable=CIFAR10_CLASSES,
        splits=True,
        folders=("CIFAR10DVS", "DVS-CIFAR10", "dvscifar10", "CIFAR10-DVS"),
        download="https://figshare.com/articles/dataset/CIFAR10-DVS_New/4724671",
    ),
}


def recognise(folder: Path, split: str = "9:1") -> tuple[str, Parts]:
    """Find out which data set a folder holds: its name in `TREES`, and its recordings.

    FileNotFoundError if it holds none of them; UserError if lists or names of files cannot be read.
    """
    problems = []
    for name, tree in TREES.items():
        try:
            return name, tree.list_recordings(Path(folder), split)
        except FileNotFoundError as error:
            problems.append(f"{name}: {error}")
    raise FileNotFoundError("\n".join([f"{folder} is none of the data sets {', '.join(TREES)}:", *problems]))

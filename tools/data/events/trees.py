"""Where the published event data sets have their recordings: folder -> (training, test) lists of `Recording`."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

from .errors import EventFormatError, read_bytes
from .formats import MAX_LABEL_BYTES, read_gesture_labels
from .recordings import Recording

GESTURE_CLASSES = (
    *("hand clapping", "right hand wave", "left hand wave", "right arm clockwise", "right arm counterclockwise"),
    *("left arm clockwise", "left arm counterclockwise", "arm roll", "air drums", "air guitar", "other gestures"),
)
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10_TRAINING = {"9:1": 0.9, "7:3": 0.7}  # share of each class's recordings


@dataclasses.dataclass(frozen=True)
class Tree:
    """How a data set lies on the disk, and its camera.

    Args:
        classes: their names, in the order of the labels.
        sensor: (width, height) of the camera, in pixels.
        size: (width, height) of the frames that networks usually see.
        list_recordings: (folder, split) -> (training, test), lists of `Recording`; FileNotFoundError where it is
            not there, and a ValueError (EventFormatError is one) for lists or names that cannot be read.
    """

    classes: tuple
    sensor: tuple
    size: tuple
    list_recordings: Callable


def list_nmnist(folder, split=None):
    """N-MNIST (Orchard et al. 2015): {Train,Test}/<digit>/<number>.bin."""
    parts = [sorted((folder / part).glob("[0-9]/*.bin")) for part in ("Train", "Test")]
    _require(all(parts), folder, "{Train,Test}/<digit>/*.bin of N-MNIST")
    return tuple([Recording(path, int(path.parent.name)) for path in files] for files in parts)


def list_dvsgesture(folder, split=None):
    """DVS-Gesture (Amir et al., CVPR 2017), whose training and test users are apart.

    Either the official folder, with trials_to_train.txt and trials_to_test.txt, one `.aedat` file a line, and the
    gestures of each in its `_labels.csv`; or what SpikingJelly (events_np/{train,test}/<label>/*.npz) or tonic
    (ibmGesture{Train,Test}/<user>/<label>.npy) have extracted from it.
    """
    for read in (_official_gestures, _spikingjelly_gestures, _tonic_gestures):
        parts = read(folder)
        if all(parts):
            return parts
    _require(
        False, folder, "trials_to_train.txt, nor events_np/{train,test}, nor ibmGesture{Train,Test} of DVS-Gesture"
    )


def _official_gestures(folder):
    lists = [folder / f"trials_to_{part}.txt" for part in ("train", "test")]
    if not all(path.exists() for path in lists):
        return [], []
    return tuple([gesture for name in _trials(path) for gesture in _gestures(folder / name)] for path in lists)


def _trials(path):
    """The names of files in a list, which are beside it and nowhere else."""
    names = read_bytes(path, MAX_LABEL_BYTES).decode(errors="replace").split()
    for name in names:
        if not re.fullmatch(r"\w[\w.-]*\.aedat", name):
            raise EventFormatError(path, 0, f"expected names of .aedat files beside it, got {name[:80]!r}")
    return names


def _gestures(path):
    try:
        labels = read_gesture_labels(path.with_name(f"{path.stem}_labels.csv"))
    except (EventFormatError, FileNotFoundError) as error:  # one damaged file shall not hide all others
        return [Recording(path, None, problem=str(error))]
    return [Recording(path, label, window_us=(start, end)) for label, start, end in labels]


def _spikingjelly_gestures(folder):
    files = [sorted((folder / "events_np" / part).glob("[0-9]*/[!.]*.npz")) for part in ("train", "test")]
    return tuple([Recording(path, _number(path.parent)) for path in part] for part in files)


def _tonic_gestures(folder):
    files = [sorted((folder / f"ibmGesture{part}").glob("*/[!.]*.npy")) for part in ("Train", "Test")]
    return tuple([Recording(path, _number(path)) for path in part] for part in files)


def list_dvscifar10(folder, split="9:1"):
    """DVS-CIFAR10 (Li et al. 2017): <class>/*, as .aedat, .npz, .npy or .mat files.

    The data set has no official split. Here a recording belongs to the training part if its number is below 90 % (or
    70 %, split "7:3") of the numbers of its class, from 0 to the highest: of the complete data set 0 to 899 train, and
    900 to 999 test, whatever files are missing.

    Note:
        The data set's dat2mat.m and SpikingJelly mirror or swap the axes in their own ways, so that their `.mat` and
        `.npz` files are not turned as the `.aedat` files are here: test a network on the kind it was trained on.
    """
    folder = folder / "events_np" if (folder / "events_np").is_dir() else folder
    train, test = [], []
    for label, name in enumerate(CIFAR10_CLASSES):
        numbered = sorted((_number(path), path) for path in _of_one_kind(folder / name))
        cut = round(CIFAR10_TRAINING[split] * (numbered[-1][0] + 1))
        train += [Recording(path, label) for number, path in numbered if number < cut]
        test += [Recording(path, label) for number, path in numbered if number >= cut]
    _require(train and test, folder, "recordings of DVS-CIFAR10 for training and for testing")
    return train, test


def _of_one_kind(folder):
    """The recordings in a folder; where it has several kinds of files, they are the same recordings twice."""
    files = [path for path in folder.glob("*") if not path.name.startswith(".")]
    for suffix in (".aedat", ".npz", ".npy", ".mat"):
        if chosen := [path for path in files if path.suffix.lower() == suffix]:
            return chosen
    _require(False, folder, "recordings (.aedat, .npz, .npy or .mat) of DVS-CIFAR10")


def _number(path):
    """The number at the end of a name, before the suffix."""
    found = re.search(r"(\d+)$", path.stem)
    if found is None or len(found[1]) > 9:
        raise ValueError(f"{path} has no number at the end of its name, as this data set's recordings have")
    return int(found[1])


TREES = {
    "nmnist": Tree(tuple("0123456789"), (34, 34), (34, 34), list_nmnist),
    "dvsgesture": Tree(GESTURE_CLASSES, (128, 128), (48, 48), list_dvsgesture),
    "dvscifar10": Tree(CIFAR10_CLASSES, (128, 128), (48, 48), list_dvscifar10),
}


def recognise(folder, split="9:1"):
    """The data set that a folder holds.

    Returns:
        Its name in `TREES`, and its (training, test) lists of `Recording`.

    Raises:
        FileNotFoundError: if it is none of them; it says what was looked for.
        ValueError: if it is one, but lists or names of its files cannot be read.
    """
    problems = []
    for name, tree in TREES.items():
        try:
            return name, tree.list_recordings(Path(folder), split)
        except FileNotFoundError as error:
            problems.append(f"{name}: {error}")
    raise FileNotFoundError("\n".join([f"{folder} is none of the data sets {', '.join(TREES)}:", *problems]))


def _require(found, folder, what):
    if not found:
        raise FileNotFoundError(f"{Path(folder).resolve()} has no {what}")

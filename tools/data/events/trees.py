"""The event data sets that people download, and where their recordings are in a folder.

To add one, write a function like `list_nmnist` and an entry in `TREES`; `dataset_utils.DATASETS` takes it from there.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tools.data.fingerprint import code_fingerprint
from tools.errors import UserError
from tools.io.files import read_bytes

from . import POLARITIES
from .gestures import MAX_LABEL_BYTES, read_gesture_labels
from .reading import EventFormatError
from .recordings import TRANSPOSED, UPSIDE_DOWN, Parts, Recording
from .spikes import CHANNELS, DIGITS, make_chirps, read_labels
from .store import stored_streams

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
CIFAR10_SUFFIXES = (".aedat", ".aedat4", ".npz", ".npy", ".mat")
CIFAR10_TURNED = {".mat": UPSIDE_DOWN, ".npz": TRANSPOSED}
TRAINING_SHARES = {"9:1": 0.9, "7:3": 0.7}  # of the recordings of each class, where there is no official split

_CALTECH101 = (
    "Faces_easy Leopards Motorbikes accordion airplanes anchor ant barrel bass beaver binocular bonsai brain "
    "brontosaurus buddha butterfly camera cannon car_side ceiling_fan cellphone chair chandelier cougar_body "
    "cougar_face crab crayfish crocodile crocodile_head cup dalmatian dollar_bill dolphin dragonfly "
    "electric_guitar elephant emu euphonium ewer ferry flamingo flamingo_head garfield gerenuk gramophone "
    "grand_piano hawksbill headphone hedgehog helicopter ibis inline_skate joshua_tree kangaroo ketch lamp laptop "
    "llama lobster lotus mandolin mayfly menorah metronome minaret nautilus octopus okapi pagoda panda pigeon "
    "pizza platypus pyramid revolver rhino rooster saxophone schooner scissors scorpion sea_horse snoopy "
    "soccer_ball stapler starfish stegosaurus stop_sign strawberry sunflower tick trilobite umbrella watch "
    "water_lilly wheelchair wild_cat windsor_chair wrench yin_yang"
)
CALTECH101_CLASSES = tuple(_CALTECH101.split())  # all but the background
NCARS_CLASSES = ("background", "cars")

# The possible names of the folder of a data set; see `plain` for what does not matter in them.
NMNIST = ("nmnist", "N-MNIST", "nmnist-small")
DVSGESTURE = ("DvsGesture", "DVS128Gesture", "ibmGesture")
DVSCIFAR10 = ("CIFAR10DVS", "DVS-CIFAR10")
NCALTECH101 = ("ncaltech101", "Caltech101")
NCARS = ("ncars", "Prophesee_Dataset_n_cars")
SHD = ("shd", "hsd")
MADE_BY_SPIKINGJELLY = ("extract", "events_np")  # in the folder of a data set; the first has the original files
DEEPEST = 3  # levels of folders that are searched

ListRecordings = Callable[[Path, str], Parts]  # (folder, split) -> the recordings of the data set in it


@dataclasses.dataclass(frozen=True)
class Tree:
    """An event data set and its layout on the disk.

    `list_recordings` gives the recordings in a folder, for a split. It raises FileNotFoundError if the folder does not
    hold the data set, and UserError for lists or names that cannot be read.
    """

    classes: tuple[str, ...]  # their names, in the order of the labels
    sensor: tuple[int, int]  # (width, height) of the camera, in pixels
    size: tuple[int, int]  # (width, height) of the frames, unless --frame_size says otherwise
    list_recordings: ListRecordings
    flippable: tuple[str, ...] = ()  # the classes that a mirror does not change, so that --flip may mirror them
    folders: tuple[str, ...] = ()  # its possible names under the data root; none: it is simulated
    splits: bool = False  # whether `list_recordings` uses the split, as the data set has no official one
    download: str = ""  # where to get it, for the message that it is missing
    validation_fraction: float = 0.1  # share of the training recordings that are held out to choose the best epoch
    channels: int = POLARITIES  # of frames; 1 where all events are ON
    demo: Callable[[Path], Parts] | None = None  # makes recordings to try networks on, in a folder

    def frame_size(self, side: int = 0) -> tuple[int, int]:
        """(width, height) of frames with this side, in pixels; 0: `size`. A sensor with one row has frames with one."""
        return (side, side if self.sensor[1] > 1 else 1) if side else self.size


class Incomplete(FileNotFoundError):
    """One part of a data set is there, the other one is not."""


class Layout(NamedTuple):
    """Where the recordings of a data set are: <part>/<folder>/<file>; see `plain` for the names of parts."""

    train: tuple[str, ...]  # possible names of the folder of the training part
    test: tuple[str, ...]
    suffixes: tuple[str, ...]
    label_of: Callable[[Path], int | None]  # the label of a file; None: it is not a recording


def plain(name: str) -> str:
    """A name without what differs between the copies of a data set: N-MNIST, nmnist and N_MNIST are the same."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def folder_in(parent: Path, *names: str) -> Path | None:
    """The first folder in `parent` that has one of these names, in any spelling; None if there is none."""
    if not parent.is_dir():
        return None
    folders = sorted(path for path in parent.iterdir() if path.is_dir() and not path.name.startswith("."))
    for name in names:
        for folder in [parent / name, *folders]:
            if plain(folder.name) == plain(name) and folder.is_dir():
                return folder
    return None


def _also_inside(*names: str) -> Callable[[ListRecordings], ListRecordings]:
    """Decorate a function that lists a folder, so that it looks into the folders inside as well, if it has to.

    These are folders of the same `names` once more, which unpacking makes, and those that SpikingJelly makes.
    """

    def decorate(list_recordings: ListRecordings) -> ListRecordings:
        @functools.wraps(list_recordings)
        def found(folder: Path, split: str = "9:1") -> Parts:
            places, problems = [folder], []
            for number, place in enumerate(places, 1):
                try:
                    return list_recordings(place, split)
                except FileNotFoundError as error:
                    problems.append(error)
                if len(place.parts) < len(folder.parts) + DEEPEST:
                    inside = {folder_in(place, name): None for name in (*names, *MADE_BY_SPIKINGJELLY)}
                    places[number:number] = [one for one in inside if one is not None]  # searched before its neighbours
            raise next((one for one in problems if isinstance(one, Incomplete)), problems[0])

        return found

    return decorate


@_also_inside(*NMNIST)
def list_nmnist(folder: Path, split: str = "") -> Parts:
    """List N-MNIST (Orchard et al. 2015): `{Train,Test}/<digit>/*.bin`, or SpikingJelly's `events_np/` of .npz."""
    layouts = [Layout(("train",), ("test",), (suffix,), _number_of_folder) for suffix in (".bin", ".npz")]
    return _matching(folder, layouts, 10, "{Train,Test}/<digit>/*.bin of N-MNIST")


def _matching(folder: Path, layouts: Sequence[Layout], classes: int, what: str) -> Parts:
    """The recordings of the first layout that is found, whose labels are below `classes`."""
    halves = []
    for layout in layouts:
        train, test = (_in_part(folder, names, layout) for names in (layout.train, layout.test))
        if max((recording.label for recording in train + test), default=0) >= classes:
            continue  # it is another data set
        if train and test:
            return Parts(train, test)
        if train or test:
            halves.append(("testing", layout.test) if train else ("training", layout.train))
    for purpose, names in halves:
        raise Incomplete(f"{folder.resolve()} has no recordings for {purpose} (in {' or '.join(names)}) of {what}")
    raise _missing(folder, what)


def _in_part(folder: Path, names: Sequence[str], layout: Layout) -> list[Recording]:
    """The recordings in a part, whose folder may be once more in one of the same name."""
    part = folder_in(folder, *names)
    if part is None:
        return []
    part = folder_in(part, *names) or part
    files = [path for path in sorted(part.glob("[!.]*/[!.]*")) if path.suffix.lower() in layout.suffixes]
    labelled = [(path, layout.label_of(path)) for path in files]
    return [Recording(path, label) for path, label in labelled if label is not None]


@_also_inside(*DVSGESTURE)
def list_dvsgesture(folder: Path, split: str = "") -> Parts:
    """List DVS-Gesture (Amir et al., CVPR 2017), whose training and test users are disjoint.

    Either the official folder, where trials_to_train.txt and trials_to_test.txt list `.aedat` files, each with a
    `_labels.csv`; or what SpikingJelly (`events_np/{train,test}/<label>/*.npz`) or tonic
    (ibmGesture{Train,Test}/<user>/<label>.npy) have extracted from it.
    """
    train_list, test_list = folder / "trials_to_train.txt", folder / "trials_to_test.txt"
    empty = None
    if train_list.exists() and test_list.exists():
        parts = Parts(_official_gestures(train_list), _official_gestures(test_list))
        if parts.train and parts.test:
            return parts
        purpose, names = ("testing", test_list.name) if parts.train else ("training", train_list.name)
        empty = Incomplete(f"{folder.resolve()} has no recordings for {purpose} (in {names}) of DVS-Gesture")
    spikingjelly = Layout(("train",), ("test",), (".npz",), _number_of_folder)
    tonic = Layout(("ibmGestureTrain",), ("ibmGestureTest",), (".npy",), _number)
    what = "trials_to_train.txt, nor events_np/{train,test}, nor ibmGesture{Train,Test} of DVS-Gesture"
    try:
        return _matching(folder, [spikingjelly, tonic], len(GESTURE_CLASSES), what)
    except FileNotFoundError as error:
        raise empty or error from None


def _official_gestures(trials: Path) -> list[Recording]:
    """The gestures in the files named by a list; all of them must be in the folder of the list."""
    names = read_bytes(trials, MAX_LABEL_BYTES).decode("utf-8-sig", errors="replace").split()
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


@_also_inside(*DVSCIFAR10)
def list_dvscifar10(folder: Path, split: str = "9:1") -> Parts:
    """List DVS-CIFAR10 (Li et al. 2017): `<class>/*`, as .aedat, .aedat4, .npz, .npy or .mat files.

    The data set has no official split. Here each class has its first 90 % of numbers (70 % with split "7:3"), from 0 to
    the highest, in the training part: 0 to 899 of the complete data set, whatever files are missing.

    All kinds of files give the same events: the `.mat` files that the data set's dat2mat.m makes are upside down, and
    SpikingJelly's `.npz` have x and y swapped.
    """
    return _numbered(folder, CIFAR10_CLASSES, split, CIFAR10_SUFFIXES, 0, "DVS-CIFAR10", CIFAR10_TURNED)


@_also_inside(*NCALTECH101)
def list_ncaltech101(folder: Path, split: str = "9:1") -> Parts:
    """List N-Caltech101 (Orchard et al. 2015): <class>/image_<number>.bin, or SpikingJelly's `.npz`.

    The data set has no official split. Here each class has its first 90 % of numbers (70 % with split "7:3") in the
    training part. The class BACKGROUND_Google is left out. Recordings differ in size: each is in the upper left of the
    sensor.
    """
    return _numbered(folder, CALTECH101_CLASSES, split, (".bin", ".npz", ".npy"), 1, "N-Caltech101", {})


@_also_inside(*NCARS)
def list_ncars(folder: Path, split: str = "") -> Parts:
    """List N-CARS (Sironi et al., CVPR 2018): `n-cars_{train,test}/{cars,background}/*.dat`, with its official split.

    Prophesee's archives have these in a folder train or test once more; tonic calls the parts ncars-{train,test}.
    """
    layout = Layout(("n-cars_train", "train"), ("n-cars_test", "test"), (".dat",), _ncars_label)
    return _matching(folder, [layout], len(NCARS_CLASSES), "n-cars_{train,test}/{cars,background}/*.dat of N-CARS")


@_also_inside(*SHD, "events_h5")
def list_shd(folder: Path, split: str = "") -> Parts:
    """List the Heidelberg spoken digits (Cramer et al. 2022): shd_{train,test}.h5, with its official split."""
    files = [folder / f"shd_{part}.h5" for part in ("train", "test")]
    if not any(file.exists() for file in files):
        raise _missing(folder, "shd_train.h5 and shd_test.h5 of the Heidelberg spoken digits")
    if absent := [str(file.resolve()) for file in files if not file.exists()]:
        raise Incomplete(f"{absent[0]} is missing: unpack shd_train.h5.zip and shd_test.h5.zip")
    parts = Parts([], [])
    for part, file in zip(parts, files):
        part.extend(Recording(file, label, row=row) for row, label in enumerate(read_labels(file)))
    return parts


def make_shd(folder: Path) -> Parts:
    """Make recordings that stand in for the Heidelberg spoken digits: see `make_chirps`."""
    key = code_fingerprint(make_chirps.__module__, stored_streams.__module__)[:24]

    def part(name: str, per_class: int, seed: int) -> list[Recording]:
        return stored_streams(f"chirps-{name}-{key}", lambda: make_chirps(per_class, seed), folder)

    return Parts(part("train", 40, 0), part("test", 10, 1))


def _ncars_label(path: Path) -> int | None:
    name = path.parent.name.lower()
    return NCARS_CLASSES.index(name) if name in NCARS_CLASSES else None


def _numbered(
    folder: Path,
    classes: Sequence[str],
    split: str,
    suffixes: Sequence[str],
    lowest: int,
    what: str,
    turned: Mapping[str, str],
) -> Parts:
    """List `<class>/*<number>.<suffix>`: the first numbers of each class, from `lowest` on, are for training."""
    parts = Parts([], [])
    for label, name in enumerate(classes):
        found = _of_one_kind(folder_in(folder, name) or folder / name, suffixes, what)
        numbered = sorted((_number(path) - lowest, path) for path in found)
        cut = round(TRAINING_SHARES[split] * (numbered[-1][0] + 1))
        for number, path in numbered:
            part = parts.train if number < cut else parts.test
            part.append(Recording(path, label, turned=turned.get(path.suffix.lower(), "")))
    if not parts.test:
        raise Incomplete(f"{folder.resolve()} has no recordings of {what} for testing: too few in each class")
    if not parts.train:
        raise Incomplete(f"{folder.resolve()} has no recordings of {what} for training: too few in each class")
    return parts


def _of_one_kind(folder: Path, suffixes: Sequence[str], what: str) -> list[Path]:
    """The recordings in a folder, each once: files of several kinds hold the same recordings."""
    for place in (folder, folder / folder.name):  # as unpacking may leave it
        files = [path for path in place.glob("[!.]*") if path.is_file()]
        for suffix in suffixes:
            if chosen := [path for path in files if path.suffix.lower() == suffix]:
                return chosen
    raise _missing(folder, f"recordings ({', '.join(suffixes)}) of {what}")


def _number(path: Path) -> int:
    """The number at the end of a name, before the suffix."""
    found = re.search(r"(\d+)$", path.stem)
    if found is None or len(found[1]) > 9:
        raise UserError(f"{path} has no number at the end of its name, which recordings of this data set have")
    return int(found[1])


def _number_of_folder(path: Path) -> int | None:
    name = path.parent.name
    return int(name) if re.fullmatch(r"[0-9]{1,4}", name) else None


def _missing(folder: Path, what: str) -> FileNotFoundError:
    return FileNotFoundError(f"{folder.resolve()} has no {what}")


TREES = {
    "nmnist": Tree(
        classes=tuple("0123456789"),
        sensor=(34, 34),
        size=(34, 34),
        list_recordings=list_nmnist,
        folders=NMNIST,
        download="https://www.garrickorchard.com/datasets/n-mnist",
        validation_fraction=0.2,
    ),
    "dvsgesture": Tree(
        classes=GESTURE_CLASSES,
        sensor=(128, 128),
        size=(48, 48),
        list_recordings=list_dvsgesture,
        flippable=("hand clapping", "arm roll", "air drums", "air guitar", "other gestures"),  # no left and right
        folders=DVSGESTURE,
        download="https://research.ibm.com/interactive/dvsgesture/",
    ),
    "dvscifar10": Tree(
        classes=CIFAR10_CLASSES,
        sensor=(128, 128),
        size=(48, 48),
        list_recordings=list_dvscifar10,
        flippable=CIFAR10_CLASSES,
        splits=True,
        folders=DVSCIFAR10,
        download="https://figshare.com/articles/dataset/CIFAR10-DVS_New/4724671",
    ),
    "ncaltech101": Tree(
        classes=CALTECH101_CLASSES,
        sensor=(240, 180),
        size=(64, 48),
        list_recordings=list_ncaltech101,
        flippable=CALTECH101_CLASSES,
        splits=True,
        folders=NCALTECH101,
        download="https://www.garrickorchard.com/datasets/n-caltech101",
    ),
    "ncars": Tree(
        classes=NCARS_CLASSES,
        sensor=(120, 100),
        size=(60, 50),
        list_recordings=list_ncars,
        flippable=NCARS_CLASSES,
        folders=NCARS,
        download="https://www.prophesee.ai/2018/03/13/dataset-n-cars/",
    ),
    "shd": Tree(
        classes=DIGITS,
        sensor=(CHANNELS, 1),
        size=(CHANNELS // 5, 1),
        list_recordings=list_shd,
        folders=SHD,
        download="https://zenkelab.org/resources/spiking-heidelberg-datasets-shd/",
        channels=1,
        demo=make_shd,
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

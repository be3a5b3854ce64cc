"""Recordings of one's own: a folder `{train,test}/<class>/*` of files of any format that can be read here."""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from tools.data.fingerprint import code_fingerprint
from tools.errors import UserError
from tools.io.cache import cache_folder, stamp
from tools.io.files import write_text_atomically

from .formats import BYTE_ORDER_MARK, FORMATS, format_of, read_recording
from .reading import EventFormatError
from .recordings import Parts, Recording
from .trees import Incomplete, Tree, folder_in

logger = logging.getLogger(__name__)
LONGEST_SIDE = 64  # of frames, unless --frame_size says otherwise
MOST_PIXELS = 2**16  # along a side of a sensor, as coordinates have 16 bits


def own_tree(classes: Sequence[str], sensor: tuple[int, int]) -> Tree:
    """The data set of these classes and this sensor; frames have its shape, with a longest side of `LONGEST_SIDE`."""
    longest = max(sensor)
    size = sensor
    if longest > LONGEST_SIDE:
        size = tuple(max(1, round(side * LONGEST_SIDE / longest)) for side in sensor)
    return Tree(tuple(classes), sensor, size, list_own, flippable=tuple(classes))


def list_own(folder: Path, split: str = "") -> Parts:
    """List `{train,test}/<class>/*`: files that can be read, by their names or else by their first bytes.

    Classes are numbered in alphabetical order. One warning says what is skipped; files and folders whose name begins
    with a dot are. UserError if the parts have different classes, or one has none; FileNotFoundError without parts.
    """
    skipped: Counter[str] = Counter()
    by_class = [_files_by_class(folder, name, skipped) for name in ("train", "test")]
    if skipped:
        logger.warning("%s: skipped %s", folder, ", ".join(f"{what} ({count})" for what, count in skipped.items()))
    train, test = by_class
    if train.keys() != test.keys():
        raise UserError(f"{folder}: train has the classes {sorted(train)}, test has {sorted(test)}")
    parts = Parts([], [])
    for label, name in enumerate(sorted(train)):
        parts.train.extend(Recording(path, label) for path in train[name])
        parts.test.extend(Recording(path, label) for path in test[name])
    return parts


def _files_by_class(folder: Path, name: str, skipped: Counter[str]) -> dict[str, list[Path]]:
    part = folder_in(folder, name)
    if part is None:
        raise FileNotFoundError(
            f"{folder.resolve()} has no folder {name}: recordings are {{train,test}}/<class>/* in --data_root"
        )
    found = {}
    for place in sorted(part.glob("[!.]*")):
        if not place.is_dir():
            skipped["files beside the classes"] += 1
            continue
        files = sorted(place.glob("[!.]*"))
        chosen = [path for path in files if not path.is_dir() and _can_be_read(path)]
        for path in set(files) - set(chosen):
            skipped["folders in classes" if path.is_dir() else f"files *{path.suffix}"] += 1
        if not chosen:
            raise UserError(f"{place} has no recordings that can be read")
        found[place.name] = chosen
    if not found:
        raise Incomplete(f"{part.resolve()} has no recordings: they are in <class>/*")
    return found


def _can_be_read(path: Path) -> bool:
    if path.suffix.lower() in {suffix for one in FORMATS for suffix in one.suffixes}:
        return True
    if not path.is_file():  # a pipe may never end
        return False
    with open(path, "rb") as file:
        head = file.read(4096)
    try:
        format_of(path, head.removeprefix(BYTE_ORDER_MARK))
    except EventFormatError:
        return False
    return True


def classes_of(parts: Parts) -> list[str]:
    """The names of the classes, in the order of their labels."""
    return sorted({recording.path.parent.name for recording in parts.train})


def sensor_of(parts: Parts, lenient: bool = False) -> tuple[int, int]:
    """(width, height) that hold all recordings: of a camera that is named, else one more than the highest x and y.

    All recordings are read for this; the result is cached. UserError for one that cannot be read, unless `lenient`.
    """
    recordings = [*parts.train, *parts.test]
    key = hashlib.sha256(code_fingerprint(__name__).encode())
    for recording in recordings:
        key.update(stamp(recording.path).encode())
    cache = cache_folder() / f"sensor-{key.hexdigest()[:24]}-{lenient}.json"
    try:
        width, height = json.loads(cache.read_bytes())
        return int(width), int(height)
    except (OSError, ValueError, TypeError):
        pass
    named, sizes = set(), []
    for recording in tqdm(recordings, "looking for the size of the sensor", unit="file", disable=None, leave=False):
        try:
            reading = read_recording(recording.path, lenient)
        except UserError:
            if not lenient:
                raise
            continue
        if reading.sensor is not None:
            named.add(reading.sensor)
        sizes.append(reading.sensor or tuple(int(reading.events[axis].max()) + 1 for axis in "xy"))
    if not sizes:
        raise UserError("none of the recordings can be read")
    if len(named) > 1:
        listed = ", ".join(f"{width}x{height}" for width, height in sorted(named))
        logger.warning("recordings are of sensors of different sizes: %s", listed)
    width, height = (max(side) for side in zip(*sizes))
    write_text_atomically(cache, json.dumps([width, height]))
    return width, height

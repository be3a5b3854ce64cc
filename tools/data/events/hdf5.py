"""Reader and writer of events in HDF5, through h5py, which need not be installed."""

import contextlib
import io
import math
import re
from typing import Any, BinaryIO

import numpy as np

from tools.errors import UserError

from .arrays import MAX_ARRAY_BYTES, MOST_DEFLATED, columns_named, from_columns, from_out1
from .reading import Counts, EventFormatError, Reading, Source

_MAGIC = b"\x89HDF\r\n\x1a\n"
_PLACES = (("CD", "events"), ("events",), ())  # of the columns: Prophesee's tools, DSEC, no group
_OWN_FILTERS = (1, 2, 3, 4, 5, 6, 32000)  # that h5py brings along
_OTHER_FILTERS = {0x8ECF: "Prophesee's ECF", 32001: "Blosc", 32004: "LZ4", 32015: "Zstandard", 32026: "Blosc2"}


def is_hdf5(head: bytes) -> bool:
    """Whether a file that begins with these bytes is of HDF5, or of MATLAB 7.3, which is HDF5 after 512 bytes."""
    return head.startswith(_MAGIC) or head[512:520] == _MAGIC


def _h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise UserError("h5py is needed for HDF5 files and MATLAB 7.3: pip install h5py") from error
    return h5py


def read_hdf5(source: Source) -> Reading:
    """Read events of an HDF5 file: data sets x, y, t, p, spelt as in `columns_named`, or one with these fields.

    They are in CD/events, as of Prophesee's tools; in events, as of DSEC, whose t_offset is added to the times; or at
    the top. The variable out1 of MATLAB 7.3 is read as that of an older file (`read_mat`). Times are in microseconds.
    Links to other files are not followed. Files that are compressed by Blosc and the like, as those of DSEC, need
    hdf5plugin.

    Note: https://dsec.ifi.uzh.ch/data-format and https://docs.prophesee.ai/stable/data/file_formats/hdf5.html
    """
    h5py = _h5py()
    try:
        with h5py.File(io.BytesIO(source.raw), "r") as file:
            return _read(h5py, source, file)
    except EventFormatError:
        raise
    except Exception as error:  # h5py raises many kinds for damaged files
        problem = re.sub(r"\s+", " ", str(error))
        raise source.error(0, f"expected events in HDF5: {problem[:200] or type(error).__name__}") from error


def _read(h5py: Any, source: Source, file: Any) -> Reading:
    if at_path(h5py, file, "spikes", "times") is not None and at_path(h5py, file, "spikes", "units") is not None:
        hint = "use the data set shd, or tools.data.events.spikes.read_spikes"
        problem = f"expected one recording, got many in one file, as of the spiking Heidelberg data: {hint}"
        raise source.error(0, problem)
    out1 = at_path(h5py, file, "out1")
    if isinstance(out1, h5py.Dataset) and out1.ndim == 2 and out1.shape[0] in (4, 6):
        return from_out1(source, _loaded(source, out1).T)  # MATLAB's order of axes is the other one
    for place in _PLACES:
        found = at_path(h5py, file, *place)
        if isinstance(found, h5py.Dataset) and found.dtype.names and len(columns_named(found.dtype.names)) == 4:
            table = _loaded(source, found)
            columns = {name: table[field] for name, field in columns_named(table.dtype.names).items()}
            break
        if isinstance(found, h5py.Group):
            names = columns_named(found.keys())
            members = {name: at_path(h5py, found, member) for name, member in names.items()}
            if len([one for one in members.values() if isinstance(one, h5py.Dataset)]) == 4:
                columns = {name: _loaded(source, one) for name, one in members.items()}
                break
    else:
        got = sorted(file.keys())[:20]
        raise source.error(0, f"expected x, y, t, p at the top, in events or in CD/events, got {got}")
    offset, counts = at_path(h5py, file, "t_offset"), Counts()
    if offset is not None:
        columns["t"] = np.int64(0) + columns["t"] + np.reshape(_loaded(source, offset), ())
    triggers = at_path(h5py, file, "EXT_TRIGGER", "events")
    if isinstance(triggers, h5py.Dataset) and triggers.size:
        counts["external"] = int(triggers.size)
    size = re.fullmatch(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", _text(file, "geometry"))
    sensor = (int(size[1]), int(size[2])) if size else None
    camera = " ".join(filter(None, (_text(file, name) for name in ("integrator", "plugin_name", "generation"))))
    return from_columns(source, **columns, format="HDF5", camera=camera, sensor=sensor, counts=counts)


def at_path(h5py: Any, group: Any, *names: str) -> Any:
    """What is at a path of a file; None if nothing is, or a link to elsewhere."""
    for name in names:
        if not isinstance(group, h5py.Group) or not isinstance(group.get(name, getlink=True), h5py.HardLink):
            return None
        group = group[name]
    return group


def _text(file: Any, name: str) -> str:
    """A short text of fixed length among the attributes of a file; "" if there is none.

    HDF5 keeps texts of any length in a heap; where that is damaged, the library may search it forever.
    """
    if name not in file.attrs or file.attrs.get_id(name).shape != ():
        return ""
    kind = file.attrs.get_id(name).dtype
    return file.attrs[name].decode(errors="replace") if kind.kind == "S" and kind.itemsize <= 80 else ""


def _loaded(source: Source, dataset: Any) -> np.ndarray:
    """The numbers of a data set, which are all in this file and not more than it can hold."""
    properties, name = dataset.id.get_create_plist(), dataset.name
    for index in range(properties.get_nfilters()):
        number = properties.get_filter(index)[0]
        if number not in _OWN_FILTERS and not _is_available(number):
            which = f"{_OTHER_FILTERS.get(number, 'a filter')} ({number})"
            hint = "pip install hdf5plugin brings some; h5repack -f GZIP=4, where the filter is installed, does without"
            raise source.error(0, f"expected {name} without compression, or by gzip or LZF, got {which}; {hint}")
    if dataset.external or dataset.is_virtual:
        raise source.error(0, f"expected the numbers of {name} in this file, got a link to other files")
    types = [dataset.dtype[field] for field in dataset.dtype.names or ()] or [dataset.dtype]
    if any(one.kind not in "iufb" for one in types):
        raise source.error(0, f"expected numbers in {name}, got {dataset.dtype}")
    most = min(MAX_ARRAY_BYTES, MOST_DEFLATED * len(source.raw))
    for shape in (dataset.shape, dataset.chunks or ()):
        if math.prod(shape) * dataset.dtype.itemsize > most:
            raise source.error(0, f"expected {name} to have at most {most} bytes, got {dataset.dtype} {shape}")
    return dataset[()]


def _is_available(number: int) -> bool:
    """Whether a filter is installed, by hdf5plugin or otherwise."""
    with contextlib.suppress(ImportError):
        import hdf5plugin  # noqa: F401  # which registers its filters
    return _h5py().h5z.filter_avail(number)


def write_hdf5(file: BinaryIO, events: np.ndarray, sensor: tuple[int, int] | None = None) -> None:
    """Write the data sets x, y, t, p in the group events, as DSEC has them, and the size of the sensor."""
    content = io.BytesIO()
    with _h5py().File(content, "w") as written:
        for name in "xytp":
            column = events[name].view(np.uint8) if name == "p" else events[name]
            written.create_dataset(f"events/{name}", data=column, compression="gzip", compression_opts=1, shuffle=True)
        if sensor:
            written.attrs["geometry"] = np.bytes_(f"{sensor[0]}x{sensor[1]}")
    file.write(content.getbuffer())

"""tools/data/events/hdf5.py: events in the layouts of HDF5 that are found, and what a file may not do."""

import builtins
import io

import numpy as np
import pytest

from tests.tools.data.events.written import EVENTS
from tools.data.events import hdf5, read
from tools.data.events.formats import read_recording
from tools.data.events.reading import EventFormatError
from tools.errors import UserError

h5py = pytest.importorskip("h5py")
WANTED = [(x, y, t, bool(p)) for x, y, t, p in EVENTS]


def columns(names="xytp", dtype="<i8"):
    return {name: np.array([event[at] for event in EVENTS], dtype) for at, name in enumerate(names)}


def table():
    found = np.zeros(len(EVENTS), [("x", "<u2"), ("y", "<u2"), ("p", "<i2"), ("t", "<i8")])
    for name, column in columns().items():
        found[name] = column
    return found


@pytest.fixture
def file(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        yield file


def found(file):
    file.flush()
    return read_recording(file.filename)


@pytest.mark.parametrize("options", [{}, dict(chunks=(2,), compression="gzip", shuffle=True), dict(compression="lzf")])
@pytest.mark.parametrize("names", [("x", "y", "t", "p"), ("xs", "ys", "ts", "ps"), ("X", "Y", "timestamp", "polarity")])
@pytest.mark.parametrize("place", ["", "events/", "CD/events/"])
def test_columns_at_their_places(file, options, names, place):
    for name, column in zip(names, columns().values()):
        file.create_dataset(place + name, data=column, **options)
    reading = found(file)
    assert reading.events.tolist() == WANTED and reading.format == "HDF5"


def test_dsec_has_an_offset_of_time(file):
    for name, column in columns(dtype="<u4").items():
        file[f"events/{name}"] = column
    file["t_offset"], file["ms_to_idx"] = np.int64(2**33), np.arange(9)
    assert found(file).events["t"].tolist() == [2**33 + event[2] for event in EVENTS]


@pytest.mark.parametrize("offset", [0.5, [1, 2], [[1.0, 2, 3, 4]]])
def test_an_offset_of_time_is_one_whole_number(file, offset):
    for name, column in columns().items():
        file[name] = column
    file["t_offset"] = offset
    with pytest.raises(EventFormatError):
        found(file)


def test_an_offset_of_time_is_not_forgotten_for_times_in_floating_point(file):
    for name, column in columns(dtype="<f8").items():
        file[name] = column
    file["t_offset"] = 100
    assert found(file).events["t"].tolist() == [100 + event[2] for event in EVENTS]


@pytest.mark.parametrize("place", ["CD/events", "events"])
def test_tables_of_prophesees_tools(file, place):
    file[place] = table()
    file["EXT_TRIGGER/events"] = np.zeros(3, [("p", "<i2"), ("t", "<i8"), ("id", "<i2")])
    file.attrs["geometry"] = np.bytes_("640x480")
    reading = found(file)
    assert reading.events.tolist() == WANTED and reading.sensor == (640, 480) and reading.counts == {"external": 3}


@pytest.mark.parametrize("geometry", ["640x480", b"640x", b"0x480", np.arange(3), np.zeros((), "S200"), 7])
def test_other_attributes_do_not_matter(file, geometry):
    file["events"] = table()
    file.attrs["geometry"] = geometry
    assert found(file).sensor is None


@pytest.mark.parametrize("wide", [4, 6])
def test_matlab_73(tmp_path, wide):
    path = tmp_path / "a.mat"
    by_name = columns(dtype="<f8")
    rows = [by_name["t"], *[np.zeros(len(EVENTS))] * (wide - 4), *(by_name[name] for name in "xyp")]
    with h5py.File(path, "w", userblock_size=512) as file:
        file["out1"] = np.stack(rows)
    raw = bytearray(path.read_bytes())
    raw[:19] = b"MATLAB 7.3 MAT-file"
    path.write_bytes(raw)
    assert read(path).tolist() == WANTED
    path.write_bytes(raw[:-1])
    with pytest.raises(EventFormatError, match="a.mat, byte 0: expected events in HDF5: .*truncated"):
        read(path)


def test_spikes_of_many_recordings_are_not_one(file):
    file["spikes/times"], file["spikes/units"], file["labels"] = np.zeros(3), np.zeros(3), np.zeros(3)
    with pytest.raises(
        EventFormatError, match="expected one recording, got many .* tools.data.events.spikes.read_spikes$"
    ):
        found(file)


def test_other_contents_are_named(file):
    file["a"], file["events/x"] = 1, np.zeros(3)
    with pytest.raises(EventFormatError, match=r"expected x, y, t, p at the top, .* got \['a', 'events'\]$"):
        found(file)


def test_nothing_outside_the_file_is_read(file, tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["x"] = columns()["x"]
    for name in "ytp":
        file[name] = columns()[name]
    file["x"] = h5py.ExternalLink("other.h5", "/x")
    with pytest.raises(EventFormatError, match="expected x, y, t, p at the top"):
        found(file)
    del file["x"]
    (tmp_path / "numbers").write_bytes(columns()["x"].tobytes())
    file.create_dataset("x", (4,), "<i8", external=[(str(tmp_path / "numbers"), 0, 32)])
    with pytest.raises(EventFormatError, match="expected the numbers of /x in this file, got a link to other files$"):
        found(file)
    del file["x"]
    layout = h5py.VirtualLayout((4,), "<i8")
    layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "x", (4,))
    file.create_virtual_dataset("x", layout)
    with pytest.raises(EventFormatError, match="expected the numbers of /x in this file, got a link to other files$"):
        found(file)


@pytest.mark.parametrize(
    ("number", "name"), [(0x8ECF, "Prophesee's ECF"), (32001, "Blosc"), (32015, "Zstandard"), (300, "a filter")]
)
def test_a_filter_that_is_missing_is_named(file, number, name, monkeypatch):
    monkeypatch.setattr(hdf5, "_is_available", lambda number: False)
    for one in "xyt":
        file[f"events/{one}"] = columns()[one]
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_chunk((4,))
    properties.set_filter(number, h5py.h5z.FLAG_OPTIONAL)
    space = h5py.h5s.create_simple((4,))
    h5py.h5d.create(file["events"].id, b"p", h5py.h5t.STD_U8LE, space, properties)
    with pytest.raises(EventFormatError, match=rf"got {name} \({number}\); pip install hdf5plugin"):
        found(file)


def test_what_is_packed_by_blosc_is_read_where_its_filter_is_installed(file):
    plugin = pytest.importorskip("hdf5plugin")
    for name, column in columns().items():
        file.create_dataset(f"events/{name}", data=column, **plugin.Blosc(cname="zstd"))
    assert [list(map(int, event)) for event in found(file).events.tolist()] == [[x, y, t, p] for x, y, t, p in EVENTS]


def test_no_more_is_unpacked_than_the_file_can_hold(file):
    for name in "ytp":
        file[name] = columns()[name]
    file.create_dataset("x", (10**12,), "<i8", chunks=(1000,), compression="gzip")  # no numbers are stored
    with pytest.raises(EventFormatError, match="expected /x to have at most"):
        found(file)
    del file["x"]
    file.create_dataset("x", (4,), "<i8", maxshape=(None,), chunks=(10**8,))
    with pytest.raises(EventFormatError, match="expected /x to have at most"):
        found(file)


@pytest.mark.parametrize("kind", [h5py.string_dtype(), "S4", h5py.vlen_dtype(np.int32), "<c16"])
def test_other_types_are_refused(file, kind):
    for name in "ytp":
        file[name] = columns()[name]
    file.create_dataset("x", (4,), kind)
    with pytest.raises(EventFormatError, match="expected numbers in /x"):
        found(file)


def test_without_the_library_it_is_named(tmp_path, monkeypatch):
    def missing(name, *rest, **options):
        if name == "h5py":
            raise ImportError(name)
        return original(name, *rest, **options)

    original = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", missing)
    (tmp_path / "a.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    with pytest.raises(UserError, match="^h5py is needed for HDF5 files and MATLAB 7.3: pip install h5py$"):
        read(tmp_path / "a.h5")


def test_damage_is_told_in_one_line(tmp_path):
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        file["events"] = table()
    for length in (8, 100, 1000):
        (tmp_path / "a.h5").write_bytes(content.getvalue()[:length])
        with pytest.raises(EventFormatError, match="^[^\n]*a.h5, byte 0: expected events in HDF5: [^\n]+$"):
            read(tmp_path / "a.h5")

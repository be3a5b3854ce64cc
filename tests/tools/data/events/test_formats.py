"""Readers, on files that are written here byte by byte from the specifications of their formats."""

import os
import pickle
import struct
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.io import savemat

from tests.tools.data.events.written import EVENTS, aedat2, aedat3, nmnist
from tests.tools.data.events.written_aedat import PACKED4, aedat4, davis
from tests.tools.data.events.written_prophesee import dat, evt2, evt3
from tools.data.events import EVENT
from tools.data.events.formats import check_events
from tools.data.events.gestures import read_gesture_labels
from tools.data.events.reading import EventFormatError, Reading
from tools.data.events.recordings import Recording
from tools.errors import UserError

SIZE = (128, 128)


def columns(dtype=np.int64):
    return {name: np.array([event[at] for event in EVENTS], dtype) for at, name in enumerate("xytp")}


def written(path, kind):
    """A valid file of EVENTS."""
    names = {"aedat3": "a.aedat", "aedat2": "b.aedat", "davis": "e.aedat", "nmnist": "c.bin"}
    names |= {"evt2": "e.raw", "evt3": "f.raw"}
    path = path / names.get(kind, f"d.{kind}")
    if kind == "npz":
        np.savez(path, **columns())
    elif kind == "npy":
        table = np.zeros(4, [("t", "<i8"), ("x", "<i2"), ("y", "<i2"), ("p", "?")])
        for name, column in columns().items():
            table[name] = column
        np.save(path, table)
    elif kind == "mat":
        by_name = columns(float)
        unused = np.zeros(4)
        savemat(path, {"out1": np.stack([by_name["t"], unused, unused, *(by_name[name] for name in "xyp")], 1)})
    elif kind == "h5":
        h5py = pytest.importorskip("h5py")
        with h5py.File(path, "w") as file:
            for name, column in columns().items():
                file.create_dataset(f"events/{name}", data=column, chunks=(2,), compression="gzip")
    else:
        makers = {"aedat3": aedat3, "aedat2": aedat2, "davis": davis, "nmnist": nmnist, "aedat4": aedat4} | PACKED4
        makers |= {"evt2": evt2, "evt3": evt3, "dat": dat, "txt": txt, "csv": csv}
        path.write_bytes(makers[kind]())
    return path


def txt():
    """As in the event-camera data set of RPG."""
    return b"".join(f"0.{t:06d}000 {x} {y} {p}\n".encode() for x, y, t, p in EVENTS)


def csv():
    return b"timestamp;x;y;polarity\r\n" + b"".join(f"{t};{x};{y};{p}\r\n".encode() for x, y, t, p in EVENTS)


TEXTS = ["txt", "csv"]  # which may end anywhere
KINDS = ["aedat3", "aedat2", "davis", "aedat4", *PACKED4, "nmnist", "npz", "npy", "mat"]
KINDS += ["evt2", "evt3", "dat", "h5", *TEXTS]
COUNTS = {
    "aedat3": {"invalid": 2, "special": 2},
    "aedat2": {"special": 1},
    "davis": {"external": 2, "APS": 2, "IMU": 7},
    **dict.fromkeys(["aedat4", *PACKED4], {"frames": 1, "packets of the IMU": 1}),
    "evt2": {"external": 1, "other words": 1},
    "evt3": {"external": 1, "other words": 1},
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_format_gives_its_events(tmp_path, kind):
    checked = Recording(written(tmp_path, kind)).load(SIZE)
    assert checked.events.dtype == EVENT
    assert [tuple(map(int, event)) for event in checked.events.tolist()] == EVENTS
    assert checked.dropped == {"outside": 0, "decreasing": 0}
    assert checked.counts == COUNTS.get(kind, {})


def test_the_overflow_counter_is_the_upper_part_of_the_time(tmp_path):
    path = tmp_path / "late.aedat"
    path.write_bytes(aedat3(overflow=3))
    assert Recording(path).load(SIZE).events["t"].tolist() == [(3 << 31) + t for _, _, t, _ in EVENTS]


def test_tonics_gestures_are_in_milliseconds(tmp_path):
    np.save(tmp_path / "3.npy", np.array([[1, 2, 1, 5], [3, 4, 0, 7]]))
    assert Recording(tmp_path / "3.npy").load(SIZE).events.tolist() == [(1, 2, 5000, True), (3, 4, 7000, False)]


@pytest.mark.parametrize("dtype", ["<u2", "<i2", "<i4", "<f4", "<f8"])
def test_times_in_milliseconds_do_not_wrap_in_narrow_types(tmp_path, dtype):
    np.save(tmp_path / "3.npy", np.array([[1, 2, 1, 5], [3, 4, 0, 30_000]], dtype))
    assert Recording(tmp_path / "3.npy").load(SIZE).events["t"].tolist() == [5000, 30_000_000]


def test_plain_arrays_of_other_types_are_refused(tmp_path):
    for dtype in ("S4", "M8[s]", "V8", "?"):
        np.save(tmp_path / "3.npy", np.zeros((2, 4), dtype))
        with pytest.raises(EventFormatError, match="3.npy, byte 0: expected numbers"):
            Recording(tmp_path / "3.npy").load(SIZE)


@pytest.mark.parametrize("shape", [(), (4,), (2, 3), (2, 5), (2, 4, 1)])
def test_plain_arrays_of_other_shapes_are_refused(tmp_path, shape):
    np.save(tmp_path / "3.npy", np.zeros(shape, int))
    with pytest.raises(EventFormatError, match="3.npy, byte 0: expected numbers"):
        Recording(tmp_path / "3.npy").load(SIZE)


def test_arrays_may_have_further_fields_but_none_may_lack_or_be_of_another_shape(tmp_path):
    whole, path = columns(), tmp_path / "a.NPZ"

    def save(**arrays):
        with open(path, "wb") as file:
            np.savez(file, **arrays)
        return Recording(path)

    assert len(save(**whole, z=whole["x"]).load(SIZE).events) == 4
    for wrong, message in (
        ({}, "one length are needed"),
        ({name: whole[name] for name in "xyt"}, r"expected arrays or fields x, y, t, p, .* got \['t', 'x', 'y'\]"),
        ({**whole, "y": whole["y"][:3]}, "one length are needed"),
        ({**whole, "y": whole["y"][:, None]}, "expected x, y, t, p of one length"),
        ({name: whole[name][:, None] for name in "xytp"}, "expected x, y, t, p of one length"),
        ({name: whole[name][0] for name in "xytp"}, "expected x, y, t, p of one length"),
        ({**whole, "x": whole["x"] + 0j}, "expected numbers for x, got complex"),
    ):
        with pytest.raises(EventFormatError, match=f"a.NPZ, byte 0: .*{message}"):
            save(**wrong).load(SIZE)


def test_a_polarity_of_one_byte_is_zero_or_one(tmp_path):
    path = written(tmp_path, "npy")
    raw = path.read_bytes()
    path.write_bytes(raw[:-1] + b"\2")
    with pytest.raises(EventFormatError, match="byte 0: event 3: expected a whole p from 0 to 1, got 2"):
        Recording(path).load(SIZE)


@pytest.mark.parametrize("kind", ["npz", "mat"])
def test_as_dense_as_deflate_packs_is_read(tmp_path, kind):
    still, path = np.zeros(100_000), tmp_path / f"a.{kind}"
    if kind == "npz":
        np.savez_compressed(path, **dict.fromkeys("xytp", still))
    else:
        savemat(path, {"out1": np.stack([still] * 4, 1)}, do_compression=True)
    assert path.stat().st_size < 4 * still.nbytes / 500
    assert len(Recording(path).load(SIZE).events) == 100_000


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_nothing_before_an_archive_is_executed(tmp_path, suffix):
    class Harmful:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    path = written(tmp_path, suffix)
    path.write_bytes(pickle.dumps(Harmful()) + path.read_bytes())  # which is still an archive
    with pytest.raises(EventFormatError, match=f"d.{suffix}, byte 0: expected an array"):
        Recording(path).load(SIZE)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("more", [0, 1])
def test_an_archive_may_claim_two_gibibytes(tmp_path, more):
    path = tmp_path / "a.npz"
    np.savez(path, np.zeros(2_000_000, np.uint8))
    raw = path.read_bytes()
    entry = raw.rindex(b"PK\1\2")  # of the list of contents
    path.write_bytes(raw[: entry + 24] + struct.pack("<I", 2**31 + more) + raw[entry + 28 :])
    with pytest.raises(EventFormatError) as caught:
        Recording(path).load(SIZE)
    assert ("claims to hold 2147483649 bytes, more than 2147483648" in str(caught.value)) == bool(more)


MATLAB = b"MATLAB" + bytes(118) + b"\0\1IM"


def element(kind, content):
    return struct.pack("<II", kind, len(content)) + content + bytes(-len(content) % 8)


def mat(dims=struct.pack("<2i", 1, 4), kind=2, numbers=bytes([3, 5, 7, 1]), name=b"out1"):
    """A MATLAB file of a matrix: one event at 3 us unless told otherwise."""
    matrix = element(6, bytes(8)) + element(5, dims) + element(1, name) + element(kind, numbers)
    return MATLAB + element(14, matrix)


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "f4", "f8", "i8", "u8"])
@pytest.mark.parametrize("compressed", [False, True])
def test_matlab_tables_may_be_of_any_numbers_packed_and_of_four_columns(tmp_path, dtype, compressed):
    path, one, two = tmp_path / "a.mat", [3, 5, 7, 1], [4, 6, 8, 0]
    others = {"a": np.uint8(9), "b": np.zeros((0, 3)), "long_name": np.ones((2, 5))}
    for events in ([one], [one, two]):
        savemat(path, {**others, "out1": np.array(events, dtype)}, do_compression=compressed)
        found = Recording(path).load(SIZE).events.tolist()
        assert [list(map(int, event)) for event in found] == [[x, y, t, p] for t, x, y, p in events]
    other = mat(name=b"out2")[128:]
    packed = zlib.compress(other)
    assert len(packed) % 8  # compressed elements are not padded, so what follows need not begin at a multiple of 8
    for before in (b"", struct.pack("<II", 15, len(packed)) + packed + other):
        path.write_bytes(MATLAB + before + mat()[128:])
        assert Recording(path).load(SIZE).events.tolist() == [(5, 7, 3, True)]


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (MATLAB[:126] + b"MI" + mat()[128:], "byte 0: expected a little-endian MATLAB 5 file, got b'MATLAB'$"),
        (b"matlab" + mat()[6:], "byte 0: expected a little-endian MATLAB 5 file, got b'matlab'$"),
        (MATLAB[:126] + b"IL" + mat()[128:], "byte 0: expected a little-endian MATLAB 5 file"),
        (MATLAB[:126] + b"IO" + mat()[128:], "byte 0: expected a little-endian MATLAB 5 file"),
        (mat(name=b"out2"), f"byte {len(mat())}: expected the variable out1"),
        (mat()[:135], "byte 128: expected a data element, got the end"),
        (mat()[:-3], f"byte 128: expected {len(mat()) - 136} bytes, got {len(mat()) - 139}: truncated"),
        (MATLAB + element(15, zlib.compress(mat()[128:])[:-3]), "byte 128: expected the end of the compressed data"),
        (MATLAB + element(15, b"garbage!"), "byte 128: expected compressed data"),
        (mat(kind=10), r"byte 0: expected out1 .*got \(1, 4\), 4 bytes"),
        (mat(numbers=bytes(5)), r"byte 0: expected out1 .*got \(1, 4\), 5 bytes"),
        *((mat(struct.pack("<2i", 1, n), numbers=bytes(n)), "byte 0: expected out1") for n in (3, 5, 7)),
        *((mat(struct.pack(f"<{len(dims)}i", *dims)), "byte 0: expected out1") for dims in ((4,), (1, 4, 1), (-1, 4))),
        (mat(bytes([1, 0, 0, 0, 4, 0])), "byte 0: expected out1"),
        (mat(struct.pack("<2i", 0, 4), numbers=b""), "byte 0: expected events, got none"),
    ],
)
def test_damaged_matlab_files_are_refused_with_their_place(tmp_path, raw, problem):
    (tmp_path / "a.mat").write_bytes(raw)
    with pytest.raises(EventFormatError, match=f"a.mat, {problem}"):
        Recording(tmp_path / "a.mat").load(SIZE)


def test_an_invalid_event_is_left_out_whatever_its_time(tmp_path):
    raw = aedat3().replace(struct.pack("<Ii", 3 << 17, 0), struct.pack("<Ii", 3 << 17, -1))
    (tmp_path / "x.aedat").write_bytes(raw)
    assert len(Recording(tmp_path / "x.aedat").load(SIZE).events) == len(EVENTS)


def test_errors_survive_the_way_from_a_worker_process():
    error = pickle.loads(pickle.dumps(EventFormatError("f.bin", 7, "expected events")))
    assert str(error) == "f.bin, byte 7: expected events"


@pytest.mark.parametrize("kind", KINDS)
def test_truncated_empty_and_foreign_files_are_refused_by_name(tmp_path, kind):
    path = written(tmp_path, kind)
    raw = path.read_bytes()
    cut = [] if kind in TEXTS else [raw[:-1], raw[: len(raw) // 3]]
    for damaged in (b"", *cut, b"MZ" + bytes(50)):
        path.write_bytes(damaged)
        with pytest.raises(EventFormatError, match=path.name):
            Recording(path).load(SIZE)


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("<h", (0, 77), "an event type from 0 to 13"),
        ("<h", (0, 14), "an event type from 0 to 13"),
        ("<i", (4, 0), "that agree"),
        ("<i", (4, -8), "that agree"),
        ("<i", (4, 16), "events of 8 bytes"),
        ("<i", (4, 4), "events of 8 bytes"),
        ("<i", (8, 0), "the time at 4"),
        ("<i", (12, -1), "an overflow counter"),
        ("<i", (20, 2**31 - 1), "the whole packet"),
        ("<i", (24, 9), "that agree"),
        ("<i", (24, -1), "that agree"),
    ],
)
def test_garbled_packet_headers_are_refused_with_their_place(tmp_path, field, value, problem):
    raw, (offset, number) = bytearray(aedat3(EVENTS[:2])), value
    start = raw.index(b"END-HEADER\r\n") + 12
    struct.pack_into(field, raw, start + offset, number)
    (tmp_path / "x.aedat").write_bytes(raw)
    with pytest.raises(EventFormatError, match=f"byte {start}: .*{problem}"):
        Recording(tmp_path / "x.aedat").load(SIZE)


def test_packets_of_every_other_type_and_without_events_are_passed_over(tmp_path):
    others = [struct.pack("<hhiiiiii", kind, 1, 12, 4, 0, 1, 1, 1) + bytes(12) for kind in (0, 2, 13)]
    none = struct.pack("<hhiiiiii", 1, 1, 8, 4, 0, 0, 0, 0)
    (tmp_path / "x.aedat").write_bytes(aedat3() + b"".join(others) + none)
    assert len(Recording(tmp_path / "x.aedat").load(SIZE).events) == len(EVENTS)
    header = b"#!AER-DAT3.1\r\n#!END-HEADER\r\n"
    (tmp_path / "x.aedat").write_bytes(header + others[0] + none)
    with pytest.raises(EventFormatError, match="byte 0: expected events, got 1 special$"):
        Recording(tmp_path / "x.aedat").load(SIZE)


@pytest.mark.parametrize(
    ("name", "raw", "problem"),
    [
        ("a.xyz", b"?", r"byte 0: expected AEDAT \(\.aedat, \.aedat4\), .*ATIS \(\.bin\); got b'\?'$"),
        ("a.aedat", b"", "byte 0: expected events, got an empty file"),
        ("a.bin", b"\xef\xbb\xbf", "byte 3: expected events, got an empty file"),
        ("a.bin", nmnist()[:-1], f"byte {len(nmnist()) - 1}: expected events of 5 bytes"),
        ("a.aedat", aedat2()[:-1], f"byte {len(aedat2()) - 1}: expected events of 8 bytes"),
        ("a.aedat", b"#!AER-DAT2.0\r\n# no end", "byte 14: expected the end of a header line"),
        ("a.aedat", b"#!AER-DAT1.0\r\n", r"byte 0: .*, got 1.0: b'#!AER-DAT1.0\\r\\n'$"),
        ("a.aedat", b"#!AER-DAT3.1\r\n# no end", "byte 22: expected a line #!END-HEADER"),
        ("a.aedat", aedat3() + bytes(10), f"byte {len(aedat3())}: expected a packet header of 28 bytes, got 10"),
    ],
)
def test_files_that_end_or_begin_otherwise_are_refused_with_their_place(tmp_path, name, raw, problem):
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(EventFormatError, match=f"{name}, {problem}"):
        Recording(tmp_path / name).load(SIZE)


def test_events_outside_or_out_of_order_are_refused_or_dropped_and_counted():
    events = np.array([(1, 1, 5, 1), (40, 1, 6, 1), (1, 1, 9, 0), (1, 1, 7, 0), (1, 1, 8, 0), (1, 1, 9, 0)], EVENT)
    reading = Reading("f.bin", events, lambda index: 5 * index)
    with pytest.raises(EventFormatError, match="f.bin, byte 5: event 1"):
        check_events(reading, (34, 34))
    with pytest.raises(EventFormatError, match="f.bin, byte 15: event 3.*at least 9"):
        check_events(reading, (41, 34))
    kept, dropped, _ = check_events(reading, (34, 34), lenient=True)
    assert kept["t"].tolist() == [5, 7, 8, 9] and dropped == {"outside": 1, "decreasing": 1}


@pytest.mark.parametrize("late", [0, 1, 500, 998, 999])
@pytest.mark.parametrize("time", [0, 10**9])
def test_one_wrong_time_costs_one_event(late, time):
    events = np.zeros(1000, EVENT)
    events["t"] = 1000 + 10 * np.arange(1000)
    events["t"][late] = time
    kept, dropped, _ = check_events(Reading("f.bin", events), (1, 1), lenient=True)
    is_in_order = (late, time) in ((0, 0), (999, 10**9))
    assert dropped["decreasing"] == len(events) - len(kept) == 1 - is_in_order


def test_a_recording_that_loses_more_than_half_is_an_error():
    events = np.zeros(1000, EVENT)
    events["x"][:501] = 1
    events["t"][499:] = np.arange(501)
    with pytest.raises(EventFormatError, match="at most 50% of 1,000 events to be dropped, got 501 outside$"):
        check_events(Reading("f.bin", events), (1, 1), lenient=True)
    events["x"][0] = 0
    assert len(check_events(Reading("f.bin", events), (1, 1), lenient=True).events) == 500


def test_the_pixels_of_a_sensor_are_counted_from_zero():
    events = np.array([(39, 29, 1, 1), (40, 29, 2, 1), (39, 30, 3, 1), (40, 30, 4, 1), *3 * [(0, 0, 5, 1)]], EVENT)
    kept, dropped, _ = check_events(Reading("f.bin", events), (40, 30), lenient=True)
    assert kept["t"].tolist() == [1, 5, 5, 5] and dropped["outside"] == 3
    with pytest.raises(EventFormatError, match="f.bin, byte 0: event 1: expected a pixel of 40x30"):
        check_events(Reading("f.bin", events), (40, 30))  # of a format that does not tell where its events are


@pytest.mark.parametrize(
    "wrong",
    [
        dict(x=-1),
        dict(x=65536),
        dict(x=70000),
        dict(y=65536),
        dict(t=2**62),
        dict(y=0.5),
        dict(p=2),
        dict(p=-2),
        dict(t=-1),
        dict(x=np.nan),
    ],
)
def test_numbers_that_a_conversion_would_change_are_refused(tmp_path, wrong):
    ((name, value),) = wrong.items()
    arrays = columns(float)
    arrays[name][1] = value
    np.savez(tmp_path / "w.npz", **arrays)
    highest = {"x": 2**16, "y": 2**16, "t": 2**53, "p": 2}[name] - 1
    with pytest.raises(
        EventFormatError, match=f"byte 0: event 1: expected a whole {name} from 0 to {highest}( in .*)?, got"
    ):
        Recording(tmp_path / "w.npz").load(SIZE)


EDITS = st.lists(
    st.tuples(st.floats(0, 1), st.integers(0, 5), st.binary(max_size=5)), min_size=1, max_size=4
)  # where, how many bytes are taken, what is put there


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:invalid escape sequence")  # numpy reads headers of arrays as Python text
@pytest.mark.parametrize("kind", KINDS)
def test_random_damage_gives_an_error_or_events_and_never_much_memory(tmp_path, kind):
    path = written(tmp_path, kind)
    raw = path.read_bytes()

    @settings(max_examples=120, derandomize=True, deadline=None, database=None)
    @given(edits=EDITS, lenient=st.booleans())
    def check(edits, lenient):
        damaged = bytearray(raw)
        for where, taken, put in edits:
            at = int(where * len(damaged))
            damaged[at : at + taken] = put
        path.write_bytes(damaged)
        tracemalloc.start()
        try:
            events = Recording(path).load(SIZE, lenient).events
        except EventFormatError:
            return
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak < 20e6
        most = 6 if kind == "evt3" else 1  # events of a byte
        assert events.dtype == EVENT and 0 < len(events) <= most * len(damaged)
        assert (events["x"] < 128).all() and (events["y"] < 128).all() and (np.diff(events["t"]) >= 0).all()

    check()


@pytest.mark.parametrize("per_packet", [1, 3, 500])
def test_packets_of_any_size_with_any_overflow_make_one_recording(tmp_path, per_packet):
    random = np.random.default_rng(0)
    times = np.sort(random.integers(3 << 31, size=500))
    wanted = [
        (int(x), int(y), int(t), int(p)) for (x, y), t, p in zip(random.integers(128, size=(500, 2)), times, times % 2)
    ]
    file = b"#!AER-DAT3.1\r\n#!END-HEADER\r\n"
    at = 0
    while at < len(wanted):
        high = wanted[at][2] >> 31
        part = [event for event in wanted[at : at + per_packet] if event[2] >> 31 == high]
        body = b"".join(struct.pack("<II", 1 | p << 1 | y << 2 | x << 17, t & 0x7FFFFFFF) for x, y, t, p in part)
        file += struct.pack("<hhiiiiii", 1, 1, 8, 4, high, len(part), len(part), len(part)) + body
        at += len(part)
    (tmp_path / "a.aedat").write_bytes(file)
    events = Recording(tmp_path / "a.aedat").load(SIZE).events
    assert [tuple(map(int, event)) for event in events.tolist()] == wanted


def test_a_wrong_packet_is_named_by_its_first_byte_and_a_wrong_time_by_its_own(tmp_path):
    raw, header = aedat3(), len(b"#!AER-DAT3.1\r\n#Format: RAW\r\n#Source 1: DVS128\r\n#!END-HEADER\r\n")
    third = header + 2 * 28 + 3 * 8 + 12  # after a packet of three events and one of 12 bytes
    wrong = {
        third: ("<h", -1, "an event type"),
        third + 4: ("<i", 64, "truncated"),
        third + 8: ("<i", 0, "the time at 4"),
        third + 12: ("<i", -1, "overflow"),
        third + 24: ("<i", 9, "agree"),
    }
    for at, (kind, value, message) in wrong.items():
        path = tmp_path / "x.aedat"
        path.write_bytes(raw[:at] + struct.pack(kind, value) + raw[at + struct.calcsize(kind) :])
        with pytest.raises(EventFormatError, match=f"byte {third}: .*{message}"):
            Recording(path).load(SIZE)
    time = third + 28 + 8 + 4  # of the third packet's second event
    path.write_bytes(raw[:time] + struct.pack("<i", -5) + raw[time + 4 :])
    with pytest.raises(EventFormatError, match=f"byte {time}: .*31 bits"):
        Recording(path).load(SIZE)


def test_other_versions_of_a_format_are_refused_and_suffixes_may_be_capital(tmp_path):
    for version in (b"3.10", b"3.0", b"2.01", b"4.1"):
        (tmp_path / "a.aedat").write_bytes(aedat3().replace(b"3.1", version, 1))
        with pytest.raises(EventFormatError, match="#!AER-DAT"):
            Recording(tmp_path / "a.aedat").load(SIZE)
    for version in ("3", "2"):
        (tmp_path / "B.AEDAT").write_bytes({"3": aedat3, "2": aedat2}[version]())
        assert len(Recording(tmp_path / "B.AEDAT").load(SIZE).events) == len(EVENTS)


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_archives_packed_as_numpy_never_does_are_refused(tmp_path, compression):
    with zipfile.ZipFile(tmp_path / "a.npz", "w", compression) as archive:
        for name in "txyp":
            archive.writestr(f"{name}.npy", b"")
    with pytest.raises(EventFormatError, match="stored or deflated"):
        Recording(tmp_path / "a.npz").load(SIZE)


@pytest.mark.parametrize("kind", ["aedat3", "aedat2", "nmnist"])
def test_a_wrong_event_is_named_by_its_first_byte(tmp_path, kind):
    """The third event is later than the fourth; in two formats others that are left out come before it."""
    events = [*EVENTS[:3], (1, 1, 11, 1), *EVENTS[3:]]
    path = tmp_path / ("a.bin" if kind == "nmnist" else "a.aedat")
    raw = {"aedat3": aedat3, "aedat2": aedat2, "nmnist": nmnist}[kind](events)
    path.write_bytes(raw)
    wrong = {
        "aedat3": struct.pack("<II", 1 | 1 << 1 | 1 << 2 | 1 << 17, 11),
        "aedat2": struct.pack(">II", 126 << 1 | 126 << 8, 11),
        "nmnist": bytes([1, 1, 128, 0, 11]),
    }[kind]
    with pytest.raises(EventFormatError, match=f"byte {raw.index(wrong)}: event 3: expected a time of at least 12"):
        Recording(path).load(SIZE)


def test_wide_addresses_of_aedat2_are_named_by_their_own_byte(tmp_path):
    raw, path = aedat2(), tmp_path / "a.aedat"
    third = len(raw) - 3 * 8  # of the four events, before an external one
    path.write_bytes(raw[:third] + struct.pack(">I4xI", 1 << 16, 1 << 17) + raw[third + 12 :])
    with pytest.raises(EventFormatError, match=f"byte {third}: expected an address of 16 bits, .*got 0x10000$"):
        Recording(path).load(SIZE)
    path.write_bytes(aedat2([(5, 7, 0, 1)]))
    assert Recording(path).load(SIZE).events["t"].tolist() == [0]


def test_times_of_nmnist_have_23_bits_beside_the_polarity(tmp_path):
    wanted = [(1, 2, 2**22 + 3, 0), (3, 4, 2**23 - 1, 0), (5, 6, 2**23 - 1, 1)]
    (tmp_path / "a.bin").write_bytes(nmnist(wanted))
    assert [tuple(map(int, event)) for event in Recording(tmp_path / "a.bin").load(SIZE).events.tolist()] == wanted


def test_markers_of_nmnist_put_all_later_times_back(tmp_path):
    (tmp_path / "a.bin").write_bytes(nmnist([(1, 2, 5, 1), (0, 240, 0, 0), (3, 4, 7, 0), (9, 240, 0, 0), (5, 6, 8, 1)]))
    events, dropped, _ = Recording(tmp_path / "a.bin").load(SIZE)
    assert events.tolist() == [(1, 2, 5, True), (3, 4, 7 + 2**13, False), (5, 6, 8 + 2**14, True)]
    assert not any(dropped.values())
    (tmp_path / "a.bin").write_bytes(nmnist([(1, 2, 5, 1), (0, 240, 0, 0), (3, 241, 7, 0)]))  # no marker: outside
    assert Recording(tmp_path / "a.bin").load(SIZE, lenient=True).dropped["outside"] == 1
    with pytest.raises(EventFormatError, match="byte 10: event 1: expected a pixel"):
        Recording(tmp_path / "a.bin").load(SIZE)


@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_off_may_be_minus_one_and_an_archive_may_hold_one_table(tmp_path, kind):
    table = np.zeros(3, [("x", "<i2"), ("y", "<i2"), ("t", "<i8"), ("p", "i1")])
    table["p"], table["t"] = [-1, 1, -1], [4, 5, 6]
    path = tmp_path / f"a.{kind}"
    (np.save if kind == "npy" else np.savez_compressed)(path, table)
    events = Recording(path).load(SIZE).events
    assert events["p"].tolist() == [False, True, False] and events["t"].tolist() == [4, 5, 6]


def test_seconds_do_not_become_microseconds(tmp_path):
    np.savez(tmp_path / "a.npz", **{**columns(), "t": np.array([0.1, 0.2, 0.3, 0.9])})
    with pytest.raises(EventFormatError, match="whole t"):
        Recording(tmp_path / "a.npz").load(SIZE)


def test_an_archive_that_promises_different_lengths_is_not_unpacked(tmp_path):
    big = {name: np.zeros(3_000_000, np.int64) for name in "txy"}
    np.savez_compressed(tmp_path / "a.npz", **big, p=np.zeros(3))
    tracemalloc.start()
    with pytest.raises(EventFormatError, match="one length"):
        Recording(tmp_path / "a.npz").load(SIZE)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5e6


@pytest.mark.parametrize("suffix", ["bin", "aedat", "npy", "npz", "mat", "raw", "dat", "h5", "txt"])
def test_a_huge_file_is_refused_unread(tmp_path, suffix):
    with open(tmp_path / f"a.{suffix}", "wb") as file:
        file.truncate(2**33)  # takes no room on the disk
    with pytest.raises(UserError, match=f"a.{suffix} has more than 4294967296 bytes"):
        Recording(tmp_path / f"a.{suffix}").load(SIZE)


def test_labels_of_gestures(tmp_path):
    path, head, last = tmp_path / "user01_labels.csv", "class,startTime_usec,endTime_usec\n", 2**62 - 1
    path.write_text(f"{head}1,0,20\n\n11,30,{last}\n")
    assert read_gesture_labels(path) == [(0, 0, 20), (10, 30, last)]
    for row in ("12,10,20", "0,10,20", "1,-1,20", "1,20,20", f"1,20,{2**62}", f"1,20,{2**63}", "1,10", "one,10,20"):
        path.write_text(f"{head}1,0,20\n{row}\n")
        with pytest.raises(EventFormatError, match="user01_labels.csv, byte 0: line 3: expected"):
            read_gesture_labels(path)
    for content, expected in (
        (head.encode(), "labels, got none"),
        (b"\xff\xfe", "a table of labels"),
        (b"x" * 200_000, "a table of labels"),
        (b"", "the line class"),
    ):
        path.write_bytes(content)
        with pytest.raises(EventFormatError, match=f"user01_labels.csv, byte 0: expected {expected}"):
            read_gesture_labels(path)
    with open(path, "wb") as file:
        file.truncate(2**20 + 1)
    with pytest.raises(UserError, match="more than 1048576 bytes"):
        read_gesture_labels(path)


@pytest.mark.realdata
def test_real_recordings_of_nmnist():
    folder = Path(os.environ.get("NSNN_DATA", "/nowhere")) / "nmnist-small"
    if not folder.is_dir():
        pytest.skip("set NSNN_DATA to a folder that has nmnist-small")
    files = sorted(folder.glob("*/*/*.bin"))
    assert len(files) == 900
    for path in files:
        events = Recording(path).load((34, 34)).events
        assert len(events) > 500 and 200_000 < events["t"][-1] - events["t"][0] < 400_000

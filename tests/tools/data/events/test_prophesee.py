"""tools/data/events/prophesee.py, on files written word by word."""

import struct

import numpy as np
import pytest

from tests.tools.data.events.written import EVENTS
from tests.tools.data.events.written_prophesee import RAW_HEADER, dat, decoded_evt3, evt2, evt2_words, evt3, evt3_words
from tools.data.events.formats import check_events, format_of, read_recording
from tools.data.events.reading import EventFormatError


def read(tmp_path, raw, name="a.raw", **options):
    (tmp_path / name).write_bytes(raw)
    return read_recording(tmp_path / name, **options)


def found(reading):
    return [tuple(map(int, event)) for event in reading.events.tolist()]


def drawn(seed, count=500, most=12):
    """Events in short bursts, some of which fill neighbouring pixels of a row."""
    random, events, time = np.random.default_rng(seed), [], 0
    while len(events) < count:
        time += int(random.integers(0, 3000))
        x, y, polarity = int(random.integers(1200)), int(random.integers(720)), int(random.integers(2))
        columns = np.unique(random.integers(0, 60, size=random.integers(1, most)))
        events += [(x + int(column), y, time, polarity) for column in columns]
    return events


@pytest.mark.parametrize("write", [evt2, evt3])
def test_the_header_tells_camera_sensor_and_encoding(tmp_path, write):
    reading = read(tmp_path, write())
    assert found(reading) == EVENTS and reading.sensor == (128, 128)
    assert reading.format == f"Prophesee {write.__name__.upper()}"
    assert reading.camera == "Prophesee hal_plugin_imx636_evk4 4.2"
    assert reading.counts == {"external": 1, "other words": 1}


@pytest.mark.parametrize(
    ("lines", "sensor"),
    [
        (b"% evt 3.0\n", None),
        (b"% evt 3.0\r\n% geometry 1280x720\r\n", (1280, 720)),
        (b"% format EVT3;height=720;width=1280\n", (1280, 720)),
        (b"% evt 3.0\n% width 640\n% height 480\n", (640, 480)),
        (b"% evt 3.0\n% geometry -1x99999999\n", None),
        (b"% evt 3.0\n% geometry 0x720\n", None),
        (b"% evt 3.0\n% geometry 1280x\n% note 100 % caf\xc3\xa9\n", None),
        (b"% format EVT3;height=;width=7;;x\n", None),
    ],
)
def test_headers_as_they_are_found(tmp_path, lines, sensor):
    for end in (b"% end\n", b""):  # data begin where a line does not begin with %
        raw = lines + end + b"".join(struct.pack("<H", word) for word in evt3_words())
        reading = read(tmp_path, raw, "a.unknown")
        assert reading.sensor == sensor and found(reading) == EVENTS


def test_an_old_header_without_an_encoding_is_of_evt2(tmp_path):
    assert found(read(tmp_path, evt2(header=b""))) == EVENTS


@pytest.mark.parametrize(
    ("line", "name"),
    [
        (b"% format EVT21;endianness=legacy", "EVT21"),
        (b"% evt 2.1", "EVT2.1"),
        (b"% evt 4.0", "EVT4"),
        (b"% format HISTO3D", "HISTO3D"),
    ],
)
def test_other_encodings_are_named(tmp_path, line, name):
    with pytest.raises(EventFormatError, match=f"byte 0: expected a header that names EVT2 or EVT3, got {name}$"):
        read(tmp_path, evt3(header=line + b"\n"))


@pytest.mark.parametrize("vectors", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_many_events_of_evt3(tmp_path, vectors, seed):
    events = drawn(seed)
    words = evt3_words(events, vectors)
    assert decoded_evt3(words) == (events, 0)
    assert found(read(tmp_path, evt3(words=words))) == events


def random_words(seed):
    """Words in no sensible order, with a clock that runs on."""
    random = np.random.default_rng(seed)
    count = int(random.integers(1, 60))
    kinds = random.choice(16, count, p=[0.1, 0, 0.2, 0.1, 0.2, 0.1, 0.1, 0, 0.15, 0, 0.02, 0, 0, 0, 0.02, 0.01])
    high = (random.integers(4096) + np.cumsum(random.integers(0, 5, size=count))) % 4096
    content = np.where(kinds == 8, high, random.integers(4096, size=count))
    return (kinds << 12 | content).tolist()


def test_words_of_evt3_in_any_order_are_decoded_as_one_by_one(tmp_path):
    for seed in range(400):
        words = random_words(seed)
        events, early = decoded_evt3(words)
        try:
            reading = read(tmp_path, evt3(words=words))
        except EventFormatError as error:
            assert not events and "expected events, got" in str(error)
        else:
            assert found(reading) == events and reading.counts["without a time"] == early


def test_events_of_the_library_evt3_are_the_same():
    library = pytest.importorskip("evt3")
    events = drawn(7, 5000)
    words = b"".join(struct.pack("<H", word) for word in evt3_words(events))
    decoded = library.decode_bytes(words, 1280, 720)
    assert list(zip(*(getattr(decoded, name).tolist() for name in ("x", "y", "timestamp", "polarity")))) == events


@pytest.mark.parametrize(("write", "encoding"), [(evt2, "evt2"), (dat, "dat")])
def test_events_of_the_library_expelliarmus_are_the_same(tmp_path, write, encoding):
    library = pytest.importorskip("expelliarmus")  # whose times of EVT 3.0 are wrong
    path, events = tmp_path / f"a.{'dat' if write is dat else 'raw'}", drawn(3, 5000)
    path.write_bytes(write(events))
    decoded = library.Wizard(encoding=encoding).read(path)
    assert [tuple(map(int, event)) for event in decoded[["x", "y", "t", "p"]].tolist()] == events
    assert found(read_recording(path)) == events


@pytest.mark.parametrize(("write", "bits"), [(evt2, 34), (evt3, 24)])
def test_a_clock_that_wraps_goes_on(tmp_path, write, bits):
    times = [2**bits - 2000 + 700 * step for step in range(8)]
    if write is evt3:  # whose upper bits are told even when nothing happens
        times = list(range(2**bits - 2**20, 3 * 2**bits, 2**20))
    events = [(step % 100, 3, time, step % 2) for step, time in enumerate(times)]
    reading = read(tmp_path, write(events))
    assert found(reading) == events and reading.counts["clock wraps"] == (2 if write is evt3 else 1)


def test_the_same_upper_bits_again_leave_the_lower_ones(tmp_path):
    words = [0x8001, 0x6005, 7, 0x2001, 0x8001, 0x2002, 0x8002, 0x2003, 0x6009, 0x2004]
    reading = read(tmp_path, evt3(words=words))
    assert reading.events["t"].tolist() == [0x1005, 0x1005, 0x2000, 0x2009]


@pytest.mark.parametrize("write", [evt2, evt3])
def test_events_before_the_first_time_are_left_out_and_counted(tmp_path, write):
    words = {evt2: evt2_words(), evt3: [7, *evt3_words()]}[write]
    event = {evt2: 1 << 28, evt3: 0x2005}[write]
    reading = read(tmp_path, write(words=[words[0], event, event, *words[1:]]))
    assert found(reading) == EVENTS and reading.counts["without a time"] == 2
    only = {evt2: [event], evt3: [7, event]}[write]
    with pytest.raises(EventFormatError, match="byte 0: expected events, got 1 without a time$"):
        read(tmp_path, write(words=only))


def test_a_vector_that_leaves_the_sensor_does_not_come_in_again(tmp_path):
    words = [0x8000, 0x6001, 7, 0x37FF, *[0x4FFF] * 6000, 0x2003]
    reading = read(tmp_path, evt3(words=words))
    assert len(reading.events) == 72_001 and (reading.events["x"][1:-1] > 2047).all()
    checked = check_events(read(tmp_path, evt3(words=[0x8000, 0x6001, 7, 0x307F, 0x4003, 0x2003])), (128, 128), True)
    assert checked.events["x"].tolist() == [127, 3] and checked.dropped["outside"] == 1


@pytest.mark.parametrize("write", [evt2, evt3, dat])
def test_a_wrong_event_is_named_by_its_first_byte(tmp_path, write):
    events = [*EVENTS[:2], (127, 9, 12, 1), (128, 9, 12, 1), (3, 9, 12, 1)]
    raw = write(events)
    reading = read(tmp_path, raw, "a.dat")
    with pytest.raises(EventFormatError, match=r"event 3: expected a pixel of 128x128, got \(128, 9") as caught:
        check_events(reading, (128, 128))
    vector = {evt2: struct.pack("<I", 1 << 28 | 12 << 22 | 128 << 11 | 9), evt3: struct.pack("<H", 0x4003)}
    word = vector.get(write, struct.pack("<II", 12, 128 | 9 << 14 | 1 << 28))
    assert f"byte {raw.index(word)}:" in str(caught.value)


@pytest.mark.parametrize("write", [evt2, evt3, dat])
def test_a_truncated_end_costs_its_event_only(tmp_path, write):
    with pytest.raises(EventFormatError, match="truncated"):
        read(tmp_path, write()[:-1])
    reading = read(tmp_path, write()[:-1], lenient=True)
    assert found(reading) == EVENTS[:-1] and reading.counts["truncated"] == 1


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("kind", [0, 12])
def test_dat_of_both_versions(tmp_path, version, kind):
    reading = read(tmp_path, dat(version=version, kind=kind), "a.unknown")
    assert found(reading) == EVENTS and reading.sensor == (128, 128) and reading.format == "Prophesee DAT"
    other = dat(kind=kind).replace(b"Data file containing CD events.", b"a comment").replace(b"Version", b"version")
    assert found(read(tmp_path, other)) == EVENTS


def test_times_of_dat_wrap(tmp_path):
    events = [(1, 2, time, 1) for time in (2**32 - 9, 2**32 - 1, 2**32 + 3, 2**32 + 4)]
    reading = read(tmp_path, dat(events), "a.dat")
    assert found(reading) == events and reading.counts == {"clock wraps": 1}


@pytest.mark.parametrize(("head", "got"), [(b"\x0e\x08", "0e 08"), (b"\0\x10", "00 10"), (b"", "the end of the file")])
def test_dat_of_other_events_is_refused(tmp_path, head, got):
    raw = dat([]).removesuffix(b"\x0c\x08") + head + bytes(16 * bool(head))
    at = len(dat([])) - 2
    with pytest.raises(
        EventFormatError, match=f"byte {at}: expected events of type 0 or 12 and of 8 bytes, got {got}$"
    ):
        read(tmp_path, raw, "a.dat")


def test_other_events_and_files_without_a_header_are_refused(tmp_path):
    for kind in (b"EM", b"APS"):
        with pytest.raises(
            EventFormatError, match=f"expected CD events, got a header that names {kind.decode()} events"
        ):
            read(tmp_path, dat().replace(b"CD", kind), "a.dat")
    for suffix, line in (("dat", "Version 2"), ("raw", "evt 3.0")):
        with pytest.raises(EventFormatError, match=f"byte 0: expected a header of lines such as % {line}, got b'MZ"):
            read(tmp_path, b"MZ" + bytes(50), f"a.{suffix}")


def test_a_header_may_not_be_endless(tmp_path):
    with pytest.raises(EventFormatError):
        read(tmp_path, RAW_HEADER + b"%\n" * 10**6)
    assert format_of("f", b"% evt 2.0\n").name == "Prophesee RAW"


@pytest.mark.parametrize(("write", "bits", "name"), [(evt2, 34, "a.raw"), (evt3, 24, "a.raw"), (dat, 32, "a.dat")])
def test_a_clock_that_is_set_to_zero_goes_on_also_after_it_has_wrapped(tmp_path, write, bits, name):
    whole = 2**bits
    for start, wraps in ((whole // 4, 0), (whole // 2, 1)):
        before, after = start + whole // 256 * np.arange(150), 9 * np.arange(40)
        events = [(1, 2, int(time) % whole, 1) for time in (*before, *after)]
        reading = read(tmp_path, write(events), name)
        assert reading.events["t"].tolist() == [*before, *(before[-1] + after)]
        assert {what: reading.counts[what] for what in ("clock wraps", "clock resets")} == {
            "clock wraps": wraps,
            "clock resets": 1,
        }


@pytest.mark.parametrize("version", [1, 2])
def test_a_dat_file_that_names_no_version_is_read_by_its_words(tmp_path, version):
    raw = dat(version=version).replace(b"% Version " + str(version).encode() + b"\n", b"")
    assert found(read(tmp_path, raw, "a.dat")) == EVENTS

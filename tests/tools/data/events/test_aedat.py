"""AEDAT of every version: cameras, words that are not events, packets, streams, damage; on files written here."""

import functools
import re
import struct
import sys

import numpy as np
import pytest

from tests.tools.data.events.written import EVENTS, aedat3
from tests.tools.data.events.written_aedat import (
    DAVIS240C,
    DAVIS346,
    DAVIS_OTHERS,
    aedat4,
    buffer4,
    davis,
    davis_word,
    dvs128_word,
    header2,
    header3,
    header4,
    packet3,
    packet4,
    stream4,
    words2,
)
from tools.data.events import aedat4 as reader4
from tools.data.events.aedat4 import read_aedat4
from tools.data.events.formats import check_events, read_recording
from tools.data.events.reading import EventFormatError, Source
from tools.errors import UserError


@pytest.fixture
def read(tmp_path):
    def read(raw, lenient=False):
        path = tmp_path / "a.aedat"
        path.write_bytes(raw)
        return read_recording(path, lenient)

    return read


@pytest.fixture
def refused(read):
    """Asserts that a file is refused, at this byte, with this text in the message; strictly, and leniently too."""

    def refused(raw, byte, problem, lenient=(False, True)):
        for one in lenient:
            with pytest.raises(EventFormatError, match=f"a.aedat, byte {byte}: .*{problem}"):
                read(raw, one)

    return refused


def plain(events):
    return [tuple(map(int, event)) for event in events.tolist()]


# AEDAT 2.0


@pytest.mark.parametrize(
    ("camera", "size"),
    [
        (DAVIS240C, (240, 180)),
        ("eu.seebetter.ini.chips.DAViS.DAVIS240A", (240, 180)),
        ("eu.seebetter.ini.chips.davis.DAViS240", (240, 180)),
        ("DAVIS240C", (240, 180)),
        ("Davis240b", (240, 180)),
        (DAVIS346, (346, 260)),
        ("eu.seebetter.ini.chips.davis.DAVIS346blue", (346, 260)),
        ("Davis346B", (346, 260)),
        ("eu.seebetter.ini.chips.davis.Davis346redColor", (346, 260)),
        ("eu.seebetter.ini.chips.davis.Davis346cBSI", (346, 260)),
        ("eu.seebetter.ini.chips.davis.Davis128", (128, 128)),
        ("eu.seebetter.ini.chips.davis.Davis208PixelParade", (208, 192)),
        ("eu.seebetter.ini.chips.davis.Davis640", (640, 480)),
    ],
)
def test_a_davis_is_read_by_its_own_addresses(read, camera, size):
    corners = [(0, 0, 20, 1), (size[0] - 1, 0, 21, 0), (0, size[1] - 1, 22, 0), (size[0] - 1, size[1] - 1, 23, 1)]
    reading = read(davis(EVENTS[:2] + corners, camera, size))
    assert plain(reading.events) == EVENTS[:2] + corners
    assert reading.sensor == size and reading.camera == camera and reading.format == "AEDAT 2.0"
    assert reading.counts == {"external": 2, "APS": 2, "IMU": 7}
    raw = davis(EVENTS[:2] + corners, camera, size)
    for index, event in enumerate(EVENTS[:2] + corners):
        assert reading.byte_of(index) == raw.index(words2(davis_word(*event, size)))
    assert len(check_events(reading, size).events) == 6


def test_pixels_beside_a_davis_are_outside(read):
    inner = davis_word(0, 0, 1, 1, (346, 260))
    reading = read(header2(DAVIS346) + words2(inner, (346 << 12, 2), (260 << 22, 3), inner, inner))
    assert check_events(reading, (346, 260), lenient=True).dropped["outside"] == 2
    with pytest.raises(EventFormatError, match="event 1: expected a pixel of 346x260"):
        check_events(reading, (346, 260))


@pytest.mark.parametrize(
    "camera", ["ch.unizh.ini.jaer.chip.retina.DVS128", "ch.unizh.ini.jaer.chip.retina.Tmpdiff128", "Dvs128", None]
)
def test_a_dvs128_may_be_named_or_not(read, camera):
    reading = read(header2(camera) + words2(*(dvs128_word(*event) for event in EVENTS)))
    assert plain(reading.events) == EVENTS
    assert reading.sensor == (128, 128) and reading.camera == (camera or "") and not reading.counts


@pytest.mark.parametrize(
    "camera",
    [
        "ch.unizh.ini.jaer.chip.cochlea.CochleaAMS1c",
        "ch.unizh.ini.jaer.chip.retina.DVS128andCochleaAMS1b",
        "eu.seebetter.ini.chips.davis.DavisRGBW640",
        "eu.seebetter.ini.chips.davis.Davis346Zynq",
        "eu.seebetter.ini.chips.davis.CDAVIS",
        "com.sec.dvs.SecDvs640Gen2",
        "DAVIS777",
    ],
)
def test_another_camera_is_refused_by_name(refused, camera):
    raw = header2(camera) + words2(*(dvs128_word(*event) for event in EVENTS))
    refused(raw, raw.index(b"AEChip"), f"expected the camera DVS128 or DAVIS, got {re.escape(camera)}$")


def test_addresses_of_a_davis_that_is_not_named_say_so(refused):
    raw = header2() + words2(davis_word(5, 7, 10, 1))
    refused(raw, len(header2()), "an address of 16 bits, as no line # AEChip: names a DAVIS, got 0x2b0ea800$")
    named = header2("DVS128") + words2(davis_word(5, 7, 10, 1))
    refused(named, len(header2("DVS128")), "an address of 16 bits, got 0x2b0ea800$")


@pytest.mark.parametrize("bits", [1 << 15, 1 << 31, 1 << 31 | 1 << 15, 1 << 31 | 0x12345, 0xFFFFFFFF])
def test_special_words_of_a_dvs128_are_counted(read, refused, bits):
    raw = header2() + words2(dvs128_word(*EVENTS[0]), (bits, 11), dvs128_word(*EVENTS[1]), (bits, 0))
    reading = read(raw)
    assert plain(reading.events) == EVENTS[:2] and reading.counts == {"special": 2}
    assert reading.byte_of(1) == len(header2()) + 16
    refused(header2() + words2((bits, 11)), 0, "expected events, got 1 special$")


def test_an_address_that_no_dvs128_has_costs_its_event(read, refused):
    raw = header2() + words2(dvs128_word(5, 7, 1, 1), (1 << 20, 2), dvs128_word(5, 7, 3, 1))
    refused(raw, len(header2()) + 8, "an address of 16 bits", [False])
    reading = read(raw, lenient=True)
    assert plain(reading.events) == [(5, 7, 1, 1), (5, 7, 3, 1)] and reading.counts == {"impossible": 1}


def test_other_words_do_not_hide_that_most_events_are_impossible(read, refused):
    """As of a DAVIS that the header does not name: most words are of its frames."""
    words = [(1 << 31 | 5, 1)] * 9 + [dvs128_word(5, 7, 2, 1)]
    for wrong in (1 << 20, 1 << 20 | 1 << 15):
        raw = header2() + words2(*words, (wrong, 3))
        assert read(raw, lenient=True).counts == {"special": 9, "impossible": 1}
        refused(raw + words2((wrong, 4)), len(header2()) + 80, "an address of 16 bits, as no line # AEChip: names")
    raw = [header3() + packet3([*EVENTS, *[(9, 9, -5, 1)] * count], invalid=9) for count in (4, 5)]
    assert read(raw[0], lenient=True).counts == {"invalid": 9, "impossible": 4}
    refused(raw[1], len(header3()) + 28 + 8 * 4 + 4, "31 bits")


@pytest.mark.parametrize("camera", [None, DAVIS240C])
def test_no_part_of_a_header_is_taken_for_events(refused, camera):
    for cut in range(len(header2(camera))):
        refused(header2(camera)[:cut], "[0-9]+", "")


def test_a_davis_without_events_says_what_it_has(refused):
    refused(header2(DAVIS346) + words2(*DAVIS_OTHERS), 0, "expected events, got 2 external, 7 IMU, 2 APS$")


# An event whose first byte is "#": y = 140 to 143, from below, of a DAVIS.
SHARP = [(x, 180 - 1 - y, 2**24 + x, p) for x, y, p in ((5, 140, 0), (239, 143, 1), (79, 140, 1), (31, 141, 1))]


@pytest.mark.parametrize("end", ["#End Of ASCII Header\r\n", "# End of ASCII Header\r\n", "", "# \r\n", "#\r\n"])
@pytest.mark.parametrize("first", range(4))
def test_an_event_that_begins_like_a_header_line_is_an_event(read, end, first):
    events = SHARP[first:] + SHARP[:first]
    words = words2(*(davis_word(*event) for event in events))
    assert set(words[::8]) == {ord("#")}
    assert plain(read(header2(DAVIS240C, end) + words).events) == events


@pytest.mark.parametrize("address", [b"#\n\x18\0", b"#\r\x0a\0", b"#1\x0a\0"])
@pytest.mark.parametrize("end", ["#End Of ASCII Header\r\n", ""])
def test_an_event_that_holds_the_end_of_a_line_is_an_event(read, end, address):
    word, number = address + struct.pack(">I", 0x20202020), int.from_bytes(address, "big")
    reading = read(header2(DAVIS240C, end) + word + word)
    assert len(reading.events) == 2 and reading.byte_of(0) == len(header2(DAVIS240C, end))
    assert reading.events["y"][0] == 179 - (number >> 22 & 511)
    assert reading.events["x"][0] == (239 - (number >> 12 & 1023)) % 2**16  # where it is outside, too


def test_headers_may_have_letters_and_serial_numbers_of_any_kind(read):
    for line in (
        "# User name: Jörg\r\n".encode(),
        "# User name: Jörg\r\n".encode("latin-1"),
        b"#\t<entry/>\n",
        b"#\r\n",
    ):
        raw = header2(end="") + line + b"# Timestamps\r\n" + words2(dvs128_word(*EVENTS[0]))
        assert plain(read(raw).events) == EVENTS[:1]
    raw = header2(end="") + b"# Interface: \0\1\2\n" + header2(DAVIS240C)[14:] + words2(davis_word(*EVENTS[0]))
    assert plain(read(raw).events) == EVENTS[:1]


@pytest.mark.parametrize(
    ("first", "times", "counts"),
    [
        ([0xFFFFFFFB, 0xFFFFFFFC], [0xFFFFFFFB, 0xFFFFFFFC], {}),
        ([2**31 - 1, -(2**31), 5 - 2**31], [2**31 - 1, 2**31, 2**31 + 5], {}),
        ([-3, -1, 0, 7], [2**32 - 3, 2**32 - 1, 2**32, 2**32 + 7], {"clock wraps": 1}),
        ([10**6, 10**6 + 5, 0, 3, 9], [10**6, 10**6 + 5, 10**6 + 5, 10**6 + 8, 10**6 + 14], {"clock resets": 1}),
    ],
)
@pytest.mark.parametrize("camera", [None, DAVIS240C])
def test_times_go_on_where_the_clock_wraps_or_is_set_to_zero(read, camera, first, times, counts):
    word = functools.partial(davis_word if camera else dvs128_word, 1, 2, p=1)
    reading = read(header2(camera) + words2(*(word(t=time) for time in first)))
    assert reading.events["t"].tolist() == times and reading.counts == counts
    assert len(check_events(reading, (240, 180)).events) == len(times)


def test_the_bytes_of_the_issue_are_read(read):
    reading = read(b"#!AER-DAT2.0\r\n" + bytes.fromhex("000010b5fffffffb000010b5fffffffc"))
    assert plain(reading.events) == [(37, 111, 2**32 - 5, 0), (37, 111, 2**32 - 4, 0)]


@pytest.mark.parametrize("camera", [None, DAVIS346])
def test_a_truncated_tail_of_aedat2_costs_its_event(read, refused, camera):
    raw = davis(EVENTS, DAVIS346, (346, 260)) if camera else header2() + words2(*(dvs128_word(*e) for e in EVENTS))
    for cut in range(1, 8):
        reading = read(raw[:-cut], lenient=True)
        assert plain(reading.events) == EVENTS[:-1] and reading.counts["truncated"] == 1
        refused(raw[:-cut], len(raw) - cut, "truncated", [False])


@pytest.mark.parametrize(
    ("raw", "found"),
    [
        (b"#!AER-DAT1.0\r\n" + bytes(12), "got 1.0: "),
        (b"#!AER-DAT5.0\r\n" + bytes(12), "got 5.0: "),
        (b"#!AER-DAT3.0\r\n" + bytes(12), "got 3.0: "),
        (b"# This is a raw AE data file\r\n" + bytes(12), "got a file without #!AER-DAT, as of version 1.0: "),
        (bytes(12), "got a file without #!AER-DAT, as of version 1.0: "),
    ],
)
def test_other_versions_are_refused_by_name(refused, raw, found):
    refused(raw, 0, f"expected #!AER-DAT 2.0, 3.1, 4.0, {re.escape(found)}{re.escape(repr(raw[:14]))}$")


def test_bytes_are_counted_from_the_mark_before_the_header(read, refused):
    mark, raw = b"\xef\xbb\xbf", davis()
    reading = read(mark + raw)
    assert plain(reading.events) == EVENTS
    assert [reading.byte_of(index) - 3 for index in range(4)] == [read(raw).byte_of(index) for index in range(4)]
    refused(mark + raw[:-1], 3 + len(raw) - 1, "truncated", [False])
    refused(mark + header2("CochleaAMS1c"), 3 + header2("x").index(b"AEChip"), "expected the camera")


# AEDAT 3.1

LATER = [(1, 2, 600, 1), (3, 4, 700, 0)]


@pytest.mark.parametrize("room", [5, 9, 1000])
def test_a_packet_may_have_room_for_more_events_or_only_say_so(read, room):
    special = struct.pack("<hhiiiiii", 0, 1, 8, 4, 0, 1, 1, 1) + bytes(8)
    for last in (b"", special):
        raw = header3() + packet3(EVENTS, capacity=room) + special + packet3(LATER, capacity=room) + last
        assert plain(read(raw).events) == EVENTS + LATER
        bare = header3() + packet3(EVENTS) + special + packet3(LATER)
        claimed = bare.replace(struct.pack("<ii", 4, 4), struct.pack("<ii", room, 4))
        claimed = claimed.replace(struct.pack("<ii", 2, 2), struct.pack("<ii", room, 2)) + last
        assert claimed != bare and plain(read(claimed).events) == EVENTS + LATER
        assert plain(read(claimed, lenient=True).events) == EVENTS + LATER
    cut = header3() + packet3(EVENTS) + packet3(LATER, capacity=room)[:-3]
    assert plain(read(cut, lenient=True).events) == EVENTS + LATER


def test_a_time_below_zero_costs_its_event(read, refused):
    raw = header3() + packet3([*EVENTS, (9, 9, -5, 1), *LATER])
    refused(raw, len(header3()) + 28 + 8 * 4 + 4, "31 bits, got a negative one", [False])
    reading = read(raw, lenient=True)
    assert plain(reading.events) == EVENTS + LATER and reading.counts == {"impossible": 1}
    refused(header3() + packet3([(9, 9, -5, 1)]), len(header3()) + 28 + 4, "31 bits")


@pytest.mark.parametrize(
    ("camera", "sensor"),
    [
        ("DVS128", (128, 128)),
        ("DAVIS240C", (240, 180)),
        ("DAVIS346", (346, 260)),
        ("DAVIS640", (640, 480)),
        ("DYNAPSE", None),
    ],
)
def test_the_header_of_aedat3_names_the_camera(read, camera, sensor):
    reading = read(header3(camera) + packet3(EVENTS))
    assert reading.camera == camera and reading.sensor == sensor and reading.format == "AEDAT 3.1"
    old = header3(camera).replace(b"#Source", b"#-Source 0: File\r\n#Source")
    assert read(old + packet3(EVENTS)).camera == camera


def test_packed_packets_are_refused_by_the_name_of_their_format(refused):
    raw = header3(form="SerializedTS") + packet3(EVENTS)
    refused(raw, 14, "expected the format RAW, got SerializedTS$")


def test_events_of_other_types_are_counted_by_name(read, refused):
    def other(kind, number, size=16):
        return struct.pack("<hhiiiiii", kind, 1, size, 4, 0, number, number, number) + bytes(size * number)

    raw = header3() + other(0, 2) + packet3(EVENTS) + other(2, 1) + other(3, 5) + other(13, 1) + other(0, 1)
    assert read(raw).counts == {"special": 3, "frame": 1, "IMU6": 5, "matrix": 1}
    refused(header3() + other(0, 2) + packet3([], invalid=3), 0, "expected events, got 2 special, 3 invalid$")
    refused(header3() + packet3([], invalid=3), 0, "expected events, got 3 invalid$")


def test_a_clock_of_31_bits_goes_on_within_a_packet_and_before_its_counter_counts(read):
    whole = 2**31
    first = [(1, 1, whole - 2, 1), (1, 1, whole - 1, 1), (1, 1, 0, 1), (1, 1, 3, 1)]
    late = packet3([(1, 1, 5, 1)])  # still without an overflow
    counted = packet3([(1, 1, 8, 1)], overflow=1)
    reading = read(header3() + packet3(first) + late + counted)
    assert reading.events["t"].tolist() == [whole - 2, whole - 1, whole, whole + 3, whole + 5, whole + 8]
    assert len(check_events(reading, (128, 128)).events) == 6


def test_a_clock_of_31_bits_may_be_set_to_zero(read):
    reading = read(header3() + packet3([(1, 1, 900, 1), (1, 1, 950, 1)]) + packet3([(1, 1, 0, 1), (1, 1, 7, 1)]))
    assert reading.events["t"].tolist() == [900, 950, 950, 957] and reading.counts == {"clock resets": 1}


def test_a_truncated_tail_of_aedat3_costs_its_events(read, refused):
    head, special = header3() + packet3(EVENTS), struct.pack("<hhiiiiii", 0, 1, 12, 4, 0, 2, 2, 2) + bytes(24)
    for cut in range(1, 28):  # in the header of a packet
        reading = read(head + packet3(LATER)[:cut], lenient=True)
        assert plain(reading.events) == EVENTS and reading.counts == {"truncated": 1}
        refused(head + packet3(LATER)[:cut], len(head), f"28 bytes, got {cut}: truncated", [False])
    for cut in range(28, 44):  # in its events
        reading = read(head + packet3(LATER)[:cut], lenient=True)
        kept = (cut - 28) // 8
        assert plain(reading.events) == EVENTS + LATER[:kept] and reading.counts == {"truncated": 2 - kept}
        refused(head + packet3(LATER)[:cut], len(head), "the whole packet", [False])
    reading = read(head + special[:45], lenient=True)
    assert plain(reading.events) == EVENTS and reading.counts == {"truncated": 1, "special": 1}


def test_a_damaged_packet_is_refused_even_leniently(refused):
    raw, head = bytearray(aedat3()), aedat3().index(b"END-HEADER\r\n") + 12
    raw[head : head + 2] = b"MZ"
    refused(bytes(raw), head, "an event type")
    refused(header3() + packet3([(1, 1, -5, 1)]), len(header3()) + 28 + 4, "a time of 31 bits, got a negative one")


def test_a_packet_that_claims_more_than_the_file_takes_no_memory(read):
    huge = struct.pack("<hhiiiiii", 1, 1, 8, 4, 0, 2**31 - 1, 2**31 - 1, 0)
    reading = read(header3() + packet3(EVENTS) + huge + packet3(LATER)[28:], lenient=True)
    assert plain(reading.events) == EVENTS + LATER and reading.counts == {"truncated": 2**31 - 3}


# AEDAT 4.0


def lz4():
    return pytest.importorskip("lz4.frame").compress


def zstd(**how):
    return pytest.importorskip("zstandard").ZstdCompressor(**how).compress


PACKINGS = {
    "none": (0, lambda: bytes),
    "lz4": (1, lz4),
    "lz4 high": (2, lambda: functools.partial(lz4(), compression_level=9)),
    "zstd": (3, zstd),
    "zstd high": (4, lambda: zstd(level=19)),
    "zstd of a size that is not told": (3, lambda: zstd(write_content_size=False)),
}


@pytest.mark.parametrize("packing", PACKINGS)
def test_aedat4_is_read_however_it_is_packed(read, packing):
    compression, packer = PACKINGS[packing]
    raw = aedat4(compression=compression, pack=packer(), table=b"its content is not needed")
    reading = read(raw)
    assert plain(reading.events) == EVENTS
    assert reading.sensor == (346, 260) and reading.camera == "DAVIS346_00000002" and reading.format == "AEDAT 4.0"
    assert reading.counts == {"frames": 1, "packets of the IMU": 1}
    if compression:
        begin = raw.index(packer()(buffer4(EVENTS[:3])))
        assert [reading.byte_of(index) for index in range(3)] == [begin] * 3
    else:
        places = [raw.index(struct.pack("<qhh?3x", t, x, y, p)) for x, y, t, p in EVENTS]
        assert [reading.byte_of(index) for index in range(4)] == places


def test_the_first_stream_of_events_is_read_or_the_one_that_is_asked_for(tmp_path, read):
    streams = stream4(2, "TRIG", None), stream4(5, size=(640, 480), camera="DVXplorer"), stream4(1, camera="DAVIS")
    raw = header4(*streams) + packet4(buffer4(LATER), 1) + packet4(buffer4(EVENTS), 5) + packet4(b"trigger", 2)
    reading = read(raw)
    assert plain(reading.events) == EVENTS and reading.sensor == (640, 480) and reading.camera == "DVXplorer"
    assert reading.counts == {"other streams of events": 1, "packets of triggers": 1}
    other = read_aedat4(Source("a.aedat", raw), stream=1)
    assert plain(other.events) == LATER and other.sensor == (346, 260) and other.camera == "DAVIS"
    with pytest.raises(EventFormatError, match="stream 2 to be of events, got 2 TRIG, 5 EVTS, 1 EVTS"):
        read_aedat4(Source("a.aedat", raw), stream=2)


def test_a_recording_that_was_not_ended_has_no_table(read):
    raw = header4() + packet4(buffer4(EVENTS)) + packet4(buffer4([])) + packet4(buffer4(LATER))
    assert plain(read(raw).events) == EVENTS + LATER


def test_a_size_of_the_sensor_may_be_missing(read):
    assert read(header4(stream4(0, size=None)) + packet4(buffer4(EVENTS))).sensor is None
    assert read(header4(stream4(0, size=(0, 70000))) + packet4(buffer4(EVENTS))).sensor is None


def test_a_clock_of_aedat4_may_be_set_to_zero(read):
    since_1970 = 1_600_000_000_000_000
    events = [(1, 1, since_1970, 1), (1, 1, since_1970 + 5, 0), (1, 1, 0, 1), (1, 1, 4, 0)]
    reading = read(header4() + packet4(buffer4(events)))
    assert reading.events["t"].tolist() == [since_1970, since_1970 + 5, since_1970 + 5, since_1970 + 9]
    assert reading.counts == {"clock resets": 1}


@pytest.mark.parametrize("packing", ["none", "lz4", "zstd"])
def test_a_truncated_tail_of_aedat4_costs_its_packet(read, refused, packing):
    compression, packer = PACKINGS[packing]
    pack = packer()
    head = header4(compression=compression) + packet4(pack(buffer4(EVENTS)))
    last = packet4(pack(buffer4(LATER)))
    for cut in range(1, len(last)):
        reading = read(head + last[:cut], lenient=True)
        assert plain(reading.events) == EVENTS and reading.counts == {"truncated": 1}
        refused(head + last[:cut], len(head), f"expected a packet, got {cut} bytes of it: truncated", [False])
    whole = aedat4(compression=compression, pack=pack, table=b"table")
    short = whole[: whole.index(b"frame") + 5]  # without what the table of packets lists
    assert plain(read(short, lenient=True).events) == EVENTS[:3]
    refused(short, 14, "expected the table of all packets .*: truncated", [False])


def edited(raw, at, content):
    return raw[:at] + content + raw[at + len(content) :]


@pytest.mark.parametrize(
    ("raw", "byte", "problem"),
    [
        (b"#!AER-DAT4.0\n" + bytes(40), 0, "expected the line"),
        (b"#!AER-DAT4.0\r\n", 14, "expected a header of streams"),
        (header4()[:200], 14, "bytes are more than the file has"),
        (edited(header4(), 14, struct.pack("<I", 2**32 - 1)), 14, "bytes are more than the file has"),
        (edited(header4(), 18, struct.pack("<I", 2**32 - 1)), 14, "expected a header of streams"),
        (edited(header4(), 38, struct.pack("<i", -(2**31))), 14, "expected a header of streams"),
        (edited(header4(), 38, struct.pack("<i", 2**31 - 1)), 14, "byte -.* is not in it"),
        (header4(compression=5) + packet4(b""), 14, r"the compression is 5, not one of \[0, 1, 2, 3, 4\]"),
        (header4(compression=-1) + packet4(b""), 14, "the compression is -1"),
        (header4(table=3) + packet4(buffer4(EVENTS)), 14, "expected the table of all packets from byte .*, got 3"),
        (header4(xml="<dv><node"), 14, "expected a header of streams: unclosed token"),
        (header4(xml='<!DOCTYPE dv [<!ENTITY a "b">]><dv>&a;</dv>'), 14, "XML without declarations"),
        (header4(xml=""), 14, "no element found"),
        (header4(xml="<dv/>"), 14, "expected a stream of events, got no stream"),
        (header4(stream4(0, "FRME")), 14, "expected a stream of events, got 0 FRME"),
        (header4(stream4(0), stream4(0)), 14, "two streams have the same number"),
        (header4(stream4("x")), 14, "invalid literal for int"),
        (header4(*map(stream4, range(101))), 14, "there are more than 100 streams"),
        (header4(xml="<node>" * 90_000 + "</node>" * 90_000), 14, "more than the file has, or than a header"),
        (header4() + packet4(buffer4(EVENTS), 7), len(header4()), r"a stream \(0\), got one of stream 7 with 96 bytes"),
        (header4() + struct.pack("<ii", 0, -9), len(header4()), "got one of stream 0 with -9 bytes"),
        (header4() + packet4(b"short"), len(header4()) + 8, "its type is b''"),
        (header4() + packet4(buffer4(EVENTS, b"FRME")), len(header4()) + 8, "its type is b'FRME', not b'EVTS'"),
        (header4() + packet4(buffer4([])), 0, "expected events, got none"),
        (header4(), 0, "expected events, got none"),
        (header4(compression=1) + packet4(b"\x04\x22\x4d\x18 garbage"), len(header4()) + 8, "expected a packet of"),
        (header4(compression=3) + packet4(b"\x28\xb5\x2f\xfd garbage"), len(header4()) + 8, "expected a packet of"),
        (header4(compression=1) + packet4(b""), len(header4()) + 8, "expected a packet of"),
        (header4(compression=3) + packet4(b""), len(header4()) + 8, "expected a packet of"),
    ],
)
def test_damaged_aedat4_is_refused_with_its_place(refused, raw, byte, problem):
    pytest.importorskip("lz4")
    pytest.importorskip("zstandard")
    refused(raw, byte, problem)


def test_a_vector_longer_than_its_packet_is_refused(refused):
    for count in (5, 2**28, 2**32 - 1):
        content = edited(buffer4(EVENTS), 4 + 24, struct.pack("<I", count))
        refused(header4() + packet4(content), len(header4()) + 8, f"{16 * count} bytes are more than it has")


@pytest.mark.parametrize("time", [-1, 2**62, -(2**63), 2**63 - 1])
def test_times_of_aedat4_that_are_none_cost_their_event(read, refused, time):
    raw = header4() + packet4(buffer4([(1, 2, time, 1), *EVENTS, (1, 2, 3, 1)]))
    first = len(raw) - 16 * 6
    refused(raw, first, f"expected a time from 0 to {2**62 - 1}, got {time}", [False])
    reading = read(raw, lenient=True)
    assert plain(reading.events) == [*EVENTS, (1, 2, 3, 1)] and reading.counts == {"impossible": 1}
    assert reading.byte_of(0) == first + 16
    refused(header4() + packet4(buffer4([(1, 2, time, 1)])), "[0-9]+", f"got {time}")


@pytest.mark.parametrize("packing", ["lz4", "zstd", "zstd of a size that is not told"])
def test_a_packet_that_unpacks_to_too_much_is_refused(refused, packing, monkeypatch):
    compression, packer = PACKINGS[packing]
    monkeypatch.setattr(reader4, "_MOST_LZ4", 100)
    monkeypatch.setattr(reader4, "_MOST_ZSTD", 100)
    raw = header4(compression=compression) + packet4(packer()(bytes(1_000_000)))
    refused(raw, len(header4()) + 8, "expected a packet of events")


def test_all_packets_together_may_not_be_too_much(read, refused, monkeypatch):
    size = len(buffer4(EVENTS))
    raw = header4(compression=1) + 2 * packet4(lz4()(buffer4(EVENTS)))
    monkeypatch.setattr(reader4, "_MOST_UNPACKED", 2 * size)
    assert len(read(raw).events) == 2 * len(EVENTS)
    monkeypatch.setattr(reader4, "_MOST_UNPACKED", 2 * size - 1)
    refused(raw, len(raw) - len(lz4()(buffer4(EVENTS))), f"more than {size - 1} bytes")


@pytest.mark.parametrize(("compression", "name"), [(1, "lz4"), (2, "lz4"), (3, "zstandard"), (4, "zstandard")])
def test_a_missing_library_is_named(read, monkeypatch, compression, name):
    monkeypatch.setitem(sys.modules, "lz4", None)
    monkeypatch.setitem(sys.modules, "lz4.frame", None)
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(UserError, match=f"needs pip install {name} "):
        read(header4(compression=compression) + packet4(b"packed"))
    assert plain(read(header4() + packet4(buffer4(EVENTS))).events) == EVENTS


@pytest.mark.parametrize("packing", PACKINGS)
def test_aedat4_agrees_with_another_library(tmp_path, read, packing):
    aedat = pytest.importorskip("aedat")
    compression, packer = PACKINGS[packing]
    pack, random, path = packer(), np.random.default_rng(0), tmp_path / "a.aedat4"
    columns = (
        random.integers(346, size=5000),
        random.integers(260, size=5000),
        np.sort(random.integers(9**9, size=5000)),
    )
    events = list(zip(*(column.tolist() for column in (*columns, random.integers(2, size=5000)))))
    packets = b"".join(packet4(pack(buffer4(events[start : start + 700]))) for start in range(0, 5000, 700))
    path.write_bytes(header4(compression=compression) + packets)
    theirs = np.concatenate([packet["events"] for packet in aedat.Decoder(str(path))])
    ours = read_recording(path).events
    for name, their_name in zip("xytp", ("x", "y", "t", "on")):
        assert (ours[name] == theirs[their_name]).all()


def test_times_and_pixels_of_any_size_are_kept(read):
    events = [(0, 0, 0, 0), (32767, 1, 2**40, 1), (1, 32767, 2**61, 0)]
    assert plain(read(header4() + packet4(buffer4(events))).events) == events

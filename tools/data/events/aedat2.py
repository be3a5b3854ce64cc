"""Reader of AEDAT 2.0, the format of jAER."""

import re
from typing import NamedTuple

import numpy as np

from .aedat_header import davis_size, header_line, is_dvs128
from .reading import Counts, EventFormatError, Reading, Source, add_found, camera_events

EVENT_BYTES = 8
_TEXT = rb"#[^\0-\x08\x0a-\x1f\x7f]*"  # without control characters
_LINE = re.compile(_TEXT + rb"\r?\n")
_CUT_LINE = re.compile(_TEXT + rb"\r?")
_END = re.compile(rb"^# ?end of ascii header\r?\n", re.IGNORECASE | re.MULTILINE)
_MOST_HEADER = 2**20  # bytes; jAER writes the settings of the camera into it
_IMU = 1 << 31 | 3 << 10  # bits of an address of a DAVIS that are set in words of its IMU


class Layout(NamedTuple):
    """What the bits of an address mean."""

    other: int  # a word in which one of these bits is set is not an event
    unused: int  # bits that are 0 unless bit 31 is set
    x: tuple[int, int]  # the lowest bit, and the mask above it
    y: tuple[int, int]
    polarity: int
    on: int  # the polarity of an event that is ON


DVS128 = Layout(other=1 << 31 | 1 << 15, unused=0x7FFF << 16, x=(1, 0x7F), y=(8, 0x7F), polarity=0, on=0)
DAVIS = Layout(other=1 << 31 | 1 << 10, unused=0, x=(12, 0x3FF), y=(22, 0x1FF), polarity=11, on=1)


def read_aedat2(source: Source) -> Reading:
    """Read AEDAT 2.0 of a DVS128, as of DVS-CIFAR10, or of a DAVIS.

    Header lines that start with "#"; then big-endian pairs of a 32-bit address and a 32-bit time in microseconds.
    The camera is what the line "# AEChip:" says, and a DVS128 without such a line; other cameras are refused.

    DVS128: bit 0 polarity (0 is ON), bits 1 to 7 x, bits 8 to 14 y. Bits 15 (external) and 31 mark other words, counted
    as "special". DAVIS: bit 11 polarity (1 is ON), bits 12 to 21 x, bits 22 to 30 y. Bit 10 marks external events, and
    bit 31 words of frames ("APS") or, if bits 10 and 11 are set too, of the motion sensor ("IMU"); all are counted.
    Both count x from the right and y from below, so both are reversed here.

    Note: https://docs.inivation.com/software/software-advanced-usage/file-formats/aedat-2.0.html for the bits. Polarity
    and orientation are jAER's, which wrote the recordings (DVS128.java, DavisBaseCamera.java, DavisChip.java). By the
    page, x is from the left, and 1 is ON for a DVS128. But dat2mat.m of DVS-CIFAR10 agrees with jAER about the DVS128;
    about the DAVIS so do jAER's driver, which reverses x for the recording only, and v2e, which writes such files. A
    program that makes AEDAT 2.0 of other formats may have kept x from the left: its recordings are mirrored here.
    """
    raw, counts = source.raw, Counts()
    at = _header_end(source)
    camera = header_line(raw[:at], rb"# ?AEChip:")
    layout, sensor = DVS128, (128, 128)
    if camera and not is_dvs128(camera):
        found = davis_size(camera)
        if found is None:
            raise source.error(raw.index(b"AEChip:"), f"expected the camera DVS128 or DAVIS, got {camera[:80]}")
        layout, sensor = DAVIS, found
    stop = source.whole(at, EVENT_BYTES, counts)
    words = np.frombuffer(raw, ">u4", (stop - at) // 4, at).reshape(-1, 2)
    address, time = words[:, 0].astype(np.uint32), words[:, 1].astype(np.int64)
    inner = (address & layout.other) == 0
    others = ~inner
    if layout.unused and (wrong := (address & layout.unused != 0) & (address >> 31 == 0)).any():
        expected = "an address of 16 bits" if camera else "an address of 16 bits, as no line # AEChip: names a DAVIS"

        def error_of(index: int) -> EventFormatError:
            return source.error(at + EVENT_BYTES * index, f"expected {expected}, got {address[index]:#x}")

        source.leave_out(wrong, counts, error_of, np.count_nonzero(inner | wrong))
        inner &= ~wrong
        others &= ~wrong
    if not inner.all():
        add_found(counts, _kinds(address[others], layout))
        address, time = address[inner], time[inner]
    x, y = ((address >> lowest) & mask for lowest, mask in (layout.x, layout.y))
    polarity = (address >> layout.polarity) & 1
    events = camera_events(sensor[0] - 1 - x, sensor[1] - 1 - y, time, polarity == layout.on, 32, counts)
    return Reading(
        source.path,
        events,
        lambda index: at + EVENT_BYTES * int(np.flatnonzero(inner)[index]),
        "AEDAT 2.0",
        camera,
        sensor,
        counts,
    )


def _kinds(address: np.ndarray, layout: Layout) -> dict[str, int]:
    """How many words of each kind there are among those that are not events."""
    if layout is DVS128:
        return {"special": len(address)}
    external = np.count_nonzero(address >> 31 == 0)
    imu = np.count_nonzero((address & _IMU) == _IMU)
    return {"external": external, "IMU": imu, "APS": len(address) - external - imu}


def _header_end(source: Source) -> int:
    """Where the first event begins: after the line "#End Of ASCII Header", or after all lines that begin with "#".

    The first byte of an event of a DAVIS may be "#" as well (y from 140 to 143). Its fourth byte is 0, which text does
    not have, so only a line of two or three bytes may be an event: it is if whole events are left from it on. Serial
    numbers of cameras may not be text; a header with such a line needs the line at its end.
    """
    raw, at = source.raw, 0
    while line := _LINE.match(raw, at):
        if _END.match(raw, at):
            return line.end()
        is_short = line.end() - at < 4 and raw[line.end() : line.end() + 1] != b"#"
        if is_short and (len(raw) - at) % EVENT_BYTES == 0:
            return at
        at = line.end()
    if raw[at : at + 1] == b"#":
        if end := _END.search(raw, at, at + _MOST_HEADER):
            return end.end()
        if _CUT_LINE.fullmatch(raw, at):
            raise source.error(at, "expected the end of a header line, got the end of the file")
    return at

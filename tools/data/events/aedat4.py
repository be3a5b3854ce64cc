"""Reader of AEDAT 4.0, the format of iniVation's DV."""

import struct
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np

from tools.errors import UserError

from .reading import Counts, EventFormatError, Reading, Source, camera_events

MAGIC = b"#!AER-DAT4.0\r\n"
# An event of a packet, ON unless the last byte is 0.
_EVENT = np.dtype({"names": ["t", "x", "y", "on"], "formats": ["<i8", "<u2", "<u2", "u1"], "itemsize": 16})
_SIZE, _PACKET = struct.Struct("<I"), struct.Struct("<ii")
_INT32, _INT64, _UINT16 = struct.Struct("<i"), struct.Struct("<q"), struct.Struct("<H")
_MOST_HEADER = 2**20  # bytes
_MOST_STREAMS = 100
_MOST_UNPACKED = 2**32  # bytes of all packets, as of a whole file; more would not fit into memory
_MOST_LZ4 = 256  # LZ4 packs at most 255 to 1
_MOST_ZSTD = 1000  # ZSTD packs more, but not events whose times differ
_LAST_TIME = 2**62
_OTHERS = {"FRME": "frames", "IMUS": "packets of the IMU", "TRIG": "packets of triggers"}


class Stream(NamedTuple):
    """A stream of packets, as the header describes it."""

    number: int
    kind: str  # "EVTS" for events, or as in `_OTHERS`
    sensor: tuple[int, int] | None
    camera: str


def read_aedat4(source: Source, stream: int | None = None) -> Reading:
    """Read AEDAT 4.0, which DV writes since 2019: its first stream of events, or the stream of this number.

    After the line "#!AER-DAT4.0" all is little-endian. The header, a FlatBuffer, says how packets are packed (not, by
    LZ4, or by ZSTD), where the table at the end of the file begins, and in XML which streams there are. Then packets
    follow, each with its stream and size in front (8 bytes); unpacked, it is a FlatBuffer too: a vector of events of 16
    bytes, time (64 bits, microseconds since 1970), x, y (16 bits, from the upper left) and ON or OFF (8 bits, 1 is ON).

    What other streams have is left out and counted: "frames", "packets of the IMU", "packets of triggers", and "other
    streams of events" by their number.

    Note: https://docs.inivation.com/software/software-advanced-usage/file-formats/aedat-4.0.html and its schemas. The
    libraries for this format are not used: the one that is fast, `aedat`, ends Python on a damaged header.
    """
    raw, counts = source.raw, Counts()
    at, compression, stop, streams = _header(source, counts)
    chosen = _chosen(source, streams, stream, counts)
    unpack = UNPACKERS[compression]()
    places, left = [], _MOST_UNPACKED
    columns: dict[str, list[np.ndarray]] = {name: [np.empty(0, _EVENT[name])] for name in _EVENT.names}
    for number, start, size in _packets(source, at, stop, streams, counts):
        if number != chosen.number:
            continue
        try:
            packet = unpack(memoryview(raw)[start : start + size], left)
            first, events = _events(packet)
        except (ValueError, struct.error) as error:
            raise source.error(start, f"expected a packet of events: {error}") from error
        left -= len(packet)
        if len(events) == 0:
            continue
        places.append((len(events), *((start, 0) if compression else (start + first, _EVENT.itemsize))))
        for name, column in columns.items():
            column.append(events[name].copy())  # while the packet is in the cache of the processor
    x, y, time, on = (np.concatenate(columns.pop(name)) for name in ("x", "y", "t", "on"))
    numbers, starts, steps = np.array(places, np.int64).reshape(-1, 3).T

    def byte_of(index: int) -> int:
        ends = numbers.cumsum()
        packet = np.searchsorted(ends, index, side="right")
        return int(starts[packet] + steps[packet] * (index - ends[packet] + numbers[packet]))

    def error_of(index: int) -> EventFormatError:
        return source.error(byte_of(index), f"expected a time from 0 to {_LAST_TIME - 1}, got {time[index]}")

    kept: Sequence[int] = range(len(time))
    if len(time) and not 0 <= time.min() <= time.max() < _LAST_TIME:
        possible = (time >= 0) & (time < _LAST_TIME)
        source.leave_out(~possible, counts, error_of)
        kept = np.flatnonzero(possible).tolist()
        x, y, time, on = x[possible], y[possible], time[possible], on[possible]
    events = camera_events(x, y, time, on != 0, 64, counts)
    return Reading(
        source.path,
        events,
        lambda index: byte_of(kept[index]),
        "AEDAT 4.0",
        chosen.camera,
        chosen.sensor,
        counts,
    )


def _header(source: Source, counts: Counts) -> tuple[int, int, int, list[Stream]]:
    """Where the first packet begins, how packets are packed, where they end, and the streams."""
    raw, start = source.raw, len(MAGIC) + _SIZE.size
    if not raw.startswith(MAGIC):
        raise source.error(0, f"expected the line {MAGIC!r}, got {raw[: len(MAGIC)]!r}")
    try:
        end = start + _SIZE.unpack_from(raw, len(MAGIC))[0]
        if end > min(len(raw), _MOST_HEADER):
            raise ValueError(f"{end - start} bytes are more than the file has, or than a header")
        header = raw[start:end]
        table = _read(_SIZE, header, 0)
        place, description = _field(header, table, 0), _field(header, table, 2)
        compression = 0 if place is None else _read(_INT32, header, place)
        if compression not in UNPACKERS:
            raise ValueError(f"the compression is {compression}, not one of {list(UNPACKERS)}")
        place = _field(header, table, 1)
        stop = -1 if place is None else _read(_INT64, header, place)
        if description is None:
            raise ValueError("there are no streams")
        streams = _streams(_vector(header, description, 1)[1])
    except (ValueError, struct.error) as error:
        raise source.error(len(MAGIC), f"expected a header of streams: {error}") from error
    if stop == -1:  # the recording was not ended properly
        return end, compression, len(raw), streams
    if stop > len(raw) and source.lenient:
        counts["truncated"] += 1
        return end, compression, len(raw), streams
    if not end <= stop <= len(raw):
        problem = f"expected the table of all packets from byte {end} to {len(raw)}, got {stop}: truncated"
        raise source.error(len(MAGIC), problem)
    return end, compression, stop, streams


def _packets(
    source: Source, at: int, stop: int, streams: list[Stream], counts: Counts
) -> Iterator[tuple[int, int, int]]:
    """Of each packet from byte `at` to `stop` its stream, where it begins, and its size."""
    kinds = {one.number: one.kind for one in streams}
    while at < stop:
        start = at + _PACKET.size
        is_cut = start > stop
        if not is_cut:
            number, size = _PACKET.unpack_from(source.raw, at)
            if size < 0 or number not in kinds:
                known = ", ".join(map(str, sorted(kinds)))
                problem = f"expected a packet of a stream ({known}), got one of stream {number} with {size} bytes"
                raise source.error(at, problem)
            is_cut = size > stop - start
        if is_cut:
            if not source.lenient:
                raise source.error(at, f"expected a packet, got {stop - at} bytes of it: truncated")
            counts["truncated"] += 1
            return
        if kinds[number] in _OTHERS:
            counts[_OTHERS[kinds[number]]] += 1
        yield number, start, size
        at = start + size


def _chosen(source: Source, streams: list[Stream], number: int | None, counts: Counts) -> Stream:
    """The stream of this number, or the first one of events."""
    of_events = [one for one in streams if one.kind == "EVTS"]
    chosen = [one for one in of_events if number is None or one.number == number]
    if not chosen:
        wanted = "a stream of events" if number is None else f"stream {number} to be of events"
        found = ", ".join(f"{one.number} {one.kind}" for one in streams)
        raise source.error(len(MAGIC), f"expected {wanted}, got {found or 'no stream'}")
    if len(of_events) > 1:
        counts["other streams of events"] = len(of_events) - 1
    return chosen[0]


def _streams(description: bytes) -> list[Stream]:
    """The streams in the XML of a header: nodes that have a type."""
    text = description.decode(errors="replace")
    if "<!" in text:  # a document type could define entities without end
        raise ValueError("XML without declarations is needed")
    try:
        nodes = list(ElementTree.fromstring(text).iter("node"))
    except ElementTree.ParseError as error:
        raise ValueError(str(error)) from error
    streams = []
    for node in nodes:
        if not any(one.get("key") == "typeIdentifier" for one in node.findall("attr")):
            continue
        told = {one.get("key"): one.text or "" for one in node.iter("attr")}
        width, height = (int(told.get(key, 0)) for key in ("sizeX", "sizeY"))
        sensor = (width, height) if 0 < width < 2**16 and 0 < height < 2**16 else None
        number, kind = int(node.get("name", "")), told["typeIdentifier"]
        streams.append(Stream(number, kind[:80], sensor, told.get("source", "")[:80]))
        if len(streams) > _MOST_STREAMS:
            raise ValueError(f"there are more than {_MOST_STREAMS} streams")
    if len({one.number for one in streams}) < len(streams):
        raise ValueError("two streams have the same number")
    return streams


def _events(packet: bytes | memoryview) -> tuple[int, np.ndarray]:
    """The events [N] in an unpacked packet, and where the first one begins."""
    if (kind := bytes(packet[8:12])) != b"EVTS":
        raise ValueError(f"its type is {kind!r}, not b'EVTS'")
    table = 4 + _read(_SIZE, packet, 4)
    place = _field(packet, table, 0)
    if place is None:
        return 0, np.empty(0, _EVENT)
    first, content = _vector(packet, place, _EVENT.itemsize)
    return first, np.frombuffer(content, _EVENT)


# FlatBuffers: https://flatbuffers.dev/internals. All numbers are little-endian, and all reads are in the buffer.


def _read(kind: struct.Struct, buffer: bytes | memoryview, at: int) -> int:
    if at < 0:
        raise ValueError(f"byte {at} is not in it")
    return kind.unpack_from(buffer, at)[0]


def _field(buffer: bytes | memoryview, table: int, number: int) -> int | None:
    """Where a field of the table at byte `table` is; None if it is not there, and so has its default."""
    fields = table - _read(_INT32, buffer, table)
    entry = 4 + 2 * number
    if entry + 2 > _read(_UINT16, buffer, fields):
        return None
    offset = _read(_UINT16, buffer, fields + entry)
    return table + offset if offset else None


def _vector(buffer: bytes | memoryview, place: int, size: int) -> tuple[int, bytes | memoryview]:
    """Where the vector, or string, that a field points to begins, and its bytes; its items have `size` bytes."""
    start = place + _read(_SIZE, buffer, place)
    first, length = start + 4, size * _read(_SIZE, buffer, start)
    if length > len(buffer) - first:
        raise ValueError(f"{length} bytes are more than it has")
    return first, buffer[first : first + length]


# An unpacker takes a packet and how many bytes it may have, and gives it unpacked; ValueError if it is damaged.
Unpack = Callable[[memoryview, int], bytes | memoryview]


def _unpacked() -> Unpack:
    return lambda packet, most: packet


def _lz4() -> Unpack:
    try:
        import lz4.frame as lz4
    except ImportError as error:
        raise UserError(f"reading AEDAT 4.0 that is packed by LZ4 needs pip install lz4 ({error})") from error

    def unpack(packet: memoryview, most: int) -> bytes:
        unpacker = lz4.LZ4FrameDecompressor()
        try:
            content = unpacker.decompress(packet, max_length=min(most, _MOST_LZ4 * len(packet)))
        except RuntimeError as error:
            raise ValueError(str(error)) from error
        if not unpacker.eof:
            raise ValueError(f"it is truncated, or has more than {most:,} bytes")
        return content

    return unpack


def _zstd() -> Unpack:
    try:
        import zstandard
    except ImportError as error:
        raise UserError(f"reading AEDAT 4.0 that is packed by ZSTD needs pip install zstandard ({error})") from error

    unpacker = zstandard.ZstdDecompressor()

    def unpack(packet: memoryview, most: int) -> bytes:
        most = min(most, _MOST_ZSTD * len(packet))
        try:
            if (size := zstandard.frame_content_size(packet)) > most:  # -1 if it is unknown
                raise ValueError(f"it has {size:,} bytes, more than {most:,}")
            return unpacker.decompress(packet, max_output_size=most)
        except (zstandard.ZstdError, MemoryError) as error:
            raise ValueError(str(error)) from error

    return unpack


UNPACKERS: dict[int, Callable[[], Unpack]] = {0: _unpacked, 1: _lz4, 2: _lz4, 3: _zstd, 4: _zstd}

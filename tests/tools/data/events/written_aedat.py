"""AEDAT files of every version, written byte by byte from the specifications and not by what is tested."""

import importlib.util
import struct

from tests.tools.data.events.written import EVENTS

DAVIS240C = "eu.seebetter.ini.chips.davis.DAVIS240C"
DAVIS346 = "eu.seebetter.ini.chips.davis.Davis346blue"


def header2(camera=None, end="#End Of ASCII Header\r\n"):
    chip = f"# AEChip: {camera}\r\n" if camera else ""
    text = f"#!AER-DAT2.0\r\n# This is a raw AE data file - do not edit\r\n# Timestamps tick is 1 us\r\n{chip}{end}"
    return text.encode()


def words2(*words):
    return b"".join(struct.pack(">II", address, time & 0xFFFFFFFF) for address, time in words)


def dvs128_word(x, y, t, p):
    return 1 - p | (127 - x) << 1 | (127 - y) << 8, t


def davis_word(x, y, t, p, size=(240, 180)):
    """From the upper left, as `x` and `y` are, to jAER's lower left, with x reversed once more by the chip."""
    return (size[0] - 1 - x) << 12 | (size[1] - 1 - y) << 22 | p << 11, t


# Words of a DAVIS that are not events: external ones with either polarity, samples of a frame, one of the IMU.
DAVIS_OTHERS = [(1 << 10, 13), (3 << 10, 13), (1 << 31 | 7 << 22 | 5 << 12 | 600, 14), (1 << 31 | 1 << 10 | 9, 14)]
DAVIS_OTHERS += [(1 << 31 | code << 28 | 0xFFF1 << 12 | 3 << 10, 15) for code in range(7)]


def davis(events=EVENTS, camera=DAVIS240C, size=(240, 180)):
    first, *rest = (davis_word(*event, size) for event in events)
    return header2(camera) + words2(first, *DAVIS_OTHERS, *rest)


def packet3(events, kind=1, size=8, overflow=0, capacity=None, invalid=0):
    """A packet of AEDAT 3.1; its room for more events than it has is filled with zeros."""
    body = b"".join(struct.pack("<II", 1 | p << 1 | y << 2 | x << 17, t & 0xFFFFFFFF) for x, y, t, p in events)
    body += struct.pack("<II", 2, 9) * invalid
    number = len(events) + invalid
    capacity = number if capacity is None else capacity
    header = struct.pack("<hhiiiiii", kind, 1, size, 4, overflow, capacity, number, len(events))
    return header + body + bytes(size * (capacity - number))


def header3(camera="DVS128", form="RAW"):
    return f"#!AER-DAT3.1\r\n#Format: {form}\r\n#Source 1: {camera}\r\n#!END-HEADER\r\n".encode()


def stream4(number, kind="EVTS", size=(346, 260), camera="DAVIS346_00000002"):
    info = f'<attr key="sizeX" type="int">{size[0]}</attr><attr key="sizeY" type="int">{size[1]}</attr>' if size else ""
    return (
        f'<node name="{number}" path="/mainloop/Recorder/outInfo/{number}/">'
        f'<attr key="compression" type="string">LZ4</attr><attr key="typeIdentifier" type="string">{kind}</attr>'
        f'<node name="info" path="/mainloop/Recorder/outInfo/{number}/info/">{info}'
        f'<attr key="source" type="string">{camera}</attr></node></node>'
    )


def header4(*streams, compression=0, table=-1, xml=None):
    """A FlatBuffer: the root's offset, the name of the type, a list of fields, the table, the XML."""
    streams = streams or (stream4(0),)
    xml = f'<dv version="2.0"><node name="outInfo">{"".join(streams)}</node></dv>' if xml is None else xml
    content = xml.encode()
    fields = struct.pack("<5H2x", 10, 24, 4, 8, 16)  # bytes of the list and of the table; where its three fields are
    table = struct.pack("<iiqI4x", 12, compression, table, 24 - 16)
    buffer = struct.pack("<I4s", 20, b"IOHE") + fields + table + struct.pack("<I", len(content)) + content + b"\0"
    return b"#!AER-DAT4.0\r\n" + struct.pack("<I", len(buffer)) + buffer


def buffer4(events, kind=b"EVTS"):
    """The FlatBuffer of a packet of events, with its size in front."""
    buffer = struct.pack("<I4s", 16, kind) + struct.pack("<3H2x", 6, 8, 4) + struct.pack("<iII", 8, 4, len(events))
    buffer += b"".join(struct.pack("<qhh?3x", t, x, y, p) for x, y, t, p in events)
    return struct.pack("<I", len(buffer)) + buffer


def packet4(content, stream=0):
    return struct.pack("<ii", stream, len(content)) + content


def aedat4(events=EVENTS, compression=0, pack=bytes, table=b""):
    """Two packets of events around two of other streams, then perhaps the table of all packets."""
    streams = stream4(0), stream4(1, "FRME"), stream4(2, "IMUS", None), stream4(3, "TRIG", None)
    packets = packet4(pack(buffer4(events[:3]))) + packet4(b"frame", 1) + packet4(b"imu", 2)
    packets += packet4(pack(buffer4(events[3:])))
    place = len(header4(*streams)) + len(packets) if table else -1
    return header4(*streams, compression=compression, table=place) + packets + table


def _lz4():
    import lz4.frame

    return aedat4(compression=1, pack=lz4.frame.compress)


def _zstd():
    import zstandard

    return aedat4(compression=3, pack=zstandard.ZstdCompressor().compress)


PACKED4 = {  # what can be written here
    f"aedat4 {library}": make
    for library, make in (("lz4", _lz4), ("zstandard", _zstd))
    if importlib.util.find_spec(library) is not None
}

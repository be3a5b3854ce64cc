"""Files of Prophesee's formats, written word by word from the specifications, and a plain decoder of EVT 3.0."""

import struct

from tests.tools.data.events.written import EVENTS

RAW_HEADER = (
    b"% camera_integrator_name Prophesee\n% date 2023-03-29 16:37:46\n% integrator_name Prophesee\n"
    b"% plugin_name hal_plugin_imx636_evk4\n% sensor_generation 4.2\n% serial_number 00ca0009\n% system_ID 49\n"
)


def evt2_words(events=EVENTS):
    """Words of 32 bits, with the upper bits of the time before each event, a trigger and another word."""
    words = [0xA << 28 | 3 << 22, 0xE << 28]
    for x, y, t, p in events:
        words += [8 << 28 | t >> 6 & 0xFFFFFFF, p << 28 | (t & 63) << 22 | x << 11 | y]
    return words


def evt2(events=EVENTS, header=b"% evt 2.0\n% geometry 128x128\n", words=None):
    words = evt2_words(events) if words is None else words
    return header + RAW_HEADER + b"% end\n" + b"".join(struct.pack("<I", word) for word in words)


def evt3_words(events=EVENTS, vectors=True):
    """Words of 16 bits, which only say what has changed, with a trigger and another word at the start."""
    words, high, low, row = [0xA001, 0xE014], None, None, None
    while events:
        x, y, t, p = events[0]
        if t >> 12 != high:
            high, low = t >> 12, None
            words.append(0x8000 | high & 0xFFF)
        if t & 0xFFF != low:
            low = t & 0xFFF
            words.append(0x6000 | low)
        if y != row:
            row = y
            words.append(y)
        rest = 1
        while (
            vectors and rest < len(events) and events[rest][1:] == (y, t, p) and events[rest][0] > events[rest - 1][0]
        ):
            rest += 1
        if rest == 1:
            words.append(0x2000 | p << 11 | x)
        else:
            words.append(0x3000 | p << 11 | x)
            words += _vectors([event[0] - x for event in events[:rest]])
        events = events[rest:]
    return words


def _vectors(columns):
    """Vectors of 12, 12 and 8 pixels, and so on, for columns from the base."""
    words, base = [], 0
    while base <= columns[-1]:
        for kind, width in ((4, 12), (4, 12), (5, 8)):
            inside = [column - base for column in columns if base <= column < base + width]
            words.append(kind << 12 | sum(1 << column for column in inside))
            base += width
    return words


def evt3(events=EVENTS, header=b"% format EVT3;height=128;width=128\n", words=None):
    words = evt3_words(events) if words is None else words
    return header + RAW_HEADER + b"% end\n" + b"".join(struct.pack("<H", word) for word in words)


def decoded_evt3(words):
    """Events of EVT 3.0, one word after the other; and how many words of events came too early."""
    events, early, loops = [], 0, 0
    high = low = y = base = None
    polarity = 0
    for word in words:
        kind, content = word >> 12, word & 0xFFF
        is_ready = high is not None and y is not None
        time = (loops << 24) + ((high or 0) << 12) + (low or 0)
        if kind == 0:
            y = content & 0x7FF
        elif kind == 2 and is_ready:
            events.append((content & 0x7FF, y, time, content >> 11))
        elif kind == 3:
            base, polarity = content & 0x7FF, content >> 11
        elif kind in (4, 5) and base is not None:
            width = 12 if kind == 4 else 8
            if is_ready:
                events += [(base + one, y, time, polarity) for one in range(width) if content >> one & 1]
            base += width
            early += not is_ready
        elif kind in (2, 4, 5):
            early += 1
        elif kind == 6:
            low = content if high is not None else None
        elif kind == 8:
            loops += high is not None and high >= content + 2**11
            low = low if high == content else 0
            high = content
    return events, early


def dat(events=EVENTS, version=2, kind=12):
    """A DAT file; before version 2, x had 9 bits and y 8."""
    file = b"% Data file containing CD events.\n% Version " + str(version).encode() + b"\n"
    file += b"% Date 2018-03-01 13:10:24\n% Height 128\n% Width 128\n" + bytes([kind, 8])
    for x, y, t, p in events:
        word = x | y << 14 | p << 28 if version == 2 else x | y << 9 | p << 17
        file += struct.pack("<II", t % 2**32, word)
    return file

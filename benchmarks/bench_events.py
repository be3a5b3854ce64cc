"""Events per second that are read and framed, on one thread; one JSON line per result.

    taskset -c 0 python benchmarks/bench_events.py [--events 4000000] [--repeats 7]

Files are made here or by `tools.data.events.writing`, and also read by the libraries in `LIBRARIES` that are installed,
whole and into memory.
"""

import argparse
import importlib.util
import itertools
import struct
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # where this is started as a file
from benchmarks.common import in_turns, report
from tools.data.events import EVENT
from tools.data.events.frames import SPLITS, count_frames, framing_of
from tools.data.events.recordings import Recording
from tools.data.events.writing import WRITERS, write_recording

SENSOR = (128, 128)
LIBRARIES = {  # of each kind of file: a library, and how it reads all events into memory
    "AEDAT 4.0": ("aedat", lambda aedat, path: [packet["events"] for packet in aedat.Decoder(str(path))]),
    "EVT 3.0": ("evt3", lambda evt3, path: evt3.decode_file(str(path))),
    ".raw": ("expelliarmus", lambda expelliarmus, path: expelliarmus.Wizard(encoding="evt2").read(path)),
    ".dat": ("expelliarmus", lambda expelliarmus, path: expelliarmus.Wizard(encoding="dat").read(path)),
    ".csv": ("pandas", lambda pandas, path: pandas.read_csv(path)),
    ".txt": ("pandas", lambda pandas, path: pandas.read_csv(path, sep=" ", header=None)),
    ".h5": ("h5py", lambda h5py, path: [column[:] for column in h5py.File(path)["events"].values()]),
    ".npy": ("numpy", lambda numpy, path: numpy.load(path)),
    ".npz": ("numpy", lambda numpy, path: dict(numpy.load(path))),
    ".mat": ("scipy", lambda scipy, path: scipy.io.loadmat(path)),
}


def simulated(count):
    """Events at random pixels of the sensor, ordered by time."""
    random = np.random.default_rng(0)
    events = np.empty(count, EVENT)
    events["x"], events["y"] = random.integers(128, size=(2, count))
    events["t"] = np.sort(random.integers(6_000_000, size=count))
    events["p"] = random.random(count) < 0.5
    return events


def as_aedat3(events, per_packet):
    """The bytes of an AEDAT 3.1 file with `per_packet` events in each packet."""
    x, y, p, t = (events[name].astype("<u4") for name in "xypt")
    words = np.stack([1 | p << 1 | y << 2 | x << 17, t], axis=1)
    parts = [b"#!AER-DAT3.1\r\n#!END-HEADER\r\n"]
    for first in range(0, len(words), per_packet):
        part = words[first : first + per_packet]
        parts += [struct.pack("<hhiiiiii", 1, 1, 8, 4, 0, len(part), len(part), len(part)), part.tobytes()]
    return b"".join(parts)


def as_aedat2(events):
    """The bytes of an AEDAT 2.0 file of a DVS128."""
    x, y, p, t = (events[name].astype(">u4") for name in "xypt")
    return b"#!AER-DAT2.0\r\n" + np.stack([1 - p | (127 - x) << 1 | (127 - y) << 8, t], axis=1).astype(">u4").tobytes()


def as_aedat4(events, per_packet, pack=None):
    """The bytes of an AEDAT 4.0 file: a FlatBuffer as header, then a FlatBuffer for each packet."""
    xml = (
        b'<dv><node name="outInfo"><node name="0"><attr key="typeIdentifier">EVTS</attr><node name="info">'
        b'<attr key="sizeX">128</attr><attr key="sizeY">128</attr></node></node></node></dv>'
    )
    table = struct.pack("<5H2xiiqI4x", 10, 24, 4, 8, 16, 12, 1 if pack else 0, -1, 8) + struct.pack("<I", len(xml))
    header = struct.pack("<I4s", 20, b"IOHE") + table + xml + b"\0"
    fields = {"names": ("t", "x", "y", "p"), "formats": ("<i8", "<i2", "<i2", "?"), "itemsize": 16}
    words = np.zeros(len(events), fields)
    for name in "txyp":
        words[name] = events[name]
    parts = [b"#!AER-DAT4.0\r\n", struct.pack("<I", len(header)), header]
    for first in range(0, len(words), per_packet):
        part = words[first : first + per_packet]
        packet = struct.pack("<I4s3H2xiII", 16, b"EVTS", 6, 8, 4, 8, 4, len(part)) + part.tobytes()
        packet = struct.pack("<I", len(packet)) + packet
        packet = pack(packet) if pack else packet
        parts += [struct.pack("<ii", 0, len(packet)), packet]
    return b"".join(parts)


def as_evt3(events):
    """The bytes of an EVT 3.0 file whose words of time and row only stand where these change."""
    x, y, p, t = (events[name].astype("<u2" if name != "t" else np.int64) for name in "xypt")
    words = np.stack([0x8000 | t >> 12 & 0xFFF, 0x6000 | t & 0xFFF, y, 0x2000 | p << 11 | x], axis=1).astype("<u2")
    new_high, new_low, new_row = (np.diff(words[:, column], prepend=0xFFFF) != 0 for column in range(3))
    said = np.stack([new_high, new_high | new_low, new_row, np.ones(len(events), bool)], axis=1)
    return b"% format EVT3;height=128;width=128\n% end\n" + words[said].tobytes()


def as_nmnist(events):
    """The bytes of a .bin file of N-MNIST."""
    low = events["p"].astype(np.int64) << 23 | events["t"]
    return np.stack([events["x"], events["y"], low >> 16, low >> 8 & 255, low & 255], axis=1).astype(np.uint8).tobytes()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--events", type=int, default=4_000_000)
    args = parser.parse_args()
    events = simulated(args.events)
    with tempfile.TemporaryDirectory() as folder:
        files = {
            "N-MNIST": (".bin", as_nmnist(events)),
            "AEDAT 2.0": (".aedat", as_aedat2(events)),
            "AEDAT 4.0": (".aedat4", as_aedat4(events, 4096)),
            "EVT 3.0": (".raw", as_evt3(events)),
        }
        if importlib.util.find_spec("lz4"):
            pack = importlib.import_module("lz4.frame").compress
            files["AEDAT 4.0, LZ4"] = (".aedat4", as_aedat4(events, 4096, pack))
        for per_packet in (4096, 1000, 100, 30, 8):
            files[f"AEDAT 3.1, {per_packet} events a packet"] = (".aedat", as_aedat3(events, per_packet))
        paths = {name: Path(folder) / f"{name}{suffix}" for name, (suffix, _) in files.items()}
        for name, (_, raw) in files.items():
            paths[name].write_bytes(raw)
        for suffix in WRITERS:
            if suffix != ".h5" or importlib.util.find_spec("h5py"):
                paths[suffix] = Path(folder) / f"written{suffix}"
                write_recording(paths[suffix], events, SENSOR)
        if importlib.util.find_spec("scipy"):
            paths[".mat"] = Path(folder) / "written.mat"
            columns = [events["t"], 0 * events["t"], 0 * events["t"], events["x"], events["y"], events["p"]]
            importlib.import_module("scipy.io").savemat(paths[".mat"], {"out1": np.stack(columns, axis=1, dtype=float)})
        runs = {}
        for name, path in paths.items():
            runs[f"read {name}"] = partial(Recording(path).load, SENSOR)
            library, read = LIBRARIES.get(name.partition(",")[0], (None, None))
            if library and importlib.util.find_spec(library):
                runs[f"read {name} by {library}"] = partial(read, importlib.import_module(library), path)
        for split, size in itertools.product(SPLITS, (SENSOR, (48, 48))):
            framing = framing_of(split, SENSOR, size, timesteps=10, frame_ms=30.0, most_frames=10_000)
            runs[f"frame by {split} to {size[0]}x{size[1]}"] = partial(count_frames, events, framing)
        for name, times_s in in_turns(runs, args.repeats, "cpu").items():
            of_times = {"median": "median", "q25": "q75", "q75": "q25"}  # the longest times are the lowest rates
            rates = {key: round(args.events / times_s[name] / 1e6, 1) for key, name in of_times.items()}
            report("events", "cpu", work=name, events=args.events, repeats=args.repeats, million_per_s=rates)


if __name__ == "__main__":
    main()

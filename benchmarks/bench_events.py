"""Events per second that are read and framed, on one thread; one JSON line per result.

    taskset -c 0 python benchmarks/bench_events.py [--events 4000000] [--repeats 7]

Formats that can be written here are measured too, on files of `tools.data.events.writing`; HDF5 if h5py is installed.
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
        files = {"nmnist": ("nmnist.bin", as_nmnist(events))}
        for per_packet in (4096, 1000, 100, 30, 8):
            files[f"aedat3, {per_packet} events a packet"] = (f"{per_packet}.aedat", as_aedat3(events, per_packet))
        runs = {}
        for name, (file, raw) in files.items():
            path = Path(folder) / file
            path.write_bytes(raw)
            runs[f"read {name}"] = partial(Recording(path).load, SENSOR)
        for suffix in WRITERS:
            if suffix in (".h5", ".hdf5") and importlib.util.find_spec("h5py") is None:
                continue
            path = Path(folder) / f"written{suffix}"
            write_recording(path, events, SENSOR)
            runs[f"read {suffix}"] = partial(Recording(path).load, SENSOR)
        for split, size in itertools.product(SPLITS, (SENSOR, (48, 48))):
            framing = framing_of(split, SENSOR, size, timesteps=10, frame_ms=30.0, most_frames=10_000)
            runs[f"frame by {split} to {size[0]}x{size[1]}"] = partial(count_frames, events, framing)
        for name, times_s in in_turns(runs, args.repeats, "cpu").items():
            rates = {key: round(args.events / time_s / 1e6, 1) for key, time_s in times_s.items()}
            report("events", "cpu", work=name, events=args.events, repeats=args.repeats, million_per_s=rates)


if __name__ == "__main__":
    main()

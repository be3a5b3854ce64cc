"""Files and folders of events, written byte by byte from the specifications and not by what is tested."""

import struct

import numpy as np

from tools.data.events.trees import CALTECH101_CLASSES, CIFAR10_CLASSES

EVENTS = [(5, 7, 10, 1), (127, 0, 12, 0), (0, 127, 12, 1), (64, 32, 500, 0)]  # x, y, t, p


def aedat3(events=EVENTS, overflow=0):
    """Two polarity packets around a packet of special events; each has an invalid event too."""
    file = b"#!AER-DAT3.1\r\n#Format: RAW\r\n#Source 1: DVS128\r\n#!END-HEADER\r\n"
    for part in (events[:2], events[2:]):
        body = b"".join(struct.pack("<Ii", 1 | p << 1 | y << 2 | x << 17, t) for x, y, t, p in part)
        body += struct.pack("<Ii", 3 << 17, 0)  # not valid
        count = len(part) + 1
        file += struct.pack("<hhiiiiii", 1, 1, 8, 4, overflow, count, count, len(part)) + body
        file += struct.pack("<hhiiiiii", 0, 1, 12, 4, 0, 1, 1, 1) + bytes(12)
    return file


def aedat2(events=EVENTS):
    file = b"#!AER-DAT2.0\r\n# This is a raw AE data file\r\n# Timestamps tick is 1 us\n"
    for x, y, t, p in events:
        file += struct.pack(">Ii", 1 - p | (127 - x) << 1 | (127 - y) << 8, t)
    return file + struct.pack(">Ii", 1 << 15, 600)  # an external event


def nmnist(events=EVENTS):
    return b"".join(
        struct.pack(">BBI", x, y, p << 23 | t)[:2] + (p << 23 | t).to_bytes(3, "big") for x, y, t, p in events
    )


def touch(path, content=b"\0" * 5):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def nmnist_tree(folder):
    for part, count in (("Train", 3), ("Test", 2)):
        for digit in range(10):
            for number in range(count):
                touch(folder / part / str(digit) / f"{10 * digit + number:05d}.bin")


def striped_nmnist_tree(folder, training=20, test=4, count=200, longer=0):
    """N-MNIST whose digit d is `count` events in the rows from 3 d to 3 d + 2: easy to learn.

    Each recording has `longer` events more than the one before; events are 1 ms apart.
    """
    shortest = count
    random = np.random.default_rng(0)
    for part, recordings in (("Train", training), ("Test", test)):
        for digit in range(10):
            for number in range(recordings):
                count = shortest + number * longer
                rows, columns = 3 * digit + random.integers(3, size=count), random.integers(34, size=count)
                polarities = random.integers(2, size=count)
                events = [(x, y, 1000 * at, p) for at, (x, y, p) in enumerate(zip(columns, rows, polarities.tolist()))]
                touch(folder / part / str(digit) / f"{number:05d}.bin", nmnist(events))


def gesture_events(start, count=4):
    return [(5 + number, 7, start + number, number % 2) for number in range(count)]


def official_gestures(folder, labels=(1, 2, 11), training=2):
    """Users from 1 to `training` train, the next one tests; each makes these gestures, one after the other."""
    for user in range(1, training + 2):
        part = "train" if user <= training else "test"
        name = f"user{user:02d}_fluorescent"
        with open(folder / f"trials_to_{part}.txt", "a") as trials:
            trials.write(f"{name}.aedat\n")
        events = [event for gesture in range(len(labels)) for event in gesture_events(1000 * gesture)]
        touch(folder / f"{name}.aedat", aedat3(events))
        rows = [f"{label},{1000 * gesture},{1000 * gesture + 3}" for gesture, label in enumerate(labels)]
        (folder / f"{name}_labels.csv").write_text("\n".join(["class,startTime_usec,endTime_usec", *rows, ""]))


def columns(count=4):
    return {name: np.arange(count) % 2 if name == "p" else np.arange(count) for name in "xytp"}


def spikingjelly_gestures(folder):
    for part, users in (("train", (1, 2)), ("test", (3,))):
        for user in users:
            for label in (0, 1, 10):
                path = folder / "events_np" / part / str(label) / f"user{user:02d}_0.npz"
                path.parent.mkdir(parents=True, exist_ok=True)
                np.savez(path, **columns())


def tonic_gestures(folder):
    for part, users in (("Train", (1, 2)), ("Test", (3,))):
        for user in users:
            for label in (0, 1, 10):
                path = folder / f"ibmGesture{part}" / f"user{user:02d}_led" / f"{label}.npy"
                path.parent.mkdir(parents=True, exist_ok=True)
                np.save(path, np.stack([columns()[name] for name in "xypt"], axis=1))


def caltech101_tree(folder, count=10, events=EVENTS):
    for name in (*CALTECH101_CLASSES, "BACKGROUND_Google"):
        for number in range(1, count + 1):
            touch(folder / name / f"image_{number:04d}.bin", nmnist(events))


def ncars_tree(folder, train="n-cars_train", test="n-cars_test", training=3):
    """N-CARS, in Prophesee's format .dat: lines of text, type and size of an event, then time and x, y, polarity."""
    file = b"% Data file containing CD events\n% Version 2\n% Width 304\n% Height 240\n" + bytes([0x0C, 8])
    for x, y, t, p in EVENTS:
        file += struct.pack("<II", t, min(x, 119) | min(y, 99) << 14 | p << 28)
    for part, count in ((train, training), (test, 2)):
        for name in ("background", "cars"):
            for number in range(count):
                touch(folder / part / name / f"obj_{number:06d}_td.dat", file)


def shd_files(folder, training=3, test=1):
    """The Heidelberg spoken digits, as h5py writes them: each recording of class k has four spikes, from channel k."""
    import h5py

    folder.mkdir(parents=True, exist_ok=True)
    for part, count in (("train", training), ("test", test)):
        labels = np.arange(20 * count) % 20
        with h5py.File(folder / f"shd_{part}.h5", "w") as file:
            times = file.create_dataset("spikes/times", (len(labels),), h5py.vlen_dtype(np.float16))
            units = file.create_dataset("spikes/units", (len(labels),), h5py.vlen_dtype(np.uint16))
            for row, label in enumerate(labels):
                times[row], units[row] = [0.0, 0.25, 0.5, 0.75], label + 30 * np.arange(4)
            file["labels"] = labels.astype(np.uint16)


def cifar10_tree(folder, suffix, count=10):
    for name in CIFAR10_CLASSES:
        for number in range(count):
            path = folder / name / f"cifar10_{name}_{number}.{suffix}"
            touch(path, aedat2() if suffix == "aedat" else b"x")

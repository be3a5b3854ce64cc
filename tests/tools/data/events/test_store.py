"""Stores of frames: complete after interruptions, rebuilt when damaged, keyed by what they hold."""

import concurrent.futures
import dataclasses
import logging
import multiprocessing
import os
import resource
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from tests.tools.data.events.written import aedat3
from tools.data.events import EVENT, store
from tools.data.events.frames import Framing, count_frames
from tools.data.events.labelled import LabelledRecordings
from tools.data.events.reading import EventFormatError
from tools.data.events.recordings import Recording
from tools.data.events.store import FrameStore, stored_streams
from tools.errors import UserError
from tools.perturb.events import drop_random

FRAMING = Framing(4, "count", (34, 34), (17, 17))


@pytest.fixture
def recordings(tmp_path, monkeypatch):
    """Ten recordings in N-MNIST's format, two classes; stores have three recordings in a shard."""
    monkeypatch.setattr(store, "SHARD", 3)
    random = np.random.default_rng(0)
    found = []
    for number in range(10):
        events = b"".join(
            bytes([*random.integers(34, size=2)]) + (int(p) << 23 | time).to_bytes(3, "big")
            for time, p in enumerate(random.random(50 + number) < 0.5)
        )
        path = tmp_path / f"{number}.bin"
        path.write_bytes(events)
        found.append(Recording(path, number % 2))
    return found


def frames_of(recordings):
    return np.stack([count_frames(recording.load((34, 34))[0], FRAMING) for recording in recordings])


def make(recordings, tmp_path, **options):
    return FrameStore("test", recordings, FRAMING, workers=1, folder=tmp_path / "cache", **options)


def test_a_store_has_the_frames_of_each_recording_in_a_small_type(recordings, tmp_path):
    made = make(recordings, tmp_path)
    assert (made[[9, 0, 4]] == frames_of(recordings)[[9, 0, 4]]).all()
    assert made[[0]].dtype == np.uint8 and len(made) == 10


def test_several_processes_make_the_same_store_of_much_data(recordings, tmp_path, monkeypatch):
    def time_of_others():
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    def by_others(folder, workers):
        """Whether processes of their own made a store."""
        before = time_of_others()
        made = FrameStore("test", recordings, FRAMING, workers=workers, folder=tmp_path / folder)
        assert (made[range(10)] == frames_of(recordings)).all()
        return time_of_others() > before

    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert not by_others("little", 2)
    monkeypatch.setattr(store, "BYTES_PER_PROCESS", 1)
    assert by_others("much", 2) and not by_others("alone", 1)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert not by_others("unknown", 2)


def test_an_interrupted_store_is_completed_and_whole_shards_are_kept(recordings, tmp_path, monkeypatch):
    original, calls = store.make_shard, []

    def fails_at_the_third(*job):
        calls.append(job)
        if len(calls) == 3:
            raise KeyboardInterrupt
        original(*job)

    monkeypatch.setattr(store, "make_shard", fails_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        make(recordings, tmp_path)
    whole = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.npy")}
    made = make(recordings, tmp_path)
    assert whole and all(path.stat().st_mtime_ns == time for path, time in whole.items())
    assert (made[range(10)] == frames_of(recordings)).all()
    assert not list((tmp_path / "cache").rglob("*.part"))


KILLED = """
import pathlib, sys, time
sys.path.insert(0, {repository!r})
from tools.data.events import store
from tools.data.events.frames import Framing
from tools.data.events.recordings import Recording

store.SHARD = 3
frame, recordings = store.count_frames, [Recording(pathlib.Path(path), 0) for path in {paths!r}]
seen = []

def slow(events, framing):
    seen.append(1)
    if len(seen) > 4:  # in the second shard
        print("waiting", flush=True)
        time.sleep(3600)
    return frame(events, framing)

store.count_frames = slow
store.FrameStore("test", recordings, Framing(4, "count", (34, 34), (17, 17)), workers=1, folder={folder!r})
"""


def test_a_store_survives_that_its_process_is_killed(recordings, tmp_path, repository):
    paths = [str(recording.path) for recording in recordings]
    script = KILLED.format(repository=str(repository), paths=paths, folder=str(tmp_path / "cache"))
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "waiting\n"
    process.kill()
    assert process.wait() == -signal.SIGKILL
    (folder,) = (tmp_path / "cache").iterdir()
    first = (folder / "00000.npy").stat().st_mtime_ns
    assert not (folder / "00001.json").exists()
    made = make(recordings, tmp_path)
    assert made.folder == folder and (made[range(10)] == frames_of(recordings)).all()
    assert (folder / "00000.npy").stat().st_mtime_ns == first


@pytest.mark.slow
def test_two_processes_may_make_the_same_store_at_once(recordings, tmp_path):
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(_frame, [recordings] * 4, [tmp_path / "cache"] * 4))
    assert (make(recordings, tmp_path)[range(10)] == frames_of(recordings)).all()
    assert not list((tmp_path / "cache").rglob("*.part"))


def _frame(recordings, folder):
    FrameStore("test", recordings, FRAMING, workers=1, folder=folder)


@pytest.mark.parametrize("suffix", ["npy", "json"])
@pytest.mark.parametrize(
    "damage", [lambda raw: raw[:-1], lambda raw: raw[:60] + bytes([raw[60] ^ 1]) + raw[61:], lambda raw: b""]
)
def test_a_damaged_shard_is_made_anew(recordings, tmp_path, suffix, damage, caplog):
    path = make(recordings, tmp_path).folder / f"00001.{suffix}"
    path.write_bytes(damage(path.read_bytes()))
    made = make(recordings, tmp_path)
    assert (made[range(10)] == frames_of(recordings)).all()


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw.replace(b'"skipped": {}', b'"skipped": {"0": "x"}'),
        lambda raw: raw.replace(b"skipped", b"skjpped"),
        lambda raw: raw.replace(b'"crc32"', b'"crc33"'),
        lambda raw: b"[" * 100_000,
        lambda raw: b"7",
    ],
)
def test_a_damaged_report_is_seen(recordings, tmp_path, damage):
    path = make(recordings, tmp_path).folder / "00001.json"
    raw = path.read_bytes()
    path.write_bytes(damage(raw))
    assert path.read_bytes() != raw
    assert not make(recordings, tmp_path).skipped and path.read_bytes() == raw


def test_a_passing_error_does_not_skip_a_recording(recordings, tmp_path, monkeypatch):
    def too_many(*_):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(Recording, "load", too_many)
    with pytest.raises(OSError, match="Too many"):
        make(recordings, tmp_path, lenient=True)
    monkeypatch.undo()
    assert not make(recordings, tmp_path, lenient=True).skipped


def test_parts_of_one_file_count_their_own_dropped_events_and_see_it_change(tmp_path):
    path = tmp_path / "a.aedat"
    path.write_bytes(aedat3([(5, 7, 10, 1), (200, 7, 20, 1), (5, 7, 30, 1), (6, 7, 40, 0)]))
    parts = [Recording(path, 0, window_us=window) for window in ((0, 15), (15, 35), (35, 50))]
    assert [len(part.load((128, 128), lenient=True)[0]) for part in parts] == [1, 1, 1]
    made = FrameStore("test", parts, Framing(2, "count", (128, 128), (8, 8)), True, workers=1, folder=tmp_path / "c")
    assert made.dropped == {"outside": 1} and made[range(3)].sum() == 3
    assert made.dropped_of == {f"{path} (15, 35)": {"outside": 1}}
    wrong = path.read_bytes().index(b"\x1f\0\x90\1")  # its 16 bits of y and polarity, and 15 of x
    with pytest.raises(EventFormatError, match=rf"byte {wrong}: event 0: expected a pixel of 128x128, got \(200"):
        parts[1].load((128, 128))
    parts[2].load((128, 128))  # what is wrong elsewhere in the file does not matter
    with pytest.raises(EventFormatError, match="a.aedat, byte 0: expected events from 50 to 60 us"):
        Recording(path, 0, window_us=(50, 60)).load((128, 128))
    path.write_bytes(aedat3([(5, 7, 10, 1), (9, 9, 11, 1)]))
    assert len(parts[0].load((128, 128))[0]) == 2


def test_what_a_file_has_lost_is_counted_once_whatever_its_parts(tmp_path, monkeypatch):
    monkeypatch.setattr("tools.data.events.store.SHARD", 2)
    path = tmp_path / "a.aedat"
    path.write_bytes(aedat3([(5, 7, 10, 1), (5, 7, -20, 1), (5, 200, 30, 1), (6, 7, 40, 0), (6, 7, 41, 0)]) + b"cut")
    parts = [Recording(path, 0, window_us=window) for window in ((0, 15), (15, 41), (41, 50))]
    made = FrameStore("test", parts, Framing(2, "count", (128, 128), (8, 8)), True, workers=1, folder=tmp_path / "c")
    assert made.dropped_of == {
        str(path): {"truncated": 1, "impossible": 1},
        f"{path} (15, 41)": {"outside": 1},
    }
    assert made.dropped == {"truncated": 1, "impossible": 1, "outside": 1}


def test_what_else_is_in_a_file_is_counted_once_whatever_its_parts(tmp_path, monkeypatch):
    monkeypatch.setattr("tools.data.events.store.SHARD", 2)
    parts = []
    for name in "ab":
        (tmp_path / name).write_bytes(aedat3())
        parts += [Recording(tmp_path / name, 0, window_us=window) for window in ((0, 11), (11, 13), (13, 501))]
    made = FrameStore("test", parts, Framing(2, "count", (128, 128), (8, 8)), workers=1, folder=tmp_path / "c")
    assert made.counts == {"special": 4, "invalid": 4} and made[range(6)].sum() == 8


def test_another_framing_or_a_changed_file_has_a_store_of_its_own(recordings, tmp_path):
    folder = make(recordings, tmp_path).folder
    other = FrameStore(
        "test", recordings, dataclasses.replace(FRAMING, timesteps=5), folder=tmp_path / "cache", workers=1
    )
    assert other.folder != folder and other[[0]].shape[1] == 5
    recordings[3].path.write_bytes(recordings[3].path.read_bytes()[:-5])
    assert make(recordings, tmp_path).folder not in (folder, other.folder)


def test_a_damaged_recording_stops_a_strict_store_and_is_reported_by_a_lenient_one(recordings, tmp_path):
    recordings[4].path.write_bytes(b"\x01\x02\x03")
    recordings[6].path.unlink()
    with pytest.raises(EventFormatError, match="4.bin"):
        make(recordings, tmp_path)
    made = make(recordings, tmp_path, lenient=True)
    assert list(made.skipped) == [4, 6] and "truncated" in made.skipped[4] and "6.bin" in made.skipped[6]
    assert make(recordings, tmp_path, lenient=True).skipped == made.skipped
    assert (made[[3, 5]] == frames_of([recordings[3], recordings[5]])).all()
    with pytest.raises(EventFormatError, match="4.bin"):  # a strict store does not leave out what a lenient one did
        make(recordings, tmp_path)


def test_a_strict_store_is_not_made_of_what_a_lenient_one_has_left_out(tmp_path):
    np.savez(tmp_path / "a.npz", x=[1, -1, 3], y=[1, 2, 3], t=[1, 2, 3], p=[0, 1, 0])
    made = make([Recording(tmp_path / "a.npz", 0)], tmp_path, lenient=True)
    assert made.dropped_of == {str(tmp_path / "a.npz"): {"impossible": 1}}
    assert not made.counts and made[[0]].sum() == 2
    with pytest.raises(EventFormatError, match="event 1: expected a whole x"):
        make([Recording(tmp_path / "a.npz", 0)], tmp_path)


def test_a_lenient_store_counts_the_events_it_drops(recordings, tmp_path):
    raw = bytearray(recordings[2].path.read_bytes())
    raw[0], raw[-1] = 200, 0  # the first outside the sensor, the last earlier than the one before
    recordings[2].path.write_bytes(raw)
    made = make(recordings, tmp_path, lenient=True)
    assert not made.skipped and made.dropped == {"outside": 1, "decreasing": 1}
    assert made[[2]].sum() == 52 - 2
    data = LabelledRecordings(recordings, made, np.arange(10), torch.zeros(10), FRAMING, "count")
    with pytest.raises(EventFormatError, match="2.bin"):
        data.events(2)
    assert len(dataclasses.replace(data, lenient=True).events(2)) == 52 - 2


def test_whole_recordings_have_one_store_for_strict_and_lenient(recordings, tmp_path, monkeypatch):
    made = make(recordings, tmp_path)
    monkeypatch.setattr(store, "make_shard", None)
    assert make(recordings, tmp_path, lenient=True).folder == made.folder


def test_streams_are_made_once(tmp_path, caplog):
    calls = []

    def maker():
        calls.append(1)
        events = np.zeros(30, EVENT)
        events["t"] = np.arange(30)
        return events, np.array([10, 12, 30]), np.array([len(calls), 0, 1])

    for _ in range(2):
        streams = stored_streams("streams", maker, tmp_path)
    assert [stream.label for stream in streams] == [1, 0, 1]
    assert [stream.load((34, 34))[0]["t"].tolist() for stream in streams] == [[*range(10)], [10, 11], [*range(12, 30)]]
    (tmp_path / "streams.npy").write_bytes(b"garbage")
    with caplog.at_level(logging.WARNING):
        assert stored_streams("streams", maker, tmp_path)[0].label == 2
    assert "damaged" in caplog.text
    report = tmp_path / "streams.json"
    report.write_bytes(report.read_bytes().replace(b"[10, 12, 30]", b"[10, 18, 30]"))
    streams = stored_streams("streams", maker, tmp_path)
    assert streams[0].label == 3 and [len(stream.load((34, 34))[0]) for stream in streams] == [10, 2, 18]


def test_batches_have_time_first_and_perturbed_recordings_are_framed_anew(recordings, tmp_path):
    labels = torch.tensor([recording.label for recording in recordings])
    data = LabelledRecordings(recordings, make(recordings, tmp_path), np.arange(10), labels, FRAMING, "count")
    (frames, target), _ = data.batches(6, "cpu")
    assert frames.shape == (4, 6, 2, 17, 17) and target.tolist() == labels[:6].tolist()
    assert (frames.numpy() == frames_of(recordings)[:6].swapaxes(0, 1)).all()
    odd = data.subset([1, 3]).subset([1])
    assert (next(iter(odd.batches(1, "cpu")))[0][:, 0].numpy() == frames_of(recordings)[3]).all()
    fewer = data.perturbed(drop_random, 0.5, seed=1)
    sums = [batch.sum((0, 2, 3, 4)) for batch, _ in fewer.batches(10, "cpu")]
    assert sums[0].tolist() == [50 + number - round(0.5 * (50 + number)) for number in range(10)]
    again = data.perturbed(drop_random, 0.5, seed=1)
    assert (again.counts == fewer.counts).all() and (
        data.perturbed(drop_random, 0.5, seed=2).counts != fewer.counts
    ).any()


def test_frames_by_duration_have_zeros_after_the_end_of_shorter_recordings(recordings, tmp_path):
    """The recordings last 49 to 58 us, their events being 1 us apart."""
    framing = Framing(9, "duration", (34, 34), (17, 17), 8)
    made = FrameStore("test", recordings, framing, workers=1, folder=tmp_path / "cache")
    assert made.lengths.tolist() == [7] * 8 + [8] * 2
    each = [count_frames(recording.load((34, 34)).events, framing) for recording in recordings]
    assert made[[0, 3]].shape[1] == 7 and made[[0, 9]].shape[1] == 8
    assert (made[[9, 2]][0] == each[9]).all() and (made[[9, 2]][1, :7] == each[2]).all()
    assert not made[[9, 2]][1, 7].any()
    labels = torch.tensor([recording.label for recording in recordings])
    data = LabelledRecordings(recordings, made, np.arange(10), labels, framing, "count", lengths=made.lengths)
    (batch, *_, last) = data.subset([8, 0, 1]).batches(2, torch.device("cpu"))
    assert batch[0].shape == (8, 2, 2, 17, 17) and batch[2].tolist() == [8, 7]
    assert last[0].shape == (7, 1, 2, 17, 17) and last[2].tolist() == [7]
    fewer = data.perturbed(lambda events, *_: events[: len(events) // 2], 1.0, 0)
    assert fewer.lengths.tolist() == [-(-(len(one) // 2 - 1) // 8) for one in (range(50 + n) for n in range(10))]
    assert FrameStore("test", recordings, FRAMING, workers=1, folder=tmp_path / "cache").lengths is None


def test_a_recording_of_too_many_frames_is_named(recordings, tmp_path):
    framing = Framing(7, "duration", (34, 34), (17, 17), 8)
    with pytest.raises(UserError, match="8.bin: expected at most 7 frames, got 8"):
        FrameStore("test", recordings, framing, workers=1, folder=tmp_path / "cache")
    made = FrameStore("test", recordings, framing, True, 1, tmp_path / "cache")
    assert list(made.skipped) == [8, 9] and made.lengths.tolist() == [7] * 8 + [1] * 2


def test_parts_of_one_file_have_names_of_their_own(tmp_path):
    path = tmp_path / "a"
    parts = [Recording(path), Recording(path, row=0), Recording(path, row=1), Recording(path, window_us=(0, 5))]
    assert [part.name for part in parts] == [str(path), f"{path} 0", f"{path} 1", f"{path} (0, 5)"]

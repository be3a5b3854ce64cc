"""The Heidelberg spoken digits, in files written with h5py, and the chirps that stand in for them."""

import sys

import numpy as np
import pytest
import torch

from dataset_utils import DATASETS
from tests.tools.data.events.written import shd_files
from tools.config.train import TrainConfig
from tools.data.events import EVENT, spikes
from tools.data.events.frames import Framing, count_frames
from tools.data.events.reading import EventFormatError
from tools.data.events.recordings import Recording
from tools.data.events.spikes import CHANNELS, DIGITS, make_chirps
from tools.data.events.store import FrameStore
from tools.data.events.trees import TREES, recognise
from tools.errors import UserError

h5py = pytest.importorskip("h5py")
LIST = TREES["shd"].list_recordings
SENSOR = (700, 1)
VARIABLE = {"times": h5py.vlen_dtype(np.float16), "units": h5py.vlen_dtype(np.uint16)}


def write(path, times=([0.5, 0.25],), units=([7, 699],), labels=(3,), kinds=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, rows in (("times", times), ("units", units)):
            kind = (kinds or {}).get(name, VARIABLE[name])
            data = file.create_dataset(f"spikes/{name}", (len(rows),), kind)
            for number, row in enumerate(rows):
                data[number] = row
        file["labels"] = np.array(labels, np.uint16)
    return path


def test_a_recording_is_its_spikes_in_the_order_of_time(tmp_path):
    path = write(tmp_path / "a.h5", times=([1.0], [0.5, 0.25, 0.25]), units=([0], [7, 699, 3]), labels=(0, 1))
    events = Recording(path, row=1).load(SENSOR).events
    assert events.dtype == EVENT
    assert events.tolist() == [(699, 0, 250_000, True), (3, 0, 250_000, True), (7, 0, 500_000, True)]


@pytest.mark.parametrize("inside", ["", "SHD", "extract", "events_h5"])
def test_the_official_parts_are_found(tmp_path, inside):
    shd_files(tmp_path / inside, training=2, test=1)
    train, test = LIST(tmp_path, "")
    assert [recording.label for recording in test] == list(range(20))
    assert [recording.row for recording in train] == list(range(40))
    assert recognise(tmp_path)[0] == "shd"


def test_a_part_that_is_missing_is_named(tmp_path):
    shd_files(tmp_path)
    (tmp_path / "shd_test.h5").unlink()
    with pytest.raises(FileNotFoundError, match="shd_test.h5 is missing: unpack"):
        LIST(tmp_path, "")


def test_spikes_of_the_speech_commands_can_be_read_but_are_not_taken_for_digits(tmp_path):
    shd_files(tmp_path)
    write(tmp_path / "shd_test.h5", labels=(34,))
    assert len(spikes.read_spikes(tmp_path / "shd_test.h5", 0).events) > 0
    with pytest.raises(EventFormatError, match="labels from 0 to 19, got 34 to 34"):
        LIST(tmp_path, "")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(units=([7],)), "one length"),
        (dict(units=([7, 700],)), "pixel of 700x1"),
        (dict(times=([0.5, np.nan],)), "spike 1: expected a channel and a time"),
        (dict(times=([-0.5, 1],)), "spike 0: expected a channel and a time"),
        (dict(units=([7, -1],), kinds={"units": h5py.vlen_dtype(np.int16)}), "spike 1"),
        (dict(times=([1, 2],), kinds={"times": h5py.vlen_dtype(np.int16)}), "one length"),
        (dict(units=([1.5, 2],), kinds={"units": h5py.vlen_dtype(np.float16)}), "one length"),
        (dict(times=([],), units=([],)), "expected events, got none"),
    ],
)
def test_damaged_spikes_are_errors(tmp_path, wrong, message):
    path = write(tmp_path / "a.h5", **wrong)
    with pytest.raises(EventFormatError, match=f"a.h5, byte 0: .*{message}"):
        Recording(path, row=0).load(SENSOR)
    with pytest.raises(EventFormatError, match="recording 5"):
        Recording(path, row=5).load(SENSOR)


def test_data_in_other_files_are_not_read(tmp_path):
    secret, path = write(tmp_path / "secret.h5"), tmp_path / "a.h5"
    for link in (h5py.ExternalLink(secret, "spikes"), h5py.SoftLink("/other")):
        with h5py.File(path, "w") as file:
            file["spikes"], file["labels"] = link, [1]
        with pytest.raises(EventFormatError, match="spikes/times is missing, or a link"):
            Recording(path, row=0).load(SENSOR)
    (tmp_path / "raw").write_bytes(bytes(8))
    with h5py.File(write(path), "a") as file:
        del file["labels"]
        file.create_dataset("labels", (4,), np.uint16, external=[(str(tmp_path / "raw"), 0, 8)])
    with pytest.raises(EventFormatError, match="labels is not a list in this file"):
        spikes.read_labels(path)
    with h5py.File(write(path), "a") as file:
        del file["labels"]
        layout = h5py.VirtualLayout((1,), np.uint16)
        layout[:] = h5py.VirtualSource(str(secret), "labels", (1,))
        file.create_virtual_dataset("labels", layout)
    with pytest.raises(EventFormatError, match="labels is not a list in this file"):
        spikes.read_labels(path)


@pytest.mark.parametrize("labels", [np.zeros((1, 1), int), np.zeros(1), np.zeros(2, int), np.array([b"a"])])
def test_labels_are_one_whole_number_for_each_recording(tmp_path, labels):
    with h5py.File(write(tmp_path / "a.h5"), "a") as file:
        del file["labels"]
        file["labels"] = labels
    with pytest.raises(EventFormatError, match="a.h5, byte 0: expected"):
        spikes.read_labels(tmp_path / "a.h5")


def test_a_truncated_file_is_an_error(tmp_path):
    """Other damage is not tried: libhdf5 does not return from a changed length in its heap of arrays."""
    whole = write(tmp_path / "whole.h5", times=3 * ([0.1, 0.2, 0.3],), units=3 * ([1, 2, 3],), labels=(1, 2, 3))
    raw = whole.read_bytes()
    for number, end in enumerate(range(0, len(raw), 97)):
        path = tmp_path / f"{number}.h5"
        path.write_bytes(raw[:end])
        with pytest.raises(EventFormatError, match=f"{number}.h5, byte 0: expected"):
            spikes.read_labels(path)


def test_h5py_is_named_where_it_is_missing(tmp_path, monkeypatch):
    shd_files(tmp_path)
    spikes._opened.cache_clear()
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UserError, match="pip install h5py"):
        LIST(tmp_path, "")


def test_frames_of_one_channel_have_the_events_of_both_polarities():
    events = np.zeros(5, EVENT)
    events["x"], events["t"], events["p"] = [0, 1, 699, 699, 350], np.arange(5), [1, 0, 1, 0, 1]
    frames = count_frames(events, Framing(2, "count", SENSOR, (2, 1), channels=1))
    assert frames.tolist() == [[[[2, 0]]], [[[0, 3]]]]


def test_the_input_of_networks_has_one_channel(tmp_path, monkeypatch):
    monkeypatch.setenv("NSNN_CACHE", str(tmp_path / "cache"))
    shd_files(tmp_path / "shd", training=2, test=1)
    config = TrainConfig(data_root=str(tmp_path), timestep=3, frame_values="count", workers=1)
    dataset = DATASETS["shd"]
    ((frames, labels),) = dataset.load(config).test.batches(20, torch.device("cpu"))
    assert frames.shape == (3, 20, 1, 1, 140) == (3, 20, *dataset.input_shape(config))
    assert dataset.input_shape(TrainConfig(frame_size=70)) == (1, 1, 70)
    assert frames.sum() == 20 * 4 and labels.tolist() == list(range(20))
    assert len(dataset.mean) == len(dataset.std) == 1


def test_chirps_are_those_of_their_class_in_the_order_of_time_and_the_same_for_a_seed():
    events, ends, labels = make_chirps(3, 0)
    assert np.bincount(labels).tolist() == [3] * 20 and ends[-1] == len(events) and events["p"].all()
    again, other = make_chirps(3, 0)[0], make_chirps(3, 1)[0]
    assert (again == events).all() and not np.array_equal(other, events)
    for label, one in zip(labels, np.split(events, ends[:-1])):
        assert (np.diff(one["t"]) >= 0).all() and one["x"].max() < CHANNELS
        quarter = len(one) // 4
        rises = np.median(one["x"][-quarter:]) > np.median(one["x"][:quarter])
        if label % 10 < 8:  # the others hardly move
            assert rises == (label < 10)


def test_the_demonstration_needs_no_file(tmp_path, monkeypatch):
    monkeypatch.setenv("NSNN_CACHE", str(tmp_path))
    parts = DATASETS["shd"].load(TrainConfig(demo=True, data_root="/nowhere", timestep=2, workers=1))
    assert {name: len(part) for name, part in vars(parts).items()} == {"train": 720, "val": 80, "test": 200}
    assert parts.train.labels.unique().tolist() == list(range(len(DIGITS)))
    with pytest.raises(UserError, match="--demo has no meaning for nmnist"):
        DATASETS["nmnist"].load(TrainConfig(demo=True))


def test_the_rows_of_a_file_have_frames_of_their_own(tmp_path):
    path = write(tmp_path / "a.h5", times=([0.5], [0.5]), units=([0], [699]), labels=(0, 1))
    recordings = [Recording(path, row=row) for row in (1, 0)]
    framing = Framing(1, "count", SENSOR, (2, 1), channels=1)
    for order in (recordings, recordings[::-1]):
        made = FrameStore("test", order, framing, workers=1, folder=tmp_path / "cache")
        assert made[[0, 1]][:, 0, 0, 0].tolist() == [[row == 0, row == 1] for row in (one.row for one in order)]

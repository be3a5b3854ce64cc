"""Frames: no event is lost, each is where it belongs."""

import importlib
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from tools.data.events import EVENT
from tools.data.events.frames import (
    Framing,
    cell_area,
    count_frames,
    edges_by_count,
    edges_by_duration,
    edges_by_time,
    edges_evenly,
    framing_of,
    stacked,
)
from tools.data.events.labelled import LabelledRecordings, frame_values
from tools.errors import UserError


def stream(count, sensor=(128, 96), seed=0, start=10**9):
    random = np.random.default_rng(seed)
    events = np.empty(count, EVENT)
    events["x"] = random.integers(sensor[0], size=count)
    events["y"] = random.integers(sensor[1], size=count)
    events["t"] = start + np.sort(random.integers(500_000, size=count))
    events["p"] = random.random(count) < 0.3
    return events


@pytest.mark.parametrize("split", ["count", "even", "time"])
@pytest.mark.parametrize("size", [(128, 96), (48, 48), (64, 32), (1, 1), (127, 5)])
@pytest.mark.parametrize("count", [0, 1, 7, 5003])
def test_framing_conserves_the_events_of_each_polarity(split, size, count):
    events = stream(count)
    frames = count_frames(events, Framing(10, split, (128, 96), size))
    assert frames.shape == (10, 2, size[1], size[0])
    assert frames[:, 1].sum() == events["p"].sum() and frames[:, 0].sum() == (~events["p"]).sum()


@pytest.mark.parametrize("split", ["count", "time"])
def test_each_event_is_in_its_frame_polarity_and_cell(split):
    events, framing = stream(999), Framing(4, split, (128, 96), (48, 31))
    expected = np.zeros((4, 2, 31, 48), dtype=int)
    start, duration = int(events["t"][0]), int(events["t"][-1] - events["t"][0]) + 1
    for index, (x, y, t, p) in enumerate(events.tolist()):
        by_time = (t - start) * 4 // duration
        by_count = min(index // (999 // 4), 3)
        expected[by_time if split == "time" else by_count, int(p), y * 31 // 96, x * 48 // 128] += 1
    assert (count_frames(events, framing) == expected).all()


def test_frames_by_count_have_equally_many_events_and_by_time_are_equally_long():
    events = stream(1003)
    for edges in (edges_by_count, edges_evenly, edges_by_time):
        assert edges(events[:0], 10).tolist() == [0] * 11
        assert len(edges(events, 10)) == 11 and edges(events, 10)[[0, -1]].tolist() == [0, 1003]
    assert np.diff(edges_by_count(events, 10)).tolist() == [100] * 9 + [103]
    assert np.diff(edges_evenly(events, 10)).tolist() == [100, 100, 100, 101, 100, 100, 101, 100, 100, 101]
    events["t"] = np.arange(1003)
    assert (np.abs(np.diff(edges_by_time(events, 10)) - 100.3) < 1).all()


def test_values_of_frames():
    counts = torch.tensor([[[[4, 0]], [[0, 2]]], [[[0, 0]], [[0, 0]]]])  # [T=2, 2, 1, 2]; the second frame is empty
    assert frame_values(counts, "normalised").tolist() == [[[[1, 0]], [[0, 0.5]]], [[[0, 0]], [[0, 0]]]]
    assert frame_values(counts, "count").tolist() == counts.tolist()
    assert frame_values(torch.tensor([[[0, 1]], [[2, 255]]]), "binary").tolist() == [[[0, 1]], [[1, 1]]]
    area = torch.tensor([[4.0, 1.0]])
    assert frame_values(counts, "normalised", area).tolist() == [[[[0.5, 0]], [[0, 1]]], [[[0, 0]], [[0, 0]]]]
    assert frame_values(counts, "count", area)[0].tolist() == [[[1, 0]], [[0, 2]]]
    for pixels in (None, area):
        assert frame_values(counts, "binary", pixels).sum() == 2
    with pytest.raises(ValueError, match="normalised"):
        frame_values(counts, "mean", area)


def test_a_way_to_fill_cells_that_nothing_computes_is_an_error():
    framing = Framing(1, "count", (2, 2), (2, 2))
    counts, labels = np.zeros((1, 1, 2, 2, 2), np.uint8), torch.zeros(1, dtype=torch.int64)
    data = LabelledRecordings([None], counts, np.arange(1), labels, framing, "count", "median")
    with pytest.raises(ValueError, match="sum or average; got 'median'"):
        data.batches(1, torch.device("cpu"))


def test_an_even_scene_is_even_on_average_where_cells_have_different_numbers_of_pixels():
    framing = Framing(1, "count", (128, 128), (48, 48))
    events = np.zeros(128 * 128, EVENT)
    events["y"], events["x"] = np.divmod(np.arange(128 * 128), 128)
    counts = torch.from_numpy(count_frames(events, framing).astype(np.int64))
    assert frame_values(counts, "normalised", torch.from_numpy(cell_area(framing)))[0, 0].unique().tolist() == [1]
    assert len(frame_values(counts, "normalised")[0, 0].unique()) == 3


def test_cells_cover_the_sensor():
    area = cell_area(Framing(1, "count", (128, 96), (48, 48)))
    assert area.shape == (48, 48) and area.sum() == 128 * 96 and area.min() == 4 and area.max() == 6


WRONG = [dict(split="events"), dict(timesteps=0), dict(size=(129, 96)), dict(size=(0, 4)), dict(split="duration")]
WRONG += [dict(frame_us=1), dict(split="duration", frame_us=-1)]


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_framings_are_refused(wrong):
    with pytest.raises(ValueError):
        Framing(**{**dict(timesteps=4, split="count", sensor=(128, 96), size=(48, 48)), **wrong})


SENSOR = (20, 12)


@pytest.fixture
def theirs(monkeypatch):
    """spikingjelly.datasets.utils, without the other modules of its package, which need more libraries."""
    library = pytest.importorskip("spikingjelly")
    package = types.ModuleType("spikingjelly.datasets")
    package.__path__ = [str(Path(library.__file__).with_name("datasets"))]
    monkeypatch.setitem(sys.modules, package.__name__, package)
    return importlib.import_module("spikingjelly.datasets.utils")


@pytest.mark.parametrize("count", [10, 37, 1003])
@pytest.mark.parametrize("timesteps", [1, 4, 10])
def test_frames_by_count_are_those_of_spikingjelly(theirs, count, timesteps):
    events = stream(count, SENSOR)
    columns = {name: events[name] for name in "txyp"}
    wanted = theirs.integrate_events_by_fixed_frames_number(columns, "number", timesteps, SENSOR[1], SENSOR[0])
    assert np.array_equal(count_frames(events, Framing(timesteps, "count", SENSOR, SENSOR)), wanted)


@pytest.mark.parametrize("frame_ms", [1, 30, 100, 499, 700])
def test_frames_by_duration_are_those_of_spikingjelly(theirs, frame_ms):
    events = stream(400, SENSOR)
    events["t"][-1] = events["t"][0] + 500_000  # a whole number of frames of 1 or 100 ms
    columns = {name: events[name] for name in "txyp"}
    wanted = theirs.integrate_events_by_fixed_duration(columns, 1000 * frame_ms, SENSOR[1], SENSOR[0])
    framing = framing_of("duration", SENSOR, SENSOR, timesteps=3, frame_ms=frame_ms, most_frames=500)
    assert np.array_equal(count_frames(events, framing), wanted)


def test_frames_by_duration_are_as_many_as_the_recording_fills():
    events = stream(6)
    events["t"] = 5 + np.array([0, 9_999, 10_000, 35_000, 35_000, 39_999])
    assert edges_by_duration(events, 10_000, 4).tolist() == [0, 2, 3, 3, 6]
    assert edges_by_duration(events[:1], 10_000, 1).tolist() == [0, 1]
    assert edges_by_duration(events[:0], 10_000, 1).tolist() == [0, 0]
    assert count_frames(events[:0], Framing(1, "duration", (128, 96), (2, 2), 10)).shape == (1, 2, 2, 2)
    with pytest.raises(UserError, match="at most 3 frames, got 4 of 10 ms in 0.039999 s: .*--frame_ms.*--most_frames"):
        edges_by_duration(events, 10_000, 3)
    events["t"][-1] = 2**62  # must not need memory
    with pytest.raises(UserError, match="at most 9 frames"):
        edges_by_duration(events, 1, 9)


def test_recordings_of_different_lengths_are_followed_by_zeros():
    small, large = np.ones((1, 2, 1, 1), np.uint8), np.full((3, 2, 1, 1), 300, np.uint16)
    together = stacked([small, large])
    assert together.dtype == np.uint16 and together[:, :, 0, 0, 0].tolist() == [[1, 0, 0], [300, 300, 300]]

"""tools/data/events/arrays.py: arrays with the names and types that other readers give."""

import numpy as np
import pytest
from scipy.io import savemat

from tests.tools.data.events.written import EVENTS
from tools.data.events import read
from tools.data.events.formats import read_recording
from tools.data.events.reading import EventFormatError

WANTED = [(x, y, t, bool(p)) for x, y, t, p in EVENTS]
SPELLINGS = [
    ("x", "y", "t", "p"),
    ("x", "y", "timestamp", "polarity"),
    ("x", "y", "ts", "on"),
    ("X", "Y", "Timestamps", "Pol"),
    ("xs", "ys", "time", "ps"),
]


def columns(names=("x", "y", "t", "p"), dtype="<i8"):
    return {name: np.array([event[at] for event in EVENTS], dtype) for at, name in enumerate(names)}


def structured(names, dtype="<i8"):
    table = np.zeros(len(EVENTS), [("first", "<f4"), *((name, dtype) for name in names)])
    for name, column in columns(names).items():
        table[name] = column
    return table


@pytest.mark.parametrize("names", SPELLINGS)
def test_names_of_other_readers(tmp_path, names):
    np.savez(tmp_path / "a.npz", **columns(names))
    np.save(tmp_path / "a.npy", structured(names))
    assert read(tmp_path / "a.npz").tolist() == read(tmp_path / "a.npy").tolist() == WANTED


@pytest.mark.parametrize(
    "beside",
    [
        dict(label=3),
        dict(label=np.array([3]), name="clap"),
        dict(label=None, camera={"name": "DVS128"}),
        dict(frames=np.zeros((9, 2)), z=np.zeros(4), T=np.zeros(3)),
    ],
)
def test_what_is_beside_the_events_does_not_matter(tmp_path, beside):
    np.savez(tmp_path / "a.npz", **columns(), **beside)
    assert read(tmp_path / "a.npz").tolist() == WANTED
    if "label" in beside:
        np.savez(tmp_path / "a.npz", events=structured("xytp"), **beside)
        assert read(tmp_path / "a.npz").tolist() == WANTED


def test_one_event_alone(tmp_path):
    np.savez(tmp_path / "a.npz", structured("xytp")[:1])
    assert read(tmp_path / "a.npz").tolist() == WANTED[:1]


def test_the_usual_name_is_taken_first(tmp_path):
    np.savez(tmp_path / "a.npz", T=np.zeros(9), **columns(), timestamp=np.zeros(4), on=np.ones(4))
    assert read(tmp_path / "a.npz").tolist() == WANTED


def test_names_that_came_are_listed(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.zeros(3), b=np.zeros(3))
    with pytest.raises(EventFormatError, match=r"or one array, got \['a', 'b'\]$"):
        read(tmp_path / "a.npz")
    savemat(tmp_path / "a.mat", {"TD": np.ones((2, 3)), "other": 1})
    with pytest.raises(EventFormatError, match="expected the variable out1, got TD, other$"):
        read(tmp_path / "a.mat")
    savemat(tmp_path / "a.mat", {"TD": np.ones((2, 3))}, do_compression=True)
    with pytest.raises(EventFormatError, match="expected the variable out1, got TD$"):
        read(tmp_path / "a.mat")
    (tmp_path / "a.mat").write_bytes((tmp_path / "a.mat").read_bytes()[:128])
    with pytest.raises(EventFormatError, match="expected the variable out1, got none$"):
        read(tmp_path / "a.mat")


@pytest.mark.parametrize("dtype", ["<i4", "<i8", "<f8"])
@pytest.mark.parametrize(
    ("times", "unwrapped"),
    [
        ([2**31 - 9, 2**31 - 1, 5 - 2**31, 9 - 2**31], [2**31 - 9, 2**31 - 1, 2**31 + 5, 2**31 + 9]),
        ([-1143324973, -1143324900, -9, -5], [2**32 - 1143324973, 2**32 - 1143324900, 2**32 - 9, 2**32 - 5]),
        ([-9, -1, 0, 7], [2**32 - 9, 2**32 - 1, 2**32, 2**32 + 7]),
    ],
)
def test_times_that_were_read_as_signed_go_on(tmp_path, dtype, times, unwrapped):
    np.savez(tmp_path / "a.npz", **{**columns(), "t": np.array(times, dtype)})
    reading = read_recording(tmp_path / "a.npz")
    assert reading.events["t"].tolist() == unwrapped
    assert reading.counts.get("clock wraps", 0) == (times[0] < 0 <= times[-1])


def test_a_single_time_below_zero_is_an_error(tmp_path):
    np.savez(tmp_path / "a.npz", **{**columns(), "t": np.array([1, -1, 12, 500])})
    with pytest.raises(EventFormatError, match="event 1: expected a whole t from 0 to .*, got -1$"):
        read(tmp_path / "a.npz")


def test_unsigned_times_of_32_bits_wrap(tmp_path):
    np.savez(tmp_path / "a.npz", **{**columns(), "t": np.array([2**32 - 9, 2**32 - 1, 5, 9], np.uint32)})
    reading = read_recording(tmp_path / "a.npz")
    assert reading.events["t"].tolist() == [2**32 - 9, 2**32 - 1, 2**32 + 5, 2**32 + 9]
    assert reading.counts == {"clock wraps": 1}


def test_doubles_of_matlab_that_were_read_as_signed_go_on(tmp_path):
    times = np.array([-1143324973.0, -1143324900, -9, 5])
    savemat(tmp_path / "a.mat", {"out1": np.stack([times, *(columns()[name] for name in "xyp")], 1)})
    assert np.diff(read(tmp_path / "a.mat")["t"]).tolist() == np.diff(times).tolist()


@pytest.mark.parametrize(("name", "value"), [("x", -1), ("y", 2**16), ("t", np.nan), ("t", 2.5), ("p", 2), ("p", -2)])
def test_an_impossible_event_costs_itself_only_when_lenient(tmp_path, name, value):
    path, given = tmp_path / "a.npz", {name: column.astype(float) for name, column in columns().items()}
    given[name][2] = value
    np.savez(path, **given)
    with pytest.raises(EventFormatError, match=f"event 2: expected a whole {name} from 0 to .*, got {value}"):
        read(path)
    reading = read_recording(path, lenient=True)
    assert reading.events.tolist() == WANTED[:2] + WANTED[3:] and reading.counts == {"impossible": 1}
    given[name][:] = value
    np.savez(path, **given)
    with pytest.raises(EventFormatError, match=f"event 0: expected a whole {name}"):
        read(path, lenient=True)


def test_times_in_seconds_are_not_taken_for_other_units(tmp_path):
    np.savez(tmp_path / "a.npz", **{**columns(), "t": np.array([0.00001, 0.5, 1, 2])})
    with pytest.raises(EventFormatError, match="a whole t .* in microseconds, got 1e-05"):
        read(tmp_path / "a.npz")
    np.save(tmp_path / "a.npy", np.array([[1, 2, 1, 0.0000123], [3, 4, 0, 0.5]]))  # tonic's have milliseconds
    with pytest.raises(EventFormatError, match="a whole t .* in microseconds, got 0.0123"):
        read(tmp_path / "a.npy")
    for dtype in (np.float32, np.float64):
        np.save(tmp_path / "a.npy", np.array([[1, 2, 1, 30_000.123], [3, 4, 0, 700_000.5]], dtype))
        assert np.abs(read(tmp_path / "a.npy")["t"] - [30_000_123, 700_000_500]).max() <= 50

"""tools/data/events/writing.py and __main__.py: what is written is read again as it was."""

import subprocess
import sys

import numpy as np
import pytest

from tests.tools.data.events.written_prophesee import evt3
from tools.data.events import EVENT
from tools.data.events.__main__ import describe, main, text_map
from tools.data.events.formats import read_recording
from tools.data.events.reading import EventFormatError
from tools.data.events.writing import WRITERS, write_recording
from tools.errors import UserError


def drawn(seed=0, count=3000, width=640, height=480, longest=10**7):
    random = np.random.default_rng(seed)
    events = np.zeros(count, EVENT)
    events["x"], events["y"] = random.integers(width, size=count), random.integers(height, size=count)
    events["t"], events["p"] = np.sort(random.integers(longest, size=count)), random.integers(2, size=count)
    return events


@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize("longest", [100, 10**7, 3 * 2**30])
@pytest.mark.parametrize("sensor", [None, (640, 480)])
def test_what_is_written_is_read_again(tmp_path, suffix, longest, sensor):
    if suffix == ".h5":
        pytest.importorskip("h5py")
    path, events = tmp_path / "folder" / f"a{suffix}", drawn(longest=longest)
    for part in (events, events[:1]):
        write_recording(path, part, sensor)
        reading = read_recording(path)
        assert (reading.events == part).all() and not reading.counts
        if suffix in (".dat", ".raw", ".h5") and sensor:
            assert reading.sensor == sensor
    assert [one.name for one in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".dat", ".raw"])
def test_what_a_format_cannot_hold_is_refused_and_nothing_is_written(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    whole = drawn()
    for field, value, problem in (
        ("x", 2**14, "has x from 0 to "),
        ("y", 2**14, "has y from 0 to "),
        ("t", 2**34, "needs times in ascending order, from 0 to "),
        ("t", 0, "needs times in ascending order, from 0 to "),
    ):
        events = whole.copy()
        events[field][-1] = value
        with pytest.raises(UserError, match=f"a{suffix} cannot be written: .*{problem}"):
            write_recording(path, events)
        assert not path.exists()


def test_other_suffixes_and_no_events_are_refused(tmp_path):
    for name, got in (("a.zip", ".zip"), ("a", "none")):
        with pytest.raises(
            UserError, match=f"expected a suffix of .npz, .npy, .csv, .txt, .dat, .raw, .h5, got {got}$"
        ):
            write_recording(tmp_path / name, drawn())
    with pytest.raises(UserError, match="expected events with times from 0, got none"):
        write_recording(tmp_path / "a.npz", drawn()[:0])
    events = drawn()
    events["t"][0] = -1
    with pytest.raises(UserError, match="expected events with times from 0, got a negative one"):
        write_recording(tmp_path / "a.npz", events)


def test_the_map_shows_which_way_is_up():
    events = np.zeros(9, EVENT)
    events["x"][1:] = 639
    rows = text_map(events, (640, 480)).split("\n")
    assert len(rows) == 22 and {len(row) for row in rows} == {55}
    assert rows[1][1] != " " and rows[1][53] == "@" and not rows[20][1:54].strip()
    events["y"] = 479
    assert text_map(events, (640, 480)).split("\n")[20][53] == "@"
    assert len(text_map(events, (10, 5000)).split("\n")) == 22  # of which no column has events but the first
    assert text_map(events[:1], (1, 1)).count("\n") < 30


def test_the_map_of_a_small_sensor_has_no_gaps():
    events = np.zeros(34, EVENT)
    events["x"] = np.arange(34)
    assert text_map(events, (34, 34)).split("\n")[1] == f"|{34 * '@'}|"


def test_what_is_known_is_described(tmp_path):
    (tmp_path / "a.raw").write_bytes(evt3())
    shown = describe(read_recording(tmp_path / "a.raw")).split("\n")
    assert shown[1:9] == [
        "format      Prophesee EVT3",
        "camera      Prophesee hal_plugin_imx636_evk4 4.2",
        "sensor      128x128",
        "events      4",
        "duration    0.000490 s, from 10 us",
        "rate        8,163 events/s",
        "ON          50.0%",
        "also found  1 external, 1 other words",
    ]
    np.savez(tmp_path / "a.npz", x=[5, 6], y=[7, 7], t=[9, 9], p=[1, 1])
    shown = describe(read_recording(tmp_path / "a.npz"))
    assert "unknown; events within 7x8" in shown and "all events at one time" in shown and "nothing" in shown


def test_a_recording_is_converted_on_the_command_line(tmp_path, caplog):
    caplog.set_level("INFO")
    (tmp_path / "a.txt").write_text("5 7 1 10\n6 7 0 20\n")
    main(["convert", str(tmp_path / "a.txt"), str(tmp_path / "b.dat"), "--columns", "x,y,p,t"])
    assert read_recording(tmp_path / "b.dat").events.tolist() == [(5, 7, 10, True), (6, 7, 20, False)]
    main(["info", str(tmp_path / "b.dat"), "--picture", str(tmp_path / "b.png")])
    assert "Prophesee DAT" in caplog.text and (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "c.dat").write_bytes((tmp_path / "b.dat").read_bytes()[:-1])
    caplog.clear()
    with pytest.raises(SystemExit) as ended:
        main(["convert", str(tmp_path / "c.dat"), str(tmp_path / "c.csv")])
    assert ended.value.code == 1 and caplog.text.count("\n") == 1 and "truncated" in caplog.text
    assert not (tmp_path / "c.csv").exists()
    main(["convert", str(tmp_path / "c.dat"), str(tmp_path / "c.csv"), "--lenient"])
    assert (tmp_path / "c.csv").read_text() == "t,x,y,p\n10,5,7,1\n"
    assert "left out: 1 truncated" in caplog.text


def test_what_is_out_of_order_or_off_the_sensor_is_left_out_when_lenient(tmp_path, caplog):
    caplog.set_level("INFO")
    (tmp_path / "a.txt").write_text("9 9\n10 5 7 1\n20 6 7 0\n12 8 8 1\n22 9 0 1\n23 1 2 0\n24 1 -2 0\n")
    command = ["convert", str(tmp_path / "a.txt"), str(tmp_path / "b.raw")]
    with pytest.raises(SystemExit):
        main(command)
    (tmp_path / "c.txt").write_text("9 9\n10 5 7 1\n8 9 0 0\n")
    main(["convert", str(tmp_path / "c.txt"), str(tmp_path / "c.npz")])  # which holds events of any kind
    assert "also found: 1 events off the sensor, 1 earlier than the event before" in caplog.text
    main([*command, "--lenient"])
    assert read_recording(tmp_path / "b.raw").events["t"].tolist() == [10, 12, 23]
    assert all(f"left out: 1 {what}" in caplog.text for what in ("outside", "decreasing", "impossible"))


def test_the_module_runs(tmp_path):
    (tmp_path / "a.csv").write_text("t,x,y,p\n1,2,3,1\n")
    command = [sys.executable, "-m", "tools.data.events", "info"]
    done = subprocess.run([*command, str(tmp_path / "a.csv")], capture_output=True, text=True)
    assert done.returncode == 0 and "format      text" in done.stdout
    done = subprocess.run([*command, str(tmp_path / "b.csv")], capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout.startswith("error: ") and done.stdout.count("\n") == 1


def test_an_error_names_the_file(tmp_path):
    (tmp_path / "a.xyz").write_bytes(b"\0\1")
    with pytest.raises(
        EventFormatError, match=r"a.xyz, byte 0: expected .*Prophesee RAW \(.raw\).*text \(.txt, .csv\)"
    ):
        read_recording(tmp_path / "a.xyz")

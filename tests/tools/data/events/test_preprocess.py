"""Frames made ahead of training, as a user makes them."""

import json
import logging
import re
import subprocess
import sys

import pytest

from tests.tools.data.events.written import nmnist_tree, official_gestures
from tools.config.train import TrainConfig
from tools.data.events.frames import Framing
from tools.data.events.store import FrameStore
from tools.data.events.trees import list_dvsgesture
from tools.preprocess_events import main, make_parser


def run(*arguments):
    return main(["--workers", "1", *map(str, arguments)])


@pytest.fixture(autouse=True)
def all_messages(caplog):
    caplog.set_level(logging.INFO)


def test_its_flags_have_the_defaults_of_training():
    flags, config = make_parser().parse_args(["source", "out"]), TrainConfig()
    for name in ("frames_by", "frame_ms", "most_frames", "frame_size", "split"):
        assert getattr(flags, name) == getattr(config, name)


def test_a_tree_becomes_frames_that_training_finds(tmp_path, caplog, monkeypatch):
    official_gestures(tmp_path)
    run(tmp_path, tmp_path / "out", "--timestep", 4, "--frame_size", 32)
    assert re.search(r"^train +6 +6 +0 +0$", caplog.text, re.MULTILINE)
    assert re.search(r"^test +3 +3 +0 +0$", caplog.text, re.MULTILINE)

    def made_again(*job):
        raise AssertionError("the frames are there")

    monkeypatch.setattr("tools.data.events.store.make_shard", made_again)
    train, _ = list_dvsgesture(tmp_path)
    framing = Framing(4, "count", (128, 128), (32, 32))
    found = FrameStore("dvsgesture-train", train, framing, workers=1, folder=tmp_path / "out")
    assert found[range(6)].shape == (6, 4, 2, 32, 32) and found[range(6)].sum() == 6 * 3


def test_what_is_skipped_is_counted_and_said_why(tmp_path, caplog):
    nmnist_tree(tmp_path)
    damaged, outside = tmp_path / "Train" / "3" / "00030.bin", tmp_path / "Test" / "4" / "00040.bin"
    damaged.write_bytes(b"123")
    outside.write_bytes(bytes([200, 0, 0, 0, 0]) + bytes(5))
    cut = tmp_path / "Test" / "5" / "00050.bin"
    cut.write_bytes(cut.read_bytes() + b"1")
    run(tmp_path, tmp_path / "out")
    assert re.search(r"^train +30 +29 +1 +0$", caplog.text, re.MULTILINE)
    assert re.search(r"^test +20 +20 +0 +2 \(1 outside, 1 truncated\)$", caplog.text, re.MULTILINE)
    assert f"skipped: {damaged}" in caplog.text and "truncated" in caplog.text
    report = json.loads((tmp_path / "out" / "skipped-nmnist.json").read_text())
    assert len(report["train"]) == 1 and not report["test"]
    dropped = json.loads((tmp_path / "out" / "dropped-nmnist.json").read_text())
    assert dropped == {
        "train": {},
        "test": {
            str(outside): {"outside": 1},
            str(cut): {"truncated": 1},
        },
    }
    with pytest.raises(SystemExit):
        run(tmp_path, tmp_path / "out", "--no-lenient")
    assert "error: " in caplog.text


def test_an_interrupted_run_goes_on_where_it_was(tmp_path, monkeypatch):
    nmnist_tree(tmp_path)
    monkeypatch.setattr("tools.data.events.store.SHARD", 7)
    run(tmp_path, tmp_path / "out")
    (folder,) = (tmp_path / "out").glob("frames-nmnist-train-*")
    shards = sorted(folder.glob("*.npy"))
    shards[2].unlink()
    times = [shard.stat().st_mtime_ns for shard in shards if shard.exists()]
    run(tmp_path, tmp_path / "out")
    assert shards[2].exists() and [shard.stat().st_mtime_ns for shard in shards if shard != shards[2]] == times


def test_a_folder_without_a_data_set_is_one_line(tmp_path, caplog):
    with pytest.raises(SystemExit):
        run(tmp_path, tmp_path / "out")
    assert "none of the data sets nmnist, dvsgesture, dvscifar10" in caplog.text


def test_folders_and_numbers_that_cannot_be_used_are_one_line(tmp_path, caplog, capsys):
    nmnist_tree(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit):
        run(tmp_path, tmp_path / "file")
    assert "error: " in caplog.text and "file" in caplog.text
    with pytest.raises(SystemExit):
        run(tmp_path, tmp_path / "out", "--workers", 0)
    assert "--workers must be at least 1" in capsys.readouterr().err


def test_workers_need_not_wait_for_torch(repository):
    code = "import sys, tools.preprocess_events; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, check=True, capture_output=True, text=True)
    assert "tools.data.events.store" in done.stdout.split() and "torch" not in done.stdout.split()


def test_it_runs_as_a_file(tmp_path, repository):
    nmnist_tree(tmp_path)
    command = [sys.executable, repository / "tools" / "preprocess_events.py", tmp_path, tmp_path / "out"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^train +30 +30 +0 +0$", done.stdout, re.MULTILINE)

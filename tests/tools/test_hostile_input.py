"""Files from anyone: what is in them or a documented error comes out, in little memory, and nothing is run."""

import ast
import contextlib
import functools
import os
import pickle
import signal
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dataset_utils import DATASETS
from models import build_model, build_neuron
from tests.conftest import first_are_fast
from tools.config.evaluate import EvaluationConfig
from tools.config.parsing import parse
from tools.config.train import TrainConfig
from tools.data.corruptions import CorruptionFolder
from tools.data.events import EVENT
from tools.data.events.frames import Framing
from tools.data.events.recordings import Recording
from tools.data.events.store import FrameStore, stored_streams
from tools.data.events.trees import TREES
from tools.data.image_folder import read_image_folder
from tools.errors import UserError
from tools.evaluation.results import Result
from tools.evaluation.stored import ResultFolder
from tools.io import checkpoint
from tools.io.checkpoint import CheckpointError
from tools.networks import build_network, load_snapshot
from tools.published import load_published, published_key
from tools.studies.coding.recordings import read_recording
from tools.sweep import DEFINITION, check_same
from tools.training.folder import read_metrics

SIZE = dict(in_shape=(1, 2, 2), num_classes=2)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NSNN_CACHE", str(tmp_path / "cache"))


class Tiny:
    """What `load_snapshot` asks of a data set."""

    name, num_classes, mean, std = "tiny", 2, (0.0,), (1.0,)

    def input_shape(self, config):
        return (1, 2, 2)


def ours(folder):
    path = folder / "best.pth"
    config = {"model": "toynet", "neuron": "LIF", "width": 1 / 64, "seed": 3}
    net = build_network(TrainConfig(**config), Tiny())
    state = {"numpy": ["MT19937", [1, 2], 3, 0, 0.5], "betas": (0.9, 0.999)}
    checkpoint.save(path, {"config": config, "dataset": "tiny", "model": net.state_dict(), "rng": state})
    return path, lambda: load_snapshot(EvaluationConfig(snapshot=str(path)), Tiny())


def published(folder):
    path = folder / "theirs.pth"
    net = build_model("toynet", neuron=build_neuron("LIF"), norm="bn", width=1 / 64, **SIZE)
    theirs = {f"module.{published_key('toynet', key)}": value for key, value in net.state_dict().items()}
    torch.save({"net": theirs, "acc": 93.5, "epoch": 3}, path)
    return path, lambda: load_published(net, "toynet", path)


def recipe(folder):
    path = folder / "recipe.yaml"
    path.write_text("# a recipe\ndataset: mnist\nmodel: vgg\nlr: 1e-3\nepochs: 3\nflip: no\nprovenance: {git: abc}\n")

    def read():
        try:
            return parse(TrainConfig, ["--config", str(path)], dataset=DATASETS["mnist"])
        except SystemExit as error:  # argparse's way to end with a message
            raise UserError(path) from error

    return path, read


def metrics(folder):
    path = folder / "metrics.jsonl"
    path.write_text('{"epoch": 1, "train_loss": 0.5}\n{"epoch": 2, "train_loss": NaN, "firing_rates": {"a": 0.1}}\n')
    return path, lambda: [row["epoch"] for row in read_metrics(path)]


IDENTITY = {"snapshot": "best.pth", "provenance": {"git": "abc"}, "seed": 0}


def points(folder):
    stored = ResultFolder(folder, IDENTITY, {"draws": 2})
    stored.write_points("sp", {(None, 0.1): Result(None, 0.1, 0.5, 0.1, [0.4, 0.6], 1.0, 0.2, [0.8, 1.2], [1, 2])})
    return stored.points_file("sp"), lambda: stored.points("sp")


def report(folder):
    stored = ResultFolder(folder, IDENTITY, {})
    stored.write_report("efficiency", {"ac": 1.5, "rates": {2: 0.1, 10: 0.2}, "curve": (1, 2)})
    return folder / "efficiency.json", lambda: stored.report("efficiency", ac=1.5)


def image(folder):
    images = folder / "images"
    for split in ("train", "test"):
        (images / split / "cat").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (9, 8, 7)).save(images / split / "cat" / "0.png")
    return images / "train" / "cat" / "0.png", lambda: read_image_folder(images, 1)


def image_as(suffix, **options):
    def maker(folder):
        path, read = image(folder)
        path.unlink()
        path = path.with_suffix(suffix)
        Image.new("RGB", (4, 4), (9, 8, 7)).save(path, **options)
        return path, read

    return maker


def image_cache(folder):
    _, read = image(folder)
    read()
    (path,) = (folder / "cache").glob("*.npz")
    return path, lambda: [part.images.float().mean() for part in read()]


def corruption_folder(folder):
    np.save(folder / "fog.npy", np.arange(10 * 4 * 4 * 3, dtype=np.uint8).reshape(10, 4, 4, 3))
    np.save(folder / "labels.npy", np.arange(10) % 2)
    return lambda: CorruptionFolder(folder, (3, 4, 4), 2).part("fog", 5)


def corruption(folder):
    read = corruption_folder(folder)
    return folder / "fog.npy", read


def corruption_labels(folder):
    read = corruption_folder(folder)
    return folder / "labels.npy", read


def idx(folder, name="train-images-idx3-ubyte"):
    """MNIST as torchvision reads it."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    for part in ("train", "t10k"):
        header = struct.pack(">iiii", 0x803, 20, 28, 28)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + bytes(20 * 28 * 28))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">ii", 0x801, 20) + bytes(range(10)) * 2)
    return raw / name, lambda: DATASETS["mnist"].load(TrainConfig(data_root=str(folder)))


FRAMING = Framing(2, "count", (8, 8), (4, 4))


def store(folder, suffix="json"):
    path = folder / "d.npy"
    np.save(path, np.zeros(4, EVENT))

    def make():
        return FrameStore("fuzz", [Recording(path, 0)], FRAMING, workers=1, folder=folder)

    return make().folder / f"00000.{suffix}", lambda: make()[[0]]


def streams(folder, suffix="json"):
    def read():
        return stored_streams("s", lambda: (np.zeros(6, EVENT), np.array([2, 6]), np.array([0, 1])), folder)

    read()
    return folder / f"s.{suffix}", lambda: [part.load((8, 8)) for part in read()]


def cells(folder):
    path = folder / "cells.npz"
    movie = np.arange(60, dtype=np.float32).reshape(15, 2, 2)
    np.savez_compressed(path, movie=movie, spikes=np.eye(15, dtype=np.uint8)[None], frame_s=0.01)
    return path, lambda: read_recording(path)


READERS = {
    "our checkpoint": ours,
    "published checkpoint": published,
    "recipe": recipe,
    "metrics.jsonl": metrics,
    "stored points": points,
    "stored report": report,
    "PNG": image,
    "JPEG": image_as(".jpg"),
    "TIFF": image_as(".tif", compression="tiff_lzw"),
    "GIF": image_as(".gif"),
    "image cache": image_cache,
    "corrupted images": corruption,
    "labels of corrupted images": corruption_labels,
    "MNIST images": idx,
    "MNIST labels": functools.partial(idx, name="train-labels-idx1-ubyte"),
    "report of frames": store,
    "frames": functools.partial(store, suffix="npy"),
    "report of streams": streams,
    "streams": functools.partial(streams, suffix="npy"),
    "recording of cells": cells,
}
DOCUMENTED = (UserError, OSError)
EDITS = st.lists(
    st.tuples(
        st.floats(0, 1),  # where
        st.integers(0, 8),  # how many bytes are taken
        st.binary(max_size=8) | st.sampled_from([b"\xff" * 4, b"\xff" * 8, b"\x7f", b"9" * 8, b"[{", b"*a", b"-"]),
    ),
    min_size=1,
    max_size=4,
)


def edited(raw, edits):
    """Bytes with some taken out and others put in their place."""
    raw = bytearray(raw)
    for where, taken, put in edits:
        at = int(where * len(raw))
        raw[at : at + taken] = put
    return bytes(raw)


CHANGES = st.one_of(
    EDITS.map(lambda edits: lambda raw: edited(raw, edits)),
    st.floats(0, 1).map(lambda share: lambda raw: raw[: int(share * len(raw))]),
    st.binary(max_size=200).map(lambda more: lambda raw: raw + more),
    st.binary(max_size=200).map(lambda other: lambda raw: other),
)


def entries(path):
    """[(name, bytes)] of what is in a zip archive."""
    with zipfile.ZipFile(path) as archive:
        return [(entry.filename, archive.read(entry)) for entry in archive.infolist()]


def repacked(path, change, compression=zipfile.ZIP_STORED):
    """Change entries of a zip archive, so that the change gets past the archive's checksums."""
    before = entries(path)
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, raw in before:
            archive.writestr(name, change(name, raw))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", READERS)
def test_a_changed_file_gives_its_content_or_a_documented_error(tmp_path, name):
    path, read = READERS[name](tmp_path)
    raw = path.read_bytes()
    read()

    @settings(max_examples=60, deadline=None, derandomize=True, database=None)
    @given(change=CHANGES)
    def check(change):
        path.write_bytes(change(raw))
        try:
            read()
        except DOCUMENTED as error:
            assert str(error) or isinstance(error.__cause__, SystemExit)

    check()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["our checkpoint", "published checkpoint", "image cache"])
@pytest.mark.parametrize("examples", first_are_fast([20, 80]))
def test_a_changed_entry_of_an_archive_that_is_whole_gives_a_documented_error(tmp_path, name, examples):
    path, read = READERS[name](tmp_path)
    raw = path.read_bytes()

    @settings(max_examples=examples, deadline=None, derandomize=True, database=None)
    @given(change=CHANGES, which=st.integers(0, 6))
    def check(change, which):
        path.write_bytes(raw)
        names = [name for name, _ in entries(path)]
        chosen = names[which % len(names)]
        repacked(path, lambda entry, content: change(content) if entry == chosen else content)
        try:
            read()
        except DOCUMENTED as error:
            assert str(error)

    check()


# Code


class Planted:
    """Pickles as a call that leaves a trace."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("place", ["model", "optimizer", "rng"])
def test_a_checkpoint_that_would_run_code_is_refused(tmp_path, place, legacy):
    path, read = ours(tmp_path)
    content = torch.load(path, weights_only=True)
    torch.save({**content, place: Planted(tmp_path / "trace")}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match=r"best\.pth cannot be loaded safely"):
        read()
    assert not (tmp_path / "trace").exists()
    torch.load(path, weights_only=False)  # it is a file that would have
    assert (tmp_path / "trace").exists()


def test_a_recipe_that_would_run_code_is_refused(tmp_path, capsys):
    path, read = recipe(tmp_path)
    path.write_text(f"dataset: mnist\nmodel: !!python/object/apply:os.mkdir [{tmp_path / 'trace'}]\n")
    with pytest.raises(ValueError):
        read()
    assert "could not determine a constructor" in capsys.readouterr().err
    assert not (tmp_path / "trace").exists()


def test_batches_of_cifar_that_are_not_the_published_ones_are_not_unpickled(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in ("batches.meta", "test_batch", *(f"data_batch_{number}" for number in range(1, 6))):
        (folder / name).write_bytes(pickle.dumps(Planted(tmp_path / "trace")))
    with pytest.raises(FileNotFoundError, match="or incomplete"):
        DATASETS["cifar10"].load(TrainConfig(data_root=str(tmp_path)))
    assert not (tmp_path / "trace").exists()


def test_no_source_loads_what_could_run_code_or_unpacks_archives_into_folders(repository):
    """Calls that could are not in the sources; torchvision unpacks what it has downloaded, by checksums of its own."""
    forbidden = {"eval", "exec", "extractall", "unpack_archive", "full_load", "unsafe_load"}
    loaders = {"pickle": {"load", "loads", "Unpickler"}, "yaml": {"load", "load_all"}, "marshal": {"load", "loads"}}
    calls = 0
    for path in [
        *repository.glob("*.py"),
        *(path for part in ("models", "crits", "tools") for path in (repository / part).rglob("*.py")),
    ]:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            owner = getattr(getattr(node.func, "value", None), "id", "")
            keywords = {keyword.arg: getattr(keyword.value, "value", None) for keyword in node.keywords}
            isolated = owner in ("net", "model", "networks", "evaluation") and name == "eval"  # nn.Module.eval
            assert name not in forbidden or isolated or (name == "eval" and not node.args), f"{path}:{node.lineno}"
            assert name not in loaders.get(owner, ()), f"{path}:{node.lineno}"
            if (owner, name) == ("torch", "load"):
                assert keywords["weights_only"] is True, f"{path}:{node.lineno}"
                calls += 1
            if (owner, name) == ("np", "load"):
                assert keywords["allow_pickle"] is False, f"{path}:{node.lineno}"
    assert calls >= 1


# Memory and endless work


def peak():
    """Peak memory of this process since it was last reset, in MiB."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) / 2**10


@contextlib.contextmanager
def little(mib=200, seconds=120):
    """Within, not much memory may be taken; what does not come to an end is ended."""

    def hangs(number, frame):
        raise AssertionError(f"it takes more than {seconds} s")

    Path("/proc/self/clear_refs").write_text("5")  # the peak is what is in use now
    before, handler = peak(), signal.signal(signal.SIGALRM, hangs)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
    assert peak() - before < mib


def npy_header(shape, descr):
    text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def test_an_alias_bomb_is_not_a_recipe(tmp_path, capsys):
    path, read = recipe(tmp_path)
    bomb = ["a0: &a0 [x, x]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    for text, message in (
        ("\n".join(bomb), "has an alias (*a0), and no aliases are allowed"),
        ("[" * 5000, "nothing deeper"),
        ("x" * 2**17, "65536 bytes"),
    ):
        path.write_text(text)
        with little(), pytest.raises(ValueError):
            read()
        assert message in capsys.readouterr().err


def test_a_pickle_that_contains_itself_many_times_is_not_a_checkpoint(tmp_path):
    path, read = ours(tmp_path)
    doubled = b"\x80\x02)" + b"q\x00h\x00h\x00\x86" * 60 + b"."  # a pair of a pair of ..., 2^60 at the bottom
    repacked(path, lambda name, raw: doubled if name.endswith("data.pkl") else raw)
    with little(), pytest.raises(CheckpointError, match="many times over"):
        read()


def test_tensors_larger_than_the_file_are_not_a_checkpoint(tmp_path):
    path, read = ours(tmp_path)
    content = torch.load(path, weights_only=True)
    del content["checksum"]
    content["model"] = {"weight": torch.zeros(1).expand(2**33)}  # one number, seen 2^33 times
    torch.save(content, path)
    with little(), pytest.raises(CheckpointError, match="more than its bytes"):
        read()


def test_a_compressed_archive_is_neither_a_checkpoint_nor_a_cache(tmp_path):
    for make, entry in ((ours, "data/0"), (image_cache, "train_images.npy")):
        path, read = make(tmp_path)

        def bomb(name, raw, entry=entry):
            return bytes(2**28) if name.endswith(entry) else raw

        repacked(path, bomb, zipfile.ZIP_DEFLATED)
        assert path.stat().st_size < 2**22
        with little():
            if make is ours:
                with pytest.raises(CheckpointError, match="compressed"):
                    read()
            else:
                read()  # the cache is rebuilt


@pytest.mark.parametrize("name", ["corrupted images", "labels of corrupted images", "frames", "streams"])
def test_an_array_that_claims_more_than_it_has_takes_no_memory(tmp_path, name):
    path, read = READERS[name](tmp_path)
    for shape, kind in (
        ((0, 2**70), "|u1"),
        ((2**33, 4, 4, 3), "|u1"),
        ((2**60,), "<i8"),
        ((2**62, 2**62), "<f8"),
        ((10,), "|V1000000000"),
    ):
        path.write_bytes(npy_header(shape, kind) + bytes(480))
        with little():
            try:
                read()
            except ValueError as error:
                assert path.name in str(error)


def png(width, height):
    """A PNG that claims a size, and has almost no bytes."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def test_a_picture_of_claimed_gigapixels_is_not_decoded(tmp_path):
    path, read = image(tmp_path)
    path.write_bytes(png(50_000, 50_000))
    with little(), pytest.raises(ValueError, match=r"0\.png is not a readable image"):
        read()


@pytest.mark.parametrize("name", ["PNG", "corrupted images", "our checkpoint", "recipe", "metrics.jsonl"])
def test_a_pipe_in_place_of_a_file_does_not_hang(tmp_path, name):
    path, read = READERS[name](tmp_path)
    path.unlink()
    os.mkfifo(path)
    with little(), pytest.raises(DOCUMENTED):
        read()


def test_a_pipe_in_place_of_results_or_a_sweep_does_not_hang(tmp_path):
    path, read = report(tmp_path)
    path.unlink()
    os.mkfifo(path)
    (tmp_path / DEFINITION).symlink_to(path)
    with little():
        assert read() is None  # it is measured anew
        with pytest.raises(ValueError, match="is not a file"):
            check_same(tmp_path, {})


def parts_of(raw):
    """A zip archive without comment in its parts: entries, directory."""
    size, start = struct.unpack("<II", raw[-10:-2])
    return raw[:start], raw[start : start + size]


def moved(directory, offset):
    """A zip directory whose entries are said to be further on."""
    result, place = bytearray(directory), 0
    while place < len(directory):
        lengths = struct.unpack("<HHH", directory[place + 28 : place + 34])
        (at,) = struct.unpack("<I", directory[place + 42 : place + 46])
        result[place + 42 : place + 46] = struct.pack("<I", at + offset)
        place += 46 + sum(lengths)
    return bytes(result)


def test_what_was_checked_is_what_is_loaded(tmp_path):
    """Python's zipfile takes the directory before the end of an archive, PyTorch the one at the place that it says."""
    path, read = ours(tmp_path)
    harmless = read()[0].state_dict()
    inside, good = path.with_name("inside.pth"), entries(path)
    archives = []

    def spoil(name, raw):
        return bytes([255]) * len(raw) if name.endswith("data/0") else raw

    for change in (lambda name, raw: raw, spoil):
        with zipfile.ZipFile(inside, "w") as archive:
            for name, raw in good:
                archive.writestr(name, change(name, raw))
        archives.append(parts_of(inside.read_bytes()))
    (entries_shown, shown), (entries_hidden, hidden) = archives
    first = len(entries_hidden) + len(hidden)  # the hidden archive is in front of the one that is shown
    between = first + len(entries_shown) - len(entries_hidden)  # by which Python corrects all places
    end = struct.pack("<4s4xHHIIH", b"PK\5\6", len(good), len(good), len(shown), len(entries_hidden), 0)
    path.write_bytes(entries_hidden + hidden + entries_shown + moved(shown, first - between) + end)
    theirs = torch.load(path, weights_only=True)["model"]
    assert any(not torch.equal(value, harmless[key]) for key, value in theirs.items() if key in harmless)
    loaded = read()[0].state_dict()
    assert all(torch.equal(value, harmless[key]) for key, value in loaded.items())


def test_a_network_larger_than_its_weights_is_not_built(tmp_path):
    path, read = ours(tmp_path)
    for model, width, message in (
        ("sresnet18", 1e3, "describes a network"),
        ("toynet", 1e6, "width must be at most 1000"),
        ("toynet", 1e12, "width must be at most 1000"),
        ("toynet", 1e307, "width must be at most 1000"),
    ):
        content = torch.load(path, weights_only=True)
        content.pop("checksum", None)
        content["config"] |= {"model": model, "width": width}
        torch.save(content, path)
        with little(), pytest.raises(CheckpointError, match=message):
            read()


def test_a_list_of_trials_cannot_name_files_elsewhere(tmp_path):
    folder = tmp_path / "DvsGesture"
    folder.mkdir()
    for name in ("/etc/passwd", "../user01.aedat", "a/b.aedat", "user01.txt"):
        for part in ("train", "test"):
            (folder / f"trials_to_{part}.txt").write_text(f"{name}\n")
        with pytest.raises(ValueError, match="expected names of .aedat files beside it"):
            TREES["dvsgesture"].list_recordings(folder, "9:1")


# What is not there any more


def test_a_recording_that_vanishes_after_it_was_listed_is_named(tmp_path):
    path = tmp_path / "gone.npy"
    np.save(path, np.zeros(4, EVENT))
    recordings = [Recording(path, 0)]
    path.unlink()
    with pytest.raises(FileNotFoundError, match="gone.npy"):
        FrameStore("fuzz", recordings, FRAMING, workers=1, folder=tmp_path)

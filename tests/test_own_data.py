"""Recordings and images of one's own: what is found in their folder, kept in checkpoints, and refused."""

import json
import logging
import os
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from dataset_utils import DATASETS
from tests.tools.data.events.written import EVENTS, aedat2, nmnist, striped_nmnist_tree, touch
from tools.config.evaluate import EvaluationConfig
from tools.config.train import OwnDataset, TrainConfig
from tools.data.events import formats, own
from tools.data.events.own import list_own, own_tree, sensor_of
from tools.data.events.reading import EventFormatError, Reading
from tools.data.image_folder import common_size, fitted
from tools.data.images import LabelledImages
from tools.data.streamed import StreamedImages
from tools.errors import UserError
from tools.io import checkpoint
from tools.io.checkpoint import CheckpointError
from tools.networks import dataset_of

CPU = torch.device("cpu")
QUICK = ["--model", "toynet", "--width", "0.05", "--threads", "1", "--no-histograms", "--minibatch", "5", "--epochs", 1]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NSNN_CACHE", str(tmp_path / "cache"))


def recordings(folder, classes=("left", "right"), count=3):
    """Recordings of three formats, the last of which has no known suffix; EVENTS reach 127 in x and y."""
    for part in ("train", "test"):
        for name in classes:
            place = folder / part / name
            touch(place / "a.bin", nmnist())
            touch(place / "b.aedat", aedat2())
            if count > 2:
                columns = {name: np.array([event[at] for event in EVENTS]) for at, name in enumerate("xytp")}
                with open(place / "c", "wb") as file:
                    np.savez(file, **columns)
    return folder


def images(folder, train=10, test=2, size=None, classes=("cat", "dog")):
    random = np.random.default_rng(0)
    for part, count in (("train", train), ("test", test)):
        for label, name in enumerate(classes):
            for number in range(count):
                height, width = size or random.integers(20, 90, 2)
                pixels = random.integers(0, 90, (height, width, 3)).astype(np.uint8)
                pixels[..., 2 * label] += 120
                path = folder / part / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    return folder


def config_of(folder, **settings):
    return TrainConfig(data_root=str(folder), workers=1, **settings)


# --- recordings


def test_recordings_of_all_formats_are_listed_by_class(tmp_path):
    train, test = list_own(recordings(tmp_path))
    for part in (train, test):
        found = [(recording.path.parent.name, recording.path.name, recording.label) for recording in part]
        names = [
            (name, file, label) for label, name in enumerate(("left", "right")) for file in ("a.bin", "b.aedat", "c")
        ]
        assert found == names
    assert all(len(recording.load((128, 128)).events) == 4 for recording in train + test)


def test_what_is_not_a_recording_is_skipped_and_said(tmp_path, caplog):
    recordings(tmp_path)
    for name in ("train/notes.md", "train/left/notes.md", "train/left/.hidden.bin", "test/.git/a.bin"):
        touch(tmp_path / name, b"text")
    (tmp_path / "test" / "right" / "more").mkdir()
    assert [len(part) for part in list_own(tmp_path)] == [6, 6]
    for what in (r"files beside the classes \(1\)", r"files \*.md \(1\)", r"folders in classes \(1\)"):
        assert re.search(f"skipped .*{what}", caplog.text)


def test_a_byte_order_mark_hides_no_recording(tmp_path, caplog):
    path = recordings(tmp_path) / "train/left/c"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(list_own(tmp_path).train) == 6 and "skipped" not in caplog.text


def test_trees_of_other_shapes_are_refused_in_words(tmp_path):
    recordings(tmp_path)
    touch(tmp_path / "test" / "up" / "a.bin", nmnist())
    with pytest.raises(
        UserError, match=r"train has the classes \['left', 'right'\], test has \['left', 'right', 'up'\]"
    ):
        list_own(tmp_path)
    touch(tmp_path / "train" / "up" / "notes.md", b"text")
    with pytest.raises(UserError, match="up has no recordings that can be read"):
        list_own(tmp_path)
    shutil.rmtree(tmp_path / "train")
    with pytest.raises(FileNotFoundError, match="has no folder train: recordings are {train,test}/<class>"):
        list_own(tmp_path)
    (tmp_path / "train").mkdir()
    with pytest.raises(FileNotFoundError, match="train has no recordings"):
        list_own(tmp_path)


def test_the_sensor_is_as_large_as_the_highest_pixels_and_looked_for_once(tmp_path, monkeypatch):
    parts = list_own(recordings(tmp_path))
    assert sensor_of(parts) == (128, 128)
    monkeypatch.setattr(own, "read_recording", None)
    assert sensor_of(parts) == (128, 128)  # from the cache
    touch(parts.train[0].path, nmnist([(150, 3, 1, 0), (2, 200, 2, 1)]))
    with pytest.raises(TypeError):
        sensor_of(parts)
    monkeypatch.undo()
    monkeypatch.setenv("NSNN_CACHE", str(tmp_path / "other"))
    assert sensor_of(parts) == (151, 201)


def test_the_sensor_that_files_name_is_believed(tmp_path, monkeypatch, caplog):
    parts = list_own(recordings(tmp_path))
    sizes = iter([(346, 260), (240, 300), None] * 4)

    def read(path, lenient):
        reading = formats.read_recording(path, lenient)
        return Reading(path, reading.events, sensor=next(sizes))

    monkeypatch.setattr(own, "read_recording", read)
    assert sensor_of(parts) == (346, 300)
    assert "different sizes: 240x300, 346x260" in caplog.text


def test_a_damaged_recording_is_an_error_unless_lenient(tmp_path):
    parts = list_own(recordings(tmp_path))
    touch(parts.test[0].path, b"123")
    with pytest.raises(EventFormatError, match="a.bin"):
        sensor_of(parts)
    assert sensor_of(parts, lenient=True) == (128, 128)
    for recording in parts.train + parts.test:
        touch(recording.path, b"1")
    with pytest.raises(UserError, match="none of the recordings can be read"):
        sensor_of(parts, lenient=True)


@pytest.mark.parametrize(
    ("sensor", "size"),
    [((34, 34), (34, 34)), ((128, 128), (64, 64)), ((640, 480), (64, 48)), ((100, 1), (64, 1)), ((9, 6400), (1, 64))],
)
def test_frames_have_the_shape_of_the_sensor(sensor, size):
    assert own_tree(("a", "b"), sensor).frame_size() == size


def test_recordings_are_found_and_loaded(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    striped_nmnist_tree(tmp_path, training=10, test=2)
    dataset = DATASETS["events"].found(config_of(tmp_path))
    assert dataset.classes == tuple("0123456789") and dataset.num_classes == 10
    assert "10 classes (0, 1, 2, 3, 4, 5, 6, 7, 8, 9), a sensor of 34x30 pixels" in caplog.text
    config = config_of(tmp_path, timestep=3)
    parts = dataset.load(config)
    assert {name: len(part) for name, part in vars(parts).items()} == {"train": 90, "val": 10, "test": 20}
    ((frames, *_),) = parts.test.batches(20, CPU)
    assert frames.shape == (3, 20, *dataset.input_shape(config)) == (3, 20, 2, 30, 34)
    assert dataset.augmentation(TrainConfig(flip=True)).flippable.all()
    assert not DATASETS["events"].classes  # nothing is found for all


# --- images


@pytest.mark.parametrize(("size", "found"), [((30, 40), (40, 30)), (None, (64, 64)), ((65, 20), (64, 64))])
def test_images_keep_their_size_if_it_is_small_and_the_same_for_all(tmp_path, size, found):
    files = sorted(images(tmp_path, size=size).glob("*/*/*.png"))
    assert common_size(files, 64) == found


def test_an_image_fills_its_place_and_is_cropped_in_the_middle(tmp_path):
    pixels = np.zeros((20, 60, 3), np.uint8)
    pixels[:, 20:40] = 200  # the middle third
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert np.array_equal(fitted(tmp_path / "a.png", (60, 20)), pixels.transpose(2, 0, 1))
    middle = fitted(tmp_path / "a.png", (10, 10))
    assert middle.shape == (3, 10, 10) and (middle[:, :, 2:8] == 200).all()
    assert fitted(tmp_path / "a.png", (5, 8)).shape == (3, 8, 5)


@pytest.mark.parametrize(("image_size", "side"), [(0, 64), (24, 24)])
def test_images_are_found_and_loaded(tmp_path, caplog, image_size, side):
    caplog.set_level(logging.INFO)
    config = config_of(images(tmp_path), image_size=image_size)
    dataset = DATASETS["images"].found(config)
    assert f"2 classes (cat, dog), images of {side}x{side} pixels" in caplog.text
    parts = dataset.load(config)
    assert {name: len(part) for name, part in vars(parts).items()} == {"train": 18, "val": 2, "test": 4}
    assert parts.test.images.shape[1:] == dataset.input_shape(config) == (3, side, side)
    means = parts.test.images.float().mean((2, 3))
    assert (means[:2, 0] > means[:2, 2]).all() and (means[2:, 0] < means[2:, 2]).all()


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_streamed_images_give_the_batches_of_images_in_memory(tmp_path, workers):
    config = config_of(images(tmp_path), image_size=16)
    dataset = DATASETS["images"].found(config)
    whole = dataset.load(config)
    streamed = dataset.load(config_of(tmp_path, image_size=16, memory_gb=0.0))
    for name, part in vars(streamed).items():
        assert isinstance(part, StreamedImages) and isinstance(getattr(whole, name), LabelledImages)
        part.workers = workers
        augment = dataset.augmentation(TrainConfig(flip=True, crop_padding=2))
        options = dict(shuffle=name == "train", augment=augment)
        passes = []
        for data in (getattr(whole, name), part):
            torch.manual_seed(0)
            batches = data.batches(4, CPU, **options)
            order = batches.order()
            passes.append([*batches.passing(order), *batches.passing(order, 1)])
            for left_early in batches.passing(order):
                assert len(left_early) == 2
                break
            passes[-1] += [*batches.passing(order), torch.rand(3)]
        for first, second in zip(*passes, strict=True):
            torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_no_more_processes_decode_than_there_are_cores(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    config = TrainConfig(data_root=str(images(tmp_path)), workers=4, memory_gb=0.0)
    assert DATASETS["images"].found(config).load(config).train.workers == 2


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_an_image_that_cannot_be_streamed_is_named_in_words(tmp_path, workers):
    config = config_of(images(tmp_path), image_size=16, memory_gb=0.0)
    data = DATASETS["images"].found(config).load(config).test
    data.workers = workers
    data.files[1].write_bytes(b"text")
    with pytest.raises(UserError) as caught:
        list(data.batches(3, CPU))
    assert str(caught.value).startswith(f"{data.files[1]} is not a readable image: ") and "\n" not in str(caught.value)


# --- checkpoints


def test_these_data_sets_alone_are_found():
    assert {name for name, dataset in DATASETS.items() if isinstance(dataset, OwnDataset)} == {"events", "images"}


@pytest.mark.parametrize("name", ["events", "images"])
def test_what_was_found_is_in_the_checkpoint_so_that_testing_needs_no_more(run_script, undrawn, tmp_path, name):
    folder, run = tmp_path / "data", tmp_path / "run"
    striped_nmnist_tree(folder, training=10, test=2) if name == "events" else images(folder)
    flags = ["--image_size", 12] if name == "images" else ["--timestep", 2]
    flags += ["--neuron", "LIF", "--threshold", 0.1, "--flip"]  # without noise, what is tested is as it was in training
    trained = run_script(f"main_{name}.py", *QUICK, *flags, "--data_root", folder, "--run_dir", run)
    assert trained.code == 0, trained.messages
    facts = checkpoint.read(run / "best.pth")["facts"]
    assert facts == {"events": {"classes": list("0123456789"), "sensor": [34, 30]}}.get(
        name, {"classes": ["cat", "dog"], "size": [12, 12]}
    )
    snapshot = ["--snapshot", run / "best.pth", "--threads", 1, "--draws", 1, "--minibatch", 5]
    tested = run_script(f"testing_{name}.py", *snapshot, "--data_root", folder, "--uncertainty")
    assert tested.code == 0, tested.messages
    first = json.loads((run / "evaluation" / "clean.json").read_text())["points"][0]
    trained = json.loads((run / "test.json").read_text())
    assert [first["accuracy_mean"], first["loss_mean"]] == pytest.approx([trained["accuracy"], trained["loss"]])
    resumed = run_script(f"main_{name}.py", "--resume", run, "--epochs", 2)
    assert resumed.code == 0, resumed.messages
    for part in folder.iterdir():
        place = min(part.iterdir())
        place.rename(place.with_name("unknown"))
    refused = run_script(f"testing_{name}.py", *snapshot, "--data_root", folder)
    assert refused.code == 1 and re.search(r"has the classes \[.*'unknown'\]; the network was .* on", refused.messages)


@pytest.mark.parametrize("name", ["events", "images"])
def test_facts_that_are_none_are_refused(tmp_path, name):
    dataset, size = DATASETS[name], "sensor" if name == "events" else "size"
    good = {"classes": ["a", "b"], size: [30, 20]}
    assert dataset.with_facts(good).facts() == good
    assert dataset.with_facts(good).input_shape(TrainConfig())[1:] == (20, 30)
    wrong = [None, [], {"classes": ["a"]}, {**good, size: [30]}, {**good, size: [30, 0]}, {**good, size: [1.5, 2]}]
    wrong += [{**good, size: [2**40, 2]}, {**good, "classes": []}, {**good, "classes": ["a", "a"]}, {**good, size: 3}]
    wrong += [{**good, "classes": [1, 2]}, {**good, "classes": None}, {**good, size: ["1", "2"]}]
    for facts in wrong:
        with pytest.raises(UserError, match="does not say which classes"):
            dataset.with_facts(facts)
    checkpoint.save(tmp_path / "a.pth", {"config": {}, "dataset": name, "model": {}})
    with pytest.raises(CheckpointError, match="a.pth: it does not say"):
        dataset_of(EvaluationConfig(snapshot=str(tmp_path / "a.pth")), dataset)


def test_a_checkpoint_of_others_gets_the_classes_of_the_folder(tmp_path):
    torch.save({"net": {}}, tmp_path / "theirs.pth")
    config = EvaluationConfig(snapshot=str(tmp_path / "theirs.pth"), data_root=str(images(tmp_path / "data")))
    assert dataset_of(config, DATASETS["images"]).classes == ("cat", "dog")


@pytest.mark.parametrize("name", ["events", "images"])
def test_one_class_is_refused(tmp_path, name):
    folder = recordings(tmp_path, ["left"]) if name == "events" else images(tmp_path, classes=["left"])
    with pytest.raises(UserError, match="has the class left alone"):
        DATASETS[name].found(config_of(folder))


def test_two_recordings_of_each_class_are_enough(tmp_path):
    config = config_of(recordings(tmp_path, count=2))
    parts = DATASETS["events"].found(config).load(config)
    assert [sorted(part.labels.tolist()) for part in vars(parts).values()] == [[0, 1], [0, 1], [0, 0, 1, 1]]


def test_one_image_of_each_class_is_too_few(tmp_path, run_script):
    images(tmp_path / "data", train=1)
    done = run_script("main_images.py", "--data_root", tmp_path / "data", *QUICK, "--run_dir", tmp_path / "run")
    assert done.code == 1 and "its val part has no samples; it is held out from the training samples" in done.messages


@pytest.mark.parametrize("name", ["events", "images"])
def test_a_folder_is_listed_and_what_is_skipped_is_said_once(tmp_path, name, caplog):
    folder = recordings(tmp_path) if name == "events" else images(tmp_path)
    touch(min(tmp_path.glob("train/*")) / "notes.md", b"text")
    for suffix in ("bin", "png"):  # a folder is none of the files, whatever its name
        (min(tmp_path.glob("train/*")) / f"folder.{suffix}").mkdir()
    config = config_of(folder, timestep=2)
    DATASETS[name].found(config).load(config)
    assert caplog.text.count("skipped") == 1


def test_names_of_any_bytes_are_read(tmp_path):
    recordings(tmp_path)
    os.rename(tmp_path / "train/left/a.bin", os.fsencode(tmp_path / "train/left") + b"/\xff\xfe.bin")
    config = config_of(tmp_path, timestep=2)
    parts = DATASETS["events"].found(config).load(config)
    assert len(parts.train) + len(parts.val) == 6


def test_what_is_not_a_file_is_an_error_if_it_is_named_like_one(tmp_path, caplog):
    recordings(tmp_path)
    os.mkfifo(tmp_path / "test/left/pipe")
    assert len(list_own(tmp_path).test) == 6 and "skipped files * (1)" in caplog.text
    (tmp_path / "train/left/gone.bin").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="gone.bin"):
        sensor_of(list_own(tmp_path))


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize(("orientation", "size"), [(1, (40, 20)), (3, (40, 20)), (6, (20, 40)), (8, (20, 40))])
def test_the_common_size_of_photographs_is_that_after_they_are_turned(tmp_path, suffix, orientation, size):
    exif, path = Image.Exif(), tmp_path / f"a.{suffix}"
    exif[274] = orientation
    Image.linear_gradient("L").resize((40, 20)).convert("RGB").save(path, exif=exif)
    assert common_size([path], 64) == size
    upright = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(fitted(path, size), upright)  # neither scaled nor cropped


def test_a_file_that_is_not_an_image_says_so(tmp_path):
    (tmp_path / "a.png").write_bytes(b"text")
    for read in (lambda: common_size([tmp_path / "a.png"], 64), lambda: fitted(tmp_path / "a.png", (4, 4))):
        with pytest.raises(UserError, match="a.png is not a readable image: its content is of none of JPEG, PNG"):
            read()

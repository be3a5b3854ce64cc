"""Data sets by name: what is embedded, how the splits are made, and what is said when data are absent."""

import gzip
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

import dataset_utils
from dataset_utils import DATASETS, data_root


@pytest.fixture(scope="module")
def mnist5k():
    return DATASETS["mnist5k"].load()


def test_mnist5k_is_split_fixed_stratified_and_disjoint(mnist5k):
    sizes = {name: len(part) for name, part in mnist5k.items()}
    assert sizes == {"train": 3600, "val": 400, "test": 1000}
    for name, per_class in (("train", 360), ("val", 40), ("test", 100)):
        assert mnist5k[name].labels.bincount().tolist() == [per_class] * 10
        assert mnist5k[name].images.shape[1:] == (1, 28, 28)
        assert mnist5k[name].images.dtype == torch.uint8
    seen = [{image.numpy().tobytes() for image in part.images} for part in mnist5k.values()]
    assert sum(map(len, seen)) == len(set().union(*seen)) == 5000
    again = DATASETS["mnist5k"].load()
    assert torch.equal(again["test"].images, mnist5k["test"].images)


def test_the_split_of_mnist5k_never_changes(mnist5k):
    """Reported accuracies refer to these 1,000 images: a checksum of their content."""
    weights = torch.arange(1, 1001, dtype=torch.int64)
    assert (mnist5k["test"].images.long().sum((1, 2, 3)) * weights).sum().item() == 12925261723


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "mnist", "fashionmnist"])
def test_absent_data_say_where_they_were_looked_for_and_how_to_get_them(name, tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        DATASETS[name].load(root=str(tmp_path / "nowhere"))
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
    for split, count in (("train", 10), ("test", 2)):
        for label in range(10):
            folder = tmp_path / "data" / place / split / f"class{label}"
            folder.mkdir(parents=True)
            for index in range(count):
                Image.fromarray(np.full((32, 32, 3), 20 * label, np.uint8)).save(folder / f"{index}.jpg", quality=95)
    parts = DATASETS["cifar10"].load(root=str(tmp_path / "data"))
    assert {name: len(part) for name, part in parts.items()} == {"train": 90, "val": 10, "test": 20}
    assert parts["val"].labels.bincount().tolist() == [1] * 10
    means = parts["train"].images.float().mean((1, 2, 3))
    assert torch.allclose(means, 20.0 * parts["train"].labels, atol=2)


@pytest.mark.parametrize(("size", "classes"), [(8, 10), (32, 12)])
def test_a_folder_of_other_images_is_not_taken_for_cifar10(tmp_path, monkeypatch, size, classes):
    monkeypatch.setenv("NSNN_CACHE", str(tmp_path / "cache"))
    for split in ("train", "test"):
        for label in range(classes):
            folder = tmp_path / split / f"class{label:02}"
            folder.mkdir(parents=True)
            Image.fromarray(np.zeros((size, size, 3), np.uint8)).save(folder / "0.png")
    with pytest.raises(
        ValueError, match=f"cifar10 has images .* what was read has images .3, {size}, .* {classes} classes"
    ):
        DATASETS["cifar10"].load(root=str(tmp_path))


def test_a_failed_download_says_why(tmp_path, monkeypatch):
    def fail(*args, **options):
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", fail)
    with pytest.raises(FileNotFoundError, match="could not be downloaded .* no route to host"):
        DATASETS["cifar100"].load(root=str(tmp_path), download=True)


def test_cifar10_in_the_published_format_is_preferred(tmp_path, monkeypatch):
    """Files as torchvision unpacks them; its checksums are of the real files, so that check is set aside."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (tmp_path / "train").mkdir()
    (tmp_path / "test").mkdir()
    row = np.arange(3072, dtype=np.uint32).astype(np.uint8)
    for name in [*(f"data_batch_{index}" for index in range(1, 6)), "test_batch"]:
        batch = {"data": np.tile(row, (20, 1)), "labels": [index % 10 for index in range(20)]}
        (folder / name).write_bytes(pickle.dumps(batch))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    monkeypatch.setattr("torchvision.datasets.CIFAR10._check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *args: True)
    parts = DATASETS["cifar10"].load(root=str(tmp_path))
    assert {name: len(part) for name, part in parts.items()} == {"train": 90, "val": 10, "test": 20}
    image = parts["test"].images[0]
    assert image.shape == (3, 32, 32)
    assert torch.equal(image.flatten(), torch.from_numpy(row))  # channel, then row, then column


def write_idx(path, array):
    """A file of the MNIST format: magic number, sizes (big endian), bytes."""
    header = np.array([0x0800 + array.ndim, *array.shape], dtype=">u4").tobytes()
    path.write_bytes(header + array.astype(np.uint8).tobytes())


def test_fashionmnist_is_read_from_its_published_files(tmp_path):
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 28, 28))
    labels = np.arange(40) % 10
    for prefix, count in (("train", 40), ("t10k", 20)):
        write_idx(raw / f"{prefix}-images-idx3-ubyte", images[:count])
        write_idx(raw / f"{prefix}-labels-idx1-ubyte", labels[:count])
    parts = DATASETS["fashionmnist"].load(root=str(tmp_path))
    assert len(parts["test"]) == 20 and parts["test"].labels.tolist() == labels[:20].tolist()
    assert np.array_equal(parts["test"].images[:, 0].numpy(), images[:20])


@pytest.mark.realdata
def test_real_cifar10_has_its_known_size_and_mean(cifar10_folder):
    parts = DATASETS["cifar10"].load(root=str(cifar10_folder))
    assert sum(len(parts[name]) for name in ("train", "val")) == 50_000
    mean = parts["train"].images[::10].float().mean((0, 2, 3)) / 255
    assert mean.tolist() == pytest.approx(DATASETS["cifar10"].mean, abs=0.005)


@pytest.mark.realdata
def test_real_fashionmnist_of_debian(tmp_path):
    import pathlib

    source = pathlib.Path("/usr/share/datasets/fashion-mnist")
    if not source.is_dir():
        pytest.skip("the Debian package dataset-fashion-mnist is not installed")
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for path in source.glob("*.gz"):
        (raw / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
    parts = DATASETS["fashionmnist"].load(root=str(tmp_path))
    assert {name: len(part) for name, part in parts.items()} == {"train": 54_000, "val": 6_000, "test": 10_000}
    mean = parts["train"].images.float().mean().item() / 255
    assert mean == pytest.approx(DATASETS["fashionmnist"].mean[0], abs=0.002)

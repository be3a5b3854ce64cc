"""Small image data sets, written from the specifications of their formats and not by what is tested."""

import pickle

import numpy as np
from PIL import Image


def image_folder(folder, training=10, test=2, ending="png"):
    """CIFAR-10 as images {train,test}/<class>/*: class k is grey of the value 20 k."""
    for split, count in (("train", training), ("test", test)):
        for label in range(10):
            path = folder / split / f"class{label}"
            path.mkdir(parents=True)
            for index in range(count):
                Image.fromarray(np.full((32, 32, 3), 20 * label, np.uint8)).save(path / f"{index}.{ending}", quality=95)


def write_idx(path, array):
    """A file of the MNIST format: magic number, sizes (big endian), bytes."""
    header = np.array([0x0800 + array.ndim, *array.shape], dtype=">u4").tobytes()
    path.write_bytes(header + array.astype(np.uint8).tobytes())


def idx_files(folder, training=100, test=20):
    """MNIST or FashionMNIST in <folder>/raw: random images [N, 28, 28] and labels [N], of which both parts begin."""
    raw = folder / "raw"
    raw.mkdir(parents=True)
    images, labels = np.random.default_rng(0).integers(0, 256, (training, 28, 28)), np.arange(training) % 10
    for prefix, count in (("train", training), ("t10k", test)):
        write_idx(raw / f"{prefix}-images-idx3-ubyte", images[:count])
        write_idx(raw / f"{prefix}-labels-idx1-ubyte", labels[:count])
    return images, labels


PIXELS = np.arange(3072, dtype=np.uint32).astype(np.uint8)  # of each image of the batches: channel, row, column


def cifar10_batches(folder):
    """CIFAR-10 as torchvision unpacks it, with 20 images in each batch."""
    folder = folder / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name in [*(f"data_batch_{index}" for index in range(1, 6)), "test_batch"]:
        _batch(folder / name, "labels", [index % 10 for index in range(20)])
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))


def cifar100_batches(folder):
    """CIFAR-100 as torchvision unpacks it: ten images of each class to train, one to test."""
    folder = folder / "cifar-100-python"
    folder.mkdir(parents=True)
    for name, count in (("train", 10), ("test", 1)):
        _batch(folder / name, "fine_labels", [index % 100 for index in range(100 * count)])
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": [f"class{index}" for index in range(100)]}))


def _batch(path, key, labels):
    path.write_bytes(pickle.dumps({"data": np.tile(PIXELS, (len(labels), 1)), key: labels}))


def without_checksums(monkeypatch):
    """torchvision knows the checksums of the real files only."""
    for name in ("CIFAR10._check_integrity", "CIFAR100._check_integrity", "cifar.check_integrity"):
        monkeypatch.setattr(f"torchvision.datasets.{name}", lambda *args: True)

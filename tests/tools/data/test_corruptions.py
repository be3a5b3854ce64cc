"""Folders of corrupted images, as CIFAR-10-C has them."""

import numpy as np
import pytest
import torch

from tools.data.corruptions import CorruptionFolder
from tools.errors import UserError

SHAPE = (3, 4, 5)  # C, H, W, all different, so that a swap of axes shows


def written(folder, labels, images=None):
    images = np.random.default_rng(0).integers(256, size=(15, 4, 5, 3), dtype=np.uint8) if images is None else images
    np.save(folder / "fog.npy", images)
    np.save(folder / "labels.npy", labels)
    return images


def write_corruptions(folder, images, labels):
    """Files as CIFAR-10-C has them; severity k has the pixels of the images raised by k."""
    folder.mkdir()
    pixels = images.permute(0, 2, 3, 1).numpy()
    for name in ("fog", "snow"):
        np.save(
            folder / f"{name}.npy", np.concatenate([np.minimum(pixels + k, 255) for k in range(1, 6)]).astype("uint8")
        )
    np.save(folder / "labels.npy", np.tile(labels.numpy(), 5))


def test_a_folder_of_corruptions_that_does_not_fit_is_refused_by_file(stripes, tmp_path):
    data = stripes.load().test

    def refused(message, error=ValueError):
        with pytest.raises(error, match=message):
            CorruptionFolder(tmp_path / "c", stripes.in_shape, 2)

    refused("needs labels.npy", FileNotFoundError)
    write_corruptions(tmp_path / "c", data.images, data.labels)
    (tmp_path / "c" / "._fog.npy").write_bytes(b"which macOS leaves behind")
    folder = CorruptionFolder(tmp_path / "c", stripes.in_shape, 2)
    assert folder.names == ["fog", "snow"] and len(folder.part("snow", 5)) == 50
    labels = np.load(tmp_path / "c" / "labels.npy")
    np.save(tmp_path / "c" / "labels.npy", labels[:50])  # once is enough
    assert CorruptionFolder(tmp_path / "c", stripes.in_shape, 2).labels.equal(data.labels)
    (tmp_path / "c" / "snow.npy").write_bytes(b"no array")
    refused("snow.npy .* .npy file")
    np.save(tmp_path / "c" / "snow.npy", np.array([{}], dtype=object), allow_pickle=True)  # a pickle is not run
    refused("snow.npy .* .npy file")


@pytest.mark.parametrize("times", [1, 5], ids=["labels of a severity", "labels of all severities"])
def test_each_severity_has_its_images_and_the_labels(tmp_path, times):
    images = written(tmp_path, np.tile([2, 0, 1], times))
    folder = CorruptionFolder(tmp_path, SHAPE, 3)
    assert folder.names == ["fog"] and len(folder.stamps()) == 2
    for severity in (1, 2, 3, 4, 5):
        part = folder.part("fog", severity)
        expected = images[3 * severity - 3 : 3 * severity].transpose(0, 3, 1, 2)
        assert part.images.dtype == torch.uint8 and (part.images.numpy() == expected).all()
        assert part.labels.tolist() == [2, 0, 1]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, 3], "labels outside 0 to 2"),
        ([0, -1, 2], "labels outside 0 to 2"),
        ([0.0, 1.0, 2.0], "must be integers"),
        ([[0], [1], [2]], "must be integers"),
        ([0, 1], "equally many images, at 5 severities: fog 15, labels.npy 2"),
        ([0, 1, 2] * 4 + [0, 2, 1], "differs between severities"),
    ],
)
def test_labels_that_do_not_fit_are_named(tmp_path, labels, message):
    written(tmp_path, np.array(labels))
    with pytest.raises(UserError, match=message):
        CorruptionFolder(tmp_path, SHAPE, 3)


def test_images_that_do_not_fit_are_named(tmp_path):
    for shape, dtype, message in (
        ((15, 5, 4, 3), np.uint8, r"uint8 \[N, 4, 5, 3\], got uint8 \[15, 5, 4, 3\]"),
        ((15, 4, 5, 3), np.float32, "got float32"),
        ((14, 4, 5, 3), np.uint8, "at 5 severities: fog 14"),
        ((0, 4, 5, 3), np.uint8, "at 5 severities: fog 0"),
    ):
        written(tmp_path, np.array([0, 1, 2]), np.zeros(shape, dtype))
        with pytest.raises(UserError, match=message):
            CorruptionFolder(tmp_path, SHAPE, 3)
    written(tmp_path, np.array([0, 1, 2]))
    np.save(tmp_path / "snow.npy", np.zeros((10, 4, 5, 3), np.uint8))
    with pytest.raises(UserError, match="fog 15, snow 10"):
        CorruptionFolder(tmp_path, SHAPE, 3)
    (tmp_path / "labels.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"needs labels\.npy"):
        CorruptionFolder(tmp_path, SHAPE, 3)

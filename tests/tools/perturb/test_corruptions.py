"""A folder of corrupted images."""

import numpy as np
import pytest
import torch

from tools.errors import UserError
from tools.perturb.corruptions import CorruptionFolder

SHAPE = (3, 4, 5)  # C, H, W, all different, so that a swap of axes shows


def written(folder, labels, images=None):
    images = np.random.default_rng(0).integers(256, size=(15, 4, 5, 3), dtype=np.uint8) if images is None else images
    np.save(folder / "fog.npy", images)
    np.save(folder / "labels.npy", labels)
    return images


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

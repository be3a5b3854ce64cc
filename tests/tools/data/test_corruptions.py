"""Folders of corrupted images, as CIFAR-10-C has them."""

import numpy as np
import pytest

from tools.data.corruptions import CorruptionFolder


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
    for content, message in (
        (labels + 1, "outside 0 to 1"),
        (labels[:-1], "equally many"),
        (labels.astype(float), "integers"),
        (np.where(np.arange(250) == 249, 1 - labels, labels), "differs between severities"),
    ):
        np.save(tmp_path / "c" / "labels.npy", content)
        refused(message)
    np.save(tmp_path / "c" / "labels.npy", labels[:50])  # once is enough
    assert CorruptionFolder(tmp_path / "c", stripes.in_shape, 2).labels.equal(data.labels)
    snow = np.load(tmp_path / "c" / "snow.npy")
    for content, message in (
        (snow[:-5], "equally many"),
        (snow[:, :4], "snow.npy must be uint8"),
        (snow / 255, "uint8"),
    ):
        np.save(tmp_path / "c" / "snow.npy", content)
        refused(message)
    (tmp_path / "c" / "snow.npy").write_bytes(b"no array")
    refused("snow.npy .* .npy file")
    np.save(tmp_path / "c" / "snow.npy", np.array([{}], dtype=object), allow_pickle=True)  # a pickle is not run
    refused("snow.npy .* .npy file")

"""Batches, splits, and image folders with their cache."""

import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from tools.data import image_folder
from tools.data.image_folder import read_image_folder
from tools.data.images import ImageBatches, LabelledImages, stratified_split


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A tree {train,test}/<class>/*.png of constant images, and a cache folder of its own."""
    monkeypatch.setenv("NSNN_CACHE", str(tmp_path / "cache"))
    for split, count in (("train", 3), ("test", 1)):
        for label, name in enumerate(("cat", "dog")):
            place = tmp_path / "tree" / split / name
            place.mkdir(parents=True)
            for index in range(count):
                pixels = np.full((6, 4, 3), 100 * label + index, np.uint8)
                pixels[..., 0] = 7  # red differs, so that a swap of channels shows
                Image.fromarray(pixels).save(place / f"{index}.png")
    return tmp_path / "tree"


def test_a_folder_is_read_in_the_order_of_names_with_channels_first(folder):
    train, test = read_image_folder(folder)
    assert train.images.shape == (6, 3, 6, 4)
    assert train.images.dtype == torch.uint8
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert train.images[:, 1, 0, 0].tolist() == [0, 1, 2, 100, 101, 102]
    assert train.images[:, 0, 0, 0].tolist() == [7] * 6
    assert test.labels.tolist() == [0, 1]


def test_a_folder_is_decoded_once_and_again_when_it_changes(folder, monkeypatch):
    decoded = []
    original = image_folder._decode
    monkeypatch.setattr(
        image_folder, "_decode", lambda files, *rest: decoded.append(len(files)) or original(files, *rest)
    )
    first = read_image_folder(folder)
    second = read_image_folder(folder)
    assert decoded == [8]
    assert torch.equal(first[0].images, second[0].images)
    assert torch.equal(first[1].labels, second[1].labels)
    path = folder / "train" / "cat" / "0.png"
    stat = path.stat()
    Image.fromarray(np.full((6, 4, 3), 55, np.uint8)).save(path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # the content counts, not the date
    changed, _ = read_image_folder(folder)
    assert decoded == [8, 8]
    assert changed.images[0, 1, 0, 0] == 55


def test_images_that_other_code_has_decoded_are_not_found(folder, tmp_path, monkeypatch):
    read_image_folder(folder)
    monkeypatch.setattr(image_folder, "code_fingerprint", lambda *names, **options: "other code")
    read_image_folder(folder)
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_a_copy_of_a_folder_uses_the_same_cache(folder, tmp_path):
    read_image_folder(folder)
    shutil.copytree(folder, tmp_path / "copy")
    read_image_folder(tmp_path / "copy")
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_without_a_place_for_the_cache_images_are_read_all_the_same(folder, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("NSNN_CACHE", str(tmp_path / "file"))
    train, _ = read_image_folder(folder)
    assert len(train) == 6
    assert "cannot be cached" in caplog.text


def test_a_damaged_cache_is_made_anew(folder, tmp_path):
    first, _ = read_image_folder(folder)
    (cache,) = (tmp_path / "cache").glob("*.npz")
    cache.write_bytes(cache.read_bytes()[:100])
    second, _ = read_image_folder(folder)
    assert torch.equal(first.images, second.images)
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_file_that_is_no_image_is_named(folder):
    (folder / "train" / "dog" / "9.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"dog/9\.png is not a readable image"):
        read_image_folder(folder)


def test_an_image_of_another_size_is_named(folder):
    Image.fromarray(np.zeros((5, 5, 3), np.uint8)).save(folder / "train" / "dog" / "9.png")
    with pytest.raises(ValueError, match=r"dog/9\.png is 5x5, others 4x6"):
        read_image_folder(folder)


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no images in .*train"):
        read_image_folder(tmp_path)


def data(count=10):
    return LabelledImages(torch.arange(count, dtype=torch.uint8).reshape(-1, 1, 1, 1), torch.arange(count))


def test_an_evaluation_pass_has_every_image_once_in_order():
    batches = ImageBatches(data(), 4, torch.device("cpu"))
    labels = [labels.tolist() for _, labels in batches]
    assert labels == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert len(batches) == 3
    assert all(torch.allclose(images.flatten() * 255, labels.float()) for images, labels in batches)


def test_a_training_pass_is_shuffled_anew_and_drops_what_fills_no_batch():
    torch.manual_seed(0)
    batches = ImageBatches(data(), 4, torch.device("cpu"), shuffle=True)
    passes = [torch.cat([labels for _, labels in batches]).tolist() for _ in range(2)]
    assert len(batches) == 2
    assert all(len(set(labels)) == 8 for labels in passes)
    assert passes[0] != passes[1]
    torch.manual_seed(0)
    assert torch.cat([labels for _, labels in batches]).tolist() == passes[0]


def test_a_training_set_smaller_than_a_batch_is_one_batch():
    assert len(list(ImageBatches(data(3), 4, torch.device("cpu"), shuffle=True))) == 1


def test_the_number_of_batches_can_be_limited():
    assert len(list(ImageBatches(data(), 2, torch.device("cpu"), limit=3))) == 3


def test_a_stratified_split_is_disjoint_complete_fixed_and_fair():
    labels = torch.arange(100) % 5
    first, second = stratified_split(labels, 0.2, seed=3)
    assert sorted([*first.tolist(), *second.tolist()]) == list(range(100))
    assert labels[second].bincount().tolist() == [4] * 5
    again = stratified_split(labels, 0.2, seed=3)
    other = stratified_split(labels, 0.2, seed=4)
    assert torch.equal(second, again[1])
    assert not torch.equal(second, other[1])

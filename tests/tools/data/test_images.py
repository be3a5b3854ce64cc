"""Batches, splits, and image folders with their cache."""

import io
import os
import shutil
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from tools.data import image_folder
from tools.data.image_folder import read_image_folder
from tools.data.images import ImageBatches, LabelledImages, stratified_split
from tools.errors import UserError


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
    first = read_image_folder(folder)
    with monkeypatch.context() as patch:
        patch.setattr(image_folder.Image, "open", None)
        second = read_image_folder(folder)
    assert torch.equal(first[0].images, second[0].images)
    assert torch.equal(first[1].labels, second[1].labels)
    path = folder / "train" / "cat" / "0.png"
    stat = path.stat()
    Image.fromarray(np.full((6, 4, 3), 55, np.uint8)).save(path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # the content counts, not the date
    changed, _ = read_image_folder(folder)
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


def test_a_file_that_is_not_an_image_is_named(folder):
    (folder / "train" / "dog" / "9.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"dog/9\.png is not a readable image"):
        read_image_folder(folder)


def test_an_image_of_another_size_is_named(folder):
    Image.fromarray(np.zeros((5, 5, 3), np.uint8)).save(folder / "train" / "dog" / "9.png")
    with pytest.raises(ValueError, match=r"dog/9\.png is 5x5, others 4x6"):
        read_image_folder(folder)


GREY16 = np.array([[0, 255, 256, 0x1234], [0x8000, 0xFF00, 0xFFFF, 40_000]], np.uint16).repeat(3, 0)  # [6, 4]


def png(pixels, colour):
    """A PNG of 16 bits, which Pillow writes in grey alone. `pixels`: uint16 [H, W * channels]."""

    def chunk(name, content):
        crc = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + crc

    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colour]
    head = struct.pack(">IIBBBBB", pixels.shape[1] // channels, len(pixels), 16, colour, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def with_alpha(mode, alpha):
    image = Image.fromarray(np.full((6, 4), 50, np.uint8)).convert(mode)
    image.putalpha(Image.fromarray(np.full((6, 4), alpha, np.uint8)))
    return image


BITS = np.indices((6, 4)).sum(0) % 2 == 1
BY_TEN = np.arange(24, dtype=np.uint8).reshape(6, 4) * 10
FLIPPED = Image.fromarray(BY_TEN[::-1].copy())
DEPTHS = {
    "grey of 16 bits": (encoded(Image.fromarray(GREY16)), GREY16 >> 8),
    "the same as PGM": (b"P5\n4 6\n65535\n" + GREY16.astype(">u2").tobytes(), GREY16 >> 8),
    "PGM of 10 bits": (b"P5\n4 6\n1023\n" + (BITS * 1023).astype(">u2").tobytes(), BITS * 255),
    "PPM of 4 bits": (b"P6\n4 6\n15\n" + (BITS * 15).astype(np.uint8).repeat(3).tobytes(), BITS * 255),
    "colours of 16 bits": (png(GREY16.repeat(3, 1), 2), GREY16 >> 8),
    "opaque grey of 16 bits": (png(np.stack([GREY16, GREY16 | 0xFFFF], -1).reshape(6, 8), 4), GREY16 >> 8),
    "grey of 16 bits as TIFF": (encoded(Image.fromarray(GREY16), "TIFF"), GREY16 >> 8),
    "palette as TIFF": (encoded(Image.fromarray(BY_TEN).convert("P"), "TIFF"), BY_TEN),
    "1 bit as TIFF": (encoded(Image.fromarray(BITS), "TIFF"), BITS * 255),
    "opaque GIF": (encoded(Image.fromarray(BY_TEN), "GIF"), BY_TEN),
    "JPEG with a preview": (
        encoded(Image.new("RGB", (4, 6), (90,) * 3), "MPO", save_all=True, append_images=[Image.new("RGB", (2, 3))]),
        np.full((6, 4), 90),
    ),
    "1 bit": (encoded(Image.fromarray(BITS)), BITS * 255),
    "1 bit as BMP": (encoded(Image.fromarray(BITS), "BMP"), BITS * 255),
    "2 bits": (encoded(Image.fromarray(BITS * np.uint8(3)).convert("P"), bits=2), BITS * 3),
    "grey": (encoded(Image.fromarray(BY_TEN)), BY_TEN),
    "grey JPEG": (encoded(Image.fromarray(np.full((6, 4), 90, np.uint8)), "JPEG"), np.full((6, 4), 90)),
    "palette": (encoded(Image.fromarray(BY_TEN).convert("P")), BY_TEN),
    "CMYK": (encoded(Image.new("CMYK", (4, 6), (0, 0, 0, 155)), "JPEG", quality=100), np.full((6, 4), 100)),
    "opaque": (encoded(with_alpha("RGB", 255)), np.full((6, 4), 50)),
    "opaque grey": (encoded(with_alpha("L", 255)), np.full((6, 4), 50)),
    "opaque WEBP": (encoded(with_alpha("RGB", 255), "WEBP", lossless=True), np.full((6, 4), 50)),
    "palette with a transparent colour not in use": (
        encoded(Image.fromarray(BY_TEN).convert("P"), transparency=255),
        BY_TEN,
    ),
}


@pytest.mark.parametrize("depth", DEPTHS)
def test_pixels_of_other_depths_are_scaled(folder, depth):
    content, grey = DEPTHS[depth]
    suffix = "ppm" if content[:1] == b"P" else "png"
    (folder / "train" / "cat" / "0.png").unlink()
    (folder / "train" / "cat" / f"0.{suffix}").write_bytes(content)
    train, _ = read_image_folder(folder)
    difference = train.images[0].int() - torch.from_numpy(grey.astype(np.int32))
    assert difference.abs().max() <= 1  # JPEG rounds, and so does CMYK
    assert train.images[1, 1, 0, 0] == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (encoded(with_alpha("RGB", 254)), "transparent"),
        (encoded(with_alpha("L", 0)), "transparent"),
        (encoded(with_alpha("RGB", 100), "WEBP", lossless=True), "transparent"),
        (encoded(Image.fromarray(BY_TEN).convert("P"), transparency=230), "transparent"),
        (encoded(Image.fromarray(BY_TEN), transparency=230), "transparent"),
        (encoded(Image.new("RGB", (4, 6), (1, 2, 3)), transparency=(1, 2, 3)), "transparent"),
        (png(GREY16.repeat(4, 1), 6), "transparent"),
        (encoded(Image.fromarray(GREY16.astype(np.float32)), "PPM"), "floating point"),
        (encoded(Image.fromarray(GREY16.astype(np.float32)), "TIFF"), "floating point"),
        (encoded(Image.fromarray(GREY16.astype(np.int32)), "TIFF"), "32 bits"),
        (encoded(Image.fromarray(GREY16), "TIFF", tiffinfo={339: 2}), "signed"),
        (encoded(Image.fromarray(BY_TEN), "TIFF", tiffinfo={339: 2}), "signed"),
        (encoded(Image.fromarray(GREY16), "TIFF", tiffinfo={262: 0}), "inverted"),
        (encoded(with_alpha("RGB", 254), "TIFF"), "transparent"),
        (encoded(Image.fromarray(BY_TEN).convert("P"), "GIF", transparency=230), "transparent"),
        *(
            (encoded(Image.fromarray(BY_TEN), kind, save_all=True, append_images=[FLIPPED]), "several images")
            for kind in ("GIF", "TIFF", "PNG", "WEBP")
        ),
    ],
)
def test_pixels_without_one_meaning_are_refused_by_file(folder, content, message):
    (folder / "train" / "dog" / "1.png").write_bytes(content)
    with pytest.raises(UserError, match=rf"dog/1\.png is not a readable image: .*{message}"):
        read_image_folder(folder)


def test_hidden_files_and_folders_are_skipped_with_one_warning(folder, caplog):
    whole = read_image_folder(folder)
    for place in ("train/cat/._0.png", "test/dog/._0.png", "train/.ipynb_checkpoints/0-checkpoint.png"):
        (folder / place).parent.mkdir(exist_ok=True)
        (folder / place).write_bytes(b"no image")
    (folder / "train" / ".DS_Store").write_bytes(b"")
    (folder / "train" / "cat" / ".DS_Store").write_bytes(b"")
    again = read_image_folder(folder)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "skipped hidden images (3, such as" in caplog.text
    for one, two in zip(whole, again):
        assert torch.equal(one.images, two.images) and torch.equal(one.labels, two.labels)


def test_what_else_is_skipped_is_said_in_one_warning(folder, caplog):
    whole = read_image_folder(folder)
    (folder / "train" / "cat" / "more").mkdir()
    places = ("train/labels.csv", "test/0.png", "train/cat/more/0.png", "train/dog/a.tga", "test/dog/Thumbs.db")
    for place in (*places, "train/dog/readme", "train/.DS_Store", "readme.txt"):
        (folder / place).write_bytes(b"no image")
    again = read_image_folder(folder)
    (record,) = caplog.records
    for kind in (
        "files outside classes (2,",
        "folders in classes (1,",
        "files *.tga (1,",
        "files *.db (1,",
        "files * (",
    ):
        assert kind in record.message
    assert record.message.count("such as") == 5
    assert all(torch.equal(one.images, two.images) for one, two in zip(whole, again))


@pytest.mark.parametrize("content", [[], ["0.tga"], ["more/0.png"], ["._0.png"]])
@pytest.mark.parametrize("part", ["train", "test"])
def test_a_class_without_images_is_named(folder, part, content):
    for name in ("train/empty", "test/empty"):
        (folder / name).mkdir()
        shutil.copy(folder / "train" / "cat" / "0.png", folder / name)
    (folder / part / "empty" / "0.png").unlink()
    for name in content:
        (folder / part / "empty" / name).parent.mkdir(exist_ok=True)
        shutil.copy(folder / "train" / "cat" / "0.png", folder / part / "empty" / name)
    with pytest.raises(UserError, match=f"{part} has classes without images: empty "):
        read_image_folder(folder)


def test_a_class_that_is_empty_in_both_parts_is_named_too(folder):
    for name in ("train/empty", "test/empty"):
        (folder / name).mkdir()
    with pytest.raises(UserError, match="train has classes without images: empty "):
        read_image_folder(folder)


KINDS = {
    "tiff": ("TIFF", {}),
    "tif": ("TIFF", {"compression": "tiff_lzw"}),
    "TIFF": ("TIFF", {"compression": "tiff_adobe_deflate"}),
    "gif": ("GIF", {}),
    "jfif": ("JPEG", {"quality": 100}),
    "jpe": ("JPEG", {"quality": 100}),
    "pgm": ("PPM", {}),
    "pnm": ("PPM", {}),
    "PNG": ("PNG", {}),
}


@pytest.mark.parametrize("ending", KINDS)
def test_images_of_the_usual_formats_are_read(folder, ending, caplog):
    kind, options = KINDS[ending]
    (folder / "train" / "cat" / "0.png").unlink()
    (folder / "train" / "cat" / f"0.{ending}").write_bytes(encoded(Image.fromarray(BY_TEN), kind, **options))
    train, _ = read_image_folder(folder)
    assert (train.images[0].int() - torch.from_numpy(BY_TEN).int()).abs().max() <= 2  # JPEG rounds
    assert len(train) == 6 and not caplog.records


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_as_their_exif_data_say(folder, kind, orientation):
    upright = np.zeros((6, 4), np.uint8)
    upright[:3, :2], upright[:3, 2:], upright[3:, :2] = 200, 130, 60  # a quarter of each value
    inverse = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270, 2: Image.Transpose.FLIP_LEFT_RIGHT}
    inverse |= {3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM}
    inverse |= {5: Image.Transpose.TRANSPOSE, 7: Image.Transpose.TRANSVERSE}
    stored = Image.fromarray(upright)
    stored = stored.transpose(inverse[orientation]) if orientation > 1 else stored
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100}}.get(kind, {})
    (folder / "train" / "cat" / "0.png").write_bytes(encoded(stored, kind, exif=exif, **options))
    train, _ = read_image_folder(folder)
    assert (train.images[0].int() - torch.from_numpy(upright).int()).abs().max() <= 3


def test_exif_data_that_cannot_be_read_turn_nothing(folder):
    pixels = np.full((6, 4), 90, np.uint8)
    content = encoded(Image.fromarray(pixels), "JPEG", exif=b"Exif\0\0no such thing", quality=100)
    (folder / "train" / "cat" / "0.png").write_bytes(content)
    train, _ = read_image_folder(folder)
    assert (train.images[0].int() - 90).abs().max() <= 1


def test_hidden_files_alone_are_not_images(tmp_path):
    (tmp_path / "train" / "cat").mkdir(parents=True)
    (tmp_path / "train" / "cat" / "._0.png").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="no images in .*train"):
        read_image_folder(tmp_path)


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no images in .*train.* in --data_root$"):
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


def test_a_split_may_have_some_of_each_class_however_few_it_has():
    labels = torch.tensor([0] * 20 + [1] * 3 + [2])
    first, second = stratified_split(labels, 0.1, seed=3, least=1)
    assert labels[second].bincount(minlength=3).tolist() == [2, 1, 0]
    assert sorted([*first.tolist(), *second.tolist()]) == list(range(24))
    assert labels[stratified_split(labels, 0.1, seed=3)[1]].tolist() == [0, 0]

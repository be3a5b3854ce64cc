"""Folders of image files, decoded once and then cached."""

import concurrent.futures
import contextlib
import functools
import hashlib
import io
import logging
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, SAMPLEFORMAT
from tqdm import tqdm

from tools.errors import UserError
from tools.io.cache import cache_folder
from tools.io.files import read_bytes, write_atomically
from tools.io.npy import read_npz

from .fingerprint import code_fingerprint
from .images import LabelledImages

logger = logging.getLogger(__name__)

FORMATS = {  # PIL's names of formats, and the endings of their files; for some other formats, PIL starts programs
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "BMP": (".bmp",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
}
IMAGE_SUFFIXES = {suffix for suffixes in FORMATS.values() for suffix in suffixes}
TRANSPARENT = "it has transparent pixels, which have no colour: put it on a background first"
MAX_IMAGE_BYTES, MAX_PIXELS = 2**26, 2**24  # of a file


def read_image_folder(folder: str | os.PathLike, workers: int = 4) -> tuple[LabelledImages, LabelledImages]:
    """Read `folder`/{train,test}/<class>/* into memory: decoded once by `workers` threads, then cached.

    Images of any depth and colour become 8-bit RGB, rotated as their EXIF data say. One warning lists what is skipped:
    files of other formats, files that are not directly in the folder of a class, and hidden images (their name or that
    of their folder begins with a dot).

    The key of the cache is a hash of the names and contents of all files, and of the code that decodes them. Classes
    are numbered in alphabetical order.

    FileNotFoundError if a part has no images; UserError, naming it, for a class without images, and for a file that is
    not an image or several, is transparent, has pixels without a known range, or another size than the first one.
    """
    classes, train, test = list_image_folder(Path(folder))
    images = read_images(train + test, workers, f"decoding {folder}", folder=Path(folder))
    data = LabelledImages(torch.from_numpy(images), labels_of(train + test, classes))
    return data.subset(torch.arange(len(train))), data.subset(torch.arange(len(train), len(data)))


def list_image_folder(folder: Path) -> tuple[list[str], list[Path], list[Path]]:
    """The classes, the files to train and the files to test with; see `read_image_folder`."""
    train, test = _list_part(folder / "train"), _list_part(folder / "test")
    if skipped := _skipped(folder):
        kinds = [f"{kind} ({len(paths)}, such as {min(paths)})" for kind, paths in skipped.items()]
        logger.warning("%s: skipped %s", folder, ", ".join(kinds))
    classes = sorted({path.parent.name for path in train})
    others = sorted({path.parent.name for path in test})
    if classes != others:
        raise UserError(f"{folder}: train has the classes {classes}, test has {others}")
    return classes, train, test


def labels_of(files: Sequence[Path], classes: Sequence[str]) -> torch.Tensor:
    """The label of each file, by the name of its folder, int64 [N]."""
    labels = {name: label for label, name in enumerate(classes)}
    return torch.tensor([labels[path.parent.name] for path in files])


def read_images(
    files: Sequence[Path], workers: int, description: str, folder: Path, size: tuple[int, int] | None = None
) -> np.ndarray:
    """Decode images, uint8 [N, 3, H, W], or find them in the cache; `size` is (width, height), see `fitted`."""
    key = hashlib.sha256(f"{code_fingerprint(__name__, follow=False)}{size or ''}".encode())
    for path in files:
        content = read_bytes(path, MAX_IMAGE_BYTES)
        key.update(os.fsencode(path.relative_to(folder)) + f"\0{len(content)}\n".encode() + content)
    cache = cache_folder() / f"images-{key.hexdigest()[:32]}.npz"
    images = _read_cache(cache, len(files))
    if images is None:
        images = _decode(files, workers, description, size)
        try:
            write_atomically(cache, lambda file: np.savez(file, images=images))
        except OSError as error:
            logger.warning("the decoded images cannot be cached in %s: %s", cache.parent, error)
    return images


def common_size(files: Sequence[Path], largest: int) -> tuple[int, int]:
    """(width, height) of the images, if they all have one size with no side above `largest`, else a square of it."""
    sizes = set()
    for path in files:
        try:
            with Image.open(io.BytesIO(read_bytes(path, MAX_IMAGE_BYTES)), formats=[*FORMATS]) as image:
                if max(image.size) <= largest:
                    _load(image)
                size = image.size
        except Exception as error:  # PIL raises many kinds for damaged files
            raise _unreadable(path, error) from error
        sizes.add(size)
        if len(sizes) > 1 or max(size) > largest:
            return largest, largest
    return sizes.pop()


def fitted(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Decode an image, scaled so that it fills (width, height), and cropped in its middle: uint8 [3, H, W]."""
    pixels = _decode_one(path)
    if pixels.shape[1:] == size[::-1]:
        return pixels
    image = Image.fromarray(pixels.transpose(1, 2, 0))
    return np.asarray(ImageOps.fit(image, size, Image.Resampling.BICUBIC)).transpose(2, 0, 1)


def _list_part(folder: Path) -> list[Path]:
    files = sorted(
        path for path in folder.glob("*/*") if _has_image_name(path) and not _is_hidden(path) and not path.is_dir()
    )
    if not files:
        raise FileNotFoundError(
            f"no images in {folder.resolve()}/<class>/*: {{train,test}}/<class>/* are in --data_root"
        )
    classes = {path.name for path in folder.glob("[!.]*") if path.is_dir()}
    if empty := sorted(classes - {path.parent.name for path in files}):
        endings = ", ".join(sorted(IMAGE_SUFFIXES))
        raise UserError(f"{folder} has classes without images: {', '.join(empty)} (images end in {endings})")
    return files


def _skipped(folder: Path) -> dict[str, list[Path]]:
    """What `_list_part` leaves out, by kind, except for hidden files that are not images."""
    skipped = defaultdict(list)
    for path in folder.glob("*/*"):
        if path.parent.name in ("train", "test") and not path.name.startswith(".") and not path.is_dir():
            skipped["files outside classes"].append(path)
    for path in [*folder.glob("train/*/*"), *folder.glob("test/*/*")]:
        if _is_hidden(path):
            if _has_image_name(path):
                skipped["hidden images"].append(path)
        elif path.is_dir():
            skipped["folders in classes"].append(path)
        elif not _has_image_name(path):
            skipped[f"files *{path.suffix}"].append(path)
    return skipped


def _has_image_name(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES


def _is_hidden(path: Path) -> bool:
    return path.name.startswith(".") or path.parent.name.startswith(".")


def _decode(files: Sequence[Path], workers: int, description: str, size: tuple[int, int] | None) -> np.ndarray:
    """Decode images of one size, or fit them into `size`: uint8 [N, 3, H, W]."""
    decode = _decode_one if size is None else functools.partial(fitted, size=size)
    _, height, width = decode(files[0]).shape
    try:
        images = np.empty((len(files), 3, height, width), dtype=np.uint8)
    except MemoryError as error:
        raise UserError(f"{len(files)} images like {files[0]} do not fit into memory: {error}") from error
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        decoded = zip(files, images, pool.map(decode, files))
        for path, image, pixels in tqdm(decoded, description, len(files), unit="image", disable=None, leave=False):
            if pixels.shape != image.shape:
                found = f"{path} is {pixels.shape[2]}x{pixels.shape[1]}, others {width}x{height}"
                raise UserError(f"all images must have one size; {found}")
            image[:] = pixels
    return images


def _decode_one(path: Path) -> np.ndarray:
    """Decode an image: uint8 [3, H, W]."""
    try:
        content = io.BytesIO(read_bytes(path, MAX_IMAGE_BYTES))  # Pillow rotates no uncompressed TIFF if given a path
        with Image.open(content, formats=[*FORMATS]) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UserError(f"{image.width}x{image.height} pixels, more than {MAX_PIXELS}")
            if image.format != "MPO" and getattr(image, "is_animated", False):  # MPO: a JPEG and its previews
                raise UserError("it has several images: save each as a separate file")
            _load(image)
            return _as_rgb(image).transpose(2, 0, 1)
    except Exception as error:  # PIL raises many kinds for damaged files
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> UserError:
    formats = ", ".join(FORMATS)
    why = f"its content is of none of {formats}" if isinstance(error, UnidentifiedImageError) else error
    return UserError(f"{path} is not a readable image: {why}")


def _load(image: Image.Image) -> None:
    """Decode the pixels, rotated as the EXIF data say; Pillow has rotated a TIFF by itself then."""
    image.load()
    with contextlib.suppress(Exception):  # damaged EXIF data: leave it unrotated
        ImageOps.exif_transpose(image, in_place=True)


def _as_rgb(image: Image.Image) -> np.ndarray:
    """The pixels of an image of any depth and colour: uint8 [H, W, 3]."""
    if image.mode == "F":
        raise UserError("its pixels are in floating point, whose range is not known: save them as 8 or 16 bits")
    if image.format == "TIFF" and not _has_usual_range(image):
        raise UserError("its pixels are signed, inverted, or of 12 or 32 bits: save them as 8 or 16 bits")
    may_be_transparent = "transparency" in image.info
    if image.mode.startswith("I"):  # grey of 16 bits, which Pillow would clip to 255; of colours it takes the upper 8
        if may_be_transparent:
            raise UserError(TRANSPARENT)
        grey = np.asarray(image) >> 8
        return np.repeat(grey.astype(np.uint8)[..., None], 3, -1)
    if may_be_transparent or image.mode.lower() in ("rgba", "la", "pa"):
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema()[0] < 255:
            raise UserError(TRANSPARENT)
    return np.asarray(image.convert("RGB"))


def _has_usual_range(image: Image.Image) -> bool:
    """Whether the numbers of a TIFF are from 0, which is black, to the largest of their 1, 2, 4, 8 or 16 bits."""
    tags = image.tag_v2
    is_unsigned = set(tags.get(SAMPLEFORMAT, (1,))) == {1}
    is_grey16 = tags.get(BITSPERSAMPLE) == (16,) and tags.get(PHOTOMETRIC_INTERPRETATION) == 1
    return is_unsigned and (is_grey16 or not image.mode.startswith("I"))


def _read_cache(path: Path, count: int) -> np.ndarray | None:
    """The images in the cache; None if they are missing or damaged."""
    if not path.exists():
        return None
    try:
        images = read_npz(path)["images"]
        if (images.dtype, images.ndim, images.shape[:2]) != (np.uint8, 4, (count, 3)):
            raise UserError(f"images are uint8 [{count}, 3, H, W], got {images.dtype} {images.shape}")
        return images
    except (OSError, UserError, KeyError) as error:
        logger.warning("the cache %s is damaged (%s); it will be rebuilt", path, error)
        return None

"""Folders of image files, decoded once."""

import concurrent.futures
import hashlib
import itertools
import logging
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from tools.io.cache import cache_folder
from tools.io.files import is_folder_or_device, write_atomically
from tools.io.npy import read_npz

from .images import LabelledImages

logger = logging.getLogger(__name__)


IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".webp"}


FORMATS = ("JPEG", "PNG", "BMP", "PPM", "WEBP")  # and no other: for some, PIL starts programs


MAX_IMAGE_BYTES, MAX_PIXELS = 2**26, 2**24  # of a file


def read_image_folder(folder, workers=4):
    """Read `folder`/{train,test}/<class>/* into memory; decoded once, then cached.

    The cache is keyed by the names and the content of all files; it lies in $NSNN_CACHE, by default
    ~/.cache/nsnn.

    Args:
        folder: the folder that has `train` and `test`.
        workers: number of threads that decode.

    Returns:
        (train, test) as `LabelledImages`; class indices follow the sorted names of the classes.

    Raises:
        FileNotFoundError: if there are no images where they should be.
        ValueError: for a file that is no image, or of another size than the first; it names the file.
        OSError: for a file that cannot be opened.
    """
    folder = Path(folder)
    files = {split: _list_split(folder / split) for split in ("train", "test")}
    classes = {split: sorted({path.parent.name for path in files[split]}) for split in files}
    if classes["train"] != classes["test"]:
        raise ValueError(f"{folder}: train has the classes {classes['train']}, test has {classes['test']}")
    key = hashlib.sha256()
    for path in files["train"] + files["test"]:
        content = _read_file(path)
        key.update(os.fsencode(path.relative_to(folder)) + f"\0{len(content)}\n".encode() + content)
    cache = cache_folder() / f"images-{key.hexdigest()[:32]}.npz"
    arrays = _read_cache(cache)
    if arrays is None:
        arrays = {}
        for split in files:
            arrays[f"{split}_images"] = _decode(files[split], workers, f"decoding {folder / split}")
            names = [classes[split].index(path.parent.name) for path in files[split]]
            arrays[f"{split}_labels"] = np.array(names, dtype=np.int64)
        try:
            write_atomically(cache, lambda file: np.savez(file, **arrays))
        except OSError as error:
            logger.warning("the decoded images cannot be cached in %s: %s", cache.parent, error)
    return tuple(
        LabelledImages(torch.from_numpy(arrays[f"{split}_images"]), torch.from_numpy(arrays[f"{split}_labels"]))
        for split in ("train", "test")
    )


def _list_split(folder):
    files = sorted(path for path in folder.glob("*/*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise FileNotFoundError(f"no images in {folder.resolve()}/<class>/*")
    return files


def _read_file(path):
    if is_folder_or_device(path):
        raise ValueError(f"{path} is no readable image, but a folder, pipe or device")
    if path.stat().st_size > MAX_IMAGE_BYTES:
        raise ValueError(f"{path} is no readable image: it has more than {MAX_IMAGE_BYTES} bytes")
    return path.read_bytes()


class _OtherSize(ValueError):
    """An image is not of the size of the others."""


def _decode(files, workers, description):
    def read(path, size=None):
        try:
            with Image.open(path, formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ValueError(f"{image.width}x{image.height} pixels, more than {MAX_PIXELS}")
                if size not in (None, image.size):  # so many are never decoded
                    raise _OtherSize(f"{path} is {image.width}x{image.height}, others {size[0]}x{size[1]}")
                return np.asarray(image.convert("RGB"))
        except _OtherSize as error:
            raise ValueError(f"all images must have one size; {error}") from error
        except Exception as error:  # PIL raises many kinds for damaged files
            raise ValueError(f"{path} is no readable image: {error}") from error

    first = read(files[0])
    size = first.shape[1], first.shape[0]
    try:
        images = np.empty((len(files), 3, *first.shape[:2]), dtype=np.uint8)
    except MemoryError as error:
        raise ValueError(f"{len(files)} images like {files[0]} do not fit into memory: {error}") from error
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        decoded = pool.map(read, files, itertools.repeat(size))
        progress = tqdm(decoded, description, len(files), unit="image", disable=None, leave=False)
        for index, pixels in enumerate(progress):
            images[index] = pixels.transpose(2, 0, 1)
    return images


def _read_cache(path):
    if not path.exists():
        return None
    try:
        arrays = read_npz(path)
        for split in ("train", "test"):
            images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
            if (images.dtype, images.ndim, images.shape[1]) != (np.uint8, 4, 3):
                raise ValueError(f"images are uint8 [N, 3, H, W], got {images.dtype} {images.shape}")
            if (labels.dtype, labels.shape) != (np.int64, images.shape[:1]):
                raise ValueError(f"labels are int64 [N], got {labels.dtype} {labels.shape}")
        return arrays
    except (OSError, ValueError, KeyError, IndexError) as error:
        logger.warning("the cache %s is damaged (%s); it is made anew", path, error)
        return None

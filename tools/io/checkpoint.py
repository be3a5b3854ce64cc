"""Checkpoint files: written whole, read without running code."""

import logging
import zlib
from pathlib import Path

import torch

from tools.errors import UserError

from .files import is_no_file, write_atomically
from .untrusted import check_content, checked_archive

logger = logging.getLogger(__name__)


FORMAT = 1  # of our own checkpoints; a reader refuses any other


LAST, PREVIOUS = "last.pth", "previous.pth"  # of a run: its present state, and the one saved before


BEST = "best.pth"  # of a run: the network of its best epoch


class CheckpointError(UserError):
    """A file is no checkpoint, or not one that fits; the message names the file and what is wrong."""


def save(path, content, previous=None):
    """Write a checkpoint so that a process killed meanwhile leaves the old file or the new one, never half of one.

    Args:
        path: of the file.
        content: dictionary of tensors and plain data.
        previous: None, or what the checkpoint that was there is renamed to.

    Raises:
        OSError: if it cannot be written, as where the disk is full; the old files are then as they were.
    """
    content = {"format": FORMAT, **content}
    content["checksum"] = checksum(content)

    def write(file):
        try:
            torch.save(content, file)
        except RuntimeError as error:  # of torch's writer, which has swallowed the reason
            raise OSError(f"{path} cannot be written, is the disk full? {error}") from error

    write_atomically(Path(path), write, previous)


def save_last(folder, content, keep=True):
    """Write the checkpoint of a run's present state, `last.pth`, and unless told otherwise keep the one before."""
    save(Path(folder, LAST), content, previous=Path(folder, PREVIOUS) if keep else None)


def holds_run(folder):
    """Whether there is a checkpoint of a run in a folder, intact or not."""
    return any(Path(folder, name).exists() for name in (LAST, PREVIOUS))


def read_last(folder):
    """The newest checkpoint of a run that is intact: (its path, its content).

    Raises:
        FileNotFoundError: if there is none.
        CheckpointError: if there is, but none is intact.
    """
    paths = [path for name in (LAST, PREVIOUS) if (path := Path(folder, name)).exists()]
    problems = []
    for path in paths:
        try:
            content = read(path)
        except CheckpointError as error:
            logger.warning("%s; looking for the one before", error)
            problems.append(str(error))
            continue
        return path, content
    if problems:
        raise CheckpointError("; ".join(problems))
    raise FileNotFoundError(f"no checkpoint in {Path(folder).resolve()}: neither {LAST} nor {PREVIOUS}")


def checksum(content):
    """CRC-32 of all tensors and plain data of a nested dictionary, in its order; what is named "checksum" is left out.

    Against damage, not against forgery.
    """
    return _checksum({name: value for name, value in content.items() if name != "checksum"}, 0)


def _checksum(value, crc):
    if isinstance(value, torch.Tensor):
        crc = zlib.crc32(f"{value.dtype} {list(value.shape)}".encode(), crc)
        flat = value.detach().cpu().contiguous().flatten()
        return zlib.crc32(flat.view(torch.uint8).numpy().data, crc) if len(flat) else crc
    if isinstance(value, dict):
        for key, item in value.items():
            crc = _checksum(item, zlib.crc32(repr(key).encode(), crc))
        return zlib.crc32(b"}", crc)
    if isinstance(value, list | tuple):
        for item in value:
            crc = _checksum(item, crc)
        return zlib.crc32(b"]", crc)
    return zlib.crc32(repr(value).encode(), crc)


def read(path):
    """Read any checkpoint onto the CPU, with `weights_only=True`: no code in the file is run.

    Raises:
        FileNotFoundError: if there is no such file.
        CheckpointError: if it is no checkpoint, or damaged, or holds more than dense tensors and plain data
            (`tools.io.untrusted`). PyTorch's format of before 1.6 is refused.
    """
    if is_no_file(path):
        raise CheckpointError(f"{path} is no file")
    with open(path, "rb") as file:  # so that an absent file is told apart from a damaged one
        try:
            archive = checked_archive(file)
            content = torch.load(archive, map_location="cpu", weights_only=True)
            check_content(content, archive.seek(0, 2))
            computed = checksum(content)
        except Exception as error:  # torch, zipfile and pickletools raise many kinds for damaged files
            raise CheckpointError(f"{path} is no checkpoint that can be loaded safely: {error}") from error
    if "config" in content:
        if content.get("format") != FORMAT:
            raise CheckpointError(f"{path} has format {content.get('format')!r}; this version reads format {FORMAT}")
        for name, kind in (("config", dict), ("dataset", str)):
            if not isinstance(content.get(name), kind):
                raise CheckpointError(f"{path} is no whole checkpoint: its {name} is no {kind.__name__}")
    if "checksum" in content and content["checksum"] != computed:
        raise CheckpointError(f"{path} is damaged: its content is not what its checksum says")
    return content


def load_weights(net, weights, path, rename=str):
    """Copy weights into a network, or say all that does not fit.

    Args:
        net: the network.
        weights: {key: tensor}, as read from `path`.
        path: for the message.
        rename: from a key of the network to the key in `weights`.

    Raises:
        CheckpointError: naming missing and unexpected keys, and shapes that do not fit.
    """
    if not isinstance(weights, dict):
        raise CheckpointError(f"{path} has no weights, but a {type(weights).__name__}")
    wanted = {rename(key): (key, tensor) for key, tensor in net.state_dict().items()}
    problems = []
    if missing := [key for key in wanted if key not in weights]:
        problems.append(f"missing keys: {', '.join(missing)}")
    if unexpected := [key for key in weights if key not in wanted]:
        problems.append(f"unexpected keys: {', '.join(map(str, unexpected))}")
    for key in wanted.keys() & weights.keys():
        came, needed = getattr(weights[key], "shape", None), wanted[key][1].shape
        if came != needed:
            problems.append(f"{key} has shape {list(came) if came is not None else came}, wanted {list(needed)}")
    if problems:
        raise CheckpointError(f"{path} does not fit {type(net).__name__}: " + "; ".join(problems))
    try:
        net.load_state_dict({key: weights[theirs] for theirs, (key, _) in wanted.items()})
    except RuntimeError as error:  # as of a type that cannot be converted
        raise CheckpointError(f"{path} does not fit {type(net).__name__}: {error}") from error

"""Checkpoint files: written whole, read without running code."""

import logging
import warnings
import zlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import torch

from tools.errors import UserError

from .files import is_folder_or_device, write_atomically
from .untrusted import as_plain, check_content, checked_archive

logger = logging.getLogger(__name__)
FORMAT = 1  # of our own checkpoints; a reader refuses any other
LAST, PREVIOUS = "last.pth", "previous.pth"  # the present state of a run, and the one saved before
BEST = "best.pth"  # the network of the best epoch of a run
MOST_LISTED = 10  # keys in a message


class CheckpointError(UserError):
    """A file is not a checkpoint, or does not fit; the message names the file and the problem."""


def save(path: str | Path, content: dict, previous: Path | None = None) -> None:
    """Write a dictionary of tensors and plain data; the replaced checkpoint gets the name `previous`.

    TypeError for anything that `read` would refuse.

    A process killed meanwhile leaves the old file or the new one. OSError if it cannot be written, for example because
    the disk is full; the old files are then unchanged.
    """
    content = as_plain({"format": FORMAT, **content})
    content["checksum"] = checksum(content)

    def write(file):
        try:
            torch.save(content, file)
        except RuntimeError as error:  # torch does not pass on the reason
            raise OSError(f"{path} cannot be written, is the disk full? {error}") from error

    write_atomically(Path(path), write, previous)


def save_last(folder: str | Path, content: dict, keep: bool = True) -> None:
    """Write the present state of a run to `last.pth`; if `keep`, the one before becomes `previous.pth`."""
    save(Path(folder, LAST), content, previous=Path(folder, PREVIOUS) if keep else None)


def holds_run(folder: str | Path) -> bool:
    """Whether a folder has a checkpoint of a run, intact or not."""
    return Path(folder, LAST).exists() or Path(folder, PREVIOUS).exists()


def read_last(folder: str | Path) -> tuple[Path, dict]:
    """Path and content of the newest intact checkpoint of a run.

    FileNotFoundError if the run has no checkpoint, CheckpointError if none is intact.
    """
    problems = []
    for path in filter(Path.exists, (Path(folder, LAST), Path(folder, PREVIOUS))):
        try:
            return path, read(path)
        except CheckpointError as error:
            logger.warning("%s; trying the previous one", error)
            problems.append(str(error))
    if problems:
        raise CheckpointError("; ".join(problems))
    raise FileNotFoundError(f"no checkpoint in {Path(folder).resolve()}: neither {LAST} nor {PREVIOUS}")


def checksum(content: dict) -> int:
    """CRC-32 of a nested dictionary without its "checksum"; it detects damage, not forgery."""
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


def read(path: str | Path) -> dict:
    """Read any checkpoint onto the CPU; no code in it is run.

    Raises:
        FileNotFoundError: if there is no such file.
        CheckpointError: if it is not a checkpoint, is damaged, has PyTorch's format from before 1.6, or holds more than
            dense tensors and plain data.
    """
    if is_folder_or_device(path):
        raise CheckpointError(f"{path} is not a file")
    with open(path, "rb") as file:  # outside the try: an absent file is not a damaged one
        try:
            archive = checked_archive(file)
            content = torch.load(archive, map_location="cpu", weights_only=True)
            check_content(content, archive.seek(0, 2))
            computed = checksum(content)
        except Exception as error:  # torch, zipfile and pickletools raise many kinds for damaged files
            raise CheckpointError(f"{path} cannot be loaded safely as a checkpoint: {error}") from error
    if is_ours(content):
        if content["format"] != FORMAT:
            raise CheckpointError(f"{path} has format {content['format']!r}; this version reads format {FORMAT}")
        for name, kind in (("config", dict), ("dataset", str)):
            if not isinstance(content.get(name), kind):
                raise CheckpointError(f"{path} is incomplete: its {name} is not a {kind.__name__}")
    if content.get("checksum", computed) != computed:
        raise CheckpointError(f"{path} is damaged: its content does not match its checksum")
    return content


def is_ours(content: dict) -> bool:
    """Whether this code saved the checkpoint; one of another loop may have a "config" too."""
    return "config" in content and type(content.get("format")) is int


def load_weights(
    net: torch.nn.Module, weights: dict, path: str | Path, rename: Callable[[str], str] = str
) -> list[str]:
    """Copy `weights`, as read from `path`, into a network; `rename` turns a key of the network into one of `weights`.

    Returns the warnings of the network about weights that were saved with other, or unknown, settings.

    Raises:
        CheckpointError: naming missing and unexpected keys, and shapes that do not fit.
    """
    if not isinstance(weights, dict):
        raise CheckpointError(f"{path} has a {type(weights).__name__} instead of weights")
    problems, said = misfits(net, weights, rename), []
    if not problems:
        ours = OrderedDict((key, weights[rename(key)]) for key in net.state_dict())
        ours._metadata = getattr(weights, "_metadata", {})
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                net.load_state_dict(ours)
            said = list(dict.fromkeys(str(warning.message) for warning in caught))
        except (RuntimeError, TypeError, AttributeError) as error:  # a type that cannot be converted, forged metadata
            problems.append(str(error))
    if problems:
        raise CheckpointError(f"{path} does not fit {type(net).__name__}: " + "; ".join(problems))
    return said


def misfits(net: torch.nn.Module, weights: dict, rename: Callable[[str], str] = str) -> list[str]:
    """Why `load_weights` would refuse weights: missing and unexpected keys, and shapes that do not fit."""
    wanted = {rename(key): tensor.shape for key, tensor in net.state_dict().items()}
    problems = []
    if missing := [key for key in wanted if key not in weights]:
        problems.append(f"missing keys: {listed(missing)}")
    if unexpected := [key for key in weights if key not in wanted]:
        problems.append(f"unexpected keys: {listed(unexpected)}")
    for key in [key for key in wanted if key in weights]:  # in the order of the network
        came, needed = getattr(weights[key], "shape", None), wanted[key]
        if came != needed and not (came == () and needed == (1,)):  # learnt numbers of earlier versions
            problems.append(f"{key} has shape {came if came is None else list(came)}, wanted {list(needed)}")
    return problems


def listed(keys: list) -> str:
    """The first keys, and how many more there are."""
    more = f" and {len(keys) - MOST_LISTED} more" if len(keys) > MOST_LISTED else ""
    return ", ".join(map(str, keys[:MOST_LISTED])) + more

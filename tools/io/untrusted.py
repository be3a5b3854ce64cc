"""Checks of an untrusted checkpoint, before and after PyTorch reads it.

`torch.load(weights_only=True)` runs no code of a file. But it unpacks whatever an archive claims to hold, allocates
arrays of any size that a pickle asks for, and accepts structures that contain themselves.
"""

import collections
import io
import pickletools
import re
import zipfile
from typing import Any, BinaryIO

import torch

from tools.errors import UserError

# All names that a pickle of dense tensors and plain data needs.
_NEEDED = re.compile(r"collections OrderedDict|torch \w+Storage|torch\._utils _rebuild_(tensor_v2|parameter)")
_KEYS = (str, int, float, bool)
_LEAVES = (*_KEYS, type(None))
_SHARING = 4  # most bytes of tensors per byte of the file: they may share memory, as tied weights do


def checked_archive(file: BinaryIO) -> io.BytesIO:
    """A checked copy of an archive of `torch.save`; UserError, or an exception of any kind, if it is forged or damaged.

    Python and PyTorch read a zip archive differently: a forged one may have two directories, one for each.
    So PyTorch gets what Python has found in it, not the file.
    """
    fresh = io.BytesIO()
    if file.read(4) != b"PK\x03\x04":
        raise UserError("it is not in the format of PyTorch 1.6 and later")
    size = file.seek(0, 2)
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        names = [entry.filename.lower() for entry in entries]  # PyTorch ignores case
        if len(set(names)) < len(names):
            raise UserError("it has two entries with the same name")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise UserError("it is compressed, unlike PyTorch's archives")
        if sum(entry.file_size for entry in entries) > size:
            raise UserError("it claims to hold more than it does")
        (pickle,) = [entry for entry, name in zip(entries, names) if name.endswith("/data.pkl")]
        _check_pickle(archive.read(pickle))
        with zipfile.ZipFile(fresh, "w") as copy:
            for entry in entries:
                copy.writestr(entry.filename, archive.read(entry))
    fresh.seek(0)
    return fresh


def _check_pickle(raw):
    """Raise an exception for a pickle that names more than it needs, or holds more items than it has bytes.

    A pickle may refer to earlier objects, so that 100 bytes can be a tuple of 2^40 items, which cannot be counted once
    it is made. So each instruction is followed only for the number of items in its result.
    """
    stack, marks, memo = [], [], {}
    for instruction, argument, _ in pickletools.genops(raw):
        name, before = instruction.name, instruction.stack_before
        if name == "GLOBAL" and not _NEEDED.fullmatch(argument):
            named = argument.replace(" ", ".")
            raise UserError(
                f"it names {named}, which tensors and plain data do not need: save the state_dict() of a network, and "
                "numbers, text, lists and dictionaries beside it"
            )
        if name == "MARK":
            marks.append(len(stack))
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        else:
            start = len(stack) - len(before)
            if pickletools.stackslice in before:  # it takes all from the mark on, and what it lists before the mark
                start = marks.pop() - before.index(pickletools.markobject)
            items = 1 + sum(stack[start:])
            if start < 0 or items > len(raw):
                raise UserError("it contains itself many times over")
            stack[start:] = [items] * len(instruction.stack_after)


def as_plain(value: object, name: str = "the checkpoint") -> Any:
    """A copy that `check_content` accepts, of `value`; dictionaries of other classes, as Counter, become plain ones.

    TypeError for anything that it would refuse, with its place: `name` and keys.
    """
    if isinstance(value, dict):
        if unknown := [key for key in value if type(key) not in _KEYS]:
            raise TypeError(f"{name} has the key {unknown[0]!r}, which cannot be saved: a key is a name or a number")
        items = ((key, as_plain(item, f"{name}[{key!r}]")) for key, item in value.items())
        if type(value) is not collections.OrderedDict:
            return dict(items)
        copied = collections.OrderedDict(items)
        vars(copied).update(vars(value))
        return copied
    if type(value) in (list, tuple):
        return type(value)(as_plain(item, f"{name}[{place}]") for place, item in enumerate(value))
    if isinstance(value, torch.Tensor) or type(value) in _LEAVES:
        return value
    raise TypeError(
        f"{name} is a {type(value).__name__}, which cannot be saved: a checkpoint holds tensors, numbers, text, lists "
        "and dictionaries"
    )


def check_content(content: object, size: int) -> None:
    """Raise UserError unless `content` is a dictionary of dense tensors and plain data, in dictionaries and lists.

    The `size` of the file, in bytes, limits the number of items and the bytes of tensors. Attributes of dictionaries
    are removed, except for the metadata of state dictionaries.
    """
    if not isinstance(content, dict):
        raise UserError(f"it holds a {type(content).__name__}, not a dictionary")
    left, waiting = _SHARING * size, [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, torch.Tensor):
            if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
                raise UserError("it has a tensor that is not dense")
            left -= value.numel() * value.element_size()
        elif type(value) in (dict, collections.OrderedDict):
            if not all(type(key) in _KEYS for key in value):
                raise UserError("it has a dictionary whose keys are not names or numbers")
            if type(value) is collections.OrderedDict:
                metadata = vars(value).get("_metadata")
                vars(value).clear()  # one named "items" would replace the method
                if isinstance(metadata, dict):  # a mapping from layers to dictionaries
                    value._metadata = {key: one for key, one in metadata.items() if isinstance(one, dict)}
                    waiting.append(value._metadata)
            waiting.extend(value.values())
        elif type(value) in (list, tuple):
            waiting.extend(value)
        elif type(value) not in _LEAVES:
            raise UserError(f"it has a {type(value).__name__}")
        left -= 1
        if left < len(waiting):
            raise UserError("it claims to hold more than its bytes")

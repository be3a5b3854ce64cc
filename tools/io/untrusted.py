"""What a checkpoint from anyone may hold: checked before PyTorch reads it, and after.

`torch.load(weights_only=True)` runs no code of a file. But it unpacks whatever an archive claims to hold, makes arrays
of any size that a pickle asks for, and leaves it to the caller what a structure that contains itself does to him.
"""

import collections
import io
import pickletools
import re
import zipfile

import torch

# All that state dictionaries of dense tensors and plain data need.
_NEEDED = re.compile(r"collections OrderedDict|torch \w+Storage|torch\._utils _rebuild_(tensor_v2|parameter)")
_LEAVES = (str, int, float, bool, type(None))
_KEYS = (str, int, float, bool)
_SHARING = 4  # tensors may share memory, as tied weights do, but not many times


def checked_archive(file):
    """What is in an open file, if it is an archive of `torch.save` that claims no more than it has, as one anew.

    Python and PyTorch read a zip archive differently: a forged one has two directories, of which each takes another.
    So PyTorch is given what Python has found in it, and not the file.

    Returns:
        io.BytesIO.

    Raises:
        Exception: of many kinds, if it is none.
    """
    fresh = io.BytesIO()
    if file.read(4) != b"PK\x03\x04":
        raise ValueError("it is not in the format of PyTorch 1.6 and later")
    size = file.seek(0, 2)
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        names = [entry.filename.lower() for entry in entries]  # PyTorch does not tell capitals from others
        if len(set(names)) < len(names):
            raise ValueError("it has two entries of one name")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("it is compressed, as PyTorch's archives are not")
        if sum(entry.file_size for entry in entries) > size:
            raise ValueError("it claims to hold more than it does")
        (pickle,) = [entry for entry, name in zip(entries, names) if name.endswith("/data.pkl")]
        _check_pickle(archive.read(pickle))
        with zipfile.ZipFile(fresh, "w") as copy:
            for entry in entries:
                copy.writestr(entry.filename, archive.read(entry))
    fresh.seek(0)
    return fresh


def _check_pickle(raw):
    """Raise an exception for a pickle that names more than it needs, or has more in it than its length allows.

    A pickle may refer to what came before, so that 100 bytes can be a tuple of 2^40 items: whoever hashes or counts
    them does not come back. Here every instruction is followed only as to how many items are in its result.
    """
    stack, marks, memo = [], [], {}
    for instruction, argument, _ in pickletools.genops(raw):
        name, before = instruction.name, instruction.stack_before
        if name == "GLOBAL" and not _NEEDED.fullmatch(argument):
            raise ValueError(f"it names {argument.replace(' ', '.')}, which tensors and plain data do not need")
        if name == "MARK":
            marks.append(len(stack))
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        else:
            start = len(stack) - len(before)
            if pickletools.stackslice in before:  # all from the mark on, and what is listed before the mark
                start = marks.pop() - before.index(pickletools.markobject)
            items = 1 + sum(stack[start:])
            if start < 0 or items > len(raw):
                raise ValueError("it contains itself many times over")
            stack[start:] = [items] * len(instruction.stack_after)


def check_content(content, size):
    """See that what was read from a file is plain: dictionaries, lists and tuples of dense tensors and plain data.

    Attributes that dictionaries have beside their items, as state dictionaries do, are dropped.

    Args:
        content: what was read.
        size: of the file, in bytes: it limits the number of items and the bytes of tensors.

    Raises:
        ValueError: if it is not, or the outermost is no dictionary.
    """
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}, not a dictionary")
    left, waiting = _SHARING * size, [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, torch.Tensor):
            if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
                raise ValueError("it has a tensor that is not dense")
            left -= value.numel() * value.element_size()
        elif type(value) in (dict, collections.OrderedDict):
            if not all(type(key) in _KEYS for key in value):
                raise ValueError("it has a dictionary whose keys are no names or numbers")
            if type(value) is collections.OrderedDict:
                vars(value).clear()  # one named "items" would replace the method
            waiting.extend(value.values())
        elif type(value) in (list, tuple):
            waiting.extend(value)
        elif type(value) not in _LEAVES:
            raise ValueError(f"it has a {type(value).__name__}")
        left -= 1
        if left < len(waiting):
            raise ValueError("it claims to hold more than its bytes")

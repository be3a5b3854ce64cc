"""The weights of a network, wherever they are in a checkpoint from elsewhere."""

import dataclasses
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import cached_property

import torch

from tools.errors import UserError

USUAL = ("net", "model", "state_dict", "model_state_dict")  # names in a checkpoint, in order of preference
WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")  # in keys of torch.compile and others
_DEEPEST = 8  # most dictionaries within each other, and parts of a prefix: the file may come from a stranger


@dataclasses.dataclass
class Place:
    """Where some weights of a network are: in an entry of a checkpoint, under keys that begin with a prefix."""

    entry: tuple[str, ...]  # the names that lead to it; () for the checkpoint itself
    prefix: str  # "", or with a dot at its end
    count: int  # of the wanted names that are there
    tensors: OrderedDict  # the entry, without wrappers in its keys
    rename: Callable[[str], str]  # from a key of the network to the name that it has there

    def __str__(self) -> str:
        return "/".join([*self.entry, f"{self.prefix}*"] if self.prefix else self.entry) or "the file itself"

    @property
    def rank(self) -> list[int]:
        """Places of lower rank go before others; the file itself goes before its entries."""
        names = (*self.entry, *self.prefix.split(".")[:-1])
        return [USUAL.index(name) if name in USUAL else len(USUAL) for name in names]

    @cached_property
    def weights(self) -> OrderedDict:
        """The entries under the prefix, without it."""
        start = len(self.prefix)
        found = OrderedDict((key[start:], value) for key, value in self.tensors.items() if key.startswith(self.prefix))
        metadata = {f"{layer}.": one for layer, one in self.tensors._metadata.items()}
        found._metadata = {key[start:-1]: one for key, one in metadata.items() if key.startswith(self.prefix)}
        found.pop("n_averaged", None)  # of AveragedModel
        return found

    def others(self) -> list[str]:
        """The keys of the entry that are not under the prefix."""
        return [key for key in self.tensors if not key.startswith(self.prefix) and key != "n_averaged"]


def places(
    content: dict, keys: Iterable[str], rename: Callable[[str], str] = str, wrappers: Collection[str] = WRAPPERS
) -> list[Place]:
    """All places in a checkpoint that hold weights with these keys, as renamed by `rename`.

    Parts of names that are among the `wrappers` are removed; UserError if two names then coincide.
    """
    names, found = {rename(key) for key in keys}, []
    for entry, tensors in entries(content):
        bare = _without(wrappers, tensors)
        counts: Counter[str] = Counter()
        for key in bare:
            parts = key.split(".", _DEEPEST)
            for start in range(len(parts)):
                if ".".join(parts[start:]) in names:
                    counts["".join(f"{part}." for part in parts[:start])] += 1
        found += [Place(entry, prefix, count, bare, rename) for prefix, count in counts.items()]
    return found


def entries(content: dict) -> Iterator[tuple[tuple[str, ...], dict]]:
    """The dictionaries in a checkpoint, itself among them, that have tensors; outer ones first."""
    waiting = deque([((), content)])
    while waiting:
        entry, found = waiting.popleft()
        if any(isinstance(value, torch.Tensor) for value in found.values()):
            yield entry, found
        if len(entry) < _DEEPEST:
            waiting += [((*entry, str(name)), value) for name, value in found.items() if isinstance(value, dict)]


def _without(wrappers, tensors):
    """The same with no part of a key among the `wrappers`."""

    def bare(key):
        return ".".join(part for part in str(key).split(".") if part not in wrappers)

    found = OrderedDict((bare(key), value) for key, value in tensors.items())
    if len(found) < len(tensors):
        raise UserError("two of its weights have the same name without the prefix of a wrapper")
    found._metadata = {bare(layer): one for layer, one in getattr(tensors, "_metadata", {}).items()}
    return found

"""Identity paths: where the code of a network adds an activation that is not a current."""

import dataclasses
import functools
import os
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from tools.errors import UserError

from .hooks import spiking_neurons

ADDITIONS = {
    "add",
    "add_",
    "__add__",
    "__iadd__",
    "__radd__",
    "sub",
    "sub_",
    "__sub__",
    "__isub__",
    "subtract",
    "subtract_",
    "rsub",
    "__rsub__",
    "lerp",
    "lerp_",
}
UNCOUNTED_ADDITIONS = {
    "addcmul",
    "addcmul_",
    "addcdiv",
    "addcdiv_",
    "index_add",
    "index_add_",
    "scatter_add",
    "scatter_add_",
    "_foreach_add",
    "_foreach_add_",
    "_foreach_sub",
    "_foreach_sub_",
    "_foreach_lerp",
    "_foreach_lerp_",
}
STACKS = {"stack", "cat", "concat", "concatenate"}
SYNAPSES = {
    "linear",
    "bilinear",
    "matmul",
    "__matmul__",
    "__rmatmul__",
    "mm",
    "mv",
    "bmm",
    "dot",
    "inner",
    "tensordot",
    "einsum",
    "chain_matmul",
    "addmm",
    "addmm_",
    "addmv",
    "addmv_",
    "addbmm",
    "addbmm_",
    "baddbmm",
    "baddbmm_",
    "scaled_dot_product_attention",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
}
NORMS = {"batch_norm", "group_norm", "instance_norm", "layer_norm", "rms_norm"}
TORCH = os.path.join(os.path.dirname(torch.__file__), "")


def _tensors(values: Any) -> list[Tensor]:
    """The tensors in arguments or results."""
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


@dataclasses.dataclass(frozen=True)
class Source:
    """Where the values of a tensor come from."""

    kind: str  # "constant", "current", "spikes" or "other"
    module: str = ""  # whose current or spikes they are


CONSTANT = Source("constant")
OTHER = Source("other")


def _place() -> tuple[Any, int]:
    """The innermost call outside of PyTorch and this file: its code and the place in it."""
    frame = sys._getframe(1)
    while frame.f_back and (frame.f_code.co_filename == __file__ or frame.f_code.co_filename.startswith(TORCH)):
        frame = frame.f_back
    return frame.f_code, frame.f_lasti


class IdentityPaths(TorchFunctionMode):
    """Watches every operation on tensors, and finds the identity paths among the additions (see `count_operations`).

    A UserError for synapses outside of the layers that are counted, and for additions that it cannot take apart.

    `sources` maps storages, so that it knows views too; `OTHER` is the default. Weak references keep the addresses of
    storages from being used again, but not their memory.

    Args:
        layers: classes of the modules whose synapses are counted elsewhere.
        found: called with the name of an identity path and each activation on it.
    """

    def __init__(
        self, net: nn.Module, layers: tuple[type[nn.Module], ...], found: Callable[[str, Tensor], None]
    ) -> None:
        super().__init__()
        self.net = net
        self.found = found
        self.neurons = {name for name, _ in spiking_neurons(net)}
        self.layers = {name for name, module in net.named_modules() if isinstance(module, layers)}
        self.running: list[str] = []  # names of the modules whose forward pass has begun
        self.identities: dict[str, list[Any]] = {}  # {module: places of its identity paths}
        self.sources: dict[int, tuple[StorageWeakRef, Source]] = {}
        self.stacks = WeakTensorKeyDictionary()  # {a stack of activations: (its dimension, they)}

    def start(self) -> None:
        """Begin a forward pass."""
        self.sources.clear()
        for constant in (*self.net.parameters(), *self.net.buffers()):
            self._note(constant, CONSTANT)

    def begin(self, name: str, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        """Forward pre-hook of the module called `name`."""
        self.running.append(name)

    def end(self, module: nn.Module, args: tuple[Tensor, ...], output: Any) -> None:
        """Forward hook of any module."""
        name = self.running.pop()
        if name in self.neurons:
            for spikes in _tensors(output):
                self._note(spikes, Source("spikes", name))

    def within(self, name: str, neuron: nn.Module, method: Callable[..., Any]) -> Callable[..., Any]:
        """A method of a neuron, treated as a forward pass of the neuron."""

        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            output = None
            self.begin(name, neuron, ())
            try:
                output = method(*args, **kwargs)
            finally:
                self.end(neuron, (), output)
            return output

        return call

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if not self.running or not self.neurons.isdisjoint(self.running):
            return func(*args, **kwargs)
        sources = [self._source(x) for x in _tensors([args, kwargs])]
        if name.endswith("_as"):  # the other tensor gives shape or type alone
            sources = sources[:1]
        elif name.endswith("_like") or name.startswith("new_"):
            sources = []
        if name in SYNAPSES and self.layers.isdisjoint(self.running) and {*sources} - {CONSTANT}:
            self._refuse(name, "synapses are counted in nn.Linear and in convolutional layers only: use these modules")
        if name in UNCOUNTED_ADDITIONS:
            summed = [self._source(x) for x in _tensors([args, kwargs]) if x.is_floating_point()]
            summed = [source for source in summed if source != CONSTANT]
            if len(summed) > 1 and any(source.kind != "current" for source in summed):
                self._refuse(name, "write the sum of two activations as a + b")
        operands = self._operands(name, args, kwargs)
        if len(operands) > 1 and self._are_activations(operands):
            values = operands
            if name in ("lerp", "lerp_"):
                weight = args[2] if len(args) > 2 else kwargs["weight"]
                values = [operands[0] * (1 - weight), operands[1] * weight]
            self._report(operands, values)
        result = func(*args, **kwargs)
        if name in STACKS:
            self._note_stack(result, *args, **kwargs)
        currents = [source for source in sources if source.kind == "current"]
        others = [source for source in sources if source.kind in ("spikes", "other")]
        if name in SYNAPSES or (name in NORMS and not currents):
            currents = [Source("current", self.running[-1])]
        for x in _tensors(args[0] if name == "__setitem__" else result):
            if currents and x.is_floating_point():
                self._note(x, currents[0])
            elif others:
                self._note(x, others[0])
            elif currents:  # a comparison of a current makes spikes
                self._note(x, OTHER)
            else:
                self._note(x, CONSTANT)
        return result

    def _operands(self, name: str, args: tuple, kwargs: dict) -> list[Any]:
        """What a call adds, if it is an addition."""
        if name in ADDITIONS:
            return [*args[:2], *(kwargs[key] for key in ("input", "other", "end") if key in kwargs)]
        if name not in ("sum", "mean"):
            return []
        x = args[0] if args else kwargs["input"]
        if x not in self.stacks:
            return []
        dims = kwargs.get("dim", kwargs.get("axis", args[1] if len(args) > 1 else None))
        dims = [dims] if isinstance(dims, int) else list(dims or ())
        dim, parts = self.stacks[x]
        parts = [part for part in parts if self._source(part) != CONSTANT]
        # What one layer gave at several steps is pooled over time, as by `sum` of its output [T, ...].
        is_over_parts = dim in [one % x.dim() for one in dims]
        return parts if is_over_parts and len({self._source(part) for part in parts}) > 1 else []

    def _note_stack(self, result: Tensor, tensors: Any, dim: int = 0, **others: Any) -> None:
        """Remember what was stacked, or concatenated along a dimension in which each has size 1."""
        dim = others.get("axis", dim) % result.dim()
        parts = list(tensors)
        if result.dim() == parts[0].dim():
            if any(part.dim() != result.dim() or part.shape[dim] != 1 for part in parts):
                return
            parts = [part.squeeze(dim) for part in parts]
        self.stacks[result] = dim, parts

    def _refuse(self, name: str, instead: str) -> None:
        module = repr(self.running[-1]) if self.running[-1] else "the network"
        raise UserError(f"{name.strip('_')} in {module} cannot be counted: {instead}")

    def _are_activations(self, operands: list[Any]) -> bool:
        for x in operands:
            if not isinstance(x, Tensor) or not x.is_floating_point() or x.shape != operands[0].shape or not x.dim():
                return False
        return all(self._source(x) != CONSTANT for x in operands)

    def _report(self, operands: list[Tensor], values: list[Tensor]) -> None:
        """Tell `found` of the operands that are not currents, with the values that are added."""
        name, sources = self.running[-1], [self._source(x) for x in operands]
        places = self.identities.setdefault(name, [])
        for index, x in enumerate(values):
            if sources[index].kind == "current":
                continue
            place = (*_place(), index, *sources)  # sources too: a loop over layers has one place, but several paths
            if place not in places:
                places.append(place)
            number = places.index(place) + 1
            self.found(f"{name}.identity{number if number > 1 else ''}".lstrip("."), x)

    def _source(self, x: Tensor) -> Source:
        if isinstance(x, nn.Parameter):
            return CONSTANT
        _, source = self.sources.get(StorageWeakRef(x.untyped_storage()).cdata, (None, OTHER))
        return source

    def _note(self, x: Tensor, source: Source) -> None:
        reference = StorageWeakRef(x.untyped_storage())
        self.sources[reference.cdata] = (reference, source)

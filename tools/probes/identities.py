"""Identity paths: where the code of a network adds an activation that is not a current."""

import dataclasses
import functools
import os
import sys
from collections.abc import Callable, Sequence
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
REDUCTIONS = {"sum", "mean"}
UNCOUNTED_REDUCTIONS = {"nansum", "nanmean", "cumsum", "cumsum_"}
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
        if not self.neurons:  # those of a ReLU network, whose identity paths are those of its spiking twin
            self.neurons = {name for name, module in net.named_modules() if isinstance(module, nn.ReLU)}
        self.layers = {name for name, module in net.named_modules() if isinstance(module, layers)}
        self.running: list[str] = []  # names of the modules whose forward pass has begun
        self.identities: dict[str, list[Any]] = {}  # {module: places of its identity paths}
        self.sources: dict[int, tuple[StorageWeakRef, Source]] = {}
        # {a stack of activations: (its dimension, they), or None for what was made of a stack}
        self.stacks = WeakTensorKeyDictionary()

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
        inputs = _tensors([args, kwargs])
        if name.endswith("_as"):  # the other tensor gives shape or type alone
            inputs = inputs[:1]
        elif name.endswith("_like") or name.startswith("new_"):
            inputs = []
        sources = [self._source(x) for x in inputs]
        if name in SYNAPSES and self.layers.isdisjoint(self.running) and {*sources} - {CONSTANT}:
            self._refuse(name, "synapses are counted in nn.Linear and in convolutional layers only: use these modules")
        if name in UNCOUNTED_ADDITIONS:
            summed = [self._source(x) for x in _tensors([args, kwargs]) if x.is_floating_point()]
            summed = [source for source in summed if source != CONSTANT]
            if len(summed) > 1 and any(source.kind != "current" for source in summed):
                self._refuse(name, "write the sum of two activations as a + b")
        stacks = [x for x in inputs if x in self.stacks]
        if stacks and (name in UNCOUNTED_REDUCTIONS or (name in REDUCTIONS and self.stacks[stacks[0]] is None)):
            self._refuse(name, "write the sum of two activations as a + b")
        operands, values = self._added(name, args, kwargs, stacks)
        if len(operands) > 1 and self._are_activations(operands) and values[0].dim():
            self._report(operands, values)
        result = func(*args, **kwargs)
        if name in STACKS:
            self._note_stack(result, *args, **kwargs)
        elif stacks and isinstance(result, Tensor) and name not in SYNAPSES | NORMS:
            has_all_values = result.is_floating_point() and result.numel() == stacks[0].numel()
            if not operands if name in REDUCTIONS else has_all_values:
                self.stacks[result] = None
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

    def _added(self, name: str, args: tuple, kwargs: dict, stacks: list[Tensor]) -> tuple[list[Any], list[Any]]:
        """What a call adds, if it is an addition: the operands, and their values in the sum."""
        if name in REDUCTIONS and stacks:
            return self._parts(getattr(torch, name), stacks[0], *args[1:2], **kwargs)
        if name not in ADDITIONS:
            return [], []
        operands = [*args[:2], *(kwargs[key] for key in ("input", "other", "end") if key in kwargs)]
        if name not in ("lerp", "lerp_"):
            return operands, operands
        weight = args[2] if len(args) > 2 else kwargs["weight"]
        return operands, [operands[0] * (1 - weight), operands[1] * weight]

    def _parts(
        self, reduce: Callable[..., Tensor], stack: Tensor, dims: Any = None, **others: Any
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The parts of a stack, and their values reduced over its other dimensions; nothing if they are not added."""
        dims = others.get("dim", others.get("axis", dims))
        listed = list(dims) if isinstance(dims, Sequence) else [] if dims is None else [int(dims)]
        reduced = {one % stack.dim() for one in listed} or set(range(stack.dim()))
        dim, parts = self.stacks[stack]
        if dim not in reduced:
            return [], []
        rest = [one - (one > dim) for one in reduced if one != dim]
        return parts, [reduce(part, rest) if rest else part for part in parts]

    def _note_stack(self, result: Tensor, tensors: Any, dim: int = 0, **others: Any) -> None:
        """Remember what was stacked, or concatenated along a dimension in which each has size 1."""
        dim = others.get("axis", dim) % result.dim()
        parts = list(tensors)
        if result.dim() == parts[0].dim():
            if any(part.dim() != result.dim() or part.shape[dim] != 1 for part in parts):
                return
            parts = [part.squeeze(dim) for part in parts]
        parts = [part for part in parts if self._source(part) != CONSTANT]
        sources = {self._source(part) for part in parts}
        # What one layer gave at several steps is pooled over time, as by `sum` of its output [T, ...].
        if len(sources) > 1 and any(source.kind != "current" for source in sources):
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

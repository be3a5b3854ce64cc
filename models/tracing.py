"""Networks over time: `forward` of a network for single samples, followed by torch.fx and run on all steps at once."""

import contextlib
import copy
import inspect
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map

from .contexts import STREAM
from .layers import SpikingNetwork, check_timesteps
from .parameters import ArgumentError

DIMENSIONS = {nn.Linear: 2, nn.Conv1d: 3, nn.Conv2d: 4, nn.Conv3d: 5}  # of a batch of samples, by the first layer
UNKNOWN_DIMENSIONS = (2, 4)  # features or images


class Site(NamedTuple):
    """A call in the graph of a network that gets [T, B, ...], not [T * B, ...]."""

    node: fx.Node
    name: str  # of the module to be called there
    in_place: bool = False  # whether the call has changed its input so far


class OverTime(nn.Module):
    """A network that was written for samples [B, ...], over time.

    It has the modules, parameters, buffers and attributes of that network under the same names. Hooks of modules that
    contain others do not run.

    Args:
        net: the network.
        sites: the calls that get time, in graphs of `traced`, for training mode (key True) and for evaluation mode.
        timesteps: for how many steps T samples are shown. None: samples are refused, unless the call says for how many.

    Shape:
        samples [B, ...], shown for T steps ("direct coding": the layers before the first site run once), or sequences
        [T, B, ...] -> [T, B, K]. With `timesteps` in the call, the input is samples; without, the number of its
        dimensions says what it is.
    """

    def __init__(self, net: nn.Module, sites: dict[bool, list[Site]], timesteps: int | None) -> None:
        super().__init__()
        vars(self).update(vars(net))
        self._net_name = type(net).__name__
        self._timesteps = timesteps
        self._dimensions = _dimensions(net, sites[False][0].node.graph)
        self._graphs = {mode: _unrolled(found) for mode, found in sites.items()}
        self._make_code()

    def _make_code(self) -> None:
        # Of a GraphModule, which would keep its graph and its modules, this takes the code alone.
        self._code = {
            mode: type(fx.GraphModule(self, copy.deepcopy(graph))).forward for mode, graph in self._graphs.items()
        }

    def forward(self, x: Tensor, timesteps: int | None = None) -> Any:
        check_timesteps(timesteps)
        if not torch.compiler.is_compiling() and (stream := STREAM.get()) is not None and not stream.time_first:
            raise ArgumentError(f"{self._net_name} runs over time: give Stream time_first=True")
        if timesteps is None and not isinstance(x, fx.Proxy):
            timesteps = self._timesteps_of(x)
        if timesteps is None:
            return self._code[self.training](self, x.flatten(0, 1), (x.shape[0], x.shape[1]), False)
        return self._code[self.training](self, x, (timesteps, x.shape[0]), True)

    def _timesteps_of(self, x: Tensor) -> int | None:
        """The number of steps for which to show samples; None if `x` is a sequence; ArgumentError if it is neither."""
        if x.dim() in self._dimensions and self._timesteps is not None:
            return self._timesteps
        if x.dim() - 1 not in self._dimensions:
            samples = " or ".join(f"{count}-dimensional" for count in self._dimensions)
            raise ArgumentError(
                f"{self._net_name} runs over time: it takes a sequence [T, B, ...], time first, or with timesteps=T a "
                f"batch of samples [B, ...], {samples}; got {list(x.shape)}"
            )
        return None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_code"}  # which cannot be pickled

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._make_code()

    def extra_repr(self) -> str:
        return f"{self._net_name}, timesteps={self._timesteps}"


def is_neuron(module: nn.Module) -> bool:
    return getattr(module, "emits_spikes", False)


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True  # what changes buffers is part of the graph

    def __init__(self, leaves: tuple[type[nn.Module], ...] = ()) -> None:
        super().__init__()
        self.leaves = leaves

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, self.leaves) or is_neuron(module) or super().is_leaf_module(module, name)


def traced(net: nn.Module, training: bool, leaves: tuple[type[nn.Module], ...] = ()) -> fx.Graph:
    """What `forward` does to its input, the only placeholder, in a mode; other arguments have their defaults.

    Args:
        leaves: classes of modules that it does not look into, besides neurons and the layers of PyTorch.

    Raises:
        ArgumentError: if torch.fx cannot follow it, it has several inputs, or it works on dimension 0.
    """
    name, mode = type(net).__name__, "training" if training else "evaluation"
    if isinstance(net, OverTime | SpikingNetwork):
        raise ArgumentError(f"{name} already runs over time")
    first, *others = inspect.signature(net.forward).parameters.values()
    for argument in (first, *others):
        if argument.kind in (argument.VAR_POSITIONAL, argument.VAR_KEYWORD):
            raise ArgumentError(f"{name}.forward must name its arguments; it has {argument}")
        if argument is not first and argument.default is argument.empty:
            raise ArgumentError(f"{name} takes several inputs: {first.name}, {argument.name}")
    defaults = {argument.name: argument.default for argument in others}
    try:
        with in_mode(net, training):
            graph = _Tracer(leaves).trace(net, concrete_args=defaults)
    except Exception as error:  # whatever the code of a network may raise
        raise ArgumentError(f"torch.fx cannot follow {name}.forward in {mode} mode: {error}") from error
    for node in [node for node in graph.nodes if node.op == "placeholder"][1:]:
        _erase(node)
    mixing = {path_of(node): None for node in of_input(graph) if _mixes_samples(net, node)}
    if mixing:
        raise ArgumentError(
            f"{name}.forward works on dimension 0, which over time is that of all steps and samples, by "
            f"{', '.join(map(repr, mixing))}"
        )
    return graph


def of_input(graph: fx.Graph) -> list[fx.Node]:
    """The nodes that compute tensors from the input, not from parameters, or from its shape."""
    found: dict[fx.Node, None] = {}
    for node in graph.nodes:
        if node.op == "placeholder" or (found.keys() & set(node.all_input_nodes) and not _is_of_shape(node)):
            found[node] = None
    return list(found)


def _is_of_shape(node: fx.Node) -> bool:
    if node.op not in ("call_function", "call_method"):
        return False
    name = function_of(node)
    return name in ("size", "dim", "numel") or (name == "getattr" and node.args[1] not in ("values", "indices", "T"))


# Functions whose second argument names one dimension, or several; all of them, the first, or none, unless it is given.
REDUCTIONS = ("mean", "sum", "prod", "amax", "amin", "max", "min", "std", "var", "median", "argmax", "argmin")
OVER_ONE = ("softmax", "logsoftmax", "softmin", "logsumexp", "cumsum", "cumprod", "select", "narrow", "indexselect")
DIMENSIONS_OF: dict[str, tuple[slice, int | None]] = {
    **dict.fromkeys((*REDUCTIONS, "flatten", "unbind", "cat", "concat", "stack"), (slice(1, 2), 0)),
    **dict.fromkeys((*OVER_ONE, "unsqueeze", "sort", "argsort"), (slice(1, 2), None)),
    **dict.fromkeys(("norm", "roll", "chunk", "split", "tensorsplit"), (slice(2, 3), 0)),
    **dict.fromkeys(("flip", "transpose", "swapaxes"), (slice(1, None), None)),
    "topk": (slice(2, 3), None),
    "t": (slice(0), 0),
}
NAMES_OF_DIMENSIONS = ("dim", "dims", "dim0", "dim1", "axis", "start_dim")
SEVERAL = (
    "chunk", "split", "tensorsplit", "unbind", "topk", "sort", "max", "min", "median", "aminmax", "stdmean", "varmean",
    *(f"{kind}maxpool{count}dwithindices" for kind in ("", "adaptive") for count in (1, 2, 3)),
)  # fmt: skip


def _mixes_samples(net: nn.Module, node: fx.Node) -> bool:
    """Whether an operation is over dimension 0, or takes a part of it."""
    if node.op == "call_module":
        module: Any = net.get_submodule(str(node.target))
        if isinstance(module, nn.Flatten):
            return bool(module.start_dim == 0)
        return bool(isinstance(module, nn.Softmax | nn.LogSoftmax | nn.Softmin) and module.dim == 0)
    if node.op not in ("call_function", "call_method"):
        return False
    name = plain_name(function_of(node))
    if name == "getitem":
        index: Any = node.args[1]
        first: Any = index[0] if isinstance(index, tuple) and index else index
        return not _gives_several(net, node.args[0]) and first is not Ellipsis and first != slice(None)
    if name == "getattr":
        return bool(node.args[1] == "T")
    if name == "permute":
        return _listed(node.args[1:] or node.kwargs["dims"])[0] != 0
    place, usual = DIMENSIONS_OF.get(name, (slice(0), None))
    named = [value for key, value in node.kwargs.items() if key in NAMES_OF_DIMENSIONS]
    given = _listed(named or node.args[place]) or [usual]
    return any(type(one) is int and one == 0 for one in given)


def _gives_several(net: nn.Module, node: Any) -> bool:
    """Whether a node gives a tuple of tensors."""
    if not isinstance(node, fx.Node):
        return True
    if node.op == "call_module":
        module = net.get_submodule(str(node.target))
        is_recurrent = isinstance(module, nn.RNNBase | nn.RNNCellBase | nn.MultiheadAttention)
        return is_recurrent or getattr(module, "return_indices", False)
    return node.op != "placeholder" and (plain_name(function_of(node)) in SEVERAL or not is_known(node))


def _listed(values: Any) -> list[Any]:
    """Values that may be given one by one, or in a tuple."""
    return [one for value in values for one in (value if isinstance(value, tuple | list) else [value])]


KNOWN = ("torch", "_operator", "builtins", "math")  # functions from elsewhere may do anything inside


def is_known(node: fx.Node) -> bool:
    """Whether a node calls a function or method of PyTorch or Python."""
    home = getattr(node.target, "__module__", None) or "torch"
    return home.partition(".")[0] in KNOWN or isinstance(node.target, type)  # a class: a tuple of outputs


def function_of(node: fx.Node) -> str:
    """The name of the function or method that a node calls."""
    return node.target if isinstance(node.target, str) else node.target.__name__


def plain_name(name: str) -> str:
    """The name of a function or a class in one form: F.max_pool2d is nn.MaxPool2d, x.relu_() is nn.ReLU."""
    return name.replace("_", "").lower()


def path_of(node: fx.Node) -> str:
    """The name of the module that a node calls; for a function, below the module whose `forward` calls it."""
    if node.op == "call_module":
        return str(node.target)
    owners = node.meta.get("nn_module_stack")
    owner = next(reversed(owners.values()))[0] if owners else ""
    return f"{owner}.{function_of(node).strip('_')}".lstrip(".")


def _erase(node: fx.Node) -> None:
    """Erase the placeholder of a default, and fx's checks of its value."""
    for user in list(node.users):
        _erase(user)
    node.graph.erase_node(node)


@contextlib.contextmanager
def in_mode(net: nn.Module, training: bool) -> Iterator[None]:
    """Context manager: all modules are in this mode; afterwards, each is in its own again."""
    modes = {module: module.training for module in net.modules()}
    net.train(training)
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _dimensions(net: nn.Module, graph: fx.Graph) -> tuple[int, ...]:
    """Numbers of dimensions that a batch of samples may have."""
    image = next(iter(graph.nodes))
    layers = [net.get_submodule(str(user.target)) for user in image.users if user.op == "call_module"]
    known = {count for kind, count in DIMENSIONS.items() for layer in layers if isinstance(layer, kind)}
    return tuple(known) or UNKNOWN_DIMENSIONS


def _unrolled(sites: list[Site]) -> fx.Graph:
    """The graph of the sites, with inputs (x, (T, B), is_still): x is [T * B, ...], or samples [B, ...] if `is_still`.

    Modules that the input goes through one by one before anything else run on samples once.
    """
    graph = sites[0].node.graph
    places = {node: place for place, node in enumerate(graph.nodes)}
    nodes = {site.node for site in sites}
    image = stem = next(iter(graph.nodes))
    while len(stem.users) == 1 and (user := next(iter(stem.users))).op == "call_module" and user not in nodes:
        stem = user
    with graph.inserting_after(image):
        is_still = graph.placeholder("is_still")
        steps = graph.placeholder("steps")
    with graph.inserting_after(is_still if stem is image else stem):
        first = graph.call_function(_first_sequence, (stem, steps, is_still))
    with graph.inserting_after(first):
        folded = graph.call_method("flatten", (first, 0, 1))
    stem.replace_all_uses_with(folded, delete_user_cb=lambda user: user is not first)
    for node, name, in_place in sites:
        current = node.all_input_nodes[0]
        with graph.inserting_before(node):
            is_first = current is folded and len(folded.users) == 1
            sequence = first if is_first else graph.call_function(_sequence, (current, steps))
            result = graph.call_method("flatten", (graph.call_module(name, (sequence,)), 0, 1))
        node.replace_all_uses_with(result)
        if in_place:
            later = {user for user in current.users if places.get(user, -1) > places[node]}
            current.replace_all_uses_with(result, delete_user_cb=later.__contains__)
        if not result.users:
            raise ArgumentError(f"the result of {name!r} is not used, so perhaps it changes a view in place")
        graph.erase_node(node)
    if not folded.users:
        graph.erase_node(folded)
    (output,) = [node for node in graph.nodes if node.op == "output"]
    with graph.inserting_before(output):
        output.args = (graph.call_function(_sequences, (output.args[0], steps)),)
    for node in graph.nodes:
        node.meta.clear()  # classes of the network, which need not be there when a copy is unpickled
    return graph


def _first_sequence(x: Tensor, steps: tuple[int, int], is_still: bool) -> Tensor:
    """[T * B, ...], or samples [B, ...] that are the same at each step, as [T, B, ...]."""
    return x.expand((steps[0],) + x.shape) if is_still else x.unflatten(0, steps)


def _sequence(x: Tensor, steps: tuple[int, int]) -> Tensor:
    """[T * B, ...] as [T, B, ...]."""
    try:
        return x.unflatten(0, steps)
    except RuntimeError as error:
        raise ArgumentError(
            f"something in the network works on dimension 0, which over time is that of all steps and samples: of "
            f"{steps[0]} * {steps[1]}, it makes {list(x.shape[:1])}"
        ) from error


def _sequences(outputs: Any, steps: tuple[int, int]) -> Any:
    """Outputs [T * B, ...], be it one or be they in tuples or dictionaries, as [T, B, ...]."""
    return tree_map(lambda output: None if output is None else _sequence(output, steps), outputs)

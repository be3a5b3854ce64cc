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
        """For how many steps to show samples; None for a sequence; ArgumentError for what is neither."""
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
        ArgumentError: if torch.fx cannot follow it, or it has several inputs.
    """
    name, mode = type(net).__name__, "training" if training else "evaluation"
    if isinstance(net, OverTime | SpikingNetwork):
        raise ArgumentError(f"{name} already runs over time")
    first, *others = inspect.signature(net.forward).parameters.values()
    for argument in (first, *others):
        if argument.kind in (argument.VAR_POSITIONAL, argument.VAR_KEYWORD):
            raise ArgumentError(f"{name}.forward must name its arguments, has {argument}")
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
    return graph


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
            sequence = first if is_first else graph.call_method("unflatten", (current, 0, steps))
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


def _sequences(outputs: Any, steps: tuple[int, int]) -> Any:
    """Outputs [T * B, ...], be it one or be they in tuples or dictionaries, as [T, B, ...]."""
    return tree_map(lambda output: None if output is None else output.unflatten(0, steps), outputs)

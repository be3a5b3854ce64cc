"""Networks over time: `forward` of a network for single samples, followed by torch.fx and run on all steps at once."""

import contextlib
import copy
import inspect
import operator
import random
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_map

from .contexts import STREAM
from .layers import SpikingNetwork, check_timesteps
from .operations import dimensions_of, function_of, gives_several, is_view, mixes_samples, of_input, path_of, plain_name
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
        self._graphs = {mode: _unrolled(net, found) for mode, found in sites.items()}
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
        if not isinstance(x, fx.Proxy) and x.dim() < min(self._dimensions):
            raise ArgumentError(f"{self._net_name} takes a batch of samples [B, ...]; got {list(x.shape)}")
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


IN_PLACE: dict[Any, Any] = {}  # operators such as +=, and + that they are in a graph without other uses


class _Proxy(fx.Proxy):
    """A value that is traced, of which `x += y` is an operation of its own: fx takes it for x = x + y."""


def _add_operator(plain: Any) -> None:
    name = f"i{plain.__name__.strip('_')}"
    in_place = getattr(operator, name)
    IN_PLACE[in_place] = plain
    setattr(_Proxy, f"__{name}__", lambda self, y: self.tracer.create_proxy("call_function", in_place, (self, y), {}))


for _plain in (
    operator.add, operator.sub, operator.mul, operator.truediv, operator.floordiv, operator.mod, operator.pow,
    operator.matmul, operator.and_, operator.or_, operator.xor, operator.lshift, operator.rshift,
):  # fmt: skip
    _add_operator(_plain)


class InPlaceTracer(fx.Tracer):
    """A tracer in whose graph `x += y` is `operator.iadd(x, y)`."""

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)


class _Tracer(InPlaceTracer):
    proxy_buffer_attributes = True  # what changes buffers is part of the graph

    def __init__(self, leaves: tuple[type[nn.Module], ...] = ()) -> None:
        super().__init__()
        self.leaves, self.context = leaves, _context()

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if _context() != self.context:  # which torch.fx would lose
            raise ArgumentError(
                "a part of it runs in a block of its own: without gradients (torch.no_grad), with autocast, or in a "
                "torch.autograd.Function, whose gradient is its own"
            )
        return super().create_node(*args, **kwargs)

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        is_leaf = any(isinstance(module, leaf) and type(module).forward is leaf.forward for leaf in self.leaves)
        return is_leaf or is_neuron(module) or super().is_leaf_module(module, name)


def _context() -> tuple[bool, ...]:
    """Whether gradients are computed here, and whether autocast is on."""
    return torch.is_grad_enabled(), *(torch.is_autocast_enabled(device) for device in ("cpu", "cuda"))


def _random_states() -> list[Any]:
    """The states of the random generators of PyTorch, Python and NumPy."""
    states: list[Any] = [torch.get_rng_state().tolist(), random.getstate()]
    if (loaded := sys.modules.get("numpy")) is not None:
        _, key, *rest = loaded.random.get_state()
        states.append([key.tolist(), *rest])
    return states


def _attributes(net: nn.Module) -> dict[str, Any]:
    """What the modules of a network hold, by name."""
    held = ((name, {**vars(module), **module._buffers}) for name, module in net.named_modules())
    return {f"{name}.{own}".lstrip("."): value for name, values in held for own, value in values.items()}


def _is_same(value: Any, other: Any) -> bool:
    return value is other or (type(value) is type(other) and isinstance(value, int | float | str) and value == other)


def traced(net: nn.Module, training: bool, leaves: tuple[type[nn.Module], ...] = ()) -> fx.Graph:
    """What `forward` does to its input, the only placeholder, in a mode; other arguments have their defaults.

    Args:
        leaves: classes of modules that it does not look into, besides neurons and the layers of PyTorch.

    Raises:
        ArgumentError: if torch.fx cannot follow it, it has not one input, or it works on dimension 0.
    """
    name, mode = type(net).__name__, "training" if training else "evaluation"
    for module in net.modules():
        if isinstance(module, OverTime | SpikingNetwork):
            raise ArgumentError(f"{type(module).__name__} already runs over time")
        if isinstance(module, torch.jit.ScriptModule):
            raise ArgumentError(f"{name} is compiled by torch.jit: give the network that it was made from")
    arguments = list(inspect.signature(net.forward).parameters.values())
    if not arguments:
        raise ArgumentError(f"{name}.forward takes no input")
    first, *others = arguments
    for argument in (first, *others):
        if argument.kind in (argument.VAR_POSITIONAL, argument.VAR_KEYWORD):
            raise ArgumentError(f"{name}.forward must name its arguments; it has {argument}")
        if argument is not first and argument.default is argument.empty:
            raise ArgumentError(f"{name} takes several inputs: {first.name}, {argument.name}")
    defaults = {argument.name: argument.default for argument in others}
    attributes, states = _attributes(net), _random_states()
    try:
        with in_mode(net, training):
            graph = _Tracer(leaves).trace(net, concrete_args=defaults)
    except Exception as error:  # whatever the code of a network may raise
        raise ArgumentError(f"torch.fx cannot follow {name}.forward in {mode} mode: {error}") from error
    changed = [name for name, value in _attributes(net).items() if not _is_same(value, attributes.get(name))]
    changed = [name for name in changed if not name.startswith("_tensor_constant")]  # which are torch.fx's own
    if changed:
        raise ArgumentError(
            f"{name}.forward changes attributes, which torch.fx would do once, not in each call: {', '.join(changed)}"
        )
    if _random_states() != states:
        raise ArgumentError(
            f"{name}.forward draws random numbers in {mode} mode that torch.fx would keep, the same in all calls: draw "
            "them in the shape of the input, as by x.new_empty(x.shape[0], 1).bernoulli_(0.5)"
        )
    for node in [node for node in graph.nodes if node.op == "placeholder"][1:]:
        _erase(node)
    _replace_operators(net, graph)
    mixing = {path_of(node): None for node in of_input(graph) if mixes_samples(net, node)}
    if mixing:
        raise ArgumentError(
            f"{name}.forward works on dimension 0, which over time is that of all steps and samples, by "
            f"{', '.join(map(repr, mixing))}"
        )
    return graph


def _replace_operators(net: nn.Module, graph: fx.Graph) -> None:
    """Replace `x += y` by `x + y`, which later uses of x take too; ArgumentError if another view of x is used later."""
    places = {node: place for place, node in enumerate(graph.nodes)}
    varying = set(of_input(graph))
    held = set(of_input(graph, [node for node in graph.nodes if node.op == "get_attr"]))
    for node in graph.nodes:
        changed = node.args[0] if node.target in IN_PLACE else None
        if changed is None or (changed in held and changed not in varying):  # a buffer, which is to change
            continue
        if changed in varying:  # others are numbers, which are never changed
            refuse_other_views(net, node, path_of(node), places)
            later = {user for user in changed.users if places[user] > places[node]}
            changed.replace_all_uses_with(node, delete_user_cb=later.__contains__)
        node.target = IN_PLACE[node.target]


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


def _unrolled(net: nn.Module, sites: list[Site]) -> fx.Graph:
    """The graph of the sites, with inputs (x, (T, B), is_still): x is [T * B, ...], or samples [B, ...] if `is_still`.

    Modules that the input goes through one by one before anything else run on samples once.
    """
    graph = sites[0].node.graph
    _check_negative_dimensions(net, graph)
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
            refuse_other_views(net, node, name, places)
            later = {user for user in current.users if places.get(user, -1) > places[node]}
            current.replace_all_uses_with(result, delete_user_cb=later.__contains__)
        if not result.users:
            raise ArgumentError(f"the result of {name!r} is not used")
        graph.erase_node(node)
    if not folded.users:
        graph.erase_node(folded)
    (output,) = [node for node in graph.nodes if node.op == "output"]
    with graph.inserting_before(output):
        output.args = (graph.call_function(_sequences, (output.args[0], steps)),)
    for node in graph.nodes:
        node.meta.clear()  # classes of the network, which need not be there when a copy is unpickled
    return graph


def refuse_other_views(net: nn.Module, node: fx.Node, name: str, places: dict[fx.Node, int]) -> None:
    """Raise ArgumentError if a call changes a tensor in place of which there is another view that is used later."""
    base = current = node.all_input_nodes[0]
    while is_view(net, base):
        base = base.all_input_nodes[0]
    views = [base]
    for view in views:  # which grows
        views += [user for user in view.users if is_view(net, user) and places.get(user, -1) < places[node]]
    users = [user for view in views if view is not current for user in view.users]
    if any(places.get(user, -1) > places[node] for user in users):
        raise ArgumentError(f"{name!r} changes its input in place, and another view of it is used later")


def _check_negative_dimensions(net: nn.Module, graph: fx.Graph) -> None:
    """Let operations over dimensions that are counted from the end check whether these are dimension 0."""
    found = of_input(graph)
    for node in found[1:]:
        dims = [dim for dim in dimensions_of(net, node) if dim < 0]
        x = next(one for one in node.all_input_nodes if one in set(found))
        if dims and not gives_several(net, x):
            adds_one = node.op != "call_module" and plain_name(function_of(node)) in ("stack", "unsqueeze")
            with graph.inserting_before(node):
                graph.call_function(_refuse_first, (x, [dim + adds_one for dim in dims], path_of(node)))


def _refuse_first(x: Tensor, dims: list[int], path: str) -> None:
    """Raise ArgumentError if one of these dimensions, from the end, is dimension 0."""
    if -x.dim() in dims:
        raise ArgumentError(
            f"{path!r} works on dimension 0 of {x.dim()}, which over time is that of all steps and samples"
        )


def _first_sequence(x: Tensor, steps: tuple[int, int], is_still: bool) -> Tensor:
    """[T * B, ...], or samples [B, ...] that are the same at each step, as [T, B, ...]."""
    return x.expand((steps[0],) + x.shape) if is_still else x.unflatten(0, steps)


def _sequence(x: Tensor, steps: tuple[int, int]) -> Tensor:
    """[T * B, ...] as [T, B, ...]."""
    try:
        return x.unflatten(0, steps)
    except (RuntimeError, IndexError) as error:
        raise ArgumentError(
            f"something in the network works on dimension 0, which over time is that of all steps and samples: of "
            f"{steps[0]} * {steps[1]}, it makes {list(x.shape[:1])}"
        ) from error


def _sequences(outputs: Any, steps: tuple[int, int]) -> Any:
    """Outputs [T * B, ...], be it one or be they in tuples or dictionaries, as [T, B, ...]."""
    for output in tree_leaves(outputs):
        if not isinstance(output, Tensor | fx.Proxy | None):
            raise ArgumentError(f"a network over time returns tensors alone, not {output!r}")
    return tree_map(lambda output: None if output is None else _sequence(output, steps), outputs)

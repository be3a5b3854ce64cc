"""Networks over time from networks for single samples: `convert` makes neurons of activations, `time_first` adds time.

Both follow `forward` by torch.fx and run it on all steps at once, [T * B, ...]; neurons get [T, B, ...].
"""

import contextlib
import copy
import inspect
import itertools
from collections.abc import Collection, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn.modules import activation as activations
from torch.utils._pytree import tree_map

from .deploy import unwrapped_copy
from .kernels.common import arithmetic_dtype
from .layers import MakeNeuron, check_timesteps
from .neurons import IF
from .parameters import ArgumentError

RECTIFIERS = (nn.ReLU, nn.ReLU6)
# By the names of their functions: nn.LeakyReLU is F.leaky_relu, torch.leaky_relu_ and more.
ACTIVATIONS: dict[str, type[nn.Module]] = {name.lower(): getattr(activations, name) for name in activations.__all__}
CLAMPS = ("clamp", "clampmin", "clampmax", "clip")  # rectifiers in disguise
COMPARISONS = (nn.Softmax, nn.Softmax2d, nn.LogSoftmax, nn.Softmin)  # these stay, as pooling does
OPAQUE = ("torch.nn.modules.rnn", "torch.nn.modules.transformer")  # layers with activations inside
KNOWN = ("torch", "_operator", "builtins", "math")  # functions from elsewhere may have activations inside
DIMENSIONS = {nn.Linear: 2, nn.Conv1d: 3, nn.Conv2d: 4, nn.Conv3d: 5}  # of a batch of samples, by the first layer


class OverTime(nn.Module):
    """A network that was written for samples [B, ...], over time.

    It has the modules, parameters, buffers and attributes of that network under the same names. Hooks of modules that
    contain others do not run.

    Shape:
        samples [B, ...], each shown for T steps ("direct coding": the layers before the first neuron run once), or
        sequences [T, B, ...] -> [T, B, K]. With `timesteps` in the call, the input is samples; without, the number of
        its dimensions says what it is.
    """

    def __init__(self, net: nn.Module, sites: dict[bool, list["Site"]], timesteps: int | None) -> None:
        super().__init__()
        vars(self).update(vars(net))
        self._net_name = type(net).__name__
        self._timesteps = timesteps
        self._dimensions = _dimensions(net, sites[False][0].node.graph)
        self._graphs = {mode: _unrolled(found) for mode, found in sites.items()}  # by whether it is in training
        self._make_code()

    def _make_code(self) -> None:
        # Of a GraphModule, which would keep its graph and modules, this takes the code alone.
        self._code = {
            mode: type(fx.GraphModule(self, copy.deepcopy(graph))).forward for mode, graph in self._graphs.items()
        }

    def forward(self, x: Tensor, timesteps: int | None = None) -> Any:
        check_timesteps(timesteps)
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
            samples = " or ".join(f"{count}-dimensional" for count in sorted(self._dimensions))
            raise ArgumentError(
                f"{self._net_name} runs over time: it takes a sequence [T, B, ...], time first, or with timesteps=T a "
                f"batch of samples [B, ...], {samples}; got {list(x.shape)}"
            )
        return None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_code"}  # made here: cannot be pickled

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._make_code()

    def extra_repr(self) -> str:
        return f"{self._net_name}, timesteps={self._timesteps}"


class Balanced(nn.Module):
    """A neuron in the place of a trained rectifier: its threshold of 1 stands for `scale`, at which it saturates.

    Shape:
        x [T, B, C, ...], scale [C] -> spikes * scale, as x.
    """

    scale: Tensor

    def __init__(self, neuron: nn.Module, scale: Tensor) -> None:
        super().__init__()
        self.neuron = neuron
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.scale.to(x.dtype).reshape(-1, *(1,) * (x.dim() - 3))
        return self.neuron(x / scale) * scale


def convert(
    net: nn.Module,
    neuron: MakeNeuron | None = None,
    timesteps: int = 4,
    replace: Collection[type[nn.Module]] = RECTIFIERS,
    calibrate: Iterable[Any] | None = None,
    quantile: float = 0.999,
) -> OverTime:
    """A copy of `net` with a neuron at each call of an activation; it runs over time, see `OverTime`.

    Modules and functions are found by following `forward` with torch.fx. A module that is called several times becomes
    as many neurons. Where batch normalisation is in training mode, its statistics are over time as well.

    Args:
        net: any network with one input [B, ...], whose `forward` torch.fx can follow.
        neuron: zero-argument callable that makes a fresh neuron; with `calibrate`, one of decay=1 and reset="subtract",
            by default `IF` that starts halfway to the threshold.
        timesteps: for how many steps T samples are shown, unless the call says otherwise.
        replace: classes of the activations that become neurons, be they modules or functions.
        calibrate: batches of samples, or tuples that begin with one, as from a DataLoader. They balance the thresholds
            of a trained network, so that the mean of the outputs over time approaches its output.
        quantile: the share of the rectified values of each channel, over `calibrate`, that a neuron can reach by firing
            at each step.

    Raises:
        ArgumentError: if other activations are in the way, if torch.fx cannot follow the network, or if it has no
            activation to replace.

    Note:
        Rueckauer et al., "Conversion of continuous-valued deep networks to efficient event-driven networks for image
        classification", Frontiers in Neuroscience 11, 2017: thresholds from quantiles. Bu et al., "Optimized potential
        initialization for low-latency spiking neural networks", AAAI 2022: the start at half the threshold.
    """
    check_timesteps(timesteps)
    if neuron is None and calibrate is None:
        raise ArgumentError("give a neuron, such as neuron=LIF, or calibrate, the batches to balance a trained network")
    if isinstance(neuron, nn.Module):
        raise ArgumentError(f"neuron must be a function that makes a fresh neuron: neuron=lambda: {neuron}")
    make = neuron or _default_neuron
    replace = tuple(replace)
    if calibrate is not None and not all(issubclass(kind, RECTIFIERS) for kind in replace):
        raise ArgumentError("only rectifiers, nn.ReLU and nn.ReLU6, can be calibrated")
    net = unwrapped_copy(net)
    sites = {mode: _activations(net, mode, replace) for mode in (True, False)}
    _check_modes(net, sites)
    for site in (*sites[True], *sites[False]):
        _put(net, site.name, make() if calibrate is None else _Recorder(site.kind(), quantile))
    over_time = OverTime(net, sites, timesteps)
    if calibrate is not None:
        for name, scale in _scales(over_time, calibrate).items():
            _put(over_time, name, Balanced(make(), scale))
    return over_time


class _HalfwayIF(IF):
    is_noisy = False

    def run(
        self, x: Tensor, state: Tensor | None = None, keep_state: bool = True, potentials: bool = False
    ) -> tuple[Any, ...]:
        if state is None:
            state = torch.full(x.shape[1:], 0.5, dtype=arithmetic_dtype(x.dtype), device=x.device)
        return super().run(x, state, keep_state, potentials)


def _default_neuron() -> nn.Module:
    return _HalfwayIF(reset="subtract")


def time_first(net: nn.Module) -> OverTime:
    """`net`, whose neurons take [T, B, ...] and whose other layers take [B, ...], over time; see `OverTime`.

    For instance nn.Sequential(nn.Conv2d(3, 64, 3), LIF(), nn.Flatten(), nn.Linear(57600, 10)). It shares the modules of
    `net`.

    Raises:
        ArgumentError: if it has no neuron, or torch.fx cannot follow it.
    """
    sites = {mode: _neurons(net, mode) for mode in (True, False)}
    return OverTime(net, sites, None)


class Site(NamedTuple):
    """A call, in the graph of a network, that gets [T, B, ...]."""

    node: fx.Node
    name: str  # of the module that is called there from now on
    kind: type[nn.Module]  # of what is called there so far
    in_place: bool = False


def _activations(net: nn.Module, training: bool, replace: tuple[type[nn.Module], ...]) -> list[Site]:
    """The calls of the activations to be replaced; ArgumentError if others are in the way."""
    found: list[Site] = []
    others: dict[str, list[str]] = {}
    for node in _traced(net, training, replace).nodes:
        kind = _kind(net, node, replace)
        if isinstance(kind, type) and issubclass(kind, replace):
            name = _free_name(net, node, {site.name for site in found})
            found.append(Site(node, name, kind, _is_in_place(net, node)))
        elif kind is not None:
            others.setdefault(getattr(kind, "__name__", str(kind)), []).append(_path(node))
    if others:
        listed = [f"{kind} ({len(paths)}, the first at {paths[0]!r})" for kind, paths in others.items()]
        raise ArgumentError(
            f"{type(net).__name__} cannot be converted, for these would stay: {', '.join(listed)}; `replace` takes the "
            "classes of more activations"
        )
    if not found:
        raise ArgumentError(f"{type(net).__name__} calls none of {', '.join(kind.__name__ for kind in replace)}")
    return found


def _neurons(net: nn.Module, training: bool) -> list[Site]:
    found = []
    for node in _traced(net, training, ()).nodes:
        if node.op == "call_module" and _is_neuron(module := net.get_submodule(node.target)):
            found.append(Site(node, node.target, type(module)))
    if not found:
        raise ArgumentError(f"{type(net).__name__} has no spiking neuron")
    return found


def _is_neuron(module: nn.Module) -> bool:
    return getattr(module, "emits_spikes", False)


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True  # changes of buffers are part of the graph

    def __init__(self, leaves: tuple[type[nn.Module], ...] = ()) -> None:
        super().__init__()
        self.leaves = leaves

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, self.leaves) or _is_neuron(module) or super().is_leaf_module(module, name)


def _traced(net: nn.Module, training: bool, leaves: tuple[type[nn.Module], ...]) -> fx.Graph:
    """What `net` does to its input, the only placeholder; other arguments have their defaults."""
    name, mode = type(net).__name__, "training" if training else "evaluation"
    first, *others = inspect.signature(net.forward).parameters.values()
    for argument in (first, *others):
        if argument.kind in (argument.VAR_POSITIONAL, argument.VAR_KEYWORD):
            raise ArgumentError(f"{name}.forward must name its arguments, has {argument}")
        if argument is not first and argument.default is argument.empty:
            raise ArgumentError(f"{name} takes several inputs: {first.name}, {argument.name}")
    defaults = {argument.name: argument.default for argument in others}
    try:
        with _in_mode(net, training):
            graph = _Tracer(leaves).trace(net, concrete_args=defaults)
    except Exception as error:  # whatever its code may raise
        raise ArgumentError(f"torch.fx cannot follow {name}.forward in {mode} mode: {error}") from error
    for node in [node for node in graph.nodes if node.op == "placeholder"][1:]:
        _erase(node)
    return graph


def _erase(node: fx.Node) -> None:
    """Erase a placeholder of a default, and the checks that fx makes of it."""
    for user in list(node.users):
        _erase(user)
    node.graph.erase_node(node)


@contextlib.contextmanager
def _in_mode(net: nn.Module, training: bool) -> Iterator[None]:
    modes = {module: module.training for module in net.modules()}
    net.train(training)
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _kind(net: nn.Module, node: fx.Node, replace: tuple[type[nn.Module], ...]) -> type[nn.Module] | str | None:
    """The class of the activation that a node calls, or the name of what may have one inside; None for the rest."""
    if node.op == "call_module":
        module = net.get_submodule(str(node.target))
        home = type(module).__module__
        is_activation = home == activations.__name__ and not isinstance(module, COMPARISONS)
        if is_activation or isinstance(module, replace) or home in OPAQUE or _is_neuron(module):
            return type(module)
    if node.op in ("call_function", "call_method"):
        kind = ACTIVATIONS.get(_plain_name(node))
        if kind is not None:
            return None if issubclass(kind, COMPARISONS) else kind
        home = getattr(node.target, "__module__", None) or "torch"
        is_known = home.partition(".")[0] in KNOWN or isinstance(node.target, type)  # a class: a tuple of outputs
        if _plain_name(node) in CLAMPS or not is_known:
            return _function(node)
    return None


def _is_in_place(net: nn.Module, node: fx.Node) -> bool:
    if node.op == "call_module":
        return getattr(net.get_submodule(str(node.target)), "inplace", False)
    return _function(node).endswith("_") or any(value is True for value in (*node.args, node.kwargs.get("inplace")))


def _function(node: fx.Node) -> str:
    """The name of the function or method that a node calls."""
    return node.target if isinstance(node.target, str) else node.target.__name__


def _plain_name(node: fx.Node) -> str:
    return _function(node).replace("_", "").lower()


def _path(node: fx.Node) -> str:
    """The name of the module that a node calls; for a function, below the module whose `forward` calls it."""
    if node.op == "call_module":
        return str(node.target)
    owners = node.meta.get("nn_module_stack")
    owner = next(reversed(owners.values()))[0] if owners else ""
    return f"{owner}.{_function(node).strip('_')}".lstrip(".")


def _free_name(net: nn.Module, node: fx.Node, taken: Collection[str]) -> str:
    """The name of the neuron at a node: that of the module there, unless it is called before; else a new one."""
    path = _path(node)
    if node.op == "call_module" and path not in taken:
        return path
    for name in itertools.chain([path], (f"{path}_{number}" for number in itertools.count(2))):
        owner, _, own = name.rpartition(".")
        if name not in taken and not hasattr(net.get_submodule(owner), own):
            return name
    raise AssertionError("there is always a next number")


def _check_modes(net: nn.Module, sites: dict[bool, list[Site]]) -> None:
    """Raise ArgumentError if training and evaluation mode may mean different calls by one name."""
    names = [{site.name for site in found} for found in sites.values()]
    both, either = ({name.rpartition(".")[0] for name in some} for some in (names[0] & names[1], names[0] ^ names[1]))
    if both & either:
        where = ", ".join(repr(name or type(net).__name__) for name in sorted(both & either))
        raise ArgumentError(f"other activations are called in training than in evaluation mode by {where}")


def _put(net: nn.Module, name: str, module: nn.Module) -> None:
    """Make `module` a submodule under this name, on the device of the network and in its mode."""
    owner, _, own = name.rpartition(".")
    setattr(net.get_submodule(owner), own, module.to(_device(net)).train(net.training))


def _device(net: nn.Module) -> torch.device:
    return next((tensor.device for tensor in itertools.chain(net.parameters(), net.buffers())), torch.device("cpu"))


def _dimensions(net: nn.Module, graph: fx.Graph) -> tuple[int, ...]:
    """Numbers of dimensions that a batch of samples may have."""
    image = next(iter(graph.nodes))
    layers = [net.get_submodule(str(user.target)) for user in image.users if user.op == "call_module"]
    known = [count for kind, count in DIMENSIONS.items() for layer in layers if isinstance(layer, kind)]
    return tuple(known) or (2, 4)


def _unrolled(sites: list[Site]) -> fx.Graph:
    """The graph of the sites, with inputs (x, (T, B), is_still): x is [T * B, ...], or samples [B, ...] if `is_still`.

    Modules that the input goes through one by one before anything else are run on samples once.
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
        first = graph.call_function(_first_steps, (stem, steps, is_still))
    with graph.inserting_after(first):
        folded = graph.call_method("flatten", (first, 0, 1))
    stem.replace_all_uses_with(folded, delete_user_cb=lambda user: user is not first)
    for node, name, _, in_place in sites:
        current = node.all_input_nodes[0]
        with graph.inserting_before(node):
            sequence = first if current is folded else graph.call_method("unflatten", (current, 0, steps))
            spikes = graph.call_method("flatten", (graph.call_module(name, (sequence,)), 0, 1))
        node.replace_all_uses_with(spikes)
        if in_place:
            later = {user for user in current.users if places.get(user, -1) > places[node]}
            current.replace_all_uses_with(spikes, delete_user_cb=later.__contains__)
        if not spikes.users:
            raise ArgumentError(f"the result of {name!r} is not used, so perhaps it changes a view in place")
        graph.erase_node(node)
    if not folded.users:
        graph.erase_node(folded)
    (output,) = [node for node in graph.nodes if node.op == "output"]
    with graph.inserting_before(output):
        output.args = (graph.call_function(_by_steps, (output.args[0], steps)),)
    for node in graph.nodes:
        node.meta.clear()
    return graph


def _first_steps(x: Tensor, steps: tuple[int, int], is_still: bool) -> Tensor:
    """Samples [B, ...] at each of T steps, or a sequence [T * B, ...], as [T, B, ...]."""
    return x.expand((steps[0],) + x.shape) if is_still else x.unflatten(0, steps)


def _by_steps(outputs: Any, steps: tuple[int, int]) -> Any:
    """Outputs [T * B, ...], be they one or in tuples, lists or dictionaries, as [T, B, ...]."""
    return tree_map(lambda output: None if output is None else output.unflatten(0, steps), outputs)


class _Recorder(nn.Module):
    """A rectifier that keeps the quantile of its values in each channel: x [T, B, C, ...] -> the same."""

    def __init__(self, rectifier: nn.Module, quantile: float) -> None:
        super().__init__()
        self.rectifier, self.quantile = rectifier, quantile
        self.sum, self.count = torch.zeros(()), 0

    def forward(self, x: Tensor) -> Tensor:
        x = self.rectifier(x)
        values = x.flatten(0, 1).transpose(0, 1).flatten(1)  # [C, values]
        rank = max(1, round(self.quantile * values.shape[1]))
        self.sum = self.sum.to(x.device) + values.kthvalue(rank).values
        self.count += 1
        return x


@torch.no_grad()
def _scales(net: OverTime, batches: Iterable[Any]) -> dict[str, Tensor]:
    """{name of a recorder: the scale of each channel [C]}: the mean of the quantiles of the batches."""
    device = _device(net)
    with _in_mode(net, False):
        for batch in batches:
            x = batch[0] if isinstance(batch, tuple | list) else batch
            net(x.to(device), timesteps=1)
    scales = {}
    for name, recorder in net.named_modules():
        if isinstance(recorder, _Recorder):
            if not recorder.count:
                raise ArgumentError(f"nothing to calibrate {name!r} with: no batches, or it runs in training mode only")
            scale = recorder.sum / recorder.count
            scales[name] = scale.clamp(min=1e-2 * scale.max())  # a channel that is silent here need not stay so
    return scales

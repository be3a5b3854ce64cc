"""Networks over time: `convert` makes neurons of activations, `time_first` takes networks that have neurons."""

import functools
import itertools
from collections.abc import Callable, Collection, Container, Iterable
from typing import Any, cast

from torch import Tensor, fx, nn
from torch.nn.modules import activation as activations

from .calibration import Balanced, MaxOfSums, Recorder, scales
from .deploy import copy_hooks, unwrapped_copy
from .interop.conversion import library_of, peer_of
from .layers import MakeNeuron, check_timesteps
from .neurons import IF
from .operations import MAX_POOLS, function_of, is_known, listed, of_input, path_of, plain_name
from .parameters import ArgumentError, device_of
from .tracing import OverTime, Site, is_neuron, traced

RECTIFIERS = (nn.ReLU, nn.ReLU6)
# By the names of their functions: nn.LeakyReLU is F.leaky_relu, torch.leaky_relu_ and more.
ACTIVATIONS: dict[str, type[nn.Module]] = {name.lower(): getattr(activations, name) for name in activations.__all__}
POINTWISE = (  # rectifiers in disguise, and other functions of single values
    "clamp", "clampmin", "clampmax", "clip", "maximum", "minimum", "where", "maskedfill", "heaviside", "gt", "ge", "lt",
    "le", "greater", "less", "abs", "absolute", "sign", "sgn", "exp", "exp2", "expm1", "expit", "erf", "erfc", "log",
    "log2", "log10", "log1p", "logit", "sin", "cos", "tan", "asin", "acos", "atan", "arctan", "atan2", "sinh", "cosh",
    "asinh", "sinc", "pow", "square", "sqrt", "rsqrt", "reciprocal", "round", "floor", "ceil", "trunc", "frac",
)  # fmt: skip
COMPARISONS = (nn.Softmax, nn.Softmax2d, nn.LogSoftmax, nn.Softmin)  # these stay, as pooling does
# Their mean over time is not what they give for the mean of an input that changes; nor is that of products.
NORMALISATIONS = (
    "layernorm", "groupnorm", "rmsnorm", "localresponsenorm", "normalize", "norm", "linalgnorm", "linalgvectornorm",
    "std", "var", "stdmean", "varmean", "softmax", "softmax2d", "softmin", "logsoftmax", "logsumexp", "gumbelsoftmax",
    "cosinesimilarity", "scaleddotproductattention", "bilinear", "instancenorm", "cdist", "pairwisedistance",
    *(f"{kind}instancenorm{count}d" for kind in ("", "lazy") for count in (1, 2, 3)),
)  # fmt: skip
PRODUCTS = (
    "mul", "multiply", "imul", "matmul", "bmm", "mm", "einsum", "baddbmm", "addcmul", "dot", "inner", "outer", "prod",
    "cumprod", "tensordot",
)  # fmt: skip
QUOTIENTS = ("div", "divide", "truediv", "itruediv", "truedivide")
OPAQUE = ("torch.nn.modules.rnn", "torch.nn.modules.transformer")  # layers with activations inside
OTHER_MAXIMA = (
    *(f"{name}withindices" for name in MAX_POOLS), "max", "min", "amax", "amin", "aminmax", "topk", "median",
    "fractionalmaxpool2d", "fractionalmaxpool3d", "lppool1d", "lppool2d", "lppool3d",
)  # fmt: skip
Classes = tuple[type[nn.Module], ...]


def convert(
    net: nn.Module,
    neuron: MakeNeuron | None = None,
    timesteps: int = 4,
    replace: Collection[type[nn.Module]] = RECTIFIERS,
    calibrate: Iterable[Any] | None = None,
    quantile: float | None = None,
) -> OverTime:
    """A copy of `net` that runs over time and has a neuron at each call of an activation; see `OverTime`.

    Modules and functions are found by following `forward` with torch.fx. A module that is called several times becomes
    as many neurons, each with its hooks. Where batch normalisation is in training mode, its statistics are over time as
    well.

    Args:
        net: any network with one input [B, ...], whose `forward` torch.fx can follow.
        neuron: zero-argument callable that makes a fresh neuron. With `calibrate`, one with decay=1, reset="subtract"
            and threshold=1, by default IF(reset="subtract", v_leak=0.5), which starts at half the threshold.
        timesteps: for how many steps T samples are shown, unless the call says otherwise.
        replace: classes of the activations that become neurons, be they modules or functions.
        calibrate: batches of samples, or tuples that begin with one, as from a DataLoader. The mean over time of the
            outputs then approximates that of the trained network `net`, the better the larger `timesteps` is: its
            rectifiers become neurons with balanced thresholds (`Balanced`), its max pools go by sums over time
            (`MaxOfSums`). What else comes after the first rectifier must be linear: no layer normalisation, softmax, or
            product.
        quantile: of the values of each channel of a rectifier; a neuron that fires at every step stands for it. A lower
            one cuts off more values, but resolves the others better. None: for each channel the one with which the
            rates of `timesteps` steps are nearest to the values: give the number that you will use, as running for more
            hardly helps then.

    Raises:
        ArgumentError: if other activations are in the way, if torch.fx cannot follow the network, if it has no
            activation to replace, if it works on dimension 0, that of the samples, if it draws random numbers, or runs
            without gradients, where torch.fx would not see it, or if it cannot be calibrated.

    Note:
        Rueckauer et al., "Conversion of continuous-valued deep networks to efficient event-driven networks for image
        classification", Frontiers in Neuroscience 11, 2017: thresholds from quantiles. Bu et al., "Optimized potential
        initialization for low-latency spiking neural networks", AAAI 2022: the start at half the threshold.
        While torch.fx follows a network, nn.Module is changed for all threads: convert before others run networks.
    """
    check_timesteps(timesteps)
    if isinstance(replace, type) or not all(isinstance(kind, type) for kind in replace):
        raise ArgumentError(f"replace must be several classes, such as [nn.ReLU], got {replace}")
    replace = tuple(replace)
    if isinstance(calibrate, Tensor):
        raise ArgumentError("calibrate must be batches: a DataLoader, or [images]")
    if quantile is not None and not 0 < quantile <= 1:
        raise ArgumentError(f"quantile must be in (0, 1], got {quantile}")
    make = _checked(neuron, replace, calibrate is not None)
    net = unwrapped_copy(net)
    sites, replaced = {}, {}
    for mode in (True, False):
        graph = _graph(net, mode, replace)
        calls: dict[fx.Node, Any] = {**_activations(net, graph, replace)}
        if calibrate is not None:
            _check_linear(net, graph, calls)
            calls.update(_max_pools(net, graph))
        sites[mode] = _sites(net, calls)
        replaced.update({site.name: calls[site.node] for site in sites[mode]})
    _check_modes(net, sites)
    hooked = {site.name: _called(net, site.node) for site in (*sites[True], *sites[False])}
    for name, call in replaced.items():
        if not isinstance(call, type):
            _put(net, name, MaxOfSums(call))  # which calls the pool, with its hooks
        else:
            new = make() if calibrate is None else Recorder(call(), quantile, timesteps)
            _put(net, name, new, hooked[name])
    over_time = OverTime(net, sites, timesteps)
    if calibrate is not None:
        for name, scale in scales(over_time, calibrate).items():
            _put(over_time, name, Balanced(make(), scale), hooked[name])
    return over_time


def _graph(net: nn.Module, mode: bool, replace: tuple[type, ...]) -> fx.Graph:
    try:
        return traced(net, mode, replace)
    except ArgumentError as error:
        if library := next((library_of(module) for module in net.modules() if peer_of(module)), None):
            raise ArgumentError(f"{error}; neurons of {library} become noisy by models.interop.convert") from error
        raise


def time_first(net: nn.Module) -> OverTime:
    """`net`, whose neurons take [T, B, ...] but whose other layers take [B, ...], over time; see `OverTime`.

    For instance nn.Sequential(nn.Conv2d(3, 64, 3), LIF(), nn.Flatten(), nn.Linear(57600, 10)). It shares the modules of
    `net`.

    Raises:
        ArgumentError: if it has no neuron, torch.fx cannot follow it, or it works on dimension 0, that of the samples.
    """
    sites = {}
    for mode in (True, False):
        calls = [node for node in traced(net, mode).nodes if node.op == "call_module"]
        sites[mode] = [Site(node, node.target) for node in calls if is_neuron(net.get_submodule(node.target))]
        if not sites[mode]:
            raise ArgumentError(f"{type(net).__name__} has no spiking neuron")
    return OverTime(net, sites, None)


def _checked(neuron: MakeNeuron | None, replace: Classes, is_calibrated: bool) -> MakeNeuron:
    """The function that makes a neuron; ArgumentError if it, or what it is to replace, is not suitable."""
    if neuron is None and not is_calibrated:
        raise ArgumentError("give a neuron, such as neuron=LIF, or calibrate, the batches to balance a trained network")
    if isinstance(neuron, nn.Module):
        raise ArgumentError(f"neuron must be a function that makes a fresh neuron: neuron=lambda: {neuron}")
    make = neuron or functools.partial(IF, reset="subtract", v_leak=0.5)
    if is_calibrated:
        if not all(issubclass(kind, RECTIFIERS) for kind in replace):
            raise ArgumentError("only rectifiers, nn.ReLU and nn.ReLU6, can be calibrated")
        example = make()
        for name, wanted in (("decay", 1.0), ("reset", "subtract"), ("threshold", 1.0)):
            if getattr(example, name, None) != wanted:
                raise ArgumentError(f"calibration takes neurons with {name}={wanted!r}, got {example}")
    return make


def _activations(net: nn.Module, graph: fx.Graph, replace: Classes) -> dict[fx.Node, type[nn.Module]]:
    """The calls of the activations to be replaced, and their classes; ArgumentError if others are in the way."""
    found: dict[fx.Node, type[nn.Module]] = {}
    others: dict[str, list[str]] = {}
    for node in of_input(graph):
        kind = _kind(net, node, replace)
        if isinstance(kind, type) and issubclass(kind, replace):
            found[node] = kind
        elif kind is not None:
            others.setdefault(getattr(kind, "__name__", str(kind)), []).append(path_of(node))
    if others:
        names = [f"{kind} ({len(paths)}, the first at {paths[0]!r})" for kind, paths in others.items()]
        raise ArgumentError(
            f"{type(net).__name__} cannot be converted, because these would stay: {', '.join(names)}; `replace` takes "
            "the classes of more activations"
        )
    if not found:
        raise ArgumentError(f"{type(net).__name__} calls none of {', '.join(kind.__name__ for kind in replace)}")
    return found


def _kind(net: nn.Module, node: fx.Node, replace: Classes) -> type[nn.Module] | str | None:
    """The class of the activation that a node calls, or the name of what may have one inside; None for the rest."""
    if node.op == "call_module":
        module = net.get_submodule(str(node.target))
        home = type(module).__module__
        is_activation = home == activations.__name__ and not isinstance(module, COMPARISONS)
        if is_activation or isinstance(module, replace) or home in OPAQUE or is_neuron(module):
            return type(module)
    if node.op in ("call_function", "call_method"):
        name = plain_name(function_of(node))
        if name in ACTIVATIONS:
            return None if issubclass(ACTIVATIONS[name], COMPARISONS) else ACTIVATIONS[name]
        is_pointwise = name in POINTWISE or (name in ("max", "min") and _is_of_two(node))
        if is_pointwise or not is_known(node):
            return function_of(node)
    return None


def _is_of_two(node: fx.Node) -> bool:
    return "other" in node.kwargs or any(isinstance(value, fx.Node) for value in node.args[1:])


def _max_pools(net: nn.Module, graph: fx.Graph) -> dict[fx.Node, Callable[..., Any]]:
    """The calls of max pooling, and the pools; ArgumentError for maxima that are taken in another way."""
    found: dict[fx.Node, Callable[..., Any]] = {}
    for node in of_input(graph):
        if node.op == "call_module":
            module: Any = net.get_submodule(str(node.target))
            name = plain_name(type(module).__name__)
            pool, is_other = module, getattr(module, "return_indices", False) or name in OTHER_MAXIMA
        elif node.op in ("call_function", "call_method"):
            name, target = plain_name(function_of(node)), cast("Callable[..., Any]", node.target)
            options = {key: value for key, value in node.kwargs.items() if key != "input"}
            pool, is_other = functools.partial(_pooled, target, node.args[1:], options), name in OTHER_MAXIMA
        else:
            continue
        if is_other:
            raise ArgumentError(f"{path_of(node)!r} cannot be calibrated: only max pools without indices can")
        if name in MAX_POOLS:
            found[node] = pool
    return found


def _check_linear(net: nn.Module, graph: fx.Graph, rectifiers: Container[fx.Node]) -> None:
    """Raise ArgumentError where the mean over time of what an operation gives is not what it gives for the mean."""
    varying = of_input(graph, rectifiers)
    wrong = [path_of(node) for node in varying if node not in rectifiers and not _is_linear(net, node, varying)]
    if wrong:
        raise ArgumentError(
            f"{type(net).__name__} cannot be calibrated, since these are not linear in what changes over time: "
            f"{', '.join(map(repr, sorted(wrong)))}; what ends a network, such as a softmax, can be left out of it"
        )


def _is_linear(net: nn.Module, node: fx.Node, varying: Container[fx.Node]) -> bool:
    """Whether an operation is linear, but for a constant, in those of its arguments that change over time."""
    if node.op == "call_module":
        module: Any = net.get_submodule(str(node.target))
        is_fixed = getattr(module, "track_running_stats", None)  # of batch and instance normalisation, in evaluation
        return plain_name(type(module).__name__) not in NORMALISATIONS if is_fixed is None else is_fixed
    if node.op not in ("call_function", "call_method"):
        return True
    name = plain_name(function_of(node))
    changing = [one in varying for one in listed([*node.args, *node.kwargs.values()])]
    is_product = name in PRODUCTS and sum(changing) > 1
    return not (is_product or name in NORMALISATIONS or (name in QUOTIENTS and any(changing[1:])))


def _pooled(function: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any], x: Any) -> Any:
    return function(x, *args, **options)


def _sites(net: nn.Module, calls: Iterable[fx.Node]) -> list[Site]:
    """The calls with a name for each: that of the module that is called, unless it was before; else a new one."""
    found: dict[str, Site] = {}
    for node in calls:
        path = path_of(node)
        for name in itertools.chain([path], (f"{path}_{number}" for number in itertools.count(2))):
            owner, _, own = name.rpartition(".")
            is_module = node.op == "call_module" and name == path
            if name not in found and (is_module or not hasattr(net.get_submodule(owner), own)):
                found[name] = Site(node, name, _is_in_place(net, node))
                break
    return list(found.values())


def _called(net: nn.Module, node: fx.Node) -> nn.Module | None:
    """The module that a node calls, if it does."""
    return net.get_submodule(str(node.target)) if node.op == "call_module" else None


def _is_in_place(net: nn.Module, node: fx.Node) -> bool:
    if node.op == "call_module":
        return getattr(net.get_submodule(str(node.target)), "inplace", False)
    return function_of(node).endswith("_") or any(value is True for value in (*node.args, node.kwargs.get("inplace")))


def _check_modes(net: nn.Module, sites: dict[bool, list[Site]]) -> None:
    """Raise ArgumentError if training and evaluation mode may mean different calls by one name."""
    training, evaluation = ({site.name for site in sites[mode]} for mode in (True, False))
    owners_of_same = {name.rpartition(".")[0] for name in training & evaluation}
    owners_of_different = {name.rpartition(".")[0] for name in training ^ evaluation}
    if unclear := owners_of_same & owners_of_different:
        where = ", ".join(repr(name or type(net).__name__) for name in sorted(unclear))
        raise ArgumentError(f"the activations called in training and in evaluation mode differ in {where}")


def _put(net: nn.Module, name: str, module: nn.Module, old: nn.Module | None = None) -> None:
    """Make `module` a submodule under this name, on the device of the network, in its mode, with the hooks of `old`."""
    if not isinstance(module, nn.Module):
        raise ArgumentError(f"neuron must be a function that makes a fresh neuron, but it gives {module!r}")
    owner, _, own = name.rpartition(".")
    copy_hooks(old, module)
    setattr(net.get_submodule(owner), own, module.to(device_of(net)).train(net.training))

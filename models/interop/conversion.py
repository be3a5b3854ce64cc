"""Conversion of a network of another library: its neurons become neurons of this package, the rest stays."""

import contextlib
import copy
import dataclasses
import functools
import importlib
import types
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ..deploy import copy_hooks, deep_copy
from ..functional import PLACEMENTS, check_choice
from ..modes import noiseless
from ..noise import NoiseLaw
from ..parameters import ArgumentError

PEERS = ("spikingjelly", "snntorch", "norse", "sinabs")


class Peer(Protocol):
    """What the module of a library offers."""

    def is_neuron(self, module: nn.Module) -> bool: ...
    def from_neuron(self, module: nn.Module, noise: NoiseLaw | None, placement: str) -> nn.Module: ...
    def leave(self, module: nn.Module) -> None: ...  # prepares a copy that is not replaced
    def reset(self, net: nn.Module) -> None: ...
    def state_of(self, module: nn.Module) -> Any: ...  # what it keeps from call to call


def load(name: str) -> Any:
    """The module of this package for a library, which it imports; ModuleNotFoundError if that is not installed."""
    try:
        return importlib.import_module(f".{name}", __package__)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != name:
            raise
        raise ModuleNotFoundError(f"{name} is not installed: pip install {name}", name=name) from error


@dataclasses.dataclass
class Report:
    """What `convert` did.

    Attributes:
        replaced: {layer: the neuron it now has}.
        skipped: {layer: why it is as it was}.
        mismatches: {layer: (places where its spikes differ from the original's, places compared)}, without noise and on
            the same inputs; empty without `verify`.
        fired: {layer: spikes of the original among them}; where there are none, nothing was tested.
    """

    replaced: dict[str, str] = dataclasses.field(default_factory=dict)
    skipped: dict[str, str] = dataclasses.field(default_factory=dict)
    mismatches: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    fired: dict[str, int] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{name}: {neuron}" for name, neuron in self.replaced.items()]
        lines += [f"{name}: left as it is, because {reason}" for name, reason in self.skipped.items()]
        for name, (wrong, count) in self.mismatches.items():
            lines.append(f"{name}: differs in {wrong} of {count} places, with {self.fired[name]} spikes")
        return "\n".join(lines)


def convert(
    net: nn.Module, noise: NoiseLaw | None = None, verify: Any = None, placement: str = "both"
) -> tuple[nn.Module, Report]:
    """A copy of a network of SpikingJelly, snnTorch, norse or sinabs, whose neurons are those of this package.

    Each layer is called as before, and the hooks on its calls stay. Inside `models.noiseless`, it fires as before, but
    for rounding.

    Args:
        net: the network, which does not change; its neurons must be reset. It may have neurons of several libraries.
        noise: the law of the noise, which all neurons share, a scale that is an nn.Parameter too; None makes
            deterministic neurons with the surrogate gradients that they had.
        verify: if given, a sample for one call `net(sample)`, or a tuple of arguments: each converted layer is compared
            with the original on the inputs that this gets.
        placement: see `NoisyLIF`.

    Returns:
        The network, and a `Report`. A warning names layers that have no exact equal here, and are left as they are.

    Raises:
        ArgumentError: if there is no neuron of these libraries, or none that has an exact equal.
    """
    check_choice("placement", placement, PLACEMENTS)
    report = Report()
    converted = _copy(net)
    made: dict[nn.Module, nn.Module] = {}
    names: dict[nn.Module, str] = {}
    layers = dict(converted.named_modules(remove_duplicate=False))
    holders = _holders(layers)

    @functools.cache  # those that share learnt values with a neuron ask for it too
    def make(old: nn.Module) -> nn.Module:
        peer: Any = peer_of(old)
        new: nn.Module = peer.from_neuron(old, noise, placement)
        return new

    for name, module in layers.items():
        peer = peer_of(module)
        if peer is None:
            continue
        try:
            if module not in made:
                neuron = make(module)
                for twin in _twins(name, layers, holders):
                    try:
                        other = make(layers[twin])
                    except ArgumentError as error:
                        raise ArgumentError(
                            f"it shares its learnt values with {twin}, which is left as it is"
                        ) from error
                    _share_parameters(neuron, other)
                copy_hooks(module, neuron)
                made[module] = neuron
        except ArgumentError as reason:
            report.skipped[name] = str(reason)
            peer.leave(module)
            continue
        report.replaced[name] = repr(made[module].neuron)
        names.setdefault(module, name)
        converted = _replace(converted, name, made[module])
    _replace_in_attributes(converted, made, report)
    if not report.replaced:
        reasons = "".join(f"; {name or 'it'}: {reason}" for name, reason in report.skipped.items())
        raise ArgumentError(f"there is no neuron of {', '.join(PEERS)} in the network that can be converted{reasons}")
    if verify is not None:
        report.mismatches, report.fired = _compare(_copy(net), converted, report.replaced, verify)
        for name in sorted(_called(net, converted, names, verify)):
            report.skipped[name] = "the forward pass still calls the old neuron, which it gets from elsewhere"
    if silent := [name for name, count in report.fired.items() if not count]:
        warnings.warn(f"`verify` makes no neuron fire in {', '.join(silent)}: nothing was compared there", stacklevel=2)
    if report.skipped:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in report.skipped.items())
        warnings.warn(f"these neurons are left as they are: {reasons}", stacklevel=2)
    return converted, report


def peer_of(module: nn.Module) -> Peer | None:
    """The library that a neuron belongs to; None for anything else."""
    library = library_of(module)
    if library is None:
        return None
    peer: Peer = load(library)
    return peer if peer.is_neuron(module) else None


def library_of(module: nn.Module) -> str | None:
    """Which of `PEERS` the class of a module is from, or one that it is derived from; None if there is none."""
    libraries = (kind.__module__.split(".")[0] for kind in type(module).__mro__)
    return next((library for library in libraries if library in PEERS), None)


def _holders(layers: dict[str, nn.Module]) -> dict[nn.Parameter, list[str]]:
    """The names of the layers that hold each parameter, in containers and other objects too."""
    found: dict[nn.Parameter, list[str]] = {}
    for name, layer in layers.items():
        for part in _parts(vars(layer)):
            if isinstance(part, nn.Parameter):
                found.setdefault(part, []).append(name)
    return found


def _twins(name: str, layers: dict[str, nn.Module], holders: dict[nn.Parameter, list[str]]) -> list[str]:
    """The names of neurons of its kind with which a neuron shares all its learnt values.

    ArgumentError if it shares learnt values otherwise.

    Args:
        layers: all of the network, under all their names.
        holders: see `_holders`.
    """
    neuron = layers[name]
    own = _learnt(neuron)

    def is_twin(layer: nn.Module) -> bool:
        theirs = _learnt(layer) if type(layer) is type(neuron) else {}
        return theirs.keys() == own.keys() and all(theirs[key] is own[key] for key in own)

    places: dict[str, str] = {}
    for key, parameter in own.items():
        for place in holders[parameter]:
            places.setdefault(place, key)
    twins = dict.fromkeys(unit for place in places for unit in _around(place) if is_twin(layers[unit]))
    for place, key in places.items():
        if twins.keys().isdisjoint(_around(place)):
            raise ArgumentError(
                f"it shares {key} with {place or type(layers[place]).__name__}; here only neurons of the same kind "
                "that have all their learnt values in common can share them"
            )
    return [twin for twin in twins if layers[twin] is not neuron]


def _around(name: str) -> list[str]:
    """The names of a layer and of all those around it."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(len(parts) + 1)]


def _share_parameters(neuron: nn.Module, twin: nn.Module) -> None:
    """Give a neuron the parameters of its twin, which have the same names and values."""
    for name, parameter in twin.named_parameters():
        owner, _, leaf = name.rpartition(".")
        neuron.get_submodule(owner)._parameters[leaf] = parameter


def _learnt(module: nn.Module) -> dict[str, nn.Parameter]:
    """The values that ours learns too, be they frozen at present; the threshold of sinabs is a parameter, but fixed."""
    return {name: parameter for name, parameter in module.named_parameters() if name != "spike_threshold"}


def _copy(net: nn.Module) -> nn.Module:
    """A copy whose neurons are at rest."""
    memo: dict[int, Any] = {}
    twin = deep_copy(net, memo)
    for module in net.modules():
        if hasattr(type(module), "__deepcopy__") and id(module) in memo:  # it may be its own copy
            _complete(module, memo)
    libraries = {kind.__module__.split(".")[0] for module in net.modules() for kind in type(module).__mro__}
    for library in libraries.intersection(PEERS):
        load(library).reset(twin)
    return twin


def _complete(layer: nn.Module, memo: dict[int, Any]) -> None:
    """Give the copy of a layer that copies itself, as those of sinabs do, what that leaves out.

    Args:
        memo: of deepcopy: the copies by the ids of the originals.
    """
    twin = memo[id(layer)]
    twin.training = layer.training
    copy_hooks(layer, twin)
    for name, parameter in layer._parameters.items():
        if parameter is not None and name in twin._parameters:  # it may be shared, or frozen
            shared = memo.setdefault(id(parameter), twin._parameters[name])
            twin._parameters[name] = shared.requires_grad_(parameter.requires_grad)


def _replace(net: nn.Module, name: str, module: nn.Module) -> nn.Module:
    """The network with another module of that name; the module itself if the name is empty."""
    if not name:
        return module
    parent, _, child = name.rpartition(".")
    setattr(net.get_submodule(parent), child, module)
    return net


def _replace_in_attributes(net: nn.Module, made: dict[nn.Module, nn.Module], report: Report) -> None:
    """Replace neurons in lists, tuples and dictionaries too, and report those that are elsewhere."""
    registered, own = set(net.modules()), vars(nn.Module())
    for name, module in net.named_modules():
        for attribute, value in list(vars(module).items()):
            if attribute in own:
                continue
            vars(module)[attribute] = _replaced(value, made)
            for part in _parts(vars(module)[attribute]):
                if not isinstance(part, nn.Module) or part in registered:
                    continue
                for neuron in filter(peer_of, part.modules()):
                    where = f"{name}.{attribute}" if name else attribute
                    report.skipped[where] = (
                        "it is not a module of the network: use an attribute, nn.ModuleList or nn.ModuleDict"
                    )
                    peer: Any = peer_of(neuron)
                    peer.leave(neuron)


def _replaced(value: Any, made: dict[nn.Module, nn.Module]) -> Any:
    """A value, or a list, tuple or dictionary of values, with the new neurons instead of the old ones."""
    if isinstance(value, nn.Module):
        return made.get(value, value)
    if isinstance(value, list):
        value[:] = [_replaced(part, made) for part in value]
    elif isinstance(value, dict):
        value.update({key: _replaced(part, made) for key, part in value.items()})
    elif type(value) is tuple:
        return tuple(_replaced(part, made) for part in value)
    return value


_WHOLE = (nn.Module, Tensor, type, types.ModuleType)  # whose attributes are not looked into


def _parts(value: Any, depth: int = 0) -> Iterator[Any]:
    """What is in containers, however deep, and in attributes of other objects; of a method, its object."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple | set | frozenset | deque):
        for part in value:
            yield from _parts(part, depth)
    elif isinstance(value, types.MethodType):
        yield value.__self__
    elif depth == 0 and hasattr(value, "__dict__") and not isinstance(value, _WHOLE):
        yield from _parts(vars(value), depth + 1)
    else:
        yield value


class _Call(NamedTuple):
    """A call of a layer of the original."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    state: Any  # that the layer kept before
    spikes: list[Tensor]


@torch.no_grad()
def _compare(
    original: nn.Module, converted: nn.Module, names: Iterable[str], sample: Any
) -> tuple[dict[str, tuple[int, int]], dict[str, int]]:
    """`mismatches` and `fired` of a `Report`: each call of the original's layers is repeated by ours."""
    calls: dict[str, list[_Call]] = {name: [] for name in names}
    for name in names:
        theirs = original.get_submodule(name)
        theirs.register_forward_pre_hook(functools.partial(_note_call, calls[name]), with_kwargs=True)
        theirs.register_forward_hook(functools.partial(_note_spikes, calls[name]), prepend=True)
    _run(original, sample)
    found, fired = {}, {}
    for name in names:
        layer: Any = _copy(converted.get_submodule(name))
        wrong = count = 0
        with noiseless(layer):
            for call in calls[name]:
                layer.start_from(call.state)
                spikes = _first(layer.forward(*call.args, **call.kwargs))
                wrong += int((spikes != call.spikes[0]).sum())
                count += spikes.numel()
        found[name] = (wrong, count)
        fired[name] = sum(int(call.spikes[0].count_nonzero()) for call in calls[name])
    return found, fired


def _note_call(calls: list[_Call], module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
    """A hook before a call."""
    peer: Any = peer_of(module)
    args, kwargs, state = tree_map_only(Tensor, torch.clone, (args, kwargs, peer.state_of(module)))
    calls.append(_Call(args, kwargs, state, []))


def _note_spikes(calls: list[_Call], module: nn.Module, args: Any, output: Any) -> None:
    """A hook after a call."""
    calls[-1].spikes.append(_first(output).clone())


@torch.no_grad()
def _called(net: nn.Module, converted: nn.Module, names: dict[nn.Module, str], sample: Any) -> set[str]:
    """Names of replaced neurons that the forward pass still calls, be they of the copy or, by a closure, of `net`."""
    twin, old = copy.deepcopy((converted, list(names)))
    called: set[str] = set()
    with contextlib.ExitStack() as hooks, noiseless(twin):
        for neuron, name in zip(old, names.values()):
            for one in (neuron, net.get_submodule(name)):
                hooks.enter_context(one.register_forward_pre_hook(lambda *_, name=name: called.add(name)))
        _run(twin, sample)
    return called


def _run(net: nn.Module, sample: Any) -> None:
    try:
        net(*sample) if isinstance(sample, tuple) else net(sample)
    except Exception as error:  # whatever the code of a network may raise
        raise ArgumentError(
            f"the network fails on `verify`, which is its one argument or a tuple of its arguments: {error}"
        ) from error


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output

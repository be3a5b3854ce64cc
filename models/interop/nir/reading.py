"""From NIR to a network of this package."""

from typing import Any

import nir
import torch
from torch import Tensor, nn

from ...composed import Recurrent
from ...layers import over_time
from ...noise import NoiseLaw
from ...parameters import ArgumentError
from .neurons import Integrator, integrator_of, neuron_of

NEURONS = (nir.LIF, nir.IF, nir.CubaLIF)
WEIGHTS = (nir.Affine, nir.Linear)


def read(
    source: Any, noise: NoiseLaw | str | None = "metadata", dt: float | None = None, placement: str = "both"
) -> nn.Module:
    """The network in a file of NIR, or in an `nir.NIRGraph`: x [T, B, ...] -> output [T, B, ...].

    Args:
        source: path of the file, or graph.
        noise: "metadata": that with which `write` saved it, none where there is none; None: no noise; or a law, in the
            units of the potential of each neuron.
        dt: duration of a time step in seconds; by default that with which `write` saved it, else 1e-4. norse 1.1 writes
            time constants that are too short by its own dt: give the square of that.
        placement: of a law that is given, see `NoisyLIF`.

    Raises:
        ArgumentError: for what has no exact equal here.
    """
    graph = source if isinstance(source, nir.NIRGraph) else nir.read(source)
    if dt is None:
        dt = float(graph.metadata.get("dt", 1e-4))
    return Network(graph, lambda node: _module(node, dt, noise, placement))


class Network(nn.Module):
    """A graph of layers: each gets the sum of what its sources give. x [T, B, ...] -> [T, B, ...].

    Args:
        graph: with one input and one output; a neuron may get its own spikes through a linear layer.
        make: makes the module of a node.
    """

    def __init__(self, graph: Any, make: Any) -> None:
        super().__init__()
        nodes = dict(graph.nodes)
        sources: dict[str, list[str]] = {name: [] for name in nodes}
        for source, target in graph.edges:
            sources[target].append(source)
        ends = [[name for name, node in nodes.items() if isinstance(node, kind)] for kind in (nir.Input, nir.Output)]
        if any(len(names) != 1 for names in ends):
            raise ArgumentError(f"a graph must have one input and one output; this one has {ends[0]} and {ends[1]}")
        (self.input_name,), (self.output_name,) = ends
        layers: dict[str, Any] = {
            name: Network(node, make) if isinstance(node, nir.NIRGraph) else make(node)
            for name, node in nodes.items()
            if name not in (self.input_name, self.output_name)
        }
        for name, loop in _loops(nodes, sources).items():
            layers[name] = Recurrent(layers[name], layers.pop(loop))
            del sources[loop]
            sources[name].remove(loop)
        self.layers = nn.ModuleDict({_key(name): layer for name, layer in layers.items()})
        if len(self.layers) < len(layers):
            raise ArgumentError(f"names of nodes must differ in more than dots and underscores: {', '.join(layers)}")
        self.sources = sources
        self.order = _sorted(sources)

    def forward(self, x: Tensor) -> Tensor:
        values = {self.input_name: x}
        for name in self.order:
            if name == self.input_name:
                continue
            first, *others = (values[source] for source in self.sources[name])
            for other in others:
                first = first + other
            values[name] = self._call(name, first)
        return values[self.output_name]

    def _call(self, name: str, x: Tensor) -> Tensor:
        if name == self.output_name:
            return x
        layer = self.layers[_key(name)]
        has_time = getattr(layer, "emits_spikes", False) or isinstance(layer, Network | Integrator)
        return layer(x) if has_time else over_time(layer, x)


def _key(name: str) -> str:
    return name.replace(".", "_") + "_"  # no dots in names of modules, and none of the methods of ModuleDict


def _loops(nodes: dict[str, Any], sources: dict[str, list[str]]) -> dict[str, str]:
    """{neuron: the linear layer through which it gets its own spikes}."""
    found = {}
    for name, node in nodes.items():
        (source, *others) = sources[name] or ["", ""]
        targets = [target for target, origins in sources.items() if name in origins]
        if isinstance(node, WEIGHTS) and not others and targets == [source] and isinstance(nodes[source], NEURONS):
            found[source] = name
    return found


def _sorted(sources: dict[str, list[str]]) -> list[str]:
    """The nodes, each after its sources; ArgumentError if there is a cycle."""
    order: list[str] = []
    left = dict(sources)
    while left:
        ready = [name for name, origins in left.items() if set(origins) <= set(order)]
        if not ready:
            raise ArgumentError(f"the graph has a cycle that is not a neuron and a linear layer: {', '.join(left)}")
        order += ready
        for name in ready:
            del left[name]
    return order


def _module(node: Any, dt: float, noise: NoiseLaw | str | None, placement: str) -> nn.Module:
    """The layer that a node describes."""
    if isinstance(node, NEURONS):
        return neuron_of(node, dt, noise, placement)
    if isinstance(node, nir.LI):
        return integrator_of(node, dt)
    for kind, make in LAYERS.items():
        if isinstance(node, kind):
            return make(node)
    raise ArgumentError(f"a {type(node).__name__} node has no equal here")


def _weighted(layer: Any, node: Any) -> nn.Module:
    """A layer with the weights of a node."""
    with torch.no_grad():
        layer.weight.copy_(torch.as_tensor(node.weight))
        if layer.bias is not None:
            layer.bias.copy_(torch.as_tensor(node.bias))
    return layer


def _linear(node: Any) -> nn.Module:
    outputs, inputs = node.weight.shape
    return _weighted(nn.Linear(inputs, outputs, bias=isinstance(node, nir.Affine)), node)


def _conv(node: Any) -> nn.Module:
    outputs, inputs, *kernel = node.weight.shape
    kind: Any = nn.Conv2d if isinstance(node, nir.Conv2d) else nn.Conv1d
    groups = int(node.groups)
    sizes = {name: _size(getattr(node, name)) for name in ("stride", "padding", "dilation")}
    return _weighted(kind(inputs * groups, outputs, tuple(kernel), groups=groups, **sizes), node)


def _size(value: Any) -> Any:
    """A size as PyTorch takes it."""
    if isinstance(value, str | bytes):
        return value.decode() if isinstance(value, bytes) else value
    return tuple(int(number) for number in value) if hasattr(value, "__len__") else int(value)


def _pool(node: Any) -> nn.Module:
    kernel, stride, padding = (_size(size) for size in (node.kernel_size, node.stride, node.padding))
    return nn.AvgPool2d(kernel, stride, padding, divisor_override=1 if isinstance(node, nir.SumPool2d) else None)


def _flatten(node: Any) -> nn.Module:
    start, end = int(node.start_dim), int(node.end_dim)
    return nn.Flatten(start + 1 if start >= 0 else start, end + 1 if end >= 0 else end)


LAYERS: dict[Any, Any] = {
    WEIGHTS: _linear,
    (nir.Conv1d, nir.Conv2d): _conv,
    (nir.AvgPool2d, nir.SumPool2d): _pool,
    nir.Flatten: _flatten,
}

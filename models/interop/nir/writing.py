"""From a network of this package to NIR."""

import copy
import os
from collections.abc import Callable
from typing import Any

import nir
import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import fusion

from ...base import SpikingNeuron
from ...parameters import ArgumentError
from .neurons import node_of

Path = str | os.PathLike[str]
FIXED_ARGUMENTS = {"timesteps": None}  # of `SpikingNetwork.forward`


def write(path: Path, net: nn.Module, sample: Tensor, dt: float = 1e-4) -> None:
    """Write a network to a file that other libraries read: `to_nir`, then `nir.write`."""
    nir.write(path, to_nir(net, sample, dt))


def to_nir(net: nn.Module, sample: Tensor, dt: float = 1e-4) -> Any:
    """A network as an `nir.NIRGraph`, in the form that SpikingJelly, snnTorch and norse understand.

    Batch normalisation is folded into the layer before it. Noise, surrogate gradients and `decay_input` are in the
    metadata of the nodes; who does not read them gets the noiseless network.

    Args:
        net: a network of `SpikingNeuron`s that reset to zero, and of convolutions, linear layers, average pools,
            flattening and sums. It is written in evaluation mode.
        sample: an input, for the shapes: [T, B, ...].
        dt: duration of a time step in seconds; snnTorch knows no other than 1e-4.

    Raises:
        ArgumentError: for anything else, which NIR has no words for.
    """
    net = copy.deepcopy(net).eval()
    tracer = _Tracer()
    arguments = FIXED_ARGUMENTS if "timesteps" in net.forward.__code__.co_varnames else None
    graph = fx.GraphModule(net, tracer.trace(net, arguments))
    writer = _Writer(graph, dt)
    with torch.no_grad():
        writer.run(sample, *([None] if arguments else []))
    return nir.NIRGraph(writer.nodes, writer.edges, metadata={"dt": dt})


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, SpikingNeuron) or super().is_leaf_module(module, name)


class _Writer(fx.Interpreter):
    """Runs the network on a sample, and turns each of its layers into a node."""

    def __init__(self, graph: fx.GraphModule, dt: float) -> None:
        super().__init__(graph)
        self.dt = dt
        self.nodes: dict[str, Any] = {}
        self.edges: list[tuple[str, str]] = []
        self.sources: dict[fx.Node, tuple[str, ...]] = {}  # whose sum a value is
        self.folded: set[fx.Node] = set()  # values [T * B, ...]
        self.layers: dict[str, nn.Module] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        given = [node for node in n.all_input_nodes if node in self.sources]
        if n.op == "output":
            self._add("output", nir.Output(np.array(self._value(given[0]).shape[2:])), given)
        elif isinstance(result, Tensor):
            self.sources[n] = self._translate(n, given, result)
            if (n.target == "flatten" and _dims(n) == (0, 1)) or (given[:1] and given[0] in self.folded):
                self.folded.add(n)
            if n.target == "unflatten":
                self.folded.discard(n)
        return result

    def _value(self, node: fx.Node) -> Tensor:
        return self.env[node]

    def _add(self, name: str, node: Any, given: list[fx.Node]) -> tuple[str, ...]:
        self.nodes[name] = node
        self.edges += [(source, name) for value in given for source in self.sources[value]]
        return (name,)

    def _translate(self, n: fx.Node, given: list[fx.Node], result: Tensor) -> tuple[str, ...]:
        """The nodes whose sum the result of an operation is, which this adds where they are missing."""
        if n.op == "placeholder":
            return self._add("input", nir.Input(np.array(result.shape[2:])), [])
        if n.op == "call_module":
            return self._layer(n, given, self.fetch_attr(str(n.target)), result)
        name = n.target if isinstance(n.target, str) else getattr(n.target, "__name__", str(n.target))
        if n.op != "get_attr" and name in _SUMS and len(given) == 2:
            together = self.sources[given[0]] + self.sources[given[1]]
            if len(set(together)) < len(together):
                raise ArgumentError("NIR cannot add a value to itself")
            return together
        if name == "flatten" and _dims(n) == (0, 1) or name == "unflatten":  # time
            return self.sources[given[0]]
        if name == "flatten":
            return self._flatten(n.name, given, *_dims(n))
        if name == "mean" and n.args[1:] == ((-2, -1),):
            x = self._value(given[0])
            pool = self._add(f"{n.name}_pool", _whole_pool(x), given)
            node = nir.Flatten(np.array([*x.shape[-3:-2], 1, 1]), 0, -1)
            self.nodes[n.name] = node
            self.edges.append((pool[0], n.name))
            return (n.name,)
        raise ArgumentError(f"NIR has no words for the operation {name!r}")

    def _layer(self, n: fx.Node, given: list[fx.Node], module: nn.Module, result: Tensor) -> tuple[str, ...]:
        x = self._value(given[0])
        if isinstance(module, nn.Identity | nn.modules.dropout._DropoutNd):
            return self.sources[given[0]]
        if isinstance(module, _BatchNorm):
            return self._fold(n, given[0], module)
        if isinstance(module, nn.Flatten):
            return self._flatten(n.name, given, module.start_dim, module.end_dim)
        if isinstance(module, SpikingNeuron):
            node = node_of(module, tuple(x.shape[2:]), self.dt)
        elif type(module) in LAYERS:
            node = LAYERS[type(module)](module, x)
            self.layers[n.name] = module
        else:
            raise ArgumentError(f"NIR has no words for the layer {n.target!r}, {type(module).__name__}")
        name = f"{n.name}_layer" if n.name in ("input", "output") else n.name
        return self._add(name, node, given)

    def _fold(self, n: fx.Node, given: fx.Node, norm: _BatchNorm) -> tuple[str, ...]:
        """Batch normalisation as part of the layer before it."""
        sources = self.sources[given]
        layer = self.layers.get(sources[0]) if len(sources) == 1 else None
        if layer is None or len(given.users) > 1 or norm.running_mean is None:
            raise ArgumentError(
                f"{n.target!r} can be folded only into a convolution or linear layer of its own, with the statistics "
                "of its training"
            )
        fuse = fusion.fuse_linear_bn_eval if isinstance(layer, nn.Linear) else fusion.fuse_conv_bn_eval
        layer = fuse(layer, norm)  # type: ignore[type-var]
        self.nodes[sources[0]] = LAYERS[type(layer)](layer, self._value(given.all_input_nodes[0]))
        return sources

    def _flatten(self, name: str, given: list[fx.Node], start: int, end: int) -> tuple[str, ...]:
        x = self._value(given[0])
        lead = 1 if given[0] in self.folded else 2
        start, end = start % x.dim() - lead, end % x.dim() - lead
        if start < 0:
            raise ArgumentError(f"{name!r} flattens time or the batch, which NIR does not have")
        return self._add(name, nir.Flatten(np.array(x.shape[lead:]), start, end), given)


def _dims(n: fx.Node) -> tuple[int, int]:
    """The arguments of a call of `flatten`."""
    given: dict[str, Any] = {**dict(zip(("start_dim", "end_dim"), n.args[1:])), **n.kwargs}
    return given.get("start_dim", 0), given.get("end_dim", -1)


_SUMS = ("add", "iadd", "add_")


def _array(tensor: Tensor | None, count: int) -> np.ndarray:
    return np.zeros(count, np.float32) if tensor is None else tensor.detach().cpu().float().numpy()


def _linear(layer: nn.Linear, x: Tensor) -> Any:
    return nir.Affine(_array(layer.weight, 0), _array(layer.bias, layer.out_features))


def _conv(layer: Any, x: Tensor) -> Any:
    if layer.padding_mode != "zeros":
        raise ArgumentError(f"NIR pads with zeros, not by {layer.padding_mode!r}")
    is_plane = isinstance(layer, nn.Conv2d)
    kind, shape = (nir.Conv2d, tuple(x.shape[-2:])) if is_plane else (nir.Conv1d, x.shape[-1])
    sizes: dict[str, Any] = {name: getattr(layer, name) for name in ("stride", "padding", "dilation")}
    if not is_plane:
        sizes = {name: size[0] if isinstance(size, tuple) else size for name, size in sizes.items()}
    bias = _array(layer.bias, layer.out_channels)
    return kind(input_shape=shape, weight=_array(layer.weight, 0), groups=layer.groups, bias=bias, **sizes)


def _pool(layer: Any, x: Tensor) -> Any:
    kernel, stride, padding = (_pair(size) for size in (layer.kernel_size, layer.stride, layer.padding))
    fits = all((size - k) % s == 0 for size, k, s in zip(x.shape[-2:], kernel, stride))
    if (layer.ceil_mode and not fits) or (any(padding) and not layer.count_include_pad) or layer.divisor_override:
        raise ArgumentError("NIR pools average over all of their window, which is within the padded image")
    return nir.AvgPool2d(*(np.array(size) for size in (kernel, stride, padding)))


def _adaptive(layer: nn.AdaptiveAvgPool2d, x: Tensor) -> Any:
    if _pair(layer.output_size) != (1, 1):
        raise ArgumentError(f"NIR has no pool to a given size, such as {layer.output_size}, unless it is 1")
    return _whole_pool(x)


def _whole_pool(x: Tensor) -> Any:
    size = np.array(x.shape[-2:])
    return nir.AvgPool2d(size, size, np.zeros(2, int))


def _pair(size: Any) -> tuple[int, int]:
    return size if isinstance(size, tuple) else (size, size)


LAYERS: dict[type, Callable[[Any, Tensor], Any]] = {
    nn.Linear: _linear,
    nn.Conv1d: _conv,
    nn.Conv2d: _conv,
    nn.AvgPool2d: _pool,
    nn.AdaptiveAvgPool2d: _adaptive,
}

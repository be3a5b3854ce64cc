"""From a network of this package to NIR."""

import copy
import inspect
import os
from collections.abc import Callable, Sequence
from typing import Any

import nir
import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.utils import fusion

from ...layers import Normalize
from ...parameters import ArgumentError
from ...tracing import InPlaceTracer, refuse_other_views
from ..mapping import Adapter
from .neurons import node_of

Path = str | os.PathLike[str]
Shape = Sequence[int]
Sources = tuple[str, ...]  # nodes whose sum a value is


def write(path: Path, net: nn.Module, sample: Tensor, dt: float = 1e-4) -> None:
    """Write a network to a file that other libraries read: `to_nir`, then `nir.write`."""
    nir.write(path, to_nir(net, sample, dt))


def to_nir(net: nn.Module, sample: Tensor, dt: float = 1e-4) -> Any:
    """A network as an `nir.NIRGraph`, in the form that SpikingJelly, snnTorch and norse understand.

    Batch normalisation is folded into the layer before it. Noise, surrogate gradients and `decay_input` are in the
    metadata of the nodes; readers that ignore them get the noiseless network.

    Args:
        net: a network of neurons that reset to a value, and of convolutions, linear layers, average pools, flattening
            and sums. It is written in evaluation mode.
        sample: an input, for the shapes: [T, B, ...].
        dt: duration of a time step in seconds; snnTorch knows no other than 1e-4.

    Raises:
        ArgumentError: for anything else, which NIR has no words for.
    """
    for name, module in net.named_modules():
        if isinstance(module, Adapter):
            raise ArgumentError(
                f"{name!r} is called as a neuron of another library: write a network of this package, which has its "
                "`neuron` there"
            )
    net = copy.deepcopy(net).train(False)
    fixed = {"timesteps": None} if "timesteps" in inspect.signature(net.forward).parameters else {}
    try:
        graph = fx.GraphModule(net, _Tracer().trace(net, fixed))
    except Exception as error:  # whatever the code of a network may raise
        raise ArgumentError(f"torch.fx cannot follow {type(net).__name__}.forward: {error}") from error
    with torch.no_grad():
        ShapeProp(graph).propagate(sample, *fixed.values())
    try:
        return _Writer(graph, dt).graph()
    except ArgumentError:
        raise
    except ValueError as error:  # of nir, where shapes do not fit its rules, as of convolutions with groups
        raise ArgumentError(f"nir cannot describe the network: {error}") from error


class _Tracer(InPlaceTracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        is_leaf = getattr(module, "emits_spikes", False) or isinstance(module, Normalize)
        return is_leaf or super().is_leaf_module(module, name)


class _Writer:
    """Goes through the operations of a network, and turns each layer into a node."""

    def __init__(self, graph: fx.GraphModule, dt: float) -> None:
        self.net, self.dt = graph, dt
        self.nodes: dict[str, Any] = {}
        self.edges: list[tuple[str, str]] = []
        self.sources: dict[fx.Node, Sources] = {}
        self.folded: set[fx.Node] = set()  # values [T * B, ...]
        self.layers: dict[str, tuple[nn.Module, Shape]] = {}  # and the shapes of their inputs

    def graph(self) -> Any:
        for n in self.net.graph.nodes:
            given = [node for node in n.all_input_nodes if node in self.sources]
            if n.op == "output":
                if not isinstance(n.args[0], fx.Node):
                    raise ArgumentError(f"a network must return one tensor to be written, this returns {n.args[0]}")
                self._add("output", nir.Output(np.array(_shape(given[0])[2:])), given)
            elif "tensor_meta" in n.meta:
                if not n.users:
                    raise ArgumentError(f"the result of {n.name!r} is not used, which NIR takes for an output")
                self.sources[n] = self._translate(n, given)
                if _folds_time(n) or (_name(n) != "unflatten" and self.folded.intersection(given)):
                    self.folded.add(n)
        return nir.NIRGraph(self.nodes, self.edges, metadata={"dt": self.dt})

    def _add(self, name: str, node: Any, given: Sequence[fx.Node]) -> Sources:
        self.nodes[name] = node
        self.edges += [(source, name) for value in given for source in self.sources[value]]
        return (name,)

    def _translate(self, n: fx.Node, given: list[fx.Node]) -> Sources:
        """The sources of the result of an operation; adds its node, if it has one."""
        name = _name(n)
        if n.op == "placeholder":
            return self._add("input", nir.Input(np.array(_shape(n)[2:])), ())
        if n.op == "call_module":
            return self._layer(n, given[0], self.net.get_submodule(str(n.target)))
        if name in ("add", "iadd", "add_") and len(given) == 2:
            if name != "add":
                self._check_in_place(n)
            if n.kwargs.get("alpha", 1) != 1:
                raise ArgumentError(f"NIR adds values as they are, not by alpha={n.kwargs['alpha']}")
            together = self.sources[given[0]] + self.sources[given[1]]
            if len(set(together)) < len(together):
                raise ArgumentError("NIR cannot add a value to itself")
            return together
        if name == "unflatten" or _folds_time(n):
            return self.sources[given[0]]
        if name == "flatten":
            return self._flatten(n.name, given[0], *_dims(n))
        if name == "mean" and n.args[1:] == ((-2, -1),):
            pool = f"{n.name}_pool"
            self._add(pool, _whole_pool(_shape(given[0])), given)
            self.edges.append((pool, n.name))
            return self._add(n.name, nir.Flatten(np.array([_shape(given[0])[-3], 1, 1]), 0, -1), ())
        raise ArgumentError(f"NIR has no words for the operation {name!r}")

    def _check_in_place(self, n: fx.Node) -> None:
        """Raise ArgumentError if the value that an operation changes, or another view of it, is used later."""
        places = {node: place for place, node in enumerate(self.net.graph.nodes)}
        refuse_other_views(self.net, n, n.name, places)
        if any(places[user] > places[n] for user in n.all_input_nodes[0].users):
            raise ArgumentError(f"{n.name!r} changes a value in place that is used later")

    def _layer(self, n: fx.Node, given: fx.Node, module: nn.Module) -> Sources:
        name = f"{n.name}_layer" if n.name in ("input", "output") else n.name
        shape = _shape(given)
        if isinstance(module, nn.Identity | _DropoutNd):
            return self.sources[given]
        if isinstance(module, _BatchNorm):
            return self._fold(n, given, module)
        if isinstance(module, nn.Flatten):
            return self._flatten(name, given, module.start_dim, module.end_dim)
        if getattr(module, "emits_spikes", False):
            return self._add(name, node_of(module, tuple(shape[2:]), self.dt), [given])
        if type(module) not in LAYERS:
            raise ArgumentError(f"NIR has no words for the layer {n.target!r}, {type(module).__name__}")
        self.layers[name] = module, shape
        return self._add(name, LAYERS[type(module)](module, shape), [given])

    def _fold(self, n: fx.Node, given: fx.Node, norm: _BatchNorm) -> Sources:
        """Batch normalisation as part of the layer before it."""
        sources = self.sources[given]
        if sources[0] not in self.layers or len(sources) > 1 or len(given.users) > 1 or norm.running_mean is None:
            raise ArgumentError(
                f"{n.target!r} can be folded only into a convolution or linear layer right before it, with the "
                "statistics of its training"
            )
        layer, shape = self.layers[sources[0]]
        fuse: Any = fusion.fuse_linear_bn_eval if isinstance(layer, nn.Linear) else fusion.fuse_conv_bn_eval
        self.nodes[sources[0]] = LAYERS[type(layer)](fuse(layer, norm), shape)
        return sources

    def _flatten(self, name: str, given: fx.Node, start: int, end: int) -> Sources:
        shape, lead = _shape(given), 1 if given in self.folded else 2
        start, end = start % len(shape) - lead, end % len(shape) - lead
        if start < 0:
            raise ArgumentError(f"{name!r} flattens time or the batch, which NIR does not have")
        return self._add(name, nir.Flatten(np.array(shape[lead:]), start, end), [given])


def _shape(n: fx.Node) -> Shape:
    return n.meta["tensor_meta"].shape


def _name(n: fx.Node) -> str:
    """The name of an operation; empty for a layer, whose name may be that of an operation."""
    if n.op == "call_module":
        return ""
    return n.target if isinstance(n.target, str) else n.target.__name__


def _folds_time(n: fx.Node) -> bool:
    return _name(n) == "flatten" and _dims(n) == (0, 1)


def _dims(n: fx.Node) -> tuple[int, int]:
    """The arguments of a call of `flatten`."""
    given: dict[str, Any] = {**dict(zip(("start_dim", "end_dim"), n.args[1:])), **n.kwargs}
    return given.get("start_dim", 0), given.get("end_dim", -1)


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().float().numpy()


def _bias(layer: Any, count: int) -> np.ndarray:
    return np.zeros(count, np.float32) if layer.bias is None else _array(layer.bias)


def _linear(layer: nn.Linear, shape: Shape) -> Any:
    return nir.Affine(_array(layer.weight), _bias(layer, layer.out_features))


def _conv(layer: Any, shape: Shape) -> Any:
    if layer.padding_mode != "zeros":
        raise ArgumentError(f"NIR pads with zeros, not by {layer.padding_mode!r}")
    sizes: dict[str, Any] = {name: getattr(layer, name) for name in ("stride", "padding", "dilation")}
    weights = dict(weight=_array(layer.weight), bias=_bias(layer, layer.out_channels), groups=layer.groups)
    if isinstance(layer, nn.Conv2d):
        return nir.Conv2d(input_shape=tuple(shape[-2:]), **weights, **sizes)
    one = {name: size[0] if isinstance(size, tuple) else size for name, size in sizes.items()}
    return nir.Conv1d(input_shape=shape[-1], **weights, **one)


def _normalize(layer: Normalize, shape: Shape) -> Any:
    """A convolution that scales each channel; folded into the next layer, it would change what that one pads with."""
    std = layer.std.flatten()
    weights = dict(weight=_array(torch.diag(1 / std)[:, :, None, None]), bias=_array(-layer.mean.flatten() / std))
    return nir.Conv2d(input_shape=tuple(shape[-2:]), **weights, groups=1, stride=1, padding=0, dilation=1)


def _pool(layer: nn.AvgPool2d, shape: Shape) -> Any:
    kernel, stride, padding = (_pair(size) for size in (layer.kernel_size, layer.stride, layer.padding))
    fits = all((size + 2 * p - k) % s == 0 for size, k, s, p in zip(shape[-2:], kernel, stride, padding))
    if (layer.ceil_mode and not fits) or (any(padding) and not layer.count_include_pad) or layer.divisor_override:
        raise ArgumentError("pools of NIR average over all of a window, and none reaches over the padded image")
    return nir.AvgPool2d(*(np.array(size) for size in (kernel, stride, padding)))


def _adaptive_pool(layer: nn.AdaptiveAvgPool2d, shape: Shape) -> Any:
    if _pair(layer.output_size) != (1, 1):
        raise ArgumentError(f"NIR has no pool to the size {layer.output_size}, only to 1")
    return _whole_pool(shape)


def _whole_pool(shape: Shape) -> Any:
    size = np.array(shape[-2:])
    return nir.AvgPool2d(size, size, np.zeros(2, int))


def _pair(size: Any) -> tuple[int, int]:
    return size if isinstance(size, tuple) else (size, size)


LAYERS: dict[type, Callable[[Any, Shape], Any]] = {
    nn.Linear: _linear,
    nn.Conv1d: _conv,
    nn.Conv2d: _conv,
    Normalize: _normalize,
    nn.AvgPool2d: _pool,
    nn.AdaptiveAvgPool2d: _adaptive_pool,
}

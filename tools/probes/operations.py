"""Synaptic operations of a spiking network and their energy, beside those of the same network with ReLU."""

import contextlib
import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode

from .hooks import spiking_neurons

ACCUMULATE_PJ, MULTIPLY_ACCUMULATE_PJ = 0.9, 4.6
ADDITIONS = {"add", "add_", "__add__", "__iadd__", "__radd__"}
SYNAPSES = {"linear", "matmul", "__matmul__", "mm", "addmm", "bmm", "einsum"}
SYNAPSES |= {f"{layer}{n}d" for layer in ("conv", "conv_transpose") for n in (1, 2, 3)}
SYNAPSES |= {f"{kind}_norm" for kind in ("batch", "group", "instance", "layer", "rms")}


@dataclasses.dataclass
class _Connections:
    """Those of a layer or identity path, and sums over its calls, which stay on the device: reading would stall it."""

    fan_out: Tensor  # of each input of one sample and time step: [C, H, W] or [features]
    is_identity: bool = False
    operations: Tensor | int = 0
    multiplies: Tensor | bool = False

    def add(self, x: Tensor) -> None:
        """Add one call with input `x`, of samples and time steps."""
        per_input = (x != 0).flatten(0, -1 - self.fan_out.dim()).sum(0)
        self.operations = self.operations + (per_input * self.fan_out).sum()
        self.multiplies = self.multiplies | ((x != 0) & (x != 1)).any()

    def report(self, samples: int) -> dict[str, Any]:
        kind, dense = "MAC" if self.multiplies else "AC", int(self.fan_out.sum())
        return {"operations": float(self.operations) / samples, "kind": kind, "dense": dense}


class Operations:
    """Synaptic operations of all passes inside `count_operations`; it keeps sums only, so memory stays constant.

    An operation is one connection through which an input that is not zero reaches an output. Where all inputs of a
    layer are 0 or 1 it is an accumulate (AC), elsewhere, as in the stem, or behind an average pool, a multiply-
    accumulate (MAC). Padding is not a connection. Biases, batch normalisation (which folds into the weights) and the
    neurons' own updates are not counted.
    """

    def __init__(self) -> None:
        self.samples = 0
        self._paths: dict[str, _Connections] = {}

    def add_layer(self, name: str, layer: nn.Module, args: tuple[Tensor]) -> None:
        """Add one call of a convolution or linear layer: its forward pre-hook, after its name."""
        if name not in self._paths:
            self._paths[name] = _Connections(_fan_out(layer, args[0]))
        self._paths[name].add(args[0])

    def add_identity(self, name: str, x: Tensor) -> None:
        """Add one call of an identity path, through which activations [..., C, H, W] or [..., features] are added."""
        if name not in self._paths:
            shape = x.shape[-3:] if x.dim() > 3 else x.shape[-1:]
            self._paths[name] = _Connections(torch.ones(shape, dtype=torch.int64, device=x.device), is_identity=True)
        self._paths[name].add(x)

    def report(self) -> dict[str, Any]:
        """{"layers": {name: {"operations", "kind" ("AC" or "MAC"), "dense"}}, "ac", "mac", ...}: what one sample costs.

        The entries "relu_..." are of the ReLU network, every connection of which multiplies, once, except those of
        identity paths, which add.

        Note:
            Energies of 32-bit floating-point operations in 45 nm: 0.9 pJ to add, 3.7 pJ more to multiply. Horowitz,
            "Computing's energy problem (and what we can do about it)", ISSCC 2014. An estimate of arithmetic alone:
            moving data and keeping state cost more in most machines, and are left out for both networks.
        """
        layers = {name: path.report(self.samples) for name, path in self._paths.items()}
        rows = layers.values()
        ac = sum(row["operations"] for row in rows if row["kind"] == "AC")
        mac = sum(row["operations"] for row in rows if row["kind"] == "MAC")
        relu_ac = sum(layers[name]["dense"] for name, path in self._paths.items() if path.is_identity)
        relu_mac = sum(row["dense"] for row in rows) - relu_ac
        return {
            "layers": layers,
            "ac": ac,
            "mac": mac,
            "energy_nj": (ACCUMULATE_PJ * ac + MULTIPLY_ACCUMULATE_PJ * mac) / 1000,
            "relu_ac": relu_ac,
            "relu_mac": relu_mac,
            "relu_energy_nj": (ACCUMULATE_PJ * relu_ac + MULTIPLY_ACCUMULATE_PJ * relu_mac) / 1000,
        }


@contextlib.contextmanager
def count_operations(net: nn.Module) -> Iterator[Operations]:
    """Context manager: count the synaptic operations of a network in the block.

    Counted are convolutions, linear layers, and identity paths: where a module adds two activations of one shape, and
    one of them is not itself a current (made by a convolution, linear layer or normalisation, or a sum with one), each
    of its elements that is not zero is an operation, under the name `<module>.identity` (a second one in a forward
    pass of the module: `.identity2`).
    """
    record = Operations()
    additions = _Additions(record, net)

    def start(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        record.samples += args[0].shape[0 if args[0].dim() == 4 else 1]
        additions.currents.clear()

    with contextlib.ExitStack() as hooks:
        hooks.enter_context(net.register_forward_pre_hook(start))
        for name, module in net.named_modules():
            hooks.enter_context(module.register_forward_pre_hook(partial(additions.begin, name)))
            hooks.enter_context(module.register_forward_hook(additions.end, always_call=True))
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                hooks.enter_context(module.register_forward_pre_hook(partial(record.add_layer, name)))
        hooks.enter_context(additions)
        yield record


def _fan_out(layer: nn.Module, x: Tensor) -> Tensor:
    """Connections of each input of one sample and time step. Shape: int64 [C, H, W] or [features]."""
    if isinstance(layer, nn.Linear):
        return torch.full(x.shape[-1:], layer.out_features, device=x.device)
    kernel = torch.ones(1, 1, *layer.kernel_size, dtype=torch.float64, device=x.device)
    shape = (1, 1, *x.shape[-2:])
    geometry = (layer.stride, layer.padding, layer.dilation)
    outputs = torch.ones_like(nn.functional.conv2d(kernel.new_zeros(shape), kernel, None, *geometry))
    reached = torch.nn.grad.conv2d_input(shape, kernel, outputs, *geometry)[0]  # outputs of one channel, [1, H, W]
    return (reached.round().long() * (layer.out_channels // layer.groups)).expand(x.shape[-3], -1, -1)


class _Additions(TorchFunctionMode):
    """Sees every operation on tensors; counts the identity paths among the additions.

    `currents` has the storages of currents, so that a view of one is known too. A weak reference keeps the address of
    a storage from being used again, not its memory.
    """

    def __init__(self, record: Operations, net: nn.Module) -> None:
        super().__init__()
        self.record = record
        self.neurons = {name for name, _ in spiking_neurons(net)}
        self.running: list[str] = []  # names of the modules whose forward pass has begun
        self.identities: dict[str, int] = {}  # identity paths so far in the pass of each module
        self.currents: dict[int, StorageWeakRef] = {}

    def begin(self, name: str, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        """Forward pre-hook of a module, after its name."""
        self.running.append(name)
        self.identities[name] = 0

    def end(self, module: nn.Module, args: tuple[Tensor, ...], output: Any) -> None:
        """Forward hook of any module."""
        self.running.pop()

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if name in SYNAPSES:
            self._note_current(result)
        elif name in ADDITIONS and len(args) == 2 and self.running and self.neurons.isdisjoint(self.running):
            self._count(args, result)
        return result

    def _count(self, operands: tuple[Any, Any], result: Tensor) -> None:
        for x in operands:
            if not isinstance(x, Tensor) or isinstance(x, nn.Parameter) or not x.is_floating_point():
                return
            if x.shape != operands[0].shape:
                return
        paths = [x for x in operands if StorageWeakRef(x.untyped_storage()).cdata not in self.currents]
        if len(paths) < 2:
            self._note_current(result)
        name = self.running[-1]
        for x in paths:
            self.identities[name] += 1
            number = self.identities[name] if self.identities[name] > 1 else ""
            self.record.add_identity(f"{name}.identity{number}".lstrip("."), x)

    def _note_current(self, x: Tensor) -> None:
        reference = StorageWeakRef(x.untyped_storage())
        self.currents[reference.cdata] = reference

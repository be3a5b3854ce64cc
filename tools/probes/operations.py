"""Synaptic operations of a spiking network and their energy, beside those of the same network with ReLU."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from .hooks import removed_afterwards

ACCUMULATE_PJ, MULTIPLY_ACCUMULATE_PJ = 0.9, 4.6
ADDITIONS = {"add", "add_", "__add__", "__iadd__", "__radd__"}
SYNAPSES = {"linear", "matmul", "__matmul__", "mm", "addmm", "bmm", "einsum"}
SYNAPSES |= {f"{layer}{n}d" for layer in ("conv", "conv_transpose") for n in (1, 2, 3)}
SYNAPSES |= {f"{kind}_norm" for kind in ("batch", "group", "instance", "layer", "rms")}


class Operations:
    """Synaptic operations of all passes inside `count_operations`; it keeps sums only, so memory stays constant.

    An operation is one connection through which an input that is not zero reaches an output. Where all inputs of a
    layer are 0 or 1 it is an accumulate (AC), elsewhere, as in the stem, or behind an average pool, a multiply-
    accumulate (MAC). Padding is not a connection. Biases, batch normalisation (which folds into the weights) and the
    neurons' own updates are not counted.
    """

    def __init__(self) -> None:
        self.samples = 0
        self._operations: dict[str, Tensor] = {}
        self._multiplies: dict[str, Tensor] = {}
        self._dense: dict[str, int] = {}
        self._identities: set[str] = set()

    def add(self, name: str, x: Tensor, fan_out: Tensor, dense: int) -> None:
        """Add one call of a layer.

        Args:
            x: its input, of samples and time steps.
            fan_out: connections of each input of one sample and time step, [C, H, W] or [features].
            dense: the sum of `fan_out`; given, as reading it each time would stall an accelerator.
        """
        per_input = (x != 0).flatten(0, -1 - fan_out.dim()).sum(0)  # of all samples and time steps
        self._operations[name] = self._operations.get(name, 0) + (per_input * fan_out).sum()
        self._multiplies[name] = self._multiplies.get(name, False) | ((x != 0) & (x != 1)).any()
        self._dense[name] = dense

    def add_identity(self, name: str, x: Tensor) -> None:
        """Add one call of an identity path, through which activations [..., C, H, W] or [..., features] are added."""
        ones = torch.ones(x.shape[-3:] if x.dim() > 3 else x.shape[-1:], dtype=torch.int64, device=x.device)
        self._identities.add(name)
        self.add(name, x, ones, ones.numel())

    def report(self) -> dict[str, Any]:
        """What one sample costs.

        Returns:
            {"layers": {name: {"operations", "kind" ("AC" or "MAC"), "dense"}}, "ac", "mac", "energy_nj"; and for the
            ReLU network, every connection of which multiplies, once, except those of identity paths, which add:
            "relu_ac", "relu_mac", "relu_energy_nj"}.

        Note:
            Energies of 32-bit floating-point operations in 45 nm: 0.9 pJ to add, 3.7 pJ more to multiply. Horowitz,
            "Computing's energy problem (and what we can do about it)", ISSCC 2014. An estimate of arithmetic alone:
            moving data and keeping state cost more in most machines, and are left out for both networks.
        """
        layers = {
            name: {
                "operations": float(total) / self.samples,
                "kind": "MAC" if bool(self._multiplies[name]) else "AC",
                "dense": self._dense[name],
            }
            for name, total in self._operations.items()
        }
        ac, mac = (sum(row["operations"] for row in layers.values() if row["kind"] == kind) for kind in ("AC", "MAC"))
        relu_ac = sum(self._dense[name] for name in self._identities)
        relu_mac = sum(self._dense.values()) - relu_ac
        return {
            "layers": layers,
            "ac": ac,
            "mac": mac,
            "energy_nj": _energy_nj(ac, mac),
            "relu_ac": relu_ac,
            "relu_mac": relu_mac,
            "relu_energy_nj": _energy_nj(relu_ac, relu_mac),
        }


def _energy_nj(ac: float, mac: float) -> float:
    return (ACCUMULATE_PJ * ac + MULTIPLY_ACCUMULATE_PJ * mac) / 1000


@contextlib.contextmanager
def count_operations(net: nn.Module) -> Iterator[Operations]:
    """Context manager: count the synaptic operations of a network in the block.

    Counted are convolutions, linear layers, and identity paths: where a module adds two activations of one shape, and
    one of them is not itself a current (made by a convolution, linear layer or normalisation, or a sum with one), each
    of its elements that is not zero is an operation, under the name `<module>.identity` (a second one in a forward
    pass of the module: `.identity2`).

    Yields:
        `Operations`.
    """
    record = Operations()
    additions = _Additions(record)

    def start(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        record.samples += args[0].shape[0 if args[0].dim() == 4 else 1]
        additions.currents.clear()

    handles = [net.register_forward_pre_hook(start)]
    for name, module in net.named_modules():
        handles += additions.attach(name, module)
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            handles.append(module.register_forward_pre_hook(_Counter(record, name)))
    with removed_afterwards(handles), additions:
        yield record


class _Counter:
    """Forward pre-hook that counts a convolution or linear layer."""

    def __init__(self, record: Operations, name: str) -> None:
        self.record, self.name = record, name
        self.fan_out: Tensor | None = None
        self.dense = 0

    def __call__(self, layer: nn.Module, args: tuple[Tensor]) -> None:
        (x,) = args
        if self.fan_out is None:  # the same in every call
            self.fan_out = _fan_out(layer, x)
            self.dense = int(self.fan_out.sum())
        self.record.add(self.name, x, self.fan_out, self.dense)


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


@dataclasses.dataclass
class _Running:
    """A module whose forward pass has begun, and the identity paths that it has had so far."""

    name: str
    is_neuron: bool
    identities: int = 0


class _Additions(TorchFunctionMode):
    """Sees every operation on tensors; counts the identity paths among the additions.

    `currents` has the storages of currents, so that a view of one is known too. A weak reference keeps the address of
    a storage from being used again, not its memory.
    """

    def __init__(self, record: Operations) -> None:
        super().__init__()
        self.record = record
        self.running: list[_Running] = []
        self.currents: dict[int, StorageWeakRef] = {}

    def attach(self, name: str, module: nn.Module) -> list[RemovableHandle]:
        """Hooks that tell which module is running."""

        def begin(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            self.running.append(_Running(name, getattr(module, "emits_spikes", False)))

        def end(module: nn.Module, args: tuple[Tensor, ...], output: Any) -> None:
            self.running.pop()

        return [module.register_forward_pre_hook(begin), module.register_forward_hook(end, always_call=True)]

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if name in SYNAPSES:
            self._note_current(result)
        elif name in ADDITIONS and len(args) == 2 and self.running and not any(m.is_neuron for m in self.running):
            self._count(args, result)
        return result

    def _count(self, operands: tuple[Any, Any], result: Tensor) -> None:
        for x in operands:
            if not isinstance(x, Tensor) or isinstance(x, nn.Parameter) or not x.is_floating_point():
                return
        if operands[0].shape != operands[1].shape:
            return
        paths = [x for x in operands if not self._is_current(x)]
        if len(paths) < 2:
            self._note_current(result)
        for x in paths:
            module = self.running[-1]
            module.identities += 1
            number = module.identities if module.identities > 1 else ""
            self.record.add_identity(f"{module.name}.identity{number}".lstrip("."), x)

    def _note_current(self, x: Tensor) -> None:
        reference = StorageWeakRef(x.untyped_storage())
        self.currents[reference.cdata] = reference

    def _is_current(self, x: Tensor) -> bool:
        return StorageWeakRef(x.untyped_storage()).cdata in self.currents

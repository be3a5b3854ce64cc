"""Synaptic operations of a spiking network and their energy, beside those of the same network with ReLU."""

import contextlib

import torch
from torch import nn

from models.resnet import ResidualBlock

from .hooks import removed_afterwards

ACCUMULATE_PJ, MULTIPLY_ACCUMULATE_PJ = 0.9, 4.6
IDENTITY = ".identity"  # of the name of a residual block: its identity path


class Operations:
    """Synaptic operations of everything that ran inside `count_operations`; sums only, so memory stays constant.

    An operation is one connection through which an input that is not zero reaches an output. Where all inputs of a
    layer are 0 or 1 it is an accumulate (AC), elsewhere, as in the stem, or behind an average pool, a multiply-
    accumulate (MAC). Padding is no connection. Biases, batch normalisation (which folds into the weights) and the
    neurons' own updates are not counted.
    """

    def __init__(self):
        self.samples = 0
        self._operations, self._multiplies, self._dense = {}, {}, {}

    def add(self, name, operations, has_other_values, dense):
        """Add one call of a layer.

        Args:
            operations: connections of inputs that are not zero; a tensor, which stays on its device.
            has_other_values: whether an input was neither 0 nor 1; a bool tensor.
            dense: connections of all inputs of one sample and one time step, an int.
        """
        self._operations[name] = self._operations.get(name, 0) + operations
        self._multiplies[name] = self._multiplies.get(name, False) | has_other_values
        self._dense[name] = dense

    def report(self):
        """What one sample costs.

        Returns:
            {"layers": {name: {"operations", "kind" ("AC" or "MAC"), "dense"}}, "ac", "mac", "energy_nj"; and for the
            ReLU network, every connection of which multiplies, once, but those of identity paths, which add:
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
        relu_ac = sum(count for name, count in self._dense.items() if name.endswith(IDENTITY))
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


def _energy_nj(ac, mac):
    return (ACCUMULATE_PJ * ac + MULTIPLY_ACCUMULATE_PJ * mac) / 1000


@contextlib.contextmanager
def count_operations(net):
    """Context manager: count the synaptic operations of a network in the block.

    Convolutions, linear layers, and the identity paths of residual blocks (an operation per input that is not zero).

    Yields:
        `Operations`.
    """
    record = Operations()

    def count_samples(module, args):
        record.samples += args[0].shape[0 if args[0].dim() == 4 else 1]

    handles = [net.register_forward_pre_hook(count_samples)]
    for name, module in net.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            handles.append(module.register_forward_pre_hook(_counter(record, name, _fan_out)))
        elif isinstance(module, ResidualBlock) and module.downsample is None:
            handles.append(module.register_forward_pre_hook(_counter(record, name + IDENTITY, _one)))
    with removed_afterwards(handles):
        yield record


def _counter(record, name, fan_out):
    fan, dense = None, 0

    def count(module, args):
        nonlocal fan, dense
        (x,) = args
        if fan is None:  # the same in every call; to read its sum each time would stall an accelerator
            fan = fan_out(module, x)
            dense = int(fan.sum())
        per_input = (x != 0).flatten(0, -1 - fan.dim()).sum(0)  # of all samples and time steps; [C, H, W] or [features]
        record.add(name, (per_input * fan).sum(), ((x != 0) & (x != 1)).any(), dense)

    return count


def _fan_out(layer, x):
    """Connections of each input of one sample and time step. Shape: int64 [C, H, W] or [features]."""
    if isinstance(layer, nn.Linear):
        return torch.full(x.shape[-1:], layer.out_features, device=x.device)
    kernel = torch.ones(1, 1, *layer.kernel_size, dtype=torch.float64, device=x.device)
    shape = (1, 1, *x.shape[-2:])
    geometry = (layer.stride, layer.padding, layer.dilation)
    outputs = torch.ones_like(nn.functional.conv2d(kernel.new_zeros(shape), kernel, None, *geometry))
    reached = torch.nn.grad.conv2d_input(shape, kernel, outputs, *geometry)[0]  # outputs of one channel, [1, H, W]
    return (reached.round().long() * (layer.out_channels // layer.groups)).expand(x.shape[-3], -1, -1)


def _one(block, x):
    return torch.ones(x.shape[-3:], dtype=torch.int64, device=x.device)

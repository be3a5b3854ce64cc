"""Synaptic operations of a spiking network and their energy, next to those of the same network with ReLU."""

import contextlib
import dataclasses
import weakref
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from crits.watching import stream_step
from tools.errors import UserError

from .hooks import in_one_thread, spiking_neurons
from .identities import IdentityPaths

ACCUMULATE_PJ, MULTIPLY_ACCUMULATE_PJ = 0.9, 4.6  # in 45 nm; see `Cost`
UNCOUNTED = (nn.Bilinear, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)
LAYERS = (nn.Linear, nn.modules.conv._ConvNd, *UNCOUNTED)


@dataclasses.dataclass
class _Connections:
    """The connections of a layer or identity path, and sums over its calls."""

    fan_out: Tensor  # of each input of one sample and time step: [C, H, W], or one number for all
    dense: int  # all connections of one sample and time step
    is_identity: bool
    # The sums stay on the device: reading them at every layer would stall it.
    operations: Tensor | int = 0
    multiplies: Tensor | bool = False

    def add(self, x: Tensor) -> None:
        """Add one call with input `x`, of samples and time steps."""
        per_input = (x != 0).flatten(0, -1 - self.fan_out.dim()).sum(0)
        self.operations = self.operations + (per_input * self.fan_out).sum()
        self.multiplies = self.multiplies | ((x != 0) & (x != 1)).any()

    def cost(self, samples: int) -> "LayerCost":
        return LayerCost(float(self.operations) / samples, "MAC" if self.multiplies else "AC", self.dense)


@dataclasses.dataclass(frozen=True)
class LayerCost:
    """The cost of one sample in a layer or on an identity path."""

    operations: float
    kind: str  # "AC" or "MAC"
    dense: int  # all connections, used or not


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of one sample in a network; `relu_...`: in the same network with ReLU.

    There, every connection costs one multiply-accumulate in each frame, whether its input is zero or not; on identity
    paths, one accumulate. An image is one frame, as all its time steps would be the same.

    Note:
        Energies of 32-bit floating-point operations in 45 nm: 0.9 pJ to add, 3.7 pJ more to multiply. Horowitz,
        "Computing's energy problem (and what we can do about it)", ISSCC 2014. This is arithmetic alone: moving
        data and keeping state cost more on most machines, and are left out for both networks.
    """

    layers: dict[str, LayerCost]
    ac: float
    mac: float
    energy_nj: float
    relu_ac: float
    relu_mac: float
    relu_energy_nj: float


class Operations:
    """Synaptic operations of all forward passes inside `count_operations`.

    An operation is one connection through which an input that is not zero reaches an output. It is an accumulate (AC)
    where all inputs of a layer are 0 or 1, elsewhere (the stem, after an average pool) a multiply-accumulate (MAC).
    Padding is not a connection. Biases, batch normalisation (which folds into the weights) and the neurons' own updates
    are not counted.
    """

    def __init__(self) -> None:
        self.samples = 0
        self._frames = 0  # of all samples; an image is one
        self._batch = 1  # samples of the forward pass
        self._steps: int | None = None  # its time steps; None: unknown
        self._paths: dict[str, _Connections] = {}

    def begin(self, x: Tensor, batch_dim: int, timesteps: int | None, is_new: bool = True) -> None:
        """Begin a forward pass with input `x`, of new samples or of the next step of those before."""
        self._batch = x.shape[batch_dim]
        self._steps = x.shape[0] if timesteps is None and batch_dim == 1 else timesteps
        self.samples += self._batch if is_new else 0
        self._frames += self._batch * (x.shape[0] if batch_dim == 1 else 1)

    def add(self, name: str, layer: nn.Module | None, args: tuple[Tensor]) -> None:
        """Forward pre-hook of the layer called `name`; without a layer, one call of an identity path."""
        x = args[0]
        if name not in self._paths:
            fan_out = _fan_out(name, layer, x)
            dense = int(fan_out) * self._size(name, x) if fan_out.dim() == 0 else int(fan_out.sum())
            self._paths[name] = _Connections(fan_out, dense, is_identity=layer is None)
        self._paths[name].add(x)

    def _size(self, name: str, x: Tensor) -> int:
        """Elements of one sample and time step of `x`, which is [T, B, ...], [T * B, ...] or [B, ...]."""
        first = x.shape[0]
        if self._steps is None:
            may_be_steps = first != self._batch
            may_be_samples = first % self._batch == 0
        else:
            may_be_steps = first == self._steps
            may_be_samples = first in (self._batch, self._steps * self._batch)
        if may_be_steps and x.dim() > 2 and x.shape[1] == self._batch:  # [T, B, ...]
            return x[0, 0].numel()
        if may_be_samples:  # [T * B, ...] or [B, ...]
            return x[0].numel()
        known = "[T, B, ...], [T * B, ...] or [B, ...]"
        found = f"{list(x.shape)}, in a batch of {self._batch}"
        raise UserError(f"cannot count {name!r}: activations must be {known}, not {found}")

    def cost(self, is_relu: bool = False) -> Cost:
        """The cost of one sample; `is_relu`: this is a network with ReLU, of the cost in `Cost.relu_...`."""
        layers, of_relu = {}, {}
        for name, path in self._paths.items():
            layers[name] = path.cost(self.samples)
            kind = "AC" if path.is_identity else "MAC"
            of_relu[name] = LayerCost(path.dense * self._frames / self.samples, kind, path.dense)
        if is_relu:
            layers = of_relu
        return Cost(layers, *_totals(layers), *_totals(of_relu))


def _totals(layers: dict[str, LayerCost]) -> tuple[float, float, float]:
    """Accumulates, multiply-accumulates, and their energy in nJ."""
    ac = sum(layer.operations for layer in layers.values() if layer.kind == "AC")
    mac = sum(layer.operations for layer in layers.values() if layer.kind == "MAC")
    return ac, mac, (ACCUMULATE_PJ * ac + MULTIPLY_ACCUMULATE_PJ * mac) / 1000


@contextlib.contextmanager
def count_operations(net: nn.Module, batch_dim: int | None = None) -> Iterator[Operations]:
    """Context manager: count the synaptic operations of a network in the block.

    Counted are convolutional and linear layers, and identity paths. An identity path is where a module adds (subtracts)
    two activations of one shape and one of them is not a current: each of its elements that is not zero is an operation
    of `<module>.identity` (`.identity2` for a second place in the module's code; a loop over steps repeats the same
    path). A current is the output of a convolution, linear layer or normalisation, and what is computed from it outside
    of spiking neurons. Parameters, buffers and values computed from them alone are not activations.

    Each call of the network brings new samples; of a `models.Stream`, only its first step, from rest or in the block.

    Args:
        batch_dim: dimension of the samples in the network's input, 0 or 1. None: 0 with `timesteps`, and for
            [B, C, H, W] (as many dimensions as the first convolution takes), else 1.

    Raises:
        UserError: in the block, for what cannot be counted: other layers with synapses, synapses outside of a layer
            (F.linear, a @ w), and sums such as torch.addcmul.
    """
    record = Operations()
    identities = IdentityPaths(net, LAYERS, lambda name, x: record.add(name, None, (x,)))
    convolutions = [module for module in net.modules() if isinstance(module, nn.modules.conv._ConvNd)]
    image_dim = len(convolutions[0].kernel_size) + 2 if convolutions else None

    streams: weakref.WeakSet[Any] = weakref.WeakSet()

    def start(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        timesteps = kwargs.get("timesteps", args[1] if len(args) > 1 else None)
        default = 0 if timesteps is not None or args[0].dim() == image_dim else 1
        step, is_new = stream_step(), True
        if step is not None and module in set(step.stream.net.modules()):
            default = int(step.time_first)
            is_new = step.stream not in streams or all(state is None for state in step.before)
            streams.add(step.stream)
        record.begin(args[0], default if batch_dim is None else batch_dim, timesteps, is_new)
        identities.start()

    with contextlib.ExitStack() as hooks:
        hooks.enter_context(in_one_thread(net))
        hooks.enter_context(net.register_forward_pre_hook(start, with_kwargs=True))
        for name, module in net.named_modules():
            hooks.enter_context(module.register_forward_pre_hook(partial(identities.begin, name)))
            hooks.enter_context(module.register_forward_hook(identities.end, always_call=True))
            if isinstance(module, LAYERS):
                hooks.enter_context(module.register_forward_pre_hook(partial(record.add, name)))
        hooks.enter_context(net.register_forward_pre_hook(_refuse_transforms))
        for name, neuron in spiking_neurons(net):  # methods for streaming run no hooks
            for method in {"run", "step"} & set(dir(neuron)):
                if method in vars(neuron):  # for example inside `neuron_hooks`
                    hooks.callback(setattr, neuron, method, vars(neuron)[method])
                else:
                    hooks.callback(delattr, neuron, method)
                setattr(neuron, method, identities.within(name, neuron, getattr(neuron, method)))
        hooks.enter_context(identities)
        yield record


def _refuse_transforms(net: nn.Module, args: tuple[Any, ...]) -> None:
    if torch._C._are_functorch_transforms_active():
        raise UserError("operations cannot be counted inside torch.vmap and torch.func: call the network itself")


def _fan_out(name: str, layer: nn.Module | None, x: Tensor) -> Tensor:
    """Connections of each input of one sample and time step: int64 [C, H, W] (or [C, L], ...); [] if all are equal."""
    if layer is None or isinstance(layer, nn.Linear):
        return torch.tensor(1 if layer is None else layer.out_features, device=x.device)
    if isinstance(layer, UNCOUNTED) or layer.transposed or layer.padding_mode != "zeros":
        known = "linear layers, and convolutions that are not transposed and pad with zeros"
        raise UserError(f"operations of layer {name!r} ({layer}) cannot be counted: only those of {known} can")
    dims = len(layer.kernel_size)
    with torch.inference_mode(False), torch.enable_grad():
        kernel = torch.ones(1, 1, *layer.kernel_size, dtype=torch.float64, device=x.device)
        one = kernel.new_zeros(1, *x.shape[-dims:]).requires_grad_()
        convolve = getattr(nn.functional, f"conv{dims}d")
        outputs = convolve(one[None], kernel, None, layer.stride, layer.padding, layer.dilation)
        (reached,) = torch.autograd.grad(outputs.sum(), one)  # outputs of one channel, [1, H, W]
    reached = reached.round().long() * (layer.out_channels // layer.groups)
    return reached.expand(layer.in_channels, *x.shape[-dims:])

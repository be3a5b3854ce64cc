"""Networks for other runtimes."""

import copy
from typing import Any

from torch import Tensor, nn

from .functional import MODES, check_choice
from .modes import switchable
from .parameters import ArgumentError


def plain(net: nn.Module, mode: str = "noiseless", timesteps: int | None = None) -> nn.Module:
    """A copy of `net` made of plain PyTorch operations, for torch.export, ONNX, torch.jit.trace and FX.

    It computes what `net` computes inside `noiseless` or `mean_field`, or ("noisy") outside of both; each runtime then
    draws its own noise. It is for inference: its parameters are frozen, since spikes have no gradient, and it is in
    evaluation mode if `net` is.

    - `torch.export.export` and, by way of it, `torch.onnx.export(..., dynamo=True)`: B and T may be dynamic, by
      `dynamic_shapes=({0: Dim("T"), 1: Dim("B")},)`. A dynamic T becomes PyTorch's `scan`; a fixed one is unrolled.
      `Recurrent` and `AdaptiveLIF` need a fixed one.
      With `dynamo=False`, the older ONNX exporter has no erfc, and so no mean field of Gaussian noise.
    - `torch.jit.trace`: B is dynamic; another T is an error.
    - `torch.fx.symbolic_trace`: each neuron is one module of the graph, and B and T are dynamic. Without `timesteps`
      here, `SpikingNetwork` needs `concrete_args={"timesteps": None}`.

    Wrappers of torch.compile, DistributedDataParallel and DataParallel are left out of the copy.

    Args:
        mode: of its noisy neurons: "noiseless", "mean_field" or "noisy". Other neurons have none.
        timesteps: if given, the copy takes only images [B, C, H, W], and shows each for this many steps.

    Raises:
        TypeError: if a noisy neuron has no `mode`.
        ArgumentError: if PyTorch cannot copy the network.
        RuntimeError: if the parameters are sharded.

    Note:
        In a neuron of your own that overrides `run` or `step`, only the calls of `super()` become plain; the rest must
        be traceable as it is.
    """
    check_choice("mode", mode, MODES)
    for name, parameter in net.named_parameters():
        if hasattr(parameter, "full_tensor") or hasattr(parameter, "_is_flat_param"):
            raise RuntimeError(f"parameter {name!r} is sharded: copy the weights to a network that is not")
    ours = unwrapped_copy(net).requires_grad_(False)
    for neuron in switchable(ours, "plain"):
        neuron.mode = mode
    spiking: list[Any] = [module for module in ours.modules() if getattr(module, "emits_spikes", False)]
    for neuron in spiking:
        if hasattr(neuron, "backend"):
            neuron.backend = "traceable"
    return ours if timesteps is None else _OfImages(ours, timesteps)


class _OfImages(nn.Module):
    """A network that shows each image for a fixed number of time steps."""

    def __init__(self, net: nn.Module, timesteps: int) -> None:
        super().__init__()
        self.net, self.timesteps = net, timesteps
        self.train(net.training)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x, timesteps=self.timesteps)


def unwrapped_copy(net: nn.Module) -> nn.Module:
    """A copy without the wrappers of torch.compile, DistributedDataParallel and DataParallel."""
    memo: dict[int, Any] = {}  # of deepcopy: objects that it treats as already copied
    for module in reversed(list(net.modules())):  # from the inside
        wrapped = getattr(module, "_orig_mod", None)  # of torch.compile
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            wrapped = module.module
        if wrapped is not None:
            memo[id(module)] = deep_copy(wrapped, memo)
    return deep_copy(net, memo)


def deep_copy(net: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """A copy; ArgumentError if the network cannot be copied."""
    try:
        return copy.deepcopy(net, memo)
    except RuntimeError as error:
        raise ArgumentError(
            "the network cannot be copied, as it holds a tensor that was computed from others: a weight of the old "
            "torch.nn.utils.weight_norm (that of torch.nn.utils.parametrizations can be copied), or a state that was "
            "not reset (functional.reset_net(net) of SpikingJelly, utils.reset(net) of snnTorch, or "
            "sinabs.reset_states(net))"
        ) from error
    except Exception as error:  # whatever its classes may raise
        raise ArgumentError(f"the network cannot be copied: {error}") from error


def copy_hooks(old: nn.Module | None, new: nn.Module) -> None:
    """Give a layer the hooks on the calls of the one whose place it takes, if there is one."""
    if old is None:
        return
    for name, hooks in vars(old).items():
        if name.startswith(("_forward_", "_backward_", "_is_full_backward_hook")):
            setattr(new, name, copy.copy(hooks))

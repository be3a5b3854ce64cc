"""Penalties on a network's weights or firing rates: regularizer(net) -> scalar."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .watching import call_of, is_reentrant_checkpoint, is_run_again, neuron_hooks, stream_step


def _weight_matrices(net: nn.Module) -> list[Tensor]:
    """The weights of all convolutions and linear layers as matrices [out, in * k * k]."""
    layers = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
    weights = [module.weight.flatten(1) for module in net.modules() if isinstance(module, layers)]
    if not weights:
        raise ValueError(f"{type(net).__name__} has no convolution and no linear layer to regularise")
    return weights


def _minus_identity(gram: Tensor) -> Tensor:
    return gram - torch.eye(len(gram), dtype=gram.dtype, device=gram.device)


class Regularizer:
    """Base of the penalties: `watching(net)` surrounds the forward pass that a penalty may need to see."""

    def __call__(self, net: nn.Module) -> Tensor:
        raise TypeError(f"{type(self).__name__} is abstract: use one of its subclasses")

    def watching(self, net: nn.Module) -> contextlib.AbstractContextManager[Any]:
        """Context manager around the forward passes that the penalty is of."""
        return contextlib.nullcontext()


class Gramian(Regularizer):
    """Soft orthogonality of the rows of every weight: `R = sum_layers || W W^T - I ||_F`, W as [out, in k k].

    Note:
        Xie, Xiong and Pu, "All you need is beyond a good init", CVPR 2017 (there squared).
    """

    def __call__(self, net: nn.Module) -> Tensor:
        norms = [torch.linalg.matrix_norm(_minus_identity(w @ w.T)) for w in _weight_matrices(net)]
        return functools.reduce(torch.add, norms)


class SRIP(Regularizer):
    """Spectral restricted isometry property, a deviation from isometries: R = sum_layers sigma(W^T W - I)^2.

    The spectral norm sigma is estimated by one power step from a random start: with A = W^T W - I and v random,
    `sigma ~ |A A v| / |A v|`. Of W^T W and W W^T the smaller matrix is taken: it costs less, and the larger one is
    singular, so that its deviation could never fall below 1.

    Note:
        Bansal, Chen and Wang, "Can we gain more from orthogonality regularizations in training deep networks?",
        NeurIPS 2018, equations 9 to 11.
    """

    def __call__(self, net: nn.Module) -> Tensor:
        return functools.reduce(torch.add, [self._squared_spectral_norm(w) for w in _weight_matrices(net)])

    @staticmethod
    def _squared_spectral_norm(w: Tensor) -> Tensor:
        deviation = _minus_identity(w @ w.T if w.shape[0] < w.shape[1] else w.T @ w)
        start = torch.randn(len(deviation), dtype=w.dtype, device=w.device)
        once = deviation @ start
        twice = deviation @ once
        # An exactly orthogonal W has A v = 0: the estimate is then 0, not 0 / 0.
        return twice.square().sum() / once.square().sum().clamp(min=torch.finfo(w.dtype).tiny)


class FiringRate(Regularizer):
    """Keeps each layer's mean firing rate near a target: R = mean_layers (mean spikes of the layer - target)^2.

    The spikes are those of the last forward pass inside `with regularizer.watching(net):`. Where neurons are called by
    `run` or `step`, or in a `models.Stream`, they are those since the last call without a state. Nothing runs compiled
    inside the block.

    A neuron that a forward pass uses several times is one layer, with the mean over all its uses. Where passes are not
    calls `net(...)`, they cannot be told apart: there, a neuron may begin without a state once in a block.

    Args:
        target: spikes per neuron and time step, in [0, 1].

    Raises:
        ValueError: if `target` is out of range.
    """

    def __init__(self, target: float = 0.1) -> None:
        if not 0.0 <= target <= 1.0:
            raise ValueError(f"the target rate must be in [0, 1] spikes per step, got {target}")
        self.target = target
        self._rates: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._calls: dict[str, object] = {}  # of the network, in which the layers began
        self._is_watching = False

    def __call__(self, net: nn.Module) -> Tensor:
        if not self._rates:
            raise RuntimeError(
                "FiringRate needs spikes: run the network itself, not a copy of it or what was exported or traced from "
                "it, inside `with regularizer.watching(net):`"
            )
        return torch.stack([(rate - self.target).square() for rate in self._rates.values()]).mean()

    @contextlib.contextmanager
    def watching(self, net: nn.Module) -> Iterator["FiringRate"]:
        if self._is_watching:
            raise RuntimeError("this FiringRate is watching already: make one for each block that is open at once")
        self._is_watching = True
        try:
            with neuron_hooks(net, functools.partial(self._keep, getattr(net, "_orig_mod", net))):
                yield self
        finally:
            self._rates, self._counts, self._calls = {}, {}, {}  # nothing of the graph outlives the block
            self._is_watching = False

    def _keep(self, net: nn.Module, layer: str, neuron: nn.Module, spikes: Tensor, continues: bool) -> None:
        if not spikes.numel():
            raise ValueError(f"layer {layer!r} has no firing rate: its batch is empty, {list(spikes.shape)}")
        if is_reentrant_checkpoint():
            raise RuntimeError(
                f"the firing rate of layer {layer!r} would have no gradient: give torch.utils.checkpoint "
                "use_reentrant=False, or use models.checkpoint"
            )
        if is_run_again():  # it would be added to the penalty of the next call
            return
        call = call_of(net)
        if call is None and (neuron is net or stream_step() is not None):
            call = object()  # there, no neuron is used twice in a pass
        rate, count = spikes.float().mean(), spikes.numel()
        if self._goes_on(layer, continues, call):
            before = self._counts[layer]
            rate, count = (self._rates[layer] * before + rate * count) / (before + count), before + count
        self._rates[layer], self._counts[layer], self._calls[layer] = rate, count, call

    def _goes_on(self, layer: str, continues: bool, call: object) -> bool:
        """Whether these spikes belong to the same pass as those of the layer before."""
        if layer not in self._rates or continues:
            return layer in self._rates
        if call is None and self._calls[layer] is None:
            raise RuntimeError(
                f"layer {layer!r} is called twice outside of `net(...)`, in one pass or in two: call the network "
                "itself, or open a block for each pass"
            )
        return call is self._calls[layer]


# By name: target rate of `FiringRate` -> the regulariser.
REGULARIZERS: dict[str, Callable[[float], Regularizer]] = {
    "gram": lambda target_rate: Gramian(),
    "srip": lambda target_rate: SRIP(),
    "rate": FiringRate,
}


def build_regularizer(name: str, target_rate: float = 0.1) -> Regularizer:
    """Make a regulariser by its name in `REGULARIZERS`; ValueError for wrong arguments.

    Args:
        target_rate: spikes per neuron and time step, in [0, 1]; penalties on weights ignore it.
    """
    if name not in REGULARIZERS:
        raise ValueError(f"unknown regulariser {name!r}; choose from {', '.join(REGULARIZERS)}")
    return REGULARIZERS[name](target_rate)

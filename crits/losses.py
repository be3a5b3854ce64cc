"""Losses on the logits of every time step: criterion(logits [T, B, K], target) -> scalar.

A target is class indices [B], or class probabilities [B, K] in floating point ("soft" targets).
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn


def _check(logits: Tensor, target: Tensor) -> None:
    shape = logits.shape[1:] if target.is_floating_point() else logits.shape[1:2]
    if logits.dim() != 3 or target.shape != shape:
        wanted = "logits [T, B, K] and target [B] of class indices, or [B, K] of probabilities in floating point"
        came = f"{list(logits.shape)} and {list(target.shape)} of {target.dtype}"
        raise ValueError(f"expected {wanted}; got {came}")


def _cross_entropy(logits: Tensor, target: Tensor, label_smoothing: float) -> Tensor:
    target = target.to(logits.dtype) if target.is_floating_point() else target
    return F.cross_entropy(logits, target, label_smoothing=label_smoothing)


class _SmoothedCriterion(nn.Module):
    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        if not 0.0 <= label_smoothing < 1.0:
            raise ValueError(f"label_smoothing must be in [0, 1), got {label_smoothing}")
        self.label_smoothing = label_smoothing


class RateCrossEntropy(_SmoothedCriterion):
    """Cross-entropy of the time-averaged logits: L = CE(mean_t logits[t], target)."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        _check(logits, target)
        return _cross_entropy(logits.mean(0), target, self.label_smoothing)


class PerStepCrossEntropy(_SmoothedCriterion):
    """Cross-entropy of each step's logits, averaged over time: L = mean_t CE(logits[t], target)."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        _check(logits, target)
        every_step = target.expand(logits.shape[0], *target.shape).flatten(0, 1)
        return _cross_entropy(logits.flatten(0, 1), every_step, self.label_smoothing)


class TET(nn.Module):
    """Temporal efficient training: per-step cross-entropy, and a pull of the logits towards a mean.

        L = (1 - l) mean_t CE(logits[t], target) + l mean (logits - mean)^2

    Args:
        lambda_tet: the weight l, in [0, 1].
        mean: the value towards which logits are pulled.
        label_smoothing: in [0, 1).

    Note:
        Deng et al., "Temporal efficient training of spiking neural network via gradient re-weighting", ICLR 2022,
        equations 10 to 12.
    """

    def __init__(self, lambda_tet: float = 0.05, mean: float = 1.0, label_smoothing: float = 0.0) -> None:
        super().__init__()
        if not 0.0 <= lambda_tet <= 1.0:
            raise ValueError(f"lambda_tet must be in [0, 1], got {lambda_tet}")
        self.lambda_tet = lambda_tet
        self.mean = mean
        self.per_step = PerStepCrossEntropy(label_smoothing)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        pull = (logits - self.mean).square().mean()
        return (1 - self.lambda_tet) * self.per_step(logits, target) + self.lambda_tet * pull


# By name: (label_smoothing, lambda_tet) -> the loss.
LOSSES: dict[str, Callable[[float, float], nn.Module]] = {
    "rate": lambda label_smoothing, lambda_tet: RateCrossEntropy(label_smoothing),
    "per_step": lambda label_smoothing, lambda_tet: PerStepCrossEntropy(label_smoothing),
    "tet": lambda label_smoothing, lambda_tet: TET(lambda_tet, label_smoothing=label_smoothing),
}


def build_loss(name: str, label_smoothing: float = 0.0, lambda_tet: float = 0.05) -> nn.Module:
    """Make a loss by its name in `LOSSES`; ones other than `TET` ignore `lambda_tet`. Wrong arguments: ValueError."""
    if name not in LOSSES:
        raise ValueError(f"unknown loss {name!r}; choose from {', '.join(LOSSES)}")
    return LOSSES[name](label_smoothing, lambda_tet)

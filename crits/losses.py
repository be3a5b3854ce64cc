"""Losses on the logits of every time step: criterion(logits [T, B, K], target) -> scalar.

Where samples have different numbers of steps, criterion(logits, target, lengths) takes these, int64 [B], and leaves out
the logits after the end of each sample: the loss is the mean of those of each sample alone.

A target is class indices [B] in int64 (or uint8), or class probabilities [B, K] in floating point ("soft" targets).

A wrong type is a TypeError, a wrong shape a ValueError, as are empty logits, for which PyTorch's losses return NaN.
Probabilities that are negative or do not sum to 1 are a ValueError too; this is checked on the CPU only, since a GPU
would have to be waited for, and not inside `torch.compile` or `vmap`.
"""

import contextlib
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

INDICES = (torch.int64, torch.uint8)  # as PyTorch's losses
TOLERANCE = 1e-3  # of the sum of probabilities


def mean_over_time(values: Tensor, lengths: Tensor | None = None) -> Tensor:
    """The mean over the first `lengths` steps of each sample, or over all.

    Shape: [T, B, ...], int64 [B] -> [B, ...].
    """
    if lengths is None:
        return values.mean(0)
    return _until_end(values, lengths).sum(0) / lengths.view(-1, *[1] * (values.dim() - 2)).to(values.dtype)


def _until_end(values: Tensor, lengths: Tensor | None) -> Tensor:
    """Values [T, B, ...] with zeros instead of those after the end of each sample, which then get no gradient."""
    if lengths is None:
        return values
    ended = torch.arange(len(values), device=values.device)[:, None] >= lengths
    return values.masked_fill(ended.view(*ended.shape, *[1] * (values.dim() - 2)), 0)


def _check(logits: Tensor, target: Tensor, lengths: Tensor | None = None) -> None:
    for name, value in (("logits", logits), ("target", target)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    shape = logits.shape[1:] if target.is_floating_point() else logits.shape[1:2]
    if logits.dim() != 3 or target.shape != shape:
        wanted = "logits [T, B, K] and target [B] of class indices, or [B, K] of probabilities in floating point"
        got = f"{list(logits.shape)} and {list(target.shape)} of {target.dtype}"
        raise ValueError(f"expected {wanted}; got {got}")
    if not logits.is_floating_point():
        raise TypeError(f"logits must be in floating point, got {logits.dtype}")
    if not target.is_floating_point() and target.dtype not in INDICES:
        raise TypeError(f"class indices must be int64, got {target.dtype}: use target.long()")
    if 0 in logits.shape:
        raise ValueError(f"the mean loss of empty logits is undefined; got [T, B, K] = {list(logits.shape)}")
    if lengths is not None and (lengths.shape != logits.shape[1:2] or lengths.is_floating_point()):
        raise ValueError(f"expected lengths [B] in whole numbers, got {list(lengths.shape)} of {lengths.dtype}")
    if target.is_floating_point() and target.device.type == "cpu" and not torch.compiler.is_compiling():
        _check_probabilities(target.detach())


def _check_probabilities(target: Tensor) -> None:
    tolerance = max(TOLERANCE, 4 * torch.finfo(target.dtype).eps)
    sums = target.sum(-1, dtype=torch.float64)
    is_right = (target >= 0).all() & ((sums - 1).abs() <= tolerance).all()
    with contextlib.suppress(RuntimeError):  # values are unknown under vmap and for fake tensors
        if not is_right:
            raise ValueError(
                "a floating point target must be probabilities, non-negative and summing to 1 over the classes; got "
                f"values from {target.min():g} to {target.max():g}, and sums from {sums.min():g} to {sums.max():g}"
            )


def _cross_entropy(logits: Tensor, target: Tensor, label_smoothing: float, reduction: str = "mean") -> Tensor:
    target = target.to(logits.dtype) if target.is_floating_point() else target
    return F.cross_entropy(logits, target, label_smoothing=label_smoothing, reduction=reduction)


class _SmoothedCriterion(nn.Module):
    """Base of the cross-entropies; ValueError unless `label_smoothing` is in [0, 1)."""

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        if not 0.0 <= label_smoothing < 1.0:
            raise ValueError(f"label_smoothing must be in [0, 1), got {label_smoothing}")
        self.label_smoothing = label_smoothing


class RateCrossEntropy(_SmoothedCriterion):
    """Cross-entropy of the time-averaged logits: L = CE(mean_t logits[t], target).

    Args:
        label_smoothing: in [0, 1), else a ValueError.
    """

    def forward(self, logits: Tensor, target: Tensor, lengths: Tensor | None = None) -> Tensor:
        _check(logits, target, lengths)
        return _cross_entropy(mean_over_time(logits, lengths), target, self.label_smoothing)


class PerStepCrossEntropy(_SmoothedCriterion):
    """Cross-entropy of each step's logits, averaged over time: L = mean_t CE(logits[t], target).

    Args:
        label_smoothing: in [0, 1), else a ValueError.
    """

    def forward(self, logits: Tensor, target: Tensor, lengths: Tensor | None = None) -> Tensor:
        _check(logits, target, lengths)
        every_step = target.expand(logits.shape[0], *target.shape).flatten(0, 1)
        if lengths is None:
            return _cross_entropy(logits.flatten(0, 1), every_step, self.label_smoothing)
        losses = _cross_entropy(_until_end(logits, lengths).flatten(0, 1), every_step, self.label_smoothing, "none")
        return mean_over_time(losses.unflatten(0, logits.shape[:2]), lengths).mean()


class TET(nn.Module):
    """Temporal efficient training: per-step cross-entropy, and a pull of the logits towards a mean::

        L = (1 - l) mean_t CE(logits[t], target) + l mean (logits - mean)^2

    Args:
        lambda_tet: the weight l, in [0, 1].
        mean: the value towards which logits are pulled.
        label_smoothing: in [0, 1).

    Raises:
        ValueError: if `lambda_tet` or `label_smoothing` is out of range.

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

    def forward(self, logits: Tensor, target: Tensor, lengths: Tensor | None = None) -> Tensor:
        per_step = self.per_step(logits, target, lengths)
        pull = mean_over_time((_until_end(logits, lengths) - self.mean).square(), lengths).mean()
        return (1 - self.lambda_tet) * per_step + self.lambda_tet * pull


# By name: (label_smoothing, lambda_tet) -> the loss.
LOSSES: dict[str, Callable[[float, float], nn.Module]] = {
    "rate": lambda label_smoothing, lambda_tet: RateCrossEntropy(label_smoothing),
    "per_step": lambda label_smoothing, lambda_tet: PerStepCrossEntropy(label_smoothing),
    "tet": lambda label_smoothing, lambda_tet: TET(lambda_tet, label_smoothing=label_smoothing),
}


def build_loss(name: str, label_smoothing: float = 0.0, lambda_tet: float = 0.05) -> nn.Module:
    """Make a loss by its name in `LOSSES`; only `TET` uses `lambda_tet`. ValueError for wrong arguments."""
    if name not in LOSSES:
        raise ValueError(f"unknown loss {name!r}; choose from {', '.join(LOSSES)}")
    return LOSSES[name](label_smoothing, lambda_tet)

"""Choose among attacked images, and score a network on those chosen, by different draws of the noise.

Were they the same draws, a network would look weak wherever it is hit by bad luck once, and strong wherever an attack
is kept because a lucky draw flipped.
"""

import dataclasses

import torch
from torch import Tensor, nn

from tools import inference
from tools.analysis.metrics import mean_prediction

from .victim import Victim


@dataclasses.dataclass(frozen=True)
class Score:
    """How well a network does on some images, by fresh draws of its noise."""

    accuracy: float  # mean over draws
    accuracy_std: float  # over draws; 0 for a single one
    accuracy_ensemble: float  # mean over disjoint ensembles of draws
    times_correct: list[int]  # of each image, in how many draws it was classified correctly
    draws: int  # 1 without noise


def choose(victim: Victim, candidates: list[Tensor], target: Tensor, draws: int) -> Tensor:
    """Of each image, the candidate with the highest mean margin over one set of draws.

    Args:
        candidates: attacked images [B, C, H, W] each; the clean ones may be among them.
        draws: of the noise, for each candidate.

    Shape:
        target [B] -> [B, C, H, W].
    """
    best, highest = candidates[0], victim.margins(candidates[0], target, draws)
    for images in candidates[1:]:
        found = victim.margins(images, target, draws)
        best = torch.where((found > highest).view(-1, 1, 1, 1), images, best)
        highest = torch.maximum(found, highest)
    return best


def score(
    net: nn.Module, forward: inference.ForwardPass, images: Tensor, target: Tensor, draws: int, ensemble: int
) -> Score:
    """Score a network on images [B, C, H, W] with labels [B].

    Args:
        draws: of the noise, none of which was used to make or to choose the images; 1 without noise.
        ensemble: draws averaged into one prediction of an ensemble.
    """
    parts = [inference.predict(net, part, forward, draws) for part in images.split(forward.fold)]
    log_probabilities = torch.cat(parts, 1)
    hits = log_probabilities.argmax(-1) == target
    per_draw = hits.double().mean(1)
    groups = log_probabilities[: draws - draws % ensemble].split(ensemble)
    ensembles = [mean_prediction(group).argmax(-1) == target for group in groups]
    return Score(
        accuracy=per_draw.mean().item(),
        accuracy_std=per_draw.std().item() if draws > 1 else 0.0,
        accuracy_ensemble=torch.stack(ensembles).double().mean().item(),
        times_correct=hits.sum(0).tolist(),
        draws=draws,
    )

"""Choose among attacked images, and score a network on those chosen, by different draws of the noise.

Were they the same draws, a network would look weak wherever it is hit by bad luck once, and strong wherever an attack
is kept because a lucky draw flipped. `draws` of the victim is that of either purpose.
"""

import dataclasses

import torch
from torch import Tensor

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


def choose(victim: Victim, candidates: list[Tensor], target: Tensor) -> Tensor:
    """Of each image, the candidate with the highest mean margin over the draws.

    Shape:
        candidates: [B, C, H, W] each, the clean images perhaps among them; target [B] -> [B, C, H, W].
    """
    best, highest = candidates[0], victim.margins(candidates[0], target)
    for images in candidates[1:]:
        found = victim.margins(images, target)
        best = torch.where((found > highest).view(-1, 1, 1, 1), images, best)
        highest = torch.maximum(found, highest)
    return best


def score(victim: Victim, images: Tensor, target: Tensor, ensemble: int) -> Score:
    """Score a network on images [B, C, H, W] with labels [B], by draws that neither made nor chose the images.

    Args:
        ensemble: draws averaged into one prediction of an ensemble; at most those of the victim.
    """
    forward, draws = victim.forward, victim.draws
    parts = [inference.predict(victim.net, part, forward, draws) for part in images.split(forward.fold)]
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

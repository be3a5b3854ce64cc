"""Which of several attacked images to take, and how well a network does on those taken.

The two use different draws of the noise. A minimum over noisy evaluations would call every network weak that is hit by
bad luck once; keeping an attack because a lucky draw flipped would call it strong.
"""

import torch

from tools import inference
from tools.analysis.metrics import mean_prediction


def choose(victim, candidates, target, draws):
    """Of each image, the candidate with the highest mean margin over one set of draws.

    Args:
        victim: `Victim`.
        candidates: list of attacked images [B, C, H, W]; the clean ones may be among them.
        draws: of the noise, for each candidate.

    Shape:
        -> [B, C, H, W].
    """
    best, highest = candidates[0], victim.margins(candidates[0], target, draws)
    for images in candidates[1:]:
        found = victim.margins(images, target, draws)
        best = torch.where((found > highest).view(-1, 1, 1, 1), images, best)
        highest = torch.maximum(found, highest)
    return best


def score(net, forward, images, target, draws, ensemble):
    """How well a network does on images, by fresh draws.

    Args:
        net, forward: the network itself, and how it is run.
        draws: of the noise, of which none has been used to make or to choose the images; 1 without noise.
        ensemble: draws averaged into one prediction of an ensemble.

    Returns:
        {"accuracy": mean over draws, "accuracy_std": over draws, "accuracy_ensemble": mean over disjoint ensembles,
        "times_correct": of each image, in how many draws; "draws"}.
    """
    draws_of_part = [inference.predict(net, part, forward, draws) for part in images.split(forward.fold)]
    log_probabilities = torch.cat(draws_of_part, 1)
    hits = log_probabilities.argmax(-1) == target
    per_draw = hits.double().mean(1)
    groups = log_probabilities[: draws - draws % ensemble].split(ensemble)
    ensembles = [mean_prediction(group).argmax(-1) == target for group in groups]
    return {
        "accuracy": per_draw.mean().item(),
        "accuracy_std": per_draw.std().item() if draws > 1 else 0.0,
        "accuracy_ensemble": torch.stack(ensembles).double().mean().item(),
        "times_correct": hits.sum(0).tolist(),
        "draws": draws,
    }

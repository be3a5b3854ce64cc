"""A network as attacks see it: images in [0, 1] -> the mean prediction of several draws of its noise.

Attacked images are made, chosen and scored with different draws. With the same draws, an attack would be credited with
errors that are the bad luck of these draws.
"""

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor, nn

from tools import inference
from tools.analysis.metrics import mean_prediction
from tools.probes.hooks import is_noisy

Objective = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(log_probabilities: Tensor, target: Tensor) -> Tensor:
    """-ln p(right class), p the draws' mean probability. Shape: [B, K], [B] -> [B]."""
    return -log_probabilities.gather(1, target[:, None])[:, 0]


def margin(log_probabilities: Tensor, target: Tensor) -> Tensor:
    """ln p of the best wrong class - ln p of the right one: above 0 the network errs. Shape: [B, K], [B] -> [B].

    Note:
        Carlini and Wagner, "Towards evaluating the robustness of neural networks", IEEE S&P 2017; they take the
        difference of the logits, which is the same for a single draw.
    """
    right = log_probabilities.gather(1, target[:, None])
    others = log_probabilities.scatter(1, target[:, None], -torch.inf)
    return others.amax(1) - right[:, 0]


class Victim:
    """A network under attack.

    Args:
        net: images [B, C, H, W] in [0, 1], timesteps -> logits [T, B, K]; it includes its normalisation. Its weights
            should not require gradients.
        draws: number of noise draws averaged in every gradient and query; 1 for a network without noise.
    """

    def __init__(self, net: nn.Module, forward: inference.ForwardPass, draws: int):
        self.net = net
        self.forward = forward
        self.draws = draws
        self.is_noisy = is_noisy(net)

    def gradient(self, images: Tensor, target: Tensor, objective: Objective = cross_entropy) -> Tensor:
        """Gradient of an objective of the mean probability over the noise draws.

        The mean is inside the objective, as the network under attack averages probabilities, not gradients.
        Shape: images [B, C, H, W], target [B] -> [B, C, H, W].

        Note:
            Athalye, Carlini and Wagner, "Obfuscated gradients give a false sense of security", ICML 2018.
        """
        # In fp16 the gradients of confident predictions would underflow.
        forward = dataclasses.replace(self.forward, amp="no") if self.forward.amp == "fp16" else self.forward

        def measure(images: Tensor, target: Tensor) -> Tensor:
            with torch.enable_grad():
                images = images.detach().requires_grad_()
                log_probabilities = mean_prediction(inference.folded_draws(self.net, images, forward, self.draws))
                (gradient,) = torch.autograd.grad(objective(log_probabilities, target).sum(), images)
            return gradient

        return self._in_parts(measure, images, target)

    def margins(self, images: Tensor, target: Tensor) -> Tensor:
        """`margin` of the mean prediction. Shape: images [B, C, H, W], target [B] -> [B]."""

        def measure(images: Tensor, target: Tensor) -> Tensor:
            return margin(mean_prediction(inference.predict(self.net, images, self.forward, self.draws)), target)

        return self._in_parts(measure, images, target)

    def _in_parts(self, measure: Objective, images: Tensor, target: Tensor) -> Tensor:
        """`measure` of a batch, in parts that fit into one forward pass with all their draws."""
        parts, start = [], 0
        while start < len(images):
            size = max(1, self.forward.fold // self.draws)
            part = slice(start, start + size)
            try:
                parts.append(measure(images[part], target[part]))
            except torch.OutOfMemoryError:
                if size == 1:  # the draws of one image cannot be split: their mean is inside the objective
                    raise
                self.forward.halve()
                continue
            start += size
        return torch.cat(parts)


@dataclasses.dataclass(frozen=True)
class Score:
    """Accuracy of a network on some images, with fresh draws of its noise."""

    accuracy: float  # mean over draws
    accuracy_std: float  # over draws; 0 for a single one
    accuracy_ensemble: float  # mean over disjoint ensembles of draws
    times_correct: list[int]  # for each image, the number of draws that classified it correctly
    draws: int  # 1 without noise


def choose(victim: Victim, candidates: list[Tensor], target: Tensor) -> Tensor:
    """For each image, the candidate [B, C, H, W] with the highest margin of the mean prediction."""
    best, highest = candidates[0], victim.margins(candidates[0], target)
    for images in candidates[1:]:
        found = victim.margins(images, target)
        best = torch.where((found > highest).view(-1, 1, 1, 1), images, best)
        highest = torch.maximum(found, highest)
    return best


def score(victim: Victim, images: Tensor, target: Tensor, ensemble: int) -> Score:
    """The score by draws that neither made nor chose the images; `ensemble` of them make one mean prediction."""
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

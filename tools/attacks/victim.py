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

# Mean margin (nats) at which the answer of a noisy network is settled: one class has 2 % of the probability of the
# other. A network without noise is fooled or not, at 0.
SETTLED = 4.0
CHOICE_DRAWS = 10  # of a noisy network, to choose among attacked images
# (log-probabilities [B, K] of the draws' mean, target [B], wrong classes [B] or None) -> what an attack raises, [B]
Objective = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def cross_entropy(log_probabilities: Tensor, target: Tensor, wrong: Tensor | None = None) -> Tensor:
    """-ln p of the right class, or ln p of the class `wrong`. Shape: [B, K], [B], [B] -> [B]."""
    if wrong is not None:
        return _of_class(log_probabilities, wrong)
    return -_of_class(log_probabilities, target)


def margin(log_probabilities: Tensor, target: Tensor, wrong: Tensor | None = None) -> Tensor:
    """ln p of the best wrong class, or of the class `wrong`, - ln p of the right one: above 0 the network errs.

    Shape: [B, K], [B], [B] -> [B].

    Note:
        Carlini and Wagner, "Towards evaluating the robustness of neural networks", IEEE S&P 2017; they take the
        difference of the logits, which is the same for a single draw. Unlike the cross-entropy, it has a gradient
        however large the logits are.
    """
    if wrong is None:
        others = log_probabilities.scatter(1, target[:, None], -torch.inf).amax(1)
    else:
        others = _of_class(log_probabilities, wrong)
    return others - _of_class(log_probabilities, target)


def _of_class(log_probabilities: Tensor, classes: Tensor) -> Tensor:
    return log_probabilities.gather(1, classes[:, None])[:, 0]


@dataclasses.dataclass(frozen=True)
class Ascent:
    """What an attack sees at some images [B, C, H, W], by the same draws."""

    value: Tensor  # of the objective [B]
    margin: Tensor  # `margin` [B], which is above 0 where the mean prediction is wrong
    gradient: Tensor  # of the objective, [B, C, H, W]


class Victim:
    """A network under attack.

    Args:
        net: images [B, C, H, W] in [0, 1], timesteps -> logits [T, B, K]; it includes its normalisation. Its weights
            should not require gradients.
        draws: number of noise draws averaged in every gradient and query; 1 for a network without noise.
        before_pass: called before each forward pass; what it raises ends the attack.
        gradient_amp: precision of `ascent`, as in `ForwardPass`; None: that of `forward`, but "no" instead of fp16, in
            which the gradients of confident predictions would underflow.
    """

    def __init__(
        self,
        net: nn.Module,
        forward: inference.ForwardPass,
        draws: int,
        before_pass: Callable[[], None] = lambda: None,
        gradient_amp: str | None = None,
    ):
        self.net = net
        self.forward = forward
        self.draws = draws
        self.before_pass = before_pass
        self.gradient_amp = gradient_amp or ("no" if forward.amp == "fp16" else forward.amp)
        self.is_noisy = is_noisy(net)

    def ascent(
        self, images: Tensor, target: Tensor, objective: Objective = margin, wrong: Tensor | None = None
    ) -> Ascent:
        """An objective of the mean probability over the noise draws, and its gradient.

        The mean is inside the objective, as the network under attack averages probabilities, not gradients.
        Shape: images [B, C, H, W]; target, wrong [B].

        Note:
            Athalye, Carlini and Wagner, "Obfuscated gradients give a false sense of security", ICML 2018.
        """
        forward = dataclasses.replace(self.forward, amp=self.gradient_amp)

        def measure(part: slice) -> tuple[Tensor, ...]:
            leaf = images[part].detach().requires_grad_()
            chosen = None if wrong is None else wrong[part]
            with torch.enable_grad():
                log_probabilities = mean_prediction(inference.folded_draws(self.net, leaf, forward, self.draws))
                value = objective(log_probabilities, target[part], chosen)
                (gradient,) = torch.autograd.grad(value.sum(), leaf)
            return value.detach(), margin(log_probabilities.detach(), target[part]), gradient

        return Ascent(*self._in_parts(measure, len(images)))

    def gradient(self, images: Tensor, target: Tensor, objective: Objective = cross_entropy) -> Tensor:
        """The gradient of `ascent`. Shape: [B, C, H, W]."""
        return self.ascent(images, target, objective).gradient

    def log_probabilities(self, images: Tensor) -> Tensor:
        """Logarithm of the mean probabilities. Shape: [B, C, H, W] -> [B, K]."""

        def measure(part: slice) -> tuple[Tensor]:
            return (mean_prediction(inference.predict(self.net, images[part], self.forward, self.draws)),)

        (log_probabilities,) = self._in_parts(measure, len(images))
        return log_probabilities

    def margins(self, images: Tensor, target: Tensor) -> Tensor:
        """`margin` of the mean prediction. Shape: images [B, C, H, W], target [B] -> [B]."""
        return margin(self.log_probabilities(images), target)

    def _in_parts(self, measure: Callable[[slice], tuple[Tensor, ...]], count: int) -> list[Tensor]:
        """What `measure` returns for a batch, in parts that fit into one forward pass with all their draws."""
        parts, start = [], 0
        while start < count:
            self.before_pass()
            size = max(1, self.forward.fold // self.draws)
            try:
                parts.append(measure(slice(start, start + size)))
            except torch.OutOfMemoryError:
                if size == 1:  # the draws of one image cannot be split: their mean is inside the objective
                    raise
                self.forward.halve()
                continue
            start += size
        return [torch.cat(values) for values in zip(*parts)]


@dataclasses.dataclass(frozen=True)
class Score:
    """Accuracy of a network on some images, with fresh draws of its noise."""

    accuracy: float  # mean over draws
    accuracy_std: float  # over draws; 0 for a single one
    accuracy_ensemble: float  # mean over disjoint ensembles of draws
    times_correct: list[int]  # for each image, the number of draws that classified it correctly
    draws: int  # 1 without noise


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

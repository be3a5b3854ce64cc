"""A network as attacks see it: images in [0, 1] -> the mean prediction of several draws of its noise."""

import dataclasses
import functools

import torch

from tools import inference
from tools.analysis.metrics import mean_prediction


def cross_entropy(log_probabilities, target):
    """-ln p(right class), of the draws' mean probability: large is bad for the network. Shape: [B, C], [B] -> [B]."""
    return -log_probabilities.gather(1, target[:, None])[:, 0]


def margin(log_probabilities, target):
    """ln p of the most probable wrong class - ln p of the right one; above 0 the network errs. [B, C], [B] -> [B]."""
    right = log_probabilities.gather(1, target[:, None])
    others = log_probabilities.scatter(1, target[:, None], -torch.inf)
    return others.amax(1) - right[:, 0]


class Victim:
    """A network that is attacked through one of its twins.

    Args:
        net: images [B, C, H, W] in [0, 1], timesteps -> logits [T, B, K]; it normalises for itself. Its weights should
            not require gradients, which would be computed for nothing.
        forward: `inference.ForwardPass`.
        draws: of the noise, averaged in every gradient and in every query; 1 for a network without noise.
    """

    def __init__(self, net, forward, draws):
        self.net, self.forward, self.draws = net, forward, draws

    def gradient(self, images, target, objective):
        """Gradient of an objective of the mean probability: expectation over the noise.

        The mean is inside the objective, as the network that is defended averages probabilities, and not gradients.

        Args:
            objective: `cross_entropy` or `margin`.

        Shape:
            images [B, C, H, W], target [B] -> [B, C, H, W].

        Note:
            Athalye, Carlini and Wagner, "Obfuscated gradients give a false sense of security", ICML 2018.
        """
        return self._in_parts(functools.partial(self._gradient, objective=objective), images, target)

    def _gradient(self, images, target, objective):
        # Gradients of 16 bits with 5 bits of exponent would vanish where the network is certain.
        forward = dataclasses.replace(self.forward, amp="no") if self.forward.amp == "fp16" else self.forward
        with torch.enable_grad():
            images = images.detach().requires_grad_()
            log_probabilities = mean_prediction(inference.folded_draws(self.net, images, forward, self.draws))
            (gradient,) = torch.autograd.grad(objective(log_probabilities, target).sum(), images)
        return gradient

    def margins(self, images, target, draws=None):
        """`margin` of the mean prediction. Shape: images [B, C, H, W], target [B] -> [B]."""

        def measure(images, target):
            return margin(
                mean_prediction(inference.predict(self.net, images, self.forward, draws or self.draws)), target
            )

        return self._in_parts(measure, images, target)

    def _in_parts(self, measure, images, target):
        """A function of a batch, in parts whose draws together go in one pass, as large as memory allows."""
        parts, start = [], 0
        while start < len(images):
            size = max(1, self.forward.fold // self.draws)
            part = slice(start, start + size)
            try:
                parts.append(measure(images[part], target[part]))
            except torch.OutOfMemoryError:
                if size == 1:  # all draws of an image go together, as their mean is inside the objective
                    raise
                self.forward.halve()
                continue
            start += size
        return torch.cat(parts)

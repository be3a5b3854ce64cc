"""Passes of a network over the test samples, under the conditions of a test, with draws that all networks share."""

import contextlib
import functools
import statistics
import time

import torch

from tools import inference
from tools.analysis import metrics
from tools.attacks.twins import with_gradient_path
from tools.attacks.victim import Victim, cross_entropy
from tools.perturb import PERTURBATIONS
from tools.probes.hooks import is_noisy
from tools.training.run import evaluation_noise

from .conditions import is_random

WORST = 12  # samples of the highest loss that are remembered


class Trials:
    """A network under test.

    Args:
        net: the network, on its device.
        forward: `inference.ForwardPass`.
        test: labelled test data.
        batch_options: of its batches.
        config: `EvaluationConfig`.
        corruptions: None, or `perturb.corruptions.CorruptionFolder`.
    """

    def __init__(self, net, forward, test, batch_options, config, corruptions=None):
        self.net, self.forward, self.test = net, forward, test
        self.batch_options, self.config, self.corruptions = batch_options, config, corruptions
        self.batches = test.batches(**batch_options)
        self.is_noisy = is_noisy(net)
        self.images_per_s = 0.0  # of the last `draws`

    def point(self, condition):
        """Accuracy and loss under one condition: several draws of the network's noise and of the perturbation.

        Returns:
            {"severity", "strength", "accuracy_mean", "accuracy_std" (None for a single draw, of which nothing can be
            said; 0 where nothing is drawn), "accuracy_draws", the same of "loss", and of each sample in how many draws
            it was classified correctly: "times_correct"}; without a perturbation also those of `_mistakes`.
        """
        is_drawn = self.is_noisy or (not condition.is_clean and is_random(condition.name))
        passes = [self.predict(condition, draw) for draw in range(self.config.draws if is_drawn else 1)]
        log_probabilities, (target, *_) = torch.stack([one for one, _ in passes]), [labels for _, labels in passes]
        point = {"severity": condition.severity, "strength": condition.strength}
        for quantity, score in (("accuracy", metrics.accuracy), ("loss", metrics.negative_log_likelihood)):
            values = [score(one, target) for one in log_probabilities]
            point[f"{quantity}_mean"] = statistics.fmean(values)
            point[f"{quantity}_std"] = _deviation(values) if is_drawn else 0.0
            point[f"{quantity}_draws"] = values
        point["times_correct"] = (log_probabilities.argmax(-1) == target).sum(0).tolist()
        return {**point, **_mistakes(log_probabilities, target)} if condition.is_clean else point

    def predict(self, condition, draw):
        """One pass over the test samples, with seeds that depend on nothing but `seed` and the draw.

        Returns:
            Log-probabilities [N, K] (of the mean of `n_ensembles` predictions), labels [N].
        """
        seed = self.seed(draw)
        hidden, transform, batches = self._disturbance(condition, seed + 1)
        with evaluation_noise(self.forward.device, seed), hidden:
            draws, target = inference.predict_all(
                self.net,
                batches,
                self.forward,
                draws=self.config.n_ensembles,
                transform=transform,
                description=f"{condition.name} {condition.strength}, draw {draw + 1}",
            )
        return metrics.mean_prediction(draws), target

    def _disturbance(self, condition, seed):
        """(context of the network, transform of images or None, batches) that make a condition."""
        nothing = contextlib.nullcontext()
        if condition.is_clean:
            return nothing, None, self.batches
        if condition.name not in PERTURBATIONS:
            corrupted = self.corruptions.part(condition.name, condition.severity)
            return nothing, None, corrupted.batches(**self.batch_options)
        perturbation, strength = PERTURBATIONS[condition.name], condition.strength
        if perturbation.where == "events":
            perturbed = self.test.perturbed(perturbation.apply, strength, seed)
            return nothing, None, perturbed.batches(**self.batch_options)
        if perturbation.where == "hidden":
            generator = torch.Generator(self.forward.device).manual_seed(seed)
            return perturbation.apply(self.net, strength, generator), None, self.batches
        generator = torch.Generator().manual_seed(seed)
        if perturbation.where == "attack":

            def transform(images, target):
                return perturbation.apply(self._gradient, images, target, strength, generator)
        else:

            def transform(images, target):
                return perturbation.apply(images, strength, generator)

        return nothing, transform, self.batches

    @functools.cached_property
    def _gradient(self):
        """What an attack ascends: the network's own gradient, averaged over draws."""
        attacked = with_gradient_path(self.net, "own")
        victim = Victim(attacked, self.forward, self.config.adv_draws if self.is_noisy else 1)
        return functools.partial(victim.gradient, objective=cross_entropy)

    def draws(self, batches, count, what, forward=None):
        """Log-probabilities of independent noise draws, [count, N, K], folded into the batch where they fit."""
        start = time.perf_counter()
        with evaluation_noise(self.forward.device, self.seed(0)):
            description = f"{what}, {count} draws"
            forward = forward or self.forward
            draws, _ = inference.predict_all(self.net, batches, forward, draws=count, description=description)
        self.images_per_s = draws.shape[0] * draws.shape[1] / (time.perf_counter() - start)
        return draws

    def seed(self, draw):
        """Seed of the network's noise in a draw; the next number is that of the draw's perturbation."""
        return 2 * (1000 * self.config.seed + draw)


def _deviation(values):
    return statistics.stdev(values) if len(values) > 1 else None


def _mistakes(draws, target):
    """Which classes are taken for which, and which samples have the highest loss.

    Shape:
        draws [K, N, C], target [N] -> {"confusion": of each class [C], how often, per draw, it was taken for each [C],
        "worst": list of {"index", "label", "predicted", "confidence", "loss"} by the mean prediction}.
    """
    classes = draws.shape[-1]
    pairs = (target * classes + draws.argmax(-1)).flatten()
    confusion = pairs.bincount(minlength=classes**2).view(classes, classes) / len(draws)
    mean = metrics.mean_prediction(draws)
    losses = -mean.gather(1, target[:, None])[:, 0]
    confidence, predicted = mean.exp().max(-1)
    worst = losses.argsort(descending=True, stable=True)[:WORST]
    columns = (worst, target[worst], predicted[worst], confidence[worst], losses[worst])
    names = ("index", "label", "predicted", "confidence", "loss")
    return {
        "confusion": confusion.tolist(),
        "worst": [dict(zip(names, row)) for row in zip(*(column.tolist() for column in columns))],
    }

"""Passes of a snapshot over the test samples, with draws that all compared networks share."""

import contextlib
import functools
import statistics
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Generator, Tensor

from tools import inference
from tools.analysis import metrics
from tools.attacks.twins import with_gradient_path
from tools.attacks.victim import Victim, cross_entropy
from tools.networks import seeded_noise
from tools.perturb import PERTURBATIONS

from .conditions import Condition
from .results import Mistake, Result
from .snapshot import Snapshot

WORST = 12  # samples of the highest loss that are remembered


def result(snapshot: Snapshot, condition: Condition) -> Result:
    """Accuracy and loss under a condition, over draws of the network's noise and of the perturbation.

    Each draw is one pass, whose predictions are the mean of `n_ensembles`.
    """
    perturbation = PERTURBATIONS.get(condition.name)  # None for corruptions from a folder, which draw nothing
    is_random = not condition.is_clean and perturbation is not None and perturbation.is_random
    is_drawn, predictions = snapshot.is_noisy or is_random, []
    for draw in range(snapshot.config.draws if is_drawn else 1):
        inside, transform, batches = _disturbance(snapshot, condition, snapshot.seed("perturbation", draw))
        what = f"{condition.name} {condition.strength}, draw {draw + 1}"
        options = dict(draws=snapshot.config.n_ensembles, transform=transform, description=what)
        with seeded_noise(snapshot.device, snapshot.seed("noise", draw)), inside:
            log_p, target = inference.predict_all(snapshot.net, batches, snapshot.forward, **options)
        predictions.append(metrics.mean_prediction(log_p))
    accuracies = [metrics.accuracy(one, target) for one in predictions]
    losses = [metrics.negative_log_likelihood(one, target) for one in predictions]
    draws = torch.stack(predictions)
    return Result(
        condition.severity,
        condition.strength,
        accuracy_mean=statistics.fmean(accuracies),
        accuracy_std=_deviation(accuracies) if is_drawn else 0.0,
        accuracy_draws=accuracies,
        loss_mean=statistics.fmean(losses),
        loss_std=_deviation(losses) if is_drawn else 0.0,
        loss_draws=losses,
        times_correct=(draws.argmax(-1) == target).sum(0).tolist(),
        confusion=_confusion(draws, target) if condition.is_clean else None,
        worst=_worst(draws, target) if condition.is_clean else None,
    )


def _disturbance(snapshot: Snapshot, condition: Condition, seed: int) -> tuple[AbstractContextManager[Any], Any, Any]:
    """The context of the network, the function of images or None, and the batches that make a condition."""
    nothing, name, strength = contextlib.nullcontext(), condition.name, condition.strength
    if condition.is_clean:
        return nothing, None, snapshot.test_batches
    if name not in PERTURBATIONS:
        return nothing, None, snapshot.batches(snapshot.corruptions.part(name, condition.severity))
    apply, where, generator = PERTURBATIONS[name].apply, PERTURBATIONS[name].where, Generator().manual_seed(seed)
    if where == "events":
        return nothing, None, snapshot.batches(snapshot.test.perturbed(apply, strength, seed))
    if where == "hidden":
        own = Generator(snapshot.device).manual_seed(seed)
        return apply(snapshot.net, strength, own), None, snapshot.test_batches
    if where == "pixels":
        return nothing, lambda images, target: apply(images, strength, generator), snapshot.test_batches
    if where != "attack":
        raise ValueError(f"{name}: no family of perturbations is called {where}")
    own_path = with_gradient_path(snapshot.net, "own")
    victim = Victim(own_path, snapshot.forward, snapshot.config.adv_draws if snapshot.is_noisy else 1)
    gradient = functools.partial(victim.gradient, objective=cross_entropy)
    return nothing, lambda images, target: apply(gradient, images, target, strength, generator), snapshot.test_batches


def draws(snapshot: Snapshot, batches: Any, count: int, what: str, forward: Any = None) -> tuple[Tensor, Tensor]:
    """Log-probabilities of independent noise draws [count, N, K], folded into the batch where they fit; labels [N]."""
    forward, description = forward or snapshot.forward, f"{what}, {count} draws"
    with seeded_noise(snapshot.device, snapshot.seed("draws")):
        return inference.predict_all(snapshot.net, batches, forward, draws=count, description=description)


def _deviation(values: list[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def _confusion(draws: Tensor, target: Tensor) -> list[list[float]]:
    """Of each class, how many samples per draw were taken for each class. Shape: [D, N, K], [N] -> [K][K]."""
    classes = draws.shape[-1]
    pairs = (target * classes + draws.argmax(-1)).flatten()
    return (pairs.bincount(minlength=classes**2).view(classes, classes) / len(draws)).tolist()


def _worst(draws: Tensor, target: Tensor) -> list[Mistake]:
    """The samples of the highest loss, by the mean prediction. Shape: draws [D, N, K], target [N]."""
    mean = metrics.mean_prediction(draws)
    losses = -mean.gather(1, target[:, None])[:, 0]
    confidence, predicted = mean.exp().max(-1)
    found = []
    for index in losses.argsort(descending=True, stable=True)[:WORST].tolist():
        label, taken_for = int(target[index]), int(predicted[index])
        found.append(Mistake(index, label, taken_for, float(confidence[index]), float(losses[index])))
    return found

"""Accuracy and loss under each condition, stored one by one, so that an interrupted evaluation continues."""

import contextlib
import dataclasses
import logging
import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Generator, Tensor

from tools.analysis import metrics
from tools.attacks.twins import with_gradient_path
from tools.attacks.victim import Victim
from tools.evaluation import results
from tools.evaluation.conditions import CLEAN, Condition, unit
from tools.evaluation.report import figures
from tools.evaluation.report.page import Section, comparison, missing
from tools.evaluation.results import Evaluation, Mistake, Result
from tools.evaluation.snapshot import Snapshot
from tools.perturb import PERTURBATIONS

from . import Measurement

logger = logging.getLogger(__name__)
Report = dict[str, list[Result]]
Transform = Callable[[Tensor, Tensor], Tensor]  # (images, labels) -> images
Apply = Callable[..., Any]  # see `Perturbation`
WORST = 12  # number of samples of the highest loss that are listed


class Perturbations(Measurement):
    key = results.PERTURBATIONS

    def run(self, snapshot: Snapshot) -> Report:
        folder, report = snapshot.folder, {}
        for name, conditions in snapshot.conditions.items():
            done = folder.points(name)
            path = folder.points_file(name)
            report[name] = []
            for condition in conditions:
                key = (condition.severity, condition.strength)
                if key not in done:
                    if condition.is_clean and name != CLEAN:  # CLEAN itself is the first name
                        clean = report[CLEAN][0]
                        done[key] = dataclasses.replace(clean, strength=condition.strength, confusion=None, worst=None)
                    else:
                        done[key] = _result(snapshot, condition)
                    folder.write_points(name, done)
                report[name].append(done[key])
                _log(name, done[key])
            logger.info("written: %s", path)
            if name != CLEAN:
                figure = figures.strengths(snapshot.title, report[name], unit(name), snapshot.dataset.name)
                figure.savefig(path.with_suffix(".png"), dpi=130)
                logger.info("written: %s", path.with_suffix(".png"))
        return report

    def summary(self, report: Report) -> dict[str, Any]:
        content = {}
        for name, found in report.items():
            points = [result.as_json() for result in found]
            for point in points:
                del point["times_correct"]
            content[name] = {"unit": unit(name), "points": points}
        return content

    def sections(self, evaluation: Evaluation) -> list[Section]:
        figure = figures.severities(evaluation)
        section = Section("Perturbations", [figure]) if figure else missing("Perturbations", "--perturbation")
        section.blocks.append(comparison(evaluation.rows))
        if len(evaluation.groups) > 1:
            note = "Intervals of single rows are not corrected for multiple comparisons; judge by the table above."
            section.blocks.append(note)
        return [section]


def _log(name: str, result: Result) -> None:
    strength = "clean" if result.severity == 0 else f"{result.strength:.4g}"
    deviation = "" if result.accuracy_std is None else f"+- {100 * result.accuracy_std:.2f}"
    accuracy = f"{100 * result.accuracy_mean:6.2f} {deviation}"
    logger.info("%-14s %8s   accuracy %s %%   loss %.4f", name, strength, accuracy, result.loss_mean)


def _result(snapshot: Snapshot, condition: Condition) -> Result:
    """Accuracy and loss under a condition, over draws of the network's noise and of the perturbation.

    Each draw is one pass; its predictions are means over `n_ensembles` noise draws.
    """
    perturbation = PERTURBATIONS.get(condition.name)  # None: a corruption from a folder, which draws nothing
    is_random = not condition.is_clean and perturbation is not None and perturbation.is_random
    is_drawn = snapshot.is_noisy or is_random
    predictions = []
    for draw in range(snapshot.config.draws if is_drawn else 1):
        prediction, target = _prediction(snapshot, condition, draw)
        predictions.append(prediction)
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


def _prediction(snapshot: Snapshot, condition: Condition, draw: int) -> tuple[Tensor, Tensor]:
    """Log-probabilities [N, K] of one pass under a condition, and labels [N]."""
    perturbed = _perturbed(snapshot, condition, snapshot.seed("perturbation", draw))
    options = dict(
        transform=perturbed.transform,
        draws=snapshot.config.n_ensembles if snapshot.is_noisy else 1,
        description=f"{condition.name} {condition.strength}, draw {draw + 1}",
    )
    with perturbed.context:
        log_p, target = snapshot.predict(perturbed.data, "noise", draw, **options)
    return metrics.mean_prediction(log_p), target


@dataclasses.dataclass(frozen=True)
class _Perturbed:
    """What is different in a pass under a perturbation."""

    data: Any
    transform: Transform | None = None
    context: AbstractContextManager[Any] = contextlib.nullcontext()


def _perturbed(snapshot: Snapshot, condition: Condition, seed: int) -> _Perturbed:
    if condition.is_clean:
        return _Perturbed(snapshot.test)
    if condition.name not in PERTURBATIONS:
        return _Perturbed(snapshot.corruptions.part(condition.name, condition.severity))
    perturbation = PERTURBATIONS[condition.name]
    return FAMILIES[perturbation.where](snapshot, perturbation.apply, condition.strength, seed)


def _on_pixels(snapshot: Snapshot, apply: Apply, strength: float, seed: int) -> _Perturbed:
    generator = Generator().manual_seed(seed)
    return _Perturbed(snapshot.test, transform=lambda images, _: apply(images, strength, generator))


def _on_events(snapshot: Snapshot, apply: Apply, strength: float, seed: int) -> _Perturbed:
    return _Perturbed(snapshot.test.perturbed(apply, strength, seed))


def _on_neurons(snapshot: Snapshot, apply: Apply, strength: float, seed: int) -> _Perturbed:
    generator = Generator(snapshot.device).manual_seed(seed)
    return _Perturbed(snapshot.test, context=apply(snapshot.net, strength, generator))


def _by_attack(snapshot: Snapshot, apply: Apply, strength: float, seed: int) -> _Perturbed:
    generator = Generator().manual_seed(seed)
    draws = snapshot.config.adv_draws if snapshot.is_noisy else 1
    victim = Victim(with_gradient_path(snapshot.net, "own"), snapshot.forward, draws)

    def transform(images: Tensor, target: Tensor) -> Tensor:
        return apply(victim.gradient, images, target, strength, generator)

    return _Perturbed(snapshot.test, transform)


# by `Perturbation.where`
FAMILIES = {"pixels": _on_pixels, "events": _on_events, "hidden": _on_neurons, "attack": _by_attack}


def _deviation(values: list[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def _confusion(draws: Tensor, target: Tensor) -> list[list[float]]:
    """Confusion matrix [class][predicted class], in samples per draw. Shape: draws [D, N, K], target [N] -> [K][K]."""
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

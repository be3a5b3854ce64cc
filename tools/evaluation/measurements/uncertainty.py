"""Calibration and uncertainty against the number of averaged draws, next to other uses of the same compute."""

import dataclasses
import logging
import time
from typing import Any

import torch
from torch import Tensor

from tools.analysis import metrics
from tools.analysis.metrics import SIZES, Bin, CurvePoint, ensemble_curve, out_of_distribution
from tools.config.evaluate import EvaluationConfig
from tools.data.parts import Labelled
from tools.evaluation.report import figures
from tools.evaluation.report.page import Section, Table, count, missing, percent
from tools.evaluation.results import Evaluation
from tools.evaluation.snapshot import Snapshot

from . import Measurement

logger = logging.getLogger(__name__)

SCORES = {  # headings in the report; a score without an entry is shown by its own name
    "nll": "NLL",
    "nll_scaled": "NLL, T",
    "brier": "Brier",
    "brier_scaled": "Brier, T",
    "calibration_error": "ECE",
    "calibration_error_scaled": "ECE, T",
    "risk_coverage_area": "risk-coverage",
    "predictive_entropy": "entropy",
    "expected_entropy": "expected entropy",
    "mutual_information": "mutual information",
}
NO_SCORES = {"accuracy", "temperature"}  # not among the columns of scores


@dataclasses.dataclass(frozen=True)
class OutOfDistribution:
    """How well another data set is told apart from the network's own."""

    dataset: str  # its name
    test_images: int
    curve: list[CurvePoint]


@dataclasses.dataclass(frozen=True)
class UncertaintyReport:
    """Scores of averaged draws."""

    ood: str  # name of the other data set, or empty
    validation_images: int  # that temperatures are fitted on
    bins: int  # number of bins of the calibration error
    images_per_s: float  # times draws
    curve: list[CurvePoint]  # one for each number of averaged draws
    reliability: dict[str, list[Bin]]  # by number of averaged draws
    more_time_steps: list[CurvePoint] | None = None  # of single draws; None for event data, and without spikes
    out_of_distribution: OutOfDistribution | None = None


Measured = dict[str, list[UncertaintyReport]]  # by group


class Uncertainty(Measurement):
    key = setting = "uncertainty"

    def settings(self, config: EvaluationConfig) -> dict[str, Any]:
        return {"ood": config.ood}

    def measure(self, snapshot: Snapshot) -> UncertaintyReport:
        ood = snapshot.config.ood
        sizes = SIZES if snapshot.is_noisy else (1,)
        most = max(sizes)
        val, val_target = _draws(snapshot, snapshot.validation, most, "val")
        start = time.perf_counter()
        test, target = _draws(snapshot, snapshot.test, most, "test")
        images_per_s = most * len(target) / (time.perf_counter() - start)
        curve = ensemble_curve(test, target, val, val_target, sizes)
        means = {size: metrics.mean_prediction(test[:size]) for size in (1, most)}
        reliability = {str(size): metrics.reliability(mean, target) for size, mean in means.items()}
        more = None
        if snapshot.dataset.has_pixels and snapshot.has_neurons:  # all steps of a ReLU network are the same
            # The number of repetitions gives each point the compute of the curve of draws.
            more = [_more_steps(snapshot, factor, most // factor or 1) for factor in SIZES[1:]]
        told = None
        if ood:
            outside, labels = _draws(snapshot, snapshot.outside, most, ood)
            told = OutOfDistribution(ood, len(labels), out_of_distribution(test, outside, sizes))
        return UncertaintyReport(ood, len(val_target), metrics.BINS, images_per_s, curve, reliability, more, told)

    def as_json(self, report: UncertaintyReport) -> dict[str, Any]:
        content = super().as_json(report)
        content["curve"] = [point.as_json() for point in report.curve]
        if report.more_time_steps is not None:
            content["more_time_steps"] = [point.as_json() for point in report.more_time_steps]
        if report.out_of_distribution is not None:
            content["out_of_distribution"]["curve"] = [point.as_json() for point in report.out_of_distribution.curve]
        return content

    def from_json(self, content: dict[str, Any]) -> UncertaintyReport:
        content["curve"] = _points(content["curve"])
        content["reliability"] = {size: [Bin(**one) for one in bins] for size, bins in content["reliability"].items()}
        if "more_time_steps" in content:
            content["more_time_steps"] = _points(content["more_time_steps"])
        if told := content.get("out_of_distribution"):
            content["out_of_distribution"] = OutOfDistribution(**{**told, "curve": _points(told["curve"])})
        return UncertaintyReport(**content)

    def log(self, report: UncertaintyReport) -> None:
        for point in report.curve:
            found = point.scores
            scores = f"accuracy {100 * found['accuracy']:.2f} %, NLL {found['nll']:.4f}"
            calibration = f"calibration error {found['calibration_error']:.4f}"
            scaled = f"{found['calibration_error_scaled']:.4f} with temperature {found['temperature']:.2f}"
            logger.info("%2d draws: %s, %s (%s)", point.draws, scores, calibration, scaled)
        logger.info("%.0f samples per second (%d draws)", report.images_per_s, report.curve[-1].draws)

    def rows(self, evaluation: Evaluation) -> dict[str, dict[str, str]]:
        rows: dict[str, dict[str, str]] = {}
        for group, reports in evaluation.reports(self.key).items():
            curve = figures.mean_curve([report.curve for report in reports])
            for point in (curve[0], curve[-1]):
                label = f"calibration error of {count(point.draws, 'draw')}, %"
                rows.setdefault(label, {})[group] = percent(point.scores["calibration_error"])
        return rows

    def sections(self, evaluation: Evaluation) -> list[Section]:
        measured, compute = evaluation.reports(self.key), "Accuracy and calibration against compute"
        if not measured:
            return [missing("Reliability", "--uncertainty"), missing(compute, "--uncertainty")]
        curves = [figures.draws(measured, evaluation.ensembles), _scores_table(measured, evaluation.ensembles)]
        outside = _outside_table(measured)
        if outside.rows:
            curves.append(outside)
        curves.append(_note(measured))
        return [Section("Reliability", [figures.reliability(measured)]), Section(compute, curves)]


def _points(rows: list[dict[str, Any]]) -> list[CurvePoint]:
    return [CurvePoint.from_json(row) for row in rows]


def ensembles_of_snapshots(snapshots: list[Snapshot]) -> list[CurvePoint]:
    """Scores of the mean of the first 2, 3, ... snapshots, one draw each: at the cost of 2, 3, ... draws."""
    if len(snapshots) < 2:
        return []
    what = "ensemble of snapshots"
    tests, vals = [], []
    for one in snapshots:
        test, target = _draws(one, one.test, 1, what)
        val, val_target = _draws(one, one.validation, 1, what)
        tests.append(test)
        vals.append(val)
    return ensemble_curve(torch.cat(tests), target, torch.cat(vals), val_target, range(2, len(snapshots) + 1))


def _more_steps(snapshot: Snapshot, factor: int, repetitions: int) -> CurvePoint:
    """Scores of single draws with `factor` times as many time steps, averaged over `repetitions` of them."""
    forward = dataclasses.replace(snapshot.forward, timesteps=factor * snapshot.forward.timesteps)
    what = f"{forward.timesteps} time steps"
    test, target = _draws(snapshot, snapshot.test, repetitions, f"test, {what}", forward=forward)
    val, val_target = _draws(snapshot, snapshot.validation, repetitions, f"val, {what}", forward=forward)
    (point,) = ensemble_curve(test, target, val, val_target, (1,))
    return dataclasses.replace(point, factor=factor, timesteps=forward.timesteps)


def _draws(snapshot: Snapshot, data: Labelled, count: int, what: str, **options: Any) -> tuple[Tensor, Tensor]:
    """Log-probabilities of independent noise draws [D, N, K], and labels [N]."""
    return snapshot.predict(data, "draws", draws=count, description=f"{what}, {count} draws", **options)


def _scores_table(measured: Measured, ensembles: dict[str, list[CurvePoint]]) -> Table:
    known = next(iter(measured.values()))[0].curve[0].scores
    names = [*SCORES, *sorted(known.keys() - SCORES.keys() - NO_SCORES)]
    rows = []
    for group, reports in measured.items():
        curve = figures.mean_curve([report.curve for report in reports])
        more = figures.mean_curve([report.more_time_steps or [] for report in reports])
        for what, found in {"draw": curve, "time step": more, "snapshot": ensembles[group]}.items():
            for point in found:
                number = point.timesteps if what == "time step" else point.draws
                scores = [f"{point.scores[name]:.4f}" for name in names]
                rows.append([group, count(number, what), percent(point.scores["accuracy"]), *scores])
    return Table(["group", "averaged", "accuracy, %", *(SCORES.get(name, name) for name in names)], rows)


def _outside_table(measured: Measured) -> Table:
    """How well groups tell another data set from their own; without rows if none was given."""
    rows = []
    for group, reports in measured.items():
        told = [report.out_of_distribution for report in reports if report.out_of_distribution]
        for point in figures.mean_curve([one.curve for one in told]):
            areas = [f"{point.scores[name]:.3f}" for name in ("confidence", "predictive", "mutual_information")]
            rows.append([group, f"{count(point.draws, 'draw')} against {told[0].dataset}", *areas])
    return Table(["group", "area under the ROC curve", "confidence", "predictive entropy", "mutual information"], rows)


def _note(measured: Measured) -> str:
    bins = next(iter(measured.values()))[0].bins
    speeds = []
    for group, reports in measured.items():
        first = reports[0]
        speeds.append(f"{group}, {count(first.curve[-1].draws, 'draw')}: {first.images_per_s:.0f}")
    return (
        f"Means over the snapshots of each group. Calibration error (ECE) in {bins} bins of equal mass; T: after "
        f"a temperature fitted on validation samples. Draws times samples per second: {'; '.join(speeds)}."
    )

"""Accuracy and loss under each condition; stored condition by condition, so that an interrupted test goes on."""

import dataclasses
import logging
from typing import Any

from tools.evaluation import passes
from tools.evaluation.conditions import CLEAN, unit
from tools.evaluation.report import figures
from tools.evaluation.report.page import Section, comparison, missing
from tools.evaluation.results import Evaluation, Result
from tools.evaluation.snapshot import Snapshot

from .measurement import Measurement

logger = logging.getLogger(__name__)
Report = dict[str, list[Result]]


class Perturbations(Measurement):
    key = "perturbations"

    def run(self, snapshot: Snapshot) -> Report:
        folder, report = snapshot.folder, {}
        for name, conditions in snapshot.conditions.items():
            done, path, report[name] = folder.points(name), folder.points_file(name), []
            for condition in conditions:
                key = (condition.severity, condition.strength)
                if key not in done:
                    if condition.is_clean and name != CLEAN:  # which comes first
                        clean = report[CLEAN][0]
                        done[key] = dataclasses.replace(clean, strength=condition.strength, confusion=None, worst=None)
                    else:
                        done[key] = passes.result(snapshot, condition)
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
        for name, results in report.items():
            points = [result.as_json() for result in results]
            for point in points:
                del point["times_correct"]
            content[name] = {"unit": unit(name), "points": points}
        return content

    def sections(self, evaluation: Evaluation) -> list[Section]:
        figure = figures.severities(evaluation)
        section = Section("Perturbations", [figure]) if figure else missing("Perturbations", "--perturbation")
        section.blocks.append(comparison(evaluation.rows))
        if len(evaluation.groups) > 1:
            note = "Intervals of single rows are not corrected for their number; the table above judges."
            section.blocks.append(note)
        return [section]


def _log(name: str, result: Result) -> None:
    strength = "clean" if result.severity == 0 else f"{result.strength:.4g}"
    deviation = "" if result.accuracy_std is None else f"+- {100 * result.accuracy_std:.2f}"
    accuracy = f"{100 * result.accuracy_mean:6.2f} {deviation}"
    logger.info("%-14s %8s   accuracy %s %%   loss %.4f", name, strength, accuracy, result.loss_mean)

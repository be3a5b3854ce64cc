"""Accuracy and loss under each condition; stored condition by condition, so that an interrupted test goes on."""

import logging
from typing import Any

from tools.evaluation import passes
from tools.evaluation.comparison import label
from tools.evaluation.conditions import CLEAN, Condition, unit
from tools.evaluation.report import figures
from tools.evaluation.report.blocks import Section, Table, differences, interval, missing, percent
from tools.evaluation.results import Evaluation, Result
from tools.evaluation.snapshot import Snapshot

from .measurement import Measurement

logger = logging.getLogger(__name__)
Report = dict[str, list[Result]]


class Perturbations(Measurement):
    key = "perturbations"

    def run(self, snapshot: Snapshot) -> Report:
        return self.measure(snapshot)

    def measure(self, snapshot: Snapshot) -> Report:
        report: Report = {}
        for name, tests in snapshot.conditions.items():
            clean = report[CLEAN][0] if report else None
            report[name] = self._of_one(snapshot, name, tests, clean)
        return report

    def _of_one(self, snapshot: Snapshot, name: str, tests: list[Condition], clean: Result | None) -> list[Result]:
        """The results of one perturbation; `clean` is that without any, where it was measured before."""
        done, results = snapshot.folder.points(name), []
        for condition in tests:
            key = (condition.severity, condition.strength)
            if key not in done:
                if condition.is_clean and clean is not None:
                    done[key] = clean.at(condition.strength)
                else:
                    done[key] = passes.result(snapshot, condition)
                snapshot.folder.write_points(name, done)
            results.append(done[key])
            _log(name, done[key])
        path = snapshot.folder.points_file(name)
        logger.info("written: %s", path)
        if name != CLEAN:
            figure = figures.strengths(snapshot.title, results, unit(name), snapshot.dataset.name)
            figure.savefig(path.with_suffix(".png"), dpi=130)
            logger.info("written: %s", path.with_suffix(".png"))
        return results

    def summary(self, report: Report) -> dict[str, Any]:
        content = {}
        for name, results in report.items():
            points = [result.as_json() for result in results]
            for point in points:
                del point["times_correct"]
            content[name] = {"unit": unit(name), "points": points}
        return content

    def sections(self, evaluation: Evaluation) -> list[Section]:
        heading, groups, rows = "Perturbations", list(evaluation.groups), []
        head = ["test"] + [f"{group}, % [95 % over seeds]" for group in groups]
        head += [f"{group}, over draws" for group in groups]
        pairs = evaluation.rows[0].differences
        for one in pairs:
            head += [f"{one.first} - {one.second} [95 % over samples]", "[95 % over seeds]"]
        for row in evaluation.rows:
            cells = [label(row) + ("" if row.reliable else " (not reliable)")]
            cells += [interval(row.groups[group]) for group in groups]
            cells += [percent(row.groups[group].draws_std) for group in groups]
            rows.append(cells + differences(row))
        figure = figures.severities(evaluation)
        section = Section(heading, [figure]) if figure else missing(heading, "--perturbation")
        section.blocks.append(Table(head, rows))
        if pairs:
            note = "Intervals of single rows are not corrected for their number; the table above judges."
            section.blocks.append(note)
        return [section]


def _log(name: str, result: Result) -> None:
    strength = "clean" if result.severity == 0 else f"{result.strength:.4g}"
    deviation = "" if result.accuracy_std is None else f"+- {100 * result.accuracy_std:.2f}"
    accuracy = f"{100 * result.accuracy_mean:6.2f} {deviation}"
    logger.info("%-14s %8s   accuracy %s %%   loss %.4f", name, strength, accuracy, result.loss_mean)

"""The parts of an evaluation, one module each, and their base class."""

import dataclasses
from typing import Any, ClassVar

from tools.config.evaluate import EvaluationConfig
from tools.evaluation.report.page import Section
from tools.evaluation.results import Evaluation
from tools.evaluation.snapshot import Snapshot


class Measurement:
    """One part of an evaluation: measured for each snapshot, stored, logged, and shown in the report."""

    key: ClassVar[str]  # name in the results
    setting: ClassVar[str] = ""  # the setting that asks for it; empty: always measured

    def name(self, config: EvaluationConfig) -> str:
        """The name of the file, without ending."""
        return self.key

    def settings(self, config: EvaluationConfig) -> dict[str, Any]:
        """The values that a stored report must have to be reused."""
        return {}

    def run(self, snapshot: Snapshot) -> Any:
        """The report of a snapshot, measured or stored earlier; None if there is nothing to report."""
        name = self.name(snapshot.config)
        report = snapshot.folder.report(name, self.from_json, **self.settings(snapshot.config))
        if report is None:
            report = self.measure(snapshot)
            snapshot.folder.write_report(name, self.as_json(report))
        self.log(report)
        return report

    def measure(self, snapshot: Snapshot) -> Any:
        raise NotImplementedError

    def as_json(self, report: Any) -> dict[str, Any]:
        """A report as plain data; parts that are None are left out."""
        content = dataclasses.asdict(report) if dataclasses.is_dataclass(report) else report
        return {name: value for name, value in content.items() if value is not None}

    def from_json(self, content: dict[str, Any]) -> Any:
        """The inverse of `as_json`."""
        return content

    def summary(self, report: Any) -> Any:
        """The part of a report that goes into results.json."""
        return self.as_json(report)

    def log(self, report: Any) -> None:
        """Log the main numbers."""

    def rows(self, evaluation: Evaluation) -> dict[str, dict[str, str]]:
        """{label: {group: value}}, below the accuracies in the table of a comparison."""
        return {}

    def sections(self, evaluation: Evaluation) -> list[Section]:
        """The sections of the report page."""
        return []

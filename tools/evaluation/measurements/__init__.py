"""What a measurement is; each has a module here."""

import dataclasses
from typing import Any, ClassVar

from tools.config.evaluate import EvaluationConfig
from tools.evaluation.report.page import Section
from tools.evaluation.results import Evaluation
from tools.evaluation.snapshot import Snapshot


class Measurement:
    """One part of an evaluation: measured of each snapshot, stored, logged, and shown in the report."""

    key: ClassVar[str]  # its name in the results, and of its file
    setting: ClassVar[str] = ""  # the setting that asks for it; empty: always measured
    kind: ClassVar[type] = dict  # the dataclass of its report, or dict

    def name(self, config: EvaluationConfig) -> str:
        """The name of its file, without ending."""
        return self.key

    def settings(self, config: EvaluationConfig) -> dict[str, Any]:
        """Values in a stored report without which it is measured anew."""
        return {}

    def run(self, snapshot: Snapshot) -> Any:
        """The report of a snapshot, measured or as stored; None if there is nothing to report."""
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
        """The report that `as_json` gave."""
        return self.kind(**content)

    def summary(self, report: Any) -> Any:
        """What results.json has of a report: no more than it shows."""
        return self.as_json(report)

    def log(self, report: Any) -> None:
        """Log the main numbers."""

    def sections(self, evaluation: Evaluation) -> list[Section]:
        """Its parts of the report page."""
        return []

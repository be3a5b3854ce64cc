"""What comes out of an evaluation, as records and as plain data."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from .conditions import CLEAN


@dataclasses.dataclass(frozen=True)
class Mistake:
    """A test sample, and what a network takes it for; `loss` in nats."""

    index: int
    label: int
    predicted: int
    confidence: float
    loss: float


@dataclasses.dataclass(frozen=True)
class Result:
    """Accuracy and loss under one condition, over draws of the network's noise and of the perturbation.

    Args:
        severity, strength: of the condition.
        accuracy_std, loss_std: None for a single draw of several possible; 0 where nothing is drawn.
        times_correct: of each sample, in how many draws it was classified correctly.
        confusion: of a clean condition: [class][taken for], samples per draw.
        worst: of a clean condition: the samples of the highest loss.
    """

    severity: int | None
    strength: float | None
    accuracy_mean: float
    accuracy_std: float | None
    accuracy_draws: list[float]
    loss_mean: float
    loss_std: float | None
    loss_draws: list[float]
    times_correct: list[int]
    confusion: list[list[float]] | None = None
    worst: list[Mistake] | None = None

    def at(self, strength: float | None) -> "Result":
        """This result as the one of a perturbation whose `strength` changes nothing."""
        return dataclasses.replace(self, strength=strength, confusion=None, worst=None)

    def as_json(self) -> dict[str, Any]:
        content = dataclasses.asdict(self)
        return {name: value for name, value in content.items() if name not in ("confusion", "worst") or value}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Result":
        if "worst" in content:
            content = {**content, "worst": [Mistake(**row) for row in content["worst"]]}
        return cls(**content)


@dataclasses.dataclass(frozen=True)
class SnapshotResults:
    """The results of one snapshot.

    Args:
        identity: all that they depend on, as plain data.
        is_noisy: whether the network draws noise.
        reports: {key of a measurement: what it found}; "perturbations" has {condition's name: list of `Result`}.
    """

    identity: dict[str, Any]
    is_noisy: bool
    reports: dict[str, Any]

    @property
    def perturbations(self) -> dict[str, list[Result]]:
        return self.reports["perturbations"]

    @property
    def clean(self) -> Result:
        return self.perturbations[CLEAN][0]


@dataclasses.dataclass(frozen=True)
class GroupAccuracy:
    """Accuracy of a group under one test: mean and interval over seeds, as of `seed_interval`.

    Args:
        draws_std: mean over snapshots of the standard deviation over noise draws; None for single draws.
    """

    mean: float
    low: float | None
    high: float | None
    seeds: int
    draws_std: float | None


@dataclasses.dataclass
class Difference:
    """The accuracy of one group less that of another, with interval and p over samples, as of `paired_difference`.

    Args:
        seeds: low, high and p over seeds, as of `seed_difference`.
        p_holm: of a summary: the larger p, over samples or over seeds, corrected for all tests of the same two groups;
            small only for a difference beyond both kinds of chance.
    """

    first: str
    second: str
    difference: float
    low: float
    high: float
    p: float
    seeds: dict[str, float | None]
    p_holm: float | None = None


@dataclasses.dataclass(frozen=True)
class Row:
    """One test and strength, or the mean of a test over its strengths, of all groups.

    Args:
        of: what the strength is.
        reliable: False where a gate of the attacks failed.
        is_mean: whether it is a mean, which has no severity and strength.
    """

    test: str
    of: str
    severity: int | None
    strength: float | None
    reliable: bool
    groups: dict[str, GroupAccuracy]
    differences: list[Difference]
    is_mean: bool = False

    def as_json(self) -> dict[str, Any]:
        """As in results.json, where groups are called kinds."""
        row = {"test": self.test, "of": self.of, "severity": self.severity, "strength": self.strength}
        row["reliable"] = self.reliable
        row["kinds"] = {group: dataclasses.asdict(one) for group, one in self.groups.items()}
        row["differences"] = [dataclasses.asdict(one) for one in self.differences]
        if self.is_mean:
            del row["severity"], row["strength"]
        else:
            for one in row["differences"]:
                del one["p_holm"]
        return row


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """All that came out of one call of a testing script.

    Args:
        dataset: its name.
        classes: their names, in the order of the labels.
        device: that the networks were on.
        groups: {group: results of each of its snapshots}.
        rows: every test and strength that all snapshots went through.
        summary: the mean of each test over its strengths.
        ensembles: {group: scores of ensembles of its snapshots}.
        sample: index of a test sample -> image [C, H, W] in [0, 1].
    """

    dataset: str
    classes: tuple[str, ...]
    device: str
    groups: dict[str, list[SnapshotResults]]
    rows: list[Row]
    summary: list[Row]
    ensembles: dict[str, list[dict[str, Any]]]
    sample: Callable[[int], np.ndarray]

    def reports(self, key: str) -> dict[str, list[Any]]:
        """{group: the reports of its snapshots}, of the groups that have any of this measurement."""
        found = {}
        for group, snapshots in self.groups.items():
            if reports := [one.reports[key] for one in snapshots if key in one.reports]:
                found[group] = reports
        return found

"""The results of an evaluation, and their form in JSON files."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from tools.analysis.metrics import CurvePoint
from tools.analysis.statistics import SeedDifference, SeedInterval
from tools.config.train import Dataset

from .conditions import CLEAN

PERTURBATIONS, ATTACKS, EFFICIENCY = "perturbations", "attacks", "efficiency"  # keys of reports that others read


@dataclasses.dataclass(frozen=True)
class Mistake:
    """A test sample, and the class that a network predicts for it."""

    index: int
    label: int
    predicted: int
    confidence: float
    loss: float  # in nats


@dataclasses.dataclass(frozen=True)
class Result:
    """Accuracy and loss under one condition, over draws of the network's noise and of the perturbation."""

    severity: int | None
    strength: float | None
    accuracy_mean: float
    accuracy_std: float | None  # over draws; None for a single draw, 0 where nothing is random
    accuracy_draws: list[float]
    loss_mean: float
    loss_std: float | None
    loss_draws: list[float]
    times_correct: list[int]  # for each sample, the number of draws that classified it correctly
    confusion: list[list[float]] | None = None  # [class][predicted class], in samples per draw; for "clean" only
    worst: list[Mistake] | None = None  # the samples with the highest loss; for "clean" only

    def as_json(self) -> dict[str, Any]:
        content = dataclasses.asdict(self)
        return {name: value for name, value in content.items() if name not in ("confusion", "worst") or value}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Result":
        if "worst" in content:
            content = {**content, "worst": [Mistake(**row) for row in content["worst"]]}
        return cls(**content)


@dataclasses.dataclass(frozen=True)
class Identity:
    """All that the results of a snapshot depend on; stored results with the same identity are reused."""

    dataset: str  # its name
    test_images: int
    data_checksums: list[int]  # CRC-32 of the test and of the validation samples, and of those of `recalibrate`
    snapshot: str  # its path
    checksum: int  # CRC-32 of the file
    network: dict[str, Any]  # its settings, by name
    inference: str  # one of `models.functional.MODES`
    recalibrate: int  # training samples by which batch normalisation was estimated again
    training_seed: int | None
    seed: int
    minibatch: int
    fold: int
    device: str
    provenance: dict[str, Any]  # as of `provenance()`


@dataclasses.dataclass(frozen=True)
class SnapshotResults:
    """The results of one snapshot."""

    identity: Identity
    is_noisy: bool
    reports: dict[str, Any]  # by the key of the measurement

    @property
    def perturbations(self) -> dict[str, list[Result]]:
        """The results of each perturbation, and of "clean"."""
        return self.reports[PERTURBATIONS]

    @property
    def clean(self) -> Result:
        return self.perturbations[CLEAN][0]

    @property
    def mode(self) -> str:
        """The mode of its noisy neurons; "deterministic" if it has none."""
        return self.identity.inference if self.is_noisy or self.identity.inference != "noisy" else "deterministic"

    @property
    def seed(self) -> int | str:
        """The training seed; a dash if it is not known."""
        seed = self.identity.training_seed
        return "-" if seed is None else seed


@dataclasses.dataclass(frozen=True)
class GroupAccuracy(SeedInterval):
    """Accuracy of a group under one condition, over seeds."""

    draws_std: float | None  # over noise draws, mean over snapshots; None for single draws


@dataclasses.dataclass
class Difference:
    """The accuracy of one group minus that of another, with interval and p over samples from `paired_difference`."""

    first: str
    second: str
    difference: float
    low: float
    high: float
    p: float
    seeds: SeedDifference
    # For means over strengths: the larger p, over samples or over seeds, corrected for all tests of the two groups. It
    # is small only for a difference beyond both kinds of chance.
    p_holm: float | None = None


@dataclasses.dataclass(frozen=True)
class Key:
    """One condition, or the mean over the strengths of a perturbation."""

    test: str
    of: str  # the meaning of the strength
    severity: int | None
    strength: float | None
    attack: str | None  # its name, which is in that of the test too; None: a perturbation
    norm: str | None  # of the attack


@dataclasses.dataclass(frozen=True)
class Row(Key):
    """The results of all groups under one condition, or in the mean over the strengths of a perturbation."""

    reliable: bool  # False where a gate of the attacks failed
    groups: dict[str, GroupAccuracy]
    differences: list[Difference]
    is_mean: bool = False  # severity and strength are then meaningless

    def as_json(self) -> dict[str, Any]:
        """As in results.json, where groups are called kinds."""
        row = dataclasses.asdict(self)
        del row["attack"], row["norm"]
        row["kinds"], row["differences"] = row.pop("groups"), row.pop("differences")
        if row.pop("is_mean"):
            del row["severity"], row["strength"]
        else:
            for one in row["differences"]:
                del one["p_holm"]
        return row


@dataclasses.dataclass(frozen=True)
class Machine:
    """What an evaluation ran on."""

    processor: str
    torch: str  # its version
    threads: int


@dataclasses.dataclass(frozen=True)
class Document:
    """The content of results.json, where groups are called kinds; docs/results.schema.json describes it."""

    format: int
    dataset: str  # its name
    command: list[str]
    machine: Machine
    provenance: dict[str, Any]
    kinds: dict[str, list[dict[str, Any]]]  # {group: [{"identity": ..., measurement: its summary}, ...]}
    tests: list[dict[str, Any]]
    summary: list[dict[str, Any]]
    ensembles: dict[str, list[dict[str, Any]]]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """All results of one call of a testing script."""

    dataset: Dataset
    groups: dict[str, list[SnapshotResults]]  # {group: the results of its snapshots}
    rows: list[Row]  # every condition that all snapshots have
    summary: list[Row]  # the mean of each perturbation over its strengths
    ensembles: dict[str, list[CurvePoint]]  # scores of ensembles of a group's snapshots
    picture: Callable[[int], np.ndarray]  # index of a test sample -> image [C, H, W] in [0, 1]

    @property
    def modes(self) -> dict[str, str]:
        """{group: its mode}."""
        return {group: snapshots[0].mode for group, snapshots in self.groups.items()}

    def snapshots(self) -> list[tuple[str, SnapshotResults]]:
        """(group, results of one of its snapshots), for all snapshots."""
        found = []
        for group, snapshots in self.groups.items():
            found += [(group, one) for one in snapshots]
        return found

    def reports(self, key: str) -> dict[str, list[Any]]:
        """{group: the reports of one measurement of its snapshots}, for the groups that have any."""
        found: dict[str, list[Any]] = {}
        for group, one in self.snapshots():
            if key in one.reports:
                found.setdefault(group, []).append(one.reports[key])
        return found

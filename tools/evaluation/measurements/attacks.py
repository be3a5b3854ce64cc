"""All attacks of a preset, their scores, and the gates that say whether to believe them."""

import dataclasses
import json
import logging
from typing import Any

import torch

from tools.attacks.campaign import PRESETS, SUBSET, AttackReport, Campaign
from tools.config.evaluate import EvaluationConfig
from tools.evaluation.report import figures
from tools.evaluation.report.blocks import Block, Picture, Section, Table, missing, or_dash
from tools.evaluation.results import Evaluation
from tools.evaluation.snapshot import Snapshot

from .measurement import Measurement

logger = logging.getLogger(__name__)
LABEL = "upper bound on robustness"


@dataclasses.dataclass(frozen=True)
class PresetReport:
    """What the attacks of a preset found.

    Args:
        preset: its name.
        settings: the preset, as plain data.
        images: how many were attacked.
    """

    preset: str
    settings: dict[str, Any]
    images: int
    found: AttackReport


class Attacks(Measurement):
    key, setting = "attacks", "attack_preset"

    def name(self, config: EvaluationConfig) -> str:
        return f"attacks-{config.attack_preset}"

    def settings(self, config: EvaluationConfig) -> dict[str, Any]:
        return {"settings": _plain(config.attack_preset)}

    def measure(self, snapshot: Snapshot) -> PresetReport:
        name, test = snapshot.config.attack_preset, snapshot.test
        preset = PRESETS[name]
        chosen = torch.randperm(len(test), generator=torch.Generator().manual_seed(SUBSET))[: preset.images]
        subset = test.subset(chosen.sort().values)
        ((images, target),) = subset.batches(**{**snapshot.batch_options, "batch_size": len(subset)})
        campaign = Campaign(snapshot.net, snapshot.forward, images, target, preset, snapshot.config.seed)
        return PresetReport(name, _plain(name), len(subset), campaign.run())

    def as_json(self, report: PresetReport) -> dict[str, Any]:
        head = {"preset": report.preset, "settings": report.settings, "images": report.images}
        return {"label": LABEL, **head, **report.found.as_json()}

    def from_json(self, content: dict[str, Any]) -> PresetReport:
        head = content["preset"], content["settings"], content["images"]
        return PresetReport(*head, AttackReport.from_json(content))

    def summary(self, report: PresetReport) -> dict[str, Any]:
        content = self.as_json(report)
        for score in (content["clean"], *content["attacks"]):
            del score["times_correct"]
        return content

    def log(self, report: PresetReport) -> None:
        for row in report.found.attacks:
            score = row.score
            logger.info(
                "%-4s %-8.4g %-22s accuracy %6.2f %%, mean of %d draws: %6.2f %%",
                row.norm,
                row.eps,
                row.attack,
                100 * score.accuracy,
                min(report.settings["draws"], score.draws),
                100 * score.accuracy_ensemble,
            )
        for gate in report.found.gates:
            logger.info("%s: %s: %s", "passed" if gate.passed else "FAILED", gate.name, gate.detail)
        logger.info("%s: %s", LABEL, "all gates passed" if report.found.reliable else "NOT RELIABLE, as gates failed")

    def sections(self, evaluation: Evaluation) -> list[Section]:
        if not evaluation.reports(self.key):
            return [missing("Attacks", "--attack_preset quick")]
        blocks: list[Block] = [Picture(figures.attacks(evaluation))]
        for group, snapshots in evaluation.groups.items():
            for one in snapshots:
                if report := one.reports.get(self.key):
                    seed = or_dash(one.identity["training_seed"])
                    title = f"{group}, seed {seed}: {LABEL}, preset {report.preset}, {report.images} images"
                    blocks.append(_gates(title, report.found))
        return [Section("Attacks", blocks)]


def _gates(title: str, found: AttackReport) -> Table:
    rows = [[gate.name, "passed" if gate.passed else "failed", gate.detail] for gate in found.gates]
    verdict = ("passed", "all gates passed") if found.reliable else ("failed", "not reliable: gates failed")
    return Table(["gate", "", "measured"], rows, title, verdict)


def _plain(preset: str) -> dict[str, Any]:
    """A preset as JSON has it: with lists for tuples."""
    return json.loads(json.dumps(dataclasses.asdict(PRESETS[preset])))

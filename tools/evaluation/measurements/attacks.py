"""Accuracy under the attacks of a preset, and the gates that say whether to believe it."""

import dataclasses
import logging
from typing import Any

import torch

from tools.attacks.campaign import PRESETS, SUBSET_SEED, Campaign, Radii
from tools.attacks.report import AttackReport
from tools.config.evaluate import EvaluationConfig
from tools.evaluation.report import figures
from tools.evaluation.report.page import Section, Table, missing
from tools.evaluation.results import ATTACKS, Evaluation
from tools.evaluation.snapshot import Snapshot

from . import Measurement

logger = logging.getLogger(__name__)


def _shown(eps: float | None) -> str:
    return "not among those tried" if eps is None else f"{eps:.3g} ({255 * eps:.1f}/255)"


def campaign_of(snapshot: Snapshot, radii: Radii | None = None) -> Campaign:
    """The campaign of a preset on a network; `radii`: other than those of its data set and the preset."""
    name, test = snapshot.config.attack_preset, snapshot.test
    preset = PRESETS[name]
    chosen = torch.randperm(len(test), generator=torch.Generator().manual_seed(SUBSET_SEED))[: preset.images]
    subset = test.subset(chosen.sort().values)
    ((images, target),) = subset.batches(**{**snapshot.batch_options, "batch_size": len(subset)})
    return Campaign(
        net=snapshot.net,
        forward=snapshot.forward,
        images=images,
        target=target,
        preset=preset,
        radii=preset.of(snapshot.dataset.radii) if radii is None else radii,
        seed=snapshot.config.seed,
        name=name,
    )


class Attacks(Measurement):
    key, setting = ATTACKS, "attack_preset"
    as_json = staticmethod(AttackReport.as_json)
    from_json = staticmethod(AttackReport.from_json)

    def name(self, config: EvaluationConfig) -> str:
        return f"attacks-{config.attack_preset}"

    def settings(self, config: EvaluationConfig) -> dict[str, Any]:
        return {"settings": dataclasses.asdict(PRESETS[config.attack_preset])}

    def measure(self, snapshot: Snapshot) -> AttackReport:
        return campaign_of(snapshot).run()

    def summary(self, report: AttackReport) -> dict[str, Any]:
        content = report.as_json()
        for score in (content["clean"], *content["attacks"]):
            del score["times_correct"]
        return content

    def log(self, report: AttackReport) -> None:
        for row in report.attacks:
            name, score = f"{row.norm:4} {row.eps:<8.4g} {row.attack:22}", row.score
            accuracy = f"accuracy {100 * score.accuracy:6.2f} % of {row.images} images"
            if score.draws > 1:
                averaged = min(report.settings["draws"], score.draws)
                accuracy += f"; mean of {averaged} draws: {100 * score.accuracy_ensemble:6.2f} %"
            logger.info("%s %s", name, accuracy)
        for norm, eps in report.half_radii.items():
            logger.info("%s radius that leaves 50 %%: %s", norm, _shown(eps))
        for gate in report.gates:
            logger.info("%s: %s: %s", "passed" if gate.passed else "FAILED", gate.name, gate.detail)
        logger.info("%s: %s", report.label, "all gates passed" if report.reliable else "not reliable: gates failed")

    def sections(self, evaluation: Evaluation) -> list[Section]:
        if not evaluation.reports(self.key):
            return [missing("Attacks", "--attack_preset quick")]
        section, halves = Section("Attacks", [figures.attacks(evaluation)]), []
        for group, one in evaluation.snapshots():
            for norm, eps in one.reports[self.key].half_radii.items():
                halves.append([group, one.seed, norm.capitalize(), _shown(eps)])
        if halves:
            section.blocks.append(Table(["group", "seed", "norm", "radius that leaves 50 %"], halves))
        for group, one in evaluation.snapshots():
            report, head = one.reports[self.key], ["gate", "", "measured"]
            title = f"{group}, seed {one.seed}: {report.label}, preset {report.preset}, {report.images} images"
            rows = [[gate.name, "passed" if gate.passed else "failed", gate.detail] for gate in report.gates]
            section.blocks.append(Table(head, rows, title, "passed" if report.reliable else "failed"))
        return [section]

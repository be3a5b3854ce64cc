"""Firing rates, synaptic operations and their energy, over the test samples, with one draw of the noise."""

import contextlib
import dataclasses
import logging
from statistics import fmean
from typing import Any

import numpy as np

from tools.evaluation.report import figures
from tools.evaluation.report.page import Section, Table, missing
from tools.evaluation.results import EFFICIENCY, Evaluation
from tools.evaluation.snapshot import Snapshot
from tools.probes.firing_rates import firing_rates
from tools.probes.operations import ACCUMULATE_PJ, MULTIPLY_ACCUMULATE_PJ, Cost, LayerCost, count_operations

from . import Measurement

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class EfficiencyReport:
    """The firing rate of each layer, if it has spikes, and the cost of one sample."""

    firing_rates: dict[str, float]
    cost: Cost


class Efficiency(Measurement):
    key = setting = EFFICIENCY

    def measure(self, snapshot: Snapshot) -> EfficiencyReport:
        data = snapshot.test
        lengths = getattr(data, "lengths", None)
        parts = [data]
        if lengths is not None:  # the zeros after shorter recordings of a batch are not theirs
            parts = [data.subset(np.flatnonzero(lengths == length)) for length in np.unique(lengths)]
        watched = firing_rates(snapshot.net) if snapshot.has_neurons else contextlib.nullcontext()
        with watched as rates, count_operations(snapshot.net) as operations:
            for part in parts:
                snapshot.predict(part, "efficiency", description="counting operations")
        return EfficiencyReport(rates.rates() if rates else {}, operations.cost(is_relu=not snapshot.has_neurons))

    def as_json(self, report: EfficiencyReport) -> dict[str, Any]:
        return {"firing_rates": report.firing_rates, **dataclasses.asdict(report.cost)}

    def from_json(self, content: dict[str, Any]) -> EfficiencyReport:
        rates, layers = content.pop("firing_rates"), content.pop("layers")
        return EfficiencyReport(rates, Cost({name: LayerCost(**layer) for name, layer in layers.items()}, **content))

    def log(self, report: EfficiencyReport) -> None:
        cost = report.cost
        spiking = f"{cost.ac:.4g} accumulates, {cost.mac:.4g} multiply-accumulates, {cost.energy_nj:.4g} nJ"
        relu = f"{cost.relu_mac:.4g}, {cost.relu_energy_nj:.4g} nJ"
        logger.info("operations per sample: %s; ReLU network: %s", spiking, relu)

    def rows(self, evaluation: Evaluation) -> dict[str, dict[str, str]]:
        spiking, relu = {}, {}
        for group, reports in evaluation.reports(self.key).items():
            spiking[group] = f"{fmean(report.cost.energy_nj for report in reports):.1f}"
            relu[group] = f"{fmean(report.cost.relu_energy_nj for report in reports):.1f}"
        return {"energy of a sample, nJ": spiking, "the same with ReLU, nJ": relu} if spiking else {}

    def sections(self, evaluation: Evaluation) -> list[Section]:
        heading = "Firing rates and energy"
        measured = evaluation.reports(self.key)
        if not measured:
            return [missing(heading, "--efficiency")]
        head = ["group", "seed", "accumulates", "multiply-accumulates", "nJ", "ReLU network: AC", "MAC", "nJ"]
        rows = []
        for group, one in evaluation.snapshots():
            cost = one.reports[self.key].cost
            numbers = [cost.ac, cost.mac, cost.energy_nj, cost.relu_ac, cost.relu_mac, cost.relu_energy_nj]
            rows.append([group, one.seed, *(f"{number:.4g}" for number in numbers)])
        costs = f"{ACCUMULATE_PJ} pJ an accumulate, {MULTIPLY_ACCUMULATE_PJ} pJ a multiply-accumulate"
        note = f"Of one sample; {costs} (45 nm)."
        if "mean_field" in evaluation.modes.values():
            note += (
                " In the mean field neurons send probabilities instead of spikes: rates are their means, and layers "
                "multiply."
            )
        if without := [group for group, (first, *_) in measured.items() if not first.firing_rates]:
            note += f" {', '.join(without)}: no spikes, hence no rates; every connection multiplies, also zeros."
        figure = figures.firing_rates(evaluation)
        return [Section(heading, [*([figure] if figure else []), Table(head, rows), note])]

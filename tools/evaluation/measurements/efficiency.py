"""Firing rates, synaptic operations and their energy, over the test samples, with one draw of the noise."""

import dataclasses
import logging
from typing import Any

from tools.evaluation.report import figures
from tools.evaluation.report.page import Section, Table, missing
from tools.evaluation.results import Evaluation
from tools.evaluation.snapshot import Snapshot
from tools.probes.firing_rates import firing_rates
from tools.probes.operations import ACCUMULATE_PJ, MULTIPLY_ACCUMULATE_PJ, count_operations

from . import Measurement

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class EfficiencyReport:
    """The cost of one sample; the fields after `firing_rates` are those of `Operations.report`."""

    firing_rates: dict[str, float]
    layers: dict[str, dict[str, Any]]
    ac: float
    mac: float
    energy_nj: float
    relu_ac: float
    relu_mac: float
    relu_energy_nj: float


class Efficiency(Measurement):
    key = setting = "efficiency"
    kind = EfficiencyReport

    def measure(self, snapshot: Snapshot) -> EfficiencyReport:
        with firing_rates(snapshot.net) as rates, count_operations(snapshot.net) as operations:
            snapshot.predict(snapshot.test, "efficiency", description="counting operations")
        return EfficiencyReport(rates.rates(), **operations.report())

    def log(self, report: EfficiencyReport) -> None:
        spiking = f"{report.ac:.4g} accumulates, {report.mac:.4g} multiply-accumulates, {report.energy_nj:.4g} nJ"
        relu = f"{report.relu_mac:.4g}, {report.relu_energy_nj:.4g} nJ"
        logger.info("operations per sample: %s; ReLU network: %s", spiking, relu)

    def sections(self, evaluation: Evaluation) -> list[Section]:
        heading, measured = "Firing rates and energy", evaluation.reports(self.key)
        if not measured:
            return [missing(heading, "--efficiency")]
        head = ["group", "seed", "accumulates", "multiply-accumulates", "nJ", "ReLU network: AC", "MAC", "nJ"]
        rows = []
        for group, one in evaluation.snapshots():
            report = one.reports[self.key]
            numbers = [report.ac, report.mac, report.energy_nj, report.relu_ac, report.relu_mac, report.relu_energy_nj]
            rows.append([group, one.seed, *(f"{number:.4g}" for number in numbers)])
        costs = f"{ACCUMULATE_PJ} pJ an accumulate, {MULTIPLY_ACCUMULATE_PJ} pJ a multiply-accumulate"
        note = f"Of one sample; {costs} (45 nm)."
        return [Section(heading, [figures.firing_rates(measured), Table(head, rows), note])]

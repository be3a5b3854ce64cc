"""One call of a testing script: evaluation of one snapshot or of groups of snapshots, and the report."""

import dataclasses
import json
import logging
import sys
from pathlib import Path
from typing import Any

import torch

from tools.config.evaluate import EvaluationConfig
from tools.config.train import Dataset
from tools.errors import UserError
from tools.io.files import make_folder_of_now, write_text_atomically
from tools.runtime.provenance import processor, provenance

from .comparison import compare, parse_groups, table, verdicts
from .measurements import Measurement
from .measurements.attacks import Attacks
from .measurements.efficiency import Efficiency
from .measurements.perturbations import Perturbations
from .measurements.pictures import Pictures
from .measurements.uncertainty import Uncertainty, ensembles_of_snapshots
from .report.page import render
from .results import Document, Evaluation, Machine, SnapshotResults
from .snapshot import FoldHalved, Snapshot

logger = logging.getLogger(__name__)
# in the order in which they are made and shown
MEASUREMENTS: tuple[Measurement, ...] = (Perturbations(), Attacks(), Uncertainty(), Efficiency(), Pictures())
FOLD = "fold"  # name of the stored report that says which fold memory allows
Groups = dict[str, list[Snapshot]]
Results = dict[str, list[SnapshotResults]]


def run_evaluation(
    config: EvaluationConfig, dataset: Dataset, other_datasets: dict[str, Dataset] | None = None
) -> Results:
    """Evaluate the snapshot, or the groups of `compare`, of a configuration; write results.json and report.html.

    Returns:
        {group: results of each snapshot}; a single snapshot's group has the name of its neuron.

    Raises:
        UserError: if neither or both are given; see also `Snapshot`.
    """
    if bool(config.snapshot) == bool(config.compare):
        raise UserError("which checkpoint? Give --snapshot PATH, or --compare GROUP=PATH,PATH GROUP=PATH,PATH")
    groups = {}
    for group, configs in parse_groups(config).items():
        groups[group] = [Snapshot(one, dataset, other_datasets) for one in configs]
    if config.snapshot:
        snapshot = Snapshot(config, dataset, other_datasets)
        groups[snapshot.trained.neuron] = [snapshot]
    check_comparable(groups)
    results = {}
    for group, snapshots in groups.items():
        results[group] = []
        for one in snapshots:
            logger.info("== %s: %s (%s) ==", group, one.path, one.title)
            results[group].append(evaluate(one))
    _report(config, groups, results)
    return results


def evaluate(snapshot: Snapshot) -> SnapshotResults:
    """Make, store and log all requested measurements, or reuse those that an earlier run stored.

    All use the same fold: if one runs out of memory and halves it, all are repeated, and later runs start with it.

    Raises:
        UserError: if memory does not suffice for a single draw.
    """
    asked = snapshot.folder
    if fits := asked.report(FOLD, lambda content: int(content["fits"])):
        why = f"an earlier run ran out of memory with a larger one ({asked.path / FOLD}.json)"
        logger.info("using --fold %d: %s", fits, why)
        snapshot.keep_fold(fits)
    while True:
        try:
            return _measure(snapshot)
        except FoldHalved as error:
            logger.warning("everything is measured again with --fold %d", error.fold)
            snapshot.folder.restore()
            asked.write_report(FOLD, {"fits": error.fold})
            snapshot.keep_fold(error.fold)
        except torch.OutOfMemoryError as error:
            minibatch, fold = snapshot.config.minibatch, snapshot.forward.fold
            sizes = f"lower --minibatch (now {minibatch}) or, for attacks, --fold (now {fold})"
            raise UserError(f"out of memory, even for a single noise draw: {sizes}") from error


def _measure(snapshot: Snapshot) -> SnapshotResults:
    reports = {}
    for measurement in MEASUREMENTS:
        if not measurement.setting or getattr(snapshot.config, measurement.setting):
            report = measurement.run(snapshot)
            if report is not None:
                reports[measurement.key] = report
    return SnapshotResults(snapshot.identity, snapshot.is_noisy, reports)


def check_comparable(groups: Groups) -> None:
    """UserError for a network given twice, different test samples, or a group of which only some networks have spikes.

    A warning for a training seed given twice.
    """
    first = next(iter(groups.values()))[0]
    for group, snapshots in groups.items():
        if len({one.has_neurons for one in snapshots}) > 1:
            raise UserError(f"--compare: {group} has networks with spikes and without: make two groups")
        by_checksum: dict[int, Snapshot] = {}
        for one in snapshots:
            same = by_checksum.setdefault(one.checksum, one)
            if same is not one:
                raise UserError(f"--compare: two snapshots of {group} are the same network: {same.path} and {one.path}")
            if not torch.equal(one.test.labels, first.test.labels):
                paths = f"{first.path} and {one.path}"
                raise UserError(f"--compare: {paths} were trained with different splits, so their test samples differ")
        seeds = [one.trained.seed for one in snapshots]
        if len(set(seeds)) < len(seeds):
            logger.warning("%s: snapshots of the same training seed count as different seeds: %s", group, seeds)


def _report(config: EvaluationConfig, groups: Groups, results: Results) -> None:
    first, ensembles = next(iter(groups.values()))[0], {}
    if config.uncertainty:
        ensembles = {group: ensembles_of_snapshots(snapshots) for group, snapshots in groups.items()}
    rows, summary = compare(results)
    evaluation = Evaluation(first.dataset, results, rows, summary, ensembles, first.picture)
    document = _document(evaluation, first.device)
    folder = first.folder.path
    if config.compare:
        folder = Path(config.out or make_folder_of_now(Path("results", first.dataset.name, "comparison")))
        how = "(mean [95 % interval over seeds], or +- deviation over noise draws for one seed)"
        more: dict[str, dict[str, str]] = {}
        for measurement in MEASUREMENTS:
            more |= measurement.rows(evaluation)
        logger.info("%s", "\n".join([table(rows, evaluation.modes, more), how, *verdicts(summary)]))
    write_text_atomically(folder / "results.json", json.dumps(dataclasses.asdict(document), indent=1) + "\n")
    sections = []
    for measurement in MEASUREMENTS:
        sections += measurement.sections(evaluation)
    write_text_atomically(folder / "report.html", render(evaluation, sections, document))
    logger.info("results: %s\nreport: %s", folder / "results.json", folder / "report.html")


def _document(evaluation: Evaluation, device: torch.device) -> Document:
    kinds: dict[str, list[dict[str, Any]]] = {}
    for group, one in evaluation.snapshots():
        summaries = {}
        for measurement in MEASUREMENTS:
            if measurement.key in one.reports:
                summaries[measurement.key] = measurement.summary(one.reports[measurement.key])
        kinds.setdefault(group, []).append({"identity": dataclasses.asdict(one.identity), **summaries})
    ensembles = {group: [point.as_json() for point in curve] for group, curve in evaluation.ensembles.items()}
    return Document(
        format=2,
        dataset=evaluation.dataset.name,
        command=sys.argv,
        machine=Machine(processor(device), torch.__version__, torch.get_num_threads()),
        provenance=provenance(),
        kinds=kinds,
        tests=[row.as_json() for row in evaluation.rows],
        summary=[row.as_json() for row in evaluation.summary],
        ensembles=ensembles,
    )

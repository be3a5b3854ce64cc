"""One call of a testing script: the evaluation of one snapshot, or of several kinds of networks; and its report."""

import dataclasses
import logging
from pathlib import Path

import torch

from tools.analysis.uncertainty import ensemble_curve
from tools.io.files import make_folder_of_now, write_text_atomically

from .comparison import compare, parse_kinds, table, verdicts
from .report import assemble, render, write
from .snapshot import Evaluation

logger = logging.getLogger(__name__)


def run_tests(config, dataset, other_datasets=None):
    """Evaluate what the configuration names, and write results.json and report.html.

    Args:
        config: `EvaluationConfig`, with `snapshot` or `compare`.
        dataset, other_datasets: as for `Evaluation`.

    Returns:
        {kind: list of results of `Evaluation.run`}; a single snapshot is of the kind of its neuron.

    Raises:
        ValueError: where neither or both are given; and what `Evaluation` raises.
    """
    if bool(config.snapshot) == bool(config.compare):
        raise ValueError("which checkpoint? Give --snapshot PATH, or --compare KIND=PATH,PATH KIND=PATH,PATH")
    kinds = parse_kinds(config.compare) if config.compare else {"": [config.snapshot]}
    out = config.out if config.snapshot else ""  # in a comparison, the snapshots' own results lie beside them
    configs = {
        kind: [dataclasses.replace(config, snapshot=path, compare=[], out=out) for path in paths]
        for kind, paths in kinds.items()
    }
    evaluations = {kind: [Evaluation(one, dataset, other_datasets) for one in ones] for kind, ones in configs.items()}
    if not config.compare:
        evaluations = {evaluations[""][0].trained.neuron: evaluations[""]}
    check_comparable(evaluations)
    results = {}
    for kind, ones in evaluations.items():
        results[kind] = []
        for evaluation in ones:
            if config.compare:
                logger.info("== %s: %s ==", kind, evaluation.config.snapshot)
            results[kind].append(evaluation.run())
    _report(config, dataset, evaluations, results)
    return results


def check_comparable(evaluations):
    """Refuse comparisons that would not be of what they say; warn of doubtful ones.

    Args:
        evaluations: {kind: list of `Evaluation`}.

    Raises:
        ValueError: for the same network twice, or networks that would be tested on other samples.
    """
    first = next(iter(evaluations.values()))[0]
    for kind, ones in evaluations.items():
        by_checksum = {}
        for one in ones:
            same = by_checksum.setdefault(one.checksum, one)
            if same is not one:
                paths = f"{same.config.snapshot} and {one.config.snapshot}"
                raise ValueError(f"--compare: two snapshots of {kind} are the same network: {paths}")
            if not torch.equal(one.test.labels, first.test.labels):
                paths = f"{first.config.snapshot} and {one.config.snapshot}"
                raise ValueError(f"--compare: these were trained with other splits, so their tests differ: {paths}")
        seeds = [one.trained.seed for one in ones]
        if len(set(seeds)) < len(seeds):
            logger.warning("%s: snapshots of the same training seed count as different seeds: %s", kind, seeds)


def _report(config, dataset, evaluations, results):
    first = next(iter(evaluations.values()))[0]
    rows, summary = compare(results)
    ensembles = {kind: _ensembles(ones) for kind, ones in evaluations.items()} if config.uncertainty else {}
    measured = {
        kind: [(one.identity, result) for one, result in zip(ones, results[kind])] for kind, ones in evaluations.items()
    }
    document = assemble(dataset.name, str(first.device), measured, rows, summary, ensembles)
    folder = _folder(config, dataset) if config.compare else first.folder.path
    write(folder / "results.json", document)
    page = render(document, dataset.classes, lambda index: _sample(first, index))
    write_text_atomically(folder / "report.html", page)
    if config.compare:
        logger.info("%s", table(rows))
        logger.info(
            "(mean [95 %% interval over seeds], or +- deviation over %d noise draws for one seed)", config.draws
        )
        logger.info("%s", "\n".join(verdicts(summary)))
    logger.info("results: %s\nreport: %s", folder / "results.json", folder / "report.html")


def _folder(config, dataset):
    if config.out:
        return Path(config.out)
    return make_folder_of_now(Path("results", dataset.name, "comparison"))


def _sample(evaluation, index):
    """A test sample as an image [C, H, W] in [0, 1]; of a recording, the mean of its frames."""
    ((inputs, _),) = evaluation.test.subset(torch.tensor([index])).batches(1, torch.device("cpu"))
    return (inputs if inputs.dim() == 4 else inputs.mean(0))[0].numpy()


def _ensembles(evaluations):
    """Scores of ensembles of the first snapshots, one noise draw each: a control of equal compute for noise draws."""
    sizes = tuple(range(2, len(evaluations) + 1))
    if not sizes:
        return []
    test, validation = (
        torch.stack([one.trials.draws(batches(one), 1, "ensemble of snapshots")[0] for one in evaluations])
        for batches in (lambda one: one.trials.batches, lambda one: one.validation.batches(**one.batch_options))
    )
    first = evaluations[0]
    targets = [part.labels.to(first.device) for part in (first.test, first.validation)]
    return ensemble_curve(test, targets[0], validation, targets[1], sizes)

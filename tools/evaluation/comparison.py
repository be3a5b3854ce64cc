"""Comparison of groups of networks, several snapshots (training seeds) each, under the same conditions."""

import dataclasses
import itertools
from pathlib import Path
from statistics import fmean

import numpy as np

from models.functional import MODES
from tools.analysis.statistics import holm, paired_difference, seed_difference, seed_interval
from tools.attacks.report import ALL
from tools.config.evaluate import EvaluationConfig
from tools.errors import UserError

from .conditions import CLEAN, unit
from .results import ATTACKS, Difference, GroupAccuracy, Key, Row, SnapshotResults


def parse_groups(config: EvaluationConfig) -> dict[str, list[EvaluationConfig]]:
    """{group: the configurations of its snapshots} of `config.compare`; UserError if it cannot be understood.

    Results are stored beside each checkpoint; --out is for the report alone.
    """
    groups: dict[str, list[EvaluationConfig]] = {}
    for text in config.compare:
        group, _, joined = text.partition("=")
        paths = [path for path in joined.split(",") if path]
        if not group or not paths:
            raise UserError(f"--compare takes GROUP=a.pth,b.pth, such as NSNN=a.pth,b.pth; got {text!r}")
        if group in groups:
            raise UserError(f"--compare has the group {group} twice: give all its checkpoints at once")
        groups[group] = []
        for path in paths:
            name, mode = _path_and_mode(path, config.inference)
            groups[group].append(dataclasses.replace(config, snapshot=name, inference=mode, compare=[], out=""))
        if len(modes := sorted({one.inference for one in groups[group]})) > 1:
            raise UserError(
                f"--compare: a group has one mode, but {group} has {' and '.join(modes)}: give it to each of its "
                f"checkpoints, such as a.pth@{modes[0]},b.pth@{modes[0]}, or make two groups"
            )
    return groups


def _path_and_mode(text: str, default: str) -> tuple[str, str]:
    """("a.pth", "noiseless") from a.pth@noiseless; an existing file, or an @ in a folder's name, is just a path."""
    path, _, mode = text.rpartition("@")
    if not path or Path(text).exists() or "/" in mode:
        return text, default
    if mode not in MODES:
        raise UserError(f"--compare: there is no file {text}, and after @ comes {' or '.join(MODES)}, not {mode!r}")
    return path, mode


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """The accuracy of one snapshot under one condition."""

    mean: float
    draws_std: float | None
    correct: np.ndarray  # [N]: the share of draws that classified each sample correctly
    reliable: bool = True


def compare(groups: dict[str, list[SnapshotResults]]) -> tuple[list[Row], list[Row]]:
    """Compare the groups under every condition that some group has, and every attack that all have.

    Perturbed spikes, for example, are a condition that a group without spikes does not have.

    Returns:
        A row for each condition, and a row for each perturbation's mean over its strengths (of attacks: only "all").
        Differences are positive where the first group is more accurate; those of means have a `p_holm`.
    """
    tables = {group: [_accuracies(results) for results in snapshots] for group, snapshots in groups.items()}
    having: dict[Key, list[str]] = {}  # groups, all snapshots of which have the condition
    for group, of_group in tables.items():
        for key in of_group[0]:
            if all(key in table for table in of_group):
                having.setdefault(key, []).append(group)
    shown = [key for key in having if key.attack is None or len(having[key]) == len(tables)]
    shown.sort(key=lambda key: key.attack is not None)  # what the first group does not have comes after its attacks
    by_test: dict[str, list[Key]] = {}
    for key in shown:
        if not _is_single_attack(key):
            by_test.setdefault(key.test, []).append(key)

    def row(keys: list[Key], is_mean: bool = False) -> Row:
        return _row(keys, {group: tables[group] for group in having[keys[0]]}, is_mean)

    summary = [row(keys, is_mean=True) for keys in by_test.values()]
    for pair in itertools.combinations(tables, 2):
        differences = [one for _, one in _of_pair(summary, *pair)]
        joint = [max(one.p, 1.0 if one.seeds.p is None else one.seeds.p) for one in differences]
        for difference, p in zip(differences, holm(joint)):
            difference.p_holm = p
    return [row([key]) for key in shown], summary


def _is_single_attack(key: Key) -> bool:
    """Whether this is one of several attacks, whose joint result has a key of its own."""
    return key.attack not in (None, ALL)


def _accuracies(results: SnapshotResults) -> dict[Key, Accuracy]:
    table = {}
    for name, points in results.perturbations.items():
        for point in points:
            if name == CLEAN or point.severity != 0:
                of = "" if name == CLEAN else unit(name)
                key = Key(name, of, point.severity, point.strength, attack=None, norm=None)
                correct = np.array(point.times_correct) / len(point.accuracy_draws)
                table[key] = Accuracy(point.accuracy_mean, point.accuracy_std, correct)
    if attacks := results.reports.get(ATTACKS):
        for row in attacks.attacks:
            norm = row.norm.capitalize()
            test, of = f"attack ({norm}): {row.attack}", f"{norm} radius (pixel range 1)"
            key = Key(test, of, severity=None, strength=row.eps, attack=row.attack, norm=row.norm)
            correct = np.array(row.score.times_correct) / row.score.draws
            table[key] = Accuracy(row.score.accuracy, row.score.accuracy_std, correct, attacks.reliable)
    return table


def _row(keys: list[Key], tables: dict[str, list[dict[Key, Accuracy]]], is_mean: bool = False) -> Row:
    """The row of one condition, or of the mean over several strengths of a perturbation."""
    reliable = True
    groups: dict[str, GroupAccuracy] = {}
    means: dict[str, list[float]] = {}
    correct: dict[str, np.ndarray] = {}
    for group, snapshots in tables.items():
        means[group] = []
        found: list[Accuracy] = []
        for table in snapshots:
            of_snapshot = [table[key] for key in keys]
            means[group].append(fmean(one.mean for one in of_snapshot))
            found += of_snapshot
        correct[group] = np.mean([one.correct for one in found], axis=0)
        deviations = [one.draws_std for one in found]
        draws_std = None if None in deviations else fmean(deviations)
        groups[group] = GroupAccuracy(**vars(seed_interval(means[group])), draws_std=draws_std)
        reliable = reliable and all(one.reliable for one in found)
    differences = []
    for first, second in itertools.combinations(tables, 2):
        of_samples = paired_difference(correct[first], correct[second])
        seeds = seed_difference(means[first], means[second])
        differences.append(Difference(first, second, **vars(of_samples), seeds=seeds))
    key = dataclasses.asdict(keys[0])
    return Row(**key, reliable=reliable, groups=groups, differences=differences, is_mean=is_mean)


def _of_pair(rows: list[Row], first: str, second: str) -> list[tuple[Row, Difference]]:
    """The rows that have a difference of two groups, with this difference."""
    return [(row, one) for row in rows for one in row.differences if (one.first, one.second) == (first, second)]


def verdicts(summary: list[Row]) -> list[str]:
    """Sentences that say which differences exceed chance, over samples and over seeds (p below 0.05)."""
    sentences = []
    for pair in summary[0].differences:
        first, second = pair.first, pair.second
        of_pair = _of_pair(summary, first, second)
        if pair.seeds.low is None:
            sentences += _of_single_seeds(of_pair)
            continue
        is_first, is_second = f"{first} is more accurate than {second}", f"{second} is more accurate than {first}"
        undecided = f"No difference beyond chance between {first} and {second}"
        doubtful = f"{first} and {second} are not compared, because gates of the attacks failed"
        found = {is_first: [], is_second: [], undecided: [], doubtful: []}
        for row, one in of_pair:
            if not row.reliable:
                found[doubtful].append(row.test)
            elif one.p_holm < 0.05:
                found[is_first if one.difference > 0 else is_second].append(f"{row.test} (p {one.p_holm:.3f})")
            else:
                found[undecided].append(row.test)
        sentences += [f"{verdict}: {', '.join(tests)}." for verdict, tests in found.items() if tests]
    return sentences


def _of_single_seeds(of_pair: list[tuple[Row, Difference]]) -> list[str]:
    """What one network of each group says, and what it does not."""
    first, second = of_pair[0][1].first, of_pair[0][1].second
    points = []
    for row, one in of_pair:
        if row.reliable:
            points.append(f"{row.test} {100 * one.difference:+.1f}{'' if one.p < 0.05 else ' (within chance)'}")
    return [
        f"{first} minus {second}, in points of accuracy: {', '.join(points)}.",
        f"A single seed per group cannot tell {first} from {second}; compare several.",
    ]


def label(row: Row) -> str:
    """A row's perturbation and strength; an Linf radius of whole 8-bit steps is shown as n/255."""
    if row.test == CLEAN or row.is_mean:
        return row.test
    steps = 255 * row.strength
    is_whole = row.norm == "linf" and abs(steps - round(steps)) < 1e-6
    strength = f"{steps:.0f}/255" if is_whole else f"{row.strength:.4g}"
    return f"{row.test} {strength}"


def bounds(low: float | None, high: float | None) -> str:
    """An interval in per cent, or a dash."""
    return "-" if low is None else f"[{100 * low:.1f}, {100 * high:.1f}]"


def interval(mean: float, one: GroupAccuracy | Difference) -> str:
    """A mean and its interval, if there is one, in per cent."""
    return f"{100 * mean:.2f}" + ("" if one.low is None else f" {bounds(one.low, one.high)}")


def table(rows: list[Row], modes: dict[str, str], more: dict[str, dict[str, str]] | None = None) -> str:
    """The comparison as text: accuracy in per cent, mean over seeds and its interval, a column for each group.

    Args:
        rows: single attacks, which are in the report, are left out.
        modes: {group: its mode}.
        more: further rows, {label: {group: value}}.
    """
    lines = ["test accuracy, %".ljust(40) + "".join(f"{group:>24}" for group in rows[0].groups)]
    lines.append("inference".ljust(40) + "".join(f"{modes[group]:>24}" for group in rows[0].groups))
    for row in rows:
        if _is_single_attack(row):
            continue
        line = f"{label(row)[:40]:40}"
        for group in rows[0].groups:
            one = row.groups.get(group)
            cell = "-" if one is None else interval(one.mean, one)
            if one is not None and one.low is None and one.draws_std is not None:
                cell += f" +- {100 * one.draws_std:.2f}"
            line += f"{cell:>24}"
        lines.append(line + ("" if row.reliable else "   not reliable: gates failed"))
    for name, values in (more or {}).items():
        lines.append(f"{name[:40]:40}" + "".join(f"{values.get(group, '-'):>24}" for group in rows[0].groups))
    return "\n".join(lines)

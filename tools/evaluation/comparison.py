"""Several kinds of networks, several snapshots (training seeds) of each, under the same tests: what differs."""

import itertools
from statistics import fmean
from typing import NamedTuple

import numpy as np

from tools.analysis.statistics import holm, paired_difference, seed_difference, seed_interval

from .conditions import CLEAN, unit

ATTACK, ALL = "attack (", ": all"  # how the names of attacks begin, and that of the best of them on each image
NORMS = {"linf": "Linf", "l2": "L2"}


def parse_kinds(texts):
    """{kind: [snapshot, ...]} of texts such as NSNN=a.pth,b.pth; ValueError for other texts."""
    kinds = {}
    for text in texts:
        kind, equals, paths = text.partition("=")
        snapshots = [path for path in paths.split(",") if path]
        if not kind or not equals or not snapshots:
            raise ValueError(f"--compare takes KIND=a.pth,b.pth, as NSNN=a.pth,b.pth; got {text!r}")
        if kind in kinds:
            raise ValueError(f"--compare has the kind {kind} twice: give all its snapshots at once")
        kinds[kind] = snapshots
    return kinds


def compare(kinds):
    """Every test that all snapshots went through, with intervals over seeds and the differences of the kinds.

    Args:
        kinds: {kind: list of results of `Evaluation.run`, one for each snapshot}.

    Returns:
        (rows, summary).

        rows: for each test and strength, {"test", "of" (what the strength is), "severity", "strength", "reliable"
        (False where a gate of the attacks failed), "kinds": {kind: `seed_interval` of accuracy, and "draws_std": mean
        over snapshots of the standard deviation over noise draws, None for single draws}, "differences": list of
        {"first", "second", `paired_difference`, "seeds": `seed_difference`}}. A difference is positive where the
        first kind is the more accurate.

        summary: the same of each test's mean over its strengths; of attacks, only of "all". Here a difference has
        also "p_holm": the larger of the p over samples and that over seeds, so that only a difference beyond both
        kinds of chance has a small one, corrected for all tests of the same two kinds.
    """
    tables = {kind: [_accuracies(results) for results in snapshots] for kind, snapshots in kinds.items()}
    shared = [
        key
        for key in next(iter(tables.values()))[0]
        if all(key in table for snapshots in tables.values() for table in snapshots)
    ]
    rows = [_row(key, tables, [key]) for key in shared]
    by_test = {}
    for key in shared:
        if not key.test.startswith(ATTACK) or key.test.endswith(ALL):
            by_test.setdefault(key.test, []).append(key)
    summary = [_row(keys[0], tables, keys) for keys in by_test.values()]
    for row in summary:
        del row["severity"], row["strength"]
    for number in range(len(summary[0]["differences"]) if summary else 0):
        differences = [row["differences"][number] for row in summary]
        joint = [max(one["p"], 1.0 if one["seeds"]["p"] is None else one["seeds"]["p"]) for one in differences]
        for difference, p in zip(differences, holm(joint)):
            difference["p_holm"] = p
    return rows, summary


class Key(NamedTuple):
    """What a number belongs to."""

    test: str
    of: str  # what the strength is
    severity: int
    strength: float


class Outcome(NamedTuple):
    """One test of one snapshot."""

    accuracy: float
    draws_std: float
    correct: np.ndarray  # of each sample, the share of draws; [N]
    reliable: bool = True


def _accuracies(results):
    """{`Key`: `Outcome`} of one snapshot."""
    table = {}
    for name, points in results["perturbations"].items():
        for point in points:
            if name == CLEAN or point["severity"] != 0:
                correct = np.array(point["times_correct"]) / len(point["accuracy_draws"])
                key = Key(name, "" if name == CLEAN else unit(name), point["severity"], point["strength"])
                table[key] = Outcome(point["accuracy_mean"], point["accuracy_std"], correct)
    report = results.get("attacks", {"attacks": []})
    for row in report["attacks"]:
        norm = NORMS[row["norm"]]
        key = Key(f"{ATTACK}{norm}): {row['attack']}", f"{norm} radius (pixel range 1)", None, row["eps"])
        correct = np.array(row["times_correct"]) / row["draws"]
        table[key] = Outcome(row["accuracy"], row["accuracy_std"], correct, report["reliable"])
    return table


def _row(key, tables, keys):
    """The row of one key, or of the mean over several."""
    found = {kind: [[table[one] for one in keys] for table in snapshots] for kind, snapshots in tables.items()}
    means = {kind: [fmean(one.accuracy for one in ones) for ones in snapshots] for kind, snapshots in found.items()}
    correct = {
        kind: np.mean([one.correct for ones in snapshots for one in ones], axis=0) for kind, snapshots in found.items()
    }
    deviations = {kind: [one.draws_std for ones in snapshots for one in ones] for kind, snapshots in found.items()}
    return {
        **key._asdict(),
        "reliable": all(one.reliable for snapshots in found.values() for ones in snapshots for one in ones),
        "kinds": {
            kind: {
                **seed_interval(means[kind]),
                "draws_std": None if None in deviations[kind] else fmean(deviations[kind]),
            }
            for kind in found
        },
        "differences": [
            {
                "first": first,
                "second": second,
                **paired_difference(correct[first], correct[second]),
                "seeds": seed_difference(means[first], means[second]),
            }
            for first, second in itertools.combinations(found, 2)
        ],
    }


def verdicts(summary, level=0.05):
    """In words: which differences are beyond the chance of samples and of seeds; a list of sentences."""
    sentences = []
    for number in range(len(summary[0]["differences"]) if summary else 0):
        first, second = (summary[0]["differences"][number][key] for key in ("first", "second"))
        if any(row["differences"][number]["seeds"]["low"] is None for row in summary):
            sentences.append(f"{first} and {second} cannot be told apart by a single seed of a kind; compare several.")
            continue
        better, doubtful, open_ = {first: [], second: []}, [], []
        for row in summary:
            one = row["differences"][number]
            if not row["reliable"]:
                doubtful.append(row["test"])
            elif one["p_holm"] < level:
                better[first if one["difference"] > 0 else second].append(f"{row['test']} (p {one['p_holm']:.3f})")
            else:
                open_.append(row["test"])
        for kind, other in ((first, second), (second, first)):
            if better[kind]:
                sentences.append(f"{kind} is more accurate than {other}: {', '.join(better[kind])}.")
        if open_:
            sentences.append(f"{first} and {second}, no difference beyond chance: {', '.join(open_)}.")
        if doubtful:
            sentences.append(
                f"{first} and {second}, not judged, as gates of the attacks failed: {', '.join(doubtful)}."
            )
    return sentences


def label(row):
    """A row's test and strength; radii of attacks that are whole steps of 8 bits as such."""
    if row["test"] == CLEAN or "strength" not in row:
        return row["test"]
    steps = 255 * row["strength"]
    is_radius = row["test"].startswith(f"{ATTACK}{NORMS['linf']}")
    strength = f"{steps:.0f}/255" if is_radius and abs(steps - round(steps)) < 1e-6 else f"{row['strength']:.4g}"
    return f"{row['test']} {strength}"


def table(rows):
    """The comparison as text: accuracy in per cent, mean over seeds and its interval, a column for each kind."""
    if not rows:
        return "no test in common"
    kinds = list(rows[0]["kinds"])
    lines = ["test accuracy, %".ljust(40) + "".join(f"{kind:>24}" for kind in kinds)]
    for row in rows:
        cells = "".join(f"{_cell(row['kinds'][kind]):>24}" for kind in kinds)
        doubt = "" if row["reliable"] else "   not reliable: gates failed"
        lines.append(f"{label(row)[:40]:40}{cells}{doubt}")
    return "\n".join(lines)


def _cell(interval):
    mean, low, high, std = (
        None if interval[key] is None else 100 * interval[key] for key in ("mean", "low", "high", "draws_std")
    )
    if low is not None:
        return f"{mean:.2f} [{low:.1f}, {high:.1f}]"
    return f"{mean:.2f}" if std is None else f"{mean:.2f} +- {std:.2f}"

"""Several kinds of networks, several snapshots (training seeds) of each, under the same tests: what differs."""

import numpy as np

from .conditions import CLEAN, unit
from .intervals import holm, paired_difference, seed_difference, seed_interval


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
        List of {"test", "of" (what the strength is), "severity", "strength", "kinds": {kind: `seed_interval` of
        accuracy, and "draws_std": mean over snapshots of the standard deviation over noise draws}, "differences":
        list of {"first", "second", `paired_difference`, "p_holm", "seeds": `seed_difference`}}. A difference is
        positive where the first kind is the more accurate. p_holm is corrected for all tests of the same two kinds.
    """
    tables = {kind: [_accuracies(results) for results in snapshots] for kind, snapshots in kinds.items()}
    shared = [
        key
        for key in next(iter(tables.values()))[0]
        if all(key in table for snapshots in tables.values() for table in snapshots)
    ]
    rows = [
        _row(key, {kind: [table[key] for table in snapshots] for kind, snapshots in tables.items()}) for key in shared
    ]
    for number in range(len(rows[0]["differences"]) if rows else 0):
        differences = [row["differences"][number] for row in rows]
        for difference, p in zip(differences, holm([one["p"] for one in differences])):
            difference["p_holm"] = p
    return rows


def _accuracies(results):
    """{(test, what its strength is, severity, strength): (accuracy, its deviation, share of draws correct [N])}."""
    table = {}
    for name, points in results["perturbations"].items():
        for point in points:
            if name == CLEAN or point["severity"] != 0:
                correct = np.array(point["times_correct"]) / len(point["accuracy_draws"])
                key = (name, "" if name == CLEAN else unit(name), point["severity"], point["strength"])
                table[key] = (point["accuracy_mean"], point["accuracy_std"], correct)
    for row in results.get("attacks", {}).get("attacks", []):
        correct = np.array(row["times_correct"]) / row["draws"]
        of = f"{row['norm']} radius (pixel range 1)"
        table[f"attack: {row['attack']}", of, None, row["eps"]] = (row["accuracy"], row["accuracy_std"], correct)
    return table


def _row(key, kinds):
    test, of, severity, strength = key
    means = {kind: [accuracy for accuracy, _, _ in snapshots] for kind, snapshots in kinds.items()}
    correct = {kind: np.mean([share for _, _, share in snapshots], axis=0) for kind, snapshots in kinds.items()}
    labels = list(kinds)
    differences = [
        {
            "first": first,
            "second": second,
            **paired_difference(correct[first], correct[second]),
            "seeds": seed_difference(means[first], means[second]),
        }
        for index, first in enumerate(labels)
        for second in labels[index + 1 :]
    ]
    intervals = {
        kind: {**seed_interval(means[kind]), "draws_std": float(np.mean([std for _, std, _ in snapshots]))}
        for kind, snapshots in kinds.items()
    }
    return dict(test=test, of=of, severity=severity, strength=strength, kinds=intervals, differences=differences)


def survives(difference, level=0.05):
    """Whether a difference is beyond chance of the test samples (after Holm's correction) and of the seeds."""
    p_seeds = difference["seeds"]["p"]
    return difference["p_holm"] < level and p_seeds is not None and p_seeds < level


def table(rows):
    """The comparison as text: accuracy in per cent, mean over seeds and its interval, a column for each kind."""
    if not rows:
        return "no test in common"
    kinds = list(rows[0]["kinds"])
    lines = ["test accuracy, %".ljust(36) + "".join(f"{kind:>24}" for kind in kinds)]
    for row in rows:
        name = row["test"] if row["test"] == CLEAN else f"{row['test']} {row['strength']:.4g}"
        cells = "".join(f"{_cell(row['kinds'][kind]):>24}" for kind in kinds)
        marks = ", ".join(
            f"{one['first']} {'better' if one['difference'] > 0 else 'worse'} than {one['second']}"
            for one in row["differences"]
            if survives(one)
        )
        lines.append(f"{name[:36]:36}{cells}   {marks}".rstrip())
    return "\n".join(lines)


def _cell(interval):
    mean, low, high = (None if interval[key] is None else 100 * interval[key] for key in ("mean", "low", "high"))
    return f"{mean:.2f} +- {100 * interval['draws_std']:.2f}" if low is None else f"{mean:.2f} [{low:.1f}, {high:.1f}]"

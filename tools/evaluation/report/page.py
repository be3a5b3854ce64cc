"""report.html: one file with all pictures inside, which needs no network."""

import base64
import dataclasses
import io
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.figure import Figure

from tools.evaluation.comparison import bounds, interval, label, verdicts
from tools.evaluation.results import Document, Evaluation, Row

from . import figures

VERDICTS = {"passed": "all gates passed", "failed": "not reliable: gates failed"}
WORST = (
    "The test samples with the highest loss, the worst first, of the first network of each group: class, prediction, "
    "and the probability that the network gives to its prediction."
)


@dataclasses.dataclass
class Table:
    """A table. With a title, it is collapsed behind the title and the verdict, "passed" or "failed"."""

    head: list[str]
    rows: list[list[Any]]
    title: str = ""
    verdict: str = ""


@dataclasses.dataclass
class Section:
    """A heading, and under it blocks: small print, lists of sentences, tables and pictures."""

    heading: str
    blocks: list[str | list[str] | Table | Figure]


def missing(heading: str, flag: str) -> Section:
    """The section for a part that was not measured, with the flag that measures it."""
    return Section(heading, [f"Not measured in this run: add {flag}."])


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}"


def count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def comparison(rows: list[Row]) -> Table:
    """A table of accuracies and their differences, with p-values (means over strengths) or deviations (others)."""
    first, is_mean = rows[0], rows[0].is_mean
    head = ["condition, mean over strengths" if is_mean else "condition"]
    head += [f"{group}, % [95 % over seeds]" for group in first.groups]
    if not is_mean:
        head += [f"{group}, over draws" for group in first.groups]
    for one in first.differences:
        head += [f"{one.first} - {one.second} [95 % over samples]", "[95 % over seeds]"]
        if is_mean:
            head.append("p (Holm)")
    lines = []
    for row in rows:
        cells = [label(row) + ("" if row.reliable else " (not reliable)")]
        accuracies = [row.groups.get(group) for group in first.groups]
        cells += ["-" if one is None else interval(one.mean, one) for one in accuracies]
        if not is_mean:
            cells += ["-" if one is None else percent(one.draws_std) for one in accuracies]
        by_pair = {(one.first, one.second): one for one in row.differences}
        for pair in first.differences:
            one = by_pair.get((pair.first, pair.second))
            if one is None:
                cells += ["-"] * (3 if is_mean else 2)
                continue
            cells += [interval(one.difference, one), bounds(one.seeds.low, one.seeds.high)]
            if is_mean:
                cells.append("-" if one.seeds.low is None else f"{one.p_holm:.3f}")
        lines.append(cells)
    return Table(head, lines)


def render(evaluation: Evaluation, measured: list[Section], document: Document) -> str:
    """The page as text, with the sections of the measurements."""
    facts = {"command": " ".join(["python", *document.command]), **document.provenance}
    facts["processor"] = document.machine.processor
    sections = [
        Section("Networks", _networks(evaluation)),
        Section("What differs", _differences(evaluation)),
        *measured,
        Section("Confusion matrix", [figures.confusion(evaluation)]),
        Section("Worst samples", [WORST, figures.worst(evaluation)]),
        Section("How it was made", [Table([], [[name, value] for name, value in facts.items()])]),
    ]
    groups = ", ".join(f"{group} ({mode})" for group, mode in evaluation.modes.items())
    title = f"Evaluation on {evaluation.dataset.name}: {groups}"
    text = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    template = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined).from_string(text)
    return template.render(title=title, sections=sections, verdicts=VERDICTS, png=_png)


def _networks(evaluation: Evaluation) -> list[Any]:
    rows = []
    for group, one in evaluation.snapshots():
        network, clean = one.identity.network, one.clean
        row = [group, *(network[name] for name in ("model", "neuron", "width", "timestep"))]
        row += ["-" if one.mode == "deterministic" else network["sigma"], one.mode, one.seed]
        rows.append([*row, percent(clean.accuracy_mean), percent(clean.accuracy_std), one.identity.snapshot])
    head = ["group", "model", "neuron", "width", "T", "sigma", "inference", "seed"]
    head += ["clean accuracy, %", "over draws", "snapshot"]
    note = f"{one.identity.test_images} test samples"
    if all(one.identity.training_seed is not None for _, one in evaluation.snapshots()):
        note += ", none of which was used for training or to choose the epoch"
    if one.identity.recalibrate:
        note += f"; batch normalisation estimated again by {one.identity.recalibrate} training samples"
    return [Table(head, rows), f"{note}. Sigma is the scale of the noise."]


def _differences(evaluation: Evaluation) -> list[Any]:
    """Which differences exceed chance, in words and numbers."""
    if len(evaluation.groups) == 1:
        return ["One group of networks: nothing to compare. Give --compare NSNN=a.pth,b.pth SNN=c.pth,d.pth."]
    note = (
        "Each row is the mean over the strengths. p is the larger of the p-values over test samples (paired bootstrap) "
        "and over training seeds (Welch's t-test), with Holm's correction over all tests of the two groups. A "
        "difference exceeds chance if p is below 0.05; with few seeds, few do."
    )
    return [verdicts(evaluation.summary), note, comparison(evaluation.summary)]


def _png(figure: Figure) -> str:
    """A figure as a PNG file in base 64."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return base64.b64encode(buffer.getvalue()).decode()

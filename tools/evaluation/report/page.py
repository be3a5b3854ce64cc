"""report.html: one file that holds all its pictures and needs no network."""

from pathlib import Path
from typing import Any

import jinja2

from tools.evaluation.comparison import label, verdicts
from tools.evaluation.measurements import MEASUREMENTS
from tools.evaluation.results import Evaluation

from . import figures
from .blocks import Section, Table, differences, interval, or_dash, percent, png

VERDICTS = {"passed": "all gates passed", "failed": "not reliable: gates failed"}


def render(evaluation: Evaluation, document: dict[str, Any]) -> str:
    """The page, as text.

    Args:
        document: the content of results.json, which says how it was made.
    """
    sections = [Section("Networks", _networks(evaluation)), Section("What differs", _differences(evaluation))]
    for measurement in MEASUREMENTS:
        sections += measurement.sections(evaluation)
    sections += [
        Section("Confusion matrix", [figures.confusion(evaluation)]),
        Section("Worst images", [figures.worst(evaluation)]),
        Section("How it was made", [_made(document)]),
    ]
    title = f"Evaluation on {evaluation.dataset}: {', '.join(evaluation.groups)}"
    text = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    template = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined).from_string(text)
    return template.render(title=title, sections=sections, verdicts=VERDICTS, png=png)


def _networks(evaluation: Evaluation) -> list[Any]:
    rows = []
    for group, snapshots in evaluation.groups.items():
        for one in snapshots:
            network = one.identity["network"]
            row = [group, *(network[name] for name in ("model", "neuron", "width", "timestep"))]
            row += [network["sigma"] if one.is_noisy else "-", or_dash(one.identity["training_seed"])]
            row += [percent(one.clean.accuracy_mean), percent(one.clean.accuracy_std), one.identity["snapshot"]]
            rows.append(row)
    head = ["group", "model", "neuron", "width", "T", "sigma", "seed", "clean accuracy, %", "over draws", "snapshot"]
    identities = [one.identity for snapshots in evaluation.groups.values() for one in snapshots]
    note = f"{identities[0]['test_images']} test samples"
    if all(identity["training_seed"] is not None for identity in identities):
        note += ", none of which was used for training or to choose the epoch"
    return [Table(head, rows), f"{note}. Sigma is the scale of the noise."]


def _differences(evaluation: Evaluation) -> list[Any]:
    """Which differences are beyond chance: in words, and the numbers."""
    groups = list(evaluation.groups)
    if len(groups) == 1:
        return ["One group of networks: nothing to compare. Give --compare NSNN=a.pth,b.pth SNN=c.pth,d.pth."]
    note = (
        "Each test is the mean over its strengths. p is the larger of two: over the test samples (paired bootstrap), "
        "and over the training seeds (Welch's t-test), with Holm's correction for all tests of two groups. Beyond "
        "chance is p below 0.05; with few seeds, little is."
    )
    head = ["test, mean over strengths", *(f"{group}, % [95 % over seeds]" for group in groups)]
    for one in evaluation.summary[0].differences:
        head += [f"{one.first} - {one.second} [95 % over samples]", "[95 % over seeds]", "p (Holm)"]
    rows = []
    for row in evaluation.summary:
        rows.append([label(row), *(interval(row.groups[group]) for group in groups), *differences(row)])
    return [verdicts(evaluation.summary), note, Table(head, rows)]


def _made(document: dict[str, Any]) -> Table:
    facts = {"command": " ".join(["python", *document["command"]]), **document["provenance"]}
    facts["processor"] = document["machine"]["processor"]
    return Table([], [[name, value] for name, value in facts.items()])

"""report.html: one file that holds all its pictures and needs no network."""

import base64
import html
import io

from models.registry import NOISY_NEURONS
from tools.evaluation.comparison import label, verdicts
from tools.evaluation.conditions import CLEAN

from . import figures
from .figures import mean_rows

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid #ddd; }
table { border-collapse: collapse; font-size: 13px; } td, th { padding: .15rem .5rem; text-align: right; }
th { border-bottom: 1px solid #999; } td:first-child, th:first-child { text-align: left; } td { white-space: nowrap; }
tr:nth-child(even) td { background: #f6f6f6; } img { max-width: 100%; } .passed { color: #060; }
.failed { color: #b00; font-weight: bold; } .note { color: #555; font-size: 13px; } code { font-size: 12px; }
"""


def render(document, classes, sample):
    """The page, as text.

    Args:
        document: of `document.assemble`.
        classes: their names, in the order of the labels.
        sample: index of a test sample -> image [C, H, W] in [0, 1], numpy.
    """
    title = f"Evaluation on {document['dataset']}: {', '.join(document['kinds'])}"
    sections = [
        ("Networks", _networks(document)),
        ("What differs", _verdicts(document)),
        ("Perturbations", _picture(figures.severities(document), "--perturbation") + _table(document)),
        ("Attacks", _picture(figures.attacks(document), "--attack_preset quick") + _gates(document)),
        ("Reliability", _picture(figures.reliability(document), "--uncertainty")),
        (
            "Accuracy and calibration against compute",
            _picture(figures.draws(document), "--uncertainty") + _uncertainty(document),
        ),
        (
            "Firing rates and energy",
            _picture(figures.firing_rates(document), "--efficiency") + _energy(document),
        ),
        ("Confusion matrix", _picture(figures.confusion(document, classes))),
        ("Worst images", _picture(figures.worst(document, classes, sample))),
        ("How it was made", _made(document)),
    ]
    body = "\n".join(f"<section><h2>{_text(name)}</h2>\n{content}</section>" for name, content in sections)
    head = f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{_text(title)}</title>'
    return f"{head}<style>{STYLE}</style></head><body><h1>{_text(title)}</h1>\n{body}\n</body></html>\n"


def _networks(document):
    rows = []
    for kind, snapshots in document["kinds"].items():
        for one in snapshots:
            identity, clean = one["identity"], one["perturbations"][CLEAN]["points"][0]
            network = identity["network"]
            rows.append(
                [
                    kind,
                    *(network[name] for name in ("model", "neuron", "width", "timestep")),
                    network["sigma"] if network["neuron"] in NOISY_NEURONS else "-",
                    _or_dash(identity["training_seed"]),
                    _percent(clean["accuracy_mean"]),
                    _percent(clean["accuracy_std"]),
                    identity["snapshot"],
                ]
            )
    head = ["kind", "model", "neuron", "width", "T", "sigma", "seed", "clean accuracy, %", "over draws", "snapshot"]
    identities = [one["identity"] for snapshots in document["kinds"].values() for one in snapshots]
    note = f"{identities[0]['test_images']} test samples"
    if all(identity["training_seed"] is not None for identity in identities):
        note += ", none of which was trained on or chosen by"
    return _html_table(head, rows) + _note(f"{note}. Sigma is the scale of the noise.")


def _verdicts(document):
    """In words: which differences are beyond chance; and the numbers."""
    kinds = list(document["kinds"])
    if len(kinds) == 1:
        return _note("One kind of network: nothing to compare. Give --compare NSNN=a.pth,b.pth SNN=c.pth,d.pth.")
    note = (
        "Each test is the mean over its strengths. p is the larger of two: over the test samples (paired bootstrap), "
        "and over the training seeds (Welch's t-test), with Holm's correction for all tests of two kinds. Beyond "
        "chance is p below 0.05; with few seeds, little is."
    )
    pairs = document["summary"][0]["differences"]
    head = ["test, mean over strengths", *(f"{kind}, % [95 % over seeds]" for kind in kinds)]
    for one in pairs:
        head += [f"{one['first']} - {one['second']} [95 % over samples]", "[95 % over seeds]", "p (Holm)"]
    rows = [[label(row), *_intervals(row, kinds), *_differences(row, with_p=True)] for row in document["summary"]]
    items = "".join(f"<li>{_text(item)}</li>" for item in verdicts(document["summary"]))
    return f"<ul>{items}</ul>{_note(note)}{_html_table(head, rows)}"


def _table(document):
    kinds = list(document["kinds"])
    pairs = document["tests"][0]["differences"]
    head = ["test", *(f"{kind}, % [95 % over seeds]" for kind in kinds), *(f"{kind}, over draws" for kind in kinds)]
    for one in pairs:
        head += [f"{one['first']} - {one['second']} [95 % over samples]", "[95 % over seeds]"]
    rows = [
        [
            label(row) + ("" if row["reliable"] else " (not reliable)"),
            *_intervals(row, kinds),
            *(_percent(row["kinds"][kind]["draws_std"]) for kind in kinds),
            *_differences(row),
        ]
        for row in document["tests"]
    ]
    note = "Intervals of single rows are not corrected for their number; the table above judges."
    return _html_table(head, rows) + (_note(note) if pairs else "")


def _intervals(row, kinds):
    return [_interval(row["kinds"][kind]) for kind in kinds]


def _differences(row, with_p=False):
    """Cells of a row's differences: over samples, over seeds, and p."""
    cells = []
    for one in row["differences"]:
        cells += [_interval({**one, "mean": one["difference"]}), _bounds(one["seeds"]) or "-"]
        if with_p:
            cells.append("-" if one["seeds"]["low"] is None else f"{one['p_holm']:.3f}")
    return cells


def _gates(document):
    parts = []
    for kind, snapshots in document["kinds"].items():
        for one in snapshots:
            if "attacks" not in one:
                continue
            report = one["attacks"]
            verdict = "all gates passed" if report["reliable"] else "not reliable: gates failed"
            style = "passed" if report["reliable"] else "failed"
            rows = [
                f'<tr><td>{_text(gate["name"])}</td><td class="{"passed" if gate["passed"] else "failed"}">'
                f"{'passed' if gate['passed'] else 'failed'}</td><td>{_text(gate['detail'])}</td></tr>"
                for gate in report["gates"]
            ]
            seed = _or_dash(one["identity"]["training_seed"])
            head = f"{kind}, seed {seed}: {report['label']}, preset {report['preset']}, {report['images']} images"
            parts.append(
                f'<details><summary>{_text(head)}: <span class="{style}">{verdict}</span></summary>'
                f"<table><tr><th>gate</th><th></th><th>measured</th></tr>{''.join(rows)}</table></details>"
            )
    return "".join(parts)


def _uncertainty(document):
    rows, outside, speeds = [], [], []
    for kind, snapshots in document["kinds"].items():
        reports = [one["uncertainty"] for one in snapshots if "uncertainty" in one]
        if not reports:
            continue
        last = reports[0]["curve"][-1]["draws"]
        speeds.append(f"{kind}, {_count(last, 'draw')}: {reports[0]['images_per_s']:.0f}")
        rows += [[kind, _count(row["draws"], "draw"), *_scores(row)] for row in mean_rows(reports, "curve")]
        if "more_time_steps" in reports[0]:
            more = mean_rows(reports, "more_time_steps")
            rows += [[kind, f"{row['timesteps']} time steps", *_scores(row)] for row in more]
        rows += [[kind, _count(row["draws"], "snapshot"), *_scores(row)] for row in document["ensembles"].get(kind, [])]
        found = [report["out_of_distribution"] for report in reports if "out_of_distribution" in report]
        for row in mean_rows(found, "curve") if found else []:
            values = [f"{row[key]:.3f}" for key in ("confidence", "predictive", "mutual_information")]
            outside.append([kind, f"{_count(row['draws'], 'draw')} against {found[0]['dataset']}", *values])
    if not rows:
        return ""
    text = _html_table(["kind", "averaged", "accuracy, %", *SCORES.values()], rows)
    if outside:
        head = ["kind", "area under the ROC curve", "confidence", "predictive entropy", "mutual information"]
        text += _html_table(head, outside)
    return text + _note(
        "Means over the snapshots of each kind. Calibration error (ECE) in 15 bins of equal mass; T: after a "
        f"temperature fitted on validation samples. Draws times samples per second: {'; '.join(speeds)}."
    )


SCORES = {
    "nll": "NLL",
    "nll_scaled": "NLL, T",
    "brier": "Brier",
    "brier_scaled": "Brier, T",
    "calibration_error": "ECE",
    "calibration_error_scaled": "ECE, T",
    "risk_coverage_area": "risk-coverage",
    "predictive_entropy": "entropy",
    "expected_entropy": "expected entropy",
    "mutual_information": "mutual information",
}


def _scores(row):
    return [_percent(row["accuracy"]), *(f"{row[name]:.4f}" for name in SCORES)]


def _energy(document):
    rows = []
    for kind, snapshots in document["kinds"].items():
        for one in snapshots:
            if report := one.get("efficiency"):
                numbers = [report[key] for key in ("ac", "mac", "energy_nj", "relu_ac", "relu_mac", "relu_energy_nj")]
                rows.append(
                    [kind, _or_dash(one["identity"]["training_seed"]), *(f"{number:.4g}" for number in numbers)]
                )
    if not rows:
        return ""
    head = ["kind", "seed", "accumulates", "multiply-accumulates", "nJ", "ReLU network: AC", "MAC", "nJ"]
    return _html_table(head, rows) + _note("Of one sample; 0.9 pJ an accumulate, 4.6 pJ a multiply-accumulate (45 nm).")


def _made(document):
    machine, provenance = document["machine"], document["provenance"]
    lines = [f"python {' '.join(document['command'])}", *(f"{name}: {value}" for name, value in provenance.items())]
    lines.append(f"{machine['processor']}, torch {machine['torch']}, {machine['threads']} threads")
    return "".join(f"<p><code>{_text(line)}</code></p>" for line in lines)


def _picture(figure, flag=None):
    """A figure as part of the page; where there is none, how to get it."""
    if figure is None:
        return _note(f"Not part of this run: {flag} measures it.")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return f'<p><img alt="" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"></p>'


def _html_table(head, rows):
    cells = "".join(f"<th>{_text(name)}</th>" for name in head)
    lines = "".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{cells}</tr>{lines}</table>"


def _interval(one):
    return f"{100 * one['mean']:.2f} {_bounds(one)}".rstrip()


def _bounds(one):
    return "" if one["low"] is None else f"[{100 * one['low']:.1f}, {100 * one['high']:.1f}]"


def _count(number, what):
    return f"{number} {what}{'' if number == 1 else 's'}"


def _or_dash(value):
    return "-" if value is None else value


def _percent(value):
    return "-" if value is None else f"{100 * value:.2f}"


def _note(text):
    return f'<p class="note">{_text(text)}</p>'


def _text(value):
    return html.escape(str(value))

"""report.html: one file that holds all its pictures and needs no network."""

import base64
import html
import io

from ..comparison import survives
from ..conditions import CLEAN
from . import figures

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid #ddd; }
table { border-collapse: collapse; font-size: 13px; } td, th { padding: .15rem .6rem; text-align: right; }
th { border-bottom: 1px solid #999; } td:first-child, th:first-child { text-align: left; }
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
    rows = [
        [
            kind,
            one["identity"]["network"]["model"],
            one["identity"]["network"]["neuron"],
            one["identity"]["training_seed"],
            _percent(one["perturbations"][CLEAN]["points"][0]["accuracy_mean"]),
            _percent(one["perturbations"][CLEAN]["points"][0]["accuracy_std"]),
            one["identity"]["snapshot"],
        ]
        for kind, snapshots in document["kinds"].items()
        for one in snapshots
    ]
    head = ["kind", "model", "neuron", "seed", "clean accuracy, %", "over draws", "snapshot"]
    images = next(iter(document["kinds"].values()))[0]["identity"]["test_images"]
    return _html_table(head, rows) + _note(f"{images} test samples, none of which was trained on or chosen by.")


def _verdicts(document):
    """In words: which differences are beyond chance."""
    items = []
    pairs = {(one["first"], one["second"]) for row in document["tests"] for one in row["differences"]}
    for first, second in sorted(pairs):
        found = {True: [], False: []}
        for row in document["tests"]:
            for one in row["differences"]:
                if (one["first"], one["second"]) == (first, second) and survives(one):
                    found[one["difference"] > 0].append(_name(row))
        others = len(document["tests"]) - sum(map(len, found.values()))
        for better, worse, names in ((first, second, found[True]), (second, first, found[False])):
            if names:
                items.append(f"{better} is more accurate than {worse}: {', '.join(names)}.")
        items.append(f"{first} and {second}, no difference beyond chance: {others} of {len(document['tests'])} tests.")
    if not items:
        return _note("One kind of network: nothing to compare. Give --compare NSNN=a.pth,b.pth SNN=c.pth,d.pth.")
    note = (
        "Beyond chance: p below 0.05 both for the test samples (paired bootstrap, corrected by Holm for all tests of "
        "the same two kinds) and for the training seeds (Welch's t-test). With few seeds, little is beyond chance."
    )
    return "<ul>" + "".join(f"<li>{_text(item)}</li>" for item in items) + "</ul>" + _note(note)


def _table(document):
    kinds = list(document["kinds"])
    pairs = document["tests"][0]["differences"] if document["tests"] else []
    head = ["test", *(f"{kind}, % [95 % over seeds]" for kind in kinds), *(f"{kind}, over draws" for kind in kinds)]
    head += [f"{one['first']} - {one['second']} [95 % over samples], p (Holm), p (seeds)" for one in pairs]
    rows = [
        [
            _name(row),
            *(_interval(row["kinds"][kind]) for kind in kinds),
            *(_percent(row["kinds"][kind]["draws_std"]) for kind in kinds),
            *(
                f"{_interval({**one, 'mean': one['difference']})}, {one['p_holm']:.3f}, {_p(one['seeds']['p'])}"
                for one in row["differences"]
            ),
        ]
        for row in document["tests"]
    ]
    return _html_table(head, rows)


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
            seed = one["identity"]["training_seed"]
            head = f"{kind}, seed {seed}: {report['label']}, preset {report['preset']}, {report['images']} images"
            parts.append(
                f'<details><summary>{_text(head)}: <span class="{style}">{verdict}</span></summary>'
                f"<table><tr><th>gate</th><th></th><th>measured</th></tr>{''.join(rows)}</table></details>"
            )
    return "".join(parts)


def _uncertainty(document):
    rows, speeds = [], []
    for kind, snapshots in document["kinds"].items():
        reports = [one["uncertainty"] for one in snapshots if "uncertainty" in one]
        for report in reports[:1]:
            speeds.append(f"{kind}, {report['curve'][-1]['draws']} draws: {report['images_per_s']:.0f}")
            for row in report["curve"]:
                rows.append([kind, f"{row['draws']} draws", *_scores(row)])
            for row in report.get("more_time_steps", [])[1:]:
                rows.append([kind, f"{row['timesteps']} time steps", *_scores(row)])
        rows += [[kind, f"{row['draws']} snapshots", *_scores(row)] for row in document["ensembles"].get(kind, [])]
    if not rows:
        return ""
    head = ["kind", "averaged", "accuracy, %", "NLL", "Brier", "calibration error", "with temperature", "risk-coverage"]
    text = _html_table([*head, "entropy", "mutual information"], rows)
    outside = []
    for kind, snapshots in document["kinds"].items():
        found = snapshots[0].get("uncertainty", {}).get("out_of_distribution")
        for row in found["curve"] if found else []:
            values = [f"{row[key]:.3f}" for key in ("confidence", "predictive", "mutual_information")]
            outside.append([kind, f"{row['draws']} draws against {found['dataset']}", *values])
    if outside:
        head = ["kind", "area under the ROC curve", "confidence", "predictive entropy", "mutual information"]
        text += _html_table(head, outside)
    return text + _note(
        "First snapshot of each kind; calibration in 15 bins of equal mass, before and after a "
        f"temperature fitted on validation samples. Draws times samples per second: {'; '.join(speeds)}."
    )


def _scores(row):
    names = ("nll", "brier", "calibration_error", "calibration_error_scaled", "risk_coverage_area")
    numbers = [*(row[name] for name in names), row["predictive_entropy"], row["mutual_information"]]
    return [_percent(row["accuracy"]), *(f"{number:.4f}" for number in numbers)]


def _energy(document):
    rows = []
    for kind, snapshots in document["kinds"].items():
        for one in snapshots:
            if report := one.get("efficiency"):
                numbers = [report[key] for key in ("ac", "mac", "energy_nj", "relu_mac", "relu_energy_nj")]
                rows.append([kind, one["identity"]["training_seed"], *(f"{number:.4g}" for number in numbers)])
    if not rows:
        return ""
    head = ["kind", "seed", "accumulates", "multiply-accumulates", "nJ", "ReLU network: MAC", "nJ"]
    return _html_table(head, rows) + _note("Of one sample; 0.9 pJ an accumulate, 4.6 pJ a multiply-accumulate (45 nm).")


def _made(document):
    machine, provenance = document["machine"], document["provenance"]
    lines = [f"python {' '.join(document['command'])}", *(f"{name}: {value}" for name, value in provenance.items())]
    lines.append(f"{machine['processor']}, torch {machine['torch']}, {machine['threads']} threads")
    return "".join(f"<p><code>{_text(line)}</code></p>" for line in lines)


def _picture(figure, flag=None):
    """A figure as part of the page; where there is none, how to get it."""
    if figure is None:
        return _note(f"Not measured: {flag} does.")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return f'<p><img alt="" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"></p>'


def _html_table(head, rows):
    cells = "".join(f"<th>{_text(name)}</th>" for name in head)
    lines = "".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{cells}</tr>{lines}</table>"


def _name(row):
    return row["test"] if row["test"] == CLEAN else f"{row['test']} {row['strength']:.3g}"


def _interval(one):
    bounds = "" if one["low"] is None else f" [{100 * one['low']:.1f}, {100 * one['high']:.1f}]"
    return f"{100 * one['mean']:.2f}{bounds}"


def _p(value):
    return "-" if value is None else f"{value:.3f}"


def _percent(value):
    return f"{100 * value:.2f}"


def _note(text):
    return f'<p class="note">{_text(text)}</p>'


def _text(value):
    return html.escape(str(value))

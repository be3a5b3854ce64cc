"""One call of a testing script: comparison of kinds of networks, results.json, report.html."""

import dataclasses
import json
import re
from html.parser import HTMLParser

import jsonschema
import numpy as np
import pytest

from tools import comparison
from tools.attacks import campaign
from tools.config import EvaluationConfig, TrainConfig
from tools.experiment import Training
from tools.intervals import holm, seed_interval
from tools.testing import run_tests

SECTIONS = [
    "Networks",
    "What differs",
    "Perturbations",
    "Attacks",
    "Reliability",
    "Accuracy and calibration against compute",
    "Firing rates and energy",
    "Confusion matrix",
    "Worst images",
    "How it was made",
]


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory, stripes):
    """{neuron: paths of two seeds}."""
    paths = {}
    for neuron in ("NILIF", "LIF"):
        for seed in (0, 1):
            folder = tmp_path_factory.mktemp("runs") / f"{neuron}-{seed}"
            options = dict(epochs=4, minibatch=20, lr=0.01, histograms=False, run_dir=str(folder))
            Training(TrainConfig(model="toynet", neuron=neuron, seed=seed, **options), stripes).run()
            paths.setdefault(neuron, []).append(str(folder / "best.pth"))
    return paths


@pytest.fixture(scope="module")
def compared(snapshots, stripes, tmp_path_factory):
    """(folder, results) of a comparison with everything."""
    folder = tmp_path_factory.mktemp("comparison")
    tiny = campaign.Preset(10, 3, 2, 2, ("own", "arctangent"), (("linf", 8 / 255), ("l2", 0.5)), 6)
    config = EvaluationConfig(
        compare=[f"NSNN={','.join(snapshots['NILIF'])}", f"S<N>N={','.join(snapshots['LIF'])}"],
        out=str(folder),
        draws=2,
        perturbation=["sp", "membrane"],
        severity=[1, 5],
        uncertainty=True,
        efficiency=True,
        ood="noise",
        attack_preset="quick",
    )
    others = {"noise": dataclasses.replace(stripes, name="noise")}
    before = campaign.PRESETS["quick"]
    campaign.PRESETS["quick"] = tiny
    try:
        return folder, run_tests(config, stripes, others)
    finally:
        campaign.PRESETS["quick"] = before


class Page(HTMLParser):
    """Headings, addresses and pictures of a page."""

    def __init__(self, text):
        super().__init__()
        self.headings, self.addresses, self.tags, self._in_heading = [], [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self._in_heading = tag == "h2"
        self.addresses += [value for name, value in attributes if name in ("src", "href", "srcset", "action", "data")]

    def handle_data(self, data):
        if self._in_heading:
            self.headings.append(data)
        self._in_heading = False


def test_the_report_has_all_parts_and_no_external_address(compared):
    text = (compared[0] / "report.html").read_text()
    page = Page(text)
    assert page.headings == SECTIONS
    assert page.tags.count("img") == 7 and len(page.addresses) == 7
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert not re.search(r"https?:|//[a-z]|@import|url\(|<script|<link", re.sub(r'src="[^"]*"', "", text))
    assert "Not measured" not in text
    assert "S&lt;N&gt;N" in text and "<N>" not in text  # names are escaped
    assert text.count("upper bound on robustness") == 4 and "planted adversarial example" in text


def test_results_json_obeys_its_schema(compared, repository):
    document = json.loads((compared[0] / "results.json").read_text())
    schema = json.loads((repository / "docs" / "results.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(document)
    assert list(document["kinds"]) == ["NSNN", "S<N>N"]
    assert [one["identity"]["training_seed"] for one in document["kinds"]["NSNN"]] == [0, 1]
    assert "times_correct" not in json.dumps(document)
    assert [row["draws"] for row in document["ensembles"]["NSNN"]] == [2]
    del document["tests"][0]["kinds"]["NSNN"]["seeds"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(schema).validate(document)


def test_the_comparison_is_that_of_the_snapshots_own_results(compared, snapshots):
    folder, results = compared
    rows = json.loads((folder / "results.json").read_text())["tests"]
    names = [(row["test"], row["severity"]) for row in rows if not row["test"].startswith("attack")]
    assert names == [("clean", 0), ("sp", 1), ("sp", 5), ("membrane", 1), ("membrane", 5)]
    assert sum(row["test"].startswith("attack") for row in rows) == 7 + 6  # no Square for L2
    (row,) = (row for row in rows if (row["test"], row["severity"]) == ("membrane", 5))
    points = [one["perturbations"]["membrane"][2] for one in results["NSNN"]]
    means = [point["accuracy_mean"] for point in points]
    assert row["kinds"]["NSNN"] == {
        **seed_interval(means),
        "draws_std": pytest.approx(np.mean([p["accuracy_std"] for p in points])),
    }
    (difference,) = row["differences"]
    others = np.mean([one["perturbations"]["membrane"][2]["accuracy_mean"] for one in results["S<N>N"]])
    assert difference["difference"] == pytest.approx(np.mean(means) - others)
    assert [one["differences"][0]["p_holm"] for one in rows] == holm([one["differences"][0]["p"] for one in rows])
    for neuron in snapshots.values():
        for path in neuron:
            assert "attacks.json" in {file.name for file in (folder.__class__(path).parent / "evaluation").iterdir()}


def test_a_single_snapshot_has_its_report_beside_its_results(snapshots, stripes, tmp_path):
    config = EvaluationConfig(snapshot=snapshots["LIF"][0], out=str(tmp_path))
    results = run_tests(config, stripes)
    assert list(results) == ["LIF"]
    text = (tmp_path / "report.html").read_text()
    assert Page(text).headings == SECTIONS
    for flag in ("--perturbation", "--attack_preset quick", "--uncertainty", "--efficiency"):
        assert f"Not measured: {flag} does." in text
    document = json.loads((tmp_path / "results.json").read_text())
    assert document["tests"][0]["kinds"]["LIF"]["low"] is None and document["ensembles"] == {}


def result(hits, draws=4):
    """A result of one snapshot with a clean test and one perturbation, whose hits per sample are given."""
    point = {
        "severity": 0,
        "strength": 0.0,
        "times_correct": hits,
        "accuracy_draws": [0.0] * draws,
        "accuracy_std": 0.0,
        "accuracy_mean": sum(hits) / draws / len(hits),
    }
    return {"perturbations": {"clean": [point], "sp": [point, {**point, "severity": 1, "strength": 0.01}]}}


def test_a_difference_must_be_beyond_chance_of_samples_and_of_seeds():
    random = np.random.default_rng(0)

    def seeds(*rates):
        return [result(random.binomial(4, np.full(500, rate)).tolist()) for rate in rates]

    clear = comparison.compare({"A": seeds(0.9, 0.91, 0.89), "B": seeds(0.5, 0.51, 0.49)})
    assert [row["test"] for row in clear] == ["clean", "sp"]  # a perturbation of strength 0 is the clean test
    assert all(comparison.survives(row["differences"][0]) for row in clear)
    by_seeds = comparison.compare({"A": seeds(0.9, 0.5, 0.7), "B": seeds(0.5, 0.7, 0.6)})
    assert by_seeds[0]["differences"][0]["p_holm"] < 0.05  # the samples agree,
    assert not comparison.survives(by_seeds[0]["differences"][0])  # but another seed might not
    single = comparison.compare({"A": seeds(0.9), "B": seeds(0.5)})
    assert not comparison.survives(single[0]["differences"][0])
    text = comparison.table(clear).splitlines()
    assert text[0].split()[-2:] == ["A", "B"] and text[1].startswith("clean") and text[1].endswith("A better than B")


def test_three_kinds_are_compared_in_pairs():
    rows = comparison.compare({"A": [result([4, 4])], "B": [result([4, 0])], "C": [result([0, 0])]})
    pairs = [(one["first"], one["second"], one["difference"]) for one in rows[0]["differences"]]
    assert pairs == [("A", "B", 0.5), ("A", "C", 1.0), ("B", "C", 0.5)]


def test_tests_that_some_snapshot_lacks_are_left_out():
    other = result([4, 4])
    del other["perturbations"]["sp"]
    assert [row["test"] for row in comparison.compare({"A": [result([4, 4])], "B": [other]})] == ["clean"]


@pytest.mark.parametrize("texts", [["a.pth"], ["=a.pth"], ["NSNN="], ["NSNN=,"], ["A=a.pth", "A=b.pth"]])
def test_what_is_no_kind_with_snapshots_is_refused(texts):
    with pytest.raises(ValueError, match="--compare"):
        comparison.parse_kinds(texts)


def test_either_a_snapshot_or_a_comparison(stripes):
    for options in ({}, {"snapshot": "a.pth", "compare": ["A=a.pth"]}):
        with pytest.raises(ValueError, match="which checkpoint"):
            run_tests(EvaluationConfig(**options), stripes)

"""One call of a testing script: comparison of groups of networks, results.json, report.html."""

import dataclasses
import functools
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch
from scipy import stats

from tests.chance import ERROR
from tools.analysis import metrics
from tools.analysis.statistics import holm, seed_interval
from tools.attacks import campaign
from tools.attacks.gates import Gate
from tools.attacks.report import AttackReport, AttackResult
from tools.attacks.victim import Score
from tools.config.evaluate import EvaluationConfig
from tools.config.train import TrainConfig
from tools.errors import UserError
from tools.evaluation import comparison
from tools.evaluation.report.page import comparison as comparison_on_page
from tools.evaluation.results import Result, SnapshotResults
from tools.evaluation.run import check_comparable, run_evaluation
from tools.evaluation.snapshot import Snapshot
from tools.training.run import Training

SECTIONS = [
    "Networks",
    "What differs",
    "Perturbations",
    "Attacks",
    "Reliability",
    "Accuracy and calibration against compute",
    "Firing rates and energy",
    "Confusion matrix",
    "Worst samples",
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
    tiny = campaign.Preset(10, 5, 6, 2, 1, 2, 1, 6, 10)
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
        return folder, run_evaluation(config, stripes, others)
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
    assert page.tags.count("img") == len(page.addresses) > 0
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert not re.search(r"https?:|//[a-z]|@import|url\(|<script|<link", re.sub(r'src="[^"]*"', "", text))
    assert "Not measured in this run" not in text
    assert "S&lt;N&gt;N" in text and "<N>" not in text  # names are escaped
    assert "upper bound on robustness" in text and "planted adversarial example" in text


def test_the_code_of_the_page_reads_results(compared, repository, monkeypatch, capsys):
    folder, _ = compared
    [block] = re.findall(r"```python\n(.*?)```", (repository / "docs" / "evaluation.md").read_text(), re.DOTALL)
    monkeypatch.chdir(folder)
    exec(compile(block, "evaluation.md", "exec"), names := {})
    assert len(names["by_strength"]) == 3 and len(names["by_radius"]) > 2
    assert len(capsys.readouterr().out.splitlines()) == 4 + len(names["results"]["tests"])


def test_results_json_obeys_its_schema(compared, schema):
    document = json.loads((compared[0] / "results.json").read_text())
    schema.validate(document)
    assert list(document["kinds"]) == ["NSNN", "S<N>N"]
    assert [one["identity"]["training_seed"] for one in document["kinds"]["NSNN"]] == [0, 1]
    assert "times_correct" not in json.dumps(document)
    assert [row["draws"] for row in document["ensembles"]["NSNN"]] == [2]


SNAPSHOT = ("kinds", "NSNN", 0)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("kinds",), {}),
        (("tests",), []),
        (("tests", 0, "kinds"), {}),
        (("tests", 0, "kinds", "NSNN", "seeds"), None),
        (("tests", 0, "differences", 0, "high"), "x"),
        (("tests", 0, "differences", 0, "difference"), 5),
        (("tests", 0, "differences", 0, "seeds"), {}),
        (("summary", 0, "differences", 0, "p_holm"), 1.5),
        ((*SNAPSHOT, "identity", "network"), "x"),
        ((*SNAPSHOT, "perturbations", "clean", "points", 0, "loss_mean"), "abc"),
        ((*SNAPSHOT, "perturbations", "clean", "points", 0, "confusion"), []),
        ((*SNAPSHOT, "perturbations", "clean", "points", 0, "unknown"), 1),
        ((*SNAPSHOT, "uncertainty", "curve"), []),
        ((*SNAPSHOT, "uncertainty", "curve", 0, "nll"), None),
        ((*SNAPSHOT, "uncertainty", "curve", 0, "temperature"), -1),
        ((*SNAPSHOT, "attacks", "attacks"), []),
        ((*SNAPSHOT, "attacks", "reliable"), "yes"),
        ((*SNAPSHOT, "efficiency", "layers"), "x"),
        ((*SNAPSHOT, "efficiency", "relu_mac"), None),
    ],
    ids=lambda value: ".".join(map(str, value)) if isinstance(value, tuple) else None,
)
def test_the_schema_refuses_wrong_results(compared, schema, place, value):
    document = json.loads((compared[0] / "results.json").read_text())
    *path, last = place
    part = document
    for step in path:
        part = part[step]
    part[last] = value
    with pytest.raises(jsonschema.ValidationError):
        schema.validate(document)


def test_the_comparison_is_that_of_the_snapshots_own_results(compared, snapshots):
    folder, results = compared
    rows = json.loads((folder / "results.json").read_text())["tests"]
    names = [(row["test"], row["severity"]) for row in rows if not row["test"].startswith("attack")]
    assert names == [("clean", 0), ("sp", 1), ("sp", 5), ("membrane", 1), ("membrane", 5)]
    assert sum(row["test"].endswith(": all") for row in rows) == 4 + 4  # the radii of both norms
    (row,) = (row for row in rows if (row["test"], row["severity"]) == ("membrane", 5))
    points = [one.perturbations["membrane"][2] for one in results["NSNN"]]
    means = [point.accuracy_mean for point in points]
    assert row["kinds"]["NSNN"] == {
        **vars(seed_interval(means)),
        "draws_std": pytest.approx(np.mean([point.accuracy_std for point in points])),
    }
    (difference,) = row["differences"]
    others = np.mean([one.perturbations["membrane"][2].accuracy_mean for one in results["S<N>N"]])
    assert difference["difference"] == pytest.approx(np.mean(means) - others)
    summary = json.loads((folder / "results.json").read_text())["summary"]
    tests = ["clean", "sp", "membrane", "attack (Linf): all", "attack (L2): all"]
    assert [row["test"] for row in summary] == tests
    strengths = [row["kinds"]["NSNN"]["mean"] for row in rows if row["test"] == "sp"]
    assert summary[1]["kinds"]["NSNN"]["mean"] == pytest.approx(np.mean(strengths))
    joint = [max(one["p"], one["seeds"]["p"] or 1.0) for row in summary for one in row["differences"]]
    assert [one["p_holm"] for row in summary for one in row["differences"]] == holm(joint)
    for neuron in snapshots.values():
        for path in neuron:
            assert "attacks-quick.json" in {
                file.name for file in (folder.__class__(path).parent / "evaluation").iterdir()
            }


def test_a_single_snapshot_has_its_report_beside_its_results(snapshots, stripes, undrawn, tmp_path):
    config = EvaluationConfig(snapshot=snapshots["LIF"][0], out=str(tmp_path))
    results = run_evaluation(config, stripes)
    assert list(results) == ["LIF"]
    text = (tmp_path / "report.html").read_text()
    assert Page(text).headings == SECTIONS
    for flag in ("--perturbation", "--attack_preset quick", "--uncertainty", "--efficiency"):
        assert f"Not measured in this run: add {flag}." in text
    document = json.loads((tmp_path / "results.json").read_text())
    assert document["tests"][0]["kinds"]["LIF"]["low"] is None and document["ensembles"] == {}


def test_another_score_of_uncertainty_is_in_results_and_page(
    snapshots, stripes, undrawn, tmp_path, monkeypatch, schema
):
    original = metrics.scores
    monkeypatch.setattr(metrics, "scores", lambda *args: {**original(*args), "spread": 0.125})
    run_evaluation(EvaluationConfig(snapshot=snapshots["LIF"][0], out=str(tmp_path), uncertainty=True), stripes)
    document = json.loads((tmp_path / "results.json").read_text())
    schema.validate(document)
    assert document["kinds"]["LIF"][0]["uncertainty"]["curve"][0]["spread"] == 0.125
    text = (tmp_path / "report.html").read_text()
    assert "<th>spread</th>" in text and "<td>0.1250</td>" in text


def result(hits, draws=4):
    """Results of one snapshot with a clean test and one perturbation, whose hits per sample are given."""
    clean, sp = point(hits, draws), point(hits, draws, 1, 0.01)
    return SnapshotResults({}, True, {"perturbations": {"clean": [clean], "sp": [clean, sp]}})


def point(hits, draws, severity=0, strength=0.0):
    """The result of one condition."""
    accuracy = sum(hits) / draws / len(hits)
    return Result(severity, strength, accuracy, 0.0, [0.0] * draws, 0.0, 0.0, [0.0] * draws, hits)


def test_a_difference_must_be_beyond_chance_of_samples_and_of_seeds():
    random = np.random.default_rng(0)

    def seeds(*rates):
        return [result(random.binomial(4, np.full(500, rate)).tolist()) for rate in rates]

    rows, clear = comparison.compare({"A": seeds(0.9, 0.91, 0.89), "B": seeds(0.5, 0.51, 0.49)})
    assert [row.test for row in rows] == ["clean", "sp"]  # a perturbation of strength 0 is the clean test
    (sentence,) = comparison.verdicts(clear)
    assert re.fullmatch(r"A is more accurate than B: clean \(p 0\.0\d+\), sp \(p 0\.0\d+\)\.", sentence)
    _, by_seeds = comparison.compare({"A": seeds(0.9, 0.5, 0.7), "B": seeds(0.5, 0.7, 0.6)})
    assert by_seeds[0].differences[0].p < 0.05  # the samples agree, but another seed might not
    assert comparison.verdicts(by_seeds) == ["No difference beyond chance between A and B: clean, sp."]
    _, single = comparison.compare({"A": seeds(0.9), "B": seeds(0.5)})
    points, caution = comparison.verdicts(single)
    assert re.fullmatch(r"A minus B, in points of accuracy: clean \+\d\d\.\d, sp \+\d\d\.\d\.", points)
    assert caution == "A single seed per group cannot tell A from B; compare several."
    _, same = comparison.compare({"A": seeds(0.9), "B": seeds(0.9)})
    assert comparison.verdicts(same)[0].count("(within chance)") == 2
    more = {"energy of a sample, nJ": {"B": "12.5"}}
    text = comparison.table(rows, {"A": "noisy", "B": "noiseless"}, more).splitlines()
    assert text[-1].split() == ["energy", "of", "a", "sample,", "nJ", "-", "12.5"]
    assert text[0].split()[-2:] == ["A", "B"] and text[1].split() == ["inference", "noisy", "noiseless"]
    assert text[2].startswith("clean") and "[" in text[2]


@pytest.mark.slow
def test_of_groups_that_do_not_differ_one_family_of_tests_in_twenty_finds_a_difference(monkeypatch):
    fewer = functools.partial(comparison.paired_difference, resamples=2000)  # enough for p-values of 0.05 / 20
    monkeypatch.setattr(comparison, "paired_difference", fewer)
    random, wrong, families = np.random.default_rng(1), 0, 60
    names = [f"{number}.npy" for number in range(20)]
    for _ in range(families):

        def group():
            seeds = []
            for deviation in random.normal(0, 0.03, 3):
                hits = random.binomial(1, 0.9 + deviation, (len(names), 300))  # a seed is good or bad in all tests
                points = {name: [point(one.tolist(), 1, severity=1)] for name, one in zip(names, hits)}
                seeds.append(SnapshotResults({}, True, {"perturbations": points}))
            return seeds

        _, summary = comparison.compare({"A": group(), "B": group()})
        wrong += any(row.differences[0].p_holm < 0.05 for row in summary)
    assert stats.binom.sf(wrong - 1, families, 0.05) > ERROR  # at most 14


def test_attacks_whose_gates_failed_are_not_judged():
    def attacked(hits, reliable):
        score = Score(sum(hits) / 4 / len(hits), 0.0, 0.0, hits, draws=4)
        attacks = [AttackResult("linf", 8 / 255, name, 2, score) for name in ("all", "fgsm")]
        gates = [Gate("a gate", reliable, "")]
        report = AttackReport("quick", {}, 2, score, ["own"], attacks, gates)
        return SnapshotResults({}, True, {**result([4, 4]).reports, "attacks": report})

    groups = {"A": [attacked([4, 4], True)] * 2, "B": [attacked([0, 1], True), attacked([0, 0], False)]}
    rows, summary = comparison.compare(groups)
    assert [row.reliable for row in rows] == [True, True, False, False]
    assert comparison.label(rows[2]) == "attack (Linf): all 8/255"
    lines = comparison.table(rows, dict.fromkeys(groups, "noisy")).splitlines()
    assert len(lines) == 5 and "gates failed" in lines[4]  # single attacks are in the report alone
    assert comparison.verdicts(summary)[-1] == (
        "A and B are not compared, because gates of the attacks failed: attack (Linf): all."
    )


def test_three_groups_are_compared_in_pairs():
    rows, _ = comparison.compare({"A": [result([4, 4])], "B": [result([4, 0])], "C": [result([0, 0])]})
    pairs = [(one.first, one.second, one.difference) for one in rows[0].differences]
    assert pairs == [("A", "B", 0.5), ("A", "C", 1.0), ("B", "C", 0.5)]


def test_what_a_group_lacks_is_a_dash_and_compared_between_the_others():
    lacking = result([0, 4])
    del lacking.perturbations["sp"]
    groups = {"A": [lacking], "B": [result([4, 4])], "C": [result([0, 0])]}
    rows, summary = comparison.compare(groups)
    assert [row.test for row in rows] == [row.test for row in summary] == ["clean", "sp"]
    assert [(one.first, one.second) for one in summary[1].differences] == [("B", "C")]
    assert all(one.p_holm is not None for row in summary for one in row.differences)
    assert comparison.table(rows, dict.fromkeys(groups, "noisy")).splitlines()[3].split()[2:5] == ["-", "100.00", "+-"]
    sentences = comparison.verdicts(summary)
    assert [sentence for sentence in sentences if "sp +" in sentence] == [sentences[4]]
    assert sentences[4].startswith("B minus C")
    both = ["100.00", "0.00"]
    difference = ["100.00 [100.0, 100.0]", "-"]  # B - C; a single seed has no interval
    assert comparison_on_page(rows).rows[1] == ["sp 0.01", "-", *both, "-", "0.00", "0.00", *["-"] * 4, *difference]
    assert comparison_on_page(summary).rows[1] == ["sp", "-", *both, *["-"] * 6, *difference, "-"]


def test_a_condition_that_a_part_of_a_group_lacks_is_not_of_the_group():
    lacking = result([4, 4])
    del lacking.perturbations["sp"]
    rows, summary = comparison.compare({"A": [result([4, 4]), lacking]})
    assert [row.test for row in rows] == [row.test for row in summary] == ["clean"]


def test_the_same_network_twice_does_not_count_as_two_seeds(snapshots, stripes, tmp_path):
    copy = tmp_path / "copy.pth"
    copy.write_bytes(Path(snapshots["LIF"][0]).read_bytes())
    config = EvaluationConfig(compare=[f"A={snapshots['LIF'][0]},{copy}"])
    with pytest.raises(UserError, match="the same network"):
        run_evaluation(config, stripes)


def test_other_tests_are_not_compared(snapshots, stripes):
    first, second = snapshots["LIF"]
    evaluations = [Snapshot(EvaluationConfig(snapshot=path), stripes) for path in (first, second)]
    evaluations[1].test = evaluations[1].test.subset(torch.arange(5))
    with pytest.raises(UserError, match="their test samples differ"):
        check_comparable({"A": evaluations[:1], "B": evaluations[1:]})


@pytest.mark.parametrize("texts", [["a.pth"], ["=a.pth"], ["NSNN="], ["NSNN=,"], ["A=a.pth", "A=b.pth"]])
def test_a_group_without_name_or_snapshots_is_refused(texts):
    with pytest.raises(UserError, match="--compare"):
        comparison.parse_groups(EvaluationConfig(compare=texts))


def parsed(*texts, inference="noisy"):
    """{group: [(path, mode), ...]} of a comparison."""
    groups = comparison.parse_groups(EvaluationConfig(compare=list(texts), inference=inference, out="report"))
    return {group: [(one.snapshot, one.inference) for one in configs] for group, configs in groups.items()}


def test_a_group_of_a_comparison_may_have_a_mode_of_its_own():
    assert parsed("A=a.pth,b.pth", "B=a.pth@noiseless,b.pth@noiseless", "C=c.pth@noisy", inference="mean_field") == {
        "A": [("a.pth", "mean_field"), ("b.pth", "mean_field")],
        "B": [("a.pth", "noiseless"), ("b.pth", "noiseless")],
        "C": [("c.pth", "noisy")],
    }
    with pytest.raises(UserError, match="one mode, but A has noiseless and noisy: .*a.pth@noiseless,b.pth@noiseless"):
        parsed("A=a.pth@noiseless,b.pth")
    with pytest.raises(UserError, match="no file a.pth@silent, and after @ comes noisy or noiseless or mean_field"):
        parsed("A=a.pth@silent")


def test_a_path_may_have_an_at_sign(tmp_path):
    for name in ("a.pth@noiseless", "b@c.pth"):
        (tmp_path / name).touch()
        assert parsed(f"A={tmp_path / name}") == {"A": [(str(tmp_path / name), "noisy")]}
    assert parsed(f"A={tmp_path / 'b@c.pth'}@mean_field") == {"A": [(str(tmp_path / "b@c.pth"), "mean_field")]}
    assert parsed("A=runs@home/missing.pth") == {"A": [("runs@home/missing.pth", "noisy")]}


def test_either_a_snapshot_or_a_comparison(stripes):
    for options in ({}, {"snapshot": "a.pth", "compare": ["A=a.pth"]}):
        with pytest.raises(UserError, match="which checkpoint"):
            run_evaluation(EvaluationConfig(**options), stripes)

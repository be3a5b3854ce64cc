"""The evaluation of a snapshot: what is measured, what is written, and that perturbations really perturb."""

import dataclasses
import functools
import json
import math
import statistics

import numpy as np
import pytest
import torch
from PIL import Image

from dataset_utils import DATASETS
from models import LIF, build_model, build_neuron
from models.layers import Normalize
from tests.tools.data.test_corruptions import write_corruptions
from tools import inference
from tools.attacks.campaign import PRESETS, Preset
from tools.config.evaluate import EvaluationConfig
from tools.config.train import TrainConfig
from tools.data.images import LabelledImages
from tools.errors import UserError
from tools.evaluation.conditions import conditions
from tools.evaluation.measurements import Measurement
from tools.evaluation.measurements.attacks import Attacks
from tools.evaluation.measurements.efficiency import Efficiency
from tools.evaluation.measurements.uncertainty import Uncertainty
from tools.evaluation.report.page import Section
from tools.evaluation.run import MEASUREMENTS, evaluate, run_evaluation
from tools.evaluation.snapshot import Snapshot
from tools.io.checkpoint import CheckpointError
from tools.perturb import PERTURBATIONS, applicable
from tools.training.run import Training


def train_both(folder, stripes, **settings):
    """Snapshots of a noisy network and of its deterministic twin: {neuron: path}."""
    paths = {}
    for neuron in ("NILIF", "LIF"):
        config = TrainConfig(
            minibatch=20,
            lr=0.01,
            neuron=neuron,
            histograms=False,
            run_dir=str(folder / neuron),
            **settings,
        )
        training = Training(config, stripes)
        training.run()
        paths[neuron] = training.folder / "best.pth"
    return paths


@pytest.fixture(scope="module")
def trained(tmp_path_factory, stripes):
    return train_both(tmp_path_factory.mktemp("trained"), stripes, model="toynet", epochs=8)


@pytest.fixture(scope="module")
def half_trained(tmp_path_factory, stripes):
    """Deeper networks, after fewer epochs."""
    return train_both(tmp_path_factory.mktemp("half_trained"), stripes, model="vggwoap", width=0.1, epochs=3)


def snapshot(trained, stripes, tmp_path, neuron="NILIF", **options):
    return Snapshot(EvaluationConfig(snapshot=str(trained[neuron]), out=str(tmp_path), **options), stripes)


def evaluated(*args, **options):
    return evaluate(snapshot(*args, **options))


def stored(path):
    """The content of a stored report without what it is known by."""
    content = json.loads(path.read_text())
    del content["crc32"], content["identity"]
    return content


def test_draws_are_reported_as_mean_and_standard_deviation(trained, stripes, tmp_path):
    (point,) = evaluated(trained, stripes, tmp_path, draws=4).perturbations["clean"]
    losses = point.loss_draws
    assert len(losses) == 4 and len(set(losses)) == 4  # each draw has noise of its own
    assert point.loss_mean == pytest.approx(statistics.fmean(losses))
    assert point.loss_std == pytest.approx(statistics.stdev(losses))
    assert point.accuracy_mean > 0.9


def test_a_deterministic_network_needs_several_draws_only_of_what_is_drawn(trained, stripes, undrawn, tmp_path):
    options = dict(draws=3, perturbation=["sp", "blur"])
    results = evaluated(trained, stripes, tmp_path, "LIF", **options).perturbations
    assert [len(point.loss_draws) for point in results["sp"]] == [1, 3]
    assert [(len(point.loss_draws), point.accuracy_std) for point in results["blur"]] == [(1, 0.0)] * 2


def test_noise_that_no_layer_admits_is_an_error(trained, stripes, tmp_path, monkeypatch):
    monkeypatch.setattr(LIF, "run", lambda self, x, *args, **options: ((torch.rand_like(x) < 0.5).to(x.dtype), None))
    with pytest.raises(UserError, match="no layer of this ToyNet says that it `is_noisy`, but its outputs change"):
        snapshot(trained, stripes, tmp_path, "LIF")


def test_of_a_single_draw_nothing_is_known_about_the_others(trained, stripes, tmp_path):
    (point,) = evaluated(trained, stripes, tmp_path, draws=1).perturbations["clean"]
    assert point.accuracy_std is None and point.loss_std is None


def test_the_same_seed_repeats_and_another_differs(trained, stripes, undrawn, tmp_path):
    options = dict(perturbation=["add_gaussian"], gaussian_sigma=0.5, draws=2)
    first = evaluated(trained, stripes, tmp_path, **options)
    torch.rand(7)  # the state of torch's own generator does not matter
    assert evaluated(trained, stripes, tmp_path, **options) == first
    assert evaluated(trained, stripes, tmp_path, seed=1, **options) != first


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("add_gaussian", {"gaussian_sigma": 1.5}),
        ("multi_gaussian", {"gaussian_sigma": 3.0}),
        ("sp", {"sp_alpha": 0.6}),
        ("spike_level", {"spike_p": 0.4}),
        ("membrane", {"membrane_sigma": 3.0}),
    ],
)
@pytest.mark.parametrize("neuron", ["NILIF", "LIF"])
def test_every_perturbation_does_harm(trained, stripes, undrawn, tmp_path, name, options, neuron):
    test = snapshot(trained, stripes, tmp_path, neuron, perturbation=[name], draws=3, **options)
    clean, disturbed = evaluate(test).perturbations[name]
    assert (clean.strength, disturbed.strength) == (0.0, *options.values())
    assert disturbed.loss_mean > 1.5 * clean.loss_mean


def test_perturbed_pixels_reach_the_network_before_its_normalisation(trained, stripes, tmp_path):
    test = snapshot(trained, stripes, tmp_path, perturbation=["add_gaussian"], gaussian_sigma=0.3, draws=1)
    seen = []
    test.net.normalize.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    evaluate(test)
    clean, disturbed = seen
    assert (disturbed - clean).abs().mean() > 0.05
    assert disturbed.min() >= 0 and disturbed.max() <= 1


def test_all_networks_meet_the_same_perturbed_pixels(trained, stripes, undrawn, tmp_path):
    seen = {}
    for neuron in ("NILIF", "LIF"):
        test = snapshot(trained, stripes, tmp_path, neuron, perturbation=["sp"], draws=2)
        test.net.normalize.register_forward_pre_hook(
            lambda module, args, neuron=neuron: seen.setdefault(neuron, []).append(args[0].clone())
        )
        evaluate(test)
    noisy, deterministic = seen["NILIF"][2:], seen["LIF"][1:]  # after two clean draws, and after one
    assert len(noisy) == len(deterministic) == 2
    assert all(torch.equal(a, b) for a, b in zip(noisy, deterministic))
    assert not torch.equal(*noisy)


def test_a_sweep_has_all_strengths(trained, stripes, tmp_path):
    test = snapshot(trained, stripes, tmp_path, perturbation=["sp"], range=True, left=0.1, right=0.3, step=0.1, draws=1)
    assert [point.strength for point in evaluate(test).perturbations["sp"]] == [0.1, 0.2, 0.3]


def test_an_impossible_sweep_is_refused(trained, stripes, tmp_path):
    with pytest.raises(UserError, match="must not be below"):
        snapshot(trained, stripes, tmp_path, perturbation=["sp"], range=True, left=0.5, right=0.1)
    with pytest.raises(UserError, match="--range needs --perturbation"):
        snapshot(trained, stripes, tmp_path, range=True)
    with pytest.raises(UserError, match="at most 1"):
        snapshot(trained, stripes, tmp_path, perturbation=["sp"], range=True, left=0.5, right=1.5)


def test_an_ensemble_lowers_the_loss_of_a_noisy_network(trained, stripes, tmp_path):
    """More noise than in training, so that a single draw errs often."""
    options = dict(draws=60, sigma=30.0)
    (one,) = evaluated(trained, stripes, tmp_path, **options).perturbations["clean"]
    (many,) = evaluated(trained, stripes, tmp_path, **options, n_ensembles=16).perturbations["clean"]
    assert many.loss_mean < one.loss_mean
    assert many.loss_std < one.loss_std
    assert {path.name for path in tmp_path.iterdir()} == {"clean.json", "clean-k16.json"}


def test_results_are_written_as_json_and_as_a_picture(trained, stripes, tmp_path):
    results = evaluated(trained, stripes, tmp_path, perturbation=["sp", "membrane"], draws=2)
    content = json.loads((tmp_path / "sp.json").read_text())
    assert content["points"] == [result.as_json() for result in results.perturbations["sp"]]
    identity = content["identity"]
    assert identity["dataset"] == "stripes" and identity["test_images"] == 50
    assert identity["draws"] == 2 and identity["seed"] == 0 and identity["network"]["neuron"] == "NILIF"
    for point in results.perturbations["sp"]:
        assert len(point.times_correct) == 50
        assert sum(point.times_correct) == pytest.approx(100 * point.accuracy_mean)
    with Image.open(tmp_path / "membrane.png") as picture:
        assert picture.width > 400 and len(picture.convert("RGB").getcolors(1 << 24)) > 2


@pytest.mark.slow
def test_all_perturbations_of_the_data_at_all_severities(trained, stripes, tmp_path):
    test = snapshot(trained, stripes, tmp_path, perturbation=["all"], draws=1)
    results = evaluate(test).perturbations
    (clean,) = results.pop("clean")
    assert set(results) == {name for name, one in PERTURBATIONS.items() if one.where in ("pixels", "hidden")}
    for name, points in results.items():
        assert [point.severity for point in points] == [0, 1, 2, 3, 4, 5]
        assert tuple(point.strength for point in points[1:]) == PERTURBATIONS[name].severities
    assert {points[0].loss_mean for points in results.values()} == {clean.loss_mean}
    chosen = snapshot(trained, stripes, tmp_path / "two", perturbation=["shot", "jpeg"], severity=[5], draws=1)
    chosen = evaluate(chosen).perturbations
    assert [point.severity for point in chosen["shot"]] == [0, 5] and chosen["jpeg"][1] == results["jpeg"][5]


def test_stored_results_are_not_measured_again(trained, stripes, undrawn, tmp_path, monkeypatch):
    monkeypatch.setattr("tools.evaluation.snapshot.provenance", lambda: {"git": "abc"})
    options = dict(perturbation=["sp", "blur"], draws=2)
    original, interrupted, measured = inference.predict_all, ["blur"], set()

    def measuring(*args, description, **kwargs):
        if interrupted and description.startswith(interrupted[0]):
            interrupted.clear()
            raise KeyboardInterrupt
        measured.add(description)
        return original(*args, description=description, **kwargs)

    def run(**changes):
        """Results, and what was measured for them."""
        measured.clear()
        return evaluated(trained, stripes, tmp_path, **options, **changes), set(measured)

    monkeypatch.setattr(inference, "predict_all", measuring)
    with pytest.raises(KeyboardInterrupt):
        run()
    done = set(measured)
    results, rest = run()
    assert done and rest and not done & rest
    assert run() == (results, set())
    assert run(seed=1)[1] == done | rest
    for source in ("abc-dirty", "unknown"):  # who knows what was changed
        monkeypatch.setattr("tools.evaluation.snapshot.provenance", functools.partial(dict, git=source))
        for _ in range(2):
            assert run()[1] == done | rest


def test_a_narrower_run_keeps_what_a_wider_one_has_measured(trained, stripes, undrawn, tmp_path, monkeypatch):
    monkeypatch.setattr("tools.evaluation.snapshot.provenance", lambda: {"git": "abc"})

    def severities(*wanted):
        results = evaluated(trained, stripes, tmp_path, "LIF", draws=1, perturbation=["sp"], severity=wanted)
        stored = json.loads((tmp_path / "sp.json").read_text())["points"]
        return [point.severity for point in results.perturbations["sp"]], [point["severity"] for point in stored]

    assert severities(2, 3) == ([0, 2, 3], [0, 2, 3])
    assert severities(1) == ([0, 1], [0, 1, 2, 3])


@pytest.mark.slow
@pytest.mark.parametrize("change", ["images", "labels", "corruption", "fold", "minibatch", "draws", "weights"])
def test_what_results_depend_on_is_measured_again_when_it_changes(trained, stripes, tmp_path, monkeypatch, change):
    monkeypatch.setattr("tools.evaluation.snapshot.provenance", lambda: {"git": "abc"})
    path, data = tmp_path / "best.pth", stripes.load().test
    path.write_bytes(trained["NILIF"].read_bytes())
    write_corruptions(tmp_path / "c", data.images, data.labels)
    options = dict(draws=2, n_ensembles=2, corruptions=str(tmp_path / "c"))
    calls, original = [], inference.predict_all
    monkeypatch.setattr(inference, "predict_all", lambda *a, **k: calls.append(k["description"]) or original(*a, **k))

    def run(path, data_set=stripes, **more):
        calls.clear()
        config = EvaluationConfig(snapshot=str(path), out=str(tmp_path / "out"), **options, **more)
        evaluate(Snapshot(config, data_set))
        return len(calls)

    assert run(path) > 0 and run(path) == 0
    moved = path.rename(tmp_path / "moved.pth")
    assert run(moved) == 0  # the same network at another place
    if change in ("images", "labels"):
        train, test = stripes.read("", False, 1)
        flipped = LabelledImages(test.images.flip(-1), test.labels)
        other = flipped if change == "images" else LabelledImages(test.images, 1 - test.labels)
        assert run(moved, dataclasses.replace(stripes, read=lambda *args: (train, other))) > 0
    elif change == "corruption":
        snow = np.load(tmp_path / "c" / "snow.npy")
        np.save(tmp_path / "c" / "snow.npy", np.zeros_like(snow))
        assert run(moved) > 0
    elif change == "weights":
        moved.write_bytes(trained["LIF"].read_bytes())
        assert run(moved) > 0
    elif change == "draws":
        options["draws"] = 3
        assert run(moved) > 0
    else:
        assert run(moved, **{change: 7}) > 0


def in_memory_for(most, made, passes):
    """An evaluation of a snapshot where a network can be run on `most` images at once; `passes` gets all tries."""
    original = made.net.forward

    def forward(images, **more):
        passes.append(len(images))
        if len(images) > most:
            raise torch.OutOfMemoryError
        return original(images, **more)

    made.net.forward = forward
    return evaluate(made)


def test_results_are_of_the_fold_that_memory_allows_and_stored_under_it(trained, stripes, tmp_path, monkeypatch):
    monkeypatch.setattr("tools.evaluation.snapshot.provenance", lambda: {"git": "abc"})
    options = dict(draws=1, n_ensembles=8, minibatch=10, perturbation=["membrane"], efficiency=True)
    calls = []

    def in_small_memory(out, fold):
        return in_memory_for(40, snapshot(trained, stripes, tmp_path / out, fold=fold, **options), calls)

    found, fitting = in_small_memory("a", 80), in_small_memory("b", 40)
    assert found.perturbations == fitting.perturbations and found.reports == fitting.reports
    assert found.identity.fold == 40
    for name in ("clean-k8", "membrane-k8", "efficiency"):
        stored = json.loads((tmp_path / "a" / f"{name}.json").read_text())
        assert stored["identity"]["fold"] == 40
    calls.clear()
    assert in_small_memory("a", 40) == found and not calls
    assert in_small_memory("a", 80) == found
    assert not calls  # the folder says that 80 are too many
    (tmp_path / "a" / "fold.json").unlink()
    measured = evaluated(trained, stripes, tmp_path / "a", fold=80, **options)  # here memory suffices
    assert measured.identity.fold == 80


def test_an_evaluation_whose_fold_was_halved_is_resumed(trained, stripes, tmp_path, monkeypatch):
    monkeypatch.setattr("tools.evaluation.snapshot.provenance", lambda: {"git": "abc"})
    options = dict(draws=1, minibatch=10, fold=80, uncertainty=True)
    first, second = [], []
    found = in_memory_for(20, snapshot(trained, stripes, tmp_path, **options), first)
    assert first[0] == 10 and {80, 40} <= set(first)  # clean was measured first; then the fold was halved twice
    assert in_memory_for(20, snapshot(trained, stripes, tmp_path, **options), second) == found and not second
    assert found.identity.fold == 20


def test_running_out_of_memory_loses_no_stored_results_of_another_fold(trained, stripes, tmp_path, monkeypatch):
    monkeypatch.setattr("tools.evaluation.snapshot.provenance", lambda: {"git": "abc"})
    options = dict(draws=1, minibatch=10, uncertainty=True)
    evaluated(trained, stripes, tmp_path, fold=40, **options)
    clean, uncertainty = ((tmp_path / f"{name}.json").read_bytes() for name in ("clean", "uncertainty"))
    passes = []
    in_memory_for(40, snapshot(trained, stripes, tmp_path, fold=80, **options), passes)
    assert (tmp_path / "clean.json").read_bytes() == clean
    assert (tmp_path / "uncertainty.json").read_bytes() == uncertainty
    assert passes.index(80) == len(passes) - 1  # nothing was measured again


def test_a_minibatch_that_memory_does_not_allow_is_an_error_of_the_user(trained, stripes, tmp_path):
    with pytest.raises(UserError, match=r"out of memory.*lower --minibatch \(now 20\)"):
        in_memory_for(10, snapshot(trained, stripes, tmp_path, minibatch=20), [])


def test_seeds_are_of_their_own_for_each_draw_and_purpose(trained, stripes, tmp_path):
    made = snapshot(trained, stripes, tmp_path)
    purposes = [("noise", 0), ("noise", 1), ("perturbation", 0), ("perturbation", 1), ("draws",), ("efficiency",)]
    other = snapshot(trained, stripes, tmp_path, "LIF", seed=1)
    assert len({one.seed(*purpose) for purpose in purposes for one in (made, other)}) == 12
    assert made.seed("noise", 0) == snapshot(trained, stripes, tmp_path, "LIF").seed("noise", 0)  # common draws


def test_another_measurement_is_one_class_and_one_entry(trained, stripes, tmp_path, monkeypatch):
    class Spikes(Measurement):
        key = "spikes"

        def measure(self, snapshot):
            return {"neurons": len(snapshot.net.stem_neuron(torch.rand(2, 1, 3))), "nothing": None}

        def sections(self, evaluation):
            return [
                Section("Spikes", [f"{group} <{reports}>"]) for group, reports in evaluation.reports(self.key).items()
            ]

    monkeypatch.setattr("tools.evaluation.run.MEASUREMENTS", (*MEASUREMENTS, Spikes()))
    path = str(trained["LIF"])
    results = run_evaluation(EvaluationConfig(snapshot=path, out=str(tmp_path)), stripes)
    assert results["LIF"][0].reports["spikes"] == {"neurons": 2, "nothing": None}
    assert json.loads((tmp_path / "spikes.json").read_text())["neurons"] == 2
    assert json.loads((tmp_path / "results.json").read_text())["kinds"]["LIF"][0]["spikes"] == {"neurons": 2}
    assert "<h2>Spikes</h2>" in (page := (tmp_path / "report.html").read_text()) and "LIF &lt;[" in page


def test_the_efficiency_of_a_tested_network_is_written(half_trained, stripes, tmp_path):
    report = evaluated(half_trained, stripes, tmp_path, "LIF", efficiency=True).reports["efficiency"]
    content = stored(tmp_path / "efficiency.json")
    assert Efficiency().from_json(dict(content)) == report
    assert len(content["firing_rates"]) == 8 and all(0 <= rate <= 1 for rate in content["firing_rates"].values())
    assert content["layers"]["stem.conv"]["kind"] == "MAC" and content["layers"]["features.0.conv.conv"]["kind"] == "AC"
    # A layer's neurons send on average rate * T spikes to each of their connections.
    expected = 2 * content["firing_rates"]["features.6.neuron"] * content["layers"]["classifier.0"]["dense"]
    assert content["layers"]["classifier.0"]["operations"] == pytest.approx(expected, rel=1e-5) and expected > 0


def test_uncertainty_is_scored_against_draws_time_steps_and_another_data_set(trained, stripes, tmp_path):
    others = {"noise": dataclasses.replace(stripes, name="noise"), "large": DATASETS["mnist5k"]}
    options = EvaluationConfig(snapshot=str(trained["NILIF"]), out=str(tmp_path), uncertainty=True, ood="noise")
    measured = evaluate(Snapshot(options, stripes, others)).reports["uncertainty"]
    report = stored(tmp_path / "uncertainty.json")
    assert Uncertainty().from_json(dict(report)) == measured
    assert [row["draws"] for row in report["curve"]] == [1, 2, 4, 8, 16]
    more = [(row["factor"], row["timesteps"], row["ensembles"]) for row in report["more_time_steps"]]
    assert more == [(2, 4, 8), (4, 8, 4), (8, 16, 2), (16, 32, 1)]  # passes as many as those of the curve
    assert [row["ensembles"] for row in report["curve"]] == [16, 8, 4, 2, 1]
    assert report["curve"][0]["brier_scaled"] != report["curve"][0]["brier"]
    assert report["curve"][-1]["nll"] < report["curve"][0]["nll"] and report["validation_images"] == 20
    assert report["out_of_distribution"]["curve"][-1]["predictive"] == pytest.approx(0.5, abs=0.01)  # the same images
    for ood, message in (("nosuch", "be one of large, noise;"), ("stripes", "be one of"), ("large", "has inputs")):
        with pytest.raises(UserError, match=message):
            Snapshot(dataclasses.replace(options, ood=ood), stripes, {**others, "stripes": stripes})
    evaluated(trained, stripes, tmp_path, "LIF", uncertainty=True)
    (row,) = json.loads((tmp_path / "uncertainty.json").read_text())["curve"]
    assert row["draws"] == 1 and row["mutual_information"] == pytest.approx(0, abs=1e-9)


def test_without_out_results_lie_beside_the_snapshot(trained, stripes):
    path = trained["LIF"]
    evaluate(Snapshot(EvaluationConfig(snapshot=str(path)), stripes))
    assert (path.parent / "evaluation" / "clean.json").exists()
    evaluate(Snapshot(EvaluationConfig(snapshot=str(path.parent / "last.pth")), stripes))
    assert (path.parent / "evaluation-last" / "clean.json").exists()


def test_the_accuracy_is_that_of_training_s_own_test(trained, stripes, tmp_path):
    (point,) = evaluated(trained, stripes, tmp_path, "LIF").perturbations["clean"]
    assert point.accuracy_mean == json.loads((trained["LIF"].parent / "test.json").read_text())["accuracy"]


def test_settings_given_override_those_of_the_snapshot(trained, stripes, tmp_path):
    test = snapshot(trained, stripes, tmp_path, sigma=0.01, timestep=5)
    assert test.net.stem_neuron.noise.scale == 0.01
    assert test.forward.timesteps == 5
    assert snapshot(trained, stripes, tmp_path).forward.timesteps == 2


def test_settings_that_a_network_has_learnt_cannot_be_overridden(tmp_path, stripes):
    for neuron, changes, flag in (("PLIF", {}, {"tau": 5.0}), ("NILIF", {"learnable_scale": True}, {"sigma": 0.5})):
        run_dir = tmp_path / neuron
        config = TrainConfig(model="toynet", neuron=neuron, epochs=1, histograms=False, run_dir=str(run_dir), **changes)
        Training(config, stripes).run()
        with pytest.raises(ValueError, match="would have no effect"):
            Snapshot(EvaluationConfig(snapshot=str(run_dir / "best.pth"), **flag), stripes)


def test_weights_of_spiking_neurons_are_not_those_of_a_relu_network(trained, stripes, tmp_path):
    Snapshot(EvaluationConfig(snapshot=str(trained["NILIF"]), neuron="LIF"), stripes)  # the same network without noise
    other = torch.load(trained["LIF"], weights_only=True)
    del other["checksum"]
    other["config"]["neuron"] = "ReLU"
    torch.save(other, tmp_path / "relu.pth")
    for path, neuron, own in ((trained["NILIF"], "ReLU", "NILIF"), (tmp_path / "relu.pth", "LIF", "ReLU")):
        with pytest.raises(UserError, match=f"--neuron {neuron}: .* was trained with {own}"):
            Snapshot(EvaluationConfig(snapshot=str(path), neuron=neuron), stripes)


def test_a_snapshot_of_another_version_is_refused_by_name(trained, stripes, tmp_path):
    content = torch.load(trained["LIF"], weights_only=True)
    del content["checksum"]  # which would be of other content
    content["config"]["colour"] = "red"
    torch.save(content, tmp_path / "newer.pth")
    with pytest.raises(CheckpointError, match="does not know: colour"):
        Snapshot(EvaluationConfig(snapshot=str(tmp_path / "newer.pth")), stripes)
    torch.save({**content, "format": 2}, tmp_path / "format.pth")
    with pytest.raises(CheckpointError, match="format 2"):
        Snapshot(EvaluationConfig(snapshot=str(tmp_path / "format.pth")), stripes)


def test_a_published_snapshot_needs_model_and_neuron_and_then_just_works(tmp_path, stripes):
    path = tmp_path / "theirs.pth"
    weights = {"module.layer.bn.weight": torch.randn(64, 64), "module.fc.layer.module.weight": torch.randn(2, 64)}
    torch.save({"net": weights, "acc": 50.0, "epoch": 3}, path)
    with pytest.raises(CheckpointError, match="give --model and --neuron"):
        Snapshot(EvaluationConfig(snapshot=str(path)), stripes)
    config = EvaluationConfig(snapshot=str(path), model="toynet", neuron="NILIF", sigma=0.3, draws=2)
    test = Snapshot(config, stripes)
    assert torch.equal(test.net.stem[1].weight, weights["module.layer.bn.weight"])
    assert torch.equal(test.net.normalize.mean.flatten(), torch.tensor([0.4]))
    assert 0 <= evaluate(test).perturbations["clean"][0].accuracy_mean <= 1
    assert (tmp_path / "evaluation-theirs" / "clean.json").exists()


@pytest.mark.parametrize("key", [None, "state_dict"])
def test_the_weights_of_ones_own_loop_are_tested_as_the_network_was_trained(tmp_path, stripes, key, caplog):
    net = build_model("toynet", neuron=build_neuron("LIF", tau=4.0), in_shape=(1, 8, 8), num_classes=2)
    net.normalize = Normalize([0.1], [0.7])  # not those of the data set
    weights = torch.compile(net).state_dict()
    torch.save(weights if key is None else {key: weights}, tmp_path / "own.pth")
    config = EvaluationConfig(snapshot=str(tmp_path / "own.pth"), model="toynet", neuron="LIF", tau=4.0, timestep=3)
    test, images = Snapshot(config, stripes), torch.rand(5, 1, 8, 8)
    assert torch.equal(test.net(images, timesteps=3), net(images, timesteps=3)) and not caplog.records
    assert len(evaluate(test).perturbations["clean"]) == 1
    Snapshot(dataclasses.replace(config, tau=None), stripes)
    (record,) = caplog.records
    assert "neurons with decay=0.25 were loaded into neurons with decay=0.5" in record.message


def toynet(name="NILIF", **settings):
    net = build_model("toynet", neuron=build_neuron(name, **settings), in_shape=(1, 8, 8), num_classes=2)
    net.normalize = Normalize([0.4], [0.3])
    return net


OTHERS = {  # a checkpoint of one's own loop with the weights of a network that has learnt scales, and of another one
    "alone": lambda learnt, other: learnt,
    "in a usual place": lambda learnt, other: {"teacher": other, "model": learnt},
    "with other settings": lambda learnt, other: {"teacher": toynet(tau=4.0).state_dict(), "student": learnt},
}


@pytest.mark.parametrize("form", OTHERS)
def test_learnt_scales_of_ones_own_loop_are_found(tmp_path, stripes, form):
    net = toynet(learnable_scale=True)
    torch.nn.init.constant_(net.stem_neuron.log_scale, -2.0)
    torch.save(OTHERS[form](net.state_dict(), toynet().state_dict()), tmp_path / "own.pth")
    config = EvaluationConfig(snapshot=str(tmp_path / "own.pth"), model="toynet", neuron="NILIF", timestep=3)
    test = Snapshot(config, stripes)
    assert test.trained.learnable_scale and test.net.stem_neuron.log_scale.item() == -2.0
    assert torch.equal(test.net.classifier.weight, net.classifier.weight)
    with pytest.raises(UserError, match="--sigma would have no effect"):
        Snapshot(dataclasses.replace(config, sigma=0.5), stripes)
    with pytest.raises(CheckpointError, match="unexpected keys: stem_neuron.log_scale"):
        torch.save(net.state_dict(), tmp_path / "own.pth")
        Snapshot(dataclasses.replace(config, neuron="LIF"), stripes)


@pytest.mark.parametrize("neuron", ["PLIF", "NIPLIF"])
def test_what_a_network_of_ones_own_has_learnt_cannot_be_given(tmp_path, stripes, neuron):
    """Where training began says nothing about the weights, and a wrong value could not be told from it."""
    torch.save(toynet(neuron).state_dict(), tmp_path / "own.pth")
    config = EvaluationConfig(snapshot=str(tmp_path / "own.pth"), model="toynet", neuron=neuron, timestep=3)
    assert Snapshot(config, stripes).trained.neuron == neuron
    with pytest.raises(UserError, match="--tau would have no effect: this network has learnt the decay"):
        Snapshot(dataclasses.replace(config, tau=4.0), stripes)


def test_a_decay_that_is_learnt_inside_of_another_neuron_cannot_be_given(tmp_path, stripes):
    net = build_model("rsnn", neuron=build_neuron("PLIF"), in_shape=(1, 8, 8), num_classes=2)
    torch.save(net.state_dict(), tmp_path / "own.pth")
    config = EvaluationConfig(snapshot=str(tmp_path / "own.pth"), model="rsnn", neuron="PLIF", timestep=3)
    assert Snapshot(config, stripes).trained.neuron == "PLIF"
    with pytest.raises(UserError, match="--tau would have no effect: this network has learnt the decay"):
        Snapshot(dataclasses.replace(config, tau=4.0), stripes)


def test_learnt_scales_of_another_network_in_the_file_are_left_alone(tmp_path, stripes):
    net = toynet()
    content = {"teacher": toynet(learnable_scale=True).state_dict(), "model": net.state_dict()}
    torch.save(content, tmp_path / "own.pth")
    test = Snapshot(EvaluationConfig(snapshot=str(tmp_path / "own.pth"), model="toynet", neuron="NILIF"), stripes)
    assert not test.trained.learnable_scale and torch.equal(test.net.classifier.weight, net.classifier.weight)


def test_a_snapshot_of_another_data_set_is_refused(trained, stripes, tmp_path):
    with pytest.raises(CheckpointError, match="was trained on stripes, this is mnist5k"):
        snapshot(trained, dataclasses.replace(stripes, name="mnist5k"), tmp_path)


def test_the_engine_sees_raw_pixels_in_range(trained, stripes, tmp_path, monkeypatch):
    ranges = []
    original = inference.predict

    def spy(net, images, *args):
        ranges.append((images.min().item(), images.max().item()))
        return original(net, images, *args)

    monkeypatch.setattr(inference, "predict", spy)
    evaluated(trained, stripes, tmp_path, perturbation=["multi_gaussian"], gaussian_sigma=2.0, draws=1)
    assert ranges and all(low >= 0 and high <= 1 for low, high in ranges)


@pytest.mark.slow
def test_the_published_attack_is_a_perturbation_of_the_test(trained, stripes, tmp_path):
    """Crafted with noise of their own, within their balls, and large ones do harm: up the gradient, not down."""
    for neuron in ("NILIF", "LIF"):
        for name, norm, large in (("adversarial", 2, 6.0), ("fgsm", math.inf, 0.3)):
            folder, entry = tmp_path / neuron / name, PERTURBATIONS[name]
            test = snapshot(trained, stripes, folder, neuron, perturbation=[name], draws=10, **{entry.flag: large})
            clean, attacked = evaluate(test).perturbations[name]
            assert clean.loss_mean < 0.005 < attacked.loss_mean  # about 0.0003 and 0.025; down the gradient 0.002
            test = snapshot(trained, stripes, folder, neuron, perturbation=[name], draws=1, severity=[5])
            seen = []
            test.net.normalize.register_forward_pre_hook(lambda module, args, seen=seen: seen.append(args[0].clone()))
            evaluate(test)
            images, eps = test.test.images.float() / 255, entry.severities[-1]
            distance = (seen[-1] - images[: len(seen[-1])]).flatten(1).norm(norm, dim=1)
            assert (distance <= eps + 1e-4).all() and (distance > eps / 4).all()


def test_names_that_stand_for_several_perturbations():
    """What does not apply is left out; severities 1 to 5 unless others are asked for."""

    def found(*names, has_pixels=True, **options):
        return conditions(EvaluationConfig(perturbation=list(names), **options), has_pixels=has_pixels)

    assert list(found("published")) == ["clean", "spike_level", "adversarial", "fgsm"]
    assert list(found("published", has_pixels=False)) == ["clean", "eventdrop", "spike_level"]
    assert list(found("published", inference="mean_field")) == ["clean", "adversarial", "fgsm"]
    every = found("adversarial", "all")
    assert list(every)[:2] == ["clean", "adversarial"] and "fgsm" not in every
    assert set(applicable(has_pixels=True)) == {*every, "fgsm"} - {"clean"}
    assert [one.severity for one in found("published")["fgsm"]] == [0, 1, 2, 3, 4, 5]
    assert [one.severity for one in found("published", severity=[2])["fgsm"]] == [0, 2]
    with pytest.raises(UserError, match="those of `published` have different ones"):
        found("fgsm", "published", range=True)
    with pytest.raises(UserError, match="does not have"):
        found("adversarial", has_pixels=False)


def test_a_range_has_at_most_a_thousand_strengths():
    options = dict(perturbation=["membrane"], range=True, left=0.0)
    for right, step in ((1e9, 1e-9), (1e308, 1e-9), (1.0, 0.001)):
        with pytest.raises(UserError, match="more than 1000 strengths"):
            conditions(EvaluationConfig(right=right, step=step, **options), has_pixels=True)
    found = conditions(EvaluationConfig(right=0.999, step=0.001, **options), has_pixels=True)
    assert len(found["membrane"]) == 1000


def test_a_severity_needs_a_perturbation():
    with pytest.raises(UserError, match="--severity needs --perturbation"):
        conditions(EvaluationConfig(severity=[1]), has_pixels=True)


def test_a_folder_in_the_format_of_cifar10c_is_tested(trained, stripes, tmp_path):
    data = stripes.load().test
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))  # not that of the test part
    write_corruptions(tmp_path / "c", data.images[order], data.labels[order])
    test = snapshot(trained, stripes, tmp_path / "out", "LIF", corruptions=str(tmp_path / "c"), draws=2)
    seen = []
    test.net.normalize.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    results = evaluate(test).perturbations
    assert list(results) == ["clean", "fog", "snow"]
    assert [point.severity for point in results["fog"]] == [0, 1, 2, 3, 4, 5]
    third = seen[1 + 2]  # a clean pass, then one of each severity, as nothing is drawn
    torch.testing.assert_close(third, (data.images[order] + 3).clamp(max=255) / 255)
    assert results["fog"][1].accuracy_mean > 0.9 and (tmp_path / "out" / "snow.png").exists()


def test_attacks_are_reported_and_not_made_twice(trained, stripes, tmp_path, monkeypatch):
    monkeypatch.setattr("tools.evaluation.snapshot.provenance", lambda: {"git": "abc"})
    tiny = Preset(8, 4, 4, 2, 1, 1, 1, 4, 10)
    monkeypatch.setitem(PRESETS, "quick", tiny)
    report = evaluated(trained, stripes, tmp_path, attack_preset="quick").reports["attacks"]
    assert report.images == 8 and report.clean.draws == 10 and report.settings["gradients"] == 4
    monkeypatch.setattr("tools.evaluation.measurements.attacks.Campaign", None)
    assert Attacks().as_json(report) == stored(tmp_path / "attacks-quick.json")
    assert evaluated(trained, stripes, tmp_path, attack_preset="quick").reports["attacks"] == report


def test_confusion_and_worst_samples_are_those_of_the_clean_test(trained, stripes, tmp_path):
    (point,) = evaluated(trained, stripes, tmp_path, draws=3, sigma=1.0).perturbations["clean"]
    confusion = torch.tensor(point.confusion)
    labels = stripes.load().test.labels
    assert confusion.sum(1).tolist() == pytest.approx(labels.bincount().tolist())
    assert confusion.diagonal().sum().item() == pytest.approx(50 * point.accuracy_mean, rel=1e-5)
    losses = [one.loss for one in point.worst]
    assert len(losses) == 12 and losses == sorted(losses, reverse=True)
    assert all(labels[one.index] == one.label for one in point.worst)

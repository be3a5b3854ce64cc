"""Networks with noisy neurons are evaluated in the mode that is asked for, everywhere and under its name."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from torch import nn

from models import build_model, build_neuron, mean_field, noiseless
from models.layers import Normalize
from tools.config.evaluate import EvaluationConfig
from tools.data.events.frames import Framing
from tools.data.events.labelled import LabelledRecordings
from tools.errors import UserError
from tools.evaluation.conditions import conditions
from tools.evaluation.modes import put_into_mode, recalibrate
from tools.evaluation.run import evaluate, run_evaluation
from tools.evaluation.snapshot import Snapshot
from tools.inference import ForwardPass
from tools.probes.hooks import neuron_hooks

BLOCKS = {"noiseless": noiseless, "mean_field": mean_field}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """{neuron: path of an untrained network}, whose batch normalisation makes all layers fire."""
    paths = {}
    for neuron in ("NILIF", "LIF"):
        torch.manual_seed(0)
        net = build_model("vggwoap", neuron=build_neuron(neuron), in_shape=(1, 8, 8), num_classes=2, width=0.1)
        net.normalize = Normalize([0.4], [0.4])
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.constant_(module.bias, 1.0)
        paths[neuron] = str(tmp_path_factory.mktemp("weights") / f"{neuron}.pth")
        torch.save(net.state_dict(), paths[neuron])
    return paths


def config(weights, neuron="NILIF", **options):
    network = dict(model="vggwoap", neuron=neuron, width=0.1, timestep=2)
    return EvaluationConfig(**{"snapshot": weights[neuron], "draws": 2, **network, **options})


@pytest.mark.parametrize("mode", BLOCKS)
def test_a_snapshot_is_in_its_mode_and_needs_one_draw(weights, stripes, tmp_path, mode):
    noisy = Snapshot(config(weights), stripes)
    images = torch.rand(5, 1, 8, 8)
    with BLOCKS[mode](noisy.net):
        expected = noisy.net(images, timesteps=2)
    made = Snapshot(config(weights, inference=mode, out=str(tmp_path), uncertainty=True), stripes)
    assert torch.equal(made.net(images, timesteps=2), expected)
    assert noisy.is_noisy and not made.is_noisy and mode in made.title
    results = evaluate(made)
    assert len(results.clean.loss_draws) == 1 and results.clean.accuracy_std == 0
    assert [point.draws for point in results.reports["uncertainty"].curve] == [1]


class Neuron(nn.Module):
    """A noisy neuron of someone's own."""

    emits_spikes = is_noisy = True


def test_what_has_no_other_mode_is_refused(weights, stripes):
    with pytest.raises(UserError, match=r"--inference noiseless is for noisy neurons.*LIF.pth has none.*@noisy"):
        Snapshot(config(weights, "LIF", inference="noiseless"), stripes)
    with pytest.raises(UserError, match=r"layer '0' \(Neuron\) lacks 'mode', which --inference mean_field needs"):
        put_into_mode(nn.Sequential(Neuron()), "mean_field", "a.pth")
    deaf = Neuron()
    deaf.mode = "noisy"
    with pytest.raises(UserError, match="layer '0' .*says that it `is_noisy` in the mode 'noiseless' too"):
        put_into_mode(nn.Sequential(deaf), "noiseless", "a.pth")
    put_into_mode(nn.Sequential(Neuron()), "noisy", "a.pth")


def test_modes_keep_their_results_apart(weights, stripes, tmp_path, monkeypatch):
    monkeypatch.setattr("tools.evaluation.snapshot.provenance", lambda: {"git": "abc"})
    folders, losses = [], []
    for options in ({}, {"inference": "noiseless"}, {"inference": "mean_field"}, {"recalibrate": 50}):
        made = Snapshot(config(weights, **options), stripes)
        folders.append(made.folder.path.name)
        in_one = Snapshot(config(weights, **options, out=str(tmp_path)), stripes)
        losses.append(evaluate(in_one).clean.loss_mean)
    beside = ["evaluation-NILIF"]
    beside += [f"evaluation-NILIF-{name}" for name in ("noiseless", "mean_field", "recalibrated50")]
    assert folders == beside
    assert len(set(losses)) == 4  # though all were written to the same folder
    best = tmp_path / "best.pth"
    shutil.copy(weights["NILIF"], best)
    assert Snapshot(config(weights, snapshot=str(best)), stripes).folder.path.name == "evaluation"


def test_the_mean_field_has_no_spikes_to_change_or_to_plot(weights, stripes):
    for name in ("spike_level", "spike_delete", "spike_insert"):
        with pytest.raises(UserError, match=f"{name} perturbs spikes, which the mean field does not have"):
            Snapshot(config(weights, inference="mean_field", perturbation=[name]), stripes)
    with pytest.raises(UserError, match="--pictures shows spikes"):
        Snapshot(config(weights, inference="mean_field", pictures=True), stripes)
    everything = {}
    for mode in ("noiseless", "mean_field"):
        everything[mode] = set(conditions(config(weights, inference=mode, perturbation=["all"]), has_pixels=True))
    assert everything["noiseless"] - everything["mean_field"] == {"spike_level", "spike_delete", "spike_insert"}


def test_the_mean_field_costs_multiplications_and_has_mean_probabilities(weights, stripes, tmp_path):
    made = Snapshot(config(weights, inference="mean_field", efficiency=True, out=str(tmp_path)), stripes)
    probabilities = {}
    with neuron_hooks(made.net, lambda layer, neuron, p, continues: probabilities.update({layer: p})):
        made.predict(made.test, "efficiency")
    report = evaluate(made).reports["efficiency"]
    assert report.firing_rates == pytest.approx({layer: p.mean().item() for layer, p in probabilities.items()})
    assert report.cost.ac == 0
    behind = {layer: row for layer, row in report.cost.layers.items() if layer != "stem.conv"}
    for row in behind.values():
        assert row.kind == "MAC" and row.operations == pytest.approx(2 * row.dense, rel=0.01)  # of 2 steps


def test_modes_are_compared_as_groups_under_their_names(weights, stripes, tmp_path, schema, caplog, undrawn, figures):
    caplog.set_level("INFO")
    path = weights["NILIF"]
    groups = [f"A={path}", f"B={path}@noiseless", f"C={path}@mean_field"]
    options = dict(snapshot="", compare=groups, out=str(tmp_path), efficiency=True, recalibrate=20)
    run_evaluation(config(weights, **options), stripes)
    document = json.loads((tmp_path / "results.json").read_text())
    schema.validate(document)
    modes = {group: one["identity"]["inference"] for group, (one,) in document["kinds"].items()}
    assert modes == {"A": "noisy", "B": "noiseless", "C": "mean_field"}
    page = (tmp_path / "report.html").read_text()
    assert "A (noisy), B (noiseless), C (mean_field)</h1>" in page and "<td>noiseless</td>" in page
    assert "rates are their means" in page and "estimated again by 20 training samples" in page
    legends = [axes.get_legend() for figure in figures.values() for axes in figure.axes]
    names = {text.get_text() for legend in legends if legend for text in legend.get_texts()}
    assert {"A", "B", "C: mean probability"} <= names
    assert f"== B: {path} (vggwoap, NILIF, noiseless, recalibrated20) ==" in caplog.text
    (line,) = (line for line in caplog.text.splitlines() if line.startswith("inference"))
    assert line.split() == ["inference", "noisy", "noiseless", "mean_field"]


def first_norm(net):
    return next(module for module in net.modules() if isinstance(module, nn.BatchNorm2d))


@pytest.mark.parametrize("mode", ["noisy", "noiseless"])
def test_recalibration_finds_the_statistics_of_training_images(weights, stripes, mode):
    options = dict(inference=mode, recalibrate=180, minibatch=70)  # batches of 70, 70 and 40
    made, again = (Snapshot(config(weights, **options), stripes) for _ in range(2))
    inputs, norm = [], first_norm(made.net)
    with norm.register_forward_pre_hook(lambda module, args: inputs.append(args[0])):
        made.predict(made.recalibrated_by, "check")
    assert len(made.recalibrated_by) == 180 and made.recalibrated_by.labels[:70].unique().tolist() == [0, 1]
    torch.testing.assert_close(norm.running_mean, torch.cat(inputs).mean((0, 2, 3)))
    variances = [len(one) * one.var((0, 2, 3)) for one in inputs]
    torch.testing.assert_close(norm.running_var, sum(variances) / sum(map(len, inputs)))
    state, repeated = made.net.state_dict(), again.net.state_dict()
    assert all(torch.equal(state[name], repeated[name]) for name in state)
    assert not any(module.training for module in made.net.modules()) and norm.momentum == 0.1
    assert made.identity.recalibrate == 180 and made.identity == again.identity
    plain = Snapshot(config(weights, inference=mode), stripes)
    assert len(plain.identity.data_checksums) == 2 and made.identity.data_checksums[:2] == plain.identity.data_checksums


def test_recalibration_that_cannot_be_is_refused(weights, stripes):
    with pytest.raises(UserError, match="--recalibrate 181: there are 180 training samples"):
        Snapshot(config(weights, recalibrate=181), stripes)
    bare = EvaluationConfig(snapshot=weights["NILIF"], model="vggwoap", neuron="NILIF", width=0.1, nobn=True)
    net = build_model("vggwoap", neuron=build_neuron("NILIF"), in_shape=(1, 8, 8), num_classes=2, width=0.1, norm=None)
    torch.save(net.state_dict(), path := weights["NILIF"].replace("NILIF", "bare"))
    with pytest.raises(UserError, match="batch normalisation, and .*bare.pth has none"):
        Snapshot(dataclasses.replace(bare, snapshot=path, recalibrate=10), stripes)


def test_recordings_recalibrate_too():
    lengths = np.array([2, 3, 2])
    counts = np.random.default_rng(0).integers(0, 4, (3, 3, 2, 8, 8), np.uint8)
    framing = Framing(3, "duration", (8, 8), (8, 8), frame_us=1)
    data = LabelledRecordings([None] * 3, counts, np.arange(3), torch.arange(3), framing, "count", lengths=lengths)
    net = build_model("vggwoap", neuron=build_neuron("NILIF"), in_shape=(2, 8, 8), num_classes=3, width=0.1)
    put_into_mode(net, "mean_field", "a.pth")
    ((frames, *_),) = data.batches(3, CPU)
    currents = net.stem.conv(frames.flatten(0, 1))
    recalibrate(net, data.batches(3, CPU), ForwardPass(CPU, 3), "a.pth")
    torch.testing.assert_close(first_norm(net).running_mean, currents.mean((0, 2, 3)))

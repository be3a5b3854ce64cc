"""A ReLU network beside a noisy one: what needs spikes is missing of it, and all else is measured."""

import dataclasses
import json
from pathlib import Path

import pytest

from tools.attacks import campaign
from tools.config.evaluate import EvaluationConfig
from tools.config.train import TrainConfig
from tools.errors import UserError
from tools.evaluation.run import run_evaluation
from tools.evaluation.snapshot import Snapshot
from tools.training.run import Training

HIDDEN = ["spike_level", "spike_delete", "spike_insert", "membrane"]


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory, stripes):
    """{neuron: path} of trained networks."""
    paths = {}
    for neuron in ("ReLU", "NILIF"):
        folder = tmp_path_factory.mktemp("runs") / neuron
        options = dict(epochs=4, minibatch=20, lr=0.01, histograms=False, run_dir=str(folder))
        result = Training(TrainConfig(model="toynet", neuron=neuron, **options), stripes).run()
        assert result.accuracy > 0.9
        paths[neuron] = str(folder / "best.pth")
    return paths


def test_it_is_compared_with_a_noisy_one_in_everything(
    snapshots, stripes, tmp_path, schema, caplog, monkeypatch, undrawn
):
    caplog.set_level("INFO")
    monkeypatch.setitem(campaign.PRESETS, "quick", campaign.Preset(10, 5, 6, 2, 1, 2, 1, 6, 10))
    options = dict(perturbation=["all"], severity=[5], draws=2, attack_preset="quick", ood="noise", out=str(tmp_path))
    compared = [f"{group}={snapshots[neuron]}" for group, neuron in (("relu", "ReLU"), ("noisy", "NILIF"))]
    switches = dict.fromkeys(("uncertainty", "efficiency", "pictures"), True)
    config = EvaluationConfig(compare=compared, **options, **switches)
    results = run_evaluation(config, stripes, {"noise": dataclasses.replace(stripes, name="noise")})
    document = json.loads((tmp_path / "results.json").read_text())
    schema.validate(document)
    rows = {row["test"]: list(row["kinds"]) for row in document["summary"]}
    assert all(rows.pop(name) == ["noisy"] for name in HIDDEN)
    assert {"clean", "sp", "jpeg", "attack (Linf): all"} <= rows.keys()
    assert all(groups == ["relu", "noisy"] for groups in rows.values())
    (relu,), (noisy,) = results["relu"], results["noisy"]
    assert relu.mode == "deterministic" and not relu.reports["efficiency"].firing_rates
    cost, of_twin = relu.reports["efficiency"].cost, noisy.reports["efficiency"].cost
    assert (cost.ac, cost.mac) == (0, 64 * 64 + 64 * 2)  # each connection of one of the equal steps
    assert cost.energy_nj == cost.relu_energy_nj == of_twin.relu_energy_nj > of_twin.energy_nj
    assert relu.reports["attacks"].paths == ["own"]
    assert not any("transfer" in row.attack for row in relu.reports["attacks"].attacks)
    uncertainty = relu.reports["uncertainty"]
    assert [point.draws for point in uncertainty.curve] == [1] and uncertainty.more_time_steps is None
    lines = {line[:40].strip(): line[40:].split() for line in caplog.text.splitlines()}
    assert lines["membrane 1"][0] == "-" and lines["calibration error of 16 draws, %"][0] == "-"
    assert lines["energy of a sample, nJ"][0] == lines["the same with ReLU, nJ"][0]
    page = (tmp_path / "report.html").read_text()
    assert "relu: no spikes, hence no rates" in page and "membrane" in page
    rasters = [f"written: {Path(path).parent}/evaluation/rasters.png" in caplog.text for path in snapshots.values()]
    assert rasters == [False, True] and "no rasters: toynet, ReLU has no spikes" in caplog.text


def test_alone_it_has_a_report_without_firing_rates(snapshots, stripes, tmp_path, undrawn, schema):
    config = EvaluationConfig(
        snapshot=snapshots["ReLU"], perturbation=["published"], severity=[1], efficiency=True, out=str(tmp_path)
    )
    (results,) = run_evaluation(config, stripes)["ReLU"]
    assert list(results.perturbations) == ["clean", "adversarial", "fgsm"]
    schema.validate(json.loads((tmp_path / "results.json").read_text()))
    assert "Firing rates and energy" in (tmp_path / "report.html").read_text()


def test_what_it_cannot_do_is_refused_before_anything_is_measured(snapshots, stripes):
    relu, noisy = snapshots["ReLU"], snapshots["NILIF"]
    with pytest.raises(UserError, match=r"membrane perturbs spikes, which the network in .*best.pth does not have"):
        run_evaluation(EvaluationConfig(compare=[f"A={noisy}", f"B={relu}"], perturbation=["membrane"]), stripes)
    with pytest.raises(UserError, match="--inference noiseless is for noisy neurons"):
        Snapshot(EvaluationConfig(snapshot=relu, inference="noiseless"), stripes)
    with pytest.raises(UserError, match="A has networks with spikes and without: make two groups"):
        run_evaluation(EvaluationConfig(compare=[f"A={noisy},{relu}"]), stripes)

"""Benchmarks as a user starts them: as a file from anywhere, or as a module; one JSON line per result."""

import json
import subprocess
import sys

import pytest


def lines(repository, script, *flags, as_module=False, cwd=None, repeats=("--repeats", "1")):
    start = ["-m", f"benchmarks.{script}"] if as_module else [str(repository / "benchmarks" / f"{script}.py")]
    command = [sys.executable, *start, *flags, *repeats]
    done = subprocess.run(command, cwd=cwd or repository, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_events(repository, tmp_path):
    found = lines(repository, "bench_events", "--events", "20000", as_module=True)
    assert {line["benchmark"] for line in found} == {"events"}
    assert {"read N-MNIST", "read EVT 3.0", "read .csv", "frame by count to 48x48"} <= {line["work"] for line in found}
    assert all(line["million_per_s"]["median"] > 0 and line["events"] == 20000 for line in found)
    assert {"work", "repeats", "device", "threads", "torch"} <= set(found[0])


@pytest.mark.slow
def test_neurons(repository):
    found = lines(repository, "bench_neuron", "--neurons", "1024", "--timesteps", "2")
    by_layer = {line["layer"]: line for line in found}
    assert by_layer["ReLU"]["ratio_to_relu"] == 1 and {"LIF", "NoisyLIF Gaussian(0.3)"} <= set(by_layer)
    assert all(line["T"] == 2 and line["ns_per_neuron_step"]["median"] > 0 for line in found)


@pytest.mark.slow
def test_steps(repository):
    flags = "--networks", "cifarnet", "--candidates", "NILIF", "NILIF lean", "--minibatch", "1", "--width", "0.1"
    found = lines(repository, "bench_step", *flags)
    assert [line["neuron"] for line in found] == ["ReLU", "NILIF", "NILIF lean"]
    kept = [line["kept_ratio_to_relu"] for line in found]
    assert kept[0] == 1 and kept[2] < kept[1]
    for line in found:
        assert line["train_s"]["median"] > 0 < line["infer_s"]["median"] and line["peak_memory_mib"] > 0
    assert found[0]["train_ratio_to_relu"] == found[0]["infer_ratio_to_relu"] == found[0]["memory_ratio_to_relu"] == 1


@pytest.mark.slow
def test_steps_by_cuda_graphs_are_refused_on_cpus(repository):
    with pytest.raises(AssertionError, match="--cuda_graph needs --device cuda"):
        lines(repository, "bench_step", "--cuda_graph")


@pytest.mark.slow
def test_conversions(repository, tmp_path):
    pytest.importorskip("spikingjelly")
    net = tmp_path / "net.pt"
    flags = ["--width", "4", "--epochs", "1", "--tuning_epochs", "1", "--timesteps", "2", "--limit", "100"]
    found = lines(repository, "convert", *flags, "--tuning_timesteps", "2", "--net", str(net), repeats=())
    assert net.exists() and all(0 <= line["accuracy"] <= 1 for line in found)
    conversions = [line["conversion"] for line in found]
    assert conversions[0] == "none: ReLU" and len({*conversions}) == len(conversions)
    assert {"models.convert, quantile=None", "spikingjelly", "models.convert, noisy, fine-tuned"} <= {*conversions}

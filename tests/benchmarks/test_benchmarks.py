"""Benchmarks: one as a user starts it, the others in forks, as if started as a file; one JSON line per result."""

import argparse
import functools
import importlib.util
import json
import os
import shlex
import signal
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

import benchmarks
from benchmarks import bench_attacks, bench_memory, bench_step
from benchmarks.bench_memory import largest
from benchmarks.common import live_memory
from benchmarks.memopt import CANDIDATES
from dataset_utils import DATASETS
from models import build_model, build_neuron
from tests import fresh
from tools.attacks.campaign import PRESETS, Campaign, Preset
from tools.attacks.white_box import Attacked
from tools.config.evaluate import EvaluationConfig
from tools.config.parsing import parse
from tools.config.train import TrainConfig
from tools.inference import ForwardPass


def lines(script, *flags, repeats=("--repeats", "1")):
    path = Path(benchmarks.__file__).with_name(f"{script}.py")
    start = f"import runpy, sys; del sys.argv[0]; sys.path[0] = {str(path.parent)!r}; "
    return printed(fresh.run(start + "runpy.run_path(sys.argv[0], run_name='__main__')", str(path), *flags, *repeats))


def printed(done):
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_events(repository):
    command = [sys.executable, "-m", "benchmarks.bench_events", "--events", "20000", "--repeats", "1"]
    found = printed(subprocess.run(command, cwd=repository, capture_output=True, text=True))
    assert {line["benchmark"] for line in found} == {"events"}
    assert {"read N-MNIST", "read EVT 3.0", "read .csv", "frame by count to 48x48"} <= {line["work"] for line in found}
    assert all(line["million_per_s"]["median"] > 0 and line["events"] == 20000 for line in found)
    assert {"work", "repeats", "device", "threads", "torch"} <= set(found[0])


@pytest.mark.slow
def test_neurons():
    found = lines("bench_neuron", "--neurons", "1024", "--timesteps", "2")
    by_layer = {line["layer"]: line for line in found}
    assert by_layer["ReLU"]["ratio_to_relu"] == 1 and {"LIF", "NoisyLIF Gaussian(0.3)"} <= set(by_layer)
    assert all(line["T"] == 2 and line["ns_per_neuron_step"]["median"] > 0 for line in found)


@pytest.mark.slow
def test_steps():
    flags = "--networks", "cifarnet", "--candidates", "NILIF", "NILIF lean", "--minibatch", "1", "--width", "0.1"
    found = lines("bench_step", *flags)
    assert [line["neuron"] for line in found] == ["ReLU", "NILIF", "NILIF lean"]
    kept = [line["kept_ratio_to_relu"] for line in found]
    assert kept[0] == 1 and kept[2] < kept[1]
    for line in found:
        assert line["train_s"]["median"] > 0 < line["infer_s"]["median"] and line["live_mib"] > line["kept_mib"]
    assert found[0]["train_ratio_to_relu"] == found[0]["infer_ratio_to_relu"] == found[0]["live_ratio_to_relu"] == 1


def test_memory_is_counted_exactly():
    held = [torch.ones(2**20)]

    def run():
        held.clear()  # what existed before does not count
        torch.ones(2**19).sum()
        return torch.ones(2**18)

    peak, kept = live_memory(run, "cpu")
    assert peak == pytest.approx(2, abs=1e-5) and kept == 1  # 2 MiB, and the sum


@pytest.mark.parametrize("start", [1, 7, 64])
@pytest.mark.parametrize("limit", [0, 1, 2, 7, 63, 64, 1000])
def test_the_largest_is_found(limit, start):
    tried = []

    def fits(number):
        tried.append(number)
        return number <= limit

    assert largest(fits, start) == limit and len(set(tried)) == len(tried) <= 22


@pytest.mark.slow
def test_memory_against_time_steps_and_batch():
    flags = ["--networks", "cifarnet", "--candidates", "NILIF", "NILIF lean", "--width", "0.05"]
    flags += ["--timesteps", "1", "2", "--minibatch", "1", "2"]
    if has_peer := importlib.util.find_spec("spikingjelly") is not None:
        flags += ["--peer", "memopt"]
    found = lines("bench_memory", *flags, repeats=())
    names = ["ReLU", "NILIF", "NILIF lean", *CANDIDATES * has_peer]
    assert [line["neuron"] for line in found] == names * 4
    kept = {(line["neuron"], line["T"], line["B"]): line["kept_mib"] for line in found}
    live = {(line["neuron"], line["T"], line["B"]): line["live_mib"] for line in found}
    for name in names:
        assert kept[name, 1, 1] < kept[name, 2, 1] < kept[name, 2, 2] and live[name, 1, 1] < live[name, 2, 2]
    assert kept["NILIF lean", 2, 2] < kept["ReLU", 2, 2] < kept["NILIF", 2, 2]


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems do not limit the memory of a process")
def test_the_largest_batch_under_a_limit():
    flags = ["--networks", "vgg", "--candidates", "NILIF", "--width", "0.1", "--timesteps", "2", "--limit_mib"]
    relu, noisy = lines("bench_memory", *flags, "40", repeats=())
    assert 0 < noisy["largest_batch"] < 0.9 * relu["largest_batch"]
    assert noisy["ratio_to_relu"] == round(noisy["largest_batch"] / relu["largest_batch"], 3)
    with pytest.raises(AssertionError, match="not even one sample of vgg fits"):
        lines("bench_memory", *flags, "0.1", repeats=())


@pytest.mark.parametrize("without_limit", ["fits", "crashes"])
def test_a_crash_is_lack_of_memory_only_if_the_limit_is_what_makes_it(monkeypatch, without_limit, capsys):
    def trial(network, candidate, args, batch, limit_mib):
        if limit_mib is not None or without_limit == "crashes":
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(bench_memory, "limited_steps", trial)
    question = functools.partial(bench_memory.fits_on_cpu, "vgg", "ReLU", argparse.Namespace(limit_mib=1.0), 19)
    if without_limit == "fits":
        assert not question() and "vgg, ReLU, 19 samples: signal 9, but only" in capsys.readouterr().err
    else:
        with pytest.raises(SystemExit, match="vgg, ReLU: the trial with 19 samples ended with code -9"):
            question()


BENCHMARKS_ON_GPUS = {
    "step-float32": bench_step,
    "step-bf16": bench_step,
    "memory": bench_memory,
    "batch": bench_memory,
}
PYTHON = """#!/bin/bash
# Python, but for tests and benchmarks: of these it says what it was asked for.
case "$*" in
*nosuch*) echo nosuch >&2; exit 4 ;;
*"-m pytest "* | *benchmarks/*) printf "%q " "$@" ;;
*) exec {python} "$@" ;;
esac
"""


@pytest.mark.slow
def test_the_script_for_a_gpu_keeps_what_is_complete(repository, tmp_path):
    folder = tmp_path / "results"
    (tmp_path / "python").write_text(PYTHON.format(python=sys.executable))
    (tmp_path / "python").chmod(0o755)

    def run(**changed):
        command = ["bash", str(repository / "benchmarks" / "gpu.sh"), "results"]
        path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "DEVICE": "cpu", "NETWORKS": "cifarnet vgg", **changed}
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    stopped = run(SECONDS_IN_ALL="0")
    assert stopped.returncode == 1 and "neuron.jsonl (no time left)" in stopped.stderr
    assert json.loads((folder / "machine.json").read_text())["torch"] == torch.__version__
    (folder / "neuron.jsonl").write_text("from before")
    failed = run(TESTS="tests/nosuch.py", NETWORKS=" ")
    assert failed.returncode == 1 and "tests.txt (failed: see tests.txt.log)" in failed.stderr
    assert "nosuch" in (folder / "tests.txt.log").read_text() and (folder / "tests.txt.partial").exists()
    done = run()
    assert done.returncode == 0, done.stderr
    assert not list(folder.glob("*.partial"))
    assert (folder / "neuron.jsonl").read_text() == "from before"
    assert (folder / "tests.txt").read_text().strip() == "-m pytest -q -m cuda tests"
    for network in ("cifarnet", "vgg"):
        for part, benchmark in BENCHMARKS_ON_GPUS.items():
            script, *flags = shlex.split((folder / f"{part}-{network}.jsonl").read_text())
            assert script == f"benchmarks/{benchmark.__name__.rpartition('.')[2]}.py"
            args = benchmark.flags().parse_args(flags)  # they have tests of their own; here, whether flags are right
            assert args.networks == [network] and args.candidates == ["NILIF", "NILIF lean", "LIF"]


TRAINING = """#!/bin/bash
# Python, but for training, which is interrupted in the run of the second seed, and for testing: their calls are noted.
case "$*" in
main_*) echo "$*" >> {calls}; case "$*" in *--seed\\ 1\\ *) [ -e {again} ] || {{ touch {again}; exit 130; }} ;; esac
    while [ "$1" != --run_dir ]; do shift; done; mkdir -p "$2"; touch "$2/test.json" ;;
testing_*) echo "$*" >> {calls} ;;
*) exec {python} "$@" ;;
esac
"""


def test_the_campaign_on_a_gpu_goes_on_where_it_was_stopped(repository, tmp_path):
    calls = tmp_path / "calls"
    stub = TRAINING.format(python=sys.executable, calls=calls, again=tmp_path / "again")
    (tmp_path / "python").write_text(stub)
    (tmp_path / "python").chmod(0o755)

    def run(minutes):
        script = str(repository / "benchmarks" / "gpu_campaign.sh")
        command = ["bash", script, "results", "--device", "cpu"]
        path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "MODELS": "cifarnet", "SEEDS": "0 1", "MINUTES": minutes}
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    stopped = run("0")
    assert stopped.returncode == 75 and "continues with cifarnet, NILIF, seed 0" in stopped.stderr
    failed = run("9")
    assert failed.returncode == 1 and "cifarnet, NILIF, seed 1 ended with code 130" in failed.stderr
    done = run("9")
    assert done.returncode == 0 and "complete" in done.stderr, done.stderr
    *trained, tested = calls.read_text().splitlines()
    assert len(trained) == 5  # one of them twice
    folder = tmp_path / "results" / "cifarnet"
    for line in trained:
        config, _ = parse(TrainConfig, line.split()[1:], dataset=DATASETS["cifar10"])
        assert config.model == "cifarnet" and config.epochs == 60 and config.resume == "auto"
        assert config.run_dir == f"{folder}/{config.neuron}-{config.seed}"
    config, _ = parse(EvaluationConfig, tested.split()[1:], dataset=DATASETS["cifar10"])
    groups = [f"{name}={folder}/{name}-0/best.pth,{folder}/{name}-1/best.pth" for name in ("NILIF", "LIF")]
    assert config.compare == groups and config.out == str(folder) and config.attack_preset == "quick"


@pytest.mark.slow
def test_steps_by_cuda_graphs_are_refused_on_cpus():
    with pytest.raises(AssertionError, match="--cuda_graph needs --device cuda"):
        lines("bench_step", "--cuda_graph")


@pytest.mark.slow
def test_attacks_of_a_preset_and_others_do_harm(monkeypatch, capsys):
    small = Preset(images=10, sample=5, gradients=20, draws=2, rounds=1, paths=2, targets=1, queries=20, score_draws=10)
    monkeypatch.setitem(PRESETS, "glance", small)
    others = ["adaptive"]
    if importlib.util.find_spec("torchattacks") is not None:
        others += ["APGD", "APGDT", "EOTPGD", "Square"]
    flags = ["--dataset", "mnist5k", "--snapshot", "pretrained:mnist5k-nsnn", "--attack_preset", "glance"]
    flags += ["--radii", "linf=0.3", "l2=3", "--attacks", "preset", *others, "--threads", "1"]
    flags += ["--eot", "2", "--gradients", "60", "--steps", "20", "--targets", "1", "--paths", "1", "--restarts", "1"]
    monkeypatch.setattr(sys, "argv", ["bench_attacks.py", *flags])
    bench_attacks.main()
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    left = {(line["attack"], line["norm"], line["eps"]): line["accuracy"] for line in found}
    balls = {("linf", 0.3), ("l2", 3.0)}
    expected = {("glance", "linf", 0.0), ("glance", "l2", 0.0)}
    expected |= {(name, *ball) for name in ("glance", *others) for ball in balls} - {("EOTPGD", "l2", 3.0)}
    assert left.keys() == expected and left["glance", "linf", 0.0] > 0.8
    for name, norm, eps in expected:
        if eps and name != "Square":  # to which a gradient is only a query: these are too few
            assert left[name, norm, eps] < 0.6, (name, norm)


@pytest.fixture
def campaign():
    torch.manual_seed(0)
    net = build_model("toynet", neuron=build_neuron("NILIF"), in_shape=(1, 8, 8), num_classes=100)
    images, target = torch.rand(4, 1, 8, 8), torch.zeros(4, dtype=torch.int64)
    campaign = Campaign(net, ForwardPass(torch.device("cpu"), 2), images, target, PRESETS["glance"], {"linf": (0.3,)})
    campaign.margins.fill_(-9.0)
    return campaign


def adaptive(campaign):
    return bench_attacks.Adaptive(campaign, argparse.Namespace(eot=1, steps=5, targets=1, paths=1, restarts=1))


def test_the_adaptive_attack_goes_on_along_the_path_that_does_most_harm_to_the_images_that_stand(campaign, monkeypatch):
    reached, climbed = {"own": [9.0, 9.0, 9.0, -3.0], "narrow": [-2.0], "wide": [-1.0]}, []

    def ascent(self, campaign, norm, eps, *climb):
        climbed.append(climb)
        return Attacked(campaign.images, torch.tensor(reached[climb[0]], dtype=torch.float64))

    monkeypatch.setattr(bench_attacks, "gradient_paths", lambda net: list(reached))
    monkeypatch.setattr(bench_attacks.Adaptive, "_ascent", ascent)
    adaptive(campaign)("linf", 0.3)
    assert climbed == [*((path, None, 0) for path in reached), ("wide", 0, 1), ("wide", None, 1)]


def test_an_adaptive_attack_of_few_steps_changes_images(campaign):
    assert not torch.equal(adaptive(campaign)("linf", 0.3), campaign.images)


def test_the_steps_of_a_targeted_attack_do_not_vanish_among_many_classes(campaign, monkeypatch):
    made = []

    def attack(net, norm, eps, steps, eot_iter, n_classes):
        made.append((steps, n_classes))
        return lambda images, target: images

    monkeypatch.setitem(sys.modules, "torchattacks", types.SimpleNamespace(APGDT=attack))
    flags = argparse.Namespace(eot=10, gradients=800, path="own")
    bench_attacks.OtherAttack(campaign, flags, "APGDT")("linf", 0.3)
    assert made == [(8, 10)]


@pytest.mark.slow
def test_conversions(tmp_path):
    pytest.importorskip("spikingjelly")
    net = tmp_path / "net.pt"
    flags = ["--width", "4", "--epochs", "1", "--tuning_epochs", "1", "--timesteps", "2", "--limit", "100"]
    found = lines("convert", *flags, "--tuning_timesteps", "2", "--net", str(net), repeats=())
    assert net.exists() and all(0 <= line["accuracy"] <= 1 for line in found)
    conversions = [line["conversion"] for line in found]
    assert conversions[0] == "none: ReLU" and len({*conversions}) == len(conversions)
    assert {"models.convert, quantile=None", "spikingjelly", "models.convert, noisy, fine-tuned"} <= {*conversions}

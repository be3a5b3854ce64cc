"""The scripts: each of them once, in this process; and one of each kind as a user starts it, in its own process."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from matplotlib.image import imread

from dataset_utils import DATASETS, motions
from models import build_model, build_neuron
from models.registry import MODELS
from tests import fresh
from tests.tools.data.events.written import (
    caltech101_tree,
    cifar10_tree,
    ncars_tree,
    official_gestures,
    shd_files,
    striped_nmnist_tree,
)
from tests.written_images import cifar100_batches, idx_files, image_folder, without_checksums
from tools import cli
from tools.config.evaluate import EvaluationConfig
from tools.config.parsing import parse
from tools.config.train import TrainConfig
from tools.data.events.formats import FORMATS
from tools.perturb import PERTURBATIONS
from tools.published import published_key

SCRIPTS = [f"{kind}_{dataset}.py" for kind in ("main", "testing") for dataset in DATASETS]
ROOT = Path(__file__).resolve().parent.parent
STUDIES = sorted({path.name for path in ROOT.glob("main_*.py")} - set(SCRIPTS))
HEAVY = ["torchvision", "mlxtend", "pandas", "scipy", "sklearn", "matplotlib", "tensorboard", "sympy", "torch._dynamo"]
HEAVY += ["tools.studies", "tools.training.run", "tools.evaluation"]  # what runs
QUICK = ["--model", "toynet", "--width", "0.05", "--threads", "1", "--workers", "1", "--no-histograms"]


def start(repository, *command, cwd=None, timeout=600, **environment):
    """Run a command in a process of its own, with this Python as the active one."""
    path = f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, **environment}
    return subprocess.run(command, cwd=cwd or repository, env=env, capture_output=True, text=True, timeout=timeout)


def metrics_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def small_data(tmp_path, monkeypatch):
    """Makes a small data set of a name, in the format of the real one; the folder is the data root."""
    make_streams = motions.make_streams
    write = {
        "mnist": lambda: idx_files(tmp_path / "MNIST"),
        "fashionmnist": lambda: idx_files(tmp_path / "FashionMNIST"),
        "cifar10": lambda: image_folder(tmp_path),
        "cifar100": lambda: cifar100_batches(tmp_path),
        "nmnist": lambda: striped_nmnist_tree(tmp_path / "nmnist", training=5, test=2),
        "dvsgesture": lambda: official_gestures(tmp_path / "DvsGesture", range(1, 12), training=6),
        "dvscifar10": lambda: cifar10_tree(tmp_path / "dvscifar10", "aedat"),
        "events": lambda: striped_nmnist_tree(tmp_path, training=10, test=2),
        "images": lambda: image_folder(tmp_path),
        "shd": lambda: shd_files(tmp_path / "SHD", training=10),
        "ncars": lambda: ncars_tree(tmp_path / "n-cars", training=8),
        "ncaltech101": lambda: caltech101_tree(tmp_path / "ncaltech101"),
        "motions": lambda: monkeypatch.setattr(
            motions, "make_streams", lambda digits, streams_per_class, seed: make_streams(digits, 6, seed)
        ),
    }
    without_checksums(monkeypatch)
    monkeypatch.setenv("NSNN_DATA", str(tmp_path))
    monkeypatch.setenv("NSNN_CACHE", str(tmp_path / "cache"))
    (tmp_path / "DvsGesture").mkdir()
    return lambda name: write.get(name, lambda: None)()  # what has no format of its own is made, not read


@pytest.mark.parametrize("name", sorted(set(DATASETS) - {"mnist5k"}))  # for which see below
def test_every_data_set_is_trained_and_tested_on(run_script, small_data, undrawn, tmp_path, name):
    if name == "shd":
        pytest.importorskip("h5py")
    if name == "ncars" and not any(".dat" in one.suffixes for one in FORMATS):
        pytest.skip("there is no reader of .dat yet")
    small_data(name)
    run = tmp_path / "run"
    trained = run_script(f"main_{name}.py", *QUICK, "--epochs", 1, "--minibatch", 5, "--timestep", 2, "--run_dir", run)
    assert trained.code == 0, trained.messages
    assert "test accuracy" in trained.messages and len(metrics_of(run)) == 1
    perturbation = "sp" if DATASETS[name].has_pixels else "eventdrop"
    flags = ["--snapshot", run / "best.pth", "--draws", 1, "--threads", 1, "--perturbation", perturbation]
    tested = run_script(f"testing_{name}.py", *flags)
    assert tested.code == 0, tested.messages
    points = json.loads((run / "evaluation" / f"{perturbation}.json").read_text())["points"]
    assert points[0]["strength"] == 0 < points[1]["strength"] and 0 <= points[1]["accuracy_mean"] <= 1


@pytest.mark.parametrize("study", STUDIES)
def test_every_study_has_its_experiments_and_refuses_others(run_script, tmp_path, study):
    refused = run_script(study, "--quick", "--only", "nosuch", "--out", tmp_path / "out")
    assert refused.code == 1 and re.search("error: .*nosuch", refused.messages)


def test_mnist5k_is_learnt_resumed_and_tested(run_script, tmp_path, figures):
    run = tmp_path / "run"
    flags = ["--model", "toynet", "--minibatch", 100, "--run_dir", run, "--threads", 1, "--scheduler", "none"]
    trained = run_script("main_mnist5k.py", "--epochs", 3, *flags)
    assert trained.code == 0, trained.messages
    losses = [row["train_loss"] for row in metrics_of(run)]
    assert losses == sorted(losses, reverse=True) and len(set(losses)) == 3
    longer = run_script("main_mnist5k.py", "--resume", run, "--epochs", 4)
    assert longer.code == 0 and len(metrics_of(run)) == 4
    tested = run_script("testing_mnist5k.py", "--snapshot", run / "best.pth", "--perturbation", "sp", "--draws", 2)
    assert tested.code == 0, tested.messages
    points = json.loads((run / "evaluation" / "sp.json").read_text())["points"]
    assert points[0]["accuracy_mean"] > 0.5 and len(points[1]["accuracy_draws"]) == 2
    (line,) = figures["sp.png"].axes[0].lines[:1]
    assert line.get_ydata() == pytest.approx([100 * point["accuracy_mean"] for point in points])


def test_frames_by_duration_are_trained_resumed_and_tested_on(run_script, undrawn, tmp_path, monkeypatch):
    striped_nmnist_tree(tmp_path / "nmnist", training=5, test=2, count=60, longer=45)
    monkeypatch.setenv("NSNN_DATA", str(tmp_path))
    monkeypatch.setenv("NSNN_CACHE", str(tmp_path / "cache"))
    run, flags = tmp_path / "run", ["--frames_by", "duration", "--frame_ms", 20, "--minibatch", 5, "--loss", "tet"]
    flags += ["--neuron", "LIF", "--threshold", 0.1]
    refused = run_script("main_nmnist.py", *QUICK, *flags, "--most_frames", 11, "--run_dir", run)
    assert refused.code == 1 and re.search("00004.bin: expected at most 11 frames, got 12", refused.messages)
    trained = run_script("main_nmnist.py", *QUICK, *flags, "--epochs", 1, "--run_dir", run)
    assert trained.code == 0, trained.messages
    resumed = run_script("main_nmnist.py", "--resume", run, "--epochs", 2)
    assert resumed.code == 0 and len(metrics_of(run)) == 2, resumed.messages
    extras = ["--perturbation", "eventdrop", "time_jitter", "spike_delete", "--uncertainty", "--efficiency"]
    flags = ["--snapshot", run / "best.pth", "--draws", 2, "--minibatch", 5]
    tested = run_script("testing_nmnist.py", *flags, *extras, "--pictures")
    assert tested.code == 0, tested.messages
    clean = json.loads((run / "evaluation" / "clean.json").read_text())["points"][0]
    trained = json.loads((run / "test.json").read_text())
    assert [clean["accuracy_mean"], clean["loss_mean"]] == pytest.approx([trained["accuracy"], trained["loss"]])


@pytest.mark.slow
def test_nmnist_is_learnt_and_tested_on_perturbed_events_with_pictures(
    run_script, tmp_path, monkeypatch, figures, capsys
):
    striped_nmnist_tree(tmp_path / "nmnist")
    monkeypatch.setenv("NSNN_DATA", str(tmp_path))
    monkeypatch.setenv("NSNN_CACHE", str(tmp_path / "cache"))
    run, evaluation = tmp_path / "run", tmp_path / "run" / "evaluation"
    flags = ["--width", 0.05, "--epochs", 12, "--timestep", 4, "--minibatch", 20, "--roll", 1, "--lr", 0.01]
    trained = run_script("main_nmnist.py", *flags, "--no-histograms", "--run_dir", run, "--threads", 1)
    assert trained.code == 0, trained.messages
    assert json.loads((run / "test.json").read_text())["accuracy"] > 0.5

    names = [name for name, perturbation in PERTURBATIONS.items() if perturbation.where == "events"]
    assert "eventdrop" in names
    flags = ["--snapshot", run / "best.pth", "--draws", 2, "--threads", 1]
    tested = run_script("testing_nmnist.py", *flags, "--pictures", "--drop_p", 1.0, "--perturbation", *names)
    assert tested.code == 0, tested.messages
    for name in names:
        clean, perturbed = json.loads((evaluation / f"{name}.json").read_text())["points"]
        assert clean["strength"] == 0 < perturbed["strength"] and clean["accuracy_mean"] > 0.5
        assert perturbed["loss_draws"] != clean["loss_draws"]
    dropped = json.loads((evaluation / "eventdrop.json").read_text())["points"][-1]
    assert dropped["strength"] == 1 and dropped["accuracy_mean"] < 0.35  # nothing is left to see
    digits = [str(digit) for digit in range(10)]
    for picture in ("recordings.png", "rasters.png"):
        titles = [axes.get_title(loc) for axes in figures[picture].axes for loc in ("left", "center")]
        assert [title for title in titles if title] == digits
        assert imread(evaluation / picture).shape[2] == 4

    refused = run_script("testing_nmnist.py", *flags, "--perturbation", "sp")
    assert refused.code != 0 and "sp perturbs pixels" in refused.messages + capsys.readouterr().err


HELP = """
import contextlib, io, json, runpy, sys
heavy, scripts = json.loads(sys.argv[1])
shown = {}
for script in scripts:
    sys.argv = [script, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as error:
            assert not error.code
    shown[script] = out.getvalue(), [name for name in sys.modules if name.startswith(tuple(heavy))]
json.dump(shown, sys.stdout)
"""


def test_every_script_has_help_that_needs_torch_alone():
    """So that it comes at once."""
    scripts = [*SCRIPTS, *STUDIES]
    done = fresh.run(HELP, json.dumps([HEAVY, scripts]))
    assert done.returncode == 0, done.stderr
    for script, (text, heavy) in json.loads(done.stdout).items():
        flag = "--snapshot" if script.startswith("testing") else "--quick" if script in STUDIES else "--epochs"
        assert flag in text and script.split("_")[1].removesuffix(".py")[:6] in text.lower(), script
        assert not heavy, script


ERRORS = [
    (["main_cifar10.py", "--data_root", "/nowhere"], "/nowhere"),
    (["main_mnist5k.py", "--resume", "/nowhere"], "/nowhere"),
    (["testing_mnist5k.py"], "--snapshot"),
    (["testing_mnist5k.py", "--snapshot", "README.md"], r"README.md cannot be loaded safely"),
]


@pytest.mark.parametrize(("command", "message"), ERRORS)
def test_errors_are_one_message_and_exit_code_1(run_script, tmp_path, monkeypatch, repository, command, message):
    (tmp_path / "README.md").write_text("no checkpoint")
    monkeypatch.chdir(tmp_path)
    failed = run_script(*command)
    assert failed.code == 1
    assert re.search(f"error: .*{message}", failed.messages) and "Traceback" not in failed.messages


def test_an_error_is_one_line_of_the_terminal(repository):
    failed = start(repository, sys.executable, "main_mnist5k.py", "--resume", "README.md")
    assert failed.returncode == 1 and not failed.stdout
    assert re.fullmatch(r"error: README.md cannot be loaded safely as a checkpoint: .*\n", failed.stderr)


def test_an_error_of_the_program_keeps_its_traceback(tmp_path, stripes, monkeypatch):
    def load(*args, **options):
        raise ValueError("a bug")

    monkeypatch.setattr(type(stripes), "load", load)
    with pytest.raises(ValueError, match="a bug"):
        cli.train(stripes, argv=["--run_dir", str(tmp_path / "run")])


def test_an_error_in_a_network_keeps_its_traceback_and_one_of_its_settings_is_a_line(
    tmp_path, stripes, monkeypatch, caplog
):
    def broken(*args, **options):
        return dict([(1, 2, 3)])

    command = ["--model", "toynet", "--threads", "1", "--run_dir", str(tmp_path / "run")]
    with monkeypatch.context() as patch, pytest.raises(ValueError, match="length 3; 2 is required"):
        patch.setitem(MODELS, "toynet", broken)
        cli.train(stripes, argv=command)
    with pytest.raises(SystemExit) as error:
        cli.train(stripes, argv=[*command, "--decay_input", "--tau", "1"])
    assert error.value.code == 1 and "decay_input=True with decay=1 would ignore the input" in caplog.text


def test_what_a_network_cannot_run_with_is_a_line(tmp_path, stripes, monkeypatch, caplog):
    command = ["--model", "toynet", "--threads", "1"]
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setenv("NSNN_KERNELS", "eagre")
        cli.train(stripes, argv=[*command, "--run_dir", str(tmp_path / "run")])
    assert "error: NSNN_KERNELS must be auto or eager, got 'eagre'" in caplog.text
    neuron = build_neuron("NILIF", learnable_scale=True)
    net = build_model("toynet", neuron=neuron, in_shape=stripes.in_shape, num_classes=stripes.num_classes)
    torch.nn.init.constant_(net.stem_neuron.log_scale, torch.nan)
    torch.save(net.state_dict(), tmp_path / "diverged.pth")
    with pytest.raises(SystemExit):
        cli.test(stripes, [*command, "--neuron", "NILIF", "--snapshot", str(tmp_path / "diverged.pth")])
    assert "error: scale must be positive and finite, got nan" in caplog.text


def test_a_published_checkpoint_is_tested_as_the_readme_says(run_script, undrawn, tmp_path, monkeypatch):
    """sresnet18 of the published code, random weights, on a CIFAR-10 folder of a few images."""
    monkeypatch.setenv("NSNN_CACHE", str(tmp_path / "cache"))
    image_folder(tmp_path / "data", test=1)
    net = build_model("sresnet18", neuron=build_neuron("NILIF"), in_shape=(3, 32, 32), num_classes=10)
    weights = {f"module.{published_key('sresnet18', key)}": value for key, value in net.state_dict().items()}
    torch.save({"net": weights, "acc": 90.0, "epoch": 1}, tmp_path / "theirs.pth")
    flags = ["--model", "sresnet18", "--neuron", "NILIF", "--sigma", 0.3, "--draws", 1, "--threads", 1]
    tested = run_script(
        "testing_cifar10.py", "--snapshot", tmp_path / "theirs.pth", "--data_root", tmp_path / "data", *flags
    )
    assert tested.code == 0, tested.messages
    content = json.loads((tmp_path / "evaluation-theirs" / "clean.json").read_text())
    assert content["identity"]["test_images"] == 10 and content["identity"]["network"]["model"] == "sresnet18"


def test_run_training_refuses_an_unknown_recipe_and_lists_those_there_are(repository, tmp_path):
    failed = start(repository, "bash", str(repository / "run_training.sh"), "nosuch.yaml", cwd=tmp_path)
    assert failed.returncode == 1
    assert "no recipe nosuch.yaml" in failed.stderr and "configs/mnist5k_nsnn.yaml" in failed.stderr
    (tmp_path / "bad.yaml").write_text("dataset: nosuch\n")
    failed = start(repository, "bash", str(repository / "run_training.sh"), "bad.yaml", cwd=tmp_path)
    assert failed.returncode == 1 and "dataset: NAME" in failed.stderr


@pytest.mark.slow
def test_run_training_runs_a_recipe_from_another_folder_with_flags(repository, tmp_path):
    (tmp_path / "mine.yaml").write_text('dataset: "mnist5k"  # embedded\nmodel: toynet\nepochs: 1\nminibatch: 100\n')
    run = tmp_path / "run"
    command = ["bash", str(repository / "run_training.sh"), "mine.yaml", "--run_dir", str(run), "--threads", "1"]
    done = start(repository, *command, cwd=tmp_path, CDPATH="/tmp")
    assert done.returncode == 0, done.stderr
    assert (run / "best.pth").exists() and "test accuracy" in done.stderr
    assert "\r" not in done.stderr  # no progress bar where the output is not a terminal


@pytest.mark.parametrize(
    ("arguments", "dataset", "flags", "conditions"),
    [
        ([], "mnist5k", "", "glance --perturbation add_gaussian sp --range --left 0 --right 0.3 --step 0.15"),
        (["digits", "--lr", "1"], "mnist5k", " --lr 1", "--perturbation add_gaussian sp --range --left 0 --right 0.3"),
        (["events"], "motions", "", "--perturbation eventdrop polarity_flip --range --left 0 --right 0.6 --step 0.3"),
    ],
)
def test_the_demonstrations_train_and_test_two_networks(repository, tmp_path, arguments, dataset, flags, conditions):
    """By what is started: `python` is a stand-in that notes its arguments."""
    (tmp_path / "python").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n')
    (tmp_path / "python").chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    command = ["bash", str(repository / "run_training.sh"), *arguments]
    done = subprocess.run(command, env={**os.environ, "PATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    _, *calls = (tmp_path / "calls").read_text().splitlines()  # the first one looks for packages
    nsnn, snn, test = calls
    folder = nsnn.split()[4].removesuffix("/nsnn")
    for network, call in (("nsnn", nsnn), ("snn", snn)):
        recipe = f"configs/{dataset}_{network}.yaml"
        assert call == f"main_{dataset}.py --config {recipe} --run_dir {folder}/{network}{flags}"
    assert test.startswith(f"testing_{dataset}.py --draws 3 --uncertainty --efficiency --pictures --out {folder} ")
    assert conditions in test
    assert test.endswith(f"--compare NSNN={folder}/nsnn/best.pth SNN={folder}/snn/best.pth")
    for kind, call in ((TrainConfig, nsnn), (TrainConfig, snn), (EvaluationConfig, test)):
        parse(kind, call.split()[1:], dataset=DATASETS[dataset])  # no flag is unknown


@pytest.mark.parametrize("script", [script for script in SCRIPTS if script.startswith("main")])
def test_the_defaults_of_a_training_script_are_valid(repository, script):
    content = runpy.run_path(str(repository / script))
    dataset = DATASETS[script.removeprefix("main_").removesuffix(".py")]
    config, _ = parse(TrainConfig, [], content.get("DEFAULTS"), dataset)
    neuron = build_neuron(config.neuron)
    build_model(config.model, neuron=neuron, in_shape=(1, 32, 32), num_classes=2, width=0.05)


@pytest.mark.slow
def test_a_demonstration_trains_both_networks_and_shows_them(repository, tmp_path):
    """`bash run_training.sh digits`, shortened, in a copy of the repository, from another folder."""
    copy = tmp_path / "a copy"  # paths may have spaces
    unwanted = {repository / name for name in (".git", ".venv", "results", "data", ".pytest_cache")}
    shutil.copytree(repository, copy, ignore=lambda folder, names: {n for n in names if Path(folder, n) in unwanted})
    command = ["bash", str(copy / "run_training.sh"), "digits", "--epochs", "1", "--width", "0.05", "--model", "toynet"]
    done = start(repository, *command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    table = done.stderr[done.stderr.index("test accuracy, %") :].splitlines()
    assert table[0].split()[-2:] == ["NSNN", "SNN"] and table[1].split() == ["inference", "noisy", "deterministic"]
    assert table[2].startswith("clean")
    accuracies = [float(word) for word in re.findall(r"(\d+\.\d+) \+-", table[2])]
    assert len(accuracies) == 2
    rows = "\n".join(table)
    assert "\nattack (Linf): all 0.15 " in rows and "\ncalibration error of 16 draws, % " in rows
    assert "\nenergy of a sample, nJ " in rows and "\nNSNN minus SNN, in points of accuracy: clean " in rows
    (report,) = re.findall(r"^report: (.*\.html)$", done.stderr, re.MULTILINE)
    assert (copy / report).read_text().count("<img") > 3
    folder = (copy / report).parent
    document = json.loads((folder / "results.json").read_text())
    for group, accuracy in zip(("NSNN", "SNN"), accuracies):
        (one,) = document["kinds"][group]
        assert 100 * one["perturbations"]["clean"]["points"][0]["accuracy_mean"] == pytest.approx(accuracy, abs=0.01)
        assert "uncertainty" in one and "efficiency" in one
        shown = {path.name for path in (folder / group.lower() / "evaluation").glob("*.png")}
        assert shown - {f"{name}.png" for name in one["perturbations"]} == {"rasters.png"}


@pytest.mark.slow
def test_the_noisy_network_of_the_demonstration_of_digits_learns(run_script, repository, tmp_path):
    """In 2 of 45 epochs, too few for a moving average of weights. Seeds 0 to 5: 93.7 +- 0.7 %; other processors round
    otherwise."""
    recipe = repository / "configs" / "mnist5k_nsnn.yaml"
    flags = ["--config", recipe, "--epochs", 2, "--ema", 0, "--run_dir", tmp_path / "run", "--threads", 1]
    assert run_script("main_mnist5k.py", *flags).code == 0
    assert json.loads((tmp_path / "run" / "test.json").read_text())["accuracy"] > 0.9


@pytest.mark.slow
def test_the_deterministic_network_of_the_demonstration_of_events_learns(run_script, repository, tmp_path, monkeypatch):
    """In 3 of 24 epochs, with 60 recordings of a class. Seeds 0 to 3: a loss of 2.11 +- 0.02, where chance has 2.40."""
    make_streams = motions.make_streams
    monkeypatch.setattr(motions, "make_streams", lambda digits, count, seed: make_streams(digits, min(count, 60), seed))
    monkeypatch.setattr("dataset_utils.cache_folder", lambda: tmp_path / "cache")
    recipe = repository / "configs" / "motions_snn.yaml"
    flags = ["--config", recipe, "--epochs", 3, "--run_dir", tmp_path / "run", "--threads", 1]
    assert run_script("main_motions.py", *flags).code == 0
    assert json.loads((tmp_path / "run" / "test.json").read_text())["loss"] < 2.25


def test_the_environment_check_sees_what_is_missing(repository, tmp_path):
    """`satisfies` decides whether an active Python is good enough."""
    script = 'source tools/environment.sh; satisfies "$1" "$2"'
    for content, code in (("torch>=2.0\n# comment\n", 0), ("torch>=99\n", 1), ("no-such-package>=1\n", 1)):
        (tmp_path / "requirements.txt").write_text(content)
        (tmp_path / "dev.txt").write_text("-r requirements.txt\n")
        for name in ("requirements.txt", "dev.txt"):
            checked = start(repository, "bash", "-c", script, "bash", sys.executable, str(tmp_path / name))
            assert checked.returncode == code

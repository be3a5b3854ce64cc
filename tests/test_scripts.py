"""The scripts as a user runs them, each in a process of its own."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dataset_utils import DATASETS
from tests.tools.data.events.written import striped_nmnist_tree
from tools.perturb import PERTURBATIONS

SCRIPTS = [f"{kind}_{dataset}.py" for kind in ("main", "testing") for dataset in DATASETS]
STUDIES = ["main_theory.py", "main_regularisation.py", "main_coding.py"]
HEAVY = {"torchvision", "mlxtend", "pandas", "scipy", "sklearn", "matplotlib", "tensorboard", "sympy", "torch._dynamo"}


def run(repository, *command, cwd=None, timeout=600, **environment):
    path = f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}"  # so that bash scripts find this Python
    env = {**os.environ, "PATH": path, **environment}
    return subprocess.run(command, cwd=cwd or repository, env=env, capture_output=True, text=True, timeout=timeout)


def test_main_mnist5k_learns_resumes_and_is_tested(repository, tmp_path):
    options = ["--width", "0.05", "--minibatch", "100", "--run_dir", str(tmp_path / "run"), "--threads", "1"]
    trained = run(repository, sys.executable, "main_mnist5k.py", "--epochs", "3", "--scheduler", "none", *options)
    assert trained.returncode == 0, trained.stderr
    assert "test accuracy" in trained.stderr
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[2]["train_loss"] < rows[1]["train_loss"] < rows[0]["train_loss"]
    assert "\r" not in trained.stderr  # no progress bar where the output is no terminal

    longer = run(repository, sys.executable, "main_mnist5k.py", "--resume", str(tmp_path / "run"), "--epochs", "4")
    assert longer.returncode == 0, longer.stderr
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 4

    snapshot = str(tmp_path / "run" / "best.pth")
    tested = run(
        repository, sys.executable, "testing_mnist5k.py", "--snapshot", snapshot, "--perturbation", "sp", "--draws", "2"
    )
    assert tested.returncode == 0, tested.stderr
    points = json.loads((tmp_path / "run" / "evaluation" / "sp.json").read_text())["points"]
    assert points[0]["accuracy_mean"] > 0.5 and len(points[1]["accuracy_draws"]) == 2
    assert (tmp_path / "run" / "evaluation" / "sp.png").exists()


def test_main_nmnist_learns_and_is_tested_on_perturbed_events_with_pictures(repository, tmp_path):
    striped_nmnist_tree(tmp_path / "nmnist")
    folder, environment = tmp_path / "run", {"NSNN_DATA": str(tmp_path), "NSNN_CACHE": str(tmp_path / "cache")}
    options = ["--width", "0.05", "--epochs", "12", "--timestep", "4", "--minibatch", "20"]
    options += ["--roll", "1", "--lr", "0.01", "--no-histograms", "--run_dir", str(folder)]
    trained = run(repository, sys.executable, "main_nmnist.py", *options, **environment)
    assert trained.returncode == 0, trained.stderr
    assert json.loads((folder / "test.json").read_text())["accuracy"] > 0.5

    names = [name for name, perturbation in PERTURBATIONS.items() if perturbation.where == "events"]
    assert len(names) == 8
    command = [
        sys.executable,
        "testing_nmnist.py",
        "--snapshot",
        str(folder / "best.pth"),
        "--draws",
        "2",
        "--pictures",
    ]
    tested = run(repository, *command, "--pictures", "--drop_p", "1.0", "--perturbation", *names, **environment)
    assert tested.returncode == 0, tested.stderr
    for name in names:
        clean, perturbed = json.loads((folder / "evaluation" / f"{name}.json").read_text())["points"]
        assert clean["strength"] == 0 < perturbed["strength"] and clean["accuracy_mean"] > 0.5
        assert perturbed["loss_draws"] != clean["loss_draws"]
    dropped = json.loads((folder / "evaluation" / "eventdrop.json").read_text())["points"][-1]
    assert dropped["strength"] == 1 and dropped["accuracy_mean"] < 0.35  # nothing is left to see
    for picture in ("recordings", "rasters"):
        assert (folder / "evaluation" / f"{picture}.png").stat().st_size > 10_000

    refused = run(repository, *command, "--perturbation", "sp", **environment)
    assert refused.returncode == 1 and "sp perturbs pixels" in refused.stderr


@pytest.mark.parametrize("script", [*SCRIPTS, *STUDIES])
def test_every_script_has_help_at_once_and_names_what_it_is_for(repository, script):
    shown = run(repository, sys.executable, "-X", "importtime", script, "--help")
    assert shown.returncode == 0, shown.stderr
    assert script.split("_")[1].removesuffix(".py")[:6] in shown.stdout.lower()
    flag = "--snapshot" if script.startswith("testing") else "--quick" if script in STUDIES else "--epochs"
    assert flag in shown.stdout
    imported = {line.rpartition("|")[2].strip() for line in shown.stderr.splitlines()}
    assert "torch" in imported and not imported & HEAVY  # no more than torch, so that it takes no longer


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["main_cifar10.py", "--data_root", "/nowhere"], "/nowhere"),
        (["main_mnist5k.py", "--resume", "/nowhere"], "/nowhere"),
        (["testing_mnist5k.py"], "--snapshot"),
        (["testing_mnist5k.py", "--snapshot", "README.md"], r"README.md cannot be loaded safely"),
    ],
)
def test_errors_are_one_line_and_exit_code_1(repository, command, message):
    failed = run(repository, sys.executable, *command)
    assert failed.returncode == 1
    assert re.search(f"^error: .*{message}", failed.stderr, re.MULTILINE) and "Traceback" not in failed.stderr


def test_an_error_of_the_program_keeps_its_traceback(repository, tmp_path):
    code = """
import sys
from tools import cli
class Data:
    name, num_classes, mean, std, has_pixels = "broken", 2, (0.0,), (1.0,), True
    def input_shape(self, config): return 1, 8, 8
    def load(self, config=None): raise ValueError("a bug")
cli.train(Data(), argv=["--run_dir", sys.argv[1]])
"""
    failed = run(repository, sys.executable, "-c", code, str(tmp_path / "run"))
    assert failed.returncode == 1 and "Traceback" in failed.stderr and "ValueError: a bug" in failed.stderr


def test_a_published_checkpoint_is_tested_as_the_readme_says(repository, tmp_path):
    """sresnet18 of the published code, random weights, on a CIFAR-10 folder of a few images."""
    import numpy as np
    from PIL import Image

    from models import build_model, build_neuron
    from tools.published import published_key

    for split in ("train", "test"):
        for label in range(10):
            folder = tmp_path / "data" / split / f"class{label}"
            folder.mkdir(parents=True)
            for index in range(10 if split == "train" else 1):
                Image.fromarray(np.full((32, 32, 3), 20 * label + index, np.uint8)).save(folder / f"{index}.png")
    net = build_model("sresnet18", neuron=build_neuron("NILIF"), in_shape=(3, 32, 32), num_classes=10)
    weights = {f"module.{published_key('sresnet18', key)}": value for key, value in net.state_dict().items()}
    torch.save({"net": weights, "acc": 90.0, "epoch": 1}, tmp_path / "theirs.pth")
    tested = run(
        repository,
        *(sys.executable, "testing_cifar10.py", "--snapshot", str(tmp_path / "theirs.pth")),
        *("--model", "sresnet18", "--neuron", "NILIF", "--sigma", "0.3", "--draws", "1"),
        *("--data_root", str(tmp_path / "data")),
        NSNN_CACHE=str(tmp_path / "cache"),
    )
    assert tested.returncode == 0, tested.stderr
    content = json.loads((tmp_path / "evaluation-theirs" / "clean.json").read_text())
    assert content["identity"]["test_images"] == 10 and content["identity"]["network"]["model"] == "sresnet18"


def test_run_training_refuses_an_unknown_recipe_and_lists_those_there_are(repository, tmp_path):
    failed = run(repository, "bash", str(repository / "run_training.sh"), "nosuch.yaml", cwd=tmp_path)
    assert failed.returncode == 1
    assert "no recipe nosuch.yaml" in failed.stderr and "configs/mnist5k_nsnn.yaml" in failed.stderr


def test_the_demonstration_of_events_takes_no_flags(repository):
    failed = run(repository, "bash", "run_training.sh", "events", "--epochs", "1")
    assert failed.returncode == 1 and "takes no flags, got --epochs 1" in failed.stderr


def test_run_training_runs_a_recipe_from_another_folder_with_flags(repository, tmp_path):
    (tmp_path / "mine.yaml").write_text('dataset: "mnist5k"  # embedded\nwidth: 0.05\nepochs: 1\nminibatch: 100\n')
    folder = tmp_path / "run"
    done = run(
        repository,
        "bash",
        str(repository / "run_training.sh"),
        "mine.yaml",
        "--run_dir",
        str(folder),
        cwd=tmp_path,
        CDPATH="/tmp",
    )
    assert done.returncode == 0, done.stderr
    assert (folder / "best.pth").exists()
    (tmp_path / "bad.yaml").write_text("dataset: nosuch\n")
    failed = run(repository, "bash", str(repository / "run_training.sh"), "bad.yaml", cwd=tmp_path)
    assert failed.returncode == 1 and "dataset: NAME" in failed.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "least", "pictures"),
    [
        ([], 96.5, {"rasters.png"}),  # about 98, less more than three standard errors of 1,000 images
        (
            ["events"],
            90,
            {"rasters.png", "recordings.png"},
        ),  # what one image does not tell (see test_motions), a spiking network reads from time
    ],
)
def test_the_demonstrations_train_both_networks_and_show_them(repository, tmp_path, arguments, least, pictures):
    """`bash run_training.sh` in a copy of the repository, from another folder."""
    copy = tmp_path / "a copy"  # paths may have spaces
    unwanted = {repository / name for name in (".git", ".venv", "results", "data", ".pytest_cache")}
    shutil.copytree(repository, copy, ignore=lambda folder, names: {n for n in names if Path(folder, n) in unwanted})
    cache = {"NSNN_CACHE": str(tmp_path / "cache")} if arguments else {}
    done = run(repository, "bash", str(copy / "run_training.sh"), *arguments, cwd=tmp_path, timeout=1200, **cache)
    assert done.returncode == 0, done.stderr
    table = done.stderr[done.stderr.index("test accuracy, %") :].splitlines()
    assert table[0].split()[-2:] == ["NSNN", "SNN"] and table[1].startswith("clean")
    accuracies = [float(word) for word in re.findall(r"(\d+\.\d+) \+-", table[1])]
    assert len(accuracies) == 2 and min(accuracies) > least
    (report,) = re.findall(r"^report: (.*\.html)$", done.stderr, re.MULTILINE)
    assert (copy / report).stat().st_size > 100_000
    folder = (copy / report).parent
    document = json.loads((folder / "results.json").read_text())
    assert len(document["kinds"]["NSNN"][0]["perturbations"]) == 3 and "uncertainty" in document["kinds"]["SNN"][0]
    for network in ("nsnn", "snn"):
        shown = {path.name for path in (folder / network / "evaluation").glob("*.png")}
        assert shown - {f"{name}.png" for name in document["kinds"]["SNN"][0]["perturbations"]} == pictures


def test_the_environment_check_sees_what_is_missing(repository, tmp_path):
    """`satisfies` decides whether an active Python is good enough."""
    script = 'source tools/environment.sh; satisfies "$1" "$2"'
    for content, code in (("torch>=2.0\n# comment\n", 0), ("torch>=99\n", 1), ("no-such-package>=1\n", 1)):
        (tmp_path / "requirements.txt").write_text(content)
        (tmp_path / "dev.txt").write_text("-r requirements.txt\n")
        for name in ("requirements.txt", "dev.txt"):
            checked = run(repository, "bash", "-c", script, "bash", sys.executable, str(tmp_path / name))
            assert checked.returncode == code

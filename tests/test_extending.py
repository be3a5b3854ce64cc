"""docs/extending.md is right: with its examples at the places that it names, the scripts train and test."""

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from models import neurons

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "extending.md"
BLOCK = re.compile(
    r"^(?:In `(?P<path>[^`]+)`, (?P<where>above|below|instead of) `(?P<anchor>[^\n]+)`|New file `(?P<new>[^`]+)`):"
    r"\n\n```python\n(?P<code>.*?)```$",
    re.MULTILINE | re.DOTALL,
)
RUN = """
import runpy, sys
def run(script, *arguments):
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")
options = ["--minibatch", "20", "--lr", "0.01", "--threads", "1", "--no-histograms"]
run("main_bars.py", "--model", "mlp", "--neuron", "NILIF_laplace", "--loss", "hinge", "--run_dir", "laplace", *options)
run("main_bars.py", "--neuron", "TanhLIF", "--epochs", "1", "--run_dir", "tanh", *options)
run("testing_bars.py", "--snapshot", "laplace/best.pth", "--perturbation", "invert", "--draws", "2", "--uncertainty",
    "--efficiency", "--threads", "1", "--out", "laplace")
"""


def copied(folder):
    """A copy of what git tracks, and of what is new and not ignored."""
    # Also where the files belong to another user, as in some containers.
    command = ["git", "-c", "safe.directory=*", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    for name in names:
        if name.endswith((".py", ".c", ".html")) and (ROOT / name).exists() and not name.startswith("tests/"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())


def apply(block, folder):
    if block["new"]:
        path = folder / block["new"]
        assert not path.exists()
        path.write_text(block["code"])
        return
    path, anchor, code = folder / block["path"], block["anchor"], block["code"]
    text = path.read_text()
    assert text.count(anchor) == 1, f"{block['path']} has {text.count(anchor)} places with {anchor!r}"
    before, after = text.split(anchor)
    if block["where"] == "instead of":
        path.write_text(before + code.removesuffix("\n") + after)
    elif block["where"] == "above":
        space = "\n\n" if code.startswith(("class", "def", "@")) else ""
        path.write_text(before + code + space + anchor + after)
    else:
        line, rest = after.split("\n", 1)
        path.write_text(f"{before}{anchor}{line}\n{code}{rest}")


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """A copy of the repository with all examples of the page, in which they were trained and tested."""
    folder = tmp_path_factory.mktemp("extended")
    copied(folder)
    for block in BLOCK.finditer(PAGE.read_text()):
        apply(block, folder)
    done = subprocess.run([sys.executable, "-c", RUN], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_law_network_loss_and_data_set_are_trained_with(extended):
    text = (extended / "laplace" / "config.yaml").read_text()
    for line in ("dataset: bars", "model: mlp", "neuron: NILIF_laplace", "loss: hinge"):
        assert line in text.splitlines()
    assert json.loads((extended / "laplace" / "test.json").read_text())["accuracy"] > 0.9


@pytest.mark.slow
def test_the_neuron_is_trained_with(extended):
    assert "neuron: TanhLIF" in (extended / "tanh" / "config.yaml").read_text().splitlines()
    assert (extended / "tanh" / "best.pth").exists()


@pytest.mark.slow
def test_the_network_is_tested_with_perturbation_and_metric(extended):
    results = json.loads((extended / "laplace" / "results.json").read_text())
    ((snapshot,),) = results["kinds"].values()
    assert [point["strength"] for point in snapshot["perturbations"]["invert"]["points"]] == [0.0, 0.3]
    assert all(row["top2_accuracy"] == 1 for row in snapshot["uncertainty"]["curve"])  # of two classes
    assert "top2_accuracy" in (extended / "laplace" / "report.html").read_text()


def test_the_page_has_an_example_in_each_place_that_its_table_links():
    page = PAGE.read_text()
    linked = re.findall(r"\[[^\]]+\]\(#([a-z-]+)\)", page)
    parts = {part.split("\n")[0].lower().replace(" ", "-"): part for part in page.split("\n## ")[1:]}
    assert set(linked) == set(parts)
    assert all(BLOCK.search(part) for part in parts.values())
    assert page.count("```python") == len(BLOCK.findall(page))


def test_the_neuron_is_called_as_its_base():
    (code,) = [block["code"] for block in BLOCK.finditer(PAGE.read_text()) if "class SaturatingLIF" in block["code"]]
    scope = dict(vars(neurons))
    exec(code, scope)
    saturating, x = scope["SaturatingLIF"], torch.rand(3, 2, 4)
    assert inspect.signature(saturating.run) == inspect.signature(neurons.LIF.run)  # with its annotations, for mypy
    spikes, _, potentials = saturating().run(x, potentials=True)
    assert torch.equal(potentials > 1, spikes.bool())


def test_what_the_page_names_is_in_the_files_beside_it():
    head = PAGE.read_text().partition("\n## ")[0]
    entries = re.findall(r"^\| .*|^- \*\*(?:.|\n  )*", head, re.MULTILINE)
    assert sum("`models/" in entry for entry in entries) > 3 and sum("`tools/" in entry for entry in entries) > 10
    for entry in entries:
        paths = re.findall(r"`((?:models|crits|tools)/[\w/]+\.(?:py|c)|dataset_utils\.py)`", entry)
        text = "".join((ROOT / path).read_text() for path in paths)
        for name in re.findall(r"`(?:[A-Z][a-z]\w*\.)?(\w+)(?:\(\.*\))?`", entry):
            assert not paths or name in text, f"{name} is not in {', '.join(paths)}"

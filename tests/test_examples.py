"""The examples run as they stand, with the libraries that they show, and are short."""

import ast
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "examples"

# What an example needs, the numbers in its output, and what they must be (the loss of ten equal guesses is 2.3; bounds
# are six standard deviations or more from the mean of 8 runs, a chance of about 1e-9).
EXAMPLES = {
    "train_with_lightning": (["lightning"], r"accuracy\W+([\d.]+)", lambda found: found[0] > 0.8),
    "train_with_accelerate": (["accelerate"], r"loss ([\d.]+)", lambda found: len(found) == 5 and found[-1] < 0.5),
    "train_with_timm": (["timm"], r"loss ([\d.]+)", lambda found: len(found) == 3 and found[2] < 1.7),
    "share_on_hugging_face": (["huggingface_hub"], r"difference: ([\d.]+)", lambda found: found == [0]),
    "spikingjelly_memory": (["spikingjelly"], r"([\d.]+) MB", lambda found: found[1] < found[0] / 10),
    "spikingjelly_operations": (["spikingjelly"], r"(\d+) synaptic", lambda found: 0 < found[0] < found[1]),
}
PARTS = {"timm_model"}  # which an example imports


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """A folder with the package `nsnn` as an installation has it, made of links to the repository."""
    folder = tmp_path_factory.mktemp("packages")
    (folder / "nsnn").mkdir()
    for path in (*(ROOT / "models").iterdir(), ROOT / "crits"):
        (folder / "nsnn" / path.name).symlink_to(path)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs(name, packages, tmp_path):
    libraries, pattern, is_right = EXAMPLES[name]
    for library in libraries:
        if importlib.util.find_spec(library) is None:  # to import it here would take seconds
            pytest.skip(f"{library} is not installed")
    environment = {**os.environ, "PYTHONPATH": str(packages), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, str(FOLDER / f"{name}.py")], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert is_right([float(number) for number in re.findall(pattern, done.stdout)]), done.stdout
    assert "neuron settings" not in done.stderr  # what is saved and loaded has them


def test_every_example_is_run():
    assert {path.stem for path in FOLDER.glob("*.py")} == EXAMPLES.keys() | PARTS


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_has_at_most_twenty_lines_and_says_what_it_shows(path):
    text = path.read_text()
    tree = ast.parse(text)
    assert ast.get_docstring(tree)
    code = text.splitlines()[tree.body[0].end_lineno :]
    assert 0 < sum(bool(line.strip()) for line in code) <= 20

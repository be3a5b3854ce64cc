"""The code of the README and of the pages runs as it stands there, and what they name exists."""

import re

import pytest
import torch
import yaml


@pytest.fixture
def run_page(repository):
    """Run all Python blocks of a page, one after the other, and return their names."""

    def run(page):
        blocks = re.findall(r"```python\n(.*?)```", (repository / page).read_text(), re.DOTALL)
        torch.manual_seed(0)
        names = {}
        for block in blocks:
            exec(compile(block, page, "exec"), names)
        return names

    return run


def test_the_python_examples_of_the_readme_run(run_page):
    names = run_page("README.md")
    assert names["spikes"].shape == (4, 8, 100) and names["current"].grad.any()
    assert names["logits"].shape == (4, 8, 10)
    law = names["Laplace"](0.3)
    assert names["NoisyLIF"](noise=law)(names["current"]).unique().tolist() == [0, 1]


def test_the_python_examples_about_neurons_run(run_page):
    names = run_page("docs/neurons.md")
    assert names["state"].shape == (8, 100)
    assert names["potentials"].shape == (4, 8, 100)
    assert names["logits"].shape == (4, 2, 10)


def test_the_code_beside_frequent_mistakes_is_right(run_page):
    names = run_page("docs/mistakes.md")  # which has assertions of its own
    assert names["net"].training is False and names["draws"].shape == (8, 16, 10)


def test_the_recipes_and_scripts_that_pages_name_exist(repository):
    pages = [repository / name for name in ("README.md", "CONTRIBUTING.md")] + [*(repository / "docs").glob("*.md")]
    text = "".join(page.read_text() for page in pages)
    paths = set(re.findall(r"(?:tests|configs|models|tools|docs)/[\w/]+\.(?:yaml|py|png|gif|md)", text))
    scripts = set(re.findall(r"\b(?:main|testing)_[a-z0-9]+\.py", text))
    assert "docs/extending.md" in paths and "main_cifar10.py" in scripts  # so they are found
    examples = {"models/mlp.py", "main_bars.py", "testing_bars.py", "configs/a.yaml", "configs/b.yaml"}
    for path in (paths | scripts) - examples:
        assert (repository / path).exists(), path


def test_the_map_has_each_module_of_models_and_each_package_of_tools(repository):
    places = (repository / "docs" / "map.md").read_text()
    modules = [path.name for path in (repository / "models").glob("[a-z]*.py")]
    packages = [f"{path.parent.name}/" for path in (repository / "tools").glob("*/__init__.py")]
    assert modules and packages
    for name in modules + packages:
        assert re.search(rf"(?<![\w/]){re.escape(name)}", places), name


def test_the_map_of_the_readme_has_each_package(repository):
    places = (repository / "README.md").read_text().partition("## Where things are")[2]
    packages = [path.parent.relative_to(repository).as_posix() for path in repository.glob("tools/*/__init__.py")]
    assert packages
    for name in ("models", "crits", "configs", "examples", "benchmarks", "docs", "tests", *packages):
        assert re.search(rf"(?<![\w/]){name}/ ", places + " "), name


def test_recipes_train_for_as_many_epochs_as_is_said_of_them(repository):
    """At their head, or in the table of results."""
    rows = re.findall(r"^\|.*", (repository / "docs" / "results.md").read_text(), re.MULTILINE)
    recipes = list((repository / "configs").glob("*.yaml"))
    assert recipes
    for path in recipes:
        head = [line for line in path.read_text().splitlines() if line.startswith("#")]
        said = [
            re.findall(r"(\d+) epochs", "\n".join(lines))
            for lines in (head, [row for row in rows if f"`{path.stem}`" in row])
        ]
        assert (said[0] or said[1]) == [str(yaml.safe_load(path.read_text())["epochs"])], path


def test_the_readme_is_short_and_has_the_two_commands(repository):
    text = (repository / "README.md").read_text()
    assert len(text.splitlines()) <= 200
    assert "bash run_training.sh" in text and "bash run_tests.sh" in text

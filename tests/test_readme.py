"""The README's code runs as it stands there, and what it names exists."""

import re

import yaml


def test_the_python_example_runs(repository):
    (example,) = re.findall(r"```python\n(.*?)```", (repository / "README.md").read_text(), re.DOTALL)
    names = {}
    exec(compile(example, "README.md", "exec"), names)
    assert names["spikes"].shape == (4, 8, 100)
    assert names["state"].shape == (8, 100)
    assert names["logits"].shape == (2, 8, 10)


def test_the_recipes_and_scripts_it_names_exist(repository):
    text = (repository / "README.md").read_text()
    paths = set(re.findall(r"(?:tests|configs|models|tools|docs)/[\w/]+\.(?:yaml|py|png|md)", text))
    scripts = set(re.findall(r"\b(?:main|testing)_[a-z0-9]+\.py", text))
    assert "docs/extending.md" in paths and "main_cifar10.py" in scripts  # so they are found
    for path in paths | scripts:
        assert (repository / path).exists(), path


def test_its_map_has_each_module_of_models_and_each_package_of_tools(repository):
    places = (repository / "README.md").read_text().partition("## Where things are")[2]
    modules = [path.name for path in (repository / "models").glob("[a-z]*.py")]
    packages = [f"{path.parent.name}/" for path in (repository / "tools").glob("*/__init__.py")]
    assert modules and packages
    for name in modules + packages:
        assert re.search(rf"(?<![\w/]){re.escape(name)}", places), name


def test_recipes_train_for_as_many_epochs_as_is_said_of_them(repository):
    """At their head, or in the table of results."""
    rows = re.findall(r"^\|.*", (repository / "README.md").read_text(), re.MULTILINE)
    recipes = list((repository / "configs").glob("*.yaml"))
    assert recipes
    for path in recipes:
        head = [line for line in path.read_text().splitlines() if line.startswith("#")]
        said = [
            re.findall(r"(\d+) epochs", "\n".join(lines))
            for lines in (head, [row for row in rows if f"`{path.stem}`" in row])
        ]
        assert (said[0] or said[1]) == [str(yaml.safe_load(path.read_text())["epochs"])], path

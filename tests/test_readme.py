"""The README's code runs as it stands there, and what it names exists."""

import re


def test_the_python_example_runs(repository):
    (example,) = re.findall(r"```python\n(.*?)```", (repository / "README.md").read_text(), re.DOTALL)
    names = {}
    exec(compile(example, "README.md", "exec"), names)
    assert names["spikes"].shape == (4, 8, 100)
    assert names["state"].shape == (8, 100)
    assert names["logits"].shape == (2, 8, 10)


def test_the_recipes_and_scripts_it_names_exist(repository):
    text = (repository / "README.md").read_text()
    for path in set(re.findall(r"(?:tests|configs|models|tools|docs)/[\w/]+\.(?:yaml|py|png|md)", text)):
        assert (repository / path).exists(), path
    for script in set(re.findall(r"\b(?:main|testing)_[a-z0-9]+\.py", text)):
        assert (repository / script).exists(), script

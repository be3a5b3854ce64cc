"""The layers of the house: imports point downward only, and libraries do not print."""

import ast

import pytest

# What each part may import of this project, besides itself.
ALLOWED = {
    "models": set(),
    "crits": set(),
    "tools": {"models", "crits", "tools"},
    "dataset_utils": {"tools"},
    "main": {"dataset_utils", "tools"},
    "testing": {"dataset_utils", "tools"},
}
# tools.engine receives model, criterion and batches; these modules know nothing above them either.
LOWEST = {
    *("engine", "distributed", "divergence", "interruption", "optim", "augment", "batches", "files", "images"),
    *("metrics", "npy", "plots", "runlog", "coding", "study"),
}
ENTRY_POINTS = ("evaluation", "testing", "cli")  # of which each may import those before it
PROJECT = {"models", "crits", "tools", "dataset_utils", "main", "testing"}


def imports(path, package):
    """Names of all imported modules; relative ones are made absolute."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                base = package[: len(package) - node.level + 1]
                module = ".".join([*base, node.module] if node.module else base)
                yield from ([module] if node.module else [f"{module}.{alias.name}" for alias in node.names])
            else:
                yield node.module
                yield from (f"{node.module}.{alias.name}" for alias in node.names)  # from tools import cli


def sources(repository):
    for part in ("models", "crits", "tools"):
        for path in sorted((repository / part).rglob("*.py")):
            yield part, path, list(path.relative_to(repository).parent.parts)
    for path in sorted(repository.glob("*.py")):
        yield path.stem.split("_")[0] if path.stem != "dataset_utils" else path.stem, path, []


def test_imports_point_downward(repository):
    found = 0
    for part, path, package in sources(repository):
        for name in imports(path, package):
            root = name.split(".")[0]
            top = root.split("_")[0] if root.startswith(("main_", "testing_")) else root
            if top in PROJECT and top != part:
                found += 1
                assert top in ALLOWED[part], f"{path} imports {name}"
    assert found > 10


def test_the_loops_import_neither_models_nor_criteria(repository):
    for part, path, package in sources(repository):
        if part == "tools" and path.stem in LOWEST:
            names = set(imports(path, package))
            assert not {name for name in names if name.split(".")[0] in {"models", "crits", "dataset_utils"}}, path
            assert not {name for name in names if name.startswith("tools.") and name.split(".")[1] not in LOWEST}, path


def test_nothing_below_imports_the_entry_points(repository):
    for part, path, package in sources(repository):
        if part == "tools":
            above = ENTRY_POINTS[ENTRY_POINTS.index(path.stem) + 1 :] if path.stem in ENTRY_POINTS else ENTRY_POINTS
            names = set(imports(path, package))
            assert not {name for name in names if name.split(".")[:2] in (["tools", x] for x in above)}, path


@pytest.mark.parametrize("part", ["models", "crits", "tools"])
def test_libraries_do_not_print(repository, part):
    for _, path, _ in (source for source in sources(repository) if source[0] == part):
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        assert not [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"], path

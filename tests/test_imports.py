"""The layers of the house: which package may import which, of this project; and libraries do not print."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BASE = {"tools.errors", "tools.io", "tools.plots", "tools.runtime"}
NETWORKS = {"models", "tools.config", "tools.networks", "tools.optim"}
LOOPS = {"tools.analysis", "tools.data", "tools.inference", "tools.probes"}
ALLOWED = {  # package: the packages that it may import, besides itself
    "models": set(),
    "crits": set(),
    "tools": set(),
    "tools.errors": set(),
    "tools.plots": set(),
    "tools.io": {"tools.errors"},
    "tools.runtime": {"tools.errors", "tools.io"},
    "tools.analysis": {"tools.errors"},
    "tools.optim": {"crits", "tools.errors"},
    "tools.data": BASE,
    "tools.inference": {"models", "tools.analysis", "tools.runtime"},
    "tools.probes": {*BASE, "crits", "tools.data", "tools.inference"},
    "tools.attacks": {*BASE, *LOOPS, "models"},
    "tools.perturb": {*BASE, *LOOPS, "tools.attacks"},
    "tools.config": {*BASE, "models", "crits", "tools.attacks", "tools.data", "tools.inference", "tools.optim"}
    | {"tools.perturb"},
    "tools.published": BASE,
    "tools.networks": {*BASE, "models", "tools.config", "tools.published"},
    "tools.training": {*BASE, *LOOPS, *NETWORKS, "crits"},
    "tools.evaluation": {*BASE, *LOOPS, *NETWORKS, "tools.attacks", "tools.perturb"},
    "tools.studies": {*BASE, *LOOPS, *NETWORKS, "crits", "tools.training"},
    "tools.sweep": {*BASE, "tools.training"},
    "tools.preprocess_events": {*BASE, "tools.data"},
    "tools.cli": {*BASE, "tools.config", "tools.training", "tools.evaluation", "tools.studies"},
    "dataset_utils": {*BASE, "tools.config", "tools.data"},
    "main": {"dataset_utils", "tools.cli", "tools.studies"},
    "testing": {"dataset_utils", "tools.cli"},
    "docs": set(),
    "benchmarks": {*BASE, *LOOPS, *NETWORKS},
}


def imports(path):
    """Names of all imported modules, wherever the statement is; relative ones are made absolute."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) - node.level + 1]] if node.level else []
            module = ".".join([*base, node.module] if node.module else base)
            yield from (f"{module}.{alias.name}" for alias in node.names)  # perhaps of a module: from tools import cli


def package_of(name):
    """The package of the table that a dotted name belongs to; None for one of another project."""
    top, *rest = name.split(".")
    top = top.split("_")[0] if top.startswith(("main_", "testing_")) else top
    if top == "tools" and rest:
        return f"tools.{rest[0]}"
    return top if top in ALLOWED else None


def sources():
    """[(name, path)] of all modules that are not tests."""
    folders = [
        path for part in ("models", "crits", "tools", "benchmarks", "docs") for path in (ROOT / part).rglob("*.py")
    ]
    for path in sorted([*folders, *ROOT.glob("*.py")]):
        yield ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"), path


@pytest.mark.parametrize(("name", "path"), list(sources()))
def test_imports_point_downward(name, path):
    package = package_of(name)
    assert package in ALLOWED, f"{path} belongs to no package of the table"
    for imported in imports(path):
        other = package_of(imported)
        assert other in (None, package, *ALLOWED[package]), f"{path} imports {imported}"


def test_the_table_has_no_circle_and_names_nothing_that_is_gone():
    left = dict(ALLOWED)
    while left:
        lowest = [package for package, below in left.items() if not below & left.keys()]
        assert lowest, f"these import each other: {', '.join(left)}"
        for package in lowest:
            del left[package]
    assert {package_of(name) for name, _ in sources()} == set(ALLOWED)


def test_packages_of_the_same_name_elsewhere_do_not_hide_these(tmp_path):
    names = ("models", "crits", "tools", "tests", "benchmarks", "docs")
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("")
    code = f"import sys; sys.path.append({str(tmp_path)!r})\n"
    code += "".join(
        f"import {name}; assert not {name}.__file__.startswith({str(tmp_path)!r}), {name}\n" for name in names
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def _unannotated(node, inside=""):
    """Names of public functions and methods in a module or class that lack the type of an argument."""
    for child in node.body:
        if isinstance(child, ast.ClassDef) and not child.name.startswith("_"):
            yield from _unannotated(child, f"{child.name}.")
        if isinstance(child, ast.FunctionDef) and (child.name == "__init__" or not child.name.startswith("_")):
            arguments = child.args.posonlyargs + child.args.args + child.args.kwonlyargs
            named = [one for one in arguments if one.arg not in ("self", "cls", "ctx")]
            no_result = child.returns is None and child.name != "__init__"
            if no_result or any(one.annotation is None for one in named):
                yield f"{inside}{child.name}"


def test_public_functions_of_the_packages_are_annotated():
    for name, path in sources():
        if name.split(".")[0] in ("models", "crits", "tools") and not name.startswith("models.kernels.cuda"):
            assert not list(_unannotated(ast.parse(path.read_text()))), path


def test_libraries_do_not_print():
    for name, path in sources():
        if name.split(".")[0] in ("models", "crits", "tools"):
            calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
            assert not [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"], path

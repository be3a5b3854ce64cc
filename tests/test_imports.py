"""The layers of the house: which package may import which, of this project; and libraries do not print."""

import ast
import glob
import subprocess
from pathlib import Path

import pytest

from tests import fresh

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
    "tools.inference": {"models", "crits", "tools.analysis", "tools.runtime"},
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
    "tools.sweep": {*BASE, "tools.cli", "tools.training"},
    "tools.preprocess_events": {*BASE, "tools.data"},
    "tools.export": {*BASE, "dataset_utils", "models", "tools.attacks", "tools.config"}
    | {"tools.networks", "tools.probes"},
    "tools.card": {*BASE, "models"},
    "tools.cli": {*BASE, "models", "tools.config", "tools.training", "tools.evaluation", "tools.studies"},
    "dataset_utils": {*BASE, "tools.config", "tools.data"},
    "main": {"dataset_utils", "tools.cli", "tools.studies"},
    "testing": {"dataset_utils", "tools.cli"},
    "docs": {*BASE, "dataset_utils", "models", "tools.data", "tools.studies"},  # the script of the pictures
    "docs.tutorials": {*BASE, *LOOPS, "dataset_utils", "models", "tools.attacks", "tools.studies"},
    "benchmarks": {*BASE, *LOOPS, *NETWORKS, "dataset_utils", "tools.attacks", "tools.evaluation"},
    "examples": set(),  # they import the package as it is installed
}
ALLOWED["tests"] = {*ALLOWED}  # and nothing else may import tests


def imports(text, package):
    """Names of all modules that code in a package imports, wherever it does; relative ones are made absolute.

    Args:
        package: its parts, ("tools", "io").
    """

    def absolute(module, level):
        return ".".join([*(package[: len(package) - level + 1] if level else ()), *filter(None, [module])])

    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = absolute(node.module, node.level)
            yield from (f"{module}.{alias.name}" for alias in node.names)  # perhaps of a module: from tools import cli
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            function, name = getattr(node.func, "attr", getattr(node.func, "id", "")), node.args[0].value
            if function in ("import_module", "__import__") and isinstance(name, str):
                module = name.lstrip(".")
                yield absolute(module, len(name) - len(module))


def package_of(name):
    """The package of the table that a dotted name belongs to; None for one of another project."""
    top, *rest = name.split(".")
    top = top.split("_")[0] if top.startswith(("main_", "testing_")) else top
    if top == "tools" and rest:
        return f"tools.{rest[0]}"
    if name.startswith("docs.tutorials."):
        return "docs.tutorials"
    return top if top in ALLOWED else None


def python_files():
    """All that git tracks or would track; outside of a repository, all."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.splitlines()
    except OSError:  # there is no git
        listed = []
    found = [path for path in map(ROOT.joinpath, listed) if path.is_file()]
    return found or [ROOT / path for path in glob.glob("**/*.py", root_dir=ROOT, recursive=True)]  # not in .venv


def sources():
    """[(name, path)] of all modules."""
    for path in sorted(python_files()):
        yield ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"), path


@pytest.mark.parametrize(("name", "path"), list(sources()))
def test_imports_point_downward(name, path):
    package = package_of(name)
    assert package in ALLOWED, f"{path} belongs to no package of the table"
    for imported in imports(path.read_text(), path.relative_to(ROOT).parent.parts):
        other = package_of(imported)
        assert other in (None, package, *ALLOWED[package]), f"{path} imports {imported}"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("import tools.attacks.campaign", "tools.attacks.campaign"),
        ("def f():\n    from tests import chance", "tests.chance"),
        ("from ..attacks import campaign", "tools.attacks.campaign"),
        ("importlib.import_module('tools.attacks.campaign')", "tools.attacks.campaign"),
        ("import_module('..attacks.campaign', __package__)", "tools.attacks.campaign"),
        ("campaign = __import__('tools.attacks.campaign')", "tools.attacks.campaign"),
    ],
)
def test_no_way_to_import_is_overlooked(text, name):
    assert list(imports(text, ("tools", "io"))) == [name]
    assert package_of(name) not in (None, "tools.io", *ALLOWED["tools.io"])


def test_python_in_any_folder_is_found(tmp_path, monkeypatch):
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "new.py").write_text("")
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    for start in (None, ["git", "init", "-q"]):
        if start:
            subprocess.run(start, cwd=tmp_path, check=True)
        assert list(sources()) == [("scripts.new", tmp_path / "scripts" / "new.py")]
    assert package_of("scripts.new") is None  # for which the table has no entry


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
    fresh.run(code).check_returncode()


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

"""models/ can be copied into anyone's project; models and crits need PyTorch alone."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

USE = """
import sys
sys.path.insert(0, {folder!r})
sys.modules["numpy"] = None  # any import of numpy fails from here on
import torch
torch.set_num_threads(1)
import models
assert models.__file__.startswith({folder!r}), models.__file__

for neuron in ("NILIF", "PLIF"):
    net = models.build_model(
        "sresnet18", neuron=models.build_neuron(neuron), in_shape=(3, 8, 8), num_classes=5, width=0.05
    )
    logits = net(torch.rand(2, 3, 8, 8), timesteps=3)
    assert logits.shape == (3, 2, 5)
    logits.square().sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
elsewhere = [name for name in sys.modules if name.split(".")[0] in ("crits", "tools", "dataset_utils", "tests")]
assert not elsewhere, elsewhere
print("used")
"""


@pytest.mark.parametrize("name", [pytest.param("models", marks=pytest.mark.slow), "nsnn_models"])
def test_models_alone_works_in_another_folder_under_any_name(tmp_path, name):
    shutil.copytree(ROOT / "models", tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    code = USE.format(folder=str(tmp_path)).replace("import models", f"import {name} as models")
    # -I: neither the working directory nor PYTHONPATH is searched
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "used"


def imported(path):
    """(level, module) of every import statement in a file, wherever it stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield 0, alias.name
        elif isinstance(node, ast.ImportFrom):
            yield node.level, node.module or ""


def sources(package):
    files = sorted((ROOT / package).rglob("*.py"))
    assert files, package
    return files


@pytest.mark.parametrize("package", ["models", "crits"])
def test_package_imports_torch_the_standard_library_and_itself_alone(package):
    allowed = {"torch", *sys.stdlib_module_names} | ({package} if package == "crits" else set())
    more = {  # Triton comes with PyTorch for CUDA, and is loaded there alone; interop imports a library when it is used
        **{path: {"triton"} for path in (ROOT / "models" / "kernels").glob("cuda*.py")},
        **{path: {path.stem} for path in (ROOT / "models" / "interop").glob("[!_]*.py")},
        **{path: {"nir", "numpy"} for path in (ROOT / "models" / "interop" / "nir").glob("*.py")},
    }
    foreign = [
        f"{path.relative_to(ROOT)}: {module}"
        for path in sources(package)
        for level, module in imported(path)
        if level == 0 and module.split(".")[0] not in allowed | more.get(path, set())
    ]
    assert not foreign, foreign


@pytest.mark.parametrize("package", ["models", "crits"])
def test_relative_imports_stay_inside_the_package(package):
    for path in sources(package):
        depth = len(path.relative_to(ROOT).parts) - 1  # 1 in the package itself, 2 in a folder of it
        assert all(level <= depth for level, _ in imported(path)), path


@pytest.mark.parametrize("package", ["models", "crits"])
def test_nothing_is_imported_behind_the_back_of_import_statements(package):
    interop = ROOT / "models" / "interop"
    own = (interop / "conversion.py", ROOT / "models" / "names.py")
    allowed = {path: {"import_module"} for path in own}  # of its own package
    allowed |= {path: {"numpy"} for path in (interop / "nir").glob("*.py")}  # NIR consists of its arrays
    for path in sources(package):
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        names = {getattr(node, "id", None) or getattr(node, "attr", None) for node in nodes}
        behind = names & {"__import__", "import_module", "exec", "eval", "numpy"} - allowed.get(path, set())
        assert not behind, f"{path}: {behind}"

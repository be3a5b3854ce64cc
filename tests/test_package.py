"""The package `nsnn`: built, installed into an environment of its own, and used there, away from the repository."""

import os
import re
import shutil
import site
import subprocess
import sys
import venv
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parent.parent
USE = """
import os, pathlib, torch
import nsnn, nsnn.crits
torch.manual_seed(0)
net = nsnn.build_model("toynet", neuron=nsnn.build_neuron("NILIF"), in_shape=(1, 8, 8), num_classes=2)
optimizer, loss = torch.optim.SGD(net.parameters(), 0.1), nsnn.crits.build_loss("rate")
before = [parameter.clone() for parameter in net.parameters()]
loss(net(torch.rand(4, 1, 8, 8), timesteps=3), torch.tensor([0, 1, 0, 1])).backward()
optimizer.step()
assert not any(torch.equal(*pair) for pair in zip(before, net.parameters()))
(library,) = pathlib.Path(os.environ["NSNN_CACHE"]).rglob("cpu-*.so")  # built of the installed C file
print(nsnn.__version__, pathlib.Path(nsnn.__file__).parent, pathlib.Path(nsnn.crits.__file__).parent)
"""


def run(*command, **options):
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    return done.stdout


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A copy of what git tracks, and of what is new and not ignored: building leaves files beside the sources."""
    folder = tmp_path_factory.mktemp("clone")
    options = ("--cached", "--others", "--exclude-standard")
    # Also where the files belong to another user, as in some containers.
    names = run("git", "-c", "safe.directory=*", "ls-files", *options, cwd=ROOT).splitlines()
    for name in names:
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def built(clone):
    """Folder of the source distribution, and of the wheel that is built of it."""
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", clone / "dist", clone)
    return clone / "dist"


class Environment:
    """A new virtual environment that also has the packages of this one, so that PyTorch need not be installed again."""

    def __init__(self, folder):
        venv.create(folder)
        self.python = folder / "bin" / "python"
        self.away = folder / "away"  # the working folder
        self.away.mkdir()
        self.variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        self.variables |= {"NSNN_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
        (packages,) = folder.glob("lib/python*/site-packages")
        (packages / "others.pth").write_text("\n".join(site.getsitepackages()))

    def install(self, *what):
        pip = [sys.executable, "-m", "pip", "--python", self.python, "install", "--no-index"]
        run(*pip, *what, cwd=self.away)  # it finds PyTorch, and would fail if anything else were needed

    def run(self, *arguments, **variables):
        return run(self.python, *arguments, cwd=self.away, env={**self.variables, **variables})


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """An environment with the wheel."""
    environment = Environment(tmp_path_factory.mktemp("installed"))
    environment.install(*built.glob("*.whl"))
    return environment


def test_the_wheel_has_all_files_of_both_packages_and_no_others(built, clone):
    (wheel,) = built.glob("nsnn-*-py3-none-any.whl")
    files = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    names = {"models": "nsnn", "crits": "nsnn/crits"}
    expected = {
        f"{names[folder]}/{path.relative_to(clone / folder)}"
        for folder in names
        for path in (clone / folder).rglob("*")
        if path.is_file() and path.suffix != ".pyc"  # which other tests leave there
    }
    assert files == expected


def test_pytorch_is_the_only_requirement(built):
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = [name for name in archive.namelist() if name.endswith("/METADATA")]
        message = message_from_string(archive.read(metadata).decode())
    needed = [one for one in message.get_all("Requires-Dist") if "extra ==" not in one]
    assert [re.split(r"\W", one)[0] for one in needed] == ["torch"]
    assert set(message.get_all("Provides-Extra")) >= {"spikingjelly", "snntorch", "norse", "sinabs", "nir", "onnx"}
    tested = "".join((ROOT / f"requirements-{name}.txt").read_text() for name in ("peers", "dev")).splitlines()
    extras = {one.split(";")[0].strip() for one in message.get_all("Requires-Dist") if "extra ==" in one}
    assert extras <= {re.split("[;#]", line)[0].strip() for line in tested}  # an older version may be there already
    assert message.get_payload() == (ROOT / "README.md").read_text()


def test_a_training_step_and_a_kernel_of_the_installed_package(installed):
    version, *folders = installed.run("-c", USE).split()
    packages = installed.python.parent.parent
    assert all(Path(folder).is_relative_to(packages) for folder in folders)
    assert f"\n## {version}\n" in (ROOT / "CHANGELOG.md").read_text()


def test_an_editable_installation_is_the_repository(clone, tmp_path):
    environment = Environment(tmp_path)
    environment.install("--no-build-isolation", "--editable", clone)
    _, *folders = environment.run("-c", USE).split()
    assert folders == [str(clone / "models"), str(clone / "crits")]


def renamed(text):
    """The same code for the installed package."""
    text = re.sub(r"(?<![\w./])models\b(?!/)", "nsnn", text)
    return re.sub(r"\b(from|import) crits\b", r"\1 nsnn.crits", text)


# Most of the time would go to these: to exporters and compilers, builds, every kernel, and those of other libraries.
SLOWEST = ("deploy", "tensor_parameters", "convert", "resets", "triton", "triton_compiles", "derivatives")
SLOWEST += ("eager", "contexts", "symbolic", "build", "normed", "triton_normed", "composed")
LEFT_OUT = ["tests/models/interop", *(f"tests/models/test_{name}.py" for name in SLOWEST)]
# For the tests' conftest.py: each test with its first parameters alone; kernels do not change in a package.
FIRST = """
@pytest.hookimpl(trylast=True)  # of those that are selected
def pytest_collection_modifyitems(items):
    items[:] = reversed({item.nodeid.partition("[")[0]: item for item in reversed(items)}.values())
"""


def test_fast_tests_of_models_and_crits_pass_for_the_installed_package(built, installed, tmp_path):
    (source,) = built.glob("*.tar.gz")
    shutil.unpack_archive(source, tmp_path)
    (tests,) = tmp_path.glob("*/tests")
    for path in tests.rglob("*.py"):
        path.write_text(renamed(path.read_text()))
    with (tests / "conftest.py").open("a") as conftest:
        conftest.write(FIRST)
    shutil.copytree(tests, installed.away / "tests")
    options = ["-q", "-p", "no:cacheprovider", "--import-mode=importlib", "-m", "not slow"]
    options += [f"--ignore={path}" for path in LEFT_OUT]
    command = ["-m", "pytest", "-c", os.devnull, "--rootdir", ".", *options, "tests/models", "tests/crits"]
    installed.run(*command, NSNN_CACHE=os.environ["NSNN_CACHE"])  # with the kernels that this session has built

"""What several tests share: a tiny data set that can be learnt in seconds.

It imports the rest of the project where that is used: the tests of `models` and `crits` run without it.
"""

import gc
import itertools
import logging
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist

# Tests use the CPU, which repeats bit for bit and lets processes fork, except with `NSNN_TEST_CUDA=1 pytest -m cuda`.
if os.environ.get("NSNN_TEST_CUDA") != "1":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
if not torch.cuda.is_available():  # before anything imports Triton: its kernels then run on CPU tensors
    os.environ.setdefault("TRITON_INTERPRET", "1")

# The user's cache is left alone. Processes of pytest-xdist, and of tests, share the cache of the one that starts them.
if "NSNN_CACHE" not in os.environ or not {"PYTEST_XDIST_WORKER", "PYTEST_CURRENT_TEST"} & os.environ.keys():
    cache = tempfile.TemporaryDirectory(prefix="nsnn-cache-")
    os.environ["NSNN_CACHE"] = cache.name

# At its first backward pass, PyTorch starts threads for all devices but the CPU that it knows by then. torch.compile
# makes it know one, and a process with such threads cannot fork: so the first pass is here.
torch.ones(1, requires_grad=True).sum().backward()


def pytest_collection_finish(session):
    """Thousands of tests: garbage collections in them need not look through all that was imported and collected.

    Nor need there be many: compilers make so many objects that collecting took a tenth of the time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 10, 100)


@pytest.hookimpl(tryfirst=True)  # before the fixtures of modules, too
def pytest_runtest_setup(item):
    """Each test has the same random numbers, whatever ran before it; the seed is none that tests use.

    Nor does it have compiled programs of others: they count towards the limit after which nothing is compiled.
    """
    torch.manual_seed(20231109)
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


def first_are_fast(cases, count=1):
    """The cases of a test, of which those after the first `count` are slow tests."""
    cases = list(cases)
    return [*cases[:count], *(pytest.param(case, marks=pytest.mark.slow) for case in cases[count:])]


def each_pair_is_fast(*axes):
    """All combinations of values, slow but for a part in which each two values of two axes meet.

    The last axis has the fewest values. Each combination of values of the others is fast with one of them.
    """
    cases = []
    for places in itertools.product(*(range(len(axis)) for axis in axes)):
        values = [axis[place] for axis, place in zip(axes, places)]
        marks = [pytest.mark.slow] if sum(places) % len(axes[-1]) else []
        cases.append(pytest.param(*values, marks=marks, id="-".join(getattr(v, "__name__", str(v)) for v in values)))
    return cases


def _stripes(count, seed):
    """Class 0: horizontal stripes, class 1: vertical ones; 8x8 pixels, noisy."""
    from tools.data.images import LabelledImages

    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    pattern = (torch.arange(8) % 2 * 200).float()
    images = torch.where(labels[:, None, None] == 1, pattern[None, None, :], pattern[None, :, None])
    images = (images + 40 * torch.rand(count, 8, 8, generator=generator)).to(torch.uint8)
    return LabelledImages(images.unsqueeze(1), labels)


@pytest.fixture(scope="session")
def stripes():
    """An `ImageDataset` of 200 training and 50 test images, two classes, [1, 8, 8]."""
    from dataset_utils import ImageDataset

    return ImageDataset(
        "stripes", (1, 8, 8), ("0", "1"), (0.4,), (0.4,), lambda *args: (_stripes(200, 0), _stripes(50, 1))
    )


@pytest.fixture
def repository():
    """The root folder of the repository."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture
def process_group(tmp_path):
    """A group of this process alone."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()
    # Otherwise a process that a later test forks might collect it, and wait for ever for its threads, which it lacks.
    gc.collect()


class Outcome(NamedTuple):
    """What a script did: its exit code and its messages."""

    code: int
    messages: str


@pytest.fixture
def run_script(monkeypatch, caplog, repository):
    """Runs a script in this process, which spares the imports: name, flags, environment -> `Outcome`."""

    def run(name, *flags, **environment):
        caplog.clear()
        caplog.set_level(logging.INFO)
        code = 0
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", [name, *map(str, flags)])
            for variable, value in environment.items():
                patch.setenv(variable, str(value))
            try:
                runpy.run_path(str(repository / name), run_name="__main__")
            except SystemExit as error:
                code = error.code
        return Outcome(code, caplog.text)

    return run


@pytest.fixture
def figures(monkeypatch):
    """{name of a picture's file: its figure}, of all pictures that the test's code saves."""
    from matplotlib.figure import Figure

    saved, save = {}, Figure.savefig

    def savefig(figure, file, **options):
        saved[getattr(file, "name", file)] = figure
        save(figure, file, **options)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return saved


@pytest.fixture
def undrawn(monkeypatch):
    """Pictures are made, but neither laid out nor drawn, which takes longer than all else in a short evaluation."""
    from matplotlib.figure import Figure

    monkeypatch.setattr(Figure, "savefig", lambda figure, file, **options: None)


def lines_of(axes):
    """{label: (x, y)} of the lines of a panel, as lists; of what `errorbar` draws, the means."""
    lines = {line.get_label(): line for line in axes.lines}
    lines |= {container.get_label(): container.lines[0] for container in axes.containers if hasattr(container, "lines")}
    return {label: (list(line.get_xdata()), list(line.get_ydata())) for label, line in lines.items()}


SCRIPT = """
import sys
from dataset_utils import ImageDataset
from tests.conftest import _stripes
from tools import cli
parts = _stripes(200, 0), _stripes(50, 1)
stripes = ImageDataset("stripes", (1, 8, 8), ("0", "1"), (0.4,), (0.4,), lambda *args: parts)
cli.train(stripes, argv=sys.argv[1:])
"""


@pytest.fixture
def script(tmp_path, repository):
    """Starts a training script on the stripes: arguments -> Popen, whose stdout has its whole output."""
    path = tmp_path / "main_stripes.py"
    path.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"}

    def start(*arguments, launcher=(), **options):
        return subprocess.Popen(
            [sys.executable, *launcher, str(path), *arguments],
            env=environment,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            **options,
        )

    return start


@pytest.fixture
def cifar10_folder():
    """A folder that has CIFAR-10: $NSNN_DATA; without it, tests of real data are skipped."""
    root = os.environ.get("NSNN_DATA")
    if not root or not any(
        (Path(root) / name).is_dir() for name in ("cifar-10-batches-py", "cifar10", "cifar10-images")
    ):
        pytest.skip("set NSNN_DATA to a folder that has CIFAR-10")
    return Path(root)


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """The tensors here are tiny: waking more threads takes ten times longer than computing."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)

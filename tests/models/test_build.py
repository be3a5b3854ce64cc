"""Building the C kernel: cache, processes at once, failures, threads."""

import ctypes
import itertools
import os
import shutil
import subprocess
import sys

import pytest
import torch

from models.kernels import build, cpu
from tests import fresh

RUN = """
import sys
import warnings
import torch
from models import Gaussian, NoisyLIF
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for dtype in sys.argv[1:]:
        spikes = NoisyLIF(Gaussian(0.3))(torch.full((2, 1, 1000), 1.0, dtype=getattr(torch, dtype)))
        assert 0.2 < spikes.mean() < 0.8
    from models.kernels import cpu
    print("fused" if cpu.kernel(torch.float32) else "eager", len(caught), *(str(w.message) for w in caught))
"""


def start(repository, cache, *dtypes, **environment):
    """A process that uses neurons of these types, float32 if none is given."""
    env = {**os.environ, "NSNN_CACHE": str(cache), "OMP_NUM_THREADS": "1", **environment}
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen([sys.executable, "-c", RUN, *(dtypes or ["float32"])], cwd=repository, env=env, **pipes)


def used(cache, *dtypes, **environment):
    """What a process prints that has imported PyTorch before the environment was such."""
    done = fresh.run(RUN, *(dtypes or ["float32"]), **{"NSNN_CACHE": str(cache), **environment})
    assert done.returncode == 0, done.stderr
    return done.stdout


def finish(process):
    out, err = process.communicate()
    assert process.returncode == 0, err
    return out


@pytest.fixture
def compiler(tmp_path):
    """Makes stand-ins for compilers; returns the variables with which they are found.

    They do what the shell text says, then run the real one, without optimisation, which takes most of its time.
    """

    def make(text="", names=("cc", "gcc", "clang"), **environment):
        folder = tmp_path / "bin"
        folder.mkdir()
        for name in names:
            (folder / name).write_text(f'#!/bin/sh\n{text}\nexec {shutil.which("cc")} "$@" -O0\n')
            (folder / name).chmod(0o755)
        return {"CC": "", "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", **environment}

    return make


def refuse(flag):
    return f'for word in "$@"; do case "$word" in {flag}) echo "unknown $word" >&2; exit 1; esac; done'


@pytest.mark.slow
def test_processes_that_start_at_once_share_one_build(repository, tmp_path, compiler):
    environment, dtypes = compiler(), ("float32", "float64", "float32")
    outputs = [finish(process) for process in [start(repository, tmp_path, *dtypes, **environment) for _ in range(2)]]
    assert outputs == ["fused 0\n"] * 2
    files = sorted((tmp_path / "kernels").iterdir())
    assert len(files) == 2 and all(file.suffix == ".so" for file in files)  # one for each dtype, nothing else
    times = [file.stat().st_mtime_ns for file in files]
    assert finish(start(repository, tmp_path, *dtypes, **environment)) == "fused 0\n"
    assert [file.stat().st_mtime_ns for file in files] == times


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("echo 'fatal: broken compiler' >&2; exit 1", "broken compiler"),
        pytest.param("exit 0", "", marks=pytest.mark.slow),  # claims success and makes nothing
    ],
)
def test_a_failed_build_is_one_warning_and_the_eager_kernel(tmp_path, compiler, text, reason):
    out = used(tmp_path / "cache", "float32", "float64", **compiler(text))
    assert out.startswith("eager 1 spiking neurons run on the slower eager kernel") and reason in out


@pytest.mark.slow
def test_other_compilers_than_gcc_get_flags_that_they_know(tmp_path, compiler):
    """clang refuses GCC's -fvect-cost-model, and knows -O3."""
    environment = compiler(refuse("-fvect-cost-model*"), names=["mycc"], CC="mycc -g0")
    assert used(tmp_path / "cache", **environment) == "fused 0\n"


@pytest.mark.parametrize(
    "environment",
    [
        {"NSNN_CACHE": "", "HOME": "/proc/nowhere"},
        pytest.param({"NSNN_CACHE": "/proc/nowhere"}, marks=pytest.mark.slow),
    ],
)
def test_a_cache_that_cannot_be_written_costs_a_build_and_no_more(tmp_path, compiler, environment):
    assert used(tmp_path, **compiler(**environment)) == "fused 0\n"


def test_no_compiler_is_one_warning_and_the_eager_kernel(tmp_path):
    out = used(tmp_path / "cache", PATH=str(tmp_path), CC="")
    assert out.startswith("eager 1 ") and "no C compiler" in out


@pytest.mark.slow
def test_a_compiler_without_openmp_gives_one_thread_and_a_warning(repository, tmp_path, compiler):
    """Such as clang beside a PyTorch that uses GCC's OpenMP."""
    environment = compiler(refuse("-fopenmp"), OMP_NUM_THREADS="2")
    out = finish(start(repository, tmp_path / "cache", **environment))
    assert out.startswith("fused 1 spiking neurons run on one thread") and "unknown -fopenmp" in out


def test_a_library_with_wrong_results_is_refused(tmp_path):
    """As a compiler's bug would make one: the reset is lost."""
    text = cpu.SOURCE.read_text()
    assert text.count("return l->reset == RESET_ZERO;") == 1
    (tmp_path / "cpu.c").write_text(text.replace("return l->reset == RESET_ZERO;", "return 0;"))
    flags = ["-std=gnu11", "-O1", "-fPIC", "-shared", "-DINPUT_BITS=32"]
    subprocess.run(["cc", *flags, "cpu.c", "-lm", "-o", "cpu.so"], cwd=tmp_path, check=True)
    with pytest.raises(build.BuildError, match="compiled"):
        cpu.Kernel(ctypes.CDLL(str(tmp_path / "cpu.so")), torch.float32).checked()


def test_a_library_that_is_refused_is_not_used(tmp_path, monkeypatch):
    tries = itertools.count(1)

    def refuse(library):
        assert library.f() == 1
        raise build.BuildError(f"results of try {next(tries)} are wrong")

    (tmp_path / "f.c").write_text("int f(void) { return 1; }")
    monkeypatch.setenv("NSNN_CACHE", str(tmp_path))
    monkeypatch.setattr(build, "warnings_given", [])
    with pytest.warns(RuntimeWarning, match="no compiled one works.*results of try 1 are wrong"):
        assert build.load(tmp_path / "f.c", ["-DX=1"], refuse) is None


@pytest.mark.parametrize("pieces", [("other source", "-O3"), ("source", "-O2")])
def test_the_cache_tells_sources_and_flags_apart(tmp_path, monkeypatch, pieces):
    monkeypatch.setenv("NSNN_CACHE", str(tmp_path))
    paths = set()
    for text, flag in (
        ("int f(void) { return 1; }", "-O3"),
        ("int f(void) { return 2; }", "-O3"),
        ("int f(void) { return 1; }", "-O2"),
    ):
        (tmp_path / "f.c").write_text(text)
        paths.add(build.built(tmp_path / "f.c", ["cc"], ("-fPIC", flag), None))
    assert len(paths) == 3


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_one_openmp_runtime_and_the_threads_that_pytorch_has(repository, tmp_path):
    code = """
import torch, os, time
from models import Gaussian, NoisyLIF
x = torch.randn(4, 64, 10_000)
(x @ torch.randn(10_000, 50)).sum()  # PyTorch's own pool of threads
before = len(os.listdir("/proc/self/task"))
NoisyLIF(Gaussian(0.3))(x)
for _ in range(1000):
    after = len(os.listdir("/proc/self/task"))
    if after == before:
        break
    time.sleep(0.01)  # the thread of the self-test has ended, but may still be listed
maps = [line.split()[-1] for line in open("/proc/self/maps")]
runtimes = {path for path in maps if any(name in path for name in ("libgomp", "libomp", "libiomp"))}
print(after - before, len(runtimes))
"""
    env = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["0", "1"]


def test_set_num_threads_is_respected(monkeypatch):
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            assert cpu.threads_for(10**9) == threads and cpu.threads_for(100) == 1
    finally:
        torch.set_num_threads(before)

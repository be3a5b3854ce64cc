"""Compile C with the machine's compiler, and cache the library.

Environment: `CC` names a compiler; `NSNN_CACHE` is the folder of the cache (else `nsnn` in the user's cache folder).
"""

import ctypes
import functools
import hashlib
import itertools
import os
import platform
import re
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import torch

# Not -ffast-math: comparisons with NaN must stay false. Fused operations are written out in the source.
FLAGS = ("-std=gnu11", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off")
# For GCC, -O2 with these flags is as fast as -O3 and builds in half the time; clang lacks -fvect-cost-model.
OPTIMISATIONS = (("-O2", "-ftree-vectorize", "-fvect-cost-model=dynamic"), ("-O3",))
TUNINGS: tuple[tuple[str, ...], ...] = (("-march=native",), ("-mcpu=native",), ())
if platform.machine().lower() in ("x86_64", "amd64"):
    # Vectors of 512 bits, where there are any: compilers prefer shorter ones, but bfloat16 neurons are a tenth faster.
    TUNINGS = (("-march=native", "-mprefer-vector-width=512"), *TUNINGS)
BUILD_TIMEOUT_S = 120
warnings_given: list[str] = []
Loaded = TypeVar("Loaded")


class BuildError(RuntimeError):
    """A compiler failed, or its library computes wrong results."""


def load(source: Path, definitions: Sequence[str], prepare: Callable[[ctypes.CDLL], Loaded]) -> Loaded | None:
    """Compile the C file `source` unless it is in the cache, load it, and return `prepare(library)`.

    Compilers and flags are tried from the best to the plainest; None, after a warning, if no attempt succeeded.

    Args:
        definitions: "-DNAME=value" for the compiler.
        prepare: may raise BuildError if the library's results are wrong.
    """
    failures = []
    for compiler, flags, runtime in _attempts():
        try:
            loaded = prepare(ctypes.CDLL(str(built(source, compiler, (*flags, *definitions), runtime))))
        except (BuildError, OSError, AttributeError) as error:  # AttributeError: a symbol is missing
            failures.append(f"{' '.join((*compiler, *flags))}: {error}")
            continue
        if runtime is None and torch.get_num_threads() > 1:
            reason = failures[0] if failures else "no OpenMP library is loaded"
            warn_once(f"spiking neurons run on one thread, without OpenMP: {reason}")
        return loaded
    reason = failures[0] if failures else "there is no C compiler ($CC, cc, gcc or clang)"
    warn_once(f"spiking neurons run on the slower eager kernel, because no compiled one works: {reason}")
    return None


def warn_once(message: str) -> None:
    """Warn, but only once in a process: later warnings about kernels would say the same of other dtypes."""
    if not warnings_given:
        warnings_given.append(message)
        warnings.warn(message, RuntimeWarning, stacklevel=3)


def _attempts() -> Iterator[tuple[list[str], tuple[str, ...], str | None]]:
    """(compiler, flags, OpenMP library or None) to try."""
    named = os.environ.get("CC", "").split()
    commands = ([named] if named else []) + [[name] for name in ("cc", "gcc", "clang")]
    runtime = openmp_runtime()
    for linked in [runtime, None] if runtime else [None]:
        for command in commands:
            if shutil.which(command[0]):
                for tuning, optimisation in itertools.product(TUNINGS, OPTIMISATIONS):
                    openmp = ("-fopenmp",) if linked else ()
                    yield command, (*FLAGS, *optimisation, *tuning, *openmp), linked


def openmp_runtime() -> str | None:
    """Path of the OpenMP library that PyTorch has loaded, or None.

    Kernels link to that one: with a second runtime, two pools of threads would fight for the cores.
    """
    folder = Path(torch.__file__).parent
    maps = Path("/proc/self/maps")
    paths = re.findall(r"/.*", maps.read_text()) if maps.exists() else []
    paths += sorted(map(str, (folder / "lib").glob("lib*omp*")))
    paths = [path for path in dict.fromkeys(paths) if re.search(r"/lib(gomp|iomp5|omp)\b[^/]*$", path)]
    own = [path for path in paths if Path(path).is_relative_to(folder)]  # of torch/lib
    own += [path for path in paths if Path(path).is_relative_to(folder.parent / "torch.libs")]
    return next(iter(own + paths), None)


def built(source: Path, compiler: Sequence[str], flags: Sequence[str], runtime: str | None) -> Path:
    """Path of the library in the cache; built there if it is missing."""
    parts = (Path(source).read_text(), *compiler, *flags, str(runtime), _run(*compiler, "--version"), _processor())
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
    target = _cache_folder() / f"{Path(source).stem}-{key}.so"
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            compiled, linked = Path(folder) / "kernel.o", Path(folder) / "kernel.so"
            _run(*compiler, *flags, "-c", str(source), "-o", str(compiled))
            # Linking without -fopenmp keeps the compiler's own OpenMP library out.
            _run(*compiler, "-shared", str(compiled), *filter(None, [runtime]), "-lm", "-o", str(linked))
            linked.replace(target)  # atomic: another process sees the whole file or none
    return target


@functools.cache
def _private_folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="nsnn-kernels-")  # removed when the process ends


def _cache_folder() -> Path:
    """Folder of compiled kernels; if it cannot be written, a temporary one of this process."""
    # The rule of `cache_folder` in tools/io/cache.py, repeated because this package needs PyTorch alone.
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    folder = Path(os.environ.get("NSNN_CACHE") or os.path.join(base, "nsnn")) / "kernels"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass  # the home folder may be read-only, or missing
    return Path(_private_folder().name)


def _run(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"took over {BUILD_TIMEOUT_S} s") from error
    if done.returncode:
        raise BuildError((done.stderr.strip() or f"exit code {done.returncode}").splitlines()[0])
    return done.stdout


def _processor() -> str:
    """What -march=native depends on: a home folder may be shared between machines."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    features = [line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))][:2]
    return "\n".join([platform.machine(), platform.processor(), *features])

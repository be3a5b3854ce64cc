"""Studies: experiments that are run as a whole, with results as JSON and pictures, the same ones for the same seed."""

import concurrent.futures.process
import contextlib
import dataclasses
import itertools
import json
import logging
import math
import multiprocessing
import os
import re
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from tools.io.files import MOST_TEXT, check_writable, make_folder_of_now, read_bytes, write_text_atomically
from tools.runtime.provenance import provenance

logger = logging.getLogger(__name__)
DPI = 110  # of pictures
DIGITS = 5  # significant, of numbers in results: fewer than those that rounding differs in between machines


@dataclasses.dataclass(frozen=True)
class Study:
    """What an experiment is given.

    Args:
        folder: for its pictures.
        seed: fixes everything random.
        quick: fewer repetitions.
        workers: processes that work at once.
    """

    folder: Path
    seed: int = 0
    quick: bool = False
    workers: int = 1

    def map(self, function, jobs, description):
        """[function(job) for job in jobs], by several processes of one thread each.

        Args:
            function: of a module, so that other processes find it.
            jobs: list of arguments, each with all that the result depends on, its seed too.
            description: of the progress bar.

        Raises:
            ChildProcessError: if the system ends a process, as it does where memory is short.
        """
        progress = dict(desc=description, total=len(jobs), unit="job", disable=None, leave=False)
        if self.workers == 1 or len(jobs) == 1:
            with _threads(1):
                return [function(job) for job in tqdm(jobs, **progress)]
        # Not by fork, which PyTorch's threads do not survive.
        spawned = multiprocessing.get_context("spawn")
        pool = concurrent.futures.ProcessPoolExecutor(min(self.workers, len(jobs)), spawned)
        with _single_threaded_children(), pool:
            try:
                return list(tqdm(pool.map(function, jobs), **progress))
            except concurrent.futures.process.BrokenProcessPool as error:
                raise ChildProcessError(
                    f"a process was ended from outside during {description!r}; if for want of memory, use --workers 1"
                ) from error
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def map_groups(self, function, groups, description):
        """As `map`, of lists of jobs that belong together: a list of results for each."""
        found = iter(self.map(function, [job for group in groups for job in group], description))
        return [list(itertools.islice(found, len(group))) for group in groups]

    def seeds(self, full, quick):
        """Seeds of repetitions, which differ for each seed of the study."""
        return [1000 * self.seed + number for number in range(quick if self.quick else full)]


@contextlib.contextmanager
def _threads(count):
    """PyTorch uses so many threads in the block: with another number, results may differ by rounding."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _single_threaded_children():
    """Processes that are started in the block use one thread each, in PyTorch and in NumPy's libraries."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def run_study(name, experiments, *, seed, quick, workers=0, out="", only=(), results="results"):
    """Run the experiments of a study, and write results.json after each.

    Args:
        name: of the study.
        experiments: {name: function of a `Study` that draws pictures and returns its results, as plain data}.
        seed, quick: see `Study`.
        workers: processes; 0: as many as there are processors.
        out: folder of the results; "": <results>/<name>/<time>-s<seed>. What results.json holds of other experiments
            of the same seed and kind stays.
        only: names of experiments, of which each is run once; none: all.

    Returns:
        The folder and the content of results.json.

    Raises:
        ValueError: for names that there are not, or a folder with other results.
    """
    unknown = [which for which in only if which not in experiments]
    if unknown:
        raise ValueError(f"unknown experiment {unknown[0]!r}; choose from {', '.join(experiments)}")
    folder = Path(out) if out else make_folder_of_now(Path(results) / name, f"-s{seed}")
    folder.mkdir(parents=True, exist_ok=True)
    check_writable(folder)
    head = {"study": name, "seed": seed, "quick": quick}
    content = _earlier(folder / "results.json", head)
    study = Study(folder, seed, quick, workers or os.cpu_count() or 1)
    made_by = {key: value for key, value in provenance().items() if key not in ("gpu", "threads")}
    chosen = list(dict.fromkeys(only or experiments))
    for number, which in enumerate(chosen, 1):
        logger.info("%s (%d of %d)", which.replace("_", " "), number, len(chosen))
        content["experiments"][which] = rounded(experiments[which](study))
        content["made_by"][which] = made_by
        write_text_atomically(folder / "results.json", _laid_out(content))
    return folder, content


def _laid_out(content):
    """JSON whose innermost lists and dictionaries have a line each."""
    text = json.dumps(content, indent=1, allow_nan=False)
    return re.sub(r"[\[{][^\[\]{}]*[\]}]", lambda match: re.sub(r"\s*\n\s*", " ", match[0]), text) + "\n"


def _earlier(path, head):
    """The content of an earlier results.json that is to be completed, or of a new one."""
    if not path.exists():
        return {**head, "experiments": {}, "made_by": {}}
    try:
        content = json.loads(read_bytes(path, MOST_TEXT))
        is_the_same = all(content[key] == value for key, value in head.items())
        content.update({key: dict(content[key]) for key in ("experiments", "made_by")})
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no file of results of a study: {error!r}") from error
    if not is_the_same:
        raise ValueError(f"{path} has other results than of {head}; choose another folder")
    return content


def rounded(value):
    """Plain data for JSON: numbers with `DIGITS` significant digits, null for what is no number or infinite."""
    if isinstance(value, dict):
        return {str(key): rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    if isinstance(value, torch.Tensor | np.ndarray):
        return rounded(value.tolist())
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    return value

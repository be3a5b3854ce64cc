"""Run the experiments of a study, reproducibly by seed; results go to JSON, with pictures beside it."""

import concurrent.futures.process
import dataclasses
import json
import logging
import multiprocessing
import os
import re
import unittest.mock
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from matplotlib.figure import Figure
from tqdm import tqdm

from tools.errors import UserError
from tools.io.files import MOST_TEXT, check_writable, make_folder_of_now, read_bytes, write_text_atomically
from tools.runtime.provenance import provenance
from tools.runtime.seeds import derived_seed

logger = logging.getLogger(__name__)
Case, Result = TypeVar("Case"), TypeVar("Result")
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
DIGITS = 5  # significant ones of numbers in the results; more may differ between machines, by rounding


@dataclasses.dataclass(frozen=True)
class Study:
    """The settings of a study, and what its experiments have in common."""

    folder: Path  # for pictures
    seed: int = 0  # of all random numbers
    quick: bool = False  # fewer repetitions
    workers: int = 1  # number of parallel processes

    def seed_for(self, *purpose: str | int) -> int:
        """A seed for one purpose, below 2^32 for NumPy's `RandomState`."""
        return derived_seed(self.seed, *purpose) % 2**32

    def seeds(self, purpose: str, full: int, quick: int) -> list[int]:
        """Seeds of the repetitions of an experiment: `quick` of them with --quick, else `full`."""
        return [self.seed_for(purpose, number) for number in range(quick if self.quick else full)]

    def map(self, jobs: Sequence[Callable[[], Result]], description: str) -> list[Result]:
        """Run jobs in parallel processes, and return their results.

        Processes have one thread each, because another number may change rounding. A job is a `functools.partial` of a
        module's function with everything that its result depends on.

        Raises:
            ChildProcessError: if the system kills a process, for example when memory is short.
        """
        progress = dict(desc=description, total=len(jobs), unit="job", disable=None, leave=False)
        if self.workers == 1 or len(jobs) == 1:
            threads = torch.get_num_threads()
            torch.set_num_threads(1)
            try:
                return [job() for job in tqdm(jobs, **progress)]
            finally:
                torch.set_num_threads(threads)
        spawned = multiprocessing.get_context("spawn")  # PyTorch's threads do not survive a fork
        pool = concurrent.futures.ProcessPoolExecutor(min(self.workers, len(jobs)), spawned)
        with unittest.mock.patch.dict(os.environ, ONE_THREAD), pool:
            try:
                return list(tqdm(pool.map(_result, jobs), **progress))
            except concurrent.futures.process.BrokenProcessPool as error:
                message = f"a process was killed from outside during {description!r}"
                raise ChildProcessError(f"{message}; if memory is short, use --workers 1") from error
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def map_groups(self, groups: dict[Case, list[Callable[[], Result]]], description: str) -> dict[Case, list[Result]]:
        """`map` for groups of jobs that belong together: {case: its results}."""
        jobs = [job for group in groups.values() for job in group]
        results = self.map(jobs, description)
        found = {}
        start = 0
        for case, group in groups.items():
            found[case] = results[start : start + len(group)]
            start += len(group)
        return found

    def save(self, name: str, picture: Figure) -> None:
        """Write a picture to <name>.png."""
        picture.savefig(self.folder / f"{name}.png", dpi=110)


Experiments = dict[str, Callable[[Study], Any]]  # each saves pictures, and returns results for `rounded`


def _result(job):
    return job()


def run_study(
    name: str, experiments: Experiments, *, seed: int, quick: bool, workers: int = 0, out: str = "", only: Sequence = ()
) -> tuple[Path, dict]:
    """Run the experiments of a study; return the folder and the content of its results.json, written after each.

    Args:
        seed, quick: see `Study`.
        workers: number of parallel processes; 0: one per processor.
        out: folder of the results; "": results/<name>/<time>-s<seed>. An existing results.json of the same study, seed
            and `quick` is updated: results of experiments that are not rerun are kept.
        only: names of the experiments to run; empty: all.

    Raises:
        UserError: for unknown experiments, or a folder with results of other settings.
    """
    for which in only:
        if which not in experiments:
            raise UserError(f"unknown experiment {which!r}; choose from {', '.join(experiments)}")
    folder = Path(out) if out else make_folder_of_now(Path("results") / name, f"-s{seed}")
    folder.mkdir(parents=True, exist_ok=True)
    check_writable(folder)
    content = _earlier(folder / "results.json", {"study": name, "seed": seed, "quick": quick})
    study = Study(folder, seed, quick, workers or os.cpu_count() or 1)
    made_by = {key: value for key, value in provenance().items() if key not in ("gpu", "threads")}
    chosen = dict.fromkeys(only or experiments)
    for number, which in enumerate(chosen, 1):
        logger.info("%s (%d of %d)", which.replace("_", " "), number, len(chosen))
        content["experiments"][which] = rounded(experiments[which](study))
        content["made_by"][which] = made_by
        write_text_atomically(folder / "results.json", _laid_out(content))
    return folder, content


def _laid_out(content: dict) -> str:
    """JSON whose innermost lists and dictionaries take one line each."""
    text = json.dumps(content, indent=1, allow_nan=False)
    return re.sub(r"[\[{][^\[\]{}]*[\]}]", lambda match: re.sub(r"\s*\n\s*", " ", match[0]), text) + "\n"


def _earlier(path: Path, head: dict) -> dict:
    """The content of an earlier results.json, to be completed, or of a new one."""
    if not path.exists():
        return {**head, "experiments": {}, "made_by": {}}
    try:
        content = json.loads(read_bytes(path, MOST_TEXT))
        found = {key: content[key] for key in head}
        content |= {key: dict(content[key]) for key in ("experiments", "made_by")}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read as the results of a study: {error!r}") from error
    if found != head:
        raise UserError(f"{path} has the results of {found}, not of {head}; choose another folder with --out")
    return content


def rounded(value: Any) -> Any:
    """Plain data for JSON: numbers with `DIGITS` significant digits, null for NaN and infinity."""
    text = json.dumps(value, default=lambda one: vars(one) if dataclasses.is_dataclass(one) else one.tolist())
    return json.loads(text, parse_float=_few_digits, parse_constant=lambda name: None)


def _few_digits(number: str) -> float:
    return float(f"{float(number):.{DIGITS}g}")

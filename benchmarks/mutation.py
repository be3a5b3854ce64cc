"""Mutation score: the share of small random faults that the tests of the faulty module's folder catch.

    python benchmarks/mutation.py --mutants 300 --seed 0 --out mutants.jsonl

needs cosmic-ray (pip install cosmic-ray), which makes the faults: a changed operator, number or comparison, a negated
condition, a loop that never runs, a removed decorator. A place is drawn uniformly, then a fault for it; annotations are
left out, because any fault there breaks the import. Each fault is tried in a process forked from one that has imported
PyTorch, on a copy of the commit, the fastest tests first. It is caught if a test fails or crashes, an import fails, or
the tests take TOO_LONG times as long as without it. Any other outcome is not caught, and is named in the score.
Prints one JSON line per mutant and one with the score. With --out, lines are added to that file and, for the same
commit, found again there. --targets tries only the drawn mutants in these folders.
"""

import argparse
import ast
import concurrent.futures
import contextlib
import difflib
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGETS = ["models", "crits", "tools/attacks", "tools/analysis", "tools/perturb", "tools/data/events"]
LEFT_OUT = ["tools/data/events/pictures.py"]  # sizes and colours of a picture
CAUGHT = {  # by exit code; 4: conftest
    **{1: "failed", 2: "import failed", 4: "import failed"},
    **{-signal.SIGXCPU: "timeout", **dict.fromkeys((-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGILL), "crash")},
}
BUILDER = "build.py"  # of kernels: its faults have to build them again
TOO_LONG = 5
MOST_S = 1200  # of the tests of a folder without a fault
MOST_BYTES = 6 << 30  # a fault that asks for more memory must not starve what else the machine does


@dataclass(frozen=True)
class Mutant:
    """A fault: the `occurrence`-th place in a file that an operator of cosmic-ray changes."""

    path: str
    line: int
    operator: str
    occurrence: int

    @property
    def target(self) -> str:
        return next(target for target in TARGETS if self.path.startswith(f"{target}/"))

    @property
    def tests(self) -> str:
        """The folder of tests that is to notice it."""
        return f"tests/{self.target}"

    def mutated(self, code: str) -> str:
        from cosmic_ray.mutating import mutate_code
        from cosmic_ray.plugins import get_operator

        return mutate_code(code, get_operator(self.operator)(), self.occurrence)


def annotations(code: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """(line, column) of the start and the end of every annotation."""
    found = []
    for node in ast.walk(ast.parse(code)):
        for one in (getattr(node, "annotation", None), getattr(node, "returns", None)):
            if one is not None:
                found.append(((one.lineno, one.col_offset), (one.end_lineno, one.end_col_offset)))
    return found


def places(path: str) -> dict[tuple[int, int], list[Mutant]]:
    """{(line, column): possible faults} of a file."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.plugins import get_operator, operator_names

    code = Path(path).read_text()
    tree, skipped, found = get_ast(code), annotations(code), {}
    for name in operator_names():
        operator = get_operator(name)
        if operator.arguments():  # without settings, it cannot do anything
            continue
        positions = [position for node in ast_nodes(tree) for position in operator().mutation_positions(node)]
        for occurrence, (start, _) in enumerate(positions):
            if not any(first <= start < last for first, last in skipped):
                found.setdefault(start, []).append(Mutant(path, start[0], name, occurrence))
    return found


def draw(count: int, seed: int) -> list[Mutant]:
    """A random sample of mutants of all targets, no two at one place, of the copy that is the current directory."""
    everywhere = []
    for path in sorted(str(path) for target in TARGETS for path in Path(target).rglob("*.py")):
        if path not in LEFT_OUT:
            everywhere += places(path).values()
    generator, chosen = random.Random(seed), []
    for faults in generator.sample(everywhere, len(everywhere)):
        if len(chosen) == count:
            break
        mutant = generator.choice(faults)
        if can_be_made(mutant):
            chosen.append(mutant)
    return chosen


def can_be_made(mutant: Mutant) -> bool:
    """Whether cosmic-ray makes the fault, and what it makes compiles: `{|{}}` and `except ~zlib.error` do not."""
    try:
        compile(mutant.mutated(Path(mutant.path).read_text()), mutant.path, "exec")
    except (SyntaxError, AttributeError):
        return False
    return True


class QuickFirst:
    """Plugin of pytest: runs the tests in the order of the time that they took, and notes the time that they take."""

    def __init__(self, took: dict[str, float]) -> None:
        self.before, self.took = took, Counter()

    def pytest_collection_modifyitems(self, items):
        items.sort(key=lambda item: round(self.before.get(item.nodeid, 0.0), 1))

    def pytest_runtest_logreport(self, report):
        self.took[report.nodeid] += report.duration


def run_tests(
    folder: str, cache: str, took: dict[str, float], cpu_s: float = MOST_S, wall_s: float = 4 * MOST_S
) -> tuple[str, float, dict[str, float]]:
    """Run the tests of a folder in a forked process, in the current directory.

    Returns the outcome, the seconds of CPU, and the seconds of each test (empty if the run did not finish).
    """
    times = Path(cache) / "took.json"

    def work():
        os.setsid()
        resource.setrlimit(resource.RLIMIT_CPU, (int(cpu_s), int(cpu_s) + 5))
        resource.setrlimit(resource.RLIMIT_DATA, (MOST_BYTES, MOST_BYTES))
        null = os.open(os.devnull, os.O_WRONLY)
        for printed in (1, 2):
            os.dup2(null, printed)
        sys.path.insert(0, os.getcwd())
        import pytest

        plugin = QuickFirst(took)
        code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-m", "not slow", folder], plugins=[plugin])
        times.write_text(json.dumps(plugin.took))
        os._exit(code)

    def used():
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    before = used()
    os.environ["NSNN_CACHE"] = cache
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(wall_s)
    code = -signal.SIGXCPU if process.exitcode is None else process.exitcode
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # also what the tests left running
    process.join()
    outcome = "survived" if code == 0 else CAUGHT.get(code, f"exit code {code}")
    return outcome, used() - before, json.loads(times.read_text()) if times.exists() else {}


@dataclass
class Faultless:
    """The tests of a folder without a fault."""

    seconds: float  # of CPU
    took: dict[str, float]  # each test
    cache: str  # what they built


def prepare(commit: str, faultless: dict[str, Faultless] | None = None) -> None:
    """Make a copy of the commit, of this process alone, the current directory."""
    global copy, known
    known = faultless
    copy = tempfile.TemporaryDirectory(prefix="mutants-")
    archive = subprocess.run(["git", "archive", commit], cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout
    subprocess.run(["tar", "-x", "-C", copy.name], input=archive, check=True)
    os.chdir(copy.name)


def start_worker(commit: str, faultless: dict[str, Faultless]) -> None:
    import pytest
    import torch

    assert pytest and torch  # forks have imported them
    prepare(commit, faultless)


def without_fault(folder: str, cache: str) -> tuple[str, Faultless]:
    took = {}
    for _ in range(2):  # the second time in the order and with the cache of those with a fault
        outcome, seconds, took = run_tests(folder, cache, took)
        if outcome != "survived":
            raise RuntimeError(f"without a fault, {folder} does not pass: {outcome}")
    return folder, Faultless(seconds, took, cache)


def judge(mutant: Mutant) -> dict:
    """Plant a fault, run the tests, and take it out again."""
    path = Path(mutant.path)
    code = path.read_text()
    changed = mutant.mutated(code)
    diff = difflib.unified_diff(code.splitlines(), changed.splitlines(), lineterm="", n=0)
    path.write_text(changed)
    tests = known[mutant.tests]
    limit_s = TOO_LONG * tests.seconds + 30
    try:
        with tempfile.TemporaryDirectory(prefix="cache-") as cache:  # what a fault wrote there is not for the next one
            if path.name != BUILDER:
                shutil.copytree(tests.cache, cache, dirs_exist_ok=True)
            outcome, seconds, _ = run_tests(mutant.tests, cache, tests.took, limit_s, 4 * limit_s)  # locks take no CPU
    finally:
        path.write_text(code)
    return {**asdict(mutant), "outcome": outcome, "seconds": round(seconds, 1), "diff": "\n".join(list(diff)[2:])}


def key(mutant: dict) -> tuple:
    return mutant["path"], mutant["operator"], mutant["occurrence"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mutants", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--targets", nargs="+", choices=TARGETS, default=TARGETS, help="try only the drawn mutants in these"
    )
    parser.add_argument("--commit", default="HEAD", help="the commit to test; uncommitted changes are left out")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, help="JSON lines of the outcomes; mutants in it are not tried again")
    arguments = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "0", "PYTHONDONTWRITEBYTECODE": "1"}
    os.environ["PYTEST_XDIST_WORKER"] = "mutants"  # tests then leave NSNN_CACHE as it is
    out = arguments.out and arguments.out.resolve()
    revision = ["git", "rev-parse", "--verify", f"{arguments.commit}^{{commit}}"]
    commit = subprocess.run(revision, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    prepare(commit)
    mutants = [one for one in draw(arguments.mutants, arguments.seed) if one.target in arguments.targets]
    drawn, found = {key(asdict(one)) for one in mutants}, {}
    if out and out.exists():
        stored = [json.loads(line) for line in out.read_text().splitlines()]
        found = {key(one): one for one in stored if one["commit"] == commit and key(one) in drawn}
    mutants = [one for one in mutants if key(asdict(one)) not in found]
    context = multiprocessing.get_context("spawn")

    def pool(faultless):
        options = dict(mp_context=context, initializer=start_worker, initargs=(commit, faultless))
        return concurrent.futures.ProcessPoolExecutor(arguments.processes, **options)

    folders = sorted({mutant.tests for mutant in mutants})
    caches = [tempfile.TemporaryDirectory(prefix="cache-") for _ in folders]
    with pool({}) as workers:
        faultless = dict(workers.map(without_fault, folders, [cache.name for cache in caches]))
    with pool(faultless) as workers:
        for future in concurrent.futures.as_completed([workers.submit(judge, mutant) for mutant in mutants]):
            one = {"commit": commit, **future.result()}
            found[key(one)] = one
            print(json.dumps(one), flush=True)
            if out:
                with out.open("a") as file:
                    file.write(json.dumps(one) + "\n")
    outcomes = Counter(one["outcome"] for one in found.values())
    caught = sum(outcomes[outcome] for outcome in set(CAUGHT.values()))
    score = caught / len(found) if found else None
    print(json.dumps({"commit": commit, "drawn": len(drawn), "outcomes": outcomes, "caught": caught, "score": score}))


if __name__ == "__main__":
    main()

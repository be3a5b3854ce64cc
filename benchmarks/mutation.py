"""Mutation score: of small faults at random places, how many are noticed by the tests of the faulty module's folder?

    python benchmarks/mutation.py --mutants 300 --seed 0 --out mutants.jsonl

needs cosmic-ray (pip install cosmic-ray), which makes the faults: another operator, number, comparison, a condition
negated, a loop that never runs, a decorator less. A place is drawn first, evenly over all of them, then a fault for it;
annotations are left out, as any fault there stops the import. Each fault is tried in a process forked from one that has
imported PyTorch, on a copy of the repository. The tests notice it by failing or by taking TOO_LONG times their time.
Prints one JSON line per mutant and one with the score. With --out, lines are added to that file and found again there.
"""

import argparse
import ast
import concurrent.futures
import difflib
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGETS = ["models", "crits", "tools/attacks", "tools/analysis", "tools/perturb", "tools/data/events"]
LEFT_OUT = ["tools/data/events/pictures.py"]  # sizes and colours of a picture
TOO_LONG = 5
MOST_S = 1200  # of the tests of a folder without a fault


@dataclass(frozen=True)
class Mutant:
    """A fault: the `occurrence`-th place in a file that an operator of cosmic-ray changes."""

    path: str
    line: int
    operator: str
    occurrence: int

    @property
    def tests(self) -> str:
        """The folder of tests that is to notice it."""
        return next(f"tests/{target}" for target in TARGETS if self.path.startswith(f"{target}/"))

    def mutated(self, code: str) -> str:
        from cosmic_ray.mutating import mutate_code
        from cosmic_ray.plugins import get_operator

        return mutate_code(code, get_operator(self.operator)(), self.occurrence)


def annotated_lines(code: str) -> set[tuple[int, int]]:
    """(line, column) of every node within an annotation."""
    found = set()
    for node in ast.walk(ast.parse(code)):
        for annotation in (getattr(node, "annotation", None), getattr(node, "returns", None)):
            if annotation is not None:
                found |= {(part.lineno, part.col_offset) for part in ast.walk(annotation) if hasattr(part, "lineno")}
    return found


def places(path: str) -> dict[tuple[int, int], list[Mutant]]:
    """{(line, column): possible faults} of a file."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.plugins import get_operator, operator_names

    code = (ROOT / path).read_text()
    tree, skipped, found = get_ast(code), annotated_lines(code), {}
    for name in operator_names():
        operator = get_operator(name)
        if operator.arguments():  # without settings, it cannot do anything
            continue
        positions = [position for node in ast_nodes(tree) for position in operator().mutation_positions(node)]
        for occurrence, (start, _) in enumerate(positions):
            if start not in skipped:
                found.setdefault(start, []).append(Mutant(path, start[0], name, occurrence))
    return found


def draw(count: int, seed: int) -> list[Mutant]:
    """A random sample of mutants of all targets, no two at one place."""
    listed = subprocess.run(["git", "ls-files", *TARGETS], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    everywhere = []
    for path in listed.splitlines():
        if path.endswith(".py") and path not in LEFT_OUT:
            everywhere += places(path).values()
    generator = random.Random(seed)
    return [generator.choice(faults) for faults in generator.sample(everywhere, count)]


def run_tests(folder: str, limit_s: float) -> tuple[str, float]:
    """Run the tests of a folder in a forked process, in the current directory: what came out, and seconds."""

    def work():
        os.setsid()
        null = os.open(os.devnull, os.O_WRONLY)
        for printed in (1, 2):
            os.dup2(null, printed)
        sys.path.insert(0, os.getcwd())
        import pytest

        os._exit(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-m", "not slow", folder]))

    began = time.monotonic()
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(limit_s)
    if process.exitcode is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.join()
        return "timeout", time.monotonic() - began
    return "survived" if process.exitcode == 0 else "caught", time.monotonic() - began


def prepare(limits: dict[str, float]) -> None:
    """Make this worker's copy of the repository the current directory, and import what every test imports."""
    global copy, limits_s
    import pytest
    import torch

    assert pytest and torch
    limits_s = limits
    copy = tempfile.TemporaryDirectory(prefix="mutants-")
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in names.splitlines():
        target = Path(copy.name, name)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
    os.chdir(copy.name)


def time_of(folder: str) -> tuple[str, float]:
    outcome, seconds = run_tests(folder, MOST_S)
    if outcome != "survived":
        raise RuntimeError(f"without a fault, {folder} does not pass: {outcome}")
    return folder, seconds


def judge(mutant: Mutant) -> dict:
    """Plant a fault, run the tests, and take it out again."""
    path = Path(mutant.path)
    code = path.read_text()
    changed = mutant.mutated(code)
    diff = difflib.unified_diff(code.splitlines(), changed.splitlines(), lineterm="", n=0)
    path.write_text(changed)
    try:
        outcome, seconds = run_tests(mutant.tests, TOO_LONG * limits_s[mutant.tests] + 30)
    finally:
        path.write_text(code)
    return {**asdict(mutant), "outcome": outcome, "seconds": round(seconds, 1), "diff": "\n".join(list(diff)[2:])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mutants", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, help="JSON lines of the outcomes; mutants in it are not tried again")
    arguments = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "0", "PYTHONDONTWRITEBYTECODE": "1"}
    mutants, found = draw(arguments.mutants, arguments.seed), []
    if arguments.out and arguments.out.exists():
        found = [json.loads(line) for line in arguments.out.read_text().splitlines()]
        done = {(one["path"], one["operator"], one["occurrence"]) for one in found}
        mutants = [one for one in mutants if (one.path, one.operator, one.occurrence) not in done]
    context = multiprocessing.get_context("spawn")

    def pool(limits):
        options = dict(mp_context=context, initializer=prepare, initargs=(limits,))
        return concurrent.futures.ProcessPoolExecutor(arguments.processes, **options)

    with pool({}) as workers:
        limits = dict(workers.map(time_of, sorted({mutant.tests for mutant in mutants})))
    with pool(limits) as workers:
        for future in concurrent.futures.as_completed([workers.submit(judge, mutant) for mutant in mutants]):
            found.append(future.result())
            line = json.dumps(found[-1])
            print(line, flush=True)
            if arguments.out:
                with arguments.out.open("a") as file:
                    file.write(line + "\n")
    survived = sum(one["outcome"] == "survived" for one in found)
    print(json.dumps({"mutants": len(found), "survived": survived, "score": 1 - survived / len(found)}))


if __name__ == "__main__":
    main()

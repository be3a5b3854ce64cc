"""Run one training command with all combinations of some of its settings, by Ray Tune::

    python -m tools.sweep results/sweeps/sigma --vary sigma=0.1,0.3,0.5 --vary seed=0,1,2 -- main_mnist5k.py --epochs 10

Needs the packages of requirements-sweep.txt. Runs on this machine, as many at a time as its CPUs and GPUs allow, or
with --address on a Ray cluster whose machines see this folder and the sweep's at the same paths. The same command
again continues a sweep: interrupted runs go on from their last checkpoint, complete ones are not repeated.
"""

import argparse
import concurrent.futures
import csv
import ctypes
import dataclasses
import functools
import io
import itertools
import json
import logging
import modulefinder
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # run as a file, for which Python looks for modules in tools/
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from tools.errors import UserError
from tools.io.files import MOST_TEXT, read_bytes, write_text_atomically
from tools.training.result import TEST, RunResult, read_result

logger = logging.getLogger(__name__)
ROOT = Path(__file__).resolve().parent.parent
SEED = "seed"  # the setting that results are averaged over
DEFINITION = "sweep.json"
OWN = ("run_dir", "resume")  # settings that the sweep itself chooses for each run
Combination = dict[str, str]  # {setting: value}


@dataclasses.dataclass(frozen=True)
class Row:
    """Test accuracy of the complete runs of one combination."""

    settings: Combination  # without the seed
    seeds: int  # number of complete runs
    mean: float
    std: float | None  # None for a single seed


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments of a sweep; SystemExit with a message for wrong ones."""
    usage = "python -m tools.sweep FOLDER --vary SETTING=VALUE,VALUE [...] -- main_<dataset>.py [flags]"
    as_it_is = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m tools.sweep", usage, __doc__, formatter_class=as_it_is)
    parser.add_argument("folder", type=Path, help="folder of the sweep: its runs, its table and its picture")
    vary = dict(action="append", required=True, metavar="SETTING=VALUE,VALUE")
    parser.add_argument("--vary", help="a flag of the script, its values", **vary)
    parser.add_argument("--cpus", type=float, default=1.0, help="CPUs per run (default: 1)")
    parser.add_argument("--gpus", type=float, default=0.0, help="GPUs per run; 0.5: two runs share one (default: 0)")
    parser.add_argument("--address", help="address of a Ray cluster (default: this machine)")
    words = list(sys.argv[1:] if argv is None else argv)
    end = words.index("--") if "--" in words else len(words)
    arguments, command = parser.parse_args(words[:end]), words[end + 1 :]
    if not command:
        parser.error("which command? End with: -- main_<dataset>.py --epochs 10")
    if not (ROOT / command[0]).is_file():
        parser.error(f"there is no {command[0]} in {ROOT}")
    try:
        arguments.vary = parse_settings(arguments.vary)
    except UserError as error:
        parser.error(str(error))
    arguments.command, arguments.folder = command, arguments.folder.resolve()
    return arguments


def parse_settings(texts: Sequence[str]) -> dict[str, list[str]]:
    """["sigma=0.1,0.3", ...] -> {"sigma": ["0.1", "0.3"], ...}; UserError for texts of another form."""
    settings = {}
    for text in texts:
        name, _, values = text.partition("=")
        values = values.split(",")
        if not name or not all(values) or len(set(values)) < len(values):
            raise UserError(f"--vary needs SETTING=VALUE,VALUE with different values, got {text}")
        if name in settings:
            raise UserError(f"--vary {name} was given twice")
        if name in OWN:
            raise UserError(f"{name} is set by the sweep itself")
        settings[name] = values
    folders = [run_folder("", combination) for combination in combinations(settings)]
    if len(set(folders)) < len(folders):
        raise UserError("two combinations would share a folder: their values differ only in '/' and '-', or in '.yaml'")
    return settings


def combinations(settings: dict[str, list[str]]) -> list[Combination]:
    """All combinations of the values of some settings."""
    return [dict(zip(settings, values)) for values in itertools.product(*settings.values())]


def run_folder(folder: str | Path, combination: Combination) -> Path:
    """The folder of the run of a combination."""
    name = ",".join(f"{name}={value.removesuffix('.yaml')}" for name, value in sorted(combination.items()))
    return Path(folder) / "runs" / name.replace("/", "-")


def run_combination(folder: Path, command: Sequence[str], combination: Combination) -> RunResult:
    """Start or continue the run of a combination; return its result, or raise RuntimeError with its last lines."""
    run = run_folder(folder, combination)
    run.mkdir(parents=True, exist_ok=True)
    arguments = [sys.executable, *_words(command, combination, run)]
    with open(run / "log.txt", "a") as log:
        done = subprocess.run(arguments, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, preexec_fn=_end_with_parent)
    result = None if done.returncode else read_result(run)
    if result is None:
        last = (run / "log.txt").read_text().splitlines()[-5:]
        raise RuntimeError("\n".join([f"{run.name} ended with code {done.returncode}:", *last]))
    return result


def _words(command, combination, run):
    """The command line of the run of a combination."""
    words = [*command]
    for name, value in {**combination, "run_dir": str(run), "resume": "auto"}.items():
        words += [f"--{name}", value]
    return words


def check_flags(folder: Path, command: Sequence[str], combination: Combination) -> None:
    """UserError, in one line, if a script that uses `tools.cli` refuses a combination; it ends before its training."""
    from tools.cli import PARSE_ONLY, PARSED  # with PyTorch, which --help does not need

    if not _imports_cli(ROOT / command[0]):
        return  # all of it would run
    run = run_folder(folder, combination)
    arguments = [sys.executable, *_words(command, combination, run)]
    options = dict(cwd=ROOT, env={**os.environ, PARSE_ONLY: "1"}, capture_output=True, text=True, errors="replace")
    done = subprocess.run(arguments, **options)
    if done.returncode != PARSED:
        said = done.stderr.strip() or f"{command[0]} ends with code {done.returncode} before it trains"
        last = said.splitlines()[-1]
        raise UserError(f"{run.name}: {last.partition(' error: ')[2] or last}")


def _imports_cli(script):
    """Whether a script imports `tools.cli`, itself or by modules of its folder or of this repository."""
    finder = modulefinder.ModuleFinder([str(script.parent), str(ROOT)])
    try:
        finder.run_script(str(script))  # which only reads it
    except SyntaxError as error:
        raise UserError(f"{script}: {error}") from error
    return "tools.cli" in finder.modules


def _end_with_parent():
    """Stop this process when its parent dies, so that no second run starts in the same folder."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # 1: PR_SET_PDEATHSIG of linux/prctl.h


def run_sweep(arguments: argparse.Namespace) -> list[str]:
    """Run what is missing; return the messages of failed runs.

    UserError without Ray, for settings that the script refuses, and in another sweep's folder.
    """
    try:
        import ray
        from ray import tune
    except ImportError as error:
        raise UserError(f"sweeps need Ray Tune: pip install -r requirements-sweep.txt ({error})") from error
    folder, command = arguments.folder, arguments.command
    wanted = combinations(arguments.vary)
    missing = [combination for combination in wanted if not (run_folder(folder, combination) / TEST).exists()]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:  # threads that wait for their processes
        list(pool.map(functools.partial(check_flags, folder, command), missing))
    check_same(folder, {"command": command, "vary": arguments.vary})
    logger.info("%d of %d runs are done", len(wanted) - len(missing), len(wanted))
    if not missing:
        return []

    def train(given):
        tune.report(dataclasses.asdict(run_combination(folder, command, given["settings"])))

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report its use to its makers
    os.environ.setdefault("RAY_worker_niceness", "0")  # not 15, with which other programs would get all processors
    ray.init(arguments.address, include_dashboard=False if arguments.address is None else None, log_to_driver=False)
    try:
        trainable = tune.with_resources(train, {"cpu": arguments.cpus, "gpu": arguments.gpus})
        retries = tune.FailureConfig(max_failures=2)
        config = tune.RunConfig(name="ray", storage_path=str(folder), verbose=1, failure_config=retries)
        tuner = tune.Tuner(trainable, param_space={"settings": tune.grid_search(missing)}, run_config=config)
        return [str(error) for error in tuner.fit().errors]
    finally:
        ray.shutdown()


def check_same(folder: Path, definition: dict) -> None:
    """Write the definition of a sweep into its folder; UserError if the folder has another sweep."""
    path = folder / DEFINITION
    if not path.exists():
        write_text_atomically(path, json.dumps(definition, indent=2) + "\n")
        return
    try:
        there = json.loads(read_bytes(path, MOST_TEXT))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not the definition of a sweep; delete it to continue: {error}") from error
    if there != definition:
        raise UserError(f"{folder} has another sweep: {json.dumps(there)}")


def summarise(folder: Path, settings: dict[str, list[str]]) -> list[Row]:
    """The results of the complete runs: a row for each combination, over seeds."""
    accuracies = {}
    for combination in combinations(settings):
        if result := read_result(run_folder(folder, combination)):
            key = tuple((name, value) for name, value in combination.items() if name != SEED)
            accuracies.setdefault(key, []).append(result.accuracy)
    rows = []
    for key, values in accuracies.items():
        std = statistics.stdev(values) if len(values) > 1 else None
        rows.append(Row(dict(key), len(values), statistics.mean(values), std))
    return rows


def table(rows: Sequence[Row]) -> list[str]:
    """A summary as aligned lines of text."""
    cells = [[*rows[0].settings, "seeds", "test accuracy, %"]]
    for row in rows:
        spread = "" if row.std is None else f" +- {100 * row.std:.2f}"
        cells.append([*row.settings.values(), str(row.seeds), f"{100 * row.mean:.2f}{spread}"])
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = []
    for row in cells:
        padded = [cell.ljust(width) for cell, width in zip(row, widths)]
        lines.append("  ".join(padded).rstrip())
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    """Run a sweep, then write its table, sweep.csv, and its picture, sweep.png."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    arguments = parse(argv)
    try:
        failed = run_sweep(arguments)
        rows = summarise(arguments.folder, arguments.vary)
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")
    if rows:
        write_text_atomically(arguments.folder / "sweep.csv", _csv(rows))
        plot_sweep(arguments.folder / "sweep.png", rows)
        sys.stdout.write("\n".join([*table(rows), ""]))
        logger.info("table and picture: %s", arguments.folder / "sweep.{csv,png}")
    if failed:
        sys.exit("\n".join(["error: runs failed:", *failed]))


def _csv(rows):
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*rows[0].settings, "seeds", "accuracy_mean", "accuracy_std"])
    for row in rows:
        std = "" if row.std is None else f"{row.std:.6f}"
        writer.writerow([*row.settings.values(), row.seeds, f"{row.mean:.6f}", std])
    return text.getvalue()


def plot_sweep(path: Path, rows: Sequence[Row]) -> None:
    """Plot test accuracy against the first setting that has several values, a line for each choice of the others."""
    from tools.plots import subplots  # Matplotlib is not needed to run a sweep

    names = list(rows[0].settings)
    varied = [name for name in names if len({row.settings[name] for row in rows}) > 1]
    axis = (varied or names or [SEED])[0]
    texts = [row.settings.get(axis, "") for row in rows]
    try:
        placed = sorted(zip(map(float, texts), rows), key=lambda pair: pair[0])
    except ValueError:
        placed = list(zip(texts, rows))  # a category for each text
    lines = {}
    for place, row in placed:
        others = ", ".join(f"{name} {row.settings[name]}" for name in varied if name != axis)
        lines.setdefault(others, []).append((place, 100 * row.mean, 100 * (row.std or 0)))
    figure, ((axes,),) = subplots(6.4, 4.2)
    # categories in the order of the values, also where runs are missing
    axes.xaxis.update_units([place for place, _ in placed])
    for label, points in lines.items():
        x, means, deviations = zip(*points)
        axes.errorbar(x, means, deviations, marker="o", capsize=3, label=label)
    axes.set(xlabel=axis, ylabel="test accuracy (%)", title="mean and standard deviation over seeds")
    if len(lines) > 1:
        axes.legend()
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()

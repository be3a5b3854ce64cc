"""Sweeps: one training command with all combinations of some of its settings, by Ray Tune.

    python -m tools.sweep results/sweeps/sigma --vary sigma=0.1,0.3,0.5 --vary seed=0,1,2 -- main_mnist5k.py --epochs 10

Needs the packages of requirements-sweep.txt. Runs on this machine, as many at a time as its CPUs and GPUs allow, or
with --address on a Ray cluster, whose machines must see this folder and that of the sweep at the same paths. The same
command again continues a sweep: interrupted runs go on from their last checkpoint, complete ones are left alone.
"""

import argparse
import ctypes
import itertools
import json
import logging
import os
import signal
import statistics
import subprocess
import sys
from pathlib import Path

from matplotlib.figure import Figure

from tools.io.files import MOST_TEXT, read_bytes, write_text_atomically

logger = logging.getLogger(__name__)
ROOT = Path(__file__).resolve().parent.parent
SEED = "seed"  # the setting that results are averaged over
DEFINITION = "sweep.json"
OWN = ("run_dir", "resume")  # settings of each run that the sweep chooses
ATTEMPTS = 3  # of a run that fails


def parse(argv=None):
    """The arguments of a sweep; SystemExit with a message for wrong ones."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.sweep",
        usage="%(prog)s FOLDER --vary SETTING=VALUE,VALUE [...] -- main_<dataset>.py [flags]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="of the sweep: its runs, its table and its picture")
    parser.add_argument(
        "--vary", action="append", required=True, metavar="SETTING=VALUE,VALUE", help="a flag of the script, its values"
    )
    parser.add_argument("--cpus", type=float, default=1.0, help="CPUs of each run (1)")
    parser.add_argument("--gpus", type=float, default=0.0, help="GPUs of each run (0); 0.5: two runs share one")
    parser.add_argument("--address", help="of a Ray cluster; default: this machine")
    own, *command = _split(sys.argv[1:] if argv is None else argv)
    arguments = parser.parse_args(own)
    if not command:
        parser.error("which command? End with: -- main_<dataset>.py --epochs 10")
    if not (ROOT / command[0]).is_file():
        parser.error(f"there is no {command[0]} in {ROOT}")
    try:
        arguments.vary = parse_settings(arguments.vary)
    except ValueError as error:
        parser.error(str(error))
    arguments.command, arguments.folder = command, arguments.folder.resolve()
    return arguments


def _split(argv):
    """The arguments before "--", as a list, and each of those behind it."""
    end = argv.index("--") if "--" in argv else len(argv)
    return [argv[:end], *argv[end + 1 :]]


def parse_settings(texts):
    """["sigma=0.1,0.3", ...] -> {"sigma": ["0.1", "0.3"], ...}; ValueError for what is none, or comes twice."""
    settings = {}
    for text in texts:
        name, _, values = text.partition("=")
        values = values.split(",")
        if not name or not all(values) or len(set(values)) < len(values):
            raise ValueError(f"--vary needs SETTING=VALUE,VALUE with different values, got {text}")
        if name in settings:
            raise ValueError(f"--vary {name} was given twice")
        if name in OWN:
            raise ValueError(f"{name} is set by the sweep itself")
        settings[name] = values
    folders = [run_folder("", trial) for trial in trials(settings)]
    if len(set(folders)) < len(folders):
        raise ValueError("two combinations would share a folder: their values differ in '/' and '-' or '.yaml' alone")
    return settings


def trials(settings):
    """All combinations, as a list of {setting: value}."""
    return [dict(zip(settings, values)) for values in itertools.product(*settings.values())]


def run_folder(folder, trial):
    """Where the run of a combination is."""
    name = ",".join(f"{name}={value.removesuffix('.yaml')}" for name, value in sorted(trial.items()))
    return Path(folder) / "runs" / name.replace("/", "-")


def run_trial(folder, command, trial):
    """Train with one combination of settings, or go on with that.

    Returns:
        The content of the run's test.json.

    Raises:
        RuntimeError: with the last lines of its log, if it failed.
    """
    run = run_folder(folder, trial)
    run.mkdir(parents=True, exist_ok=True)
    flags = [text for name, value in trial.items() for text in (f"--{name}", value)]
    arguments = [sys.executable, *command, *flags, "--run_dir", str(run), "--resume", "auto"]
    with open(run / "log.txt", "a") as log:
        code = subprocess.run(
            arguments, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, preexec_fn=_end_with_parent
        ).returncode
    if code or not (run / "test.json").exists():
        last = (run / "log.txt").read_text().splitlines()[-5:]
        raise RuntimeError("\n".join([f"{run.name} ended with code {code}:", *last]))
    return json.loads((run / "test.json").read_text())


def _end_with_parent():
    """Let this process be stopped when its parent dies: a run must not go on beside the one that continues it."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1  # of linux/prctl.h
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def run_sweep(arguments):
    """Run what is missing of a sweep.

    Returns:
        Messages of the runs that failed.

    Raises:
        ValueError: if the folder has another sweep.
    """
    try:
        import ray
        from ray import tune
    except ImportError as error:
        raise ValueError(f"sweeps need Ray Tune: pip install -r requirements-sweep.txt ({error})") from error
    folder, command = arguments.folder, arguments.command
    check_same(folder, {"command": command, "vary": arguments.vary})
    missing = [trial for trial in trials(arguments.vary) if not (run_folder(folder, trial) / "test.json").exists()]
    logger.info("%d of %d runs are done", len(trials(arguments.vary)) - len(missing), len(trials(arguments.vary)))
    if not missing:
        return []

    def train(trial):
        tune.report(run_trial(folder, command, trial["settings"]))

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report its use to its makers
    ray.init(arguments.address, include_dashboard=False if arguments.address is None else None, log_to_driver=False)
    try:
        results = tune.Tuner(
            tune.with_resources(train, {"cpu": arguments.cpus, "gpu": arguments.gpus}),
            param_space={"settings": tune.grid_search(missing)},
            run_config=tune.RunConfig(
                name="ray",
                storage_path=str(folder),
                verbose=1,
                failure_config=tune.FailureConfig(max_failures=ATTEMPTS - 1),
            ),
        ).fit()
    finally:
        ray.shutdown()
    return [str(error) for error in results.errors]


def check_same(folder, definition):
    """Note what a sweep is in its folder; ValueError if another one is there."""
    path = folder / DEFINITION
    if path.exists():
        if (there := json.loads(read_bytes(path, MOST_TEXT))) != definition:
            raise ValueError(f"{folder} has another sweep: {json.dumps(there)}")
        return
    write_text_atomically(path, json.dumps(definition, indent=2) + "\n")


def summarise(folder, settings):
    """The results of the complete runs, over seeds.

    Returns:
        List of {"settings": {setting: value}, but for the seed, "seeds", "mean", "std"}: of the test accuracy, "std"
        None for one seed.
    """
    accuracies = {}
    for trial in trials(settings):
        path = run_folder(folder, trial) / "test.json"
        if path.exists():
            key = tuple((name, value) for name, value in trial.items() if name != SEED)
            accuracies.setdefault(key, []).append(json.loads(read_bytes(path, MOST_TEXT))["accuracy"])
    return [
        {
            "settings": dict(key),
            "seeds": len(values),
            "mean": statistics.mean(values),
            "std": statistics.stdev(values) if len(values) > 1 else None,
        }
        for key, values in accuracies.items()
    ]


def table(rows):
    """A summary as lines of text."""
    names = list(rows[0]["settings"])
    cells = [[*names, "seeds", "test accuracy, %"]]
    for row in rows:
        spread = "" if row["std"] is None else f" +- {100 * row['std']:.2f}"
        cells.append([*row["settings"].values(), str(row["seeds"]), f"{100 * row['mean']:.2f}{spread}"])
    widths = [max(map(len, column)) for column in zip(*cells)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in cells]


def main(argv=None):
    """Run a sweep, then write its table (sweep.csv) and picture (sweep.png)."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    arguments = parse(argv)
    try:
        failed = run_sweep(arguments)
    except ValueError as error:
        sys.exit(f"error: {error}")
    rows = summarise(arguments.folder, arguments.vary)
    if rows:
        write_text_atomically(arguments.folder / "sweep.csv", _csv(rows))
        plot_sweep(arguments.folder / "sweep.png", rows)
        sys.stdout.write("\n".join([*table(rows), ""]))
        logger.info("table and picture: %s", arguments.folder / "sweep.{csv,png}")
    if failed:
        sys.exit("\n".join(["error: runs failed:", *failed]))


def _csv(rows):
    names = list(rows[0]["settings"])
    lines = [",".join([*names, "seeds", "accuracy_mean", "accuracy_std"])]
    for row in rows:
        std = "" if row["std"] is None else f"{row['std']:.6f}"
        lines.append(",".join([*row["settings"].values(), str(row["seeds"]), f"{row['mean']:.6f}", std]))
    return "\n".join(lines) + "\n"


def plot_sweep(path, rows):
    """Test accuracy against the first setting that has several values, a line for each combination of the others.

    Args:
        path: the PNG file to write.
        rows: as `sweep.summarise` has them: {"settings": {name: value}, "mean", "std"}.
    """
    names = list(rows[0]["settings"])
    varied = [name for name in names if len({row["settings"][name] for row in rows}) > 1]
    axis = (varied or names or ["seed"])[0]
    lines = {}
    for row in rows:
        others = ", ".join(f"{name} {row['settings'][name]}" for name in varied if name != axis)
        place = row["settings"].get(axis, "")
        lines.setdefault(others, []).append((place, 100 * row["mean"], 100 * (row["std"] or 0)))
    places = list(dict.fromkeys(point[0] for points in lines.values() for point in points))
    numbers = _numbers(places)
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for label, points in lines.items():
        points = sorted((numbers[place], mean, std) for place, mean, std in points)
        axes.errorbar(*zip(*points), marker="o", capsize=3, label=label)
    if not all(isinstance(number, float) for number in numbers.values()):
        axes.set_xticks(range(len(places)), places)
    axes.set(xlabel=axis, ylabel="test accuracy (%)", title="mean and standard deviation over seeds")
    axes.grid(alpha=0.3)
    if len(lines) > 1:
        axes.legend()
    figure.savefig(Path(path), dpi=130)


def _numbers(texts):
    """{text: the float that it is}, or where one is none, {text: its place among them, an int}."""
    try:
        return {text: float(text) for text in texts}
    except ValueError:
        return {text: place for place, text in enumerate(texts)}


if __name__ == "__main__":
    main()

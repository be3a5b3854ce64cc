"""The functions that the scripts main_<name>.py and testing_<dataset>.py call.

They parse the flags before they import what they run, so that --help and wrong flags are answered at once. With
NSNN_PARSE_ONLY=1 in the environment, they end the process after that, with the code `PARSED`.
"""

import argparse
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from models import ArgumentError
from tools.config.evaluate import EvaluationConfig
from tools.config.parsing import parse
from tools.config.train import Dataset, TrainConfig
from tools.errors import UserError
from tools.runtime.interruption import Interrupted
from tools.runtime.processes import joined
from tools.training.divergence import Diverged
from tools.training.result import RunResult

logger = logging.getLogger(__name__)
Argv = Sequence[str] | None  # None: sys.argv[1:]
PARSE_ONLY = "NSNN_PARSE_ONLY"
PARSED = 75  # no other end of a script has this exit code


def _end_if_parsing_only() -> None:
    """End the process, not by an exception, which the script might catch, or clean up after."""
    if os.environ.get(PARSE_ONLY):
        os._exit(PARSED)


def train(dataset: Dataset, defaults: dict | None = None, argv: Argv = None) -> RunResult:
    """Train a network on a data set as the command line says, and test it.

    Args:
        dataset: one of `dataset_utils.DATASETS`, or another with its attributes.
        defaults: settings that suit this data set; recipe and flags override them.

    Raises:
        SystemExit: with a message, for wrong settings, absent data, or a loss that is not finite. The exit code is
            128 + its number after a signal, and 0 when --max_minutes is reached.
    """
    config, given = parse(TrainConfig, argv, defaults, dataset, f"Train a spiking network on {dataset.name}.")
    _end_if_parsing_only()
    from tools.training.run import Training

    with _readable_errors(config.debug), joined(config.device) as processes:
        if not processes.is_first:
            logging.getLogger().setLevel(logging.ERROR)
        return Training(config, dataset, given, processes).run()


def test(dataset: Dataset, argv: Argv = None, other_datasets: dict[str, Dataset] | None = None) -> dict[str, list]:
    """Evaluate a checkpoint on a data set as the command line says; errors are as for `train`.

    --ood may choose one of `other_datasets`, {name: data set}. Returns what `run_evaluation` does:
    {group: list of results}.
    """
    config, _ = parse(EvaluationConfig, argv, None, dataset, f"Evaluate a spiking network on {dataset.name}.")
    _end_if_parsing_only()
    from tools.evaluation.run import run_evaluation

    with _readable_errors(config.debug):
        return run_evaluation(config, dataset, other_datasets)


def study(
    name: str,
    description: str,
    experiments: Callable[[argparse.Namespace], dict[str, Callable]],
    argv: Argv = None,
    more_flags: Callable[[argparse.ArgumentParser], None] | None = None,
) -> tuple[Path, dict]:
    """Run a study as the command line says; return the folder of results and the content of its results.json.

    Args:
        name: as in main_<name>.py.
        description: first line of --help.
        experiments: makes {name: function of a `Study`} from the parsed arguments, and imports what they need.
        more_flags: adds flags to a parser.

    Raises:
        SystemExit: with a message, for wrong flags, and for files that cannot be read or written.
    """
    parser = argparse.ArgumentParser(f"main_{name}.py", description=description)
    parser.add_argument("--quick", action=argparse.BooleanOptionalAction, default=False, help="fewer repetitions")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random numbers (default: 0)")
    parser.add_argument("--only", nargs="+", default=(), metavar="EXPERIMENT", help="run only these experiments")
    parser.add_argument("--workers", type=int, default=0, help="processes (default: as many as processors)")
    parser.add_argument("--out", default="", help=f"folder of the results (default: results/{name}/<time>-s<seed>)")
    if more_flags is not None:
        more_flags(parser)
    arguments = parser.parse_args(argv)
    if arguments.seed < 0 or arguments.workers < 0:
        parser.error("--seed and --workers must be at least 0")
    _end_if_parsing_only()
    from tools.studies.study import run_study

    with _readable_errors():
        options = {key: getattr(arguments, key) for key in ("seed", "quick", "workers", "out", "only")}
        folder, content = run_study(name, experiments(arguments), **options)
        logger.info("results and pictures are in %s", folder)
        return folder, content


@contextlib.contextmanager
def _readable_errors(debug: bool = False) -> Iterator[None]:
    """Log to stderr; errors that the user can act on exit with one line and code 1, others keep their traceback."""
    logging.basicConfig(level=logging.DEBUG if debug else logging.INFO, format="%(message)s", stream=sys.stderr)
    for library in ("matplotlib", "PIL", "tensorboard"):
        logging.getLogger(library).setLevel(logging.WARNING)
    try:
        yield
    except Interrupted as error:
        sys.exit(error.exit_code)
    except KeyboardInterrupt:  # outside of training, with nothing to save
        logger.error("stopped")
        sys.exit(128 + signal.SIGINT)
    except (ArgumentError, Diverged, OSError, UserError) as error:
        logger.error("error: %s", error, exc_info=debug)
        sys.exit(1)

"""What the scripts main_<...>.py and testing_<dataset>.py hand over to."""

import argparse
import contextlib
import logging
import signal
import sys

from tools.config.evaluate import EvaluationConfig
from tools.config.parsing import parse
from tools.config.train import TrainConfig
from tools.evaluation.run import run_tests
from tools.runtime.interruption import Interrupted
from tools.runtime.processes import joined
from tools.studies.study import run_study
from tools.training.divergence import Diverged
from tools.training.run import Training

logger = logging.getLogger(__name__)


def train(dataset, defaults=None, argv=None):
    """Train a network on a data set as the command line says.

    Args:
        dataset: has name, num_classes, mean, std, and input_shape(), load() and augmentation() of `dataset_utils`.
        defaults: settings that suit this data set; recipe and flags override them.
        argv: arguments; None means sys.argv[1:].

    Returns:
        {"loss", "accuracy"} on the test images.

    Raises:
        SystemExit: with a message, for wrong settings, absent data, or a loss that is not finite; when stopped by a
            signal, with exit code 128 + its number, or at the end of --max_minutes with 0.
    """
    config, given = parse(TrainConfig, argv, defaults, dataset.name, f"Train a spiking network on {dataset.name}.")
    _configure_logging(config.debug)
    with _readable_errors(config.debug), joined(config.device) as processes:
        if not processes.is_first:
            logging.getLogger().setLevel(logging.ERROR)
        return Training(config, dataset, given, processes).run()


def test(dataset, defaults=None, argv=None, other_datasets=None):
    """Test a snapshot on a data set as the command line says.

    Args:
        dataset, defaults, argv: as for `train`.
        other_datasets: {name: data set}, of which --ood may choose one.

    Returns:
        {kind: list of results}, as `run_tests` has it.

    Raises:
        SystemExit: with a message, for wrong settings, absent data, or a snapshot that does not fit.
    """
    config, _ = parse(EvaluationConfig, argv, defaults, dataset.name, f"Test a spiking network on {dataset.name}.")
    _configure_logging(config.debug)
    with _readable_errors(config.debug):
        return run_tests(config, dataset, other_datasets)


def study(name, description, experiments, argv=None, more_flags=None):
    """Run a study as the command line says.

    Args:
        name: of the study, as in main_<name>.py.
        description: what --help says first.
        experiments: {name: function of a `Study`}, or a function that makes them of the parsed arguments.
        argv: arguments; None means sys.argv[1:].
        more_flags: None, or a function that adds flags to an `argparse` parser.

    Returns:
        The folder of results and the content of its results.json.

    Raises:
        SystemExit: with a message, for wrong flags or files that cannot be read or written.
    """
    parser = argparse.ArgumentParser(f"main_{name}.py", description=description)
    parser.add_argument("--quick", action=argparse.BooleanOptionalAction, default=False, help="fewer repetitions")
    parser.add_argument("--seed", type=int, default=0, help="fixes everything random (default: 0)")
    parser.add_argument("--only", nargs="+", default=(), metavar="EXPERIMENT", help="some of the experiments")
    parser.add_argument("--workers", type=int, default=0, help="processes (default: as many as processors)")
    parser.add_argument("--out", default="", help=f"folder of the results (default: results/{name}/<time>-s<seed>)")
    if more_flags is not None:
        more_flags(parser)
    arguments = parser.parse_args(argv)
    if not 0 <= arguments.seed <= 10**6 or arguments.workers < 0:  # seeds of repetitions are 1,000 times as large
        parser.error("--seed must be 0 to 1,000,000, --workers at least 0")
    _configure_logging(debug=False)
    with _readable_errors(debug=False):
        chosen = experiments(arguments) if callable(experiments) else experiments
        options = {key: getattr(arguments, key) for key in ("seed", "quick", "workers", "out", "only")}
        folder, content = run_study(name, chosen, **options)
        logger.info("results and pictures are in %s", folder)
        return folder, content


@contextlib.contextmanager
def _readable_errors(debug):
    """Turn errors that the user can act on into one line and exit code 1; with --debug, show where they arose."""
    try:
        yield
    except Interrupted as error:
        sys.exit(error.exit_code)
    except KeyboardInterrupt:  # where nothing was to be saved
        logger.error("stopped")
        sys.exit(128 + signal.SIGINT)
    except (Diverged, OSError, ValueError) as error:  # CheckpointError is a ValueError
        logger.error("error: %s", error, exc_info=debug)
        sys.exit(1)


def _configure_logging(debug):
    logging.basicConfig(level=logging.DEBUG if debug else logging.INFO, format="%(message)s", stream=sys.stderr)
    for library in ("matplotlib", "PIL", "tensorboard"):
        logging.getLogger(library).setLevel(logging.WARNING)

"""The folder of a run: how it is made and used, its settings and its result."""

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import yaml

from tools.config.train import TrainConfig
from tools.errors import UserError
from tools.io import checkpoint
from tools.io.files import MOST_TEXT, alone_in, make_folder_of_now, read_bytes, remove_parts, write_text_atomically
from tools.runtime.provenance import provenance

from .log import RunLog

TEST = "test.json"  # of a complete run


@dataclasses.dataclass(frozen=True)
class RunResult:
    """The result of a complete run: test.json.

    Args:
        epoch: whose network was tested.
        val_accuracy: of that network on the validation images, in [0, 1].
        loss: on the test images, in nats per image.
        accuracy: on the test images, in [0, 1].
    """

    epoch: int
    val_accuracy: float
    loss: float
    accuracy: float


def make_run_folder(config: TrainConfig, dataset: str) -> tuple[Path, bool]:
    """Make --run_dir, or <results>/<dataset>/<model>-<neuron>/<time>-s<seed>/; also say whether it is new.

    Raises:
        UserError: if --run_dir already holds a run.
    """
    if not config.run_dir:
        parent = Path(config.results) / dataset / f"{config.model}-{config.neuron}"
        return make_folder_of_now(parent, f"-s{config.seed}"), True
    folder = Path(config.run_dir)
    if checkpoint.holds_run(folder):
        raise UserError(f"{folder} holds a run already; continue it with --resume {folder}, or choose another")
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    return folder, is_new


@contextlib.contextmanager
def opened(folder: Path, config: TrainConfig, dataset: str, first_epoch: int) -> Iterator[RunLog]:
    """Context manager: lock the folder for this process, write config.yaml, and open the log.

    config.yaml is itself a recipe of the whole run, with the code and libraries behind it.

    Raises:
        UserError: if another process is at work in the folder.
    """
    with alone_in(folder):
        remove_parts(folder)
        with contextlib.closing(RunLog(folder, first_epoch)) as log:
            settings = {**dataclasses.asdict(config), "resume": ""}
            content = {"dataset": dataset, **settings, "provenance": provenance()}
            write_text_atomically(folder / "config.yaml", yaml.safe_dump(content, sort_keys=False))
            yield log


def write_result(folder: Path, result: RunResult) -> None:
    """Write test.json."""
    write_text_atomically(folder / TEST, json.dumps(dataclasses.asdict(result), indent=2) + "\n")


def read_result(folder: Path) -> RunResult | None:
    """The result of a run, or None if it is not complete; UserError if test.json is damaged."""
    path = folder / TEST
    if not path.exists():
        return None
    try:
        return RunResult(**json.loads(read_bytes(path, MOST_TEXT)))
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is not the result of a run; delete it to test the network again: {error}") from error

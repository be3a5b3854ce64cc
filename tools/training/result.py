"""test.json: the result of a run."""

import dataclasses
import json
from pathlib import Path

from tools.errors import UserError
from tools.io.files import MOST_TEXT, read_bytes, write_text_atomically

TEST = "test.json"  # only complete runs have it


@dataclasses.dataclass(frozen=True)
class RunResult:
    """The result of a complete run, as in test.json."""

    epoch: int  # of the network that was tested
    val_accuracy: float  # of that network on the validation samples, in [0, 1]
    loss: float  # on the test samples, in nats per sample
    accuracy: float  # on the test samples, in [0, 1]


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

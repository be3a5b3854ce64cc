"""The log of a run: metrics.jsonl and TensorBoard events."""

import contextlib
import dataclasses
import json
import logging
from pathlib import Path

from torch import nn

from tools.inference import Scores
from tools.io.files import MOST_TEXT, read_bytes, write_text_atomically

from .progress import EpochResult

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class EpochRecord:
    """The numbers of one epoch.

    Args:
        epoch: its number, from 1.
        lr: learning rate of its first step.
        trained: result of the pass over the training images.
        validated: scores on the validation images.
        firing_rates: spikes per neuron and time step of each layer in validation, if they were watched.
    """

    epoch: int
    lr: float
    trained: EpochResult
    validated: Scores
    firing_rates: dict[str, float] | None = None

    def row(self) -> dict:
        """The row of metrics.jsonl."""
        row: dict = {"epoch": self.epoch, "lr": self.lr}
        for part, result in (("train", self.trained), ("val", self.validated)):
            for name, value in dataclasses.asdict(result).items():
                if value is not None:
                    row[f"{part}_{name}"] = value
        if self.firing_rates:
            row["firing_rates"] = self.firing_rates
        return row


class RunLog:
    """Writes metrics.jsonl and TensorBoard events of a run.

    Args:
        folder: of the run.
        first_epoch: rows of this epoch and later ones, of an interrupted run, are dropped.
    """

    def __init__(self, folder: Path, first_epoch: int = 1):
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and not needed for --help

        self.folder = Path(folder)
        self.metrics = self.folder / "metrics.jsonl"
        rows = [row for row in read_metrics(self.metrics) if row["epoch"] < first_epoch]
        write_text_atomically(self.metrics, "".join(json.dumps(row) + "\n" for row in rows))
        self.board = SummaryWriter(self.folder, purge_step=first_epoch)

    def epoch(self, record: EpochRecord) -> None:
        """Add a row to metrics.jsonl, and a TensorBoard scalar for each of its numbers."""
        row = record.row()
        with self._readable_errors(), self.metrics.open("a") as file:
            file.write(json.dumps(row) + "\n")
        scalars = {name.replace("_", "/", 1): value for name, value in row.items()}
        del scalars["epoch"]
        for layer, rate in scalars.pop("firing/rates", {}).items():
            scalars[f"firing_rate/{layer}"] = rate
        with self._readable_errors():
            for name, value in scalars.items():
                self.board.add_scalar(name, value, record.epoch)

    def histograms(self, net: nn.Module, epoch: int) -> None:
        """Add histograms of all weights, and of the gradients of the last batch."""
        with self._readable_errors():
            for name, parameter in net.named_parameters():
                self.board.add_histogram(f"weights/{name}", parameter.detach().float(), epoch)
                if parameter.grad is not None:
                    self.board.add_histogram(f"gradients/{name}", parameter.grad.float(), epoch)

    def close(self) -> None:
        """Write what is left and close the event file."""
        with self._readable_errors():
            self.board.close()

    @contextlib.contextmanager
    def _readable_errors(self):
        try:
            yield
        except OSError as error:  # TensorBoard's does not name the file
            raise OSError(f"the log in {self.folder} cannot be written, is the disk full? {error}") from error


def read_metrics(path: str | Path) -> list[dict]:
    """The rows of a metrics.jsonl, each with the integer "epoch"; none if the file does not exist.

    Lines that are not such rows, such as the incomplete last one of a killed run, are left out; any but the last is
    reported.

    Raises:
        UserError: if `path` is a folder, pipe or device.
    """
    path = Path(path)
    if not path.exists():
        return []
    rows = []
    lines = read_bytes(path, MOST_TEXT).splitlines()
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict) and type(row.get("epoch")) is int:
            rows.append(row)
        elif number < len(lines):
            logger.warning("line %d of %s is damaged and left out", number, path)
    return rows

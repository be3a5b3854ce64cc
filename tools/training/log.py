"""What a run leaves behind: config.yaml, metrics.jsonl, TensorBoard events."""

import contextlib
import json
import logging
from pathlib import Path

import yaml
from torch.utils.tensorboard import SummaryWriter

from tools.io.files import MOST_TEXT, read_bytes, write_text_atomically
from tools.runtime.provenance import provenance

logger = logging.getLogger(__name__)


class RunLog:
    """Writes one run's metrics.jsonl and TensorBoard events.

    Args:
        folder: the run's folder.
        first_epoch: rows of this epoch and later ones, of an interrupted run, are dropped.
    """

    def __init__(self, folder, first_epoch=1):
        self.folder = Path(folder)
        self.metrics = self.folder / "metrics.jsonl"
        rows = [row for row in read_metrics(self.metrics) if row["epoch"] < first_epoch]
        write_text_atomically(self.metrics, "".join(json.dumps(row) + "\n" for row in rows))
        self.board = SummaryWriter(self.folder, purge_step=first_epoch)

    def write_config(self, config):
        """Write config.yaml, itself a recipe: all settings, the data set, and where the code came from."""
        content = {**config, "provenance": provenance()}
        write_text_atomically(self.folder / "config.yaml", yaml.safe_dump(content, sort_keys=False))

    def epoch(self, row):
        """Add the numbers of one epoch: a row of metrics.jsonl, and a TensorBoard scalar each."""
        with self._readable_errors(), self.metrics.open("a") as file:
            file.write(json.dumps(row) + "\n")
        with self._readable_errors():
            self._scalars(row)

    def _scalars(self, row):
        for name, value in row.items():
            if name == "firing_rates":
                for layer, rate in value.items():
                    self.board.add_scalar(f"firing_rate/{layer}", rate, row["epoch"])
            elif name != "epoch":
                self.board.add_scalar(name.replace("_", "/", 1), value, row["epoch"])

    def histograms(self, net, epoch):
        """Add histograms of all weights, and of the gradients of the last batch."""
        with self._readable_errors():
            for name, parameter in net.named_parameters():
                self.board.add_histogram(f"weights/{name}", parameter.detach().float(), epoch)
                if parameter.grad is not None:
                    self.board.add_histogram(f"gradients/{name}", parameter.grad.float(), epoch)

    def close(self):
        with self._readable_errors():
            self.board.close()

    @contextlib.contextmanager
    def _readable_errors(self):
        try:
            yield
        except OSError as error:  # TensorBoard's names no file
            raise OSError(f"the log in {self.folder} cannot be written, is the disk full? {error}") from error


def read_metrics(path):
    """The rows of a metrics.jsonl, dictionaries with the whole number "epoch"; none if there is no such file.

    A line that is no such row, as the incomplete last one of a killed run, is left out; any but the last is reported.

    Raises:
        ValueError: if there is no file but a pipe or device.
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

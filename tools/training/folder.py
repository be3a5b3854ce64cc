"""The folder of a run: config.yaml, metrics.jsonl and TensorBoard events."""

import contextlib
import dataclasses
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import yaml
from torch import nn

from tools.config.train import TrainConfig
from tools.errors import UserError
from tools.inference import Scores
from tools.io import checkpoint
from tools.io.files import MOST_TEXT, alone_in, make_folder_of_now, read_bytes, remove_parts, write_text_atomically
from tools.runtime.provenance import provenance

from .progress import EpochResult

logger = logging.getLogger(__name__)
MOST_SHOWN = 1e19  # of a weight in a histogram: TensorBoard's intervals end at 1e20


def make_run_folder(config: TrainConfig, dataset: str) -> tuple[Path, bool]:
    """Make --run_dir, or <results>/<dataset>/<model>-<neuron>/<time>-s<seed>/; return it, and whether it is new.

    UserError if --run_dir holds a run already.
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


class RunLog:
    """Writes metrics.jsonl and TensorBoard events, replacing those of an interrupted run from `first_epoch` on."""

    def __init__(self, folder: Path, first_epoch: int = 1):
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        self.folder, self.metrics = folder, folder / "metrics.jsonl"
        rows = [row for row in read_metrics(self.metrics) if row["epoch"] < first_epoch]
        write_text_atomically(self.metrics, "".join(json.dumps(row) + "\n" for row in rows))
        self.board = SummaryWriter(folder, purge_step=first_epoch)

    def epoch(self, epoch: int, lr: float, trained: EpochResult, validated: Scores, rates: dict | None = None) -> None:
        """Add a row to metrics.jsonl, and a TensorBoard scalar for each of its numbers.

        Args:
            lr: learning rate of the first step.
            rates: {layer: spikes per neuron and time step in validation}, if recorded.
        """
        scalars = {"lr": lr}
        for part, result in (("train", trained), ("val", validated)):
            numbers = dataclasses.asdict(result).items()
            scalars |= {f"{part}_{name}": value for name, value in numbers if value is not None}
        row = {"epoch": epoch, **scalars, **({"firing_rates": rates} if rates else {})}
        with self._readable_errors():
            with self.metrics.open("a") as file:
                file.write(json.dumps(row) + "\n")
            for name, value in scalars.items():
                self.board.add_scalar(name.replace("_", "/", 1), value, epoch)
            for layer, rate in (rates or {}).items():
                self.board.add_scalar(f"firing_rate/{layer}", rate, epoch)

    def histograms(self, net: nn.Module, epoch: int) -> None:
        """Add histograms of all weights, and of the gradients of the last batch."""
        with self._readable_errors():
            for name, parameter in net.named_parameters():
                for kind, values in (("weights", parameter.detach()), ("gradients", parameter.grad)):
                    if values is not None:
                        shown = values.float().clamp(-MOST_SHOWN, MOST_SHOWN)
                        self.board.add_histogram(f"{kind}/{name}", shown, epoch)

    def close(self) -> None:
        """Write the remaining events and close their file."""
        with self._readable_errors():
            self.board.close()

    @contextlib.contextmanager
    def _readable_errors(self):
        try:
            yield
        except OSError as error:  # TensorBoard's message does not name the file
            raise OSError(f"the log in {self.folder} cannot be written, is the disk full? {error}") from error


def read_metrics(path: Path) -> list[dict]:
    """The rows of a metrics.jsonl, each with an integer "epoch"; none if the file does not exist.

    Damaged lines are left out. All but the last one, which may be incomplete after a killed run, are reported.
    UserError if `path` is a folder, pipe or device.
    """
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


@contextlib.contextmanager
def opened(folder: Path, config: TrainConfig, dataset: str, first_epoch: int) -> Iterator[RunLog]:
    """Context manager: lock the folder against other processes, write config.yaml, and open the log.

    config.yaml is itself a recipe, with the versions of code and libraries.
    """
    with alone_in(folder):
        remove_parts(folder)
        with contextlib.closing(RunLog(folder, first_epoch)) as log:
            settings = {**dataclasses.asdict(config), "resume": ""}
            content = {"dataset": dataset, **settings, "provenance": provenance()}
            write_text_atomically(folder / "config.yaml", yaml.safe_dump(content, sort_keys=False))
            yield log

"""Find the run to continue, and its settings."""

import dataclasses
from collections.abc import Collection
from pathlib import Path

from tools.config.train import Dataset, TrainConfig
from tools.errors import UserError
from tools.io import checkpoint
from tools.io.checkpoint import CheckpointError
from tools.networks import check_size, stored_config, stored_dataset
from tools.optim import EXTENDABLE
from tools.runtime.processes import restarts

AUTO = "auto"  # --resume: the run in --run_dir, if there is one
# Settings that may change when a run is resumed.
RESUMABLE = {
    "resume",
    "run_dir",
    "epochs",
    "device",
    "threads",
    "cuda_graph",
    "workers",
    "data_root",
    "download",
    "memory",
    "memory_gb",
    "lenient",
    "plot_spike_rate",
    "save_minutes",
    "save_steps",
    "max_minutes",
    "on_nonfinite",
}
# Parts of a checkpoint and their types, checked before anything is restored.
KINDS = {"config": (dict,), "processes": (list,), "epochs_done": (int,), "samples": (int,), "best": (dict, type(None))}


@dataclasses.dataclass(frozen=True)
class StoredRun:
    """A run to continue: its newest intact checkpoint, and its configuration with the allowed changes."""

    path: Path
    content: dict
    config: TrainConfig


def find_run(
    config: TrainConfig, dataset: Dataset, given: Collection[str], processes: int, restarted: int
) -> StoredRun | None:
    """The run to continue, which `config.resume` and `config.run_dir` name, or None to start a new one.

    Args:
        config: the settings of the command line.
        dataset: of the script; the run must be of the same one.
        given: names of the settings that the user gave.
        processes: how many there are; the run must have had as many.
        restarted: how often torchrun has restarted them.

    Raises:
        FileNotFoundError, CheckpointError: if there is no checkpoint, or none that is intact and can be resumed.
        UserError: if the run is of another data set, or a given setting cannot change.
    """
    _, may_restart = restarts()
    if config.resume in ("", AUTO):
        if not config.run_dir and (config.resume or may_restart):
            flag = "--resume auto" if config.resume else "torchrun --max-restarts"
            raise UserError(f"{flag} needs --run_dir, to find the run again")
        if not (config.resume or restarted) or not checkpoint.holds_run(config.run_dir):
            return None
        config = dataclasses.replace(config, resume=config.run_dir)
    path = Path(config.resume)
    path, content = checkpoint.read_last(path) if path.is_dir() else (path, checkpoint.read(path))
    _check_content(content, path, dataset, processes)
    stored = stored_config(content, path)
    dataset = stored_dataset(dataset, content, path)
    check_size(stored, dataset, content.get("model"), path)
    _check_changes(config, stored, given)
    if content["best"] is not None:  # otherwise its absence would be noticed only after training
        checkpoint.read(path.with_name(checkpoint.BEST))
    changes = {name: getattr(config, name) for name in RESUMABLE & {*given, "resume"}}
    return StoredRun(path, content, dataclasses.replace(stored, **changes))


def _check_content(content, path, dataset, processes):
    if "processes" not in content:
        raise CheckpointError(f"{path} cannot be resumed: it holds a network only; take the run's {checkpoint.LAST}")
    for name, kinds in KINDS.items():
        if name not in content or type(content[name]) not in kinds:
            raise CheckpointError(f"{path} cannot be resumed: its {name} is missing or of the wrong type")
    if content["epochs_done"] < 0:
        raise CheckpointError(f"{path} cannot be resumed: its epochs_done is negative")
    if content["dataset"] != dataset.name:
        raise UserError(f"{path} was trained on {content['dataset']}, this script is for {dataset.name}")
    if (count := len(content["processes"])) != processes:
        raise UserError(f"{path} was saved by {count} processes and cannot be resumed by {processes}")


def _check_changes(config, stored, given):
    for name in sorted(given):
        value = getattr(config, name)
        if name not in RESUMABLE and value != getattr(stored, name):
            kept = f"{name} = {getattr(stored, name)!r}"
            raise UserError(f"a resumed run keeps {kept}; it cannot be changed to {value!r}")
    if config.epochs != stored.epochs and "epochs" in given and stored.scheduler not in EXTENDABLE:
        raise UserError(f"the {stored.scheduler} schedule was planned for its number of epochs, which cannot change")

"""The state of a training run: what its checkpoints hold, and how it goes on from one."""

import dataclasses
import logging
from pathlib import Path

from tools.io import checkpoint
from tools.networks import check_size, stored_config
from tools.runtime import seeds

from . import loop

logger = logging.getLogger(__name__)
AUTO = "auto"  # --resume: the run in --run_dir, if there is one
RESUMABLE = {  # settings that may differ in a resumed run
    *("resume", "run_dir", "epochs", "device", "threads", "workers", "data_root", "download", "lenient"),
    *("plot_spike_rate", "save_minutes", "save_steps", "max_minutes", "on_nonfinite"),
}


class RunState:
    """All that changes during a run.

    Args:
        learner: `loop.Learner`.
        net: its network, without what wraps it for training.
    """

    def __init__(self, learner, net):
        self.learner = learner
        self.net = net

    def content(self, progress):
        """As plain data and tensors; to be called by all processes.

        Args:
            progress: `loop.Progress` of the epoch that is going on, or None between two.
        """
        learner = self.learner
        of_this_process = {"rng": seeds.rng_state(), "progress": progress.state() if progress else None}
        return {
            "model": self.net.state_dict(),
            "ema": learner.ema.state_dict() if learner.ema is not None else None,
            "optimizer": learner.optimizer.state_dict(),
            "scaler": learner.scaler.state_dict(),
            "scheduler": learner.scheduler.state_dict(),
            "processes": learner.processes.gathered(of_this_process),
        }

    def restore(self, content, path, samples):
        """Put everything back.

        Args:
            content: as `content` gave it.
            path: where it is from, for messages.
            samples: number of those to train on.

        Returns:
            `loop.Progress` of the epoch that was going on, or None.

        Raises:
            CheckpointError: if the content does not fit.
        """
        learner = self.learner
        try:
            self._restore_weights(content)
            learner.scheduler.load_state_dict(content["scheduler"])
            of_this_process = content["processes"][learner.processes.rank]
            seeds.set_rng_state(of_this_process["rng"])  # last: everything above may draw numbers
            progress = of_this_process["progress"]
            return progress and loop.Progress.from_state(progress, learner.forward.device, samples)
        except Exception as error:  # torch trusts what it is given, so that errors are of many kinds
            raise checkpoint.CheckpointError(f"{path} cannot be resumed: {error!r}") from error

    def roll_back(self, content):
        """Put network and optimiser back, but not the place in the run, of which the learning rate is a part."""
        groups = self.learner.optimizer.param_groups
        rates = [group["lr"] for group in groups]
        self._restore_weights(content)
        for group, rate in zip(groups, rates):
            group["lr"] = rate

    def _restore_weights(self, content):
        learner = self.learner
        self.net.load_state_dict(content["model"])
        if learner.ema is not None:
            learner.ema.load_state_dict(content["ema"])
        learner.optimizer.load_state_dict(content["optimizer"])
        learner.scaler.load_state_dict(content["scaler"])


def _check_kinds(content, path):
    """Raise CheckpointError if what is read before everything is put back is not of its kind."""

    def is_best(best):
        return best is None or isinstance(best, dict) and isinstance(best.get("highest_accuracy"), float)

    for name, is_of_its_kind in (
        ("config", lambda config: isinstance(config, dict)),
        ("processes", lambda processes: isinstance(processes, list)),
        ("epochs_done", lambda epochs: type(epochs) is int and epochs >= 0),
        ("samples", lambda samples: type(samples) is int),
        ("best", is_best),
    ):
        if name not in content or not is_of_its_kind(content[name]):
            raise checkpoint.CheckpointError(f"{path} cannot be resumed: its {name} is not that of a run")


def read_run(config, dataset, given, processes):
    """The run to resume.

    Args:
        config, dataset, given: as for `experiment.Training`; `config.resume` says which run.
        processes: `Processes`, as many as the run had.

    Returns:
        Path and content of its newest checkpoint, and the run's `TrainConfig` with the few changes allowed.

    Raises:
        FileNotFoundError: if there is no checkpoint.
        CheckpointError: if there is none that is intact, or none that can be resumed.
        ValueError: if the checkpoint is of another data set, or settings were given that a resumed run cannot change.
    """
    path = Path(config.resume)
    if path.is_dir():
        path, content = checkpoint.read_last(path)
    else:
        content = checkpoint.read(path)
    if "processes" not in content:
        raise checkpoint.CheckpointError(
            f"{path} cannot be resumed: it holds a network only; take the run's {checkpoint.LAST}"
        )
    _check_kinds(content, path)
    if content["dataset"] != dataset.name:
        raise ValueError(f"{path} was trained on {content['dataset']}, this script is for {dataset.name}")
    if len(content["processes"]) != processes.count:
        raise ValueError(
            f"{path} is of a run of {len(content['processes'])} processes, which {processes.count} cannot continue: "
            "their steps would be other ones"
        )
    stored = stored_config(content, path)
    check_size(stored, dataset, content.get("model"), path)
    for name in sorted(given):
        value = getattr(config, name)
        if name not in RESUMABLE and value != getattr(stored, name):
            raise ValueError(f"a resumed run keeps its {name} = {getattr(stored, name)!r}; {value!r} was asked for")
    if config.epochs != stored.epochs and "epochs" in given and stored.scheduler in ("onecycle", "cyclic"):
        raise ValueError(f"the {stored.scheduler} schedule was planned for its epochs: they cannot be changed")
    changes = {name: getattr(config, name) for name in RESUMABLE & {*given, "resume"}}
    if content["best"] is not None:  # else that would be found out when all is trained
        checkpoint.read(path.with_name(checkpoint.BEST))
    return path, content, dataclasses.replace(stored, **changes)

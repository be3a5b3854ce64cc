"""The state of a run and its checkpoints."""

import dataclasses
import math
import time
from pathlib import Path

import torch
from torch import nn

from tools import optim
from tools.config.train import TrainConfig
from tools.errors import UserError
from tools.inference import Scores
from tools.io import checkpoint
from tools.io.checkpoint import CheckpointError
from tools.runtime import seeds

from .loop import Learner
from .progress import Progress
from .result import TEST

# What restoring a forged checkpoint may raise: torch does not check its input.
FORGED = (AttributeError, IndexError, KeyError, OverflowError, RuntimeError, TypeError, ValueError)


@dataclasses.dataclass(frozen=True)
class Best:
    """The epoch chosen so far, with its validation loss and accuracy."""

    epoch: int
    loss: float
    accuracy: float
    highest_accuracy: float  # of all epochs

    def __post_init__(self):
        if not isinstance(self.highest_accuracy, float):  # in a forged checkpoint
            raise TypeError("the highest accuracy is not a number")


def within_standard_error(accuracy: float, highest: float, samples: int) -> bool:
    """Whether an accuracy on `samples` of the validation part is at most one standard error below the highest so far.

    The latest such epoch is the best one. On few validation samples, accuracies of neighbouring epochs differ by
    chance; the highest is often that of a lucky early epoch, from before the learning rate has come down.

    Note:
        The one-standard-error rule of Breiman et al., "Classification and regression trees", 1984, section 3.4.3.
    """
    return accuracy >= highest - math.sqrt(highest * (1 - highest) / samples)


@dataclasses.dataclass
class RunState:
    """Everything that changes during a run, and the checkpoints that hold it."""

    learner: Learner
    net: nn.Module  # without its training wrappers
    folder: Path
    config: TrainConfig
    dataset: str  # its name
    samples: int  # number of training samples
    facts: dict | None = None  # what was found of a data set of the user's own; see `OwnDataset`
    best: Best | None = None
    saved_at: float = dataclasses.field(default_factory=time.monotonic)

    @property
    def evaluated(self) -> nn.Module:
        """The network to validate and test: the one with averaged weights, if there is one."""
        return self.net if self.learner.ema is None else self.learner.ema.module

    def save(self, epochs_done: int, progress: Progress | None = None, keep: bool = True) -> None:
        """Save last.pth, with the progress of an incomplete epoch; `keep` the previous one. All processes call it."""
        learner = self.learner
        of_this_process = {"rng": seeds.rng_state(), "progress": progress.state() if progress else None}
        parts = {**self._parts(), "scheduler": learner.scheduler}
        content = {
            **self._identity(),
            "epochs_done": epochs_done,
            "samples": self.samples,
            "best": dataclasses.asdict(self.best) if self.best else None,
            **{name: None if part is None else part.state_dict() for name, part in parts.items()},
            "processes": learner.processes.gathered(of_this_process),
        }
        if learner.processes.is_first:
            checkpoint.save_last(self.folder, content, keep)
            (self.folder / TEST).unlink(missing_ok=True)  # only complete runs have it
        self.saved_at = time.monotonic()

    def keep_best(self, epoch: int, scores: Scores, samples: int) -> None:
        """Save best.pth if the accuracy on `samples` of the validation part is `within_standard_error`."""
        highest = self.best.highest_accuracy if self.best else 0.0
        if not within_standard_error(scores.accuracy, highest, samples):
            return
        self.best = Best(epoch, scores.loss, scores.accuracy, max(highest, scores.accuracy))
        content = {"model": self.evaluated.state_dict(), "metrics": dataclasses.asdict(self.best), **self._identity()}
        if self.learner.processes.is_first:
            checkpoint.save(self.folder / checkpoint.BEST, content)

    def load_best(self) -> Best:
        """Load the network of best.pth into `evaluated`."""
        best = self.learner.processes.from_first(lambda: checkpoint.read(self.folder / checkpoint.BEST))
        self.evaluated.load_state_dict(best["model"])
        return Best(**best["metrics"])

    def restore(self, content: dict, path: Path) -> Progress | None:
        """Restore the content of the checkpoint at `path`; return the progress of an incomplete epoch, if any.

        CheckpointError if it is of other data or cannot be restored.
        """
        if content["samples"] != self.samples:
            count = content["samples"]
            raise CheckpointError(f"{path} was trained on {count} samples, but this data set has {self.samples}")
        learner = self.learner
        try:
            self.best = Best(**content["best"]) if content["best"] else None
            self._restore_weights(content)
            learner.scheduler.load_state_dict(content["scheduler"])
            optim.follow(learner.scheduler)
            of_this_process = content["processes"][learner.processes.rank]
            seeds.set_rng_state(of_this_process["rng"])  # last: everything above may draw numbers
            progress = of_this_process["progress"]
            return progress and Progress.from_state(progress, learner.forward.device, self.samples)
        except UserError as error:
            raise CheckpointError(f"{path} cannot be resumed: {error}") from error
        except KeyError as error:
            raise CheckpointError(
                f"{path} cannot be resumed: it has no {error}; an older version may have saved it"
            ) from error
        except FORGED as error:
            raise CheckpointError(f"{path} cannot be resumed: {error!r}") from error

    def roll_back(self) -> None:
        """Restore network and optimiser from the last checkpoint, but not the learning rate or the progress."""
        content = self.learner.processes.from_first(lambda: checkpoint.read_last(self.folder)[1])
        groups = self.learner.optimizer.param_groups
        rates = [group["lr"] for group in groups]
        self._restore_weights(content)
        for group, rate in zip(groups, rates):
            group["lr"] = rate

    def _identity(self):
        identity = {"config": dataclasses.asdict(self.config), "dataset": self.dataset}
        return identity if self.facts is None else {**identity, "facts": self.facts}

    def _parts(self):
        """What a step changes and a rollback restores, by its name in checkpoints; "ema" is None without averaging."""
        learner = self.learner
        return {"model": self.net, "ema": learner.ema, "optimizer": learner.optimizer, "scaler": learner.scaler}

    def _restore_weights(self, content):
        for name, part in self._parts().items():
            if part is not None:
                part.load_state_dict(content[name])
        for parameter, state in self.learner.optimizer.state.items():
            for key, value in state.items():  # learnt numbers of earlier versions have the shape []
                if key != "step" and isinstance(value, torch.Tensor) and value.dim() == 0 and parameter.dim() == 1:
                    state[key] = value.reshape(1)

"""The progress and the result of a pass over the training batches."""

import dataclasses

import torch
from torch import Tensor

from tools.errors import UserError


@dataclasses.dataclass
class Progress:
    """The state of an unfinished pass, from which a resumed run continues."""

    order: Tensor  # indices of the samples, int64 [N]
    lr: float  # learning rate of the first step
    losses: list[Tensor]  # one of each step so far, scalars on the device
    correct: Tensor  # number of samples classified correctly, int64 scalar on the device
    steps: int = 0  # done
    seen: int = 0  # samples in them
    skipped: int = 0  # steps that were not finite: undone, or left out by fp16's scaler
    skipped_in_a_row: int = 0  # up to the latest step
    seconds: float = 0.0

    def state(self) -> dict:
        """The state as plain data and tensors."""
        losses = torch.stack(self.losses).cpu() if self.losses else torch.zeros(0)
        return {**vars(self), "losses": losses, "correct": self.correct.item()}

    @classmethod
    def from_state(cls, state: dict, device: torch.device, samples: int) -> "Progress":
        """The progress in `state`; UserError if its order is not that of `samples` samples."""
        if not torch.equal(state["order"].sort().values, torch.arange(samples)):
            raise UserError(f"its order is not that of {samples} samples")
        losses = list(state["losses"].to(device))
        return cls(**{**state, "losses": losses, "correct": torch.tensor(state["correct"], device=device)})


@dataclasses.dataclass(frozen=True)
class EpochResult:
    """The result of a pass over the training batches, over all processes."""

    loss: float  # mean over the steps
    accuracy: float  # share of samples classified correctly, in [0, 1]
    images_per_s: float
    skipped_steps: int | None = None  # steps that were not finite; None if those are errors

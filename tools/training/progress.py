"""How far a pass over the training batches has come, and what it gave."""

import dataclasses

import torch
from torch import Tensor

from tools.errors import UserError


@dataclasses.dataclass
class Progress:
    """The state of a pass: what a checkpoint needs to continue with the next step.

    Args:
        order: of the samples, int64 [N].
        lr: learning rate of the first step.
        losses: of the steps so far, scalars on the device.
        correct: number of samples classified correctly, int64 scalar on the device.
        steps: number of steps done.
        seen: number of samples in them.
        skipped: number of steps that were not finite and were undone, or left out by fp16's scaler.
        skipped_in_a_row: how many of the latest steps were.
        seconds: time taken.
    """

    order: Tensor
    lr: float
    losses: list[Tensor]
    correct: Tensor
    steps: int = 0
    seen: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    seconds: float = 0.0

    def state(self) -> dict:
        """The state as plain data and tensors."""
        losses = torch.stack(self.losses).cpu() if self.losses else torch.zeros(0)
        return {**vars(self), "losses": losses, "correct": self.correct.item()}

    @classmethod
    def from_state(cls, state: dict, device: torch.device, samples: int) -> "Progress":
        """The progress that `state` describes; UserError if its order is not one of that many samples."""
        if not torch.equal(state["order"].sort().values, torch.arange(samples)):
            raise UserError(f"its order is not one of {samples} samples")
        losses = list(state["losses"].to(device))
        return cls(**{**state, "losses": losses, "correct": torch.tensor(state["correct"], device=device)})


@dataclasses.dataclass(frozen=True)
class EpochResult:
    """What a pass over the training batches gave, over all processes.

    Args:
        loss: mean over the steps.
        accuracy: share of samples classified correctly, in [0, 1].
        images_per_s: samples per second.
        skipped_steps: number of steps that were not finite; None if those are errors.
    """

    loss: float
    accuracy: float
    images_per_s: float
    skipped_steps: int | None = None

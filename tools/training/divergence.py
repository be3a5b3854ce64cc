"""Detect losses, gradients and weights that are not finite, and undo such steps."""

import dataclasses
import logging
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from tools.runtime.processes import Processes

from .progress import Progress

logger = logging.getLogger(__name__)
CHECK_EVERY = 25  # steps between checks on an accelerator: each check waits for it
MOST_SKIPPED = 10  # steps in a row that are not finite: the run has then diverged


class Diverged(RuntimeError):
    """The loss, the gradient or the weights are not finite."""


@dataclasses.dataclass
class DivergenceWatch:
    """Check that losses, gradients and weights are finite.

    The loss alone does not suffice: a comparison with a threshold turns a NaN potential into "no spike", so a network
    with NaN weights may have a finite loss. Where the scaler is enabled, a gradient that is not finite may only be
    outside fp16's range; the scaler skips the step and lowers its scale, which must not fall below 1.
    """

    epoch: int
    device: torch.device
    progress: Progress  # counts the skipped steps
    processes: Processes
    scaler: torch.amp.GradScaler
    pending: list = dataclasses.field(default_factory=list)  # (step, its numbers), not checked yet

    def __post_init__(self):
        self.names = ("loss",) if self.scaler.is_enabled() else ("loss", "norm of the gradient")

    def allows(self, loss: Tensor, norm: Tensor) -> bool:
        """Whether a step is finite in all processes; counts those that are not, `Diverged` after many in a row."""
        progress = self.progress
        numbers = torch.stack([loss, norm])[: len(self.names)]
        is_undone = self._in_any_process(not numbers.isfinite().all())
        if not is_undone:
            progress.skipped_in_a_row = 0
            return True
        progress.skipped += 1
        progress.skipped_in_a_row += 1
        where = f"in epoch {self.epoch}, step {progress.steps}"
        if progress.skipped_in_a_row == MOST_SKIPPED:
            raise Diverged(f"{MOST_SKIPPED} steps in a row were not finite, the last one {where}")
        logger.warning("loss %.4g, norm of the gradient %.4g %s: the step is undone", loss.item(), norm.item(), where)
        return False

    def add(self, loss: Tensor, norm: Tensor) -> None:
        """Record the loss and gradient norm of a step, before it changes the weights."""
        self.progress.losses.append(loss)
        self.pending.append((self.progress.steps, torch.stack([loss, norm])))
        if len(self.pending) == (1 if self.device.type == "cpu" else CHECK_EVERY):
            self._check_pending()

    def check(self, net: nn.Module) -> None:
        """Raise `Diverged` if any number so far, weight or buffer is not finite."""
        self._check_pending()
        for name, value in net.state_dict().items():
            if not torch.isfinite(value).all():
                raise Diverged(f"{name} is not finite after epoch {self.epoch}, step {self.progress.steps}")

    def _check_pending(self):
        """Raise `Diverged` for the first number of `pending` that is not finite."""
        rows = [numbers for _, numbers in self.pending]
        rows = torch.stack(rows).tolist() if rows else []  # all at once, so that an accelerator is waited for once
        if self.scaler.is_enabled():
            self.progress.skipped += sum(not math.isfinite(norm) for _, norm in rows)
            if self.scaler.get_scale() < 1:
                raise Diverged(f"no gradient is finite in fp16, at any scale, up to epoch {self.epoch}")
        problem = ""
        for (step, _), row in zip(self.pending, rows):
            for name, value in zip(self.names, row):
                if not problem and not math.isfinite(value):
                    problem = f"the {name} became {value} in epoch {self.epoch}, step {step}"
        if self._in_any_process(problem):
            raise Diverged(problem or f"another process has diverged in epoch {self.epoch}")
        self.pending.clear()

    def _in_any_process(self, condition):
        return self.processes.largest([int(bool(condition))])[0] > 0


class Recovery:
    """Undoes a step that is not finite, before it changes weights and optimiser, by restoring running statistics.

    Args:
        roll_back: called instead, if given: restores the last checkpoint, while data and noise go on.
    """

    def __init__(self, net: nn.Module, roll_back: Callable[[], None] | None = None):
        self.buffers = [] if roll_back else list(net.buffers())  # a checkpoint has its own
        self.before = [buffer.clone() for buffer in self.buffers]
        self.roll_back = roll_back

    @torch.no_grad()
    def remember(self) -> None:
        """Keep the running statistics; called before each step."""
        for kept, buffer in zip(self.before, self.buffers):
            kept.copy_(buffer)

    @torch.no_grad()
    def recover(self) -> None:
        """Undo the forward passes of a step; called instead of the optimiser's step."""
        if self.roll_back is not None:
            self.roll_back()
            return
        for kept, buffer in zip(self.before, self.buffers):
            buffer.copy_(kept)

"""Losses, gradients and weights that are not finite: how they are found, and what is done about them."""

import logging
import math

import torch

logger = logging.getLogger(__name__)
CHECK_EVERY = 25  # steps between looks at the losses on an accelerator: each look waits for it
MOST_SKIPPED = 10  # steps in a row that may be not finite


class Diverged(RuntimeError):
    """The loss, the gradient or the weights are not finite."""


class DivergenceWatch:
    """Looks for losses, gradients and weights that are not finite.

    The loss alone would not do: a comparison with a threshold turns a NaN potential into "no spike",
    so that a network of NaN weights may have a finite loss.

    Args:
        epoch: its number, for messages.
        device: of the network.
        progress: `loop.Progress`, which counts the steps that were left out.
        processes: `Processes`.
        scaler: `torch.amp.GradScaler`. Where it is enabled, a gradient that is not finite may be one that fp16 has no
            numbers for; the scaler leaves the step out and lowers its scale, which then must not fall below 1.
    """

    def __init__(self, epoch, device, progress, processes, scaler):
        self.epoch = epoch
        self.progress = progress
        self.processes = processes
        self.scaler = scaler
        self.check_every = 1 if device.type == "cpu" else CHECK_EVERY
        self.pending = []  # (step, loss, norm of the gradient) that nobody has looked at

    def allows(self, loss, norm):
        """Whether a step is finite in all processes; counts those that are not, and gives up after many in a row."""
        progress = self.progress
        judged = [loss] if self.scaler.is_enabled() else [loss, norm]
        is_finite = torch.isfinite(torch.stack(judged)).all().item()
        if not self.processes.largest([int(not is_finite)])[0]:
            progress.skipped_in_a_row = 0
            return True
        progress.skipped += 1
        progress.skipped_in_a_row += 1
        where = f"in epoch {self.epoch}, step {progress.steps}"
        if progress.skipped_in_a_row == MOST_SKIPPED:
            raise Diverged(f"{MOST_SKIPPED} steps in a row were not finite, the last one {where}")
        logger.warning("loss %.4g, norm of the gradient %.4g %s: the step is undone", loss.item(), norm.item(), where)
        return False

    def add(self, loss, norm):
        """Loss and norm of the gradient of one step, before the step changes the weights."""
        self.progress.losses.append(loss)
        self.pending.append((self.progress.steps, loss, norm))
        if len(self.pending) == self.check_every:
            self._check()

    def finish(self, net):
        """After the last step: as `check`, and there must have been a step."""
        self.check(net)
        if not self.progress.losses:
            raise Diverged(f"no step of epoch {self.epoch} was finite")

    def check(self, net):
        """Look at all numbers so far, and at all weights and buffers."""
        self._check()
        for name, value in net.state_dict().items():
            if not torch.isfinite(value).all():
                raise Diverged(f"{name} is not finite after epoch {self.epoch}, step {self.progress.steps}")

    def _check(self):
        """Look at the numbers of `pending`: the first that is not finite is the one that is named."""
        pairs = [torch.stack(numbers) for _, *numbers in self.pending]
        values = torch.stack(pairs).tolist() if pairs else []  # once for all: an accelerator is waited for
        names = ("loss", "norm of the gradient")
        if self.scaler.is_enabled():
            self.progress.skipped += sum(not math.isfinite(norm) for _, norm in values)
            if self.scaler.get_scale() < 1:
                raise Diverged(f"no gradient is finite in fp16, with whatever scale, up to epoch {self.epoch}")
            names = names[:1]
        bad = [
            f"the {name} became {value} in epoch {self.epoch}, step {step}"
            for (step, *_), row in zip(self.pending, values)
            for name, value in zip(names, row)
            if not math.isfinite(value)
        ]
        if self.processes.largest([int(bool(bad))])[0]:
            raise Diverged(bad[0] if bad else f"another process has diverged in epoch {self.epoch}")
        self.pending.clear()


class Skip:
    """Leave a step out: weights and optimiser were not touched, and running statistics are put back."""

    def __init__(self, net):
        self.buffers = list(net.buffers())
        self.before = [buffer.clone() for buffer in self.buffers]

    @torch.no_grad()
    def remember(self):
        for kept, buffer in zip(self.before, self.buffers):
            kept.copy_(buffer)

    @torch.no_grad()
    def recover(self):
        for kept, buffer in zip(self.before, self.buffers):
            buffer.copy_(kept)


class Rollback:
    """Go back to the weights of the last checkpoint; data order, noise and learning rate go on.

    Args:
        restore: function without arguments that puts network, optimiser and their like back.
    """

    def __init__(self, restore):
        self.restore = restore

    def remember(self):
        pass

    def recover(self):
        self.restore()

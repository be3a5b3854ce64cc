"""The training loop. It receives network, criterion and batches, and imports none."""

import contextlib
import dataclasses
import math
import time

import torch
from tqdm import tqdm

from tools.inference import ForwardPass
from tools.runtime.processes import Processes

from .divergence import DivergenceWatch


@dataclasses.dataclass
class Learner:
    """All that a training step needs.

    Args:
        net: images, timesteps -> logits [T, B, K].
        criterion: logits [T, B, K], target [B] -> scalar.
        optimizer, scheduler: both stepped after every step.
        scaler: `torch.amp.GradScaler` (disabled unless amp is "fp16").
        forward: `ForwardPass`.
        regularizer: None, or (weight, penalty): penalty(net) -> scalar, penalty.watching(net) -> context.
        clip_grad: largest norm of the gradient; 0: no clipping.
        ema: None, or an averaged network with `update_parameters(net)`.
        accumulate: batches whose gradients are averaged in one step.
        recovery: None: a loss or gradient that is not finite is an error. Or one of `divergence`: has `remember()`,
            called before a step, and `recover()`, which undoes it. Each step then waits for its numbers.
        processes: `Processes`; with several, `net` averages gradients over them and has `no_sync()`.
    """

    net: torch.nn.Module
    criterion: object
    optimizer: torch.optim.Optimizer
    scheduler: object
    scaler: torch.amp.GradScaler
    forward: ForwardPass
    regularizer: tuple | None = None
    clip_grad: float = 0.0
    ema: torch.nn.Module | None = None
    accumulate: int = 1
    recovery: object | None = None
    processes: Processes = Processes()


@dataclasses.dataclass
class Progress:
    """How far a pass over the training batches has come: what a checkpoint needs to go on with the next step.

    Args:
        order: of the samples, int64 [N].
        lr: learning rate of the first step.
        losses: of each step, scalars on the device.
        correct: number of samples classified correctly, int64 scalar on the device.
        steps: that are done.
        seen: samples in them.
        skipped: of the steps, those that were not finite and were undone, or left out by fp16's scaler.
        skipped_in_a_row: the latest of them.
        seconds: that all took.
    """

    order: torch.Tensor
    lr: float
    losses: list
    correct: torch.Tensor
    steps: int = 0
    seen: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    seconds: float = 0.0

    @classmethod
    def start(cls, learner, batches):
        """Of a new pass over `batches.Batches`, in an order that all processes share."""
        order = learner.processes.from_first(batches.order)
        correct = torch.zeros((), dtype=torch.int64, device=learner.forward.device)
        return cls(order, learner.scheduler.get_last_lr()[0], [], correct)

    def state(self):
        """As plain data and tensors."""
        losses = torch.stack(self.losses).cpu() if self.losses else torch.zeros(0)
        return {**vars(self), "losses": losses, "correct": self.correct.item()}

    @classmethod
    def from_state(cls, state, device, samples):
        """What `state` gave; ValueError for an order that is none of so many samples."""
        if not torch.equal(state["order"].sort().values, torch.arange(samples)):
            raise ValueError(f"its order of the samples is none of {samples}")
        losses = list(state["losses"].to(device))
        return cls(**{**state, "losses": losses, "correct": torch.tensor(state["correct"], device=device)})


def train_one_epoch(learner, batches, epoch, progress=None, after_step=None):
    """One pass over the training batches.

    Args:
        learner: `Learner`.
        batches: `batches.Batches` of (images, target) on the device; their number is a multiple of
            `learner.accumulate`.
        epoch: its number, for messages.
        progress: None, or `Progress` of a pass that was interrupted.
        after_step: None, or a function called between steps; it may raise to interrupt the pass. It is given the
            `Progress`, and a function that raises `Diverged` if a number so far is not finite: to be called before
            anything is saved, as on an accelerator such numbers are noticed late.

    Returns:
        {"loss", "accuracy", "images_per_s"} of the pass, in all processes together, and with a recovery or fp16
        "skipped_steps".

    Raises:
        Diverged: naming epoch and step.
    """
    learner.net.train()
    processes, device = learner.processes, learner.forward.device
    progress = progress or Progress.start(learner, batches)
    has_skips = learner.recovery is not None or learner.scaler.is_enabled()
    watch = DivergenceWatch(epoch, device, progress, processes, learner.scaler)
    start = time.perf_counter() - progress.seconds
    coming = batches.passing(progress.order, progress.steps * learner.accumulate)
    steps = range(progress.steps, len(batches) // learner.accumulate)
    options = dict(initial=progress.steps, total=steps.stop, disable=None if processes.is_first else True)
    for _ in tqdm(steps, f"epoch {epoch}", unit="step", leave=False, **options):
        progress.steps += 1
        _step(learner, coming, watch, progress)
        progress.seconds = time.perf_counter() - start
        if after_step is not None:
            after_step(progress, lambda: watch.check(learner.net))
    watch.finish(learner.net)
    of_this_process = [torch.stack(progress.losses).mean().item(), progress.correct.item(), progress.seen]
    loss, correct, seen = processes.sum(torch.tensor(of_this_process, dtype=torch.float64)).tolist()
    return {
        "loss": loss / processes.count,
        "accuracy": correct / seen,
        "images_per_s": seen / progress.seconds,
        **({"skipped_steps": progress.skipped} if has_skips else {}),
    }


def _step(learner, batches, watch, progress):
    """One step of the optimiser, by the mean gradient of the next batches; or nothing, if that is not finite."""
    net, scaler, optimizer = learner.net, learner.scaler, learner.optimizer
    if learner.recovery is not None:
        learner.recovery.remember()
    optimizer.zero_grad(set_to_none=True)
    losses, correct, seen = [], 0, 0
    for missing in reversed(range(learner.accumulate)):
        images, target = next(batches)
        waits = learner.processes.count > 1 and missing  # gradients are exchanged once for all batches of the step
        with net.no_sync() if waits else contextlib.nullcontext():
            logits, loss = _loss(net, learner.criterion, images, target, learner.forward, learner.regularizer)
            scaler.scale(loss / learner.accumulate).backward()
        losses.append(loss.detach())
        correct += (logits.detach().mean(0).argmax(-1) == target).sum()
        seen += len(target)
    loss = torch.stack(losses).mean()
    scaler.unscale_(optimizer)
    norm = torch.nn.utils.clip_grad_norm_(net.parameters(), learner.clip_grad or math.inf)
    if learner.recovery is not None and not watch.allows(loss, norm):
        scaler.update()
        learner.recovery.recover()
    else:
        watch.add(loss, norm)
        scaler.step(optimizer)
        scaler.update()
        if learner.ema is not None:
            learner.ema.update_parameters(net)
        progress.correct += correct
        progress.seen += seen
    learner.scheduler.step()


def _loss(net, criterion, images, target, forward, regularizer):
    """Logits, and the loss with its penalty."""
    if regularizer is None:
        logits = forward(net, images)
        return logits, criterion(logits, target)
    weight, penalty = regularizer
    with penalty.watching(net):
        logits = forward(net, images)
        return logits, criterion(logits, target) + weight * penalty(net)

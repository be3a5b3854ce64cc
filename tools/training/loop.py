"""The training loop."""

import contextlib
import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from crits import mean_over_time
from models.parameters import OutOfRange
from tools.data.batches import Batch, Batches
from tools.inference import ForwardPass
from tools.runtime.cuda_graph import GraphedStep
from tools.runtime.processes import Processes

from .divergence import Diverged, DivergenceWatch, Recovery
from .progress import EpochResult, Progress


@dataclasses.dataclass
class Learner:
    """All that a training step needs.

    Args:
        net: images or frames, timesteps -> logits [T, B, K]; with several processes, it averages gradients and has
            `no_sync()`.
        regularizer: regularizer(net) -> scalar, inside regularizer.watching(net), a context around the forward pass.
        recovery: undoes steps that are not finite (each step then waits for the device); None: they are errors.
        graph: `gradients_and_update` of this learner as a CUDA graph, for one process, without scaler and recovery.
    """

    net: nn.Module
    criterion: Callable[..., Tensor]  # logits [T, B, K], target [B] or [B, K], perhaps lengths [B] -> scalar
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler  # stepped after every step of the optimiser
    scaler: torch.amp.GradScaler  # disabled unless amp is "fp16"
    forward: ForwardPass
    regularizer: Callable[[nn.Module], Tensor] | None = None
    regularizer_weight: float = 0.0
    clip_grad: float = 0.0  # largest norm of the gradient; 0: no clipping
    ema: AveragedModel | None = None
    accumulate: int = 1  # batches whose gradients are averaged in one step
    recovery: Recovery | None = None
    graph: GraphedStep | None = None
    processes: Processes = Processes()

    def start(self, batches: Batches) -> Progress:
        """The progress at the start of a pass over the training batches, whose order all processes share."""
        correct = torch.zeros((), dtype=torch.int64, device=self.forward.device)
        return Progress(self.processes.from_first(batches.order), self.scheduler.get_last_lr()[0], [], correct)


def train_one_epoch(
    learner: Learner,
    batches: Batches,
    epoch: int,
    progress: Progress | None = None,
    after_step: Callable[[Progress, Callable[[], None]], object] | None = None,
) -> EpochResult:
    """Train for one pass over the training batches.

    Args:
        batches: (inputs, target) on the device, the target classes [B] or their probabilities [B, K], with the numbers
            of frames [B] if they differ; the number of batches is a multiple of `learner.accumulate`.
        epoch: its number, for messages.
        progress: of the interrupted pass to continue.
        after_step: called after each step with the progress and a function `check`; may raise to interrupt the pass.
            `check()` raises `Diverged` if any number so far is not finite. Call it before saving anything: on an
            accelerator such numbers are noticed late.

    Raises:
        Diverged: if a loss, gradient or weight is not finite, with epoch and step.
    """
    learner.net.train()
    processes = learner.processes
    progress = progress or learner.start(batches)
    watch = DivergenceWatch(epoch, learner.forward.device, progress, processes, learner.scaler)
    start = time.perf_counter() - progress.seconds
    coming = batches.passing(progress.order, progress.steps * learner.accumulate)
    steps = range(progress.steps, len(batches) // learner.accumulate)
    is_hidden = None if processes.is_first else True  # None: shown on a terminal only
    bar = dict(unit="step", leave=False, initial=progress.steps, total=steps.stop, disable=is_hidden)
    for _ in tqdm(steps, f"epoch {epoch}", **bar):
        progress.steps += 1
        _step(learner, coming, watch, progress)
        progress.seconds = time.perf_counter() - start
        if after_step is not None:
            after_step(progress, lambda: watch.check(learner.net))
    watch.check(learner.net)
    if not progress.losses:
        raise Diverged(f"no step of epoch {epoch} was finite")
    of_this_process = [torch.stack(progress.losses).mean().item(), progress.correct.item(), progress.seen]
    loss, correct, seen = processes.sum(torch.tensor(of_this_process, dtype=torch.float64)).tolist()
    skipped = progress.skipped if learner.recovery is not None or learner.scaler.is_enabled() else None
    return EpochResult(loss / processes.count, correct / seen, seen / progress.seconds, skipped)


def _step(learner: Learner, batches: Iterator[Batch], watch: DivergenceWatch, progress: Progress) -> None:
    """One step of the optimiser with the mean gradient of the next batches; undone or skipped if not finite."""
    net, scaler, graph = learner.net, learner.scaler, learner.graph
    if learner.recovery is not None:
        learner.recovery.remember()
    now = itertools.islice(batches, learner.accumulate)
    try:
        loss, norm, correct, seen = graph(list(now)) if graph is not None else _gradients(learner, now)
    except OutOfRange as error:  # of a learnt decay, threshold or scale
        watch.check(net)  # an earlier value may be the better explanation
        raise Diverged(f"{error} in epoch {watch.epoch}, step {progress.steps}") from error
    if learner.recovery is not None and not watch.allows(loss, norm):
        scaler.update()
        learner.recovery.recover()
    else:
        watch.add(loss, norm)
        if graph is None:
            scaler.step(learner.optimizer)
            scaler.update()
        if learner.ema is not None:
            learner.ema.update_parameters(net)
        progress.correct += correct
        progress.seen += seen
    learner.scheduler.step()


def gradients_and_update(learner: Learner, batches: Iterable[Batch]) -> tuple[Tensor, Tensor, Tensor, int]:
    """As `_gradients`, and the optimiser's step, whatever the gradient is: all that a CUDA graph runs."""
    numbers = _gradients(learner, batches)
    learner.optimizer.step()
    return numbers


def _gradients(learner: Learner, batches: Iterable[Batch]) -> tuple[Tensor, Tensor, Tensor, int]:
    """The mean gradient of batches, clipped; loss, norm of the gradient, samples classified correctly, samples."""
    net, scaler, optimizer = learner.net, learner.scaler, learner.optimizer
    optimizer.zero_grad(set_to_none=True)
    losses, correct, seen = [], torch.zeros((), dtype=torch.int64, device=learner.forward.device), 0
    for number, (images, target, *lengths) in enumerate(batches):
        is_last = number == learner.accumulate - 1
        waits = learner.processes.count > 1 and not is_last  # gradients are exchanged once for all batches of the step
        with net.no_sync() if waits else contextlib.nullcontext():
            logits, loss = _loss(learner, images, target, *lengths)
            scaler.scale(loss / learner.accumulate).backward()
        losses.append(loss.detach())
        classes = target if target.dim() == 1 else target.argmax(-1)  # of mixed images, the larger part
        correct += (mean_over_time(logits.detach(), *lengths).argmax(-1) == classes).sum()
        seen += len(target)
    scaler.unscale_(optimizer)
    norm = nn.utils.clip_grad_norm_(net.parameters(), learner.clip_grad or math.inf)
    return torch.stack(losses).mean(), norm, correct, seen


def _loss(learner, images, target, *lengths):
    """Logits, and the loss with the regulariser's penalty."""
    net, regularizer = learner.net, learner.regularizer
    with regularizer.watching(net) if regularizer else contextlib.nullcontext():
        logits = learner.forward(net, images)
        loss = learner.criterion(logits, target, *lengths)
        if regularizer:
            loss = loss + learner.regularizer_weight * regularizer(net)
    return logits, loss

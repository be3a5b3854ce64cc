"""The training and the evaluation loop. They receive network, criterion and batches, and import none."""

import contextlib
import dataclasses
import math
import time

import torch
import torch.nn.functional as F
from tqdm import tqdm

AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
CHECK_EVERY = 25  # steps between looks at the losses on an accelerator: each look waits for it


class NonFiniteLoss(RuntimeError):
    """The loss became infinite or not a number; the message names epoch and step."""


@dataclasses.dataclass
class Numerics:
    """How the arithmetic of a network is run.

    Args:
        device: torch.device.
        timesteps: T of the direct coding of images.
        amp: "no", "bf16" or "fp16".
    """

    device: torch.device
    timesteps: int
    amp: str = "no"

    def autocast(self):
        if self.amp == "no":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=AMP_DTYPES[self.amp])


def train_one_epoch(
    net, criterion, optimizer, scheduler, scaler, batches, numerics, *, epoch, regularizer=None, clip_grad=0.0, ema=None
):
    """One pass over the training batches.

    Args:
        net: images [B, C, H, W], timesteps -> logits [T, B, K].
        criterion: logits [T, B, K], target [B] -> scalar.
        optimizer, scheduler: both stepped after every batch.
        scaler: `torch.amp.GradScaler` (disabled unless amp is "fp16").
        batches: iterable with a length, of (images, target) on the device.
        numerics: `Numerics`.
        epoch: its number, for messages.
        regularizer: None, or (weight, penalty): penalty(net) -> scalar, penalty.watching(net) -> context.
        clip_grad: largest norm of the gradient; 0: no clipping.
        ema: None, or an averaged network with `update_parameters(net)`.

    Returns:
        {"loss", "accuracy", "images_per_s"} of the pass.

    Raises:
        NonFiniteLoss: naming epoch and step, before the step's numbers reach any checkpoint.
    """
    net.train()
    losses, correct, seen = [], torch.zeros((), device=numerics.device), 0
    check_every = 1 if numerics.device.type == "cpu" else CHECK_EVERY
    weight, penalty = regularizer or (0.0, None)
    start = time.perf_counter()
    for step, (images, target) in enumerate(tqdm(batches, f"epoch {epoch}", unit="batch", disable=None, leave=False)):
        optimizer.zero_grad(set_to_none=True)
        with penalty.watching(net) if penalty else contextlib.nullcontext():
            with numerics.autocast():
                logits = net(images, timesteps=numerics.timesteps)
            loss = criterion(logits.float(), target)
            total = loss + weight * penalty(net) if penalty else loss
            losses.append(total.detach())
            if (step + 1) % check_every == 0:
                _check_finite(losses, epoch, check_every)
            scaler.scale(total).backward()
        scaler.unscale_(optimizer)
        if clip_grad:
            torch.nn.utils.clip_grad_norm_(net.parameters(), clip_grad)
        scaler.step(optimizer)
        scaler.update()
        scheduler.step()
        if ema is not None:
            ema.update_parameters(net)
        correct += (logits.detach().mean(0).argmax(-1) == target).sum()
        seen += len(target)
    _check_finite(losses, epoch, check_every)
    return {
        "loss": torch.stack(losses).mean().item(),
        "accuracy": correct.item() / seen,
        "images_per_s": seen / (time.perf_counter() - start),
    }


def _check_finite(losses, epoch, last):
    """Raise NonFiniteLoss if one of the last losses is not finite."""
    recent = losses[-last:]
    finite = torch.isfinite(torch.stack(recent)) if recent else torch.ones(1)
    if not finite.all():
        position = finite.logical_not().nonzero()[0].item()
        step = len(losses) - len(recent) + position
        raise NonFiniteLoss(f"the loss became {recent[position].item()} in epoch {epoch}, step {step}")


@torch.no_grad()
def predict(net, images, numerics, n_ensembles=1):
    """Class probabilities: softmax of the time-averaged logits, averaged over noise draws.

    Shape:
        images [B, C, H, W] -> log-probabilities [B, K], float32.
    """
    total = None
    for _ in range(n_ensembles):
        with numerics.autocast():
            logits = net(images, timesteps=numerics.timesteps)
        draw = F.log_softmax(logits.float().mean(0), dim=-1)
        total = draw if total is None else torch.logaddexp(total, draw)
    return total - math.log(n_ensembles)


@torch.no_grad()
def evaluate(net, batches, numerics, *, n_ensembles=1, transform=None, description="evaluating"):
    """One pass over test or validation batches.

    Args:
        net: images [B, C, H, W], timesteps -> logits [T, B, K].
        batches: iterable with a length, of (images, target) on the device.
        numerics: `Numerics`.
        n_ensembles: noise draws whose softmax is averaged.
        transform: None, or a function of a batch of images in [0, 1], applied to the pixels first.
        description: of the progress bar.

    Returns:
        {"loss", "accuracy"}: cross-entropy of the averaged softmax (nats per image), and share correct.
    """
    net.eval()
    loss = torch.zeros((), dtype=torch.float64, device=numerics.device)
    correct = torch.zeros((), dtype=torch.int64, device=numerics.device)
    seen = 0
    for images, target in tqdm(batches, description, unit="batch", disable=None, leave=False):
        if transform is not None:
            images = transform(images)
        log_probabilities = predict(net, images, numerics, n_ensembles)
        loss += F.nll_loss(log_probabilities, target, reduction="sum")
        correct += (log_probabilities.argmax(-1) == target).sum()
        seen += len(target)
    return {"loss": loss.item() / seen, "accuracy": correct.item() / seen}

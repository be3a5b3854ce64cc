"""The training and the evaluation loop. They receive network, criterion and batches, and import none."""

import contextlib
import dataclasses
import logging
import math
import time

import torch
import torch.nn.functional as F
from tqdm import tqdm

from .metrics import accuracy, mean_prediction, negative_log_likelihood

logger = logging.getLogger(__name__)
AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
CHECK_EVERY = 25  # steps between looks at the losses on an accelerator: each look waits for it


class Diverged(RuntimeError):
    """Loss, gradient or weights became infinite or not a number; the message names epoch and step."""


@dataclasses.dataclass
class ForwardPass:
    """How a network is run on a batch: images [B, C, H, W], or frames [T, B, 2, H, W] -> logits [T, B, K], float32.

    Args:
        device: torch.device.
        timesteps: T of the direct coding of images; frames have their own.
        amp: "no", "bf16" or "fp16".
        fold: where noise draws are folded into the batch, at most so many images go in one pass (but one draw of a
            batch always does); halved where memory does not suffice.
    """

    device: torch.device
    timesteps: int
    amp: str = "no"
    fold: int = 256

    def halve(self):
        """Halve `fold`, as memory does not suffice."""
        self.fold = max(1, self.fold // 2)
        logger.warning("out of memory: noise draws go on with at most %d images in a pass", self.fold)

    def __call__(self, net, images):
        autocast = contextlib.nullcontext()
        if self.amp != "no":
            autocast = torch.autocast(self.device.type, dtype=AMP_DTYPES[self.amp])
        with autocast:
            logits = net(images) if images.dim() == 5 else net(images, timesteps=self.timesteps)
        return logits.float()


def train_one_epoch(
    net, criterion, optimizer, scheduler, scaler, batches, forward, *, epoch, regularizer=None, clip_grad=0.0, ema=None
):
    """One pass over the training batches.

    Args:
        net: images [B, C, H, W], timesteps -> logits [T, B, K].
        criterion: logits [T, B, K], target [B] -> scalar.
        optimizer, scheduler: both stepped after every batch.
        scaler: `torch.amp.GradScaler` (disabled unless amp is "fp16").
        batches: iterable with a length, of (images, target) on the device.
        forward: `ForwardPass`.
        epoch: its number, for messages.
        regularizer: None, or (weight, penalty): penalty(net) -> scalar, penalty.watching(net) -> context.
        clip_grad: largest norm of the gradient; 0: no clipping.
        ema: None, or an averaged network with `update_parameters(net)`.

    Returns:
        {"loss", "accuracy", "images_per_s"} of the pass.

    Raises:
        Diverged: naming epoch and step.
    """
    net.train()
    watch = _DivergenceWatch(epoch, forward.device)
    correct, seen = torch.zeros((), dtype=torch.int64, device=forward.device), 0
    start = time.perf_counter()
    for images, target in tqdm(batches, f"epoch {epoch}", unit="batch", disable=None, leave=False):
        optimizer.zero_grad(set_to_none=True)
        logits, loss = _loss(net, criterion, images, target, forward, regularizer)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(net.parameters(), clip_grad or math.inf)
        # fp16 has gradients that overflow now and then; the scaler then skips the step.
        watch.add(loss.detach(), None if scaler.is_enabled() else norm)
        scaler.step(optimizer)
        scaler.update()
        scheduler.step()
        if ema is not None:
            ema.update_parameters(net)
        correct += (logits.detach().mean(0).argmax(-1) == target).sum()
        seen += len(target)
    watch.finish(net)
    return {
        "loss": torch.stack(watch.losses).mean().item(),
        "accuracy": correct.item() / seen,
        "images_per_s": seen / (time.perf_counter() - start),
    }


def _loss(net, criterion, images, target, forward, regularizer):
    """Logits, and the loss with its penalty."""
    if regularizer is None:
        logits = forward(net, images)
        return logits, criterion(logits, target)
    weight, penalty = regularizer
    with penalty.watching(net):
        logits = forward(net, images)
        return logits, criterion(logits, target) + weight * penalty(net)


class _DivergenceWatch:
    """Looks for losses, gradients and weights that are not finite.

    The loss alone would not do: a comparison with a threshold turns a NaN potential into "no spike",
    so that a network of NaN weights may have a finite loss.
    """

    def __init__(self, epoch, device):
        self.epoch = epoch
        self.check_every = 1 if device.type == "cpu" else CHECK_EVERY
        self.losses = []
        self.norms = []

    def add(self, loss, norm):
        """Loss and norm of the gradient (or None) of one step, before the step changes the weights."""
        self.losses.append(loss)
        self.norms.append(torch.zeros_like(loss) if norm is None else norm)
        if len(self.losses) % self.check_every == 0:
            self._check()

    def finish(self, net):
        """After the last step: its numbers, and all weights and buffers."""
        self._check()
        for name, value in net.state_dict().items():
            if not torch.isfinite(value).all():
                raise Diverged(f"{name} is not finite after epoch {self.epoch}, step {len(self.losses)}")

    def _check(self):
        first = max(0, len(self.losses) - self.check_every)
        for what, values in (("loss", self.losses[first:]), ("norm of the gradient", self.norms[first:])):
            bad = torch.isfinite(torch.stack(values)).logical_not().nonzero() if values else []
            if len(bad):
                index = bad[0].item()
                step = first + index + 1
                raise Diverged(f"the {what} became {values[index].item()} in epoch {self.epoch}, step {step}")


def folded_draws(net, images, forward, draws):
    """Log-probabilities of independent noise draws, in one pass: softmax of the time-averaged logits.

    Shape:
        images [B, C, H, W] or frames [T, B, 2, H, W] -> [draws, B, K], float32; differentiable.
    """
    batch_dim = images.dim() - 4
    if draws > 1:
        channels_last = images.dim() == 4 and images.is_contiguous(memory_format=torch.channels_last)
        images = torch.cat([images] * draws, batch_dim)
        images = images.contiguous(memory_format=torch.channels_last) if channels_last else images
    return F.log_softmax(forward(net, images).mean(0), dim=-1).unflatten(0, (draws, -1))


@torch.no_grad()
def predict(net, images, forward, draws=1):
    """`folded_draws`, without gradients, in as few passes as `forward.fold` and the memory allow."""
    parts, missing = [], draws
    while missing:
        count = min(missing, max(1, forward.fold // images.shape[images.dim() - 4]))
        try:
            parts.append(folded_draws(net, images, forward, count))
        except torch.OutOfMemoryError:
            if count == 1:
                raise
            forward.halve()
            continue
        missing -= count
    return torch.cat(parts)


@torch.no_grad()
def predict_all(net, batches, forward, *, draws=1, transform=None, description="evaluating"):
    """One pass over test or validation batches.

    Args:
        net: images [B, C, H, W], timesteps -> logits [T, B, K].
        batches: iterable with a length, of (images, target) on the device.
        forward: `ForwardPass`.
        draws: independent noise draws of each sample.
        transform: None, or a function of a batch of images in [0, 1] and their labels, applied to the pixels first.
        description: of the progress bar.

    Returns:
        Log-probabilities of all samples [draws, N, K] and their labels [N], on the device.
    """
    net.eval()
    outputs, targets = [], []
    for images, target in tqdm(batches, description, unit="batch", disable=None, leave=False):
        if transform is not None:
            images = transform(images, target)
        outputs.append(predict(net, images, forward, draws))
        targets.append(target)
    return torch.cat(outputs, 1), torch.cat(targets)


def evaluate(net, batches, forward, **options):
    """`predict_all`, and how good the mean prediction of the draws is.

    Returns:
        {"loss", "accuracy"}: cross-entropy of the averaged softmax (nats per image), and share correct.
    """
    log_probabilities, target = predict_all(net, batches, forward, **options)
    prediction = mean_prediction(log_probabilities), target
    return {"loss": negative_log_likelihood(*prediction), "accuracy": accuracy(*prediction)}

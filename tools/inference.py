"""Run a network on batches: the only forward and evaluation loop."""

import contextlib
import dataclasses
import logging

import torch
import torch.nn.functional as F
from tqdm import tqdm

from tools.analysis.metrics import accuracy, mean_prediction, negative_log_likelihood
from tools.runtime.processes import Processes

logger = logging.getLogger(__name__)


AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


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
def predict_all(net, batches, forward, *, draws=1, transform=None, description="evaluating", processes=Processes()):
    """One pass over test or validation batches.

    Args:
        net: images [B, C, H, W], timesteps -> logits [T, B, K].
        batches: iterable with a length, of (images, target) on the device.
        forward: `ForwardPass`.
        draws: independent noise draws of each sample.
        transform: None, or a function of a batch of images in [0, 1] and their labels, applied to the pixels first.
        description: of the progress bar.
        processes: `Processes`; each has batches of its own, and sees the results of all.

    Returns:
        Log-probabilities of all samples [draws, N, K] and their labels [N], on the device.
    """
    net.eval()
    outputs, targets = [], []
    is_hidden = None if processes.is_first else True  # None: shown on a terminal
    for images, target in tqdm(batches, description, unit="batch", disable=is_hidden, leave=False):
        if transform is not None:
            images = transform(images, target)
        outputs.append(predict(net, images, forward, draws))
        targets.append(target)
    return processes.concatenated(torch.cat(outputs, 1), 1), processes.concatenated(torch.cat(targets))


def evaluate(net, batches, forward, **options):
    """`predict_all`, and how good the mean prediction of the draws is.

    Returns:
        {"loss", "accuracy"}: cross-entropy of the averaged softmax (nats per image), and share correct.
    """
    log_probabilities, target = predict_all(net, batches, forward, **options)
    prediction = mean_prediction(log_probabilities), target
    return {"loss": negative_log_likelihood(*prediction), "accuracy": accuracy(*prediction)}

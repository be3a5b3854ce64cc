"""Run a network on batches: the only forward and evaluation loop."""

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from crits import mean_over_time
from models import noise_generator
from tools.analysis.metrics import accuracy, mean_prediction, negative_log_likelihood
from tools.runtime.processes import Processes
from tools.runtime.seeds import derived_seed

logger = logging.getLogger(__name__)
AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclasses.dataclass
class ForwardPass:
    """How a network is run on images [B, C, H, W] or frames [T, B, 2, H, W] -> logits [T, B, K], at least float32.

    Args:
        fold: largest number of samples in a forward pass when noise draws are folded into the batch; halved when memory
            runs out. A single draw of a batch is never split.
    """

    device: torch.device  # where the network and its batches are
    timesteps: int  # T of the direct coding of images; frames have their own
    amp: str = "no"  # or a key of `AMP_DTYPES`
    fold: int = 256

    def halve(self) -> None:
        """Halve `fold` after running out of memory."""
        self.fold = max(1, self.fold // 2)
        logger.warning("out of memory: continuing with at most %d samples in a forward pass", self.fold)

    def __call__(self, net: nn.Module, images: Tensor) -> Tensor:
        is_mixed, device = self.amp != "no", self.device.type
        with torch.autocast(device, dtype=AMP_DTYPES[self.amp]) if is_mixed else contextlib.nullcontext():
            logits = net(images) if images.dim() == 5 else net(images, timesteps=self.timesteps)
        return logits if logits.dtype == torch.float64 else logits.float()


@dataclasses.dataclass(frozen=True)
class Scores:
    """Loss and accuracy of a network's predictions."""

    loss: float  # mean cross-entropy, in nats per sample
    accuracy: float  # share of samples classified correctly, in [0, 1]


@contextlib.contextmanager
def seeded_noise(device: torch.device, seed: int) -> Iterator[None]:
    """Context manager: all noise in the block comes from separate generators, so that other draws are unaffected.

    Neurons that call torch.rand and its like, past `noise_generator`, draw from torch's own generators, which are
    seeded for the block and then have their states of before.
    """
    others = derived_seed(seed, "torch.rand")
    on_cuda = device.type == "cuda"
    with torch.random.fork_rng([device] if on_cuda else []):
        torch.default_generator.manual_seed(others)
        if on_cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(others)
        with noise_generator(torch.Generator(device).manual_seed(seed)):
            yield


def folded_draws(
    net: nn.Module, images: Tensor, forward: ForwardPass, draws: int, lengths: Tensor | None = None
) -> Tensor:
    """Log-probabilities of several noise draws, in one forward pass: log-softmax of the time-averaged logits.

    `lengths`, int64 [B]: the numbers of frames of each sample, if they differ; the logits of later steps do not count.

    Shape: images [B, C, H, W] or frames [T, B, 2, H, W] -> [D, B, K], float32.
    """
    if draws > 1:
        images = torch.cat([images] * draws, images.dim() - 4)  # unlike repeat, cat keeps the memory format
        lengths = None if lengths is None else lengths.repeat(draws)
    return F.log_softmax(mean_over_time(forward(net, images), lengths), dim=-1).unflatten(0, (draws, -1))


@torch.no_grad()
def predict(
    net: nn.Module, images: Tensor, forward: ForwardPass, draws: int = 1, lengths: Tensor | None = None
) -> Tensor:
    """`folded_draws` without gradients, in as few forward passes as `forward.fold` and the memory allow."""
    parts, missing = [], draws
    while missing:
        count = min(missing, max(1, forward.fold // images.shape[images.dim() - 4]))
        try:
            parts.append(folded_draws(net, images, forward, count, lengths))
            missing -= count
        except torch.OutOfMemoryError:
            if count == 1:
                raise
            forward.halve()
    return torch.cat(parts)


@torch.no_grad()
def predict_all(
    net: nn.Module,
    batches: Iterable[tuple[Tensor, ...]],
    forward: ForwardPass,
    *,
    draws: int = 1,
    transform: Callable[[Tensor, Tensor], Tensor] | None = None,
    description: str = "evaluating",
    processes: Processes = Processes(),
) -> tuple[Tensor, Tensor]:
    """Predictions for all samples of a test or validation set.

    Args:
        net: is put into evaluation mode.
        batches: (images, labels) on the device, with the numbers of frames if they differ; they have a length.
        draws: independent noise draws of each sample.
        transform: (images in [0, 1], labels) -> images, applied before the network.
        processes: each has its own batches and gets the results of all.

    Shape: -> log-probabilities [D, N, K], labels [N], on the device.
    """
    net.eval()
    outputs, targets = [], []
    is_hidden = None if processes.is_first else True  # None: shown on a terminal only
    for images, target, *lengths in tqdm(batches, description, unit="batch", disable=is_hidden, leave=False):
        if transform is not None:
            images = transform(images, target)
        outputs.append(predict(net, images, forward, draws, *lengths))
        targets.append(target)
    return processes.concatenated(torch.cat(outputs, 1), 1), processes.concatenated(torch.cat(targets))


def evaluate(net: nn.Module, batches: Iterable[tuple[Tensor, ...]], forward: ForwardPass, **options: Any) -> Scores:
    """The scores of the mean prediction over the draws; `options` are those of `predict_all`."""
    log_probabilities, target = predict_all(net, batches, forward, **options)
    mean = mean_prediction(log_probabilities)
    return Scores(negative_log_likelihood(mean, target), accuracy(mean, target))

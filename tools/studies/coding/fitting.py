"""Fit networks to recorded spike trains, and simulate them."""

import functools
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from models import LIF, Gaussian, NoisyLIF
from models.layers import over_time
from tools.errors import UserError
from tools.optim import build_optimizer, build_scheduler
from tools.probes.hooks import is_noisy
from tools.runtime.seeds import seed_generators

from .cells import DEPTH, in_parts, stacked

SEGMENT, WARM_UP = 100, 10  # frames of a training sample; frames at its start, from rest, that the loss leaves out
BATCH = 16  # samples of a step
RATE = 1e-2  # the highest learning rate
WEIGHT_DECAY = 1e-2  # of AdamW
NOISE = Gaussian(0.3)  # initially; its density is the surrogate gradient of neurons without noise
CLIP = 1e-4  # least distance of probabilities from 0 and 1, so that single surprising spikes do not dominate the loss
TRACE_BINS = 3.0  # time constant of the traces that are compared where there is no likelihood


class EncodingNetwork(nn.Module):
    """Convolution - spikes - linear - spikes of the cells; `hidden` and `output` say which neurons are noisy.

    Shape: convolved frames [T, B, channels, h, w] -> input current of the cells [T, B, N].
    """

    def __init__(self, in_shape: tuple[int, int, int], cells: int, hidden: bool = True, output: bool = True):
        super().__init__()
        depth, height, width = in_shape
        noisy = functools.partial(NoisyLIF, NOISE, learnable_scale=True)
        self.conv = nn.Conv2d(depth, 16, 5, stride=2)
        self.hidden = noisy() if hidden else LIF(NOISE)
        self.readout = nn.Linear(16 * ((height - 5) // 2 + 1) * ((width - 5) // 2 + 1), cells)
        # Threshold noise alone in the last layer: given the past, a spike is exactly a Bernoulli variable.
        self.output = noisy(placement="escape") if output else LIF(NOISE)

    def forward(self, convolved: torch.Tensor) -> torch.Tensor:
        return over_time(self.readout, self.hidden(convolved).flatten(2))

    def loss(self, frames: torch.Tensor, recorded: torch.Tensor) -> torch.Tensor:
        """Negative log-likelihood of recorded spikes (nats per bin), or `trace_loss` if the output has no noise."""
        current = self(over_time(self.conv, frames))
        if not is_noisy(self.output):
            return trace_loss(self.output(current), recorded)
        p = self.output.firing_probability(current, recorded)[WARM_UP:].clamp(CLIP, 1 - CLIP)
        return F.binary_cross_entropy(p, recorded[WARM_UP:])

    @torch.no_grad()
    def predict(self, frames: torch.Tensor, trials: int) -> np.ndarray:
        """Spikes of free-running trials: uint8 [R, T, N]; without noise, all are the same."""
        convolved = over_time(self.conv, frames[:, None])  # has no noise: once for all trials
        different = trials if is_noisy(self) else 1
        spikes = in_parts(lambda part: self.output(self(part)), convolved, different, most=100)
        return spikes.repeat(trials // different, 0)


class LNModel(nn.Module):
    r"""A linear filter over space and time for each cell, and a sigmoid: :math:`p = \sigma(k \cdot x + b)`."""

    PENALTIES = (3e-2, 1e-2, 3e-3, 1e-3, 3e-4)  # on the squared norm of a filter, in nats per bin
    HELD_OUT = 0.2  # share of the frames, the last ones, that choose the penalty of each cell

    def __init__(self, in_shape: tuple[int, int, int], cells: int):
        super().__init__()
        self.linear = nn.Linear(math.prod(in_shape), cells)
        nn.init.zeros_(self.linear.weight)

    def fit(self, frames: torch.Tensor, trains: torch.Tensor) -> None:
        """Maximise the likelihood of spike trains [R, T, N], with the penalty that is best on held-out frames."""
        x, y = frames.flatten(1), trains.mean(0)  # bins are independent: the mean over trials is sufficient
        split = int(len(x) * (1 - self.HELD_OUT))
        losses = []
        for penalty in self.PENALTIES:
            self._maximise(x[:split], y[:split], penalty)
            with torch.no_grad():
                losses.append(self._losses(x[split:], y[split:]))
        self._maximise(x, y, torch.tensor(self.PENALTIES)[torch.stack(losses).argmin(0)])

    def _losses(self, x, y):
        """Negative log-likelihood of each cell, in nats per bin, of mean spikes [T, N] with inputs [T, D]."""
        return F.binary_cross_entropy_with_logits(self.linear(x), y, reduction="none").mean(0)

    def _maximise(self, x, y, penalty):
        """Fit from the present weights, with one penalty for all cells or one for each."""
        optimizer = torch.optim.LBFGS(self.parameters(), max_iter=100, line_search_fn="strong_wolfe")

        def closure():
            optimizer.zero_grad()
            loss = self._losses(x, y).sum() + (penalty * self.linear.weight.square().sum(1)).sum()
            loss.backward()
            return loss

        optimizer.step(closure)

    @torch.no_grad()
    def predict(self, frames: torch.Tensor, trials: int) -> np.ndarray:
        """Spikes of trials: uint8 [R, T, N]."""
        p = torch.sigmoid(self.linear(frames.flatten(1)))
        return torch.bernoulli(p.expand(trials, -1, -1)).to(torch.uint8).numpy()


def trace_loss(spikes: torch.Tensor, recorded: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of the exponential traces of spike trains [T, B, N], as in van Rossum's distance."""
    bins = torch.arange(math.ceil(8 * TRACE_BINS))
    kernel = torch.exp(-bins / TRACE_BINS).flip(0)[None, None]
    difference = (spikes - recorded).permute(1, 2, 0).flatten(0, 1)[:, None]  # [B * N, 1, T]
    traces = F.conv1d(F.pad(difference, (len(bins) - 1, 0)), kernel)
    return traces[..., WARM_UP:].square().mean()


NETWORKS = {  # name: (in_shape, cells) -> network
    "NSNN": EncodingNetwork,
    "SNN": functools.partial(EncodingNetwork, hidden=False, output=False),
    "SNN, noisy output": functools.partial(EncodingNetwork, hidden=False),
    "LN": LNModel,
}


def fit(network: str, movie: np.ndarray, spikes: np.ndarray, steps: int, seed: int) -> nn.Module:
    """Fit one of `NETWORKS` to recorded trials; a training sample is a stretch of one.

    Args:
        movie, spikes: [T, H, W], and 0 or 1 [R, T, N].
        seed: of weights, samples and noise.

    Raises:
        UserError: for a movie that is too short or too small, or counts other than 0 and 1.
    """
    frames, trains = stacked(movie, DEPTH), torch.from_numpy(spikes).float()
    trials, length, cells = trains.shape
    if length != len(frames) or length < SEGMENT or min(frames.shape[2:]) < 5:
        wanted = f"movies of at least {SEGMENT} frames and 5x5 pixels, and as many bins of spikes"
        raise UserError(f"networks are fitted to {wanted}; got {list(movie.shape)} and {list(trains.shape)}")
    if not ((trains == 0) | (trains == 1)).all():
        raise UserError("networks are fitted to spikes of 0 or 1: use shorter bins")
    seed_generators(seed)
    net = NETWORKS[network](tuple(frames.shape[1:]), cells)
    if isinstance(net, LNModel):
        net.fit(frames, trains)
        return net.eval()
    optimizer = build_optimizer("adamw", net, RATE, WEIGHT_DECAY)
    scheduler = build_scheduler("onecycle", optimizer, steps)
    # Not `train_one_epoch`, which is for classes: here recorded spikes are the target and also an input, which sets the
    # state of the output neurons, and samples are overlapping stretches of trials.
    for _ in range(steps):
        chosen = torch.randint(length - SEGMENT + 1, (BATCH,)) + torch.arange(SEGMENT)[:, None]  # [SEGMENT, B]
        trial = torch.randint(trials, (BATCH,))
        optimizer.zero_grad()
        net.loss(frames[chosen], trains[trial, chosen]).backward()
        optimizer.step()
        scheduler.step()
    return net.eval()


def simulate(net: nn.Module, movie: np.ndarray, trials: int, seed: int) -> np.ndarray:
    """Spikes of a fitted network in response to a movie: uint8 [R, T, N]."""
    seed_generators(seed)
    return net.predict(stacked(movie, DEPTH), trials)

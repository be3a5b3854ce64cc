"""Networks that are fitted to recorded spike trains, and what they predict."""

import dataclasses
import functools
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from models import LIF, Gaussian, NoisyLIF, noise_generator
from models.layers import over_time

from .movie import DEPTH, stacked

SEGMENT, WARM_UP = 100, 10  # frames of a training sample; the first of them, from rest, are not judged
BATCH, RATE = 16, 1e-2  # samples of a step, and the highest learning rate
NOISE = Gaussian(0.3)  # at first; where there is none, the same density is the surrogate gradient
CLIP = 1e-4  # probabilities within it of 0 or 1 count as these: one surprising spike is no catastrophe
TRACE_BINS = 3.0  # time constant of the traces by which spike trains are compared where there is no likelihood
FREE_TRIALS = 100  # at once, when a network runs freely


class EncodingNetwork(nn.Module):
    """Convolution - spikes - linear - spikes of N cells.

    Args:
        in_shape: (DEPTH, H, W), H and W at least 5.
        cells: N.
        hidden: whether the neurons inside are noisy.
        output: whether those that stand for the cells are.

    Shape:
        frames [T, B, DEPTH, H, W] -> current of the cells [T, B, N]; `output` has what they do with it.
    """

    def __init__(self, in_shape, cells, hidden=True, output=True):
        super().__init__()
        depth, height, width = in_shape
        neuron = functools.partial(NoisyLIF, NOISE, learnable_scale=True) if hidden else self._deterministic
        self.conv = nn.Conv2d(depth, 16, 5, stride=2)
        self.hidden = neuron()
        self.readout = nn.Linear(16 * ((height - 5) // 2 + 1) * ((width - 5) // 2 + 1), cells)
        # In the last layer, threshold noise alone: given the past, a spike is then a Bernoulli variable exactly.
        self.output = NoisyLIF(NOISE, placement="escape", learnable_scale=True) if output else self._deterministic()

    @staticmethod
    def _deterministic():
        return LIF(NOISE)

    def forward(self, frames):
        return self._after_convolution(over_time(self.conv, frames))

    def _after_convolution(self, current):
        return over_time(self.readout, self.hidden(current).flatten(2))

    def loss(self, frames, recorded):
        """Negative log-likelihood of recorded spikes (nats per bin), or where spikes are certain `trace_loss`."""
        current = self(frames)
        if isinstance(self.output, LIF):
            return trace_loss(self.output(current), recorded)
        p = self.output.firing_probability(current, recorded)[WARM_UP:].clamp(CLIP, 1 - CLIP)
        return F.binary_cross_entropy(p, recorded[WARM_UP:])

    @torch.no_grad()
    def predict(self, frames, trials):
        """Spikes of free-running trials: uint8 [R, T, N]; one trial stands for all where none has noise."""
        is_certain = not any(isinstance(module, NoisyLIF) for module in self.modules())
        current = over_time(self.conv, frames[:, None])  # [T, 1, channels, h, w]: before any noise, once for all trials
        parts = []
        for done in range(0, 1 if is_certain else trials, FREE_TRIALS):
            count = 1 if is_certain else min(FREE_TRIALS, trials - done)
            spikes = self.output(self._after_convolution(current.expand(-1, count, -1, -1, -1).contiguous()))
            parts.append(spikes.transpose(0, 1).to(torch.uint8).numpy())
        spikes = np.concatenate(parts)
        return spikes.repeat(trials, 0) if is_certain else spikes


class LNModel(nn.Module):
    r"""A linear filter over space and time for each cell, and a sigmoid: :math:`p = \sigma(k \cdot x + b)`.

    Args:
        in_shape: (DEPTH, H, W).
        cells: N.

    Shape:
        frames [T, B, DEPTH, H, W] -> log-odds of a spike [T, B, N].
    """

    PENALTIES = (3e-2, 1e-2, 3e-3, 1e-3, 3e-4)  # on the squared norm of a filter, in nats per bin
    HELD_OUT = 0.2  # of the frames, the last ones, choose the penalty of each cell

    def __init__(self, in_shape, cells):
        super().__init__()
        self.linear = nn.Linear(math.prod(in_shape), cells)
        nn.init.zeros_(self.linear.weight)

    def forward(self, frames):
        return self.linear(frames.flatten(2))

    def fit(self, frames, trains):
        """Maximise the likelihood of spike trains [R, T, N], with the penalty that predicts held-out frames best."""
        x, y = frames.flatten(1), trains.mean(0)  # of independent bins, the mean over trials says all
        split = int(len(x) * (1 - self.HELD_OUT))
        losses = []
        for penalty in self.PENALTIES:
            self._maximise(x[:split], y[:split], penalty)
            with torch.no_grad():
                held_out = F.binary_cross_entropy_with_logits(self.linear(x[split:]), y[split:], reduction="none")
            losses.append(held_out.mean(0))
        self._maximise(x, y, torch.tensor(self.PENALTIES)[torch.stack(losses).argmin(0)])

    def _maximise(self, x, y, penalty):
        """Fit to inputs [T, D] and mean spikes [T, N], from where it is, with one penalty or one for each cell."""
        optimizer = torch.optim.LBFGS(self.parameters(), max_iter=100, line_search_fn="strong_wolfe")

        def closure():
            optimizer.zero_grad()
            squares = self.linear.weight.square().sum(1)
            loss = F.binary_cross_entropy_with_logits(self.linear(x), y, reduction="none").mean(0).sum()
            loss = loss + (penalty * squares).sum()
            loss.backward()
            return loss

        optimizer.step(closure)

    @torch.no_grad()
    def predict(self, frames, trials):
        """Spikes of trials: uint8 [R, T, N]."""
        p = torch.sigmoid(self(frames[:, None]))[:, 0]
        return torch.bernoulli(p.expand(trials, -1, -1)).to(torch.uint8).numpy()


def trace_loss(spikes, recorded):
    """Mean squared difference of exponential traces of spike trains [T, B, N]: what van Rossum's distance adds up."""
    bins = torch.arange(math.ceil(8 * TRACE_BINS))
    kernel = torch.exp(-bins / TRACE_BINS).flip(0)[None, None]
    difference = (spikes - recorded).permute(1, 2, 0).flatten(0, 1)[:, None]  # [B * N, 1, T]
    traces = F.conv1d(F.pad(difference, (len(bins) - 1, 0)), kernel)
    return traces[..., WARM_UP:].square().mean()


KINDS = {  # name: what makes it of (in_shape, cells)
    "NSNN": EncodingNetwork,
    "SNN": functools.partial(EncodingNetwork, hidden=False, output=False),
    "SNN, noisy output": functools.partial(EncodingNetwork, hidden=False),
    "LN": LNModel,
}


@dataclasses.dataclass(frozen=True)
class Fit:
    """What it takes to fit one network.

    Args:
        kind: one of `KINDS`.
        movie: [T, H, W].
        spikes: 0 or 1 [R, T, N].
        steps: of the optimiser.
        seed: of weights, samples and noise.
    """

    kind: str
    movie: np.ndarray
    spikes: np.ndarray
    steps: int
    seed: int


def fit(job):
    """Train a network as a `Fit` says: each sample is a stretch of one trial, so that noise differs as trials do.

    Returns:
        The network, in evaluation mode.

    Raises:
        ValueError: for a movie too short or small, or counts that are not 0 or 1.
    """
    frames, trains = stacked(job.movie, DEPTH), torch.from_numpy(job.spikes).float()
    trials, length, cells = trains.shape
    if length != len(frames) or length < SEGMENT or min(frames.shape[2:]) < 5:
        raise ValueError(
            f"networks are fitted to movies of at least {SEGMENT} frames and 5x5 pixels, and as many bins of spikes; "
            f"got {list(job.movie.shape)} and {list(trains.shape)}"
        )
    if not ((trains == 0) | (trains == 1)).all():
        raise ValueError("networks are fitted to spikes of 0 or 1: use shorter bins")
    generator = torch.Generator().manual_seed(job.seed)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(job.seed)
        net = KINDS[job.kind](tuple(frames.shape[1:]), cells)
    if isinstance(net, LNModel):
        net.fit(frames, trains)
        return net.eval()
    optimizer = torch.optim.AdamW(net.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, job.steps)
    within = torch.arange(SEGMENT)[:, None]
    with noise_generator(generator):
        for _ in range(job.steps):
            chosen = torch.randint(length - SEGMENT + 1, (BATCH,), generator=generator) + within  # [SEGMENT, B]
            trial = torch.randint(trials, (BATCH,), generator=generator)
            loss = net.loss(frames[chosen], trains[trial, chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return net.eval()


def simulate(net, movie, trials, seed):
    """Spikes of a fitted network that sees a movie: uint8 [R, T, N]."""
    with torch.random.fork_rng(devices=()), noise_generator(torch.Generator().manual_seed(seed)):
        torch.manual_seed(seed)
        return net.predict(stacked(movie, DEPTH), trials)

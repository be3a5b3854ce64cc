"""A layer of another library next to its equal here: spikes and gradients on the same inputs."""

import random
from typing import NamedTuple

import torch

GRID = 16  # inputs are multiples of 1 / GRID: with dyadic settings, all potentials are exact, and meet thresholds


class Difference(NamedTuple):
    """How much two layers differ."""

    spikes: int
    compared: int
    gradient: float  # the largest, where the spikes of a neuron are equal; in units of the largest gradient


def draws(count, seed=0):
    """[(is it for inputs on the grid, a random generator)], for `count` settings."""
    return [(index % 2 == 0, random.Random(1000 * seed + index)) for index in range(count)]


def current(shape, on_grid, seed=0):
    """Input current whose neurons fire often; on the grid or not."""
    x = 0.3 + torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return (x * GRID).round() / GRID if on_grid else x


def difference(run, theirs, ours, x):
    """Compare two layers; run(layer, x) gives the spikes of x [T, B, ...]."""
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    spikes = [run(layer, one) for layer, one in zip((theirs, ours), inputs)]
    weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    for one in spikes:
        if one.requires_grad:
            (one * weights).sum().backward()
    wrong = spikes[0] != spikes[1]
    assert 0.001 < spikes[0].mean() < 0.999, "the comparison would say nothing"
    if inputs[0].grad is None:
        return Difference(int(wrong.sum()), wrong.numel(), 0.0)
    same = ~wrong.any(0)
    off = (inputs[0].grad - inputs[1].grad)[:, same].abs().max() / inputs[0].grad.abs().max()
    return Difference(int(wrong.sum()), wrong.numel(), off.item())


def check(differences):
    """At most one spike in 100,000 differs, which is rounding; gradients agree to 1e-5."""
    wrong, compared = sum(d.spikes for d in differences), sum(d.compared for d in differences)
    assert compared > 200_000
    assert wrong <= compared / 100_000, f"{wrong} of {compared} spikes differ"
    assert max(d.gradient for d in differences) < 1e-5

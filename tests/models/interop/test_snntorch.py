"""snnTorch's neurons and networks next to their equals here."""

import copy

import pytest
import torch
from torch import nn

from models import Gaussian, NoisyLIF, interop, noise_generator, noiseless
from tests.models.interop.compare import check, current, difference, draws

snn = pytest.importorskip("snntorch", reason="snnTorch is not installed")
from snntorch import surrogate, utils

from_leaky = interop.snntorch.from_leaky
SURROGATES = (
    lambda rng: surrogate.atan(alpha=rng.uniform(1, 4)),
    lambda rng: surrogate.fast_sigmoid(slope=rng.uniform(2, 25)),
    lambda rng: surrogate.sigmoid(slope=rng.uniform(2, 8)),  # steeper, its gradient is NaN far below the threshold
    lambda rng: None,  # the default
)


def setting(on_grid, rng, kind=None):
    """A random neuron of snnTorch."""
    kind = kind or rng.choice((snn.Leaky, snn.Synaptic))
    reset = rng.choice(("subtract", "zero", "none"))
    settings = dict(
        beta=rng.choice((0.5, 0.25)) if on_grid else rng.uniform(0.3, 0.97),  # 1 / beta is exact, too
        threshold=rng.choice((0.5, 0.75, 1.0)) if on_grid else rng.uniform(0.3, 1.2),
        spike_grad=rng.choice(SURROGATES)(rng),
        reset_mechanism=reset,
        reset_delay=rng.random() < 0.5,
        learn_beta=rng.random() < 0.5,
        learn_threshold=rng.random() < 0.5,
    )
    if reset == "subtract":
        settings["reset_delay"] = True
    if kind is snn.Synaptic:
        settings["alpha"] = rng.choice((0.5, 0.25)) if on_grid else rng.uniform(0.1, 0.6)
        if reset == "zero":
            settings["reset_delay"] = False
    return kind(**settings)


def run(layer, x):
    """All steps from rest, the states handed on."""
    layer.reset_mem()
    outputs, states = [], []
    for x_t in x:
        spikes, *states = layer(x_t, *states)
        outputs.append(spikes)
    return torch.stack(outputs)


def potentials(layer, x):
    layer.reset_mem()
    outputs, states = [], []
    for x_t in x:
        _, *states = layer(x_t, *states)
        outputs.append(states[-1])
    return torch.stack(outputs)


@pytest.mark.parametrize(("on_grid", "rng"), [draw for draw in draws(40) if draw[0]])
def test_on_a_grid_spikes_are_equal(on_grid, rng):
    theirs = setting(on_grid, rng)
    ours = from_leaky(theirs)
    x = current((12, 4, 500), on_grid)
    found = difference(lambda x: run(theirs, x), lambda x: run(ours, x), x)
    assert found.spikes == 0 and found.gradient < 1e-5
    inner = getattr(ours.neuron, "neuron", ours.neuron)
    for name, value in {"threshold": inner.threshold, "beta": inner.decay}.items():
        if isinstance(getattr(theirs, name), nn.Parameter):
            assert torch.allclose(getattr(theirs, name).grad, value.grad, rtol=1e-4)
    with torch.no_grad():
        assert torch.allclose(potentials(theirs, x), potentials(ours, x), atol=1e-5)


def test_on_other_inputs_spikes_are_equal_but_for_rounding():
    layers = [setting(*draw) for draw in draws(40) if not draw[0]]
    check(
        [
            difference(
                lambda x, layer=layer: run(layer, x),
                lambda x, ours=from_leaky(layer): run(ours, x),
                current((12, 4, 500), False),
            )
            for layer in layers
        ]
    )

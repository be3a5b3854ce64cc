"""sinabs' neurons and networks next to their equals here."""

import copy

import pytest
import torch
from torch import nn

from models import Gaussian, interop, noiseless
from tests.models.interop.compare import check, current, difference, draws

sinabs = pytest.importorskip("sinabs", reason="sinabs is not installed")
from sinabs import activation, layers

from_sinabs = interop.sinabs.from_sinabs


def setting(on_grid, rng):
    """A random neuron of sinabs."""
    kind = rng.choice((layers.LIF, layers.IAF))
    resets = (
        activation.MembraneReset(),
        activation.MembraneSubtract(),
        activation.MembraneSubtract(0.5 if on_grid else rng.uniform(0.2, 1)),
    )
    surrogates = (activation.SingleExponential(rng.uniform(0.2, 1)), activation.Gaussian(sigma=rng.uniform(0.2, 1)))
    settings = dict(
        spike_threshold=torch.tensor(rng.choice((0.5, 0.75, 1.0)) if on_grid else rng.uniform(0.3, 1.2)),
        spike_fn=activation.SingleSpike,
        reset_fn=rng.choice(resets),
        surrogate_grad_fn=rng.choice(surrogates),
    )
    if kind is layers.LIF:
        settings |= dict(norm_input=rng.random() < 0.5, train_alphas=on_grid or rng.random() < 0.5)
        settings["tau_mem"] = rng.uniform(0.5, 3 if settings["norm_input"] else 20)
    layer = kind(**settings)
    if kind is layers.LIF and on_grid:
        layer.alpha_mem.data.fill_(rng.choice((0.5, 0.25)))  # tau_mem would be rounded
    return layer


def run(layer, x):
    """All steps from rest; sinabs has the batch first."""
    for part in (layer, getattr(layer, "memory", None)):
        if isinstance(part, layers.StatefulLayer):
            part.reset_states()
    return layer(x.transpose(0, 1)).transpose(0, 1)


@pytest.mark.parametrize(("on_grid", "rng"), [draw for draw in draws(40) if draw[0]])
def test_on_a_grid_spikes_are_equal(on_grid, rng):
    theirs = setting(on_grid, rng)
    ours = from_sinabs(theirs)
    found = difference(lambda x: run(theirs, x), lambda x: run(ours, x), current((12, 4, 500), on_grid))
    assert found.spikes == 0 and found.gradient < 1e-5
    if hasattr(theirs, "alpha_mem"):
        assert torch.allclose(theirs.alpha_mem.grad, ours.neuron.decay.grad, rtol=1e-4)


def test_on_other_inputs_spikes_are_equal_but_for_rounding():
    differences = []
    for theirs in [setting(*draw) for draw in draws(40) if not draw[0]]:
        ours = from_sinabs(theirs)
        differences.append(
            difference(lambda x: run(theirs, x), lambda x: run(ours, x), current((12, 4, 500), False))  # noqa: B023
        )
        if getattr(theirs, "tau_mem", None) is not None:
            assert torch.allclose(theirs.tau_mem.grad, ours.neuron.tau_mem.grad, rtol=1e-3)
    check(differences)

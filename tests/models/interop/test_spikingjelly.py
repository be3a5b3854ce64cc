"""SpikingJelly's neurons and networks next to their equals here."""

import copy

import pytest
import torch
from torch import nn

from models import Gaussian, LIF, NoisyLIF, interop, noise_generator, noiseless
from tests.models.interop.compare import check, current, difference, draws

pytest.importorskip("spikingjelly", reason="SpikingJelly is not installed")
from spikingjelly.activation_based import functional, layer, monitor, neuron, surrogate
from spikingjelly.activation_based.model import sew_resnet, spiking_resnet
from spikingjelly.activation_based.model.parametric_lif_net import MNISTNet

SURROGATES = (
    surrogate.Sigmoid,
    surrogate.ATan,
    surrogate.Erf,
    surrogate.PiecewiseQuadratic,
    surrogate.PiecewiseExp,
    surrogate.SoftSign,
)
from_lifnode = interop.spikingjelly.from_lifnode


def setting(on_grid, rng):
    """A random neuron of SpikingJelly."""
    kind = rng.choice((neuron.LIFNode, neuron.IFNode, neuron.ParametricLIFNode))
    settings = dict(
        v_threshold=rng.choice((0.5, 0.75, 1.0)) if on_grid else rng.uniform(0.3, 0.9),
        v_reset=rng.choice((None, 0.0, -0.25)) if on_grid else rng.choice((None, 0.0, rng.uniform(-0.5, 0.2))),
        detach_reset=rng.random() < 0.5,
        surrogate_function=rng.choice(SURROGATES)(alpha=rng.uniform(0.5, 4)),
        step_mode=rng.choice("sm"),
    )
    if kind is not neuron.IFNode:
        settings["decay_input"] = rng.random() < 0.5
        longest = 3 if settings["decay_input"] else 20
        tau = rng.uniform(1.1, longest)
        if on_grid:
            tau = 2.0 if kind is neuron.ParametricLIFNode else rng.choice((2.0, 4.0))  # else sigmoid(w) is rounded
        settings["tau" if kind is neuron.LIFNode else "init_tau"] = tau
    return kind(**settings)


def run(node, x):
    """All steps, in either step mode, from rest."""
    functional.reset_net(node)
    return node(x) if node.step_mode == "m" else torch.stack([node(x_t) for x_t in x])


@pytest.mark.parametrize(("on_grid", "rng"), [draw for draw in draws(40) if draw[0]])
def test_on_a_grid_spikes_are_equal(on_grid, rng):
    node = setting(on_grid, rng)
    ours = from_lifnode(node)
    found = difference(lambda x: run(node, x), lambda x: run(ours, x), current((12, 4, 500), on_grid))
    assert found.spikes == 0 and found.gradient < 1e-5
    if hasattr(node, "w"):
        assert torch.allclose(node.w.grad, -ours.neuron.decay_logit.grad, rtol=1e-4)


def test_on_other_inputs_spikes_are_equal_but_for_rounding():
    pairs = [setting(*draw) for draw in draws(40) if not draw[0]]
    check(
        [
            difference(
                lambda x, node=node: run(node, x),
                lambda x, ours=from_lifnode(node): run(ours, x),
                current((12, 4, 500), False),
            )
            for node in pairs
        ]
    )

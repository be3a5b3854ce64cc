"""Perturbations at neurons of one's own."""

import pytest
import torch
from torch import nn

from models import LIF, Stream
from tests.chance import likely
from tools.errors import UserError
from tools.perturb.hidden import flip_spikes, membrane_noise


class Own(nn.Module):
    emits_spikes = True

    def forward(self, x):
        return (x > 0).to(x.dtype)


def seeded():
    return torch.Generator().manual_seed(0)


def test_spikes_of_any_neuron_flip():
    x = torch.randn(2, 3, 4, generator=seeded())
    with flip_spikes(nn.Sequential(Own()), 1.0, seeded()) as net:
        assert torch.equal(net(x), (x <= 0).float())


def test_membrane_noise_needs_to_know_how_the_input_enters():
    net = nn.Sequential(Own())
    with (
        pytest.raises(UserError, match=r"layer '0' \(Own\) lacks 'decay_input', which membrane noise needs"),
        membrane_noise(net, 0.1, seeded()),
    ):
        net(torch.zeros(1, 2, 3))
    net[0].decay_input, net[0].decay = True, 0.75
    silent = torch.full((1, 1, 40_000), -0.4)
    with membrane_noise(net, 0.1, seeded()):
        assert likely(net(silent).sum(), 40_000, 0.1587)  # above 0 by 0.4 = 1 std of 0.1 / 0.25
    net[0].decay_input = False
    with membrane_noise(net, 0.1, seeded()):
        assert net(silent).mean() < 1e-3  # by 4 std: 40 of 40,000 where 1.3 are expected


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("call", ["forward", "run", "step"])
def test_neurons_are_perturbed_by_whichever_method_they_are_called(call, compiled):
    torch._dynamo.reset()
    lif = LIF(decay=0.0)
    net = torch.compile(lif, backend="eager") if compiled else lif
    x = torch.rand(1, 3, 4, generator=seeded()) * 2

    def spikes():
        if call == "step":
            return lif.step(x[0])[0][None]
        return net(x) if call == "forward" else lif.run(x)[0]

    plain = spikes()
    with flip_spikes(net, 1.0, seeded()):
        assert torch.equal(spikes(), 1 - plain)
    with membrane_noise(net, 100.0, seeded()):
        assert not torch.equal(spikes(), plain)
    assert torch.equal(spikes(), plain)


def test_each_use_of_a_neuron_is_perturbed():
    lif, x = LIF(), 2 * torch.rand(5, 3, 4, generator=seeded())
    expected = 1 - lif(1 - lif(x))
    with flip_spikes(nn.Sequential(lif, lif), 1.0, seeded()) as net:
        assert torch.equal(net(x), expected)


@pytest.mark.parametrize(
    "perturb", [lambda net: flip_spikes(net, 0.5, seeded()), lambda net: membrane_noise(net, 0.5, seeded())]
)
def test_steps_without_a_dimension_of_time_are_perturbed_alike(perturb):
    """The noise of the membrane has a scale for each channel, the third dimension of [T, B, C, ...]."""
    lif, x = (
        LIF(decay=torch.tensor([0.1, 0.9, 0.99]), decay_input=True),
        20 * torch.rand(5, 2, 3, 3, generator=seeded()),
    )
    found = []
    for time_first in (True, False):
        stream = Stream(lif, time_first)
        with perturb(lif):
            found.append(torch.stack([stream(x_t) for x_t in x]))
    assert torch.equal(*found) and not torch.equal(found[0], lif(x))

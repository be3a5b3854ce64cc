"""What evaluates a network knows neurons that are made of others."""

import pytest
import torch
from torch import nn

from models import LIF, AdaptiveLIF, NoisyLIF, Recurrent, Synaptic, noiseless
from tools.attacks import twins
from tools.probes.firing_rates import firing_rates
from tools.probes.operations import count_operations

WHOLES = {
    "synaptic": lambda neuron: Synaptic(0.5, neuron),
    "recurrent": lambda neuron: Recurrent(neuron, nn.Linear(6, 6)),
    "adaptive": lambda neuron: AdaptiveLIF(neuron),
}
each_whole = pytest.mark.parametrize("around", WHOLES.values(), ids=WHOLES)


def network(around, make):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), around(make()), nn.Linear(6, 3)).eval(), 3 * torch.rand(5, 2, 4)


@each_whole
def test_rates_and_operations_are_of_the_whole(around):
    net, x = network(around, LIF)
    with torch.no_grad():
        spikes = net[:2](x)
        with firing_rates(net) as rates, count_operations(net, batch_dim=1) as operations:
            net(x)
    assert rates.rates() == pytest.approx({"1": spikes.mean().item()})
    layers = operations.cost().layers
    assert layers["2"].operations == pytest.approx(3 * spikes.sum().item() / 2) and layers["2"].kind == "AC"
    if isinstance(net[1], Recurrent):  # whose spikes come back, except those of the last step
        assert layers["1.linear"].operations == pytest.approx(6 * spikes[:-1].sum().item() / 2)
        assert layers["1.linear"].kind == "AC"


@each_whole
def test_twins_of_attacks(around):
    net, x = network(around, NoisyLIF)
    with noiseless(net):
        expected = net(x)
    assert torch.equal(twins.noiseless_twin(net)(x), expected)
    assert torch.equal(twins.vanishing_noise_twin(net)(x), expected)
    smooth = twins.mean_field_twin(net)
    assert torch.equal(smooth(x), smooth(x)) and not torch.equal(smooth(x), expected)
    for path in twins.GRADIENT_PATHS:
        twin = twins.with_gradient_path(net, path)
        given = x.clone().requires_grad_()
        twin(given).sum().backward()
        assert given.grad.any()

"""The monitor of firing rates."""

import pytest
import torch

from models import LIF, build_model, build_neuron
from tools.probes.firing_rates import firing_rates


def test_rates_are_means_over_all_calls():
    net = torch.nn.ModuleDict({"a": LIF(), "b": LIF()})
    with firing_rates(net) as record:
        net["a"](torch.full((2, 3, 4), 2.0))  # fires always
        net["a"](torch.full((2, 9, 4), 0.0))  # never: three times as many
        net["b"](torch.zeros(2, 3))
    assert record.rates() == {"a": 0.25, "b": 0.0}


def test_hooks_are_gone_afterwards_also_after_an_error():
    net = build_model("toynet", neuron=build_neuron("NILIF"), in_shape=(1, 4, 4), num_classes=2)
    with pytest.raises(KeyError), firing_rates(net):
        raise KeyError
    with firing_rates(net) as record:
        pass
    net(torch.rand(2, 1, 4, 4), timesteps=2)
    assert record.rates() == {}
    assert not any(module._forward_hooks for module in net.modules())


def test_every_layer_is_seen_and_the_graph_is_not_kept():
    net = build_model("sresnet18", neuron=build_neuron("NILIF"), in_shape=(3, 8, 8), num_classes=2, width=0.05)
    with firing_rates(net) as record:
        net(torch.rand(2, 3, 8, 8), timesteps=2)
    rates = record.rates()
    assert len(rates) == 17  # the stem, and two for each of eight blocks
    assert all(0 < rate < 1 for rate in rates.values())
    assert not any(total.requires_grad for total in record._sums.values())

"""The recurrent network of linear layers."""

import pytest
import torch
from torch import nn

from models import LIF, ArgumentError, build_model, build_neuron

SMALL = {"in_shape": (1, 1, 30), "num_classes": 4, "width": 0.1}


def make(neuron="LIF", norm="bn", **options):
    torch.manual_seed(0)
    return build_model("rsnn", neuron=build_neuron(neuron, **options), norm=norm, **SMALL).eval()


def test_the_equations_of_a_step():
    """Without leak and with a threshold that is low: input, own spikes of the step before, two layers, readout."""
    net = make(tau=1.0, norm=None, threshold=0.05)
    x = torch.randn(5, 3, 1, 1, 30)
    weights = dict(net.named_parameters())
    first = second = torch.zeros(3, 13)
    potentials = [torch.zeros(3, 13), torch.zeros(3, 13)]
    logits = []
    for frame in x.flatten(2):
        current = frame @ weights["stem.1.linear.weight"].T + weights["stem.1.linear.bias"]
        potentials[0] = potentials[0] + current + first @ weights["first.linear.weight"].T
        first = (potentials[0] >= 0.05).float()
        potentials[0] = potentials[0] * (1 - first)
        current = first @ weights["middle.linear.weight"].T + weights["middle.linear.bias"]
        potentials[1] = potentials[1] + current + second @ weights["second.linear.weight"].T
        second = (potentials[1] >= 0.05).float()
        potentials[1] = potentials[1] * (1 - second)
        logits.append(second @ weights["classifier.weight"].T + weights["classifier.bias"])
    torch.testing.assert_close(net(x), torch.stack(logits))
    assert 0 < first.mean() < 1 and 0 < second.mean() < 1


def test_spikes_of_the_past_change_the_present():
    net, x = make(threshold=0.05), torch.randn(6, 4, 1, 1, 30)
    assert not torch.allclose(net(x)[-1], net(x[-1:])[-1])
    assert torch.equal(net(x)[:3], net(x[:3]))  # but not those of the future


@pytest.mark.parametrize("norm", ["bn", None])
def test_every_weight_is_learnt(norm):
    net = make("NILIF", norm).train()
    net(torch.randn(4, 8, 1, 1, 30)).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in net.parameters())


class OfAnyClass(nn.Module):
    """A neuron by the protocol, not by its class."""

    emits_spikes, is_noisy = True, False

    def __init__(self):
        super().__init__()
        self.inside = LIF(threshold=0.05)

    def run(self, x, state=None, keep_state=True, potentials=False):
        return self.inside.run(x, state, keep_state, potentials)


def test_neurons_of_any_class_are_fed_back():
    x = torch.randn(4, 2, 1, 1, 30)
    nets = []
    for neuron in (OfAnyClass, lambda: LIF(threshold=0.05)):
        torch.manual_seed(0)
        nets.append(build_model("rsnn", neuron=neuron, **SMALL).eval())
    assert nets[0](x).any() and torch.equal(nets[0](x), nets[1](x))


def test_what_does_not_spike_cannot_be_fed_back():
    with pytest.raises(ArgumentError, match="rsnn .*needs a spiking neuron, got ReLU"):
        build_model("rsnn", neuron=nn.ReLU, **SMALL)
    with pytest.raises(ArgumentError, match="norm must be"):
        build_model("rsnn", neuron=build_neuron("LIF"), norm="layer", **SMALL)

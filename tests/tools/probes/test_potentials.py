"""Traces of the membrane: those of the very run whose spikes are recorded."""

import pytest
import torch
from torch import nn

from models import LIF, NoisyLIF, Stream, build_model, build_neuron
from tools.errors import UserError
from tools.inference import ForwardPass
from tools.probes.potentials import record_potentials

FORWARD = ForwardPass(torch.device("cpu"), 3)


def network(neuron="NILIF"):
    torch.manual_seed(0)
    return build_model("vggwoap", neuron=build_neuron(neuron), in_shape=(1, 8, 8), num_classes=3, width=0.05).eval()


def test_all_layers_or_those_that_are_chosen():
    net, images = network(), torch.rand(4, 1, 8, 8)
    found = record_potentials(net, images, FORWARD)
    assert len(found) == 8 and all(u.shape == spikes.shape for u, spikes in found.values())
    assert list(record_potentials(net, images, FORWARD, ["stem_neuron"])) == ["stem_neuron"]
    with pytest.raises(UserError, match="no neuron is called 'stem'; choose from stem_neuron"):
        record_potentials(net, images, FORWARD, ["stem"])


def test_spikes_are_where_the_potential_exceeds_the_threshold():
    net, images = network("LIF"), 3 * torch.rand(4, 1, 8, 8)
    for u, spikes in record_potentials(net, images, FORWARD).values():
        assert torch.equal(spikes, (u > 1.0).float())


@pytest.mark.parametrize("compile_", [False, True])
def test_nothing_is_left_behind(compile_):
    net, x = nn.Sequential(nn.Linear(6, 6), LIF()), 2 * torch.rand(3, 4, 6)
    expected, attributes = net(x), set(vars(net[1]))
    run = torch.compile(net, backend="eager") if compile_ else net
    assert record_potentials(run, x, lambda net, x: net(x))["1"][1].shape == (3, 4, 6)
    assert torch.equal(run(x), expected) and set(vars(net[1])) == attributes

    def fails(net, x):
        raise KeyError

    with pytest.raises(KeyError):
        record_potentials(net, x, fails)
    assert set(vars(net[1])) == attributes


@pytest.mark.parametrize("way", ["step", "stream"])
def test_steps_add_up(way):
    neuron, x = LIF(), 2 * torch.rand(5, 4, 6)
    expected = neuron.run(x, potentials=True)[2]

    def feed(net, x):
        if way == "stream":
            stream = Stream(net)
            return [stream(x_t) for x_t in x]
        state = None
        for x_t in x:
            _, state = net.step(x_t, state)

    u, spikes = record_potentials(neuron, x, feed)[""]
    assert torch.equal(u, expected) and torch.equal(spikes, neuron(x))


class Unaware(NoisyLIF):
    def run(self, x, state=None, keep_state=True):
        return super().run(x, state, keep_state)


def test_a_neuron_without_potentials_is_named():
    net = nn.Sequential(LIF(), Unaware())
    assert list(record_potentials(net, torch.rand(2, 3, 4), lambda net, x: net(x), ["0"])) == ["0"]
    with pytest.raises(UserError, match=r"layer '1' \(Unaware\)"):
        record_potentials(net, torch.rand(2, 3, 4), lambda net, x: net(x))


class Stepwise(LIF):
    def step(self, x_t, state=None):
        return super().step(2 * x_t, state)


class Forgetful(LIF):
    def run(self, x, state=None, keep_state=True, potentials=False):
        return super().run(x, state, keep_state)


class Faulty(LIF):
    def run(self, x, state=None, keep_state=True, potentials=False):
        return None + x


@pytest.mark.parametrize("kind", [Stepwise, Forgetful])
@pytest.mark.parametrize("way", [lambda net, x: net(x), lambda net, x: net[1].step(x[0])])
def test_a_neuron_whose_run_gives_no_potentials_is_named_too(kind, way):
    with pytest.raises(UserError, match=rf"layer '1' \({kind.__name__}\) has no `run` that takes `potentials`"):
        record_potentials(nn.Sequential(LIF(), kind()), torch.rand(2, 3, 4), way)


def test_an_error_of_the_neuron_s_own_is_shown():
    with pytest.raises(TypeError, match="NoneType"):
        record_potentials(Faulty(), torch.rand(2, 3, 4), lambda net, x: net(x))

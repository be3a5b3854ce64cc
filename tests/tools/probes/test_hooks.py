"""Neurons are found by what they offer."""

import threading

import pytest
import torch
from torch import nn

from models import LIF, NoisyLIF, Stream, noiseless
from tools.errors import UserError
from tools.probes.hooks import is_noisy, neuron_hooks, require, spiking_neurons
from tools.probes.operations import count_operations
from tools.probes.potentials import record_potentials
from tools.probes.rasters import record_spikes


class Third(nn.Module):
    """A neuron of one's own."""

    emits_spikes = True
    is_noisy = True

    def forward(self, x):
        return (x > torch.rand_like(x)).to(x.dtype)


def test_spiking_neurons_of_any_class_are_found_in_order():
    net = nn.Sequential(LIF(), nn.Linear(3, 3), nn.Sequential(Third(), nn.ReLU()), NoisyLIF())
    assert [(name, type(module)) for name, module in spiking_neurons(net)] == [
        ("0", LIF),
        ("2.0", Third),
        ("3", NoisyLIF),
    ]
    seen = []
    with neuron_hooks(net, lambda layer, neuron, spikes, continues: seen.append(layer)):
        net(torch.rand(2, 1, 3))
    assert seen == ["0", "2.0", "3"]
    with pytest.raises(UserError, match="Linear has no spiking neuron"), neuron_hooks(nn.Linear(2, 2), None):
        pass


def test_one_noisy_neuron_makes_a_network_noisy():
    net = nn.Sequential(LIF(), NoisyLIF())
    assert is_noisy(net) and is_noisy(nn.Sequential(Third())) and not is_noisy(nn.Sequential(LIF(), nn.ReLU()))
    with noiseless(net):
        assert not is_noisy(net)


def test_a_neuron_that_does_not_say_whether_it_is_noisy_is_not_taken_for_noise_free():
    silent = nn.ReLU()
    silent.emits_spikes = True
    with pytest.raises(UserError, match=r"layer '1' \(ReLU\) lacks 'is_noisy'"):
        is_noisy(nn.Sequential(NoisyLIF(), silent))


def test_require_names_layer_class_attribute_and_purpose():
    assert require("a.b", LIF(decay=0.25), "decay", "a test") == 0.25
    with pytest.raises(UserError, match=r"layer 'a.b' \(Third\) lacks 'gradient_law', which an attack needs"):
        require("a.b", Third(), "gradient_law", "an attack")


def count(net, x):
    with count_operations(net, batch_dim=1) as operations:
        net(x)
    return operations.cost()


def potentials(net, x):
    return record_potentials(net, x, lambda net, x: net(x))


@pytest.mark.parametrize("measure", [count, potentials])
@pytest.mark.parametrize("part", [False, True])
def test_what_two_threads_measure_is_not_mixed(measure, part):
    net, x = nn.Sequential(nn.Sequential(nn.Linear(4, 4), LIF()), nn.Linear(4, 2), LIF()), torch.rand(3, 2, 4)
    inside, done = threading.Event(), threading.Event()

    def wait(module, args):
        if threading.current_thread() is thread:
            inside.set()
            done.wait(60)

    net[0].register_forward_pre_hook(wait)
    thread = threading.Thread(target=measure, args=(net, x))
    thread.start()
    inside.wait(60)
    with pytest.raises(UserError, match="another thread measures this Sequential: give each thread a copy"):
        measure(net[0] if part else net, x)
    done.set()
    thread.join(60)
    with count_operations(net, batch_dim=1):  # in one thread, they may be nested
        measure(net[0] if part else net, x)
    assert not any({"run", "step"} & set(vars(module)) for module in net.modules())


class Twice(nn.Module):
    """One neuron behind two layers; `way` says how it is called."""

    def __init__(self, way, width=4):
        super().__init__()
        self.one, self.two, self.lif, self.way = nn.Linear(4, 4), nn.Linear(4, width), LIF(threshold=0.2), way

    def forward(self, x):
        first = second = None
        if self.way == "neuron":
            return self.lif(self.two(self.lif(self.one(x))))
        for steps in x.split(1):
            spikes, first = self.lif.run(self.one(steps), first)
            spikes, second = self.lif.run(self.two(spikes), second)
        return spikes


def call(net, x):
    return net(x)


def spikes_of(net, x, forward=call):
    return record_spikes(net, x, forward)


def spikes_beside_potentials(net, x, forward=call):
    return {layer: spikes for layer, (_, spikes) in record_potentials(net, x, forward).items()}


@pytest.mark.parametrize("record", [spikes_of, spikes_beside_potentials])
def test_uses_of_one_neuron_are_kept_apart(record):
    torch.manual_seed(0)
    net, x = Twice("neuron"), 3 * torch.rand(5, 2, 4)
    found, one = record(net, x), net.lif(net.one(x))
    assert list(found) == ["lif", "lif#2"] and torch.equal(found["lif"], one)
    assert torch.equal(found["lif#2"], net(x)) and not torch.equal(found["lif#2"], one)
    for width in (4, 3):
        with pytest.raises(UserError, match="layer 'lif' is used several times, so its steps cannot be told apart"):
            record(Twice("steps", width), x)


@pytest.mark.parametrize("record", [spikes_of, spikes_beside_potentials])
@pytest.mark.parametrize("time_first", [False, True])
def test_steps_of_a_stream_are_recorded_one_after_the_other(record, time_first):
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(4, 3), LIF(threshold=0.2)), 3 * torch.rand(5, 2, 4)
    stream = Stream(net, time_first)
    found = record(net, x, lambda net, x: [stream(x_t) for x_t in x])
    assert found.keys() == {"1"} and torch.equal(found["1"], net(x)) and 0 < found["1"].mean() < 1

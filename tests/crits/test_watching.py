"""Hooks on spiking neurons, whichever method they are called by."""

import copy
import pickle

import pytest
import torch
from torch import nn

from crits.watching import call_of, neuron_hooks
from models import LIF, Stream
from tests import fresh

X = 2 * torch.rand(3, 2, 4, generator=torch.Generator().manual_seed(0))


def _nothing(*call):
    """A hook of the user's."""


def call(neuron):
    """Spikes of a call by each method."""
    first, state = neuron.step(X[0])
    return [neuron(X), neuron.run(X)[0], first, neuron.step(X[1], state)[0]]


@pytest.mark.parametrize("on_input", [False, True])
def test_a_hook_runs_once_for_each_call_and_knows_what_continues(on_input):
    seen = []
    neuron = LIF()
    with neuron_hooks(nn.Sequential(neuron), lambda name, *rest: seen.append((name, *rest)), on_input):
        spikes = call(neuron)
    first, second = ("0", (1, 2, 4), False), ("0", (1, 2, 4), True)
    whole = ("0", (3, 2, 4), False)
    found = [(name, tuple(tensor.shape), continues) for name, _, tensor, continues in seen]
    assert found == [first, whole, whole, second] and all(watched is neuron for _, watched, _, _ in seen)
    inputs = [X[:1], X, X, X[1:2]]
    outputs = [spikes[2][None], spikes[0], spikes[1], spikes[3][None]]
    assert all(torch.equal(one[2], wanted) for one, wanted in zip(seen, inputs if on_input else outputs))
    assert all(torch.equal(one, other) for one, other in zip(spikes, call(neuron)))  # nothing was replaced


def test_a_hook_knows_that_a_stream_continues():
    seen, stream = [], Stream(nn.Sequential(LIF()))
    with neuron_hooks(stream.net, lambda name, neuron, spikes, continues: seen.append(continues)):
        for x_t in X:
            stream(x_t)
        stream.net(X)
        stream.reset()
        stream(X[0])
    assert seen == [False, True, True, False, False]


class FromRest(LIF):
    """Its `forward` gives its own state to begin with."""

    def forward(self, x):
        return self.run(x, torch.zeros_like(x[0]))[0]


def test_a_call_that_begins_from_a_state_of_its_own_does_not_continue():
    seen, neuron = [], FromRest()
    with neuron_hooks(neuron, lambda name, neuron, spikes, continues: seen.append(continues)):
        neuron(X)
        neuron(X)
    assert seen == [False, False]


@pytest.mark.parametrize("on_input", [False, True])
def test_what_a_hook_returns_replaces_the_tensor_within_the_block(on_input):
    neuron = LIF()
    before, attributes = call(neuron), set(vars(neuron))
    with neuron_hooks(neuron, lambda name, neuron, tensor, continues: torch.full_like(tensor, 9.0), on_input):
        inside = call(neuron)
    assert all((spikes == (1.0 if on_input else 9.0)).all() for spikes in inside)  # 9 makes each neuron fire
    assert [spikes.shape for spikes in inside] == [spikes.shape for spikes in before]
    assert all(torch.equal(one, other) for one, other in zip(before, call(neuron)))
    assert set(vars(neuron)) == attributes  # nothing is left on it, as a copy or a pickle would show


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_a_copy_made_in_the_block_keeps_its_own_hooks_alone(copied):
    neuron = LIF()
    neuron.register_forward_hook(_nothing)
    with neuron_hooks(neuron, lambda *call: None):
        assert len(neuron._forward_hooks) == 2
        twin = copied(neuron)
    assert list(twin._forward_hooks.values()) == [_nothing] and not twin._forward_pre_hooks
    assert not {"run", "step"} & set(vars(twin))


def test_where_nothing_is_compiled_the_compiler_is_not_loaded():
    """It takes seconds."""
    code = """
import sys
from crits.watching import neuron_hooks
from models import LIF, Stream
with neuron_hooks(LIF(), print):
    pass
print([name for name in sys.modules if name.startswith("torch._dynamo")])
"""
    done = fresh.run(code)
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize("on_input", [False, True])
def test_a_hook_gets_time_first_also_in_a_stream_without_it(on_input):
    seen, net = [], nn.Sequential(LIF(decay=0.0), nn.Linear(4, 5), LIF())

    def hook(layer, neuron, x, continues):
        seen.append((layer, tuple(x.shape), continues))
        return 2 - x if on_input else 1 - x

    stream = Stream(net, time_first=False)
    with neuron_hooks(net, hook, on_input):
        found = [stream(X[0]), stream(X[1])]
    continues = not on_input
    assert seen[:2] == [("0", (1, 2, 4), False), ("2", (1, 2, 5), False)]
    assert seen[2:] == [("0", (1, 2, 4), continues), ("2", (1, 2, 5), continues)]
    spikes = net[0](2 - X[:2]) if on_input else 1 - net[0](X[:2])
    current = net[1](spikes)
    assert torch.equal(torch.stack(found), net[2](2 - current) if on_input else 1 - net[2](current))


class Calls(nn.Module):
    """Calls itself, and notes which call it is part of."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x, is_inner=False):
        self.part()
        return x if is_inner else self(x, is_inner=True)

    def part(self):
        self.seen.append(call_of(self))


def test_a_call_of_a_network_is_told_from_others():
    net = Calls()
    net(X), net(X), net.part()
    first, second = net.seen[0], net.seen[2]
    assert first is not None and second is not None and first is not second
    assert net.seen[1] is first and net.seen[3] is second and net.seen[4] is None

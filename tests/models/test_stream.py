"""Networks that are fed one step at a time."""

import copy
import dataclasses
import io
import threading
import types
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint as torch_checkpoint

import models
from models import (
    IF,
    LIF,
    NoisyLIF,
    ParametricLIF,
    SpikingNeuron,
    Stream,
    build_model,
    build_neuron,
    checkpoint,
    mean_field,
    noise_generator,
    noiseless,
    plain,
)
from models.layers import over_time


class TwoStates(SpikingNeuron):
    """A user's neuron whose state is a tuple: the current is filtered before it is integrated."""

    is_noisy = False

    def __init__(self):
        super().__init__(1.0, 0.5, "zero", False, False)

    def step(self, x_t, state=None):
        current, u = (torch.zeros_like(x_t), torch.zeros_like(x_t)) if state is None else state
        current = 0.7 * current + x_t
        u = self.decay * u + current
        spike = (u > self.threshold).to(x_t.dtype)
        return spike, (current, u * (1 - spike))


class ByRun(NoisyLIF):
    def run(self, x, state=None, keep_state=True):
        return super().run(torch.tanh(x), state, keep_state)


class Pixels(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution, self.neuron = nn.Conv2d(3, 4, 3), NoisyLIF(reset="subtract")

    def forward(self, x):
        return self.neuron(over_time(self.convolution, x)).flatten(2)


def layers(*neurons):
    """Linear layers, each with a neuron behind it."""
    modules = []
    for neuron in neurons:
        modules += [nn.Linear(6, 6), neuron]
        nn.init.uniform_(modules[-2].weight, -0.4, 0.8)  # some neurons fire, some do not
    return nn.Sequential(*modules)


NETWORKS = {
    "neurons": (lambda: layers(LIF(), NoisyLIF(), IF(reset="subtract"), ParametricLIF(), LIF(reset="none")), (6,)),
    "one neuron": (lambda: NoisyLIF(), (6,)),
    "of one's own": (lambda: layers(TwoStates(), ByRun()), (6,)),
    "pixels": (Pixels, (3, 9, 8)),
    "plain": (lambda: plain(layers(LIF(), NoisyLIF())), (6,)),
    "toynet": (
        lambda: build_model("toynet", neuron=build_neuron("NILIF"), in_shape=(2, 3, 3), num_classes=4),
        (2, 3, 3),
    ),
}


@pytest.fixture(params=list(NETWORKS))
def case(request):
    make, shape = NETWORKS[request.param]
    torch.manual_seed(1)
    return make().eval(), 3 * torch.rand(5, 4, *shape)


@pytest.mark.parametrize("block", [noiseless, mean_field])
def test_step_by_step_equals_the_whole_sequence(case, block):
    net, x = case
    stream = Stream(net)
    with block(net):
        expected = net(x)
        steps = [stream(x_t) for x_t in x]
        torch.testing.assert_close(
            torch.stack(steps), expected
        )  # a matrix product may round otherwise in a larger batch
        assert expected.unique().numel() > 1
        stream.reset()
        assert torch.equal(stream(x[0]), steps[0])
        assert not torch.equal(stream(x[0]), steps[1]) or len(x.shape) == 3


@pytest.mark.parametrize("name", [name for name in models.registry.MODELS if name != "toynet"])
def test_networks_of_the_registry(name):
    torch.manual_seed(0)
    net = build_model(name, neuron=build_neuron("NILIF"), in_shape=(2, 8, 8), num_classes=3, width=0.05)
    x = 3 * torch.rand(4, 3, 2, 8, 8)
    net(x)  # statistics of its batch normalisation
    net.eval()
    frames, images = Stream(net), Stream(net)
    with noiseless(net):
        torch.testing.assert_close(torch.stack([frames(x_t) for x_t in x]), net(x))
        torch.testing.assert_close(torch.stack([images(x[0]) for _ in x]), net(x[0], timesteps=4))


def test_noise_is_that_of_the_whole_sequence_for_one_layer():
    net, x = nn.Sequential(nn.Linear(6, 6), NoisyLIF()), 2 * torch.rand(5, 4, 6)
    nn.init.constant_(net[0].weight, 1 / 6)  # currents around the threshold, which may fire or not
    stream = Stream(net)
    with noise_generator(torch.Generator().manual_seed(3)):
        expected = net(x)
    with noise_generator(torch.Generator().manual_seed(3)):
        assert torch.equal(torch.stack([stream(x_t) for x_t in x]), expected)
    stream.reset()
    assert not torch.equal(torch.stack([stream(x_t) for x_t in x]), expected)


def test_without_a_dimension_of_time():
    torch.manual_seed(0)
    convolution, linear = nn.Conv2d(3, 4, 3), nn.Linear(4 * 7 * 6, 5)
    nn.init.uniform_(linear.weight, -0.1, 0.2)
    net = nn.Sequential(convolution, LIF(), nn.Flatten(), linear, TwoStates())
    x = 3 * torch.rand(5, 4, 3, 9, 8)
    expected = net[4](linear(net[1](over_time(convolution, x)).flatten(2)))
    stream = Stream(net, time_first=False)
    assert torch.equal(torch.stack([stream(x_t) for x_t in x]), expected) and 0 < expected.mean() < 1


def test_the_state_is_a_tuple_that_can_be_saved_and_set():
    torch.manual_seed(0)
    net, x = layers(LIF(), TwoStates()), 3 * torch.rand(6, 4, 6)
    stream, file = Stream(net), io.BytesIO()
    assert stream.state == (None, None)
    expected = net(x)
    for x_t in x[:3]:
        stream(x_t)
    torch.save(stream.state, file)
    file.seek(0)
    other = Stream(net)
    other.state = torch.load(file)
    assert torch.equal(other.state[1][0], stream.state[1][0])
    assert torch.equal(torch.stack([other(x_t) for x_t in x[3:]]), expected[3:])
    for wrong in ((None,), [None, None], None):
        with pytest.raises(ValueError, match="tuple of the states of 2 neurons"):
            other.state = wrong


def test_the_network_keeps_nothing_and_may_be_in_several_streams():
    torch.manual_seed(0)
    net, x, y = layers(LIF(), NoisyLIF()), 3 * torch.rand(4, 2, 6), 3 * torch.rand(4, 5, 6)
    before = copy.deepcopy(list(net.state_dict().items()))
    first, second = Stream(net), Stream(net)
    with noiseless(net):
        found = [(first(x_t), second(y_t), net(x)) for x_t, y_t in zip(x, y)]
        assert all(torch.equal(whole, net(x)) for _, _, whole in found)
        assert torch.equal(torch.stack([step for step, _, _ in found]), net(x))
        assert torch.equal(torch.stack([step for _, step, _ in found]), net(y))
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in before)


def test_a_copy_goes_on_by_itself():
    torch.manual_seed(0)
    net, x = layers(LIF(), LIF()), 3 * torch.rand(6, 4, 6)
    stream, expected = Stream(net), net(x)
    with torch.no_grad():  # PyTorch copies no tensor that has a graph
        for x_t in x[:3]:
            stream(x_t)
    copied = copy.deepcopy(stream)
    stream(x[0])
    with torch.no_grad():
        net[0].weight.zero_()
    assert torch.equal(torch.stack([copied(x_t) for x_t in x[3:]]), expected[3:])


def test_threads_with_streams_of_one_network():
    torch.manual_seed(0)
    net = layers(LIF(), ParametricLIF(), IF())
    inputs = [3 * torch.rand(30, 4, 6) for _ in range(4)]
    found = {}

    def feed(number):
        stream = Stream(net)
        found[number] = torch.stack([stream(x_t) for x_t in inputs[number]])

    threads = [threading.Thread(target=feed, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[number], net(x)) for number, x in enumerate(inputs))


def test_gradients_flow_through_the_state_until_it_is_detached():
    torch.manual_seed(0)
    net, x = layers(LIF(), NoisyLIF()), 3 * torch.rand(5, 4, 6)
    with mean_field(net):
        expected = torch.autograd.grad(net(x).square().sum(), list(net.parameters()))
        stream = Stream(net)
        total = sum(stream(x_t).square().sum() for x_t in x)
        torch.testing.assert_close(torch.autograd.grad(total, list(net.parameters())), expected)
        x[0].requires_grad_()
        leaf = x[0].clone().requires_grad_()
        stream.reset()
        stream(leaf)
        stream.detach()
        assert torch.autograd.grad(stream(x[1].detach()).sum(), leaf, allow_unused=True) == (None,)


@dataclasses.dataclass(frozen=True)
class Potential:
    u: Any
    steps: int = 0


class Named(NamedTuple):
    u: torch.Tensor
    name: str


class StateOf(LIF):
    """Its state is of a type of its own."""

    def __init__(self, wrap, unwrap):
        super().__init__()
        self.wrap, self.unwrap = wrap, unwrap

    def step(self, x_t, state=None):
        spikes, u = super().step(x_t, None if state is None else self.unwrap(state))
        return spikes, self.wrap(u)


STATES = {
    "dataclass": (Potential, lambda state: state.u),
    "dataclass of tuples": (lambda u: [Potential((None, u), 3)], lambda state: state[0].u[1]),
    "named tuple": (lambda u: Named(u, "u"), lambda state: state.u),
    "dictionary": (lambda u: {"u": u, "name": "u", "dtype": u.dtype}, lambda state: state["u"]),
}


@pytest.mark.parametrize(("wrap", "unwrap"), STATES.values(), ids=STATES)
def test_states_of_any_type_are_detached(wrap, unwrap):
    torch.manual_seed(0)
    net, x = layers(StateOf(wrap, unwrap)), 3 * torch.rand(5, 4, 6)
    expected, stream = net(x), Stream(net)
    for x_t, spikes in zip(x, expected):
        assert torch.equal(stream(x_t), spikes)
        before = stream.state[0]
        stream.detach()
        assert unwrap(before).requires_grad and not unwrap(stream.state[0]).requires_grad
        assert type(stream.state[0]) is type(before)


def test_a_state_that_cannot_be_detached_is_refused():
    stream = Stream(layers(StateOf(lambda u: types.SimpleNamespace(u=u), lambda state: state.u)))
    stream(torch.rand(2, 6))
    with pytest.raises(TypeError, match="does not look into SimpleNamespace"):
        stream.detach()


CHANGES = {
    "another one in front": lambda net: net.insert(0, LIF()),
    "one less": lambda net: net.__delitem__(1),
    "another one in its place": lambda net: net.__setitem__(1, NoisyLIF()),
    "another order": lambda net: net.append(net.pop(1)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_other_neurons_than_before_are_refused_until_the_reset(change):
    torch.manual_seed(0)
    net, x = layers(LIF(), LIF()), 3 * torch.rand(3, 4, 6)
    stream, resting = Stream(net), Stream(net)
    stream(x[0])
    change(net)
    with pytest.raises(RuntimeError, match="other neurons than at the step before: call reset"):
        stream(x[1])
    stream.reset()
    with noiseless(net):
        for fresh in (stream, resting):
            assert torch.equal(torch.stack([fresh(x_t) for x_t in x]), net(x))


def test_what_fails_in_the_middle_leaves_the_state():
    class Faulty(nn.Module):
        fails = False

        def forward(self, x):
            if self.fails:
                raise KeyError("a bug")
            return x

    torch.manual_seed(0)
    fault = Faulty()
    net, x = nn.Sequential(layers(LIF()), fault, layers(LIF())), 3 * torch.rand(3, 4, 6)
    stream, expected = Stream(net), net(x)
    stream(x[0])
    fault.fails = True
    with pytest.raises(KeyError):
        stream(x[1])
    fault.fails = False
    assert torch.equal(torch.stack([stream(x_t) for x_t in x[1:]]), expected[1:])


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.neuron = LIF()

    def forward(self, x):
        return self.neuron(self.neuron(x))


class ByHand(nn.Module):
    """Calls its neuron by `run`, from rest at each call."""

    def __init__(self):
        super().__init__()
        self.neuron = LIF()

    def forward(self, x):
        return self.neuron.run(x)[0]


class Foreign(nn.Module):
    emits_spikes = True

    def forward(self, x):
        return (x.cumsum(0) > 1).to(x.dtype)


class Longer(nn.Module):
    def __init__(self):
        super().__init__()
        self.neuron = LIF()

    def forward(self, x):
        return self.neuron(torch.cat([x, x]))


class Integrator(SpikingNeuron):
    """A user's neuron with dynamics of its own, in plain PyTorch; it hands back no state."""

    is_noisy = False

    def __init__(self):
        super().__init__(1.0, 0.5, "zero", False, False)

    def run(self, x, state=None, keep_state=True):
        return (x.cumsum(0) > 1).to(x.dtype), None


class Average(nn.Module):
    def __init__(self):
        super().__init__()
        self.neuron = LIF()

    def forward(self, x):
        return self.neuron(x).mean(0)


class Checkpointed(nn.Module):
    def __init__(self, function, **options):
        super().__init__()
        self.inside, self.function, self.options = layers(LIF()), function, options

    def forward(self, x):
        return self.function(self.inside, x, **self.options)


class Cell(nn.Module):
    """A recurrent layer made of a cell."""

    def __init__(self):
        super().__init__()
        self.cell, self.neuron = nn.GRUCell(6, 6), LIF()

    def forward(self, x):
        state, states = None, []
        for x_t in x:
            state = self.cell(x_t, state)
            states.append(state)
        return self.neuron(torch.stack(states))


def encoder(**options):
    return nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, **options)


class Turned(nn.Module):
    """The batch first inside."""

    def __init__(self, inside):
        super().__init__()
        self.inside = inside

    def forward(self, x):
        return self.inside(x.transpose(0, 1)).transpose(0, 1)


class Tokens(nn.Module):
    """Attention over tokens, x [T, B, N, C], within each step."""

    def __init__(self, batch_first):
        super().__init__()
        self.attention, self.neuron = encoder(batch_first=batch_first), LIF(threshold=0.1)

    def forward(self, x):
        tokens = x.flatten(0, -3)
        if not self.attention.self_attn.batch_first:
            return self.neuron(self.attention(tokens.transpose(0, 1)).transpose(0, 1).unflatten(0, x.shape[:-2]))
        return self.neuron(self.attention(tokens).unflatten(0, x.shape[:-2]))


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("time_first", [False, True])
def test_attention_over_tokens_is_right(batch_first, time_first):
    torch.manual_seed(0)
    net, x = Tokens(batch_first).eval(), torch.rand(4, 2, 3, 6)
    expected, stream = net(x), Stream(net, time_first)
    with torch.no_grad():
        assert torch.equal(torch.stack([stream(x_t) for x_t in x]), expected) and 0 < expected.mean() < 1
    assert not any(module._forward_pre_hooks for module in net.modules())


def batch_norm(**options):
    return nn.Sequential(nn.Flatten(0, 1), nn.BatchNorm1d(6, **options), nn.Unflatten(0, (1, -1)), LIF())


def compiled_in_place():
    net = layers(LIF())
    net.compile(backend="eager")
    return net


REFUSED = {
    "a neuron twice": (Twice, "called twice in a step"),
    "run by hand": (ByHand, "layer 'neuron' .LIF. was not called"),
    "of another kind": (Foreign, "layer '' .Foreign. was not called"),
    "more steps": (Longer, "gets 2 steps at once"),
    "no state": (Integrator, "gave no state"),
    "average over time": (Average, r"must be \[1, 2, ...\]"),
    "batch norm in training": (batch_norm, "call net.eval"),
    "recurrent": (lambda: nn.Sequential(LIF(), nn.LSTM(6, 6)), "does not keep"),
    "recurrent cell": (Cell, "layer 'cell' .GRUCell. has a state over time"),
    "attention over time": (lambda: nn.Sequential(LIF(), encoder()), "attends over time"),
    "attention over time second": (
        lambda: nn.Sequential(LIF(), Turned(encoder(batch_first=True))),
        "attends over time",
    ),
    "compiled": (lambda: torch.compile(layers(LIF())), "is compiled"),
    "compiled inside": (lambda: nn.Sequential(torch.compile(layers(LIF()))), "is compiled"),
    "compiled in place": (compiled_in_place, "is compiled"),
    "checkpoint": (lambda: Checkpointed(torch_checkpoint, use_reentrant=False), "activation checkpointing"),
    "reentrant checkpoint": (lambda: Checkpointed(torch_checkpoint, use_reentrant=True), "activation checkpointing"),
    "checkpoint of this package": (lambda: Checkpointed(checkpoint), "activation checkpointing"),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_right_is_refused(make, message):
    stream = Stream(make())
    for _ in range(2):
        with pytest.raises((RuntimeError, ValueError), match=message):
            stream(torch.rand(2, 6))
    assert stream.state == (None,)


def test_batch_norm_without_statistics_is_refused_in_evaluation_too():
    with pytest.raises(RuntimeError, match="it needs running statistics"):
        Stream(batch_norm(track_running_stats=False).eval())(torch.rand(2, 6))


def test_a_network_without_neurons_is_refused():
    with pytest.raises(ValueError, match="no spiking neuron"):
        Stream(nn.Linear(3, 3))


@pytest.mark.parametrize("neuron", [LIF, TwoStates])
def test_another_batch_size_is_refused_until_the_reset(neuron):
    stream = Stream(layers(neuron()))
    stream(torch.rand(1, 6))
    with pytest.raises(ValueError, match=r"gets \[3, 6\], but \[1, 6\] at the step before: call reset"):
        stream(torch.rand(3, 6))
    stream.reset()
    assert stream(torch.rand(3, 6)).shape == (3, 6)


def test_compiled_code_and_streams_do_not_disturb_each_other():
    torch.manual_seed(0)
    net, x = layers(LIF(), LIF()), 3 * torch.rand(4, 2, 6)
    stream, compiled = Stream(net), torch.compile(net, backend="eager")
    with pytest.raises(RuntimeError, match="in a compiled function"):
        torch.compile(lambda x_t: 2 * stream(x_t), backend="eager")(x[0])
    assert stream.state == (None, None)
    stream(x[0])
    assert torch.equal(compiled(x), net(x))


def test_under_torch_func_it_is_refused():
    stream = Stream(LIF())
    with pytest.raises(RuntimeError, match=r"neuron\.run"):
        torch.func.vmap(stream)(torch.rand(3, 2, 6))


def test_watchers_see_the_steps():
    from crits.watching import neuron_hooks

    net, seen = layers(LIF(), LIF()), []
    stream = Stream(net)
    with neuron_hooks(net, lambda name, neuron, spikes, continues: seen.append((name, tuple(spikes.shape)))):
        stream(torch.rand(2, 6))
    assert seen == [("1", (1, 2, 6)), ("3", (1, 2, 6))]

"""Synaptic, recurrent and adaptive neurons, and noise for those without leak or with a learnt one."""

import copy
import math

import pytest
import torch
from torch import nn

from crits import watching
from models import (
    IF,
    LIF,
    AdaptiveLIF,
    Cauchy,
    Gaussian,
    Logistic,
    NoisyIF,
    NoisyLIF,
    NoisyParametricLIF,
    ParametricLIF,
    Recurrent,
    Stream,
    Synaptic,
    Triangular,
    Uniform,
    mean_field,
    noise_generator,
    noiseless,
    plain,
)
from models.composed import exponential_filter
from tests.conftest import first_are_fast

LAWS = [Gaussian(0.3), Logistic(0.2), Triangular(0.5), Uniform(0.5), Cauchy(0.2)]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def grid(*shape, dtype=torch.float32):
    """Multiples of 1/16: all potentials are exact."""
    return (torch.randint(-16, 40, shape, generator=seeded(1)) / 16).to(dtype)


def recurrent(neuron, dtype=torch.float32):
    layer = nn.Linear(3, 3).to(dtype)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.0, 0.5, -1.0], [0.25, 0.0, 0.5], [-0.5, 0.75, 0.0]]))
        layer.bias.fill_(0.125)
    return Recurrent(neuron, layer)


WHOLES = {
    "synaptic": lambda neuron: Synaptic(0.5, neuron),
    "synaptic, by channel": lambda neuron: Synaptic(nn.Parameter(torch.tensor([0.25, 0.5, 0.75])), neuron),
    "recurrent": recurrent,
    "adaptive": lambda neuron: AdaptiveLIF(neuron, beta=0.5, rho=0.75),
    "recurrent and synaptic": lambda neuron: recurrent(Synaptic(0.5, neuron)),
    "synaptic and adaptive": lambda neuron: Synaptic(0.5, AdaptiveLIF(neuron, 0.5, 0.75)),
}
each_whole = pytest.mark.parametrize("around", WHOLES.values(), ids=WHOLES)


@pytest.mark.parametrize("alpha", [0.0, 0.75, 1.0, torch.tensor([0.25, 0.5, 0.75])], ids=str)
@pytest.mark.parametrize("backend", ["auto", "eager", "plain", "traceable"])
def test_a_filter_is_that_of_a_loop(alpha, backend):
    x, start = grid(5, 2, 3).requires_grad_(), grid(2, 3)
    current, expected = start, []
    for x_t in x.detach():
        current = alpha * current + x_t
        expected.append(current)
    assert torch.equal(exponential_filter(x, alpha, start, backend).detach(), torch.stack(expected))
    assert exponential_filter(x.bfloat16(), alpha, start).dtype == torch.float32


@pytest.mark.parametrize("backend", ["auto", "eager", "plain"])
@pytest.mark.parametrize("shape", first_are_fast([(3, 1, 3), (5, 2, 3), (4, 2, 3, 2), (1, 1, 3)]))
def test_gradients_of_a_filter(shape, backend):
    x, start = (grid(*size, dtype=torch.float64).requires_grad_() for size in (shape, shape[1:]))
    for alpha in (torch.tensor([0.3, 0.6, 0.9]), torch.tensor([0.7]), torch.tensor(0.7)):
        alpha = alpha.double().requires_grad_()
        inputs = (x, alpha, start)
        assert torch.autograd.gradcheck(lambda *given: exponential_filter(*given, backend), inputs)
        assert torch.autograd.gradgradcheck(lambda *given: exponential_filter(*given, backend), inputs)


def test_synaptic_is_a_neuron_behind_a_filter():
    x = grid(6, 4, 3)
    for decay_input in (False, True):
        neuron = LIF(decay=0.75, decay_input=decay_input)
        expected = neuron(exponential_filter(x, 0.5))
        assert torch.equal(Synaptic(0.5, neuron)(x), expected) and expected.any()


def test_recurrent_spikes_come_back_one_step_later():
    x = grid(6, 4, 3)
    whole = recurrent(LIF())
    spike, u, expected = torch.zeros(4, 3), torch.zeros(4, 3), []
    for x_t in x:
        u = 0.5 * u + x_t + spike @ whole.linear.weight.T + whole.linear.bias
        spike = (u > 1).float()
        u = u * (1 - spike)
        expected.append(spike)
    assert torch.equal(whole(x), torch.stack(expected))
    whole(x).sum().backward()
    assert whole.linear.weight.grad.any() and whole.linear.bias.grad.any()


@pytest.mark.parametrize("reset", ["zero", "subtract", "by", "none", "scaled"])
def test_the_threshold_adapts(reset):
    settings = dict(reset="subtract", reset_by=0.5) if reset == "by" else dict(reset=reset)
    settings = dict(decay_input=True) if reset == "scaled" else settings
    x = 2 * grid(8, 4, 3)
    u, a, expected = torch.zeros(4, 3), torch.zeros(4, 3), []
    for x_t in x:
        u = 0.5 * u + (0.5 * x_t if reset == "scaled" else x_t)
        threshold = 1 + 0.5 * a
        spike = (u > threshold).float()
        off = {"zero": u, "scaled": u, "subtract": threshold, "by": 0.5, "none": 0.0}[reset]
        u, a = u - spike * off, 0.75 * a + 0.25 * spike
        expected.append(spike)
    neuron = AdaptiveLIF(LIF(**settings), beta=0.5, rho=0.75)
    assert torch.equal(neuron(x), torch.stack(expected))
    assert neuron(x).mean() < LIF(**settings)(x).mean()


def test_the_default_adaptation_is_that_of_the_paper():
    neuron = AdaptiveLIF()
    assert neuron.beta == 1.8 and neuron.rho == math.exp(-1 / 700) and neuron.neuron.reset == "subtract"


@each_whole
@pytest.mark.parametrize("law", LAWS, ids=str)
def test_with_noise(around, law):
    """Streamed steps draw what the whole sequence draws where it is run step by step; the gradient is that of noise."""
    whole, x = around(NoisyLIF(law)), grid(6, 50, 3).requires_grad_()
    assert whole.is_noisy and whole.gradient_law == law
    with noise_generator(seeded(1)):
        spikes, state, u = whole.run(x, potentials=True)
    with noise_generator(seeded(1)):
        head, middle = whole.run(x[:2])
        tail, end = whole.run(x[2:], middle)
    if not isinstance(whole, Synaptic) or not isinstance(whole.neuron, AdaptiveLIF):
        assert torch.equal(torch.cat([head, tail]), spikes)
    assert 0 < spikes.mean() < 1 and u.shape == x.shape
    spikes.sum().backward()
    assert x.grad.isfinite().all() and x.grad.any()
    with noiseless(whole):
        assert not whole.is_noisy and torch.equal(whole(x), around(LIF())(x))
    with mean_field(whole):
        probabilities = whole(x)
    assert whole.is_noisy and ((probabilities > 0) & (probabilities < 1)).any()
    torch.testing.assert_close(whole.as_mean_field()(x), probabilities)
    assert whole.is_noisy


@each_whole
def test_gradients_of_the_mean_field(around):
    whole = around(NoisyLIF(Logistic(0.3), placement="escape")).double()
    x = grid(4, 2, 3, dtype=torch.float64).requires_grad_()
    parameters = list(whole.parameters())
    with mean_field(whole):
        assert torch.autograd.gradcheck(lambda x, *_: whole.run(x, potentials=True)[::2], (x, *parameters), atol=1e-6)


@each_whole
@pytest.mark.parametrize("make", first_are_fast([NoisyLIF, LIF]))
def test_seen_as_one_neuron(around, make):
    """By monitors and streams, as state dictionary and copy, and without noise in other programs."""
    net, x = nn.Sequential(around(make())), grid(5, 4, 3)
    seen = []
    with noiseless(net), watching.neuron_hooks(net, lambda *call: seen.append(call[0])):
        expected = net(x)
    assert seen == ["0"]
    stream = Stream(net)
    with noiseless(net):
        assert torch.equal(torch.stack([stream(x_t) for x_t in x]), expected)
        twin = copy.deepcopy(net)
    other = nn.Sequential(around(make()))
    other.load_state_dict(net.state_dict())
    for copied in (twin, other):
        with noiseless(copied):
            assert torch.equal(copied(x), expected)
    assert torch.equal(plain(net)(x), expected)
    assert torch.equal(torch.export.export(plain(net), (x,)).module()(x), expected)


@each_whole
def test_the_neuron_inside_can_be_used_elsewhere_too(around):
    """By itself, in a second whole, and as a copy: it is a neuron like any other there."""
    part, x = LIF(), grid(5, 4, 3)
    whole = around(part)
    expected = {neuron: neuron(x) for neuron in (whole, part)}
    for layers in ((whole, part), (part, whole), (whole, copy.deepcopy(part)), (around(part), whole)):
        net = nn.Sequential(*layers)
        stream = Stream(net)
        assert torch.equal(torch.stack([stream(x_t) for x_t in x]), net(x))
        assert [name for name, _ in watching.spiking_neurons(net)] == ["0", "1"]
    assert all(torch.equal(neuron(x), spikes) for neuron, spikes in expected.items())


def test_batches_of_gradients():
    x, start = grid(4, 2, 3).requires_grad_(), grid(2, 3).requires_grad_()
    alpha = torch.tensor([0.3, 0.6, 0.9], requires_grad=True)
    current = exponential_filter(x, alpha, start)
    weights = torch.randn(5, *current.shape, generator=seeded(1))
    given = (x, alpha, start)
    together = torch.autograd.grad(current, given, weights, is_grads_batched=True, retain_graph=True)
    apart = [torch.autograd.grad(current, given, weight, retain_graph=True) for weight in weights]
    for ours, theirs in zip(together, zip(*apart)):
        torch.testing.assert_close(ours, torch.stack(theirs))


def test_exported_with_a_free_length():
    x = grid(5, 4, 3)
    net = nn.Sequential(Synaptic(0.5, LIF(reset="none")))
    free = torch.export.export(plain(net), (x,), dynamic_shapes=({0: torch.export.Dim("T", min=2)},)).module()
    for some in (x, x[:3], torch.cat([x, x])):
        assert torch.equal(free(some), net(some))


@each_whole
def test_the_dtype_of_spikes_is_that_of_the_input(around):
    whole, x = around(LIF()), grid(4, 2, 3)
    assert torch.equal(whole.bfloat16()(x.bfloat16()), around(LIF()).bfloat16()(x.bfloat16()))
    for dtype in (torch.bfloat16, torch.float32):
        assert whole(x.to(dtype)).dtype == whole(x[:0].to(dtype)).dtype == dtype


@each_whole
def test_without_steps(around):
    whole = around(LIF())
    spikes, state = whole.run(torch.zeros(0, 2, 3))
    assert spikes.shape == (0, 2, 3)
    assert torch.equal(whole.run(torch.ones(2, 2, 3), state)[0], whole(torch.ones(2, 2, 3)))


def test_what_cannot_be_right_is_an_error():
    with pytest.raises(TypeError, match="expected a spiking neuron, got ReLU"):
        Recurrent(nn.ReLU(), nn.Linear(3, 3))
    with pytest.raises(TypeError, match="expected a spiking neuron, got <class 'models.*NoisyLIF'>"):
        Recurrent(NoisyLIF, nn.Linear(3, 3))
    assert NoisyLIF.emits_spikes
    for setting in ("noise", "threshold", "reset", "scale", "v_leak"):
        with pytest.raises(AttributeError, match=f"{setting} is a setting of the neuron inside this Synaptic: set it"):
            setattr(Synaptic(0.5, NoisyLIF()), setting, 1.0)
    for whole, wrong in ((Synaptic(0.5, LIF()), torch.zeros(2, 3)), (AdaptiveLIF(), (torch.zeros(1, 3), None))):
        with pytest.raises(ValueError, match=r"state must be"):
            whole.run(torch.rand(2, 2, 3), wrong)
    learnt = AdaptiveLIF(rho=nn.Parameter(torch.tensor([0.5])))
    with torch.no_grad():
        learnt.rho.fill_(1.7)
    with pytest.raises(ValueError, match=r"rho must be in \[0, 1\], got 1.7"):
        learnt(torch.rand(2, 2, 3))
    with pytest.raises(TypeError, match="has no threshold of its own"):
        AdaptiveLIF(Synaptic(0.5, LIF()))
    with pytest.raises(ValueError, match=r"alpha must be in \[0, 1\], got 1.5"):
        Synaptic(1.5, LIF())
    with pytest.raises(ValueError, match=r"rho must be in \[0, 1\], got -0.5"):
        AdaptiveLIF(rho=-0.5)
    with pytest.raises(ValueError, match="beta must be finite, got inf"):
        AdaptiveLIF(beta=math.inf)
    with pytest.raises(ValueError, match=r"recurrent layer gives currents \[2, 4\] for inputs \[2, 3\]"):
        Recurrent(LIF(), nn.Linear(3, 4))(torch.rand(2, 2, 3))
    for whole in (Synaptic(0.5, LIF()), AdaptiveLIF(), Recurrent(LIF(), nn.Linear(3, 3))):
        with pytest.raises(ValueError, match=r"\[T, B, ...\]"):
            whole(torch.rand(3))
    saved = Synaptic(0.5, LIF()).state_dict()
    with pytest.warns(UserWarning, match="alpha=0.5 were loaded into neurons with alpha=0.25"):
        Synaptic(0.25, LIF()).load_state_dict(saved)


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_noise_without_leak_and_with_a_learnt_one(law):
    x = grid(5, 40, 3)
    for noisy, same, without in (
        (NoisyIF(law), NoisyLIF(law, decay=1.0), IF()),
        (NoisyParametricLIF(law, decay=0.75), NoisyLIF(law, decay=0.75), ParametricLIF(decay=0.75)),
    ):
        with noise_generator(seeded(1)):
            spikes = noisy(x)
        with noise_generator(seeded(1)):
            assert torch.equal(spikes, same(x)) and noisy.is_noisy
        with noiseless(noisy):
            assert torch.equal(noisy(x), without(x))
    noisy(x).sum().backward()
    assert noisy.decay_logit.grad.any()
    noisy.decay_logit.data.fill_(3.0)
    noisy.reset_parameters()
    torch.testing.assert_close(noisy.decay.item(), 0.75)
    with pytest.raises(ValueError, match="NoisyParametricLIF learns the logit of its decay"):
        NoisyParametricLIF(decay=nn.Parameter(torch.tensor(0.5)))

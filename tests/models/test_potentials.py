"""Membrane potentials over time: what the threshold was compared with, in every kernel, and their gradient."""

import pytest
import torch
from torch import nn

from models import IF, LIF, Gaussian, Logistic, NoisyLIF, ParametricLIF, mean_field, noise_generator
from models.functional import noisy_lif
from tests.conftest import first_are_fast

BACKENDS = ("eager", "fused", "plain", "traceable")
SETTINGS = {
    "both": dict(),
    "escape": dict(placement="escape", reset="subtract"),
    "membrane": dict(placement="membrane", decay_input=True),
    "no reset": dict(reset="none"),
    "detached": dict(detach_reset=True, threshold=0.7),
    "noiseless": dict(mode="noiseless", reset="subtract", decay_input=True),
    "mean field": dict(mode="mean_field"),
    "surrogate": dict(surrogate=Logistic(0.4)),
}


def after_reset(u, fired, reset, threshold):
    return {"zero": u * (1 - fired), "subtract": u - threshold * fired, "none": u}[reset]


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def layer():
    """x, state, decay and scale, all of which have a gradient."""
    x = 1.6 * torch.rand(5, 3, 4, generator=seeded(1), dtype=torch.float64)
    state = torch.rand(3, 4, generator=seeded(2), dtype=torch.float64)
    decay, scale = (torch.tensor(value, dtype=torch.float64) for value in (0.7, 0.4))
    return [tensor.requires_grad_() for tensor in (x, state, decay, scale)]


def run(layer, backend, scale=True, **settings):
    """Spikes, last potential and potentials of one draw of the noise."""
    x, state, decay, learnt = layer
    settings = {"threshold": 0.9, **settings}
    learnt = learnt if scale and "surrogate" not in settings else None
    with noise_generator(seeded(3)):
        return noisy_lif(
            x, Gaussian(0.3, 0.1), decay=decay, state=state, scale=learnt, backend=backend, potentials=True, **settings
        )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_they_obey_the_recursion(layer, backend, settings):
    spikes, last, u = run(layer, backend, **settings)
    threshold, reset = settings.get("threshold", 0.9), settings.get("reset", "zero")
    torch.testing.assert_close(after_reset(u[-1], spikes[-1], reset, threshold), last)
    before = torch.stack([layer[1], *(after_reset(*at, reset, threshold) for at in zip(u[:-1], spikes[:-1]))])
    gain = 1 - layer[2] if settings.get("decay_input") else 1
    without_noise = layer[2] * before + gain * layer[0]
    noisy = "mode" not in settings and settings.get("placement") != "escape"
    assert torch.allclose(u, without_noise, atol=1e-9) is not noisy
    if "mode" not in settings and settings.get("placement") == "membrane" or settings.get("mode") == "noiseless":
        assert torch.equal(spikes, (u > threshold).double())


@pytest.mark.parametrize("backend", ["eager", "fused", "plain"])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_their_gradient_is_that_of_the_kernel(layer, backend, settings):
    """The last potential comes from the kernel, and follows from the potentials: two ways to one gradient."""
    spikes, last, u = run(layer, backend, **settings)
    fired = spikes[-1].detach() if settings.get("detach_reset") else spikes[-1]
    again = after_reset(u[-1], fired, settings.get("reset", "zero"), settings.get("threshold", 0.9))
    w = torch.randn(3, 4, generator=seeded(4), dtype=torch.float64)
    learnt = [tensor for tensor in layer if tensor is not layer[3] or "surrogate" not in settings]
    expected = torch.autograd.grad(
        (w * last).sum(), learnt, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    found = torch.autograd.grad((w * again).sum(), learnt, allow_unused=True, materialize_grads=True)
    for ours, theirs in zip(found, expected):
        torch.testing.assert_close(ours, theirs)
    assert found[0].abs().sum() > 0


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_the_gradient_at_every_step_is_that_of_plain_pytorch(layer, settings):
    """The eager kernel draws the noise that the plain one draws."""
    w = torch.randn(5, 3, 4, generator=seeded(4), dtype=torch.float64)
    learnt = [tensor for tensor in layer if tensor is not layer[3] or "surrogate" not in settings]
    results = []
    for backend in ("eager", "plain"):
        spikes, _, u = run(layer, backend, **settings)
        loss = (w * u.square()).sum() + (w * spikes).sum()
        grads = torch.autograd.grad(loss, learnt, allow_unused=True, materialize_grads=True)
        results.append((spikes, u, *grads))
    for ours, theirs in zip(*results):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("dtype", first_are_fast([torch.float32, torch.bfloat16, torch.float16, torch.float64], 2))
@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("make", [LIF, NoisyLIF, ParametricLIF, lambda: NoisyLIF(learnable_scale=True)])
def test_spikes_and_state_are_the_same_with_them(make, dtype, learns):
    neuron, x = make(), (2 * torch.rand(4, 3, 6, generator=seeded(0))).to(dtype).requires_grad_(learns)
    with noise_generator(seeded(1)), torch.set_grad_enabled(learns):
        expected = neuron.run(x)
    with noise_generator(seeded(1)), torch.set_grad_enabled(learns):
        spikes, state, u = neuron.run(x, potentials=True)
    assert len(expected) == 2 and torch.equal(spikes, expected[0]) and torch.equal(state, expected[1])
    assert u.shape == x.shape and u.dtype == state.dtype and u.requires_grad == learns
    assert neuron.run(x, None, False, True)[1] is None


@pytest.mark.parametrize("shape", [(0, 3, 4), (3, 0, 4)])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("learns", [False, True])
def test_empty_sequences(shape, backend, learns):
    x = torch.rand(shape).requires_grad_(learns)
    assert noisy_lif(x, Gaussian(0.3), backend=backend, potentials=True)[2].shape == shape


def test_channels_last():
    x = torch.rand(2 * 3, 4, 5, 6).to(memory_format=torch.channels_last).unflatten(0, (2, 3)).requires_grad_()
    w = torch.randn(x.shape)
    results = []
    for given in (x, x.contiguous()):
        u = IF(reset="subtract").run(given, potentials=True)[2]
        results.append((u, torch.autograd.grad((w * u).sum(), x)[0]))
    for ours, theirs in zip(*results):
        torch.testing.assert_close(ours, theirs)


def test_compiled():
    torch._dynamo.reset()
    neuron = ParametricLIF()

    def voltage(x):
        spikes, _, u = neuron.run(x, potentials=True)
        return spikes, u

    results = []
    for function in (voltage, torch.compile(voltage, backend="aot_eager", fullgraph=True)):
        x = (2 * torch.rand(4, 3, 6, generator=seeded(0))).requires_grad_()
        spikes, u = function(x)
        results.append((spikes, u, *torch.autograd.grad(u.square().sum() + spikes.sum(), [x, neuron.decay_logit])))
    for ours, theirs in zip(*results):
        torch.testing.assert_close(ours, theirs)
    torch._dynamo.reset()


def test_under_torch_func():
    neuron, x = LIF(), 2 * torch.rand(4, 3, 6, generator=seeded(0))
    expected = neuron.run(x, potentials=True)[2]
    mapped = torch.func.vmap(lambda one: neuron.run(one.unsqueeze(1), potentials=True)[2], in_dims=1)(x)
    torch.testing.assert_close(mapped.squeeze(2), expected.movedim(1, 0))
    x.requires_grad_()
    by_backward = torch.autograd.grad(neuron.run(x, potentials=True)[2].square().sum(), x)[0]
    by_func = torch.func.grad(lambda x: neuron.run(x, potentials=True)[2].square().sum())(x.detach())
    torch.testing.assert_close(by_func, by_backward)


def test_second_derivatives_in_the_mean_field():
    neuron, x = NoisyLIF(), torch.rand(3, 2, 2, dtype=torch.float64, generator=seeded(0)).requires_grad_()
    with mean_field(neuron):
        assert torch.autograd.gradgradcheck(lambda x: neuron.run(x, potentials=True)[2], x)


class Saturating(LIF):
    def run(self, x, state=None, keep_state=True, **options):
        return super().run(torch.tanh(x), state, keep_state, **options)


class Unaware(LIF):
    def run(self, x, state=None, keep_state=True):
        return super().run(torch.tanh(x), state, keep_state)


class ByStep(LIF):
    def step(self, x_t, state=None):
        return super().step(2 * x_t, state)


def test_of_subclasses():
    x = 2 * torch.rand(4, 3, 6)
    assert torch.equal(Saturating().run(x, potentials=True)[2], LIF().run(torch.tanh(x), potentials=True)[2])
    with pytest.raises(TypeError, match="potentials"):
        Unaware().run(x, potentials=True)
    with pytest.raises(TypeError, match="ByStep overrides `step`, which has no potentials"):
        ByStep().run(x, potentials=True)


def test_a_penalty_on_them_is_learnt():
    """Weights whose only loss is of the potentials: no silent zero."""
    net, x = nn.Linear(6, 6), torch.rand(4, 3, 6)
    NoisyLIF().run(net(x), potentials=True)[2].square().mean().backward()
    assert net.weight.grad.abs().sum() > 0

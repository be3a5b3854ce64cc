"""The neuron modules: streaming, statelessness, switches, learnt parameters."""

import copy
import functools
import io
import math
import pickle
import warnings
import weakref
from functools import partial

import pytest
import torch
from scipy import stats
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from models import (
    IF,
    LIF,
    ArgumentError,
    Cauchy,
    Gaussian,
    Logistic,
    NoiseLaw,
    NoisyLIF,
    ParametricLIF,
    SpikingNeuron,
    Triangular,
    Uniform,
    build_neuron,
    functional,
    mean_field,
    noise,
    noise_generator,
    noiseless,
)
from models.functional import firing_probability, noisy_lif
from models.noise import Rescaled
from tests.chance import deviations, likely
from tests.models.test_noise import Laplace as Scaled

MAKERS = {
    "IF": IF,
    "LIF": LIF,
    "LIF-subtract": lambda: LIF(Triangular(0.5), threshold=0.4, decay=0.8, reset="subtract", decay_input=True),
    "PLIF": ParametricLIF,
    "NoisyLIF": NoisyLIF,
    "NoisyLIF-escape": lambda: NoisyLIF(Logistic(0.2), placement="escape", reset="none", detach_reset=True),
    "NoisyLIF-membrane": lambda: NoisyLIF(Uniform(0.5, loc=0.1), placement="membrane", decay=0.9, reset="subtract"),
    "NoisyLIF-learnt": lambda: NoisyLIF(Cauchy(0.2), learnable_scale=True),
}
every_neuron = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())


class Laplace(NoiseLaw):
    """A user's own law at module level, so that it pickles; its scale stays 1, its width is `b`."""

    def __init__(self, b):
        self.b = b

    def cdf(self, x):
        return 0.5 + 0.5 * torch.sign(x) * -torch.expm1(-x.abs() / self.b)

    def pdf(self, x):
        return torch.exp(-x.abs() / self.b) / (2 * self.b)

    def icdf(self, p):
        return -self.b * torch.sign(p - 0.5) * torch.log1p(-2 * (p - 0.5).abs())


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def number(value):
    """A float, be it of a number or of a learnt 0-d tensor."""
    return value.detach().item() if isinstance(value, torch.Tensor) else value


def currents(T=6, B=4, N=5, dtype=torch.float32):
    return torch.rand(T, B, N, generator=seeded(42), dtype=dtype) * 1.6


# ---- streaming


@every_neuron
def test_forward_is_run_from_rest(make):
    neuron, x = make(), currents()
    with noise_generator(seeded(1)):
        spikes = neuron(x)
    with noise_generator(seeded(1)):
        same, state = neuron.run(x)
    assert torch.equal(spikes, same)
    assert state.shape == x.shape[1:] and state.dtype == torch.float32
    with noise_generator(seeded(1)):
        from_zero, _ = neuron.run(x, state=torch.zeros(4, 5))
    assert torch.equal(spikes, from_zero)
    assert 0 < spikes.mean() < 1


@every_neuron
@pytest.mark.parametrize("cuts", [(0, 3, 6), (0, 1, 5, 6), (0, 0, 6)])
def test_running_in_pieces_equals_running_in_one(make, cuts):
    neuron, x = make(), currents()
    with noise_generator(seeded(1)):
        whole, end = neuron.run(x)
    state, pieces = None, []
    with noise_generator(seeded(1)):
        for a, b in zip(cuts, cuts[1:]):
            spikes, state = neuron.run(x[a:b], state)
            pieces.append(spikes)
    assert torch.equal(torch.cat(pieces), whole) and torch.equal(state, end)


@every_neuron
def test_stepping_equals_running(make):
    neuron, x = make(), currents()
    with noise_generator(seeded(1)):
        whole, end = neuron.run(x)
    state, steps = None, []
    with noise_generator(seeded(1)):
        for x_t in x:
            spike, state = neuron.step(x_t, state)
            assert spike.shape == x_t.shape and state.shape == x_t.shape
            steps.append(spike)
    assert torch.equal(torch.stack(steps), whole) and torch.equal(state, end)


@every_neuron
def test_gradient_through_steps_equals_gradient_through_run(make):
    gradients = []
    for stepped in (False, True):
        neuron, x = make(), currents(dtype=torch.float64).requires_grad_()
        with noise_generator(seeded(1)):
            if stepped:
                state, steps = None, []
                for x_t in x:
                    spike, state = neuron.step(x_t, state)
                    steps.append(spike)
                spikes = torch.stack(steps)
            else:
                spikes = neuron(x)
        spikes.cumsum(0).sum().backward()
        gradients.append([x.grad, *(p.grad for p in neuron.parameters())])
    for a, b in zip(*gradients):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


# ---- nothing is kept


@every_neuron
def test_two_calls_are_independent_and_start_from_rest(make):
    neuron = make()
    x = torch.full((1, 3, 4), 0.4)  # below threshold: only a state left over could add up
    with noise_generator(seeded(1)):
        first = neuron(x)
    for _ in range(5):
        neuron(torch.full((4, 2, 4), 3.0))  # another shape, too
    with noise_generator(seeded(1)):
        assert torch.equal(neuron(x), first)


@every_neuron
def test_no_tensor_is_kept_between_calls(make):
    neuron = make()
    before = set(vars(neuron))
    neuron(currents().requires_grad_()).sum().backward()
    neuron.run(currents(), torch.zeros(4, 5))
    assert set(vars(neuron)) == before
    for name, value in vars(neuron).items():
        assert not isinstance(value, torch.Tensor), name
    assert not list(neuron.buffers())
    law = neuron.noise if isinstance(neuron, NoisyLIF) else neuron.surrogate
    assert not any(isinstance(value, torch.Tensor) for value in vars(law).values())


@every_neuron
def test_the_graph_is_freed_with_the_output(make):
    neuron, x = make(), currents().requires_grad_()
    spikes, state = neuron.run(x)
    node = weakref.ref(spikes.grad_fn)
    assert node() is not None
    del spikes, state
    assert node() is None


# ---- noiseless and mean field


LAWS = [Gaussian(0.3), Logistic(0.2), Triangular(0.6), Uniform(0.5), Cauchy(0.2), Gaussian(0.3, loc=0.2), Laplace(0.3)]
every_law = pytest.mark.parametrize("law", LAWS, ids=lambda law: f"{law!r}")


@every_law
@pytest.mark.parametrize("reset", ["zero", "subtract", "none"])
@pytest.mark.parametrize("placement", ["both", "escape", "membrane"])
def test_noiseless_noisy_lif_is_lif_with_that_surrogate(law, reset, placement):
    options = dict(threshold=0.8, decay=0.7, reset=reset, decay_input=True)
    noisy, plain = NoisyLIF(law, placement=placement, **options), LIF(law, **options)
    outputs, before = [], torch.get_rng_state()
    with noiseless(noisy):
        for neuron in (noisy, plain):
            x = (2 * currents()).requires_grad_()
            spikes, state = neuron.run(x)
            (spikes.cumsum(0).sum() + state.sum()).backward()
            outputs.append((spikes, state, x.grad))
    assert torch.equal(torch.get_rng_state(), before)
    for ours, theirs in zip(*outputs):
        assert torch.equal(ours, theirs)
    assert 0 < outputs[0][0].mean() < 1 and outputs[0][2].abs().sum() > 0


@every_law
def test_mean_field_puts_out_the_firing_probability(law):
    neuron, x = NoisyLIF(law, threshold=0.8), currents(dtype=torch.float64)
    before = torch.get_rng_state()
    with mean_field(neuron):
        probabilities = neuron(x)
    assert torch.equal(torch.get_rng_state(), before)
    v = torch.zeros_like(x[0])
    for t in range(len(x)):
        u = 0.5 * v + x[t]
        p = law.cdf(u - 0.8)
        torch.testing.assert_close(probabilities[t], p, rtol=1e-9, atol=1e-12)
        v = u * (1 - p)


@pytest.mark.parametrize("kind", noise.LAWS)
def test_single_precision_keeps_the_tails_of_the_firing_probability(kind):
    law = kind(0.4)
    x = torch.cat([torch.linspace(-8, 8, 20_001) * law.scale + 1, torch.ones(1)])
    with mean_field(neuron := NoisyLIF(law, decay=0.0)):
        found = neuron(x[None])[0].double()
    p = law.cdf(x.double() - 1)
    assert (found - p).abs().max() < 3e-7 and found[-1] == 0.5
    if p.min() > 0:
        assert ((found - p) / p).abs().max() < 1e-5


@pytest.mark.parametrize("context", [noiseless, mean_field])
def test_mean_field_and_noiseless_reach_nested_neurons_only_inside_the_block(context):
    net = nn.Sequential(NoisyLIF(), nn.Sequential(nn.Identity(), NoisyLIF()), LIF())
    neurons = [net[0], net[1][1]]
    x = currents()
    with context(net) as inside:
        assert inside is net
        assert torch.equal(net(x), net(x))
    assert not torch.equal(neurons[0](x), neurons[0](x))
    assert not torch.equal(neurons[1](x), neurons[1](x))


@pytest.mark.parametrize("context", [noiseless, mean_field])
def test_switch_is_undone_after_an_exception(context):
    neuron, x = NoisyLIF(), currents()
    with noise_generator(seeded(1)):
        noisy = neuron(x)
    with pytest.raises(KeyError), context(neuron):
        raise KeyError
    with noise_generator(seeded(1)):
        assert torch.equal(neuron(x), noisy)


def test_switches_nest():
    neuron, x = NoisyLIF(), currents()
    plain = LIF(Gaussian(0.3))(x)
    with mean_field(neuron):
        p = neuron(x)
        with noiseless(neuron):
            assert torch.equal(neuron(x), plain)
            with mean_field(neuron):
                assert torch.equal(neuron(x), p)
            assert torch.equal(neuron(x), plain)
        assert torch.equal(neuron(x), p)
    assert not torch.equal(neuron(x), neuron(x))


def test_switching_one_part_of_a_net_leaves_the_rest():
    net = nn.Sequential(NoisyLIF(), NoisyLIF())
    x = currents()
    with noiseless(net[0]):
        assert torch.equal(net[0](x), net[0](x))
        assert not torch.equal(net[1](x), net[1](x))


def test_training_and_evaluation_are_alike():
    """The noise is part of the model: eval() does not switch it off."""
    neuron, x = NoisyLIF(), currents()
    with noise_generator(seeded(1)):
        training = neuron.train()(x)
    with noise_generator(seeded(1)):
        assert torch.equal(neuron.eval()(x), training)
    assert not torch.equal(neuron(x), training)


# ---- what the deterministic neurons are


@pytest.mark.parametrize("make", [LIF, IF, ParametricLIF])
def test_default_surrogate_is_the_erf_surrogate_of_sharpness_one(make):
    x = torch.linspace(-2, 4, 61, dtype=torch.float64).reshape(1, -1).requires_grad_()
    make()(x).sum().backward()
    expected = torch.exp(-((x - 1) ** 2)) / math.sqrt(math.pi)
    torch.testing.assert_close(x.grad, expected.detach(), rtol=1e-9, atol=1e-12)


def test_defaults_are_threshold_one_decay_half_hard_reset():
    x = torch.tensor([0.8, 0.7, 0.9, 1.0, 0.5]).reshape(5, 1)
    # u = 0.8; 1.1 fires, 0; 0.9; 1.45 fires, 0; 0.5
    spikes, state = LIF().run(x)
    assert spikes.flatten().tolist() == [0, 1, 0, 1, 0]
    assert state.item() == pytest.approx(0.5)
    assert torch.equal(ParametricLIF()(x), spikes)
    for neuron in (IF(), LIF(), ParametricLIF(), NoisyLIF()):
        assert neuron.threshold == 1.0 and neuron.reset == "zero" and not neuron.detach_reset and not neuron.decay_input
    noisy = NoisyLIF()
    assert type(noisy.noise) is Gaussian and noisy.noise.scale == 0.3 and noisy.noise.loc == 0.0
    assert noisy.decay == 0.5 and noisy.placement == "both" and noisy.log_scale is None and noisy.surrogate is None


def test_defaults_of_the_functions_are_those_of_the_neurons():
    results = []
    for run in (NoisyLIF().run, lambda x: noisy_lif(x, Gaussian(0.3))):
        x = currents().requires_grad_()
        with noise_generator(seeded(1)):
            spikes, state = run(x)
        (spikes.cumsum(0).sum() + state.sum()).backward()
        results.append([spikes, state, x.grad])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*results))
    x, spikes = currents(), results[0][0]
    alone = NoisyLIF(placement="escape").firing_probability(x, spikes)
    assert torch.equal(firing_probability(x, spikes, Gaussian(0.3)), alone)


def test_if_does_not_leak():
    x = torch.full((9, 1), 0.3)
    spikes, state = IF().run(x)  # 0.3 0.6 0.9 1.2: every fourth step
    assert IF().decay == 1.0
    assert spikes.flatten().tolist() == [0, 0, 0, 1, 0, 0, 0, 1, 0]
    assert state.item() == pytest.approx(0.3)


def test_if_with_reset_by_subtraction_counts_like_a_quantiser():
    """u_T = sum x - threshold * spikes, with a positive input of less than a threshold per step."""
    x = torch.rand(200, 7, generator=seeded(1), dtype=torch.float64) * 0.9
    spikes, state = IF(reset="subtract").run(x)
    torch.testing.assert_close(spikes.sum(0) + state, x.sum(0))
    assert (state >= 0).all() and (state <= 1).all()


# ---- ParametricLIF


@pytest.mark.parametrize("decay", [0.01, 0.3, 0.5, 0.99])
def test_parametric_lif_starts_at_its_decay(decay):
    neuron, x = ParametricLIF(decay=decay), currents()
    assert number(neuron.decay) == pytest.approx(decay, rel=1e-6)
    assert torch.equal(neuron(x), LIF(decay=number(neuron.decay))(x))
    assert len(list(neuron.parameters())) == 1


@pytest.mark.parametrize("decay_input", [False, True])
def test_parametric_lif_gradient_of_its_decay_is_that_of_a_hand_recursion(decay_input):
    neuron = ParametricLIF(Gaussian(0.5), decay=0.6, decay_input=decay_input).double()
    x = currents(dtype=torch.float64) * 2
    neuron(x).cumsum(0).sum().backward()

    logit = torch.tensor(math.log(0.6 / 0.4), dtype=torch.float64, requires_grad=True)
    decay = torch.sigmoid(logit)
    v, total, steps = torch.zeros_like(x[0]), torch.zeros_like(x[0]), 0.0
    for x_t in x:
        u = decay * v + (x_t * (1 - decay) if decay_input else x_t)
        F = 0.5 * (1 + torch.erf((u - 1) / (0.5 * math.sqrt(2))))
        s = (u > 1).double() + F - F.detach()
        v, total = u * (1 - s), total + s
        steps = steps + total
    steps.sum().backward()
    assert neuron.decay_logit.grad.item() == pytest.approx(logit.grad.item(), rel=1e-5)
    assert logit.grad.abs() > 1e-2


def test_parametric_lif_decay_stays_in_the_open_interval_and_learns():
    torch.manual_seed(0)
    neuron = ParametricLIF(decay=0.2)
    optimiser = torch.optim.SGD(neuron.parameters(), lr=1.0)
    x = torch.full((8, 16), 0.6)  # at decay 0.2 it never fires, at 0.9 every second step
    rates = []
    for _ in range(100):
        spikes = neuron(x)
        rates.append(spikes.mean().item())
        optimiser.zero_grad()
        (spikes.mean() - 0.5).square().backward()
        optimiser.step()
        assert 0 < number(neuron.decay) < 1
    assert rates[0] == 0 and rates[-1] >= 0.25
    assert number(neuron.decay) > 0.5


@pytest.mark.parametrize("decay", [0.0, 1.0])
def test_parametric_lif_cannot_start_at_the_ends(decay):
    with pytest.raises(ValueError, match=rf"decay.*\(0, 1\).*{decay}"):
        ParametricLIF(decay=decay)


# ---- learnable scale


def test_learnable_scale_starts_at_the_law_and_changes_nothing_at_first():
    x = currents()
    learnt, fixed = NoisyLIF(Gaussian(0.3), learnable_scale=True), NoisyLIF(Gaussian(0.3))
    assert number(learnt.scale) == pytest.approx(0.3) and fixed.scale == 0.3
    assert [name for name, _ in learnt.named_parameters()] == ["log_scale"]
    assert not list(fixed.parameters())
    with noise_generator(seeded(1)):
        a = learnt(x)
    with noise_generator(seeded(1)):
        assert torch.equal(fixed(x), a)


@pytest.mark.parametrize("mode", [noiseless, mean_field])
def test_learnable_scale_in_the_other_modes(mode):
    """Mean field: the probabilities depend on the scale. Noiseless: nothing but the slope does."""
    neuron, x = NoisyLIF(Gaussian(0.3), learnable_scale=True), currents().requires_grad_()
    with mode(neuron):
        neuron(x).sum().backward()
    if mode is mean_field:
        assert neuron.log_scale.grad.abs() > 0
    else:
        assert neuron.log_scale.grad is None or neuron.log_scale.grad == 0
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("placement", ["both", "escape"])
@pytest.mark.parametrize(
    "law", [Gaussian(0.3), Logistic(0.3), Triangular(0.6), Uniform(0.6), Cauchy(0.3), Laplace(0.3)], ids=repr
)
def test_learnable_scale_trains_towards_a_firing_rate_and_stays_positive(law, placement):
    """Input 0.4 below threshold: more noise, more spikes. Target: the rate at 1.8 times the scale."""
    torch.manual_seed(0)
    n, x = 20_000, torch.full((1, 20_000), 0.6)
    with noise_generator(seeded(1)):
        wider = NoisyLIF(law, placement=placement, learnable_scale=True)
        with torch.no_grad():
            wider.log_scale += math.log(1.8)
        target = wider(x).mean().item()
    neuron = NoisyLIF(law, placement=placement, learnable_scale=True)
    optimiser = torch.optim.Adam(neuron.parameters(), lr=0.05)
    start = neuron(x).mean().item()
    for _ in range(60):
        optimiser.zero_grad()
        (neuron(x).mean() - target).square().backward()
        optimiser.step()
        assert neuron.scale > 0
    rate = neuron(x).mean().item()
    noise_of_rates = math.sqrt(2 * 0.25 / n)
    assert target - start > 10 * noise_of_rates
    assert abs(rate - target) < deviations() * noise_of_rates + 0.1 * (target - start)
    assert neuron.scale.item() / (law.scale * 1.8) == pytest.approx(1.0, abs=0.2)


def test_the_gradient_may_be_the_density_of_another_law():
    """Spikes are those of the noise itself; the gradient is that of a neuron whose noise is the surrogate's."""
    x = torch.linspace(-1, 3, 200).reshape(1, 1, 200)
    with noise_generator(seeded(1)):
        expected = NoisyLIF(Gaussian(0.3), placement="escape")(x)
    for surrogate in (Cauchy(0.4), Laplace(0.4)):
        given = x.clone().requires_grad_()
        with noise_generator(seeded(1)):
            spikes = NoisyLIF(Gaussian(0.3), placement="escape", surrogate=surrogate)(given)
        if isinstance(surrogate, Cauchy):  # the eager kernel, which runs other laws, has other draws
            assert spikes.equal(expected)
        spikes.sum().backward()
        torch.testing.assert_close(given.grad, surrogate.pdf(x - 1.0))


def test_the_gradient_of_a_named_neuron_may_be_of_another_scale():
    neuron = build_neuron("NILIF_sigmoid", sigma=0.2, gradient_sigma=0.5)()
    assert repr(neuron.noise) == repr(Logistic(0.2)) and repr(neuron.surrogate) == repr(Logistic(0.5))
    assert build_neuron("NILIF", sigma=0.2)().surrogate is None
    assert repr(build_neuron("LIF", gradient_sigma=0.5)()) == repr(build_neuron("LIF")())
    with pytest.raises(ArgumentError):
        build_neuron("NILIF", gradient_sigma=-0.5)
    with pytest.raises(ArgumentError, match="leave out the surrogate"):
        build_neuron("NILIF", gradient_sigma=0.5, learnable_scale=True)


def test_a_surrogate_and_a_learnt_scale_exclude_each_other():
    with pytest.raises(ValueError, match="leave out the surrogate"):
        NoisyLIF(surrogate=Cauchy(0.3), learnable_scale=True)
    with pytest.raises(TypeError, match="surrogate"):
        NoisyLIF(surrogate=0.3)
    x = torch.rand(1, 1, 3)
    with pytest.raises(ValueError, match="leave out the surrogate"):
        noisy_lif(x, Gaussian(0.3), scale=torch.tensor(0.3, requires_grad=True), surrogate=Cauchy(0.3))


def test_the_mean_field_has_its_exact_gradient_whatever_the_surrogate():
    x = torch.rand(3, 2, 5).requires_grad_()
    grads = []
    for surrogate in (None, Cauchy(0.5)):
        neuron = NoisyLIF(Gaussian(0.3), surrogate=surrogate)
        with mean_field(neuron):
            grads.append(torch.autograd.grad(neuron(x).sum(), x)[0])
    assert grads[0].equal(grads[1])


def test_user_law_works_in_a_noisy_lif():
    b, n = 0.4, 200_000
    neuron, x = NoisyLIF(Laplace(b), placement="escape"), torch.full((1, n), 1.3)
    with noise_generator(seeded(1)):
        assert likely(neuron(x).sum(), n, stats.laplace(0, b).cdf(0.3))


def test_user_law_works_with_learnable_scale():
    """log_scale 0 is the law as it is; log 2 doubles its width."""
    b, n = 0.4, 200_000
    neuron, x = NoisyLIF(Laplace(b), placement="escape", learnable_scale=True), torch.full((1, n), 1.3)
    with torch.no_grad():
        neuron.log_scale += math.log(2.0)
    with noise_generator(seeded(1)):
        spikes = neuron(x)
    spikes.mean().backward()
    wide = stats.laplace(0, 2 * b)
    assert likely(spikes.detach().sum(), n, wide.cdf(0.3))
    # d/d log s F(0.3 / s) = -0.3 pdf(0.3)
    assert neuron.log_scale.grad.item() == pytest.approx(-0.3 * wide.pdf(0.3), rel=1e-3)


# ---- construction


@pytest.mark.parametrize("make", [LIF, IF, ParametricLIF, NoisyLIF])
@pytest.mark.parametrize("threshold", [-math.inf, math.nan])
def test_threshold_out_of_range(make, threshold):
    with pytest.raises(ValueError, match=f"threshold must be a number or inf, got {threshold}"):
        make(threshold=threshold)


@pytest.mark.parametrize("make", [LIF, ParametricLIF, NoisyLIF])
@pytest.mark.parametrize("decay", [-0.5, 1.5, math.nan])
def test_decay_out_of_range(make, decay):
    with pytest.raises(ValueError, match=rf"decay.*\[0, 1\].*{decay}"):
        make(decay=decay)


@pytest.mark.parametrize("make", [LIF, IF, ParametricLIF, NoisyLIF])
def test_unknown_reset_lists_the_valid_ones(make):
    with pytest.raises(ValueError, match="reset.*'zero', 'subtract', 'none'.*'soft'"):
        make(reset="soft")


def test_unknown_placement_lists_the_valid_ones():
    with pytest.raises(ValueError, match="placement.*'both', 'escape', 'membrane'.*'synapse'"):
        NoisyLIF(placement="synapse")


@pytest.mark.parametrize("wrong", [0.3, None, Gaussian, "NILIF"])
def test_law_of_the_wrong_type(wrong):
    with pytest.raises(TypeError, match="noise.*NoiseLaw"):
        NoisyLIF(noise=wrong)
    for make in (LIF, IF, ParametricLIF):
        with pytest.raises(TypeError, match="surrogate.*NoiseLaw"):
            make(surrogate=wrong)


def test_the_base_class_is_not_a_neuron():
    with pytest.raises(TypeError, match="SpikingNeuron"):
        SpikingNeuron(1.0, 0.5, "zero", False, False)(currents())


SWITCHED = [
    lambda wrong: NoisyLIF(Gaussian(0.3), detach_reset=wrong),
    lambda wrong: LIF(decay_input=wrong),
    lambda wrong: NoisyLIF(Gaussian(0.3), learnable_scale=wrong),
    lambda wrong: LIF().set_gradient(Gaussian(0.3), detach_reset=wrong),
    lambda wrong: noisy_lif(torch.zeros(1, 1, 1), noise=Gaussian(0.3), detach_reset=wrong),
    lambda wrong: noisy_lif(torch.zeros(1, 1, 1), noise=Gaussian(0.3), decay_input=wrong),
]


@pytest.mark.parametrize("wrong", ["no", "False", 2, ()])
@pytest.mark.parametrize("use", SWITCHED)
def test_a_switch_is_true_or_false_and_not_a_text_that_counts_as_true(use, wrong):
    use(False)
    with pytest.raises(ArgumentError, match="must be True or False, got "):
        use(wrong)


@every_neuron
def test_wrong_input_reports_what_came(make):
    with pytest.raises(ValueError, match=r"\[T, B, \.\.\.\].*\[7\]"):
        make()(torch.zeros(7))
    with pytest.raises(TypeError, match="torch.int64"):
        make()(torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"\[4, 5\].*\[5\]"):
        make().run(currents(), torch.zeros(5))
    with pytest.raises(ValueError, match=r"\[4, 5\].*\[5, 4\]"):
        make().step(currents()[0], torch.zeros(5, 4))


@every_neuron
def test_repr_names_law_threshold_and_decay(make):
    neuron = make()
    text = repr(neuron)
    law = neuron.noise if isinstance(neuron, NoisyLIF) else neuron.surrogate
    assert text.startswith(type(neuron).__name__) and repr(law) in text
    assert (
        f"threshold={neuron.threshold:g}" in text
        and f"decay={number(neuron.decay):.4g}" in text
        and neuron.reset in text
    )
    assert ("placement" in text) == isinstance(neuron, NoisyLIF)
    assert text in repr(nn.Sequential(neuron))


@every_neuron
def test_repr_is_silent(make):
    """Printing a network must not warn that a learnt tensor was converted to a number."""
    torch.set_warn_always(True)  # otherwise torch says it once per process, to whoever comes first
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            repr(make())
    finally:
        torch.set_warn_always(False)


def test_repr_shows_the_learnt_scale():
    neuron = NoisyLIF(Gaussian(0.3), learnable_scale=True)
    with torch.no_grad():
        neuron.log_scale.fill_(math.log(0.625))
    assert "0.625" in repr(neuron)


# ---- copies


def spikes_of(neuron):
    with noise_generator(seeded(1)):
        return neuron(currents())


@pytest.mark.parametrize("copied", ["deepcopy", "pickle", "torch.save", "state_dict"])
@every_neuron
def test_copies_behave_alike(make, copied):
    neuron = make()
    with torch.no_grad():
        for parameter in neuron.parameters():
            parameter += 0.7
    if copied == "pickle" or copied == "torch.save":
        if copied == "pickle":
            twin = pickle.loads(pickle.dumps(neuron))
        else:
            buffer = io.BytesIO()
            torch.save(neuron, buffer)
            buffer.seek(0)
            twin = torch.load(buffer, weights_only=False)
    elif copied == "deepcopy":
        twin = copy.deepcopy(neuron)
    else:
        twin = make()
        twin.load_state_dict(neuron.state_dict())
    assert torch.equal(spikes_of(twin), spikes_of(neuron))
    for a, b in zip(neuron.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b) and a.data_ptr() != b.data_ptr()


def test_a_user_law_pickles_with_its_neuron():
    neuron = NoisyLIF(Laplace(0.3), learnable_scale=True)
    assert torch.equal(spikes_of(pickle.loads(pickle.dumps(neuron))), spikes_of(neuron))


def test_state_dicts_hold_learnt_scalars_only():
    assert list(LIF().state_dict()) == list(IF().state_dict()) == list(NoisyLIF().state_dict()) == []
    assert list(ParametricLIF().state_dict()) == ["decay_logit"]
    assert list(NoisyLIF(learnable_scale=True).state_dict()) == ["log_scale"]


def test_two_neurons_do_not_share_parameters():
    """Default laws are shared instances; nothing learnt may live in them."""
    one, two = NoisyLIF(learnable_scale=True), NoisyLIF(learnable_scale=True)
    one.log_scale.data += 1
    assert number(two.scale) == pytest.approx(0.3) == two.noise.scale


# ---- precision


def small_addition(dtype):
    """1 + 2^-9 is 1 in bfloat16: whether step 2 fires tells the precision of the arithmetic."""
    return torch.tensor([1.0, 2.0**-9], dtype=dtype).reshape(2, 1), 1 + 2.0**-10


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("make", [IF, lambda threshold: NoisyLIF(Uniform(1e-4), threshold, decay=1.0)])
def test_bfloat16_input_is_integrated_in_float32(make, autocast):
    x, threshold = small_addition(torch.bfloat16)
    neuron = make(threshold=threshold)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        spikes, state = neuron.run(x)
    assert spikes.dtype == torch.bfloat16 and state.dtype == torch.float32
    assert spikes.flatten().tolist() == [0.0, 1.0]


@every_neuron
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_autocast_changes_nothing_inside_a_neuron(make, dtype):
    results = []
    for enabled in (False, True):
        neuron, x = make(), currents().to(dtype).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled), noise_generator(seeded(1)):
            spikes, state = neuron.run(x)
            assert spikes.dtype == dtype
            assert state.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
            (spikes.float().cumsum(0).sum() + state.sum()).backward()
        results.append((spikes, state, x.grad, *(p.grad for p in neuron.parameters())))
    for plain, under_autocast in zip(*results):
        assert torch.equal(plain, under_autocast)


def test_spikes_after_a_linear_layer_under_autocast_are_bfloat16():
    net = nn.Sequential(nn.Linear(5, 7), ParametricLIF(), nn.Linear(7, 6), NoisyLIF(learnable_scale=True))
    with torch.autocast("cpu", torch.bfloat16):
        spikes = net(currents())
    assert spikes.dtype == torch.bfloat16 and set(spikes.flatten().tolist()) <= {0.0, 1.0}
    spikes.float().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@every_neuron
def test_a_module_converted_to_double_or_bfloat16_still_runs(make):
    for dtype in (torch.float64, torch.bfloat16):
        neuron, x = make().to(dtype), currents().to(dtype).requires_grad_()
        spikes = neuron(x)
        spikes.sum().backward()
        assert spikes.dtype == dtype and x.grad.dtype == dtype
        assert all(p.grad is not None and p.grad.dtype == dtype for p in neuron.parameters())


def test_float64_arithmetic_is_float64():
    """2^-40 above the threshold is visible in float64 alone."""
    x = torch.tensor([[1.0], [2.0**-40]], dtype=torch.float64)
    spikes, _ = IF(threshold=1 + 2.0**-41).run(x)
    assert spikes.flatten().tolist() == [0.0, 1.0]


SETTINGS = [
    (LIF, {"threshold": 1.5}),
    (LIF, {"decay": 0.25}),
    (LIF, {"surrogate": Gaussian(0.4)}),
    (LIF, {"reset": "subtract"}),
    (LIF, {"decay_input": True}),
    (IF, {"threshold": 1.5}),
    (ParametricLIF, {"threshold": 1.5}),
    (ParametricLIF, {"reset": "subtract"}),
    (NoisyLIF, {"noise": Gaussian(0.5)}),
    (NoisyLIF, {"noise": Logistic(0.3)}),
    (NoisyLIF, {"noise": Gaussian(0.3, loc=0.1)}),
    (NoisyLIF, {"placement": "escape"}),
    (NoisyLIF, {"surrogate": Gaussian(0.7)}),
    (partial(NoisyLIF, learnable_scale=True), {"noise": Cauchy(0.3)}),
]


def weights_of(net):
    """The state dictionary of a network, as a file returns it."""
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize(("kind", "changes"), SETTINGS)
def test_weights_of_neurons_with_other_settings_load_with_a_warning(kind, changes):
    (name,) = changes
    with pytest.warns(UserWarning, match=rf"with {name}=.* were loaded into neurons with {name}="):
        nn.Sequential(nn.Linear(2, 2), kind()).load_state_dict(
            weights_of(nn.Sequential(nn.Linear(2, 2), kind(**changes)))
        )


@pytest.mark.parametrize(("kind", "changes"), SETTINGS)
def test_weights_of_neurons_with_the_same_settings_load_in_silence(kind, changes):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net = nn.Sequential(nn.Linear(2, 2), kind(**changes))
        net.load_state_dict(weights_of(nn.Sequential(nn.Linear(2, 2), kind(**changes))))
        net.load_state_dict(nn.Sequential(nn.Linear(2, 2), kind(**changes)).state_dict())


def test_what_is_learnt_is_not_another_setting():
    learnt, fresh = NoisyLIF(Gaussian(0.3), learnable_scale=True), NoisyLIF(Gaussian(0.9), learnable_scale=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fresh.load_state_dict(weights_of(learnt))
        ParametricLIF(decay=0.1).load_state_dict(weights_of(ParametricLIF(decay=0.9)))
        stretched = Rescaled(Gaussian(0.3), torch.tensor([1.0, 2.0]))  # one scale for each channel
        LIF(stretched).load_state_dict(weights_of(LIF(stretched)))


@pytest.mark.parametrize("kind", [LIF, IF, ParametricLIF, NoisyLIF])
def test_weights_without_settings_load_with_a_warning(kind):
    net = nn.Sequential(nn.Linear(2, 2), kind())
    with pytest.warns(UserWarning, match="carry no neuron settings") as warned:
        net.load_state_dict(dict(weights_of(net)))
    assert "None" not in str(warned[0].message)  # of what this kind has not, or what is not set


# ---- the law of a neuron may be exchanged


@pytest.mark.parametrize(
    "law", [Gaussian(0.3), Cauchy(0.3, 0.1), Laplace(0.3), Gaussian(torch.full((3,), 0.3))], ids=repr
)
def test_the_noise_of_a_layer_that_learns_its_scale_is_that_of_now(law):
    neuron, x = NoisyLIF(law, learnable_scale=True, placement="escape"), torch.rand(1, 2, 3)
    with torch.no_grad():
        neuron.log_scale.fill_(0.5)
    expected = law.with_scale(math.exp(0.5)).cdf(x - 1)
    with mean_field(neuron):
        torch.testing.assert_close(neuron(x), expected)
    torch.testing.assert_close(neuron.noise.cdf(x - 1), expected)
    neuron.noise = neuron.noise  # keeps what was learnt
    torch.testing.assert_close(neuron.log_scale, torch.full_like(neuron.log_scale, 0.5))
    neuron.noise = neuron.noise.widened(0.5)
    torch.testing.assert_close(neuron.scale, torch.full_like(neuron.scale, math.exp(0.5) / 2))


@pytest.mark.parametrize("loc", [nn.Parameter(torch.tensor(0.1)), torch.tensor(0.1, requires_grad=True)])
def test_a_centre_that_would_not_be_learnt_is_refused(loc):
    with pytest.raises(ValueError, match="loc is not learnt"):
        Gaussian(0.3, loc=loc)


@pytest.mark.parametrize("loc", ["a", None, [0.1], torch.zeros(3)], ids=repr)
def test_a_centre_that_is_not_a_number_is_refused(loc):
    with pytest.raises(TypeError, match="loc must be a number, got"):
        Gaussian(0.3, loc=loc)


class Skewed(Laplace):
    def __init__(self, k):
        super().__init__(0.3)
        self.k = k


def test_parameters_of_a_law_that_would_not_be_learnt_are_refused():
    learnt, x = Skewed(nn.Parameter(torch.tensor(2.0))), torch.rand(2, 1, 3)
    for make in (lambda: NoisyLIF(learnt), lambda: LIF(learnt), lambda: NoisyLIF(surrogate=learnt),
                 lambda: setattr(NoisyLIF(), "noise", learnt), lambda: noisy_lif(x, learnt)):  # fmt: skip
        with pytest.raises(ValueError, match="k of the (noise|surrogate) would not be learnt"):
            make()
    NoisyLIF(Skewed(torch.tensor(2.0)))(x)


def test_a_law_that_is_a_module_is_refused():
    class Module(nn.Module, Laplace):
        def __init__(self):
            nn.Module.__init__(self)

    for make in (NoisyLIF, LIF):
        with pytest.raises(TypeError, match="must be a NoiseLaw that is not an nn.Module"):
            make(Module())


def test_neurons_that_are_given_one_surrogate_do_not_share_its_tensor():
    law = Gaussian(torch.tensor([0.3, 0.4, 0.5]))
    one, two = LIF(law), LIF(law)
    two.surrogate.scale.mul_(10)
    assert torch.equal(one.surrogate.scale, torch.tensor([0.3, 0.4, 0.5])) and torch.equal(
        one.surrogate.scale, law.scale
    )


class Cached(Gaussian):
    """Computes a value from its scale at the first use."""

    @functools.cached_property
    def inverse(self):
        return 1 / self.scale

    def cdf(self, x):
        return torch.sigmoid(x * self.inverse)


def test_what_a_law_has_computed_from_its_scale_is_not_taken_along_to_another():
    law, x = Cached(0.3), torch.rand(5)
    law.cdf(x)
    torch.testing.assert_close(law.with_scale(0.6).cdf(x), torch.sigmoid(x / 0.6))
    torch.testing.assert_close(law.widened(2.0).cdf(x), torch.sigmoid(x / 0.6))
    given = NoisyLIF(Cached(torch.tensor([0.6])), placement="escape")
    with mean_field(given):
        torch.testing.assert_close(given(x.reshape(1, 1, 5)), torch.sigmoid((x - 1) / 0.6).reshape(1, 1, 5))


def test_a_neuron_with_the_default_noise_shares_no_law_that_could_change():
    with pytest.raises(AttributeError, match="immutable"):
        NoisyLIF().noise.scale = 0.7
    with pytest.raises(AttributeError, match="immutable"):
        LIF().surrogate.scale = 0.7
    assert NoisyLIF().noise.scale == 0.3


@pytest.mark.parametrize("law", [Gaussian(0.7), Cauchy(0.2, 0.1), Laplace(0.5)], ids=repr)
@pytest.mark.parametrize("learnable", [False, True])
def test_another_law_anneals_the_noise(law, learnable):
    neuron, x = NoisyLIF(Gaussian(0.3), learnable_scale=learnable), currents()
    parameters = list(neuron.parameters())
    for law_now in (law, Gaussian(0.05), law):
        neuron.noise = law_now
        other = NoisyLIF(law_now, learnable_scale=learnable)
        assert (neuron.noise is law_now) or learnable
        assert number(neuron.scale) == pytest.approx(law_now.scale)
        torch.testing.assert_close(neuron.noise.cdf(x), law_now.cdf(x))
        given = [x.clone().requires_grad_() for _ in range(2)]
        for one, current in zip((neuron, other), given):
            with noise_generator(seeded(1)):
                one(current).sum().backward()
        torch.testing.assert_close(*(current.grad for current in given))
    assert all(one is another for one, another in zip(parameters, neuron.parameters(), strict=True))


class Foreign:
    """Has what a law has, but is none of this package's."""

    cdf = pdf = icdf = sample = widened = staticmethod(torch.sigmoid)
    loc = 0.0

    def __init__(self, scale):
        self.scale = scale


@pytest.mark.parametrize("wrong", [0.0, -1.0, math.nan, math.inf])
def test_noise_without_width_is_refused(wrong):
    neuron = NoisyLIF()
    for learnable in (False, True):
        with pytest.raises(ValueError, match="scale must be positive and finite"):
            NoisyLIF(Foreign(wrong), learnable_scale=learnable)
    with pytest.raises(ValueError, match="scale must be positive and finite"):
        neuron.noise = Foreign(wrong)
    with pytest.raises(ValueError, match="scale must be positive and finite"):
        neuron.scale_noise(wrong)
    assert neuron.noise.scale == 0.3 and neuron.surrogate is None
    with pytest.raises(TypeError, match="noise must be a NoiseLaw"):
        neuron.noise = wrong


class Fixed(NoiseLaw):
    """Its functions do not read `scale`."""

    def cdf(self, x):
        return torch.sigmoid(x / 0.3)

    def pdf(self, x):
        return self.cdf(x) * self.cdf(-x) / 0.3

    def icdf(self, p):
        return 0.3 * torch.logit(p)


@pytest.mark.parametrize("is_listed", [False, True])
def test_a_law_that_does_not_read_its_scale_is_stretched_all_the_same(is_listed, monkeypatch):
    if is_listed:
        monkeypatch.setattr(noise, "LAWS", (*noise.LAWS, Fixed))
    law, x = Fixed(1.0), torch.linspace(-1, 1, 9)
    for wide in (law.widened(2.0), law.with_scale(2.0)):
        torch.testing.assert_close(wide.cdf(x), law.cdf(x / 2))
        assert repr(wide) == "Fixed(1).with_scale(2)"
    neuron = NoisyLIF(law)
    neuron.scale_noise(2.0)
    torch.testing.assert_close(neuron.noise.cdf(x), law.cdf(x / 2))


@pytest.mark.parametrize(
    "use",
    [
        lambda law, x: law.widened(2.0),
        lambda law, x: law.with_scale(2.0),
        lambda law, x: NoisyLIF(law),
        lambda law, x: NoisyLIF(law, learnable_scale=True),
        lambda law, x: LIF(law),
        lambda law, x: NoisyLIF(Gaussian(0.3), surrogate=law),
        lambda law, x: functional.lif(x, law),
        lambda law, x: functional.noisy_lif(x, law),
    ],
)
def test_a_law_that_does_not_read_its_scale_cannot_have_a_tensor_for_it(use):
    """A kernel would stretch it by the tensor, though its functions are those of scale 1 for any number."""
    for scale in (torch.tensor([2.0]), torch.tensor([2.0, 3.0]), nn.Parameter(torch.tensor([2.0]))):
        with pytest.raises((TypeError, ValueError), match="Fixed has functions that do not follow its scale|surrogate"):
            use(Fixed(scale), torch.rand(3, 4, 2))


def test_whether_a_law_follows_its_scale_is_found_under_any_mode():
    def widened():
        class New(Scaled):
            pass

        return NoisyLIF(New(nn.Parameter(torch.full((4,), 0.3)))).noise

    with torch.device("meta"):
        assert type(widened()).__name__ == "New"
    with FakeTensorMode():
        assert type(widened()).__name__ == "New"
    assert type(widened()).__name__ == "New"


def test_a_law_of_ones_own_stays_what_it_is_when_it_is_stretched():
    for law in (Scaled(0.3, loc=0.1), Cached(0.3)):
        for wide in (law.widened(2.0), law.with_scale(torch.tensor([0.6, 0.3]))):
            assert type(wide) is type(law) and repr(wide).startswith(type(law).__name__)
            assert wide.sample((5, 2), dtype=torch.float16).dtype == torch.float16
    assert Fixed(1.0).with_scale(torch.tensor([0.6, 0.3])).sample((5, 2), dtype=torch.float16).dtype == torch.float16


def test_loading_weights_into_another_law_that_was_stretched_is_noticed():
    class Other(Fixed):
        pass

    def warned(one, other):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            NoisyLIF(other).load_state_dict(NoisyLIF(one).state_dict())
        return [str(warning.message) for warning in caught]

    assert not warned(Scaled(0.3).widened(2.0), Scaled(0.6))
    assert not warned(Fixed(1.0).widened(2.0), Fixed(1.0).widened(2.0))
    (message,) = warned(Fixed(1.0).widened(2.0), Other(1.0).widened(2.0))
    assert "noise=Fixed(1, 0).with_scale(2) were" in message and "noise=Other(1, 0).with_scale(2)" in message
    assert warned(Fixed(1.0).widened(2.0), Fixed(2.0))  # which does not read its 2
    for learnable in (False, True):
        neurons = [NoisyLIF(law(1.0), learnable_scale=learnable) for law in (Fixed, Other)]
        with pytest.warns(UserWarning, match="Fixed.*were loaded.*Other"):
            neurons[1].load_state_dict(neurons[0].state_dict())


def test_a_scale_that_cannot_be_is_refused_when_a_law_is_stretched():
    for law in (Gaussian(0.3), Scaled(0.3), Fixed(0.3), Fixed(0.3).widened(2.0)):
        for wrong in (-1.0, 0.0, math.nan, math.inf):
            with pytest.raises(ValueError, match="scale must be positive and finite"):
                law.with_scale(wrong)


class WithParameter(Scaled):
    """Learns a value besides its scale."""

    @functools.cached_property
    def width(self):
        return nn.Parameter(torch.tensor(0.3))

    def cdf(self, x):
        return torch.sigmoid(x / self.width)


def test_what_a_law_has_learnt_besides_its_scale_is_refused_wherever_it_is():
    law = WithParameter(1.0)
    law.cdf(torch.rand(3))
    with pytest.raises(ValueError, match="width of the noise would not be learnt"):
        NoisyLIF(law)

    class Own(Scaled):
        def __init__(self, width):
            self.width = width

    for stretched in (Own(nn.Parameter(torch.tensor(0.3))), Own(nn.Parameter(torch.tensor(0.3))).widened(2.0)):
        with pytest.raises(ValueError, match="width of the noise would not be learnt"):
            NoisyLIF(stretched)
        with pytest.raises(ValueError, match="width of the surrogate would not be learnt"):
            LIF(stretched)


def test_a_law_whose_cached_value_follows_its_learnt_scale_is_accepted():
    law, x = Cached(nn.Parameter(torch.tensor([0.3]))), torch.rand(2, 1, 3)
    law.cdf(x)
    neuron = NoisyLIF(law)
    with mean_field(neuron):
        neuron(x).sum().backward()
    assert neuron.scale.grad.abs() > 0

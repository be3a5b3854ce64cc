"""Resets to a value and by a value, a rest potential, and thresholds of any sign: against loops written here."""

import copy
import io
import math
import pickle
import warnings

import pytest
import torch
from torch import nn

from models import IF, LIF, Cauchy, Gaussian, Logistic, NoisyLIF, ParametricLIF, mean_field, noise_generator, plain
from models.functional import firing_probability, lif, noisy_lif
from tests.conftest import first_are_fast

BACKENDS = ("eager", "fused", "plain", "traceable")
SETTINGS = {
    "by another amount": dict(reset="subtract", reset_by=1.75),
    "by more than the potential": dict(reset="subtract", reset_by=4.0, threshold=0.5),
    "to a value": dict(v_reset=-0.5),
    "to a value above the threshold": dict(v_reset=1.5, threshold=0.75),
    "rest": dict(v_leak=0.25),
    "rest and another reset": dict(v_leak=-0.5, v_reset=0.25),
    "rest, subtracting": dict(v_leak=-0.5, reset="subtract", reset_by=0.75),
    "rest, no reset": dict(v_leak=0.75, reset="none"),
    "scaled input": dict(v_leak=-0.25, v_reset=0.125, decay_input=True, decay=0.75),
    "threshold 0": dict(threshold=0.0),
    "negative threshold": dict(threshold=-0.25, v_reset=-1.0),
    "never fires": dict(threshold=math.inf),
    "never fires, rest": dict(threshold=math.inf, v_leak=0.5, reset="none"),
}
each_setting = pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def by_hand(
    x, state, threshold=1.0, decay=0.5, reset="zero", decay_input=False, reset_by=None, v_reset=0.0, v_leak=0.0
):
    """Spikes, the last potential and all potentials before the reset."""
    u = torch.full_like(x[0], v_leak) if state is None else state
    spikes, potentials = [], []
    for x_t in x:
        u = v_leak + decay * (u - v_leak) + (x_t * (1 - decay) if decay_input else x_t)
        potentials.append(u)
        spike = (u > threshold).to(x.dtype)
        spikes.append(spike)
        if reset == "zero":
            u = torch.where(u > threshold, torch.full_like(u, v_reset), u)
        elif reset == "subtract":
            u = u - spike * (threshold if reset_by is None else reset_by)
    return torch.stack(spikes), u, torch.stack(potentials)


def grid(*shape, dtype=torch.float32):
    """Multiples of 1/16: all potentials are exact."""
    return (torch.randint(-16, 40, shape, generator=seeded(1)) / 16).to(dtype)


@each_setting
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("state", [False, True])
def test_spikes_and_potentials_are_those_of_a_loop(settings, backend, state):
    x = grid(6, 4, 3, 5)
    start = grid(4, 3, 5) if state else None
    spikes, last, u = by_hand(x, start, **settings)
    found = lif(x, Logistic(0.2), state=start, potentials=True, backend=backend, **settings)
    assert torch.equal(found[0], spikes) and torch.equal(found[1], last) and torch.equal(found[2], u)
    assert spikes.any() != (settings.get("threshold") == math.inf)
    as_tensors = {k: torch.tensor([v] * 3) if isinstance(v, float) and k != "decay" else v for k, v in settings.items()}
    for ours, theirs in zip(lif(x, Logistic(0.2), state=start, potentials=True, backend=backend, **as_tensors), found):
        assert torch.equal(ours, theirs)


@each_setting
@pytest.mark.parametrize("backend", first_are_fast(["fused", "eager", "plain"]))
def test_gradients_of_the_mean_field_are_those_of_differences(settings, backend):
    tensors = {
        name: torch.linspace(0.9, 1.1, 3, dtype=torch.float64).mul(value).requires_grad_()
        for name, value in settings.items()
        if name in ("threshold", "reset_by", "v_reset", "v_leak") and math.isfinite(value)
    }
    x = grid(4, 2, 3, dtype=torch.float64).requires_grad_()
    start = grid(2, 3, dtype=torch.float64).requires_grad_()

    def run(x, start, *values):
        changed = {**settings, **dict(zip(tensors, values))}
        options = dict(mode="mean_field", backend=backend, potentials=True)
        return noisy_lif(x, Logistic(0.3, 0.1), state=start, **options, **changed)

    assert torch.autograd.gradcheck(run, (x, start, *tensors.values()), atol=1e-6)


@each_setting
@pytest.mark.parametrize("law", [Gaussian(0.3), Cauchy(0.2)], ids=str)
@pytest.mark.parametrize("backend", BACKENDS[:2])
def test_noise_and_a_learnt_scale(settings, law, backend):
    """Spikes are those of the potentials and the threshold noise; all gradients are finite, also at infinity."""
    x = grid(5, 400, 3).requires_grad_()
    scale = nn.Parameter(torch.full((3,), law.scale))
    with noise_generator(seeded(2)):
        spikes, last, u = noisy_lif(x, law, scale=scale, potentials=True, backend=backend, **settings)
    (spikes.mean() + last.mean() + u.mean()).backward()
    assert x.grad.isfinite().all() and scale.grad.isfinite().all()
    fired = spikes.detach().bool()
    threshold = settings.get("threshold", 1.0)
    assert not fired.any() if threshold == math.inf else 0.05 < fired.float().mean() < 0.98
    if settings.get("reset", "zero") == "zero":
        target = torch.full_like(last, settings.get("v_reset", 0.0))
        torch.testing.assert_close(last[fired[-1]], target[fired[-1]], atol=1e-6, rtol=0)


def test_the_likelihood_of_spikes_knows_the_resets():
    x = grid(5, 2, 3, dtype=torch.float64)
    given = (torch.rand(x.shape, generator=seeded(3)) > 0.6).double()
    for settings in SETTINGS.values():
        if "decay_input" in settings:
            continue
        u, expected, law = torch.full_like(x[0], settings.get("v_leak", 0.0)), [], Logistic(0.3)
        for x_t, fired in zip(x, given):
            leak = settings.get("v_leak", 0.0)
            u = leak + 0.5 * (u - leak) + x_t
            expected.append(law.cdf(u - settings.get("threshold", 1.0)))
            if settings.get("reset", "zero") == "zero":
                u = torch.where(fired.bool(), torch.full_like(u, settings.get("v_reset", 0.0)), u)
            elif settings["reset"] == "subtract":
                u = u - fired * settings.get("reset_by", 1.0)
        torch.testing.assert_close(firing_probability(x, given, law, **settings), torch.stack(expected))
        neuron = NoisyLIF(law, placement="escape", **settings)
        torch.testing.assert_close(neuron.firing_probability(x, given), torch.stack(expected))


@pytest.mark.parametrize("kind", [LIF, IF, ParametricLIF, NoisyLIF])
def test_modules_take_them_as_numbers_buffers_and_parameters(kind):
    values = dict(v_reset=torch.tensor([0.1, 0.2, 0.3]), v_leak=nn.Parameter(torch.tensor([-0.25])))
    neuron, x = kind(**values), grid(5, 4, 3)
    assert set(dict(neuron.named_parameters())) - {"decay_logit"} == {"v_leak"}
    assert "v_reset" in dict(neuron.named_buffers())
    with noise_generator(seeded(4)):
        spikes, state, u = neuron.run(x, potentials=True)
    fired = spikes[-1].bool()
    torch.testing.assert_close(state[fired], values["v_reset"].expand(4, 3)[fired])
    u.sum().backward()
    assert neuron.v_leak.grad.any()
    with torch.no_grad():
        neuron.v_leak.fill_(3.0)
    neuron.reset_parameters()
    assert neuron.v_leak.item() == -0.25
    assert "v_reset=[0.1 to 0.3], v_leak=-0.25" in repr(neuron)
    subtracting = kind(reset="subtract", reset_by=nn.Parameter(torch.tensor([0.5])))
    subtracting.run(x)[1].sum().backward()
    assert subtracting.reset_by.grad.any() and "reset_by=0.5" in repr(subtracting)


def test_a_subclass_may_compute_what_is_taken_off():
    class Delayed(LIF):
        @property
        def reset_by(self):
            return self.threshold / self.decay

    values = dict(threshold=nn.Parameter(torch.tensor([0.75])), decay=nn.Parameter(torch.tensor([0.5])))
    neuron = Delayed(**values, reset="subtract")
    x = grid(6, 2, 3)
    expected, _, _ = by_hand(x, None, threshold=0.75, reset="subtract", reset_by=1.5)
    assert torch.equal(neuron(x), expected)
    neuron.run(x)[1].sum().backward()
    assert neuron.threshold.grad.any() and neuron.decay.grad.any()
    neuron = Delayed(reset="subtract")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of other settings
        copy.deepcopy(neuron).load_state_dict(neuron.state_dict())


def test_a_stream_starts_from_rest_and_keeps_true_potentials():
    neuron, x = LIF(v_leak=-0.5, v_reset=0.25), grid(6, 2, 3)
    whole, end = neuron.run(x)
    state, spikes = None, []
    for x_t in x:
        spike, state = neuron.step(x_t, state)
        spikes.append(spike)
    assert torch.equal(torch.stack(spikes), whole) and torch.equal(state, end)
    assert torch.equal(neuron.step(torch.zeros(2, 3))[1], torch.full((2, 3), -0.5))


def test_settings_are_saved_and_compared():
    saved = LIF(v_reset=0.25, v_leak=0.5).state_dict()
    with pytest.warns(UserWarning, match="v_reset=0.25, v_leak=0.5.*v_reset=None, v_leak=None"):
        LIF().load_state_dict(saved)
    LIF(v_reset=0.25, v_leak=0.5).load_state_dict(saved)
    LIF().load_state_dict(LIF(v_reset=0.0).state_dict())  # no warning, which would be an error
    with pytest.warns(UserWarning, match="reset_by=2.0"):
        LIF(reset="subtract").load_state_dict(LIF(reset="subtract", reset_by=2.0).state_dict())


def test_a_neuron_pickled_before_they_existed():
    neuron, x = NoisyLIF(), grid(3, 2, 3)
    for name in ("reset_by", "v_reset", "v_leak"):
        del vars(neuron)[name]
    for loaded in (pickle.loads(pickle.dumps(neuron)), copy.deepcopy(neuron)):
        with noise_generator(seeded(1)):
            spikes = loaded(x)
        with noise_generator(seeded(1)):
            assert torch.equal(spikes, NoisyLIF()(x))
    learnt = LIF(v_reset=nn.Parameter(torch.tensor([0.5])))
    file = io.BytesIO()
    torch.save(learnt, file)
    file.seek(0)
    assert [name for name, _ in torch.load(file, weights_only=False).named_parameters()] == ["v_reset"]


@each_setting
def test_exported_and_mapped(settings):
    x = grid(4, 6, 3)
    net = nn.Sequential(LIF(Logistic(0.2), **settings))
    expected = net(x)
    assert torch.equal(torch.export.export(plain(net), (x,)).module()(x), expected)
    assert torch.equal(torch.func.vmap(net, in_dims=1, out_dims=1)(x), expected)
    tangent = torch.func.jvp(net, (x,), (torch.ones_like(x),))[1]
    assert tangent.isfinite().all()


@pytest.mark.parametrize("law", [Gaussian(0.3), Logistic(0.2), Cauchy(0.2)], ids=str)
def test_a_learnt_scale_beside_an_infinite_threshold_under_all_transforms(law):
    neuron, x = NoisyLIF(law, torch.tensor([1.0, math.inf]), learnable_scale=True, placement="escape"), grid(4, 5, 2)
    parameters = dict(neuron.named_parameters())

    def mean(parameters):
        return torch.func.functional_call(neuron, parameters, (x,)).mean()

    assert torch.func.grad(mean, has_aux=False)(parameters)["log_scale"].isfinite()
    with mean_field(neuron):
        expected = torch.autograd.grad(mean(parameters), neuron.log_scale, create_graph=True)
        torch.testing.assert_close(torch.func.grad(mean)(parameters)["log_scale"], expected[0].detach())
        assert torch.autograd.grad(expected[0].sum(), neuron.log_scale)[0].isfinite()
    neuron.firing_probability(x, torch.zeros_like(x)).sum().backward()
    assert neuron.log_scale.grad.isfinite()


def test_an_infinite_threshold_cannot_be_subtracted():
    for kind in (LIF, NoisyLIF):
        with pytest.raises(ValueError, match="an infinite threshold cannot be subtracted: give reset_by"):
            kind(threshold=math.inf, reset="subtract")
        kind(threshold=math.inf, reset="subtract", reset_by=1.0)(grid(2, 2, 3))


def test_mean_field_without_a_threshold():
    neuron, x = NoisyLIF(threshold=math.inf), grid(3, 2, 3)
    with mean_field(neuron):
        assert not neuron(x).any()

"""snnTorch's neurons and networks next to their equals here."""

import copy
import itertools
import pickle

import pytest
import torch
from torch import nn

from models import LIF, Gaussian, interop, mean_field, noise_generator, noiseless
from tests.models.interop.compare import check, current, difference, draws

snn = pytest.importorskip("snntorch", reason="snnTorch is not installed")
from snntorch import surrogate, utils

from_leaky = interop.snntorch.from_leaky
SURROGATES = (
    lambda rng: surrogate.atan(alpha=rng.uniform(1, 4)),
    lambda rng: surrogate.fast_sigmoid(slope=rng.uniform(2, 25)),
    lambda rng: surrogate.sigmoid(slope=rng.uniform(2, 8)),  # steeper, its gradient is NaN far below the threshold
    lambda rng: None,  # the default
)


def setting(on_grid, rng):
    """A random neuron of snnTorch."""
    kind = rng.choice((snn.Leaky, snn.Synaptic, snn.RLeaky))
    reset = rng.choice(("subtract", "zero", "none"))
    settings = dict(
        beta=rng.choice((0.5, 0.25)) if on_grid else rng.uniform(0.3, 0.97),  # 1 / beta is exact, too
        threshold=rng.choice((0.5, 0.75, 1.0)) if on_grid else rng.uniform(0.3, 1.2),
        spike_grad=rng.choice(SURROGATES)(rng),
        reset_mechanism=reset,
        reset_delay=rng.random() < 0.5,
        learn_beta=rng.random() < 0.5,
        learn_threshold=rng.random() < 0.5,
    )
    if reset == "subtract":
        settings["reset_delay"] = True
    if kind is snn.Synaptic:
        settings["alpha"] = rng.choice((0.5, 0.25)) if on_grid else rng.uniform(0.1, 0.6)
        settings["learn_alpha"] = rng.random() < 0.5
    elif kind is snn.RLeaky:
        settings |= dict(all_to_all=False, V=rng.choice((-0.5, 0.25)) if on_grid else rng.uniform(-0.5, 0.5))
    if kind is not snn.Leaky and reset == "zero":
        settings["reset_delay"] = False
    return kind(**settings)


def run(layer, x):
    """All steps from rest, the states handed on."""
    layer.reset_mem()
    outputs, states = [], []
    for x_t in x:
        spikes, *states = layer(x_t, *states)
        outputs.append(spikes)
    return torch.stack(outputs)


def run_hidden(layer, x):
    utils.reset(nn.Sequential(layer))
    return torch.stack([layer(x_t) for x_t in x])


def potentials(layer, x):
    layer.reset_mem()
    outputs, states = [], []
    for x_t in x:
        _, *states = layer(x_t, *states)
        outputs.append(states[-1])
    return torch.stack(outputs)


@pytest.mark.parametrize(("on_grid", "rng"), [draw for draw in draws(40) if draw[0]])
def test_on_a_grid_spikes_are_equal(on_grid, rng):
    theirs = setting(on_grid, rng)
    ours = from_leaky(theirs)
    x = current((12, 4, 500), on_grid)
    found = difference(run, theirs, ours, x)
    assert found.spikes == 0 and found.gradient < 1e-5
    inner = getattr(ours.neuron, "neuron", ours.neuron)
    learnt = {"threshold": (inner, "threshold"), "beta": (inner, "beta"), "alpha": (ours.neuron, "unclamped")}
    for name, (part, ours_name) in learnt.items():
        if isinstance(getattr(theirs, name, None), nn.Parameter):
            assert torch.allclose(getattr(theirs, name).grad, getattr(part, ours_name).grad, rtol=1e-4)
    with torch.no_grad():
        assert torch.allclose(potentials(theirs, x), potentials(ours, x), atol=1e-5)


def test_on_other_inputs_spikes_are_equal_but_for_rounding():
    layers = [setting(*draw) for draw in draws(40) if not draw[0]]
    check([difference(run, layer, from_leaky(layer), current((12, 4, 500), False)) for layer in layers])


SETTINGS = (
    {},
    {"reset_mechanism": "zero"},
    {"reset_mechanism": "zero", "reset_delay": False},
    {"reset_mechanism": "none"},
)


@pytest.mark.parametrize("settings", [{}, {"reset_mechanism": "none"}])
def test_recurrent_weights_learn_the_same(settings, monkeypatch):
    monkeypatch.setenv("NSNN_KERNELS", "eager")  # to compile kernels for float64 takes seconds
    theirs = snn.RLeaky(0.7, linear_features=50, threshold=0.5, **settings).double()  # they amplify rounding
    ours = from_leaky(theirs).double()
    found = difference(run, theirs, ours, current((12, 4, 50), False).double())
    assert found.spikes == 0 and found.gradient < 1e-9
    weights = theirs.recurrent.weight, ours.neuron.linear.weight
    assert weights[0] is not weights[1] and torch.allclose(weights[0].grad, weights[1].grad)


@pytest.mark.parametrize(
    "make",
    [
        lambda: snn.Synaptic(0.5, 0.8, init_hidden=True),
        lambda: snn.RLeaky(0.8, all_to_all=False, V=torch.linspace(-1, 1, 7), init_hidden=True),
    ],
)
def test_other_states_are_kept_reset_and_detached(make):
    theirs = make()
    ours, layers = from_leaky(theirs), type(theirs)
    x = torch.randn(3, 7, requires_grad=True)
    for _ in range(3):
        assert torch.equal(theirs(x), ours(x))
    layers.detach_hidden()
    results = [layer(x) for layer in (theirs, ours)]
    assert torch.equal(*results)
    assert torch.allclose(*(torch.autograd.grad(spikes.sum(), x)[0] for spikes in results), atol=1e-5)
    utils.reset(nn.Sequential(ours))
    assert not any(getattr(ours, name).any() for name in ("syn", "spk", "mem") if hasattr(ours, name))


@pytest.mark.parametrize("hidden", [{"init_hidden": True}, {"init_hidden": True, "output": True}])
@pytest.mark.parametrize("settings", SETTINGS)
def test_hidden_states_are_kept_reset_and_detached(settings, hidden):
    theirs = snn.Leaky(beta=0.8, threshold=0.5, **settings, **hidden)
    ours = from_leaky(theirs)

    def step(x):
        results = [layer(x) if hidden.get("output") else (layer(x), layer.mem) for layer in (theirs, ours)]
        assert torch.equal(results[0][0], results[1][0]) and torch.allclose(results[0][1], results[1][1], atol=1e-6)
        return [spikes for spikes, _ in results]

    for batch in (4, 4, 4, 3, 3):
        step(torch.randn(batch, 7))
    for layer in (theirs, ours):
        utils.reset(nn.Sequential(layer))
        assert not layer.mem.any()
    x = torch.randn(3, 7, requires_grad=True)
    step(x)
    snn.Leaky.detach_hidden()
    assert not ours.mem.requires_grad
    gradients = [torch.autograd.grad(spikes.sum(), x)[0] for spikes in step(x)]
    assert torch.allclose(*gradients, atol=1e-5)
    with pytest.raises(TypeError, match="init_hidden"):
        ours(x, torch.zeros(3, 7))


@pytest.mark.parametrize("settings", SETTINGS)
def test_states_are_handed_on_and_may_come_from_elsewhere(settings):
    theirs = snn.Leaky(beta=0.8, threshold=0.5, **settings)
    ours = from_leaky(theirs)
    for twin in (ours, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        mems = [theirs.reset_mem(), twin.reset_mem()]
        for change in (torch.Tensor.detach, torch.clone, lambda mem: 0.5 * mem, lambda mem: mem):
            x = torch.randn(3, 7)
            spikes, mems = zip(*(layer(x, change(mem)) for layer, mem in zip((theirs, twin), mems)))
            assert torch.equal(*spikes) and torch.allclose(*mems, atol=1e-6)


def test_what_the_reset_subtracts_follows_the_threshold():
    theirs = snn.Leaky(beta=0.8)
    ours = from_leaky(theirs)
    theirs.threshold.fill_(0.3)
    ours.neuron.threshold = 0.3
    x = torch.rand(20, 3, 50)
    assert torch.equal(run(theirs, x), run(ours, x)) and torch.allclose(theirs.mem, ours.mem, atol=1e-5)


@pytest.mark.parametrize("is_learnt", [False, True])
@pytest.mark.parametrize("settings", SETTINGS[:2] + SETTINGS[3:])
def test_a_threshold_below_0_resets_before_the_first_spike(settings, is_learnt):
    theirs = snn.Leaky(
        0.8, threshold=0.3 if is_learnt else -0.3, learn_threshold=is_learnt, init_hidden=True, **settings
    )
    ours = from_leaky(theirs)
    if is_learnt:
        for threshold in (theirs.threshold, ours.neuron.threshold):
            threshold.data.fill_(-0.3)
    for start in (lambda: None, theirs.reset_mem):
        start(), ours.reset_mem()
        for _ in range(3):
            x = torch.randn(3, 7)
            assert torch.equal(theirs(x), ours(x)) and torch.allclose(theirs.mem, ours.mem, atol=1e-6)


def test_the_draw_that_decides_the_spike_decides_the_reset():
    ours = from_leaky(snn.Leaky(beta=0.8), noise=Gaussian(0.3))
    x = torch.rand(20, 3, 50)
    with noise_generator(torch.Generator().manual_seed(3)):
        spikes = run(ours, x)
    with noise_generator(torch.Generator().manual_seed(3)):
        steps, state = [], None
        for x_t in x:
            spike, state = ours.neuron.step(x_t, state)
            steps.append(spike)
    assert torch.equal(spikes, torch.stack(steps)) and 0.1 < spikes.mean() < 0.9


WITHOUT_DELAY = (
    lambda **hidden: snn.Leaky(0.9, reset_mechanism="zero", reset_delay=False, **hidden),
    lambda **hidden: snn.Synaptic(0.5, 0.9, reset_mechanism="zero", reset_delay=False, **hidden),
    lambda **hidden: snn.RLeaky(0.9, 0.5, False, reset_mechanism="zero", reset_delay=False, **hidden),
)


@pytest.mark.parametrize("hidden", [{}, {"init_hidden": True}])
@pytest.mark.parametrize("placement", ["both", "escape"])
@pytest.mark.parametrize("make", WITHOUT_DELAY)
def test_with_noise_neurons_without_delay_may_stay_above_the_threshold(make, placement, hidden):
    ours = from_leaky(make(**hidden), noise=Gaussian(0.3), placement=placement)
    with noise_generator(torch.Generator().manual_seed(3)):
        spikes = (run_hidden if hidden else run)(ours, current((20, 3, 50), False))
    assert 0.05 < spikes.mean() < 0.95


def test_without_delay_a_reset_value_may_be_above_the_threshold():
    neuron, x = LIF(v_reset=2.0, decay=0.9), torch.rand(20, 3, 50)
    layer = interop.snntorch.Layer(neuron, reset_delay=False)
    assert torch.equal(run(layer, x), neuron(x))
    with pytest.raises(ValueError, match="cannot be above the threshold"):
        layer(x[0], torch.full((3, 50), 2.5))


@pytest.mark.parametrize(
    "change",
    [
        lambda layer, mem: mem,
        lambda layer, mem: mem.detach(),
        lambda layer, mem: mem.clone(),
        lambda layer, mem: mem[:2],
        lambda layer, mem: layer(torch.rand(3, 50))[1] * 0 + mem,  # after a call with another state
        lambda layer, mem: mem.double(),
    ],
)
@pytest.mark.parametrize("placement", ["both", "escape"])
def test_with_noise_copies_of_a_state_have_its_spikes(placement, change):
    ours = from_leaky(snn.Leaky(beta=0.8), noise=Gaussian(0.3), placement=placement)
    with torch.no_grad():
        for _ in range(5):
            x = torch.rand(3, 50)
            spikes, mem = ours(x, torch.zeros(3, 50))
            reset = mem - 1.25 * spikes
            mem = change(ours, mem)
            with noiseless(ours):
                _, after = ours(x[: len(mem)], mem)
            assert torch.allclose(after.float(), (0.8 * reset + x)[: len(mem)], atol=1e-6)


def test_with_noise_a_state_from_elsewhere_is_refused():
    ours = from_leaky(snn.Leaky(beta=0.8), noise=Gaussian(0.3), placement="escape")
    x = torch.rand(3, 50)
    _, mem = ours(x)
    with pytest.raises(ValueError, match="with noise, `mem` does not say which neurons fired"):
        ours(x, 1.1 * mem)
    states = [ours(x, torch.zeros(3, 50))[1] for _ in range(2)]  # equal, but not what fired
    ours(x, states[0])
    with pytest.raises(ValueError, match="with noise, `mem` does not say which neurons fired"):
        states = [ours(x, torch.zeros(3, 50))[1] for _ in range(2)]
        ours(x, states[0].clone())
    with mean_field(ours), pytest.raises(ValueError, match="with noise, `mem` does not say which neurons fired"):
        ours(x, 1.1 * mem)


def test_with_noise_nan_is_handed_on():
    ours = from_leaky(snn.Leaky(beta=0.8), noise=Gaussian(0.3))
    _, mem = ours(torch.full((3, 50), torch.nan))
    assert ours(torch.rand(3, 50), mem)[1].isnan().all()


def test_zeros_are_a_new_start_though_neurons_fired_at_a_potential_of_0():
    ours = from_leaky(snn.Leaky(beta=0.8), noise=Gaussian(3.0), placement="escape")
    nothing = torch.zeros(3, 50)
    spikes, mem = ours(nothing)
    assert spikes.any() and not mem.any()
    with noiseless(ours):
        assert torch.allclose(ours(nothing, mem.detach())[1], -spikes) and not ours(nothing, nothing)[1].any()
        mem.data.fill_(0.5)
        assert torch.allclose(ours(nothing, mem)[1], 0.8 * mem)


def test_states_go_through_copies_inference_mode_and_other_dtypes():
    ours = from_leaky(snn.Leaky(beta=0.8, init_hidden=True), noise=Gaussian(0.3))
    x = torch.rand(3, 50)
    ours(x), utils.reset(nn.Sequential(ours))
    with torch.inference_mode():
        ours(x), ours(x)
    utils.reset(nn.Sequential(ours))
    with torch.no_grad():
        ours(x)
        for twin in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours)), copy.deepcopy(ours).double()):
            same = copy.deepcopy(ours)
            with noiseless(twin), noiseless(same):
                assert torch.equal(twin(x.to(twin.mem)).float(), same(x))
                assert torch.allclose(twin.mem.float(), same.mem, atol=1e-6)


@pytest.mark.parametrize("is_copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_are_reset_and_detached(is_copied):
    ours = is_copied(from_leaky(snn.Leaky(beta=0.8, init_hidden=True), noise=Gaussian(0.3)))
    x = torch.rand(3, 50, requires_grad=True)
    ours(x)
    snn.Leaky.detach_hidden()
    assert ours.mem.any() and not ours.mem.requires_grad
    utils.reset(nn.Sequential(ours))
    assert not ours.mem.any()


def test_a_state_that_is_overwritten_is_not_taken_for_what_it_was():
    layers = [snn.Leaky(beta=0.8, threshold=0.5)]
    layers.append(from_leaky(layers[0], noise=Gaussian(0.3)))
    x, mems = torch.rand(3, 50), []
    with noiseless(layers[1]):
        for layer in layers:
            _, mem = layer(x)
            mem.data.zero_()
            mems.append(layer(x, mem)[1])
    assert torch.equal(*mems)


def test_values_of_features_are_mapped_for_features_alone(monkeypatch):
    monkeypatch.setenv("NSNN_KERNELS", "eager")  # to compile kernels for values of channels takes seconds
    theirs = snn.Leaky(beta=torch.linspace(0.1, 0.9, 7), threshold=0.5)
    ours = from_leaky(theirs)
    x = current((10, 4, 7), False)
    assert torch.equal(run(theirs, x), run(ours, x))
    with pytest.raises(ValueError, match=r"takes \[B, features\] at each step"):
        ours(torch.zeros(4, 7, 7))


@pytest.mark.parametrize(
    ("values", "is_late"),
    [*itertools.product([(1.2, 1.1), (1.0, 1.0), (1.2, -0.1), (0.8, 1.1)], [False, True]), ((-0.1, 0.5), True)],
)
def test_learnt_decays_are_clamped(values, is_late):
    theirs = snn.Synaptic(0.5, 0.5, learn_alpha=True, learn_beta=True, init_hidden=True)
    ours = from_leaky(theirs) if is_late else None
    theirs.beta.data.fill_(values[0]), theirs.alpha.data.fill_(values[1])
    if is_late:
        ours.neuron.neuron.beta.data.fill_(values[0]), ours.neuron.unclamped.data.fill_(values[1])
    else:
        ours = from_leaky(theirs)
    found = difference(run_hidden, theirs, ours, current((6, 4, 50), True))
    assert found.spikes == 0 and found.gradient < 1e-5
    assert torch.allclose(theirs.beta.grad, ours.neuron.neuron.beta.grad, rtol=1e-4)
    assert torch.allclose(theirs.alpha.grad, ours.neuron.unclamped.grad, rtol=1e-4)


class Tutorial5(nn.Module):
    """The network of snnTorch's tutorial 5, smaller."""

    def __init__(self, **hidden):
        super().__init__()
        self.hidden = hidden
        self.fc1, self.lif1 = nn.Linear(64, 50), snn.Leaky(beta=0.95, **hidden)
        self.fc2, self.lif2 = nn.Linear(50, 10), snn.Leaky(beta=0.95, output=True, **hidden)

    def forward(self, x):
        utils.reset(self)
        states = [(), ()] if self.hidden else [(self.lif1.init_leaky(),), (self.lif2.init_leaky(),)]
        spikes, mems = [], []
        for _ in range(10):
            first = self.lif1(self.fc1(x), *states[0])
            spk1, *states[0] = first if isinstance(first, tuple) else (first,)
            spk2, mem2 = self.lif2(self.fc2(spk1), *states[1])
            states[1] = () if self.hidden else (mem2,)
            spikes.append(spk2)
            mems.append(mem2)
        return torch.stack(spikes), torch.stack(mems)


@pytest.mark.parametrize("hidden", [{}, {"init_hidden": True}])
def test_the_network_of_tutorial_5_is_converted(hidden):
    torch.manual_seed(0)
    net, x = Tutorial5(**hidden), 2 * torch.rand(8, 64)
    converted, report = interop.convert(net, noise=Gaussian(0.3), verify=x)
    assert list(report.replaced) == ["lif1", "lif2"] and not report.skipped
    assert report.mismatches == {"lif1": (0, 4000), "lif2": (0, 800)}
    with noiseless(converted):
        (spikes, mems), (ours, our_mems) = net(x), converted(x)
    assert torch.equal(spikes, ours) and torch.allclose(mems, our_mems, atol=1e-5) and spikes.any()
    _, mems = converted(x)
    nn.functional.cross_entropy(mems.sum(0), torch.arange(8)).backward()
    assert all(parameter.grad.any() for parameter in converted.parameters())


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (lambda: snn.Leaky(0.9, reset_delay=False), "subtracts again"),
        (lambda: snn.Leaky(0.9, inhibition=True), "inhibition"),
        (lambda: snn.Leaky(0.9, graded_spikes_factor=2.0), "graded"),
        (lambda: snn.Leaky(0.9, graded_spikes_factor=torch.tensor([1.0, 2.0])), "graded"),
        (lambda: snn.Leaky(0.9, state_quant=lambda mem: mem), "quantised"),
        (lambda: snn.Leaky(0.0), "beta of 0"),
        (lambda: snn.Leaky(0.9, threshold=float("inf")), "its threshold is infinite"),
        (lambda: snn.Leaky(0.9, spike_grad=surrogate.straight_through_estimator()), "no noise law"),
        (lambda: snn.Leaky(0.9, reset_mechanism="zero", reset_delay=False, threshold=-1.0), "threshold below 0"),
        (lambda: snn.Leaky(torch.rand(3, 4)), "beta has shape"),
        (lambda: snn.Synaptic(0.5, 0.9, reset_mechanism="zero"), "discards the input"),
        (lambda: snn.RLeaky(0.9, linear_features=3, reset_mechanism="zero"), "discards the input"),
        (lambda: snn.RSynaptic(0.5, 0.9, all_to_all=False), "RSynaptic is not one of"),
    ],
)
@pytest.mark.filterwarnings("ignore:Inhibition is an unstable feature")
def test_what_is_not_equal_is_refused(layer, reason):
    with pytest.raises(interop.NotMapped, match=reason):
        from_leaky(layer())


def test_layers_that_stay_are_reported_and_can_still_be_reset():
    net = nn.Sequential(snn.Leaky(0.9, init_hidden=True), snn.Leaky(0.9, init_hidden=True, reset_delay=False))
    with pytest.warns(UserWarning, match="1: without reset_delay, it subtracts again"):
        converted, report = interop.convert(net, noise=Gaussian(0.3))
    assert list(report.replaced) == ["0"] and list(report.skipped) == ["1"]
    converted(torch.rand(2, 3))
    utils.reset(converted)
    assert not converted[1].mem.any()
    with pytest.warns(UserWarning, match="1: LeakyParallel is not one of Leaky"):
        interop.convert(nn.Sequential(snn.Leaky(0.9), snn.LeakyParallel(3, 3)))

"""sinabs' neurons and networks next to their equals here."""

import copy

import pytest
import torch
from torch import nn

from models import IF, Gaussian, interop, noiseless
from tests.models.interop.compare import check, current, difference, draws

sinabs = pytest.importorskip("sinabs", reason="sinabs is not installed")
from sinabs import activation, layers

from_sinabs = interop.sinabs.from_sinabs


def setting(on_grid, rng):
    """A random neuron of sinabs."""
    kind = rng.choice((layers.LIF, layers.IAF))
    resets = (
        activation.MembraneReset(),
        activation.MembraneSubtract(),
        activation.MembraneSubtract(0.5 if on_grid else rng.uniform(0.2, 1)),
    )
    surrogates = (activation.SingleExponential(rng.uniform(0.2, 1)), activation.Gaussian(sigma=rng.uniform(0.2, 1)))
    settings = dict(
        spike_threshold=torch.tensor(rng.choice((0.5, 0.75, 1.0)) if on_grid else rng.uniform(0.3, 1.2)),
        spike_fn=activation.SingleSpike,
        reset_fn=rng.choice(resets),
        surrogate_grad_fn=rng.choice(surrogates),
    )
    if kind is layers.LIF:
        settings |= dict(norm_input=rng.random() < 0.5, train_alphas=on_grid or rng.random() < 0.5)
        settings["tau_mem"] = rng.uniform(0.5, 3 if settings["norm_input"] else 20)
    layer = kind(**settings)
    if kind is layers.LIF and on_grid:
        layer.alpha_mem.data.fill_(rng.choice((0.5, 0.25)))  # tau_mem would be rounded
    return layer


def run(layer, x):
    """All steps from rest; sinabs has the batch first."""
    for part in (layer, getattr(layer, "memory", None)):
        if isinstance(part, layers.StatefulLayer):
            part.reset_states()
    return layer(x.transpose(0, 1)).transpose(0, 1)


@pytest.mark.parametrize(("on_grid", "rng"), [draw for draw in draws(40) if draw[0]])
def test_on_a_grid_spikes_are_equal(on_grid, rng):
    theirs = setting(on_grid, rng)
    ours = from_sinabs(theirs)
    found = difference(run, theirs, ours, current((12, 4, 500), on_grid))
    assert found.spikes == 0 and found.gradient < 1e-5
    if hasattr(theirs, "alpha_mem"):
        assert torch.allclose(theirs.alpha_mem.grad, ours.neuron.decay.grad, rtol=1e-4)


def test_on_other_inputs_spikes_are_equal_but_for_rounding():
    differences = []
    for theirs in [setting(*draw) for draw in draws(40) if not draw[0]]:
        ours = from_sinabs(theirs)
        differences.append(difference(run, theirs, ours, current((12, 4, 500), False)))
        if getattr(theirs, "tau_mem", None) is not None:
            assert torch.allclose(theirs.tau_mem.grad, ours.neuron.tau_mem.grad, rtol=1e-3)
    check(differences)


@pytest.mark.parametrize("squeeze", [False, True])
def test_a_network_is_converted_keeps_its_states_and_is_reset(squeeze):
    torch.manual_seed(0)
    options = dict(spike_fn=activation.SingleSpike)
    if squeeze:
        options["batch_size"] = 3
    lif, iaf = (layers.LIFSqueeze, layers.IAFSqueeze) if squeeze else (layers.LIF, layers.IAF)
    net = nn.Sequential(
        nn.Linear(5, 8),
        lif(tau_mem=20.0, spike_threshold=torch.tensor(0.05), **options),
        nn.Linear(8, 4),
        iaf(**options),
    )
    x = torch.rand(3, 10, 5)
    x = x.flatten(0, 1) if squeeze else x
    converted, report = interop.convert(net, noise=Gaussian(0.3), verify=x)
    assert list(report.replaced) == ["1", "3"] and not report.skipped
    assert all(wrong == 0 for wrong, _ in report.mismatches.values())
    with noiseless(converted):
        for _ in range(2):  # the second continues
            assert torch.equal(net(x), converted(x))
            assert torch.allclose(net[3].v_mem, converted[3].v_mem, atol=1e-5)
        for one in (net, converted):
            sinabs.reset_states(one)
        assert torch.equal(net(x), converted(x)) and net(x).any()
    twin = copy.deepcopy(converted)
    sinabs.reset_states(twin)
    twin(x).sum().backward()
    assert all(parameter.grad is not None for parameter in twin.parameters() if parameter.requires_grad)


def test_another_batch_needs_a_reset():
    layer = from_sinabs(layers.LIF(10.0, spike_fn=activation.SingleSpike))
    layer(torch.rand(3, 4, 5))
    with pytest.raises(ValueError, match="call sinabs.reset_states before another batch"):
        layer(torch.rand(2, 4, 5))
    sinabs.reset_states(nn.Sequential(layer))
    assert layer(torch.rand(2, 4, 5)).shape == (2, 4, 5)


def test_layers_start_from_rest():
    neuron, x = IF(reset="subtract", v_leak=0.5), torch.rand(8, 4, 5)
    layer = interop.sinabs.Layer(neuron)
    for _ in range(2):
        assert torch.equal(run(layer, x), neuron(x))
    layer.memory.reset_states(randomize=True)
    assert layer.v_mem.shape == (4, 5)


def test_the_batch_size_of_squeezed_layers_is_set():
    net = nn.Sequential(layers.IAFSqueeze(batch_size=2, spike_fn=activation.SingleSpike))
    converted, _ = interop.convert(net)
    for one in (net, converted):
        sinabs.set_batch_size(one, 4)
        assert sinabs.utils.get_batch_size(one) == 4
    x = torch.rand(12, 5)
    assert torch.equal(net(x), converted(x)) and net(x).any()


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (lambda one: layers.LIF(10.0), "more than once in a step"),
        (lambda one: layers.LIF(10.0, min_v_mem=-1.0, **one), "lower bound"),
        (lambda one: layers.LIF(10.0, tau_syn=5.0, **one), "synapse filters"),
        (lambda one: layers.LIF(10.0, reset_fn=activation.MembraneReset(0.1), **one), "reset_value"),
        (lambda one: layers.LIF(10.0, record_states=True, **one), "records"),
        (lambda one: layers.LIF(10.0, surrogate_grad_fn=activation.Heaviside(), **one), "no noise law"),
        (lambda one: layers.ALIF(10.0, 20.0), "ALIF is not one of"),
    ],
)
def test_what_is_not_equal_is_refused(layer, reason):
    with pytest.raises(interop.NotMapped, match=reason):
        from_sinabs(layer(dict(spike_fn=activation.SingleSpike)))


def test_a_layer_without_spikes_is_left_alone():
    net = nn.Sequential(layers.LIF(10.0, spike_fn=activation.SingleSpike), layers.ExpLeak(10.0))
    converted, report = interop.convert(net)
    assert list(report.replaced) == ["0"] and not report.skipped
    assert type(converted[1]) is layers.ExpLeak


def test_copies_keep_their_mode_and_hooks_and_what_is_shared_and_frozen():
    """Those of sinabs itself do not."""
    calls, single = [], {"spike_fn": activation.SingleSpike}
    net = nn.Sequential(layers.LIF(5.0, **single), layers.LIF(5.0), layers.LIF(5.0), layers.LIF(5.0, **single)).eval()
    net[2].tau_mem = net[1].tau_mem
    net[3].tau_mem.requires_grad_(False)
    for layer in net:
        layer.register_forward_hook(lambda *_: calls.append(1))
    with pytest.warns(UserWarning, match="1: it may fire more than once in a step.*; 2: it may"):
        converted, _ = interop.convert(net)
    assert not any(module.training for module in converted.modules())
    assert converted[1].tau_mem is converted[2].tau_mem is not net[1].tau_mem
    assert [p.requires_grad for p in converted.parameters()] == [True, True, False, False, False]
    converted(torch.rand(2, 3, 4))
    assert len(calls) == 4

"""norse's neurons and networks next to their equals here."""

import pytest
import torch
from torch import nn

from models import LIF, Gaussian, NoisyLIF, Synaptic, interop, noise_generator, noiseless
from tests.models.interop.compare import check, current, difference, draws

norse = pytest.importorskip("norse.torch", reason="norse is not installed")
from norse.torch.functional.iaf import IAFParameters
from norse.torch.functional.reset import reset_subtract, reset_value
from norse.torch.module.iaf import IAF, IAFCell

from_norse = interop.norse.from_norse
DT = 2**-10


def setting(on_grid, rng, kinds=(norse.LIFBoxCell, norse.LIFCell, norse.LIF, IAFCell, IAF)):
    """A random neuron of norse."""
    kind = rng.choice(kinds)

    def inverse(lowest, highest):  # of a time constant
        return torch.as_tensor(rng.choice((256.0, 512.0)) if on_grid else rng.uniform(lowest, highest) / DT)

    settings = dict(
        v_th=torch.as_tensor(rng.choice((0.25, 0.5)) if on_grid else rng.uniform(0.2, 0.6)),
        v_reset=torch.as_tensor(rng.choice((0.0, -0.25)) if on_grid else rng.uniform(-0.3, 0.1)),
        method=rng.choice(("super", "tanh", "heavi_erfc")),
        alpha=torch.as_tensor(rng.uniform(1, 10)),
    )
    if kind in (IAFCell, IAF):
        return kind(IAFParameters(**settings), dt=DT)
    settings["v_leak"] = torch.as_tensor(rng.choice((0.0, 0.125)) if on_grid else rng.uniform(-0.2, 0.1))
    settings["tau_mem_inv"] = inverse(0.2, 0.8)
    if kind is norse.LIFBoxCell:
        settings["reset_method"] = rng.choice((reset_value, reset_subtract))
        return kind(norse.LIFBoxParameters(**settings), dt=DT)
    settings["tau_syn_inv"] = inverse(0.4, 0.9)
    return kind(p=norse.LIFParameters(**settings), dt=DT)


def run(module, x):
    """All steps from rest, of a cell or of a layer."""
    if isinstance(module, norse.LIF | IAF | interop.norse.Layer):
        return module(x)[0]
    outputs, state = [], None
    for x_t in x:
        spikes, state = module(x_t, state)
        outputs.append(spikes)
    return torch.stack(outputs)


@pytest.mark.parametrize(("on_grid", "rng"), [draw for draw in draws(40) if draw[0]])
def test_on_a_grid_spikes_are_equal(on_grid, rng):
    theirs = setting(on_grid, rng)
    ours = from_norse(theirs)
    found = difference(run, theirs, ours, current((12, 4, 500), on_grid))
    assert found.spikes == 0 and found.gradient < 1e-5


def test_on_other_inputs_spikes_are_equal_but_for_rounding():
    layers = [setting(*draw) for draw in draws(40) if not draw[0]]
    check([difference(run, layer, from_norse(layer), current((12, 4, 500), False)) for layer in layers])


@pytest.mark.parametrize("kind", [norse.LIFCell, norse.LIFBoxCell])
def test_parameters_may_be_numbers(kind):
    settings = dict(tau_mem_inv=300.0, v_th=0.3)
    theirs = kind(norse.LIFBoxParameters(**settings) if kind is norse.LIFBoxCell else norse.LIFParameters(**settings))
    found = difference(run, theirs, from_norse(theirs), current((12, 4, 500), False))
    assert found.spikes == 0 and found.gradient < 1e-5


def test_neurons_of_ones_own_are_reported():
    class Own(norse.LIFCell):
        pass

    with pytest.warns(UserWarning, match="1: Own is not one of"):
        _, report = interop.convert(norse.SequentialState(norse.LIFCell(), Own()))
    assert list(report.skipped) == ["1"]


def steps(net, x):
    """One step at a time, the states handed on."""
    outputs, state = [], None
    for x_t in x:
        output, state = net(x_t, state)
        outputs.append(output)
    return torch.stack(outputs)


def cells():
    v_th = torch.as_tensor(0.1)
    return norse.SequentialState(
        nn.Conv2d(1, 4, 3),
        norse.LIFBoxCell(norse.LIFBoxParameters(v_th=v_th), dt=0.01),
        nn.Flatten(),
        nn.Linear(4 * 36, 10),
        norse.LIFCell(norse.LIFParameters(v_th=v_th), dt=0.003),
    )


def layers():
    return norse.SequentialState(
        norse.Lift(nn.Conv2d(1, 4, 3)),
        norse.LIF(norse.LIFParameters(v_th=torch.as_tensor(0.1)), dt=0.003),
        nn.Flatten(2),
        nn.Linear(4 * 36, 10),
        norse.LIF(norse.LIFParameters(v_th=torch.as_tensor(0.1)), dt=0.003),
    )


@pytest.mark.parametrize(("make", "call"), [(cells, steps), (layers, lambda net, x: net(x)[0])])
def test_sequential_states_are_converted(make, call):
    torch.manual_seed(0)
    net, x = make(), 2 * torch.rand(6, 3, 1, 8, 8)
    converted, report = interop.convert(net, noise=Gaussian(0.1), verify=x if make is layers else x[0])
    assert list(report.replaced) == ["1", "4"] and not report.skipped
    assert all(wrong == 0 for wrong, _ in report.mismatches.values())
    with noiseless(converted):
        expected, got = call(net, x), call(converted, x)
    assert torch.equal(expected, got) and 0.05 < expected.mean() < 0.95
    call(converted, x).sum().backward()
    assert all(parameter.grad is not None for parameter in converted.parameters())


def test_a_neuron_of_ours_is_a_cell():
    neuron = NoisyLIF(Gaussian(0.3))
    net, x = norse.SequentialState(nn.Linear(5, 4), interop.norse.cell(neuron)), torch.rand(6, 3, 5)
    with noise_generator(torch.Generator().manual_seed(0)):
        spikes = steps(net, x)
    with noise_generator(torch.Generator().manual_seed(0)):
        state, expected = None, []
        for x_t in net[0](x):
            spike, state = neuron.step(x_t, state)
            expected.append(spike)
    assert torch.equal(spikes, torch.stack(expected))


@pytest.mark.parametrize("make", [norse.LIFBoxCell, norse.LIFCell, norse.LIF, IAFCell])
def test_states_of_norse_are_taken(make):
    theirs, x = make(), 20 * torch.rand(3, 4, 5)
    ours = from_norse(theirs)
    x = x if isinstance(theirs, norse.LIF) else x[0]
    start = type(theirs.state_fallback(x))(*(torch.rand(4, 5) for _ in theirs.state_fallback(x)))
    for _ in range(2):
        (expected, state), (spikes, own) = theirs(x, start), ours(x, start)
        assert torch.equal(spikes, expected) and spikes.any()
        v = own[1] if isinstance(own, tuple) else own
        assert torch.allclose(v, state.v, atol=1e-6)
        start = state
    with pytest.raises(ValueError, match="this layer starts from the state of its neuron"):
        interop.norse.cell(Synaptic(0.5, LIF()))(x, norse.LIFBoxFeedForwardState(torch.zeros(4, 5)))


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (lambda: norse.LIFRecurrentCell(3, 4), "LIFRecurrentCell is not one of"),
        (lambda: norse.LIFCell(norse.LIFParameters(method="adjoint")), "adjoint"),
        (lambda: norse.LIF(record_states=True), "records its states"),
        (lambda: norse.LIFBoxCell(norse.LIFBoxParameters(v_th=nn.Parameter(torch.ones(())))), "learns"),
        (lambda: norse.LIFBoxCell(norse.LIFBoxParameters(reset_method=lambda z, v, r, th: v)), "reset_method"),
        (lambda: norse.LIFBoxCell(norse.LIFBoxParameters(method="circ")), "no noise law"),
    ],
)
def test_what_is_not_equal_is_refused(module, reason):
    with pytest.raises(interop.NotMapped, match=reason):
        from_norse(module())


def test_without_noise_the_neuron_is_deterministic():
    assert type(from_norse(norse.LIFBoxCell()).neuron) is LIF

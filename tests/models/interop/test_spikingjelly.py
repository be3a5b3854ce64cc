"""SpikingJelly's neurons and networks next to their equals here."""

import copy
import pickle

import pytest
import torch
from torch import nn

from models import IF, LIF, Gaussian, NoisyLIF, interop, noise_generator, noiseless
from tests.conftest import first_are_fast
from tests.models.interop.compare import check, current, difference, draws

pytest.importorskip("spikingjelly", reason="SpikingJelly is not installed")
from spikingjelly.activation_based import base, functional, layer, monitor, neuron, surrogate
from spikingjelly.activation_based.examples.conv_fashion_mnist import CSNN
from spikingjelly.activation_based.model import sew_resnet, spiking_resnet

SURROGATES = (
    surrogate.Sigmoid,
    surrogate.ATan,
    surrogate.Erf,
    surrogate.PiecewiseQuadratic,
    surrogate.PiecewiseExp,
    surrogate.SoftSign,
)
from_lifnode = interop.spikingjelly.from_lifnode


def setting(on_grid, rng):
    """A random neuron of SpikingJelly."""
    kind = rng.choice((neuron.LIFNode, neuron.IFNode, neuron.ParametricLIFNode))
    settings = dict(
        v_threshold=rng.choice((0.5, 0.75, 1.0)) if on_grid else rng.uniform(0.3, 0.9),
        v_reset=rng.choice((None, 0.0, -0.25)) if on_grid else rng.choice((None, 0.0, rng.uniform(-0.5, 0.2))),
        detach_reset=rng.random() < 0.5,
        surrogate_function=rng.choice(SURROGATES)(alpha=rng.uniform(0.5, 4)),
        step_mode=rng.choice("sm"),
    )
    if kind is not neuron.IFNode:
        settings["decay_input"] = rng.random() < 0.5
        longest = 3 if settings["decay_input"] else 20
        tau = rng.uniform(1.1, longest)
        if on_grid:
            tau = 2.0 if kind is neuron.ParametricLIFNode else rng.choice((2.0, 4.0))  # else sigmoid(w) is rounded
        settings["tau" if kind is neuron.LIFNode else "init_tau"] = tau
    return kind(**settings)


def run(node, x):
    """All steps, in either step mode, from rest."""
    functional.reset_net(node)
    return node(x) if node.step_mode == "m" else torch.stack([node(x_t) for x_t in x])


@pytest.mark.parametrize(("on_grid", "rng"), [draw for draw in draws(40) if draw[0]])
def test_on_a_grid_spikes_are_equal(on_grid, rng):
    node = setting(on_grid, rng)
    ours = from_lifnode(node)
    found = difference(run, node, ours, current((12, 4, 500), on_grid))
    assert found.spikes == 0 and found.gradient < 1e-5
    if hasattr(node, "w"):
        assert torch.allclose(node.w.grad, -ours.neuron.decay_logit.grad, rtol=1e-4)


@pytest.mark.parametrize("kernels", ["auto", "eager"])
@pytest.mark.parametrize("tau", [1.5, 3.0, 5.0, 7.0])
def test_whole_numbers_meet_the_threshold_at_the_same_steps(tau, kernels, monkeypatch):
    """Where 1 - decay is rounded in another way, a seventh of the spikes differ."""
    monkeypatch.setenv("NSNN_KERNELS", kernels)
    x = torch.randint(0, 13, (8, 4, 500), generator=torch.Generator().manual_seed(0)).float()
    for v_reset in (0.0, None):
        node = neuron.LIFNode(tau=tau, v_reset=v_reset, step_mode="m")
        assert torch.equal(from_lifnode(node)(x), node(x))


def test_on_other_inputs_spikes_are_equal_but_for_rounding():
    layers = [setting(*draw) for draw in draws(40) if not draw[0]]
    check([difference(run, layer, from_lifnode(layer), current((12, 4, 500), False)) for layer in layers])


@pytest.mark.parametrize("step_mode", ["s", "m"])
@pytest.mark.parametrize("v_reset", [None, -0.25])
def test_state_and_recorded_potentials_are_those_of_the_original(step_mode, v_reset):
    node = neuron.LIFNode(tau=3.0, decay_input=False, v_reset=v_reset, step_mode=step_mode, store_v_seq=True)
    ours = from_lifnode(node)
    time = (5,) if step_mode == "m" else ()

    def step(*shape):
        x = torch.randn(*time, *shape, requires_grad=True)
        assert torch.equal(node(x), ours(x))
        assert torch.allclose(node.v, ours.v, atol=1e-6) and torch.allclose(node.v_seq, ours.v_seq, atol=1e-6)

    step(4, 7)
    step(4, 7)  # continues
    step(3, 7)  # another batch: starts again
    for one in (node, ours):
        functional.detach_net(one)
    assert not ours.v.requires_grad
    step(3, 7)
    for one in (node, ours):
        functional.reset_net(one)
        assert one.v == (v_reset or 0.0) and one.v_seq is None
        one.v = 0.3
    step(3, 7)


@pytest.mark.parametrize("reset", ["subtract", "zero"])
def test_recorded_potentials_of_channels(reset):
    values = dict(threshold=torch.linspace(0.5, 2, 5), v_reset=torch.linspace(0, 1, 5) if reset == "zero" else 0.0)
    node = interop.spikingjelly.Node(LIF(reset=reset, **values), step_mode="m", store_v_seq=True)
    node(3 * torch.rand(3, 2, 5, 4, 5))
    assert torch.equal(node.v_seq[-1], node.v)


def test_the_rest_potential_is_read_at_each_reset():
    neuron, x = IF(v_leak=nn.Parameter(torch.tensor([0.5]))), torch.rand(4, 2, 5)
    node = interop.spikingjelly.Node(neuron, "m")
    with torch.no_grad():
        neuron.v_leak.fill_(0.9)
    assert torch.equal(node(x), neuron(x))
    node.reset()
    assert node.v == pytest.approx(0.9) and torch.equal(node(x), neuron(x))
    node.set_reset_value("v", 0.1)
    node.reset()
    assert node.v == 0.1
    with pytest.raises(ValueError, match="starts from one value"):
        interop.spikingjelly.Node(LIF(v_leak=torch.full((5,), 0.3)))


def test_both_step_modes_and_copies_do_the_same():
    ours = from_lifnode(neuron.LIFNode(v_threshold=0.3), noise=Gaussian(0.3))
    x = current((6, 2, 50), False)
    with noiseless(ours):
        steps = run(ours, x)
        ours.step_mode = "m"
        assert torch.equal(steps, run(ours, x)) and 0.1 < steps.mean() < 0.9
        functional.reset_net(ours)
        stateless = base.to_functional_forward(ours)
        assert torch.equal(steps, stateless((x,), tuple(base.extract_memories(ours)))[0][0])
    for twin in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        twin.load_state_dict(ours.state_dict())
        with noiseless(twin):
            assert torch.equal(steps, run(twin, x))


def test_noise_is_that_of_the_neuron():
    ours = from_lifnode(neuron.IFNode(step_mode="m"), noise=Gaussian(0.3), placement="escape")
    assert isinstance(ours.neuron, NoisyLIF) and ours.neuron.placement == "escape"
    x = current((6, 2, 50), False)
    with noise_generator(torch.Generator().manual_seed(1)):
        spikes = ours(x)
    with noise_generator(torch.Generator().manual_seed(1)):
        assert torch.equal(spikes, ours.neuron(x))


def test_monitors_find_converted_neurons():
    net = torch.nn.Sequential(layer.Linear(7, 5), neuron.LIFNode(store_v_seq=True), layer.Linear(5, 5), neuron.IFNode())
    converted, _ = interop.convert(net)
    assert monitor.OutputMonitor(converted, neuron.LIFNode).monitored_layers == ["1"]
    assert monitor.OutputMonitor(converted, neuron.IFNode).monitored_layers == ["3"]
    outputs = monitor.OutputMonitor(converted, neuron.BaseNode)
    potentials = monitor.AttributeMonitor("v_seq", pre_forward=False, net=converted, instance=neuron.BaseNode)
    converted(torch.randn(3, 7))
    assert outputs.monitored_layers == ["1", "3"]
    assert outputs["1"][0].shape == potentials["1"][0][0].shape == (3, 5)


NETWORKS = {
    "spiking_resnet18": lambda: spiking_resnet.spiking_resnet18(
        spiking_neuron=neuron.IFNode, surrogate_function=surrogate.ATan(), detach_reset=True, num_classes=10
    ),
    "sew_resnet18": lambda: sew_resnet.sew_resnet18(
        cnf="ADD", spiking_neuron=neuron.LIFNode, surrogate_function=surrogate.Sigmoid(), num_classes=10
    ),
    "CSNN": lambda: CSNN(T=4, channels=8),
}


@pytest.mark.parametrize("step_mode", first_are_fast(["m", "s"]))
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_are_converted(name, step_mode):
    torch.manual_seed(0)
    net = NETWORKS[name]().eval()
    functional.set_step_mode(net, step_mode)
    x = 3 * torch.rand(2, 1, 28, 28) if name == "CSNN" else 3 * torch.rand(2, 3, 32, 32)
    if name == "CSNN" and step_mode == "s":
        net = net.conv_fc  # CSNN repeats its input over time
    elif name != "CSNN" and step_mode == "m":
        x = x.expand(4, *x.shape)
    converted, report = interop.convert(net, noise=Gaussian(0.3), verify=x)
    assert len(report.replaced) == sum(isinstance(module, neuron.BaseNode) for module in net.modules())
    assert not report.skipped and report.mismatches.keys() == report.replaced.keys()
    assert sum(wrong for wrong, _ in report.mismatches.values()) == 0
    functional.reset_net(net)
    with noiseless(converted):
        assert torch.allclose(net(x), converted(x), atol=1e-5)
    functional.reset_net(converted)
    converted(x).sum().backward()
    assert all(parameter.grad is not None for parameter in converted.parameters())


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        (neuron.LIFNode(surrogate_function=surrogate.S2NN()), "no noise law has its surrogate gradient"),
        (neuron.LIFNode(surrogate_function=surrogate.Sigmoid(spiking=False)), "not 0 below the threshold"),
        (neuron.QIFNode(), "QIFNode is not one of LIFNode, IFNode, ParametricLIFNode"),
        (type("Mine", (neuron.LIFNode,), {})(), "Mine is not one of"),
    ],
)
def test_what_is_not_equal_is_refused(node, reason):
    with pytest.raises(interop.NotMapped, match=reason):
        from_lifnode(node)


def test_another_precision_is_refused():
    node = neuron.LIFNode(step_mode="m")
    node._neuron_precision = (torch.float16, "fp16", "fp32")  # as SpikingJelly sets it, on CUDA alone
    with pytest.raises(interop.NotMapped, match="stored with another precision"):
        from_lifnode(node)


def test_noise_takes_the_place_of_an_unknown_surrogate():
    ours = from_lifnode(neuron.LIFNode(surrogate_function=surrogate.S2NN()), noise=Gaussian(0.3))
    assert ours.neuron.gradient_law.scale == 0.3


def test_a_noisy_neuron_learns_its_decay_where_the_original_does():
    node = neuron.ParametricLIFNode(init_tau=3.0, step_mode="m", v_threshold=0.3)
    ours = from_lifnode(node, noise=Gaussian(0.3))
    x = current((6, 2, 50), False)
    with noiseless(ours):
        assert torch.equal(node(x), ours(x))
    functional.reset_net(ours)
    ours(x).sum().backward()
    assert ours.neuron.decay_logit.grad.abs() > 0 and torch.allclose(ours.neuron.decay_logit, -node.w)


def test_the_mode_stays():
    assert not any(module.training for module in from_lifnode(neuron.IFNode().eval()).modules())


def test_without_noise_the_neuron_is_deterministic():
    assert type(from_lifnode(neuron.LIFNode()).neuron) is LIF


def test_learnt_values_keep_their_precision():
    node = neuron.ParametricLIFNode(init_tau=3.0, step_mode="m").double()
    made = interop.spikingjelly.from_lifnode(node)
    assert torch.equal(made.neuron.decay_logit, -node.w.reshape(1))
    made(torch.rand(4, 2, 3, dtype=torch.float64)).sum().backward()
    assert made.neuron.decay_logit.grad.dtype == torch.float64

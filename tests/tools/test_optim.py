"""Optimisers, schedules and initialisation."""

import math

import pytest
import torch

from models import Gaussian, NoisyLIF, build_model, build_neuron
from tools.errors import UserError
from tools.optim import INITIALISATIONS, OPTIMIZERS, SCHEDULERS, build_optimizer, build_scheduler, initialise


def tiny_net(neuron="NILIF", **options):
    return build_model("vgg", neuron=build_neuron(neuron, **options), in_shape=(1, 8, 8), num_classes=3, width=0.05)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimiser_lowers_a_loss(name):
    torch.manual_seed(0)
    layer = torch.nn.Linear(4, 1)
    optimizer = build_optimizer(name, layer, lr=0.02, weight_decay=0.0)
    x, y = torch.randn(32, 4), torch.randn(32, 1)
    losses = []
    for _ in range(50):
        optimizer.zero_grad()
        loss = (layer(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_learnt_scales_and_decays_are_not_pulled_to_zero_by_weight_decay():
    net = tiny_net(learnable_scale=True)
    optimizer = build_optimizer("adamw", net, lr=0.1, weight_decay=0.5)
    decayed, scalars = optimizer.param_groups
    assert scalars["weight_decay"] == 0.0 and decayed["weight_decay"] == 0.5
    scales = {id(p) for name, p in net.named_parameters() if name.endswith("log_scale")}
    assert {id(p) for p in scalars["params"]} == scales
    assert {id(p) for p in decayed["params"]} == {id(p) for p in net.parameters()} - scales


@pytest.mark.parametrize("shape", [(), (1,), (3,)])
def test_thresholds_decays_and_scales_that_are_given_as_parameters_are_not_pulled_to_zero(shape):
    given = [torch.nn.Parameter(torch.full(shape, 0.5)) for _ in range(3)]
    neuron = NoisyLIF(Gaussian(given[0]), given[1], given[2])
    linear = torch.nn.Linear(3, 3)
    decayed, learnt = build_optimizer("adamw", torch.nn.Sequential(linear, neuron), 0.1, 0.5).param_groups
    assert learnt["weight_decay"] == 0.0 and {id(p) for p in learnt["params"]} == {id(p) for p in given}
    assert [id(p) for p in decayed["params"]] == [id(p) for p in linear.parameters()]


def rates(name, steps=100, lr=0.4):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    scheduler = build_scheduler(name, optimizer, steps)
    result = []
    for _ in range(steps):
        result.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return result


def test_schedules_go_where_they_should():
    assert rates("none") == [0.4] * 100
    assert rates("cos") == pytest.approx([0.2 * (1 + math.cos(math.pi * step / 100)) for step in range(100)])
    cyclic = rates("cyclic")
    assert max(cyclic) == pytest.approx(0.4) and min(cyclic) == pytest.approx(0.04)
    onecycle = rates("onecycle")
    assert max(onecycle) == pytest.approx(0.4, rel=0.01) and onecycle[-1] < 1e-4 and onecycle[0] < 0.02


def test_orthogonal_weights_are_orthogonal():
    net = tiny_net()
    initialise(net, "orthog")
    for module in net.modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
            w = module.weight.flatten(1)
            gram = w @ w.T if w.shape[0] <= w.shape[1] else w.T @ w
            assert torch.allclose(gram, torch.eye(len(gram)), atol=1e-5)


def test_uniform_leaves_the_weights_of_pytorch():
    torch.manual_seed(0)
    net = tiny_net()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    initialise(net, "uniform")
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_an_unknown_initialisation_is_an_error_that_lists_the_known_ones():
    with pytest.raises(UserError, match=f"'kaiming'; choose from {', '.join(INITIALISATIONS)}"):
        initialise(tiny_net(), "kaiming")


def test_an_unknown_optimiser_or_schedule_is_an_error_that_lists_the_known_ones():
    with pytest.raises(UserError, match=f"'lion'; choose from {', '.join(OPTIMIZERS)}"):
        build_optimizer("lion", tiny_net(), 0.1, 0.0)
    with pytest.raises(UserError, match=f"'step'; choose from {', '.join(SCHEDULERS)}"):
        build_scheduler("step", build_optimizer("adam", tiny_net(), 0.1, 0.0), 10)


def test_a_function_in_the_table_is_applied_to_convolutions_and_linear_layers(monkeypatch):
    monkeypatch.setitem(INITIALISATIONS, "ones", lambda layer: torch.nn.init.ones_(layer.weight))
    net = tiny_net()
    initialise(net, "ones")
    layers = [module for module in net.modules() if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear))]
    assert layers and all((layer.weight == 1).all() for layer in layers)

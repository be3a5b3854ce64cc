"""Networks for single samples, converted to networks over time."""

import copy
import io
import pickle
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from crits.watching import neuron_hooks, spiking_neurons
from models import (
    IF,
    LIF,
    Gaussian,
    NoisyIF,
    NoisyLIF,
    ParametricLIF,
    Stream,
    build_model,
    convert,
    mean_field,
    noise_generator,
    noiseless,
    plain,
    time_first,
)
from models.layers import over_time
from tests.conftest import first_are_fast

torchvision = pytest.importorskip("torchvision")

SIZES = {"alexnet": 64, "inception_v3": 75}  # in pixels; else 32
CONVERTED = (
    "resnet18", "mobilenet_v2", "googlenet", "densenet121", "shufflenet_v2_x0_5", "squeezenet1_1", "mnasnet0_5",
    "inception_v3", "regnet_x_400mf", "resnet50", "resnext50_32x4d", "wide_resnet50_2", "alexnet", "vgg11", "vgg11_bn",
)  # fmt: skip
REFUSED = {  # with all that is in the way
    "convnext_tiny": {"GELU", "stochastic_depth"},
    "vit_b_16": {"GELU", "MultiheadAttention"},
    "efficientnet_b0": {"SiLU", "Sigmoid", "stochastic_depth"},
    "mobilenet_v3_small": {"Hardswish", "Hardsigmoid"},
    "regnet_y_400mf": {"Sigmoid"},
    "swin_t": {
        "GELU",
        "shifted_window_attention",
        "stochastic_depth",
        "_patch_merging_pad",
    },
}


class Rectifier(nn.Module):
    """In the place of a neuron: what it replaces, at each step."""

    def forward(self, x):
        assert x.dim() in (3, 5)
        return torch.relu(x)


class Rectifier6(nn.Module):
    def forward(self, x):
        return F.relu6(x)


class Rectifications(TorchDispatchMode):
    """Counts the calls of ReLU and ReLU6, however they are written."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function.overloadpacket.__name__.rstrip("_") in ("relu", "hardtanh")
        return function(*args, **kwargs or {})


class Convolutional(nn.Module):
    """One ReLU module that is called three times, one functional ReLU, a pool, batch normalisation, a shortcut."""

    def __init__(self):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv2, self.norm2 = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.relu = nn.ReLU(inplace=True)
        self.pool, self.head = nn.MaxPool2d(2), nn.Linear(54, 3)

    def forward(self, x):
        x = self.relu(self.norm1(self.conv1(x)))
        x = self.relu(self.norm2(self.conv2(x)) + x)
        x = self.relu(self.conv2(self.pool(x)))
        return self.head(F.relu(x, inplace=True).flatten(1))


def mlp():
    return nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))


def images(timesteps=3):
    return torch.rand(timesteps, 4, 2, 6, 6, generator=torch.Generator().manual_seed(0))


def converted(neuron=LIF, timesteps=3, **options):
    torch.manual_seed(0)
    net = Convolutional().eval()
    for norm in (net.norm1, net.norm2):  # so that there are spikes
        nn.init.constant_(norm.bias, 1.0)
    return convert(net, neuron, timesteps, **options)


def of_torchvision(name):
    options = dict(init_weights=False, aux_logits=False) if name in ("googlenet", "inception_v3") else {}
    torch.manual_seed(0)
    return torchvision.models.get_model(name, num_classes=5, **options).eval()


@pytest.mark.parametrize("name", first_are_fast(CONVERTED, 3))
def test_networks_of_torchvision_are_converted_whole(name):
    net = of_torchvision(name)
    size = SIZES.get(name, 32)
    x = torch.rand(2, 2, 3, size, size)
    with torch.no_grad(), Rectifications() as calls:
        expected = net(x[0])
    wanted = torch.stack([expected, net(x[1]).detach()])

    same = convert(net, Rectifier6 if name in ("mobilenet_v2",) else Rectifier)
    assert sum(isinstance(module, Rectifier | Rectifier6) for module in same.modules()) == calls.count > 5
    torch.testing.assert_close(same(x), wanted, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(same(x[0], timesteps=2), wanted[:1].expand(2, -1, -1), rtol=1e-4, atol=1e-7)

    snn = convert(net.train(), lambda: NoisyLIF(Gaussian(0.5)), timesteps=2)
    assert len(spiking_neurons(snn)) == calls.count
    logits = snn(x[0])
    assert logits.shape == (2, 2, 5)
    logits.square().mean().backward()
    assert all(parameter.grad is not None for parameter in snn.parameters())
    assert snn.state_dict().keys() == net.state_dict().keys()
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "resnet26t", "resnetv2_50"])
def test_residual_networks_of_timm_are_converted_whole(name):
    timm = pytest.importorskip("timm")
    net = timm.create_model(name, num_classes=5).eval()
    x = torch.rand(2, 2, 3, 32, 32)
    with torch.no_grad(), Rectifications() as calls:
        expected = torch.stack([net(image) for image in x])
    same = convert(net, Rectifier)
    assert 2 * sum(isinstance(module, Rectifier) for module in same.modules()) == calls.count
    torch.testing.assert_close(same(x), expected)


@pytest.mark.parametrize("name", REFUSED)
def test_networks_with_other_activations_are_refused_by_name(name):
    with torch.device("cpu" if "regnet" in name else "meta"):
        net = torchvision.models.get_model(name)
    with pytest.raises(ValueError, match="cannot be converted, because these would stay: ") as error:
        convert(net, LIF)
    listed = str(error.value).split("stay: ")[1]
    assert {part.split(" (")[0] for part in listed.split("), ")} == REFUSED[name]


def test_a_multilayer_perceptron():
    net = mlp()
    snn = convert(net, LIF, timesteps=2)
    assert snn(torch.rand(7, 5)).shape == (2, 7, 3) and snn(torch.rand(4, 7, 5)).shape == (4, 7, 3)
    assert isinstance(snn.get_submodule("1"), LIF) and isinstance(net[1], nn.ReLU)
    x = torch.rand(4, 7, 5)
    torch.testing.assert_close(convert(net, Rectifier)(x), net(x))


class Functional(nn.Module):
    """An activation written as a function, after a linear layer `self.layer`, before another."""

    def __init__(self, function):
        super().__init__()
        self.layer, self.last, self.function = nn.Linear(5, 8), nn.Linear(8, 3), function

    def forward(self, x):
        return self.last(self.function(self.layer(x)))


def statement(x):
    x.relu_()
    return x + 1


def used_before_and_after(x):
    y = 2 * x
    z = F.relu(x, True)
    return x + y - z


def changed_before(x):
    x.add_(0.5)
    return F.relu(x)


FUNCTIONS = {
    "changed before": changed_before,
    "F.relu": F.relu,
    "F.relu(inplace)": lambda x: F.relu(x, inplace=True),
    "F.relu(x, True)": lambda x: F.relu(x, True),
    "F.relu_": F.relu_,
    "torch.relu": torch.relu,
    "torch.relu_": torch.relu_,
    "x.relu()": lambda x: x.relu(),
    "x.relu_()": lambda x: x.relu_(),
    "a statement": statement,
    "used before and after": used_before_and_after,
    "as a keyword": lambda x: F.relu(input=x),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_replaced(name):
    net, x = Functional(FUNCTIONS[name]), torch.randn(2, 7, 5)
    snn = convert(net, Rectifier)
    assert [name for name, module in snn.named_modules() if isinstance(module, Rectifier)] == ["relu"]
    torch.testing.assert_close(snn(x), net(x))
    torch.testing.assert_close(snn(x[0], timesteps=2), net(x[0]).expand(2, -1, -1))


def base_used_later(x):
    first, _ = x[:, :4], F.relu(x, inplace=True)
    return torch.cat([first, first], 1)


def view_used_later(x):
    other = x.view(-1, 2, 4)
    return F.relu_(x) + other.flatten(1)


VIEWS = {
    "a part": base_used_later,
    "a view": view_used_later,
    "the whole": lambda x: F.relu_(x[:, :4]).repeat(1, 2) + x,
    "in place": lambda x: F.relu_(x.add_(1)) + x,
}


@pytest.mark.parametrize("name", VIEWS)
def test_views_that_would_no_longer_change_are_refused(name):
    with pytest.raises(ValueError, match="'relu' changes its input in place, and another view of it is used later"):
        convert(Functional(VIEWS[name]), LIF)


def later_name(x):
    first = x
    x += 1
    return F.relu(x) + first


def several_operators(x):
    first, kept = F.relu(x), [x]
    kept += [x]
    x -= 2
    x *= x
    x /= 3.0
    return first + F.relu(x) + kept[0] + kept[1]


def numbers(x):
    size = first = x.size(1)
    size //= 2
    return F.relu(x) * (size / first)


@pytest.mark.parametrize("function", [later_name, several_operators, numbers])
def test_augmented_assignments_change_what_has_other_names(function):
    net, x = Functional(function), torch.randn(2, 7, 5)
    torch.testing.assert_close(convert(net, Rectifier)(x), torch.stack([net(step) for step in x]))


def test_augmented_assignments_change_buffers():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            calls = self.calls
            calls += 1
            return F.relu(x)

    snn = convert(Counting(), Rectifier)
    for _ in range(3):
        snn(torch.rand(2, 7, 5))
    assert snn.calls == 3


def test_augmented_assignments_to_views_that_are_used_later_are_refused():
    def function(x):
        part = x[:, :4]
        part += 1
        return F.relu(x)

    with pytest.raises(ValueError, match="'iadd' changes its input in place, and another view of it is used later"):
        convert(Functional(function), LIF)


def test_views_that_are_not_used_later_do_not_matter():
    x = torch.randn(2, 7, 5)
    net = Functional(lambda x: x.view(-1, 2, 4).mean(1).repeat(1, 2) + F.relu_(x.view(-1, 8)))
    torch.testing.assert_close(convert(net, Rectifier)(x), torch.stack([net(step) for step in x]))


class Doubling(nn.ReLU):
    """A class of one's own that does something else than its parent."""

    def forward(self, x):
        return 2 * super().forward(x - 1)


def test_what_a_subclass_does_besides_stays():
    net, x = nn.Sequential(nn.Linear(5, 5), Doubling()), torch.randn(2, 7, 5)
    snn = convert(net, Rectifier)
    assert [name for name, module in snn.named_modules() if isinstance(module, Rectifier)] == ["1.relu"]
    torch.testing.assert_close(snn(x), net(x))
    snn = convert(net, lambda: Functional(torch.neg).requires_grad_(False), replace=[Doubling])  # the class itself
    assert isinstance(snn.get_submodule("1"), Functional)


class Positive(nn.Module):
    """A layer whose weights are rectified."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 5))

    def forward(self, x):
        return F.relu(F.linear(x, F.relu(self.weight) + F.softplus(self.weight)))


def test_rectified_parameters_stay():
    net, x = Positive(), torch.randn(2, 3, 5)  # as many steps and samples as weights
    snn = convert(net, Rectifier)
    assert sum(isinstance(module, Rectifier) for module in snn.modules()) == 1
    torch.testing.assert_close(snn(x), net(x))


@pytest.mark.parametrize(
    ("function", "kind", "same"),
    [(F.relu6, nn.ReLU6, F.relu6), (F.hardtanh, nn.Hardtanh, F.hardtanh), (torch.sigmoid, nn.Sigmoid, torch.sigmoid)],
)
def test_other_classes_may_be_replaced(function, kind, same):
    net, x = Functional(function), torch.randn(2, 7, 5)
    for original in (net, nn.Sequential(net.layer, kind(), net.last)):
        snn = convert(original, lambda: Functional(same).requires_grad_(False), replace=[kind])
        found = [module for module in snn.modules() if isinstance(module, Functional)]
        assert len(found) == 1
        found[0].layer = found[0].last = nn.Identity()
        torch.testing.assert_close(snn(x), net(x))


REFUSED_FUNCTIONS = {
    "clamp": lambda x: x.clamp(min=0),
    "maximum": lambda x: torch.maximum(x, torch.zeros_like(x)),
    "max": lambda x: torch.max(x, torch.zeros_like(x)),
    "minimum": lambda x: x - torch.minimum(x, torch.zeros_like(x)),
    "where": lambda x: torch.where(torch.signbit(x), 0.0, x),
    "gt": lambda x: x * (x > 0),
    "masked_fill": lambda x: x.masked_fill(torch.signbit(x), 0),
    "abs": lambda x: x + x.abs(),
    "exp": torch.exp,
    "GELU": F.gelu,
    "LeakyReLU": lambda x: F.leaky_relu(x, 0.1),
    "Hardtanh": lambda x: F.hardtanh(x, 0, 6),
    "Sigmoid": lambda x: x * x.sigmoid(),
    "Tanh": lambda x: torch.tanh_(x),
    "Softplus": F.softplus,
    "LogSigmoid": F.logsigmoid,
    "special_expit": torch.special.expit,
    "log1p": torch.log1p,
}


@pytest.mark.parametrize("name", REFUSED_FUNCTIONS)
def test_other_functions_are_in_the_way(name):
    net = nn.Sequential(nn.Linear(5, 5), nn.ReLU(), Functional(REFUSED_FUNCTIONS[name]))
    with pytest.raises(ValueError, match=rf"these would stay: {name} \(1, the first at '2\.\w+'\)"):
        convert(net, LIF)


@pytest.mark.parametrize(
    "layer", [nn.LSTM(5, 5), nn.TransformerEncoderLayer(5, 1, activation=F.relu), nn.MultiheadAttention(5, 1), LIF()]
)
def test_layers_with_activations_inside_are_in_the_way(layer):
    class Layered(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return torch.relu(self.layer(x))

    with pytest.raises(ValueError, match=rf"these would stay: {type(layer).__name__} \(1, the first at 'layer'\)"):
        convert(Layered(), LIF)


def test_comparisons_of_classes_stay():
    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(5, 3)

        def forward(self, x):
            return F.log_softmax(F.relu(self.layer(x)), 1)

    net, x = Classifier(), torch.randn(2, 7, 5)
    torch.testing.assert_close(convert(net, Rectifier)(x), torch.stack([net(step) for step in x]))


MIXING = {
    "mean": lambda x: x - x.mean(0),
    "sum": lambda x: x / x.sum(),
    "softmax": lambda x: F.softmax(x, dim=0),
    "flip": lambda x: x + x.flip(0),
    "getitem": lambda x: x - x[:1],
    "chunk": lambda x: x.chunk(2)[0],
    "cat": lambda x: torch.cat([x, x]),
    "permute": lambda x: x.permute(1, 0).permute(0, 1),
    "getattr": lambda x: x @ x.T @ x,
    "flatten": lambda x: x.flatten(),
    "normalize": lambda x: F.normalize(x, 2.0, 0),
    "linalg_norm": lambda x: x / torch.linalg.norm(x),
    "var_mean": lambda x: x - torch.var_mean(x, 0)[1],
    "gather": lambda x: x.gather(0, torch.zeros_like(x).long()),
    "movedim": lambda x: x.movedim(0, 1).movedim(0, 1),
    "cummax": lambda x: x.cummax(0).values,
    "nanmean": lambda x: x - x.nanmean(),
    "roll": lambda x: x.roll(1),
    "rot90": lambda x: x.rot90(2),
    "diagonal": lambda x: x + x.diagonal()[:, None].sum(1, keepdim=True).mean(1, keepdim=True),
}


@pytest.mark.parametrize("name", MIXING)
def test_what_mixes_samples_is_refused(name):
    net = nn.Sequential(Functional(MIXING[name]), nn.ReLU(), LIF())
    for make in (lambda: convert(net[:2], LIF), lambda: time_first(net)):
        with pytest.raises(ValueError, match=rf"works on dimension 0, .* by '0.{name}'"):
            make()


FROM_THE_END = {
    "mean": lambda x: x - x.mean(-2, keepdim=True),
    "softmax": lambda x: F.softmax(x, -2),
    "transpose": lambda x: x.transpose(-2, -1).cumsum(1).transpose(-2, -1),
    "getattr": lambda x: x.mT.cumsum(1).mT,
    "stack": lambda x: torch.stack([x, x], -3).mean(1),
}


@pytest.mark.parametrize("name", FROM_THE_END)
def test_what_mixes_samples_by_a_dimension_from_the_end_is_refused_when_it_runs(name):
    function, x = FROM_THE_END[name], torch.randn(2, 7, 5)
    snn = convert(nn.Sequential(Functional(function), nn.ReLU()), Rectifier)
    with pytest.raises(ValueError, match=rf"'0.{name}' works on dimension 0 of 2"):
        snn(x)
    net = nn.Sequential(Functional(lambda x: function(x.unflatten(1, (2, 4))).flatten(1)), nn.ReLU())
    torch.testing.assert_close(convert(net, Rectifier)(x), torch.stack([net(step) for step in x]))


def test_what_works_on_other_dimensions_is_not_refused():
    def function(x):
        x = F.normalize(x.sort().values - x.kthvalue(2, 1, True)[0]) + torch.stack([x, x.roll(1, -1)], -1).mean(-1)
        x = x.unsqueeze(-1).squeeze(-1) * F.cosine_similarity(x, x.flip(1)).unsqueeze(1).tile(1, 8)
        first, second = x.chunk(2, 1)
        x = torch.cat([first.flip(1), second.cumsum(-1)], 1) - x.mean(1, keepdim=True) + x[:, :1] * x.shape[0]
        return F.relu(x + x.max(1, keepdim=True).values.expand(x.size(0), -1) - x.unsqueeze(2).select(2, 0))

    net, x = Functional(function), torch.randn(1, 7, 5)
    torch.testing.assert_close(convert(net, Rectifier)(x)[0], net(x[0]))


class Doubled(torch.autograd.Function):
    """A function whose gradient is its own."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, grad):
        return grad


def without_gradient(x):
    with torch.no_grad():
        return 2 * x


def in_bfloat16(x):
    with torch.autocast("cpu", torch.bfloat16):
        return x @ torch.eye(8)


@pytest.mark.parametrize("function", [Doubled.apply, without_gradient, in_bfloat16])
def test_blocks_that_fx_would_lose_are_refused(function):
    with pytest.raises(ValueError, match=r"a part of it runs in a block of its own: without gradients \("):
        convert(nn.Sequential(Functional(function), nn.ReLU()), LIF)
    with torch.no_grad():  # around all of it
        convert(nn.Sequential(Functional(lambda x: 2 * x), nn.ReLU()), LIF)


@pytest.mark.parametrize("draw", [lambda: torch.rand(1), random.random, np.random.rand])
def test_random_numbers_that_fx_would_keep_are_refused(draw):
    with pytest.raises(ValueError, match="Sequential.forward draws random numbers in training mode that torch.fx"):
        convert(nn.Sequential(Functional(lambda x: x * draw()), nn.ReLU()), LIF)


class Counts(nn.Module):
    """A network that changes what it holds in each call: a number, a buffer, or an attribute that is new."""

    def __init__(self, name):
        super().__init__()
        self.name, self.number = name, 0
        self.register_buffer("buffer", torch.zeros(5))

    def forward(self, x):
        setattr(self, self.name, getattr(self, self.name, x) + 1)
        return F.relu(x)


@pytest.mark.parametrize("name", ["number", "buffer", "new"])
def test_networks_that_change_attributes_are_refused(name):
    for make in (lambda net: convert(net, LIF), lambda net: time_first(nn.Sequential(net[0], LIF()))):
        with pytest.raises(ValueError, match=rf"forward changes attributes, .*: 0.{name}$"):
            make(nn.Sequential(Counts(name)))


def test_random_numbers_in_the_shape_of_the_input_are_drawn_at_each_call():
    snn = convert(Functional(lambda x: F.relu(x) + x.new_empty(x.shape[0], 1).bernoulli_(0.5)), Rectifier)
    x = torch.randn(1, 1, 5).expand(40, -1, -1)
    first, second = (snn(x)[:, 0, 0] for _ in range(2))
    assert not torch.allclose(first, second) and first.detach().std() > 0.01


def test_another_number_of_samples_is_an_error_that_says_why():
    snn = convert(nn.Sequential(nn.Linear(5, 5), nn.ReLU(), Functional(lambda x: x.repeat(3, 1))), LIF)
    with pytest.raises(ValueError, match=r"works on dimension 0, .*: of 2 \* 7, it makes \[42\]"):
        snn(torch.randn(2, 7, 5))


class Branching(nn.Module):
    def forward(self, x):
        return F.relu(x) if x.sum() > 0 else x


class TwoInputs(nn.Module):
    def forward(self, x, y):
        return F.relu(x + y)


class Rest(nn.Module):
    def forward(self, x, *rest):
        return F.relu(x)


class NoInput(nn.Module):
    def forward(self):
        return torch.ones(1)


class ByMode(nn.Module):
    def forward(self, x):
        return F.relu(F.relu(x) - 1) if self.training else F.relu(x - 1)


class Unused(nn.Module):
    def forward(self, x):
        F.relu(x)
        return x


class ViewInPlace(nn.Module):
    def forward(self, x):
        y = 2 * x
        y.flatten(1).relu_()
        return y


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (Branching(), "torch.fx cannot follow Branching.forward in training mode: symbolically traced variables"),
        (TwoInputs(), "TwoInputs takes several inputs: x, y"),
        (Rest(), r"Rest.forward must name its arguments; it has \*rest"),
        (ByMode(), "the activations called in training and in evaluation mode differ in 'ByMode'"),
        (NoInput(), "NoInput.forward takes no input"),
        (torch.jit.script(nn.ReLU()), "RecursiveScriptModule is compiled by torch.jit"),
        (nn.Sequential(time_first(nn.Sequential(LIF())), nn.ReLU()), "OverTime already runs over time"),
        (ViewInPlace(), "'relu' changes its input in place, and another view of it is used later"),
        (Unused(), "the result of 'relu' is not used"),
        (nn.Linear(3, 3), "Linear calls none of ReLU, ReLU6"),
        (time_first(nn.Sequential(LIF())), "OverTime already runs over time"),
        (build_model("toynet", neuron=nn.ReLU, in_shape=(1, 2, 2), num_classes=2), "ToyNet already runs over time"),
    ],
)
def test_what_cannot_be_followed_is_refused(net, message):
    with pytest.raises(ValueError, match=message):
        convert(net, LIF)


def test_arguments():
    with pytest.raises(ValueError, match="give a neuron, such as neuron=LIF, or calibrate"):
        convert(mlp())
    with pytest.raises(ValueError, match=r"neuron must be a function that makes a fresh neuron: neuron=lambda: LIF\("):
        convert(mlp(), LIF())
    with pytest.raises(ValueError, match="neuron must be a function that makes a fresh neuron, but it gives None"):
        convert(mlp(), lambda: None)
    for replace in (nn.ReLU, ["relu"]):
        with pytest.raises(ValueError, match="replace must be several classes"):
            convert(mlp(), LIF, replace=replace)
    with pytest.raises(ValueError, match=r"Sequential takes a batch of samples \[B, ...\]; got \[5\]"):
        convert(mlp(), LIF)(torch.rand(5), timesteps=2)
    with pytest.raises(ValueError, match="a network over time returns tensors alone, not 5"):
        convert(nn.Sequential(mlp(), Maximum(lambda x: (x, 5))), LIF)(torch.rand(2, 5))
    with pytest.raises(ValueError, match="timesteps must be a whole number of at least 1, got 0"):
        convert(mlp(), LIF, timesteps=0)
    with pytest.raises(ValueError, match="timesteps must be a whole number of at least 1, got 0"):
        converted()(images()[0], timesteps=0)


def test_each_call_has_its_own_neuron_and_other_modules_keep_their_names():
    snn = converted(ParametricLIF)
    names = [name for name, module in snn.named_modules() if isinstance(module, ParametricLIF)]
    assert sorted(names) == ["relu", "relu_2", "relu_3", "relu_4"]
    before = Convolutional().state_dict().keys()
    assert snn.state_dict().keys() == before | {f"{name}.decay_logit" for name in names}
    used = []
    with neuron_hooks(snn, lambda name, neuron, spikes, continues: used.append((name, tuple(spikes.shape)))):
        snn(images())
    assert used == [(name, (3, 4, 6, 6, 6)) for name in names[:2]] + [(name, (3, 4, 6, 3, 3)) for name in names[2:]]


@pytest.mark.parametrize("options", [dict(neuron=LIF), dict(calibrate=[torch.rand(9, 2, 6, 6)])])
def test_activations_keep_their_hooks(options):
    net, shapes = trained_like(Convolutional()), []
    net.relu.register_forward_hook(lambda module, args, output: shapes.append(tuple(output.shape)))
    snn = convert(net, **options)
    shapes.clear()
    snn(images())
    assert shapes == [(3, 4, 6, 6, 6), (3, 4, 6, 6, 6), (3, 4, 6, 3, 3)]


def test_calibration_sees_what_hooks_change():
    net, x = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU()), torch.rand(500, 3)
    net[1].register_forward_hook(lambda module, args, output: 3 * output)
    snn = convert(net, calibrate=[x], quantile=1.0, timesteps=256)
    with torch.no_grad():
        torch.testing.assert_close(snn(x).mean(0), net(x), rtol=0, atol=0.05 * net(x).max().item())


def test_a_free_name_is_found():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.relu, self.relu_2, self.layer = nn.ReLU(), nn.Linear(5, 5), nn.Linear(5, 5)

        def forward(self, x):
            return self.relu(F.relu(self.relu_2(self.relu(self.layer(x)))) - 0.1)

    net, x = Named(), torch.randn(2, 3, 5)
    snn = convert(net, Rectifier)
    assert [name for name, module in snn.named_modules() if isinstance(module, Rectifier)] == [
        "relu",
        "relu_3",
        "relu_4",
    ]
    torch.testing.assert_close(snn(x), net(x))


def test_a_layer_can_be_exchanged_afterwards():
    snn = converted()
    snn.head = nn.Linear(54, 7)
    assert snn(images()).shape == (3, 4, 7)


def test_the_first_layers_run_once_on_samples():
    snn, batches = converted(), []
    snn.norm1.register_forward_hook(lambda module, args, output: batches.append(len(output)))
    snn.norm2.register_forward_hook(lambda module, args, output: batches.append(len(output)))
    still = snn(images()[0])
    assert torch.equal(still, snn(images()[:1].expand(3, -1, -1, -1, -1)))
    assert batches == [4, 12, 12, 12]
    assert snn(images()[0], timesteps=5).shape == (5, 4, 3)


def test_layers_before_a_shortcut_run_once_on_samples():
    class Early(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(5, 5), nn.Linear(5, 3)

        def forward(self, x):
            x = self.first(x)
            return self.last(F.relu(x) + x)

    net, x = Early(), torch.randn(7, 5)
    snn, batches = convert(net, Rectifier, timesteps=2), []
    snn.first.register_forward_hook(lambda module, args, output: batches.append(len(output)))
    torch.testing.assert_close(snn(x), net(x).expand(2, -1, -1))
    assert batches == [7]


def test_batch_normalisation_is_over_time():
    snn, x = converted(Rectifier).train(), images()
    net = Convolutional().train()
    net.load_state_dict(snn.state_dict())
    expected = net(x.flatten(0, 1)).unflatten(0, (3, 4))
    torch.testing.assert_close(snn(x), expected)
    torch.testing.assert_close(snn.norm2.running_var, net.norm2.running_var)


@pytest.mark.parametrize("shape", [(4, 2, 6), (3, 3, 4, 2, 6, 6), (2,)])
def test_inputs_of_other_shapes_are_refused_in_words(shape):
    message = (
        r"Convolutional runs over time: it takes a sequence \[T, B, ...\], time first, or with timesteps=T a batch "
    )
    with pytest.raises(ValueError, match=message + r"of samples \[B, ...\], 4-dimensional; got \["):
        converted()(torch.rand(shape))


def test_dropout_is_that_of_the_present_mode():
    class Dropping(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(5, 5000)

        def forward(self, x, share=0.5):
            return F.dropout(F.relu(self.layer(x)), share, self.training)

    net, x = Dropping(), torch.rand(2, 3, 5)
    snn = convert(net.eval(), Rectifier)
    assert not snn.training
    torch.testing.assert_close(snn(x), net(x))
    assert 0.6 < (snn.train()(x) == 0).float().mean() < 0.9


@pytest.mark.slow
def test_auxiliary_outputs_in_training():
    net = torchvision.models.googlenet(num_classes=5, init_weights=False)
    snn = convert(net, LIF)
    outputs = snn(torch.rand(2, 2, 3, 32, 32))
    assert [output.shape for output in outputs] == 3 * [(2, 2, 5)]
    assert type(outputs) is torchvision.models.GoogLeNetOutputs and outputs.aux_logits1.std() > 0
    assert snn.eval()(torch.rand(2, 2, 3, 32, 32)).shape == (2, 2, 5)


def test_wrapped_networks_are_unwrapped():
    net, x = mlp(), torch.randn(2, 3, 5)
    snn = convert(nn.DataParallel(net), Rectifier)
    torch.testing.assert_close(snn(x), net(x))


def test_steps_of_a_stream_are_those_of_the_sequence():
    for snn in (converted(), converted(lambda: NoisyLIF(Gaussian(0.3)))):
        with noiseless(snn):
            whole, stream = snn(images()), Stream(snn)
            assert len(stream.state) == 4
            torch.testing.assert_close(torch.stack([stream(x_t) for x_t in images()]), whole)
        assert whole.std() > 0


def test_modes_and_generators():
    snn, x = converted(lambda: NoisyLIF(Gaussian(0.3))), images()
    with noise_generator(torch.Generator().manual_seed(1)):
        first = snn(x)
    with noise_generator(torch.Generator().manual_seed(1)):
        assert torch.equal(snn(x), first)
    assert not torch.equal(snn(x), first)
    for mode in (noiseless, mean_field):
        with mode(snn):
            assert torch.equal(snn(x), snn(x)) and not torch.equal(snn(x), first)


@pytest.mark.parametrize("is_copied", [copy.deepcopy, lambda snn: pickle.loads(pickle.dumps(snn))])
def test_copies(is_copied):
    snn, x = converted(ParametricLIF), images()
    other = is_copied(snn)
    assert torch.equal(other(x), snn(x)) and torch.equal(other(x[0]), snn(x[0]))
    with torch.no_grad():
        other.head.bias += 1
    torch.testing.assert_close(other(x), snn(x) + 1)


def test_state_dictionaries():
    snn, other, x = converted(ParametricLIF), convert(Convolutional().eval(), ParametricLIF), images()
    file = io.BytesIO()
    torch.save(snn.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(x), snn(x))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["noiseless", "mean_field"])
def test_exported(mode):
    snn, x = converted(lambda: NoisyLIF(Gaussian(0.3))), images()
    with {"noiseless": noiseless, "mean_field": mean_field}[mode](snn), torch.no_grad():
        expected, still = snn(x), snn(x[0], timesteps=3)
    batch = torch.export.Dim("B")
    program = torch.export.export(plain(snn, mode), (x,), dynamic_shapes=({1: batch},))
    torch.testing.assert_close(program.module()(x), expected)
    program = torch.export.export(plain(snn, mode, timesteps=3), (x[0],), dynamic_shapes=({0: batch},))
    torch.testing.assert_close(program.module()(x[0]), still)
    traced = torch.fx.symbolic_trace(plain(snn, mode, timesteps=3))
    torch.testing.assert_close(traced(x[0]), still)


@pytest.mark.slow
def test_compiled():
    snn, x = converted(), images()
    compiled = torch.compile(snn, backend="aot_eager", fullgraph=True)  # test_networks has Inductor
    torch.testing.assert_close(compiled(x), snn(x))
    torch.testing.assert_close(compiled(x[0]), snn(x[0]))


def trained_like(net):
    """Positive currents, as in trained networks: otherwise hardly a value passes several random layers."""
    torch.manual_seed(1)
    for parameter in net.parameters():
        nn.init.normal_(parameter, 0.05 if parameter.dim() == 1 else 0.02, 0.2)
    return net.eval()


@pytest.mark.parametrize("neuron", [None, lambda: NoisyIF(Gaussian(0.01), reset="subtract", v_leak=0.5)])
def test_a_calibrated_network_approximates_the_original_one_the_better_the_longer(neuron):
    net = trained_like(Convolutional())
    x = torch.rand(64, 2, 6, 6, generator=torch.Generator().manual_seed(1))
    snn = convert(net, neuron, calibrate=[(x, None)], quantile=1.0)
    assert sum(isinstance(module, IF | NoisyIF) for module in snn.modules()) == 4
    with torch.no_grad():
        errors = [(snn(x, timesteps=T).mean(0) - net(x)).square().mean() / net(x).var() for T in (4, 32, 256)]
    assert errors[0] < 0.5 and errors[1] < errors[0] / 4 and errors[2] < min(errors[1] / 4, 1e-3), errors


def test_a_calibrated_rectifier_is_a_staircase():
    """One rectifier, constant current: the mean over time is the nearest of T + 1 levels between 0 and the quantile."""
    x = torch.cat([torch.linspace(-1, 4, 1001), torch.full((1000,), -1.0)])[:, None]
    snn = convert(nn.Sequential(nn.Identity(), nn.ReLU()), timesteps=8, calibrate=[x], quantile=0.9)
    scale = snn.get_submodule("1").scale
    assert scale.shape == (1,) and abs(scale - 3) < 0.1
    levels = snn(x).mean(0) / scale * 8
    expected = (x / scale * 8).round().clamp(0, 8)
    assert ((levels - expected).abs() < 1e-4).float().mean() > 0.99
    assert levels.round().unique().tolist() == [float(level) for level in range(9)]


def test_scales_differ_between_channels_and_silent_channels_have_one():
    net = nn.Sequential(nn.Identity(), nn.ReLU())
    batches = [torch.tensor([[1.0, 0.5, -1.0]] * 1000), torch.tensor([[3.0, -1.0, -2.0]] * 3000)]
    scale = convert(net, calibrate=batches, quantile=1.0).get_submodule("1").scale
    torch.testing.assert_close(scale, torch.tensor([2.5, 0.25, 0.25]))
    assert "1.scale" in convert(net, calibrate=batches).state_dict()


@pytest.mark.parametrize("quantile", [None, 0.999])
def test_the_size_of_batches_does_not_matter(quantile):
    class Doubled(nn.Module):
        def forward(self, x):
            return x.relu().mul_(2)

    x = torch.randn(900, 3, generator=torch.Generator().manual_seed(0))
    parts = [x.split(size) for size in (1, 7, 900, [0, 899, 1])]
    scales = [convert(Doubled(), calibrate=part, quantile=quantile).get_submodule("relu").scale for part in parts]
    assert all(torch.equal(scale, scales[0]) for scale in scales) and 1 < scales[0].min() < scales[0].max() < 5


def test_without_a_quantile_the_scale_is_the_best_for_the_steps():
    """In each channel, one of them with outliers, one that is silent, one that is rarely on."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 4, generator=generator)
    x[:40, 1] = 20.0
    x[:, 2], x[20:, 3] = -1.0, -1.0
    net, scales = nn.Sequential(nn.Identity(), nn.ReLU()), {}
    for timesteps in (2, 8, 64):
        errors = {}
        for quantile in (None, 0.9, 0.98, 0.995, 1.0):
            snn = convert(net, timesteps=timesteps, calibrate=[x], quantile=quantile)
            errors[quantile] = (snn(x).mean(0) - x.relu()).square().mean(0)
        assert all((errors[None] <= error + 1e-4).all() for error in errors.values())
        scales[timesteps] = convert(net, timesteps=timesteps, calibrate=[x]).get_submodule("1").scale
    assert scales[2][0] < scales[8][0] < scales[64][0] and (scales[2] > 0).all()


POOLS = {
    "a module": nn.MaxPool2d(2),
    "with options": nn.MaxPool2d(3, stride=1, padding=1),
    "adaptive": nn.AdaptiveMaxPool2d(1),
    "a function": lambda x: F.max_pool2d(x, 2),
    "with an option": lambda x: F.max_pool2d(input=x, kernel_size=3, stride=2),
}


class Pooled(nn.Module):
    def __init__(self, pool):
        super().__init__()
        self.conv, self.pool, self.relu = nn.Conv2d(2, 4, 3), pool, nn.ReLU()

    def forward(self, x):
        return self.pool(self.relu(self.conv(x)))


@pytest.mark.parametrize("name", POOLS)
def test_calibrated_max_pools_let_the_highest_rate_through(name):
    pool = POOLS[name]
    net, x = Pooled(pool), images()[0]
    snn = convert(net, timesteps=6, calibrate=[x], quantile=1.0)
    rates = []
    snn.relu.register_forward_hook(lambda module, args, output: rates.append(output.mean(0)))
    out = snn(x)
    torch.testing.assert_close(out.mean(0), pool(rates[0]))
    spikes = out / snn.relu.scale[:, None, None]
    assert ((spikes - spikes.round()).abs() < 1e-4).all() and set(spikes.round().unique().tolist()) == {0.0, 1.0}
    assert convert(net, Rectifier, timesteps=6)(x).shape == out.shape  # without calibration, it is at each step
    plainly = pool(snn.relu(snn.conv(x).expand(6, -1, -1, -1, -1)).flatten(0, 1)).unflatten(0, (6, 4)).mean(0)
    assert (plainly > out.mean(0) + 1e-3).any() or name == "with options"


def test_steps_of_a_calibrated_stream_are_those_of_the_sequence():
    net = trained_like(Convolutional())
    x = images(5)
    snn = convert(net, calibrate=[x[0]])
    whole, stream = snn(x), Stream(snn)
    torch.testing.assert_close(torch.stack([stream(x_t) for x_t in x]), whole)
    seen = {}
    with neuron_hooks(snn, lambda name, neuron, spikes, continues: seen.update({name: spikes.mean().item()})):
        snn(x)
    assert list(seen) == ["relu.neuron", "relu_2.neuron", "relu_3.neuron", "relu_4.neuron"]
    assert all(0 < rate < 1 for rate in seen.values())


def test_a_calibrated_network_is_trained_copied_saved_and_exported():
    net = trained_like(Convolutional())
    x = images(5)
    snn = convert(net, lambda: NoisyIF(Gaussian(0.2), reset="subtract", v_leak=0.5), calibrate=[x[0]])
    snn.train()(x).square().mean().backward()
    assert all(parameter.grad is not None for parameter in snn.parameters())
    snn.eval()
    other = convert(net, lambda: NoisyIF(Gaussian(0.2), reset="subtract", v_leak=0.5), calibrate=[2 * x[1]])
    other.load_state_dict(snn.state_dict())
    with noiseless(snn), noiseless(other), torch.no_grad():
        expected = snn(x)
        assert torch.equal(other(x), expected)
        program = torch.export.export(plain(pickle.loads(pickle.dumps(snn)), "noiseless"), (x,))
        torch.testing.assert_close(program.module()(x), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(calibrate=torch.rand(2, 5)), r"calibrate must be batches: a DataLoader, or \[images\]"),
        (dict(calibrate=[torch.rand(5)]), r"Sequential takes a batch of samples \[B, ...\]; got \[5\]"),
        (dict(calibrate=[{"images": torch.rand(2, 5)}]), "must be a tensor, or .* not a dict: give calibrate="),
        (dict(calibrate=[]), "nothing to calibrate '1' with: no batch"),
        (dict(calibrate=[torch.zeros(2, 5)], quantile=0.01), "nothing to calibrate '1' with: the quantiles of all"),
        (dict(calibrate=[torch.full((2, 5), torch.nan)]), "values that are not finite"),
        (dict(calibrate=[torch.rand(2, 5)], quantile=1.5), r"quantile must be in \(0, 1\], got 1.5"),
        (dict(calibrate=[torch.rand(2, 5)], neuron=LIF), "calibration takes neurons with decay=1.0, got LIF"),
        (dict(calibrate=[torch.rand(2, 5)], neuron=IF), "calibration takes neurons with reset='subtract', got IF"),
        (dict(calibrate=[torch.rand(2, 5)], replace=[nn.GELU]), "only rectifiers, nn.ReLU and nn.ReLU6, can be"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(options, message):
    net = nn.Sequential(nn.Linear(5, 4), nn.ReLU())
    nn.init.constant_(net[0].bias, -1.0)
    with pytest.raises(ValueError, match=message):
        convert(net, **options)


def small():
    torch.manual_seed(0)
    neurons = LIF(), NoisyLIF(Gaussian(0.3), threshold=0.1)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), neurons[0], nn.Flatten(), nn.Linear(64, 8), neurons[1])


def test_time_first_runs_layers_of_images_over_time():
    net, x = small().eval(), 3 * images()
    over = time_first(net)
    with noiseless(over):
        current = over_time(net[1], over_time(net[0], x))
        wanted = net[5](over_time(net[4], net[2](current).flatten(2)))
        assert torch.equal(over(x), wanted) and 0 < wanted.mean() < 1
        assert torch.equal(over(x[0], timesteps=2), over(x[:1].expand(2, -1, -1, -1, -1)))
        stream = Stream(over)
        assert torch.equal(torch.stack([stream(x_t) for x_t in x]), wanted)
    assert [name for name, _ in spiking_neurons(over)] == ["2", "5"]
    assert over.get_submodule("4") is net[4]


def test_time_first_says_what_is_missing():
    over = time_first(small())
    with pytest.raises(ValueError, match=r"takes a sequence \[T, B, ...\], time first, or with timesteps=T a batch of"):
        over(images()[0])
    with pytest.raises(ValueError, match="Sequential has no spiking neuron"):
        time_first(mlp())


def test_a_stream_of_a_network_over_time_has_time():
    with pytest.raises(ValueError, match="Convolutional runs over time: give Stream time_first=True"):
        Stream(converted(), time_first=False)(images()[0])


class Maximum(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


OTHER_MAXIMA = {
    "indices": lambda x: F.max_pool2d(x, 2, return_indices=True)[0],
    "module": nn.Sequential(nn.MaxPool2d(2, return_indices=True)),
    "amax": lambda x: x.unfold(2, 2, 2).amax(-1),
    "max": lambda x: x.max(-1).values,
}


@pytest.mark.parametrize("name", OTHER_MAXIMA)
def test_other_maxima_are_not_calibrated(name):
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU())
    net.append(OTHER_MAXIMA[name] if name == "module" else Maximum(OTHER_MAXIMA[name]))
    with pytest.raises(ValueError, match=r"'2\.\w+' cannot be calibrated: only max pools without indices can"):
        convert(net, calibrate=[torch.rand(2, 1, 8, 8)])


class Together(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.layer, self.relu, self.last, self.function = nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3), function

    def forward(self, x):
        x = self.layer(x * x / x.norm(dim=1, keepdim=True))  # the input does not change over time
        return self.last(self.function(self.relu(x)))


NONLINEAR = {
    "mul": lambda x: x * x,
    "matmul": lambda x: (x.unsqueeze(2) @ x.unsqueeze(1)).mean(1),
    "truediv": lambda x: 1 / (1 + x),
    "softmax": lambda x: x.softmax(1),
    "normalize": F.normalize,
    "1": nn.LayerNorm(8),
}


@pytest.mark.parametrize("name", NONLINEAR)
def test_what_is_not_linear_in_rates_is_not_calibrated(name):
    net = Together(NONLINEAR[name])
    if name == "1":
        net = nn.Sequential(nn.ReLU(), net.function)
    with pytest.raises(ValueError, match=f"cannot be calibrated, since these are not linear .*: .*'{name}'"):
        convert(net, calibrate=[torch.rand(4, 8 if name == "1" else 5)])
    convert(net, LIF)


def test_what_is_linear_in_rates_is_calibrated():
    net = Together(lambda x: x / x.shape[1] - 2 * x.mean(1, keepdim=True) + x.new_ones(1) * x @ torch.eye(8))
    x = torch.rand(32, 5, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        snn = convert(net.eval(), calibrate=[x], quantile=1.0)
        torch.testing.assert_close(snn(x, timesteps=512).mean(0), net(x), rtol=0, atol=5e-3)


def test_a_network_with_neurons_of_another_library_is_sent_to_interop():
    layer = pytest.importorskip("spikingjelly.activation_based.layer", reason="SpikingJelly is not installed")
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
    net = nn.Sequential(layer.Linear(3, 3, step_mode="m"), neuron.LIFNode(step_mode="m"))
    with pytest.raises(ValueError, match="neurons of spikingjelly become noisy by models.interop.convert"):
        convert(net, neuron=LIF, timesteps=2)

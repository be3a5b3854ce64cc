"""The networks: structure against plain PyTorch, gradients, direct coding, errors, compilation."""

import copy
import math
import pickle
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._inductor import config as inductor_config

from models import (
    IF,
    LIF,
    ArgumentError,
    Cauchy,
    Gaussian,
    Logistic,
    NoisyIF,
    NoisyLIF,
    NoisyParametricLIF,
    ParametricLIF,
    Triangular,
    Uniform,
    build_model,
    build_neuron,
    mean_field,
    noise_generator,
    noiseless,
    registry,
)
from models.layers import Normalize, over_time
from models.speednet import FLOOR
from tests.conftest import each_pair_is_fast

NEURONS = ["NILIF", "NILIF_sigmoid", "NILIF_triang", "NILIF_uniform", "NILIF_atan", "LIF", "PLIF", "IF"]
MODELS = ["sresnet18", "sresnet19", "sresnet34", "vgg", "vggwoap", "cifarnet", "toynet", "rsnn", "speednet"]
every_neuron = pytest.mark.parametrize("neuron", NEURONS)
every_model = pytest.mark.parametrize("model", MODELS)
SMALL = {"in_shape": (3, 8, 8), "num_classes": 5, "width": 0.05}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def build(model, neuron="NILIF", options=None, **sizes):
    torch.manual_seed(0)
    return build_model(model, neuron=build_neuron(neuron, **(options or {})), **{**SMALL, **sizes})


def awaken(net):
    """Weights and statistics under which deep layers do spike, and every parameter matters."""
    generator = seeded(3)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in [
                (module.weight, 0.8, 1.6),
                (module.bias, 0.2, 0.8),
                (module.running_mean, -0.2, 0.2),
                (module.running_var, 0.3, 0.9),
            ]:
                tensor.data.uniform_(low, high, generator=generator)
    return net


# ---- every neuron in every network


@pytest.mark.parametrize(
    ("model", "neuron", "in_shape"), each_pair_is_fast(list(MODELS), list(NEURONS), [(3, 8, 8), (1, 13, 9)])
)
def test_every_neuron_trains_in_every_network(model, neuron, in_shape):
    net = build(model, neuron, in_shape=in_shape)
    x = torch.rand(3, 2, *in_shape, generator=seeded(1))
    logits = net(x)
    assert logits.shape == (3, 2, 5) and logits.isfinite().all()
    F.cross_entropy(logits.mean(0), torch.tensor([0, 4])).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@every_model
@pytest.mark.parametrize("norm", ["bn", None])
def test_gradient_of_every_weight_is_not_zero(model, norm):
    """Wide Cauchy noise: no neuron is silent and no slope vanishes, so a zero would be a cut."""
    net = build(model, "NILIF_atan", {"sigma": 1.0, "learnable_scale": True}, norm=norm)
    net(torch.rand(4, 8, 3, 8, 8, generator=seeded(1))).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


@every_model
def test_input_receives_a_gradient(model):
    """Attacks differentiate with respect to the pixels."""
    net = build(model, "NILIF_atan", {"sigma": 1.0}, norm=None)
    x = torch.rand(2, 3, 8, 8, generator=seeded(1), requires_grad=True)
    net(x, timesteps=3).square().sum().backward()
    assert x.grad.isfinite().all() and (x.grad.flatten(1).abs().sum(1) > 0).all()


@every_model
@pytest.mark.parametrize("in_shape, classes", [((2, 16, 16), 11), ((1, 5, 7), 3), ((3, 1, 1), 1)], ids=str)
def test_output_shapes(model, in_shape, classes):
    net = build(model, in_shape=in_shape, num_classes=classes).eval()
    assert net(torch.rand(2, 3, *in_shape)).shape == (2, 3, classes)
    assert net(torch.rand(3, *in_shape), timesteps=4).shape == (4, 3, classes)


@pytest.mark.parametrize("model", [model for model in MODELS if model != "rsnn"])
def test_any_module_can_be_the_neuron(model):
    net = build_model(model, neuron=nn.ReLU, **SMALL).eval()
    x = torch.rand(2, 3, 3, 8, 8)
    logits = net(x)
    torch.testing.assert_close(net(x.flip(0)), logits.flip(0))  # ReLU has no memory: time is a batch


@every_model
def test_every_neuron_of_a_network_is_a_fresh_one(model):
    net = build(model, "NILIF", {"learnable_scale": True})
    neurons = [module for module in net.modules() if isinstance(module, NoisyLIF)]
    scales = [name for name, _ in net.named_parameters() if name.endswith("log_scale")]
    assert len({id(neuron) for neuron in neurons}) == len(scales)


# ---- sizes of the published networks

PARAMETER_COUNTS = [
    # of the published code, width 1
    ("sresnet18", (3, 32, 32), 10, "bn", 11173962),
    ("sresnet18", (3, 32, 32), 10, None, 11164362),
    ("sresnet19", (3, 32, 32), 10, "bn", 12630858),
    ("sresnet19", (3, 32, 32), 10, None, 12620234),
    ("sresnet18", (2, 48, 48), 10, "bn", 11178506),
    ("sresnet18", (2, 48, 48), 10, None, 11168906),
    ("sresnet19", (2, 48, 48), 10, "bn", 12630282),
    ("sresnet19", (2, 48, 48), 10, None, 12619658),
    ("vgg", (2, 48, 48), 10, "bn", 9271498),
    ("vggwoap", (2, 48, 48), 10, "bn", 9271498),
    ("cifarnet", (3, 32, 32), 10, "bn", 45003018),
    ("cifarnet", (3, 32, 32), 10, None, 45003018),
    ("sresnet34", (3, 224, 224), 1000, "bn", 21797672),
    ("toynet", (1, 28, 28), 10, None, 50816),
]


@pytest.mark.parametrize("model, in_shape, classes, norm, count", PARAMETER_COUNTS)
def test_parameter_counts_are_those_of_the_published_networks(model, in_shape, classes, norm, count):
    with torch.device("meta"):  # shapes without memory: cifarnet alone has 180 MB of weights
        net = build_model(model, neuron=build_neuron("NILIF"), in_shape=in_shape, num_classes=classes, norm=norm)
    assert sum(parameter.numel() for parameter in net.parameters()) == count


@every_model
def test_by_itself_a_network_has_the_defaults_of_build_model(model):
    with torch.device("meta"):
        one = registry.MODELS[model](LIF, (3, 8, 8), 5)
        other = build_model(model, neuron=LIF, in_shape=(3, 8, 8), num_classes=5)
    assert [p.shape for p in one.parameters()] == [p.shape for p in other.parameters()]


@every_model
def test_norm_decides_whether_there_is_batch_normalisation(model):
    def has_norm(norm):
        return any(isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) for module in build(model, norm=norm).modules())

    assert has_norm("bn") == (model not in ("cifarnet", "toynet"))
    assert not has_norm(None)


# ---- structure, re-implemented in plain PyTorch


def lif_by_hand(x, threshold=1.0, decay=0.5):
    u, spikes = torch.zeros_like(x[0]), []
    for x_t in x:
        u = decay * u + x_t
        spike = (u > threshold).to(x.dtype)
        spikes.append(spike)
        u = u * (1 - spike)
    return torch.stack(spikes)


def amplify_currents(net, x):
    """Rescale weights that no normalisation follows until their currents reach thresholds."""

    def rescale(module, args, out):
        gain = 1.5 / out.std()
        for parameter in module.parameters():
            parameter *= gain
        return out * gain

    normalised = {m.conv for m in net.modules() if hasattr(m, "norm")}
    layers = [m for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Linear)) and m not in normalised]
    handles = [layer.register_forward_hook(rescale) for layer in layers]
    net(x)
    for handle in handles:
        handle.remove()


class Reference:
    """Takes a network's own weights, by name, and records the spike rates on the way."""

    def __init__(self, net):
        self.weights = net.state_dict()
        self.rates = []

    def conv(self, x, name, stride=1):
        """Convolution (and normalisation where the network has one) of x [T, B, ...]."""
        weight, bias = self.weights[f"{name}.conv.weight"], self.weights.get(f"{name}.conv.bias")
        y = F.conv2d(x.flatten(0, 1), weight, bias, stride, padding=weight.shape[-1] // 2)
        if f"{name}.norm.weight" in self.weights:
            parts = ("running_mean", "running_var", "weight", "bias")
            y = F.batch_norm(y, *(self.weights[f"{name}.norm.{part}"] for part in parts))
        return y.unflatten(0, x.shape[:2])

    def linear(self, x, name):
        return F.linear(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))

    def spike(self, x):
        spikes = lif_by_hand(x)
        self.rates.append(spikes.mean().item())
        return spikes

    def pool(self, x):
        """2x2 averages; where the edge cuts a window, the average of what is in it."""
        T, B, C, H, W = x.shape
        rows = [x[..., i : i + 2, j : j + 2].mean((-2, -1)) for i in range(0, H, 2) for j in range(0, W, 2)]
        return torch.stack(rows, -1).reshape(T, B, C, -(-H // 2), -(-W // 2))


def resnet_by_hand(net, x, blocks, stem_stride, hidden):
    reference = Reference(net)
    x = reference.spike(reference.conv(x, "stem", stem_stride))
    for stage, count in enumerate(blocks):
        for block in range(count):
            name, stride = f"stages.{stage}.{block}", 2 if stage > 0 and block == 0 else 1
            shortcut = x
            y = reference.spike(reference.conv(x, f"{name}.conv1", stride))
            y = reference.conv(y, f"{name}.conv2")
            if y.shape != x.shape:
                shortcut = reference.conv(x, f"{name}.downsample", stride)
            x = reference.spike(y + shortcut)
    x = x.mean((3, 4))
    if hidden:
        x = reference.spike(reference.linear(x, "hidden"))
    return reference.linear(x, "classifier"), reference.rates


def vgg_by_hand(net, x, plan, linears):
    """`plan` after the stem: a stride for each convolution, "P" for a pool."""
    reference = Reference(net)
    x = reference.spike(reference.conv(x, "stem"))
    for i, layer in enumerate(plan):
        x = reference.pool(x) if layer == "P" else reference.spike(reference.conv(x, f"features.{i}.conv", layer))
    x = x.flatten(2)
    for i in range(linears):  # no neurons in between
        x = reference.linear(x, f"classifier.{i}")
    return x, reference.rates


def toynet_by_hand(net, x):
    reference = Reference(net)
    x = reference.spike(reference.linear(x.flatten(2), "stem.1"))
    return reference.linear(x, "classifier"), reference.rates


STRUCTURES = [
    # 32x32 images get a 3x3 stem of stride 1, others 7x7 of stride 2; sresnet19 always the small one
    ("sresnet18", (3, 32, 32), lambda net, x: resnet_by_hand(net, x, (2, 2, 2, 2), 1, False)),
    ("sresnet18", (2, 13, 9), lambda net, x: resnet_by_hand(net, x, (2, 2, 2, 2), 2, False)),
    ("sresnet34", (3, 16, 16), lambda net, x: resnet_by_hand(net, x, (3, 4, 6, 3), 2, False)),
    ("sresnet19", (3, 32, 32), lambda net, x: resnet_by_hand(net, x, (3, 3, 2), 1, True)),
    ("sresnet19", (1, 13, 9), lambda net, x: resnet_by_hand(net, x, (3, 3, 2), 1, True)),
    ("vgg", (3, 16, 16), lambda net, x: vgg_by_hand(net, x, [1, "P", 1, 1, "P", 1, 1, "P", 1, 1, "P"], 1)),
    ("vgg", (1, 13, 9), lambda net, x: vgg_by_hand(net, x, [1, "P", 1, 1, "P", 1, 1, "P", 1, 1, "P"], 1)),
    ("vggwoap", (3, 16, 16), lambda net, x: vgg_by_hand(net, x, [2, 1, 2, 1, 2, 1, 2], 1)),
    ("vggwoap", (1, 13, 9), lambda net, x: vgg_by_hand(net, x, [2, 1, 2, 1, 2, 1, 2], 1)),
    ("cifarnet", (3, 8, 8), lambda net, x: vgg_by_hand(net, x, [1, "P", 1, "P", 1, 1], 3)),
    ("cifarnet", (1, 13, 9), lambda net, x: vgg_by_hand(net, x, [1, "P", 1, "P", 1, 1], 3)),
    ("toynet", (1, 13, 9), toynet_by_hand),
]


@pytest.mark.parametrize("model, in_shape, by_hand", STRUCTURES, ids=lambda v: v if isinstance(v, str) else None)
@pytest.mark.parametrize("norm", ["bn", None])
def test_structure_equals_plain_pytorch(model, in_shape, by_hand, norm):
    """Float64 and the same weights: logits agree to rounding, so every spike does."""
    net = awaken(build(model, "LIF", in_shape=in_shape, norm=norm).double()).eval()
    x = torch.rand(4, 2, *in_shape, generator=seeded(1), dtype=torch.float64) * 3
    with torch.no_grad():
        amplify_currents(net, x)
        expected, rates = by_hand(net, x)
        logits = net(x)
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9)
    assert all(0 < rate < 1 for rate in rates), rates  # or the comparison would say little
    assert len(rates) == sum(isinstance(module, LIF) for module in net.modules())


@pytest.mark.parametrize(
    "model, channels",
    [
        ("sresnet18", [64] * 5 + [128] * 5 + [256] * 5 + [512] * 5),
        ("sresnet19", [64, *[128] * 7, *[256] * 7, *[512] * 5]),
        ("vgg", [64, 128, 256, 256, 512, 512, 512, 512]),
        ("vggwoap", [64, 128, 256, 256, 512, 512, 512, 512]),
        ("cifarnet", [128, 256, 512, 1024, 512]),
    ],
)
@pytest.mark.parametrize("width", [1.0, 0.5])
def test_channel_counts_scale_with_width(model, channels, width):
    with torch.device("meta"):
        net = build_model(model, neuron=LIF, in_shape=(3, 32, 32), num_classes=10, width=width)
    built = [module.out_channels for module in net.modules() if isinstance(module, nn.Conv2d)]
    assert built == [int(width * c) for c in channels]


# ---- direct coding


@every_model
def test_direct_coding_equals_feeding_the_repeated_image(model):
    net = awaken(build(model).double()).eval()
    image = torch.rand(2, 3, 8, 8, generator=seeded(1), dtype=torch.float64) * 2
    with noiseless(net):
        torch.testing.assert_close(net(image, timesteps=4), net(image.repeat(4, 1, 1, 1, 1)))
    with noise_generator(seeded(2)):
        direct = net(image, timesteps=4)
    with noise_generator(seeded(2)):
        torch.testing.assert_close(direct, net(image.repeat(4, 1, 1, 1, 1)))


@every_model
def test_direct_coding_has_the_gradient_of_the_repeated_image(model):
    net = build(model, "NILIF_atan", {"sigma": 1.0}, norm=None).double()
    image = torch.rand(2, 3, 8, 8, generator=seeded(1), dtype=torch.float64)
    results = []
    for direct in (True, False):
        net.zero_grad()
        leaf = image.clone().requires_grad_()
        with noise_generator(seeded(2)):
            logits = net(leaf, timesteps=3) if direct else net(leaf.repeat(3, 1, 1, 1, 1))
        (logits * torch.arange(1.0, 4.0).reshape(3, 1, 1)).sum().backward()
        results.append([leaf.grad, *(p.grad.clone() for p in net.parameters())])
    for a, b in zip(*results):
        torch.testing.assert_close(a, b)


@every_model
@pytest.mark.parametrize("direct", [True, False])
def test_the_stem_runs_once(model, direct):
    """And with direct coding on one image, not on T of them."""
    net, seen = build(model).eval(), []
    net.stem.register_forward_hook(lambda module, args, out: seen.append(args[0].shape[0]))
    x = torch.rand(2, 3, 8, 8) if direct else torch.rand(4, 2, 3, 8, 8)
    net(x, **({"timesteps": 4} if direct else {}))
    assert seen == [2 if direct else 8]


@every_model
def test_a_network_keeps_nothing_between_calls(model):
    net = awaken(build(model)).eval()
    x = 4 * torch.rand(3, 2, 3, 8, 8, generator=seeded(1))
    with noise_generator(seeded(2)):
        first = net(x)
    net(torch.rand(4, 5, 3, 8, 8) * 4)
    with noise_generator(seeded(2)):
        assert torch.equal(net(x), first)
    assert not torch.equal(net(x), first)


def test_noise_is_fresh_at_every_step_of_direct_coding():
    net = build("toynet", "NILIF_atan", {"sigma": 1.0, "tau": float("inf")}).eval()
    logits = net(torch.rand(2, 3, 8, 8), timesteps=20)
    assert len({tuple(row.tolist()) for row in logits[:, 0]}) > 1


def test_modes_reach_every_neuron_of_a_network():
    net = awaken(build("sresnet18")).eval()
    x = torch.rand(3, 2, 3, 8, 8, generator=seeded(1))
    with noiseless(net):
        quiet = net(x)
        assert torch.equal(net(x), quiet)
    plain = awaken(build("sresnet18", "LIF")).eval()
    plain.load_state_dict(net.state_dict())
    assert torch.equal(plain(x), quiet)
    with mean_field(net):
        assert torch.equal(net(x), net(x))
        assert not torch.equal(net(x), quiet)


# ---- normalisation inside the model


def test_normalize_is_per_channel():
    layer = Normalize([0.1, 0.2, 0.3], [0.5, 0.25, 2.0])
    x = torch.rand(2, 3, 4, 5)
    for c, (mean, std) in enumerate([(0.1, 0.5), (0.2, 0.25), (0.3, 2.0)]):
        torch.testing.assert_close(layer(x)[:, c], (x[:, c] - mean) / std)
        torch.testing.assert_close(layer(x.expand(4, *x.shape))[1, :, c], (x[:, c] - mean) / std)
    assert set(layer.state_dict()) == {"mean", "std"} and not list(layer.parameters())


@pytest.mark.parametrize("mean, std", [([0.1, 0.2], [0.5]), ([0.1], [0.0]), ([0.1], [-1.0])])
def test_normalize_refuses_what_does_not_fit(mean, std):
    with pytest.raises(ValueError, match="per channel, std positive"):
        Normalize(mean, std)


@pytest.mark.parametrize("model", ["toynet", "sresnet18"])
def test_network_normalises_its_input(model):
    net = awaken(build(model, "LIF").double()).eval()
    x = torch.rand(3, 2, 3, 8, 8, generator=seeded(1), dtype=torch.float64)
    mean, std = torch.tensor([0.2, 0.3, 0.4]).double(), torch.tensor([0.5, 0.6, 0.7]).double()
    expected = net((x - mean.reshape(3, 1, 1)) / std.reshape(3, 1, 1))
    net.normalize = Normalize(mean, std).double()
    torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(net(x[0], timesteps=3), net(x[:1].expand(3, -1, -1, -1, -1)))


def test_over_time_is_the_layer_step_by_step():
    layer, x = nn.Conv2d(3, 4, 3, stride=2), torch.rand(5, 2, 3, 8, 8)
    torch.testing.assert_close(over_time(layer, x), torch.stack([layer(x_t) for x_t in x]), rtol=1e-4, atol=1e-5)


# ---- errors


@every_model
@pytest.mark.parametrize(
    "shape, timesteps, wanted",
    [
        ((2, 3, 8, 8), None, r"\[T, B, 3, 8, 8\]"),
        ((4, 2, 1, 8, 8), None, r"\[T, B, 3, 8, 8\]"),
        ((4, 2, 3, 8, 9), None, r"\[T, B, 3, 8, 8\]"),
        ((3, 8, 8), None, r"\[T, B, 3, 8, 8\]"),
        ((4, 2, 3, 8, 8), 4, r"\[B, 3, 8, 8\].*timesteps"),
        ((2, 3, 9, 8), 4, r"\[B, 3, 8, 8\].*timesteps"),
        ((3, 8, 8), 4, r"\[B, 3, 8, 8\].*timesteps"),
    ],
)
def test_wrong_shapes_show_what_came_and_what_was_wanted(model, shape, timesteps, wanted):
    came = r"\[" + ", ".join(map(str, shape)) + r"\]"
    with pytest.raises(ValueError, match=f"expected input {wanted}, got {came}"):
        build(model)(torch.rand(shape), timesteps=timesteps)


@pytest.mark.parametrize("timesteps", [0, -3])
def test_timesteps_must_be_positive(timesteps):
    with pytest.raises(ValueError, match=f"timesteps.*at least 1.*{timesteps}"):
        build("toynet")(torch.rand(2, 3, 8, 8), timesteps=timesteps)


def test_unknown_model_lists_the_valid_ones():
    with pytest.raises(ValueError) as error:
        build("resnet18")
    assert all(name in str(error.value) for name in [*MODELS, "'resnet18'"])


def test_unknown_neuron_lists_the_valid_ones():
    with pytest.raises(ValueError) as error:
        build_neuron("nilif")
    assert all(name in str(error.value) for name in [*NEURONS, "'nilif'"])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"norm": "ln"}, "norm.*'ln'"),
        ({"norm": True}, "norm.*True"),
        ({"in_shape": (8, 8)}, r"in_shape.*\(C, H, W\).*\(8, 8\)"),
        ({"in_shape": (3, 8, 8, 8)}, r"in_shape.*\(3, 8, 8, 8\)"),
        ({"in_shape": (3, 0, 8)}, r"in_shape.*\(3, 0, 8\)"),
        ({"num_classes": 0}, "num_classes.*0"),
        ({"width": 0.0}, "width.*positive.*0.0"),
        ({"width": -1.0}, "width.*positive.*-1.0"),
        ({"width": 1001.0}, "width.*at most 1000.*1001"),
    ],
)
def test_build_model_checks_its_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        build("toynet", **options)


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("NILIF", {"sigma": 0.0}, "scale.*positive.*0"),
        ("NILIF_atan", {"sigma": -1.0}, "scale.*positive.*-1"),
        ("LIF", {"tau": 0.5}, "tau.*at least 1.*0.5"),
        ("NILIF", {"tau": float("nan")}, "tau.*nan"),
        ("LIF", {"alpha": 0.0}, "alpha.*positive.*0"),
        ("NILIF", {"threshold": math.nan}, "threshold.*nan"),
        ("NILIF", {"placement": "input"}, "placement.*'both'.*'input'"),
        ("IF", {"reset": "soft"}, "reset.*'zero'.*'soft'"),
    ],
)
def test_build_neuron_reports_a_wrong_argument_at_once(name, options, message):
    with pytest.raises(ValueError, match=message):
        build_neuron(name, **options)


# ---- what build_neuron makes


@pytest.mark.parametrize(
    "name, law",
    [
        ("NILIF", Gaussian),
        ("NILIF_sigmoid", Logistic),
        ("NILIF_triang", Triangular),
        ("NILIF_uniform", Uniform),
        ("NILIF_atan", Cauchy),
    ],
)
def test_build_neuron_of_the_noisy_names(name, law):
    options = dict(sigma=0.4, tau=4.0, threshold=0.7, placement="escape", reset="subtract", learnable_scale=True)
    factory = build_neuron(name, **options, detach_reset=True, decay_input=True)
    neuron = factory()
    assert type(neuron) is NoisyLIF and factory() is not neuron
    assert type(neuron.noise) is law and neuron.noise.scale == pytest.approx(0.4) and neuron.noise.loc == 0
    assert neuron.decay == 0.25 and neuron.threshold == 0.7
    assert neuron.placement == "escape" and neuron.reset == "subtract"
    assert neuron.detach_reset and neuron.decay_input and neuron.log_scale is not None
    default = build_neuron(name)()
    assert default.placement == "both" and default.log_scale is None and default.decay == 0.5
    assert default.noise.scale == 0.3 and default.threshold == 1.0 and default.reset == "zero"
    assert not default.detach_reset and not default.decay_input and build_neuron(name, tau=1.0)().decay == 1.0


@pytest.mark.parametrize("name", registry.NOISY_NEURONS)
def test_each_law_without_leak_and_with_a_learnt_one(name):
    kind, law = registry.NOISY_NEURONS[name]
    neuron = build_neuron(name, sigma=0.4, tau=4.0, placement="escape", learnable_scale=True)()
    assert type(neuron) is kind and type(neuron.noise) is law and neuron.placement == "escape"
    decay = {NoisyIF: 1.0, NoisyLIF: 0.25, NoisyParametricLIF: 0.25}[kind]
    assert float(torch.as_tensor(neuron.decay).detach()) == pytest.approx(decay)
    assert ("decay_logit" in dict(neuron.named_parameters())) == (kind is NoisyParametricLIF)
    assert {NoisyIF: "NIIF", NoisyLIF: "NILIF", NoisyParametricLIF: "NIPLIF"}[kind] == name.partition("_")[0]


@pytest.mark.parametrize("name, kind", [("LIF", LIF), ("PLIF", ParametricLIF), ("IF", IF)])
def test_build_neuron_of_the_deterministic_names(name, kind):
    neuron = build_neuron(name, tau=4.0, threshold=0.7, alpha=3.0, reset="subtract", detach_reset=True)()
    assert type(neuron) is kind and neuron.threshold == 0.7 and neuron.reset == "subtract" and neuron.detach_reset
    assert float(torch.as_tensor(neuron.decay).detach()) == pytest.approx(1.0 if name == "IF" else 0.25)
    z = torch.linspace(-1, 1, 21, dtype=torch.float64)
    expected = 3 / torch.pi**0.5 * torch.exp(-((3 * z) ** 2))
    torch.testing.assert_close(neuron.surrogate.pdf(z), expected, rtol=1e-9, atol=1e-12)
    assert build_neuron(name)().surrogate.scale == pytest.approx(0.5**0.5)  # alpha 1


def test_relu_is_a_neuron_by_name_that_ignores_all_settings_but_wrong_ones():
    net = build_model("speednet", neuron=build_neuron("ReLU", sigma=0.5, tau=4.0, threshold=0.1), **SMALL)
    logits = net.eval().double()(torch.rand(2, 3, 8, 8, dtype=torch.double), timesteps=3)
    assert not any(getattr(module, "emits_spikes", False) for module in net.modules())
    # Linear algebra may round the rows of a batch differently.
    torch.testing.assert_close(logits, logits[:1].expand(3, -1, -1), rtol=1e-12, atol=1e-12)
    assert torch.equal(build_neuron("ReLU")()(torch.tensor([-1.0, 0.5])), torch.tensor([0.0, 0.5]))
    with pytest.raises(ArgumentError, match="tau must be at least 1"):
        build_neuron("ReLU", tau=0.5)


class OwnNoisy(NoisyLIF):
    pass


class Bare(LIF):
    def __init__(self, surrogate, threshold, decay, reset, detach_reset):
        super().__init__(surrogate, threshold, decay, reset, detach_reset)


class Unsaid(LIF):
    def run(self, x, state=None, keep_state=True):
        return super().run(x, state, keep_state)


class UnsaidStep(LIF):
    def step(self, x_t, state=None):
        return super().step(x_t, state)


class Said(Unsaid):
    is_noisy = False


class Reversed(IF):
    is_noisy = False

    def run(self, x, state=None, keep_state=True):
        return super().run(-x, state, keep_state)


class Module(torch.nn.Module):
    def __init__(self, surrogate, threshold, decay, reset, detach_reset, decay_input):
        super().__init__()


@pytest.fixture
def entered(monkeypatch):
    """Entries of one's own in the tables of neurons."""
    noisy = {"OwnNoisy": (OwnNoisy, Logistic), "NoNoise": (LIF, Gaussian)}
    deterministic = {"Bare": Bare, "Misplaced": OwnNoisy}
    deterministic |= {kind.__name__: kind for kind in (Unsaid, UnsaidStep, Said, Reversed, Module)}
    monkeypatch.setattr(registry, "NOISY_NEURONS", registry.NOISY_NEURONS | noisy)
    monkeypatch.setattr(registry, "DETERMINISTIC_NEURONS", registry.DETERMINISTIC_NEURONS | deterministic)
    monkeypatch.setattr(registry, "NEURONS", (*registry.NEURONS, *noisy, *deterministic))


def test_a_noisy_neuron_of_ones_own_gets_the_options_of_noise(entered):
    neuron = build_neuron("OwnNoisy", sigma=0.4, placement="escape", learnable_scale=True)()
    assert type(neuron) is OwnNoisy and type(neuron.noise) is Logistic and neuron.noise.scale == pytest.approx(0.4)
    assert neuron.placement == "escape" and neuron.log_scale is not None and neuron.surrogate is None


@pytest.mark.parametrize(
    "name, message",
    [
        ("Bare", "'Bare'.*'decay_input'"),
        ("NoNoise", "'NoNoise'.*'noise'"),
        ("Misplaced", "'Misplaced' is noisy.*NOISY_NEURONS"),
        ("Unsaid", "'Unsaid' must say whether it `is_noisy`"),
        ("UnsaidStep", "'UnsaidStep' must say whether it `is_noisy`"),
        ("Module", "'Module' must say whether it `is_noisy`"),
    ],
)
def test_a_neuron_that_does_not_take_what_it_is_given_is_an_error(entered, name, message):
    with pytest.raises(ValueError, match=message):
        build_neuron(name)


def test_a_wrong_placement_is_an_error_where_it_has_no_effect_too():
    with pytest.raises(ArgumentError, match="placement must be one of .*'escape'.*got 'escpae'"):
        build_neuron("LIF", placement="escpae")


def test_a_neuron_that_says_whether_it_is_noisy_is_built(entered):
    assert type(build_neuron("Said")()) is Said


def test_a_subclass_of_a_neuron_without_leak_is_built_as_that_is(entered):
    neuron = build_neuron("Reversed")()
    assert type(neuron) is Reversed and neuron.decay == 1


@every_neuron
def test_factories_and_networks_pickle_and_deepcopy(neuron):
    factory = pickle.loads(pickle.dumps(build_neuron(neuron)))
    net = build_model("toynet", neuron=factory, **SMALL)
    x = torch.rand(3, 2, 3, 8, 8)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        with noise_generator(seeded(1)):
            expected = net(x)
        with noise_generator(seeded(1)):
            assert torch.equal(twin(x), expected)


# ---- precision, layout, compilation


@every_model
@pytest.mark.parametrize("neuron", ["NILIF", "PLIF"])
def test_bfloat16_autocast_forward_and_backward(model, neuron):
    """16x16 pixels: on 1x1 maps PyTorch's own strided bfloat16 convolution has garbage in its weight gradient."""
    net = build(model, neuron, in_shape=(3, 16, 16))
    x = torch.rand(2, 3, 16, 16, generator=seeded(1))
    spikes = []
    for module in net.modules():
        if getattr(module, "emits_spikes", False):
            module.register_forward_hook(lambda module, args, out: spikes.append((args[0].dtype, out.dtype)))
    with torch.autocast("cpu", torch.bfloat16):
        logits = net(x, timesteps=3)
        loss = F.cross_entropy(logits.mean(0), torch.tensor([0, 4]))
    loss.backward()
    assert logits.dtype == torch.bfloat16 and logits.isfinite().all()
    assert all(came == went for came, went in spikes)
    assert spikes[0] == (torch.bfloat16, torch.bfloat16)
    for name, parameter in net.named_parameters():
        assert parameter.grad.dtype == torch.float32 and parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("model", ["sresnet18", "sresnet19", "vgg", "vggwoap", "cifarnet"])
@pytest.mark.parametrize("neuron", ["LIF", "NILIF"])
def test_channels_last_network_gives_the_same_logits_and_gradients(model, neuron):
    net = awaken(build(model, neuron).double()).eval()
    image = torch.rand(2, 3, 8, 8, generator=seeded(1), dtype=torch.float64) * 2
    results = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        twin = copy.deepcopy(net).to(memory_format=memory_format)
        leaf = image.clone(memory_format=memory_format).requires_grad_()
        with noise_generator(seeded(2)):
            logits = twin(leaf, timesteps=3)
        logits.square().sum().backward()
        results.append([logits, leaf.grad, *(p.grad for p in twin.parameters())])
    for contiguous, channels_last in zip(*results):
        torch.testing.assert_close(contiguous, channels_last, rtol=1e-9, atol=1e-9)
    assert results[0][0].abs().sum() > 0


def test_channels_last_survives_from_layer_to_layer():
    net, seen = build("vgg").to(memory_format=torch.channels_last), []
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(
                lambda module, args, out: seen.append(args[0].is_contiguous(memory_format=torch.channels_last))
            )
    net(torch.rand(2, 3, 8, 8).contiguous(memory_format=torch.channels_last), timesteps=3)
    assert len(seen) == sum(isinstance(module, nn.Conv2d) for module in net.modules()) and all(seen)


def compiled_and_eager(net, x, **compile_options):
    """Logits and gradients of both, with the same seed."""
    results = []
    torch._dynamo.reset()
    for run in (net, torch.compile(net, **compile_options)):
        net.zero_grad()
        leaf = x.clone().requires_grad_()
        torch.manual_seed(7)
        logits = run(leaf, timesteps=3)
        logits.square().sum().backward()
        results.append([logits.detach(), leaf.grad, *(p.grad.clone() for p in net.parameters())])
    return results


@pytest.mark.parametrize(
    "model, neuron, options",
    [
        ("toynet", "LIF", {}),
        pytest.param("toynet", "PLIF", {"decay_input": True}, marks=pytest.mark.slow),
        pytest.param("toynet", "NILIF", {}, marks=pytest.mark.slow),
        ("toynet", "NILIF", {"learnable_scale": True, "placement": "membrane", "reset": "subtract"}),
        pytest.param("toynet", "NILIF_atan", {"learnable_scale": True, "detach_reset": True}, marks=pytest.mark.slow),
        pytest.param("cifarnet", "LIF", {"reset": "none"}, marks=pytest.mark.slow),
        pytest.param("cifarnet", "PLIF", {}, marks=pytest.mark.slow),
        pytest.param("cifarnet", "NILIF", {}, marks=pytest.mark.slow),
        pytest.param("sresnet18", "NILIF_sigmoid", {"placement": "escape"}, marks=pytest.mark.slow),
    ],
)
def test_compiled_network_equals_eager(model, neuron, options):
    net = awaken(build(model, neuron, options)).eval()
    x = torch.rand(2, 3, 8, 8, generator=seeded(1)) * 6
    eager, compiled = compiled_and_eager(net, x, backend="aot_eager", fullgraph=True)
    assert eager[0].abs().sum() > 0
    for ours, theirs in zip(compiled, eager):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_compiled_network_draws_fresh_noise_and_obeys_the_switches():
    """Seeds, `noise_generator`, `noiseless` and `mean_field` must not be frozen into the compiled graph."""
    torch._dynamo.reset()
    net = build("toynet", "NILIF_atan", {"sigma": 1.0}).eval()
    run = torch.compile(net, backend="aot_eager")
    x = torch.rand(2, 3, 8, 8, generator=seeded(1))
    first = run(x, timesteps=3)
    assert not torch.equal(run(x, timesteps=3), first)
    for context in (lambda: noiseless(net), lambda: mean_field(net), lambda: noise_generator(seeded(2))):
        with context():
            expected = net(x, timesteps=3)
        with context():
            torch.testing.assert_close(run(x, timesteps=3), expected)
    assert not torch.equal(run(x, timesteps=3), run(x, timesteps=3))


@pytest.mark.slow
@pytest.mark.parametrize("neuron", ["LIF", "PLIF", "NILIF"])
def test_inductor_equals_eager(neuron):
    """Inductor has its own random numbers unless told to fall back to torch's."""
    net = build("toynet", neuron).eval()
    x = torch.rand(2, 3, 8, 8, generator=seeded(1)) * 6
    with mock.patch.object(inductor_config, "fallback_random", True):
        eager, compiled = compiled_and_eager(net, x, fullgraph=True)
    assert eager[0].abs().sum() > 0
    for ours, theirs in zip(compiled, eager):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("timesteps", [0, 2.5, float("nan"), "3", True, False])
def test_timesteps_must_be_a_positive_whole_number(timesteps):
    net = build_model("toynet", neuron=build_neuron("LIF"), in_shape=(1, 4, 4), num_classes=2)
    with pytest.raises(ValueError, match="timesteps must be a whole number"):
        net(torch.zeros(1, 1, 4, 4), timesteps=timesteps)


@pytest.mark.parametrize("law", ["NILIF", "NILIF_sigmoid", "NILIF_atan"])
def test_backward_of_a_mean_field_network_is_its_derivative(law):
    """Against finite differences in float64, through all layers and steps, for the pixels and every weight."""
    torch.manual_seed(0)
    neuron = build_neuron(law, sigma=0.5, learnable_scale=True)
    net = build_model("vgg", neuron=neuron, in_shape=(1, 4, 4), num_classes=2, width=0.03, norm=None).double()
    x = torch.rand(2, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    names, values = zip(*net.named_parameters())
    with mean_field(net):
        assert torch.autograd.gradcheck(
            lambda x, *values: torch.func.functional_call(net, dict(zip(names, values)), (x,), {"timesteps": 2}),
            (x, *values),
            fast_mode=True,
        )


def test_speednet_whitens_patches():
    net = build_model("speednet", neuron=LIF, in_shape=(3, 9, 12), num_classes=5)
    net.normalize = Normalize([0.3, 0.4, 0.5], [0.2, 0.3, 0.1])
    whitening = net.stem.conv[0]
    assert not list(whitening.parameters())
    images = torch.rand(400, 3, 9, 12).cumsum(-1) / 12  # neighbours are correlated
    net.adapt_to(images)
    out = whitening(net.normalize(images)).transpose(0, 1).flatten(1)
    assert torch.allclose(out.mean(1), torch.zeros(24), atol=1e-3)
    assert torch.allclose(out[:12], -out[12:], atol=1e-4)
    correlations = torch.cov(out[:12].double(), correction=0)
    assert torch.allclose(correlations, torch.diag(correlations.diag()), atol=1e-3)
    patches = F.unfold(net.normalize(images), 2).transpose(0, 1).flatten(1)
    variances = torch.linalg.eigvalsh(torch.cov(patches.double(), correction=0)).flip(0)
    assert torch.allclose(correlations.diag(), variances / (variances + FLOOR), atol=1e-3)


def test_speednet_does_not_blow_up_noise_that_training_images_do_not_have():
    """As those of JPEG, in which neighbouring pixels mostly share their colour."""
    whitening = build_model("speednet", neuron=LIF, in_shape=(3, 8, 8), num_classes=5).stem.conv[0]
    images = torch.randn(200, 3, 1, 1).expand(-1, -1, 8, 8)
    whitening.fit(images)
    change = whitening(images + 0.1 * torch.randn(200, 3, 8, 8)) - whitening(images)
    assert whitening(images).std() > 0.4 > change.std()

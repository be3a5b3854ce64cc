"""Networks in NIR: what is written here and read there gives equal spikes, and the other way round."""

import math
import operator

import numpy as np
import pytest
import torch
from torch import nn

from models import IF, LIF, Gaussian, Logistic, NoisyLIF, Synaptic, build_model, build_neuron, interop, noiseless
from models.layers import Normalize, over_time

nir = pytest.importorskip("nir", reason="nir is not installed")
pytest.importorskip("nirtorch", reason="nirtorch is not installed")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "net.nir"


def dense():
    """Neurons in all forms that the other libraries have."""
    return nn.Sequential(
        nn.Linear(10, 20),
        NoisyLIF(Gaussian(0.3), decay=0.5),
        nn.Linear(20, 15),
        NoisyLIF(Logistic(0.2), threshold=0.2, decay=0.7, decay_input=True, placement="escape"),
        nn.Linear(15, 10),
        Synaptic(0.5, NoisyLIF(Gaussian(0.3), decay=0.8)),
    )


class Convolutions(nn.Module):
    """A sum, which NIR has as two edges; batch normalisation. snnTorch and norse would flatten the batch, too."""

    def __init__(self):
        super().__init__()
        self.conv1, self.norm, self.lif1 = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), NoisyLIF(threshold=0.5)
        self.conv2, self.lif2 = nn.Conv2d(4, 4, 3, padding=1, bias=False), NoisyLIF(threshold=0.5)

    def forward(self, x):
        x = self.lif1(over_time(lambda x: self.norm(self.conv1(x)), x))
        return self.lif2(over_time(self.conv2, x) + x)


def steps(net, x):
    """One step at a time, the states handed on."""
    outputs, state = [], None
    for x_t in x:
        output, state = net(x_t, state)
        outputs.append(output[0] if isinstance(output, tuple) else output)
    return torch.stack(outputs)


def in_spikingjelly(path):
    return pytest.importorskip("spikingjelly.activation_based.nir_exchange").import_from_nir(path)


def in_snntorch(path):
    return pytest.importorskip("snntorch.import_nir").import_from_nir(nir.read(path))


def in_norse(path):
    return pytest.importorskip("norse.torch").from_nir(nir.read(path), dt=1e-4)


@pytest.mark.parametrize("load", [in_spikingjelly, in_snntorch, in_norse])
@pytest.mark.parametrize("make", [dense, Convolutions])
def test_what_is_written_here_fires_equally_elsewhere(make, load, path):
    torch.manual_seed(0)
    net = make()
    x = 2 * torch.rand((12, 3, 10) if make is dense else (6, 3, 2, 8, 8))  # SpikingJelly fires at the threshold itself
    net(x)  # statistics of batch normalisation
    interop.nir.write(path, net, x)
    net.eval()
    with noiseless(net), torch.no_grad():
        expected = net(x)
    spikes = steps(load(path), x)
    assert 0.05 < expected.mean() < 0.95
    assert torch.equal(spikes, expected)


@pytest.mark.parametrize("name", ["sresnet18", "vgg", "toynet"])
def test_networks_are_read_as_they_were_written(name, path):
    torch.manual_seed(0)
    neuron = build_neuron("NILIF", sigma=0.3, threshold=0.3)
    net = build_model(name, neuron=neuron, in_shape=(3, 16, 16), num_classes=5, width=0.05)
    net.normalize = Normalize((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    x = torch.rand(4, 2, 3, 16, 16)
    net(x)
    net.eval()
    interop.nir.write(path, net, x)
    back = interop.nir.read(path)
    neurons = [[str(module) for module in one.modules() if isinstance(module, NoisyLIF)] for one in (net, back)]
    assert sorted(neurons[0]) == sorted(neurons[1])
    with noiseless(net), noiseless(back), torch.no_grad():
        assert torch.allclose(net(x), back(x), atol=1e-4)


def test_metadata_hold_what_nir_has_no_words_for(path, monkeypatch):
    monkeypatch.setenv("NSNN_KERNELS", "eager")  # to compile kernels for values of channels takes seconds
    wide = Gaussian(torch.tensor([0.1, 0.2, 0.3]), loc=0.1)
    neurons = [
        NoisyLIF(wide, decay=0.3, detach_reset=True, surrogate=Logistic(2.0)),
        LIF(Logistic(0.7), decay=0.5, decay_input=True),
        IF(v_reset=-0.5, v_leak=-0.5),
        NoisyLIF(Gaussian(0.3), threshold=torch.tensor([0.5, 1.0, 1.5]), placement="membrane", learnable_scale=True),
    ]
    net = nn.Sequential(*neurons)
    interop.nir.write(path, net, torch.rand(2, 2, 3))
    back = interop.nir.read(path)
    for neuron, twin in zip(neurons, back.layers.values()):
        for name in ("decay_input", "detach_reset", "reset"):
            assert getattr(neuron, name) == getattr(twin, name)
        assert torch.allclose(torch.as_tensor(neuron.threshold), torch.as_tensor(twin.threshold))
        assert (neuron.decay, neuron.v_reset) == pytest.approx((twin.decay, twin.v_reset))
        assert repr(neuron.gradient_law) == repr(twin.gradient_law)
        assert getattr(neuron, "placement", None) == getattr(twin, "placement", None)
        assert repr(getattr(neuron, "noise", None)) == repr(getattr(twin, "noise", None))
    other = interop.nir.read(path, noise=Gaussian(0.7), placement="escape")
    assert all(neuron.noise.scale == 0.7 and neuron.placement == "escape" for neuron in other.layers.values())
    assert all(repr(neuron.gradient_law) == "Gaussian(0.7)" for neuron in other.layers.values())
    for neuron, twin in zip(neurons, interop.nir.read(path, noise=None).layers.values()):
        assert type(twin) is LIF and repr(twin.gradient_law) == repr(neuron.gradient_law)
    with pytest.raises(ValueError, match='noise must be "metadata", None or a noise law'):
        interop.nir.read(path, noise="none")


def from_spikingjelly(path, x):
    jelly = pytest.importorskip("spikingjelly.activation_based")
    from spikingjelly.activation_based import functional, layer, neuron, nir_exchange

    net = nn.Sequential(
        layer.Linear(10, 20),
        neuron.LIFNode(tau=3.0, v_threshold=0.2),
        layer.Linear(20, 15),
        neuron.LIFNode(tau=4.0, decay_input=False, v_reset=-0.25, v_threshold=0.3),
        layer.Linear(15, 10),
        neuron.IFNode(v_threshold=0.3, v_reset=-0.5),  # from which it starts
    )
    assert jelly
    functional.set_step_mode(net, "m")
    nir_exchange.export_to_nir(net, x, save_path=path)
    functional.reset_net(net)
    return net(x), {}


def from_snntorch(path, x):
    snn = pytest.importorskip("snntorch")
    from snntorch import utils
    from snntorch.export_nir import export_to_nir

    def values(value, count):
        return torch.full((count,), value)

    net = nn.Sequential(
        nn.Linear(10, 20),
        snn.RLeaky(0.9, linear_features=20, reset_mechanism="zero", reset_delay=False, init_hidden=True),
        nn.Linear(20, 15),
        snn.Leaky(values(0.9, 15), threshold=values(0.5, 15), reset_mechanism="zero", init_hidden=True),
        nn.Linear(15, 10),
        snn.Synaptic(
            values(0.5, 10), values(0.8, 10), threshold=values(0.5, 10), reset_mechanism="zero", reset_delay=False,
            init_hidden=True,
        ),
    )  # fmt: skip
    nir.write(path, export_to_nir(net, x[0], ignore_dims=[0]))
    utils.reset(net)
    return torch.stack([net(x_t) for x_t in x]), {}


def from_norse(path, x):
    norse = pytest.importorskip("norse.torch")

    def neurons(count):
        value = torch.full((count,), 0.05)
        return norse.LIFBoxCell(
            norse.LIFBoxParameters(v_th=value, v_leak=0 * value, tau_mem_inv=torch.full((count,), 200.0))
        )

    net = norse.SequentialState(nn.Linear(10, 20), neurons(20), nn.Linear(20, 15), neurons(15))
    nir.write(path, norse.to_nir(net, x[0, 0]))
    return steps(net, x), {"dt": 1e-6}  # the square of norse's


@pytest.mark.parametrize("make", [from_spikingjelly, from_snntorch, from_norse])
def test_what_others_write_is_read(make, path):
    torch.manual_seed(0)
    x = 2 * torch.rand(12, 3, 10)
    expected, options = make(path, x)
    net = interop.nir.read(path, noise=Gaussian(0.3), **options)
    with noiseless(net):
        assert torch.equal(expected, net(x)) and 0.02 < expected.mean() < 0.98
    net(x).sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (LIF(reset="subtract"), "not by reset='subtract'"),
        (nn.MaxPool2d(2), "no words for the layer '0', MaxPool2d"),
        (nn.AvgPool2d(3, stride=2, ceil_mode=True), "none reaches over the padded image"),
        (nn.BatchNorm2d(2), "only into a convolution or linear layer"),
        (nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"), "'circular'"),
        (IF(v_reset=-0.5), "without a leak start from v_reset: v_leak must be the same"),
        (nn.Conv2d(2, 2, 3, groups=2), "nir cannot describe the network: .*type mismatch"),
        (type("Squared", (nn.Module,), {"forward": lambda self, x: x.square()})(), "the operation 'square'"),
    ],
)
def test_what_nir_has_no_words_for_is_refused(layer, reason, path):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(layer)

        def forward(self, x):
            return self.layers(x) if isinstance(layer, LIF) else over_time(self.layers, x)

    with pytest.raises(ValueError, match=reason.replace("'0'", "'layers.0'")):
        interop.nir.write(path, Net(), torch.rand(2, 3, 2, 8, 8))


class Skips(nn.Module):
    """A network whose result is a function of two layers."""

    def __init__(self, join):
        super().__init__()
        self.first, self.second, self.join = LIF(), nn.Linear(3, 3), join

    def forward(self, x):
        spikes = self.first(x)
        return self.join(self.second(spikes), spikes)


@pytest.mark.parametrize(
    ("join", "reason"),
    [
        (lambda x, y: (x, y), "must return one tensor"),
        (lambda x, y: torch.add(x, y, alpha=2), "not by alpha=2"),
        (lambda x, y: x.add(y, alpha=-1), "not by alpha=-1"),
        (lambda x, y: (x + y, x)[1], "the result of 'add' is not used"),
        (lambda x, y: x.add_(y) + x, "'add_' changes a value in place that is used later"),
        (lambda x, y: operator.iadd(x, y) + x, "'iadd' changes a value in place that is used later"),
        (lambda x, y: x.flatten(2).add_(y).add(x), "changes its input in place, and another view of it is used later"),
        (lambda x, y: x if x.sum() > 0 else y, "torch.fx cannot follow Skips.forward: symbolically traced"),
    ],
)
def test_joins_that_nir_does_not_have_are_refused(join, reason):
    with pytest.raises(ValueError, match=reason):
        interop.nir.to_nir(Skips(join), torch.rand(2, 3, 3))


def test_a_converted_network_of_another_library_is_refused_in_words():
    jelly = pytest.importorskip("spikingjelly.activation_based")
    from spikingjelly.activation_based import layer, neuron

    assert jelly
    net = nn.Sequential(layer.Linear(3, 3, step_mode="m"), neuron.LIFNode(step_mode="m"))
    with pytest.raises(ValueError, match="'1' is called as a neuron of another library: write a network of this"):
        interop.nir.to_nir(interop.convert(net)[0], torch.rand(2, 2, 3))


def test_an_infinite_threshold_is_read_as_it_was_written(path):
    some = torch.tensor([0.5, math.inf, 1.0])
    interop.nir.write(path, nn.Sequential(LIF(threshold=math.inf), LIF(threshold=some)), torch.rand(2, 2, 3))
    first, second = interop.nir.read(path).layers.values()
    assert first.threshold == math.inf and torch.allclose(second.threshold, some)


def test_a_leaky_integrator_gives_its_potential():
    values = {name: torch.full((4,), value).numpy() for name, value in dict(tau=2e-4, r=3.0, v_leak=0.5).items()}
    integrator = nir.LI(**values)
    graph = nir.NIRGraph(
        {"input": nir.Input([4]), "li": integrator, "output": nir.Output([4])}, [("input", "li"), ("li", "output")]
    )
    x, v, expected = torch.rand(5, 2, 4), torch.full((2, 4), 0.5), []
    for x_t in x:
        v = v + 0.5 * (0.5 - v + 3 * x_t)
        expected.append(v)
    assert torch.allclose(interop.nir.read(graph)(x), torch.stack(expected), atol=1e-6)


def test_nodes_whose_names_would_be_the_same_are_refused():
    nodes = {
        "in": nir.Input([2]),
        "a.b": nir.Linear(np.eye(2)),
        "a_b": nir.Linear(2 * np.eye(2)),
        "out": nir.Output([2]),
    }
    graph = nir.NIRGraph(nodes, [("in", "a.b"), ("a.b", "a_b"), ("a_b", "out")])
    with pytest.raises(ValueError, match="must differ in more than dots and underscores: a.b, a_b"):
        interop.nir.read(graph)


def test_a_time_constant_shorter_than_the_step_is_refused(path):
    interop.nir.write(path, nn.Sequential(LIF(decay=0.1)), torch.rand(2, 2, 3))
    with pytest.raises(ValueError, match="shorter than dt = 0.001 s"):
        interop.nir.read(path, dt=1e-3)


@pytest.mark.parametrize("r", [0.0, -1.0])
@pytest.mark.parametrize("kind", ["LIF", "LI"])
def test_inputs_that_are_turned_round_or_ignored_are_refused(kind, r):
    values = {name: torch.full((4,), value).numpy() for name, value in dict(tau=2e-4, r=r, v_leak=0.5).items()}
    values |= {"v_threshold": torch.ones(4).numpy()} if kind == "LIF" else {}
    nodes = {"input": nir.Input([4]), "li": getattr(nir, kind)(**values), "output": nir.Output([4])}
    graph = nir.NIRGraph(nodes, [("input", "li"), ("li", "output")])
    if kind == "LI" and r < 0:
        rest, current = (interop.nir.read(graph)(torch.full((9, 1, 4), value))[-1] for value in (0.0, 2.0))
        assert torch.allclose(rest, torch.tensor(0.5)) and torch.allclose(current, torch.tensor(-1.5), atol=0.01)
    else:
        with pytest.raises(ValueError, match="r <= 0|r = 0"):
            interop.nir.read(graph)

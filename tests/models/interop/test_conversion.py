"""What conversion does whichever library a network is from, and that no library is imported before it is used."""

import functools
import importlib
import sys
import threading
import types
from collections import deque

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint as torch_checkpoint

import models
from models import (
    LIF,
    AdaptiveLIF,
    Cauchy,
    Gaussian,
    Logistic,
    Recurrent,
    Stream,
    Synaptic,
    Triangular,
    Uniform,
    checkpoint,
    interop,
    plain,
)
from models.interop.surrogates import DoubleExponential, FastSigmoid, Weighted, observe
from tests import fresh

LAWS = (Gaussian, Logistic, Triangular, Uniform, Cauchy, DoubleExponential, FastSigmoid)


def test_no_library_is_imported_before_it_is_used():
    code = (
        "import sys; from models import interop; interop.convert; interop.NotMapped\n"
        "assert not {name.split('.')[0] for name in sys.modules} & {*interop.PEERS, 'nir', 'h5py'}"
    )
    fresh.run(code).check_returncode()


def test_a_missing_library_is_an_error_that_says_how_to_install_it(monkeypatch):
    vars(interop).pop("norse", None)
    monkeypatch.delitem(sys.modules, "models.interop.norse", raising=False)
    monkeypatch.setitem(sys.modules, "norse", None)
    with pytest.raises(ModuleNotFoundError, match="pip install norse"):
        interop.norse  # noqa: B018
    with pytest.raises(AttributeError, match="has no attribute 'nengo'"):
        interop.nengo  # noqa: B018


class Step(torch.autograd.Function):
    """A step function whose gradient is given."""

    @staticmethod
    def forward(ctx, x, gradient, at_threshold):
        ctx.save_for_backward(x)
        ctx.gradient = gradient
        return ((x >= 0) if at_threshold else (x > 0)).float()

    @staticmethod
    def backward(ctx, grad_output):
        return grad_output * ctx.gradient(ctx.saved_tensors[0]), None, None


@pytest.mark.parametrize("scale", [0.01, 0.3, 7.0])
@pytest.mark.parametrize("law", LAWS)
def test_the_law_of_a_surrogate_is_found(law, scale):
    found = observe(lambda x: Step.apply(x, law(scale).pdf, True))
    assert found.at_threshold and type(found.law) is law and found.law.scale == pytest.approx(scale, rel=1e-6)
    found = observe(lambda x: Step.apply(x, lambda x: 3 * law(scale).pdf(x), False))
    assert not found.at_threshold and isinstance(found.law, Weighted)
    x = scale * torch.linspace(-3, 3, 100)
    assert torch.allclose(found.law.pdf(x), 3 * law(scale).pdf(x), rtol=1e-5, atol=1e-6 / scale)


@pytest.mark.parametrize(
    "gradient", [lambda x: Gaussian(1.0, loc=0.1).pdf(x), torch.ones_like, lambda x: 1 / (1 + x.abs()) ** 3]
)
def test_a_gradient_of_no_law_is_not_taken_for_one(gradient):
    assert observe(lambda x: Step.apply(x, gradient, True)).law is None


@pytest.mark.parametrize("function", [torch.sigmoid, torch.bernoulli, lambda x: (x > 0.1).float()])
def test_what_is_not_a_step_is_refused(function):
    with pytest.raises(interop.NotMapped, match="not 0 below the threshold and 1 above|fails"):
        observe(function)


def test_the_factor_of_a_surrogate_is_saved():
    neurons = [LIF(Weighted(Gaussian(0.3), factor)) for factor in (2.0, 9.0)]
    with pytest.warns(UserWarning, match=r"=9 \* Gaussian\(0.3, 0\) were loaded into neurons with surrogate=2"):
        neurons[0].load_state_dict(neurons[1].state_dict())


@pytest.mark.parametrize("law", [DoubleExponential, FastSigmoid])
def test_laws_of_surrogates_are_laws(law):
    law, x = law(0.7), torch.linspace(-4, 4, 81, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(law.cdf(x).sum(), x)
    assert torch.allclose(slope[x != 0], law.pdf(x)[x != 0])
    assert torch.allclose(law.icdf(law.cdf(x)), x)


def test_a_network_without_neurons_of_other_libraries_is_an_error():
    with pytest.raises(ValueError, match="there is no neuron of spikingjelly, snntorch, norse, sinabs"):
        interop.convert(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))


def test_neurons_that_are_shared_stay_shared_and_differences_are_reported():
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron", reason="SpikingJelly is not installed")
    shared = neuron.LIFNode(step_mode="m")
    net = nn.Sequential(nn.Linear(3, 3), shared, nn.Linear(3, 3), shared, neuron.QIFNode(step_mode="m"))
    for linear in (net[0], net[2]):
        nn.init.ones_(linear.weight)
    with pytest.warns(UserWarning, match="4: QIFNode is not one of"):
        converted, report = interop.convert(net, verify=torch.ones(5, 2, 3))
    assert converted[1] is converted[3] and net[1] is shared
    assert report.mismatches == {"1": (0, 60), "3": (0, 60)}
    assert str(report).splitlines()[-3:] == [
        "4: left as it is, because QIFNode is not one of LIFNode, IFNode, ParametricLIFNode",
        "1: differs in 0 of 60 places, with 60 spikes",
        "3: differs in 0 of 60 places, with 60 spikes",
    ]


def test_a_layer_that_never_fires_is_not_called_equal():
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron", reason="SpikingJelly is not installed")
    net = nn.Sequential(neuron.LIFNode(step_mode="m"), neuron.LIFNode(step_mode="m", v_threshold=9.0))
    with pytest.warns(UserWarning, match="no neuron fire in 1: nothing was compared there"):
        _, report = interop.convert(net, verify=torch.full((5, 2, 3), 3.0))
    assert report.fired == {"0": 30, "1": 0} and report.mismatches == {"0": (0, 30), "1": (0, 30)}


def test_learnt_values_that_are_shared_stay_shared():
    snntorch = pytest.importorskip("snntorch", reason="snnTorch is not installed")

    def leaky(beta, threshold, **settings):
        layer = snntorch.Leaky(beta=0.5, learn_beta=True, learn_threshold=True, init_hidden=True, **settings)
        layer.beta, layer.threshold = nn.Parameter(torch.tensor(beta)), nn.Parameter(torch.tensor(threshold))
        return layer

    net = nn.Sequential(leaky(0.5, 1.0), leaky(0.6, 1.0), leaky(0.5, 1.0), leaky(0.7, 1.0), leaky(0.7, 1.0))
    net[1].beta, net[1].threshold = net[0].beta, net[0].threshold
    net[3].threshold = net[2].threshold  # one of two
    with pytest.warns(UserWarning, match="2: it shares threshold with 3"):
        converted, report = interop.convert(net, Gaussian(0.3))
    assert list(report.replaced) == ["0", "1", "4"] and list(report.skipped) == ["2", "3"]
    ours = [dict(layer.neuron.named_parameters()) for layer in (converted[0], converted[1], converted[4])]
    assert ours[0].keys() == {"beta", "threshold"}
    assert all(ours[1][name] is ours[0][name] is not ours[2][name] for name in ours[0])
    before = ours[1]["threshold"].item()
    converted(torch.full((2, 3), 0.9)).sum().backward()
    torch.optim.SGD(converted.parameters(), 0.1).step()
    assert converted[0].neuron.threshold.item() == converted[1].neuron.threshold.item() != before


def test_frozen_values_that_are_shared_stay_shared():
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron", reason="SpikingJelly is not installed")
    pair = [neuron.ParametricLIFNode(step_mode="m") for _ in range(2)]
    pair[1].w = pair[0].w.requires_grad_(False)
    converted, _ = interop.convert(nn.Sequential(*pair))
    (parameter,) = converted.parameters()
    assert not parameter.requires_grad


def test_learnt_values_of_sinabs_stay_shared():
    sinabs = pytest.importorskip("sinabs", reason="sinabs is not installed")
    layers = [sinabs.layers.LIF(tau_mem=10.0, spike_fn=sinabs.activation.SingleSpike) for _ in range(2)]
    layers[1].tau_mem = layers[0].tau_mem
    converted, report = interop.convert(nn.Sequential(*layers))
    assert len(report.replaced) == 2 and len(list(converted.parameters())) == 1


def test_neurons_that_share_with_one_that_stays_stay_too():
    snntorch = pytest.importorskip("snntorch", reason="snnTorch is not installed")
    for inhibits in ((False, True), (True, False)):
        pair = [snntorch.Leaky(0.5, learn_beta=True, init_hidden=True, inhibition=one) for one in inhibits]
        pair[1].beta, pair[1].threshold = pair[0].beta, pair[0].threshold
        with pytest.raises(ValueError, match=r"it shares its learnt values with \d, which is left as it is"):
            interop.convert(nn.Sequential(*pair))


def test_neurons_of_snntorch_that_stay_are_reset_for_whatever_reason_they_stay():
    snntorch = pytest.importorskip("snntorch", reason="snnTorch is not installed")

    def leaky(**settings):
        return snntorch.Leaky(0.9, init_hidden=True, **settings)

    net = nn.ModuleList([leaky(learn_beta=True), leaky(learn_beta=True, inhibition=True), Hidden(leaky(), "object")])
    net[1].beta = net[0].beta
    with pytest.warns(UserWarning, match="0: it shares .* 1: inhibition .* 2.other: it is not a module"):
        converted, _ = interop.convert(net)
    left = [converted[0], converted[1], converted[2].other.n]
    for layer in left:
        layer(torch.full((2, 3), 0.5))
    assert all(layer.mem.any() for layer in left)
    importlib.import_module("snntorch.utils").reset(converted)
    assert not any(layer.mem.any() for layer in left)


@pytest.mark.parametrize("all_to_all", [True, False])
def test_a_recurrent_layer_is_converted_by_itself(all_to_all):
    snntorch = pytest.importorskip("snntorch", reason="snnTorch is not installed")
    settings = {"linear_features": 3} if all_to_all else {"V": 0.3, "all_to_all": False}
    layer = snntorch.RLeaky(0.5, learn_beta=True, init_hidden=True, **settings)
    for net in (layer, nn.Sequential(layer)):
        converted, report = interop.convert(net)
        assert len(report.replaced) == 1 and len(list(converted.parameters())) == (3 if all_to_all else 2)


@pytest.mark.parametrize(
    ("name", "settings", "first", "second"),
    [
        ("Synaptic", {"alpha": 0.5, "learn_alpha": True}, "beta", "alpha"),
        ("Leaky", {"learn_threshold": True}, "beta", "threshold"),
        ("RLeaky", {"all_to_all": False}, "V", "beta"),
    ],
)
def test_one_parameter_with_two_meanings_is_refused(name, settings, first, second):
    snntorch = pytest.importorskip("snntorch", reason="snnTorch is not installed")
    layer = getattr(snntorch, name)(beta=0.5, learn_beta=True, init_hidden=True, **settings)
    interop.snntorch.from_leaky(layer)
    setattr(layer, second, getattr(layer, first))
    with pytest.raises(interop.NotMapped, match="one parameter has several meanings in it"):
        interop.snntorch.from_leaky(layer)


def test_recurrent_layers_that_share_their_weights_are_refused():
    snntorch = pytest.importorskip("snntorch", reason="snnTorch is not installed")
    pair = [
        snntorch.RLeaky(beta=0.5, linear_features=3, all_to_all=True, learn_beta=True, init_hidden=True)
        for _ in range(2)
    ]
    pair[1].recurrent = pair[0].recurrent
    with pytest.raises(ValueError, match="0: it shares recurrent.weight with 1.recurrent"):
        interop.convert(nn.Sequential(*pair))


class Scaled(nn.Module):
    def __init__(self, scale, before):
        super().__init__()
        self.scale, self.before = scale, before

    def forward(self, x):
        return self.scale * self.before(x)


def test_learnt_values_that_mean_something_else_elsewhere_are_not_shared():
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron", reason="SpikingJelly is not installed")
    first = neuron.ParametricLIFNode(step_mode="m")
    with pytest.raises(ValueError, match="0: it shares w with 1"):
        interop.convert(nn.Sequential(first, Scaled(first.w, nn.Identity())))
    for scale in (first.w, [first.w], {"w": (first.w,)}, types.SimpleNamespace(w=first.w)):
        with pytest.raises(ValueError, match="before: it shares w with Scaled"):
            interop.convert(Scaled(scale, first))


def test_differences_are_counted(monkeypatch):
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron", reason="SpikingJelly is not installed")
    table = {**interop.spikingjelly._KINDS, neuron.LIFNode: (interop.spikingjelly._LIFNode, lambda node: 0.9)}
    monkeypatch.setattr(interop.spikingjelly, "_KINDS", table)
    _, report = interop.convert(neuron.LIFNode(step_mode="m", decay_input=False), verify=torch.rand(9, 5, 20))
    wrong, compared = report.mismatches[""]
    assert compared == 900 and wrong > 50


def test_a_network_that_has_just_run_must_be_reset():
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron", reason="SpikingJelly is not installed")
    net = nn.Sequential(nn.Linear(3, 3), neuron.LIFNode())
    net(torch.rand(2, 3))
    with pytest.raises(ValueError, match=r"a state that was not reset \(functional.reset_net\(net\)"):
        interop.convert(net)


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm`")
def test_arguments_and_networks_that_do_not_do():
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron", reason="SpikingJelly is not installed")
    net, sample = nn.Sequential(nn.Linear(3, 3), neuron.IFNode()), torch.rand(2, 3)
    for convert, one in ((interop.convert, net), (interop.spikingjelly.from_lifnode, net[1])):
        with pytest.raises(ValueError, match="placement must be one of"):
            convert(one, placement="bla")
    with pytest.raises(ValueError, match="the network fails on `verify`, which is its one argument or a tuple"):
        interop.convert(net, verify=[sample])
    converted, _ = interop.convert(net)
    with pytest.raises(RuntimeError, match="is called as a neuron of another library, and keeps its state itself"):
        Stream(converted)(sample)
    converted(sample)
    with pytest.raises(ValueError, match="or a state that was not reset"):
        plain(converted)
    net.lock = threading.Lock()
    with pytest.raises(ValueError, match=r"cannot be copied: cannot pickle '_thread.lock' object"):
        interop.convert(net)
    del net.lock
    net[0] = nn.utils.weight_norm(net[0])
    for convert in (interop.convert, functools.partial(models.convert, neuron=LIF)):
        with pytest.raises(ValueError, match="a weight of the old torch.nn.utils.weight_norm"):
            convert(net)


class Lists(nn.Module):
    """Neurons in plain containers: of the network, and, if it is so made, one that is nowhere else."""

    def __init__(self, make, hides):
        super().__init__()
        self.first, self.second, self.third = make(), make(), make()
        self.listed, self.nested, self.pair = [self.first], {"a": [self.second]}, (self.third, 1)
        if hides:
            self.listed.append(make())

    def forward(self, x):
        for neuron in (*self.listed, *self.nested["a"], self.pair[0]):
            x = neuron(2 * x)
        return x


def test_neurons_in_plain_containers_are_replaced_or_reported():
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron", reason="SpikingJelly is not installed")
    converted, _ = interop.convert(nn.Sequential(Lists(neuron.IFNode, hides=False)), noise=Gaussian(0.3))
    inner = converted[0]
    assert inner.listed == [inner.first] and inner.nested == {"a": [inner.second]} and inner.pair == (inner.third, 1)
    assert isinstance(inner.first, interop.spikingjelly.Node)
    with pytest.warns(UserWarning, match="0.listed: it is not a module of the network"):
        _, report = interop.convert(nn.Sequential(Lists(neuron.IFNode, hides=True)))
    assert list(report.skipped) == ["0.listed"]


HIDDEN = {
    "object": (lambda made: types.SimpleNamespace(n=made), lambda other: other.n),
    "set": (lambda made: {made}, lambda other: next(iter(other))),
    "queue": (lambda made: deque([made]), lambda other: other[0]),
    "method": (lambda made: made.forward, lambda other: other),
    "closure": (lambda made: lambda x: made(x), lambda other: other),
}


class Hidden(nn.Module):
    """A network that gets its neuron from elsewhere."""

    def __init__(self, made, kind):
        super().__init__()
        self.n, self.kind = made, kind
        self.other = HIDDEN[kind][0](made)

    def forward(self, x):
        return HIDDEN[self.kind][1](self.other)(x)


@pytest.mark.parametrize("kind", HIDDEN)
def test_neurons_that_are_elsewhere_are_reported(kind):
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron", reason="SpikingJelly is not installed")
    with pytest.warns(UserWarning, match="these neurons are left as they are"):
        _, report = interop.convert(Hidden(neuron.IFNode(), kind), verify=torch.rand(2, 3))
    assert report.skipped.keys() == {"closure": {"n"}, "method": {"other"}}.get(kind, {"n", "other"})
    if kind != "closure":
        with pytest.warns(UserWarning, match="other: it is not a module of the network"):
            interop.convert(Hidden(neuron.IFNode(), kind))


def test_neurons_of_a_converted_network_are_reset():
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron", reason="SpikingJelly is not installed")
    functional = pytest.importorskip("spikingjelly.activation_based.functional")
    with pytest.warns(UserWarning, match="other: it is not a module"):
        converted, _ = interop.convert(Hidden(neuron.IFNode(), "object"))
    converted.n(torch.rand(2, 3))
    functional.reset_net(converted)
    assert converted.n.v == 0


class Clips(nn.Module):
    """A network that calls its neuron for several sequences."""

    def __init__(self, made, call):
        super().__init__()
        self.n, self.call = made, call

    def forward(self, x):
        return self.call(self.n, x)


def _reset_between(n, x):
    return [(n(clip), n.reset()) for clip in x.split(3)]


def _set_the_potential(n, x):
    n.v = 0.5
    return n(x)


def _start_again(n, x):
    return [n(clip, state) for clip in x.split(3) for state in (None, n(clip)[1])]


def _one_step_each(n, x):
    mems = [n.init_leaky(), torch.zeros_like(x[0])]
    for step, x_t in enumerate(x):
        _, mems[step % 2] = n(x_t, mems[step % 2])


CALLS = {
    "spikingjelly, reset": ("spikingjelly.activation_based.neuron", "IFNode", {"step_mode": "m"}, _reset_between),
    "spikingjelly, v": ("spikingjelly.activation_based.neuron", "IFNode", {"step_mode": "m"}, _set_the_potential),
    "norse": ("norse.torch", "LIF", {"dt": 0.004}, _start_again),
    "snntorch": ("snntorch", "Leaky", {"beta": 0.9}, _one_step_each),
}


@pytest.mark.parametrize("key", CALLS)
def test_each_call_is_compared_from_its_own_state(key):
    home, name, settings, call = CALLS[key]
    library = pytest.importorskip(home, reason="it is not installed")
    _, report = interop.convert(Clips(getattr(library, name)(**settings), call), verify=2 * torch.rand(9, 4, 50))
    assert report.mismatches["n"][0] == 0 and report.mismatches["n"][1] >= 1800


def test_a_layer_that_is_its_own_copy_stays_common():
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron", reason="SpikingJelly is not installed")

    class Common(nn.Linear):
        def __deepcopy__(self, memo):
            return self

    net = nn.Sequential(Common(3, 3), neuron.IFNode())
    assert interop.convert(net)[0][0] is net[0]


def test_hooks_stay():
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron", reason="SpikingJelly is not installed")
    net, calls = nn.Sequential(nn.Linear(3, 3), neuron.IFNode()), []
    net[1].register_forward_pre_hook(lambda module, args: calls.append("before"))
    net[1].register_forward_hook(lambda module, args, kwargs, output: calls.append("after"), with_kwargs=True)
    net[1].register_full_backward_hook(lambda module, inputs, outputs: calls.append("back"))
    converted, _ = interop.convert(net)
    converted(torch.rand(2, 3)).sum().backward()
    assert calls == ["before", "after", "back"]


def test_inputs_by_keyword_are_compared():
    snn = pytest.importorskip("snntorch", reason="snnTorch is not installed")

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.lif = snn.Leaky(beta=0.9)

        def forward(self, x):
            return self.lif(mem=torch.zeros_like(x), input_=x)

    _, report = interop.convert(Net(), verify=3 * torch.rand(2, 3))
    assert report.mismatches == {"lif": (0, 6)}


AROUND = {
    "Synaptic": lambda: Synaptic(0.5, LIF()),
    "Recurrent": lambda: Recurrent(LIF(), nn.Linear(3, 3)),
    "AdaptiveLIF": lambda: AdaptiveLIF(LIF()),
}


@pytest.mark.parametrize("name", AROUND)
@pytest.mark.parametrize(("library", "layer"), [("spikingjelly", "Node"), ("snntorch", "Layer"), ("sinabs", "Layer")])
def test_layers_that_keep_a_potential_refuse_other_states(library, layer, name):
    pytest.importorskip(library, reason="it is not installed")
    with pytest.raises(ValueError, match=f"{name} has more state than that"):
        getattr(getattr(interop, library), layer)(AROUND[name]())


@pytest.mark.parametrize(("library", "layer"), [("spikingjelly", "Node"), ("snntorch", "Layer"), ("sinabs", "Layer")])
@pytest.mark.parametrize("run", [checkpoint, functools.partial(torch_checkpoint, use_reentrant=False)])
def test_layers_that_keep_a_state_are_not_run_again_from_another(library, layer, run):
    pytest.importorskip(library, reason="it is not installed")
    made, x = getattr(getattr(interop, library), layer)(LIF()), torch.rand(3, 4, 5, requires_grad=True)
    with pytest.raises(RuntimeError, match="this layer keeps a state, and activation checkpointing would"):
        run(made, x)
    spikes, _ = run(made.neuron.run, x, torch.rand(4, 5))
    spikes.sum().backward()


def test_layers_with_another_state_take_no_other_neuron():
    pytest.importorskip("snntorch", reason="snnTorch is not installed")
    with pytest.raises(ValueError, match="start from a potential of 0: the neuron must have v_leak=0"):
        interop.snntorch.Layer(LIF(v_leak=0.5))
    with pytest.raises(ValueError, match="this layer takes a Synaptic, not a LIF"):
        interop.snntorch.SynapticLayer(LIF())
    with pytest.raises(ValueError, match="AdaptiveLIF has more state than that"):
        interop.snntorch.RecurrentLayer(Recurrent(AdaptiveLIF(LIF()), nn.Linear(3, 3)))


@pytest.mark.parametrize(
    ("library", "layer", "name"),
    [
        ("spikingjelly", "Node", "tau"),
        ("spikingjelly", "Node", "v_threshold"),
        ("snntorch", "Layer", "beta"),
        ("snntorch", "Layer", "threshold"),
        ("snntorch", "Layer", "reset_mechanism"),
        ("norse", "Layer", "p"),
        ("sinabs", "Layer", "tau_mem"),
    ],
)
def test_a_setting_of_the_library_is_an_error_that_says_where_settings_are(library, layer, name):
    pytest.importorskip(library, reason="it is not installed")
    made = getattr(getattr(interop, library), layer)(LIF())
    assert not hasattr(made, name)
    with pytest.raises(AttributeError, match=f"{name}'; the settings are those of its `neuron`"):
        getattr(made, name)
    with pytest.raises(AttributeError, match=f"this layer has no '{name}'; the settings are those of its `neuron`"):
        setattr(made, name, 0.5)
    made.neuron.threshold, made.name = 0.5, "first"

"""Thresholds, decays and scales that are tensors, of one value or one for each channel: gradients, kernels, modules."""

import copy
import io
import itertools
import math
import pickle
import random
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.export import Dim, export
from torch.func import functional_call, grad, stack_module_state, vmap

from models import (
    IF,
    LIF,
    Cauchy,
    Gaussian,
    Logistic,
    NoisyLIF,
    ParametricLIF,
    Triangular,
    Uniform,
    build_neuron,
    mean_field,
    noise_generator,
    noiseless,
)
from models.functional import firing_probability, lif, noisy_lif
from models.kernels import build, cpu, fused, selftest
from models.kernels.common import ALL_BITS, VALUES, Neuron, Saved, dense
from models.kernels.eager import lif_sequence
from models.noise import Rescaled
from tests.conftest import first_are_fast
from tests.models.reference_noise import close_calls
from tests.models.reference_noise import noise as reference_noise
from tests.models.test_noise import Laplace

KINDS = ("number", "one", "channels")
NUMBERS = {"threshold": 0.9, "decay": 0.7, "scale": 0.4, "reset_value": 0.6, "v_reset": 0.2}
SETTINGS = ("threshold", "decay", "scale", "v_reset")  # of neurons
PLACEMENTS = {"both": (True, True), "escape": (False, True), "membrane": (True, False), "noiseless": (False, False)}
C = 3


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def currents(*shape, dtype=torch.float64):
    return (1.6 * torch.rand(shape, generator=seeded(1), dtype=torch.float64) - 0.1).to(dtype)


def value(name, kind, dtype=torch.float64, channels=C):
    """A number, or a leaf tensor of that value or of several around it."""
    number = NUMBERS[name]
    if kind == "number":
        return number
    values = [number] if kind == "one" else [number * (0.8 + 0.4 * c / channels) for c in range(channels)]
    return torch.tensor(values, dtype=dtype, requires_grad=True)


def sampled(count, **choices):
    """`count` settings drawn from all combinations, the same in each run."""
    draw = random.Random(0)
    return [{name: draw.choice(list(options)) for name, options in choices.items()} for _ in range(count)]


def each_variant_once(cases):
    """The cases; slow where they need a kernel for one value by channel, but for two of these kernels in float32."""
    marked = []
    for case in cases:
        by_channel = [name for name in VALUES if case[name] == "channels"]
        is_slow = len(by_channel) == 1 and (case["dtype"] != torch.float32 or by_channel[0] in ("decay", "reset_value"))
        marked.append(pytest.param(case, marks=pytest.mark.slow) if is_slow else case)
    return marked


def name_of(settings):
    return "-".join(str(setting).removeprefix("torch.") for setting in settings.values())


# ---- the eager kernel: against PyTorch's own derivatives, and differences


@pytest.mark.parametrize(
    "settings",
    sampled(
        28, threshold=KINDS, decay=KINDS, scale=KINDS, reset_value=KINDS, reset=["zero", "subtract", "none"],
        decay_input=[False, True],
        detach_reset=[False, True], placement=["both", "escape", "membrane"],
        mode=["noisy", "noisy", "noiseless", "mean_field"], surrogate=[None, None, Cauchy(0.5, 0.1)],
    ),
    ids=name_of,
)  # fmt: skip
def test_the_eager_kernel_has_the_gradient_of_autograd(settings):
    settings = dict(settings)
    values = {name: value(name, settings.pop(name)) for name in VALUES}
    of_reset = values.pop("reset_value")
    if settings["reset"] != "none":
        values["v_reset" if settings["reset"] == "zero" else "reset_by"] = of_reset
    if settings["surrogate"] is not None or not isinstance(values["scale"], torch.Tensor):
        values["scale"] = None
    results = []
    for backend in ("eager", "plain"):
        x, state = currents(4, 2, C, 5).requires_grad_(), currents(2, C, 5).requires_grad_()
        with noise_generator(seeded(2)):
            outputs = noisy_lif(x, Gaussian(0.3, 0.05), state=state, backend=backend, **values, **settings)
        inputs = [t for t in (x, state, *values.values()) if isinstance(t, torch.Tensor)]
        weights = [torch.randn(output.shape, generator=seeded(3), dtype=torch.float64) for output in outputs]
        grads = torch.autograd.grad(outputs, inputs, weights, allow_unused=True)
        grads = [torch.zeros_like(t) if grad is None else grad for t, grad in zip(inputs, grads)]
        results.append([*outputs, *grads])
    assert settings["mode"] == "mean_field" or 0 < results[0][0].mean() < 1
    for ours, theirs in zip(*results):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("backend", ["eager", "fused"])
@pytest.mark.parametrize(("reset", "kinds", "decay_input"), [
    ("zero", ("channels", "channels", "channels", "channels"), False),
    ("subtract", ("channels", "one", "channels", "one"), True),
    pytest.param("none", ("one", "channels", "one", "number"), False, marks=pytest.mark.slow),
    pytest.param("subtract", ("one", "one", "one", "channels"), False, marks=pytest.mark.slow),
])  # fmt: skip
def test_gradients_of_the_mean_field_are_those_of_differences(backend, reset, kinds, decay_input):
    values = [value(name, kind) for name, kind in zip(VALUES, kinds)]

    def run(x, threshold, decay, scale, reset_value):
        options = dict(reset=reset, decay_input=decay_input, mode="mean_field", backend=backend)
        if reset != "none":
            options["v_reset" if reset == "zero" else "reset_by"] = reset_value
        return noisy_lif(x, Logistic(0.2, 0.1), threshold=threshold, decay=decay, scale=scale, **options)

    assert torch.autograd.gradcheck(run, (currents(3, 2, C, 2).requires_grad_(), *values), atol=1e-6)
    assert torch.autograd.gradgradcheck(run, (currents(2, 1, C).requires_grad_(), *values), atol=1e-5)


# ---- the C kernel and the operator against the eager kernel, given the same noise


LAYOUTS = {
    "contiguous": lambda x: x,
    "channels last": lambda x: x.movedim(2, -1).contiguous().movedim(-1, 2),
    "transposed": lambda x: x.permute(0, 4, 3, 2, 1).contiguous().permute(0, 4, 3, 2, 1),
    "expanded over time": lambda x: x[:1].expand(x.shape),
    "batch innermost": lambda x: x.movedim(1, -1).contiguous().movedim(-1, 1),
}


def neuron_of(law, settings, dtype):
    """A `Neuron` whose tensors are leaves, as kernels take them."""
    membrane, threshold = PLACEMENTS.get(settings["placement"], (False, False))
    values = {name: value(name, settings[name], dtype) for name in VALUES}
    if settings["reset"] == "none":
        values["reset_value"] = 0.0
    for name, given in values.items():
        if isinstance(given, torch.Tensor):
            shape = () if given.numel() == 1 else (C, 1, 1)
            is_learnt = name != "scale" or settings["surrogate"] is None
            values[name] = given.detach().reshape(shape).requires_grad_(is_learnt)
    return Neuron(
        law,
        **values,
        reset=settings["reset"],
        detach_reset=settings["detach_reset"],
        decay_input=settings["decay_input"],
        membrane_noise=membrane,
        threshold_noise=threshold,
        mean_field=settings["placement"] == "mean_field",
        surrogate=settings["surrogate"],
        surrogate_scale=settings["surrogate"] and torch.linspace(0.3, 0.6, C).to(dtype).reshape(C, 1, 1),
    )


@pytest.mark.parametrize(
    "settings",
    each_variant_once(sampled(
        36, threshold=KINDS, decay=KINDS, scale=KINDS, reset_value=KINDS,
        law=[Gaussian, Logistic, Triangular, Uniform, Cauchy],
        placement=["both", "both", "escape", "membrane", "noiseless", "mean_field"], layout=LAYOUTS,
        reset=["zero", "subtract", "none"], detach_reset=[False, True], decay_input=[False, True],
        dtype=[torch.float32, torch.float64, torch.bfloat16], state=[False, True],
        surrogate=[None, None, Cauchy(0.5, 0.1)],
        shape=[(3, 2, C, 7, 5), (2, 1, C, 41, 30), (2, 3, C, 1, 1), (1, 2, C, 19, 70)], operator=[False, True],
        threads=[1, 2],
    )),
    ids=name_of,
)  # fmt: skip
def test_the_c_kernel_equals_the_eager_one(settings, monkeypatch):
    dtype = settings["dtype"]
    arithmetic = torch.float64 if dtype == torch.float64 else torch.float32
    if settings["placement"] == "mean_field":
        settings = {**settings, "surrogate": None}
    law = settings["law"](NUMBERS["scale"], 0.05)
    neuron = neuron_of(law, settings, arithmetic)
    monkeypatch.setattr(cpu, "threads_for", lambda updates: settings["threads"])
    x = dense(LAYOUTS[settings["layout"]](currents(*settings["shape"], dtype=dtype)))
    state = currents(*settings["shape"][1:], dtype=arithmetic) if settings["state"] else None
    seeds = torch.randint(-(2**63), 2**63 - 1, (len(x),), generator=seeded(3))
    outer = [torch.randn(shape, generator=seeded(4)) for shape in (x.shape, x.shape[1:])]
    outer = [outer[0].to(dtype), outer[1].to(arithmetic)]
    draws = [draw.to(arithmetic) for draw in reference_noise(type(law)(1.0), x.shape, seeds)]
    eps = tuple((law.loc + neuron.scale * draw).detach() for draw in draws)

    def by_fused(x, state, *tensors):
        given = (x, state, *tensors, neuron.surrogate_scale, seeds)
        if settings["operator"]:
            return fused.lif_forward(*given, True, True, **fused.flattened(neuron))
        return fused.Direct.apply(*given, (neuron.with_tensors(tensors), True, True))

    def by_eager(x, state, *tensors):
        return lif_sequence(x, state, neuron.with_tensors(tensors), noise=eps)

    results = []
    for kernel in (by_fused, by_eager):
        given = [x.clone(memory_format=torch.preserve_format), state, *neuron.tensors()]
        learnt = [t is not None and (place != 4 or settings["surrogate"] is None) for place, t in enumerate(given)]
        given = [t if t is None else t.detach().requires_grad_(is_learnt) for t, is_learnt in zip(given, learnt)]
        *outputs, u = kernel(*given)
        inputs = [t for t in given if t is not None and t.requires_grad]
        grads = torch.autograd.grad(outputs, inputs, outer, allow_unused=True)
        shapes = [(t.shape, t.dtype) for t in inputs]
        assert all(g is None or (g.shape, g.dtype) == s for g, s in zip(grads, shapes))
        results.append(([output.detach() for output in outputs], grads))
    ((spikes, last), grads), ((right_spikes, right_last), right_grads) = results
    loose = dict(rtol=2e-2, atol=2e-2) if dtype == torch.bfloat16 else dict(rtol=2e-4, atol=2e-4)
    differ = torch.zeros(x.shape[1:], dtype=torch.bool)
    if settings["placement"] != "mean_field":
        differ = close_calls(spikes, right_spikes, u, neuron, eps)
    torch.testing.assert_close(spikes[:, ~differ], right_spikes[:, ~differ], **loose)
    torch.testing.assert_close(last[~differ], right_last[~differ], rtol=2e-4, atol=2e-4)
    torch.testing.assert_close(grads[0][:, ~differ], right_grads[0][:, ~differ], **loose)
    if differ.any():
        return
    for ours, theirs in zip(grads[1:], right_grads[1:]):
        if theirs is None or ours is None:
            assert not any(g is not None and g.any() for g in (ours, theirs))
        else:
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


# ---- Triton against C


@pytest.mark.parametrize(
    "settings",
    first_are_fast(sampled(
        12, threshold=KINDS, decay=KINDS, scale=KINDS, reset_value=KINDS, law=[Gaussian, Uniform],
        placement=["both", "escape", "membrane", "mean_field"], layout=LAYOUTS, reset=["zero", "subtract", "none"],
        detach_reset=[False, True], decay_input=[False, True], dtype=[torch.float32, torch.float64, torch.bfloat16],
        surrogate=[None], shape=[(2, 2, C, 7, 5), (2, 1, C, 41, 6)],
    ), 6),
    ids=name_of,
)  # fmt: skip
def test_triton_equals_c(settings):
    cuda, device = pytest.importorskip("models.kernels.cuda"), "cuda" if torch.cuda.is_available() else "cpu"
    dtype = settings["dtype"]
    arithmetic = torch.float64 if dtype == torch.float64 else torch.float32
    neuron = neuron_of(settings["law"](NUMBERS["scale"], 0.05), settings, arithmetic)
    learns = [tensor is not None for tensor in neuron.tensors()]
    x = dense(LAYOUTS[settings["layout"]](currents(*settings["shape"], dtype=dtype)))
    seeds = torch.randint(-(2**63), 2**63 - 1, (len(x),), generator=seeded(3))
    grad = torch.randn(x.shape, generator=seeded(4)).to(dtype)
    results = []
    for kernel, place in ((cpu.kernel(dtype, neuron.channel_bits() > 0), "cpu"), (cuda, device)):
        here = neuron.with_tensors([None if t is None else t.detach().to(place) for t in neuron.tensors()])
        given = (x.to(place), None, seeds.to(place))
        spikes, last, u = kernel.forward(*given, here, True, True)
        grads = kernel.backward((grad.to(place), last), Saved(*given, spikes, u), here, learns)
        results.append([t.cpu() for t in (spikes, last, u, *grads) if t is not None])
    differ = torch.zeros(x.shape[1:], dtype=torch.bool)
    if not neuron.mean_field:
        drawn = reference_noise(type(neuron.law)(1.0), x.shape, seeds)
        drawn = [neuron.law.loc + (neuron.scale * draw).detach() for draw in drawn]
        differ = close_calls(results[0][0], results[1][0], results[0][2], neuron, drawn)
    for place, (ours, theirs) in enumerate(zip(*results, strict=True)):
        loose = dict(rtol=2e-2, atol=2e-2) if ours.dtype == torch.bfloat16 else dict(rtol=1e-4, atol=1e-3)
        if place in (0, 2, 3):  # sequences
            torch.testing.assert_close(theirs[:, ~differ], ours[:, ~differ], **loose)
        elif place == 1:
            torch.testing.assert_close(theirs[~differ], ours[~differ], **loose)
        elif not differ.any() and ours.numel():
            torch.testing.assert_close(theirs, ours, **loose)


@pytest.mark.parametrize("scale", [0.0, -0.3, math.nan])
def test_a_scale_out_of_range_is_visible_where_it_is_not_checked(scale):
    """On CUDA, whose values are not read, and under torch.func."""
    cuda, device = pytest.importorskip("models.kernels.cuda"), "cuda" if torch.cuda.is_available() else "cpu"
    neuron, x = Neuron(Gaussian(1.0), torch.tensor(scale, device=device)), torch.ones(2, 3, 4, device=device)
    spikes, last, u = cuda.forward(x, None, None, neuron, True, True)
    grad_x, *_ = cuda.backward((torch.ones_like(spikes), None), Saved(None, None, None, spikes, u), neuron, [False] * 4)
    assert grad_x.isnan().all()
    learnt = torch.tensor(scale)
    options = dict(mode="mean_field", scale=learnt)
    assert vmap(lambda x: noisy_lif(x, Gaussian(1.0), **options)[0])(torch.ones(2, 3, 4)).isnan().all()


# ---- modules: what is given as a tensor is held, learnt, copied and saved


def parameters_of(kind, shape=(C,)):
    """Keyword arguments of a neuron with parameters of a shape, and those parameters by name."""
    learnt = {name: nn.Parameter(torch.full(shape, NUMBERS[name])) for name in ("threshold", "decay", "v_reset")}
    arguments = dict(learnt)
    if kind is NoisyLIF:
        learnt["scale"] = nn.Parameter(torch.full(shape, NUMBERS["scale"]))
        arguments["noise"] = Gaussian(learnt["scale"])
    return arguments, learnt


def spikes_of(neuron, x):
    with noise_generator(seeded(3)):
        return neuron(x)


every_shape = pytest.mark.parametrize("shape", [(), (1,), (C,)], ids=str)
both_kinds = pytest.mark.parametrize("kind", [LIF, NoisyLIF])


@both_kinds
@every_shape
def test_parameters_are_registered_and_learnt(kind, shape):
    arguments, learnt = parameters_of(kind, shape)
    neuron, x = kind(**arguments), currents(3, 2, C, 4, dtype=torch.float32)
    assert all(getattr(neuron, name) is parameter for name, parameter in learnt.items())
    assert dict(neuron.named_parameters()).keys() == learnt.keys() == neuron.state_dict().keys()
    optimiser = torch.optim.SGD(neuron.parameters(), lr=1e-3)
    neuron(x).mean(1).square().sum().backward()
    before = copy.deepcopy(neuron.state_dict())
    optimiser.step()
    for name, parameter in learnt.items():
        assert parameter.grad.shape == shape and parameter.grad.all()
        assert not torch.equal(parameter, before[name])
    assert "threshold=" in repr(neuron) and ("to" in repr(neuron)) == (shape == (C,))


@both_kinds
@every_shape
def test_other_tensors_are_buffers(kind, shape):
    given = {name: parameter.detach() for name, parameter in parameters_of(kind, shape)[1].items()}
    arguments = {name: given[name] for name in ("threshold", "decay", "v_reset")}
    if kind is NoisyLIF:
        arguments["noise"] = Gaussian(given["scale"])
    neuron, x = kind(**arguments), currents(3, 2, C, 4, dtype=torch.float32)
    assert not list(neuron.parameters()) and dict(neuron.named_buffers()).keys() == given.keys()
    numbers = {name: NUMBERS[name] for name in ("threshold", "decay", "v_reset")}
    same = kind(Gaussian(NUMBERS["scale"]), **numbers) if kind is NoisyLIF else kind(**numbers)
    assert torch.equal(spikes_of(neuron, x), spikes_of(same, x))
    for tensor in given.values():
        tensor.mul_(2)  # the user's own tensor: the neuron has a copy
    assert neuron.threshold.max() < 1
    assert all(value.dtype == torch.float64 for value in neuron.double().state_dict().values())
    assert all(value.is_meta for value in neuron.to("meta").state_dict().values())


@both_kinds
@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save", "state_dict"])
def test_copies_behave_alike_and_are_others(kind, way):
    neuron, x = kind(**parameters_of(kind)[0]), currents(3, 2, C, 4, dtype=torch.float32)
    with torch.no_grad():
        for number, parameter in enumerate(neuron.parameters()):
            parameter += 0.05 * (number + 1)
    if way == "deepcopy":
        twin = copy.deepcopy(neuron)
    elif way == "pickle":
        twin = pickle.loads(pickle.dumps(neuron))
    elif way == "torch.save":
        file = io.BytesIO()
        torch.save(neuron, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    else:
        twin = kind(**parameters_of(kind)[0])
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # what the weights hold is not another setting
            twin.load_state_dict(neuron.state_dict())
    assert torch.equal(spikes_of(twin, x), spikes_of(neuron, x))
    for (name, ours), (other, theirs) in zip(neuron.named_parameters(), twin.named_parameters(), strict=True):
        assert name == other and torch.equal(ours, theirs) and ours is not theirs
        assert getattr(twin, name) is theirs
    if kind is NoisyLIF:
        assert twin.noise.scale is twin.scale and type(twin.noise) is Gaussian


def test_weights_of_numbers_and_of_tensors_are_not_confused():
    with pytest.raises(RuntimeError, match="threshold"), pytest.warns(UserWarning, match="threshold"):
        LIF().load_state_dict(LIF(threshold=nn.Parameter(torch.ones(C))).state_dict())
    with pytest.raises(RuntimeError, match="size mismatch"):
        LIF(threshold=torch.ones(4)).load_state_dict(LIF(threshold=torch.ones(C)).state_dict())
    single = LIF(threshold=nn.Parameter(torch.tensor(0.9)))
    single.load_state_dict(LIF(threshold=nn.Parameter(torch.tensor([0.7]))).state_dict())
    assert single.threshold.item() == pytest.approx(0.7)


def test_values_are_reset_to_what_was_given():
    neurons = [kind(**parameters_of(kind)[0]) for kind in (LIF, NoisyLIF)]
    neurons += [ParametricLIF(decay=torch.tensor([0.2, 0.5, 0.9])), LIF(threshold=torch.tensor([0.5, 0.9, 1.0]))]
    neurons.append(NoisyLIF(Gaussian(torch.tensor([0.2, 0.3, 0.4])), learnable_scale=True))
    for neuron in neurons:
        before = copy.deepcopy(neuron.state_dict())
        assert before
        with torch.no_grad():
            for tensor in neuron.state_dict().values():
                tensor.fill_(7.0)
        for comes_from_meta in (False, True):
            if comes_from_meta:
                neuron.to("meta").to_empty(device="cpu")
            neuron.reset_parameters()
            for name, tensor in neuron.state_dict().items():
                assert torch.equal(tensor, before[name])


def test_on_the_meta_device():
    with torch.device("meta"):
        neurons = [kind(**parameters_of(kind)[0]) for kind in (LIF, NoisyLIF)]
        neurons.append(ParametricLIF(decay=torch.full((C,), 0.5)))
        neurons.append(NoisyLIF(Gaussian(torch.full((C,), 0.5)), learnable_scale=True))
        for neuron in neurons:
            assert neuron(torch.empty(3, 2, C, 4)).shape == (3, 2, C, 4) and "nan" in repr(neuron)
    for neuron in neurons:
        assert all(tensor.is_meta for tensor in neuron.state_dict().values()) and neuron.state_dict()
        with pytest.raises(RuntimeError, match="was given on the meta device, and has no values"):
            neuron.to_empty(device="cpu").reset_parameters()


@pytest.mark.parametrize("values", [torch.tensor([0.2, 0.5, 0.9]), torch.tensor(0.3), torch.tensor([0.3])], ids=str)
def test_learnt_decays_and_scales_have_as_many_values_as_they_were_given(values):
    plif, noisy = ParametricLIF(decay=values), NoisyLIF(Gaussian(values), learnable_scale=True)
    count = values.numel()
    assert plif.decay_logit.shape == noisy.log_scale.shape == (count,)
    torch.testing.assert_close(plif.decay.reshape(-1), values.reshape(-1))
    torch.testing.assert_close(noisy.scale.reshape(-1), values.reshape(-1))
    x = currents(3, 2, C, 4, dtype=torch.float32)
    for neuron, fixed in ((plif, LIF(decay=plif.decay.detach())), (noisy, NoisyLIF(Gaussian(noisy.scale.detach())))):
        spikes = spikes_of(neuron, x)
        assert torch.equal(spikes, spikes_of(fixed, x))
        spikes.mean(1).square().sum().backward()
        assert all(parameter.grad.all() for parameter in neuron.parameters())


# ---- modules: laws whose scale is a tensor


def test_noise_is_annealed_where_the_scale_is_a_tensor():
    arguments, learnt = parameters_of(NoisyLIF)
    neuron = NoisyLIF(**arguments)
    for law, expected in ((Gaussian(0.2), [0.2] * C), (Cauchy(torch.tensor([0.1, 0.2, 0.3])), [0.1, 0.2, 0.3])):
        neuron.noise = law
        assert neuron.scale is learnt["scale"] and type(neuron.noise) is type(law)
        torch.testing.assert_close(neuron.scale.detach(), torch.tensor(expected))
    with pytest.raises(ValueError, match="learns 3 values of its scale, and was given 2"):
        neuron.noise = Gaussian(torch.tensor([0.1, 0.2]))
    other = nn.Parameter(torch.tensor([0.5]))
    neuron.noise = Logistic(other)
    assert neuron.scale is other and type(neuron.noise) is Logistic
    held = NoisyLIF(Gaussian(torch.tensor([0.1, 0.2, 0.3])))
    held.noise = Gaussian(0.7)
    assert held.scale == 0.7 and not held.state_dict()
    held.noise = Gaussian(other)
    assert held.scale is other
    for wrong in (Gaussian(other * 2), Gaussian(nn.Parameter(torch.tensor([0.5])) * 2)):
        with pytest.raises(ValueError, match="a scale that requires a gradient must be an nn.Parameter"):
            held.noise = wrong
    assert held.scale is other


def test_what_neurons_say_about_themselves_is_right_with_tensors():
    """For the twins of attacks: the law of the gradient, other gradients, vanishing noise, the mean field."""
    scales, x = torch.tensor([0.2, 0.4, 0.8]), currents(1, 500, C, dtype=torch.float32)
    learnt = NoisyLIF(Gaussian(torch.tensor([0.1, 0.2, 0.4])), placement="escape", learnable_scale=True)
    with torch.no_grad():
        learnt.log_scale += math.log(2)
    for neuron in (learnt, NoisyLIF(Gaussian(nn.Parameter(scales)), placement="escape"), LIF(Gaussian(scales))):
        law = neuron.gradient_law
        torch.testing.assert_close(law.scale, scales)
        assert isinstance(law.widened(2), Gaussian) and torch.equal(law.widened(2).scale, 2 * law.scale)
        twin = copy.deepcopy(neuron).requires_grad_(False)
        twin.set_gradient(law.widened(2))
        given = [x.clone().requires_grad_() for _ in range(2)]
        for one, current in zip((neuron, twin), given):
            spikes_of(one, current).sum().backward()
        torch.testing.assert_close(given[0].grad, Gaussian(scales).pdf(x - 1))  # [C] broadcasts over x [T, B, C]
        torch.testing.assert_close(given[1].grad, Gaussian(2 * scales).pdf(x - 1))
        assert torch.equal(spikes_of(neuron, x), spikes_of(twin, x))
        torch.testing.assert_close(neuron.as_mean_field()(x), Gaussian(scales).cdf(x - 1))
        if isinstance(neuron, NoisyLIF):
            twin = copy.deepcopy(neuron).requires_grad_(False)
            twin.scale_noise(1e-6)
            assert torch.equal(spikes_of(twin, x), (x > 1).float())
            torch.testing.assert_close(twin.scale, 1e-6 * scales)
            current = x.clone().requires_grad_()
            twin(current).sum().backward()
            torch.testing.assert_close(current.grad, Gaussian(scales).pdf(x - 1))
            with pytest.raises(ValueError, match="leave out the surrogate"):
                neuron.set_gradient(Gaussian(1.0))


@pytest.mark.parametrize("law", [Gaussian, Logistic, Triangular, Uniform, Cauchy])
def test_a_law_broadcasts_its_scale(law):
    x, scales = currents(4, C), torch.tensor([0.2, 0.4, 0.8], dtype=torch.float64)
    for method in ("cdf", "pdf"):
        expected = torch.stack([getattr(law(s, 0.1), method)(x[:, c]) for c, s in enumerate(scales.tolist())], 1)
        torch.testing.assert_close(getattr(law(scales, 0.1), method)(x), expected)
    assert law(scales).sample((4, C)).shape == (4, C)
    given = scales.clone()
    kept = law(given)
    given.mul_(3)
    assert torch.equal(kept.scale, scales) and "[0.2 to 0.8]" in repr(kept)
    parameter = nn.Parameter(scales)
    assert law(parameter).scale is parameter


class OwnConstructor(Laplace):
    def __init__(self, width):
        super().__init__(width)
        self.inverse = 1 / width


def test_laws_of_users():
    """By inheritance, by `Rescaled`; a constructor of its own may have used the scale for anything."""
    scales, x = torch.tensor([0.2, 0.4, 0.8]), currents(1, 50, C, 2, dtype=torch.float32)
    for law in (Laplace(nn.Parameter(scales)), Rescaled(OwnConstructor(1.0), nn.Parameter(scales))):
        neuron = NoisyLIF(law, placement="escape")
        by_channel = Laplace(scales).cdf(x.transpose(2, 3) - 1).transpose(2, 3)
        torch.testing.assert_close(neuron.as_mean_field()(x), by_channel)
        spikes_of(neuron, x).mean(1).sum().backward()
        assert neuron.scale.grad.shape == (C,) and neuron.scale.grad.all()
        torch.testing.assert_close(neuron.gradient_law.widened(3).scale, 3 * scales)
    with pytest.raises(TypeError, match="OwnConstructor has its own constructor: its scale must be a number"):
        NoisyLIF(OwnConstructor(scales))
    with pytest.raises(TypeError, match="standard deviation.*number, not a tensor"):
        _ = Laplace(scales).std


# ---- functions, dtypes, and what PyTorch does with modules


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("of_x", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", ["auto", "eager"])
def test_gradients_have_the_dtype_and_the_shape_of_the_parameters(dtype, of_x, backend, monkeypatch):
    monkeypatch.setenv("NSNN_KERNELS", backend)
    neuron = NoisyLIF(**parameters_of(NoisyLIF)[0]).to(dtype)
    spikes = neuron(currents(3, 2, C, 4, dtype=of_x))
    spikes.float().mean().backward()
    assert spikes.dtype == of_x
    for parameter in neuron.parameters():
        assert parameter.grad.dtype == dtype and parameter.grad.shape == (C,) and parameter.grad.isfinite().all()


def test_the_likelihood_of_given_spikes():
    x, spikes = currents(4, 2, C, 2), (currents(4, 2, C, 2) > 0.8).double()
    values = [value(name, "channels") for name in VALUES]

    def run(threshold, decay, scale, reset_by, channel=slice(None)):
        options = dict(threshold=threshold, decay=decay, reset="subtract", reset_by=reset_by)
        return firing_probability(x[:, :, channel], spikes[:, :, channel], Gaussian(0.3), scale=scale, **options)

    assert torch.autograd.gradcheck(run, values)
    for channel in range(C):
        alone = run(*[v[channel] for v in values], channel=slice(channel, channel + 1))
        torch.testing.assert_close(run(*values)[:, :, [channel]], alone)
    threshold, decay, scale, reset_by = (nn.Parameter(v.detach()) for v in values)
    neuron = NoisyLIF(Gaussian(scale), threshold, decay, placement="escape", reset="subtract", reset_by=reset_by)
    torch.testing.assert_close(neuron.firing_probability(x, spikes), run(*values))
    by_law, by_scale = (
        firing_probability(x, spikes, Gaussian(scale)),
        firing_probability(x, spikes, Gaussian(1.0), scale=scale),
    )
    assert torch.equal(by_law, by_scale)


def network():
    torch.manual_seed(0)
    layers = LIF(**parameters_of(LIF)[0]), NoisyLIF(**parameters_of(NoisyLIF, (4,))[0])
    return nn.Sequential(nn.Linear(5, C), layers[0], nn.Linear(C, 4), layers[1])


def test_compiled_and_exported():
    torch._dynamo.reset()
    net, x, results = network(), 2 * currents(3, 2, 5, dtype=torch.float32), []
    for run in (net, torch.compile(net, backend="aot_eager", fullgraph=True)):
        net.zero_grad()
        with noise_generator(seeded(4)):
            spikes = run(x)
        spikes.mean(1).square().sum().backward()
        results.append([spikes.detach(), *[parameter.grad for parameter in net.parameters()]])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)
    torch._dynamo.reset()
    with noiseless(net):
        program = export(net, (x,), dynamic_shapes=({0: Dim("T"), 1: Dim("B")},)).module()
        x = 2 * currents(7, 5, 5, dtype=torch.float32)
        assert torch.equal(program(x), net(x))


def test_torch_func():
    net, x = network(), 2 * currents(3, 6, 5, dtype=torch.float32)
    learnt = {name: parameter.detach() for name, parameter in net.named_parameters()}

    def loss(learnt, x):
        return functional_call(net, learnt, (x,)).mean((0, 1)).square().sum()

    with mean_field(net):
        together = grad(loss)(learnt, x)
        net.zero_grad()
        loss(dict(net.named_parameters()), x).backward()
        for name, parameter in net.named_parameters():
            torch.testing.assert_close(together[name], parameter.grad, rtol=1e-4, atol=1e-5)
        each = vmap(grad(loss), in_dims=(None, 1))(learnt, x.unsqueeze(2))
        for name in learnt:
            alone = grad(loss)(learnt, x[:, [2]])[name]
            torch.testing.assert_close(each[name][2], alone, rtol=1e-4, atol=1e-5)
        nets = [copy.deepcopy(net) for _ in range(2)]
        with torch.no_grad():
            nets[1][1].threshold += 0.2
        for one in nets:
            one[3].mode = "mean_field"
        base = copy.deepcopy(nets[0])
        stacked = vmap(lambda *state: functional_call(base, state, (x,)))(*stack_module_state(nets))
        torch.testing.assert_close(stacked, torch.stack([one(x) for one in nets]))


@pytest.mark.parametrize("kernels", ["auto", "eager"])
def test_second_derivatives_and_batches_of_gradients(kernels, monkeypatch):
    monkeypatch.setenv("NSNN_KERNELS", kernels)
    arguments = parameters_of(NoisyLIF)[0]
    arguments["reset_by"] = arguments.pop("v_reset")
    neuron, x = NoisyLIF(**arguments, reset="subtract").double(), currents(3, 2, C, 2).requires_grad_()
    inputs = (x, *neuron.parameters())
    with mean_field(neuron):
        loss = neuron(x).square().sum()
        gradients = torch.autograd.grad(loss, inputs, create_graph=True)
        sum(gradient.square().sum() for gradient in gradients).backward()
        assert all(given.grad.isfinite().all() and given.grad.any() for given in inputs)
    spikes = spikes_of(neuron, x)
    weights = torch.randn(4, *spikes.shape, generator=seeded(2), dtype=torch.float64)
    together = torch.autograd.grad(spikes, inputs, weights, is_grads_batched=True, retain_graph=True)
    apart = [torch.autograd.grad(spikes, inputs, weight, retain_graph=True) for weight in weights]
    for ours, theirs in zip(together, zip(*apart)):
        torch.testing.assert_close(ours, torch.stack(theirs))
    (kept,) = torch.autograd.grad(spikes.sum(), neuron.threshold, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        kept.sum().backward()


@pytest.mark.parametrize("kernels", ["auto", "eager"])
@pytest.mark.parametrize("name", SETTINGS)
def test_a_parameter_that_is_written_over_before_the_backward_pass(name, kernels, monkeypatch):
    monkeypatch.setenv("NSNN_KERNELS", kernels)
    neuron = NoisyLIF(**parameters_of(NoisyLIF)[0])
    spikes = neuron(currents(3, 2, C, 2, dtype=torch.float32))
    with torch.no_grad():
        getattr(neuron, name).mul_(0.9)
    with pytest.raises(RuntimeError, match="or a parameter were changed in place"):
        spikes.sum().backward()


def test_the_number_of_threads_does_not_matter():
    neuron, x, results = NoisyLIF(**parameters_of(NoisyLIF)[0]), currents(4, 7, C, 4001, dtype=torch.float32), []
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            neuron.zero_grad()
            spikes_of(neuron, x).mean(1).square().sum().backward()
            results.append([parameter.grad.clone() for parameter in neuron.parameters()])
        finally:
            torch.set_num_threads(before)
    for ours, theirs in zip(*results):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("shape", [(0, 2, C), (3, 0, C), (3, 2, C, 0)])
@pytest.mark.parametrize("way", ["auto", "watched", "eager", "plain"])
def test_empty_inputs(shape, way, monkeypatch):
    """Gradients are zero, as those of PyTorch's layers are."""
    monkeypatch.setattr(fused, "is_watched", lambda: way == "watched")
    neuron, x = NoisyLIF(**parameters_of(NoisyLIF)[0]), torch.zeros(shape, requires_grad=True)
    neuron.backend = "auto" if way == "watched" else way
    neuron(x).sum().backward()
    assert x.grad.shape == shape
    for parameter in neuron.parameters() if way != "plain" or shape[0] else ():
        assert torch.equal(parameter.grad, torch.zeros_like(parameter))


# ---- errors


WRONG = {
    "threshold": [-math.inf, math.nan],
    "v_reset": [-math.inf, math.inf, math.nan],
    "decay": [-0.1, 1.5, math.nan],
    "scale": [0.0, -0.3, math.inf, math.nan],
}
each_wrong = pytest.mark.parametrize(("name", "wrong"), [(name, wrong) for name in WRONG for wrong in WRONG[name]])
holders = pytest.mark.parametrize("hold", [nn.Parameter, lambda tensor: tensor], ids=["parameter", "buffer"])


def make(name, tensor, kind=NoisyLIF):
    return kind(Gaussian(tensor)) if name == "scale" else kind(**{name: tensor})


@each_wrong
@holders
def test_values_out_of_range_are_refused_as_numbers_are(name, wrong, hold):
    allowed = {"decay": r"in \[0, 1\]", "scale": "positive and finite", "threshold": "a number or inf"}
    words = allowed.get(name, "finite")
    for tensor in (torch.tensor(wrong), torch.tensor([NUMBERS[name], wrong])):
        for kind in (LIF, NoisyLIF):
            with pytest.raises(ValueError, match=f"{name} must be {words}, got .*{wrong:g}|nan"):
                make(name, hold(tensor.clone()), kind)


@each_wrong
@pytest.mark.parametrize("kernels", ["auto", "eager", "compiled"])
def test_values_that_training_brings_out_of_range_are_an_error_on_the_cpu(name, wrong, kernels, monkeypatch):
    monkeypatch.setenv("NSNN_KERNELS", "eager" if kernels == "eager" else "auto")
    monkeypatch.setattr(fused, "is_watched", lambda: kernels == "compiled")  # the operator, as compiled code calls it
    for values in ([NUMBERS[name]], [NUMBERS[name]] * C):
        neuron = make(name, nn.Parameter(torch.tensor(values)))
        with torch.no_grad():
            getattr(neuron, name)[-1] = wrong
        with pytest.raises(ValueError, match=f"{name} must be"):
            neuron(torch.rand(2, 2, C))
        assert "nan" in repr(neuron) or f"{wrong:.4g}" in repr(neuron)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("value", ["0.5", None, [0.5, 0.5], np.full(C, 0.5)], ids=str)
def test_what_is_neither_a_number_nor_a_tensor(name, value):
    for kind in (LIF, NoisyLIF):
        with pytest.raises(TypeError, match=f"{name} must be a number or a tensor, got"):
            make(name, value, kind)
    if name != "scale":
        with pytest.raises(TypeError, match=f"{name} must be a number or a tensor, got"):
            noisy_lif(torch.rand(2, 2, C), Gaussian(0.3), **{name: value})


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize(
    ("tensor", "error", "message"),
    [
        (torch.tensor(1), TypeError, "floating point tensor, got torch.int64"),
        (torch.tensor(True), TypeError, "floating point tensor, got torch.bool"),
        (torch.tensor([]), ValueError, r"one for each channel, \[C\]; got a tensor of shape \[0\]"),
        (torch.full((C, 1), 0.5), ValueError, r"got a tensor of shape \[3, 1\]"),
        (torch.full((C, 1, 1), 0.5), ValueError, r"got a tensor of shape \[3, 1, 1\]"),
        (torch.full((1, 1), 0.5), ValueError, r"got a tensor of shape \[1, 1\]"),
    ],
)
def test_tensors_that_are_not_values(name, tensor, error, message):
    for kind in (LIF, NoisyLIF):
        with pytest.raises(error, match=f"{name} must be.*{message}"):
            make(name, tensor, kind)
    with pytest.raises(error, match=f"{name} must be.*{message}"):
        noisy_lif(torch.rand(2, 2, C), Gaussian(0.3), **{name: tensor})


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("shape", [(2, 2, 4), (2, 3, 1, 3), (2, 3)])
@pytest.mark.parametrize("kernels", ["auto", "eager"])
def test_values_that_do_not_fit_the_input(name, shape, kernels, monkeypatch):
    """Also where PyTorch would broadcast them along the pixels or the batch."""
    monkeypatch.setenv("NSNN_KERNELS", kernels)
    neuron = make(name, nn.Parameter(torch.full((C,), 0.5)))
    with pytest.raises(ValueError, match=rf"{name} has 3 values, one for each channel, but.*has shape \{list(shape)}$"):
        neuron(torch.rand(shape))
    with pytest.raises(ValueError, match=f"{name} has 3 values"):
        firing_probability(torch.rand(shape), torch.zeros(shape), Gaussian(0.3), **{name: torch.full((C,), 0.5)})


def test_what_would_not_be_learnt_is_refused():
    parameter = nn.Parameter(torch.tensor([0.5]))
    for name, kind in itertools.product(SETTINGS, (LIF, NoisyLIF)):
        words = "scale of a surrogate has no gradient" if (name, kind) == ("scale", LIF) else "must be an nn.Parameter"
        with pytest.raises(ValueError, match=words):
            make(name, parameter * 1.0, kind)
    for wrong in (lambda: LIF(Gaussian(parameter)), lambda: lif(torch.rand(1, 2), Gaussian(parameter))):
        with pytest.raises(ValueError, match="scale of a surrogate has no gradient"):
            wrong()
    with pytest.raises(ValueError, match="scale of a surrogate has no gradient"):
        NoisyLIF(surrogate=Gaussian(parameter))
    with pytest.raises(ValueError, match="learns the logit"):
        ParametricLIF(decay=parameter)
    with pytest.raises(ValueError, match="learns the logarithm"):
        NoisyLIF(Gaussian(parameter), learnable_scale=True)
    with pytest.raises(ValueError, match="leave out the surrogate"):
        NoisyLIF(Gaussian(parameter), surrogate=Gaussian(0.3))
    for shared in (parameter, torch.full((C,), 0.5)):
        for setting in ("sigma", "tau", "threshold", "alpha"):
            with pytest.raises(ValueError, match=f"{setting} must be a number.*would share one tensor"):
                build_neuron("NILIF", **{setting: shared})
    assert build_neuron("LIF", threshold=torch.tensor(0.5))().threshold.item() == 0.5
    for low, high in ((0, 0.5), (0.5, 1)):
        with pytest.raises(ValueError, match=rf"learnable decay must be in \(0, 1\), got \[{low} to {high}\]"):
            ParametricLIF(decay=torch.tensor([float(low), float(high)]))
    with pytest.raises(ValueError, match="would ignore the input"):
        LIF(decay=torch.tensor([0.5, 1.0]), decay_input=True)
    surrogate = LIF(Gaussian(torch.tensor([0.5]))).surrogate
    assert type(surrogate.scale) is float and surrogate.scale == 0.5
    assert IF(threshold=parameter).threshold is parameter


@pytest.mark.parametrize("count", [1, 2])
def test_what_is_learnt_has_one_value_or_as_many_as_it_was_given(count):
    shape = () if count == 1 else (count,)
    noisy = NoisyLIF(Gaussian(torch.full((count,), 0.3)), learnable_scale=True)
    assert ParametricLIF(decay=torch.full((count,), 0.3)).decay.shape == noisy.scale.shape == shape
    scale = noisy.gradient_law.scale
    assert isinstance(scale, float) if count == 1 else scale.shape == shape


# ---- a wrongly compiled kernel is refused


@pytest.mark.parametrize("bits", [*(1 << place for place in range(len(VALUES))), ALL_BITS])
def test_a_kernel_that_mixes_channels_up_is_refused(bits, monkeypatch):
    kernel, forward, backward = cpu.kernel(torch.float32, True), cpu.Kernel.forward, cpu.Kernel.backward
    kernel.checked()

    def flipped(self, x, *arguments):
        return [
            result.flip(2) if x.dim() > 3 and result.dim() > 3 else result for result in forward(self, x, *arguments)
        ]

    with monkeypatch.context() as patch, pytest.raises(build.BuildError, match="values of channels are wrong"):
        patch.setattr(cpu.Kernel, "forward", flipped)
        kernel.checked()
    for place in (2 + place for place in range(len(VALUES)) if bits >> place & 1):

        def changed(self, *arguments, place=place):
            results = list(backward(self, *arguments))
            if results[place] is not None and results[place].dim() > 0:
                results[place] = results[place].flip(0)
            return results

        with monkeypatch.context() as patch, pytest.raises(build.BuildError, match="values of channels are wrong"):
            patch.setattr(cpu.Kernel, "backward", changed)
            kernel.checked()


def test_a_kernel_that_learns_wrongly_is_refused(monkeypatch):
    kernel, right = cpu.kernel(torch.float32), cpu.Kernel.backward
    selftest.check_steps(kernel, torch.empty(0))
    for place, name in enumerate(VALUES):

        def backward(self, *arguments, place=place):
            results = list(right(self, *arguments))
            results[2 + place] = results[2 + place] * 1.1
            return results

        monkeypatch.setattr(cpu.Kernel, "backward", backward)
        with pytest.raises(build.BuildError, match=f"gradient of the {name} is wrong"):
            selftest.check_steps(kernel, torch.empty(0))


def test_the_kernel_of_what_differs_between_channels_is_compiled_where_it_is_needed(monkeypatch):
    asked, right = set(), cpu.kernel

    def kernel(dtype, by_channel=False):
        asked.add(by_channel)
        return right(dtype, by_channel)

    monkeypatch.setattr(cpu, "kernel", kernel)
    ones = torch.ones(C)
    for neuron, kinds in (
        (LIF(), {False}),
        (ParametricLIF(), {False}),
        (NoisyLIF(learnable_scale=True), {False}),
        (NoisyLIF(**parameters_of(NoisyLIF, (1,))[0]), {False}),
        (LIF(threshold=ones), {True}),
        (ParametricLIF(decay=ones / 2), {True}),
        (LIF(Gaussian(ones)), {True}),
        (LIF(Gaussian(ones), decay=ones / 2), {True}),
        (NoisyLIF(**parameters_of(NoisyLIF)[0]), {True}),
        (LIF(reset="subtract", threshold=ones), {True}),
        (NoisyLIF(Gaussian(ones), surrogate=Gaussian(1.0)), {True, False}),  # the latter for the gradient
    ):
        asked.clear()
        neuron(torch.rand(2, 2, C, requires_grad=True)).sum().backward()
        assert asked == kinds, neuron

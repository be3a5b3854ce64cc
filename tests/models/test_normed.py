"""Batch norm and neurons as one operation, against the layers themselves; memory settings."""

import copy
import functools
import gc
import itertools
import multiprocessing

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.overrides import BaseTorchFunctionMode

from models import (
    LIF,
    ArgumentError,
    Cauchy,
    Gaussian,
    Logistic,
    NoisyLIF,
    Triangular,
    Uniform,
    build_model,
    build_neuron,
    checkpoint,
    mean_field,
    noise_generator,
    packed_spikes,
)
from models.functional import noisy_lif
from models.kernels import normed
from models.kernels.normed import Before
from models.layers import ConvNorm, fire, over_time
from models.memory import SETTINGS, used_as
from models.noise import draw_seeds
from models.resnet import ResidualBlock
from tests.models.reference_noise import noise as reference_noise
from tests.models.test_memory import channels_of, spikes_of

LAWS = [Gaussian(0.3), Logistic(0.2, loc=0.1), Triangular(0.6), Uniform(0.5, loc=-0.1), Cauchy(0.2)]
PLACEMENTS, RESETS = ["both", "escape", "membrane"], ["zero", "subtract", "none"]
DTYPES = [torch.float32, torch.float64, torch.bfloat16]
LAYOUTS = {
    "[T, B, C]": lambda T: torch.empty(T, 9, 5),
    "[T, B, C, L]": lambda T: torch.empty(T, 3, 5, 11),
    "[T, B, C, H, W]": lambda T: torch.empty(T, 2, 5, 7, 3),
    "channels last": lambda T: torch.empty(T, 2, 7, 3, 5).permute(0, 1, 4, 2, 3),
}
NORMS = {3: nn.BatchNorm1d, 4: nn.BatchNorm1d, 5: nn.BatchNorm2d}  # by dimensions of x
NEAR = 1e-5  # where the potential is so near its draw, rounding may decide


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def filled(layout, timesteps, dtype):
    x = LAYOUTS[layout](timesteps)
    return x.copy_(torch.randn(x.shape, generator=seeded(1)) * 2 + 1).to(dtype)


def made_norm(x, **options):
    """A batch norm that has seen something, for x [T, B, C, ...]."""
    norm = NORMS[x.dim()](x.shape[2], **options)
    for tensor in (norm.weight, norm.running_var):
        if tensor is not None:
            tensor.data.uniform_(0.5, 1.5, generator=seeded(2))
    for tensor in (norm.bias, norm.running_mean):
        if tensor is not None:
            tensor.data.uniform_(-0.5, 0.9, generator=seeded(3))
    return norm.double() if x.dtype == torch.float64 else norm


class Run:
    """One layer, by one operation or by its parts: results and gradients."""

    def __init__(self, is_one, x, norm, plus=None, timesteps=None, state=None, seed=4, **settings):
        law = settings.pop("law", LAWS[0])
        self.norm, plus_norm = copy.deepcopy(norm), copy.deepcopy(settings.pop("plus_norm", None))
        leaves = [None if tensor is None else tensor.clone().requires_grad_() for tensor in (x, plus, state)]
        learnt = {name: value for name, value in settings.items() if isinstance(value, torch.Tensor)}
        for name, value in learnt.items():
            learnt[name] = settings[name] = value.clone().requires_grad_()
        before = Before(leaves[0], self.norm, leaves[1], timesteps, plus_norm=plus_norm)
        self.buffers = [*self.norm.named_buffers(), *(plus_norm.named_buffers() if plus_norm else [])]
        x = before.shown() if is_one else before.currents()
        if is_one:
            assert normed.serves(before)
        options = dict(settings, before=before) if is_one else settings
        with noise_generator(seeded(seed)):
            self.spikes, self.last = noisy_lif(x, law, state=leaves[2], backend="fused", **options)
        weights = torch.randn(self.spikes.shape, generator=seeded(5)).bfloat16().to(self.spikes.dtype)
        loss = (self.spikes * weights).double().sum() + (self.last.double() * 0.1).sum()
        weights = [*self.norm.parameters(), *(plus_norm.parameters() if plus_norm else [])]
        inputs = [t for t in (*leaves, *learnt.values(), *weights) if t is not None]
        self.grads = torch.autograd.grad(loss, inputs, allow_unused=True)


def are_close_calls(x, norm, timesteps, state, plus, law, where, **settings):
    """Whether the potentials are near their draws there."""
    plus_norm = copy.deepcopy(settings.pop("plus_norm", None))
    before = Before(x, copy.deepcopy(norm), plus, timesteps, plus_norm=plus_norm)
    with noise_generator(seeded(4)):
        _, _, u = noisy_lif(before.currents(), law, state=state, potentials=True, **settings)
    with noise_generator(seeded(4)):
        draws = reference_noise(type(law)(1.0), u.shape, draw_seeds(len(u), u.device), u.dtype)[1]
    is_drawn = settings.get("placement") != "membrane" and settings.get("mode") != "noiseless"
    scale, threshold = (
        torch.as_tensor(value).reshape(-1, *[1] * (u.dim() - 3))  # of each channel
        for value in (settings.get("scale", law.scale), settings.get("threshold", 1.0))
    )
    draws = law.loc + scale * draws if is_drawn else torch.zeros_like(u)
    size = u.abs().clamp(min=1.0).cummax(0).values
    near = (u - threshold - draws).abs() <= NEAR * torch.maximum(size, draws.abs())
    return near.any(0)[where.any(0)].all()


def assert_one_is_as_its_parts(x, norm, plus=None, timesteps=None, state=None, **settings):
    ours = Run(True, x, norm, plus, timesteps, state, **settings)
    if x.dtype == torch.bfloat16:  # whose parts would round what this does not
        x, plus = x.float(), None if plus is None else plus.float()
    theirs = Run(False, x, norm, plus, timesteps, state, **settings)
    exact = dict(rtol=1e-5, atol=1e-5) if x.dtype == torch.float32 else dict(rtol=1e-9, atol=1e-9)
    for (_, ours_now), (_, theirs_now) in zip(ours.buffers, theirs.buffers, strict=True):
        torch.testing.assert_close(ours_now, theirs_now, rtol=1e-5, atol=1e-6)
    differ = ours.spikes.to(x.dtype) != theirs.spikes
    if settings.get("mode") == "mean_field":
        tolerance = exact if ours.spikes.dtype != torch.bfloat16 else dict(rtol=1e-2, atol=1e-2)
        torch.testing.assert_close(ours.spikes.to(x.dtype), theirs.spikes, **tolerance)
    elif differ.any():
        law = settings.pop("law", LAWS[0])
        assert are_close_calls(x, norm, timesteps, state, plus, law, differ, **settings)
        return
    assert settings.get("mode") == "mean_field" or 0.02 < ours.spikes.float().mean() < 0.98
    torch.testing.assert_close(ours.last, theirs.last, **exact)
    for mine, other in zip(ours.grads, theirs.grads, strict=True):
        assert (mine is None) == (other is None)
        if mine is not None:
            rounded = mine.dtype == torch.bfloat16
            size = other.abs().max().item()
            tolerance = 1e-2 if rounded else 2e-5 if x.dtype == torch.float32 else 1e-9
            torch.testing.assert_close(mine.to(other.dtype), other, rtol=tolerance, atol=tolerance * max(1.0, size))


def cases():
    """All values of each three axes together; what is fast has each two values of neighbouring axes."""
    axes = LAWS, PLACEMENTS, RESETS, DTYPES, list(LAYOUTS), [7, 1, 2], [True, False]
    for places in itertools.product(*(range(len(axis)) for axis in axes)):
        law, placement, reset, dtype, layout, timesteps, training = places
        is_fast = (law + layout) % 4 == 0 and (placement + dtype) % 3 == 0 and (reset + timesteps) % 3 == 0
        is_fast = is_fast and (law + placement + reset) % 2 == training
        if is_fast or sum(places) % 8 == 0:
            values = [axis[place] for axis, place in zip(axes, places)]
            name = "-".join([type(values[0]).__name__, *map(str, values[1:])])
            yield pytest.param(*values, id=name, marks=[] if is_fast else [pytest.mark.slow])


@pytest.mark.parametrize(("law", "placement", "reset", "dtype", "layout", "timesteps", "training"), list(cases()))
def test_one_operation_is_as_batch_norm_and_neuron(law, placement, reset, dtype, layout, timesteps, training):
    x = filled(layout, timesteps, dtype)
    plus = (torch.rand(x.shape, generator=seeded(6)) < 0.3).to(dtype)
    norm = made_norm(x).train(training)
    assert_one_is_as_its_parts(x, norm, plus, law=law, placement=placement, reset=reset, threshold=0.9)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("timesteps", [1, 2, 7])
@pytest.mark.parametrize("training", [True, False])
def test_what_is_added_may_be_normalised_too(layout, dtype, timesteps, training):
    x = filled(layout, timesteps, dtype)
    plus = x.flip(1) * 3 - 1
    if layout == "channels last":  # and here the two lie differently in memory
        plus = plus.contiguous()
    norm = made_norm(x).train(training)
    plus_norm = made_norm(x, eps=0.1, momentum=0.3).train(training)
    assert_one_is_as_its_parts(x, norm, plus, plus_norm=plus_norm, threshold=0.9)


@pytest.mark.parametrize("mode", ["noiseless", "mean_field"])
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_modes_without_noise(mode, reset, dtype):
    x = filled("channels last", 4, dtype)
    assert_one_is_as_its_parts(x, made_norm(x), mode=mode, reset=reset)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("timesteps", [3, 1])
def test_one_image_for_all_steps(layout, dtype, training, timesteps):
    image = filled(layout, 1, dtype)[0]
    assert_one_is_as_its_parts(image, made_norm(image.unsqueeze(0)).train(training), timesteps=timesteps)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("learnt", ["threshold", "decay", "scale", "v_reset", "surrogate", "all"])
def test_learnt_values_states_and_settings(layout, learnt):
    x = filled(layout, 5, torch.float32)
    channels = torch.linspace(0.6, 0.9, 5)
    given = dict(threshold=channels, decay=torch.tensor([0.7]), scale=channels / 3, v_reset=channels / 10)
    if learnt == "surrogate":
        given = dict(surrogate=Logistic(0.5), detach_reset=True, decay_input=True, threshold=torch.tensor([0.3]))
    elif learnt != "all":
        given = {learnt: given[learnt]}
    else:
        given["decay_input"] = True
    state = torch.rand(x.shape[1:], generator=seeded(7))
    assert_one_is_as_its_parts(x, made_norm(x), x.flip(0) / 4, state=state, v_leak=0.1, **given)


@pytest.mark.parametrize("mode", ["noiseless", "noisy"])
def test_potentials_are_those_of_the_forward_pass_where_fewer_values_of_the_gradient_differ(mode):
    """Between channels, so that another variant of the kernel computes them again. Half of the inputs make ties."""
    x, channels = filled("[T, B, C, H, W]", 3, torch.float32), torch.full((5,), 0.6)
    x[:, 0] = 6.0
    norm, settings = nn.BatchNorm2d(5, eps=0.0).eval(), dict(threshold=channels, decay=0.9, decay_input=True)
    settings.update(law=Gaussian(channels / 2), surrogate=Logistic(0.5), mode=mode, placement="escape")
    assert_one_is_as_its_parts(x, norm, **settings)
    fast = Run(True, x, norm, **settings)
    with used_as("lean"):
        lean = Run(True, x, norm, **settings)
    assert all(torch.equal(ours, other) for ours, other in zip(fast.grads, lean.grads, strict=True))


@pytest.mark.parametrize(
    "options",
    [dict(affine=False), dict(momentum=None), dict(track_running_stats=False), dict(eps=0.1, momentum=0.6)],
    ids=str,
)
@pytest.mark.parametrize("training", [True, False])
def test_options_of_batch_norm(options, training):
    x = filled("channels last", 3, torch.float32)
    norm = made_norm(x, **options).train(training)
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.fill_(3)
    assert_one_is_as_its_parts(x, norm)


def test_statistics_of_numbers_far_from_zero():
    x = filled("channels last", 3, torch.float32) + 1000
    norm = made_norm(x)
    reference = copy.deepcopy(norm).double()
    reference(x.flatten(0, 1).double())
    noisy_lif(x, LAWS[0], before=Before(x, norm))
    torch.testing.assert_close(norm.running_mean.double(), reference.running_mean, rtol=1e-6, atol=0)
    torch.testing.assert_close(norm.running_var.double(), reference.running_var, rtol=1e-5, atol=0)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("timesteps", [None, 3])
def test_gradient_is_that_of_finite_differences_in_the_mean_field(training, timesteps):
    x = filled("channels last", 3, torch.float64)
    x = x if timesteps is None else x[0]
    norm = made_norm(filled("channels last", 3, torch.float64), track_running_stats=not training).train(training)
    plus = None if timesteps else x.flip(0)
    plus_norm = made_norm(filled("channels last", 3, torch.float64), track_running_stats=not training).train(training)

    def run(x, weight, bias):
        layer = copy.deepcopy(norm)
        del layer.weight, layer.bias
        layer.weight, layer.bias = weight, bias
        before = Before(x, layer, None if plus is None else plus * x, timesteps)
        if plus is not None:
            before.plus_norm = copy.deepcopy(plus_norm)
            del before.plus_norm.weight, before.plus_norm.bias
            before.plus_norm.weight, before.plus_norm.bias = bias, weight
        assert normed.serves(before)
        return noisy_lif(before.shown(), Gaussian(0.5), mode="mean_field", before=before, keep_state=True)[:2]

    inputs = [tensor.detach().clone().requires_grad_() for tensor in (x, norm.weight, norm.bias)]
    torch.autograd.gradcheck(run, inputs, fast_mode=True)
    torch.autograd.gradgradcheck(run, inputs, fast_mode=True)


def test_noise_does_not_depend_on_the_layout_nor_results_on_the_number_of_threads():
    x = torch.randn(3, 4, 16, 40, 40, generator=seeded(1))
    channels_last = x.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    found = []
    before = torch.get_num_threads()
    try:
        for threads, values in ((1, x), (2, x), (1, channels_last)):
            torch.set_num_threads(threads)
            found.append(Run(True, values, made_norm(x), mode="noiseless"))
    finally:
        torch.set_num_threads(before)
    for ours, theirs in zip((found[0].spikes, *found[0].grads), (found[1].spikes, *found[1].grads)):
        assert torch.equal(ours, theirs)
    assert (found[0].spikes != found[2].spikes).float().mean() < 1e-4  # sums are rounded in another order


def block(training=True, **settings):
    torch.manual_seed(0)
    layer, neuron = ConvNorm(3, 6, 3, 1, "bn").train(training), NoisyLIF(**settings)
    layer.norm.bias.data.fill_(0.5)
    return layer, neuron


def is_one(layer, neuron, x=None, **options):
    """Whether `fire` runs them as one operation."""
    x = torch.rand(2, 3, 3, 5, 5, requires_grad=True) if x is None else x
    return "NormLIF" in type(fire(neuron, layer, x, **options).grad_fn).__name__


def test_parts_of_this_package_are_one():
    assert is_one(*block()) and is_one(*block(training=False))
    layer, _ = block()
    assert is_one(layer, LIF())
    plus = torch.rand(2, 3, 6, 5, 5)
    assert is_one(*block(), plus=plus)
    assert is_one(*block(), x=torch.rand(3, 3, 5, 5), timesteps=4)
    assert is_one(*block(), plus=torch.rand(2, 3, 4, 5, 5), plus_layer=ConvNorm(4, 6, 1, 1, "bn"))


@pytest.mark.parametrize("place", ["neuron", "norm", "layer"])
@pytest.mark.parametrize("kind", ["forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook"])
def test_hooks_see_their_layers(place, kind):
    layer, neuron = block()
    watched = {"neuron": neuron, "norm": layer.norm, "layer": layer}[place]
    seen = []
    handle = getattr(watched, f"register_{kind}")(lambda module, *values: seen.append(module))
    x = torch.rand(2, 3, 3, 5, 5, requires_grad=True)
    assert not is_one(layer, neuron)
    fire(neuron, layer, x).sum().backward()
    assert watched in seen
    handle.remove()
    assert is_one(layer, neuron)


def test_what_is_not_of_this_package_runs_as_it_is(monkeypatch):
    class Own(NoisyLIF):
        is_noisy = True

        def run(self, x, state=None, keep_state=True, potentials=False):
            return super().run(torch.tanh(x), state, keep_state, potentials)

    layer, neuron = block()
    assert not is_one(layer, Own())
    assert not is_one(layer.append(nn.Identity()), neuron)
    layer, neuron = block()
    neuron.forward = lambda x: x * 2
    assert not is_one(layer, neuron)
    layer, neuron = block()
    layer.norm = nn.GroupNorm(2, 6)
    assert not is_one(layer, neuron)
    assert not is_one(block()[0], NoisyLIF(noise=OwnLaw(0.3)))
    handle = nn.modules.module.register_module_forward_hook(lambda *args: None)
    assert not is_one(*block())
    handle.remove()
    with BaseTorchFunctionMode():
        assert not is_one(*block())
    with monkeypatch.context() as patch:
        patch.setattr(nn.BatchNorm2d, "forward", lambda self, x: x * 2)
        assert not is_one(*block())
    assert not is_one(*block(), plus=torch.rand(6, 5, 5))
    neuron = NoisyLIF()
    neuron.backend = "eager"
    assert not is_one(block()[0], neuron)
    layer, neuron = block()
    assert not is_one(layer.bfloat16(), neuron, x=torch.rand(2, 3, 3, 5, 5, dtype=torch.bfloat16))


class OwnLaw(Gaussian):
    pass


def test_passes_by_parts_and_as_one_may_share_a_backward_pass():
    layer, neuron = block()
    x = torch.rand(2, 3, 3, 5, 5)
    by_parts = neuron(over_time(layer, x))  # PyTorch keeps the running statistics, which the next pass changes
    (by_parts + fire(neuron, layer, x)).sum().backward()
    assert layer.norm.num_batches_tracked == 2


def test_errors_are_those_of_batch_norm():
    layer, neuron = block()
    layer.conv = nn.Identity()
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        fire(neuron, layer, torch.rand(1, 1, 6, 1, 1))
    with pytest.raises((RuntimeError, ValueError)):
        fire(neuron, layer, torch.rand(2, 2, 5, 4, 4))


def test_changes_in_place_are_errors():
    layer, neuron = block()
    spikes = fire(neuron, layer, torch.rand(2, 3, 3, 5, 5))
    layer.norm.weight.data.mul_(1)  # not noticed, as by PyTorch
    with torch.no_grad():
        layer.norm.weight.mul_(2)
    with pytest.raises(RuntimeError, match="changed in place"):
        spikes.sum().backward()


def test_gradients_in_batches_and_under_vmap():
    layer, neuron = block()
    x = torch.rand(2, 3, 3, 5, 5, generator=seeded(1), requires_grad=True)
    spikes = fire(neuron, layer, x)
    directions = torch.randn(3, *spikes.shape, generator=seeded(2))
    one_by_one = [torch.autograd.grad(spikes, x, one, retain_graph=True)[0] for one in directions]
    (batched,) = torch.autograd.grad(spikes, x, directions, is_grads_batched=True, retain_graph=True)
    torch.testing.assert_close(batched, torch.stack(one_by_one), rtol=1e-4, atol=1e-5)
    (differentiable,) = torch.autograd.grad(spikes, x, directions[0], create_graph=True)
    torch.testing.assert_close(differentiable, one_by_one[0], rtol=1e-4, atol=1e-5)
    with pytest.raises(RuntimeError, match="second derivative"):
        differentiable.square().sum().backward()


def test_torch_func_and_forward_mode_run_the_parts():
    layer, neuron = block(training=False)
    x = torch.rand(2, 3, 3, 5, 5)
    torch.func.grad(lambda x: fire(neuron, layer, x).sum())(x)
    torch.func.vmap(lambda x: fire(neuron, layer, x), randomness="different")(x.unsqueeze(0))
    with mean_field(neuron):
        torch.func.jvp(lambda x: fire(neuron, layer, x), (x,), (x,))


def test_a_residual_that_is_also_the_input_has_both_gradients():
    torch.manual_seed(0)
    layer, neuron = ConvNorm(4, 4, 3, 1, "bn"), NoisyLIF(noise=Gaussian(0.5))
    x = torch.rand(2, 3, 4, 5, 5, requires_grad=True)
    grads = []
    for is_watched in (False, True):
        handle = neuron.register_forward_hook(lambda *args: None) if is_watched else None
        with noise_generator(seeded(1)):
            spikes = fire(neuron, layer, x, plus=x)
        grads.append(torch.autograd.grad(spikes.square().sum(), [x, *layer.parameters()]))
        if handle is not None:
            handle.remove()
    for ours, theirs in zip(*grads):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


# ---- memory settings

SMALL = {"in_shape": (3, 16, 16), "num_classes": 5, "width": 0.125}
MODELS = [("sresnet18", "bn"), ("sresnet18", None), ("vgg", "bn"), ("cifarnet", None), ("toynet", None), ("rsnn", "bn")]


def build(model, memory="fast", neuron="NILIF", norm="bn", **options):
    torch.manual_seed(0)
    net = build_model(model, neuron=build_neuron(neuron, **options), memory=memory, norm=norm, **SMALL)
    for module in net.modules():  # so that deep layers spike
        if isinstance(module, nn.BatchNorm2d):
            module.bias.data.fill_(0.4)
        elif isinstance(module, nn.Conv2d) and norm is None:
            module.weight.data.mul_(3)
    return net


def step(net, timesteps=None, autocast=False, seed=1):
    """Logits and gradients of one training step, in the order of the parameters."""
    frames = torch.rand(4, 3, 16, 16, generator=seeded(seed)) * 2
    if timesteps is None:
        frames = torch.rand(3, 4, 3, 16, 16, generator=seeded(seed)) * 2
    with noise_generator(seeded(2)), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits = net(frames) if timesteps is None else net(frames, timesteps=timesteps)
    loss = F.cross_entropy(logits.float().mean(0), torch.tensor([0, 4, 1, 2]))
    return [logits.detach(), *torch.autograd.grad(loss, list(net.parameters()))]


@pytest.mark.parametrize(("model", "norm"), MODELS)
@pytest.mark.parametrize("timesteps", [None, 3])
@pytest.mark.parametrize("autocast", [False, True])
def test_memory_settings_have_the_same_results(model, norm, timesteps, autocast):
    results, buffers = [], []
    for memory in SETTINGS:
        net = build(model, memory, norm=norm)
        results.append(step(net, timesteps, autocast))
        buffers.append(dict(net.named_buffers()))
    assert any(grad.abs().sum() > 0 for grad in results[0][1:])
    for result in results[1:]:
        for ours, theirs in zip(result, results[0], strict=True):
            assert torch.equal(ours, theirs)
    for found in buffers[1:]:
        assert all(torch.equal(found[name], buffer) for name, buffer in buffers[0].items())


@pytest.mark.parametrize("timesteps", [1, 2, 7])
@pytest.mark.parametrize("is_channels_last", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(7, 5), (8, 8)], ids=str)
def test_residual_blocks_have_the_same_results_in_all_settings(timesteps, is_channels_last, stride, size):
    torch.manual_seed(0)
    channels = channels_of(is_channels_last)
    blocks = nn.Sequential(*(ResidualBlock(NoisyLIF, channels, channels, one, "bn") for one in (stride, 1)))
    for parameter in blocks.parameters():  # with norms that all differ
        parameter.data.uniform_(0.1, 0.9) if parameter.dim() == 1 else None
    x = (torch.rand(timesteps * 3, channels, *size, generator=seeded(1)) < 0.4).float()
    if is_channels_last:
        blocks, x = blocks.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    x, found = x.unflatten(0, (timesteps, 3)).requires_grad_(), []
    for memory in SETTINGS:
        net = copy.deepcopy(blocks)
        with used_as(memory), noise_generator(seeded(2)):
            spikes = net(x)
        grads = torch.autograd.grad(
            (spikes * torch.rand(spikes.shape, generator=seeded(3))).sum(), [x, *net.parameters()]
        )
        assert all(grad.any() for grad in grads)
        found.append([spikes.detach(), *grads, *net.buffers()])
    for one in found[1:]:
        for ours, theirs in zip(one, found[0], strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("memory", SETTINGS)
def test_a_network_is_as_its_watched_self(memory):
    """Hooks make it run layer by layer."""
    net = build("sresnet18", memory, sigma=0.5).double()
    twin = copy.deepcopy(net)
    for module in twin.modules():
        if isinstance(module, NoisyLIF):
            module.register_forward_hook(lambda *args: None)
    found = []
    for one in (net, twin):
        frames = torch.rand(3, 2, 3, 16, 16, generator=seeded(1)).double() * 2
        with noise_generator(seeded(2)):
            logits = one(frames)
        found.append([logits.detach(), *torch.autograd.grad(logits.square().sum(), list(one.parameters()))])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)
    for ours, theirs in zip(net.buffers(), twin.buffers()):
        torch.testing.assert_close(ours, theirs)


def test_an_unknown_memory_setting_is_an_error():
    with pytest.raises(ArgumentError, match="memory must be one of fast, lean, smallest"):
        build("toynet", "least")
    net = build("toynet")
    net.memory = "least"
    with pytest.raises(ArgumentError, match="memory must be one of fast, lean, smallest"):
        net(torch.rand(3, 2, 3, 16, 16))


def test_memory_changes_no_checkpoint():
    states = [build("sresnet18", memory).state_dict() for memory in SETTINGS]
    for state in states[1:]:
        assert list(state) == list(states[0]) and state._metadata == states[0]._metadata


def kept_bytes(run):
    """Bytes that were allocated and not freed while `run` built a graph, and what it returned."""
    gc.collect()  # else what other tests left might be freed meanwhile
    with torch.profiler.profile(profile_memory=True) as profile:
        result = run()
        gc.collect()
    return sum(event.self_cpu_memory_usage for event in profile.events()), result


def kept_by(model, memory, neuron="NILIF", **options):
    """Bytes that a network keeps for its backward pass."""
    net = build(model, memory) if neuron == "NILIF" else build_model(model, neuron=nn.ReLU, **SMALL)
    frames = torch.rand(4, 8, 3, 16, 16)
    net(frames)  # compiles kernels
    kept, logits = kept_bytes(lambda: net(frames, **options))
    logits.sum().backward()
    return kept


def test_settings_keep_less():
    """Of 16 spiking layers of conv, norm and ReLU, each number is kept once as a bit, or as a bit alone."""
    relu, fast, lean, smallest = kept_by("sresnet18", "fast", "ReLU"), *(kept_by("sresnet18", m) for m in SETTINGS)
    assert lean < 0.62 * relu and smallest < 0.25 * relu and lean < 0.5 * fast
    assert kept_by("vgg", "lean") < 0.6 * kept_by("vgg", "fast", "ReLU")
    assert kept_by("vgg", "smallest") < 0.4 * kept_by("vgg", "fast", "ReLU")


@pytest.mark.parametrize(("memory", "floats"), [("lean", 4), ("smallest", 1)])
def test_a_block_keeps_the_outputs_of_its_three_convolutions_at_most(memory, floats):
    """Not that of a norm, which would be one more; here, it keeps its spikes besides, and some bits."""
    block, x = ResidualBlock(NoisyLIF, 8, 16, 2, "bn"), spikes_of(6, 8, 8, 16, 16)
    with used_as(memory):
        block(x)  # compiles kernels
        kept, spikes = kept_bytes(functools.partial(block, x))
    assert kept < 4 * (floats + 0.5) * spikes.numel()


@pytest.mark.parametrize(
    ("neuron", "numbers"), [(LIF, 2), (functools.partial(NoisyLIF, placement="escape"), 2), (NoisyLIF, 3)]
)
def test_potentials_that_follow_from_what_is_kept_are_not_kept(neuron, numbers):
    """But the output of the convolution, spikes and, because of noise of the membrane, potentials."""
    neuron, layer, x = neuron(), ConvNorm(8, 8, 3, 1, "bn"), spikes_of(2, 4, 8, 16, 16)
    fire(neuron, layer, x)  # compiles kernels
    kept, spikes = kept_bytes(lambda: fire(neuron, layer, x))
    assert kept == pytest.approx(4 * numbers * spikes.numel(), rel=0.1)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_potentials_out_of_all_bounds_are_computed_again(placement):
    neuron, layer = NoisyLIF(placement=placement, threshold=float("inf")), ConvNorm(3, 3, 1, 1, "bn").eval()
    layer.conv = nn.Identity()
    x = filled("[T, B, C, H, W]", 3, torch.float32)[:, :, :3].contiguous()
    x.flatten()[:90] = torch.tensor([float("inf"), -float("inf"), float("nan")]).repeat(30)
    for threshold in (float("inf"), 1.0):
        neuron.threshold = threshold
        found = {}
        for memory in ("fast", "lean"):
            leaf = x.clone().requires_grad_()
            with used_as(memory), noise_generator(seeded()):
                spikes = fire(neuron, layer, leaf)
            spikes.square().sum().backward()
            found[memory] = spikes, leaf.grad
        for ours, other in zip(*found.values()):
            assert torch.equal(ours.nan_to_num(7), other.nan_to_num(7))


@pytest.mark.parametrize("memory", SETTINGS)
def test_nothing_leaks(memory):
    net = build("sresnet18", memory)

    def steps(count):
        for seed in range(count):
            step(net, seed=seed)

    with packed_spikes():  # the block goes on
        steps(1)
        assert kept_bytes(lambda: steps(10))[0] <= 1000


@pytest.mark.parametrize("memory", SETTINGS)
def test_a_used_graph_keeps_nothing_that_grows_with_the_batch(memory):
    net = build("sresnet18", memory)

    def loss_of(batch):
        loss = net(torch.rand(2, batch, 3, 16, 16)).square().sum()
        loss.backward()
        return loss

    loss_of(2)
    small, large = kept_bytes(lambda: loss_of(2)), kept_bytes(lambda: loss_of(32))
    assert small[0] == large[0]


@pytest.mark.parametrize("memory", SETTINGS)
def test_checkpointing_a_network_changes_nothing(memory):
    net = build("sresnet18", memory).eval()  # in training, each run counts for the running statistics
    frames = torch.rand(3, 2, 3, 16, 16, generator=seeded(1)) * 2
    found = []
    for run in (
        net,
        lambda x: checkpoint(net, x),
        lambda x: torch.utils.checkpoint.checkpoint(net, x, use_reentrant=False),
    ):
        torch.manual_seed(0)
        logits = run(frames)
        found.append(torch.autograd.grad(logits.square().sum(), list(net.parameters())))
    for grads in found[1:]:
        for ours, theirs in zip(grads, found[0]):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("memory", SETTINGS)
@pytest.mark.parametrize("run", [checkpoint, functools.partial(torch.utils.checkpoint.checkpoint, use_reentrant=False)])
def test_checkpointing_a_part_of_a_network_changes_nothing(memory, run):
    found = []
    for one in (lambda function, x: function(x), run):
        net = build("sresnet18", memory).eval()
        net.stages[1].forward = functools.partial(one, net.stages[1].forward)
        torch.manual_seed(0)
        logits = net(torch.rand(3, 2, 3, 16, 16, generator=seeded(1)) * 2)
        found.append(torch.autograd.grad(logits.square().sum(), list(net.parameters())))
    for ours, theirs in zip(*found):
        assert torch.equal(ours, theirs)


def test_what_is_computed_again_has_the_weights_of_its_call_and_no_hooks():
    found = []
    for memory in ("fast", "smallest"):
        net = build("sresnet18", memory)
        weights = {name: (weight.detach() * 1.3).requires_grad_() for name, weight in net.named_parameters()}
        with noise_generator(seeded(2)):
            logits = torch.func.functional_call(net, weights, torch.rand(3, 4, 3, 16, 16, generator=seeded(1)))
        for module in net.modules():
            module.register_forward_hook(lambda *call: pytest.fail("a hook of the backward pass"))
        found.append(torch.autograd.grad(logits.square().sum(), list(weights.values())))
    for ours, theirs in zip(*found):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("memory", SETTINGS)
def test_inference_mode_and_tracing(memory):
    net, x = build("sresnet18", memory, "LIF").eval(), torch.rand(3, 2, 3, 16, 16)
    with torch.inference_mode():
        logits = net(x)
    assert torch.equal(torch.jit.trace(net, x)(x), logits)


def test_memory_in_compiled_networks():
    net = build("toynet", "lean")
    frames = torch.rand(3, 2, 3, 16, 16)
    torch.compile(net, backend="aot_eager")(frames).sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_smallest_has_no_second_derivative():
    net, x = build("sresnet18", "smallest"), torch.rand(2, 2, 3, 16, 16)
    with pytest.raises(RuntimeError, match='use "fast" or "lean"'):
        torch.autograd.grad(net(x).sum(), list(net.parameters()), create_graph=True)


def test_a_weight_changed_before_the_backward_pass_is_an_error():
    net, x = build("sresnet18", "smallest"), torch.rand(2, 2, 3, 16, 16)
    logits = net(x)
    with torch.no_grad():
        net.stages[1][0].conv1.conv.weight.mul_(2)
    with pytest.raises(RuntimeError, match="changed in place"):
        logits.sum().backward()


@pytest.mark.parametrize("scale", [0.4, torch.linspace(0.3, 0.5, 6)], ids=["number", "channels"])
def test_a_surrogate_keeps_no_more_than_other_neurons(scale):
    layer, x, found = block()[0], torch.rand(7, 8, 3, 9, 9), []
    for memory in SETTINGS:
        neuron = NoisyLIF(Gaussian(scale), surrogate=Logistic(scale), threshold=0.9)
        with used_as(memory), noise_generator(seeded(1)):
            fire(neuron, layer, x)  # compiles kernels
            kept, spikes = kept_bytes(functools.partial(fire, neuron, layer, x))
        grads = torch.autograd.grad(spikes.square().sum(), list(layer.parameters()))
        found.append((kept, spikes.detach(), *grads))
    number = spikes.numel()
    assert found[1][0] < found[0][0] - 3.8 * number  # a bit for each spike, no potentials
    for one in found[1:]:
        for ours, theirs in zip(one[1:], found[0][1:], strict=True):
            assert torch.equal(ours, theirs)


def test_neurons_keep_currents_where_these_are_smaller():
    x = torch.rand(5, 4, 1000, requires_grad=True, dtype=torch.bfloat16)
    found = []
    for memory in SETTINGS:
        with used_as(memory), noise_generator(seeded(1)):
            kept, spikes = kept_bytes(lambda: NoisyLIF()(x))
        found.append((kept, spikes.detach(), *torch.autograd.grad(spikes.sum(), x)))
    assert found[1][0] < found[0][0] - 2 * x.numel()
    for one in found[1:]:
        assert torch.equal(one[1], found[0][1]) and torch.equal(one[2], found[0][2])


# ---- several processes


def synchronised(rank, store, queue):
    """One of two processes, each with half of a batch."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    net, x = in_two_parts()
    net = nn.SyncBatchNorm.convert_sync_batchnorm(net)  # DistributedDataParallel takes it on GPUs alone
    part = x[:, rank::2].clone().requires_grad_()
    with mean_field(net):
        output = net(part)
    output.square().sum().backward()
    for parameter in net.parameters():
        dist.all_reduce(parameter.grad)
    found = [part.grad, *(parameter.grad for parameter in net.parameters()), *net.buffers()]
    queue.put((rank, type(output.grad_fn).__name__, [tensor.numpy() for tensor in found]))
    dist.destroy_process_group()


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.neuron = ConvNorm(3, 6, 3, 1, "bn"), NoisyLIF(noise=Gaussian(0.5))

    def forward(self, x):
        return fire(self.neuron, self.layer, x)


def in_two_parts():
    return Layer().double(), torch.rand(3, 4, 3, 5, 5, generator=seeded(1), dtype=torch.float64)


@pytest.mark.slow
def test_statistics_of_all_processes(tmp_path):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [context.Process(target=synchronised, args=(rank, tmp_path / "store", queue)) for rank in range(2)]
    for process in processes:
        process.start()
    try:
        results = sorted((queue.get(timeout=600) for _ in processes), key=lambda result: result[0])
    finally:
        for process in processes:
            process.join(60)
            process.kill()
    net, x = in_two_parts()
    x.requires_grad_()
    with mean_field(net):
        net(x).square().sum().backward()
    for rank, kind, (grad, *found) in results:
        assert "NormLIF" in kind
        torch.testing.assert_close(torch.from_numpy(grad), x.grad[:, rank::2])
        expected = [*(parameter.grad for parameter in net.parameters()), *net.buffers()]
        for ours, right in zip(found, expected, strict=True):
            torch.testing.assert_close(torch.from_numpy(ours), right)


@pytest.mark.parametrize("memory", SETTINGS)
def test_distributed_data_parallel(memory, process_group):
    nets = build("sresnet18", memory), nn.parallel.DistributedDataParallel(build("sresnet18", memory))
    grads = []
    for net in nets:
        with noise_generator(seeded(2)):
            net(torch.rand(3, 2, 3, 16, 16, generator=seeded(1))).square().sum().backward()
        grads.append([parameter.grad for parameter in net.parameters()])
    for ours, theirs in zip(*grads, strict=True):
        assert torch.equal(ours, theirs)

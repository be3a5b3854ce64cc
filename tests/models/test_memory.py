"""Spikes as bits: packing, and hooks on what autograd saves."""

import contextlib
import copy
import weakref
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.fx.experimental.proxy_tensor import make_fx

from models import LIF, NoisyLIF, build_neuron, checkpoint, mean_field, noise_generator, packed_spikes
from models.kernels import cpu
from models.layers import ConvNorm, fire
from models.memory import (
    SETTINGS,
    Packer,
    packed_bits,
    packed_quarters,
    unpack_into,
    unpack_quarters_into,
    used_as,
)

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def spikes_of(*shape, dtype=torch.float32, seed=0):
    return (torch.rand(shape, generator=seeded(seed)) < 0.3).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [1, 7, 8, 9, 1023, 1024, 1025, 4099])
@pytest.mark.parametrize("compiled", [True, False])
def test_packing_is_exact(dtype, size, compiled, monkeypatch):
    if not compiled:
        monkeypatch.setenv("NSNN_KERNELS", "eager")
        monkeypatch.setattr(cpu, "kernel", None)  # must not be called
    spikes = spikes_of(size, dtype=dtype, seed=size)
    bits = packed_bits(spikes)
    assert bits.dtype == torch.uint8 and bits.numel() == -(-size // 8)
    expected = [sum(int(spike) << k for k, spike in enumerate(spikes[i : i + 8].tolist())) for i in range(0, size, 8)]
    assert bits.tolist() == expected
    again = torch.empty_like(spikes)
    unpack_into(again, bits)
    assert torch.equal(again, spikes)
    for other in (0.5, -0.0, -1.0, 2.0, float("nan"), float("inf")):
        for place in (0, size // 2, size - 1):
            changed = spikes.clone()
            changed[place] = other
            assert packed_bits(changed) is None


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
@pytest.mark.parametrize("size", [1, 7, 8, 1023, 1024, 1025, 4099])
def test_multiples_of_a_quarter_take_four_bits(dtype, size):
    numbers = (torch.randint(16, (size,), generator=seeded(size)) / 4).to(dtype)
    bits = packed_quarters(numbers)
    assert bits.dtype == torch.uint8 and bits.numel() == -(-size // 2)
    again = torch.empty_like(numbers)
    unpack_quarters_into(again, bits)
    assert torch.equal(again, numbers)
    for other in (0.125, 4.0, -0.25, -0.0, 1e30, float("nan"), float("inf")):
        for place in (0, size // 2, size - 1):
            changed = numbers.clone()
            changed[place] = other
            assert packed_quarters(changed) is None


def test_averages_and_sums_of_spikes_are_kept_in_four_bits_and_other_numbers_whole():
    packer = Packer()
    spikes = spikes_of(6, 5, 9, 11)
    pooled = F.avg_pool2d(spikes.to(memory_format=torch.channels_last), 2, ceil_mode=True)
    for numbers in (pooled, spikes + spikes.flip(0)):
        kept = packer.pack(numbers)
        assert kept.bits.kept.numel() == -(-numbers.numel() // 2)
        again = packer.unpack(kept)
        assert torch.equal(again, numbers) and again.stride() == numbers.stride()
    thirds = pooled / 3
    assert packer.unpack(packer.pack(thirds)).data_ptr() == thirds.data_ptr()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_packed_tensor_has_its_layout(dtype):
    packer = Packer()
    whole = spikes_of(3, 4, 5, 6, 7, dtype=dtype)
    views = [whole, whole.flatten(0, 1), whole[1], whole.permute(0, 1, 3, 4, 2), whole.flatten(0, 1).transpose(1, 2)]
    views.append(whole.flatten(0, 1).to(memory_format=torch.channels_last))
    kept = [packer.pack(view) for view in views]
    for view, one in zip(views, kept):
        again = packer.unpack(one)
        assert torch.equal(again, view) and again.stride() == view.stride() and again.dtype == dtype
    assert len({id(one.bits) for one in kept}) == 3  # views of all of it share the bits


def test_gaps_and_numbers_are_kept_as_they_are():
    packer = Packer()
    for tensor in (spikes_of(40, 40)[:, ::2], spikes_of(40, 1).expand(40, 40), torch.rand(40, 40), spikes_of(4)):
        again = packer.unpack(packer.pack(tensor))
        assert again.data_ptr() == tensor.data_ptr() and again.stride() == tensor.stride()


class Net(nn.Module):
    """Spikes that several layers keep."""

    def __init__(self, neuron=NoisyLIF):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.one, self.two = nn.Linear(20, 40), nn.Linear(40, 30), nn.Linear(40, 30)
        self.neuron = neuron()

    def forward(self, x):
        spikes = self.neuron(self.first(x) * 3)
        return self.one(spikes.flatten(0, 1)) * self.two(spikes.flatten(0, 1)).tanh()


def gradients(net, block, seed=1):
    x = torch.rand(3, 50, 20, generator=seeded(seed))
    with noise_generator(seeded(2)), block:
        result = net(x)
    return torch.autograd.grad(result.square().sum(), list(net.parameters()))


@pytest.mark.parametrize("backend", ["fused", "eager"])
def test_gradients_are_unchanged(backend):
    net = Net()
    net.neuron.backend = backend
    expected = gradients(net, mock.MagicMock())
    with mock.patch.object(Packer, "pack", autospec=True, side_effect=Packer.pack) as pack:
        found = gradients(net, packed_spikes(net))
    assert pack.call_count > 4
    for ours, theirs in zip(found, expected):
        assert torch.equal(ours, theirs)


def test_spikes_are_packed_once_for_all_their_consumers():
    net = Net()
    with mock.patch("models.memory.packed_bits", side_effect=packed_bits) as pack:
        gradients(net, packed_spikes(net))
    packed = [call.args[0] for call in pack.call_args_list if packed_bits(call.args[0]) is not None]
    assert len(packed) == 1 and packed[0].numel() == 3 * 50 * 40


def test_probabilities_are_not_packed():
    net = Net()
    with mean_field(net):
        expected = gradients(net, mock.MagicMock())
        found = gradients(net, packed_spikes())
    for ours, theirs in zip(found, expected):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.to(torch.float8_e4m3fn),
        lambda x: x.to_sparse(),
        lambda x: x.to("meta"),
        lambda x: torch.nested.nested_tensor([x, x]),
        lambda x: x.to_mkldnn(),
        lambda x: x.to(torch.complex64),
    ],
)
def test_tensors_of_other_kinds_are_kept_as_they_are(change):
    kept = change(spikes_of(40, 40))
    packer = Packer()
    again = packer.unpack(packer.pack(kept))
    assert (again.dtype, again.layout, again.device, again._version) == (kept.dtype, kept.layout, kept.device, 0)


def test_changes_in_place_are_errors_for_what_is_not_packed_and_harmless_for_bits():
    a, b = torch.rand(30, 30, requires_grad=True), torch.rand(30, 30)
    with packed_spikes():
        result = a * b
    b.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        result.sum().backward()
    spikes = spikes_of(30, 30)
    before = spikes.clone()
    with packed_spikes():
        result = a * spikes
        spikes.add_(1)
        other = a * spikes  # which are no longer spikes
    assert torch.equal(torch.autograd.grad(result.sum(), a)[0], before)
    assert torch.equal(torch.autograd.grad(other.sum(), a)[0], before + 1)


def test_running_statistics_that_begin_as_zeros_and_ones_are_not_mistaken():
    """Batch norm keeps them for its backward pass, and changes them without a new version."""
    found = []
    for block in (contextlib.nullcontext(), packed_spikes()):
        norm, x = nn.BatchNorm1d(300), torch.rand(20, 300, generator=seeded(1)) * 5
        with block:
            first, second = norm(x), norm.eval()(x)
        found.append(torch.autograd.grad((first + second.square()).sum(), list(norm.parameters())))
    for ours, theirs in zip(*found):
        assert torch.equal(ours, theirs)


def test_forward_mode_whose_zeros_have_no_memory():
    weight, spikes = torch.rand(40, 40, requires_grad=True), spikes_of(40, 40)
    with packed_spikes():
        product, tangent = torch.func.jvp(lambda weight: weight * spikes, (weight,), (weight,))
    assert torch.equal(tangent, weight * spikes)
    assert torch.equal(torch.autograd.grad((product + tangent).sum(), weight)[0], 2 * spikes)


def test_memory_that_is_used_again_is_not_mistaken():
    a = torch.rand(100, 100, requires_grad=True)
    with packed_spikes():
        results, values = [], []
        for seed in range(20):
            spikes = spikes_of(100, 100, seed=seed)
            values.append(spikes.clone())
            results.append((a * spikes).sum())
            del spikes
    for result, spikes in zip(results, values):
        assert torch.equal(torch.autograd.grad(result, a)[0], spikes)


# ---- bits that the firing kernel writes


def channels_of(is_channels_last):
    """A multiple of 8 where the backward pass of PyTorch 2.14's convolutions overruns its memory for others."""
    return 8 if is_channels_last else 5


def made_layer(is_channels_last):
    torch.manual_seed(0)
    channels = channels_of(is_channels_last)
    layer = ConvNorm(channels, channels, 3, 1, "bn")
    layer.norm.bias.data.fill_(0.5)
    return layer.to(memory_format=torch.channels_last) if is_channels_last else layer


def images(timesteps, size, is_channels_last):
    x = torch.rand(timesteps * 3, channels_of(is_channels_last), *size, generator=seeded(1))
    x = x.contiguous(memory_format=torch.channels_last) if is_channels_last else x
    return x.unflatten(0, (timesteps, 3))


@pytest.mark.parametrize("timesteps", [1, 2, 7])
@pytest.mark.parametrize("is_channels_last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
@pytest.mark.parametrize("size", [(16, 12), (24, 40)], ids=str)
def test_the_kernel_writes_the_bits_of_its_spikes(timesteps, is_channels_last, dtype, size):
    layer, x = made_layer(is_channels_last), images(timesteps, size, is_channels_last).to(dtype)
    layer.conv.to(dtype)
    if dtype == torch.float64:
        layer.double()
    packer = Packer()
    with saved_tensors_hooks(packer.pack, packer.unpack), noise_generator(seeded(2)):
        spikes = fire(NoisyLIF(), layer, x)
    assert 0.02 < spikes.float().mean() < 0.98
    expected = packed_bits(spikes.detach())
    with mock.patch("models.memory.packed_bits", side_effect=AssertionError("packed again")):
        for view in (spikes, spikes.detach(), spikes.flatten(0, 1), spikes.permute(0, 1, 3, 4, 2)):
            assert torch.equal(packer.pack(view).bits.kept, expected)
        with pytest.raises(AssertionError, match="packed again"):
            packer.pack(spikes[:1] if timesteps > 1 else spikes[:, :1])  # which is not all of its memory


@pytest.mark.parametrize(
    "change", [lambda s: s.mul_(0), lambda s: s[0].zero_(), lambda s: s.flatten(0, 1).copy_(1 - s.flatten(0, 1))]
)
def test_spikes_that_are_changed_in_place_do_not_have_the_bits_that_the_kernel_wrote(change):
    weight = torch.rand(8, 4, requires_grad=True)
    with packed_spikes(), noise_generator(seeded(2)):
        spikes = fire(NoisyLIF(), made_layer(False), images(2, (8, 4), False)).detach()
        assert spikes.any()
        before = spikes.clone()
        change(spikes)
        result = spikes * weight
    assert not torch.equal(spikes, before)
    (grad,) = torch.autograd.grad(result.sum(), weight)
    assert torch.equal(grad, spikes.sum((0, 1, 2)))


def test_the_bits_go_with_the_spikes():
    with packed_spikes(), noise_generator(seeded(2)):
        spikes = fire(NoisyLIF(), made_layer(False), images(2, (8, 4), False)).detach()
        bits = weakref.ref(spikes.untyped_storage().spikes_as_bits.bits)
    assert bits() is not None
    del spikes
    assert bits() is None


@pytest.mark.parametrize("timesteps", [1, 2, 7])
@pytest.mark.parametrize("is_channels_last", [False, True])
@pytest.mark.parametrize("size", [(5, 7), (9, 11), (8, 8)], ids=str)
def test_layers_have_the_same_results_in_all_settings(timesteps, is_channels_last, size):
    """Of sizes that fill whole bytes and of others; pooled spikes, whose numbers are quarters, too."""
    first, second = made_layer(is_channels_last), nn.Conv2d(channels_of(is_channels_last), 8, 3)
    x = images(timesteps, size, is_channels_last)
    found = []
    for memory in SETTINGS:
        layer = copy.deepcopy(first)
        with used_as(memory), noise_generator(seeded(2)):
            spikes = fire(NoisyLIF(), layer, x)
            output = second(F.avg_pool2d(spikes.flatten(0, 1), 2, ceil_mode=True)), second(spikes.flatten(0, 1))
        loss = output[0].square().sum() + output[1].square().sum()
        grads = torch.autograd.grad(loss, [*layer.parameters(), *second.parameters()])
        assert all(grad.any() for grad in grads)
        found.append([spikes.detach(), *grads])
    for one in found[1:]:
        for ours, theirs in zip(one, found[0], strict=True):
            assert torch.equal(ours, theirs)


# ---- with others' hooks


def test_outer_hooks_get_the_bits():
    net = Net()
    expected = gradients(net, mock.MagicMock())
    seen = []

    def pack(tensor):
        seen.append(tensor.dtype)
        return tensor.clone()

    with saved_tensors_hooks(pack, lambda kept: kept), packed_spikes(), noise_generator(seeded(2)):
        result = net(torch.rand(3, 50, 20, generator=seeded(1)))
    found = torch.autograd.grad(result.square().sum(), list(net.parameters()))
    assert seen.count(torch.uint8) >= 1
    for ours, theirs in zip(found, expected):
        assert torch.equal(ours, theirs)


def test_inner_hooks_come_first():
    net = Net()
    expected = gradients(net, mock.MagicMock())
    with packed_spikes():
        found = gradients(net, save_on_cpu())
    for ours, theirs in zip(found, expected):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("is_outer", [True, False])
@pytest.mark.parametrize(
    "run", [checkpoint, lambda *args: torch.utils.checkpoint.checkpoint(*args, use_reentrant=False)]
)
def test_checkpointing(is_outer, run):
    net = Net()
    x = torch.rand(3, 50, 20, generator=seeded(1))
    results = []
    for is_packed in (False, True):
        torch.manual_seed(3)

        def forward(x, is_packed=is_packed):
            if is_packed and not is_outer:
                with packed_spikes():
                    return net(x)
            return net(x)

        if is_packed and is_outer:
            with packed_spikes():
                result = run(forward, x) + net(x)
        else:
            result = run(forward, x) + net(x)
        results.append(torch.autograd.grad(result.square().sum(), list(net.parameters())))
    for ours, theirs in zip(*results):
        assert torch.equal(ours, theirs)


def test_torch_func_and_compiled_code_run_without_packing():
    net = Net()
    x = torch.rand(3, 50, 20)

    def loss(x):
        with packed_spikes():
            return net(x).sum()

    assert torch.func.grad(loss)(x).shape == x.shape
    with packed_spikes():
        result = torch.compile(net, backend="aot_eager")(x)
    result.sum().backward()


def test_a_tracer_does_not_meet_bits():
    x, weight = (torch.rand(2, 30, 40, generator=seeded(seed)) * 2 for seed in (1, 2))

    def gradient(x):
        learnt = weight.clone().requires_grad_()
        with packed_spikes():
            loss = (LIF()(x) * learnt).square().sum()
        return torch.autograd.grad(loss, learnt)[0]

    with packed_spikes():
        program = make_fx(gradient)(x)
    assert torch.equal(program(x.flip(1)), gradient(x.flip(1)))


@pytest.mark.parametrize(
    "run",
    [
        NoisyLIF(),
        lambda x: fire(NoisyLIF(), ConvNorm(4, 4, 3, 1, "bn"), x),
        lambda x: x * spikes_of(*x.shape),
    ],
    ids=["neuron", "norm and neuron", "spikes"],
)
def test_a_traced_backward_pass_needs_its_forward_pass(run):
    """A program would not have what kernels write."""
    x = torch.rand(2, 3, 4, 5, 5, requires_grad=True)
    with packed_spikes():
        result = run(x)
    with pytest.raises(RuntimeError, match="in the same trace"):
        make_fx(lambda grad: torch.autograd.grad(result, x, grad)[0])(torch.ones(result.shape))


def test_a_second_derivative_of_what_is_packed():
    weight = torch.rand(40, 40, requires_grad=True)
    spikes = spikes_of(30, 40)
    with packed_spikes():
        result = F.linear(spikes, weight).pow(3).sum()
    (grad,) = torch.autograd.grad(result, weight, create_graph=True)
    (second,) = torch.autograd.grad(grad.sum(), weight)
    expected = 3 * F.linear(spikes, weight).detach().square()
    torch.testing.assert_close(grad.detach(), expected.T @ spikes)
    assert second.abs().sum() > 0


def test_networks_of_others():
    class Step(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return (x > 0.5).to(x.dtype)

        @staticmethod
        def backward(ctx, grad):
            return grad

    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
    x = torch.rand(4, 3, 12, 12)
    grads = []
    for is_packed in (False, True):
        twin = copy.deepcopy(net)
        with packed_spikes(twin) if is_packed else mock.MagicMock():
            y = twin[2](Step.apply(twin[1](twin[0](x))))
        grads.append(torch.autograd.grad(y.square().sum(), list(twin.parameters())))
    for ours, theirs in zip(*grads):
        assert torch.equal(ours, theirs)
    assert build_neuron("NILIF")().emits_spikes

"""Batch norm and neurons as one operation in Triton, and packed spikes: compiled where there is CUDA, else interpreted.

The reference is PyTorch's batch norm and the eager kernel, on the CPU, with the noise of the same seeds.
"""

import copy
import functools
import itertools
import math
import random
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from models import Gaussian, Logistic, NoisyLIF, noise_generator
from models.functional import KERNELS, noisy_lif
from models.kernels import eager, fused, normed, selftest
from models.kernels.build import BuildError
from models.kernels.common import Affine, arithmetic_dtype
from models.kernels.normed import Before
from models.memory import (
    SETTINGS,
    Packer,
    packed_bits,
    packed_quarters,
    unpack_into,
    unpack_quarters_into,
    used_as,
)
from models.noise import LAWS, draw_seeds
from models.resnet import ResidualBlock
from tests.conftest import first_are_fast
from tests.models.reference_noise import random_words, standard_draws

cuda = pytest.importorskip("models.kernels.cuda")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
NAN, INF = math.nan, math.inf
# The interpreter cuts off what does not fit into bfloat16.
NEAR = {torch.float64: 1e-6, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 0.2 if DEVICE == "cpu" else 0.05}
NORMS = {3: nn.BatchNorm1d, 4: nn.BatchNorm1d, 5: nn.BatchNorm2d}  # by dimensions of x
needs_cuda = pytest.mark.skipif(DEVICE != "cuda", reason="needs a CUDA device, and NSNN_TEST_CUDA=1")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(autouse=True)
def triton_everywhere(monkeypatch):
    """Where there is no CUDA, tensors on the CPU have the kernels of CUDA."""
    if DEVICE == "cpu":
        monkeypatch.setattr(fused, "kernel_of", lambda x, channel_bits=0: cuda)
        for is_served in ("serves", "has_norm"):
            monkeypatch.setattr(fused, is_served, lambda *given: True)


AXES = dict(
    law=LAWS,
    placement=["both", "escape", "membrane"],
    mode=["noisy", "noisy", "noiseless", "mean_field"],
    reset=["zero", "subtract", "none"],
    dtype=DTYPES,
    layout=["contiguous", "channels last", "[T, B, C]", "[T, B, C, L]"],
    timesteps=[1, 2, 5],
    training=[True, False],
    plus=["nothing", "spikes", "normalised", "one image"],  # one image: for all steps, instead
    learnt=["nothing", "numbers", "channels"],
    decay_input=[False, True],
    detach_reset=[False, True],
    state=[False, True],
)


def covering_array():
    """Settings in which each two values of two axes meet; the first ones have the most pairs."""
    choose, settings = random.Random(0), []
    missing = set()
    for (one, values), (two, others) in itertools.combinations(AXES.items(), 2):
        missing |= set(itertools.product([one], range(len(values)), [two], range(len(others))))
    while missing:
        found = set()
        for _ in range(30):
            places = {axis: choose.randrange(len(values)) for axis, values in AXES.items()}
            met = {(*one, *two) for one, two in itertools.combinations(places.items(), 2)} & missing
            if len(met) > len(found):
                found, best = met, places
        if found:
            missing -= found
            settings.append(SimpleNamespace(**{axis: AXES[axis][place] for axis, place in best.items()}))
    return settings


def filled(shape, layout, seed):
    x = torch.randn(shape, generator=seeded(seed)) * 2 + 1
    return x.transpose(2, -1).contiguous().transpose(2, -1) if layout == "channels last" else x


def made_norm(x, seed, training):
    """A batch norm that has seen something, for x [T, B, C, ...]."""
    norm = NORMS[x.dim()](x.shape[2], eps=0.01, momentum=0.3).train(training)
    for tensor, low, high in ((norm.weight, 0.5, 1.5), (norm.running_var, 0.5, 1.5), (norm.bias, -0.4, 0.9)):
        tensor.data.uniform_(low, high, generator=seeded(seed))
    return norm.double() if x.dtype == torch.float64 else norm


class Layer:
    """Two layers of batch norm, and what comes into them and into the neurons."""

    def __init__(self, case):
        self.case, (batch, channels) = case, (3, 6)
        rest = {"[T, B, C]": (), "[T, B, C, L]": (37,)}.get(case.layout, (5, 7))
        shape = case.timesteps, batch, channels, *rest
        self.x = filled(shape, case.layout, 1).to(case.dtype)
        self.is_one_image = case.plus == "one image"
        self.norm, self.plus_norm, self.plus = made_norm(self.x, 2, case.training), None, None
        if case.plus == "spikes":
            self.plus = (torch.rand(shape, generator=seeded(3)) < 0.3).to(case.dtype)
        elif case.plus == "normalised":
            self.plus = filled(shape, "contiguous", 4).to(case.dtype)
            self.plus_norm = made_norm(self.x, 5, case.training)
        real = arithmetic_dtype(case.dtype)
        self.state = torch.rand(shape[1:], generator=seeded(6)).to(real) if case.state else None
        self.values = dict(threshold=0.9, decay=0.6, scale=0.3)
        if case.reset == "subtract":
            self.values["reset_by"] = 0.7
        elif case.reset == "zero":
            self.values["v_reset"] = -0.2
        if case.learnt != "nothing":
            spread = torch.linspace(0.8, 1.2, channels) if case.learnt == "channels" else torch.ones(())
            self.values = {name: (value * spread).to(real) for name, value in self.values.items()}

    def run(self, device, run_neurons):
        """Spikes, the last potential, gradients of all that has one, and buffers: on the CPU."""

        def moved(value):
            return value.detach().to(device, copy=True) if isinstance(value, torch.Tensor) else value

        case = self.case
        norm, plus_norm = (copy.deepcopy(one).to(device) if one else None for one in (self.norm, self.plus_norm))
        x, plus, state = moved(self.x[0] if self.is_one_image else self.x), moved(self.plus), moved(self.state)
        values = {name: moved(value) for name, value in self.values.items()}
        given = (x, plus, state, *values.values())
        leaves = [one.requires_grad_() for one in given if isinstance(one, torch.Tensor)]
        norms = [one for one in (norm, plus_norm) if one]
        leaves += [parameter for one in norms for parameter in one.parameters()]
        before = Before(x, norm, plus, case.timesteps if self.is_one_image else None, plus_norm=plus_norm)
        settings = {name: getattr(case, name) for name in ("mode", "placement", "reset", "decay_input", "detach_reset")}
        scale = values.pop("scale")
        law = case.law(1.0 if isinstance(scale, torch.Tensor) else scale, loc=0.1)
        settings |= dict(values, scale=scale if isinstance(scale, torch.Tensor) else None, state=state)
        spikes, last = run_neurons(before, law, **settings)
        weights = [torch.randn(result.shape, generator=seeded(7)).to(result) for result in (spikes, last)]
        loss = (spikes * weights[0]).double().sum() + (last * weights[1]).sum()
        grads = torch.autograd.grad(loss, leaves, allow_unused=True)
        buffers = [buffer.cpu() for one in norms for buffer in one.buffers()]
        return spikes.cpu(), last.cpu(), [None if grad is None else grad.cpu() for grad in grads], buffers

    def by_triton(self):
        def run_neurons(before, law, **settings):
            with noise_generator(seeded(9)), used_as("lean"):
                assert normed.serves(before)
                results = noisy_lif(before.shown(), law, before=before, backend="fused", **settings)
            assert "NormLIF" in type(results[0].grad_fn).__name__
            return results

        return self.run(DEVICE, run_neurons)

    def by_eager(self, monkeypatch):
        def run_neurons(before, law, **settings):
            x, scale = before.currents(), settings["scale"]
            scale = law.scale if scale is None else scale.detach().reshape(-1, *[1] * (x.dim() - 3))
            with noise_generator(seeded(9)):
                words = random_words(x.shape, draw_seeds(len(x), x.device))
            noise = tuple(law.loc + scale * draw for draw in standard_draws(type(law).__name__, *words))
            monkeypatch.setitem(KERNELS, "eager", functools.partial(eager.lif_sequence, noise=noise))
            return noisy_lif(x, law, backend="eager", **settings)

        return self.run("cpu", run_neurons)


def assert_triton_is_as_eager(case, monkeypatch):
    layer = Layer(case)
    spikes, last, grads, buffers = layer.by_triton()
    right_spikes, right_last, right_grads, right_buffers = layer.by_eager(monkeypatch)
    assert spikes.dtype == case.dtype and 0.02 < right_spikes.float().mean() < 0.98
    for ours, right in zip(buffers, right_buffers, strict=True):
        torch.testing.assert_close(ours, right, rtol=1e-5, atol=1e-5)
    near = NEAR[case.dtype]
    if case.mode == "mean_field":
        torch.testing.assert_close(spikes, right_spikes, rtol=near, atol=near)
    else:
        differ = (spikes != right_spikes).any(0)
        assert differ.float().mean() < (0.02 if case.dtype.itemsize == 2 else 0.002)
        if differ.any():  # in training, all gradients depend on all neurons
            return
    torch.testing.assert_close(last, right_last, rtol=near, atol=near)
    for ours, right in zip(grads, right_grads, strict=True):
        assert (ours is None) == (right is None)
        if ours is not None:
            assert ours.dtype == right.dtype
            torch.testing.assert_close(ours, right, rtol=near, atol=near * max(1.0, right.abs().max().item()))


CASES = covering_array()


@pytest.mark.parametrize("case", first_are_fast(CASES, 12))
def test_batch_norm_and_neurons_are_as_eager(case, monkeypatch):
    assert_triton_is_as_eager(case, monkeypatch)


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize("case", CASES[:4])  # of four types; each is compiled
def test_on_a_device_batch_norm_and_neurons_are_as_eager(case, monkeypatch):
    assert_triton_is_as_eager(case, monkeypatch)


# ---- sums over channels, and what follows from them

SHAPES = [(2, 3, 70, 3, 3), (1, 2, 3, 37, 41), (2, 300, 3, 4, 4), (1, 2, 1, 10, 10), (3, 50, 5)]


@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sums_of_many_programs(shape, layout):
    """Of numbers far from zero; rows, channels and runs that are longer and shorter than a block."""
    x = (filled(shape, layout, 1).double() + 1000).float()
    grad = filled(shape, layout, 2)
    others = [dim for dim in range(x.dim()) if dim != 2]
    variance, mean = torch.var_mean(x.double(), others, correction=0)
    moments = torch.empty(3, shape[2], dtype=torch.float64, device=DEVICE)
    cuda.statistics(x.to(DEVICE), moments)
    torch.testing.assert_close(moments[0].cpu(), mean, rtol=1e-7, atol=0)
    torch.testing.assert_close(moments[1].cpu(), variance, rtol=1e-5, atol=0)
    factor, residual_mean = torch.ones(shape[2]), torch.full((shape[2],), 1001.0)
    of_residual = [one.to(DEVICE) for one in (factor, factor, residual_mean)]
    affine = Affine(*of_residual[:2], mean.float().to(DEVICE), x.flip(0).to(DEVICE), tuple(of_residual))
    (sums,) = cuda.norm_sums(x.to(DEVICE), grad.to(DEVICE), affine).cpu()
    outer, along_x, along_residual = (one.double().movedim(2, -1) for one in (grad, x, x.flip(0)))
    products = outer, outer * (along_x - mean.float()), outer * (along_residual - residual_mean)
    for ours, product in zip(sums, products, strict=True):
        right = product.flatten(0, -2).sum(0)
        torch.testing.assert_close(ours, right, rtol=1e-5, atol=1e-5 * right.abs().max().item())


def test_steps_with_gaps_between_them_and_in_another_order():
    layer = Layer(SimpleNamespace(**{**vars(CASES[0]), "timesteps": 5}))
    layer.x, layer.plus = (tensor.repeat_interleave(2, 0)[::2] for tensor in (layer.x, layer.plus))
    found = layer.by_triton()
    layer.x, layer.plus = layer.x.contiguous(), layer.plus.contiguous()
    for ours, right in zip(found[:2], layer.by_triton()[:2]):
        assert torch.equal(ours, right)


# ---- memory settings


@pytest.mark.skipif(DEVICE == "cuda", reason="there, PyTorch's convolutions may differ from run to run")
@pytest.mark.parametrize("is_channels_last", [False, True])
def test_what_is_computed_again_is_what_was_computed(is_channels_last):
    """So all settings have the same results, bit for bit, where all of them run as one operation."""
    torch.manual_seed(0)
    block = ResidualBlock(functools.partial(NoisyLIF, surrogate=Logistic(0.4)), 8, 8, 2, "bn")
    x = (torch.rand(6, 8, 8, 8, generator=seeded(1)) < 0.4).float()
    if is_channels_last:
        block, x = block.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    x, found = x.unflatten(0, (2, 3)).requires_grad_(), []
    for memory in SETTINGS:
        net = copy.deepcopy(block)
        with used_as(memory), noise_generator(seeded(2)):
            spikes = net(x)
        assert 0.02 < spikes.mean() < 0.98
        grads = torch.autograd.grad((spikes * torch.arange(8.0).view(8, 1, 1)).sum(), [x, *net.parameters()])
        assert all(grad.any() for grad in grads)
        found.append([spikes.detach(), *grads, *net.buffers()])
    for one in found[1:]:
        for ours, theirs in zip(one, found[0], strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
def test_the_kernel_writes_the_bits_of_its_spikes(dtype, layout, monkeypatch):
    packer, x = Packer(), filled((2, 3, 8, 7, 6), layout, 1).to(dtype).to(DEVICE)
    with saved_tensors_hooks(packer.pack, packer.unpack), used_as("lean"), noise_generator(seeded(2)):
        before = Before(x, made_norm(x.cpu(), 3, True).to(DEVICE))
        spikes, _ = noisy_lif(before.shown(), Gaussian(0.3), before=before, backend="fused")
    assert 0.02 < spikes.float().mean() < 0.98
    monkeypatch.setattr("models.memory.packed_bits", lambda spikes: pytest.fail("packed again"))
    bits = packer.pack(spikes.detach()).bits.kept
    assert torch.equal(bits.cpu(), bits_of(spikes))


def bits_of(spikes):
    """In the order of memory."""
    numbers = spikes.detach().cpu().as_strided((spikes.numel(),), (1,)).int().tolist()
    numbers += [0] * (-len(numbers) % 8)
    return torch.tensor([sum(n << k for k, n in enumerate(numbers[i : i + 8])) for i in range(0, len(numbers), 8)])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [1, 7, 513, 1033])
def test_packing_is_exact(dtype, size):
    for pack, unpack, most, others in (
        (packed_bits, unpack_into, 1, (0.5, -0.0, -1.0, 2.0, NAN, INF)),
        (packed_quarters, unpack_quarters_into, 15, (0.125, 4.0, -0.25, -0.0, NAN, INF)),
    ):
        numbers = torch.randint(most + 1, (size,), generator=seeded(size)).div(1 if most == 1 else 4).to(dtype)
        numbers = numbers.to(DEVICE)
        bits = pack(numbers)
        if most == 1:
            assert torch.equal(bits.cpu(), bits_of(numbers))
        again = torch.empty_like(numbers)
        unpack(again, bits)
        assert bits.numel() == -(-size * most.bit_length() // 8) and torch.equal(again, numbers)
        for place, other in enumerate(others):
            changed = numbers.clone()
            changed[(place * 331) % size] = other
            assert pack(changed) is None


@pytest.mark.parametrize("what", ["batch norm", "packing of spikes"])
def test_a_kernel_that_is_wrong_is_refused(what, monkeypatch):
    like = torch.empty(0, device=DEVICE)
    if what == "batch norm":
        right = cuda.norm_sums
        monkeypatch.setattr(cuda, "norm_sums", lambda *given: 1.1 * right(*given))
        check = selftest.check_normed
    else:
        monkeypatch.setattr(cuda, "unpack", lambda bits, numbers, width=1: numbers.zero_())
        check = selftest.check_bits
    with pytest.raises(BuildError, match=f"compiled {what}"):
        check(cuda, like)

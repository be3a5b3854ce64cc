"""The fused CPU kernel against the eager oracle, which is fed the same noise; statistics; layouts; the operator."""

import itertools

import numpy as np
import pytest
import torch
from scipy import stats
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from models import Cauchy, Gaussian, Logistic, NoisyLIF, Triangular, Uniform, noise_generator
from models.functional import noisy_lif
from models.kernels import common, cpu, fused
from models.kernels.common import Neuron, dense
from models.kernels.eager import lif_sequence
from models.noise import draw_seeds
from tests import fresh
from tests.chance import ERROR, deviations, likely
from tests.conftest import first_are_fast
from tests.models.reference_noise import noise as reference_noise
from tests.models.reference_noise import philox, random_words

LAWS = [Gaussian(0.3), Logistic(0.2, loc=0.1), Triangular(0.6), Uniform(0.5, loc=-0.1), Cauchy(0.2)]
PLACEMENTS = {"both": (True, True), "escape": (False, True), "membrane": (True, False)}
NEAR = 1e-5  # where the potential is so near its draw, rounding may decide

every_law = pytest.mark.parametrize("law", LAWS, ids=lambda law: type(law).__name__)
every_placement = pytest.mark.parametrize("placement", PLACEMENTS)
every_reset = pytest.mark.parametrize("reset", ["zero", "subtract", "none"])
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def dynamics(placement="both", reset="zero", detach_reset=False, decay_input=False, mode="noisy"):
    """The settings of a `Neuron` besides its law, decay and scale."""
    membrane, threshold = PLACEMENTS[placement] if mode == "noisy" else (False, False)
    noise = dict(membrane_noise=membrane, threshold_noise=threshold, mean_field=mode == "mean_field")
    value = {"zero": 0.2, "subtract": 0.7, "none": 0.0}[reset]
    dynamics = dict(threshold=0.9, reset=reset, reset_value=value, detach_reset=detach_reset, decay_input=decay_input)
    return {**dynamics, **noise}


class Layer:
    """One layer run by both kernels from the same inputs, parameters and noise."""

    def __init__(self, law, settings, shape, dtype=torch.float32, state=True, seed=0):
        generator = seeded(seed)
        self.law, self.settings, self.dtype = law, settings, dtype
        self.arithmetic = torch.float64 if dtype == torch.float64 else torch.float32
        self.x = (1.5 * torch.rand(shape, generator=generator, dtype=torch.float64) - 0.2).to(dtype)
        self.state = torch.rand(shape[1:], generator=generator).to(self.arithmetic) if state else None
        self.seeds = torch.randint(-(2**63), 2**63 - 1, (shape[0],), generator=generator)
        self.g_spikes = torch.randn(shape, generator=generator).to(dtype)
        self.g_last = torch.randn(shape[1:], generator=generator).to(self.arithmetic)

    def run(self, kernel):
        """(spikes, last), gradients of (x, state, decay, scale)."""
        x = self.x.clone().requires_grad_()
        state = None if self.state is None else self.state.clone().requires_grad_()
        decay = torch.tensor(0.7, dtype=self.arithmetic, requires_grad=True)
        scale = torch.tensor(1.3 * self.law.scale, dtype=self.arithmetic, requires_grad=True)
        inputs = [tensor for tensor in (x, state, decay, scale) if tensor is not None]
        outputs = kernel(x, state, decay, scale)
        grads = torch.autograd.grad(outputs, inputs, (self.g_spikes, self.g_last), allow_unused=True)
        return [output.detach() for output in outputs], grads

    def fused(self, x, state, decay, scale):
        neuron = Neuron(self.law, self.law.scale, **self.settings)
        flat = fused.flattened(neuron)
        tensors = (None, decay, scale, None, None)
        spikes, last, self.u = fused.lif_forward(x, state, *tensors, self.seeds, True, True, **flat)
        return spikes, last

    def eager(self, x, state, decay, scale):
        law = type(self.law)(scale.item(), self.law.loc)
        self.noise = reference_noise(law, x.shape, self.seeds, self.arithmetic)
        return lif_sequence(x, state, Neuron(self.law, scale, decay, **self.settings), noise=self.noise)[:2]


def assert_equal_but_for_close_calls(layer):
    """Both kernels agree; a neuron whose potential came near its draw is left out from then on."""
    (spikes, last), grads = layer.run(layer.fused)
    (expected, expected_last), expected_grads = layer.run(layer.eager)
    z = layer.u.detach().to(torch.float64) - layer.settings["threshold"]
    draw = layer.noise[1].double() if layer.settings["threshold_noise"] else torch.zeros_like(z)
    size = torch.ones_like(z)  # of the numbers that led here: a Cauchy draw of 1e4 is rounded by 1e-3
    if layer.settings["membrane_noise"]:
        size = layer.noise[0].double().abs().clamp(min=1.0).cummax(0).values
    close = ((z - draw).abs() <= NEAR * torch.maximum(size, draw.abs())).any(0)
    assert close.float().mean() < 0.01
    clear = ~close
    if layer.settings["mean_field"]:
        close.fill_(False)
        clear.fill_(True)
        torch.testing.assert_close(spikes, expected, rtol=1e-5 if layer.dtype != torch.bfloat16 else 1e-2, atol=1e-6)
    else:
        assert torch.equal(spikes[:, clear], expected[:, clear])
    torch.testing.assert_close(last[clear], expected_last[clear], rtol=1e-5, atol=1e-5)
    tolerance = dict(rtol=1e-5, atol=1e-5) if layer.dtype != torch.bfloat16 else dict(rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(grads[0][:, clear], expected_grads[0][:, clear], **tolerance)
    if layer.state is not None:
        torch.testing.assert_close(grads[1][clear], expected_grads[1][clear], rtol=1e-5, atol=1e-5)
    if not close.any():  # decay and scale sum over all neurons
        for ours, theirs in zip(grads[-2:], expected_grads[-2:]):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)


@every_law
@every_placement
@every_reset
@every_dtype
@pytest.mark.parametrize("timesteps", first_are_fast([7, 1, 2]))
def test_fused_equals_the_oracle_given_the_same_noise(law, placement, reset, dtype, timesteps):
    layer = Layer(law, dynamics(placement, reset), (timesteps, 2, 3, 37), dtype)
    assert_equal_but_for_close_calls(layer)


@every_law
@pytest.mark.parametrize("mode", ["noiseless", "mean_field"])
@every_reset
@every_dtype
def test_modes_without_noise_equal_the_oracle(law, mode, reset, dtype):
    assert_equal_but_for_close_calls(Layer(law, dynamics("both", reset, mode=mode), (5, 2, 3, 37), dtype))


@every_law
@pytest.mark.parametrize("mode", ["noisy", "noiseless", "mean_field"])
@pytest.mark.parametrize(("detach_reset", "decay_input"), [(True, False), (False, True), (True, True)])
def test_detached_reset_and_scaled_input_equal_the_oracle(law, mode, detach_reset, decay_input):
    settings = dynamics("both", "zero", detach_reset, decay_input, mode)
    assert_equal_but_for_close_calls(Layer(law, settings, (4, 2, 3, 37), state=False))


@pytest.mark.parametrize(
    "shape", [(3, 1), (2, 1, 1), (1, 2), (2, 511), (2, 512), (2, 513), (2, 1025), (3, 5, 409), (2, 4097)]
)
@pytest.mark.parametrize("law", LAWS[:2], ids=["Gaussian", "Logistic"])
def test_sizes_that_are_not_a_multiple_of_a_block(shape, law):
    assert_equal_but_for_close_calls(Layer(law, dynamics(), shape))


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0), (0, 0)])
def test_empty_tensors(shape):
    x = torch.zeros(shape, requires_grad=True)
    spikes, state = noisy_lif(x, Gaussian(0.3), backend="fused")
    assert spikes.shape == shape and state.shape == shape[1:]
    spikes.sum().backward()
    assert x.grad.shape == shape


def test_known_answers_of_philox():
    """kat_vectors of Random123, philox4x32 10: counter 0 and key 0; and the reference against the kernel."""
    words = philox(0, torch.zeros(1, dtype=torch.int64))
    assert [word.item() for word in words] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


def layouts(shape):
    """Tensors of one shape [T, B, C, H, W] that lie differently in memory."""
    T, B, C, H, W = shape
    yield "contiguous", torch.empty(shape)
    yield "channels last", torch.empty(T, B, H, W, C).permute(0, 1, 4, 2, 3)
    yield "transposed", torch.empty(T, W, H, C, B).permute(0, 4, 3, 2, 1)
    yield "with gaps", torch.empty(T, B, C, H, 2 * W)[..., ::2]
    yield "time innermost", torch.empty(B, C, H, W, T).permute(4, 0, 1, 2, 3)
    yield "expanded over time", torch.empty(1, B, C, H, W).expand(T, -1, -1, -1, -1)


@pytest.mark.parametrize("batch", [1, 2, 3, 4])
@every_dtype
def test_words_do_not_depend_on_the_memory_layout(batch, dtype):
    shape, seeds = (3, batch, 5, 4, 9), torch.tensor([1, -5, 2**62 + 12345])
    expected = random_words(shape, seeds)
    for name, x in layouts(shape):
        words = cpu.kernel(dtype).random_words(dense(x.to(dtype)), seeds)
        for ours, theirs in zip(words, expected):
            assert torch.equal(ours, theirs), name


def test_loops_over_memory_are_as_few_as_can_be():
    """Kernels have three: a layout that needed more would be copied."""
    one, x = torch.empty(1, 1), torch.empty(4, 300, 7, 9)
    steps = one, x, x.to(memory_format=torch.channels_last)
    found = [common.memory_order(step.shape, step.stride()) for step in steps]
    assert found == [([1], [1]), ([4 * 300 * 63], [1]), ([4, 63, 300], [300 * 63, 1, 63])]
    for gaps in (x[..., ::2], x[:1].expand(4, 300, 7, 9)):
        assert common.memory_order(gaps.shape, gaps.stride()) is None


@pytest.mark.parametrize("batch", [1, 3, 4])
def test_results_do_not_depend_on_the_memory_layout(batch):
    shape = (3, batch, 6, 5, 4)
    values = torch.rand(1, *shape[1:], generator=seeded(1)).expand(shape) * 1.5  # equal at all steps, for "expanded"
    gradient, results = torch.randn(shape, generator=seeded(2)), []
    for _, x in layouts(shape):
        if x.stride(0):
            x.copy_(values)
        else:
            x[0].copy_(values[0])
        x = x.detach().requires_grad_()
        with noise_generator(seeded(3)):
            spikes, state = noisy_lif(x, Gaussian(0.3), backend="fused")
        (grad,) = torch.autograd.grad(spikes, x, gradient)
        results.append((spikes.detach(), state.detach(), grad))
    assert results[0][0].mean() not in (0.0, 1.0)
    for result in results[1:]:
        for ours, theirs in zip(result, results[0]):
            assert torch.equal(ours, theirs)


def test_the_number_of_threads_does_not_matter():
    results = []
    for threads in (1, 2):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            layer = Layer(LAWS[0], dynamics(), (4, 7, 40_001))
            results.append(layer.run(layer.fused))
        finally:
            torch.set_num_threads(before)
    for ours, theirs in zip(itertools.chain(*results[0]), itertools.chain(*results[1])):
        assert torch.equal(ours, theirs)


def noise_of(law, placement, shape, seed=0):
    """The membrane noise that a layer adds: with x = 0 and no reset, u = -eps (minus nothing else, at decay 0)."""
    with noise_generator(seeded(seed)):
        _, state = noisy_lif(torch.zeros(1, *shape), law, decay=0.0, reset="none", placement=placement, backend="fused")
    return -state


@every_law
def test_membrane_noise_passes_kolmogorov_smirnov(law):
    sample = noise_of(law, "both", (1, 100_000)).flatten().double()
    assert stats.kstest(law.cdf(sample).numpy(), "uniform").pvalue > ERROR / 2
    assert likely((sample > law.loc).sum(), 100_000, 0.5, comparisons=2)


@every_law
@every_placement
def test_firing_frequency_is_that_of_the_oracle(law, placement):
    x = torch.linspace(0.0, 1.8, 10).repeat_interleave(40_000).reshape(1, 1, -1)
    hits = []
    for backend in ("fused", "eager"):
        with noise_generator(seeded(1)):
            spikes, _ = noisy_lif(x, law, threshold=0.9, placement=placement, backend=backend)
        hits.append(spikes.reshape(10, -1).sum(1).numpy())
    ours, both = hits[0], hits[0] + hits[1]  # of as many spikes, the fused kernel has a hypergeometric number
    tails = stats.hypergeom.cdf(ours, 80_000, both, 40_000), stats.hypergeom.sf(ours - 1, 80_000, both, 40_000)
    assert np.minimum(*tails).min() > ERROR / 2 / len(ours)


@every_law
def test_noise_of_steps_neurons_places_and_calls_is_uncorrelated(law):
    """Correlations of the ranks: a Cauchy draw has no variance."""
    words = random_words((2, 1, 80_000), torch.tensor([3, 4]))
    kernel = cpu.kernel(torch.float32)
    ours = kernel.random_words(torch.empty(2, 1, 80_000), torch.tensor([3, 4]))
    assert torch.equal(ours[0], words[0])
    first, second = (word.double().div(2**32) - 0.5 for word in ours)
    calls = [law.cdf(noise_of(law, "both", (1, 80_000), seed).double()).flatten() - 0.5 for seed in (1, 2)]
    pairs = {
        "steps": (first[0, 0], first[1, 0]),
        "places": (first[0, 0], second[0, 0]),
        "neighbours": (first[0, 0, 1:], first[0, 0, :-1]),
        "halves": (first[0, 0, :40_000], first[0, 0, 40_000:]),
        "calls": tuple(calls),
    }
    for name, (a, b) in pairs.items():
        correlation = (a * b).mean() / (a.std() * b.std())
        assert abs(correlation) < deviations(len(pairs)) / len(a) ** 0.5, name


def test_seeds_have_64_bits():
    seeds = draw_seeds(1000, None)
    assert seeds.min() < -(2**62) and seeds.max() > 2**62 and len(seeds.unique()) == 1000


def test_a_compiler_expects_a_seed_for_each_step():
    with FakeTensorMode():
        seeds = fused.random_seeds(torch.empty(3, 0, 5))
    assert seeds.shape == (3,) and seeds.dtype == torch.int64


def test_consecutive_calls_do_not_repeat():
    x = torch.full((3, 1, 1000), 0.9)
    torch.manual_seed(0)
    first, second = (noisy_lif(x, Gaussian(0.3), backend="fused")[0] for _ in range(2))
    assert not torch.equal(first, second) and not torch.equal(first[0], first[1])
    torch.manual_seed(0)
    assert torch.equal(noisy_lif(x, Gaussian(0.3), backend="fused")[0], first)


@pytest.mark.parametrize("cut", [1, 2, 4])
def test_a_stream_cut_in_two_is_the_whole_stream(cut):
    x = torch.rand(5, 3, 40, generator=seeded(1)) * 1.5
    with noise_generator(seeded(2)):
        whole, end = noisy_lif(x, Gaussian(0.3), backend="fused")
    with noise_generator(seeded(2)):
        head, state = noisy_lif(x[:cut], Gaussian(0.3), backend="fused")
        tail, state = noisy_lif(x[cut:], Gaussian(0.3), state=state, backend="fused")
    assert torch.equal(torch.cat([head, tail]), whole) and torch.equal(state, end)


def test_no_gradient_means_nothing_is_kept_for_it():
    layer = Layer(LAWS[0], dynamics(), (2, 3, 5))
    flat = fused.flattened(Neuron(layer.law, layer.law.scale, **layer.settings))
    spikes, last, u = fused.lif_forward(layer.x, *[None] * 6, layer.seeds, False, False, **flat)
    assert spikes.shape == layer.x.shape and last.numel() == u.numel() == 0


def operator_samples():
    x = torch.rand(3, 2, 4, 5, generator=seeded(1))
    channels_last = torch.rand(3, 2, 5, 4, generator=seeded(1)).transpose(2, 3)
    state, seeds = torch.rand(2, 4, 5, generator=seeded(2)), torch.tensor([1, 2, 3])
    decay, scale = torch.tensor(0.6), torch.tensor(0.4)
    by_channel = [torch.linspace(0.4, 0.8, 4)[:, None] + shift for shift in (0.0, 0.1, 0.2, 0.3)]

    def flat(law, surrogate=None):
        settings = dynamics("both", decay_input=True)
        return fused.flattened(Neuron(law, law.scale, surrogate=surrogate, **settings))

    yield (x, *[None] * 6, seeds, True, True), flat(Gaussian(0.3))
    yield (channels_last, state, None, decay, scale, decay, None, seeds, True, True), flat(Cauchy(0.3))
    yield (channels_last, state, *by_channel, None, seeds, True, True), flat(Gaussian(0.3))
    yield (x.bfloat16(), state, None, None, scale, None, None, seeds, True, False), flat(Uniform(0.3, 0.1))
    yield (x[:, :, ::2], None, decay, decay, None, None, None, seeds, True, True), flat(Logistic(0.3))
    yield (x, None, decay, *[None] * 4, seeds, True, True), flat(Gaussian(0.3), Cauchy(0.4, 0.1))


@pytest.mark.parametrize("operands", first_are_fast(operator_samples(), 3))
def test_operator_passes_opcheck(operands):
    sample, neuron = operands
    sample = [
        value.clone().requires_grad_() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for value in sample
    ]
    torch.library.opcheck(fused.lif_forward, tuple(sample), neuron)


@every_law
@every_placement
def test_the_gradient_of_another_law_equals_the_oracle(law, placement):
    """Spikes are those of the noise, the gradient that of the surrogate; as an operator, too."""
    layer = Layer(LAWS[0], dynamics(placement), (5, 2, 3, 37))
    other = type(law)(0.7, 0.1)

    neuron = Neuron(layer.law, layer.law.scale, 0.7, surrogate=other, **layer.settings)

    def by_direct(x):
        return fused.Direct.apply(x, *[None] * 6, layer.seeds, (neuron, True, True))[:2]

    def by_operator(x):
        return fused.lif_forward(x, *[None] * 6, layer.seeds, True, True, **fused.flattened(neuron))[:2]

    def by_eager(x):
        layer.noise = reference_noise(layer.law, x.shape, layer.seeds, torch.float32)
        return lif_sequence(x, None, neuron, noise=layer.noise)[:2]

    results = []
    for kernel in (by_eager, by_direct, by_operator):
        x = layer.x.clone().requires_grad_()
        spikes, last = kernel(x)
        results.append((spikes.detach(), *torch.autograd.grad((spikes, last), x, (layer.g_spikes, layer.g_last))))
    (spikes, grad), *others = results
    for ours, ours_grad in others:
        same = (ours == spikes).all(0)
        assert same.float().mean() > 0.99
        torch.testing.assert_close(ours_grad[:, same], grad[:, same], rtol=1e-5, atol=1e-5)


def test_learnt_parameters_pass_gradcheck_in_the_mean_field():
    x = torch.rand(4, 2, 5, generator=seeded(1), dtype=torch.float64).mul(1.5).requires_grad_()
    state = torch.rand(2, 5, generator=seeded(2), dtype=torch.float64).requires_grad_()
    decay, scale = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (0.6, 0.4))
    for law, decay_input in itertools.product((Gaussian(0.3), Logistic(0.3), Cauchy(0.3)), (False, True)):

        def run(x, state, decay, scale, law=law, decay_input=decay_input):
            options = dict(mode="mean_field", decay_input=decay_input, backend="fused")
            return noisy_lif(x, law, state=state, decay=decay, scale=scale, **options)

        assert torch.autograd.gradcheck(run, (x, state, decay, scale), atol=1e-6)


def test_compiled_layer_draws_the_noise_of_the_uncompiled_one():
    """One graph, no break; the seeds come from the same generator, inside noise_generator too."""

    def run(x):
        return noisy_lif(noisy_lif(x, Gaussian(0.3))[0] * 1.5, Gaussian(0.3))[0]

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    x = torch.rand(3, 2, 500, generator=seeded(1)) * 1.5
    for _ in range(2):
        results = []
        for function in (run, compiled):
            torch.manual_seed(5)
            given = x.clone().requires_grad_()
            spikes = function(given)
            with noise_generator(seeded(6)):
                again = function(given)
            (spikes.sum() + again.sum()).backward()
            results.append((spikes, again, given.grad))
        for ours, theirs in zip(*results):
            assert torch.equal(ours, theirs)
        assert not torch.equal(*results[0][:2])


def test_tensors_that_are_not_what_lies_in_memory():
    """A negation that is due, and a state that is elsewhere."""
    x = torch.rand(3, 2, 50, generator=seeded(1)) * 1.5
    results = []
    for given in (x, torch._neg_view(-x)):
        with noise_generator(seeded(2)):
            results.append(noisy_lif(given, Gaussian(0.3), backend="fused")[0])
    assert torch.equal(*results)
    with pytest.raises(ValueError, match="the state is on meta"):
        noisy_lif(x, Gaussian(0.3), state=torch.ones(2, 50, device="meta"))


def test_a_tracer_sees_the_operator():
    x = torch.rand(3, 2, 50, generator=seeded(1)) * 1.5

    def run(x):
        return noisy_lif(x, Gaussian(0.3), mode="noiseless", backend="fused")[0]

    assert torch.equal(make_fx(run)(x)(x), run(x))


@pytest.mark.parametrize("leaf", [torch.Tensor, torch.nn.Parameter])
@pytest.mark.parametrize("mode", ["mean_field", "noiseless", "noisy"])
def test_the_operator_has_no_second_derivative_and_no_silent_zero(leaf, mode, monkeypatch):
    x = leaf(torch.rand(3, 2, 50, generator=seeded(1)) * 1.5).requires_grad_()
    monkeypatch.setattr(fused, "is_watched", lambda: True)
    spikes, _ = noisy_lif(x, Gaussian(0.3), mode=mode, backend="fused")
    (grad,) = torch.autograd.grad(spikes.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        (grad.sum() + x.pow(3).sum()).backward()


def test_saved_tensors_may_come_back_in_another_order():
    x = torch.rand(2, 3, 5, 4, generator=seeded(1)).transpose(2, 3).bfloat16()
    grads = []
    for pack in (lambda t: t, lambda t: t.contiguous() if t.dtype == torch.float32 else t):
        given = x.clone().requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            spikes, _ = noisy_lif(given, Gaussian(0.3), mode="noiseless", backend="fused")
        spikes.backward(torch.randn(spikes.shape, generator=seeded(2)).bfloat16())
        grads.append(given.grad)
    assert torch.equal(*grads)


def test_nan_goes_through_to_the_gradient():
    for law in LAWS:
        x = torch.full((1, 1, 20), float("nan"), requires_grad=True)
        noisy_lif(x, law, reset="none", mode="noiseless", backend="fused")[0].sum().backward()
        assert x.grad.isnan().all(), law


def test_the_package_can_be_imported_twice_in_a_process():
    code = "import sys, models; [sys.modules.pop(m) for m in list(sys.modules) if m.split('.')[0] == 'models']\n"
    code += "import models, torch; assert models.LIF()(torch.full((1, 1, 9), 2.0)).all()"
    fresh.run(code).check_returncode()


def test_fused_refuses_what_it_cannot_run():
    class Mine(Gaussian):
        pass

    with pytest.raises(ValueError, match="no fused kernel supports Mine"):
        noisy_lif(torch.zeros(1, 2), Mine(0.3), backend="fused")
    noisy_lif(torch.zeros(1, 2), Mine(0.3))  # auto: eager


def test_more_neurons_than_the_counter_has_are_left_to_the_eager_kernel():
    x, settings = torch.zeros(2, 1, 1), fused.flattened(Neuron(LAWS[0], 0.3))
    assert fused.serves(x.expand(2, 1, 2**32), LAWS[0])
    many = x.expand(2, 1, 2**32 + 1)
    assert not fused.serves(many, LAWS[0])
    with pytest.raises(ValueError, match="up to 4294967296 neurons; NSNN_KERNELS=eager runs more"):  # as compiled
        fused.lif_forward(many, *[None] * 7, False, False, **settings)


def test_switched_off_by_the_environment(monkeypatch):
    monkeypatch.setenv("NSNN_KERNELS", "eager")
    assert not fused.serves(torch.zeros(1, 2), Gaussian(0.3))
    monkeypatch.setenv("NSNN_KERNELS", "auto")
    assert fused.serves(torch.zeros(1, 2), Gaussian(0.3))
    monkeypatch.setenv("NSNN_KERNELS", "eagre")
    with pytest.raises(ValueError, match="auto or eager, got 'eagre'"):
        NoisyLIF(Gaussian(0.3))(torch.zeros(1, 2))


def test_c_and_python_agree_on_the_layout_of_a_layer():
    code = cpu.SOURCE.read_text()
    assert f"#define MAX_RANK {common.MAX_RANK}\n" in code
    assert f"int64_t law, reset, {', '.join(common.SWITCHES)};" in code

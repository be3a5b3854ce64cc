"""The Triton kernel against the C kernel, from the same seeds: compiled where there is CUDA, else interpreted."""

import importlib
import inspect

import pytest
import torch

from models import Gaussian, noise_generator
from models.functional import noisy_lif
from models.kernels import cpu
from models.kernels.common import Neuron, Saved, dense
from models.noise import LAWS
from tests.conftest import each_pair_is_fast, first_are_fast
from tests.models.reference_noise import close_calls, noise

cuda = pytest.importorskip("models.kernels.cuda")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PLACEMENTS = {"both": (True, True), "escape": (False, True), "membrane": (True, False), "noiseless": (False, False)}
NOISY = dict(membrane_noise=True, threshold_noise=True)
KNOWN = [law for law in LAWS if law.__name__ in cuda.KNOWN_LAWS]
every_law = pytest.mark.parametrize("law", KNOWN, ids=lambda law: law.__name__)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def moved(value, device):
    return value.to(device) if isinstance(value, torch.Tensor) else value


def compare(law, settings, shape, dtype=torch.float32, state=True, learns=(True,) * 4, layout=lambda x: x):
    """Run both kernels forward and backward, and compare all that they return."""
    arithmetic = torch.float64 if dtype == torch.float64 else torch.float32
    x = dense(layout((1.5 * torch.rand(shape, generator=seeded(1), dtype=torch.float64)).to(dtype)))
    given = torch.rand(shape[1:], generator=seeded(2)).to(arithmetic) if state else None
    seeds = torch.randint(-(2**63), 2**63 - 1, (shape[0],), generator=seeded(3))
    g_spikes = torch.randn(shape, generator=seeded(4)).to(dtype)
    g_last = torch.randn(shape[1:], generator=seeded(5)).to(arithmetic)
    numbers = (0.9, 0.4, 0.3, {"zero": 0.2, "subtract": 0.7, "none": 0.0}[settings.get("reset", "zero")])
    values = [torch.tensor(number, dtype=arithmetic) if learnt else number for number, learnt in zip(numbers, learns)]
    results = []
    for kernel, device in ((cpu.kernel(dtype), "cpu"), (cuda, DEVICE)):
        on_device = [moved(value, device) for value in (x, given, seeds, *values)]
        neuron = Neuron(law(0.3, 0.1), on_device[5], on_device[4], on_device[3], **settings, reset_value=on_device[6])
        forward = kernel.forward(*on_device[:3], neuron, True, True)
        spikes, last, u = forward
        gradients = (moved(g_spikes, device), moved(g_last, device))
        backward = kernel.backward(gradients, Saved(*on_device[:3], spikes, u), neuron, learns)
        results.append([value.cpu() for value in (*forward, *backward) if value is not None])
    (spikes, last, u, *grads), (spikes2, last2, u2, *grads2) = results
    if neuron.mean_field:
        torch.testing.assert_close(spikes2, spikes, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-6)
        same = torch.ones(shape[1:], dtype=torch.bool)
    else:
        same = ~close_calls(spikes, spikes2, u, neuron, noise(law(0.3, 0.1), shape, seeds))
    torch.testing.assert_close(last2[same], last[same], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(u2[:, same], u[:, same], rtol=1e-5, atol=1e-5)
    tolerance = dict(rtol=1e-2, atol=1e-2) if dtype == torch.bfloat16 else dict(rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(grads2[0][:, same], grads[0][:, same], **tolerance)
    if state:
        torch.testing.assert_close(grads2[1][same], grads[1][same], rtol=1e-5, atol=1e-5)
    if same.all():
        assert len(grads2) == len(grads) == 2 + sum(learns)
        for ours, theirs in zip(grads2[2:], grads[2:]):
            torch.testing.assert_close(ours.double(), theirs.double(), rtol=1e-4, atol=1e-3)


RESETS = [("zero", 2), ("subtract", 1), ("none", 3)]  # and numbers of time steps


@pytest.mark.parametrize("dtype", first_are_fast([torch.float32, torch.float64, torch.bfloat16]), ids=str)
@pytest.mark.parametrize(("law", "placement", "reset"), each_pair_is_fast(list(KNOWN), list(PLACEMENTS), RESETS))
def test_triton_equals_c(law, placement, reset, dtype):
    reset, timesteps = reset
    membrane, threshold = PLACEMENTS[placement]
    settings = dict(reset=reset, membrane_noise=membrane, threshold_noise=threshold)
    compare(law, settings, (timesteps, 2, 3, 37), dtype)


@every_law
@pytest.mark.parametrize("reset", ["zero", "subtract", "none"])
def test_mean_field(law, reset):
    compare(law, dict(reset=reset, mean_field=True), (3, 2, 50))


@pytest.mark.parametrize(("detach_reset", "decay_input"), [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("learns", [(False,) * 4, *(tuple(place == one for place in range(4)) for one in range(4))])
def test_detached_reset_scaled_input_and_numbers(detach_reset, decay_input, learns):
    settings = dict(NOISY, detach_reset=detach_reset, decay_input=decay_input)
    compare(Gaussian, settings, (3, 2, 50), state=False, learns=learns)


@pytest.mark.parametrize("shape", [(2, 1, 1), (2, 1, 511), (1, 3, 512), (2, 1, 513), (1, 5, 409)])
def test_sizes_that_are_not_a_multiple_of_a_block(shape):
    compare(Gaussian, NOISY, shape)


LAYOUTS = {
    "channels last": lambda x: x.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3),
    "transposed": lambda x: x.permute(0, 4, 3, 2, 1).contiguous().permute(0, 4, 3, 2, 1),
    "expanded over time": lambda x: x[:1].expand(x.shape),
}


@pytest.mark.parametrize("batch", [1, 3, 4])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(batch, layout):
    compare(Gaussian, dict(NOISY, decay_input=True), (3, batch, 5, 4, 3), layout=LAYOUTS[layout])


@pytest.mark.parametrize("module", ["cuda", "cuda_norm"])
def test_what_the_kernels_call_is_compiled_too(module):
    """The interpreter runs any function of Python."""
    names = vars(importlib.import_module(f"models.kernels.{module}"))
    kernels = [one for one in names.values() if hasattr(one, "fn")]
    called = {name for kernel in kernels for name in kernel.fn.__code__.co_names}
    assert kernels and not [name for name in called if inspect.isfunction(names.get(name))]


@pytest.mark.cuda
@pytest.mark.skipif(DEVICE != "cuda", reason="needs a CUDA device, and NSNN_TEST_CUDA=1")
def test_a_cuda_graph_draws_fresh_noise_at_each_replay():
    x = torch.full((2, 4, 1000), 0.9, device="cuda")
    for _ in range(3):
        noisy_lif(x, Gaussian(0.3), backend="fused")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        spikes, _ = noisy_lif(x, Gaussian(0.3), backend="fused")
    replays = []
    for _ in range(2):
        graph.replay()
        replays.append(spikes.clone())
    assert not torch.equal(*replays)


@pytest.mark.cuda
@pytest.mark.skipif(DEVICE != "cuda", reason="needs a CUDA device, and NSNN_TEST_CUDA=1")
def test_cpu_and_cuda_fire_alike_under_a_cpu_generator():
    x = torch.rand(3, 2, 1000, generator=seeded(1)) * 1.5
    results = []
    for device in ("cpu", "cuda"):
        with noise_generator(seeded(2)):
            results.append(noisy_lif(x.to(device), Gaussian(0.3), backend="fused")[0].cpu())
    assert (results[0] != results[1]).float().mean() < 1e-3

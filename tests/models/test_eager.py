"""The eager kernel where it stands alone: laws of one's own, and NSNN_KERNELS=eager."""

import contextlib

import pytest
import torch
import torch.utils.checkpoint
from torch import nn

from models import LIF, Gaussian, NoisyLIF, ParametricLIF, mean_field, noise_generator, noiseless
from tests.conftest import first_are_fast


class Own(Gaussian):
    """A law that no fused kernel knows."""


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def currents(*shape):
    return 1.5 * torch.rand(shape, generator=seeded(1))


NEURONS = {
    "LIF": lambda: LIF(Own(0.5)),
    "learnt decay": lambda: ParametricLIF(Own(0.5), decay_input=True),
    "noisy": lambda: NoisyLIF(Own(0.3)),
    "learnt scale": lambda: NoisyLIF(Own(0.3), placement="membrane", learnable_scale=True),
    "for channels": lambda: NoisyLIF(Own(nn.Parameter(torch.full((6,), 0.3)))),
    "mean field": lambda: NoisyLIF(Own(0.3)).as_mean_field(),
}
every_neuron = pytest.mark.parametrize("make", NEURONS.values(), ids=NEURONS)
some_neurons = pytest.mark.parametrize(
    "make",
    [pytest.param(make, marks=[] if name in ("LIF", "noisy") else pytest.mark.slow) for name, make in NEURONS.items()],
    ids=NEURONS,
)


# ---- torch.compile


@some_neurons
def test_it_compiles_into_one_graph(make):
    torch._dynamo.reset()
    net, x = nn.Sequential(nn.Linear(5, 6), make()), currents(3, 2, 5)
    results = []
    for run in (net, torch.compile(net, fullgraph=True, backend="aot_eager")):
        torch.manual_seed(1)
        net.zero_grad()
        spikes = run(x)
        spikes.square().sum().backward()
        results.append((spikes, *(parameter.grad for parameter in net.parameters())))
    for ours, theirs in zip(*results):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("block", first_are_fast([noiseless, mean_field, lambda net: noise_generator(seeded(2))]))
def test_blocks_around_what_is_compiled_hold(block):
    torch._dynamo.reset()
    net, x = nn.Sequential(nn.Linear(5, 6), NoisyLIF(Own(0.3))), currents(3, 2, 5)
    compiled = torch.compile(net, backend="eager")
    for _ in range(2):
        with block(net):
            expected = net(x)
        with block(net):
            torch.testing.assert_close(compiled(x), expected)


def test_a_full_graph_has_no_generator():
    torch._dynamo.reset()
    net, x = nn.Sequential(nn.Linear(5, 6), NoisyLIF(Own(0.3), placement="escape")), currents(3, 2, 5)
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    with pytest.raises(Exception, match="noise_generator in a full graph: leave out"), noise_generator(seeded()):
        compiled(x)
    with noiseless(net):
        assert torch.equal(compiled(x), net(x))


def test_one_graph_for_all_numbers_of_neurons():
    torch._dynamo.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    compiled = torch.compile(NoisyLIF(Own(0.3)), dynamic=True, backend=backend)
    for batch in (2, 3, 17, 100, 2000):
        compiled(currents(3, batch, 7))
    assert len(graphs) == 1


# ---- results


@every_neuron
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 3, 1), (2, 0, 3, 1)])
def test_steps_have_the_memory_format_of_the_input(make, order):
    """As those of the fused kernels; the next convolution need not reorder them."""
    step = torch.empty([(2, 6, 3, 4)[dim] for dim in order]).permute([order.index(dim) for dim in range(4)])
    spikes, state = make().run(torch.empty_like(step).fill_(0.9).expand(3, *step.shape))
    assert spikes.stride() == (step.numel(), *state.stride()) and state.stride() == step.stride()


@pytest.mark.parametrize("learnt", [False, True])
def test_noise_of_another_dtype_leaves_the_arithmetic_as_it_is(learnt):
    class Double(Gaussian):
        def sample(self, *args, **kwargs):
            return super().sample(*args, **kwargs).double()

    neuron = NoisyLIF(Double(0.3), learnable_scale=learnt)
    spikes, state = neuron.run(currents(3, 2, 6))
    assert spikes.dtype == state.dtype == torch.float32


# ---- what is saved for the backward pass


class Coin(Gaussian):
    """Noise of two values."""

    def sample(self, *args, **kwargs):
        return self.scale * super().sample(*args, **kwargs).sign()


class Rare(Gaussian):
    """Noise that is nearly always 0."""

    def sample(self, *args, **kwargs):
        return (super().sample(*args, **kwargs) > 2 * self.scale).float()


def run_again_otherwise(neuron, x):
    """Checkpointed, with another state of the random generator in the second run."""

    @contextlib.contextmanager
    def reseeded():
        torch.manual_seed(1000)
        yield

    spikes = torch.utils.checkpoint.checkpoint(
        neuron, x, use_reentrant=False, context_fn=lambda: (contextlib.nullcontext(), reseeded())
    )
    spikes.sum().backward()


@pytest.mark.parametrize("shape", [(20, 1, 1), (6, 3, 4), (2, 3, 700)])
@pytest.mark.parametrize("placement", ["both", "escape", "membrane"])
def test_a_second_run_with_other_noise_of_few_values_is_noticed(shape, placement):
    neuron, x = NoisyLIF(Coin(0.3), placement=placement), currents(*shape).requires_grad_()
    for seed in range(12):
        torch.manual_seed(seed)
        with pytest.raises(RuntimeError, match="use models.checkpoint"):
            run_again_otherwise(neuron, x)


def test_rare_noise_too():
    neuron, x = NoisyLIF(Rare(0.3)), currents(4, 50, 40).requires_grad_()
    for seed in range(12):
        torch.manual_seed(seed)
        with pytest.raises(RuntimeError, match="use models.checkpoint"):
            run_again_otherwise(neuron, x)


ROUNDED = {
    "bfloat16": lambda t: t.to(torch.bfloat16) if t.is_floating_point() else t,
    "half": lambda t: t.half() if t.is_floating_point() else t,
    "decimals": lambda t: t.round(decimals=2) if t.is_floating_point() else t,
}


@every_neuron
@pytest.mark.parametrize("pack", ROUNDED.values(), ids=ROUNDED)
@pytest.mark.parametrize("shape", [(3, 2, 6), (3, 0, 6), (0, 2, 6)])
def test_hooks_may_round_what_is_saved(make, pack, shape):
    neuron, x = make(), currents(*shape)
    found = []
    for hook in (lambda t: t, pack):
        given = x.clone().requires_grad_()
        unpack = torch.autograd.graph.saved_tensors_hooks(hook, lambda t: t.float() if t.is_floating_point() else t)
        with noise_generator(seeded()), unpack:
            spikes = neuron(given)
        spikes.sum().backward()
        found.append(given.grad)
    torch.testing.assert_close(*found, rtol=0.05, atol=0.05)

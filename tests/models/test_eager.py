"""The eager kernel where it stands alone: laws of one's own, and NSNN_KERNELS=eager."""

import pytest
import torch
from torch import nn

from models import LIF, Gaussian, NoisyLIF, ParametricLIF, mean_field, noise_generator, noiseless


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


# ---- torch.compile


@every_neuron
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


@pytest.mark.parametrize("block", [noiseless, mean_field, lambda net: noise_generator(seeded(2))])
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
    net, x = nn.Sequential(nn.Linear(5, 6), NoisyLIF(Own(0.3))), currents(3, 2, 5)
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    with pytest.raises(Exception, match="noise_generator in a full graph: leave out"), noise_generator(seeded()):
        compiled(x)
    with noiseless(net):
        assert torch.equal(compiled(x), net(x))

"""Lengths and batch sizes that are symbols: one compiled network, or one exported program, for all of them."""

import pytest
import torch
from torch import nn
from torch._dynamo.backends.debugging import aot_eager
from torch.export import Dim, export
from torch.fx.experimental.proxy_tensor import make_fx

from models import LIF, NoisyLIF, ParametricLIF, build_model, build_neuron, noise_generator, noiseless
from models.layers import over_time
from tests.conftest import first_are_fast


class Pixels(nn.Module):
    """A convolution over time, in channels-last where its weights are."""

    def __init__(self):
        super().__init__()
        self.convolution, self.neuron = nn.Conv2d(3, 4, 3), NoisyLIF()

    def forward(self, x):
        return self.neuron(over_time(self.convolution, x))


# PyTorch compiles for equal lengths of two dimensions apart, so the batch and the pixels are longer than any sequence.
NETWORKS = {
    "LIF": (LIF, (17, 5)),
    "noisy": (lambda: nn.Sequential(nn.Linear(5, 7), NoisyLIF(learnable_scale=True), ParametricLIF()), (17, 5)),
    "pixels": (Pixels, (17, 3, 19, 18)),
    "channels last": (lambda: Pixels().to(memory_format=torch.channels_last), (17, 3, 19, 18)),
}


@pytest.mark.parametrize(
    ("make", "shape", "learns"),
    [
        (*NETWORKS["LIF"], False),
        pytest.param(*NETWORKS["noisy"], True, marks=pytest.mark.slow),
        pytest.param(*NETWORKS["pixels"], True, marks=pytest.mark.slow),
        pytest.param(*NETWORKS["channels last"], False, marks=pytest.mark.slow),
    ],
)
def test_compiled_at_most_three_times_for_all_lengths(make, shape, learns):
    torch._dynamo.reset()
    compilations, net = [], make()

    def backend(graph, inputs):
        compilations.append(graph)
        return aot_eager(graph, inputs)

    compiled = torch.compile(net, dynamic=True, backend=backend, fullgraph=True)
    for timesteps in (2, 3, 4, 5, 7, 11, 15):
        results = []
        for function in (net, compiled):
            x = 1.5 * torch.rand(timesteps, *shape, generator=torch.Generator().manual_seed(1))
            x.requires_grad_(learns)
            with noise_generator(torch.Generator().manual_seed(2)), torch.set_grad_enabled(learns):
                spikes = function(x)
            if learns:
                spikes.square().sum().backward()
            results.append((spikes.detach(), x.grad))
        assert torch.equal(results[0][0], results[1][0])
        if learns:
            torch.testing.assert_close(results[0][1], results[1][1])
    assert len(compilations) <= 3
    torch._dynamo.reset()


@pytest.mark.parametrize("neuron", ["LIF", "NILIF"])
@pytest.mark.parametrize("is_image", first_are_fast([True, False]))
def test_one_compiled_network_for_all_numbers_of_timesteps(neuron, is_image):
    torch._dynamo.reset()
    compilations = []

    def backend(graph, inputs):
        compilations.append(graph)
        return graph

    net = build_model("toynet", neuron=build_neuron(neuron), in_shape=(3, 8, 8), num_classes=2, width=0.1).eval()
    compiled = torch.compile(net, dynamic=True, backend=backend, fullgraph=True)
    for timesteps in (2, 3, 4, 5, 9):
        image, results = torch.rand(17, 3, 8, 8, generator=torch.Generator().manual_seed(1)), []
        for function in (net, compiled):
            with noise_generator(torch.Generator().manual_seed(2)):
                given = (image, timesteps) if is_image else (image.expand(timesteps, *image.shape),)
                results.append(function(*given))
        torch.testing.assert_close(*results)
    assert len(compilations) == 1
    torch._dynamo.reset()


@pytest.mark.parametrize(("make", "shape"), list(NETWORKS.values())[:3], ids=list(NETWORKS)[:3])
def test_exported_with_a_free_length_and_batch(make, shape):
    net = make()
    with noiseless(net):
        program = export(net, (torch.rand(3, *shape),), dynamic_shapes=({0: Dim("T"), 1: Dim("B")},)).module()
        for timesteps, batch in ((2, 7), (9, 2)):
            x = 1.5 * torch.rand(timesteps, batch, *shape[1:])
            assert torch.equal(program(x), net(x))


def test_traced_with_symbolic_shapes():
    program = make_fx(LIF(), tracing_mode="symbolic")(torch.rand(3, 2, 4))
    x = 1.5 * torch.rand(7, 5, 4)
    assert torch.equal(program(x), LIF()(x))

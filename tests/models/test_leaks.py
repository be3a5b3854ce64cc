"""Nothing is left behind by thousands of training steps."""

import gc

import pytest
import torch
from torch import nn

from models import build_neuron, packed_spikes
from models.vgg import SpikingVGG
from tests.fresh import allocated, in_a_fork


def training(memory):
    """A function that trains a tiny network for one step: convolutions, batch norm, neurons, a linear layer."""
    torch.manual_seed(0)
    net = SpikingVGG(build_neuron("NILIF"), (1, 4, 4), 3, plan=(8,))
    net.memory = "fast" if memory == "packed_spikes" else memory
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    x, target = torch.rand(4, 1, 4, 4), torch.tensor([0, 1, 2, 0])

    def step():
        if memory == "packed_spikes":
            with packed_spikes(net):
                logits = net(x, timesteps=2)
        else:
            logits = net(x, timesteps=2)
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(logits.mean(0), target).backward()
        optimizer.step()

    return step


def living():
    """How many objects and tensors there are in Python, and the bytes of the tensors."""
    gc.collect()
    objects = gc.get_objects()
    # Of no other type: compilers keep fake ones.
    tensors = [thing for thing in objects if type(thing) in (torch.Tensor, nn.Parameter)]
    return len(objects), len(tensors), sum(tensor.numel() * tensor.itemsize for tensor in tensors)


@pytest.mark.slow
@pytest.mark.parametrize("memory, steps", [("fast", 400), ("lean", 400), ("packed_spikes", 400), ("smallest", 2000)])
@in_a_fork
def test_thousands_of_steps_leave_nothing_behind(memory, steps):
    step, found = training(memory), []
    for count in (200, steps):
        for _ in range(count):
            step()
        found.append((*living(), allocated()))
    (objects, *tensors, heap), (objects_later, *tensors_later, heap_later) = found
    assert tensors == tensors_later
    # Less than an object of 50 bytes in each step.
    assert objects_later - objects < 100 and heap_later - heap < 50 * steps

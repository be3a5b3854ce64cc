"""SpikingJelly's memopt: blocks run again in the backward pass, with the same noise, instead of keeping tensors."""

import copy

import torch
from nsnn import Gaussian, interop
from spikingjelly.activation_based import functional, memopt, neuron
from spikingjelly.activation_based.model import sew_resnet


def train_step(net):
    functional.reset_net(net)
    torch.manual_seed(0)  # the noise is that of PyTorch's default generator
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        net(images).square().sum().backward()
    return f"{sum(tensor.nbytes for tensor in kept) / 1e6:.1f} MB"


net = sew_resnet.sew_resnet18(cnf="ADD", num_classes=10, spiking_neuron=neuron.LIFNode)
functional.set_step_mode(net, "m")
net, report = interop.convert(net, noise=Gaussian(0.3))
images = torch.rand(4, 2, 3, 32, 32)  # [T, B, C, H, W]
lean = memopt.optimize_memory(copy.deepcopy(net), sew_resnet.BasicBlock, lambda net: net(images), level=1)
print(f"kept for the backward pass: {train_step(net)}, with memopt {train_step(lean)}")
assert all(torch.equal(a.grad, b.grad) for a, b in zip(net.parameters(), lean.parameters()))

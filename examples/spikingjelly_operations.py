"""SpikingJelly's operation counter: synaptic operations and energy of a converted network, without noise and with it.

A fused kernel is one operation to it: it counts additions inside a neuron whose `backend` is "eager".
"""

import torch
from nsnn import Gaussian, interop, noiseless
from spikingjelly.activation_based import functional, layer, neuron, op_counter

net = torch.nn.Sequential(
    layer.Conv2d(1, 16, 3), neuron.LIFNode(), layer.Conv2d(16, 16, 3), neuron.LIFNode(), layer.Flatten()
)
functional.set_step_mode(net, "m")
net, report = interop.convert(net, noise=Gaussian(0.3))
images = 3 * torch.rand(8, 1, 28, 28).expand(4, -1, -1, -1, -1)  # [T, B, C, H, W]
with noiseless(net):
    quiet = op_counter.estimate_simple_energy(net, images)
functional.reset_net(net)
noisy = op_counter.estimate_simple_energy(net, images)
for name, estimate in (("noiseless", quiet), ("noisy", noisy)):
    print(f"{name}: {estimate.counts['synop']} synaptic operations, {estimate.energy_total_pj / 1e6:.0f} microjoules")

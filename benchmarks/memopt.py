"""SpikingJelly's memopt (Huang et al., ICLR 2026) on networks of this project, for comparison with their own settings.

It computes modules again in the backward pass, of which it keeps the input, as bits where that is spikes. Its level 1
takes all modules of some types. Levels 2 to 4 split those where that lowers the peak, which they measure on CUDA alone
(elsewhere: "memopt levels 2-4 require CUDA memory profiling"). Here are both ends of that search: whole blocks, and all
blocks split, as in SpikingJelly's example, into neurons and what is before them.
"""

from models.layers import ConvNorm
from models.resnet import ResidualBlock
from models.vgg import SpikingConv

CANDIDATES = ("LIFNode", "LIFNode memopt", "LIFNode memopt-split")


def neuron():
    """The dynamics of `LIF`: SpikingJelly's decay is 1 - 1 / tau."""
    from spikingjelly.activation_based.neuron import LIFNode

    return LIFNode(tau=2.0, decay_input=False, step_mode="m")


def prepare(net, memory, forward):
    """Let a network of LIFNodes start from rest in each forward pass; with a memory setting, in less memory.

    Args:
        memory: "", "memopt" or "memopt-split".
        forward: runs the network once, for memopt to see which inputs are spikes.
    """
    from spikingjelly.activation_based import functional
    from spikingjelly.activation_based.memopt import optimize_memory
    from spikingjelly.activation_based.neuron import LIFNode

    net.register_forward_pre_hook(lambda net, inputs: functional.reset_net(net))
    parts = (ConvNorm, LIFNode)  # also the stem, which is in no block
    targets = {"memopt": (ResidualBlock, SpikingConv, *parts), "memopt-split": parts}
    if memory:
        optimize_memory(net, targets[memory], lambda net: forward(), level=1)

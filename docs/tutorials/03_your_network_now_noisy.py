# %% [markdown]
# # Your SpikingJelly, snnTorch or norse network, now noisy
#
# **I have a trained network of another library. What must I change to give its neurons noise?**
#
# One line: `interop.convert(net, noise=Gaussian(0.3))`. Its neurons become neurons of this package, called as before;
# all else stays. We do this to a small network of each library that is installed, and train it on with noise.

# %%
import importlib.util
import sys
from pathlib import Path

sys.path.insert(0, str(Path(globals().get("__file__", "_")).resolve().parents[2]))  # the repository

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import nn

from dataset_utils import DATASETS
from models import Gaussian, NoisyLIF, interop, noiseless, time_first

plt.style.use("tableau-colorblind10")
T, NOISE = 4, Gaussian(0.3)
parts = DATASETS["mnist5k"].load()
test_x, test_y = parts.test.images.flatten(1) / 255, parts.test.labels

# %% [markdown]
# ## The networks
#
# Each function builds 784 - 100 spiking neurons - 10 outputs, and says how the library runs it over `x` [T, B, 784].
# The last one is the network as you would build it here.


# %%
def of_spikingjelly():
    from spikingjelly.activation_based import functional, layer, neuron

    def run(net, x):  # all steps in one call, in step mode "m"
        outputs = net(x)
        functional.reset_net(net)
        return outputs

    net = nn.Sequential(layer.Linear(784, 100), neuron.LIFNode(tau=2.0), layer.Linear(100, 10))
    functional.set_step_mode(net, "m")
    return net, run


def of_snntorch():
    import snntorch
    from snntorch import utils

    def run(net, x):  # step by step; the neurons keep their state
        outputs = torch.stack([net(x_t) for x_t in x])
        utils.reset(net)
        return outputs

    return nn.Sequential(nn.Linear(784, 100), snntorch.Leaky(beta=0.5, init_hidden=True), nn.Linear(100, 10)), run


def of_norse():
    from norse.torch import LIFBoxCell, LIFBoxParameters, SequentialState

    def run(net, x):  # step by step; the state is handed on
        outputs, state = [], None
        for x_t in x:
            output, state = net(x_t, state)
            outputs.append(output)
        return torch.stack(outputs)

    cell = LIFBoxCell(LIFBoxParameters(tau_mem_inv=torch.tensor(500.0)))  # dt is 1 ms, so that it leaks by a half
    return SequentialState(nn.Linear(784, 100), cell, nn.Linear(100, 10)), run


def of_nsnn():
    net = time_first(nn.Sequential(nn.Linear(784, 100), NoisyLIF(NOISE, placement="escape"), nn.Linear(100, 10)))
    return net, lambda net, x: net(x)


# %% [markdown]
# ## Train, convert, check, train on
#
# `verify` compares each new neuron with the old one on a sample, without noise.


# %%
def train(net, run, epochs):
    optimizer = torch.optim.Adam(net.parameters(), 5e-3)
    for _ in range(epochs):
        for images, target in parts.train.batches(100, torch.device("cpu"), shuffle=True):
            loss = F.cross_entropy(run(net, images.flatten(1).expand(T, -1, -1)).mean(0), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


@torch.no_grad()
def accuracy(net, run):
    return (run(net, test_x.expand(T, -1, -1)).mean(0).argmax(-1) == test_y).float().mean().item()


STAGES = "trained", "converted, without its noise", "converted, with noise", "trained on with noise"
BUILDERS = {"spikingjelly": of_spikingjelly, "snntorch": of_snntorch, "norse": of_norse, "nsnn": of_nsnn}
results, mismatches = {}, {}
for library, build in BUILDERS.items():
    if library != "nsnn" and importlib.util.find_spec(library) is None:
        print(f"{library} is not installed: pip install {library}")
        continue
    torch.manual_seed(0)
    net, run = build()
    with noiseless(net):  # the networks of other libraries have no noise anyway
        train(net, run, epochs=3)
        found = [accuracy(net, run)]
    if library != "nsnn":
        sample = test_x[:200] if library != "spikingjelly" else test_x[:200].expand(T, -1, -1)  # for one call
        net, report = interop.convert(net, noise=NOISE, placement="escape", verify=sample)
        print(f"{library}, {report}")
        mismatches[library] = report.mismatches
    with noiseless(net):
        found.append(accuracy(net, run))
    found.append(accuracy(net, run))
    train(net, run, epochs=1)
    results[library] = found + [accuracy(net, run)]
    print(", ".join(f"{stage}: {100 * value:.1f} %" for stage, value in zip(STAGES, results[library])))

# %% [markdown]
# No spike differs without noise, so the second accuracy is the first one. (The network of this package needs no
# conversion: it was trained inside `noiseless`.) Noise costs little here, as the outputs average over many neurons and
# steps; one more epoch, with noise, lets the weights adapt to it. With 1,000 test images, each accuracy has a standard
# error of about one per cent, so the small differences mean nothing.

# %%
figure, axes = plt.subplots(figsize=(8, 3.2), layout="constrained")
for place, (stage, marker) in enumerate(zip(STAGES, "osD^")):
    places = [library + 0.2 * place for library in range(len(results))]
    axes.plot(places, [100 * one[place] for one in results.values()], marker, ms=8, label=stage)
axes.set_xticks([library + 0.3 for library in range(len(results))], results)
axes.set(ylabel="test accuracy (%)", ylim=(88, 96))
axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %% [markdown]
# ## What to try
#
# - `noise=None` makes deterministic neurons with the surrogate gradients that yours had; they run on fused kernels.
# - `learnable_scale`: give `noise=Gaussian(nn.Parameter(torch.tensor(0.3)))`, and the network learns how noisy to be.
#
# Reference: [what is equal to what, and what is refused](../interop.md),
# [conversion](../../models/interop/conversion.py), [neurons](../../models/neurons.py).

# %% [markdown]
# # Convert a ReLU network, calibrate it, fine-tune it
#
# **I have a trained network with ReLUs. Can I run it with spikes, and what do I lose?**
#
# An integrate-and-fire neuron that subtracts its threshold $\vartheta$ when it fires turns a constant input $x$ into
# spikes at the rate $x / \vartheta$, between 0 and 1 per step. Times $\vartheta$, this is a ReLU that saturates at
# $\vartheta$ and is rounded to steps of $\vartheta / T$:
#
# $$\frac{\vartheta}{T} \sum_{t=1}^{T} s_t \;\approx\; \min(\max(x, 0),\ \vartheta).$$
#
# So each channel needs a threshold that is neither too low (it saturates) nor too high (it is coarse). `convert` finds
# it from a few batches of samples.

# %%
import sys
from pathlib import Path

sys.path.insert(0, str(Path(globals().get("__file__", "_")).resolve().parents[2]))  # the repository

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import nn

from dataset_utils import DATASETS
from models import IF, Gaussian, NoisyIF, convert

torch.manual_seed(0)
plt.style.use("tableau-colorblind10")
parts = DATASETS["mnist5k"].load()
test_x, test_y = parts.test.images / 255, parts.test.labels


def train(net, epochs, lr):
    optimizer = torch.optim.Adam(net.parameters(), lr)
    for _ in range(epochs):
        for images, target in parts.train.batches(100, torch.device("cpu"), shuffle=True):
            logits = net(images)
            loss = F.cross_entropy(logits if logits.dim() == 2 else logits.mean(0), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


@torch.no_grad()
def accuracy(net):
    logits = net(test_x)
    return ((logits if logits.dim() == 2 else logits.mean(0)).argmax(-1) == test_y).float().mean().item()


# %% [markdown]
# ## The trained network

# %%
net = nn.Sequential(
    nn.Conv2d(1, 8, 5, stride=2), nn.ReLU(), nn.Conv2d(8, 16, 5, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10)
)
train(net, epochs=5, lr=5e-3)
relu = accuracy(net)
print(f"ReLU: {100 * relu:.1f} %")

# %% [markdown]
# ## Converted
#
# The copy maps images [B, C, H, W], shown for T steps, to logits [T, B, K], of which we take the mean. With
# `calibrate`, thresholds suit the given samples and T; without, all are 1, whatever values the ReLUs had.

# %%
samples = [parts.train.images[:500] / 255]
steps = (1, 2, 4, 8, 16, 32)
calibrated = [accuracy(convert(net, timesteps=T, calibrate=samples)) for T in steps]
plain = [accuracy(convert(net, lambda: IF(reset="subtract"), timesteps=T)) for T in steps]
for T, with_, without in zip(steps, calibrated, plain):
    print(f"T = {T:2d}: calibrated {100 * with_:.1f} %, not calibrated {100 * without:.1f} %")

# %% [markdown]
# With one step, rates are 0 or 1 and the network loses accuracy; with more, calibrated thresholds bring it back to
# about that of the ReLU network, which thresholds of 1 do not reach.
#
# ## Fine-tuned with noise
#
# Neurons with noise have a gradient, so a network with few steps can be trained on. Noise at the threshold alone
# (`placement="escape"`) does not add up in neurons without a leak.

# %%
few = 1
noisy = convert(
    net,
    lambda: NoisyIF(Gaussian(0.2), placement="escape", reset="subtract", v_leak=0.5),
    timesteps=few,
    calibrate=samples,
)
before = accuracy(noisy)
train(noisy, epochs=3, lr=4e-3)
after = accuracy(noisy)
print(f"T = {few}, with noise: {100 * before:.1f} % as converted, {100 * after:.1f} % after three epochs")

figure, axes = plt.subplots(figsize=(7, 3.4), layout="constrained")
axes.axhline(100 * relu, ls="--", color="C3", label="ReLU")
axes.plot(steps, [100 * one for one in calibrated], "o-", label="calibrated")
axes.plot(steps, [100 * one for one in plain], "s-", label="not calibrated")
axes.plot(few, 100 * after, "*", ms=12, color="black", label="with noise, fine-tuned")
axes.set(xscale="log", xlabel="time steps T", ylabel="test accuracy (%)")
axes.set_xticks(steps, steps)
axes.minorticks_off()
axes.legend(fontsize=8)
plt.show()

# %% [markdown]
# Three epochs with noise bring a network of a single step, in which each neuron says yes or no once, above the
# conversion alone.
#
# ## What to try
#
# - Your own network in place of `net`; `convert` says what it cannot follow, and why.
# - `quantile=0.99`: which part of the values a neuron that fires at every step stands for.
# - A network from scratch, without calibration: `convert(net, neuron=build_neuron("NILIF"), timesteps=4)`.
#
# Reference: [`convert`](../../models/convert.py), [calibration](../../models/calibration.py). Measured on larger
# networks, beside SpikingJelly's conversion: `benchmarks/convert.py`.

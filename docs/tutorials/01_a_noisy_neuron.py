# %% [markdown]
# # A noisy neuron
#
# **What does noise do to a spiking neuron, and why does it make the neuron trainable?**
#
# A leaky integrate-and-fire neuron adds its input $x_t$ to a potential $u$ that leaks by a factor $\lambda$, fires when
# $u$ exceeds the threshold $\vartheta$, and starts again from zero. With noise of distribution function $F$ at the
# threshold, firing is a matter of probability:
#
# $$u_t = \lambda\, u_{t-1} (1 - s_{t-1}) + x_t, \qquad P(s_t = 1) = F(u_t - \vartheta).$$

# %%
import sys
from pathlib import Path

sys.path.insert(0, str(Path(globals().get("__file__", "_")).resolve().parents[2]))  # the repository

import matplotlib.pyplot as plt
import torch

from models import Gaussian, NoisyLIF, noise_generator, noiseless  # with the package installed: from nsnn import ...

torch.manual_seed(0)
plt.style.use("tableau-colorblind10")

# %% [markdown]
# ## The firing probability is $F$
#
# We give 20,000 copies of a neuron the same current for one step, and count how many fire. `placement="escape"` puts
# the noise at the threshold alone; tensors are time first, `[T, B, ...]`.

# %%
law = Gaussian(0.3)  # standard deviation, in the units of the potential
neuron = NoisyLIF(law, threshold=1.0, decay=0.8, placement="escape")
copies = 20_000
current = torch.linspace(0, 2, 41)
x = current.expand(1, copies, -1).clone().requires_grad_()  # [T = 1, B = copies, currents]
spikes = neuron(x)
frequency = spikes.detach().mean((0, 1))
error = (frequency - law.cdf(current - 1)).abs().max().item()
allowed = 5 * 0.5 / copies**0.5  # five standard errors of a frequency
print(f"largest difference from F: {error:.4f}, of which chance explains up to {allowed:.4f}")

# %% [markdown]
# ## Its slope is the surrogate gradient
#
# A single spike is 0 or 1 and has no useful derivative. Its expectation has one: the slope of $F$ is $F'$, the density
# of the noise. This is what the backward pass uses, whether a copy fired or not.

# %%
spikes.sum().backward()
gradient = x.grad[0]  # [copies, currents]
print(f"differs between copies by {(gradient.max(0).values - gradient.min(0).values).max():.1e}")
print(f"differs from the density by {(gradient[0] - law.pdf(current - 1)).abs().max():.1e}")

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
left.plot(current, law.cdf(current - 1), label=r"$F(u - \vartheta)$")
left.plot(current, frequency, ".", label="share of copies that fired")
left.set(xlabel="potential u (thresholds)", ylabel="firing probability")
right.plot(current, law.pdf(current - 1), label=r"density $F'(u - \vartheta)$")
right.plot(current, gradient[0], ".", label="gradient of autograd")
between = (current[1:] + current[:-1]) / 2
right.plot(between, frequency.diff() / current.diff(), "x", label="slope of the measured shares")
right.set(xlabel="potential u (thresholds)", ylabel="slope (1 / threshold)", ylim=(0, 2))
for axes in (left, right):
    axes.legend(fontsize=8)
plt.show()

# %% [markdown]
# On the left, the counts lie on $F$. On the right, the gradient lies exactly on the density, and the slope of the
# counts scatters around it: the "surrogate" gradient is the true gradient of the firing probability.
#
# ## What one draw means
#
# Over several steps, one draw of the noise decides each spike *and* the reset that follows it, so each draw is one
# possible history of the neuron. Here a constant current brings the potential to 0.9 of the threshold at most.

# %%
steps, trials = 60, 200
weak = torch.full((steps, trials, 1), 0.18)
with noise_generator(torch.Generator().manual_seed(1)):
    trains, _, potentials = neuron.run(weak, potentials=True)  # potentials before each reset
with noise_generator(torch.Generator().manual_seed(1)):
    repeated = neuron(weak)
with noiseless(neuron):
    silent = neuron(weak)
print("the same seed gives the same spikes:", torch.equal(trains, repeated))
print(f"highest potential: {potentials.max():.2f}; spikes without noise: {int(silent.sum())}")
print(f"spikes per trial with noise: {trains.sum(0).mean():.1f}, from {trains.sum(0).min():.0f} "
      f"to {trains.sum(0).max():.0f}")  # fmt: skip

figure, panels = plt.subplots(3, 1, figsize=(9, 5), sharex=True, layout="constrained", height_ratios=(2, 1, 1))
panels[0].step(range(steps), potentials[:, 0, 0], where="mid", label="potential of the first trial")
fired = trains[:, 0, 0].nonzero().flatten()
panels[0].plot(fired, [1.2] * len(fired), "k|", ms=10, label="its spikes")
panels[0].axhline(1, ls="--", color="C3", label="threshold")
panels[0].set(ylabel="u (thresholds)", ylim=(0, 1.8))
panels[0].legend(fontsize=8, ncols=3, loc="upper right")
when, trial = trains[:, :20, 0].nonzero().T
panels[1].plot(when, trial, "k|")
panels[1].set(ylabel="trial")
panels[2].bar(range(steps), trains.mean((1, 2)).numpy(), width=1.0)
panels[2].set(xlabel="time (steps)", ylabel="share firing")
plt.show()

# %% [markdown]
# Without noise the neuron is silent: its potential never reaches the threshold. With noise it fires below the
# threshold, at other times in each trial (middle), and the share of trials that fire (bottom) carries the current. A
# single draw is thus a noisy sample of the answer; the mean over draws is the answer.
#
# ## What to try
#
# - Another law: `Logistic`, `Triangular`, `Uniform` or `Cauchy`. Both curves of the first picture change together.
# - `placement="both"`, the default, draws noise in the membrane as well: the measured curve becomes wider than $F$.
# - `mean_field` instead of `noiseless`: the neuron then outputs probabilities instead of spikes.
#
# Reference: [noise laws](../../models/noise.py), [neurons](../../models/neurons.py),
# [equations](../../models/functional.py). More: [why the surrogate gradient is a density](../theory.md).

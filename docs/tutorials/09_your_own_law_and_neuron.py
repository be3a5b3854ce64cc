# %% [markdown]
# # Write your own noise law and your own neuron
#
# **The noise in my model is not Gaussian, and my neurons tire. What must I write?**
#
# A law needs three functions, a neuron one. Everything else, gradients, training and streaming, follows.

# %%
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(globals().get("__file__", "_")).resolve().parents[2]))  # the repository

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

from dataset_utils import DATASETS
from models import NoiseLaw, NoisyLIF, Stream, build_model, noise_generator

torch.manual_seed(0)
plt.style.use("tableau-colorblind10")

# %% [markdown]
# ## A law
#
# The hyperbolic secant has heavier tails than a Gaussian and lighter ones than a Cauchy law. With $z = x / s$:
#
# $$F'(x) = \frac{1}{2 s \cosh(\pi z / 2)}, \qquad F(x) = \frac{2}{\pi} \arctan e^{\pi z / 2}, \qquad
#   F^{-1}(p) = \frac{2 s}{\pi} \ln \tan \frac{\pi p}{2}.$$


# %%
class Secant(NoiseLaw):
    """Hyperbolic secant of standard deviation `scale`."""

    def cdf(self, x):
        return 2 / math.pi * torch.atan(torch.exp(math.pi / 2 * (x - self.loc) / self.scale))

    def pdf(self, x):
        return 0.5 / self.scale / torch.cosh(math.pi / 2 * (x - self.loc) / self.scale)

    def icdf(self, p):
        return self.loc + self.scale * 2 / math.pi * torch.log(torch.tan(math.pi / 2 * p))


# %% [markdown]
# Three checks find most mistakes: the density is the slope of $F$, the quantile undoes $F$, and draws follow $F$ (draws
# come from the quantile, `law.sample`).

# %%
law = Secant(0.3)
x = torch.linspace(-2, 2, 401, dtype=torch.float64)
slope = torch.autograd.functional.jvp(law.cdf, x, torch.ones_like(x))[1]
slope_error = (slope - law.pdf(x)).abs().max().item()
quantile_error = (law.icdf(law.cdf(x)) - x).abs().max().item()
sample = law.sample((100_000,), generator=torch.Generator().manual_seed(0))
print(f"errors: slope {slope_error:.0e}, quantile {quantile_error:.0e}; "
      f"standard deviation of draws {sample.std():.3f}, by quadrature {law.std:.3f}")  # fmt: skip

figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
axes.hist(sample, 100, range=(-2, 2), density=True, color="C2", label="draws")
axes.plot(x, law.pdf(x), label="density: also the surrogate gradient")
axes.set(xlabel="noise (thresholds)", ylabel="density (1 / threshold)", ylim=(0, 2.2))
axes.legend(fontsize=8)
plt.show()

# %% [markdown]
# ## A neuron
#
# This one tires: its input counts with a vigour $v$ that a spike lowers by a part $c$, and that recovers in about
# $\tau$ steps:
#
# $$v_{t+1} = v_t\,(1 - c\, s_t) + (1 - v_t) / \tau.$$
#
# A subclass overrides `step` (one step) or `run` (all steps), whichever is easier. The state is whatever `step`
# returns.


# %%
class TiringLIF(NoisyLIF):
    """A `NoisyLIF` whose input weakens with each spike."""

    cost, recovery = 0.1, 20.0

    def step(self, x_t, state=None):
        u, vigour = (None, torch.ones_like(x_t)) if state is None else state
        spike, u = super().step(vigour * x_t, u)
        return spike, (u, vigour * (1 - self.cost * spike) + (1 - vigour) / self.recovery)


current = torch.full((60, 500, 1), 1.2)
rates = {}
for kind in (NoisyLIF, TiringLIF):
    with noise_generator(torch.Generator().manual_seed(0)), torch.no_grad():
        rates[kind.__name__] = kind(law, placement="escape")(current).mean((1, 2))
    print(f"{kind.__name__}: {rates[kind.__name__][:5].mean():.2f} spikes per step at first, "
          f"{rates[kind.__name__][-20:].mean():.2f} at the end")  # fmt: skip

figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
for name, rate in rates.items():
    axes.plot(rate, label=name)
axes.set(xlabel="time (steps)", ylabel="share of 500 neurons firing", ylim=(0, None))
axes.legend(fontsize=8)
plt.show()

# %% [markdown]
# The current is constant; the tiring neuron answers its onset, and then less and less.
#
# ## Both in a network
#
# The class and the law work wherever those of the package do. A law of your own runs in plain PyTorch instead of the
# fused kernels, which know only theirs.

# %%
parts = DATASETS["mnist5k"].load()
neuron = lambda: TiringLIF(law, placement="escape")  # noqa: E731
net = build_model("toynet", neuron=neuron, in_shape=(1, 28, 28), num_classes=10)
optimizer = torch.optim.Adam(net.parameters(), 1e-2)
for _ in range(4):
    for images, target in parts.train.batches(100, torch.device("cpu"), shuffle=True):
        loss = F.cross_entropy(net(images, timesteps=3).mean(0), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
net.eval()
with torch.no_grad():
    test = parts.test.images / 255
    accuracy = (net(test, timesteps=3).mean(0).argmax(-1) == parts.test.labels).float().mean().item()
    stream = Stream(net)
    outputs = [stream(test[:5]) for _ in range(3)]
print(f"test accuracy {100 * accuracy:.1f} %; in a stream, the state is (u, vigour): {len(stream.state[0])} tensors")

# %% [markdown]
# ## What to try
#
# - A skewed law would make $F(u - \vartheta)$ asymmetric; here laws are symmetric about their `loc`.
# - Make `cost` an `nn.Parameter`: gradients flow through the vigour, so that it can be learnt.
# - To give them names for the command line, `LAWS` and the registry take entries: [extending](../extending.md).
#
# Reference: [laws](../../models/noise.py), [the protocol of neurons](../../models/base.py).

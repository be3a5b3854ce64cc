# %% [markdown]
# # Robustness you may believe
#
# **My network withstands an attack. Is it robust, or was the attack weak?**
#
# An attack looks for an image $x'$ with $|x' - x| \le \varepsilon$ in every pixel that the network gets wrong. The
# accuracy it leaves is only an *upper bound* on robustness. In spiking networks attacks fail easily, because the
# surrogate gradient may vanish, or because noise hides the way.

# %%
import sys
from pathlib import Path

sys.path.insert(0, str(Path(globals().get("__file__", "_")).resolve().parents[2]))  # the repository

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F

from dataset_utils import DATASETS
from models import LIF, Gaussian, NoisyLIF, build_model
from tools.analysis.statistics import paired_difference
from tools.attacks.campaign import Campaign, Preset
from tools.attacks.report import ALL
from tools.inference import ForwardPass

plt.style.use("tableau-colorblind10")
CPU = torch.device("cpu")
forward = ForwardPass(CPU, timesteps=2)
parts = DATASETS["mnist5k"].load()

# %% [markdown]
# ## Two networks
#
# One has noise, the other none. Once both are trained, we give the one without noise a very narrow surrogate gradient:
# its spikes stay as they are, but hardly any neuron is near enough to its threshold to have a gradient.


# %%
def trained(neuron):
    torch.manual_seed(0)
    net = build_model("toynet", neuron=neuron, in_shape=(1, 28, 28), num_classes=10)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(5):
        for images, target in parts.train.batches(100, CPU, shuffle=True):
            loss = F.cross_entropy(forward(net, images).mean(0), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return net.eval().requires_grad_(False)


nets = {"NSNN": trained(lambda: NoisyLIF(Gaussian(0.3))), "SNN": trained(lambda: LIF(Gaussian(0.3)))}
nets["SNN"].stem_neuron.set_gradient(Gaussian(0.002))

# %% [markdown]
# ## A weak attack
#
# One step along the sign of the network's own gradient (FGSM), for 100 test images.

# %%
rows = torch.randperm(len(parts.test), generator=torch.Generator().manual_seed(0))[:100]
images, target = parts.test.images[rows] / 255, parts.test.labels[rows]
radii = (0.03, 0.06, 0.1, 0.15)


def accuracy(net, x):
    """The mean over ten draws of the noise."""
    return torch.stack([(forward(net, x).mean(0).argmax(-1) == target).float() for _ in range(10)]).mean().item()


weak = {}
for name, net in nets.items():
    x = images.clone().requires_grad_()
    F.cross_entropy(forward(net, x).mean(0), target).backward()
    print(f"{name}: {(x.grad.flatten(1) == 0).all(1).float().mean():.0%} of the images have no gradient at all")
    weak[name] = [accuracy(net, (images + eps * x.grad.sign()).clamp(0, 1)) for eps in (0.0, *radii)]

# %% [markdown]
# ## A strong one
#
# A campaign attacks with many steps (APGD), averages gradients over draws of the noise, tries surrogates other than the
# network's own, and scores what it found with fresh draws. This preset is tiny; `PRESETS` has real ones.

# %%
preset = Preset(images=100, sample=20, gradients=60, draws=2, rounds=1, paths=1, targets=1, queries=60, score_draws=10)
reports = {
    name: Campaign(net, forward, images, target, preset, {"linf": radii}, name="tutorial").run()
    for name, net in nets.items()
}
strong = {name: report.curve("linf") for name, report in reports.items()}
for name, curve in strong.items():
    print(f"{name}: at {radii[1]}, the weak attack leaves {weak[name][2]:.0%}, the strong one {curve[radii[1]]:.0%}")

figure, axes = plt.subplots(figsize=(7, 3.4), layout="constrained")
for (name, curve), colour in zip(strong.items(), ("C0", "C1")):
    axes.plot(list(curve), [100 * one for one in weak[name]], "o--", color=colour, label=f"{name}, weak attack")
    axes.plot(list(curve), [100 * one for one in curve.values()], "s-", color=colour, label=f"{name}, strong attack")
axes.set(xlabel=r"radius $\varepsilon$ (1 is from black to white)", ylabel="accuracy (%)", ylim=(-3, 103))
axes.legend(fontsize=8)
plt.show()

# %% [markdown]
# By the weak attack (dashed) the network without noise looks far more robust than the noisy one. It is not: the strong
# attack (solid) breaks it, too, as it climbs another gradient of the same network.
#
# ## Gates
#
# A strong attack may fail, too. Gates look for the signs; a result is reliable only if all pass.

# %%
for name, report in reports.items():
    print(f"{name}: {'reliable' if report.reliable else 'NOT reliable'}")
    for gate in report.gates:
        print(f"  {'passed' if gate.passed else 'FAILED'}: {gate.name} ({gate.detail})"[:140])

# %% [markdown]
# ## Is the difference more than chance?
#
# Both networks saw the same images, so we compare them image by image: how often, over the draws, was each right? The
# bootstrap resamples the images.

# %%
right = {}
for name, report in reports.items():
    (row,) = [one for one in report.attacks if one.attack == ALL and one.eps == radii[1]]
    right[name] = np.array(row.score.times_correct) / row.score.draws
found = paired_difference(right["NSNN"], right["SNN"])
print(f"NSNN - SNN at {radii[1]}: {found.difference:+.2f}, 95 % interval {found.low:+.2f} to {found.high:+.2f}")

# %% [markdown]
# If the interval contains 0, these images cannot tell the two apart. It covers the choice of images alone, not what
# other trainings would give: for that, train several seeds of each, and use `seed_difference`; with several
# comparisons, `holm`.
#
# ## What to try
#
# - `testing_<dataset>.py --attack_preset quick --compare A=a.pth,b.pth B=c.pth,d.pth` does all of this.
# - Give the narrow gradient to the noisy network, too. Does the weak attack still work?
# - Cut the campaign down to `gradients=4`. Which gate notices?
#
# Reference: [attacks, gates, statistics](../evaluation.md#attacks), [the campaign](../../tools/attacks/campaign.py),
# [the gates](../../tools/attacks/gates.py), [statistics](../../tools/analysis/statistics.py).

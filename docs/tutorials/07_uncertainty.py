# %% [markdown]
# # Uncertainty from noise
#
# **A noisy network answers differently each time. Does the disagreement say when not to trust it?**
#
# With the class probabilities $p_d$ of $D$ draws, the prediction is their mean $\bar p$. Its entropy splits in two:
#
# $$H(\bar p) = \underbrace{\tfrac{1}{D} \textstyle\sum_d H(p_d)}_{\text{each draw is unsure}}
#   + \underbrace{I}_{\text{the draws disagree}}.$$

# %%
import sys
from pathlib import Path

sys.path.insert(0, str(Path(globals().get("__file__", "_")).resolve().parents[2]))  # the repository

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

from dataset_utils import DATASETS
from models import build_model, build_neuron
from tools.analysis import metrics
from tools.data.images import LabelledImages
from tools.inference import ForwardPass, predict_all

torch.manual_seed(0)
plt.style.use("tableau-colorblind10")
CPU, DRAWS = torch.device("cpu"), 16

# %% [markdown]
# ## A noisy network

# %%
parts = DATASETS["mnist5k"].load()
neuron = build_neuron("NILIF", sigma=1.0)
net = build_model("toynet", neuron=neuron, in_shape=(1, 28, 28), num_classes=10, width=2.0)
forward = ForwardPass(CPU, timesteps=2)
optimizer = torch.optim.Adam(net.parameters(), 1e-2)
for _ in range(5):
    for images, target in parts.train.batches(100, CPU, shuffle=True):
        loss = F.cross_entropy(forward(net, images).mean(0), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

# %% [markdown]
# ## Many draws are better than one
#
# `predict_all` returns log-probabilities `[D, N, K]`. For 1, 2, 4, ... averaged draws we score accuracy, negative
# log-likelihood (NLL), which punishes wrong confidence, and the calibration error: by how much confidence and accuracy
# differ.

# %%
draws, target = predict_all(net, parts.test.batches(500, CPU), forward, draws=DRAWS)
sizes = (1, 2, 4, 8, 16)
scores = {}
for size in sizes:
    each = [metrics.scores(group, target, temperature=1.0) for group in draws.split(size)]
    scores[size] = {key: sum(one[key] for one in each) / len(each) for key in each[0]}
    print(f"{size:2d} draws: accuracy {scores[size]['accuracy']:.3f}, NLL {scores[size]['nll']:.3f}, "
          f"calibration error {scores[size]['calibration_error']:.3f}")  # fmt: skip

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
left.plot(sizes, [scores[size]["nll"] for size in sizes], "o-")
left.set(xscale="log", xlabel="draws averaged", ylabel="negative log-likelihood (nats)")
left.set_xticks(sizes, sizes)
left.minorticks_off()
right.plot([0, 1], [0, 1], "--", color="black", lw=0.8, label="calibrated")
for size, marker in ((1, "o"), (DRAWS, "s")):
    bins = metrics.reliability(metrics.mean_prediction(draws[:size]), target, bins=10)
    right.plot([one.confidence for one in bins], [one.accuracy for one in bins], marker, label=f"{size} draws")
right.set(xlabel="confidence", ylabel="accuracy")
right.legend(fontsize=8)
plt.show()

# %% [markdown]
# The likelihood rises with the draws, most of it with the first few. On the right, images are in ten bins of
# confidence: below the line, a network is more sure than it is right.
#
# ## What the network should not know
#
# Each of these images is two test digits on top of each other: no answer is right. Does uncertainty tell them from
# single digits? The area under the ROC curve (AUROC) is the probability that a double digit gets the higher
# uncertainty; 0.5 is chance.

# %%
order = torch.randperm(len(parts.test), generator=torch.Generator().manual_seed(0))
double = LabelledImages(torch.maximum(parts.test.images, parts.test.images[order]), parts.test.labels)
outside, _ = predict_all(net, double.batches(500, CPU), forward, draws=DRAWS)
(separation,) = metrics.out_of_distribution(draws, outside, sizes=(DRAWS,))
print("AUROC:", ", ".join(f"{name} {value:.3f}" for name, value in separation.scores.items()))

predictive, _, disagreement = metrics.uncertainty(draws)
_, _, disagreement_outside = metrics.uncertainty(outside)
certain = predictive.argsort()[: len(target) // 2]
right_of_certain = (metrics.mean_prediction(draws).argmax(-1) == target)[certain].double().mean().item()
print(f"accuracy on the half of lower entropy: {right_of_certain:.3f}, on all: {scores[DRAWS]['accuracy']:.3f}")

figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
edges = torch.linspace(0, float(torch.cat([disagreement, disagreement_outside]).max()), 40)
axes.hist(disagreement, edges, histtype="step", lw=2, label="single digits")
axes.hist(disagreement_outside, edges, histtype="step", lw=2, label="double digits")
axes.set(xlabel="disagreement of the draws I (nats)", ylabel="images", yscale="log")
axes.legend(fontsize=8)
plt.show()

# %% [markdown]
# Draws disagree more on double digits than on single ones, though not on all of them: the AUROC is well above chance,
# and well below 1. And where the entropy is low, the network may be trusted: it errs less there than on all images.
#
# ## What to try
#
# - Other noise: `sigma=0.3`. Do draws that differ less tell less?
# - The same compute spent on time: `ForwardPass(CPU, timesteps=32)` with one draw.
# - `testing_<dataset>.py --uncertainty --ood DATASET` does all this for a trained network, with a temperature.
#
# Reference: [uncertainty in the evaluation](../evaluation.md#uncertainty), [metrics](../../tools/analysis/metrics.py),
# [inference](../../tools/inference.py).

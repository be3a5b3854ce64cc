# %% [markdown]
# # Fit a noisy network to spike trains
#
# **Cells answer the same movie differently each time. Can a network have both their mean response and their
# variability?**
#
# For a neuron with noise at its threshold, a recorded spike train $s$ has a likelihood: given the spikes before, each
# one is a coin with probability $F$,
#
# $$\ln P(s) = \sum_t s_t \ln F(u_t - \vartheta) + (1 - s_t) \ln\big(1 - F(u_t - \vartheta)\big).$$
#
# We maximise it for ten simulated cells, so that the truth is known, and compare with a network without noise.

# %%
import sys
from pathlib import Path

sys.path.insert(0, str(Path(globals().get("__file__", "_")).resolve().parents[2]))  # the repository

import matplotlib.pyplot as plt
import numpy as np

from dataset_utils import DATASETS
from tools.analysis import spike_trains
from tools.studies.coding.cells import FRAME_S, LIFCells, population
from tools.studies.coding.fitting import fit, simulate
from tools.studies.coding.judging import bins_of_window, judge

plt.style.use("tableau-colorblind10")

# %% [markdown]
# ## A recording
#
# Noisy integrate-and-fire cells see moving digits through random receptive fields: spikes [trials, bins, cells], one
# bin per frame of the movie. A recording of yours would have the same form.

# %%
digits = DATASETS["mnist5k"].load().train.images[:, 0]
movie, drive = population(digits, frames=2000, seed=0)
recorded = LIFCells(drive).sample(trials=20, seed=0)
print(f"movie {movie.shape}, spikes {recorded.shape}, bins of {1000 * FRAME_S:.0f} ms, "
      f"{recorded.mean() / FRAME_S:.0f} spikes per second")  # fmt: skip

# %% [markdown]
# ## How variable, how reliable
#
# The Fano factor is the variance of the spike count in 100 ms over its mean: 0 if all trials are the same, 1 for a
# Poisson process. The reliability is the correlation of two trials. Both are means over cells.

# %%
fano = np.nanmean(spike_trains.mean_fano_factor(recorded, bins_of_window(FRAME_S)))
reliability = np.nanmean(spike_trains.reliability(recorded))
print(f"Fano factor {fano:.2f}, reliability {reliability:.2f}")

# %% [markdown]
# ## Fit
#
# Both networks are a convolution, spikes, a linear layer, and the cells' spikes. "NSNN" has noise in both layers, whose
# scales it learns. "SNN" has none, and hence no likelihood: it is fitted to smoothed spike trains. They see the first
# 1,600 frames; a few hundred steps are enough for a first look.

# %%
start = 1600
models = {}
for name in ("NSNN", "SNN"):
    net = fit(name, movie[:start], recorded[:, :start], steps=200, seed=0)
    models[name] = simulate(net, movie, trials=40, seed=1)[:, start:]
tested = recorded[:, start:]
judged = {name: judge(spikes, tested, FRAME_S) for name, spikes in models.items()}
print(f"recorded: Fano factor {judged['NSNN'].fano_recorded:.2f}, "
      f"reliability {judged['NSNN'].reliability_recorded:.2f}")  # fmt: skip
for name, one in judged.items():
    print(f"{name}: CC_norm {one.cc_norm:.2f}, Fano factor {one.fano:.2f}, reliability {one.reliability:.2f}")

# %% [markdown]
# CC_norm is the correlation of the mean responses, divided by the highest that the noise of the recording allows: 1 is
# perfect. The noisy network predicts the mean response better, and its spike counts vary about as the cells' do. After
# so few steps, its trials still agree less than theirs. The trials of the network without noise are all the same: Fano
# factor 0, reliability 1, whatever it is fitted to.

# %%
cell = int(spike_trains.signal_power(tested).argmax())
shown = slice(0, 200)
time = np.arange(200) * FRAME_S
rasters = {"recorded": tested, **models}
figure, panels = plt.subplots(4, 1, figsize=(9, 6), sharex=True, layout="constrained")
for (name, spikes), axes, colour in zip(rasters.items(), panels, ("black", "C0", "C1")):
    trial, bins = spikes[:20, shown, cell].nonzero()
    axes.plot(time[bins], trial, "|", ms=4, color=colour)
    axes.set(ylabel=f"{name}\ntrial", ylim=(-1, 20))
    rate = spike_trains.smoothed(spikes, 2.0).mean(0)[shown, cell] / FRAME_S
    panels[3].plot(time, rate, color=colour, label=name)
panels[3].set(xlabel="time (s)", ylabel="spikes / s")
panels[3].legend(fontsize=8, ncols=3)
plt.show()

# %% [markdown]
# One cell in all trials: the noisy network has its fluctuations as well as its peaks, the other one repeats itself.
#
# ## What to try
#
# - More steps: `steps=1500`. Does the response become as strong as the recorded one?
# - `fit("SNN, noisy output", ...)`: how much of this does noise in the last layer alone give?
# - Your recording: `python main_coding.py --recording FILE`, an .npz of `movie`, `spikes` and `frame_s`, or NWB.
#
# Reference: [the study](../coding.md), [metrics of spike trains](../../tools/analysis/spike_trains/__init__.py),
# [fitting](../../tools/studies/coding/fitting.py).

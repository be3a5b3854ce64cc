"""Experiment A: whether the metrics recover the truth, on cells for which it has a closed form."""

import numpy as np
import torch

from tools.analysis import spike_trains
from tools.analysis.statistics import seed_interval
from tools.studies.study import Study

from . import pictures
from .cells import LNCells, population
from .judging import TAU_S, bins_of_window
from .movie import FRAME_S

WINDOW, TAU = bins_of_window(FRAME_S), TAU_S / FRAME_S  # in bins

METRICS = {  # name: (spikes [R, T, N], true rates [T, N]) -> values, of which the mean is taken
    "Fano factor": lambda spikes, rates: spike_trains.mean_fano_factor(spikes, WINDOW),
    "signal power": lambda spikes, rates: spike_trains.signal_power(spikes),
    "noise power": lambda spikes, rates: spike_trains.noise_power(spikes),
    "reliability": lambda spikes, rates: spike_trains.reliability(spikes),
    "CC_norm of the true rate": lambda spikes, rates: spike_trains.cc_norm(rates, spikes),
    "signal correlation": lambda spikes, rates: _off_diagonal(spike_trains.signal_correlation(spikes)),
    "noise correlation": lambda spikes, rates: _off_diagonal(spike_trains.noise_correlation(spikes)),
    "van Rossum distance": lambda spikes, rates: spike_trains.van_rossum_distance(spikes[:10], spikes[10:20], TAU),
    "Victor-Purpura distance, q = 2": lambda spikes, rates: spike_trains.victor_purpura_distance(
        spikes[:5], spikes[5:10], 2.0
    ),
}


def truth(study: Study, digits: torch.Tensor) -> dict:
    """Measure each metric on cells of known truth, over repeated recordings of 40 trials."""
    frames, trials, seeds = 2000, 40, study.seeds("recordings", full=40, quick=12)
    _, drive = population(digits, frames, study.seed_for("population"))
    rows = []
    for name, cells, truth_of in (
        ("Bernoulli", LNCells(drive), _bernoulli_truth),
        ("Poisson", LNCells(drive, poisson=True), _poisson_truth),
    ):
        rates = cells.rates()
        recordings = [cells.sample(trials, seed) for seed in seeds]
        for metric, expected in truth_of(rates).items():
            found = [np.nanmean(METRICS[metric](recording, rates)) for recording in recordings]
            rows.append(_row(name, metric, expected, found))
    for share in (0.1, 0.5):
        found = [_shared_noise(share, seed) for seed in seeds]
        rows.append(_row(f"pair with {share:.0%} common spikes", "noise correlation", share, found))
    study.save("truth", pictures.truth(rows))
    return {"frames": frames, "trials": trials, "recordings": len(seeds), "rows": rows}


def _row(cells: str, metric: str, expected: float, found: list[float]) -> dict:
    """What was found, with its interval, beside the truth; "z" is the error in standard errors."""
    z = (np.mean(found) - expected) / (np.std(found, ddof=1) / np.sqrt(len(found)))
    return {"cells": cells, "metric": metric, "truth": float(expected), **seed_interval(found), "z": float(z)}


def _bernoulli_truth(p: np.ndarray) -> dict[str, float]:
    """The truth for independent Bernoulli(p) spikes, as means over cells; p is [T, N]."""
    noise = p * (1 - p)
    windows = p.reshape(-1, WINDOW, p.shape[1]).sum(1)
    variances = noise.reshape(-1, WINDOW, p.shape[1]).sum(1)
    return {
        "Fano factor": (variances.mean(0) / windows.mean(0)).mean(),
        **_common_truth(p, noise),
        "van Rossum distance": noise.sum(0).mean(),  # E (x - y)^2 / 2 in each bin, and no covariance
        "Victor-Purpura distance, q = 2": (2 * noise).sum(0).mean(),  # the number of spikes that are not in both
    }


def _poisson_truth(p: np.ndarray) -> dict[str, float]:
    """The truth for independent Poisson(p) counts."""
    return {"Fano factor": 1.0, **_common_truth(p, p), "van Rossum distance": p.sum(0).mean()}


def _common_truth(p: np.ndarray, noise: np.ndarray) -> dict[str, float]:
    signal = p.var(0, ddof=1)
    return {
        "signal power": signal.mean(),
        "noise power": noise.mean(),
        "reliability": (signal / (signal + noise.mean(0))).mean(),
        "CC_norm of the true rate": 1.0,
        "signal correlation": _off_diagonal(np.corrcoef(p.T)).mean(),
        "noise correlation": 0.0,
    }


def _shared_noise(share: float, seed: int) -> float:
    """Noise correlation of two Poisson cells that have a share of their spikes in common: the truth is that share."""
    random = np.random.default_rng(seed)
    common, own = random.poisson(share, (100, 500, 1)), random.poisson(1 - share, (100, 500, 2))
    return spike_trains.noise_correlation(common + own)[0, 1]


def _off_diagonal(matrix: np.ndarray) -> np.ndarray:
    return matrix[~np.eye(len(matrix), dtype=bool)]

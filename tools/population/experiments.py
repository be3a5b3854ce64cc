"""The experiments of `main_coding.py`: each measures, draws its picture, and returns its numbers."""

import dataclasses
import functools

import numpy as np

from models import Gaussian

from .. import coding
from ..intervals import seed_interval
from . import pictures
from .cells import LIFCells, LNCells, filtered, receptive_fields
from .fitting import KINDS, Fit, LNModel, fit, simulate
from .judging import TAU, WINDOW, judge, mean_over_cells
from .movie import FRAME_S, digit_movie

CELLS = 10
STEPS = {True: 300, False: 1500}  # of a fit; of quick studies, and of others
ORACLE = "oracle"


def population(digits, frames, seed, cells=CELLS):
    """A movie of moving digits and what the receptive fields of cells see of it, with variance 1: [T, H, W], [T, N]."""
    random = np.random.RandomState(seed)
    movie = digit_movie(digits, frames, random)
    drive = filtered(movie, receptive_fields(cells, movie.shape[1:], random))
    return movie, drive / drive.std(0)


# A: the metrics recover the truth.


def truth(study, digits):
    """Each metric on cells whose truth is known in closed form, over repeated recordings of 40 trials."""
    frames, trials, repeats = 2000, 40, study.seeds(full=40, quick=12)
    _, drive = population(digits, frames, study.seed)
    rows = []
    for name, cells, expected in (
        ("Bernoulli", LNCells(drive), _bernoulli_truth),
        ("Poisson", LNCells(drive, poisson=True), _poisson_truth),
    ):
        expected = expected(cells.rates())
        recordings = [cells.sample(trials, seed) for seed in repeats]
        for metric, measure in _METRICS.items():
            if metric not in expected:
                continue
            found = np.array([np.nanmean(measure(recording, cells)) for recording in recordings])
            deviation = found.std(ddof=1) / np.sqrt(len(found))
            rows.append(
                {
                    "cells": name,
                    "metric": metric,
                    "truth": float(expected[metric]),
                    **seed_interval(found),
                    "z": float((found.mean() - expected[metric]) / deviation),
                }
            )
    rows += _shared_noise(study, repeats)
    pictures.truth(study.folder / "truth.png", rows)
    return {"frames": frames, "trials": trials, "recordings": len(repeats), "rows": rows}


_METRICS = {
    "Fano factor": lambda spikes, cells: coding.mean_fano_factor(spikes, WINDOW),
    "signal power": lambda spikes, cells: coding.signal_power(spikes),
    "noise power": lambda spikes, cells: coding.noise_power(spikes),
    "reliability": lambda spikes, cells: coding.reliability(spikes),
    "CC_norm of the true rate": lambda spikes, cells: coding.cc_norm(cells.rates(), spikes),
    "signal correlation": lambda spikes, cells: _off_diagonal(coding.signal_correlation(spikes)),
    "noise correlation": lambda spikes, cells: _off_diagonal(coding.noise_correlation(spikes)),
    "van Rossum distance": lambda spikes, cells: coding.van_rossum_distance(spikes[:10], spikes[10:20], TAU),
    "Victor-Purpura distance, q = 2": lambda spikes, cells: coding.victor_purpura_distance(
        spikes[:5], spikes[5:10], 2.0
    ),
}


def _off_diagonal(matrix):
    return matrix[~np.eye(len(matrix), dtype=bool)]


def _bernoulli_truth(p):
    """What independent Bernoulli(p) spikes have; p is [T, N]. Means over cells."""
    noise = p * (1 - p)
    signal = p.var(0, ddof=1)
    windows = p.reshape(-1, WINDOW, p.shape[1]).sum(1), noise.reshape(-1, WINDOW, p.shape[1]).sum(1)
    return {
        "Fano factor": (windows[1].mean(0) / windows[0].mean(0)).mean(),
        "van Rossum distance": noise.sum(0).mean(),  # E (x - y)^2 / 2 in each bin, and no covariance
        "Victor-Purpura distance, q = 2": (2 * noise).sum(0).mean(),  # the number of spikes that are not in both
        **_common_truth(p, signal, noise),
    }


def _poisson_truth(p):
    """What independent Poisson(p) counts have."""
    return {
        "Fano factor": 1.0,
        "van Rossum distance": p.sum(0).mean(),
        **_common_truth(p, p.var(0, ddof=1), p),
    }


def _common_truth(p, signal, noise):
    total = signal + noise.mean(0)
    return {
        "signal power": signal.mean(),
        "noise power": noise.mean(),
        "reliability": (signal / total).mean(),
        "CC_norm of the true rate": 1.0,
        "signal correlation": _off_diagonal(np.corrcoef(p.T)).mean(),
        "noise correlation": 0.0,
    }


def _shared_noise(study, seeds):
    """Noise correlation of pairs of Poisson cells, a share of whose spikes is common: the share is the correlation."""
    rows = []
    for share in (0.1, 0.5):
        found = []
        for seed in seeds:
            random = np.random.default_rng(seed)
            common, own = (random.poisson(rate, (100, 500, size)) for rate, size in ((share, 1), (1 - share, 2)))
            found.append(coding.noise_correlation(common + own)[0, 1])
        deviation = np.std(found, ddof=1) / np.sqrt(len(found))
        rows.append(
            {
                "cells": f"pair with {share:.0%} common spikes",
                "metric": "noise correlation",
                "truth": share,
                **seed_interval(found),
                "z": float((np.mean(found) - share) / deviation),
            }
        )
    return rows


# B: the scale of the noise.


def scale(study, digits):
    """Reliability, Fano factor and decoding of noisy LIF cells, against the scale of their noise."""
    seeds = study.seeds(full=10, quick=5)
    scales = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.8, 1.5)
    jobs = [(digits, std, 1000, 40, seed) for std in scales for seed in seeds]
    found = study.map(_at_scale, jobs, "scales of the noise")
    rows = []
    for number, std in enumerate(scales):
        of_scale = found[number * len(seeds) : (number + 1) * len(seeds)]
        rows.append({"std": std, **{key: seed_interval([one[key] for one in of_scale]) for key in of_scale[0]}})
    pictures.scale(study.folder / "noise_scale.png", rows)
    return {"cells": CELLS, "frames": 1000, "trials": 40, "seeds": len(seeds), "chance": WINDOW / 1000, "rows": rows}


def _at_scale(job):
    digits, std, frames, trials, seed = job
    _, drive = population(digits, frames, seed)
    # Most of the drive is below the threshold: without noise, a cell is silent most of the time.
    cells = LIFCells(drive, gain=0.35, bias=0.3, noise=Gaussian(std or 1e-9))
    spikes = cells.sample(trials, seed)
    accuracies = coding.decoding_accuracy(spikes, WINDOW, POOLED, repeats=5, seed=seed)
    return {
        "rate_hz": spikes.mean() / FRAME_S,
        "reliability": mean_over_cells(coding.reliability(spikes)),
        "fano": mean_over_cells(coding.mean_fano_factor(spikes, WINDOW)),
        "snr": mean_over_cells(np.minimum(coding.signal_to_noise(spikes), 1e6)),
        **{f"decoding_{count}": accuracy for count, accuracy in zip(POOLED, accuracies)},
    }


POOLED = (1, 5, 20)  # trials for decoding


# C: networks fitted to cells.


@dataclasses.dataclass(frozen=True)
class Split:
    """Spikes to fit a network to, and to judge it by: later frames of the same movie.

    Args:
        movie: [T, H, W]; its frames from `start` on are for the test.
        fitted: trials of the frames before, [R, start, N].
        tested: trials of those after, [R, T - start, N].
        start: first frame of the test.
    """

    movie: np.ndarray
    fitted: np.ndarray
    tested: np.ndarray
    start: int


LEAD_IN = 100  # frames before the test that a network sees, so that it does not start from rest


def fits(study, digits):
    """NSNN, SNN and LN fitted to LN and LIF cells, with the true generator as oracle."""
    frames, start = 5000, 4000
    movie, drive = population(digits, frames, study.seed)
    results = {}
    for name, cells in (("LN cells", LNCells(drive)), ("LIF cells", LIFCells(drive))):
        recorded = cells.sample(20, study.seed + 1)
        tested = cells.sample(50, study.seed + 2)[:, start:]
        split = Split(movie, recorded[:, :start], tested, start)
        results[name] = compare(study, split, steps=STEPS[study.quick], name=name)
        oracle = [cells.sample(50, 10_000 + seed)[:, start:] for seed in study.seeds(full=5, quick=5)]
        rate = cells.rates()[start:]
        results[name][ORACLE] = _over_seeds([judge(spikes, tested, rate) for spikes in oracle])
        pictures.fits(study.folder / f"fits_{name.split()[0].lower()}.png", results[name], name)
    return {"frames": start, "trials": 20, "test_frames": frames - start, "test_trials": 50, "results": results}


def recording(study, data):
    """The same networks fitted to a recording: its last fifth of frames is for the test.

    Raises:
        ValueError: for less than two trials, or more than one spike in a bin; and as `fit` does.
    """
    if len(data.spikes) < 2:
        raise ValueError("variability needs at least 2 trials, the recording has 1")
    if data.spikes.max() > 1:
        raise ValueError(f"networks are fitted to spikes of 0 or 1, a bin has {data.spikes.max()}: use shorter bins")
    start = int(0.8 * len(data.movie))
    split = Split(data.movie, data.spikes[:, :start], data.spikes[:, start:], start)
    results = compare(study, split, steps=STEPS[study.quick], name="recording")
    pictures.fits(study.folder / "fits_recording.png", results, "recording")
    return {"trials": len(data.spikes), "frames": start, "test_frames": len(data.movie) - start, "results": results}


def compare(study, split, steps, name):
    """{kind of network: what `judge` says of it, with intervals over seeds}."""
    seeds = study.seeds(full=5, quick=5)
    # The fit of an LN model has nothing random in it: it is done once, and its trials are drawn for each seed.
    jobs = [
        (split, kind, steps, group)
        for kind, net in KINDS.items()
        for group in ([seeds] if net is LNModel else [[seed] for seed in seeds])
    ]
    found = {kind: [] for kind in KINDS}
    for (_, kind, _, _), judged in zip(jobs, study.map(_fitted, jobs, f"fitting to {name}")):
        found[kind] += judged
    return {kind: _over_seeds(judged) for kind, judged in found.items()}


def _fitted(job):
    """What `judge` says of a network for each seed of its trials; it is fitted with the first of them."""
    split, kind, steps, seeds = job
    net = fit(Fit(kind, split.movie[: split.start], split.fitted, steps, seeds[0]))
    before = min(LEAD_IN, split.start)
    judged = []
    for seed in seeds:
        spikes = simulate(net, split.movie[split.start - before :], 4 * len(split.tested), seed)[:, before:]
        judged.append(judge(spikes, split.tested, spikes.mean(0)))
    return judged


def _over_seeds(found):
    return {key: seed_interval([one[key] for one in found]) for key in found[0]}


def experiments(digits, data=None):
    """{name: function of a `Study`} with these digits; of recorded data, that of the fits alone."""
    if data is not None:
        return {"recording": functools.partial(recording, data=data)}
    return {function.__name__: functools.partial(function, digits=digits) for function in (truth, scale, fits)}

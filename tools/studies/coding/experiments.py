"""The experiments of `main_coding.py`: each measures, draws its picture, and returns its numbers."""

import dataclasses
import functools
import logging

import numpy as np

from models import Gaussian
from tools.analysis import spike_trains
from tools.analysis.statistics import seed_interval

from . import pictures
from .cells import LIFCells, LNCells, filtered, receptive_fields
from .fitting import KINDS, SEGMENT, Fit, LNModel, fit, simulate
from .judging import TAU_S, bins_of_window, has_signal, judge, mean_over_cells
from .movie import FRAME_S, digit_movie

logger = logging.getLogger(__name__)
CELLS = 10
WINDOW, TAU = bins_of_window(FRAME_S), TAU_S / FRAME_S  # in bins of a movie of ours
STEPS, QUICK_STEPS = 1500, 300  # of a fit
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
    "Fano factor": lambda spikes, cells: spike_trains.mean_fano_factor(spikes, WINDOW),
    "signal power": lambda spikes, cells: spike_trains.signal_power(spikes),
    "noise power": lambda spikes, cells: spike_trains.noise_power(spikes),
    "reliability": lambda spikes, cells: spike_trains.reliability(spikes),
    "CC_norm of the true rate": lambda spikes, cells: spike_trains.cc_norm(cells.rates(), spikes),
    "signal correlation": lambda spikes, cells: _off_diagonal(spike_trains.signal_correlation(spikes)),
    "noise correlation": lambda spikes, cells: _off_diagonal(spike_trains.noise_correlation(spikes)),
    "van Rossum distance": lambda spikes, cells: spike_trains.van_rossum_distance(spikes[:10], spikes[10:20], TAU),
    "Victor-Purpura distance, q = 2": lambda spikes, cells: spike_trains.victor_purpura_distance(
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
            found.append(spike_trains.noise_correlation(common + own)[0, 1])
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
    """Reliability, Fano factor and decoding of noisy LIF cells, against the scale of their noise.

    "..._gain" is the mean difference to the same population without noise.
    """
    seeds = study.seeds(full=10, quick=5)
    scales = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.8, 1.5)
    jobs = [[(digits, std, 1000, 40, seed) for seed in seeds] for std in scales]
    rows = []
    found = study.map_groups(_at_scale, jobs, "scales of the noise")
    for std, of_scale in zip(scales, found):
        row = {"std": std, **{key: seed_interval([one[key] for one in of_scale]) for key in of_scale[0]}}
        for key in DECODING.values():
            row[f"{key}_gain"] = seed_interval([one[key] - certain[key] for one, certain in zip(of_scale, found[0])])
        rows.append(row)
    pictures.scale(study.folder / "noise_scale.png", rows, DECODING)
    return {"cells": CELLS, "frames": 1000, "trials": 40, "seeds": len(seeds), "chance": WINDOW / 1000, "rows": rows}


def _at_scale(job):
    digits, std, frames, trials, seed = job
    _, drive = population(digits, frames, seed)
    # Most of the drive is below the threshold: without noise, a cell is silent most of the time.
    cells = LIFCells(drive, gain=0.35, bias=0.3, noise=Gaussian(std or 1e-9))
    spikes = cells.sample(trials, seed)
    accuracies = spike_trains.decoding_accuracy(spikes, WINDOW, list(DECODING), repeats=5, seed=seed)
    return {
        "rate_hz": spikes.mean() / FRAME_S,
        "reliability": mean_over_cells(spike_trains.reliability(spikes)),
        "fano": mean_over_cells(spike_trains.mean_fano_factor(spikes, WINDOW)),
        **dict(zip(DECODING.values(), accuracies)),
    }


DECODING = {count: f"decoding_{count}" for count in (1, 5, 20)}  # trials that are pooled: key of the accuracy


# C: networks fitted to cells.


@dataclasses.dataclass(frozen=True)
class Split:
    """Spikes to fit a network to, and to judge it by: later frames of the same movie.

    Args:
        movie: [T, H, W]; its frames from `start` on are for the test.
        fitted: trials of the frames before, [R, start, N].
        tested: trials of those after, [R, T - start, N].
        start: first frame of the test.
        frame_s: seconds from one frame to the next.
    """

    movie: np.ndarray
    fitted: np.ndarray
    tested: np.ndarray
    start: int
    frame_s: float


LEAD_IN = 100  # frames before the test that a network sees, so that it does not start from rest
TRIALS = 4  # of a model, for each that was recorded: its mean response is better known than the recorded one


def fits(study, digits):
    """NSNN, SNN and LN fitted to LN and LIF cells, with the true generator as oracle."""
    frames, start = 5000, 4000
    movie, drive = population(digits, frames, study.seed)
    results = {}
    for name, cells in (("LN cells", LNCells(drive)), ("LIF cells", LIFCells(drive))):
        # Seeds of recordings differ from those of fits and of the oracle's trials.
        of_recording, of_test, *of_oracle = [seed + 500 for seed in study.seeds(full=7, quick=7)]
        recorded = cells.sample(20, of_recording)
        tested = cells.sample(50, of_test)[:, start:]
        split = Split(movie, recorded[:, :start], tested, start, FRAME_S)
        results[name] = compare(study, split, name=name)
        oracle = [cells.sample(TRIALS * len(tested), seed)[:, start:] for seed in of_oracle]
        results[name][ORACLE] = _over_seeds([judge(spikes, tested, FRAME_S) for spikes in oracle])
        pictures.fits(study.folder / f"fits_{name.split()[0].lower()}.png", results[name], name)
    return {"frames": start, "trials": 20, "test_frames": frames - start, "test_trials": 50, "results": results}


def recording(study, data, name):
    """The same networks fitted to a recording: its last fifth of frames is for the test.

    Raises:
        ValueError: for less than two trials, too few frames, more than one spike in a bin, or cells that do not
            respond to the movie; and as `fit` does.
    """
    if len(data.spikes) < 2:
        raise ValueError("variability needs at least 2 trials, the recording has 1")
    if data.spikes.max() > 1:
        raise ValueError(f"networks are fitted to spikes of 0 or 1, a bin has {data.spikes.max()}: use shorter bins")
    start = int(0.8 * len(data.movie))
    if start < SEGMENT:
        raise ValueError(f"{name} has {len(data.movie)} frames, of which 80 % are to be at least {SEGMENT}")
    if data.frame_s is None:
        logger.warning("%s does not say how long a frame is (frame_s): %g s is taken", name, FRAME_S)
    frame_s = data.frame_s or FRAME_S
    split = Split(data.movie, data.spikes[:, :start], data.spikes[:, start:], start, frame_s)
    with_signal = int(has_signal(split.tested).sum())
    if with_signal == 0:
        raise ValueError(f"no cell of {name} responds to the last fifth of its movie by more than chance")
    results = compare(study, split, name=name)
    pictures.fits(study.folder / "fits_recording.png", results, name)
    return {
        "file": name,
        "movie": data.movie.shape,
        "frame_s": frame_s,
        "trials": len(data.spikes),
        "cells": data.spikes.shape[2],
        "cells_with_signal": with_signal,
        "frames": start,
        "test_frames": len(data.movie) - start,
        "results": results,
    }


def compare(study, split, name):
    """{kind of network: what `judge` says of it, with intervals over seeds}."""
    seeds, steps = study.seeds(full=5, quick=5), QUICK_STEPS if study.quick else STEPS
    # The fit of an LN model has nothing random in it: it is done once, and its trials are drawn for each seed.
    fits_of = {kind: [seeds] if net is LNModel else [[seed] for seed in seeds] for kind, net in KINDS.items()}
    jobs = [[(split, kind, steps, group) for group in groups] for kind, groups in fits_of.items()]
    found = study.map_groups(_fitted, jobs, f"fitting to {name}")
    return {kind: _over_seeds(sum(judged, [])) for kind, judged in zip(KINDS, found)}


def _fitted(job):
    """What `judge` says of a network for each seed of its trials; it is fitted with the first of them."""
    split, kind, steps, seeds = job
    net = fit(Fit(kind, split.movie[: split.start], split.fitted, steps, seeds[0]))
    before = min(LEAD_IN, split.start)
    seen = split.movie[split.start - before :]
    trials = TRIALS * len(split.tested)
    return [judge(simulate(net, seen, trials, seed)[:, before:], split.tested, split.frame_s) for seed in seeds]


def _over_seeds(found):
    return {key: seed_interval([one[key] for one in found]) for key in found[0]}


def experiments(digits):
    """{name: function of a `Study`} with these digits."""
    return {function.__name__: functools.partial(function, digits=digits) for function in (truth, scale, fits)}


def experiments_on(data, name):
    """The same of a recording with this name."""
    return {"recording": functools.partial(recording, data=data, name=name)}

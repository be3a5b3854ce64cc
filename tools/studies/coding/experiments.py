"""The experiments of main_coding.py: each measures, plots, and returns its numbers."""

import dataclasses
import itertools
import logging
from functools import partial

import numpy as np
import torch

from models import Gaussian
from tools.analysis import spike_trains
from tools.analysis.spike_trains import victor_purpura_distance
from tools.analysis.statistics import SeedInterval, seed_interval
from tools.errors import UserError
from tools.studies.intervals import gains, over_seeds
from tools.studies.study import Experiments, Study

from . import pictures
from .cells import CELLS, FRAME_S, LIFCells, LNCells, population
from .fitting import NETWORKS, SEGMENT, LNModel, fit, simulate
from .judging import TAU_S, Judgement, bins_of_window, has_signal, judge, mean_over_cells
from .recordings import Recording

logger = logging.getLogger(__name__)
STEPS, QUICK_STEPS = 1500, 300  # of a fit
FITTED_TRIALS, TEST_TRIALS = 20, 50  # that cells are recorded for, in `fits`
LEAD_IN = 100  # frames before the test that a network sees, so that it does not start from rest
TRIALS = 4  # of a model for each recorded one, so that its mean response is known better
WINDOW, TAU = bins_of_window(FRAME_S), TAU_S / FRAME_S  # in bins
FRAMES, PRESENTED = 1000, 40  # frames and trials that the LIF cells of `scale` see
DECODING = {"decoding_1": 1, "decoding_5": 5, "decoding_20": 20}  # trials that are pooled

METRICS = {  # name: (spikes [R, T, N], true rates [T, N]) -> values, of which the mean is taken
    "Fano factor": lambda spikes, rates: spike_trains.mean_fano_factor(spikes, WINDOW),
    "signal power": lambda spikes, rates: spike_trains.signal_power(spikes),
    "noise power": lambda spikes, rates: spike_trains.noise_power(spikes),
    "reliability": lambda spikes, rates: spike_trains.reliability(spikes),
    "CC_norm of the true rate": lambda spikes, rates: spike_trains.cc_norm(rates, spikes),
    "signal correlation": lambda spikes, rates: _off_diagonal(spike_trains.signal_correlation(spikes)),
    "noise correlation": lambda spikes, rates: _off_diagonal(spike_trains.noise_correlation(spikes)),
    "van Rossum distance": lambda spikes, rates: spike_trains.van_rossum_distance(spikes[:10], spikes[10:20], TAU),
    "Victor-Purpura distance, q = 2": lambda spikes, rates: victor_purpura_distance(spikes[:5], spikes[5:10], 2.0),
}


def truth(study: Study, digits: torch.Tensor) -> dict:
    """A: measure each metric on cells for which its true value has a closed form, over recordings of 40 trials."""
    frames, trials = 2000, 40
    seeds = study.seeds("recordings", full=40, quick=12)
    _, drive = population(digits, frames, study.seed_for("population"))
    rows = []
    for name in ("Bernoulli", "Poisson"):
        cells = LNCells(drive, poisson=name == "Poisson")
        rates = cells.rates()
        recordings = [cells.sample(trials, seed) for seed in seeds]
        for metric, expected in _truth_of(rates, cells.poisson).items():
            found = [np.nanmean(METRICS[metric](recording, rates)) for recording in recordings]
            rows.append(_estimate(name, metric, expected, found))
    for share in (0.1, 0.5):
        found = [_shared_noise(share, seed) for seed in seeds]
        rows.append(_estimate(f"pair with {share:.0%} common spikes", "noise correlation", share, found))
    study.save("truth", pictures.truth(rows))
    return {"frames": frames, "trials": trials, "recordings": len(seeds), "rows": rows}


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Estimates of a metric, as mean and interval over recordings, next to the truth."""

    cells: str
    metric: str
    truth: float
    mean: float
    low: float
    high: float
    seeds: int
    z: float  # the error of the mean in standard errors


def _estimate(cells: str, metric: str, expected: float, found: list[float]) -> Estimate:
    z = (np.mean(found) - expected) / (np.std(found, ddof=1) / np.sqrt(len(found)))
    return Estimate(cells, metric, float(expected), **vars(seed_interval(found)), z=float(z))


def _truth_of(p, poisson):
    """{metric: true mean over cells} for independent Bernoulli(p) or Poisson(p) counts, p [T, N]."""
    signal, noise = p.var(0, ddof=1), p if poisson else p * (1 - p)
    counts = p.reshape(-1, WINDOW, CELLS).sum(1).mean(0)
    variances = noise.reshape(-1, WINDOW, CELLS).sum(1).mean(0)
    values = {
        "Fano factor": (variances / counts).mean(),
        "signal power": signal.mean(),
        "noise power": noise.mean(),
        "reliability": (signal / (signal + noise.mean(0))).mean(),
        "CC_norm of the true rate": 1.0,
        "signal correlation": _off_diagonal(np.corrcoef(p.T)).mean(),
        "noise correlation": 0.0,
        "van Rossum distance": noise.sum(0).mean(),  # E (x - y)^2 / 2 in each bin, and no covariance
    }
    if not poisson:
        values["Victor-Purpura distance, q = 2"] = (2 * noise).sum(0).mean()  # spikes in only one of the trains
    return values


def _shared_noise(share: float, seed: int) -> float:
    """Noise correlation of two Poisson cells with a share of their spikes in common: its true value is the share."""
    random = np.random.default_rng(seed)
    common, own = random.poisson(share, (100, 500, 1)), random.poisson(1 - share, (100, 500, 2))
    return spike_trains.noise_correlation(common + own)[0, 1]


def _off_diagonal(matrix: np.ndarray) -> np.ndarray:
    return matrix[~np.eye(len(matrix), dtype=bool)]


@dataclasses.dataclass(frozen=True)
class Responses:
    """Measurements of noisy LIF cells; decoding_<m>: accuracy when m trials are pooled."""

    rate_hz: float
    reliability: float
    fano: float
    decoding_1: float
    decoding_5: float
    decoding_20: float


def scale(study: Study, digits: torch.Tensor) -> dict:
    """B: measure reliability, Fano factor and decoding of noisy LIF cells by the standard deviation of their noise.

    "..._gain" is the mean difference from the same population without noise.
    """
    seeds, jobs = study.seeds("scale", full=10, quick=5), {}
    for std in (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.8, 1.5):
        jobs[std] = [partial(respond, digits, std, seed) for seed in seeds]
    found = study.map_groups(jobs, "scales of the noise")
    intervals = {}
    for std, of_scale in found.items():
        intervals[std] = over_seeds(of_scale) | gains(of_scale, found[0.0], DECODING)
    study.save("noise_scale", pictures.scale(intervals, DECODING))
    head = {"cells": CELLS, "frames": FRAMES, "trials": PRESENTED, "seeds": len(seeds), "chance": WINDOW / FRAMES}
    return {**head, "rows": [{"std": std, **of_scale} for std, of_scale in intervals.items()]}


def respond(digits: torch.Tensor, std: float, seed: int) -> Responses:
    """Measure the responses of one population to moving digits, with noise of one standard deviation."""
    _, drive = population(digits, FRAMES, seed)
    # Most of the drive is below the threshold: without noise, a cell is silent most of the time.
    spikes = LIFCells(drive, gain=0.35, bias=0.3, noise=Gaussian(std or 1e-9)).sample(PRESENTED, seed)
    accuracies = spike_trains.decoding_accuracy(spikes, WINDOW, list(DECODING.values()), repeats=5, seed=seed)
    return Responses(
        rate_hz=spikes.mean() / FRAME_S,
        reliability=mean_over_cells(spike_trains.reliability(spikes)),
        fano=mean_over_cells(spike_trains.mean_fano_factor(spikes, WINDOW)),
        **dict(zip(DECODING, accuracies)),
    )


@dataclasses.dataclass(frozen=True)
class Split:
    """Spikes to fit a network to, and later ones to judge it by, of the same movie."""

    movie: np.ndarray  # [T, H, W]
    fitted: np.ndarray  # trials of the first frames, [R, start, N]
    tested: np.ndarray  # trials of the others, [R', T - start, N]
    frame_s: float  # seconds per frame


def fits(study: Study, digits: torch.Tensor) -> dict:
    """C: fit all networks to LN cells and to LIF cells; fresh trials of the cells are the oracle."""
    frames, start = 5000, 4000
    movie, drive = population(digits, frames, study.seed_for("population"))
    results = {}
    for name, cells in (("LN cells", LNCells(drive)), ("LIF cells", LIFCells(drive))):
        recorded = cells.sample(FITTED_TRIALS, study.seed_for("recording"))[:, :start]
        tested = cells.sample(TEST_TRIALS, study.seed_for("test"))[:, start:]
        results[name] = compare(study, Split(movie, recorded, tested, FRAME_S), name)
        trials = [cells.sample(TRIALS * len(tested), seed) for seed in study.seeds("oracle", full=5, quick=5)]
        results[name]["oracle"] = over_seeds([judge(spikes[:, start:], tested, FRAME_S) for spikes in trials])
        study.save(f"fits_{name.split()[0].lower()}", pictures.fits(results[name], name))
    head = {"frames": start, "trials": FITTED_TRIALS, "test_frames": frames - start, "test_trials": TEST_TRIALS}
    return {**head, "results": results}


def recording(study: Study, data: Recording, name: str) -> dict:
    """Fit the same networks to a recording, whose last fifth of frames is for the test.

    Raises:
        UserError: for fewer than two trials, too few frames, more than one spike in a bin, or cells that do not
            respond to the movie; and from `fit`.
    """
    trials, frames, cells = data.spikes.shape
    if data.spikes.max() > 1:
        raise UserError(f"networks are fitted to spikes of 0 or 1, a bin has {data.spikes.max()}: use shorter bins")
    start = int(0.8 * frames)
    if start < SEGMENT:
        raise UserError(f"{name} has {frames} frames; 80 % of them must be at least {SEGMENT}")
    if data.frame_s is None:
        logger.warning("%s does not say how long a frame is (frame_s): assuming %g s", name, FRAME_S)
    split = Split(data.movie, data.spikes[:, :start], data.spikes[:, start:], data.frame_s or FRAME_S)
    with_signal = int(has_signal(split.tested).sum())
    if with_signal == 0:
        raise UserError(f"no cell of {name} responds to the last fifth of its movie more than by chance")
    results = compare(study, split, name)
    study.save("fits_recording", pictures.fits(results, name))
    head = {"file": name, "movie": data.movie.shape, "frame_s": split.frame_s, "trials": trials, "cells": cells}
    numbers = {"cells_with_signal": with_signal, "frames": start, "test_frames": frames - start}
    return {**head, **numbers, "results": results}


def compare(study: Study, split: Split, name: str) -> dict[str, dict[str, SeedInterval]]:
    """{network: its judgement, as intervals over seeds}."""
    seeds, steps = study.seeds("fits", full=5, quick=5), QUICK_STEPS if study.quick else STEPS
    jobs = {}
    for network, make in NETWORKS.items():
        # The fit of an LN model is deterministic: it is done once, and trials are drawn for each seed.
        groups = [seeds] if make is LNModel else [[seed] for seed in seeds]
        jobs[network] = [partial(_fitted, split, network, steps, group) for group in groups]
    found = study.map_groups(jobs, f"fitting to {name}")
    return {network: over_seeds(list(itertools.chain(*judged))) for network, judged in found.items()}


def _fitted(split: Split, network: str, steps: int, seeds: list[int]) -> list[Judgement]:
    """Fit a network with the first of the seeds, and judge trials drawn with each of them."""
    start = split.fitted.shape[1]
    before, judged = min(LEAD_IN, start), []
    net = fit(network, split.movie[:start], split.fitted, steps, seeds[0])
    for seed in seeds:
        spikes = simulate(net, split.movie[start - before :], TRIALS * len(split.tested), seed)
        judged.append(judge(spikes[:, before:], split.tested, split.frame_s))
    return judged


def experiments(digits: torch.Tensor) -> Experiments:
    """{name: experiment} with these digits, uint8 [N, 28, 28]."""
    return {function.__name__: partial(function, digits=digits) for function in (truth, scale, fits)}

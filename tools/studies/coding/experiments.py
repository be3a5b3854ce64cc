"""The experiments of main_coding.py: each measures, draws its picture, and returns its numbers. A is in `truth`."""

import dataclasses
import logging
from functools import partial

import numpy as np
import torch

from models import Gaussian
from tools.analysis import spike_trains
from tools.errors import UserError
from tools.studies.intervals import gains, over_seeds
from tools.studies.study import Experiments, Study

from . import pictures
from .cells import CELLS, LIFCells, LNCells, population
from .fitting import NETWORKS, SEGMENT, LNModel, fit, simulate
from .judging import Judgement, has_signal, judge, mean_over_cells
from .movie import FRAME_S
from .recordings import Recording
from .truth import WINDOW, truth

logger = logging.getLogger(__name__)
STEPS, QUICK_STEPS = 1500, 300  # of a fit
LEAD_IN = 100  # frames before the test that a network sees, so that it does not start from rest
TRIALS = 4  # of a model, for each recorded one: its mean response is better known than the recorded one


# B: the scale of the noise.


@dataclasses.dataclass(frozen=True)
class Responses:
    """What is measured of noisy LIF cells; decoding_<m>: accuracy when m trials are pooled."""

    rate_hz: float
    reliability: float
    fano: float
    decoding_1: float
    decoding_5: float
    decoding_20: float


FRAMES, PRESENTED = 1000, 40  # length of the movie, and trials
DECODING = {"decoding_1": 1, "decoding_5": 5, "decoding_20": 20}  # trials that are pooled


def scale(study: Study, digits: torch.Tensor) -> dict:
    """Measure reliability, Fano factor and decoding of noisy LIF cells against the scale of their noise.

    "..._gain" is the mean difference to the same population without noise.
    """
    seeds = study.seeds("scale", full=10, quick=5)
    scales = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.8, 1.5)
    jobs = [[partial(respond, digits, std, seed) for seed in seeds] for std in scales]
    found = study.map_groups(jobs, "scales of the noise")
    rows = []
    for std, of_scale in zip(scales, found):
        rows.append({"std": std, **over_seeds(of_scale), **gains(of_scale, found[0], DECODING)})
    study.save("noise_scale", pictures.scale(rows, DECODING))
    head = {"cells": CELLS, "frames": FRAMES, "trials": PRESENTED, "seeds": len(seeds), "chance": WINDOW / FRAMES}
    return {**head, "rows": rows}


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


# C: networks fitted to cells.


@dataclasses.dataclass(frozen=True)
class Split:
    """Spikes to fit a network to, and later ones of the same movie to judge it by."""

    movie: np.ndarray  # [T, H, W]
    fitted: np.ndarray  # trials of the first frames, [R, start, N]
    tested: np.ndarray  # trials of the others, [R', T - start, N]
    frame_s: float  # seconds per frame


def fits(study: Study, digits: torch.Tensor) -> dict:
    """Fit all networks to LN and to LIF cells; the cells themselves are the oracle."""
    frames, start = 5000, 4000
    movie, drive = population(digits, frames, study.seed_for("population"))
    results = {}
    for name, cells in (("LN cells", LNCells(drive)), ("LIF cells", LIFCells(drive))):
        recorded = cells.sample(20, study.seed_for("recording"))[:, :start]
        tested = cells.sample(50, study.seed_for("test"))[:, start:]
        results[name] = compare(study, Split(movie, recorded, tested, FRAME_S), name)
        oracle = []
        for seed in study.seeds("oracle", full=5, quick=5):
            oracle.append(judge(cells.sample(TRIALS * len(tested), seed)[:, start:], tested, FRAME_S))
        results[name]["oracle"] = over_seeds(oracle)
        study.save(f"fits_{name.split()[0].lower()}", pictures.fits(results[name], name))
    return {"frames": start, "trials": 20, "test_frames": frames - start, "test_trials": 50, "results": results}


def recording(study: Study, data: Recording, name: str) -> dict:
    """Fit the same networks to a recording, whose last fifth of frames is for the test.

    Raises:
        UserError: for fewer than two trials, too few frames, more than one spike in a bin, or cells that do not
            respond to the movie; and as `fit` does.
    """
    trials, frames, cells = data.spikes.shape
    if trials < 2:
        raise UserError("variability needs at least 2 trials, the recording has 1")
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
        raise UserError(f"no cell of {name} responds to the last fifth of its movie by more than chance")
    results = compare(study, split, name)
    study.save("fits_recording", pictures.fits(results, name))
    head = {"file": name, "movie": data.movie.shape, "frame_s": split.frame_s, "trials": trials, "cells": cells}
    numbers = {"cells_with_signal": with_signal, "frames": start, "test_frames": frames - start}
    return {**head, **numbers, "results": results}


def compare(study: Study, split: Split, name: str) -> dict[str, dict]:
    """{network: what `judge` says of it, with intervals over seeds}."""
    seeds, steps = study.seeds("fits", full=5, quick=5), QUICK_STEPS if study.quick else STEPS
    jobs = []
    for network, make in NETWORKS.items():
        # The fit of an LN model has nothing random in it: it is done once, and its trials are drawn for each seed.
        groups = [seeds] if make is LNModel else [[seed] for seed in seeds]
        jobs.append([partial(_fitted, split, network, steps, group) for group in groups])
    found = study.map_groups(jobs, f"fitting to {name}")
    return {network: over_seeds(sum(judged, [])) for network, judged in zip(NETWORKS, found)}


def _fitted(split: Split, network: str, steps: int, seeds: list[int]) -> list[Judgement]:
    """Fit a network with the first of the seeds, and judge it by trials drawn with each of them."""
    start = split.fitted.shape[1]
    net = fit(network, split.movie[:start], split.fitted, steps, seeds[0])
    before = min(LEAD_IN, start)
    judged = []
    for seed in seeds:
        spikes = simulate(net, split.movie[start - before :], TRIALS * len(split.tested), seed)
        judged.append(judge(spikes[:, before:], split.tested, split.frame_s))
    return judged


def experiments(digits: torch.Tensor) -> Experiments:
    """{name: experiment} with these digits, uint8 [N, 28, 28]."""
    return {function.__name__: partial(function, digits=digits) for function in (truth, scale, fits)}


def experiments_on(data: Recording, name: str) -> Experiments:
    """{name: experiment} on a recording with this name."""
    return {"recording": partial(recording, data=data, name=name)}

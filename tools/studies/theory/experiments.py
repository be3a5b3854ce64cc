"""The experiments of `main_theory.py`: each measures, draws its picture, and returns its numbers."""

import itertools
import math

import numpy as np
import torch
from scipy import stats

from models import Gaussian, NoisyLIF, noise_generator, noiseless
from tools.studies.matching import LAWS, law_of_std

from . import pictures
from .enumeration import SmallNetwork
from .estimators import DETERMINISTIC, QUANTITIES, STOCHASTIC, compare, estimates

THRESHOLD = 1.0
FIRING_STD = 0.3
POTENTIALS = np.linspace(-0.25, 2.25, 41)
FEWEST = 10  # spikes, or steps without one, that are expected where counts are tested: they are normal then
SCALES = (0.1, 0.2, 0.3, 0.5, 1.0, 2.0)  # standard deviations, in thresholds; REINFORCE needs many draws below
DEPTHS = (1, 2, 3)
WIDTH, TIMESTEPS = 3, 2  # of the layers of networks that are enumerated, and steps


def firing(study):
    """Measured firing probability against F; its slope, and the mean gradient of drawn spikes, against the density."""
    draws = 100_000 if study.quick else 2_000_000
    cases = list(itertools.product(LAWS, ("escape", "membrane", "both")))
    seeds = study.seeds(full=len(cases), quick=len(cases))
    jobs = [(*case, draws, seed) for case, seed in zip(cases, seeds)]
    rows, summary = {}, {}
    for (law, placement), measured in zip(cases, study.map(_fire, jobs, "firing")):
        expected = _expected(law_of_std(law, FIRING_STD), placement)
        rows[law.__name__, placement] = {"measured": measured, "expected": expected}
        summary.setdefault(law.__name__, {})[placement] = _judge(measured, expected, draws)
    pictures.firing(study.folder / "firing.png", POTENTIALS, rows, FIRING_STD)
    return {"std": FIRING_STD, "draws": draws, "potentials": len(POTENTIALS), "laws": summary}


def _fire(job):
    """Of potentials [K], the share of draws that fire, and the mean gradient [K]; slopes between potentials [K - 1]."""
    law, placement, draws, seed = job
    neuron = NoisyLIF(law_of_std(law, FIRING_STD), threshold=THRESHOLD, placement=placement)
    u = torch.from_numpy(POTENTIALS).float()
    fired, gradient = torch.zeros(len(u), dtype=torch.float64), torch.zeros(len(u), dtype=torch.float64)
    with noise_generator(torch.Generator().manual_seed(seed)):
        for _ in range(draws // 50_000):
            x = u.expand(1, 50_000, -1).clone().requires_grad_()
            spikes = neuron(x)
            (by_x,) = torch.autograd.grad(spikes.sum(), x)
            fired += spikes.detach().double().sum((0, 1))
            gradient += by_x.double().sum((0, 1))
    probability = (fired / draws).numpy()
    slope = np.diff(probability) / np.diff(POTENTIALS)
    return {"probability": probability, "slope": slope, "gradient": (gradient / draws).numpy()}


def _expected(law, placement):
    """Where one noise acts, F and the density at u - threshold; where two do, those of their sum.

    Returns:
        {"probability", "gradient" [K], "slope": means of the density between potentials [K - 1]}.
    """
    parts = 25  # of the way from one potential to the next, at whose middles the density is taken
    z = torch.from_numpy(POTENTIALS) - THRESHOLD
    middles = z[:-1, None] + z.diff()[:, None] * (torch.arange(parts) + 0.5) / parts
    probability, density = law.cdf, law.pdf
    if placement == "both":  # of the sum: means over the other noise, by its quantiles
        eps = law.icdf((torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000)
        probability, density = (lambda z, of=of: of(z[..., None] - eps).mean(-1) for of in (law.cdf, law.pdf))
    found = {"probability": probability(z), "gradient": density(z), "slope": density(middles).mean(1)}
    return {key: value.numpy() for key, value in found.items()}


def _judge(measured, expected, draws):
    """Largest deviations, and the p-value of all probabilities at once: a chi-squared test over the potentials."""
    p = expected["probability"]
    error = {key: measured[key] - expected[key] for key in expected}
    deviation = np.sqrt(p * (1 - p) / draws)
    tested = draws * np.minimum(p, 1 - p) >= FEWEST
    chi_squared = ((error["probability"][tested] / deviation[tested]) ** 2).sum()
    of_slope = np.sqrt(deviation[1:] ** 2 + deviation[:-1] ** 2) / np.diff(POTENTIALS)
    both_tested = tested[1:] & tested[:-1]
    z = error["slope"][both_tested] / of_slope[both_tested]
    return {
        "tested": tested.sum(),
        "p": stats.chi2.sf(chi_squared, tested.sum()),
        **{f"largest_{key}_error": np.abs(values).max() for key, values in error.items()},
        "largest_slope_z": np.abs(z).max(),
        "slope_z_square": (z**2).mean(),  # 1 but for chance
    }


def limit(study):
    """Share of spikes that differ from the deterministic LIF's, as the scale goes to 0."""
    scales = np.geomspace(1e-4, 1.0, 9)
    neurons = 20_000 if study.quick else 500_000
    (seed,) = study.seeds(full=1, quick=1)
    jobs = [[(law, float(scale), neurons, seed) for scale in scales] for law in LAWS]
    found = study.map_groups(_differing, jobs, "limit of vanishing noise")
    shares = {law.__name__: row for law, row in zip(LAWS, found)}
    pictures.limit(study.folder / "limit.png", scales, shares)
    return {
        "steps": 10,
        "neurons": neurons,
        "std": scales,
        "differing": shares,
        "exponent": {law: _exponent(scales[:5], row[:5]) for law, row in shares.items()},
    }


def _differing(job):
    law, std, neurons, seed = job
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(10, 1, neurons, generator=generator, dtype=torch.float64)  # [T, B, N], some below threshold
    neuron = NoisyLIF(law_of_std(law, std), threshold=THRESHOLD, decay=0.8)
    with noise_generator(generator):
        noisy = neuron(x)
    with noiseless(neuron):
        return (noisy != neuron(x)).double().mean().item()


def _exponent(scales, shares):
    """Slope of log(share) over log(scale)."""
    return float(np.polyfit(np.log(scales), np.log(np.maximum(shares, 1e-12)), 1)[0])


def exactness(study):
    """Where noise-driven learning is exact: its bias with one layer, by loss, width and number of steps."""
    networks, draws, law = study.seeds(full=100, quick=30), 4000, Gaussian(0.3)
    cases = [(loss, 1, 1, width) for loss in ("linear", "squared") for width in (1, 2, 3, 6, 12)]
    cases += [("linear", 1, timesteps, WIDTH) for timesteps in (2, 3, 4)]
    jobs = [[(*case, law, seed, draws, ("NDL",)) for seed in networks] for case in cases]
    rows = []
    for (loss, depth, timesteps, width), found in zip(cases, study.map_groups(_measure, jobs, "where it is exact")):
        bias = float(np.median([one["NDL"]["bias"] for one in found]))
        rows.append({"loss": loss, "layers": depth, "steps": timesteps, "width": width, "bias": bias})
    pictures.exactness(study.folder / "exactness.png", rows)
    return {"networks": len(networks), "std": law.std, "draws": draws, "median_bias": rows}


def gradients(study):
    """Bias, variance and cosine of all estimators, against exact gradients, over laws, scales and depths.

    Medians are over the networks that have a gradient: that of a law of narrow support can be zero.
    """
    networks, draws = study.seeds(full=20, quick=6), 4000
    cases = list(itertools.product(LAWS, DEPTHS, SCALES))
    names = (*STOCHASTIC, *DETERMINISTIC)
    jobs = [
        [("squared", depth, TIMESTEPS, WIDTH, law_of_std(law, std), seed, draws, names) for seed in networks]
        for law, depth, std in cases
    ]
    medians, have_one = {}, {}
    for (law, depth, _), found in zip(cases, study.map_groups(_measure, jobs, "gradients")):
        found = [one for one in found if not math.isnan(one["NDL"]["bias"])]
        label = f"{depth} layers"
        have_one.setdefault(law.__name__, {}).setdefault(label, []).append(len(found))
        of_depth = medians.setdefault(law.__name__, {}).setdefault(label, {})
        for name, key in itertools.product(names, QUANTITIES):
            median = float(np.median([one[name][key] for one in found])) if found else math.nan
            of_depth.setdefault(name, {}).setdefault(key, []).append(median)
    for law, of_law in medians.items():
        pictures.gradients(study.folder / f"gradients_{law.lower()}.png", SCALES, of_law, law)
    return {
        "networks": len(networks),
        "draws": draws,
        "width": WIDTH,
        "steps": TIMESTEPS,
        "std": SCALES,
        "networks_with_a_gradient": have_one,
        "medians_over_networks": medians,
    }


def _measure(job):
    """{estimator: what `compare` says} of one random network."""
    loss, depth, timesteps, width, law, seed, draws, names = job
    network = SmallNetwork.random(law, depth, width, timesteps, seed, loss)
    exact = network.exact_gradient()
    with noise_generator(torch.Generator().manual_seed(seed)):
        return {name: compare(estimates(name, network, draws), exact) for name in names}


EXPERIMENTS = {"firing": firing, "limit": limit, "exactness": exactness, "gradients": gradients}

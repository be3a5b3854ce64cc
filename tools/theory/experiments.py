"""The experiments of `main_theory.py`: each measures, draws its picture, and returns its numbers."""

import itertools

import numpy as np
import torch
from scipy import stats

from models import Gaussian, NoisyLIF, noise_generator, noiseless

from ..matching import LAWS, law_of_std
from . import pictures
from .enumeration import SmallNetwork
from .estimators import DETERMINISTIC, STOCHASTIC, compare, estimates

THRESHOLD = 1.0
FIRING_STD = 0.3
SCALES = (0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0)  # standard deviations, in thresholds
DEPTHS = (1, 2, 3)
WIDTH, TIMESTEPS = 3, 2  # of the layers of networks that are enumerated, and steps


def firing(study):
    """Measured firing probability against F; its slope, and the mean gradient of drawn spikes, against the density."""
    draws = 100_000 if study.quick else 2_000_000
    u = torch.linspace(-0.25, 2.25, 41)
    jobs = [
        (law, placement, u, draws, study.seed + number)
        for number, (law, placement) in enumerate(itertools.product(LAWS, ("escape", "membrane", "both")))
    ]
    found = dict(zip([job[:2] for job in jobs], study.map(_fire, jobs, "firing")))
    rows = {}
    for (law, placement), measured in found.items():
        expected = _expected(law_of_std(law, FIRING_STD), placement, u.double())
        rows[law.__name__, placement] = {
            "measured": measured,
            "expected": expected,
            **_judge(measured, expected, draws),
        }
    pictures.firing(study.folder / "firing.png", u.numpy(), rows, FIRING_STD)
    summary = {}
    for (law, placement), row in rows.items():
        summary.setdefault(law, {})[placement] = {
            key: row[key] for key in ("largest_error", "p", "largest_slope_error", "largest_gradient_error")
        }
    return {"std": FIRING_STD, "draws": draws, "potentials": len(u), "laws": summary}


def _fire(job):
    """Of potentials, the share of draws that fire, and the mean gradient: each [len(u)]."""
    law, placement, u, draws, seed = job
    neuron = NoisyLIF(law_of_std(law, FIRING_STD), threshold=THRESHOLD, placement=placement)
    fired, gradient = torch.zeros(len(u), dtype=torch.float64), torch.zeros(len(u), dtype=torch.float64)
    with noise_generator(torch.Generator().manual_seed(seed)):
        for _ in range(draws // 50_000):
            x = u.expand(1, 50_000, -1).clone().requires_grad_()
            spikes = neuron(x)
            (slope,) = torch.autograd.grad(spikes.sum(), x)
            fired += spikes.detach().double().sum((0, 1))
            gradient += slope.double().sum((0, 1))
    return {"probability": (fired / draws).numpy(), "gradient": (gradient / draws).numpy()}


def _expected(law, placement, u):
    """What F is where one noise acts, or the sum of two: distribution and density at u - threshold."""
    z = u - THRESHOLD
    if placement != "both":
        return {"probability": law.cdf(z).numpy(), "gradient": law.pdf(z).numpy()}
    # F of the sum: the mean of F(z - eps) over the quantiles of eps.
    quantiles = law.icdf((torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000)
    shifted = z[:, None] - quantiles
    return {"probability": law.cdf(shifted).mean(1).numpy(), "gradient": law.pdf(shifted).mean(1).numpy()}


def _judge(measured, expected, draws):
    """Largest deviations, and the p-value of all at once: a chi-squared test over the potentials."""
    p = expected["probability"]
    error = measured["probability"] - p
    deviation = np.sqrt(p * (1 - p) / draws)
    tested = draws * np.minimum(p, 1 - p) >= 10  # elsewhere the count is no normal variable
    chi_squared = ((error[tested] / deviation[tested]) ** 2).sum()
    slope = np.gradient(measured["probability"], 2.5 / 40)
    return {
        "largest_error": np.abs(error).max(),
        "p": stats.chi2.sf(chi_squared, tested.sum()),
        "largest_slope_error": np.abs(slope - np.gradient(p, 2.5 / 40)).max(),
        "largest_gradient_error": np.abs(measured["gradient"] - expected["gradient"]).max(),
    }


def limit(study):
    """Share of spikes that differ from the deterministic LIF's, as the scale goes to 0."""
    scales = np.geomspace(1e-4, 1.0, 9)
    neurons = 20_000 if study.quick else 500_000
    jobs = [(law, float(scale), neurons, study.seed) for law in LAWS for scale in scales]
    shares = np.array(study.map(_differing, jobs, "limit of vanishing noise")).reshape(len(LAWS), -1)
    pictures.limit(study.folder / "limit.png", scales, {law.__name__: row for law, row in zip(LAWS, shares)})
    return {
        "steps": 10,
        "neurons": neurons,
        "std": scales,
        "differing": {law.__name__: row for law, row in zip(LAWS, shares)},
        "exponent": {law.__name__: _exponent(scales[:5], row[:5]) for law, row in zip(LAWS, shares)},
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
    networks = study.seeds(full=30, quick=10)
    cases = [(loss, 1, 1, width) for loss in ("linear", "squared") for width in (1, 2, 3, 6, 12)]
    cases += [("linear", 1, timesteps, WIDTH) for timesteps in (2, 3, 4)]
    jobs = [(*case, Gaussian(0.3), seed, 4000, ("NDL",)) for case in cases for seed in networks]
    found = np.array([one["NDL"]["bias"] for one in study.map(_measure, jobs, "where it is exact")])
    rows = [
        {"loss": loss, "layers": depth, "steps": timesteps, "width": width, "bias": float(np.median(bias))}
        for (loss, depth, timesteps, width), bias in zip(cases, found.reshape(len(cases), -1))
    ]
    pictures.exactness(study.folder / "exactness.png", rows)
    return {"networks": len(networks), "std": 0.3, "draws": 4000, "median_bias": rows}


def gradients(study):
    """Bias, variance and cosine of all estimators, against exact gradients, over laws, scales and depths."""
    networks, draws = study.seeds(full=20, quick=6), 4000
    cases = [(law, depth, std) for law in LAWS for depth in DEPTHS for std in SCALES]
    jobs = [
        ("squared", depth, TIMESTEPS, WIDTH, law_of_std(law, std), seed, draws, (*STOCHASTIC, *DETERMINISTIC))
        for law, depth, std in cases
        for seed in networks
    ]
    found = study.map(_measure, jobs, "gradients")
    of_cases = [found[first : first + len(networks)] for first in range(0, len(found), len(networks))]
    medians = {}
    for (law, depth, _), of_case in zip(cases, of_cases):
        of_depth = medians.setdefault(law.__name__, {}).setdefault(f"{depth} layers", {})
        for name in of_case[0]:
            for key in of_case[0][name]:
                values = of_depth.setdefault(name, {}).setdefault(key, [])
                values.append(float(np.median([one[name][key] for one in of_case])))
    for law, of_law in medians.items():
        pictures.gradients(study.folder / f"gradients_{law.lower()}.png", SCALES, of_law, law)
    return {
        "networks": len(networks),
        "draws": draws,
        "width": WIDTH,
        "steps": TIMESTEPS,
        "std": SCALES,
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

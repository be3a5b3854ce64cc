"""The experiments of main_theory.py: each measures, plots, and returns its numbers."""

import dataclasses
import itertools
import math
from collections.abc import Iterable
from functools import partial

import numpy as np
import torch
from scipy import stats

from models import Gaussian, NoiseLaw, NoisyLIF, noise_generator, noiseless
from models.noise import LAWS
from tools.runtime.seeds import derived_seed
from tools.studies.matching import law_of_std
from tools.studies.study import Study

from . import pictures
from .enumeration import SmallNetwork
from .estimators import ESTIMATORS, QUANTITIES, Comparison, compare, estimates

THRESHOLD = 1.0
FIRING_STD = 0.3
POTENTIALS = np.linspace(-0.25, 2.25, 41)
FEWEST = 10  # expected spikes, and expected steps without one, for a count to be tested: it is then nearly normal
SCALES = (0.1, 0.2, 0.3, 0.5, 1.0, 2.0)  # standard deviations in thresholds; with less, REINFORCE needs too many draws
DEPTHS = (1, 2, 3)
WIDTH, TIMESTEPS = 3, 2  # neurons per layer and time steps of the networks
DRAWS = 4000


@dataclasses.dataclass(frozen=True)
class Curves:
    """Firing probability and gradient [K] at each potential, and slope [K - 1] between neighbouring ones."""

    probability: np.ndarray
    gradient: np.ndarray
    slope: np.ndarray


def firing(study: Study) -> dict:
    """Compare firing probabilities with F, and their slopes and the mean gradients of spikes with the density."""
    draws = 100_000 if study.quick else 2_000_000
    neurons = list(itertools.product(LAWS, ("escape", "membrane", "both")))
    jobs = []
    for law, placement in neurons:
        seed = study.seed_for("firing", law.__name__, placement)
        jobs.append(partial(fire, law_of_std(law, FIRING_STD), placement, draws, seed))
    curves, summary = {}, {law.__name__: {} for law in LAWS}
    for (law, placement), measured in zip(neurons, study.map(jobs, "firing")):
        expected = expected_curves(law_of_std(law, FIRING_STD), placement)
        curves[law.__name__, placement] = measured, expected
        summary[law.__name__][placement] = deviations(measured, expected, draws)
    study.save("firing", pictures.firing(POTENTIALS, curves, FIRING_STD))
    return {"std": FIRING_STD, "draws": draws, "potentials": len(POTENTIALS), "laws": summary}


def fire(law: NoiseLaw, placement: str, draws: int, seed: int) -> Curves:
    """Measure the share of draws that fire at each potential, its slope, and the mean gradient of a spike."""
    neuron = NoisyLIF(law, threshold=THRESHOLD, placement=placement)
    u = torch.from_numpy(POTENTIALS).float()
    fired, gradient = torch.zeros(2, len(u), dtype=torch.float64)
    with noise_generator(torch.Generator().manual_seed(seed)):
        for _ in range(draws // 50_000):
            x = u.expand(1, 50_000, -1).clone().requires_grad_()
            spikes = neuron(x)
            (by_x,) = torch.autograd.grad(spikes.sum(), x)
            fired += spikes.detach().double().sum((0, 1))
            gradient += by_x.double().sum((0, 1))
    probability = (fired / draws).numpy()
    return Curves(probability, (gradient / draws).numpy(), np.diff(probability) / np.diff(POTENTIALS))


def expected_curves(law: NoiseLaw, placement: str) -> Curves:
    """F and the density at u - threshold; for noise in both places, those of the sum of the two."""
    parts = 25  # points between two potentials, over which the density is averaged
    z = torch.from_numpy(POTENTIALS) - THRESHOLD
    middles = z[:-1, None] + z.diff()[:, None] * (torch.arange(parts) + 0.5) / parts
    eps = torch.zeros(1)  # noise of the membrane, as its quantiles
    if placement == "both":
        eps = law.icdf((torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000)
    slope = law.pdf(middles[..., None] - eps).mean((1, 2))
    z = z[:, None] - eps
    return Curves(law.cdf(z).mean(1).numpy(), law.pdf(z).mean(1).numpy(), slope.numpy())


def deviations(measured: Curves, expected: Curves, draws: int) -> dict:
    """Largest errors, and the p-value of all probabilities: a chi-squared test over the potentials."""
    p = expected.probability
    deviation = np.sqrt(p * (1 - p) / draws)
    tested = draws * np.minimum(p, 1 - p) >= FEWEST
    chi_squared = np.square((measured.probability - p)[tested] / deviation[tested]).sum()
    slope_error = measured.slope - expected.slope
    slope_deviation = np.hypot(deviation[1:], deviation[:-1]) / np.diff(POTENTIALS)
    both_tested = tested[1:] & tested[:-1]
    z = slope_error[both_tested] / slope_deviation[both_tested]
    return {
        "tested": tested.sum(),
        "p": stats.chi2.sf(chi_squared, tested.sum()),
        "largest_probability_error": np.abs(measured.probability - p).max(),
        "largest_gradient_error": np.abs(measured.gradient - expected.gradient).max(),
        "largest_slope_error": np.abs(slope_error).max(),
        "largest_slope_z": np.abs(z).max(),
        "slope_z_square": np.square(z).mean(),  # 1, up to chance
    }


def limit(study: Study) -> dict:
    """Measure the share of spikes that differ from the deterministic LIF's, as the scale goes to 0."""
    scales = np.geomspace(1e-4, 1.0, 9)
    neurons, seed = 20_000 if study.quick else 500_000, study.seed_for("limit")
    jobs = {}
    for law in LAWS:
        jobs[law.__name__] = [partial(_differing, law_of_std(law, float(std)), neurons, seed) for std in scales]
    shares = study.map_groups(jobs, "limit of vanishing noise")
    exponents = {}
    for law, of_law in shares.items():  # slope of log(share) against log(scale)
        exponents[law] = np.polyfit(np.log(scales[:5]), np.log(np.maximum(of_law[:5], 1e-12)), 1)[0]
    study.save("limit", pictures.limit(scales, shares))
    return {"steps": 10, "neurons": neurons, "std": scales, "differing": shares, "exponent": exponents}


def _differing(law, neurons, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(10, 1, neurons, generator=generator, dtype=torch.float64)  # [T, B, N], some below threshold
    neuron = NoisyLIF(law, threshold=THRESHOLD, decay=0.8)
    with noise_generator(generator):
        noisy = neuron(x)
    with noiseless(neuron):
        return (noisy != neuron(x)).double().mean().item()


@dataclasses.dataclass(frozen=True)
class MedianBias:
    """The median bias over networks of one kind."""

    loss: str
    layers: int
    steps: int
    width: int
    bias: float


def exactness(study: Study) -> dict:
    """Measure the bias of noise-driven learning with one layer, by loss, width and number of steps."""
    seeds, law = study.seeds("exactness", full=100, quick=30), Gaussian(0.3)
    cases = [(loss, 1, width) for loss in ("linear", "squared") for width in (1, 2, 3, 6, 12)]
    cases += [("linear", steps, WIDTH) for steps in (2, 3, 4)]
    jobs, rows = {}, []
    for loss, steps, width in cases:
        network = partial(measure, law, 1, width, steps, loss=loss, names=["NDL"])
        jobs[loss, steps, width] = [partial(network, seed) for seed in seeds]
    for (loss, steps, width), networks in study.map_groups(jobs, "where it is exact").items():
        bias = np.median([one["NDL"].bias for one in networks])
        rows.append(MedianBias(loss, 1, steps, width, bias))
    study.save("exactness", pictures.exactness(rows, WIDTH))
    return {"networks": len(seeds), "std": law.std, "draws": DRAWS, "median_bias": rows}


def gradients(study: Study) -> dict:
    """Compare all estimators with exact gradients, over laws, scales and depths.

    Medians are over the networks whose gradient is not zero, as it can be with a law of narrow support.
    """
    seeds = study.seeds("gradients", full=20, quick=6)
    jobs = {}
    for law, depth, std in itertools.product(LAWS, DEPTHS, SCALES):
        network = partial(measure, law_of_std(law, std), depth, WIDTH, TIMESTEPS)
        jobs[law, depth, std] = [partial(network, seed) for seed in seeds]
    found = study.map_groups(jobs, "gradients")
    medians, have_one = {}, {}
    for law in LAWS:
        of_law, counts = medians.setdefault(law.__name__, {}), have_one.setdefault(law.__name__, {})
        for depth in DEPTHS:
            by_scale = [_with_gradient(found[law, depth, std]) for std in SCALES]
            of_law[f"{depth} layers"] = {name: _medians(by_scale, name) for name in ESTIMATORS}
            counts[f"{depth} layers"] = [len(networks) for networks in by_scale]
        study.save(f"gradients_{law.__name__.lower()}", pictures.gradients(SCALES, of_law, law.__name__))
    head = {"networks": len(seeds), "draws": DRAWS, "width": WIDTH, "steps": TIMESTEPS, "std": SCALES}
    return {**head, "networks_with_a_gradient": have_one, "medians_over_networks": medians}


def _with_gradient(networks: list[dict[str, Comparison]]) -> list[dict[str, Comparison]]:
    """The networks whose exact gradient is not zero, to which a bias is relative."""
    return [one for one in networks if not math.isnan(one["NDL"].bias)]


def _medians(groups: list[list[dict[str, Comparison]]], estimator: str) -> dict[str, list[float]]:
    """{quantity of an estimator: its median over each group of networks}."""
    medians = {}
    for quantity in QUANTITIES:
        medians[quantity] = []
        for networks in groups:
            values = [getattr(one[estimator], quantity) for one in networks]
            medians[quantity].append(float(np.median(values)) if values else math.nan)
    return medians


def measure(
    law: NoiseLaw, layers: int, width: int, steps: int, seed: int, loss: str = "squared", names: Iterable = ESTIMATORS
) -> dict[str, Comparison]:
    """Compare estimators with the exact gradient of a random `SmallNetwork`; the seed fixes it and the noise."""
    network = SmallNetwork.random(law, layers, width, steps, seed, loss)
    exact = network.exact_gradient()
    with noise_generator(torch.Generator().manual_seed(derived_seed(seed, "noise"))):
        return {name: compare(estimates(name, network, DRAWS), exact) for name in names}


EXPERIMENTS = {"firing": firing, "limit": limit, "exactness": exactness, "gradients": gradients}

"""The experiments of main_theory.py: each measures, draws its picture, and returns its numbers."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable

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
from .estimators import DETERMINISTIC, QUANTITIES, STOCHASTIC, Comparison, compare, estimates

THRESHOLD = 1.0
FIRING_STD = 0.3
POTENTIALS = np.linspace(-0.25, 2.25, 41)
FEWEST = 10  # expected spikes, and expected steps without one, from which on a count is tested: it is then normal
SCALES = (0.1, 0.2, 0.3, 0.5, 1.0, 2.0)  # standard deviations in thresholds; below, REINFORCE needs too many draws
DEPTHS = (1, 2, 3)
WIDTH, TIMESTEPS = 3, 2  # neurons per layer, and steps, of the networks that are enumerated
DRAWS = 4000
ESTIMATORS = (*STOCHASTIC, *DETERMINISTIC)


@dataclasses.dataclass(frozen=True)
class Curves:
    """A neuron against its potential: firing probability and gradient [K], slope between neighbours [K - 1]."""

    probability: np.ndarray
    gradient: np.ndarray
    slope: np.ndarray


@dataclasses.dataclass(frozen=True)
class Neuron:
    """A neuron whose firing is measured."""

    law: type[NoiseLaw]
    placement: str  # of its noise, see `NoisyLIF`
    draws: int  # at each potential
    seed: int


def firing(study: Study) -> dict:
    """Measure firing probabilities against F, and their slopes and the mean gradient of spikes against the density."""
    draws = 100_000 if study.quick else 2_000_000
    neurons = [
        Neuron(law, placement, draws, study.seed_for("firing", law.__name__, placement))
        for law, placement in itertools.product(LAWS, ("escape", "membrane", "both"))
    ]
    curves, summary = {}, {law.__name__: {} for law in LAWS}
    for neuron, measured in zip(neurons, study.map(fire, neurons, "firing")):
        expected = expected_curves(law_of_std(neuron.law, FIRING_STD), neuron.placement)
        curves[neuron.law.__name__, neuron.placement] = measured, expected
        summary[neuron.law.__name__][neuron.placement] = deviations(measured, expected, draws)
    study.save("firing", pictures.firing(POTENTIALS, curves, FIRING_STD))
    return {"std": FIRING_STD, "draws": draws, "potentials": len(POTENTIALS), "laws": summary}


def fire(job: Neuron) -> Curves:
    """Measure the share of draws that fire at each potential, its slope, and the mean gradient of a spike."""
    neuron = NoisyLIF(law_of_std(job.law, FIRING_STD), threshold=THRESHOLD, placement=job.placement)
    u = torch.from_numpy(POTENTIALS).float()
    fired, gradient = torch.zeros(2, len(u), dtype=torch.float64)
    with noise_generator(torch.Generator().manual_seed(job.seed)):
        for _ in range(job.draws // 50_000):
            x = u.expand(1, 50_000, -1).clone().requires_grad_()
            spikes = neuron(x)
            (by_x,) = torch.autograd.grad(spikes.sum(), x)
            fired += spikes.detach().double().sum((0, 1))
            gradient += by_x.double().sum((0, 1))
    probability = (fired / job.draws).numpy()
    return Curves(probability, (gradient / job.draws).numpy(), np.diff(probability) / np.diff(POTENTIALS))


def expected_curves(law: NoiseLaw, placement: str) -> Curves:
    """F and the density at u - threshold; for noise in both places, those of the sum of the two."""
    parts = 25  # of the way between two potentials, for the mean of the density
    z = torch.from_numpy(POTENTIALS) - THRESHOLD
    middles = z[:-1, None] + z.diff()[:, None] * (torch.arange(parts) + 0.5) / parts
    cdf, pdf = law.cdf, law.pdf
    if placement == "both":
        cdf, pdf = _over_noise(law.cdf, law), _over_noise(law.pdf, law)
    return Curves(cdf(z).numpy(), pdf(z).numpy(), pdf(middles).mean(1).numpy())


def _over_noise(function: Callable, law: NoiseLaw) -> Callable:
    """The mean of function(z - eps) over the noise eps, by its quantiles."""
    eps = law.icdf((torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000)
    return lambda z: function(z[..., None] - eps).mean(-1)


def deviations(measured: Curves, expected: Curves, draws: int) -> dict:
    """Largest errors, and "p" of all probabilities at once: a chi-squared test over the potentials."""
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
    """Measure which share of spikes differs from the deterministic LIF's, as the scale goes to 0."""
    scales = np.geomspace(1e-4, 1.0, 9)
    neurons = 20_000 if study.quick else 500_000
    measure_one = functools.partial(_differing, neurons=neurons, seed=study.seed_for("limit"))
    jobs = [[law_of_std(law, float(std)) for std in scales] for law in LAWS]
    found = study.map_groups(measure_one, jobs, "limit of vanishing noise")
    shares = {law.__name__: of_law for law, of_law in zip(LAWS, found)}
    study.save("limit", pictures.limit(scales, shares))
    return {
        "steps": 10,
        "neurons": neurons,
        "std": scales,
        "differing": shares,
        "exponent": {law: _exponent(scales[:5], of_law[:5]) for law, of_law in shares.items()},
    }


def _differing(law: NoiseLaw, neurons: int, seed: int) -> float:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(10, 1, neurons, generator=generator, dtype=torch.float64)  # [T, B, N], some below threshold
    neuron = NoisyLIF(law, threshold=THRESHOLD, decay=0.8)
    with noise_generator(generator):
        noisy = neuron(x)
    with noiseless(neuron):
        return (noisy != neuron(x)).double().mean().item()


def _exponent(scales: np.ndarray, shares: list[float]) -> float:
    """Slope of log(share) over log(scale)."""
    return float(np.polyfit(np.log(scales), np.log(np.maximum(shares, 1e-12)), 1)[0])


@dataclasses.dataclass(frozen=True)
class NetworkJob:
    """A random `SmallNetwork` whose gradient is estimated."""

    law: NoiseLaw
    loss: str
    layers: int
    steps: int
    width: int
    seed: int  # of the network and of the noise
    estimators: tuple[str, ...] = ESTIMATORS  # that are compared


def exactness(study: Study) -> dict:
    """Measure where noise-driven learning is exact: its bias with one layer, by loss, width and number of steps."""
    seeds, law = study.seeds("exactness", full=100, quick=30), Gaussian(0.3)
    cases = [(loss, 1, width) for loss in ("linear", "squared") for width in (1, 2, 3, 6, 12)]
    cases += [("linear", steps, WIDTH) for steps in (2, 3, 4)]
    jobs = [[NetworkJob(law, loss, 1, steps, width, seed, ("NDL",)) for seed in seeds] for loss, steps, width in cases]
    rows = []
    for (loss, steps, width), found in zip(cases, study.map_groups(measure, jobs, "where it is exact")):
        bias = _median([one["NDL"].bias for one in found])
        rows.append({"loss": loss, "layers": 1, "steps": steps, "width": width, "bias": bias})
    study.save("exactness", pictures.exactness(rows))
    return {"networks": len(seeds), "std": law.std, "draws": DRAWS, "median_bias": rows}


def gradients(study: Study) -> dict:
    """Compare all estimators with exact gradients, over laws, scales and depths.

    Medians are over the networks that have a gradient: with a law of narrow support it can be zero.
    """
    seeds = study.seeds("gradients", full=20, quick=6)
    cases = list(itertools.product(LAWS, DEPTHS, SCALES))
    jobs = [
        [NetworkJob(law_of_std(law, std), "squared", depth, TIMESTEPS, WIDTH, seed) for seed in seeds]
        for law, depth, std in cases
    ]
    found = dict(zip(cases, study.map_groups(measure, jobs, "gradients")))
    medians, have_one = {}, {}
    for law in LAWS:
        of_law, counts = medians.setdefault(law.__name__, {}), have_one.setdefault(law.__name__, {})
        for depth in DEPTHS:
            by_scale = [_with_gradient(found[law, depth, std]) for std in SCALES]
            of_law[f"{depth} layers"] = {name: _medians(name, by_scale) for name in ESTIMATORS}
            counts[f"{depth} layers"] = [len(networks) for networks in by_scale]
        study.save(f"gradients_{law.__name__.lower()}", pictures.gradients(SCALES, of_law, law.__name__))
    return {
        "networks": len(seeds),
        "draws": DRAWS,
        "width": WIDTH,
        "steps": TIMESTEPS,
        "std": SCALES,
        "networks_with_a_gradient": have_one,
        "medians_over_networks": medians,
    }


def _with_gradient(networks: list[dict[str, Comparison]]) -> list[dict[str, Comparison]]:
    return [one for one in networks if not math.isnan(one["NDL"].bias)]


def _medians(estimator: str, by_scale: list[list[dict[str, Comparison]]]) -> dict[str, list[float]]:
    """{quantity: median over networks for each scale} of one estimator."""
    found = {}
    for quantity in QUANTITIES:
        found[quantity] = [_median([getattr(one[estimator], quantity) for one in networks]) for networks in by_scale]
    return found


def _median(values: list[float]) -> float:
    return float(np.median(values)) if values else math.nan


def measure(job: NetworkJob) -> dict[str, Comparison]:
    """Compare each estimator with the exact gradient of one random network."""
    network = SmallNetwork.random(job.law, job.layers, job.width, job.steps, job.seed, job.loss)
    exact = network.exact_gradient()
    with noise_generator(torch.Generator().manual_seed(derived_seed(job.seed, "noise"))):
        return {name: compare(estimates(name, network, DRAWS), exact) for name in job.estimators}


EXPERIMENTS = {"firing": firing, "limit": limit, "exactness": exactness, "gradients": gradients}

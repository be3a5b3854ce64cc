"""The experiments of main_regularisation.py: each measures, plots, and returns its numbers."""

import dataclasses
import itertools
from functools import partial

from models import Gaussian
from models.noise import LAWS
from tools.analysis.statistics import SeedInterval, seed_interval
from tools.studies.intervals import gains, over_seeds
from tools.studies.study import Experiments, Study

from . import pictures
from .runs import Data, Run, learn_scales, measure

GAINS = ("test_accuracy", "train_loss", "test_loss", "gap", "sharpness", "hessian_trace")  # compared in pairs
QUICK_SIZES = (100, 1000, 4000)  # numbers of training images, also those that are plotted


@dataclasses.dataclass(frozen=True)
class Group:
    """Networks that differ by their seed alone, with the interval over seeds of each quantity."""

    images: int
    std: float
    law: str  # its name
    noisy: bool
    intervals: dict[str, SeedInterval]

    def as_json(self) -> dict:
        row = vars(self) | self.intervals
        del row["intervals"]
        return row


def generalisation(study: Study, data: Data) -> dict:
    """Measure networks by scale, law and number of training images.

    "..._gain" is the mean difference from the network without noise, whose surrogate gradient is the Gaussian density
    of the same standard deviation, over pairs of the same seed: with the same images, initial weights and order.
    """
    sizes = QUICK_SIZES if study.quick else (100, 400, 1000, 4000)
    stds = (0.1, 0.3, 0.6, 1.2) if study.quick else (0.05, 0.1, 0.3, 0.6, 1.2, 2.0)
    seeds = study.seeds("generalisation", full=5, quick=3)
    steps = 300 if study.quick else 1000
    kinds = [(law, True) for law in LAWS] + [(Gaussian, False)]
    jobs = {}
    for size, std, (law, noisy) in itertools.product(sizes, stds, kinds):
        runs = [Run(data, size, law, std, noisy, steps, seed) for seed in seeds]
        jobs[size, std, law, noisy] = [partial(measure, run) for run in runs]
    found = study.map_groups(jobs, "networks")
    groups = []
    for (size, std, law, noisy), networks in found.items():
        intervals = over_seeds(networks)
        if noisy:
            intervals |= gains(networks, found[size, std, Gaussian, False], GAINS)
        groups.append(Group(size, std, law.__name__, noisy, intervals))
    study.save("generalisation", pictures.generalisation(groups, QUICK_SIZES))
    study.save("few_images", pictures.few_images(groups, std=0.3))
    return {"seeds": len(seeds), "steps": steps, "rows": [group.as_json() for group in groups]}


def learnt_scales(study: Study, data: Data) -> dict:
    """Let each layer of a convolutional network learn its scale, from several initial scales."""
    seeds = study.seeds("learnt scales", full=5, quick=3)
    stds, steps = (0.1, 0.3, 1.0), 200 if study.quick else 2000
    jobs = {}
    for std in stds:
        jobs[std] = [partial(learn_scales, Run(data, 4000, Gaussian, std, True, steps, seed)) for seed in seeds]
    found = study.map_groups(jobs, "learnt scales")
    study.save("learnt_scales", pictures.learnt_scales(found))
    rows = []
    for std, networks in found.items():
        layers = [seed_interval(scales) for scales in zip(*(one.scales[-1] for one in networks))]
        accuracy = seed_interval([one.accuracy for one in networks])
        rows.append({"initial": std, "layers": layers, "test_accuracy": accuracy})
    return {"model": "vggwoap", "width": 0.125, "seeds": len(seeds), "steps": steps, "rows": rows}


def experiments(data: Data) -> Experiments:
    """{name: experiment} with these images."""
    return {function.__name__: partial(function, data=data) for function in (generalisation, learnt_scales)}

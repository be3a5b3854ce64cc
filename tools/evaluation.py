"""Test a snapshot: clean, and against the strength of perturbations; results as JSON and PNG."""

import contextlib
import dataclasses
import json
import logging
import statistics
from pathlib import Path

import torch

from models import NoisyLIF

from . import engine
from .experiment import evaluation_noise
from .networks import load_snapshot, memory_format, set_up_torch
from .perturb import PERTURBATIONS
from .pictures import picture_recordings, picture_spikes
from .plots import plot_curves
from .runlog import provenance

logger = logging.getLogger(__name__)


class Evaluation:
    """The tests of one snapshot.

    Args:
        config: `EvaluationConfig`.
        dataset: has name, classes, mean, std, and input_shape() and load() of `dataset_utils`.

    Raises:
        CheckpointError, FileNotFoundError: for a snapshot or data that are not there, or do not fit.
        ValueError: for strengths out of range.
    """

    def __init__(self, config, dataset):
        self.config = config
        self.dataset = dataset
        self.device = set_up_torch(config)
        if config.range and not config.perturbation:
            raise ValueError("--range needs to know of what: give --perturbation")
        self.strengths = {name: _strengths(config, name) for name in config.perturbation}
        self.net, self.trained = load_snapshot(config, dataset)
        layout = memory_format(self.trained)
        self.net.to(self.device, memory_format=layout)
        self.forward = engine.ForwardPass(self.device, self.trained.timestep, self.trained.amp)
        data = dataset.load(config.data_root, config.download, config.workers, config.lenient, self.trained)
        self.test = data["test"]
        self._check_perturbations()
        self.batch_options = dict(batch_size=config.minibatch, device=self.device, memory_format=layout)
        self.batches = self.test.batches(**self.batch_options)
        self.is_noisy = any(isinstance(module, NoisyLIF) for module in self.net.modules())

    def _check_perturbations(self):
        other = "pixels" if hasattr(self.test, "perturbed") else "events"
        for name in self.config.perturbation:
            if PERTURBATIONS[name].where == other:
                raise ValueError(f"{name} perturbs {other}, which {self.dataset.name} has not")

    def run(self):
        """Run all tests of the configuration, and write them.

        Returns:
            {perturbation, or "clean": list of points}; a point has strength, and accuracy and loss
            as mean, standard deviation over draws, and the draws themselves.
        """
        folder = self._folder()
        folder.mkdir(parents=True, exist_ok=True)
        results = {}
        for name in dict.fromkeys(self.config.perturbation or ["clean"]):
            strengths = self.strengths.get(name, [0.0])
            points = [self._point(name, strength) for strength in strengths]
            results[name] = points
            self._write(folder, name, points)
        if self.config.pictures:
            self._picture(folder)
        return results

    def _picture(self, folder):
        """Pictures of a test sample of each class, and of the network's spikes."""
        names = self.dataset.classes
        if hasattr(self.test, "events"):
            picture_recordings(folder / "recordings.png", self.test, names)
            logger.info("written: %s", folder / "recordings.png")
        title = f"{self.trained.model}, {self.trained.neuron}, on {self.dataset.name}"
        with evaluation_noise(self.device, self.config.seed):
            picture_spikes(folder / "rasters.png", self.net.eval(), self.test, names, self.forward, title)
        logger.info("written: %s", folder / "rasters.png")

    def _point(self, name, strength):
        """Accuracy and loss at one strength: R draws of the network's noise and of the perturbation."""
        is_random = self.is_noisy or strength > 0
        draws = [self._draw(name, strength, draw) for draw in range(self.config.draws if is_random else 1)]
        point = {"strength": strength}
        for quantity in ("accuracy", "loss"):
            values = [draw[quantity] for draw in draws]
            point[f"{quantity}_mean"] = statistics.fmean(values)
            point[f"{quantity}_std"] = statistics.stdev(values) if len(values) > 1 else 0.0
            point[f"{quantity}_draws"] = values
        logger.info(
            "%-14s %8.4g   accuracy %6.2f +- %.2f %%   loss %.4f",
            name,
            strength,
            100 * point["accuracy_mean"],
            100 * point["accuracy_std"],
            point["loss_mean"],
        )
        return point

    def _draw(self, name, strength, draw):
        """One pass over the test images, with seeds that depend on nothing but `seed` and the draw."""
        seed = 2 * (1000 * self.config.seed + draw)
        hidden, transform, batches = contextlib.nullcontext(), None, self.batches
        if strength > 0:
            perturbation = PERTURBATIONS[name]
            is_hidden = perturbation.where == "hidden"
            generator = torch.Generator(self.device if is_hidden else "cpu").manual_seed(seed + 1)
            if is_hidden:
                hidden = perturbation.apply(self.net, strength, generator)
            elif perturbation.where == "events":
                batches = self.test.perturbed(perturbation.apply, strength, seed + 1).batches(**self.batch_options)
            else:

                def transform(images):
                    return perturbation.apply(images, strength, generator)

        with evaluation_noise(self.device, seed), hidden:
            return engine.evaluate(
                self.net,
                batches,
                self.forward,
                n_ensembles=self.config.n_ensembles,
                transform=transform,
                description=f"{name} {strength:g}, draw {draw + 1}",
            )

    def _folder(self):
        if self.config.out:
            return Path(self.config.out)
        snapshot = Path(self.config.snapshot)
        return snapshot.parent / ("evaluation" if snapshot.stem == "best" else f"evaluation-{snapshot.stem}")

    def _write(self, folder, name, points):
        ensemble = f"-k{self.config.n_ensembles}" if self.config.n_ensembles > 1 else ""
        path = folder / f"{name}{ensemble}.json"
        content = {
            "dataset": self.dataset.name,
            "test_images": len(self.test),
            "snapshot": self.config.snapshot,
            "model": self.trained.model,
            "neuron": self.trained.neuron,
            "timestep": self.trained.timestep,
            "perturbation": name,
            "n_ensembles": self.config.n_ensembles,
            "points": points,
            "settings": dataclasses.asdict(self.config),
            "provenance": provenance(),
        }
        path.write_text(json.dumps(content, indent=2) + "\n")
        logger.info("written: %s", path)
        if name != "clean":
            picture = path.with_suffix(".png")
            label = f"{self.trained.model}, {self.trained.neuron}"
            plot_curves(picture, {label: points}, PERTURBATIONS[name].unit, self.dataset.name)
            logger.info("written: %s", picture)


def _strengths(config, name):
    """The strengths at which a perturbation is tested, the clean test (0) among them."""
    perturbation = PERTURBATIONS[name]
    strengths = sorted({0.0, getattr(config, perturbation.flag)})
    if config.range:
        if config.right < config.left:
            raise ValueError(f"--right ({config.right}) must not be below --left ({config.left})")
        count = int((config.right - config.left) / config.step + 1e-6) + 1
        strengths = [round(config.left + index * config.step, 10) for index in range(count)]
    if strengths[-1] > perturbation.highest:
        raise ValueError(f"the strength of {name} is a {perturbation.unit}: at most {perturbation.highest:g}")
    return strengths

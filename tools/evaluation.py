"""Test a snapshot: clean, and against the strength of perturbations; results as JSON and PNG."""

import contextlib
import dataclasses
import functools
import json
import logging
import statistics
import zlib
from pathlib import Path

import torch

from models import NoisyLIF

from . import engine, metrics
from .conditions import CLEAN, conditions
from .efficiency import count_operations
from .experiment import evaluation_noise
from .files import write_text_atomically
from .monitor import firing_rates
from .networks import NETWORK_SETTINGS, load_snapshot, memory_format, set_up_torch
from .perturb import PERTURBATIONS
from .pictures import picture_recordings, picture_spikes
from .plots import plot_curves
from .runlog import provenance
from .uncertainty import SIZES, ensemble_curve, out_of_distribution

logger = logging.getLogger(__name__)


class Evaluation:
    """The tests of one snapshot.

    Args:
        config: `EvaluationConfig`.
        other_datasets: {name: data set}, for `config.ood`.
        dataset: has name, classes, mean, std, has_pixels, and input_shape() and load() of `dataset_utils`.

    Raises:
        CheckpointError, FileNotFoundError: for a snapshot or data that are not there, or do not fit.
        ValueError: for strengths out of range.
    """

    def __init__(self, config, dataset, other_datasets=None):
        self.config = config
        self.dataset = dataset
        self.other_datasets = other_datasets or {}
        self.conditions = conditions(config, dataset.has_pixels)
        if config.ood and not config.uncertainty:
            raise ValueError("--ood is a test of uncertainty: give --uncertainty too")
        self.device = set_up_torch(config)
        self.net, self.trained = load_snapshot(config, dataset)
        layout = memory_format(self.trained)
        self.net.to(self.device, memory_format=layout)
        self.forward = engine.ForwardPass(self.device, self.trained.timestep, self.trained.amp)
        data = self._load(dataset)
        self.test, self.validation = data["test"], data["val"]
        self.outside = self._load_outside() if config.ood else None
        self.batch_options = dict(batch_size=config.minibatch, device=self.device, memory_format=layout)
        self.batches = self.test.batches(**self.batch_options)
        self.clean = None  # its point, measured once
        self.checksum = zlib.crc32(Path(config.snapshot).read_bytes())
        self.is_noisy = any(isinstance(module, NoisyLIF) for module in self.net.modules())

    def _load(self, dataset):
        """The parts of a data set, as this network sees it."""
        config = self.config
        return dataset.load(config.data_root, config.download, config.workers, config.lenient, self.trained)

    def _load_outside(self):
        """The test part of another data set with images of the same shape, none of which belong to our classes."""
        if self.config.ood not in self.other_datasets:
            raise ValueError(f"--ood must be one of {', '.join(self.other_datasets)}; got {self.config.ood}")
        other = self.other_datasets[self.config.ood]
        shapes = [dataset.input_shape(self.trained) for dataset in (self.dataset, other)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"--ood {other.name} has inputs {shapes[1]}, {self.dataset.name} has {shapes[0]}")
        return self._load(other)["test"]

    def run(self):
        """Run all tests of the configuration, and write them; what an earlier run has written is not run again.

        Returns:
            {perturbation, or "clean": list of points}; a point has severity and strength, accuracy and loss as mean,
            standard deviation over draws and the draws themselves, and for each test sample in how many draws it was
            classified correctly (`times_correct`).
        """
        folder = self._folder()
        folder.mkdir(parents=True, exist_ok=True)
        results = {}
        for name, tests in self.conditions.items():
            done = self._points_of_before(folder, name)
            results[name] = []
            for condition in tests:
                before = done.get((condition.severity, condition.strength))
                point = before or self._point(condition)
                if condition.is_clean:
                    self.clean = point
                results[name].append(point)
                self._log(name, point)
                if before is None:
                    self._write(folder, name, results[name])
            if done:  # its points may have been more, or in another order
                self._write(folder, name, results[name])
            self._plot(folder, name, results[name])
        if self.config.uncertainty:
            self._uncertainty(folder)
        if self.config.efficiency:
            self._efficiency(folder)
        if self.config.pictures:
            self._picture(folder)
        return results

    def _efficiency(self, folder):
        """Firing rates, synaptic operations and their energy, over the test samples; one draw of the noise."""
        noise = evaluation_noise(self.device, self._seed(0))
        with noise, firing_rates(self.net) as rates, count_operations(self.net) as operations:
            engine.predict_all(self.net, self.batches, self.forward, description="counting operations")
        report = operations.report()
        self._write_report(folder / "efficiency.json", {"firing_rates": rates.rates(), **report})
        logger.info(
            "operations per sample: %.4g accumulates, %.4g multiply-accumulates, %.4g nJ; ReLU network: %.4g, %.4g nJ",
            *(report[key] for key in ("ac", "mac", "energy_nj", "relu_mac", "relu_energy_nj")),
        )

    def _write_report(self, path, report):
        write_text_atomically(path, json.dumps({"identity": self.identity, **report}, indent=2) + "\n")
        logger.info("written: %s", path)

    def _uncertainty(self, folder):
        """Scores against the number of averaged draws; equal-compute control; another data set, if one is given."""
        sizes = SIZES if self.is_noisy else (1,)
        parts = {"test": self.batches, "val": self.validation.batches(**self.batch_options)}
        draws = {name: self._predictions(batches, max(sizes), name) for name, batches in parts.items()}
        targets = {"test": self.test.labels.to(self.device), "val": self.validation.labels.to(self.device)}
        report = {
            "validation_images": len(self.validation),
            "bins": metrics.BINS,
            "curve": ensemble_curve(draws["test"], targets["test"], draws["val"], targets["val"], sizes),
        }
        if self.dataset.has_pixels:
            report["more_time_steps"] = [self._with_time_steps(factor, parts, targets) for factor in SIZES]
        if self.config.ood:
            others = self.outside.batches(**self.batch_options)
            outside = self._predictions(others, max(sizes), self.config.ood)
            report["out_of_distribution"] = {
                "dataset": self.config.ood,
                "test_images": len(self.outside),
                "curve": out_of_distribution(draws["test"], outside, sizes),
            }
        for row in report["curve"]:
            logger.info(
                "%2d draws: accuracy %.2f %%, NLL %.4f, calibration error %.4f (%.4f with temperature %.2f)",
                *(row["draws"], 100 * row["accuracy"], row["nll"], row["calibration_error"]),
                *(row["calibration_error_scaled"], row["temperature"]),
            )
        self._write_report(folder / "uncertainty.json", report)

    def _predictions(self, batches, count, what, forward=None):
        """Log-probabilities of independent noise draws, [count, N, K]."""
        draws = []
        for draw in range(count):
            with evaluation_noise(self.device, self._seed(draw)):
                description = f"{what}, draw {draw + 1} of {count}"
                draws.append(engine.predict_all(self.net, batches, forward or self.forward, description=description)[0])
        return torch.stack(draws)

    def _with_time_steps(self, factor, parts, targets):
        """Scores of one draw with more time steps: what the computing of `factor` draws buys without an ensemble."""
        forward = dataclasses.replace(self.forward, timesteps=factor * self.forward.timesteps)
        draws = {
            name: self._predictions(batches, 1, f"{name}, {forward.timesteps} time steps", forward)
            for name, batches in parts.items()
        }
        (row,) = ensemble_curve(draws["test"], targets["test"], draws["val"], targets["val"], (1,))
        return {"timesteps": forward.timesteps, **row}

    def _picture(self, folder):
        """Pictures of a test sample of each class, and of the network's spikes."""
        names = self.dataset.classes
        if not self.dataset.has_pixels:
            picture_recordings(folder / "recordings.png", self.test, names)
            logger.info("written: %s", folder / "recordings.png")
        title = f"{self.trained.model}, {self.trained.neuron}, on {self.dataset.name}"
        with evaluation_noise(self.device, self.config.seed):
            picture_spikes(folder / "rasters.png", self.net.eval(), self.test, names, self.forward, title)
        logger.info("written: %s", folder / "rasters.png")

    def _point(self, condition):
        """Accuracy and loss under one condition: several draws of the network's noise and of the perturbation."""
        if condition.is_clean and self.clean is not None:
            return {**self.clean, "strength": condition.strength}
        is_random = self.is_noisy or not condition.is_clean
        predictions = [self._draw(condition, draw) for draw in range(self.config.draws if is_random else 1)]
        point = {"severity": condition.severity, "strength": condition.strength}
        for quantity, score in (("accuracy", metrics.accuracy), ("loss", metrics.negative_log_likelihood)):
            values = [score(*prediction) for prediction in predictions]
            point[f"{quantity}_mean"] = statistics.fmean(values)
            point[f"{quantity}_std"] = statistics.stdev(values) if len(values) > 1 else 0.0
            point[f"{quantity}_draws"] = values
        hits = [log_probabilities.argmax(-1) == target for log_probabilities, target in predictions]
        point["times_correct"] = torch.stack(hits).sum(0).tolist()
        return point

    def _log(self, name, point):
        strength = "clean" if point["severity"] == 0 else f"{point['strength']:.4g}"
        logger.info(
            "%-14s %8s   accuracy %6.2f +- %.2f %%   loss %.4f",
            name,
            strength,
            100 * point["accuracy_mean"],
            100 * point["accuracy_std"],
            point["loss_mean"],
        )

    def _draw(self, condition, draw):
        """One pass over the test samples, with seeds that depend on nothing but `seed` and the draw.

        Returns:
            Log-probabilities [N, K], labels [N].
        """
        seed = self._seed(draw)
        hidden, transform, batches = contextlib.nullcontext(), None, self.batches
        if not condition.is_clean:
            perturbation, strength = PERTURBATIONS[condition.name], condition.strength
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
            return engine.predict_all(
                self.net,
                batches,
                self.forward,
                n_ensembles=self.config.n_ensembles,
                transform=transform,
                description=f"{condition.name} {condition.strength}, draw {draw + 1}",
            )

    def _seed(self, draw):
        """Seed of the network's noise in a draw; the next number is that of the draw's perturbation."""
        return 2 * (1000 * self.config.seed + draw)

    def _folder(self):
        if self.config.out:
            return Path(self.config.out)
        snapshot = Path(self.config.snapshot)
        return snapshot.parent / ("evaluation" if snapshot.stem == "best" else f"evaluation-{snapshot.stem}")

    def _file(self, folder, name):
        ensemble = f"-k{self.config.n_ensembles}" if self.config.n_ensembles > 1 else ""
        return folder / f"{name}{ensemble}.json"

    @functools.cached_property
    def identity(self):
        """All that the points of one condition depend on: where it is the same, they need not be measured again."""
        return {
            "dataset": self.dataset.name,
            "test_images": len(self.test),
            "snapshot": self.config.snapshot,
            "checksum": self.checksum,
            "network": {name: getattr(self.trained, name) for name in NETWORK_SETTINGS},
            **{name: getattr(self.config, name) for name in ("seed", "draws", "n_ensembles", "minibatch")},
            "provenance": provenance(),
        }

    def _points_of_before(self, folder, name):
        """{(severity, strength): point} that an earlier run of the same tests has written."""
        try:
            content = json.loads(self._file(folder, name).read_text())
            is_known = not content["identity"]["provenance"]["git"].endswith("-dirty")  # else who knows what it was
            if is_known and content["identity"] == self.identity:
                return {(point["severity"], point["strength"]): point for point in content["points"]}
        except (OSError, ValueError, KeyError, TypeError):  # none, or not one of this version
            pass
        return {}

    def _write(self, folder, name, points):
        head = json.dumps({"perturbation": name, "identity": self.identity}, indent=2).removesuffix("\n}")
        rows = ",\n".join(f"    {json.dumps(point)}" for point in points)  # a line each: they are long
        text = f'{head},\n  "points": [\n{rows}\n  ]\n}}\n'
        write_text_atomically(self._file(folder, name), text)

    def _plot(self, folder, name, points):
        path = self._file(folder, name)
        logger.info("written: %s", path)
        if name != CLEAN:
            picture = path.with_suffix(".png")
            label = f"{self.trained.model}, {self.trained.neuron}"
            plot_curves(picture, {label: points}, PERTURBATIONS[name].unit, self.dataset.name)
            logger.info("written: %s", picture)

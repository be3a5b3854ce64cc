"""Test a snapshot: clean, against perturbations and attacks, and how certain it is; results as JSON and PNG."""

import dataclasses
import functools
import json
import logging
import zlib
from pathlib import Path

import torch

from tools import inference
from tools.analysis import metrics
from tools.analysis.uncertainty import SIZES, ensemble_curve, out_of_distribution
from tools.attacks.campaign import PRESETS, SUBSET, Campaign
from tools.data.events.pictures import picture_recordings
from tools.evaluation.report.curves import plot_curves
from tools.networks import NETWORK_SETTINGS, load_snapshot, memory_format, seeded_noise
from tools.perturb.corruptions import CorruptionFolder
from tools.probes.firing_rates import firing_rates
from tools.probes.operations import count_operations
from tools.probes.rasters import picture_spikes
from tools.runtime.device import set_up_torch
from tools.runtime.provenance import provenance

from .conditions import CLEAN, conditions, unit
from .passes import Trials
from .stored import ResultFolder

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
        if config.ood and not config.uncertainty:
            raise ValueError("--ood is a test of uncertainty: give --uncertainty too")
        if config.attack_preset and not dataset.has_pixels:
            raise ValueError(f"--attack_preset is for images, {dataset.name} has events")
        self.corruptions = None
        if config.corruptions:
            self.corruptions = CorruptionFolder(config.corruptions, dataset.input_shape(config), dataset.num_classes)
        corrupted = self.corruptions.names if self.corruptions else ()
        self.conditions = conditions(config, dataset.has_pixels, corrupted)
        self.device = set_up_torch(config)
        self.net, self.trained = load_snapshot(config, dataset)
        layout = memory_format(self.trained)
        self.net.to(self.device, memory_format=layout)
        self.forward = inference.ForwardPass(self.device, self.trained.timestep, self.trained.amp, config.fold)
        data = self._load(dataset)
        self.test, self.validation = data["test"], data["val"]
        self.outside = self._load_outside() if config.ood else None
        self.batch_options = dict(batch_size=config.minibatch, device=self.device, memory_format=layout)
        self.trials = Trials(self.net, self.forward, self.test, self.batch_options, config, self.corruptions)
        self.checksum = zlib.crc32(Path(config.snapshot).read_bytes())
        suffix = f"-k{config.n_ensembles}" if config.n_ensembles > 1 else ""
        self.folder = ResultFolder(self._path(), self.identity, self._identity_of_points(), suffix)

    def _load(self, dataset):
        """The parts of a data set, as this network sees it."""
        chosen = {name: getattr(self.config, name) for name in ("data_root", "download", "workers", "lenient")}
        return dataset.load(dataclasses.replace(self.trained, **chosen))

    def _load_outside(self):
        """The test part of another data set with images of the same shape, none of which belong to our classes."""
        others = self.other_datasets.keys() - {self.dataset.name}
        if self.config.ood not in others:
            raise ValueError(f"--ood must be one of {', '.join(sorted(others))}; got {self.config.ood}")
        other = self.other_datasets[self.config.ood]
        shapes = [dataset.input_shape(self.trained) for dataset in (self.dataset, other)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"--ood {other.name} has inputs {shapes[1]}, {self.dataset.name} has {shapes[0]}")
        return self._load(other)["test"]

    def _path(self):
        if self.config.out:
            return Path(self.config.out)
        snapshot = Path(self.config.snapshot)
        return snapshot.parent / ("evaluation" if snapshot.stem == "best" else f"evaluation-{snapshot.stem}")

    @functools.cached_property
    def identity(self):
        """All that results depend on: where it is the same, they need not be measured again."""
        return {
            "dataset": self.dataset.name,
            "test_images": len(self.test),
            "data_checksums": [self._data_checksum(part) for part in (self.test, self.validation)],
            "snapshot": self.config.snapshot,
            "checksum": self.checksum,
            "network": {name: getattr(self.trained, name) for name in NETWORK_SETTINGS},
            "training_seed": self.trained.seed,
            **{name: getattr(self.config, name) for name in ("seed", "minibatch", "fold")},
            "device": str(self.device),
            "provenance": provenance(),
        }

    def _identity_of_points(self):
        settings = {name: getattr(self.config, name) for name in ("draws", "n_ensembles", "adv_draws")}
        return {**settings, "corruptions": self.corruptions.stamps() if self.corruptions else []}

    def _data_checksum(self, part):
        """Of the samples of a part as they go into the network, and of their labels."""
        checksum = 0
        for batch in part.batches(self.config.minibatch, torch.device("cpu")):
            for values in batch:
                checksum = zlib.crc32(values.contiguous().numpy().data, checksum)
        return checksum

    def run(self):
        """Run all tests of the configuration, and write them; what an earlier run has written is not run again.

        Returns:
            {"perturbations": {perturbation, or "clean": list of points of `Trials.point`}; and, where they were asked
            for, the reports "uncertainty", "attacks" and "efficiency"}.
        """
        results = {"perturbations": {}}
        for name, tests in self.conditions.items():
            clean = results["perturbations"].get(CLEAN, [None])[0]
            results["perturbations"][name] = self._points(name, tests, clean)
        for name, measure in (
            ("uncertainty", self._uncertainty),
            ("attacks", self._attacks),
            ("efficiency", self._efficiency),
        ):
            if report := measure():
                results[name] = report
        if self.config.pictures:
            self._picture()
        return results

    def _points(self, name, tests, clean):
        """The points of one perturbation; `clean` is the point without any, where it was measured before."""
        done, points = self.folder.points(name), []
        for condition in tests:
            key = (condition.severity, condition.strength)
            if key not in done:
                if condition.is_clean and clean is not None:
                    done[key] = {**clean, "strength": condition.strength}
                    del done[key]["confusion"], done[key]["worst"]
                else:
                    done[key] = self.trials.point(condition)
                self.folder.write_points(name, done)
            points.append(done[key])
            self._log(name, points[-1])
        path = self.folder.points_file(name)
        logger.info("written: %s", path)
        if name != CLEAN:
            picture = path.with_suffix(".png")
            label = f"{self.trained.model}, {self.trained.neuron}"
            plot_curves(picture, {label: points}, unit(name), self.dataset.name)
            logger.info("written: %s", picture)
        return points

    def _log(self, name, point):
        strength = "clean" if point["severity"] == 0 else f"{point['strength']:.4g}"
        logger.info(
            "%-14s %8s   accuracy %6.2f %s %%   loss %.4f",
            name,
            strength,
            100 * point["accuracy_mean"],
            "" if point["accuracy_std"] is None else f"+- {100 * point['accuracy_std']:.2f}",
            point["loss_mean"],
        )

    def _uncertainty(self):
        """Scores against the number of averaged draws; equal-compute control; another data set, if one is given."""
        if not self.config.uncertainty:
            return None
        report = self.folder.report("uncertainty", ood=self.config.ood) or self._measure_uncertainty()
        for row in report["curve"]:
            logger.info(
                "%2d draws: accuracy %.2f %%, NLL %.4f, calibration error %.4f (%.4f with temperature %.2f)",
                *(row["draws"], 100 * row["accuracy"], row["nll"], row["calibration_error"]),
                *(row["calibration_error_scaled"], row["temperature"]),
            )
        logger.info("%.0f images per second (%d draws)", report["images_per_s"], report["curve"][-1]["draws"])
        return report

    def _measure_uncertainty(self):
        sizes = SIZES if self.trials.is_noisy else (1,)
        parts = {"val": self.validation.batches(**self.batch_options), "test": self.trials.batches}
        draws = {name: self.trials.draws(batches, max(sizes), name) for name, batches in parts.items()}
        targets = {"test": self.test.labels.to(self.device), "val": self.validation.labels.to(self.device)}
        report = {
            "ood": self.config.ood,
            "validation_images": len(self.validation),
            "bins": metrics.BINS,
            "images_per_s": self.trials.images_per_s,
            "curve": ensemble_curve(draws["test"], targets["test"], draws["val"], targets["val"], sizes),
            "reliability": {
                str(size): metrics.reliability(metrics.mean_prediction(draws["test"][:size]), targets["test"])
                for size in (1, max(sizes))
            },
        }
        if self.dataset.has_pixels:
            # as many passes for each row as the draws' own curve had
            report["more_time_steps"] = [
                self._with_time_steps(factor, max(sizes) // factor or 1, parts, targets) for factor in SIZES[1:]
            ]
        if self.config.ood:
            outside = self.trials.draws(self.outside.batches(**self.batch_options), max(sizes), self.config.ood)
            report["out_of_distribution"] = {
                "dataset": self.config.ood,
                "test_images": len(self.outside),
                "curve": out_of_distribution(draws["test"], outside, sizes),
            }
        return self.folder.write_report("uncertainty", report)

    def _with_time_steps(self, factor, count, parts, targets):
        """Scores of single draws with more time steps: what the computing of `factor` draws buys without an ensemble.

        Args:
            count: draws over which the scores are averaged.
        """
        forward = dataclasses.replace(self.forward, timesteps=factor * self.forward.timesteps)
        draws = {
            name: self.trials.draws(batches, count, f"{name}, {forward.timesteps} time steps", forward)
            for name, batches in parts.items()
        }
        (row,) = ensemble_curve(draws["test"], targets["test"], draws["val"], targets["val"], (1,))
        return {"factor": factor, "timesteps": forward.timesteps, **row}

    def _attacks(self):
        """All attacks of a preset, their scores, and the gates that say whether to believe them."""
        name = self.config.attack_preset
        if not name:
            return None
        preset = PRESETS[name]
        report = self.folder.report(f"attacks-{name}", settings=_plain(preset)) or self._attack(name, preset)
        for row in report["attacks"]:
            logger.info(
                "%-4s %-8.4g %-22s accuracy %6.2f %%, mean of %d draws: %6.2f %%",
                *(row["norm"], row["eps"], row["attack"], 100 * row["accuracy"]),
                *(min(preset.draws, row["draws"]), 100 * row["accuracy_ensemble"]),
            )
        for gate in report["gates"]:
            logger.info("%s: %s: %s", "passed" if gate["passed"] else "FAILED", gate["name"], gate["detail"])
        logger.info(
            "%s: %s",
            report["label"],
            "all gates passed" if report["reliable"] else "NOT RELIABLE, as gates failed",
        )
        return report

    def _attack(self, name, preset):
        chosen = torch.randperm(len(self.test), generator=torch.Generator().manual_seed(SUBSET))[: preset.images]
        subset = self.test.subset(chosen.sort().values)
        ((images, target),) = subset.batches(**{**self.batch_options, "batch_size": len(subset)})
        report = Campaign(self.net, self.forward, images, target, preset, self.config.seed).run()
        head = {"preset": name, "settings": _plain(preset), "images": len(subset)}
        return self.folder.write_report(f"attacks-{name}", {"label": "upper bound on robustness", **head, **report})

    def _efficiency(self):
        """Firing rates, synaptic operations and their energy, over the test samples; one draw of the noise."""
        if not self.config.efficiency:
            return None
        report = self.folder.report("efficiency")
        if report is None:
            noise = seeded_noise(self.device, self.trials.seed(0))
            with noise, firing_rates(self.net) as rates, count_operations(self.net) as operations:
                inference.predict_all(self.net, self.trials.batches, self.forward, description="counting operations")
            report = {"firing_rates": rates.rates(), **operations.report()}
            report = self.folder.write_report("efficiency", report)
        logger.info(
            "operations per sample: %.4g accumulates, %.4g multiply-accumulates, %.4g nJ; ReLU network: %.4g, %.4g nJ",
            *(report[key] for key in ("ac", "mac", "energy_nj", "relu_mac", "relu_energy_nj")),
        )
        return report

    def _picture(self):
        """Pictures of a test sample of each class, and of the network's spikes."""
        names, folder = self.dataset.classes, self.folder.path
        if not self.dataset.has_pixels:
            picture_recordings(folder / "recordings.png", self.test, names)
            logger.info("written: %s", folder / "recordings.png")
        title = f"{self.trained.model}, {self.trained.neuron}, on {self.dataset.name}"
        with seeded_noise(self.device, self.config.seed):
            picture_spikes(folder / "rasters.png", self.net.eval(), self.test, names, self.forward, title)
        logger.info("written: %s", folder / "rasters.png")


def _plain(preset):
    """A preset as JSON has it: with lists for tuples."""
    return json.loads(json.dumps(dataclasses.asdict(preset)))

"""The network under evaluation, its data, and what identifies its results."""

import dataclasses
import functools
import logging
import zlib
from pathlib import Path
from typing import Any

import torch

from tools.config.evaluate import EvaluationConfig
from tools.errors import UserError
from tools.inference import ForwardPass
from tools.networks import NETWORK_SETTINGS, load_snapshot, memory_format
from tools.perturb.corruptions import CorruptionFolder
from tools.probes.hooks import is_noisy
from tools.runtime.device import set_up_torch
from tools.runtime.provenance import provenance
from tools.runtime.seeds import derived_seed

from .conditions import conditions
from .stored import ResultFolder

logger = logging.getLogger(__name__)


class FoldHalved(Exception):
    """Memory does not suffice for the fold of an evaluation; `fold` is the next one to try."""

    def __init__(self, fold: int):
        super().__init__(fold)
        self.fold = fold


class SteadyForwardPass(ForwardPass):
    """A forward pass that ends a measurement rather than go on with another fold, which would order draws otherwise."""

    def halve(self) -> None:
        super().halve()
        raise FoldHalved(self.fold)


class Snapshot:
    """One checkpoint's network with the data to test it on.

    Args:
        config: what is tested, and how.
        dataset: has name, classes, mean, std, has_pixels, and input_shape() and load() of `dataset_utils`.
        other_datasets: {name: data set}, for `config.ood`.

    Raises:
        CheckpointError, FileNotFoundError: if the checkpoint or data are missing or do not fit.
        UserError: for settings that do not go together, or strengths out of range.
    """

    def __init__(self, config: EvaluationConfig, dataset: Any, other_datasets: dict[str, Any] | None = None):
        if config.ood and not config.uncertainty:
            raise UserError("--ood is a test of uncertainty: give --uncertainty too")
        if config.attack_preset and not dataset.has_pixels:
            raise UserError(f"--attack_preset is for images, {dataset.name} has events")
        self.config, self.dataset = config, dataset
        self.corruptions = None
        if config.corruptions:
            self.corruptions = CorruptionFolder(config.corruptions, dataset.input_shape(config), dataset.num_classes)
        corrupted = self.corruptions.names if self.corruptions else ()
        self.conditions = conditions(config, dataset.has_pixels, corrupted)
        self.device = set_up_torch(config.device, config.threads)
        self.net, self.trained = load_snapshot(config, dataset)
        layout = memory_format(self.trained)
        self.net.to(self.device, memory_format=layout)
        self.forward = SteadyForwardPass(self.device, self.trained.timestep, self.trained.amp, config.fold)
        data = self._load(dataset)
        self.test, self.validation = data["test"], data["val"]
        self.outside = self._load_outside(other_datasets or {}) if config.ood else None
        self.batch_options = dict(batch_size=config.minibatch, device=self.device, memory_format=layout)
        self.is_noisy = is_noisy(self.net)
        self.checksum = zlib.crc32(Path(config.snapshot).read_bytes())
        self.keep_fold(config.fold)

    @property
    def title(self) -> str:
        return f"{self.trained.model}, {self.trained.neuron}"

    def seed(self, *purpose: str | int) -> int:
        """A seed that depends on nothing but `--seed` and the purpose, so that all networks share it."""
        return derived_seed(self.config.seed, "evaluation", *purpose)

    def batches(self, part: Any) -> Any:
        """Batches of labelled data on the device."""
        return part.batches(**self.batch_options)

    @functools.cached_property
    def test_batches(self) -> Any:
        return self.batches(self.test)

    @functools.cached_property
    def validation_batches(self) -> Any:
        return self.batches(self.validation)

    def _load(self, dataset: Any) -> dict[str, Any]:
        """The parts of a data set, as this network sees it."""
        chosen = {name: getattr(self.config, name) for name in ("data_root", "download", "workers", "lenient")}
        return dataset.load(dataclasses.replace(self.trained, **chosen))

    def _load_outside(self, others: dict[str, Any]) -> Any:
        """The test part of another data set with inputs of the same shape."""
        if self.config.ood not in others.keys() - {self.dataset.name}:
            names = ", ".join(sorted(others.keys() - {self.dataset.name}))
            raise UserError(f"--ood must be one of {names}; got {self.config.ood}")
        other = others[self.config.ood]
        own_shape, shape = self.dataset.input_shape(self.trained), other.input_shape(self.trained)
        if shape != own_shape:
            raise UserError(f"--ood {other.name} has inputs {shape}, {self.dataset.name} has {own_shape}")
        return self._load(other)["test"]

    @functools.cached_property
    def _data_checksums(self) -> list[int]:
        """Of the test and validation samples as they go into the network, and of their labels."""
        checksums = []
        for part in (self.test, self.validation):
            checksum = 0
            for batch in part.batches(self.config.minibatch, torch.device("cpu")):
                for values in batch:
                    checksum = zlib.crc32(values.contiguous().numpy().data, checksum)
            checksums.append(checksum)
        return checksums

    @property
    def identity(self) -> dict[str, Any]:
        """All that results depend on; where it is the same, they need not be measured again."""
        return {
            "dataset": self.dataset.name,
            "test_images": len(self.test),
            "data_checksums": self._data_checksums,
            "snapshot": self.config.snapshot,
            "checksum": self.checksum,
            "network": {name: getattr(self.trained, name) for name in NETWORK_SETTINGS},
            "training_seed": self.trained.seed,
            "seed": self.config.seed,
            "minibatch": self.config.minibatch,
            "fold": self.forward.fold,
            "device": str(self.device),
            "provenance": provenance(),
        }

    def keep_fold(self, fold: int) -> None:
        """Measure with a fold that memory allows, and store results under it."""
        self.forward.fold = fold
        snapshot, config = Path(self.config.snapshot), self.config
        beside = snapshot.parent / ("evaluation" if snapshot.stem == "best" else f"evaluation-{snapshot.stem}")
        of_points = {name: getattr(config, name) for name in ("draws", "n_ensembles", "adv_draws")}
        of_points["corruptions"] = self.corruptions.stamps() if self.corruptions else []
        suffix = f"-k{config.n_ensembles}" if config.n_ensembles > 1 else ""
        self.folder = ResultFolder(config.out or beside, self.identity, of_points, suffix)

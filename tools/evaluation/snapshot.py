"""The network under evaluation, its data, and what identifies its results."""

import dataclasses
import functools
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.pretrained import FOLDER as PRETRAINED
from tools import inference
from tools.config.evaluate import NETWORK_SETTINGS, EvaluationConfig
from tools.config.train import Dataset, OwnDataset
from tools.data.corruptions import CorruptionFolder
from tools.data.parts import Labelled, LabelledParts
from tools.errors import UserError
from tools.inference import ForwardPass, seeded_noise
from tools.io.checkpoint import BEST
from tools.networks import dataset_of, load_snapshot, memory_format
from tools.probes.hooks import is_noisy_indeed, spiking_neurons
from tools.runtime.device import set_up_torch
from tools.runtime.provenance import provenance
from tools.runtime.seeds import derived_seed

from .conditions import conditions
from .modes import put_into_mode, recalibrate
from .results import Identity
from .stored import ResultFolder


class FoldHalved(Exception):
    """The fold of an evaluation needs too much memory; `fold` is the next one to try."""

    def __init__(self, fold: int) -> None:
        super().__init__(fold)
        self.fold = fold


class SteadyForwardPass(ForwardPass):
    """A forward pass that ends the measurement when its fold is halved, which changes the order of draws."""

    def halve(self) -> None:
        super().halve()
        raise FoldHalved(self.fold)


class Snapshot:
    """One checkpoint's network with the data to evaluate it on.

    Args:
        config: `config.snapshot` is the path of the checkpoint.
        dataset: that of the script; a checkpoint of ours must have been trained on it.
        other_datasets: {name: data set}, for `config.ood`.

    Raises:
        CheckpointError, FileNotFoundError: if the checkpoint or data are missing or do not fit.
        UserError: for settings that do not go together, or strengths out of range; for a network that does not have the
            mode, or whose outputs change from call to call, though no layer says that it `is_noisy`.
    """

    def __init__(self, config: EvaluationConfig, dataset: Dataset, other_datasets: dict[str, Dataset] | None = None):
        if config.ood and not config.uncertainty:
            raise UserError("--ood evaluates uncertainty: give --uncertainty too")
        if config.attack_preset and not dataset.has_pixels:
            raise UserError(f"--attack_preset is for images, {dataset.name} has events")
        if config.pictures and config.inference == "mean_field":
            raise UserError("--pictures shows spikes, which the mean field does not have")
        self.config = config
        self.path = config.snapshot
        self.dataset = dataset = dataset_of(config, dataset)
        self.device = set_up_torch(config.device, config.threads)
        self.net, self.trained = load_snapshot(config, dataset)
        self.has_neurons = bool(spiking_neurons(self.net))  # a ReLU network has none
        put_into_mode(self.net, config.inference, self.path)
        self.corruptions = None
        if config.corruptions:
            shape = dataset.input_shape(self.trained)
            self.corruptions = CorruptionFolder(config.corruptions, shape, dataset.num_classes)
        corrupted = self.corruptions.names if self.corruptions else ()
        self.conditions = conditions(config, dataset.has_pixels, corrupted, self.has_neurons)
        layout = memory_format(self.trained, dataset)
        self.net.to(self.device, memory_format=layout)
        self.forward = SteadyForwardPass(self.device, self.trained.timestep, self.trained.amp, config.fold)
        data = self._load(dataset)
        self.test, self.validation = data.test, data.val
        self.outside = self._load_outside(other_datasets or {}) if config.ood else None
        self.batch_options = dict(batch_size=config.minibatch, device=self.device, memory_format=layout)
        self.recalibrated_by = self._recalibrate(data.train) if config.recalibrate else None
        self.form = [config.inference] if config.inference != "noisy" else []  # what differs from how it was trained
        self.form += [f"recalibrated{config.recalibrate}"] if config.recalibrate else []
        self.title = ", ".join([self.trained.model, self.trained.neuron, *self.form])
        ((few, *_),) = self.test.subset(torch.arange(min(4, len(self.test)))).batches(4, self.device)
        self.is_noisy = is_noisy_indeed(self.net.eval(), self.forward, few)
        self.checksum = zlib.crc32(Path(self.path).read_bytes())
        self.keep_fold(config.fold)

    def seed(self, *purpose: str | int) -> int:
        """A seed that depends on `--seed` and the purpose alone, so that all networks share it."""
        return derived_seed(self.config.seed, "evaluation", *purpose)

    def predict(self, data: Labelled, *purpose: str | int, **options: Any) -> tuple[Tensor, Tensor]:
        """Predictions as of `predict_all`; all networks have the same noise for the same purpose."""
        batches = data.batches(**self.batch_options)
        with seeded_noise(self.device, self.seed(*purpose)):
            return inference.predict_all(self.net, batches, **{"forward": self.forward, **options})

    def picture(self, index: int) -> np.ndarray:
        """A test sample as an image [C, H, W] in [0, 1]; of a recording, the mean of its frames."""
        ((inputs, *_),) = self.test.subset(torch.tensor([index])).batches(1, torch.device("cpu"))
        return (inputs if inputs.dim() == 4 else inputs.mean(0))[0].numpy()

    def _load(self, dataset: Dataset) -> LabelledParts:
        """The parts of a data set, as this network was trained to see them."""
        names = ("data_root", "download", "workers", "lenient", "memory_gb")
        chosen = {name: getattr(self.config, name) for name in names}
        return dataset.load(dataclasses.replace(self.trained, **chosen))

    def _recalibrate(self, train: Labelled) -> Labelled:
        """Estimate batch normalisation again, in the mode of the network; return the samples for that."""
        count, seed = self.config.recalibrate, self.seed("recalibrate")
        if count > len(train):
            raise UserError(f"--recalibrate {count}: there are {len(train)} training samples")
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))  # a batch has many classes
        chosen = train.subset(order[:count])
        with seeded_noise(self.device, seed):
            recalibrate(self.net, chosen.batches(**self.batch_options), self.forward, self.path)
        return chosen

    def _load_outside(self, others: dict[str, Dataset]) -> Labelled:
        """The test part of another data set with inputs of the same shape."""
        given = {name for name, other in others.items() if not isinstance(other, OwnDataset)}
        possible = sorted(given - {self.dataset.name})
        if self.config.ood not in possible:
            raise UserError(f"--ood must be one of {', '.join(possible)}; got {self.config.ood}")
        other = others[self.config.ood]
        own_shape, shape = self.dataset.input_shape(self.trained), other.input_shape(self.trained)
        if shape != own_shape:
            raise UserError(f"--ood {other.name} has inputs {shape}, {self.dataset.name} has {own_shape}")
        return self._load(other).test

    @functools.cached_property
    def _data_checksums(self) -> list[int]:
        """CRC-32 of all samples that results depend on, by part, as they go into the network, with their labels."""
        parts = [self.test, self.validation]
        if self.recalibrated_by is not None:
            parts.append(self.recalibrated_by)
        checksums = [0] * len(parts)
        for index, part in enumerate(parts):
            for batch in part.batches(self.config.minibatch, torch.device("cpu")):
                for values in batch:
                    checksums[index] = zlib.crc32(values.contiguous().numpy().data, checksums[index])
        return checksums

    def keep_fold(self, fold: int) -> None:
        """Use a fold that fits into memory; it is part of the identity of the results."""
        self.forward.fold = fold
        self.identity = Identity(
            dataset=self.dataset.name,
            test_images=len(self.test),
            data_checksums=self._data_checksums,
            snapshot=self.path,
            checksum=self.checksum,
            network={name: getattr(self.trained, name) for name in NETWORK_SETTINGS},
            inference=self.config.inference,
            recalibrate=self.config.recalibrate,
            training_seed=self.trained.seed,
            seed=self.config.seed,
            minibatch=self.config.minibatch,
            fold=fold,
            device=str(self.device),
            provenance=provenance(),
        )
        snapshot, config = Path(self.path), self.config
        which = [] if snapshot.stem == Path(BEST).stem else [snapshot.stem]
        is_shipped = snapshot.parent == PRETRAINED  # where nothing is to be written
        parent = Path("results", self.dataset.name, "pretrained") if is_shipped else snapshot.parent
        beside = parent / "-".join(["evaluation", *which, *self.form])
        of_points = {name: getattr(config, name) for name in ("draws", "n_ensembles", "adv_draws")}
        of_points["corruptions"] = self.corruptions.stamps() if self.corruptions else []
        suffix = f"-k{config.n_ensembles}" if config.n_ensembles > 1 else ""
        self.folder = ResultFolder(config.out or beside, dataclasses.asdict(self.identity), of_points, suffix)

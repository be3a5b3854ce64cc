"""A training run: build everything that a configuration describes, and run it."""

import contextlib
import dataclasses
import json
import logging
import math
from pathlib import Path

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from crits import SRIP, TET, FiringRate, Gramian, RateCrossEntropy
from models import noise_generator

from . import checkpoint, engine, optim
from .monitor import firing_rates
from .networks import build_network, memory_format, set_up_torch, stored_config
from .runlog import RunLog, make_run_folder

logger = logging.getLogger(__name__)
EVALUATION_SEED = 1_000_003  # of the noise in validation and in the final test: separate from training's
DEBUG_BATCHES = 5
RESUMABLE = {"resume", "epochs", "device", "threads", "workers", "data_root", "download", "lenient", "plot_spike_rate"}
REGULARIZERS = {
    "gram": lambda config: Gramian(),
    "srip": lambda config: SRIP(),
    "rate": lambda config: FiringRate(config.target_rate),
}


def build_criterion(config):
    if config.tet:
        return TET(config.lambda_tet, label_smoothing=config.label_smoothing)
    return RateCrossEntropy(config.label_smoothing)


def build_regularizer(config):
    """None, or (weight, penalty)."""
    if config.reg == "no":
        return None
    return config.lambda1, REGULARIZERS[config.reg](config)


def evaluation_noise(device, seed=EVALUATION_SEED):
    """Context manager: noise comes from a generator of its own, so that training's goes on undisturbed."""
    return noise_generator(torch.Generator(device).manual_seed(seed))


class Training:
    """One training run: build it, `run()` it.

    Args:
        config: `TrainConfig`; with `config.resume`, the run's own configuration replaces it.
        dataset: has name, num_classes, mean, std, and input_shape(), load() and augmentation() of `dataset_utils`.
        given: names of the settings that the user gave; in a resumed run, few may differ.

    Raises:
        ValueError: for settings that do not go together, or cannot change in a resumed run.
        FileNotFoundError: if the data, or the run to resume, are not there.
    """

    def __init__(self, config, dataset, given=()):
        resumed = None
        if config.resume:
            resumed, config = _read_run(config, dataset, given)
        if config.compile and config.reg == "rate":
            raise ValueError("--compile and --reg rate do not go together: compiled networks run no hooks")
        self.config = config
        self.dataset = dataset
        self.device = set_up_torch(config)
        self.forward = engine.ForwardPass(self.device, config.timestep, config.amp)
        data = dataset.load(config.data_root, config.download, config.workers, config.lenient, config)
        self.validation_images = len(data["val"])
        self._make_batches(data)
        torch.manual_seed(config.seed)
        self._build()
        self.first_epoch, self.best = 1, None
        if resumed is not None:
            self._restore(resumed)
        self.folder = self._make_folder()
        self.log = RunLog(self.folder, self.first_epoch)

    def _make_batches(self, data):
        config = self.config
        options = dict(
            batch_size=config.minibatch,
            device=self.device,
            memory_format=memory_format(config),
            limit=DEBUG_BATCHES if config.debug else None,
        )
        self.batches = {
            "train": data["train"].batches(shuffle=True, augment=self.dataset.augmentation(config), **options),
            "val": data["val"].batches(**options),
            "test": data["test"].batches(**options),
        }

    def _build(self):
        config = self.config
        self.net = build_network(config, self.dataset)
        optim.initialise(self.net, config.init)
        self.net.to(self.device, memory_format=memory_format(config))
        self.trained = torch.compile(self.net) if config.compile else self.net
        self.criterion = build_criterion(config)
        self.regularizer = build_regularizer(config)
        self.optimizer = optim.build_optimizer(config.optim, self.net, config.lr, config.weight_decay)
        steps = config.epochs * len(self.batches["train"])
        self.scheduler = optim.build_scheduler(config.scheduler, self.optimizer, steps)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.amp == "fp16")
        self.ema = None
        if config.ema:
            self.ema = AveragedModel(self.net, multi_avg_fn=get_ema_multi_avg_fn(config.ema), use_buffers=True)

    def _make_folder(self):
        config = self.config
        if config.resume:
            return _last_checkpoint(config.resume).parent
        if not config.run_dir:
            return make_run_folder(config.results, self.dataset.name, config.model, config.neuron, config.seed)
        folder = Path(config.run_dir)
        if (folder / "last.pth").exists():
            raise ValueError(f"{folder} holds a run already; continue it with --resume {folder}, or choose another")
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @property
    def evaluated(self):
        """The network that validation and test see: the averaged one, where there is one."""
        return self.net if self.ema is None else self.ema.module

    def run(self):
        """Train to the last epoch, then test the best epoch's network, once.

        Returns:
            {"loss", "accuracy"} on the test images.

        Raises:
            engine.Diverged: last.pth is then that of the last good epoch.
        """
        config = self.config
        logger.info("%s: %s", self.folder, _describe(self.net))
        if self.first_epoch > config.epochs and (self.folder / "test.json").exists():
            logger.info("all %d epochs are done, and the test too; --epochs asks for more", config.epochs)
            return json.loads((self.folder / "test.json").read_text())
        settings = {**dataclasses.asdict(config), "resume": ""}  # so that config.yaml is a recipe of the whole run
        self.log.write_config({"dataset": self.dataset.name, **settings})
        if self.first_epoch == 1:
            self._save(0)  # so that a run that diverges at once leaves a checkpoint too
        with torch.autograd.set_detect_anomaly(config.debug), contextlib.closing(self.log):
            for epoch in range(self.first_epoch, config.epochs + 1):
                row = self._epoch(epoch)
                logger.info(
                    "epoch %d/%d: loss %.4f, validation loss %.4f, accuracy %.2f %%, %.0f images/s",
                    epoch,
                    config.epochs,
                    row["train_loss"],
                    row["val_loss"],
                    100 * row["val_accuracy"],
                    row["train_images_per_s"],
                )
        return self._test()

    def _epoch(self, epoch):
        lr = self.scheduler.get_last_lr()[0]
        trained = engine.train_one_epoch(
            self.trained,
            self.criterion,
            self.optimizer,
            self.scheduler,
            self.scaler,
            self.batches["train"],
            self.forward,
            epoch=epoch,
            regularizer=self.regularizer,
            clip_grad=self.config.clip_grad,
            ema=self.ema,
        )
        watch = firing_rates(self.evaluated) if self.config.plot_spike_rate else contextlib.nullcontext()
        with evaluation_noise(self.device), watch as record:
            validated = engine.evaluate(self.evaluated, self.batches["val"], self.forward, description="validation")
        if not math.isfinite(validated["loss"]):
            raise engine.Diverged(f"the validation loss became {validated['loss']} after epoch {epoch}")
        row = {
            "epoch": epoch,
            "lr": lr,
            **{f"train_{name}": value for name, value in trained.items()},
            **{f"val_{name}": value for name, value in validated.items()},
        }
        if record is not None:
            row["firing_rates"] = record.rates()
        self.log.epoch(row)
        if self.config.histograms:
            self.log.histograms(self.net, epoch)
        self._keep(epoch, validated)
        return row

    def _keep(self, epoch, validated):
        """Save the state after an epoch, and the network if `is_as_good` as the best before."""
        highest = self.best["highest_accuracy"] if self.best else 0.0
        if is_as_good(validated["accuracy"], highest, self.validation_images):
            self.best = {"epoch": epoch, **validated, "highest_accuracy": max(highest, validated["accuracy"])}
            content = {"model": self.evaluated.state_dict(), "metrics": self.best, **self._identity()}
            checkpoint.save(self.folder / "best.pth", content)
        self._save(epoch)

    def _identity(self):
        return {"config": dataclasses.asdict(self.config), "dataset": self.dataset.name}

    def _save(self, epochs_done):
        content = {
            **self._identity(),
            "epochs_done": epochs_done,
            "best": self.best,
            "model": self.net.state_dict(),
            "ema": self.ema.state_dict() if self.ema is not None else None,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "rng": checkpoint.rng_state(),
        }
        checkpoint.save(self.folder / "last.pth", content)

    def _restore(self, state):
        self.net.load_state_dict(state["model"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.scaler.load_state_dict(state["scaler"])
        self.first_epoch, self.best = state["epochs_done"] + 1, state["best"]
        checkpoint.set_rng_state(state["rng"])  # last: everything above may draw numbers

    def _test(self):
        best = checkpoint.read(self.folder / "best.pth")
        self.evaluated.load_state_dict(best["model"])
        with evaluation_noise(self.device):
            result = engine.evaluate(self.evaluated, self.batches["test"], self.forward, description="test")
        report = {"epoch": best["metrics"]["epoch"], "val_accuracy": best["metrics"]["accuracy"], **result}
        (self.folder / "test.json").write_text(json.dumps(report, indent=2) + "\n")
        logger.info(
            "test accuracy %.2f %%, loss %.4f (epoch %d, chosen in validation); results are in %s",
            100 * result["accuracy"],
            result["loss"],
            best["metrics"]["epoch"],
            self.folder,
        )
        return result


def is_as_good(accuracy, highest, images):
    """Whether an epoch becomes the best one: not worse than the highest accuracy so far by a standard error.

    On few validation images, accuracies of neighbouring epochs differ by chance; the highest of them
    would often be a lucky early epoch, from before the learning rate has come down. So the latest epoch
    within one standard error is chosen.

    Args:
        accuracy: of this epoch, in [0, 1].
        highest: of all epochs before.
        images: number of validation images.

    Note:
        The one-standard-error rule of Breiman et al., "Classification and regression trees", 1984, section 3.4.3.
    """
    return accuracy >= highest - math.sqrt(highest * (1 - highest) / images)


def _describe(net):
    parameters = sum(parameter.numel() for parameter in net.parameters())
    return f"{type(net).__name__} with {parameters:,} parameters"


def _last_checkpoint(path):
    path = Path(path)
    return path / "last.pth" if path.is_dir() else path


def _read_run(config, dataset, given):
    """The checkpoint of the run to resume, and its configuration with the few changes allowed."""
    path = _last_checkpoint(config.resume)
    state = checkpoint.read(path)
    if "optimizer" not in state:
        raise ValueError(f"{path} cannot be resumed: it holds a network only; take the run's last.pth")
    if state["dataset"] != dataset.name:
        raise ValueError(f"{path} was trained on {state['dataset']}, this script is for {dataset.name}")
    stored = stored_config(state, path)
    for name in sorted(given):
        value = getattr(config, name)
        if name not in RESUMABLE and value != getattr(stored, name):
            raise ValueError(f"a resumed run keeps its {name} = {getattr(stored, name)!r}; {value!r} was asked for")
    if config.epochs != stored.epochs and "epochs" in given and stored.scheduler == "onecycle":
        raise ValueError("the onecycle schedule ends where it was planned to end: its epochs cannot be changed")
    changes = {name: getattr(config, name) for name in RESUMABLE & {*given, "resume"}}
    return state, dataclasses.replace(stored, **changes)

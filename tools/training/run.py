"""A training run: build everything that a configuration describes, and run it."""

import contextlib
import dataclasses
import functools
import json
import logging
import math
import time
from pathlib import Path

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from crits import SRIP, TET, FiringRate, Gramian, RateCrossEntropy
from models import noise_generator
from tools import inference, optim
from tools.io import checkpoint
from tools.io.files import MOST_TEXT, alone_in, check_writable, read_bytes, remove_parts, write_text_atomically
from tools.networks import build_network, memory_format
from tools.probes.firing_rates import firing_rates
from tools.runtime import seeds
from tools.runtime.device import set_up_torch
from tools.runtime.interruption import Interrupted, Interruption
from tools.runtime.processes import Processes, restarts

from . import loop
from .divergence import Diverged, Rollback, Skip
from .folder import make_run_folder
from .log import RunLog
from .resume import AUTO, RunState, read_run

logger = logging.getLogger(__name__)
EVALUATION_SEED = 1_000_003  # of the noise in validation and in the final test: separate from training's
DEBUG_BATCHES = 5
TEST = "test.json"  # of a complete run
MOST_HISTOGRAMS = 100  # epochs that have them: of a long run, all would fill the disk and say no more
RANK_SEEDS = 1_000_033  # between the seeds of two processes of a run
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
        processes: `Processes` that train together; `config.minibatch` is the number of images of each.

    Raises:
        ValueError: for settings that do not go together, or cannot change in a resumed run.
        FileNotFoundError: if the data, or the run to resume, are not there.
        OSError: if nothing can be written into the folder of the run.
    """

    def __init__(self, config, dataset, given=(), processes=Processes()):
        restarted = processes.largest([restarts()[0]])[0]  # each machine counts those of its own
        config = processes.from_first(lambda: _resolved(config, restarted))
        self.resumed_from = resumed = None
        if config.resume:
            asked = config
            self.resumed_from, resumed, config = processes.from_first(
                lambda: read_run(asked, dataset, given, processes)
            )
        self.config, self.dataset, self.processes = config, dataset, processes
        self.has_made_folder = False
        self.device = set_up_torch(config)
        self._check()
        self.folder = self.resumed_from.parent if resumed else processes.from_first(self._make_folder)
        if processes.is_first:
            check_writable(self.folder)
        try:
            self._load()
            self._build()
        except BaseException:
            if processes.is_first and self.has_made_folder:
                self.folder.rmdir()
            raise
        self.first_epoch, self.best, self.progress = 1, None, None
        if resumed is not None:
            if resumed["samples"] != self.samples:
                raise checkpoint.CheckpointError(
                    f"{config.resume} was trained on {resumed['samples']} samples, and here are {self.samples}"
                )
            self.progress = self.state.restore(resumed, config.resume, self.samples)
            self.first_epoch, self.best = resumed["epochs_done"] + 1, resumed["best"]
        self.interruption = Interruption(config.max_minutes)
        self.log = None

    def _check(self):
        config = self.config
        if config.compile and config.reg == "rate":
            raise ValueError("--compile and --reg rate do not go together: compiled networks run no hooks")
        if config.sync_bn and self.device.type != "cuda":
            raise ValueError("--sync_bn needs CUDA devices: PyTorch's SyncBatchNorm has no other implementation")

    def _load(self):
        config = self.config
        with self.processes.first_goes_ahead():  # of many that download or decode the same, one would do for all
            data = self.dataset.load(config)
        self.samples, self.validation_images = len(data["train"]), len(data["val"])
        options = dict(
            batch_size=config.minibatch,
            device=self.device,
            memory_format=memory_format(config),
            limit=DEBUG_BATCHES if config.debug else None,
        )
        augment = self.dataset.augmentation(config)
        share = dict(shuffle=True, augment=augment, accumulate=config.accumulate, processes=self.processes)
        self.batches = {"train": data["train"].batches(**share, **options)}
        for part in ("val", "test"):
            own = data[part]
            if self.processes.count > 1:
                own = own.subset(self.processes.part(len(own)))
            self.batches[part] = own.batches(**options)

    def _build(self):
        config, processes = self.config, self.processes
        seeds.seed_generators(config.seed)  # the same weights everywhere
        net = build_network(config, self.dataset)
        optim.initialise(net, config.init)
        if config.sync_bn:
            net = torch.nn.SyncBatchNorm.convert_sync_batchnorm(net)
        self.net = net.to(self.device, memory_format=memory_format(config))
        trained = processes.replicated(self.net, self.device)
        optimizer = optim.build_optimizer(config.optim, self.net, config.lr, config.weight_decay)
        steps = config.epochs * len(self.batches["train"]) // config.accumulate
        averaged = None
        if config.ema:
            averaged = AveragedModel(self.net, multi_avg_fn=get_ema_multi_avg_fn(config.ema), use_buffers=True)
        learner = loop.Learner(
            net=torch.compile(trained) if config.compile else trained,
            criterion=build_criterion(config),
            optimizer=optimizer,
            scheduler=optim.build_scheduler(config.scheduler, optimizer, steps),
            scaler=torch.amp.GradScaler(self.device.type, enabled=config.amp == "fp16"),
            forward=inference.ForwardPass(self.device, config.timestep, config.amp),
            regularizer=build_regularizer(config),
            clip_grad=config.clip_grad,
            ema=averaged,
            accumulate=config.accumulate,
            processes=processes,
        )
        self.learner, self.state = learner, RunState(learner, self.net)
        learner.recovery = self._recovery()
        if not processes.is_first:  # noise and augmentation differ
            seeds.seed_generators(config.seed + RANK_SEEDS * processes.rank)

    def _recovery(self):
        if self.config.on_nonfinite == "skip":
            return Skip(self.net)
        if self.config.on_nonfinite == "rollback":
            read = lambda: checkpoint.read_last(self.folder)[1]  # noqa: E731
            return Rollback(lambda: self.state.roll_back(self.processes.from_first(read)))
        return None

    def _make_folder(self):
        config = self.config
        self.has_made_folder = True
        if not config.run_dir:
            return make_run_folder(config.results, self.dataset.name, config.model, config.neuron, config.seed)
        folder = Path(config.run_dir)
        if checkpoint.holds_run(folder):
            raise ValueError(f"{folder} holds a run already; continue it with --resume {folder}, or choose another")
        self.has_made_folder = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @property
    def evaluated(self):
        """The network that validation and test see: the averaged one, where there is one."""
        return self.net if self.learner.ema is None else self.learner.ema.module

    def run(self):
        """Train to the last epoch, then test the best epoch's network, once.

        Returns:
            {"loss", "accuracy"} on the test images.

        Raises:
            Diverged: last.pth is then as it was saved last.
            Interrupted: by a signal, or as the time is over; last.pth then has the state of this moment.
        """
        config = self.config
        logger.info("%s: %s", self.folder, self._describe())
        if self.first_epoch > config.epochs and (done := self.processes.from_first(self._tested)):
            logger.info("all %d epochs are done, and the test too; --epochs asks for more", config.epochs)
            return done
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.interruption)
            stack.enter_context(self._saying_how_to_go_on())
            stack.enter_context(torch.autograd.set_detect_anomaly(config.debug))
            if self.processes.is_first:
                stack.enter_context(self._prepared_folder())
            if self.resumed_from is None:
                self._save(0)  # so that a run that diverges at once leaves a checkpoint too
            elif self.resumed_from.name != checkpoint.LAST:
                # last.pth is damaged, or of a time that the user has gone back behind; what is resumed stays.
                self._save(self.first_epoch - 1, self.progress, keep=False)
            self.saved_at = time.monotonic()
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

    @contextlib.contextmanager
    def _prepared_folder(self):
        """In the first process: the run's folder is this process's own, and its log is open."""
        with alone_in(self.folder):
            remove_parts(self.folder)
            self.log = RunLog(self.folder, self.first_epoch)
            with contextlib.closing(self.log):
                settings = {**dataclasses.asdict(self.config), "resume": ""}  # so that it is a recipe of the whole run
                self.log.write_config({"dataset": self.dataset.name, **settings})
                yield

    def _epoch(self, epoch):
        batches = self.batches["train"]
        progress, self.progress = self.progress or loop.Progress.start(self.learner, batches), None
        try:
            after_step = functools.partial(self._between_steps, epoch)
            trained = loop.train_one_epoch(self.learner, batches, epoch, progress, after_step)
            validated, rates = self._validate()
        except Interrupted:
            self._save(epoch - 1, progress)
            raise
        if not math.isfinite(validated["loss"]):
            raise Diverged(f"the validation loss became {validated['loss']} after epoch {epoch}")
        row = {
            "epoch": epoch,
            "lr": progress.lr,
            **{f"train_{name}": value for name, value in trained.items()},
            **{f"val_{name}": value for name, value in validated.items()},
            **({"firing_rates": rates} if rates else {}),
        }
        if self.log:
            self.log.epoch(row)
            every = math.ceil(self.config.epochs / MOST_HISTOGRAMS)
            if self.config.histograms and (epoch % every == 0 or epoch == self.config.epochs):
                self.log.histograms(self.net, epoch)
        self._keep(epoch, validated)
        return row

    def _between_steps(self, epoch, progress, check):
        """Save where that is due, or stop where that was asked for: all processes after the same step."""
        config = self.config
        after_steps = config.save_steps > 0 and progress.steps % config.save_steps == 0
        after_minutes = 0 < 60 * config.save_minutes < time.monotonic() - self.saved_at
        request, is_due = self.processes.largest([self.interruption.request, int(after_steps or after_minutes)])
        if request or is_due:
            check()
        if request:
            raise Interrupted(request)
        if is_due:
            self._save(epoch - 1, progress)

    def _validate(self):
        """The results on the validation images, and the firing rates, or None."""
        self.processes.share(self.evaluated)  # each has running statistics of its own
        watch = firing_rates(self.evaluated) if self.config.plot_spike_rate else contextlib.nullcontext()
        with watch as record:
            validated = self._evaluate("val", "validation")
        return validated, record and record.rates(self.processes)

    def _evaluate(self, part, description):
        # Several processes must stop at the same place, and here they have different numbers of batches.
        at_once = self.interruption.at_once() if self.processes.count == 1 else contextlib.nullcontext()
        with at_once, evaluation_noise(self.device, EVALUATION_SEED + RANK_SEEDS * self.processes.rank):
            return inference.evaluate(
                self.evaluated,
                self.batches[part],
                self.learner.forward,
                description=description,
                processes=self.processes,
            )

    def _keep(self, epoch, validated):
        """Save the state after an epoch, and the network if `is_as_good` as the best before."""
        highest = self.best["highest_accuracy"] if self.best else 0.0
        if is_as_good(validated["accuracy"], highest, self.validation_images):
            self.best = {"epoch": epoch, **validated, "highest_accuracy": max(highest, validated["accuracy"])}
            content = {"model": self.evaluated.state_dict(), "metrics": self.best, **self._identity()}
            if self.processes.is_first:
                checkpoint.save(self.folder / checkpoint.BEST, content)
        self._save(epoch)

    def _identity(self):
        return {"config": dataclasses.asdict(self.config), "dataset": self.dataset.name}

    def _save(self, epochs_done, progress=None, keep=True):
        """Save the state after an epoch, or with its `progress` within the next one; `keep` what was saved before."""
        state = self.state.content(progress)
        if self.processes.is_first:
            where = {"epochs_done": epochs_done, "samples": self.samples, "best": self.best}
            checkpoint.save_last(self.folder, {**self._identity(), **where, **state}, keep)
            (self.folder / TEST).unlink(missing_ok=True)  # it says that a run is complete, which this state is not
        self.saved_at = time.monotonic()

    @contextlib.contextmanager
    def _saying_how_to_go_on(self):
        try:
            yield
        except Interrupted as error:
            logger.info("stopped (%s); everything is saved: --resume %s continues", error, self.folder)
            raise

    def _tested(self):
        """What the test gave, or None if there was none."""
        path = self.folder / TEST
        return json.loads(read_bytes(path, MOST_TEXT)) if path.exists() else None

    def _test(self):
        best = self.processes.from_first(lambda: checkpoint.read(self.folder / checkpoint.BEST))
        self.evaluated.load_state_dict(best["model"])
        result = self._evaluate("test", "test")
        report = {"epoch": best["metrics"]["epoch"], "val_accuracy": best["metrics"]["accuracy"], **result}
        if self.processes.is_first:
            write_text_atomically(self.folder / TEST, json.dumps(report, indent=2) + "\n")
        logger.info(
            "test accuracy %.2f %%, loss %.4f (epoch %d, chosen in validation); results are in %s",
            100 * result["accuracy"],
            result["loss"],
            best["metrics"]["epoch"],
            self.folder,
        )
        return result

    def _describe(self):
        parameters = sum(parameter.numel() for parameter in self.net.parameters())
        config, count = self.config, self.processes.count
        text = f"{type(self.net).__name__} with {parameters:,} parameters"
        if config.accumulate * count > 1:
            images = config.minibatch * config.accumulate * count
            text += f"; {images} images a step: {config.minibatch} x {config.accumulate} batches x {count} processes"
        return text


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


def _resolved(config, restarted):
    """The configuration, with the run to resume where that is to be found out: by the user's wish, or torchrun's.

    Args:
        restarted: how often torchrun has restarted the processes.
    """
    _, may_restart = restarts()
    if config.resume not in ("", AUTO):
        return config
    if not config.run_dir and (config.resume or may_restart):
        reason = "--resume auto" if config.resume else "torchrun --max-restarts"
        raise ValueError(f"{reason} needs --run_dir, to find the run again")
    if not config.resume and not restarted:
        return config
    return dataclasses.replace(config, resume=config.run_dir if checkpoint.holds_run(config.run_dir) else "")

"""A training run: building it, its epochs and its test."""

import contextlib
import dataclasses
import functools
import logging
import math
import time
from collections.abc import Callable, Collection

import torch

from tools import inference
from tools.config.train import Dataset, OwnDataset, TrainConfig
from tools.data.batches import Batches
from tools.inference import Scores, seeded_noise
from tools.io import checkpoint
from tools.io.files import check_writable
from tools.networks import stored_dataset
from tools.probes.firing_rates import firing_rates
from tools.runtime.device import set_up_torch
from tools.runtime.interruption import Interrupted, Interruption
from tools.runtime.processes import Processes, restarts
from tools.runtime.seeds import derived_seed

from . import loop
from .build import adapt_to_data, build_learner, build_net, check_settings, describe, load_data
from .divergence import Diverged, Recovery
from .folder import RunLog, make_run_folder, opened
from .progress import Progress
from .result import RunResult, read_result, write_result
from .resume import find_run
from .state import RunState

logger = logging.getLogger(__name__)
MOST_HISTOGRAMS = 100  # epochs with histograms: those of all epochs of a long run would fill the disk


class Training:
    """One training run: build it, then `run()` it.

    Args:
        config: with `config.resume`, the run's own configuration replaces it.
        dataset: one of `dataset_utils.DATASETS`, or another with its attributes.
        given: names of the settings that the user gave; a resumed run refuses changes to most of them.
        processes: those that train together; `config.minibatch` is the number of samples of each.

    Raises:
        UserError: for settings that do not go together, or cannot change in a resumed run.
        OSError: if the data or the run to resume are missing, or the folder of the run is not writable.
    """

    def __init__(
        self, config: TrainConfig, dataset: Dataset, given: Collection[str] = (), processes: Processes = Processes()
    ):
        restarted = processes.largest([restarts()[0]])[0]  # each machine has its own count
        stored = processes.from_first(lambda: find_run(config, dataset, given, processes.count, restarted))
        config = stored.config if stored else dataclasses.replace(config, resume="")
        self.config = config
        self.processes = processes
        if stored:
            dataset = stored_dataset(dataset, stored.content, stored.path)
        elif isinstance(dataset, OwnDataset):
            with processes.first_goes_ahead():
                dataset = dataset.found(config)
        self.dataset = dataset
        self.device = set_up_torch(config.device, config.threads)
        check_settings(config, self.device, processes)
        if stored:
            self.folder = stored.path.parent
            is_new = False
        else:
            self.folder, is_new = processes.from_first(lambda: make_run_folder(config, dataset.name))
        try:
            if processes.is_first:
                check_writable(self.folder)
            self._build()
        except BaseException:
            if processes.is_first and is_new:
                self.folder.rmdir()
            raise
        self.first_epoch = 1
        self.progress = None
        self.resumed_from = None
        if stored:
            self.first_epoch = stored.content["epochs_done"] + 1
            self.resumed_from = stored.path
            self.progress = self.state.restore(stored.content, stored.path)
        self.interruption = Interruption(config.max_minutes)
        self.log: RunLog | None = None  # in the first process only

    def _build(self):
        config, processes = self.config, self.processes
        self.data = load_data(config, self.dataset, self.device, processes)
        self.net = build_net(config, self.dataset, self.device)
        adapt_to_data(self.net, self.data.train, config.seed)
        self.learner = build_learner(config, self.net, len(self.data.train), self.device, processes)
        samples = len(self.data.train.data)
        self.state = RunState(self.learner, self.net, self.folder, config, self.dataset.name, samples)
        if isinstance(self.dataset, OwnDataset):
            self.state.facts = self.dataset.facts()
        if config.on_nonfinite != "stop":
            roll_back = {"skip": None, "rollback": self.state.roll_back}[config.on_nonfinite]
            self.learner.recovery = Recovery(self.net, roll_back)

    def run(self) -> RunResult:
        """Train to the last epoch, then test the network of the best epoch, once.

        After `Interrupted`, last.pth has the present state; after `Diverged`, an earlier one.
        """
        config = self.config
        logger.info("%s: %s", self.folder, describe(self.net, config, self.processes))
        is_trained = self.first_epoch > config.epochs
        if is_trained and (result := self.processes.from_first(lambda: read_result(self.folder))):
            logger.info("all %d epochs and the test are done; raise --epochs to train further", config.epochs)
            return result
        files = contextlib.nullcontext()
        if self.processes.is_first:
            files = opened(self.folder, config, self.dataset.name, self.first_epoch)
        try:
            with self.interruption, torch.autograd.set_detect_anomaly(config.debug), files as self.log:
                if self.resumed_from is None:
                    self.state.save(0)  # so that a run that diverges at once leaves a checkpoint too
                elif self.resumed_from.name != checkpoint.LAST:
                    # last.pth is damaged, or the user went back to before it; the checkpoint resumed from is kept.
                    self.state.save(self.first_epoch - 1, self.progress, keep=False)
                for epoch in range(self.first_epoch, config.epochs + 1):
                    self._epoch(epoch)
                return self._test()
        except Interrupted as error:
            logger.info("stopped (%s); everything is saved: --resume %s continues", error, self.folder)
            raise

    def _epoch(self, epoch):
        batches = self.data.train
        progress, self.progress = self.progress or self.learner.start(batches), None
        try:
            after_step = functools.partial(self.between_steps, epoch)
            trained = loop.train_one_epoch(self.learner, batches, epoch, progress, after_step)
            validated, rates = self._validate()
        except Interrupted:
            self.state.save(epoch - 1, progress)
            raise
        if not math.isfinite(validated.loss):
            raise Diverged(f"the validation loss became {validated.loss} after epoch {epoch}")
        if self.log:
            self.log.epoch(epoch, progress.lr, trained, validated, rates)
            every = math.ceil(self.config.epochs / MOST_HISTOGRAMS)
            if self.config.histograms and (epoch % every == 0 or epoch == self.config.epochs):
                self.log.histograms(self.net, epoch)
        self.state.keep_best(epoch, validated, self.data.val_samples)
        self.state.save(epoch)
        losses = f"loss {trained.loss:.4f}, validation loss {validated.loss:.4f}"
        speed = f"accuracy {100 * validated.accuracy:.2f} %, {trained.images_per_s:.0f} samples/s"
        logger.info(f"epoch {epoch}/{self.config.epochs}: {losses}, {speed}")

    def between_steps(self, epoch: int, progress: Progress, check: Callable[[], None]) -> None:
        """Save if due, or stop if asked to, in all processes after the same step."""
        config = self.config
        after_steps = config.save_steps > 0 and progress.steps % config.save_steps == 0
        after_minutes = 0 < 60 * config.save_minutes < time.monotonic() - self.state.saved_at
        request, is_due = self.processes.largest([self.interruption.request, int(after_steps or after_minutes)])
        if request or is_due:
            check()
        if request:
            raise Interrupted(request)
        if is_due:
            self.state.save(epoch - 1, progress)

    def _validate(self):
        """Scores on the validation samples and, if asked for, the firing rate of each layer."""
        net = self.state.evaluated
        self.processes.share(net)  # until here, each process has its own running statistics
        with firing_rates(net) if self.config.plot_spike_rate else contextlib.nullcontext() as record:
            scores = self.score(self.data.val, "validation")
        return scores, record and record.rates(self.processes)

    def score(self, batches: Batches, purpose: str) -> Scores:
        """Scores with noise seeded by `purpose`, the same in every epoch; the noise of training is not disturbed."""
        processes, forward = self.processes, self.learner.forward
        # Several processes must stop at the same step, and here their numbers of batches differ.
        at_once = self.interruption.at_once() if processes.count == 1 else contextlib.nullcontext()
        with at_once, seeded_noise(forward.device, derived_seed(self.config.seed, purpose, processes.rank)):
            return inference.evaluate(self.state.evaluated, batches, forward, description=purpose, processes=processes)

    def _test(self):
        best = self.state.load_best()
        scores = self.score(self.data.test, "test")
        result = RunResult(best.epoch, best.accuracy, scores.loss, scores.accuracy)
        if self.processes.is_first:
            write_result(self.folder, result)
        where = f"(epoch {result.epoch}, chosen in validation); results are in {self.folder}"
        logger.info(f"test accuracy {100 * result.accuracy:.2f} %, loss {result.loss:.4f} {where}")
        return result

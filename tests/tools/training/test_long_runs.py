"""Long runs: memory does not grow, nothing is left behind, and what they write stays small."""

import contextlib
import gc
import json
import logging
import multiprocessing
import os
import time
import tracemalloc
from pathlib import Path

import pytest
import torch

from models import build_model, build_neuron
from tests.fresh import allocated, in_a_fork
from tests.tools.training.test_survival import config
from tools import inference
from tools.config.train import TrainConfig
from tools.io.files import make_folder_of_now
from tools.probes.firing_rates import firing_rates
from tools.training import loop
from tools.training.folder import RunLog, make_run_folder
from tools.training.run import Training

STEPS = 2000
EPOCHS = 200


def open_files():
    return len(os.listdir("/proc/self/fd"))


def children():
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


def kept():
    """What a long run must not gather: (tensors and their bytes, open files, child processes), bytes of Python's."""
    gc.collect()
    tensors = [one for one in gc.get_objects() if issubclass(type(one), torch.Tensor)]
    stored = sum({one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors}.values())
    return (len(tensors), stored, open_files(), children()), tracemalloc.get_traced_memory()[0]


@pytest.fixture
def log(tmp_path, caplog, monkeypatch):
    """A file with all messages, which the handlers of pytest would keep in memory."""
    caplog.set_level(logging.INFO)
    with open(tmp_path / "log", "w", buffering=1) as file:

        def write(logger, record):
            print(record.getMessage(), file=file)

        monkeypatch.setattr(logging.Logger, "callHandlers", write)
        yield tmp_path / "log"


@pytest.mark.slow
@in_a_fork
def test_hundreds_of_epochs_keep_nothing_and_their_log_stays_readable(tmp_path, stripes, log, monkeypatch):
    options = dict(width=0.02, minibatch=90, epochs=EPOCHS, timestep=3, plot_spike_rate=True, histograms=True)
    # A scale that is learnt would first fill a bounded cache of the settings of layers.
    options |= dict(model="toynet", learnable_scale=False, run_dir=str(tmp_path / "run"))
    training = Training(config(tmp_path, **options), stripes)
    original, seen, drawn = loop.train_one_epoch, {}, []

    def counted(learner, batches, epoch, *args):
        if epoch == EPOCHS // 10:
            tracemalloc.start()
        seen[epoch] = kept() if epoch in (EPOCHS // 10, EPOCHS // 2, EPOCHS) else None
        return original(learner, batches, epoch, *args)

    monkeypatch.setattr(loop, "train_one_epoch", counted)
    monkeypatch.setattr(RunLog, "histograms", lambda log, net, epoch: drawn.append(epoch))  # they take long
    try:
        training.run()
    finally:
        tracemalloc.stop()
    assert list(seen) == list(range(1, EPOCHS + 1))
    (early, _), (_, before), (late, after) = (seen[EPOCHS // part] for part in (10, 2, 1))
    assert late == early
    assert after - before < 500 * EPOCHS // 2  # 200 bytes an epoch were measured, and ever fewer
    assert len(drawn) <= 101 and drawn[-1] == EPOCHS  # those of all epochs would fill the disk
    lines = log.read_text().replace(str(training.folder), "RUN").splitlines()
    assert EPOCHS <= len(lines) < EPOCHS + 10 and max(map(len, lines)) < 200
    assert [json.loads(line)["epoch"] for line in (training.folder / "metrics.jsonl").open()] == list(seen)
    sizes = {path.name.split(".")[0]: path.stat().st_size for path in training.folder.glob("[!.]*")}
    assert sizes["metrics"] < 400 * EPOCHS and sizes["events"] < 4000 * EPOCHS
    assert sorted(sizes) == sorted(["best", "config", "events", "last", "metrics", "previous", "test"])


@pytest.mark.slow
@pytest.mark.parametrize("monitored", [False, True], ids=["evaluation", "monitoring"])
@in_a_fork
def test_two_thousand_evaluated_minibatches_take_no_more_memory(monitored, stripes):
    torch.manual_seed(0)
    net = build_model("toynet", neuron=build_neuron("NILIF"), in_shape=(1, 8, 8), num_classes=2).eval()
    batches = stripes.load().test.batches(batch_size=5, device=torch.device("cpu"))
    forward = inference.ForwardPass(torch.device("cpu"), timesteps=3)

    def evaluate(passes):
        for _ in range(passes):
            with firing_rates(net) if monitored else contextlib.nullcontext() as record:
                inference.evaluate(net, batches, forward, draws=2, transform=lambda images, target: images.flip(-1))
            assert record is None or record.rates()

    evaluate(STEPS // 10 // len(batches))
    gc.collect()
    before = allocated()
    evaluate(STEPS // len(batches))
    gc.collect()
    assert allocated() - before < 50 * STEPS  # less than an object in each


def test_a_run_leaves_no_files_open_and_no_processes(tmp_path, stripes):
    def run():
        Training(config(tmp_path, epochs=1, workers=2), stripes).run()

    run()
    gc.collect()  # files of other tests
    before = open_files(), children()
    for _ in range(2):
        run()
    assert (open_files(), children()) == before


MAKERS = {
    "run": lambda root: make_run_folder(TrainConfig(results=str(root)), "stripes")[0],
    "evaluation": make_folder_of_now,
}


@pytest.mark.parametrize("kind", MAKERS)
def test_runs_that_start_in_the_same_second_share_no_folder(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(time, "strftime", lambda *args: "20250101-120000")
    context = multiprocessing.get_context("fork")
    ready, queue = context.Barrier(4), context.Queue()

    def work():
        ready.wait()
        queue.put([str(MAKERS[kind](tmp_path / "results")) for _ in range(20)])

    processes = [context.Process(target=work) for _ in range(4)]
    for process in processes:
        process.start()
    made = sum((queue.get(timeout=600) for _ in processes), [])
    for process in processes:
        process.join()
    assert len(made) == len(set(made)) == 80 and all("20250101-120000" in name for name in made)

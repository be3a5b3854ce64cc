"""Several processes on the CPU, by Gloo: what they exchange, and that they train as one would."""

import multiprocessing
import os
import signal
import statistics

import pytest
import torch
import torch.distributed as dist
import yaml

from tools.config.train import TrainConfig
from tools.data.batches import Batches
from tools.inference import ForwardPass
from tools.io import checkpoint
from tools.runtime.processes import Processes, joined
from tools.training.folder import read_metrics
from tools.training.run import Training

SETTINGS = dict(
    model="vggwoap", width=0.1, threshold=0.1, neuron="LIF", epochs=2, lr=0.01, nobn=True, histograms=False, threads=1
)
RATE = "train_images_per_s"


def run_processes(count, function):
    """What `function(processes)` returns in each of several forked processes, in the order of their ranks."""
    context = multiprocessing.get_context("fork")
    pipes = [context.Pipe(duplex=False) for _ in range(count)]
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # it chooses a free port, and has it

    def work(rank):
        os.environ.update(
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=str(count),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(store.port),
            TORCHELASTIC_USE_AGENT_STORE="True",  # so that the first process starts no store of its own
            TORCHELASTIC_RESTART_COUNT="0",
        )
        with joined() as processes:
            pipes[rank][1].send(function(processes))
            processes.gathered(0)

    workers = [context.Process(target=work, args=(rank,)) for rank in range(count)]
    for worker in workers:
        worker.start()
    for _, end in pipes:
        end.close()  # an EOFError in place of endless waiting where all workers have failed
    results = [end.recv() for end, _ in pipes]
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    return results


def train(folder, stripes, count=1, **changes):
    """The rows of metrics.jsonl of a run by some processes, and its last checkpoint."""
    config = TrainConfig(**{**SETTINGS, "run_dir": str(folder), **changes})

    def work(processes):
        Training(config, stripes, processes=processes).run()

    if count == 1:
        work(Processes())
    else:
        run_processes(count, work)
    rows = [{key: value for key, value in row.items() if key != RATE} for row in read_metrics(folder / "metrics.jsonl")]
    return rows, checkpoint.read(folder / "last.pth")


def flat(row):
    row = dict(row)
    return {**row.pop("firing_rates"), **row}


def exchange(processes):
    rank = processes.rank
    net = torch.nn.BatchNorm1d(2)
    net.running_mean.fill_(rank)
    processes.share(net)
    return {
        "sum": processes.sum(torch.tensor([1.0, rank])).tolist(),
        "largest": processes.largest([rank, -rank]),
        "concatenated": processes.concatenated(torch.full((2, rank, 3), rank), 1)[..., 0].tolist(),
        "gathered": processes.gathered(f"from {rank}"),
        "from_first": processes.from_first(lambda: f"made by {rank}"),
        "shared": net.running_mean.tolist(),
        "part": processes.part(10).tolist(),
    }


def test_exchange():
    parts = [[0, 1, 2], [3, 4, 5], [6, 7, 8, 9]]
    assert run_processes(3, exchange) == [
        {
            "sum": [3.0, 3.0],
            "largest": [2, 0],
            "concatenated": [[1, 2, 2], [1, 2, 2]],
            "gathered": ["from 0", "from 1", "from 2"],
            "from_first": "made by 0",
            "shared": [0.0, 0.0],
            "part": part,
        }
        for part in parts
    ]
    with pytest.raises(ValueError, match="2 samples are too few for 3 processes"):
        Processes(0, 3).part(2)


class Indices(Batches):
    """Batches that are the indices of their samples."""

    def _batch(self, chosen):
        return chosen


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_samples_of_a_pass_are_shared_without_loss_or_double(stripes, count, accumulate):
    data = stripes.load().train
    order = torch.randperm(len(data))
    seen = []
    for rank in range(count):
        options = dict(shuffle=True, accumulate=accumulate, processes=Processes(rank, count))
        batches = Indices(data, 10, torch.device("cpu"), **options)
        seen.append(torch.stack(list(batches.passing(order))))
    steps = len(data) // (10 * count * accumulate)
    assert all(len(one) == steps * accumulate for one in seen)
    assert torch.equal(torch.stack(seen, 1).flatten(), order[: steps * accumulate * count * 10])
    with pytest.raises(ValueError, match=r"180 samples are not enough for a step of 3 \(processes\) x 2"):
        data.batches(50, torch.device("cpu"), shuffle=True, accumulate=2, processes=Processes(0, 3))


@pytest.fixture
def double(monkeypatch):
    """Networks that compute in double precision: in single precision, rounding decides a spike now and then."""
    monkeypatch.setattr(ForwardPass, "__call__", lambda self, net, x: net(x.double(), timesteps=self.timesteps))
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("changes", [{"tet": True, "optim": "sgdm", "ema": 0.9, "clip_grad": 0.1}, {"reg": "gram"}])
@pytest.mark.slow
def test_without_noise_many_processes_train_as_one_with_the_large_batch(tmp_path, stripes, double, changes):
    """30 images a step: of one batch, of accumulated ones, of 2 and 3 processes, whose shares of 50 are uneven."""
    one, last = train(tmp_path / "one", stripes, minibatch=30, plot_spike_rate=True, **changes)
    assert one[1]["train_loss"] < one[0]["train_loss"] and min(one[1]["firing_rates"].values()) > 0.01
    others = {
        "accumulate": dict(minibatch=15, accumulate=2),
        "two": dict(minibatch=15, count=2),
        "three": dict(minibatch=10, count=3),
        "both": dict(minibatch=5, accumulate=3, count=2),
    }
    for name, options in others.items():
        rows, state = train(tmp_path / name, stripes, plot_spike_rate=True, **options, **changes)
        assert len(rows) == len(one) == 2
        for row, wanted in zip(rows, one):
            assert flat(row) == pytest.approx(flat(wanted), rel=1e-6, abs=1e-6), name  # rates are float
        for key, value in last["model"].items():
            torch.testing.assert_close(state["model"][key], value, rtol=1e-8, atol=1e-8)
        assert len(list((tmp_path / name).glob("events*"))) == 1


def test_noise_differs_between_processes_and_repeats_between_runs(tmp_path, stripes):
    options = dict(minibatch=15, count=2, neuron="NILIF", crop_padding=1)
    first, state = train(tmp_path / "first", stripes, **options)
    second, _ = train(tmp_path / "second", stripes, **options)
    assert first == second
    generators = [one["rng"]["torch"] for one in state["processes"]]
    assert len(generators) == 2 and not torch.equal(*generators)
    alone, _ = train(tmp_path / "alone", stripes, **{**options, "minibatch": 30, "count": 1})
    losses = [statistics.mean(row["train_loss"] for row in rows) for rows in (alone, first)]
    assert abs(losses[0] - losses[1]) < 0.1  # over seeds, the difference is -0.005 +- 0.011


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])  # the sum of two has no order
def test_several_processes_go_on_in_the_middle_of_an_epoch_bit_for_bit(tmp_path, stripes, count):
    options = {**SETTINGS, "neuron": "NILIF", "minibatch": 20 // count, "crop_padding": 1, "nobn": False}
    whole, state = train(tmp_path / "whole", stripes, count=count, **options)
    broken = tmp_path / "broken"

    def stopped(processes):
        training = Training(TrainConfig(**{**options, "run_dir": str(broken)}), stripes, processes=processes)
        original = training.between_steps

        def between(epoch, progress, check):
            if (epoch, progress.steps) == (2, 4) and processes.rank == 1:
                signal.raise_signal(signal.SIGTERM)  # to one of them only
            original(epoch, progress, check)

        training.between_steps = between
        with pytest.raises(BaseException, match="SIGTERM"):
            training.run()
        return training.learner.scheduler.last_epoch

    steps = 180 // (count * (20 // count))  # of an epoch
    assert run_processes(count, stopped) == [steps + 4] * count
    with pytest.raises(ValueError, match=f"saved by {count} processes and cannot be resumed by 1"):
        Training(TrainConfig(resume=str(broken)), stripes)

    def resumed(processes):
        training = Training(TrainConfig(resume=str(broken)), stripes, processes=processes)
        assert training.progress.steps == 4
        return training.run()

    results = run_processes(count, resumed)
    assert results.count(results[0]) == count
    rows = [{key: value for key, value in row.items() if key != RATE} for row in read_metrics(broken / "metrics.jsonl")]
    assert rows == whole
    again = checkpoint.read(broken / "last.pth")
    for part in ("model", "optimizer", "processes"):
        assert checkpoint.checksum({"part": again[part]}) == checkpoint.checksum({"part": state[part]}), part


def test_a_step_that_is_not_finite_in_one_process_is_skipped_in_all(tmp_path, stripes):
    config = TrainConfig(**{**SETTINGS, "run_dir": str(tmp_path / "run"), "minibatch": 10, "on_nonfinite": "skip"})

    def work(processes):
        training = Training(config, stripes, processes=processes)
        criterion, calls = training.learner.criterion, []

        def spoilt(logits, target):
            calls.append(1)
            return criterion(logits, target) * (torch.nan if processes.rank == 1 and len(calls) == 3 else 1.0)

        training.learner.criterion = spoilt
        training.run()
        return checkpoint.checksum(training.net.state_dict())

    one, two = run_processes(2, work)
    assert one == two
    assert [row["train_skipped_steps"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl")] == [1, 0]


def test_synchronised_batch_normalisation_needs_cuda(tmp_path, stripes):
    with pytest.raises(ValueError, match="--sync_bn needs CUDA"):
        Training(TrainConfig(**{**SETTINGS, "sync_bn": True, "device": "cpu", "results": str(tmp_path)}), stripes)


KILLED = """
import os, signal
from tools.training.run import Training

original = Training.between_steps

def between_steps(self, epoch, progress, check):
    if (epoch, progress.steps, os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]) == (2, 4, "1", "0"):
        print("the second worker is killed", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    original(self, epoch, progress, check)

Training.between_steps = between_steps
"""


@pytest.mark.slow
def test_torchrun_restarts_a_killed_worker_from_the_checkpoint(tmp_path, stripes, script):
    settings = {**SETTINGS, "neuron": "NILIF", "minibatch": 10, "epochs": 6, "device": "cpu"}
    whole, _ = train(tmp_path / "whole", stripes, count=2, **settings)
    folder, recipe, main = tmp_path / "run", tmp_path / "recipe.yaml", tmp_path / "main_stripes.py"
    main.write_text(KILLED + main.read_text())
    recipe.write_text(yaml.safe_dump({**settings, "save_steps": 1}))
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--max-restarts=1")
    process = script("--config", str(recipe), "--run_dir", str(folder), launcher=launcher)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert output.count("is killed") == 1
    rows = [{key: value for key, value in row.items() if key != RATE} for row in read_metrics(folder / "metrics.jsonl")]
    assert rows == whole
    assert output.count("epoch 6/6") == 1  # messages of the first process only

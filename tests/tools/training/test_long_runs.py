"""Long runs: memory does not grow, nothing is left behind, and what they write stays small."""

import contextlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from models import build_model, build_neuron
from tests.tools.training.test_survival import config
from tools import inference
from tools.probes.firing_rates import firing_rates
from tools.training.run import Training

STEPS = 2000
GROWTH = 0.02


def memory(process="self"):
    """Resident memory of a process, in bytes."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def open_files(process="self"):
    return len(os.listdir(f"/proc/{process}/fd"))


def children(process):
    return Path(f"/proc/{process}/task/{process}/children").read_text().split()


@pytest.mark.slow
def test_a_thousand_epochs_take_no_more_memory_and_their_log_stays_readable(tmp_path, script):
    """2,000 steps and 1,000 validations with monitoring, seen from outside: epoch 100 against the last."""
    folder = tmp_path / "run"
    options = dict(model="toynet", width=0.02, epochs=STEPS // 2, minibatch=90, ema=0.9, threads=1, timestep=3)
    flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    process = script("--run_dir", str(folder), *flags)
    seen, lines = {}, []
    for line in process.stdout:
        lines.append(line)
        if line.startswith(("epoch 100/", "epoch 990/")):
            seen[line.split("/")[0]] = memory(process.pid), open_files(process.pid), len(children(process.pid))
    assert process.wait() == 0, "".join(lines[-20:])
    (memory_before, *kept_before), (memory_after, *kept_after) = seen.values()
    print(f"memory {memory_before / 1e6:.1f} MB after 200 steps, {memory_after / 1e6:.1f} MB after 1,980")
    assert memory_after < (1 + GROWTH) * memory_before
    assert kept_after == kept_before
    assert 1000 <= len(lines) < 1010 and max(map(len, lines)) < 200
    assert [json.loads(line)["epoch"] for line in (folder / "metrics.jsonl").open()] == list(range(1, 1001))
    sizes = {path.name.split(".")[0]: path.stat().st_size for path in folder.glob("[!.]*")}
    assert sizes["metrics"] < 400_000 and sizes["events"] < 4_000_000
    assert sorted(sizes) == sorted(["best", "config", "events", "last", "metrics", "previous", "test"])


@pytest.mark.slow
@pytest.mark.parametrize("monitored", [False, True], ids=["evaluation", "monitoring"])
def test_two_thousand_evaluated_minibatches_take_no_more_memory(monitored, stripes):
    torch.manual_seed(0)
    net = build_model("toynet", neuron=build_neuron("NILIF"), in_shape=(1, 8, 8), num_classes=2).eval()
    batches = stripes.load()["test"].batches(batch_size=5, device=torch.device("cpu"))
    forward = inference.ForwardPass(torch.device("cpu"), timesteps=3)

    def evaluate(passes):
        for _ in range(passes):
            with firing_rates(net) if monitored else contextlib.nullcontext() as record:
                inference.evaluate(net, batches, forward, draws=2, transform=lambda images, target: images.flip(-1))
            assert record is None or record.rates()

    evaluate(STEPS // 10 // len(batches))
    before = memory()
    evaluate(STEPS // len(batches))
    print(f"{before / 1e6:.1f} MB, then {memory() / 1e6:.1f} MB")
    assert memory() < (1 + GROWTH) * before


def test_a_run_leaves_no_files_open_and_no_processes(tmp_path, stripes):
    def run():
        Training(config(tmp_path, epochs=1, workers=2), stripes).run()

    run()
    before = open_files(), children(os.getpid())
    for _ in range(3):
        run()
    assert (open_files(), children(os.getpid())) == before


FOLDERS = {
    "run": "from tools.training.folder import TrainConfig, make_run_folder; "
    "make = lambda: make_run_folder(TrainConfig(results=str(root)), 'stripes')[0]",
    "evaluation": "from tools.io.files import make_folder_of_now; make = lambda: make_folder_of_now(root)",
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_runs_that_start_in_the_same_second_share_no_folder(tmp_path, kind, repository):
    code = (
        f"import sys; from pathlib import Path; root = Path({str(tmp_path / 'results')!r}); {FOLDERS[kind]}\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "for _ in range(20): print(make())"
    )
    options = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=repository)
    processes = [subprocess.Popen([sys.executable, "-c", code], **options) for _ in range(4)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    made = [line for process in processes for line in process.communicate()[0].splitlines()]
    assert len(made) == len(set(made)) == 80
    seconds = {re.search(r"\d{8}-\d{6}", name).group() for name in made}
    assert len(seconds) < 40  # most share theirs with others

"""What a training run survives: kills, signals, full disks, damaged files, numbers that are not finite."""

import copy
import functools
import json
import logging
import multiprocessing
import os
import random
import resource
import signal
import sys
import time

import pytest
import torch
import yaml

from tests.conftest import first_are_fast
from tools import cli, inference, optim
from tools.config.train import TrainConfig
from tools.errors import UserError
from tools.inference import Scores
from tools.io import checkpoint, files
from tools.runtime import processes
from tools.runtime.interruption import TIME_IS_OVER, Interrupted, Interruption
from tools.training import loop
from tools.training.divergence import MOST_SKIPPED, Diverged, DivergenceWatch
from tools.training.folder import RunLog
from tools.training.progress import EpochResult
from tools.training.run import Training

# What has a state: augmentation, noise, moving average, optimiser with moments; running statistics where it matters.
NORMALISED = dict(model="vggwoap", width=0.1)
SETTINGS = dict(
    model="toynet",
    epochs=3,
    minibatch=20,
    lr=0.01,
    crop_padding=1,
    ema=0.9,
    histograms=False,
    threads=1,
    learnable_scale=True,
)
RATES = {"train_images_per_s"}


def config(tmp_path, **changes):
    return TrainConfig(**{**SETTINGS, "results": str(tmp_path / "results"), **changes})


def rows(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in RATES} for line in lines]


def assert_same_run(folder, other):
    """The rows and the last checkpoints of two runs are the same, except for times."""
    assert rows(folder) == rows(other)
    one, two = (checkpoint.read(path / checkpoint.LAST) for path in (folder, other))
    for part in ("model", "ema", "optimizer", "scheduler", "scaler", "processes", "best", "epochs_done"):
        assert checkpoint.checksum({"part": one[part]}) == checkpoint.checksum({"part": two[part]}), part
    for name in ("best.pth", "test.json"):
        assert (folder / name).exists() and (other / name).exists()
    assert (folder / "test.json").read_text() == (other / "test.json").read_text()


class Stop(Exception):
    pass


def stop_after(training, epoch, steps):
    """Make a run end silently, as a kill would, after a step of an epoch."""
    original = training.between_steps

    def between(now, progress, check):
        original(now, progress, check)
        if (now, progress.steps) == (epoch, steps):
            raise Stop

    training.between_steps = between


CASES = [
    NORMALISED,
    {"mixup": 0.4, "cutmix": 1.0, "loss": "tet", "scheduler": "none", "learnable_scale": False},
    {
        **NORMALISED,
        "scheduler": "onecycle",
        "optim": "sgdm",
        "amp": "fp16",
        "ema": 0.0,
        "accumulate": 2,
        "on_nonfinite": "skip",
    },
    {
        "scheduler": "cyclic",
        "amp": "bf16",
        "model": "vgg",
        "width": 0.1,
        "reg": "rate",
        "neuron": "PLIF",
        "learnable_scale": False,
    },
]


@pytest.mark.parametrize("changes", first_are_fast(CASES, 2), ids=lambda changes: changes.get("scheduler", "default"))
@pytest.mark.parametrize("saved_at", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_a_run_goes_on_in_the_middle_of_an_epoch_bit_for_bit(tmp_path, stripes, changes, saved_at):
    whole = Training(config(tmp_path, **changes), stripes)
    result = whole.run()
    broken = Training(config(tmp_path, save_steps=saved_at, **changes), stripes)
    stop_after(broken, 2, 4)
    with pytest.raises(Stop):
        broken.run()
    torch.manual_seed(12345)  # a new process starts from another state
    resumed = Training(config(tmp_path, resume=str(broken.folder)), stripes)
    assert resumed.first_epoch == 2 and resumed.progress.steps == {1: 4, 3: 3}[saved_at]
    assert resumed.run() == result
    assert_same_run(resumed.folder, whole.folder)


def test_time_makes_checkpoints_too(tmp_path, stripes):
    training = Training(config(tmp_path, save_minutes=1e-9), stripes)
    stop_after(training, 1, 2)
    with pytest.raises(Stop):
        training.run()
    (of_process,) = checkpoint.read(training.folder / "last.pth")["processes"]
    assert of_process["progress"]["steps"] == 2


def flags(folder, **changes):
    settings = {**SETTINGS, **changes}
    recipe = folder.with_suffix(".yaml")
    recipe.write_text(yaml.safe_dump(settings))
    return ["--config", str(recipe), "--run_dir", str(folder)]


def forked(work, *args):
    """Start a function in a forked process, which spares the imports."""
    process = multiprocessing.get_context("fork").Process(target=work, args=args)
    process.start()
    return process


def exit_code(process, seconds=600):
    """The exit code of a process that ends; one that hangs is killed, so that it does not outlive the test."""
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
        pytest.fail(f"a process did not end in {seconds} s")
    return process.exitcode


MOMENTS = {  # of the writing of last.pth: (function of os, name of the file it is about, whether it is still done)
    "written": ("fsync", "last.pth", False),
    "synced": ("fsync", "last.pth", True),
    "linked": ("link", "last.pth", True),
    "previous renamed": ("replace", "previous.pth", True),
    "renamed": ("replace", "last.pth", True),
}


def kill_at(moment, saves=4):
    """End this process by SIGKILL at a moment of a save, as if the machine had lost power."""
    name, file, still_done = MOMENTS[moment]
    original, calls = getattr(os, name), []

    def last_call(*args):
        path = os.readlink(f"/proc/self/fd/{args[0]}") if name == "fsync" else args[0 if name == "link" else 1]
        if os.path.basename(path).startswith(file):
            calls.append(path)
        if len(calls) < saves:
            return original(*args)
        if still_done:
            original(*args)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(os, name, last_call)


SAVES_OFTEN = dict(**NORMALISED, save_steps=1, epochs=4, histograms=True, plot_spike_rate=True, resume="auto")


@pytest.mark.slow
def test_a_kill_at_any_moment_of_a_save_leaves_no_trace(tmp_path, stripes):
    """One run, which is killed once at each moment of the writing of a checkpoint, and goes on each time."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"

    def train(folder, moment=None):
        if moment is not None:
            kill_at(moment)
        Training(config(tmp_path, run_dir=str(folder), **SAVES_OFTEN), stripes, {"resume", "run_dir"}).run()

    train(whole)
    for moment in MOMENTS:
        process = forked(train, killed, moment)
        assert exit_code(process) == -signal.SIGKILL, moment
    train(killed)
    assert_same_run(killed, whole)
    assert not list(killed.glob("*.part"))


@pytest.mark.slow
def test_kills_at_random_moments_leave_no_trace(tmp_path, stripes):
    """Often within a save, as each step ends with one."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"

    def train(folder):
        Training(config(tmp_path, run_dir=str(folder), **SAVES_OFTEN), stripes, {"resume", "run_dir"}).run()

    began = time.monotonic()
    train(whole)
    longest = time.monotonic() - began
    generator = random.Random(1)
    for _ in range(5):
        process = forked(train, killed)
        process.join(generator.uniform(0.0, longest / 2))
        process.kill()  # which does nothing to a run that has ended
        process.join()
    train(killed)
    assert_same_run(killed, whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_says_how_to_go_on(tmp_path, stripes, number):
    folder, printed = tmp_path / "run", tmp_path / "printed"
    process = forked(train_as_a_user, stripes, flags(folder, epochs=10**6), printed)
    wait_for(folder / "best.pth")
    os.kill(process.pid, number)
    code, output = exit_code(process), printed.read_text()
    assert code == 128 + number, output
    assert f"stopped ({signal.Signals(number).name}); everything is saved: --resume {folder} continues" in output
    assert "Traceback" not in output
    content = checkpoint.read(folder / "last.pth")
    assert content["epochs_done"] + 1 >= len(rows(folder)) >= 1


def train_as_a_user(dataset, arguments, printed):
    """Train in this process as a script does, with what it prints in a file."""
    with open(printed, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    logging.getLogger().handlers.clear()  # those of pytest
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background job ignores
    cli.train(dataset, argv=arguments)


def wait_for(path, seconds=600):
    until = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < until, f"{path} did not appear"
        time.sleep(0.01)


def test_a_signal_in_validation_and_the_end_of_the_time_lose_nothing(tmp_path, stripes, monkeypatch):
    whole = Training(config(tmp_path), stripes)
    result = whole.run()
    training = Training(config(tmp_path), stripes)
    original, calls = inference.evaluate, []

    def interrupted(*args, **options):
        calls.append(args)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGTERM)
            raise AssertionError("went on")
        return original(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(inference, "evaluate", interrupted)
        with pytest.raises(Interrupted, match="SIGTERM") as error:
            training.run()
    assert error.value.exit_code == 143
    stopped = Training(config(tmp_path, resume=str(training.folder), max_minutes=1e-9), stripes, {"max_minutes"})
    assert stopped.first_epoch == 2
    with pytest.raises(Interrupted, match="the time limit was reached") as error:
        stopped.run()
    assert error.value.exit_code == 0
    resumed = Training(config(tmp_path, resume=str(training.folder), max_minutes=0.0), stripes, {"max_minutes"})
    assert resumed.run() == result
    assert_same_run(resumed.folder, whole.folder)


def test_a_second_signal_does_what_it_always_did(request):
    # A shell's background job ignores SIGINT, as the tests may be.
    request.addfinalizer(functools.partial(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT)))
    signal.signal(signal.SIGINT, before := signal.default_int_handler)
    with Interruption() as interruption:
        assert interruption.request == 0
        signal.raise_signal(signal.SIGINT)
        assert interruption.request == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
    with Interruption(max_minutes=1e-12) as interruption:
        assert interruption.request == TIME_IS_OVER
        with pytest.raises(Interrupted), interruption.at_once():
            pass


def test_auto_starts_a_run_and_then_continues_it(tmp_path, stripes):
    with pytest.raises(UserError, match="--resume auto needs --run_dir"):
        Training(config(tmp_path, resume="auto"), stripes)
    options = dict(run_dir=str(tmp_path / "run"), resume="auto", epochs=1)
    assert Training(config(tmp_path, **options), stripes).run()
    again = Training(config(tmp_path, **{**options, "epochs": 2}), stripes, {"resume", "epochs", "run_dir"})
    assert (again.first_epoch, again.config.epochs) == (2, 2)


def test_torchrun_is_told_that_a_restarted_run_must_be_found(tmp_path, stripes, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "2")
    with pytest.raises(UserError, match="torchrun --max-restarts needs --run_dir"):
        Training(config(tmp_path), stripes)
    assert processes.restarts() == (0, 2)


# Damage


def flip(path, place):
    with open(path, "r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 0x55]))


def saved_twice(folder):
    for epochs_done in (1, 2):
        weights = {f"layer{index}": torch.rand(50, 50) for index in range(4)}
        checkpoint.save_last(folder, {"epochs_done": epochs_done, "model": weights})
    return folder / checkpoint.LAST


def test_the_checkpoint_before_is_kept_and_used_where_the_newest_is_damaged(tmp_path, caplog):
    last = saved_twice(tmp_path)
    path, content = checkpoint.read_last(tmp_path)
    assert path == last and content["epochs_done"] == 2
    weights = last.read_bytes().index(content["model"]["layer2"].numpy().tobytes())
    for damage in (lambda: flip(last, weights + 500), lambda: os.truncate(last, 1000), last.unlink):
        damage()
        path, content = checkpoint.read_last(tmp_path)
        assert path.name == checkpoint.PREVIOUS and content["epochs_done"] == 1
    assert "trying the previous one" in caplog.text
    os.truncate(tmp_path / checkpoint.PREVIOUS, 0)
    with pytest.raises(checkpoint.CheckpointError, match=r"previous\.pth"):
        checkpoint.read_last(tmp_path)
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        checkpoint.read_last(tmp_path / "nothing")


def test_every_damaged_byte_is_noticed_or_does_not_matter(tmp_path):
    """300 damaged places, all over the file: none yields other content than was saved, or another error."""
    last = saved_twice(tmp_path)
    intact, wanted = last.read_bytes(), checkpoint.checksum(checkpoint.read(last))
    generator, noticed = random.Random(0), 0
    for _ in range(300):
        last.write_bytes(intact)
        flip(last, generator.randrange(len(intact)))
        try:
            assert checkpoint.checksum(checkpoint.read(last)) == wanted
        except checkpoint.CheckpointError:
            noticed += 1
    assert noticed > 200
    for size in range(0, len(intact), len(intact) // 50):
        last.write_bytes(intact[:size])
        with pytest.raises(checkpoint.CheckpointError):
            checkpoint.read(last)


def test_a_run_whose_newest_checkpoint_is_damaged_goes_on_from_the_one_before(tmp_path, stripes):
    whole = Training(config(tmp_path), stripes)
    whole.run()
    broken = Training(config(tmp_path, save_steps=2), stripes)
    stop_after(broken, 2, 5)
    with pytest.raises(Stop):
        broken.run()
    os.truncate(broken.folder / "last.pth", 5000)
    resumed = Training(config(tmp_path, resume=str(broken.folder)), stripes)
    assert resumed.progress.steps == 2
    resumed.run()
    assert_same_run(resumed.folder, whole.folder)


def limit_files(kilobytes):
    """Limit the size of files in this process, as a full disk does."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)  # which only root may raise
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024 * kilobytes, hard))


@pytest.mark.parametrize("kilobytes", first_are_fast([30, 0, 3, 300]))
def test_a_full_disk_is_an_error_and_leaves_earlier_files_as_they_were(tmp_path, stripes, kilobytes):
    """Each limit is too small for another file: checkpoint, log, event file."""
    folder = tmp_path / "run"
    Training(config(tmp_path, run_dir=str(folder), epochs=1, **NORMALISED), stripes).run()
    names = ("last.pth", "previous.pth", "best.pth", "metrics.jsonl", "test.json", "config.yaml")
    before = {name: (folder / name).read_bytes() for name in names}
    longer = config(tmp_path, resume=str(folder), epochs=3, histograms=True)

    def train():
        limit_files(kilobytes)
        try:
            Training(longer, stripes, {"epochs"}).run()
        except OSError as error:
            os._exit(17 if str(folder) in str(error) else 1)

    process = forked(train)
    assert exit_code(process) == 17
    for name in ("last.pth", "previous.pth", "best.pth", "test.json"):
        assert (folder / name).read_bytes() == before[name]
    assert not list(folder.glob("*.part"))
    Training(longer, stripes, {"epochs"}).run()  # there is room again
    assert [row["epoch"] for row in rows(folder)] == [1, 2, 3]


def test_the_message_of_a_full_disk(tmp_path, stripes):
    def train():
        limit_files(20)
        train_as_a_user(stripes, flags(tmp_path / "run"), printed)

    printed = tmp_path / "printed"
    process = forked(train)
    code, output = exit_code(process), printed.read_text()
    assert code == 1, output
    assert "last.pth cannot be written, is the disk full?" in output and "Traceback" not in output


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_event_file_that_does_not_fit_is_an_error(tmp_path):
    """TensorBoard writes in its own thread, whose errors come late."""

    def write():
        log = RunLog(tmp_path)
        limit_files(20)
        try:
            for epoch in range(1, 100):
                log.histograms(torch.nn.Linear(100, 100), epoch)
                log.epoch(epoch, 0.1, EpochResult(1.0, 0.5, 100.0), Scores(1.0, 0.5))
        except OSError as error:
            os._exit(17 if f"the log in {tmp_path} cannot be written" in str(error) else 1)

    process = forked(write)
    assert exit_code(process) == 17


def test_a_folder_that_cannot_be_written_into_is_an_error_before_any_work(tmp_path, stripes, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("")
    loads = []
    monkeypatch.setattr(type(stripes), "load", lambda *args, **options: loads.append(1))
    with pytest.raises(OSError, match="file"):
        Training(config(tmp_path, results=str(blocked)), stripes)
    monkeypatch.setattr(files.os, "access", lambda *args: False)  # what the system says of a read-only folder
    with pytest.raises(PermissionError, match="run is not writable"):
        Training(config(tmp_path, run_dir=str(tmp_path / "run")), stripes)
    assert not loads


def test_absent_data_leave_no_empty_folder(tmp_path, stripes, monkeypatch):
    def load(*args, **options):
        raise FileNotFoundError("no data")

    monkeypatch.setattr(type(stripes), "load", load)
    with pytest.raises(FileNotFoundError, match="no data"):
        Training(config(tmp_path), stripes)
    assert not [path for path in (tmp_path / "results").rglob("*") if "-s0" in path.name]


# Numbers that are not finite


def spoil_gradients(training, steps):
    """Let the gradients of some steps, counted over the whole run, be NaN."""
    count, weight = [], next(training.net.parameters())

    def spoil(gradient):
        count.append(1)
        return torch.full_like(gradient, torch.nan) if len(count) in steps else gradient

    weight.register_hook(spoil)


def test_a_step_that_is_not_finite_is_skipped_counted_and_logged(tmp_path, stripes, caplog):
    training = Training(config(tmp_path, on_nonfinite="skip"), stripes)
    spoil_gradients(training, {4, 12, 13})  # 9 steps an epoch
    training.run()
    assert [row["train_skipped_steps"] for row in rows(training.folder)] == [1, 2, 0]
    assert "in epoch 2, step 3: the step is undone" in caplog.text
    assert all(value.isfinite().all() for value in training.net.state_dict().values())


RESUMED = {
    "no configuration": lambda content: content.pop("config"),
    "no processes": lambda content: content.update(processes=5),
    "epochs": lambda content: content.update(epochs_done="x"),
    "best": lambda content: content.update(best=3),
    "a weight less": lambda content: content["model"].popitem(),
    "no weights": lambda content: content.update(model=3),
    "no average": lambda content: content.update(ema=None),
    "optimiser": lambda content: content.update(optimizer={}),
    "schedule": lambda content: content.update(scheduler=[]),
    "process": lambda content: content.update(processes=[5]),
    "generators": lambda content: content["processes"][0].update(rng={}),
    "order": lambda content: content["processes"][0]["progress"].update(order=torch.tensor([10**9] * 180)),
    "device": lambda content: content["config"].update(device="foo"),
    "width": lambda content: content["config"].update(width=1e7),
    "seed": lambda content: content["config"].update(seed=10**30),
    "threads": lambda content: content["config"].update(threads=10**12),
    "steps": lambda content: content["config"].update(timestep=10**7),
}


@pytest.fixture(scope="module")
def in_mid_epoch(tmp_path_factory, stripes):
    """The content of a checkpoint within an epoch, without its checksum, which guards against damage alone."""
    training = Training(config(tmp_path_factory.mktemp("run"), save_steps=2), stripes)
    stop_after(training, 1, 2)
    with pytest.raises(Stop):
        training.run()
    content = checkpoint.read(training.folder / "last.pth")
    del content["checksum"]
    return content


@pytest.mark.parametrize("change", RESUMED)
def test_a_forged_checkpoint_is_not_resumed(tmp_path, stripes, in_mid_epoch, change):
    forged = copy.deepcopy(in_mid_epoch)
    RESUMED[change](forged)
    torch.save(forged, tmp_path / "last.pth")
    with pytest.raises(UserError):
        Training(config(tmp_path, resume=str(tmp_path)), stripes, {"resume"})


def test_zero_save_minutes_means_no_checkpoints_by_time(tmp_path, stripes):
    training = Training(config(tmp_path, save_minutes=0.0), stripes)
    stop_after(training, 1, 2)
    with pytest.raises(Stop):
        training.run()
    assert checkpoint.read(training.folder / "last.pth")["processes"][0]["progress"] is None


def test_gradients_that_are_never_finite_with_fp16_end_the_run(tmp_path, stripes):
    training = Training(config(tmp_path, amp="fp16", epochs=4), stripes)
    spoil_gradients(training, range(10**6))
    with pytest.raises(Diverged, match="no gradient is finite in fp16, at any scale, up to epoch 2"):
        training.run()


def test_a_gradient_that_is_not_finite_with_fp16_is_left_out_and_counted(tmp_path, stripes):
    training = Training(config(tmp_path, amp="fp16"), stripes)
    spoil_gradients(training, {12, 13})
    training.run()
    assert [row["train_skipped_steps"] for row in rows(training.folder)][:2] == [0, 2]


def test_resuming_from_previous_pth_does_not_replace_it_by_a_damaged_one(tmp_path, stripes):
    training = Training(config(tmp_path), stripes)
    training.run()
    last, previous = (training.folder / name for name in ("last.pth", "previous.pth"))
    last.write_bytes(last.read_bytes()[:-100])
    before = previous.read_bytes()
    resumed = Training(config(tmp_path, resume=str(training.folder)), stripes)
    stop_after(resumed, resumed.first_epoch, 1)
    with pytest.raises(Stop):
        resumed.run()
    assert previous.read_bytes() == before
    assert checkpoint.read(last)["epochs_done"] == checkpoint.read(previous)["epochs_done"]


def test_a_rollback_does_not_go_to_the_future(tmp_path, stripes):
    training = Training(config(tmp_path), stripes)
    training.run()
    earlier = config(tmp_path, resume=str(training.folder / "previous.pth"), on_nonfinite="rollback")
    resumed = Training(earlier, stripes, {"resume", "on_nonfinite"})
    start, seen = checkpoint.checksum(resumed.net.state_dict()), []
    resumed.between_steps = lambda *args: seen.append(checkpoint.checksum(resumed.net.state_dict()))
    spoil_gradients(resumed, {1})
    resumed.run()
    assert seen[0] == start != seen[1]


def test_another_number_of_training_samples_is_refused(tmp_path, stripes, in_mid_epoch):
    forged = {**copy.deepcopy(in_mid_epoch), "samples": 17}
    torch.save(forged, tmp_path / "last.pth")
    with pytest.raises(checkpoint.CheckpointError, match="was trained on 17 samples, but this data set has 180"):
        Training(config(tmp_path, resume=str(tmp_path)), stripes, {"resume"})


def test_a_damaged_best_network_is_found_out_before_training(tmp_path, stripes):
    training = Training(config(tmp_path), stripes)
    training.run()
    (training.folder / "best.pth").write_bytes(b"PK")
    with pytest.raises(checkpoint.CheckpointError, match=r"best\.pth"):
        Training(config(tmp_path, resume=str(training.folder), epochs=9), stripes, {"resume", "epochs"})


def test_a_complete_run_that_goes_on_is_no_longer_complete(tmp_path, stripes):
    training = Training(config(tmp_path), stripes)
    training.run()
    assert (training.folder / "test.json").exists()
    longer = config(tmp_path, resume=str(training.folder), epochs=training.config.epochs + 1, save_steps=1)
    resumed = Training(longer, stripes, {"resume", "epochs", "save_steps"})
    stop_after(resumed, resumed.first_epoch, 2)
    with pytest.raises(Stop):
        resumed.run()
    assert not (training.folder / "test.json").exists()


def test_two_processes_do_not_train_in_one_folder(tmp_path, stripes):
    training = Training(config(tmp_path), stripes)
    with files.alone_in(training.folder), pytest.raises(UserError, match="another process is using"):
        training.run()
    training.run()


@pytest.mark.parametrize("scheduler", ["onecycle", "cyclic"])
def test_a_schedule_that_was_planned_to_its_end_cannot_be_prolonged(tmp_path, stripes, scheduler):
    training = Training(config(tmp_path, scheduler=scheduler), stripes)
    training.run()
    with pytest.raises(UserError, match=f"the {scheduler} schedule was planned"):
        Training(config(tmp_path, resume=str(training.folder), epochs=9), stripes, {"resume", "epochs"})


def test_a_schedule_whose_state_has_a_counter_resumes(tmp_path, stripes, monkeypatch):
    def halved(optimizer, lr, n):
        return torch.optim.lr_scheduler.MultiStepLR(optimizer, [n // 2, n // 2, 3 * n // 4], 0.5)

    monkeypatch.setitem(optim.SCHEDULERS, "onecycle", halved)  # its state has a Counter
    whole = Training(config(tmp_path, scheduler="onecycle"), stripes)
    whole.run()
    broken = Training(config(tmp_path, scheduler="onecycle", save_steps=3), stripes)
    stop_after(broken, 2, 4)
    with pytest.raises(Stop):
        broken.run()
    Training(config(tmp_path, resume=str(broken.folder)), stripes).run()
    assert_same_run(broken.folder, whole.folder)


@pytest.mark.parametrize("stops", [False, True])
def test_numbers_that_are_noticed_late_are_not_saved(tmp_path, stripes, monkeypatch, stops):
    def late(epoch, device, *args):
        return DivergenceWatch(epoch, torch.device("cuda"), *args)  # where numbers are looked at later

    monkeypatch.setattr(loop, "DivergenceWatch", late)
    training = Training(config(tmp_path, save_steps=0 if stops else 2), stripes)
    spoil_gradients(training, {4})
    original = training.between_steps

    def between(epoch, progress, check):
        if stops and progress.steps == 6:
            signal.raise_signal(signal.SIGTERM)
        original(epoch, progress, check)

    training.between_steps = between
    with pytest.raises(Diverged, match="norm of the gradient became nan in epoch 1, step 4"):
        training.run()
    for name in ("last.pth", "previous.pth"):
        if (training.folder / name).exists():
            weights = checkpoint.read(training.folder / name)["model"]
            assert all(torch.isfinite(value).all() for value in weights.values())


def test_a_learnt_scale_that_leaves_its_range_is_a_divergence(tmp_path, stripes):
    training = Training(config(tmp_path, learnable_scale=True), stripes)

    def between(epoch, progress, check):
        if progress.steps == 3:
            with torch.no_grad():
                training.net.stem_neuron.log_scale.fill_(-200.0)  # exp(-200) is 0 in float32

    training.between_steps = between
    with pytest.raises(Diverged, match="scale must be positive and finite, got 0.* in epoch 1, step 4"):
        training.run()


def test_a_skipped_step_changes_nothing(tmp_path, stripes):
    training = Training(config(tmp_path, on_nonfinite="skip", epochs=1, ema=0.0, **NORMALISED), stripes)
    seen = {}

    def between(epoch, progress, check):
        seen[progress.steps] = checkpoint.checksum(training.net.state_dict())

    training.between_steps = between
    spoil_gradients(training, {3})
    training.run()
    assert seen[2] == seen[3] != seen[4]


def test_a_rollback_returns_to_the_last_checkpoint(tmp_path, stripes):
    training = Training(config(tmp_path, on_nonfinite="rollback", save_steps=4, **NORMALISED), stripes)
    original, seen, lr = training.between_steps, {}, {}

    def between(epoch, progress, check):
        seen[epoch, progress.steps] = checkpoint.checksum(training.net.state_dict())
        lr[epoch, progress.steps] = training.learner.scheduler.get_last_lr()[0]
        original(epoch, progress, check)

    training.between_steps = between
    spoil_gradients(training, {16})
    training.run()
    assert seen[2, 7] == seen[2, 4] != seen[2, 6]
    assert lr[2, 6] > lr[2, 7] > lr[2, 8]
    assert [row["train_skipped_steps"] for row in rows(training.folder)] == [0, 1, 0]


def test_too_many_steps_that_are_not_finite_end_the_run(tmp_path, stripes):
    training = Training(config(tmp_path, on_nonfinite="skip", minibatch=10), stripes)
    spoil_gradients(training, range(20, 1000))
    message = f"{MOST_SKIPPED} steps in a row were not finite, the last one in epoch 2, step {1 + MOST_SKIPPED}"
    with pytest.raises(Diverged, match=message):
        training.run()

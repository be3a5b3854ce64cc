"""Whole runs on a tiny data set: what they leave behind, and that resuming continues bit for bit."""

import dataclasses
import json
import math

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from crits import REGULARIZERS, FiringRate
from dataset_utils import DATASETS
from tests.conftest import first_are_fast
from tools import inference
from tools.config.parsing import parse
from tools.config.train import TrainConfig
from tools.errors import UserError
from tools.io import checkpoint
from tools.io.checkpoint import CheckpointError
from tools.training import loop
from tools.training.build import DEBUG_BATCHES
from tools.training.divergence import Diverged
from tools.training.folder import RunLog
from tools.training.run import Training
from tools.training.state import within_standard_error

TINY = {
    "model": "toynet",
    "epochs": 3,
    "minibatch": 20,
    "lr": 0.01,
    "crop_padding": 1,
    "histograms": False,
}


DEEP = {"model": "vggwoap", "width": 0.1}


def config(tmp_path, **changes):
    return TrainConfig(**{**TINY, "results": str(tmp_path / "results"), **changes})


def run(tmp_path, dataset, **changes):
    training = Training(config(tmp_path, **changes), dataset)
    return training, training.run()


class Interrupted(Exception):
    pass


def interrupt_at(monkeypatch, interrupted):
    """Make training stop, as by a kill, at the beginning of the given epoch."""
    original = loop.train_one_epoch

    def stop(learner, batches, epoch, *args):
        if epoch == interrupted:
            raise Interrupted
        return original(learner, batches, epoch, *args)

    monkeypatch.setattr(loop, "train_one_epoch", stop)


def interrupted_run(tmp_path, dataset, monkeypatch, epoch, **changes):
    """A run that ended at the beginning of an epoch."""
    with monkeypatch.context() as patch:
        interrupt_at(patch, epoch)
        training = Training(config(tmp_path, **changes), dataset)
        with pytest.raises(Interrupted):
            training.run()
    return training


def rows(folder, *without):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in without} for line in lines]


def test_a_run_learns_and_leaves_everything_behind(tmp_path, stripes):
    training, result = run(tmp_path, stripes, epochs=6, plot_spike_rate=True, histograms=True, **DEEP)
    assert result.accuracy > 0.9
    folder = training.folder
    assert folder.parent == tmp_path / "results" / "stripes" / "vggwoap-NILIF"
    assert folder.name.endswith("-s0")
    written = yaml.safe_load((folder / "config.yaml").read_text())
    assert written["dataset"] == "stripes" and written["width"] == 0.1 and "git" in written["provenance"]
    history = rows(folder)
    assert [row["epoch"] for row in history] == [1, 2, 3, 4, 5, 6]
    assert history[-1]["train_loss"] < 0.7 * history[0]["train_loss"]
    assert len(history[0]["firing_rates"]) == 8
    assert json.loads((folder / "test.json").read_text())["accuracy"] == result.accuracy
    events = EventAccumulator(str(folder)).Reload().Tags()
    assert {"train/loss", "val/accuracy", "lr", "train/images_per_s", "firing_rate/stem_neuron"} <= set(
        events["scalars"]
    )
    assert {"weights/stem.conv.weight", "gradients/stem.conv.weight"} <= set(events["histograms"])


def test_config_yaml_of_a_run_is_a_recipe(tmp_path, stripes):
    training, _ = run(tmp_path, stripes, epochs=1)
    again, _ = parse(TrainConfig, ["--config", str(training.folder / "config.yaml")], dataset=stripes)
    assert dataclasses.asdict(again) == dataclasses.asdict(training.config)


def test_a_layer_that_the_data_set_is_shown_training_images_and_kept_in_a_resumed_run(tmp_path, stripes, monkeypatch):
    settings = dict(model="speednet", width=0.1, gradient_sigma=0.6)
    training = interrupted_run(tmp_path, stripes, monkeypatch, epoch=2, **settings)
    whitening = training.net.stem.conv[0]
    assert training.net.stem_neuron.surrogate.scale == 0.6
    images = stripes.load().train.images / 255
    outputs = whitening(training.net.normalize(images)).transpose(0, 1).flatten(1)
    assert 0.9 < outputs.std(1).max() <= 1
    monkeypatch.setattr("tools.training.run.adapt_to_data", lambda *args: None)
    resumed = Training(config(tmp_path, resume=str(training.folder), **settings), stripes)
    assert resumed.net.stem.conv[0].weight.equal(whitening.weight)


def test_the_best_epoch_is_the_latest_within_a_standard_error():
    assert within_standard_error(0.98, 0.985, samples=400)  # the standard error is 0.6 %
    assert not within_standard_error(0.978, 0.985, samples=400)
    assert not within_standard_error(0.98, 0.985, samples=5000)
    assert within_standard_error(0.99, 0.985, samples=5000)
    assert within_standard_error(1.0, 1.0, samples=10) and not within_standard_error(0.9, 1.0, samples=10)


def test_best_is_chosen_in_validation(tmp_path, stripes):
    training, _ = run(tmp_path, stripes)
    history = rows(training.folder)
    highest = max(row["val_accuracy"] for row in history)
    error = (highest * (1 - highest) / 20) ** 0.5  # of 20 validation images
    best = [row for row in history if row["val_accuracy"] >= highest - error][-1]
    stored = checkpoint.read(training.folder / "best.pth")
    assert stored["metrics"]["epoch"] == best["epoch"]
    assert stored["metrics"]["accuracy"] == best["val_accuracy"]


def test_the_test_images_are_used_once_and_not_before_the_end(tmp_path, stripes, monkeypatch):
    passes = []
    original = inference.evaluate

    def spy(net, batches, *args, **options):
        passes.append(batches)
        return original(net, batches, *args, **options)

    monkeypatch.setattr(inference, "evaluate", spy)
    training, _ = run(tmp_path, stripes)
    assert passes == [training.data.val] * 3 + [training.data.test]


def test_the_same_seed_gives_the_same_run_and_another_seed_another(tmp_path, stripes):
    first, second, other = (run(tmp_path, stripes, epochs=1, seed=seed)[0] for seed in (1, 1, 2))
    assert rows(first.folder, "train_images_per_s") == rows(second.folder, "train_images_per_s")
    assert rows(first.folder, "train_images_per_s") != rows(other.folder, "train_images_per_s")
    assert first.folder != second.folder


@pytest.mark.parametrize(
    "changes",
    first_are_fast(
        [
            DEEP,
            {
                "neuron": "PLIF",
                "scheduler": "onecycle",
                "optim": "sgdm",
                "channels_last": True,
                "amp": "bf16",
                "model": "vgg",
                "width": 0.05,
            },
            {**DEEP, "scheduler": "cyclic", "ema": 0.9, "optim": "adamw", "learnable_scale": True},
            {"scheduler": "none", "amp": "fp16", "optim": "radam", "tet": True, "reg": "srip"},
        ]
    ),
    ids=lambda changes: changes.get("scheduler", "default"),
)
def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path, stripes, monkeypatch, changes):
    whole, result = run(tmp_path, stripes, **changes)
    broken = interrupted_run(tmp_path, stripes, monkeypatch, 3, **changes)
    torch.manual_seed(12345)  # a new process starts from another state
    resumed = Training(config(tmp_path, resume=str(broken.folder)), stripes)
    assert resumed.first_epoch == 3
    assert resumed.run() == result
    assert rows(resumed.folder, "train_images_per_s") == rows(whole.folder, "train_images_per_s")
    a, b = (checkpoint.read(training.folder / "last.pth") for training in (whole, resumed))
    for part in ("model", "ema"):
        if a[part] is not None:
            assert all(torch.equal(a[part][key], b[part][key]) for key in a[part])
    (a,), (b,) = a["processes"], b["processes"]
    assert torch.equal(a["rng"]["torch"], b["rng"]["torch"])


def test_a_schedule_that_gets_more_epochs_goes_on_at_once(tmp_path, stripes):
    short, _ = run(tmp_path, stripes, epochs=2, scheduler="cos", lr=0.01)
    longer = config(tmp_path, resume=str(short.folder), epochs=4)
    Training(longer, stripes, given={"epochs"}).run()
    shares = [0, 1 / 2, 2 / 4, 3 / 4]  # of the schedule that are over
    wanted = [0.5 * 0.01 * (1 + math.cos(math.pi * share)) for share in shares]
    assert [row["lr"] for row in rows(short.folder)] == pytest.approx(wanted)


def test_histograms_of_huge_weights_can_be_drawn(tmp_path):
    log = RunLog(tmp_path, 1)
    net = torch.nn.Linear(2, 2)
    torch.nn.init.constant_(net.weight, 1e30)
    log.histograms(net, 0)
    log.close()


def test_a_run_of_an_earlier_version_with_numbers_of_shape_0_is_resumed(tmp_path, stripes, monkeypatch):
    changes = {"neuron": "PLIF", "optim": "adamw", "epochs": 2}
    _, result = run(tmp_path, stripes, **changes)
    broken = interrupted_run(tmp_path, stripes, monkeypatch, 2, **changes)
    content = checkpoint.read(broken.folder / "last.pth")
    states = [content["model"], *content["optimizer"]["state"].values()]
    changed = 0
    for state in states:
        for key, value in state.items():
            if value.shape == (1,):
                state[key] = value.reshape(())
                changed += 1
    assert changed == 3  # the logit and its two moments
    checkpoint.save(broken.folder / "last.pth", content)
    assert Training(config(tmp_path, resume=str(broken.folder)), stripes).run() == result


def test_rows_of_a_half_done_epoch_are_dropped_when_resuming(tmp_path, stripes, monkeypatch):
    broken = interrupted_run(tmp_path, stripes, monkeypatch, 3)
    with (broken.folder / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3, "lr": 1}\n{"epo')  # written, but the kill came before the checkpoint
    Training(config(tmp_path, resume=str(broken.folder / "last.pth")), stripes).run()
    assert [row["epoch"] for row in rows(broken.folder)] == [1, 2, 3]


def test_memory_settings_change_no_result_and_may_be_changed_later(tmp_path, stripes, monkeypatch):
    whole, result = run(tmp_path / "a", stripes, epochs=2, **DEEP)
    weights = checkpoint.read(whole.folder / "last.pth")["model"]
    broken = interrupted_run(tmp_path / "b", stripes, monkeypatch, epoch=2, epochs=2, memory="lean", **DEEP)
    resumed = Training(config(tmp_path, resume=str(broken.folder), memory="smallest"), stripes, given={"memory"})
    assert resumed.run() == result
    for name, value in checkpoint.read(resumed.folder / "last.pth")["model"].items():
        assert torch.equal(value, weights[name]), name


def test_a_resumed_run_keeps_its_settings(tmp_path, stripes, monkeypatch):
    training, _ = run(tmp_path, stripes, epochs=1)
    with pytest.raises(UserError, match="keeps lr = 0.01; it cannot be changed to 0.5"):
        Training(config(tmp_path, resume=str(training.folder), lr=0.5), stripes, given={"lr"})
    longer = Training(config(tmp_path, resume=str(training.folder), epochs=2), stripes, given={"epochs"})
    longer.run()
    assert [row["epoch"] for row in rows(training.folder)] == [1, 2]
    written = yaml.safe_load((training.folder / "config.yaml").read_text())
    assert (written["epochs"], written["resume"]) == (2, "")
    passes = []
    monkeypatch.setattr(inference, "evaluate", lambda *args, **options: passes.append(1))
    again = Training(config(tmp_path, resume=str(training.folder)), stripes).run()
    assert (
        dataclasses.asdict(again) == json.loads((training.folder / "test.json").read_text()) and not passes
    )  # nothing left to do


def test_a_network_alone_cannot_be_resumed(tmp_path, stripes):
    training, _ = run(tmp_path, stripes, epochs=1)
    with pytest.raises(UserError, match=r"holds a network only; take the run's last\.pth"):
        Training(config(tmp_path, resume=str(training.folder / "best.pth")), stripes)
    other = dataclasses.replace(stripes, name="other")
    with pytest.raises(UserError, match="was trained on stripes, this script is for other"):
        Training(config(tmp_path, resume=str(training.folder)), other)


def test_a_checkpoint_without_a_part_that_the_run_has_says_which(tmp_path, stripes):
    training, _ = run(tmp_path, stripes, epochs=1)
    content = checkpoint.read(training.folder / "last.pth")
    for part in ("optimizer", "scheduler"):
        older = {name: value for name, value in content.items() if name not in (part, "checksum")}
        checkpoint.save(training.folder / "older.pth", older)
        with pytest.raises(CheckpointError, match=f"older.pth cannot be resumed: .*{part}"):
            Training(config(tmp_path, resume=str(training.folder / "older.pth")), stripes)


@pytest.mark.parametrize("spoilt", ["classifier.weight", "stem.1.weight"])
def test_divergence_leaves_the_last_good_checkpoint(tmp_path, stripes, monkeypatch, spoilt):
    training = Training(config(tmp_path), stripes)
    original = loop.train_one_epoch

    def spoil(learner, batches, epoch, *args):
        if epoch == 2:
            with torch.no_grad():
                training.net.get_parameter(spoilt).fill_(float("nan"))
        return original(learner, batches, epoch, *args)

    monkeypatch.setattr(loop, "train_one_epoch", spoil)
    with pytest.raises(Diverged, match="epoch 2, step 1"):
        training.run()
    state = checkpoint.read(training.folder / "last.pth")
    assert state["epochs_done"] == 1
    assert all(value.isfinite().all() for value in state["model"].values())


def test_the_moving_average_is_what_is_evaluated(tmp_path, stripes):
    training, _ = run(tmp_path, stripes, ema=0.99, epochs=1)
    best, last = (checkpoint.read(training.folder / name) for name in ("best.pth", "last.pth"))
    key = "stem.1.weight"
    assert torch.equal(best["model"][key], last["ema"][f"module.{key}"])
    assert not torch.equal(best["model"][key], last["model"][key])


@pytest.mark.parametrize("reg", ["gram", "srip", "rate"])
def test_every_regulariser_runs_with_tet(tmp_path, stripes, reg):
    training, _ = run(tmp_path, stripes, epochs=1, reg=reg, tet=True, lambda1=0.1, label_smoothing=0.1, clip_grad=1.0)
    assert rows(training.folder)[0]["train_loss"] > 0


def test_a_regulariser_that_watches_spikes_is_not_left_out_of_a_compiled_network(tmp_path, stripes, monkeypatch):
    class Watching(FiringRate):
        pass

    for watching, problem in ((FiringRate, "rate"), (Watching, "gram")):
        monkeypatch.setitem(REGULARIZERS, problem, watching)
        with pytest.raises(UserError, match=f"--compile and --reg {problem} do not go together"):
            Training(config(tmp_path, compile=True, reg=problem), stripes)


def test_a_relu_network_is_trained_as_others_are(tmp_path, stripes):
    settings = dict(neuron="ReLU", model="speednet", width=0.1, ema=0.5, reg="gram", tet=True, epochs=4)
    training, result = run(tmp_path, stripes, **settings, histograms=True)
    assert result.accuracy > 0.9 and training.folder.parent.name == "speednet-ReLU"
    lean, _ = run(tmp_path, stripes, **settings, memory="lean")
    weights = [checkpoint.read(one.folder / "best.pth")["model"] for one in (training, lean)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_what_needs_spikes_is_refused_of_a_relu_network_before_it_is_trained(tmp_path, stripes):
    for flag, changes in (("--plot_spike_rate", {"plot_spike_rate": True}), ("--reg rate", {"reg": "rate"})):
        with pytest.raises(UserError, match=f"{flag} needs spikes, which --neuron ReLU does not have: leave one"):
            Training(config(tmp_path, neuron="ReLU", **changes), stripes)
    with pytest.raises(UserError, match="rsnn feeds spikes back, so that it needs a spiking neuron"):
        Training(config(tmp_path, neuron="ReLU", model="rsnn"), stripes)
    assert not list((tmp_path / "results").rglob("*-s0*"))


@pytest.mark.parametrize("memory", ["lean", "smallest"])
def test_a_memory_setting_is_not_ignored_in_a_compiled_network(tmp_path, stripes, memory):
    with pytest.raises(UserError, match=f"--compile and --memory {memory} do not go together"):
        Training(config(tmp_path, compile=True, memory=memory), stripes)


@pytest.mark.parametrize("amp", first_are_fast(["bf16", "fp16"]))
def test_mixed_precision_and_channels_last_learn(tmp_path, stripes, amp):
    """Not vggwoap: on some CPUs, oneDNN's bf16 convolution of stride 2 on a 1x1 map has a wrong weight gradient."""
    _, result = run(tmp_path, stripes, epochs=4, amp=amp, channels_last=True, model="vgg", width=0.1)
    assert result.accuracy > 0.9


@pytest.mark.parametrize("mix", first_are_fast([{"mixup": 0.2, "cutmix": 1.0}, {"mixup": 0.2}, {"cutmix": 1.0}]))
def test_mixed_images_are_learnt_from_by_every_loss(tmp_path, stripes, mix):
    for loss in ("rate", "per_step", "tet"):
        training, result = run(tmp_path, stripes, epochs=6, loss=loss, label_smoothing=0.1, **mix)
        _, target = next(iter(training.data.train))
        assert target.shape == (20, 2) and next(iter(training.data.val))[1].dim() == 1
        assert result.accuracy > 0.9 and all(0 < row["train_accuracy"] <= 1 for row in rows(training.folder))


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_mixing_is_refused_for_recordings_and_out_of_range(tmp_path, stripes, name, capsys):
    with pytest.raises(SystemExit):
        parse(TrainConfig, [f"--{name}", "0.2"], dataset=DATASETS["motions"])
    assert f"--{name} has no meaning for motions, which has events" in capsys.readouterr().err
    recordings = dataclasses.replace(stripes)
    object.__setattr__(recordings, "has_pixels", False)
    with pytest.raises(UserError, match="no meaning for stripes, which has events"):
        Training(config(tmp_path, **{name: 0.2}), recordings)
    for value in ("-0.1", "1000", "nan"):
        with pytest.raises(SystemExit):
            parse(TrainConfig, [f"--{name}", value], dataset=stripes)


def test_debug_runs_few_batches(tmp_path, stripes):
    training, _ = run(tmp_path, stripes, epochs=1, debug=True, minibatch=10)
    assert len(training.data.train) == DEBUG_BATCHES
    assert not torch.is_anomaly_enabled()


@pytest.mark.slow
def test_a_compiled_network_trains(tmp_path, stripes):
    _, result = run(tmp_path, stripes, epochs=6, compile=True)
    assert result.accuracy > 0.9


def test_a_run_folder_is_not_used_twice(tmp_path, stripes):
    run(tmp_path, stripes, epochs=1, run_dir=str(tmp_path / "mine"))
    with pytest.raises(UserError, match="holds a run already"):
        Training(config(tmp_path, run_dir=str(tmp_path / "mine")), stripes)


def test_files_of_a_run_have_the_keys_that_their_readers_know(tmp_path, stripes):
    training, result = run(tmp_path, stripes, epochs=1, on_nonfinite="skip", plot_spike_rate=True)
    (row,) = rows(training.folder)
    assert row.keys() >= {
        "epoch",
        "lr",
        "train_loss",
        "train_accuracy",
        "train_images_per_s",
        "train_skipped_steps",
        "val_loss",
        "val_accuracy",
        "firing_rates",
    }
    assert list(json.loads((training.folder / "test.json").read_text())) == [
        "epoch",
        "val_accuracy",
        "loss",
        "accuracy",
    ]
    best, last = (checkpoint.read(training.folder / name) for name in ("best.pth", "last.pth"))
    assert set(best) == {"format", "model", "metrics", "config", "dataset", "checksum"}
    assert (
        list(best["metrics"]) == ["epoch", "loss", "accuracy", "highest_accuracy"] and last["best"] == best["metrics"]
    )
    of_run = {"config", "dataset", "epochs_done", "samples", "best", "format", "checksum"}
    assert set(last) == of_run | {"model", "ema", "optimizer", "scaler", "scheduler", "processes"}
    assert row["val_accuracy"] == result.val_accuracy


def test_validation_leaves_the_noise_of_training_alone_and_repeats_its_own(tmp_path, stripes):
    training = Training(config(tmp_path), stripes)
    before = torch.get_rng_state()
    scores = [training.score(training.data.val, purpose) for purpose in ("validation", "validation", "test")]
    assert torch.equal(torch.get_rng_state(), before)
    assert scores[0] == scores[1] != scores[2]
    other = Training(config(tmp_path, seed=1), stripes)
    other.net.load_state_dict(training.net.state_dict())
    assert other.score(training.data.val, "validation") != scores[0]


def test_a_damaged_result_is_an_error_that_says_what_to_do(tmp_path, stripes):
    training, _ = run(tmp_path, stripes, epochs=1)
    (training.folder / "test.json").write_text('{"accuracy": 1}')
    with pytest.raises(UserError, match=r"test\.json is not the result of a run; delete it"):
        Training(config(tmp_path, resume=str(training.folder)), stripes).run()
    (training.folder / "test.json").unlink()
    assert Training(config(tmp_path, resume=str(training.folder)), stripes).run().epoch == 1


def test_a_run_with_loss_tet_is_resumed_with_tet(tmp_path, stripes):
    training, _ = run(tmp_path, stripes, epochs=1, loss="tet")
    resumed, given = parse(TrainConfig, ["--resume", str(training.folder), "--tet"])
    Training(resumed, stripes, given)
    for flag in ("--no-tet", "--loss=rate"):
        resumed, given = parse(TrainConfig, ["--resume", str(training.folder), flag])
        with pytest.raises(UserError, match="a resumed run keeps"):
            Training(resumed, stripes, given)

"""tools/export.py: checkpoints to other runtimes."""

import itertools
import subprocess
import sys

import pytest
import torch

from dataset_utils import DATASETS
from models import load_pretrained, noiseless
from tests.conftest import first_are_fast
from tools import export
from tools.config.evaluate import EvaluationConfig
from tools.config.train import TrainConfig
from tools.errors import UserError
from tools.io import checkpoint
from tools.networks import build_network, load_snapshot


def written(folder, name="mnist5k", **settings):
    """A checkpoint of an untrained network, as training writes them."""
    settings = {"model": "toynet", "neuron": "NILIF", "timestep": 3, **settings}
    net = build_network(TrainConfig(**settings), DATASETS[name])
    torch.manual_seed(0)
    for module in net.modules():  # so that all layers fire
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            torch.nn.init.normal_(module.weight, std=3 * module.weight[0].numel() ** -0.5)
    content = dict(format=checkpoint.FORMAT, config=settings, dataset=name, model=net.state_dict())
    checkpoint.save(folder / "best.pth", content)
    return folder / "best.pth"


ALL = list(itertools.product(export.FORMATS, ("mnist5k", "nmnist")))
KINDS = [(".onnx", "mnist5k"), (".pt2", "nmnist"), (".nir", "mnist5k")]


@pytest.mark.parametrize("kind", first_are_fast(KINDS + [kind for kind in ALL if kind not in KINDS], len(KINDS)))
@pytest.mark.parametrize("mode", first_are_fast(["noiseless", "mean_field"]))
def test_images_and_recordings(kind, mode, tmp_path):
    ending, name = kind
    if ending == ".nir":
        pytest.importorskip("nir")
    out = tmp_path / f"{name}{ending}"
    assert export.export(written(tmp_path, name), out, mode) <= 1e-5
    assert out.stat().st_size > 1000


@pytest.mark.filterwarnings("error:these weights")  # they were saved with the settings of their neurons
@pytest.mark.parametrize(
    "name, settings",
    [
        ("mnist5k", dict(neuron="NIPLIF_atan", learnable_scale=True, placement="escape", width=0.5)),
        ("nmnist", dict(model="sresnet18", width=0.05, nobn=True, neuron="LIF", frame_size=16)),
    ],
)
def test_a_small_checkpoint_is_loaded_evaluated_and_has_nothing_of_the_machine(name, settings, tmp_path):
    snapshot = written(tmp_path, name, data_root="/home/someone", run_dir="/home/someone/run", threads=3, **settings)
    out = tmp_path / "small.pth"
    assert export.export(snapshot, out) <= 1e-5
    assert b"/home/someone" not in out.read_bytes() and out.stat().st_size < 0.7 * snapshot.stat().st_size
    dataset = DATASETS[name]
    net, trained = load_snapshot(EvaluationConfig(snapshot=str(out)), dataset)
    loaded = load_pretrained(out)
    assert trained.threads == 0 and loaded.about["dataset"] == name and loaded.about["classes"] == [*dataset.classes]
    x = torch.rand(loaded.about["timesteps"], 2, *loaded.about["in_shape"])
    with noiseless(net), noiseless(loaded), torch.no_grad():
        assert torch.equal(loaded(x), net(x))


def test_a_batch_of_another_size_and_the_noise(tmp_path):
    assert export.export(written(tmp_path, neuron="LIF"), tmp_path / "lif.pt2", "noisy") <= export.CLOSE
    snapshot = written(tmp_path)
    assert export.export(snapshot, tmp_path / "noisy.pt2", "noisy") is None
    run = torch.export.load(tmp_path / "noisy.pt2").module()
    images = torch.rand(7, *DATASETS["mnist5k"].in_shape)
    assert run(images).shape == (3, 7, 10) and not torch.equal(run(images), run(images))


@pytest.mark.parametrize("ending", first_are_fast([".pth", ".pt2", ".onnx"]))
def test_a_relu_network(ending, tmp_path):
    snapshot = written(tmp_path, neuron="ReLU")
    assert export.export(snapshot, tmp_path / f"relu{ending}", "noisy") <= 1e-5


def test_a_relu_network_is_not_for_neuromorphic_chips(tmp_path):
    pytest.importorskip("nir")
    with pytest.raises(UserError, match="NIR has no words for the layer 'stem_neuron', ReLU"):
        export.export(written(tmp_path, neuron="ReLU"), tmp_path / "relu.nir")


def test_a_file_that_differs_is_an_error(tmp_path, monkeypatch):
    right = export.FORMATS[".pt2"]

    def wrong(exported, out):
        run, expected = right(exported, out)
        return lambda pixels: run(pixels) + 0.02 * expected(pixels).abs().max().clamp(min=1) / 100, expected

    monkeypatch.setitem(export.FORMATS, ".pt2", wrong)
    with pytest.raises(UserError, match=r"differ by 0.0002"):
        export.export(written(tmp_path), tmp_path / "net.pt2")


def test_what_cannot_be_exported(tmp_path):
    with pytest.raises(UserError, match="must end in .onnx, .pt2, .nir, .pth, got 'net.h5'"):
        export.export(written(tmp_path), tmp_path / "net.h5")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "own.pth")
    with pytest.raises(UserError, match="does not carry its configuration"):
        export.export(tmp_path / "own.pth", tmp_path / "net.pt2")
    content = checkpoint.read(written(tmp_path))
    del content["checksum"]
    checkpoint.save(tmp_path / "best.pth", {**content, "dataset": "mine"})
    with pytest.raises(UserError, match="trained on 'mine'; there are"):
        export.export(tmp_path / "best.pth", tmp_path / "net.pt2")


def test_the_script_says_how_equal_the_networks_are(tmp_path, run_script):
    outcome = run_script("tools/export.py", written(tmp_path), tmp_path / "net.pt2")
    assert outcome.code == 0 and "net.pt2: noiseless, equal to the network up to" in outcome.messages


@pytest.mark.slow
def test_as_a_user_starts_it(tmp_path, repository):
    command = [sys.executable, str(repository / "tools" / "export.py"), str(written(tmp_path)), "net.pt2"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "net.pt2: noiseless, equal to the network up to" in done.stdout, done.stderr


@pytest.mark.parametrize("flag", ["--inference", "--mode"])
def test_the_mode_is_chosen_as_in_an_evaluation(tmp_path, run_script, flag):
    outcome = run_script("tools/export.py", written(tmp_path), tmp_path / "net.pt2", flag, "mean_field")
    assert outcome.code == 0 and "net.pt2: mean_field, equal" in outcome.messages


def test_the_folder_is_made_and_one_that_cannot_be_is_one_line(tmp_path, run_script):
    assert run_script("tools/export.py", written(tmp_path), tmp_path / "new" / "net.pt2").code == 0
    outcome = run_script("tools/export.py", written(tmp_path), tmp_path / "new" / "net.pt2" / "net.pt2")
    assert outcome.code == 1 and "error: " in outcome.messages and "Traceback" not in outcome.messages


def test_a_file_that_is_missing_is_one_line(tmp_path, run_script):
    outcome = run_script("tools/export.py", tmp_path / "absent.pth", tmp_path / "net.pt2")
    assert outcome.code == 1 and "absent.pth" in outcome.messages and "Traceback" not in outcome.messages

"""Published checkpoints load; what does not fit, or is not a checkpoint, is refused with a message."""

import json
import random
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from models import build_model, build_neuron
from models.layers import over_time
from tests.conftest import first_are_fast
from tools.errors import UserError
from tools.io import checkpoint
from tools.io.checkpoint import CheckpointError
from tools.published import PUBLISHED_KEYS, load_published
from tools.runtime import seeds

# Names and shapes in the published checkpoints: {"sresnet18-cifar10-bn": {"state_dict": {key: shape}, ...}, ...}
PUBLISHED = json.loads((Path(__file__).parents[2] / "fixtures" / "published_state_dicts.json").read_text())
TOYNET = PUBLISHED["toynet-mnist"]["state_dict"]


def toynet():
    return build_model("toynet", neuron=build_neuron("LIF"), in_shape=(1, 28, 28), num_classes=10)


def random_weights(keys, prefix="module."):
    torch.manual_seed(0)
    return {prefix + key: torch.rand(shape) + 0.1 if shape else torch.tensor(5) for key, shape in keys.items()}


@pytest.mark.parametrize("name", first_are_fast(PUBLISHED, 3))
@pytest.mark.parametrize("prefix", ["module.", pytest.param("", marks=pytest.mark.slow)])
def test_a_published_checkpoint_fills_every_weight(tmp_path, name, prefix):
    path = tmp_path / "theirs.pth"
    weights = random_weights(PUBLISHED[name]["state_dict"], prefix)
    torch.save({"net": weights, "acc": 93.5, "epoch": 299}, path)
    net = build_model(
        name.split("-")[0],
        neuron=build_neuron("NILIF"),
        in_shape=PUBLISHED[name]["input_shape_BTCHW"][-3:],
        num_classes=PUBLISHED[name]["output_shape_BTK"][-1],
        norm=None if name.endswith("nobn") else "bn",
    )
    load_published(net, name.split("-")[0], path)
    ours = net.state_dict()
    assert len(ours) == len(weights)
    # every tensor of the file is somewhere in the network, exactly once
    assert sorted(value.double().sum().item() for value in ours.values()) == sorted(
        value.double().sum().item() for value in weights.values()
    )
    assert not net.training


def test_the_weights_go_where_they_belong(tmp_path):
    """Spot checks by role: the published names say which layer it is."""
    path = tmp_path / "theirs.pth"
    weights = random_weights(PUBLISHED["sresnet18-cifar10-bn"]["state_dict"])
    torch.save({"net": weights, "acc": 1.0, "epoch": 1}, path)
    net = build_model("sresnet18", neuron=build_neuron("LIF"), in_shape=(3, 32, 32), num_classes=10)
    load_published(net, "sresnet18", path)
    x = torch.rand(1, 2, 3, 32, 32)
    stem = torch.nn.functional.conv2d(x[0], weights["module.conv1.layer.module.weight"], padding=1)
    stem = torch.nn.functional.batch_norm(
        stem, *(weights[f"module.conv1.bn.bn.module.{n}"] for n in ("running_mean", "running_var", "weight", "bias"))
    )
    assert torch.allclose(over_time(net.stem, x)[0], stem, rtol=1e-4)
    block = net.stages[2][0]
    assert torch.equal(block.conv2.conv.weight, weights["module.layer3.0.conv2.layer.module.weight"])
    assert torch.equal(
        block.downsample.norm.running_var, weights["module.layer3.0.downsample.bn.bn.module.running_var"]
    )
    assert torch.equal(net.classifier.bias, weights["module.fc1.layer.module.bias"])


def test_missing_unexpected_and_misshapen_keys_are_named(tmp_path):
    path = tmp_path / "theirs.pth"
    weights = random_weights(TOYNET)
    weights["module.fc2.layer.module.weight"] = torch.zeros(3)
    del weights["module.fc.layer.module.weight"]
    weights["module.layer.bn.weight"] = torch.zeros(64, 783)
    torch.save({"net": weights}, path)
    with pytest.raises(CheckpointError) as error:
        load_published(toynet(), "toynet", path)
    message = str(error.value)
    assert "missing keys: fc.layer.module.weight" in message
    assert "unexpected keys: fc2.layer.module.weight" in message
    assert "layer.bn.weight has shape [64, 783], wanted [64, 784]" in message
    assert str(path) in message


class Malicious:
    """A pickle that would run code when it is read."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('code of the file was run')",))


@pytest.mark.parametrize("content", [b"", b"no checkpoint at all", b"PK\x03\x04 broken zip"])
def test_a_file_that_is_not_a_checkpoint_is_refused(tmp_path, content):
    path = tmp_path / "broken.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"broken\.pth"):
        checkpoint.read(path)


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    path = tmp_path / "evil.pth"
    torch.save({"net": Malicious()}, path)
    with pytest.raises(CheckpointError, match="safely"):
        checkpoint.read(path)


def test_a_truncated_checkpoint_is_refused(tmp_path):
    path = tmp_path / "short.pth"
    checkpoint.save(path, {"model": {"w": torch.rand(1000)}})
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(CheckpointError):
        checkpoint.read(path)


def test_saving_leaves_no_partial_file_and_survives_a_failure(tmp_path, monkeypatch):
    def failing(content, file):
        file.write(b"PK")
        raise RuntimeError("write failed")

    path = tmp_path / "last.pth"
    checkpoint.save(path, {"a": 1})
    monkeypatch.setattr(torch, "save", failing)
    with pytest.raises(OSError, match="cannot be written, is the disk full.*write failed"):
        checkpoint.save(path, {"a": 2})
    assert checkpoint.read(path)["a"] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["last.pth"]


def test_an_absent_file_is_not_called_damaged(tmp_path):
    with pytest.raises(FileNotFoundError):
        checkpoint.read(tmp_path / "no.pth")


def test_random_states_come_back():
    def numbers():
        return torch.rand(3).tolist() + np.random.rand(3).tolist() + [random.random()]

    state = seeds.rng_state()
    first = numbers()
    assert numbers() != first
    seeds.set_rng_state(state)
    assert numbers() == first


def test_a_plain_state_dict_loads_too(tmp_path):
    path = tmp_path / "plain.pth"
    torch.save(random_weights(TOYNET, ""), path)
    assert torch.equal(
        load_published(toynet(), "toynet", path).classifier.weight, random_weights(TOYNET, "")["fc.layer.module.weight"]
    )


def test_a_network_that_the_published_code_does_not_have_is_named(tmp_path, monkeypatch):
    path = tmp_path / "theirs.pth"
    torch.save(random_weights(TOYNET), path)
    monkeypatch.delitem(PUBLISHED_KEYS, "toynet")
    with pytest.raises(UserError, match="no published checkpoints of toynet, only of sresnet18,"):
        load_published(toynet(), "toynet", path)


def own_network(**options):
    torch.manual_seed(0)
    neuron = build_neuron("NILIF", **{"sigma": 0.3, **options})
    net = build_model("sresnet18", neuron=neuron, in_shape=(3, 8, 8), num_classes=4, width=0.05)
    with torch.no_grad():
        for value in net.state_dict().values():
            value.copy_(torch.rand(value.shape))
    return net


def loaded(path, net=None):
    net = net or build_model("sresnet18", neuron=build_neuron("NILIF"), in_shape=(3, 8, 8), num_classes=4, width=0.05)
    return load_published(net, "sresnet18", path)


WRAPPERS = {
    "none": lambda net: net,
    "torch.compile": torch.compile,
    "data parallel": torch.nn.DataParallel,
    "compiled inside": lambda net: torch.nn.DataParallel(torch.compile(net)),
    "compiled outside": lambda net: torch.compile(torch.nn.DataParallel(net)),
    "averaged": torch.optim.swa_utils.AveragedModel,
}


@pytest.mark.parametrize("key", first_are_fast([None, "state_dict", "model", "net", "model_state_dict"], 2))
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_weights_of_ones_own_loop_load(tmp_path, wrapper, key, caplog):
    path, net = tmp_path / "own.pth", own_network()
    weights = WRAPPERS[wrapper](net).state_dict()
    torch.save(weights if key is None else {key: weights, "epoch": 3, "optimizer": {"lr": 0.1}}, path)
    ours = loaded(path).state_dict()
    assert all(torch.equal(value, ours[name]) for name, value in net.state_dict().items())
    assert [record.message for record in caplog.records] == [
        f"{path}: it has no normalize.mean and .std: images are normalised by those of the data set"
    ]


def test_weights_of_a_part_that_was_compiled_load(tmp_path):
    net, path = own_network(), tmp_path / "own.pth"
    before = {key: value.clone() for key, value in net.state_dict().items()}
    net.stages[1] = torch.compile(net.stages[1])
    torch.save(net.state_dict(), path)
    ours = loaded(path).state_dict()
    assert all(torch.equal(value, ours[name]) for name, value in before.items())


def test_the_same_weight_with_and_without_a_prefix_is_refused(tmp_path):
    weights = own_network().state_dict()
    torch.save({**weights, **{f"module.{key}": value for key, value in weights.items()}}, tmp_path / "two.pth")
    with pytest.raises(CheckpointError, match="two of its weights have the same name"):
        loaded(tmp_path / "two.pth")


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ({"tau": 4.0}, "neurons with decay=0.25 were loaded into neurons with decay=0.5"),
        ({"threshold": 0.8}, "neurons with threshold=0.8 were loaded into neurons with threshold=1.0"),
        (
            {"sigma": 0.5},
            r"neurons with noise=Gaussian\(0.5, 0\) were loaded into neurons with noise=Gaussian\(0.3, 0\)",
        ),
        ({"reset": "subtract", "placement": "escape"}, "reset=subtract, placement=escape were .* placement=both"),
        ({"decay_input": True}, "decay_input=True were .* decay_input=False"),
    ],
)
@pytest.mark.parametrize("wrapper", ["none", "compiled inside"])
def test_other_settings_than_those_saved_are_said_once(tmp_path, saved, message, wrapper, caplog):
    torch.save({"model": WRAPPERS[wrapper](own_network(**saved)).state_dict()}, tmp_path / "own.pth")
    loaded(tmp_path / "own.pth")
    said = [record.message for record in caplog.records if "normalize" not in record.message]
    assert len(said) == 1
    assert re.search(message, said[0])


def test_weights_that_do_not_say_their_settings_load_with_a_warning(tmp_path, caplog):
    torch.save(dict(own_network().state_dict()), tmp_path / "old.pth")
    loaded(tmp_path / "old.pth")
    said = [record.message for record in caplog.records if "normalize" not in record.message]
    assert len(said) == 1 and "carry no neuron settings" in said[0]
    assert "decay=0.5" in said[0] and "noise=Gaussian(0.3, 0)" in said[0]


@pytest.mark.parametrize("metadata", [3, {"": 3}, {"stem_neuron": {"settings": 3}}, {"": {"version": "two"}}])
def test_forged_metadata_is_an_error_of_the_file_or_without_effect(tmp_path, metadata):
    weights = own_network().state_dict()
    weights._metadata = metadata
    torch.save(weights, tmp_path / "forged.pth")
    ours = loaded(tmp_path / "forged.pth").state_dict()
    assert all(torch.equal(value, ours[name]) for name, value in weights.items())


def test_metadata_of_layers_that_cannot_be_read_are_an_error_of_the_file(tmp_path):
    weights = own_network().state_dict()
    weights._metadata["stem.norm"]["version"] = "two"
    torch.save(weights, tmp_path / "forged.pth")
    with pytest.raises(CheckpointError, match="does not fit"):
        loaded(tmp_path / "forged.pth")


@pytest.mark.parametrize(
    "value", [np.float64(1), Path("a"), {1}, {(1, 2): 3}, torch.float32, torch.Size([2]), np.ones(2)]
)
def test_what_cannot_be_read_again_is_not_saved(tmp_path, value):
    with pytest.raises(TypeError, match=r"the checkpoint\['run'\]\['notes'\]\[1\] .*cannot be saved"):
        checkpoint.save(tmp_path / "a.pth", {"run": {"notes": [0, value]}})
    assert not list(tmp_path.iterdir())


def test_dictionaries_of_other_classes_are_saved_as_plain_ones(tmp_path):
    weights = toynet().state_dict()
    content = {
        "config": {},
        "dataset": "a",
        "milestones": Counter([3, 3]),
        "model": weights,
        "tuple": (1, [None, True]),
    }
    checkpoint.save(tmp_path / "a.pth", content)
    read = checkpoint.read(tmp_path / "a.pth")
    assert type(read["milestones"]) is dict and read["milestones"] == {3: 2} and read["tuple"] == (1, [None, True])
    assert read["model"].keys() == weights.keys() and read["model"]._metadata == weights._metadata

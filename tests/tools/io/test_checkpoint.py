"""Published checkpoints load; what does not fit, or is not a checkpoint, is refused with a message."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from models import build_model, build_neuron
from models.layers import over_time
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


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("prefix", ["module.", ""])
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


def test_saving_leaves_no_partial_file_and_survives_a_failure(tmp_path):
    path = tmp_path / "last.pth"
    checkpoint.save(path, {"a": 1})
    with pytest.raises(Exception, match="pickle"):
        checkpoint.save(path, {"a": lambda: 0})
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

"""Published checkpoints load; what does not fit, or is no checkpoint, is refused with a message."""

import random

import numpy as np
import pytest
import torch

from models import build_model, build_neuron
from models.layers import over_time
from tools import checkpoint
from tools.checkpoint import CheckpointError, load_published


def block(prefix, shape, norm):
    """Keys of one conv-norm of the published residual networks."""
    keys = {f"{prefix}.layer.module.weight": shape}
    if norm:
        for name in ("weight", "bias", "running_mean", "running_var"):
            keys[f"{prefix}.bn.bn.module.{name}"] = shape[:1]
        keys[f"{prefix}.bn.bn.module.num_batches_tracked"] = ()
    return keys


def resnet_keys(norm, stem_size=3):
    """sresnet18 of the published code: names and shapes."""
    keys = block("conv1", (64, 3, stem_size, stem_size), norm)
    channels = 64
    for stage, out in enumerate((64, 128, 256, 512), start=1):
        for index in range(2):
            prefix = f"layer{stage}.{index}"
            keys |= block(f"{prefix}.conv1", (out, channels, 3, 3), norm)
            keys |= block(f"{prefix}.conv2", (out, out, 3, 3), norm)
            if channels != out:
                keys |= block(f"{prefix}.downsample", (out, channels, 1, 1), norm)
            channels = out
    return keys | {"fc1.layer.module.weight": (10, 512), "fc1.layer.module.bias": (10,)}


def vgg_keys(indices):
    keys, channels = {}, 2
    for index, out in zip(indices, (64, 128, 256, 256, 512, 512, 512, 512)):
        keys[f"features.{index}.fwd.module.0.weight"] = (out, channels, 3, 3)
        keys[f"features.{index}.fwd.module.0.bias"] = (out,)
        for name in ("weight", "bias", "running_mean", "running_var"):
            keys[f"features.{index}.fwd.module.1.{name}"] = (out,)
        keys[f"features.{index}.fwd.module.1.num_batches_tracked"] = ()
        channels = out
    return keys | {"classifier.module.weight": (10, 4608), "classifier.module.bias": (10,)}


def cifarnet_keys():
    keys, channels = {}, 3
    for index, out in zip((0, 1, 3, 5, 6), (128, 256, 512, 1024, 512)):
        keys[f"features.{index}.fwd.module.weight"] = (out, channels, 3, 3)
        keys[f"features.{index}.fwd.module.bias"] = (out,)
        channels = out
    for index, (out, into) in enumerate(((1024, 32768), (512, 1024), (10, 512))):
        keys[f"classifier.{index}.module.weight"] = (out, into)
        keys[f"classifier.{index}.module.bias"] = (out,)
    return keys


TOYNET = {"layer.bn.weight": (64, 784), "fc.layer.module.weight": (10, 64)}
PUBLISHED = [
    ("sresnet18", "bn", (3, 32, 32), resnet_keys(True)),
    ("sresnet18", None, (3, 32, 32), resnet_keys(False)),
    ("vgg", "bn", (2, 48, 48), vgg_keys((0, 1, 3, 4, 6, 7, 9, 10))),
    ("vggwoap", "bn", (2, 48, 48), vgg_keys(range(8))),
    ("cifarnet", None, (3, 32, 32), cifarnet_keys()),
    ("toynet", None, (1, 28, 28), TOYNET),
]


def random_weights(keys, prefix="module."):
    torch.manual_seed(0)
    return {prefix + key: torch.rand(shape) + 0.1 if shape != () else torch.tensor(5) for key, shape in keys.items()}


@pytest.mark.parametrize(("model", "norm", "in_shape", "keys"), PUBLISHED, ids=lambda value: str(value)[:12])
@pytest.mark.parametrize("prefix", ["module.", ""])
def test_a_published_checkpoint_fills_every_weight(tmp_path, model, norm, in_shape, keys, prefix):
    path = tmp_path / "theirs.pth"
    weights = random_weights(keys, prefix)
    torch.save({"net": weights, "acc": 93.5, "epoch": 299}, path)
    net = load_published(
        path,
        model=model,
        neuron="NILIF",
        sigma=0.3,
        tau=2.0,
        threshold=1.0,
        in_shape=in_shape,
        num_classes=10,
        norm=norm,
    )
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
    weights = random_weights(resnet_keys(True))
    torch.save({"net": weights, "acc": 1.0, "epoch": 1}, path)
    net = load_published(
        path, model="sresnet18", neuron="LIF", sigma=0.3, tau=2.0, threshold=1.0, in_shape=(3, 32, 32), num_classes=10
    )
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
        load_published(path, model="toynet", neuron="NILIF", in_shape=(1, 28, 28), num_classes=10)
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
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, content):
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

    state = checkpoint.rng_state()
    first = numbers()
    assert numbers() != first
    checkpoint.set_rng_state(state)
    assert numbers() == first


def test_a_plain_state_dict_loads_too(tmp_path):
    path = tmp_path / "plain.pth"
    torch.save(random_weights(TOYNET, ""), path)
    net = load_published(path, model="toynet", neuron=build_neuron("LIF"), in_shape=(1, 28, 28), num_classes=10)
    reference = build_model("toynet", neuron=build_neuron("LIF"), in_shape=(1, 28, 28), num_classes=10)
    assert net.state_dict().keys() == reference.state_dict().keys()

"""Checkpoints of the published NSNN code."""

import re

from models import build_model, build_neuron
from tools.io.checkpoint import CheckpointError, load_weights, read

# From our key names to those of the published networks; of a network's rules (pattern, replacement), all are tried.
_RESNET = (
    (r"^stem\.", "conv1."),
    (r"^stages\.(\d+)\.", lambda match: f"layer{int(match[1]) + 1}."),
    (r"\.conv\.(?=\w+$)", ".layer.module."),
    (r"\.norm\.", ".bn.bn.module."),
)


_VGG = (
    (r"^stem\.", "features.0.fwd."),
    (r"^features\.(\d+)\.conv\.", lambda match: f"features.{int(match[1]) + 1}.fwd."),
)


_VGG_NORM = (
    *_VGG,
    (r"\.fwd\.conv\.", ".fwd.module.0."),
    (r"\.fwd\.norm\.", ".fwd.module.1."),
    (r"^classifier\.0\.", "classifier.module."),
)


PUBLISHED_KEYS = {
    "sresnet18": (*_RESNET, (r"^classifier\.", "fc1.layer.module.")),
    "sresnet34": (*_RESNET, (r"^classifier\.", "fc1.layer.module.")),
    "sresnet19": (*_RESNET, (r"^hidden\.", "fc1.layer.module."), (r"^classifier\.", "fc2.layer.module.")),
    "vgg": _VGG_NORM,
    "vggwoap": _VGG_NORM,
    "cifarnet": (*_VGG, (r"\.fwd\.conv\.", ".fwd.module."), (r"^classifier\.(\d+)\.", r"classifier.\1.module.")),
    "toynet": ((r"^stem\.1\.", "layer.bn."), (r"^classifier\.", "fc.layer.module.")),
}


def load_published(
    path, *, model, neuron, sigma=0.3, tau=2.0, threshold=1.0, in_shape, num_classes, norm="bn", width=1.0
):
    """Build a network from a checkpoint of the published NSNN code.

    Args:
        path: a torch.save'd dictionary {"net": state_dict, "acc": float, "epoch": int}, or the
            state_dict itself; its keys may carry the prefix `module.` of DataParallel.
        model: name of the network.
        neuron: name of a neuron, or a zero-argument callable that makes one.
        sigma, tau, threshold: of a neuron given by name; such files do not say them. The decay is
            1 / tau (SpikingJelly's tau means decay 1 - 1 / tau).
        in_shape: (C, H, W).
        num_classes: K.
        norm: "bn" or None.
        width: factor on all channel counts.

    Returns:
        The network, on the CPU, in evaluation mode. It takes inputs as the published one did:
        normalised, since its `normalize` layer is the identity.

    Raises:
        CheckpointError: naming missing and unexpected keys, and shapes that do not fit.
    """
    content = read(path)
    if not callable(neuron):
        neuron = build_neuron(neuron, sigma=sigma, tau=tau, threshold=threshold)
    net = build_model(model, neuron=neuron, in_shape=in_shape, num_classes=num_classes, norm=norm, width=width)
    theirs = content.get("net", content)
    if not isinstance(theirs, dict):
        raise CheckpointError(f"{path} has no weights: its net is a {type(theirs).__name__}")
    theirs = {str(key).removeprefix("module."): value for key, value in theirs.items()}
    load_weights(net, theirs, path, rename=lambda key: _published_key(key, model))
    return net.eval()


def _published_key(key, model):
    for pattern, replacement in PUBLISHED_KEYS[model]:
        key = re.sub(pattern, replacement, key)
    return key

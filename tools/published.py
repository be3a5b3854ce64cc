"""Checkpoints of the published NSNN code."""

import re
from functools import partial
from pathlib import Path

from torch import nn

from tools.errors import UserError
from tools.io.checkpoint import CheckpointError, load_weights, read

# From our key names to those of the published networks: (pattern, replacement), applied one after another.
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


def load_published(net: nn.Module, model: str, path: str | Path) -> nn.Module:
    """Load the weights of a checkpoint of the published NSNN code into `net`; return it in evaluation mode.

    Args:
        net: made by `models.build_model`, for normalised inputs like the published ones. Sigma, tau and threshold of
            its neurons are not in the file.
        model: name of the network.
        path: a torch.save'd dictionary {"net": state_dict, "acc": float, "epoch": int}, or the state_dict itself; its
            keys may carry the prefix `module.` of DataParallel.

    Raises:
        CheckpointError: for missing and unexpected keys, and shapes that do not fit.
        UserError: for a network that the published code does not have.
    """
    content = read(path)
    theirs = content.get("net", content)
    if not isinstance(theirs, dict):
        raise CheckpointError(f"{path} has no weights: its net is a {type(theirs).__name__}")
    theirs = {str(key).removeprefix("module."): value for key, value in theirs.items()}
    load_weights(net, theirs, path, rename=partial(published_key, model))
    return net.eval()


def published_key(model: str, key: str) -> str:
    """The name that the published code gives a weight of ours; UserError if it does not have the network `model`."""
    if model not in PUBLISHED_KEYS:
        raise UserError(f"there are no published checkpoints of {model}, only of {', '.join(PUBLISHED_KEYS)}")
    for pattern, replacement in PUBLISHED_KEYS[model]:
        key = re.sub(pattern, replacement, key)
    return key

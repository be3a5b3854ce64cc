"""Checkpoints without a configuration: those of the published NSNN code, and of loops of one's own."""

import logging
import re
from functools import partial
from pathlib import Path

from torch import nn

from tools.errors import UserError
from tools.io.checkpoint import bare_weights, load_weights, read

logger = logging.getLogger(__name__)

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
    """Load weights without a configuration into `net`, and return it in evaluation mode.

    They are in a checkpoint of the published NSNN code, or of a loop of one's own. What the file says about sigma, tau
    and threshold, or that it says nothing, is logged.

    Args:
        net: made by `models.build_model`.
        model: name of the network.
        path: a torch.save'd state_dict, or a dictionary that has it as its "net", "model", "state_dict" or
            "model_state_dict"; its keys may carry the prefixes `module.` and `_orig_mod.`.

    Raises:
        CheckpointError: for missing and unexpected keys, and shapes that do not fit.
        UserError: for keys that are not ours, of a network that the published code does not have.
    """
    weights = bare_weights(read(path), path)
    is_ours = any(key in weights for key in net.state_dict())
    said = load_weights(net, weights, path, rename=str if is_ours else partial(published_key, model))
    if is_ours and not any(key.startswith("normalize.") for key in weights):
        said.append("it has no normalize.mean and .std: images are normalised by those of the data set")
    for text in said:
        logger.warning("%s: %s", path, text)
    return net.eval()


def published_key(model: str, key: str) -> str:
    """The name that the published code gives a weight of ours; UserError if it does not have the network `model`."""
    if model not in PUBLISHED_KEYS:
        raise UserError(f"there are no published checkpoints of {model}, only of {', '.join(PUBLISHED_KEYS)}")
    for pattern, replacement in PUBLISHED_KEYS[model]:
        key = re.sub(pattern, replacement, key)
    return key

"""Checkpoints without our configuration: from the published NSNN code, or from a user's own training loop."""

import logging
import re
from functools import partial
from pathlib import Path

from torch import nn

from tools.errors import UserError
from tools.io.checkpoint import CheckpointError, listed, load_weights, misfits, read
from tools.io.weights import WRAPPERS, entries, places

logger = logging.getLogger(__name__)

NORMALISATION = "normalize."  # prefix of its buffers, which may be missing
_MOST_PLACES = 16  # more are not tried: the file may come from a stranger
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


def load_published(net: nn.Module, model: str, path: str | Path, *others: nn.Module) -> nn.Module:
    """Load weights without a configuration into `net` or one of `others`, and return it in evaluation mode.

    The file is from the published NSNN code or from a user's own loop. Whether its neuron settings differ, or are
    missing, is logged.

    Args:
        net: made by `models.build_model`; if it has a `normalize` and the file has none, it keeps its own.
        model: name of the network.
        path: a torch.save'd state_dict, or a dictionary that has it anywhere. Its keys may have the prefix of a PyTorch
            wrapper or of an enclosing module. Of several networks that fit, those with the settings of `net` go before
            others; of these, the one called "net", "model", "state_dict" or "model_state_dict" (in this order) is
            taken, else the first; this is logged.
        others: the same network with parameters that the weights may have instead, such as learnt scales.

    Raises:
        CheckpointError: for missing and unexpected keys, and shapes that do not fit.
    """
    found = []
    for one in (net, *others):
        found += [(one, place) for place in _places(one, model, path)]
    for one, place in found:
        if not _has_normalisation(place):
            place.weights |= {key: value for key, value in one.state_dict().items() if key.startswith(NORMALISATION)}
    fitting = [(one, place) for one, place in found if not misfits(one, place.weights, place.rename)]
    fitting.sort(key=lambda pair: pair[1].rank)

    def load(net, place):
        return load_weights(net, place.weights, f"{path} ({place})", place.rename)

    net, chosen = (fitting or found)[0]
    for one, place in fitting:
        if not load(one, place):  # nothing to warn of: it was saved with the settings of this network
            net, chosen = one, place
            break
    said = load(net, chosen)
    if len(fitting) > 1:
        said.append(f"{', '.join(str(place) for _, place in fitting)} all fit this network; {chosen} is taken")
    if others := chosen.others():
        said.append(f"not part of this network, and ignored: {listed(others)}")
    if chosen.rename is str and not _has_normalisation(chosen):
        said.append("it has no normalize.mean and .std: images are normalised by those of the data set")
    for text in said:
        logger.warning("%s: %s", path, text)
    return net.eval()


def _places(net, model, path):
    """The places with most of the weights, in order of preference; CheckpointError if there are none."""
    content = read(path)
    keys = [key for key in net.state_dict() if not key.startswith(NORMALISATION)]
    wanted = listed(keys)
    try:
        found = places(content, keys, wrappers=(*WRAPPERS, "module"))  # DDP's, and no name of a layer of ours
        if model in PUBLISHED_KEYS:  # there, "module" is part of layer names
            found += places(content, keys, partial(published_key, model))
            wanted += f" or, as in the published code, {listed([published_key(model, key) for key in keys])}"
        else:
            wanted += f"; there are no published checkpoints of {model}, only of {', '.join(PUBLISHED_KEYS)}"
    except UserError as error:
        raise CheckpointError(f"{path} cannot be read as weights: {error}") from error
    if not found:
        has = [key for _, tensors in entries(content) for key in tensors]
        came = f"its tensors are {listed(has)}" if has else f"there is no dictionary of tensors in {listed([*content])}"
        raise CheckpointError(f"{path} has no weights of {model}: {came}; expected {wanted}")
    most = max(place.count for place in found)
    return sorted((place for place in found if place.count == most), key=lambda place: place.rank)[:_MOST_PLACES]


def _has_normalisation(place):
    return any(f"{place.prefix}{NORMALISATION}{name}" in place.tensors for name in ("mean", "std"))


def published_key(model: str, key: str) -> str:
    """The name that the published code gives a weight of ours; UserError if it does not have the network `model`."""
    if model not in PUBLISHED_KEYS:
        raise UserError(f"there are no published checkpoints of {model}, only of {', '.join(PUBLISHED_KEYS)}")
    for pattern, replacement in PUBLISHED_KEYS[model]:
        key = re.sub(pattern, replacement, key)
    return key

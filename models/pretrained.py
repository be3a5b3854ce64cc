"""Trained networks: files of small size that say how their network is built."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .layers import Normalize, SpikingNetwork
from .parameters import ArgumentError
from .registry import build_model, build_neuron

FOLDER = Path(__file__).resolve().parent.parent / "pretrained"  # of the repository; the installed package has none


def load_pretrained(source: str | Path) -> SpikingNetwork:
    """A trained network in evaluation mode, for pixels or frames as its data set gives them.

    `net.about` says what it is: "dataset", "classes" (names, in the order of the logits), "timesteps" (T of its
    training), "in_shape" (C, H, W), and the arguments that it was built with.

    Args:
        source: a name in the folder `pretrained` of the repository, such as "mnist5k-nsnn"; the path of a file that
            `tools/export.py` wrote; or its address, https://..., from which it is fetched once, into PyTorch's cache.

    Raises:
        ArgumentError: for an unknown name, or a file that is not a network of this kind.
    """
    if str(source).startswith(("https://", "http://")):
        content = torch.hub.load_state_dict_from_url(str(source), map_location="cpu", weights_only=True)
    else:
        content = torch.load(pretrained_path(source), map_location="cpu", weights_only=True)
    if not isinstance(content, dict) or not isinstance(content.get("network"), dict):
        raise ArgumentError(f"{source} does not say how its network is built: write it with tools/export.py")
    about, weights = content["network"], content["model"]
    try:
        with torch.device("meta"):  # shapes alone: a wrong file must not ask for all memory
            wanted = {key: value.shape for key, value in _built(about).state_dict().items()}
        if wanted != {key: value.shape for key, value in weights.items()}:
            raise ArgumentError("its weights are not those of its network")
        net = _built(about)
        net.load_state_dict(weights)
    except (ArgumentError, AttributeError, KeyError, TypeError, RuntimeError) as error:
        raise ArgumentError(f"{source} cannot be loaded: {error}") from error
    net.about = about
    return net.train(False)


def pretrained_path(source: str | Path) -> Path:
    """The file of a name in the folder `pretrained`, or the path itself; ArgumentError if there is no such file."""
    for path in (FOLDER / f"{source}.pth", Path(source)):
        if path.is_file():
            return path
    names = ", ".join(sorted(path.stem for path in FOLDER.glob("*.pth"))) or f"none: there is no folder {FOLDER}"
    raise ArgumentError(f"{source} is neither a file nor a pretrained network; there are {names}")


def _built(about: Mapping[str, Any]) -> SpikingNetwork:
    neuron = build_neuron(about["neuron"], **about["neuron_settings"])
    in_shape = tuple(about["in_shape"])
    options = {name: about[name] for name in ("num_classes", "norm", "width")}
    net = build_model(about["model"], neuron=neuron, in_shape=in_shape, **options)
    net.normalize = Normalize([0.0] * in_shape[0], [1.0] * in_shape[0])  # its values are among the weights
    return net

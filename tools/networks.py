"""The network of a configuration, or of a checkpoint with its configuration."""

import dataclasses

import torch

from models import build_model, build_neuron, noise_generator
from models.layers import Normalize
from tools.config.parsing import checked
from tools.config.train import TrainConfig
from tools.runtime.device import chosen_device

from . import published
from .io import checkpoint

MOST_UNSAID = 10**8  # numbers of a network that may be built though its checkpoint has fewer, to say which do not fit


NETWORK_SETTINGS = (  # what a testing script may set: for a published checkpoint, or over a checkpoint of ours
    *("model", "width", "nobn", "neuron", "timestep", "threshold", "tau", "sigma", "alpha"),
    *("placement", "reset", "decay_input", "amp"),
    *("frames_by", "frame_values", "frame_cells", "frame_size", "split"),
)


def seeded_noise(device, seed):
    """Context manager: noise comes from a generator of its own on the device, and others go on undisturbed."""
    return noise_generator(torch.Generator(device).manual_seed(seed))


def memory_format(config):
    """Memory format of the network of a configuration."""
    # On the CPU, PyTorch's channels-last convolutions in bfloat16 give gradients of weights that are read from memory
    # nobody wrote, where the kernel is larger than the image.
    is_unsafe = config.amp == "bf16" and chosen_device(config).type == "cpu"
    return torch.channels_last if config.channels_last and not is_unsafe else torch.contiguous_format


def neuron_factory(config):
    """The zero-argument callable that makes the neurons of a configuration."""
    return build_neuron(
        config.neuron,
        sigma=config.sigma,
        tau=config.tau,
        threshold=config.threshold,
        alpha=config.alpha,
        placement=config.placement,
        reset=config.reset,
        detach_reset=config.detach_reset,
        decay_input=config.decay_input,
        learnable_scale=config.learnable_scale,
    )


def build_network(config, dataset):
    """The network of a configuration, for raw pixels in [0, 1] of a data set."""
    net = _bare_network(config, dataset)
    net.normalize = Normalize(dataset.mean, dataset.std)
    return net


def _bare_network(config, dataset):
    return build_model(
        config.model,
        neuron=neuron_factory(config),
        in_shape=dataset.input_shape(config),
        num_classes=dataset.num_classes,
        norm=None if config.nobn else "bn",
        width=config.width,
    )


def load_snapshot(evaluation_config, dataset):
    """The network of a checkpoint, ours or a published one, ready for raw pixels in [0, 1].

    Args:
        evaluation_config: `EvaluationConfig`; what it says of the network overrides a checkpoint of ours.
        dataset: has name, num_classes, mean, std, and input_shape() of `dataset_utils`.

    Returns:
        The network in evaluation mode, and its `TrainConfig`.

    Raises:
        CheckpointError: if the file is none, or does not fit; it says what is missing.
        ValueError: if a setting cannot be overridden because the network has learnt it.
    """
    path = evaluation_config.snapshot
    content = checkpoint.read(path)
    overrides = {name: value for name in NETWORK_SETTINGS if (value := getattr(evaluation_config, name)) is not None}
    if "config" not in content:
        return _load_published(path, overrides, dataset)
    if content["dataset"] != dataset.name:
        raise checkpoint.CheckpointError(f"{path} was trained on {content['dataset']}, this is {dataset.name}")
    config = dataclasses.replace(stored_config(content, path), **overrides)
    if "tau" in overrides and config.neuron == "PLIF":
        raise ValueError("--tau would have no effect: PLIF has learnt its decay")
    if "sigma" in overrides and config.learnable_scale:
        raise ValueError("--sigma would have no effect: this network has learnt the scale of its noise")
    averaged = content.get("ema")
    weights = content.get("model") if averaged is None else _without_prefix(averaged)
    check_size(config, dataset, weights, path)
    net = build_network(config, dataset)
    checkpoint.load_weights(net, weights, path)
    return net.eval(), config


def check_size(config, dataset, weights, path):
    """See that a checkpoint has the weights of the network that it describes, before memory is taken for that.

    Args:
        config: `TrainConfig` in the checkpoint.
        dataset: as for `build_network`.
        weights: {key: tensor} in it.
        path: for the message.

    Raises:
        CheckpointError: if it has not.
    """
    values = weights.values() if isinstance(weights, dict) else ()
    has = sum(value.numel() for value in values if isinstance(value, torch.Tensor))
    with torch.device("meta"):  # shapes alone
        wanted = sum(value.numel() for value in _bare_network(config, dataset).state_dict().values())
    if wanted > 2 * has + MOST_UNSAID:  # whoever changes --model or --width by mistake is told which weights do not fit
        raise checkpoint.CheckpointError(f"{path} describes a network of {wanted} numbers, and has {has}")


def stored_config(content, path):
    """The `TrainConfig` in a checkpoint of ours; CheckpointError if this version does not know its settings."""
    known = {field.name for field in dataclasses.fields(TrainConfig)}
    if unknown := content["config"].keys() - known:
        raise checkpoint.CheckpointError(
            f"{path} has settings this version does not know: {', '.join(sorted(map(str, unknown)))}"
        )
    try:
        return checked(TrainConfig, content["config"], path)
    except ValueError as error:
        raise checkpoint.CheckpointError(str(error)) from error


def _load_published(path, overrides, dataset):
    if not {"model", "neuron"} <= overrides.keys():
        raise checkpoint.CheckpointError(f"{path} does not carry its configuration: give --model and --neuron")
    config = TrainConfig(**overrides, seed=None)  # nobody knows which it was
    net = published.load_published(
        path,
        model=config.model,
        neuron=neuron_factory(config),
        in_shape=dataset.input_shape(config),
        num_classes=dataset.num_classes,
        norm=None if config.nobn else "bn",
        width=config.width,
    )
    net.normalize = Normalize(dataset.mean, dataset.std)
    return net, config


def _without_prefix(averaged):
    """The weights in the state of an `AveragedModel`; None if it is none."""
    if not isinstance(averaged, dict):
        return None
    names = {key: str(key) for key in averaged}
    return {name.removeprefix("module."): averaged[key] for key, name in names.items() if name.startswith("module.")}

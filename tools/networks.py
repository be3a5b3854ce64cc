"""Networks made from a configuration or loaded from a checkpoint."""

import dataclasses
from pathlib import Path

import torch
from torch import nn

from models import ArgumentError, build_model, build_neuron
from models.layers import Normalize
from models.registry import ACTIVATIONS, NOISY_NEURONS
from tools.config.evaluate import NETWORK_SETTINGS, EvaluationConfig
from tools.config.fields import settings
from tools.config.parsing import checked
from tools.config.train import NEURON_GROUP, Dataset, OwnDataset, TrainConfig
from tools.errors import UserError
from tools.io import checkpoint
from tools.io.weights import entries
from tools.published import load_published
from tools.runtime.device import chosen_device

# The arguments of `build_neuron` besides the neuron's name.
NEURON_SETTINGS = [name for name, setting in settings(TrainConfig).items() if setting.group == NEURON_GROUP]
NEURON_SETTINGS.remove("neuron")
MAX_EXTRA_PARAMETERS = 10**8  # see `check_size`


def memory_format(config: TrainConfig, dataset: Dataset) -> torch.memory_format:
    """The memory format of a configuration's network."""
    # On the CPU, PyTorch's channels-last convolutions in bfloat16 compute weight gradients from uninitialised memory
    # where the stride is larger than the image.
    in_danger = config.amp == "bf16" and chosen_device(config.device).type == "cpu"
    if not config.channels_last or (in_danger and _strides_beyond_images(config, dataset)):
        return torch.contiguous_format
    return torch.channels_last


def _strides_beyond_images(config: TrainConfig, dataset: Dataset) -> bool:
    """Whether any convolution of the network has a stride larger than a side of its input."""
    found = []

    def look(layer: nn.Conv2d, inputs: tuple[torch.Tensor]) -> None:
        found.extend(stride > side for stride, side in zip(layer.stride, inputs[0].shape[-2:]))

    with torch.device("meta"):  # shapes alone: nothing is computed, and no random number drawn
        net = _bare_network(config, dataset).eval()
        for layer in net.modules():
            if isinstance(layer, nn.Conv2d):
                layer.register_forward_pre_hook(look)
        net(torch.empty(1, 1, *dataset.input_shape(config)))
    return any(found)


def build_network(config: TrainConfig, dataset: Dataset) -> nn.Module:
    """The network of a configuration, for raw pixels in [0, 1]; UserError for settings that do not go together."""
    net = _bare_network(config, dataset)
    net.normalize = Normalize(dataset.mean, dataset.std)
    return net


def _bare_network(config, dataset):
    options = dict(
        in_shape=dataset.input_shape(config),
        num_classes=dataset.num_classes,
        width=config.width,
        memory=config.memory,
    )
    try:
        neuron = build_neuron(config.neuron, **{name: getattr(config, name) for name in NEURON_SETTINGS})
        return build_model(config.model, neuron=neuron, norm=None if config.nobn else "bn", **options)
    except ArgumentError as error:
        raise UserError(str(error)) from error


def load_snapshot(config: EvaluationConfig, dataset: Dataset) -> tuple[nn.Module, TrainConfig]:
    """Load a checkpoint, ours or any other: the network in evaluation mode, and its training configuration.

    The network takes raw pixels in [0, 1]. The network settings of `config` override those in a checkpoint of ours, and
    describe the network of any other (see `load_published`).

    Args:
        config: `config.snapshot` is the path of the checkpoint.
        dataset: that of the script, from `dataset_of`; a checkpoint of ours must have been trained on it.

    Raises:
        CheckpointError: if the file cannot be loaded or does not fit.
        UserError: if a setting cannot be overridden because the network has learnt it, or is of another kind: spiking
            neurons instead of ReLU, or the reverse.
    """
    path = config.snapshot
    content = checkpoint.read(path)
    overrides = {name: getattr(config, name) for name in NETWORK_SETTINGS if getattr(config, name) is not None}
    if not checkpoint.is_ours(content):
        if not {"model", "neuron"} <= overrides.keys():
            raise checkpoint.CheckpointError(f"{path} does not carry its configuration: give --model and --neuron")
        trained = TrainConfig(**overrides, seed=None)  # it is not known
        configs = [trained]
        if trained.neuron in NOISY_NEURONS and _has_learnt_scales(content):
            configs.insert(0, dataclasses.replace(trained, learnable_scale=True))
        nets = [build_network(one, dataset) for one in configs]
        net = load_published(nets[0], trained.model, path, *nets[1:])
        trained = configs[nets.index(net)]
        _check_overrides(overrides, net)
        return net, trained
    if content["dataset"] != dataset.name:
        raise checkpoint.CheckpointError(f"{path} was trained on {content['dataset']}, this is {dataset.name}")
    stored = stored_config(content, path)
    trained = dataclasses.replace(stored, **overrides)
    if (trained.neuron in ACTIVATIONS) != (stored.neuron in ACTIVATIONS):  # the weights would fit, and mean nothing
        raise UserError(f"--neuron {trained.neuron}: {path} was trained with {stored.neuron}")
    averaged = content.get("ema")
    weights = content.get("model") if averaged is None else _without_prefix(averaged)
    check_size(trained, dataset, weights, path)
    net = build_network(trained, dataset)
    _check_overrides(overrides, net)
    checkpoint.load_weights(net, weights, path)
    return net.eval(), trained


def _check_overrides(overrides, net):
    """Raise UserError for a setting that is lost when the weights are loaded, as the network has learnt it."""
    for flag, value, words in (("tau", "decay", "decay"), ("sigma", "scale", "scale of its noise")):
        # Neurons inside of others too, which `spiking_neurons` leaves out.
        learnt = [getattr(one, value, None) for one in net.modules() if getattr(one, "emits_spikes", False)]
        if flag in overrides and any(isinstance(one, torch.Tensor) and one.requires_grad for one in learnt):
            raise UserError(f"--{flag} would have no effect: this network has learnt the {words}")


def _has_learnt_scales(content):
    """Whether a checkpoint from elsewhere has weights of neurons with `learnable_scale`."""
    return any(str(key).endswith(".log_scale") for _, tensors in entries(content) for key in tensors)


def check_size(config: TrainConfig, dataset: Dataset, weights: object, path: str | Path) -> None:
    """Raise CheckpointError if a checkpoint describes a network far larger than its `weights`, before building it."""
    values = weights.values() if isinstance(weights, dict) else ()
    has = sum(value.numel() for value in values if isinstance(value, torch.Tensor))
    with torch.device("meta"):  # shapes alone
        wanted = sum(value.numel() for value in _bare_network(config, dataset).state_dict().values())
    # A network that is only somewhat larger is built: loading then says which weights do not fit a wrong --model.
    if wanted > 2 * has + MAX_EXTRA_PARAMETERS:
        raise checkpoint.CheckpointError(f"{path} describes a network of {wanted} values, but contains {has}")


def stored_dataset(dataset: Dataset, content: dict, path: str | Path) -> Dataset:
    """The data set that a checkpoint of ours was trained on: with its classes and sizes, if those are the user's."""
    if not isinstance(dataset, OwnDataset) or content["dataset"] != dataset.name:
        return dataset
    try:
        return dataset.with_facts(content.get("facts"))
    except UserError as error:
        raise checkpoint.CheckpointError(f"{path}: {error}") from error


def dataset_of(config: EvaluationConfig, dataset: Dataset) -> Dataset:
    """The data set of the checkpoint `config.snapshot`; see `stored_dataset`. One of others has that of the folder."""
    if not isinstance(dataset, OwnDataset):
        return dataset
    content = checkpoint.read(config.snapshot)
    if checkpoint.is_ours(content):
        return stored_dataset(dataset, content, config.snapshot)
    return dataset.found(TrainConfig(data_root=config.data_root, lenient=config.lenient))


def stored_config(content: dict, path: str | Path) -> TrainConfig:
    """The configuration in a checkpoint of ours; CheckpointError if this version does not know its settings."""
    try:
        return checked(TrainConfig, content["config"], path)
    except UserError as error:
        raise checkpoint.CheckpointError(str(error)) from error


def _without_prefix(averaged: object) -> dict | None:
    """The network's weights in the state of an `AveragedModel`; None if it is not a dictionary."""
    if not isinstance(averaged, dict):
        return None
    return {str(key).removeprefix("module."): averaged[key] for key in averaged if str(key).startswith("module.")}

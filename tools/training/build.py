"""Data, network and learner, built from a configuration."""

import dataclasses
import functools

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from crits import FiringRate, Regularizer, build_loss, build_regularizer
from models.registry import ACTIVATIONS
from tools import optim
from tools.config.train import Dataset, TrainConfig
from tools.data.augment import mixing
from tools.data.batches import Batches
from tools.errors import UserError
from tools.inference import ForwardPass
from tools.networks import build_network, memory_format
from tools.runtime.cuda_graph import GraphedStep
from tools.runtime.processes import Processes
from tools.runtime.seeds import derived_seed, seed_generators

from .loop import Learner, gradients_and_update

DEBUG_BATCHES = 5
ADAPTED_BY = 5000  # samples


@dataclasses.dataclass(frozen=True)
class Data:
    """The batches of one process, on its device."""

    train: Batches
    val: Batches
    test: Batches
    val_samples: int  # of all processes


def check_settings(config: TrainConfig, device: torch.device, processes: Processes = Processes()) -> None:
    """Raise UserError for settings that do not go together."""
    regularizer = regularizer_of(config)
    refused = {"--plot_spike_rate": config.plot_spike_rate, f"--reg {config.reg}": isinstance(regularizer, FiringRate)}
    for flag, is_given in refused.items():
        if is_given and config.neuron in ACTIVATIONS:
            raise UserError(f"{flag} needs spikes, which --neuron {config.neuron} does not have: leave one of them out")
    watches = regularizer is not None and type(regularizer).watching is not Regularizer.watching
    if config.compile and watches:
        raise UserError(
            f"--compile and --reg {config.reg} do not go together: the penalty needs a network that is not compiled"
        )
    if config.compile and config.memory != "fast":
        raise UserError(f"--compile and --memory {config.memory} do not go together: compiled code keeps what it needs")
    if config.sync_bn and device.type != "cuda":
        raise UserError("--sync_bn needs CUDA devices: PyTorch's SyncBatchNorm has no other implementation")
    if config.cuda_graph:
        _check_graph(config, device, processes)


def _check_graph(config: TrainConfig, device: torch.device, processes: Processes) -> None:
    """Raise UserError for what cannot be part of a CUDA graph."""
    if device.type != "cuda":
        raise UserError(f"--cuda_graph needs a CUDA device, and this run is on {device}")
    if processes.count > 1:
        raise UserError("--cuda_graph is for one process: the exchange of gradients is not captured")
    waits = "its steps wait for the device, which a graph cannot"
    refused = {
        "--amp fp16": (config.amp == "fp16", "its scaler skips steps; use --amp bf16"),
        f"--on_nonfinite {config.on_nonfinite}": (config.on_nonfinite != "stop", waits),
        f"--memory {config.memory}": (config.memory != "fast", waits),
        "--debug": (config.debug, waits),
        "--compile": (config.compile, "each is a way to have fewer launches"),
        "--frames_by duration": (config.frames_by == "duration", "a graph is of one number of frames"),
    }
    for flag, (is_given, why) in refused.items():
        if is_given:
            raise UserError(f"--cuda_graph and {flag} do not go together: {why}")


def regularizer_of(config: TrainConfig) -> Regularizer | None:
    """The penalty that a configuration asks for, if any."""
    return None if config.reg == "no" else build_regularizer(config.reg, config.target_rate)


def load_data(config: TrainConfig, dataset: Dataset, device: torch.device, processes: Processes) -> Data:
    """Load a data set and divide it among the processes.

    Raises:
        UserError: if a part is empty or too small for the processes, or if an augmentation does not fit the data.
        FileNotFoundError: if the data are missing.
    """
    with processes.first_goes_ahead():  # so that only one downloads and decodes
        parts = dataset.load(config)
    for name, part in vars(parts).items():
        if not len(part):
            why = "; it is held out from the training samples, of which a class needs two" if name == "val" else ""
            raise UserError(f"{dataset.name} is too small: its {name} part has no samples{why}")
    limit = DEBUG_BATCHES if config.debug else None
    layout = memory_format(config, dataset)
    options = dict(batch_size=config.minibatch, device=device, memory_format=layout, limit=limit)
    training = dict(shuffle=True, augment=dataset.augmentation(config), accumulate=config.accumulate)
    if mix := mixing(config.mixup, config.cutmix, dataset.num_classes):
        if not dataset.has_pixels:
            raise UserError(f"--mixup and --cutmix have no meaning for {dataset.name}, which has events")
        training["mix"] = mix

    def share(part):
        return part.subset(processes.part(len(part))) if processes.count > 1 else part

    train = parts.train.batches(**options, **training, processes=processes)
    val, test = share(parts.val).batches(**options), share(parts.test).batches(**options)
    return Data(train, val, test, len(parts.val))


def build_net(config: TrainConfig, dataset: Dataset, device: torch.device) -> nn.Module:
    """The initialised network, the same in all processes."""
    seed_generators(config.seed)
    net = build_network(config, dataset)
    optim.initialise(net, config.init)
    if config.sync_bn:
        net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    return net.to(device, memory_format=memory_format(config, dataset))


def adapt_to_data(net: nn.Module, train: Batches, seed: int) -> None:
    """Show training samples, without augmentation, to a network with a layer to be set by them, such as speednet."""
    if not hasattr(net, "adapt_to"):
        return
    generator = torch.Generator().manual_seed(derived_seed(seed, "adapt"))
    chosen = torch.randperm(len(train.data), generator=generator)[:ADAPTED_BY]
    ((samples, *_),) = train.data.subset(chosen).batches(batch_size=len(chosen), device=train.device)
    net.adapt_to(samples)


def build_learner(
    config: TrainConfig, net: nn.Module, batches: int, device: torch.device, processes: Processes
) -> Learner:
    """A learner for epochs of `batches` batches; from here on, each process draws different random numbers."""
    trained = processes.replicated(net, device)
    optimizer = optim.build_optimizer(config.optim, net, config.lr, config.weight_decay)
    ema = None
    if config.ema:
        ema = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(config.ema), use_buffers=True)
    learner = Learner(
        net=torch.compile(trained) if config.compile else trained,
        criterion=build_loss(config.loss, config.label_smoothing, config.lambda_tet),
        optimizer=optimizer,
        scheduler=optim.build_scheduler(config.scheduler, optimizer, config.epochs * batches // config.accumulate),
        scaler=torch.amp.GradScaler(device.type, enabled=config.amp == "fp16"),
        forward=ForwardPass(device, config.timestep, config.amp),
        regularizer=regularizer_of(config),
        regularizer_weight=config.lambda1,
        clip_grad=config.clip_grad,
        ema=ema,
        accumulate=config.accumulate,
        processes=processes,
    )
    if config.cuda_graph:
        learner.graph = GraphedStep(functools.partial(gradients_and_update, learner), optimizer, device)
    if not processes.is_first:
        seed_generators(derived_seed(config.seed, "process", processes.rank))
    return learner


def describe(net: nn.Module, config: TrainConfig, processes: Processes) -> str:
    """One line for the log: the network, and how many samples make a step."""
    text = f"{type(net).__name__} with {sum(parameter.numel() for parameter in net.parameters()):,} parameters"
    size, batches, count = config.minibatch, config.accumulate, processes.count
    if batches * count > 1:
        text += f"; {size * batches * count} samples a step: {size} x {batches} batches x {count} processes"
    return text

"""Everything that a configuration describes: data, network, and what trains it."""

import dataclasses
from typing import Protocol

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from crits import build_loss, build_regularizer
from tools import optim
from tools.config.train import TrainConfig
from tools.data.batches import Batches
from tools.errors import UserError
from tools.inference import ForwardPass
from tools.networks import build_network, memory_format
from tools.runtime.processes import Processes
from tools.runtime.seeds import derived_seed, seed_generators

from .loop import Learner

DEBUG_BATCHES = 5


class Dataset(Protocol):
    """What training uses of a data set of `dataset_utils`, which documents it."""

    name: str
    num_classes: int
    mean: tuple
    std: tuple

    def load(self, config: TrainConfig) -> dict: ...
    def input_shape(self, config: TrainConfig) -> tuple[int, int, int]: ...
    def augmentation(self, config: TrainConfig) -> object: ...


@dataclasses.dataclass(frozen=True)
class Data:
    """The batches of a run, for one process.

    Args:
        train, val, test: batches on the device.
        train_samples, val_samples: numbers of samples, over all processes.
    """

    train: Batches
    val: Batches
    test: Batches
    train_samples: int
    val_samples: int


def check_settings(config: TrainConfig, device: torch.device) -> None:
    """Raise UserError for settings that do not go together."""
    if config.compile and config.reg == "rate":
        raise UserError("--compile and --reg rate do not go together: compiled networks run no hooks")
    if config.sync_bn and device.type != "cuda":
        raise UserError("--sync_bn needs CUDA devices: PyTorch's SyncBatchNorm has no other implementation")


def load_data(config: TrainConfig, dataset: Dataset, device: torch.device, processes: Processes) -> Data:
    """Load a data set and share it out among the processes."""
    with processes.first_goes_ahead():  # otherwise all would download or decode the same
        parts = dataset.load(config)
    options = dict(
        batch_size=config.minibatch,
        device=device,
        memory_format=memory_format(config),
        limit=DEBUG_BATCHES if config.debug else None,
    )

    def share(part):
        return part.subset(processes.part(len(part))) if processes.count > 1 else part

    augment = dataset.augmentation(config)
    return Data(
        train=parts["train"].batches(
            shuffle=True, augment=augment, accumulate=config.accumulate, processes=processes, **options
        ),
        val=share(parts["val"]).batches(**options),
        test=share(parts["test"]).batches(**options),
        train_samples=len(parts["train"]),
        val_samples=len(parts["val"]),
    )


def build_net(config: TrainConfig, dataset: Dataset, device: torch.device) -> nn.Module:
    """The initialised network, the same in all processes."""
    seed_generators(config.seed)
    net = build_network(config, dataset)
    optim.initialise(net, config.init)
    if config.sync_bn:
        net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    return net.to(device, memory_format=memory_format(config))


def build_learner(
    config: TrainConfig, net: nn.Module, batches: int, device: torch.device, processes: Processes
) -> Learner:
    """What trains a network in epochs of so many batches; from here on, processes draw different random numbers."""
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
        regularizer=None if config.reg == "no" else build_regularizer(config.reg, config.target_rate),
        regularizer_weight=config.lambda1,
        clip_grad=config.clip_grad,
        ema=ema,
        accumulate=config.accumulate,
        processes=processes,
    )
    if not processes.is_first:
        seed_generators(derived_seed(config.seed, "process", processes.rank))
    return learner


def describe(net: nn.Module, config: TrainConfig, processes: Processes) -> str:
    """The network, and how many images make a step, for the first message of a run."""
    parameters = sum(parameter.numel() for parameter in net.parameters())
    text = f"{type(net).__name__} with {parameters:,} parameters"
    batches, count = config.accumulate, processes.count
    if batches * count > 1:
        images = config.minibatch * batches * count
        text += f"; {images} images a step: {config.minibatch} x {batches} batches x {count} processes"
    return text

"""Optimisers, learning-rate schedules, and the initialisation of weights, by name."""

import math
from functools import partial

import torch
from torch import nn
from torch.optim import lr_scheduler

OPTIMIZERS = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgdm": partial(torch.optim.SGD, momentum=0.9),
    "radam": torch.optim.RAdam,
}
# One kernel for all parameters, where PyTorch has it for CPU and CUDA; RAdam takes its grouped form by itself.
FASTEST = {name: {"fused": True} for name in ("adam", "adamw", "sgdm")}


def build_optimizer(name: str, net: nn.Module, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """Make an optimiser that does not decay 0-d parameters (learnt decays and noise scales).

    Args:
        name: one of OPTIMIZERS.
        net: the network whose parameters it changes.
        lr: learning rate.
        weight_decay: coefficient of the weight decay.
    """
    parameters = list(net.parameters())
    groups = [{"params": [p for p in parameters if p.dim() > 0], "weight_decay": weight_decay}]
    if scalars := [p for p in parameters if p.dim() == 0]:
        groups.append({"params": scalars, "weight_decay": 0.0})
    return OPTIMIZERS[name](groups, lr=lr, **FASTEST.get(name, {}))


def build_scheduler(name: str, optimizer: torch.optim.Optimizer, total_steps: int) -> lr_scheduler.LRScheduler:
    """Make a learning-rate schedule that is stepped after every batch.

    Args:
        name: one of SCHEDULERS: "cos" (from lr to 0), "cyclic" (triangles between lr / 10 and lr, four over the run),
            "onecycle" (warm up to lr, then down to nearly 0) or "none".
        optimizer: its learning rate is the schedule's highest.
        total_steps: number of batches of the whole run.
    """
    return SCHEDULERS[name](optimizer, optimizer.param_groups[0]["lr"], total_steps)


def _cosine(optimizer, lr, total_steps):
    return lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * min(step / total_steps, 1))))


def _cyclic(optimizer, lr, total_steps):
    up = max(1, total_steps // 8)
    return lr_scheduler.CyclicLR(optimizer, lr / 10, lr, step_size_up=up, cycle_momentum=False)


def _onecycle(optimizer, lr, total_steps):
    return lr_scheduler.OneCycleLR(optimizer, lr, total_steps=total_steps)


def _constant(optimizer, lr, total_steps):
    return lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)


SCHEDULERS = {"cos": _cosine, "cyclic": _cyclic, "onecycle": _onecycle, "none": _constant}


def initialise(net: nn.Module, scheme: str) -> None:
    """Set the weights of convolutions and linear layers.

    Args:
        net: the network, whose other parameters stay.
        scheme: one of INITIALISATIONS: "uniform" (PyTorch's own, as the layers came) or "orthog"
            (orthogonal matrices [out, in * k * k] of gain 1, biases 0).

    Raises:
        ValueError: for another scheme.
    """
    if scheme not in INITIALISATIONS:
        raise ValueError(f"unknown initialisation {scheme!r}; choose from {', '.join(INITIALISATIONS)}")
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            INITIALISATIONS[scheme](module)


def _keep(layer: nn.Module) -> None:
    """Leave a layer as PyTorch made it."""


def _orthogonal(layer: nn.Module) -> None:
    nn.init.orthogonal_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


INITIALISATIONS = {"uniform": _keep, "orthog": _orthogonal}

"""Optimisers, learning-rate schedules, and the initialisation of weights, by name."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn, optim
from torch.optim.lr_scheduler import CyclicLR, LambdaLR, LRScheduler, OneCycleLR

from crits.watching import spiking_neurons
from tools.errors import UserError

# Fused: one kernel for all parameters, where PyTorch has it for CPU and CUDA.
OPTIMIZERS = {
    "adam": partial(optim.Adam, fused=True),
    "adamw": partial(optim.AdamW, fused=True),
    "sgdm": partial(optim.SGD, momentum=0.9, fused=True),
    "radam": optim.RAdam,  # chooses its foreach implementation by itself
}
SCHEDULERS = {  # functions of an optimiser, its learning rate, and the number n of steps; k is the step
    # From lr to 0.
    "cos": lambda optimizer, lr, n: LambdaLR(optimizer, lambda k: 0.5 * (1 + math.cos(math.pi * min(k / n, 1)))),
    # Four triangles between lr / 10 and lr.
    "cyclic": lambda optimizer, lr, n: CyclicLR(optimizer, lr / 10, lr, max(1, n // 8), cycle_momentum=False),
    # Warm-up to lr, then down to nearly 0.
    "onecycle": lambda optimizer, lr, n: OneCycleLR(optimizer, lr, n),
    "none": lambda optimizer, lr, n: LambdaLR(optimizer, lambda k: 1.0),
}
EXTENDABLE = ("cos", "none")  # follow a changed number of steps when a run is resumed; each is a LambdaLR


def _orthogonal(layer):
    nn.init.orthogonal_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


INITIALISATIONS = {  # functions of a convolution or linear layer
    "uniform": lambda layer: None,  # PyTorch's default
    "orthog": _orthogonal,  # the matrix [out, in * k * k], of gain 1; biases are 0
}


def _entry(table: dict[str, Callable[..., Any]], what: str, name: str) -> Callable[..., Any]:
    """The entry of a table; UserError for an unknown name."""
    if name not in table:
        raise UserError(f"unknown {what} {name!r}; choose from {', '.join(table)}")
    return table[name]


def build_optimizer(name: str, net: nn.Module, lr: float, weight_decay: float) -> optim.Optimizer:
    """One of `OPTIMIZERS`; learnt thresholds, decays and scales are a second group, without weight decay."""
    learnt = {id(p) for p in net.parameters() if p.dim() == 0}
    for _, neuron in spiking_neurons(net):
        learnt |= {id(p) for p in neuron.parameters(recurse=False) if p.dim() < 2}
    groups = [{"params": [p for p in net.parameters() if id(p) not in learnt], "weight_decay": weight_decay}]
    if learnt:
        groups.append({"params": [p for p in net.parameters() if id(p) in learnt], "weight_decay": 0.0})
    return _entry(OPTIMIZERS, "optimiser", name)(groups, lr=lr)


def build_scheduler(name: str, optimizer: optim.Optimizer, total_steps: int) -> LRScheduler:
    """One of `SCHEDULERS`, to be stepped after each of `total_steps`; its maximum is the optimiser's learning rate."""
    return _entry(SCHEDULERS, "schedule", name)(optimizer, optimizer.param_groups[0]["lr"], total_steps)


def follow(scheduler: LRScheduler) -> None:
    """Set the learning rate that a schedule has at its present step, after it was restored with another length."""
    if isinstance(scheduler, LambdaLR):  # as those of `EXTENDABLE` are
        rates = [lr * function(scheduler.last_epoch) for lr, function in zip(scheduler.base_lrs, scheduler.lr_lambdas)]
        for group, rate in zip(scheduler.optimizer.param_groups, rates):
            group["lr"] = rate
        scheduler._last_lr = rates


def initialise(net: nn.Module, scheme: str) -> None:
    """Apply one of `INITIALISATIONS` to all convolutions and linear layers."""
    initialise_layer = _entry(INITIALISATIONS, "initialisation", scheme)
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            initialise_layer(layer)

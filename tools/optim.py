"""Optimisers, learning-rate schedules, and the initialisation of weights, by name."""

import math
from functools import partial

from torch import nn, optim
from torch.optim.lr_scheduler import CyclicLR, LambdaLR, LRScheduler, OneCycleLR

# Fused: one kernel for all parameters, where PyTorch has it for CPU and CUDA.
OPTIMIZERS = {
    "adam": partial(optim.Adam, fused=True),
    "adamw": partial(optim.AdamW, fused=True),
    "sgdm": partial(optim.SGD, momentum=0.9, fused=True),
    "radam": optim.RAdam,  # takes its grouped form by itself
}
SCHEDULERS = {  # functions of an optimiser, its learning rate, and the number n of steps; k is the step
    "cos": lambda optimizer, lr, n: LambdaLR(optimizer, lambda k: 0.5 * (1 + math.cos(math.pi * min(k / n, 1)))),
    "cyclic": lambda optimizer, lr, n: CyclicLR(optimizer, lr / 10, lr, max(1, n // 8), cycle_momentum=False),
    "onecycle": lambda optimizer, lr, n: OneCycleLR(optimizer, lr, n),
    "none": lambda optimizer, lr, n: LambdaLR(optimizer, lambda k: 1.0),
}
PLANNED = ("onecycle", "cyclic")  # schedules whose number of steps is fixed at the start


def _orthogonal(layer):
    nn.init.orthogonal_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


INITIALISATIONS = {  # functions of a convolution or linear layer
    "uniform": lambda layer: None,  # PyTorch's default
    "orthog": _orthogonal,  # the matrix [out, in * k * k], of gain 1; biases are 0
}


def build_optimizer(name: str, net: nn.Module, lr: float, weight_decay: float) -> optim.Optimizer:
    """One of `OPTIMIZERS`, without weight decay of 0-d parameters (learnt decays and noise scales)."""
    parameters = list(net.parameters())
    groups = [{"params": [p for p in parameters if p.dim() > 0], "weight_decay": weight_decay}]
    if scalars := [p for p in parameters if p.dim() == 0]:
        groups.append({"params": scalars, "weight_decay": 0.0})
    return OPTIMIZERS[name](groups, lr=lr)


def build_scheduler(name: str, optimizer: optim.Optimizer, total_steps: int) -> LRScheduler:
    """One of `SCHEDULERS`, to be stepped after each of `total_steps`; its maximum is lr, the optimiser's learning rate.

    "cos": from lr to 0; "cyclic": four triangles between lr / 10 and lr; "onecycle": warm-up to lr, then down to
    nearly 0; "none": constant.
    """
    return SCHEDULERS[name](optimizer, optimizer.param_groups[0]["lr"], total_steps)


def initialise(net: nn.Module, scheme: str) -> None:
    """Apply one of `INITIALISATIONS` to all convolutions and linear layers; ValueError for another scheme."""
    if scheme not in INITIALISATIONS:
        raise ValueError(f"unknown initialisation {scheme!r}; choose from {', '.join(INITIALISATIONS)}")
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            INITIALISATIONS[scheme](layer)

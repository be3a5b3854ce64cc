"""The form in which a network is deployed: the mode of its noisy neurons, and the batch statistics of that mode."""

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from tools.data.batches import Batches
from tools.errors import UserError
from tools.inference import ForwardPass
from tools.probes.hooks import set_mode


def put_into_mode(net: nn.Module, mode: str, path: str) -> None:
    """Put the noisy neurons of a network into one of `models.functional.MODES`; "noisy" is how they are made.

    `path` is that of the checkpoint, for errors.

    Raises:
        UserError: for another mode than "noisy", if no neuron can be noisy, or a noisy one has no `mode` to obey.
    """
    if mode == "noisy":
        return
    purpose = f"--inference {mode}"
    if not set_mode(net, mode, purpose):
        raise UserError(f"{purpose} is for noisy neurons, and {path} has none; in --compare, write {path}@noisy")


@torch.no_grad()
def recalibrate(net: nn.Module, batches: Batches, forward: ForwardPass, path: str) -> None:
    """Set the running statistics of batch normalisation to their means over the samples of some batches.

    The network is left in evaluation mode. UserError, with the `path` of the checkpoint, if it has no such statistics.
    """
    norms = [one for one in net.eval().modules() if isinstance(one, _BatchNorm) and one.running_mean is not None]
    if not norms:
        raise UserError(f"--recalibrate estimates the statistics of batch normalisation, and {path} has none")
    momenta = [one.momentum for one in norms]
    seen = 0
    for images, labels, *_ in batches:
        seen += len(labels)
        for norm in norms:
            norm.train().momentum = len(labels) / seen  # the weight of this batch in the mean of all so far
        forward(net, images)
    for norm, momentum in zip(norms, momenta):
        norm.eval().momentum = momentum

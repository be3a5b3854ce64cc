"""Neurons and networks by name."""

import functools
import math

from .neurons import IF, LIF, NoisyLIF, ParametricLIF
from .noise import Cauchy, Gaussian, Logistic, Triangular, Uniform
from .resnet import sresnet18, sresnet19, sresnet34
from .toynet import ToyNet
from .vgg import cifarnet, vgg, vggwoap

NOISY_NEURONS = {
    "NILIF": Gaussian,
    "NILIF_sigmoid": Logistic,
    "NILIF_triang": Triangular,
    "NILIF_uniform": Uniform,
    "NILIF_atan": Cauchy,
}
DETERMINISTIC_NEURONS = {"LIF": LIF, "PLIF": ParametricLIF, "IF": IF}
NEURONS = (*NOISY_NEURONS, *DETERMINISTIC_NEURONS)
MODELS = {
    "sresnet18": sresnet18,
    "sresnet19": sresnet19,
    "sresnet34": sresnet34,
    "vgg": vgg,
    "vggwoap": vggwoap,
    "cifarnet": cifarnet,
    "toynet": ToyNet,
}
NORMS = ("bn", None)


def build_neuron(
    name,
    *,
    sigma=0.3,
    tau=2.0,
    threshold=1.0,
    alpha=1.0,
    placement="both",
    reset="zero",
    detach_reset=False,
    decay_input=False,
    learnable_scale=False,
):
    """Make a factory of neurons: a zero-argument callable that returns a fresh one.

    Args:
        name: one of `NEURONS`.
        sigma: scale of the noise law of a noisy neuron, in the units of the potential.
        tau: decay = 1 / tau, at least 1; as in the published code, not SpikingJelly's tau (whose decay
            is 1 - 1 / tau). IF has no leak and ignores it.
        threshold: firing threshold.
        alpha: sharpness a of the erf surrogate of a deterministic neuron, density
            a / sqrt(pi) exp(-(a z)^2).
        placement, learnable_scale: see `NoisyLIF`; deterministic neurons ignore them.
        reset, detach_reset, decay_input: see `SpikingNeuron`.

    Raises:
        ValueError: for an unknown name (the valid ones are listed) or an argument out of range.
    """
    if name not in NEURONS:
        raise ValueError(f"unknown neuron {name!r}; choose from {', '.join(NEURONS)}")
    if not tau >= 1.0:
        raise ValueError(f"tau must be at least 1 (decay = 1 / tau), got {tau}")
    if not alpha > 0:
        raise ValueError(f"alpha must be positive, got {alpha}")
    options = dict(threshold=threshold, reset=reset, detach_reset=detach_reset)
    if name != "IF":
        options.update(decay=1 / tau, decay_input=decay_input)
    if name in NOISY_NEURONS:
        law = NOISY_NEURONS[name](sigma)
        options.update(noise=law, placement=placement, learnable_scale=learnable_scale)
        factory = functools.partial(NoisyLIF, **options)
    else:
        surrogate = Gaussian(1 / (alpha * math.sqrt(2)))
        factory = functools.partial(DETERMINISTIC_NEURONS[name], surrogate=surrogate, **options)
    factory()  # a wrong argument is reported here, not when the network is built
    return factory


def build_model(name, *, neuron, in_shape, num_classes, norm="bn", width=1.0):
    """Make a network.

    Args:
        name: one of `MODELS`.
        neuron: zero-argument callable that makes a fresh neuron (or any module [T, B, ...] -> the same).
        in_shape: (C, H, W) of one image or event frame.
        num_classes: K.
        norm: "bn" or None; cifarnet and toynet have no normalisation either way.
        width: factor on all channel counts.

    Shape:
        x [T, B, C, H, W] -> logits [T, B, K]; see `SpikingNetwork` for images with `timesteps`.

    Raises:
        ValueError: for an unknown name (the valid ones are listed) or an argument out of range.
    """
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; choose from {', '.join(MODELS)}")
    if norm not in NORMS:
        raise ValueError(f'norm must be "bn" or None, got {norm!r}')
    if len(in_shape) != 3 or min(in_shape) < 1:
        raise ValueError(f"in_shape must be (C, H, W), got {tuple(in_shape)}")
    if not 0 < width <= 1000:
        raise ValueError(f"width must be positive and at most 1000, got {width}")
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")
    return MODELS[name](neuron, in_shape, num_classes, norm=norm, width=width)

"""Neurons and networks by name."""

import functools
import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from .functional import PLACEMENTS, check_choice
from .layers import MakeNeuron, SpikingNetwork
from .memory import check_setting
from .neurons import IF, LIF, NoisyIF, NoisyLIF, NoisyParametricLIF, ParametricLIF, SpikingNeuron
from .noise import LAWS, Gaussian, NoiseLaw, by_name
from .parameters import ArgumentError
from .resnet import sresnet18, sresnet19, sresnet34
from .rsnn import RSNN
from .speednet import SpeedNet
from .toynet import ToyNet
from .vgg import cifarnet, vgg, vggwoap

DETERMINISTIC_NEURONS: dict[str, Callable[..., SpikingNeuron]] = {"LIF": LIF, "PLIF": ParametricLIF, "IF": IF}
ACTIVATIONS: dict[str, type[nn.Module]] = {"ReLU": nn.ReLU}  # without spikes and settings, to compare with
NoisyNeurons = dict[str, tuple[Callable[..., SpikingNeuron], type[NoiseLaw]]]


NOISY_KINDS = {"NILIF": NoisyLIF, "NIIF": NoisyIF, "NIPLIF": NoisyParametricLIF}


def noisy_neurons(laws: Iterable[type[NoiseLaw]]) -> NoisyNeurons:
    """{name: (class, law)}: the `neuron_name` of each law and, where it begins with NILIF, its siblings.

    Raises:
        ArgumentError: for a name that another law has already.
    """
    found: NoisyNeurons = {}
    for kind, neuron in NOISY_KINDS.items():
        for law in by_name(laws).values():
            if kind != "NILIF" and not law.neuron_name.startswith("NILIF"):
                continue
            name = law.neuron_name.replace("NILIF", kind, 1)
            if name in found or name in DETERMINISTIC_NEURONS or name in ACTIVATIONS:
                raise ArgumentError(f"the neuron_name {law.neuron_name!r} of {law.__name__} is taken: choose a new one")
            found[name] = (neuron, law)
    return found


NOISY_NEURONS = noisy_neurons(LAWS)
NEURONS = (*NOISY_NEURONS, *DETERMINISTIC_NEURONS, *ACTIVATIONS)
MODELS: dict[str, Callable[..., SpikingNetwork]] = {
    "sresnet18": sresnet18,
    "sresnet19": sresnet19,
    "sresnet34": sresnet34,
    "vgg": vgg,
    "vggwoap": vggwoap,
    "cifarnet": cifarnet,
    "toynet": ToyNet,
    "rsnn": RSNN,
    "speednet": SpeedNet,
}
NORMS = ("bn", None)


def build_neuron(
    name: str,
    *,
    sigma: float = 0.3,
    tau: float = 2.0,
    threshold: float = 1.0,
    alpha: float = 1.0,
    placement: str = "both",
    reset: str = "zero",
    detach_reset: bool = False,
    decay_input: bool = False,
    learnable_scale: bool = False,
    gradient_sigma: float = 0.0,
) -> MakeNeuron:
    """Make a factory of neurons: a zero-argument callable that returns a fresh one.

    Args:
        name: one of `NEURONS`. ReLU makes a network without spikes, to compare with, and ignores all settings.
        sigma: scale of the noise law of a noisy neuron, in the units of the potential.
        tau: decay = 1 / tau, at least 1; as in the published code, not SpikingJelly's tau (whose decay is 1 - 1 / tau).
            IF and NIIF have no leak and ignore it.
        alpha: sharpness a of the erf surrogate of a deterministic neuron, density a / sqrt(pi) exp(-(a z)^2).
        placement, learnable_scale: see `NoisyLIF`; deterministic neurons ignore them.
        gradient_sigma: scale of the law whose density is the gradient of a noisy neuron; 0: that of its noise.
            Deterministic neurons ignore it.
        threshold, reset, detach_reset, decay_input: see `SpikingNeuron`.

    Raises:
        ArgumentError: for a wrong argument, or one that the class in the table does not take; for a class that does not
            say whether it `is_noisy`.
    """
    if name not in NEURONS:
        raise ArgumentError(f"unknown neuron {name!r}; choose from {', '.join(NEURONS)}")
    numbers = dict(sigma=sigma, tau=tau, threshold=threshold, alpha=alpha, gradient_sigma=gradient_sigma)
    for setting, value in numbers.items():
        if isinstance(value, Tensor) and (value.requires_grad or value.numel() != 1):
            raise ArgumentError(
                f"{setting} must be a number, as all neurons of a network would share one tensor: give build_model a "
                "function instead, such as neuron=lambda: NoisyLIF(threshold=nn.Parameter(torch.tensor([1.0])))"
            )
    if not tau >= 1.0:
        raise ArgumentError(f"tau must be at least 1 (decay = 1 / tau), got {tau}")
    check_choice("placement", placement, PLACEMENTS)
    if not alpha > 0:
        raise ArgumentError(f"alpha must be positive, got {alpha}")
    if name in ACTIVATIONS:
        return ACTIVATIONS[name]
    options: dict[str, Any] = dict(threshold=threshold, reset=reset, detach_reset=detach_reset)
    kind, law = NOISY_NEURONS[name] if name in NOISY_NEURONS else (DETERMINISTIC_NEURONS[name], None)
    if not (isinstance(kind, type) and issubclass(kind, (IF, NoisyIF))):  # these have no leak
        options.update(decay=1 / tau, decay_input=decay_input)
    if law is not None:
        options.update(noise=law(sigma), placement=placement, learnable_scale=learnable_scale)
        if gradient_sigma:
            options.update(surrogate=law(gradient_sigma))
    else:
        options.update(surrogate=Gaussian(1 / (alpha * math.sqrt(2))))
    try:
        inspect.signature(kind).bind(**options)
    except TypeError as error:
        raise ArgumentError(f"neuron {name!r} cannot be built with {', '.join(options)}: {error}") from error
    factory = functools.partial(kind, **options)
    neuron = factory()  # a wrong argument is reported here, not when the network is built
    try:
        is_noisy = neuron.is_noisy
    except AttributeError as error:
        raise ArgumentError(f"neuron {name!r} must say whether it `is_noisy`: {error}") from error
    if name in DETERMINISTIC_NEURONS and is_noisy:
        raise ArgumentError(f"neuron {name!r} is noisy: enter it in NOISY_NEURONS, not in DETERMINISTIC_NEURONS")
    return factory


def build_model(
    name: str,
    *,
    neuron: MakeNeuron,
    in_shape: tuple[int, int, int],
    num_classes: int,
    norm: str | None = "bn",
    width: float = 1.0,
    memory: str = "fast",
) -> SpikingNetwork:
    """Make a network: x [T, B, C, H, W] -> logits [T, B, K]; see `SpikingNetwork` for images with `timesteps`.

    Args:
        name: one of `MODELS`.
        neuron: zero-argument callable that makes a fresh neuron (or, but for rsnn, any module [T, B, ...]).
        in_shape: (C, H, W) of one image or event frame.
        num_classes: K.
        norm: "bn" or None; cifarnet and toynet have no normalisation either way.
        width: factor on all channel counts.
        memory: what training keeps between the forward and the backward pass, which changes no result: "fast", or
            "lean" (what neurons and batch norm need is computed again, and spikes are packed to bits), or "smallest"
            (the outputs of convolutions are computed again too). It may be changed later, as `net.memory`. On CUDA,
            only "fast" runs the batch norm of PyTorch, whose roundings differ; on other devices than these two, both
            only pack spikes; in compiled networks, they do nothing.

    Raises:
        ArgumentError: for an unknown name or a wrong argument.
    """
    if name not in MODELS:
        raise ArgumentError(f"unknown model {name!r}; choose from {', '.join(MODELS)}")
    if norm not in NORMS:
        raise ArgumentError(f'norm must be "bn" or None, got {norm!r}')
    if len(in_shape) != 3 or min(in_shape) < 1:
        raise ArgumentError(f"in_shape must be (C, H, W), got {tuple(in_shape)}")
    if not 0 < width <= 1000:
        raise ArgumentError(f"width must be positive and at most 1000, got {width}")
    if num_classes < 1:
        raise ArgumentError(f"num_classes must be at least 1, got {num_classes}")
    check_setting(memory)
    net = MODELS[name](neuron, in_shape, num_classes, norm=norm, width=width)
    net.memory = memory
    return net

"""Spiking neurons as modules: they map an input current [T, B, ...] to spikes [T, B, ...].

`neuron(x)` starts from rest and keeps nothing, so there is nothing to reset between batches.
`neuron.run` and `neuron.step` stream: they take the state and hand it back. The equations are in
`models.functional`.
"""

import contextlib
import math

import torch
from torch import nn

from .functional import (
    PLACEMENTS,
    RESETS,
    check_choice,
    check_decay,
    check_law,
    check_threshold,
    firing_probability,
    lif,
    noisy_lif,
)
from .noise import Gaussian


class SpikingNeuron(nn.Module):
    """What all neurons share; see the subclasses.

    Args:
        threshold: firing threshold, in the units of the potential; positive.
        decay: factor of the potential per step, in [0, 1].
        reset: "zero", "subtract" (by the threshold) or "none".
        detach_reset: if true, the gradient does not flow through the spike in the reset.
        decay_input: if true, the input enters as (1 - decay) * x[t].

    Shape:
        x [T, B, ...] -> spikes [T, B, ...], 0 or 1, in the dtype of `x`.

    Raises:
        ValueError, TypeError: for an argument out of range.
    """

    emits_spikes = True  # lets regularisers find neurons without importing this package

    def __init__(self, threshold, decay, reset, detach_reset, decay_input):
        super().__init__()
        check_threshold(threshold)
        check_decay(decay)
        check_choice("reset", reset, RESETS)
        if decay_input and decay == 1:
            raise ValueError("decay_input=True with decay=1 would keep all input out: it enters as (1 - decay) * x")
        self.threshold = float(threshold)
        self.decay = float(decay)
        self.reset = reset
        self.detach_reset = detach_reset
        self.decay_input = decay_input

    def forward(self, x):
        spikes, _ = self._integrate(x, keep_state=False)
        return spikes

    def step(self, x_t, state=None):
        """One time step: input [B, ...] and state [B, ...] -> spike [B, ...] and the next state."""
        spikes, state = self.run(x_t.unsqueeze(0), state)
        return spikes.squeeze(0), state

    def run(self, x, state=None):
        """A stretch of a stream: x [T, B, ...] -> spikes [T, B, ...] and the state [B, ...] after it.

        The state is the membrane potential (float32, or float64 for float64 input); None is rest.
        """
        return self._integrate(x, state)

    def _integrate(self, x, state=None, keep_state=True):
        raise TypeError(f"{type(self).__name__} is no neuron by itself: use one of its subclasses")

    def _dynamics(self):
        return dict(
            threshold=self.threshold,
            decay=self.decay,
            reset=self.reset,
            detach_reset=self.detach_reset,
            decay_input=self.decay_input,
        )

    def extra_repr(self):
        decay = self.decay.item() if isinstance(self.decay, torch.Tensor) else self.decay
        return f"threshold={self.threshold:g}, decay={decay:.4g}, reset={self.reset!r}"


class LIF(SpikingNeuron):
    """Deterministic leaky integrate-and-fire neuron: fires where u > threshold, strictly.

    Args:
        surrogate: the law whose density stands for d spike / d u in the backward pass. The default
            is the erf surrogate of sharpness a = 1, a / sqrt(pi) exp(-(a z)^2): Gaussian(1 / (a sqrt 2)).
        threshold, decay, reset, detach_reset, decay_input: see `SpikingNeuron`.
    """

    def __init__(
        self,
        surrogate=Gaussian(math.sqrt(0.5)),
        threshold=1.0,
        decay=0.5,
        reset="zero",
        detach_reset=False,
        decay_input=False,
    ):
        super().__init__(threshold, decay, reset, detach_reset, decay_input)
        check_law("surrogate", surrogate)
        self.surrogate = surrogate

    def _integrate(self, x, state=None, keep_state=True):
        return lif(x, self.surrogate, state=state, keep_state=keep_state, **self._dynamics())

    def extra_repr(self):
        return f"{self.surrogate}, {super().extra_repr()}"


class IF(LIF):
    """Integrate-and-fire neuron without leak: a `LIF` with decay 1."""

    def __init__(self, surrogate=Gaussian(math.sqrt(0.5)), threshold=1.0, reset="zero", detach_reset=False):
        super().__init__(surrogate, threshold, 1.0, reset, detach_reset)


class ParametricLIF(LIF):
    """A `LIF` that learns its decay, one value per layer: decay = sigmoid(decay_logit), in (0, 1).

    Args:
        decay: the initial value, in (0, 1).

    Note:
        Fang et al., "Incorporating learnable membrane time constant to enhance learning of spiking
        neural networks", ICCV 2021. There `decay_input` is on.
    """

    @property
    def decay(self):
        decay = torch.sigmoid(self.decay_logit)
        eps = torch.finfo(decay.dtype).eps  # where the sigmoid is rounded to 0 or 1, its slope is 0 already
        return decay.clamp(eps, 1 - eps)

    @decay.setter
    def decay(self, value):
        if not 0.0 < value < 1.0:
            raise ValueError(f"a learnable decay must be in (0, 1), got {value}")
        logit = torch.tensor(math.log(value / (1 - value)))
        if "decay_logit" in self._parameters:  # keep the parameter that an optimiser may hold
            with torch.no_grad():
                self.decay_logit.copy_(logit)
        else:
            self.decay_logit = nn.Parameter(logit)


class NoisyLIF(SpikingNeuron):
    """Noisy leaky integrate-and-fire neuron: P(spike) = F(u - threshold), gradient F'(u - threshold).

    Args:
        noise: the law F of the noise (see `models.noise`).
        placement: "both", "escape" (threshold noise alone) or "membrane" (membrane noise alone).
        threshold, decay, reset, detach_reset, decay_input: see `SpikingNeuron`.
        learnable_scale: if true, the layer learns the scale of its noise, kept positive by
            scale = exp(log_scale), by the gradient of the firing probability.
        surrogate: a law whose density is the gradient, in place of that of `noise`; None: that of `noise`.

    Note:
        Noise is drawn in training and in evaluation alike: the noise is part of the model. Use
        `noiseless` or `mean_field` for its deterministic relatives.
    """

    def __init__(
        self,
        noise=Gaussian(0.3),
        threshold=1.0,
        decay=0.5,
        placement="both",
        reset="zero",
        detach_reset=False,
        decay_input=False,
        learnable_scale=False,
        surrogate=None,
    ):
        super().__init__(threshold, decay, reset, detach_reset, decay_input)
        check_law("noise", noise)
        check_choice("placement", placement, PLACEMENTS)
        if surrogate is not None:
            check_law("surrogate", surrogate)
            if learnable_scale:
                raise ValueError("a scale is learnt by the density of the noise itself: give no surrogate")
        self.noise = noise
        self.surrogate = surrogate
        self.placement = placement
        self.mode = "noisy"  # switched by `noiseless` and `mean_field`
        self.log_scale = nn.Parameter(torch.tensor(math.log(noise.scale))) if learnable_scale else None

    @property
    def scale(self):
        """Scale of the noise: a number, or the current value (0-d tensor) where it is learnt."""
        return self.noise.scale if self.log_scale is None else torch.exp(self.log_scale)

    def _integrate(self, x, state=None, keep_state=True):
        return noisy_lif(
            x,
            self.noise,
            placement=self.placement,
            state=state,
            scale=None if self.log_scale is None else self.scale,
            surrogate=self.surrogate,
            mode=self.mode,
            keep_state=keep_state,
            **self._dynamics(),
        )

    def firing_probability(self, x, spikes):
        """Probability of a spike at each step, given the input and the spikes before it, from rest.

        See `models.functional.firing_probability`. With membrane noise it has no closed form: ValueError.

        Shape:
            x and spikes [T, B, ...] -> [T, B, ...].
        """
        if self.placement != "escape":
            raise ValueError(
                f"with membrane noise, spikes do not fix the potential: placement must be 'escape', is "
                f"{self.placement!r}"
            )
        dynamics = self._dynamics()
        del dynamics["detach_reset"]
        return firing_probability(
            x, spikes, self.noise, scale=None if self.log_scale is None else self.scale, **dynamics
        )

    def extra_repr(self):
        learnt = "" if self.log_scale is None else f", scale={self.scale.item():.4g} (learnt)"
        return f"{self.noise}{learnt}, {super().extra_repr()}, placement={self.placement!r}"


def noiseless(net):
    """Context manager: every `NoisyLIF` in `net` fires where u > threshold, without any noise."""
    return _switched(net, "noiseless")


def mean_field(net):
    """Context manager: every `NoisyLIF` in `net` puts out its firing probability F(u - threshold).

    No noise is drawn, the reset uses the probability too, and backward is the exact derivative.
    """
    return _switched(net, "mean_field")


@contextlib.contextmanager
def _switched(net, mode):
    neurons = [module for module in net.modules() if isinstance(module, NoisyLIF)]
    before = [neuron.mode for neuron in neurons]
    for neuron in neurons:
        neuron.mode = mode
    try:
        yield net
    finally:
        for neuron, previous in zip(neurons, before):
            neuron.mode = previous

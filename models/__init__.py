"""Noisy spiking neurons and networks. Needs PyTorch alone: install it as `nsnn`, or copy this folder into any project.

Docstrings call this package `models`, its name in the repository.
"""

from . import interop
from .base import SpikingNeuron
from .checkpointing import checkpoint
from .composed import AdaptiveLIF, Recurrent, Synaptic
from .convert import convert, time_first
from .deploy import plain
from .memory import packed_spikes
from .modes import mean_field, noiseless
from .names import find_by_both_names
from .neurons import IF, LIF, NoisyIF, NoisyLIF, NoisyParametricLIF, ParametricLIF
from .noise import Cauchy, Gaussian, Logistic, NoiseLaw, Triangular, Uniform, noise_generator
from .parameters import ArgumentError
from .pretrained import load_pretrained
from .registry import build_model, build_neuron
from .stream import Stream

__version__ = "0.3.0"  # the package `nsnn` is built with it
find_by_both_names()

__all__ = [
    "IF", "LIF", "AdaptiveLIF", "ArgumentError", "Cauchy", "Gaussian", "Logistic", "NoiseLaw", "NoisyIF", "NoisyLIF",
    "NoisyParametricLIF", "ParametricLIF", "Recurrent", "SpikingNeuron", "Stream", "Synaptic", "Triangular", "Uniform",
    "build_model", "build_neuron", "checkpoint", "convert", "interop", "load_pretrained", "mean_field",
    "noise_generator", "noiseless", "packed_spikes", "plain", "time_first",
]  # fmt: skip

"""Losses over time and regularisers, and the tables of their names. Needs PyTorch alone."""

from .losses import LOSSES, TET, PerStepCrossEntropy, RateCrossEntropy, build_loss, mean_over_time
from .regularizers import REGULARIZERS, SRIP, FiringRate, Gramian, Regularizer, build_regularizer

__all__ = [
    "LOSSES", "REGULARIZERS", "SRIP", "TET", "FiringRate", "Gramian", "PerStepCrossEntropy", "RateCrossEntropy",
    "Regularizer", "build_loss", "build_regularizer", "mean_over_time",
]  # fmt: skip

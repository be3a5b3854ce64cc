"""Losses over time and regularisers. Needs PyTorch alone."""

from .losses import TET, PerStepCrossEntropy, RateCrossEntropy
from .regularizers import SRIP, FiringRate, Gramian, Regularizer

__all__ = ["SRIP", "TET", "FiringRate", "Gramian", "PerStepCrossEntropy", "RateCrossEntropy", "Regularizer"]

LOSSES = {"rate": RateCrossEntropy, "per_step": PerStepCrossEntropy, "tet": TET}
REGULARIZERS = {"gram": Gramian, "srip": SRIP, "rate": FiringRate}

"""The measurements of an evaluation, one a file, in the order in which they are made and shown."""

from .attacks import Attacks
from .efficiency import Efficiency
from .measurement import Measurement
from .perturbations import Perturbations
from .pictures import Pictures
from .uncertainty import Uncertainty

__all__ = ["MEASUREMENTS", "Measurement"]

MEASUREMENTS: tuple[Measurement, ...] = (Perturbations(), Attacks(), Uncertainty(), Efficiency(), Pictures())

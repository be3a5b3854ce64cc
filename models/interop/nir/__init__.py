"""Networks in the Neuromorphic Intermediate Representation, NIR (Pedersen et al., Nature Communications 15, 2024).

NIR describes neurons by differential equations; a time step `dt` makes them the equations of this package::

    tau dv/dt = v_leak - v + r I    becomes    v <- v_leak + (1 - dt/tau) (v - v_leak) + r dt/tau I

so that decay = 1 - dt/tau, and the potential here is u = v for decay_input=True (r = 1), else u = v tau / (r dt).
"""

from .reading import read
from .writing import to_nir, write

__all__ = ["read", "to_nir", "write"]

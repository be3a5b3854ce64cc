"""Metrics of spike trains over trials: variability, reliability, distances and decoding.

All functions take responses [R, T, N] to R trials of the same stimulus, in T time bins, of N neurons: spike counts or,
unless a function asks for counts, analogue values. They return one value per neuron, NaN where it is undefined (the
Fano factor of a neuron that never fires). Trials that cannot be used are a UserError.
"""

from .discrimination import decoding_accuracy, van_rossum_distance, victor_purpura_distance
from .signals import (
    cc_max,
    cc_norm,
    noise_correlation,
    noise_power,
    signal_correlation,
    signal_power,
    signal_power_error,
    signal_to_noise,
)
from .variability import fano_factor, mean_fano_factor, psth, reliability, smoothed

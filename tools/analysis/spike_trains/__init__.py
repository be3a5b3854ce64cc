"""How neurons encode a stimulus: variability, reliability, distances and decoding of spike trains over trials.

All functions take spike counts [R, T, N]: R trials of the same stimulus, T time bins, N neurons (numbers or booleans;
analogue responses too where counts are not asked for), and give one value for each neuron. Where a value has no
meaning, as the Fano factor of a neuron that never fires, it is NaN. Trials that cannot be used are a UserError.
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
    total_power,
)
from .variability import counts, fano_factor, mean_fano_factor, psth, reliability, smoothed

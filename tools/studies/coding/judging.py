"""Compare model spike trains with recorded ones."""

import dataclasses

import numpy as np

from tools.analysis import spike_trains
from tools.analysis.spike_trains.arrays import ratio

WINDOW_S = 0.1  # of spike counts
SMOOTHING_S = 0.02  # standard deviation, for rates on a coarser time scale
TAU_S, COST_PER_S = 0.05, 20.0  # of van Rossum's distance, and of Victor and Purpura's
PAIRS = 10  # trials of each for Victor and Purpura's distance, which is slow


@dataclasses.dataclass(frozen=True)
class Judgement:
    """How well the trials of a model match recorded ones, in their mean and in their variability.

    All are means over cells. A mismatch is the absolute difference between model and recording, relative to the
    recording, except for the Fano factor.
    """

    cc_norm: float  # of the mean response, over cells with a signal; 0 for cells whose model has none
    cc_norm_smoothed: float
    fano: float
    fano_recorded: float
    fano_mismatch: float
    signal_power: float
    signal_power_recorded: float
    signal_power_mismatch: float
    noise_power: float
    noise_power_recorded: float
    noise_power_mismatch: float
    reliability: float
    reliability_recorded: float
    distance_mismatch: float  # of van Rossum's distance between two trials
    distance_excess: float  # van Rossum's distance of a model's and a recorded trial / of two recorded ones - 1
    victor_purpura_mismatch: float


def judge(spikes: np.ndarray, recorded: np.ndarray, frame_s: float) -> Judgement:
    """Compare the trials of a model [S, T, N] with recorded ones [R, T, N], in bins of `frame_s` seconds.

    The mean response of the model is over all its trials, its variability over the first R.
    """
    chosen, modelled = has_signal(recorded), has_signal(spikes)
    smooth = spike_trains.smoothed(spikes, SMOOTHING_S / frame_s)
    smooth_recorded = spike_trains.smoothed(recorded, SMOOTHING_S / frame_s)
    cc_norm = np.where(modelled, spike_trains.cc_norm(spikes, recorded), 0.0)[chosen]
    cc_norm_smoothed = np.where(modelled, spike_trains.cc_norm(smooth, smooth_recorded), 0.0)[chosen]
    signal, signal_recorded = spike_trains.signal_power(spikes), spike_trains.signal_power(recorded)

    spikes = spikes[: len(recorded)]
    window = bins_of_window(frame_s)
    fano, fano_recorded = (spike_trains.mean_fano_factor(one, window) for one in (spikes, recorded))
    # A model cell that never fires gets 0, like one without variability; NaN where the recorded cell never fires.
    fano = np.where(np.isnan(fano_recorded), np.nan, np.nan_to_num(fano))
    noise, noise_recorded = spike_trains.noise_power(spikes), spike_trains.noise_power(recorded)
    distance, distance_recorded = (_van_rossum(one, one, frame_s) for one in (spikes, recorded))
    across = _van_rossum(spikes, recorded, frame_s)
    edits, edits_recorded = (_victor_purpura(one[:PAIRS], frame_s) for one in (spikes, recorded))
    values = dict(
        cc_norm=cc_norm,
        cc_norm_smoothed=cc_norm_smoothed,
        fano=fano,
        fano_recorded=fano_recorded,
        fano_mismatch=np.abs(fano - fano_recorded),
        signal_power=signal,
        signal_power_recorded=signal_recorded,
        signal_power_mismatch=np.abs(ratio(signal, signal_recorded) - 1)[chosen],
        noise_power=noise,
        noise_power_recorded=noise_recorded,
        noise_power_mismatch=np.abs(ratio(noise, noise_recorded) - 1),
        reliability=spike_trains.reliability(spikes),
        reliability_recorded=spike_trains.reliability(recorded),
        distance_mismatch=np.abs(ratio(distance, distance_recorded) - 1),
        distance_excess=ratio(across, distance_recorded) - 1,
        victor_purpura_mismatch=np.abs(ratio(edits, edits_recorded) - 1),
    )
    return Judgement(**{key: mean_over_cells(of_cells) for key, of_cells in values.items()})


def has_signal(spikes: np.ndarray) -> np.ndarray:
    """Which cells [N] have a signal power of more than twice its size by chance."""
    # CC_norm of the others would be chance divided by chance.
    return spike_trains.signal_power(spikes) > 2 * spike_trains.signal_power_error(spikes)


def bins_of_window(frame_s: float) -> int:
    """Length in bins of a window of spike counts, at least 1."""
    return max(1, round(WINDOW_S / frame_s))


def _van_rossum(first, second, frame_s):
    """Mean distance, for each cell, of trials in one half of the first from those in the other half of the second."""
    half = len(second) // 2
    return np.sqrt(spike_trains.van_rossum_distance(first[:half], second[half:], TAU_S / frame_s)).mean((0, 1))


def _victor_purpura(trials, frame_s):
    half = len(trials) // 2
    return spike_trains.victor_purpura_distance(trials[:half], trials[half:], COST_PER_S * frame_s).mean((0, 1))


def mean_over_cells(values: np.ndarray) -> float:
    """Mean over the cells with a finite value; NaN, without a warning, if there is none."""
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else float("nan")

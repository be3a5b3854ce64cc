"""Compare model spike trains with recorded ones."""

import dataclasses

import numpy as np

from tools.analysis import spike_trains

WINDOW_S = 0.1  # of spike counts
SMOOTHING_S = 0.02  # standard deviation, where rates are compared on a coarser time scale
TAU_S, COST_PER_S = 0.05, 20.0  # of van Rossum's distance, and of Victor and Purpura's
PAIRS = 10  # trials of either kind for Victor and Purpura's distance, which is slow


@dataclasses.dataclass(frozen=True)
class Judgement:
    """How similar the trials of a model are to recorded ones, in their mean and in their variability.

    All are means over cells. A mismatch is the absolute difference of model and recording; apart from that of the Fano
    factor, it is relative to the recording.
    """

    cc_norm: float  # of the mean response, over the cells that have a signal; 0 where the model has none
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
    distance_mismatch: float  # of van Rossum's distance between two trials of the model, or two recorded ones
    distance_excess: float  # of that between a trial of the model and a recorded one, relative to two recorded ones
    victor_purpura_mismatch: float


def judge(spikes: np.ndarray, recorded: np.ndarray, frame_s: float) -> Judgement:
    """Compare the trials of a model [S, T, N] with recorded ones [R, T, N], in bins of `frame_s` seconds.

    The mean response of the model is that of all its trials, its variability that of the first R.
    """
    chosen, modelled = has_signal(recorded), has_signal(spikes)
    smooth, smooth_recorded = (spike_trains.smoothed(one, SMOOTHING_S / frame_s) for one in (spikes, recorded))
    cc_norm = np.where(modelled, spike_trains.cc_norm(spikes, recorded), 0.0)[chosen]
    cc_norm_smoothed = np.where(modelled, spike_trains.cc_norm(smooth, smooth_recorded), 0.0)[chosen]
    signal, signal_recorded = spike_trains.signal_power(spikes), spike_trains.signal_power(recorded)

    spikes = spikes[: len(recorded)]
    window = bins_of_window(frame_s)
    fano, fano_recorded = (spike_trains.mean_fano_factor(one, window) for one in (spikes, recorded))
    # A model cell that never fires varies as little as one that always does the same; a recorded one has no value.
    fano = np.where(np.isnan(fano_recorded), np.nan, np.nan_to_num(fano))
    noise, noise_recorded = spike_trains.noise_power(spikes), spike_trains.noise_power(recorded)
    distance, distance_recorded = (_van_rossum(one, one, frame_s) for one in (spikes, recorded))
    across = _van_rossum(spikes, recorded, frame_s)
    edits, edits_recorded = (_victor_purpura(one[:PAIRS], frame_s) for one in (spikes, recorded))
    of_cells = dict(
        cc_norm=cc_norm,
        cc_norm_smoothed=cc_norm_smoothed,
        fano=fano,
        fano_recorded=fano_recorded,
        fano_mismatch=np.abs(fano - fano_recorded),
        signal_power=signal,
        signal_power_recorded=signal_recorded,
        signal_power_mismatch=np.abs(_relative(signal, signal_recorded))[chosen],
        noise_power=noise,
        noise_power_recorded=noise_recorded,
        noise_power_mismatch=np.abs(_relative(noise, noise_recorded)),
        reliability=spike_trains.reliability(spikes),
        reliability_recorded=spike_trains.reliability(recorded),
        distance_mismatch=np.abs(_relative(distance, distance_recorded)),
        distance_excess=_relative(across, distance_recorded),
        victor_purpura_mismatch=np.abs(_relative(edits, edits_recorded)),
    )
    return Judgement(**{key: mean_over_cells(values) for key, values in of_cells.items()})


def has_signal(spikes: np.ndarray) -> np.ndarray:
    """Which cells [N] respond to the stimulus, by more than twice the error of the signal power by chance."""
    # CC_norm of the others would be chance divided by chance.
    return spike_trains.signal_power(spikes) > 2 * spike_trains.signal_power_error(spikes)


def bins_of_window(frame_s: float) -> int:
    """Length of a window of spike counts, at least one bin."""
    return max(1, round(WINDOW_S / frame_s))


def _relative(found, recorded):
    """found / recorded - 1; NaN where nothing was recorded, as for a silent cell."""
    return np.divide(found, recorded, out=np.full(found.shape, np.nan), where=recorded > 0) - 1


def _van_rossum(first, second, frame_s):
    """For each cell, the mean distance between a trial of half of the first and one of the other half of the second."""
    half = len(second) // 2
    return np.sqrt(spike_trains.van_rossum_distance(first[:half], second[half:], TAU_S / frame_s)).mean((0, 1))


def _victor_purpura(trials, frame_s):
    half = len(trials) // 2
    return spike_trains.victor_purpura_distance(trials[:half], trials[half:], COST_PER_S * frame_s).mean((0, 1))


def mean_over_cells(values: np.ndarray) -> float:
    """Mean over the cells that have a value; NaN, without a warning, where none has."""
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else float("nan")

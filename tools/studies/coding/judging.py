"""How like recorded trials the trials of a model are."""

import functools

import numpy as np

from tools.analysis import spike_trains

WINDOW_S = 0.1  # of spike counts
SMOOTHING_S = 0.02  # where rates are compared on a coarser time scale: standard deviation
TAU_S, COST_PER_S = 0.05, 20.0  # of van Rossum's distance, and of Victor and Purpura's
PAIRS = 10  # trials of either kind that Victor and Purpura's distance takes, which is slow


def judge(spikes, recorded, frame_s):
    """How like recorded trials the trials of a model are, in their mean and in their variability.

    Args:
        spikes: of the model, [S, T, N]; all say what its mean response is, and as many as were recorded are compared.
        recorded: [R, T, N].
        frame_s: seconds of a bin.

    Returns:
        Means over cells: "cc_norm" and "cc_norm_smoothed" of the mean response, over the cells that have a signal, 0
        where the model has none; "fano", "signal_power", "noise_power", "reliability" of the model beside
        "..._recorded"; mismatches "fano_mismatch" (mean absolute difference over cells), and relative to what was
        recorded "signal_power_mismatch", "noise_power_mismatch", "distance_mismatch" (van Rossum, between two trials
        of the model against two recorded ones) and "victor_purpura_mismatch"; "distance_excess": between a trial of
        the model and a recorded one, relative to two recorded ones.
    """
    count = len(recorded)
    signal, signal_recorded = spike_trains.signal_power(spikes), spike_trains.signal_power(recorded)
    smooth = functools.partial(spike_trains.smoothed, smoothing_bins=SMOOTHING_S / frame_s)
    chosen, modelled = has_signal(recorded), has_signal(spikes)
    cc_norm = np.where(modelled, spike_trains.cc_norm(spikes, recorded), 0.0)[chosen]
    cc_norm_smoothed = np.where(modelled, spike_trains.cc_norm(smooth(spikes), smooth(recorded)), 0.0)[chosen]
    spikes = spikes[:count]
    window = bins_of_window(frame_s)
    fano, fano_recorded = (spike_trains.mean_fano_factor(one, window) for one in (spikes, recorded))
    # A model cell that never fires varies as little as one that always does the same; a recorded one has no value.
    fano = np.where(np.isnan(fano_recorded), np.nan, np.nan_to_num(fano))
    noise, noise_recorded = (spike_trains.noise_power(one) for one in (spikes, recorded))
    van_rossum = functools.partial(_van_rossum, tau_bins=TAU_S / frame_s)
    victor = functools.partial(spike_trains.victor_purpura_distance, cost_per_bin=COST_PER_S * frame_s)
    within, within_recorded = _between_halves(van_rossum, spikes), _between_halves(van_rossum, recorded)
    edits, edits_recorded = _between_halves(victor, spikes[:PAIRS]), _between_halves(victor, recorded[:PAIRS])
    across = van_rossum(spikes[: count // 2], recorded[count // 2 :]).mean((0, 1))
    return {
        "cc_norm": mean_over_cells(cc_norm),
        "cc_norm_smoothed": mean_over_cells(cc_norm_smoothed),
        "fano": mean_over_cells(fano),
        "fano_recorded": mean_over_cells(fano_recorded),
        "fano_mismatch": mean_over_cells(np.abs(fano - fano_recorded)),
        "signal_power": mean_over_cells(signal),
        "signal_power_recorded": mean_over_cells(signal_recorded),
        "signal_power_mismatch": mean_over_cells(np.abs(_relative(signal, signal_recorded))[chosen]),
        "noise_power": mean_over_cells(noise),
        "noise_power_recorded": mean_over_cells(noise_recorded),
        "noise_power_mismatch": mean_over_cells(np.abs(_relative(noise, noise_recorded))),
        "reliability": mean_over_cells(spike_trains.reliability(spikes)),
        "reliability_recorded": mean_over_cells(spike_trains.reliability(recorded)),
        "distance_mismatch": mean_over_cells(np.abs(_relative(within, within_recorded))),
        "distance_excess": mean_over_cells(_relative(across, within_recorded)),
        "victor_purpura_mismatch": mean_over_cells(np.abs(_relative(edits, edits_recorded))),
    }


def has_signal(spikes):
    """Which cells [N] respond to the stimulus: those with a signal power of more than twice what chance makes.

    CC_norm of others would be chance over chance.
    """
    return spike_trains.signal_power(spikes) > 2 * spike_trains.signal_power_error(spikes)


def bins_of_window(frame_s):
    """Length of a window of spike counts, at least one bin."""
    return max(1, round(WINDOW_S / frame_s))


def _relative(found, recorded):
    """By what share something is larger than what was recorded; NaN where that is 0, as for a silent cell."""
    return np.divide(found, recorded, out=np.full(found.shape, np.nan), where=recorded > 0) - 1


def _between_halves(distance, trials):
    """Mean distance of a trial of the first half to one of the second, for each cell."""
    half = len(trials) // 2
    return distance(trials[:half], trials[half:]).mean((0, 1))


def _van_rossum(first, second, tau_bins):
    return np.sqrt(spike_trains.van_rossum_distance(first, second, tau_bins))


def mean_over_cells(values):
    """Mean over the cells that have a value; NaN, without a warning, where none has."""
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else float("nan")

"""How like recorded trials the trials of a model are."""

import functools

import numpy as np

from .. import coding

WINDOW = 10  # bins: 100 ms, of spike counts
SMOOTHING = 2.0  # bins, where rates are compared on a coarser time scale
TAU, COST = 5.0, 0.2  # of van Rossum's distance in bins, of Victor and Purpura's per bin


def judge(spikes, recorded, rate):
    """How like recorded trials the trials of a model are, in their mean and in their variability.

    Args:
        spikes: of the model, [S, T, N]; as many of its trials as were recorded are compared.
        recorded: [R, T, N].
        rate: the model's mean response [T, N].

    Returns:
        Means over cells: "cc_norm" and "cc_norm_smoothed" of the rate; "fano", "noise_power", "reliability" of the
        model beside "..._recorded"; mismatches "fano_mismatch" (mean absolute difference over cells), and relative to
        what was recorded "noise_power_mismatch", "distance_mismatch" (van Rossum, between two trials of the model
        against two recorded ones) and "victor_purpura_mismatch"; "distance_excess": between a trial of the model and
        a recorded one, relative to two recorded ones.
    """
    count = len(recorded)
    spikes = spikes[:count]
    smooth = functools.partial(coding.smoothed, smoothing_bins=SMOOTHING)
    fano, fano_recorded = (coding.mean_fano_factor(one, WINDOW) for one in (spikes, recorded))
    fano = np.nan_to_num(fano)  # a model cell that never fires varies as little as one that always does the same
    noise, noise_recorded = (coding.noise_power(one) for one in (spikes, recorded))
    victor = functools.partial(coding.victor_purpura_distance, cost_per_bin=COST)
    within, within_recorded = _between_halves(_van_rossum, spikes), _between_halves(_van_rossum, recorded)
    edits, edits_recorded = _between_halves(victor, spikes[:10]), _between_halves(victor, recorded[:10])
    across = _van_rossum(spikes[: count // 2], recorded[count // 2 :]).mean((0, 1))
    return {
        "cc_norm": mean_over_cells(coding.cc_norm(rate, recorded)),
        "cc_norm_smoothed": mean_over_cells(coding.cc_norm(smooth(rate), smooth(recorded))),
        "fano": mean_over_cells(fano),
        "fano_recorded": mean_over_cells(fano_recorded),
        "fano_mismatch": mean_over_cells(np.abs(fano - fano_recorded)),
        "noise_power": mean_over_cells(noise),
        "noise_power_recorded": mean_over_cells(noise_recorded),
        "noise_power_mismatch": mean_over_cells(np.abs(_relative(noise, noise_recorded))),
        "reliability": mean_over_cells(coding.reliability(spikes)),
        "reliability_recorded": mean_over_cells(coding.reliability(recorded)),
        "distance_mismatch": mean_over_cells(np.abs(_relative(within, within_recorded))),
        "distance_excess": mean_over_cells(_relative(across, within_recorded)),
        "victor_purpura_mismatch": mean_over_cells(np.abs(_relative(edits, edits_recorded))),
    }


def _relative(found, recorded):
    """By what share something is larger than what was recorded; NaN where that is 0, as for a silent cell."""
    return np.divide(found, recorded, out=np.full(found.shape, np.nan), where=recorded > 0) - 1


def _between_halves(distance, trials):
    """Mean distance of a trial of the first half to one of the second, for each cell."""
    half = len(trials) // 2
    return distance(trials[:half], trials[half:]).mean((0, 1))


def _van_rossum(first, second):
    return np.sqrt(coding.van_rossum_distance(first, second, TAU))


def mean_over_cells(values):
    """Mean over the cells that have a value; NaN, without a warning, where none has."""
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else float("nan")

"""Metrics of neural codes against generators of known truth, closed forms, and where it has the same, elephant."""

import itertools

import numpy as np
import pytest
from scipy import stats

from tests.chance import ERROR, deviations
from tests.conftest import first_are_fast
from tools.analysis import spike_trains
from tools.analysis.spike_trains import arrays
from tools.errors import UserError
from tools.studies.coding.cells import LIFCells, LNCells


def rates(bins=400, cells=3, seed=0):
    """Probabilities that vary smoothly in time, each cell in its own way: [T, N]."""
    t = np.arange(bins)[:, None]
    phase = np.random.default_rng(seed).uniform(0, 2 * np.pi, cells)
    return 0.15 + 0.12 * np.sin(2 * np.pi * t / (31 + 9 * np.arange(cells)) + phase)


def bernoulli(trials=300, seed=1, **options):
    p = rates(**options)
    return p, (np.random.default_rng(seed).random((trials, *p.shape)) < p).astype(np.uint8)


@pytest.fixture(scope="module")
def elephant():
    """Modules of elephant, and a function that makes its trains of the bins [T] of a spike train."""
    neo = pytest.importorskip("neo")
    quantities = pytest.importorskip("quantities")
    statistics = pytest.importorskip("elephant.statistics")
    dissimilarity = pytest.importorskip("elephant.spike_train_dissimilarity")

    def train(spikes):
        times = np.repeat(np.arange(len(spikes)), spikes.astype(int))
        return neo.SpikeTrain(times, units="s", t_start=0, t_stop=len(spikes))

    return statistics, dissimilarity, quantities, train


def test_psth_is_the_rate_in_hertz():
    p, spikes = bernoulli(4000)
    error = 100 * np.sqrt(p * (1 - p) / 4000)
    assert (np.abs(spike_trains.psth(spikes, bin_s=0.01) - 100 * p) < deviations(p.size) * error).all()
    assert spike_trains.psth(spikes, smoothing_bins=2.0).std() < spike_trains.psth(spikes).std()
    assert spike_trains.smoothed(np.ones((5, 2)), 3.0) == pytest.approx(1)  # at the ends too


def test_variances_of_two_trials_by_hand():
    counts = np.array([[0, 1, 3, 2], [2, 1, 3, 2]])[..., None]  # in windows of two: 1 and 5, 3 and 5
    assert spike_trains.fano_factor(counts, 2).tolist() == [[1.0], [0.0]]  # 2 / 2 and 0 / 5
    assert spike_trains.mean_fano_factor(counts, 2).tolist() == [1 / 3.5]
    trials = np.array([[0, 4], [2, 2]])[..., None]  # their mean has the variance 2, their difference 4
    assert spike_trains.noise_power(trials).tolist() == [4.0] and spike_trains.signal_power(trials).tolist() == [0.0]
    trials = np.array([[0, 4], [2, 6]])[..., None]
    assert spike_trains.noise_power(trials).tolist() == [0.0] and spike_trains.signal_power(trials).tolist() == [8.0]


def test_fano_factors_of_bernoulli_poisson_and_certain_spikes():
    p, spikes = bernoulli(4000)
    windows = p.reshape(40, 10, 3)
    expected = (windows * (1 - windows)).sum(1) / windows.sum(1)
    error = deviations(200) * (2 / 4000) ** 0.5  # that of a Fano factor of 4,000 trials; the means have a sixth of it
    assert spike_trains.fano_factor(spikes, 10) == pytest.approx(expected, rel=error)
    assert spike_trains.mean_fano_factor(spikes, 10) == pytest.approx((p * (1 - p)).sum(0) / p.sum(0), rel=error / 6)
    poisson = np.random.default_rng(0).poisson(p, (4000, *p.shape))
    assert spike_trains.mean_fano_factor(poisson, 10) == pytest.approx(1, abs=error / 6)
    assert (spike_trains.mean_fano_factor(spikes[:1].repeat(5, 0), 10) == 0).all()
    assert np.isnan(spike_trains.fano_factor(np.zeros((5, 20, 1)), 10)).all()


def test_the_fano_factor_is_elephants(elephant):
    statistics, _, _, train = elephant
    _, spikes = bernoulli(20, cells=2)
    for cell in range(2):
        theirs = statistics.fanofactor([train(trial) for trial in spikes[:, :, cell]])
        ours = spike_trains.fano_factor(spikes, spikes.shape[1])[0, cell]
        assert ours * 19 / 20 == pytest.approx(theirs)  # elephant divides the variance by the number of trials


def test_powers_are_those_of_signal_and_noise():
    p, _ = bernoulli()
    found = np.array(
        [[spike_trains.signal_power(s), spike_trains.noise_power(s)] for s in (bernoulli(20, i)[1] for i in range(60))]
    )
    error = found.std(0) / np.sqrt(60)
    expected = np.stack([p.var(0, ddof=1), (p * (1 - p)).mean(0)])
    assert (np.abs(found.mean(0) - expected) < deviations(expected.size, samples=60) * error).all()  # unbiased
    _, spikes = bernoulli(20)
    total = spikes.var(1, ddof=1).mean(0)
    assert total == pytest.approx(spike_trains.signal_power(spikes) + spike_trains.noise_power(spikes))
    assert spike_trains.signal_to_noise(spikes) == pytest.approx(
        spike_trains.signal_power(spikes) / spike_trains.noise_power(spikes)
    )
    assert np.isinf(spike_trains.signal_to_noise(spikes[:1].repeat(4, 0))).all()


def test_reliability_is_the_mean_correlation_of_pairs():
    _, spikes = bernoulli(7, cells=2)
    for width in (0.0, 2.0):
        trials = spike_trains.smoothed(spikes, width)
        pairs = [
            [np.corrcoef(trials[i, :, cell], trials[j, :, cell])[0, 1] for i, j in itertools.combinations(range(7), 2)]
            for cell in range(2)
        ]
        assert spike_trains.reliability(spikes, width) == pytest.approx(np.mean(pairs, axis=1))
    assert spike_trains.reliability(spikes[:1].repeat(3, 0)) == pytest.approx(1)
    silent = spikes.copy()
    silent[2:4, :, 0] = 0
    assert spike_trains.reliability(silent)[0] == pytest.approx(spike_trains.reliability(spikes[[0, 1, 4, 5, 6]])[0])
    assert np.isnan(spike_trains.reliability(np.zeros((3, 9, 1)))).all()


def test_cc_norm_does_not_depend_on_the_noise_and_is_1_for_the_truth():
    p, _ = bernoulli()
    # Of a root in the divisor, which with few trials is biased: by 5 %. The standard errors are 0.7 % and 0.2 %.
    for trials, draws, error in ((5, 1000, 0.1), (50, 60, 0.02)):
        found = [spike_trains.cc_norm(p, bernoulli(trials, seed)[1]) for seed in range(draws)]
        assert np.nanmean(found, 0) == pytest.approx(1, abs=error)  # NaN where few trials show no signal
    half = p + 0.7 * p.std(0) * np.random.default_rng(3).standard_normal(p.shape)
    expected = [np.corrcoef(p[:, cell], half[:, cell])[0, 1] for cell in range(3)]
    assert np.mean([spike_trains.cc_norm(half, bernoulli(50, seed)[1]) for seed in range(60)], 0) == pytest.approx(
        expected,
        abs=0.03,  # the standard error is 0.3 %
    )
    spikes = bernoulli(50)[1]
    mean = spikes.mean(0)
    absolute = [np.corrcoef(half[:, cell], mean[:, cell])[0, 1] for cell in range(3)]
    assert spike_trains.cc_norm(half, spikes) == pytest.approx(
        absolute / spike_trains.cc_max(spikes)
    )  # as it is defined
    assert (spike_trains.cc_norm(np.ones_like(p), spikes) == 0).all()
    assert np.isnan(spike_trains.cc_norm(p, np.zeros_like(spikes))).all()


def test_cc_norm_of_few_trials_of_a_model_is_that_of_its_rate():
    p, recorded = bernoulli(50)
    mixed = 0.5 * p + 0.5 * p[:, ::-1]  # a model that is neither right nor wrong
    draws = [np.random.default_rng(seed).random((40, *p.shape)) < mixed for seed in range(200)]
    found = np.mean([spike_trains.cc_norm(trials, recorded) for trials in draws], 0)
    expected = spike_trains.cc_norm(mixed, recorded)
    assert (expected[[0, 2]] < 0.95).all() and found == pytest.approx(expected, abs=0.04)  # standard error 0.5 %
    uncorrected = np.mean([spike_trains.cc_norm(trials.mean(0), recorded) for trials in draws], 0)
    assert (uncorrected < expected - 0.05).all()
    assert (spike_trains.cc_norm(np.zeros((3, *p.shape)), recorded) == 0).all()


@pytest.mark.parametrize("smoothing_bins", first_are_fast([10.0, 0.0]))
def test_the_error_of_the_signal_power_is_its_spread(smoothing_bins):
    noise = np.random.default_rng(0).standard_normal((400, 3, 500, 1))  # no signal: recordings differ by noise alone
    noise = spike_trains.smoothed(noise, smoothing_bins)
    found = np.array([spike_trains.signal_power(one)[0] for one in noise])
    errors = np.array([spike_trains.signal_power_error(one)[0] for one in noise])
    assert abs(found.mean()) < deviations(3) * found.std() / np.sqrt(400)
    assert np.sqrt((errors**2).mean()) == pytest.approx(found.std(), rel=0.3)  # the ratio's standard error is 5 %
    assert stats.binom.sf((found > 2 * errors).sum() - 1, 400, 0.05) > ERROR / 3  # in 3.5 and 4.5 % of many


def test_two_trials_are_enough():
    trials = np.random.default_rng(0).standard_normal((2, 50, 1))
    for metric in (spike_trains.signal_power, spike_trains.signal_power_error, spike_trains.noise_power):
        assert np.isfinite(metric(trials)).all()
    for metric in (spike_trains.cc_max, spike_trains.reliability, spike_trains.signal_correlation):
        assert metric(np.stack([trials[0], trials[0]])) == pytest.approx(1)
    assert spike_trains.psth(trials[:1]) == pytest.approx(trials[0])


@pytest.mark.parametrize(
    "metric",
    [
        spike_trains.signal_power,
        spike_trains.signal_power_error,
        spike_trains.noise_power,
        spike_trains.signal_to_noise,
        spike_trains.cc_max,
        spike_trains.signal_correlation,
        spike_trains.reliability,
        lambda responses: spike_trains.cc_norm(np.arange(2.0)[: responses.shape[1], None], responses),
    ],
)
def test_no_fewer_than_two_trials_of_two_bins_have_a_signal_and_noise(metric):
    trials = np.array([[0.0, 1.0], [0.2, 1.1]])[..., None]
    assert np.isfinite(metric(trials)).all()
    for fewer in (trials[:1], trials[:, :1]):
        with pytest.raises(UserError, match="at least 2"):
            metric(fewer)


def test_noise_correlations_and_fano_factors_need_two_trials_of_one_bin():
    counts = np.array([[[1, 2]], [[3, 4]]])
    assert spike_trains.noise_correlation(counts) == pytest.approx(1)
    assert spike_trains.noise_correlation(counts) == pytest.approx(spike_trains.noise_correlation(counts, window=1))
    assert np.isfinite(spike_trains.fano_factor(counts, 1)).all()
    for metric in (spike_trains.noise_correlation, lambda counts: spike_trains.fano_factor(counts, 1)):
        with pytest.raises(UserError, match="at least 2 trials"):
            metric(counts[:1])


def test_shifts_repeat_with_the_seed_which_is_0_unless_told_otherwise():
    trials = np.random.default_rng(0).standard_normal((3, 50, 1))
    error = spike_trains.signal_power_error(trials)
    assert error == spike_trains.signal_power_error(trials, shifts=20, seed=0)
    assert error != spike_trains.signal_power_error(trials, seed=1) and error != spike_trains.signal_power_error(
        trials, 19
    )


def test_a_signal_of_few_moments_is_more_than_chance():
    signal = np.zeros((1, 500, 1))
    signal[:, 200:206] = 1.0  # all of it in one place: stretches of time differ much, trials do not
    responses = signal + 0.1 * np.random.default_rng(0).standard_normal((4, 500, 1))
    assert spike_trains.signal_power(responses) > 4 * spike_trains.signal_power_error(responses)  # 35 +- 7 times


def test_metrics_do_not_depend_on_the_unit_of_responses():
    random = np.random.default_rng(0)
    responses = np.sin(np.arange(60) / 5)[:, None] + random.standard_normal((8, 60, 2))
    for metric in (
        spike_trains.reliability,
        spike_trains.signal_correlation,
        spike_trains.noise_correlation,
        spike_trains.signal_to_noise,
    ):
        assert metric(1e-9 * responses) == pytest.approx(metric(responses), rel=1e-6)
    assert spike_trains.cc_norm(1e-9 * responses[0], responses) == pytest.approx(
        spike_trains.cc_norm(responses[0], responses)
    )
    constant = np.full((4, 60, 1), 0.1)
    assert (
        np.isnan(spike_trains.reliability(constant)).all() and np.isnan(spike_trains.signal_correlation(constant)).all()
    )
    assert (spike_trains.cc_norm(spike_trains.smoothed(constant[0], 2.0), responses[..., :1]) == 0).all()


def test_signal_and_noise_correlations_are_told_apart():
    random = np.random.default_rng(0)
    shared = random.standard_normal((400, 300, 1))  # noise of a trial that both cells have
    signal = np.sin(np.arange(300) / 9)[:, None] * [1.0, 1.0, -1.0]
    responses = signal + np.sqrt(0.3) * shared + np.sqrt(0.7) * random.standard_normal((400, 300, 3))
    expected = np.array([[1, 1, -1], [1, 1, -1], [-1, -1, 1]])
    assert spike_trains.signal_correlation(responses) == pytest.approx(expected, abs=0.03)
    few = np.mean([spike_trains.signal_correlation(responses[k : k + 4, :, 1:]) for k in range(0, 400, 4)], 0)
    assert few[0, 1] == pytest.approx(-1, abs=0.05)  # what noise they share does not enter, with few trials either
    noise = spike_trains.noise_correlation(responses)
    assert noise[~np.eye(3, dtype=bool)] == pytest.approx(0.3, abs=0.02)
    assert spike_trains.noise_correlation(responses, 10)[0, 1] == pytest.approx(0.3, abs=0.05)
    assert np.diag(noise) == pytest.approx(1)


def brute_van_rossum(x, y, tau):
    """The integral of the definition, in closed form between the bins."""
    fine = np.linspace(0, len(x) + 40 * tau, 400_001)
    trace = sum(
        (a - b) * np.where(fine >= t, np.exp(-(fine - t) / tau), 0) for t, (a, b) in enumerate(zip(x, y)) if a != b
    )
    return np.trapezoid(np.square(trace), fine) / tau


def test_van_rossum_is_its_integral():
    random = np.random.default_rng(0)
    x, y = random.poisson(0.3, (2, 30, 1)), random.poisson(0.3, (3, 30, 1))
    found = spike_trains.van_rossum_distance(x, y, 4.0)
    assert found.shape == (2, 3, 1)
    for i, j in itertools.product(range(2), range(3)):
        assert found[i, j, 0] == pytest.approx(brute_van_rossum(x[i, :, 0], y[j, :, 0], 4.0), rel=1e-3)
    one = np.zeros((1, 30, 1))
    one[0, 3] = 1
    assert spike_trains.van_rossum_distance(one, 0 * one, 4.0).item() == pytest.approx(0.5)
    assert spike_trains.van_rossum_distance(x, x, 4.0)[0, 0, 0] == pytest.approx(0)


def test_the_distances_are_elephants(elephant):
    _, dissimilarity, quantities, train = elephant
    spikes = np.random.default_rng(0).poisson(0.2, (5, 40, 1))
    trains = [train(trial) for trial in spikes[:, :, 0]]
    for q in (0.0, 0.15, 0.7, 3.0):
        theirs = dissimilarity.victor_purpura_distance(trains, q / quantities.s)
        assert spike_trains.victor_purpura_distance(spikes, spikes, q)[:, :, 0] == pytest.approx(theirs)
    theirs = dissimilarity.van_rossum_distance(trains, 5 * quantities.s)  # twice our square, and its root
    assert np.sqrt(2 * spike_trains.van_rossum_distance(spikes, spikes, 5.0)[:, :, 0]) == pytest.approx(
        theirs, abs=1e-6
    )


def test_victor_purpura_in_its_limits():
    _, spikes = bernoulli(6, cells=2)
    x, y = spikes[:3], spikes[3:].copy()
    y[0] = 0
    numbers = np.abs(x.sum(1, dtype=int)[:, None] - y.sum(1, dtype=int))
    assert (spike_trains.victor_purpura_distance(x, y, 0.0) == numbers).all()
    different = (x[:, None] != y).sum(2)
    assert (spike_trains.victor_purpura_distance(x, y, 2.0) == different).all()
    assert (spike_trains.victor_purpura_distance(x, y, np.inf) == different).all()
    middle = spike_trains.victor_purpura_distance(x, y, 0.3)
    assert (numbers <= middle).all() and (middle <= different).all()
    assert middle == pytest.approx(spike_trains.victor_purpura_distance(y, x, 0.3).transpose(1, 0, 2))


def test_the_distance_of_independent_trials_is_known():
    p, spikes = bernoulli(200)
    noise = (p * (1 - p)).sum(0)
    assert spike_trains.van_rossum_distance(spikes[:100], spikes[100:], 6.0).mean((0, 1)) == pytest.approx(
        noise,
        rel=0.08,  # the standard errors are 1.3 %
    )
    assert spike_trains.victor_purpura_distance(spikes[:40], spikes[40:80], 2.0).mean((0, 1)) == pytest.approx(
        2 * noise, rel=0.08
    )


def test_decoding_reaches_the_bayes_optimum():
    p = np.array([[0.1, 0.5], [0.5, 0.1], [0.3, 0.3]])  # 3 stimuli of one bin, 2 cells
    spikes = (np.random.default_rng(0).random((4000, 3, 2)) < p).astype(np.uint8)
    patterns = np.array(list(itertools.product((0, 1), repeat=2)))
    likelihood = np.where(patterns[:, None] == 1, p, 1 - p).prod(2)  # [patterns, stimuli]
    best = likelihood.max(1).sum() / 3
    found = spike_trains.decoding_accuracy(spikes, 1, [1, 100], repeats=2500)
    assert found[0] == pytest.approx(best, abs=0.045)  # 6 standard errors
    assert found[1] > 0.99


def test_decoding_is_the_mean_over_20_splits_unless_told_otherwise():
    _, spikes = bernoulli(8, cells=2)
    spikes = np.minimum(spikes, 1)
    found = [
        spike_trains.decoding_accuracy(spikes, 5, [1], **options) for options in ({}, {"repeats": 20}, {"seed": 0})
    ]
    assert found[0] == found[1] == found[2] != spike_trains.decoding_accuracy(spikes, 5, [1], repeats=21)


def test_decoding_has_jeffreys_prior():
    """Of one trial, p is 1/4 or 3/4: [1, 0, 1] is as likely after [1, 1, 0] as after [0, 0, 0]."""
    spikes = np.array([[1, 1, 0, 0, 0, 0], [1, 0, 1, 0, 0, 0]])[..., None]
    assert spike_trains.decoding_accuracy(spikes, 3, [1]) == pytest.approx((1 / 2 + 1) / 2)


def test_decoding_at_chance_and_ties():
    silent = np.zeros((10, 12, 2), np.uint8)
    assert spike_trains.decoding_accuracy(silent, 3, [1, 5]) == pytest.approx(1 / 4)
    assert spike_trains.decoding_accuracy(silent + np.eye(12, 2, dtype=np.uint8), 6, [1]) == pytest.approx(1)
    random = (np.random.default_rng(0).random((40, 20, 1)) < 0.3).astype(np.uint8)
    found = spike_trains.decoding_accuracy(random, 1, [1], repeats=200)[0]
    assert found == pytest.approx(1 / 20, abs=0.03)  # 10 standard errors


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: spike_trains.fano_factor(s[:1], 5), "at least 2 trials"),
        (lambda s: spike_trains.fano_factor(s, 0), "a window must have"),
        (lambda s: spike_trains.fano_factor(s, 999), "a window must have"),
        (lambda s: spike_trains.signal_power(s[0]), r"\[trials, bins, neurons\], got shape \[20, 2\]"),
        (lambda s: spike_trains.reliability(s * np.nan), "finite"),
        (lambda s: spike_trains.reliability(s, -1.0), "smoothing_bins"),
        (lambda s: spike_trains.cc_norm(s[0, :5], s), "expected a prediction"),
        (lambda s: spike_trains.cc_norm(s[:, :5], s), "expected a prediction"),
        (lambda s: spike_trains.cc_norm(s[None], s), "expected a prediction"),
        (lambda s: spike_trains.signal_power(s[:, :1]), "at least 2 bins, got 1"),
        (lambda s: spike_trains.signal_power_error(s[:1]), "at least 2 trials"),
        (lambda s: spike_trains.psth(s, bin_s=0.0), "bin_s must be positive"),
        (lambda s: spike_trains.fano_factor(s, 2.5), "a window must have"),
        (lambda s: spike_trains.fano_factor(-s, 5), "at least 0"),
        (lambda s: spike_trains.decoding_accuracy(s, 5, [1], repeats=0), "repeats must be at least 1"),
        (lambda s: spike_trains.van_rossum_distance(s, s[:, :5], 1.0), "same bins and neurons"),
        (lambda s: spike_trains.van_rossum_distance(s, s, 0.0), "tau_bins"),
        (lambda s: spike_trains.victor_purpura_distance(s + 0.5, s, 1.0), "whole numbers"),
        (lambda s: spike_trains.victor_purpura_distance(s, -s, 1.0), "whole numbers"),
        (lambda s: spike_trains.victor_purpura_distance(s, s, -1.0), "cost_per_bin"),
        (lambda s: spike_trains.decoding_accuracy(2 * s, 5, [1]), "0 or 1"),
        (lambda s: spike_trains.decoding_accuracy(s, 5, [4]), "1 to 3 can be pooled"),
        (lambda s: spike_trains.decoding_accuracy(s, 5, [0]), "1 to 3 can be pooled"),
        (lambda s: spike_trains.decoding_accuracy(s[:1], 5, [1]), "at least 2 trials"),
        (lambda s: spike_trains.signal_power(s[:, :0]), r"\[trials, bins, neurons\], got shape \[6, 0, 2\]"),
        (lambda s: spike_trains.psth(s[:0]), r"\[trials, bins, neurons\], got shape \[0, 20, 2\]"),
        (lambda s: spike_trains.psth(s, bin_s=np.inf), "bin_s must be positive"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    spikes = np.ones((6, 20, 2))
    with pytest.raises(ValueError, match=message):
        call(spikes)


def test_noisy_cells_repeat_with_their_seed_and_vary_with_their_noise():
    drive = np.random.default_rng(0).standard_normal((300, 4))
    for cells in (LNCells(drive), LNCells(drive, poisson=True), LIFCells(drive)):
        first = cells.sample(300, 5)
        assert first.shape == (300, 300, 4) and (first == cells.sample(300, 5)).all()
        assert (first != cells.sample(300, 6)).any()
        rates = cells.sample(4000, 0).mean(0) if isinstance(cells, LIFCells) else cells.rates()
        error = np.sqrt(rates * (1 if getattr(cells, "poisson", False) else 1 - rates) / 300).max()
        assert first.mean(0) == pytest.approx(rates, abs=deviations(3 * rates.size) * error)
        assert spike_trains.cc_norm(rates, first) == pytest.approx(1, abs=0.02)


def test_a_quotient_is_nan_where_the_divisor_is_zero_and_only_there():
    with np.errstate(all="raise"):
        found = arrays.ratio([1.0, 3.0, 0.0, 2.0], [4.0, 1.0, 0.0, 0.0])
    np.testing.assert_array_equal(found, [0.25, 3.0, np.nan, np.nan])

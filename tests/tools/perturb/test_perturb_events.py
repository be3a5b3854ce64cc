"""Perturbed streams lose, gain and move as many events as stated, where stated, and stay in order."""

import numpy as np
import pytest

from tests.chance import deviations
from tools.data.events import EVENT
from tools.perturb import events as perturb

SIZE = (40, 30)  # width, height: different, so that a swap of axes shows
PIXELS = 40 * 30
START, DURATION = 10**9, 2_000_000  # recordings need not begin at 0
DRAWS = 50
STRENGTHS = {
    perturb.drop_random: 0.3,
    perturb.drop_time: 0.3,
    perturb.drop_area: 0.3,
    perturb.background_activity: 2.0,
    perturb.hot_pixels: 0.05,
    perturb.dead_pixels: 0.2,
    perturb.jitter_time: 5000.0,
    perturb.flip_polarity: 0.3,
}
every = pytest.mark.parametrize("apply", STRENGTHS, ids=lambda apply: apply.__name__)


def generator(seed=0):
    return np.random.default_rng(seed)


def stream(count=5000, seed=9):
    """Events uniform in space and time, from START to START + DURATION, three of four ON."""
    random = generator(seed)
    events = np.zeros(count, EVENT)
    events["x"] = random.integers(0, SIZE[0], count)
    events["y"] = random.integers(0, SIZE[1], count)
    events["t"] = START + np.sort(random.integers(0, DURATION, count))
    events["t"][[0, -1]] = START, START + DURATION
    events["p"] = random.random(count) < 0.75
    return events


def draws(apply, events, strength=None):
    """The perturbed stream of each of 50 seeds."""
    strength = STRENGTHS[apply] if strength is None else strength
    return [apply(events, strength, generator(seed), SIZE) for seed in range(DRAWS)]


def missing(events, perturbed):
    """Which of `events`, whose times must all differ, are not in `perturbed`."""
    return ~np.isin(events["t"], perturbed["t"])


def distinct(count=5000, seed=9):
    """A stream in which no two events have the same time."""
    events = stream(count, seed)
    events["t"] = START + np.arange(count) * (DURATION // (count - 1))
    return events


def added(events, perturbed):
    """The events of `perturbed` that are new, where all of `events` are in the left column."""
    assert (events["x"] == 0).all()
    return perturbed[perturbed["x"] > 0]


FEW = deviations(comparisons=10)  # of one test: none compares more


def close(values, expected, deviation):
    """The mean of independent `values` is what it should be, up to chance."""
    assert np.mean(values) == pytest.approx(expected, abs=FEW * deviation / len(values) ** 0.5)


@every
def test_a_perturbed_stream_is_new_ordered_and_repeats_with_the_seed(apply):
    events, strength = stream(), STRENGTHS[apply]
    before = events.copy()
    perturbed = apply(events, strength, generator(), SIZE)
    assert np.array_equal(events, before)
    assert perturbed.dtype == EVENT
    assert (np.diff(perturbed["t"]) >= 0).all()
    assert perturbed["t"][0] >= START and perturbed["t"][-1] <= START + DURATION
    assert perturbed["x"].max() < SIZE[0] and perturbed["y"].max() < SIZE[1]
    assert not np.array_equal(perturbed, events)
    assert np.array_equal(perturbed, apply(events, strength, generator(), SIZE))
    assert not np.array_equal(perturbed, apply(events, strength, generator(1), SIZE))


@every
def test_strength_zero_returns_an_equal_copy(apply):
    events = stream()
    events["t"] = START + (events["t"] - START) // 1000  # many events of one time: their order must stay
    same = apply(events, 0, generator(), SIZE)
    assert np.array_equal(same, events)
    assert not np.shares_memory(same, events)


@every
@pytest.mark.parametrize("strength", [0, None, 1])
def test_short_streams(apply, strength):
    strength = STRENGTHS[apply] if strength is None else strength
    empty = apply(stream(2)[:0], strength, generator(), SIZE)
    assert len(empty) == 0 and empty.dtype == EVENT
    single = apply(stream(2)[:1], strength, generator(), SIZE)
    assert len(single) <= 1 and single.dtype == EVENT
    if apply in (perturb.background_activity, perturb.hot_pixels, perturb.drop_time, perturb.jitter_time):
        assert np.array_equal(single, stream(2)[:1])  # no duration: no new events, no window, nowhere to move


@every
def test_streams_without_duration(apply):
    events = stream()
    events["t"] = START
    perturbed = apply(events, STRENGTHS[apply], generator(), SIZE)
    assert len(perturbed) <= len(events) and (perturbed["t"] == START).all()


def test_new_events_come_at_any_microsecond_from_the_first_event_to_the_last():
    events = stream(2)
    events["t"] = START, START + 1
    noisy = perturb.background_activity(events, 1e6, generator(), SIZE)  # one at every pixel
    assert len(noisy) == pytest.approx(2 + PIXELS, abs=FEW * PIXELS**0.5)
    close(noisy["t"] == START, 0.5, 0.5)


@pytest.mark.parametrize("apply", [perturb.drop_random, perturb.drop_time, perturb.drop_area, perturb.dead_pixels])
def test_everything_can_be_removed_and_the_rest_is_unchanged(apply):
    events = distinct()
    assert len(apply(events, 1.0, generator(), SIZE)) == 0
    for perturbed in draws(apply, events):
        assert np.array_equal(perturbed, events[~missing(events, perturbed)])


@pytest.mark.parametrize("p", [0.1, 0.33333, 0.9])
def test_random_drop_removes_the_exact_number_uniformly(p):
    events = distinct(501)
    lost = np.array([missing(events, perturbed) for perturbed in draws(perturb.drop_random, events, p)])
    assert set(lost.sum(1)) == {round(p * 501)}
    # Half of the stream, and half of the pixels, lose their share: hypergeometric, below binomial.
    for half in (np.arange(501) < 250, events["x"] < SIZE[0] // 2):
        close(lost[:, half].mean(1), round(p * 501) / 501, (p * (1 - p) / half.sum()) ** 0.5)


def test_dropped_time_is_one_interval_of_the_stated_length_anywhere():
    ratio, count = 0.3, 5000
    events = distinct(count)
    lost = np.array([missing(events, perturbed) for perturbed in draws(perturb.drop_time, events, ratio)])
    assert (np.abs(np.diff(lost.astype(int), prepend=0, append=0, axis=1)).sum(1) == 2).all()  # one interval
    assert np.abs(lost.sum(1) - ratio * count).max() <= 1
    begin = lost.argmax(1) / (count - 1)  # relative to the first event: uniform in [0, 1 - ratio]
    close(begin, (1 - ratio) / 2, (1 - ratio) / 12**0.5)
    assert begin.std() == pytest.approx((1 - ratio) / 12**0.5, rel=FEW * (0.2 / DRAWS) ** 0.5)  # kurtosis 1.8
    assert lost[:, 0].sum() + lost[:, -1].sum() < 5  # the ends do not attract


def test_dropped_time_removes_its_share_of_a_poisson_stream():
    ratio, count = 0.3, 5000
    shares = [
        1 - len(perturb.drop_time(stream(count, seed), ratio, generator(100 + seed), SIZE)) / count
        for seed in range(DRAWS)
    ]
    close(shares, ratio, (ratio * (1 - ratio) / count) ** 0.5)


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.77])
def test_dropped_area_is_one_box_of_the_stated_sides_anywhere_inside(ratio):
    events = distinct(PIXELS)  # one event in each pixel
    events["y"], events["x"] = np.divmod(np.arange(PIXELS), SIZE[0])
    starts = []
    for perturbed in draws(perturb.drop_area, events, ratio):
        lost = events[missing(events, perturbed)]
        sides = [round(ratio * pixels) for pixels in SIZE]
        assert len(lost) == sides[0] * sides[1]
        assert [np.ptp(lost[axis].astype(int)) + 1 for axis in "xy"] == sides
        starts.append([lost["x"].min(), lost["y"].min()])
    for start, side, pixels in zip(np.transpose(starts), sides, SIZE):
        places = pixels - side + 1
        close(start, (places - 1) / 2, ((places**2 - 1) / 12) ** 0.5)
        assert start.max() < places


def test_a_box_can_lie_at_both_edges():
    events = distinct()
    boxes = [events[missing(events, perturbed)] for perturbed in draws(perturb.drop_area, events, 0.95)]
    # Of 3 places, 50 boxes miss one with probability (2 / 3)^50 = 2e-9.
    assert min(box["x"].min() for box in boxes) == 0
    assert max(box["x"].max() for box in boxes) == SIZE[0] - 1


def test_background_activity_is_poisson_at_each_pixel():
    rate, seconds = 3.0, DURATION * 1e-6
    events = stream(1000)
    events["x"] = 0
    pixels = (SIZE[0] - 1) * SIZE[1]
    new = [added(events, perturbed) for perturbed in draws(perturb.background_activity, events, rate)]
    totals = np.array([len(one) for one in new])
    expected = rate * seconds * pixels
    close(totals, expected, expected**0.5)
    assert totals.std() == pytest.approx(expected**0.5, rel=FEW / (2 * DRAWS) ** 0.5)
    together = np.concatenate(new)
    places = together["y"].astype(int) * SIZE[0] + together["x"]
    per_pixel = np.bincount(places, minlength=PIXELS).reshape(SIZE[::-1])[:, 1:]
    mean = rate * seconds * DRAWS
    assert per_pixel.var() == pytest.approx(mean, rel=FEW * (2 / pixels) ** 0.5)  # Poisson: variance = mean
    close(together["p"], 0.5, 0.5)
    close(together["t"] - START, DURATION / 2, DURATION / 12**0.5)
    assert (together["t"] - START).std() == pytest.approx(DURATION / 12**0.5, rel=FEW * (0.2 / len(together)) ** 0.5)


def test_time_and_place_of_background_activity_are_independent():
    perturbed = perturb.background_activity(stream(2), 20.0, generator(), SIZE)
    for axis in "xy":
        correlation = np.corrcoef(perturbed["t"], perturbed[axis])[0, 1]
        assert abs(correlation) < FEW / len(perturbed) ** 0.5


@pytest.mark.parametrize("apply", [perturb.background_activity, perturb.hot_pixels])
def test_new_events_leave_the_old_ones_in_their_order(apply):
    events = stream(1000)
    events["x"] = 1000  # outside the sensor, where nothing new appears
    for perturbed in draws(apply, events):
        assert len(perturbed) > len(events)
        assert np.array_equal(perturbed[perturbed["x"] == 1000], events)


def test_hot_pixels_are_as_many_and_as_fast_as_stated_and_of_one_polarity():
    fraction, seconds = 0.05, DURATION * 1e-6
    events = stream(2)  # its two events are at the ends
    mean = 100 * seconds
    rates, signs = [], []
    for perturbed in draws(perturb.hot_pixels, events, fraction):
        new = perturbed[~np.isin(perturbed, events)]
        places = new["y"].astype(int) * SIZE[0] + new["x"]
        hot, counts = np.unique(places, return_counts=True)
        assert len(hot) == round(fraction * PIXELS)  # none of them is silent at 200 expected events
        bright = np.bincount(places[new["p"]], minlength=PIXELS)[hot]
        assert ((bright == 0) | (bright == counts)).all()
        rates.extend(counts)
        signs.extend(bright > 0)
    close(rates, mean, mean**0.5)
    assert np.var(rates) == pytest.approx(mean, rel=FEW * (2 / len(rates)) ** 0.5)
    close(signs, 0.5, 0.5)


@pytest.mark.parametrize("apply", [perturb.hot_pixels, perturb.dead_pixels])
def test_chosen_pixels_are_uniform(apply):
    """Over the draws, each pixel is chosen about as often as any other."""
    events = distinct(PIXELS)
    events["y"], events["x"] = np.divmod(np.arange(PIXELS), SIZE[0])
    often = np.zeros(PIXELS)
    for perturbed in draws(apply, events, 0.2):
        places = perturbed["y"].astype(int) * SIZE[0] + perturbed["x"]
        often += np.bincount(places, minlength=PIXELS) != 1
    assert often.sum() == DRAWS * 0.2 * PIXELS
    assert often.var() == pytest.approx(DRAWS * 0.2 * 0.8, rel=FEW * (2 / PIXELS) ** 0.5)


def test_dead_pixels_are_as_many_as_stated_and_lose_everything():
    fraction = 0.2
    events = stream(20_000)
    places = events["y"].astype(int) * SIZE[0] + events["x"]
    assert (np.bincount(places, minlength=PIXELS) > 0).all()
    shares = []
    for perturbed in draws(perturb.dead_pixels, events, fraction):
        alive = np.unique(perturbed["y"].astype(int) * SIZE[0] + perturbed["x"])
        assert PIXELS - len(alive) == round(fraction * PIXELS)
        assert np.array_equal(perturbed, events[np.isin(places, alive)])
        shares.append(1 - len(perturbed) / len(events))
    # Sum of a sample of pixels, whose counts have this deviation.
    deviation = np.bincount(places).std() * (fraction * (1 - fraction) * PIXELS) ** 0.5 / len(events)
    close(shares, fraction, deviation)


def test_jitter_has_the_stated_deviation():
    sigma = 700.0
    events = distinct(1000)
    events["x"], events["y"] = np.divmod(np.arange(1000), 30)  # x, y tell which event it was
    inner = slice(10, -10)  # the others may meet the ends of the recording
    shifts = []
    for perturbed in draws(perturb.jitter_time, events, sigma):
        assert len(perturbed) == 1000
        back = perturbed[np.lexsort((perturbed["y"], perturbed["x"]))]
        assert np.array_equal(back[["x", "y", "p"]], events[["x", "y", "p"]])
        shifts.append((back["t"] - events["t"])[inner])
    shifts = np.concatenate(shifts)
    close(shifts, 0, sigma)
    assert shifts.std() == pytest.approx(sigma, rel=FEW / (2 * len(shifts)) ** 0.5)


def test_jitter_stays_inside_the_recording():
    perturbed = perturb.jitter_time(stream(), 10.0 * DURATION, generator(), SIZE)
    assert perturbed["t"][0] == START and perturbed["t"][-1] == START + DURATION


@pytest.mark.parametrize("p", [0.1, 0.33333, 1.0])
def test_the_exact_number_of_polarities_flips_uniformly(p):
    events = stream(501)
    flipped = np.array([perturbed["p"] != events["p"] for perturbed in draws(perturb.flip_polarity, events, p)])
    assert set(flipped.sum(1)) == {round(p * 501)}
    on = events["p"]
    close(flipped[:, on].mean(1), round(p * 501) / 501, (p * (1 - p) / on.sum()) ** 0.5 + 1e-12)
    for perturbed in draws(perturb.flip_polarity, events, p):
        assert np.array_equal(perturbed[["x", "y", "t"]], events[["x", "y", "t"]])


@pytest.mark.parametrize(
    "apply, strength",
    [
        (perturb.drop_random, 1.5),
        (perturb.drop_random, -0.5),
        (perturb.drop_area, 1.5),
        (perturb.background_activity, -1.0),
        (perturb.dead_pixels, 1.5),
        (perturb.jitter_time, -1.0),
    ],
)
def test_impossible_strengths_are_errors(apply, strength):
    with pytest.raises(ValueError):
        apply(stream(), strength, generator(), SIZE)


@every
def test_negative_strengths_are_refused(apply):
    with pytest.raises(ValueError):
        apply(stream(), -0.1, generator(), SIZE)


@pytest.mark.parametrize("wrong", [1.5, float("nan")])
@pytest.mark.parametrize(
    "apply",
    [perturb.drop_random, perturb.drop_time, perturb.drop_area, perturb.dead_pixels, perturb.hot_pixels]
    + [perturb.flip_polarity],
)
def test_shares_are_from_zero_to_one(apply, wrong):
    with pytest.raises(ValueError, match="share"):
        apply(stream(), wrong, generator(), SIZE)

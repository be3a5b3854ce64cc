"""The simulated recordings: the camera's physics, the motions, and that only the order of events tells them apart."""

import math

import numpy as np
import pytest
import torch

from tests.chance import deviations, likely
from tools.data.digits import read_digits
from tools.data.events import EVENT
from tools.data.events.motions import (
    FLIPPABLE,
    HEIGHT,
    MOTIONS,
    STEP_US,
    STEPS,
    WIDTH,
    camera,
    make_streams,
    render,
    trajectories,
)

IDEAL = dict(threshold=0.25, mismatch=0.0, refractory_us=0, noise_hz=0.0)


@pytest.fixture(scope="module")
def digits():
    """Real digits, other ones to test than to train."""
    return [part.images[:, 0] for part in read_digits(0.2, 2023)]


def rng():
    return np.random.RandomState(5)


def ramp(changes, steps=10):
    """Levels [S, K, 1, 1] that rise linearly by each of `changes`."""
    return (torch.tensor(changes)[:, None] * torch.linspace(0, 1, steps + 1))[..., None, None]


def split(events, ends):
    return np.split(events, ends[:-1])


def test_the_events_of_a_recording_are_in_range_and_in_order(digits):
    events, ends, labels = make_streams(digits[0], 3, seed=1)
    assert (WIDTH, HEIGHT, len(MOTIONS)) == (48, 48, 11)
    assert set(FLIPPABLE) < set(MOTIONS)
    assert events.dtype == EVENT
    assert ends.dtype == labels.dtype == np.int64
    assert len(ends) == 33
    assert ends[-1] == len(events)
    assert np.bincount(labels).tolist() == [3] * 11
    for stream in split(events, ends):
        assert len(stream) > 200
        assert (np.diff(stream["t"]) >= 0).all()
        assert stream["t"][0] < 3 * STEP_US
        assert 0 <= stream["t"][0] <= stream["t"][-1] <= STEPS * STEP_US
        assert stream["x"].max() < WIDTH
        assert stream["y"].max() < HEIGHT


def test_the_seed_fixes_the_recordings_on_any_number_of_threads(digits):
    threads = torch.get_num_threads()
    results = []
    try:
        for count, seed in ((1, 1), (2, 1), (1, 2)):
            torch.set_num_threads(count)
            results.append(make_streams(digits[0], 2, seed))
    finally:
        torch.set_num_threads(threads)
    for first, again in zip(results[0], results[1]):
        assert np.array_equal(first, again)
    assert not np.array_equal(results[0][1], results[2][1])


@pytest.mark.parametrize("steps", [1, 7, 50])
def test_a_ramp_gives_one_event_per_threshold(steps):
    changes = [0.2, 0.3, 1.1, -0.2, -0.9, 3.9]
    events, ends = camera(ramp(changes, steps), 1000, rng(), **IDEAL)
    streams = split(events, ends)
    assert [len(stream) for stream in streams] == [math.floor(abs(change) / 0.25) for change in changes]
    assert streams[2]["p"].all()
    assert not streams[4]["p"].any()
    expected = np.arange(1, 5) * 0.25 / 1.1 * 1000 * steps  # the times lie on the ramp, between the steps
    assert np.abs(streams[2]["t"] - expected).max() <= 1


def test_the_memory_remembers_across_a_reversal():
    levels = torch.tensor([0.0, 0.6, 0.0])[None, :, None, None]  # two ON up to 0.5, then OFF at 0.25 and 0
    events, _ = camera(levels + torch.tensor([0.0, 0.0, -0.01])[None, :, None, None], 1000, rng(), **IDEAL)
    assert events["p"].tolist() == [True, True, False, False]


@pytest.mark.parametrize("refractory_us", [300, 5000])
def test_a_pixel_is_silent_for_its_refractory_period_and_then_starts_from_its_input(refractory_us):
    events, _ = camera(ramp([40.0], 20), 1000, rng(), **IDEAL | {"refractory_us": refractory_us})
    period = 0.25 / 40 * 20_000 + refractory_us  # the memory is reset at the end of the refractory period
    assert len(events) == math.floor((20_000 + refractory_us) / period)
    assert np.abs(np.diff(events["t"]) - period).max() <= 1


def test_a_pixel_is_silent_for_five_milliseconds_unless_told_otherwise():
    events, _ = camera(ramp([1000.0], 500), 1000, rng(), mismatch=0.0, noise_hz=0.0)
    assert (np.diff(events["t"]) - (0.25 / 2 * 1000 + 5000)).mean() == pytest.approx(0, abs=0.1)


def test_no_pixel_of_a_moving_scene_fires_within_its_refractory_period():
    levels = torch.from_numpy(rng().standard_normal((2, 20, 6, 6))).float()
    events, ends = camera(levels, STEP_US, rng(), refractory_us=4000, noise_hz=0.0)
    for stream in split(events, ends):
        pixels = stream["y"].astype(int) * 6 + stream["x"]
        gaps = np.concatenate([np.diff(stream["t"][pixels == pixel]) for pixel in range(36)])
        assert len(gaps) > 100
        assert gaps.min() >= 4000 - 1  # times are rounded to microseconds


def test_a_static_scene_gives_background_noise_at_the_stated_rate():
    still = torch.from_numpy(rng().standard_normal((20, 1, 48, 48))).float().expand(-1, 51, -1, -1)
    assert len(camera(still, STEP_US, rng(), noise_hz=0.0)[0]) == 0
    events, ends = camera(still, STEP_US, rng(), noise_hz=0.5)
    expected = 0.5 * 0.5 * 20 * 48 * 48
    assert abs(len(events) - expected) < deviations(3) * math.sqrt(expected)
    assert likely(events["p"].sum(), len(events), 0.5, comparisons=3)
    assert len(split(events, ends)) == 20
    usual = 0.1 * 0.5 * 20 * 48 * 48
    assert abs(len(camera(still, STEP_US, rng())[0]) - usual) < 4 * math.sqrt(usual)
    short, _ = camera(still[:, :2], STEP_US, rng(), noise_hz=25)
    assert abs(len(short) - expected) < deviations(3) * math.sqrt(expected)
    assert 0.99 * STEP_US < short["t"].max() < STEP_US


def test_thresholds_differ_between_pixels_and_polarities():
    levels = torch.linspace(0, 20, 2)[None, :, None, None].expand(1, 2, 48, 48)
    counts = [
        np.bincount(camera(sign * levels, STEP_US, rng(), refractory_us=0, noise_hz=0)[0]["x"]) for sign in (1, -1)
    ]
    assert abs(counts[0].sum() / (48 * 48) / (20 / 0.25) - 1) < 0.02  # E[1 / theta] is 1 % above 1 / E[theta]
    assert not np.array_equal(*counts)
    events, _ = camera(levels / 10, STEP_US, rng(), mismatch=1.0, refractory_us=0, noise_hz=0)
    each = np.bincount(events["y"].astype(int) * 48 + events["x"])
    lowest = 0.18 * 48 * 48  # P(1 + n < 0.1): pixels of the lowest threshold, a tenth of the nominal one
    assert each.max() == 2 / 0.025 and (each == each.max()).sum() == pytest.approx(lowest, rel=0.2)


def test_a_bar_that_moves_right_is_seen_to_move_right():
    position = 2 + torch.arange(51)[:, None, None] * 0.4
    bar = torch.exp(-((torch.arange(30) - position) ** 2) / 2).expand(-1, 5, -1)[None]
    events, _ = camera(bar, STEP_US, rng())
    for polarity in (False, True):
        seen = events[events["p"] == polarity]
        assert np.corrcoef(seen["x"], seen["t"])[0, 1] > 0.9
    on, off = (events["x"][events["p"] == polarity].astype(int).mean() for polarity in (True, False))
    assert on > off  # a bright bar: its front becomes brighter


def test_the_trajectories_are_what_the_names_say():
    paths = trajectories(np.arange(11), rng()).double()
    steps = dict(zip(MOTIONS, paths.diff(dim=1)))
    constant = torch.zeros(STEPS, dtype=torch.float64)
    for name, axis, sign in (
        ("right", 0, 1),
        ("left", 0, -1),
        ("up", 1, -1),
        ("down", 1, 1),
        ("rotate_clockwise", 2, 1),
        ("rotate_counterclockwise", 2, -1),
        ("zoom_in", 3, 1),
        ("zoom_out", 3, -1),
    ):
        assert (sign * steps[name][:, axis] > 0).all()
        assert all(torch.equal(steps[name][:, other], constant) for other in range(4) if other != axis)
    for name, axis in (("shake_horizontally", 0), ("shake_vertically", 1)):
        assert steps[name][:, axis].min() < -0.2 < 0.2 < steps[name][:, axis].max()
        assert torch.equal(steps[name][:, 1 - axis], constant)
    speed = steps["orbit"][:, :2].norm(dim=1)
    assert speed.max() - speed.min() < 1e-3  # a circle at constant speed
    assert (steps["orbit"][:, :2].sum(0).norm()) < speed.sum() / 2
    for name in ("shake_horizontally", "shake_vertically", "orbit"):
        assert torch.equal(steps[name][:, 2:], constant[:, None].expand(-1, 2))


def test_motions_are_as_large_and_as_random_as_stated():
    draws = 1000
    paths = trajectories(np.repeat(np.arange(11), draws), rng()).double().view(11, draws, STEPS + 1, 4)
    paths[..., 3].log_()
    path = dict(zip(MOTIONS, paths))

    def spans(values, low, high, margin):
        """They come near both ends of an interval and do not leave it."""
        assert low - margin / 10 <= values.min() < low + margin < high - margin < values.max() <= high + margin / 10

    speeds = {"right": (0, 16), "down": (1, 16), "rotate_clockwise": (2, 3), "zoom_in": (3, 0.8)}
    opposite = {"left": (0, 16), "up": (1, 16), "rotate_counterclockwise": (2, 3), "zoom_out": (3, 0.8)}
    for sign, amounts in ((1, speeds), (-1, opposite)):
        for name, (axis, amount) in amounts.items():
            speed = sign * (path[name][:, -1, axis] - path[name][:, 0, axis]) / amount
            spans(speed, 0.7, 1.4, 0.02)
            assert speed.log().mean().item() == pytest.approx(math.log(0.7 * 1.4) / 2, abs=0.03)  # log-uniform
    spans(paths[:8, :, STEPS // 2, 0], 0, WIDTH, 0.3)
    spans(paths[:8, :, STEPS // 2, 1], 0, HEIGHT, 0.3)
    spans(paths[:, :, STEPS // 2, 3].exp(), 0.8, 1.2, 0.01)
    for name, axis in (("shake_horizontally", 0), ("shake_vertically", 1)):
        place, steps = path[name][..., axis], path[name][..., axis].diff(dim=1)
        amplitude = (place.amax(1) - place.amin(1)) / 2
        assert amplitude.max().item() == pytest.approx(3.5, abs=1e-2)
        spans(steps.abs().amax(1) * STEPS / 3.5 / 8, 0.7, 1.4, 0.03)
        bend = steps.diff(dim=1)[:, STEPS // 2 - 1]  # at the middle of the recording: goes with the sine of the phase
        assert abs(bend.mean()) < 4 * bend.std() / draws**0.5
    turns = path["orbit"][..., :2].diff(dim=1)
    spans(turns.norm(dim=2).mean(1) * STEPS / 3.5 / 6, 0.7, 1.4, 0.03)
    assert torch.allclose(turns.norm(dim=2), turns.norm(dim=2)[:, :1], rtol=1e-2)
    clockwise = turns[:, 0, 0] * turns[:, 1, 1] > turns[:, 0, 1] * turns[:, 1, 0]
    assert clockwise.double().mean().item() == pytest.approx(0.5, abs=4 * 0.5 / draws**0.5)


def test_recordings_show_random_digits_of_random_contrast(monkeypatch):
    digits, seen = torch.tensor([0, 51, 255], dtype=torch.uint8)[:, None, None].expand(-1, 28, 28), []

    def nothing(masks, paths, contrasts):
        seen.append((masks[:, 0, 0], contrasts))
        return torch.zeros(len(masks), STEPS + 1, HEIGHT, WIDTH)

    monkeypatch.setattr("tools.data.events.motions.render", nothing)
    make_streams(digits, 60, seed=1)
    masks, contrasts = (torch.cat(parts) for parts in zip(*seen))
    values, often = masks.unique(return_counts=True)
    assert values.tolist() == pytest.approx([0, 0.2, 1]) and often.min() > 660 / 3 - 4.5 * (660 * 2 / 9) ** 0.5
    size = contrasts.abs()
    assert 1 <= size.min() < 1.02 and 1.78 < size.max() <= 1.8
    assert (contrasts > 0).double().mean().item() == pytest.approx(0.5, abs=4.5 * 0.5 / 660**0.5)


def test_a_digit_turns_clockwise_and_wraps_around_the_torus():
    mask = torch.zeros(1, 28, 28)
    mask[0, 4:6, 13:15] = 1  # 9 pixels above the centre
    paths = torch.tensor([[[20.0, 20.0, 0.0, 1.0], [20.0, 20.0, math.pi / 2, 1.0], [20.0, 4.0, 0.0, 1.0]]])
    brightest = render(mask, paths, torch.ones(1)).flatten(2).argmax(-1)[0]
    assert [(int(index) % 48, int(index) // 48) for index in brightest] == [(20, 11), (29, 20), (20, 43)]


def test_a_mirrored_motion_is_the_mirror_image(digits):
    masks = digits[0][:1].float() / 255
    path = torch.tensor([[[14.3, 30.8, 0.6, 0.9]]])
    mirrored = path * torch.tensor([-1.0, 1.0, -1.0, 1.0]) + torch.tensor([47.0, 0.0, 0.0, 0.0])
    image, other = render(masks, path, torch.ones(1)), render(masks.flip(-1), mirrored, torch.ones(1))
    assert torch.allclose(image.flip(-1), other, atol=1e-4)


def test_the_contrast_is_the_range_of_the_logarithmic_intensity():
    paths = torch.tensor([[[23.5, 23.5, 0.0, 1.0]]])
    for contrast in (1.5, -1.5):
        image = render(torch.ones(1, 28, 28), paths, torch.tensor([contrast]))
        assert torch.isclose(image.sum() / contrast, torch.tensor(28.0**2))


def counts_per_pixel(events, ends):
    """Time-summed images: float32 [S, 2 * 48 * 48]."""
    stream = np.searchsorted(ends, np.arange(len(events)), side="right")
    flat = ((stream * 2 + events["p"]) * HEIGHT + events["y"]) * WIDTH + events["x"]
    return torch.from_numpy(np.bincount(flat, minlength=len(ends) * 2 * HEIGHT * WIDTH)).view(len(ends), -1).float()


def linear_accuracy(train, train_labels, test, test_labels, penalty):
    """Test accuracy of multinomial logistic regression with a squared penalty on its weights."""
    weight = torch.zeros(train.shape[1], 11, requires_grad=True)
    bias = torch.zeros(11, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=40, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(train @ weight + bias, train_labels)
        loss = loss + penalty * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return ((test @ weight + bias).argmax(1) == test_labels).float().mean().item()


@pytest.fixture(scope="module")
def simulated(digits):
    """100 recordings of each motion."""
    return make_streams(digits[0], 100, seed=1)


@pytest.mark.slow
def test_no_linear_classifier_reads_the_motion_from_the_image_summed_over_time(digits, simulated):
    parts = [simulated, make_streams(digits[1], 30, seed=2)]
    train, test = (counts_per_pixel(events, ends) for events, ends, _ in parts)
    labels = [torch.from_numpy(part[2]) for part in parts]
    mean, std = train.mean(0), train.std(0) + 1e-3
    for transform in (lambda x: x, torch.log1p, lambda x: (x - mean) / std):
        # The best weights lie in the space of the recordings, which has fewer dimensions than they have pixels.
        seen = transform(train)
        axes = torch.linalg.qr(seen.T).Q
        seen, unseen = seen @ axes, transform(test) @ axes
        for penalty in (1e-3, 1e-2, 1e-1):
            assert linear_accuracy(seen, labels[0], unseen, labels[1], penalty) < 0.35


@pytest.mark.slow
def test_mirror_images_have_as_many_events(simulated):
    _, ends, labels = simulated
    counts = np.diff(ends, prepend=0)
    for one, other in (("right", "left"), ("up", "down"), ("rotate_clockwise", "rotate_counterclockwise")):
        a, b = (counts[labels == MOTIONS.index(name)] for name in (one, other))
        assert abs(a.mean() - b.mean()) < deviations(3, samples=100) * math.sqrt((a.var() + b.var()) / 100)

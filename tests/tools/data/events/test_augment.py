"""Augmented batches of event frames: each sample has its own draw, counts stay counts."""

import pytest
import torch

from tests.chance import deviations, likely
from tools.data.events.augment import EventAugment, box, event_drop, random_roll, window_share

DTYPES = [torch.uint8, torch.int16, torch.int32, torch.float32]
STAYS, TIME, AREA, RANDOM = range(4)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def recordings(count=8, dtype=torch.uint8, mean=0.5, shape=(4, 2, 6, 8)):
    return torch.poisson(torch.full((count, *shape), float(mean))).to(dtype)


FEW = deviations(comparisons=100)  # of one test: none compares more


def close(values, expected, deviation):
    """The mean of independent `values` is what it should be, up to chance."""
    values = torch.as_tensor(values).double()
    assert values.mean().item() == pytest.approx(expected, abs=FEW * deviation / len(values) ** 0.5)


def what_happened(before, after):
    """The option of each sample, from counts so high that thinning touches every pixel. Shape: [B]."""
    lost, empty = (before != after).flatten(2), (after == 0).flatten(2).all(2)  # [B, T, pixels], [B, T]
    untouched = ~lost.any(2)
    option = torch.where(lost.flatten(1).all(1), RANDOM, AREA)
    option[(untouched | empty).any(1)] = TIME  # a window spares a whole frame or empties one
    option[untouched.all(1)] = STAYS
    return option


@pytest.mark.parametrize("dtype", DTYPES)
def test_only_allowed_classes_are_mirrored_and_half_of_them(dtype):
    frames = torch.arange(8).repeat(4000, 2, 2, 3, 1).to(dtype)
    labels = torch.arange(4000) % 3
    flipped = EventAugment(torch.tensor([True, False, True]))(frames, labels)
    assert flipped.dtype == dtype
    mirrored = (flipped == frames.flip(-1)).flatten(1).all(1)
    assert (mirrored | (flipped == frames).flatten(1).all(1)).all()
    assert not mirrored[labels == 1].any()
    for label in (0, 2):
        close(mirrored[labels == label], 0.5, 0.5)


def test_a_flip_turns_only_the_last_axis():
    frames = recordings(50)
    flipped = EventAugment(torch.tensor([True]))(frames, torch.zeros(50, dtype=torch.long))
    mirrored = (flipped != frames).flatten(1).any(1)
    assert likely(mirrored.sum(), 50, 0.5)
    assert torch.equal(flipped[mirrored], frames[mirrored].flip(-1))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_roll_is_a_circular_shift_of_the_whole_recording(dtype):
    frames = recordings(64, dtype)
    rolled = random_roll(frames, 2)
    assert rolled.dtype == dtype and rolled.shape == frames.shape and rolled.is_contiguous()
    assert torch.equal(rolled.flatten(3).sum(3), frames.flatten(3).sum(3))
    for before, after in zip(frames, rolled):
        shifts = [(down, right) for down in range(-2, 3) for right in range(-2, 3)]
        assert any(torch.equal(after, before.roll(shift, (-2, -1))) for shift in shifts)


def test_rolls_are_uniform_and_independent_in_x_and_y():
    frames = torch.zeros(5000, 1, 2, 7, 9)
    frames[:, :, :, 3, 4] = 1
    places = random_roll(frames, 2)[:, 0, 0].nonzero()[:, 1:] - torch.tensor([3, 4])
    seen, often = places.unique(dim=0, return_counts=True)
    assert len(seen) == 25 and places.abs().max() == 2
    assert likely(often, 5000, 0.04)


def test_rolls_may_exceed_the_frame():
    frames = recordings()
    assert torch.equal(random_roll(frames, 20).flatten(3).sum(3), frames.flatten(3).sum(3))


@pytest.mark.parametrize("timesteps", [1, 4, 10])
@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.9])
def test_the_window_is_one_interval_of_the_stated_length_inside(timesteps, ratio):
    share = window_share(timesteps, torch.full((4000,), ratio))
    assert share.min() >= 0 and share.max() <= 1
    assert torch.allclose(share.sum(1), torch.tensor(ratio * timesteps))
    covered = torch.nn.functional.pad((share > 0).int(), (1, 1))
    assert (covered.diff(dim=1).abs().sum(1) == 2).all()
    assert ((share > 0) & (share < 1)).sum(1).max() <= 2
    # Its centre of mass is the middle of the recording.
    centre = (share.double() * torch.arange(timesteps)).sum(1) / share.double().sum(1)
    close(centre, (timesteps - 1) / 2, timesteps * (1 - ratio) / 12**0.5 + 1e-3)


@pytest.mark.parametrize("ratio", [0.01, 0.05, 0.25])
def test_the_box_has_the_stated_sides_and_any_place_inside(ratio):
    height, width = 12, 40
    boxes = box(height, width, torch.full((4000,), ratio))
    sides = [max(1, round(ratio * size)) for size in (height, width)]
    rows, columns = boxes.any(2), boxes.any(1)
    assert (rows.sum(1) == sides[0]).all() and (columns.sum(1) == sides[1]).all()
    assert (boxes.sum((1, 2)) == sides[0] * sides[1]).all()
    for taken, side, size in zip((rows, columns), sides, (height, width)):
        assert (torch.nn.functional.pad(taken.int(), (1, 1)).diff(dim=1).abs().sum(1) == 2).all()
        often = taken.int().argmax(1).bincount(minlength=size)
        places = size - side + 1
        assert (often[places:] == 0).all()
        assert likely(often[:places], 4000, 1 / places, comparisons=2)


def test_each_option_has_a_quarter_and_its_own_ratios():
    frames = torch.full((2000, 10, 2, 20, 40), 200, dtype=torch.uint8)
    dropped = event_drop(frames)
    options = what_happened(frames, dropped)
    for option in range(4):
        close(options == option, 0.25, (0.25 * 0.75) ** 0.5)

    lost = 1 - dropped.float().mean((1, 2, 3, 4)) / 200
    for option in (TIME, RANDOM):
        # Ratios 0.1, ..., 0.9, blurred a little by the thinning.
        tenths = lost[options == option] * 10
        assert (tenths - tenths.round()).abs().max() < 0.02
        assert set(tenths.round().int().tolist()) == set(range(1, 10))
        close(tenths / 10, 0.5, (80 / 12) ** 0.5 / 10)

    holes = dropped[options == AREA] == 0
    assert torch.equal(holes, holes[:, :1, :1].expand_as(holes))  # the same in all frames and polarities
    holes = holes[:, 0, 0]
    rows, columns = holes.any(2).sum(1), holes.any(1).sum(1)
    assert torch.equal(holes.sum((1, 2)), rows * columns)  # one rectangle
    assert torch.equal(columns, 2 * rows)  # the same ratio for both sides
    assert set(rows.tolist()) == {1, 2, 3, 4, 5}
    untouched = dropped[options == AREA][:, 0, 0][~holes]
    assert (untouched == 200).all()


def test_a_dropped_window_empties_frames_and_thins_those_it_covers_in_part():
    frames = torch.full((400, 10, 2, 20, 40), 200, dtype=torch.uint8)
    dropped = event_drop(frames)
    chosen = what_happened(frames, dropped) == TIME
    share = 1 - dropped[chosen].float().mean((2, 3, 4)) / 200  # [B, T]
    inner = torch.nn.functional.pad((share > 0).int(), (1, 1))
    assert (inner.diff(dim=1).abs().sum(1) == 2).all()  # one interval
    assert ((share > 0) & (share < 1)).sum(1).max() == 2  # only its first and last frame are thinned


def test_thinned_counts_are_binomial():
    count = 20
    frames = torch.full((64, 4, 2, 20, 40), count, dtype=torch.int16)
    dropped = event_drop(frames)
    for sample in dropped[what_happened(frames, dropped) == RANDOM].double().flatten(1):
        kept = (sample.mean() / count * 10).round().item() / 10
        variance = count * kept * (1 - kept)
        close(sample, count * kept, variance**0.5)
        assert sample.var().item() == pytest.approx(variance, rel=FEW * (2 / len(sample)) ** 0.5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_event_drop_keeps_the_type_and_the_input_and_adds_nothing(dtype):
    frames = recordings(200, dtype, mean=3)
    before = frames.clone()
    dropped = event_drop(frames)
    assert torch.equal(frames, before)
    assert dropped.dtype == dtype and dropped.shape == frames.shape
    assert (dropped <= frames).all() and (dropped >= 0).all()
    assert (dropped.float() == dropped.float().round()).all()
    assert (dropped != frames).flatten(1).any(1).float().mean() > 0.5  # of 0.75; 200 draws are below in 1e-14


@pytest.mark.parametrize("shape", [(1, 2, 1, 1), (4, 2, 6, 8)])
@pytest.mark.parametrize("count", [0, 1, 50])
def test_frames_without_events_and_tiny_batches(shape, count):
    frames = torch.zeros(count, *shape, dtype=torch.uint8)
    augment = EventAugment(flippable=torch.ones(3, dtype=torch.bool), roll=2, event_drop=True)
    assert torch.equal(augment(frames, torch.zeros(count, dtype=torch.long)), frames)


def test_without_options_nothing_changes():
    frames = recordings()
    assert torch.equal(EventAugment()(frames, torch.zeros(8, dtype=torch.long)), frames)


@pytest.mark.parametrize("options", [{"flippable": torch.ones(3).bool()}, {"roll": 2}, {"event_drop": True}])
def test_each_option_alone_changes_something(options):
    frames = recordings(50)
    assert not torch.equal(EventAugment(**options)(frames, torch.zeros(50, dtype=torch.long)), frames)


def test_all_together_repeat_with_the_seed():
    frames, labels = recordings(50), torch.arange(50) % 2
    augment = EventAugment(flippable=torch.tensor([True, False]), roll=2, event_drop=True)
    torch.manual_seed(5)
    first = augment(frames, labels)
    torch.manual_seed(5)
    assert torch.equal(first, augment(frames, labels))
    assert not torch.equal(first, augment(frames, labels))


def test_a_window_of_time_is_within_the_recording_not_in_the_zeros_behind_it():
    lengths = torch.tensor([2, 5, 20]).repeat(1000)
    share = window_share(20, torch.full((3000,), 0.5), lengths)
    assert share.shape == (3000, 20)
    torch.testing.assert_close(share.sum(1), lengths / 2)
    assert not (share > 0)[torch.arange(20) >= lengths[:, None]].any()
    frames = recordings(300, shape=(20, 2, 3, 3), mean=50)
    dropped = EventAugment(event_drop=True)(frames, torch.zeros(300, dtype=torch.long), torch.full((300,), 4))
    assert ((dropped[:, :4] == 0).flatten(2).all(2).any(1)).sum() > 30  # of 75 that lose a window of 0.4 to 3.6 frames

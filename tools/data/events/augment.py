"""Augmentation of whole batches of event frames on their device; every sample gets its own draw.

A batch is counts of events, [B, T, 2, H, W] (channel 0 OFF, 1 ON), of any integer or float dtype, which is kept; its
labels are int64 [B].
"""

import dataclasses

import torch


def flip_where_allowed(frames: torch.Tensor, labels: torch.Tensor, flippable: torch.Tensor) -> torch.Tensor:
    """Mirror left and right, with probability 1/2, the samples of classes that are `flippable`, bool [K]."""
    chosen = flippable.to(labels.device)[labels] & (torch.rand(len(labels), device=labels.device) < 0.5)
    return torch.where(chosen[:, None, None, None, None], frames.flip(-1), frames)


def random_roll(frames: torch.Tensor, pixels: int) -> torch.Tensor:
    """Shift each sample circularly by whole pixels, uniform in [-pixels, pixels], independently in x and y."""
    count, *_, height, width = frames.shape
    down, right = torch.randint(-pixels, pixels + 1, (2, count, 1), device=frames.device)
    rows = (torch.arange(height, device=frames.device) - down) % height  # [B, H]
    columns = (torch.arange(width, device=frames.device) - right) % width  # [B, W]
    source = (rows[:, :, None] * width + columns[:, None, :]).view(count, 1, height * width)
    images = frames.flatten(1, 2).flatten(2)
    # Gathering whole images, unlike indexing around T and channels, keeps the memory layout.
    return images.gather(2, source.expand_as(images)).view_as(frames)


def window_share(timesteps: int, ratio: torch.Tensor) -> torch.Tensor:
    """Draw a window of time for each sample, and give the share of each frame that it covers.

    `ratio` is its length over T; its start is uniform in [0, T - length]. Shape: [B] -> [B, T], in [0, 1].
    """
    length = ratio * timesteps
    start = torch.rand_like(ratio) * (timesteps - length)
    frame = torch.arange(timesteps, device=ratio.device)
    end = torch.minimum((start + length)[:, None], frame + 1)
    return (end - torch.maximum(start[:, None], frame)).clamp(0, 1)


def box(height: int, width: int, ratio: torch.Tensor) -> torch.Tensor:
    """Draw a box of pixels for each sample, uniformly placed inside, with sides of at least one pixel.

    `ratio` is that of its sides to `height` and `width`. Shape: [B] -> bool [B, H, W].
    """

    def inside(size: int) -> torch.Tensor:  # [B, size]
        side = (ratio * size).round().clamp(min=1)
        start = (torch.rand_like(ratio) * (size - side + 1)).floor()
        position = torch.arange(size, device=ratio.device)
        return (position >= start[:, None]) & (position < (start + side)[:, None])

    return inside(height)[:, :, None] & inside(width)[:, None, :]


def event_drop(frames: torch.Tensor) -> torch.Tensor:
    """Apply EventDrop: each sample stays, or loses a window of time, an area, or random events, with chance 1/4 each.

    Ratios are multiples of 1/10 in 0.1..0.9 for time and random events, of 1/20 in 0.05..0.25 for the sides of the
    area. Counts are thinned binomially: an event in a frame that the window covers in part is lost with a probability
    equal to the covered share.

    Note: Gu et al., "EventDrop: data augmentation for event-based learning", IJCAI 2021. The ratios are those of their
    code; unlike there, window and box are fully inside, and the area is the box alone, not all rows and columns that it
    touches.
    """
    count, timesteps, _, height, width = frames.shape
    ranges = ((0, 4), (1, 10), (1, 6))
    option, tenths, twentieths = (torch.randint(low, high, (count,), device=frames.device) for low, high in ranges)
    by_time, by_area, at_random = (option == number for number in (1, 2, 3))
    ratio = tenths / 10
    lost = window_share(timesteps, ratio) * by_time[:, None] + (ratio * at_random)[:, None]  # [B, T]
    area = box(height, width, twentieths / 20) & by_area[:, None, None]
    frames = frames.masked_fill((lost == 1)[:, :, None, None, None], 0)
    frames.masked_fill_(area[:, None, None], 0)
    thinned = (lost > 0) & (lost < 1)  # only these frames need random numbers for each pixel
    counts = frames[thinned].float()
    kept = 1 - lost[thinned][:, None, None, None]
    frames[thinned] = torch.binomial(counts, kept.expand_as(counts)).to(frames.dtype)
    return frames


@dataclasses.dataclass(eq=False)
class EventAugment:
    """The augmentation of training recordings: flip, roll, EventDrop, in this order."""

    flip: bool = False  # mirror half of the samples of the classes that allow it
    flippable: torch.Tensor | None = None  # whether each class stays itself in a mirror, bool [K]; needed for `flip`
    roll: int = 0  # largest circular shift in x and in y, in pixels; 0: none
    event_drop: bool = False

    def __post_init__(self):
        if self.flip and self.flippable is None:
            raise ValueError("flip needs flippable: which classes stay themselves in a mirror")

    def __call__(self, frames: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if self.flip:
            frames = flip_where_allowed(frames, labels, self.flippable)
        if self.roll:
            frames = random_roll(frames, self.roll)
        if self.event_drop:
            frames = event_drop(frames)
        return frames

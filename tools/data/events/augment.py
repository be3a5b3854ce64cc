"""Augmentation of whole batches of event frames on their device; each sample gets its own draw.

A batch is counts of events, [B, T, 2, H, W], of any integer or float dtype, which is kept; its labels are int64 [B].
"""

import dataclasses

import torch

from tools.data.augment import random_flip


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


def window_share(timesteps: int, ratio: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
    """Draw a window of time for each sample and return the share of each frame that it covers.

    `ratio` is the length of the window over that of the sample, which is T, or as in `lengths` [B]; its start is
    uniform in the sample. Shape: [B] -> [B, T].
    """
    whole = timesteps if lengths is None else lengths
    length = ratio * whole
    start = torch.rand_like(ratio) * (whole - length)
    frame = torch.arange(timesteps, device=ratio.device)
    end = torch.minimum((start + length)[:, None], frame + 1)
    return (end - torch.maximum(start[:, None], frame)).clamp(0, 1)


def box(height: int, width: int, ratio: torch.Tensor) -> torch.Tensor:
    """Draw a box of pixels inside the frame for each sample, uniformly placed.

    `ratio` is that of its sides to `height` and `width`, at least one pixel. Shape: [B] -> bool [B, H, W].
    """

    def inside(size: int) -> torch.Tensor:  # [B, size]
        side = (ratio * size).round().clamp(min=1)
        start = (torch.rand_like(ratio) * (size - side + 1)).floor()
        position = torch.arange(size, device=ratio.device)
        return (position >= start[:, None]) & (position < (start + side)[:, None])

    return inside(height)[:, :, None] & inside(width)[:, None, :]


def event_drop(frames: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
    """EventDrop: each sample stays, or loses a window of time, an area, or random events, with probability 1/4 each.

    Ratios are 0.1, 0.2, ... 0.9 for time and random events, 0.05, 0.1, ... 0.25 for the sides of the area. An event in
    a frame that the window covers in part is lost with a probability equal to the covered share. `lengths`, int64 [B]:
    the numbers of frames of each sample, if they differ.

    Note: Gu et al., "EventDrop: data augmentation for event-based learning", IJCAI 2021, with the ratios of their code.
    Unlike there, window and box are fully inside, and the area is the box alone, not all rows and columns it touches.
    """
    count, timesteps, _, height, width = frames.shape
    option = torch.randint(0, 4, (count,), device=frames.device)
    tenths = torch.randint(1, 10, (count,), device=frames.device)
    twentieths = torch.randint(1, 6, (count,), device=frames.device)
    by_time, by_area, at_random = option == 1, option == 2, option == 3
    ratio = tenths / 10
    lost = window_share(timesteps, ratio, lengths) * by_time[:, None] + (ratio * at_random)[:, None]  # [B, T]
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

    flippable: torch.Tensor | None = None  # whether to mirror half of the samples of a class, bool [K]; None: no flip
    roll: int = 0  # largest circular shift in x and in y, in pixels; 0: none
    event_drop: bool = False

    def __call__(self, frames: torch.Tensor, labels: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        if self.flippable is not None:
            frames = random_flip(frames, self.flippable.to(labels.device)[labels])
        if self.roll:
            frames = random_roll(frames, self.roll)
        if self.event_drop:
            frames = event_drop(frames, lengths)
        return frames

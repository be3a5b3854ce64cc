"""The Square attack: a black box, which only queries the network.

Note:
    Andriushchenko et al., "Square attack: a query-efficient black-box adversarial attack via random search", ECCV
    2020, for Linf: the start, the squares and the schedule of their size are theirs. The treatment of noise is ours: a
    query is the margin averaged over draws. Accepted images are measured again from time to time, because a lucky
    estimate would otherwise never be beaten. An image must fool the network twice before its search ends.
"""

import math

import torch
from torch import Generator, Tensor

from .gradients import Ball
from .victim import SETTLED, Victim

START_SHARE = 0.8  # share of the pixels in the first squares
CONTINUED_SHARE = 1 / 16  # factor on the shares where the search goes on from given images
L2_STEP, CONTINUED_L2_STEP = 0.5, 0.05  # length of the steps in an L2 ball, in radii; likewise from given images
HALVED_AT = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # queries, out of 10,000, that halve the squares
NEARER = 6  # how many times nearer to 0 than at the start a margin must be at the end
MEASURED_AGAIN = 10  # queries after which the accepted images of a noisy network are measured again


def square_attack(
    victim: Victim,
    ball: Ball,
    target: Tensor,
    queries: int,
    generator: Generator,
    start: Tensor | None = None,
    near: float = math.inf,
) -> Tensor:
    """Random search over squares of +-eps in an Linf ball; in an L2 ball, of a short step that is projected into it.

    Args:
        victim: the network, of which only predictions are used.
        ball: the set of images to search.
        target: labels [B].
        queries: most queries per image; those that fool the network need no more.
        generator: on the CPU, of the search.
        start: images to search from, with smaller squares; None: stripes, as published.
        near: how far below 0 a margin may be at the start; farther ones are given up. The distance shrinks during the
            search, as most images that will be fooled come near soon.
    """
    images, eps = ball.images, ball.eps
    count, channels, _, width = images.shape
    length = L2_STEP if start is None else CONTINUED_L2_STEP
    best = start
    if best is None:
        best = ball.projected(images + eps * draw_signs((count, channels, 1, width), generator).to(images))
    best = best.clone()
    margins = victim.margins(best, target)
    enough = SETTLED if victim.is_noisy else 0.0
    done = torch.zeros_like(margins, dtype=torch.bool)
    for query in range(1, queries):
        fooled, again = ~done & (margins > enough), torch.zeros_like(done)
        if victim.is_noisy:
            again = ~done if query % MEASURED_AGAIN == 0 else fooled
            if again.any():
                margins[again] = victim.margins(best[again], target[again])
            fooled &= margins > enough
        done |= fooled
        done |= margins < -near / (1 + (NEARER - 1) * query / queries)
        if done.all():
            break
        active = (~done & ~again).nonzero()[:, 0]
        if len(active):
            share = square_share(query, queries) * (1 if start is None else CONTINUED_SHARE)
            proposed = with_square(best[active], ball[active], share, generator, length)
            found = victim.margins(proposed, target[active])
            better = found >= margins[active]  # spikes make plateaus, on which equal ones lead on
            best[active[better]], margins[active[better]] = proposed[better], found[better]
    return best


def square_share(query: int, queries: int) -> float:
    """Share of the pixels in the square of a query; the schedule is stretched to the number of queries."""
    return START_SHARE / 2 ** sum(query * 10_000 / queries > bound for bound in HALVED_AT)


def with_square(attacked: Tensor, ball: Ball, share: float, generator: Generator, length: float = L2_STEP) -> Tensor:
    """The attacked images with one square each, anywhere: of -eps or +eps in each channel around the ball's images.

    For L2, a step on that square whose norm is `length` times the radius.
    """
    count, channels, height, width = attacked.shape
    side = max(1, min(round(math.sqrt(share * height * width)), height - 1, width - 1))
    inside = torch.ones(count, height, width, dtype=torch.bool)
    for axis, size in ((1, height), (2, width)):
        first = torch.randint(0, size - side + 1, (count,), generator=generator)
        offset = torch.arange(size) - first[:, None]
        inside &= ((offset >= 0) & (offset < side)).unsqueeze(3 - axis)
    inside = inside[:, None].to(attacked.device)
    change = draw_signs((count, channels, 1, 1), generator).to(attacked)
    if ball.norm == "l2":
        size_of_step = length * ball.eps / (side * math.sqrt(channels))
        return ball.projected(attacked + inside * size_of_step * change)
    return torch.where(inside, (ball.images + ball.eps * change).clamp(0, 1), attacked)


def draw_signs(shape: tuple[int, ...], generator: Generator) -> Tensor:
    """Random signs, -1 or 1, on the CPU."""
    return torch.randint(0, 2, shape, generator=generator) * 2.0 - 1

"""The white box: ascents along several gradients, at all radii of a norm."""

import copy
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from .gradients import CONTINUED_STEP, FIRST_STEP, Ball, apgd
from .square import square_attack
from .victim import CHOICE_DRAWS, Ascent, Objective, cross_entropy, margin

if TYPE_CHECKING:
    from .campaign import Campaign

# An image within this share of the clean images' mean margin gets more ascents after the first ones, which say less
# about networks without noise: their gradients get lost on plateaus.
NEAR, NEAR_WITHOUT_NOISE = 0.3, 0.4
PILOT_STEPS, FINALISTS = 20, 3  # of the first part of the pilot; how many paths go on to the second one
QUERIES_PER_GRADIENT = 12  # of Square, where it refines images; each costs a third, and without noise leads further
REFINING_DRAWS = 10  # noise draws in the gradients that refine images, at most


@dataclasses.dataclass(frozen=True)
class Attacked:
    """The best attacked images so far."""

    images: Tensor  # [B, C, H, W]
    margins: Tensor  # of these, [B], by draws that only choose

    def __getitem__(self, rows: Tensor) -> "Attacked":
        return Attacked(self.images[rows], self.margins[rows])

    def improved(self, rows: Tensor, other: "Attacked") -> "Attacked":
        """With the images of `other`, which are those of some rows, where their margins are higher."""
        images, margins = self.images.clone(), self.margins.clone()
        better = other.margins > margins[rows]
        images[rows[better]], margins[rows[better]] = other.images[better], other.margins[better]
        return Attacked(images, margins)

    def or_better(self, other: "Attacked") -> "Attacked":
        """With the images of `other`, one for each of these, where their margins are higher."""
        return self.improved(torch.arange(len(self.margins), device=self.margins.device), other)


class Climb(NamedTuple):
    """What one ascent climbs."""

    path: str  # the gradient: a name in `GRADIENT_PATHS`
    objective: Objective
    rank: int | None  # of the wrong class to which images are driven, 0 the most probable; None: any
    steps: int
    draws: int


def ranked_paths(campaign: "Campaign") -> list[str]:
    """All gradient paths, by the harm that they do to a few images.

    A short ascent ranks all, and a whole one the best: a smoother gradient leads faster, but not as far. That happens
    at the middle radius, and at the largest below it at which half of the images withstand the short ascent: smoother
    gradients do more harm in larger balls. The best path of each comes first.
    """
    if len(campaign.paths) == 1:
        return campaign.paths
    part = campaign.only(campaign.sample)
    norm, radii = next(iter(campaign.radii.items()))

    def left_by(campaign: "Campaign", path: str, eps: float, steps: int) -> tuple[float, float]:
        found = ascend(campaign, norm, eps, Climb(path, margin, None, steps, draws=1))
        return campaign.score(found.images).accuracy, -found.margins.mean().item()

    def ranked(paths: Sequence[str], eps: float, steps: int) -> dict[str, float]:
        left = dict(zip(paths, part.side_by_side([part.task(left_by, path, eps, steps) for path in paths])))
        return {path: left[path][0] for path in sorted(left, key=lambda path: left[path])}

    at, rankings = len(radii) // 2, []
    while True:
        left = ranked(campaign.paths, radii[at], PILOT_STEPS)
        is_last = at == 0 or next(iter(left.values())) >= 0.5
        if is_last or not rankings:
            whole = first_climb(campaign, next(iter(left))).steps
            rankings.append({**ranked(list(left)[:FINALISTS], radii[at], whole), **left})
        if is_last:
            return list(dict.fromkeys(path for places in zip(*rankings) for path in places))
        at -= 1


def curve(campaign: "Campaign", norm: str) -> dict[float, Attacked]:
    """The attacked images of each radius, by rising radius; the middle radius is attacked first.

    An image that is surely fooled within a small ball is so within a larger one, by the same attacked image; one that
    surely stands within a large ball is not attacked within a smaller one.
    """
    found: dict[float, Attacked] = {}
    for eps in middle_first(campaign.radii[norm]):
        smaller, larger = [one for one in found if one < eps], [one for one in found if one > eps]
        start = found[max(smaller)] if smaller else Attacked(campaign.images, campaign.margins)
        is_open = start.margins <= campaign.enough
        if larger:
            is_open &= found[min(larger)].margins >= -campaign.enough
        rows = is_open.nonzero()[:, 0]
        found[eps] = start.improved(rows, search(campaign.only(rows), norm, eps)) if len(rows) else start
    return dict(sorted(found.items()))


def middle_first(radii: Sequence[float]) -> list[float]:
    """The radii in the order of a bisection: the middle one, then the middles of both halves, and so on."""
    order, parts = [], [tuple(radii)]
    while parts:
        part = parts.pop(0)
        if part:
            half = len(part) // 2
            order.append(part[half])
            parts += [part[:half], part[half + 1 :]]
    return order


def search(campaign: "Campaign", norm: str, eps: float) -> Attacked:
    """All ascents at one radius.

    All images climb along the first path, those that stand along the others; then those that came near go on along the
    path that brought them nearest.
    """
    best, reached = Attacked(campaign.images, torch.full_like(campaign.margins, -torch.inf)), {}
    rows = torch.arange(len(best.margins), device=best.margins.device)
    for path in campaign.paths:
        if not len(rows):
            return best
        found = ascend(campaign.only(rows), norm, eps, first_climb(campaign, path))
        reached[path] = best.margins.index_copy(0, rows, found.margins)
        best = best.improved(rows, found)
        rows = (best.margins <= campaign.enough).nonzero()[:, 0]
    if not len(near := _near(campaign, best)):  # those that all paths have attacked, and none has fooled
        return best
    campaign = copy.copy(campaign)
    campaign.paths = sorted(reached, key=lambda path: reached[path][near].mean().item(), reverse=True)
    rounds = campaign.preset.rounds * (1 if campaign.is_noisy else 2)  # which cost half without noise
    for turn in range(rounds):
        fooled = (best.margins > 0).sum()
        for climb in climbs(campaign, turn):
            if len(rows := _near(campaign, best)):
                best = best.improved(rows, ascend(campaign.only(rows), norm, eps, climb, turn=turn))
        if len(rows := _near(campaign, best)):
            best = best.improved(rows, _refined(campaign.only(rows), norm, eps, best[rows], turn))
        if (best.margins > 0).sum() == fooled:
            break
    return best


def _near(campaign: "Campaign", best: Attacked) -> Tensor:
    """The rows of the images that are nearly fooled."""
    near = NEAR if campaign.is_noisy else NEAR_WITHOUT_NOISE
    is_near = (best.margins <= campaign.enough) & (best.margins > near * campaign.typical_margin)
    return is_near.nonzero()[:, 0]


def _refined(campaign: "Campaign", norm: str, eps: float, start: Attacked, turn: int) -> Attacked:
    """A search in small steps from attacked images.

    With noise, it follows the mean of many gradients. Without noise, Square tries what gradients may have missed.
    """
    if campaign.is_noisy:
        draws = min(REFINING_DRAWS, campaign.preset.gradients)
        climb = Climb(campaign.paths[0], margin, None, campaign.preset.gradients // draws, draws)
        return ascend(campaign, norm, eps, climb, start=start.images, turn=turn)
    ball, queries = Ball(campaign.images, eps, norm), QUERIES_PER_GRADIENT * campaign.preset.gradients
    with campaign.noise("making", "squares", turn):
        squares = campaign.generator("squares", turn)
        near = -NEAR_WITHOUT_NOISE * campaign.typical_margin
        images = square_attack(campaign.victim(), ball, campaign.target, queries, squares, start.images, near)
    with campaign.noise("choosing", "squares", turn):
        return Attacked(images, campaign.victim(draws=CHOICE_DRAWS).margins(images, campaign.target))


def climbs(campaign: "Campaign", turn: int = 0) -> list[Climb]:
    """The ascents of a round for images that are nearly fooled; before the first one, they climbed all paths once.

    Noise is averaged from the second round on: other starts, paths and objectives first find more.
    """
    best, *paths = campaign.paths
    preset, draws = campaign.preset, campaign.draws if turn else 1
    steps = preset.gradients // draws if turn else first_climb(campaign, best).steps
    found = [Climb(best, cross_entropy, None, steps, draws)]
    if turn:
        found += [Climb(path, margin, None, steps, draws) for path in (best, *paths)]
    # `margin` of any class mostly is that of the most probable one, so that the next ones find more.
    ranks = range(1, min(1 + preset.targets, campaign.wrong.shape[1]))
    return found + [Climb(best, margin, rank, steps, draws) for rank in ranks]


def first_climb(campaign: "Campaign", path: str) -> Climb:
    """With a single draw, and half of the gradients where there is noise."""
    return Climb(path, margin, None, campaign.preset.gradients // (2 if campaign.is_noisy else 1), 1)


def ascend(
    campaign: "Campaign",
    norm: str,
    eps: float,
    climb: Climb,
    net: nn.Module | None = None,
    transfers: bool = False,
    start: Tensor | None = None,
    turn: int = 0,
) -> Attacked:
    """One ascent.

    Args:
        net: to climb instead of the campaign's with the path of `climb`.
        transfers: whether `net` has another forward pass than the attacked network, which then judges.
        start: images to go on from, in smaller steps; None: a random start.
        turn: how many times this was done before, from other starts.
    """
    campaign.bar.set_postfix_str(f"{norm} {eps:.3g}, {climb.path}")
    victim = campaign.victim(campaign.twin(climb.path) if net is None else net, climb.draws)
    judged = campaign.victim(None if transfers else net, CHOICE_DRAWS)
    is_exact = not transfers and not victim.is_noisy
    wrong = None if climb.rank is None else campaign.wrong[:, climb.rank]
    ball = Ball(campaign.images, eps, norm)

    def judge(images: Tensor, rows: Tensor) -> Tensor:
        return judged.margins(images, campaign.target[rows])

    def look(images: Tensor, rows: Tensor) -> Ascent:
        campaign.bar.update(climb.draws * len(rows))
        return victim.ascent(images, campaign.target[rows], climb.objective, None if wrong is None else wrong[rows])

    purpose = f"{climb.path}, {climb.objective.__name__}, {climb.rank}, {climb.draws}, {turn}"
    first_step = CONTINUED_STEP
    if start is None:
        start, first_step = ball.start(campaign.generator("start", purpose)), FIRST_STEP
    with campaign.noise("making", purpose):
        return Attacked(*apgd(look, ball, start, climb.steps, judge, is_exact, first_step))

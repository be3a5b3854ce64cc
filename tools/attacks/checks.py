"""The attacks that the gates need: weaker ones, planted ones, some without noise, and none at all."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import nn

from . import gates
from .gates import Gate
from .scores import Score
from .twins import Planted, noiseless_twin, vanishing_noise_twin, with_gradient_path

if TYPE_CHECKING:
    from .campaign import Campaign, RadiusTest

IMAGES = 50  # of checks that attack for themselves
PLANTED_EPS, PLANTED_STRENGTH = 8 / 255, 3.0

Tests = dict[tuple[str, float], "RadiusTest"]  # {(norm, radius): what was done there}


def run_checks(campaign: "Campaign", clean: Score, tests: Tests) -> list[Gate]:
    """All gates of a campaign; `clean` is the score without any attack."""
    eps = telling_radius(clean, tests)
    test = tests["linf", eps]
    checks = [
        gates.does_not_rise("eps", {0.0: clean, **_of_pgd(tests)}),
        check_steps(campaign, eps, test),
        _restarts(campaign, test),
        _unbounded(campaign),
        *compare_rivals(tests),
        *_noise(clean, tests),
        _gradients(campaign),
        check_planted(campaign),
        _no_attack(campaign, clean),
    ]
    if campaign.is_noisy:
        checks += [check_draws(campaign, eps, test), _vanishing(campaign, eps)]
    return checks


def telling_radius(clean: Score, tests: Tests) -> float:
    """The Linf radius that leaves about half of the accuracy: where all or nothing is left, attacks look alike."""
    left = {eps: score.accuracy for eps, score in _of_pgd(tests).items()}
    return min(left, key=lambda eps: abs(left[eps] - clean.accuracy / 2))


def _of_pgd(tests: Tests) -> dict[float, Score]:
    """{Linf radius: score under PGD}, the radii rising."""
    return {eps: test.scores["PGD"] for (norm, eps), test in sorted(tests.items()) if norm == "linf"}


def _first_path(campaign: "Campaign") -> nn.Module:
    """The network with the first gradient path."""
    return with_gradient_path(campaign.net, campaign.preset.paths[0])


def check_steps(campaign: "Campaign", eps: float, test: "RadiusTest") -> Gate:
    """A quarter of the steps must not do more harm than all of them."""
    few, many = max(1, campaign.preset.steps // 4), campaign.preset.steps
    weak = campaign.pgd(_first_path(campaign), "linf", eps, steps=few)
    return gates.does_not_rise("steps", {few: campaign.score(weak), many: campaign.score(test.restarts[0])})


def check_draws(campaign: "Campaign", eps: float, test: "RadiusTest") -> Gate:
    """Gradients of a single draw must not do more harm than those of several."""
    weak = campaign.pgd(_first_path(campaign), "linf", eps, draws=1)
    scores = {1: campaign.score(weak), campaign.draws: campaign.score(test.restarts[0])}
    return gates.does_not_rise("noise draws of a gradient", scores)


def _restarts(campaign: "Campaign", test: "RadiusTest") -> Gate:
    scores = {}
    for count in (1, len(test.restarts)):
        scores[count] = campaign.score(campaign.choose([campaign.images, *test.restarts[:count]]))
    return gates.does_not_rise("restarts", scores)


def _unbounded(campaign: "Campaign") -> Gate:
    part = campaign.first(IMAGES)
    candidates = [part.pgd(with_gradient_path(part.net, path), "linf", 1.0) for path in part.preset.paths]
    return gates.unbounded_attack_succeeds(part.score(part.choose(candidates)))


def compare_rivals(tests: Tests) -> Iterator[Gate]:
    """Projected gradient descent against FGSM, and against black-box attacks, at each radius."""
    for (norm, eps), test in tests.items():
        where = f"at {norm} {gates.shown(eps) if norm == 'linf' else eps}"
        white_box = test.scores["PGD"]
        yield gates.not_weaker(f"PGD no weaker than FGSM {where}", white_box, {"FGSM": test.scores["FGSM"]})
        others = {name: score for name, score in test.scores.items() if name.startswith(("transfer", "Square"))}
        yield gates.not_weaker(f"white box no weaker than transfer and Square {where}", white_box, others)


def _noise(clean: Score, tests: Tests) -> Iterator[Gate]:
    """At the largest radius of each norm: within a small one, noise may harm a robust network as much as attacks do."""
    largest = dict(sorted(tests))  # of each norm, what comes last
    for norm, eps in largest.items():
        scores = tests[norm, eps].scores
        yield gates.stronger_than_noise(f"{norm} attack", scores["PGD"], scores["random noise"], clean)


def _gradients(campaign: "Campaign") -> Gate:
    victim = campaign.victim(_first_path(campaign))
    with campaign.noise("gradients"):
        first, second = (victim.gradient(campaign.images, campaign.target) for _ in range(2))
    return gates.gradients_are_there(first, second)


def check_planted(campaign: "Campaign") -> Gate:
    """A network with a planted weakness must be found weak."""
    part = campaign.first(IMAGES)
    net = Planted(_first_path(part), part.images, PLANTED_EPS, PLANTED_STRENGTH)
    candidates = [part.pgd(net, "linf", PLANTED_EPS, restart) for restart in range(part.preset.restarts)]
    return gates.planted_example_is_found(part.score(part.choose(candidates, net), net))


def _no_attack(campaign: "Campaign", clean: Score) -> Gate:
    copies = len(campaign.preset.paths) * campaign.preset.restarts
    chosen = campaign.choose([campaign.images] * copies)
    return gates.nothing_comes_of_no_attack(campaign.score(chosen, repetition=1), clean)


def _vanishing(campaign: "Campaign", eps: float) -> Gate:
    scores = []
    for twin in (vanishing_noise_twin(campaign.net), noiseless_twin(campaign.net)):
        attacked = campaign.pgd(twin, "linf", eps, draws=1, best=False)
        scores.append(campaign.score(attacked, twin))
    return gates.vanishing_noise_is_no_noise(*scores)

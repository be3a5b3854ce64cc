"""What the gates need: attacks that are weaker, planted, without any noise, or none at all."""

from . import gates
from .twins import Planted, noiseless_twin, vanishing_noise_twin, with_gradient_path
from .victim import cross_entropy

IMAGES = 50  # of checks that attack for themselves
PLANTED_EPS, PLANTED_STRENGTH = 8 / 255, 3.0


def run_checks(campaign, clean, tests):
    """All gates of a campaign.

    Args:
        campaign: `campaign.Campaign`.
        clean: score without any attack.
        tests: {(norm, eps): `campaign.RadiusTest`}.

    Returns:
        List of `gates.Gate`.
    """
    eps = _telling_radius(clean, tests)
    test = tests["linf", eps]
    checks = [
        _radii(clean, tests),
        _steps(campaign, eps, test),
        _restarts(campaign, test),
        _unbounded(campaign),
        *_rivals(tests),
        *_noise(clean, tests),
        _gradients(campaign),
        _planted(campaign),
        _no_attack(campaign, clean),
    ]
    return checks + ([_draws(campaign, eps, test), _vanishing(campaign, eps)] if campaign.is_noisy else [])


def _telling_radius(clean, tests):
    """The Linf radius that leaves about half of the accuracy: where all or nothing is left, attacks look alike."""
    left = {eps: test.scores["PGD"]["accuracy"] for (norm, eps), test in tests.items() if norm == "linf"}
    return min(left, key=lambda eps: abs(left[eps] - clean["accuracy"] / 2))


def _first(campaign):
    """The network with the first gradient path."""
    return with_gradient_path(campaign.net, campaign.preset.paths[0])


def _radii(clean, tests):
    scores = {eps: test.scores["PGD"] for (norm, eps), test in tests.items() if norm == "linf"}
    return gates.does_not_rise("eps", {0.0: clean, **dict(sorted(scores.items()))})


def _steps(campaign, eps, test):
    net = _first(campaign)
    few, many = max(1, campaign.preset.steps // 4), campaign.preset.steps
    weak = campaign.pgd(net, "linf", eps, steps=few)
    scores = {few: campaign.score(weak), many: campaign.score(test.restarts[0])}
    return gates.does_not_rise("steps", scores)


def _draws(campaign, eps, test):
    net = _first(campaign)
    weak = campaign.pgd(net, "linf", eps, draws=1)
    scores = {1: campaign.score(weak), campaign.draws: campaign.score(test.restarts[0])}
    return gates.does_not_rise("noise draws of a gradient", scores)


def _restarts(campaign, test):
    scores = {
        count: campaign.score(campaign.choose([campaign.images, *test.restarts[:count]]))
        for count in (1, len(test.restarts))
    }
    return gates.does_not_rise("restarts", scores)


def _unbounded(campaign):
    images, target = campaign.images[:IMAGES], campaign.target[:IMAGES]
    candidates = [
        campaign.pgd(with_gradient_path(campaign.net, path), "linf", 1.0, images=images, target=target)
        for path in campaign.preset.paths
    ]
    return gates.unbounded_attack_succeeds(campaign.score(campaign.choose(candidates, target=target), target=target))


def _rivals(tests):
    for (norm, eps), test in tests.items():
        where = f"at {norm} {gates.shown(eps) if norm == 'linf' else eps}"
        white_box = test.scores["PGD"]
        yield gates.not_weaker(f"PGD no weaker than FGSM {where}", white_box, {"FGSM": test.scores["FGSM"]})
        others = {name: one for name, one in test.scores.items() if name.startswith(("transfer", "Square"))}
        yield gates.not_weaker(f"white box no weaker than transfer and Square {where}", white_box, others)


def _noise(clean, tests):
    """At the largest radius of each norm: a small one may do as little as noise does, to a robust network."""
    largest = dict(sorted(tests))  # of each norm, what comes last
    for norm, eps in largest.items():
        scores = tests[norm, eps].scores
        yield gates.stronger_than_noise(f"{norm} attack", scores["PGD"], scores["random noise"], clean)


def _gradients(campaign):
    victim = campaign.victim(_first(campaign))
    with campaign.noise():
        estimates = [victim.gradient(campaign.images, campaign.target, cross_entropy) for _ in range(2)]
    return gates.gradients_are_there(*estimates)


def _planted(campaign):
    images, target = campaign.images[:IMAGES], campaign.target[:IMAGES]
    net = Planted(_first(campaign), images, PLANTED_EPS, PLANTED_STRENGTH)
    candidates = [
        campaign.pgd(net, "linf", PLANTED_EPS, images=images, target=target, restart=restart)
        for restart in range(campaign.preset.restarts)
    ]
    return gates.planted_example_is_found(campaign.score(campaign.choose(candidates, net, target), net, target))


def _no_attack(campaign, clean):
    copies = len(campaign.preset.paths) * campaign.preset.restarts
    chosen = campaign.choose([campaign.images] * copies)
    return gates.nothing_comes_of_no_attack(campaign.score(chosen, noise=1), clean)


def _vanishing(campaign, eps):
    scores = []
    for twin in (vanishing_noise_twin(campaign.net), noiseless_twin(campaign.net)):
        attacked = campaign.pgd(twin, "linf", eps, draws=1, keeps_best=False)
        scores.append(campaign.score(attacked, twin))
    return gates.vanishing_noise_is_no_noise(*scores)

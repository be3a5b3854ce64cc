"""Attacks against known optima, the choice and the scores against known chances, and gates that fail when they must."""

import copy
import dataclasses
import functools
import json
import math

import pytest
import torch
from torch import nn

from models import LIF, Cauchy, Gaussian, Logistic, NoisyLIF, ParametricLIF, build_model, build_neuron, noise_generator
from tests.chance import deviations, likely
from tests.conftest import first_are_fast
from tools.attacks import gates
from tools.attacks.campaign import PRESETS, Campaign, Preset
from tools.attacks.gradients import Ball, apgd, direct_optimisation, fgsm, random_noise
from tools.attacks.report import AttackReport, AttackResult
from tools.attacks.square import square_attack, square_share, with_square
from tools.attacks.twins import (
    GRADIENT_PATHS,
    Planted,
    mean_field_twin,
    noiseless_twin,
    vanishing_noise_twin,
    with_gradient_path,
)
from tools.attacks.victim import Ascent, Score, Victim, cross_entropy, margin, score
from tools.attacks.white_box import Attacked, Climb, ascend, curve, middle_first, ranked_paths, search
from tools.errors import UserError
from tools.inference import ForwardPass
from tools.probes.hooks import is_noisy

CPU = ForwardPass(torch.device("cpu"), timesteps=2)
SHAPE = (1, 8, 8)


class Linear(nn.Module):
    """Logits w x and -w x: all optima are known in closed form."""

    def __init__(self, seed=0):
        super().__init__()
        self.w = torch.randn(math.prod(SHAPE), generator=torch.Generator().manual_seed(seed))
        self.bias = 0.0

    def forward(self, images, timesteps):
        value = images.flatten(1) @ self.w + self.bias
        return torch.stack([value, -value], -1).expand(timesteps, -1, -1)


class NoisyLogits(nn.Module):
    """Two classes; the first is put out with probability p(image) = its mean, whatever else."""

    mode = "noisy"

    def forward(self, images, timesteps):
        p = images.flatten(1).mean(1)
        fired = (torch.rand(len(p)) < p).float()
        return torch.stack([fired, 1 - fired], -1).mul(100).expand(timesteps, -1, -1)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def grey(count=5):
    return torch.full((count, *SHAPE), 0.5)


@pytest.fixture(scope="module")
def noisy_net():
    torch.manual_seed(0)
    neuron = build_neuron("NILIF", sigma=0.3)
    return build_model("toynet", neuron=neuron, in_shape=SHAPE, num_classes=4, norm="bn", width=0.5).eval()


@pytest.fixture(scope="module")
def deterministic_net():
    torch.manual_seed(0)
    return build_model("toynet", neuron=build_neuron("LIF"), in_shape=SHAPE, num_classes=4, norm="bn", width=0.5).eval()


@pytest.fixture(scope="module")
def relu_net():
    torch.manual_seed(0)
    return build_model("toynet", neuron=build_neuron("ReLU"), in_shape=SHAPE, num_classes=4, width=0.5).eval()


def linear_attack(attack, direction, region, **options):
    """The attacked grey images of class 0, and the perturbation that is best for a linear network.

    Args:
        region: what the attack is given for the images.
    """
    victim = Victim(Linear(), CPU, draws=1)
    gradient = functools.partial(victim.gradient, objective=cross_entropy)
    images, target = grey(), torch.zeros(5, dtype=torch.int64)
    attacked = attack(gradient, region(images), target, **options)
    w = victim.net.w.view(SHAPE)
    return attacked - images, -(w.sign() if direction == "linf" else w / w.norm())


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_attacks_reach_the_optimum_of_a_linear_network(norm):
    eps = 0.03
    one, best = linear_attack(fgsm, norm, lambda images: Ball(images, eps, norm))
    torch.testing.assert_close(one, (eps * best).expand(one.shape), rtol=1e-4, atol=1e-6)
    net = Linear()
    victim, ball, target = Victim(net, CPU, draws=1), Ball(grey(), eps, norm), torch.zeros(5, dtype=torch.int64)
    net.bias = 100.0  # no image is fooled, so all are moved to the end
    found, margins = apgd(lambda images, rows: victim.ascent(images, target[rows]), ball, ball.start(seeded()), 40)
    torch.testing.assert_close(
        found - grey(), (eps * best).expand(one.shape), rtol=0.02, atol=1e-3 if norm == "l2" else 1e-6
    )
    torch.testing.assert_close(margins, victim.margins(found, target))


def walked(gradients, values, steps, judge=None, is_exact=True, margins=-1.0):
    """Where `apgd` goes on one pixel that starts at 0.5, in a ball of 0.1, and what it returns.

    Args:
        gradients, values: functions of the pixel.
        margins: of every image, or a function of the pixel.
    """
    seen = []

    def climb(images, rows):
        (x,) = images.flatten().tolist()
        seen.append(x)
        found = margins(x) if callable(margins) else margins
        return Ascent(torch.tensor([values(x)]), torch.tensor([found]), torch.full_like(images, gradients(x)))

    start = torch.full((1, 1, 1, 1), 0.5)
    best, highest = apgd(climb, Ball(start, 0.1), start, steps, judge, is_exact)
    return seen, best.item(), highest.item()


def test_the_first_step_of_apgd_is_two_radii_and_the_next_have_momentum():
    seen, *_ = walked(lambda x: -1.0 if x > 0.5 else 1.0, lambda x: 0.0, 20)  # the first checkpoint: 5
    # To the border; back over the whole ball: 0.75 of -0.2 and 0.25 of the 0.1 before; to the border, likewise.
    assert seen[:4] == pytest.approx([0.5, 0.6, 0.6 - 0.15 + 0.025, 0.475 + 0.75 * 0.125 - 0.25 * 0.125], abs=1e-6)


def test_steps_are_halved_at_checkpoints_where_they_do_not_help_and_go_on_from_the_peak():
    peak = 0.53
    seen, best, _ = walked(lambda x: peak - x, lambda x: -abs(x - peak), 100, margins=lambda x: -1 - abs(x - peak))
    assert abs(best - peak) < 1e-3 and abs(seen[-1] - peak) < 5e-3
    first = seen[23]  # the step after the first checkpoint, 22 of 100, begins at the best point so far
    assert abs(first - min(seen[:23], key=lambda x: abs(x - peak))) <= 0.1 + 1e-6
    steady, *_ = walked(lambda x: 1.0, lambda x: x, 10)
    assert steady[1:] == pytest.approx([0.6] * 10)


def test_a_fooled_image_is_left_alone_and_others_go_on():
    rows_seen = []

    def climb(images, rows):
        rows_seen.append(rows.tolist())
        return Ascent(images.flatten(), torch.where(rows == 1, 1.0, -1.0), torch.ones_like(images))

    start = torch.full((3, 1, 1, 1), 0.5)
    _, margins = apgd(climb, Ball(start, 0.1), start, 3)
    assert rows_seen == [[0, 1, 2], [0, 2], [0, 2], [0, 2]] and margins.tolist() == [-1, 1, -1]


def test_with_noise_other_draws_judge_what_looks_fooled_and_the_end():
    judged = []

    def judge(images, rows):
        judged.append(images.flatten().tolist())
        return torch.full((len(rows),), 0.5)

    walked(lambda x: 1.0, lambda x: x, 10, judge, is_exact=False)
    assert len(judged) == 1  # nothing looks fooled on the way
    judged.clear()
    _, _, highest = walked(lambda x: 1.0, lambda x: x, 10, judge, is_exact=False, margins=3.0)
    assert len(judged) > 3 and highest == 0.5  # at each checkpoint; the lucky 3.0 does not count


def test_without_noise_an_image_is_fooled_when_the_judge_says_so():
    """The climb may round, so that it takes an image for fooled at 0.57 that is so from 0.59 on."""

    def judge(images, rows):
        judged.extend(images.flatten().tolist())
        return images.flatten() - 0.59

    for steps, fooled in ((1, True), (0, False)):
        judged = []
        seen, best, highest = walked(lambda x: 1.0, lambda x: x, steps, judge, margins=lambda x: x - 0.57)
        assert best == pytest.approx(0.6 if fooled else 0.5) and (highest > 0) == fooled
        assert judged == pytest.approx([0.6] if fooled else [])
    _, best, highest = walked(lambda x: 1.0, lambda x: x, 10, lambda images, rows: -torch.ones(1), margins=1.0)
    assert highest == -1 and best == pytest.approx(0.5)


def test_starts_are_anywhere_in_the_ball_and_in_range():
    images = grey(2000)
    where = (Ball(images, 0.1).start(seeded()) - images) / 0.1
    assert where.abs().max() <= 1.0001 and where.mean().item() == pytest.approx(0, abs=0.01)
    assert where.std().item() == pytest.approx(3**-0.5, rel=0.01)
    where = ((Ball(images, 0.1, "l2").start(seeded()) - images) / 0.1).flatten(1)
    distance = where.norm(dim=1)
    assert distance.max() <= 1.0001 and distance.mean().item() == pytest.approx(0.5, abs=0.03)
    assert distance.std().item() == pytest.approx(12**-0.5, rel=0.05)
    assert (where / distance[:, None]).mean(0).abs().max() < 4.5 * 64**-0.5 / 2000**0.5
    for border in (0.0, 1.0):
        for norm in ("linf", "l2"):
            start = Ball(torch.full_like(images, border), 0.5, norm).start(seeded())
            assert start.min() >= 0 and start.max() <= 1 and start.min() < start.max()


def test_without_a_gradient_images_stay():
    for norm in ("linf", "l2"):
        assert torch.equal(fgsm(lambda images, target: 0 * images, Ball(grey(), 0.1, norm), None), grey())


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_direct_optimisation_does_not_depend_on_the_scale_of_the_gradient(scale):
    w = torch.randn(SHAPE, generator=seeded())

    def attack(factor):
        return direct_optimisation(
            lambda images, target: (factor * w).expand(images.shape), grey(), torch.zeros(5), 0.1, seeded()
        )

    torch.testing.assert_close(attack(scale), attack(1.0), rtol=0, atol=1e-6)


def test_direct_optimisation_stays_on_its_sphere_and_nears_the_optimum():
    delta, best = linear_attack(direct_optimisation, "l2", torch.clone, gamma=0.1, generator=seeded())
    torch.testing.assert_close(delta.flatten(1).norm(dim=1), torch.full((5,), 0.1), rtol=1e-4, atol=0)
    assert ((delta * best).flatten(1).sum(1) > 0.07).all()  # 0.1 at best; Adam goes by signs: 0.08
    start, _ = linear_attack(direct_optimisation, "l2", torch.clone, gamma=0.1, generator=seeded(), steps=0)
    assert ((start * best).flatten(1).sum(1) < 0.05).all()


def test_direct_optimisation_goes_in_published_steps_of_adam_and_stays_in_range():
    w, target, seen = torch.randn(SHAPE, generator=seeded()), torch.zeros(1), []

    def attack(images, **options):
        def gradient(images, target):
            seen.append(images)
            return w.expand(images.shape)

        return direct_optimisation(gradient, images, target, 1.0, seeded(), **options)

    delta = attack(grey(1), steps=0) - 0.5
    moved = delta + 0.002 * w.sign()
    torch.testing.assert_close(attack(grey(1), steps=1) - 0.5, moved / moved.norm(), rtol=0, atol=1e-6)
    assert torch.equal(attack(grey(1)), attack(grey(1), steps=30))
    assert not torch.equal(attack(grey(1)), attack(grey(1), steps=29))
    for border in (0.0, 1.0):
        seen.append(attack(torch.full_like(grey(1), border)))
    assert all(images.min() >= 0 and images.max() <= 1 for images in seen)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("eps", [0.03, 0.4, 1.0])
def test_attacked_images_stay_in_the_ball_and_in_range(noisy_net, norm, eps):
    images, target = torch.rand(6, *SHAPE, generator=seeded(1)), torch.arange(6) % 4
    victim = Victim(with_gradient_path(noisy_net, "own"), CPU, draws=3)
    gradient = functools.partial(victim.gradient, objective=margin)
    ball = Ball(images, eps, norm)
    for attacked in (
        random_noise(ball, seeded()),
        fgsm(gradient, ball, target),
        apgd(
            lambda part, rows: victim.ascent(part, target[rows]),
            ball,
            ball.start(seeded()),
            9,
            lambda part, rows: victim.margins(part, target[rows]),
        )[0],
        square_attack(victim, ball, target, 30, seeded()),
        square_attack(victim, ball, target, 30, seeded(), ball.start(seeded())),
    ):
        delta = (attacked - images).flatten(1)
        size = delta.abs().amax(1) if norm == "linf" else delta.norm(dim=1)
        assert (size <= eps * (1 + 1e-5) + 1e-6).all()
        assert attacked.min() >= 0 and attacked.max() <= 1
    assert (random_noise(Ball(grey(), 0.1, "l2"), seeded()) - grey()).flatten(1).norm(dim=1) == pytest.approx(
        0.1, rel=1e-4
    )


def test_the_gradient_is_that_of_the_mean_probability():
    """Escape noise, one layer: the probability of each class is known, so is the gradient of -ln of its mean."""
    weight, draws = 0.8, 20_000

    class OneNeuron(nn.Module):
        def __init__(self):
            super().__init__()
            self.neuron = NoisyLIF(Gaussian(0.4), placement="escape")

        def forward(self, images, timesteps):
            current = (weight * images.flatten(1).sum(1))[None, :, None]
            spikes = self.neuron(current)
            return torch.cat([2 * spikes, torch.zeros_like(spikes)], -1)

    images = torch.tensor([0.9, 1.1, 1.4]).view(3, 1, 1, 1)
    target = torch.zeros(3, dtype=torch.int64)
    with noise_generator(seeded(1)):
        victim = Victim(OneNeuron(), ForwardPass(torch.device("cpu"), 1, fold=100_000), draws)
        found = victim.gradient(images, target, cross_entropy).flatten()
    law, u = Gaussian(0.4), weight * images.flatten() - 1
    high, low = torch.sigmoid(torch.tensor(2.0)), 0.5  # p(class 0) with and without a spike
    mean = law.cdf(u) * high + (1 - law.cdf(u)) * low
    # Each draw passes its softmax's slope, at its spike, times the density: p(1-p) * 2 * F'(u) * weight.
    slope = law.cdf(u) * high * (1 - high) + (1 - law.cdf(u)) * 0.25
    expected = -(2 * slope * law.pdf(u) * weight) / mean
    torch.testing.assert_close(found, expected, rtol=0.03, atol=1e-3)  # 6 standard errors: 6e-9


def test_draws_are_folded_and_chunks_change_nothing():
    images, target = torch.rand(7, *SHAPE, generator=seeded(1)), torch.arange(7) % 2
    results = []
    for fold in (1, 6, 1000):
        victim = Victim(Linear(), ForwardPass(torch.device("cpu"), 2, fold=fold), draws=3)
        results.append((victim.gradient(images, target, margin), victim.margins(images, target)))
    for gradient, margins in results[1:]:
        torch.testing.assert_close(gradient, results[0][0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(margins, results[0][1], rtol=1e-5, atol=1e-5)


def test_gradients_and_margins_go_on_in_smaller_parts_where_memory_does_not_suffice(caplog):
    class Small(Linear):
        def forward(self, images, timesteps):
            if len(images) > 20:
                raise torch.OutOfMemoryError
            return super().forward(images, timesteps)

    images, target = torch.rand(30, *SHAPE, generator=seeded(1)), torch.arange(30) % 2
    plain = Victim(Linear(), CPU, draws=3)
    for method in ("gradient", "margins"):
        victim = Victim(Small(), ForwardPass(torch.device("cpu"), 2, fold=256), draws=3)
        extra = (margin,) if method == "gradient" else ()
        torch.testing.assert_close(
            getattr(victim, method)(images, target, *extra),
            getattr(plain, method)(images, target, *extra),
            rtol=1e-5,
            atol=1e-6,
        )
        assert victim.forward.fold == 16 and "out of memory" in caplog.text
    with pytest.raises(torch.OutOfMemoryError):  # all draws of one image go together
        Victim(Small(), ForwardPass(torch.device("cpu"), 2), draws=21).gradient(images, target, margin)


def test_gradients_are_not_taken_in_fp16(deterministic_net):
    victim = Victim(with_gradient_path(deterministic_net, "own"), ForwardPass(torch.device("cpu"), 2, amp="fp16"), 1)
    images, target = torch.rand(4, *SHAPE, generator=seeded(1)), torch.arange(4)
    exact = Victim(victim.net, CPU, 1).gradient(images, target, cross_entropy)
    assert torch.equal(victim.gradient(images, target, cross_entropy), exact)


def test_objectives_by_hand():
    log_p = torch.tensor([[0.7, 0.2, 0.1], [0.3, 0.4, 0.3]]).log()
    target = torch.tensor([0, 2])
    assert cross_entropy(log_p, target).exp().tolist() == pytest.approx([1 / 0.7, 1 / 0.3])
    assert margin(log_p, target).exp().tolist() == pytest.approx([0.2 / 0.7, 0.4 / 0.3])
    wrong = torch.tensor([2, 0])
    assert cross_entropy(log_p, target, wrong).exp().tolist() == pytest.approx([0.1, 0.3])
    assert margin(log_p, target, wrong).exp().tolist() == pytest.approx([0.1 / 0.7, 0.3 / 0.3])


@pytest.mark.parametrize("path", [*GRADIENT_PATHS, "mean_field"])
def test_gradient_paths_change_the_gradient_and_not_the_spikes(noisy_net, path):
    twin = with_gradient_path(noisy_net, path)
    images = torch.rand(4, *SHAPE, generator=seeded(1))
    with noise_generator(seeded(2)):
        logits = noisy_net(images, timesteps=2)
    with noise_generator(seeded(2)):
        found = twin(images, timesteps=2)
    if path not in ("straight_through", "mean_field"):
        assert torch.equal(found, logits)
    assert is_noisy(twin) == (path != "mean_field")
    victim, target = Victim(twin, CPU, draws=2), torch.arange(4)
    assert victim.gradient(images, target, cross_entropy).abs().sum() > 0
    assert all(not parameter.requires_grad for parameter in twin.parameters())
    assert all(parameter.requires_grad for parameter in noisy_net.parameters())
    assert all(module.surrogate is None for module in noisy_net.modules() if isinstance(module, NoisyLIF))


def test_gradient_paths_have_the_densities_that_they_say():
    x = torch.linspace(-1, 3, 50).view(1, 1, 50)
    u = x - 1
    expected = {
        "own": Logistic(0.3).pdf(u),
        "narrow": Gaussian(0.2).pdf(u),
        "middle": Gaussian(0.35).pdf(u),
        "wide": Gaussian(0.6).pdf(u),
        "arctangent": 1 / (1 + (math.pi * u) ** 2),
        "straight_through": torch.ones_like(u),
    }
    for neuron in (NoisyLIF(Logistic(0.3), placement="escape"), LIF(Logistic(0.3))):
        for path, density in expected.items():
            given = x.clone().requires_grad_()
            with_gradient_path(nn.Sequential(neuron), path)(given).sum().backward()
            torch.testing.assert_close(given.grad, density)
    learnt = NoisyLIF(Logistic(0.1), learnable_scale=True, placement="escape")
    learnt.log_scale.data.fill_(math.log(0.3))
    given = x.clone().requires_grad_()
    with_gradient_path(nn.Sequential(learnt), "own")(given).sum().backward()
    torch.testing.assert_close(given.grad, expected["own"])
    given = torch.full((3, 1, 1), -1.0, requires_grad=True)  # of three steps, without a spike
    with_gradient_path(nn.Sequential(LIF(decay=0.5)), "straight_through")(given).sum().backward()
    assert given.grad.flatten().tolist() == [1 + 0.5 + 0.25, 1 + 0.5, 1]  # not through the reset


def test_the_mean_field_of_deterministic_neurons_is_the_law_of_their_surrogate():
    x, options = torch.rand(3, 2, 9, generator=seeded(1)) * 2, dict(decay=0.7, reset="subtract")
    noisy = mean_field_twin(nn.Sequential(NoisyLIF(Cauchy(0.3), **options)))
    for neuron in (LIF(Cauchy(0.3), **options), ParametricLIF(Cauchy(0.3), **options)):
        torch.testing.assert_close(mean_field_twin(nn.Sequential(neuron))(x), noisy(x))


def test_an_unknown_norm_is_an_error():
    with pytest.raises(ValueError, match="'l1'; choose from linf, l2"):
        Ball(torch.zeros(1, *SHAPE), 0.1, "l1")


def test_vanishing_noise_equals_none_with_the_same_gradient(noisy_net):
    images, target = torch.rand(9, *SHAPE, generator=seeded(1)), torch.arange(9) % 4
    twins = [vanishing_noise_twin(noisy_net), noiseless_twin(noisy_net)]
    assert [is_noisy(twin) for twin in twins] == [True, False]
    one, two = (Victim(twin, CPU, 1).gradient(images, target, cross_entropy) for twin in twins)
    torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-6)


def test_square_attack_finds_the_optimum_of_a_linear_network_by_queries_alone():
    victim, images = Victim(Linear(), CPU, draws=1), grey()
    value = images.flatten(1) @ victim.net.w
    target = (value < 0).long()  # as the network sees it
    queried, margins = [], victim.margins
    victim.margins = lambda images, target: queried.append(1) or margins(images, target)
    attacked = square_attack(victim, Ball(images, 0.5), target, 3000, seeded())
    assert (margins(attacked, target) > 0).all() and len(queried) < 3000  # fooled: it stops
    one_class = torch.full((5,), 1 - target[0].item())  # wrong already: nothing to do
    assert len(square_attack(victim, Ball(images, 0.0), one_class, 50, seeded())) == 5
    # The loss must come near that of the best corner.
    victim.net.w = victim.net.w / victim.net.w.abs().sum()
    low = 0.1 * 0.5
    attacked = square_attack(victim, Ball(images + 0.2, low), torch.zeros(5, dtype=torch.int64), 3000, seeded())
    gain = (images + 0.2 - attacked).flatten(1) @ victim.net.w
    assert (gain > 0.6 * low).all() or (victim.margins(attacked, torch.zeros(5, dtype=torch.int64)) > 0).all()


def test_square_measures_a_noisy_network_again():
    """Margins are pure chance: those accepted by luck, or called fooled, must be measured again."""

    class Chance:
        def __init__(self, scale, is_noisy=True):
            self.scale, self.is_noisy, self.generator, self.seen = scale, is_noisy, seeded(), []

        def margins(self, images, target):
            self.seen.append(images.clone())
            return self.scale * torch.randn(len(images), generator=self.generator) - 1

    def repeats(scale, is_noisy):
        """Queries of an image that was asked for already."""
        victim, images = Chance(scale, is_noisy), torch.full((1, 16, 8, 8), 0.5)  # 16 channels: no square comes twice
        square_attack(victim, Ball(images, 0.1), torch.zeros(1), 60, seeded())
        assert len(victim.seen) == 60  # a budget
        start = (victim.seen[0] - images) / 0.1  # vertical stripes
        assert start.abs().min() > 0.999 and torch.equal(start, start[..., :1, :].expand_as(start))
        return sum(
            any(torch.equal(images, before) for before in victim.seen[:index])
            for index, images in enumerate(victim.seen)
        )

    assert repeats(0.01, is_noisy=True) == 5  # every tenth of 60
    assert repeats(0.01, is_noisy=False) == 0
    lucky = Chance(1.5)
    lucky.margins_given = iter([5.0, 0.2, 5.0, 5.0])
    lucky.margins = lambda images, target: torch.full((len(images),), next(lucky.margins_given))
    square_attack(lucky, Ball(grey(1), 0.1), torch.zeros(1), 60, seeded())
    assert list(lucky.margins_given) == []  # 5.0 was not believed the first time, but the second


def test_square_gives_up_images_whose_margins_stay_far_from_0():
    """The farthest margin rises from -2 to a sixth of that."""
    stay, queried = torch.tensor([-3.0, -1.0, -0.1]), []

    class Still:
        is_noisy = False

        def margins(self, images, target):
            queried.append(target.tolist())
            return stay[target]

    square_attack(Still(), Ball(grey(3), 0.1), torch.arange(3), 100, seeded(), grey(3), near=2.0)
    first, *others = queried
    assert first == [0, 1, 2] and others == [[1, 2]] * 20 + [[2]] * 79  # 2 / (1 + 5 q / 100) is 1 at the 20th
    queried.clear()
    square_attack(Still(), Ball(grey(1), 0.1), torch.tensor([0]), 100, seeded(), grey(1), near=2.0)
    assert queried == [[0]]


def test_square_changes_one_square_by_plus_or_minus_eps():
    images = torch.full((4, 3, 8, 8), 0.5)
    changed = with_square(images, Ball(images, 0.1), 0.25, seeded()) - images
    for delta in changed:
        where = delta[0] != 0
        rows, columns = where.any(1).sum(), where.any(0).sum()
        assert rows == columns == 4 and where.sum() == 16
        assert all(len(channel[where].unique()) == 1 for channel in delta)
        assert delta.abs().max() == pytest.approx(0.1)
    black = torch.zeros(500, 1, 8, 8)
    where = with_square(black, Ball(black, 0.1), 0.25, seeded())[:, 0].amax(0) > 0
    assert where.all()  # also at the edges; those of -eps stay black
    for shape in ((9, 4), (4, 9)):  # a square of 0.8 of the pixels would not fit
        images = torch.full((4, 1, *shape), 0.5)
        changed = with_square(images, Ball(images, 0.1), 0.8, seeded()) != images
        assert changed.flatten(1).sum(1).tolist() == [9] * 4
        assert (with_square(images, Ball(images, 0.1), 1e-3, seeded()) != images).sum() == 4  # a pixel each, at least


def test_square_makes_short_steps_on_one_square_in_an_l2_ball():
    images = torch.full((40, 3, 8, 8), 0.5)
    start = random_noise(Ball(images, 0.1, "l2"), seeded())
    stepped = with_square(images, Ball(images, 0.2, "l2"), 0.25, seeded(), 0.5) - images
    assert stepped.flatten(1).norm(dim=1) == pytest.approx(0.1, rel=1e-4)
    assert ((stepped != 0).flatten(1).sum(1) == 3 * 16).all()
    around = with_square(start, Ball(images, 0.1, "l2"), 0.25, seeded(), 0.5) - images
    assert around.flatten(1).norm(dim=1).max() <= 0.1 * (1 + 1e-4) and (around != start - images).any()


def test_square_goes_on_from_given_images_with_small_squares():
    victim, ball = Victim(Linear(), CPU, draws=1), Ball(grey(), 0.1)
    victim.net.bias, target, start = 1e3, torch.zeros(5, dtype=torch.int64), grey() + 0.05
    attacked = square_attack(victim, ball, target, 2, seeded(), start)
    assert ((attacked != start).flatten(1).sum(1) <= 1).all()  # a square of one pixel
    further = square_attack(victim, ball, target, 500, seeded(), start)
    assert (victim.margins(further, target) > victim.margins(start, target)).all()


def test_squares_are_halved_as_published():
    halved = 10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000
    shares = [square_share(query, 10_000) for query in range(10_000)]
    assert shares[0] == 0.8 and shares[-1] == 0.8 / 2**9
    assert [query for query, (one, next_one) in enumerate(zip(shares, shares[1:])) if next_one < one] == list(halved)
    assert [square_share(query, 500) for query in range(500)] == shares[::20]


def test_choosing_among_equal_candidates_and_scoring_afresh_returns_the_clean_accuracy():
    """40 candidates that are all the clean image: their lowest score would be far below their mean, 0.7."""
    images, target = torch.full((200, *SHAPE), 0.7), torch.zeros(200, dtype=torch.int64)
    torch.manual_seed(0)
    victim, few = Victim(NoisyLogits(), CPU, draws=1), Victim(NoisyLogits(), CPU, draws=5)
    best = Attacked(images, few.margins(images, target))
    for _ in range(39):
        best = best.improved(torch.arange(200), Attacked(images, few.margins(images, target)))
    result = score(Victim(victim.net, CPU, draws=100), best.images, target, ensemble=5)
    assert likely(sum(result.times_correct), 20_000, 0.7, comparisons=3)
    by_majority = sum(math.comb(5, k) * 0.7**k * 0.3 ** (5 - k) for k in (3, 4, 5))
    assert result.accuracy_ensemble == pytest.approx(by_majority, abs=deviations(3) * math.sqrt(0.25 / 4000))
    assert result.accuracy_std == pytest.approx(math.sqrt(0.21 / 200), rel=deviations(3) / math.sqrt(200))
    assert sum(result.times_correct) == pytest.approx(100 * 200 * result.accuracy)
    selected = torch.stack([victim.margins(images, target) for _ in range(40)]).amax(0)
    assert (selected < 0).double().mean() < 0.01  # what choosing and scoring by the same draws would have said


def test_draws_that_make_no_whole_ensemble_are_left_out():
    class LastDrawErrs(nn.Module):
        mode = "noisy"

        def forward(self, images, timesteps):
            right = torch.ones(len(images))  # of one image: a draw each
            right[-1] = 0
            return torch.stack([right, 1 - right], -1).expand(timesteps, -1, -1)

    def scored_with(draws, ensemble):
        return score(Victim(LastDrawErrs(), CPU, draws), grey(1), torch.zeros(1, dtype=torch.int64), ensemble)

    seven = scored_with(7, 3)
    assert seven.accuracy == pytest.approx(6 / 7) and seven.times_correct == [6]
    assert seven.accuracy_ensemble == 1 and scored_with(7, 1).accuracy_ensemble == pytest.approx(6 / 7)
    assert scored_with(2, 1).accuracy_std == pytest.approx(0.5**0.5) and scored_with(1, 1).accuracy_std == 0


def test_the_better_candidate_is_chosen_for_each_image():
    target = torch.zeros(3, dtype=torch.int64)
    strong, weak = torch.full((1, *SHAPE), 0.1), torch.full((1, *SHAPE), 0.9)
    torch.manual_seed(0)
    judge = Victim(NoisyLogits(), CPU, draws=50)
    first, second = torch.cat([strong, weak, weak]), torch.cat([weak, strong, strong])
    one, two = (Attacked(images, judge.margins(images, target)) for images in (first, second))
    chosen = one.improved(torch.tensor([0, 2]), two[torch.tensor([0, 2])])
    assert torch.equal(chosen.images, torch.cat([strong, weak, strong]))
    assert torch.equal(chosen.margins, torch.stack([one.margins[0], one.margins[1], two.margins[2]]))


def scored(*shares, draws=100):
    times = [round(share * draws) for share in shares]
    return Score(sum(times) / draws / len(times), 0.0, 0.0, times, draws)


def test_gates_pass_what_is_sound_and_fail_what_is_not():
    low, high = scored(*[0.2] * 50), scored(*[0.8] * 50)
    assert gates.does_not_rise("the linf radius", {0.0: high, 0.1: low}).passed
    failed = gates.does_not_rise("the linf radius", {0.1: low, 0.2: high})
    assert not failed.passed and "rises from 0.1 to 0.2" in failed.detail
    assert gates.not_weaker("PGD", low, {"FGSM": high}).passed
    assert not gates.not_weaker("PGD", high, {"FGSM": high, "Square": low}).passed
    assert "stronger: Square" in gates.not_weaker("PGD", high, {"FGSM": high, "Square": low}).detail
    zero = scored(*[0.0] * 50)
    assert gates.stronger_than_noise("attack", low, high).passed
    assert not gates.stronger_than_noise("attack", high, high).passed
    assert gates.stronger_than_noise("attack", zero, zero).passed  # nothing was left for the attack to do
    assert gates.at_most("planted", zero, 0.02).passed and not gates.at_most("planted", low, 0.02).passed
    assert gates.copies_score_as_clean(low, low).passed
    assert not gates.copies_score_as_clean(low, high).passed
    ones = torch.ones(10, 1, 4, 4)
    assert gates.gradients_are_there(ones, ones).passed and "1.000" in gates.gradients_are_there(ones, ones).detail
    assert not gates.gradients_are_there(torch.zeros_like(ones), ones).passed
    partly = gates.gradients_are_there(ones, torch.where(torch.arange(4) == 1, torch.nan, ones))
    assert not partly.passed and partly.detail.endswith("; some are not finite")
    assert "finite" not in gates.gradients_are_there(ones, ones).detail


def test_the_limits_of_gates():
    few = scored(*[0.05] * 50)
    assert gates.stronger_than_noise("attack", few, few).passed
    little = scored(*[0.06] * 50)
    assert not gates.stronger_than_noise("attack", little, little).passed
    without = torch.ones(20, 1, 4, 4)
    without[0] = 0
    some = gates.gradients_are_there(without, without)
    assert some.passed and some.detail.startswith("5.0 % of the images have none, 5.0 % of the pixels; ")
    without[1] = 0
    without[2, :, :2] = 0
    many = gates.gradients_are_there(without, without)
    assert not many.passed and many.detail.startswith("10.0 % of the images have none, 12.5 % of the pixels; ")
    images = [scored(*[float(i >= turned) for i in range(50)], draws=1) for turned in (0, 9, 10)]
    # Nine images that all turn one way are within 0.01 and three standard errors of 3 / 50; ten are not.
    assert gates.vanishing_noise_equals_noiseless("", images[1], images[0]).passed
    assert not gates.vanishing_noise_equals_noiseless("", images[2], images[0]).passed


def test_a_difference_counts_beyond_a_hundredth_and_three_standard_errors():
    one, two = scored(0.75, 1.0, draws=1), scored(0.0, 0.0, draws=1)
    assert gates.excess(one, two) == pytest.approx(1.0 - 0.01)  # no noise, no error
    assert gates.excess(one, two, slack=0.0) == pytest.approx(1.0)
    noisy, certain = scored(0.5, 0.0, draws=101), scored(1.0, 1.0, draws=101)
    share = 50 / 101
    error = math.sqrt(share * (1 - share) / 100) / 2  # of the mean of two images
    assert gates.excess(certain, noisy) == pytest.approx(1 - share / 2 - 0.01 - 3 * error)
    assert gates.excess(noisy, certain) == pytest.approx(share / 2 - 1 - 0.01 - 3 * error)
    three = scored(0.5, 0.5, draws=2)
    assert gates.excess(three, two) == pytest.approx(0.5 - 0.01 - 3 * math.sqrt(2 * 0.25 / 1) / 2)


def test_vanishing_noise_may_turn_images_both_ways_but_not_one_way():
    some, others = (scored(*[float(i in turned) for i in range(50)], draws=1) for turned in (range(20), range(5, 25)))
    assert gates.vanishing_noise_equals_noiseless("", some, some).passed
    assert gates.vanishing_noise_equals_noiseless("", some, others).passed
    many = scored(*[float(i < 35) for i in range(50)], draws=1)
    assert not gates.vanishing_noise_equals_noiseless("", some, many).passed
    assert not gates.vanishing_noise_equals_noiseless("", many, some).passed
    everywhere = scored(*[0.2] * 50), scored(*[0.8] * 50)
    assert not gates.vanishing_noise_equals_noiseless("", *everywhere).passed


def test_chance_alone_does_not_fail_a_gate_but_a_real_rise_does():
    generator, failures = seeded(1), {0.0: 0, 0.06: 0}
    for rise in failures:
        for _ in range(100):
            shares = torch.rand(100, generator=generator) * 0.9
            first, second = (
                torch.binomial(torch.full((100,), 100.0), part, generator=generator) for part in (shares, shares + rise)
            )
            low, high = (Score(times.mean().item() / 100, 0.0, 0.0, times.tolist(), 100) for times in (first, second))
            failures[rise] += not gates.does_not_rise("radius", {0.1: low, 0.2: high}).passed
    # Its bound is 4.7 standard errors from the one and 5.3 from the other: two of a hundred are beyond it in 2e-8.
    assert failures[0.0] <= 1 and failures[0.06] >= 99


def test_a_planted_weakness_changes_nothing_on_the_images_and_all_within_reach(deterministic_net):
    images = torch.rand(6, *SHAPE, generator=seeded(1)).mul(0.8).add(0.1)
    net, planted = deterministic_net, Planted(deterministic_net, images, 8 / 255, 4.0)
    torch.testing.assert_close(planted(images, 2), net(images, 2), rtol=1e-4, atol=1e-4)
    ideal = images + 8 / 255 * planted.direction.sign().view(SHAPE)
    torch.testing.assert_close(planted(ideal, 2), net(ideal, 2) * -3, rtol=1e-3, atol=1e-3)
    one = Planted(deterministic_net, images[:1], 8 / 255, 4.0)
    torch.testing.assert_close(one(images[:1], 2), net(images[:1], 2), rtol=1e-4, atol=1e-4)


TINY = Preset(images=12, sample=6, gradients=12, draws=3, rounds=1, paths=2, targets=1, queries=12, score_draws=20)
RADII = {"linf": (2 / 255, 8 / 255), "l2": (0.5,)}


def test_a_glance_is_at_one_radius_of_one_norm():
    radii = {"linf": (0.05, 0.1, 0.15, 0.2, 0.3), "l2": (1.0, 2.0)}
    assert PRESETS["glance"].of(radii) == {"linf": (0.15,)} and PRESETS["quick"].of(radii) == radii
    assert PRESETS["glance"].of({"l2": (0.5, 1.0)}) == {"l2": (0.5,)}


def test_a_campaign_reports_every_attack_and_every_gate(noisy_net, deterministic_net, relu_net):
    images = torch.rand(12, *SHAPE, generator=seeded(1))
    for net, draws in ((noisy_net, 20), (deterministic_net, 1), (relu_net, 1)):
        with torch.no_grad(), noise_generator(seeded(3)):
            target = net(images, timesteps=8).mean(0).argmax(-1)
        report = Campaign(net, CPU, images, target, TINY, RADII).run()
        assert report.clean.draws == draws and report.images == 12 and report.settings["queries"] == 12
        everywhere = {(row.norm, row.eps, row.images) for row in report.attacks if row.attack == "all"}
        assert everywhere == {("linf", 2 / 255, 12), ("linf", 8 / 255, 12), ("l2", 0.5, 12)}
        rivals = [row for row in report.attacks if row.attack != "all"]
        names = ["white box", "random noise", "FGSM"]
        names += ["transfer, noiseless"] if draws > 1 else []  # without noise, that is the network itself
        names += ["transfer, mean field"] if net is not relu_net else []
        squares = ["Square", "Square, continued"]
        assert [row.attack for row in rivals] == [*names, *squares] * 2
        assert {row.images for row in rivals} == {6} and len({row.eps for row in rivals}) == 2
        assert len(report.paths) == (1 if net is relu_net else 2) and set(report.paths) <= GRADIENT_PATHS.keys()
        gate_names = [gate.name for gate in report.gates]
        assert len(gate_names) == len(set(gate_names)) == (15 if draws > 1 else 13)
        assert any(name.startswith("scale -> 0 is the deterministic network") for name in gate_names) == (draws > 1)
        assert report.reliable == all(gate.passed for gate in report.gates)
        passed = {gate.name: gate.passed for gate in report.gates}
        assert passed["doing nothing leaves the clean accuracy"]
        copies = next(gate for gate in report.gates if gate.name == "doing nothing leaves the clean accuracy")
        assert len(set(copies.detail.split(" and "))) == (2 if draws > 1 else 1)  # by other draws, where there is noise
        assert Campaign(net, CPU, images, target, TINY, RADII, seed=0).run() == report
        assert report.label == "upper bound on robustness"
        assert AttackReport.from_json(json.loads(json.dumps(report.as_json()))) == report


def test_the_radius_of_half_the_accuracy_lies_on_the_curve():
    def report(*shares):
        rows = [AttackResult("linf", eps, "all", 10, scored(*[share] * 10)) for eps, share in zip((0.1, 0.3), shares)]
        rows.append(AttackResult("linf", 0.3, "FGSM", 4, scored(*[0.0] * 4)))
        return AttackReport("", {}, 10, scored(*[0.9] * 10), [], rows, [])

    assert report(0.7, 0.2).curve("linf") == pytest.approx({0.0: 0.9, 0.1: 0.7, 0.3: 0.2})
    assert report(0.7, 0.2).half_radii == pytest.approx({"linf": 0.1 + 0.2 * 0.2 / 0.5})
    assert report(0.1, 0.0).half_radii == pytest.approx({"linf": 0.1 * 0.4 / 0.8})
    assert report(0.8, 0.6).half_radii == {"linf": None}
    assert report(0.3).half_radii == {}  # one radius has no curve


def test_the_middle_radius_comes_first():
    assert middle_first([1, 2, 3, 4, 5]) == [3, 2, 5, 1, 4] and middle_first([7]) == [7]


class Threshold(nn.Module):
    """Errs where the mean pixel exceeds a threshold, which each image carries in its first pixel."""

    def __init__(self):
        super().__init__()
        self.neuron = LIF(Gaussian(0.5))  # its spikes are not used

    def forward(self, images, timesteps):
        value = 20 * (images[:, 0, 1:].mean((1, 2)) - 0.5 - images[:, 0, 0, 0].detach())
        return torch.stack([0 * value, value], -1).expand(timesteps, -1, -1)


def test_images_that_are_settled_at_one_radius_are_not_attacked_at_others(monkeypatch):
    images = torch.full((3, 1, 8, 8), 0.5)
    images[:, 0, 0, 0] = torch.tensor([0.05, 0.15, 0.35])  # fooled from these radii on
    campaign = Campaign(Threshold(), CPU, images, torch.zeros(3, dtype=torch.int64), TINY, {"linf": (0.1, 0.2, 0.3)})
    sizes = []

    def counted(part, norm, eps):
        sizes.append((eps, len(part.images)))
        moved = part.images.clone()
        moved[:, 0, 1:] += eps
        return Attacked(moved, part.victim().margins(moved, part.target))

    monkeypatch.setattr("tools.attacks.white_box.search", counted)
    found = curve(campaign, "linf")
    assert sizes == [(0.2, 3), (0.1, 2), (0.3, 1)]
    assert [(found[eps].margins > 0).tolist() for eps in found] == [[1, 0, 0], [1, 1, 0], [1, 1, 0]]
    assert list(found) == [0.1, 0.2, 0.3]


@pytest.fixture
def campaign(noisy_net):
    return Campaign(noisy_net, CPU, torch.rand(12, *SHAPE, generator=seeded(1)), torch.arange(12) % 4, TINY, RADII)


def test_making_choosing_and_scoring_have_draws_of_their_own(campaign, monkeypatch):
    purposes, original = [], Campaign.noise

    def noise(self, *purpose):
        purposes.append(purpose)
        return original(self, *purpose)

    monkeypatch.setattr(Campaign, "noise", noise)
    for call in (
        lambda: ascend(campaign, "linf", 0.1, Climb("own", margin, None, 1, 1)),
        lambda: ascend(campaign, "linf", 0.1, Climb("own", margin, None, 1, 1), turn=1),
        lambda: Campaign(campaign.net, CPU, campaign.images, campaign.target, TINY, RADII),  # chooses the starts
        lambda: campaign.score(campaign.images),
    ):
        call()
    assert len(purposes) == len(set(purposes)) == 4
    values = []
    for purpose in list(purposes):
        with campaign.noise(*purpose):
            values.append(campaign.net(campaign.images, timesteps=2))
    assert not any(torch.equal(one, other) for one, other in zip(values, values[1:]))
    other_seed = Campaign(campaign.net, CPU, campaign.images, campaign.target, TINY, RADII, seed=1)
    assert other_seed.score(campaign.images) != campaign.score(campaign.images)


def climbed_by(campaign, monkeypatch, margins):
    """The ascents of a search in which each path leaves all images at its margin."""
    campaign.typical_margin, climbed = -1.0, []

    def spy(part, norm, eps, climb, start=None, turn=0):
        climbed.append((climb.path, climb.objective, climb.rank, climb.draws, start is not None))
        return Attacked(part.images, torch.full_like(part.margins, margins[climb.path]))

    campaign.paths = list(margins)
    monkeypatch.setattr("tools.attacks.white_box.ascend", spy)
    search(campaign, "linf", 0.1)
    return climbed


@pytest.mark.parametrize("best", ["middle", "wide"])
def test_the_white_box_climbs_all_paths_and_goes_on_along_the_best(campaign, monkeypatch, best):
    assert climbed_by(campaign, monkeypatch, {"middle": -0.02, "wide": -0.02, best: -0.01}) == [
        ("middle", margin, None, 1, False),
        ("wide", margin, None, 1, False),
        (best, cross_entropy, None, 1, False),
        (best, margin, 1, 1, False),
        (best, margin, None, 10, True),
    ]


@pytest.mark.parametrize("best", ["middle", "wide"])
def test_what_a_path_fools_is_not_climbed_along_the_next(campaign, monkeypatch, best):
    """One image is fooled by each path; of the others, one comes near, nearest along the best path."""
    climbed, target = [], campaign.target.tolist()
    near = {"middle": -0.2, "wide": -0.2, best: -0.1}

    def spy(part, norm, eps, climb, start=None, turn=0):
        climbed.append((climb.path, climb.objective, part.target.tolist()))
        margins = torch.full_like(part.margins, -9.0)
        margins[0], margins[-1] = 9.0, near[climb.path]
        return Attacked(part.images + len(climbed), margins)

    campaign.paths, campaign.typical_margin = ["middle", "wide"], -1.0
    monkeypatch.setattr("tools.attacks.white_box.ascend", spy)
    found = search(campaign, "linf", 0.1)
    assert climbed[:2] == [("middle", margin, target), ("wide", margin, target[1:])]
    assert climbed[2] == (best, cross_entropy, target[-1:])
    assert found.margins[:2].tolist() == [9.0, 9.0] and (found.margins[2:-1] == -9).all()
    added = (found.images - campaign.images).flatten(1).mean(1)
    assert added[:-1].tolist() == pytest.approx([1, 2] + [1] * (len(target) - 3))  # of equal margins, the first


def test_nothing_is_climbed_once_all_images_are_fooled(campaign, monkeypatch):
    assert len(climbed_by(campaign, monkeypatch, {"middle": 9.0, "wide": 9.0})) == 1


def test_square_refines_images_without_noise_that_are_near(deterministic_net, monkeypatch):
    images, given = torch.rand(12, *SHAPE, generator=seeded(1)), []
    campaign = Campaign(deterministic_net, CPU, images, torch.zeros(12, dtype=torch.int64), TINY, {"linf": (0.1,)})
    campaign.typical_margin = -10.0

    def square(victim, ball, target, queries, generator, start, near):
        given.append((len(target), queries, near))
        return start

    def ascend(part, norm, eps, climb, start=None, turn=0):
        margins = torch.full_like(part.margins, -9.0)
        margins[-3:] = -3.0
        return Attacked(part.images, margins)

    monkeypatch.setattr("tools.attacks.white_box.square_attack", square)
    monkeypatch.setattr("tools.attacks.white_box.ascend", ascend)
    search(campaign, "linf", 0.1)
    assert given[0] == (3, 12 * TINY.gradients, 4.0)


def test_images_that_are_far_from_being_fooled_are_climbed_once_along_each_path(campaign, monkeypatch):
    assert len(climbed_by(campaign, monkeypatch, {"middle": -0.9, "wide": -0.8})) == 2


def test_the_best_path_of_the_middle_radius_and_of_a_smaller_one_come_first(campaign, monkeypatch):
    """The wide density does most harm in the middle, where no image withstands it, the narrow one below."""
    campaign.radii = {"linf": (0.1, 0.2, 0.3, 0.4, 0.5)}
    tried = []

    def spy(part, norm, eps, climb):
        tried.append((eps, climb.path))
        order = ["wide", "middle"] if eps > 0.15 else ["narrow", "own"]
        place = order.index(climb.path) if climb.path in order else 2
        fooled = eps > 0.15
        images = torch.full_like(part.images, 1.0 if fooled else 0.0)
        return Attacked(images, torch.full_like(part.margins, -0.1 * place))

    right = Score(1.0, 0.0, 1.0, [20] * 6, 20)
    wrong = Score(0.0, 0.0, 0.0, [0] * 6, 20)
    monkeypatch.setattr("tools.attacks.white_box.ascend", spy)
    monkeypatch.setattr(Campaign, "score", lambda self, images: wrong if images.mean() == 1 else right)
    ranking = ranked_paths(campaign)
    assert ranking[:2] == ["wide", "narrow"] and sorted(ranking) == sorted(GRADIENT_PATHS)
    assert {eps for eps, _ in tried} == {0.3, 0.2, 0.1}


def test_a_path_whose_gradient_leads_nowhere_is_ranked_last(deterministic_net, monkeypatch):
    monkeypatch.setitem(GRADIENT_PATHS, "narrow", (lambda law: Gaussian(1e-4), True))  # no potential is that near
    images = torch.rand(12, *SHAPE, generator=seeded(1))
    target = deterministic_net(images, timesteps=2).mean(0).argmax(-1)
    campaign = Campaign(deterministic_net, CPU, images, target, TINY, {"linf": (0.1,)})
    assert ranked_paths(campaign)[-1] == "narrow"


class Backward(torch.autograd.Function):
    """The identity, with another gradient."""

    @staticmethod
    def forward(ctx, x, change):
        ctx.change = change
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return ctx.change(gradient), None


def half_random(gradient):
    is_random = (torch.arange(gradient[0].numel()) % 2 == 0).view(gradient.shape[1:])
    return torch.where(is_random, torch.randn_like(gradient) * gradient.std(), gradient)


def tenth_shuffled(gradient):
    """A tenth of the pixels, always the same ones, with the gradients of each other."""
    shuffled, some = gradient.flatten(1).clone(), torch.arange(0, gradient[0].numel(), 10)
    shuffled[:, some] = shuffled[:, some.roll(3)]
    return shuffled.view_as(gradient)


class Defended(nn.Module):
    """A network that hides its gradient, or its weakness, in one of the ways that were published as defences."""

    def __init__(self, net, how):
        super().__init__()
        self.net, self.how = net, how

    def forward(self, images, timesteps):
        match self.how:
            case "dead":
                images = Backward.apply(images, torch.zeros_like)
            case "reversed":
                images = Backward.apply(images, torch.neg)
            case "random":
                images = Backward.apply(images, torch.randn_like)
            case "half random":
                images = Backward.apply(images, half_random)
            case "tenth shuffled":
                images = Backward.apply(images, tenth_shuffled)
            case "quantised":
                images = (4 * images).round() / 4
        logits = self.net(images, timesteps)
        return 1e4 * logits if self.how == "large logits" else logits


SMALL = Preset(images=30, sample=30, gradients=60, draws=3, rounds=1, paths=2, targets=1, queries=150, score_draws=20)


def defended(net, how):
    """The report of attacks on a network that is defended, and that is right on all images without attacks."""
    images = torch.rand(200, *SHAPE, generator=seeded(1))
    with torch.no_grad():
        logits, classes = net(images, timesteps=2).mean(0).topk(2)
    clear = (logits[:, 0] - logits[:, 1]).argsort(descending=True)[:30]
    net = Defended(net, how)
    if how == "quantised":
        images = (4 * images).round() / 4
        classes = net(images, timesteps=2).mean(0).topk(2).indices
    if how == "narrow surrogate":
        net = copy.deepcopy(net)
        for neuron in net.modules():
            if isinstance(neuron, LIF):
                neuron.set_gradient(Gaussian(0.01))
    return Campaign(net, CPU, images[clear], classes[clear, 0], SMALL, {"linf": (0.01, 0.03, 0.06, 0.1)}).run()


@pytest.fixture(scope="module")
def undefended(deterministic_net):
    return defended(deterministic_net, "none")


def test_a_network_without_a_defence_passes_all_gates(undefended):
    assert [gate for gate in undefended.gates if not gate.passed] == []
    assert list(undefended.curve("linf").values())[-1] < 0.2


@pytest.mark.parametrize("how", first_are_fast(["random", "dead", "reversed", "half random", "quantised"]))
def test_a_defence_that_hides_the_gradient_is_noticed(deterministic_net, undefended, how):
    report = defended(deterministic_net, how)
    assert not report.reliable, report.curve("linf")


@pytest.mark.parametrize("how", ["random", "dead", "reversed", "half random", "tenth shuffled"])
@pytest.mark.parametrize("net", ["deterministic_net", "noisy_net", "relu_net"])
def test_a_gradient_that_is_no_derivative_of_its_network_is_noticed(request, net, how):
    net = Defended(request.getfixturevalue(net), how)
    gate = gates.check_derivatives(campaign_of_random_images(net))
    assert not gate.passed and "for 0.0 %" not in gate.detail, gate.detail


LAWS = ["NILIF", "NILIF_sigmoid", "NILIF_triang", "NILIF_uniform", "NILIF_atan"]


@pytest.mark.parametrize(
    "neuron",
    [
        *(build_neuron(law, learnable_scale=True) for law in LAWS),
        build_neuron("NILIF", detach_reset=True, reset="subtract", sigma=0.1),
        build_neuron("NILIF", gradient_sigma=1.0, placement="membrane"),
        build_neuron("LIF", detach_reset=True),
        build_neuron("PLIF", alpha=5.0),
        build_neuron("ReLU"),
    ],
)
def test_the_gradients_of_networks_are_derivatives(neuron):
    torch.manual_seed(0)
    net = build_model("vgg", neuron=neuron, in_shape=SHAPE, num_classes=4, width=0.1)
    for layer in net.modules():
        layer.momentum = None  # batch normalisation then has the statistics of this:
    net(torch.rand(50, *SHAPE), timesteps=3)
    net.eval()
    for how, passes in (("none", True), ("large logits", True), ("reversed", False)):
        gate = gates.check_derivatives(campaign_of_random_images(Defended(net, how), timesteps=3))
        assert gate.passed == passes, (how, gate.detail)


def test_gradients_of_a_network_that_needs_single_precision_are_checked_too(noisy_net):
    class Single(Defended):
        def forward(self, images, timesteps):
            return super().forward(images, timesteps) @ torch.eye(4)

    for how, passes in (("none", True), ("tenth shuffled", False)):
        gate = gates.check_derivatives(campaign_of_random_images(Single(noisy_net, how)))
        assert gate.passed == passes and "in single precision" in gate.detail, gate.detail


def campaign_of_random_images(net, timesteps=2):
    images, forward = torch.rand(20, *SHAPE, generator=seeded(1)), ForwardPass(torch.device("cpu"), timesteps)
    return Campaign(net, forward, images, torch.arange(20) % 4, dataclasses.replace(TINY, sample=20), RADII)


@pytest.mark.parametrize("how", first_are_fast(["narrow surrogate", "large logits"]))
def test_a_defence_that_weakens_the_gradient_is_broken(deterministic_net, undefended, how):
    report = defended(deterministic_net, how)
    for eps, accuracy in undefended.curve("linf").items():
        assert report.curve("linf")[eps] <= accuracy + 0.1


def test_noise_at_the_input_that_no_neuron_admits_is_an_error(deterministic_net):
    class NoisyInput(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = deterministic_net

        def forward(self, images, timesteps):
            return self.net(images + 0.3 * torch.randn_like(images), timesteps)

    with pytest.raises(UserError, match="its outputs change from call to call"):
        Campaign(NoisyInput(), CPU, torch.rand(12, *SHAPE), torch.zeros(12, dtype=torch.int64), TINY, RADII)

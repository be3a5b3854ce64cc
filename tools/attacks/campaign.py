"""All attacks of a preset on one network, their scores on fresh draws, and the gates."""

import dataclasses
import functools

import torch
from tqdm import tqdm

from models import noise_generator
from tools.probes.hooks import is_noisy

from .checks import run_checks
from .gradients import fgsm, pgd, random_noise
from .scores import choose, score
from .square import square_attack
from .twins import GRADIENT_PATHS, mean_field_twin, noiseless_twin, with_gradient_path
from .victim import Victim, cross_entropy, margin

CHOICE_DRAWS, SCORE_DRAWS = 20, 100
SUBSET = 2023  # seed that chooses the images: the same for every network
OBJECTIVES = (cross_entropy, margin)  # in turn for the restarts: each fails where the other need not


MAKING, CHOOSING, SCORING = 0, 1000, 2000  # purposes of draws


@dataclasses.dataclass(frozen=True)
class RadiusTest:
    """What was done at one radius: the attacked images of each restart of the first path, and {attack: score}."""

    restarts: list
    scores: dict


@dataclasses.dataclass(frozen=True)
class Preset:
    """How thorough an evaluation by attacks is.

    Args:
        images: of the test part.
        steps: of projected gradient descent.
        draws: of the noise in each gradient and each query.
        restarts: of each gradient path.
        paths: names of `GRADIENT_PATHS`, or "mean_field".
        radii: (norm, radius in pixel units) of each test.
        queries: of the Square attack, for each image and Linf radius.
    """

    images: int
    steps: int
    draws: int
    restarts: int
    paths: tuple
    radii: tuple
    queries: int


PRESETS = {
    "quick": Preset(200, 20, 5, 2, ("own", "arctangent"), (("linf", 2 / 255), ("linf", 8 / 255)), 500),
    "full": Preset(
        1000,
        50,
        20,
        5,
        (*GRADIENT_PATHS, "mean_field"),
        (*(("linf", eps / 255) for eps in (1, 2, 4, 8)), ("l2", 0.5)),
        2000,
    ),
}


class Campaign:
    """Attacks on one network.

    Args:
        net: images [B, C, H, W] in [0, 1], timesteps -> logits [T, B, K].
        forward: `inference.ForwardPass`.
        images, target: test images and labels, on the network's device.
        preset: `Preset`.
        seed: of everything random.
    """

    def __init__(self, net, forward, images, target, preset, seed=0):
        self.net, self.forward, self.preset, self.seed = net.eval(), forward, preset, seed
        self.images, self.target = images, target
        self.is_noisy = is_noisy(net)
        self.draws = preset.draws if self.is_noisy else 1
        self.bar = tqdm(disable=True)

    def run(self):
        """Attack, score and check.

        Returns:
            {"clean": score, "attacks": list of {"norm", "eps", "attack", and score}, "gates": list of {"name",
            "passed", "detail"}, "reliable": whether all passed}.
        """
        rows = []
        with tqdm(desc="attacks", unit="step", disable=None, leave=False) as self.bar:
            clean = self.score(self.images)
            tests = {radius: self._attack(*radius) for radius in self.preset.radii}
            outcomes = run_checks(self, clean, tests)
        for (norm, eps), test in tests.items():
            rows += [{"norm": norm, "eps": eps, "attack": name, **result} for name, result in test.scores.items()]
        return {
            "clean": clean,
            "attacks": rows,
            "gates": [dataclasses.asdict(gate) for gate in outcomes],
            "reliable": all(gate.passed for gate in outcomes),
        }

    def _attack(self, norm, eps):
        """All attacks at one radius, as `RadiusTest`; the last one, "all", takes the best attack on each image."""
        gradient = functools.partial(self.victim().gradient, objective=cross_entropy)
        with self.noise(MAKING):
            found = {
                "random noise": random_noise(self.images, eps, norm, self.generator()),
                "FGSM": fgsm(gradient, self.images, self.target, eps, norm),
            }
        candidates = {
            (path, restart): self.pgd(with_gradient_path(self.net, path), norm, eps, restart=restart)
            for path in self.preset.paths
            for restart in range(self.preset.restarts)
        }
        found["PGD"] = self.choose([self.images, *candidates.values()])
        found["transfer, noiseless"] = self.pgd(noiseless_twin(self.net), norm, eps)
        found["transfer, mean field"] = self.pgd(mean_field_twin(self.net), norm, eps)
        if norm == "linf":
            found["Square"] = self.choose([self.images, self._square(eps)])
        found["all"] = self.choose([self.images, *found.values()])
        restarts = [images for (path, _), images in candidates.items() if path == self.preset.paths[0]]
        return RadiusTest(restarts, {name: self.score(images) for name, images in found.items()})

    def victim(self, net=None, draws=None):
        """A network, or else that of this campaign, with the preset's draws (1 where there is no noise)."""
        net = self.net if net is None else net
        return Victim(net, self.forward, (draws or self.draws) if is_noisy(net) else 1)

    def pgd(self, net, norm, eps, *, images=None, target=None, restart=0, steps=None, draws=None, keeps_best=True):
        """Projected gradient descent on a network; all that is not said is as the preset has it.

        Args:
            keeps_best: of a network without noise, the best point on the way is taken, and not the last one. With noise
                it may have been the best by luck.
        """
        images, target = (self.images, self.target) if images is None else (images, target)
        steps = steps or self.preset.steps
        self.bar.set_postfix_str(f"PGD, {norm} {eps:.2g}")
        with self.noise(MAKING + restart):
            victim, generator = self.victim(net, draws), self.generator(restart)
            margins = victim.margins if keeps_best and not is_noisy(net) else None
            gradient = functools.partial(victim.gradient, objective=OBJECTIVES[restart % len(OBJECTIVES)])
            return pgd(gradient, images, target, eps, norm, steps, generator, margins, self.bar.update)

    def _square(self, eps):
        self.bar.set_postfix_str(f"Square, {eps:.2g}")
        with self.noise(MAKING):
            return square_attack(
                self.victim(),
                self.images,
                self.target,
                eps,
                self.preset.queries,
                self.generator(),
                self.is_noisy,
                self.bar.update,
            )

    def choose(self, candidates, net=None, target=None):
        """The best of several attacked images, by draws of the noise that nothing else sees."""
        self.bar.set_postfix_str("choosing")
        victim = self.victim(net, CHOICE_DRAWS)
        with self.noise(CHOOSING):
            return choose(victim, candidates, self.target if target is None else target, victim.draws)

    def score(self, images, net=None, target=None, noise=0):
        """The score on attacked images, by draws that nothing else sees; other ones for another `noise`."""
        self.bar.set_postfix_str("scoring")
        victim = self.victim(net, SCORE_DRAWS)
        target = self.target if target is None else target
        with self.noise(SCORING + noise):
            return score(victim.net, self.forward, images, target, victim.draws, min(self.draws, victim.draws))

    def noise(self, purpose=MAKING):
        """The network's noise from a generator of its own for each purpose."""
        seed = 1_000_000 * (self.seed + 1) + purpose
        return noise_generator(torch.Generator(self.forward.device).manual_seed(seed))

    def generator(self, number=0):
        """Of starts and squares; on the CPU, so that all devices and networks have the same."""
        return torch.Generator().manual_seed(1000 * self.seed + number)

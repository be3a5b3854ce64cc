"""All attacks of a preset on one network, their scores on fresh draws, and the gates."""

import dataclasses
import functools
import json
from contextlib import AbstractContextManager
from typing import Any

from torch import Generator, Tensor, nn
from tqdm import tqdm

from models import noise_generator
from tools.inference import ForwardPass
from tools.probes.hooks import is_noisy
from tools.runtime.seeds import derived_seed

from .checks import run_checks
from .gates import Gate
from .gradients import Ball, fgsm, pgd, random_noise
from .scores import Score, choose, score
from .square import square_attack
from .twins import GRADIENT_PATHS, mean_field_twin, noiseless_twin, with_gradient_path
from .victim import Victim, cross_entropy, margin

CHOICE_DRAWS, SCORE_DRAWS = 20, 100
SUBSET = 2023  # seed that chooses the images: the same for every network
OBJECTIVES = (cross_entropy, margin)  # in turn for the restarts: each fails where the other may succeed


@dataclasses.dataclass(frozen=True)
class Preset:
    """How thorough an evaluation by attacks is."""

    images: int  # of the test part
    steps: int  # of projected gradient descent
    draws: int  # of the noise in each gradient and each query
    restarts: int  # of each gradient path
    paths: tuple[str, ...]  # names of `GRADIENT_PATHS`, or "mean_field"
    radii: tuple[tuple[str, float], ...]  # (norm, radius in pixel units) of each test
    queries: int  # of the Square attack, for each image and Linf radius

    def as_json(self) -> dict[str, Any]:
        """As JSON has it: with lists for tuples."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


PRESETS = {
    "quick": Preset(200, 20, 5, 2, ("own", "arctangent"), (("linf", 2 / 255), ("linf", 8 / 255)), 500),
    "full": Preset(
        images=1000,
        steps=50,
        draws=20,
        restarts=5,
        paths=(*GRADIENT_PATHS, "mean_field"),
        radii=(("linf", 1 / 255), ("linf", 2 / 255), ("linf", 4 / 255), ("linf", 8 / 255), ("l2", 0.5)),
        queries=2000,
    ),
}


@dataclasses.dataclass(frozen=True)
class RadiusTest:
    """What was done at one radius."""

    restarts: list[Tensor]  # the attacked images of each restart of the first path
    scores: dict[str, Score]  # by attack


@dataclasses.dataclass(frozen=True)
class AttackResult:
    """The score of a network under one attack; `eps` is the radius in pixel units."""

    norm: str
    eps: float
    attack: str
    score: Score


@dataclasses.dataclass(frozen=True)
class AttackReport:
    """What a campaign found: scores without attack and under each one, and gates that say whether to believe them."""

    preset: str  # its name
    settings: dict[str, Any]  # its values, as plain data
    images: int  # that were attacked
    clean: Score
    attacks: list[AttackResult]
    gates: list[Gate]
    label: str = "upper bound on robustness"

    @property
    def reliable(self) -> bool:
        """Whether all gates passed."""
        return all(gate.passed for gate in self.gates)

    def as_json(self) -> dict[str, Any]:
        """As plain data; the score of an attack is flat in its row."""
        content = {"label": self.label, **dataclasses.asdict(self), "reliable": self.reliable}
        for row in content["attacks"]:
            row.update(row.pop("score"))
        return content

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "AttackReport":
        """The report that `as_json` gave."""
        attacks = []
        for row in content["attacks"]:
            attacks.append(AttackResult(row.pop("norm"), row.pop("eps"), row.pop("attack"), Score(**row)))
        gates, clean = [Gate(**gate) for gate in content["gates"]], Score(**content["clean"])
        known = {name: content[name] for name in ("preset", "settings", "images", "label")}
        return cls(clean=clean, attacks=attacks, gates=gates, **known)


class Campaign:
    """Attacks on one network.

    Args:
        net: images [B, C, H, W] in [0, 1], timesteps -> logits [T, B, K].
        forward: how the network is run.
        images, target: test images and labels, on the network's device.
        preset: how thorough.
        seed: of everything random.
        name: of the preset, for the report.
    """

    def __init__(
        self,
        net: nn.Module,
        forward: ForwardPass,
        images: Tensor,
        target: Tensor,
        preset: Preset,
        seed: int = 0,
        name: str = "",
    ):
        self.net, self.forward, self.seed = net.eval(), forward, seed
        self.images, self.target, self.preset, self.name = images, target, preset, name
        self.is_noisy = is_noisy(net)
        self.draws = self.preset.draws if self.is_noisy else 1
        self.bar = tqdm(disable=True)

    def run(self) -> AttackReport:
        """Attack, score and check."""
        with tqdm(desc="attacks", unit="step", disable=None, leave=False) as self.bar:
            clean = self.score(self.images)
            tests = {radius: self.attack(*radius) for radius in self.preset.radii}
            gates = run_checks(self, clean, tests)
        rows = []
        for (norm, eps), test in tests.items():
            rows += [AttackResult(norm, eps, name, result) for name, result in test.scores.items()]
        return AttackReport(self.name, self.preset.as_json(), len(self.images), clean, rows, gates)

    def attack(self, norm: str, eps: float) -> RadiusTest:
        """All attacks at one radius; the last one, "all", takes the best attack on each image."""
        gradient, ball = (
            functools.partial(self.victim().gradient, objective=cross_entropy),
            Ball(self.images, eps, norm),
        )
        with self.noise("making", "FGSM"):
            found = {
                "random noise": random_noise(ball, self.generator("random noise")),
                "FGSM": fgsm(gradient, ball, self.target),
            }
        candidates, of_first_path = [], []
        for path in self.preset.paths:
            for restart in range(self.preset.restarts):
                candidates.append(self.pgd(with_gradient_path(self.net, path), norm, eps, restart=restart))
                if path == self.preset.paths[0]:
                    of_first_path.append(candidates[-1])
        found["PGD"] = self.choose([self.images, *candidates])
        found["transfer, noiseless"] = self.pgd(noiseless_twin(self.net), norm, eps)
        found["transfer, mean field"] = self.pgd(mean_field_twin(self.net), norm, eps)
        if norm == "linf":
            found["Square"] = self.choose([self.images, self._square(eps)])
        found["all"] = self.choose([self.images, *found.values()])
        return RadiusTest(of_first_path, {name: self.score(images) for name, images in found.items()})

    def victim(self, net: nn.Module | None = None, draws: int | None = None) -> Victim:
        """A network (default: this campaign's) with `draws` of its noise (default: the preset's)."""
        net = self.net if net is None else net
        return Victim(net, self.forward, (draws or self.draws) if is_noisy(net) else 1)

    def pgd(
        self,
        net: nn.Module,
        norm: str,
        eps: float,
        *,
        restart: int = 0,
        steps: int | None = None,
        draws: int | None = None,
        keeps_best: bool = True,
    ) -> Tensor:
        """Projected gradient descent on a network; `steps` and `draws` are the preset's unless given.

        Args:
            restart: number of it; each has a start, noise and an objective of its own.
            keeps_best: return the best point on the way if the network is without noise. With noise, the best point
                may have been so by luck, and the last one is returned.
        """
        self.bar.set_postfix_str(f"PGD, {norm} {eps:.2g}")
        with self.noise("making", restart):
            victim = self.victim(net, draws)
            return pgd(
                functools.partial(victim.gradient, objective=OBJECTIVES[restart % len(OBJECTIVES)]),
                Ball(self.images, eps, norm),
                self.target,
                steps or self.preset.steps,
                self.generator("start", restart),
                margins=victim.margins if keeps_best and not victim.is_noisy else None,
                on_step=self.bar.update,
            )

    def _square(self, eps: float) -> Tensor:
        self.bar.set_postfix_str(f"Square, {eps:.2g}")
        with self.noise("making", "Square"):
            target, queries, generator = self.target, self.preset.queries, self.generator("squares")
            return square_attack(self.victim(), self.images, target, eps, queries, generator, self.bar.update)

    def choose(self, candidates: list[Tensor], net: nn.Module | None = None) -> Tensor:
        """The best of several attacked images, by draws of the noise that nothing else sees."""
        self.bar.set_postfix_str("choosing")
        victim = self.victim(net, CHOICE_DRAWS)
        with self.noise("choosing"):
            return choose(victim, candidates, self.target, victim.draws)

    def score(self, images: Tensor, net: nn.Module | None = None, repetition: int = 0) -> Score:
        """The score on attacked images, by draws that nothing else sees, and others in each `repetition`."""
        self.bar.set_postfix_str("scoring")
        victim = self.victim(net, SCORE_DRAWS)
        with self.noise("scoring", repetition):
            return score(victim.net, self.forward, images, self.target, victim.draws, min(self.draws, victim.draws))

    def first(self, images: int) -> "Campaign":
        """The same campaign on the first images alone."""
        part = Campaign(self.net, self.forward, self.images[:images], self.target[:images], self.preset, self.seed)
        part.bar = self.bar
        return part

    def noise(self, *purpose: str | int) -> AbstractContextManager[Any]:
        """The network's noise, from a generator of its own for each purpose."""
        seed = derived_seed(self.seed, "attack noise", *purpose)
        return noise_generator(Generator(self.forward.device).manual_seed(seed))

    def generator(self, *purpose: str | int) -> Generator:
        """A generator of starts and squares; on the CPU, so that it is the same on all devices."""
        return Generator().manual_seed(derived_seed(self.seed, "attack", *purpose))

"""All attacks of a preset on one network, their scores on fresh draws, and the gates."""

import copy
import dataclasses
import json
from contextlib import AbstractContextManager
from typing import Any

from torch import Generator, Tensor, nn
from tqdm import tqdm

from tools.inference import ForwardPass, seeded_noise
from tools.probes.hooks import is_noisy_indeed
from tools.runtime.seeds import derived_seed

from .gates import Gate, run_checks
from .gradients import Ball, fgsm, pgd, random_noise
from .square import square_attack
from .twins import GRADIENT_PATHS, mean_field_twin, noiseless_twin, with_gradient_path
from .victim import Score, Victim, choose, cross_entropy, margin, score

CHOICE_DRAWS, SCORE_DRAWS = 20, 100
SUBSET = 2023  # seed of the choice of images, the same for every network
OBJECTIVES = (cross_entropy, margin)  # restarts alternate: one may succeed where the other fails


@dataclasses.dataclass(frozen=True)
class Preset:
    """The size of an evaluation by attacks."""

    images: int  # from the test part
    steps: int  # steps of projected gradient descent
    draws: int  # noise draws in each gradient and each query
    restarts: int  # restarts for each gradient path
    paths: tuple[str, ...]  # names in `GRADIENT_PATHS`, or "mean_field"
    radii: tuple[tuple[str, float], ...]  # (norm, radius in pixel units) of each test
    queries: int  # queries of the Square attack, for each image and Linf radius

    def as_json(self) -> dict[str, Any]:
        """As JSON, with lists instead of tuples."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


LINF = {level: ("linf", level / 255) for level in (1, 2, 4, 8)}  # radii in steps of 8-bit pixels
PRESETS = {
    "quick": Preset(
        images=200, steps=20, draws=5, restarts=2, paths=("own", "arctangent"), radii=(LINF[2], LINF[8]), queries=500
    ),
    "full": Preset(
        images=1000,
        steps=50,
        draws=20,
        restarts=5,
        paths=(*GRADIENT_PATHS, "mean_field"),
        radii=(*LINF.values(), ("l2", 0.5)),
        queries=2000,
    ),
}


@dataclasses.dataclass(frozen=True)
class RadiusTest:
    """The attacks at one radius."""

    restarts: list[Tensor]  # the attacked images of each restart of the first path
    scores: dict[str, Score]  # by attack


@dataclasses.dataclass(frozen=True)
class AttackResult:
    """The score of a network under one attack."""

    norm: str
    eps: float  # radius in pixel units
    attack: str
    score: Score


@dataclasses.dataclass(frozen=True)
class AttackReport:
    """The result of a campaign: scores without attack and under each, and gates that say whether to believe them."""

    preset: str  # its name
    settings: dict[str, Any]  # its values, as plain data
    images: int  # number of attacked images
    clean: Score
    attacks: list[AttackResult]
    gates: list[Gate]
    label: str = "upper bound on robustness"

    @property
    def reliable(self) -> bool:
        """Whether all gates passed."""
        return all(gate.passed for gate in self.gates)

    def as_json(self) -> dict[str, Any]:
        """As plain data, with the fields of its score in the row of an attack."""
        content = {"label": self.label, **dataclasses.asdict(self), "reliable": self.reliable}
        for row in content["attacks"]:
            row.update(row.pop("score"))
        return content

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "AttackReport":
        """The inverse of `as_json`."""
        attacks = []
        for row in content["attacks"]:
            attacks.append(AttackResult(row.pop("norm"), row.pop("eps"), row.pop("attack"), Score(**row)))
        clean, gates = Score(**content["clean"]), [Gate(**gate) for gate in content["gates"]]
        return cls(content["preset"], content["settings"], content["images"], clean, attacks, gates)


@dataclasses.dataclass
class Campaign:
    """Attacks on one network; UserError if its outputs change from call to call, but no layer `is_noisy`."""

    net: nn.Module  # images [B, C, H, W] in [0, 1], timesteps -> logits [T, B, K]
    forward: ForwardPass
    images: Tensor  # test images, on the network's device
    target: Tensor
    preset: Preset
    seed: int = 0  # seed of everything random
    name: str = ""  # name of the preset, for the report

    def __post_init__(self) -> None:
        self.is_noisy = self.draws_noise(self.net.eval())
        self.draws = self.preset.draws if self.is_noisy else 1
        self.bar = tqdm(disable=True)

    def run(self) -> AttackReport:
        """Attack, score and check."""
        with tqdm(desc="attacks", unit="step", disable=None, leave=False) as self.bar:
            clean = self.score(self.images)
            tests = {(norm, eps): self.attack(norm, eps) for norm, eps in self.preset.radii}
            gates = run_checks(self, clean, tests)
        rows = []
        for (norm, eps), test in tests.items():
            rows += [AttackResult(norm, eps, name, result) for name, result in test.scores.items()]
        return AttackReport(self.name, self.preset.as_json(), len(self.images), clean, rows, gates)

    def attack(self, norm: str, eps: float) -> RadiusTest:
        """All attacks at one radius; "all" is the best one on each image."""
        ball = Ball(self.images, eps, norm)
        found = {}
        with self.noise("making", "FGSM"):
            found["random noise"] = random_noise(ball, self.generator("random noise"))
            found["FGSM"] = fgsm(self.victim().gradient, ball, self.target)
        restarts = range(self.preset.restarts)
        candidates = []
        for path in self.preset.paths:
            candidates += [self.pgd(with_gradient_path(self.net, path), norm, eps, restart=one) for one in restarts]
        found["PGD"] = self.choose([self.images, *candidates])
        found["transfer, noiseless"] = self.pgd(noiseless_twin(self.net), norm, eps)
        found["transfer, mean field"] = self.pgd(mean_field_twin(self.net), norm, eps)
        if norm == "linf":
            self.bar.set_postfix_str(f"Square, {eps:.2g}")
            squares = self.generator("squares")
            with self.noise("making", "Square"):
                attacked = square_attack(
                    self.victim(), ball, self.target, self.preset.queries, squares, self.bar.update
                )
            found["Square"] = self.choose([self.images, attacked])
        found["all"] = self.choose([self.images, *found.values()])
        scores = {name: self.score(images) for name, images in found.items()}
        return RadiusTest(candidates[: self.preset.restarts], scores)

    def victim(self, net: nn.Module | None = None, draws: int | None = None) -> Victim:
        """A network (default: this campaign's) with `draws` of its noise (default: the preset's)."""
        net = self.net if net is None else net
        if not self.draws_noise(net):
            draws = 1
        elif draws is None:
            draws = self.draws
        return Victim(net, self.forward, draws)

    def draws_noise(self, net: nn.Module) -> bool:
        """Whether a network, the attacked one or a twin, says that it is noisy; UserError if it is and says no."""
        return is_noisy_indeed(net, self.forward, self.images[:4])

    def pgd(
        self,
        net: nn.Module,
        norm: str,
        eps: float,
        restart: int = 0,
        steps: int | None = None,
        draws: int | None = None,
        best: bool = True,
    ) -> Tensor:
        """Projected gradient descent on a network.

        Args:
            restart: its number; each has its own start, noise and objective.
            steps, draws: None means the preset's.
            best: return the best point on the way, not the last one; ignored with noise, where it may be luck.
        """
        victim, objective = self.victim(net, draws), OBJECTIVES[restart % len(OBJECTIVES)]
        margins = victim.margins if best and not victim.is_noisy else None

        def gradient(images: Tensor, target: Tensor) -> Tensor:
            self.bar.update()
            return victim.gradient(images, target, objective)

        self.bar.set_postfix_str(f"PGD, {norm} {eps:.2g}")
        ball, start = Ball(self.images, eps, norm), self.generator("start", restart)
        with self.noise("making", restart):
            return pgd(gradient, ball, self.target, self.preset.steps if steps is None else steps, start, margins)

    def choose(self, candidates: list[Tensor], net: nn.Module | None = None) -> Tensor:
        """The best of several attacked images, judged with draws that are used for nothing else."""
        self.bar.set_postfix_str("choosing")
        with self.noise("choosing"):
            return choose(self.victim(net, CHOICE_DRAWS), candidates, self.target)

    def score(self, images: Tensor, net: nn.Module | None = None, repetition: int = 0) -> Score:
        """The score on attacked images, with draws that are used for nothing else and differ by `repetition`."""
        self.bar.set_postfix_str("scoring")
        victim = self.victim(net, SCORE_DRAWS)
        with self.noise("scoring", repetition):
            return score(victim, images, self.target, min(self.draws, victim.draws))

    def first(self, images: int) -> "Campaign":
        """The same campaign on the first images alone."""
        part = copy.copy(self)
        part.images, part.target = self.images[:images], self.target[:images]
        return part

    def noise(self, *purpose: str | int) -> AbstractContextManager[Any]:
        """Context manager: the network's noise comes from a separate generator for each purpose."""
        return seeded_noise(self.forward.device, derived_seed(self.seed, "attack noise", *purpose))

    def generator(self, *purpose: str | int) -> Generator:
        """A generator of starts and squares, on the CPU so that all devices get the same."""
        return Generator().manual_seed(derived_seed(self.seed, "attack", *purpose))

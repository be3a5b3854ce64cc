"""All attacks on one network at all radii, their scores on fresh draws, and the gates."""

import copy
import dataclasses
import weakref
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Generator, Tensor, nn
from tqdm import tqdm

from tools.inference import ForwardPass, seeded_noise
from tools.probes.hooks import is_noisy_indeed
from tools.runtime.seeds import derived_seed

from . import white_box
from .gates import run_checks, telling_radius
from .report import ALL, AttackReport, AttackResult
from .rivals import rivals
from .twins import GRADIENT_PATHS, with_gradient_path
from .victim import CHOICE_DRAWS, SETTLED, Score, Victim, margin, score

SUBSET_SEED = 2023  # of the choice of images, the same for every network
Radii = dict[str, tuple[float, ...]]  # by norm, rising, in pixel units


@dataclasses.dataclass(frozen=True)
class Preset:
    """The size of an evaluation by attacks."""

    images: int  # from the test part
    sample: int  # the first of these, for the pilot, rival attacks, and gates that run attacks of their own
    gradients: int  # of each ascent and image: steps times draws; half in the first round, if there is noise
    draws: int  # noise draws in each query, and in each gradient from the second round on
    rounds: int  # of all ascents but the first, unless one of them fools no other image
    paths: int  # number of gradient paths to climb, the most harmful ones in the pilot
    targets: int  # wrong classes to which images are driven one by one, from the second most probable on
    queries: int  # of the Square attack, for each image
    score_draws: int  # noise draws of each score


PRESETS = {
    "quick": Preset(
        images=200, sample=40, gradients=200, draws=4, rounds=1, paths=2, targets=1, queries=300, score_draws=20
    ),
    "full": Preset(
        images=1000, sample=200, gradients=1600, draws=16, rounds=5, paths=4, targets=8, queries=5000, score_draws=100
    ),
}


@dataclasses.dataclass
class Campaign:
    """Attacks on one network; UserError if its outputs change from call to call, but no layer `is_noisy`."""

    net: nn.Module  # images [B, C, H, W] in [0, 1], timesteps -> logits [T, B, K]
    forward: ForwardPass
    images: Tensor  # test images, on the network's device
    target: Tensor
    preset: Preset
    radii: Radii
    seed: int = 0  # seed of everything random
    name: str = ""  # name of the preset, for the report

    def __post_init__(self) -> None:
        self._noisy: weakref.WeakKeyDictionary[nn.Module, bool] = weakref.WeakKeyDictionary()
        self.is_noisy = self.draws_noise(self.net.eval())
        self.draws = self.preset.draws if self.is_noisy else 1
        self.enough = SETTLED if self.is_noisy else 0.0  # margin at which an image needs no more attacks
        self.paths = list(GRADIENT_PATHS)  # to climb, the best first
        self.bar = tqdm(disable=True)
        self._twins: dict[str, nn.Module] = {}
        with self.noise("choosing"):
            log_p = self.victim(draws=CHOICE_DRAWS).log_probabilities(self.images)
        self.margins = margin(log_p, self.target)
        self.typical_margin = self.margins.clamp(max=0).mean().item()  # of clean images; below 0
        # Without the right class, the most probable first. Shape: [B, K - 1].
        self.wrong = log_p.scatter(1, self.target[:, None], -torch.inf).argsort(1, descending=True)[:, :-1]

    def run(self) -> AttackReport:
        """Attack, score and check."""
        scores, found, others = {}, {}, {}  # by norm and radius
        with tqdm(desc="attacks", unit="gradient", disable=None, leave=False) as self.bar:
            clean = self.score(self.images)
            self.paths = white_box.ranked_paths(self)[: self.preset.paths]
            for norm in self.radii:
                for eps, attacked in white_box.curve(self, norm).items():
                    found[norm, eps], scores[norm, eps] = attacked, self.score(attacked.images)
                eps = telling_radius(clean, scores, norm)
                others[norm, eps] = rivals(self, norm, eps, found[norm, eps].images)
            gates = run_checks(self, clean, scores, found, others)
        rows = []
        for (norm, eps), result in scores.items():
            rows.append(AttackResult(norm, eps, ALL, len(self.images), result))
            for name, rival in others.get((norm, eps), {}).items():
                rows.append(AttackResult(norm, eps, name, len(rival.times_correct), rival))
        return AttackReport(
            preset=self.name,
            settings=dataclasses.asdict(self.preset),
            images=len(self.images),
            clean=clean,
            paths=self.paths,
            attacks=rows,
            gates=gates,
        )

    def only(self, rows: Tensor | slice) -> "Campaign":
        """The same campaign on some of the images."""
        part = copy.copy(self)
        part.images, part.target = self.images[rows], self.target[rows]
        part.margins, part.wrong = self.margins[rows], self.wrong[rows]
        return part

    @property
    def sample(self) -> slice:
        """The images of the pilot, of rivals and of gates."""
        return slice(self.preset.sample)

    def twin(self, path: str) -> nn.Module:
        """The network with another gradient path."""
        if path not in self._twins:
            self._twins[path] = with_gradient_path(self.net, path)
        return self._twins[path]

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
        if net not in self._noisy:
            self._noisy[net] = is_noisy_indeed(net, self.forward, self.images[:4])
        return self._noisy[net]

    def score(self, images: Tensor, net: nn.Module | None = None, repetition: int = 0) -> Score:
        """The score on attacked images, with draws that are used for nothing else and differ by `repetition`."""
        self.bar.set_postfix_str("scoring")
        victim = self.victim(net, self.preset.score_draws)
        with self.noise("scoring", repetition):
            return score(victim, images, self.target, min(self.draws, victim.draws))

    def noise(self, *purpose: str | int) -> AbstractContextManager[Any]:
        """Context manager: the network's noise comes from a separate generator for each purpose."""
        return seeded_noise(self.forward.device, derived_seed(self.seed, "attack noise", *purpose))

    def generator(self, *purpose: str | int) -> Generator:
        """A generator of starts and squares, on the CPU so that all devices get the same."""
        return Generator().manual_seed(derived_seed(self.seed, "attack", *purpose))

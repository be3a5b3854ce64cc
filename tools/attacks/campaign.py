"""All attacks on one network at all radii, their scores on fresh draws, and the gates."""

import copy
import dataclasses
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from threading import Event
from typing import Any

import torch
from torch import Generator, Tensor, nn
from tqdm import tqdm

from tools.inference import ForwardPass, seeded_noise
from tools.probes.hooks import is_noisy_indeed
from tools.runtime.device import is_fast_in_bf16
from tools.runtime.seeds import derived_seed
from tools.runtime.threads import Stopped, side_by_side

from . import white_box
from .gates import Gate, check_attacks, check_itself, further_checks, telling_radius
from .report import ALL, AttackReport, AttackResult
from .rivals import rivals, score_of
from .twins import gradient_paths, with_gradient_path
from .victim import CHOICE_DRAWS, SETTLED, Score, Victim, margin, score

SUBSET_SEED = 2023  # of the choice of images, the same for every network
Radii = dict[str, tuple[float, ...]]  # by norm, rising, in pixel units
Curve = dict[float, tuple[white_box.Attacked, Score]]  # by rising radius


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
    is_narrow: bool = False  # a single radius of the first norm alone, the middle one

    def of(self, radii: Radii) -> Radii:
        """Those of a data set's radii at which this attacks."""
        if not self.is_narrow:
            return radii
        norm, some = next(iter(radii.items()))
        return {norm: (some[(len(some) - 1) // 2],)}


QUICK = Preset(images=200, sample=40, gradients=200, draws=4, rounds=1, paths=2, targets=1, queries=300, score_draws=20)
PRESETS = {
    "glance": dataclasses.replace(QUICK, images=50, sample=20, is_narrow=True),
    "quick": QUICK,
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
        self.paths = gradient_paths(self.net)  # to climb, the best first
        self.bar = tqdm(disable=True)
        self.stop = Event()  # when it is set, attacks raise `Stopped`
        self._twins: dict[str, nn.Module] = {}
        with self.noise("choosing"):
            before = torch.get_rng_state()
            log_p = self.victim(draws=CHOICE_DRAWS).log_probabilities(self.images)
            self.draws_from_torch = not torch.equal(before, torch.get_rng_state())  # past `noise_generator`
        self.margins = margin(log_p, self.target)
        self.typical_margin = self.margins.clamp(max=0).mean().item()  # of clean images; below 0
        # Without the right class, the most probable first. Shape: [B, K - 1].
        self.wrong = log_p.scatter(1, self.target[:, None], -torch.inf).argsort(1, descending=True)[:, :-1]

    def run(self) -> AttackReport:
        """Attack, score and check."""
        with tqdm(desc="attacks", unit="gradient", disable=None, leave=False) as self.bar:
            clean = self.score(self.images)
            self.paths = white_box.ranked_paths(self)[: self.preset.paths]
            tasks = [self.task(Campaign._curve, norm) for norm in self.radii] + [self.task(check_itself, clean)]
            *curves, gates = self.side_by_side(tasks)
            attacks, of_attacks = self._checked(clean, dict(zip(self.radii, curves)))
        return AttackReport(
            preset=self.name,
            settings=dataclasses.asdict(self.preset),
            images=len(self.images),
            clean=clean,
            paths=self.paths,
            attacks=attacks,
            gates=of_attacks + gates,
        )

    def _curve(self, norm: str) -> Curve:
        """The white box at all radii of a norm."""
        return {eps: (found, self.score(found.images)) for eps, found in white_box.curve(self, norm).items()}

    def _checked(self, clean: Score, curves: dict[str, Curve]) -> tuple[list[AttackResult], list[Gate]]:
        """What the white box and its rivals left, and the gates of both."""
        others, further = rivals(self), further_checks(self)
        tellings, tasks = {}, []
        for norm, curve in curves.items():
            eps = tellings[norm] = telling_radius(clean, {eps: score for eps, (_, score) in curve.items()})
            attacked, _ = curve[eps]
            tasks += [self.task(score_of, rival, norm, eps, attacked.images) for rival in others.values()]
            tasks += [self.task(check, norm, eps, attacked) for check in further]
        done = iter(self.side_by_side(tasks))
        rows, gates = [], []
        for norm, curve in curves.items():
            eps, scores = tellings[norm], {eps: score for eps, (_, score) in curve.items()}
            of_rivals = {name: next(done) for name in others}
            rows += [AttackResult(norm, radius, ALL, len(self.images), score) for radius, score in scores.items()]
            for name, found in of_rivals.items():
                rows.append(AttackResult(norm, eps, name, len(found.times_correct), found))
            gates += check_attacks(norm, clean, scores, of_rivals, eps) + [next(done) for _ in further]
        return rows, gates

    def side_by_side(self, tasks: Sequence[Callable[[Event], Any]]) -> list[Any]:
        """The results of tasks, in threads where these are faster and repeat."""
        return side_by_side(tasks, at_once=self.forward.device.type == "cpu" and not self.draws_from_torch)

    def task(self, run: Callable[..., Any], *arguments: Any) -> Callable[[Event], Any]:
        """`run(campaign, *arguments)` with copies of the networks, for a thread of its own."""

        def task(stop: Event) -> Any:
            own = copy.copy(self)
            own.net, own._twins, own._noisy = copy.deepcopy(self.net), {}, weakref.WeakKeyDictionary()
            own.stop = stop
            return run(own, *arguments)

        return task

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

    def victim(self, net: nn.Module | None = None, draws: int | None = None, exact: bool = False) -> Victim:
        """A network (default: this campaign's) with `draws` of its noise (default: the preset's).

        Gradients are in bfloat16 where that is fast: they lead as far. So are predictions that vary with the noise
        anyway, unless they are to be `exact`.
        """
        net, forward, amp = self.net if net is None else net, self.forward, None
        is_noisy = self.draws_noise(net)
        if is_fast_in_bf16(forward.device):
            amp = "bf16"
            forward = dataclasses.replace(forward, amp=amp) if is_noisy and not exact else forward
        draws = self.draws if draws is None else draws
        return Victim(net, forward, draws if is_noisy else 1, self._go_on, amp)

    def _go_on(self) -> None:
        if self.stop.is_set():
            raise Stopped

    def draws_noise(self, net: nn.Module) -> bool:
        """Whether a network, the attacked one or a twin, says that it is noisy; UserError if it is and says no."""
        if net not in self._noisy:
            self._noisy[net] = is_noisy_indeed(net, self.forward, self.images[:4])
        return self._noisy[net]

    def score(self, images: Tensor, net: nn.Module | None = None, repetition: int = 0) -> Score:
        """The score on attacked images, with draws that are used for nothing else and differ by `repetition`."""
        self.bar.set_postfix_str("scoring")
        victim = self.victim(net, self.preset.score_draws, exact=True)
        with self.noise("scoring", repetition):
            return score(victim, images, self.target, min(self.draws, victim.draws))

    def noise(self, *purpose: str | int) -> AbstractContextManager[Any]:
        """Context manager: the network's noise comes from a separate generator for each purpose."""
        return seeded_noise(self.forward.device, derived_seed(self.seed, "attack noise", *purpose))

    def generator(self, *purpose: str | int) -> Generator:
        """A generator of starts and squares, on the CPU so that all devices get the same."""
        return Generator().manual_seed(derived_seed(self.seed, "attack", *purpose))

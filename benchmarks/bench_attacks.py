"""A preset of attacks beside other attacks, on the same images and with the same score.

    python benchmarks/bench_attacks.py --dataset mnist5k --snapshot best.pth [--attack_preset quick] [--threads 1] ...
        [--radii linf=0.1,0.2 l2=1] [--attacks preset adaptive APGD APGDT EOTPGD Square] [--eot 10]
        [--gradients 800] [--path own] [--steps 100] [--targets 3] [--paths 2] [--restarts 2]

Other flags are those of the testing scripts. One JSON line per attack and radius: seconds, and the accuracy that is
left, by draws of the noise that neither made nor chose the images; for the preset, which attacks all radii in one go,
the gates that failed. Gradients of noisy networks are means of `--eot` draws, but for the preset's.

`adaptive` is long instead of clever, in a loop of its own: `--steps` steps with momentum, which fall from twice the
radius, along each gradient path, for all images that still stand; then, from `--restarts` other starts, along the worst
`--paths` of them, towards each of the `--targets` next probable classes and any class. The others are torchattacks'
(`pip install --no-deps torchattacks`; MIT), along `--path`, each with `--gradients` gradients or queries an image.
"""

import argparse
import math
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # where this is started as a file
from benchmarks.common import report
from dataset_utils import DATASETS
from tools.analysis.metrics import mean_prediction
from tools.attacks.gradients import Ball
from tools.attacks.twins import GRADIENT_PATHS, gradient_paths
from tools.attacks.victim import CHOICE_DRAWS, margin
from tools.attacks.white_box import Attacked
from tools.config.evaluate import EvaluationConfig
from tools.config.parsing import parse
from tools.evaluation.measurements.attacks import campaign_of
from tools.evaluation.snapshot import Snapshot
from tools.inference import folded_draws

MOMENTUM = 0.75
OTHERS = ("APGD", "APGDT", "EOTPGD", "Square")


class Adaptive:
    """A call attacks all images at one radius."""

    def __init__(self, campaign, args):
        self.campaign, self.args = campaign, args
        self.draws = args.eot if campaign.is_noisy else 1

    def __call__(self, norm, eps):
        best, harm = Attacked(self.campaign.images, self.campaign.margins), {}
        for path in gradient_paths(self.campaign.net):
            best, harm[path] = self._improved(best, norm, eps, path)
        rows = self._standing(best)  # which all paths have attacked
        worst = sorted(harm, key=lambda path: harm[path][rows].mean().item(), reverse=True)[: self.args.paths]
        for restart in range(1, 1 + self.args.restarts):
            for path in worst:
                for rank in (*range(self.args.targets), None):
                    best, _ = self._improved(best, norm, eps, path, rank, restart)
        return best.images

    def _improved(self, best, norm, eps, path, rank=None, restart=0):
        """After an ascent of the images that are not surely fooled yet; and all margins, of these where it ended."""
        rows = self._standing(best)
        if not len(rows):
            return best, best.margins
        found = self._ascent(self.campaign.only(rows), norm, eps, path, rank, restart)
        return best.improved(rows, found), best.margins.index_copy(0, rows, found.margins)

    def _standing(self, best):
        return (best.margins <= self.campaign.enough).nonzero()[:, 0]

    def _ascent(self, campaign, norm, eps, path, rank, restart):
        purpose = ("adaptive", norm, str(eps), path, str(rank), restart)
        ball = Ball(campaign.images, eps, norm)
        wrong = None if rank is None else campaign.wrong[:, rank]
        victim, judge = campaign.victim(campaign.twin(path), self.draws), campaign.victim(draws=CHOICE_DRAWS)
        images, velocity = ball.start(campaign.generator(*purpose)), torch.zeros_like(campaign.images)
        best = Attacked(images, torch.full_like(campaign.margins, -torch.inf))
        with campaign.noise("making", *purpose):
            for step in range(self.args.steps):
                gradient = victim.ascent(images, campaign.target, margin, wrong).gradient
                length = gradient.flatten(1).norm(dim=1).clamp(min=1e-30)
                velocity = MOMENTUM * velocity + gradient / length.view(-1, 1, 1, 1)
                images = ball.moved(images, velocity, eps * (1 + math.cos(math.pi * step / self.args.steps)))
                if not campaign.is_noisy or step % 10 == 9 or step == self.args.steps - 1:
                    best = best.or_better(Attacked(images, judge.margins(images, campaign.target)))
        return best


class LogProbabilities(torch.nn.Module):
    """A network as torchattacks sees it: images -> the logarithm of the mean probabilities of some draws."""

    def __init__(self, net, forward, draws):
        super().__init__()
        self.net, self.pass_, self.draws = net, forward, draws

    def forward(self, images):
        return mean_prediction(folded_draws(self.net, images, self.pass_, self.draws))


class OtherAttack:
    """One of torchattacks': a call attacks all images at one radius."""

    def __init__(self, campaign, args, name):
        self.campaign, self.args, self.name = campaign, args, name

    def __call__(self, norm, eps):
        import torchattacks

        campaign, args, name = self.campaign, self.args, self.name
        kind, eot = {"linf": "Linf", "l2": "L2"}[norm], args.eot if campaign.is_noisy else 1
        targets, steps = min(9, campaign.wrong.shape[1]), args.gradients // eot  # as AutoAttack: nine targets at most
        net = LogProbabilities(campaign.twin(args.path), campaign.forward, eot if name == "Square" else 1)
        attack = {
            "APGD": lambda: torchattacks.APGD(net, kind, eps, steps, eot_iter=eot),
            "APGDT": lambda: torchattacks.APGDT(net, kind, eps, steps // targets, eot_iter=eot, n_classes=targets + 1),
            "EOTPGD": lambda: torchattacks.EOTPGD(net, eps, 2.5 * eps / steps, steps, eot),
            "Square": lambda: torchattacks.Square(net, kind, eps, steps),
        }[name]()
        parts = zip(campaign.images.split(campaign.forward.fold), campaign.target.split(campaign.forward.fold))
        with campaign.noise("making", name, norm, str(eps)):
            return torch.cat([attack(images, target) for images, target in parts]).detach()


def radii(text):
    """ "linf=0.1,0.2" -> ("linf", (0.1, 0.2))."""
    norm, _, values = text.partition("=")
    return norm, tuple(map(float, values.split(",")))


def flags():
    """The parser of what is not a flag of the testing scripts."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter, allow_abbrev=False)
    parser.add_argument("--dataset", choices=[name for name, one in DATASETS.items() if one.has_pixels], required=True)
    parser.add_argument("--radii", nargs="+", type=radii, help="default: those of the data set")
    parser.add_argument("--attacks", nargs="+", choices=("preset", "adaptive", *OTHERS), default=["preset", "adaptive"])
    parser.add_argument("--eot", type=int, default=10)
    parser.add_argument("--gradients", type=int, default=800)
    parser.add_argument("--path", choices=GRADIENT_PATHS, default="own")
    for name, number in (("steps", 100), ("targets", 3), ("paths", 2), ("restarts", 2)):
        parser.add_argument(f"--{name}", type=int, default=number)
    return parser


def main():
    args, rest = flags().parse_known_args()
    dataset = DATASETS[args.dataset]
    config, _ = parse(EvaluationConfig, ["--attack_preset", "quick", *rest], dataset=dataset)
    snapshot = Snapshot(config, dataset)
    campaign = campaign_of(snapshot, dict(args.radii) if args.radii else None)
    about = dict(snapshot=config.snapshot, images=len(campaign.images), seed=config.seed)
    for name in args.attacks:
        if name == "preset":
            with_preset(campaign, about)
            continue
        for norm, some in campaign.radii.items():
            for eps in some if (name, norm) != ("EOTPGD", "l2") else ():  # which torchattacks has for Linf alone
                start = time.perf_counter()
                make = Adaptive(campaign, args) if name == "adaptive" else OtherAttack(campaign, args, name)
                accuracy = campaign.score(make(norm, eps)).accuracy
                seconds = round(time.perf_counter() - start, 1)
                line = dict(attack=name, norm=norm, eps=eps, accuracy=accuracy, seconds=seconds)
                report("attacks", snapshot.device, **line, **about)


def with_preset(campaign, about):
    start = time.perf_counter()
    found = campaign.run()
    seconds = round(time.perf_counter() - start, 1)
    failed = [gate.name for gate in found.gates if not gate.passed]
    for norm in campaign.radii:
        for eps, accuracy in found.curve(norm).items():
            line = dict(attack=campaign.name, norm=norm, eps=eps, accuracy=accuracy, seconds_of_all=seconds)
            report("attacks", campaign.forward.device, **line, failed_gates=failed, **about)


if __name__ == "__main__":
    main()

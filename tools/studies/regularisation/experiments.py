"""The experiments of `main_regularisation.py`: each measures, draws its picture, and returns its numbers."""

import copy
import dataclasses
import functools
import math

import torch
import torch.nn.functional as F

from crits import RateCrossEntropy
from models import LIF, Gaussian, NoisyLIF, Uniform, build_model, mean_field, noise_generator
from models.layers import Normalize
from tools.analysis.statistics import seed_interval
from tools.inference import ForwardPass
from tools.optim import build_scheduler
from tools.runtime.seeds import seed_generators
from tools.studies.matching import LAWS, law_of_std
from tools.training.loop import Learner, train_one_epoch

from . import pictures
from .sharpness import hessian_trace, perturbed_loss

BATCH, TIMESTEPS, RATE = 50, 4, 1e-3
SCALE_RATE = 0.1  # of the logarithms of learnt scales, which have further to go than weights
RECORDED = 10  # times that learnt scales are noted during training
WIDTH = 2.0  # of the toynet: 784 - 128 spiking neurons - 10
DRAWS = 8  # of the noise, when a network is measured
MEASURED = 500  # training images at most, on which sharpness is measured
PERTURBATION = 0.3  # of weights, relative
GAINS = ("test_accuracy", "train_loss", "test_loss", "gap", "sharpness", "hessian_trace")  # compared in pairs
NORMALISATION = ((0.1307,), (0.3081,))  # of mnist5k


@dataclasses.dataclass(frozen=True)
class Run:
    """One network to train and to measure.

    Args:
        train, test: (uint8 images [N, 1, 28, 28], labels [N]).
        images: number of training images.
        law: class of the noise.
        std: its standard deviation, in thresholds; see `law_of_std`.
        noisy: or deterministic, with the same density as surrogate gradient.
        steps: of the optimiser.
        seed: of weights, order, noise, and of which images are taken.
    """

    train: object
    test: object
    images: int
    law: type
    std: float
    noisy: bool
    steps: int
    seed: int


def generalisation(study, data):
    """Losses, gap, sharpness and accuracy against the scale, for all laws and numbers of training images.

    "..._gain" is the mean difference to the network without noise, whose surrogate gradient is the Gaussian density of
    the same standard deviation, over pairs of the same seed.
    """
    sizes = (100, 1000, 4000) if study.quick else (100, 400, 1000, 4000)
    stds = (0.1, 0.3, 0.6, 1.2) if study.quick else (0.05, 0.1, 0.3, 0.6, 1.2, 2.0)
    seeds = study.seeds(full=5, quick=3)
    steps = 300 if study.quick else 1000
    kinds = [(law, True) for law in LAWS] + [(Gaussian, False)]
    cases = [(size, std, law, noisy) for size in sizes for std in stds for law, noisy in kinds]
    images = whole(data)
    jobs = [[Run(*images, size, law, std, noisy, steps, seed) for seed in seeds] for size, std, law, noisy in cases]
    found = dict(zip(cases, study.map_groups(measure, jobs, "networks")))
    rows = []
    for (size, std, law, noisy), of_case in found.items():
        row = {"images": size, "std": std, "law": law.__name__, "noisy": noisy}
        row |= {key: seed_interval([one[key] for one in of_case]) for key in of_case[0]}
        if noisy:  # the same seed: the same images, weights at first, and order
            pairs = list(zip(of_case, found[size, std, Gaussian, False]))
            for key in GAINS:
                row[f"{key}_gain"] = seed_interval([one[key] - other[key] for one, other in pairs])
        rows.append(row)
    pictures.generalisation(study.folder / "generalisation.png", rows)
    pictures.few_images(study.folder / "few_images.png", rows, std=0.3)
    return {"seeds": len(seeds), "steps": steps, "rows": rows}


def whole(data):
    """All images that can be trained on, and the test images, of `ImageDataset.load`: pairs of images and labels."""
    train = [torch.cat([getattr(data[part], name) for part in ("train", "val")]) for name in ("images", "labels")]
    return tuple(train), (data["test"].images, data["test"].labels)


def measure(run):
    """Train a network, and measure it.

    Returns:
        {"train_loss", "test_loss" (nats), "gap" of them, "train_accuracy", "test_accuracy" of single draws,
         "ensemble_accuracy" of the mean prediction of DRAWS draws,
         "sharpness": rise of the training loss under perturbed weights,
         "mean_field_loss": on the same images, of the network whose spikes are replaced by their probabilities, beside
         the "trained_loss" of that which was trained, and the "hessian_trace" of the mean field; NaN for the uniform
         law, whose density jumps, so that there is no Hessian}
    """
    images, labels = _some(run)
    net = _network(run)
    train(net, images, labels, run.steps, run.seed)
    net.eval()
    with noise_generator(torch.Generator().manual_seed(run.seed)):
        fitted, tested = evaluate(net, images, labels), evaluate(net, *run.test)
        few = images[:MEASURED], labels[:MEASURED]
        loss = functools.partial(_loss, images=few[0], labels=few[1])
        generator = torch.Generator().manual_seed(run.seed)
        before = sum(loss(net).item() for _ in range(DRAWS)) / DRAWS
        rise = perturbed_loss(net, loss, PERTURBATION, 2 * DRAWS, generator) - before
    twin = _mean_field_twin(net, run)
    with mean_field(twin):
        doubles = functools.partial(_loss, images=few[0].double(), labels=few[1])
        with torch.no_grad():
            of_probabilities = doubles(twin).item()
        trace = math.nan if run.law is Uniform else hessian_trace(twin, doubles, DRAWS, generator)[0]
    return {
        **{f"train_{key}": fitted[key] for key in ("loss", "accuracy")},
        **{f"test_{key}": tested[key] for key in ("loss", "accuracy")},
        "ensemble_accuracy": tested["ensemble_accuracy"],
        "gap": tested["loss"] - fitted["loss"],
        "sharpness": rise,
        "trained_loss": before,
        "mean_field_loss": of_probabilities,
        "hessian_trace": trace,
    }


def _some(run):
    """The training images of a run, in [0, 1], as many of each class as can be, and their labels."""
    images, labels = run.train
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(run.seed))
    # The first images of each class in a random order: the classes take turns.
    turn = torch.empty(len(labels), dtype=torch.int64)
    for label in labels.unique():
        members = order[labels[order] == label]
        turn[members] = torch.arange(len(members))
    chosen = order[turn[order].argsort(stable=True)][: run.images]
    return images[chosen].float() / 255, labels[chosen]


def _network(run, learnable=False, model="toynet", width=WIDTH):
    # Noise of the threshold alone: its distribution, not that of a sum of two, is then the probability of a spike, in
    # the mean field too, and its density the gradient, as it is the surrogate of the network without noise.
    noisy = functools.partial(NoisyLIF, placement="escape", learnable_scale=learnable)
    neuron = functools.partial(noisy if run.noisy else LIF, law_of_std(run.law, run.std))
    seed_generators(run.seed)
    net = build_model(model, neuron=neuron, in_shape=(1, 28, 28), num_classes=10, width=width)
    net.normalize = Normalize(*NORMALISATION)
    return net


class _Batches:
    """Batches of images for `loop.train_one_epoch`, with as many steps in a pass as there are to do."""

    def __init__(self, images, labels, steps):
        self.images, self.labels, self.steps = images, labels, steps

    def __len__(self):
        return self.steps

    def order(self):
        """Pass after pass, each in a new order; an incomplete last batch is left out where there is a complete one."""
        count = len(self.labels)
        batch = min(BATCH, count)
        passes = -(-self.steps * batch // (count // batch * batch))
        return torch.cat([torch.randperm(count)[: count // batch * batch] for _ in range(passes)])

    def passing(self, order, first=0):
        batch = min(BATCH, len(self.labels))
        for number in range(first, self.steps):
            chosen = order[number * batch : (number + 1) * batch]
            yield self.images[chosen], self.labels[chosen]


def train(net, images, labels, steps, seed, after_step=None):
    """Train a network for a number of steps, whatever the number of images is; see `loop.train_one_epoch`."""
    is_scale = {True: [], False: []}
    for name, parameter in net.named_parameters():
        is_scale[name.endswith("log_scale")].append(parameter)
    optimizer = torch.optim.Adam([{"params": is_scale[False]}, {"params": is_scale[True], "lr": SCALE_RATE}], RATE)
    learner = Learner(
        net=net,
        criterion=RateCrossEntropy(),
        optimizer=optimizer,
        scheduler=build_scheduler("cos", optimizer, steps),
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        forward=ForwardPass(torch.device("cpu"), TIMESTEPS),
    )
    seed_generators(seed)
    train_one_epoch(learner, _Batches(images, labels, steps), 1, after_step=after_step)


@torch.no_grad()
def evaluate(net, images, labels, draws=DRAWS):
    """{"loss", "accuracy"} of single draws, and "ensemble_accuracy" of the mean prediction of all draws."""
    images = images if images.is_floating_point() else images.float() / 255
    log_p = torch.stack([F.log_softmax(net(images, timesteps=TIMESTEPS).mean(0), -1) for _ in range(draws)])
    return {
        "loss": F.nll_loss(log_p.flatten(0, 1), labels.repeat(draws)).item(),
        "accuracy": (log_p.argmax(-1) == labels).double().mean().item(),
        "ensemble_accuracy": (log_p.exp().mean(0).argmax(-1) == labels).double().mean().item(),
    }


def _loss(net, images, labels):
    return F.cross_entropy(net(images, timesteps=TIMESTEPS).mean(0), labels)


def _mean_field_twin(net, run):
    """The network with noisy neurons of the same law, in float64, for its mean field: smooth for both kinds."""
    twin = _network(dataclasses.replace(run, noisy=True))
    twin.load_state_dict(copy.deepcopy(net.state_dict()))
    return twin.double().eval()


def learnt_scales(study, data):
    """The scale that each layer of a convolutional network learns, from different scales at first."""
    seeds = study.seeds(full=5, quick=3)
    stds = (0.1, 0.3, 1.0)
    steps = 200 if study.quick else 2000
    images = whole(data)
    jobs = [[Run(*images, 4000, Gaussian, std, True, steps, seed) for seed in seeds] for std in stds]
    found = dict(zip(stds, study.map_groups(_learn_scales, jobs, "learnt scales")))
    pictures.learnt_scales(study.folder / "learnt_scales.png", found)
    rows = [
        {
            "initial": std,
            "layers": [seed_interval(of_layer) for of_layer in zip(*(one["scales"][-1] for one in of_std))],
            "test_accuracy": seed_interval([one["accuracy"] for one in of_std]),
        }
        for std, of_std in found.items()
    ]
    return {"model": "vggwoap", "width": 0.125, "seeds": len(seeds), "steps": steps, "rows": rows}


def _learn_scales(run):
    """Scales of the layers [RECORDED + 1][layers] at the "steps" of training, and test "accuracy"."""
    net = _network(run, learnable=True, model="vggwoap", width=0.125)
    images, labels = _some(run)
    neurons = [module for module in net.modules() if isinstance(module, NoisyLIF)]
    steps, scales = [], []

    def note(step):
        steps.append(step)
        scales.append([neuron.scale.item() for neuron in neurons])

    def after_step(progress, check):
        if progress.steps % (run.steps // RECORDED) == 0:
            note(progress.steps)

    note(0)
    train(net, images, labels, run.steps, run.seed, after_step)
    net.eval()
    with noise_generator(torch.Generator().manual_seed(run.seed)):
        accuracy = evaluate(net, *run.test, draws=1)["accuracy"]
    return {"steps": steps, "scales": scales, "accuracy": accuracy}


def experiments(data):
    """{name: function of a `Study`} on these data, as `ImageDataset.load` gives them."""
    return {function.__name__: functools.partial(function, data=data) for function in (generalisation, learnt_scales)}

"""Make, train and measure the networks of the study."""

import dataclasses
import functools
import itertools
import math
import warnings
from collections.abc import Callable

import torch
from torch import nn

from crits import RateCrossEntropy
from models import LIF, NoiseLaw, NoisyLIF, Uniform, build_model, mean_field, noise_generator
from models.layers import Normalize
from tools.analysis import metrics
from tools.data.images import LabelledImages, stratified_split
from tools.data.parts import LabelledParts
from tools.inference import ForwardPass, predict_all
from tools.optim import build_optimizer, build_scheduler
from tools.probes.hooks import spiking_neurons
from tools.runtime.seeds import derived_seed, seed_generators
from tools.studies.matching import law_of_std
from tools.training.loop import Learner, train_one_epoch

from .sharpness import hessian_trace, perturbed_loss

CPU = torch.device("cpu")
TIMESTEPS = 4
BATCH = 50  # samples of a step
RATE = 1e-3  # learning rate
FORWARD = ForwardPass(CPU, TIMESTEPS)
LOSS = RateCrossEntropy()
SCALE_RATE = 0.1  # learning rate of the logarithms of learnt scales, which have further to go than weights
RECORDED = 10  # how many times learnt scales are recorded during training
WIDTH = 2.0  # of the toynet: 784 - 128 spiking neurons - 10
DRAWS = 8  # of the noise, for each measurement
MEASURED = 500  # most training images on which sharpness is measured
PERTURBATION = 0.3  # of weights, relative to the root mean square of their tensor


@dataclasses.dataclass(frozen=True)
class Data:
    """Images to train on and to test with, and the mean and standard deviation of their channels."""

    train: LabelledImages
    test: LabelledImages
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, parts: LabelledParts, mean: tuple[float, ...], std: tuple[float, ...]) -> "Data":
        """The data of a data set's parts; the validation part is trained on too, because nothing is chosen by it."""
        images = torch.cat([parts.train.images, parts.val.images])
        labels = torch.cat([parts.train.labels, parts.val.labels])
        return cls(LabelledImages(images, labels), parts.test, mean, std)


@dataclasses.dataclass(frozen=True)
class Run:
    """One network to train and to measure."""

    data: Data
    images: int  # number of training images
    law: type[NoiseLaw]
    std: float  # of the noise, in thresholds; see `law_of_std`
    noisy: bool  # or deterministic, with the density of the law as surrogate gradient
    steps: int  # of the optimiser
    seed: int  # of weights, order, noise, and of the choice of images

    def generator(self, purpose: str) -> torch.Generator:
        return torch.Generator().manual_seed(derived_seed(self.seed, purpose))


@dataclasses.dataclass(frozen=True)
class Measured:
    """Measurements of a trained network: losses in nats, accuracies in [0, 1]."""

    train_loss: float  # this and the next three: of single draws
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    ensemble_accuracy: float  # on the test images, of the mean prediction of `DRAWS` draws
    gap: float  # test loss - training loss
    sharpness: float  # rise of the training loss when weights are perturbed
    trained_loss: float  # on the training images that sharpness is measured on
    mean_field_loss: float  # on the same images, of the network whose spikes are replaced by their probabilities
    hessian_trace: float  # of that loss; NaN for the uniform law, whose density jumps: it has no Hessian


def measure(run: Run) -> Measured:
    """Train a network and measure it."""
    net, images = build(run), chosen_images(run)
    train(net, images, run)
    with noise_generator(run.generator("noise")):
        train_loss, train_accuracy, _ = evaluate(net, images)
        test_loss, test_accuracy, ensemble_accuracy = evaluate(net, run.data.test)
        pixels, labels = images.images[:MEASURED].float() / 255, images.labels[:MEASURED]
        loss = functools.partial(loss_of, images=pixels, labels=labels)
        with torch.no_grad():
            before = sum(loss(net).item() for _ in range(DRAWS)) / DRAWS
        perturbed = perturbed_loss(net, loss, PERTURBATION, 2 * DRAWS, run.generator("perturbations"))
    twin = mean_field_twin(net, run)
    with mean_field(twin):
        loss = functools.partial(loss_of, images=pixels.double(), labels=labels)
        mean_field_loss = loss(twin).item()
        trace = math.nan if run.law is Uniform else hessian_trace(twin, loss, DRAWS, run.generator("probes"))[0]
    return Measured(
        train_loss=train_loss,
        train_accuracy=train_accuracy,
        test_loss=test_loss,
        test_accuracy=test_accuracy,
        ensemble_accuracy=ensemble_accuracy,
        gap=test_loss - train_loss,
        sharpness=perturbed - before,
        trained_loss=before,
        mean_field_loss=mean_field_loss,
        hessian_trace=trace,
    )


def chosen_images(run: Run) -> LabelledImages:
    """The training images of a run, balanced over classes, in random order; larger sets contain smaller ones."""
    train = run.data.train
    _, chosen = stratified_split(train.labels, run.images / len(train), run.seed)
    return train.subset(chosen[torch.randperm(len(chosen), generator=run.generator("images"))])


def build(run: Run, model: str = "toynet", width: float = WIDTH, learnable_scale: bool = False) -> nn.Module:
    """Make the network of a run."""
    # With noise in the threshold alone, the probability of a spike is F of the law, not of a sum of two, also in the
    # mean field; and the gradient is its density, as in the network without noise.
    noisy = functools.partial(NoisyLIF, placement="escape", learnable_scale=learnable_scale)
    neuron = functools.partial(noisy if run.noisy else LIF, law_of_std(run.law, run.std))
    seed_generators(derived_seed(run.seed, "weights"))
    net = build_model(model, neuron=neuron, in_shape=run.data.train.images.shape[1:], num_classes=10, width=width)
    net.normalize = Normalize(run.data.mean, run.data.std)
    return net


def train(net: nn.Module, images: LabelledImages, run: Run, after_step: Callable | None = None) -> None:
    """Train a network for the steps of a run; `after_step` as in `train_one_epoch`."""
    optimizer = build_optimizer("adam", net, RATE, weight_decay=0.0)
    for group in optimizer.param_groups[1:]:  # of learnt scales
        group["lr"] = SCALE_RATE
    scheduler, scaler = build_scheduler("cos", optimizer, run.steps), torch.amp.GradScaler("cpu", enabled=False)
    learner = Learner(net=net, criterion=LOSS, optimizer=optimizer, scheduler=scheduler, scaler=scaler, forward=FORWARD)
    seed_generators(derived_seed(run.seed, "order"))
    done = 0
    # Noise has its own generator, so that a network without noise gets its images in the same order.
    with noise_generator(run.generator("training noise")):
        for epoch in itertools.count(1):
            batches = images.batches(BATCH, CPU, shuffle=True, limit=run.steps - done)
            train_one_epoch(learner, batches, epoch, after_step=after_step)
            done += len(batches)
            if done == run.steps:
                return


def evaluate(net: nn.Module, images: LabelledImages, draws: int = DRAWS) -> tuple[float, float, float]:
    """Loss (nats) and accuracy of single draws of the noise, and the accuracy of the mean prediction of all draws."""
    log_p, labels = predict_all(net, images.batches(10 * BATCH, CPU), FORWARD, draws=draws)
    single, repeated = log_p.flatten(0, 1), labels.repeat(draws)
    ensemble_accuracy = metrics.accuracy(metrics.mean_prediction(log_p), labels)
    return metrics.negative_log_likelihood(single, repeated), metrics.accuracy(single, repeated), ensemble_accuracy


def loss_of(net: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The loss on images in [0, 1], differentiable, unlike that of `evaluate`."""
    return LOSS(net(images, timesteps=TIMESTEPS), labels)


def mean_field_twin(net: nn.Module, run: Run) -> nn.Module:
    """A float64 copy with noisy neurons of the same law, whose mean field is smooth, even if the network is not."""
    twin = build(dataclasses.replace(run, noisy=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the twin has other neurons on purpose
        twin.load_state_dict(net.state_dict())
    return twin.double().eval()


@dataclasses.dataclass(frozen=True)
class LearntScales:
    """Scales of the layers during training."""

    steps: list[int]  # [RECORDED + 1]
    scales: list[list[float]]  # at these steps, of each layer
    accuracy: float  # of a single draw on the test images


def learn_scales(run: Run) -> LearntScales:
    """Train a convolutional network whose layers learn the scales of their noise."""
    net = build(run, model="vggwoap", width=0.125, learnable_scale=True)
    neurons = [neuron for _, neuron in spiking_neurons(net)]
    scales, done = {}, itertools.count()

    def record(*_):
        step = next(done)
        if step % (run.steps // RECORDED) == 0:
            scales[step] = [neuron.scale.item() for neuron in neurons]

    record()
    train(net, chosen_images(run), run, after_step=record)
    with noise_generator(run.generator("noise")):
        _, accuracy, _ = evaluate(net, run.data.test, draws=1)
    return LearntScales(list(scales), list(scales.values()), accuracy)

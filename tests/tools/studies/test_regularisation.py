"""Noise as regulariser: sharpness against exact Hessians, training on few images, learnt scales."""

import dataclasses
import functools
import itertools
import math

import pytest
import torch

from models import Gaussian, NoisyLIF, Uniform, build_model, mean_field, noise_generator
from models.noise import LAWS
from tests.chance import deviations, likely
from tests.conftest import lines_of
from tools.data.images import LabelledImages
from tools.probes.hooks import is_noisy
from tools.studies.regularisation import experiments
from tools.studies.regularisation.runs import (
    Data,
    LearntScales,
    Measured,
    Run,
    build,
    chosen_images,
    evaluate,
    learn_scales,
    loss_of,
    mean_field_twin,
    measure,
    train,
)
from tools.studies.regularisation.sharpness import hessian_trace, moved, perturbed_loss
from tools.studies.study import Study


def generator():
    return torch.Generator().manual_seed(0)


class Quadratic(torch.nn.Module):
    """1/2 w A w, whose Hessian is A."""

    def __init__(self):
        super().__init__()
        root = torch.randn(6, 6, generator=generator(), dtype=torch.float64)
        self.matrix = root @ root.T
        self.weight = torch.nn.Parameter(torch.randn(6, generator=generator(), dtype=torch.float64))

    def forward(self):
        return 0.5 * self.weight @ self.matrix @ self.weight


def test_the_trace_of_a_quadratic():
    net = Quadratic()
    before = net.weight.detach().clone()
    mean, error = hessian_trace(net, lambda net: net(), 1000, generator())
    assert abs(mean - net.matrix.trace().item()) < deviations(samples=1000) * error
    assert torch.equal(net.weight, before)


def test_the_trace_of_a_mean_field_is_that_of_its_hessian():
    torch.manual_seed(0)
    options = dict(in_shape=(1, 2, 2), num_classes=2, width=3 / 64)
    net = build_model("toynet", neuron=lambda: NoisyLIF(Gaussian(0.4)), **options).double()
    x, y = torch.rand(5, 1, 2, 2, dtype=torch.float64), torch.tensor([0, 1, 0, 1, 1])

    def loss(net):
        return loss_of(net, x, y)

    with mean_field(net):
        weights, exact, step = list(net.parameters()), 0.0, 1e-4
        for weight in weights:  # the kernels have first derivatives alone: difference quotients of each weight
            for index in range(weight.numel()):
                direction = torch.zeros_like(weight).view(-1).index_fill(0, torch.tensor(index), 1).view_as(weight)
                slopes = []
                for sign in (1, -1):
                    with moved([weight], [direction], sign * step):
                        slopes.append((torch.autograd.grad(loss(net), weight)[0] * direction).sum())
                exact += ((slopes[0] - slopes[1]) / (2 * step)).item()
        mean, error = hessian_trace(net, loss, 600, generator())
    assert abs(mean - exact) < deviations(samples=600) * error and error < 0.2 * abs(exact)


def test_the_step_of_the_trace_is_small_beside_a_narrow_density():
    torch.manual_seed(0)
    net = build_model("toynet", neuron=lambda: NoisyLIF(Gaussian(0.05)), in_shape=(1, 28, 28), num_classes=2).double()
    x, y = torch.rand(20, 1, 28, 28, dtype=torch.float64), torch.arange(20) % 2
    with mean_field(net):
        loss = functools.partial(loss_of, images=x, labels=y)
        default, _ = hessian_trace(net, loss, 4, generator())
        smaller, _ = hessian_trace(net, loss, 4, generator(), step=1e-6)
        larger, _ = hessian_trace(net, loss, 4, generator(), step=1e-2)
    assert default == pytest.approx(smaller, rel=1e-3)
    assert larger != pytest.approx(smaller, rel=1e-1)


def test_the_rise_under_perturbed_weights_is_half_the_trace_times_their_variance():
    net = Quadratic()
    variance = (0.3 * net.weight.square().mean().sqrt().item()) ** 2
    draws, gradient = 10_000, net.matrix @ net.weight.detach()
    rise = perturbed_loss(net, lambda net: net(), 0.3, draws, generator()) - net().item()
    # For d ~ N(0, variance): Var[g d + d A d / 2].
    spread = variance * gradient.square().sum() + variance**2 / 2 * net.matrix.square().sum()
    bound = deviations() * math.sqrt(spread.item() / draws)
    expected = 0.5 * variance * net.matrix.trace().item()
    assert abs(rise - expected) < bound < 0.2 * expected


def digits(count, seed):
    """Ten classes of noisy random patterns."""
    labels = torch.arange(count) % 10
    patterns = torch.rand(10, 1, 28, 28, generator=generator()) * 200
    noise = 55 * torch.rand(count, 1, 28, 28, generator=torch.Generator().manual_seed(seed))
    return LabelledImages((patterns[labels] + noise).to(torch.uint8), labels)


def run(**changes):
    data = Data(digits(200, 1), digits(100, 2), (0.4,), (0.3,))
    settings = dict(images=40, law=Gaussian, std=0.3, noisy=True, steps=30, seed=0)
    return Run(data, **{**settings, **changes})


def test_few_images_have_as_many_of_each_class_and_larger_sets_hold_smaller_ones():
    few, more, other = (chosen_images(job) for job in (run(), run(images=100), run(seed=1)))
    assert few.labels.bincount().tolist() == [4] * 10 and more.labels.bincount().tolist() == [10] * 10
    sums, of_more, of_other = ({image.sum().item() for image in part.images} for part in (few, more, other))
    assert len(sums) == 40 and sums < of_more and sums != of_other
    assert len(few.labels[:10].unique()) > 4  # sharpness is measured on the first ones


class Seen(torch.nn.Module):
    """A network that puts down which images it sees, and draws noise if it is a noisy one."""

    def __init__(self, noisy):
        super().__init__()
        self.linear = torch.nn.Linear(784, 10)
        self.neuron = NoisyLIF() if noisy else torch.nn.Identity()
        self.batches = []

    def forward(self, images, timesteps):
        self.batches.append(images)
        return self.neuron(self.linear(images.flatten(1)).expand(timesteps, -1, -1).contiguous())


@pytest.mark.parametrize(("images", "batch"), [(40, 40), (200, 50)])
def test_training_takes_as_many_steps_as_are_wanted_with_the_same_order_for_both_kinds(images, batch):
    seen = []
    for noisy in (True, False):
        job, net = run(images=images, steps=7), Seen(noisy)
        train(net, chosen_images(job), job)
        assert [len(part) for part in net.batches] == [batch] * 7
        seen.append(torch.cat(net.batches))
    assert torch.equal(*seen)
    first_pass = seen[0][:images].flatten(1).sum(1).sort().values
    expected = (chosen_images(job).images.float() / 255).flatten(1).sum(1).sort().values
    assert torch.allclose(first_pass, expected)
    assert not torch.equal(seen[0][:images], seen[0][images : 2 * images])


@pytest.mark.parametrize("noisy", [True, False])
def test_a_network_is_trained_measured_and_repeats(noisy):
    found = measure(run(noisy=noisy, steps=60))
    assert found == measure(run(noisy=noisy, steps=60))
    assert found.train_accuracy > 0.9 and found.test_accuracy > 0.5
    assert found.gap == pytest.approx(found.test_loss - found.train_loss)
    untrained = measure(run(noisy=noisy, steps=1))
    assert untrained.train_loss > 2 * found.train_loss
    assert (found.test_accuracy == found.ensemble_accuracy) or noisy


def test_a_density_that_jumps_has_no_trace():
    found = measure(run(law=Uniform, steps=2))
    assert math.isnan(found.hessian_trace) and found.mean_field_loss > 0


def test_a_noisy_network_fires_with_the_probability_that_its_mean_field_has():
    net = build(run())
    (neuron,) = (module for module in net.modules() if isinstance(module, NoisyLIF))
    current = torch.linspace(0, 2, 20).expand(1, 20_000, -1)
    with noise_generator(generator()):
        spikes = neuron(current)
    with mean_field(net):
        assert likely(spikes.sum(1), 20_000, neuron(current)[:, 0])


def test_the_twin_of_a_deterministic_network_is_smooth_and_has_its_weights():
    job = run(noisy=False)
    net = build(job)
    twin = mean_field_twin(net, job)
    assert all(torch.equal(a.double(), b) for a, b in zip(net.state_dict().values(), twin.state_dict().values()))
    assert is_noisy(twin) and not is_noisy(net)


@pytest.mark.slow
def test_learnt_scales_are_noted_from_first_to_last():
    found = learn_scales(run(images=200, steps=20))
    assert found.steps == list(range(0, 21, 2))
    first, last = found.scales[0], found.scales[-1]
    assert first == pytest.approx([0.3] * 8)
    assert max(abs(scale - 0.3) for scale in last) > 0.03  # as far as their own rate lets them


def test_learnt_scales_have_a_row_for_each_scale_at_first(tmp_path, monkeypatch, stripes, figures):
    monkeypatch.setattr(experiments, "learn_scales", _learnt)
    found = experiments.learnt_scales(Study(tmp_path, quick=True), Data.of(stripes.load(), stripes.mean, stripes.std))
    assert [row["initial"] for row in found["rows"]] == [0.1, 0.3, 1.0] and found["seeds"] == 3
    for row in found["rows"]:
        assert [layer.mean for layer in row["layers"]] == pytest.approx([10 * row["initial"], 20 * row["initial"]])
        accuracy = row["test_accuracy"]
        assert 0.9 < accuracy.low < accuracy.mean < accuracy.high and accuracy.seeds == 3
    panels = figures["learnt_scales.png"].axes
    assert [panel.get_title() for panel in panels] == ["initially 0.1", "initially 0.3", "initially 1.0"]
    for panel, row in zip(panels, found["rows"]):
        layers = [lines_of(panel)[f"layer {layer}"] for layer in (1, 2)]
        assert layers == [([0, 1], pytest.approx([row["initial"], final.mean])) for final in row["layers"]]


def _learnt(job):
    std = job.std
    return LearntScales([0, 1], [[std, std], [10 * std, 20 * std]], 0.97 + 0.01 * (job.seed % 7) / 7)


def test_the_results_have_all_laws_and_intervals(tmp_path, monkeypatch, stripes, undrawn, figures):
    monkeypatch.setattr(experiments, "measure", _measured)
    found = experiments.generalisation(Study(tmp_path, quick=True), Data.of(stripes.load(), stripes.mean, stripes.std))
    assert {row["law"] for row in found["rows"]} == {"Gaussian", "Logistic", "Triangular", "Uniform", "Cauchy"}
    settings = {(row["images"], row["std"], row["law"], row["noisy"]) for row in found["rows"]}
    images, stds, *_ = map(set, zip(*settings))
    kinds = {(law.__name__, True) for law in LAWS} | {("Gaussian", False)}
    assert settings == {(*pair, *kind) for pair in itertools.product(images, stds) for kind in kinds}
    assert len(settings) == len(found["rows"]) and all(row["gap"].seeds > 1 for row in found["rows"])
    for row in found["rows"]:
        for number, key in enumerate(
            experiments.GAINS, 1
        ):  # of pairs of the same seed, so that the interval is a point
            if row["noisy"]:
                gain = row[f"{key}_gain"]
                assert [gain.low, gain.mean, gain.high] == pytest.approx([0.1 * number] * 3)
    gap = lines_of(figures["generalisation.png"].axes[1])["Gaussian"]  # the first row, 1,000 images
    rows = [row for row in found["rows"] if (row["images"], row["law"], row["noisy"]) == (1000, "Gaussian", True)]
    assert gap == ([row["std"] for row in rows], [row["gap"].mean for row in rows])
    accuracy = lines_of(figures["few_images.png"].axes[0])["Logistic"]
    rows = [row for row in found["rows"] if (row["std"], row["law"], row["noisy"]) == (0.3, "Logistic", True)]
    assert accuracy[1] == [row["test_accuracy"].mean for row in rows]


def _measured(job):
    value = 0.5 + job.std + 0.01 * (job.seed % 7)
    other = Measured(**dict.fromkeys(Measured.__dataclass_fields__, value))
    gains = {key: value + 0.1 * number * job.noisy for number, key in enumerate(experiments.GAINS, 1)}
    return dataclasses.replace(other, **gains)


def test_all_images_but_those_of_the_test_can_be_trained_on(stripes):
    data = Data.of(stripes.load(), stripes.mean, stripes.std)
    assert len(data.train.images) == len(data.train.labels) == 200 and len(data.test) == 50
    assert (data.mean, data.std) == (stripes.mean, stripes.std)
    assert build(Run(data, 40, Gaussian, 0.3, True, 1, 0)).normalize.mean.item() == pytest.approx(0.4)


def test_evaluation_is_of_single_draws_and_of_their_mean():
    job = run()
    net, images = build(job), job.data.test
    with noise_generator(generator()):
        loss, accuracy, ensemble_accuracy = evaluate(net, images, draws=2)
    with noise_generator(generator()), torch.no_grad():
        pixels = images.images.float() / 255
        logits = net(torch.cat([pixels] * 2), timesteps=4).mean(0)
    labels = images.labels.repeat(2)
    assert loss == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)
    assert accuracy == pytest.approx((logits.argmax(-1) == labels).double().mean().item())
    mean = logits.softmax(-1).unflatten(0, (2, -1)).mean(0)
    assert ensemble_accuracy == pytest.approx((mean.argmax(-1) == images.labels).double().mean().item())

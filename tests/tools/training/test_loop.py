"""The loops: ensembles, exact averages over uneven batches, non-finite losses."""

import dataclasses
import itertools
import math

import pytest
import torch
from torch import nn

from crits import RateCrossEntropy, Regularizer
from models import build_model, build_neuron
from tools.inference import ForwardPass, evaluate, predict
from tools.training.divergence import Diverged
from tools.training.loop import Learner, train_one_epoch

CPU = ForwardPass(torch.device("cpu"), timesteps=2)


class Scripted(nn.Module):
    """Puts out given logits [T, B, K], one item of `script` per call."""

    def __init__(self, script):
        super().__init__()
        self.script = list(script)
        self.calls = 0

    def forward(self, images, timesteps):
        logits = self.script[self.calls % len(self.script)]
        self.calls += 1
        return logits.expand(timesteps, len(images), -1)


def test_an_ensemble_averages_probabilities_not_logits():
    a, b = torch.tensor([4.0, 0.0]), torch.tensor([0.0, 1.0])
    net = Scripted([a.expand(1, 1, 2), b.expand(1, 1, 2)])
    wanted = (a.softmax(-1) + b.softmax(-1)) / 2
    forward = dataclasses.replace(CPU, fold=3)  # one draw of the batch in each pass
    found = evaluate(net, [(torch.zeros(3, 1), torch.zeros(3, dtype=torch.int64))], forward, draws=2)
    assert found.loss == pytest.approx(-math.log(wanted[0]))


@pytest.mark.parametrize("fold", [1, 3, 6, 100])
def test_draws_are_folded_into_the_batch_as_far_as_they_fit(fold):
    sizes = []

    class Net(nn.Module):
        def forward(self, images, timesteps):
            sizes.append(len(images))
            return images.flatten(1).expand(timesteps, -1, -1)

    images = torch.randn(3, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    draws = predict(Net(), images, dataclasses.replace(CPU, fold=fold), draws=5)
    assert sum(sizes) == 15 and max(sizes) <= max(fold, 3)
    assert all(one + other > fold for one, other in itertools.pairwise(sizes))
    torch.testing.assert_close(draws, images.flatten(1).log_softmax(-1).expand(5, 3, 4))


def test_draws_of_frames_are_folded_behind_time():
    frames = torch.rand(4, 3, 2, 5, 5)
    draws = predict(lambda frames: frames.flatten(2), frames, dataclasses.replace(CPU, fold=100), draws=2)
    torch.testing.assert_close(draws, frames.flatten(2).mean(0).log_softmax(-1).expand(2, 3, 50))


def test_where_memory_does_not_suffice_fewer_draws_are_folded():
    def net(images, timesteps):
        if len(images) > 4:
            raise torch.OutOfMemoryError("out of memory")
        return images.flatten(1).expand(timesteps, -1, -1)

    forward = dataclasses.replace(CPU, fold=20)
    assert predict(net, torch.rand(2, 1, 1, 3), forward, draws=7).shape == (7, 2, 3)
    assert forward.fold in (4, 5)
    with pytest.raises(torch.OutOfMemoryError):
        predict(net, torch.rand(5, 1, 1, 3), forward, draws=2)


def test_evaluation_weighs_every_image_the_same_in_uneven_batches():
    net = Scripted([torch.tensor([[[2.0, 0.0]]])])
    batches = [(torch.zeros(3, 1), torch.tensor([0, 0, 1])), (torch.zeros(1, 1), torch.tensor([1]))]
    result = evaluate(net, batches, CPU)
    right, wrong = math.log(1 + math.exp(-2)), math.log(1 + math.exp(2))
    assert result.accuracy == 0.5
    assert result.loss == pytest.approx((2 * right + 2 * wrong) / 4)


def test_evaluation_applies_the_transform_to_the_pixels_and_keeps_no_graph():
    seen = []

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(1))

        def forward(self, images, timesteps):
            seen.append((images.clone(), torch.is_grad_enabled(), self.training))
            return (self.w * images).expand(timesteps, -1, -1)

    evaluate(Net(), [(torch.ones(2, 2), torch.tensor([0, 1]))], CPU, transform=lambda x, target: x * 0.25)
    ((images, grad, training),) = seen
    assert torch.equal(images, torch.full((2, 2), 0.25))
    assert not grad and not training


class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, images, timesteps):
        return self.layer(images).expand(timesteps, -1, -1)


class Listed(list):
    """Ready batches, with the interface of `tools.batches.Batches`."""

    def order(self):
        return torch.arange(len(self))

    def passing(self, order, first=0):
        return iter(self[first:])


def train(net, batches, lr=0.1, **options):
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    learner = Learner(net, RateCrossEntropy(), optimizer, scheduler, scaler, CPU, **options)
    return train_one_epoch(learner, Listed(batches), epoch=4)


def batches(count=5):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 8, 2, generator=generator)
    return [(images, (images[:, 0] > 0).long()) for images in x]


def test_training_lowers_the_loss_and_reports_it():
    torch.manual_seed(0)
    net = Linear()
    first, last = [train(net, batches(), lr=1.0) for _ in range(10)][::9]
    assert last.loss < 0.5 * first.loss
    assert last.accuracy > 0.95


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_at_once_naming_epoch_and_step(bad):
    net = Linear()
    data = batches()
    data[3][0][0, 0] = bad
    before = [p.clone() for p in net.parameters()]
    with pytest.raises(Diverged, match="loss became (nan|inf) in epoch 4, step 4"):
        train(net, data)
    assert all(p.isfinite().all() for p in net.parameters())
    assert not torch.equal(before[0], next(net.parameters()))  # the steps before it counted


def test_weights_that_spikes_hide_from_the_loss_are_found():
    """[NaN > threshold] is "no spike": the loss of a network of NaN weights stays finite."""
    torch.manual_seed(0)
    net = build_model("toynet", neuron=build_neuron("NILIF"), in_shape=(1, 2, 1), num_classes=2)
    with torch.no_grad():
        net.stem[1].weight.fill_(math.nan)
    data = [(images.reshape(-1, 1, 2, 1), target) for images, target in batches()]
    assert RateCrossEntropy()(CPU(net, data[0][0]), data[0][1]).isfinite()
    with pytest.raises(Diverged, match="norm of the gradient became nan in epoch 4, step 1"):
        train(net, data)


def test_weights_spoilt_by_the_last_step_are_found_before_anything_is_saved():
    net = Linear()
    with pytest.raises(Diverged, match="layer.weight is not finite after epoch 4, step 1"):
        train(net, batches(1), lr=math.inf)


def test_gradients_are_clipped_to_the_norm():
    net = Linear()
    before = torch.cat([p.detach().flatten().clone() for p in net.parameters()])
    train(net, batches(1), lr=1.0, clip_grad=1e-3)
    after = torch.cat([p.detach().flatten() for p in net.parameters()])
    assert (after - before).norm().item() == pytest.approx(1e-3, rel=1e-3)


def test_a_regulariser_adds_its_gradient():
    class Pull(Regularizer):
        def __call__(self, net):
            return net.layer.weight.square().sum()

    torch.manual_seed(0)
    plain, pulled = Linear(), Linear()
    pulled.load_state_dict(plain.state_dict())
    start = plain.layer.weight.detach().clone()
    train(plain, batches(1), lr=0.1)
    train(pulled, batches(1), lr=0.1, regularizer=Pull(), regularizer_weight=0.5)
    difference = plain.layer.weight - pulled.layer.weight
    assert torch.allclose(difference, 0.1 * 0.5 * 2 * start, atol=1e-6)


def test_a_padded_batch_is_learnt_as_each_of_its_recordings_alone():
    """Logits, loss, gradient and accuracy."""
    torch.manual_seed(0)
    neuron = build_neuron("LIF")
    net = build_model("toynet", neuron=neuron, in_shape=(2, 6, 6), num_classes=3)
    frames, target, lengths = 3 * torch.rand(7, 4, 2, 6, 6), torch.tensor([0, 2, 1, 0]), torch.tensor([7, 1, 4, 3])
    for sample, length in enumerate(lengths):
        frames[length:, sample] = 0
    alone = [(frames[:length, [b]], target[[b]]) for b, length in enumerate(lengths)]
    criterion = RateCrossEntropy()

    def gradient(batches):
        net.zero_grad()
        losses = [criterion(CPU(net, batch[0]), *batch[1:]) for batch in batches]
        torch.stack(losses).mean().backward()
        return torch.stack(losses).mean(), [parameter.grad.clone() for parameter in net.parameters()]

    padded, apart = gradient([(frames, target, lengths)]), gradient(alone)
    torch.testing.assert_close(padded, apart)
    draws = predict(net, frames, CPU, 2, lengths)
    one_by_one = torch.cat([predict(net, one, CPU, 2) for one, _ in alone], 1)
    torch.testing.assert_close(draws, one_by_one)
    assert not torch.allclose(draws, predict(net, frames, CPU, 2))
    together, each = evaluate(net, [(frames, target, lengths)], CPU), evaluate(net, alone, CPU)
    assert together.loss == pytest.approx(each.loss) and together.accuracy == each.accuracy

"""Perturbations do what they say: the published code only printed that it perturbed."""

import pytest
import torch

from models import LIF, NoisyLIF, build_model, build_neuron
from tools.perturb import PERTURBATIONS
from tools.perturb.hidden import flip_spikes, membrane_noise
from tools.perturb.pixels import add_gaussian, multiply_gaussian, salt_and_pepper

PIXEL = [name for name, perturbation in PERTURBATIONS.items() if perturbation.where == "pixels"]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", PIXEL)
def test_pixels_change_stay_in_range_and_repeat_with_the_seed(name):
    images = torch.rand(8, 3, 16, 16, generator=generator(9))
    before = images.clone()
    apply = PERTURBATIONS[name].apply
    disturbed = apply(images, 0.3, generator())
    assert (disturbed - images).abs().mean() > 0.02
    assert disturbed.min() >= 0 and disturbed.max() <= 1
    assert torch.equal(disturbed, apply(images, 0.3, generator()))
    assert not torch.equal(disturbed, apply(images, 0.3, generator(1)))
    assert torch.equal(images, before)  # the input itself is untouched
    assert torch.equal(apply(images, 0.0, generator()), images)


def test_added_noise_has_the_stated_deviation():
    noise = add_gaussian(torch.full((50, 1, 32, 32), 0.5), 0.1, generator()) - 0.5
    assert noise.std().item() == pytest.approx(0.1, rel=0.02)
    assert noise.mean().item() == pytest.approx(0, abs=4.5 * 0.1 / noise.numel() ** 0.5)


def test_multiplied_noise_is_proportional_to_the_pixel():
    for level in (0.2, 0.4):
        noise = multiply_gaussian(torch.full((50, 1, 32, 32), level), 0.1, generator()) - level
        assert noise.std().item() == pytest.approx(0.1 * level, rel=0.02)


def test_salt_and_pepper_hit_the_stated_fraction_in_all_channels():
    images = torch.full((50, 3, 32, 32), 0.5)
    disturbed = salt_and_pepper(images, 0.2, generator())
    black, white = (disturbed == 0).float().mean().item(), (disturbed == 1).float().mean().item()
    tolerance = 4.5 * (0.1 * 0.9 / (50 * 32 * 32)) ** 0.5
    assert black == pytest.approx(0.1, abs=tolerance)
    assert white == pytest.approx(0.1, abs=tolerance)
    assert torch.equal(disturbed[:, 0], disturbed[:, 2])


@pytest.mark.parametrize("spiking", [True, False])
def test_spikes_flip_with_the_stated_probability(spiking):
    neuron = LIF()
    x = torch.full((4, 100, 100), 5.0 if spiking else -5.0)
    with flip_spikes(neuron, 0.1, generator()):
        spikes = neuron(x)
    flipped = (spikes != float(spiking)).float().mean().item()
    assert flipped == pytest.approx(0.1, abs=4.5 * (0.09 / x.numel()) ** 0.5)
    assert set(spikes.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(neuron(x), torch.full_like(x, float(spiking)))  # gone after the block


@pytest.mark.parametrize("decay_input", [False, True])
def test_membrane_noise_has_the_stated_deviation_in_the_potential(decay_input):
    x = torch.zeros(1, 200, 200)
    neuron = LIF(threshold=1.0, decay=0.75, decay_input=decay_input)
    with membrane_noise(neuron, 1.0, generator()):
        spikes = neuron(x)
    # P(n > 1) for a standard normal n
    assert spikes.mean().item() == pytest.approx(0.158655, abs=4.5 * (0.1335 / x.numel()) ** 0.5)


def test_hidden_perturbations_reach_every_layer_and_leave_no_hook():
    net = build_model("vgg", neuron=build_neuron("LIF"), in_shape=(1, 8, 8), num_classes=3, width=0.05).eval()
    x = torch.rand(2, 1, 8, 8)
    clean = net(x, timesteps=2)
    calls = []
    for apply in (flip_spikes, membrane_noise):
        with apply(net, 0.5, generator()):
            hooked = [m for m in net.modules() if m._forward_hooks or m._forward_pre_hooks]
            calls.append(len(hooked))
            assert not torch.equal(net(x, timesteps=2), clean)
        assert torch.equal(net(x, timesteps=2), clean)
    assert calls == [8, 8]


def test_a_network_without_neurons_cannot_be_perturbed_inside():
    with pytest.raises(ValueError, match="no spiking neuron"):
        flip_spikes(torch.nn.Linear(2, 2), 0.1, generator()).__enter__()


def test_noisy_neurons_keep_their_own_noise_under_a_hidden_perturbation():
    neuron = NoisyLIF()
    torch.manual_seed(0)
    clean = neuron(torch.rand(2, 50, 50))
    torch.manual_seed(0)
    with flip_spikes(neuron, 0.0, generator()):
        assert torch.equal(neuron(torch.rand(2, 50, 50)), clean)

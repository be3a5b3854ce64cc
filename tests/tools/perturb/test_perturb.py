"""Perturbations do what they say: the published code only printed that it perturbed."""

import colorsys
import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

from models import LIF, NoisyLIF, build_model, build_neuron
from tests import fresh
from tests.chance import deviations, likely
from tools.perturb import PERTURBATIONS, applicable
from tools.perturb.hidden import delete_spikes, flip_spikes, insert_spikes, membrane_noise
from tools.perturb.perturbation import entry
from tools.perturb.pixels import (
    add_gaussian,
    blur,
    brightness,
    contrast,
    jpeg,
    multiply_gaussian,
    pixelate,
    salt_and_pepper,
    shot_noise,
)

PIXEL = [name for name, perturbation in PERTURBATIONS.items() if perturbation.where == "pixels"]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", PIXEL)
def test_pixels_change_more_with_severity_stay_in_range_and_repeat_with_the_seed(name, channels):
    smooth = torch.nn.functional.interpolate(torch.rand(8, channels, 5, 5, generator=generator(9)), 32, mode="bicubic")
    images = (smooth + 0.05 * torch.rand(8, channels, 32, 32, generator=generator(8))).clamp(0, 1)
    before = images.clone()
    perturbation = PERTURBATIONS[name]
    changes = []
    for strength in perturbation.severities:
        disturbed = perturbation.apply(images, strength, generator())
        assert disturbed.shape == images.shape and disturbed.dtype == images.dtype
        assert disturbed.min() >= 0 and disturbed.max() <= 1
        assert torch.equal(disturbed, perturbation.apply(images, strength, generator()))
        other_draw = perturbation.apply(images, strength, generator(1))
        assert torch.equal(disturbed, other_draw) == (not perturbation.is_random)
        changes.append((disturbed - images).abs().mean().item())
    assert torch.equal(images, before)  # the input itself is untouched
    # Whole pixels of a shrunk image meet those of the original now better, now worse.
    assert changes == sorted(changes) or name == "pixelate"
    assert changes[0] > 0.001 and changes[4] > 1.25 * changes[0]
    if perturbation.neutral is not None:
        neutral = perturbation.apply(images, perturbation.neutral, generator())
        assert torch.allclose(neutral, images, atol=1e-6 if name != "pixelate" else 0.5 / 255 + 1e-6)  # of 8 bits


# The table of make_cifar_c.py of CIFAR-10-C, for images of 32 pixels.
OF_CIFAR_10_C = {
    "add_gaussian": (0.04, 0.06, 0.08, 0.09, 0.10),
    "multi_gaussian": (0.06, 0.1, 0.12, 0.16, 0.2),
    "shot": (500, 250, 100, 75, 50),
    "sp": (0.01, 0.02, 0.03, 0.05, 0.07),
    "blur": (0.4, 0.6, 0.7, 0.8, 1.0),
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),
    "brightness": (0.05, 0.1, 0.15, 0.2, 0.3),
    "jpeg": (80, 65, 58, 50, 40),
    "pixelate": (0.95, 0.9, 0.85, 0.75, 0.65),
}
# Choices of this project; a changed one changes every comparison by severity.
OUR_SEVERITIES = {
    "eventdrop": (0.1, 0.3, 0.5, 0.7, 0.9),
    "drop_time": (0.1, 0.2, 0.3, 0.5, 0.7),
    "drop_area": (0.1, 0.2, 0.3, 0.4, 0.5),
    "background": (0.1, 0.3, 1.0, 3.0, 5.0),
    "hot_pixels": (0.001, 0.003, 0.01, 0.03, 0.1),
    "dead_pixels": (0.01, 0.03, 0.1, 0.2, 0.3),
    "time_jitter": (1000, 5000, 10_000, 30_000, 100_000),
    "polarity_flip": (0.05, 0.1, 0.2, 0.3, 0.5),
    "spike_level": (0.001, 0.003, 0.01, 0.03, 0.1),
    "spike_delete": (0.05, 0.1, 0.2, 0.3, 0.5),
    "spike_insert": (0.001, 0.003, 0.01, 0.03, 0.1),
    "membrane": (0.1, 0.2, 0.3, 0.5, 1.0),
    "adversarial": (0.25, 0.5, 1.0, 1.5, 2.0),
    "fgsm": (2 / 255, 4 / 255, 8 / 255, 16 / 255, 32 / 255),
}


def test_the_severities():
    for name, severities in {**OF_CIFAR_10_C, **OUR_SEVERITIES}.items():
        assert PERTURBATIONS[name].severities == severities, name


def test_the_strengths_that_are_allowed_and_those_that_change_nothing():
    share, from_one = (0, 0, 1), (None, 1, math.inf)
    shares = "sp", "brightness", "eventdrop", "drop_time", "drop_area", "hot_pixels", "dead_pixels", "polarity_flip"
    others = {
        **dict.fromkeys((*shares, "spike_level", "spike_delete", "spike_insert"), share),
        "shot": from_one,
        "contrast": (1, 0, math.inf),
        "jpeg": (None, 1, 95),
        "pixelate": (1, 0, 1),
    }
    for name in (*OF_CIFAR_10_C, *OUR_SEVERITIES):
        one = PERTURBATIONS[name]
        assert (one.neutral, one.lowest, one.highest) == others.get(name, (0, 0, math.inf)), name
        assert one.is_random == (name not in ("blur", "contrast", "brightness", "jpeg", "pixelate", "fgsm")), name


@pytest.mark.parametrize(
    ("has_pixels", "families"), [(True, ["pixels", "hidden", "attack"]), (False, ["events", "hidden"])]
)
def test_perturbations_apply_to_what_a_data_set_has(has_pixels, families):
    assert applicable(has_pixels) == [name for name, one in PERTURBATIONS.items() if one.where in families]


def test_a_name_is_given_once():
    with pytest.raises(ValueError, match="there is a perturbation 'blur' already"):
        entry(dict(PERTURBATIONS), "pixels", "blur", "blur_sigma", "pixels", (1, 2, 3, 4, 5))(blur)


def test_shot_noise_is_a_count_of_photons():
    level, photons = 0.3, 100
    disturbed = shot_noise(torch.full((50, 1, 32, 32), level), photons, generator())
    assert torch.allclose(disturbed * photons, (disturbed * photons).round(), atol=1e-4)
    variance = level / photons
    assert disturbed.mean().item() == pytest.approx(level, abs=deviations(2) * (variance / disturbed.numel()) ** 0.5)
    assert disturbed.var().item() == pytest.approx(variance, rel=deviations(2) * (2.04 / disturbed.numel()) ** 0.5)


def test_blur_is_the_gaussian_of_scipy():
    images = torch.rand(2, 3, 32, 32, generator=generator())
    for sigma, radius in ((0.4, 2), (1.0, 4)):  # pixels until 4 sigma
        expected = gaussian_filter(images.double().numpy(), sigma, radius=radius, mode="mirror", axes=(2, 3))
        assert np.abs(blur(images, sigma, None).numpy() - expected).max() < 1e-6
    small = images[..., :4, :9]  # a mirror has one pixel less than the image
    expected = gaussian_filter(small.double().numpy(), 3.0, radius=3, mode="mirror", axes=(2, 3))
    assert np.abs(blur(small, 3.0, None).numpy() - expected).max() < 1e-6
    assert all(blur(torch.ones(1, 1, 32, 32), sigma / 10, None).max() <= 1 for sigma in range(1, 30))


def test_contrast_is_about_the_mean_of_each_channel():
    images = torch.tensor([[[[0.2, 0.4]], [[0.5, 0.9]]]])
    assert torch.allclose(contrast(images, 0.5, None), torch.tensor([[[[0.25, 0.35]], [[0.6, 0.8]]]]))
    assert torch.allclose(contrast(images, 5.0, None), torch.tensor([[[[0.0, 0.8]], [[0.0, 1.0]]]]))


def test_brightness_is_added_to_the_value_of_hsv():
    images = torch.rand(1, 3, 8, 8, generator=generator())
    images[..., 0, 0] = 0
    expected = []
    for red, green, blue in images[0].flatten(1).T.tolist():
        hue, saturation, value = colorsys.rgb_to_hsv(red, green, blue)
        expected.append(colorsys.hsv_to_rgb(hue, saturation, min(value + 0.2, 1)))
    assert torch.allclose(brightness(images, 0.2, None)[0].flatten(1).T, torch.tensor(expected), atol=1e-6)
    assert torch.allclose(
        brightness(torch.tensor([[[[0.0, 0.5, 0.95]]]]), 0.2, None), torch.tensor([[[[0.2, 0.7, 1]]]])
    )


def test_jpeg_is_what_pillow_writes_and_pixels_become_boxes():
    images = (torch.rand(2, 3, 32, 32, generator=generator()) * 255).round() / 255
    file = io.BytesIO()
    Image.fromarray((images[1] * 255).byte().permute(1, 2, 0).numpy()).save(file, "JPEG", quality=50)
    expected = torch.from_numpy(np.asarray(Image.open(file)).copy()).permute(2, 0, 1) / 255
    assert torch.equal(jpeg(images, 50, None)[1], expected)
    boxes = pixelate(images, 0.5, None).unfold(2, 2, 2).unfold(3, 2, 2)
    assert torch.equal(boxes, boxes[..., :1, :1].expand_as(boxes))
    assert (boxes[..., 0, 0] - torch.nn.functional.avg_pool2d(images, 2)).abs().max() < 1.01 / 255
    one = pixelate(images[..., :9], 0.01, None)  # a pixel at least
    assert (one - images[..., :9].mean((2, 3), keepdim=True)).abs().max() < 1.01 / 255


def test_added_noise_has_the_stated_deviation():
    noise = add_gaussian(torch.full((50, 1, 32, 32), 0.5), 0.1, generator()) - 0.5
    assert noise.std().item() == pytest.approx(0.1, rel=deviations(2) / (2 * noise.numel()) ** 0.5)
    assert noise.mean().item() == pytest.approx(0, abs=deviations(2) * 0.1 / noise.numel() ** 0.5)


def test_multiplied_noise_is_proportional_to_the_pixel():
    for level in (0.2, 0.4):
        noise = multiply_gaussian(torch.full((50, 1, 32, 32), level), 0.1, generator()) - level
        assert noise.std().item() == pytest.approx(0.1 * level, rel=deviations(2) / (2 * noise.numel()) ** 0.5)


def test_salt_and_pepper_hit_the_stated_fraction_in_all_channels():
    images = torch.full((50, 3, 32, 32), 0.5)
    disturbed = salt_and_pepper(images, 0.2, generator())
    for color in (0, 1):
        assert likely((disturbed[:, 0] == color).sum(), 50 * 32 * 32, 0.1, comparisons=2)
    assert torch.equal(disturbed[:, 0], disturbed[:, 2])


@pytest.mark.parametrize("spiking", [True, False])
@pytest.mark.parametrize(
    ("apply", "of_spikes", "of_silence"), [(flip_spikes, 1, 1), (delete_spikes, 1, 0), (insert_spikes, 0, 1)]
)
def test_spikes_change_with_the_stated_probability(spiking, apply, of_spikes, of_silence):
    neuron = LIF()
    x = torch.full((4, 100, 100), 5.0 if spiking else -5.0)
    with apply(neuron, 0.1, generator()):
        spikes = neuron(x)
    expected = 0.1 * (of_spikes if spiking else of_silence)
    assert likely((spikes != float(spiking)).sum(), x.numel(), expected)
    assert set(spikes.unique().tolist()) <= {0.0, 1.0}
    assert torch.equal(neuron(x), torch.full_like(x, float(spiking)))  # gone after the block


@pytest.mark.parametrize("decay_input", [False, True])
def test_membrane_noise_has_the_stated_deviation_in_the_potential(decay_input):
    x = torch.zeros(1, 200, 200)
    neurons = [LIF(threshold=1.0, decay=0.75, decay_input=decay_input)]
    for decays in (torch.tensor(0.75), torch.full((200,), 0.75)):  # the same, as a tensor and for each channel
        neurons.append(LIF(decay=torch.nn.Parameter(decays), decay_input=decay_input))
    for neuron in neurons:
        for current in (x, x.reshape(1, 1, 200, 200)):
            with torch.no_grad(), membrane_noise(neuron, 1.0, generator()):
                spikes = neuron(current)
            # P(n > 1) for a standard normal n
            assert likely(spikes.sum(), x.numel(), 0.158655, comparisons=6)


def test_hidden_perturbations_reach_every_layer_and_end_with_the_block():
    net = build_model("vgg", neuron=build_neuron("LIF"), in_shape=(1, 8, 8), num_classes=3, width=0.05).eval()
    x = torch.rand(2, 1, 8, 8)
    clean = net(x, timesteps=2)
    neurons, current = [module for module in net.modules() if isinstance(module, LIF)], 2 * torch.rand(2, 3, 20)
    spikes = neurons[0](current)
    for apply in (flip_spikes, membrane_noise):
        with apply(net, 0.5, generator()):
            assert not any(torch.equal(neuron(current), spikes) for neuron in neurons)
            assert not torch.equal(net(x, timesteps=2), clean)
        assert all(torch.equal(neuron(current), spikes) for neuron in neurons)
        assert torch.equal(net(x, timesteps=2), clean)


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


def test_importing_the_table_imports_nothing_slow():
    code = "import sys, tools.perturb; print({'torchvision', 'matplotlib', 'scipy'} & set(sys.modules) or [])"
    done = fresh.run(code)
    assert done.stdout.strip() == "[]", done.stderr

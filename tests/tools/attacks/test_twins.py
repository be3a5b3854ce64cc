"""Twins of networks whose neurons are neither of `models` nor deterministic."""

import copy
import math

import pytest
import torch
from torch import nn

from models import LIF, Gaussian, NoisyLIF, noise_generator, noiseless
from tools.attacks.campaign import PRESETS, Campaign
from tools.attacks.twins import (
    gradient_paths,
    mean_field_twin,
    noiseless_twin,
    twins_in_other_modes,
    vanishing_noise_twin,
    with_gradient_path,
)
from tools.errors import UserError
from tools.inference import ForwardPass
from tools.probes.hooks import is_noisy, set_mode

CPU = ForwardPass(torch.device("cpu"), timesteps=2)


class Bare(nn.Module):
    """A stochastic neuron that says no more of itself than that."""

    emits_spikes = True
    is_noisy = True

    def forward(self, x):
        return (x > torch.rand_like(x)).to(x.dtype)


class Complete(nn.Module):
    """A stochastic neuron without memory that offers all of the protocol: fires with probability F(x - 1)."""

    emits_spikes = True

    def __init__(self):
        super().__init__()
        self.mode, self.law, self.noise = "noisy", Gaussian(0.3), Gaussian(0.3)

    @property
    def is_noisy(self):
        return self.mode == "noisy"

    @property
    def gradient_law(self):
        return self.law

    def set_gradient(self, law, detach_reset=None):
        self.law = law

    def scale_noise(self, factor):
        self.noise = self.noise.widened(factor)

    def as_mean_field(self):
        self.mode = "mean_field"
        return self

    def forward(self, x):
        z = x - 1
        if self.mode == "mean_field":
            return self.noise.cdf(z)
        fired = (z > (self.noise.sample(z.shape) if self.is_noisy else 0)).to(x.dtype)
        by_z = self.law.pdf(z.detach()) * z
        return fired + (by_z - by_z.detach())


class Net(nn.Module):
    def __init__(self, neuron):
        super().__init__()
        self.layers = nn.ModuleDict({"neuron": neuron})

    def forward(self, images, timesteps):
        spikes = self.layers["neuron"](images.flatten(1).expand(timesteps, -1, -1) * 2)
        return torch.stack([spikes.mean(-1), 1 - spikes.mean(-1)], -1)


def test_a_third_stochastic_neuron_has_every_twin():
    net, images = Net(Complete()), torch.rand(4, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    x = images.flatten(1)[None] * 2
    assert is_noisy(net)
    fires = noiseless_twin(net)
    assert not is_noisy(fires) and torch.equal(fires.layers["neuron"](x), (x > 1).float())
    torch.testing.assert_close(mean_field_twin(net).layers["neuron"](x), Gaussian(0.3).cdf(x - 1))
    vanishing = vanishing_noise_twin(net)
    assert is_noisy(vanishing) and torch.equal(vanishing(images, 2), fires(images, 2))
    leaf = x.clone().requires_grad_()
    with_gradient_path(net, "arctangent").layers["neuron"](leaf).sum().backward()
    torch.testing.assert_close(leaf.grad, 1 / (1 + (math.pi * (x - 1)) ** 2))
    assert net.layers["neuron"].mode == "noisy" and net.layers["neuron"].law.scale == 0.3


@pytest.mark.parametrize(
    ("mode", "others"),
    [
        ("noisy", ["noiseless", "mean field"]),
        ("noiseless", ["noisy", "mean field"]),
        ("mean_field", ["noisy", "noiseless"]),
    ],
)
def test_a_deployed_network_has_twins_in_the_other_modes(mode, others):
    """Each is as the network would be in that mode, and the network stays in its own."""
    net, images = Net(NoisyLIF(Gaussian(0.3))), torch.rand(40, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    set_mode(net, mode, "a test")
    twins = twins_in_other_modes(net)
    assert list(twins) == others
    for name, twin in twins.items():
        expected = copy.deepcopy(net)
        expected.layers["neuron"].mode = name.replace(" ", "_")
        with noise_generator(torch.Generator().manual_seed(1)):
            found = twin(images, 3)
        with noise_generator(torch.Generator().manual_seed(1)):
            torch.testing.assert_close(found, expected(images, 3))
    assert net.layers["neuron"].mode == mode


def test_a_network_without_noise_has_a_mean_field_twin_alone():
    assert list(twins_in_other_modes(Net(LIF(Gaussian(0.3))))) == ["mean field"]


def test_a_network_without_spikes_has_no_twins_of_other_modes_or_gradients():
    net = Net(nn.ReLU())
    assert twins_in_other_modes(net) == {} and gradient_paths(net) == ["own"]
    images = torch.rand(4, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(with_gradient_path(net, "own")(images, 2), net(images, 2))


@pytest.mark.parametrize(
    ("make", "missing"),
    [
        (lambda net: with_gradient_path(net, "own"), "gradient_law"),
        (lambda net: with_gradient_path(net, "mean_field"), "as_mean_field"),
        (noiseless_twin, "mode"),
        (vanishing_noise_twin, "scale_noise"),
    ],
)
def test_a_stochastic_neuron_that_lacks_what_an_attack_needs_is_an_error(make, missing):
    with pytest.raises(UserError, match=rf"layer 'layers.neuron' \(Bare\) lacks '{missing}'"):
        make(Net(Bare()))


def test_attacks_do_not_take_a_third_stochastic_neuron_for_noise_free():
    images = torch.rand(4, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    campaign = Campaign(Net(Bare()), CPU, images, torch.zeros(4, dtype=torch.int64), PRESETS["quick"], {"linf": (0.1,)})
    assert campaign.is_noisy and campaign.draws == PRESETS["quick"].draws


class Poisson(nn.Module):
    """Draws, but is not known as a spiking neuron."""

    def forward(self, x):
        return (torch.rand_like(x) < torch.sigmoid(x)).to(x.dtype)


class Denying(Poisson):
    emits_spikes = True
    is_noisy = False


@pytest.mark.parametrize("neuron", [Poisson, Denying])
def test_noise_that_no_layer_admits_is_an_error(neuron):
    images, target = torch.rand(4, 1, 5, 5, generator=torch.Generator().manual_seed(0)), torch.zeros(4).long()
    with pytest.raises(UserError, match="no layer of this Net says that it `is_noisy`, but its outputs change"):
        Campaign(Net(neuron()), CPU, images, target, PRESETS["quick"], {"linf": (0.1,)})
    hidden = Net(nn.Sequential(neuron(), NoisyLIF(Gaussian(0.3))))
    campaign = Campaign(hidden, CPU, images, target, PRESETS["quick"], {"linf": (0.1,)})
    with pytest.raises(UserError, match="outputs change"):
        campaign.victim(noiseless_twin(hidden))


def test_a_network_that_is_one_neuron_has_a_mean_field():
    x = torch.rand(3, 2, 7, generator=torch.Generator().manual_seed(0))
    law = Gaussian(0.4)
    torch.testing.assert_close(mean_field_twin(LIF(law))(x), mean_field_twin(nn.Sequential(NoisyLIF(law)))(x))


def test_the_noise_of_a_neuron_with_a_surrogate_vanishes_too():
    """The gradient stays that of the surrogate; the noise that vanishes is the neuron's own."""
    x = torch.rand(2, 1, 2000, generator=torch.Generator().manual_seed(0)) * 2
    neuron = NoisyLIF(Gaussian(0.2), surrogate=Gaussian(5.0), decay=0.0)
    twin = vanishing_noise_twin(nn.Sequential(neuron))
    assert twin[0].noise.scale == pytest.approx(0.2e-6) and twin[0].gradient_law.scale == 5.0
    with noise_generator(torch.Generator().manual_seed(1)):
        assert torch.equal(twin(x), (x > 1).float())


class Chains(nn.Module):
    """Convolutions with and without what can be folded into them."""

    def __init__(self):
        super().__init__()
        self.plain = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), NoisyLIF(Gaussian(0.3)))
        self.batch_statistics = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, track_running_stats=False))
        self.watched = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4))
        self.watched[0].register_forward_hook(lambda module, args, output: output + 1)
        self.apart = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Identity(), nn.BatchNorm2d(4))

    def forward(self, x):
        return torch.stack([chain(x) for chain in self.children()])


def test_twins_fold_batch_normalisation_where_nothing_else_changes():
    torch.manual_seed(0)
    net, x = Chains(), torch.rand(8, 1, 6, 6)
    net(3 * x + 1)  # statistics
    twin = noiseless_twin(net)
    assert [sum(isinstance(m, nn.BatchNorm2d) for m in chain) for chain in twin.children()] == [0, 1, 1, 1]
    assert sum(isinstance(m, nn.BatchNorm2d) for m in net.modules()) == 4
    with noiseless(net.eval()):
        torch.testing.assert_close(twin(x), net(x))

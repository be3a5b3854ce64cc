"""Neurons are known by what they offer, not by their class: a user's own, and those of a second copy of `models`."""

import importlib
import shutil
import sys
import threading

import pytest
import torch
from torch import nn

import models
from models import IF, LIF, Gaussian, NoisyLIF, ParametricLIF, mean_field, noise_generator, noiseless
from models.kernels import fused
from models.noise import LAWS


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    """`models`, imported a second time from a copied folder."""
    folder = tmp_path_factory.mktemp("copy")
    source = models.__path__[0]
    shutil.copytree(source, folder / "models_copied_elsewhere", ignore=shutil.ignore_patterns("__pycache__"))
    sys.path.insert(0, str(folder))
    try:
        yield importlib.import_module("models_copied_elsewhere")
    finally:
        sys.path.remove(str(folder))


class Coin(nn.Module):
    """A third stochastic neuron, with what `noiseless` and `mean_field` need."""

    emits_spikes = True
    mode = "noisy"

    @property
    def is_noisy(self):
        return self.mode == "noisy"

    def forward(self, x):
        p = torch.sigmoid(x)
        if self.mode == "mean_field":
            return p
        return (p > (torch.rand_like(p) if self.is_noisy else 0.5)).to(x.dtype)


class Switchless(nn.Module):
    emits_spikes = True
    is_noisy = True

    def forward(self, x):
        return torch.rand_like(x).round()


class Silent(nn.Module):
    """Does not say whether it is noisy."""

    emits_spikes = True


class Quiet(nn.Module):
    emits_spikes = True
    is_noisy = False


def test_a_third_stochastic_neuron_is_switched():
    x = torch.linspace(-2, 2, 40).reshape(1, 1, 40)
    net = nn.Sequential(Coin())
    with noiseless(net):
        assert torch.equal(net(x), (x > 0).float())
    with mean_field(net):
        assert torch.equal(net(x), torch.sigmoid(x))
    assert net[0].mode == "noisy"


@pytest.mark.parametrize("switch", [noiseless, mean_field])
@pytest.mark.parametrize(("neuron", "missing"), [(Switchless(), "mode"), (Silent(), "is_noisy")])
def test_a_neuron_that_cannot_be_switched_is_named_and_nothing_is_switched(switch, neuron, missing):
    net = nn.ModuleDict({"first": NoisyLIF(), "second": neuron})
    message = rf"'second' \({type(neuron).__name__}\) lacks '{missing}', which {switch.__name__}\(\) needs"
    with pytest.raises(TypeError, match=message), switch(net):
        pass
    assert net["first"].mode == "noisy"


def test_neurons_without_noise_need_no_mode():
    net = nn.Sequential(Quiet(), LIF())
    with noiseless(net), mean_field(net):
        pass
    assert not hasattr(net[0], "mode") and not hasattr(net[1], "mode")


@pytest.mark.parametrize("neuron", [LIF(), ParametricLIF(), NoisyLIF()], ids=lambda neuron: type(neuron).__name__)
def test_is_noisy_is_whether_two_calls_differ(neuron):
    x = torch.rand(3, 4, 500, generator=seeded()) * 2
    assert neuron.is_noisy == (not torch.equal(neuron(x), neuron(x)))
    with noiseless(neuron):
        assert not neuron.is_noisy
    with mean_field(neuron):
        assert not neuron.is_noisy


def test_scaled_noise_keeps_the_gradient_and_the_learnt_scale():
    x = torch.linspace(0.0, 2.0, 50).reshape(1, 1, 50)
    neuron = NoisyLIF(Gaussian(0.1), placement="escape", learnable_scale=True)
    with torch.no_grad():
        neuron.log_scale += torch.tensor(3.0).log()
    neuron.scale_noise(1e-6)
    given = x.clone().requires_grad_()
    spikes = neuron(given)
    spikes.sum().backward()
    assert torch.equal(spikes, (x > 1).float())
    torch.testing.assert_close(given.grad, Gaussian(0.3).pdf(x - 1))
    assert neuron.noise.scale == pytest.approx(0.3e-6, rel=1e-5)


def test_a_learnt_scale_admits_no_other_gradient():
    with pytest.raises(ValueError, match="leave out the surrogate"):
        NoisyLIF(learnable_scale=True).set_gradient(Gaussian(1.0))


def test_the_mean_field_of_a_neuron_is_another_neuron():
    neuron = NoisyLIF(Gaussian(0.3), decay=0.7)
    other, x = neuron.as_mean_field(), torch.rand(3, 2, 9, generator=seeded())
    assert neuron.mode == "noisy" and not other.is_noisy
    with mean_field(neuron):
        assert torch.equal(other(x), neuron(x))


@pytest.mark.parametrize("kind", [LIF, IF, ParametricLIF, NoisyLIF])
def test_the_mean_field_of_a_subclass_keeps_its_dynamics(kind):
    class Saturating(kind):
        def run(self, x, state=None, keep_state=True):
            return super().run(torch.tanh(x), state, keep_state)

    x = torch.rand(3, 2, 9, generator=seeded()) * 3
    neuron, plain = Saturating(Gaussian(0.4), reset="subtract"), kind(Gaussian(0.4), reset="subtract")
    spikes = neuron.as_mean_field()(x)
    assert torch.equal(spikes, plain.as_mean_field()(torch.tanh(x)))
    u = torch.tanh(x[0])
    torch.testing.assert_close(spikes[0], Gaussian(0.4).cdf(u - 1))
    if kind is not NoisyLIF:
        assert set(neuron(x).unique().tolist()) <= {0.0, 1.0}


# ---- a second copy of the package


def test_modes_of_one_copy_switch_the_neurons_of_the_other(copied):
    x = torch.rand(3, 4, 500, generator=seeded()) * 2
    for ours, theirs in ((models, copied), (copied, models)):
        net = nn.Sequential(theirs.NoisyLIF())
        with ours.noiseless(net):
            assert net[0].mode == "noiseless" and torch.equal(net(x), net(x))
        with ours.mean_field(net):
            assert net[0].mode == "mean_field" and not set(net(x).unique().tolist()) <= {0.0, 1.0}
        assert net[0].is_noisy


@pytest.mark.parametrize("backend", ["auto", "eager"])
def test_a_noise_generator_of_one_copy_acts_on_all(copied, backend, monkeypatch):
    monkeypatch.setenv("NSNN_KERNELS", backend)
    x = torch.rand(3, 4, 500, generator=seeded()) * 2
    draws = []
    for package in (models, copied):
        for neuron in (models.NoisyLIF(), copied.NoisyLIF()):
            with package.noise_generator(seeded(5)):
                draws.append(neuron(x))
    assert not torch.equal(neuron(x), draws[0])
    for other in draws[1:]:
        assert torch.equal(other, draws[0])


def test_a_noise_generator_is_of_its_thread():
    law, outside = Gaussian(1.0), []
    with noise_generator(seeded(5)):
        torch.manual_seed(0)
        thread = threading.Thread(target=lambda: outside.append(law.sample((3,))))
        thread.start()
        thread.join()
        inside = law.sample((3,))
    torch.manual_seed(0)
    assert torch.equal(outside[0], law.sample((3,)))
    assert torch.equal(inside, law.sample((3,), generator=seeded(5)))


def test_laws_of_one_copy_drive_the_neurons_of_the_other(copied):
    """On the eager kernel: a fused kernel knows the laws of its own copy alone."""
    x = torch.rand(3, 4, 500, generator=seeded()) * 2
    law = copied.Gaussian(0.3)
    assert not fused.serves(x, law) and not isinstance(law, models.NoiseLaw)
    given = [x.clone().requires_grad_() for _ in range(2)]
    LIF(law)(given[0]).sum().backward()
    LIF(Gaussian(0.3))(given[1]).sum().backward()
    torch.testing.assert_close(given[0].grad, given[1].grad)
    neuron = NoisyLIF(law, learnable_scale=True)
    assert 0 < neuron(x).mean() < 1
    theirs = copied.NoisyLIF()
    theirs.set_gradient(Gaussian(0.7))
    assert theirs.gradient_law.scale == 0.7


@pytest.mark.parametrize("wrong", [0.3, Gaussian, torch.distributions.Normal(0.0, 1.0), None])
def test_what_is_not_a_law_is_refused(wrong):
    with pytest.raises(TypeError, match=r"must be a NoiseLaw such as Gaussian\(0.3\).*(lacks|a class)"):
        NoisyLIF(wrong)


def test_every_law_has_a_neuron_of_its_own():
    assert len({law.neuron_name for law in LAWS}) == len(LAWS)

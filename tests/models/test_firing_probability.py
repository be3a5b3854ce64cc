"""The probability of given spikes: against the frequencies of drawn ones, and its gradient."""

import itertools

import pytest
import torch

from models import Gaussian, Logistic, NoisyLIF, Uniform, mean_field
from models.functional import firing_probability, noisy_lif
from tests.chance import likely

X = torch.tensor([0.9, 0.4, 1.3, 0.2], dtype=torch.float64)[:, None]  # [T, B]


@pytest.mark.parametrize("reset", ["zero", "subtract", "none"])
@pytest.mark.parametrize("decay_input", [False, True])
def test_probabilities_of_all_trains_are_their_frequencies(reset, decay_input):
    law, draws = Gaussian(0.4), 200_000
    options = dict(threshold=0.8, decay=0.4, reset=reset, decay_input=decay_input)
    trains = torch.tensor(list(itertools.product((0.0, 1.0), repeat=4)), dtype=torch.float64).T  # [T, 16]
    p = firing_probability(X.expand(-1, 16), trains, law, **options)
    of_trains = torch.where(trains > 0, p, 1 - p).prod(0)
    assert of_trains.sum().item() == pytest.approx(1)
    torch.manual_seed(0)
    drawn, _ = noisy_lif(X.expand(-1, draws).float(), law, placement="escape", **options)
    codes = (drawn * torch.tensor([8.0, 4.0, 2.0, 1.0])[:, None]).sum(0).long()
    assert likely(torch.bincount(codes, minlength=16), draws, of_trains)


def test_one_step_is_the_mean_field_neuron():
    neuron = NoisyLIF(Logistic(0.2), placement="escape")
    x = torch.randn(1, 50)
    with mean_field(neuron):
        assert torch.allclose(neuron.firing_probability(x, torch.zeros_like(x)), neuron(x))


def test_the_gradient_is_the_derivative_also_by_the_scale():
    spikes = torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=torch.float64)[:, None]
    scale = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    x = X.clone().requires_grad_()

    def probability(x, scale):
        return firing_probability(x, spikes, Gaussian(0.3), scale=scale)

    assert torch.autograd.gradcheck(probability, (x, scale))
    assert torch.autograd.gradgradcheck(probability, (x, scale))


def test_the_state_before_and_half_precision():
    spikes, state = torch.tensor([[1.0], [0.0]]), torch.tensor([0.4])
    p = firing_probability(torch.tensor([[0.5], [0.5]]), spikes, Gaussian(0.3), decay=0.5, state=state)
    assert torch.allclose(p, Gaussian(0.3).cdf(torch.tensor([[-0.3], [-0.5]])))
    assert firing_probability(torch.zeros(2, 3).half(), torch.zeros(2, 3), Gaussian(0.3)).dtype == torch.float32


def test_no_step_at_all_has_no_probability():
    x = torch.zeros(0, 2, 4).bfloat16().requires_grad_()
    p = firing_probability(x, torch.zeros(0, 2, 4), Gaussian(0.3), scale=torch.full((4,), 0.3))
    assert p.shape == (0, 2, 4) and p.dtype == torch.float32
    p.sum().backward()
    assert x.grad.shape == (0, 2, 4)


def test_wrong_arguments_are_named():
    x = torch.zeros(3, 2)
    with pytest.raises(ValueError, match=r"the spikes must be \[3, 2\]"):
        firing_probability(x, torch.zeros(2, 2), Uniform(1.0))
    with pytest.raises(TypeError, match="NoiseLaw"):
        firing_probability(x, x, 0.3)
    with pytest.raises(ValueError, match="placement must be 'escape'"):
        NoisyLIF().firing_probability(x, x)

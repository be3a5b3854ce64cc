"""Networks of configurations: errors that a user can act on, and noise of its own."""

import inspect

import pytest
import torch

from models import Gaussian, build_neuron
from tools.config.train import TrainConfig
from tools.errors import UserError
from tools.inference import seeded_noise
from tools.networks import NEURON_SETTINGS, build_network, memory_format


class Tiny:
    """What `build_network` asks of a data set."""

    num_classes, mean, std = 2, (0.0,), (1.0,)

    def input_shape(self, config):
        return (1, 2, 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "toynet", "tau": 1.0, "decay_input": True}, "decay_input=True with decay=1"),
        ({"model": "toynet", "tau": 1.0, "neuron": "PLIF"}, "a learnable decay must be in"),
    ],
)
def test_settings_that_make_no_network_are_the_errors_of_the_user(settings, message):
    with pytest.raises(UserError, match=message):
        build_network(TrainConfig(**settings), Tiny())


def test_the_settings_of_the_neuron_are_the_arguments_of_its_factory():
    assert {"name", *NEURON_SETTINGS} == set(inspect.signature(build_neuron).parameters)


def test_seeded_noise_repeats_and_leaves_other_draws_alone():
    net = build_network(TrainConfig(model="toynet", sigma=1.0), Tiny()).eval()
    images = torch.rand(8, 1, 2, 2)

    def logits(seed):
        with seeded_noise(torch.device("cpu"), seed):
            return net(images, timesteps=4)

    state = torch.get_rng_state()
    first = logits(1)
    assert torch.equal(logits(1), first) and not torch.equal(logits(2), first)
    assert torch.equal(torch.get_rng_state(), state)


def test_seeded_noise_reaches_neurons_that_draw_past_it():
    """And a neuron that draws from its law has the same noise as without them."""
    law = Gaussian(0.3)

    def drawn(seed, count):
        with seeded_noise(torch.device("cpu"), seed):
            return torch.rand(count), law.sample((5,))

    state = torch.get_rng_state()
    past, noise = drawn(1, 3)
    torch.rand(7)  # the state of torch's own generator does not matter
    assert torch.equal(drawn(1, 3)[0], past) and not torch.equal(drawn(2, 3)[0], past)
    assert torch.equal(drawn(1, 0)[1], noise)
    assert torch.equal(law.sample((5,), torch.Generator().manual_seed(1)), noise)
    torch.set_rng_state(state)
    with pytest.raises(KeyError), seeded_noise(torch.device("cpu"), 1):
        torch.rand(3)
        raise KeyError
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("settings", "side", "layout"),
    [
        ({"model": "sresnet18", "amp": "bf16"}, 32, torch.channels_last),
        ({"model": "speednet", "amp": "bf16"}, 2, torch.channels_last),  # has no strides
        ({"model": "sresnet18", "amp": "bf16"}, 4, torch.contiguous_format),  # its last stride of 2 meets one pixel
        ({"model": "sresnet18"}, 4, torch.channels_last),
        ({"model": "sresnet18", "amp": "bf16", "channels_last": False}, 32, torch.contiguous_format),
    ],
)
def test_channels_last_is_left_where_the_gradients_of_its_weights_are_wrong(settings, side, layout):
    dataset = Tiny()
    dataset.input_shape = lambda config: (1, side, side)
    assert memory_format(TrainConfig(width=0.1, device="cpu", **settings), dataset) == layout

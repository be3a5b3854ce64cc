"""A compiled kernel that computes something wrongly is refused before its first use."""

import pytest
import torch

from models import Gaussian
from models.kernels import cpu, selftest
from models.kernels.build import BuildError

DTYPES = [torch.float32, torch.bfloat16]


class Wrong:
    """A kernel of which one result is changed where `when(neuron, x)` holds."""

    def __init__(self, kernel, method, place, change, when):
        self.kernel, self.method, self.place, self.change, self.when = kernel, method, place, change, when

    def _changed(self, method, results, neuron, x):
        results = list(results)
        if method == self.method and self.when(neuron, x):
            results[self.place] = self.change(results[self.place])
        return results

    def forward(self, x, state, seeds, neuron, *kept):
        return self._changed("forward", self.kernel.forward(x, state, seeds, neuron, *kept), neuron, x)

    def backward(self, grads, saved, neuron, learns):
        return self._changed("backward", self.kernel.backward(grads, saved, neuron, learns), neuron, saved.spikes)


def is_mean_field(neuron, x):
    return neuron.mean_field


def scaled(factor):
    return lambda tensor: tensor * factor


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "what, method, place, change, when",
    [
        ("probabilities", "forward", 0, scaled(1.03), is_mean_field),
        ("density", "backward", 0, scaled(1.03), is_mean_field),
        ("draws", "forward", 1, scaled(1.3), lambda neuron, x: neuron.membrane_noise),
        ("draws", "forward", 1, scaled(float("nan")), lambda neuron, x: neuron.membrane_noise),
        ("draws", "forward", 0, lambda spikes: spikes.flip(-1), lambda neuron, x: neuron.threshold_noise),
    ],
)
def test_a_wrong_law_is_refused(what, method, place, change, when, dtype):
    wrong = Wrong(cpu.kernel(dtype), method, place, change, when)
    with pytest.raises(BuildError, match=f"compiled {what} of the Gaussian law"):
        selftest.check_law(wrong, Gaussian, torch.empty(0, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "what, method, factor", [("firing probabilities", "forward", 1.03), ("gradients", "backward", 1.1)]
)
def test_wrong_steps_are_refused(what, method, factor, dtype):
    wrong = Wrong(cpu.kernel(dtype), method, 0, scaled(factor), is_mean_field)
    with pytest.raises(BuildError, match=f"compiled {what} are wrong"):
        selftest.check_steps(wrong, torch.empty(0, dtype=dtype))


@pytest.mark.parametrize("method", ["forward", "backward"])
def test_channels_that_differ_from_layers_of_one_are_refused(method):
    wrong = Wrong(cpu.kernel(torch.float32, True), method, 0, scaled(1.05), lambda neuron, x: x.shape[2] > 1)
    with pytest.raises(BuildError, match="values of channels"):
        selftest.check_channels(wrong, torch.empty(0), 15)

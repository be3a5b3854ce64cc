"""The random words and the draws of the fused kernels, written a second time: int64 and float64 in PyTorch.

The formulas are in the head of models/kernels/cpu.c; Philox 4x32-10 is Salmon et al., SC 2011.
"""

import math

import torch

MASK = 0xFFFFFFFF
NEAR = 3e-5  # where the potential is so near its draw, rounding may decide


def multiply(factor, word):
    """High and low half of the 64-bit product of two 32-bit numbers, without overflow of int64."""
    low, high = factor * (word & 0xFFFF), factor * (word >> 16)
    total = low + ((high & 0xFFFF) << 16)
    return (high >> 16) + (total >> 32), total & MASK


def philox(key, counter):
    """The four words of Philox 4x32-10 for a 64-bit key (a Python int) and counters (c0, 0, 0, 0), int64 [...]."""
    c = [counter, *[torch.zeros_like(counter)] * 3]
    key %= 2**64
    key0, key1 = key & MASK, key >> 32
    for _ in range(10):
        high0, low0 = multiply(0xD2511F53, c[0])
        high1, low1 = multiply(0xCD9E8D57, c[2])
        c = [high1 ^ c[1] ^ key0, low1, high0 ^ c[3] ^ key1, low0]
        key0, key1 = (key0 + 0x9E3779B9) & MASK, (key1 + 0xBB67AE85) & MASK
    return c


def random_words(shape, seeds):
    """The two words of each neuron and step, int64, each of `shape` = [T, B, ...]."""
    neurons = math.prod(shape[1:])
    half = (neurons + 1) // 2
    index = torch.arange(neurons)
    upper = index >= half
    steps = []
    for seed in seeds.tolist():
        words = philox(seed, torch.where(upper, index - half, index))
        steps.append([torch.where(upper, words[2 + k], words[k]).reshape(shape[1:]) for k in range(2)])
    return [torch.stack([step[k] for step in steps]) for k in range(2)]


def standard_draws(law, first, second):
    """Draws of scale 1 and centre 0, float64, for membrane and threshold, from their words."""
    if law == "Gaussian":
        radius = torch.sqrt(-2 * torch.log((first + 0.5) / 2**32))
        signed = ((second << 2) & MASK).sub(2**32 * ((second >> 29) & 1))  # as a signed 32-bit number
        angle = signed / 2**32 * math.pi / 2
        radius = torch.where(second >= 2**31, -radius, radius)
        swapped = (second >> 30) % 2 == 1
        cosine, sine = torch.cos(angle), torch.sin(angle)
        return radius * torch.where(swapped, sine, cosine), radius * torch.where(swapped, cosine, sine)
    return tuple(_from_tail(law, word) for word in (first, second))


def _from_tail(law, word):
    q = ((word >> 1) + 0.5) / 2**32
    magnitude = {
        "Logistic": torch.log((1 - q) / q),
        "Triangular": 1 - torch.sqrt(2 * q),
        "Uniform": 1 - 2 * q,
        "Cauchy": 1 / torch.tan(math.pi * q),
    }[law]
    return torch.where(word % 2 == 1, -magnitude, magnitude)


def noise(law, shape, seeds, dtype=torch.float64):
    """Membrane and threshold noise of a law (an object) for a sequence of `shape`, from its seeds."""
    draws = standard_draws(type(law).__name__, *random_words(shape, seeds))
    return tuple((law.loc + law.scale * draw).to(dtype) for draw in draws)


def close_calls(spikes, others, u, neuron, drawn):
    """Neurons that fire differently by two kernels: in each, a potential was so near its draw that rounding decided.

    From there on, they are different neurons.

    Args:
        u: the potentials of one of the kernels.
        drawn: what `noise` has for `neuron`, which may use a part of it.
    """
    u, none = u.double(), torch.zeros(())
    membrane, draw = drawn[0] if neuron.membrane_noise else none, drawn[1] if neuron.threshold_noise else none
    size = torch.maximum(u.abs(), membrane.abs()).clamp(min=1).cummax(0).values  # of what was rounded until then
    threshold = torch.as_tensor(neuron.threshold).detach().cpu()
    near = (u - threshold - draw).abs() <= NEAR * torch.maximum(size, draw.abs())
    differ = (spikes != others).any(0)
    assert near.any(0)[differ].all()
    return differ

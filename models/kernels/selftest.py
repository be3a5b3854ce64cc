"""Checks of a compiled kernel before its first use: compilers have bugs, and laws may change.

`kernel` has the `forward` and `backward` of `cpu.Kernel`; `like` is an empty tensor of the dtype and device to check.
Gradients are compared with differences and densities, as autograd is off where an operator loads its kernel.
"""

import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor

from .. import noise
from .build import BuildError
from .common import VALUES, Affine, Kept, Neuron, Saved

DRAWS = 8192
MOST_DEVIATION = 0.02  # of a share of 8192 draws; the seed is fixed, and other laws are off by 0.05 or more
NOTHING, EVERYTHING = [False] * len(VALUES), [True] * len(VALUES)  # that is learnt
Result = TypeVar("Result")


def without_modes(check: Callable[[], Result]) -> Result:
    """`check()`, in a separate thread.

    PyTorch keeps its modes by thread: fake tensors, tracers, the default device, functorch's levels, inference. Under
    one of them the tensors of a check would have no memory, or would become part of the caller's graph.
    """
    with ThreadPoolExecutor(max_workers=1) as pool:
        try:
            result = pool.submit(check)
        except RuntimeError:  # Python is shutting down and starts no threads
            return check()
        return result.result()


def check_law(kernel: Any, kind: type[noise.NoiseLaw], like: Tensor) -> None:
    """Raise BuildError unless the kernel has the probabilities, the density and the draws of this entry of `LAWS`."""
    name, law = kind.__name__, kind(0.7, 0.1)
    neuron = Neuron(law, law.scale, decay=0.0, reset="none", mean_field=True)
    x = torch.arange(-128.0, 129.0).div(32).to(like).reshape(1, 1, -1)  # exact in bfloat16; none is on an edge of a law
    potential = x.double().cpu() - neuron.threshold
    p, _, u = kernel.forward(x, None, None, neuron, True, True)
    density, *_ = kernel.backward((torch.ones_like(x), None), Saved(None, None, None, p, u), neuron, NOTHING)
    rtol = 0.01 if like.dtype in (torch.bfloat16, torch.float16) else 1e-4
    for what, ours, right in (("probabilities", p, law.cdf(potential)), ("density", density, law.pdf(potential))):
        if not torch.allclose(ours.double().cpu(), right, rtol=rtol, atol=1e-5):
            raise BuildError(f"the compiled {what} of the {name} law are not those of models.noise")

    share = torch.arange(0.5, DRAWS, dtype=torch.float64) / DRAWS
    seeds = torch.tensor([7], device=like.device)
    neuron.mean_field, neuron.membrane_noise = False, True
    _, last, _ = kernel.forward(torch.zeros(1, 1, DRAWS).to(like), None, seeds, neuron, False, True)
    drawn = law.cdf(-last.double().cpu()).flatten().sort().values
    neuron.membrane_noise, neuron.threshold_noise = False, True
    x = law.icdf(share).add(neuron.threshold).to(like).reshape(1, 1, -1)
    spikes, _, _ = kernel.forward(x, None, seeds, neuron, False, True)
    excess = spikes.double().cpu().flatten() - law.cdf(x.double().cpu() - neuron.threshold).flatten()
    for deviation in (drawn - share, excess.cumsum(0) / DRAWS):
        if not deviation.abs().max() < MOST_DEVIATION:  # NaN fails too
            raise BuildError(f"the compiled draws of the {name} law are not those of models.noise")


def check_steps(kernel: Any, like: Tensor) -> None:
    """Raise BuildError unless three steps of a mean field have the probabilities and the gradients they should."""
    h = 1 / 32  # x and x + h are exact in bfloat16
    law = noise.Gaussian(0.5)
    neuron = Neuron(law, law.scale, decay=0.5, mean_field=True)
    x = torch.arange(-64.0, 128.0).reshape(1, 64, 3).div(64).permute(2, 0, 1).to(like).contiguous()
    spikes, last, kept = kernel.forward(x, None, None, neuron, True, True)
    v = torch.zeros(1, 64, dtype=torch.float64)
    for x_t, spikes_t in zip(x.double(), spikes.double()):
        u = 0.5 * v + x_t
        p = law.cdf(u - neuron.threshold)
        v = u * (1 - p)
        if not torch.allclose(spikes_t, p, rtol=0.01, atol=1e-4):
            raise BuildError("the compiled firing probabilities are wrong")
    saved = Saved(None, None, None, spikes, kept)
    grads = kernel.backward((None, torch.ones_like(last)), saved, neuron, EVERYTHING)

    def last_potential(x: Tensor, neuron: Neuron) -> Tensor:
        last: Tensor = kernel.forward(x, None, None, neuron, True, True)[1]
        return last.double()

    slope = (last_potential(x + h, neuron) - last_potential(x - h, neuron)) / (2 * h)
    if not torch.allclose(grads[0].double().sum(0), slope, rtol=0.02, atol=0.02):
        raise BuildError("the compiled gradients are wrong")
    for name, grad in zip(VALUES, grads[2:]):
        value = getattr(neuron, name)
        above = last_potential(x, dataclasses.replace(neuron, **{name: value + h}))
        below = last_potential(x, dataclasses.replace(neuron, **{name: value - h}))
        if not torch.allclose(grad.double(), (above.sum() - below.sum()) / (2 * h), rtol=0.02, atol=0.02):
            raise BuildError(f"the compiled gradient of the {name} is wrong")


def check_channels(kernel: Any, like: Tensor, channel_bits: int) -> None:
    """Raise BuildError unless channels that differ in these values give what layers of one channel each give."""
    law = noise.Gaussian(0.5)
    places = 700  # not a multiple of a block
    numbers = {"threshold": [0.8, 1.0, 1.3], "decay": [0.2, 0.5, 0.9], "scale": [0.3, 0.5, 0.8]}  # of each channel
    numbers["reset_value"] = [0.7, 0.9, 1.2]
    differing = [name for place, name in enumerate(VALUES) if channel_bits >> place & 1]
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    settings: dict[str, Any] = dict(reset="subtract", mean_field=True)
    x = torch.arange(2.0 * 2 * 3 * places).remainder(193).div(96).to(like).reshape(2, 2, 3, places)

    def run(x: Tensor, **values: Any) -> dict[str, Tensor]:
        """All outputs and gradients."""
        neuron = Neuron(law, **values, **settings)
        spikes, last, u = kernel.forward(x, None, None, neuron, True, True)
        grads = kernel.backward((spikes, last), Saved(None, None, None, spikes, u), neuron, EVERYTHING)
        return {"spikes": spikes, "grad_x": grads[0], "last": last, **dict(zip(VALUES, grads[2:]))}

    alone = []
    for channel in range(3):
        of_channel = {name: of[channel] if name in differing else of[0] for name, of in numbers.items()}
        alone.append(run(x[:, :, [channel]], **of_channel))
    values: dict[str, Any] = {name: of[0] for name, of in numbers.items()}
    for name in differing:
        values[name] = torch.tensor(numbers[name], dtype=dtype).to(like.device).unsqueeze(1)
    for given in (x, x.transpose(2, 3).contiguous().transpose(2, 3)):
        for name, ours in run(given, **values).items():
            if name not in VALUES:
                right = torch.cat([one[name] for one in alone], dim=ours.dim() - 2)
            else:
                right = torch.stack([one[name] for one in alone])
                right = right if name in differing else right.sum()
            if not torch.allclose(ours.double().flatten(), right.double().flatten(), rtol=0.01, atol=0.01):
                raise BuildError("the compiled values of channels are wrong")


def check_normed(kernel: Any, like: Tensor) -> None:
    """Raise BuildError unless batch norm before neurons is right, and what is computed again is what was computed."""
    law = noise.Gaussian(0.5)
    neuron = Neuron(law, law.scale, mean_field=True)
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    contiguous = torch.arange(2.0 * 2 * 5 * 400).remainder(97).div(32).to(like).reshape(2, 2, 5, 400)
    factor = torch.tensor([0.5, 1.0, 1.5, -1.0, 2.0], dtype=dtype).to(like.device)
    shift = torch.tensor([0.5, -0.5, 0.0, 1.0, 0.25], dtype=dtype).to(like.device)
    rtol = 0.02 if like.element_size() == 2 else 1e-5

    def require(*pairs: tuple[Tensor, Tensor]) -> None:
        for ours, right in pairs:
            if not torch.allclose(ours.double(), right.double(), rtol=rtol, atol=rtol):
                raise BuildError("the compiled batch norm is wrong")

    for x in (contiguous, contiguous.transpose(2, 3).contiguous().transpose(2, 3)):
        exact = x.double()
        moments = torch.empty(3, 5, dtype=torch.float64).to(like.device)
        kernel.statistics(x, moments)
        rows = kernel.prepare(moments, (None, None), 1.0, 2.0, factor, shift)
        mean, variance, inverse = moments
        require((mean, exact.mean((0, 1, 3))), (variance, exact.var((0, 1, 3), correction=0)))
        require((inverse, (variance + 1).rsqrt()), (rows[0], factor * inverse), (rows[1], shift - mean * rows[0]))
        require((rows[2], mean), (rows[3], 2 * variance))
        affine = Affine(factor, shift, mean.to(dtype), x, (shift, factor, shift))
        of_residual = exact * shift.unsqueeze(1) + factor.unsqueeze(1)
        current = (exact * factor.unsqueeze(1) + shift.unsqueeze(1) + of_residual).to(like)
        spikes, last, u = kernel.forward(x, None, None, neuron, True, True, affine)
        plain = kernel.forward(current, None, None, neuron, True, True)
        grads = torch.ones_like(spikes), last
        kept, sums = kernel.backward_again(grads, Kept(x, None, None, affine, spikes, u), neuron, NOTHING)
        again, sums_again = kernel.backward_again(grads, Kept(x, None, None, affine), neuron, NOTHING)
        if not (torch.equal(kept[0], again[0]) and torch.equal(sums, sums_again)):
            raise BuildError("what the compiled kernel computes again is not what it has computed")
        right, *_ = kernel.backward(grads, Saved(None, None, None, plain[0], plain[2]), neuron, NOTHING)
        along = right.double() * (exact - mean.unsqueeze(1))
        require((spikes, plain[0]), (kept[0], right))
        gradients = kernel.norm_gradients(sums, moments, 1600.0)
        whole, centred = right.double().mean((0, 1, 3)), along.mean((0, 1, 3))
        require((gradients[0] / 1600, centred * inverse), (gradients[1] / 1600, whole))
        require((gradients[2], whole), (gradients[3], centred * inverse.square()))
        of_residual = (right.double() * (exact - shift.unsqueeze(1))).mean((0, 1, 3))
        require((kernel.norm_gradients(sums, moments, 1600.0, True)[0] / 1600, of_residual * inverse))
        result = torch.empty_like(right)
        kernel.norm_backward(x, right, result, factor=factor, shift=shift, mean=mean.to(dtype), slope=factor)
        columns = [value.double().unsqueeze(1) for value in (factor, shift, mean)]
        require((result, columns[0] * (right.double() - columns[1] - columns[0] * (exact - columns[2]))))


def check_bits(kernel: Any, like: Tensor) -> None:
    """Raise BuildError unless spikes can be packed and unpacked."""
    spikes = torch.arange(2051.0).square().remainder(7).lt(3).to(like)
    bits, again = torch.empty(257, dtype=torch.uint8).to(like.device), torch.empty_like(spikes)
    is_packed = kernel.pack(spikes, bits)
    kernel.unpack(bits, again)
    if not (is_packed and torch.equal(again, spikes)) or kernel.pack(spikes + 0.5, bits):
        raise BuildError("the compiled packing of spikes is wrong")
    quarters = torch.arange(2051.0).remainder(16).div(4).to(like)
    bits = torch.empty(1026, dtype=torch.uint8).to(like.device)
    is_packed = kernel.pack(quarters, bits, 4)
    kernel.unpack(bits, again, 4)
    if not (is_packed and torch.equal(again, quarters)) or kernel.pack(quarters + 0.125, bits, 4):
        raise BuildError("the compiled packing of quarters is wrong")

"""The C kernel (cpu.c), called through ctypes."""

import ctypes
import functools
import os
from pathlib import Path

import torch

from ..noise import Gaussian
from . import build
from .common import (
    LAWS,
    MAX_RANK,
    RESETS,
    Dynamics,
    empty_gradients,
    empty_outputs,
    empty_sequence,
    laid_out_as,
    memory_order,
)

SOURCE = Path(__file__).with_name("cpu.c")
INPUT_BITS = {torch.float64: 64, torch.float32: 32, torch.bfloat16: 16}
UPDATES_PER_THREAD = 16384  # with fewer neurons times steps, waking a thread costs more than it saves
# Philox 4x32-10 of key 0 and counter 0: the first known answer of its authors' library, Random123.
KNOWN_WORDS = [0x6627E8D5, 0xE169C58D]

_forked = False


def _note_fork():
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


def _threads(updates):
    """As many threads as PyTorch uses, where there is enough to do.

    A forked process has one: GCC's OpenMP would wait for threads that the fork left behind.
    """
    return 1 if _forked else max(1, min(torch.get_num_threads(), updates // UPDATES_PER_THREAD))


@functools.cache
def kernel(dtype):
    """The `Kernel` for inputs of a dtype; None where there can be none, after a warning if that is unexpected."""
    if dtype not in INPUT_BITS:
        return None
    return build.load(SOURCE, f"-DINPUT_BITS={INPUT_BITS[dtype]}", lambda library: Kernel(library, dtype).checked())


class _Layer(ctypes.Structure):
    """`Layer` of cpu.c."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("timesteps", "neurons", "x_stride", "rank")),
        *((name, ctypes.c_int64 * MAX_RANK) for name in ("size", "index_stride")),
        *((name, ctypes.c_double) for name in ("threshold", "decay", "scale", "loc")),
        *((name, ctypes.c_int64) for name in ("law", "reset", "detach_reset", "decay_input")),
        *((name, ctypes.c_int64) for name in ("membrane_noise", "threshold_noise", "mean_field")),
        *((name, ctypes.c_int64) for name in ("learns_decay", "learns_scale", "threads")),
    ]


class Kernel:
    """cpu.c, compiled for one dtype of inputs.

    Args:
        library: `ctypes.CDLL`.
        dtype: of input currents and spikes.
    """

    def __init__(self, library, dtype):
        self.dtype = dtype
        self._library = library
        for function, pointers in ((library.lif_forward, 6), (library.lif_backward, 10), (library.random_words, 3)):
            function.argtypes = [ctypes.POINTER(_Layer)] + [ctypes.c_void_p] * pointers
            function.restype = None
        library.number_of_blocks.argtypes = [ctypes.POINTER(_Layer)]
        library.number_of_blocks.restype = ctypes.c_int64

    def forward(self, x, state, seeds, decay, scale, law, loc, dynamics, keep_z, keep_state):
        """Run a layer over a sequence; `models.functional` states the dynamics.

        Args:
            x: input current [T, B, ...], its steps dense in memory; at least one element.
            state: membrane potential before the first step [B, ...], or None for rest.
            seeds: int64 [T], or None where nothing is random.
            decay, scale: numbers, or 0-d tensors where they are learnt.
            loc: centre of the law.
            law: one of `LAWS`.
            dynamics: `Dynamics`.
            keep_z: whether backward will follow.
            keep_state: whether the last potential is wanted.

        Returns:
            spikes [T, B, ...]; the last potential [B, ...]; z = u - threshold [T, B, ...]. What is not kept is empty.
        """
        spikes, last, z = empty_outputs(x, keep_z, keep_state)
        state = laid_out_as(x[0], state, last.dtype)
        layer = _describe(x, decay, scale, law, loc, dynamics)
        self._library.lif_forward(layer, *map(_pointer, (x, state, seeds, spikes, z, last)))
        return spikes, last, z

    def backward(
        self,
        grad_spikes,
        grad_last,
        x,
        state,
        seeds,
        spikes,
        z,
        decay,
        scale,
        law,
        loc,
        dynamics,
        learns_decay,
        learns_scale,
    ):
        """The gradients of `forward`.

        Args:
            grad_spikes, grad_last: of the spikes and of the last potential; None for zeros.
            x: may be None unless a learnt decay scales the input.
            spikes, z: from `forward`.

        Returns:
            Gradients of x [T, B, ...], of the state [B, ...] (empty without one), and of decay and scale
            (0-d tensors, 0 for one that is not learnt; where neither is, both are None).
        """
        z = laid_out_as(spikes, z, z.dtype)  # hooks on saved tensors may have changed it
        grad_spikes, x = laid_out_as(spikes, grad_spikes), laid_out_as(spikes, x)
        state, grad_last = laid_out_as(z[0], state), laid_out_as(z[0], grad_last)
        grad_x, grad_state = empty_gradients(spikes, z, state)
        layer = _describe(spikes, decay, scale, law, loc, dynamics, learns_decay, learns_scale)
        parts = None
        if learns_decay or learns_scale:
            parts = torch.zeros(2, self._library.number_of_blocks(layer), dtype=torch.float64)
        tensors = (x, state, seeds, spikes, z, grad_spikes, grad_last, grad_x, grad_state, parts)
        self._library.lif_backward(layer, *map(_pointer, tensors))
        return grad_x, grad_state, *((None, None) if parts is None else parts.sum(1).to(z.dtype))

    def random_words(self, x, seeds):
        """The two random words of every neuron and step of `x`, each [T, B, ...], int64 in [0, 2^32)."""
        words = [empty_sequence(x[0], len(x), torch.int32) for _ in range(2)]
        layer = _describe(x, 0.0, 1.0, "Uniform", 0.0, Dynamics(1.0, "zero", False, False, True, True, False))
        self._library.random_words(layer, *map(_pointer, (seeds, *words)))
        return [word.long() % 2**32 for word in words]

    def checked(self):
        """Itself, if it computes what it should; else BuildError.

        Checked are random words that are known, and three steps of the mean field: its probabilities, and its
        gradient against differences. (Not against autograd, which is off where an operator loads its kernel.)
        """
        x = torch.arange(-64.0, 128.0).reshape(1, 64, 3).div(64).permute(2, 0, 1).to(self.dtype).contiguous()
        words = self.random_words(x, torch.zeros(3, dtype=torch.int64))
        if [word[0, 0, 0].item() for word in words] != KNOWN_WORDS:
            raise build.BuildError("the compiled random generator is wrong")
        law, threshold, decay, h = Gaussian(0.5), 1.0, 0.5, 1 / 32  # x and x + h are exact in bfloat16
        neuron = (decay, law.scale, "Gaussian", law.loc, Dynamics(threshold, "zero", False, False, False, False, True))
        spikes, last, z = self.forward(x, None, None, *neuron, True, True)
        v = torch.zeros(1, 64, dtype=torch.float64)
        for x_t, spikes_t in zip(x.double(), spikes.double()):
            u = decay * v + x_t
            p = law.cdf(u - threshold)
            v = u * (1 - p)
            if not torch.allclose(spikes_t, p, rtol=0.01, atol=1e-4):
                raise build.BuildError("the compiled firing probabilities are wrong")
        grad_x, *_ = self.backward(None, torch.ones_like(last), None, None, None, spikes, z, *neuron, False, False)
        above, below = (self.forward(x + sign * h, None, None, *neuron, True, True)[1] for sign in (1, -1))
        if not torch.allclose(grad_x.double().sum(0), (above - below).double() / (2 * h), rtol=0.02, atol=0.02):
            raise build.BuildError("the compiled gradients are wrong")
        return self


def _pointer(tensor):
    return None if tensor is None or tensor.numel() == 0 else tensor.data_ptr()


def _describe(x, decay, scale, law, loc, dynamics, learns_decay=False, learns_scale=False):
    """The `_Layer` of neurons that get x [T, B, ...]."""
    layout = (x.shape[0], x.shape[1:], x.stride(), _threads(x.numel()))
    return _layer(*layout, float(decay), float(scale), law, loc, dynamics, learns_decay, learns_scale)


@functools.lru_cache(maxsize=512)  # to fill in the structure takes longer than a small layer's neurons
def _layer(timesteps, shape, strides, threads, decay, scale, law, loc, dynamics, learns_decay, learns_scale):
    sizes, index_strides = memory_order(shape, strides[1:])
    return _Layer(
        timesteps=timesteps,
        neurons=shape.numel(),
        x_stride=strides[0],
        rank=len(sizes),
        size=(ctypes.c_int64 * MAX_RANK)(*sizes),
        index_stride=(ctypes.c_int64 * MAX_RANK)(*index_strides),
        threshold=dynamics.threshold,
        decay=decay,
        scale=scale,
        loc=loc,
        law=LAWS.index(law),
        reset=RESETS.index(dynamics.reset),
        detach_reset=dynamics.detach_reset,
        decay_input=dynamics.decay_input,
        membrane_noise=dynamics.membrane_noise,
        threshold_noise=dynamics.threshold_noise,
        mean_field=dynamics.mean_field,
        learns_decay=learns_decay,
        learns_scale=learns_scale,
        threads=threads,
    )

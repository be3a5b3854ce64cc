"""The C kernel (cpu.c), called through ctypes."""

import ctypes
import functools
import os
from pathlib import Path

import torch

from ..noise import Gaussian
from . import build, eager
from .common import Dynamics, arithmetic_dtype, empty_sequence, laid_out_as, memory_order

SOURCE = Path(__file__).with_name("cpu.c")
INPUT_BITS = {torch.float64: 64, torch.float32: 32, torch.bfloat16: 16}
LAWS = ("Gaussian", "Logistic", "Triangular", "Uniform", "Cauchy")  # in the order of cpu.c
RESETS = ("zero", "subtract", "none")
MAX_RANK = 8
MAX_NEURONS = 2**32  # of one step: the random generator's counter has 32 bits for them
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
        ("seeds", ctypes.c_void_p),
    ]


class Kernel:
    """cpu.c, compiled for one dtype of inputs.

    Args:
        library: `ctypes.CDLL`.
        dtype: of input currents and spikes.
    """

    def __init__(self, library, dtype):
        self.dtype = dtype
        self.arithmetic = arithmetic_dtype(dtype)
        self._library = library
        for function, pointers in ((library.lif_forward, 5), (library.lif_backward, 9), (library.random_words, 2)):
            function.argtypes = [ctypes.POINTER(_Layer)] + [ctypes.c_void_p] * pointers
            function.restype = None
        library.block_length.restype = ctypes.c_int64

    def forward(self, x, state, seeds, decay, scale, law, loc, dynamics, keep):
        """Run a layer over a sequence; `models.functional` states the dynamics.

        Args:
            x: input current [T, B, ...], its steps dense in memory; at least one element.
            state: membrane potential before the first step [B, ...], or None for rest.
            seeds: int64 [T], or None where nothing is random.
            decay, scale, loc: numbers.
            law: one of `LAWS`.
            dynamics: `Dynamics`.
            keep: whether backward will follow.

        Returns:
            spikes [T, B, ...]; the last potential [B, ...]; z = u - threshold [T, B, ...], empty unless `keep`.
        """
        spikes = empty_sequence(x[0], len(x), x.dtype)
        last = torch.empty_like(x[0], dtype=self.arithmetic)
        z = empty_sequence(x[0], len(x), self.arithmetic) if keep else None
        state = laid_out_as(last, state)
        layer = _describe(x, seeds, decay, scale, law, loc, dynamics)
        self._library.lif_forward(layer, *map(_pointer, (x, state, spikes, z, last)))
        return spikes, last, last.new_empty(0) if z is None else z

    def backward(
        self, grad_spikes, grad_last, x, state, seeds, spikes, z, decay, scale, law, loc, dynamics, learns_decay, learns_scale
    ):
        """The gradients of `forward`.

        Args:
            grad_spikes, grad_last: of the spikes and of the last potential; None for zeros.
            x: may be None unless a learnt decay scales the input.
            spikes, z: from `forward`.

        Returns:
            Gradients of x [T, B, ...] and of the state [B, ...]; of decay and scale, numbers, 0 if not learnt.
        """
        grad_spikes, x = laid_out_as(spikes, grad_spikes), laid_out_as(spikes, x)
        state, grad_last = laid_out_as(z[0], state), laid_out_as(z[0], grad_last)
        grad_x, grad_state = torch.empty_like(spikes), torch.empty_like(z[0])
        layer = _describe(spikes, seeds, decay, scale, law, loc, dynamics)
        layer.learns_decay, layer.learns_scale = learns_decay, learns_scale
        parts = torch.zeros(2, -(-layer.neurons // self._library.block_length()), dtype=torch.float64)
        tensors = (x, state, spikes, z, grad_spikes, grad_last, grad_x, grad_state, parts)
        self._library.lif_backward(layer, *map(_pointer, tensors))
        return grad_x, grad_state, *parts.sum(1).tolist()

    def random_words(self, x, seeds):
        """The two random words of every neuron and step of `x`, each [T, B, ...], int64 in [0, 2^32)."""
        words = [empty_sequence(x[0], len(x), torch.int32) for _ in range(2)]
        layer = _describe(x, seeds, 0.0, 1.0, "Uniform", 0.0, Dynamics(1.0, "zero", False, False, True, True, False))
        self._library.random_words(layer, *map(_pointer, words))
        return [word.long() % 2**32 for word in words]

    def checked(self):
        """Itself, if it computes what it should; else BuildError. A few neurons in the mean field, and known random words."""
        x = torch.linspace(-1.0, 3.0, 3 * 37).reshape(3, 1, 37).to(self.dtype)
        words = self.random_words(x, torch.zeros(3, dtype=torch.int64))
        if [word[0, 0, 0].item() for word in words] != KNOWN_WORDS:
            raise build.BuildError("the compiled random generator is wrong")
        dynamics = Dynamics(1.0, "zero", False, False, False, False, True)
        law = Gaussian(0.5)
        with torch.enable_grad():
            given = x.clone().requires_grad_()
            expected, last = eager.lif_sequence(given, None, 0.5, None, law, dynamics)
            (grad,) = torch.autograd.grad(expected.sum() + last.sum(), given)
        spikes, last_here, z = self.forward(x, None, None, 0.5, 0.5, "Gaussian", 0.0, dynamics, True)
        ones = torch.ones_like(spikes), torch.ones_like(last_here)
        grad_here, *_ = self.backward(*ones, None, None, None, spikes, z, 0.5, 0.5, "Gaussian", 0.0, dynamics, 0, 0)
        for computed, wanted in ((spikes, expected), (last_here, last), (grad_here, grad)):
            if not torch.allclose(computed.double(), wanted.double(), rtol=1e-2, atol=1e-2):
                raise build.BuildError("the compiled neurons are wrong")
        return self


def _pointer(tensor):
    return None if tensor is None else tensor.data_ptr()


def _describe(x, seeds, decay, scale, law, loc, dynamics):
    sizes, index_strides = memory_order(x[0])
    return _Layer(
        timesteps=len(x),
        neurons=x[0].numel(),
        x_stride=x.stride(0),
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
        threads=_threads(x.numel()),
        seeds=_pointer(seeds),
    )

"""The C kernel (cpu.c), called through ctypes."""

import ctypes
import functools
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from .. import noise
from . import build, common, selftest
from .common import MAX_RANK, RESETS, SWITCHES, Gradients, Neuron, Pair

SOURCE = Path(__file__).with_name("cpu.c")
INPUT_BITS = {torch.float64: 64, torch.float32: 32, torch.bfloat16: 16}
UPDATES_PER_THREAD = 16384  # with fewer neurons times steps, waking a thread costs more than it saves
# Philox 4x32-10 of key 0 and counter 0: the first known answer of its authors' library, Random123.
KNOWN_WORDS = [0x6627E8D5, 0xE169C58D]

_forks: list[bool] = []  # not empty in a forked process
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: _forks.append(True))


def _threads(updates: int) -> int:
    """As many threads as PyTorch uses, where there is enough to do.

    A forked process has one: GCC's OpenMP would wait for threads that the fork left behind.
    """
    return 1 if _forks else max(1, min(torch.get_num_threads(), updates // UPDATES_PER_THREAD))


@functools.cache
def kernel(dtype: torch.dtype) -> "Kernel | None":
    """The `Kernel` for inputs of a dtype; None for other dtypes and, after a warning, if it cannot be built."""
    if dtype not in INPUT_BITS:
        return None

    def prepare(library: ctypes.CDLL) -> Kernel:
        return selftest.without_modes(Kernel(library, dtype).checked)

    return build.load(SOURCE, f"-DINPUT_BITS={INPUT_BITS[dtype]}", prepare)


TENSORS = ["x", "state", "seeds", "spikes", "z", "grad_spikes", "grad_last", "grad_x", "grad_state", "parts", "last"]
Loops = ctypes.c_int64 * MAX_RANK


# `Layer` and `Tensors` of cpu.c.
class _Layer(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("timesteps", "neurons", "x_stride", "rank")]
    _fields_ += [("size", Loops), ("index_stride", Loops), ("threads", ctypes.c_int64)]
    _fields_ += [(name, ctypes.c_double) for name in ("threshold", "decay", "scale", "loc")]
    _fields_ += [(name, ctypes.c_int64) for name in ("law", "reset", *SWITCHES, "learns_decay", "learns_scale")]


class _Tensors(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in TENSORS]


class Kernel:
    """cpu.c, compiled for one dtype of inputs; `laws` has the numbers of the laws that it knows, by name."""

    def __init__(self, library: ctypes.CDLL, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._library = library
        for function in (library.lif_forward, library.lif_backward):
            function.argtypes = [ctypes.POINTER(_Layer), ctypes.POINTER(_Tensors)]
            function.restype = None
        library.random_words.argtypes = [ctypes.POINTER(_Layer)] + [ctypes.c_void_p] * 3
        library.random_words.restype = None
        library.number_of_blocks.argtypes = [ctypes.POINTER(_Layer)]
        library.number_of_blocks.restype = library.number_of_law.restype = ctypes.c_int64
        library.number_of_law.argtypes = [ctypes.c_char_p]
        numbers = {law.__name__: library.number_of_law(law.__name__.encode()) for law in noise.LAWS}
        self.laws = {name: number for name, number in numbers.items() if number >= 0}

    def forward(
        self, x: Tensor, state: Tensor | None, seeds: Tensor | None, neuron: Neuron, keep_z: bool, keep_state: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run a layer over a sequence; `models.functional` states the dynamics.

        Args:
            x: input current [T, B, ...], its steps dense in memory; at least one element.
            state: membrane potential before the first step [B, ...], or None for rest.
            seeds: int64 [T], or None where nothing is random.

        Returns:
            spikes [T, B, ...]; the last potential [B, ...]; z = u - threshold [T, B, ...], for backward. What is not
            kept has no elements.
        """
        spikes, last, z = common.empty_outputs(x, keep_z, keep_state)
        state = common.laid_out_as(x[0], state, last.dtype)
        layer = self._describe(x, neuron)
        self._library.lif_forward(layer, _pointers(x=x, state=state, seeds=seeds, spikes=spikes, z=z, last=last))
        return spikes, last, z

    def backward(
        self, grads: Pair, saved: Sequence[Tensor | None], neuron: Neuron, learns: tuple[bool, bool]
    ) -> Gradients:
        """The gradients of `forward`; the density is that of `neuron.law`.

        Args:
            grads: of the spikes and of the last potential; None for zeros.
            saved: x (None unless a learnt decay scales it), state and seeds; spikes and z from `forward`.
            learns: whether the gradients of decay and scale are wanted.

        Returns:
            Gradients of x [T, B, ...], of the state [B, ...] (no elements without one), and of decay and scale: 0-d
            tensors, 0 for one that is not learnt; both None if neither is.
        """
        tensors = common.backward_tensors(grads, saved)
        layer = self._describe(tensors["spikes"], neuron, learns)
        parts = grad_decay = grad_scale = None
        if learns[0] or learns[1]:
            parts = torch.zeros(2, self._library.number_of_blocks(layer), dtype=torch.float64, device="cpu")
        self._library.lif_backward(layer, _pointers(**tensors, parts=parts))
        if parts is not None:
            grad_decay, grad_scale = parts.sum(1).to(tensors["z"].dtype)
        return tensors["grad_x"], tensors["grad_state"], grad_decay, grad_scale

    def random_words(self, x: Tensor, seeds: Tensor) -> list[Tensor]:
        """The two random words of every neuron and step of `x`, each [T, B, ...], int64 in [0, 2^32)."""
        words = [common.empty_sequence(x[0], len(x), torch.int32) for _ in range(2)]
        layer = self._describe(x, Neuron(noise.Gaussian(1.0), 1.0))
        self._library.random_words(layer, seeds.data_ptr(), words[0].data_ptr(), words[1].data_ptr())
        return [word.long() % 2**32 for word in words]

    def checked(self) -> "Kernel":
        """This kernel without the laws that it computes wrongly; BuildError if something else is wrong."""
        like = torch.empty(0, dtype=self.dtype)
        words = self.random_words(like.new_zeros(1, 1, 1), torch.zeros(1, dtype=torch.int64))
        if [word.item() for word in words] != KNOWN_WORDS:
            raise build.BuildError("the compiled random generator is wrong")
        selftest.check_steps(self, like)
        for law in list(self.laws):
            try:
                selftest.check_law(self, law, like)
            except build.BuildError as error:
                build.warn_once(f"neurons of one law run on the slower eager kernel: {error}")
                del self.laws[law]
        return self

    def _describe(self, x: Tensor, neuron: Neuron, learns: tuple[bool, bool] = (False, False)) -> _Layer:
        return _layer(
            x.shape,
            x.stride(),
            threads=_threads(x.numel()),
            threshold=neuron.threshold,
            decay=float(neuron.decay),
            scale=float(neuron.scale),
            loc=neuron.law.loc,
            law=self.laws[type(neuron.law).__name__],
            reset=RESETS.index(neuron.reset),
            learns_decay=learns[0],
            learns_scale=learns[1],
            **{switch: getattr(neuron, switch) for switch in SWITCHES},
        )


def _pointers(**tensors: Tensor | None) -> _Tensors:
    """Addresses of tensors; NULL for None and for a tensor without elements."""
    pointers = _Tensors()
    for name, tensor in tensors.items():
        if tensor is not None and tensor.numel() > 0:
            setattr(pointers, name, tensor.data_ptr())
    return pointers


@functools.lru_cache(maxsize=512)  # to fill in the structure takes longer than a small layer's neurons
def _layer(shape: torch.Size, strides: tuple[int, ...], **numbers: float) -> _Layer:
    order = common.memory_order(shape[1:], strides[1:])
    assert order is not None, "steps with gaps or overlaps: see `dense`"
    sizes, index_strides = order
    return _Layer(
        timesteps=shape[0],
        neurons=shape[1:].numel(),
        x_stride=strides[0],
        rank=len(sizes),
        size=Loops(*sizes),
        index_stride=Loops(*index_strides),
        **numbers,
    )

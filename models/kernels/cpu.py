"""The C kernel (cpu.c), called through ctypes."""

import ctypes
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import noise
from . import build, common, selftest
from .common import MAX_RANK, RESETS, SWITCHES, VALUES, Gradients, Neuron, Pair, Saved

SOURCE = Path(__file__).with_name("cpu.c")
INPUT_BITS = {torch.float64: 64, torch.float32: 32, torch.bfloat16: 16}
UPDATES_PER_THREAD = 16384  # with fewer neurons times steps, waking a thread costs more than it saves
# Philox 4x32-10 of key 0 and counter 0: the first known answer of its authors' library, Random123.
KNOWN_WORDS = [0x6627E8D5, 0xE169C58D]

_forks: list[bool] = []  # not empty in a forked process
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: _forks.append(True))


def threads_for(updates: int) -> int:
    """As many threads as PyTorch uses, where there is enough to do.

    A forked process has one: GCC's OpenMP would wait for threads that the fork left behind.
    """
    return 1 if _forks else max(1, min(torch.get_num_threads(), updates // UPDATES_PER_THREAD))


@functools.cache
def kernel(dtype: torch.dtype, channel_bits: int = 0) -> "Kernel | None":
    """The `Kernel` for inputs of a dtype; None for other dtypes and, after a warning, if it cannot be built.

    Args:
        channel_bits: which values may differ between channels (see `Neuron.channel_bits`).
    """
    if dtype not in INPUT_BITS:
        return None

    def prepare(library: ctypes.CDLL) -> Kernel:
        return selftest.without_modes(Kernel(library, dtype, channel_bits).checked)

    return build.load(SOURCE, [f"-DINPUT_BITS={INPUT_BITS[dtype]}", f"-DCHANNELS={channel_bits}"], prepare)


Loops = ctypes.c_int64 * MAX_RANK
Numbers = ctypes.c_double * len(VALUES)
Switches = ctypes.c_int64 * len(VALUES)
Pointers = ctypes.c_void_p * len(VALUES)
NOTHING: list[Tensor | None] = [None] * len(VALUES)
TENSORS = ["x", "state", "seeds", "spikes", "u", "grad_spikes", "grad_last", "grad_x", "grad_state", "last"]


# `Layer` and `Tensors` of cpu.c.
class _Layer(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("timesteps", "neurons", "x_stride", "rank")]
    _fields_ += [("size", Loops), ("index_stride", Loops)]
    _fields_ += [(name, ctypes.c_int64) for name in ("channels", "channel_stride", "threads")]
    _fields_ += [("number", Numbers), ("loc", ctypes.c_double)]
    _fields_ += [(name, ctypes.c_int64) for name in ("law", "reset", *SWITCHES)]
    _fields_ += [("learns", Switches)]


class _Tensors(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in TENSORS]
    _fields_ += [("by_channel", Pointers), ("grad_values", Pointers)]


class Kernel:
    """cpu.c, compiled for one dtype of inputs; `laws` has the numbers of the laws that it knows."""

    def __init__(self, library: ctypes.CDLL, dtype: torch.dtype, channel_bits: int = 0) -> None:
        self.dtype = dtype
        self.channel_bits = channel_bits
        self._library = library
        for function in (library.lif_forward, library.lif_backward):
            function.argtypes = [ctypes.POINTER(_Layer), ctypes.POINTER(_Tensors)]
            function.restype = None
        library.random_words.argtypes = [ctypes.POINTER(_Layer)] + [ctypes.c_void_p] * 3
        library.random_words.restype = None
        library.number_of_groups.argtypes = [ctypes.POINTER(_Layer)]
        library.number_of_groups.restype = library.number_of_law.restype = ctypes.c_int64
        library.number_of_law.argtypes = [ctypes.c_char_p]
        numbers = {law: library.number_of_law(name.encode()) for name, law in common.laws_by_name().items()}
        self.laws = {law: number for law, number in numbers.items() if number >= 0}

    def forward(
        self, x: Tensor, state: Tensor | None, seeds: Tensor | None, neuron: Neuron, keep_u: bool, keep_state: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run a layer over a sequence; `models.functional` states the dynamics. ValueError for values out of range.

        Args:
            x: input current [T, B, ...], its steps dense in memory; at least one element.
            state: membrane potential before the first step [B, ...], or None for rest.
            seeds: int64 [T], or None where nothing is random.

        Returns:
            spikes [T, B, ...]; the last potential [B, ...]; the potentials u [T, B, ...] before the
            reset, for backward. What is not kept has no elements.
        """
        common.check_values(neuron, x)
        spikes, last, u = common.empty_outputs(x, keep_u, keep_state)
        state = common.laid_out_as(x[0], state, last.dtype)
        pointers = _pointers(x=x, state=state, seeds=seeds, spikes=spikes, u=u, last=last)
        values = _by_channel(neuron) if self.channel_bits else NOTHING
        _point(pointers.by_channel, values)
        self._library.lif_forward(self._describe(x, neuron), pointers)
        return spikes, last, u

    def backward(self, grads: Pair, saved: Saved, neuron: Neuron, learns: Sequence[bool]) -> Gradients:
        """The gradients of `forward`; the density is that of `neuron.law`.

        Args:
            grads: of the spikes and of the last potential; None for zeros.
            saved: the arguments of `forward`, and its spikes and potentials.
            learns: of which of `VALUES` the gradient is wanted.

        Returns:
            Gradients of x [T, B, ...], of the state [B, ...] (no elements without one), and of `VALUES`, each of the
            shape of the tensor, None where it is not wanted.
        """
        tensors = common.backward_tensors(grads, saved)
        step, values = tensors["u"][0], _by_channel(neuron) if self.channel_bits else NOTHING
        layer = self._describe(tensors["spikes"], neuron, learns)
        pointers = _pointers(**tensors)
        _point(pointers.by_channel, values)
        if not any(learns):
            self._library.lif_backward(layer, pointers)
            return tensors["grad_x"], tensors["grad_state"], *NOTHING
        groups = self._library.number_of_groups(layer)
        sums: list[Tensor | None] = []
        for value, wanted in zip(values, learns):
            width = 1 if value is None else value.numel()
            sums.append(torch.zeros(groups, width, dtype=torch.float64, device="cpu") if wanted else None)
        _point(pointers.grad_values, sums)
        self._library.lif_backward(layer, pointers)
        found: list[Tensor | None] = []
        for value, by_group in zip(values, sums):
            shape = () if value is None else value.shape
            found.append(None if by_group is None else by_group.sum(0).to(step.dtype).reshape(shape))
        return tensors["grad_x"], tensors["grad_state"], *found

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
        if self.channel_bits:
            selftest.check_channels(self, like, self.channel_bits)
        for law in list(self.laws):
            try:
                selftest.check_law(self, law, like)
            except build.BuildError as error:
                build.warn_once(f"neurons of one law run on the slower eager kernel: {error}")
                del self.laws[law]
        return self

    def _describe(self, x: Tensor, neuron: Neuron, learns: Sequence[bool] = ()) -> _Layer:
        return _layer(
            x.shape,
            x.stride(),
            channels=(x.shape[2], x.stride(2)) if self.channel_bits and x.dim() > 2 else (1, 1),
            numbers=(
                _number(neuron.threshold),
                _number(neuron.decay),
                _number(neuron.scale),
                _number(neuron.reset_value),
            ),
            learns=tuple(learns),
            threads=threads_for(x.numel()),
            loc=neuron.law.loc,
            law=self.laws[type(neuron.law)],
            reset=RESETS.index(neuron.reset),
            **{switch: getattr(neuron, switch) for switch in SWITCHES},
        )


def _number(value: float | Tensor) -> float:
    """One value for the layer; 0 for values that differ between channels, which are read elsewhere."""
    if isinstance(value, Tensor):
        return value.item() if value.dim() == 0 else 0.0
    return float(value)


def _by_channel(neuron: Neuron) -> list[Tensor | None]:
    """Those of `VALUES` that differ between channels, as they lie in memory."""
    return [v.contiguous() if v is not None and v.dim() > 0 else None for v in neuron.tensors()]


def _pointers(**tensors: Tensor | None) -> _Tensors:
    """Addresses of tensors; NULL for None and for a tensor without elements."""
    pointers = _Tensors()
    for name, tensor in tensors.items():
        if tensor is not None:
            setattr(pointers, name, tensor.data_ptr())  # 0 without elements
    return pointers


def _point(array: Any, tensors: Sequence[Tensor | None]) -> None:
    """Fill an array of pointers with the addresses of tensors."""
    for place, tensor in enumerate(tensors):
        if tensor is not None:
            array[place] = tensor.data_ptr()


@functools.lru_cache(maxsize=512)  # to fill in the structure takes longer than a small layer's neurons
def _layer(
    shape: torch.Size,
    strides: tuple[int, ...],
    channels: tuple[int, int],
    numbers: tuple[float, ...],
    learns: tuple[bool, ...],
    **others: float,
) -> _Layer:
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
        channels=channels[0],
        channel_stride=channels[1],
        number=Numbers(*numbers),
        learns=Switches(*learns),
        **others,
    )

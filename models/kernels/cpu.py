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
from .common import ALL_BITS, MAX_RANK, RESETS, SWITCHES, VALUES, Affine, Gradients, Kept, Neuron, Pair, Saved

SOURCE = Path(__file__).with_name("cpu.c")
INPUT_BITS = {torch.float64: 64, torch.float32: 32, torch.bfloat16: 16}
BLOCK = 1024  # as in cpu.c
STEPS_OF_A_BLOCK = 2**14  # neurons times steps of a row that is computed again: as much as a second-level cache holds
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
def kernel(dtype: torch.dtype, by_channel: bool = False) -> "Kernel | None":
    """The `Kernel` for inputs of a dtype; None for other dtypes and, after a warning, if it cannot be built.

    Args:
        by_channel: whether threshold, decay, scale or the reset's value differ between channels.
    """
    if dtype not in INPUT_BITS:
        return None

    def prepare(library: ctypes.CDLL) -> Kernel:
        return selftest.without_modes(Kernel(library, dtype, by_channel).checked)

    return build.load(SOURCE, [f"-DINPUT_BITS={INPUT_BITS[dtype]}", f"-DCHANNELS={int(by_channel)}"], prepare)


Loops = ctypes.c_int64 * MAX_RANK
Numbers = ctypes.c_double * len(VALUES)
Switches = ctypes.c_int64 * len(VALUES)
Pointers = ctypes.c_void_p * len(VALUES)
NOTHING: list[Tensor | None] = [None] * len(VALUES)
TENSORS = ["x", "state", "seeds", "spikes", "u", "grad_spikes", "grad_last", "grad_x", "grad_state", "last", "bits"]
AFFINE_TENSORS = ["factor", "shift", "mean", "residual", "residual_factor", "residual_shift", "residual_mean"]
NORM_SUMS = 3  # as in cpu.c
PACKED = {1: "spikes", 4: "quarters"}  # what can be packed, by the number of its bits


# `Layer` and `Tensors` of cpu.c.
class _Layer(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("timesteps", "neurons", "x_stride", "rank")]
    _fields_ += [("size", Loops), ("index_stride", Loops)]
    _fields_ += [(name, ctypes.c_int64) for name in ("channels", "channel_stride", "threads", "block")]
    _fields_ += [("number", Numbers), ("loc", ctypes.c_double)]
    _fields_ += [(name, ctypes.c_int64) for name in ("law", "reset", *SWITCHES)]
    _fields_ += [("learns", Switches)]


class _Tensors(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in TENSORS]
    _fields_ += [("by_channel", Pointers), ("grad_values", Pointers)]
    _fields_ += [(name, ctypes.c_void_p) for name in (*AFFINE_TENSORS, "slope", "scratch", "norm_sums")]


ANY = Neuron(noise.Gaussian(1.0), 1.0)  # where the neurons do not matter


class Kernel:
    """cpu.c, compiled for one dtype of inputs; `laws` has the numbers of the laws that it knows."""

    def __init__(self, library: ctypes.CDLL, dtype: torch.dtype, by_channel: bool = False) -> None:
        self.dtype = dtype
        self.by_channel = by_channel
        self._library = library
        self._packing: dict[int, tuple[Any, Any]] = {}
        for function in (library.lif_forward, library.lif_backward, library.norm_statistics, library.norm_backward):
            function.argtypes = [ctypes.POINTER(_Layer), ctypes.POINTER(_Tensors)]
            function.restype = None
        library.random_words.argtypes = [ctypes.POINTER(_Layer)] + [ctypes.c_void_p] * 3
        library.random_words.restype = None
        number, pointer, size = ctypes.c_double, ctypes.c_void_p, ctypes.c_int64
        library.norm_moments.argtypes = [ctypes.POINTER(_Layer), ctypes.POINTER(_Tensors), number, pointer]
        library.norm_prepare.argtypes = [size, *[pointer] * 3, number, number, *[pointer] * 3]
        library.norm_gradients.argtypes = [size, size, size, pointer, pointer, number, pointer]
        library.norm_moments.restype = library.norm_prepare.restype = library.norm_gradients.restype = None
        library.number_of_groups.argtypes = library.bytes_of_scratch.argtypes = [ctypes.POINTER(_Layer)]
        library.number_of_groups.restype = library.bytes_of_scratch.restype = ctypes.c_int64
        library.number_of_law.restype = ctypes.c_int64
        for width, name in PACKED.items():
            pack, unpack = getattr(library, f"pack_{name}"), getattr(library, f"unpack_{name}")
            pack.argtypes = unpack.argtypes = [pointer, size, pointer, size]
            pack.restype, unpack.restype = size, None
            self._packing[width] = pack, unpack
        library.number_of_law.argtypes = [ctypes.c_char_p]
        numbers = {law: library.number_of_law(name.encode()) for name, law in common.laws_by_name().items()}
        self.laws = {law: number for law, number in numbers.items() if number >= 0}

    def forward(
        self,
        x: Tensor,
        state: Tensor | None,
        seeds: Tensor | None,
        neuron: Neuron,
        keep_u: bool,
        keep_state: bool,
        affine: Affine | None = None,
        bits: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run a layer over a sequence; `models.functional` states the dynamics. ValueError for values out of range.

        Args:
            x: input current [T, B, ...], its steps dense in memory; at least one element.
            affine: what makes currents of x first.
            state: membrane potential before the first step [B, ...], or None for rest.
            seeds: int64 [T], or None where nothing is random.
            bits: those of `empty_bits`, to be filled in, or None.

        Returns:
            spikes [T, B, ...]; the last potential [B, ...]; the potentials u [T, B, ...] before the
            reset, for backward. What is not kept has no elements.
        """
        common.check_values(neuron, x)
        spikes, last, u = common.empty_outputs(x, keep_u, keep_state)
        state = common.laid_out_as(x[0], state, last.dtype)
        pointers = _pointers(x=x, state=state, seeds=seeds, spikes=spikes, u=u, last=last, bits=bits)
        values = _by_channel(neuron) if self.by_channel else NOTHING
        _point(pointers.by_channel, values)
        kept_alive = self._point_affine(pointers, x, affine)
        self._library.lif_forward(self._describe(x, neuron, has_channels=affine is not None), pointers)
        del kept_alive
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
        block = _block(len(tensors["u"])) if any(learns) else BLOCK  # sums in the order of `backward_again`
        layer = self._describe(tensors["spikes"], neuron, learns, block=block)
        found = self._run_backward(_pointers(**tensors), layer, neuron, learns)
        return tensors["grad_x"], tensors["grad_state"], *found

    def _run_backward(self, pointers: _Tensors, layer: _Layer, neuron: Neuron, learns: Sequence[bool]) -> Gradients:
        """Fill in the gradients that have pointers, and return those of `VALUES`."""
        values = _by_channel(neuron) if self.by_channel else NOTHING
        _point(pointers.by_channel, values)
        if not any(learns):
            self._library.lif_backward(layer, pointers)
            return tuple(NOTHING)
        groups = self._library.number_of_groups(layer)
        sums: list[Tensor | None] = []
        for value, wanted in zip(values, learns):
            width = 1 if value is None else value.numel()
            sums.append(torch.zeros(groups, width, dtype=torch.float64, device="cpu") if wanted else None)
        _point(pointers.grad_values, sums)
        self._library.lif_backward(layer, pointers)
        found: list[Tensor | None] = []
        dtype = common.arithmetic_dtype(self.dtype)
        for value, by_group in zip(values, sums):
            shape = () if value is None else value.shape
            found.append(None if by_group is None else by_group.sum(0).to(dtype).reshape(shape))
        return tuple(found)

    def backward_again(
        self, grads: Pair, kept: Kept, neuron: Neuron, learns: Sequence[bool]
    ) -> tuple[Gradients, Tensor | None]:
        """As `backward`, from what is kept; the rest is computed again.

        Returns:
            Gradients of the current [T, B, ...] ([1, B, ...], their sum, if x is expanded over time), of the state and
            of `VALUES`; and, with an `affine`, the sums by channel of the gradient of the current, of it times x - mean
            and of it times residual - its mean, of groups of neurons: float64 [groups, 3, C].
        """
        x = kept.x
        step, dtype = x[0], common.arithmetic_dtype(x.dtype)
        is_one_image = x.stride(0) == 0
        whole = functools.partial(common.laid_out_over_time, x)
        layer = self._describe(x, neuron, learns, kept.affine is not None, _block(len(x)))
        grad_x = common.empty_sequence(step, 1 if is_one_image else len(x), x.dtype)
        grad_state = torch.empty_like(step, dtype=dtype) if kept.state is not None else step.new_empty(0, dtype=dtype)
        tensors: dict[str, Tensor | None] = dict(
            x=x,
            state=common.laid_out_as(step, kept.state, dtype),
            seeds=kept.seeds,
            spikes=whole(kept.spikes, x.dtype),
            u=whole(kept.u, dtype),
            grad_spikes=whole(grads[0], x.dtype),
            grad_last=common.laid_out_as(step, grads[1], dtype),
            grad_x=grad_x,
            grad_state=grad_state,
        )
        if kept.u is None:
            size = layer.threads * self._library.bytes_of_scratch(layer)
            tensors["scratch"] = torch.empty(size, dtype=torch.uint8, device="cpu")
        sums = None
        if kept.affine is not None:
            shape = self._library.number_of_groups(layer), NORM_SUMS, x.shape[2]
            tensors["norm_sums"] = sums = torch.zeros(shape, dtype=torch.float64, device="cpu")
        pointers = _pointers(**tensors)
        kept_alive = self._point_affine(pointers, x, kept.affine)
        found = self._run_backward(pointers, layer, neuron, learns)
        del kept_alive
        return (grad_x, grad_state, *found), sums

    def statistics(self, x: Tensor, moments: Tensor) -> None:
        """Fill mean and (biased) variance of each channel of x [T, B, C, ...], its steps dense in memory, into rows.

        Args:
            moments: float64 [at least 2, C].
        """
        layer = self._describe(x, ANY, has_channels=True)
        shape = self._library.number_of_groups(layer), NORM_SUMS, x.shape[2]
        sums = torch.zeros(shape, dtype=torch.float64, device="cpu")
        pointers = _pointers(x=x, norm_sums=sums)
        self._library.norm_statistics(layer, pointers)
        self._library.norm_moments(layer, pointers, x.numel() / x.shape[2], moments.data_ptr())

    def prepare(
        self,
        moments: Tensor,
        running: Pair,
        eps: float,
        correction: float,
        weight: Tensor | None,
        bias: Tensor | None,
    ) -> Tensor:
        """What batch norm needs of each channel: rows of factor, shift, mean and unbiased variance, [4, C].

        Args:
            moments: float64 [3, C]; 1 / std becomes the third row, and running statistics the first two.
            running: running mean and variance, where these apply; else None.
            correction: of the variance, to make it unbiased.
        """
        rows = torch.empty(4, moments.shape[1], dtype=common.arithmetic_dtype(self.dtype), device="cpu")
        addresses = [_address(tensor) for tensor in (*running, weight, bias)]
        self._library.norm_prepare(
            moments.shape[1], moments.data_ptr(), *addresses[:2], eps, correction, *addresses[2:], rows.data_ptr()
        )
        return rows

    def norm_gradients(self, sums: Tensor, moments: Tensor, count: float, of_residual: bool = False) -> Tensor:
        """Rows of the gradients of weight and bias, and of shift and slope for `norm_backward`: [4, C].

        Args:
            sums: those of `backward_again`, [groups, 3, C].
            moments: of x, or of the residual.
            count: how many numbers of a channel the statistics are of; 0: they are not of the batch.
        """
        rows = torch.empty(4, sums.shape[2], dtype=common.arithmetic_dtype(self.dtype), device="cpu")
        addresses = sums.data_ptr(), moments.data_ptr()
        which = 2 if of_residual else 1  # as in cpu.c
        self._library.norm_gradients(sums.shape[2], sums.shape[0], which, *addresses, count, rows.data_ptr())
        return rows

    def norm_backward(self, x: Tensor, grad: Tensor, result: Tensor, **by_channel: Tensor) -> None:
        """Fill in the gradient of batch norm from that of its output, which may be the same tensor; see cpu.c.

        Args:
            by_channel: factor, shift, mean and slope, [C] in the dtype of the arithmetic.
        """
        pointers = _pointers(x=x, residual=grad, grad_x=result, **by_channel)
        self._library.norm_backward(self._describe(x, ANY, has_channels=True), pointers)

    def empty_bits(self, x: Tensor) -> Tensor | None:
        """For the spikes of x [T, B, ...]: uint8; None where threads would have to share a byte."""
        is_whole = x.shape[1:].numel() % 16 == 0  # the kernel cuts a step in half
        return torch.empty(x.numel() // 8, dtype=torch.uint8, device="cpu") if is_whole else None

    def pack(self, numbers: Tensor, bits: Tensor, width: int = 1) -> bool:
        """Fill uint8 `bits` with a dense tensor, in the order of memory; false if it has not only what is `PACKED`."""
        size, threads = numbers.numel(), threads_for(numbers.numel())
        return not self._packing[width][0](numbers.data_ptr(), size, bits.data_ptr(), threads)

    def unpack(self, bits: Tensor, numbers: Tensor, width: int = 1) -> None:
        """Fill a dense tensor with the numbers that were packed."""
        size, threads = numbers.numel(), threads_for(numbers.numel())
        self._packing[width][1](bits.data_ptr(), size, numbers.data_ptr(), threads)

    def _point_affine(self, pointers: _Tensors, x: Tensor, affine: Affine | None) -> Tensor | None:
        """Fill in the pointers of `affine`; returns a tensor that must outlive them."""
        if affine is None:
            return None
        residual = common.laid_out_over_time(x, affine.residual, x.dtype)
        tensors = (*affine[:3], residual, *(affine.of_residual or ()))
        for name, tensor in zip(AFFINE_TENSORS, tensors):
            if tensor is not None:
                setattr(pointers, name, tensor.data_ptr())
        return residual

    def random_words(self, x: Tensor, seeds: Tensor) -> list[Tensor]:
        """The two random words of every neuron and step of `x`, each [T, B, ...], int64 in [0, 2^32)."""
        words = [common.empty_sequence(x[0], len(x), torch.int32) for _ in range(2)]
        layer = self._describe(x, ANY)
        self._library.random_words(layer, seeds.data_ptr(), words[0].data_ptr(), words[1].data_ptr())
        return [word.long() % 2**32 for word in words]

    def checked(self) -> "Kernel":
        """This kernel without the laws that it computes wrongly; BuildError if something else is wrong."""
        like = torch.empty(0, dtype=self.dtype)
        words = self.random_words(like.new_zeros(1, 1, 1), torch.zeros(1, dtype=torch.int64))
        if [word.item() for word in words] != KNOWN_WORDS:
            raise build.BuildError("the compiled random generator is wrong")
        selftest.check_steps(self, like)
        if self.by_channel:
            for bits in (ALL_BITS, *(1 << place for place in range(len(VALUES)))):
                selftest.check_channels(self, like, bits)
        selftest.check_normed(self, like)
        selftest.check_bits(self, like)
        for law in list(self.laws):
            try:
                selftest.check_law(self, law, like)
            except build.BuildError as error:
                build.warn_once(f"neurons of one law run on the slower eager kernel: {error}")
                del self.laws[law]
        return self

    def _describe(
        self,
        x: Tensor,
        neuron: Neuron,
        learns: Sequence[bool] = (),
        has_channels: bool = False,
        block: int = BLOCK,
    ) -> _Layer:
        return _layer(
            x.shape,
            x.stride(),
            has_channels=(has_channels or self.by_channel) and x.dim() > 2,
            block=block,
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


def _block(timesteps: int) -> int:
    """The length of a row of neurons whose steps fit into a cache: a multiple of a vector."""
    return max(64, min(BLOCK, STEPS_OF_A_BLOCK // timesteps // 64 * 64))


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


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
    has_channels: bool,
    numbers: tuple[float, ...],
    learns: tuple[bool, ...],
    **others: float,
) -> _Layer:
    order = common.memory_order(shape[1:], strides[1:])
    assert order is not None, "steps with gaps or overlaps: see `dense`"
    sizes, index_strides = order
    is_one_channel = not has_channels or shape[2] == 1
    return _Layer(
        timesteps=shape[0],
        neurons=shape[1:].numel(),
        x_stride=strides[0],
        rank=len(sizes),
        size=Loops(*sizes),
        index_stride=Loops(*index_strides),
        channels=1 if is_one_channel else shape[2],
        channel_stride=shape[1:].numel() if is_one_channel else strides[2],
        number=Numbers(*numbers),
        learns=Switches(*learns),
        **others,
    )

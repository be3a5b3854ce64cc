"""How much memory training keeps between the forward and the backward pass, and what is computed again instead."""

import contextlib
import os
import weakref
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

from .checkpointing import saves_for_checkpoint
from .kernels import common, fused
from .parameters import ArgumentError

SETTINGS = ("fast", "lean", "smallest")
FEWEST = 256  # numbers that are worth packing
INTEGERS = {  # of as many bytes
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}
CHANGED = (
    "one of the variables needed for gradient computation has been modified by an inplace operation: a tensor "
    "{shape} is at version {now}; expected version {then} instead"
)
Net = TypeVar("Net")
_setting: ContextVar[str] = ContextVar("memory", default="fast")


def setting() -> str:
    """The memory setting of the network that is running; "fast" outside of any.

    It is "fast" in activation checkpointing too, whose second run is outside of the network and must save the same.
    """
    chosen = _setting.get()
    return "fast" if chosen != "fast" and saves_for_checkpoint() else chosen


def check_setting(memory: object) -> None:
    """Raise ArgumentError unless this is a memory setting."""
    if memory not in SETTINGS:
        raise ArgumentError(f"memory must be one of {', '.join(SETTINGS)}, got {memory!r}")


@contextlib.contextmanager
def used_as(memory: str) -> Iterator[None]:
    """Context manager: neurons and convolutions keep no more than this memory setting lets them."""
    check_setting(memory)
    token, is_fast = _setting.set(memory), memory == "fast"
    packing: contextlib.AbstractContextManager[Any] = contextlib.nullcontext() if is_fast else packed_spikes()
    try:
        with packing:
            yield
    finally:
        _setting.reset(token)


@contextlib.contextmanager
def packed_spikes(net: Net = None) -> Iterator[Net]:  # type: ignore[assignment]
    """Context manager: what autograd keeps of spikes in the block takes one bit for each of them.

    These are all tensors [B, N, ...] of zeros and ones, whichever layer they come from and go to, at the cost of
    packing and unpacking them; results are unchanged. On the CPU and CUDA, what has only multiples of 1/4 below 4, as
    averages and sums of spikes do, takes four bits for each number. Other tensors are kept as usual. It holds for the
    forward pass, in this thread; `backward` may be called outside. Hooks of `torch.autograd.graph.saved_tensors_hooks`
    around the block get the bits; inside it, they come first. It does nothing in compiled or traced code, under
    `torch.func`, and inside activation checkpointing. Spikes must not be changed in ways that PyTorch does not count,
    such as through `.data`.

    Args:
        net: what `as` gives, as `noiseless` does; it may be left out.

    Note:
        Devices other than the CPU are waited for, to see whether a tensor has only zeros and ones.
    """
    is_recorded = torch.compiler.is_compiling() or torch.jit.is_tracing()
    if is_recorded or torch._C._are_functorch_transforms_active() or saves_for_checkpoint():
        yield net
        return
    packer = Packer(torch._C._autograd._top_saved_tensors_default_hooks(True))
    with saved_tensors_hooks(packer.pack, packer.unpack):
        yield net


def packs() -> bool:
    """Whether spikes that autograd saves here will be packed."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    return hooks is not None and isinstance(getattr(hooks[0], "__self__", None), Packer)


class _Written(NamedTuple):
    bits: Tensor
    version: int
    dtype: torch.dtype


def belong_to(spikes: Tensor, bits: Tensor) -> None:
    """Keep the bits of a whole tensor, which a kernel has written with it, as long as its memory lives."""
    spikes.untyped_storage().spikes_as_bits = _Written(bits, spikes._version, spikes.dtype)  # type: ignore[attr-defined]


def _written_bits(spikes: Tensor) -> Tensor | None:
    """The bits that belong to the memory of a dense tensor, if it is all of it and unchanged."""
    written: _Written | None = getattr(spikes.untyped_storage(), "spikes_as_bits", None)
    if written is None or (written.version, written.dtype) != (spikes._version, spikes.dtype):
        return None
    return written.bits if 8 * written.bits.numel() == spikes.numel() else None


class _Bits:
    """The spikes, or multiples of 1/4, in a range of a storage, packed."""

    def __init__(self, tensor: Tensor, kept: Any, width: int) -> None:
        self.storage = StorageWeakRef(tensor.untyped_storage())  # as long as it lives, no other has its address
        self.version = tensor._version
        self.kept = kept  # uint8, or what outer hooks have made of it
        self.width = width  # bits of each number


class _Packed(NamedTuple):
    bits: _Bits
    shape: torch.Size
    strides: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


class _AsItIs(NamedTuple):
    """A tensor that was not packed, and its version: PyTorch does not look for changes of what hooks return."""

    tensor: Tensor
    version: int

    def unpacked(self) -> Tensor:
        """The tensor; RuntimeError, as PyTorch's own, if it was changed in place since."""
        if self.tensor._version != self.version:
            shape = list(self.tensor.shape)
            raise RuntimeError(CHANGED.format(shape=shape, now=self.tensor._version, then=self.version))
        return self.tensor


def _as_it_is(tensor: Tensor) -> _AsItIs:
    # Detached: a node of the graph that kept its own output with its graph would keep itself.
    return _AsItIs(tensor.detach(), tensor._version)


class Packer:
    """A pair of hooks on saved tensors.

    Args:
        outer: the pair of hooks that gets what these have packed, or None.
    """

    def __init__(self, outer: tuple[Any, Any] | None = None) -> None:
        self.outer = outer
        self.packed: weakref.WeakValueDictionary[tuple[Any, ...], _Bits] = weakref.WeakValueDictionary()

    def pack(self, tensor: Tensor) -> Any:
        """Bits, if the tensor has only zeros and ones, or multiples of 1/4."""
        bits = self._bits_of(tensor) if _may_be_spikes(tensor) else None
        if bits is not None:
            return _Packed(bits, tensor.shape, tensor.stride(), tensor.dtype, tensor.device)
        return _as_it_is(tensor) if self.outer is None else self.outer[0](tensor)

    def unpack(self, packed: Any) -> Tensor:
        """The tensor that was packed; RuntimeError if it was kept as it is, and changed in place since."""
        if isinstance(packed, _AsItIs):
            return packed.unpacked()
        if not isinstance(packed, _Packed):  # by the outer hooks
            assert self.outer is not None
            kept: Tensor = self.outer[1](packed)
            return kept
        fused.refuse_recording()
        bits = packed.bits.kept if self.outer is None else self.outer[1](packed.bits.kept)
        numbers = torch.empty_strided(packed.shape, packed.strides, dtype=packed.dtype, device=packed.device)
        if packed.bits.width == 1:
            unpack_into(numbers, bits)
        else:
            unpack_quarters_into(numbers, bits)
        return numbers

    def _bits_of(self, tensor: Tensor) -> _Bits | None:
        storage = tensor.untyped_storage()
        key = (storage._cdata, tensor.storage_offset(), tensor.numel(), tensor.dtype)
        known = self.packed.get(key)  # by another layer that keeps the same spikes
        if known is None or known.version != tensor._version:
            bits, width = _written_bits(tensor), 1
            if bits is None:
                bits = packed_bits(tensor)
            if bits is None:
                bits, width = packed_quarters(tensor), 4
            if bits is None:
                return None
            known = _Bits(tensor, bits if self.outer is None else self.outer[0](bits), width)
            self.packed[key] = known
        return known


def _may_be_spikes(tensor: Tensor) -> bool:
    if fused.is_watched():  # by what would not see how bits are written and read
        return False
    if type(tensor) is not Tensor or tensor.dtype not in INTEGERS or tensor.layout is not torch.strided:
        return False
    if tensor.is_nested or tensor.is_meta or tensor.is_neg() or tensor._is_zerotensor() or tensor.numel() < FEWEST:
        return False
    if tensor.dim() < 2:  # such as running statistics, 0 and 1 at first, which batch norm changes without a new version
        return False
    return tensor.is_contiguous() or common.memory_order(tensor.shape, tensor.stride()) is not None


def _kernel(spikes: Tensor) -> Any:
    """What packs; None where that is left to PyTorch."""
    is_left = os.environ.get("NSNN_KERNELS") == "eager" or not fused.has_norm(spikes)
    return None if is_left else fused.kernel_of(spikes)


def packed_bits(spikes: Tensor) -> Tensor | None:
    """A bit for each number of a dense tensor, in the order of memory: uint8; None if one is neither 0 nor 1."""
    size = spikes.numel()
    bits = torch.empty(-(-size // 8), dtype=torch.uint8, device=spikes.device)
    kernel = _kernel(spikes)
    if kernel is not None:
        return bits if kernel.pack(spikes, bits) else None
    integers = _in_memory(spikes).view(INTEGERS[spikes.dtype])  # -0 is not 0 here
    one = torch.ones((), dtype=spikes.dtype, device="cpu").view(integers.dtype).item()
    if not ((integers == 0) | (integers == one)).all():
        return None
    fired = integers.new_zeros(8 * bits.numel(), dtype=torch.uint8)
    fired[:size] = integers != 0
    return (fired.reshape(-1, 8) << torch.arange(8, device=bits.device, dtype=torch.uint8)).sum(1, dtype=torch.uint8)


def unpack_into(spikes: Tensor, bits: Tensor) -> None:
    """Fill a dense tensor with the spikes of `packed_bits`."""
    kernel = _kernel(spikes)
    if kernel is not None:
        kernel.unpack(bits, spikes)
    else:
        fired = bits.unsqueeze(1) >> torch.arange(8, device=bits.device, dtype=torch.uint8) & 1
        _in_memory(spikes).copy_(fired.flatten()[: spikes.numel()])


def packed_quarters(numbers: Tensor) -> Tensor | None:
    """As `packed_bits`, four for each of 0, 1/4, ..., 15/4; None as well where there is no compiled kernel."""
    kernel = _kernel(numbers)
    if kernel is None:
        return None
    bits = torch.empty(-(-numbers.numel() // 2), dtype=torch.uint8, device=numbers.device)
    return bits if kernel.pack(numbers, bits, 4) else None


def unpack_quarters_into(numbers: Tensor, bits: Tensor) -> None:
    """Fill a dense tensor with the numbers of `packed_quarters`."""
    fused.kernel_of(numbers).unpack(bits, numbers, 4)  # which has packed them


def _in_memory(dense: Tensor) -> Tensor:
    """The numbers of a dense tensor in the order of memory, as a view."""
    return dense.detach().as_strided((dense.numel(),), (1,))

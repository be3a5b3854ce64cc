"""Settings that hold inside a `with` block: whose noise is drawn, and in which mode neurons run.

One rule for all of them. A block holds for what runs inside it: in its own thread or asyncio task, and in the tasks
that are started there (`contextvars`); another thread opens its own. A generator that yields inside its block takes the
setting along until it is resumed; one that contextlib drives hands it to the body of its `with`. Blocks may end in any
order. What activation checkpointing runs again is outside the block, unless it is `models.checkpoint`.
"""

import contextlib
import inspect
import sys
import types
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Generator
from torch.utils import checkpoint as torch_checkpoint

DRIVERS = ("contextlib", "_pytest.fixtures")  # modules that resume a generator at the end of another's block
MAY_SUSPEND = inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR | inspect.CO_COROUTINE

REFUSAL = (
    "torch.utils.checkpoint would run layers again with other noise or in another mode, as it does not know the blocks "
    "of noise_generator, noiseless and mean_field: use models.checkpoint in its place"
)

# One variable per setting for all copies of this package in the process.
_holder = sys.modules.setdefault("_nsnn_contexts", types.ModuleType("_nsnn_contexts"))


class Entry(NamedTuple):
    """A block that has begun and not ended."""

    block: object
    value: Any
    frame: types.FrameType | None  # the generator or coroutine with the block; None for what cannot be suspended
    backward: int  # number of the backward pass in which the block began, or -1


class Setting:
    """A kind of block."""

    def __init__(self, name: str) -> None:
        self.variable: ContextVar[tuple[Entry, ...]]
        self.variable = _holder.__dict__.setdefault(name, ContextVar(name, default=()))

    def in_effect(self) -> Sequence[Entry]:
        """The blocks that hold here, innermost first."""
        entries = self.variable.get()
        if not entries:
            return ()
        return [entry for entry in reversed(entries) if entry.frame is None or _is_running(entry.frame)]

    def begin(self, block: object, value: Any) -> None:
        entry = Entry(block, value, _suspendable(sys._getframe(2)), torch._C._current_graph_task_id())
        self.variable.set((*self.variable.get(), entry))

    def end(self, block: object) -> None:
        entries = list(self.variable.get())
        for place in reversed(range(len(entries))):
            if entries[place].block is block:
                del entries[place]
                break  # the others may be those of the same block, entered inside itself
        self.variable.set(tuple(entries))


def _is_running(frame: types.FrameType) -> bool:
    """Whether a frame is on the call stack."""
    caller: types.FrameType | None = sys._getframe(1)
    while caller is not None and caller is not frame:
        caller = caller.f_back
    return caller is not None


GENERATORS = Setting("generators")  # value: a torch.Generator
MODES = Setting("modes")  # value: (mode, {id: neuron})
# The step of a `models.Stream` that is being run, or None; it ends before anything can be suspended.
STREAM: ContextVar[Any] = _holder.__dict__.setdefault("stream", ContextVar("stream", default=None))


class Block(contextlib.ContextDecorator):
    """A context manager that gives a setting a value; it may be entered repeatedly."""

    def __init__(self, setting: Setting, value: Any) -> None:
        self.setting = setting
        self.value = value

    def __enter__(self) -> Any:
        self.setting.begin(self, self.value)
        return self.value

    def __exit__(self, *error: object) -> None:
        self.setting.end(self)


def _suspendable(frame: types.FrameType) -> types.FrameType | None:
    """The frame whose block it is, if that can be suspended while its context lives on."""
    while frame.f_back is not None:
        driven = frame.f_code.co_flags & MAY_SUSPEND and frame.f_back.f_globals.get("__name__") in DRIVERS
        if not driven and frame.f_globals.get("__name__") not in DRIVERS:
            break
        frame = frame.f_back
    if not frame.f_code.co_flags & MAY_SUSPEND:
        return None
    asyncio = sys.modules.get("asyncio")
    in_task = asyncio is not None and asyncio._get_running_loop() is not None  # it has a context of its own
    return None if in_task and frame.f_code.co_flags & inspect.CO_COROUTINE else frame


def refuse_other_noise(entry: Entry) -> None:
    """RuntimeError if noise of this block is drawn for, or will be drawn again by, a checkpoint of PyTorch."""
    if entry.backward != torch._C._current_graph_task_id():
        raise RuntimeError(REFUSAL)
    refuse_reentrant(entry)


def refuse_reentrant(entry: Entry) -> None:
    """RuntimeError inside a checkpoint with use_reentrant=True, whose two runs may be in and outside of this block."""
    first, second = torch_checkpoint.CheckpointFunction.forward, torch_checkpoint.CheckpointFunction.backward
    is_second = entry.backward != torch._C._current_graph_task_id()
    if not is_second and (torch.is_grad_enabled() or torch.is_inference_mode_enabled()):
        return
    code = second.__code__ if is_second else first.__code__
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code is code and (is_second or any(map(_wants_gradient, frame.f_locals["args"]))):
            raise RuntimeError(REFUSAL)
        frame = frame.f_back


def refuse_compiled_checkpoint() -> None:
    """RuntimeError for noise of a block that a compiled checkpoint will draw again, from torch's default generator."""
    if not GENERATORS.in_effect():
        return
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__") == "torch._prims.rng_prims":  # keeps that generator's state for it
            raise RuntimeError(REFUSAL)
        frame = frame.f_back


def check_same_noise(first: torch.Tensor | None, saved: torch.Tensor | None) -> None:
    """RuntimeError if the noise that autograd has saved is not that of the forward pass, but of a second run of it."""
    if saved is first or type(first) is not torch.Tensor or type(saved) is not torch.Tensor:
        return
    if not torch.equal(first, saved.to(first.device)):
        raise RuntimeError(REFUSAL)


def _wants_gradient(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.requires_grad


class _AsAtFirst:
    """A context manager in which the blocks hold that hold now, and their generators draw the same numbers again."""

    def __init__(self) -> None:
        self.modes = [entry.value for entry in reversed(MODES.in_effect())]
        self.generator: Generator | None = None
        for entry in GENERATORS.in_effect()[:1]:
            self.generator, self.state = entry.value, entry.value.get_state()
        self.outer: list[tuple[tuple[Entry, ...], ...]] = []

    def __enter__(self) -> None:
        self.outer.append((MODES.variable.get(), GENERATORS.variable.get()))
        backward = torch._C._current_graph_task_id()
        MODES.variable.set(tuple(Entry(self, value, None, backward) for value in self.modes))
        generators: tuple[Entry, ...] = ()
        if self.generator is not None:
            twin = Generator(self.generator.device)
            twin.set_state(self.state)
            generators = (Entry(self, twin, None, backward),)
        GENERATORS.variable.set(generators)

    def __exit__(self, *error: object) -> None:
        modes, generators = self.outer.pop()
        MODES.variable.set(modes)
        GENERATORS.variable.set(generators)


def checkpoint(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Activation checkpointing: function(*args, **kwargs), run again in the backward pass in place of being stored.

    The gradient is that without it: the second run draws the same noise, and has the same `noiseless` and `mean_field`,
    wherever `backward` is called.

    Note:
        `torch.utils.checkpoint.checkpoint` with use_reentrant=False; it keeps torch's default generator alone.
    """
    again = _AsAtFirst()
    return torch_checkpoint.checkpoint(
        function, *args, use_reentrant=False, context_fn=lambda: (contextlib.nullcontext(), again), **kwargs
    )


# torch.compile leaves these to Python: it would keep what they found at the time of compilation. What
# `torch.compiler.disable` does, but without importing the compiler.
def _left_to_python(function: Any) -> None:
    function._torchdynamo_disable = True
    function._torchdynamo_disable_msg = "blocks and models.checkpoint must be outside of a full graph"


for _function in (Setting.begin, Setting.end, _is_running, checkpoint):
    _left_to_python(_function)

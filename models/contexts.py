"""Settings that hold inside a `with` block: the generator of the noise, and the mode of the neurons.

A block holds for the code that runs inside it, according to the call stack. The innermost block wins; a block that has
ended, wherever that was, holds nowhere. A `ContextVar` alone would not do: a generator that is suspended inside a block
would leave it on for whoever resumed it.

- A suspended generator keeps its blocks to itself and has them again when it is resumed: code that iterates over it is
  outside, even in a context manager. `yield from` and `await` share the blocks of what they wait for. Blocks that a
  context manager (or a pytest fixture) opens before its `yield` hold in the body of the `with` (or in the test).
- An asyncio task inherits the blocks of the task that starts it; each thread opens its own.
- Recomputation by activation checkpointing is outside the block, except by `models.checkpoint`.
"""

import contextlib
import dis
import functools
import inspect
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

import torch

if TYPE_CHECKING:
    from .checkpointing import Run

MAY_SUSPEND = inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR | inspect.CO_COROUTINE
ENTRANCES = ("__enter__", "__aenter__")
# Modules that resume a generator for the body of a `with`, or run a notebook cell as a coroutine.
RESUMERS = ("_pytest.fixtures", "torch.utils._contextlib", "IPython.core.async_helpers")
OUTSIDE = f"blocks and {__package__}.checkpoint must be outside of a full graph"
Function = TypeVar("Function", bound=Callable[..., Any])


def left_to_python(message: str) -> Callable[[Function], Function]:
    """Decorator: torch.compile leaves the function uncompiled; with fullgraph=True, its error is `message`.

    A compiled one would keep the blocks that it found at the time of compilation. `torch.compiler.disable` does the
    same, but imports the compiler.
    """

    def mark(function: Function) -> Function:
        function._torchdynamo_disable = True  # type: ignore[attr-defined]
        function._torchdynamo_disable_msg = message  # type: ignore[attr-defined]
        return function

    return mark


# One variable per setting for all copies of this package in the process.
_holder = sys.modules.setdefault("_nsnn_contexts", types.ModuleType("_nsnn_contexts"))


class Entry:
    """One entry into a block."""

    def __init__(self, value: Any, frame: types.FrameType | None) -> None:
        self.value = value
        self.frame = frame  # see `_owner`
        self.backward = torch._C._current_graph_task_id()  # number of the backward pass in which it began, or -1
        self.is_open = True


class Setting:
    """One setting, with the blocks that set it."""

    def __init__(self, name: str) -> None:
        self.variable: ContextVar[tuple[Entry, ...]]  # blocks of this thread or task, outermost first
        self.variable = _holder.__dict__.setdefault(name, ContextVar(name, default=()))
        # Blocks of generators, and of coroutines that are not tasks, by their frames.
        self.of_frames: dict[types.FrameType, tuple[Entry, ...]]
        self.of_frames = _holder.__dict__.setdefault(f"{name} of frames", {})

    def in_effect(self) -> Sequence[Entry]:
        """The blocks that hold here, innermost first."""
        entries = self.variable.get()
        if self.of_frames:
            return self._on_the_stack(entries)
        return [entry for entry in reversed(entries) if entry.is_open] if entries else ()

    @left_to_python(OUTSIDE)
    def _on_the_stack(self, entries: Sequence[Entry]) -> list[Entry]:
        found: list[Entry] = []
        bottom = RUNS.get()[0].frame if RUNS.get() else None
        for frame in calling(sys._getframe()):
            if frame is bottom:
                break
            found += reversed(self.of_frames.get(frame, ()))
            found += [entry for entry in reversed(entries) if entry.frame is frame]
        found += [entry for entry in reversed(entries) if entry not in found]
        return [entry for entry in found if entry.is_open]

    @left_to_python(OUTSIDE)
    def begin(self, value: Any) -> Entry:
        """Open a block for the code that calls this."""
        task = _frame_of_task()
        frame = _owner(sys._getframe(), task)
        entry = Entry(value, frame)
        if frame is None or frame is task:
            self.variable.set((*filter(_is_open, self.variable.get()), entry))
        else:
            self.of_frames[frame] = (*self.of_frames.get(frame, ()), entry)
        return entry

    @left_to_python(OUTSIDE)
    def end(self, entry: Entry) -> None:
        """Close a block, wherever this is called."""
        entry.is_open = False
        self.variable.set(tuple(filter(_is_open, self.variable.get())))
        if entry.frame in self.of_frames:
            rest = tuple(filter(_is_open, self.of_frames.pop(entry.frame)))
            if rest:
                self.of_frames[entry.frame] = rest
        entry.value = entry.frame = None  # another thread or task may still list it


def calling(frame: types.FrameType | None) -> Iterator[types.FrameType]:
    """The frames of the call stack from this one on, outwards."""
    while frame is not None:
        yield frame
        frame = frame.f_back


def _is_open(entry: Entry) -> bool:
    return entry.is_open


def _frame_of_task() -> types.FrameType | None:
    """The outermost frame of the asyncio task that runs here, or None."""
    asyncio = sys.modules.get("asyncio")
    if asyncio is None or asyncio._get_running_loop() is None:
        return None
    task = asyncio.current_task()
    began = None if task is None else task.get_coro()
    return getattr(began, "cr_frame", None) or getattr(began, "gi_frame", None)


def _owner(frame: types.FrameType | None, task: types.FrameType | None) -> types.FrameType | None:
    """The frame that owns a block opened here: the nearest generator or coroutine, else `task`."""
    while frame is not None and frame is not task:
        if frame.f_code.co_flags & MAY_SUSPEND and not _hands_on(frame):
            return frame
        frame = frame.f_back
    return task


def _hands_on(frame: types.FrameType) -> bool:
    """Whether the `yield` of this frame runs the body of a `with`, or suspends its caller as well."""
    resumer = frame.f_back
    if resumer is None:
        return False
    instruction = _instruction(resumer)
    if resumer.f_code.co_name in ENTRANCES or resumer.f_globals.get("__name__") in RESUMERS:
        return instruction != "FOR_ITER"
    is_asynchronous = frame.f_code.co_flags & inspect.CO_ASYNC_GENERATOR  # the caller that awaits its next item goes on
    return instruction in ("SEND", "YIELD_FROM") and not is_asynchronous


def _instruction(frame: types.FrameType) -> str:
    code, place = frame.f_code.co_code, frame.f_lasti
    while dis.opname[code[place]] == "CACHE":
        place -= 2
    return dis.opname[code[place]]


GENERATOR_BLOCKS = Setting("generators")  # value: a torch.Generator
MODE_BLOCKS = Setting("modes")  # value: (mode, {id: neuron})
# The step of a `models.Stream` that is being run, or None; it ends before anything can be suspended.
STREAM: ContextVar[Any] = _holder.__dict__.setdefault("stream", ContextVar("stream", default=None))
# The runs of `models.checkpoint` that are under way, outermost first.
RUNS: ContextVar[tuple["Run", ...]] = _holder.__dict__.setdefault("runs", ContextVar("runs", default=()))


class Block(contextlib.AbstractContextManager[Any]):
    """A context manager that gives a setting a value; it may be entered repeatedly."""

    def __init__(self, setting: Setting, value: Any) -> None:
        self.setting = setting
        self.value = value
        self._entries: list[Entry] = []

    def __enter__(self) -> Any:
        self.begin(self.value)
        return self.value

    def __exit__(self, *error: object) -> None:
        self.end()

    def begin(self, value: Any) -> None:
        """Enter with a value that may differ from `self.value`."""
        self._entries.append(self.setting.begin(value))

    def end(self) -> None:
        """End the innermost entry made here, or else the last one made elsewhere."""
        if not self._entries:
            raise RuntimeError("this block was not entered, or has already ended")
        here = [entry for entry in self.setting.in_effect() if entry in self._entries]
        entry = here[0] if here else self._entries[-1]
        self._entries.remove(entry)
        self.setting.end(entry)

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Decorator: run each call inside the block; TypeError for generators and coroutines, which run later."""
        if any(is_later(function) for is_later in RUN_LATER):
            raise TypeError(_later(function))

        @functools.wraps(function)
        def inside(*args: Any, **kwargs: Any) -> Any:
            with self:
                result = function(*args, **kwargs)
            if isinstance(result, (types.GeneratorType, types.CoroutineType, types.AsyncGeneratorType)):
                raise TypeError(_later(function))
            return result

        return inside


RUN_LATER = (inspect.isgeneratorfunction, inspect.iscoroutinefunction, inspect.isasyncgenfunction)


def _later(function: Any) -> str:
    name = getattr(function, "__qualname__", type(function).__name__)
    what = "is a generator or coroutine, which runs after the decorator's block has ended"
    return f"{name} {what}: open the block inside it"

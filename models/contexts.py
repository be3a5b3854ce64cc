"""Settings that hold inside a `with` block: whose noise is drawn, and in which mode neurons run.

One rule for all of them. A block holds for what runs inside it, which is what the call stack says; of several blocks,
the one nearest to the top of the stack comes first; one that has ended, wherever that was, holds nowhere.

- A generator takes its block along when it yields, and has it again wherever it is resumed: who reads it by `next` or
  `for` is outside, even in a context manager. `yield from` and `await` are one with what they wait for. What the
  `__enter__` of a context manager (or pytest, for a fixture) starts by `next` hands its block on to the body.
- An asyncio task hands its blocks to the tasks that it starts; another thread opens its own.
- What activation checkpointing runs again is outside the block, unless it is `models.checkpoint`.
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
# Modules that hand on what a generator has yielded, or run a cell of a notebook as a coroutine.
RESUMERS = ("_pytest.fixtures", "torch.utils._contextlib", "IPython.core.async_helpers")
OUTSIDE = "blocks and models.checkpoint must be outside of a full graph"
Function = TypeVar("Function", bound=Callable[..., Any])


def left_to_python(message: str) -> Callable[[Function], Function]:
    """A decorator: torch.compile does not compile the function, and says `message` in a full graph.

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
    """A block that has begun."""

    def __init__(self, value: Any, frame: types.FrameType | None) -> None:
        self.value = value
        self.frame = frame  # see `_owner`
        self.backward = torch._C._current_graph_task_id()  # number of the backward pass in which it began, or -1
        self.is_open = True


class Setting:
    """A kind of block."""

    def __init__(self, name: str) -> None:
        self.variable: ContextVar[tuple[Entry, ...]]  # blocks of this thread or task, outermost first
        self.variable = _holder.__dict__.setdefault(name, ContextVar(name, default=()))
        # Blocks of generators, and of coroutines that are no tasks, by their frames.
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
    """The frame with which the asyncio task began that runs here, if one does."""
    asyncio = sys.modules.get("asyncio")
    if asyncio is None or asyncio._get_running_loop() is None:
        return None
    task = asyncio.current_task()
    began = None if task is None else task.get_coro()
    return getattr(began, "cr_frame", None) or getattr(began, "gi_frame", None)


def _owner(frame: types.FrameType | None, task: types.FrameType | None) -> types.FrameType | None:
    """The frame that takes a block along when it is suspended: of a generator or coroutine, or `task` if none does."""
    while frame is not None and frame is not task:
        if frame.f_code.co_flags & MAY_SUSPEND and not _hands_on(frame):
            return frame
        frame = frame.f_back
    return task


def _hands_on(frame: types.FrameType) -> bool:
    """Whether what a generator or coroutine yields is the body of a `with`, or suspends whoever resumes it, too."""
    resumer = frame.f_back
    if resumer is None:
        return False
    instruction = _instruction(resumer)
    if resumer.f_code.co_name in ENTRANCES or resumer.f_globals.get("__name__") in RESUMERS:
        return instruction != "FOR_ITER"
    is_asynchronous = frame.f_code.co_flags & inspect.CO_ASYNC_GENERATOR  # what awaits its next item goes on
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
        self._entries.append(self.setting.begin(value))

    def end(self) -> None:
        """End the innermost of the times that it was entered here, else the last one elsewhere."""
        if not self._entries:
            raise RuntimeError("a block ends that has not begun, or has ended already")
        here = [entry for entry in self.setting.in_effect() if entry in self._entries]
        entry = here[0] if here else self._entries[-1]
        self._entries.remove(entry)
        self.setting.end(entry)

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A decorator: the block around each call; TypeError for a function that runs after it has returned."""
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
    return f"{name} runs after the decorator's block has ended, as it is a generator or coroutine: open the block in it"

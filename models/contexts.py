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
from typing import Any

import torch
from torch import Generator
from torch.utils import checkpoint as torch_checkpoint

MAY_SUSPEND = inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR | inspect.CO_COROUTINE
ENTRANCES = ("__enter__", "__aenter__")
# Modules that hand on what a generator has yielded, or run a cell of a notebook as a coroutine.
RESUMERS = ("_pytest.fixtures", "torch.utils._contextlib", "IPython.core.async_helpers")

REFUSAL = (
    "torch.utils.checkpoint would run layers again with other noise or in another mode, as it knows neither generators "
    "nor the blocks of noiseless and mean_field: use models.checkpoint in its place"
)

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

    def begin(self, value: Any) -> Entry:
        task = _frame_of_task()
        frame = _owner(sys._getframe(), task)
        entry = Entry(value, frame)
        if frame is None or frame is task:
            self.variable.set((*filter(_is_open, self.variable.get()), entry))
        else:
            self.of_frames[frame] = (*self.of_frames.get(frame, ()), entry)
        return entry

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


GENERATORS = Setting("generators")  # value: a torch.Generator
MODES = Setting("modes")  # value: (mode, {id: neuron})
# The step of a `models.Stream` that is being run, or None; it ends before anything can be suspended.
STREAM: ContextVar[Any] = _holder.__dict__.setdefault("stream", ContextVar("stream", default=None))
# The runs of `checkpoint` that are under way, outermost first.
RUNS: ContextVar[tuple["_Run", ...]] = _holder.__dict__.setdefault("runs", ContextVar("runs", default=()))


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


def generator_to_draw_from(generator: Generator, entry: Entry | None) -> Generator:
    """`generator`, or in a checkpoint's second run one that repeats its numbers; `entry`: the block that says it.

    RuntimeError if a checkpoint of PyTorch would draw, or draws, other numbers in its second run.
    """
    if entry is not None and entry.backward != torch._C._current_graph_task_id():
        raise RuntimeError(REFUSAL)
    if _is_in_torchs_checkpoint() or any(run.is_in_torchs for run in RUNS.get()):
        raise RuntimeError(REFUSAL)
    refuse_reentrant(entry)
    drawn_from = generator
    for run in RUNS.get():
        drawn_from = run.stand_in(generator, drawn_from)
    return drawn_from


def _is_in_torchs_checkpoint() -> bool:
    """Whether this runs in a checkpoint that is not of `checkpoint`, nor reentrant."""
    hook = _hook_on_saved_tensors()
    is_checkpoint = getattr(hook, "__module__", None) == torch_checkpoint.__name__
    return is_checkpoint and all(run.hook is not hook for run in RUNS.get())


def _hook_on_saved_tensors() -> Any:
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    return hooks and hooks[0]


def refuse_reentrant(entry: Entry | None) -> None:
    """RuntimeError inside a checkpoint with use_reentrant=True, whose two runs may be in and outside of this block."""
    first, second = torch_checkpoint.CheckpointFunction.forward, torch_checkpoint.CheckpointFunction.backward
    is_second = (-1 if entry is None else entry.backward) != torch._C._current_graph_task_id()
    if not is_second and (torch.is_grad_enabled() or torch.is_inference_mode_enabled()):
        return
    code = second.__code__ if is_second else first.__code__
    for frame in calling(sys._getframe()):
        if frame.f_code is code and (is_second or any(map(_wants_gradient, frame.f_locals["args"]))):
            raise RuntimeError(REFUSAL)


def refuse_unkept_noise() -> None:
    """RuntimeError in the second run of a checkpoint that has not kept the state of torch's default generator."""
    for frame in calling(sys._getframe()):
        if frame.f_code.co_filename == torch_checkpoint.__file__:
            found = frame.f_locals
            if not found.get("preserve_rng_state", getattr(found.get("ctx"), "preserve_rng_state", True)):
                raise RuntimeError(
                    "preserve_rng_state=False would run noisy layers again with other noise: leave it out"
                )


def refuse_compiled_checkpoint() -> None:
    """RuntimeError for noise of a block that a compiled checkpoint will draw again, from torch's default generator."""
    if not GENERATORS.in_effect():
        return
    for frame in calling(sys._getframe()):
        if frame.f_globals.get("__name__") == "torch._prims.rng_prims":  # keeps that generator's state for it
            raise RuntimeError(REFUSAL)


def check_same_noise(first: torch.Tensor | None, saved: torch.Tensor | None) -> None:
    """RuntimeError if the noise that autograd has saved is not that of the forward pass, but of a second run of it."""
    if saved is first or type(first) is not torch.Tensor or type(saved) is not torch.Tensor:
        return
    if not torch.equal(first, saved.to(first.device)):
        raise RuntimeError(REFUSAL)


def _wants_gradient(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.requires_grad


class _Run:
    """A run of what is checkpointed: the first one notes where generators begin, the others begin there."""

    def __init__(self, begins: dict[int, tuple[Generator, torch.Tensor]], frame: types.FrameType | None = None) -> None:
        self.begins = begins  # by the generator's id
        self.frame = frame  # below it on the stack are blocks of the backward pass; None: it is the first run
        self.is_in_torchs = frame is None and _is_in_torchs_checkpoint()
        self.hook = _hook_on_saved_tensors()
        self.twins: dict[int, Generator] = {}

    def stand_in(self, generator: Generator, drawn_from: Generator) -> Generator:
        """What to draw from for `generator`, for which an outer run draws from `drawn_from`."""
        key = id(generator)
        if self.frame is None and key not in self.begins:
            self.begins[key] = (generator, drawn_from.get_state())
        if self.frame is None or key not in self.begins:
            return drawn_from
        if key not in self.twins:
            self.twins[key] = Generator(generator.device)
            self.twins[key].set_state(self.begins[key][1])
        return self.twins[key]

    def __enter__(self) -> None:
        self.hook = _hook_on_saved_tensors()
        self.token = RUNS.set((*RUNS.get(), self))

    def __exit__(self, *error: object) -> None:
        RUNS.reset(self.token)


class _AsAtFirst:
    """A context manager in which the blocks hold that hold now, and generators draw what they drew in the first run."""

    def __init__(self, first: _Run) -> None:
        self.begins = first.begins
        self.blocks = []
        for setting in (MODES, GENERATORS):
            self.blocks.append((setting, [entry.value for entry in reversed(setting.in_effect())]))
        self.outer: list[list[Any]] = []

    def __enter__(self) -> None:
        variables: list[ContextVar[Any]] = [MODES.variable, GENERATORS.variable, RUNS]
        self.outer.append([(variable, variable.get()) for variable in variables])
        for setting, values in self.blocks:
            setting.variable.set(tuple(Entry(value, None) for value in values))
        RUNS.set((_Run(self.begins, sys._getframe(1)),))

    def __exit__(self, *error: object) -> None:
        for variable, value in self.outer.pop():
            variable.set(value)


def checkpoint(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Activation checkpointing: function(*args, **kwargs), run again in the backward pass in place of being stored.

    The gradient is that without it: the second run draws the same noise, and has the same `noiseless` and `mean_field`,
    wherever `backward` is called. Inside a compiled function, what is checkpointed is not compiled.

    Note:
        `torch.utils.checkpoint.checkpoint` with use_reentrant=False; it keeps torch's default generator alone.
    """
    run = _checkpoint
    if "torch._dynamo" in sys.modules:  # it takes as long to import as torch
        run = torch.compiler.disable(_checkpoint)
    return run(function, args, kwargs)


def _checkpoint(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    first = _Run({})
    again = _AsAtFirst(first)
    return torch_checkpoint.checkpoint(
        function, *args, use_reentrant=False, context_fn=lambda: (first, again), **kwargs
    )


# torch.compile leaves these to Python: it would keep what they found at the time of compilation. What
# `torch.compiler.disable` does, but without importing the compiler.
def _left_to_python(function: Any) -> None:
    function._torchdynamo_disable = True
    function._torchdynamo_disable_msg = "blocks and models.checkpoint must be outside of a full graph"


for _function in (Setting.begin, Setting.end, Setting._on_the_stack, generator_to_draw_from, checkpoint):
    _left_to_python(_function)

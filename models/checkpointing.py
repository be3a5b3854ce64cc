"""Activation checkpointing that redraws the same noise, and errors where PyTorch's own would not."""

import sys
import types
from collections.abc import Callable
from contextvars import ContextVar, Token
from typing import Any

import torch
from torch import Generator
from torch.utils import checkpoint as torch_checkpoint

from .contexts import GENERATOR_BLOCKS, MODE_BLOCKS, OUTSIDE, RUNS, Entry, calling, left_to_python

REFUSAL = (
    "torch.utils.checkpoint would rerun layers with other noise or in another mode, because it ignores "
    f"noise_generator, noiseless and mean_field: use {__package__}.checkpoint instead"
)
OWN_DRAW = (
    "the function in models.checkpoint draws numbers of its own from the generator of the noise, or seeds it, which "
    "its second run would not repeat: draw them from torch's default generator instead"
)


@left_to_python(OUTSIDE)
def draw_from(generator: Generator, entry: Entry | None, draw: Callable[[Generator], torch.Tensor]) -> torch.Tensor:
    """`draw` from a generator, or during recomputation from a stand-in that repeats its numbers.

    Args:
        entry: the `noise_generator` block that the generator comes from, if it does.

    Raises:
        RuntimeError: if PyTorch's own checkpoint would draw other numbers when it recomputes, or if a function in
            `checkpoint` has changed the state of the generator.
    """
    if entry is not None and entry.backward != torch._C._current_graph_task_id():
        raise RuntimeError(REFUSAL)
    if _is_in_torchs_checkpoint() or any(run.is_in_torchs for run in RUNS.get()):
        raise RuntimeError(REFUSAL)
    refuse_reentrant(entry)
    if _is_torchs_default(generator):  # whose state a checkpoint of PyTorch restores
        if torch._C._current_graph_task_id() != -1:
            refuse_unkept_noise()
        return draw(generator)
    drawn_from = generator
    for run in RUNS.get():
        run.check_states()
        drawn_from = run.stand_in(generator, drawn_from)
    numbers = draw(drawn_from)
    for run in RUNS.get():
        run.note_state(generator)
    return numbers


def _is_torchs_default(generator: Generator) -> bool:
    of_device = getattr(torch, generator.device.type, None)
    return generator in (torch.default_generator, *getattr(of_device, "default_generators", ()))


def saves_for_checkpoint() -> bool:
    """Whether a non-reentrant checkpoint, of PyTorch or of this package, takes what autograd saves here."""
    return getattr(_hook_on_saved_tensors(), "__module__", None) == torch_checkpoint.__name__


def _is_in_torchs_checkpoint() -> bool:
    """Whether this runs inside PyTorch's own non-reentrant checkpoint, not one of `checkpoint`."""
    return saves_for_checkpoint() and all(run.hook is not _hook_on_saved_tensors() for run in RUNS.get())


def _hook_on_saved_tensors() -> Any:
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    return hooks and hooks[0]


def refuse_reentrant(entry: Entry | None) -> None:
    """Raise RuntimeError in a checkpoint with use_reentrant=True, which may recompute outside of this block."""
    first, second = torch_checkpoint.CheckpointFunction.forward, torch_checkpoint.CheckpointFunction.backward
    is_second = (-1 if entry is None else entry.backward) != torch._C._current_graph_task_id()
    if not is_second and (torch.is_grad_enabled() or torch.is_inference_mode_enabled()):
        return
    code = second.__code__ if is_second else first.__code__
    for frame in calling(sys._getframe()):
        if frame.f_code is code and (is_second or any(map(_wants_gradient, frame.f_locals["args"]))):
            raise RuntimeError(REFUSAL)


def refuse_unkept_noise() -> None:
    """Raise RuntimeError if a checkpoint recomputes without having kept the state of torch's default generator."""
    for frame in calling(sys._getframe()):
        if frame.f_code.co_filename == torch_checkpoint.__file__:
            found = frame.f_locals
            if not found.get("preserve_rng_state", getattr(found.get("ctx"), "preserve_rng_state", True)):
                raise RuntimeError(
                    "preserve_rng_state=False would run noisy layers again with other noise: leave it out"
                )


def is_checkpointed() -> bool:
    """Whether this runs inside activation checkpointing, of PyTorch or of this package."""
    return any(frame.f_code.co_filename == torch_checkpoint.__file__ for frame in calling(sys._getframe()))


def refuse_compiled_checkpoint() -> None:
    """Raise RuntimeError if a compiled checkpoint would redraw a block's noise from torch's default generator."""
    if not GENERATOR_BLOCKS.in_effect():
        return
    for frame in calling(sys._getframe()):
        if frame.f_globals.get("__name__") == "torch._prims.rng_prims":  # keeps that generator's state for it
            raise RuntimeError(REFUSAL)


def check_same_noise(first: torch.Tensor | None, saved: torch.Tensor | None) -> None:
    """Raise RuntimeError if the saved noise is not that of the forward pass but of a recomputation."""
    if saved is first or type(first) is not torch.Tensor or type(saved) is not torch.Tensor:
        return
    if not torch.equal(first, saved.to(first.device)):
        raise RuntimeError(REFUSAL)


def _wants_gradient(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.requires_grad


class Run:
    """One run of a checkpointed function: the first notes the states of the generators, later ones start from them."""

    def __init__(self, begins: dict[int, tuple[Generator, torch.Tensor]], frame: types.FrameType | None = None) -> None:
        self.begins = begins  # by the generator's id
        self.frame = frame  # blocks below this frame belong to the backward pass; None: the first run
        self.is_in_torchs = frame is None and _is_in_torchs_checkpoint()
        self.hook = _hook_on_saved_tensors()
        self.twins: dict[int, Generator] = {}
        self.is_watching = False  # whether it notices what the function itself does with the generators of the noise
        self.states: dict[int, tuple[Generator, torch.Tensor]] = {}  # as the noise has left them, by id
        self.tokens: list[tuple[ContextVar[Any], Token[Any]]] = []  # they restore what was set when it began

    def stand_in(self, generator: Generator, drawn_from: Generator) -> Generator:
        """The generator to draw from in place of `generator`, for which an outer run draws from `drawn_from`."""
        key = id(generator)
        if self.frame is None and key not in self.begins:
            self.begins[key] = (generator, drawn_from.get_state())
        if self.frame is None or key not in self.begins:
            return drawn_from
        if key not in self.twins:
            self.twins[key] = Generator(generator.device)
            self.twins[key].set_state(self.begins[key][1])
        return self.twins[key]

    def check_states(self) -> None:
        """Raise RuntimeError if the state of a generator is not the one that the noise has left."""
        for generator, state in self.states.values():
            if not torch.equal(generator.get_state(), state):
                raise RuntimeError(OWN_DRAW)

    def note_state(self, generator: Generator) -> None:
        """Remember the state of a generator, which only noise may change."""
        if self.is_watching and not _is_torchs_default(generator):
            self.states[id(generator)] = (generator, generator.get_state())

    def begin(self, values: dict[ContextVar[Any], Any]) -> None:
        """Set context variables until `end`."""
        for variable, value in values.items():
            self.tokens.append((variable, variable.set(value)))

    def end(self) -> None:
        """Restore context variables."""
        while self.tokens:
            variable, token = self.tokens.pop()
            variable.reset(token)

    def __enter__(self) -> None:
        self.hook = _hook_on_saved_tensors()
        self.is_watching = torch.is_grad_enabled() and not RUNS.get()
        for entry in GENERATOR_BLOCKS.in_effect():
            self.note_state(entry.value)
        self.begin({RUNS: (*RUNS.get(), self)})

    def __exit__(self, error: object, *others: object) -> None:
        self.end()
        if error is None:
            self.check_states()


class _AsAtFirst:
    """Context manager that restores the blocks that were open when it was made, and the noise of the first run."""

    def __init__(self, first: Run) -> None:
        self.begins = first.begins
        self.blocks = []
        for setting in (MODE_BLOCKS, GENERATOR_BLOCKS):
            self.blocks.append((setting, [entry.value for entry in reversed(setting.in_effect())]))

    def __enter__(self) -> None:
        run = Run(self.begins, sys._getframe(1))
        values: dict[ContextVar[Any], Any] = {RUNS: (run,)}
        for setting, block_values in self.blocks:
            values[setting.variable] = tuple(Entry(value, None) for value in block_values)
        run.begin(values)

    def __exit__(self, *error: object) -> None:
        RUNS.get()[0].end()  # not kept here, where threads that recompute one graph at once would share it


@left_to_python(OUTSIDE)
def checkpoint(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Activation checkpointing: call `function`, and recompute it in the backward pass instead of storing activations.

    The gradient is unchanged: recomputation draws the same noise, and has the same `noiseless` and `mean_field`,
    wherever `backward` is called. What the function itself draws repeats if it is from torch's default generator; a
    number drawn from any other generator is different in the second run. Inside a compiled function, the checkpointed
    part is not compiled.

    Raises:
        RuntimeError: if the function itself draws from a generator that the noise comes from, or seeds it.

    Note:
        Built on `torch.utils.checkpoint.checkpoint(use_reentrant=False)`, which by itself restores only torch's default
        generator.
    """
    run = _checkpoint
    if "torch._dynamo" in sys.modules:  # it takes as long to import as torch
        run = torch.compiler.disable(_checkpoint)
    return run(function, args, kwargs)


def _checkpoint(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    first = Run({})
    again = _AsAtFirst(first)
    return torch_checkpoint.checkpoint(
        function, *args, use_reentrant=False, context_fn=lambda: (first, again), **kwargs
    )

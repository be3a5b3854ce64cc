"""Watching the spiking neurons of a network, by whichever method they are called.

A neuron is any module whose `emits_spikes` is true (see `models.SpikingNeuron`).
"""

import contextlib
import dataclasses
import functools
import inspect
import sys
import threading
import types
import weakref
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor, nn

Hook = Callable[[str, nn.Module, Tensor, bool], Tensor | None]
STREAMING = ("run", "step")  # methods for streaming, which run no hooks of PyTorch's
STATE = "__getstate__"  # what copies and pickles are made of
CALL = nn.Module._call_impl.__code__  # what runs the hooks and `forward` of a module
INSIDE_COMPILED = "compiled code runs no hooks: watch neurons around the call of a compiled function, not inside it"


def spiking_neurons(net: nn.Module) -> list[tuple[str, nn.Module]]:
    """(name, module) of every module of `net` that emits spikes, in the order of `named_modules`.

    Neurons inside of neurons are left out. Names are those without `torch.compile`.
    """
    found: dict[nn.Module, str] = {}
    inside: tuple[str, ...] = ()  # what names of modules inside of neurons begin with
    for name, module in net.named_modules(remove_duplicate=False):
        is_wrapper = hasattr(module, "_orig_mod")  # of torch.compile: has the attributes of what it wraps
        if not getattr(module, "emits_spikes", False) or is_wrapper or name.startswith(inside):
            continue
        inside += (f"{name}." if name else "",)
        found.setdefault(module, ".".join(part for part in name.split(".") if part != "_orig_mod"))
    return [(name, module) for module, name in found.items()]


@contextlib.contextmanager
def neuron_hooks(net: nn.Module, hook: Hook, on_input: bool = False) -> Iterator[nn.Module]:
    """Context manager: in each call of a spiking neuron, run a hook on its spikes (or its input) [T, B, ...].

    Calls are `neuron(x)`, `neuron.run(x)` and `neuron.step(x_t)`, whose T is 1. A call runs the hooks that its own
    thread or asyncio task has opened; if there are none for the neuron, those of all threads. Copies made inside the
    block are not watched. As compiled code runs no hooks, nothing runs compiled inside the block.

    Args:
        hook: (layer name, neuron, tensor, whether the call continues from a state) -> a tensor to replace it, or None.
            With `on_input`, `neuron(x)` in a `models.Stream` never counts as continuing.

    Raises:
        ValueError: if the network has no spiking neuron.
        RuntimeError: if the block itself is inside a compiled function.
    """
    neurons = spiking_neurons(net)
    if not neurons:
        raise ValueError(f"{type(net).__name__} has no spiking neuron")
    with contextlib.ExitStack() as blocks:
        blocks.enter_context(_uncompiled())
        for layer, neuron in neurons:
            blocks.enter_context(_watched(neuron, functools.partial(hook, layer, neuron), on_input))
        yield net


@dataclasses.dataclass(eq=False)
class _Watch(threading.local):
    """One hook on one neuron."""

    hook: Callable[[Tensor, bool], Tensor | None]
    on_input: bool
    key: object  # by which `_opened_here` knows it
    depth: int = 0  # of calls, in each thread: `run` is not counted again where `forward` or `step` calls it
    continues: bool | None = None  # in a step of a `models.Stream`: whether the neuron was given a state

    def before(self, neuron: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...] | None:
        """Forward pre-hook."""
        _refuse_compilation()
        self.depth += 1
        if self.depth == 1:
            self.continues = None
        if self.depth > 1 or not self.on_input:
            return None
        call = inspect.signature(neuron.forward).bind(*args, **kwargs)
        _change_first(call.arguments, lambda x: self.changed(x, False, _takes_one_step(neuron)))
        return call.args, call.kwargs

    def after(self, neuron: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Forward hook; after an exception, `output` is None."""
        self.depth = max(0, self.depth - 1)
        if self.depth or self.on_input or output is None:
            return None
        return _with_spikes(output, lambda spikes: self.changed(spikes, bool(self.continues), _takes_one_step(neuron)))

    def changed(self, x: Tensor, continues: bool, is_step: bool) -> Tensor | None:
        """What the hook makes of x [T, B, ...], or of one step [B, ...]."""
        if not is_step:
            return self.hook(x, continues)
        result = self.hook(x.unsqueeze(0), continues)
        return None if result is None else result.squeeze(0)

    def around(self, method: str, run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run a method for streaming: (x, state, ...) -> (spikes, state)."""
        is_inner = self.depth > 0
        if is_inner and (self.continues is not None or not _is_in_stream()):
            return run(*args, **kwargs)
        signature = inspect.signature(run)
        call = signature.bind(*args, **kwargs)
        names = list(signature.parameters)
        state = call.arguments.get(names[1]) if len(names) > 1 else None
        continues = state is not None
        if is_inner:
            self.continues = continues
            return run(*args, **kwargs)

        changed = functools.partial(self.changed, continues=continues, is_step=method == "step")
        if self.on_input:
            _change_first(call.arguments, changed)
        self.depth += 1
        try:
            output = run(*call.args, **call.kwargs)
        finally:
            self.depth -= 1
        return output if self.on_input else _with_spikes(output, changed)


def _change_first(arguments: dict[str, Any], change: Callable[[Tensor], Tensor | None]) -> None:
    """Replace the first of the arguments of a call, unless `change` returns None."""
    first = next(iter(arguments))
    result = change(arguments[first])
    if result is not None:
        arguments[first] = result


def _with_spikes(output: Any, change: Callable[[Tensor], Tensor | None]) -> Any:
    """What a neuron has returned, spikes or (spikes, ...), with its spikes replaced unless `change` returns None."""
    spikes, rest = (output[0], output[1:]) if isinstance(output, tuple) else (output, None)
    result = change(spikes)
    if result is None:
        return output
    return result if rest is None else (result, *rest)


@dataclasses.dataclass
class _Streaming:
    """The watches on one neuron, and the methods for streaming that `_stand_in` replaces."""

    methods: dict[str, Callable[..., Any]]
    of_instance: dict[str, Any]  # those that were attributes of the neuron itself
    watches: list[_Watch] = dataclasses.field(default_factory=list)
    hooks: set[int] = dataclasses.field(default_factory=set)  # identifiers of PyTorch's hooks


_opened_here: ContextVar[tuple[object, ...]] = ContextVar("opened_here", default=())  # keys of watches
_streaming: weakref.WeakKeyDictionary[nn.Module, _Streaming] = weakref.WeakKeyDictionary()


def _stand_in(method: str) -> Callable[..., Any]:
    """What stands in for a neuron's `run` or `step`."""

    def stand_in(neuron: nn.Module, *args: Any, **kwargs: Any) -> Any:
        _refuse_compilation()
        streaming = _streaming.get(neuron)
        if streaming is None:  # a copy that was made inside the block
            return getattr(type(neuron), method)(neuron, *args, **kwargs)
        call = streaming.methods[method]
        for watch in streaming.watches:
            call = functools.wraps(call)(functools.partial(watch.around, method, call))  # `wraps`: keeps the signature
        return call(*args, **kwargs)

    return stand_in


class _UnwatchedState:
    """Stands in for a neuron's `__getstate__`: copies and pickles that are made inside the block are not watched."""

    def __init__(self, neuron: nn.Module, streaming: _Streaming) -> None:
        self.streaming = streaming
        self.get = getattr(neuron, STATE, lambda: vars(neuron))  # Python 3.10 has no general one
        self.before = vars(neuron).get(STATE)

    def __call__(self) -> Any:
        state = self.get()
        if not isinstance(state, dict):
            return state
        replaced = {STATE, *self.streaming.methods}
        state = {name: value for name, value in state.items() if name not in replaced} | self.streaming.of_instance
        for name, hooks in state.items():
            if name.startswith("_forward_") and isinstance(hooks, dict):
                kept = [(key, hook) for key, hook in hooks.items() if key not in self.streaming.hooks]
                state[name] = type(hooks)(kept)
        return state

    def put_back(self, neuron: nn.Module) -> None:
        if self.before is not None:
            vars(neuron)[STATE] = self.before


def is_reentrant_checkpoint() -> bool:
    """Whether this is the first run of a checkpoint with use_reentrant=True, which has no graph."""
    first = torch.utils.checkpoint.CheckpointFunction.forward.__code__
    return not torch.is_grad_enabled() and _is_called_by(lambda code: code is first)


def stream_step() -> Any:
    """The step of a `models.Stream` that runs here, or None."""
    shared = sys.modules.get("_nsnn_contexts")  # by all copies of `models`
    return None if shared is None else shared.stream.get()


def _is_in_stream() -> bool:
    """Whether this is a step of a `models.Stream`, which hands states to neurons that are called as `neuron(x)`."""
    return stream_step() is not None


def _takes_one_step(neuron: nn.Module) -> bool:
    """Whether a `models.Stream` without a dimension of time calls this neuron, with x [B, ...]."""
    step = stream_step()
    return step is not None and not step.time_first and neuron in step.neurons


def call_of(net: nn.Module) -> object:
    """What stands for the call `net(...)` that this is part of, the outermost one; None outside of one."""
    frame: types.FrameType | None = sys._getframe(1)
    found = None
    while frame is not None:
        if frame.f_code is CALL and frame.f_locals["self"] is net:
            found = frame.f_locals["kwargs"]  # made for this call; to keep the frame would keep all of the stack alive
        frame = frame.f_back
    return found


def is_run_again() -> bool:
    """Whether a checkpoint runs this in the backward pass, which is its second run."""
    is_backward = torch._C._current_graph_task_id() >= 0
    return is_backward and _is_called_by(lambda code: code.co_filename == torch.utils.checkpoint.__file__)


def _is_called_by(is_wanted: Callable[[types.CodeType], bool]) -> bool:
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None:
        if is_wanted(frame.f_code):
            return True
        frame = frame.f_back
    return False


def _refuse_compilation() -> None:
    if torch.compiler.is_compiling():
        raise RuntimeError(INSIDE_COMPILED)


@contextlib.contextmanager
def _watched(neuron: nn.Module, hook: Callable[[Tensor, bool], Tensor | None], on_input: bool) -> Iterator[None]:
    """Context manager: `neuron_hooks` for one neuron. Blocks may overlap in any way."""

    def hook_here(x: Tensor, continues: bool) -> Tensor | None:
        here = _opened_here.get()
        is_called = watch.key in here or all(other.key not in here for other in streaming.watches)
        return hook(x, continues) if is_called else None

    # Copies that inherited these hooks are not watched.
    def before(module: nn.Module, *call: Any) -> Any:
        return watch.before(module, *call) if module is neuron else None

    def after(module: nn.Module, *call: Any) -> Any:
        return watch.after(module, *call) if module is neuron else None

    watch = _Watch(hook_here, on_input, object())
    with _lock:
        streaming = _streaming.get(neuron) or _take_over(neuron)
        streaming.watches.append(watch)
        handles = [
            neuron.register_forward_pre_hook(before, with_kwargs=True),
            neuron.register_forward_hook(after, always_call=True),
        ]
        streaming.hooks.update(handle.id for handle in handles)
    _opened_here.set((*_opened_here.get(), watch.key))
    try:
        yield
    finally:
        _opened_here.set(tuple(key for key in _opened_here.get() if key is not watch.key))
        with _lock:
            for handle in handles:
                handle.remove()
            streaming.watches.remove(watch)
            if not streaming.watches:
                _give_back(neuron)


def _take_over(neuron: nn.Module) -> _Streaming:
    """Replace the methods of a neuron that is to be watched."""
    attributes = vars(neuron)
    methods = {name: getattr(neuron, name) for name in STREAMING if inspect.isroutine(getattr(neuron, name, None))}
    streaming = _Streaming(methods, {name: attributes[name] for name in methods if name in attributes})
    # Bound methods, unlike closures, belong to the copy in a copy of the neuron.
    attributes.update({name: types.MethodType(_stand_in(name), neuron) for name in methods})
    attributes[STATE] = _UnwatchedState(neuron, streaming)
    _streaming[neuron] = streaming
    return streaming


def _give_back(neuron: nn.Module) -> None:
    attributes, streaming = vars(neuron), _streaming.pop(neuron)
    for name in streaming.methods:
        del attributes[name]
    attributes.update(streaming.of_instance)
    if isinstance(attributes.get(STATE), _UnwatchedState):
        attributes.pop(STATE).put_back(neuron)


_lock, _eager, _open = threading.Lock(), contextlib.ExitStack(), 0


@contextlib.contextmanager
def _uncompiled() -> Iterator[None]:
    """Context manager: compiled code runs uncompiled, in all threads."""
    global _open
    can_switch = hasattr(torch.compiler, "set_stance") and "torch._dynamo" in sys.modules  # else nothing is compiled
    with _lock:
        if not _open and can_switch:
            try:
                _eager.enter_context(torch.compiler.set_stance("force_eager"))
            except RuntimeError as error:
                raise RuntimeError(INSIDE_COMPILED) from error
        _open += 1
    try:
        yield
    finally:
        with _lock:
            _open -= 1
            if not _open:
                _eager.close()

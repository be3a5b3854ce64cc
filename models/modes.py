"""Blocks in which the noisy neurons of a network are without noise, or output their firing probabilities."""

import contextlib
import dataclasses
import threading
import weakref
from typing import Any

from torch import nn

from .contexts import MODE_BLOCKS, Block


def noiseless(net: nn.Module) -> contextlib.AbstractContextManager[nn.Module]:
    """Context manager: every noisy neuron in `net` fires where u > threshold.

    See `models.contexts` for where it holds; copies of the network made inside are not affected.

    Raises:
        TypeError: if a spiking neuron does not say whether it `is_noisy`, or a noisy one has no `mode`.
        RuntimeError: if a neuron with one mode for all threads has another one in another thread.
    """
    return _Switch(net, "noiseless")


def mean_field(net: nn.Module) -> contextlib.AbstractContextManager[nn.Module]:
    """Context manager: every noisy neuron in `net` outputs its firing probability F(u - threshold).

    The reset uses the probability too, and the gradient is exact. Errors and scope are those of `noiseless`.
    """
    return _Switch(net, "mean_field")


def switchable(net: nn.Module, mode: str) -> list[Any]:
    """The neurons of `net` that have a `mode`; TypeError, which names `mode`, if another one may be noisy."""
    neurons: list[Any] = []
    for name, module in net.named_modules():
        if hasattr(module, "is_noisy") and hasattr(module, "mode"):  # also a neuron that is a part of another
            neurons.append(module)
        elif getattr(module, "emits_spikes", False) and getattr(module, "is_noisy", True):
            missing = "mode" if hasattr(module, "is_noisy") else "is_noisy"
            hint = "" if missing == "mode" else "; if it draws no noise, say `is_noisy = False` in the class"
            raise TypeError(f"layer {name!r} ({type(module).__name__}) lacks {missing!r}, which {mode}() needs{hint}")
    return neurons


class _Switch(Block):
    """A block that gives the noisy neurons of a network a mode."""

    def __init__(self, net: nn.Module, mode: str) -> None:
        super().__init__(MODE_BLOCKS, net)
        self._mode = mode
        self._undo: list[contextlib.ExitStack] = []  # one for each time that the block was entered

    def __enter__(self) -> nn.Module:
        neurons = switchable(self.value, self._mode)
        with contextlib.ExitStack() as stack:
            for neuron in neurons:
                if not getattr(neuron, "knows_contexts", False):
                    _set_mode(neuron, self, self._mode)
                    stack.callback(_restore_mode, neuron, self)
            self._undo.append(stack.pop_all())
        self.begin((self._mode, {id(neuron): neuron for neuron in neurons}))
        return self.value

    def __exit__(self, *error: object) -> None:
        self.end()
        self._undo.pop().close()


@dataclasses.dataclass
class _SetMode:
    """A mode that a block has set on a neuron."""

    block: object
    mode: str
    thread: int


@dataclasses.dataclass
class _SetModes:
    """The modes that blocks have set on a neuron without `knows_contexts`, the latest last."""

    own: str  # the mode before the first
    entries: list[_SetMode] = dataclasses.field(default_factory=list)


_modes_set: "weakref.WeakKeyDictionary[Any, _SetModes]" = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def _set_mode(neuron: Any, block: object, mode: str) -> None:
    with _lock:
        thread = threading.get_ident()
        modes = _modes_set.get(neuron) or _SetModes(neuron.mode)
        for entry in modes.entries:
            if entry.mode != mode and entry.thread != thread:
                raise RuntimeError(
                    f"{type(neuron).__name__} is {entry.mode} in another thread: give each thread a copy"
                )
        before = dict(vars(neuron))
        neuron.mode = mode
        if not modes.entries:
            _modes_set[neuron] = modes
            own = {name: value for name, value in before.items() if vars(neuron).get(name) is not value}
            vars(neuron)["__getstate__"] = _OwnState(neuron, own)
        modes.entries.append(_SetMode(block, mode, thread))


def _restore_mode(neuron: Any, block: object) -> None:
    with _lock:
        modes = _modes_set[neuron]
        latest = [entry for entry in modes.entries if entry.block is block][-1]
        modes.entries = [entry for entry in modes.entries if entry is not latest]
        neuron.mode = modes.entries[-1].mode if modes.entries else modes.own
        if not modes.entries:
            del _modes_set[neuron]
            if isinstance(vars(neuron).get("__getstate__"), _OwnState):
                vars(neuron).pop("__getstate__").put_back(neuron)


class _OwnState:
    """Stands in for a neuron's `__getstate__`: copies and pickles made inside a block have the neuron's own mode."""

    def __init__(self, neuron: Any, own: dict[str, Any]) -> None:
        self.own = own
        self.get = getattr(neuron, "__getstate__", lambda: vars(neuron))  # Python 3.10 has no general one
        self.before = vars(neuron).get("__getstate__")

    def __call__(self) -> Any:
        state = self.get()
        if not isinstance(state, dict):
            return state
        return {name: value for name, value in {**state, **self.own}.items() if value is not self}

    def put_back(self, neuron: Any) -> None:
        if self.before is not None:
            vars(neuron)["__getstate__"] = self.before

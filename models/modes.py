"""Blocks in which the noisy neurons of a network are without noise, or output their firing probabilities."""

import contextlib
import threading
import weakref
from typing import Any

from torch import nn

from .contexts import MODE_BLOCKS, Block


def noiseless(net: nn.Module) -> contextlib.AbstractContextManager[nn.Module]:
    """Context manager: every noisy neuron in `net` fires where u > threshold; TypeError if one has no `mode`.

    It holds as `models.contexts` says, and not for copies of the network that are made inside.
    """
    return _Switch(net, "noiseless")


def mean_field(net: nn.Module) -> contextlib.AbstractContextManager[nn.Module]:
    """Context manager: every noisy neuron in `net` outputs its firing probability F(u - threshold).

    The reset uses the probability too, and the gradient is exact. Errors, and where it holds, as for `noiseless`.
    """
    return _Switch(net, "mean_field")


def switchable(net: nn.Module, mode: str) -> list[Any]:
    neurons: list[Any] = []
    for name, module in net.named_modules():
        if not getattr(module, "emits_spikes", False):
            continue
        if hasattr(module, "is_noisy") and hasattr(module, "mode"):
            neurons.append(module)
        elif getattr(module, "is_noisy", True):
            missing = "mode" if hasattr(module, "is_noisy") else "is_noisy"
            hint = "" if missing == "mode" else "; if it draws no noise, say `is_noisy = False` in the class"
            raise TypeError(f"layer {name!r} ({type(module).__name__}) lacks {missing!r}, which {mode}() needs{hint}")
    return neurons


class _Switch(Block):
    """A block in which the noisy neurons of a network have a mode."""

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


# Of neurons that do not know `models.contexts`: [(block, mode, thread)], before them (None, own mode, None).
_modes_set: "weakref.WeakKeyDictionary[Any, list[tuple[Any, str, int | None]]]" = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def _set_mode(neuron: Any, block: object, mode: str) -> None:
    with _lock:
        blocks = _modes_set.get(neuron, [(None, neuron.mode, None)])
        for _, other, thread in blocks[1:]:
            if other != mode and thread != threading.get_ident():
                raise RuntimeError(f"{type(neuron).__name__} is {other} in another thread: give each thread a copy")
        before = dict(vars(neuron))
        neuron.mode = mode
        if neuron not in _modes_set:
            _modes_set[neuron] = blocks
            own = {name: value for name, value in before.items() if vars(neuron).get(name) is not value}
            vars(neuron)["__getstate__"] = _OwnState(neuron, own)
        blocks.append((block, mode, threading.get_ident()))


def _restore_mode(neuron: Any, block: object) -> None:
    with _lock:
        blocks = _modes_set[neuron]
        last = max(place for place, entry in enumerate(blocks) if entry[0] is block)
        del blocks[last]
        neuron.mode = blocks[-1][1]
        if len(blocks) == 1:
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

"""The two names of this package: what was pickled under one of them loads under the other.

A pickle says where each class is: in `models.noise` in the repository, in `nsnn.noise` where the package is installed.
Once this package is imported, whatever it is called there, its modules are found by both names, unless there is another
package of that name. Before that, Python says that there is no module of that name.

`torch.load` with weights_only=True imports nothing: anything but weights needs its class, and the name that the file
has for it, as in `torch.serialization.add_safe_globals([(Gaussian, "models.noise.Gaussian")])`.
"""

import functools
import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

NAMES = ("models", "nsnn")
CRITS = {"models": "crits", "nsnn": "nsnn.crits"}  # a package beside this one, or in it


def _name_here(fullname: str) -> str:
    for crits in CRITS.values():
        if __package__ in CRITS and (fullname == crits or fullname.startswith(f"{crits}.")):
            return CRITS[__package__] + fullname.removeprefix(crits)
    _, dot, rest = fullname.partition(".")
    return f"{__package__}{dot}{rest}"


class BothNames(MetaPathFinder, Loader):
    """Finds the modules of this package by its other name."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        parent = fullname.rpartition(".")[0]
        stands_in = isinstance(getattr(sys.modules.get(parent), "__loader__", None), BothNames)
        others = {*NAMES, "crits"} - {__package__, CRITS.get(str(__package__), "crits")}
        if not stands_in and fullname not in others:
            return None
        original = importlib.util.find_spec(_name_here(fullname))
        if original is None:
            return None
        return ModuleSpec(fullname, self, is_package=original.submodule_search_locations is not None)

    def exec_module(self, module: ModuleType) -> None:
        original = importlib.import_module(_name_here(module.__name__))
        if hasattr(original, "__path__"):  # a stand-in without a path, or Python would load the files in it once more
            module.__getattr__ = functools.partial(getattr, original)  # type: ignore[method-assign]
        else:
            sys.modules[module.__name__] = original


def find_by_both_names() -> None:
    """Let Python find the modules of this package by both names; it asks last here, so that nothing is hidden."""
    sys.meta_path.append(BothNames())

"""A hash of code, for a cache key, so that changed code never reads what older code wrote."""

import ast
import functools
import hashlib
import importlib.util

PACKAGES = ("models", "crits", "tools")  # of this repository; absolute imports of others are not followed


@functools.cache
def code_fingerprint(*names: str, follow: bool = True) -> str:
    """Hash the code of modules, by their dotted names; comments and layout do not count.

    `follow`: also hash the modules of this repository that they import, and so on.
    """
    key = hashlib.sha256()
    waiting = list(names)
    seen = set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        spec = importlib.util.find_spec(name)
        tree = ast.parse(spec.loader.get_source(name))
        key.update(f"{name}\n{ast.dump(tree)}\n".encode())
        if follow:
            for node in ast.walk(tree):
                waiting += _imported(node, spec.parent)
    return key.hexdigest()


def _imported(node: ast.AST, package: str) -> list[str]:
    """The modules of this repository that a statement in a module of `package` imports; [] for other code."""
    if isinstance(node, ast.Import):  # import a.b
        return [alias.name for alias in node.names if alias.name.split(".")[0] in PACKAGES]
    if not isinstance(node, ast.ImportFrom) or not (node.level or node.module.split(".")[0] in PACKAGES):
        return []
    base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
    found = [base]
    if importlib.util.find_spec(base).submodule_search_locations:  # a package: from a import b, b may be a module
        found += filter(importlib.util.find_spec, [f"{base}.{alias.name}" for alias in node.names])
    return found

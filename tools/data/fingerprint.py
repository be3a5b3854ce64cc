"""A hash of code, as part of the key of what that code has made: changed code never meets old content of a cache."""

import ast
import functools
import hashlib
import importlib.util


@functools.cache
def code_fingerprint(*names: str, follow: bool = True) -> str:
    """Hash the code of modules, by their dotted names; comments and layout do not count.

    `follow` hashes also what they import by relative imports from their own packages, and so on.
    """
    key, waiting, seen = hashlib.sha256(), list(names), set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        spec = importlib.util.find_spec(name)
        tree = ast.parse(spec.loader.get_source(name))
        key.update(f"{name}\n{ast.dump(tree)}\n".encode())
        for node in ast.walk(tree):
            if follow and isinstance(node, ast.ImportFrom) and node.level == 1:
                if node.module:  # from .a import b
                    waiting.append(f"{spec.parent}.{node.module}")
                else:  # from . import a, b, of which some are modules
                    names = [f"{spec.parent}.{alias.name}" for alias in node.names]
                    waiting += [spec.parent, *filter(importlib.util.find_spec, names)]
    return key.hexdigest()

"""A hash of code, for the key of a cache: changed code never meets content that older code has made."""

import ast
import functools
import hashlib
import importlib.util


@functools.cache
def code_fingerprint(*names: str, follow: bool = True) -> str:
    """Hash the code of modules, by their dotted names; comments and layout do not count.

    `follow`: also hash the modules that they import from their own packages by relative imports, and so on.
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
                    imported = [f"{spec.parent}.{alias.name}" for alias in node.names]
                    waiting += [spec.parent, *filter(importlib.util.find_spec, imported)]
    return key.hexdigest()

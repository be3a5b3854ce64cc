"""The folder of caches, and a stamp by which a changed file is noticed."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Folder of all caches: $NSNN_CACHE, else $XDG_CACHE_HOME/nsnn, else ~/.cache/nsnn."""
    if chosen := os.environ.get("NSNN_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nsnn"


def stamp(path: Path) -> str:
    """Text in ASCII that changes when a file does: its path, size and modification time."""
    stat = path.stat()
    return f"{str(path.resolve())!a} {stat.st_size} {stat.st_mtime_ns}"

"""Where caches lie, and what tells that a file has changed."""

import os
from pathlib import Path


def cache_folder():
    """Folder of all caches: $NSNN_CACHE, else $XDG_CACHE_HOME/nsnn, else ~/.cache/nsnn."""
    if chosen := os.environ.get("NSNN_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nsnn"


def stamp(path):
    """Text that changes when a file does: its place, size and time of change."""
    stat = path.stat()
    return f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}"

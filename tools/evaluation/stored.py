"""Stored results, in JSON: reused if identity and checksum match."""

import json
import logging
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tools.io.files import MOST_TEXT, read_bytes, write_text_atomically

from .results import Result

logger = logging.getLogger(__name__)
Content = dict[str, Any]
Points = dict[tuple[int | None, float | None], Result]  # by severity and strength


class ResultFolder:
    """The stored results of one snapshot.

    Args:
        path: the folder; made when the first result is written.
        identity: all that results depend on. Only "snapshot", a path, may differ. "provenance" has the git revision, so
            results of other code are not reused.
        of_points: what else the results of perturbations depend on; reports do not.
        suffix: ends the names of the perturbations' files.
    """

    def __init__(self, path: str | Path, identity: Content, of_points: Content, suffix: str = ""):
        self.path = Path(path)
        self.identity = identity
        self.suffix = suffix
        self.identity_of_points = {**identity, **of_points}
        self.replaced: dict[Path, str] = {}  # the former content of overwritten files

    def points_file(self, name: str) -> Path:
        return self.path / f"{name}{self.suffix}.json"

    def points(self, name: str) -> Points:
        """The stored results of a perturbation; {} if there are none to reuse."""

        def read(content: Content) -> Points:
            points = [Result.from_json(point) for point in content["points"]]
            return {(point.severity, point.strength): point for point in points}

        return self._read(self.points_file(name), self.identity_of_points, read) or {}

    def write_points(self, name: str, points: Points) -> None:
        """Write the results of a perturbation, or of "clean", one per line."""
        rows = [points[key].as_json() for key in sorted(points, key=_none_last)]
        head = {"perturbation": name, "identity": self.identity_of_points}
        head["crc32"] = _checksum({**head, "points": rows})
        opened = json.dumps(head, indent=2).removesuffix("\n}")
        lines = ",\n".join(f"    {json.dumps(row)}" for row in rows)
        self._write(self.points_file(name), f'{opened},\n  "points": [\n{lines}\n  ]\n}}\n')

    def report(self, name: str, from_json: Callable[[Content], Any] = dict, **settings: Any) -> Any:
        """The stored report, made by `from_json`, if its `settings` match; else None."""

        def read(content: Content) -> Any:
            del content["identity"]
            return from_json(content) if settings.items() <= content.items() else None

        return self._read(self.path / f"{name}.json", self.identity, read)

    def write_report(self, name: str, report: Content) -> None:
        path, content = self.path / f"{name}.json", {"identity": self.identity, **report}
        self._write(path, json.dumps({**content, "crc32": _checksum(content)}, indent=1) + "\n")
        logger.info("written: %s", path)

    def restore(self) -> None:
        """Put back the files that were overwritten."""
        for path, text in self.replaced.items():
            write_text_atomically(path, text)

    def _write(self, path: Path, text: str) -> None:
        if path not in self.replaced and path.is_file() and path.stat().st_size <= MOST_TEXT:
            self.replaced[path] = path.read_text("utf-8", "replace")
        write_text_atomically(path, text)

    def _read(self, path: Path, identity: Content, read: Callable[[Content], Any]) -> Any:
        try:
            content = json.loads(read_bytes(path, MOST_TEXT))
            if content.pop("crc32") != _checksum(content):
                logger.warning("%s is damaged; its results are measured again", path)
                return None
            source = content["identity"]["provenance"]["git"]
            is_same = _without_path(content["identity"]) == _without_path(identity)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):  # not of this version
            return None
        # Results of modified or unknown code are never reused.
        if source == "unknown" or source.endswith("-dirty") or not is_same:
            return None
        return read(content)


def _without_path(identity: Content) -> Content:
    return {name: value for name, value in identity.items() if name != "snapshot"}


def _none_last(key: tuple[int | None, float | None]) -> list[tuple[bool, float]]:
    """Sorts keys of `Points` by severity, then by strength, with None after all numbers."""
    return [(value is None, value or 0) for value in key]


def _checksum(content: Content) -> int:
    """CRC-32 of a dictionary as JSON; detects damage, not forgery."""
    return zlib.crc32(json.dumps(json.loads(json.dumps(content)), sort_keys=True).encode())

"""The folder of the results of one tested snapshot: JSON files, each with all that its numbers depend on."""

import json
import logging
from pathlib import Path

from .files import write_text_atomically

logger = logging.getLogger(__name__)


class ResultFolder:
    """Files of results, which are not measured again where all that they depend on is the same.

    Args:
        path: the folder; it is made at the first result.
        identity: dictionary of all that the results depend on; "provenance" is that of `runlog.provenance`.
        suffix: of the names of the points' files.
    """

    def __init__(self, path, identity, suffix=""):
        self.path = Path(path)
        self.identity = identity
        self.suffix = suffix

    def points_file(self, name):
        return self.path / f"{name}{self.suffix}.json"

    def points(self, name):
        """{(severity, strength): point} that an earlier run of the same tests has written."""
        content = self._read(self.points_file(name))
        return {(point["severity"], point["strength"]): point for point in content["points"]} if content else {}

    def write_points(self, name, points):
        """Write the points of a perturbation, or "clean", a line each: they are long."""
        head = json.dumps({"perturbation": name, "identity": self.identity}, indent=2).removesuffix("\n}")
        rows = ",\n".join(f"    {json.dumps(point)}" for point in points)
        write_text_atomically(self.points_file(name), f'{head},\n  "points": [\n{rows}\n  ]\n}}\n')

    def report(self, name, **settings):
        """A report that an earlier run with the same settings has written, or None."""
        content = self._read(self.path / f"{name}.json")
        if content is None or any(content.get(key) != value for key, value in settings.items()):
            return None
        return content

    def write_report(self, name, report):
        """Write a report, and return what `report` would read."""
        path, content = self.path / f"{name}.json", {"identity": self.identity, **report}
        write_text_atomically(path, json.dumps(content, indent=1) + "\n")
        logger.info("written: %s", path)
        return content

    def _read(self, path):
        try:
            content = json.loads(path.read_text())
            is_known = not content["identity"]["provenance"]["git"].endswith("-dirty")  # else who knows what it was
            return content if is_known and content["identity"] == self.identity else None
        except (OSError, ValueError, KeyError, TypeError):  # none, or not one of this version
            return None

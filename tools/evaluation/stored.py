"""The folder of the results of one tested snapshot: JSON files, each with all that its numbers depend on."""

import json
import logging
import zlib
from pathlib import Path

from tools.io.files import MOST_TEXT, read_bytes, write_text_atomically

logger = logging.getLogger(__name__)


class ResultFolder:
    """Files of results, which are not measured again where all that they depend on is the same and none is damaged.

    Args:
        path: the folder; it is made at the first result.
        identity: dictionary of all that the results depend on; "provenance" is that of `runlog.provenance`, and
            "snapshot" only says where it lay.
        of_points: what the points of perturbations depend on besides, and reports do not.
        suffix: of the names of the points' files.
    """

    def __init__(self, path, identity, of_points, suffix=""):
        self.path = Path(path)
        self.identity = identity
        self.of_points = of_points
        self.suffix = suffix

    def points_file(self, name):
        return self.path / f"{name}{self.suffix}.json"

    def points(self, name):
        """{(severity, strength): point} that an earlier run of the same tests has written."""
        content = self._read(self.points_file(name), {**self.identity, **self.of_points})
        return {(point["severity"], point["strength"]): point for point in content["points"]} if content else {}

    def write_points(self, name, points):
        """Write the points of a perturbation, or "clean", a line each: they are long.

        Args:
            points: as `points` gives them.
        """
        identity = {**self.identity, **self.of_points}
        order = sorted(points, key=lambda key: [(value is None, value or 0) for value in key])
        content = {"perturbation": name, "identity": identity, "points": [points[key] for key in order]}
        head = {**content, "crc32": _checksum(content)}
        del head["points"]
        head = json.dumps(head, indent=2).removesuffix("\n}")
        rows = ",\n".join(f"    {json.dumps(point)}" for point in content["points"])
        write_text_atomically(self.points_file(name), f'{head},\n  "points": [\n{rows}\n  ]\n}}\n')

    def report(self, name, **settings):
        """A report that an earlier run with the same settings has written, or None."""
        content = self._read(self.path / f"{name}.json", self.identity)
        if content is None or any(content.get(key) != value for key, value in settings.items()):
            return None
        return content

    def write_report(self, name, report):
        """Write a report, and return what `report` would read."""
        path, content = self.path / f"{name}.json", {"identity": self.identity, **report}
        write_text_atomically(path, json.dumps({**content, "crc32": _checksum(content)}, indent=1) + "\n")
        logger.info("written: %s", path)
        return content

    def _read(self, path, identity):
        try:
            content = json.loads(read_bytes(path, MOST_TEXT))
            if content.pop("crc32") != _checksum(content):
                logger.warning("%s is damaged; what it holds is measured anew", path)
                return None
            source = content["identity"]["provenance"]["git"]
            if source == "unknown" or source.endswith("-dirty"):  # who knows what it was
                return None
            return content if {**content["identity"], "snapshot": identity["snapshot"]} == identity else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):  # none of this version
            return None


def _checksum(content):
    """CRC-32 of what JSON keeps of a dictionary: against damage, not against forgery."""
    return zlib.crc32(json.dumps(json.loads(json.dumps(content)), sort_keys=True).encode())

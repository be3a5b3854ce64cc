"""Reader of AEDAT, the formats of iniVation's cameras, in any version that is known here."""

import re
from collections.abc import Callable

from .aedat2 import read_aedat2
from .aedat3 import read_aedat3
from .aedat4 import read_aedat4
from .reading import Reading, Source

VERSIONS: dict[str, Callable[[Source], Reading]] = {"2.0": read_aedat2, "3.1": read_aedat3, "4.0": read_aedat4}


def read_aedat(source: Source) -> Reading:
    """Read AEDAT of the version that is in its first line."""
    version = re.match(rb"#!AER-DAT([0-9.]+)", source.raw)
    found = version[1].decode() if version else "a file without #!AER-DAT, as of version 1.0"
    if found not in VERSIONS:
        raise source.error(0, f"expected #!AER-DAT {', '.join(VERSIONS)}, got {found}: {source.raw[:14]!r}")
    return VERSIONS[found](source)

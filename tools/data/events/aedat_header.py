"""What the text headers of AEDAT 2.0 and 3.1 say: the camera, and so the size of its sensor."""

import re

# (width, height) of the cameras called DAVIS and one of these numbers. jAER has them in the class of each camera.
DAVIS = {"128": (128, 128), "208": (208, 192), "240": (240, 180), "346": (346, 260), "640": (640, 480)}


def header_line(header: bytes, name: bytes) -> str:
    """What a line of a header says after its name, a regular expression; "" without such a line."""
    found = re.search(rb"^" + name + rb"[ \t]*(.*?)\s*$", header, re.MULTILINE)
    return found[1].decode(errors="replace") if found else ""


def is_dvs128(camera: str) -> bool:
    """Whether a camera is a DVS128, or the Tmpdiff128 that it was made from; `camera` may be a class of jAER."""
    return re.search(r"(^|\.)(dvs|tmpdiff)128$", camera, re.IGNORECASE) is not None


def davis_size(camera: str) -> tuple[int, int] | None:
    """(width, height) of a DAVIS by its name, such as DAVIS240C or a class of jAER; None for other cameras.

    Left out are those with addresses of their own: DavisRGBW640, CDAVIS, and Davis346Zynq.
    """
    found = re.search(r"(^|\.)davis(\d{3})(?!zynq)[a-z]*$", camera, re.IGNORECASE)
    return DAVIS.get(found[2]) if found else None


def sensor_of(camera: str) -> tuple[int, int] | None:
    """(width, height) of a camera by its name; None for one that is not known here."""
    return (128, 128) if is_dvs128(camera) else davis_size(camera)

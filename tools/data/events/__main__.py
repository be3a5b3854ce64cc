"""Look at a recording, or write it in another format: python -m tools.data.events {info FILE, convert IN OUT}.

info       format, camera, number of events, duration, rate, and a map that shows which way the picture is up
convert    OUT's suffix says in which format: .npz, .npy, .csv, .txt, .dat, .raw (EVT 2.0) or .h5
"""

import argparse
import logging
import sys
from pathlib import Path

import numpy as np

from tools.errors import UserError
from tools.plots import subplots

from .formats import check_events, read_recording
from .reading import Reading
from .writing import write_recording

logger = logging.getLogger(__name__)
COLUMNS, ROWS = 60, 20  # of the map, at most
SHADES = " .:-=+*#%@"


def _size(reading: Reading) -> tuple[int, int]:
    """(width, height) of the sensor, or of what of it the events show."""
    return reading.sensor or (int(reading.events["x"].max()) + 1, int(reading.events["y"].max()) + 1)


def density(events: np.ndarray, size: tuple[int, int], columns: int, rows: int) -> np.ndarray:
    """How many events there are in each cell of a sensor of `size` (width, height) pixels: [rows, columns]."""
    width, height = size
    events = events[(events["x"] < width) & (events["y"] < height)]
    column, row = events["x"].astype(np.int64) * columns // width, events["y"].astype(np.int64) * rows // height
    return np.bincount(row * columns + column, minlength=rows * columns).reshape(rows, columns)


def text_map(events: np.ndarray, size: tuple[int, int]) -> str:
    """The density of events in characters, in a frame; a character is about twice as high as wide."""
    width, height = size
    scale = max(width / COLUMNS, height / (2 * ROWS), 1)  # no column of the map without one of the sensor
    cells = density(events, size, max(1, round(width / scale)), max(1, round(height / (2 * scale))))
    bright = np.percentile(cells[cells > 0], 95) if cells.any() else 1
    shade = np.ceil(np.clip(cells / bright, 0, 1) * (len(SHADES) - 1)).astype(int)
    lines = ["|" + "".join(SHADES[one] for one in row) + "|" for row in shade]
    edge = f"+{'-' * cells.shape[1]}+"
    return "\n".join([edge, *lines, edge])


def _also_found(reading: Reading) -> str:
    """What is in a file besides good events, and how often."""
    width, height = _size(reading)
    events = reading.events
    outside = np.count_nonzero((events["x"] >= width) | (events["y"] >= height))
    early = np.count_nonzero(np.diff(events["t"]) < 0)
    found = reading.counts | {"events off the sensor": outside, "earlier than the event before": early}
    return ", ".join(f"{count:,} {what}" for what, count in found.items() if count)


def describe(reading: Reading) -> str:
    """What is known of a recording, a line each, and its map."""
    events = reading.events
    width, height = _size(reading)
    seconds = int(events["t"].max() - events["t"].min()) / 1e6
    rate = f"{len(events) / seconds:,.0f} events/s" if seconds else "all events at one time"
    lines = {
        "file": str(reading.path),
        "format": reading.format,
        "camera": reading.camera or "unknown",
        "sensor": f"{width}x{height}" if reading.sensor else f"unknown; events within {width}x{height}",
        "events": f"{len(events):,}",
        "duration": f"{seconds:,.6f} s, from {events['t'][0]:,} us",
        "rate": rate,
        "ON": f"{events['p'].mean():.1%}",
    }
    lines["also found"] = _also_found(reading) or "nothing"
    return "\n".join([*(f"{name:<12}{value}" for name, value in lines.items()), text_map(events, (width, height))])


def save_picture(reading: Reading, path: Path) -> None:
    """Save a picture of the density of events."""
    width, height = _size(reading)
    figure, axes = subplots(6, 6 * height / width + 0.5, grid=False)
    cells = density(reading.events, (width, height), min(width, 2000), min(height, 2000))
    axes[0, 0].imshow(np.log1p(cells), cmap="gray", interpolation="nearest", extent=(0, width, height, 0))
    axes[0, 0].set_title(f"{len(reading.events):,} events", fontsize="medium")
    figure.savefig(path)


def make_parser() -> argparse.ArgumentParser:
    """The command line's flags."""
    kind = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m tools.data.events", description=__doc__, formatter_class=kind)
    commands = parser.add_subparsers(dest="command", required=True, metavar="{info,convert}")
    info, convert = commands.add_parser("info"), commands.add_parser("convert")
    info.add_argument("source", type=Path, metavar="FILE")
    info.add_argument("--picture", type=Path, metavar="FILE.png", help="also save a picture, from the same pixels")
    convert.add_argument("source", type=Path, metavar="IN")
    convert.add_argument("out", type=Path, metavar="OUT", help="its suffix says in which format")
    lenient = "leave out what is damaged; for convert, also events out of order or off the sensor"
    for command in (info, convert):
        command.add_argument("--columns", default="", help="columns of a text that does not name them, such as x,y,t,p")
        command.add_argument("--lenient", action="store_true", help=lenient)
    return parser


def main(argv: list[str] | None = None) -> None:
    options = make_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    try:
        reading = read_recording(options.source, options.lenient, options.columns)
        if options.command == "info":
            logger.info("%s", describe(reading))
            if options.picture:
                save_picture(reading, options.picture)
        else:
            events = reading.events
            if options.lenient:
                events, dropped, _ = check_events(reading, _size(reading), lenient=True)
                for reason, count in dropped.items():
                    if count:
                        logger.info("left out: %s %s", f"{count:,}", reason)
            elif found := _also_found(reading):
                logger.info("also found: %s", found)
            write_recording(options.out, events, reading.sensor)
            logger.info("%s: %s events", options.out, f"{len(events):,}")
    except (OSError, UserError) as error:
        logger.error("error: %s", error)
        sys.exit(1)


if __name__ == "__main__":
    main()

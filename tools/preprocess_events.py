"""Make the frames of an event data set ahead of training: python tools/preprocess_events.py SOURCE OUT.

SOURCE is a folder of a data set in any of the layouts of tools/data/events/trees.py, such as N-MNIST. Frames are
written to OUT; training finds them with NSNN_CACHE=OUT and the same settings of frames. The same command continues
an interrupted run. Recordings that cannot be read are skipped; OUT/skipped-<data set>.json says which and why, and
OUT/dropped-<data set>.json how many events others have lost.
"""

import argparse
import json
import logging
import os
import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a file: Python would look for modules in tools/
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from tools.data.events.frames import SPLITS, framing_of
from tools.data.events.store import FrameStore
from tools.data.events.trees import TRAINING_SHARES, TREES, recognise
from tools.errors import UserError
from tools.io.files import write_text_atomically

logger = logging.getLogger(__name__)


def preprocess(options: argparse.Namespace) -> tuple[str, dict[str, FrameStore]]:
    """Frame all recordings of the data set in the source folder; return its name and {"train", "test": store}."""
    name, parts = recognise(options.source, options.split)
    tree = TREES[name]
    framing = framing_of(
        options.frames_by,
        sensor=tree.sensor,
        size=tree.frame_size(options.frame_size),
        timesteps=options.timestep,
        frame_ms=options.frame_ms,
        most_frames=options.most_frames,
        channels=tree.channels,
    )
    how = dict(framing=framing, lenient=options.lenient, workers=options.workers, folder=options.out)
    return name, {part: FrameStore(f"{name}-{part}", found, **how) for part, found in parts._asdict().items()}


def table(stores: dict[str, FrameStore]) -> str:
    """For each part: recordings framed and skipped, events dropped, by reason, and what else was found in the files."""
    lines = [f"{'':8}{'recordings':>12}{'framed':>10}{'skipped':>10}{'events dropped':>18}"]
    for part, store in stores.items():
        skipped = len(store.skipped)
        row = f"{part:8}{len(store):12,}{len(store) - skipped:10,}{skipped:10,}{sum(store.dropped.values()):18,}"
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in store.dropped.items())
        lines.append(f"{row} ({reasons})" if reasons else row)
        if found := ", ".join(f"{count:,} {what}" for what, count in store.counts.items()):
            lines.append(f"{'':8}also found: {found}")
    return "\n".join(lines)


def make_parser() -> argparse.ArgumentParser:
    """The command line's flags."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, metavar="SOURCE", help="folder of the data set")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for the frames")
    parser.add_argument("--timestep", type=int, default=10, help="number of frames T (default: 10)")
    frames_by = "T frames of equally many events (default) or of equal duration, or all that a recording fills"
    parser.add_argument("--frames_by", choices=SPLITS, default="count", help=frames_by)
    parser.add_argument("--frame_ms", type=float, default=30.0, help="of a frame of --frames_by duration (default: 30)")
    most_frames = "most frames of a recording with --frames_by duration (default: 1000)"
    parser.add_argument("--most_frames", type=int, default=1000, help=most_frames)
    parser.add_argument("--frame_size", type=int, default=0, help="side of the frames in pixels; 0: the usual size")
    parser.add_argument(
        "--split", choices=TRAINING_SHARES, default="9:1", help="train:test, if there is no official split"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="most processes (default: %(default)s)")
    lenient = "skip damaged recordings and events and report how many, instead of failing"
    parser.add_argument("--lenient", action=argparse.BooleanOptionalAction, default=True, help=lenient)
    return parser


def main(argv: list[str] | None = None) -> None:
    parser = make_parser()
    options = parser.parse_args(argv)
    if options.workers < 1:
        parser.error(f"--workers must be at least 1, got {options.workers}")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    try:
        name, stores = preprocess(options)
        skipped = {part: list(store.skipped.values()) for part, store in stores.items()}
        report = options.out / f"skipped-{name}.json"
        write_text_atomically(report, json.dumps(skipped, indent=2))
        dropped = {part: store.dropped_of for part, store in stores.items()}
        write_text_atomically(options.out / f"dropped-{name}.json", json.dumps(dropped, indent=2))
    except (OSError, UserError) as error:
        logger.error("error: %s", error)
        sys.exit(1)
    logger.info("%s, frames in %s\n%s", name, options.out, table(stores))
    for why in (skipped["train"] + skipped["test"])[:20]:
        logger.info("skipped: %s", why)
    logger.info("%s lists everything that was skipped, and the file dropped-%s.json what was dropped", report, name)


if __name__ == "__main__":
    main()

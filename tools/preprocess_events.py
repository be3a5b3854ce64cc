"""Make the frames of an event data set ahead of training: python tools/preprocess_events.py SOURCE OUT.

SOURCE is a folder of N-MNIST, DVS-Gesture or DVS-CIFAR10 in any of the layouts of tools/data/events/trees.py. OUT
receives the frames; training finds them with NSNN_CACHE=OUT and the same settings of frames. Several processes read;
what an interrupted run has made is kept. Recordings that cannot be read are skipped: the table at the end, and
OUT/skipped-<data set>.json, say which and why.
"""

import argparse
import json
import logging
import os
import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a file, so that Python looks for modules in tools/
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from tools.data.events.frames import SPLITS, Framing
from tools.data.events.store import FrameStore
from tools.data.events.trees import CIFAR10_TRAINING, TREES, recognise
from tools.io.files import write_text_atomically

logger = logging.getLogger(__name__)
PARTS = ("train", "test")


def preprocess(source, out, timestep=10, frames_by="count", frame_size=0, split="9:1", workers=4, lenient=True):
    """Frame all recordings of a data set.

    Args:
        source: folder of the data set.
        out: folder of the frames.
        timestep, frames_by, frame_size, split: as for training (`tools.config`).
        workers: largest number of processes.
        lenient: skip damaged recordings and events, and count them, instead of stopping there.

    Returns:
        The data set's name, and {part: `FrameStore`}.

    Raises:
        FileNotFoundError: if no data set is recognised in `source`.
        EventFormatError: for the first damaged recording, unless `lenient`.
    """
    name, recordings = recognise(source, split)
    tree = TREES[name]
    framing = Framing(timestep, frames_by, tree.sensor, (frame_size, frame_size) if frame_size else tree.size)
    return name, {
        part: FrameStore(f"{name}-{part}", found, framing, lenient, workers, out)
        for part, found in zip(PARTS, recordings)
    }


def table(stores):
    """Text: for each part, recordings framed and skipped, and events dropped, by reason."""
    lines = [f"{'':8}{'recordings':>12}{'framed':>10}{'skipped':>10}{'events dropped':>18}"]
    for part, store in stores.items():
        skipped = len(store.skipped)
        row = f"{part:8}{len(store):12,}{len(store) - skipped:10,}{skipped:10,}{sum(store.dropped.values()):18,}"
        reasons = [f"{count:,} {reason}" for reason, count in store.dropped.items() if count]
        lines.append(row + (f" ({', '.join(reasons)})" if reasons else ""))
    return "\n".join(lines)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, metavar="SOURCE", help="folder of the data set")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of the frames")
    parser.add_argument("--timestep", type=int, default=10, help="number of frames T (default: 10)")
    parser.add_argument("--frames_by", choices=SPLITS, default="count", help="equally many events, or equal time")
    parser.add_argument("--frame_size", type=int, default=0, help="side in pixels; 0: the data set's usual")
    parser.add_argument("--split", choices=CIFAR10_TRAINING, default="9:1", help="of a data set without official one")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (default: %(default)s)")
    parser.add_argument(
        "--lenient",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="skip what is damaged, and say how much, instead of stopping there",
    )
    options = vars(parser.parse_args(argv))
    if options["workers"] < 1:
        parser.error(f"--workers must be at least 1, got {options['workers']}")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    try:
        name, stores = preprocess(**options)
    except (OSError, ValueError) as error:  # EventFormatError is a ValueError
        logger.error("error: %s", error)
        sys.exit(1)
    skipped = {part: list(store.skipped.values()) for part, store in stores.items()}
    report = options["out"] / f"skipped-{name}.json"
    write_text_atomically(report, json.dumps(skipped, indent=2))
    logger.info("%s, frames in %s\n%s", name, options["out"], table(stores))
    for why in [why for reasons in skipped.values() for why in reasons][:20]:
        logger.info("skipped: %s", why)
    logger.info("%s names all that was skipped", report)


if __name__ == "__main__":
    main()

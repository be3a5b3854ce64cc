"""One table and one picture per perturbation for several tested networks: python -m tools.summary FOLDER.

FOLDER holds a run folder for each network, whose evaluation/ has the results of testing_<dataset>.py.
"""

import argparse
import json
import logging
import sys
from pathlib import Path

from .perturb import PERTURBATIONS
from .plots import plot_curves

logger = logging.getLogger(__name__)


def read_results(folder):
    """{test: {network: results}} of all evaluation/*.json of the runs in `folder`; a test is a file's name."""
    results = {}
    for path in sorted(Path(folder).glob("*/evaluation/*.json")):
        content = json.loads(path.read_text())
        results.setdefault(path.stem, {})[path.parent.parent.name] = content
    return results


def table(results):
    """Accuracy in per cent for each perturbation and strength, a column for each network; as text."""
    networks = sorted({network for by_network in results.values() for network in by_network})
    lines = ["test accuracy, %".ljust(24) + "".join(f"{network:>18}" for network in networks)]
    seen_clean = False
    for test, by_network in results.items():
        points = {
            network: {(point["severity"], point["strength"]): point for point in content["points"]}
            for network, content in by_network.items()
        }
        for severity, strength in dict.fromkeys(key for by_key in points.values() for key in by_key):
            is_clean = severity == 0 and "-k" not in test
            if is_clean and seen_clean:  # every sweep repeats the clean test
                continue
            seen_clean = seen_clean or is_clean
            name = "clean" if is_clean else test if severity == 0 else f"{test} {strength:g}"
            cells = []
            for network in networks:
                point = points.get(network, {}).get((severity, strength))
                text = f"{100 * point['accuracy_mean']:.2f} +- {100 * point['accuracy_std']:.2f}" if point else "-"
                cells.append(f"{text:>18}")
            lines.append(name.ljust(24) + "".join(cells))
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    results = read_results(folder)
    if not results:
        parser.error(f"no results in {folder}/*/evaluation/*.json")
    logger.info("%s", table(results))
    logger.info("(mean and standard deviation over noise draws; test images never trained on)")
    for test, by_network in results.items():
        first = next(iter(by_network.values()))
        if first["perturbation"] == "clean":
            continue
        curves = {network: content["points"] for network, content in by_network.items()}
        path = folder / f"{test}.png"
        plot_curves(path, curves, PERTURBATIONS[first["perturbation"]].unit, first["identity"]["dataset"])
        logger.info("plot: %s", path)
    recordings, rasters = (sorted(folder.glob(f"*/evaluation/{name}.png")) for name in ("recordings", "rasters"))
    for path in recordings[:1] + rasters:  # the recordings are the same for every network
        logger.info("picture: %s", path)


if __name__ == "__main__":
    main()

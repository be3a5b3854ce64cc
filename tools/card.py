"""Write the card of a pretrained network: `python tools/card.py NAME RESULTS.json --data D --licence L --recipe R`.

RESULTS.json, of which there may be several, is what the testing script wrote for pretrained:NAME alone, in any modes:
`python testing_<dataset>.py --compare noisy=pretrained:NAME noiseless=pretrained:NAME@noiseless
mean_field=pretrained:NAME@mean_field --uncertainty --efficiency --attack_preset quick --perturbation all`.
The card is pretrained/NAME.json; `python docs/quote.py` makes the tables of all cards.
"""

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file: Python would look for modules in tools/
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from scipy.stats import binomtest

from models import ArgumentError, load_pretrained
from models.pretrained import FOLDER, pretrained_path
from tools.errors import UserError
from tools.io.files import write_text_atomically

logger = logging.getLogger(__name__)
CLEAN = "clean"


def card(name: str, results: list[dict[str, Any]], **texts: str) -> dict[str, Any]:
    """What there is to know of a network, in plain data; `texts` are its data, licence and recipe.

    Args:
        results: contents of results.json; of what several have in the same mode, the last one counts.

    Raises:
        UserError: if the results are not those of the network alone.
    """
    path = pretrained_path(name)
    snapshots = [one for document in results for kind in document["kinds"].values() for one in kind]
    if wrong := {one["identity"]["snapshot"] for one in snapshots if Path(one["identity"]["snapshot"]) != path}:
        raise UserError(f"the results are of {', '.join(sorted(wrong))}, not of {path} alone")
    by_mode: dict[str, dict[str, Any]] = {}
    for one in snapshots:
        by_mode.setdefault(one["identity"]["inference"], {}).update(one)
    net, first = load_pretrained(path), by_mode["noisy"]
    tested = first["identity"]["test_images"]
    return dict(
        name=name,
        **texts,
        dataset=first["identity"]["dataset"],
        training_seed=first["identity"]["training_seed"],
        machine=results[-1]["machine"],
        commands=[_without_out(document["command"]) for document in results],
        network=net.about,
        weights=sum(value.numel() for value in net.parameters()),
        megabytes=round(path.stat().st_size / 1e6, 2),
        test_samples=tested,
        accuracy={mode: _accuracy(one["perturbations"][CLEAN]["points"][0], tested) for mode, one in by_mode.items()},
        perturbations={mode: _perturbations(one["perturbations"]) for mode, one in by_mode.items()},
        attacks={mode: _attacks(one["attacks"]) for mode, one in by_mode.items() if "attacks" in one},
        calibration=_calibration(first["uncertainty"]["curve"]) if "uncertainty" in first else {},
        energy_nj=first.get("efficiency", {}).get("energy_nj"),
        relu_energy_nj=first.get("efficiency", {}).get("relu_energy_nj"),
    )


def _without_out(command: list[str]) -> str:
    """A command as it is typed, without the folder of its results, which is a matter of the machine."""
    if "--out" in command:
        at = command.index("--out")
        command = command[:at] + command[at + 2 :]
    return " ".join(["python", *command])


def _accuracy(point: dict[str, Any], tested: int) -> dict[str, float]:
    """The mean over draws, with the interval of Wilson over samples of the same kind (95 %)."""
    mean = point["accuracy_mean"]
    interval = binomtest(round(mean * tested), tested).proportion_ci(method="wilson")
    return dict(mean=mean, low=interval.low, high=interval.high)


def _perturbations(found: dict[str, Any]) -> dict[str, dict[str, float]]:
    """{perturbation: {strength: accuracy}}."""
    curves: dict[str, dict[str, float]] = {}
    for name, one in found.items():
        for point in one["points"]:
            if name != CLEAN and point["severity"] != 0:  # 0 is clean, too
                curves.setdefault(name, {})[f"{point['strength']:.4g}"] = point["accuracy_mean"]
    return curves


def _attacks(report: dict[str, Any]) -> dict[str, Any]:
    """The accuracy that all attacks leave, {norm: {radius: accuracy}} from radius 0, and whether to believe it."""
    curves: dict[str, dict[str, float]] = {}
    for row in report["attacks"]:
        if row["attack"] == "all":
            of_norm = curves.setdefault(row["norm"], {"0": report["clean"]["accuracy"]})
            of_norm[f"{row['eps']:.4g}"] = row["accuracy"]
    kept = {name: report[name] for name in ("preset", "images", "reliable", "half_radii")}
    return {**kept, "curves": curves}


def _calibration(curve: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Scores of single and of most averaged draws."""
    names = ("accuracy", "nll", "calibration_error")
    return {str(point["draws"]): {name: point[name] for name in names} for point in (curve[0], curve[-1])}


def _rounded(value: Any) -> Any:
    """Numbers with as many digits as anybody reads."""
    if isinstance(value, dict):
        return {name: _rounded(one) for name, one in value.items()}
    return float(f"{value:.5g}") if isinstance(value, float) else value


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", metavar="NAME", help="of pretrained/NAME.pth")
    parser.add_argument("results", type=Path, nargs="+", metavar="RESULTS.json", help="of the testing script")
    parser.add_argument("--data", required=True, help="what it was trained and tested on, in words")
    parser.add_argument("--licence", required=True, help="of these data")
    parser.add_argument("--recipe", required=True, help="the command that trained it")
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    texts = dict(data=options.data, licence=options.licence, recipe=options.recipe)
    out = FOLDER / f"{options.name}.json"
    try:
        content = _rounded(card(options.name, [json.loads(path.read_text()) for path in options.results], **texts))
        write_text_atomically(out, json.dumps(content, indent=1) + "\n")
    except (ArgumentError, OSError, UserError) as error:
        logger.error("error: %s", error)
        sys.exit(1)
    logger.info("%s", out)


if __name__ == "__main__":
    main()

"""The conditions under which a network is tested: which perturbations, how strong."""

import dataclasses
from collections.abc import Iterable

from tools.config.evaluate import EvaluationConfig
from tools.errors import UserError
from tools.perturb import PERTURBATIONS, applicable

SEVERITIES = (1, 2, 3, 4, 5)
CLEAN = "clean"
MAX_STRENGTHS = 1000  # of a --range


@dataclasses.dataclass(frozen=True)
class Condition:
    """What a network is tested under."""

    name: str  # of a perturbation or corruption, or "clean"
    severity: int | None  # 0 where nothing is changed, 1 to 5, or None for a strength chosen by hand
    strength: float | None  # None where nothing is changed and no strength says so

    @property
    def is_clean(self) -> bool:
        return self.severity == 0


def conditions(config: EvaluationConfig, has_pixels: bool, corrupted: Iterable[str] = ()) -> dict[str, list[Condition]]:
    """{"clean": [one], name of a perturbation or corruption: its conditions}, as a configuration asks for them.

    Args:
        has_pixels: whether the data set has pixels; it has events otherwise.
        corrupted: names of the corruptions of a folder, each at all severities.

    Raises:
        UserError: for perturbations that do not apply to the data set, or strengths out of range.
    """
    if (config.range or config.severity) and not config.perturbation:
        raise UserError(f"--{'range' if config.range else 'severity'} needs --perturbation")
    if config.range and config.severity:
        raise UserError("--range and --severity are two ways to say how strong; give one")
    if config.range and "all" in config.perturbation:
        raise UserError("--range has one unit, the perturbations of all have many: give --severity")
    if config.range and config.right < config.left:
        raise UserError(f"--right ({config.right}) must not be below --left ({config.left})")
    if config.range and not (config.right - config.left) / config.step + 1e-6 < MAX_STRENGTHS:
        raise UserError(f"--range has more than {MAX_STRENGTHS} strengths; choose a larger --step")
    possible, names, severities = applicable(has_pixels), config.perturbation, config.severity
    if "all" in names:
        named = [name for name in names if name != "all"]  # "all" has no attack, but one may be asked for beside it
        names = [name for name in possible if PERTURBATIONS[name].where != "attack"] + named
        severities = severities or SEVERITIES
    for name in names:
        if name not in possible:
            needs = "events" if PERTURBATIONS[name].where == "events" else "pixels"
            raise UserError(
                f"{name} perturbs {needs}, which this data set does not have; choose from {', '.join(possible)}"
            )
    if clashing := {CLEAN, *PERTURBATIONS} & set(corrupted):
        raise UserError(f"a file of --corruptions has the name of another test: {', '.join(sorted(clashing))}")
    found = {CLEAN: [Condition(CLEAN, 0, 0.0)]}
    for name in names:
        found[name] = _of_perturbation(name, config, severities)
    for name in corrupted:
        found[name] = [Condition(name, severity, severity) for severity in (0, *SEVERITIES)]
    return found


def unit(name: str) -> str:
    """What the strength of a perturbation, or of a corruption from a folder, is."""
    return PERTURBATIONS[name].unit if name in PERTURBATIONS else "severity"


def _of_perturbation(name: str, config: EvaluationConfig, severities: Iterable[int]) -> list[Condition]:
    perturbation = PERTURBATIONS[name]
    clean = Condition(name, 0, perturbation.neutral)
    if severities:
        return [clean, *(Condition(name, severity, perturbation.severities[severity - 1]) for severity in severities)]
    strengths, found = [perturbation.neutral, getattr(config, perturbation.flag)], []
    if config.range:
        count = int((config.right - config.left) / config.step + 1e-6) + 1
        strengths = [round(config.left + index * config.step, 10) for index in range(count)]
    for strength in dict.fromkeys(strengths):
        if strength == perturbation.neutral:
            found.append(clean)
        elif perturbation.lowest <= strength <= perturbation.highest:
            found.append(Condition(name, None, strength))
        else:
            allowed = f"at least {perturbation.lowest:g} and at most {perturbation.highest:g}"
            raise UserError(f"the strength of {name} ({perturbation.unit}) must be {allowed}, got {strength:g}")
    return found

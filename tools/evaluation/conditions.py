"""The conditions under which a network is evaluated: perturbations and their strengths."""

import dataclasses
from collections.abc import Iterable

from tools.config.evaluate import EvaluationConfig
from tools.data.corruptions import SEVERITIES
from tools.errors import UserError
from tools.perturb import PERTURBATIONS, SETS, applicable

CLEAN = "clean"
MAX_STRENGTHS = 1000  # in a --range


@dataclasses.dataclass(frozen=True)
class Condition:
    """A perturbation or corruption with its strength, or "clean"."""

    name: str
    severity: int | None  # 1 to 5; 0: nothing is changed; None: the user gave the strength
    strength: float | None  # None: nothing is changed, and the perturbation has no neutral strength

    @property
    def is_clean(self) -> bool:
        return self.severity == 0


def conditions(
    config: EvaluationConfig, has_pixels: bool, corrupted: Iterable[str] = (), has_neurons: bool = True
) -> dict[str, list[Condition]]:
    """The conditions that a configuration asks for, by the name of the perturbation or corruption; "clean" first.

    Args:
        has_pixels: whether the data set has pixels, or else events.
        corrupted: names of the corruptions in a folder, each tested at all severities.
        has_neurons: whether the network has spiking neurons.

    Raises:
        UserError: for perturbations that do not apply to data set, network or mode, or strengths out of range.
    """
    if (config.range or config.severity) and not config.perturbation:
        raise UserError(f"--{'range' if config.range else 'severity'} needs --perturbation")
    if config.range and config.severity:
        raise UserError("--range and --severity both set the strength; give only one")
    if config.range and (several := [name for name in config.perturbation if name in SETS]):
        raise UserError(f"--range sweeps one unit, but those of `{several[0]}` have different ones: use --severity")
    if config.range and config.right < config.left:
        raise UserError(f"--right ({config.right}) must not be below --left ({config.left})")
    if config.range and not (config.right - config.left) / config.step + 1e-6 < MAX_STRENGTHS:
        raise UserError(f"--range has more than {MAX_STRENGTHS} strengths; choose a larger --step")
    possible = applicable(has_pixels, config.inference != "mean_field", has_neurons)
    names, severities = [], config.severity
    for name in config.perturbation:
        if name in SETS:
            names += [one for one in possible if one in SETS[name]]
            severities = severities or SEVERITIES
        else:
            names.append(name)
    for name in names:
        if name not in possible:
            where, lacks = PERTURBATIONS[name].where, "this data set"
            if where == "hidden":
                lacks = "the mean field" if has_neurons else f"the network in {config.snapshot}"
            needs = {"events": "events", "hidden": "spikes"}.get(where, "pixels")
            raise UserError(f"{name} perturbs {needs}, which {lacks} does not have; choose from {', '.join(possible)}")
    if clashing := {CLEAN, *PERTURBATIONS} & set(corrupted):
        raise UserError(f"a file of --corruptions has the name of another condition: {', '.join(sorted(clashing))}")
    found = {CLEAN: [Condition(CLEAN, 0, 0.0)]}
    for name in names:
        found[name] = _of_perturbation(name, config, severities)
    for name in corrupted:
        found[name] = [Condition(name, severity, severity) for severity in (0, *SEVERITIES)]
    return found


def unit(name: str) -> str:
    """The meaning of the strength of a perturbation, or of a corruption from a folder."""
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

"""The conditions under which a network is tested: which perturbations, how strong."""

import dataclasses

from tools.perturb import PERTURBATIONS, applicable

SEVERITIES = (1, 2, 3, 4, 5)
CLEAN = "clean"


@dataclasses.dataclass(frozen=True)
class Condition:
    """One test.

    Args:
        name: of a perturbation, or "clean".
        severity: 0 where nothing is changed, 1 to 5, or None where the strength was chosen by hand.
        strength: of the perturbation; None where nothing is changed and no strength says so.
    """

    name: str
    severity: int
    strength: float

    @property
    def is_clean(self):
        return self.severity == 0


def conditions(config, has_pixels, corruptions=()):
    """The tests that a configuration asks for.

    Args:
        config: `EvaluationConfig`.
        has_pixels: whether the data set has pixels; it has events otherwise.
        corruptions: names of the corruptions of a folder, each at all severities.

    Returns:
        {"clean": [one], name of a perturbation or corruption: list of `Condition`}.

    Raises:
        ValueError: for perturbations of what the data set has not, or strengths out of range.
    """
    if config.range and not config.perturbation:
        raise ValueError("--range needs to know of what: give --perturbation")
    if config.range and config.severity:
        raise ValueError("--range and --severity are two ways to say how strong; give one")
    if config.severity and not config.perturbation:
        raise ValueError("--severity needs to know of what: give --perturbation")
    if "all" in config.perturbation and config.range:
        raise ValueError("--range is of one unit, the perturbations of all have many: give --severity")
    names = list(dict.fromkeys(config.perturbation))
    severities = config.severity
    if "all" in names:
        named = [name for name in names if name != "all"]  # an attack is not of all, but may be asked for beside
        others = [name for name in applicable(has_pixels) if PERTURBATIONS[name].where != "attack"]
        names, severities = list(dict.fromkeys([*others, *named])), severities or SEVERITIES
    for name in names:
        if name not in applicable(has_pixels):
            wanted = "events" if PERTURBATIONS[name].where == "events" else "pixels"
            raise ValueError(f"{name} perturbs {wanted}, which this data set has not")
    if clashing := {CLEAN, *PERTURBATIONS} & set(corruptions):
        raise ValueError(f"a file of --corruptions has the name of another test: {', '.join(sorted(clashing))}")
    return {
        CLEAN: [Condition(CLEAN, 0, 0.0)],
        **{name: _of(name, config, severities) for name in names},
        **{name: [Condition(name, severity, severity) for severity in (0, *SEVERITIES)] for name in corruptions},
    }


def unit(name):
    """What the strength of a perturbation, or of a corruption from a folder, is."""
    return PERTURBATIONS[name].unit if name in PERTURBATIONS else "severity"


def is_random(name):
    """Whether a perturbation draws; a corruption from a folder was drawn by who made it."""
    return name in PERTURBATIONS and PERTURBATIONS[name].is_random


def _of(name, config, severities):
    perturbation = PERTURBATIONS[name]
    clean = Condition(name, 0, perturbation.neutral)
    if severities:
        return [clean, *(Condition(name, severity, perturbation.severities[severity - 1]) for severity in severities)]
    strengths = _sweep(config) if config.range else [perturbation.neutral, getattr(config, perturbation.flag)]
    return [
        clean if strength == perturbation.neutral else Condition(name, None, _in_range(strength, name))
        for strength in dict.fromkeys(strengths)
    ]


def _in_range(strength, name):
    perturbation = PERTURBATIONS[name]
    if not perturbation.lowest <= strength <= perturbation.highest:
        allowed = f"at least {perturbation.lowest:g} and at most {perturbation.highest:g}"
        raise ValueError(f"the strength of {name} is a {perturbation.unit}: {allowed}, got {strength:g}")
    return strength


def _sweep(config):
    if config.right < config.left:
        raise ValueError(f"--right ({config.right}) must not be below --left ({config.left})")
    count = int((config.right - config.left) / config.step + 1e-6) + 1
    return [round(config.left + index * config.step, 10) for index in range(count)]

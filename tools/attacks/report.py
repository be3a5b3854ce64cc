"""The results of a campaign."""

import dataclasses
import itertools
from typing import Any

from .gates import Gate
from .victim import Score

ALL = "all"  # the white box, on all images; rivals attack a sample


@dataclasses.dataclass(frozen=True)
class AttackResult:
    """The score of a network under one attack."""

    norm: str
    eps: float  # radius in pixel units
    attack: str
    images: int  # number of attacked images
    score: Score


@dataclasses.dataclass(frozen=True)
class AttackReport:
    """The result of a campaign: scores without attack and under each, and gates that say whether to believe them."""

    preset: str  # its name
    settings: dict[str, Any]  # its values
    images: int  # number of attacked images
    clean: Score
    paths: list[str]  # the gradient paths that were climbed, the most harmful first
    attacks: list[AttackResult]
    gates: list[Gate]
    label: str = "upper bound on robustness"

    @property
    def reliable(self) -> bool:
        """Whether all gates passed."""
        return all(gate.passed for gate in self.gates)

    def curve(self, norm: str) -> dict[float, float]:
        """{radius: accuracy under all attacks}, from radius 0."""
        found = {0.0: self.clean.accuracy}
        found.update({row.eps: row.score.accuracy for row in self.attacks if (row.norm, row.attack) == (norm, ALL)})
        return dict(sorted(found.items()))

    @property
    def half_radii(self) -> dict[str, float | None]:
        """{norm: the radius that leaves an accuracy of 50 %, by interpolation; None if it is not among those tried}.

        A single radius has no curve.
        """
        curves = {norm: self.curve(norm) for norm in dict.fromkeys(row.norm for row in self.attacks)}
        return {norm: _half(curve) for norm, curve in curves.items() if len(curve) > 2}

    def as_json(self) -> dict[str, Any]:
        """As plain data, with the fields of its score in the row of an attack."""
        content = {"label": self.label, **dataclasses.asdict(self)}
        content |= {"half_radii": self.half_radii, "reliable": self.reliable}
        for row in content["attacks"]:
            row.update(row.pop("score"))
        return content

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "AttackReport":
        """The inverse of `as_json`."""
        attacks = []
        for row in content["attacks"]:
            about = {name: row.pop(name) for name in ("norm", "eps", "attack", "images")}
            attacks.append(AttackResult(**about, score=Score(**row)))
        return cls(
            preset=content["preset"],
            settings=content["settings"],
            images=content["images"],
            clean=Score(**content["clean"]),
            paths=content["paths"],
            attacks=attacks,
            gates=[Gate(**gate) for gate in content["gates"]],
        )


def _half(curve: dict[float, float]) -> float | None:
    for (low, above), (high, below) in itertools.pairwise(curve.items()):
        if above >= 0.5 > below:
            return low + (high - low) * (above - 0.5) / (above - below)
    return None

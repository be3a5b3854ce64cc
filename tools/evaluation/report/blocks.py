"""What a report page is made of."""

import base64
import dataclasses
import io
from typing import TYPE_CHECKING, Any

from tools.evaluation.results import Difference, GroupAccuracy, Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass
class Table:
    """A table; with a title it is folded away, behind the title and the verdict "passed" or "failed"."""

    head: list[str]
    rows: list[list[Any]]
    title: str = ""
    verdict: str = ""


@dataclasses.dataclass
class Section:
    """A heading, and under it blocks: small print, lists of sentences, tables and pictures."""

    heading: str
    blocks: "list[str | list[str] | Table | Figure]"


def missing(heading: str, flag: str) -> Section:
    """The section of what was not measured, which says how to get it."""
    return Section(heading, [f"Not part of this run: {flag} measures it."])


def png(figure: "Figure") -> str:
    """A figure as a PNG file in base 64."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return base64.b64encode(buffer.getvalue()).decode()


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}"


def count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def or_dash(value: Any) -> Any:
    return "-" if value is None else value


def bounds(low: float | None, high: float | None) -> str:
    """An interval in per cent, or a dash."""
    return "-" if low is None else f"[{100 * low:.1f}, {100 * high:.1f}]"


def interval(one: GroupAccuracy | Difference) -> str:
    """Mean and interval, if there is one, in per cent."""
    mean = one.mean if isinstance(one, GroupAccuracy) else one.difference
    return f"{100 * mean:.2f}" + ("" if one.low is None else f" {bounds(one.low, one.high)}")


def differences(row: Row) -> list[str]:
    """Cells of a row's differences: over samples, over seeds, and p if the row is a mean."""
    cells = []
    for one in row.differences:
        cells += [interval(one), bounds(one.seeds["low"], one.seeds["high"])]
        if row.is_mean:
            cells.append("-" if one.seeds["low"] is None else f"{one.p_holm:.3f}")
    return cells

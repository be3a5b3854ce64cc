"""Make the pages with numbers, docs/<page>.md, from docs/src/<page>.md and the results.

    python docs/quote.py        # after changing a source, or copying new results to docs/results/ or pretrained/

A source is a Jinja2 template, in which each file of docs/results has its own name, such as
`{{ theory.firing.laws.Gaussian.escape.p|f2 }}`. A row of a list is found by its values, as in
`{{ rows(law="Gaussian", std=0.3).bias|f2 }}`. `|f2` is a number with two decimals, `|e0` one such as 6e-16, `|i2` a
mean with its interval, 0.12 (0.10 to 0.14), and `|f1(x=100)` the number times 100. What is missing is an error.
<study>.json has results of `--quick`, <study>_full.json those without it.
"""

import json
from functools import partial
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

DOCS = Path(__file__).resolve().parent
BEGIN, END = "<!-- pretrained: made by `python docs/quote.py` from the cards -->", "<!-- end -->"  # in the README
HEAD = "<!-- Made by `python docs/quote.py` from docs/src/{}: change that file, not this one. -->\n\n"


class Rows(list):
    """A list of a JSON file, which may be called with values: the row that has them, or the `Rows` if several do."""

    def __call__(self, **values):
        rows = Rows(row for row in self if all(row[name] == value for name, value in values.items()))
        if not rows:
            raise LookupError(f"no row has {values}")
        return rows if len(rows) > 1 else rows[0]


def _with_rows(content):
    if isinstance(content, dict):
        return {key: _with_rows(value) for key, value in content.items()}
    return Rows(map(_with_rows, content)) if isinstance(content, list) else content


def _number(value, form: str, x: float = 1) -> str:
    return f"{value * x:{form}}"


def _interval(value, form: str, x: float = 1) -> str:
    mean, low, high = (_number(value[name], form, x) for name in ("mean", "low", "high"))
    return f"{mean} ({low} to {high})"


def rendered(sources: Path, results: Path, cards: Path) -> dict[str, str]:
    """{file name: text} of the pages that are made from the sources in a folder.

    Args:
        results: the folder of the studies' results.
        cards: that of the cards of pretrained networks, which sources have as `cards`, by name.
    """
    environment = Environment(
        loader=FileSystemLoader(sources),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    for digits in range(6):
        environment.filters[f"f{digits}"] = partial(_number, form=f".{digits}f")
        environment.filters[f"e{digits}"] = partial(_number, form=f".{digits}e")
        environment.filters[f"i{digits}"] = partial(_interval, form=f".{digits}f")
    numbers = {"cards": {path.stem: json.loads(path.read_text()) for path in sorted(cards.glob("*.json"))}}
    numbers |= {path.stem: _with_rows(json.loads(path.read_text())["experiments"]) for path in results.glob("*.json")}
    names = environment.list_templates(extensions=["md"])
    return {name: HEAD.format(name) + environment.get_template(name).render(numbers) for name in names}


def with_cards(readme: str, cards: Path) -> str:
    """The text of the README with the table of the pretrained networks."""
    rows = ["| network | data | test accuracy, % [95 %] | radius of attacks that leaves 50 % |", "|---|---|---|---|"]
    for path in sorted(cards.glob("*.json")):
        card = json.loads(path.read_text())
        mean, low, high = (f"{100 * card['accuracy']['noisy'][name]:.1f}" for name in ("mean", "low", "high"))
        radii = card["attacks"].get("noisy", {}).get("half_radii", {})
        shown = ", ".join(f"{norm.capitalize()} {eps:.2f}" for norm, eps in radii.items() if eps) or "-"
        rows.append(f"| `{card['name']}` | {card['dataset']} | {mean} [{low}, {high}] | {shown} |")
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    return "".join([before, begin, "\n", *(f"{row}\n" for row in rows), end, after])


if __name__ == "__main__":
    readme, cards = DOCS.parent / "README.md", DOCS.parent / "pretrained"
    readme.write_text(with_cards(readme.read_text(), cards))
    for name, text in rendered(DOCS / "src", DOCS / "results", cards).items():
        (DOCS / name).write_text(text)

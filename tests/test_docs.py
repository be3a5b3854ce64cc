"""The numbers of the pages are those of the results beside them, and the pictures exist."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from docs.quote import look_up, quoted, results_of
from tools.attacks.campaign import PRESETS

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGES = sorted(page.name for page in DOCS.glob("*.md") if "<!-- " in page.read_text())


@pytest.mark.parametrize("page", PAGES)
def test_the_numbers_of_a_page_are_those_of_its_results(repository, page):
    text, results = (repository / "docs" / page).read_text(), results_of(repository / "docs" / "results")
    assert quoted(text, results) == text
    wrong, spoilt = re.subn(r"\d(?=<!-- )", lambda digit: str((int(digit[0]) + 5) % 10), text)
    assert spoilt > 0 and spoilt == text.count("<!--")
    assert quoted(wrong, results) == text  # so each mark is understood


def test_results_are_of_the_commands_that_the_pages_give(repository):
    pages = "".join(page.read_text() for page in (repository / "docs").glob("*.md"))
    paths = list((repository / "docs" / "results").glob("*.json"))
    assert {f"{path.stem.removesuffix('_full')}.md" for path in paths} == set(PAGES)
    for path in paths:
        content = json.loads(path.read_text())
        study = content["study"]
        assert path.stem == (study if content["quick"] else f"{study}_full") and content["seed"] == 0
        assert f"main_{study}.py {'--quick ' if content['quick'] else ''}--seed 0" in pages


@pytest.mark.parametrize(
    ("shown", "value", "quotes"),
    [
        ("0.12", 0.1249, "0.12"),
        ("0.12", 0.1251, "0.13"),
        ("-3", -3.6, "-4"),
        ("5e-16", 6.2e-16, "6e-16"),
    ],
)
def test_numbers_are_quoted_with_the_digits_that_they_have(shown, value, quotes):
    assert quoted(f"a {shown}<!-- s x -->", {"s": {"x": value}}) == f"a {quotes}<!-- s x -->"


def test_rows_are_found_by_their_values():
    rows = {"rows": [{"law": "Gaussian", "std": 0.1, "bias": 1}, {"law": "Gaussian", "std": 0.3, "bias": 2}]}
    assert look_up(rows, "rows/law=Gaussian,std=0.3/bias") == 2
    assert quoted("20<!-- s rows/std=0.1/bias x100 -->", {"s": rows}) == "100<!-- s rows/std=0.1/bias x100 -->"
    for ambiguous in ("rows/law=Gaussian/bias", "rows/std=0.2/bias", "nothing"):
        with pytest.raises(KeyError):
            look_up(rows, ambiguous)


def test_the_presets_of_attacks_are_those_of_the_page(repository):
    rows = re.findall(
        r"^\| `(\w+)` \| ([\d,| ]+) \|$", (repository / "docs" / "evaluation.md").read_text(), re.MULTILINE
    )
    on_page = {name: [int(cell.replace(",", "")) for cell in cells.split("|")] for name, cells in rows}
    assert on_page == {name: list(dataclasses.asdict(preset).values()) for name, preset in PRESETS.items()}


def test_pictures_and_pages_that_are_linked_exist(repository):
    docs = repository / "docs"
    for page in docs.glob("*.md"):
        for path in re.findall(r'(?:src="|\]\()([^":)#]+)["#)]', page.read_text()):
            assert (docs / path).exists(), f"{page.name}: {path}"

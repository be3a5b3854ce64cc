"""The numbers of the pages are those of the results beside them, and the pictures exist."""

import dataclasses
import json
import re

import matplotlib
import pytest
from jinja2 import UndefinedError

from docs import pictures
from docs.quote import rendered, with_cards
from tools.attacks.campaign import PRESETS
from tools.perturb import PERTURBATIONS


def test_pages_are_made_from_their_sources(repository):
    docs = repository / "docs"
    for name, text in rendered(docs / "src", docs / "results", repository / "pretrained").items():
        assert (docs / name).read_text() == text, f"docs/{name} is out of date: python docs/quote.py"


def test_the_table_of_the_readme_is_made_from_the_cards(repository):
    text = (repository / "README.md").read_text()
    assert with_cards(text, repository / "pretrained") == text, "README.md is out of date: python docs/quote.py"
    assert "| `mnist5k-nsnn` | mnist5k |" in text


def page(tmp_path, source, experiments):
    """What a source with the results `study` becomes, below its head."""
    for name, text in {"page.md": source, "study.json": json.dumps({"experiments": experiments})}.items():
        (tmp_path / name).write_text(text)
    [(name, text)] = rendered(tmp_path, tmp_path, tmp_path / "cards").items()
    head, _, body = text.partition("\n\n")
    assert name == "page.md" and head.startswith("<!--") and head.endswith("-->") and "docs/src/page.md" in head
    return body


def test_results_are_of_the_commands_that_the_pages_give(repository):
    pages = "".join(page.read_text() for page in (repository / "docs").glob("*.md"))
    paths = list((repository / "docs" / "results").glob("*.json"))
    sources = {path.name for path in (repository / "docs" / "src").iterdir()} - {"pretrained.md", "results.md"}
    assert {f"{path.stem.removesuffix('_full')}.md" for path in paths} == sources
    for path in paths:
        content = json.loads(path.read_text())
        study = content["study"]
        assert path.stem == (study if content["quick"] else f"{study}_full") and content["seed"] == 0
        assert f"main_{study}.py {'--quick ' if content['quick'] else ''}--seed 0" in pages


@pytest.mark.parametrize(
    ("value", "expression", "shown"),
    [
        (0.1249, "study.x|f2", "0.12"),
        (0.1251, "study.x|f2", "0.13"),
        (-3.6, "study.x|f0", "-4"),
        (6.2e-16, "study.x|e0", "6e-16"),
        (0.074, "study.x|f0(x=100)", "7"),
        ({"mean": 0.2, "low": -0.14, "high": 1}, "study.x|i1", "0.2 (-0.1 to 1.0)"),
        ({"mean": 0.2, "low": -0.14, "high": 1}, "study.x|i0(x=100)", "20 (-14 to 100)"),
    ],
)
def test_numbers_have_the_digits_and_the_unit_that_a_source_gives(tmp_path, value, expression, shown):
    assert page(tmp_path, f"a {{{{ {expression} }}}}\n", {"x": value}) == f"a {shown}\n"


def test_rows_are_found_by_their_values(tmp_path):
    rows = [{"law": "Gaussian", "std": 0.1, "bias": 1}, {"law": "Gaussian", "std": 0.3, "bias": 2}]

    def shown(expression):
        return page(tmp_path, f"{{{{ {expression} }}}}", {"rows": rows})

    assert shown('study.rows(law="Gaussian", std=0.3).bias') == "2"
    assert shown('study.rows(law="Gaussian")(std=0.3).bias') == "2"
    assert shown('study.rows(law="Gaussian")|sum(attribute="bias")') == "3"
    for wrong in ("study.rows(std=0.2).bias", 'study.rows(law="Gaussian").bias', "study.nothing", "studies.rows"):
        with pytest.raises((LookupError, UndefinedError)):
            shown(wrong)


def test_the_presets_of_attacks_are_those_of_the_page(repository):
    rows = re.findall(
        r"^\| `(\w+)` \| ([\d,| ]+) \|$", (repository / "docs" / "evaluation.md").read_text(), re.MULTILINE
    )
    on_page = {name: [int(cell.replace(",", "")) for cell in cells.split("|")] for name, cells in rows}
    of_presets = {}
    for name, preset in PRESETS.items():
        numbers = dataclasses.asdict(preset)
        assert numbers.pop("is_narrow") == (name == "glance")  # as the page says
        of_presets[name] = list(numbers.values())
    assert on_page == of_presets


def test_the_page_of_commands_has_every_perturbation_with_its_strengths(repository):
    rows = re.findall(
        r"^\| `(\w+)` \| `--(\w+)` \| (.*) \| ([\d., ]+) \|$", (repository / "docs/commands.md").read_text(), re.M
    )
    shown = {
        name: (flag, unit, *(float(one.replace(",", "")) for one in strengths.split(", ")))
        for name, flag, unit, strengths in rows
    }
    assert shown.keys() == PERTURBATIONS.keys()
    for name, one in PERTURBATIONS.items():
        assert shown[name] == (one.flag, one.unit, *(pytest.approx(value, rel=0.01) for value in one.severities)), name


def test_pictures_and_pages_that_are_linked_exist(repository):
    pages = [*(repository / "docs").glob("**/*.md"), repository / "README.md", repository / "CONTRIBUTING.md"]
    for page in pages:
        folder = repository / "docs" if page.parent.name == "src" else page.parent  # a source becomes a page there
        for path in re.findall(r'(?:src="|\]\()([^":)#]+)["#)]', page.read_text()):
            assert (folder / path).exists(), f"{page.name}: {path}"


def test_rows_of_tables_fit_a_line(repository):
    pages = {*(repository / "docs").glob("**/*.md"), repository / "README.md", repository / "CONTRIBUTING.md"}
    sources = {*(repository / "docs" / "src").iterdir()}  # longer than what is made of them
    rows = [row for page in pages - sources for row in page.read_text().splitlines() if row.startswith("|")]
    assert len(rows) > 200 and not [row for row in rows if len(row) > 160]


def test_each_picture_is_shown_and_small(repository):
    pages = [*(repository / "docs").glob("*.md"), repository / "README.md"]
    shown = {name for page in pages for name in re.findall(r'pictures/([\w.]+)"', page.read_text())}
    files = {path.name: path.stat().st_size for path in (repository / "docs" / "pictures").iterdir()}
    assert shown == set(files)
    assert files["report.png"] < 150_000 and max(files.values()) < 1_000_000


@pytest.mark.slow
def test_pictures_are_drawn_from_the_results(repository, tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "FOLDER", tmp_path)
    before = dict(matplotlib.rcParams)
    for draw in pictures.PICTURES.values():
        draw()
    assert matplotlib.rcParams == before
    drawn = {path.name for path in tmp_path.iterdir()}
    of_runs = {"motions.png", "report.png", "theory_firing.png"}
    of_runs |= {"regularisation_learnt_scales.png", "regularisation_learnt_scales_full.png"}
    assert drawn == {path.name for path in (repository / "docs" / "pictures").iterdir()} - of_runs

"""The site is built without a warning, its links lead somewhere, and its pages load nothing from elsewhere."""

import html.parser
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parent.parent
FROM_ELSEWHERE = re.compile(r"(?:https?:)?//", re.IGNORECASE)


class Page(html.parser.HTMLParser):
    """The places in a page that links may name, where its own links lead, and what a browser loads to show it."""

    def __init__(self, text):
        super().__init__()
        self.places, self.links, self.loads = set(), set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.places |= {given["id"]} if "id" in given else set()
        if tag == "a":
            self.links.add(given.get("href", ""))
        elif tag == "link" and given["rel"] not in ("index", "search", "next", "prev"):
            self.loads.add(given["href"])
        elif "src" in given:
            self.loads.add(given["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    for package in ("sphinx", "furo", "myst_nb", "jupytext", "latex2mathml"):
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("site")
    environment = {**os.environ, "PYTHON": sys.executable, "NSNN_REPOSITORY": ROOT.as_uri()}
    # Tutorials, which have a test of their own, are shown without being run: their language is not known then.
    without_tutorials = ["-D", "nb_execution_mode=off", "-D", "suppress_warnings=myst-nb.lexer"]
    subprocess.run(["bash", ROOT / "docs" / "build.sh", folder, *without_tutorials], check=True, env=environment)
    return folder


@pytest.fixture(scope="module")
def pages(site):
    return {path: Page(path.read_text()) for path in site.rglob("*.html")}


def test_no_link_is_broken(site, pages):
    broken, followed = [], 0
    for page, content in pages.items():
        for link in content.links | content.loads:
            url = urlsplit(link)
            if url.scheme in ("", "file"):  # the latter leads to this checkout
                target = (page.parent / unquote(url.path)).resolve() if url.path else page
                place = unquote(url.fragment)
                if not target.exists() or (place and target in pages and place not in pages[target].places):
                    broken.append(f"{page.relative_to(site)}: {link}")
                followed += 1
    assert not broken and followed > 1000


def test_pages_load_nothing_from_elsewhere(site, pages):
    assert len(pages) > 20
    for page, content in pages.items():
        assert content.loads and not [load for load in content.loads if FROM_ELSEWHERE.match(load)], page
    for style in site.rglob("*.css"):
        loads = re.findall(r"(?:url\(|@import)\s*['\"]?([^'\")\s]+)", style.read_text())
        assert not [load for load in loads if FROM_ELSEWHERE.match(load)], style
    assert (site / "theory.html").read_text().count("<math") > 10  # not a script that would load MathJax


def test_pages_have_the_reference_and_can_be_searched(site):
    reference = {path.stem for path in (site / "reference").glob("*.html")}
    assert {"models", "models.interop", "crits", "tools.attacks", "tools.analysis.spike_trains"} <= reference
    assert 'id="models.neurons.NoisyLIF"' in (site / "reference" / "models.html").read_text()
    assert "noisylif" in (site / "searchindex.js").read_text().lower()

"""Write the numbers of results into the pages that quote them.

    python docs/quote.py        # after copying new results to docs/results/

A page marks a number by an invisible comment, as `0.09<!-- theory exactness/median_bias/loss=linear,steps=4/bias -->`:
the name of a file in docs/results, a path in it, and a factor such as x100 if the page uses another unit. The number of
digits stays the same. <study>.json has results of `--quick`, <study>_full.json those without it.
"""

import json
import re
from pathlib import Path

DOCS = Path(__file__).parent
MARK = re.compile(r"([-\d.e+]+)<!-- (\w+) ([^>]+?)(?: x([\d.]+))? -->")


def look_up(content, path: str):
    """The value at a path in the content of a JSON file; KeyError for an absent key, or unless one row matches.

    A path is keys joined by "/"; the key of a list is an index, or `name=value,name=value` for the row with these.
    """
    for key in path.split("/"):
        if isinstance(content, list) and "=" in key:
            wanted = dict(pair.split("=", 1) for pair in re.split(r",(?! )", key))  # values contain ", "
            rows = [row for row in content if all(str(row[name]) == value for name, value in wanted.items())]
            if len(rows) != 1:
                raise KeyError(f"{len(rows)} rows match {key} of {path}")
            content = rows[0]
        else:
            content = content[int(key) if isinstance(content, list) else key]
    return content


def quoted(text: str, results: dict[str, dict]) -> str:
    """A page with each marked number replaced by that in the results, {file: experiments}."""

    def number(match):
        shown, file, path, factor = match.groups()
        digits = len(shown.partition("e")[0].partition(".")[2])
        value = look_up(results[file], path) * float(factor or 1)
        return f"{value:.{digits}{'e' if 'e' in shown else 'f'}}" + match[0][len(shown) :]

    return MARK.sub(number, text)


def results_of(folder: Path) -> dict[str, dict]:
    """{name: experiments} of the JSON files of a folder."""
    return {path.stem: json.loads(path.read_text())["experiments"] for path in folder.glob("*.json")}


if __name__ == "__main__":
    results = results_of(DOCS / "results")
    for page in DOCS.glob("*.md"):
        page.write_text(quoted(page.read_text(), results))

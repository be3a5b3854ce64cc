"""The site: `bash docs/build.sh` makes build/site of the pages here, the README and the docstrings.

Sphinx with MyST, because MkDocs and its theme Material are in maintenance mode since November 2025. The reference
is written to docs/reference, a page for each package, and is not committed.
"""

import importlib
import os
import re
import sys
from pathlib import Path

from docutils.nodes import SkipNode
from latex2mathml.converter import convert
from numpy.typing import ArrayLike
from sphinx.util.typing import stringify_annotation

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path.insert(0, str(ROOT))

project = "NSNN"
html_title = project
html_theme = "furo"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_copyright = False
pygments_dark_style = "monokai"
html_math_renderer = "mathml"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["src", "results", "conf.py", "quote.py", "pictures.py", "__init__.py"]

myst_enable_extensions = ["dollarmath", "html_image"]
myst_heading_anchors = 3
nb_custom_formats = {".py": ["jupytext.reads", {"fmt": "py:percent"}]}
nb_execution_mode = "cache"
nb_execution_cache_path = str(ROOT / "build" / "tutorials")
nb_execution_raise_on_error = True
nb_output_stderr = "remove"  # warnings of libraries, with paths of this machine
nb_execution_timeout = 600  # seconds for each cell

autodoc_inherit_docstrings = False  # those of PyTorch are not ours to show
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_use_type_comments = False  # there are none, and each function would be read for them
add_module_names = False
python_maximum_signature_line_length = 90
default_role = "code"  # `backticks` in docstrings
napoleon_custom_sections = ["Shape"]

# Pages that show a file of the root folder, and the address of all other files: by default, those of this checkout.
SHOWN = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changes.md"}
REPOSITORY = os.environ.get("NSNN_REPOSITORY") or ROOT.as_uri()
myst_url_schemes = {"http": None, "https": None, "mailto": None, "repository": REPOSITORY + "/{{path}}"}
LINK = re.compile(r'(?<=\]\()(?![a-z]+:)[^)#\s]+|(?<=src=")(?![a-z]+:)[^"]+')


def _links(text: str, folder: Path, page: Path) -> str:
    """The text of a page with its links, which are right in the repository, made right on the site."""

    def link(match: re.Match) -> str:
        target = Path(os.path.normpath(folder / match[0]))
        if target.parent == ROOT and target.name in SHOWN:
            target = DOCS / SHOWN[target.name]
        if target.is_relative_to(DOCS) and target.suffix in (".md", ".py", ".png", ".gif", ".svg"):
            return os.path.relpath(target, page.parent)
        return f"repository:{target.relative_to(ROOT)}"

    return LINK.sub(link, text)


def _read_page(app, name: str, source: list[str]) -> None:
    page = Path(app.env.doc2path(name))
    if page.suffix == ".md":
        source[0] = _links(source[0], page.parent, page)
    elif page.suffix == ".py":  # text is in comments
        source[0] = re.sub(r"(?m)^#.*$", lambda line: _links(line[0], page.parent, page), source[0])


def _read_included(app, path: Path, name: str, source: list[str]) -> None:
    source[0] = _links(source[0], (DOCS / path).parent, Path(app.env.doc2path(name)))


def _read_docstring(app, what, name: str, obj, options, lines: list[str]) -> None:
    """`Shape: ...` and `Note: ...` on one line become paragraphs of their own."""
    lines[:] = re.sub(r"(?m)^(Shape|Note): (?=\S)", r"\n**\1:** ", "\n".join(lines)).split("\n")


def _read_signature(app, what, name: str, obj, options, signature: str | None, result: str | None):
    """NumPy's `ArrayLike` by this name, not by all that it stands for."""
    expanded = stringify_annotation(ArrayLike, "smart")
    return signature and signature.replace(expanded, "ArrayLike"), result


def _write_reference(app) -> None:
    folder = DOCS / "reference"
    folder.mkdir(exist_ok=True)
    inits = [init for top in ("models", "crits", "tools") for init in sorted((ROOT / top).rglob("__init__.py"))]
    pages, index = {}, ["Reference\n=========\n", ".. toctree::\n   :hidden:\n\n"]
    for init in inits:
        package = ".".join(init.parent.relative_to(ROOT).parts)
        modules = [path.stem for path in sorted(init.parent.glob("*.py")) if path.stem[:2] != "__"]
        pages[f"{package}.rst"] = "\n".join(
            [
                f"{package}\n{'=' * len(package)}\n",
                f".. automodule:: {package}\n   :members:\n   :ignore-module-all:\n",
                *_names(package),
                *(f"{one}\n{'-' * len(one)}\n\n.. automodule:: {package}.{one}\n   :members:\n" for one in modules),
            ]
        )
        index[1] += f"   {package}\n"
        index.append(f":doc:`{package}`\n   {importlib.import_module(package).__doc__.splitlines()[0]}\n")
    pages["index.rst"] = "\n".join(index)
    for name, text in pages.items():
        page = folder / name
        if not page.exists() or page.read_text() != text:  # else Sphinx need not read it again
            page.write_text(text)


def _names(package: str) -> list[str]:
    """What a package offers, with links to where it is defined."""
    module = importlib.import_module(package)
    named = [(name, getattr(module, name)) for name in getattr(module, "__all__", ())]
    links = [f":py:obj:`{name} <{one.__module__}.{name}>`" for name, one in named if hasattr(one, "__qualname__")]
    return [f"From ``{package}`` itself: {', '.join(links)}.\n"] if links else []


def _equation(translator, node) -> None:
    """MathML, which browsers show without a script."""
    display = "block" if node.tagname == "math_block" else "inline"
    translator.body.append(convert(node.astext(), display=display))
    raise SkipNode


def setup(app) -> dict[str, bool]:
    app.connect("builder-inited", _write_reference)
    app.connect("source-read", _read_page)
    app.connect("include-read", _read_included)
    app.connect("autodoc-process-signature", _read_signature)
    app.connect("autodoc-process-docstring", _read_docstring)
    app.add_html_math_renderer("mathml", (_equation, None), (_equation, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}

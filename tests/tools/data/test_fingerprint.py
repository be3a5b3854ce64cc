"""The hash of code: it changes with what makes the content of a cache, and with nothing else."""

import importlib.util
import shutil
import sys
from pathlib import Path

import pytest

import tools.data.events
from tests.conftest import first_are_fast
from tools.data.events.frames import Framing
from tools.data.events.recordings import Recording
from tools.data.events.store import FrameStore
from tools.data.fingerprint import code_fingerprint

EVENTS = Path(tools.data.events.__file__).parent


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """A copy of the package `tools.data.events` that can be changed: its folder."""
    monkeypatch.syspath_prepend(tmp_path)
    yield Path(shutil.copytree(EVENTS, tmp_path / "copied_events", ignore=shutil.ignore_patterns("__pycache__")))
    sys.modules.pop("copied_events", None)
    importlib.invalidate_caches()


def fingerprint(**options):
    code_fingerprint.cache_clear()
    return code_fingerprint("copied_events.store", **options)


MODULES = [
    "__init__", "reading", "times", "formats", "arrays", "hdf5", "prophesee", "text", "spikes", "frames", "recordings",
    "store",
]  # fmt: skip


@pytest.mark.parametrize("name", first_are_fast(MODULES, 3))
def test_any_change_of_what_reads_frames_or_stores_changes_it(copied, name):
    before = fingerprint()
    path = copied / f"{name}.py"
    path.write_text(path.read_text() + "\nCHANGED = 1\n")
    assert fingerprint() != before


def test_comments_layout_and_unrelated_modules_do_not_change_it(copied):
    before = fingerprint()
    (copied / "frames.py").write_text("# a comment\n\n" + (copied / "frames.py").read_text())
    for name in ("augment", "pictures", "trees", "motions", "labelled"):
        (copied / f"{name}.py").write_text("CHANGED = 1\n")
    assert fingerprint() == before


def test_a_module_that_is_imported_by_name_from_its_package_counts(copied):
    (copied / "new.py").write_text("A = 1\n")
    (copied / "formats.py").write_text("from . import new\n" + (copied / "formats.py").read_text())
    before = fingerprint()
    (copied / "new.py").write_text("A = 2\n")
    assert fingerprint() != before


def test_a_module_of_this_repository_counts_by_its_absolute_name(copied, monkeypatch):
    (copied / "new.py").write_text("A = 1\n")
    (copied / "formats.py").write_text("import copied_events.new\n" + (copied / "formats.py").read_text())
    monkeypatch.setattr("tools.data.fingerprint.PACKAGES", ("copied_events",))
    before = fingerprint()
    (copied / "new.py").write_text("A = 2\n")
    assert fingerprint() != before


def test_the_frames_depend_on_the_code_that_reads_arrays(monkeypatch):
    find, found = importlib.util.find_spec, []
    monkeypatch.setattr("importlib.util.find_spec", lambda name: found.append(name) or find(name))
    code_fingerprint.cache_clear()
    code_fingerprint("tools.data.events.store")
    assert {"tools.io.npy", "tools.io.files", "tools.errors"} <= set(found)


def test_frames_of_other_code_are_not_found(tmp_path, monkeypatch):
    path = tmp_path / "a.bin"
    path.write_bytes(bytes(5))
    before = frames(path).folder
    assert frames(path).folder == before
    monkeypatch.setattr("tools.data.events.store.code_fingerprint", lambda *names: "other code")
    assert frames(path).folder != before


def frames(path):
    return FrameStore("x", [Recording(path, 0)], Framing(1, "count", (34, 34), (34, 34)), workers=1, folder=path.parent)

"""The code on the page docs/interop.md runs as it stands there."""

import re

import pytest


def test_the_code_of_the_page_runs(repository, tmp_path, monkeypatch):
    for library in ("spikingjelly", "snntorch", "norse", "nir"):
        pytest.importorskip(library, reason=f"{library} is not installed")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    blocks = re.findall(r"```python\n(.*?)```", (repository / "docs" / "interop.md").read_text(), re.DOTALL)
    assert len(blocks) == 3
    exec(compile("\n".join(blocks), "interop.md", "exec"), {})

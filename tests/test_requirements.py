"""Tests name requirements of the standards by ids that exist."""

from __future__ import annotations

import runpy
from pathlib import Path

CITED = runpy.run_path(
    str(Path(__file__).resolve().parent.parent / "conformance" / "cited.py"), run_name="cited"
)


def test_named_requirements_exist() -> None:
    known = {name for entries in CITED["requirements"]().values() for name in entries}
    unknown = {name: files for name, files in CITED["cited_ids"]().items() if name not in known}
    assert len(known) > 400
    assert not unknown


def test_each_standard_is_named() -> None:
    cited = CITED["cited_ids"]()
    for title, entries in CITED["requirements"]().items():
        assert any(name in cited for name in entries), title

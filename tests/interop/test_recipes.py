"""Every recipe of docs/recipes.md is a configuration that `tetrapylon check` has nothing against.

The programs in them are run by the tests of their own.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.interop

DOCUMENT = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")
TITLES = re.findall(r"^## (.+)$", DOCUMENT, re.M)


@pytest.mark.parametrize("title", TITLES)
def test_check(title: str, recipe: Any, tmp_path: Path) -> None:
    page = recipe(title, tmp_path)
    for name in ("cgi-bin", "git", "hg/repositories", "awstats"):
        (tmp_path / "srv" / name).mkdir(parents=True, exist_ok=True)
    for name in ("lib/plugins", "lib/tpl", "data/media", "data/cache"):
        (tmp_path / "var/lib/dokuwiki" / name).mkdir(parents=True)
    if title == "AWStats":
        page.run(0)
    (tmp_path / "var/log").mkdir()
    text = page.configuration.read_text()
    if os.geteuid() == 0:
        text += "".join(
            f'\n[{kind}]\nuser = "root"\n' for kind in ("cgi", "fastcgi") if f"[{kind}]" not in text
        )
        page.configuration.write_text(text)
    done = subprocess.run(
        [Path(sys.executable).with_name("tetrapylon"), "check", "-c", page.configuration],
        capture_output=True,
        text=True,
        env={**os.environ, "NO_COLOR": "1", "COLUMNS": "200"},
        timeout=60,
        check=False,
    )
    told = done.stdout + done.stderr
    print(told)
    assert done.returncode == 0, told
    # Whatever runs by itself does not run here.
    warnings = [line for line in told.splitlines() if line.startswith("warning")]
    assert all("is the application running?" in line for line in warnings), told
    if title != "DokuWiki":
        assert not warnings

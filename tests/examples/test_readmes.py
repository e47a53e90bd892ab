"""Every example has what an example needs, and its README says how to run it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = sorted(folder.name for folder in EXAMPLES.iterdir() if folder.is_dir())


def test_all_are_here() -> None:
    assert {
        *("cgi-c", "cgi-perl", "cgi-python", "cgi-sh", "mirror", "php"),
        *("bottle", "django", "flask", "pyramid"),
        *("fastapi", "quart", "sanic", "starlette-sse"),
        *("aiohttp", "authorizer", "scgi", "uwsgi"),
        *("asgi-cgi", "asgi-fastcgi", "mounts"),
    } == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_readme_says_how_to_run_it_and_is_short(name: str) -> None:
    text = (EXAMPLES / name / "README.md").read_text()
    assert f"tetrapylon serve -c examples/{name}/tetrapylon.toml" in text
    assert "curl" in text
    assert len(text.splitlines()) <= 20
    assert max(map(len, text.splitlines())) <= 125


@pytest.mark.parametrize("name", NAMES)
def test_has_a_test(name: str) -> None:
    module = f"test_{name.replace('-', '_')}.py"
    assert Path(__file__).with_name(module).is_file()


@pytest.mark.parametrize("name", NAMES)
def test_readme_asks_for_paths_that_a_route_serves(name: str) -> None:
    text = (EXAMPLES / name / "README.md").read_text()
    tables = tomllib.loads((EXAMPLES / name / "tetrapylon.toml").read_text())
    prefixes = [route["path"] for route in tables["routes"]]
    paths = re.findall(r"http://127\.0\.0\.1:8000(/[^\s'\">)]*)", text)
    assert paths
    for path in paths:
        assert any(path.startswith(prefix) for prefix in prefixes), path

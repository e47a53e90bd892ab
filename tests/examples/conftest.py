"""Each example runs as its README says, from a copy, on a port of its own."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


class StartExample(Protocol):
    """What the fixture `start_example` is; returns a running gateway."""

    def __call__(
        self,
        folder: Path,
        *,
        replace: Mapping[str, str] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Any: ...


@pytest.fixture
def copy_example(tmp_path: Path) -> Any:
    """Copy an example by its name, so that nothing is written into the tree."""

    def copy(name: str) -> Path:
        ignored = shutil.ignore_patterns("__pycache__", "collected")
        return Path(shutil.copytree(EXAMPLES / name, tmp_path / name, ignore=ignored))

    return copy


@pytest.fixture
def start_example(gateway: Any) -> StartExample:
    """Serve the copy with its own tetrapylon.toml, after the replacements in it."""

    def start(
        folder: Path,
        *,
        replace: Mapping[str, str] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Any:
        configuration = folder / "tetrapylon.toml"
        text = configuration.read_text()
        for old, new in {"127.0.0.1:8000": "127.0.0.1:0", **(replace or {})}.items():
            assert old in text
            text = text.replace(old, new)
        configuration.write_text(text)
        return gateway(configuration, env=env)

    return start

"""What tests of the spawn helper share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from tetrapylon.gateway.spawn import helper


@pytest.fixture(scope="module")
def hurry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., None]]:
    """Change constants of the helper's `templates`, for the tests of a module."""
    patch = pytest.MonkeyPatch()

    def change(**constants: float) -> None:
        file = tmp_path_factory.mktemp("hurried") / "helper.py"
        folder = os.path.dirname(original)
        file.write_text(
            f"import runpy, sys\nsys.path.append({folder!r})\nimport templates\n"
            f"vars(templates).update({constants!r})\nsys.path.pop()\n"
            f"runpy.run_path({original!r}, run_name='__main__')\n"
        )
        patch.setattr(helper, "__file__", str(file))

    original = helper.__file__
    yield change
    patch.undo()


@pytest.fixture
def hurried(hurry: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Change them for one test."""
    monkeypatch.setattr(helper, "__file__", helper.__file__)
    return hurry

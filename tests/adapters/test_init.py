"""The names of `tetrapylon.adapters`: all there, each imported only when asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tetrapylon import adapters


@pytest.mark.parametrize("name", adapters.__all__)
def test_every_name_is_there(name: str) -> None:
    assert getattr(adapters, name).__name__ == name
    assert name in dir(adapters)


def test_another_name_is_not() -> None:
    with pytest.raises(AttributeError, match="no attribute 'CgiToCgi'"):
        adapters.CgiToCgi  # noqa: B018 a look is what is tried


def test_one_adapter_does_not_bring_the_others() -> None:
    code = (
        "import sys; from tetrapylon.adapters import AsgiToCgi; "
        "print(*[name for name in sys.modules if name.startswith('tetrapylon.adapters.')])"
    )
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "tetrapylon.adapters.asgi_to_cgi" in said.stdout
    assert "fastcgi" not in said.stdout

"""examples/cgi-python."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from tetrapylon.gateway.limits import MIB


def test_cgi_python(copy_example: Any, start_example: Any) -> None:
    # `env python3` finds this interpreter, wherever it is installed.
    found = {'PATH = "': f'PATH = "{Path(sys.executable).parent}:'}
    running = start_example(copy_example("cgi-python"), replace=found)
    page = running.get("/days.py?from=2024-02-28&to=2024-03-01")
    assert page.status == 200
    assert "<p>2 days</p>" in page.text
    wrong = running.get("/days.py?from=%3Cb%3E&to=today")
    assert wrong.status == 422
    assert "<b>" not in wrong.text
    kind = {"Content-Type": "application/json"}
    question = b'{"from": "2000-01-01", "to": "2100-01-01"}'
    assert running.request("POST", "/days.py", question, kind).json() == {"days": 36525}
    wrong = running.request("POST", "/days.py", b'{"from": 1}', kind)
    assert (wrong.status, wrong.headers["Content-Type"]) == (422, "application/json; charset=utf-8")
    assert running.request("POST", "/days.py", b"{", kind).status == 422
    assert running.request("POST", "/days.py", b" " * MIB, kind).status == 413
    assert running.request("DELETE", "/days.py").headers["Allow"] == "GET, HEAD, POST"
    # The client learns that it failed, the log why.
    broken = running.get("/broken.py")
    assert broken.status == 502
    assert "broken on purpose" not in broken.text
    assert running.has_logged("RuntimeError: this script is broken on purpose")

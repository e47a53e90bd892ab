"""examples/authorizer: who may pass, before files and before an application."""

from __future__ import annotations

import base64
import json
import sys
from typing import Any


def as_member(name: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()}


def test_authorizer(copy_example: Any, start_example: Any) -> None:
    python = {'"python3"': json.dumps(sys.executable)}
    running = start_example(copy_example("authorizer"), replace=python)
    ada, grace = as_member("ada", "notes"), as_member("grace", "compiler")
    assert "this way" in running.get("/").text
    for path in ("/members/", "/members/whoami", "/members/none", "/members/bridge/"):
        for headers in (
            {},
            as_member("ada", "wrong"),
            as_member("eve", ""),
            {"Remote-User": "ada"},
            *({"Authorization": f"Basic {pair}"} for pair in ("\xe9", "x", "/w==", "YWRh", "")),
        ):
            refused = running.get(path, headers)
            assert (refused.status, refused.text) == (401, "Members only.\n")
            assert refused.headers["WWW-Authenticate"] == 'Basic realm="members"'
    page = running.get("/members/", ada)
    assert "Welcome back" in page.text
    assert not [name for name in page.headers if name.lower().startswith("variable-")]
    assert running.get("/members/none", ada).status == 404
    assert running.get("/members/whoami", ada).text == "You are ada, author.\n"
    # D2: however it is spelt, it is the bridge.
    for path in ("/members/bridge/", "/members/./bridge/", "/x/../members/%62ridge/"):
        refused = running.get(path, ada)
        assert (refused.status, refused.text) == (403, "Admirals only.\n")
        assert "Aye, aye" in running.get(path, grace).text
    running.stop()
    log = running.stdout_text().splitlines()
    assert " - ada [" in next(line for line in log if "whoami" in line and " 200 " in line)
    assert next(line for line in log if " 401 " in line).endswith(" doorkeeper")

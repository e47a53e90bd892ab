"""examples/bottle."""

from __future__ import annotations

from typing import Any


def test_bottle(copy_example: Any, start_example: Any) -> None:
    running = start_example(copy_example("bottle"))
    moved = running.get("/")
    assert (moved.status, moved.headers["Location"]) == (302, "/todo/")
    assert 'action="/todo/"' in running.get("/todo/").text
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    added = running.request("POST", "/todo/", b"task=Sweep+%3Cgates%3E+%C3%A9", form)
    assert added.status == 303
    assert added.headers["Location"] == f"{running.url}/todo/"
    assert "<li>Sweep &lt;gates&gt; é</li>" in running.get("/todo/").text
    assert running.get("/todo/items.json").json() == {"tasks": ["Sweep <gates> é"]}
    lines = running.get("/todo/items.ndjson")
    assert lines.headers["Content-Type"] == "application/x-ndjson"
    assert lines.json() == {"task": "Sweep <gates> é"}
    assert running.request("POST", "/todo/", b"task=", form).status == 422
    missing = running.get("/todo/nothing")
    assert missing.status == 404
    assert "404 Not Found" in missing.text

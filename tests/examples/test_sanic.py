"""examples/sanic."""

from __future__ import annotations

from typing import Any


def test_sanic(copy_example: Any, start_example: Any) -> None:
    running = start_example(copy_example("sanic"))
    assert "<h1>0 letters wait</h1>" in running.get("/").text
    kind = {"Content-Type": "application/json"}
    letter = '{"to": "Ada", "text": "Olá"}'.encode()
    assert running.request("POST", "/letters", letter, kind).status == 202
    assert "<h1>1 letters wait</h1>" in running.get("/").text
    assert running.get("/letters/Ada").json() == {"letters": ["Olá"]}
    missing = running.get("/letters/Ada")
    assert missing.status == 404
    assert missing.json()["message"] == "Nothing for Ada."
    assert running.request("POST", "/letters", b'{"text": ""}', kind).status == 422
    assert running.request("POST", "/letters", b"{", kind).status == 400
    bell = running.get("/bell")
    assert (bell.status, bell.text) == (200, "ding\nding\nding\n")

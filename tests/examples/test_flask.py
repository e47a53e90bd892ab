"""examples/flask."""

from __future__ import annotations

from typing import Any


def test_flask(copy_example: Any, start_example: Any) -> None:
    running = start_example(copy_example("flask"))
    assert "<h1>Notes</h1>" in running.get("/").text
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    kept = running.request("POST", "/", b"text=Caf%C3%A9+%3Cb%3E", form)
    assert (kept.status, kept.headers["Location"]) == (303, "/#1")
    assert '<li id="1">Café &lt;b&gt;</li>' in running.get("/").text
    kind = {"Content-Type": "application/json"}
    made = running.request("POST", "/api/notes", b'{"text": "Call Ada"}', kind)
    assert (made.status, made.headers["Location"]) == (201, "/api/notes/2")
    assert running.get("/api/notes/2").json() == {"number": 2, "text": "Call Ada"}
    missing = running.get("/api/notes/99")
    assert (missing.status, missing.json()) == (404, {"error": "There is no note 99."})
    assert running.request("POST", "/api/notes", b"{}", kind).status == 422
    assert running.request("POST", "/", b"text=" + b"x" * 70000, form).status == 413
    page = running.get("/nothing")
    assert page.status == 404
    assert "<title>Not Found</title>" in page.text
    export = running.get("/export?copies=20000")
    assert export.body == "1\tCafé <b>\n2\tCall Ada\n".encode() * 20000
    assert "Content-Length" not in export.headers

"""examples/pyramid."""

from __future__ import annotations

from typing import Any


def test_pyramid(copy_example: Any, start_example: Any) -> None:
    running = start_example(copy_example("pyramid"))
    assert "The Left Hand of Darkness" in running.get("/").text
    kind = {"Content-Type": "application/json"}
    made = running.request("POST", "/books", b'{"title": "Caf\\u00e9 & co"}', kind)
    assert (made.status, made.headers["Location"]) == (201, f"{running.url}/books/2")
    json, page = {"Accept": "application/json"}, {"Accept": "text/html"}
    assert running.get("/books/2", json).json() == {"title": "Café & co"}
    assert "<h1>Café &amp; co</h1>" in running.get("/books/2", page).text
    missing = running.get("/books/99")
    assert (missing.status, missing.text) == (404, "Not found: /books/99\n")
    assert running.request("POST", "/books", b"[]", kind).status == 422
    assert running.get("/count?to=5").text == "1\n2\n3\n4\n5\n"

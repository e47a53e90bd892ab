"""examples/quart."""

from __future__ import annotations

from typing import Any


def test_quart(copy_example: Any, start_example: Any) -> None:
    running = start_example(copy_example("quart"))
    assert "<h1>0 bottles in the sea</h1>" in running.get("/").text
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    thrown = running.request("POST", "/", b"message=Hello%2C+caf%C3%A9", form)
    assert (thrown.status, thrown.headers["Location"]) == (303, "/")
    assert running.get("/bottles/1").json() == {"number": 1, "message": "Hello, café"}
    missing = running.get("/bottles/99")
    assert (missing.status, missing.json()) == (404, {"error": "No such bottle was found."})
    assert running.request("POST", "/", b"message=", form).status == 422
    pieces = (bytes(50_000) for _ in range(200))
    weighed = running.request("POST", "/weigh", pieces, encode_chunked=True)
    assert weighed.json() == {"bytes": 10_000_000}
    assert running.get("/waves?count=3").text == "wave 1\nwave 2\nwave 3\n"

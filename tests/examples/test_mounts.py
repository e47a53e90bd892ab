"""examples/mounts, under the gateway; with PHP, and under uvicorn, in tests/interop."""

from __future__ import annotations

from typing import Any


def test_mounts(copy_example: Any, start_example: Any, tmp_path: Any) -> None:
    running = start_example(copy_example("mounts"), env={"PHP_FPM": f"unix:{tmp_path}/none"})
    assert "/shop/" in running.get("/").json()["rooms"]
    assert running.get("/cgi-bin/date.sh/a%20b").text.endswith("/cgi-bin/date.sh /a b\n")
    assert running.get("/cgi-bin/nothing.sh").status == 404
    assert running.get("/php/").status == 502
    assert running.get("/shop/").text == "The shop is at /shop.\n"
    assert running.request("POST", "/shop/count", b"x" * 200_000).json() == {"bytes": 200_000}
    chunks = iter([b"x" * 1000] * 10)
    assert running.request("POST", "/shop/count", chunks, encode_chunked=True).json() == {
        "bytes": 10_000
    }
    assert running.get("/shop/receipt").text == "0 tea\n1 tea\n2 tea\n"
    assert running.get("/openapi.json").json()["info"]["title"] == "House"

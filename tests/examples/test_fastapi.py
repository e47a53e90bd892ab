"""examples/fastapi."""

from __future__ import annotations

from typing import Any


def test_fastapi(copy_example: Any, start_example: Any) -> None:
    running = start_example(copy_example("fastapi"))
    assert "weather: the station is open" in running.stdout_text()
    page = running.get("/api/")
    assert 'href="/api/docs"' in page.text
    assert running.get("/api/docs").status == 200
    assert running.get("/api/openapi.json").json()["servers"] == [{"url": "/api"}]
    kind = {"Content-Type": "application/json"}
    made = running.request("POST", "/api/readings", b'{"celsius": 21.5}', kind)
    assert (made.status, made.json()) == (201, {"number": 1})
    assert running.get("/api/readings/1").json() == {"celsius": 21.5, "station": "roof"}
    missing = running.get("/api/readings/2")
    assert (missing.status, missing.json()) == (404, {"detail": "There is no reading 2."})
    for body in (b'{"celsius": "warm"}', b'{"celsius": 99}', b"{"):
        assert running.request("POST", "/api/readings", body, kind).status == 422
    upload = (
        b'--cut\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\n'
        + (b"1.5" + b" " * 2000 + b"\n") * 2000
        + b"\r\n--cut--\r\n"
    )
    multipart = {"Content-Type": "multipart/form-data; boundary=cut"}
    imported = running.request("POST", "/api/import", upload, multipart)
    assert imported.json() == {"imported": 2000}
    lines = running.get("/api/readings.ndjson")
    assert lines.text.count("\n") == 2001
    running.stop()
    assert "weather: the station is closed" in running.stdout_text()

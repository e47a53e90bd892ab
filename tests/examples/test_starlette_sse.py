"""examples/starlette-sse."""

from __future__ import annotations

import contextlib
import time
from typing import Any


def test_starlette_sse(copy_example: Any, start_example: Any) -> None:
    running = start_example(copy_example("starlette-sse"))
    assert "EventSource" in running.get("/").text
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    assert running.request("POST", "/", b"text=", form).status == 422
    with contextlib.ExitStack() as watchers:
        streams = []
        for number in range(1, 21):
            connection = watchers.enter_context(contextlib.closing(running.connect()))
            connection.request("GET", "/events")
            stream = watchers.enter_context(connection.getresponse())
            assert stream.headers["Content-Type"] == "text/event-stream; charset=utf-8"
            assert stream.readline() == b": welcome\n"
            assert stream.readline() == b"\n"
            assert running.get("/watchers").json() == {"watchers": number}
            streams.append(stream)
        for text in ("first", "second"):
            written = running.request("POST", "/", f"text={text}".encode(), form)
            assert (written.status, written.text) == (202, "Seen by 20.\n")
            for stream in streams:
                assert stream.readline() == b'data: {"text": "%s"}\n' % text.encode()
                assert stream.readline() == b"\n"
    # All have left; their tasks end within a second.
    deadline = time.monotonic() + 1
    while (left := running.get("/watchers").json()["watchers"]) and time.monotonic() < deadline:
        pass
    assert left == 0

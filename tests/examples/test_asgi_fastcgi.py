"""examples/asgi-fastcgi."""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any


def test_asgi_fastcgi(copy_example: Any, start_example: Any) -> None:
    running = start_example(
        copy_example("asgi-fastcgi"), replace={'"python3"': f'"{sys.executable}"'}
    )
    assert running.get("/board/").text == ""
    with ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(running.get, "/board/next") for _ in range(8)]
        deadline = time.monotonic() + 20
        # Until all of them wait: whoever comes too late waits for the line after that.
        while not all(one.done() for one in waiting):
            assert running.request("POST", "/board/", "Hello.").status == 201
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert {one.result().text for one in waiting} == {"Hello.\n"}
    lines = running.get("/board/").text
    assert lines == "Hello.\n" * (len(lines) // 7)
    assert running.request("POST", "/board/", "x" * 201).status == 422
    assert running.request("DELETE", "/board/").status == 405

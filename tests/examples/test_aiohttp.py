"""examples/aiohttp: on its own server, behind the proxy backend."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def upstream(copy_example: Any, tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """Run the application as its README says, on a unix socket."""
    folder = copy_example("aiohttp")
    address = str(tmp_path / "echo.sock")
    command = [sys.executable, folder / "echo.py", "--path", address]
    with (tmp_path / "echo.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 20
        while True:
            with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
                probe.connect(address)
                break
            assert process.poll() is None, (tmp_path / "echo.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield folder, address
    finally:
        process.terminate()
        assert process.wait(20) == 0


def test_aiohttp(upstream: tuple[Path, str], start_example: Any) -> None:
    folder, address = upstream
    running = start_example(folder, replace={"http://127.0.0.1:8080": f"unix:{address}"})
    page = running.get("/")
    assert page.status == 200
    assert "Hello, 127.0.0.1." in page.text
    kind = {"Content-Type": "application/json"}
    assert running.request("POST", "/json", b'{"n": 1}', kind).json() == {"you sent": {"n": 1}}
    assert running.request("POST", "/json", b"{", kind).status == 422
    assert running.get("/nothing").status == 404


def test_streams_both_ways_at_once(upstream: tuple[Path, str], start_example: Any) -> None:
    folder, address = upstream
    running = start_example(folder, replace={"http://127.0.0.1:8080": f"unix:{address}"})
    piece = os.urandom(100_000)
    with socket.create_connection(("127.0.0.1", running.port), timeout=20) as client:
        client.sendall(b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        response = http.client.HTTPResponse(client, method="POST")
        # The first piece is back before the second was sent.
        client.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
        response.begin()
        assert response.status == 200
        assert response.read(len(piece)) == piece

        def send() -> None:
            for _ in range(99):
                client.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
            client.sendall(b"0\r\n\r\n")

        sender = threading.Thread(target=send)
        sender.start()
        echoed = hashlib.sha256(response.read())
        sender.join()
    assert echoed.digest() == hashlib.sha256(piece * 99).digest()


def test_aiohttp_is_absent(copy_example: Any, start_example: Any, tmp_path: Path) -> None:
    absent = {"http://127.0.0.1:8080": f"unix:{tmp_path / 'absent.sock'}"}
    running = start_example(copy_example("aiohttp"), replace=absent)
    assert running.get("/").status == 502

"""examples/uwsgi: a uWSGI server beside the gateway."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.interop


@pytest.fixture
def shelf(copy_example: Any) -> Iterator[tuple[Path, str]]:
    """Run uWSGI; return the example's folder and the address."""
    program = shutil.which("uwsgi")
    assert program is not None, "apt install uwsgi-core uwsgi-plugin-python3"
    folder = copy_example("uwsgi")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"127.0.0.1:{port}"
    configuration = folder / "uwsgi.ini"
    text = configuration.read_text()
    assert "127.0.0.1:3031" in text
    configuration.write_text(text.replace("127.0.0.1:3031", address))
    # Its Python is the system's: it must not find ours.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [program, "--ini", str(configuration)], stdout=output, stderr=output, env=env
        )
    try:
        deadline = time.monotonic() + 30
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield folder, address
    finally:
        process.terminate()
        process.wait(20)


def test_uwsgi(shelf: tuple[Path, str], start_example: Any) -> None:
    folder, address = shelf
    running = start_example(folder, replace={"127.0.0.1:3031": address})
    books = running.get("/shelf/books").json()
    assert books["Ficciones"] == "/shelf/books/2"
    book = running.get("/shelf/books/2")
    assert book.json() == {"number": "2", "title": "Ficciones"}
    assert book.headers["Content-Type"] == "application/json"
    weighed = running.request("PUT", "/shelf/weigh", bytes(5_000_000))
    assert weighed.json() == {"bytes": 5_000_000}
    chunked = running.request(
        "PUT",
        "/shelf/weigh",
        [bytes(100_000)] * 3,
        {"Transfer-Encoding": "chunked"},
        encode_chunked=True,
    )
    assert chunked.json() == {"bytes": 300_000}
    long = running.get("/shelf/books/1", {"Cookie": "c=" + "v" * 7000})
    assert long.status == 200
    missing = running.get("/shelf/films")
    assert (missing.status, missing.json()) == (404, {"error": "There is no /films on the shelf."})

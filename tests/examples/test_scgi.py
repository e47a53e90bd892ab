"""examples/scgi: a server of flup's beside the gateway."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def votes(copy_example: Any) -> Iterator[tuple[Path, str]]:
    """Run the application; return the example's folder and the address."""
    folder = copy_example("scgi")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"127.0.0.1:{port}"
    command = [sys.executable, str(folder / "votes.py"), address]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 30
            while True:
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.02)
            yield folder, address
        finally:
            process.terminate()


def test_scgi(votes: tuple[Path, str], start_example: Any) -> None:
    folder, address = votes
    running = start_example(folder, replace={"127.0.0.1:4000": address})
    assert running.get("/votes/plain").text == "    0 tea\n    0 coffee\n    0 water\n"
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    for choice in ("tea", "water", "water"):
        voted = running.request("POST", "/votes/", f"choice={choice}", form)
        assert (voted.status, voted.headers["Location"]) == (303, "/votes/")
    page = running.get("/votes")
    assert "<li>water: 2\n<li>tea: 1\n<li>coffee: 0\n" in page.text
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    assert running.request("POST", "/votes/", "choice=wine", form).status == 422
    assert running.request("POST", "/votes/", "choice=" + "x" * 70_000, form).status == 413
    assert running.get("/elsewhere").status == 404

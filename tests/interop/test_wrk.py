"""wrk on each mirror of the demonstration: 64 kept connections, and no error.

The seconds of each run are those of TETRAPYLON_WRK_S, or 10.
"""

from __future__ import annotations

import os
import re
import subprocess
from typing import Any

import pytest

pytestmark = pytest.mark.interop

SECONDS = int(os.environ.get("TETRAPYLON_WRK_S", "10"))
CONNECTIONS = 64


@pytest.fixture(scope="module")
def demo(shared_gateway: Any) -> Any:
    return shared_gateway(None, "demo", "--port", "0")


@pytest.mark.parametrize("gate", ["cgi", "fastcgi", "wsgi", "asgi"])
def test_wrk_finds_no_error(demo: Any, find_program: Any, gate: str) -> None:
    program = find_program("wrk", package="wrk")
    url = f"{demo.url}/{gate}/mirror"
    assert demo.get(f"/{gate}/mirror").status == 200
    before = demo.stderr_text()
    options = ("-t2", f"-c{CONNECTIONS}", f"-d{SECONDS}s", "--timeout", "20s", "--latency")
    done = subprocess.run(
        [program, *options, url],
        capture_output=True,
        text=True,
        timeout=SECONDS + 30,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stderr
    assert "Socket errors" not in done.stdout, done.stdout
    assert "Non-2xx" not in done.stdout, done.stdout
    found = re.search(r"(\d+) requests in", done.stdout)
    assert found
    assert int(found[1]) >= CONNECTIONS
    # Nothing to complain about for the gateway either, not even of the 64 that
    # left together at the end; and it goes on.
    assert demo.get(f"/{gate}/mirror").status == 200
    assert demo.stderr_text() == before

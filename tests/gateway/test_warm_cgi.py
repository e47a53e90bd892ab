"""``warm = true`` through a gateway: configured, asked by HTTP, and seen by ``check``."""

from __future__ import annotations

import os
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tetrapylon.gateway.spawn.client import Spawner

pytestmark = pytest.mark.skipif(not Spawner.is_supported(), reason="Linux only")

PYTHON = os.path.realpath(sys.executable)
DEADLINE_S = 30.0
CONFIG = """
[listen]
bind = ["127.0.0.1:0"]

[[routes]]
path = "/cgi-bin/"
[routes.backend]
cgi = "cgi-bin"
warm = true
timeout = "2s"
kill_after = "200ms"
interpreters = { ".pyx" = "PYTHON" }
"""

# A warm interpreter has what makes its forks loaded.
ECHO = """
import os, sys
print("Content-Type: text/plain\\n")
print("warm" if "_ctypes" in open("/proc/self/maps").read() else "plain")
print(os.environ["PATH_INFO"], os.environ["QUERY_STRING"], sys.stdin.read())
print(os.environ["SCRIPT_NAME"], os.getcwd(), sys.argv, sys.path[0])
"""


def write(folder: Path, name: str, text: str, mode: int = 0o755) -> None:
    folder.mkdir(exist_ok=True)
    file = folder / name
    file.write_text(f"#!{PYTHON}\n{text}")
    file.chmod(mode)


def until_warm(ask: Any) -> Any:
    deadline = time.monotonic() + DEADLINE_S
    while (answer := ask()).body.splitlines()[0] != b"warm":
        assert time.monotonic() < deadline, answer
        time.sleep(0.05)
    return answer


@pytest.fixture
def started(gateway: Any, tmp_path: Path) -> Any:
    folder = tmp_path / "cgi-bin"
    write(folder, "echo.py", ECHO)
    write(folder, "echo.pyx", ECHO, 0o644)
    write(
        folder,
        "slow.py",
        "import signal, time\nsignal.signal(15, signal.SIG_IGN)\ntime.sleep(60)\n",
    )
    write(folder, "fails.py", "import sys\nsys.exit('the reason')\n")
    write(folder, "redirects.py", "print('Location: /cgi-bin/echo.py/there\\n')\n")
    return gateway(CONFIG.replace("PYTHON", PYTHON))


@pytest.mark.parametrize("name", ["echo.py", "echo.pyx"])
def test_requests(started: Any, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "cgi-bin"
    answer = until_warm(lambda: started.request("POST", f"/cgi-bin/{name}/a?b=c", b"body"))
    assert answer.status == 200
    assert answer.body.decode().splitlines()[1:] == [
        "/a b=c body",
        f"/cgi-bin/{name} {folder} ['{folder}/{name}'] {folder}",
    ]
    large = os.urandom(1 << 20).hex().encode()
    answer = started.request("POST", f"/cgi-bin/{name}", large)
    assert large in answer.body

    with ThreadPoolExecutor(16) as pool:
        paths = [f"/cgi-bin/{name}/{number}?x={number}" for number in range(80)]
        for path, answer in zip(paths, pool.map(started.get, paths), strict=True):
            number = path.rpartition("=")[2].encode()
            assert answer.status == 200
            assert b"/%b x=%b" % (number, number) in answer.body


def test_what_goes_wrong(started: Any) -> None:
    until_warm(lambda: started.get("/cgi-bin/echo.py"))
    before = time.monotonic()
    assert started.get("/cgi-bin/slow.py").status == 504
    assert time.monotonic() - before < 10
    assert started.get("/cgi-bin/fails.py").status == 502
    assert "the reason" in started.stderr_text()
    assert started.get("/cgi-bin/none.py").status == 404
    assert b"/there" in started.get("/cgi-bin/redirects.py").body
    assert started.get("/cgi-bin/echo.py").body.startswith(b"warm\n")


def test_check(gateway: Any, tmp_path: Path) -> None:
    """Told are the scripts that do not run warm, and why."""
    from typer.testing import CliRunner

    from tetrapylon.gateway.cli import app

    write(tmp_path / "cgi-bin", "echo.py", ECHO)
    write(tmp_path / "cgi-bin", "frames.py", "import sys\nsys._getframe()\n")
    file = tmp_path / "tetrapylon.toml"
    file.write_text(CONFIG.replace("PYTHON", PYTHON))
    user = ["--user", "root"] if os.geteuid() == 0 else []
    result = CliRunner().invoke(app, ["check", "-c", str(file), *user], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    text = re.sub(r"\s+", " ", result.output)
    assert "1 script runs warm in /cgi-bin/" in text
    assert "frames.py runs plain: it uses _getframe" in text

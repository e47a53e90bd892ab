"""Starting and stopping a whole gateway, as a person and as a supervisor do."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Start = Callable[..., Any]

SLOW = """
import asyncio

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            kind = message["type"]
            print(kind, flush=True)
            await send({"type": kind + ".complete"})
            if kind == "lifespan.shutdown":
                return
    print("begun", scope["path"], flush=True)
    await asyncio.sleep(float(scope["path"][1:] or 0))
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"done"})
"""

CONFIG = """
[listen]
bind = ["127.0.0.1:0"]

[access_log]
enabled = false

[[routes]]
path = "/"
backend = { asgi = "slow:app" }
"""


@pytest.fixture
def slow(tmp_path: Path, gateway: Start) -> Any:
    """A gateway whose path says how many seconds the answer takes."""
    (tmp_path / "slow.py").write_text(SLOW)
    return gateway(CONFIG)


def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def asking(gateway: Any, path: str) -> tuple[threading.Thread, list[Any]]:
    answers: list[Any] = []

    def ask() -> None:
        try:
            answers.append(gateway.get(path).status)
        except OSError as error:
            answers.append(type(error).__name__)

    thread = threading.Thread(target=ask)
    thread.start()
    until(lambda: f"begun {path}" in gateway.stdout_text())
    return thread, answers


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_waits_for_the_answer(slow: Any, number: int) -> None:  # S6
    thread, answers = asking(slow, "/1.5")
    slow.process.send_signal(number)
    assert slow.process.wait(15) == 0
    thread.join(5)
    assert answers == [200]
    assert "lifespan.shutdown" in slow.stdout_text()


def test_stopping_server_accepts_nobody(slow: Any) -> None:  # S6
    thread, answers = asking(slow, "/2")
    slow.process.terminate()

    def is_closed() -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", slow.port)) != 0

    until(is_closed)
    thread.join(10)
    assert answers == [200]


def test_second_signal_stops_at_once(slow: Any) -> None:  # S6
    thread, answers = asking(slow, "/20")
    began = time.monotonic()
    slow.process.terminate()
    until(lambda: "waiting for 1 connection" in slow.stderr_text())
    slow.process.terminate()
    assert slow.process.wait(10) == 0
    assert time.monotonic() - began < 10
    thread.join(5)
    assert answers != [200]
    assert "1 request cut" in slow.stderr_text()
    assert "lifespan.shutdown" in slow.stdout_text()


def test_graceful_time_is_a_bound(tmp_path: Path, gateway: Start) -> None:  # S6
    (tmp_path / "slow.py").write_text(SLOW)
    running = gateway(CONFIG + '\n[timeouts]\ngraceful = "300ms"\n')
    thread, answers = asking(running, "/20")
    running.process.terminate()
    assert running.process.wait(10) == 0
    thread.join(5)
    assert answers != [200]


def test_unix_socket_and_ipv6(tmp_path: Path, gateway: Start) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    path = tmp_path / "gate.sock"
    binds = '["127.0.0.1:0", "[::1]:0", "unix:gate.sock"]'
    running = gateway(CONFIG.replace('["127.0.0.1:0"]', binds))
    assert len(running.ports) == 2
    assert running.socket_paths == [str(path)]
    for family, address in (
        (socket.AF_UNIX, str(path)),
        (socket.AF_INET6, ("::1", running.ports[1])),
    ):
        with socket.socket(family, socket.SOCK_STREAM) as client:
            client.settimeout(10)
            client.connect(address)
            client.sendall(b"GET /0 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            answer = b""
            while piece := client.recv(4096):
                answer += piece
            assert answer.endswith(b"\r\n\r\ndone")
    running.stop()
    assert not path.exists()


def start_badly(folder: Path, text: str, **files: str) -> tuple[int, str]:
    for name, content in files.items():
        (folder / f"{name}.py").write_text(content)
    (folder / "tetrapylon.toml").write_text(text)
    command = Path(sys.executable).with_name("tetrapylon")
    done = subprocess.run(
        [command, "serve"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=30,
        env={**os.environ, "NO_COLOR": "1", "COLUMNS": "300"},
    )
    return done.returncode, done.stderr


def test_address_in_use(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        text = CONFIG.replace("127.0.0.1:0", f"127.0.0.1:{port}")
        code, said = start_badly(tmp_path, text, slow=SLOW)
    assert code == os.EX_UNAVAILABLE
    assert f"127.0.0.1:{port}" in said
    assert "another server" in said
    assert "Traceback" not in said


def test_startup_that_fails_stops_the_start(tmp_path: Path) -> None:  # G4
    app = """
async def app(scope, receive, send):
    await receive()
    await send({"type": "lifespan.startup.failed", "message": "the database is away"})
"""
    code, said = start_badly(tmp_path, CONFIG, slow=app)
    assert code == os.EX_UNAVAILABLE
    assert "the database is away" in said
    assert "Traceback" not in said


def test_application_that_does_not_import(tmp_path: Path) -> None:
    code, said = start_badly(tmp_path, CONFIG, slow="import nothing_of_that_name\n")
    assert code == os.EX_UNAVAILABLE
    assert "tetrapylon.toml:10" in said
    assert "nothing_of_that_name" in said


def test_wrong_interface_is_told(tmp_path: Path) -> None:
    app = "def app(environ, start_response):\n    return []\n"
    code, said = start_badly(tmp_path, CONFIG, slow=app)
    assert code == os.EX_UNAVAILABLE
    assert "slow:app is a WSGI application; write wsgi = 'slow:app' instead" in said


def test_one_lifespan_for_one_application(tmp_path: Path, gateway: Start) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    more = '\n[[routes]]\npath = "/again"\nbackend = { asgi = "slow:app", first_byte = "9s" }\n'
    running = gateway(CONFIG + more)
    assert running.get("/0").status == 200
    running.stop()
    assert running.stdout_text().count("lifespan.startup") == 1
    assert running.stdout_text().count("lifespan.shutdown") == 1


def test_application_that_blocks_the_loop_is_named_in_the_log(
    tmp_path: Path, gateway: Start
) -> None:  # G4
    app = """
import time

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        raise RuntimeError
    time.sleep(2.5)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})
"""
    (tmp_path / "slow.py").write_text(app)
    running = gateway(CONFIG)
    assert running.get("/").status == 200
    until(lambda: "event loop was blocked" in running.stderr_text())

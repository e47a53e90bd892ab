"""``python -m tetrapylon.adapters``, as web servers and spawners start it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tetrapylon.adapters.__main__ import main
from tetrapylon.protocols.fastcgi import (
    NEED_DATA,
    BeginRequest,
    Connection,
    EndRequest,
    Params,
    Side,
    Stdin,
    Stdout,
)
from tetrapylon.protocols.scgi import encode_head

WITHIN_S = 20.0

SHOP = """
import asyncio, sys

async def asgi(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        print("up", flush=True)
        await send({"type": "lifespan.startup.complete"})
        await receive()
        print("down", flush=True)
        await send({"type": "lifespan.shutdown.complete"})
        return
    if scope["path"].endswith("/slow"):
        print("slow", flush=True)
        await asyncio.sleep(0.3)
    body = f"{scope['root_path']}|{scope['path']}".encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})

def wsgi(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/x")])
    return [environ["SCRIPT_NAME"].encode() + b"|" + environ["PATH_INFO"].encode()]

async def fails(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})

def create():
    return asgi

neither = 5
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shop")
    (path / "shop.py").write_text(SHOP)
    return path


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-X", "dev", "-W", "error", "-m", "tetrapylon.adapters", *arguments]


@pytest.fixture
def start(folder: Path, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Start one that keeps running; at the end it gets SIGTERM, and must exit with 0."""
    with contextlib.ExitStack() as running:

        def start(*arguments: str, stdin: Any = subprocess.DEVNULL, **options: Any) -> Any:
            log = tmp_path / "log"
            with log.open("wb") as out:
                process = subprocess.Popen(
                    command(*arguments), cwd=folder, stdin=stdin, stdout=out, stderr=out, **options
                )
            running.callback(process.wait, WITHIN_S)
            running.callback(process.kill)
            process.log = log  # type: ignore[attr-defined]
            return process

        yield start


def stop(process: Any, number: int = signal.SIGTERM) -> str:
    process.send_signal(number)
    assert process.wait(WITHIN_S) == 0, process.log.read_text()
    return str(process.log.read_text())


def connect(address: Any, process: Any) -> socket.socket:
    """Connect as soon as it listens."""
    deadline = time.monotonic() + WITHIN_S
    while True:
        connected = socket.socket(socket.AF_INET if isinstance(address, tuple) else socket.AF_UNIX)
        connected.settimeout(WITHIN_S)
        try:
            connected.connect(address)
            return connected
        except OSError:
            connected.close()
            assert process.poll() is None, process.log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.01)


def ask_fastcgi(address: Any, process: Any, **params: str) -> bytes:
    codec = Connection(Side.CLIENT)
    params = {"REQUEST_METHOD": "GET", "SCRIPT_NAME": "/shop", "PATH_INFO": "/a", **params}
    with connect(address, process) as connected:
        for event in (BeginRequest(1), Params(1, params), Stdin(1, b"")):
            connected.sendall(codec.send(event))
        out = b""
        while True:
            event = codec.next_event()
            if event is NEED_DATA:
                codec.receive_data(connected.recv(65536))
            elif isinstance(event, Stdout):
                out += event.data
            elif isinstance(event, EndRequest):
                return out


OK = b"Status: 200 OK\r\n\r\n"
WSGI_OK = b"Status: 200 OK\r\ncontent-type: text/x\r\ncontent-length: 8\r\n\r\n"


def test_fastcgi_on_a_unix_socket(start: Any, short_path: Path) -> None:
    process = start(
        "shop:asgi", "--as", "fastcgi", "--bind", f"unix:{short_path}", "--socket-mode", "600"
    )
    assert ask_fastcgi(str(short_path), process) == OK + b"/shop|/shop/a"
    assert short_path.stat().st_mode & 0o777 == 0o600
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(ask_fastcgi, str(short_path), process) for _ in range(32)]
        assert {one.result() for one in asked} == {OK + b"/shop|/shop/a"}
    assert stop(process) == "up\ndown\n"
    assert not short_path.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_the_socket_on_descriptor_0(number: int, start: Any) -> None:
    """FCGI-2.2-LISTENSOCK, FCGI-2.4-KILL: two processes of one socket; what runs is finished."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = listening.getsockname()
        process = start("shop:create()", "--as", "fastcgi", stdin=listening, close_fds=True)
        assert ask_fastcgi(address, process) == OK + b"/shop|/shop/a"
        with ThreadPoolExecutor() as pool:
            slow = pool.submit(ask_fastcgi, address, process, PATH_INFO="/slow")
            deadline = time.monotonic() + WITHIN_S
            while "slow" not in process.log.read_text():
                assert time.monotonic() < deadline
                time.sleep(0.01)
            assert stop(process, number) == "up\nslow\ndown\n"
            assert slow.result() == OK + b"/shop|/shop/slow"


def test_what_a_spawner_has_closed(folder: Path) -> None:
    """FCGI-2.2-CLOSED: nothing printed gets into a connection."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        process: Any = subprocess.Popen(
            ["/bin/sh", "-c", 'exec "$0" "$@" 1>&- 2>&-', *command("shop:asgi", "--as", "fastcgi")],
            cwd=folder,
            stdin=listening,
        )
        process.log = folder / "shop.py"
        try:
            asked = ask_fastcgi(listening.getsockname(), process, PATH_INFO="/slow")
            assert asked == OK + b"/shop|/shop/slow"
        finally:
            process.terminate()
            assert process.wait(WITHIN_S) == 0


def test_wsgi_and_the_mount(start: Any, short_path: Path) -> None:
    process = start(
        "shop:wsgi", "--as", "fastcgi", f"--bind=unix:{short_path}", "--root-path=/shop"
    )
    whole = {"SCRIPT_NAME": "/shop/a", "PATH_INFO": ""}
    assert ask_fastcgi(str(short_path), process, **whole) == WSGI_OK + b"/shop|/a"
    stop(process)


def test_scgi(start: Any, short_path: Path) -> None:
    process = start("shop:asgi", "--as", "scgi", "--bind", f"unix:{short_path}")
    with connect(str(short_path), process) as connected:
        variables = {"REQUEST_METHOD": "GET", "SCRIPT_NAME": "/shop", "PATH_INFO": "/a"}
        connected.sendall(encode_head(variables, 0))
        with connected.makefile("rb") as answer:
            assert answer.read() == OK + b"/shop|/shop/a"
    assert stop(process) == "up\ndown\n"


def test_cgi(folder: Path) -> None:
    """All at the same time, for each takes a moment to start."""

    def run(application: str, **env: str) -> Any:
        return subprocess.run(
            command(application, "--as", "cgi"),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env={**os.environ, **env},
            timeout=60,
            check=False,
        )

    request = {"REQUEST_METHOD": "GET", "SCRIPT_NAME": "/shop", "PATH_INFO": "/a"}
    with ThreadPoolExecutor() as pool:
        asgi = pool.submit(run, "shop:asgi", **request)
        wsgi = pool.submit(run, "shop:wsgi", **request)
        by_hand = pool.submit(run, "shop:wsgi")
        assert asgi.result().stdout == OK + b"/shop|/shop/a"
        assert wsgi.result().stdout == WSGI_OK + b"/shop|/a"
        assert by_hand.result().returncode == 64
        assert b"there is no REQUEST_METHOD" in by_hand.result().stderr


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--help"], 0, "cgi|fastcgi|scgi"),
        ([], 64, "Usage:"),
        (["shop:asgi"], 64, "Missing option '--as'"),
        (["shop:asgi", "--as", "http"], 64, "'http' is not one of"),
        (["shop:asgi", "--as", "cgi", "--bind", "unix:/x"], 64, "has no socket"),
        (["shop:asgi", "--as", "scgi", "--socket-mode", "rw"], 64, "not like 660"),
        (["shop:asgi", "--as", "fastcgi", "--bind", "here"], 64, "'here' is not an address"),
        (["shob:asgi", "--as", "cgi"], 66, "did you mean 'shop:asgi'"),
        (["shop:asgy", "--as", "cgi"], 66, "did you mean 'shop:asgi'"),
        (["shop:neither", "--as", "cgi"], 70, "is not an application"),
        (["shop:fails", "--as", "fastcgi", "--bind=unix:{tmp}/s"], 70, "no database"),
        (
            ["shop:asgi", "--as", "fastcgi", "--bind=unix:{tmp}/file"],
            69,
            "cannot listen on unix:{tmp}/file: Address already in use",
        ),
    ],
)
def test_what_it_says(
    arguments: list[str],
    code: int,
    text: str,
    folder: Path,
    short_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    short_path.mkdir()
    (short_path / "file").write_text("precious")
    arguments = [word.replace("{tmp}", str(short_path)) for word in arguments]
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "shop", raising=False)
    monkeypatch.setattr(sys, "argv", ["adapters", *arguments])
    monkeypatch.setattr("tetrapylon.adapters.__main__.logging.basicConfig", lambda **_: None)
    with pytest.raises(SystemExit) as ended:
        main()
    said = " ".join("".join(capsys.readouterr()).split())
    assert (ended.value.code or 0, text.replace("{tmp}", str(short_path)) in said) == (code, True)
    assert [path.name for path in short_path.iterdir()] == ["file"]


def test_no_socket_on_descriptor_0(folder: Path) -> None:
    done = subprocess.run(
        command("shop:asgi", "--as", "fastcgi"),
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (64, "")
    assert done.stderr.endswith("name an address to bind, by --bind\n")


def test_it_does_without_the_gateway(folder: Path) -> None:
    code = (
        "import sys, runpy\n"
        "sys.argv = ['adapters', 'shop:asgi', '--as', 'cgi']\n"
        "try: runpy.run_module('tetrapylon.adapters', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "sys.exit(any(name.startswith('tetrapylon.gateway') for name in sys.modules))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 0

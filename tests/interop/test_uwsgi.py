"""uWSGI behind the gateway, by its own protocol and by SCGI, both of which it speaks."""

from __future__ import annotations

import base64
import concurrent.futures
import hashlib
import http.client
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.interop

SCRIPT = """#!/bin/sh
printf 'Status: 201 Created\\nContent-Type: text/plain\\n\\n%s %s' "$PATH_INFO" "$REMOTE_ADDR"
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a path short enough for sockets."""
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


@pytest.fixture
def uwsgi(find_program: Any, start_server: Any, folder: Path) -> Any:
    """Start uWSGI with the test's application; return its addresses by protocol."""
    program = find_program("uwsgi", package="uwsgi-core uwsgi-plugin-python3")

    def start(*options: str) -> dict[str, str]:
        addresses = {kind: f"unix:{folder}/{kind}" for kind in ("uwsgi", "scgi")}
        start_server(
            program,
            *("--plugin", "python3", "--master", "--processes", "3", "--die-on-term"),
            *("--socket", f"{folder}/uwsgi", "--scgi-socket", f"{folder}/scgi"),
            *("--wsgi-file", str(Path(__file__).with_name("uwsgi_application.py"))),
            *options,
            address=addresses["uwsgi"],
            # Its Python is the system's: it must not find ours.
            env={"PYTHONPATH": "", "VIRTUAL_ENV": ""},
        )
        return addresses

    return start


def routes(addresses: dict[str, str]) -> str:
    return "".join(
        f"[[routes]]\npath = '/{kind}/'\nbackend = {{ {kind} = '{address}' }}\n"
        for kind, address in addresses.items()
    )


LISTEN = "[listen]\nbind = '127.0.0.1:0'\n"


def test_requests(uwsgi: Any, gateway: Any) -> None:
    addresses = uwsgi("--buffer-size", "65535")
    running = gateway(LISTEN + routes(addresses))
    for kind in addresses:
        path = f"/{kind}/caf%C3%A9/a%20b"
        for size in (0, 1, 65_537, 10_000_000):
            body = os.urandom(size)
            long = {"Cookie": "c=" + "v" * 8000, "X-Long": "l" * 16000}
            answer = running.request("POST", f"{path}?a=1&b", body, long)
            assert answer.status == 200
            told = answer.json()
            assert told["length"] == size
            assert told["sha256"] == hashlib.sha256(body).hexdigest()
            environ = told["environ"]
            assert environ["SCRIPT_NAME"] == f"/{kind}"
            assert environ["PATH_INFO"] == "/caf\u00c3\u00a9/a b"
            assert environ["QUERY_STRING"] == "a=1&b"
            assert environ["HTTP_X_LONG"] == long["X-Long"]
            assert environ["REQUEST_METHOD"] == "POST"
            assert environ["wsgi.url_scheme"] == "http"
            assert environ["REMOTE_ADDR"] == "127.0.0.1"
        pieces = [os.urandom(70_000) for _ in range(5)]
        chunked = {"Transfer-Encoding": "chunked"}
        answer = running.request("PUT", path, pieces, chunked, encode_chunked=True)
        assert answer.json()["length"] == 350_000

        assert running.get(f"/{kind}/stream?5000000").body == b"x" * 5_000_000
        early = running.request("POST", f"/{kind}/early", bytes(10_000_000))
        assert (early.status, early.body) == (202, b"I have not read it")
        head = running.request("HEAD", f"/{kind}/stream?100000")
        assert (head.status, head.body) == (200, b"")
        moved = running.get(f"/{kind}/moved")
        assert (moved.status, moved.headers["Location"]) == (302, "/elsewhere")
        assert moved.headers["Set-Cookie"] == "a=1"


def test_faults(uwsgi: Any, gateway: Any) -> None:
    addresses = uwsgi()
    running = gateway(LISTEN + routes(addresses))
    for kind in addresses:
        with pytest.raises(http.client.IncompleteRead):
            running.get(f"/{kind}/short")
        with pytest.raises(http.client.IncompleteRead):
            running.get(f"/{kind}/die-later")
        assert running.get(f"/{kind}/die").status == 502
        # Of what an application raises uWSGI tells its own log, and nobody else.
        assert running.get(f"/{kind}/none").status == 502
        assert running.get(f"/{kind}/well").status == 200
    # 4096 bytes are what it takes unless it is told otherwise.
    assert running.get("/uwsgi/", {"Cookie": "c=" + "v" * 6000}).status == 502
    assert running.has_logged("its buffer-size is less than the request's head")


def test_many_at_once(uwsgi: Any, gateway: Any) -> None:
    # F6
    addresses = uwsgi("--listen", "64")
    running = gateway(LISTEN + routes(addresses))

    def ask(number: int) -> tuple[int, str]:
        kind = ("uwsgi", "scgi")[number % 2]
        body = f"{number}".encode() * 1000
        answer = running.request("POST", f"/{kind}/{number}", body)
        told = answer.json()
        assert told["sha256"] == hashlib.sha256(body).hexdigest()
        return answer.status, told["environ"]["PATH_INFO"]

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        assert list(pool.map(ask, range(200))) == [(200, f"/{number}") for number in range(200)]


def test_modifiers(uwsgi: Any, gateway: Any, folder: Path, find_program: Any) -> None:
    scripts = folder / "scripts"
    scripts.mkdir()
    script = scripts / "hello.sh"
    script.write_text(SCRIPT)
    script.chmod(0o755)
    addresses = uwsgi("--plugin", "cgi", "--cgi", str(scripts))
    running = gateway(
        LISTEN + "[[routes]]\nmount = false\n"
        f"backend = {{ uwsgi = '{addresses['uwsgi']}', modifier1 = 9 }}\n"
    )
    answer = running.get("/hello.sh/more")
    assert (answer.status, answer.text) == (201, "/more 127.0.0.1")


def test_an_authorizer_s_user(uwsgi: Any, gateway: Any) -> None:
    addresses = uwsgi()
    doorkeeper = Path(__file__).parents[2] / "examples" / "authorizer" / "doorkeeper.py"
    running = gateway(
        LISTEN
        + f"[backends.door]\nspawn = ['{sys.executable}', '{doorkeeper}']\n"
        + routes(addresses).replace("[[routes]]", "[[routes]]\nauthorizer = 'door'")
    )
    ada = {"Authorization": "Basic " + base64.b64encode(b"ada:notes").decode()}
    for kind in addresses:
        assert running.get(f"/{kind}/", {"Remote-User": "ada"}).status == 401
        environ = running.request("POST", f"/{kind}/", b"body", ada).json()["environ"]
        assert (environ["REMOTE_USER"], environ["AUTH_TYPE"]) == ("ada", "Basic")
        assert environ["CONTENT_LENGTH"] == "4"

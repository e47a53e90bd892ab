"""Routes behind an authorizer, with every kind of backend, through a real gateway."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import re
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

AUTHORIZER = Path(__file__).parents[1] / "adapters" / "flup_authorizer.py"
APPLICATIONS = """
import hashlib
import json

def told(variables):
    names = ("REMOTE_USER", "AUTH_TYPE", "TOLD", "HTTP_REMOTE_USER", "CONTENT_LENGTH")
    return {name: variables[name] for name in names if name in variables}

def wsgi(environ, start_response):
    body = environ["wsgi.input"].read()
    answer = {"told": told(environ), "sha256": hashlib.sha256(body).hexdigest()}
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(answer).encode()]

async def asgi(scope, receive, send):
    if scope["type"] == "lifespan":
        return
    digest = hashlib.sha256()
    more = True
    while more:
        message = await receive()
        digest.update(message["body"])
        more = message["more_body"]
    answer = {
        "told": told(scope["extensions"].get("tetrapylon.authorizer", {})),
        "extensions": sorted(scope["extensions"]),
        "sha256": digest.hexdigest(),
    }
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": json.dumps(answer).encode()})
"""
SCRIPT = """#!/bin/sh
case $PATH_INFO in
/to-wsgi) printf 'Location: /wsgi/x\\n\\n' ;;
/to-open) printf 'Location: /open/wsgi\\n\\n' ;;
*) printf 'Content-Type: text/plain\\n\\n%s %s ' "$REMOTE_USER" "$AUTH_TYPE"; sha256sum ;;
esac
"""
CONFIGURATION = """
[listen]
bind = ["127.0.0.1:0", "unix:{folder}/front"]

[limits]
drain = "64KiB"

[backends.door]
spawn = ["{python}", "{authorizer}"]

[backends.absent]
fastcgi = "unix:{folder}/absent"

[backends.wsgi]
wsgi = "applications:wsgi"

[[routes]]
path = "/wsgi/"
backend = "wsgi"
authorizer = "door"

[[routes]]
path = "/asgi/"
backend = {{ asgi = "applications:asgi" }}
authorizer = "door"

[[routes]]
path = "/cgi/"
backend = {{ cgi = "program" }}
authorizer = "door"

[[routes]]
path = "/files/"
backend = {{ static = "files" }}
authorizer = "door"

[[routes]]
path = "/moved/"
backend = {{ redirect = "/elsewhere" }}
authorizer = "door"

[[routes]]
path = "/proxied/"
backend = {{ proxy = "unix:{folder}/front", preserve_host = false }}
authorizer = "door"
host = "front.example.com"

[[routes]]
path = "/proxied/"
backend = "wsgi"

[[routes]]
path = "/open/"
backend = "wsgi"

[[routes]]
path = "/never/"
backend = "wsgi"
authorizer = "absent"
"""


@pytest.fixture(scope="module")
def running(shared_gateway: Any) -> Iterator[Any]:
    with tempfile.TemporaryDirectory() as path:
        folder = Path(path)
        (folder / "applications.py").write_text(APPLICATIONS)
        program = folder / "program"
        program.write_text(SCRIPT)
        program.chmod(0o755)
        (folder / "files").mkdir()
        (folder / "files" / "page.txt").write_text("a page")
        file = folder / "tetrapylon.toml"
        text = CONFIGURATION.format(folder=folder, python=sys.executable, authorizer=AUTHORIZER)
        file.write_text(text)
        yield shared_gateway(file)


@pytest.fixture
def member() -> Callable[..., dict[str, str]]:
    """Return the fields of one who may pass."""

    def member(**fields: str) -> dict[str, str]:
        pair = base64.b64encode(b"ada:open sesame").decode()
        more = {name.replace("_", "-"): value for name, value in fields.items()}
        return {"Authorization": f"Basic {pair}", **more}

    return member


GUARDED = ["/wsgi/x", "/asgi/x", "/cgi/x", "/files/page.txt", "/files/none", "/moved/x"]


@pytest.mark.parametrize("path", GUARDED)
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "DELETE", "OPTIONS"])
def test_nobody_passes_without_it(running: Any, path: str, method: str) -> None:
    # FCGI-6.3-200
    answer = running.request(method, path, headers={"Remote-User": "ada"})
    assert answer.status == 401
    assert answer.headers["WWW-Authenticate"] == 'Basic realm="cave"'
    assert answer.body == (b"" if method == "HEAD" else b"Who are you?")
    assert not [name for name in answer.headers if name.lower().startswith("variable-")]


@pytest.mark.parametrize(
    "path",
    ["//files/page.txt", "/./files/page.txt", "/x/../files/page.txt", "/%66iles/page.txt"],
)
def test_nobody_passes_by_another_spelling(running: Any, path: str) -> None:
    # D2
    assert running.get(path).status == 401


def test_files_and_redirects(running: Any, member: Any) -> None:
    assert running.get("/files/page.txt", member()).text == "a page"
    assert running.get("/files/none", member()).status == 404
    moved = running.get("/moved/x", member())
    assert (moved.status, moved.headers["Location"]) == (308, "/elsewhere")


@pytest.mark.parametrize("size", [0, 1000, 3_000_000])
@pytest.mark.parametrize("is_chunked", [False, True])
def test_the_body_is_there_for_who_answers(
    running: Any, member: Any, size: int, is_chunked: bool
) -> None:
    body = os.urandom(size)
    expected = hashlib.sha256(body).hexdigest()
    fields = member(Remote_User="root")
    sent: Any = body
    if is_chunked:
        fields["Transfer-Encoding"] = "chunked"
        sent = [body[start : start + 100_000] for start in range(0, size, 100_000)]
    for path in ("/wsgi/x", "/asgi/x"):
        answer = running.request("POST", path, sent, fields, encode_chunked=is_chunked).json()
        assert answer["sha256"] == expected
        told = answer["told"]
        assert (told["REMOTE_USER"], told["AUTH_TYPE"]) == ("ada", "Basic")
        # What it was told itself: all but what section 6.3 keeps from it.
        facts = json.loads(told["TOLD"])
        assert facts["DOCUMENT_URI"] == path
        assert facts["REQUEST_METHOD"] == "POST"
        assert "CONTENT_LENGTH" not in facts
        assert "HTTP_TRANSFER_ENCODING" not in facts
        if path == "/wsgi/x":
            assert told["HTTP_REMOTE_USER"] == "root"
        else:
            assert answer["extensions"] == ["tetrapylon.authorizer"]
    answer = running.request("POST", "/cgi/x", sent, fields, encode_chunked=is_chunked)
    assert answer.text.split()[:3] == ["ada", "Basic", expected]


def test_without_an_authorizer_there_is_nobody(running: Any, member: Any) -> None:
    fields = member(Remote_User="root", Variable_Remote_User="root")
    assert running.get("/open/x", fields).json()["told"] == {"HTTP_REMOTE_USER": "root"}


def test_a_proxied_server_learns_nothing(running: Any, member: Any) -> None:
    host = {"Host": "front.example.com", "Remote-User": "root", "Variable-Remote-User": "root"}
    assert running.get("/proxied/x", host).status == 401
    # Behind the proxy the same path has no authorizer.
    assert running.get("/proxied/x", member(**host)).json()["told"] == {}


def test_local_redirects_ask_again(running: Any, member: Any) -> None:
    answer = running.get("/cgi/to-wsgi", member()).json()
    assert json.loads(answer["told"]["TOLD"])["DOCUMENT_URI"] == "/wsgi/x"
    # The route that it leads to has no authorizer: nobody is nobody there.
    assert running.get("/cgi/to-open", member()).json()["told"] == {}


def test_who_fails_lets_nobody_pass(running: Any, member: Any) -> None:
    assert running.get("/never/x", member()).status == 502
    assert running.has_logged("(absent): 502: cannot connect to")


def test_a_body_is_not_asked_for_that_nobody_will_read(running: Any) -> None:
    # A12
    with socket.create_connection(("127.0.0.1", running.port), timeout=20) as client:
        head = "POST /wsgi/x HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n"
        client.sendall(f"{head}Expect: 100-continue\r\n\r\n".encode())
        answer = client.makefile("rb").readline()
        assert answer == b"HTTP/1.1 401 Unauthorized\r\n"


def test_the_connection_is_kept_behind_a_refusal(running: Any, member: Any) -> None:
    # A11, A12: what was sent of the body is read away
    with contextlib.closing(running.connect()) as connection:
        for _ in range(2):
            connection.request("POST", "/wsgi/x", b"x" * 10_000)
            response = connection.getresponse()
            assert (response.status, response.read()) == (401, b"Who are you?")
        kept = connection.sock
        connection.request("GET", "/files/page.txt", headers=member())
        assert connection.getresponse().read() == b"a page"
        assert connection.sock is kept


def test_pipelined_requests_are_each_asked_for(running: Any, member: Any) -> None:
    allowed = "".join(f"{name}: {value}\r\n" for name, value in member().items())
    one = "GET /files/page.txt HTTP/1.1\r\nHost: a\r\n{}\r\n"
    with socket.create_connection(("127.0.0.1", running.port), timeout=20) as client:
        last = "Connection: close\r\n"
        requests = [one.format(allowed), one.format(""), one.format(allowed + last)]
        client.sendall("".join(requests).encode())
        answers = client.makefile("rb").read()
    statuses = re.findall(rb"HTTP/1\.1 ([0-9]{3}) ", answers)
    assert statuses == [b"200", b"401", b"200"]


def test_the_access_log_has_the_user(running: Any, member: Any) -> None:
    running.get("/files/page.txt?logged", member())
    running.get("/files/page.txt?logged")
    deadline = time.monotonic() + 20
    lines: list[str] = []
    while len(lines) < 2:
        lines = [line for line in running.stdout_text().splitlines() if "?logged" in line]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    first, second = lines
    assert first.startswith("127.0.0.1 - ada [")
    assert first.endswith(" /files/")
    assert second.startswith("127.0.0.1 - - [")
    assert second.endswith(" door")

"""`FastCgiAuthorizer` against flup in that role, and against peers that misbehave on command."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tetrapylon.adapters import FastCgiAuthorizer, FastCgiToAsgi
from tetrapylon.adapters.errors import (
    BackendError,
    BadGateway,
    BadRequest,
    ClientDisconnected,
    FieldsTooLarge,
    GatewayTimeout,
    Truncated,
    Unavailable,
)
from tetrapylon.protocols.fastcgi import (
    NEED_DATA,
    BeginRequest,
    Connection,
    EndRequest,
    Params,
    ProtocolStatus,
    Role,
    Side,
    Stdout,
)
from tetrapylon.protocols.fastcgi.records import encode_record, encode_stream

WITHIN_S = 10.0
PASS = b"Status: 200 OK\r\nVariable-REMOTE_USER: ada\r\n\r\n"
END = encode_record(3, 1, bytes(8))
FAILED = encode_record(3, 1, bytes((0, 0, 0, 3, 0, 0, 0, 0)))

T = TypeVar("T")
Run = Callable[[Coroutine[Any, Any, T]], T]
Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def stdout(data: bytes) -> bytes:
    return encode_stream(6, 1, data)


# flup


@pytest.fixture(scope="module")
def flup() -> Iterator[str]:
    """The address of an authorizer."""
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "flup")
        script = Path(__file__).with_name("flup_authorizer.py")
        with subprocess.Popen([sys.executable, str(script), path]) as process:
            try:
                deadline = time.monotonic() + 3 * WITHIN_S
                while True:
                    assert process.poll() is None
                    with socket.socket(socket.AF_UNIX) as probe:
                        if probe.connect_ex(path) == 0:
                            break
                    assert time.monotonic() < deadline
                    time.sleep(0.02)
                yield f"unix:{path}"
            finally:
                process.send_signal(signal.SIGTERM)


def basic(user: str, password: str) -> tuple[bytes, bytes]:
    return b"authorization", b"Basic " + base64.b64encode(f"{user}:{password}".encode())


def test_flup_lets_pass_and_says_who_it_is(flup: str, run: Run[Any], Client: Any) -> None:
    # FCGI-6.3-AUTHORIZER, FCGI-6.3-200, FCGI-6.3-VARIABLE
    async def main() -> None:
        body = [b"not ", b"read"]
        client = Client([*body])
        app = FastCgiToAsgi(flup, root="/nowhere", params={"REALM": "cave"})
        scope = client.scope(
            "POST",
            "/caf\u00e9/x",
            "a=1",
            root_path="/caf\u00e9",
            raw_path=b"/caf%C3%A9/./x",
            headers=[basic("ada", "open sesame"), (b"content-type", b"text/plain")],
        )
        variables = await FastCgiAuthorizer(app).authorize(scope, client.receive, client.send)
        assert variables is not None
        told = json.loads(variables.pop("TOLD"))
        assert variables == {"REMOTE_USER": "ada", "AUTH_TYPE": "Basic"}
        assert not told.keys() & {"CONTENT_LENGTH", "PATH_TRANSLATED", "SCRIPT_FILENAME"}
        # flup makes these two of REQUEST_URI where they were not sent.
        assert told.get("SCRIPT_NAME", "") == ""
        assert told.get("PATH_INFO", "") in ("", "/caf%C3%A9/./x")
        assert told["DOCUMENT_URI"] == "/caf\u00c3\u00a9/x"
        assert told["REQUEST_URI"] == "/caf%C3%A9/./x?a=1"
        assert told["REQUEST_METHOD"] == "POST"
        assert told["REALM"] == "cave"
        # The body is there for who answers; the client has seen nothing.
        assert client.body == body
        assert client.messages == []

    run(main())


def test_flup_refuses(flup: str, run: Run[Any], Client: Any) -> None:
    # FCGI-6.3-200
    async def main() -> None:
        authorizer = FastCgiAuthorizer(FastCgiToAsgi(flup))
        for fields in ([], [basic("ada", "please")]):
            client = Client()
            scope = client.scope(headers=fields)
            assert await authorizer.authorize(scope, client.receive, client.send) is None
            assert (client.status, client.content) == (401, b"Who are you?")
            assert client.is_complete
            assert (b"www-authenticate", b'Basic realm="cave"') in client.headers
            assert not [name for name, _ in client.headers if name.startswith(b"variable-")]
        client = Client()
        scope = client.scope("HEAD")
        assert await authorizer.authorize(scope, client.receive, client.send) is None
        assert (client.status, client.content, client.is_complete) == (401, b"", True)

    run(main())


def test_credentials_can_be_kept_from_it(flup: str, run: Run[Any], Client: Any) -> None:
    async def main() -> None:
        authorizer = FastCgiAuthorizer(FastCgiToAsgi(flup, pass_authorization=False))
        client = Client()
        scope = client.scope(headers=[basic("ada", "open sesame")])
        assert await authorizer.authorize(scope, client.receive, client.send) is None
        assert client.status == 401

    run(main())


# Scripted peers


async def read_request(reader: asyncio.StreamReader) -> dict[str, str]:
    """Read one request to an authorizer, whose last record is the end of its PARAMS."""
    codec = Connection(Side.RESPONDER)
    while True:
        event = codec.next_event()
        if event is NEED_DATA:
            data = await reader.read(65536)
            assert data, "the request ended early"
            codec.receive_data(data)
        elif isinstance(event, BeginRequest):
            assert event.role is Role.AUTHORIZER
        else:
            assert isinstance(event, Params)
            assert not codec.has_pending
            return dict(event.params)


@pytest.fixture
def ask(
    run: Run[Any], short_path: Path, Client: Any, peer_at: Any
) -> Callable[..., tuple[Any, Any]]:
    """Ask a peer that answers with the pieces; return the client and what came of it."""

    def ask(
        *pieces: bytes,
        method: str = "GET",
        stays_open: bool = False,
        fields: list[tuple[bytes, bytes]] | None = None,
        **options: Any,
    ) -> tuple[Any, Any]:
        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_request(reader)
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
            if stays_open:
                assert await reader.read() == b""

        async def main() -> tuple[Any, Any]:
            client = Client([bytes(10)] if method == "POST" else [b""])
            scope = client.scope(method, headers=fields or [])
            async with peer_at(short_path, script):
                authorizer = FastCgiAuthorizer(FastCgiToAsgi(f"unix:{short_path}", **options))
                try:
                    found = await authorizer.authorize(scope, client.receive, client.send)
                except Exception as error:
                    return client, error
                return client, found

        return run(main())

    return ask


@pytest.mark.parametrize(
    ("head", "variables"),
    [
        (b"Status: 200 OK\r\n\r\n", {}),
        (b"Content-Type: text/html\r\n\r\n", {}),
        (b"HTTP/1.1 200 OK\r\nVariable-A: b\r\n\r\n", {"A": "b"}),
        (PASS + b"and some content", {"REMOTE_USER": "ada"}),
        (b"Status: 200\nvariable-auth-method: \xc3\xbc x \n\n", {"AUTH_METHOD": "\u00c3\u00bc x"}),
        (b"Status: 200\nVariable-HTTP_X_LEVEL: 3\nVariable-E:\n\n", {"HTTP_X_LEVEL": "3", "E": ""}),
        (b"Status: 200\nVariable-A: b\nLocation: /x\nX-Sendfile: /etc/passwd\n\n", {"A": "b"}),
        (b"Status: 200\nContent-Length: 3\nVariable-A: b\n\nabc", {"A": "b"}),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
def test_permissions(ask: Any, head: bytes, variables: dict[str, str], method: str) -> None:
    client, found = ask(stdout(head) + END, method=method)
    assert found == variables
    assert client.messages == []
    assert client.body != []


@pytest.mark.parametrize(
    ("output", "status", "content"),
    [
        (b"Status: 403 No\nContent-Type: text/plain\n\nno", 403, b"no"),
        (b"Status: 201 Created\nVariable-A: b\n\n", 201, b""),
        (b"Status: 204 No Content\n\n", 204, b""),
        (b"Status: 302 Found\nLocation: https://login.example.com/\n\n", 302, b""),
        (b"Location: https://login.example.com/\n\n", 302, b""),
        (b"Location: /login?next=/x\n\n", 302, b""),
        (b"Location: /login\nSet-Cookie: a=b\n\n", 302, b""),
        (b"Status: 304 Not Modified\n\n", 304, b""),
    ],
)
def test_refusals_are_the_client_s(ask: Any, output: bytes, status: int, content: bytes) -> None:
    client, found = ask(stdout(output) + END)
    assert found is None
    assert (client.status, client.content, client.is_complete) == (status, content, True)
    fields = dict(client.headers)
    assert not [name for name in fields if name.startswith(b"variable-")]
    location = [line for line in output.split(b"\n") if line.startswith(b"Location: ")]
    assert fields.get(b"location") == (location[0][10:] if location else None)


def test_a_refusal_may_end_with_a_failure(ask: Any) -> None:
    client, found = ask(stdout(b"Status: 403 No\nContent-Type: text/plain\n\nno") + FAILED)
    assert found is None
    assert (client.status, client.content, client.is_complete) == (403, b"no", True)


BROKEN = {
    "nothing": b"",
    "a failure at its end": stdout(PASS) + FAILED,
    "a failure behind a whole answer": stdout(b"Status: 200\nContent-Length: 0\n\n") + FAILED,
    "no END_REQUEST": stdout(PASS) + stdout(b""),
    "half a head": stdout(PASS[:-2]) + END,
    "no head": stdout(b"yes") + END,
    "no status": stdout(b"Variable-REMOTE_USER: ada\n\n") + END,
    "another status": stdout(b"Status: 99\n\n") + END,
    "too short": stdout(b"Status: 200\nContent-Length: 5\n\nabc") + END,
    "more after the end": stdout(PASS) + END + stdout(b"x"),
    "garbage behind a whole answer": stdout(b"Status: 200\nContent-Length: 0\n\n") + b"\x02" * 8,
    "another protocol": b"HTTP/1.1 200 OK\r\n\r\n",
    "refused": encode_record(3, 1, bytes((0, 0, 0, 0, ProtocolStatus.UNKNOWN_ROLE, 0, 0, 0))),
    "its own name": stdout(b"Status: 200\nVariable-SCRIPT_NAME: /x\n\n") + END,
    "its own name in small": stdout(b"Status: 200\nVariable-request-method: GET\n\n") + END,
    "no name": stdout(b"Status: 200\nVariable-: x\n\n") + END,
    "a strange name": stdout(b"Status: 200\nVariable-wsgi.input: x\n\n") + END,
    "one name twice": stdout(b"Status: 200\nVariable-A-B: x\nVariable-A_B: y\n\n") + END,
    "much content": stdout(PASS) + stdout(b"x" * 70_000) + END,
}


# An answer to HEAD has no content that could be too little or too much.
CASES = [("GET", case) for case in BROKEN] + [
    ("HEAD", case) for case in BROKEN if case not in ("too short", "much content")
]


@pytest.mark.parametrize(("method", "case"), CASES)
def test_what_is_broken_is_no_permission(ask: Any, method: str, case: str) -> None:
    client, error = ask(BROKEN[case], method=method)
    assert isinstance(error, BadGateway)
    assert client.messages == []


def test_no_answer_in_time_is_no_permission(ask: Any) -> None:
    client, error = ask(stays_open=True, first_byte_s=0.1)
    assert isinstance(error, GatewayTimeout)
    client, error = ask(stdout(PASS), stays_open=True, output_idle_s=0.1)
    assert isinstance(error, BadGateway)
    assert client.messages == []


def test_overload_is_no_permission(ask: Any) -> None:
    overloaded = encode_record(3, 1, bytes((0, 0, 0, 0, ProtocolStatus.OVERLOADED, 0, 0, 0)))
    client, error = ask(overloaded)
    assert isinstance(error, Unavailable)
    assert client.messages == []


def test_a_refusal_that_breaks_off_is_cut(ask: Any) -> None:
    client, error = ask(stdout(b"Status: 403\nContent-Length: 5\n\nno"), stays_open=False)
    assert isinstance(error, Truncated)
    assert not client.is_complete


def test_a_request_that_it_cannot_be_told_of(ask: Any) -> None:
    _, error = ask(stdout(PASS) + END, fields=[(b"x-large", b"v" * 66_000)])
    assert isinstance(error, FieldsTooLarge)
    _, error = ask(stdout(PASS) + END, fields=[(b"x-nul", b"\0")])
    assert isinstance(error, BadRequest)


def test_nobody_there(run: Run[Any], short_path: Path, Client: Any) -> None:
    async def main() -> None:
        client = Client()
        authorizer = FastCgiAuthorizer(FastCgiToAsgi(f"unix:{short_path}"))
        with pytest.raises(BackendError) as caught:
            await authorizer.authorize(client.scope(), client.receive, client.send)
        assert caught.value.status == 502
        assert client.messages == []

    run(main())


def test_the_client_leaves(run: Run[Any], short_path: Path, Client: Any, peer_at: Any) -> None:
    async def main() -> None:
        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_request(reader)
            assert await reader.read() == b""

        async with peer_at(short_path, script) as peer:
            client = Client()
            authorizer = FastCgiAuthorizer(FastCgiToAsgi(f"unix:{short_path}"))
            asking = asyncio.create_task(
                authorizer.authorize(client.scope(), client.receive, client.send)
            )
            await peer.until(lambda: peer.connections == 1)
            client.leave()
            with pytest.raises(ClientDisconnected):
                await asyncio.wait_for(asking, WITHIN_S)
            await peer.until(lambda: peer.closed == 1)

    run(main())


def test_connections_are_kept(run: Run[Any], short_path: Path, Client: Any, peer_at: Any) -> None:
    # FCGI-5.1-KEEP
    async def main() -> None:
        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            codec = Connection(Side.RESPONDER)
            ended = 0
            while ended < 3:
                event = codec.next_event()
                if event is NEED_DATA:
                    codec.receive_data(await reader.read(65536))
                elif isinstance(event, BeginRequest):
                    assert event.keep_conn
                elif isinstance(event, Params):
                    writer.write(codec.send(Stdout(event.request_id, PASS)))
                    writer.write(codec.send(EndRequest(event.request_id)))
                    ended += 1

        async with peer_at(short_path, script) as peer:
            app = FastCgiToAsgi(f"unix:{short_path}", keep_alive=True)
            for _ in range(3):
                client = Client()
                scope = client.scope()
                found = await FastCgiAuthorizer(app).authorize(scope, client.receive, client.send)
                assert found == {"REMOTE_USER": "ada"}
            assert peer.connections == 1
            app.close()

    run(main())

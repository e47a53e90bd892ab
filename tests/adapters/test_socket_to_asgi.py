"""`ScgiToAsgi` and `UwsgiToAsgi` against flup's SCGI servers, and against peers that misbehave."""

from __future__ import annotations

import asyncio
import errno
import hashlib
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
from typing import Any, NamedTuple, TypeVar

import pytest

from tetrapylon.adapters import FastCgiToAsgi, ScgiToAsgi, UwsgiToAsgi
from tetrapylon.adapters.connections import Connections
from tetrapylon.adapters.errors import (
    BadGateway,
    BadRequest,
    ClientDisconnected,
    ContentTooLarge,
    FieldsTooLarge,
    GatewayTimeout,
    InsufficientStorage,
    LocalRedirect,
    NotFound,
    Truncated,
    Unavailable,
)
from tetrapylon.adapters.socket_to_asgi import SocketToAsgi
from tetrapylon.protocols.cgi.request import (
    NEED_DATA,
    Data,
    EndOfMessage,
    RequestDecoder,
    RequestHead,
)
from tetrapylon.protocols.scgi import ScgiRequestDecoder
from tetrapylon.protocols.uwsgi import UwsgiRequestDecoder

WITHIN_S = 10.0
HEAD = b"Status: 200 OK\r\nContent-Type: text/plain\r\n\r\n"

T = TypeVar("T")
Run = Callable[[Coroutine[Any, Any, T]], T]
Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


# flup


@pytest.fixture(scope="module", params=["threaded", "forked"])
def flup(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a flup server."""
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "flup")
        script = Path(__file__).with_name("flup_scgi.py")
        command = [sys.executable, str(script), request.param, path]
        with subprocess.Popen(
            command, stderr=subprocess.DEVNULL, start_new_session=True
        ) as process:
            try:
                wait_for_socket(path, process)
                yield f"unix:{path}"
            finally:
                # The forked one waits on in spite of SIGTERM: its `select` begins anew.
                os.killpg(process.pid, signal.SIGKILL)


def wait_for_socket(path: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 3 * WITHIN_S
    while True:
        assert process.poll() is None, "the server has ended"
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(path) == 0:
                return
        assert time.monotonic() < deadline, f"nothing listens on {path}"
        time.sleep(0.02)


def test_flup_gets_the_request(flup: str, run: Run[Any], Client: Any) -> None:
    async def main() -> None:
        body = os.urandom(1000)
        client = await Client([body[:300], body[300:]]).call(
            ScgiToAsgi(flup),
            "POST",
            "/api/caf\u00e9/x",
            query="a=1&b",
            root_path="/api",
            headers=[(b"x-one", b"1"), (b"proxy", b"evil"), (b"scgi", b"2")],
        )
        assert client.status == 200
        assert client.is_complete
        answer = json.loads(client.content)
        assert answer["sha256"] == hashlib.sha256(body).hexdigest()
        environ = answer["environ"]
        assert environ["SCGI"] == "1"
        assert environ["SCRIPT_NAME"] == "/api"
        assert environ["PATH_INFO"] == "/caf\u00c3\u00a9/x"  # latin-1 of the bytes, PEP 3333
        assert environ["QUERY_STRING"] == "a=1&b"
        assert environ["CONTENT_LENGTH"] == "1000"
        assert environ["HTTP_X_ONE"] == "1"
        assert "HTTP_PROXY" not in environ  # C1

    run(main())


@pytest.mark.parametrize("size", [0, 65_537, 3_000_000])
def test_flup_gets_the_body(flup: str, run: Run[Any], Client: Any, size: int) -> None:
    async def main() -> None:
        body = os.urandom(size)
        pieces = [body[start : start + 50_000] for start in range(0, size, 50_000)] or [b""]
        client = await Client(pieces).call(ScgiToAsgi(flup), "POST")
        answer = json.loads(client.content)
        assert answer["length"] == size
        assert answer["sha256"] == hashlib.sha256(body).hexdigest()

    run(main())


def test_flup_streams_and_answers_early(flup: str, run: Run[Any], Client: Any) -> None:
    async def main() -> None:
        app = ScgiToAsgi(flup)
        client = await Client().call(app, path="/stream", query="5000000")
        assert client.content == b"x" * 5_000_000
        assert client.is_complete
        client = await Client([bytes(100_000)] * 50).call(app, "POST", "/early")
        assert (client.status, client.content) == (202, b"I have not read it")
        client = await Client().call(app, "HEAD", "/stream", query="100")
        assert (client.status, client.content, client.is_complete) == (200, b"", True)
        client = await Client().call(app, path="/errors")
        assert (client.status, client.content) == (500, b"sorry")
        cookies = [value for name, value in client.headers if name == b"set-cookie"]
        assert cookies == [b"a=1", b"b=2"]

    run(main())


def test_many_at_once_get_their_own_answers(flup: str, run: Run[Any], Client: Any) -> None:
    # F6
    async def main() -> None:
        app = ScgiToAsgi(flup, connections=4, queue=40, queue_wait_s=WITHIN_S)
        bodies = [f"{number}".encode() * 100 for number in range(40)]
        clients = await asyncio.gather(*(Client([body]).call(app, "POST") for body in bodies))
        for client, body in zip(clients, bodies, strict=True):
            assert json.loads(client.content)["sha256"] == hashlib.sha256(body).hexdigest()

    run(main())


# Scripted peers


class Protocol(NamedTuple):
    adapter: type[SocketToAsgi]
    decoder: type[RequestDecoder]


@pytest.fixture(params=["scgi", "uwsgi"])
def protocol(request: pytest.FixtureRequest) -> Protocol:
    return {
        "scgi": Protocol(ScgiToAsgi, ScgiRequestDecoder),
        "uwsgi": Protocol(UwsgiToAsgi, UwsgiRequestDecoder),
    }[request.param]


async def read_request(
    reader: asyncio.StreamReader, decoder: RequestDecoder
) -> tuple[dict[str, str], bytes]:
    """Read one request; return its variables and its body."""
    variables: dict[str, str] = {}
    body = b""
    while True:
        event = decoder.next_event()
        if event is NEED_DATA:
            data = await reader.read(65536)
            assert data, "the request ended early"
            decoder.receive_data(data)
        elif isinstance(event, RequestHead):
            variables = event.variables
        elif isinstance(event, Data):
            body += event.data
        elif isinstance(event, EndOfMessage):
            return variables, body


def answering(protocol: Protocol, *pieces: bytes, stays_open: bool = False) -> Script:
    """Return a script that reads a request, sends bytes, and closes or waits for the close."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader, protocol.decoder())
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        if stays_open:
            assert await reader.read() == b""

    return script


@pytest.fixture
def serve(
    run: Run[Any], short_path: Path, protocol: Protocol, Client: Any, peer_at: Any
) -> Callable[..., tuple[Any, BaseException | None]]:
    """Answer a request by a peer; return what the client got and what was raised."""

    def serve(
        *pieces: bytes, stays_open: bool = False, script: Script | None = None, **options: Any
    ) -> tuple[Any, BaseException | None]:
        script = script or answering(protocol, *pieces, stays_open=stays_open)

        async def main() -> tuple[Any, BaseException | None]:
            async with peer_at(short_path, script) as peer:
                client = Client()
                app = protocol.adapter(f"unix:{short_path}", **options)
                failure: BaseException | None = None
                try:
                    await client.call(app)
                except Exception as error:
                    failure = error
                # One request a connection, and none is sent again.
                await peer.until(lambda: peer.closed == 1)
                assert peer.connections == 1
                return client, failure

        return run(main())

    return serve


@pytest.mark.parametrize(
    "head",
    [
        HEAD,
        b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n",
        b"HTTP/1.0 200 OK\nContent-type: text/plain\nConnection: close\n\n",
        b"Content-Type: text/plain\n\n",
    ],
)
def test_an_answer(serve: Any, head: bytes) -> None:
    client, error = serve(head + b"hello")
    assert error is None
    assert (client.status, client.content, client.is_complete) == (200, b"hello", True)
    assert client.headers[0] == (b"content-type", b"text/plain")


def test_an_answer_of_another_status(serve: Any) -> None:
    client, error = serve(b"HTTP/1.1 404 NOT FOUND\r\nContent-Length: 5\r\n\r\nsorry")
    assert error is None
    assert (client.status, client.content) == (404, b"sorry")


def test_an_answer_ends_with_its_length(serve: Any) -> None:
    # The application need not close first; what is too much is nobody's.
    head = b"Status: 200 OK\r\nContent-Length: 5\r\n\r\n"
    client, error = serve(head + b"hello", stays_open=True)
    assert error is None
    assert (client.content, client.is_complete) == (b"hello", True)
    client, error = serve(head + b"hello, and more")
    assert (client.content, client.is_complete) == (b"hello", True)


def test_too_little_for_its_length_is_cut_visibly(serve: Any) -> None:
    # E8
    client, error = serve(b"Status: 200 OK\r\nContent-Length: 10\r\n\r\nhello")
    assert isinstance(error, Truncated)
    assert client.content == b"hello"
    assert not client.is_complete


def test_output_is_passed_on_as_it_comes(
    run: Run[Any], short_path: Path, protocol: Protocol, Client: Any, peer_at: Any
) -> None:
    async def main() -> None:
        go = asyncio.Event()

        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_request(reader, protocol.decoder())
            writer.write(HEAD + b"one")
            await go.wait()
            writer.write(b"two")

        async with peer_at(short_path, script):
            client = Client()
            call = asyncio.create_task(client.call(protocol.adapter(f"unix:{short_path}")))
            async with asyncio.timeout(WITHIN_S):
                await client.started.wait()
                while client.content != b"one":
                    await asyncio.sleep(0)
                assert not client.is_complete
                go.set()
                await call
            assert client.content == b"onetwo"

    run(main())


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (b"", "closed without an answer"),
        (b"no head", "no empty line"),
        (b"Status: 99999\n\n", "not like '200 OK'"),
        (b"A: b\rC: d\n\n", "control character"),
        (b"\0\0\0\0", ""),
        (b"X" * 70_000, "larger than"),
    ],
)
def test_output_that_is_no_answer(serve: Any, output: bytes, message: str) -> None:
    # F4, in as far as there is no framing that could be wrong
    client, error = serve(output)
    assert isinstance(error, BadGateway)
    assert message in str(error)
    assert not client.messages


def test_silence_is_a_time_out(serve: Any) -> None:
    # F1; the peer sees the connection closed
    client, error = serve(stays_open=True, first_byte_s=0.1)
    assert isinstance(error, GatewayTimeout)
    assert not client.messages
    client, error = serve(b"Status: 200", stays_open=True, first_byte_s=0.1)
    assert isinstance(error, GatewayTimeout)


def test_silence_between_output_is_truncation(serve: Any) -> None:
    client, error = serve(HEAD + b"some", stays_open=True, output_idle_s=0.1)
    assert isinstance(error, Truncated)
    assert client.content == b"some"
    assert not client.is_complete


@pytest.mark.parametrize(
    ("output", "told"),
    [
        (HEAD + b"yes", "answered"),
        (b"Location: /other?x\n\n", "answered"),
        (b"", "failed"),
        (b"Status: 20", "failed"),
        (b"Status: 99999\n\n", ""),  # a script's nonsense
    ],
)
def test_what_an_answer_says_of_the_address(
    serve: Any, monkeypatch: pytest.MonkeyPatch, output: bytes, told: str
) -> None:
    noted: list[str] = []
    for name in ("answered", "failed"):
        monkeypatch.setattr(Connections, name, lambda *_, name=name: noted.append(name))
    serve(output)
    assert noted == [told] * bool(told)


def test_a_local_redirect_is_for_the_router(serve: Any) -> None:
    _, error = serve(b"Location: /other?x\n\n")
    assert isinstance(error, LocalRedirect)
    assert error.target == b"/other?x"


def test_nothing_listens(run: Run[Any], short_path: Path, protocol: Protocol, Client: Any) -> None:
    # F1
    async def main() -> None:
        with pytest.raises(BadGateway, match="No such file"):
            await Client().call(protocol.adapter(f"unix:{short_path}"))
        client = await Client(exchange=None).call(protocol.adapter(f"unix:{short_path}"))
        assert (client.status, client.content) == (502, b"502 Bad Gateway\n")

    run(main())


def test_the_next_address_where_one_is_absent(
    run: Run[Any], short_path: Path, protocol: Protocol, Client: Any, peer_at: Any
) -> None:
    async def main() -> None:
        async with peer_at(short_path, answering(protocol, HEAD + b"here")) as peer:
            app = protocol.adapter([f"unix:{short_path}.absent", f"unix:{short_path}"])
            for _ in range(4):
                assert (await Client().call(app)).content == b"here"
            assert peer.connections == 4
            app.close()

    run(main())


def test_more_requests_than_connections(
    run: Run[Any], short_path: Path, protocol: Protocol, Client: Any, peer_at: Any
) -> None:
    # B12
    async def main() -> None:
        go = asyncio.Event()

        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_request(reader, protocol.decoder())
            await go.wait()
            writer.write(HEAD)

        async with peer_at(short_path, script) as peer:
            app = protocol.adapter(f"unix:{short_path}", connections=1, queue=1)
            first, second = (asyncio.create_task(Client().call(app)) for _ in range(2))
            await peer.until(lambda: peer.connections == 1)
            with pytest.raises(Unavailable):
                await Client().call(app)
            go.set()
            await asyncio.gather(first, second)

    run(main())


# F5


def test_large_heads(
    run: Run[Any], short_path: Path, protocol: Protocol, Client: Any, peer_at: Any
) -> None:
    async def main() -> None:
        seen = []

        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            seen.append(await read_request(reader, protocol.decoder()))
            writer.write(HEAD)

        cookie = b"c=" + b"v" * 40_000
        body = (
            b"28:CONTENT_LENGTH\x000\0SCGI\x001\0A\x001\0,\x00\x06\x00\x00\x01\x00A\x01\x00b" * 2000
        )
        async with peer_at(short_path, script) as peer:
            app = protocol.adapter(f"unix:{short_path}")
            await Client([body]).call(app, "POST", headers=[(b"cookie", cookie)])
            ((variables, received),) = seen
            assert received == body
            assert variables["HTTP_COOKIE"] == cookie.decode()
            assert variables["CONTENT_LENGTH"] == str(len(body))
            twice = [(b"cookie", cookie), (b"x-two", cookie)]
            if protocol.adapter is ScgiToAsgi:
                await Client().call(app, headers=twice)
                assert seen[1][0]["HTTP_X_TWO"] == cookie.decode()
            else:
                with pytest.raises(FieldsTooLarge, match="a packet holds 65535"):
                    await Client().call(app, headers=twice)
                assert peer.connections == 1
            for path in ("/a\0b", "/\0REMOTE_USER\0root"):
                with pytest.raises(BadRequest):
                    await Client().call(app, path=path)

    run(main())


def test_uwsgi_says_why_uwsgi_may_have_closed(
    run: Run[Any], short_path: Path, Client: Any, peer_at: Any
) -> None:
    async def main() -> None:
        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readexactly(4)

        async with peer_at(short_path, script):
            app = UwsgiToAsgi(f"unix:{short_path}", name="shop")
            with pytest.raises(BadGateway, match=r"^shop: it closed .* buffer-size"):
                await Client().call(app, headers=[(b"cookie", b"c" * 4096)])
            with pytest.raises(BadGateway, match=r"^shop: it closed .* application raises$"):
                await Client().call(app)

    run(main())


# What is asked for


def test_what_the_application_is_told(
    run: Run[Any],
    short_path: Path,
    tmp_path: Path,
    protocol: Protocol,
    Client: Any,
    peer_at: Any,
) -> None:
    (tmp_path / "page.php").touch()
    (tmp_path / "index.php").touch()

    async def main() -> None:
        seen: list[dict[str, str]] = []

        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            seen.append((await read_request(reader, protocol.decoder()))[0])
            writer.write(HEAD)

        address = f"unix:{short_path}"
        secret = [(b"authorization", b"Basic x")]
        async with peer_at(short_path, script):
            app = protocol.adapter(address, script_name="/app/", params={"A": "\u00fc", "B": ""})
            await Client().call(app, path="/app/x", headers=secret)
            assert seen[-1]["SCRIPT_NAME"] == "/app"
            assert seen[-1]["PATH_INFO"] == "/x"
            assert seen[-1]["A"] == "\u00c3\u00bc"
            assert seen[-1]["B"] == ""
            assert seen[-1]["HTTP_AUTHORIZATION"] == "Basic x"
            app = protocol.adapter(address, root=tmp_path, pass_authorization=False)
            await Client().call(app, path="/page.php/x", headers=secret)
            assert seen[-1]["SCRIPT_FILENAME"] == str(tmp_path / "page.php")
            assert seen[-1]["PATH_INFO"] == "/x"
            assert "HTTP_AUTHORIZATION" not in seen[-1]
            with pytest.raises(NotFound):
                await Client().call(app, path="/none.php")
            client = await Client().call(app, path="", root_path="/site", raw_path=b"/site")
            assert (client.status, client.headers[0]) == (301, (b"location", b"/site/"))

    run(main())


def test_modifiers(run: Run[Any], short_path: Path, Client: Any, peer_at: Any) -> None:
    async def main() -> None:
        decoder = UwsgiRequestDecoder()

        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_request(reader, decoder)
            writer.write(HEAD)

        async with peer_at(short_path, script):
            await Client().call(UwsgiToAsgi(f"unix:{short_path}", modifier1=14, modifier2=2))
        assert (decoder.modifier1, decoder.modifier2) == (14, 2)

    run(main())
    for modifiers in ({"modifier1": 256}, {"modifier2": -1}):
        with pytest.raises(ValueError, match="0 to 255"):
            UwsgiToAsgi("a:1", **modifiers)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"address": "here"}, "not an address"),
        ({"address": []}, "no address"),
        ({"address": "a:1", "params": {"A": "\0"}}, "not a parameter"),
    ],
)
def test_options_that_cannot_be(protocol: Protocol, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        protocol.adapter(**options)


def test_bodies_over_the_limit(run: Run[Any], protocol: Protocol, Client: Any) -> None:
    async def main() -> None:
        with pytest.raises(ContentTooLarge):
            await Client([bytes(11)]).call(protocol.adapter("a:1", body_limit_bytes=10), "POST")

    run(main())


def test_lifespan_and_other_scopes(run: Run[Any], protocol: Protocol, Client: Any) -> None:
    async def main() -> None:
        app = protocol.adapter("a:1")
        asked = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
        told = []

        async def receive() -> Any:
            return asked.pop(0)

        async def send(message: Any) -> None:
            told.append(message["type"])

        await app({"type": "lifespan"}, receive, send)
        assert told == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
        with pytest.raises(ValueError, match="'websocket'"):
            await app({"type": "websocket"}, receive, send)

    run(main())


# Both directions at once


def test_the_body_goes_out_while_the_answer_comes_in(
    run: Run[Any], short_path: Path, protocol: Protocol, Client: Any, peer_at: Any
) -> None:
    size = 4_000_000

    async def main() -> None:
        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readexactly(4)
            writer.write(HEAD)
            received = 0
            while received < size:
                writer.write(b"x" * 50_000)
                await writer.drain()
                received += len(await reader.read(50_000))

        async with peer_at(short_path, script):
            app = protocol.adapter(f"unix:{short_path}")
            client = await Client([bytes(100_000)] * 40).call(app, "POST")
            assert client.is_complete
            assert len(client.content) >= size

    run(main())


def test_the_peer_closes_without_reading_the_body(
    run: Run[Any], short_path: Path, protocol: Protocol, Client: Any, peer_at: Any
) -> None:
    # E9: what it wrote before is the answer, though writing to it fails.
    async def main() -> None:
        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readexactly(4)
            writer.write(b"Status: 413 Too Large\nContent-Type: text/plain\n\nno")
            await writer.drain()

        async with peer_at(short_path, script):
            for size in (60_000, 6_000_000):
                app = protocol.adapter(f"unix:{short_path}")
                client = await Client([bytes(size)]).call(app, "POST")
                assert (client.status, client.content) == (413, b"no")

    run(main())


def test_the_peer_dies_without_reading_the_body(
    run: Run[Any], short_path: Path, protocol: Protocol, Client: Any, peer_at: Any
) -> None:
    async def main() -> None:
        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readexactly(4)
            for _ in range(20):
                await asyncio.sleep(0)  # now the adapter waits for an answer

        async with peer_at(short_path, script):
            app = protocol.adapter(f"unix:{short_path}")
            for size in (60_000, 6_000_000):
                with pytest.raises(BadGateway):
                    await asyncio.wait_for(Client([bytes(size)]).call(app, "POST"), WITHIN_S)

    run(main())


@pytest.mark.parametrize("adapter", [ScgiToAsgi, UwsgiToAsgi, FastCgiToAsgi])
def test_a_spool_that_cannot_be_read_is_507(
    run: Run[Any],
    short_path: Path,
    Client: Any,
    peer_at: Any,
    monkeypatch: pytest.MonkeyPatch,
    adapter: Any,
) -> None:
    def pread(*_: object) -> bytes:
        raise OSError(errno.EIO, "the disk is ill")

    async def main() -> None:
        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while await reader.read(65536):
                pass

        async with peer_at(short_path, script):
            client = Client([bytes(300_000)])
            with pytest.raises(InsufficientStorage, match="the disk is ill"):
                await asyncio.wait_for(client.call(adapter(f"unix:{short_path}"), "POST"), WITHIN_S)

    monkeypatch.setattr(os, "pread", pread)
    run(main())


def test_a_large_body_puts_the_time_out_off(
    run: Run[Any], short_path: Path, protocol: Protocol, Client: Any, peer_at: Any
) -> None:
    async def main() -> None:
        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            received = 0
            while received < 3_000_000:
                await asyncio.sleep(0.01)
                received += len(await reader.read(40_000))
            writer.write(HEAD)

        async with peer_at(short_path, script):
            app = protocol.adapter(f"unix:{short_path}", first_byte_s=0.4)
            client = await Client([bytes(3_000_000)]).call(app, "POST")
            assert client.status == 200

    run(main())


def test_a_slow_client_slows_the_application(
    run: Run[Any], short_path: Path, protocol: Protocol, Client: Any, peer_at: Any
) -> None:
    async def main() -> None:
        sent = 0
        stalled = asyncio.Event()

        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal sent
            await read_request(reader, protocol.decoder())
            writer.transport.set_write_buffer_limits(high=0)
            writer.write(HEAD)
            for _ in range(100):
                writer.write(bytes(50_000))
                try:
                    await asyncio.wait_for(writer.drain(), 0.3)
                except TimeoutError:
                    stalled.set()
                    await writer.drain()
                sent += 50_000

        async with peer_at(short_path, script):
            client = Client()
            client.may_read.clear()
            call = asyncio.create_task(client.call(protocol.adapter(f"unix:{short_path}")))
            await asyncio.wait_for(stalled.wait(), WITHIN_S)
            assert sent < 2_000_000
            client.may_read.set()
            await call
            assert len(client.content) == 5_000_000

    run(main())


# Departure


@pytest.mark.parametrize("is_started", [False, True])
@pytest.mark.parametrize("is_under_gateway", [False, True])
def test_the_connection_is_closed_when_the_client_leaves(
    run: Run[Any],
    short_path: Path,
    protocol: Protocol,
    Client: Any,
    peer_at: Any,
    is_started: bool,
    is_under_gateway: bool,
) -> None:
    async def main() -> None:
        pieces = [HEAD + b"some"] if is_started else []
        async with peer_at(short_path, answering(protocol, *pieces, stays_open=True)) as peer:
            client = Client() if is_under_gateway else Client(exchange=None)
            app = protocol.adapter(f"unix:{short_path}")
            call = asyncio.create_task(client.call(app))
            await peer.until(lambda: peer.connections == 1)
            if is_started:
                await asyncio.wait_for(client.started.wait(), WITHIN_S)
            client.leave()
            if is_under_gateway:
                with pytest.raises(ClientDisconnected):
                    await asyncio.wait_for(call, WITHIN_S)
            else:
                await asyncio.wait_for(call, WITHIN_S)  # `answered`: nobody is there to tell
            await peer.until(lambda: peer.closed == 1)
            assert app.connections.slots.taken == 0

    run(main())


def test_a_cancelled_upload_ends(
    run: Run[Any], short_path: Path, protocol: Protocol, Client: Any, peer_at: Any
) -> None:
    async def main() -> None:
        go = asyncio.Event()

        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readexactly(4)
            await go.wait()
            while await reader.read(65536):
                pass

        async with peer_at(short_path, script) as peer:
            app = protocol.adapter(f"unix:{short_path}")
            call = asyncio.create_task(Client([bytes(6_000_000)]).call(app, "POST"))
            await peer.until(lambda: peer.connections == 1)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            names = [task.get_coro().__qualname__ for task in asyncio.all_tasks()]
            assert not [name for name in names if "SocketToAsgi" in name]
            go.set()
            await peer.until(lambda: peer.closed == 1)

    run(main())

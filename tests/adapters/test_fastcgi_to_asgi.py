"""`FastCgiToAsgi` against flup's server, and against a peer that misbehaves on command."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import http.client
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest

from tetrapylon.adapters.errors import (
    BadGateway,
    BadRequest,
    ClientDisconnected,
    ContentTooLarge,
    FieldsTooLarge,
    GatewayTimeout,
    LocalRedirect,
    NotFound,
    Truncated,
    Unavailable,
)
from tetrapylon.adapters.fastcgi_to_asgi import FastCgiToAsgi
from tetrapylon.protocols.asgi import GATEWAY_EXTENSION, Message, Scope
from tetrapylon.protocols.fastcgi import (
    NEED_DATA,
    Connection,
    EndRequest,
    Params,
    ProtocolStatus,
    Side,
    Stdin,
    Stdout,
)
from tetrapylon.protocols.fastcgi.records import encode_record, encode_stream

WITHIN_S = 10.0
T = TypeVar("T")
Run = Callable[[Coroutine[Any, Any, T]], T]

HEAD = b"Content-Type: text/plain\r\n\r\n"
END = encode_record(3, 1, bytes(8))


@pytest.fixture
def socket_path() -> Iterator[Path]:
    """A path short enough for a unix socket."""
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory, "peer")


# An ASGI server for one request


class Exchange:
    """What our own connection driver shows; here the test is the client."""

    def __init__(self) -> None:
        self.is_departed = False
        self.on_departure: Callable[[], None] | None = None

    def depart(self) -> None:
        self.is_departed = True
        if self.on_departure is not None:
            self.on_departure()


@dataclass
class Client:
    """One request, sent straight to an ASGI application."""

    body: list[bytes] = field(default_factory=lambda: [b""])
    exchange: Exchange | None = field(default_factory=Exchange)
    messages: list[Message] = field(default_factory=list)
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    started: asyncio.Event = field(default_factory=asyncio.Event)
    may_read: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.may_read.set()

    def scope(self, method: str = "GET", path: str = "/", query: str = "", **more: Any) -> Scope:
        headers = more.pop("headers", [(b"host", b"example.com")])
        length = sum(map(len, self.body))
        if length:
            headers = [*headers, (b"content-length", str(length).encode())]
        return {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "server": ("127.0.0.1", 8000),
            "client": ("127.0.0.1", 50000),
            "scheme": "http",
            "method": method,
            "root_path": "",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "headers": headers,
            "extensions": {GATEWAY_EXTENSION: self.exchange} if self.exchange else {},
            **more,
        }

    async def receive(self) -> Message:
        if self.body:
            data = self.body.pop(0)
            return {"type": "http.request", "body": data, "more_body": bool(self.body)}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        await self.may_read.wait()
        self.messages.append(message)
        self.started.set()

    @property
    def status(self) -> int:
        return self.messages[0]["status"]

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        return self.messages[0]["headers"]

    @property
    def content(self) -> bytes:
        return b"".join(message["body"] for message in self.messages[1:])

    @property
    def is_complete(self) -> bool:
        return len(self.messages) > 1 and not self.messages[-1].get("more_body", False)

    async def call(self, app: Any, method: str = "GET", path: str = "/", **more: Any) -> Client:
        await app(self.scope(method, path, **more), self.receive, self.send)
        return self


async def get(app: Any, path: str = "/", **more: Any) -> Client:
    return await Client().call(app, "GET", path, **more)


async def post(app: Any, path: str, *body: bytes, **more: Any) -> Client:
    return await Client(list(body)).call(app, "POST", path, **more)


# flup


@pytest.fixture(scope="module")
def flup() -> Iterator[str]:
    """The address of a flup server."""
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "flup")
        script = Path(__file__).with_name("flup_application.py")
        with subprocess.Popen([sys.executable, str(script), path]) as process:
            try:
                wait_for_socket(path, process)
                yield f"unix:{path}"
            finally:
                process.send_signal(signal.SIGTERM)


def wait_for_socket(path: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 3 * WITHIN_S
    while True:
        assert process.poll() is None, "the server has ended"
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(path) == 0:
                return
        assert time.monotonic() < deadline, f"nothing listens on {path}"
        time.sleep(0.02)


def test_flup_gets_the_request(flup: str, run: Run[Any]) -> None:
    # FCGI-6.2
    async def main() -> None:
        body = os.urandom(1000)
        client = await post(
            FastCgiToAsgi(flup),
            "/api/caf\u00e9/x",
            body[:300],
            body[300:],
            query="a=1&b",
            root_path="/api",
            headers=[(b"host", b"example.com"), (b"x-one", b"1"), (b"proxy", b"evil")],
        )
        assert client.status == 200
        assert client.is_complete
        answer = json.loads(client.content)
        assert answer["sha256"] == hashlib.sha256(body).hexdigest()
        environ = answer["environ"]
        assert environ["SCRIPT_NAME"] == "/api"
        assert environ["PATH_INFO"] == "/caf\u00c3\u00a9/x"  # latin-1 of the bytes, PEP 3333
        assert environ["QUERY_STRING"] == "a=1&b"
        assert environ["REQUEST_METHOD"] == "POST"
        assert environ["CONTENT_LENGTH"] == "1000"
        assert environ["HTTP_X_ONE"] == "1"
        assert "HTTP_PROXY" not in environ  # C1
        assert "SCRIPT_FILENAME" not in environ

    run(main())


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 65_537, 99_000, 3_000_000])
def test_flup_gets_the_body(flup: str, run: Run[Any], size: int) -> None:
    # FCGI-5.3-STDIN, FCGI-6.2-CONTENT-LENGTH: in memory and in a file, FCGI-6.2-CHUNKED
    async def main() -> None:
        body = os.urandom(size)
        pieces = [body[start : start + 50_000] for start in range(0, size, 50_000)] or [b""]
        client = await post(FastCgiToAsgi(flup), "/", *pieces)
        answer = json.loads(client.content)
        assert answer["length"] == size
        assert answer["sha256"] == hashlib.sha256(body).hexdigest()

    run(main())


def test_flup_streams(flup: str, run: Run[Any]) -> None:
    async def main() -> None:
        client = await get(FastCgiToAsgi(flup), "/stream", query="5000000")
        assert client.content == b"x" * 5_000_000
        assert client.is_complete
        # At most what was read at once, and a record that began before.
        assert max(len(message.get("body", b"")) for message in client.messages) <= 128 * 1024

    run(main())


def test_flup_answers_before_it_has_read(flup: str, run: Run[Any]) -> None:
    # FCGI-6.2-EARLY
    async def main() -> None:
        client = await post(FastCgiToAsgi(flup), "/early", *[bytes(100_000)] * 50)
        assert client.status == 202
        assert client.content == b"I have not read it"

    run(main())


def test_flup_errors_and_fields(flup: str, run: Run[Any], caplog: pytest.LogCaptureFixture) -> None:
    # FCGI-5.3-STDERR
    async def main() -> None:
        client = await get(FastCgiToAsgi(flup), "/errors")
        assert client.status == 500
        assert client.content == b"sorry"
        assert [value for name, value in client.headers if name == b"set-cookie"] == [
            b"a=1",
            b"b=2",
        ]

    run(main())
    lines = [record.getMessage().partition(": ")[2] for record in caplog.records]
    assert lines == ["first", "with \\x1b[31mcolour"]


def test_flup_answers_head_without_a_body(flup: str, run: Run[Any]) -> None:
    async def main() -> None:
        client = await Client().call(FastCgiToAsgi(flup), "HEAD", "/stream", query="100")
        assert client.status == 200
        assert client.content == b""
        assert client.is_complete

    run(main())


def test_many_at_once_get_their_own_answers(flup: str, run: Run[Any]) -> None:
    # FCGI-CONCURRENCY
    async def main() -> None:
        app = FastCgiToAsgi(flup, connections=4, queue=40, queue_wait_s=WITHIN_S)
        bodies = [f"{number}".encode() * 100 for number in range(40)]
        clients = await asyncio.gather(*(post(app, "/", body) for body in bodies))
        for client, body in zip(clients, bodies, strict=True):
            assert json.loads(client.content)["sha256"] == hashlib.sha256(body).hexdigest()

    run(main())


SERVERS = {
    "uvicorn": ["uvicorn", "--uds", "{path}", "--log-level", "warning"],
    "hypercorn": ["hypercorn", "--bind", "unix:{path}"],
}


@pytest.mark.parametrize("server", SERVERS)
def test_under_other_servers(flup: str, server: str, tmp_path: Path, socket_path: Path) -> None:
    (tmp_path / "served.py").write_text(
        "from tetrapylon.adapters.fastcgi_to_asgi import FastCgiToAsgi\n"
        "applications = {\n"
        f"    '/flup': FastCgiToAsgi({flup!r}, script_name='/flup'),\n"
        "    '/none': FastCgiToAsgi('unix:/nonexistent'),\n"
        "}\n"
        "async def app(scope, receive, send):\n"
        "    path = scope.get('path', '/flup')\n"
        "    await applications[path[:5]](scope, receive, send)\n"
    )
    command = [part.format(path=socket_path) for part in SERVERS[server]]
    with subprocess.Popen([sys.executable, "-m", *command, "served:app"], cwd=tmp_path) as process:
        try:
            wait_for_socket(str(socket_path), process)
            connection = http.client.HTTPConnection("localhost", timeout=WITHIN_S)
            with contextlib.closing(connection):
                connection.sock = socket.socket(socket.AF_UNIX)
                connection.sock.settimeout(WITHIN_S)
                connection.sock.connect(str(socket_path))
                body = os.urandom(300_000)
                connection.request(
                    "POST",
                    "/flup/a%20b?c",
                    [body],
                    encode_chunked=True,
                    headers={"Transfer-Encoding": "chunked"},
                )
                answer = json.loads(connection.getresponse().read())
                assert answer["sha256"] == hashlib.sha256(body).hexdigest()
                assert answer["environ"]["SCRIPT_NAME"] == "/flup"
                assert answer["environ"]["PATH_INFO"] == "/a b"
                assert answer["environ"]["CONTENT_LENGTH"] == "300000"
                assert "HTTP_TRANSFER_ENCODING" not in answer["environ"]
                connection.request("GET", "/flup/stream?1000000")
                assert len(connection.getresponse().read()) == 1_000_000
                connection.request("GET", "/none")
                response = connection.getresponse()
                assert (response.status, response.read()) == (502, b"502 Bad Gateway\n")
        finally:
            process.send_signal(signal.SIGTERM)
    assert process.returncode in (0, -signal.SIGTERM)


# A scripted peer

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Peer:
    """What a scripted peer saw."""

    def __init__(self) -> None:
        self.connections = 0
        self.closed = 0
        self.changed = asyncio.Event()
        self.failures: list[BaseException] = []

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(WITHIN_S):
            while not condition():
                self.changed.clear()
                await self.changed.wait()


@contextlib.asynccontextmanager
async def peer_at(path: Path, script: Script) -> AsyncIterator[Peer]:
    """Run a server whose connections each follow `script`; it closes them at its end."""
    peer = Peer()
    tasks = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        tasks.add(task)
        peer.connections += 1
        peer.changed.set()
        try:
            await script(reader, writer)
        except (ConnectionError, asyncio.CancelledError):
            pass
        except BaseException as error:
            peer.failures.append(error)
        finally:
            writer.close()
            tasks.discard(task)
            peer.closed += 1
            peer.changed.set()

    server = await asyncio.start_unix_server(connected, path)
    try:
        yield peer
    finally:
        server.close()
        for task in [*tasks]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for failure in peer.failures:
            raise failure


async def read_request(
    reader: asyncio.StreamReader, codec: Connection | None = None
) -> tuple[dict[str, str], bytes]:
    """Read one request; return its parameters and its body."""
    codec = codec or Connection(Side.RESPONDER)
    params: dict[str, str] = {}
    body = b""
    while True:
        event = codec.next_event()
        if event is NEED_DATA:
            data = await reader.read(65536)
            assert data, "the request ended early"
            codec.receive_data(data)
        elif isinstance(event, Params):
            params = dict(event.params)
        elif isinstance(event, Stdin):
            body += event.data
            if not event.data:
                assert not codec.has_pending
                return params, body


def answering(*pieces: bytes, stays_open: bool = False) -> Script:
    """Return a script that reads a request, sends bytes, and closes or waits for the close."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        if stays_open:
            assert await reader.read() == b""

    return script


def stdout(data: bytes) -> bytes:
    return encode_stream(6, 1, data)


def end(status: ProtocolStatus, app_status: int = 0) -> bytes:
    return encode_record(3, 1, app_status.to_bytes(4, "big") + bytes((status, 0, 0, 0)))


def serve(
    run: Run[Any], path: Path, script: Script, **options: Any
) -> tuple[Client, BaseException | None]:
    """Answer a GET by a peer; return what the client got and what was raised."""

    async def main() -> tuple[Client, BaseException | None]:
        async with peer_at(path, script):
            client = Client()
            try:
                await client.call(FastCgiToAsgi(f"unix:{path}", **options))
            except Exception as error:
                return client, error
            return client, None

    return run(main())


def test_an_answer(run: Run[Any], socket_path: Path) -> None:
    client, error = serve(run, socket_path, answering(stdout(HEAD + b"hello") + stdout(b"") + END))
    assert error is None
    assert (client.status, client.content, client.is_complete) == (200, b"hello", True)
    assert (b"content-type", b"text/plain") in client.headers


@pytest.mark.parametrize("size", [1, 7, 8, 30])
def test_an_answer_however_it_is_cut(run: Run[Any], socket_path: Path, size: int) -> None:
    # FCGI-3.3-STREAM, FCGI-5.5-END: the end of STDOUT is not that of the answer
    said = stdout(HEAD + b"hel") + stdout(b"lo") + encode_record(7, 1, b"oh") + stdout(b"") + END
    pieces = [said[start : start + size] for start in range(0, len(said), size)]

    async def dribble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.001)

    client, error = serve(run, socket_path, dribble)
    assert error is None
    assert (client.status, client.content, client.is_complete) == (200, b"hello", True)


@pytest.mark.parametrize("at", [0, 1, 2])
def test_records_that_nobody_knows_do_no_damage(run: Run[Any], socket_path: Path, at: int) -> None:
    # FCGI-4.2
    records = [stdout(HEAD + b"hel"), stdout(b"lo"), END]
    unknown_type = encode_record(11, 0, bytes((99,)) + bytes(7))
    records.insert(at, unknown_type + encode_record(42, 1, b"?") + encode_record(42, 0, b"?"))
    client, error = serve(run, socket_path, answering(b"".join(records)))
    assert error is None
    assert (client.status, client.content) == (200, b"hello")


def test_the_application_status_takes_nothing_away(run: Run[Any], socket_path: Path) -> None:
    # FCGI-5.5-APPSTATUS
    script = answering(stdout(HEAD + b"hello") + end(ProtocolStatus.REQUEST_COMPLETE, 938))
    client, error = serve(run, socket_path, script)
    assert error is None
    assert client.content == b"hello"


def test_output_is_passed_on_as_it_comes(run: Run[Any], socket_path: Path) -> None:
    # FCGI-STREAMING
    async def main() -> None:
        go = asyncio.Event()

        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_request(reader)
            writer.write(stdout(HEAD + b"one"))
            await go.wait()
            writer.write(stdout(b"two") + END)

        async with peer_at(socket_path, script):
            client = Client()
            call = asyncio.create_task(client.call(FastCgiToAsgi(f"unix:{socket_path}")))
            async with asyncio.timeout(WITHIN_S):
                await client.started.wait()
                while client.content != b"one":
                    await asyncio.sleep(0)
                assert not client.is_complete
                go.set()
                await call
            assert client.content == b"onetwo"

    run(main())


# F1


def test_nothing_listens(run: Run[Any], socket_path: Path) -> None:
    async def main() -> None:
        with pytest.raises(BadGateway, match="No such file"):
            await get(FastCgiToAsgi(f"unix:{socket_path}"))
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(socket_path))
        with pytest.raises(BadGateway, match="refused"):
            await get(FastCgiToAsgi(f"unix:{socket_path}"))
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            port = bound.getsockname()[1]
            with pytest.raises(BadGateway, match="refused"):
                await get(FastCgiToAsgi(f"127.0.0.1:{port}"))
        with pytest.raises(BadGateway, match="cannot connect to"):
            await get(FastCgiToAsgi("no-such-host.invalid:9000", connect_s=1))

    run(main())


def test_tcp_by_number_and_by_name(run: Run[Any]) -> None:
    async def main() -> None:
        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.closing(writer):
                await answering(stdout(HEAD + b"tcp") + END)(reader, writer)

        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            for host in ("127.0.0.1", "localhost"):
                assert (await get(FastCgiToAsgi(f"{host}:{port}"))).content == b"tcp"

    run(main())


@contextlib.contextmanager
def full_backlog(path: Path) -> Iterator[tuple[socket.socket, list[socket.socket]]]:
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(path))
        listener.listen(0)
        fillers = []
        while True:
            filler = stack.enter_context(socket.socket(socket.AF_UNIX))
            filler.setblocking(False)
            fillers.append(filler)
            if filler.connect_ex(str(path)):
                break
        yield listener, fillers


def test_a_full_backlog_is_unavailable_and_blocks_nobody(run: Run[Any], socket_path: Path) -> None:
    async def main() -> None:
        gaps = []

        async def tick() -> None:
            loop = asyncio.get_running_loop()
            last = loop.time()
            while True:
                await asyncio.sleep(0.01)
                gaps.append(loop.time() - last)
                last = loop.time()

        with full_backlog(socket_path):
            ticker = asyncio.create_task(tick())
            started = time.monotonic()
            with pytest.raises(Unavailable) as caught:
                await get(FastCgiToAsgi(f"unix:{socket_path}", connect_s=1.5))
            assert 1.4 <= time.monotonic() - started < WITHIN_S
            assert caught.value.retry_after_s == 1
            ticker.cancel()
        assert len(gaps) > 5
        assert max(gaps) < 1.0  # a blocking connect would be one gap of 1.5 s

    run(main())


def test_a_backlog_that_empties_in_time(run: Run[Any], socket_path: Path) -> None:
    async def main() -> None:
        with full_backlog(socket_path) as (listener, fillers):
            client = Client()
            app = FastCgiToAsgi(f"unix:{socket_path}", connect_s=WITHIN_S)
            call = asyncio.create_task(client.call(app))
            await asyncio.sleep(0)  # it has found the backlog full
            for _ in fillers[:-1]:
                listener.accept()[0].close()
            listener.setblocking(False)
            accepted, _ = await asyncio.get_running_loop().sock_accept(listener)
            reader, writer = await asyncio.open_unix_connection(sock=accepted)
            await answering(stdout(HEAD + b"at last") + END)(reader, writer)
            await call
            writer.close()
            assert client.content == b"at last"

    run(main())


def test_silence_is_a_time_out(run: Run[Any], socket_path: Path) -> None:
    # F1; the peer sees the connection closed
    client, error = serve(run, socket_path, answering(stays_open=True), first_byte_s=0.2)
    assert isinstance(error, GatewayTimeout)
    assert not client.messages


def test_errors_do_not_put_the_time_out_off(run: Run[Any], socket_path: Path) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(encode_record(7, 1, b"still here\n"))
            await writer.drain()
            await asyncio.sleep(0.02)

    _, error = serve(run, socket_path, script, first_byte_s=0.2)
    assert isinstance(error, GatewayTimeout)


def test_silence_between_output_is_truncation(run: Run[Any], socket_path: Path) -> None:
    script = answering(stdout(HEAD + b"some"), stays_open=True)
    client, error = serve(run, socket_path, script, output_idle_s=0.2)
    assert isinstance(error, Truncated)
    assert client.content == b"some"
    assert not client.is_complete


# F4

BAD_RECORDS = {
    "version 2": b"\x02" + encode_record(6, 1)[1:],
    "not FastCGI": b"HTTP/1.1 200 OK\r\n\r\n",
    "id 0": encode_record(6, 0, b"x"),
    "unknown id": encode_record(6, 2, b"x"),
    "length past EOF": b"\x01\x06\x00\x01\xff\xff\x00\x00x",
    "padding past EOF": b"\x01\x06\x00\x01\x00\x01\xff\x00x",
    "STDOUT after its end": stdout(b"") + stdout(b"x"),
    "closed before END_REQUEST": stdout(b""),
    "END_REQUEST of another": encode_record(3, 2, bytes(8)),
    "END_REQUEST too short": encode_record(3, 1, bytes(7)),
    "BEGIN_REQUEST": encode_record(1, 1, bytes(8)),
}


@pytest.mark.parametrize("case", BAD_RECORDS)
@pytest.mark.parametrize("is_started", [False, True])
def test_bad_records(run: Run[Any], socket_path: Path, case: str, is_started: bool) -> None:
    # FCGI-3.3-VERSION
    pieces = [BAD_RECORDS[case]]
    if is_started:

        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_request(reader)
            writer.write(stdout(HEAD + b"some"))
            await writer.drain()
            await asyncio.wait_for(client.started.wait(), WITHIN_S)
            writer.write(*pieces)

        async def main() -> None:
            async with peer_at(socket_path, script):
                with pytest.raises(Truncated):
                    await client.call(FastCgiToAsgi(f"unix:{socket_path}"))

        client = Client()
        run(main())
        assert client.content == b"some"
        assert not client.is_complete
    else:
        client, error = serve(run, socket_path, answering(*pieces))
        assert isinstance(error, BadGateway)
        assert not client.messages


def test_output_after_end_request_makes_the_answer_suspect(
    run: Run[Any], socket_path: Path
) -> None:
    script = answering(stdout(HEAD + b"hello") + END + stdout(b"more"))
    client, error = serve(run, socket_path, script)
    assert isinstance(error, BadGateway)
    assert not client.messages


def test_padding_of_255_bytes(run: Run[Any], socket_path: Path) -> None:
    # FCGI-3.3-PADDING
    padded = b"\x01\x06\x00\x01" + len(HEAD).to_bytes(2, "big") + b"\xff\x00" + HEAD + b"!" * 255
    client, error = serve(run, socket_path, answering(padded + END))
    assert error is None
    assert (client.status, client.content) == (200, b"")


def test_endless_stderr(run: Run[Any], socket_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(encode_record(7, 1, b"\x1b[2J\r\nforged: line\x00\n" * 1000))
            await writer.drain()

    with caplog.at_level(logging.WARNING):
        _, error = serve(run, socket_path, script, stderr_limit_bytes=5000)
    assert isinstance(error, BadGateway)
    assert "STDERR does not end" in str(error)
    text = "\n".join(record.getMessage() for record in caplog.records)
    assert len(text) < 30_000
    assert "\\x1b[2J" in text
    assert text.replace("\n", "").isprintable()
    assert "more than 5000 bytes" in text


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (ProtocolStatus.OVERLOADED, Unavailable),
        (ProtocolStatus.CANT_MPX_CONN, BadGateway),
        (ProtocolStatus.UNKNOWN_ROLE, BadGateway),
    ],
)
def test_refusals(
    run: Run[Any], socket_path: Path, status: ProtocolStatus, kind: type[Exception]
) -> None:
    # FCGI-5.5-CANTMPX, FCGI-5.5-OVERLOADED, FCGI-5.5-UNKNOWNROLE
    client, error = serve(run, socket_path, answering(end(status)))
    assert type(error) is kind
    assert not client.messages


@pytest.mark.parametrize(
    "output", [b"", b"no head", b"Status: 99999\n\n", b"A: b\rC: d\n\n", b"X" * 70_000]
)
def test_output_that_is_no_answer(run: Run[Any], socket_path: Path, output: bytes) -> None:
    client, error = serve(run, socket_path, answering(stdout(output) + END))
    assert isinstance(error, BadGateway)
    assert not client.messages


def test_an_answer_that_was_whole_by_its_length_stays(run: Run[Any], socket_path: Path) -> None:
    head = b"Content-Type: text/plain\nContent-Length: 5\n\n"
    client, error = serve(run, socket_path, answering(stdout(head + b"hello, and more")))
    assert error is None
    assert (client.content, client.is_complete) == (b"hello", True)


def test_a_local_redirect_is_for_the_router(run: Run[Any], socket_path: Path) -> None:
    _, error = serve(run, socket_path, answering(stdout(b"Location: /other?x\n\n") + END))
    assert isinstance(error, LocalRedirect)
    assert error.target == b"/other?x"


# F5


def test_a_body_of_records_and_large_parameters_are_one_request(
    run: Run[Any], socket_path: Path
) -> None:
    body = (encode_record(3, 1, bytes(8)) + encode_record(1, 2, bytes(8))) * 3094
    assert len(body) > 99_000
    cookie = b"c=" + b"v" * 40_000

    async def main() -> None:
        seen = []

        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            seen.append(await read_request(reader))
            writer.write(stdout(HEAD) + END)

        async with peer_at(socket_path, script) as peer:
            await post(
                FastCgiToAsgi(f"unix:{socket_path}"),
                "/",
                body,
                headers=[(b"cookie", cookie), (b"x-one", cookie), (b"x-two", cookie)],
            )
            assert peer.connections == 1
        ((params, received),) = seen
        assert received == body
        assert params["HTTP_COOKIE"] == params["HTTP_X_TWO"] == cookie.decode()
        assert params["CONTENT_LENGTH"] == str(len(body))

    run(main())


def test_what_does_not_fit_is_431(run: Run[Any], socket_path: Path) -> None:
    async def main() -> None:
        async with peer_at(socket_path, answering()):
            app = FastCgiToAsgi(f"unix:{socket_path}")
            with pytest.raises(FieldsTooLarge):
                await get(app, headers=[(b"x-large", b"v" * 66_000)])
            with pytest.raises(BadRequest):
                await get(app, "/a\0b")

    run(main())


# Both directions at once


def test_the_body_goes_out_while_the_answer_comes_in(run: Run[Any], socket_path: Path) -> None:
    # FCGI-DEADLOCK: each side writes far more than the pipes hold before it reads on
    size = 4_000_000

    async def main() -> None:
        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readexactly(8)
            writer.write(stdout(HEAD))
            received = 0
            while received < size:
                writer.write(stdout(b"x" * 50_000))
                await writer.drain()
                received += len(await reader.read(50_000))
            writer.write(END)

        async with peer_at(socket_path, script):
            client = await post(FastCgiToAsgi(f"unix:{socket_path}"), "/", *[bytes(100_000)] * 40)
            assert client.is_complete
            assert len(client.content) >= size

    run(main())


def test_the_peer_closes_without_reading_the_body(run: Run[Any], socket_path: Path) -> None:
    # What it wrote before is the answer, though writing to it fails.
    async def main() -> None:
        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readexactly(8)
            writer.write(stdout(b"Status: 413 Too Large\nContent-Type: text/plain\n\nno") + END)
            await writer.drain()

        async with peer_at(socket_path, script):
            for size in (60_000, 6_000_000):
                client = await post(FastCgiToAsgi(f"unix:{socket_path}"), "/", bytes(size))
                assert (client.status, client.content) == (413, b"no")

    run(main())


def test_the_peer_dies_without_reading_the_body(run: Run[Any], socket_path: Path) -> None:
    # A socket with unread bytes is reset: told at once, not by a time-out.
    async def main() -> None:
        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readexactly(8)
            for _ in range(20):
                await asyncio.sleep(0)  # now the adapter waits for an answer
            if is_started:
                writer.write(stdout(HEAD + b"some"))
                await writer.drain()
                await asyncio.wait_for(client.started.wait(), WITHIN_S)

        for is_started in (False, True):
            for size in (60_000, 6_000_000):
                client = Client([bytes(size)])
                async with peer_at(socket_path, script):
                    app = FastCgiToAsgi(f"unix:{socket_path}")
                    with pytest.raises(Truncated if is_started else BadGateway):
                        await asyncio.wait_for(client.call(app, "POST"), WITHIN_S)

    run(main())


def test_a_slow_client_slows_the_application(run: Run[Any], socket_path: Path) -> None:
    # FCGI-FLOW
    async def main() -> None:
        sent = 0
        stalled = asyncio.Event()

        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal sent
            await read_request(reader)
            writer.transport.set_write_buffer_limits(high=0)
            writer.write(stdout(HEAD))
            for _ in range(300):
                writer.write(stdout(bytes(50_000)))
                try:
                    await asyncio.wait_for(writer.drain(), 0.3)
                except TimeoutError:
                    stalled.set()
                    await writer.drain()
                sent += 50_000
            writer.write(END)

        async with peer_at(socket_path, script):
            client = Client()
            client.may_read.clear()
            call = asyncio.create_task(client.call(FastCgiToAsgi(f"unix:{socket_path}")))
            await asyncio.wait_for(stalled.wait(), WITHIN_S)
            assert sent < 2_000_000
            client.may_read.set()
            await call
            assert len(client.content) == 15_000_000

    run(main())


# Departure


@pytest.mark.parametrize("is_started", [False, True])
@pytest.mark.parametrize("is_under_gateway", [False, True])
def test_the_connection_is_closed_when_the_client_leaves(
    run: Run[Any], socket_path: Path, is_started: bool, is_under_gateway: bool
) -> None:
    # FCGI-5.4-ABORT
    async def main() -> None:
        script = answering(*([stdout(HEAD + b"some")] if is_started else []), stays_open=True)
        async with peer_at(socket_path, script) as peer:
            client = Client(exchange=Exchange() if is_under_gateway else None)
            call = asyncio.create_task(client.call(FastCgiToAsgi(f"unix:{socket_path}")))
            await peer.until(lambda: peer.connections == 1)
            if is_started:
                await asyncio.wait_for(client.started.wait(), WITHIN_S)
            if client.exchange is not None:
                client.exchange.depart()
                with pytest.raises(ClientDisconnected):
                    await call
                assert client.exchange.on_departure is None
            else:
                client.gone.set()
                await call
            await peer.until(lambda: peer.closed == 1)

    run(main())


def test_a_body_is_complete_before_a_connection_is_taken(run: Run[Any], socket_path: Path) -> None:
    # B6
    async def main() -> None:
        async with peer_at(socket_path, answering(stdout(HEAD) + END)) as peer:
            app = FastCgiToAsgi(f"unix:{socket_path}", connections=1, queue=0)
            messages: asyncio.Queue[Message] = asyncio.Queue()
            slow = Client()
            call = asyncio.create_task(
                app(slow.scope("POST"), messages.get, slow.send)  # type: ignore[arg-type]
            )
            messages.put_nowait({"type": "http.request", "body": b"some", "more_body": True})
            assert (await get(app)).status == 200
            assert peer.connections == 1
            messages.put_nowait({"type": "http.request", "body": b"", "more_body": False})
            await call
            assert peer.connections == 2
            with pytest.raises(ClientDisconnected):
                gone = Client()
                messages.put_nowait({"type": "http.request", "body": b"x", "more_body": True})
                messages.put_nowait({"type": "http.disconnect"})
                await app(gone.scope("POST"), messages.get, gone.send)  # type: ignore[arg-type]
            assert peer.connections == 2
            with pytest.raises(ContentTooLarge):
                await post(FastCgiToAsgi(f"unix:{socket_path}", body_limit_bytes=3), "/", b"1234")

    run(main())


# Slots


def test_a_full_queue_is_unavailable(run: Run[Any], socket_path: Path) -> None:
    async def main() -> None:
        go = asyncio.Event()

        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_request(reader)
            await go.wait()
            writer.write(stdout(HEAD) + END)

        async with peer_at(socket_path, script) as peer:
            app = FastCgiToAsgi(f"unix:{socket_path}", connections=2, queue=2)
            calls = [asyncio.create_task(get(app)) for _ in range(4)]
            await peer.until(lambda: peer.connections == 2)
            with pytest.raises(Unavailable, match="2 requests are being answered") as caught:
                await get(app)
            assert caught.value.retry_after_s == 1
            calls[2].cancel()
            with pytest.raises(asyncio.CancelledError):
                await calls.pop(2)
            calls.append(asyncio.create_task(get(app)))
            assert peer.connections == 2
            go.set()
            assert [client.status for client in await asyncio.gather(*calls)] == [200] * 4
            assert peer.connections == 4
            assert (await get(app)).status == 200

    run(main())


def test_a_long_wait_is_unavailable(run: Run[Any], socket_path: Path) -> None:
    async def main() -> None:
        async with peer_at(socket_path, answering(stays_open=True)) as peer:
            app = FastCgiToAsgi(f"unix:{socket_path}", connections=1, queue_wait_s=0.1)
            client = Client()
            call = asyncio.create_task(client.call(app))
            await peer.until(lambda: peer.connections == 1)
            with pytest.raises(Unavailable, match="no free slot within"):
                await get(app)
            assert client.exchange is not None
            client.exchange.depart()
            with pytest.raises(ClientDisconnected):
                await call

    run(main())


# Kept connections


def keeping(requests: list[tuple[dict[str, str], bytes]], *, most: int = 100) -> Script:
    """Return a script that answers up to `most` requests on a connection."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for number in range(most):
            codec = Connection(Side.RESPONDER)
            requests.append(await read_request(reader, codec))
            request_id = 1 + number % 2  # they take turns
            answer = [Stdout(request_id, HEAD + b"%d" % len(requests)), EndRequest(request_id)]
            writer.write(b"".join(map(codec.send, answer)))

    return script


@contextlib.asynccontextmanager
async def keeping_app(path: Path, script: Script, **options: Any) -> AsyncIterator[Any]:
    async with peer_at(path, script) as peer:
        app = FastCgiToAsgi(f"unix:{path}", keep_alive=True, **options)
        try:
            yield SimpleNamespace(app=app, peer=peer)
        finally:
            app.close()
            peer.failures.clear()  # it saw the end of a connection while it waited


def test_connections_are_kept_for_get(run: Run[Any], socket_path: Path) -> None:
    # FCGI-5.1-KEEP
    async def main() -> None:
        requests: list[tuple[dict[str, str], bytes]] = []
        async with keeping_app(socket_path, keeping(requests)) as kept:
            for number in range(1, 4):
                assert (await get(kept.app)).content == b"%d" % number
            assert kept.peer.connections == 1
            await post(kept.app, "/", b"once")
            assert kept.peer.connections == 2
            assert requests[-1][1] == b"once"

    run(main())


def test_what_comes_late_of_one_answer_is_not_the_next_ones(
    run: Run[Any], socket_path: Path
) -> None:
    # FCGI-3.3-ID, FCGI-CONCURRENCY
    async def late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        codec = Connection(Side.RESPONDER)
        await read_request(reader, codec)
        answer = codec.send(Stdout(1, HEAD + b"mine")) + codec.send(EndRequest(1))
        writer.write(answer)
        await read_request(reader)
        writer.write(answer)

    async def main() -> None:
        async with keeping_app(socket_path, late) as kept:
            assert (await get(kept.app)).content == b"mine"
            with pytest.raises(BadGateway, match="not active"):
                await get(kept.app)
            assert kept.peer.connections == 1

    run(main())


def test_without_keep_alive_each_request_has_its_own(run: Run[Any], socket_path: Path) -> None:
    async def main() -> None:
        requests: list[tuple[dict[str, str], bytes]] = []
        async with peer_at(socket_path, keeping(requests)) as peer:
            app = FastCgiToAsgi(f"unix:{socket_path}")
            for _ in range(3):
                await get(app)
            assert peer.connections == 3
            await peer.until(lambda: peer.closed == 3)
            peer.failures.clear()

    run(main())


def test_a_connection_that_closed_while_idle_is_not_used(run: Run[Any], socket_path: Path) -> None:
    # FCGI-3.1-RECONNECT
    async def main() -> None:
        requests: list[tuple[dict[str, str], bytes]] = []
        async with keeping_app(socket_path, keeping(requests, most=1)) as kept:
            for number in range(1, 4):
                assert (await get(kept.app)).status == 200
                await kept.peer.until(lambda number=number: kept.peer.closed == number)
            assert kept.peer.connections == len(requests) == 3

    run(main())


def test_get_is_sent_again_if_the_kept_connection_was_closing(
    run: Run[Any], socket_path: Path
) -> None:
    # F2: the request is read, and the connection closed without an answer
    async def main() -> None:
        requests: list[tuple[dict[str, str], bytes]] = []

        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await keeping(requests, most=1)(reader, writer)
            await read_request(reader)

        async with keeping_app(socket_path, script) as kept:
            for number in range(1, 3):
                assert (await get(kept.app)).content == b"%d" % number
            assert kept.peer.connections == 2
        async with keeping_app(socket_path.with_suffix(".2"), script, retries=0) as kept:
            await get(kept.app)
            await get(kept.app)
            assert kept.peer.connections == 2

    run(main())


def test_idle_connections_are_closed_in_time(run: Run[Any], socket_path: Path) -> None:
    # FCGI-3.5-SERVER
    async def main() -> None:
        async with keeping_app(socket_path, keeping([]), idle_s=0.1) as kept:
            await get(kept.app)
            assert kept.peer.closed == 0
            await kept.peer.until(lambda: kept.peer.closed == 1)

    run(main())


def test_kept_connections_count(run: Run[Any], socket_path: Path) -> None:
    async def main() -> None:
        async with keeping_app(socket_path, keeping([]), connections=2) as kept:
            await asyncio.gather(get(kept.app), get(kept.app))
            assert kept.peer.connections == 2
            await post(kept.app, "/", b"x")
            await kept.peer.until(lambda: kept.peer.closed == 1)
            assert kept.peer.connections == 3

    run(main())


def test_lifespan_closes_kept_connections(run: Run[Any], socket_path: Path) -> None:
    async def main() -> None:
        async with keeping_app(socket_path, keeping([])) as kept:
            await get(kept.app)
            messages = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])
            said = []

            async def receive() -> Message:
                return next(messages)

            async def send(message: Message) -> None:
                said.append(message["type"])

            await kept.app({"type": "lifespan"}, receive, send)
            assert said == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
            await kept.peer.until(lambda: kept.peer.closed == 1)
            with pytest.raises(ValueError, match="websocket"):
                await kept.app({"type": "websocket"}, receive, send)

    run(main())


# Scripts


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "index.php").write_text("<?php")
    (tmp_path / "a.jpg").write_text("<?php")
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "index.php").write_text("<?php")
    (tmp_path / "shop" / "caf\u00e9.php").write_text("<?php")
    (tmp_path / "empty").mkdir()
    return tmp_path


def params_of(run: Run[Any], address: Path, *, options: Any, **request: Any) -> dict[str, str]:
    """Return what the application gets for a request."""

    async def main() -> dict[str, str]:
        seen = []

        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            seen.append((await read_request(reader))[0])
            writer.write(stdout(HEAD) + END)

        async with peer_at(address, script):
            await get(FastCgiToAsgi(f"unix:{address}", **options), **request)
        return seen[0]

    return run(main())


@pytest.mark.parametrize("check_file", [True, False])
@pytest.mark.parametrize(
    ("path", "script", "info"),
    [
        ("/", "/index.php", ""),
        ("/index.php", "/index.php", ""),
        ("/index.php/", "/index.php", "/"),
        ("/index.php/a/b.php", "/index.php", "/a/b.php"),
        ("/shop/", "/shop/index.php", ""),
        ("/shop/caf\u00e9.php/\u00fc", "/shop/caf\u00e9.php", "/\u00fc"),
    ],
)
def test_variables_of_a_script(
    run: Run[Any],
    socket_path: Path,
    site: Path,
    check_file: bool,
    path: str,
    script: str,
    info: str,
) -> None:
    # D5
    params = params_of(
        run,
        socket_path,
        options={"root": site, "check_file": check_file},
        path="/blog" + path,
        root_path="/blog",
    )

    def latin1(text: str) -> str:
        return text.encode().decode("latin-1")

    assert params["DOCUMENT_ROOT"] == str(site)
    assert params["SCRIPT_FILENAME"] == latin1(f"{site}{script}")
    assert params["SCRIPT_NAME"] == latin1(f"/blog{script}")
    assert params["PATH_INFO"] == latin1(info)
    assert params["DOCUMENT_URI"] == latin1(f"/blog{script}{info}")
    assert params.get("PATH_TRANSLATED") == (latin1(f"{site}{info}") if info else None)
    assert params["REDIRECT_STATUS"] == "200"


@pytest.mark.parametrize("check_file", [True, False])
@pytest.mark.parametrize(
    "path",
    [
        "/a.jpg",
        "/nothing",
        "/index.PHP",
        "/index.php.jpg",
        "/../index.php",
        "/x/../index.php",
        "/.hidden.php",
        "/index.php/../x",
        "/a\\..\\index.php",
    ],
)
def test_what_is_no_script(
    run: Run[Any], socket_path: Path, site: Path, check_file: bool, path: str
) -> None:
    # D1, D5
    options = {"root": site, "check_file": check_file}
    with pytest.raises(NotFound):
        params_of(run, socket_path, options=options, path=path)


@pytest.mark.parametrize(
    "path", ["/a.jpg/", "/a.jpg/b.php", "/a.jpg/index.php", "/none.php", "/empty/"]
)
def test_only_an_existing_script_runs(
    run: Run[Any], socket_path: Path, site: Path, path: str
) -> None:
    # D5
    with pytest.raises(NotFound):
        params_of(run, socket_path, options={"root": site}, path=path)


def test_a_script_that_only_the_application_sees(run: Run[Any], socket_path: Path) -> None:
    params = params_of(
        run,
        socket_path,
        options={"root": "/var/www/elsewhere", "check_file": False, "index": "main.php"},
        path="/app/",
    )
    assert params["SCRIPT_FILENAME"] == "/var/www/elsewhere/app/main.php"
    assert params["SCRIPT_NAME"] == "/app/main.php"


@pytest.mark.parametrize(
    ("path", "query", "location"),
    [
        ("/shop", "", b"/shop/"),
        ("/shop", "a=1", b"/shop/?a=1"),
        ("//shop", "", b"/shop/"),
    ],
)
def test_a_directory_gets_its_slash(
    run: Run[Any], site: Path, path: str, query: str, location: bytes
) -> None:
    client = Client()
    raw = path.encode()
    run(
        client.call(
            FastCgiToAsgi("unix:/nonexistent", root=site),
            path="/shop",
            query=query,
            raw_path=raw,
        )
    )
    assert client.status == 301
    assert (b"location", location) in client.headers


def test_parameters_of_the_administrator_have_the_last_word(
    run: Run[Any], socket_path: Path
) -> None:
    params = params_of(
        run,
        socket_path,
        options={"params": {"SERVER_NAME": "caf\u00e9", "APP_ENV": "", "SCRIPT_NAME": "/x"}},
        path="/a",
        headers=[(b"authorization", b"Basic eA==")],
    )
    assert params["SERVER_NAME"] == "caf\u00c3\u00a9"
    assert params["APP_ENV"] == ""
    assert params["SCRIPT_NAME"] == "/x"
    assert params["HTTP_AUTHORIZATION"] == "Basic eA=="


def test_authorization_can_be_kept_back(run: Run[Any], socket_path: Path) -> None:
    params = params_of(
        run,
        socket_path,
        options={"pass_authorization": False},
        headers=[(b"authorization", b"Basic eA==")],
    )
    assert "HTTP_AUTHORIZATION" not in params


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"address": "nowhere"}, "is not an address"),
        ({"address": "unix:"}, "has no path"),
        ({"address": "::1:9000"}, "is not an address"),
        ({"address": "host:0"}, "is not an address"),
        ({"address": "host:70000"}, "is not an address"),
        ({"address": "http://host:80"}, "is not an address"),
        ({"address": "a:1", "params": {"A": "\0"}}, "not a parameter"),
        ({"address": "a:1", "params": {"": "b"}}, "not a parameter"),
    ],
)
def test_what_cannot_be_configured(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        FastCgiToAsgi(**options)


def test_addresses() -> None:
    for text in ("unix:/run/a b.sock", "127.0.0.1:9000", "[::1]:9000", "php:9000"):
        assert str(FastCgiToAsgi(text).connections.addresses[0]) == text

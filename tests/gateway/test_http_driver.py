"""The connection driver over real sockets; ids are RELIABILITY's."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvloop

from tetrapylon.adapters.errors import (
    BackendError,
    ClientDisconnected,
    ContentTooLarge,
    Truncated,
    Unavailable,
)
from tetrapylon.gateway.http_driver import HttpConnection
from tetrapylon.gateway.service import ConnectionLimits, Service, ServiceSettings, Timeouts
from tetrapylon.protocols.asgi import GATEWAY_EXTENSION, Application, Receive, Scope, Send

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


class Gate:
    """A listener with one application, on a loop in a thread of its own."""

    def __init__(self, app: Application, settings: ServiceSettings, loop_factory: Any) -> None:
        self.app = app
        self.settings = settings
        self.loop_factory = loop_factory
        self.service: Service = None  # type: ignore[assignment]
        self.port = 0
        self._ready = threading.Event()
        self._stop: asyncio.Event = None  # type: ignore[assignment]
        self._thread = threading.Thread(target=self._run)
        self.loop: asyncio.AbstractEventLoop = None  # type: ignore[assignment]
        self.cut = 0
        self.graceful_s = 0.0

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=self.loop_factory) as runner:
            runner.run(self._main())

    async def _main(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self.service = Service(self.app, self.settings)
        self.service.start()
        server = await self.loop.create_server(lambda: HttpConnection(self.service), "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        self.cut = await self.service.stop(graceful_s=self.graceful_s)

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(10)

    def stop(self, graceful_s: float = 0.0) -> int:
        if self._thread.is_alive():
            self.graceful_s = graceful_s
            self.loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(20)
            assert not self._thread.is_alive()
        return self.cut

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)

    def ask(self, data: bytes) -> bytes:
        """Send bytes and return all that comes until the server closes."""
        with self.connect() as client:
            client.sendall(data)
            return read_all(client)


def read_all(client: socket.socket) -> bytes:
    pieces = []
    with contextlib.suppress(ConnectionResetError):
        while piece := client.recv(65536):
            pieces.append(piece)
    return b"".join(pieces)


def read_until(client: socket.socket, mark: bytes) -> bytes:
    data = b""
    while mark not in data:
        piece = client.recv(65536)
        assert piece, f"closed after {data!r}"
        data += piece
    return data


def wait_until(condition: Callable[[], bool], seconds: float = 8.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.01)


Open = Callable[..., Gate]


@pytest.fixture(params=["uvloop+httptools", "asyncio+h11"])
def gate(request: pytest.FixtureRequest) -> Iterator[Open]:
    """Open a gate before an application; limits and times by name."""
    loop_name, engine_name = request.param.split("+")
    gates: list[Gate] = []

    def open_gate(
        app: Application,
        limits: ConnectionLimits | None = None,
        timeouts: Timeouts | None = None,
    ) -> Gate:
        settings = ServiceSettings(
            engine=engine_name,
            limits=limits or ConnectionLimits(),
            timeouts=timeouts or Timeouts(),
        )
        factory = uvloop.new_event_loop if loop_name == "uvloop" else asyncio.new_event_loop
        opened = Gate(app, settings, factory)
        opened.start()
        gates.append(opened)
        return opened

    yield open_gate
    for opened in gates:
        opened.stop()
        assert not opened.service.connections
        assert not opened.service.running


async def hello(scope: Scope, receive: Receive, send: Send) -> None:
    body = b"hello " + scope["raw_path"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


async def read_body(receive: Receive) -> bytes:
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnected
        body += message["body"]
        if not message["more_body"]:
            return body


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    body = await read_body(receive)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


def statuses(answer: bytes) -> list[int]:
    return [int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:]]


def test_hello(gate: Open) -> None:
    with gate(hello).connect() as client:
        for path in (b"/", b"/two"):
            client.sendall(GET.replace(b"/ ", path + b" "))
            answer = read_until(client, b"hello " + path)
            assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
            assert b"content-length: %d\r\n" % (6 + len(path)) in answer
            assert b"\r\nserver: tetrapylon\r\n" in answer
            assert b"\r\ndate: " in answer
            assert b"connection:" not in answer


def test_scope(gate: Open) -> None:
    seen: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope)
        await hello(scope, receive, send)

    opened = gate(app)
    opened.ask(
        b"GET /a%20b//c/../%C3%A9%FF?x=%31&y HTTP/1.1\r\nHost: example.org:81\r\n"
        b"X-One: 1\r\nConnection: close\r\n\r\n"
    )
    scope = seen[0]
    assert scope["type"] == "http"
    assert scope["asgi"] == {"version": "3.0", "spec_version": "2.3"}
    assert scope["http_version"] == "1.1"
    assert scope["method"] == "GET"
    assert scope["scheme"] == "http"
    assert scope["root_path"] == ""
    assert scope["path"].encode("utf-8", "surrogateescape") == b"/a b/\xc3\xa9\xff"
    assert scope["raw_path"] == b"/a%20b//c/../%C3%A9%FF"
    assert scope["query_string"] == b"x=%31&y"
    assert scope["headers"][:2] == [(b"host", b"example.org:81"), (b"x-one", b"1")]
    assert scope["server"] == ("127.0.0.1", opened.port)
    assert scope["client"][0] == "127.0.0.1"


@pytest.mark.parametrize(
    "path", [b"/..", b"/a/../../b", b"/%2e%2e/", b"/a%2fb", b"/a%00", b"/a%5cb", b"/a\\b", b"/%zz"]
)
def test_paths_that_are_refused(gate: Open, path: bytes) -> None:  # D1
    answer = gate(hello).ask(b"GET " + path + b" HTTP/1.1\r\nHost: a\r\n\r\n")
    assert statuses(answer) == [400]
    assert b"connection: close" in answer


@pytest.mark.parametrize("size", [0, 1, 70_000, 2_000_000])
@pytest.mark.parametrize("coding", ["length", "chunked"])
def test_bodies_both_ways(gate: Open, size: int, coding: str) -> None:
    content = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    head = b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
    if coding == "length":
        data = head + b"Content-Length: %d\r\n\r\n" % size + content
    else:
        chunks = (content[at : at + 8000] for at in range(0, size, 8000))
        coded = b"".join(b"%x\r\n%b\r\n" % (len(c), c) for c in chunks)
        data = head + b"Transfer-Encoding: chunked\r\n\r\n" + coded + b"0\r\n\r\n"
    answer = gate(echo).ask(data)
    assert answer.partition(b"\r\n\r\n")[2] == content


def test_body_cut_anywhere(gate: Open) -> None:  # A14
    data = b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello"
    opened = gate(echo)
    for cut in range(0, len(data), 7):
        with opened.connect() as client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client.sendall(data[:cut])
            wait_until(lambda: bool(opened.service.connections))
            client.sendall(data[cut:])
            assert read_all(client).endswith(b"\r\n\r\nhello")


def test_pipeline_in_order(gate: Open) -> None:  # A11
    requests = b"".join(GET.replace(b"/ ", b"/%d " % i) for i in range(300))
    closing = GET.replace(b"/ ", b"/last ").replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    answer = gate(hello).ask(requests + closing + GET)
    bodies = [part.partition(b"\r\n\r\n")[2] for part in answer.split(b"HTTP/1.1 200 OK\r\n")[1:]]
    assert bodies == [b"hello /%d" % i for i in range(300)] + [b"hello /last"]


def test_pipeline_ends_at_garbage(gate: Open) -> None:  # A11
    answer = gate(hello).ask(GET + b"GARBAGE\r\n\r\n" + GET)
    assert statuses(answer) == [200, 400]


def test_read_ahead_is_bounded(gate: Open) -> None:  # A11
    release = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await release.wait()
        await hello(scope, receive, send)

    opened = gate(app)
    with opened.connect() as client:
        client.settimeout(0.5)
        with contextlib.suppress(TimeoutError):
            for _ in range(2000):
                client.sendall(GET * 1000)
        (connection,) = opened.service.connections
        # One read beyond the bound: the loop hands over what it has read.
        assert connection.codec.buffered_bytes <= 64 * 1024 + 256 * 1024
        opened.loop.call_soon_threadsafe(release.set)
        client.settimeout(10)
        assert read_until(client, b"hello /").startswith(b"HTTP/1.1 200")


def test_unread_body_and_second_request(gate: Open) -> None:  # A11
    first = b"POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"
    closing = GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    assert statuses(gate(hello).ask(first + closing)) == [200, 200]


def test_large_unread_body_closes(gate: Open) -> None:  # A12
    first = b"POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 9000000\r\n\r\n"
    answer = gate(hello).ask(first + b"x" * 200_000)
    assert statuses(answer) == [200]
    assert b"connection: close" in answer


def test_expect_continue(gate: Open) -> None:  # A12
    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"
    with gate(echo).connect() as client:
        client.sendall(head)
        assert read_until(client, b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(b"hello")
        assert read_until(client, b"hello").startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("body", [b"", b"hello"])
def test_expect_continue_answered_early(gate: Open, body: bytes) -> None:  # A12
    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"
    answer = gate(hello).ask(
        head + body + (GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n") if body else b"")
    )
    # With the body here already, the connection may go on; without, it ends.
    assert statuses(answer) == ([200, 200] if body else [200])


def test_head_has_no_body(gate: Open) -> None:  # G5
    closing = GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    answer = gate(hello).ask(GET.replace(b"GET", b"HEAD") + closing)
    first, second = answer.split(b"HTTP/1.1 200 OK\r\n")[1:]
    assert b"content-length: 7\r\n" in first
    assert first.endswith(b"\r\n\r\n")
    assert second.endswith(b"hello /")


@pytest.mark.parametrize("status", [204, 304])
def test_statuses_without_body(gate: Open, status: int) -> None:  # G5
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b"not to be seen"})

    closing = GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    answer = gate(app).ask(GET + closing)
    assert statuses(answer) == [status, status]
    assert b"not to be seen" not in answer
    assert b"content-length" not in answer


def start(*fields: tuple[bytes, bytes], status: int = 200) -> dict[str, Any]:
    return {"type": "http.response.start", "status": status, "headers": list(fields)}


def body(data: bytes = b"", more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}


def sending(*messages: dict[str, Any]) -> Application:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in messages:
            await send(message)

    return app


def test_stream_is_chunked(gate: Open) -> None:
    app = sending(start(), body(b"one", True), body(b"", True), body(b"three", True), body())
    with gate(app).connect() as client:
        client.sendall(GET)
        answer = read_until(client, b"0\r\n\r\n")
    assert b"transfer-encoding: chunked\r\n" in answer
    assert answer.endswith(b"\r\n\r\n3\r\none\r\n5\r\nthree\r\n0\r\n\r\n")


def test_stream_to_http_1_0_ends_with_the_connection(gate: Open) -> None:
    app = sending(start(), body(b"one", True), body(b"two"))
    answer = gate(app).ask(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    assert b"connection: close\r\n" in answer
    assert answer.endswith(b"\r\n\r\nonetwo")


def test_http_1_0_keep_alive(gate: Open) -> None:
    with gate(hello).connect() as client:
        for _ in range(2):
            client.sendall(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            assert b"connection: keep-alive\r\n" in read_until(client, b"hello /")


@pytest.mark.parametrize(
    "field",
    [
        (b"x", b"a\r\nSet-Cookie: b"),
        (b"x", b"a\nb"),
        (b"x", b"a\rb"),
        (b"x", b"a\0b"),
        (b"x y", b"a"),
        (b"x:", b"a"),
        (b"", b"a"),
        (b"content-length", b"+5"),
        (b"content-length", b"5, 5"),
    ],
)
def test_fields_that_split_a_response(gate: Open, field: tuple[bytes, bytes]) -> None:  # G5
    closing = GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    answer = gate(sending(start(field), body(b"x"))).ask(GET + closing)
    assert statuses(answer) == [500, 500]
    assert b"Set-Cookie" not in answer


def test_hop_by_hop_fields_are_taken_off(gate: Open) -> None:  # G5
    app = sending(
        start(
            (b"Transfer-Encoding", b"chunked"),
            (b"Keep-Alive", b"timeout=5"),
            (b"Upgrade", b"h2c"),
            (b"Connection", b"upgrade"),
            (b"x-kept", b"yes"),
        ),
        body(b"data"),
    )
    closing = GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    answer = gate(app).ask(closing).lower()
    assert b"x-kept: yes\r\n" in answer
    assert b"content-length: 4\r\n" in answer
    for name in (b"transfer-encoding", b"keep-alive", b"upgrade"):
        assert name not in answer


def test_fields_that_change_in_place_are_seen_to_change(gate: Open) -> None:
    headers = [[b"x-count", b"0"]]

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        headers[0][1] = b"%d" % (int(headers[0][1]) + 1)
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body"})

    closing = GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    answer = gate(app).ask(GET + GET + closing)
    assert [line for line in answer.split(b"\r\n") if line.startswith(b"x-count")] == [
        b"x-count: 1",
        b"x-count: 2",
        b"x-count: 3",
    ]


def test_application_may_close(gate: Open) -> None:
    answer = gate(sending(start((b"connection", b"close")), body(b"x"))).ask(GET + GET)
    assert statuses(answer) == [200]
    assert b"connection: close\r\n" in answer


@pytest.mark.parametrize("name", [b"X-Sendfile", b"x-accel-redirect"])
def test_no_file_is_sent_for_a_backend(gate: Open, name: bytes) -> None:  # D6
    closing = GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    answer = gate(sending(start((name, b"/etc/passwd")), body(b"x"))).ask(closing)
    assert statuses(answer) == [502]
    assert b"passwd" not in answer


def test_short_body_is_seen_as_truncated(gate: Open, caplog: Any) -> None:  # G2
    answer = gate(sending(start((b"content-length", b"9")), body(b"four"))).ask(GET + GET)
    assert statuses(answer) == [200]
    assert answer.endswith(b"\r\n\r\nfour")
    assert "5 bytes short" in caplog.text


def test_long_body_is_cut(gate: Open, caplog: Any) -> None:  # G2
    answer = gate(sending(start((b"content-length", b"3")), body(b"four"))).ask(GET + GET)
    assert answer.endswith(b"\r\n\r\nfou")
    assert statuses(answer) == [200]
    wait_until(lambda: "1 bytes longer" in caplog.text)


def test_failure_in_the_stream_has_no_final_chunk(gate: Open) -> None:  # G2
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        await send(body(b"part", True))
        raise Truncated("died")

    answer = gate(app).ask(GET + GET)
    assert statuses(answer) == [200]
    assert answer.endswith(b"4\r\npart\r\n")


def test_failure_in_a_stream_to_http_1_0_is_a_reset(gate: Open) -> None:
    gone = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        await send(body(b"part", True))
        await gone.wait()
        raise Truncated("died")

    opened = gate(app)
    with opened.connect() as client:
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        read_until(client, b"part")
        opened.loop.call_soon_threadsafe(gone.set)
        with pytest.raises(ConnectionResetError):
            client.recv(10)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("secret"), 500),
        (Unavailable("secret", retry_after_s=7), 503),
        (ContentTooLarge("secret"), 413),
        (SystemExit(3), 500),
    ],
)
def test_exceptions_become_answers(
    gate: Open, error: BaseException, status: int, caplog: Any
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise error

    caplog.set_level(logging.DEBUG)
    closing = GET.replace(b"\r\n\r\n", b"\r\nAccept: text/html\r\nConnection: close\r\n\r\n")
    answer = gate(app).ask(closing)
    assert statuses(answer) == [status]
    assert b"text/html" in answer
    assert b"secret" not in answer
    assert b"Traceback" not in answer
    if isinstance(error, BackendError):
        assert "secret" in caplog.text
    if status == 503:
        assert b"retry-after: 7\r\n" in answer


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [start()],
        [body(b"x")],
        [start(), start()],
        [start(status=99)],
        [{"type": "http.response.nonsense"}],
    ],
)
def test_applications_that_break_asgi(gate: Open, messages: list[Any]) -> None:  # G4
    closing = GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    assert statuses(gate(sending(*messages)).ask(closing)) == [500]


def test_refusals_are_logged_once_and_then_counted(
    gate: Open, caplog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tetrapylon.gateway.refusals.EVERY_S", 0.2)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["extensions"][GATEWAY_EXTENSION].backend = scope["path"]
        raise Unavailable("no room")

    opened = gate(app)
    requests = 10 * GET + 10 * GET.replace(b"/ ", b"/other ", 1)
    answer = opened.ask(requests + GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    assert statuses(answer) == 21 * [503]
    wait_until(lambda: len(caplog.messages) == 4)
    first, other, *counted = caplog.messages
    assert first.endswith("b'/' (/): 503: no room")
    assert other.endswith("b'/other' (/other): 503: no room")
    assert sorted(text.partition(" within ")[0] for text in counted) == [
        "(/): 503 for 10 more requests",
        "(/other): 503 for 9 more requests",
    ]
    # What comes after it has been over for so long is the first again.
    wait_until(lambda: not opened.service.refusals._unsaid)
    opened.ask(requests[: len(GET)].replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    assert caplog.messages[4].endswith("b'/' (/): 503: no room")


def test_message_after_the_end_is_an_error(gate: Open, caplog: Any) -> None:  # G4
    closing = GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    answer = gate(sending(start(), body(b"x"), body(b"y"))).ask(GET + closing)
    assert statuses(answer) == [200, 200]
    wait_until(lambda: "after the end of the response" in caplog.text)


def test_body_over_its_limit(gate: Open) -> None:  # B3
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["extensions"]["tetrapylon"].limit_body(100_000)
        await echo(scope, receive, send)

    opened = gate(app)
    size = 3_000_000
    announced = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size
    chunked = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"%x\r\n" % 50_000 + b"x" * 50_000 + b"\r\n"
    for data in (announced + b"x" * size, chunked + chunk * 60 + b"0\r\n\r\n"):
        answer = opened.ask(data)
        assert statuses(answer) == [413], answer[:200]
        assert b"connection: close" in answer


def test_announced_body_over_its_limit_is_refused_before_it_comes(gate: Open) -> None:  # B3
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["extensions"]["tetrapylon"].limit_body(10)
        await echo(scope, receive, send)

    with gate(app).connect() as client:
        client.sendall(
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\nExpect: 100-continue\r\n\r\n"
        )
        assert read_until(client, b"\r\n\r\n").startswith(b"HTTP/1.1 413")


def test_application_that_does_not_read_slows_the_client(gate: Open) -> None:  # G3
    done = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await done.wait()
        await hello(scope, receive, send)

    opened = gate(app)
    with opened.connect() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        client.settimeout(0.5)
        client.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 16000000\r\n\r\n")
        with contextlib.suppress(TimeoutError):
            client.sendall(b"x" * 16_000_000)
        (connection,) = opened.service.connections
        assert connection.exchange is not None
        # One read beyond the bound: the loop hands over what it has read.
        assert connection.exchange.received_bytes <= 64 * 1024 + 256 * 1024
        opened.loop.call_soon_threadsafe(done.set)
        client.settimeout(10)
        assert read_until(client, b"hello /").startswith(b"HTTP/1.1 200")


def test_client_that_does_not_read_slows_the_application(gate: Open) -> None:  # B7
    sent = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal sent
        await send(start())
        for _ in range(400):
            await send(body(b"x" * 65536, True))
            sent += 65536
        await send(body())

    opened = gate(app)
    with opened.connect() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        client.sendall(GET)
        read_until(client, b"\r\n\r\n")
        before = -1
        while sent != before:
            before = sent
            time.sleep(0.3)
        (connection,) = opened.service.connections
        assert sent < 400 * 65536
        assert connection.transport.get_write_buffer_size() <= 256 * 1024
        read_until(client, b"\r\n0\r\n\r\n")


def test_large_body_in_one_message_is_written_as_the_client_reads(gate: Open) -> None:  # B7
    opened = gate(sending(start(), body(b"x" * 20_000_000)))
    with opened.connect() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        client.sendall(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        head = read_until(client, b"\r\n\r\n")
        assert b"content-length: 20000000\r\n" in head
        (connection,) = opened.service.connections
        assert connection.transport.get_write_buffer_size() <= 300 * 1024
        rest = len(head.partition(b"\r\n\r\n")[2]) + len(read_all(client))
    assert rest == 20_000_000


def test_half_close_still_gets_its_answer(gate: Open) -> None:
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        message = await receive()
        seen.append(message["type"])
        await hello(scope, receive, send)

    with gate(app).connect() as client:
        client.sendall(GET + GET.replace(b"/ ", b"/2 "))
        client.shutdown(socket.SHUT_WR)
        answer = read_all(client)
    assert statuses(answer) == [200, 200]
    assert answer.endswith(b"hello /2")
    assert seen == ["http.disconnect", "http.disconnect"]


def test_silence_after_half_close_is_a_departure(gate: Open) -> None:
    departed = threading.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["extensions"]["tetrapylon"].on_departure = departed.set
        await asyncio.sleep(60)

    opened = gate(app, timeouts=Timeouts(half_close=0.3))
    with opened.connect() as client:
        client.sendall(GET)
        client.shutdown(socket.SHUT_WR)
        assert read_all(client) == b""
    assert departed.wait(5)


def test_departure(gate: Open) -> None:
    departed = threading.Event()
    outcome: list[object] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        exchange = scope["extensions"]["tetrapylon"]
        exchange.on_departure = departed.set
        await send(start())
        await send(body(b"begun", True))
        await receive()
        outcome.append((await receive())["type"])
        try:
            await send(body(b"more", True))
        except OSError as error:
            outcome.append(type(error).__name__)
            raise

    opened = gate(app)
    with opened.connect() as client:
        client.sendall(GET)
        read_until(client, b"begun")
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert departed.wait(5)
    wait_until(lambda: len(outcome) == 2)
    assert outcome == ["http.disconnect", "ClientLeft"]


@pytest.mark.parametrize("cut", [10, -2, -4, -9])
def test_end_of_stream_inside_a_request(gate: Open, cut: int) -> None:  # A4, A6
    reached: list[bytes] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        reached.append(await read_body(receive))

    data = (
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
    )
    with gate(app).connect() as client:
        client.sendall(data[:cut])
        client.shutdown(socket.SHUT_WR)
        assert statuses(read_all(client)) == [400]
    assert reached == []


FAST = Timeouts(
    first_byte=0.6, header=0.6, body_idle=0.8, send_idle=0.8, keep_alive=0.6, linger=0.6
)


def test_silent_client_is_closed(gate: Open) -> None:  # B5
    with gate(hello, timeouts=FAST).connect() as client:
        assert read_all(client) == b""


def test_slow_head_has_an_absolute_time(gate: Open) -> None:  # B4
    opened = gate(hello, timeouts=FAST)
    began = time.monotonic()
    with opened.connect() as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nX: ")
        client.settimeout(0.1)
        answer = b""
        while time.monotonic() - began < 5:
            with contextlib.suppress(TimeoutError):
                answer = client.recv(4096)
                break
            client.sendall(b"x")
    assert statuses(answer) == [408]


def test_idle_connection_is_closed(gate: Open) -> None:
    with gate(hello, timeouts=FAST).connect() as client:
        client.sendall(GET)
        assert statuses(read_all(client)) == [200]


@pytest.mark.parametrize(("burst", "drips"), [(0, False), (0, True), (4000, True)])
def test_slow_body(gate: Open, burst: int, drips: bool) -> None:  # B6
    ended: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await read_body(receive)
        except ClientDisconnected:
            ended.append("disconnected")
            raise

    opened = gate(app, timeouts=FAST)
    with opened.connect() as client:
        head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5000\r\n\r\n"
        client.sendall(head + b"x" * burst)
        client.settimeout(0.1)
        answer = b""
        for _ in range(80):
            with contextlib.suppress(TimeoutError):
                answer = client.recv(4096)
                break
            if drips:
                client.sendall(b"x")
    assert statuses(answer) == [408]
    wait_until(lambda: ended == ["disconnected"])


def test_body_that_waits_for_our_100_is_not_slow(gate: Open) -> None:  # A12, B6
    opens = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await opens.wait()
        await echo(scope, receive, send)

    opened = gate(app, timeouts=Timeouts(body_idle=0.5))
    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"
    with opened.connect() as client:
        client.sendall(head)
        wait_until(lambda: bool(opened.service.running))
        asyncio.run_coroutine_threadsafe(asyncio.sleep(1.8), opened.loop).result(5)
        opened.loop.call_soon_threadsafe(opens.set)
        assert read_until(client, b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        # From here on it is the client that is waited for.
        assert statuses(read_until(client, b"\r\n\r\n")) == [408]


def test_client_that_stops_reading_is_cut(gate: Open) -> None:  # B7
    ended = threading.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send(start())
            while True:
                await send(body(b"x" * 65536, True))
        except OSError:
            ended.set()
            raise

    with gate(app, timeouts=FAST).connect() as client:
        client.sendall(GET)
        assert ended.wait(8)


def test_first_byte_time(gate: Open) -> None:  # G4
    cancelled = threading.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["extensions"]["tetrapylon"].first_byte_s = 0.5
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    closing = GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    assert statuses(gate(app).ask(closing)) == [504]
    assert cancelled.wait(5)


def test_requests_per_connection(gate: Open) -> None:
    answer = gate(hello, limits=ConnectionLimits(requests=3)).ask(GET * 5)
    assert statuses(answer) == [200, 200, 200]
    assert answer.count(b"connection: close") == 1


def test_stop_answers_what_is_in_flight(gate: Open) -> None:  # S6
    begun = threading.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        begun.set()
        await asyncio.sleep(0.5)
        await hello(scope, receive, send)

    opened = gate(app)
    with opened.connect() as client, opened.connect() as idle:
        client.sendall(GET)
        assert begun.wait(5)
        assert opened.stop(graceful_s=10.0) == 0
        answer = read_all(client)
        assert statuses(answer) == [200]
        assert b"connection: close" in answer
        assert read_all(idle) == b""


def test_stop_is_bounded(gate: Open) -> None:  # S6
    begun = threading.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        begun.set()
        await asyncio.sleep(60)

    opened = gate(app)
    with opened.connect() as client:
        client.sendall(GET)
        assert begun.wait(5)
        assert opened.stop(graceful_s=0.2) == 1
        assert read_all(client) == b""


def test_blocked_loop_costs_no_client_its_time(gate: Open, caplog: Any) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/block":
            time.sleep(1.8)
        await hello(scope, receive, send)

    opened = gate(app, timeouts=Timeouts(keep_alive=1.0))
    with opened.connect() as client, opened.connect() as other:
        other.sendall(GET)
        read_until(other, b"hello /")
        client.sendall(GET.replace(b"/ ", b"/block "))
        read_until(client, b"hello /block")
        other.sendall(GET)
        assert read_until(other, b"hello /").startswith(b"HTTP/1.1 200")
    wait_until(lambda: "event loop was blocked" in caplog.text)


@pytest.mark.parametrize("closes_its_side", [False, True])
def test_pipeline_waits_for_a_client_that_does_not_read(  # A11, B7
    gate: Open, closes_its_side: bool
) -> None:
    answered = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal answered
        answered += 1
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x" * 100_000})

    opened = gate(app)
    with opened.connect() as client:
        client.sendall(GET * 200)
        if closes_its_side:
            client.shutdown(socket.SHUT_WR)
        wait_until(lambda: bool(opened.service.connections))
        [connection] = opened.service.connections
        wait_until(lambda: connection.is_write_paused)
        wait_until(lambda: connection.codec.is_eof == closes_its_side)
        # Several turns of the loop, in which more would have been taken.
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0.2), opened.loop).result(5)
        assert connection.transport.get_write_buffer_size() <= opened.service.limits.send_buffer
        assert answered < 200
        if not closes_its_side:
            client.shutdown(socket.SHUT_WR)
        answer = read_all(client)
    assert answered == 200
    assert statuses(answer) == [200] * 200


def test_pipelining_client_that_never_reads_is_cut(gate: Open) -> None:  # B7
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x" * 100_000})

    opened = gate(app, timeouts=Timeouts(send_idle=1.0))
    with opened.connect() as client:
        client.sendall(GET * 200)
        wait_until(lambda: any(each.is_write_paused for each in opened.service.connections))
        wait_until(lambda: not opened.service.connections)


@pytest.mark.parametrize("way", ["pipelined", "read in pieces"])
def test_each_request_has_a_context_of_its_own(gate: Open, way: str) -> None:
    user: contextvars.ContextVar[str] = contextvars.ContextVar("user", default="nobody")
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(user.get())
        user.set("somebody")
        await asyncio.sleep(0)
        await read_body(receive)
        await hello(scope, receive, send)

    with gate(app).connect() as client:
        if way == "pipelined":
            client.sendall(GET * 2)
        else:
            # Reading is paused, and resumed from within the application.
            client.sendall(
                b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 900000\r\n\r\n" + b"x" * 900_000
            )
            read_until(client, b"hello /")
            client.sendall(GET)
        wait_until(lambda: len(seen) == 2)
    assert seen == ["nobody", "nobody"]


def test_application_that_reads_late_is_not_the_clients_fault(gate: Open) -> None:  # B6
    opens = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await opens.wait()
        await echo(scope, receive, send)

    opened = gate(app, timeouts=Timeouts(body_idle=0.5))
    content = b"x" * 200_000
    with opened.connect() as client:
        # The first read brings more than is buffered, and not the end.
        client.sendall(
            b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
            b"Content-Length: 200001\r\n\r\n" + content
        )
        wait_until(lambda: bool(opened.service.running))
        asyncio.run_coroutine_threadsafe(asyncio.sleep(1.8), opened.loop).result(5)
        opened.loop.call_soon_threadsafe(opens.set)
        with contextlib.suppress(ConnectionError):
            client.sendall(b"y")
        answer = read_all(client)
    assert statuses(answer) == [200]
    assert answer.endswith(content + b"y")


def test_first_byte_time_holds_for_a_body_that_is_not_read(gate: Open) -> None:  # G4
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["extensions"]["tetrapylon"].first_byte_s = 0.5
        await asyncio.sleep(60)

    with gate(app).connect() as client:
        client.sendall(
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 200_000
        )
        assert read_until(client, b"\r\n\r\n").startswith(b"HTTP/1.1 504 ")


class Whatever(BaseException):
    """Not an Exception."""


@pytest.mark.parametrize(
    "error",
    [
        Whatever("x"),
        KeyboardInterrupt(),
        SystemExit(1),
        BaseExceptionGroup("x", [asyncio.CancelledError()]),
        asyncio.CancelledError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_whatever_is_raised_becomes_an_answer(  # G4
    gate: Open, error: BaseException
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/":
            raise error
        await hello(scope, receive, send)

    opened = gate(app)
    with opened.connect() as client:
        client.sendall(GET + GET.replace(b"/ ", b"/two "))
        assert statuses(read_until(client, b"hello /two")) == [500, 200]


def test_expect_continue_answered_by_a_stream_closes(gate: Open) -> None:  # A12
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for more_body in (True, False):
            await send({"type": "http.response.body", "body": b"a", "more_body": more_body})

    # What follows may be the body, or the next request of a client that sends none.
    answer = gate(app).ask(
        b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 27\r\n\r\n"
    )
    assert statuses(answer) == [200]
    assert b"connection: close" in answer
    assert answer.endswith(b"0\r\n\r\n")


def test_connection_cut_within_a_large_piece(gate: Open, caplog: Any) -> None:
    lines: list[int] = []

    class Log:
        def record(self, *, status: int, **_: object) -> None:
            lines.append(status)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x" * 20_000_000})

    opened = gate(app, limits=ConnectionLimits(body=100))
    opened.service.access_log = Log()  # type: ignore[assignment]
    with opened.connect() as client:
        client.sendall(
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n"
        )
        wait_until(lambda: bool(opened.service.connections))
        [connection] = opened.service.connections
        wait_until(lambda: connection.is_write_paused)
        client.sendall(b"80\r\n" + b"x" * 128 + b"\r\n")
        wait_until(lambda: connection.is_closing)
        answer = read_all(client)
    wait_until(lambda: not opened.service.running)
    assert len(answer) < 20_000_000
    assert lines == [200]
    # That nobody takes the rest is no failure of the application's.
    assert "the application" not in caplog.text


def test_refused_path_is_answered_as_its_request_asks(gate: Open) -> None:
    lines: list[Any] = []

    class Log:
        def record(self, *, request: Any, status: int, **_: object) -> None:
            lines.append((request.method, request.target, status))

    opened = gate(hello)
    opened.service.access_log = Log()  # type: ignore[assignment]
    answer = opened.ask(b"HEAD /%zz HTTP/1.1\r\nHost: a\r\nAccept: application/json\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"content-type: application/json" in head
    assert body == b""
    assert lines == [("HEAD", b"/%zz", 400)]


def test_empty_line_behind_the_last_request(gate: Open) -> None:
    with gate(hello).connect() as client:
        client.sendall(GET + b"\r\n")
        client.shutdown(socket.SHUT_WR)
        assert statuses(read_all(client)) == [200]


def test_idle_connection_keeps_nothing_of_its_requests(gate: Open) -> None:  # B8
    opened = gate(echo)
    with opened.connect() as client:
        client.sendall(
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 60001\r\n\r\n" + b"x" * 60_000 + b"y"
        )
        read_until(client, b"xy")
        [connection] = opened.service.connections
        wait_until(lambda: not opened.service.running)
        assert len(connection.codec.buffer) == 0
        client.sendall(GET)
        assert read_until(client, b"content-length: 0").startswith(b"HTTP/1.1 200 ")


def test_failing_departure_does_not_keep_the_connection(gate: Open, caplog: Any) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        def fail() -> None:
            raise RuntimeError("departure")

        scope["extensions"]["tetrapylon"].on_departure = fail
        while (await receive())["type"] != "http.disconnect":
            pass

    opened = gate(app)
    with opened.connect() as client:
        client.sendall(GET)
        wait_until(lambda: bool(opened.service.running))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wait_until(lambda: not opened.service.connections)
    wait_until(lambda: "departure" in caplog.text)

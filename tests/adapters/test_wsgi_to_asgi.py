from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import io
import logging
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from wsgiref.validate import validator

import pytest
import uvloop
from asgiref.testing import ApplicationCommunicator
from hypothesis import given, settings
from hypothesis import strategies as st

from tetrapylon.adapters.errors import ClientDisconnected, InternalError, Truncated, Unavailable
from tetrapylon.adapters.wsgi_to_asgi import WsgiToAsgi

WAIT_S = 10.0
TEXT = [("Content-Type", "text/plain")]


class Gateway:
    """The extension by which an adapter knows our driver."""

    def __init__(self) -> None:
        self.on_departure: Callable[[], None] | None = None
        self.is_departed = False

    def depart(self) -> None:
        self.is_departed = True
        callback, self.on_departure = self.on_departure, None
        if callback is not None:
            callback()


def make_scope(method: str = "GET", path: str = "/", **more: Any) -> dict[str, Any]:
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.5"},
        "http_version": "1.1",
        "server": ("127.0.0.1", 8000),
        "client": ("192.0.2.7", 51234),
        "scheme": "http",
        "method": method,
        "root_path": "",
        "path": path,
        "raw_path": path.encode("utf-8", "surrogateescape"),
        "query_string": b"",
        "headers": [(b"host", b"example.com")],
        "extensions": {},
    }
    scope.update(more)
    return scope


@dataclass
class Client:
    """The server's side of one ASGI call: what was sent, and what is to be received."""

    pieces: list[bytes] = field(default_factory=lambda: [b""])
    messages: list[dict[str, Any]] = field(default_factory=list)
    is_gone: asyncio.Event = field(default_factory=asyncio.Event)
    #: Awaited in each send of a body.
    on_body: Callable[[bytes], Awaitable[None]] | None = None
    is_body_complete: bool = True

    async def receive(self) -> dict[str, Any]:
        if self.pieces:
            piece = self.pieces.pop(0)
            more = bool(self.pieces) or not self.is_body_complete
            return {"type": "http.request", "body": piece, "more_body": more}
        await self.is_gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        self.messages.append(message)
        if message["type"] == "http.response.body" and self.on_body is not None:
            await self.on_body(message["body"])

    @property
    def status(self) -> int:
        status: int = self.messages[0]["status"]
        return status

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        headers: list[tuple[bytes, bytes]] = self.messages[0]["headers"]
        return headers

    @property
    def body(self) -> bytes:
        return b"".join(m["body"] for m in self.messages if m["type"] == "http.response.body")

    @property
    def blocks(self) -> list[bytes]:
        return [m["body"] for m in self.messages if m["type"] == "http.response.body" and m["body"]]

    @property
    def is_complete(self) -> bool:
        last = self.messages[-1] if self.messages else {}
        return last.get("type") == "http.response.body" and not last.get("more_body", False)


def answer(
    app: Any,
    scope: dict[str, Any] | None = None,
    client: Client | None = None,
    *,
    is_gateway: bool = True,
    **options: Any,
) -> Client:
    """Run one request through `WsgiToAsgi(app)`; under our driver failures are raised."""
    scope = make_scope() if scope is None else scope
    gateway = Gateway()
    if is_gateway:
        scope["extensions"] = {"tetrapylon": gateway}
    client = client or Client()

    async def run() -> None:
        async with asyncio.timeout(WAIT_S):
            async with WsgiToAsgi(app, **options) as adapter:
                try:
                    await adapter(scope, client.receive, client.send)
                finally:
                    assert gateway.on_departure is None
                    await asyncio.sleep(0)
                    assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(run())
    return client


def environ_of(
    scope: dict[str, Any] | None = None, client: Client | None = None, **options: Any
) -> dict[str, Any]:
    seen: dict[str, Any] = {}

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        seen.update(environ)
        assert type(environ) is dict  # WSGI-ENV-DICT
        start_response("200 OK", list(TEXT))
        return [b""]

    answer(validator(app), scope, client, **options)
    return seen


class Blocks:
    """An iterable that notes how it was treated."""

    def __init__(self, *blocks: Any) -> None:
        self._blocks = iter(blocks)
        self.threads: list[int] = []
        self.closed: list[int] = []
        self.is_closed = threading.Event()

    def __iter__(self) -> Blocks:
        return self

    def __next__(self) -> bytes:
        self.threads.append(threading.get_ident())
        block = next(self._blocks)
        if isinstance(block, BaseException):
            raise block
        if callable(block):
            block = block()
        assert isinstance(block, bytes | str | int)
        return block  # type: ignore[return-value]

    def close(self) -> None:
        self.closed.append(threading.get_ident())
        self.is_closed.set()


def responding(
    blocks: Any, headers: list[tuple[str, str]] | None = None, status: str = "200 OK"
) -> Any:
    def app(environ: dict[str, Any], start_response: Any) -> Any:
        start_response(status, TEXT + (headers or []))
        return blocks

    return app


# The environ


def test_environ_carries_the_request() -> None:
    # WSGI-ENV-*, ASGI-WSGI-MAP-*
    environ = environ_of(
        make_scope(
            "POST",
            "/api/caf\u00e9/x",
            root_path="/api",
            query_string=b"a=%20b",
            headers=[
                (b"host", b"example.com:8000"),
                (b"content-type", b"text/x"),
                (b"content-length", b"3"),
                (b"x-one", b"1"),
                (b"x-one", b"2"),
                (b"cookie", b"a=1"),
                (b"cookie", b"b=2"),
                (b"authorization", b"Basic eDp5"),
                (b"proxy", b"http://evil"),
            ],
        ),
        Client([b"abc"]),
    )
    expected = {
        "REQUEST_METHOD": "POST",
        "SCRIPT_NAME": "/api",
        "PATH_INFO": "/caf\u00c3\u00a9/x",  # WSGI-ENV-PATH-LATIN1: bytes, decoded as latin-1
        "QUERY_STRING": "a=%20b",
        "CONTENT_TYPE": "text/x",
        "CONTENT_LENGTH": "3",
        "SERVER_NAME": "example.com",
        "SERVER_PORT": "8000",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "192.0.2.7",
        "REMOTE_PORT": "51234",
        "HTTP_X_ONE": "1, 2",
        "HTTP_COOKIE": "a=1; b=2",
        "HTTP_AUTHORIZATION": "Basic eDp5",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    assert {key: environ.get(key) for key in expected} == expected
    # C1, WSGI-ENV-NOHTTPCT
    absent = {"HTTP_PROXY", "HTTP_CONTENT_TYPE", "HTTP_CONTENT_LENGTH"}
    assert not absent & environ.keys()


def test_flags_follow_the_configuration() -> None:
    # WSGI-MULTITHREAD, WSGI-MULTIPROCESS, WSGI-SCHEME, WSGI-ENV-CGI, WSGI-APPCONFIG, WSGI-THREAD
    environ = environ_of(
        make_scope(scheme="https"), threads=1, multiprocess=True, environ={"shop.mode": "test"}
    )
    assert environ["wsgi.multithread"] is False
    assert environ["wsgi.multiprocess"] is True
    assert environ["wsgi.url_scheme"] == "https"
    assert environ["HTTPS"] == "on"
    assert environ["shop.mode"] == "test"


def test_each_request_has_an_environ_of_its_own() -> None:
    seen: list[bool] = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        seen.append("mine" in environ)
        environ["mine"] = True
        environ["wsgi.version"] = None
        start_response("200 OK", TEXT)
        return []

    async def run() -> None:
        async with WsgiToAsgi(app) as adapter:
            for _ in range(2):
                client = Client()
                await adapter(make_scope(), client.receive, client.send)

    asyncio.run(run())
    assert seen == [False, False]  # WSGI-ENV-FRESH, WSGI-APP-REPEAT


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=20), st.binary(max_size=20))
def test_path_bytes_arrive_unchanged(script: bytes, rest: bytes) -> None:
    root_path = "/" + script.decode("utf-8", "surrogateescape").replace("/", "")
    path = root_path + "/" + rest.decode("utf-8", "surrogateescape")
    seen: dict[str, Any] = {}

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        seen.update(environ)
        start_response("200 OK", TEXT)
        return []

    answer(app, make_scope(path=path, root_path=root_path if script else "", raw_path=b"/x"))
    # WSGI-STR-LATIN1
    found = (seen["SCRIPT_NAME"] + seen["PATH_INFO"]).encode("latin-1")
    assert found == path.encode("utf-8", "surrogateescape")


# The body of the request


@pytest.mark.parametrize("spool", [True, False])
@pytest.mark.parametrize("is_length_known", [True, False])
@pytest.mark.parametrize(
    "pieces", [[b""], [b"one\ntwo"], [b"on", b"e\nt", b"", b"wo"], [b"", b"one\n", b"two", b""]]
)
def test_input_is_the_body(pieces: list[bytes], is_length_known: bool, spool: bool) -> None:
    body = b"".join(pieces)

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        stream = environ["wsgi.input"]
        lines = [stream.readline(), *stream]
        assert b"".join(lines) == body
        assert lines == body.splitlines(keepends=True) or lines == [b""]
        # WSGI-INPUT-EOF, for as often as one asks
        assert stream.read(10) == b""
        assert stream.read(10) == b""
        assert stream.readline() == b""
        if spool or len(pieces) == 1:
            assert environ.get("CONTENT_LENGTH", "0") == str(len(body))
            assert "HTTP_TRANSFER_ENCODING" not in environ
        start_response("200 OK", list(TEXT))
        return [b"done"]

    framing = (
        (b"content-length", str(len(body)).encode())
        if is_length_known
        else (b"transfer-encoding", b"chunked")  # WSGI-CHUNKED-REQ
    )
    scope = make_scope("POST", headers=[(b"host", b"example.com"), framing])
    client = answer(validator(app), scope, Client(list(pieces)), spool=spool)
    assert client.body == b"done"


def read_all(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    data = environ["wsgi.input"].read()
    start_response("200 OK", TEXT)
    return [str(len(data)).encode(), b" ", type(environ["wsgi.input"]).__name__.encode()]


@pytest.mark.parametrize("spool", [True, False])
def test_large_bodies_arrive_whole(spool: bool) -> None:
    pieces = [b"x" * 50_000] * 20
    client = answer(read_all, make_scope("POST"), Client(pieces), spool=spool)
    assert client.body == b"1000000 BufferedReader"


def test_input_methods() -> None:
    # WSGI-INPUT-METHODS, WSGI-INPUT-READ0, WSGI-INPUT-READLINE
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        stream = environ["wsgi.input"]
        got = [stream.read(2), stream.readline(3), stream.readlines(1), stream.read()]
        start_response("200 OK", TEXT)
        return [repr(got).encode()]

    for options in ({"spool": True}, {"spool": False}):
        pieces = [b"ab", b"cdef\ng", b"h\nij\n", b"k"]
        client = answer(app, make_scope("POST"), Client(pieces), **options)
        assert client.body == rb"[b'ab', b'cde', [b'f\n'], b'gh\nij\nk']"


def test_no_thread_is_taken_before_the_body_is_complete() -> None:
    # B6
    called = threading.Event()

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        called.set()
        return read_all(environ, start_response)

    async def run() -> None:
        async with asyncio.timeout(WAIT_S), WsgiToAsgi(app, threads=1) as adapter:
            more: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
            asked = asyncio.Event()

            async def receive() -> dict[str, Any]:
                asked.set()
                return await more.get()

            slow = asyncio.create_task(adapter(make_scope("POST"), receive, Client().send))
            await asked.wait()
            more.put_nowait({"type": "http.request", "body": b"slow", "more_body": True})
            asked.clear()
            await asked.wait()
            assert not called.is_set()
            # Meanwhile the only thread serves another client.
            client = Client()
            await adapter(make_scope(), client.receive, client.send)
            assert client.body.startswith(b"0 ")
            more.put_nowait({"type": "http.request", "body": b"", "more_body": False})
            await slow

    asyncio.run(run())


@pytest.mark.parametrize("spool", [True, False])
@pytest.mark.parametrize("pieces", [[b"x" * 11], [b"x" * 6, b"x" * 5]])
def test_body_limit(pieces: list[bytes], spool: bool) -> None:
    # B3
    client = answer(
        read_all,
        make_scope("POST"),
        Client(list(pieces)),
        is_gateway=False,
        body_limit_bytes=10,
        spool=spool,
    )
    assert client.status == 413
    client = answer(read_all, make_scope("POST"), Client([b"x" * 10]), body_limit_bytes=10)
    assert client.body.startswith(b"10 ")


@pytest.mark.parametrize("spool", [True, False])
def test_client_that_leaves_in_the_middle_of_its_body(spool: bool) -> None:
    raised: list[BaseException] = []
    over = threading.Event()

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        try:
            environ["wsgi.input"].read()
        except OSError as error:
            raised.append(error)
            raise
        finally:
            over.set()
        return []

    client = Client([b"some"], is_body_complete=False)
    client.is_gone.set()
    messages = answer(app, make_scope("POST"), client, is_gateway=False, spool=spool).messages
    assert messages == []
    if spool:
        assert not over.is_set()
    else:
        assert over.wait(WAIT_S)
        assert "left" in str(raised[0])


def test_streamed_input_is_read_as_it_comes_and_answers_go_out_between() -> None:
    # An echo: had the answer to wait for the body, or the other way round, both would hang.
    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", TEXT)
        while line := environ["wsgi.input"].readline():
            yield line.upper()

    async def run() -> list[bytes]:
        inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        client = Client()

        async def on_body(body: bytes) -> None:
            number = len(client.blocks)
            if number <= 5:
                inbox.put_nowait(
                    {"type": "http.request", "body": b"line\n", "more_body": number < 5}
                )

        client.on_body = on_body
        inbox.put_nowait({"type": "http.request", "body": b"line\n", "more_body": True})
        async with asyncio.timeout(WAIT_S), WsgiToAsgi(app, spool=False) as adapter:
            await adapter(make_scope("POST"), inbox.get, client.send)
        assert client.is_complete
        return client.blocks

    assert asyncio.run(run()) == [b"LINE\n"] * 6


def test_unread_body_is_left_alone() -> None:
    # WSGI-INPUT-UNREAD
    client = Client([b"a" * 100_000, b"b" * 100_000])
    assert answer(responding([b"ok"]), make_scope("POST"), client, spool=False).body == b"ok"


# The response


def test_head_and_body_are_one_result() -> None:
    # WSGI-CLEN-ONE, WSGI-HEADERS-PASS, WSGI-STATUS-PASS, ASGI-WSGI-STATUS
    headers = [("Set-Cookie", "a=1"), ("X-B", "\u00e9 \t2"), ("Set-Cookie", "b=2")]
    client = answer(responding([b"hello"], headers, "404 Nothing Here"))
    assert client.messages == [
        {
            "type": "http.response.start",
            "status": 404,
            "headers": [
                (b"content-type", b"text/plain"),
                (b"set-cookie", b"a=1"),
                (b"x-b", b"\xe9 \t2"),
                (b"set-cookie", b"b=2"),
                (b"content-length", b"5"),
            ],
        },
        {"type": "http.response.body", "body": b"hello", "more_body": False},
    ]


def test_blocks_become_messages() -> None:
    # ASGI-WSGI-BODY, WSGI-ITER-UNBUFFERED; WSGI-ITER-EMPTY: an empty block is none
    for blocks in ([b"a", b"", b"b\r\n"], (b"a", b"", b"b\r\n")):
        client = answer(responding(blocks))
        assert client.blocks == [b"a", b"b\r\n"]
        assert (b"content-length", b"4") in client.headers
        assert client.is_complete
    for is_gateway in (True, False):
        app = validator(responding(Blocks(b"a", b"", b"b\r\n")))
        client = answer(app, is_gateway=is_gateway)
        assert client.blocks == [b"a", b"b\r\n"]
        assert client.is_complete


@pytest.mark.parametrize("blocks", [[], (), [b""], Blocks(), Blocks(b"", b"")])
def test_empty_bodies(blocks: Any) -> None:
    # WSGI-ITER-NONE
    client = answer(responding(blocks))
    assert client.status == 200
    assert (b"content-length", b"0") in client.headers
    assert client.messages[1:] == [{"type": "http.response.body", "body": b"", "more_body": False}]


def test_blocks_are_sent_before_the_next_is_asked_for() -> None:
    # WSGI-ITER-EACH, WSGI-ITER-NODELAY, WSGI-SR-LATE
    sent = threading.Event()

    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", list(TEXT))
        yield b"first"
        assert sent.wait(WAIT_S)
        yield b"second"

    client = Client()

    async def on_body(body: bytes) -> None:
        assert client.messages[0]["type"] == "http.response.start"
        sent.set()

    client.on_body = on_body
    assert answer(app, client=client).blocks == [b"first", b"second"]


def test_start_response_may_come_with_the_first_block() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        yield b""  # "not yet"
        start_response("201 Created", list(TEXT))
        yield b"x"

    client = answer(app)
    assert (client.status, client.body) == (201, b"x")


def test_first_block_that_fills_the_content_length_is_the_whole() -> None:
    # The answer does not wait for what the application does after its last block.
    go_on = threading.Event()
    ended: list[str] = []

    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [*TEXT, ("Content-Length", "4")])
        try:
            yield b"body"
            assert go_on.wait(WAIT_S)
            ended.append("iterated")
        finally:
            ended.append("closed")

    async def run() -> None:
        async with asyncio.timeout(WAIT_S):
            async with WsgiToAsgi(app) as adapter:
                client = Client()
                await adapter(make_scope(), client.receive, client.send)
                assert client.body == b"body"
                assert len(client.messages) == 2
                assert client.is_complete
                assert ended == []
                go_on.set()

    asyncio.run(run())
    assert ended == ["iterated", "closed"]


def test_write_comes_before_the_blocks() -> None:
    # WSGI-SR-WRITE, WSGI-WRITE, WSGI-WRITE-MIX
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        write = start_response("200 OK", list(TEXT))
        write(b"one ")
        write(b"")
        write(b"two ")
        return [b"three"]

    client = answer(validator(app))
    assert client.blocks == [b"one ", b"two ", b"three"]
    assert client.is_complete


def test_write_only() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", list(TEXT))(b"all")
        return []

    client = answer(app)
    assert client.body == b"all"
    assert client.is_complete


@pytest.mark.parametrize("method", ["HEAD", "GET"])
@pytest.mark.parametrize("kind", [list, Blocks])
def test_bodies_that_may_not_be(method: str, kind: Any) -> None:
    # WSGI-HEAD, WSGI-204, G5
    for status in ("200 OK", "204 No Content", "304 Not Modified"):
        if method == "GET" and status == "200 OK":
            continue
        for headers in ([], [("Content-Length", "6")], [("Content-Length", "1000")]):
            blocks = [b"abc", b"def"]
            iterable = blocks if kind is list else Blocks(*blocks)
            client = answer(responding(iterable, headers, status), make_scope(method))
            assert client.blocks == []
            assert client.is_complete
            length = [value for name, value in client.headers if name == b"content-length"]
            # RFC 9110 §8.6
            assert length == ([] if status.startswith("204") else [v.encode() for _, v in headers])
            if kind is Blocks:
                assert len(iterable.threads) == 3
                assert len(iterable.closed) == 1


def test_head_without_a_body_does_not_wait_for_the_body() -> None:
    sent = threading.Event()

    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", list(TEXT))
        yield b"first"
        assert sent.wait(WAIT_S)
        yield b"second"

    client = Client()

    async def on_body(body: bytes) -> None:
        sent.set()

    client.on_body = on_body
    assert answer(app, make_scope("HEAD"), client).is_complete
    assert client.blocks == []


def test_endless_body_that_may_not_be_is_ended() -> None:
    closed = threading.Event()

    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", list(TEXT))
        try:
            while True:
                yield b"x" * 1000
        finally:
            closed.set()

    client = answer(app, make_scope("HEAD"))
    assert client.is_complete
    assert closed.wait(WAIT_S)


def test_content_length_too_long_is_cut(caplog: pytest.LogCaptureFixture) -> None:
    # WSGI-CLEN-KEEP, WSGI-CLEN-MORE
    for blocks in ([b"abcd", b"efgh", b"i"], Blocks(b"abcd", b"efgh", b"i"), Blocks(b"abcdefghi")):
        client = answer(responding(blocks, [("Content-Length", "6")]))
        assert client.body == b"abcdef"
        assert client.is_complete
    assert caplog.text.count("longer than its Content-Length") == 3
    endless = Blocks(*[b"x"] * 1000)
    assert answer(responding(endless, [("Content-Length", "3")])).body == b"xxx"
    assert endless.is_closed.wait(WAIT_S)
    assert len(endless.threads) == 4


def test_write_past_the_content_length_is_dropped() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        write = start_response("200 OK", [("Content-Length", "3")])
        write(b"ab")
        write(b"cd")
        write(b"ef")
        return [b"gh"]

    client = answer(app)
    assert client.body == b"abc"
    assert client.is_complete


def test_content_length_too_short() -> None:
    # WSGI-CLEN-LESS: before the head 500, after it a cut, never a clean end
    with pytest.raises(InternalError, match="3 bytes of the 5"):
        answer(responding([b"abc"], [("Content-Length", "5")]))
    client = Client()
    blocks = Blocks(b"abc")
    with pytest.raises(Truncated, match="3 bytes of the 5"):
        answer(responding(blocks, [("Content-Length", "5")]), client=client)
    assert client.blocks == [b"abc"]
    assert not client.is_complete
    assert len(blocks.closed) == 1


# start_response


BAD_HEADS: list[tuple[Any, Any]] = [
    ("200", TEXT),
    ("200 OK\r\nX: y", TEXT),
    (" 200 OK", TEXT),
    ("20x OK", TEXT),
    (200, TEXT),
    (b"200 OK", TEXT),
    ("200 \u20ac", TEXT),
    ("101 Switching Protocols", TEXT),
    ("200 OK", tuple(TEXT)),
    ("200 OK", {"Content-Type": "text/plain"}),
    ("200 OK", [["X-A", "list"]]),
    ("200 OK", [("X-A", "b", "c")]),
    ("200 OK", [("X-A", b"bytes")]),
    ("200 OK", [(b"X-A", "bytes")]),
    ("200 OK", [("X-A", 5)]),
    ("200 OK", [("X-A", "a\r\nSet-Cookie: b=1")]),
    ("200 OK", [("X-A", "a\nb")]),
    ("200 OK", [("X-A", "a\0b")]),
    ("200 OK", [("X-A", "a\x7fb")]),
    ("200 OK", [("X-A", "\u20ac")]),
    ("200 OK", [("X A", "b")]),
    ("200 OK", [("X-A:", "b")]),
    ("200 OK", [("", "b")]),
    ("200 OK", [("X-\u00c4", "b")]),
    ("200 OK", [("X-A\r\nX-B", "b")]),
    ("200 OK", [("Content-Length", "+5")]),
    ("200 OK", [("Content-Length", "")]),
    ("200 OK", [("Content-Length", "1"), ("content-length", "1")]),
    ("200 OK", [("Connection", "close")]),
    ("200 OK", [("Transfer-Encoding", "chunked")]),
    ("200 OK", [("Upgrade", "h2c")]),
    ("200 OK", [("Keep-Alive", "timeout=5")]),
]


@pytest.mark.parametrize(("status", "headers"), BAD_HEADS, ids=repr)
def test_heads_that_are_refused(status: Any, headers: Any) -> None:
    # WSGI-SR-CHECK, WSGI-HEADER-INJECT, WSGI-SR-HOP-ERR, WSGI-STR-NATIVE, G2, G5
    raised: list[Exception] = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        try:
            start_response(status, headers)
        except Exception as error:
            raised.append(error)
            raise
        return [b"never"]

    client = Client()
    with pytest.raises(InternalError):
        answer(app, client=client)
    assert raised  # at the call, where the application can see it
    assert client.messages == []
    client = answer(app, is_gateway=False)
    assert client.status == 500
    assert b"never" not in client.body


def test_start_response_twice() -> None:
    # WSGI-SR-TWICE
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", TEXT)
        start_response("200 OK", TEXT)
        return [b"never"]

    with pytest.raises(InternalError, match="twice"):
        answer(app)


def test_exc_info_replaces_an_unsent_head() -> None:
    # WSGI-SR-EXC-REPLACE
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [*TEXT, ("Content-Length", "100")])
        try:
            raise KeyError("first")
        except KeyError:
            start_response("500 Oops", list(TEXT), exc_info=sys.exc_info())
        return [b"oops"]

    client = answer(app)
    assert (client.status, client.body) == (500, b"oops")
    assert (b"content-length", b"4") in client.headers


@pytest.mark.parametrize("lets_through", [True, False])
def test_exc_info_after_the_head_raises_again(
    lets_through: bool, caplog: pytest.LogCaptureFixture
) -> None:
    # WSGI-SR-EXC-RAISE, WSGI-SR-EXC-ABORT
    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", list(TEXT))
        yield b"part"
        try:
            raise KeyError("later")
        except KeyError:
            try:
                start_response("500 Oops", list(TEXT), sys.exc_info())
            except KeyError:
                if lets_through:
                    raise
        yield b" rest"

    client = Client()
    if lets_through:
        with pytest.raises(Truncated, match="KeyError"):
            answer(app, client=client)
        assert client.blocks == [b"part"]
        assert not client.is_complete
    else:
        assert answer(app, client=client).body == b"part rest"
    assert client.status == 200


@pytest.mark.parametrize(
    ("app", "reason"),
    [
        (lambda environ, start_response: [b"x"], "before start_response"),
        (lambda environ, start_response: [], "without calling start_response"),
        (lambda environ, start_response: Blocks(b"x"), "before start_response"),
        (responding(None), "NoneType"),
        (responding("text"), "str, not bytes"),
        (responding(b"bytes"), "int, not bytes"),
        (responding(["text"]), "str, not bytes"),
        (responding([bytearray(b"x")]), "bytearray, not bytes"),
        (responding(Blocks("text")), "str, not bytes"),
        (responding(Blocks(ValueError("in the iterable"))), "in the iterable"),
        (lambda environ, start_response: 1 / 0, "ZeroDivisionError"),
        (lambda environ: [], "TypeError"),
        (lambda environ, start_response: sys.exit(3), "SystemExit"),
        (responding(Blocks(KeyboardInterrupt())), "KeyboardInterrupt"),
        (responding(Blocks(StopAsyncIteration())), "StopAsyncIteration"),
    ],
)
def test_failures_before_the_head(app: Any, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    # WSGI-ERR-500, WSGI-SR-NOTCALLED, WSGI-BYTES-BODY, WSGI-ERR-LOG, G2
    client = Client()
    with pytest.raises(InternalError, match=reason):
        answer(app, client=client)
    assert client.messages == []


@pytest.mark.parametrize("error", [ValueError("boom"), SystemExit(1), GeneratorExit()])
def test_failures_after_the_head(error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    # WSGI-ERR-ABORT, WSGI-CLOSE-EARLY
    blocks = Blocks(b"part", error)
    client = Client()
    with pytest.raises(Truncated, match=type(error).__name__):
        answer(responding(blocks), client=client)
    assert client.blocks == [b"part"]
    assert not client.is_complete
    assert len(blocks.closed) == 1


def test_failure_is_logged_with_its_traceback_and_without_forged_lines(
    caplog: pytest.LogCaptureFixture,
) -> None:
    # WSGI-ERR-LOG, S10
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        raise ValueError("from the client: \x1b[31m\r\n2030-01-01 INFO all is well\udc80")

    with pytest.raises(InternalError) as raised:
        answer(app, make_scope(path="/a\nb"))
    assert "\n" not in str(raised.value)
    assert r"\x1b[31m\r\n2030" in str(raised.value)
    (record,) = caplog.records
    lines = record.getMessage().split("\n")
    assert lines[0] == r"GET /a\nb: the application raised"
    assert all(line.startswith("  | ") for line in lines[1:])
    assert any("raise ValueError" in line for line in lines)
    record.getMessage().encode()
    assert "\x1b" not in record.getMessage()


def test_exception_whose_text_cannot_be_made() -> None:
    class Hostile(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no")

    with pytest.raises(InternalError, match="Hostile"):
        answer(responding(Blocks(Hostile())))


def test_threads_survive_failures() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        if environ["PATH_INFO"] == "/fail":
            raise SystemExit(1)
        start_response("200 OK", TEXT)
        return [str(threading.get_ident()).encode()]

    async def run() -> set[bytes]:
        threads: set[bytes] = set()
        async with asyncio.timeout(WAIT_S), WsgiToAsgi(app, threads=1) as adapter:
            for _ in range(3):
                client = Client()
                await adapter(make_scope(path="/fail"), client.receive, client.send)
                assert client.status == 500
                client = Client()
                await adapter(make_scope(), client.receive, client.send)
                threads.add(client.body)
        return threads

    assert len(asyncio.run(run())) == 1


def test_nothing_of_a_request_is_kept() -> None:
    # WSGI-SR-EXC-CYCLE: freed without the garbage collector
    class Kept:
        pass

    kept: list[weakref.ref[Kept]] = []

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        marker = environ["test.marker"] = Kept()
        kept.append(weakref.ref(marker))
        if environ["PATH_INFO"] == "/late":
            return late(start_response)
        if environ["PATH_INFO"] == "/fail":
            raise ValueError("with a traceback that holds this frame")
        try:
            raise KeyError
        except KeyError:
            start_response("200 OK", TEXT, sys.exc_info())
        return [environ["wsgi.input"].read()]

    def late(start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", TEXT)
        yield b"sent"
        marker = Kept()
        kept.append(weakref.ref(marker))
        try:
            raise KeyError
        except KeyError:
            with contextlib.suppress(KeyError):
                start_response("500 Oops", TEXT, sys.exc_info())

    async def run() -> None:
        async with WsgiToAsgi(app, threads=1) as adapter:
            for path in ("/late", "/", "/fail"):
                client = Client([b"body"])
                scope = make_scope("POST", path)
                scope["test.marker"] = Kept()
                kept.append(weakref.ref(scope["test.marker"]))
                await adapter(scope, client.receive, client.send)
            del scope
            deadline = time.monotonic() + WAIT_S
            while any(ref() is not None for ref in kept) and time.monotonic() < deadline:
                await asyncio.sleep(0.001)
            assert [ref() for ref in kept] == [None] * 7

    gc.disable()
    logging.disable()  # pytest keeps what is logged, and that keeps tracebacks
    try:
        asyncio.run(run())
    finally:
        logging.disable(logging.NOTSET)
        gc.enable()


# close()


def test_close_is_called_once_and_in_the_same_thread() -> None:
    # WSGI-CLOSE, WSGI-CLOSE-ONCE, WSGI-THREAD-SAME
    for blocks in (Blocks(b"a", b"b"), Blocks(), Blocks(b"abc")):
        called: list[int] = []

        def app(
            environ: dict[str, Any],
            start_response: Any,
            blocks: Blocks = blocks,
            called: list[int] = called,
        ) -> Blocks:
            called.append(threading.get_ident())
            start_response("200 OK", list(TEXT))
            return blocks

        answer(validator(app))
        assert len(blocks.closed) == 1
        assert {*blocks.threads, *blocks.closed} == set(called)
        assert called != [threading.get_ident()]  # ASGI-WSGI-THREAD


def test_close_that_raises_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    class Sore(Blocks):
        def close(self) -> None:
            super().close()
            raise ValueError("in close")

    blocks = Sore(b"a")
    client = answer(responding(blocks))
    assert client.is_complete
    assert len(blocks.closed) == 1
    assert "in close" in caplog.text


# Departures


def endless(ended: threading.Event, raised: list[BaseException], use_write: bool) -> Any:
    def generate() -> Iterator[bytes]:
        try:
            while True:
                yield b"x" * 1000
        except GeneratorExit as error:
            raised.append(error)
            raise
        finally:
            ended.set()

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        write = start_response("200 OK", list(TEXT))
        if not use_write:
            return generate()
        try:
            while True:
                write(b"x" * 1000)
        except OSError as error:
            raised.append(error)
            raise
        finally:
            ended.set()

    return app


@pytest.mark.parametrize("use_write", [False, True])
@pytest.mark.parametrize("how", ["send raises", "on_departure", "disconnect", "cancelled"])
def test_endless_application_ends_when_the_client_leaves(
    how: str, use_write: bool, caplog: pytest.LogCaptureFixture
) -> None:
    # G2, WSGI-CLOSE-EARLY, ASGI-SEND-CLOSED-LOG
    ended = threading.Event()
    raised: list[BaseException] = []

    async def run() -> None:
        async with asyncio.timeout(WAIT_S):
            async with WsgiToAsgi(endless(ended, raised, use_write)) as adapter:
                client = Client()
                gateway = Gateway()
                flowing = asyncio.Event()

                async def on_body(body: bytes) -> None:
                    if len(client.blocks) < 200:
                        return
                    flowing.set()
                    if how == "send raises":
                        raise BrokenPipeError
                    await asyncio.sleep(0)

                client.on_body = on_body
                scope = make_scope()
                if how == "on_departure":
                    scope["extensions"]["tetrapylon"] = gateway
                task = asyncio.create_task(adapter(scope, client.receive, client.send))
                await flowing.wait()
                if how == "on_departure":
                    gateway.depart()
                elif how == "disconnect":
                    client.is_gone.set()
                elif how == "cancelled":
                    task.cancel()
                expected: type[BaseException] | None = {
                    "cancelled": asyncio.CancelledError,
                    "on_departure": ClientDisconnected,
                }.get(how)
                with pytest.raises(expected) if expected else contextlib.nullcontext():
                    await task
                assert await asyncio.to_thread(ended.wait, WAIT_S)

    asyncio.run(run())
    assert type(raised[0]).__name__ == ("ClientLeft" if use_write else "GeneratorExit")
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_next_write_raises_once_the_client_has_left() -> None:
    go_on = threading.Event()
    written: list[bytes] = []
    ended = threading.Event()

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        write = start_response("200 OK", TEXT)
        try:
            for block in (b"1", b"2", b"3"):
                write(block)
                written.append(block)
                assert go_on.wait(WAIT_S)
        finally:
            ended.set()
        return []

    async def run() -> None:
        async with asyncio.timeout(WAIT_S), WsgiToAsgi(app) as adapter:
            client = Client()
            gateway = Gateway()

            async def on_body(body: bytes) -> None:
                gateway.depart()
                go_on.set()

            client.on_body = on_body
            scope = make_scope(extensions={"tetrapylon": gateway})
            with pytest.raises(ClientDisconnected):
                await adapter(scope, client.receive, client.send)
            assert await asyncio.to_thread(ended.wait, WAIT_S)

    asyncio.run(run())
    assert written == [b"1"]


def test_send_that_raises_is_a_departure() -> None:
    client = Client()

    async def on_body(body: bytes) -> None:
        raise BrokenPipeError

    client.on_body = on_body
    with pytest.raises(ClientDisconnected):
        answer(responding([b"x"]), client=client)


def test_input_cannot_be_read_after_the_response_has_ended() -> None:
    raised: list[BaseException] = []

    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Length", "2")])
        yield b"ok"
        try:
            environ["wsgi.input"].read()
        except OSError as error:
            raised.append(error)

    client = Client([b"some"], is_body_complete=False)
    assert answer(app, make_scope("POST"), client, spool=False).body == b"ok"
    assert "ended" in str(raised[0])


def test_half_close_does_not_end_a_response_under_our_driver() -> None:
    # receive() says http.disconnect, yet the client still reads.
    client = Client()
    client.is_gone.set()
    blocks = Blocks(b"a", b"b", b"c")
    assert answer(responding(blocks), client=client).body == b"abc"
    assert client.is_complete


def test_request_that_waits_for_a_thread_leaves_the_queue_with_its_client() -> None:
    release = threading.Event()
    calls: list[str] = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        calls.append(environ["PATH_INFO"])
        assert release.wait(WAIT_S)
        start_response("200 OK", TEXT)
        return []

    async def run() -> None:
        async with asyncio.timeout(WAIT_S), WsgiToAsgi(app, threads=1, queue=1) as adapter:
            first = asyncio.create_task(adapter(make_scope(), Client().receive, Client().send))
            while not calls:
                await asyncio.sleep(0.001)
            gateway = Gateway()
            scope = make_scope(path="/gone", extensions={"tetrapylon": gateway})
            client = Client()
            second = asyncio.create_task(adapter(scope, client.receive, client.send))
            while gateway.on_departure is None:
                await asyncio.sleep(0)
            gateway.depart()
            with pytest.raises(Exception, match="left"):
                await second
            # Its place is free again.
            third = asyncio.create_task(
                adapter(make_scope(path="/third"), Client().receive, Client().send)
            )
            await asyncio.sleep(0)
            release.set()
            await asyncio.gather(first, third)

    asyncio.run(run())
    assert calls == ["/", "/third"]


def test_client_that_left_while_its_body_was_spooled() -> None:
    gateway = Gateway()
    gateway.is_departed = True
    client = Client([b"x" * 70_000, b"x"])

    async def run() -> None:
        async with asyncio.timeout(WAIT_S), WsgiToAsgi(responding([b"ok"])) as adapter:
            scope = make_scope("POST", extensions={"tetrapylon": gateway})
            with pytest.raises(ClientDisconnected):
                await adapter(scope, client.receive, client.send)

    asyncio.run(run())
    assert client.messages == []


def test_slow_client_slows_the_application() -> None:
    # Back-pressure: the application is never far ahead of its client. E5, B7
    made = 0

    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        nonlocal made
        start_response("200 OK", TEXT)
        for _ in range(300):
            made += 10_000
            yield b"x" * 10_000

    client = Client()
    ahead: list[int] = []

    async def on_body(body: bytes) -> None:
        await asyncio.sleep(0.0002)  # the application gets every chance to run ahead
        ahead.append(made - len(client.body))

    client.on_body = on_body
    assert len(answer(app, client=client).body) == 3_000_000
    assert max(ahead) <= 2 * 64 * 1024 + 2 * 10_000


def test_client_that_moves_nothing_is_given_up() -> None:
    ended = threading.Event()
    raised: list[BaseException] = []

    async def run() -> None:
        async with asyncio.timeout(WAIT_S):
            app = endless(ended, raised, True)
            async with WsgiToAsgi(app, client_idle_s=0.05) as adapter:
                client = Client()
                stuck = asyncio.Event()

                async def on_body(body: bytes) -> None:
                    await stuck.wait()

                client.on_body = on_body
                task = asyncio.create_task(adapter(make_scope(), client.receive, client.send))
                assert await asyncio.to_thread(ended.wait, WAIT_S)
                stuck.set()
                await task
                assert not client.is_complete

    asyncio.run(run())
    assert isinstance(raised[0], OSError)


# The queue


def test_full_queue_is_refused_and_the_loop_stays_free() -> None:
    # G1
    release = threading.Event()

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        assert release.wait(WAIT_S)
        start_response("200 OK", TEXT)
        return [b"late"]

    async def run() -> None:
        async with asyncio.timeout(WAIT_S), WsgiToAsgi(app, threads=3, queue=4) as adapter:
            clients = [Client() for _ in range(12)]
            tasks = [asyncio.create_task(adapter(make_scope(), c.receive, c.send)) for c in clients]
            await asyncio.gather(*tasks[7:])
            refused = clients[7:]
            assert {client.status for client in refused} == {503}
            assert (b"retry-after", b"1") in refused[0].headers
            # The loop is free all the while.
            loop = asyncio.get_running_loop()
            began = loop.time()
            for _ in range(20):
                await asyncio.sleep(0)
            assert loop.time() - began < 0.5
            release.set()
            await asyncio.gather(*tasks[:7])
            assert [client.body for client in clients[:7]] == [b"late"] * 7

    asyncio.run(run())


def test_waiting_in_the_queue_is_bounded_in_time() -> None:
    # B12
    release = threading.Event()
    calls: list[str] = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        calls.append(environ["PATH_INFO"])
        if environ["PATH_INFO"] == "/hang":
            assert release.wait(WAIT_S)
        start_response("200 OK", TEXT)
        return [b"ok"]

    async def run() -> None:
        async with asyncio.timeout(WAIT_S):
            async with WsgiToAsgi(app, threads=1, queue=2, queue_wait_s=0.05) as adapter:
                hanging = Client()
                hang = asyncio.create_task(
                    adapter(make_scope(path="/hang"), hanging.receive, hanging.send)
                )
                while not calls:
                    await asyncio.sleep(0.001)
                # Again and again: who gave up leaves nothing behind that fills the queue.
                for _ in range(5):
                    late = [Client() for _ in range(2)]
                    await asyncio.gather(
                        *(adapter(make_scope(path="/late"), c.receive, c.send) for c in late)
                    )
                    assert [c.status for c in late] == [503, 503]
                    assert adapter._threads._tokens.qsize() <= 2
                release.set()
                await hang
                assert hanging.body == b"ok"
                client = Client()
                await adapter(make_scope(path="/after"), client.receive, client.send)
                assert client.body == b"ok"

    asyncio.run(run())
    assert calls == ["/hang", "/after"]


def test_places_are_given_back() -> None:
    async def run() -> None:
        async with asyncio.timeout(WAIT_S):
            async with WsgiToAsgi(responding([b"ok"]), threads=1, queue=1) as adapter:
                for _ in range(20):
                    client = Client()
                    await adapter(make_scope(), client.receive, client.send)
                    assert client.status == 200

    asyncio.run(run())


def test_spooled_file_is_closed_when_no_thread_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    files: list[Any] = []
    make = tempfile.TemporaryFile

    def temporary_file(*args: Any, **kwargs: Any) -> Any:
        files.append(make(*args, **kwargs))
        return files[-1]

    monkeypatch.setattr(tempfile, "TemporaryFile", temporary_file)
    release = threading.Event()
    begun = threading.Event()

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        begun.set()
        assert release.wait(WAIT_S)
        start_response("200 OK", TEXT)
        return [str(len(environ["wsgi.input"].read())).encode()]

    async def run() -> None:
        async with asyncio.timeout(WAIT_S):
            async with WsgiToAsgi(app, threads=1, queue=1, queue_wait_s=0.05) as adapter:
                clients = [Client([b"x" * 40_000] * 4) for _ in range(3)]
                first = asyncio.create_task(
                    adapter(make_scope("POST"), clients[0].receive, clients[0].send)
                )
                await asyncio.to_thread(begun.wait, WAIT_S)
                await asyncio.gather(
                    *(adapter(make_scope("POST"), c.receive, c.send) for c in clients[1:])
                )
                assert [client.status for client in clients[1:]] == [503, 503]
                assert [file.closed for file in files] == [False, True, True]
                release.set()
                await first
                assert clients[0].body == b"160000"

    asyncio.run(run())
    assert all(file.closed for file in files)


# Around the call


def test_application_runs_in_the_context_of_the_request() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="none")

    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", TEXT)
        yield variable.get().encode()
        variable.set("changed in the thread")
        yield variable.get().encode()

    async def run() -> None:
        async with WsgiToAsgi(app, threads=1) as adapter:
            for value in ("one", "two"):
                variable.set(value)
                client = Client()
                await adapter(make_scope(), client.receive, client.send)
                assert client.blocks == [value.encode(), b"changed in the thread"]
                assert variable.get() == value

    asyncio.run(run())


def test_errors_stream_goes_to_the_log(caplog: pytest.LogCaptureFixture) -> None:
    # WSGI-ERRORS, WSGI-ERRORS-METHODS, S10
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        errors = environ["wsgi.errors"]
        errors.write("one\ntw")
        errors.writelines(["o\n", "three \x1b[0m\r\n"])
        errors.write("without end")
        errors.flush()
        print("printed", file=errors)
        errors.write("last")
        start_response("200 OK", list(TEXT))
        return [b""]

    answer(validator(app))
    assert caplog.messages == [
        "one",
        "two",
        r"three \x1b[0m",
        "without end",
        "printed",
        "last",
    ]


@pytest.mark.parametrize("length", [None, 70_000, 100_000])
def test_file_wrapper(length: int | None) -> None:
    # WSGI-FILEWRAP-ITER, -CLOSE, -POS, -CLEN
    file = io.BytesIO(b"skip" + bytes(range(250)) * 400)
    file.seek(4)

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        headers = [] if length is None else [("Content-Length", str(length))]
        start_response("200 OK", TEXT + headers)
        return environ["wsgi.file_wrapper"](file, 1000)

    client = answer(validator(app))
    assert client.body == (bytes(range(250)) * 400)[:length]
    assert client.is_complete
    assert file.closed


def test_file_wrapper_reads_more_at_once_where_that_costs_no_wait(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 200_000)
    for file in (path.open("rb"), io.BytesIO(b"x" * 200_000)):

        def app(environ: dict[str, Any], start_response: Any, file: Any = file) -> Any:
            start_response("200 OK", TEXT)
            return environ["wsgi.file_wrapper"](file, 4096)

        assert [len(block) for block in answer(app).blocks] == [65536, 65536, 65536, 3392]


def test_file_wrapper_waits_for_no_more_than_was_asked_for() -> None:
    sizes: list[int] = []

    class Slow:
        def read(self, size: int) -> bytes:
            sizes.append(size)
            return b"x" * 10 if len(sizes) < 3 else b""

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", TEXT)
        return environ["wsgi.file_wrapper"](Slow(), 10)

    assert answer(app).body == b"x" * 20
    assert set(sizes) == {10}


# Lifetime


def test_threads_start_when_needed_and_end_with_the_adapter() -> None:
    def names() -> set[str]:
        return {t.name for t in threading.enumerate() if t.name.startswith("lifetime")}

    async def run() -> None:
        adapter = WsgiToAsgi(responding([b"ok"]), threads=4, name="lifetime")
        for _ in range(2):
            async with adapter:
                assert names() == set()
                for _ in range(5):
                    client = Client()
                    await adapter(make_scope(), client.receive, client.send)
                    assert client.body == b"ok"
                assert "lifetime-1" in names()
            assert names() == set()
            client = Client()
            await adapter(make_scope(), client.receive, client.send)
            assert client.status == 503

    asyncio.run(run())


def test_hung_application_does_not_hold_the_end(caplog: pytest.LogCaptureFixture) -> None:
    release = threading.Event()
    begun = threading.Event()

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        begun.set()
        assert release.wait(WAIT_S)
        return []

    async def run() -> None:
        adapter = WsgiToAsgi(app, threads=1, stop_s=0.05)
        running, waiting = Client(), Client()
        tasks = [
            asyncio.create_task(adapter(make_scope(), c.receive, c.send))
            for c in (running, waiting)
        ]
        await asyncio.to_thread(begun.wait, WAIT_S)
        await adapter.aclose()
        await asyncio.gather(*tasks)
        assert running.messages == []
        assert waiting.status == 503

    began = time.monotonic()
    asyncio.run(run())
    assert time.monotonic() - began < WAIT_S / 2
    assert "left behind" in caplog.text
    thread = next(t for t in threading.enumerate() if t.name == "wsgi-1")
    assert thread.daemon
    release.set()
    thread.join(WAIT_S)
    assert not thread.is_alive()


def test_lifespan_of_a_foreign_server_ends_the_threads() -> None:
    async def run() -> None:
        adapter = WsgiToAsgi(responding([b"ok"]), name="foreign")
        server = ApplicationCommunicator(adapter, {"type": "lifespan", "asgi": {}})
        await server.send_input({"type": "lifespan.startup"})
        assert await server.receive_output() == {"type": "lifespan.startup.complete"}
        client = Client()
        await adapter(make_scope(), client.receive, client.send)
        assert client.body == b"ok"
        await server.send_input({"type": "lifespan.shutdown"})
        assert await server.receive_output() == {"type": "lifespan.shutdown.complete"}
        await server.wait()
        assert not [t for t in threading.enumerate() if t.name.startswith("foreign")]

    asyncio.run(run())


def test_lifespan_that_is_cancelled_ends_the_threads() -> None:
    async def run() -> None:
        adapter = WsgiToAsgi(responding([b"ok"]), name="cancelled")
        messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        messages.put_nowait({"type": "lifespan.startup"})
        server = asyncio.create_task(adapter({"type": "lifespan"}, messages.get, Client().send))
        client = Client()
        await adapter(make_scope(), client.receive, client.send)
        server.cancel()
        with pytest.raises(asyncio.CancelledError):
            await server
        deadline = time.monotonic() + WAIT_S
        while [t for t in threading.enumerate() if t.name.startswith("cancelled")]:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.001)

    asyncio.run(run())


def test_other_scopes() -> None:
    async def run() -> None:
        adapter = WsgiToAsgi(responding([b"ok"]))
        server = ApplicationCommunicator(adapter, {"type": "websocket"})
        await server.send_input({"type": "websocket.connect"})
        assert await server.receive_output() == {"type": "websocket.close"}
        await server.wait()
        with pytest.raises(ValueError, match="telepathy"):
            await adapter({"type": "telepathy"}, Client().receive, Client().send)

    asyncio.run(run())


def test_one_adapter_serves_one_loop_after_another() -> None:
    adapter = WsgiToAsgi(responding([b"ok"]), threads=2)

    async def run() -> bytes:
        client = Client()
        await adapter(make_scope(), client.receive, client.send)
        return client.body

    assert asyncio.run(run()) == b"ok"
    assert uvloop.run(run()) == b"ok"

    async def end() -> bytes:
        async with adapter:
            return await run()

    assert asyncio.run(end()) == b"ok"


def test_waits_are_bounded_on_each_loop() -> None:
    release = threading.Event()

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        assert release.wait(WAIT_S)
        start_response("200 OK", TEXT)
        return []

    adapter = WsgiToAsgi(app, threads=1, queue_wait_s=0.05)
    statuses: list[int] = []

    async def run(is_last: bool) -> None:
        # The timer of the loop before was armed, and went down with its loop.
        first = asyncio.create_task(adapter(make_scope(), Client().receive, Client().send))
        await asyncio.sleep(0)
        if is_last:
            client = Client()
            async with asyncio.timeout(WAIT_S):
                await adapter(make_scope(), client.receive, client.send)
            statuses.append(client.status)
            release.set()
            await adapter.aclose()
        first.cancel()

    asyncio.run(run(False))
    asyncio.run(run(True))
    assert statuses == [503]


def test_impossible_pools() -> None:
    for options in ({"threads": 0}, {"queue": -1}):
        with pytest.raises(ValueError, match="no request"):
            WsgiToAsgi(responding([]), **options)


def test_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def run() -> None:
        adapter = WsgiToAsgi(responding([b"ok"]))
        client = Client()
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", start)
            scope = make_scope(extensions={"tetrapylon": Gateway()})
            with pytest.raises(Unavailable, match="can't start"):
                await adapter(scope, client.receive, client.send)
        async with asyncio.timeout(WAIT_S), adapter:
            client = Client()
            await adapter(make_scope(), client.receive, client.send)
            assert client.body == b"ok"

    asyncio.run(run())


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_many_at_once(run: Any) -> None:
    # Every answer goes to the request that asked for it, in each way an answer can be given.
    def app(environ: dict[str, Any], start_response: Any) -> Any:
        number = environ["PATH_INFO"][1:].encode()
        body = environ["wsgi.input"].read()
        write = start_response("200 OK", [*TEXT, ("X-Number", number.decode())])
        blocks = [number, b":", body, b"x" * 70_000]
        kind = int(number) % 3
        if kind == 0:
            return blocks
        if kind == 1:
            return (block for block in blocks)
        for block in blocks:
            write(block)
        return []

    async def request(adapter: WsgiToAsgi, number: int) -> None:
        client = Client([b"body ", str(number).encode()])
        await adapter(make_scope("POST", f"/{number}"), client.receive, client.send)
        assert (b"x-number", b"%d" % number) in client.headers
        assert client.body == b"%d:body %d" % (number, number) + b"x" * 70_000
        assert client.is_complete

    async def main() -> None:
        async with asyncio.timeout(WAIT_S), WsgiToAsgi(app, threads=4, queue=500) as adapter:
            await asyncio.gather(*(request(adapter, number) for number in range(300)))

    run(main())

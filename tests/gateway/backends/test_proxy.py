"""The proxy backend before real servers, and before one that does as it is told."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import re
import socket
import struct
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from aiohttp import web

from tetrapylon.adapters.errors import (
    BackendError,
    BadGateway,
    BadRequest,
    ClientDisconnected,
    ContentTooLarge,
    GatewayTimeout,
    Truncated,
    Unavailable,
)
from tetrapylon.gateway.backends.proxy import ProxyBackend

Ask = Callable[..., Awaitable[Any]]
Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

pytestmark = pytest.mark.anyio

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
MIB = 1024 * 1024
SOON_S = 10.0


@pytest.fixture(params=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": request.param == "uvloop"}


class Scripted:
    """A server whose connections run one script each, in turn; the last one over and over."""

    def __init__(self, *scripts: Script) -> None:
        self._scripts = list(scripts)
        self.connections = 0
        self.heads: list[bytes] = []
        self.failures: list[BaseException] = []
        self.url = ""
        self._tasks: set[asyncio.Task[None]] = set()
        self.ended = asyncio.Event()

    async def run(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        script = self._scripts[min(self.connections, len(self._scripts) - 1)]
        self.connections += 1
        try:
            await script(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        except BaseException as error:
            self.failures.append(error)
        finally:
            self.ended.set()
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
            self._tasks.discard(task)

    async def head(self, reader: asyncio.StreamReader) -> bytes:
        """Read a request's head."""
        head = await reader.readuntil(b"\r\n\r\n")
        self.heads.append(head)
        return head

    async def stop(self) -> None:
        for task in [*self._tasks]:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        assert not self.failures


@contextlib.asynccontextmanager
async def scripted(*scripts: Any) -> AsyncIterator[Scripted]:
    """Serve the scripts, each given the server beside the streams."""
    upstream = Scripted()
    upstream._scripts = [
        lambda reader, writer, script=script: script(upstream, reader, writer) for script in scripts
    ]
    server = await asyncio.start_server(upstream.run, "127.0.0.1", 0)
    upstream.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield upstream
    finally:
        server.close()
        await upstream.stop()


async def answers(upstream: Scripted, reader: Any, writer: Any) -> None:
    """Answer each request on the connection."""
    while True:
        await upstream.head(reader)
        writer.write(OK)


def says(*pieces: bytes, then: str = "wait") -> Any:
    """Make a script: one request, then the pieces; then wait, close or reset."""

    async def script(upstream: Scripted, reader: Any, writer: Any) -> None:
        await upstream.head(reader)
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        if then == "reset":
            reset(writer)
        elif then == "wait":
            await reader.read()

    return script


def reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


# Real servers


@pytest.fixture
async def aiohttp_url() -> AsyncIterator[str]:
    async def mirror(request: web.Request) -> web.Response:
        body = await request.read()
        return web.json_response(
            {
                "method": request.method,
                "path": request.raw_path,
                "length": request.headers.get("Content-Length"),
                "coding": request.headers.get("Transfer-Encoding"),
                "hash": hashlib.sha256(body).hexdigest(),
                "forwarded": request.headers["Forwarded"],
                "host": request.host,
            }
        )

    async def big(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        if "length" in request.query:
            response.content_length = 16 * MIB
        await response.prepare(request)
        for _ in range(16):
            await response.write(bytes(MIB))
        await response.write_eof()
        return response

    async def echo(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        async for data in request.content.iter_any():
            await response.write(data)
        await response.write_eof()
        return response

    async def status(request: web.Request) -> web.Response:
        return web.Response(status=int(request.match_info["status"]))

    application = web.Application(client_max_size=64 * MIB)
    application.router.add_route("*", "/mirror", mirror)
    application.router.add_get("/big", big)
    application.router.add_post("/echo", echo)
    application.router.add_get("/status/{status}", status)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


async def test_aiohttp(ask: Ask, aiohttp_url: str) -> None:
    async with ProxyBackend("app", aiohttp_url) as backend:
        for _ in range(3):
            answer = await ask(backend, "/mirror", query=b"a=1")
            seen = json.loads(answer.body)
            assert seen["path"] == "/mirror?a=1"
            assert seen["host"] == "example.com"
            assert seen["forwarded"] == "for=192.0.2.7;host=example.com;proto=http"
            assert int(answer.headers[b"content-length"]) == len(answer.body)
        head = await ask(backend, "/mirror", method="HEAD")
        assert int(head.headers[b"content-length"]) > 0
        assert head.body == b""
        for status in (204, 304, 404, 500):
            answer = await ask(backend, f"/status/{status}")
            assert answer.status == status
            assert answer.body == b""


async def test_aiohttp_bodies(ask: Ask, aiohttp_url: str) -> None:
    pieces = [os.urandom(100_000) for _ in range(50)]
    whole = b"".join(pieces)
    length = (b"content-length", b"%d" % len(whole))
    async with ProxyBackend("app", aiohttp_url) as backend:
        for framing in (length, (b"transfer-encoding", b"chunked")):
            answer = await ask(backend, "/mirror", method="POST", headers=[framing], body=pieces)
            seen = json.loads(answer.body)
            assert seen["hash"] == hashlib.sha256(whole).hexdigest()
            assert seen["length"] == (str(len(whole)) if framing is length else None)
            assert seen["coding"] == (None if framing is length else "chunked")
            answer = await ask(backend, "/echo", method="POST", headers=[framing], body=pieces)
            assert answer.body == whole
            assert b"transfer-encoding" not in answer.headers
        # A body that came whole has a length, whatever its coding was.
        chunked = [(b"transfer-encoding", b"chunked")]
        answer = await ask(backend, "/mirror", method="POST", headers=chunked, body=[b"abc"])
        assert json.loads(answer.body)["length"] == "3"
        for query in (b"", b"length"):
            answer = await ask(backend, "/big", query=query)
            assert len(answer.body) == 16 * MIB
            assert max(map(len, answer.pieces)) <= 256 * 1024  # B7


@pytest.fixture
async def uvicorn_urls() -> AsyncIterator[list[str]]:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        fields = [(b"x-prefix", dict(scope["headers"]).get(b"x-forwarded-prefix", b"-"))]
        await send({"type": "http.response.start", "status": 200, "headers": fields})
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message["body"]
            if not message["more_body"]:
                break
        await send({"type": "http.response.body", "body": scope["raw_path"], "more_body": True})
        await send({"type": "http.response.body", "body": body})

    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "socket"))
        listeners = [socket.socket(), socket.socket(socket.AF_UNIX)]
        listeners[0].bind(("127.0.0.1", 0))
        listeners[1].bind(path)
        config = uvicorn.Config(
            application, lifespan="off", ws="none", log_config=None, access_log=False
        )
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server._serve(listeners))
        while not server.started:
            await asyncio.sleep(0)
        yield [f"http://127.0.0.1:{listeners[0].getsockname()[1]}", f"unix:{path}"]
        server.should_exit = True
        await serving
        for listener in listeners:
            listener.close()


async def test_uvicorn_over_tcp_and_unix_sockets(ask: Ask, uvicorn_urls: list[str]) -> None:
    for url in uvicorn_urls:
        async with ProxyBackend("app", url) as backend:
            for _ in range(2):
                answer = await ask(backend, "/api/a%", root_path="/api")
                assert answer.body == b"/a%25"
                assert answer.headers[b"x-prefix"] == b"/api"
            body = [b"abc", b"def"]
            length = [(b"content-length", b"6")]
            answer = await ask(backend, "/p", method="POST", headers=length, body=body)
            assert answer.body == b"/pabcdef"
            # HTTP/2 needs neither a length nor a coding.
            for pieces in ([], [b"abc"], body):
                answer = await ask(
                    backend, "/p", method="POST", body=pieces or [b""], http_version="2"
                )
                assert answer.body == b"/p" + b"".join(pieces)


# Fields


async def test_fields_about_the_upstreams_connection_stay_there(ask: Ask) -> None:  # G5
    response = (
        b"HTTP/1.1 200 OK\r\nConnection: X-Private, keep-alive\r\nX-Private: 1\r\n"
        b"Keep-Alive: timeout=5\r\nProxy-Connection: x\r\nTE: x\r\nTrailer: T\r\nUpgrade: h2c\r\n"
        b"Set-Cookie: a=1\r\nSet-Cookie: b=2\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"2\r\nok\r\n0\r\nT: 1\r\n\r\n"
    )
    async with scripted(says(response)) as upstream, ProxyBackend("app", upstream.url) as backend:
        answer = await ask(backend, "/")
        assert answer.messages[0]["headers"] == [(b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")]
        assert answer.body == b"ok"


async def test_preserve_host(ask: Ask) -> None:
    async with scripted(answers) as upstream:
        for preserve_host in (True, False):
            async with ProxyBackend("app", upstream.url, preserve_host=preserve_host) as backend:
                await ask(backend, "/")
    own = upstream.url.removeprefix("http://").encode()
    hosts = [re.findall(rb"\r\nhost: (\S+)", head) for head in upstream.heads]
    assert hosts == [[b"example.com"], [own]]


async def test_interim_responses_are_passed_over(ask: Ask) -> None:
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
    async with scripted(says(b"HTTP/1.1 100 Continue\r\n\r\n", hints, OK)) as upstream:
        async with ProxyBackend("app", upstream.url) as backend:
            answer = await ask(
                backend,
                "/",
                method="POST",
                headers=[(b"expect", b"100-continue"), (b"content-length", b"1")],
                body=[b"x"],
            )
            assert (answer.status, answer.body) == (200, b"ok")
    assert b"expect" not in upstream.heads[0]


async def test_a_stream_begins_with_its_head(ask: Ask) -> None:
    """Who reads a stream of events sees the head before the first event."""
    has_head = asyncio.Event()

    async def script(upstream: Scripted, reader: Any, writer: Any) -> None:
        await upstream.head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        await has_head.wait()
        writer.write(b"2\r\nok\r\n0\r\n\r\n")
        await reader.read()

    async def note(answer: Any, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.body":  # the driver writes the head with it
            has_head.set()

    async with scripted(script) as upstream, ProxyBackend("app", upstream.url) as backend:
        answer = await asyncio.wait_for(ask(backend, "/", on_send=note), SOON_S)
        assert answer.pieces == [b"", b"ok"]


async def test_an_upstream_that_is_out_of_order_is_503_at_once(ask: Ask, tmp_path: Path) -> None:
    backend = ProxyBackend("up", f"unix:{tmp_path}/none", breaker=3)
    failures = []
    for _ in range(5):
        with pytest.raises(BackendError) as raised:
            await ask(backend, "/")
        failures.append(raised.value.status)
    assert failures == [502, 502, 503, 503, 503]


# Kept connections


async def test_connections_are_kept_for_what_may_be_sent_again(ask: Ask) -> None:
    async with scripted(answers) as upstream, ProxyBackend("app", upstream.url) as backend:
        for _ in range(3):
            await ask(backend, "/", method="GET")
        assert upstream.connections == 1
        # F2: anything else, or a body, is sent on a fresh connection, and so never twice.
        methods = ("POST", "PATCH", "PUT", "DELETE", "OPTIONS")
        for method in methods:
            await ask(backend, "/", method=method)
        body = {"headers": [(b"transfer-encoding", b"chunked")], "body": [b"x"]}
        await ask(backend, "/", method="GET", **body)
        assert upstream.connections == 2 + len(methods)


@pytest.mark.parametrize(
    ("response", "is_kept"),
    [
        (OK, True),
        (b"HTTP/1.1 204 No Content\r\n\r\n", True),
        (OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"), False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", False),
        (OK + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", False),
    ],
)
async def test_which_connections_are_kept(ask: Ask, response: bytes, is_kept: bool) -> None:
    async def script(upstream: Scripted, reader: Any, writer: Any) -> None:
        while True:
            await upstream.head(reader)
            writer.write(response)

    async with scripted(script) as upstream, ProxyBackend("app", upstream.url) as backend:
        for _ in range(3):
            assert (await ask(backend, "/")).body in (b"ok", b"")
        assert upstream.connections == (1 if is_kept else 3)


async def test_an_answer_nobody_asked_for_reaches_nobody(ask: Ask) -> None:
    """What an idle connection brings is dropped with it (response splitting)."""
    more = asyncio.Event()
    has_sent = asyncio.Event()

    async def script(upstream: Scripted, reader: Any, writer: Any) -> None:
        await upstream.head(reader)
        writer.write(OK)
        await more.wait()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
        await writer.drain()
        has_sent.set()
        await reader.read()

    async with scripted(script, answers) as upstream, ProxyBackend("app", upstream.url) as backend:
        assert (await ask(backend, "/")).body == b"ok"
        more.set()
        await has_sent.wait()
        assert (await ask(backend, "/")).body == b"ok"
        assert upstream.connections == 2


async def closes_at_the_second_request(upstream: Scripted, reader: Any, writer: Any) -> None:
    await upstream.head(reader)
    writer.write(OK)
    await upstream.head(reader)


async def resets_at_the_second_request(upstream: Scripted, reader: Any, writer: Any) -> None:
    await closes_at_the_second_request(upstream, reader, writer)
    reset(writer)


@pytest.mark.parametrize("script", [closes_at_the_second_request, resets_at_the_second_request])
async def test_a_stale_connection_is_replaced_once(ask: Ask, script: Any) -> None:
    async with scripted(script, answers) as upstream, ProxyBackend("app", upstream.url) as backend:
        for _ in range(3):
            assert (await ask(backend, "/")).body == b"ok"
        assert upstream.connections == 2
        assert len(upstream.heads) == 4
    async with scripted(script, says(then="close")) as upstream:
        async with ProxyBackend("app", upstream.url) as backend:
            await ask(backend, "/")
            with pytest.raises(BadGateway):
                await ask(backend, "/")
            assert upstream.connections == 2


async def test_an_answer_begun_is_not_asked_for_again(ask: Ask) -> None:
    async def script(upstream: Scripted, reader: Any, writer: Any) -> None:
        await closes_at_the_second_request(upstream, reader, writer)
        writer.write(b"HTTP/1.1 2")

    async with scripted(script, answers) as upstream, ProxyBackend("app", upstream.url) as backend:
        await ask(backend, "/")
        with pytest.raises(BadGateway):
            await ask(backend, "/")
        assert upstream.connections == 1


async def test_kept_connections_are_closed_in_time(ask: Ask) -> None:
    async with scripted(answers) as upstream:
        async with ProxyBackend("app", upstream.url, idle_s=0.05) as backend:
            await ask(backend, "/")
            await asyncio.wait_for(upstream.ended.wait(), SOON_S)
        async with ProxyBackend("app", upstream.url, idle_s=0) as backend:
            upstream.ended.clear()
            await ask(backend, "/")
            await asyncio.wait_for(upstream.ended.wait(), SOON_S)
        backend = ProxyBackend("app", upstream.url, idle_s=60)
        async with backend:
            upstream.ended.clear()
            await ask(backend, "/")
        await asyncio.wait_for(upstream.ended.wait(), SOON_S)


async def test_kept_connections_count(ask: Ask) -> None:
    """A fresh connection takes the place of a kept one where the limit is reached."""
    async with scripted(answers) as upstream:
        async with ProxyBackend("app", upstream.url, connections=1, idle_s=60) as backend:
            await ask(backend, "/")
            assert not upstream.ended.is_set()
            await ask(backend, "/", method="POST")
            await asyncio.wait_for(upstream.ended.wait(), SOON_S)
            assert upstream.connections == 2


async def test_no_more_than_the_limit_and_the_queue(ask: Ask) -> None:
    let_go = asyncio.Event()
    is_busy = asyncio.Event()

    async def script(upstream: Scripted, reader: Any, writer: Any) -> None:
        while True:
            await upstream.head(reader)
            is_busy.set()
            await let_go.wait()
            writer.write(OK)

    async with scripted(script) as upstream:
        async with ProxyBackend("app", upstream.url, connections=1, queue=1) as backend:
            first = asyncio.create_task(ask(backend, "/"))
            await is_busy.wait()
            second = asyncio.create_task(ask(backend, "/"))
            await asyncio.sleep(0)
            with pytest.raises(Unavailable) as raised:
                await ask(backend, "/")
            assert raised.value.retry_after_s == 1
            let_go.set()
            assert (await first).body == (await second).body == b"ok"
            assert upstream.connections == 1


# Upstreams that fail


async def test_nobody_there(ask: Ask, tmp_path: Path) -> None:  # F1
    for url in (f"http://127.0.0.1:{free_port()}", f"unix:{tmp_path}/none"):
        async with ProxyBackend("app", url) as backend:
            with pytest.raises(BadGateway):
                await ask(backend, "/")
            # Under a foreign server it is an answer.
            answer = await ask(backend, "/", is_under_gateway=False)
            assert answer.status == 502


@pytest.mark.parametrize(
    "script",
    [
        says(then="close"),
        says(then="reset"),
        says(b"HTTP/1.1 200 OK\r\nContent-", then="close"),
        says(b"HTTP/1.1 200 OK\r\nContent-", then="reset"),
        says(b"SSH-2.0-OpenSSH_9.2\r\n"),
        says(b"HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok"),
        says(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\nok"),
        says(b"HTTP/1.1 101 Switching Protocols\r\n\r\n"),
        says(b"HTTP/1.1 200 OK\r\nX: " + bytes(70_000)),
        says(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20_000),
    ],
)
async def test_no_head(ask: Ask, script: Any) -> None:
    async with scripted(script) as upstream, ProxyBackend("app", upstream.url) as backend:
        with pytest.raises(BadGateway):
            await asyncio.wait_for(ask(backend, "/"), SOON_S)
        body = {"headers": [(b"content-length", b"3")], "body": [b"abc"]}
        with pytest.raises(BadGateway):
            await asyncio.wait_for(ask(backend, "/", method="POST", **body), SOON_S)


@pytest.mark.parametrize(
    "script",
    [
        says(b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\nok", then="close"),
        says(b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\nok", then="reset"),
        says(b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\nok"),  # and silence
        says(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n", then="close"),
        says(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\ngarbage"),
    ],
)
async def test_a_body_that_breaks_off_is_cut_off(ask: Ask, script: Any) -> None:
    sent: list[dict[str, Any]] = []

    async def note(answer: Any, message: dict[str, Any]) -> None:
        sent.append(message)

    async with scripted(script) as upstream:
        async with ProxyBackend("app", upstream.url, output_idle_s=0.2) as backend:
            with pytest.raises(Truncated):
                await asyncio.wait_for(ask(backend, "/", on_send=note), SOON_S)
    assert all(message.get("more_body", True) for message in sent)


async def test_a_silent_upstream(ask: Ask) -> None:  # F1
    silent, slow = says(), says(b"HTTP/1.1 200 OK\r\n")
    for script in (silent, slow):
        async with scripted(script) as upstream:
            async with ProxyBackend("app", upstream.url, first_byte_s=0.1) as backend:
                for method in ("GET", "POST"):
                    with pytest.raises(GatewayTimeout):
                        await asyncio.wait_for(ask(backend, "/", method=method), SOON_S)


async def test_an_upstream_that_takes_no_body(ask: Ask) -> None:
    async def script(upstream: Scripted, reader: Any, writer: Any) -> None:
        writer.transport.pause_reading()
        await asyncio.Event().wait()

    pieces = [bytes(MIB)] * 64
    headers = [(b"content-length", b"%d" % (64 * MIB))]
    async with scripted(script) as upstream:
        async with ProxyBackend("app", upstream.url, first_byte_s=0.2) as backend:
            with pytest.raises(GatewayTimeout):
                await asyncio.wait_for(
                    ask(backend, "/", method="POST", headers=headers, body=pieces), SOON_S
                )


async def test_a_slow_client_is_not_the_upstreams_fault(ask: Ask) -> None:
    async def slow_receive(pieces: list[bytes]) -> dict[str, Any]:
        await asyncio.sleep(0.4)
        return {"type": "http.request", "body": pieces.pop(), "more_body": bool(pieces)}

    async def script(upstream: Scripted, reader: Any, writer: Any) -> None:
        await upstream.head(reader)
        assert await reader.readexactly(4) == b"abcd"
        writer.write(OK)
        await reader.read()

    async with scripted(script) as upstream:
        async with ProxyBackend("app", upstream.url, first_byte_s=0.25) as backend:
            pieces = [b"cd", b"b", b"a"]

            async def call(scope: Any, receive: Any, send: Any) -> None:
                await backend(scope, lambda: slow_receive(pieces), send)

            headers = [(b"content-length", b"4")]
            assert (await ask(call, "/", method="POST", headers=headers)).body == b"ok"


# Early answers


@pytest.mark.parametrize("then", ["wait", "close", "reset"])
async def test_an_answer_before_the_body_was_read(ask: Ask, then: str) -> None:
    """It reaches the client, also where the upstream closes with much unread."""
    refusal = b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 4\r\n\r\nmuch"
    pieces = [bytes(100_000)] * 400
    for framing in (
        (b"content-length", b"%d" % (100_000 * 400)),
        (b"transfer-encoding", b"chunked"),
    ):
        # As often as it takes for reset and answer to meet in both orders.
        for _ in range(5):
            async with scripted(says(refusal, then=then)) as upstream:
                async with ProxyBackend("app", upstream.url, idle_s=60) as backend:
                    if then == "reset":
                        with contextlib.suppress(BadGateway):  # a reset may overtake the answer
                            await ask(backend, "/", method="POST", headers=[framing], body=pieces)
                        continue
                    answer = await asyncio.wait_for(
                        ask(backend, "/", method="POST", headers=[framing], body=pieces), SOON_S
                    )
                    assert (answer.status, answer.body) == (413, b"much")
                    # Half a request is no place for the next one.
                    await asyncio.wait_for(upstream.ended.wait(), SOON_S)


async def test_both_ways_at_once(ask: Ask) -> None:
    """Each piece goes out after the one before has come back."""
    back = asyncio.Queue[bytes]()

    async def script(upstream: Scripted, reader: Any, writer: Any) -> None:
        await upstream.head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
        for _ in range(5):
            writer.write(await reader.readexactly(1))
        await reader.read()

    async with scripted(script) as upstream, ProxyBackend("app", upstream.url) as backend:
        left = list(b"bcde")
        first = True

        async def receive() -> dict[str, Any]:
            nonlocal first
            if first:
                first = False
                return {"type": "http.request", "body": b"a", "more_body": True}
            await back.get()
            return {"type": "http.request", "body": bytes([left.pop(0)]), "more_body": bool(left)}

        async def note(answer: Any, message: dict[str, Any]) -> None:
            if message.get("body"):
                back.put_nowait(message["body"])

        async def call(scope: Any, _: Any, send: Any) -> None:
            await backend(scope, receive, send)

        headers = [(b"content-length", b"5")]
        answer = await asyncio.wait_for(
            ask(call, "/", method="POST", headers=headers, on_send=note), SOON_S
        )
        assert answer.body == b"abcde"


# Clients that leave, send too much, or read slowly


async def until_closed(upstream: Scripted, reader: Any, writer: Any) -> None:
    await upstream.head(reader)
    await reader.read()


async def test_the_client_leaves_before_the_answer(ask: Ask, exchange: Any) -> None:
    async with scripted(until_closed) as upstream, ProxyBackend("app", upstream.url) as backend:
        for method in ("GET", "POST"):
            exchange.is_departed = False
            upstream.ended.clear()
            upstream.heads.clear()
            task = asyncio.create_task(ask(backend, "/", method=method, exchange=exchange))
            while not upstream.heads:
                await asyncio.sleep(0)
            exchange.depart()
            with pytest.raises(ClientDisconnected):
                await asyncio.wait_for(task, SOON_S)
            await asyncio.wait_for(upstream.ended.wait(), SOON_S)
            assert exchange.on_departure is None


async def test_the_client_leaves_within_the_answer(ask: Ask, exchange: Any) -> None:
    endless = says(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n" + bytes(MIB))
    is_held = asyncio.Event()

    async def hold(answer: Any, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.body":
            is_held.set()
            await asyncio.Event().wait()

    async def fail(answer: Any, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.body":
            raise ConnectionResetError

    async with scripted(endless) as upstream, ProxyBackend("app", upstream.url) as backend:
        task = asyncio.create_task(ask(backend, "/", exchange=exchange, on_send=hold))
        await is_held.wait()
        exchange.depart()
        with pytest.raises(ClientDisconnected):
            await asyncio.wait_for(task, SOON_S)
        await asyncio.wait_for(upstream.ended.wait(), SOON_S)
        upstream.ended.clear()
        with pytest.raises(ConnectionResetError):
            await ask(backend, "/", on_send=fail)
        await asyncio.wait_for(upstream.ended.wait(), SOON_S)


async def test_the_client_leaves_within_its_body(ask: Ask) -> None:
    messages = [{"type": "http.request", "body": b"ab", "more_body": True}]

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0)
        return messages.pop() if messages else {"type": "http.disconnect"}

    async with scripted(until_closed) as upstream, ProxyBackend("app", upstream.url) as backend:

        async def call(scope: Any, _: Any, send: Any) -> None:
            await backend(scope, receive, send)

        headers = [(b"content-length", b"5")]
        with pytest.raises(ClientDisconnected):
            await asyncio.wait_for(ask(call, "/", method="POST", headers=headers), SOON_S)
        await asyncio.wait_for(upstream.ended.wait(), SOON_S)
        # One that leaves before the first byte never costs a connection.
        connections = upstream.connections
        with pytest.raises(ClientDisconnected):
            await ask(call, "/", method="POST", headers=headers)
        assert upstream.connections == connections


@pytest.mark.parametrize("failure", [OSError, RuntimeError])
async def test_a_body_that_cannot_be_received(ask: Ask, failure: type[Exception]) -> None:
    messages = [{"type": "http.request", "body": b"ab", "more_body": True}]

    async def receive() -> dict[str, Any]:
        if not messages:
            raise failure("the server's own")
        return messages.pop()

    async with scripted(until_closed) as upstream, ProxyBackend("app", upstream.url) as backend:

        async def call(scope: Any, _: Any, send: Any) -> None:
            await backend(scope, receive, send)

        headers = [(b"content-length", b"5")]
        with pytest.raises(failure, match="the server's own"):
            await asyncio.wait_for(ask(call, "/", method="POST", headers=headers), SOON_S)
        await asyncio.wait_for(upstream.ended.wait(), SOON_S)


async def test_the_client_leaves_in_the_queue(ask: Ask, exchange: Any) -> None:
    async with scripted(until_closed) as upstream:
        async with ProxyBackend("app", upstream.url, connections=1) as backend:
            first = asyncio.create_task(ask(backend, "/"))
            while not upstream.heads:
                await asyncio.sleep(0)
            second = asyncio.create_task(ask(backend, "/", exchange=exchange))
            while exchange.on_departure is None:
                await asyncio.sleep(0)
            exchange.depart()
            with pytest.raises(ClientDisconnected):
                await asyncio.wait_for(second, SOON_S)
            assert upstream.connections == 1
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first
            await asyncio.wait_for(upstream.ended.wait(), SOON_S)


async def test_a_disconnect_under_a_foreign_server(ask: Ask) -> None:
    """There is no other sign of a departure; under our gateway it may be a half-close."""
    async with scripted(until_closed, answers) as upstream:
        async with ProxyBackend("app", upstream.url) as backend:

            async def call(scope: Any, _: Any, send: Any) -> None:
                messages = [{"type": "http.request", "body": b"", "more_body": False}]

                async def receive() -> dict[str, Any]:
                    while not messages and not upstream.heads:
                        await asyncio.sleep(0)
                    return messages.pop() if messages else {"type": "http.disconnect"}

                await backend(scope, receive, send)

            with pytest.raises(AssertionError):  # nothing was answered, and nothing raised
                await asyncio.wait_for(ask(call, "/", is_under_gateway=False), SOON_S)
            await asyncio.wait_for(upstream.ended.wait(), SOON_S)
            upstream.heads.clear()
            assert (await ask(call, "/")).body == b"ok"


async def test_body_limits(ask: Ask) -> None:  # B3
    async def read_all(upstream: Scripted, reader: Any, writer: Any) -> None:
        await upstream.head(reader)
        await reader.read()

    async with scripted(read_all) as upstream:
        async with ProxyBackend("app", upstream.url, body_limit_bytes=100) as backend:
            length = [(b"content-length", b"101")]
            with pytest.raises(ContentTooLarge):
                await ask(backend, "/", method="POST", headers=length)  # before it was sent
            assert upstream.connections == 0
            chunked = [(b"transfer-encoding", b"chunked")]
            with pytest.raises(ContentTooLarge):
                await asyncio.wait_for(
                    ask(backend, "/", method="POST", headers=chunked, body=[b"x" * 60] * 3), SOON_S
                )
            await asyncio.wait_for(upstream.ended.wait(), SOON_S)


@pytest.mark.parametrize("body", [[b"abcd"], [b"ab", b"cd"], [b"a", b"b"], [b"ab"]])
async def test_a_body_unlike_its_length_begins_no_other_request(ask: Ask, body: Any) -> None:
    async with scripted(until_closed) as upstream, ProxyBackend("app", upstream.url) as backend:
        headers = [(b"content-length", b"3")]
        with pytest.raises(BadRequest):
            await asyncio.wait_for(
                ask(backend, "/", method="POST", headers=headers, body=body), SOON_S
            )


async def test_a_slow_reader_slows_the_upstream(ask: Ask, exchange: Any) -> None:  # B7
    written = 0
    is_held = asyncio.Event()

    async def script(upstream: Scripted, reader: Any, writer: Any) -> None:
        nonlocal written
        await upstream.head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (256 * MIB))
        for _ in range(256):
            writer.write(bytes(MIB))
            await writer.drain()
            written += MIB

    got = 0

    async def hold(answer: Any, message: dict[str, Any]) -> None:
        nonlocal got
        got += len(message.get("body", b""))
        if got:
            is_held.set()
            await asyncio.Event().wait()

    async with scripted(script) as upstream, ProxyBackend("app", upstream.url) as backend:
        task = asyncio.create_task(ask(backend, "/", exchange=exchange, on_send=hold))
        await is_held.wait()
        before = -1
        while written != before:  # until the sockets' buffers are full
            before = written
            await asyncio.sleep(0.05)
        assert got <= 128 * 1024
        assert written < 64 * MIB
        exchange.depart()
        with pytest.raises(ClientDisconnected):
            await task


# What is no upstream


@pytest.mark.parametrize(
    "upstream",
    [
        "",
        "127.0.0.1:80",
        "https://127.0.0.1",
        "http://",
        "http://127.0.0.1:80/path",
        "http://127.0.0.1:80?query",
        "http://user@127.0.0.1:80",
        "http://127.0.0.1:port",
        "http://127.0.0.1:99999",
        "http://::1:80",
        "unix:",
        "ftp://127.0.0.1",
    ],
)
def test_no_upstream(upstream: str) -> None:
    with pytest.raises(ValueError, match=r"upstream|address|unix"):
        ProxyBackend("app", upstream)


@pytest.mark.parametrize(
    ("upstream", "authority"),
    [
        ("http://127.0.0.1", "127.0.0.1"),
        ("http://127.0.0.1:8080/", "127.0.0.1:8080"),
        ("http://[::1]:8080", "[::1]:8080"),
        ("http://[::1]", "[::1]"),
        ("http://localhost:81", "localhost:81"),
        ("unix:/run/app.sock", "localhost"),
    ],
)
def test_upstreams(upstream: str, authority: str) -> None:
    backend = ProxyBackend("app", upstream)
    assert backend.describe() == f"proxy to {upstream}"
    assert backend._authority == authority.encode()

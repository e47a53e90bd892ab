"""ASGI applications as FastCGI, asked by a web server that is our own codec, step by step."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import socket
import struct
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from tetrapylon.adapters.asgi_to_fastcgi import AsgiToFastCgi
from tetrapylon.adapters.fastcgi_to_asgi import FastCgiToAsgi
from tetrapylon.protocols.fastcgi import (
    NEED_DATA,
    AbortRequest,
    BeginRequest,
    Connection,
    EndRequest,
    GetValues,
    GetValuesResult,
    Params,
    ProtocolStatus,
    Role,
    Side,
    Stderr,
    Stdin,
    Stdout,
    UnknownType,
)

Run = Callable[[Coroutine[Any, Any, Any]], Any]
START = {"type": "http.response.start", "status": 200, "headers": []}
HEAD = b"Status: 200 OK\r\n\r\n"
GET = {"REQUEST_METHOD": "GET", "SCRIPT_NAME": "", "PATH_INFO": "/"}
WITHIN_S = 10.0


def body(data: bytes = b"", *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}


async def mirror(scope: Any, receive: Any, send: Any) -> None:
    await send(START)
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            await send(body(b"!"))
            return
        await send(body(message["body"], more=message["more_body"]))
        if not message["more_body"]:
            return


class WebServer:
    """One connection of a web server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer
        self._codec = Connection(Side.CLIENT, max_requests=100)

    def say(self, *events: Any) -> None:
        for event in events:
            self.writer.write(self._codec.send(event))

    def ask(
        self,
        request_id: int = 1,
        stdin: bytes = b"",
        *,
        keep: bool = True,
        role: Role = Role.RESPONDER,
        **params: str,
    ) -> None:
        self.say(BeginRequest(request_id, role, keep), Params(request_id, {**GET, **params}))
        if stdin:
            self.say(Stdin(request_id, stdin))
        if role is not Role.AUTHORIZER:
            self.say(Stdin(request_id, b""))

    async def hear(self) -> Any:
        """Return the next event; at the end of the connection, `None`."""
        while (event := self._codec.next_event()) is NEED_DATA:
            data = await self._reader.read(1 << 16)
            if not data:
                return None
            self._codec.receive_data(data)
        return event

    async def answer(self, request_id: int = 1) -> tuple[bytes, bytes, EndRequest | None]:
        """Return STDOUT, STDERR and the end of the one request that is asked."""
        out = err = b""
        while (event := await self.hear()) is not None:
            assert event.request_id == request_id
            if isinstance(event, EndRequest):
                return out, err, event
            if isinstance(event, Stdout):
                out += event.data
            else:
                assert isinstance(event, Stderr)
                err += event.data
        return out, err, None

    async def is_closed(self) -> bool:
        return await self.hear() is None


@contextlib.asynccontextmanager
async def serving(app: Any, path: Path, **options: Any) -> AsyncIterator[Any]:
    """Serve on a unix socket; give a function that connects, and the responder by it."""
    options.setdefault("lifespan", "off")
    responder = AsgiToFastCgi(app, bind=f"unix:{path}", **options)
    writers: list[asyncio.StreamWriter] = []

    async def connect() -> WebServer:
        reader, writer = await asyncio.open_unix_connection(str(path))
        writers.append(writer)
        return WebServer(reader, writer)

    connect.responder = responder  # type: ignore[attr-defined]
    async with asyncio.timeout(WITHIN_S), responder:
        served = asyncio.create_task(responder.serve())
        try:
            yield connect
        finally:
            for writer in writers:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
            responder.stop()
            await served
    assert not path.exists()


COMPLETE = EndRequest(1, 0, ProtocolStatus.REQUEST_COMPLETE)


def test_a_request(short_path: Path, run: Run) -> None:
    seen: dict[str, Any] = {}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.update(scope)
        await send({**START, "headers": [(b"x-a", b"1"), (b"x-a", b"2"), (b"connection", b"x")]})
        await send(body(b"hello"))

    async def main() -> None:
        async with serving(app, short_path) as connect:
            server = await connect()
            server.ask(SCRIPT_NAME="/api", PATH_INFO="/a", HTTPS="on", HTTP_COOKIE="a=1")
            assert await server.answer() == (
                b"Status: 200 OK\r\nx-a: 1\r\nx-a: 2\r\n\r\nhello",
                b"",
                COMPLETE,
            )

    run(main())
    assert (seen["root_path"], seen["path"], seen["scheme"]) == ("/api", "/api/a", "https")
    assert seen["headers"] == [(b"cookie", b"a=1")]


def test_connections_are_kept_if_that_is_asked(short_path: Path, run: Run) -> None:
    async def main() -> None:
        async with serving(mirror, short_path) as connect:
            server = await connect()
            for number in range(1, 4):
                server.ask(number, b"hello", REQUEST_METHOD="POST", CONTENT_LENGTH="5")
                assert (await server.answer(number))[0] == HEAD + b"hello"
            server.ask(7, keep=False)
            assert (await server.answer(7))[0] == HEAD
            assert await server.is_closed()  # FCGI-3.5-NOKEEP

    run(main())


def test_streams_both_ways(short_path: Path, run: Run) -> None:
    async def main() -> None:
        async with serving(mirror, short_path) as connect:
            server = await connect()
            server.say(BeginRequest(1, keep_conn=True), Params(1, GET))
            for piece in (b"one", b"two"):
                server.say(Stdin(1, piece))
                prefix = HEAD if piece == b"one" else b""
                assert await server.hear() == Stdout(1, prefix + piece)
            server.say(Stdin(1, b""))
            assert await server.answer() == (b"", b"", COMPLETE)

    run(main())


@pytest.mark.parametrize("length", ["3", "8"])
def test_a_body_of_another_length_is_a_departure(length: str, short_path: Path, run: Run) -> None:
    async def main() -> None:
        async with serving(mirror, short_path) as connect:
            server = await connect()
            server.ask(1, b"hello", REQUEST_METHOD="POST", CONTENT_LENGTH=length)
            out, _, end = await server.answer()
            assert out == HEAD + (b"hello!" if length == "8" else b"!")
            assert end == COMPLETE

    run(main())


def test_several_requests_on_one_connection(short_path: Path, run: Run) -> None:
    async def main() -> None:
        count = 0
        all_here = asyncio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            nonlocal count
            count += 1
            if count == 10:
                all_here.set()
            await all_here.wait()
            await send(START)
            for _ in range(20):
                await send(body(scope["path"].encode() * 1000, more=True))
            await send(body())

        async with serving(app, short_path) as connect:
            server = await connect()
            for number in range(1, 11):
                server.ask(number, PATH_INFO=f"/{number}", keep=number != 1)
            out = dict.fromkeys(range(1, 11), b"")
            ended = []
            while (event := await server.hear()) is not None:
                if isinstance(event, EndRequest):
                    ended.append(event.request_id)
                else:
                    out[event.request_id] += event.data
            # It is closed behind the last of them.
            assert sorted(ended) == list(range(1, 11))
            for number in out:
                assert out[number] == HEAD + f"/{number}".encode() * 20_000

    run(main())


def test_limits_of_requests(short_path: Path, run: Run) -> None:
    async def main() -> None:
        may_end = asyncio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await may_end.wait()
            await mirror(scope, receive, send)

        async with serving(app, short_path, multiplex=2, requests=3) as connect:
            first, second = await connect(), await connect()
            for server in (first, second):
                for number in (1, 2):
                    server.ask(number)
                    # In order, for it is the fourth of them that is refused.
                    server.say(GetValues(("FCGI_MAX_REQS",)))
                    heard = await server.hear()
                    if server is second and number == 2:
                        assert heard == EndRequest(2, 0, ProtocolStatus.OVERLOADED)
                        heard = await server.hear()
                    assert heard == GetValuesResult({"FCGI_MAX_REQS": "3"})
            first.ask(3)
            assert await first.hear() == EndRequest(3, 0, ProtocolStatus.OVERLOADED)
            may_end.set()
            assert (await second.answer())[2] == COMPLETE
        async with serving(mirror, short_path, multiplex=1) as connect:
            server = await connect()
            server.say(BeginRequest(1), BeginRequest(2))
            assert await server.hear() == EndRequest(2, 0, ProtocolStatus.CANT_MPX_CONN)

    run(main())


def test_values(short_path: Path, run: Run) -> None:
    async def main() -> None:
        async with serving(mirror, short_path, connections=5, requests=7) as connect:
            server = await connect()
            names = ("FCGI_MAX_CONNS", "FCGI_MAX_REQS", "FCGI_MPXS_CONNS", "OTHER")
            server.say(GetValues(names))  # FCGI-4.1-ANYTIME
            assert await server.hear() == GetValuesResult(
                {"FCGI_MAX_CONNS": "5", "FCGI_MAX_REQS": "7", "FCGI_MPXS_CONNS": "1"}
            )
            server.writer.write(struct.pack("!BBHHBx", 1, 99, 0, 0, 0))
            assert await server.hear() == UnknownType(99)  # FCGI-4.2-ANSWER

    run(main())


@pytest.mark.parametrize("role", [Role.AUTHORIZER, Role.FILTER])
def test_other_roles_are_refused(role: Role, short_path: Path, run: Run) -> None:
    async def main() -> None:
        async with serving(mirror, short_path) as connect:
            server = await connect()
            server.say(BeginRequest(1, role, True))
            assert await server.hear() == EndRequest(1, 0, ProtocolStatus.UNKNOWN_ROLE)
            server.ask(2)
            assert (await server.answer(2))[0] == HEAD
            server.say(BeginRequest(3, role, False))
            assert await server.hear() == EndRequest(3, 0, ProtocolStatus.UNKNOWN_ROLE)
            assert await server.is_closed()
            server = await connect()
            # What is no role at all, and its parameters behind it.
            server.writer.write(struct.pack("!BBHHBxHB5x", 1, 1, 1, 8, 0, 9, 1))
            server.writer.write(struct.pack("!BBHHBx", 1, 4, 1, 0, 0))
            data = await server._reader.read(16)
            assert data == struct.pack("!BBHHBxIB3x", 1, 3, 1, 8, 0, 0, 3)

    run(main())


def test_abort(short_path: Path, run: Run) -> None:
    async def main() -> None:
        seen: list[Any] = []
        is_waiting, is_over = asyncio.Event(), asyncio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            if scope["path"] != "/wait":
                return await mirror(scope, receive, send)
            await receive()
            is_waiting.set()
            seen.append((await receive())["type"])
            try:
                await send(START)
            except OSError:
                is_over.set()

        async with serving(app, short_path) as connect:
            server = await connect()
            server.ask(PATH_INFO="/wait")
            await is_waiting.wait()
            server.say(AbortRequest(1))
            assert await server.answer() == (b"", b"", COMPLETE)  # FCGI-5.4-END
            await is_over.wait()
            assert seen == ["http.disconnect"]
            # The id is free again, and aborted before its parameters are complete.
            server.say(BeginRequest(1, keep_conn=True), AbortRequest(1))
            assert await server.answer() == (b"", b"", COMPLETE)
            server.ask(1)
            assert (await server.answer())[0] == HEAD

    run(main())


@pytest.mark.parametrize("how", ["close", "reset", "garbage"])
def test_departures(how: str, short_path: Path, run: Run) -> None:
    async def main() -> None:
        seen: list[Any] = []
        waiting, over = asyncio.Semaphore(0), asyncio.Semaphore(0)

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await receive()
            waiting.release()
            seen.append((await receive())["type"])
            over.release()

        async with serving(app, short_path) as connect:
            server, other = await connect(), await connect()
            for number in (1, 2):
                server.ask(number)
                await waiting.acquire()
            other.ask(1)
            await waiting.acquire()
            if how == "close":
                server.writer.close()
            elif how == "reset":
                server.writer.transport.abort()
            else:
                server.writer.write(b"GET / HTTP/1.1\r\n")
            await over.acquire()
            await over.acquire()
            assert seen == ["http.disconnect"] * 2
            # Nobody else is touched by it.
            other.say(GetValues(()))
            assert await other.hear() == GetValuesResult({})

    run(main())


def test_garbage_closes_its_connection_only(short_path: Path, run: Run) -> None:
    """F4, from the other side: whatever comes, the next connection is served."""
    chance = random.Random(20)
    good = Connection(Side.CLIENT)
    whole = b"".join(
        good.send(event)
        for event in (BeginRequest(1), Params(1, GET), Stdin(1, b"hello"), Stdin(1, b""))
    )

    def broken() -> bytes:
        data = bytearray(whole)
        for _ in range(chance.randrange(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        return bytes(data[: chance.randrange(1, len(data) + 1)])

    async def main() -> None:
        async with serving(mirror, short_path) as connect:
            for _ in range(100):
                server = await connect()
                server.writer.write(broken())
                server.writer.write_eof()
                with contextlib.suppress(ConnectionError):
                    await server._reader.read()
            server = await connect()
            server.ask()
            assert (await server.answer())[0] == HEAD

    run(main())


def test_too_many_parameters(short_path: Path, run: Run) -> None:
    async def main() -> None:
        async with serving(mirror, short_path) as connect:
            server = await connect()
            with contextlib.suppress(ConnectionError):
                server.say(BeginRequest(1), Params(1, {str(n): "x" * 60_000 for n in range(9)}))
                assert await server._reader.read() == b""

    run(main())


def test_what_is_no_request(short_path: Path, run: Run) -> None:
    async def main() -> None:
        async with serving(mirror, short_path) as connect:
            server = await connect()
            server.ask(1, CONTENT_LENGTH="+5")
            out, _, end = await server.answer()
            assert out.startswith(b"Status: 400 Bad Request\r\n")
            assert end == COMPLETE
            server.ask(2, REQUEST_METHOD="")
            assert (await server.answer(2))[0].startswith(b"Status: 400 Bad Request\r\n")

    run(main())


def test_failures(short_path: Path, run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/later":
            await send(START)
            await send(body(b"a", more=True))
        if scope["path"] == "/return":
            return
        raise ValueError("in\nternal")

    async def main() -> None:
        async with serving(app, short_path) as connect:
            server = await connect()
            for number, path in ((1, "/"), (2, "/return")):
                server.ask(number, PATH_INFO=path)
                out, err, end = await server.answer(number)
                assert out.startswith(b"Status: 500 Internal Server Error\r\n")
                assert out.endswith(b"\r\n\r\n500 Internal Server Error\n")
                assert end == EndRequest(number, 1, ProtocolStatus.REQUEST_COMPLETE)
                assert err.count(b"\n") == 1  # FCGI-7-ERROR
                assert (rb"ValueError('in\nternal')" in err) is (path == "/")
            server.ask(3, REQUEST_METHOD="HEAD")
            assert (await server.answer(3))[0].endswith(b"\r\n\r\n")
            # With its head sent, there is no clean end.
            server.ask(4, PATH_INFO="/later")
            assert [await server.hear(), await server.hear()] == [
                Stdout(4, HEAD + b"a"),
                Stderr(4, b"the application raised ValueError('in\\nternal')\n"),
            ]
            assert await server._reader.read() == b""

    run(main())
    assert "ValueError: in\nternal" in caplog.text


def test_a_failure_among_others(short_path: Path, run: Run) -> None:
    async def main() -> None:
        may_end = asyncio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await send(START)
            await send(body(b"a", more=True))
            if scope["path"] == "/raise":
                raise ValueError
            await may_end.wait()
            await send(body(b"b"))

        async with serving(app, short_path) as connect:
            server = await connect()
            server.ask(1)
            assert await server.hear() == Stdout(1, HEAD + b"a")
            server.ask(2, PATH_INFO="/raise")
            _, err, end = await server.answer(2)
            assert (b"ValueError" in err, end) == (True, EndRequest(2, 1))
            may_end.set()
            assert await server.answer() == (b"b", b"", COMPLETE)

    run(main())


def test_a_slow_web_server_makes_send_wait(short_path: Path, run: Run) -> None:
    async def main() -> None:
        sent = 0

        async def app(scope: Any, receive: Any, send: Any) -> None:
            nonlocal sent
            await send(START)
            for _ in range(400):
                await send(body(b"x" * 10_000, more=True))
                sent += 1
            await send(body())

        async with serving(app, short_path) as connect:
            server = await connect()
            server.writer.transport.pause_reading()
            server.ask()
            before = -1
            while sent != before:
                before = sent
                await asyncio.sleep(0.05)
            # What the sockets hold, and 64 KiB.
            assert 0 < sent < 100
            server.writer.transport.resume_reading()
            out, _, end = await server.answer()
            assert (len(out), end) == (len(HEAD) + 4_000_000, COMPLETE)

    run(main())


def test_a_slow_application_makes_the_web_server_wait(short_path: Path, run: Run) -> None:
    async def main() -> None:
        may_read = asyncio.Event()
        data = os.urandom(4_000_000)

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await may_read.wait()
            await mirror(scope, receive, send)

        async with serving(app, short_path) as connect:
            server = await connect()
            asked = {"REQUEST_METHOD": "POST", "CONTENT_LENGTH": str(len(data))}
            server.say(BeginRequest(1, keep_conn=True), Params(1, {**GET, **asked}))
            server.say(Stdin(1, data), Stdin(1, b""))
            before = -1
            size = server.writer.transport.get_write_buffer_size
            while size() != before:
                before = size()
                await asyncio.sleep(0.05)
            assert size() > 2_000_000
            may_read.set()
            out, _, end = await server.answer()
            assert (out == HEAD + data, end) == (True, COMPLETE)
            # A body that nobody reads holds nobody up.
            may_read.clear()
        async with serving(_ignores, short_path) as connect:
            server = await connect()
            for number in (1, 2):
                server.ask(number, data, REQUEST_METHOD="POST", CONTENT_LENGTH=str(len(data)))
                assert (await server.answer(number))[0] == HEAD
            # Also where the connection ends with the answer: it must not be reset.
            server.ask(3, data, keep=False, REQUEST_METHOD="POST", CONTENT_LENGTH=str(len(data)))
            assert (await server.answer(3))[0] == HEAD
            await server.writer.drain()
            assert await server.is_closed()

    run(main())


async def _ignores(scope: Any, receive: Any, send: Any) -> None:
    await send(START)
    await send(body())


def test_connections_over_their_limit_wait(short_path: Path, run: Run) -> None:
    async def main() -> None:
        async with serving(mirror, short_path, connections=2) as connect:
            first, second, third = [await connect() for _ in range(3)]
            for server in (second, first, second):
                server.ask()
                assert (await server.answer())[2] == COMPLETE
            third.ask()
            answer = asyncio.create_task(third.answer())
            done, _ = await asyncio.wait({answer}, timeout=0.05)
            assert not done
            first.writer.close()
            assert (await answer)[2] == COMPLETE

    run(main())


def test_idle_connections_are_closed(short_path: Path, run: Run) -> None:
    async def main() -> None:
        may_end = asyncio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await may_end.wait()
            await mirror(scope, receive, send)

        async with serving(app, short_path, idle_s=0.05) as connect:
            silent, begun, busy = [await connect() for _ in range(3)]
            busy.ask()
            begun.say(BeginRequest(1))
            for server in (silent, begun):
                with contextlib.suppress(ConnectionError):
                    assert await server._reader.read() == b""
            may_end.set()
            assert (await busy.answer())[2] == COMPLETE
            assert await busy.is_closed()

    run(main())


# Starting and stopping


def test_lifespan(short_path: Path, run: Run) -> None:
    notes: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            notes.append("up")
            await receive()
            scope["state"]["count"] = notes
            await send({"type": "lifespan.startup.complete"})
            await receive()
            notes.append("down")
            await send({"type": "lifespan.shutdown.complete"})
            return
        assert scope["state"]["count"] is notes
        scope["state"]["own"] = 1
        assert len(scope["state"]) == 2
        await mirror(scope, receive, send)

    async def main() -> None:
        async with serving(app, short_path, lifespan="on") as connect:
            for _ in range(3):
                server = await connect()
                server.ask()
                assert (await server.answer())[0] == HEAD
            assert notes == ["up"]

    run(main())
    assert notes == ["up", "down"]


def test_a_graceful_stop(short_path: Path, run: Run) -> None:
    async def main() -> None:
        is_running, may_end = asyncio.Event(), asyncio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            is_running.set()
            await may_end.wait()
            await mirror(scope, receive, send)

        async with serving(app, short_path) as connect:
            idle, busy = await connect(), await connect()
            busy.ask()
            await is_running.wait()
            idle.say(GetValues(()))
            await idle.hear()
            connect.responder.stop()
            assert await idle.is_closed()
            with pytest.raises(OSError):
                await connect()
            # What comes on a connection that is still open, the web server may put elsewhere.
            busy.ask(2)
            assert await busy.hear() == EndRequest(2, 0, ProtocolStatus.OVERLOADED)
            may_end.set()
            assert (await busy.answer())[0] == HEAD
            assert await busy.is_closed()

    run(main())


@pytest.mark.parametrize("how", ["by time", "by a second signal"])
def test_a_stop_that_is_cut_short(
    how: str, short_path: Path, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        is_running = asyncio.Event()
        ended = asyncio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            is_running.set()
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                ended.set()

        graceful_s = 0.05 if how == "by time" else 60
        async with serving(app, short_path, graceful_s=graceful_s) as connect:
            server = await connect()
            server.ask()
            await is_running.wait()
            connect.responder.stop()
            if how == "by a second signal":
                connect.responder.stop()
        assert ended.is_set()

    run(main())


def test_bind(short_path: Path, run: Run) -> None:
    def own(bind: Any, **more: Any) -> AsgiToFastCgi:
        return AsgiToFastCgi(mirror, bind=bind, lifespan="off", **more)

    async def ask(address: Any) -> None:
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        with socket.socket(family) as connected:
            connected.connect(address)
            server = WebServer(*await asyncio.open_connection(sock=connected))
            server.ask()
            assert (await server.answer())[0] == HEAD
            server.writer.close()

    async def main() -> None:
        for address in ("nowhere", "unix:", "host:port"):
            with pytest.raises(ValueError):
                own(address)
        # A socket left behind is replaced, one that is listened on is not, nor is a file.
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(short_path))
        async with own(f"unix:{short_path}", socket_mode=0o600) as responder:
            assert short_path.stat().st_mode & 0o777 == 0o600
            await ask(responder.address)
            with pytest.raises(OSError, match=str(short_path)):
                await own(f"unix:{short_path}").__aenter__()
            await ask(responder.address)
        short_path.write_text("precious")
        with pytest.raises(OSError):
            await own(f"unix:{short_path}").__aenter__()
        assert short_path.read_text() == "precious"
        with socket.create_server(("127.0.0.1", 0)) as listening:
            async with own(listening) as responder:
                await ask(responder.address)

    run(main())


@pytest.mark.parametrize(
    ("allowed", "is_allowed"),
    [
        ("127.0.0.1", True),
        ("10.0.0.1, ::ffff:127.0.0.1", True),
        ("10.0.0.1", False),
        ("not an address", False),
    ],
)
def test_web_server_addresses(
    allowed: str, is_allowed: bool, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    monkeypatch.setenv("FCGI_WEB_SERVER_ADDRS", allowed)  # FCGI-3.2-ADDRS

    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            async with AsgiToFastCgi(mirror, bind=listening, lifespan="off") as responder:
                server = WebServer(*await asyncio.open_connection(*responder.address))
                with contextlib.suppress(ConnectionError):
                    server.ask()
                    assert ((await server.answer())[0] == HEAD) is is_allowed
                server.writer.close()

    run(main())


def test_there_and_back(short_path: Path, run: Run, caplog: pytest.LogCaptureFixture) -> None:
    """Our own client asks, one request a connection and many."""
    caplog.set_level(logging.WARNING)

    async def main() -> None:
        async with serving(mirror, short_path) as connect:
            for multiplex in (1, 8):
                client = FastCgiToAsgi(f"unix:{connect.responder.address}", multiplex=multiplex)
                bodies = [os.urandom(50_000) for _ in range(16)]
                answers = await asyncio.gather(*(asked(client, data) for data in bodies))
                assert answers == bodies
                client.close()

    run(main())
    assert caplog.text == ""


async def asked(client: Any, data: bytes) -> bytes:
    messages: list[Any] = []
    given = [{"type": "http.request", "body": data, "more_body": False}]

    async def receive() -> Any:
        return given.pop() if given else await asyncio.Event().wait()

    async def send(message: Any) -> None:
        messages.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "path": "/",
        "query_string": b"",
        "headers": [(b"content-length", str(len(data)).encode())],
    }
    await client(scope, receive, send)
    assert messages[0]["status"] == 200
    return b"".join(message.get("body", b"") for message in messages)

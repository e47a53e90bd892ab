"""The WSGI backend behind the real connection driver, over sockets."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any
from wsgiref.validate import validator

import h11
import pytest

from tetrapylon.gateway.backends.wsgi import WsgiBackend
from tetrapylon.gateway.http_driver import HttpConnection
from tetrapylon.gateway.service import Service, ServiceSettings, Timeouts

WAIT_S = 10.0
TEXT = [("Content-Type", "text/plain")]


@dataclass
class Answer:
    status: int
    headers: dict[bytes, bytes]
    body: bytes
    is_complete: bool


@contextlib.asynccontextmanager
async def serving(backend: WsgiBackend, **timeouts: float) -> AsyncIterator[int]:
    async with asyncio.timeout(3 * WAIT_S), backend:
        service = Service(backend, ServiceSettings(timeouts=Timeouts(**timeouts)))
        service.start()
        server = await asyncio.get_running_loop().create_server(
            lambda: HttpConnection(service), "127.0.0.1", 0
        )
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()
            await service.stop(graceful_s=0)


async def ask(port: int, path: str = "/", method: str = "GET", body: bytes = b"") -> Answer:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"{method} {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
    writer.write(head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    client = h11.Connection(h11.CLIENT)
    client.send(
        h11.Request(method=method, target=path, headers=[("Host", "a"), ("Connection", "close")])
    )
    client.send(h11.EndOfMessage())
    answer = Answer(0, {}, b"", False)
    try:
        while True:
            event = client.next_event()
            if event is h11.NEED_DATA:
                client.receive_data(await reader.read(65536))
            elif isinstance(event, h11.Response):
                answer.status = event.status_code
                answer.headers = dict(event.headers)
            elif isinstance(event, h11.Data):
                answer.body += event.data
            else:
                answer.is_complete = isinstance(event, h11.EndOfMessage)
                return answer
    except (h11.RemoteProtocolError, ConnectionResetError):
        return answer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def digest(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    body = environ["wsgi.input"].read(100_000_000)
    start_response("200 OK", list(TEXT))
    return [hashlib.sha256(body).hexdigest().encode()]


@pytest.mark.parametrize("spool", [True, False])
def test_bodies(spool: bool) -> None:
    body = bytes(range(256)) * 8000

    async def main() -> None:
        async with serving(WsgiBackend("shop", validator(digest), spool=spool)) as port:
            for data in (b"", b"small", body):
                answer = await ask(port, method="POST", body=data)
                assert answer.body == hashlib.sha256(data).hexdigest().encode()
                assert answer.is_complete

    asyncio.run(main())


def test_failures_are_seen_by_the_client(caplog: pytest.LogCaptureFixture) -> None:
    # G2
    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        path = environ["PATH_INFO"]
        if path == "/early":
            raise ValueError("a secret")
        if path == "/silent":
            return
        if path == "/inject":
            start_response("200 OK", [("X-A", "b\r\nX-C: d")])
        headers = {"/short": [("Content-Length", "9")], "/long": [("Content-Length", "2")]}
        start_response("200 OK", headers.get(path, []))
        yield b"part"
        if path == "/late":
            raise ValueError("a secret")

    async def main() -> None:
        async with serving(WsgiBackend("shop", app)) as port:
            for path in ("/early", "/silent", "/inject"):
                answer = await ask(port, path)
                assert answer.status == 500
                assert answer.is_complete
                assert b"secret" not in answer.body
            for path in ("/short", "/late"):
                answer = await ask(port, path)
                assert (answer.status, answer.body) == (200, b"part")
                assert not answer.is_complete
            answer = await ask(port, "/long")
            assert (answer.body, answer.is_complete) == (b"pa", True)
            assert (await ask(port)).is_complete

    asyncio.run(main())
    assert "a secret" in caplog.text


def test_busy_threads_hold_up_nobody_else() -> None:
    # G1: 8 run, 64 wait, the rest is refused at once, and the loop stays free
    release = threading.Event()

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        assert release.wait(2 * WAIT_S)
        start_response("200 OK", TEXT)
        return [b"late"]

    async def main() -> None:
        backend = WsgiBackend("shop", app, threads=8, queue=64, queue_wait_s=WAIT_S)
        async with serving(backend) as port:
            waiting = {asyncio.create_task(ask(port)) for _ in range(80)}
            refused: set[asyncio.Task[Answer]] = set()
            while len(refused) < 8:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                refused |= done
            for task in refused:
                assert task.result().status == 503
                assert task.result().headers[b"retry-after"] == b"1"
            began = time.monotonic()
            for _ in range(5):
                assert (await ask(port)).status == 503
            assert time.monotonic() - began < 1
            release.set()
            assert [(await task).status for task in waiting] == [200] * 72

    asyncio.run(main())


@pytest.mark.parametrize("leaves_by", ["close", "reset"])
def test_endless_application_ends_with_its_client(
    leaves_by: str, caplog: pytest.LogCaptureFixture
) -> None:
    # G2
    ended = threading.Event()

    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", TEXT)
        try:
            while True:
                yield b"x" * 10_000
        finally:
            ended.set()

    async def main() -> None:
        async with serving(WsgiBackend("shop", app)) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            await reader.readexactly(500_000)
            if leaves_by == "reset":
                client: socket.socket = writer.get_extra_info("socket")
                linger = struct.pack("ii", 1, 0)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()
            assert await asyncio.to_thread(ended.wait, WAIT_S)

    asyncio.run(main())
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_half_closed_client_gets_its_answer() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", TEXT)
        for _ in range(100):
            yield b"x" * 10_000

    async def main() -> None:
        async with serving(WsgiBackend("shop", app)) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET / HTTP/1.0\r\nHost: a\r\n\r\n")
            writer.write_eof()
            assert (await reader.read()).endswith(b"x" * 1_000_000)
            writer.close()

    asyncio.run(main())


def test_slow_uploads_take_no_thread() -> None:
    # B6
    async def main() -> None:
        async with serving(WsgiBackend("shop", digest, threads=1)) as port:
            slow = [await asyncio.open_connection("127.0.0.1", port) for _ in range(50)]
            for _, writer in slow:
                writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nx")
            answer = await ask(port, method="POST", body=b"quick")
            assert answer.status == 200
            for _, writer in slow:
                writer.close()

    asyncio.run(main())


def test_pipelined_answers_stay_in_order_and_unread_bodies_do_no_harm() -> None:
    # G5, WSGI-INPUT-UNREAD
    def app(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("204 No Content" if environ["PATH_INFO"] == "/none" else "200 OK", [])
        return [environ["PATH_INFO"].encode()]

    async def main() -> None:
        async with serving(WsgiBackend("shop", app)) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(
                b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody"
                b"HEAD /head HTTP/1.1\r\nHost: a\r\n\r\n"
                b"GET /none HTTP/1.1\r\nHost: a\r\n\r\n"
                b"GET /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
            )
            answers = (await reader.read()).split(b"HTTP/1.1 ")[1:]
            writer.close()
            assert [answer[:3] for answer in answers] == [b"200", b"200", b"204", b"200"]
            bodies = [answer.partition(b"\r\n\r\n")[2] for answer in answers]
            assert bodies == [b"/a", b"", b"", b"/last"]

    asyncio.run(main())


def test_description_and_flags() -> None:
    seen: dict[str, Any] = {}

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        seen.update(environ)
        start_response("200 OK", TEXT)
        return []

    backend = WsgiBackend(
        "shop",
        app,
        threads=4,
        multiprocess=True,
        environ={"shop.mode": "x"},
        application="shop:app",
    )
    assert backend.describe() == "WSGI application shop:app, 4 threads"

    async def main() -> None:
        async with serving(backend) as port:
            await ask(port)

    asyncio.run(main())
    assert seen["wsgi.multiprocess"] is True
    assert seen["shop.mode"] == "x"
    assert not [t for t in threading.enumerate() if t.name.startswith("shop-")]

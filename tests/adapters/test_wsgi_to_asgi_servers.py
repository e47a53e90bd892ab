"""`WsgiToAsgi` under other people's servers, over sockets."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import http.client
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any
from wsgiref.validate import validator

import hypercorn.asyncio
import hypercorn.config
import pytest
import uvicorn

from tetrapylon.adapters.wsgi_to_asgi import WsgiToAsgi

WAIT_S = 10.0
TEXT = [("Content-Type", "text/plain")]


@contextlib.asynccontextmanager
async def under_uvicorn(app: Any, http: str) -> AsyncIterator[int]:
    config = uvicorn.Config(
        app, port=0, http=http, ws="none", lifespan="on", log_config=None, timeout_keep_alive=1
    )
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    while not server.started:
        assert not task.done()
        await asyncio.sleep(0.001)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        await task


@contextlib.asynccontextmanager
async def under_hypercorn(app: Any) -> AsyncIterator[int]:
    config = hypercorn.config.Config()
    config.graceful_timeout = 1
    config.keep_alive_timeout = 1
    stop = asyncio.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config.bind = [f"fd://{listener.fileno()}"]
        task = asyncio.create_task(hypercorn.asyncio.serve(app, config, shutdown_trigger=stop.wait))
        try:
            yield listener.getsockname()[1]
        finally:
            stop.set()
            await task
            # The server took the descriptor over.
            listener.detach()


Serve = Callable[[Any], contextlib.AbstractAsyncContextManager[int]]
SERVERS: dict[str, Serve] = {
    "uvicorn httptools": lambda app: under_uvicorn(app, "httptools"),
    "uvicorn h11": lambda app: under_uvicorn(app, "h11"),
    "hypercorn": under_hypercorn,
}


@pytest.fixture(params=SERVERS)
def serve(request: pytest.FixtureRequest) -> Serve:
    return SERVERS[request.param]


def application(environ: dict[str, Any], start_response: Any) -> Any:
    path = environ["PATH_INFO"]
    if path == "/list":
        body = f"{environ['REQUEST_METHOD']} {environ['QUERY_STRING']}".encode()
        start_response("200 OK", [*TEXT, ("X-Twice", "1"), ("X-Twice", "2")])
        return [body]
    if path == "/digest":
        body = environ["wsgi.input"].read(10_000_000)
        start_response("200 OK", list(TEXT))
        return [hashlib.sha256(body).hexdigest().encode()]
    if path == "/stream":
        start_response("200 OK", list(TEXT))
        return (b"x" * 1000 for _ in range(1000))
    if path == "/late":
        return failing_late(start_response)
    if path == "/inject":
        start_response("200 OK", [("X-A", "a\r\nX-B: b")])
    raise ValueError("an early failure")


def failing_late(start_response: Any) -> Iterator[bytes]:
    start_response("200 OK", [*TEXT, ("Content-Length", "100")])
    yield b"part"
    raise ValueError("a late failure")


def ask(
    port: int, path: str, method: str = "GET", body: Any = None
) -> tuple[http.client.HTTPResponse, bytes]:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT_S)) as link:
        link.request(method, path, body)
        response = link.getresponse()
        return response, response.read()


def run(serve: Serve, app: Any, questions: Callable[[int], None], **options: Any) -> None:
    async def main() -> None:
        async with asyncio.timeout(3 * WAIT_S):
            adapter = WsgiToAsgi(app, name="served", **options)
            async with serve(adapter) as port:
                await asyncio.to_thread(questions, port)

    asyncio.run(main())
    # The server's lifespan ended the threads.
    assert not [t.name for t in threading.enumerate() if t.name.startswith("served")]


@pytest.mark.parametrize("spool", [True, False])
def test_requests(serve: Serve, spool: bool) -> None:
    def questions(port: int) -> None:
        response, body = ask(port, "/list?a=%20")
        assert (response.status, body) == (200, b"GET a=%20")
        assert response.msg.get_all("X-Twice") == ["1", "2"]
        response, body = ask(port, "/list", "HEAD")
        assert (response.status, body) == (200, b"")
        data = bytes(range(256)) * 4000
        chunks = [data[at : at + 10_000] for at in range(0, len(data), 10_000)]
        for sent in (data, iter(chunks)):
            _, body = ask(port, "/digest", "POST", sent)
            assert body == hashlib.sha256(data).hexdigest().encode()
        response, body = ask(port, "/stream")
        assert body == b"x" * 1_000_000

    run(serve, validator(application), questions, spool=spool)


def test_failures(serve: Serve) -> None:
    # G2
    def questions(port: int) -> None:
        for path in ("/early", "/inject"):
            response, body = ask(port, path)
            assert (response.status, body) == (500, b"500 Internal Server Error\n")
            assert response.msg["X-B"] is None
        with pytest.raises((http.client.IncompleteRead, http.client.RemoteDisconnected)):
            ask(port, "/late")
        response, body = ask(port, "/list")  # and it goes on
        assert response.status == 200

    run(serve, application, questions)


def test_endless_response_ends_with_its_client(serve: Serve) -> None:
    # G2, E5
    ended = threading.Event()

    def endless(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", TEXT)
        try:
            while True:
                yield b"x" * 10_000
        finally:
            ended.set()

    def questions(port: int) -> None:
        with socket.create_connection(("127.0.0.1", port), timeout=WAIT_S) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            received = 0
            while received < 1_000_000:
                received += len(client.recv(65536))
        assert ended.wait(WAIT_S)

    run(serve, endless, questions)

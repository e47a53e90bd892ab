"""The ASGI backend behind the real connection driver, over sockets."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from tetrapylon.adapters.lifespan import LifespanFailure
from tetrapylon.adapters.wsgi_to_asgi import WsgiToAsgi
from tetrapylon.gateway.backends.asgi import AsgiBackend
from tetrapylon.gateway.http_driver import HttpConnection
from tetrapylon.gateway.service import Service

WAIT_S = 10.0


@contextlib.asynccontextmanager
async def serving(backend: AsgiBackend, root_path: str = "") -> AsyncIterator[int]:
    def app(scope: Any, receive: Any, send: Any) -> Any:
        scope["root_path"] = root_path  # as the router does
        return backend(scope, receive, send)

    async with asyncio.timeout(3 * WAIT_S), backend:
        service = Service(app)
        service.start()
        server = await asyncio.get_running_loop().create_server(
            lambda: HttpConnection(service), "127.0.0.1", 0
        )
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()
            await service.stop(graceful_s=0)


async def ask(port: int, path: str = "/") -> bytes:
    """Return all that comes until the gateway closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    return answer


def responding(body: str) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body.format(**scope).encode()})

    return app


def test_requests_and_lifespan_state() -> None:
    # ASGI-LS-STATE-COPY
    notes: list[str] = []

    @contextlib.asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[dict[str, Any]]:
        notes.append("up")
        yield {"seen": []}
        notes.append("down")

    async def show(request: Request) -> JSONResponse:
        names = list(request.scope["state"])
        request.state.seen.append(request.url.path)
        request.state.own = True  # a shallow copy: this stays with the request
        return JSONResponse([request.state.seen, names])

    backend = AsgiBackend("api", Starlette(routes=[Route("/{x}", show)], lifespan=lifespan))

    async def main() -> None:
        async with serving(backend) as port:
            assert notes == ["up"]
            assert (await ask(port, "/a")).endswith(b'[["/a"],["seen"]]')
            assert (await ask(port, "/b")).endswith(b'[["/a","/b"],["seen"]]')
        assert notes == ["up", "down"]

    asyncio.run(main())


def test_state_is_absent_without_lifespan() -> None:
    async def main() -> None:
        for options in ({}, {"lifespan": "off"}):
            app = responding("{type} {extensions}")
            async with serving(AsgiBackend("api", app, **options)) as port:
                # Nor is there anything of the gateway's own.
                assert (await ask(port)).endswith(b"http {}")

            async def asks(scope: Any, receive: Any, send: Any) -> None:
                assert "state" not in scope
                await responding("ok")(scope, receive, send)

            async with serving(AsgiBackend("api", asks, **options)) as port:
                assert (await ask(port)).endswith(b"ok")

    asyncio.run(main())


@pytest.mark.parametrize("mode", ["auto", "on"])
def test_startup_failure_stops_the_start(mode: Any) -> None:
    # G4, ASGI-LS-FAILED
    @contextlib.asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        raise ConnectionError("no database")
        yield

    async def main() -> None:
        with pytest.raises(LifespanFailure, match="no database"):
            async with AsgiBackend("api", Starlette(lifespan=lifespan), lifespan=mode):
                raise AssertionError

    asyncio.run(main())


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/caf%C3%A9/x", "/café/x /café"),
        ("/caf%C3%A9/%FF%C3", "/café/\ufffd\ufffd /café"),
    ],
)
def test_paths_are_text(path: str, expected: str) -> None:
    # ASGI-HTTP-PATH
    async def main() -> None:
        backend = AsgiBackend("api", responding("{path} {root_path}"))
        async with serving(backend, root_path="/café") as port:
            assert (await ask(port, path)).endswith(b"\r\n\r\n" + expected.encode())
        backend = AsgiBackend("api", responding("{path} {root_path}"))
        async with serving(backend, root_path="/\udcff") as port:
            assert (await ask(port, "/%FF/a")).endswith("/\ufffd/a /\ufffd".encode())

    asyncio.run(main())


def test_asgi2() -> None:
    class App:
        def __init__(self, scope: Any) -> None:
            assert scope["type"] == "http"
            self.scope = scope

        async def __call__(self, receive: Any, send: Any) -> None:
            await responding("two {path}")(self.scope, receive, send)

    async def main() -> None:
        async with serving(AsgiBackend("api", App)) as port:
            assert (await ask(port, "/x")).endswith(b"two /x")

    asyncio.run(main())


def test_failures_are_seen_by_the_client(caplog: pytest.LogCaptureFixture) -> None:
    # G4: never answers, returns early, raises before and after the head
    cancelled: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        if scope["path"] == "/never":
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.append(scope["path"])
                raise
        if scope["path"] == "/nothing":
            return
        if scope["path"] == "/exit":
            raise SystemExit(1)
        if scope["path"] == "/late":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"part", "more_body": True})
        raise ValueError("a secret")

    async def main() -> None:
        async with serving(AsgiBackend("api", app, first_byte_s=0.2)) as port:
            for path in ("/nothing", "/early", "/exit"):
                answer = await ask(port, path)
                assert answer.startswith(b"HTTP/1.1 500 ")
                assert b"secret" not in answer
            answer = await ask(port, "/late")
            assert b"part" in answer
            assert not answer.endswith(b"0\r\n\r\n")
            began = asyncio.get_running_loop().time()
            assert (await ask(port, "/never")).startswith(b"HTTP/1.1 504 ")
            assert asyncio.get_running_loop().time() - began < 5
            assert cancelled == ["/never"]

    asyncio.run(main())
    assert "a secret" in caplog.text


def test_first_byte_holds_for_the_first_byte_only() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"begun ", "more_body": True})
        await asyncio.sleep(1.2)  # two of the driver's sweeps
        await send({"type": "http.response.body", "body": b"ended"})

    async def main() -> None:
        async with serving(AsgiBackend("api", app, first_byte_s=0.05)) as port:
            answer = await ask(port)
            assert b"begun" in answer
            assert b"ended" in answer

    asyncio.run(main())


def test_adapter_within_an_application_answers_by_itself(
    caplog: pytest.LogCaptureFixture,
) -> None:
    # Middleware around it would make a 500 of what it raises for the gateway's driver.
    def broken(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        raise ValueError("a secret")

    caplog.set_level(logging.CRITICAL)
    mounted = WsgiToAsgi(broken, body_limit_bytes=0, queue=0, threads=1)

    async def main() -> None:
        app = Starlette(routes=[Mount("/old", mounted)])
        async with mounted, serving(AsgiBackend("api", app)) as port:
            answer = await ask(port, "/old/x")
            assert answer.startswith(b"HTTP/1.1 500 ")
            assert answer.endswith(b"500 Internal Server Error\n")

    asyncio.run(main())


def test_description() -> None:
    assert AsgiBackend("api", responding("")).describe() == "ASGI application api"
    backend = AsgiBackend("api", responding(""), application="api.main:app")
    assert backend.describe() == "ASGI application api.main:app"

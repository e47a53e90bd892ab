"""ASGI applications as SCGI."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from tetrapylon.adapters.asgi_to_scgi import AsgiToScgi
from tetrapylon.adapters.scgi_to_asgi import ScgiToAsgi
from tetrapylon.protocols.scgi import encode_head

Run = Callable[[Coroutine[Any, Any, Any]], Any]
START = {"type": "http.response.start", "status": 200, "headers": []}
HEAD = b"Status: 200 OK\r\n\r\n"
WITHIN_S = 10.0


def body(data: bytes = b"", *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}


async def mirror(scope: Any, receive: Any, send: Any) -> None:
    await send(START)
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        await send(body(message["body"], more=message["more_body"]))
        if not message["more_body"]:
            return


@contextlib.asynccontextmanager
async def serving(app: Any, path: Path, **options: Any) -> AsyncIterator[Any]:
    """Serve on a unix socket; give a function that sends a request and returns the streams."""
    responder = AsgiToScgi(app, bind=f"unix:{path}", lifespan="off", **options)
    writers = []

    async def ask(given: bytes = b"", length: int | None = None, **variables: str) -> Any:
        reader, writer = await asyncio.open_unix_connection(str(path))
        writers.append(writer)
        variables = {"REQUEST_METHOD": "GET", "DOCUMENT_URI": "/a", **variables}
        writer.write(encode_head(variables, len(given) if length is None else length) + given)
        return reader, writer

    ask.responder = responder  # type: ignore[attr-defined]
    async with asyncio.timeout(WITHIN_S), responder:
        served = asyncio.create_task(responder.serve())
        try:
            yield ask
        finally:
            for writer in writers:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
            responder.stop()
            await served


def test_requests(short_path: Path, run: Run) -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append((scope["root_path"], scope["path"], scope["method"]))
        await mirror(scope, receive, send)

    async def main() -> None:
        async with serving(app, short_path) as ask:
            reader, _ = await ask(b"hello")
            assert await reader.read() == HEAD + b"hello"
            reader, _ = await ask(SCRIPT_NAME="/api", PATH_INFO="/b", REQUEST_METHOD="HEAD")
            assert await reader.read() == HEAD
            # A web server that shuts its side down has not left.
            reader, writer = await ask(b"hello")
            writer.write_eof()
            assert await reader.read() == HEAD + b"hello"

    run(main())
    # nginx's scgi_params tell nothing but DOCUMENT_URI.
    assert seen == [("", "/a", "GET"), ("/api", "/api/b", "HEAD"), ("", "/a", "GET")]


def test_what_is_refused(short_path: Path, run: Run) -> None:
    async def main() -> None:
        async with serving(mirror, short_path, requests=0) as ask:
            reader, _ = await ask(b"hello")
            assert (await reader.read()).startswith(b"Status: 503 Service Unavailable\r\n")
            reader, _ = await ask(REQUEST_METHOD="")
            assert (await reader.read()).startswith(b"Status: 400 Bad Request\r\n")
            for garbage in (b"GET / HTTP/1.1\r\n", b"300000:"):
                reader, writer = await asyncio.open_unix_connection(str(short_path))
                writer.write(garbage)
                with contextlib.suppress(ConnectionError):
                    assert await reader.read() == b""
                writer.close()

    run(main())


def test_departures_and_failures(
    short_path: Path, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        seen: list[Any] = []
        is_waiting, is_over = asyncio.Event(), asyncio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            if scope["method"] == "LATER":
                await send(START)
                await send(body(b"a", more=True))
            if scope["method"] in ("NOW", "LATER"):
                raise ValueError
            is_waiting.set()
            while (message := await receive())["type"] != "http.disconnect":
                pass
            seen.append(message["type"])
            is_over.set()

        async with serving(app, short_path) as ask:
            # In the middle of its body; behind it.
            for given, length in ((b"hello", 10), (b"", 0)):
                is_waiting.clear()
                is_over.clear()
                _, writer = await ask(given, length)
                await is_waiting.wait()
                writer.close()
                await is_over.wait()
            assert seen == ["http.disconnect"] * 2
            assert caplog.text == ""
            reader, _ = await ask(REQUEST_METHOD="NOW")
            assert (await reader.read()).startswith(b"Status: 500 Internal Server Error\r\n")
            reader, _ = await ask(REQUEST_METHOD="LATER")
            with contextlib.suppress(ConnectionError):
                assert (HEAD + b"a").startswith(await reader.read())

    run(main())


def test_back_pressure_both_ways(short_path: Path, run: Run) -> None:
    async def main() -> None:
        sent = 0

        async def app(scope: Any, receive: Any, send: Any) -> None:
            nonlocal sent
            await send(START)
            for _ in range(400):
                await send(body(b"x" * 10_000, more=True))
                sent += 1
            await mirror_rest(receive, send)

        async def mirror_rest(receive: Any, send: Any) -> None:
            more = True
            while more:
                message = await receive()
                more = message["more_body"]
                await send(body(message["body"], more=more))

        async with serving(app, short_path) as ask:
            data = os.urandom(4_000_000)
            reader, writer = await ask(data)
            writer.transport.pause_reading()
            before = -1
            while sent != before:
                before = sent
                await asyncio.sleep(0.05)
            assert 0 < sent < 100
            assert writer.transport.get_write_buffer_size() > 2_000_000
            writer.transport.resume_reading()
            assert await reader.read() == HEAD + b"x" * 4_000_000 + data

    run(main())


def test_an_answer_before_the_body_is_read(short_path: Path, run: Run) -> None:
    async def main() -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            await send(START)
            await send(body(b"no, thanks"))

        async with serving(app, short_path) as ask:
            reader, writer = await ask(b"x" * 2_000_000)
            assert await reader.read() == HEAD + b"no, thanks"
            # All of it is taken: the connection is not reset under the answer.
            await writer.drain()

    run(main())


@pytest.mark.parametrize("is_busy", [False, True])
def test_a_graceful_stop(is_busy: bool, short_path: Path, run: Run) -> None:
    async def main() -> None:
        is_running, may_end = asyncio.Event(), asyncio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            is_running.set()
            await may_end.wait()
            await mirror(scope, receive, send)

        async with serving(app, short_path) as ask:
            idle, writer = await asyncio.open_unix_connection(str(short_path))
            reader, _ = await ask(b"hello")
            await is_running.wait()
            if not is_busy:
                may_end.set()
                assert await reader.read() == HEAD + b"hello"
            ask.responder.stop()
            assert await idle.read() == b""
            writer.close()
            may_end.set()
            if is_busy:
                assert await reader.read() == HEAD + b"hello"

    run(main())


def test_there_and_back(short_path: Path, run: Run) -> None:
    async def main() -> None:
        messages: list[Any] = []
        data = os.urandom(100_000)
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
            "headers": [],
        }
        async with serving(mirror, short_path):
            await ScgiToAsgi(f"unix:{short_path}")(scope, receive, send)
        assert messages[0]["status"] == 200
        assert b"".join(message.get("body", b"") for message in messages) == data

    run(main())

"""What an ASGI application may say and ask, whatever is around it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from tetrapylon.adapters.asgi_call import (
    AsgiCall,
    Response,
    cgi_head,
    phrase,
    plain_answer,
    summary,
)
from tetrapylon.adapters.errors import InternalError
from tetrapylon.protocols.errors import LocalProtocolError

START = {"type": "http.response.start", "status": 200, "headers": []}
Run = Callable[[Coroutine[Any, Any, Any]], Any]


def body(data: Any = b"", *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}


def start(*headers: tuple[bytes, bytes], status: Any = 200) -> dict[str, Any]:
    return {"type": "http.response.start", "status": status, "headers": headers}


# Response


def test_a_response() -> None:
    response = Response("GET")
    headers = [(b"Content-Type", b" text/plain "), (b"set-cookie", b"a"), (b"set-cookie", b"b")]
    assert response.take(start(*headers)) is None
    assert (response.status, response.is_complete) == (200, False)
    assert response.fields == [
        (b"content-type", b"text/plain"),
        (b"set-cookie", b"a"),
        (b"set-cookie", b"b"),
    ]
    assert response.take(body(b"a", more=True)) == b"a"
    assert response.take(body(bytearray(b"b"), more=True)) == b"b"
    assert response.take(body(memoryview(b"c"), more=True)) == b"c"
    assert not response.is_complete
    assert response.take({"type": "http.response.body"}) == b""
    assert response.is_complete


def test_fields_that_are_not_the_applications() -> None:
    response = Response("GET")
    response.take(
        start(
            (b"Connection", b"close"),
            (b"Transfer-Encoding", b"chunked"),
            (b"Keep-Alive", b"timeout=5"),
            (b"Status", b"404"),
            (b"server", b"app"),
        )
    )
    assert response.fields == [(b"server", b"app")]


@pytest.mark.parametrize(
    "message",
    [
        start(status=100),
        start(status="200"),
        start(status=1000),
        start((b"x\r\n", b"")),
        start((b"", b"")),
        start((b"x", b"a\r\nset-cookie: b")),
        start((b"x", b"a\0")),
        start((b"content-length", b"+5")),
        start((b"content-length", b"5"), (b"content-length", b"5")),
        body(b"early"),
        {"type": "http.response.trailers", "headers": []},  # ASGI-EXT-NONE
        {"type": "http.response.pathsend", "path": "/etc/passwd"},
        {"type": "websocket.accept"},
    ],
)
def test_what_may_not_come_first(message: dict[str, Any]) -> None:
    response = Response("GET")
    with pytest.raises(LocalProtocolError):
        response.take(message)
    # Nothing has changed.
    assert response.take(START) is None


def test_what_may_not_come_later() -> None:
    response = Response("GET")
    response.take(START)
    for message in (START, body("text"), body(5)):
        with pytest.raises(LocalProtocolError):
            response.take(message)
    assert response.take(body(b"all")) == b"all"


def test_content_length_is_kept() -> None:
    response = Response("GET")
    response.take(start((b"content-length", b"3")))
    with pytest.raises(LocalProtocolError):
        response.take(body(b"abcd", more=True))
    with pytest.raises(LocalProtocolError):
        response.take(body(b"ab"))
    assert response.take(body(b"ab", more=True)) == b"ab"
    assert response.take(body(b"c")) == b"c"


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("GET", 204), ("GET", 304)])
def test_no_body(method: str, status: int) -> None:
    response = Response(method)  # ASGI-BODY-HEAD
    response.take(start((b"content-length", b"3"), status=status))
    assert response.take(body(b"abc", more=True)) == b""
    assert response.take(body(b"more than was promised")) == b""
    assert response.is_complete
    assert response.fields == ([] if status == 204 else [(b"content-length", b"3")])


def test_texts() -> None:
    assert cgi_head(404, [(b"a", b"b"), (b"a", b"c")]) == (
        b"Status: 404 Not Found\r\na: b\r\na: c\r\n\r\n"
    )
    assert phrase(299) == "Unknown Status"
    assert plain_answer(500)[1] == b"500 Internal Server Error\n"
    assert summary(InternalError("so")) == "so"
    assert summary(ValueError("a\nb\x1b")) == r"the application raised ValueError('a\nb\x1b')"

    class Unspeakable(Exception):
        def __repr__(self) -> str:
            raise RuntimeError

    assert summary(Unspeakable()) == "the application raised Unspeakable"


# AsgiCall


class Call(AsgiCall):
    __slots__ = ("failures", "output", "wishes")

    def __init__(self, app: Any, body_bytes: int | None = 0, method: str = "GET") -> None:
        super().__init__(app, {"type": "http", "method": method, "path": "/"}, body_bytes)
        self.output: list[tuple[bytes, bool]] = []
        self.failures: list[BaseException] = []
        self.wishes = 0

    def want_body(self) -> None:
        self.wishes += 1

    async def put(self, data: bytes, *, is_last: bool) -> None:
        self.output.append((data, is_last))

    async def fail(self, error: BaseException) -> None:
        self.failures.append(error)


def request(data: bytes, *, more: bool) -> dict[str, Any]:
    return {"type": "http.request", "body": data, "more_body": more}


DISCONNECT = {"type": "http.disconnect"}


def test_a_body_that_ends_by_its_length(run: Run) -> None:
    async def main() -> None:
        call = Call(None, 5)
        call.feed(b"ab")
        assert await call.receive() == request(b"ab", more=True)
        waiting = asyncio.create_task(call.receive())
        await asyncio.sleep(0)
        assert call.wishes == 1
        call.feed(b"cde")
        assert await waiting == request(b"cde", more=False)
        waiting = asyncio.create_task(call.receive())
        await asyncio.sleep(0)
        assert not waiting.done()
        assert call.wishes == 1
        call.leave()
        assert await waiting == DISCONNECT  # ASGI-DISCONNECT-WAKE
        assert await call.receive() == DISCONNECT

    run(main())


def test_a_body_that_ends_by_its_end(run: Run) -> None:
    async def main() -> None:
        call = Call(None, None)
        call.feed(b"ab")
        assert call.held_bytes == 2
        assert await call.receive() == request(b"ab", more=True)
        call.feed_end()
        assert (call.held_bytes, call.is_body_complete) == (0, True)
        assert await call.receive() == request(b"", more=False)
        call = Call(None, None)
        call.feed(b"ab")
        call.feed_end()
        assert await call.receive() == request(b"ab", more=False)
        # No body at all.
        assert await Call(None, 0).receive() == request(b"", more=False)

    run(main())


def test_a_body_of_another_length_than_was_said(run: Run) -> None:
    async def main() -> None:
        short = Call(None, 5)
        short.feed(b"ab")
        short.feed_end()
        assert await short.receive() == request(b"ab", more=True)
        assert await short.receive() == DISCONNECT
        long = Call(None, 3)
        long.feed(b"ab")
        long.feed(b"cd")
        assert await long.receive() == request(b"ab", more=True)
        assert await long.receive() == DISCONNECT

    run(main())


def test_two_tasks_may_wait(run: Run) -> None:
    async def main() -> None:
        call = Call(None, 5)
        first = asyncio.create_task(call.receive())
        second = asyncio.create_task(call.receive())
        third = asyncio.create_task(call.receive())
        await asyncio.sleep(0)
        third.cancel()
        call.feed(b"abcde")
        done, _ = await asyncio.wait({first, second}, return_when=asyncio.FIRST_COMPLETED)
        assert done.pop().result() == request(b"abcde", more=False)
        call.leave()
        assert DISCONNECT in [await first, await second]
        assert third.cancelled()

    run(main())


def test_a_whole_call(run: Run) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert await receive() == request(b"", more=False)
        await send(START)
        # ASGI-RESP-DELAY: nothing before there is something of the body.
        assert call.output == []
        await send(body(b"a", more=True))
        watch = asyncio.create_task(receive())
        await asyncio.sleep(0)
        await send(body(b"b"))
        assert await watch == DISCONNECT  # ASGI-DISCONNECT
        assert await receive() == DISCONNECT
        await send(body(b"c"))  # ASGI-BODY-AFTER

    call = Call(app)
    run(call.run())
    assert call.output == [(b"a", False), (b"b", True)]
    assert call.failures == []


class Boom(Exception):
    pass


async def raises(scope: Any, receive: Any, send: Any) -> None:
    raise Boom


async def raises_later(scope: Any, receive: Any, send: Any) -> None:
    await send(START)
    await send(body(b"a", more=True))
    raise Boom


async def returns(scope: Any, receive: Any, send: Any) -> None:
    pass


async def returns_early(scope: Any, receive: Any, send: Any) -> None:
    await send(START)
    await send(body(b"a", more=True))


async def exits(scope: Any, receive: Any, send: Any) -> None:
    raise SystemExit(3)


async def promises(scope: Any, receive: Any, send: Any) -> None:
    await send(start((b"content-length", b"5")))
    await send(body(b"a"))


@pytest.mark.parametrize(
    ("app", "kind"),
    [
        (raises, Boom),
        (raises_later, Boom),
        (returns, InternalError),
        (returns_early, InternalError),
        (exits, SystemExit),
        (promises, LocalProtocolError),
    ],
)
def test_failures(app: Any, kind: type[BaseException], run: Run) -> None:
    call = Call(app)
    run(call.run())
    assert [type(error) for error in call.failures] == [kind]


def test_what_fails_behind_its_response_is_logged(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await send(body(b"a"))
        raise Boom

    call = Call(app)
    run(call.run())
    assert call.failures == []
    assert "raised after its response" in caplog.text


def test_departure(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tetrapylon")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert await receive() == DISCONNECT
        await send(START)  # ASGI-SEND-CLOSED

    async def in_a_group(scope: Any, receive: Any, send: Any) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(send(START))

    async def returns_quietly(scope: Any, receive: Any, send: Any) -> None:
        pass

    for quiet in (app, in_a_group, returns_quietly):
        call = Call(quiet, 5)
        call.leave()
        run(call.run())
        assert call.failures == []
    assert caplog.text == ""  # ASGI-SEND-CLOSED-LOG
    call = Call(raises)
    call.leave()
    run(call.run())
    assert "after its client had left, the application raised Boom()" in caplog.text


def test_hanging_up_is_not_leaving(run: Run) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert await receive() == request(b"", more=False)
        assert await receive() == DISCONNECT
        await send(START)
        await send(body(b"late"))

    call = Call(app)
    call.hang_up()
    run(call.run())
    assert call.output == [(b"late", True)]


def test_cancellation(run: Run) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await asyncio.get_running_loop().create_future()

    async def main() -> None:
        call = Call(app)
        task = asyncio.create_task(call.run())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert [str(error) for error in call.failures] == ["the application was cancelled"]

    run(main())

"""A WSGI application, run in threads, as an ASGI application.

PEP 3333 behind the ASGI specification's section "WSGI Compatibility". For each
request: the body is read first, so that no thread waits for a slow client; a
thread runs the application (`tetrapylon.adapters.wsgi_call`) from its call to
its ``close()``; the request's coroutine sends what comes of it, and tells the
thread when the client has left.

For asyncio and uvloop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from ..protocols.asgi import GATEWAY_EXTENSION, Message, Receive, Scope, Send
from ..protocols.wsgi import Application, Environ
from .errors import (
    ClientDisconnected,
    ContentTooLarge,
    InternalError,
    Truncated,
    Unavailable,
    answered,
)
from .exchange import SpooledBody, spool_body
from .wsgi_call import Call
from .wsgi_streams import FileWrapper
from .wsgi_threads import WorkerThreads


class WsgiToAsgi:
    """Run a WSGI application under any ASGI server on asyncio.

    ``threads`` requests run at a time; ``queue`` more wait for a thread, each at
    most ``queue_wait_s`` seconds; beyond that the answer is 503.

    With ``spool`` a thread is taken when the request's body is complete: bodies
    over ``spool_memory_bytes`` wait in an unnamed file. Without, a body that is
    still arriving is read from the connection as the application asks for it.
    ``body_limit_bytes`` is the largest body (413 above; ``None``: the server's
    limit holds). A client for which a thread waits, and that neither takes a
    block nor gives a byte in ``client_idle_s`` seconds, is given up (``None``:
    the server sees to that).

    ``environ`` is put into each environ as it stands; ``multiprocess`` says
    whether other processes run the same application; ``name`` is what the
    threads and the log call it.

    The threads start when they are needed. They end with the lifespan of the
    ASGI server, with ``async with``, or with `aclose`, which wait ``stop_s``
    seconds for applications that still run.
    """

    def __init__(
        self,
        app: Application,
        *,
        threads: int = 8,
        queue: int = 64,
        queue_wait_s: float = 5.0,
        spool: bool = True,
        spool_memory_bytes: int = 64 * 1024,
        body_limit_bytes: int | None = None,
        client_idle_s: float | None = 60.0,
        stop_s: float = 5.0,
        environ: Mapping[str, str] | None = None,
        multiprocess: bool = False,
        name: str = "wsgi",
    ) -> None:
        self._app = app
        self._spool = spool
        self._spool_memory_bytes = spool_memory_bytes
        self._body_limit_bytes = body_limit_bytes
        self._client_idle_s = client_idle_s
        self._stop_s = stop_s
        self._variables: Environ = {
            "wsgi.version": (1, 0),
            "wsgi.multithread": threads > 1,
            "wsgi.multiprocess": multiprocess,
            "wsgi.run_once": False,
            "wsgi.file_wrapper": FileWrapper,
            # A common extension: reading to the end of file is right, CONTENT_LENGTH or not.
            "wsgi.input_terminated": True,
            **(environ or {}),
        }
        self._threads = WorkerThreads(
            threads=threads, queue=queue, queue_wait_s=queue_wait_s, name=name
        )

    @answered
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or follow the server's lifespan."""
        if scope["type"] != "http":
            await self._answer_other(scope, receive, send)
            return
        message = await receive()
        if message["type"] != "http.request":
            raise ClientDisconnected("the client left before its request was complete")
        body: bytes | SpooledBody = message.get("body", b"")
        limit_bytes = self._body_limit_bytes
        arriving: _ArrivingBody | None = None
        if message.get("more_body"):
            arriving = _ArrivingBody(message, receive, limit_bytes)
            if self._spool:
                body = await spool_body(
                    arriving.receive,
                    memory_bytes=self._spool_memory_bytes,
                    limit_bytes=limit_bytes,
                )
                arriving = None
            else:
                body = await arriving.next_piece()
        elif limit_bytes is not None and len(message.get("body", b"")) > limit_bytes:
            raise ContentTooLarge(f"the request body is over {limit_bytes} bytes")
        call = Call(
            self._app,
            scope,
            body,
            is_streamed=arriving is not None,
            variables=self._variables,
            mailbox=self._threads.mailbox(),
            client_idle_s=self._client_idle_s,
        )
        extensions = scope.get("extensions")
        exchange = extensions.get(GATEWAY_EXTENSION) if extensions else None
        if exchange is not None:
            exchange.on_departure = call.leave
            if exchange.is_departed:
                # While the last of its body was written to the file.
                call.leave()
        try:
            self._threads.submit(call)
            await _relay(call, arriving, None if exchange is not None else receive, send)
        except BaseException as error:
            call.leave()
            # Else a thread has it, and closes the body when it is through.
            is_unused = self._threads.withdraw(call) or isinstance(error, Unavailable)
            if is_unused and isinstance(body, SpooledBody):
                await body.aclose()
            if isinstance(error, OSError):
                raise ClientDisconnected(str(error)) from error
            raise
        finally:
            if exchange is not None:
                exchange.on_departure = None

    async def _answer_other(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._follow_lifespan(receive, send)
        elif scope["type"] == "websocket":
            await receive()
            # Before the handshake: answered with 403.
            await send({"type": "websocket.close"})
        else:
            raise ValueError(f"WSGI has no answer to a scope of type {scope['type']!r}")

    async def _follow_lifespan(self, receive: Receive, send: Send) -> None:
        self._threads.open()
        try:
            while (await receive())["type"] != "lifespan.shutdown":
                await send({"type": "lifespan.startup.complete"})
            await self.aclose()
            await send({"type": "lifespan.shutdown.complete"})
        finally:
            # Should the server give up on it before.
            self.close()

    def close(self) -> None:
        """End the threads as they become idle; running applications are told on writing."""
        self._threads.close()

    async def aclose(self) -> None:
        """Close, and wait ``stop_s`` seconds at most for applications that still run."""
        self._threads.close()
        await self._threads.join(self._stop_s)

    async def __aenter__(self) -> Self:
        self._threads.open()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()


async def _relay(
    call: Call, arriving: _ArrivingBody | None, receive: Receive | None, send: Send
) -> None:
    """Send the response as the thread makes it, and feed the thread what it asks for.

    With ``receive``, departures are learnt from it once the response streams.
    """
    blocks = call.blocks
    is_started = False
    watch: asyncio.Task[None] | None = None
    try:
        while True:
            await call.news()
            # Read before the blocks: what the thread adds from here on comes with news.
            is_ended = call.is_ended
            if call.is_gone:
                raise ClientDisconnected("the client left before it was answered")
            if call.is_expired:
                raise Unavailable("no thread became free in time", retry_after_s=1)
            is_whole = is_ended and not call.failure
            if not is_started and call.head is not None:
                is_started = True
                await send(call.head)
                if not (blocks or is_ended):
                    # A head without a body (HEAD, 204) must not wait for the end either.
                    await send({"type": "http.response.body", "body": b"", "more_body": True})
            while is_started and blocks:
                block = blocks.popleft()
                is_last = is_whole and not blocks
                await send({"type": "http.response.body", "body": block, "more_body": not is_last})
                if is_last:
                    return
            if is_whole:
                await send({"type": "http.response.body", "body": b"", "more_body": False})
                return
            if is_ended:
                raise Truncated(call.failure) if is_started else InternalError(call.failure)
            if call.is_asking and not blocks:
                piece = await arriving.next_piece() if call.wants_body and arriving else b""
                call.answer(piece)
            if watch is None and receive is not None and (arriving is None or arriving.is_complete):
                watch = asyncio.create_task(_watch(call, receive))
    finally:
        if watch is not None:
            watch.cancel()


async def _watch(call: Call, receive: Receive) -> None:
    """Tell the call when the client leaves, where the server has no better way to know."""
    try:
        while (await receive())["type"] == "http.request":
            pass
    except Exception:  # noqa: S110 whatever it is, nobody is there any more
        pass
    call.leave()


class _ArrivingBody:
    """A request body of which the first message was taken."""

    __slots__ = ("_first", "_limit_bytes", "_receive", "_received_bytes", "is_complete")

    def __init__(self, first: Message, receive: Receive, limit_bytes: int | None) -> None:
        self._first: Message | None = first
        self._receive = receive
        self._limit_bytes = limit_bytes
        self._received_bytes = 0
        self.is_complete = False

    async def receive(self) -> Message:
        """Return the first message again, then the others."""
        message, self._first = self._first, None
        return await self._receive() if message is None else message

    async def next_piece(self) -> bytes:
        """Return what comes next of the body; ``b""`` at its end.

        Raises `ClientDisconnected` if the client left in the middle of it,
        `ContentTooLarge` beyond the limit.
        """
        while not self.is_complete:
            message = await self.receive()
            if message["type"] != "http.request":
                raise ClientDisconnected("the client left before its request was complete")
            piece: bytes = message.get("body", b"")
            self.is_complete = not message.get("more_body", False)
            self._received_bytes += len(piece)
            if self._limit_bytes is not None and self._received_bytes > self._limit_bytes:
                raise ContentTooLarge(f"the request body is over {self._limit_bytes} bytes")
            if piece:
                return piece
        return b""

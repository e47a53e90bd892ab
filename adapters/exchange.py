"""One exchange with an application behind an adapter: body in, departure, response out.

What CGI, FastCGI and WSGI share once the meta-variables are made:

- `spool_body` reads a request body to its end, in memory or in an unnamed file,
  for the protocols that must know the length first (RFC 3875 §4.1.2, §4.2);
- `Departure` ends a block of work when the client leaves;
- `ResponseRelay` turns the output of a script (RFC 3875 §6) into ASGI messages.

They are used in this order: `Departure` calls ``receive()``, so the body has to
be read by then.
"""

from __future__ import annotations

import asyncio
import io
import os
import tempfile
import threading
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import BinaryIO, Protocol, Self

import anyio
from anyio import to_thread
from anyio.abc import TaskGroup

from ..protocols.asgi import GATEWAY_EXTENSION, Receive, Scope, Send
from ..protocols.cgi import response
from ..protocols.errors import RemoteProtocolError
from .errors import (
    BadGateway,
    ClientDisconnected,
    ContentTooLarge,
    InsufficientStorage,
    LocalRedirect,
    Truncated,
)

_SPOOL_MEMORY_BYTES = 64 * 1024
_HEAD_LIMIT_BYTES = 64 * 1024
# A hop to a thread costs more than copying from the page cache does.
_READ_BYTES = 256 * 1024


class SpooledBody:
    """A request body of known ``length`` in bytes, complete.

    Small ones are in ``data``. For a large one ``file`` is an unnamed temporary
    file, open for reading and at its start, which a child may get as its stdin;
    ``data`` is then empty. The owner closes it: ``with`` where blocking is
    allowed, ``async with`` on an event loop (to close a file of a gigabyte that
    has no name takes tens of milliseconds).
    """

    __slots__ = ("data", "file", "length")

    def __init__(self, data: bytes = b"", file: BinaryIO | None = None, length: int = 0) -> None:
        self.data = data
        self.file = file
        self.length = length if file is not None else len(data)

    async def chunks(self, size_bytes: int = 65536) -> AsyncIterator[bytes]:
        """Yield the whole body from its start, at most ``size_bytes`` at once.

        Files are read in a thread; their position stays where it is. Raises
        `InsufficientStorage` if that fails.
        """
        if self.file is None:
            if self.length <= size_bytes:
                if self.data:
                    yield self.data
                return
            for start in range(0, self.length, size_bytes):
                yield self.data[start : start + size_bytes]
            return
        descriptor = self.file.fileno()
        read_bytes = max(size_bytes, _READ_BYTES // size_bytes * size_bytes)
        offset = 0
        while offset < self.length:
            try:
                data = await to_thread.run_sync(os.pread, descriptor, read_bytes, offset)
            except OSError as error:
                raise InsufficientStorage(
                    f"the spooled request body cannot be read: {error}"
                ) from error
            if not data:
                raise InsufficientStorage("the spooled request body was cut short")
            offset += len(data)
            for start in range(0, len(data), size_bytes):
                yield data[start : start + size_bytes]

    def close(self) -> None:
        """Let the file go; a second time does nothing."""
        if self.file is not None:
            self.file.close()

    async def aclose(self) -> None:
        """Let the file go in a thread, whatever is being cancelled."""
        if self.file is not None and not self.file.closed:
            with anyio.CancelScope(shield=True):
                await to_thread.run_sync(self.file.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


#: The body of most requests: one for all, as there is nothing to it.
NO_BODY = SpooledBody()


async def spool_body(
    receive: Receive,
    *,
    memory_bytes: int = _SPOOL_MEMORY_BYTES,
    limit_bytes: int | None = None,
) -> SpooledBody:
    """Read the request body to its end; what is more than ``memory_bytes`` goes to a file.

    Raises `ClientDisconnected` if the client left before, `ContentTooLarge` as
    soon as the body is over ``limit_bytes``, `InsufficientStorage` if the file
    (in the system's directory for temporary ones) cannot be made or written.
    """
    spool: _SpoolFile | None = None
    batch: list[bytes] = []
    batch_bytes = 0
    length = 0
    try:
        while True:
            message = await receive()
            if message["type"] != "http.request":
                raise ClientDisconnected("the client left before the request body was complete")
            data: bytes = message.get("body", b"")
            is_last = not message.get("more_body", False)
            length += len(data)
            if limit_bytes is not None and length > limit_bytes:
                raise ContentTooLarge(f"the request body is over {limit_bytes} bytes")
            if is_last and length == len(data) <= memory_bytes:
                # As most are: empty, or in one piece.
                return SpooledBody(data) if data else NO_BODY
            if data:
                batch.append(data)
                batch_bytes += len(data)
            if batch_bytes > memory_bytes:
                if spool is None:
                    spool = _SpoolFile()
                await to_thread.run_sync(spool.write, batch)
                batch = []
                batch_bytes = 0
            if is_last:
                if spool is None:
                    return SpooledBody(batch[0] if len(batch) == 1 else b"".join(batch))
                file = await to_thread.run_sync(spool.finish, batch)
                return SpooledBody(file=file, length=length)
    except BaseException as error:
        if spool is not None:
            spool.abandon()
        if isinstance(error, _SpoolError):
            raise InsufficientStorage(f"cannot spool the request body: {error}") from error
        raise


class _SpoolError(Exception):
    """Told from an `OSError` that ``receive()`` may raise."""


class _SpoolFile:
    """The file under a body that is being read, written in threads.

    Cancelling the task that waits for a thread does not stop the thread. So the
    file is never closed under a write, which might then go to whatever was given
    the same descriptor: `abandon` leaves that to the thread.
    """

    def __init__(self) -> None:
        self._file: io.FileIO | None = None
        self._lock = threading.Lock()
        self._is_abandoned = False

    def write(self, chunks: list[bytes], *, is_last: bool = False) -> None:
        try:
            with self._lock:
                if not self._is_abandoned:
                    self._write(chunks, is_last)
        except OSError as error:
            raise _SpoolError(str(error)) from error
        finally:
            self._close_if_abandoned()

    def finish(self, chunks: list[bytes]) -> BinaryIO:
        """Write the rest and hand the file over, at its start."""
        self.write(chunks, is_last=True)
        assert self._file is not None
        return io.BufferedReader(self._file)

    def abandon(self) -> None:
        """Close the file, now or when the thread is through; never waits."""
        self._is_abandoned = True
        self._close_if_abandoned()

    def _write(self, chunks: list[bytes], is_last: bool) -> None:
        if self._file is None:
            # On Linux made by O_TMPFILE: it never has a name. Unbuffered, so that
            # closing never writes and so never fails.
            self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 outlives the call
        view = memoryview(b"".join(chunks))
        while view:
            view = view[self._file.write(view) :]
        if is_last:
            self._file.seek(0)

    def _close_if_abandoned(self) -> None:
        # Who holds the lock comes by here after letting it go.
        if self._is_abandoned and self._lock.acquire(blocking=False):
            try:
                if self._file is not None:
                    self._file.close()
            finally:
                self._lock.release()


class Exchange(Protocol):
    """What our connection driver shows of itself as a scope's extension."""

    is_departed: bool
    on_departure: Callable[[], None] | None


class Departure:
    """Ends a block of work when the client leaves.

    ``async with Departure(scope, receive):`` — then the block is cancelled, and
    `ClientDisconnected` is raised out of it instead; likewise where ``send()``
    fails because the client has left. A block that was through by then has
    simply ended.

    Under our gateway the connection driver calls back, for it alone can tell a
    half-close from a departure; under other servers a task awaits
    ``http.disconnect``. Cancellation is that of an anyio cancel scope: awaiting
    in the block goes on failing, so that its cleanup has to be shielded.
    Cancellation from outside, by anyio or by ``Task.cancel``, passes through.
    """

    def __init__(self, scope: Scope, receive: Receive) -> None:
        extensions = scope.get("extensions") or {}
        self._exchange: Exchange | None = extensions.get(GATEWAY_EXTENSION)
        self._receive = receive
        self._group: TaskGroup | None = None
        self._cancel_scope: anyio.CancelScope | None = None
        self._is_departed = False

    async def __aenter__(self) -> Self:
        exchange = self._exchange
        if exchange is None:
            self._group = anyio.create_task_group()
            await self._group.__aenter__()
            self._cancel_scope = self._group.cancel_scope
            self._group.start_soon(self._await_disconnect)
            return self
        if exchange.is_departed:
            raise ClientDisconnected("the client has left")
        self._cancel_scope = anyio.CancelScope()
        self._cancel_scope.__enter__()
        exchange.on_departure = self._leave
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        assert self._cancel_scope is not None
        if self._exchange is not None:
            self._exchange.on_departure = None
            is_caught = bool(self._cancel_scope.__exit__(exc_type, exc, traceback))
        else:
            is_caught = await self._leave_group(exc_type, exc, traceback)
        if exc is not None and self._is_departed and (is_caught or _is_of_oserrors(exc)):
            raise ClientDisconnected("the client has left") from exc
        return is_caught

    def _leave(self) -> None:
        self._is_departed = True
        assert self._cancel_scope is not None
        self._cancel_scope.cancel()

    async def _await_disconnect(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._leave()

    async def _leave_group(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        assert self._group is not None
        self._group.cancel_scope.cancel()
        try:
            return bool(await self._group.__aexit__(exc_type, exc, traceback))
        except BaseExceptionGroup as group:
            # The group is ours, and callers know nothing of it: what they raised
            # comes out as it was, or else what `receive()` raised.
            if exc is not None and exc in group.exceptions:
                return False
            raise group.exceptions[0] from None


class TaskDeparture:
    """As `Departure`, at a fraction of its cost, for a block that shields nothing.

    Under our gateway the task is cancelled once, as by ``Task.cancel``: anyio's scopes
    take longer to enter and to leave than a FastCGI request's bytes to be made and read.
    """

    _departure: Departure | None = None
    # While it is in the block.
    _task: asyncio.Task[object] | None = None
    _cancelling = 0
    _is_departed = False
    _is_cancelled = False

    def __init__(self, scope: Scope, receive: Receive) -> None:
        extensions = scope.get("extensions") or {}
        self._exchange: Exchange | None = extensions.get(GATEWAY_EXTENSION)
        if self._exchange is None:
            self._departure = Departure(scope, receive)

    async def __aenter__(self) -> Self:
        exchange = self._exchange
        if exchange is None:
            assert self._departure is not None
            await self._departure.__aenter__()
            return self
        if exchange.is_departed:
            raise ClientDisconnected("the client has left")
        task = self._task = asyncio.current_task()
        assert task is not None
        self._cancelling = task.cancelling()
        exchange.on_departure = self._leave
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        if self._departure is not None:
            return await self._departure.__aexit__(exc_type, exc, traceback)
        assert self._exchange is not None
        self._exchange.on_departure = None
        task, self._task = self._task, None
        if not self._is_departed:
            return False
        assert task is not None
        is_ours = False
        if self._is_cancelled:
            # Somebody else may have cancelled as well: that passes through.
            is_ours = task.uncancel() <= self._cancelling and isinstance(
                exc, asyncio.CancelledError
            )
        if exc is not None and (is_ours or _is_of_oserrors(exc)):
            raise ClientDisconnected("the client has left") from exc
        return False

    def _leave(self) -> None:
        self._is_departed = True
        if asyncio.current_task() is self._task:
            # A task that cancels itself is hit by it wherever it waits next, which may be
            # behind the block.
            asyncio.get_running_loop().call_soon(self._cancel)
        else:
            self._cancel()

    def _cancel(self) -> None:
        if self._task is not None:
            self._is_cancelled = True
            self._task.cancel()


def _is_of_oserrors(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return all(map(_is_of_oserrors, error.exceptions))
    return isinstance(error, OSError)


class ResponseParser(Protocol):
    """What reads a script's output: `CgiResponseParser`, or one of the same events."""

    def receive_data(self, data: bytes) -> None:
        """Take output; ``b""`` says that it has ended."""

    def next_event(self) -> response.Event:
        """Return the next event; raise `RemoteProtocolError` for what is no response."""


class ResponseRelay:
    """Sends what a script writes on as an ASGI response.

    ``method`` is the request's, ``parser`` reads the output if it is not as CGI's.
    Failures are `BadGateway` as long as nothing was sent, `Truncated` after that. A
    local redirect is raised as `LocalRedirect` when the output has ended, so that the
    script may finish what it is at.
    """

    _local_redirect: bytes | None = None
    #: The head was sent: what fails from now on is a truncated response.
    is_started = False
    #: The response was sent to its end; what the script still writes is dropped.
    is_complete = False

    def __init__(
        self,
        send: Send,
        *,
        method: str,
        head_limit_bytes: int = _HEAD_LIMIT_BYTES,
        parser: ResponseParser | None = None,
    ) -> None:
        self._send = send
        self._method = method
        self._head_limit_bytes = head_limit_bytes
        self._parser = parser

    async def feed(self, data: bytes, *, is_last: bool = False) -> None:
        """Take output; ``is_last`` says that there will be no more (as `end` does).

        Telling it with the last data is cheaper, and a response that came whole
        gets its Content-Length. A head is sent at once, even without a body.
        """
        parser = self._parser
        if parser is None:
            whole = None
            if is_last:
                whole = response.read_whole(
                    data, method=self._method, head_limit_bytes=self._head_limit_bytes
                )
            if whole is not None:
                status, kept_fields, content_length, body = whole
                # A list, for middleware that adds to it.
                fields = [*kept_fields]
                if content_length is None and self._method != "HEAD" and status not in (204, 304):
                    fields.append((b"content-length", b"%d" % len(body)))
                self.is_complete = True
                await self._send(
                    {"type": "http.response.start", "status": status, "headers": fields}
                )
                self.is_started = True
                await self._send({"type": "http.response.body", "body": body, "more_body": False})
                return
            parser = self._parser = response.CgiResponseParser(
                method=self._method, head_limit_bytes=self._head_limit_bytes
            )
        if data:
            parser.receive_data(data)
        if is_last:
            parser.receive_data(b"")
        was_complete = self.is_complete
        head: response.ResponseHead | None = None
        body = b""
        try:
            while (event := parser.next_event()) is not response.NEED_DATA:
                if isinstance(event, response.Data):
                    body += event.data
                elif isinstance(event, response.ResponseHead):
                    head = event
                elif isinstance(event, response.EndOfMessage):
                    self.is_complete = True
                else:
                    self._local_redirect = event.target
        except RemoteProtocolError as error:
            if self.is_started:
                raise Truncated(str(error)) from error
            raise BadGateway(str(error)) from error

        if head is not None:
            fields = head.fields
            if (
                self.is_complete
                and head.content_length is None
                and self._method != "HEAD"
                and head.status not in (204, 304)
            ):
                fields.append((b"content-length", b"%d" % len(body)))
            await self._send(
                {"type": "http.response.start", "status": head.status, "headers": fields}
            )
            # Not before: a server may refuse the head, and then there is no answer yet.
            self.is_started = True
        # An empty body message makes servers that hold the head back send it.
        if head is not None or body or (self.is_complete and not was_complete):
            await self._send(
                {"type": "http.response.body", "body": body, "more_body": not self.is_complete}
            )
        if is_last and self._local_redirect is not None:
            raise LocalRedirect(self._local_redirect)

    async def end(self) -> None:
        """Say that the output has ended."""
        await self.feed(b"", is_last=True)

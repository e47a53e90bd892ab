"""One request and its response: `receive` and `send` of one ASGI call.

The connection feeds the request's body in and is given the response's bytes;
whatever ends an exchange early (a departure, a time-out, a limit) comes through
here, and so does every exception that an application lets out: this is the one
place that turns exceptions into responses.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..adapters.errors import (
    BackendError,
    BadGateway,
    ClientDisconnected,
    ContentTooLarge,
    GatewayTimeout,
    InternalError,
    Truncated,
    Unavailable,
)
from ..protocols.asgi import Fields, Message, Scope
from ..protocols.errors import LocalProtocolError, ProtocolError, RemoteProtocolError
from ..protocols.http1 import Request
from ..protocols.http1.events import CHUNKED
from ..protocols.http1.response import STATUS_LINES, ResponseFields, examine, without_length
from .errors import error_response, exception_status
from .sendfile import SentFile

if TYPE_CHECKING:
    from .http_driver import HttpConnection

logger = logging.getLogger("tetrapylon.gateway")

#: The access log's status for a client that left before its answer began.
CLIENT_LEFT = 499
# A body in one piece beyond this is written slice by slice, as the client reads.
_SLICE_BYTES = 128 * 1024
# Below this a copy into one write is cheaper than a second write.
_JOIN_BYTES = 64 * 1024
# RFC 9112 §6.3: these end with their heads; 1xx are not for applications.
_BODILESS = frozenset({204, 304})
_LENGTH_LINE = b"content-length: %d\r\n"
# How much a stream may send before others have their turn; a message counts as so much.
_TURN_BYTES = 256 * 1024
_MESSAGE_BYTES = 4 * 1024
# What the client sends from there on cannot be relied on, or is not wanted.
_CLOSING_STATUSES = frozenset({400, 408, 413, 414, 431})


class ClientLeft(OSError):
    """Raised by ``send`` when nobody is there to read (ASGI: an OSError)."""


class Exchange:
    """A request in hand. Under ``scope["extensions"]`` adapters find it."""

    # What most exchanges never change stands here once, instead of being set anew
    # for each request: that is a third of the time it takes to make one.

    task: asyncio.Task[None] | None = None
    #: For the access log; the router says which backend answers.
    backend = "-"
    #: Likewise; whom an authorizer found the client to be, in latin-1.
    user = ""
    #: Called once when the client has really left; see `depart`.
    on_departure: Callable[[], None] | None = None
    is_departed = False
    is_half_closed = False

    received_bytes = 0
    #: How long the application may take, from ``complete_at`` on, to begin its
    #: answer; 0: for ever.
    first_byte_s = 0.0
    _body_buffered = 0
    _is_body_taken = False
    _waiters: list[asyncio.Future[None]] | None = None

    #: The head is on its way: no other answer can be given any more.
    is_started = False
    is_complete = False
    sent_bytes = 0
    began_at = 0.0
    _fields: ResponseFields | None = None
    _status = 0
    _sent_in_a_row = 0
    _is_chunked = False
    _is_head_only = False
    #: Body bytes still owed by Content-Length; None when none was given.
    _expected: int | None = None
    #: What is to be sent in place of the body, or what is wrong with that.
    _file: SentFile | BackendError | None = None
    _is_file_due = False

    def __init__(self, connection: HttpConnection, request: Request) -> None:
        service = connection.service
        self.connection = connection
        self.request = request
        self.body_limit_bytes = service.limits.body
        self.is_body_complete = request.content_length == 0
        #: When the application had the request, or as much of it as it takes at once; on
        #: the loop's clock.
        self.complete_at = service.now
        self.keeps_alive = request.wants_keep_alive
        self._wants_continue = request.expects_continue
        self._body: list[bytes] = []
        if service.access_log is not None:
            self.began_at = time.perf_counter()

    # The request's side

    def limit_body(self, limit_bytes: int) -> None:
        """Set the largest body; raise `ContentTooLarge` if more is announced or here."""
        self.body_limit_bytes = limit_bytes
        size = max(self.request.content_length, self.received_bytes)
        if size > limit_bytes:
            raise ContentTooLarge(f"a body of {size} bytes where {limit_bytes} are the limit")

    def feed(self, data: bytes) -> None:
        """Take a piece of the request's body from the connection."""
        size = len(data)
        self.received_bytes += size
        if self.is_complete:
            if self.received_bytes > self.connection.drain_until:
                self.connection.close_lingering()
            return
        if self.received_bytes > self.body_limit_bytes and self.task is not None:
            # Before the start nobody knows yet which backend's limit holds.
            self.reject(ContentTooLarge(f"a body of more than {self.body_limit_bytes} bytes"))
            return
        self._body.append(data)
        self._body_buffered += size
        if self.room_bytes <= 0:
            self.connection.pause_reading()
        if self._waiters is not None:
            self._wake()

    @property
    def room_bytes(self) -> int:
        """How much more of the body may be read ahead of the application."""
        return self.connection.service.limits.body_buffer - self._body_buffered

    def end_of_body(self) -> None:
        """Take note that the request is complete."""
        self.is_body_complete = True
        self.complete_at = self.connection.service.now
        if self._waiters is not None:
            self._wake()

    def half_close(self) -> None:
        """Take note that the client will send no more, but may still read."""
        self.is_half_closed = True
        self._wake()

    def depart(self) -> None:
        """Take note that the client has left: nothing more can reach it."""
        if self.is_departed:
            return
        self.is_departed = True
        self._wake()
        callback, self.on_departure = self.on_departure, None
        if callback is not None:
            callback()

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, None
        for waiter in waiters or ():
            if not waiter.done():
                waiter.set_result(None)

    async def receive(self) -> Message:
        """ASGI ``receive``: the body's pieces, then ``http.disconnect``."""
        while True:
            if not self._is_body_taken and not self.is_complete:
                if self._body or self.is_body_complete:
                    pieces = self._body
                    if not pieces:
                        body = b""
                    elif len(pieces) == 1:
                        body = pieces[0]
                    else:
                        body = b"".join(pieces)
                    self._body = []
                    self._body_buffered = 0
                    self._is_body_taken = self.is_body_complete
                    # Behind the body's end too: who does not read sees no departure.
                    self.connection.read_ahead()
                    return {
                        "type": "http.request",
                        "body": body,
                        "more_body": not self.is_body_complete,
                    }
                if self.is_departed:
                    return {"type": "http.disconnect"}
                if self._wants_continue:
                    self._wants_continue = False
                    if not self.is_started and not self.received_bytes:
                        self.connection.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            elif self.is_half_closed or self.is_departed or self.is_complete:
                return {"type": "http.disconnect"}
            waiter = self.connection.service.loop.create_future()
            if self._waiters is None:
                self._waiters = [waiter]
            else:
                self._waiters.append(waiter)
            await waiter

    # The response's side

    async def send(self, message: Message) -> None:
        """ASGI ``send``: a response's head, then its body's pieces.

        Raises `LocalProtocolError` for what ASGI or HTTP does not allow, before
        anything of that message is written, and `ClientLeft` (an OSError) when
        the client has left.
        """
        if self.is_departed:
            raise ClientLeft("the client has left")
        kind = message["type"]
        if kind == "http.response.start":
            if self._fields is not None:
                raise LocalProtocolError("a second http.response.start")
            status = message["status"]
            if not isinstance(status, int) or not 200 <= status <= 999:
                raise LocalProtocolError(f"http.response.start with status {status!r}")
            headers = tuple(message.get("headers", ()))
            connection = self.connection
            if headers == connection.last_headers:
                fields = connection.last_fields
            else:
                fields = examine(headers)
                if fields[0] == connection.last_lines:
                    connection.remember_fields(headers, fields)
                else:
                    connection.last_lines = fields[0]
            unusual = fields[2]
            if unusual is not None and unusual.sendfile is not None:
                self._file = self._find_file(unusual.sendfile, list(headers))
            self._fields = fields
            self._status = status
        elif kind == "http.response.body":
            if self.is_complete:
                raise LocalProtocolError("a message after the end of the response")
            if self.connection.transport.is_closing():
                # A write has failed; `connection_lost` is on its way.
                raise ClientLeft("the client has left")
            body = message.get("body", b"")
            is_last = not message.get("more_body", False)
            if self._file is not None:
                # Another body is sent, when this one has come to its end.
                if self._is_file_due:
                    raise LocalProtocolError("a message after the end of the response")
                self._is_file_due = is_last
                if not is_last:
                    await asyncio.sleep(0)
                return
            if not isinstance(body, bytes):
                body = bytes(body)
            if len(body) > _SLICE_BYTES:
                await self._write_slices(body, is_last)
            elif self.is_started:
                self._write_piece(body, is_last)
            else:
                self._write_first(body, len(body) if is_last else None, is_last)
            if self.connection.is_write_paused:
                await self._drain()
            elif not is_last:
                self._sent_in_a_row += len(body) + _MESSAGE_BYTES
                if self._sent_in_a_row > _TURN_BYTES:
                    # A stream that never waits would keep the loop to itself while
                    # its client keeps up, and not see that it has left.
                    self._sent_in_a_row = 0
                    await asyncio.sleep(0)
        else:
            raise LocalProtocolError(f"unknown message type {kind!r}")

    def _find_file(self, name: bytes, fields: Fields) -> SentFile | BackendError:
        """Open the file that a backend wants to be sent; return what is wrong with it, if so.

        That is raised when the backend is through: raised out of its ``send()``, it
        would be taken by applications for a failure of their own.
        """
        files = self.connection.service.sent_files
        if files is None:
            return BadGateway(f"the backend wants {name!r} to be sent, and no folder is named")
        try:
            return files.open(fields)
        except BackendError as error:
            return error

    async def _send_file(self) -> None:
        """Send what a backend has named in place of its body."""
        file, self._file = self._file, None
        self._fields = None
        if isinstance(file, BackendError):
            raise file
        if file is not None:
            request = self.request
            try:
                await file.answer(request.method, request.fields, self._status, self.send)
            finally:
                file.close()

    async def _drain(self) -> None:
        await self.connection.drain()
        if self.is_departed:
            raise ClientLeft("the client has left")

    async def _write_slices(self, body: bytes, is_last: bool) -> None:
        """Write a large piece as the client takes it."""
        view = memoryview(body)
        for at in range(0, len(body), _SLICE_BYTES):
            await self._drain()
            if self.is_complete:
                raise ClientLeft("the connection was cut meanwhile")
            piece = bytes(view[at : at + _SLICE_BYTES])
            is_end = is_last and at + _SLICE_BYTES >= len(body)
            if self.is_started:
                self._write_piece(piece, is_end)
            else:
                self._write_first(piece, len(body) if is_last else None, is_end)

    def _write_first(self, body: bytes, total: int | None, is_last: bool) -> None:
        """Write the head and the first piece of the body, at once.

        ``total`` is the size of the whole body where it is known already.
        """
        fields = self._fields
        if fields is None:
            raise LocalProtocolError("http.response.body before http.response.start")
        self.is_started = True
        lines, length, unusual = fields
        status = self._status
        request = self.request
        connection = self.connection
        service = connection.service
        stamp = service.stamp
        if unusual is not None:
            if unusual.closes:
                self.keeps_alive = False
            if unusual.has_date or unusual.has_server:
                date, server, _ = stamp.split(b"\r\n")
                stamp = b"" if unusual.has_date else date + b"\r\n"
                if not unusual.has_server:
                    stamp += server + b"\r\n"
        framing = b""
        if request.method == "HEAD" or status in _BODILESS:
            self._is_head_only = True
            # RFC 9110 §8.6: none with 204; with 304 and HEAD as for a GET.
            if status == 204:
                lines = without_length(lines)
            elif length is None and total and status != 304:
                length = total
                framing = _LENGTH_LINE % total
        elif length is not None:
            self._expected = length
        elif total is not None:
            framing = _LENGTH_LINE % total
        elif request.http_version == "1.1":
            self._is_chunked = True
            framing = b"transfer-encoding: chunked\r\n"
        else:
            self.keeps_alive = False
        if service.is_stopping or (
            not self.is_body_complete
            # The application may read on while it streams, but asks for no body now.
            and (total is not None or self._wants_continue)
            and not self._is_drainable()
        ):
            self.keeps_alive = False
        if not self.keeps_alive:
            framing += b"connection: close\r\n"
        elif request.http_version == "1.0":
            framing += b"connection: keep-alive\r\n"
        size = len(body)
        if total == size and (length is None or length == size):
            # The whole of it, as most answers are.
            if self._is_head_only:
                body = b""
                size = 0
            self._expected = None
            self.sent_bytes = size
            connection.transport.write(
                b"".join((STATUS_LINES[status], lines, stamp, framing, b"\r\n", body))
            )
            if self.is_half_closed:
                connection.extend_half_close()
            self._complete()
        else:
            head = b"".join((STATUS_LINES[status], lines, stamp, framing, b"\r\n"))
            self._write_piece(body, is_last, head)

    def _write_piece(self, body: bytes, is_last: bool, head: bytes = b"") -> None:
        """Write a piece of the body, behind the head if there is one."""
        connection = self.connection
        expected = self._expected
        excess = 0
        if self._is_head_only:
            body = b""
        elif expected is not None:
            excess = len(body) - expected
            if excess > 0:
                body = body[:expected]
            expected = self._expected = expected - len(body)
        self.sent_bytes += len(body)
        if self._is_chunked:
            end = b"0\r\n\r\n" if is_last else b""
            if body:
                body = b"".join((head, b"%x\r\n" % len(body), body, b"\r\n", end))
            else:
                body = head + end
        elif head:
            if len(body) <= _JOIN_BYTES:
                body = head + body
            else:
                connection.transport.write(head)
        if body:
            connection.transport.write(body)
        if self.is_half_closed:
            connection.extend_half_close()
        if excess > 0:
            # The client has a whole answer; what was meant, nobody can tell.
            self.keeps_alive = False
            self._complete()
            raise LocalProtocolError(f"the body is {excess} bytes longer than its Content-Length")
        if is_last:
            if expected:
                raise Truncated(f"the body is {expected} bytes short of its Content-Length")
            self._complete()

    @property
    def awaits_continue(self) -> bool:
        """Whether the client may be waiting for our 100, not asked for by the application yet."""
        return self._wants_continue and not self.received_bytes

    def _is_drainable(self) -> bool:
        """Tell whether the rest of an unread body is little enough to read away."""
        if self.is_body_complete:
            return True
        if self.awaits_continue:
            # RFC 9110 §10.1.1: without our 100 the client may send the body or not.
            return False
        length = self.request.content_length
        if length == CHUNKED:
            return True
        return length - self.received_bytes <= self.connection.service.limits.drain

    def _complete(self) -> None:
        self.is_complete = True
        if self._body:
            self._body = []
            self._body_buffered = 0
        if self._waiters is not None:
            self._wake()
        if self.connection.service.access_log is not None:
            self._log(self._status)
        self.connection.exchange_answered(self)

    # What ends an exchange otherwise

    async def run(self, scope: Scope) -> None:
        """Call the application and see to it that the client gets an answer."""
        running = self.connection.service.running
        running.add(self)
        try:
            await self.connection.service.app(scope, self.receive, self.send)
            if self._is_file_due:
                await self._send_file()
            if not self.is_complete and not self.is_departed:
                if not self.is_started:
                    raise InternalError("the application returned without a response")
                raise Truncated("the application returned in the middle of its response")
        except Exception as error:
            self._fail(error)
        except asyncio.CancelledError:
            task = self.task
            if task is None or not task.cancelling():
                self._fail(InternalError("the application let a cancellation of its own out"))
            else:
                if not self.is_complete:
                    self.connection.abort()
                raise
        except BaseException as error:
            # SystemExit, KeyboardInterrupt, a group with a cancellation in it: whatever
            # an application raises ends its request, and nothing else.
            self._fail(InternalError(f"the application raised {error!r}"))
        finally:
            running.discard(self)
            if isinstance(self._file, SentFile):
                self._file.close()
            if self.is_departed and not self.is_complete:
                self._log(self._status if self.is_started else CLIENT_LEFT)

    def _fail(self, error: Exception) -> None:
        if isinstance(error, ClientLeft | ClientDisconnected):
            if not self.is_complete and not self.is_departed:
                self.connection.abort()
            return
        if self.is_departed:
            # Whatever it is, nobody waits for it any more: worth a line, no alarm.
            if not isinstance(error, OSError | Truncated):
                request = self.request
                logger.info(
                    "%s %r (%s): after the client had left: %r",
                    request.method,
                    request.target[:200],
                    self.backend,
                    error,
                )
            return
        self.reject(error)

    def reject(self, error: Exception) -> None:
        """Answer with the status that ``error`` stands for, or cut the connection.

        After the head only the second is possible: the client must never take
        half an answer for a whole one.
        """
        status, retry_after_s = exception_status(error)
        request_id = self.connection.service.next_request_id()
        self._log_failure(error, status, request_id)
        if self.connection.transport.is_closing() and not self.is_complete:
            # A write has failed; `connection_lost` is on its way.
            self.depart()
        if self.is_complete or self.is_departed:
            return
        if self.is_started:
            self._log(self._status)
            self.is_complete = True
            self.connection.truncate()
            return
        accept = next((v for name, v in self.request.fields if name == b"accept"), None)
        fields, body = error_response(status, accept=accept, request_id=request_id)
        if retry_after_s is not None:
            fields = [*fields, (b"retry-after", b"%d" % retry_after_s)]
        self._fields = examine(fields)
        self._status = status
        if status in _CLOSING_STATUSES or not self._is_drainable():
            self.keeps_alive = False
        self._write_first(body, len(body), True)

    def _log_failure(self, error: Exception, status: int, request_id: str) -> None:
        service = self.connection.service
        if isinstance(error, Unavailable) and not service.refusals.note(
            self.backend, error, service.now
        ):
            return  # counted: in an outage there are thousands
        request = self.request
        what = (request_id, request.method, request.target[:200], self.backend)
        if isinstance(error, Truncated):
            logger.error("[%s] %s %r (%s): cut off: %s", *what, error)
        elif isinstance(error, BackendError | RemoteProtocolError):
            # What is the client's own doing is in the access log already.
            level = logging.ERROR if status >= 500 else logging.DEBUG
            logger.log(level, "[%s] %s %r (%s): %d: %s", *what, status, error)
        elif isinstance(error, ProtocolError):
            logger.error("[%s] %s %r (%s): the application: %s", *what, error)
        else:
            logger.error("[%s] %s %r (%s): the application raised", *what, exc_info=error)

    def time_out(self) -> None:
        """The application has not begun its answer in time."""
        self.reject(GatewayTimeout(f"no answer began within {self.first_byte_s:g} s"))
        if self.task is not None:
            self.task.cancel()

    def _log(self, status: int) -> None:
        access_log = self.connection.service.access_log
        if access_log is None:
            return
        access_log.record(
            client=self.connection.client_address,
            request=self.request,
            status=status,
            body_bytes=self.sent_bytes,
            duration_s=time.perf_counter() - self.began_at,
            backend=self.backend,
            user=self.user,
        )

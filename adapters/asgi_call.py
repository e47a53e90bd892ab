"""One call of an ASGI application: what it may ask for, and what it may say, and when.

ASGI specification, "HTTP & WebSocket Message Format" 2.3. The counterpart of
`tetrapylon.adapters.wsgi_call`, for the ways back from ASGI: a subclass brings the
request's body as it comes and takes the response as it is made, in whatever protocol;
the order of messages, the framing of the body and what becomes of failures are judged
here, once.

Everything happens on the event loop of the application.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections import deque
from http import HTTPStatus

from ..protocols.asgi import Application, Fields, Message, Scope
from ..protocols.errors import LocalProtocolError
from ..protocols.fields import HOP_BY_HOP, is_field_value, is_token, parse_content_length
from .errors import BackendError, InternalError
from .log_lines import escape

logger = logging.getLogger("tetrapylon.adapters.asgi")

# RFC 9110 §6.4.1
_NO_BODY = (204, 304)
# RFC 3875 §6.3.3: it would be the status of a CGI response, and PEP 3333 has none either.
_STATUS = b"status"
_FAILURE_CHARACTERS = 500
# After so much, others are let run, and departures seen, even if nothing made `send` wait.
_TURN_BYTES = 64 * 1024
_MESSAGE_BYTES = 64


def phrase(status: int) -> str:
    """Return the reason phrase of a status; there must be one, so others get one, too."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown Status"


def cgi_head(status: int, fields: Fields) -> bytes:
    """Return the head of a CGI response (RFC 3875 §6.2), with the empty line behind it."""
    # With Status, a Location without a host is the client's to follow, too (§6.2.2).
    lines = [b"Status: %d %b\r\n" % (status, phrase(status).encode())]
    lines += [b"%b: %b\r\n" % field for field in fields]
    return b"".join(lines) + b"\r\n"


def plain_answer(status: int) -> tuple[Fields, bytes]:
    """Return fields and body of an answer that says its status and nothing else."""
    body = f"{status} {phrase(status)}\n".encode()
    fields: Fields = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", b"%d" % len(body)),
    ]
    return fields, body


def summary(error: BaseException) -> str:
    """Return an application's failure in one line that is safe to log."""
    if isinstance(error, BackendError):
        return str(error)
    try:
        text = repr(error)
    except Exception:
        text = type(error).__name__
    return "the application raised " + escape(text[:_FAILURE_CHARACTERS].encode("utf-8", "replace"))


class Response:
    """The messages of a response, each judged as it comes.

    Hop-by-hop fields are left out: they would be about the web server's connection.
    """

    __slots__ = (
        "_has_no_body",
        "_is_head",
        "_length",
        "_promised",
        "fields",
        "is_complete",
        "status",
    )

    def __init__(self, method: str) -> None:
        self._is_head = method == "HEAD"
        self._has_no_body = self._is_head
        self._length = 0
        self._promised: int | None = None
        #: 0 until the application has started its response.
        self.status = 0
        self.fields: Fields = []
        self.is_complete = False

    def take(self, message: Message) -> bytes | None:
        """Return what the message adds to the body; ``None`` for one that starts the response.

        What comes after its end is ignored, as the specification has it. Raises
        `LocalProtocolError`, and changes nothing, for what may not be said, or not now.
        """
        if self.is_complete:
            return None
        kind = message["type"]
        if kind == "http.response.start":
            self._start(message)
            return None
        if kind != "http.response.body":
            # Extensions are not offered, so their messages are errors, too.
            raise LocalProtocolError(f"{kind!r} is no message of an HTTP response here")
        if not self.status:
            raise LocalProtocolError("'http.response.body' before 'http.response.start'")
        data = message.get("body", b"")
        if not isinstance(data, bytes):
            if not isinstance(data, bytearray | memoryview):
                raise LocalProtocolError(f"a body of {type(data).__name__}, not bytes")
            data = bytes(data)
        is_last = not message.get("more_body", False)
        if self._has_no_body:
            self.is_complete = is_last
            return b""
        length = self._length + len(data)
        promised = self._promised
        if promised is not None and (length > promised or (is_last and length < promised)):
            raise LocalProtocolError(
                f"a body of {length} bytes{'' if is_last else ' or more'},"
                f" where Content-Length says {promised}"
            )
        self._length = length
        self.is_complete = is_last
        return data

    def _start(self, message: Message) -> None:
        if self.status:
            raise LocalProtocolError("a second 'http.response.start'")
        status = message["status"]
        if not isinstance(status, int) or not 200 <= status <= 999:
            raise LocalProtocolError(f"{status!r} is not the status of a response")
        fields: Fields = []
        promised: int | None = None
        for name, value in message.get("headers", ()):
            # As the specification has them; some applications forget.
            name, value = bytes(name).lower(), bytes(value).strip(b" \t")
            if not is_token(name) or not is_field_value(value):
                raise LocalProtocolError(f"{name!r}: {value!r} is not a header")
            if name in HOP_BY_HOP or name == _STATUS:
                continue
            if name == b"content-length":
                if promised is not None:
                    raise LocalProtocolError("two Content-Length headers")
                try:
                    promised = parse_content_length(value)
                except ValueError as error:
                    raise LocalProtocolError(str(error)) from None
                if status == 204:
                    continue  # RFC 9110 §8.6
            fields.append((name, value))
        self._promised = promised
        self._has_no_body = self._is_head or status in _NO_BODY
        self.fields = fields
        self.status = status


class AsgiCall(ABC):
    """The ``receive`` and ``send`` of one request.

    ``body_bytes`` is how long the request's body is, ``None`` if only its end will tell.
    """

    __slots__ = (
        "_app",
        "_has_news",
        "_is_end_told",
        "_is_hung_up",
        "_missing",
        "_pieces",
        "_turn_bytes",
        "held_bytes",
        "is_body_complete",
        "is_departed",
        "response",
        "scope",
    )

    def __init__(self, app: Application, scope: Scope, body_bytes: int | None) -> None:
        self._app = app
        self.scope = scope
        self.response = Response(scope["method"])
        self._pieces: deque[bytes] = deque()
        self._missing = body_bytes
        #: Of the body, received and not yet taken.
        self.held_bytes = 0
        self.is_body_complete = body_bytes == 0
        self._is_end_told = False
        self._is_hung_up = False
        #: Nobody will take what is still to come.
        self.is_departed = False
        self._has_news: asyncio.Event | None = None
        self._turn_bytes = 0

    # For the subclass to do

    @abstractmethod
    def want_body(self) -> None:
        """Have more of the body come; asked whenever the application waits for it."""

    @abstractmethod
    async def put(self, data: bytes, *, is_last: bool) -> None:
        """Take the next bytes of the response's body, and wait while there are too many.

        The first time the head is in `response`, complete.
        """

    @abstractmethod
    async def fail(self, error: BaseException) -> None:
        """Answer as well as it still goes: there is no (whole) response of the application's."""

    def report(self, error: BaseException) -> None:
        """Log a failure of the application."""
        logger.error("%s %r failed", self.scope["method"], self.scope["path"], exc_info=error)

    # For whoever brings the request

    def feed(self, data: bytes) -> None:
        """Take a piece of the body, of one byte or more."""
        if self._missing is not None:
            if len(data) > self._missing:
                # FastCGI Specification 1.0, section 6.2: whoever updates, aborts then.
                self.hang_up()
                return
            self._missing -= len(data)
        self._pieces.append(data)
        self.held_bytes += len(data)
        self.wake()

    def feed_end(self) -> None:
        """Take note that the body has ended; if that is too early, its client has left."""
        if self._missing:
            self.hang_up()
            return
        self.is_body_complete = True
        self.wake()

    def hang_up(self) -> None:
        """Take note that the client sends no more: `receive` tells it."""
        self._is_hung_up = True
        self.wake()

    def leave(self) -> None:
        """Take note that the client is gone: `send` raises, too."""
        self.is_departed = True
        self.hang_up()

    def wake(self) -> None:
        """Have those that wait look again."""
        if self._has_news is not None:
            self._has_news.set()

    async def news(self) -> None:
        """Wait until something may have changed."""
        if self._has_news is None:
            self._has_news = asyncio.Event()
        self._has_news.clear()
        await self._has_news.wait()

    # For the application

    async def run(self) -> None:
        """Call the application and see to its answer; raises only if it is cancelled."""
        error: BaseException | None = None
        try:
            await self._app(self.scope, self.receive, self.send)
        except asyncio.CancelledError:
            if not (self.response.is_complete or self.is_departed):
                await self.fail(InternalError("the application was cancelled"))
            raise
        except BaseException as raised:
            # SystemExit too: out of a task it would end the event loop in mid-flight.
            error = raised
        if self.is_departed:
            if error is not None and not _is_of_departure(error):
                logger.info("after its client had left, the application raised %r", error)
        elif self.response.is_complete:
            if error is not None:
                logger.error("the application raised after its response", exc_info=error)
        else:
            if error is None:
                what = "before the end of its response" if self.response.status else "no response"
                failure: BaseException = InternalError(f"the application returned: {what}")
                # One that was told of its client's departure may well have nothing to say.
                is_wrong = not self._is_hung_up
            else:
                failure, is_wrong = error, True
            if is_wrong:
                self.report(failure)
            await self.fail(failure)

    async def receive(self) -> Message:
        """Return the next piece of the body, or wait until the client leaves."""
        while True:
            if self.response.is_complete:
                return {"type": "http.disconnect"}
            if self._pieces:
                data = self._pieces.popleft()
                self.held_bytes -= len(data)
                is_end = not self._pieces and (self.is_body_complete or self._missing == 0)
                self._is_end_told = is_end
                return {"type": "http.request", "body": data, "more_body": not is_end}
            if self.is_body_complete and not self._is_end_told:
                self._is_end_told = True
                return {"type": "http.request", "body": b"", "more_body": False}
            if self._is_hung_up:
                return {"type": "http.disconnect"}
            if not self._is_end_told:
                self.want_body()
            await self.news()

    async def send(self, message: Message) -> None:
        """Take the next message of the response; wait while the client reads slowly.

        Raises `OSError` when the client has left, `LocalProtocolError` for what ASGI
        does not allow.
        """
        if self.is_departed and not self.response.is_complete:
            raise BrokenPipeError("the client has left")
        data = self.response.take(message)
        # The head alone is not to be sent before something of the body is there.
        if data is not None:
            is_last = self.response.is_complete
            await self.put(data, is_last=is_last)
            if is_last:
                self.wake()
                return
            self._turn_bytes += len(data) + _MESSAGE_BYTES
            if self._turn_bytes > _TURN_BYTES:
                self._turn_bytes = 0
                await asyncio.sleep(0)


def _is_of_departure(error: BaseException) -> bool:
    """Tell whether the exception is what `AsgiCall.send` raised, in however many groups."""
    if isinstance(error, BaseExceptionGroup):
        return error.split(OSError)[1] is None
    return isinstance(error, OSError)

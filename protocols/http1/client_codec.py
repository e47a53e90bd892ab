"""The client side of an HTTP/1.1 exchange without I/O: a request's head out, a response in.

One `ClientCodec` reads the response to one request (RFC 9112 sections 4 and 6).
It judges heads and chunks as the server side does (`strictness`, `chunked`): what
could be read in two ways is an error, for the bytes behind it may be another
client's answer. It needs no engine: a head is a few lines, and taken apart here
in a fifth of the time that h11 takes, which is its reference in the tests.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from typing import Literal, NamedTuple

from ..asgi import Fields
from ..errors import LocalProtocolError, RemoteProtocolError
from . import strictness
from .chunked import ChunkedDecoder
from .codec import NEED_DATA, _NeedData
from .events import CHUNKED, END_WITHOUT_TRAILERS, Data, EndOfMessage
from .response import has_no_body

#: `Response.content_length` of a body that the end of the connection ends.
UNTIL_CLOSE = -2

_CHUNK_LINE_BYTES = 256
_TRAILERS_BYTES = 4 * 1024
# Nobody has so much to hint at; without a limit they could go on for ever.
_INTERIM_RESPONSES = 32

# RFC 9112 §4: status-line = HTTP-version SP status-code SP [ reason-phrase ].
# Many servers leave out the second space together with the phrase.
_STATUS_LINE = re.compile(rb"HTTP/1\.([0-9]) ([1-9][0-9]{2})(?: [\t\x20-\x7e\x80-\xff]*)?\Z")
# RFC 9112 §3.2, in visible ASCII as the server side takes it
_TARGET = re.compile(rb"[\x21\x22\x24-\x7e]+\Z")
_METHOD = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+\Z")


class Response(NamedTuple):
    """A final response's head. ``fields`` have lower-case names, framing included.

    ``content_length`` counts the bytes that follow, 0 for none; `CHUNKED` or
    `UNTIL_CLOSE` where that is not known. ``keeps_alive``: the upstream will
    take another request on this connection.
    """

    status: int
    fields: Fields
    content_length: int
    keeps_alive: bool


Event = Response | Data | EndOfMessage | Literal[_NeedData.NEED_DATA]


def connection_options(fields: Fields) -> set[bytes]:
    """Return the options of all Connection fields, in lower case (RFC 9110 section 7.6.1)."""
    return {
        option.strip(b" \t").lower()
        for name, value in fields
        if name == b"connection"
        for option in value.split(b",")
    }


def encode_request_head(
    method: bytes, target: bytes, fields: Iterable[tuple[bytes, bytes]]
) -> bytes:
    """Write a request's head.

    Raises `LocalProtocolError` for what would not be read as it was meant.
    """
    if not _METHOD.match(method) or not _TARGET.match(target):
        raise LocalProtocolError(f"cannot be put in a request line: {method!r} {target[:80]!r}")
    lines = [name + b": " + value for name, value in fields]
    head = b"\r\n".join((method + b" " + target + b" HTTP/1.1", *lines, b"", b""))
    # One look at the whole instead of one at each field.
    ends = len(lines) + 2
    if head.count(b"\n") != ends or head.count(b"\r") != ends or b"\0" in head:
        raise LocalProtocolError("CR, LF or NUL in a request field")
    return head


class ClientCodec:
    """Reads the response to a request with ``method``; interim responses are passed over."""

    __slots__ = (
        "_buffer",
        "_chunked",
        "_head_limit",
        "_interim_responses",
        "_is_eof",
        "_method",
        "_remaining",
        "_searched",
        "is_complete",
    )

    def __init__(self, method: str, *, head_limit_bytes: int = 64 * 1024) -> None:
        self._method = method
        self._head_limit = head_limit_bytes
        self._interim_responses = 0
        self._buffer = b""
        #: How far the buffer holds no end of a head.
        self._searched = 0
        #: Bytes of the body still to come; None before the head.
        self._remaining: int | None = None
        self._chunked: ChunkedDecoder | None = None
        self._is_eof = False
        #: The response has been read to its end.
        self.is_complete = False

    @property
    def has_excess(self) -> bool:
        """More came than the response: nobody asked for it, so it belongs to nobody."""
        return self.is_complete and bool(self._buffer)

    def receive_data(self, data: bytes) -> None:
        """Take bytes from the upstream; ``b""`` means end of stream."""
        if not data:
            self._is_eof = True
        self._buffer = self._buffer + data if self._buffer else data

    def next_event(self) -> Event:
        """Return the next event, or `NEED_DATA`.

        Raises `RemoteProtocolError` (502), also for a stream that ends too soon.
        """
        try:
            if self._remaining is None:
                event = self._next_response()
            else:
                event = self._next_of_body(self._remaining)
        except RemoteProtocolError as error:
            error.status_hint = 502
            raise
        if event is NEED_DATA and self._is_eof:
            raise strictness.refuse("the connection ended within the response", 502)
        return event

    def _next_response(self) -> Event:
        while True:
            buffer = self._buffer
            end = buffer.find(b"\r\n\r\n", max(0, self._searched - 3))
            if (end if end >= 0 else len(buffer)) > self._head_limit:
                raise strictness.refuse("response head over its limit")
            if end < 0:
                self._searched = len(buffer)
                # What cannot become a head need not be waited for.
                if not b"HTTP/1.".startswith(buffer[:7]):
                    raise strictness.refuse(f"not an HTTP/1 response: {buffer[:40]!r}")
                return NEED_DATA
            status_line, _, lines = buffer[: end + 2].partition(b"\r\n")
            match = _STATUS_LINE.match(status_line)
            if match is None:
                raise strictness.refuse(f"malformed status line {status_line[:80]!r}")
            fields = [(name.lower(), value) for name, value in strictness.field_lines(lines)]
            self._buffer = buffer[end + 4 :]
            self._searched = 0
            status = int(match[2])
            if status == 101:
                raise strictness.refuse("101 to a request that asked for no upgrade")
            if status >= 200:
                return self._begin(status, match[1] != b"0", fields)
            self._interim_responses += 1
            if self._interim_responses > _INTERIM_RESPONSES:
                raise strictness.refuse("interim responses without an end")

    def _begin(self, status: int, is_http11: bool, fields: Fields) -> Response:
        """Find out how the body is framed (RFC 9112 section 6.3)."""
        length: int | None = None
        coding: bytes | None = None
        for name, value in fields:
            if name == b"content-length":
                if length is not None:
                    raise strictness.refuse("more than one Content-Length field")
                length = strictness.content_length(value)
            elif name == b"transfer-encoding":
                if coding is not None:
                    raise strictness.refuse("more than one Transfer-Encoding field")
                coding = value
        if coding is not None:
            if length is not None:
                raise strictness.refuse("Content-Length and Transfer-Encoding in one response")
            if coding.lower() != b"chunked" or not is_http11:
                raise strictness.refuse(f"transfer coding {coding[:40]!r} is not spoken here")
            length = CHUNKED
        if self._method == "HEAD" or has_no_body(status):
            length = 0
        elif length is None:
            length = UNTIL_CLOSE
        if length == CHUNKED:
            self._chunked = ChunkedDecoder(
                line_limit=_CHUNK_LINE_BYTES,
                # Small chunks are an application's right, and cost no memory.
                overhead_limit=sys.maxsize,
                trailer_limit=_TRAILERS_BYTES,
            )
        self._remaining = length
        options = connection_options(fields)
        keeps_alive = length != UNTIL_CLOSE and (
            b"close" not in options if is_http11 else b"keep-alive" in options
        )
        return Response(status, fields, length, keeps_alive)

    def _next_of_body(self, remaining: int) -> Event:
        buffer = self._buffer
        if self._chunked is not None:
            data, at = self._chunked.decode(buffer, 0)
            self._buffer = buffer[at:]
            if data:
                return Data(data)
            if not self._chunked.is_done:
                return NEED_DATA
            self.is_complete = True
            return EndOfMessage(self._chunked.trailers)
        if remaining == UNTIL_CLOSE:
            if buffer:
                self._buffer = b""
                return Data(buffer)
            if not self._is_eof:
                return NEED_DATA
        elif remaining:
            if not buffer:
                return NEED_DATA
            data = buffer[:remaining]
            self._buffer = buffer[remaining:]
            self._remaining = remaining - len(data)
            return Data(data)
        self.is_complete = True
        return END_WITHOUT_TRAILERS

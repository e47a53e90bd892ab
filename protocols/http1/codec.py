"""The server side of an HTTP/1.1 connection without I/O.

`ServerCodec` finds where a head ends and how its body is framed; an engine
(`_parse_fields`) takes the head apart; `strictness` judges it. A message is read
only when the one before it has been taken (`next_event`): whatever a client
pipelines stays as bytes until then.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final, Literal

from ..asgi import Fields
from . import strictness
from .chunked import ChunkedDecoder
from .events import CHUNKED, END_WITHOUT_TRAILERS, Data, EndOfMessage, Request


class _NeedData(Enum):
    NEED_DATA = "NEED_DATA"


#: `ServerCodec.next_event` has nothing before more bytes come.
NEED_DATA: Final = _NeedData.NEED_DATA
Event = Request | Data | EndOfMessage | Literal[_NeedData.NEED_DATA]


@dataclass(frozen=True, slots=True)
class Http1Limits:
    """How much of a message is read before it is refused; bytes, but for the count."""

    request_line: int = 8 * 1024
    headers: int = 32 * 1024
    header_count: int = 100
    chunk_line: int = 256
    chunk_overhead: int = 64 * 1024
    trailers: int = 4 * 1024
    refuses_odd_names: bool = False


DEFAULT_LIMITS = Http1Limits()
# Larger blocks of fields are not worth the memory of a connection that idles.
_REMEMBERED_BYTES = 1024


class ServerCodec:
    """Reads requests from a connection's bytes. Subclasses are the engines."""

    __slots__ = (
        "_chunked",
        "_last_block",
        "_last_examined",
        "_last_method",
        "_last_version",
        "_limits",
        "_remaining",
        "_searched",
        "at",
        "buffer",
        "dropped_fields",
        "is_eof",
    )

    def __init__(self, limits: Http1Limits = DEFAULT_LIMITS) -> None:
        self._limits = limits
        #: What was received; events have been made of all before ``at``.
        self.buffer = b""
        self.at = 0
        #: How far the buffer holds no end of a head.
        self._searched = 0
        #: Bytes of the body still to come; -1 between messages.
        self._remaining = -1
        self._chunked: ChunkedDecoder | None = None
        self._last_block = b""
        self._last_method = ""
        self._last_version = ""
        self._last_examined: strictness.Examined | None = None
        #: How many fields were left out for their names, of all requests so far.
        self.dropped_fields = 0
        self.is_eof = False

    @property
    def buffered_bytes(self) -> int:
        """Bytes received and not yet given out as events."""
        return len(self.buffer) - self.at

    def receive_data(self, data: bytes) -> None:
        """Take bytes from the client; ``b""`` means end of stream."""
        if not data:
            self.is_eof = True
        elif self.at >= len(self.buffer):
            self.buffer = data
            self.at = self._searched = 0
        else:
            self.buffer = self.buffer[self.at :] + data
            self._searched -= self.at
            self.at = 0

    def next_event(self) -> Event:
        """Return the next event, or `NEED_DATA`.

        Raises `RemoteProtocolError` with a status hint; the connection is then
        to be answered with it and closed, and this codec is not called again.
        """
        remaining = self._remaining
        if remaining < 0 and self._chunked is None:
            return self._next_request()
        if remaining > 0:
            buffer, at = self.buffer, self.at
            have = len(buffer) - at
            if not have:
                return NEED_DATA
            if have > remaining:
                have = remaining
            data = buffer if have == len(buffer) else buffer[at : at + have]
            self.at = at + have
            self._remaining = remaining - have
            return Data(data)
        if self._chunked is not None:
            return self._next_of_chunked(self._chunked)
        self._remaining = -1
        return END_WITHOUT_TRAILERS

    def _next_of_chunked(self, decoder: ChunkedDecoder) -> Event:
        data, self.at = decoder.decode(self.buffer, self.at)
        if data:
            return Data(data)
        if not decoder.is_done:
            return NEED_DATA
        self._chunked = None
        self._searched = self.at
        return EndOfMessage(decoder.trailers) if decoder.trailers else END_WITHOUT_TRAILERS

    def _next_request(self) -> Event:
        buffer = self.buffer
        at = self.at
        searched = self._searched - 3
        end = buffer.find(b"\r\n\r\n", searched if searched > at else at)
        if buffer.startswith(b"\r\n", at):
            # RFC 9112 §2.2: an empty line before the request line is forgiven, once.
            at += 2
            end = buffer.find(b"\r\n\r\n", at)
        if end < 0:
            if at < len(buffer):
                self._check_begun(buffer, at)
            self._searched = len(buffer)
            return NEED_DATA
        line_end = buffer.find(b"\r\n", at)
        if line_end - at > self._limits.request_line:
            raise strictness.refuse("request line over its limit", 414)
        method, target, version = strictness.request_line(buffer[at:line_end])
        # The CRLF before the first field tells a folded line there.
        block = buffer[line_end : end + 4]
        # A kept connection repeats its fields more often than not. Engines do not know
        # every method, which is to be answered alike at each time.
        if (
            block == self._last_block
            and version == self._last_version
            and method == self._last_method
        ):
            examined = self._last_examined
            assert examined is not None, "a block goes with what it came to"
        else:
            examined = self._examine(buffer[at : end + 4], block, method, version)
        request = strictness.assemble(method, target, version, examined)
        self.at = self._searched = end + 4
        length = request.content_length
        if length:
            if length == CHUNKED:
                limits = self._limits
                self._chunked = ChunkedDecoder(
                    line_limit=limits.chunk_line,
                    overhead_limit=limits.chunk_overhead,
                    trailer_limit=limits.trailers,
                )
            else:
                self._remaining = length
        return request

    def _examine(self, head: bytes, block: bytes, method: str, version: str) -> strictness.Examined:
        limits = self._limits
        if len(block) > limits.headers:
            raise strictness.refuse("request fields over their limit", 431)
        strictness.check_head(block)
        raw_fields = self._parse_fields(head, method)
        if len(raw_fields) > limits.header_count:
            raise strictness.refuse("too many request fields", 431)
        examined = strictness.examine(
            version, raw_fields, refuses_odd_names=limits.refuses_odd_names
        )
        dropped = len(raw_fields) - len(examined.fields)
        if dropped:
            # Each of them counts: such a block is not remembered.
            self.dropped_fields += dropped
        elif len(block) <= _REMEMBERED_BYTES:
            self._last_block = block
            self._last_method = method
            self._last_version = version
            self._last_examined = examined
        return examined

    def _check_begun(self, buffer: bytes, at: int) -> None:
        """Refuse a head that is not complete and can never be a good one."""
        limits = self._limits
        line_end = buffer.find(b"\r\n", at)
        if (line_end if line_end >= 0 else len(buffer)) - at > limits.request_line:
            raise strictness.refuse("request line over its limit", 414)
        if line_end >= 0 and len(buffer) - line_end > limits.headers:
            raise strictness.refuse("request fields over their limit", 431)
        # From where it was judged before, or a head that comes byte by byte would cost
        # the square of its length. A line's end is judged whole.
        start = max(self._searched - 1, at)
        if start > at and buffer[start] == 0x0A:
            start -= 1
        strictness.check_head(buffer[start:])
        if line_end >= 0:
            strictness.request_line(buffer[at:line_end])
            if buffer.count(b"\n", at) > limits.header_count + 1:
                raise strictness.refuse("too many request fields", 431)

    def _parse_fields(self, head: bytes, method: str) -> Fields:
        """Take apart a head that `strictness.check_head` let through.

        Returns names as sent and values without white space around them.
        """
        raise NotImplementedError

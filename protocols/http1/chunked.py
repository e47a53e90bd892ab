"""The chunked transfer coding, taken off a request's body (RFC 9112 section 7.1).

Stricter than the grammar where leniency has been an attack: no white space
around a size, no lone CR or LF, at most sixteen digits, no control characters in
an extension. Framing bytes are counted against the body's: a client that sends
more frame than content is not talking HTTP to us (RELIABILITY: chunk overhead).
"""

from __future__ import annotations

import re

from ..asgi import Fields
from .strictness import field_lines, refuse

_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})(;[\t\x20-\x7e\x80-\xff]*)?\r\n")
# Any beginning of such a line: what does not match can never become one.
_LINE_BEGUN = re.compile(rb"(?:[0-9A-Fa-f]{1,16}(?:;[\t\x20-\x7e\x80-\xff]*)?\r?)?\Z")

_SIZE, _DATA, _DATA_END, _TRAILERS, _DONE = range(5)


class ChunkedDecoder:
    """Takes a chunked body off a buffer, piece by piece."""

    __slots__ = (
        "_allowance",
        "_line_limit",
        "_remaining",
        "_state",
        "_trailer_limit",
        "trailers",
    )

    def __init__(self, *, line_limit: int, overhead_limit: int, trailer_limit: int) -> None:
        self._state = _SIZE
        self._remaining = 0
        self._line_limit = line_limit
        self._trailer_limit = trailer_limit
        #: Framing bytes that may still come: a base, and one more per body byte.
        self._allowance = overhead_limit
        self.trailers: Fields = []

    @property
    def is_done(self) -> bool:
        """The last chunk and the trailer section have been read."""
        return self._state == _DONE

    def decode(self, buffer: bytes, at: int) -> tuple[bytes, int]:
        """Decode from ``buffer[at:]``; return body bytes and where to go on.

        Raises `RemoteProtocolError`: 400 for malformed framing or too much of
        it, 431 for trailers over their limit.
        """
        if self._state == _DONE:
            return b"", at  # what follows is the next message's
        parts: list[bytes] = []
        end = len(buffer)
        while True:
            if self._state == _DATA:
                piece = buffer[at : at + self._remaining]
                if piece:
                    parts.append(piece)
                    at += len(piece)
                    self._remaining -= len(piece)
                    self._allowance += len(piece)
                if self._remaining:
                    break
                self._state = _DATA_END
            if self._state == _DATA_END:
                mark = buffer[at : at + 2]
                if mark != b"\r\n":
                    if b"\r\n".startswith(mark):
                        break
                    raise refuse(f"chunk data ends in {mark!r}, not CRLF")
                at += 2
                self._spend(2)
                self._state = _SIZE
            if self._state == _SIZE:
                match = _LINE.match(buffer, at, at + self._line_limit + 2)
                if match is None:
                    line = buffer[at : at + self._line_limit + 2]
                    if len(line.rstrip(b"\r")) > self._line_limit or not _LINE_BEGUN.match(line):
                        raise refuse(f"malformed chunk line {line[:40]!r}")
                    break
                self._spend(match.end() - at)
                at = match.end()
                self._remaining = int(match[1], 16)
                self._state = _DATA if self._remaining else _TRAILERS
            if self._state == _TRAILERS:
                at = self._read_trailers(buffer, at)
                break
            if at >= end and self._state != _DATA_END:
                break
        return b"".join(parts) if len(parts) != 1 else parts[0], at

    def _spend(self, framing_bytes: int) -> None:
        self._allowance -= framing_bytes
        if self._allowance < 0:
            raise refuse("far more chunk framing than content")

    def _read_trailers(self, buffer: bytes, at: int) -> int:
        if buffer.startswith(b"\r\n", at):
            self._state = _DONE
            return at + 2
        end = buffer.find(b"\r\n\r\n", at)
        if (end if end >= 0 else len(buffer)) - at > self._trailer_limit:
            raise refuse("trailers over their limit", 431)
        if end < 0:
            begun = buffer[at:]
            field_begun = begun.rpartition(b"\r\n")[2]
            if begun not in (b"", b"\r"):
                field_lines(begun[: len(begun) - len(field_begun)])
                if b"\n" in field_begun or (
                    field_begun != b"\r" and field_begun[:1] in (b" ", b"\t", b"\r")
                ):
                    raise refuse(f"malformed trailer {field_begun[:40]!r}")
            return at
        self.trailers = [(name.lower(), value) for name, value in field_lines(buffer[at : end + 2])]
        self._state = _DONE
        return end + 4

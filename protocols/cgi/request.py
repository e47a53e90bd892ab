"""A request as bytes: a head of meta-variables, then CONTENT_LENGTH bytes of body.

The server's side of SCGI and uwsgi (`tetrapylon.protocols.scgi`, `.uwsgi`), which
differ in how a head is written; without I/O, and incremental.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from ..errors import LocalProtocolError, RemoteProtocolError
from .response import NEED_DATA, Data, EndOfMessage, _Signal

__all__ = ["NEED_DATA", "Data", "EndOfMessage", "Event", "RequestDecoder", "RequestHead"]

#: More variables than this nobody sends who means well.
HEAD_LIMIT_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class RequestHead:
    """The meta-variables, latin-1 strings that stand for bytes, and the length of the body."""

    variables: dict[str, str]
    content_length: int


Event: TypeAlias = RequestHead | Data | EndOfMessage | Literal[_Signal.NEED_DATA]


class RequestDecoder:
    """Turns the bytes of one request into events; a subclass knows the head's form.

    After a `RemoteProtocolError` it is of no more use.
    """

    def __init__(self) -> None:
        self._head: bytearray | None = bytearray()
        self._body = b""
        self._remaining = 0
        self._is_at_end = False
        self._is_done = False

    def receive_data(self, data: bytes) -> None:
        """Take bytes of the peer; ``b""`` says that it sends no more."""
        if not data:
            self._is_at_end = True
        elif self._is_at_end:
            raise LocalProtocolError("bytes after the end of the stream")
        elif self._head is not None:
            self._head += data
        else:
            self._body += data

    def next_event(self) -> Event:
        """Return the next event, or `NEED_DATA`; errors are `RemoteProtocolError`."""
        if self._head is not None:
            head = self._head
            taken = self._take_head(head)
            if taken is not None:
                event, size = taken
                self._body = bytes(head[size:])
                self._head = None
                self._remaining = event.content_length
                return event
        elif self._remaining:
            if self._body:
                data, self._body = self._body[: self._remaining], self._body[self._remaining :]
                self._remaining -= len(data)
                return Data(data)
        elif self._body:
            raise RemoteProtocolError(f"bytes after the request: {self._body[:40]!r}")
        elif not self._is_done:
            self._is_done = True
            return EndOfMessage()
        if self._is_at_end and not self._is_done:
            raise RemoteProtocolError("the request ends in its middle")
        return NEED_DATA

    def _take_head(self, head: bytearray) -> tuple[RequestHead, int] | None:
        """Return the head and how many bytes it is, or ``None`` if it is not complete."""
        raise NotImplementedError

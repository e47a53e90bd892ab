"""What a script writes that parses its header itself: a whole HTTP response (RFC 3875 section 5).

Such a script is known by its name, which begins with ``nph-`` (`is_nph`). The RFC has
its output sent on as it is, bytes and all; here it is read as any server's response
is, and gives the same events as other scripts' output (`response`). So the connection
stays ours: what the script says of it (Connection, Transfer-Encoding, …) is obeyed in
reading and then dropped, the next request finds its place, and a response that is
none is never sent (502).

Line ends of the head are CR LF or LF, as everywhere in CGI: half of all such scripts
write LF. Interim responses (1xx) are passed over.
"""

from __future__ import annotations

import re

from ..errors import LocalProtocolError, RemoteProtocolError
from ..fields import HOP_BY_HOP
from ..http1 import events as http
from ..http1.client_codec import ClientCodec, Response, connection_options
from .response import NEED_DATA, Data, EndOfMessage, Event, ResponseHead

_END_OF_HEAD = re.compile(rb"\n\r?\n")
# How much of the end may have come already: `\n\r` of `\n\r\n`.
_END_OF_HEAD_OVERLAP = 2


def is_nph(filename: str) -> bool:
    """Tell whether a script of this name writes whole HTTP responses."""
    return filename.rpartition("/")[2].startswith("nph-")


class NphResponseParser:
    """Turns the output of one run of such a script into events.

    ``method`` is the request's; ``head_limit_bytes`` bounds the head. Not an HTTP
    response, or not all of one: `next_event` raises `RemoteProtocolError` with
    ``status_hint`` 502.
    """

    def __init__(self, *, method: str = "GET", head_limit_bytes: int = 65536) -> None:
        self._codec = ClientCodec(method, head_limit_bytes=head_limit_bytes)
        self._head_limit_bytes = head_limit_bytes
        # None as soon as it has been read.
        self._head: bytearray | None = bytearray()
        self._scanned = 0
        self._is_at_end = False

    def receive_data(self, data: bytes) -> None:
        """Take output of the script; ``b""`` says that it has ended.

        Call `next_event` until it returns `NEED_DATA` before giving more.
        Raises `LocalProtocolError` for data after the end.
        """
        if not data:
            self._is_at_end = True
        elif self._is_at_end:
            raise LocalProtocolError("output of a script after its end")
        if self._head is not None:
            self._head += data
        elif not self._codec.is_complete:
            self._codec.receive_data(data)

    def next_event(self) -> Event:
        """Return the next event, or `NEED_DATA`."""
        if self._head is not None:
            return self._next_of_head(self._head)
        if self._codec.is_complete:
            return NEED_DATA
        event = self._codec.next_event()
        if isinstance(event, http.Data):
            return Data(event.data)
        # Trailers have no place where the framing is ours.
        return EndOfMessage() if isinstance(event, http.EndOfMessage) else NEED_DATA

    def _next_of_head(self, head: bytearray) -> Event:
        while True:
            match = _END_OF_HEAD.search(head, max(0, self._scanned - _END_OF_HEAD_OVERLAP))
            self._scanned = len(head)
            if match is None:
                if len(head) > self._head_limit_bytes:
                    raise _error(f"the head is larger than {self._head_limit_bytes} bytes")
                if self._is_at_end:
                    raise _error(f"no HTTP response: {bytes(head[:60])!r}" if head else "no output")
                return NEED_DATA
            lines = bytes(head[: match.end()]).replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
            del head[: match.end()]
            self._scanned = 0
            self._codec.receive_data(lines)
            try:
                response = self._codec.next_event()
            except RemoteProtocolError as error:
                raise _error(str(error)) from error
            if isinstance(response, Response):
                break
        self._head = None
        if head:
            self._codec.receive_data(bytes(head))
        if self._is_at_end:
            self._codec.receive_data(b"")
        return _head_of(response)


def _head_of(response: Response) -> ResponseHead:
    dropped = HOP_BY_HOP | connection_options(response.fields)
    fields = [field for field in response.fields if field[0] not in dropped]
    known = response.content_length >= 0
    return ResponseHead(response.status, b"", fields, response.content_length if known else None)


def _error(message: str) -> RemoteProtocolError:
    return RemoteProtocolError(f"the script's output: {message}", status_hint=502)

"""An ASGI application as an SCGI application.

SCGI: A Simple Common Gateway Interface alternative (2008-06-23). A connection carries one
request: a netstring of meta-variables, the body, and the answer as a CGI script writes it
(`tetrapylon.protocols.scgi`).

For asyncio and uvloop. Lost on this way: WebSocket, trailers, and whatever extensions of
ASGI there are; nor can the web server see that an answer without a length is not whole.
"""

from __future__ import annotations

import logging
from typing import Any

from ..protocols.cgi.request import NEED_DATA, Data, EndOfMessage, RequestHead
from ..protocols.errors import RemoteProtocolError
from ..protocols.scgi import ScgiRequestDecoder
from .asgi_call import AsgiCall, cgi_head, plain_answer
from .peer_connection import PeerConnection
from .responder import Responder

logger = logging.getLogger("tetrapylon.adapters.scgi")

_HEAD_LIMIT_BYTES = 256 * 1024
_SLICE_BYTES = 64 * 1024


class AsgiToScgi(Responder):
    """Serves the application as SCGI; all is as in `Responder`.

    Behind nginx, whose ``scgi_params`` name neither, the path is that of DOCUMENT_URI.
    """

    def connection(self) -> _Connection:
        """Return the protocol object of a new connection."""
        return _Connection(self)


class _Connection(PeerConnection):
    def __init__(self, responder: Responder) -> None:
        super().__init__(responder)
        self._decoder = ScgiRequestDecoder(head_limit_bytes=_HEAD_LIMIT_BYTES)
        self._call: _Call | None = None

    def calls(self) -> list[AsgiCall]:
        return [] if self._call is None else [self._call]

    def stop(self) -> None:
        if self._call is None:
            self.close(is_all_read=True)

    def received(self, data: bytes) -> None:
        decoder = self._decoder
        try:
            decoder.receive_data(data)
            while (event := decoder.next_event()) is not NEED_DATA:
                if isinstance(event, RequestHead):
                    self._begin(event)
                elif self._call is None:
                    return
                elif isinstance(event, Data):
                    self._call.feed(event.data)
                elif isinstance(event, EndOfMessage):
                    self._call.feed_end()
                if self.is_closing:
                    return
        except RemoteProtocolError as error:
            logger.info("%s: closing a connection: %s", self.responder.name, error)
            self.abort()
            return
        self.hold()

    def eof_received(self) -> bool:
        if self.is_closing or self._call is None or not self._call.is_body_complete:
            return False
        # A half-close perhaps: the answer is written as long as the socket takes it.
        self._call.hang_up()
        return True

    def _begin(self, head: RequestHead) -> None:
        try:
            scope, body_bytes = self.responder.scope(head.variables)
        except ValueError as error:
            logger.info("%s: a request that is none: %s", self.responder.name, error)
            self._refuse(400)
            return
        if self.responder.is_full:
            self._refuse(503)
            return
        self._call = _Call(self.responder.app, scope, body_bytes)
        self._call.connection = self
        self.unwatch_idle()
        self.responder.start(self._call)

    def _refuse(self, status: int) -> None:
        fields, body = plain_answer(status)
        self.transport.write(cgi_head(status, fields) + body)
        self.close(is_all_read=False)


class _Call(AsgiCall):
    __slots__ = ("_is_head_sent", "connection")

    connection: _Connection

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._is_head_sent = False

    def want_body(self) -> None:
        self.connection.hold()

    async def put(self, data: bytes, *, is_last: bool) -> None:
        connection = self.connection
        if not self._is_head_sent:
            self._is_head_sent = True
            data = cgi_head(self.response.status, self.response.fields) + data
        while data:
            connection.transport.write(data[:_SLICE_BYTES])
            data = data[_SLICE_BYTES:]
            if data or not is_last:
                await connection.drain(self)
        if is_last:
            connection.close(is_all_read=self.is_body_complete)

    async def fail(self, error: BaseException) -> None:
        if self._is_head_sent:
            self.connection.reset()
            return
        fields, body = plain_answer(500)
        if self.scope["method"] == "HEAD":
            body = b""
        self.connection.transport.write(cgi_head(500, fields) + body)
        self.connection.close(is_all_read=self.is_body_complete)

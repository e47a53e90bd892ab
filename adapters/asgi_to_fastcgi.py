"""An ASGI application as a FastCGI application.

FastCGI Specification 1.0, the Responder role (section 6.2), behind nginx, Apache's
mod_proxy_fcgi, lighttpd and whoever else speaks the protocol. Several connections, and
several requests on each, are answered at a time; what is said on them is for
`tetrapylon.protocols.fastcgi` to know, and the socket for `tetrapylon.adapters.responder`.

For asyncio and uvloop, in an event loop of its own or in one that runs already. Lost on
this way: WebSocket, trailers, and whatever extensions of ASGI there are.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Unpack

from ..protocols.asgi import Application
from ..protocols.errors import LocalProtocolError, RemoteProtocolError
from ..protocols.fastcgi import (
    NEED_DATA,
    AbortRequest,
    BeginRequest,
    Connection,
    ConnectionClosed,
    EndRequest,
    Event,
    GetValues,
    GetValuesResult,
    Params,
    ProtocolStatus,
    Refusal,
    Role,
    Side,
    Stderr,
    Stdin,
    Stdout,
    UnknownManagement,
    UnknownType,
)
from .asgi_call import AsgiCall, cgi_head, plain_answer, summary
from .peer_connection import PeerConnection
from .responder import Responder, ResponderOptions

logger = logging.getLogger("tetrapylon.adapters.fastcgi")

_PARAMS_LIMIT_BYTES = 256 * 1024
# So much is put into the buffer of a connection before it is looked at again.
_SLICE_BYTES = 64 * 1024
# nginx takes the end of a connection for the end of an answer; a header of version 0 it
# takes for an error, as others do the missing end.
_NO_RECORD = bytes(8)


class AsgiToFastCgi(Responder):
    """Serves the application as FastCGI.

    >>> AsgiToFastCgi(app, bind="unix:/run/app.sock").run()  # doctest: +SKIP

    What is not said here is as in `Responder`. On one connection ``multiplex`` requests
    may run at a time; web servers that ask (FCGI_GET_VALUES) are told. A role other than
    Responder is refused.

    A failure of the application is answered with 500, or, when its head has been sent, by
    closing the connection; the log has the whole of it, the web server's error log one line.
    """

    def __init__(
        self, app: Application, *, multiplex: int = 16, **options: Unpack[ResponderOptions]
    ) -> None:
        super().__init__(app, **options)
        self.multiplex = multiplex

    def connection(self) -> _Connection:
        """Return the protocol object of a new connection."""
        return _Connection(self)

    def values(self) -> dict[str, str]:
        """Return the variables that FCGI_GET_VALUES may ask for (section 4.1)."""
        return {
            "FCGI_MAX_CONNS": str(self.connections_limit),
            "FCGI_MAX_REQS": str(self.requests_limit),
            "FCGI_MPXS_CONNS": "1" if self.multiplex > 1 else "0",
        }


class _Connection(PeerConnection):
    responder: AsgiToFastCgi

    def __init__(self, responder: AsgiToFastCgi) -> None:
        super().__init__(responder)
        self._codec = Connection(
            Side.RESPONDER,
            max_requests=responder.multiplex,
            params_limit_bytes=_PARAMS_LIMIT_BYTES,
        )
        self._calls: dict[int, _Call] = {}
        # To be closed when no request is active any more (section 5.1), and whether all
        # of the last one's STDIN had come.
        self._is_last = False
        self._is_all_read = True

    def calls(self) -> list[AsgiCall]:
        return list(self._calls.values())

    def stop(self) -> None:
        self._is_last = True
        if not self._codec.active_requests:
            self.close(is_all_read=True)

    def received(self, data: bytes) -> None:
        codec = self._codec
        codec.receive_data(data)
        try:
            while (event := codec.next_event()) is not NEED_DATA:
                self._handle(event)
                if self.is_closing:
                    return
        except RemoteProtocolError as error:
            logger.info("%s: closing a connection: %s", self.responder.name, error)
            self.abort()
            return
        self.hold()

    def eof_received(self) -> None:
        if not self.is_closing:
            self.received(b"")

    def _handle(self, event: Event) -> None:
        match event:
            case Stdin(request_id, data):
                if (call := self._calls.get(request_id)) is None:
                    return
                if data:
                    call.feed(data)
                else:
                    call.feed_end()
            case BeginRequest(request_id, role, keep_conn):
                self._is_last = self._is_last or not keep_conn
                if role is not Role.RESPONDER:
                    self._end(request_id, ProtocolStatus.UNKNOWN_ROLE)
                elif self.responder.is_full:
                    self._end(request_id, ProtocolStatus.OVERLOADED)
            case Params(request_id, params):
                self._begin(request_id, params)
            case AbortRequest(request_id):
                if (call := self._calls.get(request_id)) is not None:
                    call.leave()
                self._end(request_id)
            case GetValues(names):
                known = self.responder.values()
                values = {name: known[name] for name in names if name in known}
                self._write(GetValuesResult(values))
            case UnknownManagement(type_):
                self._write(UnknownType(type_))
            case Refusal(request_id, status):
                self._is_last = self._is_last or not self._codec.active_requests
                self._end(request_id, status)
            case ConnectionClosed():
                for call in self._calls.values():
                    call.leave()

    def _begin(self, request_id: int, params: Mapping[str, str]) -> None:
        try:
            scope, body_bytes = self.responder.scope(params)
        except ValueError as error:
            logger.info("%s: a request that is none: %s", self.responder.name, error)
            fields, body = plain_answer(400)
            self._write(Stdout(request_id, cgi_head(400, fields) + body))
            self._end(request_id)
            return
        call = _Call(self.responder.app, scope, body_bytes)
        call.connection = self
        call.request_id = request_id
        self._calls[request_id] = call
        self.unwatch_idle()
        self.responder.start(call)

    # For the calls

    def _write(self, *events: Event) -> None:
        send = self._codec.send
        self.transport.write(b"".join([send(event) for event in events]))

    def write(self, call: _Call, data: bytes) -> None:
        """Send a piece of the output."""
        if data:
            self._write(Stdout(call.request_id, data))

    def finish(self, call: _Call, data: bytes, *, error: str = "") -> None:
        """Send the last piece of the output and the end, of a failure with one line."""
        request_id = call.request_id
        events: list[Event] = [Stdout(request_id, data)] if data else []
        events.append(Stdout(request_id, b""))
        if error:
            events += (Stderr(request_id, error.encode() + b"\n"), Stderr(request_id, b""))
        self._write(*events)
        self._end(request_id, app_status=1 if error else 0)

    def cut(self, call: _Call, error: str) -> None:
        """Have the web server see that the output is not whole."""
        if self._codec.active_requests > 1:
            # Others are on their way: it has to make do with the application's status.
            self.finish(call, b"", error=error)
            return
        self._write(Stderr(call.request_id, error.encode() + b"\n"))
        self.transport.write(_NO_RECORD)
        self._forget(call.request_id)
        self.close(is_all_read=False)

    def _end(
        self,
        request_id: int,
        status: ProtocolStatus = ProtocolStatus.REQUEST_COMPLETE,
        *,
        app_status: int = 0,
    ) -> None:
        self._write(EndRequest(request_id, app_status, status))
        self._forget(request_id)

    def _forget(self, request_id: int) -> None:
        call = self._calls.pop(request_id, None)
        self._is_all_read = call is not None and call.is_body_complete
        if self._codec.active_requests:
            return
        if self._is_last:
            self.close(is_all_read=self._is_all_read)
        else:
            self.watch_idle()
            self.hold()


class _Call(AsgiCall):
    __slots__ = ("_is_head_sent", "connection", "request_id")

    connection: _Connection
    request_id: int

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
        while len(data) > _SLICE_BYTES:
            connection.write(self, data[:_SLICE_BYTES])
            data = data[_SLICE_BYTES:]
            await connection.drain(self)
        if is_last:
            connection.finish(self, data)
        else:
            connection.write(self, data)
            await connection.drain(self)

    async def fail(self, error: BaseException) -> None:
        try:
            if self._is_head_sent:
                self.connection.cut(self, summary(error))
            else:
                fields, body = plain_answer(500)
                if self.scope["method"] == "HEAD":
                    body = b""
                self.connection.finish(self, cgi_head(500, fields) + body, error=summary(error))
        except LocalProtocolError:
            logger.debug("%r: nobody waits for an answer any more", self.scope["path"])

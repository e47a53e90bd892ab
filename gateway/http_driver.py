"""A connection: bytes of a client ↔ one ASGI call per request.

The event loop calls this protocol object; it feeds the codec, opens an
`Exchange` for each request and starts one task for it. Nothing else is made per
request: no timer, no queue, no closure. Requests are answered one after another;
what a client pipelines waits as bytes in the codec, bounded by
``limits.read_ahead``, and reading goes on meanwhile so that a departure is seen.

Leaving has two forms (docs/architecture.md, "Half-close and leaving"): EOF behind
a complete request may be a half-close, and the answer is still written; a reset,
a failed write or EOF inside a request is a departure.
"""

from __future__ import annotations

import asyncio
import functools
import math
import socket
import struct
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from ..adapters.errors import BackendError
from ..protocols.asgi import GATEWAY_EXTENSION, VERSIONS, Scope
from ..protocols.errors import RemoteProtocolError
from ..protocols.http1 import NEED_DATA, Data, Request
from ..protocols.http1.response import STATUS_LINES, ResponseFields
from .errors import error_response
from .exchange import Exchange
from .exchange import logger as exchange_logger
from .paths import NOT_PLAIN, normalise

if TYPE_CHECKING:
    from .service import Service

_NEVER = math.inf
_LEAST_READ_BYTES = 4 * 1024
_REMEMBERED_BYTES = 1024
# What a connection waits for; decides what a passed deadline means.
_NOTHING, _FIRST_BYTE, _HEADER, _BODY, _KEEP_ALIVE, _HALF_CLOSE, _LINGER = range(7)
# What loop.create_task does, without its detours; where it can, an application that
# never waits is done before the task is even scheduled.
_start_task: Callable[..., asyncio.Task[None]] = (
    functools.partial(cast(Any, asyncio.Task), eager_start=True)
    if sys.version_info >= (3, 12)
    else asyncio.Task
)
# Linux's tcp_info begins with the state; include/net/tcp_states.h
_HAS_TCP_INFO = sys.platform == "linux"
_TCP_CLOSE = 7
# A reset takes a round trip.
_RESET_S = 0.1
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class RequestTimeout(BackendError):
    """408: the client does not send its request."""

    status = 408


class HttpConnection(asyncio.BufferedProtocol):
    """One client's connection, HTTP/1.1."""

    __slots__ = (
        "_address",
        "_body_at",
        "_body_bytes",
        "_body_seen",
        "_closes_at",
        "_deadline",
        "_drain_waiters",
        "_is_reading",
        "_is_reading_paused",
        "_loop",
        "_read_buffer",
        "_requests_left",
        "_send_deadline",
        "_server_address",
        "_unsent",
        "_waits_for",
        "codec",
        "drain_until",
        "exchange",
        "is_closing",
        "is_write_paused",
        "last_fields",
        "last_headers",
        "last_lines",
        "service",
        "transport",
    )

    transport: asyncio.Transport

    def __init__(self, service: Service) -> None:
        self.service = service
        self._loop = service.loop
        self._read_buffer = service.read_buffer
        self.codec = service.codec_class(service.settings.http1)
        self.exchange: Exchange | None = None
        #: No further request is taken.
        self.is_closing = False
        self.is_write_paused = False
        #: How much of an unread body is read away before the connection is given up.
        self.drain_until = 0
        #: The last response's field lines; and the fields that have come twice, as given
        #: and judged.
        self.last_lines = b""
        self.last_headers: tuple[Any, ...] = ()
        self.last_fields: ResponseFields = (b"", None, None)
        self._is_reading = False
        self._is_reading_paused = False
        self._requests_left = service.limits.requests
        self._closes_at = _NEVER
        self._deadline = _NEVER
        self._send_deadline = _NEVER
        self._waits_for = _NOTHING
        self._unsent = 0
        self._body_at = 0.0
        self._body_bytes = 0
        self._body_seen = 0
        self._drain_waiters: list[asyncio.Future[None]] | None = None
        self._address: tuple[str, int] | None = None
        self._server_address: tuple[str, int | None] | None = None

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to wait for a request."""
        service = self.service
        self.transport = cast(asyncio.Transport, transport)
        high = service.limits.send_buffer // 4
        self.transport.set_write_buffer_limits(high=high, low=high // 4)
        peer = transport.get_extra_info("peername")
        here = transport.get_extra_info("sockname")
        if isinstance(peer, tuple):
            self._address = (_plain_address(peer[0]), peer[1])
        if isinstance(here, tuple):
            self._server_address = (_plain_address(here[0]), here[1])
            sock = transport.get_extra_info("socket")
            if sock is not None:
                # The system asks after clients that are silent and may be gone.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        else:
            path = here.decode(errors="replace") if isinstance(here, bytes) else here
            self._server_address = (path or "unix", None)
        service.connections.add(self)
        self._closes_at = service.now + service.limits.age_s
        self._wait_for(_FIRST_BYTE, service.timeouts.first_byte)
        if service.is_stopping:
            self.stop_when_idle()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Say where to read to, and so how much: never more than a body has room for.

        One buffer serves all connections: a loop fills it and calls
        `buffer_updated` without going elsewhere in between.
        """
        exchange = self.exchange
        if exchange is None or exchange.is_body_complete:
            return self._read_buffer
        return self._read_buffer[: max(exchange.room_bytes, _LEAST_READ_BYTES)]

    def buffer_updated(self, nbytes: int) -> None:
        """Take what was read."""
        if self._waits_for == _LINGER:
            return
        codec = self.codec
        codec.receive_data(bytes(self._read_buffer[:nbytes]))
        exchange = self.exchange
        if exchange is None or not exchange.is_body_complete:
            self._read_events()
        elif codec.buffered_bytes > self.service.limits.read_ahead:
            self.pause_reading()

    def eof_received(self) -> bool:
        """Decide whether EOF is a half-close or a departure."""
        self.codec.receive_data(b"")
        if self._waits_for == _LINGER:
            return False
        exchange = self.exchange
        if exchange is None or not exchange.is_body_complete:
            # Whole requests may still wait for the client to take its answers.
            self._read_events()
            return not self.is_closing
        exchange.half_close()
        self.extend_half_close()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever works for this client that it is gone."""
        self.is_closing = True
        self._deadline = self._send_deadline = _NEVER
        self._waits_for = _NOTHING
        self.is_write_paused = False
        exchange, self.exchange = self.exchange, None
        self._wake_drain()
        self.service.forget(self)
        if exchange is not None and not exchange.is_complete:
            exchange.depart()

    def pause_writing(self) -> None:
        """The client does not keep up with the answer."""
        self.is_write_paused = True
        self._unsent = self.transport.get_write_buffer_size()
        self._send_deadline = self._after(self.service.timeouts.send_idle)

    def resume_writing(self) -> None:
        """The client has caught up."""
        self.is_write_paused = False
        self._send_deadline = _NEVER
        self._wake_drain()
        if self.exchange is None and not self.is_closing:
            self.resume_reading()
            self._read_events()

    # Reading

    def pause_reading(self) -> None:
        """Read no more for now: whoever is to take the bytes does not keep up."""
        if not self._is_reading_paused and not self.transport.is_closing():
            self._is_reading_paused = True
            self.transport.pause_reading()
            if self._waits_for == _BODY:
                self._waits_for = _NOTHING
                self._deadline = _NEVER
            exchange = self.exchange
            if exchange is not None and not exchange.is_body_complete:
                # The application has enough of the request to begin with.
                exchange.complete_at = self.service.now

    def resume_reading(self) -> None:
        """Read on; the client's time to send its body begins anew."""
        if self._is_reading_paused and not self.transport.is_closing():
            self._is_reading_paused = False
            exchange = self.exchange
            if exchange is not None and not exchange.is_body_complete:
                self._wait_for_body(exchange)
            self.transport.resume_reading()

    def read_ahead(self) -> None:
        """Read on unless the client has pipelined as much as it may."""
        if self._is_reading_paused and self.codec.buffered_bytes <= self.service.limits.read_ahead:
            self.resume_reading()

    def _read_events(self) -> None:
        """Take all that the bytes at hand hold, then start the application."""
        if self._is_reading:
            # An application that answers at once runs inside this very call.
            return
        self._is_reading = True
        codec = self.codec
        fresh: tuple[Exchange, Scope] | None = None
        try:
            while not self.is_closing:
                if self.is_write_paused and self.exchange is None:
                    # Else every pipelined request would add its answer to what a
                    # client that does not read has us keep for it.
                    if codec.buffered_bytes > self.service.limits.read_ahead:
                        self.pause_reading()
                    break
                event = codec.next_event()
                if event is NEED_DATA:
                    if codec.is_eof:
                        self._refuse_fragment()
                    elif fresh is not None:
                        self._wait_for_body(fresh[0])
                        self._start(*fresh)
                    elif self.exchange is None and codec.buffered_bytes:
                        self._wait_for_head()
                    break
                if type(event) is Request:
                    fresh = self._open(event)
                    if event.content_length:
                        continue
                    exchange = fresh[0]
                elif type(event) is Data:
                    assert self.exchange is not None, "a body has an exchange"
                    self.exchange.feed(event.data)
                    continue
                else:
                    assert self.exchange is not None, "a body has an exchange"
                    exchange = self.exchange
                    exchange.end_of_body()
                self._waits_for = _NOTHING
                self._deadline = _NEVER
                if codec.is_eof:
                    exchange.half_close()
                    self.extend_half_close()
                if fresh is not None:
                    self._start(*fresh)
                    fresh = None
                elif exchange.is_complete:
                    self.exchange_answered(exchange)
                if self.exchange is not None:
                    if len(codec.buffer) - codec.at > self.service.limits.read_ahead:
                        self.pause_reading()
                    break
        except RemoteProtocolError as error:
            self._refuse(error)
        finally:
            self._is_reading = False

    def _refuse_fragment(self) -> None:
        """The client's stream has ended; what is left of it is no whole request."""
        exchange = self.exchange
        if exchange is None:
            codec = self.codec
            # RFC 9112 §2.2: some clients put an empty line behind a request.
            if codec.buffer[codec.at :] in (b"", b"\r\n"):
                self.close()
                return
        elif exchange.is_complete:
            self.close()
            return
        self._refuse(RemoteProtocolError("the client closed in the middle of a request"))

    def _open(self, request: Request) -> tuple[Exchange, Scope]:
        """Make the exchange and the scope of a request."""
        exchange = self.exchange = Exchange(self, request)
        raw_path, _, query = request.target.partition(b"?")
        if NOT_PLAIN.search(raw_path) is None:
            path = raw_path.decode("ascii")
        else:
            rules = self.service.settings.paths
            path = normalise(
                raw_path,
                keeps_encoded_slash=rules.keeps_encoded_slash,
                merges_slashes=rules.merges_slashes,
            )
        self._requests_left -= 1
        if self._requests_left <= 0 or self.service.now >= self._closes_at:
            exchange.keeps_alive = False
        scope: Scope = {
            "type": "http",
            "asgi": VERSIONS,
            "http_version": request.http_version,
            "server": self._server_address,
            "client": self._address,
            "scheme": "http",
            "method": request.method,
            "root_path": "",
            "path": path,
            "raw_path": raw_path,
            "query_string": query,
            "headers": request.fields,
            "extensions": {GATEWAY_EXTENSION: exchange},
        }
        return exchange, scope

    def _start(self, exchange: Exchange, scope: Scope) -> None:
        # A name given is a name that needs not be made. The context is given because the
        # one at hand may be that of the request before, with its user's secrets.
        exchange.task = _start_task(
            exchange.run(scope),
            loop=self._loop,
            name="request",
            context=self.service.context.copy(),
        )

    def exchange_answered(self, exchange: Exchange) -> None:
        """Go on after an answer: the next request, or the end."""
        if exchange is not self.exchange:
            return
        codec = self.codec
        service = self.service
        if not exchange.is_body_complete:
            if exchange.keeps_alive:
                # The rest of a body that nobody wants, up to a bound (`Exchange.feed`).
                self.drain_until = exchange.received_bytes + service.limits.drain
                self.resume_reading()
            else:
                self.close_lingering()
            return
        self.exchange = None
        has_more = codec.at < len(codec.buffer)
        if exchange.keeps_alive and not self.is_closing and not service.is_stopping:
            self._waits_for = _KEEP_ALIVE
            self._deadline = service.now + service.timeouts.keep_alive
            if self._is_reading_paused:
                self.resume_reading()
            if has_more or codec.is_eof:
                self._read_events()
            else:
                # A connection may idle for long: it is not to keep its last request.
                codec.buffer = b""
                codec.at = 0
        elif has_more and not codec.is_eof:
            self.close_lingering()
        else:
            self.close()

    def _wait_for_head(self) -> None:
        """Give the head, whose first bytes are here, its absolute time."""
        if self._waits_for != _HEADER:
            self._wait_for(_HEADER, self.service.timeouts.header)

    # Writing

    def remember_fields(self, headers: tuple[Any, ...], fields: ResponseFields) -> None:
        """Keep what response fields came to that have come twice on this connection."""
        if len(fields[0]) > _REMEMBERED_BYTES:
            self.last_lines = b""
        # What could be changed in place would compare equal to itself.
        elif all(type(pair) is tuple and type(pair[1]) is bytes for pair in headers):
            self.last_headers = headers
            self.last_fields = fields

    async def drain(self) -> None:
        """Wait until the client has taken enough of what was written."""
        while self.is_write_paused:
            waiter = self.service.loop.create_future()
            if self._drain_waiters is None:
                self._drain_waiters = []
            self._drain_waiters.append(waiter)
            await waiter

    def _wake_drain(self) -> None:
        waiters, self._drain_waiters = self._drain_waiters, None
        for waiter in waiters or ():
            if not waiter.done():
                waiter.set_result(None)

    def _refuse(self, error: RemoteProtocolError) -> None:
        """Answer what is not a request, and close so that the answer is read."""
        exchange = self.exchange
        if exchange is not None:
            exchange.reject(error)
            exchange.depart()
            if not self.is_closing:
                self.close_lingering()
            return
        status = error.status_hint
        exchange_logger.debug("%s: refused with %d: %s", self.client_address, status, error)
        self._answer_plainly(status)

    def _answer_plainly(self, status: int) -> None:
        """Write an error page outside of any exchange, and close."""
        fields, body = error_response(status, accept=None, request_id=None)
        lines = b"".join(b"%s: %s\r\n" % field for field in fields)
        self.transport.write(
            b"".join(
                (
                    STATUS_LINES[status],
                    lines,
                    self.service.stamp,
                    b"connection: close\r\n\r\n",
                    body,
                )
            )
        )
        if self.service.access_log is not None:
            self.service.access_log.record(
                client=self.client_address,
                request=None,
                status=status,
                body_bytes=len(body),
                duration_s=0.0,
                backend="-",
            )
        self.close_lingering()

    # Ending

    def close(self) -> None:
        """Take no further request; close when all is written."""
        self.is_closing = True
        self._wait_for(_LINGER, self.service.timeouts.linger)
        self._unsent = self.transport.get_write_buffer_size()
        self.transport.close()

    def close_lingering(self) -> None:
        """Close for writing, read away what still comes, then close.

        A close with unread bytes is a reset, and a reset takes from the client
        the answer that it has not read yet (RFC 9112 section 9.6).
        """
        if self._waits_for == _LINGER or self.transport.is_closing():
            return
        self.is_closing = True
        self._wait_for(_LINGER, self.service.timeouts.linger)
        self._unsent = self.transport.get_write_buffer_size()
        if self.codec.is_eof or not self.transport.can_write_eof():
            self.transport.close()
            return
        self.transport.write_eof()
        if self._is_reading_paused:
            self._is_reading_paused = False
            self.transport.resume_reading()

    def abort(self) -> None:
        """Close at once; what is not yet written is lost."""
        self.is_closing = True
        if self.exchange is not None and not self.exchange.is_complete:
            self.exchange.depart()
        if not self.transport.is_closing() or self.transport.get_write_buffer_size():
            self.transport.abort()

    def truncate(self) -> None:
        """Cut the connection so that the client sees an incomplete message."""
        exchange = self.exchange
        if exchange is not None and exchange.request.http_version == "1.0":
            # Without a length or chunks only a reset tells an end from a break.
            sock = self.transport.get_extra_info("socket")
            if sock is not None and sock.family != socket.AF_UNIX:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
                self.abort()
                return
        self.close()

    def stop_when_idle(self) -> None:
        """The server stops: close now, or after the answer in hand."""
        if self.exchange is None and self._waits_for in (_FIRST_BYTE, _KEEP_ALIVE):
            self.close()

    # Time

    def _after(self, seconds: float) -> float:
        return self.service.now + seconds

    def _wait_for(self, what: int, seconds: float) -> None:
        self._waits_for = what
        self._deadline = self.service.now + seconds

    def _wait_for_body(self, exchange: Exchange) -> None:
        """Watch that the body comes, and not drop by drop, from now on."""
        if self._is_reading_paused:
            # It is the application that does not take it: no fault of the client's.
            self._waits_for = _NOTHING
            self._deadline = _NEVER
            return
        self._body_at = self.service.now
        self._body_bytes = exchange.received_bytes
        self._body_seen = exchange.received_bytes
        self._wait_for(_BODY, self.service.timeouts.body_idle / 2)

    def extend_half_close(self) -> None:
        """Something is written to a client that closed its side: it may go on."""
        self._wait_for(_HALF_CLOSE, self.service.timeouts.half_close)
        if _HAS_TCP_INFO and self._address is not None:
            self.service.loop.call_later(_RESET_S, self._look_for_reset)

    def _look_for_reset(self) -> None:
        """Tell a client that has left from one that closed its side.

        Both begin with EOF. One that has left answers what is written with a
        reset, which no event loop tells of once reading is over.
        """
        if self._waits_for != _HALF_CLOSE or self.transport.is_closing():
            return
        sock = self.transport.get_extra_info("socket")
        if sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _TCP_CLOSE:
            self.abort()

    def postpone(self, seconds: float) -> None:
        """Move all deadlines: the loop stood still for so long."""
        self._deadline += seconds
        self._send_deadline += seconds
        self._body_at += seconds
        if self.exchange is not None:
            self.exchange.complete_at += seconds

    def check_time(self, now: float) -> None:
        """Act on whatever deadline has passed; called by the service's sweep."""
        if now >= self._send_deadline:
            self._send_deadline = _NEVER
            if self._has_stopped_reading():
                self.abort()
                return
            self._send_deadline = self._after(self.service.timeouts.send_idle)
        exchange = self.exchange
        if (
            exchange is not None
            and exchange.first_byte_s
            and (exchange.is_body_complete or self._is_reading_paused)
            and not exchange.is_started
            and now - exchange.complete_at >= exchange.first_byte_s
        ):
            exchange.time_out()
            return
        if now < self._deadline:
            return
        waits_for = self._waits_for
        if waits_for == _HEADER:
            self._refuse(RemoteProtocolError("the head did not come in time", status_hint=408))
        elif waits_for == _BODY:
            self._check_body(now)
        elif waits_for in (_KEEP_ALIVE, _LINGER):
            if self.transport.get_write_buffer_size() and not self._has_stopped_reading():
                self._deadline = self._after(self.service.timeouts.send_idle)
            elif waits_for == _LINGER:
                self.abort()
            else:
                self.close()
        elif waits_for == _FIRST_BYTE:
            self.close()
        elif waits_for == _HALF_CLOSE:
            if self.is_write_paused:
                self.extend_half_close()
                return
            if exchange is not None:
                exchange.depart()
            self.abort()

    def _has_stopped_reading(self) -> bool:
        """Tell whether the client has taken nothing since the last look."""
        unsent = self.transport.get_write_buffer_size()
        has_stopped = unsent >= self._unsent
        self._unsent = unsent
        return has_stopped

    def _check_body(self, now: float) -> None:
        """Refuse a body that has stopped, or that comes more slowly than the least rate.

        The window slides by its half: a burst buys no time beyond it.
        """
        exchange = self.exchange
        if exchange is None:
            return
        window_s = self.service.timeouts.body_idle
        if exchange.awaits_continue and not exchange.is_complete:
            # It is the backend, or an authorizer, that takes its time.
            self._body_at = now
        elapsed = now - self._body_at
        if elapsed >= window_s:
            received = exchange.received_bytes - self._body_bytes
            if not received or received < self.service.limits.body_rate * elapsed:
                if exchange.is_complete:
                    self.close_lingering()
                    return
                exchange.reject(
                    RequestTimeout(f"{received} bytes of the body came within {elapsed:.0f} s")
                )
                exchange.depart()
                return
            self._body_at = now - window_s / 2
            self._body_bytes = self._body_seen
        self._body_seen = exchange.received_bytes
        self._deadline = self._after(window_s / 2)

    @property
    def client_address(self) -> str:
        """The client's address for logs; empty for a unix socket."""
        return self._address[0] if self._address is not None else ""


def _plain_address(host: str) -> str:
    """Write an IPv4 address that came over an IPv6 socket as IPv4 (RFC 3875 §4.1.8)."""
    return host[7:] if host.startswith("::ffff:") and "." in host else host

"""Another HTTP/1.1 server behind the gateway: the proxy backend (RFC 9110 section 7).

For applications that bring their own server, such as aiohttp's. A request goes
out as its body comes in, the response comes in meanwhile and goes to the client
as fast as the client takes it; neither waits for the other's end, so an upstream
may answer before it has read all, and a departed client frees its connection at
once. What is said to the upstream stands in `tetrapylon.gateway.upstream_request`.
"""

from __future__ import annotations

import asyncio
import math
from types import TracebackType

import anyio

from ...adapters.addresses import UnixAddress, parse_address
from ...adapters.byte_stream import ByteStream
from ...adapters.connections import RESENDABLE_METHODS, Connections, StaleConnection
from ...adapters.errors import (
    BackendError,
    BadGateway,
    BadRequest,
    ClientDisconnected,
    ContentTooLarge,
    GatewayTimeout,
    Truncated,
    answered,
)
from ...adapters.exchange import Departure
from ...protocols.asgi import Fields, Message, Receive, Scope, Send
from ...protocols.errors import RemoteProtocolError
from ...protocols.fields import HOP_BY_HOP
from ...protocols.http1.client_codec import ClientCodec, Event, Response, connection_options
from ...protocols.http1.codec import NEED_DATA
from ...protocols.http1.events import CHUNKED, Data
from .. import limits
from ..upstream_request import request_head, request_length
from .base import Backend

_LEFT_BEHIND = HOP_BY_HOP | {b"trailer"}


class ProxyBackend(Backend):
    """Pass requests on to ``upstream``: ``"http://host:port"`` or ``"unix:/path"``.

    Times in seconds, 0 for none: ``connect_s``; ``first_byte_s`` from the end of
    the request to the response's head, and for each piece of a body that the
    upstream is slow to take; ``output_idle_s`` between two pieces of a response;
    ``idle_s``, how long a connection is kept for the next request. At most
    ``connections`` are open, at most ``queue`` requests wait for one. Of a name's
    addresses, looked up again after ``resolve_s``, those that are out of order after
    ``breaker`` failures within ``breaker_window_s`` are left alone for a while.
    ``preserve_host=False`` sends the upstream's own name as Host.

    A mounted route's prefix is taken off the path and said in
    X-Forwarded-Prefix. Raises `ValueError` for what is no such upstream.
    """

    kind = "proxy"

    def __init__(
        self,
        name: str,
        upstream: str,
        *,
        connect_s: float = limits.PROXY_CONNECT_S,
        first_byte_s: float = limits.PROXY_FIRST_BYTE_S,
        output_idle_s: float = limits.OUTPUT_IDLE_S,
        idle_s: float = limits.PROXY_IDLE_S,
        connections: int = limits.PROXY_CONNECTIONS,
        queue: int = limits.QUEUE,
        breaker: int = limits.PROXY_BREAKER,
        breaker_window_s: float = limits.PROXY_BREAKER_WINDOW_S,
        resolve_s: float = limits.PROXY_RESOLVE_S,
        preserve_host: bool = True,
        body_limit_bytes: int | None = None,
    ) -> None:
        super().__init__(name, body_limit_bytes=body_limit_bytes)
        self.upstream = upstream
        address = parse_address(_address(upstream))
        #: To the upstream.
        self.connections = Connections(
            address,
            limit=connections,
            queue=queue,
            queue_wait_s=limits.QUEUE_WAIT_S,
            connect_s=connect_s,
            idle_s=idle_s,
            name=str(address),
            breaker=breaker,
            breaker_window_s=breaker_window_s,
            resolve_s=resolve_s,
        )
        self._authority = (
            b"localhost"
            if isinstance(address, UnixAddress)
            else str(address).removesuffix(":80").encode()
        )
        self.first_byte_s = first_byte_s or math.inf
        self.output_idle_s = output_idle_s or math.inf
        self._preserves_host = preserve_host

    def describe(self) -> str:
        """Say which server requests go to."""
        return f"proxy to {self.upstream}"

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.connections.close()

    @answered
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; raises what `tetrapylon.adapters.errors` lists."""
        length = request_length(scope)
        first: Message | None = None
        if length != 0:
            limit = self.body_limit_bytes
            if limit is not None and length is not None and length > limit:
                raise ContentTooLarge(f"a body of {length} bytes")
            # A connection is taken when the client has begun to send, not before.
            first = await _next_of_body(receive)
            if length is None or length == CHUNKED:
                length = CHUNKED if first.get("more_body", False) else len(first.get("body", b""))
        head = request_head(
            scope, length, authority=self._authority, preserves_host=self._preserves_host
        )
        request = _Request(
            scope["method"], head, receive, first, length, limit_bytes=self.body_limit_bytes
        )
        async with Departure(scope, request.receive_after):
            async with self.connections.slots:
                await self._answer(request, send)

    async def _answer(self, request: _Request, send: Send) -> None:
        if request.is_repeatable:
            kept = self.connections.take()
            if kept is not None:
                try:
                    await self._exchange(request, kept, send, is_kept=True)
                    return
                except StaleConnection:
                    pass
        await self._exchange(request, await self.connections.open(), send, is_kept=False)

    async def _exchange(
        self, request: _Request, stream: ByteStream, send: Send, *, is_kept: bool
    ) -> None:
        response = _Response(self, request, stream, send, is_kept=is_kept)
        feeder: asyncio.Task[None] | None = None
        is_reusable = False
        try:
            rest = request.begin(stream, self.first_byte_s)
            if not request.is_sent:
                feeder = asyncio.create_task(request.feed(rest, stream, self.first_byte_s))
            await response.relay()
            is_reusable = response.is_reusable and request.is_sent
        finally:
            if not is_reusable:
                stream.close()
            if feeder is not None:
                feeder.cancel()
                with anyio.CancelScope(shield=True):
                    await asyncio.wait([feeder])
            if is_reusable:
                self.connections.keep(stream)


class _Request:
    """A request on its way from the client to the upstream."""

    def __init__(
        self,
        method: str,
        head: bytes,
        receive: Receive,
        first: Message | None,
        length: int,
        *,
        limit_bytes: int | None,
    ) -> None:
        self.method = method
        #: It may be sent again if nothing came back.
        self.is_repeatable = first is None and method in RESENDABLE_METHODS
        #: All of it is with the upstream's socket.
        self.is_sent = False
        #: Since when, by the loop's clock, it is the upstream's turn; `math.inf` while it
        #: waits for the client.
        self.turned_at = math.inf
        #: Why the body cannot be sent to its end.
        self.failure: Exception | None = None
        self._head = head
        self._receive = receive
        self._first = first
        self._length = length
        self._limit_bytes = limit_bytes
        self._taken_bytes = 0
        self._is_taken = asyncio.Event()
        if first is None:
            self._is_taken.set()

    def begin(self, stream: ByteStream, first_byte_s: float) -> bytes | memoryview:
        """Send what there is and the socket takes at once; return the rest of it."""
        begun = self._head if self._first is None else self._head + self._encode(self._first)
        self._turn(stream, first_byte_s)
        try:
            rest = stream.send_some(begun)
        except OSError:
            return begun  # as `feed` will find out
        self.is_sent = not rest and self._is_taken.is_set()
        return rest

    async def feed(self, rest: bytes | memoryview, stream: ByteStream, first_byte_s: float) -> None:
        """Send ``rest`` and the body that is to come; end early if the upstream reads no more."""
        data = rest
        try:
            while True:
                try:
                    await stream.send(data)
                except OSError:
                    return  # what it had to say before it closed is to be received
                if self._is_taken.is_set():
                    break
                self.turned_at = math.inf
                data = self._encode(await _next_of_body(self._receive))
                self._turn(stream, first_byte_s)
            self.is_sent = True
        except Exception as error:
            self.failure = error
            stream.fail(error)

    def _turn(self, stream: ByteStream, first_byte_s: float) -> None:
        self.turned_at = asyncio.get_running_loop().time()
        stream.expect(first_byte_s)

    async def receive_after(self) -> Message:
        """ASGI ``receive`` for what comes after the body."""
        await self._is_taken.wait()
        return await self._receive()

    def _encode(self, message: Message) -> bytes:
        body: bytes = message.get("body", b"")
        is_last = not message.get("more_body", False)
        self._taken_bytes += len(body)
        if self._limit_bytes is not None and self._taken_bytes > self._limit_bytes:
            raise ContentTooLarge(f"a body of more than {self._limit_bytes} bytes")
        if self._length != CHUNKED and (
            self._taken_bytes > self._length or (is_last and self._taken_bytes < self._length)
        ):
            # One byte too many would begin a request of its own on this connection.
            raise BadRequest("the body is not as long as its Content-Length")
        if is_last:
            self._is_taken.set()
        if self._length != CHUNKED:
            return body
        chunk = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
        return chunk + b"0\r\n\r\n" if is_last else chunk


class _Response:
    """A response on its way from the upstream to the client."""

    def __init__(
        self,
        backend: ProxyBackend,
        request: _Request,
        stream: ByteStream,
        send: Send,
        *,
        is_kept: bool,
    ) -> None:
        self._backend = backend
        self._request = request
        self._stream = stream
        self._send = send
        self._is_kept = is_kept
        self._has_received = False
        self._codec = ClientCodec(request.method, head_limit_bytes=limits.RESPONSE_HEADERS_BYTES)
        self._is_started = False
        #: The upstream takes another request on this connection.
        self.is_reusable = False

    async def relay(self) -> None:
        """Relay the response to its end.

        Raises `BackendError` before the head was sent on, `Truncated` after it,
        `StaleConnection` if a kept connection turns out to be closed.
        """
        send = self._send
        keeps_alive = False
        is_head_due = False
        body = b""
        while True:
            event = self._next_event()
            if event is NEED_DATA:
                if body or is_head_due:
                    await send({"type": "http.response.body", "body": body, "more_body": True})
                    body = b""
                    is_head_due = False
                await self._receive()
            elif isinstance(event, Response):
                keeps_alive = event.keeps_alive
                # A body of known length is on its way already; one without may
                # be a stream of events, whose reader waits for the head.
                is_head_due = event.content_length < 0
                self._is_started = True
                self._backend.connections.answered(self._stream)
                await send(
                    {
                        "type": "http.response.start",
                        "status": event.status,
                        "headers": _end_to_end(event.fields),
                    }
                )
            elif isinstance(event, Data):
                if body:
                    await send({"type": "http.response.body", "body": body, "more_body": True})
                body = event.data
            else:
                self.is_reusable = keeps_alive and not self._codec.has_excess
                await send({"type": "http.response.body", "body": body})
                return

    def _next_event(self) -> Event:
        try:
            return self._codec.next_event()
        except RemoteProtocolError as error:
            self._note_failure()
            raise self._failure(BadGateway, str(error)) from error

    async def _receive(self) -> None:
        request, stream = self._request, self._stream
        patience_s = self._backend.first_byte_s
        if self._is_started:
            patience_s = self._backend.output_idle_s
            stream.expect(patience_s)
        while True:
            if request.failure is not None:
                if self._is_started and isinstance(request.failure, BackendError):
                    raise Truncated(str(request.failure)) from request.failure
                raise request.failure
            try:
                data = await stream.receive()
            except TimeoutError:
                # While it waits for the client, it is not the upstream that is slow.
                if asyncio.get_running_loop().time() >= request.turned_at + patience_s:
                    self._note_failure()
                    raise self._failure(GatewayTimeout, "nothing came in time") from None
                stream.expect(patience_s)
            except Exception:
                if request.failure is None:
                    raise
            else:
                break
        if not data and self._is_kept and not self._has_received:
            raise StaleConnection
        self._has_received = True
        self._codec.receive_data(data)

    def _note_failure(self) -> None:
        if not self._is_started:
            self._backend.connections.failed(self._stream)

    def _failure(self, kind: type[BackendError], why: str) -> Exception:
        text = f"{self._backend.upstream}: {why}"
        return Truncated(text) if self._is_started else kind(text)


async def _next_of_body(receive: Receive) -> Message:
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientDisconnected("the client left before its request was complete")
    return message


def _end_to_end(fields: Fields) -> Fields:
    """Leave out what was about the connection to the upstream (RFC 9110 section 7.6.1)."""
    named = connection_options(fields)
    return [pair for pair in fields if pair[0] not in _LEFT_BEHIND and pair[0] not in named]


def _address(upstream: str) -> str:
    """Return the address in the form of `parse_address`."""
    if upstream.startswith("unix:"):
        return upstream
    scheme, separator, authority = upstream.partition("://")
    if not separator or scheme != "http":
        raise ValueError(f"{upstream!r} is no upstream: write http://host:port or unix:/path")
    authority = authority.removesuffix("/")
    if any(sign in authority for sign in "/?#@"):
        raise ValueError(f"{upstream!r}: an upstream is a host and a port, and no more")
    has_port = ":" in authority.rpartition("]")[2]
    return authority if has_port else f"{authority}:80"

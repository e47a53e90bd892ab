"""A connection of a web server to a responder: what does not depend on the protocol.

A protocol object that the event loop calls. Reading pauses while an application falls
behind, and `PeerConnection.drain` waits while the web server does; what is idle for long
is closed, and closing leaves the web server time to read the last answer.
"""

from __future__ import annotations

import asyncio
import math
import socket
import struct
from typing import TYPE_CHECKING, cast

from .asgi_call import AsgiCall

if TYPE_CHECKING:
    from .responder import Responder

# What the peer may still be sending when it has been answered.
_LINGER_S = 2.0
_WRITE_BUFFER_BYTES = 64 * 1024


class PeerConnection(asyncio.Protocol):
    """A connection of a web server; a subclass knows what is said on it."""

    transport: asyncio.Transport

    def __init__(self, responder: Responder) -> None:
        self.responder = responder
        self._idle: asyncio.TimerHandle | None = None
        self._is_write_paused = False
        #: Nothing more is understood, or said.
        self.is_closing = False

    # For the subclass to do

    def calls(self) -> list[AsgiCall]:
        """Return the requests that run on this connection."""
        raise NotImplementedError

    def received(self, data: bytes) -> None:
        """Take bytes of the web server."""
        raise NotImplementedError

    def stop(self) -> None:
        """Close as soon as nothing runs any more."""
        raise NotImplementedError

    # For the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(_WRITE_BUFFER_BYTES)
        self.watch_idle()
        self.responder.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self.is_closing = True
        self.unwatch_idle()
        for call in self.calls():
            call.leave()
        self.responder.closed(self)

    def data_received(self, data: bytes) -> None:
        """Take bytes; behind the last answer they only keep it from being reset."""
        if not self.is_closing:
            self.received(data)

    def pause_writing(self) -> None:
        """Have those that send wait."""
        self._is_write_paused = True

    def resume_writing(self) -> None:
        """Let them go on."""
        self._is_write_paused = False
        for call in self.calls():
            call.wake()

    # Shared

    async def drain(self, call: AsgiCall) -> None:
        """Wait until the web server has taken most of what was written.

        Raises `OSError` when the call's client has left.
        """
        while self._is_write_paused and not call.is_departed:
            await call.news()
        if call.is_departed:
            raise BrokenPipeError("the client has left")

    def hold(self) -> None:
        """Read on only while no request's body is too far ahead of its application."""
        limit = self.responder.body_ahead_bytes
        transport = self.transport
        if transport.is_closing():
            return
        is_reading = transport.is_reading()
        if any(call.held_bytes >= limit for call in self.calls()):
            if is_reading:
                transport.pause_reading()
        elif not is_reading:
            transport.resume_reading()

    def watch_idle(self) -> None:
        """Count the time from now on in which no request runs."""
        self.unwatch_idle()
        if self.responder.idle_s:
            loop = asyncio.get_running_loop()
            self._idle = loop.call_later(self.responder.idle_s, self.abort)

    def unwatch_idle(self) -> None:
        """Count no time: a request runs."""
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None

    def close(self, *, is_all_read: bool) -> None:
        """Close, when all that was written is sent.

        Unless ``is_all_read``, what the web server still sends is taken for a while: a
        socket that is closed with bytes unread is reset, and the answer may be lost.
        """
        if self.is_closing:
            return
        self.is_closing = True
        transport = self.transport
        if transport.is_closing():
            return
        self.unwatch_idle()
        if is_all_read or not transport.can_write_eof():
            transport.close()
        else:
            transport.write_eof()
            if not transport.is_reading():
                transport.resume_reading()
        loop = asyncio.get_running_loop()
        self._linger(loop, loop.time() + (self.responder.idle_s or math.inf))

    def _linger(self, loop: asyncio.AbstractEventLoop, deadline: float) -> None:
        """Give the web server time to take the rest, and then a little more to close."""
        is_sending = self.transport.get_write_buffer_size() > 0 and loop.time() < deadline
        self._idle = (
            loop.call_later(_LINGER_S, self._linger, loop, deadline)
            if is_sending
            else loop.call_later(_LINGER_S, self.abort)
        )

    def reset(self) -> None:
        """Close at once, as an error to the web server, where the socket is one of TCP."""
        connected = self.transport.get_extra_info("socket")
        if connected is not None and connected.family != socket.AF_UNIX:
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.abort()

    def abort(self) -> None:
        """Close at once; what was written and not sent is lost."""
        self.is_closing = True
        self.transport.abort()

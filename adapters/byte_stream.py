"""A connection to an application: connect, a byte stream over a socket.

The event loop's own connect is not used, nor its transports. A full backlog of
a unix socket makes uvloop fail and lets asyncio believe that it is connected;
and a transport that cannot write drops what there is to read, though an
application may have answered before it read all (FastCGI section 6.1). So the
socket is worked directly, with the readiness calls that asyncio and uvloop
share. Reading happens only while somebody waits for bytes: that is the
back-pressure.
"""

from __future__ import annotations

import asyncio
import errno
import math
import os
import socket
from collections.abc import Callable
from typing import Protocol

from .addresses import (
    SocketAddress,
    TcpAddress,
    UnixAddress,
    look_up_host,
    numeric_family,
)
from .errors import EXHAUSTED, BackendError, BadGateway, Unavailable

_READ_BYTES = 64 * 1024
# One system call less for each connection, where there is such a flag.
_NONBLOCK = getattr(socket, "SOCK_NONBLOCK", 0)
_FIRST_RETRY_S = 0.005
_LAST_RETRY_S = 0.1


class Counter(Protocol):
    """What counts a stream as one of its own."""

    #: Nothing new is to begin on it.
    is_retired: bool

    def release(self) -> None:
        """Take note that the stream was closed."""


class Exhausted(Unavailable):
    """503: this process has no descriptor, or no port, left; nobody else is at fault."""


class ByteStream:
    """A connected stream socket. One task receives, at most one other sends."""

    __slots__ = (
        "_deadline",
        "_failure",
        "_fd",
        "_is_doubtful",
        "_is_watched",
        "_on_idle",
        "_reader",
        "_socket",
        "_timer",
        "_writer",
        "counter",
        "loop",
        "uses",
    )

    def __init__(self, connected: socket.socket) -> None:
        #: Where it was made, and belongs.
        self.loop = asyncio.get_running_loop()
        self._socket = connected
        self._fd = connected.fileno()
        self._reader: asyncio.Future[bytes] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._deadline = math.inf
        self._failure: BaseException | None = None
        # The loop calls `_on_readable`, and goes on to from one exchange to the next, for
        # to watch a descriptor anew costs more than to receive an answer does. But where
        # the socket has an error to tell (a reset, and data before it), uvloop calls once
        # and then watches it no more: within an exchange every call may be the last.
        self._is_watched = False
        self._is_doubtful = False
        self._on_idle: Callable[[ByteStream], object] | None = None
        #: How many exchanges it has been kept after.
        self.uses = 0
        #: Told when this is closed.
        self.counter: Counter | None = None

    def expect(self, within_s: float) -> None:
        """Let `receive`, also one that waits already, give up in so many seconds."""
        self._deadline = self.loop.time() + within_s

    def receive(self) -> asyncio.Future[bytes]:
        """Wait for the next bytes, at most 64 KiB; ``b""`` once the peer has closed or reset.

        Raises `TimeoutError` when the time given to `expect` is over, and what was
        given to `fail`. A future, for to await a coroutine first would cost more.
        """
        reader: asyncio.Future[bytes] = self.loop.create_future()
        self._reader = reader
        self._on_idle = None
        if self._failure is not None:
            reader.set_exception(self._failure)
            return reader
        if self._is_doubtful:
            self._is_doubtful = False
            self._unwatch()
        if not self._is_watched:
            self.loop.add_reader(self._fd, self._on_readable)
            self._is_watched = True
        if self._timer is None or self._timer.when() > self._deadline:
            self._set_timer()
        return reader

    def fail(self, error: BaseException) -> None:
        """Let `receive` raise ``error``, the waiting one and all that come."""
        self._failure = error
        if self._reader is not None and not self._reader.done():
            self._reader.set_exception(error)

    def send_some(self, data: bytes | memoryview) -> bytes | memoryview:
        """Send what the socket takes at once and return the rest.

        Raises `OSError` if the peer reads no more; what it wrote can still be
        received.
        """
        try:
            sent = self._socket.send(data)
        except (BlockingIOError, InterruptedError):
            return data
        except OSError:
            self._is_doubtful = True
            raise
        return b"" if sent == len(data) else memoryview(data)[sent:]

    async def send(self, data: bytes | memoryview) -> None:
        """Send all of ``data``, waiting while the peer does not read; errors as `send_some`."""
        rest = self.send_some(data)
        while rest:
            self._writer = self.loop.create_future()
            self.loop.add_writer(self._fd, self._on_writable)
            try:
                await self._writer
            finally:
                self._writer = None
                if not self.is_closed:
                    self.loop.remove_writer(self._fd)
            rest = self.send_some(rest)

    def half_close(self) -> None:
        """Tell the peer that nothing more will be sent; errors as `send_some`."""
        self._socket.shutdown(socket.SHUT_WR)

    def watch(self, on_idle: Callable[[ByteStream], object]) -> None:
        """Call back when the idle peer closes (or says something), until `receive` or `close`."""
        self._deadline = math.inf
        self._on_idle = on_idle
        # If it has an error by now, whoever takes it up again meets that when he sends.
        self._is_doubtful = False
        if not self._is_watched:
            self.loop.add_reader(self._fd, self._on_readable)
            self._is_watched = True

    def is_quiet(self) -> bool:
        """Tell whether the peer has neither closed nor sent anything."""
        try:
            self._socket.recv(1, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            return True
        except OSError:
            return False
        return False

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._socket.fileno() < 0

    def close(self) -> None:
        """Close the socket; a second time does nothing."""
        if self.is_closed:
            return
        self._unwatch()
        if self._writer is not None:
            self.loop.remove_writer(self._fd)
        self._cancel_timer()
        self._socket.close()
        if self.counter is not None:
            self.counter.release()
        for waiter in (self._reader, self._writer):
            if waiter is not None and not waiter.done():
                waiter.set_exception(ConnectionAbortedError("the stream was closed"))

    def _on_readable(self) -> None:
        reader = self._reader
        if reader is None or reader.done():
            if self._on_idle is not None:
                self._on_idle(self)
            else:
                self._unwatch()  # nobody waits: what there is stays in the socket
            return
        try:
            data = self._socket.recv(_READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            # A reset. What came before it was received, so it is an end like another.
            data = b""
        self._is_doubtful = True
        reader.set_result(data)

    def _unwatch(self) -> None:
        if self._is_watched:
            self._is_watched = False
            self.loop.remove_reader(self._fd)

    def _on_writable(self) -> None:
        self.loop.remove_writer(self._fd)
        if self._writer is not None and not self._writer.done():
            self._writer.set_result(None)

    def _set_timer(self) -> None:
        self._cancel_timer()
        if self._deadline < math.inf:
            self._timer = self.loop.call_at(self._deadline, self._on_timer)

    def _on_timer(self) -> None:
        # One timer serves many receives: a deadline that has moved sets it anew.
        self._timer = None
        if self._reader is None or self._reader.done():
            return
        if self.loop.time() >= self._deadline:
            self._reader.set_exception(TimeoutError())
        else:
            self._set_timer()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


async def connect(address: SocketAddress, *, timeout_s: float) -> ByteStream:
    """Connect within ``timeout_s`` seconds; a host's name is looked up within the same.

    Raises `BadGateway` if nothing listens there, and `Unavailable` if the
    application's backlog stays full, or, as `Exhausted`, if this process has no
    descriptor left.
    """
    try:
        if isinstance(address, UnixAddress):
            connected = await _connect_unix(address.path, timeout_s)
        else:
            connected = await _connect_tcp(address, timeout_s)
    except TimeoutError:
        raise Unavailable(
            f"{address} accepted no connection within {timeout_s:g} s", retry_after_s=1
        ) from None
    except OSError as error:
        raise _failure(address, error) from error
    return ByteStream(connected)


def _failure(address: SocketAddress, error: OSError) -> BackendError:
    text = f"cannot connect to {address}: {error}"
    if error.errno in EXHAUSTED:
        return Exhausted(text, retry_after_s=1)
    return BadGateway(text)


async def _connect_unix(path: str, timeout_s: float) -> socket.socket:
    connecting = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | _NONBLOCK)
    try:
        if not _NONBLOCK:
            connecting.setblocking(False)
        pause_s = _FIRST_RETRY_S
        deadline = 0.0
        while True:
            code = connecting.connect_ex(path)
            if code == 0:
                return connecting
            # unix(7): the backlog is full. There is no readiness to wait for.
            if code not in (errno.EAGAIN, errno.EINTR):
                raise OSError(code, os.strerror(code))
            now = asyncio.get_running_loop().time()
            deadline = deadline or now + timeout_s
            if now >= deadline:
                raise TimeoutError
            await asyncio.sleep(min(pause_s, deadline - now))
            pause_s = min(2 * pause_s, _LAST_RETRY_S)
    except BaseException:
        connecting.close()
        raise


async def _connect_tcp(address: TcpAddress, timeout_s: float) -> socket.socket:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    failure: OSError | None = None
    for each in await _numeric(address, deadline):
        family = numeric_family(each.host)
        assert family is not None
        connecting = socket.socket(family, socket.SOCK_STREAM)
        try:
            connecting.setblocking(False)
            connecting.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            code = connecting.connect_ex((each.host, each.port))
            if code == errno.EINPROGRESS:
                code = await _connected(loop, connecting, deadline)
            if code:
                raise OSError(code, os.strerror(code))
        except TimeoutError:
            connecting.close()
            raise
        except OSError as error:
            connecting.close()
            failure = error
        except BaseException:
            connecting.close()
            raise
        else:
            return connecting
    raise failure or OSError(errno.EADDRNOTAVAIL, "the name has no address")


async def _connected(
    loop: asyncio.AbstractEventLoop, connecting: socket.socket, deadline: float
) -> int:
    """Wait for the end of a connect and return its error number."""
    writable: asyncio.Future[None] = loop.create_future()
    fd = connecting.fileno()

    def on_writable() -> None:
        loop.remove_writer(fd)
        if not writable.done():
            writable.set_result(None)

    loop.add_writer(fd, on_writable)
    try:
        async with asyncio.timeout_at(deadline if deadline < math.inf else None):
            await writable
    finally:
        loop.remove_writer(fd)
    return connecting.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


async def _numeric(address: TcpAddress, deadline: float) -> list[TcpAddress]:
    if numeric_family(address.host) is not None:
        return [address]
    try:
        async with asyncio.timeout_at(deadline if deadline < math.inf else None):
            return await look_up_host(address)
    except TimeoutError:
        # Not TimeoutError again: it would say that somebody there is busy.
        raise OSError(errno.EHOSTUNREACH, f"{address.host!r} was not resolved in time") from None

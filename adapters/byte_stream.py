"""A connection to an application: address, connect, a byte stream over a socket.

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
from dataclasses import dataclass

from .errors import EXHAUSTED, BadGateway, Unavailable

_READ_BYTES = 64 * 1024
_FIRST_RETRY_S = 0.005
_LAST_RETRY_S = 0.1


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A unix socket by its path."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A host, by name or number, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> UnixAddress | TcpAddress:
    """Return the address that ``"unix:/path"``, ``"host:port"`` or ``"[::1]:port"`` means.

    Raises `ValueError` for anything else.
    """
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if not path or "\0" in path:
            raise ValueError(f"{text!r} has no path: write unix:/path/to/socket")
        return UnixAddress(path)
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        host = ""
    is_port = port.isascii() and port.isdigit() and 0 < int(port) < 65536
    if not colon or not host or not is_port or "/" in host:
        raise ValueError(f"{text!r} is not an address: write unix:/path, host:port or [::1]:port")
    return TcpAddress(host, int(port))


class ByteStream:
    """A connected stream socket. One task receives, at most one other sends."""

    __slots__ = (
        "_deadline",
        "_fd",
        "_loop",
        "_reader",
        "_socket",
        "_timer",
        "_writer",
    )

    def __init__(self, connected: socket.socket) -> None:
        self._loop = asyncio.get_running_loop()
        self._socket = connected
        self._fd = connected.fileno()
        self._reader: asyncio.Future[bytes] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._deadline = math.inf

    def expect(self, within_s: float) -> None:
        """Let `receive`, also one that waits already, give up in so many seconds."""
        self._deadline = self._loop.time() + within_s

    async def receive(self) -> bytes:
        """Return the next bytes, at most 64 KiB; ``b""`` once the peer has closed or reset.

        Raises `TimeoutError` when the time given to `expect` is over, and what was
        given to `fail`.
        """
        reader: asyncio.Future[bytes] = self._loop.create_future()
        self._reader = reader
        self._loop.add_reader(self._fd, self._on_readable)
        if self._timer is None or self._timer.when() > self._deadline:
            self._set_timer()
        try:
            return await reader
        finally:
            self._reader = None
            if not self.is_closed:
                self._loop.remove_reader(self._fd)

    def fail(self, error: BaseException) -> None:
        """Let the waiting `receive` raise ``error``."""
        if self._reader is not None and not self._reader.done():
            self._reader.set_exception(error)

    def send_some(self, data: bytes | memoryview) -> memoryview:
        """Send what the socket takes at once and return the rest.

        Raises `OSError` if the peer reads no more; what it wrote can still be
        received.
        """
        view = memoryview(data)
        try:
            return view[self._socket.send(view) :]
        except (BlockingIOError, InterruptedError):
            return view

    async def send(self, data: bytes | memoryview) -> None:
        """Send all of ``data``, waiting while the peer does not read; errors as `send_some`."""
        rest = self.send_some(data)
        while rest:
            self._writer = self._loop.create_future()
            self._loop.add_writer(self._fd, self._on_writable)
            try:
                await self._writer
            finally:
                self._writer = None
                if not self.is_closed:
                    self._loop.remove_writer(self._fd)
            rest = self.send_some(rest)

    def half_close(self) -> None:
        """Tell the peer that nothing more will be sent; errors as `send_some`."""
        self._socket.shutdown(socket.SHUT_WR)

    def watch(self, on_readable: Callable[[], None]) -> None:
        """Call back when the idle peer closes (or says something), until `receive` or `close`."""
        self._cancel_timer()
        self._loop.add_reader(self._fd, on_readable)

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
        self._loop.remove_reader(self._fd)
        self._loop.remove_writer(self._fd)
        self._cancel_timer()
        self._socket.close()
        for waiter in (self._reader, self._writer):
            if waiter is not None and not waiter.done():
                waiter.set_exception(ConnectionAbortedError("the stream was closed"))

    def _on_readable(self) -> None:
        # Each call is the last: where the socket has an error to tell (a reset, and
        # data before it), uvloop calls once and then watches it no more.
        self._loop.remove_reader(self._fd)
        reader = self._reader
        if reader is None or reader.done():
            return
        try:
            reader.set_result(self._socket.recv(_READ_BYTES))
        except (BlockingIOError, InterruptedError):
            self._loop.add_reader(self._fd, self._on_readable)
        except OSError:
            # A reset. What came before it was received, so it is an end like another.
            reader.set_result(b"")

    def _on_writable(self) -> None:
        self._loop.remove_writer(self._fd)
        if self._writer is not None and not self._writer.done():
            self._writer.set_result(None)

    def _set_timer(self) -> None:
        self._cancel_timer()
        if self._deadline < math.inf:
            self._timer = self._loop.call_at(self._deadline, self._on_timer)

    def _on_timer(self) -> None:
        # One timer serves many receives: a deadline that has moved sets it anew.
        self._timer = None
        if self._reader is None or self._reader.done():
            return
        if self._loop.time() >= self._deadline:
            self._reader.set_exception(TimeoutError())
        else:
            self._set_timer()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


async def connect(address: UnixAddress | TcpAddress, *, timeout_s: float) -> ByteStream:
    """Connect within ``timeout_s`` seconds.

    Raises `BadGateway` if nothing listens there, and `Unavailable` if the
    application's backlog stays full, or this process has no descriptor left.
    """
    deadline = asyncio.get_running_loop().time() + timeout_s
    try:
        if isinstance(address, UnixAddress):
            connected = await _connect_unix(address.path, deadline)
        else:
            connected = await _connect_tcp(address, deadline)
    except TimeoutError:
        raise Unavailable(
            f"{address} accepted no connection within {timeout_s:g} s", retry_after_s=1
        ) from None
    except OSError as error:
        if error.errno in EXHAUSTED:
            raise Unavailable(f"cannot connect to {address}: {error}", retry_after_s=1) from error
        raise BadGateway(f"cannot connect to {address}: {error}") from error
    return ByteStream(connected)


async def _connect_unix(path: str, deadline: float) -> socket.socket:
    loop = asyncio.get_running_loop()
    connecting = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connecting.setblocking(False)
        pause_s = _FIRST_RETRY_S
        while True:
            code = connecting.connect_ex(path)
            if code == 0:
                return connecting
            # unix(7): the backlog is full. There is no readiness to wait for.
            if code not in (errno.EAGAIN, errno.EINTR):
                raise OSError(code, os.strerror(code))
            left_s = deadline - loop.time()
            if left_s <= 0:
                raise TimeoutError
            await asyncio.sleep(min(pause_s, left_s))
            pause_s = min(2 * pause_s, _LAST_RETRY_S)
    except BaseException:
        connecting.close()
        raise


async def _connect_tcp(address: TcpAddress, deadline: float) -> socket.socket:
    loop = asyncio.get_running_loop()
    failure: OSError | None = None
    for family, sockaddr in await _resolve(address, deadline):
        connecting = socket.socket(family, socket.SOCK_STREAM)
        try:
            connecting.setblocking(False)
            connecting.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            code = connecting.connect_ex(sockaddr)
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


async def _resolve(
    address: TcpAddress, deadline: float
) -> list[tuple[socket.AddressFamily, tuple[object, ...]]]:
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, address.host)
        except OSError:
            continue
        return [(family, (address.host, address.port))]
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout_at(deadline if deadline < math.inf else None):
            found = await loop.getaddrinfo(
                address.host, address.port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP
            )
    except TimeoutError:
        # Not TimeoutError again: it would say that somebody there is busy.
        raise OSError(errno.EHOSTUNREACH, f"{address.host!r} was not resolved in time") from None
    return [(family, sockaddr) for family, _, _, _, sockaddr in found]

"""Configuration → running listeners, and a stop that loses no request.

In order: bind every address, import the applications, enter every backend (a
lifespan's startup, managed processes), and only then accept. On SIGTERM or
SIGINT: accept no more, answer what is in flight within ``timeouts.graceful``,
leave the backends. A second signal stops at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from ..adapters.errors import BackendError
from ..adapters.lifespan import LifespanFailure
from ..protocols.http1 import Http1Limits
from .access_log import AccessLog
from .assembly import Assembly, StartFailure, assemble
from .config import Config
from .http_driver import HttpConnection
from .listener import BindFailure, address_of, open_sockets
from .managed.generation import SpawnFailure
from .service import ConnectionLimits, PathRules, Service, ServiceSettings, Timeouts

__all__ = ["Banner", "Server", "StartFailure", "serve"]

logger = logging.getLogger("tetrapylon.gateway")

# What a backend has to end without waiting for anything, once a second signal has come.
_HURRIED_S = 0.2

_KEPT_BYTES = 2 * 1024 * 1024

#: Called once all is ready; `Server.addresses` and `Server.assembly` say what is served.
Banner = Callable[["Server"], None]


class Server:
    """The gateway, entered with ``async with``: running from there to the exit."""

    def __init__(self, config: Config) -> None:
        self.config = config
        #: What a person types to get there, once the server has been entered.
        self.addresses: list[str] = []
        self.assembly: Assembly | None = None
        self._service: Service | None = None
        self._listeners: list[asyncio.Server] = []
        self._sockets: list[socket.socket] = []
        self._access_log: AccessLog | None = None
        self._backends = contextlib.AsyncExitStack()
        self._is_hurried = asyncio.Event()

    async def __aenter__(self) -> Self:
        """Start; raise `StartFailure` with what stands in the way."""
        try:
            await self._start()
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def _start(self) -> None:
        config = self.config
        try:
            self._sockets = open_sockets(config.listen.bind, backlog=config.listen.backlog)
        except BindFailure as error:
            raise StartFailure(str(error)) from None
        if config.access_log.enabled:
            try:
                self._access_log = AccessLog(config.access_log.format, config.access_log.file)
            except OSError as error:
                raise StartFailure(
                    f"access_log.file: cannot write {config.access_log.file!r}: {error.strerror}"
                ) from None
        assembly = assemble(config)
        self.assembly = assembly
        for owned in assembly.lifetimes:
            try:
                await self._backends.enter_async_context(owned)
            except (LifespanFailure, SpawnFailure, BackendError, OSError) as error:
                raise StartFailure(str(error)) from error
        service = Service(
            assembly.router,
            _settings(config),
            access_log=self._access_log,
            sent_files=assembly.sent_files,
        )
        self._service = service
        service.start()
        loop = asyncio.get_running_loop()
        for sock in self._sockets:
            start: Any = loop.create_unix_server if _is_unix(sock) else loop.create_server
            accept = functools.partial(HttpConnection, service)
            self._listeners.append(await start(accept, sock=sock, backlog=config.listen.backlog))
            self.addresses.append(address_of(sock))

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop as the module says; backends are left even if a request is cut."""
        paths = [sock.getsockname() for sock in self._sockets if _is_unix(sock)]
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()
        for sock in self._sockets:
            sock.close()
        self._sockets.clear()
        for path in paths:
            with contextlib.suppress(OSError):
                os.unlink(path)
        try:
            if self._service is not None:
                await self._finish_requests(self._service)
        finally:
            try:
                await self._leave_backends()
            finally:
                if self._access_log is not None:
                    self._access_log.close()

    async def _finish_requests(self, service: Service) -> None:
        graceful_s = 0.0 if self._is_hurried.is_set() else self.config.timeouts.graceful_s
        stopping = asyncio.ensure_future(
            service.stop(
                graceful_s=graceful_s,
                on_wait=lambda count: logger.info(
                    "stopping: waiting for %d connection%s, at most %g s",
                    count,
                    "" if count == 1 else "s",
                    graceful_s,
                ),
            )
        )
        hurried = asyncio.ensure_future(self._is_hurried.wait())
        await asyncio.wait((stopping, hurried), return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()
        if not stopping.done():
            stopping.cancel()
            await asyncio.wait((stopping,))
            cut = await service.stop(graceful_s=0.0)
        else:
            cut = stopping.result()
        if cut:
            logger.warning("stopped with %d request%s cut", cut, "" if cut == 1 else "s")

    async def _leave_backends(self) -> None:
        leaving = asyncio.ensure_future(self._backends.aclose())
        hurried = asyncio.ensure_future(self._is_hurried.wait())
        await asyncio.wait((leaving, hurried), return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()
        # A backend that waits, as for threads that still run, is not waited for then.
        while not (await asyncio.wait((leaving,), timeout=_HURRIED_S))[0]:
            leaving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            leaving.result()

    def hurry(self) -> None:
        """Stop waiting for requests in flight, and for backends to come to their end."""
        self._is_hurried.set()


def _is_unix(sock: socket.socket) -> bool:
    return sock.family == socket.AF_UNIX


def _settings(config: Config) -> ServiceSettings:
    limits, timeouts, http = config.limits, config.timeouts, config.http
    return ServiceSettings(
        engine=http.engine,
        http1=Http1Limits(
            request_line=limits.request_line_bytes,
            headers=limits.headers_bytes,
            header_count=limits.header_count,
            chunk_line=limits.chunk_line_bytes,
            chunk_overhead=limits.chunk_overhead_bytes,
            trailers=limits.trailers_bytes,
            refuses_odd_names=http.header_names == "refuse",
        ),
        limits=ConnectionLimits(
            body=limits.body_bytes,
            body_rate=limits.body_rate_bytes_per_s,
            body_buffer=limits.body_buffer_bytes,
            read_ahead=limits.read_ahead_bytes,
            drain=limits.drain_bytes,
            send_buffer=limits.send_buffer_bytes,
            requests=limits.requests_per_connection,
            age_s=limits.connection_age_s,
        ),
        timeouts=Timeouts(
            first_byte=timeouts.first_byte_s,
            header=timeouts.header_s,
            body_idle=timeouts.body_idle_s,
            send_idle=timeouts.send_idle_s,
            keep_alive=timeouts.keep_alive_s,
            half_close=timeouts.half_close_s,
            linger=timeouts.linger_s,
        ),
        paths=PathRules(
            keeps_encoded_slash=http.encoded_slash == "keep",
            merges_slashes=http.merge_slashes,
        ),
    )


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def serve(config: Config, *, banner: Banner | None = None) -> int:
    """Run the gateway until SIGTERM or SIGINT; return the exit code.

    After that both signals are ignored: the process is about to end, and to be
    asked once more must not turn a clean end into a death by signal.
    Raises `StartFailure` for whatever keeps it from starting.
    """
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(_serve(config, banner))


def _keep_memory_at_hand() -> None:
    """Let the allocator keep a little of what is freed.

    Bodies come and go in blocks of 64 KiB, and glibc gives such blocks back to the
    system at once, to be asked for again, cleared page by page, with the next body.
    Once it has seen a larger block freed, it keeps up to twice its size: mallopt(3),
    "dynamic mmap threshold". Elsewhere this does nothing.
    """
    bytearray(_KEPT_BYTES)


def _set_aside_what_stays() -> None:
    """Spare the garbage collector what was loaded at the start and lives to the end.

    Else each full collection, which applications like Mercurial ask for at every
    request, walks through all modules again.
    """
    gc.collect()
    gc.freeze()


async def _serve(config: Config, banner: Banner | None) -> int:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    server = Server(config)

    def on_signal() -> None:
        if stop.is_set():
            server.hurry()
        stop.set()

    _keep_memory_at_hand()
    signals = (signal.SIGTERM, signal.SIGINT)
    for number in signals:
        loop.add_signal_handler(number, on_signal)
    try:
        starting = asyncio.ensure_future(server.__aenter__())
        stopped = asyncio.ensure_future(stop.wait())
        await asyncio.wait((starting, stopped), return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            # A signal while an application starts up: it has not served anything yet.
            starting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await starting
            stopped.cancel()
            return 0
        starting.result()
        try:
            if banner is not None:
                banner(server)
            _set_aside_what_stays()
            await stopped
        finally:
            await server.__aexit__(*sys.exc_info())
    finally:
        for number in signals:
            loop.remove_signal_handler(number)
            if stop.is_set():
                signal.signal(number, signal.SIG_IGN)
    return 0

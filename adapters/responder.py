"""A server of one protocol in front of one ASGI application: sockets, signals, lifespan.

What `AsgiToFastCgi` and `AsgiToScgi` share. The listening socket is the one that a web
server or a spawner left on file descriptor 0 (FastCGI Specification 1.0, section 2.2), or
one of our own. Several processes may accept from one socket. Everything runs in one event
loop; the application's lifespan spans all of its requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self, TypedDict

from ..protocols.asgi import Application, Scope
from .addresses import UnixAddress, parse_address
from .asgi_call import AsgiCall
from .asgi_scope import PathErrors, body_length, http_scope
from .errors import EXHAUSTED
from .event_loops import new_event_loop
from .lifespan import Lifespan, Mode
from .listening import allowed_peers, inherited_socket, listen, plain_address
from .peer_connection import PeerConnection
from .standard_streams import fill_standard_streams

logger = logging.getLogger("tetrapylon.adapters.responder")

_ACCEPTS_IN_A_ROW = 16
# RELIABILITY B9: to try at once again would be a loop.
_EXHAUSTED_PAUSE_S = 0.1
_LAST_WORDS_S = 1.0
_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class ResponderOptions(TypedDict, total=False):
    """What every `Responder` can be told; its docstring says what it means."""

    bind: str | socket.socket | None
    socket_mode: int | None
    connections: int
    requests: int
    idle_s: float
    body_ahead_bytes: int
    lifespan: Mode
    lifespan_s: float
    graceful_s: float
    root_path: str | None
    path_errors: PathErrors
    name: str


class Responder(ABC):
    """Serves the application to web servers.

    ``bind`` is ``"unix:/path"``, ``"host:port"``, ``"[::1]:port"``, a listening socket, or
    ``None`` for the socket on file descriptor 0. ``socket_mode`` are the permissions of
    the unix socket, as the umask has it by default.

    At most ``connections`` are open at a time, more wait in the socket's backlog; at most
    ``requests`` run at a time. A connection on which no request runs is closed after
    ``idle_s`` seconds (0: never). Of a request's body ``body_ahead_bytes`` may wait to be
    taken by the application, and then the web server waits.

    ``lifespan`` and ``lifespan_s`` are as in `Lifespan`. ``root_path`` is where the
    application is mounted; without it SCRIPT_NAME says so, as far as that can be told:
    some web servers leave the whole path in it. ``path_errors`` is what becomes of bytes
    in a path that are not UTF-8.

    At a stop nothing new is accepted, and what runs may go on for ``graceful_s`` seconds.
    """

    def __init__(
        self,
        app: Application,
        *,
        bind: str | socket.socket | None = None,
        socket_mode: int | None = None,
        connections: int = 128,
        requests: int = 128,
        idle_s: float = 300.0,
        body_ahead_bytes: int = 64 * 1024,
        lifespan: Mode = "auto",
        lifespan_s: float = 60.0,
        graceful_s: float = 30.0,
        root_path: str | None = None,
        path_errors: PathErrors = "replace",
        name: str = "asgi",
    ) -> None:
        self._address = parse_address(bind) if isinstance(bind, str) else None
        self._given = None if isinstance(bind, str) else bind
        self._socket_mode = socket_mode
        #: How many connections may be open, and how many requests run.
        self.connections_limit = connections
        self.requests_limit = requests
        self.idle_s = idle_s
        self.body_ahead_bytes = body_ahead_bytes
        self._graceful_s = graceful_s
        self._root_path = root_path
        self._path_errors: PathErrors = path_errors
        self.name = name
        self.app = app
        self._lifespan_mode: Mode = lifespan
        self._lifespan_s = lifespan_s
        self._lifespan: Lifespan | None = None
        self._allowed = allowed_peers()
        self._socket: socket.socket | None = None
        self._accepting: set[asyncio.Task[Any]] = set()
        self._is_accepting = False
        self._open: set[PeerConnection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._news = asyncio.Event()
        #: No new request is taken any more.
        self.is_stopping = False
        self._is_cut_short = False

    @abstractmethod
    def connection(self) -> PeerConnection:
        """Return the protocol object of a new connection."""

    # Running

    def run(self) -> None:
        """Serve until SIGTERM, SIGUSR1 or SIGINT; the second of them ends what still runs.

        For the main thread. Raises `OSError` for an address that cannot be listened on,
        `LifespanFailure` if the application does not start.
        """
        fill_standard_streams()
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(self._run())

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self.stop)
        async with self:
            await self.serve()

    async def serve(self) -> None:
        """Serve until `stop`; on the running loop, within ``async with``."""
        while not self.is_stopping:
            await self._changed()
        for connection in list(self._open):
            connection.stop()
        try:
            async with asyncio.timeout(self._graceful_s):
                while (self._tasks or self._open) and not self._is_cut_short:
                    await self._changed()
        except TimeoutError:
            logger.warning("%s: %d requests are cut short", self.name, len(self._tasks))

    def stop(self) -> None:
        """Take nothing new, and end what runs gracefully; called again, at once."""
        self._is_cut_short = self.is_stopping
        self.is_stopping = True
        self._stop_accepting()
        self._news.set()

    async def __aenter__(self) -> Self:
        listening = self._listen()
        try:
            self._lifespan = Lifespan(
                self.app, mode=self._lifespan_mode, timeout_s=self._lifespan_s, name=self.name
            )
            await self._lifespan.__aenter__()
        except BaseException:
            self._unlink()
            listening.close()
            raise
        self._socket = listening
        self._resume_accepting()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop_accepting()
        self._close_socket()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_LAST_WORDS_S)
        for connection in list(self._open):
            connection.abort()
        assert self._lifespan is not None
        await self._lifespan.__aexit__(exc_type, exc, traceback)

    @property
    def address(self) -> Any:
        """Where it listens, as `socket.getsockname` has it."""
        assert self._socket is not None
        return self._socket.getsockname()

    async def _changed(self) -> None:
        self._news.clear()
        await self._news.wait()

    # The listening socket

    def _listen(self) -> socket.socket:
        if self._address is not None:
            listening = listen(self._address, self._socket_mode)
        elif self._given is not None:
            listening = self._given
        else:
            listening = inherited_socket()
        listening.setblocking(False)
        return listening

    def _resume_accepting(self) -> None:
        if self._socket is None or self._is_accepting or self.is_stopping:
            return
        if len(self._open) + len(self._accepting) < self.connections_limit:
            self._is_accepting = True
            asyncio.get_running_loop().add_reader(self._socket, self._accept)

    def _stop_accepting(self) -> None:
        if self._is_accepting and self._socket is not None:
            self._is_accepting = False
            asyncio.get_running_loop().remove_reader(self._socket)
        if self.is_stopping:
            self._close_socket()

    def _close_socket(self) -> None:
        if self._socket is not None:
            self._unlink()
            self._socket.close()
            self._socket = None

    def _unlink(self) -> None:
        if isinstance(self._address, UnixAddress):
            with contextlib.suppress(OSError):
                os.unlink(self._address.path)

    def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(_ACCEPTS_IN_A_ROW):
            if len(self._open) + len(self._accepting) >= self.connections_limit:
                self._stop_accepting()
                return
            assert self._socket is not None
            try:
                connected, peer = self._socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                # Another process of the same socket was faster, or the peer has left.
                return
            except OSError as error:
                if error.errno not in EXHAUSTED:
                    raise
                logger.error("%s: cannot accept: %s", self.name, error)
                self._stop_accepting()
                loop.call_later(_EXHAUSTED_PAUSE_S, self._resume_accepting)
                return
            if not self._is_allowed(connected, peer):
                logger.warning("%s: %s is not in FCGI_WEB_SERVER_ADDRS", self.name, peer[0])
                connected.close()
                continue
            task = loop.create_task(self._begin(connected))
            self._accepting.add(task)
            task.add_done_callback(self._begun)

    async def _begin(self, connected: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        if connected.family != socket.AF_UNIX:
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            await loop.connect_accepted_socket(self.connection, connected)
        except OSError as error:
            logger.debug("%s: a connection failed at once: %s", self.name, error)
            connected.close()

    def _begun(self, task: asyncio.Task[None]) -> None:
        self._accepting.discard(task)
        # For a moment it was counted twice.
        self._resume_accepting()

    def _is_allowed(self, connected: socket.socket, peer: Any) -> bool:
        # FastCGI Specification 1.0, section 3.2
        if self._allowed is None or connected.family == socket.AF_UNIX:
            return True
        return plain_address(peer[0]) in self._allowed

    # For connections

    def opened(self, connection: PeerConnection) -> None:
        """Count a connection."""
        self._open.add(connection)
        if self.is_stopping:
            connection.stop()

    def closed(self, connection: PeerConnection) -> None:
        """Count it no more."""
        self._open.discard(connection)
        self._news.set()
        self._resume_accepting()

    @property
    def is_full(self) -> bool:
        """Whether no further request may run now."""
        return self.is_stopping or len(self._tasks) >= self.requests_limit

    def scope(self, variables: Mapping[str, str]) -> tuple[Scope, int | None]:
        """Return the scope of a request, and the length of its body if it is told.

        Raises `ValueError` if the variables are no HTTP request.
        """
        if not variables.get("REQUEST_METHOD"):
            raise ValueError("there is no REQUEST_METHOD")
        body_bytes = body_length(variables)
        scope = http_scope(
            variables, root_path=self._root_path, is_split=False, path_errors=self._path_errors
        )
        assert self._lifespan is not None
        if self._lifespan.is_supported:
            scope["state"] = self._lifespan.state.copy()
        return scope, body_bytes

    def start(self, call: AsgiCall) -> None:
        """Run the application for a request."""
        task = asyncio.get_running_loop().create_task(call.run())
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._news.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("%s: a request ended badly", self.name, exc_info=error)

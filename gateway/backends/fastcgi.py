"""A FastCGI application as a backend: at an address, or started by the gateway.

How a request is put to it and answered is `FastCgiToAsgi`'s; here is its
lifetime (FastCGI Specification 1.0, section 2).
"""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Awaitable, Mapping, Sequence
from types import TracebackType
from typing import Self

from ...adapters.addresses import TcpAddress, UnixAddress, parse_address
from ...adapters.fastcgi_authorizer import FastCgiAuthorizer
from ...adapters.fastcgi_to_asgi import FastCgiToAsgi
from ...protocols.asgi import Receive, Scope, Send
from .. import limits
from ..managed.application import ManagedApplication
from ..spawn.client import Spawner
from ..spawn.confinement import child_user
from .base import Backend


class FastCgiBackend(Backend):
    """The application at ``address``, or one that ``spawn`` starts, there or at a private socket.

    Without ``root`` the router has to give it the route's prefix as
    ``root_path``, which is the application's SCRIPT_NAME. ``spawn`` is a command
    of which ``processes`` run, see `ManagedApplication`, whose arguments have the
    same names; ``spawner``, the server's, starts them. ``user`` and ``group`` are
    whom they run as, ``restart_on_change`` what they are restarted for beside their
    own command (None: not for that either), ``touch_reload`` a file for the same.
    All other arguments are `FastCgiToAsgi`'s. ``connections`` are 32 by default, which wait in the
    socket's backlog where an application takes fewer; kept ones would hold its
    processes, so where ``keep_alive`` meets ``spawn`` there is one for each.

    Raises `ValueError` for an address or parameters that cannot be, and for a user
    that only root could choose; `LookupError` for one that there is not. Entering
    it raises `SpawnFailure` if the application does not start.
    """

    kind = "fastcgi"
    local_redirects = limits.LOCAL_REDIRECTS

    def __init__(
        self,
        name: str,
        *,
        address: str | Sequence[str] | None = None,
        spawn: Sequence[str] = (),
        processes: int = 1,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        user: str | None = None,
        group: str | None = None,
        spawner: Spawner | None = None,
        kill_after_s: float = limits.FASTCGI_KILL_AFTER_S,
        backoff_s: float = limits.FASTCGI_BACKOFF_S,
        graceful_s: float = limits.GRACEFUL_S,
        max_requests: int = 0,
        max_memory_bytes: int = 0,
        restart_on_change: Sequence[str] | None = None,
        touch_reload: str | None = None,
        starts_on_demand: bool = False,
        stop_idle_s: float = 0.0,
        root: str | os.PathLike[str] | None = None,
        index: Sequence[str] = ("index.php",),
        split: Sequence[str] = (".php",),
        check_file: bool = True,
        params: Mapping[str, str] | None = None,
        pass_authorization: bool = True,
        connect_s: float = limits.FASTCGI_CONNECT_S,
        first_byte_s: float = limits.FASTCGI_FIRST_BYTE_S,
        output_idle_s: float = limits.OUTPUT_IDLE_S,
        connections: int | None = None,
        queue: int = limits.QUEUE,
        queue_wait_s: float = limits.QUEUE_WAIT_S,
        keep_alive: bool = False,
        idle_s: float = limits.FASTCGI_IDLE_S,
        retries: int = limits.FASTCGI_RETRIES,
        multiplex: int = 1,
        breaker: int = limits.FASTCGI_BREAKER,
        breaker_window_s: float = limits.FASTCGI_BREAKER_WINDOW_S,
        resolve_s: float = limits.FASTCGI_RESOLVE_S,
        body_limit_bytes: int | None = None,
        spool_bytes: int = limits.SPOOL_MEMORY_BYTES,
        response_head_bytes: int = limits.RESPONSE_HEADERS_BYTES,
    ) -> None:
        super().__init__(name, body_limit_bytes=body_limit_bytes)
        if not address and not spawn:
            raise ValueError("a FastCGI backend needs an address, or a command to spawn")
        self._root = root
        self._command = tuple(spawn)
        if connections is None:
            is_exclusive = bool(spawn) and keep_alive
            connections = processes if is_exclusive else limits.FASTCGI_CONNECTIONS
        self._app = FastCgiToAsgi(
            # A private socket has its path when it is made, on entering.
            address or "unix:private",
            root=root,
            index=index,
            split=split,
            check_file=check_file,
            params=params,
            pass_authorization=pass_authorization,
            connect_s=connect_s,
            first_byte_s=first_byte_s,
            output_idle_s=output_idle_s,
            connections=connections,
            queue=queue,
            queue_wait_s=queue_wait_s,
            keep_alive=keep_alive,
            idle_s=idle_s,
            retries=retries,
            multiplex=multiplex,
            breaker=breaker,
            breaker_window_s=breaker_window_s,
            resolve_s=resolve_s,
            body_limit_bytes=body_limit_bytes,
            spool_memory_bytes=spool_bytes,
            head_limit_bytes=response_head_bytes,
            name=name,
        )
        self._managed: ManagedApplication | None = None
        if spawn:
            # With one request for each process at a time, none has to wait for one that
            # is busy: they can have sockets of their own, and be exchanged one by one.
            is_recycled = bool(max_requests or max_memory_bytes)
            is_apart = is_recycled and not address and connections <= processes
            self._managed = ManagedApplication(
                name,
                spawn,
                self._app.connections,
                spawner=spawner,
                address=_own_address(address) if address else None,
                processes=processes,
                sockets=processes if is_apart else 1,
                env=env,
                cwd=cwd,
                user=child_user(user, group),
                kill_after_s=kill_after_s,
                backoff_s=backoff_s,
                graceful_s=graceful_s,
                max_requests=max_requests,
                max_memory_bytes=max_memory_bytes,
                watched=restart_on_change or (),
                watches_command=restart_on_change is not None,
                touch_reload=touch_reload,
                starts_on_demand=starts_on_demand,
                stop_idle_s=stop_idle_s,
            )

        self._authorizer = FastCgiAuthorizer(self._app)

    @property
    def pids(self) -> list[int]:
        """The application's processes, if the gateway started them."""
        return self._managed.pids if self._managed is not None else []

    async def __aenter__(self) -> Self:
        if self._managed is not None:
            await self._managed.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        async with contextlib.AsyncExitStack() as stack:
            if self._managed is not None:
                stack.push_async_exit(self._managed)
            self._app.close()

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Answer one request by the application."""
        if self._managed is not None:
            self._managed.count_request()
        return self._app.answer(scope, receive, send)

    async def authorize(self, scope: Scope, receive: Receive, send: Send) -> dict[str, str] | None:
        """Say whether others may answer a request, as `FastCgiAuthorizer` does."""
        if self._managed is not None:
            self._managed.count_request()
        return await self._authorizer.authorize(scope, receive, send)

    def describe(self) -> str:
        """Say in a few words what is served."""
        if self._command:
            where = f"by {shlex.join(self._command)}"
        else:
            where = "at " + ", ".join(map(str, self._app.connections.addresses))
        return f"FastCGI {where}" + (f", scripts in {self._root}" if self._root else "")


def _own_address(address: str | Sequence[str]) -> UnixAddress | TcpAddress:
    """Return where a spawned application is to listen."""
    texts = (address,) if isinstance(address, str) else address
    if len(texts) > 1:
        raise ValueError("a spawned application has one socket: give one address")
    return parse_address(texts[0])

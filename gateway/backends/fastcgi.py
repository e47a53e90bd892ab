"""A FastCGI application as a backend: at an address, or started by the gateway.

How a request is put to it and answered is `FastCgiToAsgi`'s; here is its
lifetime (FastCGI Specification 1.0, section 2).
"""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

from ...adapters.byte_stream import parse_address
from ...adapters.fastcgi_to_asgi import FastCgiToAsgi
from ...protocols.asgi import Receive, Scope, Send
from .. import limits
from .base import Backend
from .listening_processes import ListeningProcesses


class FastCgiBackend(Backend):
    """The application at ``address``, or one that ``spawn`` starts, there or at a private socket.

    Without ``root`` the router has to give it the route's prefix as
    ``root_path``, which is the application's SCRIPT_NAME. ``spawn`` is a command
    of which ``processes`` run, see `ListeningProcesses`; all other arguments are
    `FastCgiToAsgi`'s. ``connections`` are 32 by default, which wait in the
    socket's backlog where an application takes fewer; kept ones would hold its
    processes, so where ``keep_alive`` meets ``spawn`` there is one for each.

    Raises `ValueError` for an address or parameters that cannot be; entering it
    raises `SpawnFailure` if the application does not start.
    """

    kind = "fastcgi"
    local_redirects = limits.LOCAL_REDIRECTS

    def __init__(
        self,
        name: str,
        *,
        address: str | None = None,
        spawn: Sequence[str] = (),
        processes: int = 1,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        kill_after_s: float = limits.FASTCGI_KILL_AFTER_S,
        backoff_s: float = limits.FASTCGI_BACKOFF_S,
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
        body_limit_bytes: int | None = None,
        spool_bytes: int = limits.SPOOL_MEMORY_BYTES,
        response_head_bytes: int = limits.RESPONSE_HEADERS_BYTES,
    ) -> None:
        super().__init__(name, body_limit_bytes=body_limit_bytes)
        if address is None and not spawn:
            raise ValueError("a FastCGI backend needs an address, or a command to spawn")
        self._root = root
        self._command = tuple(spawn)
        self._processes: ListeningProcesses | None = None
        if spawn:
            self._processes = ListeningProcesses(
                name,
                spawn,
                address=parse_address(address) if address is not None else None,
                processes=processes,
                env=env,
                cwd=cwd,
                kill_after_s=kill_after_s,
                backoff_s=backoff_s,
            )
        if connections is None:
            is_exclusive = bool(spawn) and keep_alive
            connections = processes if is_exclusive else limits.FASTCGI_CONNECTIONS
        self._app = FastCgiToAsgi(
            # A private socket has its path when it is made, on entering.
            address if address is not None else "unix:private",
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
            body_limit_bytes=body_limit_bytes,
            spool_memory_bytes=spool_bytes,
            head_limit_bytes=response_head_bytes,
            name=name,
        )

    @property
    def pids(self) -> list[int]:
        """The application's processes, if the gateway started them."""
        return self._processes.pids if self._processes is not None else []

    async def __aenter__(self) -> Self:
        if self._processes is not None:
            await self._processes.__aenter__()
            assert self._processes.address is not None
            self._app.connections.address = self._processes.address
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        async with contextlib.AsyncExitStack() as stack:
            if self._processes is not None:
                stack.push_async_exit(self._processes)
            self._app.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request by the application."""
        await self._app(scope, receive, send)

    def describe(self) -> str:
        """Say in a few words what is served."""
        if self._command:
            where = f"by {shlex.join(self._command)}"
        else:
            where = f"at {self._app.connections.address}"
        return f"FastCGI {where}" + (f", scripts in {self._root}" if self._root else "")

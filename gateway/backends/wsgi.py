"""A WSGI application as a backend: the adapter and its threads, with a lifetime."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from types import TracebackType
from typing import Self

from ...adapters.wsgi_to_asgi import WsgiToAsgi
from ...protocols.asgi import Receive, Scope, Send
from ...protocols.wsgi import Application
from .. import limits
from .base import Backend


class WsgiBackend(Backend):
    """Runs a WSGI application in ``threads`` threads, behind a queue.

    ``queue`` requests wait for a thread, each ``queue_wait_s`` seconds at most;
    beyond that the answer is 503. ``spool``: a thread is taken when the
    request's body is complete; without it, the application reads from the
    connection. ``environ`` is added to each request's environ.
    ``multiprocess`` tells the application of other workers. ``application`` is
    what `describe` calls it.
    """

    kind = "wsgi"

    def __init__(
        self,
        name: str,
        app: Application,
        *,
        threads: int = limits.WSGI_THREADS,
        queue: int = limits.QUEUE,
        queue_wait_s: float = limits.QUEUE_WAIT_S,
        spool: bool = True,
        spool_memory_bytes: int = limits.SPOOL_MEMORY_BYTES,
        body_limit_bytes: int | None = None,
        stop_s: float = limits.GRACEFUL_S,
        environ: Mapping[str, str] | None = None,
        multiprocess: bool = False,
        application: str = "",
    ) -> None:
        super().__init__(name, body_limit_bytes=body_limit_bytes)
        self._threads = threads
        self._application = application or name
        self._adapter = WsgiToAsgi(
            app,
            threads=threads,
            queue=queue,
            queue_wait_s=queue_wait_s,
            spool=spool,
            spool_memory_bytes=spool_memory_bytes,
            body_limit_bytes=body_limit_bytes,
            # The connection driver gives up clients that move nothing.
            client_idle_s=None,
            stop_s=stop_s,
            environ=environ,
            multiprocess=multiprocess,
            name=name,
        )

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Answer one request."""
        # Not a coroutine function itself: that would be one more to step through.
        return self._adapter(scope, receive, send)

    async def __aenter__(self) -> Self:
        await self._adapter.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._adapter.aclose()

    def describe(self) -> str:
        """Say in a few words what is served."""
        return f"WSGI application {self._application}, {self._threads} threads"

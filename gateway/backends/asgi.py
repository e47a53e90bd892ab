"""An ASGI application as a backend: its lifespan, and what each of its requests needs.

The application is given the driver's own ``receive`` and ``send``. That it answers
in time, and at all, is seen to by the connection driver, for which
``first_byte_s`` is noted on its exchange; so a request passes through here at the
cost of a few dictionary entries.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable
from types import TracebackType
from typing import Any, Self

from ...adapters.lifespan import Lifespan, Mode
from ...adapters.loading import single_callable
from ...protocols.asgi import GATEWAY_EXTENSION, Receive, Scope, Send
from .. import limits
from .base import Backend

_LONE_SURROGATES = re.compile("[\ud800-\udfff]")


class AsgiBackend(Backend):
    """Calls an ASGI application (3, or 2) on the event loop.

    ``lifespan``: see `tetrapylon.adapters.lifespan.Lifespan`; its start, and its
    stop, may take ``lifespan_s`` seconds. An application that has not begun its
    answer after ``first_byte_s`` seconds is cancelled and the client gets 504
    (0: it may take for ever). ``application`` is what `describe` calls it.

    Entering raises `tetrapylon.adapters.lifespan.LifespanFailure`.
    """

    kind = "asgi"

    def __init__(
        self,
        name: str,
        app: Any,
        *,
        lifespan: Mode | Lifespan = "auto",
        lifespan_s: float = limits.GRACEFUL_S,
        first_byte_s: float = limits.ASGI_FIRST_BYTE_S,
        body_limit_bytes: int | None = None,
        application: str = "",
    ) -> None:
        super().__init__(name, body_limit_bytes=body_limit_bytes)
        self._app = single_callable(app)
        self._first_byte_s = first_byte_s
        self._application = application or name
        self._owns_lifespan = not isinstance(lifespan, Lifespan)
        if not isinstance(lifespan, Lifespan):
            lifespan = Lifespan(self._app, mode=lifespan, timeout_s=lifespan_s, name=name)
        self._lifespan = lifespan
        self._state: dict[str, Any] | None = None

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Return the application's own call, ready to be awaited."""
        # Taken away from the application: within it, an adapter behind middleware is to
        # answer by itself, as it does under any other server.
        extensions = scope.get("extensions")
        exchange = extensions.pop(GATEWAY_EXTENSION, None) if extensions else None
        if exchange is not None:
            exchange.first_byte_s = self._first_byte_s
        if self._state is not None:
            scope["state"] = self._state.copy()
        # Bytes that are not UTF-8 came through the driver as lone surrogates, which no
        # application expects: it could not even log or print them.
        if not scope["path"].isascii():
            scope["path"] = _LONE_SURROGATES.sub("\ufffd", scope["path"])
            scope["root_path"] = _LONE_SURROGATES.sub("\ufffd", scope.get("root_path", ""))
        return self._app(scope, receive, send)

    async def __aenter__(self) -> Self:
        if self._owns_lifespan:
            await self._lifespan.__aenter__()
        if self._lifespan.is_supported:
            self._state = self._lifespan.state
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._owns_lifespan:
            await self._lifespan.__aexit__(exc_type, exc, traceback)

    def describe(self) -> str:
        """Say in a few words what is served."""
        return f"ASGI application {self._application}"

"""A backend: an ASGI application with a lifetime.

The server enters each backend once before the listener accepts (`async with`),
and leaves it after the last request was answered. Failing to enter stops the
start with the backend's name and the reason.
"""

from __future__ import annotations

from collections.abc import Awaitable
from types import TracebackType
from typing import Self

from ...protocols.asgi import Receive, Scope, Send


class Backend:
    """What the router calls and the server owns.

    ``name`` is the configuration's name for it, shown in logs and errors;
    ``kind`` the key that chose its protocol; ``body_limit_bytes`` how large a
    request body may be (``None``: the listener's own limit);
    ``local_redirects`` how often in a row its answer may be a CGI local
    redirect (0: never, as an application in this process).
    """

    kind = "asgi"
    local_redirects = 0

    def __init__(self, name: str, *, body_limit_bytes: int | None = None) -> None:
        self.name = name
        self.body_limit_bytes = body_limit_bytes

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Answer one request, once awaited: a coroutine function, or a plain one returning it."""
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        return None

    def describe(self) -> str:
        """Say in a few words what is served, for the start banner and ``check``."""
        raise NotImplementedError

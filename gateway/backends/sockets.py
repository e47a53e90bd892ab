"""SCGI and uwsgi applications as backends: at an address, run by somebody else.

How a request is put to them and answered is `SocketToAsgi`'s; here is its place in
the gateway.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, ClassVar

from ...adapters.scgi_to_asgi import ScgiToAsgi
from ...adapters.socket_to_asgi import SocketToAsgi
from ...adapters.uwsgi_to_asgi import UwsgiToAsgi
from ...protocols.asgi import Receive, Scope, Send
from .. import limits
from .base import Backend


class SocketBackend(Backend):
    """The application at ``address``, or at one of several.

    Without ``root`` the router has to give it the route's prefix as
    ``root_path``, which is the application's SCRIPT_NAME. All other arguments are
    those of the ``adapter``.

    Raises `ValueError` for an address or parameters that cannot be.
    """

    local_redirects = limits.LOCAL_REDIRECTS
    adapter: ClassVar[type[SocketToAsgi]]

    # The options have their types in the adapter.
    def __init__(
        self,
        name: str,
        *,
        address: str | Sequence[str],
        body_limit_bytes: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(name, body_limit_bytes=body_limit_bytes)
        self._root = options.get("root")
        self._app = self.adapter(address, body_limit_bytes=body_limit_bytes, name=name, **options)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request by the application."""
        await self._app(scope, receive, send)

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._app.close()

    def describe(self) -> str:
        """Say in a few words what is served."""
        where = ", ".join(map(str, self._app.connections.addresses))
        scripts = f", scripts in {self._root}" if self._root else ""
        return f"{self._app.protocol} at {where}{scripts}"


class ScgiBackend(SocketBackend):
    """An SCGI application."""

    kind = "scgi"
    adapter = ScgiToAsgi


class UwsgiBackend(SocketBackend):
    """A uWSGI server, by its own protocol."""

    kind = "uwsgi"
    adapter = UwsgiToAsgi

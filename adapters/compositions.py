"""The ways between two protocols that lead through ASGI, by the names that one looks for.

Each is one adapter around another; what they can be told is said where they stand.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, cast

from ..protocols import wsgi
from ..protocols.asgi import Receive, Scope, Send
from .asgi_to_cgi import AsgiToCgi
from .asgi_to_fastcgi import AsgiToFastCgi
from .asgi_to_scgi import AsgiToScgi
from .asgi_to_wsgi import AsgiToWsgi
from .cgi_to_asgi import CgiToAsgi
from .fastcgi_to_asgi import FastCgiToAsgi
from .wsgi_to_asgi import WsgiToAsgi


class WsgiToCgi(AsgiToCgi):
    """A WSGI application as a CGI script; ``environ`` is put into its own."""

    def __init__(
        self,
        app: wsgi.Application,
        *,
        environ: dict[str, str] | None = None,
        root_path: str | None = None,
    ) -> None:
        # PEP 3333: the server, which is this process, calls it once.
        variables = cast(dict[str, str], {"wsgi.run_once": True, **(environ or {})})
        super().__init__(
            WsgiToAsgi(app, threads=1, multiprocess=True, environ=variables),
            root_path=root_path,
            path_errors="surrogateescape",
        )


class WsgiToFastCgi(AsgiToFastCgi):
    """A WSGI application as a FastCGI application, with ``threads`` for its requests.

    As many requests wait for a thread as `AsgiToFastCgi` takes with its ``options``.
    """

    def __init__(self, app: wsgi.Application, *, threads: int = 8, **options: Any) -> None:
        options.setdefault("path_errors", "surrogateescape")
        super().__init__(_in_threads(app, threads), **options)


class WsgiToScgi(AsgiToScgi):
    """A WSGI application as an SCGI application; all is as in `WsgiToFastCgi`."""

    def __init__(self, app: wsgi.Application, *, threads: int = 8, **options: Any) -> None:
        options.setdefault("path_errors", "surrogateescape")
        super().__init__(_in_threads(app, threads), **options)


class CgiToWsgi(AsgiToWsgi):
    """A CGI script, or a directory of them, as a WSGI application.

    ``options`` are those of `CgiToAsgi`, whose ``timeout_s`` says how long a script may take.
    """

    def __init__(self, script: str | os.PathLike[str], **options: Any) -> None:
        super().__init__(
            _ClosedAtTheEnd(CgiToAsgi(script, **options)),
            first_byte_s=0,
            path_errors="surrogateescape",
            name="cgi",
        )


class FastCgiToWsgi(AsgiToWsgi):
    """A FastCGI application at an address, or several, as a WSGI application.

    ``options`` are those of `FastCgiToAsgi`, whose ``first_byte_s`` and ``output_idle_s``
    say how long it may take.
    """

    def __init__(self, address: str | Sequence[str], **options: Any) -> None:
        super().__init__(
            FastCgiToAsgi(address, **options),
            first_byte_s=0,
            path_errors="surrogateescape",
            name="fastcgi",
        )


class _ClosedAtTheEnd:
    """Scripts, with a lifespan: they have none of their own, but ends of pipes."""

    def __init__(self, scripts: CgiToAsgi) -> None:
        self._scripts = scripts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await self._scripts(scope, receive, send)
            return
        while (await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        self._scripts.close()
        await send({"type": "lifespan.shutdown.complete"})


def _in_threads(app: wsgi.Application, threads: int) -> WsgiToAsgi:
    # Requests are limited before they come here: none waits here in vain.
    return WsgiToAsgi(app, threads=threads, queue=_QUEUE, queue_wait_s=_QUEUE_WAIT_S)


_QUEUE = 1024
_QUEUE_WAIT_S = 60.0

"""Bridges between CGI, FastCGI, SCGI, uwsgi, WSGI and ASGI; ASGI is the hub.

Towards ASGI, each an ASGI application for any ASGI server on asyncio: ``CgiToAsgi``,
``FastCgiToAsgi``, ``ScgiToAsgi``, ``UwsgiToAsgi``, ``WsgiToAsgi``. The way back, an ASGI
application for other servers: ``AsgiToCgi``, ``AsgiToFastCgi``, ``AsgiToScgi``,
``AsgiToWsgi``; and compositions of both. None of them knows the gateway.

A module is imported when a name of it is first asked for: a CGI script that is one
adapter pays for no other, at each request.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .asgi_to_cgi import AsgiToCgi
    from .asgi_to_fastcgi import AsgiToFastCgi
    from .asgi_to_scgi import AsgiToScgi
    from .asgi_to_wsgi import AsgiToWsgi
    from .cgi_to_asgi import CgiToAsgi
    from .compositions import CgiToWsgi, FastCgiToWsgi, WsgiToCgi, WsgiToFastCgi, WsgiToScgi
    from .errors import BackendError
    from .fastcgi_authorizer import FastCgiAuthorizer
    from .fastcgi_to_asgi import FastCgiToAsgi
    from .lifespan import Lifespan, LifespanFailure
    from .scgi_to_asgi import ScgiToAsgi
    from .uwsgi_to_asgi import UwsgiToAsgi
    from .wsgi_to_asgi import WsgiToAsgi

__all__ = [
    "AsgiToCgi",
    "AsgiToFastCgi",
    "AsgiToScgi",
    "AsgiToWsgi",
    "BackendError",
    "CgiToAsgi",
    "CgiToWsgi",
    "FastCgiAuthorizer",
    "FastCgiToAsgi",
    "FastCgiToWsgi",
    "Lifespan",
    "LifespanFailure",
    "ScgiToAsgi",
    "UwsgiToAsgi",
    "WsgiToAsgi",
    "WsgiToCgi",
    "WsgiToFastCgi",
    "WsgiToScgi",
]

_MODULES = {
    "AsgiToCgi": "asgi_to_cgi",
    "AsgiToFastCgi": "asgi_to_fastcgi",
    "AsgiToScgi": "asgi_to_scgi",
    "AsgiToWsgi": "asgi_to_wsgi",
    "BackendError": "errors",
    "CgiToAsgi": "cgi_to_asgi",
    "CgiToWsgi": "compositions",
    "FastCgiAuthorizer": "fastcgi_authorizer",
    "FastCgiToAsgi": "fastcgi_to_asgi",
    "FastCgiToWsgi": "compositions",
    "Lifespan": "lifespan",
    "LifespanFailure": "lifespan",
    "ScgiToAsgi": "scgi_to_asgi",
    "UwsgiToAsgi": "uwsgi_to_asgi",
    "WsgiToAsgi": "wsgi_to_asgi",
    "WsgiToCgi": "compositions",
    "WsgiToFastCgi": "compositions",
    "WsgiToScgi": "compositions",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__

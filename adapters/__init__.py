"""Bridges between CGI, FastCGI, WSGI and ASGI; ASGI is the hub.

Each adapter is an ASGI application (``CgiToAsgi``, ``FastCgiToAsgi``,
``WsgiToAsgi``) and runs under any ASGI server: it knows nothing of the gateway.
"""

from .cgi_to_asgi import CgiToAsgi
from .errors import BackendError
from .fastcgi_to_asgi import FastCgiToAsgi
from .lifespan import Lifespan, LifespanFailure
from .wsgi_to_asgi import WsgiToAsgi

__all__ = [
    "BackendError",
    "CgiToAsgi",
    "FastCgiToAsgi",
    "Lifespan",
    "LifespanFailure",
    "WsgiToAsgi",
]

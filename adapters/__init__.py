"""Bridges between CGI, FastCGI, SCGI, uwsgi, WSGI and ASGI; ASGI is the hub.

Each adapter is an ASGI application (``CgiToAsgi``, ``FastCgiToAsgi``, ``ScgiToAsgi``,
``UwsgiToAsgi``, ``WsgiToAsgi``) and runs under any ASGI server: it knows nothing of the gateway.
"""

from .cgi_to_asgi import CgiToAsgi
from .errors import BackendError
from .fastcgi_authorizer import FastCgiAuthorizer
from .fastcgi_to_asgi import FastCgiToAsgi
from .lifespan import Lifespan, LifespanFailure
from .scgi_to_asgi import ScgiToAsgi
from .uwsgi_to_asgi import UwsgiToAsgi
from .wsgi_to_asgi import WsgiToAsgi

__all__ = [
    "BackendError",
    "CgiToAsgi",
    "FastCgiAuthorizer",
    "FastCgiToAsgi",
    "Lifespan",
    "LifespanFailure",
    "ScgiToAsgi",
    "UwsgiToAsgi",
    "WsgiToAsgi",
]

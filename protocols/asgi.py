"""The types of ASGI 3: scope, messages and the application callable.

Source: the ASGI specification 3.0 and its HTTP & WebSocket message format 2.3
(asgi.readthedocs.io). Scopes and messages are plain dictionaries there; the
aliases name what a signature means, the constants what a value may be.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

# The specification's values are heterogeneous: str, bytes, int, lists, dicts.
Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
Application: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

#: Field names in lower case, values as sent; both latin-1 bytes.
Fields: TypeAlias = list[tuple[bytes, bytes]]

#: ``scope["asgi"]`` for HTTP and WebSocket connections.
#: 2.3: `http.disconnect` tells of a departure at once. From 2.4 on a framework may
#: leave it to ``send`` to raise, which an application that waits never calls.
VERSIONS = {"version": "3.0", "spec_version": "2.3"}
#: ``scope["asgi"]`` for the lifespan protocol.
LIFESPAN_VERSIONS = {"version": "3.0", "spec_version": "2.0"}

#: Under this name ``scope["extensions"]`` holds the gateway's own exchange
#: object where the gateway is the server. An adapter that finds it raises its
#: failures (`tetrapylon.adapters.errors`) for the connection driver to answer;
#: under any other server it answers them itself.
GATEWAY_EXTENSION = "tetrapylon"

#: Under this name ``scope["extensions"]`` holds, as a dictionary of latin-1 strings,
#: the variables that an authorizer gave the request (FastCGI Specification 1.0,
#: section 6.3), REMOTE_USER and AUTH_TYPE among them where it said so.
AUTHORIZER_EXTENSION = "tetrapylon.authorizer"

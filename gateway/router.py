"""Host and path → backend.

Paths match by whole segments (``/blog`` is not a prefix of ``/blogger``), the
longest first; hosts come before paths: the routes of the request's own host, then
those of the longest wildcard, then those without a host. The path is the normal
one (`paths.normalise`), the same that the backend will be given.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ..adapters.errors import BadGateway, InternalError, LocalRedirect, NotFound
from ..protocols.asgi import AUTHORIZER_EXTENSION, GATEWAY_EXTENSION, Receive, Scope, Send
from ..protocols.errors import RemoteProtocolError
from .backends.base import Backend
from .exchange import Exchange
from .paths import normalise


class Authorizer(Protocol):
    """Says whether a request may pass, as `FastCgiAuthorizer` does."""

    @property
    def name(self) -> str:
        """Its name in the log."""
        ...

    async def authorize(self, scope: Scope, receive: Receive, send: Send) -> dict[str, str] | None:
        """Return the request's new variables; ``None`` if it was refused, and is answered."""
        ...


@dataclass(frozen=True, slots=True)
class Route:
    """A prefix of paths, on some hosts, and who answers there.

    ``hosts``: names without port, ``*.example.com`` for all below; empty for
    every host. ``mount``: the prefix becomes root_path (SCRIPT_NAME).
    ``authorizer`` is asked before the backend, for every request.
    """

    path: str
    backend: Backend
    hosts: Sequence[str] = ()
    mount: bool = False
    authorizer: Authorizer | None = None


_Table = dict[str, Route]
_FOUND_MAX = 1024
_FOUND_PATH_MAX = 256


class Router:
    """An ASGI application that hands each request to its route's backend."""

    def __init__(
        self,
        routes: Iterable[Route],
        *,
        keeps_encoded_slash: bool = False,
        merges_slashes: bool = True,
    ) -> None:
        self._any_host: _Table = {}
        self._hosts: dict[str, _Table] = {}
        self._wildcards: dict[str, _Table] = {}
        self._keeps_encoded_slash = keeps_encoded_slash
        self._merges_slashes = merges_slashes
        for route in routes:
            # "/blog/" and "/blog" are one prefix; "/" is the empty one.
            prefix = route.path.rstrip("/")
            for host in route.hosts or (None,):
                if host is None:
                    table = self._any_host
                elif host.startswith("*."):
                    table = self._wildcards.setdefault(host[1:].lower(), {})
                else:
                    table = self._hosts.setdefault(host.lower(), {})
                table[prefix] = route
        self._has_hosts = bool(self._hosts or self._wildcards)
        self._found: _Table = {}

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Find the route and return its backend's call, ready to be awaited.

        Raises `NotFound` where no route matches, `ContentTooLarge` for a body
        that is announced as larger than the backend takes.
        """
        route = self._enter(scope)
        backend = route.backend
        exchange: Exchange = scope["extensions"][GATEWAY_EXTENSION]
        if exchange.request.content_length:
            limit = backend.body_limit_bytes
            exchange.limit_body(exchange.body_limit_bytes if limit is None else limit)
        if backend.local_redirects or route.authorizer is not None:
            return self._follow(route, scope, receive, send)
        return backend(scope, receive, send)

    def _enter(self, scope: Scope) -> Route:
        """Choose the route and put down in the scope what follows from that."""
        # Paths come again; those that do not are forgotten together.
        route = self._found.get(scope["path"]) or self.find(scope)
        if route.mount:
            scope["root_path"] = route.path.rstrip("/")
        exchange: Exchange = scope["extensions"][GATEWAY_EXTENSION]
        exchange.backend = route.backend.name
        return route

    def find(self, scope: Scope) -> Route:
        """Return the route of a request; raise `NotFound` if there is none."""
        path: str = scope["path"]
        if self._has_hosts:
            host = _host_name(scope)
            route = _longest(self._hosts.get(host), path)
            if route is None and self._wildcards:
                route = self._longest_wildcard(host, path)
            if route is not None:
                return route
        route = _longest(self._any_host, path)
        if route is None:
            raise NotFound(f"no route for {path[:200]!r}")
        if not self._has_hosts and len(path) <= _FOUND_PATH_MAX:
            if len(self._found) >= _FOUND_MAX:
                self._found.clear()
            self._found[path] = route
        return route

    def _longest_wildcard(self, host: str, path: str) -> Route | None:
        dot = host.find(".")
        while dot >= 0:
            route = _longest(self._wildcards.get(host[dot:]), path)
            if route is not None:
                return route
            dot = host.find(".", dot + 1)
        return None

    async def _follow(self, route: Route, scope: Scope, receive: Receive, send: Send) -> None:
        """Call a backend behind an authorizer, or whose answer may be "as if asked for that".

        RFC 3875 section 6.2.2: the new request is a GET (a HEAD stays one)
        without a body, with the fields of the first.
        """
        left = route.backend.local_redirects
        while True:
            passed = scope
            if route.authorizer is not None:
                authorized = await _authorized(route.authorizer, scope, receive, send)
                if authorized is None:
                    return
                passed = authorized
            try:
                await route.backend(passed, receive, send)
                return
            except LocalRedirect as redirect:
                if not left:
                    raise InternalError("too many local redirects in a row") from None
                left -= 1
                scope = self._redirected(scope, redirect.target)
                receive = _no_body(receive)
                route = self._enter(scope)

    def _redirected(self, scope: Scope, target: bytes) -> Scope:
        raw_path, _, query = target.partition(b"?")
        try:
            path = normalise(
                raw_path,
                keeps_encoded_slash=self._keeps_encoded_slash,
                merges_slashes=self._merges_slashes,
            )
        except RemoteProtocolError as error:
            raise BadGateway(f"local redirect: {error}") from None
        exchange: Exchange = scope["extensions"][GATEWAY_EXTENSION]
        exchange.complete_at = exchange.connection.service.now
        return {
            **scope,
            "method": "HEAD" if scope["method"] == "HEAD" else "GET",
            "root_path": "",
            "path": path,
            "raw_path": raw_path,
            "query_string": query,
            "headers": [field for field in scope["headers"] if field[0] not in _BODY_FIELDS],
        }


async def _authorized(
    authorizer: Authorizer, scope: Scope, receive: Receive, send: Send
) -> Scope | None:
    """Return the scope for the backend; ``None`` if the authorizer has refused.

    The scope that came is left as it is: a local redirect takes nothing of what was
    found out about the first request to the next.
    """
    exchange: Exchange = scope["extensions"][GATEWAY_EXTENSION]
    backend = exchange.backend
    exchange.backend = authorizer.name
    exchange.user = ""
    variables = await authorizer.authorize(scope, receive, send)
    if variables is None:
        return None
    exchange.backend = backend
    exchange.user = variables.get("REMOTE_USER", "")
    # The backend's time begins now.
    exchange.complete_at = exchange.connection.service.now
    return {**scope, "extensions": {**scope["extensions"], AUTHORIZER_EXTENSION: variables}}


def _longest(table: _Table | None, path: str) -> Route | None:
    if table is None:
        return None
    prefix = path
    while True:
        route = table.get(prefix)
        if route is not None or not prefix:
            return route
        # "/" and "*" end in "", the prefix of the route "/".
        prefix = prefix[: max(prefix.rfind("/"), 0)]


_BODY_FIELDS = frozenset(
    {b"content-length", b"content-type", b"content-encoding", b"transfer-encoding", b"expect"}
)


def _no_body(receive: Receive) -> Receive:
    is_taken = False

    async def receive_nothing() -> dict[str, object]:
        nonlocal is_taken
        if not is_taken:
            is_taken = True
            return {"type": "http.request", "body": b"", "more_body": False}
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return {"type": "http.disconnect"}

    return receive_nothing


def _host_name(scope: Scope) -> str:
    """Return the request's host in lower case, without port and final dot."""
    for name, value in scope["headers"]:
        if name == b"host":
            host: str = value.decode("latin-1").lower()
            if not host.endswith("]"):
                head, colon, port = host.rpartition(":")
                if colon and (port.isdigit() or not port):
                    host = head
            return host.rstrip(".")
    return ""

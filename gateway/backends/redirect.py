"""Redirects: a target with placeholders, filled from the request (RFC 9110 section 15.4).

The target comes from the configuration, what fills it from anybody. So no
placeholder can move the boundary between host and path: `parse_target` lets
``{path}``, ``{rest}`` and ``{query}`` stand only behind a complete authority, and
what they bring is percent-encoded.
"""

from __future__ import annotations

import difflib
import re
from urllib.parse import quote

from ...adapters.errors import BadRequest, answered
from ...protocols.asgi import Fields, Receive, Scope, Send
from ...protocols.target import path_below, quote_path, quote_query, whole_path
from .base import Backend

#: Placeholder → what the request puts there.
PLACEHOLDERS = {
    "path": "the whole path, with its leading slash",
    "rest": "the path below the route's mount, with its leading slash",
    "query": "the query without '?'; only behind a '?'",
    "host": "the host that was asked for, without the port",
    "scheme": "http or https",
}
STATUSES = (301, 302, 303, 307, 308)

_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
# What may stand in a URL reference as it is, and the braces of placeholders.
_PLAIN = re.compile(r"[!#$%&'()*+,\-./0-9:;=?@A-Z\[\]_a-z~{}]+")
# A scheme and a complete authority, or a path with one slash in front. The
# authority ends where a path, a query, a fragment or the target begins or ends.
_ABSOLUTE = re.compile(
    r"(?:(?:[A-Za-z][A-Za-z0-9+.\-]*|\{scheme\}):)?//(?:[^/?#{}@\\]|\{host\})+"
    r"(?=[/?#]|\{path\}|\{rest\}|\Z)"
)
_LOCAL = re.compile(r"/(?!/)|\{path\}|\{rest\}")
# RFC 3986 §3.2.2, without userinfo, and the port apart
_HOST = re.compile(r"([A-Za-z0-9\-._~!$&'()*+;=%]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?")


def parse_target(target: str) -> list[str]:
    """Split a target into literals and placeholders' names, in turn: ``[text, name, text, …]``.

    Raises `ValueError` with a message for the person who wrote it.
    """
    if not _PLAIN.fullmatch(target):
        raise ValueError(f"{target!r}: percent-encode what may not stand in a URL")
    parts = _PLACEHOLDER.split(target)
    for name in parts[1::2]:
        if name not in PLACEHOLDERS:
            near = difflib.get_close_matches(name, PLACEHOLDERS, n=1)
            hint = f"did you mean {{{near[0]}}}?" if near else f"there are {_known()}"
            raise ValueError(f"{target!r}: {{{name}}} is unknown; {hint}")
    if any(brace in text for text in parts[::2] for brace in "{}"):
        raise ValueError(f"{target!r}: a brace has no partner; write %7B or %7D for the sign")
    before, _, _ = target.partition("{query}")
    if before != target and "?" not in before:
        raise ValueError(f"{target!r}: {{query}} has to stand behind a '?'")
    if not (_ABSOLUTE.match(target) or _LOCAL.match(target)):
        raise ValueError(
            f"{target!r} has to begin with a scheme and a host, as https://example.com,"
            " or with one slash"
        )
    return parts


def _known() -> str:
    return ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)


class RedirectBackend(Backend):
    """Answer every request with ``status`` and a Location made from ``target``.

    Placeholders: {path}, {rest} (below the mount), {query}, {host}, {scheme}.
    Where the text before {path} or {rest} ends in a slash, that slash serves
    for both; a '?' or '&' before an empty {query} is left out. Raises
    `ValueError` for an unknown placeholder, for a target in which a request
    could choose the host, and for a status that is not one of `STATUSES`.
    """

    kind = "redirect"

    def __init__(self, name: str, target: str, *, status: int = 308) -> None:
        super().__init__(name)
        if status not in STATUSES:
            raise ValueError(f"status {status!r} is none of {', '.join(map(str, STATUSES))}")
        self._target = target
        self._parts = parse_target(target)
        self._status = status

    def describe(self) -> str:
        """Say where it leads."""
        return f"redirect to {self._target}"

    @answered
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; raises `BadRequest` if {host} is needed and there is none."""
        headers: Fields = [
            (b"location", self._location(scope).encode("ascii")),
            (b"content-length", b"0"),
        ]
        await send({"type": "http.response.start", "status": self._status, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    def _location(self, scope: Scope) -> str:
        location = ""
        query = quote_query(scope["query_string"])
        for place, part in enumerate(self._parts):
            if place % 2 == 0:
                # What follows an empty query needs only one of the signs around it.
                location += part[1:] if location[-1:] in ("?", "&") and part[:1] == "&" else part
            elif part == "path":
                location = _append_path(location, whole_path(scope))
            elif part == "rest":
                location = _append_path(location, b"/" + path_below(scope).lstrip(b"/"))
            elif part == "query":
                location += query
            elif part == "host":
                location += _host(scope)
            else:
                location += "https" if scope["scheme"] == "https" else "http"
        if query or "query" not in self._parts:
            return location
        before, mark, fragment = location.partition("#")
        return before.rstrip("?&") + mark + fragment


def _append_path(before: str, path: bytes) -> str:
    """Append a path that begins with exactly one slash; two would begin a host."""
    if "?" in before:
        return before + quote(path, "/")  # "&" and "=" would be the query's own
    return before.removesuffix("/") + quote_path(path)


def _host(scope: Scope) -> str:
    host = next((value for name, value in scope["headers"] if name == b"host"), b"")
    match = _HOST.fullmatch(host.decode("latin-1"))
    if match is None:
        raise BadRequest(f"no host to redirect to in Host {host[:80]!r}")
    return match[1]

"""Where a request points, as the backends that speak in URLs and files need it.

A scope's ``path`` is the one normal path (`tetrapylon.gateway.paths`), decoded,
with the mounted prefix in front of it. Here it becomes bytes, loses the prefix,
and becomes a part of a URL again (RFC 3986 section 3.3).
"""

from __future__ import annotations

from urllib.parse import quote

from ..protocols.asgi import Scope

# RFC 3986 §3.3: pchar, beside what is unreserved
_PATH_SAFE = "/!$&'()*+,;=:@"
# §3.4, and what user agents send besides. "%" stays: the query is encoded already.
_QUERY_SAFE = "%/?!$&'()*+,;=:@[]|^`{}\\"


def whole_path(scope: Scope) -> bytes:
    """Return the whole path, decoded; it begins with exactly one slash.

    Two would make it a host to whoever reads it as a URL reference.
    """
    path: str = scope["path"]
    root_path: str = scope.get("root_path", "")
    # Older frameworks give the path without the prefix it is mounted at.
    if root_path and not _is_beneath(path, root_path):
        path = root_path + path
    return b"/" + path.encode("utf-8", "surrogateescape").lstrip(b"/")


def path_below(scope: Scope) -> bytes:
    """Return the path below the mounted prefix, decoded: ``b""`` or ``b"/…"``.

    Without a mount that is the whole path.
    """
    path: str = scope["path"]
    root_path: str = scope.get("root_path", "")
    if root_path and _is_beneath(path, root_path):
        path = path[len(root_path) :]
    return path.encode("utf-8", "surrogateescape")


def _is_beneath(path: str, root_path: str) -> bool:
    return path.startswith(root_path) and path[len(root_path) : len(root_path) + 1] in ("", "/")


def quote_path(path: bytes) -> str:
    """Percent-encode a decoded path, for a URL."""
    return quote(path, _PATH_SAFE)


def quote_query(query: bytes) -> str:
    """Percent-encode what a query, as sent, may not hold in a field; escapes stay."""
    return quote(query, _QUERY_SAFE)

"""Where a request points: the path below a mount, in bytes, and as a part of a URL again.

A scope's ``path`` is decoded and has the mounted prefix, its ``root_path``, in
front. What CGI calls SCRIPT_NAME and PATH_INFO (RFC 3875 §4.1.13, §4.1.5), what a
file is looked up by and what a Location is made of come from these two alone.
"""

from __future__ import annotations

from urllib.parse import quote

from .asgi import Scope

# RFC 3986 §3.3: pchar, beside what is unreserved
_PATH_SAFE = "/!$&'()*+,;=:@"
# §3.4, and what user agents send besides. "%" stays: the query is encoded already.
_QUERY_SAFE = "%/?!$&'()*+,;=:@[]|^`{}\\"


def strip_prefix(path: str, prefix: str) -> str:
    """Return the path below ``prefix``, which ends with no slash: ``""`` or ``"/…"``.

    ASGI has the prefix in the path; older frameworks leave it out, and then the
    path is below the prefix as it stands.
    """
    below = path.removeprefix(prefix)
    return below if below[:1] in ("", "/") else path


def path_below(scope: Scope) -> bytes:
    """Return the path below the mounted prefix, decoded: ``b""`` or ``b"/…"``.

    Without a mount that is the whole path.
    """
    return to_bytes(strip_prefix(scope["path"], mounted_prefix(scope)))


def whole_path(scope: Scope) -> bytes:
    """Return the whole path, decoded; it begins with exactly one slash.

    Two would make it a host to whoever reads it as a URL reference.
    """
    prefix = mounted_prefix(scope)
    return b"/" + to_bytes(prefix + strip_prefix(scope["path"], prefix)).lstrip(b"/")


def mounted_prefix(scope: Scope) -> str:
    """Return the prefix that the application is mounted at; it ends with no slash."""
    root_path: str = scope.get("root_path", "")
    return root_path.rstrip("/")


def to_bytes(path: str) -> bytes:
    """Return the very bytes of a decoded path, be they UTF-8 or not."""
    return path.encode("utf-8", "surrogateescape")


def quote_path(path: bytes) -> str:
    """Percent-encode a decoded path, for a URL."""
    return quote(path, _PATH_SAFE)


def quote_query(query: bytes) -> str:
    """Percent-encode what a query, as sent, may not hold in a field; escapes stay."""
    return quote(query, _QUERY_SAFE)


def slash_location(scope: Scope) -> bytes:
    """Return the Location of the same path with a slash behind it, for a directory.

    A path alone, with one leading slash: no Host to trust, no other host to be.
    """
    location = quote_path(whole_path(scope)) + "/"
    query: bytes = scope["query_string"]
    if query:
        location += "?" + quote_query(query)
    return location.encode("ascii")

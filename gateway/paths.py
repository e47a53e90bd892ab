"""One normal path for a request: what is matched is what is run.

Access rules, the router and every backend see the path that comes out of
`normalise` and no other, so no spelling of a path can reach a backend by a route
that was not meant for it (RFC 3986 section 6.2.2; Apache and nginx do likewise).
"""

from __future__ import annotations

import re
from urllib.parse import unquote_to_bytes

from ..protocols.errors import RemoteProtocolError

#: What a path that is plainly in its normal form, as the most are, has none of.
NOT_PLAIN = re.compile(rb"[%\\]|/[/.]")
_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_ENCODED_SLASH = re.compile(rb"%2[Ff]")
_SLASHES = re.compile(rb"/{2,}")
# Stands for an encoded slash while dots and slashes are resolved; NUL is
# refused beforehand, so no path can hold it.
_KEPT_SLASH = b"\0"


def normalise(raw_path: bytes, *, keeps_encoded_slash: bool, merges_slashes: bool) -> str:
    """Return the normal form of a request target's path.

    Percent-decoded once, ``.`` and ``..`` resolved, runs of slashes merged
    (``merges_slashes``). Bytes that are not UTF-8 become lone surrogates, so
    that ``path.encode("utf-8", "surrogateescape")`` gives every byte back.

    Raises `RemoteProtocolError` (400) for a malformed escape, NUL, a backslash,
    a way out above the root, and an encoded slash unless
    ``keeps_encoded_slash`` (which leaves it as ``%2F``).
    """
    if NOT_PLAIN.search(raw_path) is None:
        return raw_path.decode("ascii")
    if _BAD_ESCAPE.search(raw_path):
        raise RemoteProtocolError(f"malformed escape in path {raw_path[:80]!r}")
    has_encoded_slash = _ENCODED_SLASH.search(raw_path) is not None
    if has_encoded_slash and not keeps_encoded_slash:
        raise RemoteProtocolError(f"encoded slash in path {raw_path[:80]!r}")
    if b"%00" in raw_path:
        raise RemoteProtocolError(f"NUL in path {raw_path[:80]!r}")
    path = unquote_to_bytes(
        _ENCODED_SLASH.sub(_KEPT_SLASH, raw_path) if has_encoded_slash else raw_path
    )
    if b"\\" in path:
        # A separator to some file systems and browsers: never to two readers alike.
        raise RemoteProtocolError(f"backslash in path {raw_path[:80]!r}")
    if merges_slashes and b"//" in path:
        path = _SLASHES.sub(b"/", path)
    if b"/." in path:
        path = _without_dots(path)
    if has_encoded_slash:
        path = path.replace(_KEPT_SLASH, b"%2F")
    return path.decode("utf-8", "surrogateescape")


def _without_dots(path: bytes) -> bytes:
    """Resolve ``.`` and ``..`` segments (RFC 3986 section 5.2.4)."""
    kept: list[bytes] = []
    segments = path.split(b"/")[1:]
    for segment in segments:
        if segment == b"..":
            if not kept:
                raise RemoteProtocolError(f"path {path[:80]!r} leads above the root")
            kept.pop()
        elif segment != b".":
            kept.append(segment)
    if segments[-1] in (b".", b".."):
        kept.append(b"")
    return b"/" + b"/".join(kept)

"""What a request says to an upstream server: target, fields, framing.

A proxy ends one connection and begins another: fields about the old one stay
behind (RFC 9110 section 7.6.1), framing is made anew (RFC 9112 section 6), and
what an upstream believes about the client (X-Forwarded-*, Forwarded, RFC 7239)
is said by the gateway alone.
"""

from __future__ import annotations

from functools import lru_cache
from urllib.parse import unquote_to_bytes

from ..adapters.errors import BadRequest
from ..protocols.asgi import Fields, Scope
from ..protocols.errors import LocalProtocolError
from ..protocols.fields import HOP_BY_HOP, is_plain_name, is_token, parse_content_length
from ..protocols.http1.client_codec import connection_options, encode_request_head
from ..protocols.http1.events import CHUNKED
from ..protocols.target import path_below, quote_path

# Beside HOP_BY_HOP. Framing and Host are written anew, an expectation is met by
# the gateway itself; whatever else a client could pose as itself with goes.
_LEFT_BEHIND = HOP_BY_HOP | {
    b"content-length",
    b"expect",
    b"forwarded",
    b"host",
    b"proxy",  # it would be HTTP_PROXY to a CGI program behind the upstream
    b"proxy-authorization",
    b"remote-user",
    b"script-name",
    b"trailer",
    b"x-real-ip",
}
# RFC 9110 §8.6: for these a missing Content-Length does not say that there is no body.
_WITH_BODY = frozenset(("POST", "PUT", "PATCH"))


@lru_cache(maxsize=1024)
def _is_passed_on(name: bytes) -> bool:
    # Another spelling of a name may be the same name to the upstream: X_Real_IP.
    return name not in _LEFT_BEHIND and not name.startswith(b"x-forwarded-") and is_plain_name(name)


def request_length(scope: Scope) -> int | None:
    """Return how long the body is: bytes, `CHUNKED`, or ``None`` where no field says it.

    Raises `BadRequest` for lengths that are none or differ.
    """
    lengths = {value for name, value in scope["headers"] if name == b"content-length"}
    if any(name == b"transfer-encoding" for name, _ in scope["headers"]):
        if lengths:
            raise BadRequest("a length and a transfer coding in one request")
        return CHUNKED
    if not lengths:
        # HTTP/1: no body. Later versions frame bodies without the fields' help.
        return 0 if scope["http_version"].startswith("1") else None
    try:
        (length,) = map(parse_content_length, lengths)
    except ValueError as error:
        raise BadRequest(f"not one Content-Length: {sorted(lengths)!r}") from error
    return length


def request_head(
    scope: Scope, content_length: int, *, authority: bytes, preserves_host: bool
) -> bytes:
    """Write the head of the upstream's request, with a body of ``content_length``.

    ``authority`` is the upstream's own, sent as Host unless ``preserves_host``
    and the client sent one. Raises `BadRequest` for what cannot be passed on.
    """
    method: str = scope["method"]
    headers: Fields = scope["headers"]
    named = connection_options(headers)
    asked_host = next((value for name, value in headers if name == b"host"), b"")
    fields: Fields = [(b"host", asked_host if preserves_host and asked_host else authority)]
    fields += [pair for pair in headers if _is_passed_on(pair[0]) and pair[0] not in named]
    fields += _forwarding_fields(scope, asked_host)
    if content_length == CHUNKED:
        fields.append((b"transfer-encoding", b"chunked"))
    elif content_length or method in _WITH_BODY:
        fields.append((b"content-length", b"%d" % content_length))
    try:
        return encode_request_head(method.encode("latin-1"), _target(scope), fields)
    except (LocalProtocolError, UnicodeEncodeError) as error:
        raise BadRequest(str(error)) from error


def _target(scope: Scope) -> bytes:
    path = path_below(scope)
    query: bytes = scope["query_string"]
    raw_path: bytes | None = scope.get("raw_path")
    root_path = scope.get("root_path", "").encode("utf-8", "surrogateescape")
    if raw_path and root_path and raw_path.startswith(root_path):
        raw_path = raw_path[len(root_path) :]
    # As it was sent, unless it is a spelling: the path that was routed is the
    # path that is asked for.
    if raw_path and raw_path[:1] == b"/" and _is_spelt(raw_path, path):
        target = raw_path
    elif scope["path"] == "*":
        target = b"*"
    else:
        target = quote_path(b"/" + path.lstrip(b"/")).encode()
    return target + b"?" + query if query else target


def _is_spelt(raw_path: bytes, path: bytes) -> bool:
    """Tell whether the path as sent is the normal path, percent-encoded somehow."""
    if b"%" not in raw_path:
        return raw_path == path
    if b"%2F" in path:
        # An encoded slash that the gateway was told to keep.
        raw_path = raw_path.replace(b"%2F", b"%252F").replace(b"%2f", b"%252F")
    return unquote_to_bytes(raw_path) == path


def _forwarding_fields(scope: Scope, host: bytes) -> Fields:
    scheme = scope["scheme"].encode("latin-1")
    client = scope.get("client")
    address = client[0].encode("latin-1", "replace") if client and client[0] else b""
    fields: Fields = [(b"x-forwarded-proto", scheme)]
    # RFC 7239 §6: an IPv6 address stands in brackets, and so in quotes.
    node = b'"[' + address + b']"' if b":" in address else address or b"unknown"
    forwarded = b"for=" + node
    if address:
        fields.append((b"x-forwarded-for", address))
    if host:
        fields.append((b"x-forwarded-host", host))
        forwarded += b";host=" + _quoted(host)
    fields.append((b"forwarded", forwarded + b";proto=" + scheme))
    root_path: str = scope.get("root_path", "")
    if root_path:
        prefix = quote_path(root_path.encode("utf-8", "surrogateescape"))
        fields.append((b"x-forwarded-prefix", prefix.encode()))
    return fields


def _quoted(value: bytes) -> bytes:
    if is_token(value):
        return value
    return b'"' + value.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'

"""What a request must be, whichever engine parses it (RFC 9112, RFC 9110).

Request smuggling lives where two parsers read one message differently. So every
doubt is refused here, once, before a route is looked up: a lone CR or LF, folded
lines, two lengths, a length and a transfer coding, a host that is not one. An
engine may be stricter; it is never asked to be.

The checks stand in the order in which the bytes come: `request_line` and
`check_head` on the raw head, `examine` on the fields an engine found in it.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from ..asgi import Fields
from ..errors import RemoteProtocolError
from .events import CHUNKED, Request

# RFC 9112 §3: request-line = method SP request-target SP HTTP-version.
# The target is visible ASCII without "#", which no form of it may contain.
_REQUEST_LINE = re.compile(
    rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+) ([\x21\x22\x24-\x7e]+) HTTP/([0-9])\.([0-9])\Z"
)
_METHODS = {name.encode(): name for name in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS")}
_TARGET_BYTES = bytes(byte for byte in range(0x21, 0x7F) if byte != 0x23)
_VERSION = re.compile(rb"HTTP/[0-9]+\.[0-9]+\Z")
# RFC 9110 §5.6.2
_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+\Z")
# Names that stay themselves when CGI turns "-" into "_".
_PLAIN_NAME = re.compile(rb"[A-Za-z0-9-]+\Z")
# RFC 3986 §3.2.2, without userinfo; "," would let two hosts pose as one.
_HOST = re.compile(rb"(?:[A-Za-z0-9\-._~!$&'()*+;=%]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?\Z")
_ABSOLUTE = re.compile(rb"(?i:https?)://([^/?]*)([/?].*)?\Z")
_MAX_LENGTH = 2**63 - 1

# Deleting every byte that may stand in a head must leave nothing.
_HEAD_BYTES = bytes([0x09, 0x0A, 0x0D, *range(0x20, 0x7F), *range(0x80, 0x100)])


class _Role(NamedTuple):
    """How `examine` treats a field name that it has met before."""

    name: bytes
    code: int


_PLAIN, _DROPPED, _HOST_FIELD, _LENGTH, _CODING, _CONNECTION, _EXPECT, _ONCE = range(8)
_SPECIAL = {
    b"host": _HOST_FIELD,
    b"content-length": _LENGTH,
    b"transfer-encoding": _CODING,
    b"connection": _CONNECTION,
    b"expect": _EXPECT,
    # One meta-variable each, and a meaning that a list would change.
    b"content-type": _ONCE,
}
_UNSERVED = frozenset({"CONNECT", "TRACE"})
_new_tuple = tuple.__new__
# Names as they come in → role. Bounded: a name learnt late is examined each time.
_roles: dict[bytes, _Role] = {}
_ROLES_MAX = 2048


def refuse(message: str, status: int = 400) -> RemoteProtocolError:
    """Make the error for a request that is refused with ``status``."""
    return RemoteProtocolError(message, status_hint=status)


def request_line(line: bytes) -> tuple[str, bytes, str]:
    """Split a request line into method, target and version (``"1.1"``, ``"1.0"``)."""
    words = line.split(b" ")
    if len(words) == 3:
        # The grammar below, for what most lines are.
        method_name = _METHODS.get(words[0])
        target = words[1]
        if (
            method_name is not None
            and words[2] == b"HTTP/1.1"
            and target
            and not target.translate(None, _TARGET_BYTES)
        ):
            return method_name, target, "1.1"
    match = _REQUEST_LINE.match(line)
    if match is None:
        last = line.rpartition(b" ")[2]
        if _VERSION.match(last) and last not in (b"HTTP/1.0", b"HTTP/1.1"):
            raise refuse(f"version {last[:16]!r} is not spoken here", 505)
        raise refuse(f"malformed request line {line[:80]!r}")
    method, target, major, minor = match.groups()
    if major != b"1" or minor not in b"01":
        raise refuse(f"version {major.decode()}.{minor.decode()} is not spoken here", 505)
    return method.decode(), target, "1.1" if minor == b"1" else "1.0"


def check_head(head: bytes) -> None:
    """Refuse bytes and line ends that have no place in a request's head.

    ``head`` may be cut anywhere: what is refused early would be refused whole.
    """
    # A CR at the very end may yet get its LF.
    lines = head.count(b"\r\n")
    if head.count(b"\n") != lines:
        raise refuse("a line feed without a carriage return in the request's head")
    if head.count(b"\r") - head.endswith(b"\r") != lines:
        raise refuse("a carriage return without a line feed in the request's head")
    # RFC 9112 §5.2: folded lines; and white space before the first field line.
    if b"\n " in head or b"\n\t" in head:
        raise refuse("a line of the request's head begins with white space")
    strays = head.translate(None, _HEAD_BYTES)
    if strays:
        raise refuse(f"control character {strays[:1]!r} in the request's head")


def check_field_name(name: bytes) -> None:
    """Refuse a field name that is not a token (RFC 9110 section 5.1)."""
    if not _TOKEN.match(name):
        raise refuse(f"malformed field name {name[:40]!r}")


def _learn(name: bytes) -> _Role:
    lower = name.lower()
    check_field_name(name)
    code = _SPECIAL.get(lower, _PLAIN if _PLAIN_NAME.match(name) else _DROPPED)
    role = _Role(lower, code)
    if len(_roles) < _ROLES_MAX and len(name) <= 64:
        _roles[name] = role
    return role


def content_length(value: bytes) -> int:
    """Parse a Content-Length: ASCII digits, at most 19, below 2**63."""
    # bytes.isdigit() knows ASCII alone.
    if not value.isdigit() or len(value) > 19 or int(value) > _MAX_LENGTH:
        raise refuse(f"malformed Content-Length {value[:40]!r}")
    return int(value)


class Examined(NamedTuple):
    """What a head's fields come to, whatever the request line says."""

    fields: Fields
    host: bytes | None
    content_length: int
    wants_keep_alive: bool
    expects_continue: bool


def examine(http_version: str, raw_fields: Fields, *, refuses_odd_names: bool = False) -> Examined:
    """Judge a head's fields as a whole; raise if there is any doubt about them.

    Field names outside ``[A-Za-z0-9-]`` are tokens to HTTP and may pose as
    another field once CGI has turned ``-`` into ``_``; they are dropped, or
    refused with ``refuses_odd_names``.
    """
    fields: Fields = []
    host: bytes | None = None
    length: int | None = None
    coding: bytes | None = None
    has_content_type = False
    wants_keep_alive = http_version == "1.1"
    closes = False
    expects_continue = False
    roles = _roles
    for name, value in raw_fields:
        role = roles.get(name) or _learn(name)
        lower, code = role
        if code:
            if code == _DROPPED:
                if refuses_odd_names:
                    raise refuse(f"field name {name[:40]!r} has more than letters, digits and '-'")
                continue
            if code == _HOST_FIELD:
                if host is not None:
                    raise refuse("more than one Host field")
                host = value
            elif code == _CONNECTION:
                options = value.lower()
                if b"close" in options or b"keep-alive" in options:
                    words = [word.strip(b" \t") for word in options.split(b",")]
                    if b"close" in words:
                        wants_keep_alive = False
                        closes = True
                    elif b"keep-alive" in words and not closes:
                        wants_keep_alive = True
            elif code == _LENGTH:
                if length is not None:
                    raise refuse("more than one Content-Length field")
                length = content_length(value)
            elif code == _CODING:
                if coding is not None:
                    raise refuse("more than one Transfer-Encoding field")
                coding = value
            elif code == _EXPECT:
                if value.lower() != b"100-continue":
                    raise refuse(f"unknown expectation {value[:40]!r}", 417)
                expects_continue = http_version == "1.1"
            elif code == _ONCE:
                if has_content_type:
                    raise refuse("more than one Content-Type field")
                has_content_type = True
        fields.append((lower, value))

    if coding is not None:
        # RFC 9112 §6.1: a length beside a coding is the mark of an attack, and
        # HTTP/1.0 has no transfer codings.
        if length is not None:
            raise refuse("Content-Length and Transfer-Encoding in one request")
        if http_version == "1.0":
            raise refuse("Transfer-Encoding in an HTTP/1.0 request")
        if coding.lower() != b"chunked":
            raise refuse(f"transfer coding {coding[:40]!r} is not spoken here", 501)
        length = CHUNKED
    if host is not None and not _HOST.match(host):
        raise refuse(f"malformed Host {host[:80]!r}")
    return Examined(fields, host, length or 0, wants_keep_alive, expects_continue)


def assemble(method: str, target: bytes, http_version: str, examined: Examined) -> Request:
    """Make a request of its line and its fields; raise where they do not go together."""
    fields, host, length, wants_keep_alive, expects_continue = examined
    # A list of its own: the application may change it.
    fields = fields.copy()
    if host is None:
        # RFC 9112 §3.2: whatever form the target has
        if http_version == "1.1":
            raise refuse("no Host field")
        host = b""
    if target[:1] != b"/":
        target, host = _other_form(method, target, host, fields)
    if method in _UNSERVED:
        raise refuse(f"method {method} is not served here", 405)
    # Request(…) costs twice as much, and this is made for every request.
    return _new_tuple(
        Request,
        (method, target, http_version, fields, length, wants_keep_alive, expects_continue, host),
    )


def _other_form(method: str, target: bytes, host: bytes, fields: Fields) -> tuple[bytes, bytes]:
    """Resolve a target in absolute or asterisk form (RFC 9112 section 3.2)."""
    if target == b"*":
        if method != "OPTIONS":
            raise refuse("the target '*' is for OPTIONS alone")
        return target, host
    match = _ABSOLUTE.match(target)
    if match is None:
        if method == "CONNECT":
            raise refuse("method CONNECT is not served here", 405)
        raise refuse(f"malformed request target {target[:80]!r}")
    # RFC 9112 §3.2.2: the target's authority replaces the Host field, so that
    # router, backend and log all see one host.
    authority, rest = match[1], match[2] or b"/"
    if not _HOST.match(authority):
        raise refuse(f"malformed authority {authority[:80]!r} in the request target")
    fields[:] = [(b"host", authority), *(pair for pair in fields if pair[0] != b"host")]
    return (rest if rest[:1] == b"/" else b"/" + rest), authority


def field_lines(block: bytes) -> Fields:
    """Parse field lines, each ended by CRLF, as sent; an empty line is passed over."""
    check_head(block)
    fields: Fields = []
    for line in block.split(b"\r\n"):
        if not line:
            continue
        name, colon, value = line.partition(b":")
        if not colon:
            raise refuse(f"field line without a colon: {line[:40]!r}")
        check_field_name(name)
        fields.append((name, value.strip(b" \t")))
    return fields

"""Writing a response's head (RFC 9112 sections 4 to 6), for every engine alike.

`examine` judges what an application gave: framing is the server's own
affair, so its framing fields are taken off and remembered, hop-by-hop fields go,
and bytes that would end a line early are refused (response splitting).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import NamedTuple, TypeAlias

from ..errors import LocalProtocolError

_LENGTH_LINE = re.compile(rb"^content-length: [0-9]+\r\n", re.IGNORECASE | re.MULTILINE)
_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+\Z")

_PLAIN, _LENGTH, _CONNECTION, _HOP, _DATE, _SERVER, _SENDFILE = range(7)
_SPECIAL = {
    b"content-length": _LENGTH,
    b"connection": _CONNECTION,
    b"keep-alive": _HOP,
    b"proxy-connection": _HOP,
    b"te": _HOP,
    b"trailer": _HOP,
    b"transfer-encoding": _HOP,
    b"upgrade": _HOP,
    b"date": _DATE,
    b"server": _SERVER,
    b"x-sendfile": _SENDFILE,
    b"x-accel-redirect": _SENDFILE,
}
# Name as an application writes it → (line prefix, what it is). Bounded.
_names: dict[bytes, tuple[bytes, int]] = {}
_NAMES_MAX = 2048


class _StatusLines(dict[int, bytes]):
    """``STATUS_LINES[200]`` is ``b"HTTP/1.1 200 OK\\r\\n"``; unknown codes have no phrase."""

    def __missing__(self, status: int) -> bytes:
        if not 100 <= status <= 999:
            raise LocalProtocolError(f"status {status!r} is not of three digits")
        return b"HTTP/1.1 %d \r\n" % status


STATUS_LINES: Mapping[int, bytes] = _StatusLines(
    (status.value, f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode()) for status in HTTPStatus
)


def _learn(name: bytes) -> tuple[bytes, int]:
    if not isinstance(name, bytes):
        raise LocalProtocolError(f"field name {name!r} is not bytes")
    if not _TOKEN.match(name):
        raise LocalProtocolError(f"malformed field name {name[:40]!r}")
    known = (name + b": ", _SPECIAL.get(name.lower(), _PLAIN))
    if len(_names) < _NAMES_MAX and len(name) <= 64:
        _names[name] = known
    return known


class Unusual(NamedTuple):
    """What few applications say in their response fields.

    ``closes``: it asked for the connection to be closed. ``has_date``,
    ``has_server``: it gave such a field itself. ``sendfile``: the file that it
    wants to be sent instead of the body.
    """

    closes: bool
    has_date: bool
    has_server: bool
    sendfile: bytes | None


#: An application's response fields, ready for the wire: the field lines, each with its
#: CRLF; what Content-Length they promise, or None; what is unusual in them, or None.
#: A plain tuple, for one is made for each response.
ResponseFields: TypeAlias = tuple[bytes, int | None, Unusual | None]


def examine(fields: Iterable[tuple[bytes, bytes]]) -> ResponseFields:
    """Judge response fields; raise `LocalProtocolError` for what must not go on the wire."""
    content_length: int | None = None
    unusual: dict[int, bytes] | None = None
    lines: list[bytes] = []
    names = _names
    for name, value in fields:
        prefix, code = names.get(name) or _learn(name)
        if code:
            if code == _LENGTH:
                # bytes.isdigit() knows ASCII alone.
                if not value.isdigit() or len(value) > 19:
                    raise LocalProtocolError(f"malformed Content-Length {value[:40]!r}")
                if content_length is not None:
                    if content_length != int(value):
                        raise LocalProtocolError("two Content-Length fields that differ")
                    continue
                content_length = int(value)
            else:
                if unusual is None:
                    unusual = {}
                unusual[code] = value
                if code not in (_DATE, _SERVER):
                    continue
        lines.append(prefix + value)
    if not lines:
        text = b""
    else:
        lines.append(b"")
        text = b"\r\n".join(lines)
        # One look at the whole instead of one at each value.
        ends = len(lines) - 1
        if text.count(b"\n") != ends or text.count(b"\r") != ends or b"\0" in text:
            raise LocalProtocolError("CR, LF or NUL in a response field")
    if unusual is None:
        return text, content_length, None
    return (
        text,
        content_length,
        Unusual(
            b"close" in unusual.get(_CONNECTION, b"").lower(),
            _DATE in unusual,
            _SERVER in unusual,
            unusual.get(_SENDFILE),
        ),
    )


def without_length(lines: bytes) -> bytes:
    """Take the Content-Length line off field lines that `examine` made."""
    return _LENGTH_LINE.sub(b"", lines)


def has_no_body(status: int) -> bool:
    """Tell whether a response of this status ends with its head (RFC 9112 section 6.3)."""
    return status == 204 or status == 304 or 100 <= status < 200

"""The types of WSGI (PEP 3333) and the one place where its strings are made.

PEP 3333, "Unicode Issues": native strings stand for bytes, decoded as latin-1.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from types import TracebackType
from typing import Any, Protocol, TypeAlias

from .asgi import Fields
from .errors import LocalProtocolError
from .fields import HOP_BY_HOP, is_field_value, is_token, parse_content_length

# PEP 3333 puts streams, flags, tuples and whatever middleware adds beside strings.
Environ: TypeAlias = dict[str, Any]
ExcInfo: TypeAlias = tuple[type[BaseException], BaseException, TracebackType | None]
Write: TypeAlias = Callable[[bytes], object]


class StartResponse(Protocol):
    """PEP 3333, "The start_response() Callable"."""

    def __call__(
        self, status: str, headers: list[tuple[str, str]], exc_info: ExcInfo | None = None, /
    ) -> Write:
        """Give status and headers; get the ``write`` callable."""


Application: TypeAlias = Callable[[Environ, StartResponse], Iterable[bytes]]

_STATUS_LINE = re.compile(r"([1-9][0-9]{2}) ([\x20-\x7e\x80-\xff]*)\Z")


@lru_cache(maxsize=256)
def parse_status(status: str) -> int:
    """Return the code of a status string such as ``"404 Not Found"``.

    Raises `LocalProtocolError` for what PEP 3333 does not allow: a missing
    space, white space around it, control characters, a code that HTTP lacks.
    """
    match = _STATUS_LINE.match(status) if isinstance(status, str) else None
    if match is None or match[2] != match[2].strip():
        raise LocalProtocolError(f"start_response: status {status!r} is not like '200 OK'")
    return int(match[1])


def encode_fields(headers: list[tuple[str, str]]) -> tuple[Fields, int | None]:
    """Return the fields of ``start_response`` as ASGI has them, and the Content-Length among them.

    Raises `LocalProtocolError` for what PEP 3333 does not allow: other types,
    hop-by-hop fields, control characters, text that is not latin-1.
    """
    if not isinstance(headers, list):
        raise LocalProtocolError(f"start_response: headers are {type(headers).__name__}, no list")
    fields: Fields = []
    content_length: int | None = None
    for field in headers:
        if not isinstance(field, tuple) or len(field) != 2:
            raise LocalProtocolError(f"start_response: header {field!r} is not (name, value)")
        name = _wire_name(field[0])
        value = _wire_value(field[1])
        if name == b"content-length":
            if content_length is not None:
                raise LocalProtocolError("start_response: two Content-Length headers")
            try:
                content_length = parse_content_length(value)
            except ValueError as error:
                raise LocalProtocolError(f"start_response: {error}") from None
        fields.append((name, value))
    return fields, content_length


@lru_cache(maxsize=1024)
def _wire_name(name: str) -> bytes:
    wire_name = name.encode("latin-1", "replace").lower() if isinstance(name, str) else b""
    if not is_token(wire_name):
        raise LocalProtocolError(f"start_response: {name!r} is no header name")
    if wire_name in HOP_BY_HOP:
        # PEP 3333, "Other HTTP Features"
        raise LocalProtocolError(f"start_response: {name!r} is about the server's own connection")
    return wire_name


def _wire_value(value: str) -> bytes:
    if not isinstance(value, str):
        raise LocalProtocolError(f"start_response: header value {value!r} is not a str")
    if value.isascii() and value.isprintable():
        return value.encode("ascii").strip()
    try:
        wire_value = value.encode("latin-1").strip(b" \t")
    except UnicodeEncodeError:
        raise LocalProtocolError(
            f"start_response: header value {value!r} is not latin-1 (PEP 3333)"
        ) from None
    if not is_field_value(wire_value):
        raise LocalProtocolError(f"start_response: control character in header value {value!r}")
    return wire_value

"""The uwsgi protocol without I/O, both sides of a request; the answer is a CGI response.

The uwsgi protocol (uwsgi-docs, "The uwsgi Protocol"). A head is a packet::

    modifier1: 1 byte    datasize: 2 bytes    modifier2: 1 byte

and ``datasize`` bytes of meta-variables, each name and each value behind its
length in 2 bytes; numbers are little-endian. ``modifier1`` says what is asked
for: 0 is a request for a Python application, and for whatever a server runs by
default. The body follows, CONTENT_LENGTH bytes. The application answers with a
status line or a Status field, and closes (`tetrapylon.protocols.cgi.response`
reads both).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from itertools import chain

from .cgi.request import RequestDecoder, RequestHead
from .errors import LocalProtocolError, RemoteProtocolError
from .fields import parse_content_length

__all__ = ["MAX_HEAD_BYTES", "HeadTooLarge", "UwsgiRequestDecoder", "encode_head"]

#: What ``datasize`` can say, and what one name or value can be.
MAX_HEAD_BYTES = 65535

_HEADER = struct.Struct("<BHB")
_LENGTH = struct.Struct("<H")


def _encode_length(word: str) -> str:
    # Of one that is too long the sum is too large, too.
    return (len(word) & 0xFFFF).to_bytes(2, "little").decode("latin-1")


# Of all lengths that are usual, cookies included: encoding is a look-up.
_LENGTHS = tuple(_encode_length("x" * length) for length in range(2048))


class HeadTooLarge(LocalProtocolError):
    """The variables do not fit a packet."""


def encode_head(variables: Mapping[str, str], *, modifier1: int = 0, modifier2: int = 0) -> bytes:
    """Return the head of a request.

    Raises `HeadTooLarge` for variables of more than 65,535 bytes, lengths
    included, and `LocalProtocolError` for text that is not latin-1, a NUL (which
    ends a variable for servers written in C) or an empty name.
    """
    lengths = _LENGTHS
    try:
        pairs = [
            f"{lengths[len(name)]}{name}{lengths[len(value)]}{value}"
            for name, value in variables.items()
        ]
    except IndexError:
        pairs = [
            f"{_encode_length(name)}{name}{_encode_length(value)}{value}"
            for name, value in variables.items()
        ]
    text = "".join(pairs)
    if len(text) > MAX_HEAD_BYTES:
        raise HeadTooLarge(f"variables of {len(text)} bytes; a packet holds {MAX_HEAD_BYTES}")
    if "\0" in "".join(chain.from_iterable(variables.items())) or "" in variables:
        raise LocalProtocolError("a NUL or an empty name in the variables")
    try:
        content = text.encode("latin-1")
    except UnicodeEncodeError as error:
        raise LocalProtocolError(f"a variable is not latin-1: {error}") from None
    return _HEADER.pack(modifier1, len(content), modifier2) + content


class UwsgiRequestDecoder(RequestDecoder):
    """What a uwsgi server receives, as events; the modifiers are known with the head.

    Of several variables of one name the last counts.
    """

    def __init__(self) -> None:
        super().__init__()
        self.modifier1 = 0
        self.modifier2 = 0

    def _take_head(self, head: bytearray) -> tuple[RequestHead, int] | None:
        if len(head) < _HEADER.size:
            return None
        modifier1, size, modifier2 = _HEADER.unpack_from(head)
        end = _HEADER.size + size
        if len(head) < end:
            return None
        self.modifier1 = modifier1
        self.modifier2 = modifier2
        variables = _parse(bytes(head[_HEADER.size : end]))
        try:
            # Absent or empty where there is no body.
            text = variables.get("CONTENT_LENGTH", "").encode("latin-1")
            length = parse_content_length(text) if text else 0
        except ValueError as error:
            raise RemoteProtocolError(str(error)) from None
        return RequestHead(variables, length), end


def _parse(content: bytes) -> dict[str, str]:
    text = content.decode("latin-1")
    words = []
    position = 0
    while position < len(content):
        begin = position + _LENGTH.size
        if begin <= len(content):
            position = begin + _LENGTH.unpack_from(content, position)[0]
        if begin > len(content) or position > len(content):
            raise RemoteProtocolError(f"a variable ends beyond its packet: {content[-40:]!r}")
        words.append(text[begin:position])
    if len(words) % 2 or "" in words[::2]:
        raise RemoteProtocolError("a name without a value, or a value without a name")
    return dict(zip(words[::2], words[1::2], strict=True))

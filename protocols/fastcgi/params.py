"""FastCGI name-value pairs, as in PARAMS, GET_VALUES and GET_VALUES_RESULT.

FastCGI Specification 1.0, section 3.4. Names and values are latin-1 strings
that stand for bytes, as PEP 3333 has them, for they come from and go to
meta-variables (`tetrapylon.protocols.cgi`).
"""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import LocalProtocolError, RemoteProtocolError
from .records import FULL_CONTENT_BYTES

_LONG = 0x80000000


def _encode_length(length: int) -> str:
    # Section 3.4: up to 127 one byte, above four with the high bit set.
    if length < 128:
        return chr(length)
    return (length | _LONG).to_bytes(4, "big").decode("latin-1")


# Of all lengths that are usual, cookies included: encoding is a look-up.
_LENGTHS = tuple(map(_encode_length, range(2048)))


class PairTooLarge(LocalProtocolError):
    """A pair does not fit one record: the request cannot be put to every application."""


def encode_params(params: Mapping[str, str]) -> list[bytes]:
    """Return the contents of the PARAMS records for ``params``, without the empty last one.

    The specification lets a pair be cut at any byte, but php-fpm parses each
    record by itself: a record ends between two pairs. Raises `PairTooLarge` for
    a pair over 65,528 bytes, and `LocalProtocolError` for text that is not
    latin-1 or has a NUL (section 6.1: text has none).
    """
    lengths = _LENGTHS
    try:
        pairs = [
            f"{lengths[len(name)]}{lengths[len(value)]}{name}{value}"
            for name, value in params.items()
        ]
    except IndexError:
        pairs = [
            f"{_encode_length(len(name))}{_encode_length(len(value))}{name}{value}"
            for name, value in params.items()
        ]
    try:
        content = "".join(pairs).encode("latin-1")
    except UnicodeEncodeError as error:
        raise LocalProtocolError(f"a parameter is not latin-1: {error}") from None
    # Each empty value has a zero byte for its length. More zeros are the lengths
    # of long values, or a NUL: only then is it worth a closer look.
    if content.count(0) != [*params.values()].count("") and "\0" in "".join(
        [*params, *params.values()]
    ):
        raise LocalProtocolError("a NUL in the parameters")
    if len(content) > FULL_CONTENT_BYTES:
        return _split(content, pairs)
    return [content] if content else []


def _split(content: bytes, pairs: list[str]) -> list[bytes]:
    contents = []
    start = end = 0
    for pair in pairs:
        if len(pair) > FULL_CONTENT_BYTES:
            raise PairTooLarge(
                f"a parameter of {len(pair)} bytes; one record holds {FULL_CONTENT_BYTES}:"
                f" {pair[:100]!r}"
            )
        if end + len(pair) - start > FULL_CONTENT_BYTES:
            contents.append(content[start:end])
            start = end
        end += len(pair)
    contents.append(content[start:end])
    return contents


class ParamsDecoder:
    """Contents of records in, pairs out; a pair may straddle records.

    ``limit_bytes`` bounds the whole stream: more raises `RemoteProtocolError`.
    """

    __slots__ = ("_content", "_limit_bytes", "_size")

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._content: list[bytes] = []
        self._size = 0

    def receive(self, content: bytes) -> None:
        """Take the content of one record."""
        self._size += len(content)
        if self._size > self._limit_bytes:
            raise RemoteProtocolError(
                f"more than {self._limit_bytes} bytes of parameters", status_hint=502
            )
        self._content.append(content)

    def finish(self) -> dict[str, str]:
        """Return all parameters, now that the stream is complete; the last of a name counts.

        Raises `RemoteProtocolError` if it ends in the middle of a pair.
        """
        return decode_params(b"".join(self._content))


def decode_params(content: bytes) -> dict[str, str]:
    """Return the pairs in ``content``; raise `RemoteProtocolError` if the last one is cut.

    Of several pairs with one name the last counts, as in PHP: nginx sends a
    parameter and the administrator's override of it side by side.
    """
    params = {}
    position = 0
    end = len(content)
    text = content.decode("latin-1")
    try:
        while position < end:
            name_length = content[position]
            if name_length < 128:
                position += 1
            else:
                name_length = _long_length(content, position)
                position += 4
            value_length = content[position]
            if value_length < 128:
                position += 1
            else:
                value_length = _long_length(content, position)
                position += 4
            middle = position + name_length
            position = middle + value_length
            if position > end:
                raise IndexError
            params[text[middle - name_length : middle]] = text[middle:position]
    except IndexError:
        raise RemoteProtocolError(
            f"the parameters end in the middle of a pair: {content[-40:]!r}", status_hint=502
        ) from None
    return params


def _long_length(content: bytes, position: int) -> int:
    length = content[position : position + 4]
    if len(length) < 4:
        raise IndexError
    return int.from_bytes(length, "big") ^ _LONG

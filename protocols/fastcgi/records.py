"""FastCGI records: the eight-byte header, its types, encode and incremental decode.

FastCGI Specification 1.0, sections 3.3 and 8. This is the lowest layer: it
knows how bytes become records, not which record may follow which
(`tetrapylon.protocols.fastcgi.state`) nor what they mean
(`tetrapylon.protocols.fastcgi.connection`).
"""

from __future__ import annotations

import enum
import struct
from typing import TypeAlias

from ..errors import LocalProtocolError, RemoteProtocolError

VERSION = 1
HEADER_BYTES = 8
#: What the two length bytes of a header can say.
MAX_CONTENT_BYTES = 65535
#: What we put into one record: the largest content that needs no padding. PHP
#: refuses a PARAMS record whose content and padding exceed 65,535 together.
FULL_CONTENT_BYTES = 65528


class RecordType(enum.IntEnum):
    """Section 8, "Values for type component of FCGI_Header"."""

    BEGIN_REQUEST = 1
    ABORT_REQUEST = 2
    END_REQUEST = 3
    PARAMS = 4
    STDIN = 5
    STDOUT = 6
    STDERR = 7
    DATA = 8
    GET_VALUES = 9
    GET_VALUES_RESULT = 10
    UNKNOWN_TYPE = 11


class Role(enum.IntEnum):
    """Section 8, "Values for role component of FCGI_BeginRequestBody"."""

    RESPONDER = 1
    AUTHORIZER = 2
    FILTER = 3


class ProtocolStatus(enum.IntEnum):
    """Section 8, "Values for protocolStatus component of FCGI_EndRequestBody"."""

    REQUEST_COMPLETE = 0
    CANT_MPX_CONN = 1
    OVERLOADED = 2
    UNKNOWN_ROLE = 3


#: One record without its padding: type, request id, content, and the offset at
#: which its header began in the stream. A bare tuple: each answer makes three.
Record: TypeAlias = tuple[int, int, bytes, int]

_HEADER = struct.Struct("!BBHHBx")
_pack_header = _HEADER.pack
_unpack_header = _HEADER.unpack_from
# Section 3.3: "We recommend that records be placed on boundaries that are
# multiples of eight bytes."
_PADDING = tuple(bytes(-length % 8) for length in range(8))


def encode_record(type_: int, request_id: int, content: bytes = b"") -> bytes:
    """Return one record, padded to a multiple of eight bytes.

    Raises `LocalProtocolError` for a content over 65,535 bytes.
    """
    length = len(content)
    if length > MAX_CONTENT_BYTES:
        raise LocalProtocolError(f"{length} bytes do not fit one record; {MAX_CONTENT_BYTES} do")
    padding = _PADDING[length & 7]
    return _pack_header(VERSION, type_, request_id, length, len(padding)) + content + padding


def encode_stream(type_: int, request_id: int, data: bytes) -> bytes:
    """Return the records that carry ``data``; empty data give the record that ends the stream."""
    if len(data) <= FULL_CONTENT_BYTES:
        return encode_record(type_, request_id, data)
    view = memoryview(data)
    return b"".join(
        encode_record(type_, request_id, bytes(view[start : start + FULL_CONTENT_BYTES]))
        for start in range(0, len(data), FULL_CONTENT_BYTES)
    )


class RecordDecoder:
    """Bytes in, records out, however the bytes are cut.

    Holds at most what one `receive` brought and one incomplete record, which
    the format itself limits to 65,798 bytes.
    """

    __slots__ = ("_data", "_is_closed", "_parts", "_position", "_start", "_waiting", "_wanted")

    def __init__(self) -> None:
        self._data = b""
        self._position = 0
        self._start = 0  # where _data begins in the stream
        # An incomplete record waits in parts until it is whole, so that a
        # large record that comes byte by byte is copied once.
        self._parts: list[bytes] = []
        self._waiting = 0
        self._wanted = 0
        self._is_closed = False

    @property
    def is_closed(self) -> bool:
        """Whether the end of the stream was received."""
        return self._is_closed

    @property
    def has_pending(self) -> bool:
        """Whether bytes were received that made no record yet."""
        return self._waiting > 0 or self._position < len(self._data)

    @property
    def offset(self) -> int:
        """Where in the stream the next record begins."""
        return self._start + self._position

    def receive(self, data: bytes) -> None:
        """Take bytes of the peer; ``b""`` is the end of its stream."""
        if not data:
            self._is_closed = True
            return
        if self._waiting:
            self._parts.append(data)
            self._waiting += len(data)
            if self._waiting < self._wanted:
                return
            data = b"".join(self._parts)
            self._parts.clear()
            self._waiting = 0
        elif self._position < len(self._data):
            data = self._data[self._position :] + data
        self._start += self._position
        self._position = 0
        self._data = data

    def next_record(self) -> Record | None:
        """Return the next complete record, or ``None`` if more bytes are needed.

        Raises `RemoteProtocolError` for another version than 1, and once the
        stream has ended in the middle of a record.
        """
        data = self._data
        position = self._position
        available = len(data) - position
        if available < HEADER_BYTES:
            # The first byte alone tells the version: garbage is told at once.
            if available and data[position] != VERSION:
                raise self._version_error(data[position])
            self._wait(available, HEADER_BYTES)
            return None
        version, type_, request_id, length, padding = _unpack_header(data, position)
        if version != VERSION:
            raise self._version_error(version)
        size = HEADER_BYTES + length + padding
        if available < size:
            self._wait(available, size)
            return None
        begin = position + HEADER_BYTES
        self._position = position + size
        return type_, request_id, data[begin : begin + length], self._start + position

    def _version_error(self, version: int) -> RemoteProtocolError:
        return RemoteProtocolError(
            f"byte {self.offset}: a record of version {version}, not {VERSION}", status_hint=502
        )

    def _wait(self, available: int, wanted: int) -> None:
        if available:
            rest = self._data[self._position :]
            self._start += self._position
            self._position = 0
            self._data = b""
            self._parts.append(rest)
            self._waiting = available
            self._wanted = wanted
        if self._is_closed and self._waiting:
            raise RemoteProtocolError(
                f"byte {self.offset}: the stream ends {self._waiting} bytes into a record"
                f" of {self._wanted} or more",
                status_hint=502,
            )

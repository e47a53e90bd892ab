"""A whole request, and a whole answer, at once: what most exchanges are.

FastCGI Specification 1.0, appendix B: a request with a short body is one
BEGIN_REQUEST, one PARAMS with its end and one STDIN with its end; its answer comes
back in one read, STDOUT and END_REQUEST. Both are written and read here in a
fraction of the time that `tetrapylon.protocols.fastcgi.connection` takes record by
record, whose bytes and events are the same. What is out of the ordinary is left to
that: cut, faulty, or more than one answer.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from .events import EndRequest
from .records import (
    HEADER_BYTES,
    VERSION,
    ProtocolStatus,
    RecordType,
    Role,
    encode_record,
    encode_stream,
)

_BEGIN = int(RecordType.BEGIN_REQUEST)
_END = int(RecordType.END_REQUEST)
_PARAMS = int(RecordType.PARAMS)
_STDIN = int(RecordType.STDIN)
_STDOUT = int(RecordType.STDOUT)
_STDERR = int(RecordType.STDERR)
_KEEP_CONN = 1
_HEADER = struct.Struct("!BBHHBx")
_unpack_header = _HEADER.unpack_from
_unpack_end = struct.Struct("!IB3x").unpack_from
_END_BYTES = 16
_STATUSES = tuple(ProtocolStatus)


class Output(NamedTuple):
    """What a responder has sent of its two streams, and how it ended, if it has."""

    stdout: bytes
    stderr: bytes
    end: EndRequest | None


class _Frame(NamedTuple):
    """What is the same around the parameters of each request of one kind."""

    begin: bytes
    params_end: bytes
    stdin_end: bytes


def _frame(request_id: int, role: Role, keep_conn: bool) -> _Frame:
    body = struct.pack("!HB5x", role, _KEEP_CONN if keep_conn else 0)
    return _Frame(
        encode_record(_BEGIN, request_id, body),
        encode_record(_PARAMS, request_id),
        encode_record(_STDIN, request_id) if role is not Role.AUTHORIZER else b"",
    )


# Of Responders, for both ids that a connection of one request at a time uses, by turns.
_FRAMES = {
    (request_id, keep): _frame(request_id, Role.RESPONDER, keep)
    for request_id in (1, 2)
    for keep in (False, True)
}


def encode_request(
    request_id: int,
    params: Sequence[bytes],
    stdin: bytes | None,
    *,
    role: Role = Role.RESPONDER,
    keep_conn: bool = False,
) -> bytes:
    """Return a request with all of its body; with ``None``, without STDIN and its end.

    ``params`` are the contents of its PARAMS records, see `encode_params`. An
    Authorizer has no STDIN (section 6.3).
    """
    frame = _FRAMES.get((request_id, keep_conn)) if role is Role.RESPONDER else None
    if frame is None:
        frame = _frame(request_id, role, keep_conn)
    begin, params_end, stdin_end = frame
    if len(params) == 1:
        begin += encode_record(_PARAMS, request_id, params[0])
    else:
        begin += b"".join([encode_record(_PARAMS, request_id, content) for content in params])
    if stdin is None:
        return begin + params_end
    if not stdin:
        return begin + params_end + stdin_end
    return b"".join((begin, params_end, encode_stream(_STDIN, request_id, stdin), stdin_end))


# What nearly all answers on such a connection end with: by the id, the bytes and the event.
_COMPLETE = {
    request_id: (
        encode_record(_END, request_id, bytes(8)),
        EndRequest(request_id, 0, ProtocolStatus.REQUEST_COMPLETE),
    )
    for request_id in (1, 2)
}


def decode_answer(data: bytes, request_id: int) -> Output | None:
    """Return the answer if ``data`` are that, all of it, and nothing else; else ``None``."""
    complete = _COMPLETE.get(request_id)
    if complete is not None and data.endswith(complete[0]):
        # One record of STDOUT before the end, and no more.
        end = len(data) - _END_BYTES
        if end >= HEADER_BYTES:
            version, type_, id_, length, padding = _unpack_header(data)
            if (
                end == HEADER_BYTES + length + padding
                and type_ == _STDOUT
                and id_ == request_id
                and version == VERSION
            ):
                return Output(data[HEADER_BYTES : HEADER_BYTES + length], b"", complete[1])
    stdout = stderr = b""
    position = 0
    size = len(data)
    is_stdout_ended = is_stderr_ended = False
    while position + HEADER_BYTES <= size:
        version, type_, id_, length, padding = _unpack_header(data, position)
        begin = position + HEADER_BYTES
        position = begin + length + padding
        if version != VERSION or id_ != request_id or position > size:
            return None
        if type_ == _STDOUT:
            if is_stdout_ended and length:
                return None
            is_stdout_ended = is_stdout_ended or not length
            content = data[begin : begin + length]
            stdout = stdout + content if stdout else content
        elif type_ == _END:
            if length != 8 or position != size:
                return None
            app_status, status = _unpack_end(data, begin)
            if status >= len(_STATUSES):
                return None
            return Output(stdout, stderr, EndRequest(request_id, app_status, _STATUSES[status]))
        elif type_ == _STDERR:
            if is_stderr_ended and length:
                return None
            is_stderr_ended = is_stderr_ended or not length
            stderr += data[begin : begin + length]
        else:
            return None
    return None

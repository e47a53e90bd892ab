"""A FastCGI connection without I/O, for either side.

FastCGI Specification 1.0, sections 3 to 5. Three verbs: `Connection.send` turns
an event into bytes, `Connection.receive_data` takes bytes, and
`Connection.next_event` gives what they mean. What may follow what is in the
tables of `tetrapylon.protocols.fastcgi.state`.

A client holds its application to the letter: records for a request id that is
not active, output after its end and the like are `RemoteProtocolError`, for a
gateway that cannot tell whose bytes it got must not pass them on. A responder
ignores records for inactive ids, as section 3.3 asks of it.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

from ..errors import LocalProtocolError, RemoteProtocolError
from .events import (
    AbortRequest,
    BeginRequest,
    ConnectionClosed,
    Data,
    EndRequest,
    Event,
    GetValues,
    GetValuesResult,
    Params,
    Refusal,
    Stderr,
    Stdin,
    Stdout,
    UnknownManagement,
    UnknownType,
)
from .params import ParamsDecoder, decode_params, encode_params
from .records import (
    ProtocolStatus,
    Record,
    RecordDecoder,
    RecordType,
    Role,
    encode_record,
    encode_stream,
)
from .state import BEGIN_STEPS, IllegalStep, RequestState, Side, State, Step

PARAMS_LIMIT_BYTES = 1024 * 1024


class _NeedData(enum.Enum):
    NEED_DATA = enum.auto()


#: What `Connection.next_event` returns until more bytes were received.
NEED_DATA: Final = _NeedData.NEED_DATA
NeedData = Literal[_NeedData.NEED_DATA]

_BEGIN_BODY = struct.Struct("!HB5x")
_END_BODY = struct.Struct("!IB3x")
_KEEP_CONN = 1
_STATUSES = tuple(ProtocolStatus)
_KNOWN_TYPES = frozenset(RecordType)
# An enumeration's member costs a look-up of its own where it is named: what each
# request needs is looked up here, once.
_BEGIN_TYPE = int(RecordType.BEGIN_REQUEST)
_PARAMS_TYPE = int(RecordType.PARAMS)
_PARAMS_END: Final = Step.PARAMS_END
_STDOUT: Final = Step.STDOUT
_STDOUT_END: Final = Step.STDOUT_END
_END: Final = Step.END
_STREAM_STEPS: Final = {
    Stdin: (int(RecordType.STDIN), Step.STDIN, Step.STDIN_END),
    Data: (int(RecordType.DATA), Step.DATA, Step.DATA_END),
    Stdout: (int(RecordType.STDOUT), Step.STDOUT, Step.STDOUT_END),
    Stderr: (int(RecordType.STDERR), Step.STDERR, Step.STDERR_END),
}


class _Request(RequestState):
    """What a connection keeps of an active request."""

    __slots__ = ("params",)
    params: ParamsDecoder | None  # a responder's, until they are complete


class Connection:
    """One side of a FastCGI connection.

    ``max_requests`` is how many requests may be active at a time. Over it a
    client's `send` raises `LocalProtocolError` (ask the application with
    `GetValues` before you raise it), and a responder receives `Refusal`.
    ``params_limit_bytes`` bounds the parameters of one request.

    After a `RemoteProtocolError` the connection is of no more use.
    """

    def __init__(
        self,
        side: Side,
        *,
        max_requests: int = 1,
        params_limit_bytes: int = PARAMS_LIMIT_BYTES,
    ) -> None:
        self.side = side
        self._max_requests = max_requests
        self._params_limit_bytes = params_limit_bytes
        self._peer = Side.RESPONDER if side is Side.CLIENT else Side.CLIENT
        self._records = RecordDecoder()
        self._requests: dict[int, _Request] = {}
        self._is_close_told = False
        self._writers = _WRITERS[side]
        self._readers = _READERS[side]

    @property
    def active_requests(self) -> int:
        """How many requests were begun and not ended."""
        return len(self._requests)

    @property
    def has_pending(self) -> bool:
        """Whether bytes were received that made no event yet."""
        return self._records.has_pending

    def state(self, side: Side, request_id: int) -> State:
        """Return how far ``side`` is with a request; `State.IDLE` if it is not active."""
        request = self._requests.get(request_id)
        return State.IDLE if request is None else request.states[side]

    # Sending

    def send(self, event: Event) -> bytes:
        """Return the bytes that say ``event`` and note that it was said.

        Raises `LocalProtocolError`, and changes nothing, if it may not be said
        by this side or not now.
        """
        writer = self._writers.get(type(event))
        if writer is None:
            raise LocalProtocolError(f"a {self.side.name.lower()} does not send {event!r:.200}")
        return writer(self, event)

    def _step(self, request_id: int, step: Step) -> None:
        request = self._requests.get(request_id)
        if request is None:
            raise LocalProtocolError(f"{step.name} for request {request_id}, which is not active")
        try:
            request.process(self.side, step)
        except IllegalStep as error:
            raise LocalProtocolError(f"request {request_id}: {error}") from None

    def _send_begin(self, event: BeginRequest) -> bytes:
        request_id = event.request_id
        if not 0 < request_id < 65536:
            raise LocalProtocolError(f"{request_id} is no request id: 1 to 65535 are")
        if request_id in self._requests:
            raise LocalProtocolError(f"request {request_id} is active")
        if len(self._requests) >= self._max_requests:
            raise LocalProtocolError(f"{self._max_requests} active requests are allowed here")
        request = _Request()
        request.process_shared(BEGIN_STEPS[event.role])
        self._requests[request_id] = request
        body = _BEGIN_BODY.pack(event.role, _KEEP_CONN if event.keep_conn else 0)
        return encode_record(_BEGIN_TYPE, request_id, body)

    def _send_abort(self, event: AbortRequest) -> bytes:
        self._step(event.request_id, Step.ABORT)
        return encode_record(RecordType.ABORT_REQUEST, event.request_id)

    def _send_params(self, event: Params) -> bytes:
        request_id = event.request_id
        contents = encode_params(event.params)
        self._step(request_id, _PARAMS_END)
        records = [encode_record(_PARAMS_TYPE, request_id, content) for content in contents]
        records.append(encode_record(_PARAMS_TYPE, request_id))
        return b"".join(records)

    def _send_stream(self, event: Stdin | Data | Stdout | Stderr) -> bytes:
        request_id, data = event
        type_, step, end_step = _STREAM_STEPS[type(event)]
        self._step(request_id, step if data else end_step)
        return encode_stream(type_, request_id, data)

    def _send_end(self, event: EndRequest) -> bytes:
        request_id, app_status, protocol_status = event
        body = _END_BODY.pack(app_status & 0xFFFFFFFF, protocol_status)
        request = self._requests.get(request_id)
        if request is not None:
            request.process_shared(_END)
            del self._requests[request_id]
        elif protocol_status == ProtocolStatus.REQUEST_COMPLETE or not 0 < request_id < 65536:
            raise LocalProtocolError(f"the end of request {request_id}, which is not active")
        return encode_record(RecordType.END_REQUEST, request_id, body)

    def _send_get_values(self, event: GetValues) -> bytes:
        return self._encode_values(RecordType.GET_VALUES, dict.fromkeys(event.names, ""))

    def _send_get_values_result(self, event: GetValuesResult) -> bytes:
        return self._encode_values(RecordType.GET_VALUES_RESULT, event.values)

    def _send_unknown_type(self, event: UnknownType) -> bytes:
        return encode_record(RecordType.UNKNOWN_TYPE, 0, bytes((event.type,)) + bytes(7))

    def _encode_values(self, type_: RecordType, values: Mapping[str, str]) -> bytes:
        contents = encode_params(values)
        if len(contents) > 1:
            raise LocalProtocolError("the values do not fit one record")
        return encode_record(type_, 0, b"".join(contents))

    # Receiving

    def receive_data(self, data: bytes) -> None:
        """Take bytes of the peer; ``b""`` means that it has closed."""
        self._records.receive(data)

    def next_event(self) -> Event | NeedData:
        """Return what the received bytes mean, one event a call.

        Raises `RemoteProtocolError` with the byte offset for what the protocol
        does not allow; for a client also if the application closes with a
        request active.
        """
        while True:
            record = self._records.next_record()
            if record is None:
                return self._need_data()
            reader = self._readers.get(record[0])
            event = reader(self, record) if reader is not None else self._read_other(record)
            if event is not None:
                return event

    def _need_data(self) -> ConnectionClosed | NeedData:
        if not self._records.is_closed or self._is_close_told:
            return NEED_DATA
        if self.side is Side.CLIENT and self._requests:
            raise RemoteProtocolError(
                f"byte {self._records.offset}: the application closed before END_REQUEST",
                status_hint=502,
            )
        self._requests.clear()
        self._is_close_told = True
        return ConnectionClosed()

    def _take(self, record: Record, step: Step) -> _Request | None:
        """Move the request of ``record``; return ``None`` if the record is to be ignored."""
        request = self._requests.get(record[1])
        if request is None:
            self._take_inactive(record)
            return None
        try:
            request.process(self._peer, step)
        except IllegalStep as error:
            raise _error(record, str(error)) from None
        return request

    def _take_inactive(self, record: Record) -> None:
        if record[1] == 0:
            raise _error(record, "id 0 is for management records")  # section 3.3
        if self.side is Side.CLIENT:
            raise _error(record, "this request is not active")

    def _read_begin(self, record: Record) -> BeginRequest | Refusal:
        _, request_id, content, _ = record
        if request_id == 0:
            raise _error(record, "id 0 is for management records")
        if len(content) != _BEGIN_BODY.size:
            raise _error(record, f"a body of {len(content)} bytes, not {_BEGIN_BODY.size}")
        if request_id in self._requests:
            raise _error(record, "this request is active already")
        if len(self._requests) >= self._max_requests:
            if self._max_requests == 1:
                return Refusal(request_id, ProtocolStatus.CANT_MPX_CONN)
            return Refusal(request_id, ProtocolStatus.OVERLOADED)
        number, flags = _BEGIN_BODY.unpack(content)
        try:
            role = Role(number)
        except ValueError:
            return Refusal(request_id, ProtocolStatus.UNKNOWN_ROLE)
        request = _Request()
        request.process_shared(BEGIN_STEPS[role])
        request.params = ParamsDecoder(self._params_limit_bytes)
        self._requests[request_id] = request
        return BeginRequest(request_id, role, bool(flags & _KEEP_CONN))

    def _read_abort(self, record: Record) -> AbortRequest | None:
        return AbortRequest(record[1]) if self._take(record, Step.ABORT) else None

    def _read_params(self, record: Record) -> Params | None:
        _, request_id, content, _ = record
        request = self._take(record, Step.PARAMS if content else Step.PARAMS_END)
        if request is None:
            return None
        assert request.params is not None
        try:
            if content:
                request.params.receive(content)
                return None
            params = request.params.finish()
        except RemoteProtocolError as error:
            raise _error(record, str(error)) from None
        request.params = None  # its bytes are not needed any more
        return Params(request_id, params)

    def _read_stdin(self, record: Record) -> Stdin | None:
        _, request_id, content, _ = record
        step = Step.STDIN if content else Step.STDIN_END
        return Stdin(request_id, content) if self._take(record, step) else None

    def _read_data(self, record: Record) -> Data | None:
        _, request_id, content, _ = record
        step = Step.DATA if content else Step.DATA_END
        return Data(request_id, content) if self._take(record, step) else None

    def _read_stdout(self, record: Record) -> Stdout | None:
        _, request_id, content, _ = record
        step = _STDOUT if content else _STDOUT_END
        return Stdout(request_id, content) if self._take(record, step) else None

    def _read_stderr(self, record: Record) -> Stderr | None:
        _, request_id, content, _ = record
        step = Step.STDERR if content else Step.STDERR_END
        return Stderr(request_id, content) if self._take(record, step) else None

    def _read_end(self, record: Record) -> EndRequest:
        _, request_id, content, _ = record
        request = self._requests.get(request_id)
        if request is None:
            raise _error(record, "this request is not active")
        if len(content) != _END_BODY.size:
            raise _error(record, f"a body of {len(content)} bytes, not {_END_BODY.size}")
        app_status, number = _END_BODY.unpack(content)
        if number >= len(_STATUSES):
            raise _error(record, f"protocol status {number} is unknown")
        request.process_shared(_END)
        del self._requests[request_id]
        return EndRequest(request_id, app_status, _STATUSES[number])

    def _read_get_values(self, record: Record) -> GetValues:
        return GetValues(tuple(_read_values(record)))

    def _read_get_values_result(self, record: Record) -> GetValuesResult:
        return GetValuesResult(_read_values(record))

    def _read_unknown_type(self, record: Record) -> UnknownType:
        _, request_id, content, _ = record
        if request_id or len(content) != 8:
            raise _error(record, f"malformed: {content[:20]!r}")
        return UnknownType(content[0])

    def _read_other(self, record: Record) -> UnknownManagement | None:
        type_, request_id, _, _ = record
        if type_ in _KNOWN_TYPES:
            raise _error(record, "this is not for the peer to send")
        # Section 4.2: records of unknown type do no damage.
        if self.side is Side.RESPONDER and request_id == 0:
            return UnknownManagement(type_)
        return None


def _read_values(record: Record) -> dict[str, str]:
    if record[1]:
        raise _error(record, "a management record has id 0")
    try:
        return decode_params(record[2])
    except RemoteProtocolError as error:
        raise _error(record, str(error)) from None


def _error(record: Record, text: str) -> RemoteProtocolError:
    type_, request_id, _, offset = record
    name = RecordType(type_).name if type_ in _KNOWN_TYPES else f"type {type_}"
    return RemoteProtocolError(
        f"byte {offset}: {name} for request {request_id}: {text}", status_hint=502
    )


# The two tables of who says what, by side: writers by event, readers by record type.
# Any stands for the event that the key names.
_WRITERS: Final[dict[Side, dict[type, Callable[[Connection, Any], bytes]]]] = {
    Side.CLIENT: {
        BeginRequest: Connection._send_begin,
        AbortRequest: Connection._send_abort,
        Params: Connection._send_params,
        Stdin: Connection._send_stream,
        Data: Connection._send_stream,
        GetValues: Connection._send_get_values,
    },
    Side.RESPONDER: {
        Stdout: Connection._send_stream,
        Stderr: Connection._send_stream,
        EndRequest: Connection._send_end,
        GetValuesResult: Connection._send_get_values_result,
        UnknownType: Connection._send_unknown_type,
    },
}
_READERS: Final[dict[Side, dict[int, Callable[[Connection, Record], Event | None]]]] = {
    Side.CLIENT: {
        RecordType.STDOUT: Connection._read_stdout,
        RecordType.STDERR: Connection._read_stderr,
        RecordType.END_REQUEST: Connection._read_end,
        RecordType.GET_VALUES_RESULT: Connection._read_get_values_result,
        RecordType.UNKNOWN_TYPE: Connection._read_unknown_type,
    },
    Side.RESPONDER: {
        RecordType.BEGIN_REQUEST: Connection._read_begin,
        RecordType.ABORT_REQUEST: Connection._read_abort,
        RecordType.PARAMS: Connection._read_params,
        RecordType.STDIN: Connection._read_stdin,
        RecordType.DATA: Connection._read_data,
        RecordType.GET_VALUES: Connection._read_get_values,
    },
}

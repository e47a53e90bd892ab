"""What is said over a FastCGI connection, one event per message.

FastCGI Specification 1.0, sections 4 and 5. The same events are sent by one
side and received by the other. Tuples, not dataclasses, because a request
makes seven of them; compare types too where two of one shape are compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

from .records import ProtocolStatus, Role


class BeginRequest(NamedTuple):
    """Section 5.1. Without ``keep_conn`` the application closes after its answer."""

    request_id: int
    role: Role = Role.RESPONDER
    keep_conn: bool = False


class AbortRequest(NamedTuple):
    """Section 5.4: the HTTP client is gone; END_REQUEST is still to come."""

    request_id: int


class Params(NamedTuple):
    """Section 5.2: all parameters of the request, latin-1 strings (PEP 3333)."""

    request_id: int
    params: Mapping[str, str]


class Stdin(NamedTuple):
    """Section 5.3: a piece of the request body; empty ``data`` end it."""

    request_id: int
    data: bytes


class Data(NamedTuple):
    """Section 5.3: a piece of the file for a Filter; empty ``data`` end it."""

    request_id: int
    data: bytes


class Stdout(NamedTuple):
    """Section 5.3: a piece of the output; empty ``data`` end it."""

    request_id: int
    data: bytes


class Stderr(NamedTuple):
    """Section 5.3: a piece of the error stream, for the log; empty ``data`` end it."""

    request_id: int
    data: bytes


class EndRequest(NamedTuple):
    """Section 5.5: the request is over; ``app_status`` is like an exit code."""

    request_id: int
    app_status: int = 0
    protocol_status: ProtocolStatus = ProtocolStatus.REQUEST_COMPLETE


class Refusal(NamedTuple):
    """A BEGIN_REQUEST that this connection does not take, received by a responder.

    To be answered by an `EndRequest` with this ``protocol_status``; the
    connection ignores what else comes for the id.
    """

    request_id: int
    protocol_status: ProtocolStatus


class GetValues(NamedTuple):
    """Section 4.1: the client asks for the application's variables."""

    names: tuple[str, ...]


class GetValuesResult(NamedTuple):
    """Section 4.1: the variables that the application knows, of those asked for."""

    values: Mapping[str, str]


class UnknownType(NamedTuple):
    """Section 4.2: the application says that it does not know this record type."""

    type: int


class UnknownManagement(NamedTuple):
    """A management record of unknown type, received by a responder.

    To be answered by `UnknownType` with the same ``type`` (section 4.2).
    """

    type: int


class ConnectionClosed(NamedTuple):
    """The peer has closed, and no record was cut.

    A client receives it only with no request active; to a responder it also
    means that all active requests are aborted.
    """


Event: TypeAlias = (
    BeginRequest
    | AbortRequest
    | Params
    | Stdin
    | Data
    | Stdout
    | Stderr
    | EndRequest
    | Refusal
    | GetValues
    | GetValuesResult
    | UnknownType
    | UnknownManagement
    | ConnectionClosed
)

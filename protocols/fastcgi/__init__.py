"""FastCGI 1.0 without I/O, both sides: client (web server) and responder (application).

>>> connection = Connection(Side.CLIENT)
>>> request = connection.send(BeginRequest(1)) + connection.send(Params(1, {"A": "b"}))
>>> request += connection.send(Stdin(1, b""))

The bytes go to the application; what it sends goes into `Connection.receive_data`,
and `Connection.next_event` says what it means.
"""

from .connection import NEED_DATA, Connection, NeedData
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
from .params import PairTooLarge, encode_params
from .records import ProtocolStatus, RecordType, Role
from .state import Side, State
from .whole import Output, decode_answer, encode_request

__all__ = [
    "NEED_DATA",
    "AbortRequest",
    "BeginRequest",
    "Connection",
    "ConnectionClosed",
    "Data",
    "EndRequest",
    "Event",
    "GetValues",
    "GetValuesResult",
    "NeedData",
    "Output",
    "PairTooLarge",
    "Params",
    "ProtocolStatus",
    "RecordType",
    "Refusal",
    "Role",
    "Side",
    "State",
    "Stderr",
    "Stdin",
    "Stdout",
    "UnknownManagement",
    "UnknownType",
    "decode_answer",
    "encode_params",
    "encode_request",
]

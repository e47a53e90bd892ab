"""The life of one FastCGI request, as tables.

FastCGI Specification 1.0, sections 5 and 6.1.

Theory
======

A request has two streams of records, one from each side, which run at their
own pace: an application may answer before it has read the body. So a request
has two states, as an exchange has in h11, one for what the client (the web
server) has sent, one for what the responder (the application) has sent, and
each step moves the state of the side that took it. Two steps move both sides,
for they begin and end the request: BEGIN_REQUEST is the client's, END_REQUEST
the responder's, and after it the request id means nothing any more, whatever
the other side had still to send.

The client sends its streams strictly one after the other, and which ones the
role decides (section 6.1):

    Responder    PARAMS  STDIN
    Authorizer   PARAMS
    Filter       PARAMS  STDIN  DATA

ABORT_REQUEST may come at any point after BEGIN_REQUEST; the client then sends
nothing more for the request, and the responder still owes END_REQUEST.

The responder's streams STDOUT and STDERR interleave freely, so its state says
which of the two have ended. A stream that carried nothing need not be ended,
and applications in the field leave the end out elsewhere too: END_REQUEST is
allowed from every open state. A second end of a stream is harmless; a byte
after it is not.

A step that is in no table is against the protocol: `RequestState.process`
raises and changes nothing.

Management records (request id 0, section 4) belong to no request and have no
state. Whether a connection may carry several requests at a time is a matter of
the connection, in `tetrapylon.protocols.fastcgi.connection`.
"""

from __future__ import annotations

import enum
from typing import Final

from .records import Role


class Side(enum.IntEnum):
    """Who speaks: the web server (client) or the application (responder).

    The second is called so for every role; ``role`` is the protocol's word for
    something else.
    """

    CLIENT = 0
    RESPONDER = 1


class State(enum.IntEnum):
    """How far one side is with one request."""

    IDLE = 0
    # The client is sending parameters …
    RESPONDER_PARAMS = 1
    AUTHORIZER_PARAMS = 2
    FILTER_PARAMS = 3
    # … or a body …
    STDIN = 4
    FILTER_STDIN = 5
    DATA = 6
    # … or nothing more.
    SENT = 7
    ABORTED = 8
    # The responder is sending output …
    OUTPUT = 9
    STDOUT_ENDED = 10
    STDERR_ENDED = 11
    OUTPUT_ENDED = 12
    # Both: the request id is free again.
    DONE = 13


class Step(enum.IntEnum):
    """What moves a request: a record, or the empty record that ends a stream."""

    BEGIN_RESPONDER = 0
    BEGIN_AUTHORIZER = 1
    BEGIN_FILTER = 2
    PARAMS = 3
    PARAMS_END = 4
    STDIN = 5
    STDIN_END = 6
    DATA = 7
    DATA_END = 8
    ABORT = 9
    STDOUT = 10
    STDOUT_END = 11
    STDERR = 12
    STDERR_END = 13
    END = 14


BEGIN_STEPS: Final = {
    Role.RESPONDER: Step.BEGIN_RESPONDER,
    Role.AUTHORIZER: Step.BEGIN_AUTHORIZER,
    Role.FILTER: Step.BEGIN_FILTER,
}

TRANSITIONS: Final[dict[Side, dict[State, dict[Step, State]]]] = {
    Side.CLIENT: {
        State.IDLE: {
            Step.BEGIN_RESPONDER: State.RESPONDER_PARAMS,
            Step.BEGIN_AUTHORIZER: State.AUTHORIZER_PARAMS,
            Step.BEGIN_FILTER: State.FILTER_PARAMS,
        },
        State.RESPONDER_PARAMS: {
            Step.PARAMS: State.RESPONDER_PARAMS,
            Step.PARAMS_END: State.STDIN,
            Step.ABORT: State.ABORTED,
            Step.END: State.DONE,
        },
        State.AUTHORIZER_PARAMS: {
            Step.PARAMS: State.AUTHORIZER_PARAMS,
            Step.PARAMS_END: State.SENT,
            Step.ABORT: State.ABORTED,
            Step.END: State.DONE,
        },
        State.FILTER_PARAMS: {
            Step.PARAMS: State.FILTER_PARAMS,
            Step.PARAMS_END: State.FILTER_STDIN,
            Step.ABORT: State.ABORTED,
            Step.END: State.DONE,
        },
        State.STDIN: {
            Step.STDIN: State.STDIN,
            Step.STDIN_END: State.SENT,
            Step.ABORT: State.ABORTED,
            Step.END: State.DONE,
        },
        State.FILTER_STDIN: {
            Step.STDIN: State.FILTER_STDIN,
            Step.STDIN_END: State.DATA,
            Step.ABORT: State.ABORTED,
            Step.END: State.DONE,
        },
        State.DATA: {
            Step.DATA: State.DATA,
            Step.DATA_END: State.SENT,
            Step.ABORT: State.ABORTED,
            Step.END: State.DONE,
        },
        State.SENT: {
            Step.ABORT: State.ABORTED,
            Step.END: State.DONE,
        },
        State.ABORTED: {
            Step.END: State.DONE,
        },
        State.DONE: {},
    },
    Side.RESPONDER: {
        State.IDLE: {
            Step.BEGIN_RESPONDER: State.OUTPUT,
            Step.BEGIN_AUTHORIZER: State.OUTPUT,
            Step.BEGIN_FILTER: State.OUTPUT,
        },
        State.OUTPUT: {
            Step.STDOUT: State.OUTPUT,
            Step.STDERR: State.OUTPUT,
            Step.STDOUT_END: State.STDOUT_ENDED,
            Step.STDERR_END: State.STDERR_ENDED,
            Step.END: State.DONE,
        },
        State.STDOUT_ENDED: {
            Step.STDERR: State.STDOUT_ENDED,
            Step.STDOUT_END: State.STDOUT_ENDED,
            Step.STDERR_END: State.OUTPUT_ENDED,
            Step.END: State.DONE,
        },
        State.STDERR_ENDED: {
            Step.STDOUT: State.STDERR_ENDED,
            Step.STDOUT_END: State.OUTPUT_ENDED,
            Step.STDERR_END: State.STDERR_ENDED,
            Step.END: State.DONE,
        },
        State.OUTPUT_ENDED: {
            Step.STDOUT_END: State.OUTPUT_ENDED,
            Step.STDERR_END: State.OUTPUT_ENDED,
            Step.END: State.DONE,
        },
        State.DONE: {},
    },
}


class IllegalStep(Exception):
    """A step that the tables do not have; the connection says whose fault it is."""


class RequestState:
    """Both sides' states of one request, by side."""

    __slots__ = ("states",)

    def __init__(self) -> None:
        self.states = [State.IDLE, State.IDLE]

    def process(self, side: Side, step: Step) -> None:
        """Move ``side`` by ``step``; raise `IllegalStep` and stay if the table lacks it."""
        states = self.states
        try:
            states[side] = TRANSITIONS[side][states[side]][step]
        except KeyError:
            raise IllegalStep(
                f"{step.name} of the {side.name.lower()} in state {states[side].name}"
            ) from None

    def process_shared(self, step: Step) -> None:
        """Move both sides by a step that begins or ends the request."""
        for side in TRANSITIONS:
            self.process(side, step)

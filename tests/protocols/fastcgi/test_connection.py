"""Both sides of a connection: golden vectors, what may be said, what mutated bytes do."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tetrapylon.protocols.errors import LocalProtocolError, RemoteProtocolError
from tetrapylon.protocols.fastcgi import (
    NEED_DATA,
    AbortRequest,
    BeginRequest,
    Connection,
    ConnectionClosed,
    Data,
    EndRequest,
    Event,
    GetValues,
    GetValuesResult,
    Params,
    ProtocolStatus,
    RecordType,
    Refusal,
    Role,
    Side,
    State,
    Stderr,
    Stdin,
    Stdout,
    UnknownManagement,
    UnknownType,
)
from tetrapylon.protocols.fastcgi.records import RecordDecoder, encode_record

CLIENT, RESPONDER = Side.CLIENT, Side.RESPONDER


def typed(events: list[Any]) -> list[tuple[str, Any]]:
    """Tuples of one shape are equal whatever their type: compare both."""
    return [(type(event).__name__, event) for event in events]


def drain(connection: Connection) -> list[Event]:
    events: list[Event] = []
    while (event := connection.next_event()) is not NEED_DATA:
        events.append(event)
    return events


def receive(connection: Connection, *pieces: bytes) -> tuple[list[Event], str | None]:
    """Return the events, and the error if one came."""
    events: list[Event] = []
    try:
        for piece in pieces:
            connection.receive_data(piece)
            while (event := connection.next_event()) is not NEED_DATA:
                events.append(event)
    except RemoteProtocolError as error:
        assert error.status_hint == 502
        return events, str(error)
    return events, None


def check(vector: Any, *pieces: bytes) -> None:
    if vector.is_closed:
        pieces = (*pieces, b"")
    events, error = receive(vector.connection(), *pieces)
    assert typed(events) == typed(vector.events)
    if vector.error is None:
        assert error is None
    else:
        with pytest.raises(RemoteProtocolError, match=vector.error):
            raise RemoteProtocolError(error or "none")


def test_vector_whole(vector: Any) -> None:
    check(vector, vector.data)


def test_vector_byte_by_byte(vector: Any) -> None:
    check(vector, *(vector.data[i : i + 1] for i in range(len(vector.data))))


def test_vector_with_trailing_bytes(vector: Any) -> None:
    if not vector.is_closed:
        check(vector, vector.data + b"\x01\x06\x00")


def test_vector_cut_anywhere(vector: Any) -> None:
    # FCGI-3.3-STREAM, FCGI-3.3-PADDING
    for cut in range(1, len(vector.data)):
        check(vector, vector.data[:cut], vector.data[cut:])


# What is sent


def request_bytes(connection: Connection, *, body: bytes = b"", keep_conn: bool = False) -> bytes:
    events: list[Event] = [
        BeginRequest(1, keep_conn=keep_conn),
        Params(1, {"SERVER_PORT": "80", "SERVER_ADDR": "199.170.183.42"}),
    ]
    if body:
        events.append(Stdin(1, body))
    events.append(Stdin(1, b""))
    return b"".join(connection.send(event) for event in events)


def test_a_request_is_as_in_the_specification() -> None:
    # Appendix B, example 1; FCGI-5.1-FLAGS, FCGI-5.1-RESERVED, FCGI-5.3-STDIN-EMPTY,
    # FCGI-3.3-TYPE, FCGI-3.3-ID-SMALL
    assert request_bytes(Connection(CLIENT)) == (
        b"\1\1\0\1\0\10\0\0"
        b"\0\1\0\0\0\0\0\0"
        b"\1\4\0\1\0\52\6\0"
        b"\13\2SERVER_PORT80\13\16SERVER_ADDR199.170.183.42\0\0\0\0\0\0"
        b"\1\4\0\1\0\0\0\0"
        b"\1\5\0\1\0\0\0\0"
    )


def test_an_answer_is_as_in_the_specification() -> None:
    # FCGI-5.5-BODY
    responder = Connection(RESPONDER)
    receive(responder, request_bytes(Connection(CLIENT)))
    sent = b"".join(
        responder.send(event) for event in (Stderr(1, b"!"), Stdout(1, b""), EndRequest(1, 938))
    )
    assert sent == (
        b"\1\7\0\1\0\1\7\0!\0\0\0\0\0\0\0\1\6\0\1\0\0\0\0\1\3\0\1\0\10\0\0\0\0\3\252\0\0\0\0"
    )


def test_management_records_have_id_0() -> None:
    # FCGI-3.3-MGMT-ID
    assert Connection(CLIENT).send(GetValues(("FCGI_MAX_REQS",))) == (
        b"\1\x09\0\0\0\17\1\0\15\0FCGI_MAX_REQS\0"
    )
    assert Connection(RESPONDER).send(UnknownType(77)) == b"\1\x0b\0\0\0\10\0\0M" + bytes(7)


@pytest.mark.parametrize(
    ("side", "event"),
    [
        # FCGI-APP-TYPE
        (CLIENT, Stdout(1, b"")),
        (CLIENT, Stderr(1, b"")),
        (CLIENT, EndRequest(1)),
        (CLIENT, GetValuesResult({})),
        (CLIENT, UnknownType(12)),
        (RESPONDER, BeginRequest(1)),
        (RESPONDER, AbortRequest(1)),
        (RESPONDER, Params(1, {})),
        (RESPONDER, Stdin(1, b"")),
        (RESPONDER, Data(1, b"")),
        (RESPONDER, GetValues(())),
        # events that are only received
        (CLIENT, Refusal(1, ProtocolStatus.OVERLOADED)),
        (RESPONDER, UnknownManagement(12)),
        (CLIENT, ConnectionClosed()),
        # nothing goes before BEGIN_REQUEST: FCGI-5.1-BEGIN-FIRST
        (CLIENT, Params(1, {})),
        (CLIENT, Stdin(1, b"")),
        (CLIENT, AbortRequest(1)),
        (RESPONDER, Stdout(1, b"x")),
        (RESPONDER, EndRequest(1)),
        # FCGI-3.3-APP-ID
        (CLIENT, BeginRequest(0)),
        (CLIENT, BeginRequest(65536)),
        (RESPONDER, EndRequest(0, 0, ProtocolStatus.OVERLOADED)),
    ],
)
def test_what_a_side_may_not_say(side: Side, event: Event) -> None:
    connection = Connection(side)
    with pytest.raises(LocalProtocolError):
        connection.send(event)
    assert connection.active_requests == 0


def test_one_request_at_a_time_unless_allowed() -> None:
    # FCGI-MPX, FCGI-3.3-ID-REUSE
    client = Connection(CLIENT)
    client.send(BeginRequest(1))
    with pytest.raises(LocalProtocolError, match="1 active"):
        client.send(BeginRequest(2))
    client = Connection(CLIENT, max_requests=2)
    client.send(BeginRequest(1))
    with pytest.raises(LocalProtocolError, match="request 1 is active"):
        client.send(BeginRequest(1))
    client.send(BeginRequest(2))
    assert client.active_requests == 2


def test_a_failed_send_leaves_the_state() -> None:
    client = Connection(CLIENT)
    client.send(BeginRequest(1))
    with pytest.raises(LocalProtocolError):
        client.send(Params(1, {"A": "\0"}))
    with pytest.raises(LocalProtocolError):
        client.send(Stdin(1, b"early"))
    assert client.state(CLIENT, 1) is State.RESPONDER_PARAMS
    client.send(Params(1, {"A": "b"}))
    assert client.state(CLIENT, 1) is State.STDIN
    assert client.state(RESPONDER, 1) is State.OUTPUT


def test_an_answer_before_the_body_is_sent() -> None:
    # FCGI-6.2-EARLY, FCGI-6.1-EARLY
    client = Connection(CLIENT)
    client.send(BeginRequest(1))
    client.send(Params(1, {}))
    client.send(Stdin(1, b"half"))
    events, error = receive(client, encode_record(6, 1, b"x"), encode_record(3, 1, bytes(8)))
    assert typed(events) == typed([Stdout(1, b"x"), EndRequest(1)])
    assert error is None
    assert client.state(CLIENT, 1) is State.IDLE
    with pytest.raises(LocalProtocolError, match="not active"):
        client.send(Stdin(1, b"the rest"))


def test_a_kept_connection_carries_the_next_request() -> None:
    # FCGI-5.1-KEEP
    client, responder = Connection(CLIENT), Connection(RESPONDER)
    for number in range(3):
        events, _ = receive(responder, request_bytes(client, keep_conn=True))
        assert events[0] == BeginRequest(1, Role.RESPONDER, True)
        answer = responder.send(Stdout(1, b"%d" % number)) + responder.send(EndRequest(1))
        assert typed(receive(client, answer)[0]) == typed(
            [Stdout(1, b"%d" % number), EndRequest(1)]
        )


def test_refusals_can_be_answered() -> None:
    responder, client = Connection(RESPONDER), Connection(CLIENT, max_requests=2)
    receive(responder, client.send(BeginRequest(1)))
    events, _ = receive(responder, client.send(BeginRequest(2)))
    assert typed(events) == typed([Refusal(2, ProtocolStatus.CANT_MPX_CONN)])
    end = EndRequest(2, 0, ProtocolStatus.CANT_MPX_CONN)
    assert typed(receive(client, responder.send(end))[0]) == typed([end])
    assert client.active_requests == 1


def test_a_responder_that_could_multiplex_is_overloaded() -> None:
    responder, client = Connection(RESPONDER, max_requests=2), Connection(CLIENT, max_requests=3)
    pieces = [client.send(BeginRequest(number)) for number in (1, 2, 3)]
    assert receive(responder, *pieces)[0][-1] == Refusal(3, ProtocolStatus.OVERLOADED)


def test_an_abort_is_answered() -> None:
    # FCGI-5.4-END
    client, responder = Connection(CLIENT), Connection(RESPONDER)
    receive(responder, client.send(BeginRequest(1)))
    assert typed(receive(responder, client.send(AbortRequest(1)))[0]) == typed([AbortRequest(1)])
    with pytest.raises(LocalProtocolError):
        client.send(Params(1, {}))
    late = responder.send(Stdout(1, b"late")) + responder.send(EndRequest(1, 1))
    assert typed(receive(client, late)[0]) == typed([Stdout(1, b"late"), EndRequest(1, 1)])
    with pytest.raises(LocalProtocolError):
        client.send(AbortRequest(1))


@pytest.mark.parametrize("side", Side)
def test_a_clean_close_is_told_once(side: Side) -> None:
    connection = Connection(side)
    connection.receive_data(b"")
    assert typed(drain(connection)) == typed([ConnectionClosed()])
    assert connection.next_event() is NEED_DATA


def test_a_client_that_closes_aborts_what_is_active() -> None:
    responder = Connection(RESPONDER)
    receive(responder, Connection(CLIENT).send(BeginRequest(1)))
    events, error = receive(responder, b"")
    assert typed(events) == typed([ConnectionClosed()])
    assert error is None
    assert responder.active_requests == 0


def test_parameters_are_bounded() -> None:
    client, responder = Connection(CLIENT), Connection(RESPONDER, params_limit_bytes=1000)
    receive(responder, client.send(BeginRequest(1)))
    _, error = receive(responder, client.send(Params(1, {"A": "x" * 1000})))
    assert error is not None
    assert error.startswith("byte 16: PARAMS for request 1: more than 1000 bytes")


def test_values_of_more_than_a_record_are_not_asked() -> None:
    with pytest.raises(LocalProtocolError):
        Connection(CLIENT).send(GetValues(tuple(str(number) * 200 for number in range(400))))


def test_large_parameters_and_a_body_of_records_are_one_request() -> None:
    # F5
    body = encode_record(3, 1, bytes(8)) * 6188
    assert len(body) > 99_000
    client, responder = Connection(CLIENT), Connection(RESPONDER)
    params = {f"HTTP_X_{number}": "v" * 3000 for number in range(60)}
    sent = b"".join(
        client.send(event)
        for event in (BeginRequest(1), Params(1, params), Stdin(1, body), Stdin(1, b""))
    )
    decoder = RecordDecoder()
    decoder.receive(sent)
    while (record := decoder.next_record()) is not None:
        assert len(record[2]) <= 65535
    events, error = receive(responder, sent)
    assert error is None
    assert [type(event) for event in events if not isinstance(event, Stdin)] == [
        BeginRequest,
        Params,
    ]
    assert events[1] == Params(1, params)
    assert b"".join(event.data for event in events if isinstance(event, Stdin)) == body


# Properties

SCRIPTS = st.lists(
    st.one_of(
        st.builds(Stdout, st.just(1), st.binary(min_size=1, max_size=50)),
        st.builds(Stderr, st.just(1), st.binary(min_size=1, max_size=50)),
    ),
    max_size=6,
)
PARAMS = st.dictionaries(
    st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=20),
    st.text(st.characters(min_codepoint=1, max_codepoint=255), max_size=150),
    max_size=5,
)


@settings(max_examples=60)
@given(PARAMS, st.binary(max_size=300), SCRIPTS, st.integers(0, 2**32 - 1), st.data())
def test_client_and_responder_understand_each_other(
    params: dict[str, str], body: bytes, script: list[Event], status: int, data: st.DataObject
) -> None:
    client, responder = Connection(CLIENT), Connection(RESPONDER)
    request: list[Event] = [BeginRequest(1, keep_conn=True), Params(1, params)]
    if body:
        request.append(Stdin(1, body))
    request.append(Stdin(1, b""))
    answer = [*script, Stdout(1, b""), EndRequest(1, status)]
    for sender, receiver, said in ((client, responder, request), (responder, client, answer)):
        sent = b"".join(sender.send(event) for event in said)
        cuts = sorted(data.draw(st.lists(st.integers(0, len(sent)), max_size=6)))
        pieces = [sent[a:b] for a, b in zip([0, *cuts], [*cuts, None], strict=True)]
        heard, error = receive(receiver, *filter(None, pieces))
        assert error is None
        assert typed(heard) == typed(said)
    assert client.active_requests == responder.active_requests == 0


@settings(max_examples=150)
@given(
    st.sampled_from(Side),
    st.lists(
        st.tuples(
            st.sampled_from([0, *RecordType, 12, 255]),
            st.integers(0, 3),
            st.one_of(st.binary(max_size=20), st.just(b"\0\1\0\0\0\0\0\0")),
        ),
        max_size=8,
    ),
    st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=3),
    st.booleans(),
)
def test_any_bytes_give_events_or_a_remote_error(
    side: Side,
    records: list[tuple[int, int, bytes]],
    mutations: list[tuple[int, int]],
    is_closed: bool,
) -> None:
    connection = Connection(side, max_requests=2)
    if side is CLIENT:
        connection.send(BeginRequest(1))
    sent = bytearray(b"".join(encode_record(*record) for record in records))
    for position, byte in mutations:
        if position < len(sent):
            sent[position] = byte
    pieces = [bytes(sent)] if sent else []
    events, _ = receive(connection, *pieces, *([b""] if is_closed else []))
    # A client never gets output of a request that it has not begun, nor after its end.
    if side is CLIENT:
        ends = 0
        for event in events:
            if isinstance(event, Stdout | Stderr | EndRequest):
                assert event.request_id == 1
                assert not ends
                ends += isinstance(event, EndRequest)

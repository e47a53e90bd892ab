"""Whole requests and answers: the bytes and events of the record-by-record codec."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tetrapylon.protocols.errors import LocalProtocolError, RemoteProtocolError
from tetrapylon.protocols.fastcgi import (
    NEED_DATA,
    BeginRequest,
    Connection,
    EndRequest,
    PairTooLarge,
    Params,
    ProtocolStatus,
    Role,
    Side,
    Stderr,
    Stdin,
    Stdout,
    decode_answer,
    encode_params,
    encode_request,
)

LATIN = st.text(st.characters(max_codepoint=255, exclude_characters="\0"), max_size=300)


def by_records(
    request_id: int, params: dict[str, str], stdin: bytes | None, role: Role, keep: bool
) -> bytes:
    codec = Connection(Side.CLIENT)
    said = codec.send(BeginRequest(request_id, role, keep)) + codec.send(Params(request_id, params))
    if stdin is not None and role is Role.RESPONDER:
        if stdin:
            said += codec.send(Stdin(request_id, stdin))
        said += codec.send(Stdin(request_id, b""))
    return said


@settings(max_examples=150, deadline=None)
@given(
    request_id=st.sampled_from([1, 2, 3, 65535]),
    params=st.dictionaries(LATIN.filter(bool), LATIN, max_size=8),
    stdin=st.one_of(st.none(), st.binary(max_size=100), st.just(bytes(200_000))),
    keep=st.booleans(),
)
def test_requests(request_id: int, params: dict[str, str], stdin: bytes | None, keep: bool) -> None:
    # FCGI-5.1-BODY, FCGI-5.1-FLAGS, FCGI-5.2-PARAMS-ORDER, FCGI-5.3-STDIN-EMPTY
    whole = encode_request(request_id, encode_params(params), stdin, keep_conn=keep)
    assert whole == by_records(request_id, params, stdin, Role.RESPONDER, keep)


def test_an_authorizer_gets_no_stdin() -> None:  # FCGI-6.3-AUTHORIZER
    whole = encode_request(1, encode_params({"A": "b"}), b"", role=Role.AUTHORIZER)
    assert whole == by_records(1, {"A": "b"}, b"", Role.AUTHORIZER, False)


def test_parameters_that_cannot_be_sent() -> None:
    with pytest.raises(PairTooLarge):
        encode_params({"A": "b" * 70_000})
    with pytest.raises(LocalProtocolError):
        encode_params({"A": "\0"})


def events_of(data: bytes) -> tuple[bytes, bytes, EndRequest | None] | None:
    """What the record-by-record codec makes of `data`; None if it is not a whole answer."""
    codec = Connection(Side.CLIENT)
    codec.send(BeginRequest(1))
    codec.receive_data(data)
    stdout = stderr = b""
    end: EndRequest | None = None
    try:
        while (event := codec.next_event()) is not NEED_DATA:
            if isinstance(event, Stdout):
                stdout += event.data
            elif isinstance(event, Stderr):
                stderr += event.data
            elif isinstance(event, EndRequest):
                end = event
    except RemoteProtocolError:
        return None
    return None if end is None or codec.has_pending else (stdout, stderr, end)


def record(
    type_: int, content: bytes, *, id_: int = 1, padding: int = 0, version: int = 1
) -> bytes:
    head = bytes((version, type_)) + id_.to_bytes(2, "big") + len(content).to_bytes(2, "big")
    return head + bytes((padding, 0)) + content + bytes(padding)


END = record(3, bytes(8))
RECORDS = st.one_of(
    st.builds(record, st.sampled_from([6, 7]), st.binary(max_size=20), padding=st.integers(0, 9)),
    st.builds(
        record,
        st.sampled_from([3, 6, 7, 10, 11, 12]),
        st.binary(max_size=9),
        id_=st.sampled_from([0, 1, 2]),
        version=st.sampled_from([1, 1, 1, 2]),
    ),
    st.just(END),
)


@settings(max_examples=400, deadline=None)
@given(records=st.lists(RECORDS, max_size=5), cut=st.integers(0, 30), ends=st.booleans())
def test_answers(records: list[bytes], cut: int, ends: bool) -> None:
    """Whatever it takes for an answer, the other codec takes for the same."""
    data = b"".join(records) + (END if ends else b"")
    data = data[: len(data) - cut] if cut < 8 else data
    answer = decode_answer(data, 1)
    if answer is not None:
        assert tuple(answer) == events_of(data)


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        (record(6, b"out") + END, (b"out", b"")),
        (record(6, b"a", padding=255) + record(6, b"b") + record(6, b"") + END, (b"ab", b"")),
        (record(6, b"a") + record(7, b"e") + record(6, b"b") + record(7, b"") + END, (b"ab", b"e")),
        (END, (b"", b"")),
    ],
)
def test_what_most_answers_are_like(data: bytes, answer: tuple[bytes, bytes]) -> None:
    # FCGI-5.5-NOEOS, FCGI-6.1-INTERLEAVE, FCGI-6.1-STDERR-EMPTY
    assert decode_answer(data, 1) == (*answer, EndRequest(1))
    assert events_of(data) == (*answer, EndRequest(1))


def test_how_it_ended() -> None:
    body = (7).to_bytes(4, "big") + bytes((2, 0, 0, 0))
    answer = decode_answer(record(3, body, id_=9), 9)
    assert answer is not None
    assert answer.end == EndRequest(9, 7, ProtocolStatus.OVERLOADED)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        END[:-1],
        END + b"\1",
        END + END,
        record(6, b"out"),
        record(6, b"") + record(6, b"late") + END,
        record(6, b"") + record(6, b"") + record(6, b"late") + END,
        record(7, b"") + record(7, b"late") + END,
        record(6, b"out", id_=2) + END,
        record(6, b"out", version=2) + END,
        record(1, bytes(8)) + END,
        record(3, bytes(7)),
        record(3, bytes((0, 0, 0, 0, 4, 0, 0, 0))),
    ],
)
def test_what_is_left_to_the_other(data: Any) -> None:
    assert decode_answer(data, 1) is None

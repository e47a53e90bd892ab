"""Whole connections through both engines."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tetrapylon.protocols.errors import RemoteProtocolError
from tetrapylon.protocols.http1 import (
    NEED_DATA,
    Data,
    EndOfMessage,
    Request,
    ServerCodec,
    engine,
    strictness,
)

VECTORS = sorted((Path(__file__).parent / "vectors").glob("*.http"))


def told(event: object) -> object:
    """Write an event as the vectors' JSON does."""
    if isinstance(event, Request):
        return {
            "request": [event.method, event.target.decode(), event.http_version],
            "fields": [[n.decode("latin-1"), v.decode("latin-1")] for n, v in event.fields],
            "content_length": event.content_length,
            "keep_alive": event.wants_keep_alive,
        }
    if isinstance(event, Data):
        return {"data": event.data.decode("latin-1")}
    if isinstance(event, EndOfMessage):
        return {"end": [[n.decode(), v.decode()] for n, v in event.trailers]}
    return event


@pytest.mark.parametrize("path", VECTORS, ids=lambda path: path.stem)
def test_vectors(read: Callable[[bytes], list[object]], path: Path) -> None:
    expected = json.loads(path.with_suffix(".json").read_text())
    assert [told(event) for event in read(path.read_bytes())] == expected


def test_there_are_vectors() -> None:
    assert len(VECTORS) >= 8


def test_pipelined_requests_wait_for_their_turn(codec_class: type[ServerCodec]) -> None:
    one = b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n"
    codec = codec_class()
    codec.receive_data(b"".join(one % i for i in range(1000)))
    for i in range(1000):
        request = codec.next_event()
        assert isinstance(request, Request)
        assert request.target == b"/%d" % i
        assert codec.buffered_bytes == sum(len(one % j) for j in range(i + 1, 1000))
    assert codec.next_event() is NEED_DATA


def test_error_behind_good_request_comes_after_it(codec_class: type[ServerCodec]) -> None:
    codec = codec_class()
    codec.receive_data(b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGARBAGE\r\n\r\n")
    assert isinstance(codec.next_event(), Request)
    with pytest.raises(RemoteProtocolError):
        codec.next_event()


def test_unknown_method_is_where_the_engines_differ() -> None:
    head = b"BREW /pot HTTP/1.1\r\nHost: a\r\n\r\n"
    reference = engine("h11")()
    reference.receive_data(head)
    event = reference.next_event()
    assert isinstance(event, Request)
    assert event.method == "BREW"
    fast = engine("httptools")()
    fast.receive_data(head)
    with pytest.raises(RemoteProtocolError) as caught:
        fast.next_event()
    assert caught.value.status_hint == 501


def test_offer_to_upgrade_is_a_plain_request(codec_class: type[ServerCodec]) -> None:  # A13
    codec = codec_class()
    codec.receive_data(
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
        b"GET /2 HTTP/1.1\r\nHost: a\r\n\r\n"
    )
    targets = []
    while (event := codec.next_event()) is not NEED_DATA:
        if isinstance(event, Request):
            targets.append(event.target)
    assert targets == [b"/", b"/2"]


tokens = st.text("!#$%&'*+-.^_`|~abcXYZ019", min_size=1, max_size=8).map(str.encode)
values = st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"))
fields = st.lists(st.tuples(tokens, values.map(lambda v: v.encode("latin-1"))), max_size=5)
targets = st.text("/abc.-~%20?=&;:@", max_size=20).map(lambda t: b"/" + t.encode())
FRAMING = {b"content-length", b"transfer-encoding", b"host", b"connection", b"expect", b"te"}


@settings(max_examples=150)
@given(
    st.sampled_from([b"GET", b"POST", b"PUT", b"DELETE", b"PATCH"]), targets, fields, st.binary()
)
def test_what_h11_writes_is_read_back(
    method: bytes, target: bytes, given_fields: list[tuple[bytes, bytes]], body: bytes
) -> None:
    wanted = [
        (name, value.strip(b" \t\x80\x85\xa0"))
        for name, value in given_fields
        if name.lower() not in FRAMING
    ]
    try:
        request = h11.Request(
            method=method,
            target=target,
            headers=[(b"Host", b"a"), (b"Content-Length", b"%d" % len(body)), *wanted],
        )
    except h11.LocalProtocolError:
        return
    client = h11.Connection(h11.CLIENT)
    wire = client.send(request) or b""
    wire += client.send(h11.Data(body)) or b""
    wire += client.send(h11.EndOfMessage()) or b""
    results = []
    for name in ("httptools", "h11"):
        codec = engine(name)()
        codec.receive_data(wire)
        got: list[object] = []
        try:
            while (event := codec.next_event()) is not NEED_DATA:
                got.append(event)
        except RemoteProtocolError as error:
            got.append(error.status_hint)
        results.append(got)
    assert results[0] == results[1], "the engines differ"
    head = results[0][0]
    assert isinstance(head, Request), results[0]
    assert head.method == method.decode()
    assert head.target == target
    plain = [n.lower() for n, _ in wanted if re.fullmatch(rb"[A-Za-z0-9-]+", n)]
    if plain.count(b"content-type") < 2:
        assert [n for n, _ in head.fields[2:]] == plain
    content = b"".join(e.data for e in results[0] if isinstance(e, Data))
    assert content == body


GOOD = (
    b"POST /a?b HTTP/1.1\r\nHost: example.org\r\nAccept: */*\r\nX-A: 1, 2\r\n"
    b"Content-Length: 5\r\n\r\nhelloGET / HTTP/1.1\r\nHost: a\r\n\r\n"
)


@settings(max_examples=400)
@given(
    st.integers(0, len(GOOD)),
    st.sampled_from([0, 1, 2]),
    st.binary(max_size=3) | st.sampled_from([b"\r", b"\n", b"\0", b" ", b":", b"\t", b"\x0b"]),
)
def test_mutations_are_judged_alike(at: int, cut: int, junk: bytes) -> None:
    wire = GOOD[:at] + junk + GOOD[at + cut :]
    results = []
    for name in ("httptools", "h11"):
        codec = engine(name)()
        codec.receive_data(wire)
        got: list[object] = []
        try:
            while (event := codec.next_event()) is not NEED_DATA:
                got.append(event)
        except RemoteProtocolError as error:
            got.append(error.status_hint)
        results.append(got)
    fast, reference = results
    if fast != reference:
        # The one listed difference: a method that llhttp does not know.
        assert fast[-1] == 501
        assert fast[:-1] == reference[: len(fast) - 1]


def test_engine_by_name() -> None:
    assert engine("auto").__name__ == "HttptoolsCodec"
    assert engine("h11").__name__ == "H11Codec"


def test_remembered_fields_say_nothing_of_another_method() -> None:
    codec = engine("httptools")()
    codec.receive_data(b"GET / HTTP/1.1\r\nHost: a\r\n\r\nBREW / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert isinstance(codec.next_event(), Request)
    with pytest.raises(RemoteProtocolError) as caught:
        codec.next_event()
    assert caught.value.status_hint == 501


def test_head_that_comes_byte_by_byte_is_judged_once(  # B4
    codec_class: type[ServerCodec], monkeypatch: pytest.MonkeyPatch
) -> None:
    judged = 0
    check_head = strictness.check_head

    def count(head: bytes) -> None:
        nonlocal judged
        judged += len(head)
        check_head(head)

    monkeypatch.setattr(strictness, "check_head", count)
    head = b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 90 + b"\r\n"
    codec = codec_class()
    for at in range(len(head) - 1):
        codec.receive_data(head[at : at + 1])
        assert codec.next_event() is NEED_DATA
    assert judged < 4 * len(head)
    codec.receive_data(head[-1:])
    assert isinstance(codec.next_event(), Request)

"""The parser of script output against vectors written by hand from RFC 3875 §6.

``vectors/NAME.out`` is what a script wrote, ``vectors/NAME.toml`` what it means:
``head`` and ``body`` of the events, or ``local_redirect``, and ``error`` where it
ends badly (a regular expression). Strings stand for latin-1 bytes.
"""

from __future__ import annotations

import itertools
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tetrapylon.protocols.cgi.response import (
    NEED_DATA,
    CgiResponseParser,
    Data,
    EndOfMessage,
    Event,
    LocalRedirect,
    ResponseHead,
    read_whole,
)
from tetrapylon.protocols.errors import LocalProtocolError, RemoteProtocolError
from tetrapylon.protocols.fields import HOP_BY_HOP, is_field_value, is_token

VECTORS = sorted((Path(__file__).parent / "vectors").glob("*.toml"))


def load(file: Path) -> tuple[bytes, dict[str, Any]]:
    return file.with_suffix(".out").read_bytes(), tomllib.loads(file.read_text(encoding="utf-8"))


def run(parts: Iterable[bytes], **options: Any) -> tuple[list[Event], str | None]:
    """Return all events, adjacent Data as one, and the message of the error if there was one."""
    parser = CgiResponseParser(**options)
    events: list[Event] = []
    try:
        for part in (*filter(None, parts), b""):
            parser.receive_data(part)
            while (event := parser.next_event()) is not NEED_DATA:
                assert events[-1:] != [EndOfMessage()]
                if isinstance(event, Data):
                    assert event.data
                    if events and isinstance(events[-1], Data):
                        event = Data(events.pop().data + event.data)  # type: ignore[union-attr]
                events.append(event)
    except RemoteProtocolError as error:
        if error.status_hint != 502:
            raise
        with pytest.raises(RemoteProtocolError):
            parser.next_event()
        return events, str(error)
    assert isinstance(events[-1], EndOfMessage | LocalRedirect)
    return events, None


def expected_events(vector: dict[str, Any]) -> list[Event]:
    if "local_redirect" in vector:
        return [LocalRedirect(vector["local_redirect"].encode("latin-1"))]
    events: list[Event] = []
    if "head" in vector:
        head = vector["head"]
        events.append(
            ResponseHead(
                head["status"],
                head["reason"].encode("latin-1"),
                [(n.encode("latin-1"), v.encode("latin-1")) for n, v in head["fields"]],
                head.get("content_length"),
            )
        )
    if vector.get("body"):
        events.append(Data(vector["body"].encode("latin-1")))
    if "error" not in vector:
        events.append(EndOfMessage())
    return events


def assert_outcome(parts: Iterable[bytes], vector: dict[str, Any]) -> None:
    events, error = run(parts, method=vector.get("method", "GET"))
    assert events == expected_events(vector)
    if "error" in vector:
        assert error is not None
        assert re.search(vector["error"], error)
    else:
        assert error is None


@pytest.mark.parametrize("file", VECTORS, ids=lambda file: file.stem)
def test_vector_whole(file: Path) -> None:
    output, vector = load(file)
    assert_outcome([output], vector)


@pytest.mark.parametrize("file", VECTORS, ids=lambda file: file.stem)
def test_vector_byte_by_byte(file: Path) -> None:
    output, vector = load(file)
    assert_outcome([output[i : i + 1] for i in range(len(output))], vector)


@pytest.mark.parametrize("file", VECTORS, ids=lambda file: file.stem)
def test_vector_cut_anywhere(file: Path) -> None:
    output, vector = load(file)
    for cut in range(1, len(output)):
        assert_outcome([output[:cut], output[cut:]], vector)


def assert_whole_is_the_same(
    output: bytes, *, method: str = "GET", head_limit_bytes: int = 65536
) -> bool:
    """Hold `read_whole` against the events; true if it had an answer."""
    options: Any = {"method": method, "head_limit_bytes": head_limit_bytes}
    whole = read_whole(output, **options)
    if whole is None:
        return False
    events, error = run([output], **options)
    assert error is None
    head, *body, _ = events
    assert isinstance(head, ResponseHead)
    assert (whole.status, [*whole.fields]) == (head.status, head.fields)
    assert whole.content_length == head.content_length
    assert ([Data(whole.body)] if whole.body else []) == body
    return True


@pytest.mark.parametrize("file", VECTORS, ids=lambda file: file.stem)
def test_vector_by_read_whole(file: Path) -> None:
    output, vector = load(file)
    is_plain = "head" in vector and "error" not in vector
    # Twice: the second time the head is known already.
    for _ in range(2):
        assert assert_whole_is_the_same(output, method=vector.get("method", "GET")) == is_plain


def test_read_whole_keeps_to_the_limit() -> None:
    output = b"Content-Type: text/plain\n\nhello"
    size = output.index(b"hello")
    assert assert_whole_is_the_same(output, head_limit_bytes=size)
    assert not assert_whole_is_the_same(output, head_limit_bytes=size - 1)


def test_what_is_known_of_a_head_is_not_changed_by_who_gets_it() -> None:
    output = b"Content-Type: text/plain\n\nhello"
    for _ in range(2):
        (head, *_), _ = run([output])
        assert isinstance(head, ResponseHead)
        assert head.fields == [(b"content-type", b"text/plain")]
        head.fields.append((b"x-more", b"of this one alone"))


def test_every_vector_says_what_it_checks() -> None:
    assert len(VECTORS) > 60
    for file in VECTORS:
        vector = load(file)[1]
        assert vector["ids"]
        assert vector.keys() <= {"ids", "method", "head", "body", "local_redirect", "error"}
        # Neither a vector without an expectation, nor bytes without a vector.
        assert vector.keys() & {"head", "local_redirect", "error"}
    assert {file.stem for file in VECTORS} == {
        file.stem for file in VECTORS[0].parent.glob("*.out")
    }


def test_head_of_one_mebibyte() -> None:  # E3
    output = b"Content-Type: text/plain\nX-Long: " + b"a" * 2**20 + b"\n\nhello"
    for parts in ([output], [output[i : i + 4096] for i in range(0, len(output), 4096)]):
        events, error = run(parts)
        assert events == []
        assert error is not None
        assert "larger than 65536 bytes" in error


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n", b"\r\n\n"])
def test_limit_counts_the_whole_head(end: bytes) -> None:
    head = b"Content-Type: text/plain" + end
    body = b"a body is not a head" * 10
    for parts in ([head + body], [head[:-1], head[-1:] + body], [head, body]):
        events, error = run(parts, head_limit_bytes=len(head))
        assert error is None
        assert events[1] == Data(body)
        events, error = run(parts, head_limit_bytes=len(head) - 1)
        assert events == []
        assert error is not None


def test_endless_head_is_not_kept() -> None:  # CGI-9.6
    parser = CgiResponseParser(head_limit_bytes=1000)
    parser.receive_data(b"Content-Type: text/plain\n")
    assert parser.next_event() is NEED_DATA
    fed = 0
    with pytest.raises(RemoteProtocolError):
        for _ in range(1000):
            parser.receive_data(b"X-A: a\n" * 10)
            fed += 70
            assert parser.next_event() is NEED_DATA
    assert fed <= 1050
    for _ in range(10):
        parser.receive_data(b"a" * 1000)
        with pytest.raises(RemoteProtocolError):
            parser.next_event()
    assert not parser._head
    assert not parser._body


def test_message_is_complete_before_the_output_ends() -> None:
    parser = CgiResponseParser()
    parser.receive_data(b"Content-Type: text/plain\nContent-Length: 2\n\n")
    assert isinstance(parser.next_event(), ResponseHead)
    assert parser.next_event() is NEED_DATA
    parser.receive_data(b"abc")
    assert parser.next_event() == Data(b"ab")
    assert parser.next_event() == EndOfMessage()
    for _ in range(2):
        assert parser.next_event() is NEED_DATA
        parser.receive_data(b"more")
    parser.receive_data(b"")
    parser.receive_data(b"")
    assert parser.next_event() is NEED_DATA


def test_body_is_streamed() -> None:
    parser = CgiResponseParser()
    parser.receive_data(b"Content-Type: text/plain\n\na")
    assert isinstance(parser.next_event(), ResponseHead)
    assert parser.next_event() == Data(b"a")
    assert parser.next_event() is NEED_DATA
    parser.receive_data(b"b")
    parser.receive_data(b"c")
    assert parser.next_event() == Data(b"bc")
    parser.receive_data(b"d")
    parser.receive_data(b"")
    assert parser.next_event() == Data(b"d")
    assert parser.next_event() == EndOfMessage()


def test_output_after_its_end_is_our_fault() -> None:
    parser = CgiResponseParser()
    parser.receive_data(b"Content-Type: text/plain\n\na")
    parser.receive_data(b"")
    with pytest.raises(LocalProtocolError):
        parser.receive_data(b"b")
    assert isinstance(parser.next_event(), ResponseHead)
    assert parser.next_event() == Data(b"a")
    assert parser.next_event() == EndOfMessage()


def test_error_messages_are_safe_to_log() -> None:  # S10
    for output in (
        b"Content-Type: text/plain\nX: \x1b[2J\r\xff\n\n",
        b"nonsense\xff\xfe here\n\n",
        b"Status: \xff\xe2\x80\xa8\n\n",
        b"\xff" * 100,
    ):
        _, error = run([output])
        assert error is not None
        assert error.isascii()
        assert error.isprintable()
        assert len(error) < 500


TCHARS = "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
OUR_NAMES = HOP_BY_HOP | {b"content-type", b"content-length", b"location", b"status"}
names = (
    st.text(TCHARS, min_size=1, max_size=12)
    .map(str.encode)
    .filter(lambda n: n.lower() not in OUR_NAMES and not n.lower().startswith(b"x-cgi-"))
)
values = st.binary(max_size=20).filter(is_field_value).map(lambda v: v.strip(b" \t"))
line_ends = st.sampled_from([b"\n", b"\r\n"])
blanks = st.sampled_from([b"", b" ", b"\t", b" \t "])


def cut(output: bytes, cuts: Iterable[int]) -> list[bytes]:
    places = sorted({0, len(output), *(place % (len(output) + 1) for place in cuts)})
    return [output[a:b] for a, b in itertools.pairwise(places)]


@settings(max_examples=150, deadline=None)
@given(
    status=st.integers(200, 999).filter(lambda status: status not in (204, 304)),
    fields=st.lists(st.tuples(names, blanks, values, blanks, line_ends), max_size=6),
    end=line_ends,
    body=st.binary(max_size=60),
    has_length=st.booleans(),
    cuts=st.lists(st.integers(0, 1000), max_size=6),
)
def test_what_is_written_is_read(
    status: int,
    fields: list[tuple[bytes, bytes, bytes, bytes, bytes]],
    end: bytes,
    body: bytes,
    has_length: bool,
    cuts: list[int],
) -> None:
    head = b"Status: %d As it says" % status + end
    head += b"".join(n + b":" + b1 + v + b2 + e for n, b1, v, b2, e in fields)
    if has_length:
        head += b"Content-Length: %d" % len(body) + end
    events, error = run(cut(head + end + body, cuts))
    assert error is None
    expected = [(name.lower(), value) for name, _, value, _, _ in fields]
    if has_length:
        expected.append((b"content-length", b"%d" % len(body)))
    length = len(body) if has_length else None
    assert events[0] == ResponseHead(status, b"As it says", expected, length)
    assert events[1:] == ([Data(body)] if body else []) + [EndOfMessage()]


@st.composite
def mutated_vectors(draw: st.DrawFn) -> bytes:
    output = bytearray(load(draw(st.sampled_from(VECTORS)))[0])
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(output)))
        length = draw(st.integers(0, 3))
        output[place : place + length] = draw(
            st.sampled_from([b"\n", b"\r", b"\n\n", b":", b" ", b"\0", b"Status: 1\n", b"/"])
            | st.binary(max_size=3)
        )
    return bytes(output)


@settings(max_examples=300, deadline=None)
@given(output=mutated_vectors() | st.binary(max_size=80), cuts=st.lists(st.integers(0, 1000)))
def test_whatever_is_written_is_events_or_an_error(output: bytes, cuts: list[int]) -> None:
    whole = run([output])
    assert run(cut(output, cuts)) == whole
    assert_whole_is_the_same(output)
    for event in whole[0]:
        if isinstance(event, ResponseHead):
            assert 200 <= event.status <= 999
            assert is_field_value(event.reason)
            for name, value in event.fields:
                # What reaches the client can be nothing but fields.
                assert is_token(name)
                assert name == name.lower()
                assert is_field_value(value)
                assert name not in HOP_BY_HOP
                assert name != b"status"
        elif isinstance(event, LocalRedirect):
            assert event.target.startswith(b"/")
            assert event.target.isascii()
            assert is_field_value(event.target)

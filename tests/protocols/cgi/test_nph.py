"""What an NPH script writes, read as any server's response is (RFC 3875 §5)."""

from __future__ import annotations

import re
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tetrapylon.protocols.cgi.nph import NphResponseParser, is_nph
from tetrapylon.protocols.cgi.response import NEED_DATA, Data, EndOfMessage, Event, ResponseHead
from tetrapylon.protocols.errors import LocalProtocolError, RemoteProtocolError


def run(parts: Iterable[bytes], **options: int | str) -> tuple[list[Event], str | None]:
    """Return all events, adjacent Data as one, and the message of the error if there was one."""
    parser = NphResponseParser(**options)  # type: ignore[arg-type]
    events: list[Event] = []
    try:
        for part in (*filter(None, parts), b""):
            parser.receive_data(part)
            while (event := parser.next_event()) is not NEED_DATA:
                assert events[-1:] != [EndOfMessage()]
                if isinstance(event, Data) and events and isinstance(events[-1], Data):
                    event = Data(events.pop().data + event.data)  # type: ignore[union-attr]
                events.append(event)
    except RemoteProtocolError as error:
        assert error.status_hint == 502
        return events, str(error)
    return events, None


def cuts(output: bytes) -> list[list[bytes]]:
    """Return the output whole, byte by byte, and cut in two everywhere."""
    halves = [[output[:at], output[at:]] for at in range(1, len(output))]
    return [[output], [bytes((byte,)) for byte in output], *halves]


TEXT = (b"content-type", b"text/plain")
WHOLE = {
    "until the end": (
        b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nhello",
        [ResponseHead(200, b"", [TEXT], None), Data(b"hello"), EndOfMessage()],
    ),
    "lines that end with LF": (
        b"HTTP/1.1 200 OK\nContent-Type: text/plain\n\nhello\r\n",
        [ResponseHead(200, b"", [TEXT], None), Data(b"hello\r\n"), EndOfMessage()],
    ),
    "lines that end this way and that": (
        b"HTTP/1.1 200 OK\nContent-Type: text/plain\r\n\nhello",
        [ResponseHead(200, b"", [TEXT], None), Data(b"hello"), EndOfMessage()],
    ),
    "a length": (
        b"HTTP/1.1 201 Made\r\nContent-Length: 5\r\n\r\nhello and more",
        [ResponseHead(201, b"", [(b"content-length", b"5")], 5), Data(b"hello"), EndOfMessage()],
    ),
    "chunks": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n",
        [ResponseHead(200, b"", [], None), Data(b"hello!"), EndOfMessage()],
    ),
    "of the connection": (
        b"HTTP/1.1 200 OK\r\nConnection: close, X-Mine\r\nKeep-Alive: 5\r\nX-Mine: 1\r\n"
        b"Upgrade: h2c\r\nSet-Cookie: a\r\nSet-Cookie: b\r\n\r\n",
        [
            ResponseHead(200, b"", [(b"set-cookie", b"a"), (b"set-cookie", b"b")], None),
            EndOfMessage(),
        ],
    ),
    "no reason": (
        b"HTTP/1.1 404 \r\n\r\n",
        [ResponseHead(404, b"", [], None), EndOfMessage()],
    ),
    "no body": (
        b'HTTP/1.1 304 Not Modified\nETag: "a"\n\nbody',
        [ResponseHead(304, b"", [(b"etag", b'"a"')], 0), EndOfMessage()],
    ),
    "interim responses": (
        b"HTTP/1.1 100 Continue\n\nHTTP/1.1 103 Early\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\n\nhi",
        [ResponseHead(200, b"", [], None), Data(b"hi"), EndOfMessage()],
    ),
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_response_however_it_is_cut(name: str) -> None:  # CGI-5-NPH, CGI-6.2.1-ADAPT
    output, events = WHOLE[name]
    for parts in cuts(output):
        assert run(parts) == (events, None)


BROKEN = {
    b"": "no output",
    b"Content-Type: text/plain\n\nhello": "malformed status line",
    b"HTTP/1.1 200 OK\r\nno end": "no HTTP response",
    b"HTTP/2 200\r\n\r\n": "malformed status line",
    b"HTTP/1.1 99 Low\r\n\r\n": "malformed status line",
    b"HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nhello": "Content-Length",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello": "Content-Length",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nhi": "in one resp",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nhi": "not spoken here",
    b"HTTP/1.1 200 OK\r\nA b: c\r\n\r\n": "",
    b"HTTP/1.1 200 OK\r\nA: b\0c\r\n\r\n": "",
    b"HTTP/1.1 200 OK\r\nA: b\rc\r\n\r\n": "",
    b"HTTP/1.1 200 OK\r\nA: b\n c\r\n\r\n": "",
    b"HTTP/1.1 101 Switching\r\n\r\n": "101",
    b"HTTP/1.1 200 OK\r\nA: " + b"b" * 300 + b"\r\n\r\n": "limit|larger",
    b"HTTP/1.1 200 OK\r\nA: " + b"b" * 300: "limit|larger",
}


@pytest.mark.parametrize("output", BROKEN)
def test_what_is_no_response(output: bytes) -> None:  # CGI-3.1-PROTOCOL, E3
    for parts in ([output], [bytes((byte,)) for byte in output]):
        events, error = run(parts, head_limit_bytes=256)
        assert not events
        assert error is not None
        assert re.search(BROKEN[output], error), error


@pytest.mark.parametrize(
    "output",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
    ],
)
def test_half_a_response_is_not_a_whole_one(output: bytes) -> None:  # CGI-6.3.3-SHORT, E8
    events, error = run([output])
    assert events[1:] == [Data(b"hello")]
    assert error is not None
    assert "the connection ended" in error


def test_bad_chunks() -> None:
    output = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloXX"
    events, error = run([output])
    assert isinstance(events[0], ResponseHead)
    assert error is not None


def test_head_has_no_body() -> None:  # CGI-4.3.3
    output = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
    assert run([output], method="HEAD") == (
        [ResponseHead(200, b"", [(b"content-length", b"5")], 0), EndOfMessage()],
        None,
    )


def test_data_after_the_end_is_our_fault() -> None:
    parser = NphResponseParser()
    parser.receive_data(b"")
    with pytest.raises(LocalProtocolError):
        parser.receive_data(b"x")


@given(st.binary(max_size=300), st.integers(0, 300))
def test_whatever_is_written_gives_events_or_an_error(output: bytes, cut: int) -> None:
    output = b"HTTP/1.1 " + output
    assert run([output]) == run([output[:cut], output[cut:]])


@pytest.mark.parametrize(
    ("filename", "is_one"),
    [("/a/nph-x", True), ("/a/nph-", True), ("/nph-dir/x", False), ("/a/x-nph-y", False)],
)
def test_the_name_tells(filename: str, is_one: bool) -> None:  # CGI-5-IDENT
    assert is_nph(filename) == is_one

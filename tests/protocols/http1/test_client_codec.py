"""Responses read, requests written; h11 is the reference."""

from __future__ import annotations

import itertools

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tetrapylon.protocols.errors import LocalProtocolError, RemoteProtocolError
from tetrapylon.protocols.http1.client_codec import (
    UNTIL_CLOSE,
    ClientCodec,
    Response,
    connection_options,
    encode_request_head,
)
from tetrapylon.protocols.http1.codec import NEED_DATA
from tetrapylon.protocols.http1.events import CHUNKED, Data, EndOfMessage

OK = b"HTTP/1.1 200 OK\r\n"


def read(
    *pieces: bytes, method: str = "GET", is_eof: bool = False
) -> tuple[Response | None, bytes, ClientCodec]:
    """Feed the pieces; return head, body and the codec."""
    codec = ClientCodec(method, head_limit_bytes=1000)
    head: Response | None = None
    body = b""
    for piece in [*pieces, *([b""] if is_eof else [])]:
        codec.receive_data(piece)
        while not codec.is_complete and (event := codec.next_event()) is not NEED_DATA:
            if isinstance(event, Response):
                assert head is None
                head = event
            elif isinstance(event, Data):
                assert event.data
                body += event.data
            else:
                assert isinstance(event, EndOfMessage)
                assert codec.is_complete
    return head, body, codec


CASES = [
    # (bytes, method, ends with EOF, status, length, keeps alive, body)
    (OK + b"Content-Length: 3\r\n\r\nabc", "GET", False, 200, 3, True, b"abc"),
    (OK + b"content-length:\t0 \r\n\r\n", "GET", False, 200, 0, True, b""),
    (
        OK + b"Content-Length: 3\r\nConnection: Close\r\n\r\nabc",
        "GET",
        False,
        200,
        3,
        False,
        b"abc",
    ),
    (OK + b"Connection: a, close\r\nContent-Length: 0\r\n\r\n", "GET", False, 200, 0, False, b""),
    (b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nabc", "GET", False, 200, 3, False, b"abc"),
    (
        b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\nConnection: keep-alive\r\n\r\na",
        *("GET", False, 200, 1, True, b"a"),
    ),
    (OK + b"\r\nto the end", "GET", True, 200, UNTIL_CLOSE, False, b"to the end"),
    (b"HTTP/1.0 200 OK\r\n\r\n", "GET", True, 200, UNTIL_CLOSE, False, b""),
    (
        OK + b"Transfer-Encoding: Chunked\r\n\r\n3\r\nabc\r\n4;x=y\r\ndefg\r\n0\r\nT: x\r\n\r\n",
        *("GET", False, 200, CHUNKED, True, b"abcdefg"),
    ),
    # no body, whatever the fields say (RFC 9112 §6.3)
    (OK + b"Content-Length: 3\r\n\r\n", "HEAD", False, 200, 0, True, b""),
    (OK + b"Transfer-Encoding: chunked\r\n\r\n", "HEAD", False, 200, 0, True, b""),
    (b"HTTP/1.1 204 No Content\r\n\r\n", "GET", False, 204, 0, True, b""),
    (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", "GET", False, 304, 0, True, b""),
    # interim responses are passed over
    (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 1\r\n\r\nx",
        *("POST", False, 404, 1, True, b"x"),
    ),
    # an empty reason, or none at all
    (b"HTTP/1.1 200 \r\nContent-Length: 0\r\n\r\n", "GET", False, 200, 0, True, b""),
    (b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", "GET", False, 200, 0, True, b""),
    (b"HTTP/1.1 599 \xe4\r\nContent-Length: 0\r\n\r\n", "GET", False, 599, 0, True, b""),
]


@pytest.mark.parametrize(
    ("data", "method", "is_eof", "status", "length", "keeps_alive", "body"), CASES
)
def test_good_responses(
    data: bytes,
    method: str,
    is_eof: bool,
    status: int,
    length: int,
    keeps_alive: bool,
    body: bytes,
) -> None:
    ways = [[data], [data[at : at + 1] for at in range(len(data))]]
    for pieces in ways:
        head, got, codec = read(*pieces, method=method, is_eof=is_eof)
        assert head is not None
        assert (head.status, head.content_length, head.keeps_alive) == (status, length, keeps_alive)
        assert got == body
        assert codec.is_complete
        assert not codec.has_excess
    if not is_eof:
        head, got, codec = read(data + b"HTTP/1.1 200 OK\r\n", method=method)
        assert got == body
        assert codec.has_excess


@given(st.sampled_from(CASES), st.lists(st.integers(0, 200), max_size=6))
def test_any_cut_reads_the_same(case: tuple, cuts: list[int]) -> None:  # type: ignore[type-arg]
    data, method, is_eof, status, _, _, body = case
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    pieces = [data[start:stop] for start, stop in itertools.pairwise(places)]
    head, got, codec = read(*pieces, method=method, is_eof=is_eof)
    assert head is not None
    assert (head.status, got, codec.is_complete) == (status, body, True)


@pytest.mark.parametrize(
    "data",
    [
        b"garbage",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"\r\nHTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 099 Low\r\n\r\n",
        b"HTTP/1.1 2000 High\r\n\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1  200 OK\r\n\r\n",
        b"HTTP/1.1 200 O\x00K\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        OK + b"Content-Length: +3\r\n\r\nabc",
        OK + b"Content-Length: 3_0\r\n\r\nabc",
        OK + b"Content-Length: 3, 3\r\n\r\nabc",
        OK + b"Content-Length:\r\n\r\nabc",
        OK + b"Content-Length: 99999999999999999999\r\n\r\nabc",
        OK + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
        OK + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        OK + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n+3\r\nabc\r\n0\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n3\nabc\n0\n\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n",
        OK + b"X: a\r\n folded\r\n\r\n",
        OK + b" X: a\r\n\r\n",
        OK + b"X: a\nY: b\r\n\r\n",
        OK + b"X: a\rb\r\n\r\n",
        OK + b"X: a\x00b\r\n\r\n",
        OK + b"X : a\r\n\r\n",
        OK + b": a\r\n\r\n",
        OK + b"no colon\r\n\r\n",
        OK + b"X: " + b"a" * 1000 + b"\r\n\r\n",
        OK + b"X: " + b"a" * 1100,
    ],
)
def test_bad_responses(data: bytes) -> None:
    for pieces in ([data], [data[at : at + 1] for at in range(len(data))]):
        with pytest.raises(RemoteProtocolError) as raised:
            read(*pieces)
        assert raised.value.status_hint == 502


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"HTTP/1.1 200",
        OK,
        OK + b"Content-Length: 3\r\n\r\nab",
        OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
    ],
)
def test_an_early_end_is_an_error(data: bytes) -> None:
    assert not read(*filter(None, [data]))[2].is_complete
    with pytest.raises(RemoteProtocolError) as raised:
        read(data, is_eof=True)
    assert raised.value.status_hint == 502


def test_interim_responses_have_to_end() -> None:
    hint = b"HTTP/1.1 103 Early Hints\r\n\r\n"
    assert read(hint * 32)[0] is None
    with pytest.raises(RemoteProtocolError, match="interim"):
        read(*[hint] * 33)


def test_many_small_chunks_are_read() -> None:
    count = 100_000
    data = OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * count + b"0\r\n\r\n"
    assert read(data)[1] == b"x" * count


@given(st.binary(max_size=200), st.booleans())
def test_mutations_raise_nothing_else(noise: bytes, is_eof: bool) -> None:
    for data in (noise, b"HTTP/1." + noise, OK + noise, OK + b"Content-Length: " + noise):
        try:
            read(data, is_eof=is_eof)
        except RemoteProtocolError as error:
            assert error.status_hint == 502


def read_by_h11(data: bytes, method: str, is_eof: bool) -> tuple[int, bytes]:
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method=method, target="/", headers=[("Host", "a")]))
    client.send(h11.EndOfMessage())
    client.receive_data(data)
    if is_eof:
        client.receive_data(b"")
    status, body = 0, b""
    while not isinstance(event := client.next_event(), h11.EndOfMessage):
        if isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            body += bytes(event.data)
        elif event is h11.NEED_DATA:
            raise AssertionError("incomplete to h11")
    return status, body


LINES = st.lists(
    st.sampled_from(
        [
            b"Content-Length: 3",
            b"Content-Length: 0",
            b"Transfer-Encoding: chunked",
            b"Connection: close",
            b"Connection: keep-alive",
            b"X-Some: thing",
            b"Set-Cookie: a=\xe4",
        ]
    ),
    max_size=4,
    unique=True,
)
BODIES = st.sampled_from([b"", b"abc", b"abcdef", b"3\r\nabc\r\n0\r\n\r\n", b"0\r\n\r\n"])


@given(
    st.sampled_from([b"HTTP/1.1 200 OK", b"HTTP/1.0 404 No", b"HTTP/1.1 204 No", b"HTTP/1.1 304 "]),
    LINES,
    BODIES,
    st.sampled_from(["GET", "HEAD", "POST"]),
)
def test_h11_reads_the_same(
    status_line: bytes, lines: list[bytes], body: bytes, method: str
) -> None:
    data = b"\r\n".join((status_line, *lines, b"", body))
    try:
        head, got, _ = read(data, method=method, is_eof=True)
    except RemoteProtocolError:
        return  # stricter than the reference it may be
    assert head is not None
    assert (head.status, got) == read_by_h11(data, method, is_eof=True)


# Requests


def test_a_request_head() -> None:
    fields = [(b"host", b"a"), (b"x", b"1"), (b"x", b"")]
    head = encode_request_head(b"GET", b"/a?b", fields)
    assert head == b"GET /a?b HTTP/1.1\r\nhost: a\r\nx: 1\r\nx: \r\n\r\n"


@pytest.mark.parametrize(
    ("method", "target", "field"),
    [
        (b"G T", b"/", (b"a", b"b")),
        (b"", b"/", (b"a", b"b")),
        (b"GET\r\n", b"/", (b"a", b"b")),
        (b"GET", b"", (b"a", b"b")),
        (b"GET", b"/ HTTP/1.1\r\nX: y", (b"a", b"b")),
        (b"GET", b"/a b", (b"a", b"b")),
        (b"GET", b"/\xe4", (b"a", b"b")),
        (b"GET", b"/", (b"a", b"b\r\nX: y")),
        (b"GET", b"/", (b"a", b"b\nX: y")),
        (b"GET", b"/", (b"a", b"b\r")),
        (b"GET", b"/", (b"a", b"b\0")),
        (b"GET", b"/", (b"a\r\nX", b"b")),
    ],
)
def test_what_is_no_request(method: bytes, target: bytes, field: tuple[bytes, bytes]) -> None:
    with pytest.raises(LocalProtocolError):
        encode_request_head(method, target, [field])


def test_connection_options() -> None:
    fields = [(b"connection", b"Close, X-A ,"), (b"x", b"y"), (b"connection", b"x-b")]
    assert connection_options(fields) - {b""} == {b"close", b"x-a", b"x-b"}

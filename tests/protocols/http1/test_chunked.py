"""The chunked coding; ids are RELIABILITY's, section A."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tetrapylon.protocols.errors import RemoteProtocolError
from tetrapylon.protocols.http1 import Data, EndOfMessage, Http1Limits
from tetrapylon.protocols.http1.chunked import ChunkedDecoder

HEAD = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("body", "content"),
    [
        (b"0\r\n\r\n", b""),
        (b"000\r\n\r\n", b""),
        (b"5\r\nhello\r\n0\r\n\r\n", b"hello"),
        (b"5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n", b"hello!"),
        (b'A;a=b;c="d e"\r\n0123456789\r\n0;x\r\n\r\n', b"0123456789"),
        (b"2\r\n\r\n\r\n0\r\n\r\n", b"\r\n"),
        (b"0000000000000003\r\nabc\r\n0\r\n\r\n", b"abc"),
    ],
)
def test_bodies(read: Callable[..., list[object]], body: bytes, content: bytes) -> None:
    events = read(HEAD + body)[1:]
    assert events == ([Data(content)] if content else []) + [EndOfMessage([])]


@pytest.mark.parametrize(
    "body",
    [
        b"0x1\r\na\r\n0\r\n\r\n",
        b"1_0\r\n",
        b"+1\r\na\r\n",
        b"-1\r\na\r\n",
        b" 1\r\na\r\n",
        b"1 \r\na\r\n",
        b"\r\na\r\n",
        b"00000000000000001\r\n",
        b"g\r\n",
        b"1\na\r\n0\r\n\r\n",
        b"1\ra\r\n0\r\n\r\n",
        b"1\r\r\na\r\n0\r\n\r\n",
        b"1\r\nab\r\n0\r\n\r\n",
        b"1\r\na\n0\r\n\r\n",
        b"1\r\na\r0\r\n\r\n",
        b"1\r\na0\r\n\r\n",
        b"1;a\0b\r\na\r\n",
        b"1;a\rb\r\na\r\n",
        b"1;a\nb\r\na\r\n",
        b"1;" + b"a" * 255 + b"\r\na\r\n",
        b"0\r\nA: b\n\r\n",
        b"0\r\nA b\r\n\r\n",
        b"0\r\n A: b\r\n\r\n",
        b"0\r\nA : b\r\n\r\n",
        b"0\r\nA: b\rc\r\n\r\n",
        b"0\r\n\n",
        b"0\r\n\rX",
    ],
)
def test_malformed(read: Callable[..., list[object]], body: bytes) -> None:  # A4
    events = read(HEAD + body)
    assert events[-1] == 400
    assert not any(isinstance(event, EndOfMessage) for event in events)


def test_end_of_stream_after_last_chunk_is_no_end_of_message(
    read: Callable[..., list[object]],
) -> None:  # A4
    assert not any(isinstance(event, EndOfMessage) for event in read(HEAD + b"0\r\n"))


def test_line_of_256_bytes(read: Callable[..., list[object]]) -> None:
    assert read(HEAD + b"1;" + b"a" * 254 + b"\r\na\r\n0\r\n\r\n")[-1] == EndOfMessage([])


def test_more_frame_than_content(read: Callable[..., list[object]]) -> None:  # A5
    limits = Http1Limits(chunk_overhead=1000)
    body = (b"1;" + b"a" * 198 + b"\r\nx\r\n") * 6
    assert read(HEAD + body, limits)[-1] == 400
    frugal = b"".join(b"%x\r\n" % 1000 + b"x" * 1000 + b"\r\n" for _ in range(20))
    assert read(HEAD + frugal + b"0\r\n\r\n", limits)[-1] == EndOfMessage([])


def test_trailers_are_apart(read: Callable[..., list[object]]) -> None:  # A10
    trailers = b"Content-Length: 9\r\nHost: b\r\nAuthorization: x\r\nX-User:  root \r\n"
    events = read(HEAD + b"0\r\n" + trailers + b"\r\n")
    assert events[-1] == EndOfMessage(
        [
            (b"content-length", b"9"),
            (b"host", b"b"),
            (b"authorization", b"x"),
            (b"x-user", b"root"),
        ]
    )
    assert events[0].fields == [(b"host", b"a"), (b"transfer-encoding", b"chunked")]  # type: ignore[attr-defined]


def test_trailers_over_their_limit(read: Callable[..., list[object]]) -> None:  # A10
    limits = Http1Limits(trailers=100)
    assert read(HEAD + b"0\r\n" + b"A: b\r\n" * 40 + b"\r\n", limits)[-1] == 431
    assert read(HEAD + b"0\r\nA: " + b"b" * 200, limits)[-1] == 431


@st.composite
def chunked_bodies(draw: st.DrawFn) -> tuple[bytes, bytes]:
    chunks = draw(st.lists(st.binary(min_size=1, max_size=40), max_size=6))
    extension = draw(st.sampled_from([b"", b";a", b';a="b c"']))
    coded = b"".join(b"%x%b\r\n%b\r\n" % (len(c), extension, c) for c in chunks)
    return coded + b"0\r\n\r\n", b"".join(chunks)


def decode(pieces: list[bytes]) -> tuple[bytes, bool, bytes]:
    decoder = ChunkedDecoder(line_limit=256, overhead_limit=65536, trailer_limit=4096)
    content, rest = b"", b""
    for piece in pieces:
        rest += piece
        while not decoder.is_done:
            data, at = decoder.decode(rest, 0)
            content, rest = content + data, rest[at:]
            if not data:
                break
    return content, decoder.is_done, rest


@settings(max_examples=150)
@given(chunked_bodies(), st.data())
def test_any_cut_gives_the_same(body: tuple[bytes, bytes], data: st.DataObject) -> None:
    coded, content = body
    cuts = sorted(data.draw(st.lists(st.integers(0, len(coded)), max_size=5)))
    edges = [0, *cuts, len(coded)]
    pieces = [coded[a:b] for a, b in itertools.pairwise(edges)]
    assert decode([*pieces, b"NEXT"]) == (content, True, b"NEXT")


@settings(max_examples=300)
@given(chunked_bodies(), st.integers(0, 200), st.binary(max_size=3))
def test_mutations_are_refused_or_read(body: tuple[bytes, bytes], at: int, junk: bytes) -> None:
    coded = body[0]
    mutated = coded[: at % (len(coded) + 1)] + junk + coded[at % (len(coded) + 1) :]
    try:
        decode([mutated])
    except RemoteProtocolError as error:
        assert error.status_hint in (400, 431)


def test_the_next_message_may_have_come_with_the_last_chunk() -> None:  # A11
    decoder = ChunkedDecoder(line_limit=256, overhead_limit=1024, trailer_limit=1024)
    buffer = b"3\r\nabc\r\n0\r\n\r\nGET / HTTP/1.1\r\n"
    data, at = decoder.decode(buffer, 0)
    assert (data, decoder.is_done) == (b"abc", True)
    assert decoder.decode(buffer, at) == (b"", at)
    assert buffer[at:] == b"GET / HTTP/1.1\r\n"

"""Heads of uwsgi requests; what a server reads of them is in ``cgi/test_request.py``."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tetrapylon.protocols.cgi.request import NEED_DATA, Data, EndOfMessage, RequestHead
from tetrapylon.protocols.errors import LocalProtocolError
from tetrapylon.protocols.uwsgi import (
    MAX_HEAD_BYTES,
    HeadTooLarge,
    UwsgiRequestDecoder,
    encode_head,
)

# Every character that latin-1 has, but NUL.
WORDS = st.text(st.characters(min_codepoint=1, max_codepoint=255))
NAMES = WORDS.filter(bool)


@pytest.mark.parametrize(
    ("variables", "encoded"),
    [
        ({}, b"\x00\x00\x00\x00"),
        ({"A": "b"}, b"\x00\x06\x00\x00\x01\x00A\x01\x00b"),
        ({"A": "", "B": "\xff"}, b"\x00\x0b\x00\x00\x01\x00A\x00\x00\x01\x00B\x01\x00\xff"),
        ({"A": "x" * 256}, b"\x00\x05\x01\x00\x01\x00A\x00\x01" + b"x" * 256),
        ({"A": "x" * 3000}, b"\x00\xbd\x0b\x00\x01\x00A\xb8\x0b" + b"x" * 3000),
    ],
)
def test_lengths_are_little_endian(variables: dict[str, str], encoded: bytes) -> None:
    assert encode_head(variables) == encoded


def test_modifiers_stand_around_the_size() -> None:
    assert encode_head({"A": "b"}, modifier1=14, modifier2=255)[:4] == b"\x0e\x06\x00\xff"


@pytest.mark.parametrize("long_ones", [1, 2])
def test_a_packet_holds_65535_bytes(long_ones: int) -> None:
    largest = {f"{number}": "x" * (MAX_HEAD_BYTES // long_ones - 5) for number in range(long_ones)}
    largest["0"] += "y" * (MAX_HEAD_BYTES % long_ones)
    encoded = encode_head(largest)
    assert encoded[:4] == b"\x00\xff\xff\x00"
    decoder = UwsgiRequestDecoder()
    decoder.receive_data(encoded)
    assert decoder.next_event() == RequestHead(largest, 0)
    for excess in (1, 65536):
        with pytest.raises(HeadTooLarge, match=f"{MAX_HEAD_BYTES + excess} bytes"):
            encode_head(largest | {"0": largest["0"] + "z" * excess})


@pytest.mark.parametrize(
    "variables",
    [{"PATH_INFO": "/a\0"}, {"A\0": "b"}, {"": "b"}, {"A": "snow ☃"}, {"L": "x" * 256, "A": "\0"}],
)
def test_what_cannot_be_sent(variables: dict[str, str]) -> None:
    with pytest.raises(LocalProtocolError) as caught:
        encode_head(variables)
    assert not isinstance(caught.value, HeadTooLarge)


@given(st.dictionaries(NAMES, WORDS), st.binary(), st.integers(0, 255), st.integers(0, 255))
def test_a_server_reads_what_was_sent(
    variables: dict[str, str], body: bytes, modifier1: int, modifier2: int
) -> None:
    variables["CONTENT_LENGTH"] = str(len(body))
    decoder = UwsgiRequestDecoder()
    head = encode_head(variables, modifier1=modifier1, modifier2=modifier2)
    decoder.receive_data(head + body)
    assert decoder.next_event() == RequestHead(variables, len(body))
    assert (decoder.modifier1, decoder.modifier2) == (modifier1, modifier2)
    if body:
        assert decoder.next_event() == Data(body)
    assert decoder.next_event() == EndOfMessage()
    assert decoder.next_event() is NEED_DATA

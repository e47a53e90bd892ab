"""Heads of SCGI requests; what a server reads of them is in ``cgi/test_request.py``."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tetrapylon.protocols.cgi.request import NEED_DATA, Data, EndOfMessage, RequestHead
from tetrapylon.protocols.errors import LocalProtocolError
from tetrapylon.protocols.scgi import ScgiRequestDecoder, encode_head

# Every character that latin-1 has, but NUL.
WORDS = st.text(st.characters(min_codepoint=1, max_codepoint=255))
NAMES = WORDS.filter(bool)


def test_the_example_of_the_specification() -> None:
    variables = {"REQUEST_METHOD": "POST", "REQUEST_URI": "/deepthought"}
    assert encode_head(variables, 27) == (
        b"70:CONTENT_LENGTH\x0027\0SCGI\x001\0REQUEST_METHOD\0POST\0REQUEST_URI\0/deepthought\0,"
    )


def test_content_length_comes_first_and_is_the_true_one() -> None:
    variables = {"A": "1", "CONTENT_LENGTH": "17", "SCGI": "2"}
    assert encode_head(variables, 0) == b"28:CONTENT_LENGTH\x000\0SCGI\x001\0A\x001\0,"


@pytest.mark.parametrize(
    "variables",
    [{"PATH_INFO": "/a\0REMOTE_USER\0root"}, {"A\0": "b"}, {"": "b"}, {"A": "snow ☃"}],
)
def test_what_cannot_be_sent(variables: dict[str, str]) -> None:
    with pytest.raises(LocalProtocolError):
        encode_head(variables, 0)


@given(st.dictionaries(NAMES, WORDS), st.binary())
def test_a_server_reads_what_was_sent(variables: dict[str, str], body: bytes) -> None:
    decoder = ScgiRequestDecoder()
    decoder.receive_data(encode_head(variables, len(body)) + body)
    expected = variables | {"CONTENT_LENGTH": str(len(body)), "SCGI": "1"}
    assert decoder.next_event() == RequestHead(expected, len(body))
    if body:
        assert decoder.next_event() == Data(body)
    assert decoder.next_event() == EndOfMessage()
    assert decoder.next_event() is NEED_DATA


def test_heads_are_not_limited_by_the_protocol() -> None:
    head = encode_head({"HTTP_COOKIE": "c" * 500_000}, 0)
    decoder = ScgiRequestDecoder()
    decoder.receive_data(head)
    event = decoder.next_event()
    assert isinstance(event, RequestHead)
    assert event.variables["HTTP_COOKIE"] == "c" * 500_000

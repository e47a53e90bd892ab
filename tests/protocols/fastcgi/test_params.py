"""Name-value pairs: lengths, where they are cut, what cannot be sent."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tetrapylon.protocols.errors import LocalProtocolError, RemoteProtocolError
from tetrapylon.protocols.fastcgi.params import (
    PairTooLarge,
    ParamsDecoder,
    decode_params,
    encode_params,
)
from tetrapylon.protocols.fastcgi.records import FULL_CONTENT_BYTES


@pytest.mark.parametrize(
    ("params", "encoded"),
    [
        ({"A": "b"}, b"\x01\x01Ab"),
        ({"A": "", "B": "\xff"}, b"\x01\x00A\x01\x01B\xff"),
        ({"A": "x" * 127}, b"\x01\x7fA" + b"x" * 127),
        ({"A": "x" * 128}, b"\x01\x80\x00\x00\x80A" + b"x" * 128),
        ({"N" * 128: ""}, b"\x80\x00\x00\x80\x00" + b"N" * 128),
        ({"A": "x" * 5000, "B": "y"}, b"\x01\x80\x00\x13\x88A" + b"x" * 5000 + b"\x01\x01By"),
    ],
)
def test_lengths_over_127_take_four_bytes(params: dict[str, str], encoded: bytes) -> None:
    # FCGI-3.4-PAIRS, FCGI-3.4-SHORT
    assert encode_params(params) == [encoded]
    assert decode_params(encoded) == params


def test_nothing_makes_no_record() -> None:
    assert encode_params({}) == []
    assert decode_params(b"") == {}


def test_records_are_cut_between_pairs_only() -> None:
    # F5, and php-fpm parses each record by itself
    params = {f"HTTP_X_{number}": "v" * (number * 137 % 9000) for number in range(60)}
    contents = encode_params(params)
    assert len(contents) > 2
    together: dict[str, str] = {}
    for content in contents:
        assert 0 < len(content) <= FULL_CONTENT_BYTES
        together |= decode_params(content)
    assert list(together.items()) == list(params.items())


def test_a_pair_of_a_full_record() -> None:
    largest = {"SMALL": "1", "A": "x" * (FULL_CONTENT_BYTES - 6), "B": "2"}
    assert [len(content) for content in encode_params(largest)] == [8, FULL_CONTENT_BYTES, 4]
    with pytest.raises(PairTooLarge, match="a parameter of 65529 bytes"):
        encode_params({"A": "x" * (FULL_CONTENT_BYTES - 5), "B": "2"})


@pytest.mark.parametrize(
    "params",
    [
        {"PATH_INFO": "/a\0.php"},
        {"A\0": "b"},
        {"EMPTY": "", "A": "\0"},
        {"LONG": "x" * 256, "A": "b\0"},
        {"A": "snow \u2603"},
    ],
)
def test_what_cannot_be_sent(params: dict[str, str]) -> None:
    # FCGI-3.4-NUL
    with pytest.raises(LocalProtocolError):
        encode_params(params)


def test_lengths_with_zero_bytes_are_no_nul() -> None:
    params = {"EMPTY": "", "LONG": "x" * 256, "LONGER": "y" * 65000}
    assert decode_params(b"".join(encode_params(params))) == params


@pytest.mark.parametrize(
    "cut",
    [
        b"\x01",
        b"\x80",
        b"\x01\x80\x00",
        b"\x80\x00\x00\x01",
        b"\x01\x02Ab",
        b"\xff" * 8,
        b"\x03\0AB",
    ],
)
def test_pairs_that_are_cut(cut: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="in the middle of a pair") as caught:
        decode_params(b"\x01\x01Ab" + cut)
    assert caught.value.status_hint == 502


def test_the_decoder_is_bounded() -> None:
    decoder = ParamsDecoder(limit_bytes=10)
    decoder.receive(b"\x01\x07A" + b"x" * 7)
    with pytest.raises(RemoteProtocolError, match="more than 10 bytes"):
        decoder.receive(b"\x00")


TEXT = st.text(st.characters(min_codepoint=1, max_codepoint=255), max_size=200)
PARAMS = st.dictionaries(TEXT.filter(bool), TEXT, max_size=8)


@given(PARAMS)
@example({"\xff" * 130: "\x01" * 130})
def test_decoding_undoes_encoding(params: dict[str, str]) -> None:
    # FCGI-5.2-PARAMS
    (content,) = encode_params(params) or [b""]
    assert list(decode_params(content).items()) == list(params.items())


@given(PARAMS, st.data())
def test_pairs_may_straddle_records(params: dict[str, str], data: st.DataObject) -> None:
    # FCGI-5.2-LARGE
    content = b"".join(encode_params(params))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=5)))
    decoder = ParamsDecoder(limit_bytes=len(content))
    for start, end in zip([0, *cuts], [*cuts, None], strict=True):
        decoder.receive(content[start:end])
    assert decoder.finish() == params


@given(st.binary(max_size=60))
def test_any_bytes_are_pairs_or_an_error(content: bytes) -> None:
    try:
        params = decode_params(content)
    except RemoteProtocolError:
        return
    assert sum(len(name) + len(value) for name, value in params.items()) <= len(content)

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tetrapylon.protocols.fields import (
    HOP_BY_HOP,
    is_field_value,
    is_plain_name,
    is_token,
    parse_content_length,
)


@pytest.mark.parametrize("name", [b"Host", b"x", b"!#$%&'*+-.^_`|~09azAZ"])
def test_token(name: bytes) -> None:
    assert is_token(name)


@pytest.mark.parametrize(
    "name",
    [b"", b"a b", b"a:", b"a\n", b"\na", b"a\0", b"(", b"a/b", b"caf\xc3\xa9", b"a\x7f", b'"'],
)
def test_not_a_token(name: bytes) -> None:
    assert not is_token(name)


@given(st.binary(max_size=4))
def test_plain_names_are_the_tokens_of_letters_digits_and_hyphens(name: bytes) -> None:
    is_plain = bool(name) and all(chr(c).isascii() and (chr(c).isalnum() or c == 45) for c in name)
    assert is_plain_name(name) is is_plain
    assert is_token(name) or not is_plain


@pytest.mark.parametrize("name", [b"X_Real_IP", b"X.Real.IP", b"X-\xff", b"", b"X-A\n"])  # A9
def test_not_a_plain_name(name: bytes) -> None:
    assert not is_plain_name(name)


@pytest.mark.parametrize("value", [b"", b"a b\tc", b" a ", b"\x80\xff", b'~!"'])
def test_field_value(value: bytes) -> None:
    assert is_field_value(value)


@pytest.mark.parametrize("byte", [*range(9), *range(10, 32), 127])
def test_control_is_no_field_value(byte: int) -> None:
    control = bytes([byte])
    for value in (control, b"a" + control, control + b"a", b"a" + control + b"a"):
        assert not is_field_value(value)


@pytest.mark.parametrize(
    ("value", "length"),
    [(b"0", 0), (b"5", 5), (b"0005", 5), (b"9223372036854775807", 2**63 - 1)],
)
def test_content_length(value: bytes, length: int) -> None:
    assert parse_content_length(value) == length


@pytest.mark.parametrize(  # A2, E3
    "value",
    [
        b"+5",
        b"-0",
        b"-5",
        b"5_0",
        b"0x5",
        b"",
        b" ",
        b" 5",
        b"5 ",
        b"5\n",
        b"5,5",
        b"5, 5",
        b"5.0",
        b"5e1",
        "٥".encode(),
        "²".encode(),
        "\uff15".encode(),
        b"\xb2",
        b"9223372036854775808",
        b"9999999999999999999",
        b"00000000000000000000",
    ],
)
def test_no_content_length(value: bytes) -> None:
    with pytest.raises(ValueError, match="Content-Length"):
        parse_content_length(value)


def test_a_mebibyte_of_digits_costs_nothing() -> None:
    value = b"9" * 2**20
    start = time.process_time()
    with pytest.raises(ValueError) as raised:
        parse_content_length(value)
    assert time.process_time() - start < 0.1
    assert len(str(raised.value)) < 200


@given(st.binary(max_size=21) | st.text("0123456789+-_ ", max_size=21).map(str.encode))
def test_content_length_is_digits_or_refused(value: bytes) -> None:
    try:
        length = parse_content_length(value)
    except ValueError:
        return
    assert 0 <= length < 2**63
    assert value.lstrip(b"0") == (b"%d" % length if length else b"")


def test_hop_by_hop_names_are_lower_case_tokens() -> None:
    assert {name.decode() for name in HOP_BY_HOP} == {
        "connection",
        "keep-alive",
        "proxy-connection",
        "te",
        "transfer-encoding",
        "upgrade",
    }

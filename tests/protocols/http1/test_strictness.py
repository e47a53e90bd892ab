"""What both engines refuse; ids are RELIABILITY's, section A."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tetrapylon.protocols.errors import RemoteProtocolError
from tetrapylon.protocols.http1 import Http1Limits, Request
from tetrapylon.protocols.http1.strictness import check_head, content_length

HEAD = b"POST / HTTP/1.1\r\nHost: a\r\n"
StatusOf = Callable[..., object]


def with_fields(*lines: bytes) -> bytes:
    return HEAD + b"".join(line + b"\r\n" for line in lines) + b"\r\n"


@pytest.mark.parametrize(
    "data",
    [
        with_fields(b"Content-Length: 3", b"Transfer-Encoding: chunked") + b"0\r\n\r\n",
        with_fields(b"Transfer-Encoding: chunked", b"Content-Length: 3") + b"0\r\n\r\n",
    ],
)
def test_length_beside_coding(status_of: StatusOf, data: bytes) -> None:  # A1
    assert status_of(data) == 400


@pytest.mark.parametrize(
    "value",
    [
        b"+5", b"-0", b"5_0", b"0x5", b"", b"5,5", b"5 5", b"5;", b"9223372036854775808",
        b"00000000000000000005", "٥".encode(), b"\xb2", b"1e3", b"5.0",
    ],
)  # fmt: skip
def test_malformed_length(status_of: StatusOf, value: bytes) -> None:  # A2
    assert status_of(with_fields(b"Content-Length: " + value)) == 400


@pytest.mark.parametrize("second", [b"5", b"6"])
def test_two_lengths(status_of: StatusOf, second: bytes) -> None:  # A2
    data = with_fields(b"Content-Length: 5", b"Content-Length: " + second) + b"hello"
    assert status_of(data) == 400


@pytest.mark.parametrize("value", [b"0", b"00", b"9223372036854775807"])
def test_good_lengths(value: bytes) -> None:
    assert content_length(value) == int(value)


@pytest.mark.parametrize(
    "value",
    [
        b"identity, chunked", b",chunked", b"xchunked", b"chunked;a", b"gzip", b"identity",
        b"chunked, chunked", b"\x0bchunked", b"chunked\x0c", b"chunked\xc2\x85",
        b"chunked\xa0", b"", b'"chunked"',
    ],
)  # fmt: skip
def test_transfer_codings(status_of: StatusOf, value: bytes) -> None:  # A3
    data = with_fields(b"Transfer-Encoding: " + value) + b"0\r\n\r\n"
    assert status_of(data) in (400, 501)


def test_transfer_coding_twice(status_of: StatusOf) -> None:  # A3
    lines = [b"Transfer-Encoding: chunked"] * 2
    assert status_of(with_fields(*lines) + b"0\r\n\r\n") in (400, 501)


def test_transfer_coding_in_http_1_0(status_of: StatusOf) -> None:  # A3
    data = b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    assert status_of(data) == 400


@pytest.mark.parametrize("value", [b"chunked", b"Chunked", b" \t CHUNKED"])
def test_chunked_is_spoken(only_request: Callable[[bytes], Request], value: bytes) -> None:
    data = with_fields(b"Transfer-Encoding:" + value) + b"0\r\n\r\n"
    assert only_request(data).content_length == -1


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\nHost: a\n\n",
        b"GET / HTTP/1.1\r\nHost: a\n\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: b\rc\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: b\nc: d\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: b\0c\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: \x01\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: \x7f\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n c\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n\tc\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost\t: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nnocolon\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n: empty\r\n\r\n",
        b"GET / HTTP/1.1\r\n Host: a\r\n\r\n",
        b"GET / HTTP/1.1\r\n\tX: y\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX y: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX\xe9: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX(: b\r\n\r\n",
        b"GET / HTTP/1.1\r\r\nHost: a\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
def test_malformed_fields(status_of: StatusOf, data: bytes) -> None:  # A6
    assert status_of(data) == 400


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost:\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a,b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: u@a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a:b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: [::1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\\b\r\n\r\n",
        b"GET http://u@b/ HTTP/1.1\r\nHost: b\r\n\r\n",
        b"GET http:/// HTTP/1.1\r\nHost: b\r\n\r\n",
        b"GET ftp://b/ HTTP/1.1\r\nHost: b\r\n\r\n",
        b"GET b HTTP/1.1\r\nHost: b\r\n\r\n",
        b"GET http://b/ HTTP/1.1\r\n\r\n",
    ],
)
def test_malformed_host(status_of: StatusOf, data: bytes) -> None:  # A7
    assert status_of(data) == 400


def test_targets_host_wins(only_request: Callable[[bytes], Request]) -> None:  # A7
    request = only_request(b"GET HTTP://b:81/x?y HTTP/1.1\r\nA: 1\r\nHost: a\r\n\r\n")
    assert request.host == b"b:81"
    assert request.target == b"/x?y"
    assert request.fields == [(b"host", b"b:81"), (b"a", b"1")]


@pytest.mark.parametrize(
    ("target", "path"), [(b"http://b", b"/"), (b"http://b?q", b"/?q"), (b"https://b/c", b"/c")]
)
def test_absolute_form(
    only_request: Callable[[bytes], Request], target: bytes, path: bytes
) -> None:
    request = only_request(b"GET " + target + b" HTTP/1.1\r\nHost: a\r\n\r\n")
    assert (request.target, request.host) == (path, b"b")


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"GET /a b HTTP/1.1", 400),
        (b"GET  / HTTP/1.1", 400),
        (b"GET / HTTP/1.1 ", 400),
        (b"GET /\x00 HTTP/1.1", 400),
        (b"GET /#x HTTP/1.1", 400),
        (b"GET /\xc3\xa9 HTTP/1.1", 400),
        (b"GET /\x7f HTTP/1.1", 400),
        (b"GET * HTTP/1.1", 400),
        (b"GET / HTTP/1.10", 505),
        (b"GET / HTTP/1.2", 505),
        (b"GET / HTTP/2.0", 505),
        (b"GET / HTTP/0.9", 505),
        (b"GET / HTTP/1", 400),
        (b"GET / http/1.1", 400),
        (b"GET / HTTPS/1.1", 400),
        (b"GET /", 400),
        (b"G\x01T / HTTP/1.1", 400),
        (b"GE(T / HTTP/1.1", 400),
        (b"CONNECT b:1 HTTP/1.1", 405),
        (b"TRACE / HTTP/1.1", 405),
    ],
)
def test_request_line(status_of: StatusOf, line: bytes, status: int) -> None:  # A8
    assert status_of(line + b"\r\nHost: a\r\n\r\n") == status


def test_asterisk_form(only_request: Callable[[bytes], Request]) -> None:  # A8
    assert only_request(b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n").target == b"*"


@pytest.mark.parametrize("name", [b"Content_Length", b"X_Real_IP", b"X.Real.IP", b"X~"])
def test_odd_names(
    only_request: Callable[[bytes], Request], status_of: StatusOf, name: bytes
) -> None:  # A9
    data = with_fields(name + b": 1", b"X-Real-IP: 2")
    assert only_request(data).fields == [(b"host", b"a"), (b"x-real-ip", b"2")]
    assert status_of(data, Http1Limits(refuses_odd_names=True)) == 400


@pytest.mark.parametrize("value", [b"100-continue, x", b"200-ok", b""])
def test_unknown_expectation(status_of: StatusOf, value: bytes) -> None:  # A12
    assert status_of(with_fields(b"Expect: " + value, b"Content-Length: 1")) == 417


def test_expectation(only_request: Callable[[bytes], Request]) -> None:
    assert only_request(with_fields(b"Expect: 100-Continue")).expects_continue


def test_two_content_types(status_of: StatusOf) -> None:
    assert status_of(with_fields(b"Content-Type: a/b", b"Content-Type: c/d")) == 400


@pytest.mark.parametrize(
    ("head", "is_kept"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\n", True),
        (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n", False),
        (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: x, Close\r\n", False),
        (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: closed\r\n", True),
        (b"GET / HTTP/1.0\r\n", False),
        (b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n", True),
        (b"GET / HTTP/1.0\r\nConnection: keep-alive, close\r\n", False),
        (b"GET / HTTP/1.0\r\nConnection: close\r\nConnection: keep-alive\r\n", False),
        (b"GET / HTTP/1.0\r\nConnection: keep-alive\r\nConnection: close\r\n", False),
    ],
)
def test_keep_alive(only_request: Callable[[bytes], Request], head: bytes, is_kept: bool) -> None:
    assert only_request(head + b"\r\n").wants_keep_alive is is_kept


def test_limits(status_of: StatusOf) -> None:  # B1
    tight = Http1Limits(request_line=64, headers=128, header_count=5)
    assert status_of(b"GET /" + b"a" * 64 + b" HTTP/1.1\r\nHost: a\r\n\r\n", tight) == 414
    assert status_of(b"A" * 65, tight) == 414
    assert status_of(with_fields(b"X: " + b"a" * 128), tight) == 431
    assert status_of(with_fields(*[b"X: a"] * 5), tight) == 431
    assert status_of(HEAD + b"X: " + b"a" * 128, tight) == 431


def test_just_within_limits(codec_class: type) -> None:  # B1
    line = b"GET /" + b"a" * (8192 - 14) + b" HTTP/1.1"
    assert len(line) == 8192
    codec = codec_class()
    codec.receive_data(line + b"\r\nHost: a\r\n\r\n")
    assert isinstance(codec.next_event(), Request)
    codec = codec_class()
    codec.receive_data(with_fields(*[b"X: a"] * 99))
    request = codec.next_event()
    assert isinstance(request, Request)
    assert len(request.fields) == 100


def test_error_quotes_bytes_escaped() -> None:
    with pytest.raises(RemoteProtocolError, match=r"b'\\x1b'"):
        check_head(b"GET / HTTP/1.1\r\nX: \x1b[2J\r\n\r\n")


def test_one_empty_line_before_the_request_is_forgiven(
    only_request: Callable[[bytes], Request], status_of: StatusOf
) -> None:
    assert only_request(b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n").method == "GET"
    assert status_of(b"\r\n\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n") == 400

"""Sizes, times, addresses and names of applications as a configuration writes them."""

import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tetrapylon.gateway.config_values import (
    UNLIMITED,
    Endpoint,
    nearest,
    parse_application,
    parse_endpoint,
    parse_host_pattern,
    parse_size,
    parse_time,
    quoted,
)


@pytest.mark.parametrize(
    ("value", "size"),
    [
        (0, 0),
        (65536, 65536),
        ("0", 0),
        ("512", 512),
        ("512 B", 512),
        ("64KiB", 65536),
        ("64 kib", 65536),
        ("1.5MiB", 1572864),
        ("2GiB", 2 << 30),
        ("1TiB", 1 << 40),
        ("64kB", 64000),
        ("10MB", 10_000_000),
    ],
)
def test_sizes(value, size) -> None:
    assert parse_size(value) == size


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("64K", 'did you mean "64KiB"?'),
        ("1.5m", 'did you mean "1.5MiB"?'),
        ("10 parrots", "has no unit of size"),
        ("", "is not a size"),
        ("-1", "is not a size"),
        ("1_000", "is not a size"),
        ("²", "is not a size"),
        (-1, "cannot be negative"),
        (2**63, "more than 8 EiB"),
        (True, "is not a size"),
        (1.5, "is not a size"),
        (None, "is not a size"),
        ("999999999999TiB", "more than 8 EiB"),
    ],
)
def test_what_is_no_size(value, said) -> None:
    with pytest.raises(ValueError) as raised:
        parse_size(value)
    assert said in str(raised.value)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (0, 0),
        ("0", 0),
        ("0s", 0),
        ("10s", 10),
        ("500ms", 0.5),
        ("1.5h", 5400),
        ("2m", 120),
        ("2min", 120),
        ("1m30s", 90),
        ("1h 30m", 5400),
        ("1d", 86400),
    ],
)
def test_times(value, seconds) -> None:
    assert parse_time(value) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (30, 'write "30s" or "30ms"'),
        (0.5, 'write "0.5s"'),
        ("30", 'write "30s"'),
        ("soon", "is not a time"),
        ("10s soon", "is not a time"),
        ("-1s", "is not a time"),
        ("", "is not a time"),
        (True, "is not a time"),
        ([], "is not a time"),
    ],
)
def test_what_is_no_time(value, said) -> None:
    with pytest.raises(ValueError) as raised:
        parse_time(value)
    assert said in str(raised.value)


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("127.0.0.1:8000", Endpoint("127.0.0.1", 8000)),
        ("localhost:80", Endpoint("localhost", 80)),
        ("[::1]:8000", Endpoint("::1", 8000)),
        ("[0:0::1]:8000", Endpoint("::1", 8000)),
        ("unix:/run/app.sock", Endpoint("", 0, "/run/app.sock")),
        ("unix:app.sock", Endpoint("", 0, "/base/app.sock")),
    ],
)
def test_endpoints(text, endpoint) -> None:
    assert parse_endpoint(text, base=Path("/base")) == endpoint
    if "0:0" not in text:
        assert parse_endpoint(str(endpoint)) == endpoint


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (":80", '"127.0.0.1:80" is this machine alone'),
        ("*:80", '"0.0.0.0:80" everyone'),
        ("8000", 'did you mean "127.0.0.1:8000"?'),
        ("localhost", "has no port"),
        ("localhost:", "the port must be 1 to 65535"),
        ("localhost:65536", "the port must be 1 to 65535"),
        ("localhost:0", "the port must be 1 to 65535"),
        ("localhost:http", "the port must be 1 to 65535"),
        ("localhost:٨٠", "the port must be 1 to 65535"),
        ("::1:80", 'in brackets: "[::1]:80"'),
        ("[::g]:80", "is no IPv6 address"),
        ("1.2.3.256:80", "is no IPv4 address"),
        ("a b:80", "is no host name"),
        ("/run/x.sock", 'did you mean "unix:/run/x.sock"?'),
        ("unix:", "names no socket"),
        ("unix:/" + "x" * 103, "longer than a unix socket's path"),
    ],
)
def test_what_is_no_endpoint(text, said) -> None:
    with pytest.raises(ValueError) as raised:
        parse_endpoint(text)
    assert said in str(raised.value)


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("Example.COM", "example.com"),
        ("example.com.", "example.com"),
        ("*.example.com", "*.example.com"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("*.bücher.example", "*.xn--bcher-kva.example"),
        ("[0::1]", "[::1]"),
        ("127.0.0.1", "127.0.0.1"),
        ("localhost", "localhost"),
    ],
)
def test_host_patterns(text, host) -> None:
    assert parse_host_pattern(text) == host


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("example.com:80", "do not look at the port"),
        ("https://example.com", "without scheme"),
        ("www.*.com", '"*.example.com"'),
        ("*", '"*.example.com"'),
        ("", "is no host name"),
        ("a b", "is no host name"),
        ("..", "is no host name"),
    ],
)
def test_what_is_no_host(text, said) -> None:
    with pytest.raises(ValueError) as raised:
        parse_host_pattern(text)
    assert said in str(raised.value)


@pytest.mark.parametrize("text", ["shop", "shop:app", "a.b.c:d.e", "shop:make_app()"])
def test_names_of_applications(text) -> None:
    assert parse_application(text) == text


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("shop.py", "'shop:app'"),
        ("shop.py:api", "'shop:api'"),
        ("my-shop", ""),
        ("./src/shop.py", "'src.shop:app'"),
        ("shop:", ""),
        (":app", ""),
        ("shop:app; import os", ""),
        ("shop:make_app(1)", ""),
    ],
)
def test_what_is_no_name_of_an_application(text, hint) -> None:
    with pytest.raises(ValueError) as raised:
        parse_application(text)
    assert hint in str(raised.value)


def test_near_names_are_offered_and_far_ones_are_not() -> None:
    assert nearest("thread", ["threads", "queue"]) == "; did you mean 'threads'?"
    assert nearest("kill-after", ["kill_after"]) == "; did you mean 'kill_after'?"
    assert nearest("zebra", ["threads", "queue"]) == ""


_texts = st.text("019.,:-*/_[]()aisKMGBunx²é\U0001f600 \n\x00\x1b", max_size=60)


@settings(deadline=None)
@given(st.one_of(_texts, st.integers(), st.floats(), st.none(), st.lists(_texts)))
def test_any_value_is_read_or_refused(value) -> None:
    for parse in (parse_size, parse_time):
        try:
            number = parse(value)
        except ValueError:
            pass
        else:
            assert 0 <= number <= UNLIMITED
            assert math.isfinite(number)


@settings(deadline=None)
@given(_texts)
def test_any_text_is_an_address_or_refused(text) -> None:
    for parse in (parse_endpoint, parse_host_pattern, parse_application):
        try:
            parsed = parse(text)
        except ValueError:
            continue
        # What was accepted is in its normal form.
        assert parse(str(parsed)) == parsed


def test_values_are_shown_short_and_on_one_line() -> None:
    assert quoted(True) == "true"
    assert quoted("\x1b]0;x\n") == r"'\x1b]0;x\n'"
    assert len(quoted("x" * 1000)) <= 60
    assert quoted({"a": 1}) == "a table"

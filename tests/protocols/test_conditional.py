"""Preconditions in the order of RFC 9110 §13.2.2, and the dates in them."""

from __future__ import annotations

import calendar
import email.utils
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tetrapylon.protocols.conditional import evaluate, format_date, is_range_current, parse_date

NOW = calendar.timegm((2025, 11, 20, 12, 0, 0))
MODIFIED = 784111777  # RFC 9110 §5.6.7
DATE = b"Sun, 06 Nov 1994 08:49:37 GMT"
BEFORE = b"Sun, 06 Nov 1994 08:49:36 GMT"
AFTER = b"Sun, 06 Nov 1994 08:49:38 GMT"
ETAG = b'"xyzzy"'


@pytest.mark.parametrize(
    "value", [DATE, b"Sunday, 06-Nov-94 08:49:37 GMT", b"Sun Nov  6 08:49:37 1994"]
)
def test_the_three_forms_of_a_date(value: bytes) -> None:
    assert parse_date(value, now_s=NOW) == MODIFIED


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"0",
        b"yesterday",
        b"784111777",
        b"Sun, 06 Nov 1994 08:49:37",
        b"Sun, 06 Nov 1994 08:49:37 CET",
        b"Sun, 06 Nov 1994 08:49:37 +0000",
        b"sun, 06 nov 1994 08:49:37 gmt",
        b"Sun, 6 Nov 1994 08:49:37 GMT",
        b"Sun, 31 Feb 1994 08:49:37 GMT",
        b"Sun, 00 Nov 1994 08:49:37 GMT",
        b"Sun, 06 Nox 1994 08:49:37 GMT",
        b"Sun, 06 Nov 0000 08:49:37 GMT",
        b"Sun, 06 Nov 1994 24:00:00 GMT",
        b"Sun, 06 Nov 1994 08:60:37 GMT",
        b"Sun, 06 Nov 1994 08:49:61 GMT",
        b"Sun, 06 Nov 1994 8:49:037 GMT",
        b"Sun, 06 Nov 1994 08:49:37 GMT ",
        b"Sun, 06 Nov 1994 08:49:37 GMT\n",
        DATE + b", " + DATE,
    ],
)
def test_what_is_no_date(value: bytes) -> None:
    assert parse_date(value, now_s=NOW) is None


def test_years_of_two_digits() -> None:
    def year(digits: bytes) -> int:
        parsed = parse_date(b"Sunday, 06-Nov-" + digits + b" 08:49:37 GMT", now_s=NOW)
        assert parsed is not None
        return time.gmtime(parsed).tm_year

    assert [year(digits) for digits in (b"94", b"00", b"25", b"75", b"76")] == [
        1994, 2000, 2025, 2075, 1976,
    ]  # fmt: skip


def test_a_leap_second() -> None:
    assert parse_date(b"Sat, 31 Dec 2016 23:59:60 GMT", now_s=NOW) == calendar.timegm(
        (2016, 12, 31, 23, 59, 59)
    )


@given(st.integers(0, 253402300799))
def test_dates_are_written_as_the_standard_library_does_and_read_back(moment: int) -> None:
    written = format_date(moment)
    assert written.decode() == email.utils.formatdate(moment, usegmt=True)
    assert parse_date(written, now_s=NOW) == moment


def verdict(method: str = "GET", **fields: bytes) -> int | None:
    return evaluate(
        method,
        {name.replace("_", "-").encode(): value for name, value in fields.items()},
        etag=ETAG,
        last_modified_s=MODIFIED,
        now_s=NOW,
    )


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (ETAG, None),
        (b"*", None),
        (b'"a", "xyzzy"', None),
        (b'"a","xyzzy"', None),
        (b'"a"', 412),
        (b"W/" + ETAG, 412),  # RFC 9110 §13.1.1: the strong comparison
        (b"xyzzy", 412),
        (b"", 412),
        (b'"xyzzy', 412),
    ],
)
def test_if_match(value: bytes, expected: int | None) -> None:
    assert verdict(if_match=value) == expected
    assert verdict("HEAD", if_match=value) == expected


@pytest.mark.parametrize(
    ("value", "is_match"),
    [
        (ETAG, True),
        (b"*", True),
        (b" * ", True),
        (b"W/" + ETAG, True),  # §13.1.2: the weak comparison
        (b'"a", W/"b" , "xyzzy"', True),
        (b'"a", "b"', False),
        (b"xyzzy", False),
        (b"", False),
        (b'"XYZZY"', False),
    ],
)
def test_if_none_match(value: bytes, is_match: bool) -> None:
    assert verdict(if_none_match=value) == (304 if is_match else None)
    assert verdict("HEAD", if_none_match=value) == (304 if is_match else None)
    assert verdict("PUT", if_none_match=value) == (412 if is_match else None)


def test_dates() -> None:
    assert verdict(if_modified_since=DATE) == 304
    assert verdict(if_modified_since=AFTER) == 304
    assert verdict(if_modified_since=BEFORE) is None
    assert verdict(if_modified_since=b"garbage") is None
    assert verdict("PUT", if_modified_since=DATE) is None
    assert verdict(if_unmodified_since=DATE) is None
    assert verdict(if_unmodified_since=AFTER) is None
    assert verdict(if_unmodified_since=BEFORE) == 412
    assert verdict(if_unmodified_since=b"garbage") is None


def test_the_order() -> None:
    """Tags win over dates, If-Match over If-None-Match."""
    assert verdict(if_match=ETAG, if_unmodified_since=BEFORE) is None
    assert verdict(if_match=b'"a"', if_unmodified_since=AFTER) == 412
    assert verdict(if_none_match=b'"a"', if_modified_since=DATE) is None
    assert verdict(if_none_match=ETAG, if_modified_since=BEFORE) == 304
    assert verdict(if_match=b'"a"', if_none_match=ETAG) == 412
    assert verdict(if_match=ETAG, if_none_match=ETAG) == 304
    assert verdict(if_unmodified_since=BEFORE, if_none_match=ETAG) == 412
    assert verdict(if_unmodified_since=AFTER, if_modified_since=DATE) == 304
    assert verdict() is None


def test_if_range() -> None:
    def is_current(value: bytes) -> bool:
        return is_range_current(value, etag=ETAG, last_modified=DATE)

    assert is_current(ETAG)
    assert is_current(DATE)
    # RFC 9110 §13.1.5: exact; a weak tag, another date, a list: the whole file
    for value in (b"W/" + ETAG, b'"a"', AFTER, BEFORE, b"*", ETAG + b", " + ETAG, b""):
        assert not is_current(value)


def test_long_lists_cost_little() -> None:
    value = b'"a",' * 8000 + b'"' * 1000
    began = time.process_time()
    assert verdict(if_none_match=value) is None
    assert time.process_time() - began < 0.02


@given(st.binary(max_size=50))
def test_garbage_never_raises(value: bytes) -> None:
    assert parse_date(value, now_s=NOW) is None
    for name in ("if_match", "if_none_match", "if_modified_since", "if_unmodified_since"):
        assert verdict(**{name: value}) in (None, 304, 412)

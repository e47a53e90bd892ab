"""Conditional requests: preconditions and their dates (RFC 9110 section 13).

`evaluate` walks section 13.2.2 in its order. Fields that a sender repeated come
joined by ``", "``, as section 5.3 says; a date so joined is no date, and ignored.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

# RFC 9110 §5.6.7: the one form to send, and two that are obsolete but understood.
_IMF_FIXDATE = re.compile(
    rb"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun), "
    rb"(?P<day>[0-9]{2}) (?P<month>[A-Z][a-z]{2}) (?P<year>[0-9]{4}) (?P<time>[0-9:]{8}) GMT"
)
_RFC850_DATE = re.compile(
    rb"(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day, "
    rb"(?P<day>[0-9]{2})-(?P<month>[A-Z][a-z]{2})-(?P<year>[0-9]{2}) (?P<time>[0-9:]{8}) GMT"
)
_ASCTIME_DATE = re.compile(
    rb"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun) "
    rb"(?P<month>[A-Z][a-z]{2}) (?P<day>[0-9 ][0-9]) (?P<time>[0-9:]{8}) (?P<year>[0-9]{4})"
)
_TIME = re.compile(rb"([01][0-9]|2[0-3]):([0-5][0-9]):([0-5][0-9]|60)")
# RFC 9110 §8.8.3: entity-tag = [ "W/" ] DQUOTE *etagc DQUOTE
_ENTITY_TAG = re.compile(rb'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"')


@lru_cache(maxsize=1024)
def format_date(timestamp_s: int) -> bytes:
    """Write a time in seconds since 1970 as an HTTP date."""
    year, month, day, hour, minute, second, weekday, _, _ = time.gmtime(timestamp_s)
    return (
        f"{_DAYS[weekday]}, {day:02d} {_MONTHS[month - 1]} {year:04d} "
        f"{hour:02d}:{minute:02d}:{second:02d} GMT"
    ).encode()


def parse_date(value: bytes, *, now_s: float) -> int | None:
    """Read an HTTP date in any of its three forms; ``None`` if it is none.

    ``now_s`` tells the century of a year of two digits.
    """
    match = (
        _IMF_FIXDATE.fullmatch(value)
        or _RFC850_DATE.fullmatch(value)
        or _ASCTIME_DATE.fullmatch(value)
    )
    clock = match and _TIME.fullmatch(match["time"])
    if not match or not clock:
        return None
    year = int(match["year"])
    if match.re is _RFC850_DATE:
        # RFC 9110 §5.6.7: what seems more than 50 years ahead is past.
        this_year = time.gmtime(now_s).tm_year
        year += this_year // 100 * 100
        if year > this_year + 50:
            year -= 100
    hour, minute, second = (int(part) for part in clock.groups())
    try:
        month = _MONTHS.index(match["month"].decode()) + 1
        # A leap second has no number of its own in POSIX time.
        moment = datetime(year, month, int(match["day"]), hour, minute, min(second, 59), tzinfo=UTC)
    except ValueError:
        return None
    return int(moment.timestamp())


def evaluate(
    method: str,
    fields: Mapping[bytes, bytes],
    *,
    etag: bytes,
    last_modified_s: int,
    now_s: float,
) -> int | None:
    """Evaluate the preconditions of a request for a representation that exists.

    ``fields`` are the request's, by lower-case name; ``etag`` is a strong entity
    tag with its quotes. Returns 304 or 412, or ``None`` when the method is to be
    performed.
    """
    # RFC 9110 §13.2.2, steps 1 and 2
    if_match = fields.get(b"if-match")
    if if_match is not None:
        if not _matches(if_match, etag, is_weak=False):
            return 412
    elif b"if-unmodified-since" in fields:
        date = parse_date(fields[b"if-unmodified-since"], now_s=now_s)
        if date is not None and last_modified_s > date:
            return 412
    # Steps 3 and 4
    is_read = method in ("GET", "HEAD")
    if_none_match = fields.get(b"if-none-match")
    if if_none_match is not None:
        if _matches(if_none_match, etag, is_weak=True):
            return 304 if is_read else 412
    elif is_read and b"if-modified-since" in fields:
        date = parse_date(fields[b"if-modified-since"], now_s=now_s)
        if date is not None and last_modified_s <= date:
            return 304
    return None


def is_range_current(if_range: bytes, *, etag: bytes, last_modified: bytes) -> bool:
    """Tell whether an If-Range field names the current representation (step 5).

    RFC 9110 §13.1.5: both comparisons are exact; a weak tag never matches.
    """
    return if_range in (etag, last_modified)


def _matches(value: bytes, etag: bytes, *, is_weak: bool) -> bool:
    if value == etag or value.strip(b" \t") == b"*":
        return True
    tags = _ENTITY_TAG.findall(value)
    # RFC 9110 §8.8.3.2: the weak comparison looks at the opaque tags alone.
    return etag in tags or (is_weak and b"W/" + etag in tags)

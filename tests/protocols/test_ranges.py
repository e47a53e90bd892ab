"""Ranges: what is asked for, what is honoured, what it may cost."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tetrapylon.protocols.ranges import parse_ranges

WHOLE = None
UNSATISFIABLE: list[tuple[int, int]] = []


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        # RFC 9110 §14.1.2, its own examples, of a representation of 10,000 bytes
        (b"bytes=0-499", [(0, 500)]),
        (b"bytes=500-999", [(500, 1000)]),
        (b"bytes=-500", [(9500, 10000)]),
        (b"bytes=9500-", [(9500, 10000)]),
        (b"bytes=0-0,-1", [(0, 1), (9999, 10000)]),
        (b"bytes= 0-999, 4500-5499, -1000", [(0, 1000), (4500, 5500), (9000, 10000)]),
        (b"bytes=500-600,601-999", [(500, 1000)]),
        (b"bytes=500-700,601-999", [(500, 1000)]),
        # clamped to what there is
        (b"bytes=0-99999", [(0, 10000)]),
        (b"bytes=-99999", [(0, 10000)]),
        (b"bytes=9999-99999999999999999999999999", [(9999, 10000)]),
        (b"bytes=00000000000000000000000000000005-9", [(5, 10)]),
        (b"BYTES=1-2", [(1, 3)]),
        # a list may have empty elements
        (b"bytes=,0-0,,", [(0, 1)]),
        # in the order asked for, and what nearly touches is one
        (b"bytes=9000-9001,0-1", [(9000, 9002), (0, 2)]),
        (b"bytes=5000-5001,1-2,4-5,7-", [(1, 10000)]),
        (b"bytes=0-0,80-80", [(0, 81)]),
        (b"bytes=0-0,81-81", [(0, 1), (81, 82)]),
        # of several, those that can be satisfied
        (b"bytes=20000-,5-6", [(5, 7)]),
        # none can be
        (b"bytes=10000-", UNSATISFIABLE),
        (b"bytes=99999999999999999999-", UNSATISFIABLE),
        (b"bytes=-0", UNSATISFIABLE),
        (b"bytes=10000-,20000-", UNSATISFIABLE),
        # not to be heeded
        (b"bytes=5-4", WHOLE),
        (b"bytes=0-1,5-4", WHOLE),
        (b"bytes=", WHOLE),
        (b"bytes=,", WHOLE),
        (b"bytes=-", WHOLE),
        (b"bytes=1", WHOLE),
        (b"bytes=a-b", WHOLE),
        (b"bytes=+1-2", WHOLE),
        (b"bytes=1_0-20", WHOLE),
        (b"bytes=0x1-2", WHOLE),
        (b"bytes=--5", WHOLE),
        (b"bytes=1 -2", WHOLE),
        (b"bytes 0-1", WHOLE),
        (b"0-1", WHOLE),
        (b"items=0-1", WHOLE),
        (b"bytes =0-1", WHOLE),
        (b"bytes=\xd9\xa1-\xd9\xa2", WHOLE),
        (b"bytes=0-1\n", WHOLE),
        (b"", WHOLE),
    ],
)
def test_cases(value: bytes, expected: list[tuple[int, int]] | None) -> None:
    assert parse_ranges(value, 10_000, limit=16) == expected


def test_nothing_can_be_taken_of_nothing() -> None:
    assert parse_ranges(b"bytes=0-", 0, limit=16) is None
    assert parse_ranges(b"bytes=-5", 0, limit=16) is None


def test_no_more_than_the_limit() -> None:  # B11
    def spread(count: int) -> bytes:
        return b"bytes=" + b",".join(b"%d-%d" % (at * 1000, at * 1000) for at in range(count))

    honoured = parse_ranges(spread(16), 100_000, limit=16)
    assert honoured is not None
    assert len(honoured) == 16
    assert parse_ranges(spread(17), 100_000, limit=16) is None


@pytest.mark.parametrize(
    "spec",
    [b"%d-", b"%d-%d", b"0-%d", b"-%d", b"999999%d-", b"9-%d", b"%d%d-0", b" %d-\t", b"x%d"],
)
def test_a_thousand_cost_little(spec: bytes) -> None:  # B11
    def fill(number: int) -> bytes:
        return spec % ((number,) * spec.count(b"%d"))

    value = b"bytes=" + b",".join(map(fill, range(1000)))
    began = time.process_time()
    for limit in (16, 2000):
        ranges = parse_ranges(value, 5000, limit=limit)
        assert ranges is None or len(ranges) <= 1000
    assert time.process_time() - began < 0.02
    assert parse_ranges(b"bytes=" + b"9" * 30_000 + b"-", 5000, limit=16) == []


POSITIONS = st.integers(0, 300)
SPECS = st.one_of(
    st.tuples(POSITIONS, POSITIONS).map(lambda pair: b"%d-%d" % pair),
    POSITIONS.map(lambda at: b"%d-" % at),
    POSITIONS.map(lambda count: b"-%d" % count),
)


def asked(spec: bytes, length: int) -> set[int]:
    """Say which bytes a range names, straight from RFC 9110 §14.1.2."""
    first, last = spec.split(b"-")
    if not first:
        return set(range(max(0, length - int(last)), length))
    return {at for at in range(length) if int(first) <= at and (not last or at <= int(last))}


@given(st.lists(SPECS, min_size=1, max_size=20), st.integers(1, 400))
def test_ranges_are_within_and_cover_what_was_asked(specs: list[bytes], length: int) -> None:
    ranges = parse_ranges(b"bytes=" + b",".join(specs), length, limit=16)
    is_reversed = any(
        first and last and int(last) < int(first)
        for first, last in (spec.split(b"-") for spec in specs)
    )
    if len(specs) > 16 or is_reversed:
        assert ranges is None
        return
    assert ranges is not None
    assert len(ranges) <= min(16, len(specs))
    assert all(0 <= start < stop <= length for start, stop in ranges)
    named = set[int]().union(*(asked(spec, length) for spec in specs))
    covered = [at for start, stop in ranges for at in range(start, stop)]
    assert named <= set(covered)
    assert len(covered) == len(set(covered)), "parts overlap"
    # satisfiable if and only if it names a byte that there is
    assert bool(ranges) == bool(named)
    # nothing but gaps too small for a part is sent unasked
    for start, stop in ranges:
        assert start in named
        assert stop - 1 in named
    unasked = sorted(set(covered) - named)
    runs = [at for at in unasked if at - 1 not in unasked]
    for run in runs:
        assert not all(at in unasked for at in range(run, run + 80))


@given(st.binary(max_size=60), st.integers(0, 1000))
def test_garbage_never_raises(value: bytes, length: int) -> None:
    for candidate in (value, b"bytes=" + value):
        ranges = parse_ranges(candidate, length, limit=16)
        assert ranges is None or all(0 <= start < stop <= length for start, stop in ranges)

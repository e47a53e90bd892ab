"""Lines of an application: cut, bounded and escaped."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tetrapylon.adapters.log_lines import LogLines, RatedLines, escape


@pytest.mark.parametrize(
    ("line", "escaped"),
    [
        (b"plain 'text' \\n", "plain 'text' \\n"),
        ("caf\u00e9 \u2603".encode(), "caf\u00e9 \u2603"),
        (b"a\x1b[31mb\x00\r\x7f", "a\\x1b[31mb\\x00\\r\\x7f"),
        (b"\xff\xfe", "\\xff\\xfe"),
        ("\u202egnp.exe\u2028".encode(), "\\u202egnp.exe\\u2028"),
    ],
)
def test_escape(line: bytes, escaped: str) -> None:
    # S10
    assert escape(line) == escaped


def lines_of(*pieces: bytes, limit_bytes: int | None = None) -> list[str]:
    lines: list[str] = []
    log_lines = LogLines(lines.append, limit_bytes=limit_bytes)
    for piece in pieces:
        log_lines.feed(piece)
    log_lines.finish()
    return lines


def test_lines_are_cut_where_they_end() -> None:
    assert lines_of(b"on", b"e\ntwo\r\n\nth", b"ree") == ["one", "two", "three"]


def test_long_lines_are_cut_anyway() -> None:
    assert [len(line) for line in lines_of(b"x" * 5000, b"x" * 5000)] == [4096, 4096, 1808]
    assert [len(line) for line in lines_of(b"x" * 5000 + b"\ny")] == [4096, 904, 1]


def test_the_rest_over_the_limit_is_dropped() -> None:
    lines = lines_of(b"one\n", b"two\nthree\n", b"four\n" * 100, limit_bytes=10)
    assert lines == ["one", "two", "th", "… (more than 10 bytes: the rest is dropped)"]


def test_many_short_lines_are_too_many_where_there_is_a_limit() -> None:
    lines = lines_of(b"x\n" * 5000, limit_bytes=9000)
    assert lines == ["x"] * 1000 + ["… (more than 1000 lines: the rest is dropped)"]
    assert len(lines_of(b"x\n" * 5000)) == 5000


@given(st.lists(st.binary(max_size=40), max_size=6))
def test_whatever_comes_the_lines_are_printable(pieces: list[bytes]) -> None:
    lines = lines_of(*pieces)
    assert all(line.isprintable() and line for line in lines)
    assert lines == lines_of(b"".join(pieces))


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def rated(burst_bytes: int = 10_000) -> tuple[RatedLines, list[str], Clock]:
    lines: list[str] = []
    clock = Clock()
    return (
        RatedLines(lines.append, burst_bytes=burst_bytes, bytes_per_s=1000, clock=clock),
        lines,
        clock,
    )


def test_a_stream_within_its_rate_is_whole() -> None:
    log_lines, lines, clock = rated()
    for number in range(1000):
        log_lines.feed(b"%d\n" % number)
        clock.now += 0.07  # a line costs 64 bytes and its own
    log_lines.finish()
    assert lines == [str(number) for number in range(1000)]


def test_what_comes_too_fast_is_dropped_and_counted() -> None:
    log_lines, lines, clock = rated()
    data = b"".join(b"line %05d\n" % number for number in range(100_000))
    for start in range(0, len(data), 65536):
        log_lines.feed(data[start : start + 65536])
    said = len(lines)
    assert lines == [f"line {number:05}" for number in range(said)]
    assert 100 < said < 200
    clock.now += 60
    log_lines.feed(b"half a line\nand a whole one\n")
    dropped = len(data) - said * 11 + len(b"half a line\n")
    assert lines[said:] == [
        f"… ({dropped} bytes came too fast and were dropped)",
        "and a whole one",
    ]
    log_lines.finish()
    assert len(lines) == said + 2


def test_a_stream_that_ends_too_fast_says_so_at_its_end() -> None:
    log_lines, lines, _ = rated()
    log_lines.feed(b"x" * 100_000)
    log_lines.finish()
    assert lines == ["… (100000 bytes came too fast and were dropped)"]


@given(st.lists(st.binary(max_size=300), max_size=20))
def test_no_byte_is_lost_without_being_counted(pieces: list[bytes]) -> None:
    log_lines, lines, _ = rated(burst_bytes=500)
    for piece in pieces:
        log_lines.feed(piece.replace(b"\n\n", b"").replace(b"\r", b""))
    log_lines.finish()
    counts = [int(line[3:].split()[0]) for line in lines if line.startswith("… (")]
    whole = b"".join(piece.replace(b"\n\n", b"").replace(b"\r", b"") for piece in pieces)
    assert sum(counts) <= len(whole)
    assert len(lines) * 64 < 500 + 64 * (len(counts) + 2) + 64

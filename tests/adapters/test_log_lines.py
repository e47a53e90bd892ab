"""Lines of an application: cut, bounded and escaped."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tetrapylon.adapters.log_lines import LogLines, escape


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

"""One normal form; ids are RELIABILITY's, section D."""

from __future__ import annotations

from urllib.parse import quote_from_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tetrapylon.gateway.paths import normalise
from tetrapylon.protocols.errors import RemoteProtocolError


def normal(path: bytes, *, keeps: bool = False, merges: bool = True) -> bytes:
    text = normalise(path, keeps_encoded_slash=keeps, merges_slashes=merges)
    return text.encode("utf-8", "surrogateescape")


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"/", b"/"),
        (b"/a/b", b"/a/b"),
        (b"/a%20b", b"/a b"),
        (b"/%C3%A9", b"/\xc3\xa9"),
        (b"/%FF", b"/\xff"),
        (b"/%c0%af", b"/\xc0\xaf"),
        (b"//a///b", b"/a/b"),
        (b"/a/./b", b"/a/b"),
        (b"/a/../b", b"/b"),
        (b"/a/b/..", b"/a/"),
        (b"/a/.", b"/a/"),
        (b"/a/%2e%2E/b", b"/b"),
        (b"/a/.%2e/b", b"/b"),
        (b"/a//../b", b"/b"),
        (b"/a/...", b"/a/..."),
        (b"/a/..b", b"/a/..b"),
        (b"/a.", b"/a."),
        (b"/%2561", b"/%61"),
        (b"/a;b=c", b"/a;b=c"),
        (b"/.well-known/x", b"/.well-known/x"),
    ],
)
def test_normal_form(raw: bytes, expected: bytes) -> None:  # D1
    assert normal(raw) == expected


@pytest.mark.parametrize(
    "raw",
    [
        b"/..", b"/../", b"/a/../..", b"/%2e%2e", b"/%2E./", b"//..", b"/a%2f..%2f..", b"/a%2Fb",
        b"/%5c..%5c", b"/a\\b", b"/%00", b"/a%00.html", b"/%", b"/%4", b"/%zz", b"/%u002e", b"/a%2",
    ],
)  # fmt: skip
def test_refused(raw: bytes) -> None:  # D1
    with pytest.raises(RemoteProtocolError) as caught:
        normal(raw)
    assert caught.value.status_hint == 400


def test_slashes_may_be_kept() -> None:
    assert normal(b"/a//b", merges=False) == b"/a//b"
    assert normal(b"/a%2fb%2F..%2fc", keeps=True) == b"/a%2Fb%2F..%2Fc"
    assert normal(b"/a%2fb/../c", keeps=True) == b"/c"


@given(st.binary(max_size=30))
def test_every_path_is_safe_or_refused(tail: bytes) -> None:
    raw = b"/" + bytes(b for b in tail if 0x20 < b < 0x7F)
    try:
        path = normal(raw)
    except RemoteProtocolError:
        return
    assert path.startswith(b"/")
    assert b"\0" not in path
    assert b"\\" not in path
    assert b"//" not in path
    assert not {b".", b".."} & set(path.split(b"/"))


@given(st.text("/.%2eEfF5cC0a", max_size=24))
def test_spellings_of_dots_and_slashes(tail: str) -> None:
    raw = b"/" + tail.encode()
    try:
        path = normal(raw)
    except RemoteProtocolError:
        return
    assert not {b".", b".."} & set(path.split(b"/"))
    # Decoded once: what an escape stood for is no escape itself.
    assert normal(quote_from_bytes(path).encode()) == path

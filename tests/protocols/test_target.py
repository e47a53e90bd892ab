"""From a scope's path to bytes, and back to a part of a URL."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tetrapylon.gateway.paths import normalise
from tetrapylon.protocols.target import (
    path_below,
    quote_path,
    quote_query,
    slash_location,
    whole_path,
)


@pytest.mark.parametrize(
    ("path", "root_path", "below", "whole"),
    [
        ("/", "", b"/", b"/"),
        ("/a/b", "", b"/a/b", b"/a/b"),
        ("/api/a", "/api", b"/a", b"/api/a"),
        ("/api/", "/api", b"/", b"/api/"),
        ("/api", "/api", b"", b"/api"),
        # uvicorn's --root-path as people write it
        ("/api/a", "/api/", b"/a", b"/api/a"),
        # stripped by an older framework
        ("/a", "/api", b"/a", b"/api/a"),
        ("/apis/a", "/api", b"/apis/a", b"/api/apis/a"),
        ("/ä\udce9", "", b"/\xc3\xa4\xe9", b"/\xc3\xa4\xe9"),
        # two slashes would be a host
        ("//a", "", b"//a", b"/a"),
        ("", "", b"", b"/"),
    ],
)
def test_paths(path: str, root_path: str, below: bytes, whole: bytes) -> None:
    scope = {"path": path, "root_path": root_path}
    assert path_below(scope) == below
    assert whole_path(scope) == whole


@pytest.mark.parametrize(
    ("path", "root_path", "query", "location"),
    [
        ("/a", "", b"", b"/a/"),
        ("/a b", "/api", b"x=1&y=%20", b"/api/a%20b/?x=1&y=%20"),
        ("//evil.example", "", b"", b"/evil.example/"),
        ("/\\evil.example", "", b'"<>', b"/%5Cevil.example/?%22%3C%3E"),
    ],
)
def test_the_location_of_a_directory(
    path: str, root_path: str, query: bytes, location: bytes
) -> None:
    scope = {"path": path, "root_path": root_path, "query_string": query}
    assert slash_location(scope) == location


@given(st.binary(max_size=30).filter(lambda path: b"\0" not in path and b"\\" not in path))
def test_a_quoted_path_means_the_same(path: bytes) -> None:
    quoted = quote_path(b"/" + path.replace(b"/", b""))
    assert all("!" <= sign <= "~" and sign not in '"#<>?[]^`{|}' for sign in quoted)
    if path not in (b".", b".."):
        normal = normalise(quoted.encode(), keeps_encoded_slash=False, merges_slashes=True)
        assert normal.encode("utf-8", "surrogateescape") == b"/" + path.replace(b"/", b"")


@given(st.binary(max_size=30))
def test_a_quoted_query_is_safe_in_a_field(query: bytes) -> None:
    quoted = quote_query(query)
    assert all("!" <= sign <= "~" and sign not in '"#<>' for sign in quoted)
    assert quote_query(quoted.encode()) == quoted

"""Meta-variables to scopes: as web servers send them, and as the inverse of our own."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote_from_bytes

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tetrapylon.adapters.asgi_scope import body_length, http_scope
from tetrapylon.protocols.asgi import AUTHORIZER_EXTENSION, Scope
from tetrapylon.protocols.cgi.meta_variables import meta_variables

LEAST = {"REQUEST_METHOD": "GET"}


def scope_of(**variables: Any) -> Scope:
    return http_scope({**LEAST, **variables})


def test_the_least_that_a_server_may_say() -> None:
    assert http_scope(LEAST) == {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": "/",
        "root_path": "",
        "query_string": b"",
        "headers": [],
        "client": None,
        "server": None,
        "extensions": {},
    }
    with pytest.raises(KeyError):
        http_scope({})


def test_headers() -> None:
    scope = scope_of(
        HTTP_X_REAL_NAME="caf\xe9",
        HTTP_CONTENT_TYPE="text/x-twice",
        HTTP_CONTENT_LENGTH="7",
        HTTP_PROXY="http://evil.example",
        HTTP_TRANSFER_ENCODING="chunked",
        CONTENT_TYPE="text/plain",
        CONTENT_LENGTH="7",
        HTTP_="nothing",
        SERVER_ADMIN="somebody",
        **{"HTTP_A B": "no field", "wsgi.input": object()},
    )
    assert scope["headers"] == [
        (b"x-real-name", b"caf\xe9"),
        (b"content-length", b"7"),
        (b"content-type", b"text/plain"),
    ]
    # PEP 3333 lets both be there and empty.
    assert scope_of(CONTENT_TYPE="", CONTENT_LENGTH="")["headers"] == []
    chunked = scope_of(HTTP_TRANSFER_ENCODING="chunked")
    assert chunked["headers"] == [(b"transfer-encoding", b"chunked")]


def test_names_are_remembered_within_bounds() -> None:
    for number in range(2000):
        name = f"HTTP_X_{number}"
        assert scope_of(**{name: "1"})["headers"] == [(f"x-{number}".encode(), b"1")]


@pytest.mark.parametrize(
    ("protocol", "version"),
    [
        ("HTTP/1.0", "1.0"),
        ("HTTP/1.1", "1.1"),
        ("HTTP/2.0", "2"),
        ("HTTP/2", "2"),
        ("HTTP/3.0", "3"),
        ("INCLUDED", "1.1"),
        ("", "1.1"),
    ],
)
def test_versions(protocol: str, version: str) -> None:
    assert scope_of(SERVER_PROTOCOL=protocol)["http_version"] == version


def test_scheme() -> None:
    assert scope_of(HTTPS="on")["scheme"] == "https"
    assert scope_of(HTTPS="1")["scheme"] == "https"
    assert scope_of(HTTPS="off")["scheme"] == "http"
    assert scope_of(HTTPS="")["scheme"] == "http"
    assert scope_of(REQUEST_SCHEME="https")["scheme"] == "https"
    assert scope_of(REQUEST_SCHEME="gopher")["scheme"] == "http"
    assert http_scope(LEAST, scheme="https")["scheme"] == "https"


def test_addresses() -> None:
    scope = scope_of(
        REMOTE_ADDR="::1", REMOTE_PORT="5000", SERVER_NAME="example.com", SERVER_PORT="8000"
    )
    assert (scope["client"], scope["server"]) == (("::1", 5000), ("example.com", 8000))
    scope = scope_of(REMOTE_ADDR="10.0.0.1", SERVER_NAME="[::1]", SERVER_ADDR="", HTTPS="on")
    assert (scope["client"], scope["server"]) == (("10.0.0.1", 0), ("::1", 443))
    for nobody in ("", "unix:", "0.0.0.0"):
        assert scope_of(REMOTE_ADDR=nobody)["client"] is None
    assert scope_of(REMOTE_ADDR="h", REMOTE_PORT="many")["client"] == ("h", 0)


def test_whom_the_server_has_let_in() -> None:
    scope = scope_of(REMOTE_USER="ada", AUTH_TYPE="Basic", REMOTE_IDENT="")
    user = {"REMOTE_USER": "ada", "AUTH_TYPE": "Basic"}
    assert scope["extensions"] == {AUTHORIZER_EXTENSION: user}
    assert meta_variables(scope)["REMOTE_USER"] == "ada"


@pytest.mark.parametrize(
    ("target", "raw_path"),
    [
        ("/a%20b?x=/?", b"/a%20b"),
        ("/caf\xe9", b"/caf\xe9"),
        ("http://example.com/a?b", b"/a"),
        ("http://example.com", b"/"),
        ("//example.com/a", b"//example.com/a"),
        ("/to/http://example.com/", b"/to/http://example.com/"),
        ("*", b"*"),
    ],
)
def test_raw_path(target: str, raw_path: bytes) -> None:
    assert scope_of(REQUEST_URI=target)["raw_path"] == raw_path
    assert scope_of(RAW_URI=target)["raw_path"] == raw_path


def test_without_a_target_there_is_no_raw_path() -> None:
    assert "raw_path" not in scope_of(PATH_INFO="/a")


# root_path, path


def paths(root_path: str | None = None, *, is_split: bool = True, **more: str) -> tuple[str, str]:
    scope = http_scope({**LEAST, **more}, root_path=root_path, is_split=is_split)
    return scope["root_path"], scope["path"]


def test_script_name_and_path_info() -> None:
    assert paths(SCRIPT_NAME="/api", PATH_INFO="/a") == ("/api", "/api/a")
    assert paths(SCRIPT_NAME="/api", PATH_INFO="") == ("/api", "/api")
    assert paths(SCRIPT_NAME="/api") == ("/api", "/api")
    assert paths(SCRIPT_NAME="", PATH_INFO="/a") == ("", "/a")
    assert paths(SCRIPT_NAME="", PATH_INFO="") == ("", "/")
    # Not allowed, and seen.
    assert paths(SCRIPT_NAME="/", PATH_INFO="a") == ("", "/a")
    assert paths(SCRIPT_NAME="/api/", PATH_INFO="/a") == ("/api", "/api/a")
    assert paths(PATH_INFO="*") == ("", "*")


def test_bytes_that_are_not_utf8() -> None:
    raw = "/\xc3\xa9/\xff"
    assert paths(SCRIPT_NAME="/\xc3\xbc", PATH_INFO=raw) == ("/ü", "/ü/é/\ufffd")
    scope = http_scope({**LEAST, "PATH_INFO": raw}, path_errors="surrogateescape")
    assert scope["path"] == "/é/\udcff"
    # A server that decodes.
    assert paths(PATH_INFO="/\u20ac") == ("", "/\u20ac")


def test_servers_that_do_not_split_the_path() -> None:
    whole = {"SCRIPT_NAME": "/api/a"}
    nginx = {**whole, "DOCUMENT_URI": "/api/a"}
    apache = {**whole, "PATH_INFO": "", "SCRIPT_FILENAME": "proxy:fcgi://127.0.0.1:9000//api/a"}
    for variables in (whole, nginx, apache, {**nginx, "PATH_INFO": ""}, {"DOCUMENT_URI": "/api/a"}):
        assert paths(is_split=False, **variables) == ("", "/api/a")
        assert paths("/api", is_split=False, **variables) == ("/api", "/api/a")
        assert paths("/api/", is_split=False, **variables) == ("/api", "/api/a")
        assert paths("/other", is_split=False, **variables) == ("/other", "/other/api/a")


def test_servers_that_do() -> None:
    split = {"SCRIPT_NAME": "/api", "PATH_INFO": "/a"}
    mount = {"SCRIPT_NAME": "/api", "PATH_INFO": ""}
    for is_split in (False, True):
        assert paths(is_split=is_split, **split) == ("/api", "/api/a")
        assert paths(is_split=is_split, **mount) == ("/api", "/api")
        assert paths("/api", is_split=is_split, **mount) == ("/api", "/api")
    # A rewritten URL: the script is not where the application seems to be.
    assert paths("", SCRIPT_NAME="/cgi-bin/app.py", PATH_INFO="/a") == ("", "/a")


def test_body_length() -> None:
    assert body_length({}) is None
    assert body_length({"CONTENT_LENGTH": ""}) is None
    assert body_length({"CONTENT_LENGTH": "0"}) == 0
    assert body_length({"CONTENT_LENGTH": "12"}) == 12
    for text in ("+1", "1_0", "-1", " 1", "\u0661", "9" * 20):
        with pytest.raises(ValueError):
            body_length({"CONTENT_LENGTH": text})


# The inverse

_names = st.from_regex(r"\Ax(-[a-z0-9]{1,4}){1,3}\Z").map(str.encode)
_values = st.from_regex(rb"\A[!-~\x80-\xff]([\t -~\x80-\xff]{0,8}[!-~\x80-\xff])?\Z")
_segments = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="/"), min_size=1, max_size=6
)
_broken = st.sampled_from(["\udcff", "a\udc80b"])
_below = st.lists(st.one_of(_segments, _broken), max_size=3).map(
    lambda parts: "".join("/" + part for part in parts)
)


@st.composite
def _scopes(draw: Any) -> Scope:
    root_path = draw(_below)
    path = root_path + (draw(_below) or ("" if root_path else "/"))
    headers = [
        (name, draw(_values))
        for name in draw(st.lists(_names, unique_by=lambda name: name, max_size=4))
    ]
    headers += draw(st.lists(st.just((b"host", b"example.com:81")), max_size=1))
    headers += draw(st.lists(st.just((b"content-length", b"5")), max_size=1))
    headers += draw(st.lists(st.just((b"content-type", b"text/plain")), max_size=1))
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": draw(st.sampled_from(["1.0", "1.1", "2", "3"])),
        "method": draw(st.sampled_from(["GET", "POST", "HEAD", "X-OWN"])),
        "scheme": draw(st.sampled_from(["http", "https"])),
        "path": path,
        "root_path": root_path,
        "raw_path": quote_from_bytes(path.encode("utf-8", "surrogateescape")).encode(),
        "query_string": draw(st.from_regex(rb"\A[!-~]{0,8}\Z")),
        "headers": headers,
        "client": draw(st.sampled_from([None, ("10.0.0.1", 0), ("::1", 5000)])),
        "server": draw(st.sampled_from([("127.0.0.1", 80), ("::1", 8000)])),
        "extensions": draw(st.sampled_from([{}, {AUTHORIZER_EXTENSION: {"REMOTE_USER": "ada"}}])),
    }


@settings(max_examples=200)
@given(_scopes())
def test_it_is_the_inverse_of_meta_variables(scope: Scope) -> None:
    variables = meta_variables(scope)
    # ASGI-WSGI-MAP-METHOD, -SCRIPT, -PATH, -LATIN1, -QUERY, -CT, -SERVER, -PROTO
    back = http_scope(variables, path_errors="surrogateescape")
    assert {**back, "headers": sorted(back["headers"])} == {
        **scope,
        "headers": sorted(scope["headers"]),
    }
    assert meta_variables(back) == variables
    # As long as they are split, it does not matter who says so.
    if scope["path"] != scope["root_path"]:
        assert http_scope(variables, is_split=False, path_errors="surrogateescape") == back

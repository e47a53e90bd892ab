"""What is said to an upstream server about a request, and what is not."""

from __future__ import annotations

from typing import Any

import pytest

from tetrapylon.adapters.errors import BadRequest
from tetrapylon.gateway.paths import normalise
from tetrapylon.gateway.upstream_request import request_head, request_length
from tetrapylon.protocols.http1.events import CHUNKED

Fields = list[tuple[bytes, bytes]]


def make_scope(fields: Fields | None = None, **scope: Any) -> dict[str, Any]:
    return {
        "type": "http",
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "client": ("192.0.2.7", 50000),
        "path": "/a",
        "raw_path": b"/a",
        "root_path": "",
        "query_string": b"",
        "headers": [(b"host", b"example.com"), *(fields or [])],
        **scope,
    }


def written(
    scope: dict[str, Any], length: int = 0, *, preserves_host: bool = True
) -> tuple[str, Fields]:
    head = request_head(scope, length, authority=b"inner:8080", preserves_host=preserves_host)
    line, *lines = head.split(b"\r\n")
    assert lines[-2:] == [b"", b""]
    fields = [tuple(field.split(b": ", 1)) for field in lines[:-2]]
    return line.decode(), fields  # type: ignore[return-value]


def test_a_whole_head() -> None:
    assert written(make_scope([(b"accept", b"*/*"), (b"cookie", b"a=1"), (b"cookie", b"b=2")])) == (
        "GET /a HTTP/1.1",
        [
            (b"host", b"example.com"),
            (b"accept", b"*/*"),
            (b"cookie", b"a=1"),
            (b"cookie", b"b=2"),
            (b"x-forwarded-proto", b"http"),
            (b"x-forwarded-for", b"192.0.2.7"),
            (b"x-forwarded-host", b"example.com"),
            (b"forwarded", b"for=192.0.2.7;host=example.com;proto=http"),
        ],
    )


def test_what_stays_behind() -> None:
    """About the old connection, framing, what a client could pose with."""  # C1, C2
    spoofed = [
        (b"connection", b"close, X-Private, cookie"),
        (b"connection", b"x-other"),
        (b"x-private", b"1"),
        (b"x-other", b"1"),
        (b"keep-alive", b"timeout=5"),
        (b"te", b"trailers"),
        (b"trailer", b"x"),
        (b"transfer-encoding", b"chunked"),
        (b"upgrade", b"h2c"),
        (b"proxy-connection", b"keep-alive"),
        (b"proxy-authorization", b"Basic x"),
        (b"expect", b"100-continue"),
        (b"content-length", b"77"),
        (b"proxy", b"http://evil.example"),
        (b"host", b"evil.example"),
        (b"forwarded", b"for=127.0.0.1"),
        (b"x-forwarded-for", b"127.0.0.1"),
        (b"x-forwarded-proto", b"https"),
        (b"x-forwarded-host", b"evil.example"),
        (b"x-forwarded-prefix", b"/evil"),
        (b"x-forwarded-anything", b"x"),
        (b"x-real-ip", b"127.0.0.1"),
        (b"x_real_ip", b"127.0.0.1"),
        (b"x.real.ip", b"127.0.0.1"),
        (b"remote-user", b"admin"),
        (b"script-name", b"/evil"),
        (b"cookie", b"named in Connection"),
        (b"x-kept", b"1"),
    ]
    _, fields = written(make_scope(spoofed))
    assert fields == [
        *written(make_scope())[1][:1],
        (b"x-kept", b"1"),
        *written(make_scope())[1][1:],
    ]


@pytest.mark.parametrize(
    ("client", "forwarded_for", "node"),
    [
        (("192.0.2.7", 1), b"192.0.2.7", b"192.0.2.7"),
        (("2001:db8::1", 1), b"2001:db8::1", b'"[2001:db8::1]"'),
        (None, None, b"unknown"),
        (("", 0), None, b"unknown"),
    ],
)
def test_the_client(client: Any, forwarded_for: bytes | None, node: bytes) -> None:
    fields = dict(written(make_scope(client=client, scheme="https"))[1])
    assert fields.get(b"x-forwarded-for") == forwarded_for
    assert fields[b"forwarded"] == b"for=" + node + b";host=example.com;proto=https"
    assert fields[b"x-forwarded-proto"] == b"https"


def test_the_host() -> None:
    scope = make_scope()
    scope["headers"] = [(b"host", b"example.com:8000")]
    fields = dict(written(scope)[1])
    assert fields[b"host"] == b"example.com:8000"
    assert fields[b"forwarded"] == b'for=192.0.2.7;host="example.com:8000";proto=http'
    fields = dict(written(scope, preserves_host=False)[1])
    assert fields[b"host"] == b"inner:8080"
    assert fields[b"x-forwarded-host"] == b"example.com:8000"
    scope["headers"] = []
    fields = dict(written(scope)[1])
    assert fields[b"host"] == b"inner:8080"
    assert b"x-forwarded-host" not in fields


@pytest.mark.parametrize(
    ("raw_path", "target"),
    [
        (b"/", "/"),
        (b"/a/b", "/a/b"),
        # as it was sent: applications tell these apart
        (b"/a%2cb,c", "/a%2cb,c"),
        (b"/%7euser/~user", "/%7euser/~user"),
        (b"/a;x=1/b", "/a;x=1/b"),
        (b"/%E9%c3%a4", "/%E9%c3%a4"),
        (b"/a%2Fb%2fc", "/a%2Fb%2fc"),
        (b"/a%252Fb", "/a%252Fb"),
        # a spelling of another path: what was routed is asked for
        (b"/public/../admin", "/admin"),
        (b"/public/%2e%2e/admin%20x", "/admin%20x"),
        (b"//a", "/a"),
        (b"/./a", "/a"),
        (b"/a//b%3F", "/a/b%3F"),
    ],
)
def test_targets(raw_path: bytes, target: str) -> None:  # D2
    path = normalise(raw_path, keeps_encoded_slash=True, merges_slashes=True)
    for query in (b"", b"a=%20&b"):
        scope = make_scope(path=path, raw_path=raw_path, query_string=query)
        line, _ = written(scope)
        assert line == f"GET {target}{'?' + query.decode() if query else ''} HTTP/1.1"


@pytest.mark.parametrize(
    ("root_path", "path", "raw_path", "target"),
    [
        ("/api", "/api/a", b"/api/a", "/a"),
        ("/api", "/api/a,b", b"/api/a%2cb", "/a%2cb"),
        ("/api", "/api", b"/api", "/"),
        ("/api", "/api/", b"/api/", "/"),
        ("/api", "/api/a", b"/%61pi/a", "/a"),
        ("/api", "/api/a", b"/x/../api/a", "/a"),
        ("/ä", "/ä/a", b"/%C3%A4/a", "/a"),
        ("/api", "/a", b"/a", "/a"),  # stripped by an older framework
        ("/api", "/api/a", None, "/a"),
    ],
)
def test_below_a_mount(root_path: str, path: str, raw_path: bytes | None, target: str) -> None:
    scope = make_scope(root_path=root_path, path=path, raw_path=raw_path)
    line, fields = written(scope)
    assert line == f"GET {target} HTTP/1.1"
    assert dict(fields)[b"x-forwarded-prefix"] in (b"/api", b"/%C3%A4")


def test_other_targets() -> None:
    assert written(make_scope(path="*", raw_path=b"*", method="OPTIONS"))[0] == "OPTIONS * HTTP/1.1"
    scope = make_scope(path="/a b\udce9", raw_path=None)
    assert written(scope)[0] == "GET /a%20b%E9 HTTP/1.1"


def test_framing() -> None:
    assert (b"content-length", b"5") in written(make_scope(method="GET"), 5)[1]
    assert (b"transfer-encoding", b"chunked") in written(make_scope(method="POST"), CHUNKED)[1]
    for method, is_said in (("POST", True), ("PUT", True), ("GET", False), ("DELETE", False)):
        fields = written(make_scope(method=method), 0)[1]
        assert ((b"content-length", b"0") in fields) == is_said


@pytest.mark.parametrize(
    ("headers", "http_version", "length"),
    [
        ([], "1.1", 0),
        ([], "1.0", 0),
        ([], "2", None),
        ([(b"content-length", b"5")], "1.1", 5),
        ([(b"content-length", b"0")], "2", 0),
        ([(b"content-length", b"5"), (b"content-length", b"5")], "1.1", 5),
        ([(b"transfer-encoding", b"chunked")], "1.1", CHUNKED),
    ],
)
def test_lengths(headers: Fields, http_version: str, length: int | None) -> None:
    assert request_length(make_scope(headers, http_version=http_version)) == length


@pytest.mark.parametrize(
    "headers",
    [
        [(b"content-length", b"5"), (b"content-length", b"6")],
        [(b"content-length", b"5"), (b"transfer-encoding", b"chunked")],
        [(b"content-length", b"+5")],
        [(b"content-length", b"")],
        [(b"content-length", b"5, 5")],
    ],
)
def test_lengths_that_are_none(headers: Fields) -> None:
    with pytest.raises(BadRequest):
        request_length(make_scope(headers))


@pytest.mark.parametrize(
    "scope",
    [
        {"method": "GE T"},
        {"method": "GET\r\n"},
        {"method": "G\u0130T"},
        {"query_string": b"a b"},
        {"query_string": b"a\r\nX: y"},
        {"headers": [(b"x", b"a\r\nY: b")]},
        {"headers": [(b"x", b"a\0")]},
        {"headers": [(b"host", b"a\r\nX: y")]},
    ],
)
def test_what_cannot_be_passed_on(scope: dict[str, Any]) -> None:
    with pytest.raises(BadRequest):
        written(make_scope(**scope))

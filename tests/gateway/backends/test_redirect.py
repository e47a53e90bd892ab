"""Where a redirect may lead, and where nobody can bend it to."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urljoin, urlsplit

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tetrapylon.adapters.errors import BadRequest
from tetrapylon.gateway.backends.redirect import STATUSES, RedirectBackend

Ask = Callable[..., Awaitable[Any]]

pytestmark = pytest.mark.anyio


async def locate(ask: Ask, target: str, path: str | bytes = "/", **request: Any) -> str:
    answer = await ask(RedirectBackend("to", target), path, **request)
    assert answer.status == 308
    assert answer.headers[b"content-length"] == b"0"
    return answer.headers[b"location"].decode("ascii")


@pytest.mark.parametrize(
    ("target", "path", "query", "location"),
    [
        ("https://example.org/new", "/a", b"x=1", "https://example.org/new"),
        ("https://example.org{path}", "/a/b", b"x=1", "https://example.org/a/b"),
        (
            "https://example.org{path}?{query}",
            "/a",
            b"x=1&y=%20",
            "https://example.org/a?x=1&y=%20",
        ),
        ("https://example.org{path}?{query}", "/a", b"", "https://example.org/a"),
        ("https://example.org/{path}", "/a", b"", "https://example.org/a"),
        ("https://example.org/v2/{path}", "/a", b"", "https://example.org/v2/a"),
        ("https://example.org/v2{path}", "/", b"", "https://example.org/v2/"),
        ("https://{host}{path}", "/a", b"", "https://example.com/a"),
        ("https://{host}:8443{path}", "/a", b"", "https://example.com:8443/a"),
        ("{scheme}://www.{host}{path}", "/a", b"", "http://www.example.com/a"),
        ("https://www.example.org", "/a", b"", "https://www.example.org"),
        ("//cdn.example.org{path}", "/a", b"", "//cdn.example.org/a"),
        ("/new{path}", "/a", b"", "/new/a"),
        ("{path}/", "/a", b"", "/a/"),
        ("/", "/a", b"", "/"),
        ("/#top", "/a", b"", "/#top"),
        # the query among others
        ("/a?x=1&{query}", "/", b"y=2", "/a?x=1&y=2"),
        ("/a?x=1&{query}", "/", b"", "/a?x=1"),
        ("/a?{query}&x=1", "/", b"y=2", "/a?y=2&x=1"),
        ("/a?{query}&x=1", "/", b"", "/a?x=1"),
        ("/a?{query}#top", "/", b"", "/a#top"),
        ("/a?{query}", "/", b"y=&", "/a?y=&"),
        # percent-encoding
        ("/new{path}", "/ä b%?#\r\n", b"", "/new/%C3%A4%20b%25%3F%23%0D%0A"),
        ("/new{path}", b"/\xe9", b"", "/new/%E9"),
        ("/a?{query}", "/", b"a b\r\n\xe9#'\"<>%41", "/a?a%20b%0D%0A%E9%23'%22%3C%3E%41"),
        ("/login?next={path}", "/a&admin=1", b"", "/login?next=/a%26admin%3D1"),
    ],
)
async def test_targets(ask: Ask, target: str, path: str, query: bytes, location: str) -> None:
    assert await locate(ask, target, path, query=query) == location


async def test_below_a_mount(ask: Ask) -> None:
    target = "https://example.org{rest}"
    assert await locate(ask, target, "/old/a", root_path="/old") == "https://example.org/a"
    assert await locate(ask, target, "/old", root_path="/old") == "https://example.org/"
    assert await locate(ask, target, "/old/a") == "https://example.org/old/a"


@pytest.mark.parametrize("status", STATUSES)
async def test_statuses_and_methods(ask: Ask, status: int) -> None:
    backend = RedirectBackend("to", "/new", status=status)
    for method in ("GET", "HEAD", "POST"):
        answer = await ask(backend, "/a", method=method)
        assert (answer.status, answer.body) == (status, b"")


@pytest.mark.parametrize("status", [200, 300, 304, 400, 0])
def test_what_is_no_redirect(status: int) -> None:
    with pytest.raises(ValueError, match="308"):
        RedirectBackend("to", "/", status=status)


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("https://example.org{pth}", "did you mean {path}"),
        ("https://example.org/{nonsense}", "there are {path}"),
        ("https://example.org/{}", "unknown"),
        ("https://example.org/{path", "brace"),
        ("https://example.org/path}", "brace"),
        ("https://example.org/{path!r}", "unknown"),
        ("https://example.org/{0}", "unknown"),
        ("https://example.org/a b", "percent-encode"),
        ("https://example.org/ä", "percent-encode"),
        ("https://example.org/\r\nX: y", "percent-encode"),
        ("https://example.org/\\", "percent-encode"),
        ("", "percent-encode"),
        # a request could choose the host
        ("https://{path}", "begin"),
        ("https://{rest}", "begin"),
        ("https:{path}", "begin"),
        ("https:/{path}", "begin"),
        ("{scheme}:{path}", "begin"),
        ("//{path}", "begin"),
        ("{host}{path}", "begin"),
        ("{query}", "behind"),
        ("/{query}", "behind"),
        ("https://example.org{query}", "behind"),
        ("https://user@{host}/", "begin"),
        ("example.org/a", "begin"),
        ("javascript:alert(1)", "begin"),
        ("///example.org", "begin"),
    ],
)
def test_targets_that_are_refused(target: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        RedirectBackend("to", target)


@pytest.mark.parametrize(
    "host", [b"", b"a b", b"a/b", b"evil.example/", b"user@evil.example", b"a\r\nb", b"\xe4", b"["]
)
async def test_a_host_that_is_none(ask: Ask, host: bytes) -> None:
    with pytest.raises(BadRequest):
        await locate(ask, "https://{host}{path}", host=host)


@pytest.mark.parametrize(
    ("host", "expected"),
    [(b"example.net:8000", "example.net"), (b"[::1]:8000", "[::1]"), (b"192.0.2.1", "192.0.2.1")],
)
async def test_the_port_is_left_out(ask: Ask, host: bytes, expected: str) -> None:
    assert await locate(ask, "https://{host}/", host=host) == f"https://{expected}/"


LOCAL = ("{path}", "/{path}", "{rest}", "/{rest}", "/{rest}?{query}", "/x?{query}")
ABROAD = ("https://example.org{path}", "https://example.org/{rest}?{query}", "https://{host}{path}")


@pytest.mark.parametrize("target", [*LOCAL, *ABROAD])
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    path=st.one_of(
        st.sampled_from(
            (b"//evil.example", b"/\\evil.example", b"/\t/evil.example", b"///evil.example/%2f..")
        ),
        st.lists(
            st.sampled_from([b"/", b"\\", b"@", b".evil.example", b":", b"?", b"#", b"a"])
        ).map(b"".join),
        st.binary(max_size=20),
    ),
    query=st.binary(max_size=20),
)
def test_no_request_chooses_the_host(ask: Ask, target: str, path: bytes, query: bytes) -> None:
    for root_path in ("", "/old", "//evil.example"):
        location = asyncio.run(locate(ask, target, b"/" + path, query=query, root_path=root_path))
        assert location.isascii()
        assert location.isprintable()
        # As browsers read it: tabs and line ends dropped, backslashes as slashes.
        assert not location.startswith(("//", "/\\"))
        reached = urlsplit(urljoin("https://gateway.example/here", location))
        if target in LOCAL:
            assert reached.netloc == "gateway.example"
        elif "{host}" in target:
            assert reached.netloc == "example.com"
        else:
            assert reached.netloc == "example.org"


def test_says_where_it_leads() -> None:
    backend = RedirectBackend("to", "https://example.org{path}")
    assert backend.describe() == "redirect to https://example.org{path}"

"""Host and path to backend."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tetrapylon.adapters.errors import (
    BadGateway,
    ContentTooLarge,
    InternalError,
    LocalRedirect,
    NotFound,
)
from tetrapylon.gateway.backends.base import Backend
from tetrapylon.gateway.router import Route, Router
from tetrapylon.protocols.asgi import Receive, Scope, Send


class Recorder(Backend):
    """A backend that notes what it was given, or does what it is told."""

    def __init__(self, name: str, **more: Any) -> None:
        super().__init__(name, body_limit_bytes=more.pop("body_limit_bytes", None))
        self.local_redirects = more.pop("local_redirects", 0)
        self.targets: list[bytes] = more.pop("targets", [])
        self.scopes: list[Scope] = []
        self.bodies: list[bytes] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scopes.append(scope)
        message = await receive()
        self.bodies.append(message["body"])
        if self.targets:
            raise LocalRedirect(self.targets.pop(0))

    def describe(self) -> str:
        return "a recorder"


class Doorkeeper:
    """An authorizer that lets those pass whose path it has variables for."""

    name = "doorkeeper"

    def __init__(self, **variables: dict[str, str]) -> None:
        self.variables = {f"/{name}": value for name, value in variables.items()}
        self.scopes: list[Scope] = []

    async def authorize(self, scope: Scope, receive: Receive, send: Send) -> dict[str, str] | None:
        self.scopes.append(scope)
        return self.variables.get(scope["path"])


class Exchange:
    """What the connection driver puts into the scope."""

    def __init__(self, content_length: int = 0) -> None:
        self.request = self
        self.content_length = content_length
        self.body_limit_bytes = 100
        self.connection = self
        self.service = self
        self.now = 5.0
        self.complete_at = 0.0
        self.backend = "-"
        self.user = ""

    def limit_body(self, limit_bytes: int) -> None:
        if self.content_length > limit_bytes:
            raise ContentTooLarge("too much")


def scope_of(path: str, host: str = "example.org", exchange: Exchange | None = None) -> Scope:
    return {
        "type": "http",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"a=1",
        "root_path": "",
        "headers": [(b"host", host.encode()), (b"content-length", b"4"), (b"x-kept", b"1")],
        "extensions": {"tetrapylon": exchange or Exchange()},
    }


async def receive() -> dict[str, Any]:
    return {"type": "http.request", "body": b"body", "more_body": False}


async def send(message: Any) -> None:
    raise AssertionError(message)


def ask(router: Router, scope: Scope) -> None:
    async def call() -> None:
        await router(scope, receive, send)

    asyncio.run(call())


PREFIXES = ["/", "/blog", "/blog/admin/", "/api/"]


@pytest.mark.parametrize(
    ("path", "prefix"),
    [
        ("/", "/"),
        ("/x", "/"),
        ("/blog", "/blog"),
        ("/blog/", "/blog"),
        ("/blog/x/y", "/blog"),
        ("/blogger", "/"),
        ("/blog.php", "/"),
        ("/blog/admin", "/blog/admin/"),
        ("/blog/admin/x", "/blog/admin/"),
        ("/blog/administrator", "/blog"),
        ("/api", "/api/"),
        ("/API/", "/"),
        ("*", "/"),
    ],
)
def test_whole_segments_longest_first(path: str, prefix: str) -> None:
    for prefixes in (PREFIXES, PREFIXES[::-1]):
        router = Router([Route(path=p, backend=Recorder(p)) for p in prefixes])
        assert router.find(scope_of(path)).backend.name == prefix


@pytest.mark.parametrize(
    ("host", "path", "name"),
    [
        ("example.org", "/a/b", "host"),
        ("EXAMPLE.org:8080", "/a", "host"),
        ("example.org.", "/a", "host"),
        ("www.example.org", "/a", "wild"),
        ("a.b.example.org", "/a", "wild"),
        ("x.deep.example.org", "/a", "deep"),
        ("other.net", "/a", "any"),
        ("example.org.evil.net", "/a", "any"),
        ("notexample.org", "/a", "any"),
        ("[::1]:8000", "/a", "six"),
        ("[::1]", "/a", "six"),
        ("example.org", "/only-any/x", "only-any"),
    ],
)
def test_hosts_before_paths(host: str, path: str, name: str) -> None:
    routes = [
        Route("/a/b/c", Recorder("longer, for any")),
        Route("/only-any", Recorder("only-any")),
        Route("/", Recorder("any")),
        Route("/a", Recorder("host"), hosts=("example.org",)),
        Route("/a", Recorder("wild"), hosts=("*.example.org",)),
        Route("/a", Recorder("deep"), hosts=("*.deep.example.org",)),
        Route("/a", Recorder("six"), hosts=("[::1]",)),
    ]
    assert Router(routes).find(scope_of(path, host)).backend.name == name


def test_no_route() -> None:
    router = Router([Route("/a", Recorder("a"))])
    with pytest.raises(NotFound):
        router.find(scope_of("/b"))


def test_mount_and_name() -> None:
    mounted, plain = Recorder("mounted"), Recorder("plain")
    router = Router([Route("/app/", mounted, mount=True), Route("/", plain)])
    exchange = Exchange()
    ask(router, scope_of("/app/x", exchange=exchange))
    ask(router, scope_of("/x"))
    assert mounted.scopes[0]["root_path"] == "/app"
    assert mounted.scopes[0]["path"] == "/app/x"
    assert exchange.backend == "mounted"
    assert plain.scopes[0]["root_path"] == ""


def test_body_limit_of_the_backend() -> None:
    small, plain = Recorder("small", body_limit_bytes=3), Recorder("plain")
    router = Router([Route("/small", small), Route("/", plain)])
    with pytest.raises(ContentTooLarge):
        ask(router, scope_of("/small", exchange=Exchange(4)))
    ask(router, scope_of("/", exchange=Exchange(4)))
    with pytest.raises(ContentTooLarge):
        ask(router, scope_of("/", exchange=Exchange(101)))


def test_local_redirect_enters_the_router_again() -> None:  # CGI-6.2.2
    script = Recorder("script", local_redirects=10, targets=[b"//pages/./a%20b?x=%31"])
    pages = Recorder("pages")
    router = Router([Route("/cgi", script, mount=True), Route("/pages", pages)])
    exchange = Exchange()
    ask(router, scope_of("/cgi/x", exchange=exchange))
    (scope,) = pages.scopes
    assert scope["method"] == "GET"
    assert scope["path"] == "/pages/a b"
    assert scope["query_string"] == b"x=%31"
    assert scope["root_path"] == ""
    assert scope["headers"] == [(b"host", b"example.org"), (b"x-kept", b"1")]
    assert pages.bodies == [b""]
    assert exchange.backend == "pages"
    assert exchange.complete_at == 5.0


def test_local_redirect_to_itself_ends() -> None:  # E4
    script = Recorder("script", local_redirects=10, targets=[b"/cgi"] * 100)
    with pytest.raises(InternalError, match="too many local redirects"):
        ask(Router([Route("/cgi", script)]), scope_of("/cgi"))
    assert len(script.scopes) == 11


def test_local_redirect_out_of_the_root_is_refused() -> None:
    script = Recorder("script", local_redirects=10, targets=[b"/../etc"])
    with pytest.raises(BadGateway):
        ask(Router([Route("/", script)]), scope_of("/"))


def test_an_authorizer_is_asked_first() -> None:
    keeper = Doorkeeper(open={"REMOTE_USER": "ada", "LEVEL": "3"}, plain={})
    guarded = Recorder("guarded")
    router = Router([Route("/", guarded, authorizer=keeper)])
    exchange = Exchange(4)
    scope = scope_of("/open", exchange=exchange)
    ask(router, scope)
    (passed,) = guarded.scopes
    assert passed["extensions"]["tetrapylon.authorizer"] == {"REMOTE_USER": "ada", "LEVEL": "3"}
    assert passed["extensions"]["tetrapylon"] is exchange
    assert guarded.bodies == [b"body"]
    assert (exchange.backend, exchange.user) == ("guarded", "ada")
    assert exchange.complete_at == 5.0
    assert keeper.scopes == [scope]
    assert "tetrapylon.authorizer" not in scope["extensions"]

    exchange = Exchange()
    ask(router, scope_of("/plain", exchange=exchange))
    assert guarded.scopes[1]["extensions"]["tetrapylon.authorizer"] == {}
    assert (exchange.backend, exchange.user) == ("guarded", "")

    # Who refused is whose answer it is.
    exchange = Exchange()
    ask(router, scope_of("/closed", exchange=exchange))
    assert len(guarded.scopes) == 2
    assert (exchange.backend, exchange.user) == ("doorkeeper", "")


def test_a_failing_authorizer_lets_nobody_pass() -> None:
    class Failing(Doorkeeper):
        async def authorize(self, scope: Scope, receive: Receive, send: Send) -> None:
            raise BadGateway("it died")

    guarded = Recorder("guarded")
    exchange = Exchange()
    with pytest.raises(BadGateway):
        ask(Router([Route("/", guarded, authorizer=Failing())]), scope_of("/", exchange=exchange))
    assert guarded.scopes == []
    assert exchange.backend == "doorkeeper"


def test_a_local_redirect_leads_to_the_authorizer_of_its_new_route() -> None:
    keeper = Doorkeeper(cgi={"REMOTE_USER": "ada"})
    script = Recorder("script", local_redirects=10, targets=[b"/secret/x", b"/pages"])
    secret, pages = Recorder("secret"), Recorder("pages")
    router = Router(
        [
            Route("/cgi", script, authorizer=keeper),
            Route("/secret", secret, authorizer=keeper),
            Route("/pages", pages),
        ]
    )
    ask(router, scope_of("/cgi"))
    assert [scope["path"] for scope in keeper.scopes] == ["/cgi", "/secret/x"]
    assert secret.scopes == []
    ask(router, scope_of("/cgi"))
    (scope,) = pages.scopes
    # What was found out about the first request says nothing about the next.
    assert "tetrapylon.authorizer" not in scope["extensions"]
    assert keeper.scopes[1]["method"] == "GET"


def test_an_authorizer_before_a_redirect_out_of_nowhere() -> None:
    keeper = Doorkeeper(app={})
    application = Recorder("application", targets=[b"/x"])
    with pytest.raises(InternalError):
        ask(Router([Route("/", application, authorizer=keeper)]), scope_of("/app"))

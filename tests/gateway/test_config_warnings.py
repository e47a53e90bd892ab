"""Surprises in configurations that are valid."""

import socket
from pathlib import Path

import pytest

from tetrapylon.gateway.config import Config, load
from tetrapylon.gateway.config_warnings import warnings


def warned(routes: list[dict], base: Path, **tables: object) -> list[str]:
    config = Config.from_dict({"routes": routes, **tables}, base=base)
    return [text for _, text in warnings(config)]


def route(path: str, **backend: object) -> dict:
    return {"path": path, "backend": backend}


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "site/cgi-bin").mkdir(parents=True)
    (tmp_path / "shop.py").touch()
    return tmp_path


def test_an_ordinary_configuration_has_none(site) -> None:
    routes = [
        route("/static/", static="site"),
        route("/", wsgi="shop:app"),
        route("/json/", asgi="json:loads"),
        route("/news", wsgi="shop:app"),
    ]
    assert warned([*routes, route("/site/cgi-bin/", cgi="site/cgi-bin")], site) == [
        "the sources of CGI scripts can be read under /static/cgi-bin"
    ]
    assert warned(routes, site) == []


@pytest.mark.parametrize("path", ["/events", "/api/sse/", "/live", "/a/event-stream"])
def test_a_stream_behind_few_threads(site, path) -> None:
    (text,) = warned([route(path, wsgi="shop:app", threads=4)], site)
    assert "with 4 threads the next client after 4 waits" in text
    assert warned([route(path, wsgi="shop:app", threads=200)], site) == []
    assert warned([route(path, asgi="shop:app")], site) == []


def test_a_stream_of_a_script_ends_with_its_time(site) -> None:
    (text,) = warned([route("/events", cgi="site/cgi-bin", timeout="1m")], site)
    assert "ends after 60 s" in text


@pytest.mark.parametrize("path", ["/ws", "/chat/websocket", "/socket.io/"])
@pytest.mark.parametrize("backend", [{"wsgi": "shop:app"}, {"cgi": "site/cgi-bin"}])
def test_a_websocket_where_there_can_be_none(site, path, backend) -> None:
    (text,) = warned([route(path, **backend)], site)
    assert "WebSocket" in text


def test_a_backend_that_nobody_asks(site) -> None:
    backends = {"spare": {"wsgi": "shop:app"}}
    assert warned([route("/", wsgi="shop:app")], site, backends=backends) == [
        "no route leads to backend 'spare'"
    ]


def test_an_authorizer_is_asked(site) -> None:
    backends = {"login": {"fastcgi": "127.0.0.1:9000"}}
    routes = [{**route("/", wsgi="shop:app"), "authorizer": "login"}]
    assert warned(routes, site, backends=backends) == []


def test_slashes_that_lead_round_an_authorizer(site) -> None:
    backends = {"login": {"fastcgi": "127.0.0.1:9000"}}
    guarded = {**route("/admin/", wsgi="shop:app"), "authorizer": "login"}
    (text,) = warned([guarded], site, backends=backends, http={"merge_slashes": False})
    assert text.startswith("'//admin/' is another path with 'merge_slashes = false'")
    assert warned([guarded], site, backends=backends) == []
    whole = {**guarded, "path": "/"}
    assert warned([whole], site, backends=backends, http={"merge_slashes": False}) == []


def test_a_way_round_an_authorizer(site) -> None:
    (site / "site/members/inner").mkdir(parents=True)
    backends = {"login": {"fastcgi": "127.0.0.1:9000"}}
    guarded = {**route("/area/", static="site/members"), "authorizer": "login"}
    public = route("/", static="site")
    (text,) = warned([guarded, public], site, backends=backends)
    assert text == "without asking 'login' these files can be read under /members"
    (text,) = warned([guarded, route("/x/", static="site/members")], site, backends=backends)
    assert text == "without asking 'login' these files can be read under /x"
    # Behind the same path, or beside it, there is no other way.
    same = {**guarded, "path": "/members/"}
    assert warned([same, public], site, backends=backends) == []
    beside = route("/", static="site/members/inner")
    assert warned([guarded, beside], site, backends=backends) == []
    # Files beside scripts are files, too.
    scripts = route("/", fastcgi="127.0.0.1:9001", root="site", files=True)
    (text,) = warned([guarded, scripts], site, backends=backends)
    assert text == "without asking 'login' these files can be read under /members"
    assert warned([same, scripts], site, backends=backends) == []


@pytest.mark.parametrize(
    ("guard", "other", "is_guarded"),
    [
        (["a.example"], ["a.example"], True),
        (["a.example", "b.example"], ["b.example"], True),
        ([], ["a.example"], False),
        (["a.example"], [], False),
        (["a.example"], ["a.example", "b.example"], False),
        (["*.example"], ["a.example"], False),
    ],
)
def test_an_authorizer_of_another_host_guards_nothing(site, guard, other, is_guarded) -> None:
    (site / "site/members").mkdir()
    backends = {"login": {"fastcgi": "127.0.0.1:9000"}}
    guarded = {**route("/members/", static="site/members"), "authorizer": "login", "host": guard}
    public = {**route("/", static="site"), "host": other}
    found = warned([guarded, public], site, backends=backends)
    text = "without asking 'login' these files can be read under /members"
    assert found == ([] if is_guarded else [text])


def test_a_module_that_is_not_there(site) -> None:
    (text,) = warned([route("/", asgi="absent.module:app")], site)
    assert "there is no module 'absent'" in text
    assert warned([route("/", asgi="shop.sub:app")], site) == []


def test_sockets_that_are_not_there_or_none_or_not_ours(site) -> None:
    for kind in ("fastcgi", "scgi", "uwsgi"):
        (text,) = warned([route("/", **{kind: "unix:app.sock"})], site)
        assert "is the application running?" in text
    (site / "app.sock").touch()
    (text,) = warned([route("/", proxy="unix:app.sock")], site)
    assert "is not a socket" in text
    (site / "app.sock").unlink()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(site / "app.sock"))
        assert warned([route("/", fastcgi="unix:app.sock")], site) == []
    assert warned([route("/", fastcgi="unix:none.sock", spawn=["sh"])], site) == []


def test_restarts_that_never_come_or_lose_something(site, monkeypatch) -> None:
    monkeypatch.delenv("PHP_FCGI_MAX_REQUESTS", raising=False)

    def said(**spec) -> list[str]:
        return warned([route("/", **spec)], site)

    (text,) = said(spawn=["sh", "-c", "true"], restart_on_change=True)
    assert text.startswith("'restart_on_change = true' looks at sh alone")
    assert said(spawn=["sh", "shop.py"], restart_on_change=True) == []
    assert said(spawn=["sh", "-c", "true"], restart_on_change=["site"]) == []
    (site / "php-cgi8.2").touch(0o755)
    (text,) = said(spawn=["./php-cgi8.2"], max_requests=1000)
    assert text.startswith("php-cgi8.2 ends by itself after 500 requests")
    assert said(spawn=["./php-cgi8.2"], max_requests=100) == []
    env = {"PHP_FCGI_MAX_REQUESTS": "0"}
    assert said(spawn=["./php-cgi8.2"], max_requests=1000, env=env) == []
    (text,) = said(spawn=["sh"], fastcgi="127.0.0.1:9000", touch_reload="x")
    assert text.startswith("at 127.0.0.1:9000 old and new processes share one socket")
    assert said(spawn=["sh"], fastcgi="127.0.0.1:9000") == []


def test_sources_that_can_be_read(site) -> None:
    files = route("/", static="site")
    (text,) = warned([files, route("/run/", cgi="site/cgi-bin")], site)
    assert text == "the sources of CGI scripts can be read under /cgi-bin"
    assert warned([files, route("/cgi-bin/", cgi="site/cgi-bin")], site) == []
    (site / "site/page.php").touch()
    (text,) = warned([files], site)
    assert "page.php is sent as it is written" in text


def test_the_configuration_itself_that_can_be_read(site) -> None:
    file = site / "tetrapylon.toml"
    file.write_text('[[routes]]\nbackend = { static = "." }\n')
    (warning,) = warnings(load(file))
    assert warning == (
        f"{file}:1",
        f"the folder of the configuration itself can be read by everyone: {site}",
    )

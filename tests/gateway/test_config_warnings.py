"""Surprises in configurations that are valid."""

import os
import socket
from pathlib import Path

import pytest

from tetrapylon.gateway.config import Config, load
from tetrapylon.gateway.config_warnings import warnings


def warned(routes: list[dict], base: Path, **tables: object) -> list[str]:
    config = Config.from_dict({"routes": routes, **tables}, base=base)
    return [text for _, text in warnings(config) if "run as root" not in text]


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


def test_a_module_that_is_not_there(site) -> None:
    (text,) = warned([route("/", asgi="absent.module:app")], site)
    assert "there is no module 'absent'" in text
    assert warned([route("/", asgi="shop.sub:app")], site) == []


def test_sockets_that_are_not_there_or_none_or_not_ours(site) -> None:
    (text,) = warned([route("/", fastcgi="unix:app.sock")], site)
    assert "is the application running?" in text
    (site / "app.sock").touch()
    (text,) = warned([route("/", proxy="unix:app.sock")], site)
    assert "is not a socket" in text
    (site / "app.sock").unlink()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(site / "app.sock"))
        assert warned([route("/", fastcgi="unix:app.sock")], site) == []
    assert warned([route("/", fastcgi="unix:none.sock", spawn=["sh"])], site) == []


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


def test_scripts_run_as_root(site, monkeypatch) -> None:
    config = Config.from_dict({"routes": [route("/", cgi="site/cgi-bin")]}, base=site)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert ["run as root" in text for _, text in warnings(config)] == [True]
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert list(warnings(config)) == []

"""The configuration as a whole: what is read, what is refused, and what is said of it."""

import math
import stat
import tomllib
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tetrapylon.gateway import limits
from tetrapylon.gateway.config import (
    FOREVER_S,
    UNLIMITED,
    AsgiSpec,
    CgiSpec,
    Config,
    ConfigError,
    Endpoint,
    FastCgiSpec,
    ProxySpec,
    RedirectSpec,
    ScgiSpec,
    StaticSpec,
    UwsgiSpec,
    WsgiSpec,
    load,
)

ROUTE = {"path": "/", "backend": {"wsgi": "shop:app"}}


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder with a bit of everything."""
    for name in ("cgi-bin", "public", "blog", "lib"):
        (tmp_path / name).mkdir()
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    (tmp_path / "script.py").write_text("")
    return tmp_path


def write(site: Path, text: str) -> Path:
    file = site / "tetrapylon.toml"
    file.write_text(text)
    return file


def problems_of(data: dict, base: Path | str = ".") -> list[str]:
    with pytest.raises(ConfigError) as raised:
        Config.from_dict(data, base=base)
    return str(raised.value).splitlines()


def backend_problems(backend: dict, base: Path | str = ".") -> list[str]:
    data = {"backends": {"b": backend}, "routes": [{"path": "/", "backend": "b"}]}
    return problems_of(data, base)


def spec_of(backend: dict, base: Path | str = ".", **tables: object):
    data = {"backends": {"b": backend}, "routes": [{"path": "/", "backend": "b"}], **tables}
    return Config.from_dict(data, base=base).backends["b"]


def test_the_file_of_the_architecture(site) -> None:
    file = write(
        site,
        """\
[listen]
bind = ["127.0.0.1:8000"]

[backends.blog]
fastcgi = "unix:/run/php/php-fpm.sock"
root = "blog"
index = "index.php"

[backends.shop]
wsgi = "shop:app"
threads = 16

[[routes]]
path = "/blog/"
backend = "blog"

[[routes]]
path = "/cgi-bin/"
backend = { cgi = "./cgi-bin", timeout = "30s" }

[[routes]]
path = "/api/"
backend = { asgi = "api.main:app" }
mount = true

[[routes]]
path = "/"
backend = "shop"
""",
    )
    config = load(file)
    assert config.listen.bind == (Endpoint("127.0.0.1", 8000),)
    assert config.base == str(site)
    assert config.import_path == (str(site),)
    assert set(config.backends) == {"blog", "shop", "/cgi-bin/", "/api/"}
    blog, shop = config.backends["blog"], config.backends["shop"]
    assert isinstance(blog, FastCgiSpec)
    assert (blog.addresses, blog.root) == (("unix:/run/php/php-fpm.sock",), str(site / "blog"))
    assert blog.index == ("index.php",)
    assert isinstance(shop, WsgiSpec)
    assert (shop.name, shop.application, shop.threads) == ("shop", "shop:app", 16)
    assert shop.place == f"{file}:9"
    cgi = config.backends["/cgi-bin/"]
    assert isinstance(cgi, CgiSpec)
    assert (cgi.script, cgi.timeout_s) == (str(site / "cgi-bin"), 30.0)
    assert [(route.path, route.backend, route.mount) for route in config.routes] == [
        ("/blog/", "blog", True),
        ("/cgi-bin/", "/cgi-bin/", True),
        ("/api/", "/api/", True),
        ("/", "shop", False),
    ]
    assert [route.place for route in config.routes] == [f"{file}:{n}" for n in (13, 17, 21, 26)]


def test_defaults_are_those_of_the_limits() -> None:
    config = Config.from_dict({"routes": [ROUTE]})
    assert config.limits.body_bytes == limits.BODY_BYTES
    assert config.timeouts.header_s == limits.HEADER_S
    assert config.cgi.rlimits.by_name() == {
        "cpu": 30,
        "as": 512 << 20,
        "nofile": 64,
        "nproc": 256,
        "fsize": 64 << 20,
        "core": 0,
    }
    assert config.access_log.file == "-"


def test_every_kind_of_backend_is_a_struct_of_its_own(site) -> None:
    assert isinstance(spec_of({"cgi": "program"}, site), CgiSpec)
    assert isinstance(spec_of({"asgi": "m:app"}, site), AsgiSpec)
    assert spec_of({"static": "public"}, site).root == str(site / "public")
    assert isinstance(spec_of({"static": "public"}, site), StaticSpec)
    assert spec_of({"redirect": "https://example.com{path}"}, site).status == 308
    assert isinstance(spec_of({"redirect": "/new/"}, site), RedirectSpec)
    assert spec_of({"proxy": "http://localhost"}, site).address == "http://localhost:80"
    assert isinstance(spec_of({"proxy": "unix:up.sock"}, site), ProxySpec)
    scgi = spec_of({"scgi": ["127.0.0.1:4000", "unix:app.sock", "srv:_a._tcp.b"]}, site)
    assert isinstance(scgi, ScgiSpec)
    assert scgi.addresses == ("127.0.0.1:4000", f"unix:{site}/app.sock", "srv:_a._tcp.b")
    uwsgi = spec_of({"uwsgi": "localhost:3031", "modifier1": 14, "first_byte": "0s"}, site)
    assert isinstance(uwsgi, UwsgiSpec)
    assert (uwsgi.modifier1, uwsgi.modifier2) == (14, 0)
    assert uwsgi.first_byte_s == FOREVER_S
    spawned = spec_of({"spawn": ["./program", "x/y"]}, site)
    assert spawned.spawn == (str(site / "program"), "x/y")
    assert spawned.addresses == ()
    assert spawned.restart_on_change is None
    watched = spec_of({"spawn": ["sh"], "restart_on_change": ["script.py", "blog"]}, site)
    assert watched.restart_on_change == (str(site / "script.py"), str(site / "blog"))
    assert spec_of({"spawn": ["sh"], "restart_on_change": True}, site).restart_on_change == ()
    assert spec_of({"spawn": ["sh"], "restart_on_change": False}, site).restart_on_change is None
    touched = spec_of({"spawn": ["sh"], "touch_reload": "absent", "max_memory": "1GiB"}, site)
    assert touched.touch_reload == str(site / "absent")
    assert touched.max_memory_bytes == 1 << 30
    both = spec_of({"spawn": ["sh"], "fastcgi": "unix:app.sock"}, site)
    assert both.addresses == (f"unix:{site}/app.sock",)


def test_what_a_backend_is_called_is_for_people(site) -> None:
    descriptions = {
        spec_of(backend, site).describe()
        for backend in (
            {"cgi": "cgi-bin"},
            {"cgi": "program"},
            {"fastcgi": "127.0.0.1:9000", "root": "blog"},
            {"spawn": ["sh", "-c", "true"]},
            {"scgi": ["127.0.0.1:4000", "127.0.0.1:4001"]},
            {"uwsgi": "127.0.0.1:3031", "root": "blog"},
            {"wsgi": "shop:app"},
            {"asgi": "shop:app"},
            {"static": "public"},
            {"redirect": "/x"},
            {"proxy": "http://127.0.0.1:1"},
        )
    }
    assert descriptions == {
        f"CGI scripts in {site}/cgi-bin",
        f"CGI program {site}/program",
        f"FastCGI at 127.0.0.1:9000, scripts in {site}/blog",
        "FastCGI by sh -c true",
        "SCGI at 127.0.0.1:4000, 127.0.0.1:4001",
        f"uwsgi at 127.0.0.1:3031, scripts in {site}/blog",
        "WSGI application shop:app, 8 threads",
        "ASGI application shop:app",
        f"files in {site}/public",
        "redirect to /x",
        "proxy to http://127.0.0.1:1",
    }


def test_a_kind_s_table_is_the_default_of_its_backends(site) -> None:
    cgi = {
        "timeout": "5s",
        "children": 3,
        "env": {"A": "1", "B": "1"},
        "rlimits": {"cpu": "7s", "as": "1GiB"},
    }
    own = {"cgi": "cgi-bin", "children": 4, "env": {"B": "2"}, "rlimits": {"as": "2GiB"}}
    spec = spec_of(own, site, cgi=cgi)
    assert (spec.timeout_s, spec.children, spec.queue) == (5.0, 4, limits.QUEUE)
    assert spec.env == {"A": "1", "B": "2"}
    assert spec.rlimits.by_name() | {"fsize": 0} == {
        "cpu": 7,
        "as": 2 << 30,
        "nofile": 64,
        "nproc": 256,
        "fsize": 0,
        "core": 0,
    }


def test_zero_is_no_limit_and_compares_as_one() -> None:
    config = Config.from_dict(
        {
            "routes": [ROUTE],
            "limits": {"body": 0, "requests_per_connection": 0, "connection_age": "0"},
            "timeouts": {"header": 0, "linger": "0"},
            "wsgi": {"body": "0"},
        }
    )
    assert config.limits.body_bytes == UNLIMITED
    assert config.limits.requests_per_connection == UNLIMITED
    assert math.isinf(config.limits.connection_age_s)
    assert math.isinf(config.timeouts.header_s)
    assert config.timeouts.linger_s == 0
    assert config.backends["/"].body_bytes == UNLIMITED


def test_a_body_limit_not_given_is_the_listener_s() -> None:
    assert spec_of({"wsgi": "m:app"}).body_bytes is None
    assert spec_of({"wsgi": "m:app", "body": "1KiB"}).body_bytes == 1024


def test_part_of_a_second_of_cpu_is_not_taken_for_no_limit(site) -> None:
    spec = spec_of({"cgi": "cgi-bin", "rlimits": {"cpu": "200ms"}}, site)
    assert spec.rlimits.by_name()["cpu"] == 1


@pytest.mark.parametrize(
    ("kind", "is_mounted"),
    [
        ({"cgi": "cgi-bin"}, True),
        ({"fastcgi": "127.0.0.1:9000"}, True),
        ({"static": "public"}, True),
        ({"wsgi": "m:app"}, False),
        ({"asgi": "m:app"}, False),
        ({"proxy": "http://127.0.0.1:1"}, False),
        ({"redirect": "/x"}, False),
    ],
)
def test_mount_is_as_the_kind_is_wont_to_unless_it_is_said(site, kind, is_mounted) -> None:
    def mount(**said: bool) -> bool:
        route = {"path": "/x/", "backend": kind, **said}
        return Config.from_dict({"routes": [route]}, base=site).routes[0].mount

    assert mount() is is_mounted
    assert mount(mount=True) is True
    assert mount(mount=False) is False


def test_inline_backends_of_one_path_on_two_hosts_have_two_names() -> None:
    config = Config.from_dict(
        {
            "routes": [
                {"path": "/", "host": "a.example", "backend": {"wsgi": "a:app"}},
                {"path": "/", "host": ["B.example", "*.c.example"], "backend": {"wsgi": "b:app"}},
            ]
        }
    )
    assert [route.hosts for route in config.routes] == [
        ("a.example",),
        ("b.example", "*.c.example"),
    ]
    applications = [config.backends[route.backend].application for route in config.routes]
    assert applications == ["a:app", "b:app"]


def test_paths_begin_at_the_file_s_folder_wherever_the_process_is(site, monkeypatch) -> None:
    file = write(
        site,
        '[python]\npath = ["lib"]\n[access_log]\nfile = "access.log"\n'
        '[[routes]]\npath = "/"\nbackend = { static = "public" }\n',
    )
    monkeypatch.chdir(site / "lib")
    config = load(Path("..") / file.name)
    assert Path(config.python.path[0]).samefile(site / "lib")
    assert Path(config.access_log.file).parent.samefile(site)
    assert Path(config.backends["/"].root).samefile(site / "public")
    assert all(Path(folder).is_absolute() for folder in config.import_path)


def test_a_configuration_is_frozen() -> None:
    config = Config.from_dict({"routes": [ROUTE]})
    for thing in (config, config.limits, config.backends["/"], config.routes[0]):
        with pytest.raises(AttributeError):
            thing.place = "elsewhere"  # type: ignore[attr-defined]


# What is wrong: all of it at once, each with its line.


def test_all_errors_are_reported_at_their_lines(site) -> None:
    file = write(
        site,
        """\
[listen]
bind = ["127.0.0.1:8000", ":80"]
backlogg = 1

[cgi]
timeout = 30

[backends.shop]
wsgi = "shop:app"
thread = 16

[backends.two]
wsgi = "a:b"
asgi = "a:b"

[backends.none]
wsgl = "a:b"

[[routes]]
path = "/shop"
backend = "shpo"

[[routes]]
path = "/shop/"
backend = { cgi = "absent", timeout = "soon" }

[[routes]]
path = "/ok"
backend = "two"
""",
    )
    with pytest.raises(ConfigError) as raised:
        load(file)
    assert [line.removeprefix(str(file)) for line in str(raised.value).splitlines()] == [
        ":2: listen.bind: ':80' has no host; \"127.0.0.1:80\" is this machine alone, "
        '"0.0.0.0:80" everyone',
        ":3: listen.backlogg: unknown key; did you mean 'backlog'?",
        ':6: cgi.timeout: 30 has no unit; write "30s" or "30ms"',
        ":10: backends.shop.thread: unknown key; did you mean 'threads'?",
        ":14: backends.two.asgi: a backend has one protocol, not 'wsgi' and 'asgi'",
        ":16: backends.none: no protocol; one of these keys is needed: cgi, fastcgi, spawn, scgi, "
        "uwsgi, wsgi, asgi, static, redirect, proxy; did you mean 'wsgi'?",
        ":21: routes[0].backend: no backend is named 'shpo'; did you mean 'shop'?",
        ":24: routes[1].path: '/shop/' is already routed (routes[0], line 19)",
        f":25: routes[1].backend.cgi: no such folder or program: {site}/absent",
        ":25: routes[1].backend.timeout: 'soon' is not a time; write it like \"10s\", "
        '"500ms" or "1h"',
    ]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({}, "routes: nothing would be served"),
        ({"routes": []}, "routes: nothing would be served"),
        ({"routes": {"path": "/"}}, "write [[routes]]"),
        ({"routes": "x"}, "write [[routes]]"),
        ({"routes": ["x"]}, "routes[0]: expected a table"),
        ({"routes": [{"path": "/"}]}, "routes[0]: no backend"),
        ({"routes": [{"path": "/", "backend": 1}]}, "routes[0].backend: expected the name"),
        ({"routes": [{**ROUTE, "paht": "/"}]}, "routes[0].paht: unknown key; did you mean 'path'?"),
        ({"routes": [{**ROUTE, "path": "shop"}]}, 'did you mean "/shop"?'),
        ({"routes": [{**ROUTE, "path": "/a%20b"}]}, "not percent-encoded"),
        ({"routes": [{**ROUTE, "path": "/a/../b"}]}, "requests never have such a path"),
        ({"routes": [{**ROUTE, "path": "//a"}]}, "requests never have such a path"),
        ({"routes": [{**ROUTE, "path": "/a*"}]}, "wild cards"),
        ({"routes": [{**ROUTE, "host": "a:80"}]}, "do not look at the port"),
        ({"routes": [{**ROUTE, "mount": "yes"}]}, "expected true or false, got 'yes'"),
        ({"routes": [ROUTE], "backend": {}}, "backend: unknown key; did you mean 'backends'?"),
        ({"routes": [ROUTE], "backends": 1}, "backends: expected a table, got 1"),
        ({"routes": [ROUTE], "backends": {"b": 1}}, "backends.b: expected a table, got 1"),
        ({"routes": [ROUTE], "backends": {"a b": {"wsgi": "m:a"}}}, "is made of letters"),
        ({"routes": [ROUTE], "limits": 1}, "limits: expected a table, got 1"),
        ({"routes": [ROUTE], "limits": {"headers": "32K"}}, 'did you mean "32KiB"?'),
        ({"routes": [ROUTE], "limits": {"headers": 0}}, "lets nothing through"),
        ({"routes": [ROUTE], "limits": {"header_count": 0}}, "expected 1 or more, got 0"),
        (
            {"routes": [ROUTE], "limits": {"header_count": True}},
            "expected a whole number, got true",
        ),
        ({"routes": [ROUTE], "http": {"engine": "h12"}}, "did you mean 'h11'?"),
        ({"routes": [ROUTE], "access_log": {"file": "/absent/x"}}, "no such folder: /absent"),
        ({"routes": [ROUTE], "access_log": {"file": "/"}}, "a folder, not a file"),
        ({"routes": [ROUTE], "listen": {"bind": []}}, "nothing to listen on"),
        ({"routes": [ROUTE], "listen": {"bind": "unix:/absent/x.sock"}}, "no such folder: /absent"),
        ({"routes": [ROUTE], "listen": {"bind": 8000}}, 'did you mean "127.0.0.1:8000"?'),
        ({"routes": [ROUTE], "listen": {"bind": ["[::1]:1", "[0::1]:1"]}}, "is given twice"),
        ({"routes": [ROUTE], "python": {"path": "absent"}}, "no such folder"),
    ],
)
def test_what_is_wrong_is_said_with_its_key_and_a_hint(data, said) -> None:
    (problem,) = problems_of(data)
    assert said in problem


@pytest.mark.parametrize(
    ("backend", "said"),
    [
        ({"wsgi": "shop.py"}, "did you mean 'shop:app'?"),
        ({"wsgi": 1}, "expected a text in quotes, got 1"),
        ({"wsgi": "m:a", "queue": -1}, "expected 0 or more"),
        ({"cgi": "absent"}, "no such folder or program"),
        ({"cgi": "script.py"}, "not executable"),
        ({"cgi": "cgi-bin", "interpreters": {"py": "python3"}}, "is not the end of a name"),
        ({"cgi": "cgi-bin", "interpreters": {".py": "no-such"}}, "no such program: no-such"),
        ({"cgi": "cgi-bin", "env": {"A": 1}}, "'A': expected a text in quotes, got 1"),
        ({"cgi": "cgi-bin", "env": {"A=B": "1"}}, "is no variable's name"),
        ({"cgi": "cgi-bin", "rlimits": {"as": "1KiB"}}, "b.rlimits: limit 'as'"),
        ({"cgi": "cgi-bin", "user": "nobodi"}, "no such user: nobodi; did you mean 'nobody'?"),
        ({"cgi": "cgi-bin", "user": ""}, "expected a user's name in quotes, got ''"),
        ({"cgi": "cgi-bin", "user": -1}, "expected a user's name in quotes, got -1"),
        ({"cgi": "cgi-bin", "user": "nobody", "group": "rot"}, "no such group: rot"),
        ({"cgi": "cgi-bin", "group": "root"}, "b.group: has an effect only with 'user'"),
        ({"spawn": ["sh"], "group": 0}, "b.group: has an effect only with 'user'"),
        ({"fastcgi": "127.0.0.1:9", "user": 0}, "b.user: has an effect only with 'spawn'"),
        ({"cgi": "cgi-bin", "rlimits": {"mem": 1}}, "b.rlimits.mem: unknown key"),
        ({"cgi": "cgi-bin", "rlimits": 1}, "b.rlimits: expected a table, got 1"),
        ({"fastcgi": "/run/x.sock"}, 'did you mean "unix:/run/x.sock"?'),
        ({"fastcgi": []}, "expected an address, got an empty list"),
        ({"fastcgi": ["10.0.0.1:9000", "nowhere"]}, "'nowhere' has no port"),
        ({"fastcgi": ["unix:a.sock", "unix:./a.sock"]}, "'unix:./a.sock' is given twice"),
        ({"fastcgi": "srv:app.test"}, "is not like srv:_service._tcp.example.com"),
        ({"fastcgi": ["unix:a", "unix:b"], "spawn": ["sh"]}, "there is one socket"),
        ({"fastcgi": "srv:_f._tcp.app.test", "spawn": ["sh"]}, "there is one socket"),
        ({"fastcgi": "127.0.0.1:9000", "multiplex": 0}, "expected 1 or more"),
        ({"fastcgi": "127.0.0.1:9000", "breaker": -1}, "expected 0 or more"),
        ({"fastcgi": "127.0.0.1:9000", "breaker_window": 10}, "breaker_window"),
        ({"fastcgi": "127.0.0.1:9000", "resolve": "soon"}, "resolve"),
        ({"fastcgi": "tcp://127.0.0.1:9000"}, '"127.0.0.1:9000"'),
        ({"fastcgi": "127.0.0.1:9000", "root": "absent"}, "check_file = false"),
        ({"fastcgi": "127.0.0.1:9000", "index": "i.php"}, "has an effect only with 'root'"),
        ({"fastcgi": "127.0.0.1:9000", "processes": 2}, "has an effect only with 'spawn'"),
        ({"fastcgi": "127.0.0.1:9000", "max_requests": 2}, "has an effect only with 'spawn'"),
        ({"fastcgi": "127.0.0.1:9000", "restart_on_change": True}, "only with 'spawn'"),
        ({"fastcgi": "127.0.0.1:9000", "touch_reload": "x"}, "has an effect only with 'spawn'"),
        ({"spawn": ["sh"], "start": "later"}, 'b.start: expected one of "now", "demand"'),
        ({"spawn": ["sh"], "start": "demnd"}, "did you mean 'demand'?"),
        ({"spawn": ["sh"], "stop_idle": 300}, 'b.stop_idle: 300 has no unit; write "300s"'),
        ({"spawn": ["sh"], "max_requests": -1}, "b.max_requests: expected 0 or more"),
        ({"spawn": ["sh"], "max_requests": "many"}, "expected a whole number"),
        ({"spawn": ["sh"], "max_memory": "much"}, "b.max_memory: 'much' is not a size"),
        ({"spawn": ["sh"], "restart_on_change": 1}, "expected true, false or a list of paths"),
        ({"spawn": ["sh"], "restart_on_change": ["absent"]}, "no such file or folder: "),
        ({"spawn": ["sh"], "restart_on_change": [1]}, "expected a list of texts, got a list"),
        ({"spawn": ["sh"], "touch_reload": True}, "b.touch_reload: expected a text in quotes"),
        ({"spawn": ["sh"], "touch_relaod": "x"}, "did you mean 'touch_reload'?"),
        ({"fastcgi": "127.0.0.1:9000", "root": "blog", "split": "php"}, "is not the end of a name"),
        ({"scgi": "scgi://127.0.0.1:4000"}, 'write the address as "127.0.0.1:4000"'),
        ({"scgi": []}, "b.scgi: expected an address"),
        ({"scgi": "127.0.0.1:4000", "split": ".cgi"}, "b.split: has an effect only with 'root'"),
        ({"scgi": "127.0.0.1:4000", "root": "absent"}, "check_file = false"),
        ({"scgi": "127.0.0.1:4000", "modifier1": 5}, "b.modifier1: unknown key"),
        ({"scgi": "127.0.0.1:4000", "keep_alive": True}, "b.keep_alive: unknown key"),
        ({"scgi": "127.0.0.1:4000", "uwsgi": "127.0.0.1:4000"}, "one protocol, not 'scgi' and"),
        ({"uwsgi": "uwsgi://[::1]:3031"}, 'write the address as "[::1]:3031"'),
        ({"uwsgi": "/run/uwsgi.sock"}, 'did you mean "unix:/run/uwsgi.sock"?'),
        ({"uwsgi": "127.0.0.1:3031", "modifier1": 256}, "modifier1: expected 255 at the most"),
        ({"uwsgi": "127.0.0.1:3031", "modifier2": -1}, "modifier2: expected 0 or more, got -1"),
        ({"uwsgi": "127.0.0.1:3031", "modifer1": 5}, "did you mean 'modifier1'?"),
        ({"spawn": "sh -c x"}, 'write ["sh", "-c", "x"]'),
        ({"spawn": []}, "a program and its arguments"),
        ({"spawn": ["no-such-program"]}, "no such program: no-such-program"),
        ({"spawn": ["./script.py"]}, "no such program"),
        ({"static": "absent"}, "no such folder"),
        ({"static": "program"}, "not a folder"),
        ({"static": "public", "index": "a/b"}, "is not a file's name"),
        ({"static": "public", "mime": {".x": "text"}}, 'is not like "text/plain"'),
        ({"static": "public", "cache_control": "a\nb"}, "cannot be a header's value"),
        ({"static": "public", "symlinks": "outside"}, "did you mean 'inside'?"),
        ({"redirect": "example.com/x"}, "did you mean 'https://example.com/x'?"),
        ({"redirect": "https://example.com{pth}"}, "did you mean {path}?"),
        ({"redirect": "/x", "status": 200}, "expected one of 301"),
        ({"redirect": "/x", "statsu": 301}, "did you mean 'status'?"),
        ({"proxy": "https://example.com"}, "only http://"),
        ({"proxy": "localhost:80"}, 'did you mean "http://localhost:80"?'),
        ({"proxy": "http://localhost/x"}, "only a host and a port"),
        ({"proxy": "http://u:p@localhost"}, "only a host and a port"),
    ],
)
def test_what_is_wrong_with_a_backend(site, backend, said) -> None:
    (problem,) = backend_problems(backend, site)
    assert said in problem


def test_several_addresses(site) -> None:
    texts = ["unix:a.sock", "[::1]:9000", "php:9000", "srv:_fcgi._tcp.example.com"]
    spec = spec_of({"fastcgi": texts, "breaker_window": "0", "resolve": "1m"}, site)
    assert spec.addresses == (f"unix:{site}/a.sock", *texts[1:])
    assert spec.describe() == "FastCGI at " + ", ".join(spec.addresses)
    assert (spec.breaker, spec.breaker_window_s, spec.resolve_s) == (5, FOREVER_S, 60.0)
    assert (spec.multiplex, spec_of({"proxy": "http://a"}, site).breaker) == (1, 5)


def test_an_authorizer_is_a_fastcgi_backend_by_its_name() -> None:
    backends = {"login": {"fastcgi": "127.0.0.1:9000"}, "shop": {"wsgi": "shop:app"}}
    inline = {"path": "/x", "backend": {"spawn": ["sh"]}}
    for name, said in (
        ("login", None),
        ("/x", None),
        ("lgin", "routes[0].authorizer: no backend is named 'lgin'; did you mean 'login'?"),
        ("shop", "'shop' is a backend of the kind wsgi; authorizers speak FastCGI"),
        ("", "routes[0].authorizer: no backend is named ''"),
        (1, "routes[0].authorizer: expected a text in quotes, got 1"),
        ({"fastcgi": "a:1"}, "routes[0].authorizer: expected a text in quotes"),
    ):
        data = {
            "backends": backends,
            "routes": [{"path": "/", "backend": "shop", "authorizer": name}, inline],
        }
        if said is None:
            assert Config.from_dict(data).routes[0].authorizer == name
            assert Config.from_dict(data).routes[1].authorizer is None
        else:
            (problem,) = problems_of(data)
            assert said in problem


def test_an_authorizer_that_is_wrong_itself_is_no_second_error() -> None:
    data = {
        "backends": {"login": {"fastcgi": "nowhere"}},
        "routes": [{**ROUTE, "authorizer": "login"}],
    }
    (problem,) = problems_of(data)
    assert "backends.login.fastcgi" in problem


def test_a_root_that_only_the_application_sees_need_not_be_here() -> None:
    spec = spec_of({"fastcgi": "127.0.0.1:9000", "root": "/in/container", "check_file": False})
    assert spec.root == "/in/container"


def test_a_program_that_an_interpreter_runs_need_not_be_executable(site) -> None:
    spec = spec_of({"cgi": "script.py", "interpreters": {".py": "sh"}}, site)
    assert Path(spec.interpreters[".py"]).is_absolute()


def test_folders_that_files_are_sent_from(site) -> None:
    routes = [{"path": "/", "backend": {"static": "public", "ranges": 3}}]
    static = {"sendfile_roots": "public", "accel": {"/p/": "public"}, "ranges": 2}
    config = Config.from_dict({"static": static, "routes": routes}, base=site)
    assert config.static.sendfile_roots == (f"{site}/public",)
    assert config.static.accel == {"/p/": f"{site}/public"}
    assert config.static.ranges == 2
    assert config.backends["/"].ranges == 3


@pytest.mark.parametrize(
    ("static", "said"),
    [
        ({"sendfile_roots": ["absent"]}, "no such folder"),
        ({"sendfile_roots": 1}, "expected a list of texts, got 1"),
        ({"accel": {"p": "public"}}, "'p': a path begins with \"/\""),
        ({"accel": {"/p": "absent"}}, "'/p': no such folder"),
        ({"accel": "public"}, "expected a table of texts"),
    ],
)
def test_folders_that_no_files_are_sent_from(site, static, said) -> None:
    routes = [{"path": "/", "backend": {"static": "public"}}]
    (problem,) = problems_of({"static": static, "routes": routes}, site)
    assert said in problem


def test_a_backend_of_files_sends_none_for_others(site) -> None:
    (problem,) = backend_problems({"static": "public", "sendfile_roots": ["public"]}, site)
    assert "sendfile_roots: unknown key" in problem


def test_an_error_in_a_kind_s_table_is_reported_once(site) -> None:
    data = {
        "cgi": {"timeout": 3},
        "routes": [
            {"path": "/a", "backend": {"cgi": "cgi-bin"}},
            {"path": "/b", "backend": {"cgi": "cgi-bin"}},
        ],
    }
    assert len(problems_of(data, site)) == 1


def test_a_route_to_a_backend_that_is_wrong_is_no_second_error() -> None:
    data = {
        "backends": {"b": {"wsgi": "m:a", "threads": 0}},
        "routes": [{"path": "/", "backend": "b"}],
    }
    assert len(problems_of(data)) == 1


_texts = st.text("ab1é\U0001f600 .:/*%@[]{}=\"'\\\n\x00\x1b\x9b", max_size=8)
_json = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), _texts),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.one_of(
                st.sampled_from(
                    ["routes", "path", "backend", "wsgi", "cgi", "spawn", "host", "limits", "env"]
                ),
                _texts,
            ),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=15,
)


@settings(deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["routes", "backends", "cgi", "fastcgi", "limits", "listen", "x"]), _json
    )
)
def test_whatever_it_holds_a_file_is_read_or_refused_line_by_line(data) -> None:
    try:
        Config.from_dict(data)
    except ConfigError as error:
        assert len(str(error).split("\n")) == len(error.problems) > 0
        assert all(str(problem).isprintable() for problem in error.problems)


def test_the_structs_round_trip_as_python_objects(site) -> None:
    """The structs are the API for Python: what was read can be changed and kept."""
    config = Config.from_dict(
        tomllib.loads('[[routes]]\nbackend = { static = "public" }'), base=site
    )
    changed = msgspec.structs.replace(
        config, timeouts=msgspec.structs.replace(config.timeouts, graceful_s=1.0)
    )
    assert changed.timeouts.graceful_s == 1.0
    assert config.timeouts.graceful_s == limits.GRACEFUL_S

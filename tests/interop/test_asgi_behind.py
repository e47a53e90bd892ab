"""ASGI applications behind nginx, Apache and lighttpd, by CGI, FastCGI and SCGI."""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import http.client
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.interop

WITHIN_S = 20.0
MIB = 1 << 20

APPLICATION = """
import asyncio, hashlib, json, os
from pathlib import Path

HERE = Path(__file__).parent

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        with (HERE / "lives").open("a") as lives:
            print("up", file=lives)
        scope["state"]["up"] = True
        await send({"type": "lifespan.startup.complete"})
        await receive()
        with (HERE / "lives").open("a") as lives:
            print("down", file=lives)
        await send({"type": "lifespan.shutdown.complete"})
        return
    below = scope["path"].removeprefix(scope["root_path"])
    action = {"/stream": stream, "/leave": leave, "/raise": fail, "/later": fail}.get(below, facts)
    await action(scope, receive, send)

def start(*headers):
    headers = [(b"content-type", b"text/plain"), (b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")]
    return {"type": "http.response.start", "status": 201, "headers": headers}

async def facts(scope, receive, send):
    digest, length, more = hashlib.sha256(), 0, True
    while more:
        message = await receive()
        piece, more = message.get("body", b""), message.get("more_body", False)
        digest.update(piece)
        length += len(piece)
    told = {name: scope[name] for name in ("method", "path", "root_path", "scheme", "state")}
    told["raw_path"] = scope.get("raw_path", b"").decode("latin-1")
    told["query"] = scope["query_string"].decode("latin-1")
    told["headers"] = {name.decode(): value.decode("latin-1") for name, value in scope["headers"]}
    told |= {"length": length, "sha256": digest.hexdigest(), "client": scope["client"]}
    await send(start())
    await send({"type": "http.response.body", "body": json.dumps(told).encode()})

async def stream(scope, receive, send):
    await send(start())
    await send({"type": "http.response.body", "body": b"one\\n", "more_body": True})
    while not (HERE / "go").exists():
        await asyncio.sleep(0.01)
    await send({"type": "http.response.body", "body": b"two\\n"})

async def leave(scope, receive, send):
    try:
        await send(start())
        while True:
            await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
    except OSError:
        while (await receive())["type"] != "http.disconnect":
            pass
        (HERE / "left").touch()
        raise

async def fail(scope, receive, send):
    if scope["path"].endswith("/later"):
        await send(start())
        await send({"type": "http.response.body", "body": b"x" * 20000, "more_body": True})
    raise ValueError("internal")
"""
SCRIPT = """#!{python}
from probe import app
from tetrapylon.adapters.asgi_to_cgi import AsgiToCgi
AsgiToCgi(app).run()
"""

NGINX = """
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/nginx-error.log info;
worker_processes 1;
{user}
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {folder}/nginx-body;
    proxy_temp_path {folder}/nginx-proxy;
    fastcgi_temp_path {folder}/nginx-fastcgi;
    uwsgi_temp_path {folder}/nginx-uwsgi;
    scgi_temp_path {folder}/nginx-scgi;
    client_max_body_size 0;
    upstream application {{ server {upstream}; keepalive 4; }}
    server {{
        listen {address};
        location / {{
            {location}
        }}
    }}
}}
"""
APACHE = """
ServerRoot "{folder}"
DefaultRuntimeDir "{folder}"
PidFile "{folder}/httpd.pid"
ServerName localhost
Listen {address}
ErrorLog "{folder}/apache-error.log"
{modules}
StartServers 1
KeepAliveTimeout 1
{more}
"""
LIGHTTPD = """
server.document-root = "{folder}/cgi-bin"
server.bind = "127.0.0.1"
server.port = {port}
server.errorlog = "{folder}/lighttpd-error.log"
server.upload-dirs = ("{folder}")
server.stream-response-body = 2
server.max-request-size = 0
{more}
"""
APACHE_MODULES = ("/usr/lib/apache2/modules", "/usr/lib64/httpd/modules", "/usr/lib/httpd/modules")


@dataclass
class Site:
    """A web server in front of the probe: what this kind of it is known for."""

    address: str
    folder: Path
    #: What is in front of the application's own path.
    root_path: str = ""
    #: A process answers one request only.
    is_cgi: bool = False
    #: The web server sees that an answer without a length is not whole.
    sees_truncation: bool = False

    @contextlib.contextmanager
    def ask(self, method: str, path: str, *more: Any, **options: Any) -> Iterator[Any]:
        connection = http.client.HTTPConnection(self.address, timeout=WITHIN_S)
        with contextlib.closing(connection):
            connection.request(method, self.root_path + path, *more, **options)
            yield connection.getresponse()

    def facts(self, method: str, path: str, *more: Any, **options: Any) -> Any:
        with self.ask(method, path, *more, **options) as answer:
            assert answer.status == 201
            return json.loads(answer.read())


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that other users can read, with a path short enough for sockets."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as path:
        folder = Path(path)
        folder.chmod(0o777)
        (folder / "probe.py").write_text(APPLICATION)
        (folder / "cgi-bin").mkdir()
        script = folder / "cgi-bin" / "app.py"
        script.write_text(SCRIPT.format(python=sys.executable))
        script.chmod(0o755)
        shutil.copy(folder / "probe.py", folder / "cgi-bin" / "probe.py")
        yield folder


KINDS = (
    *("nginx fastcgi", "nginx fastcgi tcp", "nginx scgi"),
    *("apache cgi", "apache fastcgi", "apache fastcgi kept", "apache scgi"),
    *("lighttpd cgi", "lighttpd fastcgi", "lighttpd scgi"),
)


@dataclass
class Servers:
    """Starts web servers, each with a few lines of configuration; gives their addresses."""

    folder: Path
    find: Any
    start: Any
    free_address: Callable[[], str]

    def nginx(self, upstream: str, location: str) -> str:
        address = self.free_address()
        text = NGINX.format(
            folder=self.folder,
            user=f"user {getpass.getuser()};" if os.geteuid() == 0 else "",
            upstream=upstream,
            address=address,
            location=location,
        )
        (self.folder / "nginx.conf").write_text(text)
        program = self.find("nginx", package="nginx-light")
        files = ("-c", f"{self.folder}/nginx.conf", "-e", f"{self.folder}/nginx-error.log")
        self.start(program, *files, address=address)
        return address

    def apache(self, names: tuple[str, ...], lines: str) -> str:
        address = self.free_address()
        modules = next(path for path in APACHE_MODULES if os.path.isdir(path))
        loads = [
            f"LoadModule {name}_module {modules}/mod_{name}.so"
            for name in ("mpm_event", "authz_core", "unixd", "alias", *names)
            if os.path.exists(f"{modules}/mod_{name}.so")  # Debian has unixd built in
        ]
        text = APACHE.format(
            folder=self.folder, address=address, modules="\n".join(loads), more=lines
        )
        (self.folder / "httpd.conf").write_text(text)
        command = [self.find("apache2", "httpd", package="apache2-bin")]
        if os.geteuid() == 0:
            # It would give up root's rights, and could not run an interpreter of root's.
            command = ["unshare", "--user", "--map-user=1000", *command]
        arguments = ("-D", "FOREGROUND", "-f", f"{self.folder}/httpd.conf")
        self.start(*command, *arguments, address=address)
        return address

    def lighttpd(self, lines: str) -> str:
        address = self.free_address()
        port = address.rpartition(":")[2]
        text = LIGHTTPD.format(folder=self.folder, port=port, more=lines)
        (self.folder / "lighttpd.conf").write_text(text)
        program = self.find("lighttpd", package="lighttpd")
        self.start(program, "-D", "-f", f"{self.folder}/lighttpd.conf", address=address)
        return address

    def responder(self, kind: str, bind: str, *arguments: str) -> str:
        """Start the probe behind a socket."""
        command = [sys.executable, "-m", "tetrapylon.adapters", "probe:app", "--as", kind]
        more = (f"--path={self.folder}", f"--bind={bind}", *arguments)
        self.start(*command, *more, address=bind)
        return bind


@pytest.fixture
def servers(
    folder: Path, find_program: Any, start_server: Any, free_address: Callable[[], str]
) -> Servers:
    return Servers(folder, find_program, start_server, free_address)


@pytest.fixture(params=KINDS)
def site(request: pytest.FixtureRequest, servers: Servers) -> Site:
    server, kind, *more = request.param.split()
    folder = servers.folder
    on_disk = f"unix:{folder}/app.sock"
    if server == "nginx":
        bind = servers.responder(kind, servers.free_address() if more else on_disk)
        # Without a buffer for requests, nginx tells SCGI that there is no body.
        kept = "fastcgi_keep_conn on; fastcgi_request_buffering off;" if kind == "fastcgi" else ""
        location = (
            f"include /etc/nginx/{kind}_params; {kind}_pass application; {kind}_buffering off;"
        )
        address = servers.nginx(bind, location + kept)
        return Site(address, folder, sees_truncation=kind == "fastcgi")
    if server == "apache":
        if kind == "cgi":
            lines = (
                f'ScriptSock "{folder}/cgid.sock"\n'
                f'ScriptAlias "/cgi-bin/" "{folder}/cgi-bin/"\n'
                f'<Directory "{folder}/cgi-bin">\nRequire all granted\n</Directory>\n'
            )
            address = servers.apache(("cgid",), lines)
            return Site(address, folder, root_path="/cgi-bin/app.py", is_cgi=True)
        # Apache leaves the whole path in SCRIPT_NAME: the mount must be told.
        if kind == "fastcgi":
            bind = servers.responder(kind, on_disk, "--root-path=/app")
            target, module = f"{bind}|fcgi://app/", "proxy_fcgi"
        else:
            bind = servers.responder(kind, servers.free_address(), "--root-path=/app")
            target, module = f"scgi://{bind}/", "proxy_scgi"
        reuse = " enablereuse=on" if more else ""
        lines = f'ProxyPass "/app/" "{target}" flushpackets=on{reuse}\n'
        address = servers.apache(("proxy", module), lines)
        return Site(address, folder, root_path="/app", sees_truncation=True)
    if kind == "cgi":
        lines = f'server.modules = ("mod_cgi")\ncgi.assign = (".py" => "{sys.executable}")\n'
        return Site(servers.lighttpd(lines), folder, root_path="/app.py", is_cgi=True)
    if kind == "fastcgi":
        # Started by lighttpd, its socket on descriptor 0.
        command = f"{sys.executable} -m tetrapylon.adapters probe:app --as fastcgi"
        started = f'"bin-path" => "{command} --path={folder}", "max-procs" => 1,'
    else:
        servers.responder(kind, on_disk)
        started = ""
    lines = (
        f'server.modules = ("mod_{kind}")\n'
        f'{kind}.server = ("/app" => (("socket" => "{folder}/app.sock", {started}'
        ' "check-local" => "disable")))\n'
    )
    address = servers.lighttpd(lines)
    return Site(address, folder, root_path="/app", sees_truncation=kind == "fastcgi")


def check_facts(site: Site) -> None:
    told = site.facts("GET", "/caf%C3%A9/b%20c?x=1&y=%20", headers={"X-Name": "value"})
    assert (told["root_path"], told["path"]) == (site.root_path, f"{site.root_path}/café/b c")
    assert told["raw_path"] == f"{site.root_path}/caf%C3%A9/b%20c"
    assert told["query"] == "x=1&y=%20"
    assert (told["method"], told["scheme"], told["length"]) == ("GET", "http", 0)
    assert told["headers"]["x-name"] == "value"
    assert told["headers"]["host"].split(":")[0] == "127.0.0.1"
    assert told["client"][0] == "127.0.0.1"
    assert told["state"] == {"up": True}
    with site.ask("GET", "/cookies") as answer:
        assert answer.headers.get_all("set-cookie") == ["a=1", "b=2"]
    with site.ask("HEAD", "/head") as answer:
        assert (answer.status, answer.read()) == (201, b"")


def check_bodies(site: Site) -> None:
    data = os.urandom(3 * MIB)
    digest = hashlib.sha256(data).hexdigest()
    told = site.facts("POST", "/post", data, {"Content-Type": "application/x-own"})
    assert (told["length"], told["sha256"]) == (len(data), digest)
    assert told["headers"]["content-type"] == "application/x-own"
    assert site.facts("PUT", "/put", b"")["length"] == 0


def check_many_at_a_time(site: Site) -> None:
    count = 8 if site.is_cgi else 64
    bodies = [os.urandom(20_000) for _ in range(count)]
    with ThreadPoolExecutor(16) as pool:
        told = list(pool.map(lambda data: site.facts("POST", "/post", data), bodies))
    expected = [hashlib.sha256(data).hexdigest() for data in bodies]
    assert [facts["sha256"] for facts in told] == expected
    (lives,) = site.folder.rglob("lives")
    if site.is_cgi:
        wait_for(lambda: lives.read_text().count("down") == lives.read_text().count("up"))
        assert lives.read_text().count("up") > count
    else:
        assert lives.read_text() == "up\n"


def wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def check_streaming(site: Site) -> None:
    with site.ask("GET", "/stream") as answer:
        assert answer.read1() == b"one\n"
        for folder in (site.folder, site.folder / "cgi-bin"):
            (folder / "go").touch()
        assert answer.read() == b"two\n"


def check_a_client_that_leaves(site: Site) -> None:
    with site.ask("GET", "/leave") as answer:
        assert len(answer.read(100_000)) == 100_000
    wait_for(lambda: list(site.folder.rglob("left")))
    assert site.facts("GET", "/")["length"] == 0


def check_failures(site: Site) -> None:
    with site.ask("GET", "/raise") as answer:
        assert (answer.status, b"internal" in answer.read()) == (500, False)
    with site.ask("GET", "/later") as answer:
        assert answer.status == 201
        try:
            is_cut = len(answer.read()) < 20_000
        except (http.client.IncompleteRead, ConnectionError):
            is_cut = True
        assert is_cut is site.sees_truncation
    assert site.facts("GET", "/")["length"] == 0


def test_requests(site: Site) -> None:
    check_facts(site)
    check_bodies(site)
    check_many_at_a_time(site)


def test_responses(site: Site) -> None:
    check_streaming(site)
    check_failures(site)
    check_a_client_that_leaves(site)


# The examples, as their READMEs say


def get(address: str, path: str, body: bytes | None = None) -> tuple[int, str]:
    connection = http.client.HTTPConnection(address, timeout=WITHIN_S)
    with contextlib.closing(connection):
        connection.request("GET" if body is None else "POST", path, body)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


def readme_line(folder: Path, word: str, **replacements: str) -> str:
    """Return the line of the README with the word in it."""
    lines = (folder / "README.md").read_text().splitlines()
    (line,) = [line.strip() for line in lines if line.startswith("    ") and word in line]
    for old, new in replacements.items():
        line = line.replace(old, new)
    return line


@pytest.mark.parametrize("server", ["apache", "lighttpd"])
def test_the_cgi_example(server: str, servers: Servers, copy_example: Any) -> None:
    example = copy_example("asgi-cgi")
    script = example / "cgi-bin" / "units.py"
    script.write_text(script.read_text().replace("/usr/bin/env python3", sys.executable))
    if server == "apache":
        line = readme_line(example, "ScriptAlias").replace("/srv/units", str(example))
        granted = f'<Directory "{example}/cgi-bin">\nRequire all granted\n</Directory>\n'
        socket = f'ScriptSock "{servers.folder}/cgid.sock"\n'
        address = servers.apache(("cgid",), f"{line.partition('#')[0]}\n{granted}{socket}")
    else:
        alias = readme_line(example, "alias.url").replace("/srv/units", str(example))
        assign = readme_line(example, "cgi.assign").replace("/usr/bin/python3", sys.executable)
        modules = 'server.modules = ("mod_alias", "mod_cgi")\n'
        address = servers.lighttpd(f"{modules}{alias}\n{assign}\n")
    at = "/cgi-bin/units.py"
    assert f"{at}/kelvin/20" in get(address, f"{at}/")[1]
    assert get(address, f"{at}/fahrenheit/451") == (200, "232.8 °C\n")
    numbers = "".join(f"{number}\n" for number in range(1, 20_001)).encode()
    assert get(address, f"{at}/mean", numbers) == (200, '{"count":20000,"mean":10000.5}')


@pytest.mark.parametrize("server", ["nginx", "apache", "lighttpd"])
def test_the_fastcgi_example(server: str, servers: Servers, copy_example: Any) -> None:
    example = copy_example("asgi-fastcgi")
    path = f"{servers.folder}/board.sock"
    servers.start(sys.executable, f"{example}/board.py", f"unix:{path}", address=f"unix:{path}")
    if server == "nginx":
        line = readme_line(example, "fastcgi_pass").partition("{")[2].rpartition("}")[0]
        location = line.replace("fastcgi_params", "/etc/nginx/fastcgi_params")
        location = location.replace("/run/board.sock", path)
        address = servers.nginx(f"unix:{path}", location)
    elif server == "apache":
        line = readme_line(example, "ProxyPass").replace("/run/board.sock", path)
        address = servers.apache(("proxy", "proxy_fcgi"), line.partition("#")[0] + "\n")
    else:
        line = readme_line(example, "fastcgi.server").replace("/run/board.sock", path)
        address = servers.lighttpd(f'server.modules = ("mod_fastcgi")\n{line}\n')
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(get, address, "/next") for _ in range(4)]
        deadline = time.monotonic() + WITHIN_S
        while not all(one.done() for one in waiting):
            assert get(address, "/", b"Hello.") == (201, "Hello.\n")
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert {one.result() for one in waiting} == {(200, "Hello.\n")}
    assert get(address, "/")[1].startswith("Hello.\n")


def test_the_mounts_under_uvicorn(
    servers: Servers, copy_example: Any, find_program: Any, start_server: Any
) -> None:
    example = copy_example("mounts")
    pool = servers.folder / "php.sock"
    configuration = servers.folder / "fpm.conf"
    identity = f"user = {getpass.getuser()}\n" if os.geteuid() == 0 else ""
    configuration.write_text(
        f"[global]\nerror_log = {servers.folder}/fpm.log\n[www]\nlisten = {pool}\n{identity}"
        "pm = static\npm.max_children = 2\n"
    )
    names = ("php-fpm", *(f"php-fpm8.{minor}" for minor in range(9, 0, -1)))
    fpm = [find_program(*names, package="php-fpm"), "-F", "-y", str(configuration)]
    start_server(*fpm, *(["-R"] if os.geteuid() == 0 else []), address=f"unix:{pool}")
    address = servers.free_address()
    command = [sys.executable, "-m", "uvicorn", "--app-dir", str(example), "house:app"]
    start_server(
        *(*command, f"--port={address.rpartition(':')[2]}"),
        address=address,
        env={"PHP_FPM": f"unix:{pool}"},
    )
    assert "/php/" in get(address, "/")[1]
    assert get(address, "/cgi-bin/date.sh/a%20b")[1].endswith("/cgi-bin/date.sh /a b\n")
    data = os.urandom(300_000)
    asked = get(address, "/php/?x=1", data)
    assert asked == (200, "PHP at /php/index.php, for /php/?x=1\n300000 bytes\n")
    assert get(address, "/php/nothing.php")[0] == 404
    assert get(address, "/shop/count", data) == (200, '{"bytes":300000}\n')
    assert get(address, "/shop/receipt") == (200, "0 tea\n1 tea\n2 tea\n")

"""FastCGI programs as people run them: libfcgi in threads, Perl's FCGI, fcgiwrap, flup's servers.

Each by a configuration file: started by the gateway, and found at an address.
"""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.interop

CONFIGURATION = """
[listen]
bind = ["127.0.0.1:0"]

[[routes]]
path = "/app/"
[routes.backend]
{backend}
"""


def configuration(**backend: object) -> str:
    """Write a backend at /app/ as TOML: a JSON text of these values is one of TOML, too."""
    lines = (f"{key} = {json.dumps(value)}" for key, value in backend.items())
    return CONFIGURATION.format(backend="\n".join(lines))


def in_parallel(ask: Callable[[int], Any], numbers: int, threads: int = 16) -> list[Any]:
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(ask, range(numbers)))


def exchange_many(running: Any, pids: bool = True) -> set[str]:
    """Send bodies of all sizes at once; each answer is that to its own request; return pids."""

    def ask(number: int) -> str:
        body = random.Random(number).randbytes((0, 1, 700, 65_536, 300_000)[number % 5])
        method = "POST" if body else "GET"
        answer = running.request(method, f"/app/one/{number}?n={number}", body or None)
        assert answer.status == 200
        said = answer.text.split("|")
        assert said[:5] == [
            "/app",
            f"/one/{number}",
            f"n={number}",
            str(len(body)),
            str(sum(body)),
        ]
        return str(said[5])

    return set(in_parallel(ask, 100))


# libfcgi, in threads

THREADED = r"""
#include <fcgiapp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void *answer(void *unused) {
    FCGX_Request request;
    FCGX_InitRequest(&request, 0, 0);
    for (;;) {
        if (FCGX_Accept_r(&request) < 0) return NULL;
        const char *info = FCGX_GetParam("PATH_INFO", request.envp);
        const char *text = FCGX_GetParam("CONTENT_LENGTH", request.envp);
        long length = text ? atol(text) : 0, got = 0, sum = 0;
        for (int c; got < length && (c = FCGX_GetChar(request.in)) != EOF; got++) sum += c;
        if (!strcmp(info, "/slow")) usleep(300000);
        if (!strcmp(info, "/error")) FCGX_FPrintF(request.err, "a thread complains\n");
        FCGX_FPrintF(request.out, "Content-Type: text/plain\r\n\r\n");
        if (!strcmp(info, "/endless")) while (FCGX_PutS("and so on ", request.out) > 0) {}
        FCGX_FPrintF(request.out, "%s|%s|%s|%ld|%ld|%d", FCGX_GetParam("SCRIPT_NAME", request.envp),
                     info, FCGX_GetParam("QUERY_STRING", request.envp), got, sum, (int) getpid());
        FCGX_Finish_r(&request);
    }
}

int main(void) {
    pthread_t threads[15];
    FCGX_Init();
    for (int i = 0; i < 15; i++) pthread_create(&threads[i], NULL, answer, NULL);
    answer(NULL);  // the thread that hears SIGTERM
    return 0;
}
"""


@pytest.fixture(scope="module")
def threaded(tmp_path_factory: pytest.TempPathFactory, find_program: Any) -> Path:
    folder = tmp_path_factory.mktemp("threaded")
    (folder / "app.c").write_text(THREADED)
    compiler = find_program("cc", "gcc", "clang", package="gcc")
    built = subprocess.run(
        [compiler, "-O1", "-o", "app", "app.c", "-lfcgi", "-lpthread"],
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert built.returncode == 0, f"apt install libfcgi-dev\n{built.stderr}"
    return folder / "app"


@pytest.mark.parametrize("keep_alive", [False, True])
def test_libfcgi_in_threads(threaded: Path, gateway: Any, keep_alive: bool) -> None:
    running = gateway(configuration(spawn=[str(threaded)], keep_alive=keep_alive, connections=16))
    assert len(exchange_many(running)) == 1
    begun = time.monotonic()
    assert all(
        answer.status == 200 for answer in in_parallel(lambda _: running.get("/app/slow"), 16)
    )
    assert time.monotonic() - begun < 16 * 0.3  # at once, not in turn
    assert running.get("/app/error").status == 200
    assert running.has_logged("a thread complains")
    # Readers that leave set their threads free.
    for _ in range(20):
        with contextlib.closing(running.connect()) as connection:
            connection.request("GET", "/app/endless")
            with connection.getresponse() as response:
                assert response.read(100_000).startswith(b"and so on ")
    assert len(exchange_many(running)) == 1


def test_libfcgi_by_spawn_fcgi(
    threaded: Path, gateway: Any, start_server: Any, find_program: Any, tmp_path: Path
) -> None:
    program = find_program("spawn-fcgi", package="spawn-fcgi")
    address = f"unix:{tmp_path}/app"
    start_server(program, "-n", "-s", f"{tmp_path}/app", "--", str(threaded), address=address)
    running = gateway(configuration(fastcgi=address, connections=16))
    assert len(exchange_many(running)) == 1


# Perl

PERL = r"""
use strict;
use FCGI;
my (%env, $body);
my $request = FCGI::Request(\*STDIN, \*STDOUT, \*STDERR, \%env);
while ($request->Accept() >= 0) {
    my $left = $env{CONTENT_LENGTH} || 0;
    $body = '';
    while ($left > 0 and my $read = read(STDIN, $body, $left, length $body)) { $left -= $read }
    print "Content-Type: text/plain\r\n\r\n";
    my $sum = unpack '%64C*', $body;
    print join '|', @env{qw(SCRIPT_NAME PATH_INFO QUERY_STRING)}, length($body), $sum, $$;
}
"""


@pytest.mark.parametrize("kind", ["started", "found"])
def test_perl(
    kind: str, gateway: Any, start_server: Any, find_program: Any, tmp_path: Path
) -> None:
    script = tmp_path / "app.pl"
    script.write_text(PERL)
    perl = find_program("perl", package="perl")
    if kind == "started":
        running = gateway(configuration(spawn=[perl, str(script)], processes=3))
    else:
        program = find_program("spawn-fcgi", package="spawn-fcgi")
        command = (program, "-n", "-s", f"{tmp_path}/app", "--", perl, str(script))
        start_server(*command, address=f"unix:{tmp_path}/app")
        running = gateway(configuration(fastcgi=f"unix:{tmp_path}/app"))
    assert len(exchange_many(running)) <= 3


# flup

FLUP = """
import os, sys
from flup.server.{module} import WSGIServer

def application(environ, start_response):
    length = int(environ.get("CONTENT_LENGTH") or 0)
    body = environ["wsgi.input"].read(length)
    if environ["PATH_INFO"] == "/raise":
        raise RuntimeError("something is wrong")
    start_response("200 OK", [("Content-Type", "text/plain")])
    if environ["PATH_INFO"] == "/endless":
        return (b"and so on " * 1000 for _ in iter(int, 1))
    keys = ("SCRIPT_NAME", "PATH_INFO", "QUERY_STRING")
    said = [environ.get(key, "") for key in keys] + [len(body), sum(body), os.getpid()]
    return ["|".join(map(str, said)).encode()]

if __name__ == "__main__":
    address = sys.argv[1] if len(sys.argv) > 1 else None
    WSGIServer(application, bindAddress=address{options}).run()
"""
FLUP_SERVERS = {
    "threaded": ("fcgi", ", maxThreads=16"),
    "forked": ("fcgi_fork", ", minSpare=2, maxSpare=4, maxChildren=8"),
    "single": ("fcgi_single", ""),
}


@pytest.mark.parametrize("kind", ["started", "found"])
@pytest.mark.parametrize("server", FLUP_SERVERS)
def test_flup(
    server: str,
    kind: str,
    request: pytest.FixtureRequest,
    gateway: Any,
    start_server: Any,
    tmp_path: Path,
) -> None:
    module, options = FLUP_SERVERS[server]
    script = tmp_path / "app.py"
    script.write_text(FLUP.format(module=module, options=options))
    connections = {"threaded": 16, "forked": 8, "single": 1}[server]
    more = {"connections": connections, "queue": 100}
    if kind == "started":
        running = gateway(configuration(spawn=[sys.executable, str(script)], **more))
    else:
        address = f"unix:{tmp_path}/app"
        found = start_server(sys.executable, str(script), f"{tmp_path}/app", address=address)
        # flup's forked server waits through SIGTERM on Python 3.5 and up (PEP 475).
        if server == "forked":
            request.addfinalizer(found.kill)
        running = gateway(configuration(fastcgi=address, **more))
    pids = exchange_many(running)
    assert len(pids) > 1 if server == "forked" else len(pids) == 1
    assert running.get("/app/raise").status == 500
    # flup's single server dies of a connection that is closed before its answer is out.
    for _ in range(0 if server == "single" else 12):
        with contextlib.closing(running.connect()) as connection:
            connection.request("GET", "/app/endless")
            with connection.getresponse() as response:
                assert response.read(100_000).startswith(b"and so on ")
    exchange_many(running)


# fcgiwrap: CGI through FastCGI, and CGI

SCRIPTS = {
    "hello.sh": "#!/bin/sh\nprintf 'Content-Type: text/plain\\n\\nhello\\n'\n",
    "status.sh": "#!/bin/sh\nprintf 'Status: 418 Teapot\\r\\nContent-Type: a/b\\r\\n\\r\\nno'\n",
    "moved.sh": "#!/bin/sh\nprintf 'Location: http://elsewhere.example/\\n\\n'\n",
    "cookies.sh": "#!/bin/sh\nprintf 'Set-Cookie: a=1\\nSet-Cookie: b=2\\nContent-Type: a/b\\n\\n'",
    "empty.sh": "#!/bin/sh\nprintf 'Content-Type: text/plain\\n\\n'\n",
    "echo.pl": """#!/usr/bin/perl
binmode $_ for *STDIN, *STDOUT;
read STDIN, my $body, $ENV{CONTENT_LENGTH} || 0;
print "Content-Type: application/octet-stream\\n\\n", scalar reverse $body;
""",
    "large.pl": """#!/usr/bin/perl
print "Content-Type: text/plain\\n\\n", "0123456789" x 500_000;
""",
    "facts.pl": """#!/usr/bin/perl
my @keys = qw(SCRIPT_NAME PATH_INFO QUERY_STRING REQUEST_METHOD SERVER_PROTOCOL SERVER_NAME
    CONTENT_TYPE REMOTE_ADDR GATEWAY_INTERFACE SERVER_SOFTWARE REQUEST_URI HTTP_COOKIE
    HTTP_ACCEPT SCRIPT_FILENAME PATH_TRANSLATED DOCUMENT_ROOT);
print "Content-Type: text/plain\\n\\n", map { "$_=$ENV{$_}\\n" } @keys;
print "ARGV=@ARGV\\n";
""",
    "form.cgi": """#!/usr/bin/perl
use CGI;
my $q = CGI->new;
print $q->header(-type => 'text/html', -charset => 'utf-8', -cookie => $q->cookie(seen => 'yes'));
print $q->h1(CGI::escapeHTML($q->param('name'))), join ',', sort $q->param;
""",
}


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory, find_program: Any, recipe: Any) -> Any:
    find_program("fcgiwrap", package="fcgiwrap")
    page = recipe("fcgiwrap", tmp_path_factory.mktemp("wrapped"))
    folder = page.folder / "srv" / "cgi-bin"
    folder.mkdir(parents=True)
    for name, text in SCRIPTS.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    (folder / "not-executable.sh").write_text(SCRIPTS["hello.sh"])
    (folder / "endless.sh").write_text(
        "#!/bin/sh\nprintf 'Content-Type: text/plain\\n\\n'\nexec yes and-so-on\n"
    )
    (folder / "endless.sh").chmod(0o755)
    return page


@pytest.mark.parametrize("kind", ["started", "found"])
def test_fcgiwrap_and_cgi_say_the_same(
    kind: str, scripts: Any, gateway: Any, start_server: Any, tmp_path: Path
) -> None:
    text = scripts.configuration.read_text()
    if kind == "found":
        program = "/usr/sbin/fcgiwrap"
        address = f"unix:{tmp_path}/wrap"
        start_server(program, "-f", "-c", "4", "-s", address, address=address)
        started = 'spawn = ["/usr/sbin/fcgiwrap", "-f"]'
        assert started in text
        text = text.replace(started, f'fastcgi = "{address}"')
        text = text.replace("processes = 4", "connections = 4")
    folder = scripts.folder / "srv" / "cgi-bin"
    text += f'\n[[routes]]\nhost = "plain"\npath = "/cgi-bin/"\nbackend = {{ cgi = "{folder}" }}\n'
    running = gateway(text)

    def compare(
        path: str, method: str = "GET", body: bytes | None = None, **fields: str
    ) -> tuple[Any, Any]:
        wrapped = running.request(method, path, body, {"Host": "wrapped", **fields})
        plain = running.request(method, path, body, {"Host": "plain", **fields})
        assert wrapped.status == plain.status, path
        for name in ("Content-Type", "Location"):
            assert wrapped.headers[name] == plain.headers[name], (path, name)
        assert wrapped.headers.get_all("Set-Cookie") == plain.headers.get_all("Set-Cookie")
        return wrapped, plain

    for name in SCRIPTS:
        for method in ("GET", "HEAD"):
            wrapped, plain = compare(f"/cgi-bin/{name}", method)
            if name != "facts.pl":
                assert wrapped.body == plain.body, (name, method)
    assert compare("/cgi-bin/large.pl")[0].body == b"0123456789" * 500_000
    content = random.Random(1).randbytes(3_000_000)
    wrapped, plain = compare("/cgi-bin/echo.pl", "POST", content)
    assert wrapped.body == plain.body == content[::-1]
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    wrapped, plain = compare("/cgi-bin/form.cgi", "POST", b"name=Zo%C3%AB+%3Cb%3E&more=1", **form)
    assert wrapped.body == plain.body
    assert wrapped.text == "<h1>Zoë &lt;b&gt;</h1>more,name"

    path = "/cgi-bin/facts.pl/path/in%20fo%3F?a=1&-s"
    more = {"Cookie": "a=1; b=2", "Accept": "text/html", "Content-Type": "a/b"}
    wrapped, plain = (
        {line.partition("=")[0]: line.partition("=")[2] for line in answer.text.splitlines()}
        for answer in compare(path, "POST", b"x", **more)
    )
    assert wrapped.pop("SERVER_NAME") == "wrapped"
    assert plain.pop("SERVER_NAME") == "plain"
    assert wrapped.pop("ARGV") == plain.pop("ARGV") == ""
    differing = {name for name in plain if plain[name] != wrapped[name]}
    assert differing == set()
    assert wrapped["PATH_INFO"] == "/path/in fo?"

    for path in ("/cgi-bin/none.sh", "/cgi-bin/", "/cgi-bin/../../../etc/passwd"):
        assert compare(path)[0].status in (400, 404)
    assert running.get("/cgi-bin/not-executable.sh", {"Host": "wrapped"}).status == 403
    assert running.get("/cgi-bin/not-executable.sh", {"Host": "plain"}).status in (403, 502)

    # All four of fcgiwrap's processes are set free by readers that leave.
    for _ in range(8):
        with contextlib.closing(running.connect()) as connection:
            connection.request("GET", "/cgi-bin/endless.sh", headers={"Host": "wrapped"})
            with connection.getresponse() as response:
                assert len(response.read(100_000)) == 100_000
    answers = in_parallel(lambda _: running.get("/cgi-bin/hello.sh", {"Host": "wrapped"}), 40)
    assert {(answer.status, answer.text) for answer in answers} == {(200, "hello\n")}

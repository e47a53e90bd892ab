"""Authorizers written with libfcgi (C), Perl's FCGI and PHP; lighttpd asks the first one too."""

from __future__ import annotations

import http.client
import os
import pwd
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.interop

C = r"""
#include <fcgiapp.h>
#include <stdio.h>
#include <string.h>

int main(void) {
    FCGX_Stream *in, *out, *err;
    FCGX_ParamArray env;
    while (FCGX_Accept(&in, &out, &err, &env) == 0) {
        const char *key = FCGX_GetParam("HTTP_X_KEY", env);
        const char *role = FCGX_GetParam("FCGI_ROLE", env);
        if (key && strcmp(key, "sesame") == 0) {
            FCGX_FPrintF(out, "Status: 200 OK\r\nVariable-REMOTE_USER: ali\r\n"
                "Variable-ROLE: %s\r\nVariable-KEPT: %s%s%s%s\r\n\r\n", role,
                FCGX_GetParam("CONTENT_LENGTH", env) ? "CONTENT_LENGTH " : "",
                FCGX_GetParam("PATH_INFO", env) ? "PATH_INFO " : "",
                FCGX_GetParam("PATH_TRANSLATED", env) ? "PATH_TRANSLATED " : "",
                FCGX_GetParam("SCRIPT_NAME", env) ? "SCRIPT_NAME" : "");
        } else {
            FCGX_FPrintF(out, "Status: 403 Forbidden\r\nContent-Type: text/plain\r\n"
                "Variable-REMOTE_USER: nobody\r\n\r\nNo.\n");
        }
    }
    return 0;
}
"""
PERL = r"""
use strict;
use FCGI;
my %env;
my $request = FCGI::Request(\*STDIN, \*STDOUT, \*STDERR, \%env);
while ($request->Accept() >= 0) {
    if (($env{HTTP_X_KEY} // "") eq "sesame") {
        my @kept = grep { exists $env{$_} }
            qw(CONTENT_LENGTH PATH_INFO PATH_TRANSLATED SCRIPT_NAME);
        print "Status: 200 OK\r\nVariable-REMOTE_USER: ali\r\n",
            "Variable-ROLE: $env{FCGI_ROLE}\r\nVariable-KEPT: @kept\r\n\r\n";
    } else {
        print "Status: 403 Forbidden\r\nContent-Type: text/plain\r\n\r\nNo.\n";
    }
}
"""
PHP = r"""<?php
if (($_SERVER['HTTP_X_KEY'] ?? '') === 'sesame') {
    header('Variable-REMOTE_USER: ali');
    header('Variable-ROLE: ' . $_SERVER['FCGI_ROLE']);
    $kept = array_filter(['CONTENT_LENGTH', 'PATH_INFO', 'PATH_TRANSLATED'],
        fn($name) => ($_SERVER[$name] ?? '') !== '');
    header('Variable-KEPT: ' . implode(' ', $kept));
} else {
    http_response_code(403);
    header('Content-Type: text/plain;charset=UTF-8');
    echo "No.\n";
}
"""
FPM = """[global]
error_log = {folder}/fpm.log
daemonize = no
[www]
listen = {folder}/door.sock
{identity}
pm = static
pm.max_children = 2
"""
CONFIGURATION = """
[listen]
bind = "127.0.0.1:0"

[backends.door]
{door}

[[routes]]
path = "/files/"
backend = {{ static = "files" }}
authorizer = "door"

[[routes]]
path = "/whoami/"
backend = {{ wsgi = "whoami:app" }}
authorizer = "door"
"""
WHOAMI = """
def app(environ, start_response):
    body = environ["wsgi.input"].read()
    start_response("200 OK", [("Content-Type", "text/plain")])
    names = ("REMOTE_USER", "ROLE", "KEPT")
    return ["|".join([*(environ[name] for name in names), str(len(body))]).encode()]
"""
LIGHTTPD = """
server.modules = ("mod_fastcgi")
server.document-root = "{folder}/files"
server.bind = "{host}"
server.port = {port}
fastcgi.server = ("/" => ((
    "socket" => "{folder}/door.sock",
    "mode" => "authorizer",
    "check-local" => "disable",
    "docroot" => "{folder}/files",
)))
"""


@pytest.fixture
def site() -> Iterator[Path]:
    """Files to guard, in a folder with a path short enough for sockets."""
    with tempfile.TemporaryDirectory() as path:
        folder = Path(path)
        folder.chmod(0o755)
        (folder / "files").mkdir()
        (folder / "files" / "page.txt").write_text("a page")
        (folder / "whoami.py").write_text(WHOAMI)
        yield folder


def serve(gateway: Any, site: Path, door: str) -> Any:
    file = site / "tetrapylon.toml"
    file.write_text(CONFIGURATION.format(door=door))
    return gateway(file)


def check(running: Any, *, kept: str = "") -> None:
    key = {"X-Key": "sesame"}
    for _ in range(20):
        refused = running.get("/files/page.txt")
        assert (refused.status, refused.text) == (403, "No.\n")
        assert running.get("/files/page.txt", key).text == "a page"
        assert running.request("HEAD", "/files/page.txt").status == 403
    body = bytes(1_000_000)
    answer = running.request("POST", "/whoami/x?y", body, key)
    assert answer.text == f"ali|AUTHORIZER|{kept}|1000000"
    assert running.request("POST", "/whoami/x", body).status == 403


@pytest.fixture
def libfcgi(site: Path, find_program: Any) -> Path:
    (site / "door.c").write_text(C)
    compiler = find_program("cc", "gcc", package="gcc libfcgi-dev")
    command = [compiler, "-o", site / "door", site / "door.c", "-lfcgi"]
    subprocess.run(command, check=True, timeout=60)
    return site / "door"


@pytest.mark.parametrize("keep_alive", ["false", "true"])
def test_libfcgi(site: Path, libfcgi: Path, gateway: Any, keep_alive: str) -> None:
    # FCGI-6.3-AUTHORIZER, FCGI-6.3-200, FCGI-6.3-VARIABLE
    check(serve(gateway, site, f"spawn = ['{libfcgi}']\nkeep_alive = {keep_alive}"))


def test_perl(site: Path, gateway: Any, find_program: Any) -> None:
    (site / "door.pl").write_text(PERL)
    perl = find_program("perl", package="perl libfcgi-perl")
    check(serve(gateway, site, f"spawn = ['{perl}', 'door.pl']"))


def test_php(site: Path, gateway: Any, start_server: Any, find_program: Any) -> None:
    (site / "door.php").write_text(PHP)
    program = find_program("php-fpm", "php-fpm8.2", "php-fpm8.4", package="php-fpm")
    identity = ""
    command = [program, "-F", "-y", str(site / "fpm.conf")]
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        identity = f"user = nobody\ngroup = {nobody.pw_gid}\nlisten.mode = 0666"
    (site / "fpm.conf").write_text(FPM.format(folder=site, identity=identity))
    start_server(*command, address=f"unix:{site}/door.sock")
    # It is a script like any other, but no path names it.
    door = f"fastcgi = 'unix:door.sock'\nparams = {{ SCRIPT_FILENAME = '{site}/door.php' }}"
    check(serve(gateway, site, door))


def test_lighttpd_agrees(
    site: Path,
    libfcgi: Path,
    gateway: Any,
    start_server: Any,
    find_program: Any,
    free_address: Any,
) -> None:
    running = serve(gateway, site, f"fastcgi = 'unix:door.sock'\nspawn = ['{libfcgi}']")
    address = free_address()
    host, _, port = address.partition(":")
    configuration = site / "lighttpd.conf"
    configuration.write_text(LIGHTTPD.format(folder=site, host=host, port=port))
    program = find_program("lighttpd", package="lighttpd")
    start_server(program, "-D", "-f", str(configuration), address=address)
    for headers in ({}, {"X-Key": "sesame"}, {"X-Key": "wrong"}):
        for method in ("GET", "HEAD"):
            for name in ("page.txt", "none"):
                connection = http.client.HTTPConnection(host, int(port), timeout=20)
                connection.request(method, f"/{name}", headers=headers)
                theirs = connection.getresponse()
                ours = running.request(method, f"/files/{name}", headers=headers)
                assert ours.status == theirs.status
                content = theirs.read()
                if theirs.status != 404:
                    assert ours.body == content
                connection.close()

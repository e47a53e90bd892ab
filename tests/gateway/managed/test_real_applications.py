"""Applications as they are written, under the installed gateway and under load: none is lost.

flup needs nothing but Python; libfcgi, Perl's FCGI and PHP are for `make interop`.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

WITHIN_S = 20.0

FLUP = """
import os
from flup.server.fcgi import WSGIServer
version = "VERSION"
def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{version} {os.getpid()}".encode()]
WSGIServer(app).run()
"""
C = r"""
#include <fcgi_stdio.h>
#include <unistd.h>
int main(void) {
    while (FCGI_Accept() >= 0) {
        usleep(1000);
        printf("Content-Type: text/plain\r\n\r\nVERSION %d", (int) getpid());
    }
}
"""
PERL = r"""
use FCGI;
my $request = FCGI::Request();
while ($request->Accept() >= 0) {
    select(undef, undef, undef, 0.001);
    print "Content-Type: text/plain\r\n\r\nVERSION $$";
}
"""
PHP = "<?php header('Content-Type: text/plain'); usleep(1000); echo 'VERSION ', getmypid();"


def find(*names: str, package: str) -> str:
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin"))
    for name in names:
        if (program := shutil.which(name, path=path)) is not None:
            return program
    pytest.fail(f"there is no {' or '.join(names)} here; in Debian: apt install {package}")


class Application:
    """One of them in a folder: what to spawn, and how to bring out a new version."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.folder = folder
        self._install: Callable[[str], None] = getattr(self, f"_{kind.replace('-', '_')}")
        self.spawn: list[str] = []
        self.more = ""
        self.install("one")

    def install(self, version: str) -> None:
        self._install(version)

    def _put(self, name: str, text: str) -> None:
        (self.folder / "new").write_text(text)
        os.replace(self.folder / "new", self.folder / name)

    def _flup(self, version: str) -> None:
        self._put("app.py", FLUP.replace("VERSION", version))
        self.spawn = [sys.executable, "app.py"]

    def _c(self, version: str) -> None:
        (self.folder / "app.c").write_text(C.replace("VERSION", version))
        compiler = find("cc", "gcc", package="gcc libfcgi-dev")
        command = [compiler, "-o", "new", "app.c", "-lfcgi"]
        subprocess.run(command, cwd=self.folder, check=True, timeout=60)
        os.replace(self.folder / "new", self.folder / "app")
        self.spawn = [str(self.folder / "app")]

    def _perl(self, version: str) -> None:
        self._put("app.pl", PERL.replace("VERSION", version))
        self.spawn = [find("perl", package="libfcgi-perl"), "app.pl"]

    def _php_cgi(self, version: str) -> None:
        (self.folder / "php").mkdir(exist_ok=True)
        self._put("php/index.php", PHP.replace("VERSION", version))
        # Its code is read with each request; a restart is asked for all the same.
        self._put("php.ini", f"; {version}")
        self.spawn = [find("php-cgi", package="php-cgi"), "-c", "php.ini"]
        self.more = 'root = "application/php"\nenv = { PHP_FCGI_MAX_REQUESTS = "150" }\n'


class Load:
    """Clients with kept connections, each asking again and again, in threads."""

    def __init__(self, port: int, path: str, clients: int = 8) -> None:
        self.port = port
        self.path = path
        self.bodies: list[str] = []
        self.failures: list[str] = []
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WITHIN_S)
        with contextlib.closing(connection):
            while not self._is_over.is_set():
                try:
                    connection.request("GET", self.path)
                    answer = connection.getresponse()
                    body = answer.read().decode()
                    if answer.status != 200:
                        raise http.client.HTTPException(f"{answer.status}: {body}")
                except (OSError, http.client.HTTPException) as error:
                    self.failures.append(repr(error))
                    connection.close()
                else:
                    self.bodies.append(body)

    @property
    def pids(self) -> set[str]:
        return {body.split()[1] for body in self.bodies}

    def until(self, condition: Callable[[list[str]], Any], since: int = 0) -> None:
        """Wait until the bodies since then are as they should be."""
        deadline = time.monotonic() + WITHIN_S
        while not condition(self.bodies[since:]):
            assert time.monotonic() < deadline, f"{self.failures[:3]} {self.bodies[-3:]}"
            time.sleep(0.01)


@pytest.mark.parametrize(
    "kind",
    ["flup", *(pytest.param(k, marks=pytest.mark.interop) for k in ("c", "perl", "php-cgi"))],
)
def test_restarts_under_load_lose_no_request(kind: str, gateway: Any, tmp_path: Path) -> None:
    folder = tmp_path / "application"
    folder.mkdir()
    application = Application(kind, folder)
    running = gateway(f"""
        [listen]
        bind = ["127.0.0.1:0"]
        [backends.app]
        spawn = {json.dumps(application.spawn)}
        cwd = "{folder}"
        processes = 2
        max_requests = 300
        restart_on_change = true
        touch_reload = "{folder}/reload"
        {application.more}
        [[routes]]
        path = "/"
        backend = "app"
    """)
    with Load(running.port, "/") as load:
        load.until(lambda bodies: len(bodies) > 50)
        before = load.pids
        (folder / "reload").touch()
        load.until(lambda bodies: {body.split()[1] for body in bodies} - before)
        application.install("two")
        load.until(lambda bodies: any(body.startswith("two") for body in bodies))
        seen = len(load.bodies)
        # And the third reason, at least twice.
        load.until(lambda bodies: len(bodies) > 1500, since=seen)
        assert all(body.startswith("two") for body in load.bodies[-50:])
    assert not load.failures
    assert len(load.pids) >= 8


@pytest.fixture
def php_site(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """`tetrapylon php`, running on a port."""
    (tmp_path / "index.php").write_text(PHP)
    log = tmp_path / "log"
    command = [Path(sys.executable).with_name("tetrapylon"), "php", str(tmp_path), "--port", "0"]
    if os.geteuid() == 0:
        command += ["--user", "root"]
    with log.open("wb") as stderr:
        process = subprocess.Popen(command, stderr=stderr, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + WITHIN_S
        while b"http://127.0.0.1:" not in (text := log.read_bytes()):
            assert time.monotonic() < deadline, text
            time.sleep(0.02)
        yield process, int(text.split(b"http://127.0.0.1:")[1].split()[0])
    finally:
        process.kill()
        process.wait()


def descendants(pid: int) -> list[int]:
    found = [pid]
    for member in found:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{member}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
    return found[1:]


@pytest.mark.interop
def test_php_fpm_does_not_outlive_a_killed_gateway(
    php_site: tuple[subprocess.Popen[bytes], int],
) -> None:
    # S2
    process, port = php_site
    with Load(port, "/", clients=4) as load:
        load.until(lambda bodies: len(bodies) > 20)
    below = descendants(process.pid)
    names = [Path(f"/proc/{pid}/comm").read_text() for pid in below]
    assert sum(name.startswith("php-fpm") for name in names) >= 2
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 2
    while any(os.path.exists(f"/proc/{pid}") for pid in below):
        assert time.monotonic() < deadline, below
        time.sleep(0.01)

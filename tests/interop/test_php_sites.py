"""PHP by php-fpm, by php-cgi as FastCGI and as CGI, and Perl's CGI.pm: forms, streams, faults."""

from __future__ import annotations

import contextlib
import getpass
import grp
import hashlib
import http.client
import os
import random
import re
import socket
import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.interop

MIB = 1 << 20
UPLOAD_MIB = 100
GROWTH_MIB = 20.0
FPM_NAMES = [f"php-fpm8.{minor}" for minor in range(9, 0, -1)]
PHP = ("fpm", "fastcgi", "cgi")

CONFIGURATION = """
[listen]
bind = ["127.0.0.1:0"]
[limits]
body = "256MiB"
[cgi]
rlimits = {{ fsize = "256MiB" }}

[backends.fpm]
fastcgi = "unix:{folder}/fpm.sock"
root = "site"
files = true
connections = 4

[backends.fastcgi]
spawn = ["php-cgi"]
processes = 2
env = {{ PHP_FCGI_MAX_REQUESTS = "10", PHPRC = "{folder}" }}
root = "site"

[backends.cgi]
cgi = "site"
interpreters = {{ ".php" = "php-cgi" }}
env = {{ REDIRECT_STATUS = "200", PHPRC = "{folder}" }}

[backends.perl]
cgi = "perl"
"""
POOL = """
[global]
error_log = {folder}/fpm.log
daemonize = no
[www]
listen = {folder}/fpm.sock
{identity}
pm = static
pm.max_children = 4
php_admin_value[upload_max_filesize] = 200M
php_admin_value[post_max_size] = 200M
php_admin_value[upload_tmp_dir] = {folder}/uploads
"""
INI = """
upload_max_filesize = 200M
post_max_size = 200M
upload_tmp_dir = {folder}/uploads
session.save_path = {folder}
display_errors = 0
log_errors = 1
"""
SITE = {
    "index.php": "<?php echo 'hello from ', PHP_SAPI;",
    "upload.php": """<?php
$file = $_FILES['file'];
header('Content-Type: text/plain');
echo $_POST['name'], '|', $file['error'], '|', $file['size'], '|',
    hash_file('sha256', $file['tmp_name']);
""",
    "events.php": """<?php
header('Content-Type: text/event-stream');
while (ob_get_level()) ob_end_flush();
for ($i = 0; $i < 8; $i++) {
    echo "data: $i\\n\\n";
    flush();
    usleep(250000);
}
""",
    "modified.php": """<?php
$at = 'Sat, 02 Jan 2010 03:04:05 GMT';
header("Last-Modified: $at");
if (($_SERVER['HTTP_IF_MODIFIED_SINCE'] ?? '') === $at) { http_response_code(304); exit; }
echo 'all of it';
""",
    "gone.php": """<?php
http_response_code(410);
header('X-Two: a');
header('X-Two: b', false);
echo 'gone';
""",
    "moved.php": "<?php header('Location: /fpm/?x=1', true, 303); echo 'elsewhere';",
    "dies.php": "<?php echo str_repeat('x', 100000); flush(); posix_kill(posix_getpid(), 9);",
    "error.php": '<?php error_log("something is \\x1b[31m wrong"); no_such_function();',
    "session.php": "<?php session_start(); echo $_SESSION['n'] = ($_SESSION['n'] ?? 0) + 1;",
    "endless.php": "<?php while (true) { echo str_repeat('and so on ', 1000); flush(); }",
}
PERL = {
    "upload.pl": """#!/usr/bin/perl
use CGI;
use Digest::SHA;
my $q = CGI->new;
my $file = $q->upload('file');
my $size = -s $file;
print $q->header('text/plain'), $q->param('name'), "|0|$size|",
    Digest::SHA->new(256)->addfile($file)->hexdigest;
""",
    "events.pl": """#!/usr/bin/perl
$| = 1;
print "Content-Type: text/event-stream\\n\\n";
for (0 .. 7) { print "data: $_\\n\\n"; select undef, undef, undef, 0.25 }
""",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("sites")
    for name in ("site", "perl", "uploads", "spool"):
        (made / name).mkdir()
    for name, text in SITE.items():
        (made / "site" / name).write_text(text)
    for name, text in PERL.items():
        (made / "perl" / name).write_text(text)
        (made / "perl" / name).chmod(0o755)
    (made / "php.ini").write_text(INI.format(folder=made))
    return made


@pytest.fixture(scope="module")
def running(folder: Path, shared_gateway: Any, find_program: Any, shared_server: Any) -> Any:
    program = find_program("php-fpm", *FPM_NAMES, package="php-fpm")
    find_program("php-cgi", package="php-cgi")
    identity, as_root = f"php_admin_value[session.save_path] = {folder}\n", []
    if os.geteuid() == 0:
        group = grp.getgrgid(os.getgid()).gr_name
        identity += f"user = {getpass.getuser()}\ngroup = {group}"
        as_root = ["-R"]
    (folder / "fpm.conf").write_text(POOL.format(folder=folder, identity=identity))
    address = f"unix:{folder}/fpm.sock"
    shared_server(program, "-F", "-y", str(folder / "fpm.conf"), *as_root, address=address)
    routes = "".join(
        f'\n[[routes]]\npath = "/{name}/"\nbackend = "{name}"\n' for name in (*PHP, "perl")
    )
    configuration = folder / "tetrapylon.toml"
    configuration.write_text(CONFIGURATION.format(folder=folder) + routes)
    return shared_gateway(configuration, env={"TMPDIR": str(folder / "spool")})


def resident_mib(pid: int, key: str) -> float:
    found = re.search(rf"^{key}:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.M)
    assert found
    return int(found[1]) / 1024


def form(block: bytes) -> Iterator[bytes]:
    """Write a form of a field and a file, in pieces."""
    yield (
        b'--limit\r\nContent-Disposition: form-data; name="name"\r\n\r\nZo\xc3\xab\r\n'
        b'--limit\r\nContent-Disposition: form-data; name="file"; filename="noise"\r\n'
        b"Content-Type: application/octet-stream\r\n\r\n"
    )
    for _ in range(UPLOAD_MIB):
        yield block
    yield b"\r\n--limit--\r\n"


@pytest.mark.parametrize(
    "path", ["/fpm/upload.php", "/fastcgi/upload.php", "/cgi/upload.php", "/perl/upload.pl"]
)
def test_a_form_with_a_large_file(running: Any, folder: Path, path: str) -> None:
    block = random.Random(1).randbytes(MIB)
    digest = hashlib.sha256()
    for _ in range(UPLOAD_MIB):
        digest.update(block)
    expected = f"Zoë|0|{UPLOAD_MIB * MIB}|{digest.hexdigest()}"
    running.get("/fpm/")
    pid = running.process.pid
    Path(f"/proc/{pid}/clear_refs").write_text("5")  # proc(5): VmHWM starts anew
    before = resident_mib(pid, "VmRSS")
    length = sum(map(len, form(block)))
    for framing in ({"Content-Length": str(length)}, {"Transfer-Encoding": "chunked"}):
        fields = {"Content-Type": "multipart/form-data; boundary=limit", **framing}
        is_chunked = "Transfer-Encoding" in framing
        answer = running.request("POST", path, form(block), fields, encode_chunked=is_chunked)
        assert (answer.status, answer.text) == (200, expected)
    assert resident_mib(pid, "VmHWM") - before < GROWTH_MIB
    # PHP deletes its file when the answer is out.
    deadline = time.monotonic() + 5
    for name in ("uploads", "spool"):
        while left := [file for file in (folder / name).rglob("*") if file.is_file()]:
            assert time.monotonic() < deadline, left
            time.sleep(0.01)


def test_events_come_as_they_are_sent(running: Any) -> None:
    def watch(path: str) -> float:
        with contextlib.closing(running.connect()) as connection:
            connection.request("GET", path)
            with connection.getresponse() as response:
                assert response.headers["Content-Type"].startswith("text/event-stream")
                came = []
                for number in range(8):
                    assert response.readline() == f"data: {number}\n".encode()
                    came.append(time.monotonic())
                    assert response.readline() == b"\n"
                assert response.read() == b""
        return came[-1] - came[0]

    paths = [*(f"/{kind}/events.php" for kind in PHP), "/perl/events.pl"]
    with ThreadPoolExecutor(len(paths)) as pool:
        for path, took in zip(paths, pool.map(watch, paths), strict=True):
            # Of 1.75 s: one after the other, not all at the end.
            assert took > 1.2, path


@pytest.mark.parametrize("kind", PHP)
def test_what_php_says_of_its_answer(running: Any, kind: str) -> None:
    whole = running.get(f"/{kind}/modified.php")
    assert (whole.status, whole.text) == (200, "all of it")
    fields = {"If-Modified-Since": whole.headers["Last-Modified"]}
    same = running.get(f"/{kind}/modified.php", fields)
    assert (same.status, same.body) == (304, b"")
    head = running.request("HEAD", f"/{kind}/modified.php")
    assert (head.status, head.body) == (200, b"")
    assert head.headers["Last-Modified"] == whole.headers["Last-Modified"]
    gone = running.get(f"/{kind}/gone.php")
    assert (gone.status, gone.text, gone.headers.get_all("X-Two")) == (410, "gone", ["a", "b"])
    moved = running.get(f"/{kind}/moved.php")
    assert (moved.status, moved.headers["Location"]) == (303, "/fpm/?x=1")
    assert running.get(f"/{kind}/error.php").status == 500
    assert running.has_logged("something is \\x1b[31m wrong")
    cookie = running.get(f"/{kind}/session.php").headers["Set-Cookie"].partition(";")[0]
    for number in range(2, 5):
        assert running.get(f"/{kind}/session.php", {"Cookie": cookie}).text == str(number)
    sapi = {"fpm": "fpm-fcgi"}.get(kind, "cgi-fcgi")
    index = {"cgi": "index.php"}.get(kind, "")
    assert running.get(f"/{kind}/{index}").text == f"hello from {sapi}"


@pytest.mark.parametrize("kind", PHP)
def test_php_that_dies_and_readers_that_leave(running: Any, kind: str) -> None:
    for _ in range(3):
        with contextlib.closing(running.connect()) as connection:
            connection.request("GET", f"/{kind}/dies.php")
            # An answer that is not whole must not look as if it were.
            with pytest.raises((http.client.IncompleteRead, ConnectionResetError)):
                connection.getresponse().read()
    for _ in range(8):  # more than there are of PHP
        with contextlib.closing(running.connect()) as connection:
            connection.request("GET", f"/{kind}/endless.php")
            connection.getresponse().read(100_000)
            # As a browser's tab that is closed in the middle: a reset.
            assert connection.sock is not None
            connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert running.get(f"/{kind}/index.php").status == 200


@pytest.mark.parametrize("kind", PHP)
def test_many_requests(running: Any, kind: str) -> None:
    # php-cgi ends after ten requests each, and the next one takes its place.
    count = 60 if kind == "cgi" else 300
    begun = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: running.get(f"/{kind}/index.php"), range(count)))
    assert {answer.status for answer in answers} == {200}
    assert time.monotonic() - begun < 20

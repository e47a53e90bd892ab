"""examples/php: on a php-fpm that runs already, and by `tetrapylon php`."""

from __future__ import annotations

import contextlib
import getpass
import grp
import hashlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.interop

FPM = """
[global]
error_log = {folder}/fpm.log
daemonize = no
[www]
listen = {folder}/fpm.sock
{identity}
pm = static
pm.max_children = 4
"""


def find_php_fpm() -> str:
    """Return the program: distributions add the version to its name, and hide it in sbin."""
    folders = [*os.environ["PATH"].split(":"), "/usr/local/sbin", "/usr/sbin"]
    for folder in folders:
        for program in sorted(Path(folder).glob("php-fpm*"), reverse=True):
            if os.access(program, os.X_OK) and program.is_file():
                return str(program)
    pytest.fail("php-fpm is not installed")


@pytest.fixture
def php_fpm(tmp_path: Path) -> Iterator[Path]:
    """Run php-fpm on a unix socket; return the socket's path."""
    user, group = getpass.getuser(), grp.getgrgid(os.getgid()).gr_name
    is_root = os.geteuid() == 0
    identity = f"user = {user}\ngroup = {group}" if is_root else ""
    configuration = tmp_path / "fpm.conf"
    configuration.write_text(FPM.format(folder=tmp_path, identity=identity))
    command = [find_php_fpm(), "-F", "-y", str(configuration), *(["-R"] if is_root else [])]
    address = tmp_path / "fpm.sock"
    with (tmp_path / "fpm.stderr").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 20
        while True:
            with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
                probe.connect(str(address))
                break
            assert process.poll() is None, (tmp_path / "fpm.stderr").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield address
    finally:
        process.terminate()
        process.wait(20)


def check(running: Any) -> None:
    """Ask for the pages as a browser would."""
    assert "<h1>Hello.</h1>" in running.get("/").text
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    greeted = running.request("POST", "/", b"name=Caf%C3%A9+%3Cb%3E", form)
    assert "<h1>Hello, Café &lt;b&gt;.</h1>" in greeted.text
    below = running.get("/index.php/path/info?x=1")
    assert "PATH_INFO is <code>/path/info</code>" in below.text
    assert "SCRIPT_NAME is <code>/index.php</code>" in below.text

    picture = os.urandom(20_000_000)
    body = b"".join(
        (
            b'--cut\r\nContent-Disposition: form-data; name="file"; filename="picture"\r\n',
            b"Content-Type: application/octet-stream\r\n\r\n",
            picture,
            b"\r\n--cut--\r\n",
        )
    )
    multipart = {"Content-Type": "multipart/form-data; boundary=cut"}
    uploaded = running.request("POST", "/upload.php", body, multipart)
    assert uploaded.status == 200
    expected = hashlib.sha256(picture).hexdigest()
    assert uploaded.json() == {"name": "picture", "bytes": 20_000_000, "sha256": expected}
    empty = running.request("POST", "/upload.php", b"--cut--\r\n", multipart)
    assert empty.status == 422

    for path in ("/nothing.php", "/nothing", "/index.PHP", "/.user.ini", "/../tetrapylon.toml"):
        assert running.get(path).status in (400, 404)


def test_php_fpm_that_runs_already(copy_example: Any, start_example: Any, php_fpm: Path) -> None:
    address = {"/run/php/php-fpm.sock": str(php_fpm)}
    check(start_example(copy_example("php"), replace=address))


def test_tetrapylon_php(copy_example: Any, gateway: Any) -> None:
    folder = copy_example("php")
    check(gateway(None, "php", str(folder / "public"), "--port", "0"))

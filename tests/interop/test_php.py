"""A PHP site by curl: php-fpm on either kind of socket, php-cgi, and `tetrapylon php`."""

from __future__ import annotations

import getpass
import grp
import hashlib
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tetrapylon.gateway.php import PhpProgram, php_tables

pytestmark = pytest.mark.interop

FPM = """
[global]
error_log = {folder}/fpm.log
daemonize = no
[www]
listen = {listen}
{identity}
pm = static
pm.max_children = 4
php_value[upload_max_filesize] = 32M
php_value[post_max_size] = 32M
"""
UPLOAD_BYTES = 20_000_000

Curl = Callable[..., tuple[int, str]]


@pytest.fixture
def curl(find_program: Any, tmp_path: Path) -> Curl:
    """Run curl with options and a URL; return status and body."""
    program = find_program("curl", package="curl")
    body = tmp_path / "body"

    def run(*arguments: str | Path) -> tuple[int, str]:
        options = ("--silent", "--show-error", "--max-time", "50", "--path-as-is")
        done = subprocess.run(
            [program, "-q", *options, "--output", body, "--write-out", "%{http_code}", *arguments],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return int(done.stdout), body.read_text() if body.exists() else ""

    return run


@pytest.fixture
def site(copy_example: Any) -> Path:
    """The example's pages, with a folder below and a file that is no script."""
    public: Path = copy_example("php") / "public"
    (public / "style.css").write_text("h1 { color: teal }")
    (public / "gone.php").write_text("<?php http_response_code(404); echo 'no such guest';")
    (public / "below").mkdir()
    (public / "below" / "index.php").write_text("<?php echo 'below ', $_SERVER['PHP_SELF'];")
    return public


@pytest.fixture
def start_fpm(find_program: Any, start_server: Any, tmp_path: Path) -> Callable[[str], None]:
    """Run php-fpm with a pool of its own at "unix:/path" or "host:port"."""

    def start(address: str) -> None:
        program = find_program("php-fpm", *FPM_NAMES, package="php-fpm")
        user, group = getpass.getuser(), grp.getgrgid(os.getgid()).gr_name
        is_root = os.geteuid() == 0
        text = FPM.format(
            folder=tmp_path,
            listen=address.removeprefix("unix:"),
            identity=f"user = {user}\ngroup = {group}" if is_root else "",
        )
        (tmp_path / "fpm.conf").write_text(text)
        as_root = ["-R"] if is_root else []
        start_server(program, "-F", "-y", str(tmp_path / "fpm.conf"), *as_root, address=address)

    return start


FPM_NAMES = [f"php-fpm8.{minor}" for minor in range(9, 0, -1)]


def configuration(backend: dict[str, object]) -> str:
    """Write a backend at / as TOML: a JSON text of these values is one of TOML, too."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in backend.items()]
    return "\n".join(
        [
            '[listen]\nbind = ["127.0.0.1:0"]',
            '[[routes]]\npath = "/"\nbackend = "php"',
            "[backends.php]",
            *lines,
        ]
    )


def visit(running: Any, curl: Curl, tmp_path: Path) -> None:
    """Do what somebody does who tries a new server."""
    url = running.url
    assert curl(f"{url}/")[0] == 200
    assert "<h1>Hello, Zoë &amp; co.</h1>" in curl("-d", "name=Zo%C3%AB+%26+co", f"{url}/")[1]
    status, text = curl(f"{url}/index.php/path/in%20fo%3F/?x=1")
    assert status == 200
    assert "PATH_INFO is <code>/path/in fo?/</code>" in text
    assert "SCRIPT_NAME is <code>/index.php</code>" in text
    assert curl(f"{url}/below/") == (200, "below /below/index.php")
    assert curl(f"{url}/style.css") == (200, "h1 { color: teal }")
    assert curl("--head", f"{url}/")[0] == 200

    # curl asks first (Expect: 100-continue); in chunks the length is unknown.
    picture = tmp_path / "picture.bin"
    picture.write_bytes(os.urandom(UPLOAD_BYTES))
    expected = {
        "name": "picture.bin",
        "bytes": UPLOAD_BYTES,
        "sha256": hashlib.sha256(picture.read_bytes()).hexdigest(),
    }
    for options in ((), ("-H", "Transfer-Encoding: chunked")):
        status, text = curl(*options, "-F", f"file=@{picture}", f"{url}/upload.php")
        assert (status, json.loads(text)) == (200, expected)
    assert curl("-F", "file=", f"{url}/upload.php")[0] == 422

    assert curl(f"{url}/gone.php") == (404, "no such guest")
    for path in ("/none.php", "/none/", "/none.php/x", "/style.css/x.php", "/INDEX.PHP"):
        assert curl(url + path)[0] == 404, path
    for path in ("/.user.ini", "/../tetrapylon.toml", "/%2e%2e/tetrapylon.toml"):
        status, text = curl(url + path)
        assert status in (400, 404), path
        assert "upload" not in text


@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_php_fpm(
    kind: str,
    start_fpm: Any,
    free_address: Any,
    gateway: Any,
    curl: Curl,
    site: Path,
    tmp_path: Path,
) -> None:
    address = f"unix:{tmp_path}/fpm" if kind == "unix" else free_address()
    start_fpm(address)
    backend = {"fastcgi": address, "root": str(site), "files": True, "body": "32MiB"}
    visit(gateway(configuration(backend)), curl, tmp_path)


def test_php_cgi(find_program: Any, gateway: Any, curl: Curl, site: Path, tmp_path: Path) -> None:
    # What `tetrapylon php` serves where there is no php-fpm.
    program = find_program("php-cgi", package="php-cgi")
    tables: Any = php_tables(site, PhpProgram("cgi", program))
    visit(gateway(configuration(tables["backends"]["php"])), curl, tmp_path)


def test_tetrapylon_php(
    find_program: Any, gateway: Any, curl: Curl, site: Path, tmp_path: Path
) -> None:
    find_program("php-fpm", *FPM_NAMES, package="php-fpm")
    visit(gateway(None, "php", str(site), "--port", "0"), curl, tmp_path)

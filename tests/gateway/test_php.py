"""PHP found, and run as `tetrapylon php` has it run; by a stand-in, and by php-fpm itself."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tetrapylon.gateway import php
from tetrapylon.gateway.config import Config, FastCgiSpec
from tetrapylon.gateway.php import (
    PhpFailure,
    PhpProgram,
    describe_php,
    existing_php,
    find_php,
    php_tables,
)


def program(file: Path, text: str = "#!/bin/sh\n") -> Path:
    file.write_text(text)
    file.chmod(0o755)
    return file


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ([], None),
        (["php", "php8.2", "php-fpm.conf", "php-config"], None),
        (["php-cgi"], ("cgi", "php-cgi")),
        (["php-cgi", "php-fpm8.2"], ("fpm", "php-fpm8.2")),
        (["php-fpm7.4", "php-fpm8.10", "php-fpm8.2"], ("fpm", "php-fpm8.10")),
        (["php-fpm82", "php-fpm83"], ("fpm", "php-fpm83")),
        (["php82-fpm", "php81-fpm"], ("fpm", "php82-fpm")),
        (["php-fpm8.2", "php-fpm"], ("fpm", "php-fpm")),
    ],
)
def test_the_php_that_is_taken(tmp_path, names, found) -> None:
    for name in names:
        program(tmp_path / name)
    expected = PhpProgram(found[0], str(tmp_path / found[1])) if found else None
    assert find_php((str(tmp_path / "absent"), str(tmp_path))) == expected


def test_what_cannot_be_run_is_not_taken(tmp_path) -> None:
    (tmp_path / "php-fpm").write_text("")
    (tmp_path / "php-fpm8.2").mkdir()
    assert find_php((str(tmp_path),)) is None


def spec_of(folder: Path, program: PhpProgram) -> FastCgiSpec:
    spec = Config.from_dict(php_tables(folder, program), base=folder).backends["php"]
    assert isinstance(spec, FastCgiSpec)
    return spec


def test_the_tables_are_a_configuration(tmp_path) -> None:
    fpm = program(tmp_path / "php-fpm8.2")
    spec = spec_of(tmp_path, PhpProgram("fpm", str(fpm)))
    assert (spec.root, spec.files, spec.processes) == (str(tmp_path), True, 1)
    assert spec.connections == php.CHILDREN
    assert str(fpm) in spec.spawn
    cgi = program(tmp_path / "php-cgi")
    spec = spec_of(tmp_path, PhpProgram("cgi", str(cgi)))
    assert spec.spawn[0] == str(cgi)
    assert spec.processes == spec.connections


def test_what_is_said_of_it(tmp_path) -> None:
    described = describe_php(tmp_path, PhpProgram("fpm", "/usr/sbin/php-fpm8.2"))
    assert described == {"php": f"PHP scripts in {tmp_path}, by php-fpm8.2"}


# What php-fpm sees where it is started.
STAND_IN = """\
#!{python} -IS
import json, os, socket, sys
text = open(sys.argv[sys.argv.index("--fpm-config") + 1]).read()
name, _, number = os.environ["FPM_SOCKETS"].rpartition("=")
listening = socket.socket(fileno=int(number))
print(json.dumps({{
    "configuration": text,
    "listen": name,
    "is_listening": listening.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN),
    "stdin": os.readlink("/dev/fd/0"),
    "argv": sys.argv[1:],
}}))
"""


def test_php_fpm_gets_the_socket_and_a_configuration_from_nowhere(tmp_path) -> None:
    text = STAND_IN.format(python=sys.executable)
    fpm = program(tmp_path / "php fpm", text)  # a space as in any path
    spec = spec_of(tmp_path, PhpProgram("fpm", str(fpm)))
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s"))
        listening.listen()
        done = subprocess.run(
            spec.spawn, stdin=listening, stdout=subprocess.PIPE, check=True, timeout=30
        )
    seen = json.loads(done.stdout)
    assert f"\nlisten = {seen['listen']}\n" in seen["configuration"]
    assert "\npost_max_size" not in seen["configuration"]
    assert f"\nphp_value[post_max_size] = {php.UPLOAD_MIB}M\n" in seen["configuration"]
    assert seen["is_listening"]
    assert seen["stdin"] == "/dev/null"
    assert "--nodaemonize" in seen["argv"]
    assert not os.path.exists(seen["listen"])


def test_without_any_php_the_packages_are_named(monkeypatch) -> None:
    monkeypatch.setattr(php, "find_php", lambda: None)
    with pytest.raises(PhpFailure, match="apt install php-fpm"):
        existing_php()

"""PHP found, started, watched and stopped; by stand-ins, and once by php-fpm itself."""

import os
import pwd
import signal
import stat
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tetrapylon.gateway import php
from tetrapylon.gateway.config import Config, FastCgiSpec
from tetrapylon.gateway.php import PhpFailure, PhpFpm, PhpProgram, find_php, php_tables, running_php


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


def test_the_tables_are_a_configuration(tmp_path) -> None:
    config = Config.from_dict(php_tables(tmp_path, "unix:/run/x.sock", "php-fpm"), base=tmp_path)
    spec = config.backends["/"]
    assert isinstance(spec, FastCgiSpec)
    assert (spec.address, spec.root, spec.files) == ("unix:/run/x.sock", str(tmp_path), True)
    cgi = program(tmp_path / "php-cgi")
    spec = Config.from_dict(php_tables(tmp_path, None, str(cgi))).backends["/"]
    assert isinstance(spec, FastCgiSpec)
    assert spec.spawn[0] == str(cgi)
    assert spec.processes == spec.connections


# A stand-in for php-fpm: listens where its configuration says, until QUIT.
STAND_IN = """\
#!{python}
import re, signal, socket, sys
text = open(sys.argv[sys.argv.index("--fpm-config") + 1]).read()
open("{folder}/started", "a").write(text + "\\0")
listening = socket.socket(socket.AF_UNIX)
listening.bind(re.search("^listen = (.*)$", text, re.M)[1])
listening.listen()
signal.signal(signal.SIGQUIT, lambda *_: sys.exit(0))
signal.pause()
"""


@pytest.fixture
def stand_in(tmp_path) -> Path:
    text = STAND_IN.format(python=sys.executable, folder=tmp_path)
    return program(tmp_path / "php-fpm", text)


def test_it_runs_from_enter_to_exit_and_leaves_nothing(tmp_path, stand_in) -> None:
    with PhpFpm(str(stand_in), tmp_path) as running:
        path = running.address.removeprefix("unix:")
        assert stat.S_ISSOCK(os.stat(path).st_mode)
        home = os.path.dirname(path)
        assert stat.S_IMODE(os.stat(home).st_mode) == 0o700
        process = running._process
        assert process is not None
    assert process.returncode == 0
    assert not os.path.exists(home)


def test_it_is_started_again_when_it_dies(tmp_path, stand_in, caplog, monkeypatch) -> None:
    monkeypatch.setattr(php.limits, "FASTCGI_BACKOFF_S", 0.01)
    with PhpFpm(str(stand_in), tmp_path) as running:
        first = running._process
        assert first is not None
        # The socket's file is left behind, as by any process that is killed.
        os.unlink(running.address.removeprefix("unix:"))
        os.kill(first.pid, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while (tmp_path / "started").read_text().count("\0") < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        second = running._process
    assert second is not first
    assert second is not None
    assert second.poll() is not None
    assert "started again" in caplog.text


def test_one_that_ends_at_once_is_a_failure(tmp_path) -> None:
    bad = program(tmp_path / "php-fpm", "#!/bin/sh\nexit 78\n")
    with pytest.raises(PhpFailure, match="ended at once with 78"):
        PhpFpm(str(bad), tmp_path).__enter__()


def test_one_that_never_listens_is_a_failure_and_is_ended(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(php, "START_S", 0.2)
    text = f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 60\n"
    bad = PhpFpm(str(program(tmp_path / "php-fpm", text)), tmp_path)
    with pytest.raises(PhpFailure, match="does not listen"):
        bad.__enter__()
    assert bad._process is not None
    assert bad._process.returncode == -signal.SIGQUIT


def test_one_that_does_not_stop_is_killed(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(php, "STOP_S", 0.2)
    text = textwrap.dedent("""\
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGQUIT, signal.SIG_IGN)
        while True: signal.pause()
    """)
    stubborn = STAND_IN.partition("signal.signal(")[0] + text
    file = program(tmp_path / "php-fpm", stubborn.format(python=sys.executable, folder=tmp_path))
    with PhpFpm(str(file), tmp_path) as running:
        process = running._process
    assert process is not None
    assert process.returncode == -signal.SIGKILL


def test_without_any_php_the_packages_are_named(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(php, "find_php", lambda: None)
    with pytest.raises(PhpFailure, match="apt install php-fpm"), running_php(tmp_path):
        raise AssertionError("nothing to run")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root chooses a user")
def test_root_s_php_runs_as_the_folder_s_owner_or_nobody(tmp_path) -> None:
    nobody = pwd.getpwnam("nobody")
    os.chown(tmp_path, nobody.pw_uid, nobody.pw_gid)
    assert php._user_for(tmp_path) == nobody
    os.chown(tmp_path, 0, 0)
    tmp_path.chmod(0o700)
    assert php._user_for(tmp_path) is None
    open_to_all = php._user_for(Path("/usr"))
    assert open_to_all is not None
    assert open_to_all.pw_uid != 0


def test_who_is_not_root_runs_php_as_themselves(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(php.os, "geteuid", lambda: 1000)
    assert php._user_for(tmp_path) is None


@pytest.mark.interop
def test_php_fpm_itself_takes_the_configuration(tmp_path) -> None:
    with running_php(tmp_path) as tables:
        spec = Config.from_dict(tables, base=tmp_path).backends["/"]
        assert isinstance(spec, FastCgiSpec)

"""PHP for ``tetrapylon php``: found on this machine, started, watched and stopped.

php-fpm gets a configuration of its own in a private folder, with a unix socket
there, and runs as a child of ours; nothing of the system's own php-fpm is
touched. Where there is only php-cgi, the gateway's FastCGI backend spawns it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pwd
import re
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from . import limits

logger = logging.getLogger("tetrapylon.gateway")

#: Where php-fpm lies although PATH of a user does not lead there.
FOLDERS = (
    "/usr/sbin",
    "/usr/local/sbin",
    "/opt/homebrew/sbin",
    "/opt/homebrew/bin",
    "/usr/local/opt/php/sbin",
)
CHILDREN = 16
UPLOAD_MIB = 64
START_S = 5.0
STOP_S = 5.0

# php-fpm, php-fpm8.2 (Debian), php-fpm83 (Alpine), php82-fpm; php-cgi likewise.
_NAME = re.compile(r"php(?P<before>[0-9.]*)-(?P<kind>fpm|cgi)(?P<after>[0-9.]*)")
_UNPRIVILEGED_USERS = ("www-data", "http", "apache", "nginx", "www", "_www", "nobody")

NOT_FOUND = """There is neither php-fpm nor php-cgi on this machine. Install one:
  Debian, Ubuntu    apt install php-fpm
  Fedora, RHEL      dnf install php-fpm
  Alpine            apk add php-fpm    (or php83-fpm, as the release names it)
  Arch              pacman -S php-fpm
  macOS             brew install php"""

_CONFIGURATION = """\
[global]
daemonize = no
error_log = /dev/stderr
log_level = warning
process_control_timeout = {stop_s}s

[www]
listen = {socket}
listen.mode = 0600
{user}pm = ondemand
pm.max_children = {children}
pm.process_idle_timeout = 30s
clear_env = yes
catch_workers_output = yes
decorate_workers_output = no
security.limit_extensions = .php
php_value[upload_max_filesize] = {upload}M
php_value[post_max_size] = {upload}M
"""


@dataclass(frozen=True, slots=True)
class PhpProgram:
    """A PHP that speaks FastCGI: what kind, and its path."""

    kind: Literal["fpm", "cgi"]
    path: str


def find_php(folders: tuple[str, ...] | None = None) -> PhpProgram | None:
    """Return the PHP to run: php-fpm before php-cgi, the newest of each.

    ``folders`` are looked through in place of PATH and `FOLDERS`.
    """
    if folders is None:
        folders = (*os.environ.get("PATH", os.defpath).split(os.pathsep), *FOLDERS)
    best: tuple[tuple[object, ...], PhpProgram] | None = None
    for folder in dict.fromkeys(folders):
        with contextlib.suppress(OSError):
            for name in os.listdir(folder or "."):
                match = _NAME.fullmatch(name)
                path = os.path.join(folder or ".", name)
                if match is None or not os.access(path, os.X_OK) or os.path.isdir(path):
                    continue
                version = match["before"] or match["after"]
                # A name without version is what the administrator chose.
                rank = (match["kind"] == "fpm", not version, _version(version))
                if best is None or rank > best[0]:
                    kind: Literal["fpm", "cgi"] = "fpm" if match["kind"] == "fpm" else "cgi"
                    best = rank, PhpProgram(kind, path)
    return best[1] if best is not None else None


def _version(text: str) -> tuple[int, ...]:
    """Order 8.2, 82 and 8.10 as what they mean; 82 is 8.2."""
    major, dot, minor = text.partition(".")
    if not dot:
        major, minor = text[:1], text[1:]
    return (int(major or 0), int(minor.replace(".", "") or 0))


class PhpFpm:
    """php-fpm for one folder, running from ``with`` to its end.

    ``address`` is its FastCGI address. When php-fpm dies it is started again,
    each time after a longer wait. Raises `PhpFailure` when it does not come up.
    """

    def __init__(self, program: str, folder: Path) -> None:
        self._program = program
        self._folder = folder
        self._is_stopping = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._watcher = threading.Thread(target=self._watch, name="tetrapylon-php", daemon=True)
        self._home = ""
        self.address = ""

    def __enter__(self) -> Self:
        self._home = tempfile.mkdtemp(prefix="tetrapylon-php-")
        path = os.path.join(self._home, "php.sock")
        self.address = f"unix:{path}"
        try:
            user = _user_for(self._folder)
            Path(self._home, "php-fpm.conf").write_text(_configuration(path, user))
            self._start()
            self._wait_until_listening(path)
        except BaseException:
            self._stop()
            raise
        self._watcher.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop()

    def _start(self) -> None:
        command = [self._program, "--nodaemonize", "--fpm-config", f"{self._home}/php-fpm.conf"]
        if os.geteuid() == 0:
            command.append("--allow-to-run-as-root")
        # A session of its own: Ctrl-C at the terminal reaches us alone, and we stop it.
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            cwd=self._home,
            start_new_session=True,
        )

    def _wait_until_listening(self, path: str) -> None:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            assert self._process is not None
            code = self._process.poll()
            if code is not None:
                raise PhpFailure(f"{self._program} ended at once with {code}; it says why above")
            with contextlib.closing(socket.socket(socket.AF_UNIX)) as probe:
                if probe.connect_ex(path) == 0:
                    return
            time.sleep(0.02)
        raise PhpFailure(f"{self._program} does not listen after {START_S:g} s")

    def _watch(self) -> None:
        wait_s = limits.FASTCGI_BACKOFF_S
        while True:
            process = self._process
            assert process is not None
            began_at = time.monotonic()
            code = process.wait()
            if time.monotonic() - began_at > 60:
                wait_s = limits.FASTCGI_BACKOFF_S
            if self._is_stopping.wait(wait_s):
                return
            logger.error("php-fpm ended with %d and is started again", code)
            wait_s = min(wait_s * 2, 30.0)
            try:
                self._start()
            except OSError as error:
                logger.error("php-fpm cannot be started again: %s", error)
                return

    def _stop(self) -> None:
        self._is_stopping.set()
        if self._watcher.ident is not None:
            _end(self._process)
            self._watcher.join(STOP_S)
        # Once more: the watcher may have started it anew meanwhile.
        _end(self._process)
        shutil.rmtree(self._home, ignore_errors=True)


class PhpFailure(Exception):
    """PHP does not start; the message says why."""


def _end(process: subprocess.Popen[bytes] | None) -> None:
    """Stop php-fpm: its requests may finish (QUIT), within a bound (TERM, KILL)."""
    if process is None or process.poll() is not None:
        return
    for number in (signal.SIGQUIT, signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            if number == signal.SIGKILL:
                os.killpg(process.pid, number)
            else:
                process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
            return


def _configuration(path: str, user: pwd.struct_passwd | None) -> str:
    return _CONFIGURATION.format(
        socket=path,
        children=CHILDREN,
        upload=UPLOAD_MIB,
        stop_s=int(STOP_S),
        user=f"user = {user.pw_name}\ngroup = {user.pw_gid}\n" if user is not None else "",
    )


def _user_for(folder: Path) -> pwd.struct_passwd | None:
    """Return whom the scripts run as when we are root; None: as we do.

    The folder's owner; if that is root, too, somebody without rights who can
    read it; if nobody can, root.
    """
    if os.geteuid() != 0:
        return None
    owner = folder.stat().st_uid
    if owner != 0:
        with contextlib.suppress(KeyError):
            return pwd.getpwuid(owner)
    if all(_lets_all_through(parent) for parent in (folder, *folder.parents)):
        for name in _UNPRIVILEGED_USERS:
            with contextlib.suppress(KeyError):
                return pwd.getpwnam(name)
    logger.warning("only root can read %s: PHP runs as root", folder)
    return None


def _lets_all_through(folder: Path) -> bool:
    return bool(folder.stat().st_mode & stat.S_IXOTH)


def php_tables(folder: Path, address: str | None, program: str) -> dict[str, object]:
    """Return the configuration's tables for ``folder``, as the file would have them.

    ``address`` is php-fpm's; without it the gateway spawns php-cgi, ``program``.
    """
    backend: dict[str, object] = {
        "root": str(folder),
        "index": ["index.php"],
        "files": True,
        "body": f"{UPLOAD_MIB}MiB",
    }
    if address is not None:
        backend |= {"fastcgi": address, "connections": CHILDREN}
    else:
        settings = [f"-d{name}={UPLOAD_MIB}M" for name in ("upload_max_filesize", "post_max_size")]
        backend |= {"spawn": [program, *settings], "processes": 4, "connections": 4}
    return {"routes": [{"path": "/", "backend": backend}]}


@contextlib.contextmanager
def running_php(folder: Path) -> Iterator[dict[str, object]]:
    """Start what PHP there is; give the configuration's tables for ``folder``.

    Raises `PhpFailure` when there is none, or it does not start.
    """
    program = find_php()
    if program is None:
        raise PhpFailure(NOT_FOUND)
    if program.kind == "cgi":
        yield php_tables(folder, None, program.path)
    else:
        with PhpFpm(program.path, folder) as php:
            yield php_tables(folder, php.address, program.path)

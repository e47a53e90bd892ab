"""PHP for ``tetrapylon php``: found on this machine, and how the gateway is to run it.

php-fpm gets a configuration of its own, and the gateway's listening socket; nothing
of the system's own php-fpm is touched. Where there is only php-cgi, that is run. Both
are managed applications like any other (`tetrapylon.gateway.managed`).
"""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

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

# php-fpm, php-fpm8.2 (Debian), php-fpm83 (Alpine), php82-fpm; php-cgi likewise.
_NAME = re.compile(r"php(?P<before>[0-9.]*)-(?P<kind>fpm|cgi)(?P<after>[0-9.]*)")

NOT_FOUND = """There is neither php-fpm nor php-cgi on this machine. Install one:
  Debian, Ubuntu    apt install php-fpm
  Fedora, RHEL      dnf install php-fpm
  Alpine            apk add php-fpm    (or php83-fpm, as the release names it)
  Arch              pacman -S php-fpm
  macOS             brew install php"""

# There is no such path: the socket is the one that it is given, by this name.
_SOCKET = "/dev/null/tetrapylon"

_CONFIGURATION = f"""\
[global]
daemonize = no
error_log = /dev/null
log_level = warning

[www]
listen = {_SOCKET}
pm = ondemand
pm.max_children = {CHILDREN}
pm.process_idle_timeout = 30s
clear_env = yes
catch_workers_output = yes
decorate_workers_output = no
security.limit_extensions = .php
php_value[upload_max_filesize] = {UPLOAD_MIB}M
php_value[post_max_size] = {UPLOAD_MIB}M
"""

# php-fpm puts /dev/null in the place of its standard input, so it gets the listening
# socket as descriptor 3, and as the one that it would pass to itself in a reload. Its
# configuration lies nowhere: a pipe leads to it. Its log is its standard error, where
# what scripts say comes, too, and so does not have to come as records as well.
_START_FPM = f"""\
exec 3<&0 4<<END </dev/null
$1
END
FPM_SOCKETS={_SOCKET}=3 exec "$0" -d fastcgi.logging=0 \\
  --nodaemonize --force-stderr --allow-to-run-as-root --fpm-config /dev/fd/4"""


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


class PhpFailure(Exception):
    """There is no PHP; the message says how to get one."""


def existing_php() -> PhpProgram:
    """Return the PHP to run; raises `PhpFailure` when there is none."""
    program = find_php()
    if program is None:
        raise PhpFailure(NOT_FOUND)
    return program


def php_tables(folder: Path, program: PhpProgram) -> dict[str, object]:
    """Return the configuration's tables for ``folder``, as the file would have them."""
    backend: dict[str, object] = {
        "root": str(folder),
        "index": ["index.php"],
        "files": True,
        "body": f"{UPLOAD_MIB}MiB",
    }
    if program.kind == "fpm":
        backend |= {
            "spawn": ["/bin/sh", "-c", _START_FPM, program.path, _CONFIGURATION],
            "connections": CHILDREN,
        }
    else:
        settings = [f"-d{name}={UPLOAD_MIB}M" for name in ("upload_max_filesize", "post_max_size")]
        backend |= {"spawn": [program.path, *settings], "processes": 4, "connections": 4}
    return {"backends": {"php": backend}, "routes": [{"path": "/", "backend": "php"}]}


def describe_php(folder: Path, program: PhpProgram) -> dict[str, str]:
    """Return what the banner is to say of the backends in `php_tables`."""
    return {"php": f"PHP scripts in {folder}, by {os.path.basename(program.path)}"}

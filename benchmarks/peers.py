"""What a peer is, and this gateway as one of them.

A configuration is written for each run into a folder of the server's own. No server
logs requests, none closes a kept connection after a number of requests.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from processes import Group

BIN = Path(sys.executable).parent
# Distributions keep servers in sbin, where PATH of a user does not lead.
PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin"))


@dataclass(frozen=True, slots=True)
class Place:
    """Where a server works: its own ``folder``, its ``port``, and what it is to serve.

    ``scripts`` is the folder behind /cgi-bin/ or, for FastCGI, of the PHP scripts;
    ``application`` the FastCGI application's unix socket.
    """

    folder: Path
    port: int
    scripts: Path
    connections: int
    application: Path | None = None


@dataclass(frozen=True, slots=True)
class Peer:
    """A server: ``start`` writes its configuration and starts it in a group.

    ``version`` returns None if it is not installed; ``package`` says how it would be.
    """

    name: str
    package: str
    version: Callable[[], str | None]
    start: Callable[[Group, Place], None]


def program(*names: str) -> str | None:
    """Return the path of the first program that is there."""
    return next((path for name in names if (path := shutil.which(name, path=PATH))), None)


def needed(*names: str) -> str:
    path = program(*names)
    assert path is not None, names
    return path


def says(*command: str) -> Callable[[], str | None]:
    """Return what finds a version in a program's output."""

    def version() -> str | None:
        path = program(command[0])
        if path is None:
            return None
        done = subprocess.run(
            [path, *command[1:]], capture_output=True, text=True, timeout=20, check=False
        )
        found = re.search(r"[0-9]+(\.[0-9]+)+", done.stdout + done.stderr)
        return found[0] if found else "?"

    return version


def all_of(*versions: Callable[[], str | None]) -> Callable[[], str | None]:
    """Return what gives the versions of several programs, or None if one is missing."""

    def version() -> str | None:
        found = [each() for each in versions]
        return ", ".join(map(str, found)) if all(found) else None

    return version


def distribution(name: str) -> Callable[[], str | None]:
    """Return what gives the version of a Python distribution."""

    def version() -> str | None:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return None

    return version


def write(place: Place, name: str, text: str) -> Path:
    path = place.folder / name
    path.write_text(text)
    return path


OURS = "tetrapylon"


def start_gateway(
    group: Group, place: Place, backend: str, *, path: str = "/", more: str = ""
) -> None:
    """Start this gateway with one backend, an inline table."""
    config = f"""
[listen]
bind = ["127.0.0.1:{place.port}"]
[access_log]
enabled = false
[limits]
requests_per_connection = 0      # as the peers
[[routes]]
path = "{path}"
backend = {{ {backend} }}
{more}"""
    file = write(place, "tetrapylon.toml", config)
    command = [str(BIN / "tetrapylon"), "serve", "-c", str(file)]
    group.start(command, address=place.port)


def gateway_cgi(name: str = OURS, more: str = "") -> Peer:
    """Return this gateway with CGI scripts, and ``more`` keys of its backend."""

    def start(group: Group, place: Place) -> None:
        start_gateway(group, place, f'cgi = "{place.scripts}"{more}', path="/cgi-bin/")

    return Peer(name, OURS, distribution(OURS), start)


def _gateway_fastcgi(group: Group, place: Place) -> None:
    # Kept connections hold workers of php-fpm: as many of the one as of the other.
    backend = (
        f'fastcgi = "unix:{place.application}", root = "{place.scripts}", keep_alive = true,'
        f' idle = "60s", connections = {place.connections}'
    )
    start_gateway(group, place, backend)


FASTCGI_OURS = Peer(OURS, OURS, distribution(OURS), _gateway_fastcgi)

"""Whom children run as: what ``user`` means, and what a gateway started as root must be told.

A script, or an application that the gateway starts, has the gateway's rights. Those
of root are never meant by saying nothing: so a gateway started as root starts no
child whose backend does not say whom it is to be.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from .config import BackendSpec, Config

# Who serves files where nobody else does; the distributions do not agree on a name.
_UNPRIVILEGED = ("www-data", "http", "apache", "nginx", "www", "_www", "nobody")


class NobodyFits(Exception):
    """There is no user but root for what lies in a folder; the message says why."""


class Names(NamedTuple):
    """A user and, where it is not the user's own, a group: as ``user`` and ``group`` say."""

    user: str
    group: str | None = None


def missing_users(config: Config) -> Iterator[tuple[str, str]]:
    """Yield (place, text) for every backend that must say ``user`` and does not.

    There are none unless this process is root. The place is ``file:line``, or a
    key where there is no file.
    """
    if os.geteuid() != 0:
        return
    for spec in config.backends.values():
        if needs_user(spec):
            yield (
                spec.place or f"backends.{spec.name}",
                f"backend {spec.name}: started as root, and nothing says whom it runs as; "
                f'write user = "{_unprivileged() or "nobody"}" here or in [{spec.kind}], '
                'or user = "root" if that is really meant',
            )


def needs_user(spec: BackendSpec) -> bool:
    """Tell whether a backend starts processes without saying whom they run as."""
    return spec.starts_processes and getattr(spec, "user", None) is None


def with_user(config: Config, names: Names) -> Config:
    """Return the configuration with a user for every backend that needs one and has none."""
    backends = {
        name: msgspec.structs.replace(spec, **names._asdict()) if needs_user(spec) else spec
        for name, spec in config.backends.items()
    }
    return msgspec.structs.replace(config, backends=backends)


def user_for(folder: Path) -> Names | None:
    """Return whom what lies in ``folder`` runs as if we are root; None: as we do.

    That is the folder's owner, or if that is root, too, somebody without rights.
    Raises `NobodyFits` where only root can read it.
    """
    if os.geteuid() != 0:
        return None
    status = folder.stat()
    if status.st_uid != 0:
        try:
            return Names(pwd.getpwuid(status.st_uid).pw_name)
        except KeyError:
            # As in a container, whose users are not those of the folder's host.
            return Names(str(status.st_uid), str(status.st_gid))
    name = _unprivileged()
    if name is not None and all(map(_lets_all_through, (folder, *folder.parents))):
        return Names(name)
    raise NobodyFits(f"{folder} is root's, and nobody else can read it")


def _unprivileged() -> str | None:
    for name in _UNPRIVILEGED:
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    return None


def _lets_all_through(folder: Path) -> bool:
    return bool(folder.stat().st_mode & stat.S_IXOTH)

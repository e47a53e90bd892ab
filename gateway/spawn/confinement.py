"""What children may use and whom they run as: set once on their helper, and inherited."""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from .. import limits as default

_UMASK = 0o077

#: The smallest limits under which the helper itself runs.
LEAST_RLIMITS = {"as": 64 * default.MIB, "nofile": 16}
RLIMITS: Mapping[str, int] = {
    "cpu": int(default.CGI_CPU_S),
    "as": default.CGI_ADDRESS_SPACE_BYTES,
    "nofile": default.CGI_OPEN_FILES,
    "nproc": default.CGI_PROCESSES,
    "fsize": default.CGI_FILE_BYTES,
    "core": default.CGI_CORE_BYTES,
}


class User(NamedTuple):
    """Whom children run as; only root can choose."""

    uid: int
    gid: int
    groups: tuple[int, ...]

    @classmethod
    def find(cls, user: str, group: str | None = None) -> User:
        """Look up names (or numbers as text, which need no name if both are numbers).

        Without ``group``, it is the user's own, with all supplementary groups;
        with it, that group alone. Raises `LookupError`, with a message.
        """
        entry = None
        try:
            entry = pwd.getpwuid(int(user)) if user.isdecimal() else pwd.getpwnam(user)
        except KeyError:
            if not user.isdecimal():
                raise LookupError(f"no such user: {user!r}") from None
        if group is None:
            if entry is None:
                raise LookupError(f"user {user} has no name, and so no group: name the group, too")
            groups = os.getgrouplist(entry.pw_name, entry.pw_gid)
            return cls(entry.pw_uid, entry.pw_gid, tuple(groups))
        try:
            gid = int(group) if group.isdecimal() else grp.getgrnam(group).gr_gid
        except KeyError:
            raise LookupError(f"no such group: {group!r}") from None
        return cls(entry.pw_uid if entry is not None else int(user), gid, (gid,))


def child_user(user: str | None, group: str | None = None) -> User | None:
    """Return whom children are to become; None: they stay what the gateway is.

    Raises `LookupError` for an unknown user or group, and `ValueError` where the
    gateway would have to be root for it.
    """
    if user is None:
        return None
    found = User.find(user, group)
    if os.geteuid() == 0:
        return found
    if found.uid == os.geteuid() and (group is None or found.gid == os.getegid()):
        return None
    name = f"{user}:{group}" if group is not None else user
    raise ValueError(f"only a gateway that is started as root can have its children run as {name}")


@dataclass(frozen=True)
class Confinement:
    """What a helper sets on itself, for all its children to inherit.

    ``rlimits``: ``cpu`` in seconds, ``as``, ``fsize``, ``core`` in bytes,
    ``nofile`` and ``nproc`` counts; what is missing, and 0 but for ``core``, is
    left as it is; so is a ``umask`` of None. ``nproc`` counts all processes of a
    user, so it holds with a ``user`` of its own only.

    Raises `ValueError` for limits that are unknown or too small to start anything.
    """

    rlimits: tuple[tuple[str, int], ...] = tuple(RLIMITS.items())
    umask: int | None = _UMASK
    user: User | None = None

    def __post_init__(self) -> None:
        for name, value in self.rlimits:
            if name not in RLIMITS:
                raise ValueError(f"no such limit: {name!r}; there are {', '.join(RLIMITS)}")
            least = LEAST_RLIMITS.get(name, 0)
            if value < 0 or 0 < value < least:
                raise ValueError(f"limit {name!r} of {value} is less than {least}")

    def message(self) -> dict[str, Any]:
        """Return the helper's first message."""
        message: dict[str, Any] = {
            "op": "confine",
            "umask": self.umask,
            "rlimits": {
                name: value
                for name, value in self.rlimits
                if (value or name == "core") and (name != "nproc" or self.user is not None)
            },
        }
        if self.user is not None:
            message |= {
                "uid": self.user.uid,
                "gid": self.user.gid,
                "groups": list(self.user.groups),
            }
        return message

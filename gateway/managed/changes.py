"""Files whose change is a reason to start an application anew.

They are looked at by stat(2) at intervals: that works on every file system, and for
files that are not there yet. A change counts once it has come to rest, so that
nothing is started of which half is written.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TypeAlias

_State: TypeAlias = tuple[int, ...] | None
# Of a folder that is watched with all that is in it.
_MOST_FILES = 5000


class Changes:
    """Watches ``paths``: files, and folders with the files at any depth in them.

    In folders, what begins with a dot or ends with ``~`` or ``.pyc`` is no change. A
    path that vanishes is none either, until it is there again. Use it from one thread
    at a time; `look` waits for the file systems.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        self._paths = tuple(paths)
        self._known = self._states()
        self._pending: dict[str, _State] = {}

    def look(self) -> str | None:
        """Return a path that has changed since, and was at rest between two looks."""
        if not self._paths:
            return None
        now = self._states()
        changed: dict[str, _State] = {
            path: state
            for path, state in now.items()
            if state is not None and state != self._known.get(path)
        }
        is_at_rest = changed == self._pending
        self._pending = changed
        if not changed or not is_at_rest:
            return None
        self._known.update(changed)
        self._pending = {}
        return next(iter(changed))

    def _states(self) -> dict[str, _State]:
        states: dict[str, _State] = {}
        for path in self._paths:
            states[path] = _state(path)
            if os.path.isdir(path):
                states.update(_states_in(path))
        return states


def _states_in(folder: str) -> dict[str, _State]:
    states: dict[str, _State] = {}
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith((".", "__pycache__"))]
        for name in files:
            if not name.startswith(".") and not name.endswith(("~", ".pyc")):
                path = os.path.join(root, name)
                states[path] = _state(path)
        if len(states) > _MOST_FILES:
            break
    return states


def _state(path: str) -> _State:
    try:
        status = os.stat(path)
    except OSError:
        return None
    if os.path.isdir(path):
        # What is in it says itself when it changes.
        return (status.st_dev, status.st_ino)
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)

"""How much memory a process and its descendants hold, as proc(5) tells it.

The sum of their resident sets is quick to read and never too small, but counts what
processes share once for each. So where that sum is over a limit, the proportional
sets (PSS) decide, in which a page that five share counts a fifth for each.
"""

from __future__ import annotations

import os
import re

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_PSS = re.compile(rb"^Pss:\s+(\d+) kB", re.MULTILINE)


def is_supported() -> bool:
    """Tell whether this system says how much memory processes hold."""
    return os.path.exists("/proc/self/statm")


def memory_over(pid: int, limit_bytes: int) -> int | None:
    """Return how many bytes ``pid`` and its descendants hold if that is over the limit."""
    tree = _tree(pid)
    if sum(_resident_bytes(member) for member in tree) <= limit_bytes:
        return None
    held = sum(_proportional_bytes(member) for member in tree)
    return held if held > limit_bytes else None


def _tree(pid: int) -> list[int]:
    """Return ``pid`` and its descendants."""
    found = [pid]
    for member in found:
        try:
            for task in os.listdir(f"/proc/{member}/task"):
                with open(f"/proc/{member}/task/{task}/children", "rb") as file:
                    found += map(int, file.read().split())
        except OSError:
            continue  # it has ended
    return found


def _resident_bytes(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE_BYTES
    except OSError:
        return 0


def _proportional_bytes(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            found = _PSS.search(file.read())
    except OSError:
        found = None  # it belongs to another user, or the kernel is older than 4.14
    return int(found[1]) * 1024 if found else _resident_bytes(pid)

"""Open a file beneath a root directory, whatever the path and whoever changes the tree meanwhile.

A check of the path before the opening is a race: between the two a directory
can be swapped for a symbolic link. So the kernel resolves the path in one
call, ``openat2(2)`` with ``RESOLVE_BENEATH``; where there is none (other
systems, old kernels, a seccomp filter) each component is opened by itself,
relative to its parent's descriptor, with ``O_NOFOLLOW``. Both ways follow the
same rules:

- a symbolic link is followed when it is relative and every step of it stays
  beneath the root (``symlinks="inside"``), or not at all (``"never"``);
- only a regular file is handed out; a FIFO or a device never blocks the
  caller (``O_NONBLOCK``).

Used by the static backend, and by whatever else serves files by a name that a
peer chose.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import sys
import time
from typing import Literal, TypeAlias

from ..adapters.errors import EXHAUSTED, BackendError, Forbidden, NotFound, Unavailable

Symlinks: TypeAlias = Literal["inside", "never"]
Resolver: TypeAlias = Literal["kernel", "walk"]

#: How long an open root may lag behind its path, in seconds.
ROOT_AGE_S = 1.0

# linux/openat2.h; the number is the same on every architecture Python runs on.
_SYS_OPENAT2 = 437
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_NO_SYMLINKS = 0x04
_RESOLVE_BENEATH = 0x08

_FILE = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
# O_PATH asks for no more of a directory than passing through it does.
_DIRECTORY = getattr(os, "O_PATH", os.O_RDONLY) | os.O_CLOEXEC | os.O_DIRECTORY
_LINKS = 40  # Linux's own MAXSYMLINKS
_RETRIES = 8

_ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG})
_REFUSED = frozenset(
    {errno.EACCES, errno.EPERM, errno.ELOOP, errno.EXDEV, errno.ENXIO, errno.ENODEV}
)


class _OpenHow(ctypes.Structure):
    """``struct open_how`` of ``openat2(2)``."""

    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.syscall.argtypes = (
    ctypes.c_long,
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.POINTER(_OpenHow),
    ctypes.c_size_t,
)
_HOW: dict[Symlinks, _OpenHow] = {
    "inside": _OpenHow(_FILE, 0, _RESOLVE_BENEATH | _RESOLVE_NO_MAGICLINKS),
    "never": _OpenHow(_FILE, 0, _RESOLVE_BENEATH | _RESOLVE_NO_MAGICLINKS | _RESOLVE_NO_SYMLINKS),
}

_HOW_SIZE = ctypes.sizeof(_OpenHow)


def _open_by_kernel(root_fd: int, path: bytes, symlinks: Symlinks) -> int:
    how = _HOW[symlinks]
    for _ in range(_RETRIES):
        fd: int = _libc.syscall(_SYS_OPENAT2, root_fd, path, how, _HOW_SIZE)
        if fd >= 0:
            return fd
        code = ctypes.get_errno()
        # EAGAIN: a rename raced with the `..` of a link, which the kernel could
        # then not prove to stay beneath the root.
        if code not in (errno.EAGAIN, errno.EINTR):
            break
    raise OSError(code, os.strerror(code))


def _open_by_walk(root_fd: int, path: bytes, symlinks: Symlinks) -> int:
    pending = path.split(b"/")[::-1]
    trail = [root_fd]  # the open directories from the root down to here
    links = 0
    try:
        while pending:
            name = pending.pop()
            if name in (b"", b"."):
                continue
            if name == b"..":  # only a link's target brings one
                if len(trail) == 1:
                    raise OSError(errno.EXDEV, "the link leads out of the root")
                os.close(trail.pop())
                continue
            flags = _DIRECTORY if pending else _FILE
            try:
                fd = os.open(name, flags | os.O_NOFOLLOW, dir_fd=trail[-1])
            except OSError:
                # Systems disagree about the errno of a link that was not followed.
                target = _read_link(name, trail[-1])
                if target is None:
                    raise
                links += 1
                if symlinks == "never" or links > _LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP)) from None
                if target.startswith(b"/"):
                    raise OSError(errno.EXDEV, "the link is absolute") from None
                pending.extend(target.split(b"/")[::-1])
                continue
            if not pending:
                return fd
            trail.append(fd)
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
    finally:
        for fd in trail[1:]:
            os.close(fd)


def _read_link(name: bytes, dir_fd: int) -> bytes | None:
    try:
        return os.readlink(name, dir_fd=dir_fd)
    except OSError:
        return None


def _has_openat2() -> bool:
    """Probe: absent before Linux 5.6, and refused by some containers' seccomp filters."""
    if sys.platform != "linux":
        return False
    try:
        root_fd = os.open("/", _DIRECTORY)
    except OSError:
        return False
    try:
        os.close(_open_by_kernel(root_fd, b".", "never"))
    except OSError:
        return False
    finally:
        os.close(root_fd)
    return True


#: What `open_beneath` uses unless told otherwise.
RESOLVER: Resolver = "kernel" if _has_openat2() else "walk"


def open_beneath(
    root_fd: int,
    path: bytes,
    *,
    symlinks: Symlinks = "inside",
    resolver: Resolver = RESOLVER,
) -> tuple[int, os.stat_result]:
    """Open the regular file at ``path`` (relative, decoded bytes) beneath ``root_fd``.

    Return its descriptor, which the caller closes, and its status. Raises
    `IsADirectoryError` for a directory, `NotFound` when there is nothing,
    `Forbidden` for what may not be read, for a link that is not to be followed
    and for anything that is neither file nor directory, `Unavailable` when the
    process is out of descriptors.
    """
    if b"\0" in path or path.startswith(b"/") or (b".." in path and b".." in path.split(b"/")):
        raise NotFound(f"not a path beneath a root: {path!r}")
    open_by = _open_by_kernel if resolver == "kernel" else _open_by_walk
    try:
        fd = open_by(root_fd, path or b".", symlinks)
    except IsADirectoryError:
        raise
    except OSError as error:
        failure = _failure(error, path)
        if failure is None:
            raise
        raise failure from error
    try:
        status = os.fstat(fd)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        if not stat.S_ISREG(status.st_mode):
            raise Forbidden(f"not a regular file: {path!r}")
    except BaseException:
        os.close(fd)
        raise
    return fd, status


def _failure(error: OSError, path: bytes) -> BackendError | None:
    message = f"{path!r}: {error.strerror}"
    if error.errno in _ABSENT:
        return NotFound(message)
    if error.errno in _REFUSED:
        return Forbidden(message)
    if error.errno in EXHAUSTED:
        return Unavailable(message, retry_after_s=1)
    return None


class Root:
    """A root directory by its path, held open between requests.

    The path itself is trusted and may be a symbolic link. It is opened anew
    once it is `ROOT_AGE_S` old, so that a deployment which renames directories
    or switches a link takes effect without a reload.
    """

    __slots__ = ("_fd", "_opened_at", "path")

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._fd = -1
        self._opened_at = 0.0

    def fileno(self) -> int:
        """Return the open directory's descriptor.

        Raises `OSError` when it has never been there; once it was, the last
        good one serves until there is another.
        """
        now = time.monotonic()
        if now - self._opened_at >= ROOT_AGE_S or self._fd < 0:
            try:
                fd = os.open(self.path, _DIRECTORY)
            except OSError:
                if self._fd < 0:
                    raise
            else:
                self.close()
                self._fd = fd
            self._opened_at = now
        return self._fd

    def close(self) -> None:
        """Close the descriptor; `fileno` opens it again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

"""The warm Python itself: it waits for requests, and forks for each.

A part of the program that begins in `python_importlib_bootstrap`. It speaks with the
spawn helper over a ``SOCK_SEQPACKET`` socket, whose descriptor is in
``TETRAPYLON_WARM_FD`` (see `templates`). For each request it finds the script's code,
compiled once, and forks; the child tells its pid, and becomes the script's run.

**The fork** is clone3(2) with ``CLONE_PARENT``: the child is the helper's own, as if
the helper had started it, and the helper sees its end and what it used. So there is
no second fork, which would cost as much again. glibc is not told, and need not be:
this process has one thread, whose id, which glibc keeps, ``CLONE_CHILD_SETTID`` sets,
and whose list of robust locks is registered again; Python is told, by what `os.fork`
itself calls. Where clone3 is not to be had, or the C library keeps no such id, two
ordinary forks do, of which the first ends at once.
"""

from __future__ import annotations

import _warnings
import array
import ctypes
import errno
import gc
import os
import socket
import struct
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    from .python_imports import Imports
    from .python_scripts import Script

_FD = "TETRAPYLON_WARM_FD"
_NOBODY = bytes(8)
_ANSWER = struct.Struct("=8si")
_PACKET_BYTES = 64 * 1024
_STREAMS = 3

_CLONE3 = 435
_CLONE_PARENT = 0x00008000
_CLONE_CHILD_CLEARTID = 0x00200000
_CLONE_CHILD_SETTID = 0x01000000
_PR_GET_TID_ADDRESS = 40
# Linux's asm/unistd.h of machines of 64 bits: get_robust_list and set_robust_list.
_ROBUST_LIST = {
    "x86_64": (274, 273),
    "aarch64": (100, 99),
    "riscv64": (100, 99),
    "ppc64le": (300, 299),
    "s390x": (305, 304),
}


class Fork:
    """Makes children of our parent, by whichever way there is here."""

    def __init__(self) -> None:
        library = ctypes.PyDLL(None, use_errno=True)
        self._syscall = library.syscall
        self._syscall.restype = ctypes.c_long
        self._before = ctypes.pythonapi.PyOS_BeforeFork
        self._after_in_parent = ctypes.pythonapi.PyOS_AfterFork_Parent
        self._after_in_child = ctypes.pythonapi.PyOS_AfterFork_Child
        for function in (self._before, self._after_in_parent, self._after_in_child):
            function.restype = None
        address = ctypes.c_uint64()
        got = library.prctl(_PR_GET_TID_ADDRESS, ctypes.byref(address), 0, 0, 0)
        get_list, self._set_list = _ROBUST_LIST.get(os.uname().machine, (0, 0))
        self._locks, self._locks_size = ctypes.c_void_p(), ctypes.c_size_t()
        self._is_direct = (
            struct.calcsize("P") == 8
            and get_list != 0
            and self._syscall(
                get_list, 0, ctypes.byref(self._locks), ctypes.byref(self._locks_size)
            )
            == 0
            and got == 0
            and address.value != 0
            and ctypes.c_int.from_address(address.value).value == os.getpid()
        )
        # struct clone_args in its first version: flags, pidfd, child_tid, and what stays 0.
        flags = _CLONE_PARENT | _CLONE_CHILD_SETTID | _CLONE_CHILD_CLEARTID
        self._arguments = (ctypes.c_uint64 * 8)(flags, 0, address.value)
        self._size = ctypes.c_size_t(ctypes.sizeof(self._arguments))

    def __call__(self) -> bool:
        """Fork; true in the child. Raises `OSError`."""
        if self._is_direct:
            self._before()
            pid = self._syscall(_CLONE3, self._arguments, self._size)
            if pid == 0:
                self._syscall(self._set_list, self._locks, self._locks_size)
                self._after_in_child()
                return True
            self._after_in_parent()
            if pid > 0:
                return False
            number = ctypes.get_errno()
            if number not in (errno.ENOSYS, errno.EPERM, errno.EINVAL):
                raise OSError(number, os.strerror(number))
            # Some containers forbid it.
            self._is_direct = False
        return self._twice()

    @staticmethod
    def _twice() -> bool:
        middle = os.fork()
        if middle:
            _, status = os.waitpid(middle, 0)
            number = status >> 8
            if number:
                raise OSError(number, os.strerror(number))
            return False
        middle = os.getpid()
        try:
            if os.fork():
                os._exit(0)
        except OSError as error:
            os._exit(error.errno or errno.EAGAIN)
        while os.getppid() == middle:
            os.sched_yield()
        return True


class Template:
    """All that the program knows; in a fork of it, the run of one script.

    ``imports`` has the modules that are ready; ``load`` runs another part of the
    program and returns its names.
    """

    def __init__(
        self, at_start: tuple[str, ...], imports: Imports, load: Callable[[str], dict[str, Any]]
    ) -> None:
        self._imports = imports
        self._is_direct = sys.argv[1] == "direct"
        # What stands before this program in the command.
        with open("/proc/self/cmdline", "rb") as file:
            self._words = file.read().split(b"\0")[: -1 - len(sys.argv)]
        # What Python has set for itself in the C locale (PEP 538) is not in the first environment.
        with open("/proc/self/environ", "rb") as file:
            given = {pair.partition(b"=")[0] for pair in file.read().split(b"\0")}
        environ: Any = os.environ._data  # type: ignore[attr-defined]
        coerced = [pair for pair in environ.items() if pair[0] not in given]
        self._fd = int(os.environ.pop(_FD))
        self._control = socket.socket(fileno=self._fd)
        self._null = os.dup(0)
        self._has_folder = not (sys.flags.isolated or getattr(sys.flags, "safe_path", False))
        parts = load("python_scripts"), load("python_process")
        self._refusal: type[Any] = parts[0]["Refusal"]
        self._scripts = parts[0]["Scripts"](imports, imports.recording())
        self._surroundings = parts[0]["Surroundings"]()
        self._process = parts[1]
        self._streams = parts[1]["Streams"]()
        self._environment = parts[1]["Environment"](coerced)
        self._fork = Fork()
        self._kept = frozenset(at_start)
        self._listing = parts[1]["Listing"]()
        # Whatever refers to it last would free it, page by page.
        self._importers = sys.path_importer_cache
        self.code: Any = None

    def fail(self, number: int) -> NoReturn:
        """Tell that there will be no requests to be sent here, and end."""
        self._answer(_NOBODY, -number)
        os._exit(1)

    def serve(self) -> None:
        """Take requests until the helper hangs up; return in the child of each, to run it."""
        if len(os.listdir("/proc/self/task")) > 1:
            # Something that this installation imports at the start; a fork would lose it.
            self.fail(errno.ENOTSUP)
        for name in os.listdir("/proc/self/fd"):
            if int(name) > 2 and int(name) not in (self._fd, self._null):
                try:
                    os.close(int(name))
                except OSError:
                    pass  # the listing's own
        self._kept |= self._imports.names
        self._path = list(sys.path)
        gc.collect()
        gc.freeze()
        self._answer(_NOBODY, os.getpid())
        while self._next():
            pass

    def _next(self) -> bool:
        """Serve one request; false in the child.

        All that can be is done before the fork: to touch a page costs the child more
        than most of what is done here.
        """
        packet, ancillary, _, _ = self._control.recvmsg(
            _PACKET_BYTES, socket.CMSG_SPACE(_STREAMS * 4), socket.MSG_CMSG_CLOEXEC
        )
        if not packet:
            os._exit(0)
        fds = array.array("i")
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(content)
        fields = _fields(packet)
        request, filename, cwd, count = fields[:4]
        try:
            if len(fds) != _STREAMS:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            if not self._surroundings.are_same():
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
            name = os.fsdecode(filename)
            script = self._scripts.find(name)
            if self._is_direct and not os.access(name, os.X_OK):
                raise OSError(errno.EACCES, os.strerror(errno.EACCES))
            os.chdir(cwd)
            environ = 4 + int(count)
            self._prepare(script, fields[4:environ])
            self._environment.set(fields[environ:])
            self._streams.set(fds)
            words = [*self._words, filename, *fields[4:environ]]
            self._listing.show(script.name if self._is_direct else None, words, fields[environ:])
            for to in range(_STREAMS):
                os.dup2(fds[to], to)
            while fds:
                os.close(fds.pop())
            if self._fork():
                self._become(script, request)
                return False
        except (OSError, self._refusal) as error:
            reason = str(error).encode() if isinstance(error, self._refusal) else b""
            self._answer(request, -(error.errno or errno.EIO), reason)
        for fd in fds:
            os.close(fd)
        for to in range(_STREAMS):
            os.dup2(self._null, to)
        self._listing.restore()
        return True

    def _answer(self, request: bytes, value: int, reason: bytes = b"") -> None:
        try:
            self._control.send(_ANSWER.pack(request, value) + reason)
        except OSError:
            os._exit(0)

    def _prepare(self, script: Script, arguments: list[bytes]) -> None:
        """Make this interpreter look as one that was started for the script."""
        sys.argv = [script.filename, *map(os.fsdecode, arguments)]
        if hasattr(sys, "orig_argv"):
            sys.orig_argv = [*map(os.fsdecode, self._words), *sys.argv]
        if self._has_folder:
            sys.path[:] = [script.folder, *self._path]
            self._imports.expect(sys.path)
        sys.modules["__main__"] = self._process["new_main"](script.filename)
        self.code = script.code

    def _become(self, script: Script, request: bytes) -> None:
        os.setsid()
        # From now on the helper watches this process; nothing of the script has run yet.
        os.write(self._fd, _ANSWER.pack(request, os.getpid()))
        os.close(self._control.detach())
        os.close(self._null)
        self._imports.renew()
        self._environment.complete()
        self._streams.complete()
        for message, category, line in script.warnings:
            _warnings.warn_explicit(message, category, script.filename, line)

    def end(self, caught: list[BaseException]) -> NoReturn:
        """End the process; ``caught`` is emptied of what the script did not catch."""
        self._process["end"](caught, self._kept)
        raise AssertionError


def _fields(packet: bytes, count: int = -1) -> list[bytes]:
    """Return the first ``count`` fields of a request, or all."""
    found: list[bytes] = []
    position = 0
    while position < len(packet) and len(found) != count:
        start = position + 4
        position = start + int.from_bytes(packet[position:start], "big")
        found.append(packet[start:position])
    return found

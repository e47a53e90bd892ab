"""Children of an adapter: what to run, the pipes between, and who starts them.

`Spawn` is the seam. Under any ASGI server `spawn_process` starts children, by
`subprocess` in a thread; the gateway brings a spawner that does not disturb the
event loop. Neither asyncio's nor uvloop's own subprocess is used: uvloop forks
the whole server, and asyncio's wants a child watcher.

A child leads a process group of its own, so that all of it can be ended. Its
output is read on the loop as the reader of the answer keeps up; nothing is ever
written to it while it runs, for its stdin is complete before it starts.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import math
import os
import signal
import stat
import struct
import subprocess
import tempfile
import termios
import threading
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self, TypeAlias

from .exchange import SpooledBody

#: What is read of a pipe at once, and so the most that waits here for a slow client.
READ_BYTES = 64 * 1024
# How long other holders of a pipe are heard after the child itself has ended.
_LINGER_S = 0.5
_GROUP_CHECK_S = 1.0
_UMASK = 0o077
_FIRST_LINE_BYTES = 256


@dataclass(frozen=True, slots=True)
class ChildCommand:
    """What to run: ``argv[0]`` is the program, as an absolute path.

    ``environ`` is the whole environment, ``cwd`` the directory to start in,
    ``stdin`` what there is to read.
    """

    argv: tuple[str, ...]
    environ: Mapping[bytes, bytes]
    cwd: str
    stdin: SpooledBody


class Child(Protocol):
    """A child that was started. Its reaping is nobody's care but its own.

    ``stdout`` and ``stderr`` are our ends of its pipes, non-blocking, which the
    caller closes. ``exited`` gets the exit code when the child has been reaped,
    minus the signal's number if a signal ended it.
    """

    stdout: int
    stderr: int
    exited: asyncio.Future[int]

    def end(self, after_s: float = 0.0, *, kill_after_s: float) -> None:
        """Have all that is left of the child's group ended, without waiting for it.

        By SIGTERM in ``after_s`` seconds (``inf``: never), and by SIGKILL
        ``kill_after_s`` later. Nothing happens to what has ended by itself.
        """


#: Starts a child. Raises `OSError` with the errno of what failed; its ``filename``
#: is the command's ``cwd`` if that was it, else the program.
Spawn: TypeAlias = Callable[[ChildCommand], Awaitable[Child]]


class Stdio:
    """The three streams of one child: ``child`` are its ends, the others ours."""

    __slots__ = ("child", "stderr", "stdout")

    def __init__(self, body: SpooledBody) -> None:
        fds: list[int] = []
        try:
            fds.append(_open_stdin(body))
            fds += os.pipe()
            fds += os.pipe()
        except BaseException:
            _close(fds)
            raise
        stdin, self.stdout, stdout, self.stderr, stderr = fds
        #: stdin, stdout, stderr for the child
        self.child: tuple[int, ...] = (stdin, stdout, stderr)
        os.set_blocking(self.stdout, False)
        os.set_blocking(self.stderr, False)

    def close_child_ends(self) -> None:
        """Close what only the child is to hold, or its end of file would never come."""
        fds, self.child = self.child, ()
        _close(fds)

    def close(self) -> None:
        """Close all; the child was not started."""
        self.close_child_ends()
        _close((self.stdout, self.stderr))


def _close(fds: tuple[int, ...] | list[int]) -> None:
    for fd in fds:
        os.close(fd)


def _open_stdin(body: SpooledBody) -> int:
    """Return a descriptor with all of the body behind it: no task has to feed the child."""
    if body.file is not None:
        return os.dup(body.file.fileno())
    if not body.data:
        return os.open(os.devnull, os.O_RDONLY)
    reader, writer = os.pipe()
    try:
        os.set_blocking(writer, False)
        if os.write(writer, body.data) == len(body.data):
            return reader
    except BlockingIOError:
        pass
    except BaseException:
        os.close(reader)
        raise
    finally:
        os.close(writer)
    # The system gives small pipes to users who have many (pipe-user-pages-soft).
    os.close(reader)
    with tempfile.TemporaryFile(buffering=0) as file:
        view = memoryview(body.data)
        while view:
            view = view[file.write(view) :]
        file.seek(0)
        return os.dup(file.fileno())


class OutputPipe:
    """Reads a child's stdout on the running loop; ``with`` closes it.

    ``deadline`` is a time of the loop, ``inf`` for none.
    """

    def __init__(self, fd: int, deadline: float) -> None:
        self.deadline = deadline
        self._fd = fd
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None
        # After the child's exit: how many of its bytes are still in the pipe, and how
        # long others may write.
        self._owed: int | None = None
        self._linger_until = math.inf

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._fd >= 0:
            os.close(self.detach())

    def detach(self) -> int:
        """Give the descriptor away instead of closing it."""
        fd, self._fd = self._fd, -1
        return fd

    async def read(self) -> bytes:
        """Return what there is, at most `READ_BYTES`, waiting for it; ``b""`` at the end.

        The end is when nobody holds the other side; if descendants of the child
        do, it is soon after the child's exit. Raises `TimeoutError` at the deadline.
        """
        while True:
            now = self._loop.time()
            is_over = now >= self._linger_until
            if is_over and self._owed is not None and self._owed <= 0:
                return b""
            data = self.read_now()
            if data is not None:
                return data
            if is_over:
                return b""
            if now >= self.deadline:
                raise TimeoutError
            await self._wait()

    def read_now(self, size_bytes: int = READ_BYTES) -> bytes | None:
        """Return what there is, ``b""`` at the end, None if there is nothing yet."""
        try:
            data = os.read(self._fd, size_bytes)
        except BlockingIOError:
            return None
        if self._owed is not None:
            self._owed -= len(data)
        return data

    def expect_end(self) -> None:
        """Take note that the child has exited.

        What it has written is in the pipe and will be read; for whoever else
        holds the pipe, an answer is not kept open.
        """
        if self._fd >= 0 and self._owed is None:
            size = fcntl.ioctl(self._fd, termios.FIONREAD, b"\0" * 4)
            (self._owed,) = struct.unpack("i", size)
            self._linger_until = self._loop.time() + _LINGER_S
            self._wake()

    def postpone(self, seconds: float) -> None:
        """Give the child that much more time: others took it."""
        self.deadline += seconds
        self._linger_until += seconds

    async def _wait(self) -> None:
        loop = self._loop
        self._waiter = loop.create_future()
        loop.add_reader(self._fd, self._wake)
        until = min(self.deadline, self._linger_until)
        timer = None if until == math.inf else loop.call_at(until, self._wake)
        try:
            await self._waiter
        finally:
            self._waiter = None
            loop.remove_reader(self._fd)
            if timer is not None:
                timer.cancel()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Drain:
    """Reads a pipe to its end on the running loop, so that nobody blocks on writing it.

    It closes the pipe at the end, and lives as long as the pipe is held at the
    other side. Subclasses do something with the data.
    """

    def __init__(self, fd: int, on_close: Callable[[Drain], object]) -> None:
        self._fd = fd
        self._loop = asyncio.get_running_loop()
        self._on_close = on_close
        self._loop.add_reader(fd, self._read)

    def close(self) -> None:
        """Stop reading, whoever still writes."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            self._loop.remove_reader(fd)
            os.close(fd)
            self.take(b"")
            self._on_close(self)

    def take(self, data: bytes) -> None:
        """Take what was read; ``b""`` for the end, once."""

    def _read(self) -> None:
        try:
            data = os.read(self._fd, READ_BYTES)
        except BlockingIOError:
            return
        if data:
            self.take(data)
        else:
            self.close()


async def spawn_process(command: ChildCommand) -> Child:
    """Start a child by `subprocess`, in a thread: the `Spawn` for any asyncio server."""
    launch = _Launch(command)
    try:
        process = await asyncio.to_thread(launch.run)
    except asyncio.CancelledError:
        launch.abandon()
        raise
    return _Process(process, launch.stdio)


class _Launch:
    """A start in a thread, which goes on if the loop has ceased to wait for it.

    Descriptors are closed and the process is reaped by the thread that has them
    then.
    """

    def __init__(self, command: ChildCommand) -> None:
        self.stdio = Stdio(command.stdin)
        self._command = command
        self._lock = threading.Lock()
        self._is_begun = False
        self._is_abandoned = False
        self._process: subprocess.Popen[bytes] | None = None

    def run(self) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._is_abandoned:
                raise asyncio.CancelledError
            self._is_begun = True
        stdin, stdout, stderr = self.stdio.child
        try:
            process = subprocess.Popen(
                self._command.argv,
                env=self._command.environ,
                cwd=self._command.cwd,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
                umask=_UMASK,
            )
        except BaseException:
            self.stdio.close()
            raise
        self.stdio.close_child_ends()
        with self._lock:
            self._process = process
            # Set by `abandon` meanwhile, unseen by the type checker.
            is_abandoned = bool(self._is_abandoned)
        if is_abandoned:
            self._end(process)
            raise asyncio.CancelledError
        return process

    def abandon(self) -> None:
        with self._lock:
            self._is_abandoned = True
            is_begun, process = self._is_begun, self._process
        if process is not None:
            threading.Thread(target=self._end, args=(process,)).start()
        elif not is_begun:
            self.stdio.close()

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        self.stdio.close()
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except OSError:
            pass
        process.wait()


class _Process:
    """A `Child` of `spawn_process`."""

    def __init__(self, process: subprocess.Popen[bytes], stdio: Stdio) -> None:
        self._process = process
        self.stdout = stdio.stdout
        self.stderr = stdio.stderr
        self._loop = asyncio.get_running_loop()
        self.exited: asyncio.Future[int] = self._loop.create_future()
        self._term_at = math.inf
        self._kill_after_s = 0.0
        self._is_termed = False
        self._pidfd = -1
        try:
            self._pidfd = os.pidfd_open(process.pid)
        except (AttributeError, OSError):
            threading.Thread(target=self._wait, daemon=True).start()
        else:
            self._loop.add_reader(self._pidfd, self._on_exit)

    def end(self, after_s: float = 0.0, *, kill_after_s: float) -> None:
        """End what is left of the group; see `Child.end`."""
        if after_s != math.inf:
            self._term_at = self._loop.time() + after_s
            self._kill_after_s = kill_after_s
            self._advance()

    def _advance(self) -> None:
        # Once the leader is reaped, its group's number is taken only as long as
        # the group has members: hence the look at short intervals.
        if not self._signal(0):
            return
        now = self._loop.time()
        kill_at = self._term_at + self._kill_after_s
        if now >= kill_at and self._is_termed:
            self._signal(signal.SIGKILL)
            return
        if now >= self._term_at and not self._is_termed:
            self._is_termed = True
            self._signal(signal.SIGTERM)
        next_at = kill_at if self._is_termed else self._term_at
        self._loop.call_later(min(max(next_at - now, 0.0), _GROUP_CHECK_S), self._advance)

    def _signal(self, number: int) -> bool:
        """Signal the group; False if there is none any more."""
        try:
            os.killpg(self._process.pid, number)
        except OSError:
            return False
        return True

    def _on_exit(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._set_exited(self._process.wait())

    def _wait(self) -> None:
        code = self._process.wait()
        try:
            self._loop.call_soon_threadsafe(self._set_exited, code)
        except RuntimeError:
            pass  # the loop was closed meanwhile

    def _set_exited(self, code: int) -> None:
        if not self.exited.done():
            self.exited.set_result(code)


def explain_failure(command: ChildCommand, error: OSError) -> str:
    """Say for the log why a command could not be started."""
    program = command.argv[0]
    reason = error.strerror or str(error)
    if error.filename == command.cwd:
        return f"cannot enter the directory {command.cwd!r}: {reason}"
    if error.errno == errno.ENOENT and os.path.exists(program):
        line = _first_line(program)
        if line.startswith(b"#!"):
            reason = f"bad #! line: there is no such interpreter as in {line!r}"
        else:
            reason = "the loader that the program names is absent"
    elif error.errno == errno.ENOENT:
        reason = "there is no such program"
    elif error.errno == errno.EACCES:
        if not _is_executable(program):
            reason = "not executable (no x permission)"
        else:
            line = _first_line(program)
            what = f"the interpreter of its #! line {line!r}, or " if line[:2] == b"#!" else ""
            reason = f"permission denied: {what}a directory above it or its file system"
    elif error.errno == errno.ENOEXEC:
        reason = "not a program of this machine, nor a script with a #! line"
    elif error.errno == errno.E2BIG:
        reason = "arguments and environment are too large for the system"
    return f"cannot run {program!r}: {reason}"


def _is_executable(filename: str) -> bool:
    try:
        return bool(stat.S_IMODE(os.stat(filename).st_mode) & 0o111)
    except OSError:
        return False


def _first_line(filename: str) -> bytes:
    try:
        with open(filename, "rb") as file:
            return file.read(_FIRST_LINE_BYTES).partition(b"\n")[0]
    except OSError:
        return b""

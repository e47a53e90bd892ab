"""Children of an adapter: what to run, who starts them, how they end.

`Spawn` is the seam. Under any ASGI server `spawn_process` starts children, by
`subprocess` in a thread; the gateway brings a spawner that does not disturb the
event loop. Neither asyncio's nor uvloop's own subprocess is used: uvloop forks
the whole server, and asyncio's wants a child watcher.

A child leads a process group of its own, so that all of it can be ended.
"""

from __future__ import annotations

import asyncio
import errno
import math
import os
import signal
import stat
import subprocess
import threading
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from .exchange import SpooledBody
from .pipes import Stdio

_GROUP_CHECK_S = 1.0
_UMASK = 0o077
_FIRST_LINE_BYTES = 256


@dataclass(frozen=True, slots=True)
class ChildCommand:
    """What to run: ``argv[0]`` is the program, as an absolute path.

    ``environ`` is the whole environment, ``cwd`` the directory to start in,
    ``stdin`` what there is to read, or a descriptor to hand on, such as a listening
    socket's. With ``has_one_output`` stderr is the same as stdout.
    """

    argv: tuple[str, ...]
    environ: Mapping[bytes, bytes]
    cwd: str
    stdin: SpooledBody | int
    has_one_output: bool = False


class Child(Protocol):
    """A child that was started. Its reaping is nobody's care but its own.

    ``stdout`` and ``stderr`` are our ends of its pipes, non-blocking, which the
    caller closes (``stderr`` is -1 where there is one output). ``exited`` gets the
    exit code when the child has been reaped, minus the signal's number if a signal
    ended it. `Spawn` may return before the child runs: if it never does, ``exited``
    is cancelled, and ``failure`` is what `Spawn` would have raised. Else ``failure`` says
    why it was killed, if that was because nobody could watch it any more.
    """

    pid: int
    stdout: int
    stderr: int
    exited: asyncio.Future[int]
    failure: Exception | None
    #: Whether descendants may be left after its exit, and hold its pipes.
    has_descendants: bool

    def when_exited(self, callback: Callable[[], object]) -> None:
        """Have ``callback`` called once ``exited`` is done.

        Where it can be that is at once, not in a later turn of the loop, as the
        future's own callbacks are called.
        """

    def end(self, after_s: float = 0.0, *, kill_after_s: float) -> None:
        """Have all that is left of the child's group ended, without waiting for it.

        By SIGTERM in ``after_s`` seconds (``inf``: never), and by SIGKILL
        ``kill_after_s`` later. Nothing happens to what has ended by itself.
        """


#: Starts a child. Raises `OSError` with the errno of what failed; its ``filename``
#: is the command's ``cwd`` if that was it, else the program.
Spawn: TypeAlias = Callable[[ChildCommand], Awaitable[Child]]


async def spawn_process(command: ChildCommand, *, umask: int = _UMASK) -> Child:
    """Start a child by `subprocess`, in a thread: the `Spawn` for any asyncio server.

    A ``umask`` of -1 is this process's own.
    """
    launch = _Launch(command, umask)
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

    def __init__(self, command: ChildCommand, umask: int) -> None:
        self.stdio = Stdio(command.stdin, has_one_output=command.has_one_output)
        self._command = command
        self._umask = umask
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
                umask=self._umask,
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
        self.failure: Exception | None = None
        self.has_descendants = True
        self.pid = process.pid
        self.stdout = stdio.stdout
        self.stderr = stdio.stderr
        self._loop = asyncio.get_running_loop()
        self.exited: asyncio.Future[int] = self._loop.create_future()
        self._term_at = math.inf
        self._kill_after_s = 0.0
        self._is_termed = False
        watch_exit(process, self._on_exit)

    def when_exited(self, callback: Callable[[], object]) -> None:
        """See `Child`."""
        self.exited.add_done_callback(lambda _: callback())

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
        code = self._process.wait()
        if not self.exited.done():
            self.exited.set_result(code)


def watch_exit(process: subprocess.Popen[bytes], on_exit: Callable[[], object]) -> None:
    """Have the running loop call ``on_exit`` once the process has ended.

    It is then to be reaped by ``process.wait()``, which does not block. Where the
    system has no descriptors for processes, a thread waits, and has reaped it.
    """
    loop = asyncio.get_running_loop()
    try:
        pidfd = os.pidfd_open(process.pid)
    except (AttributeError, OSError):
        threading.Thread(target=_await_exit, args=(process, loop, on_exit), daemon=True).start()
        return

    def on_readable() -> None:
        loop.remove_reader(pidfd)
        os.close(pidfd)
        on_exit()

    loop.add_reader(pidfd, on_readable)


def _await_exit(
    process: subprocess.Popen[bytes],
    loop: asyncio.AbstractEventLoop,
    on_exit: Callable[[], object],
) -> None:
    process.wait()
    try:
        loop.call_soon_threadsafe(on_exit)
    except RuntimeError:
        pass  # the loop was closed meanwhile


def explain_exit(code: int) -> str:
    """Say for the log how a process ended: its exit code, or minus the signal's number."""
    if code >= 0:
        return f"exited with {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


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
    elif error.errno == errno.EAGAIN:
        reason = "the user or the system has as many processes as it may (rlimits.nproc)"
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

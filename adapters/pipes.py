"""The pipes between an adapter and its child: stdin in place, output read on the loop.

Nothing is ever written to a child while it runs, for its stdin is complete before
it starts. What it writes is read by `child_output`, or drained where nobody waits for
it, so that no child blocks on writing it.
"""

from __future__ import annotations

import asyncio
import math
import os
import tempfile
from collections.abc import Callable

from .exchange import SpooledBody
from .log_lines import LogLines
from .pipe_watcher import PipeWatcher

#: What is read of a pipe at once, and so the most that waits here for a slow client.
READ_BYTES = 64 * 1024
# A pipe holds no more of what was said before its writer's end.
_LAST_READS = 16
_READS_IN_A_ROW = 4


class Stdio:
    """The three streams of one child: ``child`` are its ends, the others ours.

    ``stdin`` is a body, or a descriptor of the caller's, of which the child gets a
    duplicate. With ``has_one_output`` the child writes errors to stdout, too, and
    ``stderr`` is -1.
    """

    __slots__ = ("_is_given", "child", "stderr", "stdout")

    def __init__(self, stdin: SpooledBody | int, *, has_one_output: bool = False) -> None:
        self._is_given = isinstance(stdin, int)
        fds: list[int] = []
        try:
            fds.append(os.dup(stdin) if isinstance(stdin, int) else _open_stdin(stdin))
            fds += os.pipe()
            fds += (-1, os.dup(fds[2])) if has_one_output else os.pipe()
        except BaseException:
            _close([fd for fd in fds if fd != _null])
            raise
        source, self.stdout, stdout, self.stderr, stderr = fds
        #: stdin, stdout, stderr for the child
        self.child: tuple[int, ...] = (source, stdout, stderr)
        os.set_blocking(self.stdout, False)
        if self.stderr >= 0:
            os.set_blocking(self.stderr, False)

    def give(self, uid: int) -> None:
        """Make what the child has its user's own: /dev/stdout opens a pipe anew, and asks whose.

        ``/dev/null``, and what the caller gave, stay as they are.
        """
        stdin, *outputs = self.child
        if not self._is_given and stdin != null_input():
            outputs.append(stdin)
        for fd in outputs:
            os.fchown(fd, uid, -1)

    def close_child_ends(self) -> None:
        """Close what only the child is to hold, or its end of file would never come."""
        fds, self.child = self.child, ()
        for fd in fds:
            if fd != _null:
                os.close(fd)

    def close(self) -> None:
        """Close all; the child was not started."""
        self.close_child_ends()
        _close((self.stdout, self.stderr))


_null = -1


def null_input() -> int:
    """Return the descriptor of ``/dev/null`` that all children without input share."""
    global _null
    if _null < 0:
        _null = os.open(os.devnull, os.O_RDONLY)
    return _null


def _close(fds: tuple[int, ...] | list[int]) -> None:
    for fd in fds:
        if fd >= 0:
            os.close(fd)


def _open_stdin(body: SpooledBody) -> int:
    """Return a descriptor with all of the body behind it: no task has to feed the child."""
    if body.file is not None:
        return os.dup(body.file.fileno())
    if not body.data:
        return null_input()
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


class Drain:
    """Reads a pipe to its end on the running loop, so that nobody blocks on writing it.

    What it reads goes into ``lines``, if there are. It closes the pipe at the end, or
    after ``limit_s`` seconds or ``limit_bytes``, and calls ``on_close``; without limits
    it lives as long as the pipe is held at the other side.
    """

    def __init__(
        self,
        fd: int,
        lines: LogLines | None,
        on_close: Callable[[Drain], object],
        *,
        watcher: PipeWatcher | None = None,
        limit_s: float = math.inf,
        limit_bytes: float = math.inf,
    ) -> None:
        self._fd = fd
        self._watcher = watcher or PipeWatcher()
        self._lines = lines
        self._on_close = on_close
        self._left = limit_bytes
        self._timer: asyncio.TimerHandle | None = None
        if limit_s < math.inf:
            self._timer = self._watcher.loop.call_later(limit_s, self.close)
        self._watcher.watch(fd, self._read)

    def finish(self) -> None:
        """Read what there is, and wait for nobody who still writes."""
        for _ in range(_LAST_READS):
            if self._fd >= 0:
                self._read_some()
        self.close()

    def close(self) -> None:
        """Stop reading, whoever still writes."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            self._watcher.forget(fd)
            if self._timer is not None:
                self._timer.cancel()
            os.close(fd)
            if self._lines is not None:
                self._lines.finish()
            self._on_close(self)

    def _read(self, _: bool = False) -> None:
        for _turn in range(_READS_IN_A_ROW):
            if self._fd < 0:
                return
            if not self._read_some():
                self._watcher.watch(self._fd, self._read)
                return
        # Others have their turn.
        self._watcher.loop.call_soon(self._read)

    def _read_some(self) -> bool:
        """Read once; False if there is nothing yet."""
        try:
            data = os.read(self._fd, READ_BYTES)
        except BlockingIOError:
            return False
        self._left -= len(data)
        if not data or self._left < 0:
            self.close()
        elif self._lines is not None:
            self._lines.feed(data)
        return True

"""The pipes between an adapter and its child: stdin in place, output read on the loop.

Nothing is ever written to a child while it runs, for its stdin is complete before
it starts. Its stdout is read as the reader of the answer keeps up; what nobody
waits for is drained, so that no child blocks on writing it.
"""

from __future__ import annotations

import asyncio
import fcntl
import math
import os
import struct
import tempfile
import termios
from collections.abc import Callable
from types import TracebackType
from typing import Self

from .exchange import SpooledBody
from .log_lines import LogLines

#: What is read of a pipe at once, and so the most that waits here for a slow client.
READ_BYTES = 64 * 1024
# How long other holders of a pipe are heard after the child itself has ended.
_LINGER_S = 0.5
# A pipe holds no more of what was said before its writer's end.
_LAST_READS = 16


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

    What it reads goes into ``lines``, if there are. It closes the pipe at the end
    and calls ``on_close``, and lives as long as the pipe is held at the other side.
    """

    def __init__(
        self, fd: int, lines: LogLines | None, on_close: Callable[[Drain], object]
    ) -> None:
        self._fd = fd
        self._loop = asyncio.get_running_loop()
        self._lines = lines
        self._on_close = on_close
        self._loop.add_reader(fd, self._read)

    def finish(self) -> None:
        """Read what there is, and wait for nobody who still writes."""
        for _ in range(_LAST_READS):
            if self._fd >= 0:
                self._read()
        self.close()

    def close(self) -> None:
        """Stop reading, whoever still writes."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            self._loop.remove_reader(fd)
            os.close(fd)
            if self._lines is not None:
                self._lines.finish()
            self._on_close(self)

    def _read(self) -> None:
        try:
            data = os.read(self._fd, READ_BYTES)
        except BlockingIOError:
            return
        if not data:
            self.close()
        elif self._lines is not None:
            self._lines.feed(data)

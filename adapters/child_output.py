"""What a child writes and how it ends, for one who waits for it on the event loop.

Its stdout is read as the reader of the answer keeps up; its stderr goes to the log.

**Brief children.** Most scripts are gone within milliseconds, and what they have
written is a page. To be told of each step takes longer than to read all of it when
they have exited. So a child that is expected to be brief, because the same program
was so the last time, is left alone for a moment. If it is still there after that, it
is watched as all others are from the start.
"""

from __future__ import annotations

import asyncio
import fcntl
import math
import os
import struct
import termios
from collections.abc import Callable
from types import TracebackType
from typing import Self

from .errors import BadGateway
from .log_lines import LogLines
from .pipe_watcher import PipeWatcher
from .pipes import READ_BYTES, Drain
from .processes import Child

_BRIEF_S = 0.05
# No more of a brief child's output than a pipe holds, or it would have to wait.
_BRIEF_BYTES = 60 * 1024
# How long other holders of a pipe are heard after the child itself has ended.
_LINGER_S = 0.5
# A pipe holds no more of what was said before its writer's end.
_LAST_READS = 16
# What comes behind a complete answer, such as the body in answer to HEAD: a script that
# writes more than this is told as lighttpd tells it, by a closed pipe. One that writes
# on and on would otherwise be read, by nobody, to the end of its time.
_UNWANTED_BYTES = 1024 * 1024
_UNWANTED_S = 2.0


class ChildOutput:
    """The pipes of a child; ``with`` lets go of them.

    ``timeout_s`` is how long all of it may take, ``idle_s`` how long the child may
    write nothing while it is waited for; ``inf`` is for ever. ``log`` makes what its stderr goes
    into. Pipes that somebody still holds at the end are drained: they are in
    ``drains`` until they are closed. ``is_brief``: the child is expected to be brief;
    afterwards, whether it was.
    """

    def __init__(
        self,
        child: Child,
        watcher: PipeWatcher,
        *,
        timeout_s: float,
        idle_s: float,
        log: Callable[[], LogLines],
        drains: set[Drain],
        is_brief: bool,
    ) -> None:
        self.is_brief = is_brief
        self._child = child
        self._stdout = child.stdout
        self._stderr = child.stderr
        self._watcher = watcher
        self.loop = watcher.loop
        self._began_at = watcher.loop.time()
        #: Until when all is to be done, on the loop's clock.
        self.deadline = self._began_at + timeout_s
        self._idle_s = idle_s
        self._log = log
        self._drains = drains
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        self._read_bytes = 0
        # Nobody holds the other side of stdout any more.
        self._is_at_end = False
        # After the child's exit: how many of its bytes are still in the pipe, and how
        # long others may write.
        self._owed: int | None = None
        self._linger_until = math.inf
        self._is_watched = False
        self._has_exited = False
        child.when_exited(self._on_exit)
        if is_brief:
            watcher.defer(_BRIEF_S, self._watch)
        else:
            self._watch()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._stdout >= 0:
            fd, self._stdout = self._stdout, -1
            self._watcher.forget(fd)
            os.close(fd)
        if self._child.exited.done() and not self._child.has_descendants:
            self._finish_stderr()
            lived_s = self.loop.time() - self._began_at
            self.is_brief = (
                not (self.is_brief and self._is_watched)
                and lived_s < _BRIEF_S
                and self._read_bytes < _BRIEF_BYTES
            )
        else:
            self._drain_stderr()
            self.is_brief = False

    def drain(self) -> None:
        """Read stdout on for a moment, for nobody, and close it; what it holds is not wanted."""
        fd, self._stdout = self._stdout, -1
        self._watcher.forget(fd)
        self._drains.add(
            Drain(
                fd,
                None,
                self._drains.discard,
                watcher=self._watcher,
                limit_s=_UNWANTED_S,
                limit_bytes=_UNWANTED_BYTES,
            )
        )

    async def read(self) -> bytes:
        """Return what there is, at most `READ_BYTES`, waiting for it; ``b""`` at the end.

        The end is when nobody holds the other side; if descendants of the child
        do, it is soon after the child's exit. Raises `TimeoutError` at the deadline,
        or when the child has been idle for too long.
        """
        idle_until = math.inf
        while True:
            now = self.loop.time()
            if self._is_watched or self._has_exited:
                is_over = now >= self._linger_until
                if is_over and self._owed is not None and self._owed <= 0:
                    return b""
                data = self.read_now()
                if data is not None:
                    return data
                if is_over:
                    return b""
            if idle_until == math.inf:
                idle_until = now + self._idle_s
            if now >= self.deadline:
                raise TimeoutError("not done in time")
            if now >= idle_until:
                raise TimeoutError(f"nothing for {self._idle_s:g} s")
            await self._wait(min(self.deadline, idle_until, self._linger_until))

    def read_now(self, size_bytes: int = READ_BYTES) -> bytes | None:
        """Return what there is, ``b""`` at the end, None if there is nothing yet."""
        try:
            data = os.read(self._stdout, size_bytes)
        except BlockingIOError:
            self._watcher.watch(self._stdout, self._wake)
            return None
        self._read_bytes += len(data)
        if not data:
            self._is_at_end = True
        elif self._owed is not None:
            self._owed -= len(data)
        return data

    async def exit_code(self, within_s: float) -> int | None:
        """Return how the child ended; None if it does not end ``within_s``.

        Raises what kept it from starting: an `OSError`, or a `BackendError`.
        """
        exited = self._child.exited
        if not exited.done():
            until = self.loop.time() + within_s
            while not exited.done() and self.loop.time() < until:
                await self._wait(until)
            if not exited.done():
                # What came while the loop was busy elsewhere has its turn before a timer's end.
                await asyncio.sleep(0)
                if not exited.done():
                    return None
        if exited.cancelled():
            raise self._child.failure or BadGateway("the child was lost")
        return exited.result()

    def postpone(self, seconds: float) -> None:
        """Give the child that much more time: others took it."""
        self.deadline += seconds
        self._linger_until += seconds

    async def _wait(self, until: float) -> None:
        """Wait until something is new, at most until a time of the loop."""
        if until < self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self.loop.call_at(until, self._on_time)
            self._timer_at = until
        self._waiter = self.loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self, _: bool = False) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _on_time(self) -> None:
        self._timer_at = math.inf
        self._wake()

    def _watch(self) -> None:
        if self._stderr < 0:
            return  # it is gone
        self._is_watched = True
        self._drain_stderr()
        if self._stdout >= 0:
            self._watcher.watch(self._stdout, self._wake)

    def _on_exit(self) -> None:
        """What the child has written is in the pipe, and will be read.

        For whoever else holds the pipe, an answer is not kept open.
        """
        self._has_exited = True
        if self._stdout >= 0 and not self._is_at_end and self._child.has_descendants:
            size = fcntl.ioctl(self._stdout, termios.FIONREAD, b"\0" * 4)
            (self._owed,) = struct.unpack("i", size)
            self._linger_until = self.loop.time() + _LINGER_S
        self._wake()

    def _drain_stderr(self) -> None:
        if self._stderr >= 0:
            fd, self._stderr = self._stderr, -1
            drains = self._drains
            drains.add(Drain(fd, self._log(), drains.discard, watcher=self._watcher))

    def _finish_stderr(self) -> None:
        """Read what there is, and no more can come."""
        if self._stderr < 0:
            return
        fd, self._stderr = self._stderr, -1
        lines: LogLines | None = None
        for _ in range(_LAST_READS):
            try:
                data = os.read(fd, READ_BYTES)
            except BlockingIOError:
                break
            if not data:
                break
            if lines is None:
                lines = self._log()
            lines.feed(data)
        os.close(fd)
        if lines is not None:
            lines.finish()

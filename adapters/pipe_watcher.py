"""Who tells that a pipe can be read: one descriptor on the event loop for all of them.

A loop's own `add_reader` and `remove_reader` take nine system calls for a pipe that
is read once. Where the system has epoll, the pipes are in an epoll of their own, and
only that is on the loop: one call for a pipe, and none to take it out, for closing
it does. Elsewhere it is the loop's.
"""

from __future__ import annotations

import asyncio
import select
import sys
from collections import deque
from collections.abc import Callable
from typing import TypeAlias

# Read at once; what is more comes with the next turn.
_EVENTS = 64
# Whatever was deferred is looked at no more often than this.
_TOGETHER_S = 0.02

#: Gets whether nobody holds the other side of the pipe any more, as far as that is known.
OnReadable: TypeAlias = Callable[[bool], object]


class PipeWatcher:
    """Calls back when pipes can be read, by the loop's own means. Belongs to one loop."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        # With the time by the loop's clock before which none is called.
        self._deferred: deque[tuple[float, Callable[[], object]]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, fd: int, on_readable: OnReadable) -> None:
        """Have ``on_readable`` called when there is something to read, or the end.

        To be asked for again after each call, and each time that the pipe has been
        found empty. It may be called without need.
        """
        self.loop.add_reader(fd, self._call, fd, on_readable)

    def _call(self, fd: int, on_readable: OnReadable) -> None:
        # It would be called again and again until somebody reads.
        self.loop.remove_reader(fd)
        on_readable(False)

    def forget(self, fd: int) -> None:
        """Call nobody any more; to be said before the pipe is closed or given away."""
        self.loop.remove_reader(fd)

    def defer(self, after_s: float, callback: Callable[[], object]) -> None:
        """Have ``callback`` called in ``after_s`` seconds or a little later, with others.

        One timer is for all of them, for whom ``after_s`` is the same.
        """
        at = self.loop.time() + after_s
        self._deferred.append((at, callback))
        if self._timer is None:
            self._timer = self.loop.call_at(at, self._call_deferred)

    def _call_deferred(self) -> None:
        self._timer = None
        deferred = self._deferred
        now = self.loop.time()
        while deferred and deferred[0][0] <= now:
            deferred.popleft()[1]()
        if deferred and self._timer is None:
            at = max(deferred[0][0], now + _TOGETHER_S)
            self._timer = self.loop.call_at(at, self._call_deferred)

    def close(self) -> None:
        """Let go of the loop."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class EpollWatcher(PipeWatcher):
    """A `PipeWatcher` by an epoll of its own, edge-triggered (Linux)."""

    def __init__(self) -> None:
        super().__init__()
        self._callbacks: dict[int, OnReadable] = {}
        self._epoll = select.epoll()
        self.loop.add_reader(self._epoll.fileno(), self._on_events)

    def watch(self, fd: int, on_readable: OnReadable) -> None:
        """See `PipeWatcher`."""
        if fd not in self._callbacks:
            events = select.EPOLLIN | select.EPOLLET
            try:
                self._epoll.register(fd, events)
            except FileExistsError:
                # Forgotten, and not closed since: what there is to read counts anew.
                self._epoll.modify(fd, events)
        self._callbacks[fd] = on_readable

    def forget(self, fd: int) -> None:
        """See `PipeWatcher`."""
        self._callbacks.pop(fd, None)

    def close(self) -> None:
        """See `PipeWatcher`."""
        super().close()
        if not self._epoll.closed:
            if not self.loop.is_closed():
                self.loop.remove_reader(self._epoll.fileno())
            self._epoll.close()

    def _on_events(self) -> None:
        callbacks = self._callbacks
        for fd, events in self._epoll.poll(0, _EVENTS):
            on_readable = callbacks.get(fd)
            if on_readable is not None:
                on_readable(events & select.EPOLLHUP != 0)


def pipe_watcher() -> PipeWatcher:
    """Return a watcher for the running loop."""
    return EpollWatcher() if sys.platform == "linux" else PipeWatcher()

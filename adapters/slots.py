"""Slots: how many requests may be with an application at a time, and how many wait.

Over both numbers, or after too long a wait, a request is refused at once with
503: a queue without an end would make every client wait for those who have
given up long since.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from types import TracebackType

from .errors import Unavailable


class Slots:
    """``async with slots:`` holds one of ``limit`` slots, in the order of arrival.

    At most ``queue`` wait, each at most ``wait_s`` seconds (0 or infinity: for ever); entering
    raises `Unavailable` otherwise. ``name`` says in its message whose slots they are.
    """

    def __init__(self, limit: int, *, queue: int, wait_s: float, name: str) -> None:
        self._free = limit
        self._limit = limit
        self._queue = queue
        self._wait_s = wait_s if 0 < wait_s < math.inf else None
        self._name = name
        # With the time by the loop's clock until which each waits.
        self._waiting: deque[tuple[asyncio.Future[None], float]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def taken(self) -> int:
        """How many slots are held."""
        return self._limit - self._free

    async def acquire(self) -> None:
        """Take a slot that is given back by `release`: by a child's end, say, not a block's."""
        if not self.acquire_at_once():
            await self._wait()

    def acquire_at_once(self) -> bool:
        """Take a slot if one is free; return whether it was. Cheaper than to await `acquire`."""
        if not self._free:
            return False
        self._free -= 1
        return True

    def release(self) -> None:
        """Give a slot back: to who has waited longest, so that nobody can overtake."""
        while self._waiting:
            turn, _ = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                break
        else:
            self._free += 1
        if not self._waiting:
            self._cancel_timer()

    async def __aenter__(self) -> None:
        await self.acquire()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()

    async def _wait(self) -> None:
        if len(self._waiting) >= self._queue:
            raise Unavailable(
                f"{self._name}: {self._limit} requests are being answered and {self._queue} wait",
                retry_after_s=1,
            )
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        # All may wait equally long: the first in the queue is the first whose time is over.
        place = turn, loop.time() + (self._wait_s or math.inf)
        self._waiting.append(place)
        if self._timer is None and self._wait_s is not None:
            self._timer = loop.call_at(place[1], self._on_timer)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self.release()  # its turn had come in the same moment
            elif place in self._waiting:
                self._waiting.remove(place)
                if not self._waiting:
                    self._cancel_timer()
            raise

    def _on_timer(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = None
        while self._waiting:
            turn, ends_at = self._waiting[0]
            if ends_at > loop.time():
                self._timer = loop.call_at(ends_at, self._on_timer)
                return
            self._waiting.popleft()
            if not turn.done():
                turn.set_exception(
                    Unavailable(
                        f"{self._name}: no free slot within {self._wait_s:g} s", retry_after_s=1
                    )
                )

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

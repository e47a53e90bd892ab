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
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def taken(self) -> int:
        """How many slots are held."""
        return self._limit - self._free

    async def acquire(self) -> None:
        """Take a slot that is given back by `release`: by a child's end, say, not a block's."""
        if self._free:
            self._free -= 1
        else:
            await self._wait()

    def release(self) -> None:
        """Give a slot back: to who has waited longest, so that nobody can overtake."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1

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
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            async with asyncio.timeout(self._wait_s):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                self.release()  # its turn had come in the same moment
            elif turn in self._waiting:
                self._waiting.remove(turn)
            if isinstance(error, TimeoutError):
                raise Unavailable(
                    f"{self._name}: no free slot within {self._wait_s:g} s", retry_after_s=1
                ) from None
            raise

"""The connections to one application: so many at a time, some kept for the next request."""

from __future__ import annotations

import asyncio
import math
from functools import partial

from .byte_stream import ByteStream, TcpAddress, UnixAddress, connect
from .slots import Slots

#: What may be sent again, once, where a kept connection turns out to have been closing:
#: nobody knows whether the application had begun. Anything else goes out on a fresh one.
RESENDABLE_METHODS = frozenset(("GET", "HEAD"))


class StaleConnection(Exception):
    """A kept connection ended before a byte of an answer: it was closing already."""


class Connections:
    """Connections to ``address``; ``async with connections.slots:`` is the right to one.

    ``limit`` is how many there are at most, kept ones included; ``queue`` how many
    requests wait for one, for ``queue_wait_s`` seconds. Connecting may take
    ``connect_s`` seconds (0: for ever). A connection is kept for ``idle_s`` seconds
    (0: not at all) unless the application closes it first. ``name`` says in
    messages whose they are.
    """

    def __init__(
        self,
        address: TcpAddress | UnixAddress,
        *,
        limit: int,
        queue: int,
        queue_wait_s: float,
        connect_s: float,
        idle_s: float,
        name: str,
    ) -> None:
        #: May be changed while no request is under way.
        self.address = address
        self.slots = Slots(limit, queue=queue, wait_s=queue_wait_s, name=name)
        self._limit = limit
        self._connect_s = connect_s or math.inf
        self._idle_s = idle_s
        # Oldest first, with the time by the loop's clock at which each is closed.
        self._kept: dict[ByteStream, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def open(self) -> ByteStream:
        """Connect; errors are those of `tetrapylon.adapters.byte_stream.connect`."""
        if self._kept and self.slots.taken + len(self._kept) > self._limit:
            self._drop(next(iter(self._kept)))
        return await connect(self.address, timeout_s=self._connect_s)

    def take(self) -> ByteStream | None:
        """Return the connection that was kept last and is still open, if there is one."""
        while self._kept:
            stream, _ = self._kept.popitem()
            if stream.is_quiet():
                return stream
            stream.close()
        return None

    def keep(self, stream: ByteStream) -> None:
        """Keep a connection on which no answer is outstanding."""
        if not self._idle_s:
            stream.close()
            return
        loop = asyncio.get_running_loop()
        self._kept[stream] = loop.time() + self._idle_s
        # It closes, or says something that nobody asked for.
        stream.watch(partial(self._drop, stream))
        if self._timer is None:
            self._timer = loop.call_later(self._idle_s, self._sweep)

    def close(self) -> None:
        """Close the kept connections; requests go on as they are."""
        for stream in [*self._kept]:
            self._drop(stream)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _drop(self, stream: ByteStream) -> None:
        if self._kept.pop(stream, None) is not None:
            stream.close()

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = None
        now = loop.time()
        for stream, ends_at in [*self._kept.items()]:
            if ends_at > now:
                self._timer = loop.call_at(ends_at, self._sweep)
                break
            self._drop(stream)

"""A child that was asked of the helper, from that moment to its end."""

from __future__ import annotations

import asyncio
import math
import os
import signal
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, Self

from ...adapters.errors import Unavailable
from ...adapters.pipes import Stdio
from ...adapters.processes import ChildCommand
from . import helper

_START_S = 10.0


class Owner(Protocol):
    """The helper that a child was asked of."""

    def send(self, message: dict[str, Any]) -> None:
        """Send a message, now or when the helper takes it; never waits."""

    def withdraw(self, child: SpawnedChild) -> None:
        """Unsend what the helper has not been asked yet."""


class Usage(NamedTuple):
    """What a child used, with the children that it waited for (getrusage(2))."""

    user_s: float
    system_s: float
    max_resident_kib: int


class SpawnedChild:
    """A `Child`, from the moment that it was asked for.

    ``exited`` is cancelled if it never ran, and ``failure`` then says why; or why it was
    killed, if the helper was lost.
    ``usage`` is there once it has a result. Until `started` fails, our ends of its
    pipes are the caller's.
    """

    def __init__(self, id: int, command: ChildCommand, owner: Owner) -> None:
        self.id = id
        self.pid = 0
        self.is_warm = False
        self.usage: Usage | None = None
        loop = asyncio.get_running_loop()
        self.exited: asyncio.Future[int] = loop.create_future()
        self.failure: Exception | None = None
        self._callbacks: list[Callable[[], object]] = []
        self.has_descendants = True
        self._started: asyncio.Future[None] | None = None
        self._is_sent = False
        self.command = command
        self._cwd = command.cwd
        self._program = command.argv[0]
        self._owner = owner
        self._stdio = Stdio(command.stdin, has_one_output=command.has_one_output)
        self.stdout = self._stdio.stdout
        self.stderr = self._stdio.stderr
        # Cleared when nothing is left to be ended.
        self._is_endable = True

    @property
    def fds(self) -> tuple[int, ...]:
        """The child's ends of its standard streams."""
        return self._stdio.child

    def when_exited(self, callback: Callable[[], object]) -> None:
        """Have ``callback`` called as soon as the helper tells of the end, or is lost."""
        if self.exited.done():
            self.exited.add_done_callback(lambda _: callback())
        else:
            self._callbacks.append(callback)

    def _call_back(self) -> None:
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    async def started(self) -> Self:
        """Wait until its program runs.

        Raises `OSError` for what the system said (see `Spawn`), and `Unavailable`
        if there is nobody to ask; then, and if cancelled, nothing is left behind.
        """
        if not self.pid and self.failure is None:
            self._started = asyncio.get_running_loop().create_future()
            try:
                async with asyncio.timeout(_START_S):
                    await self._started
            except TimeoutError:
                self._abandon()
                raise Unavailable(f"{self._program!r} has not started in {_START_S:g} s") from None
            except BaseException:
                self._abandon()
                raise
        if self.failure is not None:
            self._abandon()
            raise self.failure
        return self

    def _abandon(self) -> None:
        self.end(kill_after_s=0.0)
        self._stdio.close()

    def give_streams(self, uid: int) -> None:
        """Make what it has as its streams a user's own, to be opened again as /dev/stdout is."""
        self._stdio.give(uid)

    def end(self, after_s: float = 0.0, *, kill_after_s: float) -> None:
        """End what is left of the child and its descendants; see `Child.end`."""
        if not self._is_sent:
            self._owner.withdraw(self)
        elif self._is_endable and after_s != math.inf:
            self._owner.send(
                {"op": "end", "id": self.id, "after_s": after_s, "kill_after_s": kill_after_s}
            )

    def on_sent(self) -> None:
        """Take note that the helper has been asked, and has the child's ends of the pipes."""
        self._is_sent = True
        self._stdio.close_child_ends()

    def on_started(self, pid: int, *, is_warm: bool = False) -> None:
        """Take the helper's word."""
        self.pid = pid
        self.is_warm = is_warm
        if self._started is not None and not self._started.done():
            self._started.set_result(None)

    def on_failed(self, number: int, place: int) -> None:
        """Take the helper's word that nothing was started."""
        filename = self._cwd if place == helper.PLACE_CWD else self._program
        self.on_lost(OSError(number, os.strerror(number), filename))

    def on_exited(self, code: int, usage: Usage, has_descendants: bool) -> None:
        """Take the helper's word that the child was reaped."""
        self.usage = usage
        self._is_endable = self.has_descendants = has_descendants
        if not self.exited.done():
            self.exited.set_result(code)
        self._call_back()

    def on_lost(self, error: Exception) -> None:
        """Nobody watches the child any more, if it ever ran; its group is killed."""
        self._is_endable = False
        self.failure = error
        if self.pid:
            try:
                os.killpg(self.pid, signal.SIGKILL)
            except OSError:
                pass
            if not self.exited.done():
                self.exited.set_result(-signal.SIGKILL)
            self._call_back()
            return
        self._stdio.close_child_ends()
        self.exited.cancel()
        self._call_back()
        if self._started is not None and not self._started.done():
            self._started.set_result(None)

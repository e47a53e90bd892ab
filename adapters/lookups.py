"""The addresses behind one name, looked up again as time goes by.

Nothing runs while nobody asks. An answer that is older than its time is used
once more while a new one is on its way; one that had twice that age when somebody
asked is not. A look-up that fails leaves the last good answer as it is, for as long
as they fail.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable

from .addresses import Found, SrvAddress, TcpAddress, look_up

logger = logging.getLogger("tetrapylon.adapters")

# A name that could not be looked up is not asked for again at once.
_RETRY_S = 1.0


class Lookup:
    """What ``address`` stands for; asked for again after ``every_s`` seconds.

    ``on_change`` is called when the answer has changed; ``name`` stands in the log.
    """

    def __init__(
        self,
        address: TcpAddress | SrvAddress,
        *,
        every_s: float,
        on_change: Callable[[], None],
        name: str,
    ) -> None:
        self.address = address
        #: The last good answer.
        self.found: tuple[Found, ...] = ()
        #: Why the last look-up failed, if it did.
        self.failure: OSError | None = None
        self._every_s = every_s
        self._on_change = on_change
        self._name = name
        #: Whether the last good answer is good enough not to wait for the next one.
        self.is_usable = False
        #: The look-up that is under way.
        self.task: asyncio.Task[None] | None = None
        self._good_at = -math.inf
        self._next_at = -math.inf

    def refresh(self, now: float) -> None:
        """Begin to look it up, if it is time."""
        if self.task is None and now >= self._next_at:
            if self.failure is None and now >= self._good_at + 2 * self._every_s:
                self.is_usable = False
            self.task = asyncio.get_running_loop().create_task(self._look_up())

    def close(self) -> None:
        """Give up what is under way."""
        if self.task is not None:
            self.task.cancel()

    async def _look_up(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            found = await look_up(self.address)
        except OSError as error:
            if self.failure is None and self.found:
                logger.warning(
                    "%s: %s cannot be looked up (%s); its last addresses serve on",
                    self._name,
                    self.address,
                    error,
                )
            self.failure = error
            self.is_usable = bool(self.found)
            self._next_at = loop.time() + _RETRY_S
        else:
            self.failure = None
            self.is_usable = True
            self._good_at = loop.time()
            self._next_at = self._good_at + self._every_s
            # In what order they come may change from answer to answer.
            if set(found) != set(self.found):
                self.found = found
                self._on_change()
        finally:
            self.task = None

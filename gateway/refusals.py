"""The log of requests that were refused for want of room, or of anybody to answer them.

In an outage each of thousands of requests a second is refused, and the access log
has them all. So the first one for a backend is logged in full, and then one line
every `EVERY_S` seconds, until none has come for so long, says how many there were.
"""

from __future__ import annotations

import logging

logger = logging.getLogger("tetrapylon.gateway")

#: How often the refusals for one backend are logged at the most, in seconds.
EVERY_S = 10.0


class Refusals:
    """Counts refusals by backend. No clock in here: every call gets the time."""

    def __init__(self) -> None:
        self._unsaid: dict[str, _Unsaid] = {}

    def note(self, backend: str, error: Exception, now: float) -> bool:
        """Take note of a refusal; return whether it is to be logged by itself."""
        unsaid = self._unsaid.get(backend)
        if unsaid is None:
            self._unsaid[backend] = _Unsaid(now)
            return True
        unsaid.count += 1
        unsaid.last = error
        return False

    def report(self, now: float) -> None:
        """Log what is due by now."""
        for backend, unsaid in [*self._unsaid.items()]:
            if now - unsaid.since < EVERY_S:
                continue
            if unsaid.count:
                self._unsaid[backend] = _Unsaid(now)
                unsaid.say(backend, now)
            else:
                del self._unsaid[backend]

    def finish(self, now: float) -> None:
        """Log all that has not been said yet."""
        for backend, unsaid in self._unsaid.items():
            if unsaid.count:
                unsaid.say(backend, now)
        self._unsaid.clear()


class _Unsaid:
    """What was refused since the last line."""

    def __init__(self, since: float) -> None:
        self.since = since
        self.count = 0
        self.last: Exception | None = None

    def say(self, backend: str, now: float) -> None:
        logger.error(
            "(%s): 503 for %d more request%s within %.0f s; the last: %s",
            backend,
            self.count,
            "" if self.count == 1 else "s",
            now - self.since,
            self.last,
        )

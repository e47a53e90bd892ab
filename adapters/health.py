"""Whether an address of an application is well, by what happens to requests.

Nobody is asked: each connection that is made or not, and each answer or its
absence, is the evidence (what nginx calls max_fails and HAProxy's ``observe
layer4``; "passive health"). Two kinds of failure are told apart.

*Refusals*: connecting failed, or took too long. Nothing was sent. As many as the
limit within the window, and the breaker opens: nobody is sent there any more,
except one request a second, until a connection is made. But an application that
was well may be away for a moment, for it is being restarted: refusals are excused
for `RESTART_S` of every window, in which requests wait instead of failing.
Counted is the time, not the refusals, so that a restart under load costs no more
than one without, and one that is away half of the time is not excused for long.

*Breaks*: a connection closed before an answer, no head in time, or what is not
the protocol at all. The request may have been at fault, or its script. So they
count in a row, ended by any answer, and only make an address one to avoid while
there is a better one.

No clock in here: every call that needs it gets the time.
"""

from __future__ import annotations

import random
from collections import deque

#: How long an application may be away in each window, to be restarted.
RESTART_S = 2.0
#: How often an address that is out of order is tried.
PROBE_S = 1.0


class Health:
    """``limit`` failures within ``window_s`` seconds open the breaker; 0: never."""

    __slots__ = (
        "_away_s",
        "_away_since",
        "_breaks",
        "_limit",
        "_noted_at",
        "_probe_at",
        "_refusals",
        "_was_well",
        "_window_s",
        "is_avoided",
        "is_open",
        "is_well",
    )

    def __init__(self, limit: int, window_s: float) -> None:
        self._limit = limit
        self._window_s = window_s
        self._refusals: deque[float] = deque(maxlen=max(limit, 1))
        self._breaks: deque[float] = deque(maxlen=max(limit, 1))
        self._probe_at = 0.0
        # When it was found away, and how much of the window it had been away by then.
        self._away_since: float | None = None
        self._away_s = 0.0
        self._noted_at = 0.0
        self._was_well = False
        #: Refused too often: only probes are sent there.
        self.is_open = False
        #: Broke too often: others are better.
        self.is_avoided = False
        #: Nothing is held against it, and `connected` and `answered` change nothing.
        self.is_well = False

    def refused(self, now: float) -> bool:
        """Note that connecting failed; return whether that opened the breaker."""
        self.is_well = False
        if self.is_open:
            return False
        if self._away_since is None:
            self._away_since = now
        if self.is_excused(now):
            return False
        self._refusals.append(now)
        self.is_open = self._is_over(self._refusals, now)
        if self.is_open:
            self._probe_at = now + PROBE_S
        return self.is_open

    def broke(self, now: float) -> bool:
        """Note that an exchange failed; return whether it is to be avoided from now on."""
        self.is_well = False
        if self.is_avoided:
            return False
        self._breaks.append(now)
        self.is_avoided = self._is_over(self._breaks, now)
        if self.is_avoided:
            self._probe_at = now + PROBE_S
        return self.is_avoided

    def connected(self, now: float) -> bool:
        """Note that a connection was made; return whether that closed the breaker."""
        self._was_well = True
        if self._away_since is not None:
            # However long it was, a window later it is forgotten.
            self._away_s = min(self._away(now), RESTART_S)
            self._noted_at = now
            self._away_since = None
        was_open = self.is_open
        if was_open:
            self._refusals.clear()
            self.is_open = False
        self._settle()
        return was_open

    def answered(self) -> bool:
        """Note an answer; return whether it need not be avoided any more."""
        was_avoided = self.is_avoided
        self._breaks.clear()
        self.is_avoided = False
        self._settle()
        return was_avoided

    def is_excused(self, now: float) -> bool:
        """Tell whether it was well and has not been away for long: it is worth waiting for."""
        return self._was_well and not self.is_open and self._away(now) < RESTART_S

    def is_probe_due(self, now: float) -> bool:
        """Tell whether it is time for a request to try it."""
        return now >= self._probe_at

    def probe(self, now: float) -> None:
        """Note that a request tries it: the next one may after about `PROBE_S`."""
        # Not to the beat: what comes and goes once a second would always be met away.
        self._probe_at = now + PROBE_S * random.uniform(0.8, 1.2)  # noqa: S311 no secret

    def _away(self, now: float) -> float:
        """Return how many seconds of about one window it has been away."""
        since = now if self._away_since is None else self._away_since
        # What it was away earlier is forgiven little by little, all of it in a window.
        forgiven = (since - self._noted_at) * RESTART_S / self._window_s
        return max(self._away_s - forgiven, 0.0) + now - since

    def _is_over(self, failures: deque[float], now: float) -> bool:
        return 0 < self._limit == len(failures) and now - failures[0] <= self._window_s

    def _settle(self) -> None:
        self.is_well = self._was_well and not (
            self.is_open or self.is_avoided or self._breaks or self._away_since is not None
        )

"""What all connections of a process share: the application, limits, one clock.

One timer sweeps every connection for all of its time-outs, instead of a timer
each: a request then costs no timer at all, and time is read twice a second.
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import TYPE_CHECKING

from ..protocols.asgi import Application
from ..protocols.http1 import Http1Limits, ServerCodec, engine
from . import limits as defaults
from .refusals import Refusals

if TYPE_CHECKING:
    from .access_log import AccessLog
    from .exchange import Exchange
    from .http_driver import HttpConnection
    from .sendfile import SentFiles

logger = logging.getLogger("tetrapylon.gateway")

SWEEP_S = 0.5
# A sweep this late means that the loop was blocked: what clients sent meanwhile
# is still unread, so their time has not run.
_STALL_S = 1.0
# What was dropped is reported this often at the most.
_REPORT_S = 60.0
# As much as a read takes at the most, however much more may be kept.
_READ_BYTES = 64 * 1024
_LEAST_READ_BYTES = 4 * 1024


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What bounds a connection beside its codec's limits; bytes and counts."""

    body: int = defaults.BODY_BYTES
    body_rate: int = defaults.BODY_RATE_BYTES_PER_S
    body_buffer: int = defaults.BODY_BUFFER_BYTES
    read_ahead: int = defaults.READ_AHEAD_BYTES
    drain: int = defaults.DRAIN_BYTES
    send_buffer: int = defaults.SEND_BUFFER_BYTES
    requests: int = defaults.REQUESTS_PER_CONNECTION
    age_s: float = defaults.CONNECTION_AGE_S


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long a connection waits, in seconds; `math.inf` waits for ever."""

    first_byte: float = defaults.FIRST_BYTE_S
    header: float = defaults.HEADER_S
    body_idle: float = defaults.BODY_IDLE_S
    send_idle: float = defaults.SEND_IDLE_S
    keep_alive: float = defaults.KEEP_ALIVE_S
    half_close: float = defaults.HALF_CLOSE_S
    linger: float = defaults.LINGER_S


@dataclass(frozen=True, slots=True)
class PathRules:
    """How a request's path becomes the normal one (`paths.normalise`)."""

    keeps_encoded_slash: bool = False
    merges_slashes: bool = True


@dataclass(frozen=True, slots=True)
class ServiceSettings:
    """All that a connection driver goes by."""

    engine: str = "auto"
    http1: Http1Limits = field(default_factory=Http1Limits)
    limits: ConnectionLimits = field(default_factory=ConnectionLimits)
    timeouts: Timeouts = field(default_factory=Timeouts)
    paths: PathRules = field(default_factory=PathRules)


class Service:
    """The connections of one process and what they share."""

    def __init__(
        self,
        app: Application,
        settings: ServiceSettings | None = None,
        *,
        access_log: AccessLog | None = None,
        sent_files: SentFiles | None = None,
    ) -> None:
        settings = settings or ServiceSettings()
        self.app = app
        self.settings = settings
        self.limits = settings.limits
        self.timeouts = settings.timeouts
        self.access_log = access_log
        #: The files that backends may have sent in place of a body; None: none.
        self.sent_files = sent_files
        self.codec_class: type[ServerCodec] = engine(settings.engine)
        self.connections: set[HttpConnection] = set()
        #: Exchanges whose application still runs: the loop itself holds tasks weakly.
        self.running: set[Exchange] = set()
        self.is_stopping = False
        #: What every connection reads into, one after the other.
        self.read_buffer = memoryview(
            bytearray(max(min(self.limits.body_buffer, _READ_BYTES), _LEAST_READ_BYTES))
        )
        #: What each request's own context is copied from.
        self.context = contextvars.Context()
        self.now = 0.0
        self.stamp = b""
        #: Request fields left out for their names (``http.header_names``), of all
        #: connections that have ended.
        self.dropped_fields = 0
        self.refusals = Refusals()
        self._reported_fields = 0
        self._report_at = 0.0
        self._id_prefix = secrets.token_hex(4)
        self._id_count = itertools.count(1)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._emptied: asyncio.Event | None = None

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop that the service was started on."""
        assert self._loop is not None, "the service has not been started"
        return self._loop

    def start(self) -> None:
        """Begin to sweep; to be called on the running loop."""
        self._loop = asyncio.get_running_loop()
        self.context = contextvars.copy_context()
        self.now = self._loop.time()
        self._restamp()
        self._timer = self._loop.call_later(SWEEP_S, self._sweep)

    def next_request_id(self) -> str:
        """Return an id by which a client's report and a line of the log find each other."""
        return f"{self._id_prefix}-{next(self._id_count):x}"

    def _restamp(self) -> None:
        date = formatdate(usegmt=True)
        self.stamp = f"date: {date}\r\nserver: tetrapylon\r\n".encode()

    def _sweep(self) -> None:
        loop = self.loop
        # First of all: whatever fails below, time-outs are not to end with it.
        self._timer = loop.call_later(SWEEP_S, self._sweep)
        now = loop.time()
        late_s = now - self.now - SWEEP_S
        self.now = now
        self._restamp()
        if late_s > _STALL_S:
            logger.warning(
                "the event loop was blocked for %.1f s: an application does not let go of it",
                late_s,
            )
            for connection in self.connections:
                connection.postpone(late_s)
        else:
            for connection in tuple(self.connections):
                connection.check_time(now)
        if self.dropped_fields != self._reported_fields and now >= self._report_at:
            self._report_at = now + _REPORT_S
            self._report_dropped()
        self.refusals.report(now)

    def _report_dropped(self) -> None:
        count = self.dropped_fields - self._reported_fields
        self._reported_fields = self.dropped_fields
        if count:
            logger.warning(
                "dropped %d request field%s whose name has more than letters, digits and '-'",
                count,
                "" if count == 1 else "s",
            )

    def forget(self, connection: HttpConnection) -> None:
        """Take note that a connection is gone."""
        self.connections.discard(connection)
        self.dropped_fields += connection.codec.dropped_fields
        if self._emptied is not None and not self.connections:
            self._emptied.set()

    async def stop(self, *, graceful_s: float, on_wait: Callable[[int], None] | None = None) -> int:
        """Let every request in flight finish, within ``graceful_s`` (0: at once).

        Idle connections are closed now, busy ones after their answer. Returns how
        many requests had to be cut. The listener must have been closed before.
        """
        self.is_stopping = True
        for connection in tuple(self.connections):
            connection.stop_when_idle()
        if self.connections and graceful_s > 0:
            if on_wait is not None:
                on_wait(len(self.connections))
            self._emptied = asyncio.Event()
            try:
                await asyncio.wait_for(self._emptied.wait(), graceful_s)
            except TimeoutError:
                pass
        cut = sum(1 for connection in self.connections if connection.exchange is not None)
        for connection in tuple(self.connections):
            connection.abort()
        # Applications may have work left after their answer; past the bound it ends.
        tasks = [exchange.task for exchange in self.running if exchange.task is not None]
        if tasks:
            _, left = await asyncio.wait(tasks, timeout=min(graceful_s, 1.0) if not cut else 0.1)
            for task in left:
                task.cancel()
            if left:
                await asyncio.wait(left, timeout=5.0)
        if self._timer is not None:
            self._timer.cancel()
        self._report_dropped()
        self.refusals.finish(self.loop.time())
        return cut

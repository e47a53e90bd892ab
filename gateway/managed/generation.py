"""A generation of a managed application: processes on one listening socket.

Each process leads a session of its own, is watched, and is started again when it
ends: at once if it has retired (exit code 0, after some work), else after 0.1 s at
first, and up to 30 s if it keeps ending of itself. Meanwhile requests wait in the
backlog of the socket, which the gateway keeps open.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from ...adapters.byte_stream import connect
from ...adapters.errors import BackendError, Unavailable
from ...adapters.log_lines import RatedLines
from ...adapters.pipes import Drain
from ...adapters.processes import Child, ChildCommand, explain_exit, explain_failure
from .listening_socket import ListeningSocket

logger = logging.getLogger("tetrapylon.gateway")

#: How long a start waits for the first process to accept a connection, or to end.
START_S = 10.0
_MOST_BACKOFF_S = 30.0
# Where it is the spawn helper that has ended, or is not there yet.
_MOST_HELPER_WAIT_S = 1.0
# A process that lived so long was well: the next wait is the shortest again.
_STEADY_S = 10.0
# How often those that sit in accept() are woken while they are being ended.
_KNOCK_S = 0.2
# After the last kill: for what the system itself does not let go.
_GIVE_UP_S = 5.0
_LAST_LINES = 10


class SpawnFailure(Exception):
    """The application does not start; the message names the command and the cause."""


class Generation:
    """``processes`` processes of an application, on ``listener``, until `end`.

    ``command`` and ``start`` say what to start and how: ``command`` is asked anew
    each time, with the socket's descriptor. ``requests`` says how many there have been.
    ``on_change`` is called when processes have come or gone. ``name`` stands in the
    log, with the process's pid before what it writes. At the end they get SIGTERM, and
    what is left of their groups after ``kill_after_s`` SIGKILL; at once, if the end is
    cancelled.
    """

    #: Whether its end wakes those that sit in accept(), by a connection.
    knocks = True

    def __init__(
        self,
        name: str,
        listener: ListeningSocket,
        *,
        command: Callable[[int], ChildCommand],
        start: Callable[[ChildCommand], Awaitable[Child]],
        processes: int,
        kill_after_s: float,
        backoff_s: float,
        requests: Callable[[], int],
        on_change: Callable[[], None],
    ) -> None:
        self.listener = listener
        self._name = name
        self._command = command
        self._start_child = start
        self._count = processes
        self._kill_after_s = kill_after_s
        self._backoff_s = backoff_s
        self._requests = requests
        self._on_change = on_change
        self._running: set[_Process] = set()
        self._keepers: list[asyncio.Task[None]] = []
        self._stopping = asyncio.Event()

    @property
    def pids(self) -> list[int]:
        """The processes that run now."""
        return [process.pid for process in self._running]

    @property
    def is_ending(self) -> bool:
        """Whether `end` or `stop` was called."""
        return self._stopping.is_set()

    # Starting

    async def start(
        self, *, within_s: float = START_S, settle_s: float = 0.0, has_callers: bool = False
    ) -> bool:
        """Start the processes; return whether one has accepted a connection in time.

        Raises `SpawnFailure` if one ends before that, or in ``settle_s`` after it, or
        cannot be started at all. With ``has_callers`` requests wait already, and one of
        them may be what a process ended by: so only if all end. Then, and if cancelled,
        `end` has still to be called.
        """
        first = [await self._start() for _ in range(self._count)]
        bearable = self._count - 1 if has_callers else 0
        is_ready = await self._await_readiness(first, within_s, settle_s, bearable)
        self._keepers = [asyncio.create_task(self._keep_running(process)) for process in first]
        return is_ready

    async def _start(self) -> _Process:
        command = self._command(self.listener.fileno())
        try:
            child = await self._start_child(command)
        except OSError as error:
            raise SpawnFailure(f"{self._name}: {explain_failure(command, error)}") from error
        except BackendError as error:
            raise SpawnFailure(f"{self._name}: {error}") from error
        process = _Process(child, self._name)
        self._running.add(process)
        self._on_change()
        process.exited.add_done_callback(lambda _: self._on_exit(process))
        return process

    def _on_exit(self, process: _Process) -> None:
        self._running.discard(process)
        self._on_change()

    async def _await_readiness(
        self, processes: list[_Process], within_s: float, settle_s: float, bearable: int
    ) -> bool:
        """Wait until one of them has taken a connection; raise if too many end before.

        The connection says nothing and is ended at once: no application takes
        that for a request, and all close it in turn.
        """
        probe = asyncio.create_task(self._probe(within_s))
        exits: list[asyncio.Future[Any]] = [process.exited for process in processes]
        try:
            left: set[asyncio.Future[Any]] = {probe, *exits}
            while probe in left and len(left) + bearable > len(exits):
                _, left = await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED)
            if settle_s:
                await asyncio.wait(exits, timeout=settle_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            probe.cancel()
            await asyncio.wait([probe])
        ended = [process for process in processes if process.exited.done()]
        for process in ended:
            if len(ended) > bearable:
                lines = "".join(f"\n  {line}" for line in process.last_lines)
                program = self._command(self.listener.fileno()).argv[0]
                raise SpawnFailure(
                    f"{self._name}: {program} {explain_exit(process.exited.result())}"
                    f" at its start" + (f"; its last lines:{lines}" if lines else "")
                )
        return probe.result()

    async def _probe(self, within_s: float) -> bool:
        try:
            stream = await connect(self.listener.address, timeout_s=within_s)
        except BackendError as error:
            raise SpawnFailure(f"{self._name}: {error}") from error
        try:
            with contextlib.suppress(OSError):
                stream.half_close()
            stream.expect(within_s)
            await stream.receive()
        except TimeoutError:
            return False
        finally:
            stream.close()
        return True

    async def _keep_running(self, process: _Process) -> None:
        """Start a process again each time it ends, until the end of all."""
        loop = asyncio.get_running_loop()
        backoff_s = self._backoff_s
        while True:
            began_at = loop.time()
            requests = self._requests()
            code = await asyncio.shield(process.exited)
            lived_s = loop.time() - began_at
            # Many end themselves after so many requests, as php-cgi does after 500; that may
            # be very soon. One that ends without any is no better than one that fails.
            has_retired = code == 0 and self._requests() > requests
            if has_retired or lived_s > _STEADY_S:
                backoff_s = self._backoff_s
            status = explain_exit(code)
            is_blameless = process.is_lost
            helper_wait_s = self._backoff_s
            next_process: _Process | None = None
            while next_process is None:
                if self._stopping.is_set():
                    return
                if has_retired:
                    has_retired = False
                    logger.info("%s: %s; started again", self._name, status)
                else:
                    wait_s = helper_wait_s if is_blameless else backoff_s
                    logger.error("%s: %s; started again in %g s", self._name, status, wait_s)
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(wait_s):
                            await self._stopping.wait()
                    if self._stopping.is_set():
                        return
                    if is_blameless:
                        helper_wait_s = min(2 * wait_s, _MOST_HELPER_WAIT_S)
                    else:
                        backoff_s = min(2 * wait_s, _MOST_BACKOFF_S)
                try:
                    next_process = await self._start()
                except SpawnFailure as error:
                    status = str(error).removeprefix(f"{self._name}: ")
                    is_blameless = isinstance(error.__cause__, Unavailable)
            process = next_process

    # Stopping

    async def end(self) -> None:
        """End all processes and close the socket; see `stop`."""
        try:
            await self.stop()
        finally:
            self.listener.close()

    async def stop(self) -> None:
        """End all processes for good, within bounds; if it is cancelled, in no time."""
        ending = asyncio.create_task(self._stop())
        is_cancelled = False
        while not ending.done():
            try:
                await asyncio.shield(ending)
            except asyncio.CancelledError:
                is_cancelled = True
                self._kill_after_s = 0.0
                for process in self._running:
                    process.end(kill_after_s=0.0)
        if is_cancelled:
            raise asyncio.CancelledError

    async def _stop(self) -> None:
        self._stopping.set()
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + self._kill_after_s + _GIVE_UP_S
        told: set[_Process] = set()
        while True:
            for process in self._running - told:
                process.end(kill_after_s=self._kill_after_s)
                told.add(process)
            # A keeper may be starting one just now.
            awaited: list[asyncio.Future[Any]] = [process.exited for process in self._running]
            awaited += [keeper for keeper in self._keepers if not keeper.done()]
            if not awaited or loop.time() > give_up_at:
                break
            await asyncio.wait(awaited, timeout=_KNOCK_S)
            for _ in self._running if self.knocks else ():
                self.listener.knock()
        for process in self._running:
            logger.error("%s: process %d cannot be ended", self._name, process.pid)
        for keeper in self._keepers:
            keeper.cancel()


class _Process:
    """A running process: its end, its group, and what it says."""

    def __init__(self, child: Child, name: str) -> None:
        self._child = child
        self.pid = child.pid
        #: The exit code, or minus the signal's number.
        self.exited: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        #: The end of what it wrote.
        self.last_lines: deque[str] = deque(maxlen=_LAST_LINES)
        self._name = name
        self._output = Drain(child.stdout, RatedLines(self._log), lambda _: None)
        child.exited.add_done_callback(self._on_exit)

    @property
    def is_lost(self) -> bool:
        """Whether it ended because the spawn helper did."""
        return self._child.failure is not None

    def end(self, *, kill_after_s: float) -> None:
        """Have the process and all that it started ended."""
        self._child.end(kill_after_s=kill_after_s)

    def _log(self, line: str) -> None:
        self.last_lines.append(line)
        logger.warning("%s[%d]: %s", self._name, self.pid, line)

    def _on_exit(self, exited: asyncio.Future[int]) -> None:
        # Its children would go on accepting.
        self._child.end(kill_after_s=0.0)
        # The pipe holds what it said last; whoever else writes to it is not waited for.
        self._output.finish()
        self.exited.set_result(exited.result())

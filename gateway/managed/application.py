"""A managed application: when its processes start, are exchanged, sleep and end.

Every exchange goes the same way, whatever the reason (so many requests, too much
memory, a changed file): a new generation of processes is started on a new
listening socket and proves that it accepts; the address of the connections'
pool becomes the new socket's; when the last request of the old one is done, it
is ended. So no request is lost, and a new generation that does not start changes
nothing. An idle application is put to sleep by an exchange, too: for a socket at
which nobody listens until somebody calls.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import pwd
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Self

from ...adapters.addresses import SocketAddress
from ...adapters.connections import Connections
from ...adapters.processes import Child, ChildCommand, spawn_process
from .. import limits
from ..spawn.client import Spawner
from ..spawn.confinement import Confinement, User
from .changes import Changes
from .generation import Generation, SpawnFailure
from .listening_socket import ListeningSocket, listen
from .memory import is_supported as has_memory
from .memory import memory_over

logger = logging.getLogger("tetrapylon.gateway")

_LOOK_S = 1.0
_MEMORY_LOOK_S = 5.0
# A new generation may take its time, for the old one serves meanwhile.
_EXCHANGE_S = 60.0
# At an address that old and new processes share, it is not known who has answered.
_SETTLE_S = 1.0
_FIRST_RETRY_S = 1.0
_LAST_RETRY_S = 60.0
# On demand, requests wait for the next try.
_LAST_DEMAND_S = 5.0
_CALLERS_S = 0.05
# What a service manager says to the gateway is not for its children.
_OWN_VARIABLES = ("LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PID", "NOTIFY_SOCKET", "WATCHDOG_USEC")


class ManagedApplication:
    """``processes`` processes of ``command``, from ``async with`` to its end.

    They listen at ``address``, or at private sockets; ``connections`` is told where.
    With ``sockets`` there are several, each with its share of the processes, which
    are then exchanged one socket after the other.

    ``env`` is added to the gateway's own environment; ``cwd`` is where they start,
    ``user`` whom they run as. ``spawner`` starts them, so that they end with the
    gateway however that ends; without one, threads do.

    A generation is exchanged after ``max_requests`` for each of its processes, or
    when one of them, with its descendants, holds more than ``max_memory_bytes`` (0:
    never). ``watched`` are files and folders whose change is a reason, too;
    ``watches_command`` adds the program and the files that its arguments name.
    ``touch_reload`` is a file that is a reason whatever else changes meanwhile.
    Requests that the old generation still has are waited for, for ``graceful_s``.

    With ``starts_on_demand`` the first request starts the processes; they end when
    there was none for ``stop_idle_s`` (0: never).

    Entering raises `SpawnFailure`.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        connections: Connections,
        *,
        spawner: Spawner | None = None,
        address: SocketAddress | None = None,
        processes: int = 1,
        sockets: int = 1,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        user: User | None = None,
        kill_after_s: float = limits.FASTCGI_KILL_AFTER_S,
        backoff_s: float = limits.FASTCGI_BACKOFF_S,
        graceful_s: float = limits.GRACEFUL_S,
        max_requests: int = 0,
        max_memory_bytes: int = 0,
        watched: Sequence[str] = (),
        watches_command: bool = False,
        touch_reload: str | None = None,
        starts_on_demand: bool = False,
        stop_idle_s: float = 0.0,
    ) -> None:
        self._name = name
        self._command = tuple(command)
        self._connections = connections
        self._spawner = spawner
        self._address = address
        self._sockets = sockets
        self._processes = processes
        self._confinement = Confinement(rlimits=(), umask=None, user=user)
        self._environ = _environ(env or {}, user)
        self._cwd = os.path.abspath(cwd) if cwd is not None else os.getcwd()
        self._kill_after_s = kill_after_s
        self._backoff_s = backoff_s
        self._graceful_s = graceful_s
        self._requests_due = max_requests * processes // sockets or math.inf
        self._max_memory_bytes = max_memory_bytes
        self._watched = tuple(watched)
        self._watches_command = watches_command
        self._touch_reload = touch_reload
        self._starts_on_demand = starts_on_demand
        self._stop_idle_s = stop_idle_s

        # The oldest first.
        self._generations: list[Generation] = []
        self._retired: dict[Generation, asyncio.Task[None]] = {}
        self._supervisor: asyncio.Task[None] | None = None
        self._is_due = asyncio.Event()
        self._is_asleep = False
        self._is_called = False
        self._requests = 0
        self._requests_at_exchange = 0
        self._changes: tuple[Changes, ...] = ()
        # What an exchange that failed half-way has left, and its reason.
        self._unexchanged: tuple[Sequence[Generation], str] = ((), "")
        self._memory_look_at = 0.0
        self._retry_at = 0.0
        self._retry_s = _FIRST_RETRY_S
        self._arming: asyncio.TimerHandle | None = None
        self._requests_seen = 0
        self._busy_at = 0.0

    @property
    def pids(self) -> list[int]:
        """The processes that run now and take requests."""
        return [pid for generation in self._generations for pid in generation.pids]

    def count_request(self) -> None:
        """Take note of a request that is to come."""
        self._requests += 1
        if self._requests - self._requests_at_exchange == self._requests_due:
            self._is_due.set()

    # From enter to exit

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._end()
            raise
        self._supervisor = asyncio.create_task(self._supervise())
        return self

    async def _start(self) -> None:
        if self._spawner is not None:
            await self._spawner.prepare(self._confinement)
        elif self._confinement.user is not None:
            raise OSError("applications can run as another user on Linux only")
        if self._max_memory_bytes and not has_memory():
            logger.warning("%s: this system does not tell what processes hold", self._name)
        try:
            self._generations = [
                self._generation(listen(self._address)) for _ in range(self._sockets)
            ]
        except OSError as error:
            where = self._address or "a private socket"
            raise SpawnFailure(
                f"{self._name}: cannot listen at {where}: {error.strerror or error}"
            ) from error
        self._publish()
        self._changes = await asyncio.to_thread(self._watch)
        if self._starts_on_demand:
            self._fall_asleep()
            return
        if not await self._start_all():
            logger.warning("%s: has accepted no connection yet; requests wait", self._name)

    async def _start_all(self, *, has_callers: bool = False) -> bool:
        """Start all generations; when all are through, return or raise as `Generation.start`."""
        starts = await asyncio.gather(
            *(each.start(has_callers=has_callers) for each in self._generations),
            return_exceptions=True,
        )
        for outcome in starts:
            if isinstance(outcome, BaseException):
                raise outcome
        return all(starts)

    def _generation(self, listener: ListeningSocket) -> Generation:
        return Generation(
            self._name,
            listener,
            command=self._child_command,
            start=self._start_child,
            processes=self._processes // self._sockets,
            kill_after_s=self._kill_after_s,
            backoff_s=self._backoff_s,
            requests=lambda: self._requests,
            on_change=self._publish,
        )

    async def _start_child(self, command: ChildCommand) -> Child:
        if self._spawner is None:
            return await spawn_process(command, umask=-1)
        return await self._spawner.spawn(command, self._confinement).started()

    def _child_command(self, stdin: int) -> ChildCommand:
        program, *arguments = self._command
        if "/" not in program:
            # As execvp(3): the path is the one that it will have.
            path = os.fsdecode(self._environ.get(b"PATH", os.fsencode(os.defpath)))
            program = shutil.which(program, path=path) or program
        return ChildCommand(
            (program, *arguments), self._environ, self._cwd, stdin, has_one_output=True
        )

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._end()

    async def _end(self) -> None:
        if self._arming is not None:
            self._arming.cancel()
        self._disarm()
        tasks = [task for task in (self._supervisor, *self._retired.values()) if task is not None]
        # To cancel an end is to hurry it.
        hurried = {task for old, task in self._retired.items() if old.is_ending}
        for task in tasks:
            if task not in hurried:
                task.cancel()
        ends = [each.end() for each in (*self._generations, *self._retired)]
        await asyncio.gather(*ends, *tasks, return_exceptions=True)

    def _publish(self) -> None:
        """Have requests go to the sockets that somebody serves, or else to all."""
        served = [each for each in self._generations if each.pids]
        addresses = tuple(each.listener.address for each in served or self._generations)
        if addresses != self._connections.addresses:
            self._connections.addresses = addresses

    # What is to be done

    async def _supervise(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._look_s()):
                    await self._is_due.wait()
            self._is_due.clear()
            try:
                await self._look()
            except OSError as error:
                logger.error("%s: %s", self._name, error)
            except Exception:
                logger.exception("%s: what was to be done is left undone", self._name)

    def _look_s(self) -> float | None:
        """Return how long nothing can be due that does not say so itself."""
        if self._is_asleep:
            return None
        if self._stop_idle_s:
            return min(_LOOK_S, self._stop_idle_s / 4)
        is_looked_after = self._changes or self._max_memory_bytes or self._unexchanged[0]
        # They were counted to the end while it was too early for another try.
        has_waited = self._requests - self._requests_at_exchange >= self._requests_due
        return _LOOK_S if is_looked_after or has_waited else None

    async def _look(self) -> None:
        if self._is_asleep:
            if self._is_called:
                await self._wake_up()
        elif not self._retired:
            generations, reason = await self._outdated()
            if generations:
                await self._exchange(generations, reason)
            elif self._is_idle():
                self._stop_for_now()

    async def _outdated(self) -> tuple[list[Generation], str]:
        """Return generations that are to be exchanged, and why."""
        now = asyncio.get_running_loop().time()
        if self._changes:
            changed = await asyncio.to_thread(self._look_at_files)
            if changed is not None:
                return [*self._generations], f"{changed} has changed"
        if now < self._retry_at:
            return [], ""
        left, reason = self._unexchanged
        if left:
            return [*left], reason
        if self._requests - self._requests_at_exchange >= self._requests_due:
            return self._generations[:1], f"{self._requests_due} requests"
        if self._max_memory_bytes and now >= self._memory_look_at:
            self._memory_look_at = now + _MEMORY_LOOK_S
            pids = {pid: each for each in self._generations for pid in each.pids}
            return await asyncio.to_thread(self._too_large, pids)
        return [], ""

    def _too_large(self, pids: Mapping[int, Generation]) -> tuple[list[Generation], str]:
        for pid, generation in pids.items():
            held = memory_over(pid, self._max_memory_bytes)
            if held is not None:
                return [generation], f"process {pid} holds {held >> 20} MiB"
        return [], ""

    def _look_at_files(self) -> str | None:
        # All are asked: a change is told from its rest by two looks.
        found = [changes.look() for changes in self._changes]
        return next((path for path in found if path is not None), None)

    def _watch(self) -> tuple[Changes, ...]:
        paths = list(self._watched)
        if self._watches_command:
            program, *arguments = self._child_command(-1).argv
            files = (os.path.join(self._cwd, word) for word in arguments)
            paths += [program, *filter(os.path.isfile, files)]
        touched = [self._touch_reload] if self._touch_reload is not None else []
        return tuple(Changes(each) for each in (paths, touched) if each)

    # An exchange

    async def _exchange(self, generations: Sequence[Generation], reason: str) -> None:
        """Put new generations in the place of these, one after the other.

        If one does not start, it and those behind it go on. They are tried again if others
        were exchanged by then: old and new are not to serve side by side.
        """
        self._requests_at_exchange = self._requests
        is_begun = bool(self._unexchanged[0])
        self._unexchanged = ((), "")
        for number, old in enumerate(generations):
            try:
                new = await self._started_successor(old)
            except (SpawnFailure, OSError) as error:
                now = asyncio.get_running_loop().time()
                self._retry_at = now + self._retry_s
                self._retry_s = min(2 * self._retry_s, _LAST_RETRY_S)
                logger.error(
                    "not restarted (%s), what ran goes on: %s", reason, _headed(self._name, error)
                )
                if is_begun:
                    self._unexchanged = (generations[number:], reason)
                return
            is_begun = True
            self._retry_s = _FIRST_RETRY_S
            self._replace(old, new)
            logger.info("%s: restarted: %s", self._name, reason)
            if old is not generations[-1]:
                await asyncio.wait([self._retired[old]])

    async def _started_successor(self, old: Generation) -> Generation:
        new = self._generation(old.listener.successor())
        try:
            settle_s = 0.0 if new.listener.is_apart else _SETTLE_S
            if not await new.start(within_s=_EXCHANGE_S, settle_s=settle_s):
                raise SpawnFailure(
                    f"{self._name}: has accepted no connection for {_EXCHANGE_S:g} s"
                )
            new.listener.take_over()
        except BaseException:
            await new.end()
            raise
        return new

    def _replace(self, old: Generation, new: Generation) -> None:
        self._generations.remove(old)
        self._generations.append(new)
        self._publish()
        self._retired[old] = retiring = asyncio.create_task(self._retire(old))
        retiring.add_done_callback(partial(self._on_retired, old))

    def _on_retired(self, old: Generation, _: asyncio.Task[None]) -> None:
        del self._retired[old]
        self._is_due.set()

    async def _retire(self, old: Generation) -> None:
        """End a generation when its last request is done."""
        if old.listener.is_apart:
            graceful_s = self._graceful_s if self._graceful_s < math.inf else None
            try:
                async with asyncio.timeout(graceful_s):
                    await self._connections.drained(old.listener.address)
                    await _taken(old.listener)
            except TimeoutError:
                logger.warning(
                    "%s: requests that go on for more than %g s are cut: the processes that"
                    " answer them were replaced",
                    self._name,
                    self._graceful_s,
                )
        await old.end()

    # Sleep

    def _is_idle(self) -> bool:
        now = asyncio.get_running_loop().time()
        if self._requests != self._requests_seen or self._connections.slots.taken:
            self._requests_seen = self._requests
            self._busy_at = now
        return bool(self._stop_idle_s) and now - self._busy_at >= self._stop_idle_s

    def _stop_for_now(self) -> None:
        asleep = []
        try:
            for old in self._generations:
                asleep.append(self._generation(old.listener.successor()))
            for new in asleep:
                new.listener.take_over()
        except OSError:
            self._busy_at = asyncio.get_running_loop().time()
            for new in asleep:
                new.listener.close()
            raise
        for old, new in zip([*self._generations], asleep, strict=True):
            # At an address of both, the new one would take a knock for a request.
            old.knocks = old.listener.is_apart
            self._replace(old, new)
        logger.info("%s: stopped: idle for %g s", self._name, self._stop_idle_s)
        self._fall_asleep()

    def _fall_asleep(self, for_s: float = 0.0) -> None:
        self._unexchanged = ((), "")
        self._is_asleep = True
        self._is_called = False
        if for_s:
            self._arming = asyncio.get_running_loop().call_later(for_s, self._arm)
        else:
            self._arm()

    def _arm(self) -> None:
        for generation in self._generations:
            generation.listener.watch(self._on_call)

    def _disarm(self) -> None:
        for generation in self._generations:
            generation.listener.unwatch()

    def _on_call(self) -> None:
        self._disarm()
        self._is_called = True
        self._is_due.set()

    async def _wake_up(self) -> None:
        """Start the processes for whoever waits; if that fails twice, let nobody wait for it."""
        loop = asyncio.get_running_loop()
        self._is_called = False
        try:
            self._changes = await asyncio.to_thread(self._watch)
            await self._start_all(has_callers=True)
        except Exception as error:
            logger.error("%s", _headed(self._name, error))
        else:
            logger.info("%s: started: a request has come", self._name)
            self._is_asleep = False
            self._retry_s = _FIRST_RETRY_S
            self._requests_at_exchange = self._requests
            self._busy_at = loop.time()
            return
        # The first to call may have been the one that nobody survives.
        is_last_try = self._retry_s > _FIRST_RETRY_S
        retry_s = min(self._retry_s, _LAST_DEMAND_S)
        self._retry_s = min(2 * retry_s, _LAST_DEMAND_S)
        await asyncio.gather(*(each.stop() for each in self._generations))
        if is_last_try:
            for each in self._generations:
                each.listener.turn_away()
        self._generations = [self._generation(each.listener) for each in self._generations]
        self._fall_asleep(retry_s if is_last_try else self._backoff_s)


async def _taken(listener: ListeningSocket) -> None:
    """Wait until no connection waits there: others may have called at a given address."""
    while True:
        if not listener.has_callers():
            return
        await asyncio.sleep(_CALLERS_S)


def _headed(name: str, error: Exception) -> str:
    text = str(error)
    return text if text.startswith(f"{name}: ") else f"{name}: {text}"


def _environ(env: Mapping[str, str], user: User | None) -> dict[bytes, bytes]:
    """Return the gateway's environment, a user's own variables, and ``env``."""
    environ = {name: os.environ[name] for name in os.environ if name not in _OWN_VARIABLES}
    if user is not None and user.uid != os.geteuid():
        for name in ("HOME", "USER", "LOGNAME", "SHELL", "MAIL"):
            environ.pop(name, None)
        with contextlib.suppress(KeyError):
            entry = pwd.getpwuid(user.uid)
            environ |= {"HOME": entry.pw_dir, "USER": entry.pw_name, "LOGNAME": entry.pw_name}
    environ |= env
    return {os.fsencode(name): os.fsencode(value) for name, value in environ.items()}

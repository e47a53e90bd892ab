"""Application processes behind a listening socket that the gateway owns.

FastCGI Specification 1.0, section 2.2: the web server makes the socket, and each
process finds it as descriptor 0. The gateway keeps it open, so requests wait in
its backlog while a process is being replaced. Each process leads a session of
its own, is watched, and is started again when it ends, after 0.1 s at first and
up to 30 s if it keeps ending.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
from collections import deque
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from ...adapters.byte_stream import TcpAddress, UnixAddress, connect
from ...adapters.errors import BackendError
from ...adapters.log_lines import LogLines
from ...adapters.pipes import Drain
from ...adapters.processes import explain_exit, watch_exit
from .. import limits

logger = logging.getLogger("tetrapylon.gateway")

# So long the start waits for the first process to accept a connection.
_START_S = 10.0
_MOST_BACKOFF_S = 30.0
# A process that lived so long was well: the next wait is the shortest again.
_STEADY_S = 10.0
# How often those that sit in accept() are woken while they are being ended.
_WAKE_S = 0.2
_LAST_LINES = 10
# What a service manager says to the gateway is not for its children.
_OWN_VARIABLES = ("LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PID", "NOTIFY_SOCKET", "WATCHDOG_USEC")


class SpawnFailure(Exception):
    """The application does not start; the message names the command and the cause."""


class ListeningProcesses:
    """``processes`` processes of ``command``, running from ``async with`` to its end.

    They listen at ``address``, or at a unix socket in a private directory.
    ``env`` is added to the gateway's own environment; ``cwd`` is where they
    start. What they write to stdout and stderr is logged. At the end they get
    SIGTERM, and what is left of their groups after ``kill_after_s`` SIGKILL.
    ``name`` stands in the log. Entering raises `SpawnFailure`.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        address: UnixAddress | TcpAddress | None = None,
        processes: int = 1,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        kill_after_s: float = limits.FASTCGI_KILL_AFTER_S,
        backoff_s: float = limits.FASTCGI_BACKOFF_S,
    ) -> None:
        self._name = name
        self._command = tuple(command)
        self._given_address = address
        self._count = processes
        self._env = dict(env or {})
        self._cwd = cwd
        self._kill_after_s = kill_after_s
        self._backoff_s = backoff_s
        self._directory = ""
        self._listener: socket.socket | None = None
        self._starting: set[asyncio.Task[_Process]] = set()
        self._running: set[_Process] = set()
        self._keepers: list[asyncio.Task[None]] = []
        self._stopping = asyncio.Event()
        #: Where they listen, once entered.
        self.address: UnixAddress | TcpAddress | None = address

    @property
    def pids(self) -> list[int]:
        """The processes that run now."""
        return [process.pid for process in self._running]

    async def __aenter__(self) -> Self:
        try:
            self._listen()
            first = [await self._start() for _ in range(self._count)]
            await self._await_readiness(first)
        except OSError as error:
            await self._stop()
            what = error.filename or self.address or ""
            raise SpawnFailure(
                f"cannot start {shlex.join(self._command)}: {error.strerror or error}"
                + (f": {what}" if what else "")
            ) from error
        except BaseException:
            await self._stop()
            raise
        self._keepers = [asyncio.create_task(self._keep_running(process)) for process in first]
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stop()

    def _listen(self) -> None:
        address = self._given_address
        if address is None:
            self._directory = tempfile.mkdtemp(prefix="tetrapylon-")  # mode 0700
            address = UnixAddress(os.path.join(self._directory, "socket"))
        if isinstance(address, UnixAddress):
            listener = _bind_unix(address.path)
        else:
            family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
            listener = socket.create_server((address.host, address.port), family=family)
        self.address = address
        self._listener = listener
        listener.listen(limits.BACKLOG)

    # Starting

    async def _start(self) -> _Process:
        """Start a process. Whoever waits may be cancelled: it is taken note of anyway."""
        starting = asyncio.create_task(self._spawn())
        self._starting.add(starting)
        starting.add_done_callback(self._starting.discard)
        return await asyncio.shield(starting)

    async def _spawn(self) -> _Process:
        output, input_ = os.pipe()
        try:
            popen = await asyncio.to_thread(self._popen, input_)
        except BaseException:
            os.close(output)
            raise
        finally:
            os.close(input_)
        process = _Process(popen, output, self._name)
        self._running.add(process)
        process.exited.add_done_callback(lambda _: self._running.discard(process))
        return process

    def _popen(self, output: int) -> subprocess.Popen[bytes]:
        assert self._listener is not None
        environ = {name: os.environ[name] for name in os.environ if name not in _OWN_VARIABLES}
        return subprocess.Popen(
            self._command,
            stdin=self._listener.fileno(),
            stdout=output,
            stderr=output,
            env={**environ, **self._env},
            cwd=self._cwd,
            start_new_session=True,
        )

    async def _await_readiness(self, processes: list[_Process]) -> None:
        """Wait until one of them has taken a connection; raise if one ends before.

        The connection says nothing and is ended at once: no application takes
        that for a request, and all close it in turn.
        """
        probe = asyncio.create_task(self._probe())
        awaited: list[asyncio.Future[Any]] = [probe, *(process.exited for process in processes)]
        try:
            await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
        finally:
            probe.cancel()
            await asyncio.wait([probe])
        for process in processes:
            if process.exited.done():
                lines = "".join(f"\n  {line}" for line in process.last_lines)
                raise SpawnFailure(
                    f"{shlex.join(self._command)} {explain_exit(process.exited.result())}"
                    f" at its start" + (f"; its last lines:{lines}" if lines else "")
                )
        probe.result()

    async def _probe(self) -> None:
        assert self.address is not None
        try:
            stream = await connect(self.address, timeout_s=_START_S)
        except BackendError as error:
            raise SpawnFailure(str(error)) from error
        try:
            stream.half_close()
            stream.expect(_START_S)
            await stream.receive()
        except TimeoutError:
            logger.warning(
                "%s: has accepted no connection for %g s; requests wait", self._name, _START_S
            )
        finally:
            stream.close()

    async def _keep_running(self, process: _Process) -> None:
        """Start a process again each time it ends, until the end of all."""
        loop = asyncio.get_running_loop()
        backoff_s = self._backoff_s
        while True:
            began_at = loop.time()
            status = explain_exit(await asyncio.shield(process.exited))
            if loop.time() - began_at > _STEADY_S:
                backoff_s = self._backoff_s
            next_process: _Process | None = None
            while next_process is None:
                if not self._stopping.is_set():
                    logger.error("%s: %s; started again in %g s", self._name, status, backoff_s)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(backoff_s):
                        await self._stopping.wait()
                if self._stopping.is_set():
                    return
                backoff_s = min(2 * backoff_s, _MOST_BACKOFF_S)
                try:
                    next_process = await self._start()
                except OSError as error:
                    status = f"cannot start {shlex.join(self._command)}: {error}"
            process = next_process

    # Stopping

    async def _stop(self) -> None:
        """End all processes within bounds, whatever is being cancelled."""
        ending = asyncio.create_task(self._end_all())
        is_cancelled = False
        while not ending.done():
            try:
                await asyncio.shield(ending)
            except asyncio.CancelledError:
                is_cancelled = True
        if is_cancelled:
            raise asyncio.CancelledError

    async def _end_all(self) -> None:
        self._stopping.set()
        if self._starting:
            await asyncio.wait(self._starting)
        for process in self._running:
            process.signal(signal.SIGTERM)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._kill_after_s
        while self._running and (left_s := deadline - loop.time()) > 0:
            exits = [process.exited for process in self._running]
            await asyncio.wait(exits, timeout=min(_WAKE_S, left_s))
            self._wake()
        for process in self._running:
            process.signal(signal.SIGKILL)
        if self._running:
            await asyncio.wait([process.exited for process in self._running])
        if self._keepers:
            await asyncio.wait(self._keepers)
        if self._listener is not None:
            self._listener.close()
            if isinstance(self.address, UnixAddress):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.address.path)
        if self._directory:
            shutil.rmtree(self._directory, ignore_errors=True)

    def _wake(self) -> None:
        """Connect, for those who have taken note of SIGTERM and still sit in accept()."""
        address = self.address
        for _ in self._running:
            if isinstance(address, UnixAddress):
                _call(socket.AF_UNIX, address.path)
            elif address is not None:
                family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
                _call(family, (address.host, address.port))


class _Process:
    """A running process: its end, its group, and what it says."""

    def __init__(self, popen: subprocess.Popen[bytes], output: int, name: str) -> None:
        self._popen = popen
        self.pid = popen.pid
        #: The exit code, or minus the signal's number.
        self.exited: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        #: The end of what it wrote.
        self.last_lines: deque[str] = deque(maxlen=_LAST_LINES)
        self._name = name
        os.set_blocking(output, False)
        self._output = Drain(output, LogLines(self._log), lambda _: None)
        watch_exit(popen, self._on_exit)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the whole group; nothing happens if there is none left."""
        if not self.exited.done():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)

    def _log(self, line: str) -> None:
        self.last_lines.append(line)
        logger.warning("%s[%d]: %s", self._name, self.pid, line)

    def _on_exit(self) -> None:
        # Its children would go on accepting. Where it is not reaped yet, it still lends
        # its number to the group: nobody else's is hit.
        self.signal(signal.SIGKILL)
        code = self._popen.wait()
        # The pipe holds what it said last; whoever else writes to it is not waited for.
        self._output.finish()
        self.exited.set_result(code)


def _call(family: socket.AddressFamily, address: str | tuple[str, int]) -> None:
    with socket.socket(family) as caller:
        caller.setblocking(False)
        caller.connect_ex(address)


def _bind_unix(path: str) -> socket.socket:
    """Bind a unix socket, in the place of one that nobody listens on any more."""
    listener = socket.socket(socket.AF_UNIX)
    try:
        try:
            listener.bind(path)
        except OSError:
            with socket.socket(socket.AF_UNIX) as caller:
                if caller.connect_ex(path) == 0 or not _is_socket(path):
                    raise
            os.unlink(path)
            listener.bind(path)
        # Nobody but the gateway has any business there.
        os.chmod(path, 0o600)
    except BaseException:
        listener.close()
        raise
    return listener


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        return False

"""The worker's side of the spawn helper: ask, and never wait on the event loop.

A `Spawner` is the server's, and shared by all backends that start children. It
has a helper process (see `helper`) for each `Confinement` in use, or several: a helper
waits until the program of a child runs, and for many short ones that wait is what bounds
their rate. To start a child costs the loop a `sendmsg`; all else comes as an event.

If a helper dies, its children are killed, what waits for it fails, and it is
started again, at once and then with growing delays.
"""

from __future__ import annotations

import array
import asyncio
import errno
import itertools
import logging
import marshal
import math
import os
import socket
import subprocess
import sys
from collections import deque
from types import TracebackType
from typing import Any, NamedTuple, Self

from ...adapters.errors import Unavailable
from ...adapters.log_lines import escape
from ...adapters.processes import ChildCommand
from . import helper
from .child import SpawnedChild, Usage
from .confinement import Confinement
from .interpreters import Eligible
from .warm import explain_trouble

logger = logging.getLogger("tetrapylon.gateway.spawn")

_READY_S = 10.0
_STOP_S = 6.0
_BACKOFF_FIRST_S = 0.1
_BACKOFF_MOST_S = 5.0
# A helper that lived this long did not die of how it was started.
_HEALTHY_S = 30.0
_WARN_EVERY_S = 60.0
_WARNED = 256
_REPLIES_BYTES = helper.REPLIES * helper.REPLY.size
_TROUBLE = bytes((helper.TROUBLE,))


class Warm(NamedTuple):
    """How a child may be made by a warm process; ``script_at``: where in its argv the script is."""

    template: Eligible
    script_at: int


class _Packet(NamedTuple):
    data: bytes
    fds: tuple[int, ...]
    child: SpawnedChild | None


class _HelperProcess:
    """One helper: its process, its socket, and the children asked of it."""

    def __init__(self, executable: str, confinement: Confinement) -> None:
        self._executable = executable
        self._confinement = confinement
        # Whose the streams of children are to be, if not ours.
        self._owner_uid = confinement.user.uid if confinement.user is not None else 0
        self._ids = itertools.count(1)
        self._children: dict[int, SpawnedChild] = {}
        self._outbox: deque[_Packet] = deque()
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._ready: asyncio.Future[int] | None = None
        self._restarting: asyncio.Task[None] | None = None
        self._backoff_s = 0.0
        self._started_at = 0.0
        self._is_closed = False
        self._warned: dict[tuple[tuple[str, ...], str], float] = {}

    @property
    def pid(self) -> int | None:
        """The helper's pid, if there is one."""
        return self._process.pid if self._process is not None else None

    @property
    def is_ready(self) -> bool:
        """Whether it can be asked for a child now."""
        return self._socket is not None and self._ready is None

    @property
    def children(self) -> int:
        """How many children are its care."""
        return len(self._children)

    async def start(self) -> None:
        """Start the process and confine it; raises `OSError` if either fails."""
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            launching = asyncio.ensure_future(asyncio.to_thread(self._launch, theirs.fileno()))
            try:
                self._process = await asyncio.shield(launching)
            except asyncio.CancelledError:
                self._process = await launching
                ours.close()
                await self._bury()
                raise
            except BaseException:
                ours.close()
                raise
        ours.setblocking(False)
        self._socket = ours
        self._started_at = loop.time()
        self._ready = loop.create_future()
        loop.add_reader(ours.fileno(), self._on_readable)
        self.send(self._confinement.message())
        try:
            async with asyncio.timeout(_READY_S):
                await self._ready
        except BaseException as error:
            self._hang_up()
            await self._bury()
            if isinstance(error, TimeoutError):
                raise OSError(errno.ETIMEDOUT, "the spawn helper does not answer") from None
            raise
        finally:
            self._ready = None

    def _launch(self, fd: int) -> subprocess.Popen[bytes]:
        # A script of the same user can read its parent's environment: there is
        # nothing in it but what finds the interpreter's own library.
        environ = {
            name: value
            for name, value in os.environ.items()
            if name in ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
        }
        return subprocess.Popen(
            [self._executable, "-I", "-S", helper.__file__, str(fd), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=(fd,),
            start_new_session=True,
            cwd="/",
            env=environ,
        )

    def spawn(self, command: ChildCommand, warm: Warm | None) -> SpawnedChild:
        """Ask for a child. Raises `Unavailable` while there is no helper, or `OSError`."""
        if not self.is_ready:
            raise Unavailable("the spawn helper is being started", retry_after_s=1)
        child = SpawnedChild(next(self._ids), command, self)
        if self._owner_uid:
            child.give_streams(self._owner_uid)
        message: dict[str, Any] = {
            "op": "spawn" if warm is None else "warm",
            "id": child.id,
            "argv": [os.fsencode(word) for word in command.argv],
            "environ": dict(command.environ),
            "cwd": os.fsencode(command.cwd),
        }
        if warm is not None:
            message["template"] = tuple(warm.template)
            message["script_at"] = warm.script_at
        self._children[child.id] = child
        self.send(message, child)
        return child

    def withdraw(self, child: SpawnedChild) -> None:
        """Unsend what the helper has not been asked yet."""
        for packet in self._outbox:
            if packet.child is child:
                self._outbox.remove(packet)
                self._close_stored(packet)
                self._drop(child.id, Unavailable("withdrawn"))
                return

    def send(self, message: dict[str, Any], child: SpawnedChild | None = None) -> None:
        """Send a message, now or when the helper takes it; never waits."""
        if self._socket is None:
            return
        data = marshal.dumps(message)
        fds = child.fds if child is not None else ()
        if len(data) > helper.PACKET_BYTES:
            try:
                fds = (_store(data), *fds)
            except OSError as error:
                assert child is not None
                self._drop(child.id, error)
                return
            data = helper.STORED
        packet = _Packet(data, fds, child)
        if self._outbox:
            self._outbox.append(packet)
        elif not self._send_packet(self._socket, packet):
            self._outbox.append(packet)
            asyncio.get_running_loop().add_writer(self._socket.fileno(), self._flush)

    def _flush(self) -> None:
        sock = self._socket
        assert sock is not None
        while self._outbox:
            if not self._send_packet(sock, self._outbox[0]):
                return
            self._outbox.popleft()
        asyncio.get_running_loop().remove_writer(sock.fileno())

    def _send_packet(self, sock: socket.socket, packet: _Packet) -> bool:
        """Send a packet; False if it has to wait until the helper has taken others."""
        data, fds, child = packet
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else ()
        try:
            sock.sendmsg((data,), rights)
        except BlockingIOError:
            return False
        except ConnectionError:
            pass  # its end of file is told to the reader, who drops the child
        except OSError as error:
            if child is not None:
                self._drop(child.id, error)
        self._close_stored(packet)
        if child is not None:
            child.on_sent()
        return True

    @staticmethod
    def _close_stored(packet: _Packet) -> None:
        if packet.data == helper.STORED:
            os.close(packet.fds[0])

    def _drop(self, id: int, error: Exception) -> None:
        child = self._children.pop(id, None)
        if child is not None:
            child.on_lost(error)

    def _on_readable(self) -> None:
        assert self._socket is not None
        try:
            data = self._socket.recv(_REPLIES_BYTES)
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        if data[:1] == _TROUBLE:
            data, text = data[: helper.REPLY.size], data[helper.REPLY.size :]
            _, id, value, place, *_ = helper.REPLY.unpack(data)
            child = self._children.get(id)
            if child is not None:
                self._warn(child.command, explain_trouble(place, value, escape(text)))
            return
        if not data or len(data) % helper.REPLY.size:
            self._on_death()
            return
        for reply in helper.REPLY.iter_unpack(data):
            self._on_reply(*reply)

    def _on_reply(
        self, op: int, id: int, value: int, place: int, user_s: float, system_s: float, rss: int
    ) -> None:
        if id == 0:
            if self._ready is None or self._ready.done():
                return
            if op == helper.READY:
                self._ready.set_result(value)
            else:
                what = "user" if place == helper.PLACE_USER else "limits"
                reason = f"cannot set the {what} of children: {os.strerror(value)}"
                self._ready.set_exception(OSError(value, reason))
            return
        child = self._children.get(id)
        if child is None:
            return
        if op == helper.STARTED:
            child.on_started(value, is_warm=bool(place))
        elif op == helper.EXITED:
            del self._children[id]
            child.on_exited(value, Usage(user_s, system_s, rss), bool(place))
        elif op == helper.FAILED:
            del self._children[id]
            child.on_failed(value, place)

    def _warn(self, command: ChildCommand, trouble: str) -> None:
        """Tell why a script runs plain, once in a while for each script."""
        now = asyncio.get_running_loop().time()
        key = (command.argv, trouble)
        if self._warned.get(key, -math.inf) + _WARN_EVERY_S > now:
            return
        if len(self._warned) >= _WARNED:
            self._warned.clear()
        self._warned[key] = now
        logger.warning("%s runs plain: %s", " ".join(command.argv), trouble)

    def _hang_up(self) -> None:
        """Forget the socket, and everything that was asked through it."""
        sock, self._socket = self._socket, None
        if sock is not None:
            loop = asyncio.get_running_loop()
            loop.remove_reader(sock.fileno())
            loop.remove_writer(sock.fileno())
            sock.close()
        for packet in self._outbox:
            self._close_stored(packet)
        self._outbox.clear()
        for id in tuple(self._children):
            self._drop(id, Unavailable("the spawn helper died", retry_after_s=1))

    def _on_death(self) -> None:
        self._hang_up()
        if self._ready is not None:
            if not self._ready.done():
                self._ready.set_exception(OSError(errno.EPIPE, "the spawn helper died"))
            return
        loop = asyncio.get_running_loop()
        if loop.time() - self._started_at > _HEALTHY_S:
            self._backoff_s = 0.0
        self._restarting = loop.create_task(self._restart())

    async def _restart(self) -> None:
        code = await self._bury()
        logger.error("the spawn helper ended with %s; starting another", code)
        while not self._is_closed:
            await asyncio.sleep(self._backoff_s)
            self._backoff_s = min(max(_BACKOFF_FIRST_S, 2 * self._backoff_s), _BACKOFF_MOST_S)
            try:
                await self.start()
            except OSError as error:
                logger.error("the spawn helper does not start: %s", error)
            else:
                return

    async def _bury(self) -> int | None:
        """Wait for the process, whose socket is closed; kill it if it does not go."""
        process, self._process = self._process, None
        if process is None:
            return None
        waiting = asyncio.ensure_future(asyncio.to_thread(_wait, process))
        try:
            return await asyncio.shield(waiting)
        except asyncio.CancelledError:
            process.kill()
            await waiting
            raise

    async def close(self) -> None:
        """End the process, and with it every child."""
        self._is_closed = True
        if self._restarting is not None:
            self._restarting.cancel()
            await asyncio.wait((self._restarting,))
        self._hang_up()
        await self._bury()


def _wait(process: subprocess.Popen[bytes]) -> int:
    try:
        return process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def _store(data: bytes) -> int:
    """Return a file in memory with ``data`` in it, at its start."""
    fd = os.memfd_create("tetrapylon-spawn")
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        os.lseek(fd, 0, os.SEEK_SET)
    except BaseException:
        os.close(fd)
        raise
    return fd


class Spawner:
    """Starts children through helpers; entered by the server with ``async with``.

    Needs Linux: elsewhere `is_supported` is false, and backends start children by
    `tetrapylon.adapters.processes.spawn_process`. To be entered in the process
    that uses it, after any fork.
    """

    def __init__(self, executable: str = sys.executable) -> None:
        self._executable = executable
        self._helpers: dict[Confinement, list[_HelperProcess]] = {}
        self._starting = asyncio.Lock()
        self._is_entered = False

    @staticmethod
    def is_supported() -> bool:
        """Tell whether this system has what the helper needs."""
        return sys.platform == "linux"

    async def __aenter__(self) -> Self:
        self._is_entered = True
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._is_entered = False
        helpers = list(itertools.chain.from_iterable(self._helpers.values()))
        self._helpers.clear()
        await asyncio.gather(*(helper_process.close() for helper_process in helpers))

    async def prepare(self, confinement: Confinement, *, helpers: int = 1) -> None:
        """Have so many helpers for ``confinement`` started.

        Each starts one child at a time, and waits until its program runs. Raises
        `OSError` if that fails, as for a user that this one cannot become.
        """
        assert self._is_entered, "the spawner has not been entered"
        async with self._starting:
            started = self._helpers.setdefault(confinement, [])
            while len(started) < helpers:
                helper_process = _HelperProcess(self._executable, confinement)
                await helper_process.start()
                started.append(helper_process)

    def spawn(
        self, command: ChildCommand, confinement: Confinement, warm: Warm | None = None
    ) -> SpawnedChild:
        """Ask for a child, whose `SpawnedChild.started` is then to be awaited.

        With ``warm`` it is made by that warm process once there is one, and is else
        started as without.

        ``confinement`` must have been prepared. Raises `Unavailable` while the
        helper is being restarted, `OSError` if there are no pipes to be had.
        """
        first, *others = self._helpers[confinement]
        chosen = first
        if warm is None:
            # Warm processes are the first one's: two sets of them would take twice the memory.
            for helper_process in others:
                if helper_process.is_ready and (
                    not chosen.is_ready or helper_process.children < chosen.children
                ):
                    chosen = helper_process
        return chosen.spawn(command, warm)

    def helper_pids(self) -> list[int]:
        """Return the pids of the helpers that run now."""
        helpers = itertools.chain.from_iterable(self._helpers.values())
        pids = (helper_process.pid for helper_process in helpers)
        return [pid for pid in pids if pid is not None]

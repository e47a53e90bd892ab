"""Warm processes of the spawn helper: it asks them for children instead of starting those.

A part of `helper`, which runs it when the first ``warm`` message comes; so it imports
nothing of the gateway, and knows nothing of languages. A *template* is a process that
has an interpreter ready, and forks for each request. What it is to run is its key:
whoever has another interpreter, other flags or another environment gets another one.

**Messages** go over a ``SOCK_SEQPACKET`` pair, whose end is the template's descriptor
3 and named in its environment. A request is one packet of fields, each a length (u32,
big-endian) and so many bytes: an opaque id of 8 bytes, script, working directory, the
number of further arguments, those, then names and values of the environment in turn;
the three standard streams travel with it. An answer is an id and an i32: a pid, or
minus an errno; EAGAIN refuses that one request and no other, ESTALE says that another
template is to be started. The id of nobody, eight zeros, is for the template itself: its
pid when it is ready; when it cannot be, minus an errno, and why in words if it knows.

**The child answers for itself**, once it leads its session and before it runs anything
of the script, and closes the socket. The child is the helper's own (CLONE_PARENT, or an
orphan of a second fork). So its answer is there before it can be seen to end; and the
end of file says that no answer is under way, whatever became of the template: what has
none by then was never begun, and is run plain. No request is lost.
"""

from __future__ import annotations

import errno
import math
import os
import select
import signal
import socket
import struct
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

#: Reasons for running plain that the worker is told, with a value.
REFUSED = 1  # the script, by its template; errno
DIED = 2  # the template; its exit code, or minus the signal
NOT_READY = 3  # the template did not become so; errno
SILENT = 4  # the template, and so it was killed; 0
FALSE = 5  # the template named a process that is none of its own, and was killed; 0

FD_VARIABLE = b"TETRAPYLON_WARM_FD"
_FD = 3
_NOBODY = bytes(8)
# Refusals that say nothing of the script, or of which its plain run will tell.
_UNTOLD = (errno.EAGAIN, errno.ENOENT, errno.ENOTDIR, errno.EACCES)
_ANSWER = struct.Struct("=8si")
_LENGTH = struct.Struct(">I")
_PACKET_BYTES = 64 * 1024
_TEXT_BYTES = 1024

_TEMPLATES = 8
_IDLE_S = 600.0
# To start one takes more than to run a script plain.
_KEPT_S = 10.0
#: Its children share a hash seed and the layout of their memory.
_REQUESTS = 10_000
_READY_S = 30.0
# Within which whoever asked for the child has not yet given up.
_ANSWER_S = 3.0
_LOOK_S = 1.0
_IDLE_LOOK_S = 60.0
_PENDING = 32
# The helper's other descriptors.
_OWN_FDS = 16
# What was out of date sooner is not replaced sooner.
_LIFE_S = 5.0
_BACKOFF_FIRST_S = 0.1
_BACKOFF_MOST_S = 60.0
# It is the script's fault, and trying is dear.
_LASTING = (errno.ENOEXEC, errno.ENOTSUP)
# A template that lived this long did not die of how it was started.
_HEALTHY_S = 30.0
_TROUBLES = 64
_ASKED = 256


class _Pending:
    """A request that was sent to a template and not answered."""

    __slots__ = ("fds", "message", "sent_at")

    def __init__(self, message: dict[str, Any], fds: list[int], sent_at: float) -> None:
        self.message = message
        self.fds = fds
        self.sent_at = sent_at


class _Template:
    """A warm process, from its start to the end of file on its socket."""

    def __init__(self, key: Any, now: float) -> None:
        argv, program, environ, _ = key
        self.key = key
        self.is_ready = False
        self.is_retired = False
        self.started_at = self.used_at = now
        self.sent = 0
        self.failure: tuple[int, int] | None = None
        self.text = b""
        self.successor: _Template | None = None
        self.pending: dict[bytes, _Pending] = {}
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                self.pid = os.posix_spawn(
                    program,
                    argv,
                    {**dict(environ), FD_VARIABLE: b"%d" % _FD},
                    file_actions=[
                        (os.POSIX_SPAWN_DUP2, theirs.fileno(), _FD),
                        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                        (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                        (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
                    ],
                    setsid=True,
                    setsigmask=(),
                    setsigdef=(signal.SIGPIPE, signal.SIGXFSZ, signal.SIGXCPU),
                )
            except BaseException:
                self.socket.close()
                raise
        self.socket.setblocking(False)


class _Trouble:
    """What went wrong with a key, and when it is tried again."""

    __slots__ = ("backoff_s", "is_told", "reason", "retry_at", "text", "value")

    def __init__(self) -> None:
        self.backoff_s = 0.0
        self.retry_at = 0.0
        self.reason = 0
        self.value = 0
        self.text = b""
        self.is_told = False


class Templates:
    """The templates of one helper.

    ``poll`` is the helper's. It gives requests (`take`), events (`on_readable`,
    `on_exit`) and time (`advance`), and is told of each template's start by
    ``on_template(pid)``, of each child by ``on_child(id, pid)``, which is false if
    there is no such child, of each request that is to be run plain after all by
    ``on_refusal(message, fds)``, and of trouble by ``on_trouble(id, reason, value,
    text)``. ``nofile`` is how many descriptors the helper may have.
    """

    def __init__(
        self,
        poll: Any,
        *,
        nofile: int,
        on_template: Callable[[int], None],
        on_child: Callable[[int, int], bool],
        on_refusal: Callable[[dict[str, Any], list[int]], None],
        on_trouble: Callable[[int, int, int, bytes], None],
    ) -> None:
        self._poll = poll
        self._on_template = on_template
        self._on_child = on_child
        self._on_refusal = on_refusal
        self._on_trouble = on_trouble
        spare = nofile - _OWN_FDS
        self._most = max(1, min(_TEMPLATES, spare // 4))
        self._most_pending = max(1, min(_PENDING, (spare - self._most) // 3))
        #: Which are asked, by key.
        self._current: dict[Any, _Template] = {}
        self._by_fd: dict[int, _Template] = {}
        self._by_pid: dict[int, _Template] = {}
        self._troubles: dict[Any, _Trouble] = {}
        # When there was last no room for a key.
        self._asked: dict[Any, float] = {}
        #: How many requests have not been answered.
        self.pending = 0
        #: When `advance` is to be called.
        self.due_at = math.inf

    # Requests

    @property
    def is_full(self) -> bool:
        """Whether no more requests can be taken for now."""
        return self.pending >= self._most_pending

    def take(self, message: dict[str, Any], fds: list[int]) -> bool:
        """Forward a request; false if it is to be run plain.

        What is forwarded keeps the descriptors until the answer.
        """
        key = message["template"]
        now = time.monotonic()
        template = self._current.get(key)
        if template is None:
            self._start(key, now, message["id"])
            return False
        if not template.is_ready:
            return False
        if template.sent >= _REQUESTS and template.successor is None:
            template.successor = self._launch(key, now)
        packet = _packet(message)
        if len(packet) > _PACKET_BYTES:
            return False
        try:
            socket.send_fds(template.socket, [packet], fds)
        except OSError:
            # Busy; or dead, as its end of file will tell.
            return False
        template.used_at = now
        template.sent += 1
        self.due_at = min(self.due_at, now + _LOOK_S)
        template.pending[packet[4:12]] = _Pending(message, fds, now)
        self.pending += 1
        return True

    def _start(self, key: Any, now: float, id: int) -> None:
        trouble = self._troubles.get(key)
        if trouble is not None and now < trouble.retry_at:
            self._tell(id, trouble)
            return
        if len(self._current) >= self._most:
            # Where more are asked for than there can be, they do not take turns: one has
            # to be asked for twice while another is not asked for once.
            asked_at = self._asked.pop(key, -math.inf)
            if len(self._asked) >= _ASKED:
                del self._asked[next(iter(self._asked))]
            self._asked[key] = now
            idle = [
                template
                for template in self._current.values()
                if not template.pending
                and now - template.used_at >= _KEPT_S
                and template.used_at < asked_at
            ]
            if not idle:
                return
            self._retire(min(idle, key=lambda template: template.used_at))
        template = self._launch(key, now)
        if template is not None:
            self._current[key] = template
        else:
            self._start(key, now, id)

    def _launch(self, key: Any, now: float) -> _Template | None:
        try:
            template = _Template(key, now)
        except OSError as error:
            self._note_trouble(key, NOT_READY, error.errno or errno.EIO)
            return None
        self._on_template(template.pid)
        self._by_fd[template.socket.fileno()] = template
        self._by_pid[template.pid] = template
        self._poll.register(template.socket, select.POLLIN)
        self.due_at = min(self.due_at, now + _LOOK_S)
        return template

    # Events

    def has(self, id: int) -> bool:
        """Tell whether a request has not been answered."""
        word = id.to_bytes(8, "big")
        return any(word in template.pending for template in self._by_fd.values())

    def is_template(self, pid: int) -> bool:
        """Tell whether a process is a template, not yet reaped."""
        return pid in self._by_pid

    def read_all(self) -> None:
        """Take every answer that is there."""
        if self.pending:
            for fd in tuple(self._by_fd):
                self.on_readable(fd)

    def on_readable(self, fd: int) -> None:
        """Take answers from a template, or its end; nothing, if it is no template's any more."""
        template = self._by_fd.get(fd)
        while template is not None:
            try:
                data = template.socket.recv(_ANSWER.size + _TEXT_BYTES)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if len(data) < _ANSWER.size:
                self._bury(template)
                return
            id, value = _ANSWER.unpack_from(data)
            text = data[_ANSWER.size :]
            if id == _NOBODY:
                template.text = text
                self._on_word(template, value)
            else:
                self._on_answer(template, id, value, text)

    def _on_word(self, template: _Template, value: int) -> None:
        if value > 0:
            template.is_ready = True
            current = self._current.get(template.key)
            if current is not None and current.successor is template:
                self._current[template.key] = template
                self._retire(current)
        else:
            template.failure = (NOT_READY, -value)

    def _on_answer(self, template: _Template, id: bytes, value: int, text: bytes) -> None:
        pending = template.pending.pop(id, None)
        if pending is None:
            return
        self.pending -= 1
        number = pending.message["id"]
        if value > 0 and self._on_child(number, value):
            for fd in pending.fds:
                os.close(fd)
        else:
            if value > 0:
                self._on_trouble(number, FALSE, 0, b"")
                self._give_up(template, FALSE)
            elif value == -errno.ESTALE:
                self._replace(template)
            elif -value not in _UNTOLD:
                self._on_trouble(number, REFUSED, -value, text)
            self._run_plain(pending)
        if template.is_retired and not template.pending:
            self._retire(template)

    def on_exit(self, pid: int, code: int) -> None:
        """Take note that a template was reaped, with its exit code or minus the signal."""
        template = self._by_pid.pop(pid)
        if template.failure is None:
            template.failure = (DIED, code)
        # What its children have said is still in its socket, if it has not been read.
        if template.socket.fileno() >= 0:
            self.on_readable(template.socket.fileno())

    def advance(self, now: float) -> None:
        """End what is idle, and what does not answer."""
        for template in tuple(self._by_fd.values()):
            if not template.is_ready:
                if now - template.started_at > _READY_S:
                    self._give_up(template, NOT_READY, errno.ETIMEDOUT)
            elif template.pending:
                if now - next(iter(template.pending.values())).sent_at > _ANSWER_S:
                    self._give_up(template, SILENT)
            elif now - template.used_at > _IDLE_S:
                self._retire(template)
        is_waiting = any(it.pending or not it.is_ready for it in self._by_fd.values())
        self.due_at = now + (_LOOK_S if is_waiting else _IDLE_LOOK_S) if self._by_fd else math.inf

    # Ends

    def _give_up(self, template: _Template, reason: int, value: int = 0) -> None:
        """Kill it, and have none of its children begin that has not answered yet.

        One that cannot answer, or whoever else holds the other end, would put off
        the end of file for as long as it likes.
        """
        template.failure = (reason, value)
        self._kill(template)
        template.socket.shutdown(socket.SHUT_RD)

    def _replace(self, template: _Template) -> None:
        """Ask it nothing more, and start another in its place."""
        if self._current.get(template.key) is template:
            del self._current[template.key]
            if template.successor is not None:
                self._retire(template.successor)
            now = time.monotonic()
            if now - template.started_at < _LIFE_S:
                # Something changes all the time: no need to keep up with it.
                trouble = self._troubles.setdefault(template.key, _Trouble())
                trouble.is_told = True
                trouble.retry_at = template.started_at + _LIFE_S
            self._start(template.key, now, 0)
        template.is_retired = True

    def _retire(self, template: _Template) -> None:
        """End it once it has answered what it was asked."""
        template.is_retired = True
        if self._current.get(template.key) is template:
            del self._current[template.key]
        if not template.pending:
            self._kill(template)
            self._close(template)

    def _kill(self, template: _Template) -> None:
        if template.pid in self._by_pid:
            try:
                os.kill(template.pid, signal.SIGKILL)
            except OSError:
                pass

    def _close(self, template: _Template) -> None:
        fd = template.socket.fileno()
        if fd >= 0:
            self._poll.unregister(fd)
            del self._by_fd[fd]
            template.socket.close()

    def _bury(self, template: _Template) -> None:
        """Nobody answers any more: all that was not answered is run plain."""
        self._close(template)
        if template.pid in self._by_pid:
            pid, status = os.waitpid(template.pid, os.WNOHANG)
            if pid:
                self.on_exit(pid, os.waitstatus_to_exitcode(status))
            else:
                self._kill(template)
        if not template.is_retired:
            self._note_trouble(template.key, *(template.failure or (DIED, 0)), template)
        current = self._current.get(template.key)
        if current is template:
            del self._current[template.key]
        elif current is not None and current.successor is template:
            current.successor = None
            current.sent = 0
        pendings = list(template.pending.values())
        template.pending.clear()
        self.pending -= len(pendings)
        for pending in pendings:
            self._run_plain(pending)

    def _note_trouble(
        self, key: Any, reason: int, value: int, template: _Template | None = None
    ) -> None:
        now = time.monotonic()
        trouble = self._troubles.pop(key, None)
        if trouble is None or (
            template is not None and template.is_ready and now - template.started_at > _HEALTHY_S
        ):
            trouble = _Trouble()
        if trouble.reason != reason:
            trouble.is_told = False
        trouble.reason, trouble.value = reason, value
        trouble.text = template.text if template is not None else b""
        trouble.backoff_s = min(max(_BACKOFF_FIRST_S, 2 * trouble.backoff_s), _BACKOFF_MOST_S)
        if reason == NOT_READY and value in _LASTING:
            trouble.backoff_s = _BACKOFF_MOST_S
        trouble.retry_at = now + trouble.backoff_s
        if len(self._troubles) >= _TROUBLES:
            del self._troubles[next(iter(self._troubles))]
        self._troubles[key] = trouble
        if template is not None and template.pending:
            self._tell(next(iter(template.pending.values())).message["id"], trouble)

    def _tell(self, id: int, trouble: _Trouble) -> None:
        if not trouble.is_told:
            trouble.is_told = True
            self._on_trouble(id, trouble.reason, trouble.value, trouble.text)

    def _run_plain(self, pending: _Pending) -> None:
        try:
            self._on_refusal(pending.message, pending.fds)
        finally:
            for fd in pending.fds:
                os.close(fd)


def _packet(message: dict[str, Any]) -> bytes:
    script, *arguments = message["argv"][message["script_at"] :]
    fields = [
        message["id"].to_bytes(8, "big"),
        script,
        message["cwd"],
        b"%d" % len(arguments),
        *arguments,
    ]
    for pair in message["environ"].items():
        fields += pair
    pack = _LENGTH.pack
    return b"".join([part for field in fields for part in (pack(len(field)), field)])

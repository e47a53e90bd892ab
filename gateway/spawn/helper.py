"""The spawn helper: a small interpreter that starts, watches and ends children.

Run as ``python -I -S helper.py FD PID``: ``FD`` is its end of an ``AF_UNIX``
``SOCK_SEQPACKET`` pair, ``PID`` the worker at the other end. One thread, the
standard library only. It imports nothing of the gateway; the client imports the
message format from here.

**The process is what its children inherit.** Resource limits, umask, user and
groups are set once, on the helper itself (``confine``), so nothing has to run
between fork and exec, and children are made by `os.posix_spawn`: a vfork, that
takes half the processor time of a fork, with exact errors of exec. A worker has
a helper for each confinement that its backends ask for; mostly that is one.

**Messages to the helper** are marshalled dictionaries with the key ``op``:

- ``confine``: ``rlimits`` (name → value), ``umask``, and with ``uid`` also
  ``gid`` and ``groups``. The first message, answered by `READY` or `FAILED`.
- ``spawn``: ``id``, ``argv``, ``environ``, ``cwd``, all of bytes; the three fds
  for the child's standard streams travel with it. Answered by `STARTED` or
  `FAILED`, and after `STARTED` once by `EXITED`.
- ``warm``: as ``spawn``, but to be made by a warm process if one is ready (see
  `templates`): also ``template``, what that is, and ``script_at``, where in ``argv``
  the script stands. Otherwise it is started as by ``spawn``, perhaps after `TROUBLE`.
- ``end``: ``id``, ``after_s``, ``kill_after_s``: end what is left of the child
  and its descendants, by TERM, then by KILL. Not answered.

A message that is too large for the socket comes as the content of a file: the
text is then `STORED`, and the file is the first fd. **Replies** are fixed
records (`REPLY`): the helper may run as another user, whom the client need not
trust to marshal. A packet has as many of them as there were to be given at once.

**Trees.** A child leads a session and process group of its own. The helper is a
subreaper: a descendant whose parent has gone becomes its child, an *orphan*, and
cannot escape by a double fork. The orphan belongs to the child whose session it
is in; one that left for its own session may be any current child's. It is
killed when every child that it may belong to has been ended. A pid is signalled
only while its process is unreaped, so that no number is hit after its reuse.
When the worker goes (end of file, or its pidfd), all children are killed.
"""

from __future__ import annotations

import array
import errno
import marshal
import math
import os
import resource
import select
import signal
import socket
import struct
import sys
import time

TYPE_CHECKING = False  # `typing` would be a fifth of the start
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .templates import Templates

#: op, id, value, place, user seconds, system seconds, largest resident set in KiB.
REPLY = struct.Struct("=BQiBddQ")
#: The helper is confined and takes ``spawn`` messages; value: its pid.
READY = 1
#: The child runs its program; value: its pid, place: 1 if a warm process made it.
STARTED = 2
#: Nothing was started; value: the errno, place: what failed.
FAILED = 3
#: The child was reaped; value: exit code, or minus the signal; place: 1 if descendants remain.
EXITED = 4
#: A warm process did not do; place: what is the matter, value: how (see `templates`).
#: It has a packet of its own, the rest of which is what the process says itself.
TROUBLE = 5

PLACE_EXEC = 0
PLACE_CWD = 1
PLACE_LIMITS = 2
PLACE_USER = 3

STORED = b"@"
#: The largest message sent as one packet; the kernel's default buffer holds thrice that.
PACKET_BYTES = 64 * 1024
#: So many replies are in a packet at the most.
REPLIES = 64

_ANCILLARY_BYTES = socket.CMSG_SPACE(4 * 4)
_CHILDREN_BYTES = 4096
_PR_SET_CHILD_SUBREAPER = 36
_LAST_KILL_S = 5.0
_RLIMITS = {
    "as": resource.RLIMIT_AS,
    "nofile": resource.RLIMIT_NOFILE,
    "nproc": resource.RLIMIT_NPROC,
    "fsize": resource.RLIMIT_FSIZE,
    "core": resource.RLIMIT_CORE,
}
# What Python ignores or the helper must outlive; a child has them all as default.
_IGNORED = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGXCPU)


class _Tree:
    """A child and, while any are left, its descendants."""

    __slots__ = ("id", "is_condemned", "is_running", "kill_after_s", "pid")

    def __init__(self, id: int, pid: int) -> None:
        self.id = id
        self.pid = pid
        self.is_running = True
        self.is_condemned = False
        self.kill_after_s = 0.0


class Helper:
    """All that the process knows; `run` returns when the worker has gone."""

    def __init__(self, worker: socket.socket, worker_pid: int) -> None:
        self._worker = worker
        self._worker_fd = worker.fileno()
        self._trees: dict[int, _Tree] = {}
        self._running: dict[int, _Tree] = {}
        # Orphan → the children it may belong to.
        self._orphans: dict[int, set[_Tree]] = {}
        self._due: dict[int, float] = {}
        self._templates: Templates | None = None
        # Those whose child is not known yet, and what is to end them.
        self._early_ends: dict[int, dict[str, Any]] = {}
        self._is_adoption_open = False
        self._just_reaped = 0
        self._takes = True
        self._cpu_s: int | None = None
        self._replies: list[bytes] = []
        self._packet = memoryview(bytearray(PACKET_BYTES))

        self._poll = select.poll()
        self._poll.register(worker, select.POLLIN)
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_DFL)
        for number in _IGNORED:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        self._wake = _ends_of_children()
        self._poll.register(self._wake, select.POLLIN)

        self._worker_pidfd = -1
        try:
            # End of file may not come: a child that the worker forked for an
            # application keeps its end of the socket open.
            self._worker_pidfd = os.pidfd_open(worker_pid)
            self._poll.register(self._worker_pidfd, select.POLLIN)
        except (AttributeError, OSError):
            pass
        self._children_file = -1
        try:
            self._children_file = os.open(f"/proc/self/task/{os.getpid()}/children", os.O_RDONLY)
        except OSError:
            pass
        self._adopts = self._children_file >= 0 and _become_subreaper()

    def run(self) -> None:
        """Serve until the worker has gone, then kill every child."""
        try:
            while self._serve():
                pass
        except ConnectionError:
            pass  # it has hung up while a reply was on its way
        finally:
            self._kill_all()

    def _serve(self) -> bool:
        timeout = None
        templates = self._templates
        due_at = min(self._due.values(), default=math.inf)
        if templates is not None:
            due_at = min(due_at, templates.due_at)
            if self._takes == templates.is_full:
                # What it is asked meanwhile waits in the socket.
                self._takes = not self._takes
                self._poll.modify(self._worker, select.POLLIN if self._takes else 0)
        if due_at != math.inf:
            timeout = max(0.0, due_at - time.monotonic()) * 1000 + 1
        for fd, _ in self._poll.poll(timeout):
            if fd == self._wake:
                os.read(self._wake, 4096)
                self._reap()
            elif fd == self._worker_fd:
                if not self._receive():
                    return False
            elif fd == self._worker_pidfd:
                return False
            elif templates is not None:
                templates.on_readable(fd)
        now = time.monotonic()
        for id in [id for id, when in self._due.items() if when <= now]:
            if self._due.pop(id, None) is not None:
                self._advance(self._trees[id])
        if templates is not None:
            if templates.due_at <= now:
                templates.advance(now)
            if self._is_adoption_open:
                self._adopt()
        if self._replies:
            self._send_replies()
        return True

    # Messages

    def _receive(self) -> bool:
        size, ancillary, _, _ = self._worker.recvmsg_into(
            (self._packet,), _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC
        )
        if not size:
            return False
        data: bytes | memoryview = self._packet[:size]
        fds = array.array("i")
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
        kept: list[int] = []
        try:
            streams = list(fds)
            if data == STORED:
                if not streams:
                    return True  # lost for want of descriptors, with whom it was about
                with open(streams.pop(0), "rb", closefd=False) as file:
                    data = file.read()
            # The worker made it, and is who started us.
            message: dict[str, Any] = marshal.loads(data)  # noqa: S302
            op = message["op"]
            if op == "spawn":
                self._spawn(message, streams)
            elif op == "warm":
                if self._forward(message, streams):
                    kept = streams
                else:
                    self._spawn(message, streams)
            elif op == "end":
                self._end(message)
            elif op == "confine":
                self._confine(message)
        finally:
            for fd in fds:
                if fd not in kept:
                    os.close(fd)
        return True

    def _reply(
        self, op: int, id: int, value: int, place: int = 0, usage: Any = (0.0, 0.0, 0)
    ) -> None:
        self._replies.append(REPLY.pack(op, id, value, place, usage[0], usage[1], usage[2]))

    def _send_replies(self) -> None:
        # Waits while the worker is busy; it never waits for us.
        for start in range(0, len(self._replies), REPLIES):
            self._worker.send(b"".join(self._replies[start : start + REPLIES]))
        self._replies.clear()

    def _confine(self, message: dict[str, Any]) -> None:
        place = PLACE_LIMITS
        try:
            if message["umask"] is not None:
                os.umask(message["umask"])
            for name, value in message["rlimits"].items():
                self._limit(name, value)
            uid = message.get("uid")
            if uid is not None:
                place = PLACE_USER
                os.setgroups(message["groups"])
                os.setresgid(message["gid"], message["gid"], message["gid"])
                os.setresuid(uid, uid, uid)
                if uid != 0:
                    try:
                        os.setresuid(0, 0, 0)
                    except PermissionError:
                        pass
                    else:
                        raise PermissionError(errno.EPERM, "root could be regained")
        except (OSError, ValueError, OverflowError) as error:
            self._reply(FAILED, 0, getattr(error, "errno", None) or errno.EINVAL, place)
        else:
            self._reply(READY, 0, os.getpid())

    def _limit(self, name: str, value: int) -> None:
        if name == "cpu":
            # The helper's own time counts towards its limit: it has a soft one
            # only, and ignores it; children get the hard one when they start.
            _, hard = resource.getrlimit(resource.RLIMIT_CPU)
            self._cpu_s = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(resource.RLIMIT_CPU, (self._cpu_s, hard))
            return
        number = _RLIMITS[name]
        _, hard = resource.getrlimit(number)
        if hard != resource.RLIM_INFINITY:
            value = min(value, hard)
        resource.setrlimit(number, (value, value))

    def _spawn(self, message: dict[str, Any], fds: list[int]) -> None:
        id = message["id"]
        argv = message["argv"]
        place = PLACE_EXEC
        try:
            if len(fds) != 3:
                raise OSError(errno.EMFILE, "descriptors were lost on the way")
            place = PLACE_CWD
            os.chdir(message["cwd"])
            place = PLACE_EXEC
            pid = os.posix_spawn(
                argv[0],
                argv,
                message["environ"],
                file_actions=[(os.POSIX_SPAWN_DUP2, fd, to) for to, fd in enumerate(fds)],
                setsid=True,
                setsigmask=(),
                setsigdef=_IGNORED,
            )
        except (OSError, ValueError) as error:
            self._reply(FAILED, id, getattr(error, "errno", None) or errno.EINVAL, place)
            # Before the ends of its pipes are closed: who sees these knows why.
            self._send_replies()
            return
        finally:
            os.chdir("/")
        self._watch(id, pid)

    def _watch(self, id: int, pid: int, *, is_warm: bool = False) -> None:
        """Take a child into care."""
        self._trees[id] = self._running[pid] = _Tree(id, pid)
        if self._cpu_s is not None:
            try:
                resource.prlimit(pid, resource.RLIMIT_CPU, (self._cpu_s, self._cpu_s + 1))
            except OSError:
                pass  # it has ended already, or belongs to another user by set-uid
        self._reply(STARTED, id, pid, is_warm)

    # Warm processes

    def _forward(self, message: dict[str, Any], fds: list[int]) -> bool:
        """Have a warm process make the child; false if none does."""
        if self._templates is None:
            self._templates = self._load_templates()
        if len(fds) != 3 or not self._adopts:
            return False
        return self._templates.take(message, fds)

    def _load_templates(self) -> Templates:
        sys.path.append(os.path.dirname(os.path.abspath(__file__)))
        # Run as a program, this file is in no package.
        room: Any = __import__("templates")
        sys.path.pop()
        templates: Templates = room.Templates(
            self._poll,
            nofile=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
            on_template=self._on_template,
            on_child=self._on_warm_child,
            on_refusal=self._on_refusal,
            on_trouble=self._on_trouble,
        )
        return templates

    def _on_template(self, pid: int) -> None:
        if self._cpu_s is not None:
            # It serves many; the limit is for each of its children.
            _, hard = resource.getrlimit(resource.RLIMIT_CPU)
            resource.prlimit(pid, resource.RLIMIT_CPU, (hard, hard))

    def _on_warm_child(self, id: int, pid: int) -> bool:
        """Take a child into care of which a template tells; false if it is not ours.

        Scripts run as the same user and might answer for a template, and the worker, which
        kills what it is told of when we die, might be root.
        """
        if pid != self._just_reaped and not self._is_new(pid):
            return False
        self._orphans.pop(pid, None)
        self._watch(id, pid, is_warm=True)
        self._end_early(id)
        return True

    def _is_new(self, pid: int) -> bool:
        """Tell whether this is a child of ours that leads a session and nobody answers for."""
        templates = self._templates
        if pid in self._running or (templates is not None and templates.is_template(pid)):
            return False
        try:
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            return os.getsid(pid) == pid
        except OSError:
            return False

    def _on_refusal(self, message: dict[str, Any], fds: list[int]) -> None:
        self._spawn(message, fds)
        self._end_early(message["id"])

    def _on_trouble(self, id: int, reason: int, value: int, text: bytes) -> None:
        self._send_replies()
        self._worker.send(REPLY.pack(TROUBLE, id, value, reason, 0.0, 0.0, 0) + text)

    def _end_early(self, id: int) -> None:
        end = self._early_ends.pop(id, None)
        if end is not None:
            self._end(end)

    # Ends

    def _end(self, message: dict[str, Any]) -> None:
        tree = self._trees.get(message["id"])
        if tree is None and self._templates is not None and self._templates.has(message["id"]):
            self._early_ends[message["id"]] = message
        if tree is not None and not tree.is_condemned:
            tree.kill_after_s = message["kill_after_s"]
            self._due[tree.id] = time.monotonic() + message["after_s"]

    def _advance(self, tree: _Tree) -> None:
        """Send TERM; the next time, KILL."""
        if tree.kill_after_s >= 0:
            self._signal(tree, signal.SIGTERM)
            self._due[tree.id] = time.monotonic() + tree.kill_after_s
            tree.kill_after_s = -1.0
            return
        tree.is_condemned = True
        self._signal(tree, signal.SIGKILL)
        # Orphans that might have been this child's are now others', or nobody's.
        for pid, owners in self._orphans.items():
            if tree in owners and len(owners) > 1:
                owners.discard(tree)
                if all(owner.is_condemned for owner in owners):
                    _kill(os.kill, pid, signal.SIGKILL)
        self._forget_if_gone(tree)

    def _signal(self, tree: _Tree, number: int) -> None:
        own = [pid for pid, owners in self._orphans.items() if owners == {tree}]
        # The number of the group is not reused while an unreaped child of ours is in it.
        if tree.is_running or any(os.getpgid(pid) == tree.pid for pid in own):
            _kill(os.killpg, tree.pid, number)
        for pid in own:
            _kill(os.kill, pid, number)

    def _reap(self) -> None:
        reaped = []
        templates = self._templates
        try:
            while True:
                if not self._adopts:
                    # Nobody could find its group later: it ends with its leader.
                    found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                    if found is not None and found.si_pid in self._running:
                        _kill(os.killpg, found.si_pid, signal.SIGKILL)
                pid, status, usage = os.wait4(-1, os.WNOHANG)
                if not pid:
                    break
                if templates is not None and pid not in self._running:
                    if templates.is_template(pid):
                        templates.on_exit(pid, os.waitstatus_to_exitcode(status))
                        continue
                    # A child has told of itself before it ended.
                    self._just_reaped = pid
                    templates.read_all()
                    self._just_reaped = 0
                tree = self._running.pop(pid, None)
                reaped.append((tree, self._orphans.pop(pid, ()), status, usage))
        except ChildProcessError:
            pass
        if self._adopts:
            self._adopt()
        for tree, owners, status, usage in reaped:
            if tree is not None:
                tree.is_running = False
                self._forget_if_gone(tree)
                self._reply(
                    EXITED,
                    tree.id,
                    os.waitstatus_to_exitcode(status),
                    tree.id in self._trees,
                    (usage.ru_utime, usage.ru_stime, usage.ru_maxrss),
                )
            for owner in owners:
                self._forget_if_gone(owner)

    def _forget_if_gone(self, tree: _Tree) -> None:
        if not tree.is_running and not any(tree in owners for owners in self._orphans.values()):
            self._trees.pop(tree.id, None)
            self._due.pop(tree.id, None)

    def _adopt(self) -> None:
        pids = self._children()
        templates = self._templates
        if templates is not None:
            templates.read_all()
        self._is_adoption_open = False
        for pid in pids:
            if pid in self._running or pid in self._orphans:
                continue
            try:
                session = os.getsid(pid)
            except ProcessLookupError:
                continue  # a warm process that was just reaped
            if templates is not None and (
                templates.is_template(pid)
                or (templates.pending and (session == pid or templates.is_template(session)))
            ):
                # One that has just been forked will tell of itself.
                self._is_adoption_open = bool(templates.pending)
                continue
            owners = {tree for tree in self._trees.values() if tree.pid == session}
            if not owners:
                owners = {tree for tree in self._trees.values() if not tree.is_condemned}
            self._orphans[pid] = owners
            if all(tree.is_condemned for tree in owners):
                _kill(os.kill, pid, signal.SIGKILL)

    def _children(self) -> list[int]:
        data = b""
        while chunk := os.pread(self._children_file, _CHILDREN_BYTES, len(data)):
            data += chunk
            # A chunk has whole numbers only, so that one that is not full may not be the last.
            if len(chunk) < _CHILDREN_BYTES // 2:
                break
        return [int(pid) for pid in data.split()]

    def _kill_all(self) -> None:
        """Kill every process below, as often as the dying leave new orphans."""
        give_up_at = time.monotonic() + _LAST_KILL_S
        while time.monotonic() < give_up_at:
            try:
                while (found := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG)) is not None:
                    self._running.pop(found.si_pid, None)
            except ChildProcessError:
                return
            for pid in self._running:
                _kill(os.killpg, pid, signal.SIGKILL)
            if self._adopts:
                for pid in self._children():
                    _kill(os.kill, pid, signal.SIGKILL)
            select.select([self._wake], [], [], 0.02)
            try:
                os.read(self._wake, 4096)
            except BlockingIOError:
                pass


def _kill(kill: Callable[[int, int], None], pid: int, number: int) -> None:
    try:
        kill(pid, number)
    except OSError:
        pass  # a set-uid program is not ours to signal


def _ends_of_children() -> int:
    """Return a descriptor that can be read when a child has ended.

    On Linux the signal itself (signalfd(2)), which children do not inherit blocked;
    elsewhere a pipe that its handler writes to, for two system calls more each time.
    """
    try:
        import ctypes

        chosen = (ctypes.c_uint64 * 16)(1 << (signal.SIGCHLD - 1))
        fd = int(ctypes.CDLL(None).signalfd(-1, chosen, os.O_NONBLOCK | os.O_CLOEXEC))
        if fd >= 0:
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
            return fd
    except (ImportError, AttributeError, OSError):
        pass
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    return reader


def _become_subreaper() -> bool:
    """Have orphaned descendants made children of this process (Linux 3.4)."""
    try:
        import ctypes

        return bool(ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0)
    except (ImportError, AttributeError, OSError):
        return False


def main() -> None:
    """Serve the worker that is named on the command line."""
    fd, worker_pid = int(sys.argv[1]), int(sys.argv[2])
    os.set_inheritable(fd, False)
    Helper(socket.socket(fileno=fd), worker_pid).run()


if __name__ == "__main__":
    main()

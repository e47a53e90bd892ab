"""Servers of a benchmark: started, waited for, their time on processors read, ended.

Every command leads a session of its own, and is ended by that session's pids. What
a group of commands has used of processors is read from a control group, where we may
make one (root): /proc knows nothing of children that nobody waited for, and CGI has
such.

Nothing runs as root: where we are root, everything runs as nobody.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

START_S = 20.0
STOP_S = 10.0
USER = "nobody"
# Only Linux tells, and only there anything is measured.
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


class DoesNotStart(Exception):
    """A server does not come up; the message has the last line of what it said."""


def unprivileged() -> list[str]:
    """Return the command that has to stand before others, for them not to run as root."""
    if os.geteuid() != 0:
        return []
    nobody = pwd.getpwnam(USER)
    command = ["setpriv", f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups"]
    probe = [*command, "sh", "-c", '"$0" -c ""', sys.executable]
    if subprocess.run(probe, capture_output=True, timeout=20, check=False).returncode:
        # An interpreter below a folder that only root may enter: that alone they all may, too.
        reading = "+dac_read_search"
        command += [f"--inh-caps={reading}", f"--ambient-caps={reading}"]
    return command


def hand_over(folder: Path) -> None:
    """Make ``folder`` the property of whom servers and scripts run as."""
    if os.geteuid() == 0:
        nobody = pwd.getpwnam(USER)
        for path in (folder, *folder.rglob("*")):
            os.chown(path, nobody.pw_uid, nobody.pw_gid, follow_symlinks=False)


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


class Group:
    """Commands that are started, measured and ended together; ``with`` ends them.

    ``cores`` are those they may run on; None: all.
    """

    def __init__(self, name: str, folder: Path, cores: Sequence[int] | None = None) -> None:
        self.name = name
        self._log = folder / "output.log"
        self._cores = cores
        self._processes: list[subprocess.Popen[bytes]] = []
        self._accounts = _Accounts.make()

    def __enter__(self) -> Group:
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self._processes):
            _end(process)
        if self._accounts is not None:
            self._accounts.remove()

    def start(
        self, command: Sequence[str], *, address: int | Path, env: Mapping[str, str] | None = None
    ) -> None:
        """Start a command and wait until somebody listens at a port or a unix socket.

        Raises `DoesNotStart`.
        """
        joined = self._accounts.joined() if self._accounts is not None else contextlib.nullcontext()
        with self._log.open("ab") as log, joined, _running_on(self._cores):
            process = subprocess.Popen(
                [*unprivileged(), *command],
                cwd=self._log.parent,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={
                    "PATH": "/usr/local/bin:/usr/bin:/bin",
                    "LANG": "C.UTF-8",
                    "HOME": str(self._log.parent),
                    **(env or {}),
                },
            )
        self._processes.append(process)
        deadline = time.monotonic() + START_S
        while not _is_listening(address):
            if process.poll() is not None or time.monotonic() > deadline:
                said = self._log.read_text(errors="replace").strip().splitlines() or ["nothing"]
                raise DoesNotStart(f"{self.name} does not start: {said[-1]:.200}")
            time.sleep(0.02)

    def cpu_s(self) -> float | None:
        """Return the time on processors of all processes there were until now, in seconds.

        None where there may be no control group.
        """
        return self._accounts.cpu_s() if self._accounts is not None else None


def _is_listening(address: int | Path) -> bool:
    if isinstance(address, Path):
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(address)) == 0
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", address)) == 0


@contextlib.contextmanager
def _running_on(cores: Sequence[int] | None) -> Iterator[None]:
    """Have what is started within run on ``cores``: children inherit them."""
    before = os.sched_getaffinity(0)
    if cores is not None:
        os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a command and its session: TERM, then KILL."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
    for pid in _session(process):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait(STOP_S)


def _session(process: subprocess.Popen[bytes]) -> list[int]:
    """Return the pids of a command's session."""
    pids = []
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError, ValueError):
            if os.getsid(int(name)) == process.pid:
                pids.append(int(name))
    return pids


class _Accounts:
    """A control group (cgroups(7), version 2), for its cpu.stat alone."""

    _made = 0

    def __init__(self, folder: Path, home: Path) -> None:
        self._folder = folder
        self._home = home

    @classmethod
    def make(cls) -> _Accounts | None:
        """Return a new one, or None where we may not."""
        try:
            mount = next(
                Path(fields[4])
                for line in Path("/proc/self/mountinfo").read_text().splitlines()
                if (fields := line.split(" ")) and " - cgroup2 " in line
            )
            lines = Path("/proc/self/cgroup").read_text().splitlines()
            home = mount / next(line[4:] for line in lines if line.startswith("0::/"))
            cls._made += 1
            accounts = cls(home / f"tetrapylon-bench-{os.getpid()}-{cls._made}", home)
            accounts._folder.mkdir()
        except (OSError, StopIteration):
            return None
        try:
            with accounts.joined():
                accounts.cpu_s()
        except OSError:
            accounts.remove()
            return None
        return accounts

    @contextlib.contextmanager
    def joined(self) -> Iterator[None]:
        """Be a member, so that what is started within is one from its beginning."""
        (self._folder / "cgroup.procs").write_text(str(os.getpid()))
        try:
            yield
        finally:
            (self._home / "cgroup.procs").write_text(str(os.getpid()))

    def cpu_s(self) -> float:
        words = (self._folder / "cpu.stat").read_text().split()
        return int(words[words.index("usage_usec") + 1]) / 1e6

    def remove(self) -> None:
        """End whatever is left in it, and remove it."""
        deadline = time.monotonic() + STOP_S
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                for pid in (self._folder / "cgroup.procs").read_text().split():
                    os.kill(int(pid), signal.SIGKILL)
            try:
                self._folder.rmdir()
            except FileNotFoundError:
                return
            except OSError:
                time.sleep(0.05)
            else:
                return

"""The spawn helper, through its client: real children, and what becomes of them."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from tetrapylon.adapters.errors import Unavailable
from tetrapylon.adapters.exchange import SpooledBody
from tetrapylon.adapters.processes import ChildCommand, explain_failure
from tetrapylon.gateway.spawn import helper
from tetrapylon.gateway.spawn.child import SpawnedChild
from tetrapylon.gateway.spawn.client import Spawner
from tetrapylon.gateway.spawn.confinement import Confinement, User

pytestmark = pytest.mark.skipif(not Spawner.is_supported(), reason="Linux only")

DEADLINE_S = 20.0
PLAIN = Confinement()
IS_ROOT = os.geteuid() == 0
PATH = {b"PATH": b"/usr/bin:/bin"}


async def until(condition: Callable[[], object], what: str, within_s: float = DEADLINE_S) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
        await asyncio.sleep(0.005)


def is_dead(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state in "ZX"


def own_children() -> set[str]:
    """Return the children of every thread; of one that has ended, they are another's."""
    found: set[str] = set()
    for file in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found.update(file.read_text().split())
    return found


def processes_in(folder: Path) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.readlink(entry / "cwd") == str(folder):
                found.append(int(entry.name))
    return found


@pytest.fixture(autouse=True)
def nothing_is_left(first_loop: None, tmp_path: Path) -> Iterator[None]:
    """No helper, no child of it and no descriptor remains."""
    children = own_children()
    fds = len(os.listdir("/proc/self/fd"))
    yield
    deadline = time.monotonic() + DEADLINE_S
    while (
        found := [*processes_in(tmp_path), *(own_children() - children)]
    ) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not found
    assert len(os.listdir("/proc/self/fd")) <= fds


class Shop:
    """Asks for children in one folder."""

    def __init__(self, spawner: Spawner, folder: Path, confinement: Confinement) -> None:
        self.spawner = spawner
        self.folder = folder
        self.confinement = confinement

    @property
    def helper_pid(self) -> int:
        (pid,) = self.spawner.helper_pids()
        return pid

    def ask(
        self, *argv: str, environ: dict[bytes, bytes] | None = None, cwd: str | None = None
    ) -> SpawnedChild:
        command = ChildCommand(argv, environ or PATH, cwd or str(self.folder), SpooledBody())
        return self.spawner.spawn(command, self.confinement)

    async def start(self, *argv: str, **options: Any) -> SpawnedChild:
        return await self.ask(*argv, **options).started()

    async def sh(self, text: str) -> SpawnedChild:
        return await self.start("/bin/sh", "-c", text)

    async def output(self, *argv: str, **options: Any) -> tuple[int, str]:
        """Run to the end; return the exit code and what was written."""
        child = await self.start(*argv, **options)
        parts = await asyncio.gather(read_all(child.stdout), read_all(child.stderr))
        return await child.exited, b"".join(parts).decode()

    async def pids(self, count: int) -> list[int]:
        """Return the pids that children have written to the file of that name."""
        file = self.folder / "pids"
        await until(
            lambda: file.exists() and file.read_text().count("\n") >= count, "the pids are written"
        )
        return [int(pid) for pid in file.read_text().split()]


@contextlib.asynccontextmanager
async def shop(folder: Path, confinement: Confinement = PLAIN) -> AsyncIterator[Shop]:
    async with Spawner() as spawner:
        await spawner.prepare(confinement)
        yield Shop(spawner, folder, confinement)


async def read_all(fd: int) -> bytes:
    data = await asyncio.to_thread(_read_all, fd)
    os.close(fd)
    return data


def _read_all(fd: int) -> bytes:
    os.set_blocking(fd, True)
    with open(fd, "rb", closefd=False) as file:
        return file.read()


def close(*children: SpawnedChild) -> None:
    for child in children:
        os.close(child.stdout)
        os.close(child.stderr)


# What a child finds


def test_a_child(run: Any, tmp_path: Path) -> None:
    async def main() -> None:
        async with shop(tmp_path) as it:
            child = await it.sh("echo out; echo err >&2; exit 7")
            out, err = await asyncio.gather(read_all(child.stdout), read_all(child.stderr))
            assert (out, err) == (b"out\n", b"err\n")
            assert await child.exited == 7
            assert child.usage is not None
            assert 0 <= child.usage.user_s < 5
            assert child.usage.max_resident_kib > 100
            child.end(kill_after_s=0)

            child = await it.sh("kill -9 $$")
            assert await child.exited == -9
            close(child)

    run(main())


PROBE = """
import os, resource, sys
status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
for name in ("SigBlk", "SigIgn", "SigCgt"):
    # glibc's posix_spawn has its two internal ones ignored.
    print(name, hex(int(status[name], 16) & ~0x180000000))
print("umask", status["Umask"].strip())
print("fds", sorted(int(fd) for fd in os.listdir("/proc/self/fd")))
print("session", os.getsid(0) == os.getpid() == os.getpgid(0))
print("tty", os.path.exists("/dev/tty") and not os.system("exec 2>&-; : < /dev/tty"))
print("cwd", os.getcwd())
print("env", sorted(os.environ))
print("nice", os.nice(0))
print("ids", os.getresuid(), os.getresgid(), os.getgroups())
for name in ("CPU", "AS", "NOFILE", "FSIZE", "CORE", "NPROC"):
    print(name, *resource.getrlimit(getattr(resource, "RLIMIT_" + name)))
"""


def probe(it: Shop) -> Coroutine[Any, Any, tuple[int, str]]:
    # -E: nothing of the environment; no site, for it would read more.
    return it.output(sys.executable, "-ES", "-c", PROBE, environ={b"ONLY": b"this"})


def test_what_a_child_inherits(run: Any, tmp_path: Path) -> None:
    """C5"""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
    inheritable, other = os.pipe()
    os.set_inheritable(inheritable, True)
    try:

        async def main() -> None:
            async with shop(tmp_path) as it:
                code, text = await probe(it)
                assert code == 0, text
                lines = dict(line.split(" ", 1) for line in text.splitlines())
                assert lines["SigBlk"] == "0x0"
                # Python ignores SIGPIPE and SIGXFSZ for itself, and catches SIGINT.
                expected = (1 << signal.SIGPIPE - 1) | (1 << signal.SIGXFSZ - 1)
                assert lines["SigIgn"] == hex(expected)
                assert lines["SigCgt"] == hex(1 << signal.SIGINT - 1)
                # 3 is the listing's own.
                assert lines["fds"] == "[0, 1, 2, 3]"
                assert lines["session"] == "True"
                assert lines["tty"] == "False"
                assert lines["umask"] == "0077"
                assert lines["cwd"] == str(tmp_path)
                assert lines["env"] in ("['LC_CTYPE', 'ONLY']", "['ONLY']")
                assert lines["CPU"] == "30 31"
                assert lines["AS"] == f"{512 << 20} {512 << 20}"
                assert lines["NOFILE"] == "64 64"
                assert lines["FSIZE"] == f"{64 << 20} {64 << 20}"
                assert lines["CORE"] == "0 0"
                own = resource.getrlimit(resource.RLIMIT_NPROC)
                assert lines["NPROC"] == f"{own[0]} {own[1]}"

                code, text = await it.output(
                    "/bin/sh", "-c", "grep -E 'Sig(Ign|Cgt)' /proc/$$/status"
                )
                ignored, caught = (int(line.split()[1], 16) for line in text.splitlines())
                assert ignored & ~0x180000000 == 0  # SIGPIPE among them
                assert caught & ~(1 << signal.SIGCHLD - 1 | 1 << signal.SIGINT - 1) == 0

        run(main())
    finally:
        os.close(inheritable)
        os.close(other)
        signal.signal(signal.SIGHUP, before)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR2])


def test_other_limits(run: Any, tmp_path: Path) -> None:
    confinement = Confinement(
        rlimits=(("nofile", 33), ("as", 0), ("cpu", 5), ("core", 0)), umask=0o022
    )

    async def main() -> None:
        async with shop(tmp_path, confinement) as it:
            # Each confinement has a helper of its own.
            await it.spawner.prepare(PLAIN)
            await it.spawner.prepare(PLAIN)
            assert len(it.spawner.helper_pids()) == 2
            code, text = await probe(it)
            assert code == 0, text
            lines = dict(line.split(" ", 1) for line in text.splitlines())
            assert lines["NOFILE"] == "33 33"
            assert lines["CPU"] == "5 6"
            assert lines["umask"] == "0022"
            own = resource.getrlimit(resource.RLIMIT_AS)
            assert lines["AS"] == f"{own[0]} {own[1]}"

    run(main())


def test_limits_hold(run: Any, tmp_path: Path) -> None:
    """E10: an allocation of 1 GiB; more processor time, and a larger file, than allowed."""
    confinement = Confinement(rlimits=(("as", 256 << 20), ("cpu", 1), ("fsize", 4096)))

    async def main() -> None:
        async with shop(tmp_path, confinement) as it:
            python = (sys.executable, "-IS", "-c")
            code, text = await it.output(*python, "bytearray(1 << 30)")
            assert (code, "MemoryError" in text) == (1, True)
            assert (await it.output("/bin/sh", "-c", "exec head -c 9999 /dev/zero > f"))[0] in (
                -signal.SIGXFSZ,
                1,
            )
            assert (tmp_path / "f").stat().st_size == 4096
            assert (await it.output(*python, "while 1: pass"))[0] == -signal.SIGXCPU

    run(main())


@pytest.mark.skipif(not IS_ROOT, reason="only root can choose")
def test_another_user(run: Any, tmp_path: Path) -> None:
    # Nobody else's, whose processes would count.
    user = User.find("64321", "64321")
    confinement = Confinement(rlimits=(("nproc", 50),), user=user)
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.getuid() and str(folder).startswith("/tmp/"):
            folder.chmod(0o755)

    async def main() -> None:
        async with shop(tmp_path, confinement) as it:
            program = (
                "import os, resource\n"
                "print(os.getresuid(), os.getresgid(), os.getgroups())\n"
                "print(*resource.getrlimit(resource.RLIMIT_NPROC))\n"
                "try: os.setuid(0)\nexcept PermissionError: print('no way back')\n"
            )
            python = "/usr/bin/python3"
            if not os.path.exists(python):
                pytest.skip("no Python that others may run")
            _, text = await it.output(python, "-IS", "-c", program, cwd="/")
            ids = f"{(user.uid,) * 3} {(user.gid,) * 3} {sorted(user.groups)}"
            assert text.splitlines() == [ids, "50 50", "no way back"]
            # Its children are still ours to end.
            child = await it.start("/bin/sleep", "60", cwd="/")
            child.end(kill_after_s=1)
            assert await child.exited == -signal.SIGTERM
            close(child)

    run(main())


def test_confinements_that_cannot_be(run: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such limit: 'files'"):
        Confinement(rlimits=(("files", 1),))
    with pytest.raises(ValueError, match="less than"):
        Confinement(rlimits=(("nofile", 3),))
    with pytest.raises(LookupError, match="no such user"):
        User.find("no-such-user")
    with pytest.raises(LookupError, match="no such group"):
        User.find("root", "no-such-group")

    async def main() -> None:
        async with Spawner() as spawner:
            if not IS_ROOT:
                with pytest.raises(OSError, match="cannot set the user"):
                    await spawner.prepare(Confinement(user=User(0, 0, (0,))))
            with pytest.raises(OSError, match="cannot set the limits"):
                await spawner.prepare(Confinement(rlimits=(("core", 1 << 64),)))
            assert not spawner.helper_pids()

    run(main())


# What cannot be started


def test_errors_of_exec(run: Any, tmp_path: Path) -> None:
    """E2: the errno is the system's, and the log says what to mend."""
    files = {
        "absent": (None, 0, errno.ENOENT, "there is no such program"),
        "plain": ("#!/bin/sh\n", 0o644, errno.EACCES, "not executable"),
        "no-interpreter": ("#!/no/such\n", 0o755, errno.ENOENT, "bad #! line"),
        "data": ("\x7f\n", 0o755, errno.ENOEXEC, "nor a script with a #! line"),
    }

    async def main() -> None:
        async with shop(tmp_path) as it:
            for name, (content, mode, number, message) in files.items():
                file = tmp_path / name
                if content is not None:
                    file.write_text(content)
                    file.chmod(mode)
                child = it.ask(str(file))
                with pytest.raises(OSError, match=os.strerror(number)) as caught:
                    await child.started()
                assert caught.value.errno == number, name
                command = ChildCommand((str(file),), {}, str(tmp_path), SpooledBody())
                assert message in explain_failure(command, caught.value)
                assert child.exited.cancelled()

            with pytest.raises(FileNotFoundError) as missing:
                await it.start("/bin/true", cwd="/no/such")
            command = ChildCommand(("/bin/true",), {}, "/no/such", SpooledBody())
            assert "cannot enter the directory" in explain_failure(command, missing.value)

            with pytest.raises(OSError, match="too long") as large:
                await it.start("/bin/true", environ={b"X": bytes(b"x" * (200 << 10))})
            assert large.value.errno == errno.E2BIG
            with pytest.raises(OSError, match="Invalid"):
                await it.start("/bin/true", environ={b"X": b"\0"})
            # None of it has hurt the helper.
            assert (await it.output("/bin/echo", "ok")) == (0, "ok\n")

    run(main())


@pytest.mark.parametrize("size_kib", [1, 63, 64, 65, 250, 1000])
def test_environment_of_any_size(run: Any, tmp_path: Path, size_kib: int) -> None:
    environ = {b"V%03d" % number: b"x" * 1018 for number in range(size_kib)}

    async def main() -> None:
        async with shop(tmp_path) as it:
            code, text = await it.output("/usr/bin/env", environ=environ)
            assert code == 0
            assert text.count("\n") == size_kib
            assert len(text) == size_kib * 1024

    run(main())


# How it ends


@pytest.mark.parametrize("is_term_ignored", [False, True])
def test_the_group_is_ended(run: Any, tmp_path: Path, is_term_ignored: bool) -> None:
    trap = "trap '' TERM; " if is_term_ignored else ""

    async def main() -> None:
        async with shop(tmp_path) as it:
            child = await it.sh(f"{trap}sleep 60 & sleep 60 & echo $$ $! > pids; wait; sleep 60")
            pids = await it.pids(1)
            started_at = time.monotonic()
            child.end(0.1, kill_after_s=0.3 if is_term_ignored else 30)
            code = await child.exited
            assert code == (-signal.SIGKILL if is_term_ignored else -signal.SIGTERM)
            await until(lambda: all(map(is_dead, pids)), "the group is dead", 3)
            assert time.monotonic() - started_at > (0.35 if is_term_ignored else 0.05)
            close(child)

    run(main())


DAEMON = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork():
    os._exit(0)
os.setsid()
if os.fork():
    os._exit(0)
with open("pids", "a") as file:
    file.write(f"{os.getpid()}\\n")
if len(sys.argv) > 1 and os.fork() == 0:
    with open("pids", "a") as file:
        file.write(f"{os.getpid()}\\n")
time.sleep(60)
"""


@pytest.mark.parametrize("is_leader_waiting", [False, True])
def test_daemons_do_not_escape(run: Any, tmp_path: Path, is_leader_waiting: bool) -> None:
    """E7: double-forked, in a session of its own, with a child, TERM ignored."""
    (tmp_path / "daemon.py").write_text(DAEMON)
    start = f"{sys.executable} -IS daemon.py twice"

    async def main() -> None:
        async with shop(tmp_path) as it:
            child = await it.sh(f"{start}; {'exec sleep 60' if is_leader_waiting else ''}")
            pids = await it.pids(2)
            if not is_leader_waiting:
                assert await child.exited == 0
            assert not any(map(is_dead, pids))
            child.end(0.1, kill_after_s=0.2)
            await until(lambda: all(map(is_dead, pids)), "the daemons are dead", 3)
            await child.exited
            # Reaped, too.
            await until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids), "reaped")
            close(child)

    run(main())


def test_a_daemon_outlives_the_end_of_others(run: Any, tmp_path: Path) -> None:
    """What might belong to several is not killed before all of them have ended."""
    (tmp_path / "daemon.py").write_text(DAEMON)

    async def main() -> None:
        async with shop(tmp_path) as it:
            other = await it.sh("exec sleep 60")
            owner = await it.sh(f"{sys.executable} -IS daemon.py")
            (pid,) = await it.pids(1)
            await owner.exited
            other.end(kill_after_s=0)
            assert await other.exited == -signal.SIGTERM
            await asyncio.sleep(0.2)
            assert not is_dead(pid)
            owner.end(kill_after_s=0)
            await until(lambda: is_dead(pid), "the daemon is dead", 3)
            close(other, owner)

    run(main())


def test_background_work_may_go_on(run: Any, tmp_path: Path) -> None:
    """Until it is ended; and the end of one child is not the end of another."""

    async def main() -> None:
        async with shop(tmp_path) as it:
            child = await it.sh("sleep 60 & echo $! > pids")
            (pid,) = await it.pids(1)
            other = await it.sh("sleep 60")
            assert await child.exited == 0
            await asyncio.sleep(0.2)
            assert not is_dead(pid)
            child.end(kill_after_s=5)
            await until(lambda: is_dead(pid), "the background process is dead", 3)
            assert not is_dead(other.pid)
            close(child, other)

    run(main())


def test_leaving_the_spawner_ends_everything(run: Any, tmp_path: Path) -> None:
    (tmp_path / "daemon.py").write_text(DAEMON)

    async def main() -> None:
        async with shop(tmp_path) as it:
            child = await it.sh(f"trap '' TERM; {sys.executable} -IS daemon.py; sleep 60")
            (pid,) = await it.pids(1)
        assert is_dead(pid)
        assert is_dead(child.pid)
        assert await child.exited == -signal.SIGKILL
        close(child)

    run(main())


# Deaths


def test_the_helper_dies(run: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with shop(tmp_path) as it:
            running = await it.sh("sleep 60")
            first = it.helper_pid
            os.kill(first, signal.SIGSTOP)
            pending = it.ask("/bin/true")
            os.kill(first, signal.SIGKILL)
            with pytest.raises(Unavailable):
                await pending.started()
            assert await running.exited == -signal.SIGKILL
            await until(lambda: is_dead(running.pid), "its child is dead")
            with pytest.raises(Unavailable) as refused:
                it.ask("/bin/true")
            assert refused.value.retry_after_s == 1

            await until(lambda: it.spawner.helper_pids() not in ([], [first]), "another is started")
            for _ in range(1000):
                with contextlib.suppress(Unavailable):
                    assert await it.output("/bin/echo", "ok") == (0, "ok\n")
                    break
                await asyncio.sleep(0.005)
            else:
                pytest.fail("no child can be started")
            close(running)

    run(main())
    assert "the spawn helper ended with -9" in caplog.text


def test_leaving_while_the_helper_is_restarted(run: Any, tmp_path: Path) -> None:
    async def main() -> None:
        for turns in (0, 1, 3, 10):
            async with shop(tmp_path) as it:
                os.kill(it.helper_pid, signal.SIGKILL)
                for _ in range(turns):
                    await asyncio.sleep(0.002)

    run(main())


def test_without_a_subreaper(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then a group ends with its leader: nobody could tell later whose the number is."""
    file = tmp_path / "without.py"
    file.write_text(
        "import runpy\n"
        f"room = runpy.run_path({helper.__file__!r})\n"
        "room['main'].__globals__['_become_subreaper'] = lambda: False\n"
        "room['main']()\n"
    )
    monkeypatch.setattr(helper, "__file__", str(file))

    async def main() -> None:
        async with shop(tmp_path) as it:
            child = await it.sh("sleep 60 & echo $! > pids")
            (pid,) = await it.pids(1)
            assert await child.exited == 0
            await until(lambda: is_dead(pid), "the group has ended with its leader", 3)
            other = await it.sh("trap '' TERM; echo $$ >> pids; sleep 60; sleep 60")
            await it.pids(2)
            other.end(kill_after_s=0.1)
            assert await other.exited == -signal.SIGKILL
            close(child, other)

    run(main())


def test_a_start_that_takes_too_long(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tetrapylon.gateway.spawn.child._START_S", 0.1)

    async def main() -> None:
        async with shop(tmp_path) as it:
            os.kill(it.helper_pid, signal.SIGSTOP)
            child = it.ask("/bin/sleep", "60")
            with pytest.raises(Unavailable, match="has not started in"):
                await child.started()
            os.kill(it.helper_pid, signal.SIGCONT)
            # It is started all the same, and ended.
            assert await child.exited == -signal.SIGTERM

    run(main())


def test_a_helper_that_cannot_start(run: Any, tmp_path: Path) -> None:
    async def main() -> None:
        async with Spawner("/bin/false") as spawner:
            with pytest.raises(OSError, match="died"):
                await spawner.prepare(PLAIN)
        async with Spawner("/no/such/python") as spawner:
            with pytest.raises(FileNotFoundError):
                await spawner.prepare(PLAIN)

    run(main())


WORKER = """
import asyncio, os, sys
from tetrapylon.adapters.exchange import SpooledBody
from tetrapylon.adapters.processes import ChildCommand
from tetrapylon.gateway.spawn.client import Spawner
from tetrapylon.gateway.spawn.confinement import Confinement

async def main():
    async with Spawner() as spawner:
        await spawner.prepare(Confinement())
        program = f"trap '' TERM; {sys.executable} -IS daemon.py; sleep 60"
        command = ChildCommand(
            ("/bin/sh", "-c", program), {b"PATH": b"/bin:/usr/bin"}, os.getcwd(), SpooledBody()
        )
        child = await spawner.spawn(command, Confinement()).started()
        if sys.argv[1] == "forked" and os.fork() == 0:
            # Holds the worker's end of the socket open.
            import time
            os.close(1)
            time.sleep(60)
        print(*spawner.helper_pids(), child.pid, flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.mark.parametrize("kind", ["alone", "forked"])
def test_the_worker_is_killed(tmp_path: Path, kind: str) -> None:
    """S2: nobody runs on, whoever else holds the socket."""
    (tmp_path / "daemon.py").write_text(DAEMON)
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, kind],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert worker.stdout is not None
        pids = [int(pid) for pid in worker.stdout.readline().split()]
        assert len(pids) == 2

        async def main() -> None:
            await until((tmp_path / "pids").exists, "the daemon runs")
            await until(lambda: (tmp_path / "pids").read_text().endswith("\n"), "its pid is there")
            daemon = int((tmp_path / "pids").read_text())
            assert not any(map(is_dead, [*pids, daemon]))
            worker.kill()
            await until(lambda: all(map(is_dead, [*pids, daemon])), "all are dead", 2)

        asyncio.run(main())
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()
        worker.stdout.close()


# The loop is never blocked


def test_a_helper_that_is_slow(run: Any, tmp_path: Path) -> None:
    """Hundreds of requests wait while the helper does not read; none is lost."""
    count = 300

    async def main() -> None:
        async with shop(tmp_path) as it:
            os.kill(it.helper_pid, signal.SIGSTOP)
            longest = 0.0
            children = []
            for _ in range(count):
                before = time.perf_counter()
                children.append(it.ask("/bin/true", environ={b"X": b"x" * 8000}))
                longest = max(longest, time.perf_counter() - before)
            starting = asyncio.gather(*(child.started() for child in children))
            await asyncio.sleep(0.05)
            assert not starting.done()
            os.kill(it.helper_pid, signal.SIGCONT)
            await starting
            codes = await asyncio.gather(*(child.exited for child in children))
            assert codes == [0] * count
            assert longest < 0.5
            close(*children)

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 5 * count + 200
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip("too few descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    try:
        run(main())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("is_helper_slow", [False, True])
def test_cancelled_while_starting(run: Any, tmp_path: Path, is_helper_slow: bool) -> None:
    async def main() -> None:
        async with shop(tmp_path) as it:
            if is_helper_slow:
                os.kill(it.helper_pid, signal.SIGSTOP)
            # The last of them do not even get as far as the socket.
            environ = {b"X": b"x" * 60000}
            children = [it.ask("/bin/sleep", "60", environ=environ) for _ in range(12)]
            tasks = [asyncio.ensure_future(child.started()) for child in children]
            await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            done, _ = await asyncio.wait(tasks)
            for task in done:
                if not task.cancelled():
                    # On a busy machine it has been quicker.
                    assert not is_helper_slow
                    task.result().end(kill_after_s=5)
                    close(task.result())
            if is_helper_slow:
                os.kill(it.helper_pid, signal.SIGCONT)
            await asyncio.wait([child.exited for child in children])
            for child in children:
                assert child.exited.cancelled() or child.exited.result() == -signal.SIGTERM
            assert any(child.exited.cancelled() for child in children) or not is_helper_slow
            assert await it.output("/bin/echo", "ok") == (0, "ok\n")

    run(main())


# The message format


def test_replies_that_nobody_takes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The worker hangs up while answers are on their way: no fault, and nothing is left."""

    async def main() -> None:
        for _ in range(5):
            async with shop(tmp_path) as it:
                children = [it.ask("/bin/sleep", "60") for _ in range(20)]
                await asyncio.sleep(0.002)
            starting = (child.started() for child in children)
            for result in await asyncio.gather(*starting, return_exceptions=True):
                if isinstance(result, SpawnedChild):
                    close(result)
                else:
                    assert isinstance(result, Unavailable)

    asyncio.run(main())
    assert "Traceback" not in capfd.readouterr().err


def test_unknown_messages_and_lost_descriptors(tmp_path: Path) -> None:
    """A newer client may ask for what this helper does not know."""
    import marshal

    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", helper.__file__, str(theirs.fileno()), str(os.getpid())],
            pass_fds=(theirs.fileno(),),
        )
        theirs.close()
        ours.settimeout(DEADLINE_S)
        ours.send(marshal.dumps({"op": "cool", "id": 3}))
        ours.send(marshal.dumps({"op": "confine", "umask": 0o77, "rlimits": {}, "colour": "red"}))
        assert helper.REPLY.unpack(ours.recv(999))[:3] == (helper.READY, 0, process.pid)
        message = {
            "op": "spawn",
            "id": 5,
            "argv": [b"/bin/true"],
            "environ": {},
            "cwd": b"/",
        }
        ours.send(marshal.dumps(message))
        reply = helper.REPLY.unpack(ours.recv(999))
        assert reply[:4] == (helper.FAILED, 5, errno.EMFILE, helper.PLACE_EXEC)
        ours.close()
        assert process.wait(DEADLINE_S) == 0


def test_the_helper_is_small() -> None:
    """It imports nothing of the gateway, nor anything that costs its start."""
    text = Path(helper.__file__).read_text()
    code = textwrap.dedent(
        """
        import sys
        sys.argv = ["helper"]
        exec(compile(sys.stdin.read(), "helper", "exec"), {"__name__": "helper"})
        print(*sorted(set(sys.modules) & {
            "tetrapylon", "typing", "logging", "asyncio", "subprocess", "json", "re", "threading",
        }))
        """
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code],
        input=text,
        text=True,
        capture_output=True,
        check=True,
    )
    assert done.stdout.split() == []

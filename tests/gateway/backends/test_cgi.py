"""The CGI backend: places for children, the queue before them, and the limits they have."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tetrapylon.adapters.errors import (
    BackendError,
    BadGateway,
    ClientDisconnected,
    GatewayTimeout,
    Unavailable,
)
from tetrapylon.gateway.backends.cgi import CgiBackend
from tetrapylon.gateway.spawn.client import Spawner

pytestmark = pytest.mark.skipif(not Spawner.is_supported(), reason="Linux only")

DEADLINE_S = 20.0
HEAD = "printf 'Content-Type: text/plain\\n\\n'\n"


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


def pids_of(folder: Path) -> list[int]:
    """Return the processes whose working directory is `folder`."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.readlink(entry / "cwd") == str(folder):
                found.append(int(entry.name))
    return found


def own_children() -> set[str]:
    """Return the children of every thread; of one that has ended, they are another's."""
    found: set[str] = set()
    for file in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found.update(file.read_text().split())
    return found


@pytest.fixture(autouse=True)
def nothing_is_left(first_loop: None) -> Iterator[None]:
    children = own_children()
    fds = len(os.listdir("/proc/self/fd"))
    yield
    assert not own_children() - children
    assert len(os.listdir("/proc/self/fd")) <= fds


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    folder = tmp_path / "cgi-bin"
    folder.mkdir()
    return folder


def write(folder: Path, text: str, name: str = "script") -> Path:
    file = folder / name
    file.write_text(text)
    file.chmod(0o755)
    return file


class Exchange:
    def __init__(self) -> None:
        self.on_departure: Callable[[], None] | None = None
        self.is_departed = False

    def depart(self) -> None:
        self.is_departed = True
        if self.on_departure is not None:
            self.on_departure()


class Answer:
    """One request to a backend, under the gateway."""

    def __init__(self, path: str = "/script", body: bytes = b"", holds_body: bool = False) -> None:
        self.exchange = Exchange()
        self.scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST" if body else "GET",
            "scheme": "http",
            "root_path": "",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [(b"content-length", b"%d" % len(body))] if body else [],
            "server": ("127.0.0.1", 8000),
            "client": ("127.0.0.1", 40000),
            "extensions": {"tetrapylon": self.exchange},
        }
        self._body = body
        self.body_is_complete = asyncio.Event()
        if not holds_body:
            self.body_is_complete.set()
        self._asked = 0
        self.status = 0
        self.body = b""
        self.is_complete = False

    async def receive(self) -> dict[str, Any]:
        self._asked += 1
        if self._asked == 1:
            return {"type": "http.request", "body": self._body, "more_body": True}
        if self._asked == 2:
            await self.body_is_complete.wait()
            return {"type": "http.request", "body": b"", "more_body": False}
        await asyncio.Event().wait()
        raise AssertionError

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        else:
            self.body += message["body"]
            self.is_complete = not message.get("more_body", False)

    async def from_(self, backend: CgiBackend) -> Answer:
        try:
            await backend(self.scope, self.receive, self.send)
        except BackendError as error:
            # As the connection driver does.
            self.status = error.status
        return self


@contextlib.asynccontextmanager
async def serving(scripts: Path, **options: Any) -> AsyncIterator[CgiBackend]:
    async with Spawner() as spawner, CgiBackend("cgi", scripts, spawner=spawner, **options) as it:
        yield it


# A place is held from the complete request to the reaped child.


def test_so_many_run_so_many_wait(run: Any, scripts: Path) -> None:
    """E10: the rest is refused at once, and told when to come again."""
    write(
        scripts,
        f"#!/bin/sh\n: > running.$$\nls running.* | wc -l >> counts\nsleep 0.05\n"
        f"rm running.$$\n{HEAD}echo ok\n",
    )

    async def main() -> None:
        async with serving(scripts, children=3, queue=10) as backend:
            before = time.monotonic()
            refused_after: list[float] = []

            async def ask() -> int:
                status = (await Answer().from_(backend)).status
                if status == 503:
                    refused_after.append(time.monotonic() - before)
                return status

            statuses = await asyncio.gather(*(ask() for _ in range(60)))
            assert statuses.count(200) == 13
            assert statuses.count(503) == 47
            # None of them has waited for any child.
            assert max(refused_after) < 1
            assert max(map(int, (scripts / "counts").read_text().split())) <= 3
            assert (await Answer().from_(backend)).status == 200

    run(main())


def test_refusals_say_when_to_come_again(run: Any, scripts: Path) -> None:
    write(scripts, "#!/bin/sh\necho $$ >> pids\nexec sleep 60\n")

    async def main() -> None:
        async with serving(scripts, children=1, queue=1, queue_wait_s=0.2) as backend:
            first = Answer()
            running = asyncio.ensure_future(first.from_(backend))
            await until((scripts / "pids").exists, "it runs")
            answer = Answer()
            waiting = asyncio.ensure_future(backend(answer.scope, answer.receive, answer.send))
            await asyncio.sleep(0)
            refused = Answer()
            with pytest.raises(Unavailable, match="answered and 1 wait") as full:
                await backend(refused.scope, refused.receive, refused.send)
            assert full.value.retry_after_s == 1
            with pytest.raises(Unavailable, match=r"no free slot within 0\.2 s") as late:
                await waiting
            assert late.value.retry_after_s == 1
            first.exchange.depart()
            with pytest.raises(ClientDisconnected):
                await running
            assert len((scripts / "pids").read_text().split()) == 1

    run(main())


def test_leaving_the_queue(run: Any, scripts: Path) -> None:
    """A request whose client left in the queue does not cost a place."""
    wait = "until mv go gone 2>&-; do sleep 0.01; done"
    write(scripts, f"#!/bin/sh\necho $$ >> pids\n{wait}\n{HEAD}echo ok\n")

    async def main() -> None:
        async with serving(scripts, children=1, queue=4) as backend:
            running = asyncio.ensure_future(Answer().from_(backend))
            await until((scripts / "pids").exists, "it runs")
            answers = [Answer() for _ in range(4)]
            waiting = [asyncio.ensure_future(answer.from_(backend)) for answer in answers]
            await asyncio.sleep(0.01)
            for answer in answers[:3]:
                answer.exchange.depart()
            await asyncio.wait(waiting[:3])
            # Three are free again.
            again = [asyncio.ensure_future(Answer().from_(backend)) for _ in range(3)]
            await asyncio.sleep(0.01)
            assert (await Answer().from_(backend)).status == 503
            for asking in (running, waiting[3], *again):
                (scripts / "go").touch()
                done = await asking
                assert (done.status, done.body) == (200, b"ok\n")
            for left in waiting[:3]:
                assert isinstance(left.exception(), ClientDisconnected)
            assert len((scripts / "pids").read_text().split()) == 5

    run(main())


def test_a_place_is_taken_when_the_body_is_complete(run: Any, scripts: Path) -> None:
    """B6"""
    write(scripts, f"#!/bin/sh\n{HEAD}wc -c\n")

    async def main() -> None:
        async with serving(scripts, children=1, queue=0) as backend:
            slow = [Answer(body=b"x" * 70_000, holds_body=True) for _ in range(20)]
            asking = [asyncio.ensure_future(answer.from_(backend)) for answer in slow]
            await asyncio.sleep(0.05)
            assert not any(answer.status for answer in slow)
            assert (await Answer(body=b"quick").from_(backend)).body.split() == [b"5"]
            for answer, asked in zip(slow, asking, strict=True):
                answer.body_is_complete.set()
                await asked
                assert answer.body.split() == [b"70000"]

    run(main())


def test_a_place_is_held_until_the_child_ends(run: Any, scripts: Path) -> None:
    """E7: what outlives its answer counts."""
    write(scripts, f"#!/bin/sh\necho $$ > pid\n{HEAD}echo ok\nexec >&- 2>&-\nexec sleep 60\n")

    async def main() -> None:
        async with serving(
            scripts, children=1, queue=1, queue_wait_s=0.1, timeout_s=2, kill_after_s=0.2
        ) as backend:
            answer = await Answer().from_(backend)
            assert (answer.status, answer.body, answer.is_complete) == (200, b"ok\n", True)
            assert (await Answer().from_(backend)).status == 503
            pid = int((scripts / "pid").read_text())
            await until(lambda: is_dead(pid), "it is ended by the time limit", 5)
            assert (await Answer().from_(backend)).status == 200

    run(main())


@pytest.mark.parametrize("path", ["/bad", "/absent", "/nothing", "/loud", "/endless"])
def test_every_failure_gives_its_place_back(run: Any, scripts: Path, path: str) -> None:
    write(scripts, "#!/no/such\n", "bad")
    write(scripts, "#!/bin/sh\nexit 1\n", "nothing")
    write(scripts, "#!/bin/sh\nexec yes\n", "loud")
    write(scripts, "#!/bin/sh\nexec sleep 60\n", "endless")
    write(scripts, f"#!/bin/sh\n{HEAD}echo ok\n")
    expected = {"/absent": 404, "/endless": 504}.get(path, 502)

    async def main() -> None:
        async with serving(
            scripts, children=1, queue=8, timeout_s=0.2, kill_after_s=0.2
        ) as backend:
            for _ in range(3):
                assert (await Answer(path).from_(backend)).status == expected
            assert (await Answer().from_(backend)).status == 200

    run(main())


# What a script has


def test_the_process(run: Any, scripts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """C5: environment, descriptors, directory, signals, session, limits."""
    monkeypatch.setenv("CANARY", "of the server")
    monkeypatch.setenv("PASSED", "on")
    write(
        scripts,
        "#!/bin/sh\nprintf 'Content-Type: text/plain\\n\\n'\n"
        "cat /proc/$PPID/environ | tr '\\0' '\\n' | sed 's/^/parent: /'\n"
        "env | sed 's/^/env: /'\n"
        # Not into a pipe, whose ends the shell itself has for a moment.
        "ls /proc/$$/fd > fds; sed 's/^/fd: /' fds\n"
        "grep ^Sig /proc/self/status\n"
        "echo cwd: $(pwd) umask: $(umask) nofile: $(ulimit -n) core: $(ulimit -c)\n"
        "cut -d ' ' -f 1,5,6 /proc/$$/stat\n",
    )

    async def main() -> None:
        async with serving(
            scripts, env={"OWN": "1"}, env_pass=["PASSED"], rlimits={"nofile": 20, "core": 0}
        ) as backend:
            answer = await Answer().from_(backend)
            lines = answer.body.decode().splitlines()
            names = {line[5:].split("=")[0] for line in lines if line.startswith("env: ")}
            assert names - {"PWD", "OLDPWD", "SHLVL", "_"} == {
                "DOCUMENT_ROOT", "GATEWAY_INTERFACE", "LANG", "OWN", "PASSED", "PATH",
                "PATH_INFO", "QUERY_STRING", "REMOTE_ADDR", "REMOTE_PORT", "REQUEST_METHOD",
                "REQUEST_SCHEME", "REQUEST_URI", "SCRIPT_FILENAME", "SCRIPT_NAME", "SERVER_ADDR",
                "SERVER_NAME", "SERVER_PORT", "SERVER_PROTOCOL", "SERVER_SOFTWARE",
            }  # fmt: skip
            assert not any("CANARY" in line for line in lines)
            fds = sorted(int(line[4:]) for line in lines if line.startswith("fd: "))
            # 10 and more: where some shells keep the script that they read.
            assert fds[:3] == [0, 1, 2]
            assert all(fd >= 10 for fd in fds[3:])
            masks = {
                line[:6]: int(line[8:], 16)
                for line in lines
                if line.startswith("Sig") and "/" not in line
            }
            assert masks["SigBlk"] == 0
            assert masks["SigIgn"] & ~0x180000000 == 0
            assert f"cwd: {scripts} umask: 0077 nofile: 20 core: 0" in lines
            pid, group, session = lines[-1].split()
            assert pid == group == session

    run(main())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can choose")
@pytest.mark.parametrize("size", [0, 10, 200_000])
def test_another_user_has_its_streams(
    run: Any, scripts: Path, caplog: pytest.LogCaptureFixture, size: int
) -> None:
    """S11: /dev/stdin and its like are opened anew, by whoever the script is."""
    write(
        scripts,
        f"#!/bin/sh\n{HEAD}id -u > /dev/stdout\ncat /dev/stdin | wc -c >> /dev/stdout\n"
        "echo it says > /dev/stderr\nulimit -u\n",
    )
    for folder in (scripts, *scripts.parents):
        if str(folder).startswith("/tmp/"):
            folder.chmod(0o755)

    async def main() -> None:
        async with serving(scripts, user="64321", group="64321") as backend:
            answer = await Answer(body=b"x" * size).from_(backend)
            assert answer.body.split()[:2] == [b"64321", b"%d" % size]
            assert answer.body.split()[2:] in ([b"256"], [])  # not every shell tells
            await until(lambda: "/script: it says" in caplog.text, "stderr is logged")
        null = os.stat("/dev/null")
        assert null.st_uid == 0

    run(main())


def test_nobody_else_without_root(scripts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(ValueError, match="only a gateway that is started as root"):
        CgiBackend("cgi", scripts, spawner=None, user="root")


def test_unknown_things_are_told_at_once(scripts: Path) -> None:
    with pytest.raises(FileNotFoundError):
        CgiBackend("cgi", scripts / "absent", spawner=None)
    with pytest.raises(LookupError):
        CgiBackend("cgi", scripts, spawner=None, user="no-such-user")
    with pytest.raises(ValueError, match="no such limit"):
        CgiBackend("cgi", scripts, spawner=None, rlimits={"files": 3})


def test_describe(scripts: Path) -> None:
    program = write(scripts, "#!/bin/sh\n")
    assert CgiBackend("a", scripts, spawner=None).describe() == f"CGI scripts in {scripts}"
    assert CgiBackend("a", program, spawner=None).describe() == f"CGI program {program}"


def test_without_a_spawner(run: Any, scripts: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(scripts, f"#!/bin/sh\n{HEAD}echo ok\n")

    async def main() -> None:
        async with CgiBackend("cgi", scripts, spawner=None, children=2, queue=20) as backend:
            answers = await asyncio.gather(*(Answer().from_(backend) for _ in range(10)))
            assert [(answer.status, answer.body) for answer in answers] == [(200, b"ok\n")] * 10
        if os.geteuid() != 0:
            return
        with pytest.raises(OSError, match="Linux only"):
            async with CgiBackend("cgi", scripts, spawner=None, user="root"):
                pass

    run(main())
    assert "no resource limits" in caplog.text


# Faults


def test_the_helper_dies(run: Any, scripts: Path) -> None:
    """What ran gets 502, what comes meanwhile 503, and then all is well again."""
    write(scripts, "#!/bin/sh\necho $$ > pid\nexec sleep 60\n", "endless")
    write(scripts, f"#!/bin/sh\n{HEAD}echo ok\n")

    async def main() -> None:
        async with Spawner() as spawner:
            async with CgiBackend("cgi", scripts, spawner=spawner) as backend:
                answer = Answer("/endless")
                asking = asyncio.ensure_future(backend(answer.scope, answer.receive, answer.send))
                await until((scripts / "pid").exists, "it runs")
                for helper_pid in spawner.helper_pids():
                    os.kill(helper_pid, signal.SIGKILL)
                # If it is killed before it has told the child's pid, there is none to tell of.
                with pytest.raises((BadGateway, Unavailable), match=r"SIGKILL|helper died"):
                    await asking
                for pid in pids_of(scripts):
                    os.kill(pid, signal.SIGKILL)
                statuses = [(await Answer().from_(backend)).status]
                deadline = time.monotonic() + 5
                while statuses[-1] != 200 and time.monotonic() < deadline:
                    await asyncio.sleep(0.01)
                    statuses.append((await Answer().from_(backend)).status)
                assert set(statuses) == {503, 200}

    run(main())


def test_another_helper_is_asked(run: Any, scripts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    write(scripts, f"#!/bin/sh\n{HEAD}echo $PPID\n")

    async def main() -> None:
        async with Spawner() as spawner, CgiBackend("cgi", scripts, spawner=spawner) as backend:
            pids = spawner.helper_pids()
            both = await asyncio.gather(*(Answer().from_(backend) for _ in range(2)))
            assert sorted(int(answer.body) for answer in both) == sorted(pids)
            os.kill(pids[0], signal.SIGKILL)
            await until(lambda: spawner.helper_pids() != pids, "its end was noticed")
            assert (await Answer().from_(backend)).status == 200

    run(main())


def test_backends_share_a_helper(run: Any, scripts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    write(scripts, f"#!/bin/sh\n{HEAD}echo ok\n")

    async def main() -> None:
        async with Spawner() as spawner:
            async with (
                CgiBackend("a", scripts, spawner=spawner) as one,
                CgiBackend("b", scripts / "script", spawner=spawner) as two,
                CgiBackend("c", scripts, spawner=spawner, umask=0o022) as three,
            ):
                for backend in (one, two, three):
                    assert (await Answer().from_(backend)).body == b"ok\n"
                assert len(spawner.helper_pids()) == 2

    run(main())


def test_memory_stays_flat(run: Any, scripts: Path) -> None:
    """E5: hundreds of megabytes to a fast reader, one piece at a time."""
    size = 300_000_000
    write(scripts, f"#!/bin/sh\n{HEAD}exec head -c {size} /dev/zero\n")

    async def main() -> None:
        async with serving(scripts, rlimits={"fsize": 0}) as backend:
            answer = Answer()
            count = 0

            async def discard(message: Any) -> None:
                nonlocal count
                count += len(message.get("body", b""))

            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            await backend(answer.scope, answer.receive, discard)
            assert count == size
            assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2048

    run(main())


def test_time_limit(run: Any, scripts: Path) -> None:
    """E1"""
    write(scripts, "#!/bin/sh\ntrap '' TERM\necho $$ > pid\nsleep 60 & wait; sleep 60\n")

    async def main() -> None:
        async with serving(scripts, timeout_s=0.3, kill_after_s=0.3) as backend:
            answer = Answer()
            with pytest.raises(GatewayTimeout):
                await backend(answer.scope, answer.receive, answer.send)
            pid = int((scripts / "pid").read_text())
            assert not is_dead(pid)
            await until(lambda: is_dead(pid), "killed", 3)

    run(main())


def test_interpreters(run: Any, scripts: Path) -> None:
    (scripts / "hello.py").write_text("print('Content-Type: text/plain\\n\\nhello')\n")

    async def main() -> None:
        async with serving(scripts, interpreters={".py": sys.executable}) as backend:
            assert (await Answer("/hello.py").from_(backend)).body == b"hello\n"

    run(main())

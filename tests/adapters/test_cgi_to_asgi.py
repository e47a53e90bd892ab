"""Real scripts through `CgiToAsgi`.

Each runs on asyncio with children started in threads, and on uvloop with children
started by the gateway's helper; real servers have uvloop with threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import http.client
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import hypercorn.asyncio
import hypercorn.config
import pytest
import uvicorn
import uvloop

from tetrapylon.adapters import child_output
from tetrapylon.adapters.cgi_to_asgi import CgiToAsgi
from tetrapylon.adapters.errors import (
    BadGateway,
    ClientDisconnected,
    GatewayTimeout,
    LocalRedirect,
    Truncated,
)
from tetrapylon.adapters.processes import Child, ChildCommand, Spawn, spawn_process
from tetrapylon.gateway.spawn.client import Spawner
from tetrapylon.gateway.spawn.confinement import Confinement

DEADLINE_S = 20.0
PYTHON = f"#!{sys.executable} -IS\n"
MIB = 1 << 20

Runner = Callable[[Coroutine[Any, Any, None]], None]


async def until(condition: Callable[[], object], what: str, within_s: float = DEADLINE_S) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
        await asyncio.sleep(0.005)


def process_state(pid: int) -> str:
    """Return the letter of proc_pid_stat(5); "" if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def is_dead(pid: int) -> bool:
    return process_state(pid) in ("", "Z", "X")


def processes_in(folder: Path) -> list[int]:
    """Return the processes whose working directory is `folder`, and our own children."""
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


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    folder = tmp_path / "cgi-bin"
    folder.mkdir()
    return folder


@pytest.fixture(autouse=True)
def nothing_is_left(
    first_loop: None, scripts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """No zombie, no process, no temporary file, no descriptor remains after any test."""
    spool = tmp_path / "spool"
    spool.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(spool))
    children = own_children()
    fds = len(os.listdir("/proc/self/fd"))
    yield
    deadline = time.monotonic() + DEADLINE_S

    def left() -> list[Any]:
        return [*processes_in(scripts), *(own_children() - children), *spool.iterdir()]

    while (found := left()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not found
    # Another test's may go meanwhile.
    assert len(os.listdir("/proc/self/fd")) <= fds


@pytest.fixture(params=["asyncio-threads", "uvloop-helper"])
def setting(request: pytest.FixtureRequest) -> str:
    """Return the kind of the loop, and of the start."""
    return str(request.param)


@pytest.fixture
def run(setting: str) -> Runner:
    """Run a coroutine on the loop."""
    is_uvloop = setting.startswith("uvloop")
    factory = uvloop.new_event_loop if is_uvloop else asyncio.new_event_loop

    def run(main: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(whole(main))

    async def whole(main: Coroutine[Any, Any, None]) -> None:
        try:
            await asyncio.wait_for(main, 2 * DEADLINE_S)
        finally:
            while apps:
                apps.pop().close()

    return run


@pytest.fixture
def spawning(setting: str) -> Callable[[], Any]:
    """Return a context manager that gives a `Spawn`."""

    @contextlib.asynccontextmanager
    async def spawning() -> AsyncIterator[Spawn]:
        if setting.endswith("threads"):
            children = own_children()
            yield spawn_process
            # The loop of a server runs on, and ends and reaps what there is.
            await until(lambda: not own_children() - children, "all children are reaped")
            return
        confinement = Confinement()
        async with Spawner() as spawner:
            await spawner.prepare(confinement)

            async def spawn(command: ChildCommand) -> Child:
                return spawner.spawn(command, confinement)

            yield spawn

    return spawning


class Exchange:
    """What the gateway's connection driver puts into a scope."""

    def __init__(self) -> None:
        self.on_departure: Callable[[], None] | None = None
        self.is_departed = False


class Client:
    """One request, its response, and when the client reads or leaves."""

    def __init__(
        self,
        path: str = "/script",
        *,
        method: str = "GET",
        query: bytes = b"",
        headers: list[tuple[bytes, bytes]] | None = None,
        body: bytes | None = None,
        is_under_gateway: bool = False,
    ) -> None:
        headers = [(b"host", b"example.org"), *(headers or [])]
        if body is not None:
            headers.append((b"content-length", b"%d" % len(body)))
            method = "POST" if method == "GET" else method
        self.exchange = Exchange()
        self.scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "root_path": "/cgi",
            "path": "/cgi" + path,
            "raw_path": ("/cgi" + path).encode(),
            "query_string": query,
            "headers": headers,
            "server": ("127.0.0.1", 8000),
            "client": ("127.0.0.2", 40000),
            "extensions": {"tetrapylon": self.exchange} if is_under_gateway else {},
        }
        self.requests: list[dict[str, Any]] = []
        data = body or b""
        for start in range(0, len(data), 65536):
            self.requests.append(
                {"type": "http.request", "body": data[start : start + 65536], "more_body": True}
            )
        self.requests.append({"type": "http.request", "body": b"", "more_body": False})
        self.left = asyncio.Event()
        self.reads = asyncio.Event()
        self.reads.set()
        self.starts: list[dict[str, Any]] = []
        self.pieces: list[bytes] = []
        self.is_complete = False

    async def receive(self) -> dict[str, Any]:
        if self.requests:
            return self.requests.pop(0)
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        await self.reads.wait()
        if message["type"] == "http.response.start":
            self.starts.append(message)
        else:
            self.pieces.append(message["body"])
            self.is_complete = not message.get("more_body", False)

    async def ask(self, app: CgiToAsgi) -> Client:
        await app(self.scope, self.receive, self.send)
        return self

    def leave(self) -> None:
        self.left.set()
        self.exchange.is_departed = True
        if self.exchange.on_departure is not None:
            self.exchange.on_departure()

    @property
    def status(self) -> int:
        (start,) = self.starts
        return int(start["status"])

    @property
    def fields(self) -> dict[bytes, bytes]:
        return dict(self.starts[0]["headers"])

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)

    @property
    def lines(self) -> dict[str, str]:
        """The body as NAME=value lines."""
        return dict(line.split("=", 1) for line in self.body.decode().splitlines())


apps: list[CgiToAsgi] = []


def cgi(script: Path, **options: Any) -> CgiToAsgi:
    """Return an adapter that `run` closes in the end."""
    apps.append(CgiToAsgi(script, **options))
    return apps[-1]


def write(folder: Path, text: str, name: str = "script", mode: int = 0o755) -> Path:
    file = folder / name
    file.write_text(text)
    file.chmod(mode)
    return file


HEAD = "printf 'Content-Type: text/plain\\n\\n'\n"
ENVIRONMENT = f"#!/bin/sh\n{HEAD}exec env\n"


# What a script is told


def test_environment(
    run: Runner, spawning: Any, scripts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CANARY", "of the server")
    write(scripts, ENVIRONMENT)

    async def main() -> None:
        async with spawning() as spawn:
            client = await Client(
                "/script/a/b c",
                query=b"x=%31&y",
                headers=[
                    (b"x-one", b"1"),
                    (b"x-one", b"2"),
                    (b"authorization", b"Basic c2VjcmV0"),
                    (b"proxy", b"http://evil.example"),  # C1
                    (b"content_length", b"7"),
                ],
            ).ask(cgi(scripts, spawn=spawn))
            assert client.status == 200
            lines = client.lines
            # The shell's own.
            for name in ("PWD", "OLDPWD", "SHLVL", "_"):
                lines.pop(name, None)
            assert lines == {
                "DOCUMENT_ROOT": str(scripts),
                "GATEWAY_INTERFACE": "CGI/1.1",
                "HTTP_HOST": "example.org",
                "HTTP_X_ONE": "1, 2",
                "LANG": "C.UTF-8",
                "PATH": "/usr/bin:/bin",
                "PATH_INFO": "/a/b c",
                "PATH_TRANSLATED": f"{scripts}/a/b c",
                "QUERY_STRING": "x=%31&y",
                "REMOTE_ADDR": "127.0.0.2",
                "REMOTE_PORT": "40000",
                "REQUEST_METHOD": "GET",
                "REQUEST_SCHEME": "http",
                "REQUEST_URI": "/cgi/script/a/b c?x=%31&y",
                "SCRIPT_FILENAME": str(scripts / "script"),
                "SCRIPT_NAME": "/cgi/script",
                "SERVER_ADDR": "127.0.0.1",
                "SERVER_NAME": "example.org",
                "SERVER_PORT": "8000",
                "SERVER_PROTOCOL": "HTTP/1.1",
                "SERVER_SOFTWARE": "tetrapylon",
            }

    run(main())


def test_environment_of_the_configuration(
    run: Runner, spawning: Any, scripts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CANARY", "of the server")
    monkeypatch.setenv("PASSED", "é")
    write(scripts, ENVIRONMENT)

    async def main() -> None:
        async with spawning() as spawn:
            app = cgi(
                scripts,
                env={"OWN": "ü", "PATH": "/opt", "REQUEST_SCHEME": "https"},
                env_pass=["PASSED", "ABSENT"],
                pass_authorization=True,
                spawn=spawn,
            )
            headers = [(b"authorization", b"Basic c2VjcmV0")]
            lines = (await Client(headers=headers).ask(app)).lines
            assert lines["OWN"] == "ü"
            assert lines["PASSED"] == "é"
            assert lines["PATH"] == "/opt"
            assert lines["REQUEST_SCHEME"] == "https"
            assert lines["HTTP_AUTHORIZATION"] == "Basic c2VjcmV0"
            assert "ABSENT" not in lines
            assert "CANARY" not in lines
            assert "PATH_TRANSLATED" not in lines

    # An environment that `env` cannot be found in.
    write(scripts, ENVIRONMENT.replace("exec env", "exec /usr/bin/env"))
    run(main())


@pytest.mark.parametrize("query", [b"-s", b"a+b", b"$(touch+x)", b"() { :;}; touch x", b"`id`"])
def test_argv_is_the_script_alone(run: Runner, spawning: Any, scripts: Path, query: bytes) -> None:
    """C6: neither a query nor a field becomes an argument or goes through a shell."""
    write(
        scripts,
        f"{PYTHON}import os, sys\n"
        'print("Content-Type: text/plain\\n")\n'
        'print(open("/proc/self/cmdline").read().split("\\0")[2:-1], os.environ["QUERY_STRING"])\n',
        "a;b $(id).cgi",
    )

    async def main() -> None:
        async with spawning() as spawn:
            client = Client("/a;b $(id).cgi", query=query, headers=[(b"x", b"() { :;}; touch x")])
            await client.ask(cgi(scripts, spawn=spawn))
            expected = f"{[f'{scripts}/a;b $(id).cgi']} {query.decode()}\n"
            assert client.body.decode() == expected
            assert len(list(scripts.iterdir())) == 1

    run(main())


def test_interpreters(run: Runner, spawning: Any, scripts: Path) -> None:
    write(
        scripts,
        'import os, sys\nprint("Content-Type: text/plain\\n")\nprint(sys.argv, os.getcwd())\n',
        "hello.py",
        0o644,
    )

    async def main() -> None:
        async with spawning() as spawn:
            app = cgi(scripts, interpreters={".py": sys.executable}, spawn=spawn)
            client = await Client("/hello.py/more").ask(app)
            assert client.body.decode() == f"{[f'{scripts}/hello.py']} {scripts}\n"

    run(main())


def test_one_program_for_the_mount(run: Runner, spawning: Any, scripts: Path) -> None:
    program = write(scripts, f'#!/bin/sh\n{HEAD}printf "%s|" "$@"; exec env\n')

    async def main() -> None:
        async with spawning() as spawn:
            app = cgi(program, arguments=["--one", "two words"], spawn=spawn)
            client = await Client("/repository/info").ask(app)
            words, _, rest = client.body.decode().rpartition("|")
            assert words == "--one|two words"
            lines = dict(line.split("=", 1) for line in rest.splitlines())
            assert lines["SCRIPT_NAME"] == "/cgi"
            assert lines["PATH_INFO"] == "/repository/info"
            assert lines["SCRIPT_FILENAME"] == str(program)

    run(main())


def test_no_such_script(run: Runner, scripts: Path) -> None:
    with pytest.raises(FileNotFoundError):
        cgi(scripts / "absent")
    write(scripts, ENVIRONMENT)
    app = cgi(scripts)

    async def main() -> None:
        assert (await Client("/absent").ask(app)).status == 404
        client = Client("/script/%00")
        client.scope["path"] = "/cgi/script/\0"
        assert (await client.ask(app)).status in (400, 404)
        with pytest.raises(NotImplementedError):
            await app({"type": "websocket"}, client.receive, client.send)

    run(main())


# The body


@pytest.mark.parametrize("size", [0, 1, 4096, 65536, 65537, 12 * MIB])
def test_bodies_both_ways_at_once(run: Runner, spawning: Any, scripts: Path, size: int) -> None:
    write(scripts, f'#!/bin/sh\nprintf "X-Length: $CONTENT_LENGTH\\n"\n{HEAD}exec cat\n')
    body = hashlib.sha256(b"seed").digest() * (size // 32 + 1)
    body = body[:size]

    async def main() -> None:
        async with spawning() as spawn:
            client = await Client(body=body).ask(cgi(scripts, spawn=spawn))
            assert client.status == 200
            assert client.fields[b"x-length"] == b"%d" % size
            assert client.body == body
            assert client.is_complete
            assert max(map(len, client.pieces), default=0) <= 65536

    run(main())


def test_a_body_larger_than_its_pipe(
    run: Runner, spawning: Any, scripts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system makes small pipes for a user who has many."""
    make_pipe = os.pipe

    def make_small_pipe() -> tuple[int, int]:
        reader, writer = make_pipe()
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
        return reader, writer

    write(scripts, f"#!/bin/sh\n{HEAD}exec cat\n")

    async def main() -> None:
        async with spawning() as spawn:
            monkeypatch.setattr(os, "pipe", make_small_pipe)
            client = await Client(body=b"0123456789" * 6000).ask(cgi(scripts, spawn=spawn))
            assert client.body == b"0123456789" * 6000

    run(main())


def test_without_pidfd(scripts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on systems that have none: a thread waits."""
    monkeypatch.delattr(os, "pidfd_open")
    write(scripts, f"#!/bin/sh\n{HEAD}echo ok\n")
    write(scripts, "#!/bin/sh\ntrap '' TERM\necho $$ > pid\nsleep 60; sleep 60\n", "endless")
    threads = threading.active_count()

    async def main() -> None:
        app = CgiToAsgi(scripts, timeout_s=0.3, kill_after_s=0.3)
        assert (await Client().ask(app)).body == b"ok\n"
        assert (await Client("/endless").ask(app)).status == 504
        pid = int((scripts / "pid").read_text())
        await until(lambda: is_dead(pid), "it is killed")
        await until(lambda: threading.active_count() <= threads + 1, "the threads have ended")
        app.close()

    asyncio.run(main())


def test_no_body_is_an_empty_stdin(run: Runner, spawning: Any, scripts: Path) -> None:
    write(scripts, f"#!/bin/sh\n{HEAD}echo ${{CONTENT_LENGTH-none}}; wc -c\n")

    async def main() -> None:
        async with spawning() as spawn:
            client = await Client().ask(cgi(scripts, spawn=spawn))
            assert client.body.split() == [b"none", b"0"]

    run(main())


def test_stdin_unread(run: Runner, spawning: Any, scripts: Path) -> None:
    """E9"""
    write(scripts, f"#!/bin/sh\n{HEAD}echo done\n")

    async def main() -> None:
        async with spawning() as spawn:
            client = await Client(body=bytes(10 * MIB)).ask(cgi(scripts, spawn=spawn))
            assert (client.status, client.body) == (200, b"done\n")

    run(main())


def test_body_that_does_not_arrive(run: Runner, scripts: Path) -> None:
    started: list[ChildCommand] = []

    async def spawn(command: ChildCommand) -> Child:
        started.append(command)
        return await spawn_process(command)

    write(scripts, ENVIRONMENT)

    async def main() -> None:
        app = cgi(scripts, body_limit_bytes=MIB, spawn=spawn)
        assert (await Client(body=bytes(MIB + 1)).ask(app)).status == 413
        # E9: leaves in mid-upload
        client = Client(body=bytes(MIB), is_under_gateway=True)
        client.requests.pop()
        client.leave()
        with pytest.raises(ClientDisconnected):
            await client.ask(app)
        assert not started

    run(main())


# Faults


@pytest.mark.parametrize("is_term_ignored", [False, True])
@pytest.mark.parametrize("is_head_sent", [False, True])
def test_never_exits(
    run: Runner, spawning: Any, scripts: Path, is_term_ignored: bool, is_head_sent: bool
) -> None:
    """E1"""
    trap = "trap '' TERM\n" if is_term_ignored else ""
    head = HEAD + "echo begun\n" if is_head_sent else ""
    write(scripts, f"#!/bin/sh\n{trap}sleep 60 &\necho $! $$ > pids\n{head}wait; sleep 60\n")

    async def main() -> None:
        async with spawning() as spawn:
            kill_after_s = 0.4 if is_term_ignored else 10
            app = cgi(scripts, timeout_s=0.4, kill_after_s=kill_after_s, spawn=spawn)
            client = Client(is_under_gateway=True)
            started_at = time.monotonic()
            if is_head_sent:
                with pytest.raises(Truncated):
                    await client.ask(app)
                assert client.body == b"begun\n"
                assert not client.is_complete
            else:
                with pytest.raises(GatewayTimeout):
                    await client.ask(app)
                assert not client.starts
            assert time.monotonic() - started_at > 0.35
            pids = [int(pid) for pid in (scripts / "pids").read_text().split()]
            await until(lambda: all(map(is_dead, pids)), "the group is dead", 5)
            assert time.monotonic() - started_at > 0.75 or not is_term_ignored

    run(main())


CAUSES = {
    "exit-0": ("#!/bin/sh\nexit 0\n", 0o755, "no output; the script exited with 0"),
    "exit-1": ("#!/bin/sh\nexit 1\n", 0o755, "no output; the script exited with 1"),
    "segv": ("#!/bin/sh\nkill -SEGV $$\n", 0o755, "killed by SIGSEGV"),
    "not-executable": ("#!/bin/sh\n", 0o644, "not executable"),
    "no-interpreter": ("#!/no/such\n", 0o755, "bad #! line: there is no such interpreter"),
    "crlf": ("#!/bin/sh\r\necho\n", 0o755, r"in b'#!/bin/sh\r'"),
    "interpreter-not-executable": ("#!/etc/passwd\n", 0o755, "the interpreter of its #! line"),
    "no-#!": ("echo\n", 0o755, "nor a script with a #! line"),
}


@pytest.mark.parametrize("cause", CAUSES)
def test_writes_nothing(
    run: Runner,
    spawning: Any,
    scripts: Path,
    cause: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """E2"""
    text, mode, message = CAUSES[cause]
    write(scripts, text, mode=mode)

    async def main() -> None:
        async with spawning() as spawn:
            started_at = time.monotonic()
            client = await Client().ask(cgi(scripts, spawn=spawn))
            assert client.status == 502
            assert client.is_complete
            assert time.monotonic() - started_at < 2

    run(main())
    assert message in caplog.text
    assert "script" not in caplog.text.partition("/cgi")[0]


BAD_OUTPUT = {
    "no-empty-line": "print('Content-Type: text/plain')",
    "no-field": "print('\\nbody')",
    "1-MiB-head": "print('X: ' + 'x' * (1 << 20) + '\\nContent-Type: a/b\\n\\n')",
    "NUL": "print('Content-Type: a/b\\nX: \\0\\n\\n')",
    "bare-CR": "sys.stdout.buffer.write(b'Content-Type: a/b\\nX: 1\\r2\\n\\n')",
    "status": "print('Status: 99999\\nContent-Type: a/b\\n\\n')",
    "length-with-sign": "print('Content-Length: +5\\nContent-Type: a/b\\n\\nhello')",
    "two-lengths": "print('Content-Length: 5\\nContent-Length: 5\\nContent-Type: a/b\\n\\nhello')",
    "length-and-coding": "print('Content-Length: 5\\nTransfer-Encoding: chunked\\n"
    "Content-Type: a/b\\n\\nhello')",
}


@pytest.mark.parametrize("output", BAD_OUTPUT)
def test_bad_output(
    run: Runner, spawning: Any, scripts: Path, output: str, caplog: pytest.LogCaptureFixture
) -> None:
    """E3; whatever the script goes on to write, and however long."""
    forever = "while 1: sys.stdout.write('x' * 65536)"
    code = BAD_OUTPUT[output]
    more = f"sys.stdout.flush()\n{forever}\n" if output != "no-empty-line" else ""
    write(scripts, f"{PYTHON}import sys\n{code}\n{more}")

    async def main() -> None:
        async with spawning() as spawn:
            client = await Client().ask(cgi(scripts, kill_after_s=0.2, spawn=spawn))
            assert client.status == 502
            assert b"x" * 20 not in client.body

    run(main())
    assert "/cgi/script: " in caplog.text


def test_64_mib_on_stderr(
    run: Runner, spawning: Any, scripts: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """E6: all of it is read, a bounded part is logged, and nothing of it can break a line."""
    write(
        scripts,
        f"{PYTHON}import sys\nline = b'a\\x1b[31m\\xff' + b'e' * 1016 + b'\\n'\n"
        "for _ in range(64 * 1024): sys.stderr.buffer.write(line)\n"
        "sys.stderr.flush(); print('Content-Type: text/plain\\n\\nok')\n",
    )
    caplog.set_level(logging.WARNING)

    async def main() -> None:
        async with spawning() as spawn:
            app = cgi(scripts, spawn=spawn)
            client = await Client().ask(app)
            assert (client.status, client.body) == (200, b"ok\n")

    run(main())
    *lines, last = [record.getMessage() for record in caplog.records]
    assert lines[0].startswith("/cgi/script: a\\x1b[31m\\xffeee")
    assert all(line.isprintable() for line in lines)
    assert 32 * 1024 < sum(map(len, lines)) < 80 * 1024
    assert last == "/cgi/script: … (more than 65536 bytes: the rest is dropped)"


def test_a_flood_of_short_lines_is_cut(
    run: Runner, scripts: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(scripts, f"#!/bin/sh\n{HEAD}yes | head -n 100000 >&2\n")

    async def main() -> None:
        assert (await Client().ask(cgi(scripts))).status == 200
        await until(lambda: "more than" in caplog.text, "the flood is cut")

    run(main())
    assert 100 < len(caplog.records) < 1010


def test_closes_stdout_and_runs_on(run: Runner, spawning: Any, scripts: Path) -> None:
    """E7: the answer does not wait; the time limit holds."""
    write(scripts, f"#!/bin/sh\necho $$ > pid\n{HEAD}echo ok\nexec >&- 2>&-\nsleep 60\n")

    async def main() -> None:
        async with spawning() as spawn:
            app = cgi(scripts, timeout_s=1.5, kill_after_s=0.3, spawn=spawn)
            started_at = time.monotonic()
            client = await Client().ask(app)
            assert client.body == b"ok\n"
            assert client.is_complete
            assert time.monotonic() - started_at < 1.2
            pid = int((scripts / "pid").read_text())
            assert not is_dead(pid)
            await until(lambda: is_dead(pid), "ended by the time limit", 4)
            assert time.monotonic() - started_at > 1.4

    run(main())


def test_background_process_keeps_stdout(run: Runner, spawning: Any, scripts: Path) -> None:
    """E7: the answer ends with the script, and the time limit holds for what it left."""
    write(scripts, f"#!/bin/sh\n{HEAD}echo ok\n(yes | tr -d y | sleep 60) &\necho $! > pid\n")

    async def main() -> None:
        async with spawning() as spawn:
            app = cgi(scripts, timeout_s=1.5, kill_after_s=0.2, spawn=spawn)
            started_at = time.monotonic()
            client = await Client().ask(app)
            assert client.body == b"ok\n"
            assert client.is_complete
            assert time.monotonic() - started_at < 1.2
            pid = int((scripts / "pid").read_text())
            assert not is_dead(pid)
            await until(lambda: is_dead(pid), "ended by the time limit", 4)
            await until(lambda: not processes_in(scripts), "all of it is ended", 4)

    run(main())


def test_background_process_writes_on(run: Runner, spawning: Any, scripts: Path) -> None:
    """E7: what others write after the script's exit does not prolong the answer for ever."""
    write(scripts, f"#!/bin/sh\n{HEAD}echo ok\n(while :; do echo more; sleep 0.01; done) &\n")

    async def main() -> None:
        async with spawning() as spawn:
            app = cgi(scripts, timeout_s=15, kill_after_s=0.2, spawn=spawn)
            started_at = time.monotonic()
            client = Client()
            # A slow reader gets all that the script itself wrote.
            client.reads.clear()
            asking = asyncio.ensure_future(client.ask(app))
            await until(lambda: processes_in(scripts), "it runs")
            await asyncio.sleep(0.7)
            client.reads.set()
            await asking
            assert client.body.startswith(b"ok\n")
            assert client.is_complete
            assert time.monotonic() - started_at < 5
            for pid in processes_in(scripts):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    run(main())


def test_less_than_its_content_length(run: Runner, spawning: Any, scripts: Path) -> None:
    """E8"""
    write(scripts, f"#!/bin/sh\necho Content-Length: 100\n{HEAD}echo short\n")

    async def main() -> None:
        async with spawning() as spawn:
            app = cgi(scripts, spawn=spawn)
            client = Client(is_under_gateway=True)
            with pytest.raises((Truncated, BadGateway)):
                await client.ask(app)
            assert not client.is_complete

    run(main())


def test_more_than_its_content_length(run: Runner, spawning: Any, scripts: Path) -> None:
    """E8: the excess is dropped, and the script can still write all of it."""
    write(
        scripts,
        f"#!/bin/sh\necho Content-Length: 5\n{HEAD}printf hello\n"
        "head -c 1000000 /dev/zero && echo all > written\n",
    )

    async def main() -> None:
        async with spawning() as spawn:
            app = cgi(scripts, spawn=spawn)
            client = await Client().ask(app)
            assert client.body == b"hello"
            assert client.is_complete
            await until((scripts / "written").exists, "the script goes on")

    run(main())


@pytest.mark.parametrize("is_framed", [False, True])
def test_dies_in_mid_body(run: Runner, spawning: Any, scripts: Path, is_framed: bool) -> None:
    """A clean end would hide that something is missing."""
    length = "Content-Length: 70000\\n" if is_framed else ""
    write(
        scripts,
        f"#!/bin/sh\nprintf '{length}'\n{HEAD}head -c 69000 /dev/zero; kill -SEGV $$\n".replace(
            "printf ''\n", ""
        ),
    )

    async def main() -> None:
        async with spawning() as spawn:
            client = Client(is_under_gateway=True)
            with pytest.raises(Truncated):
                await client.ask(cgi(scripts, spawn=spawn))
            assert client.starts
            assert not client.is_complete

    run(main())


def test_exit_code_after_a_document_is_no_fault(run: Runner, spawning: Any, scripts: Path) -> None:
    write(scripts, f"#!/bin/sh\n{HEAD}echo ok\nexit 3\n")

    async def main() -> None:
        async with spawning() as spawn:
            client = await Client().ask(cgi(scripts, spawn=spawn))
            assert (client.status, client.body, client.is_complete) == (200, b"ok\n", True)

    run(main())


@pytest.mark.parametrize("is_under_gateway", [False, True])
@pytest.mark.parametrize("is_term_ignored", [False, True])
def test_client_leaves(
    run: Runner, spawning: Any, scripts: Path, is_under_gateway: bool, is_term_ignored: bool
) -> None:
    """E5, E9: the whole group is dead within 2 s."""
    trap = "trap '' TERM\n" if is_term_ignored else ""
    write(
        scripts,
        f"#!/bin/sh\n{trap}sleep 60 &\necho $! $$ > pids\n{HEAD}cat /dev/zero\nsleep 60\n",
    )

    async def main() -> None:
        async with spawning() as spawn:
            app = cgi(scripts, spawn=spawn)
            client = Client(is_under_gateway=is_under_gateway)
            asking = asyncio.ensure_future(client.ask(app))
            await until(lambda: len(client.pieces) > 50, "the answer is under way")
            client.leave()
            left_at = time.monotonic()
            if is_under_gateway:
                with pytest.raises(ClientDisconnected):
                    await asking
            else:
                await asking
            assert not client.is_complete
            pids = [int(pid) for pid in (scripts / "pids").read_text().split()]
            await until(lambda: all(map(is_dead, pids)), "the group is dead", 2)
            assert time.monotonic() - left_at < 2

    run(main())


def test_cancelled(run: Runner, spawning: Any, scripts: Path) -> None:
    write(scripts, "#!/bin/sh\necho $$ > pid\nexec sleep 60\n")

    async def main() -> None:
        async with spawning() as spawn:
            asking = asyncio.ensure_future(Client().ask(cgi(scripts, spawn=spawn)))
            await until(
                lambda: (scripts / "pid").exists() and (scripts / "pid").read_text().strip(),
                "it runs",
            )
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            pid = int((scripts / "pid").read_text())
            await until(lambda: is_dead(pid), "it is dead", 2)

    run(main())


def test_cancelled_at_once(run: Runner, spawning: Any, scripts: Path) -> None:
    """At whatever point of the start: nothing is left (the fixture looks)."""
    write(scripts, "#!/bin/sh\nexec sleep 60\n")

    async def main() -> None:
        async with spawning() as spawn:
            app = cgi(scripts, spawn=spawn, kill_after_s=0.2)
            for turns in range(12):
                asking = asyncio.ensure_future(Client(body=b"x").ask(app))
                for _ in range(turns):
                    await asyncio.sleep(0)
                asking.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await asking
            await until(lambda: not processes_in(scripts), "all are dead", 4)

    run(main())


# The answer


def test_slow_reader(run: Runner, spawning: Any, scripts: Path) -> None:
    """The script waits for its reader, and that costs it no time."""
    write(
        scripts,
        f"{PYTHON}import os\nos.write(1, b'Content-Type: text/plain\\n\\n')\n"
        "for i in range(64):\n os.write(1, bytes(65536))\n open('count', 'w').write(str(i + 1))\n",
    )

    async def main() -> None:
        async with spawning() as spawn:
            client = Client()
            asking = asyncio.ensure_future(
                client.ask(cgi(scripts, timeout_s=1.5, kill_after_s=0.1, spawn=spawn))
            )
            await until(lambda: client.starts, "the head is there")
            client.reads.clear()
            taken = len(client.body)
            await asyncio.sleep(2)
            # One piece in hand, one in the pipe, one being written.
            assert len(client.body) - taken <= 65536
            count = int((scripts / "count").read_text())
            assert count * 65536 <= len(client.body) + 3 * 65536
            client.reads.set()
            await asking
            assert len(client.body) == 64 * 65536
            assert client.is_complete

    run(main())


def test_others_have_their_turn(run: Runner, spawning: Any, scripts: Path) -> None:
    """A reader that never waits, of a script that always writes, does not hold the loop."""
    write(scripts, f"#!/bin/sh\n{HEAD}exec head -c 200000000 /dev/zero\n")

    async def main() -> None:
        async with spawning() as spawn:
            client = Client()
            count = 0

            async def discard(message: Any) -> None:
                nonlocal count
                count += len(message.get("body", b""))

            turns: list[float] = []

            async def tick() -> None:
                while True:
                    turns.append(time.monotonic())
                    await asyncio.sleep(0)

            ticking = asyncio.ensure_future(tick())
            await cgi(scripts, spawn=spawn)(client.scope, client.receive, discard)
            ticking.cancel()
            assert count == 200_000_000
            assert len(turns) > count / 65536

    run(main())


def test_whole_response_gets_its_length(run: Runner, scripts: Path) -> None:
    """What the script has written when it exits is one message, with a Content-Length."""
    write(scripts, f"#!/bin/sh\n{HEAD}echo hello\n")

    async def spawn(command: ChildCommand) -> Child:
        child = await spawn_process(command)
        await asyncio.wait((child.exited,))
        return child

    async def main() -> None:
        client = await Client().ask(cgi(scripts, spawn=spawn))
        assert client.fields[b"content-length"] == b"6"
        assert client.pieces == [b"hello\n"]

    run(main())


def test_head_and_redirects(run: Runner, spawning: Any, scripts: Path) -> None:
    write(scripts, f"#!/bin/sh\n{HEAD}head -c 1000000 /dev/zero\n")
    write(scripts, "#!/bin/sh\necho 'Location: /other?x=1'; echo; echo all > ran\n", "local")
    write(
        scripts, "#!/bin/sh\nprintf 'HTTP/1.1 404 Gone Fishing\\nContent-Type: a/b\\n\\n'", "nph-x"
    )

    async def main() -> None:
        async with spawning() as spawn:
            app = cgi(scripts, spawn=spawn)
            client = await Client(method="HEAD").ask(app)
            assert (client.status, client.body, client.is_complete) == (200, b"", True)
            with pytest.raises(LocalRedirect) as caught:
                await Client("/local", is_under_gateway=True).ask(app)
            assert caught.value.target == b"/other?x=1"
            await until((scripts / "ran").exists, "the script has run to its end")
            assert (await Client("/local").ask(app)).fields[b"location"] == b"/other?x=1"
            assert (await Client("/nph-x").ask(app)).status == 404

    run(main())


def test_sse_from_a_shell_script(run: Runner, spawning: Any, scripts: Path) -> None:
    """Each event is there before the next is written; the script waits for our word."""
    write(
        scripts,
        "#!/bin/sh\nprintf 'Content-Type: text/event-stream\\n\\n'\n"
        "for i in 1 2 3; do printf 'data: %s\\n\\n' $i; until [ -e seen.$i ]; do :; done; done\n",
    )

    async def main() -> None:
        async with spawning() as spawn:
            client = Client()
            asking = asyncio.ensure_future(client.ask(cgi(scripts, spawn=spawn)))
            events = b""
            for count in (b"1", b"2", b"3"):
                events += b"data: " + count + b"\n\n"
                await until(lambda: client.body == events, "the event has come")  # noqa: B023
                (scripts / f"seen.{count.decode()}").touch()
            await asking
            assert client.is_complete
            assert b"content-length" not in client.fields

    run(main())


def test_what_is_written_once_comes_before_the_end(
    run: Runner, spawning: Any, scripts: Path
) -> None:
    """A script that writes head and body at once, and then works on, is not waited for."""
    write(
        scripts, "#!/bin/sh\nprintf 'Content-Type: a/b\\n\\nhello'\nuntil [ -e go ]; do :; done\n"
    )

    async def main() -> None:
        async with spawning() as spawn:
            client = Client()
            asking = asyncio.ensure_future(client.ask(cgi(scripts, spawn=spawn)))
            await until(lambda: client.body == b"hello", "what there is has come")
            assert not client.is_complete
            (scripts / "go").touch()
            await asking
            assert client.is_complete

    run(main())


def test_nph(run: Runner, spawning: Any, scripts: Path) -> None:  # CGI-5-NPH, CGI-5-DIRECT
    """A whole response, by the script's name; what it says of the connection stays here."""
    head = "HTTP/1.0 402 Pay\\nContent-Type: text/plain\\nServer: mine\\nConnection: keep-alive\\n"
    write(
        scripts,
        f"#!/bin/sh\nprintf '{head}\\nhello'\nuntil [ -e go ]; do :; done\necho ' there'\n",
        "nph-slow",
    )
    write(
        scripts,
        "#!/bin/sh\nprintf 'HTTP/1.1 200 OK\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n'\n"
        "printf '5\\r\\nhello\\r\\n0\\r\\n\\r\\n'; cat\n",
        "nph-chunked",
    )
    write(scripts, "#!/bin/sh\nprintf 'Content-Type: text/plain\\n\\nhello'\n", "nph-none")
    write(
        scripts,
        "#!/bin/sh\nprintf 'HTTP/1.1 200 OK\\nContent-Length: 99\\n\\n'; head -c 98 /dev/zero\n",
        "nph-short",
    )
    write(scripts, "#!/bin/sh\nprintf 'HTTP/1.1 200 OK\\n\\nhell'; kill -9 $$\n", "nph-killed")

    async def main() -> None:
        async with spawning() as spawn:
            app = cgi(scripts, spawn=spawn)
            client = Client("/nph-slow")
            asking = asyncio.ensure_future(client.ask(app))
            await until(lambda: client.body == b"hello", "it is not kept back")
            (scripts / "go").touch()
            await asking
            assert client.body == b"hello there\n"
            assert client.starts[0]["status"] == 402
            assert client.fields == {b"content-type": b"text/plain", b"server": b"mine"}
            client = await Client("/nph-chunked", body=b"CGI-4.2-NPH").ask(app)
            assert (client.body, client.is_complete) == (b"hello", True)
            client = await Client("/nph-chunked", method="HEAD").ask(app)
            assert (client.body, client.is_complete) == (b"", True)
            with pytest.raises(BadGateway, match="status line"):
                await Client("/nph-none", is_under_gateway=True).ask(app)
            for broken, message in (("/nph-short", "connection ended"), ("/nph-killed", "SIGKILL")):
                with pytest.raises((BadGateway, Truncated), match=message):
                    await Client(broken, is_under_gateway=True).ask(app)

    run(main())


def test_head_of_a_script_that_never_ends(run: Runner, spawning: Any, scripts: Path) -> None:
    """What nobody wants is not read for long: the script is told by a closed pipe."""
    write(scripts, f"#!/bin/sh\necho $$ > pid\n{HEAD}while :; do echo more; done\n")
    write(
        scripts,
        f"#!/bin/sh\n{HEAD}head -c 500000 /dev/zero && echo all > written\n",
        "some",
    )

    async def main() -> None:
        async with spawning() as spawn:
            app = cgi(scripts, timeout_s=60, spawn=spawn)
            client = await Client(method="HEAD").ask(app)
            assert (client.status, client.body, client.is_complete) == (200, b"", True)
            pid = int((scripts / "pid").read_text())
            await until(lambda: is_dead(pid), "it has got SIGPIPE", 6)
            await Client("/some", method="HEAD").ask(app)
            await until((scripts / "written").exists, "a little is read to its end", 6)

    run(main())


def test_head_of_a_stream_that_dawdles(
    run: Runner, spawning: Any, scripts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However little it writes, and without any limit of time."""
    monkeypatch.setattr(child_output, "_UNWANTED_S", 0.2)
    write(scripts, f"#!/bin/sh\necho $$ > pid\n{HEAD}while :; do echo tick; sleep 0.05; done\n")

    async def main() -> None:
        async with spawning() as spawn:
            app = cgi(scripts, timeout_s=0, spawn=spawn)
            await Client(method="HEAD").ask(app)
            pid = int((scripts / "pid").read_text())
            await until(lambda: is_dead(pid), "it has got SIGPIPE", 6)

    run(main())


@pytest.mark.parametrize("is_head_sent", [False, True])
def test_idle(run: Runner, spawning: Any, scripts: Path, is_head_sent: bool) -> None:
    """CGI-6.1-TIMEOUT: a script that says nothing for too long is ended, whatever its time is."""
    head = f"{HEAD}for i in 1 2 3 4 5 6; do echo $i; sleep 0.1; done\n" if is_head_sent else ""
    write(scripts, f"#!/bin/sh\necho $$ > pid\n{head}exec sleep 60\n")

    async def main() -> None:
        async with spawning() as spawn:
            app = cgi(scripts, timeout_s=60, idle_timeout_s=0.4, kill_after_s=1, spawn=spawn)
            client = Client(is_under_gateway=True)
            started_at = time.monotonic()
            error = Truncated if is_head_sent else GatewayTimeout
            with pytest.raises(error, match=r"nothing for 0\.4 s"):
                await client.ask(app)
            assert time.monotonic() - started_at > (0.9 if is_head_sent else 0.35)
            assert client.body == (b"1\n2\n3\n4\n5\n6\n" if is_head_sent else b"")
            pid = int((scripts / "pid").read_text())
            await until(lambda: is_dead(pid), "it is ended", 4)

    run(main())


def test_a_reader_who_idles_is_not_the_script(run: Runner, spawning: Any, scripts: Path) -> None:
    write(scripts, f"#!/bin/sh\n{HEAD}head -c 300000 /dev/zero\n")

    async def main() -> None:
        async with spawning() as spawn:
            client = Client()
            client.reads.clear()
            app = cgi(scripts, idle_timeout_s=0.3, spawn=spawn)
            asking = asyncio.ensure_future(client.ask(app))
            await until(lambda: processes_in(scripts), "it runs")
            await asyncio.sleep(0.6)
            client.reads.set()
            await asking
            assert len(client.body) == 300000

    run(main())


@pytest.mark.parametrize("after", ["", "sleep 0.1", "exec >&- 2>&- ; sleep 0.1"])
def test_stderr_is_logged_whenever_it_comes(
    run: Runner, spawning: Any, scripts: Path, caplog: pytest.LogCaptureFixture, after: str
) -> None:
    write(scripts, f"#!/bin/sh\necho first >&2\n{HEAD}echo last >&2\n{after}\n")

    async def main() -> None:
        async with spawning() as spawn:
            app = cgi(scripts, spawn=spawn)
            await Client().ask(app)
            await until(lambda: not app._drains, "all is read")
            assert [record.getMessage() for record in caplog.records] == [
                "/cgi/script: first",
                "/cgi/script: last",
            ]

    with caplog.at_level(logging.WARNING):
        run(main())


# Languages


PERL = """#!/usr/bin/perl
use strict; use warnings;
my $body = '';
read(STDIN, $body, $ENV{CONTENT_LENGTH} // 0);
print "Status: 201 Created\\nContent-Type: text/plain\\n\\n", scalar reverse $body;
"""
SH = """#!/bin/sh
printf 'Status: 201 Created\\nContent-Type: text/plain\\n\\n'
rev
"""
PYTHON_REVERSE = f"""{PYTHON}import os, sys
body = sys.stdin.buffer.read(int(os.environ['CONTENT_LENGTH']))
sys.stdout.buffer.write(b'Status: 201 Created\\nContent-Type: text/plain\\n\\n' + body[::-1])
"""
C = r"""
#include <stdio.h>
#include <stdlib.h>
int main(void) {
    int n = atoi(getenv("CONTENT_LENGTH"));
    char *body = malloc(n);
    n = fread(body, 1, n, stdin);
    printf("Status: 201 Created\r\nContent-Type: text/plain\r\n\r\n");
    while (n--) putchar(body[n]);
    return 0;
}
"""


@pytest.mark.parametrize(
    "language",
    [
        "sh",
        "python",
        pytest.param("perl", marks=pytest.mark.interop),
        pytest.param("c", marks=pytest.mark.interop),
    ],
)
def test_languages(
    run: Runner, spawning: Any, scripts: Path, tmp_path: Path, language: str
) -> None:
    if language == "c":
        (tmp_path / "script.c").write_text(C)
        subprocess.run(["cc", "-o", scripts / "script", tmp_path / "script.c"], check=True)
    else:
        write(scripts, {"sh": SH, "perl": PERL, "python": PYTHON_REVERSE}[language])

    async def main() -> None:
        async with spawning() as spawn:
            client = await Client(body=b"0123456789").ask(cgi(scripts, spawn=spawn))
            assert (client.status, client.body) == (201, b"9876543210")

    run(main())


# Real servers


class UvicornServer:
    def __init__(self, app: CgiToAsgi, listener: socket.socket) -> None:
        config = uvicorn.Config(app, lifespan="on", log_level="critical", loop="uvloop")
        self._server = uvicorn.Server(config)
        self._listener = listener

    def run(self) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._server.serve(sockets=[self._listener]))

    def stop(self) -> None:
        self._server.should_exit = True


class HypercornServer:
    def __init__(self, app: CgiToAsgi, listener: socket.socket) -> None:
        self._config = hypercorn.config.Config()
        self._config.bind = [f"fd://{os.dup(listener.fileno())}"]
        self._config.errorlog = None
        self._config.graceful_timeout = 1
        self._app: Any = app
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None

    def run(self) -> None:
        async def main() -> None:
            self._loop = asyncio.get_running_loop()
            self._stopping = asyncio.Event()
            trigger: Callable[[], Awaitable[Any]] = self._stopping.wait
            await hypercorn.asyncio.serve(self._app, self._config, shutdown_trigger=trigger)

        asyncio.run(main())

    def stop(self) -> None:
        assert self._loop is not None
        assert self._stopping is not None
        self._loop.call_soon_threadsafe(self._stopping.set)


@contextlib.contextmanager
def serving(kind: str, app: CgiToAsgi) -> Iterator[int]:
    """Run a server in a thread; give its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        server = (
            UvicornServer(app, listener) if kind == "uvicorn" else HypercornServer(app, listener)
        )
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            yield port
        finally:
            server.stop()
            thread.join(DEADLINE_S)
            assert not thread.is_alive()


def test_its_lifespan_ends_with_nothing_open(run: Any, scripts: Path) -> None:
    write(scripts, f"#!/bin/sh\n{HEAD}echo ok\n")
    app = CgiToAsgi(scripts)
    said: list[str] = []

    async def receive() -> Any:
        if not said:
            return {"type": "lifespan.startup"}
        assert (await Client("/script").ask(app)).body == b"ok\n"
        return {"type": "lifespan.shutdown"}

    async def send(message: Any) -> None:
        said.append(message["type"])

    async def main() -> None:
        fds = len(os.listdir("/proc/self/fd"))
        await app({"type": "lifespan"}, receive, send)
        assert said == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
        assert len(os.listdir("/proc/self/fd")) == fds
        # Whoever asks later is answered all the same.
        assert (await Client("/script").ask(app)).body == b"ok\n"
        app.close()

    run(main())


@pytest.mark.parametrize("kind", ["uvicorn", "hypercorn"])
def test_under_a_foreign_server(kind: str, scripts: Path) -> None:
    write(scripts, f'#!/bin/sh\nprintf "X-Path: $SCRIPT_NAME:$PATH_INFO\\n"\n{HEAD}exec cat\n')
    write(scripts, "#!/bin/sh\nexit 0\n", "nothing")
    write(scripts, f"#!/bin/sh\n{HEAD}echo ok; head -c 100 /dev/zero; kill -KILL $$\n", "dies")
    write(scripts, f"#!/bin/sh\nsleep 60 & echo $! $$ > pids\n{HEAD}cat /dev/zero\n", "endless")
    body = os.urandom(3 * MIB)

    def ask(port: int, path: str, data: bytes | None = None) -> tuple[int, Any, bytes]:
        with contextlib.closing(
            http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE_S)
        ) as connection:
            connection.request("GET" if data is None else "POST", path, data)
            response = connection.getresponse()
            return response.status, response.headers, response.read()

    with serving(kind, CgiToAsgi(scripts)) as port:
        status, headers, answer = ask(port, "/script/a%20b", body)
        assert (status, headers["x-path"], answer) == (200, "/script:/a b", body)
        status, _, answer = ask(port, "/script")
        assert (status, answer) == (200, b"")
        assert ask(port, "/absent")[0] == 404
        assert ask(port, "/nothing")[0] == 502
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            ask(port, "/dies")

        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE_S)
        connection.request("GET", "/endless")
        response = connection.getresponse()
        assert len(response.read(MIB)) == MIB
        pids = [int(pid) for pid in (scripts / "pids").read_text().split()]
        response.close()
        connection.close()
        asyncio.run(until(lambda: all(map(is_dead, pids)), "the group is dead", 2))

"""FastCGI applications that the gateway starts, watches, replaces and ends."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tetrapylon.adapters.errors import BadGateway
from tetrapylon.gateway.backends.fastcgi import FastCgiBackend
from tetrapylon.gateway.managed import generation, listening_socket
from tetrapylon.gateway.managed.generation import SpawnFailure
from tetrapylon.gateway.spawn.client import Spawner
from tetrapylon.protocols.asgi import GATEWAY_EXTENSION, Message

WITHIN_S = 15.0
FLUP = [sys.executable, str(Path(__file__).parents[2] / "adapters" / "flup_application.py")]

T = TypeVar("T")
Run = Callable[[Coroutine[Any, Any, T]], T]


class Exchange:
    is_departed = False
    on_departure: Callable[[], None] | None = None


async def ask(backend: FastCgiBackend, path: str = "/mirror") -> tuple[int, bytes]:
    """Send a GET and return status and body."""
    messages: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        messages.append(message)

    scope = {
        "type": "http",
        "http_version": "1.1",
        "server": ("127.0.0.1", 80),
        "client": ("127.0.0.1", 50000),
        "method": "GET",
        "root_path": "/app",
        "path": f"/app{path}",
        "query_string": b"",
        "headers": [],
        "extensions": {GATEWAY_EXTENSION: Exchange()},
    }
    await backend(scope, receive, send)
    return messages[0]["status"], b"".join(message["body"] for message in messages[1:])


async def mirror(backend: FastCgiBackend) -> dict[str, Any]:
    status, body = await ask(backend)
    assert status == 200
    return json.loads(body)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not condition():
            await asyncio.sleep(0.01)


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.fixture(params=["helper", "threads"])
def has_helper(request: pytest.FixtureRequest) -> bool:
    return request.param == "helper"


@contextlib.asynccontextmanager
async def spawned(has_helper: bool = True, **options: Any) -> AsyncIterator[FastCgiBackend]:
    """Start the application, by the spawn helper or as where there is none."""
    async with contextlib.AsyncExitStack() as stack:
        if has_helper:
            options["spawner"] = await stack.enter_async_context(Spawner())
        backend = FastCgiBackend("app", **{"spawn": FLUP, **options})
        async with backend:
            pids = backend.pids
            yield backend
            pids = [*pids, *backend.pids]
        # Nothing is left, neither process nor zombie.
        assert not backend.pids
        assert all(map(is_gone, pids))


def test_an_application_that_the_gateway_starts(
    run: Run[Any], tmp_path: Path, has_helper: bool
) -> None:
    # FCGI-2.2-LISTENSOCK, FCGI-2.2-CLOSED
    async def main() -> None:
        async with spawned(has_helper, cwd=tmp_path, env={"COLOUR": "blue"}) as backend:
            answer = await mirror(backend)
            assert answer["environ"]["SCRIPT_NAME"] == "/app"
            assert answer["environ"]["PATH_INFO"] == "/mirror"
            assert answer["stdin_is_socket"]
            assert answer["cwd"] == str(tmp_path)
            assert [answer["pid"]] == backend.pids
            assert answer["group"] == answer["session"] == answer["pid"]
            assert backend.describe() == f"FastCGI by {' '.join(FLUP)}"

    run(main())


def private_path(backend: FastCgiBackend) -> Path:
    return Path(str(backend._app.connections.addresses[0]).removeprefix("unix:"))


def test_the_socket_is_private_and_nowhere_in_the_file_system(
    run: Run[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    async def main() -> None:
        async with spawned() as backend:
            path = private_path(backend)
            assert path.is_socket()
            assert path.stat().st_mode & 0o777 == 0o600
            assert not os.listdir(tmp_path)

    run(main())


def test_where_sockets_are_found_by_name_alone(
    run: Run[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening_socket, "_DESCRIPTORS", "/nonexistent")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    async def main() -> None:
        async with spawned() as backend:
            path = private_path(backend)
            assert path.is_socket()
            assert path.stat().st_mode & 0o777 == 0o600
            assert path.parent.stat().st_mode & 0o777 == 0o700
            assert path.is_relative_to(tmp_path)
        assert not os.listdir(tmp_path)

    run(main())


def test_a_given_address(run: Run[Any], tmp_path: Path) -> None:
    async def main() -> None:
        directory = os.path.relpath(tmp_path) if len(str(tmp_path)) > 80 else str(tmp_path)
        path = os.path.join(directory, "app")
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(path)  # of a run that ended badly
        async with spawned(address=f"unix:{path}") as backend:
            assert await mirror(backend)
            with pytest.raises(SpawnFailure, match="Address already in use"):
                async with FastCgiBackend("other", address=f"unix:{path}", spawn=FLUP):
                    pass
            assert await mirror(backend)
        assert not os.path.exists(path)
        Path(path).write_text("not a socket")
        with pytest.raises(SpawnFailure, match="Address already in use"):
            async with FastCgiBackend("other", address=f"unix:{path}", spawn=FLUP):
                pass
        assert Path(path).read_text() == "not a socket"

    run(main())


def test_a_given_tcp_address(run: Run[Any]) -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        async with spawned(address=f"127.0.0.1:{port}") as backend:
            assert (await mirror(backend))["pid"] in backend.pids

    run(main())


def test_a_killed_process_is_replaced(
    run: Run[Any], caplog: pytest.LogCaptureFixture, has_helper: bool
) -> None:
    async def main() -> None:
        async with spawned(has_helper, processes=2) as backend:
            first = backend.pids
            assert len(first) == 2
            began_at = time.monotonic()
            os.kill(first[0], signal.SIGKILL)
            await until(lambda: is_gone(first[0]))
            # The socket stays: requests are answered, by whom is left or comes.
            assert (await mirror(backend))["pid"] != first[0]
            await until(lambda: len(backend.pids) == 2)
            assert time.monotonic() - began_at < 5
            assert first[1] in backend.pids
            for pid in backend.pids:
                os.kill(pid, signal.SIGKILL)
            answers = await asyncio.gather(*(mirror(backend) for _ in range(5)))
            assert all(answer["pid"] not in first for answer in answers)

    run(main())
    assert "app: was killed by SIGKILL; started again in 0.1 s" in caplog.messages


@pytest.mark.parametrize("is_absent", [True, False])
def test_without_a_descriptor_for_a_process(
    run: Run[Any], monkeypatch: pytest.MonkeyPatch, is_absent: bool
) -> None:
    def refuse(pid: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async def main() -> None:
        async with spawned(has_helper=False) as backend:
            (first,) = backend.pids
            os.kill(first, signal.SIGKILL)
            await until(lambda: backend.pids not in ([first], []))
            (second,) = backend.pids
            assert (await mirror(backend))["pid"] == second
        assert is_gone(second)

    if is_absent:
        monkeypatch.delattr(os, "pidfd_open", raising=False)
    else:
        monkeypatch.setattr(os, "pidfd_open", refuse, raising=False)
    run(main())


def test_one_that_keeps_ending_is_started_less_and_less_often(
    run: Run[Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "app.py").write_text(
        "import os, socket\n"
        "listener = socket.socket(fileno=0)\n"
        "with open('starts', 'a') as file: print(os.getpid(), file=file)\n"
        "if len(open('starts').readlines()) > 1: raise SystemExit(7)\n"
        "listener.accept()[0].close()\n"
        "listener.accept()\n"
        "raise SystemExit(7)\n"
    )

    async def main() -> None:
        command = [sys.executable, "app.py"]
        async with spawned(spawn=command, cwd=tmp_path, backoff_s=0.02) as backend:
            os.kill(backend.pids[0], signal.SIGTERM)
            await until(lambda: any("again in 0.16 s" in text for text in caplog.messages))

    run(main())
    waits = [text.rpartition(" in ")[2] for text in caplog.messages if "started again" in text]
    assert waits[:4] == ["0.02 s", "0.04 s", "0.08 s", "0.16 s"]
    assert "app: exited with 7; started again in 0.04 s" in caplog.messages


def test_what_it_says_goes_to_the_log(
    run: Run[Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "app.py").write_text(
        "import runpy, sys\n"
        "print('to stdout \\x1b[2J', flush=True)\n"
        "print('x' * 10000 + '\\rto stderr', file=sys.stderr)\n"
        f"sys.argv = ['flup']; runpy.run_path({FLUP[1]!r}, run_name='__main__')\n"
    )

    async def main() -> None:
        async with spawned(spawn=[sys.executable, "app.py"], cwd=tmp_path) as backend:
            await mirror(backend)
            await until(lambda: any("to stderr" in text for text in caplog.messages))

    run(main())
    assert any(text.endswith("to stdout \\x1b[2J") for text in caplog.messages)
    assert all(len(text) < 5000 and text.isprintable() for text in caplog.messages)


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        (["/nonexistent/app", "x"], {}, "cannot run '/nonexistent/app': there is no such program"),
        ([sys.executable], {"cwd": "/nonexistent"}, "cannot enter the directory '/nonexistent'"),
        (["/"], {}, "permission denied"),
        (
            [sys.executable, "-c", "import no_such_module"],
            {},
            "No module named 'no_such_module'",
        ),
        ([sys.executable, "-c", "raise SystemExit(3)"], {}, "exited with 3 at its start"),
        ([sys.executable, "-c", "import os; os.abort()"], {"processes": 2}, "killed by SIGABRT"),
    ],
)
def test_one_that_does_not_start_stops_the_start(
    run: Run[Any], command: list[str], options: dict[str, Any], message: str, has_helper: bool
) -> None:
    async def main() -> None:
        with pytest.raises(SpawnFailure) as caught:
            async with spawned(has_helper, spawn=command, **options):
                pass
        assert message in str(caught.value)
        assert str(caught.value).startswith("app: ")

    run(main())


def test_a_socket_that_cannot_be_reached_stops_the_start(
    run: Run[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: object, **__: object) -> None:
        raise BadGateway("cannot connect to unix:x: No such file or directory")

    async def main() -> None:
        monkeypatch.setattr(generation, "connect", refuse)
        with pytest.raises(SpawnFailure, match="cannot connect"):
            async with spawned():
                pass

    run(main())


STUBBORN = """
import os, signal, socket, subprocess, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
with open("pids", "w") as file: print(os.getpid(), child.pid, file=file)
listener = socket.socket(fileno=0)
while True: listener.accept()[0].close()
"""


def test_one_that_ignores_sigterm_is_killed_with_its_group(
    run: Run[Any], tmp_path: Path, has_helper: bool
) -> None:
    async def main() -> None:
        command = [sys.executable, "-c", STUBBORN]
        async with spawned(has_helper, spawn=command, cwd=tmp_path, kill_after_s=0.3):
            pids = [int(text) for text in (tmp_path / "pids").read_text().split()]
            began_at = time.monotonic()
        assert time.monotonic() - began_at < 5
        await until(lambda: all(map(is_gone_or_zombie, pids)))

    run(main())


def is_gone_or_zombie(pid: int) -> bool:
    """Tell so of a grandchild, which is init's to reap."""
    return state(pid) in ("", "Z")


def state(pid: int) -> str:
    """Return a process's state as proc_pid_stat(5) has it, "" if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except OSError:
        return ""


POLITE = """
import signal, socket
ending = []
signal.signal(signal.SIGTERM, lambda *_: ending.append(True))
listener = socket.socket(fileno=0)
with open("ready", "a") as file: print(file=file)
while not ending: listener.accept()[0].close()
"""


def test_processes_that_sit_in_accept_end_at_once(
    run: Run[Any], tmp_path: Path, has_helper: bool
) -> None:
    # As flup may: they take note of SIGTERM, and see to it when accept() returns.
    async def main() -> None:
        command = [sys.executable, "-c", POLITE]
        async with spawned(
            has_helper, spawn=command, cwd=tmp_path, processes=3, kill_after_s=WITHIN_S
        ) as backend:
            await until(lambda: (tmp_path / "ready").read_text() == "\n" * 3)
            await until(lambda: all(state(pid) == "S" for pid in backend.pids))
            began_at = time.monotonic()
        assert time.monotonic() - began_at < WITHIN_S / 2

    run(main())


def test_cancelling_the_start_leaves_nothing(run: Run[Any], tmp_path: Path) -> None:
    silent = "import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(600)"

    async def main() -> None:
        backend = FastCgiBackend("app", spawn=[sys.executable, "-c", silent], cwd=tmp_path)
        starting = asyncio.create_task(backend.__aenter__())
        await until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text() != "")
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert is_gone(int((tmp_path / "pid").read_text()))

    run(main())


def test_connections_by_default() -> None:
    def limit(backend: FastCgiBackend) -> int:
        return backend._app.connections.limit

    assert limit(FastCgiBackend("a", address="a:1")) == 32
    assert limit(FastCgiBackend("a", spawn=["x"], processes=2)) == 32
    assert limit(FastCgiBackend("a", spawn=["x"], processes=2, keep_alive=True)) == 2


def test_what_cannot_be_configured() -> None:
    with pytest.raises(ValueError, match="an address, or a command"):
        FastCgiBackend("a")
    with pytest.raises(ValueError, match="is not an address"):
        FastCgiBackend("a", address="nowhere")


def test_describe() -> None:
    backend = FastCgiBackend("a", address="unix:/run/php.sock", root="/srv/blog")
    assert backend.describe() == "FastCGI at unix:/run/php.sock, scripts in /srv/blog"


def test_it_is_quiet_when_all_is_well(run: Run[Any], caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with spawned(processes=2) as backend:
            await mirror(backend)

    with caplog.at_level(logging.INFO):
        run(main())
    assert [text for text in caplog.messages if "selector" not in text] == []

"""Managed applications: exchanged without a lost request, asleep until called, of any user."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import pwd
import shutil
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tetrapylon.adapters.errors import BackendError
from tetrapylon.gateway.backends.fastcgi import FastCgiBackend
from tetrapylon.gateway.managed import application, listening_socket
from tetrapylon.gateway.managed.generation import SpawnFailure
from tetrapylon.gateway.spawn.client import Spawner
from tetrapylon.protocols.asgi import GATEWAY_EXTENSION, Message

WITHIN_S = 15.0
RESPONDER = str(Path(__file__).with_name("responder.py"))
FLUP = [sys.executable, str(Path(__file__).parents[2] / "adapters" / "flup_application.py")]
MULTIPLEXED = f"""
import sys
sys.path.insert(0, {os.path.dirname(FLUP[1])!r})
from flup_application import application
from flup.server.fcgi import WSGIServer
WSGIServer(application, multiplexed=True, maxSpare=4).run()
"""
NOBODY = pwd.getpwnam("nobody")

# It takes its time to end: a line for each.
SLOW_TO_END = """
import signal, socket, sys, time
def on_term(*_):
    time.sleep(0.4)
    open(sys.argv[1], "a").write("done\\n")
    sys.exit()
signal.signal(signal.SIGTERM, on_term)
listener = socket.socket(fileno=0)
while True:
    listener.accept()[0].close()
"""

T = TypeVar("T")
Run = Callable[[Coroutine[Any, Any, T]], T]


class Exchange:
    is_departed = False
    on_departure: Callable[[], None] | None = None


async def ask(backend: FastCgiBackend, query: str = "", path: str = "/mirror") -> dict[str, Any]:
    """Send a GET and return the facts."""
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
        "root_path": "",
        "path": path,
        "query_string": query.encode(),
        "headers": [],
        "extensions": {GATEWAY_EXTENSION: Exchange()},
    }
    await backend(scope, receive, send)
    assert messages[0]["status"] == 200
    return json.loads(b"".join(message["body"] for message in messages[1:]))


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not condition():
            await asyncio.sleep(0.01)


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def is_dead(pid: int) -> bool:
    """Tell so of a process whose parent has died, and which init may not have reaped yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] == "Z"
    except OSError:
        return True


async def gone(*pids: int) -> None:
    await until(lambda: all(map(is_gone, pids)))


async def exchanged(backend: FastCgiBackend, *pids: int) -> None:
    """Wait until other processes have taken over from these."""
    await until(lambda: backend.pids and not set(pids) & set(backend.pids))


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch, first_loop: None) -> None:
    monkeypatch.setattr(application, "_LOOK_S", 0.02)
    monkeypatch.setattr(application, "_MEMORY_LOOK_S", 0.02)
    monkeypatch.setattr(application, "_FIRST_RETRY_S", 0.02)


@contextlib.asynccontextmanager
async def running(
    *arguments: str | os.PathLike[str], has_helper: bool = True, **options: Any
) -> AsyncIterator[FastCgiBackend]:
    """Run the responder; in the end, nothing of it is left."""
    fds = len(os.listdir("/dev/fd"))
    async with contextlib.AsyncExitStack() as stack:
        if has_helper and Spawner.is_supported():
            options["spawner"] = await stack.enter_async_context(Spawner())
        command = [sys.executable, "-IS", RESPONDER, *map(os.fspath, arguments)]
        backend = FastCgiBackend("app", **{"spawn": command, **options})
        async with backend:
            yield backend
            pids = backend.pids
        assert not backend.pids
        await gone(*pids)
    await until(lambda: len(os.listdir("/dev/fd")) <= fds)


class Crowd:
    """Clients that ask one request after another, until all are told to stop."""

    def __init__(self, backend: FastCgiBackend, clients: int = 8, query: str = "") -> None:
        self.backend = backend
        self.query = query
        self.answers: list[dict[str, Any]] = []
        self.failures: list[BaseException] = []
        self.is_over = False
        self.clients = clients
        self.tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Crowd:
        self.tasks = [asyncio.create_task(self.come_again()) for _ in range(self.clients)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self.is_over = True
        await asyncio.gather(*self.tasks)

    async def come_again(self) -> None:
        while not self.is_over:
            try:
                self.answers.append(await ask(self.backend, self.query))
            except BackendError as error:
                self.failures.append(error)
            await asyncio.sleep(0)

    async def more(self, count: int) -> None:
        """Wait for so many more answers."""
        count += len(self.answers)
        await until(lambda: len(self.answers) > count)

    async def met(self, version: str) -> None:
        """Wait until this version has answered."""
        await until(lambda: version in self.versions)

    @property
    def versions(self) -> list[str]:
        """The versions that have answered, in the order of their first answer."""
        return list(dict.fromkeys(answer["version"] for answer in self.answers))

    @property
    def pids(self) -> list[int]:
        return list(dict.fromkeys(answer["pid"] for answer in self.answers))


# Exchanges


def test_touching_the_file_restarts_without_a_lost_request(run: Run[Any], tmp_path: Path) -> None:
    touched = tmp_path / "reload"

    async def main() -> None:
        async with running(processes=2, touch_reload=str(touched)) as backend:
            async with Crowd(backend, query="sleep=0.003") as crowd:
                for _ in range(5):
                    pids = backend.pids
                    touched.touch()
                    await exchanged(backend, *pids)
                    await gone(*pids)
                await crowd.more(16)
            assert not crowd.failures
            assert len(crowd.answers) > 100
            assert len(crowd.pids) >= 6

    run(main())


def test_a_changed_file_of_the_command_restarts(
    run: Run[Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    version = tmp_path / "version"
    version.write_text("1")

    async def main() -> None:
        async with running(version, restart_on_change=(), cwd=tmp_path) as backend:
            async with Crowd(backend) as crowd:
                for number in range(2, 5):
                    (tmp_path / "new").write_text(str(number))
                    os.replace(tmp_path / "new", version)
                    await crowd.met(str(number))
            assert crowd.versions == ["1", "2", "3", "4"]
            assert not crowd.failures

    with caplog.at_level(logging.INFO):
        run(main())
    assert f"app: restarted: {version} has changed" in caplog.messages


def test_a_changed_program_restarts(run: Run[Any], tmp_path: Path) -> None:
    program = tmp_path / "program"

    def install(version: str) -> None:
        text = Path(RESPONDER).read_text().replace('VERSION = ""', f'VERSION = "{version}"')
        (tmp_path / "new").write_text(f"#!{sys.executable} -IS\n{text}")
        (tmp_path / "new").chmod(0o755)
        os.replace(tmp_path / "new", program)

    async def main() -> None:
        install("one")
        async with running(spawn=[str(program)], restart_on_change=()) as backend:
            async with Crowd(backend) as crowd:
                await crowd.met("one")
                install("two")
                await crowd.met("two")
            assert not crowd.failures

    run(main())


def test_a_listed_folder_restarts_whatever_changes_in_it(run: Run[Any], tmp_path: Path) -> None:
    (tmp_path / "lib" / "deep").mkdir(parents=True)
    (tmp_path / "lib" / "deep" / "module").write_text("1")

    async def main() -> None:
        async with running(restart_on_change=[str(tmp_path / "lib")]) as backend:
            for text in ("22", "333"):
                (pid,) = backend.pids
                (tmp_path / "lib" / "deep" / "module").write_text(text)
                await exchanged(backend, pid)
            (pid,) = backend.pids
            (tmp_path / "lib" / "new").write_text("")
            await exchanged(backend, pid)
            (pid,) = backend.pids
            (tmp_path / "lib" / ".new.swp").write_text("")
            (tmp_path / "lib" / "new").unlink()
            (tmp_path / "lib" / "deep" / "module").unlink()
            await asyncio.sleep(0.2)
            assert backend.pids == [pid]

    run(main())


def test_the_file_to_touch_needs_no_rest_of_others(run: Run[Any], tmp_path: Path) -> None:
    touched, busy = tmp_path / "reload", tmp_path / "busy"

    async def write_on() -> None:
        size = 0
        while True:
            size += 1
            busy.write_text("x" * size)
            await asyncio.sleep(0.001)

    async def main() -> None:
        async with running(restart_on_change=[str(busy)], touch_reload=str(touched)) as backend:
            writing = asyncio.create_task(write_on())
            (pid,) = backend.pids
            await asyncio.sleep(0.1)
            assert backend.pids == [pid]
            touched.touch()
            await exchanged(backend, pid)
            writing.cancel()

    run(main())


def test_an_exchange_that_fails_half_way_is_taken_up_again(
    run: Run[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    touched = tmp_path / "reload"
    started = application.ManagedApplication._started_successor
    attempts = 0

    async def started_mostly(self: Any, old: Any) -> Any:
        nonlocal attempts
        attempts += 1
        if attempts in (2, 3):
            raise SpawnFailure("it has a bad day")
        return await started(self, old)

    monkeypatch.setattr(application.ManagedApplication, "_started_successor", started_mostly)

    async def main() -> None:
        async with running(
            processes=3, connections=3, max_requests=100_000, touch_reload=str(touched)
        ) as backend:
            pids = backend.pids
            touched.touch()
            await until(lambda: len(backend.pids) == 3 and not set(pids) & set(backend.pids))

    run(main())
    assert attempts == 5
    assert caplog.text.count("not restarted") == 2


def test_what_does_not_start_changes_nothing(
    run: Run[Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    version = tmp_path / "version"
    version.write_text("good")

    async def main() -> None:
        async with running(version, processes=2, restart_on_change=()) as backend:
            pids = backend.pids
            async with Crowd(backend, query="sleep=0.003") as crowd:
                await until(lambda: len(crowd.pids) == 2)
                version.write_text("broken")
                await until(lambda: "not restarted" in caplog.text)
                await crowd.more(16)
                assert sorted(backend.pids) == sorted(pids)
                version.write_text("good again")
                await crowd.met("good again")
            assert crowd.versions == ["good", "good again"]
            assert not crowd.failures

    run(main())
    (said,) = (text for text in caplog.messages if "not restarted" in text)
    assert said.startswith(f"not restarted ({version} has changed), what ran goes on: app: ")
    assert "exited with 4 at its start; its last lines:\n  I cannot start like that" in said


def test_a_request_that_lasts_is_waited_for(run: Run[Any], tmp_path: Path) -> None:
    touched = tmp_path / "reload"

    async def main() -> None:
        async with running(touch_reload=str(touched)) as backend:
            (first,) = backend.pids
            slow = asyncio.create_task(ask(backend, "sleep=0.7"))
            await until(lambda: backend._app.connections.slots.taken)
            touched.touch()
            await exchanged(backend, first)
            # The new ones answer meanwhile.
            assert (await ask(backend))["pid"] == backend.pids[0]
            assert not slow.done()
            assert (await slow)["pid"] == first
            await gone(first)

    run(main())


def test_a_request_that_lasts_too_long_is_cut(
    run: Run[Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touched = tmp_path / "reload"

    async def main() -> None:
        async with running(touch_reload=str(touched), graceful_s=0.2, kill_after_s=0.2) as backend:
            (first,) = backend.pids
            endless = asyncio.create_task(ask(backend, "sleep=600"))
            await until(lambda: backend._app.connections.slots.taken)
            touched.touch()
            with pytest.raises(BackendError):
                await endless
            await gone(first)

    run(main())
    assert "are cut: the processes that answer them were replaced" in caplog.text


@pytest.mark.parametrize("connections", [None, 3])
def test_processes_are_replaced_after_so_many_requests(
    run: Run[Any], connections: int | None
) -> None:
    async def main() -> None:
        async with running(processes=3, max_requests=20, connections=connections) as backend:
            most = 0
            async with Crowd(backend, clients=6, query="sleep=0.01") as crowd:
                while len(crowd.pids) < 15:
                    most = max(most, len(backend.pids) + len(backend._managed._retired))
                    await asyncio.sleep(0.005)
            assert not crowd.failures
            most_each = max(answer["count"] for answer in crowd.answers)
            # A share is not exact, and what comes while the new ones start counts, too.
            assert 20 <= most_each < 300
            if connections:
                # One after the other: there is never more than one beside the three.
                assert most <= 4

    run(main())


def test_they_are_replaced_though_one_that_was_to_follow_did_not_start(
    run: Run[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # So long that they are due again before the next try may be.
    monkeypatch.setattr(application, "_FIRST_RETRY_S", 1.0)
    version = tmp_path / "version"
    version.write_text("good")

    async def main() -> None:
        async with running(version, max_requests=10) as backend:
            (first,) = backend.pids
            version.write_text("broken")
            for _ in range(10):
                await ask(backend)
            await until(lambda: "not restarted (10 requests)" in caplog.text)
            version.write_text("mended")
            for _ in range(12):
                assert (await ask(backend))["pid"] == first
            await exchanged(backend, first)
            assert (await ask(backend))["version"] == "mended"

    run(main())


def test_one_that_holds_too_much_memory_is_replaced(
    run: Run[Any], caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with running(max_memory_bytes=100 << 20) as backend:
            first = (await ask(backend, "hold=10"))["pid"]
            async with Crowd(backend, clients=2) as crowd:
                await ask(backend, "hold=150")
                await until(lambda: crowd.pids and crowd.pids[-1] != first)
            assert not crowd.failures
            assert len(crowd.pids) == 2
            await gone(first)

    with caplog.at_level(logging.INFO):
        run(main())
    assert any("restarted: process" in text and "MiB" in text for text in caplog.messages)


def test_kept_connections_are_no_reason_to_wait(run: Run[Any], tmp_path: Path) -> None:
    touched = tmp_path / "reload"

    async def main() -> None:
        async with running(
            spawn=FLUP, keep_alive=True, idle_s=600, touch_reload=str(touched)
        ) as backend:
            first = (await ask(backend))["pid"]
            touched.touch()
            await exchanged(backend, first)
            assert (await ask(backend))["pid"] != first
            await gone(first)

    run(main())


@pytest.mark.parametrize("is_idle", [False, True])
def test_shared_connections_are_no_reason_to_wait(
    run: Run[Any], tmp_path: Path, is_idle: bool
) -> None:
    touched = tmp_path / "reload"
    command = [sys.executable, "-c", MULTIPLEXED]

    async def main() -> None:
        async with running(
            spawn=command, multiplex=8, idle_s=600, touch_reload=str(touched)
        ) as backend:
            async with Crowd(backend) as crowd:
                first = (await ask(backend))["pid"]
                crowd.is_over = is_idle
                for _ in range(2):
                    (old,) = backend.pids
                    touched.touch()
                    await exchanged(backend, old)
                    await gone(old)
                    assert (await ask(backend))["pid"] != old
                crowd.is_over = True
            assert not crowd.failures
            assert crowd.pids[0] == first

    run(main())


@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_a_given_address_is_taken_over(run: Run[Any], tmp_path: Path, kind: str) -> None:
    touched = tmp_path / "reload"
    if kind == "tcp":
        with socket.create_server(("127.0.0.1", 0)) as free:
            address = f"127.0.0.1:{free.getsockname()[1]}"
    else:
        folder = tmp_path if len(str(tmp_path)) < 80 else Path(os.path.relpath(tmp_path))
        address = f"unix:{folder}/app"

    async def main() -> None:
        async with running(address=address, touch_reload=str(touched)) as backend:
            outsider = FastCgiBackend("outsider", address=address)
            for _ in range(2):
                (first,) = backend.pids
                assert (await ask(outsider))["pid"] == first
                touched.touch()
                await exchanged(backend, first)
                await gone(first)
                (second,) = backend.pids
                assert (await ask(outsider))["pid"] == second
                assert (await ask(backend))["pid"] == second
            if kind == "unix":
                assert sorted(os.listdir(tmp_path)) == ["app", "reload"]
        if kind == "unix":
            assert os.listdir(tmp_path) == ["reload"]

    run(main())


# Sleep


def test_it_starts_on_demand_and_sleeps_when_idle(
    run: Run[Any], caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with running(starts_on_demand=True, processes=2, stop_idle_s=0.1) as backend:
            assert not backend.pids
            answers = await asyncio.gather(*(ask(backend) for _ in range(4)))
            pids = backend.pids
            assert {answer["pid"] for answer in answers} <= set(pids)
            await until(lambda: not backend.pids)
            await gone(*pids)
            assert (await ask(backend))["pid"] not in pids
            # As long as a request is being answered, it is not idle.
            assert (await ask(backend, "sleep=0.4"))["pid"] in backend.pids

    with caplog.at_level(logging.INFO):
        run(main())
    assert "app: started: a request has come" in caplog.messages
    assert "app: stopped: idle for 0.1 s" in caplog.messages


def test_no_request_is_lost_to_falling_asleep(run: Run[Any]) -> None:
    async def main() -> None:
        async with running(stop_idle_s=0.02) as backend:
            pids = set()
            for number in range(30):
                pids.add((await ask(backend))["pid"])
                await asyncio.sleep(0.018 + number / 3000)
            assert len(pids) >= 3

    run(main())


def test_what_is_changed_while_it_sleeps(run: Run[Any], tmp_path: Path) -> None:
    version = tmp_path / "version"
    version.write_text("1")

    async def main() -> None:
        async with running(version, starts_on_demand=True, restart_on_change=()) as backend:
            version.write_text("2")
            pids = {(await ask(backend))["pid"] for _ in range(20)}
            assert len(pids) == 1
            assert (await ask(backend))["version"] == "2"

    run(main())


def test_at_an_address_of_its_own_it_stays_asleep(
    run: Run[Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    # Time for a knock, which would stay in the backlog and wake it.
    command = [sys.executable, "-IS", "-c", SLOW_TO_END, str(tmp_path / "done")]

    async def main() -> None:
        async with running(spawn=command, address=address, stop_idle_s=0.05) as backend:
            await until(lambda: not backend.pids)
            await until(lambda: not backend._managed._retired)
            assert backend._managed._is_asleep
            assert not backend._managed._is_called

    with caplog.at_level(logging.INFO):
        run(main())
    assert caplog.messages.count("app: stopped: idle for 0.05 s") == 1


def test_a_successor_that_cannot_take_over_leaves_nothing(
    run: Run[Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(_: object) -> None:
        raise PermissionError(13, "not today")

    monkeypatch.setattr(listening_socket._Unix, "take_over", fail)
    folder = tmp_path if len(str(tmp_path)) < 80 else Path(os.path.relpath(tmp_path))

    async def main() -> None:
        async with running(address=f"unix:{folder}/app", stop_idle_s=0.05) as backend:
            fds = len(os.listdir("/dev/fd"))
            await until(lambda: caplog.text.count("not today") > 2)
            assert len(os.listdir("/dev/fd")) == fds
            assert os.listdir(tmp_path) == ["app"]
            assert (await ask(backend))["pid"] in backend.pids

    run(main())


@pytest.mark.parametrize("processes", [1, 4])
def test_a_request_that_ends_its_process_costs_no_other_that_waited_for_the_start(
    run: Run[Any], processes: int
) -> None:
    async def main() -> None:
        async with running(starts_on_demand=True, processes=processes) as backend:
            answers = await asyncio.gather(
                ask(backend, "exit=1"),
                *(ask(backend, "sleep=0.05") for _ in range(8)),
                return_exceptions=True,
            )
            fatal, *others = answers
            assert isinstance(fatal, BackendError)
            assert all(isinstance(each, dict) for each in others), others
            await until(lambda: len(backend.pids) == processes)

    run(main())


@pytest.mark.parametrize("kind", ["private", "tcp"])
def test_one_that_does_not_start_on_demand_keeps_nobody_waiting(
    run: Run[Any], tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    version = tmp_path / "version"
    version.write_text("broken")
    address = None
    if kind == "tcp":
        with socket.create_server(("127.0.0.1", 0)) as free:
            address = f"127.0.0.1:{free.getsockname()[1]}"

    async def main() -> None:
        async with running(version, starts_on_demand=True, address=address) as backend:
            began_at = time.monotonic()
            for _ in range(3):
                with pytest.raises(BackendError):
                    await ask(backend)
            assert time.monotonic() - began_at < 5
            version.write_text("mended")
            async with asyncio.timeout(WITHIN_S):
                while True:
                    with contextlib.suppress(BackendError):
                        assert (await ask(backend))["version"] == "mended"
                        break

    run(main())
    assert "exited with 4 at its start" in caplog.text


# Faults


def test_one_that_retires_soon_is_started_at_once(run: Run[Any]) -> None:
    # As php-cgi after so many requests, however quick they were.
    async def main() -> None:
        async with running(backoff_s=WITHIN_S) as backend, asyncio.timeout(WITHIN_S / 2):
            facts = [await ask(backend, "leave=0") for _ in range(8)]
            assert len({fact["pid"] for fact in facts}) == 8

    run(main())


def test_a_killed_process_costs_what_it_had_in_hand(run: Run[Any]) -> None:
    # F2
    async def main() -> None:
        async with running(processes=4) as backend:
            async with Crowd(backend, clients=8, query="sleep=0.002") as crowd:
                for _ in range(5):
                    await crowd.more(40)
                    await until(lambda: len(backend.pids) == 4)
                    os.kill(backend.pids[0], signal.SIGKILL)
            assert len(crowd.failures) <= 5
            assert len(crowd.answers) > 200

    run(main())


def test_a_helper_that_dies_takes_the_processes_and_they_come_again(run: Run[Any]) -> None:
    async def main() -> None:
        async with running(processes=2) as backend:
            pids = backend.pids
            os.kill(backend._managed._spawner.helper_pids()[0], signal.SIGKILL)
            await until(lambda: all(map(is_dead, pids)))
            assert (await ask(backend))["pid"] not in pids
            await until(lambda: len(backend.pids) == 2)

    run(main())


def test_the_helper_s_death_is_not_held_against_the_processes(
    run: Run[Any], caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        if not Spawner.is_supported():
            pytest.skip("there is no helper on this system")
        async with running(backoff_s=0.03) as backend:
            for _ in range(4):
                (pid,) = backend.pids
                os.kill(backend._managed._spawner.helper_pids()[0], signal.SIGKILL)
                await exchanged(backend, pid)
            assert (await ask(backend))["pid"] == backend.pids[0]

    run(main())
    ends = [text for text in caplog.messages if text.startswith("app: was killed by SIGKILL")]
    assert len(ends) == 4
    assert all(text.endswith("; started again in 0.03 s") for text in ends)


def test_where_each_has_its_own_socket_the_others_stand_in_for_a_dead_one(run: Run[Any]) -> None:
    async def main() -> None:
        async with running(
            processes=3, connections=3, max_requests=100_000, backoff_s=0.8
        ) as backend:
            assert len(backend._app.connections.addresses) == 3
            async with Crowd(backend, clients=3, query="sleep=0.002") as crowd:
                await crowd.more(20)
                dead = backend.pids[0]
                os.kill(dead, signal.SIGKILL)
                await until(lambda: len(backend.pids) == 2)
                seen = len(crowd.answers)
                await crowd.more(50)
                assert len(backend.pids) == 2
                assert {answer["pid"] for answer in crowd.answers[seen:]} == set(backend.pids)
                await until(lambda: len(backend.pids) == 3)
                seen = len(crowd.answers)
                await until(lambda: len({each["pid"] for each in crowd.answers[seen:]}) == 3)
            assert len(crowd.failures) <= 1

    run(main())


def test_one_that_retires_is_started_again_at_once(
    run: Run[Any], caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with running(backoff_s=0.05) as backend:
            for _ in range(3):
                (pid,) = backend.pids
                await asyncio.sleep(0.1)
                with pytest.raises(BackendError):
                    await ask(backend, "exit=0")
                await exchanged(backend, pid)
            assert (await ask(backend))["count"] == 1

    with caplog.at_level(logging.INFO):
        run(main())
    assert caplog.messages.count("app: exited with 0; started again") == 3
    assert "started again in" not in caplog.text


# The end


def test_the_end_waits_for_what_ends(run: Run[Any], tmp_path: Path) -> None:
    touched, done = tmp_path / "reload", tmp_path / "done"
    command = [sys.executable, "-IS", "-c", SLOW_TO_END, str(done)]

    async def main() -> None:
        async with running(spawn=command, touch_reload=str(touched)) as backend:
            touched.touch()
            await until(lambda: any(each.is_ending for each in backend._managed._retired))
        assert done.read_text() == "done\n" * 2

    run(main())


@pytest.mark.parametrize("has_helper", [True, False])
def test_an_end_that_is_cancelled_does_not_wait(run: Run[Any], has_helper: bool) -> None:
    # S6
    # One that accepts: until then it has not started.
    program = SLOW_TO_END.replace("on_term)", "signal.SIG_IGN)")

    async def main() -> None:
        async with contextlib.AsyncExitStack() as stack:
            spawner = None
            if has_helper and Spawner.is_supported():
                spawner = await stack.enter_async_context(Spawner())
            command = [sys.executable, "-IS", "-c", program]
            backend = FastCgiBackend(
                "app", spawn=command, processes=2, kill_after_s=600, spawner=spawner
            )
            await backend.__aenter__()
            pids = backend.pids
            generation = backend._managed._generations[0]
            ending = asyncio.create_task(backend.__aexit__(None, None, None))
            await until(lambda: generation.is_ending)
            ending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await ending
            await gone(*pids)

    run(main())


# Whom it runs as


@pytest.mark.skipif(os.geteuid() != 0, reason="only root chooses a user")
def test_it_runs_as_another_user(run: Run[Any], tmp_path: Path) -> None:
    # S11
    os.chmod(tmp_path, 0o755)
    responder = Path(shutil.copy(RESPONDER, "/tmp/tetrapylon-test-responder"))
    responder.chmod(0o644)

    async def main() -> None:
        command = ["/usr/bin/env", "python3", "-IS", str(responder)]
        async with running(spawn=command, user="nobody", cwd="/") as backend:
            facts = await ask(backend)
            assert facts["uid"] == [NOBODY.pw_uid] * 3
            assert facts["gid"] == [NOBODY.pw_gid] * 3
            assert set(facts["groups"]) <= {NOBODY.pw_gid}
            assert facts["environ"]["HOME"] == NOBODY.pw_dir
            assert facts["environ"]["USER"] == "nobody"
            status = Path(f"/proc/{facts['pid']}/status").read_text()
            assert "CapEff:\t0000000000000000" in status
            assert "CapPrm:\t0000000000000000" in status

    try:
        run(main())
    finally:
        responder.unlink()


def test_only_root_can_choose_a_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ValueError, match="only a gateway that is started as root"):
        FastCgiBackend("app", spawn=["x"], user="root")


def test_the_umask_is_the_gateway_s(run: Run[Any]) -> None:
    async def main() -> None:
        for has_helper in (True, False):
            async with running(has_helper=has_helper) as backend:
                assert (await ask(backend))["umask"] == own

    own = os.umask(0o027)
    os.umask(own)
    run(main())

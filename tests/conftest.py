"""A real gateway for tests: the installed command, in a process of its own.

`gateway(configuration, *arguments)` starts `tetrapylon serve` with a TOML text
(its relative paths start from the test's `tmp_path`) or with a file; with
`None`, the arguments are the whole command line. Root's tests have scripts run as
root, where the configuration does not say otherwise. It waits until the gateway
listens, and fails with its standard error if it ends before. After the test
each gateway gets SIGTERM, must exit with 0 and leave no process behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pytest
import uvloop
from hypothesis import HealthCheck, settings

from tetrapylon.adapters.pipes import null_input
from tetrapylon.gateway.spawn import helper

# How long an example takes is the machine's affair; what it finds is ours.
settings.register_profile(
    "house", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("house")

START_S = 30.0
STOP_S = 30.0
ANSWER_S = 30.0
RUN_S = 60.0

T = TypeVar("T")

# The banner's addresses, a line each.
_LISTENING = re.compile(
    r"^\s*(?:Listening on\s+)?(?:http://\S+?:(?P<port>\d+)/?|\S*?unix:(?://)?(?P<path>/\S+))\s*$",
    re.MULTILINE,
)
# What the interpreter says of a defect without ending the process.
_DEFECTS = ("exception was never retrieved", "was never awaited", "Exception ignored in")


def wait_until(condition: Callable[[], T], *, within_s: float, what: str) -> T:
    """Return the first true value of `condition`; fail after the deadline."""
    deadline = time.monotonic() + within_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"not within {within_s:g} s: {what}")
        time.sleep(0.01)
    return value


@pytest.fixture(scope="session")
def first_loop() -> None:
    """The first uvloop of a process, and the first child, open descriptors that are kept."""
    null_input()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.to_thread(int))
    gc.collect()


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, T]], T]:
    """Run a coroutine to its end, on both loops, and within bounds."""
    factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop

    def run(main: Coroutine[Any, Any, T]) -> T:
        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(asyncio.wait_for(main, RUN_S))

    return run


@dataclass(frozen=True)
class Answer:
    """A whole response."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    def json(self) -> Any:
        return json.loads(self.body)


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str, *, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class RunningGateway:
    """A gateway that listens. `port` is 0 and `url` empty where all it has is a unix socket."""

    def __init__(self, process: subprocess.Popen[bytes], stdout: Path, stderr: Path) -> None:
        self.process = process
        self._stdout = stdout
        self._stderr = stderr
        wait_until(self._is_listening, within_s=START_S, what="the gateway listens")
        addresses = list(_LISTENING.finditer(self.stderr_text()))
        self.ports = [int(found["port"]) for found in addresses if found["port"]]
        self.socket_paths = [found["path"] for found in addresses if found["path"]]
        self.port = self.ports[0] if self.ports else 0
        self.url = f"http://127.0.0.1:{self.port}" if self.ports else ""
        with contextlib.closing(self.connect()) as connection:
            connection.connect()

    def _is_listening(self) -> bool:
        if self.process.poll() is not None:
            pytest.fail(f"the gateway ended with {self.process.returncode}:\n{self.stderr_text()}")
        # Complete lines only: a number may be half written.
        text, newline, _ = self.stderr_text().rpartition("\n")
        return bool(newline) and _LISTENING.search(text) is not None

    def stdout_text(self) -> str:
        """Return what the gateway wrote to its standard output so far (the access log)."""
        return self._stdout.read_text(errors="replace")

    def stderr_text(self) -> str:
        """Return what the gateway wrote to its standard error so far."""
        return self._stderr.read_text(errors="replace")

    def has_logged(self, text: str) -> bool:
        """Tell whether the gateway says so, within bounds: a script's errors follow its answer."""
        deadline = time.monotonic() + ANSWER_S
        while text not in self.stderr_text():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True

    def connect(self) -> http.client.HTTPConnection:
        """Return a connection that is opened by its first request; the caller closes it."""
        if self.port:
            return http.client.HTTPConnection("127.0.0.1", self.port, timeout=ANSWER_S)
        return UnixConnection(self.socket_paths[0], timeout=ANSWER_S)

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        *,
        encode_chunked: bool = False,
    ) -> Answer:
        """Send a request on a connection of its own and return the whole answer."""
        with contextlib.closing(self.connect()) as connection:
            connection.request(
                method, path, body, dict(headers or {}), encode_chunked=encode_chunked
            )
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> Answer:
        """Return the answer to a GET."""
        return self.request("GET", path, headers=headers)

    def stop(self) -> None:
        """End the gateway by SIGTERM and check how it ended; no-op once it has been stopped."""
        if self.process.returncode is not None:
            return
        left = processes_below(self.process.pid)
        self.process.terminate()
        try:
            code = self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            pytest.fail(f"still running {STOP_S:g} s after SIGTERM:\n{self.stderr_text()}")
        finally:
            survivors = _end_survivors({**left, **group_members(self.process.pid)})
        assert code == 0, f"exit code {code} after SIGTERM:\n{self.stderr_text()}"
        assert not survivors, f"processes left behind: {survivors}\n{self.stderr_text()}"
        found = [defect for defect in _DEFECTS if defect in self.stderr_text()]
        assert not found, self.stderr_text()


class StartGateway(Protocol):
    """What the fixture `gateway` is."""

    def __call__(
        self,
        configuration: str | Path | None,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> RunningGateway: ...


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[StartGateway]:
    """Start gateways (see the module's docstring); each is stopped and checked at the end."""
    with contextlib.ExitStack() as running:
        yield _starter(tmp_path, running)


@pytest.fixture(scope="module")
def shared_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartGateway]:
    """As `gateway`, for the tests of a module that can share one."""
    with contextlib.ExitStack() as running:
        yield _starter(tmp_path_factory.mktemp("gateway"), running)


def _starter(folder: Path, running: contextlib.ExitStack) -> StartGateway:
    command = Path(sys.executable).with_name("tetrapylon")
    logs = folder / "gateway-logs"
    logs.mkdir()

    def start(
        configuration: str | Path | None,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> RunningGateway:
        if isinstance(configuration, str):
            file = folder / "tetrapylon.toml"
            file.write_text(configuration, encoding="utf-8")
            configuration = file
        if configuration is not None:
            arguments = ("serve", "-c", str(configuration), *arguments)
        runs_programs = arguments[0] in ("serve", "cgi", "php")
        if os.geteuid() == 0 and runs_programs and "--user" not in arguments:
            arguments += ("--user", "root")
        number = len(list(logs.iterdir()))
        stdout, stderr = logs / f"{number}.stdout", logs / f"{number}.stderr"
        with stdout.open("wb") as out, stderr.open("wb") as err:
            process = subprocess.Popen(
                [command, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=cwd,
                env={**os.environ, "NO_COLOR": "1", "COLUMNS": "200", **(env or {})},
                start_new_session=True,
            )
        running.callback(_end, process)
        started = RunningGateway(process, stdout, stderr)
        running.callback(started.stop)
        return started

    return start


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a gateway that did not come up."""
    if process.poll() is None:
        _end_survivors({**processes_below(process.pid), process.pid: _started(process.pid)})
        process.wait()


def processes_below(pid: int) -> dict[int, str]:
    """Return all descendants of a process: pid and time of start (Linux; elsewhere none)."""
    children: dict[int, list[int]] = {}
    for child in _pids():
        with contextlib.suppress(OSError):
            children.setdefault(int(_stat(child)[1]), []).append(child)
    found: dict[int, str] = {}
    waiting = [pid]
    while waiting:
        for child in children.get(waiting.pop(), []):
            found[child] = _started(child)
            waiting.append(child)
    return found


def group_members(pgid: int) -> dict[int, str]:
    """Return the processes of a process group, likewise."""
    found = {}
    for pid in _pids():
        with contextlib.suppress(OSError):
            if _stat(pid)[2] == str(pgid):
                found[pid] = _started(pid)
    return found


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").glob("[0-9]*")]


def _stat(pid: int) -> list[str]:
    """Return state, parent and so on: proc_pid_stat(5) from its third field on."""
    return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()


def _started(pid: int) -> str:
    """Return when a process started, in clock ticks; "" if there is none, or a zombie."""
    try:
        fields = _stat(pid)
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]


def _end_survivors(processes: dict[int, str]) -> list[int]:
    """Kill those of the processes that still run, and return their pids."""
    survivors = [pid for pid, start in processes.items() if start and _started(pid) == start]
    for pid in survivors:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return survivors


@pytest.fixture(scope="module")
def hurry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., None]]:
    """Change constants of the spawn helper's `templates`, for the tests of a module."""
    original = helper.__file__
    folder = os.path.dirname(original)

    def change(**constants: float) -> None:
        file = tmp_path_factory.mktemp("hurried") / "helper.py"
        file.write_text(
            f"import runpy, sys\nsys.path.append({folder!r})\nimport templates\n"
            f"vars(templates).update({constants!r})\nsys.path.pop()\n"
            f"runpy.run_path({original!r}, run_name='__main__')\n"
        )
        patch.setattr(helper, "__file__", str(file))

    with pytest.MonkeyPatch.context() as patch:
        yield change

"""The gateway under test: a process with a configuration and a folder of its own.

`Ground.gate` starts one; when the ``with`` block ends, the closing conditions of
every check are looked at: the process alive, no zombie, no child and no temporary
file left, as many file descriptors as before (±5), and nothing in its log that
speaks of a defect. Then it is stopped, and must exit with 0.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from others import Others, Report
from probes.cgi_scripts import write_scripts
from verdicts import Failure, hold
from wire import facts_of, get

HERE = Path(__file__).resolve().parent
PROBES = HERE / "probes"
START_S = 30.0
STOP_S = 40.0
SETTLE_S = 8.0
FD_SLACK = 5
CANARY = "canary-7f3a9b"
# One quick request to every kind of backend.
EVERY_KIND = ("/static/hello.txt", "/cgi/ok", "/wsgi/ok", "/asgi/ok", "/fastcgi/ok")

Tables = dict[str, Any]

_LISTENING = re.compile(r"http://127\.0\.0\.1:(\d+)")
# What the interpreter says of a defect without ending the process.
_DEFECTS = ("exception was never retrieved", "was never awaited", "Exception ignored in")


def house(**more: Any) -> Tables:
    """Return the tables of a gateway with every kind of backend, all by default values."""
    return merged(
        {
            "listen": {"bind": ["127.0.0.1:0"]},
            "access_log": {"format": "json", "file": "access.log"},
            "backends": {
                "static": {"static": "files"},
                "cgi": {"cgi": "cgi-bin"},
                "wsgi": {"wsgi": "wsgi_probe:app"},
                "asgi": {"asgi": "asgi_probe:app"},
                "root": {"asgi": "asgi_probe:app"},
            },
            "routes": [
                {"path": "/static/", "backend": "static"},
                {"path": "/cgi/", "backend": "cgi"},
                {"path": "/wsgi/", "backend": "wsgi", "mount": True},
                {"path": "/asgi/", "backend": "asgi", "mount": True},
                {"path": "/", "backend": "root"},
            ],
        },
        more,
    )


def with_fastcgi(tables: Tables, port: int) -> Tables:
    """Add a FastCGI backend at ``/fastcgi/`` to the tables."""
    return merged(
        tables,
        {
            "backends": {"fastcgi": {"fastcgi": f"127.0.0.1:{port}"}},
            "routes": [{"path": "/fastcgi/", "backend": "fastcgi"}],
        },
    )


def merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> Tables:
    """Return ``one`` with ``other`` laid over it; lists of tables are joined."""
    result = dict(one)
    for key, value in other.items():
        old = result.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            result[key] = merged(old, value)
        elif key == "routes" and old:
            result[key] = [*old, *value]
        else:
            result[key] = value
    return result


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{json.dumps(k)} = {_toml(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def write_toml(tables: Tables) -> str:
    """Write tables as TOML."""
    lines: list[str] = []
    for name, table in tables.items():
        if name == "routes":
            continue
        if name == "backends":
            for backend, spec in table.items():
                lines += [f"[backends.{backend}]", *(f"{k} = {_toml(v)}" for k, v in spec.items())]
        else:
            lines += [f"[{name}]", *(f"{k} = {_toml(v)}" for k, v in table.items())]
    for route in tables["routes"]:
        lines += ["[[routes]]", *(f"{k} = {_toml(v)}" for k, v in route.items())]
    return "\n".join(lines) + "\n"


def wait_until(condition: Callable[[], Any], within_s: float, what: str) -> Any:
    """Return the first true value of ``condition``; fail after the deadline."""
    deadline = time.monotonic() + within_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise Failure(f"not within {within_s:g} s: {what}")
        time.sleep(0.01)
    return value


class Gate:
    """A running gateway and what can be seen of it from outside."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path, port: int) -> None:
        self.process = process
        self.pid = process.pid
        self.folder = folder
        self.port = port
        self._fds = 0
        self._children: set[int] = set()

    # What the probes saw

    @property
    def record(self) -> Path:
        return self.folder / "record"

    def calls(self) -> list[dict[str, Any]]:
        """What reached a probe since the last look, in order; each look starts anew."""
        text = self.record.read_text() if self.record.exists() else ""
        if self.record.exists():
            os.truncate(self.record, 0)
        return [json.loads(line) for line in text.splitlines()]

    def log(self) -> str:
        """The gateway's standard error so far."""
        return (self.folder / "stderr").read_text(errors="backslashreplace")

    def lag_ms(self) -> float:
        """The longest that the loop stood still since the last look, in ms."""
        return float(facts_of(get(self.port, "/asgi/lag"))["lag_ms"])

    # What the system says

    def _status(self, key: str) -> int:
        text = Path(f"/proc/{self.pid}/status").read_text()
        return int(re.search(rf"^{key}:\s+(\d+)", text, re.MULTILINE)[1])  # type: ignore[index]

    def rss_kib(self) -> int:
        return self._status("VmRSS")

    def threads(self) -> int:
        return self._status("Threads")

    def fds(self) -> list[str]:
        """What the gateway's file descriptors are."""
        found = []
        for fd in os.listdir(f"/proc/{self.pid}/fd"):
            try:
                found.append(os.readlink(f"/proc/{self.pid}/fd/{fd}"))
            except FileNotFoundError:
                continue
        return found

    def descendants(self) -> dict[int, str]:
        """The state of every process below the gateway, by pid."""
        return descendants(self.pid)

    def cpu_s(self) -> float:
        """The CPU time the gateway has used."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    # Before and after

    def warm_up(self) -> None:
        """Let everything be loaded that the first request loads, then take the measures."""
        for _ in range(3):
            for target in self.warm_targets:
                get(self.port, target)
        self.calls()
        self._settle_down()
        self._fds = len(self.fds())
        self._children = set(self.descendants())

    warm_targets: tuple[str, ...] = ()
    #: The check has stopped it itself, and judged that.
    is_stopped = False

    def _settle_down(self) -> None:
        """Wait until the connections of the warm-up are gone."""
        before = -1
        while before != (now := len(self.fds())):
            before = now
            time.sleep(0.05)

    def children(self) -> dict[int, str]:
        """Processes below the gateway that were not there at the beginning."""
        return {pid: what for pid, what in self.descendants().items() if pid not in self._children}

    def held_fds(self) -> int:
        """How many file descriptors more than at the beginning."""
        return len(self.fds()) - self._fds

    def closing(self) -> None:
        """Look at the conditions that every check ends with."""
        hold(self.process.poll() is None, f"the gateway has died:\n{self.log()[-2000:]}")

        def is_clean() -> bool:
            return (
                not self.children() and abs(self.held_fds()) <= FD_SLACK and not self.left_files()
            )

        deadline = time.monotonic() + SETTLE_S
        while not is_clean():
            if time.monotonic() > deadline:
                raise Failure(
                    f"at the end: children {self.children()}, {self.held_fds():+d} descriptors, "
                    f"temporary files {self.left_files()}"
                )
            time.sleep(0.05)
        zombies = [pid for pid, state in self.descendants().items() if state == "Z"]
        hold(not zombies, f"zombies {zombies}")
        said = self.log()
        hold(not any(word in said for word in _DEFECTS), f"a defect in the log:\n{said[-2000:]}")

    def left_files(self) -> list[str]:
        """Temporary files, with a name or without."""
        named = [str(path) for path in (self.folder / "tmp").iterdir()]
        unnamed = [what for what in self.fds() if what.startswith("/") and "(deleted)" in what]
        # A managed application's socket has no name as long as it lives.
        return named + [what for what in unnamed if not what.endswith("/socket (deleted)")]

    def stop(self) -> None:
        """Stop as an administrator does; the gateway must exit with 0."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise Failure(f"still there {STOP_S:g} s after SIGTERM") from None
        hold(code == 0, f"the gateway exited with {code}:\n{self.log()[-2000:]}")


class Ground:
    """Where checks take place: their folders, gateways, peers.

    ``broken`` are tables laid over every configuration and variables set in every
    environment: `--self-test` gives some to see the checks fail. ``stand_in``
    replaces the gateway by a careless server.
    """

    def __init__(
        self,
        broken: Tables | None = None,
        *,
        environ: Mapping[str, str] | None = None,
        stand_in: bool = False,
    ) -> None:
        self._broken = broken or {}
        self._environ = dict(environ or {})
        self._stand_in = stand_in
        self._shared: dict[str, tuple[Gate, ExitStack]] = {}

    def close(self) -> None:
        """Stop the gateways that several checks share, and judge how they end."""
        with ExitStack() as kept:
            for _, stack in self._shared.values():
                kept.push(stack)
            self._shared.clear()

    @contextmanager
    def visit(self, engine: str) -> Iterator[Gate]:
        """Lend a gateway with every kind of backend, shared by checks; judge it afterwards.

        One that a check has failed on is not lent again.
        """
        if engine not in self._shared:
            stack = ExitStack()
            self._shared[engine] = stack.enter_context(self.fresh(http={"engine": engine})), stack
        gate, stack = self._shared[engine]
        gate.calls()
        try:
            yield gate
            if not self._stand_in:
                gate.closing()
        except BaseException as error:
            del self._shared[engine]
            with suppress(type(error)):
                stack.__exit__(type(error), error, error.__traceback__)
            raise

    @contextmanager
    def fresh(self, **tables: Any) -> Iterator[Gate]:
        """Start a gateway with every kind of backend, and ``tables`` over the defaults."""
        with self.folder() as folder, self.responder(folder) as port:
            write_scripts(folder / "cgi-bin")
            (folder / "files" / "big.bin").write_bytes(bytes(10 << 20))
            whole = with_fastcgi(house(**tables), port)
            diary = {"DIARY": str(folder / "diary"), "RECORD": str(folder / "record")}
            whole["backends"]["cgi"]["env"] = diary
            with self.gate(whole, folder, warm=EVERY_KIND) as gate:
                yield gate

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """Make a folder with everything the probes need, readable for all."""
        folder = Path(tempfile.mkdtemp(prefix="tetrapylon-reliability-"))
        try:
            folder.chmod(0o755)
            for name in ("tmp", "files", "outside", "cgi-bin"):
                (folder / name).mkdir()
            (folder / "files" / "hello.txt").write_text("hello\n")
            (folder / "outside" / "secret.txt").write_text(CANARY)
            (folder / "record").touch()
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def gate(
        self,
        tables: Tables,
        folder: Path,
        *,
        environ: Mapping[str, str] | None = None,
        is_mortal: bool = False,
        warm: tuple[str, ...] = (),
    ) -> Iterator[Gate]:
        """Start a gateway in ``folder``; at the end judge it and stop it."""
        process = self.start(tables, folder, environ=environ, is_mortal=is_mortal)
        gate = Gate(process, folder, 0)
        try:
            gate.port = int(self._wait_for_address(gate)[1])
            gate.warm_targets = warm
            gate.warm_up()
            yield gate
            if not gate.is_stopped and not self._stand_in:
                gate.closing()
                gate.stop()
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()

    def write(self, tables: Tables, folder: Path) -> None:
        """Write the configuration, ``gate.toml``."""
        (folder / "gate.toml").write_text(write_toml(merged(tables, self._broken)))

    def start(
        self,
        tables: Tables,
        folder: Path,
        *,
        environ: Mapping[str, str] | None = None,
        is_mortal: bool = False,
    ) -> subprocess.Popen[bytes]:
        """Start the process and nothing more."""
        self.write(tables, folder)
        environment = {
            **os.environ,
            "PYTHONPATH": str(PROBES),
            "PYTHONDONTWRITEBYTECODE": "1",
            "TMPDIR": str(folder / "tmp"),
            "RELIABILITY_RECORD": str(folder / "record"),
            "TERM": "dumb",
            "COLUMNS": "200",
            "CANARY": CANARY,
            **(environ or {}),
            **self._environ,
        }
        command = [sys.executable, "-m", "tetrapylon.gateway", "serve", "-c", "gate.toml"]
        if os.geteuid() == 0:
            command += ["--user", "root"]
        if self._stand_in:
            command = [sys.executable, str(PROBES / "careless_server.py")]
        with open(folder / "stderr", "wb") as stderr:
            return subprocess.Popen(
                command,
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                preexec_fn=_obey_permissions if is_mortal else None,
            )

    def _wait_for_address(self, gate: Gate) -> re.Match[str]:
        def find() -> re.Match[str] | None:
            hold(gate.process.poll() is None, f"the gateway does not start:\n{gate.log()[-3000:]}")
            return _LISTENING.search(gate.log())

        found: re.Match[str] = wait_until(find, START_S, "the gateway listens")
        return found

    @contextmanager
    def responder(self, folder: Path) -> Iterator[int]:
        """Run the FastCGI responder; give its port."""
        with subprocess.Popen(
            [sys.executable, str(PROBES / "fastcgi_responder.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "RELIABILITY_RECORD": str(folder / "record")},
        ) as process:
            assert process.stdout is not None
            try:
                yield int(process.stdout.readline())
            finally:
                process.kill()

    @contextmanager
    def others(self, gate: Gate) -> Iterator[Others]:
        """Run the others; their quiet numbers are taken first."""
        quiet = Others(gate.port).run_for(3.0)
        with Others(gate.port, quiet=quiet) as others:
            yield others


def others_are_fine(others: Report, quiet: Report) -> str:
    """Judge the others' requests during a fault, and tell their numbers."""
    numbers = (
        f"others {others.count} requests, p99 {others.p99_ms:.1f} ms (quiet {quiet.p99_ms:.1f})"
    )
    hold(others.count >= 100, f"the others came to {others.count} requests only")
    hold(not others.failures, f"{numbers}; failed: {others.failures[:3]}")
    hold(others.p99_ms <= 2 * quiet.p99_ms + 20, f"{numbers}: over twice the quiet p99 + 20 ms")
    return numbers


def descendants(root: int) -> dict[int, str]:
    """The state (``S``, ``Z``, …) of every process below ``root``, by pid."""
    parents: dict[int, tuple[int, str]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(name)] = (int(fields[1]), fields[0])
    found: dict[int, str] = {}
    frontier = {root}
    while frontier:
        frontier = {pid for pid, (parent, _) in parents.items() if parent in frontier}
        found.update({pid: parents[pid][1] for pid in frontier})
    return found


def group_of(pgid: int) -> list[int]:
    """The processes of a process group that are alive."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[2]) == pgid and fields[0] not in "ZX":
                found.append(int(name))
    return found


def _obey_permissions() -> None:
    """Give up root's power over the modes of files; for others there is nothing to give up."""
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None)
        for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
            libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP


def want_descriptors(count: int) -> None:
    """Raise this process's limit to ``count`` more sockets, or fail with the reason."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + 256
    if soft < wanted:
        if hard < wanted and os.geteuid() != 0:
            raise Failure(f"this machine allows {hard} descriptors, the check needs {wanted}")
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(hard, wanted)))


def free_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port

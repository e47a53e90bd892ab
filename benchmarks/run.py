"""This gateway beside its peers: requests per second, as ratios in one run.

usage: run.py [--seconds S] [--rounds N] [--connections N] [--json FILE] [CASE…]

Every server runs one worker, pinned to one core; wrk is pinned to another. The
servers are measured in turns, round after round, so that whatever else the
machine does falls on all of them alike; a figure is the median of its rounds.
All loads go to 127.0.0.1 and stop by themselves.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
BIN = Path(sys.executable).parent
POST = 'wrk.method = "POST"\nwrk.body = string.rep("x", 65536)\n'
CONFIG = """
[listen]
bind = ["127.0.0.1:{port}"]
[access_log]
enabled = false
[limits]
requests_per_connection = 0
[python]
path = ["{here}"]
[[routes]]
path = "/"
backend = {{ {kind} = "applications:{kind}" {more} }}
"""


@dataclass(frozen=True)
class Server:
    """How a server is started; ``{port}`` and ``{folder}`` are filled in."""

    name: str
    package: str
    command: list[str]


def ours(kind: str) -> Server:
    return Server(
        "tetrapylon", "tetrapylon", ["tetrapylon", "serve", "-c", "{folder}/" + kind + ".toml"]
    )


UVICORN = ["--port", "{port}", "--no-access-log", "--log-level", "error", "--lifespan", "off"]
ASGI = [
    ours("asgi"),
    Server(
        "uvicorn",
        "uvicorn",
        ["uvicorn", "applications:asgi", "--http", "httptools", "--loop", "uvloop", *UVICORN],
    ),
    Server(
        "hypercorn",
        "hypercorn",
        ["hypercorn", "applications:asgi", "-b", "127.0.0.1:{port}", "-k", "uvloop"],
    ),
    Server(
        "granian",
        "granian",
        [
            "granian",
            "--interface",
            "asginl",
            "--port",
            "{port}",
            "--no-access-log",
            "applications:asgi",
        ],
    ),
]
WSGI = [
    ours("wsgi"),
    Server(
        "gunicorn gthread",
        "gunicorn",
        [
            "gunicorn",
            "applications:wsgi",
            "-k",
            "gthread",
            "--threads",
            "8",
            "-b",
            "127.0.0.1:{port}",
            "--log-level",
            "error",
        ],
    ),
    Server(
        "waitress",
        "waitress",
        ["waitress-serve", "--threads=8", "--listen=127.0.0.1:{port}", "applications:wsgi"],
    ),
    Server(
        "granian",
        "granian",
        [
            "granian",
            "--interface",
            "wsgi",
            "--blocking-threads",
            "8",
            "--port",
            "{port}",
            "--no-access-log",
            "applications:wsgi",
        ],
    ),
]


@dataclass(frozen=True)
class Case:
    """One load on several servers. ``mark``: the least ratio of ours to ``rival``."""

    name: str
    servers: list[Server]
    rival: str
    mark: float
    script: str = ""


CASES = [
    Case("asgi hello", ASGI, "uvicorn", 1.5),
    Case("asgi post 64 KiB", ASGI, "uvicorn", 1.5, POST),
    Case("wsgi hello, 8 threads", WSGI, "gunicorn gthread", 3.0),
]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def pinned(core: int, command: list[str]) -> list[str]:
    taskset = shutil.which("taskset")
    return [taskset, "-c", str(core), *command] if taskset and os.cpu_count() != 1 else command


@contextlib.contextmanager
def running(server: Server, folder: Path) -> Iterator[int]:
    """Start a server on a free port and stop it by its process group."""
    port = free_port()
    for kind, more in (("asgi", ""), ("wsgi", ", threads = 8")):
        text = CONFIG.format(port=port, here=HERE, kind=kind, more=more)
        (folder / f"{kind}.toml").write_text(text)
    command = [part.format(port=port, folder=folder) for part in server.command]
    process = subprocess.Popen(
        pinned(0, [str(BIN / command[0]), *command[1:]]),
        cwd=HERE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 20
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{server.name} does not start: {' '.join(command)}")
            time.sleep(0.05)
        yield port
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def load(port: int, script: Path | None, connections: int, seconds: float) -> tuple[float, str]:
    """Return requests per second and what wrk complained of."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", f"http://127.0.0.1:{port}/"]
    if script is not None:
        command[1:1] = ["-s", str(script)]
    done = subprocess.run(
        pinned(1, command), capture_output=True, text=True, timeout=seconds + 30, check=True
    )
    found = re.search(r"Requests/sec:\s+([0-9.]+)", done.stdout)
    assert found is not None, done.stdout
    errors = re.findall(r"(Socket errors:.*|Non-2xx.*)", done.stdout)
    return float(found[1]), "; ".join(errors)


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def measure(case: Case, rounds: int, connections: int, seconds: float) -> dict[str, object]:
    servers = [server for server in case.servers if version(server.package)]
    figures: dict[str, list[float]] = {server.name: [] for server in servers}
    complaints: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        ports = {}
        for server in servers:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            ports[server.name] = stack.enter_context(running(server, folder))
        script = None
        if case.script:
            script = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "load.lua"
            script.write_text(case.script)
        for server in servers:
            load(ports[server.name], script, connections, min(seconds, 1.0))
        for number in range(rounds):
            for server in servers:
                rate, complaint = load(ports[server.name], script, connections, seconds)
                figures[server.name].append(rate)
                if complaint:
                    complaints[server.name] = complaint
                print(
                    f"\r{case.name}: round {number + 1}/{rounds}, {server.name:<20}",
                    end="",
                    file=sys.stderr,
                )
    print("\r" + " " * 70 + "\r", end="", file=sys.stderr)
    medians = {name: statistics.median(rates) for name, rates in figures.items()}
    own = medians["tetrapylon"]
    return {
        "case": case.name,
        "rates": figures,
        "medians": medians,
        "ratios": {name: own / rate for name, rate in medians.items()},
        "errors": complaints,
        "versions": {server.name: version(server.package) for server in servers},
        "rival": case.rival,
        "mark": case.mark,
    }


def main() -> int:
    """Measure and print; return 0 whatever comes out: a benchmark is no test."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help="the beginning of a case's name")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each load (default 4)")
    parser.add_argument("--rounds", type=int, default=5, help="default 5")
    parser.add_argument("--connections", type=int, default=64, help="default 64")
    parser.add_argument("--json", metavar="FILE", help="write all figures there")
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        print("wrk is needed (apt install wrk)", file=sys.stderr)
        return os.EX_UNAVAILABLE
    results = []
    print(
        f"Python {sys.version.split()[0]}, {options.connections} connections,"
        " one worker on one core,"
    )
    print(f"median of {options.rounds} rounds of {options.seconds:g} s\n")
    for case in CASES:
        if options.cases and not any(case.name.startswith(name) for name in options.cases):
            continue
        result = measure(case, options.rounds, options.connections, options.seconds)
        results.append(result)
        print(case.name)
        for name, rate in sorted(result["medians"].items(), key=lambda pair: -pair[1]):
            ratio = result["ratios"][name]
            note = f"   {result['errors'][name]}" if name in result["errors"] else ""
            print(
                f"  {name:<18} {result['versions'][name]:<10} {rate:>9.0f}/s"
                f"   ours × {ratio:4.2f}{note}"
            )
        ratio = result["ratios"].get(case.rival)
        if ratio is not None:
            verdict = "reached" if ratio >= case.mark else "not reached"
            print(f"  mark: {case.mark} × {case.rival}: {verdict} ({ratio:.2f})\n")
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=1) + "\n")
    return os.EX_OK


if __name__ == "__main__":
    sys.exit(main())

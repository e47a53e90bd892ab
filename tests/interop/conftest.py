"""Programs that the system's packages bring, found and run for one test each.

A program that is missing fails the test: whoever runs these tests asked for them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

import pytest

START_S = 20.0
STOP_S = 20.0


class FindProgram(Protocol):
    """What the fixture `find_program` is."""

    def __call__(self, *names: str, package: str) -> str: ...


@pytest.fixture(scope="session")
def find_program() -> FindProgram:
    """Return the path of the first program that is there; fail with Debian's package."""
    # Distributions keep servers in sbin, where PATH of a user does not lead.
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin"))

    def find(*names: str, package: str) -> str:
        for name in names:
            if (program := shutil.which(name, path=path)) is not None:
                return program
        pytest.fail(f"there is no {' or '.join(names)} here; in Debian: apt install {package}")

    return find


def is_listening(address: str) -> bool:
    """Tell whether somebody takes connections at "host:port" or "unix:/path"."""
    kind, _, path = address.partition(":")
    if kind == "unix":
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(path) == 0
    with socket.socket() as probe:
        return probe.connect_ex((kind, int(path))) == 0


class StartServer(Protocol):
    """What the fixture `start_server` is."""

    def __call__(
        self, *command: str, address: str, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]: ...


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[StartServer]:
    """Start a server of somebody else's and wait until it listens; it ends with the test."""
    log_path = tmp_path / "servers.log"

    def start(
        *command: str, address: str, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        with log_path.open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **(env or {})},
            )
        running.callback(_stop, process)
        deadline = time.monotonic() + START_S
        while not is_listening(address):
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"{command[0]} does not listen:\n{log_path.read_text()}")
            time.sleep(0.02)
        return process

    with contextlib.ExitStack() as running:
        yield start


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_S)
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def free_address() -> Callable[[], str]:
    """Return an address that nobody listens on, for servers that must be told one."""

    def choose() -> str:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return f"127.0.0.1:{probe.getsockname()[1]}"

    return choose


@pytest.fixture
def copy_example(tmp_path: Path) -> Callable[[str], Path]:
    """Copy an example by its name, so that nothing is written into the tree."""
    examples = Path(__file__).parents[2] / "examples"

    def copy(name: str) -> Path:
        ignored = shutil.ignore_patterns("__pycache__", "collected")
        return Path(shutil.copytree(examples / name, tmp_path / name, ignore=ignored))

    return copy

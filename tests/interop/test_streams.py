"""Long answers and large ones, through all four ways: streams of events, and a gibibyte."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import random
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tetrapylon.gateway.demo import copy_demo

pytestmark = pytest.mark.interop

GATES = ("cgi", "fastcgi", "wsgi", "asgi")

# Events

TICK_S = 0.25
WATCH_S = 6.0
NOTICE_S = 1.0

# With each event comes its sender's pid and when it was sent. That a script has
# ended is seen by its pid; the others leave a file.
CGI_EVENTS = f"""#!/bin/sh
printf 'Content-Type: text/event-stream\\n\\n'
while :; do
  printf 'data: %s %s\\n\\n' "$$" "$(date +%s.%N)"
  sleep {TICK_S}
done
"""
WSGI_EVENTS = f"""
import os, time
from pathlib import Path

def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/event-stream")])
    return events()

def events():
    try:
        while True:
            yield f"data: {{os.getpid()}} {{time.time()}}\\n\\n".encode()
            time.sleep({TICK_S})
    finally:
        Path(__file__).with_name(f"left-{{gate}}").touch()

gate = "wsgi"
if __name__ == "__main__":
    from flup.server.fcgi import WSGIServer
    gate = "fastcgi"
    WSGIServer(application).run()
"""
ASGI_EVENTS = f"""
import asyncio, os, time
from pathlib import Path

async def application(scope, receive, send):
    fields = [(b"content-type", b"text/event-stream")]
    await send({{"type": "http.response.start", "status": 200, "headers": fields}})
    try:
        while True:
            event = f"data: {{os.getpid()}} {{time.time()}}\\n\\n".encode()
            await send({{"type": "http.response.body", "body": event, "more_body": True}})
            await asyncio.sleep({TICK_S})
    finally:
        Path(__file__).with_name("left-asgi").touch()
"""
EVENTS = """
[listen]
bind = ["127.0.0.1:0"]
[backends]
cgi = {{ cgi = "events.sh", timeout = "2m" }}
fastcgi = {{ spawn = [{python}, "events_wsgi.py"] }}
wsgi = {{ wsgi = "events_wsgi:application" }}
asgi = {{ asgi = "events_asgi:application", lifespan = "off" }}
{routes}
"""


def read_event(stream: http.client.HTTPResponse) -> tuple[int, float]:
    """Return an event's sender and how long it was on its way, in seconds."""
    line = stream.readline()
    now = time.time()
    assert line.startswith(b"data: "), line
    assert stream.readline() == b"\n"
    _, pid, sent = line.split()
    return int(pid), now - float(sent)


def test_events_end_when_the_client_leaves(gateway: Any, tmp_path: Path) -> None:
    script = tmp_path / "events.sh"
    script.write_text(CGI_EVENTS)
    script.chmod(0o755)
    (tmp_path / "events_wsgi.py").write_text(WSGI_EVENTS)
    (tmp_path / "events_asgi.py").write_text(ASGI_EVENTS)
    routes = [f'[[routes]]\npath = "/{gate}/"\nbackend = "{gate}"' for gate in GATES]
    python = json.dumps(sys.executable)
    running = gateway(EVENTS.format(python=python, routes="\n".join(routes)))

    with contextlib.ExitStack() as watching:
        connections, streams, pids = {}, {}, {}
        for gate in GATES:
            connection = watching.enter_context(contextlib.closing(running.connect()))
            connection.request("GET", f"/{gate}/")
            stream = watching.enter_context(connection.getresponse())
            assert (stream.status, stream.headers["Content-Type"]) == (200, "text/event-stream")
            connections[gate], streams[gate] = connection, stream

        # They all tick alike: an event of each, one after the other, is on time.
        began = time.monotonic()
        lags: dict[str, list[float]] = {gate: [] for gate in GATES}
        while time.monotonic() - began < WATCH_S:
            for gate, stream in streams.items():
                pids[gate], lag = read_event(stream)
                lags[gate].append(lag)
        for gate in GATES:
            # The client comes by once a tick; nothing is held back for longer.
            assert sorted(lags[gate])[len(lags[gate]) // 2] < 2 * TICK_S, (gate, lags[gate])
            assert len(lags[gate]) > WATCH_S / TICK_S / 2

        signs: dict[str, Callable[[], bool]] = {
            "cgi": lambda: not Path(f"/proc/{pids['cgi']}").exists(),
            **{gate: (tmp_path / f"left-{gate}").exists for gate in GATES[1:]},
        }
        for gate, has_ended in signs.items():
            assert not has_ended(), gate
            read_event(streams[gate])
            streams[gate].close()
            connections[gate].close()
            left = time.monotonic()
            while not has_ended():
                assert time.monotonic() - left < NOTICE_S, f"{gate} goes on"
                time.sleep(0.005)
            print(f"{gate}: ended {time.monotonic() - left:.3f} s after the client left")


# A gibibyte

SIZE = 1 << 30
MIB = 1 << 20
GROWTH_MIB = 20.0
TRANSFER_S = 60.0


@pytest.fixture(scope="module")
def spool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the gateway's temporary files: the bodies that it spools."""
    folder = tmp_path_factory.mktemp("spool")
    if shutil.disk_usage(folder).free < 2 * SIZE:
        pytest.fail(f"there are less than 2 GiB left on the disk of {folder}")
    return folder


@pytest.fixture(scope="module")
def mirrors(shared_gateway: Any, spool: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The demonstration's applications, with a limit of bodies that lets a gibibyte in."""
    configuration = copy_demo(tmp_path_factory.mktemp("demo"))
    text = configuration.read_text()
    assert "127.0.0.1:8000" in text
    text = text.replace("127.0.0.1:8000", "127.0.0.1:0")
    configuration.write_text(f'[limits]\nbody = "2GiB"\n{text}')
    running = shared_gateway(configuration, env={"TMPDIR": str(spool)})
    for gate in GATES:  # what is imported at the first request is not growth
        assert running.request("POST", f"/{gate}/mirror", bytes(MIB)).status == 200
        assert running.get(f"/{gate}/stream").status == 200
    return running


def resident_mib(pid: int, key: str) -> float:
    """Return VmRSS or VmHWM, its peak: the memory of a process, all its threads together."""
    found = re.search(rf"^{key}:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.M)
    assert found
    return int(found[1]) / 1024


@pytest.fixture
def flat_memory(mirrors: Any, spool: Path) -> Iterator[None]:
    """Check the gateway's memory, its time and its files over the test."""
    pid = mirrors.process.pid
    Path(f"/proc/{pid}/clear_refs").write_text("5")  # proc(5): VmHWM starts anew
    before = resident_mib(pid, "VmRSS")
    began = time.monotonic()
    yield
    took = time.monotonic() - began
    growth = resident_mib(pid, "VmHWM") - before
    print(f"{took:.2f} s, {SIZE / MIB / took:.0f} MiB/s, memory {before:.1f} {growth:+.1f} MiB")
    assert growth < GROWTH_MIB
    assert took < TRANSFER_S
    assert_nothing_spooled(pid, spool)


def open_files(pid: int) -> list[str]:
    """Return what the process's descriptors lead to."""
    files = []
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            files.append(os.readlink(descriptor))
    return files


def spooled_files(pid: int, spool: Path) -> list[str]:
    """Return those below the folder; the sockets of managed applications are there, too."""
    files = []
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            name = os.readlink(descriptor)
            if name.startswith(str(spool)) and descriptor.is_file():
                files.append(name)
    return files


def assert_nothing_spooled(pid: int, spool: Path) -> None:
    deadline = time.monotonic() + 5
    while left := spooled_files(pid, spool):
        assert time.monotonic() < deadline, left
        time.sleep(0.01)
    assert [file for file in spool.rglob("*") if file.is_file()] == []


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.usefixtures("flat_memory")
def test_a_gibibyte_down(mirrors: Any, gate: str) -> None:
    buffer, zeros = bytearray(MIB), bytes(MIB)
    with contextlib.closing(mirrors.connect()) as connection:
        connection.request("GET", f"/{gate}/stream?bytes={SIZE}")
        with connection.getresponse() as response:
            assert response.headers["Content-Length"] == str(SIZE)
            received = 0
            while count := response.readinto(buffer):
                assert buffer.startswith(zeros[:count])
                received += count
    assert received == SIZE


@pytest.fixture(scope="module")
def block() -> bytes:
    return random.Random(1).randbytes(MIB)


@pytest.fixture(scope="module")
def block_sha256(block: bytes) -> str:
    """The hash of a gibibyte of blocks."""
    digest = hashlib.sha256()
    for _ in range(SIZE // MIB):
        digest.update(block)
    return digest.hexdigest()


@pytest.mark.parametrize("framing", ["length", "chunks"])
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.usefixtures("flat_memory")
def test_a_gibibyte_up(
    mirrors: Any, gate: str, framing: str, block: bytes, block_sha256: str
) -> None:
    is_chunked = framing == "chunks"
    headers = {"Transfer-Encoding": "chunked"} if is_chunked else {"Content-Length": str(SIZE)}
    blocks = (block for _ in range(SIZE // MIB))
    answer = mirrors.request("POST", f"/{gate}/mirror", blocks, headers, encode_chunked=is_chunked)
    assert answer.status == 200
    assert answer.json()["body_length"] == SIZE
    assert answer.json()["body_sha256"] == block_sha256


@pytest.mark.parametrize("gate", GATES)
def test_an_upload_that_breaks_off(mirrors: Any, spool: Path, gate: str, block: bytes) -> None:
    served = mirrors.get(f"/{gate}/mirror").json()["requests_served"]
    with contextlib.closing(mirrors.connect()) as connection:
        connection.putrequest("POST", f"/{gate}/mirror")
        connection.putheader("Content-Length", str(SIZE))
        connection.endheaders()
        for _ in range(100):
            connection.send(block)
    assert_nothing_spooled(mirrors.process.pid, spool)
    # An application that streams has begun; to the others it was never a request.
    counts = {"cgi": 1, "asgi": served + 2}
    again = mirrors.get(f"/{gate}/mirror").json()["requests_served"]
    assert again == counts.get(gate, served + 1)


def test_a_client_that_leaves_a_gibibyte(mirrors: Any) -> None:
    pid = mirrors.process.pid
    before = resident_mib(pid, "VmRSS")
    sockets = len(open_files(pid))
    for gate in GATES:
        for _ in range(8):
            with contextlib.closing(mirrors.connect()) as connection:
                connection.request("GET", f"/{gate}/stream?bytes={SIZE}")
                with connection.getresponse() as response:
                    assert response.read(MIB) == bytes(MIB)
    deadline = time.monotonic() + 5
    while len(open_files(pid)) > sockets:
        assert time.monotonic() < deadline, open_files(pid)
        time.sleep(0.01)
    assert resident_mib(pid, "VmRSS") - before < GROWTH_MIB

"""What a request costs the gateway in its CGI and FastCGI backends: microseconds of CPU.

    .venv/bin/python benchmarks/backend_hops.py [requests]

Drives the backends directly, on uvloop, with 16 requests in flight and with one.
FastCGI: kept connections and fresh ones, to a process that answers at once. CGI: a
shell-less program that ends at once, by the worker and by its helper; what the
program itself takes is not counted. The best of three runs counts. Time on a
processor is little moved by what else runs on the machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import uvloop

from tetrapylon.gateway.backends.cgi import CgiBackend
from tetrapylon.gateway.backends.fastcgi import FastCgiBackend
from tetrapylon.gateway.spawn.client import Spawner

CLIENTS = 16
ROUNDS = 3
ANSWER = b"Content-Type: text/plain\r\n\r\nHello, world!\n"


class Exchange:
    """What adapters see of the gateway's connection driver."""

    on_departure = None
    is_departed = False
    backend = ""
    body_limit_bytes = None


def scope(path: str) -> dict[str, object]:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "server": ("127.0.0.1", 8000),
        "client": ("127.0.0.1", 54321),
        "scheme": "http",
        "method": "GET",
        "root_path": "",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(b"host", b"127.0.0.1:8000"), (b"user-agent", b"wrk"), (b"accept", b"*/*")],
        "extensions": {"tetrapylon": Exchange()},
    }


async def receive():
    return {"type": "http.request", "body": b"", "more_body": False}


async def send(message):
    if message["type"] == "http.response.start":
        assert message["status"] == 200, message


def respond(path: str) -> None:
    """Answer FastCGI requests for ever: a thread for each connection, nothing parsed."""
    padding = -len(ANSWER) % 8
    length = len(ANSWER).to_bytes(2, "big") + bytes((padding, 0))

    def serve(connection: socket.socket) -> None:
        with connection:
            received = b""
            while data := connection.recv(65536):
                received += data
                id = received[2:4]
                if received.endswith(b"\1\5" + id + bytes(4)):  # the end of STDIN
                    stdout = b"\1\6" + id + length + ANSWER + bytes(padding)
                    connection.sendall(stdout + b"\1\3" + id + b"\0\10\0\0" + bytes(8))
                    if not received[10] & 1:  # FCGI_KEEP_CONN
                        return
                    received = b""

    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen(1024)
        while True:
            connection, _ = listening.accept()
            threading.Thread(target=serve, args=(connection,), daemon=True).start()


@contextlib.contextmanager
def responding(path: str) -> Iterator[None]:
    process = multiprocessing.get_context("spawn").Process(target=respond, args=(path,))
    process.start()
    try:
        while process.is_alive():
            with socket.socket(socket.AF_UNIX) as probe:
                if probe.connect_ex(path) == 0:
                    break
            time.sleep(0.02)
        yield
    finally:
        process.terminate()
        process.join()


async def measure(
    name: str, app: object, path: str, requests: int, cpu_s: Callable[[], float] = time.process_time
) -> None:
    async def client(number: int) -> None:
        for _ in range(number):
            await app(scope(path), receive, send)

    figures = []
    for clients in (CLIENTS, 1):
        await asyncio.gather(*(client(2) for _ in range(clients)))
        best = float("inf")
        for _ in range(ROUNDS):
            began = cpu_s()
            await asyncio.gather(*(client(requests // clients) for _ in range(clients)))
            best = min(best, (cpu_s() - began) / (requests // clients * clients) * 1e6)
        figures.append(best)
    print(f"{name:<34} {figures[0]:>8.1f} {figures[1]:>8.1f}", flush=True)


async def main(requests: int, folder: Path) -> None:
    print(f"{'microseconds, of requests at a time':<34} {CLIENTS:>8} {1:>8}")
    address = folder / "responder.sock"
    script = folder / "hello.php"
    script.write_text("<?php echo 'Hello, world!';")
    with responding(str(address)):
        for keep_alive in (True, False):
            async with FastCgiBackend(
                "php",
                address=f"unix:{address}",
                root=folder,
                connections=CLIENTS,
                keep_alive=keep_alive,
            ) as backend:
                name = f"FastCGI, {'kept' if keep_alive else 'fresh'} connections"
                await measure(name, backend, "/hello.php", requests)
    program = folder / "echo"
    compiler = shutil.which("gcc")
    if compiler is None:
        print("CGI needs gcc")
        return
    source = Path(__file__).resolve().parent / "scripts" / "hello.c"
    compiling = await asyncio.create_subprocess_exec(compiler, "-O2", "-o", program, source)
    await compiling.wait()
    async with Spawner() as spawner:
        async with CgiBackend("cgi", program, spawner=spawner) as backend:

            def helper_s() -> float:
                # Of the process itself: its children's time is theirs.
                pids = spawner.helper_pids()
                return (
                    sum(int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) for pid in pids)
                    / 1e9
                )

            few = max(CLIENTS, requests // 10)
            await measure("CGI, the worker", backend, "/", few)
            await measure("CGI, its helper", backend, "/", few, helper_s)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        uvloop.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000, Path(name)))

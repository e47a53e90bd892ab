"""The *others*: 32 keep-alive clients on static, WSGI and ASGI while something else happens.

They are a process of their own, so that what this run's client does to its own
interpreter is not counted as the gateway's slowness.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import time
from dataclasses import dataclass, field

CLIENTS = 32
PAUSE_S = 0.05
ANSWER_S = 10.0
TARGETS = ("/static/hello.txt", "/wsgi/ok", "/asgi/ok")


@dataclass
class Report:
    """What they saw."""

    count: int = 0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    max_ms: float = 0.0
    failures: list[str] = field(default_factory=list)
    p99_by_target: dict[str, float] = field(default_factory=dict)


class Others:
    """Runs them from ``with`` to its end; `report` is there afterwards."""

    def __init__(
        self, port: int, *, quiet: Report | None = None, targets: tuple[str, ...] = TARGETS
    ) -> None:
        self._command = [sys.executable, "-I", __file__, str(port), *targets]
        self._process: subprocess.Popen[bytes] | None = None
        self.quiet = quiet or Report()
        self.report = Report()

    def __enter__(self) -> Others:
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._process.stdout is not None
        self._process.stdout.readline()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        said, _nothing = self._process.communicate()
        self.report = Report(**json.loads(said or b"{}"))

    def run_for(self, seconds: float) -> Report:
        """Run them for so long."""
        with self:
            time.sleep(seconds)
        return self.report


async def _client(port: int, target: str, phase: float, seen: dict[str, list[float]]) -> None:
    request = f"GET {target} HTTP/1.1\r\nHost: a.test\r\n\r\n".encode()
    await asyncio.sleep(phase)
    while True:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            is_kept = True
            while is_kept:
                began = time.perf_counter()
                writer.write(request)
                async with asyncio.timeout(ANSWER_S):
                    head = (await reader.readuntil(b"\r\n\r\n")).lower()
                    if not head.startswith(b"http/1.1 200 "):
                        raise ValueError(f"{head[:40]!r}")
                    length = int(head.partition(b"content-length:")[2].split(b"\r\n")[0])
                    await reader.readexactly(length)
                seen[target].append(time.perf_counter() - began)
                is_kept = b"connection: close" not in head
                await asyncio.sleep(PAUSE_S)
        finally:
            writer.close()


async def _guarded(
    port: int, target: str, phase: float, seen: dict[str, list[float]], failures: list[str]
) -> None:
    while True:
        try:
            await _client(port, target, phase, seen)
        except (OSError, ValueError, EOFError, TimeoutError, asyncio.LimitOverrunError) as error:
            failures.append(f"{target}: {type(error).__name__} {error}")
            await asyncio.sleep(PAUSE_S)


async def _main(port: int, targets: list[str]) -> None:
    seen: dict[str, list[float]] = {target: [] for target in targets}
    failures: list[str] = []
    tasks = [
        asyncio.create_task(
            _guarded(port, targets[n % len(targets)], PAUSE_S * n / CLIENTS, seen, failures)
        )
        for n in range(CLIENTS)
    ]
    print("running", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    for task in tasks:
        task.cancel()
    for task in tasks:
        with contextlib.suppress(asyncio.CancelledError):
            await task
    times = sorted(one for many in seen.values() for one in many)
    report = {
        "count": len(times),
        "p50_ms": _quantile(times, 0.5),
        "p99_ms": _quantile(times, 0.99),
        "max_ms": _quantile(times, 1.0),
        "failures": failures[:100],
        "p99_by_target": {target: _quantile(sorted(many), 0.99) for target, many in seen.items()},
    }
    print(json.dumps(report))


def _quantile(times: list[float], share: float) -> float:
    return times[min(len(times) - 1, int(len(times) * share))] * 1000 if times else 0.0


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1]), sys.argv[2:]))

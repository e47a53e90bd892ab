"""How long does starting a child hold the event loop? The spawn helper beside others.

Each round asks for 16 children at once that are slow to start (Python
interpreters that import a good deal), and waits until all have exited. Printed
for each way to start them:

- *held*: the time from before the call to after its return on the loop's thread,
  per child; what the loop does for its completion is in *late*;
- *late*: how late a 1 ms timer of the same loop comes while the round runs;
- *rate*: children per second, until reaped.

    python benchmarks/spawn_stall.py [--rounds 8] [--children 16]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable

import uvloop

from tetrapylon.adapters.exchange import SpooledBody
from tetrapylon.adapters.processes import Child, ChildCommand, spawn_process
from tetrapylon.gateway.spawn.client import Spawner
from tetrapylon.gateway.spawn.confinement import Confinement

SLOW = (sys.executable, "-I", "-c", "import asyncio, decimal, email.message, http.client")
QUICK = ("/bin/true",)
TICK_S = 0.001

Start = Callable[[tuple[str, ...], list[float]], Awaitable[None]]


async def lateness(done: asyncio.Event, late: list[float]) -> None:
    while not done.is_set():
        before = time.perf_counter()
        await asyncio.sleep(TICK_S)
        late.append(time.perf_counter() - before - TICK_S)


async def measure(
    name: str, start: Start, argv: tuple[str, ...], rounds: int, at_once: int
) -> None:
    await start(argv, [])
    held: list[float] = []
    late: list[float] = []
    elapsed = 0.0
    for _ in range(rounds):
        done = asyncio.Event()
        ticking = asyncio.ensure_future(lateness(done, late))
        before = time.perf_counter()
        await asyncio.gather(*(start(argv, held) for _ in range(at_once)))
        elapsed += time.perf_counter() - before
        done.set()
        await ticking
    late.sort()
    print(
        f"{name:34} {statistics.mean(held) * 1e3:8.3f} {max(held) * 1e3:9.3f}"
        f" {statistics.mean(late) * 1e3:9.3f} {late[int(len(late) * 0.99)] * 1e3:9.3f}"
        f" {late[-1] * 1e3:9.3f} {rounds * at_once / elapsed:9.0f}"
    )


async def finish(child: Child) -> None:
    await child.exited
    os.close(child.stdout)
    os.close(child.stderr)


def command(argv: tuple[str, ...]) -> ChildCommand:
    return ChildCommand(argv, {b"PATH": b"/usr/bin:/bin"}, "/", SpooledBody())


async def start_in_thread(argv: tuple[str, ...], held: list[float]) -> None:
    """Start as `spawn_process` does: the call returns a coroutine at once."""
    before = time.perf_counter()
    starting = asyncio.ensure_future(spawn_process(command(argv)))
    await asyncio.sleep(0)
    held.append(time.perf_counter() - before)
    await finish(await starting)


async def start_on_loop(argv: tuple[str, ...], held: list[float]) -> None:
    """Start by `os.posix_spawn` on the loop's own thread."""
    before = time.perf_counter()
    pid = os.posix_spawn(argv[0], argv, {"PATH": "/usr/bin:/bin"}, setsid=True)
    held.append(time.perf_counter() - before)
    await asyncio.to_thread(os.waitpid, pid, 0)


async def start_by_asyncio(argv: tuple[str, ...], held: list[float]) -> None:
    """Start by the loop's own subprocess (uvloop forks)."""
    before = time.perf_counter()
    creating = asyncio.ensure_future(
        asyncio.create_subprocess_exec(
            *argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
    )
    await asyncio.sleep(0)
    held.append(time.perf_counter() - before)
    await (await creating).wait()


async def main(rounds: int, at_once: int) -> None:
    confinement = Confinement()
    # A server's own memory, which a fork has to map.
    ballast = bytearray(os.urandom(1 << 20) * 100)
    async with Spawner() as spawner:
        await spawner.prepare(confinement)

        async def start_by_helper(argv: tuple[str, ...], held: list[float]) -> None:
            before = time.perf_counter()
            child = spawner.spawn(command(argv), confinement)
            held.append(time.perf_counter() - before)
            await finish(await child.started())

        print(f"{at_once} at once, {rounds} rounds; milliseconds, and children per second")
        print(
            f"{'':34} {'held':>8} {'longest':>9} {'late':>9} {'p99':>9} {'longest':>9} {'rate':>9}"
        )
        ways: dict[str, Start] = {
            "spawn helper": start_by_helper,
            "subprocess in a thread": start_in_thread,
            "posix_spawn on the loop": start_on_loop,
            "uvloop's subprocess": start_by_asyncio,
        }
        for what, argv in (("slow", SLOW), ("/bin/true", QUICK)):
            for name, start in ways.items():
                await measure(f"{name}, {what}", start, argv, rounds, at_once)
    del ballast


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--children", type=int, default=16)
    arguments = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(min(arguments.rounds, 100), min(arguments.children, 64)))

"""F: FastCGI applications that are restarted, that flap, and whose answers nobody may mix up."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ground import PROBES, Gate, Ground, Tables, free_port, house, wait_until
from verdicts import Failure, check, hold
from wire import get

RESTARTS = 5
FLAPPING_S = 20.0
TAGGED = 10_000
CONNECTIONS = 32
TAG = re.compile(rb"t\d+")


class Tagger:
    """The application, started and killed at will."""

    def __init__(self, address: str | int) -> None:
        self.address = address
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *more: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-IS", str(PROBES / "fastcgi_tagger.py"), str(self.address), *more],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        hold(self._process.stdout.readline() == b"listening\n", "the application does not start")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def __enter__(self) -> Tagger:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def with_taggers(ground: Ground, **backends: Any) -> Tables:
    tables = house()
    for name, spec in backends.items():
        tables["backends"][name] = spec
        tables["routes"].append({"path": f"/{name}/", "backend": name})
    return tables


@contextlib.contextmanager
def tagger_gate(ground: Ground, folder: Path, tables: Tables, *warm: str) -> Iterator[Gate]:
    with ground.gate(tables, folder, warm=("/asgi/ok", *warm)) as gate:
        yield gate


@dataclass
class Asked:
    """One request of a client that asks without end."""

    began: float
    ended: float
    status: int
    retry_after: bytes = b""


class Callers:
    """Clients that ask one request after the other, from ``with`` to its end."""

    def __init__(self, port: int, target: str, *, clients: int, pause_s: float = 0.0) -> None:
        self._port = port
        self._target = target
        self._pause_s = pause_s
        self._ends = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask_on, args=(number,)) for number in range(clients)
        ]
        self.asked: list[Asked] = []

    def __enter__(self) -> Callers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        for thread in self._threads:
            thread.join()

    def _ask_on(self, number: int) -> None:
        for turn in itertools.count():
            if self._ends.is_set():
                return
            is_get = bool((turn + number) % 2)
            began = time.monotonic()
            status, retry_after = 0, b""
            with contextlib.suppress(Failure):  # it was cut
                answer = get(
                    self._port,
                    f"{self._target}/t{number}{turn:06}",
                    method="GET" if is_get else "POST",
                    body=b"" if is_get else b"once",
                    within_s=40,
                )
                status, retry_after = answer.status, answer.field(b"retry-after")
            self.asked.append(Asked(began, time.monotonic(), status, retry_after))
            time.sleep(self._pause_s)

    def since(self, when: float) -> list[Asked]:
        return [each for each in self.asked if each.began >= when]


@check("F2")
def restarts(ground: Ground) -> str:
    numbers = []
    with ground.folder() as folder:
        unix, tcp = Tagger(f"{folder}/app.sock"), Tagger(free_port())
        with unix, tcp:
            unix.start()
            tcp.start()
            tables = with_taggers(
                ground,
                unix={"fastcgi": f"unix:{unix.address}", "keep_alive": True},
                tcp={"fastcgi": f"127.0.0.1:{tcp.address}"},
            )
            with tagger_gate(ground, folder, tables, "/unix/tag/t1", "/tcp/tag/t1") as gate:
                for name, tagger in (("unix", unix), ("tcp", tcp)):
                    lost, slowest = 0, 0.0
                    with Callers(gate.port, f"/{name}/tag", clients=16) as callers:
                        for _ in range(RESTARTS):
                            time.sleep(1.0)
                            well = time.monotonic()
                            tagger.kill()
                            died = time.monotonic()
                            time.sleep(0.2)
                            tagger.start()
                            back = time.monotonic()
                            wait_until(
                                lambda since=back: (
                                    sum(each.status == 200 for each in callers.since(since)) >= 16
                                ),
                                1.0,
                                f"{name}: normal after a restart",
                            )
                            slowest = max(slowest, time.monotonic() - back)
                            in_hand = [
                                a for a in callers.asked if a.began <= died and a.ended >= well
                            ]
                            lost += sum(a.status != 200 for a in in_hand)
                    failed = [each for each in callers.asked if each.status != 200]
                    hold(
                        len(failed) == lost,
                        f"{name}: {len(failed) - lost} requests failed that were begun when it was"
                        f" away: {Counter(each.status for each in failed)}",
                    )
                    hold(lost <= RESTARTS * 16, f"{name}: {lost} lost")
                    hold(
                        {each.status for each in failed} <= {0, 502},
                        f"{name}: {Counter(each.status for each in failed)}",
                    )
                    numbers.append(
                        f"{name}: {lost} of {len(callers.asked)} lost, all of them sent before;"
                        f" normal after {slowest * 1000:.0f} ms"
                    )
                # Nobody is asking: what is kept has died when the next GET comes.
                with ThreadPoolExecutor(8) as pool:
                    targets = [f"/unix/tag/t{number}" for number in range(8)]
                    list(pool.map(lambda target: get(gate.port, target), targets))
                    unix.kill()
                    unix.start()
                    answers = list(pool.map(lambda target: get(gate.port, target), targets))
                statuses = Counter(answer.status for answer in answers)
                hold(statuses == {200: 8}, f"GET after a restart: {statuses}")
    return "; ".join(numbers) + "; stale GETs 8 × 200"


def failed_connects() -> int:
    """Return how many TCP connects of this network namespace have failed (RFC 4022)."""
    lines = Path("/proc/net/snmp").read_text().splitlines()
    names, values = (line for line in lines if line.startswith("Tcp:"))
    return int(values.split()[names.split().index("AttemptFails")])


@check("F3")
def flapping(ground: Ground) -> str:
    with ground.folder() as folder, Tagger(free_port()) as tagger:
        tagger.start()
        tables = with_taggers(ground, app={"fastcgi": f"127.0.0.1:{tagger.address}"})
        with tagger_gate(ground, folder, tables, "/app/tag/t1") as gate:
            tagger.kill()
            tagger.start("0.7", "0.7")
            with Callers(gate.port, "/app/tag", clients=8, pause_s=0.01) as callers:
                time.sleep(FLAPPING_S)
            asked = sorted(callers.asked, key=lambda each: each.began)
            tagger.kill()

            # Between the first 503 and the next 200 the breaker is open.
            quick: list[float] = []
            opened: float | None = None
            openings = 0
            for each in sorted(asked, key=lambda each: each.ended):
                if each.status == 503 and opened is None:
                    opened = each.ended
                    openings += 1
                elif each.status == 503 and opened is not None and each.began > opened:
                    quick.append(each.ended - each.began)
                elif each.status == 200:
                    opened = None
            statuses = Counter(each.status for each in asked)
            seen = f"{dict(statuses)}, opened {openings} times"
            hold(openings >= 3 and len(quick) >= 50, f"the breaker did not open: {seen}")
            hold(set(statuses) <= {200, 502, 503}, seen)
            refused = [each for each in asked if each.status == 503]
            hold(all(each.retry_after for each in refused), "a 503 without Retry-After")
            quick.sort()
            p95 = quick[int(0.95 * len(quick))] * 1000
            hold(p95 <= 10, f"503 after {p95:.1f} ms (p95), {seen}")

            # Gone for good: it is tried once a second, and found again by that.
            wait_until(
                lambda: get(gate.port, "/app/tag/t1").status == 503, 5.0, "the breaker opens again"
            )
            # The log sums up refusals; the kernel counts who was refused when connecting.
            failed = failed_connects()
            with Callers(gate.port, "/app/tag", clients=4, pause_s=0.01) as callers:
                time.sleep(4.0)
            probes = failed_connects() - failed
            hold(len(callers.asked) > 100, f"{len(callers.asked)} requests in 4 s")
            hold(3 <= probes <= 6, f"tried {probes} times in 4 s")
            tagger.start()
            began = time.monotonic()
            wait_until(
                lambda: get(gate.port, "/app/tag/t1").status == 200, 3.0, "it is found again"
            )
            took = time.monotonic() - began
            hold(took <= 1.5, f"found again after {took:.1f} s")
            said = gate.log()
            hold("out of order" in said and "takes connections again" in said, "nothing in the log")
            hold(said.count("again") <= openings + 2, "recovery is logged more than once")
    return (
        f"{seen}; 503 after {p95:.1f} ms (p95 of {len(quick)}); tried {probes} times in 4 s;"
        f" found again after {took:.1f} s"
    )


# F6


@check("F6")
def tagged(ground: Ground) -> str:
    numbers = []
    with ground.folder() as folder, Tagger(f"{folder}/app.sock") as tagger:
        tagger.start()
        # A thousand that are never answered would take a quarter of an hour by default.
        common = {"fastcgi": f"unix:{tagger.address}", "first_byte": "300ms", "queue": 1000}
        modes: dict[str, dict[str, object]] = {
            "kept": {"keep_alive": True},
            "fresh": {},
            "shared": {"multiplex": 8},
        }
        tables = with_taggers(ground, **{name: {**common, **more} for name, more in modes.items()})
        tables["limits"] = {"queue_wait": "30s"}
        with tagger_gate(ground, folder, tables, *(f"/{name}/tag/t1" for name in modes)) as gate:
            for name in modes:
                count = TAGGED if name == "kept" else TAGGED // 5
                before = _counts(gate, name)
                outcomes = asyncio.run(_ask_all(gate.port, name, count))
                hold(outcomes["left"] >= count * 0.08, f"{name}: {dict(outcomes)}")
                hold(outcomes["504"] == count // 10, f"{name}: {dict(outcomes)}")
                hold(
                    outcomes["200"] + outcomes["left"] + outcomes["504"] == count,
                    f"{name}: {dict(outcomes)}",
                )
                # As many at a time as there are connections: each of them is free again.
                began = time.monotonic()
                with ThreadPoolExecutor(CONNECTIONS) as pool:
                    gathered = list(
                        pool.map(
                            lambda _, name=name: get(gate.port, f"/{name}/gather/{CONNECTIONS}"),
                            range(CONNECTIONS),
                        )
                    )
                statuses = Counter(answer.status for answer in gathered)
                hold(statuses == {200: CONNECTIONS}, f"{name}: not all of it is free: {statuses}")
                took = time.monotonic() - began
                hold(took < 5, f"{name}: not all of it is free: {took:.1f} s")
                used = _counts(gate, name)["connections"] - before["connections"]
                numbers.append(f"{name} {count}: {dict(outcomes)}, {used} connections")
            hold(_counts(gate, "shared")["most_on_one"] > 1, "nothing was shared")
    return "; ".join(numbers) + f"; no mix-up, all {CONNECTIONS} free again"


def _counts(gate: Gate, name: str) -> dict[str, int]:
    counts: dict[str, int] = json.loads(get(gate.port, f"/{name}/counts/t0").body)
    return counts


async def _ask_all(port: int, name: str, count: int) -> Counter[str]:
    outcomes: Counter[str] = Counter()
    numbers = iter(range(count))
    order = random.Random(6)

    async def ask_on() -> None:
        for number in numbers:
            outcomes[await _ask_one(port, name, f"t{number:06}", number % 10, order)] += 1

    # More than the application has connections for: some wait, some leave meanwhile.
    await asyncio.gather(*(ask_on() for _ in range(2 * CONNECTIONS)))
    return outcomes


async def _ask_one(port: int, name: str, tag: str, kind: int, order: random.Random) -> str:
    """Ask once: 0 is never answered, 1 leaves, others want all of their answer."""
    action = {0: "mute", 1: "drip", 2: "post"}.get(kind, "tag")
    head = f"Host: x\r\nConnection: close\r\nContent-Length: {len(tag) if kind == 2 else 0}"
    method = "POST" if kind == 2 else "GET"
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(f"{method} /{name}/{action}/{tag} HTTP/1.1\r\n{head}\r\n\r\n".encode())
        if kind == 2:
            writer.write(tag.encode())
        if kind == 1:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(order.random() * 0.03):
                    answer = await reader.read()
                    _judge(answer, tag)
                    return "200"
            # As a browser does that is told to stop: no goodbye.
            writer.transport.abort()
            return "left"
        async with asyncio.timeout(60):
            answer = await reader.read()
    finally:
        writer.close()
    if kind == 0:
        hold(b" 504 " in answer[:20], f"{tag}: {answer[:80]!r} instead of a time-out")
        hold(not TAG.search(answer), f"{tag}: {answer[-80:]!r} in a time-out")
        return "504"
    _judge(answer, tag)
    return "200"


def _judge(answer: bytes, tag: str) -> None:
    hold(answer.startswith(b"HTTP/1.1 200 "), f"{tag}: {answer[:80]!r}")
    found = set(TAG.findall(answer))
    hold(found == {tag.encode()}, f"{tag}: its answer has bytes of {found}")
    hold(b"end of " + tag.encode() in answer, f"{tag}: its answer is not whole")

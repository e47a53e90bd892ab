"""Servers measured in turns, so that whatever else the machine does falls on all alike.

All servers of a case run at once; only one at a time is under load. Each must give
the same answer as the others before anything is measured. A round asks every server
once, each round begins with another one, and a figure is the median of the rounds.
A round with an error is no result.
"""

from __future__ import annotations

import contextlib
import http.client
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import wrk
from peers import OURS, Peer, Place
from processes import CORES, DoesNotStart, Group, free_port, hand_over

ANSWER_S = 30.0
# Before the rounds: what is made at first use, and the connections to applications.
WARM_UP_S = 1.0


@dataclass(frozen=True, slots=True)
class Mark:
    """How ``subject`` is to compare: its rate to be ``least`` times the best of ``rivals``.

    With ``is_p99`` it is the 99th percentile of latency, to be no higher than theirs.
    """

    least: float
    rivals: tuple[str, ...]
    subject: str = OURS
    is_p99: bool = False


@dataclass(frozen=True, slots=True)
class Case:
    """One load on several servers.

    ``prepare`` writes what they serve into a folder. ``application`` starts what a
    server has behind it, each its own, with so many connections, and returns its
    socket. With ``is_pinned`` servers are held to one core, wrk and the applications
    to another; else everything has the whole machine.
    """

    name: str
    title: str
    peers: tuple[Peer, ...]
    path: str = "/"
    connections: int = 16
    marks: tuple[Mark, ...] = ()
    prepare: Callable[[Path], None] | None = None
    application: Callable[[Group, Path, int], Path] | None = None
    needs: Callable[[], str | None] | None = None
    post_bytes: int = 0
    is_pinned: bool = False


@dataclass(frozen=True, slots=True)
class Figures:
    """A server's medians; ``cpu_ms`` is the time on processors for a request."""

    version: str
    rate: float
    p50_ms: float
    p99_ms: float
    cpu_ms: float | None
    rates: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Result:
    """What came out of a case: figures, and who has none, and why."""

    case: Case
    figures: dict[str, Figures]
    failures: dict[str, str]

    def ratio(self, mark: Mark) -> tuple[str, float] | None:
        """Return the rival and what ``mark`` is about; None if one has no figures."""
        rivals = [name for name in mark.rivals if name in self.figures]
        if mark.subject not in self.figures or not rivals:
            return None
        own = self.figures[mark.subject]
        if mark.is_p99:
            best = min(rivals, key=lambda name: self.figures[name].p99_ms)
            return best, own.p99_ms / self.figures[best].p99_ms
        best = max(rivals, key=lambda name: self.figures[name].rate)
        return best, own.rate / self.figures[best].rate


def is_reached(mark: Mark, ratio: float) -> bool:
    """Tell whether a ratio is what ``mark`` asks for."""
    return ratio <= mark.least if mark.is_p99 else ratio >= mark.least


class Absent(Exception):
    """A server cannot take part; the message says why."""


@dataclass(frozen=True, slots=True)
class _Running:
    peer: Peer
    version: str
    group: Group
    port: int


@contextlib.contextmanager
def _running(case: Case, peer: Peer, scripts: Path) -> Iterator[_Running]:
    version = peer.version()
    if version is None:
        raise Absent(f"not installed ({peer.package})")
    own, rest = (CORES[:1], CORES[1:2]) if case.is_pinned and len(CORES) > 1 else (None, None)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        application = None
        if case.application is not None:
            behind = folder / "application"
            behind.mkdir()
            hand_over(folder)
            group = stack.enter_context(Group(f"{peer.name}'s application", behind, rest))
            application = case.application(group, behind, case.connections)
        hand_over(folder)
        group = stack.enter_context(Group(peer.name, folder, own))
        place = Place(folder, free_port(), scripts, case.connections, application)
        peer.start(group, place)
        yield _Running(peer, version, group, place.port)


def _answer(port: int, case: Case) -> tuple[int, str, bytes]:
    """Return status, media type and body, the same for two requests of a connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_S)
    method, body = ("POST", b"x" * case.post_bytes) if case.post_bytes else ("GET", None)
    answers = []
    with contextlib.closing(connection):
        for _ in range(2):
            connection.request(method, case.path, body)
            response = connection.getresponse()
            media_type = response.headers.get_content_type()
            # A page may name its own address.
            body_read = response.read().replace(b":%d" % port, b":80")
            answers.append((response.status, media_type, body_read))
    if answers[0] != answers[1] or answers[0][0] != http.HTTPStatus.OK:
        raise Absent(f"does not answer: {answers!r:.300}")
    return answers[0]


def _load(running: _Running, case: Case, script: Path, seconds: float) -> wrk.Reading:
    cores = CORES[1:2] if case.is_pinned and len(CORES) > 1 else None
    before = running.group.cpu_s()
    url = f"http://127.0.0.1:{running.port}{case.path}"
    reading = wrk.load(url, script, connections=case.connections, seconds=seconds, cores=cores)
    after = running.group.cpu_s()
    if before is None or after is None or not reading.requests:
        return reading
    return replace(reading, cpu_ms=1000 * (after - before) / reading.requests)


def measure(case: Case, *, rounds: int, seconds: float, only: Sequence[str] = ()) -> Result:
    """Measure a case; with ``only``, the servers whose names begin with one of these."""
    missing = case.needs() if case.needs is not None else None
    if missing is not None:
        return Result(case, {}, dict.fromkeys((peer.name for peer in case.peers), missing))
    failures: dict[str, str] = {}
    readings: dict[str, list[wrk.Reading]] = {}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        folder.chmod(0o755)
        scripts = folder / "cgi-bin"
        scripts.mkdir()
        if case.prepare is not None:
            case.prepare(scripts)
        hand_over(folder)
        script = wrk.write_script(folder, post_bytes=case.post_bytes)
        servers: list[_Running] = []
        expected = None
        for peer in case.peers:
            if only and not peer.name.startswith(tuple(only)):
                continue
            try:
                running = stack.enter_context(_running(case, peer, scripts))
                answer = _answer(running.port, case)
                if expected is not None and answer != expected:
                    raise Absent(f"answers otherwise: {answer!r:.300}, not {expected!r:.300}")
            except (Absent, DoesNotStart, OSError, http.client.HTTPException) as error:
                failures[peer.name] = str(error) or repr(error)
                continue
            expected = answer
            servers.append(running)
        for running in servers if rounds else ():
            _load(running, case, script, WARM_UP_S)
        for number in range(rounds):
            start = number % max(1, len(servers))
            for running in servers[start:] + servers[:start]:
                name = running.peer.name
                _progress(f"{case.name}: round {number + 1}/{rounds}, {name}")
                reading = _load(running, case, script, seconds)
                if reading.errors:
                    failures[name] = f"errors: {reading.errors}"
                else:
                    readings.setdefault(name, []).append(reading)
        _progress("")
        versions = {running.peer.name: running.version for running in servers}
    figures = {
        name: _median(found, versions[name])
        for name, found in readings.items()
        if name not in failures
    }
    return Result(case, figures, failures)


def _median(readings: list[wrk.Reading], version: str) -> Figures:
    cpu = [reading.cpu_ms for reading in readings if reading.cpu_ms is not None]
    return Figures(
        version=version,
        rate=statistics.median(reading.rate for reading in readings),
        p50_ms=statistics.median(reading.p50_ms for reading in readings),
        p99_ms=statistics.median(reading.p99_ms for reading in readings),
        cpu_ms=statistics.median(cpu) if cpu else None,
        rates=tuple(reading.rate for reading in readings),
    )


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r{text:<70}\r", end="", file=sys.stderr, flush=True)

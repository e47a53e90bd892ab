"""B: limits, slow clients, greedy clients. All by the gateway's defaults."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

from crowd import Crowd
from framing import ENGINES
from ground import Gate, Ground, others_are_fine, wait_until
from verdicts import Failure, check, hold
from wire import Wire, ask, facts_of, get, request

KIB = 1024
MIB = 1024 * KIB
BODY = 16 * MIB


def _line(size: int) -> bytes:
    """A request whose first line has so many bytes."""
    return request("/ok?" + "q" * (size - len("GET /ok? HTTP/1.1")), close=True)


def _fields(size: int) -> bytes:
    """A request whose fields have so many bytes, with the line ends before and behind."""
    known = len(b"\r\nHost: a.test\r\nX: \r\nConnection: close\r\n\r\n")
    return request("/ok", b"X: " + b"x" * (size - known), close=True)


def _many_fields(count: int) -> bytes:
    return request("/ok", *(b"X-%d: y" % n for n in range(count - 2)), close=True)


@check("B1")
def head_limits(ground: Ground) -> str:
    cases = [
        (_line(8 * KIB), 200), (_line(8 * KIB + 1), 414), (_line(100 * KIB), 414),
        (_fields(32 * KIB), 200), (_fields(32 * KIB + 1), 431), (_fields(200 * KIB), 431),
        (_many_fields(100), 200), (_many_fields(101), 431), (_many_fields(2000), 431),
    ]  # fmt: skip
    for engine in ENGINES:
        with ground.visit(engine) as gate:
            for data, status in cases:
                talk = ask(gate.port, data)
                what = f"{engine}: {data[:12]!r}… of {len(data)} bytes"
                hold(talk.statuses == [status], f"{what}: {talk.statuses} instead of {status}")
                hold(
                    talk.only.closes and talk.ending == "eof", f"{what}: not closed, {talk.ending}"
                )
            over = [c for c in gate.calls() if c["path"] != "/ok"]
            hold(not over, f"{engine}: a backend was called: {over[:2]}")
    return (
        f"{len(cases)} heads: request line 8 KiB 200, + 1 414; fields 32 KiB 200, + 1 431; "
        "100 fields 200, 101 431"
    )


@check("B2")
def endless_headers(ground: Ground) -> str:
    count = 200
    numbers = []
    with ground.fresh() as gate:
        get(gate.port, "/asgi/ok", b"X: " + b"x" * 30000)
        for label, hello, more in (
            ("one endless field", b"GET / HTTP/1.1\r\nHost: a\r\nX: ", b"x" * 1000),
            ("endless fields", b"GET / HTTP/1.1\r\nHost: a\r\n", b"X: " + b"y" * 995 + b"\r\n"),
            ("an endless request line", b"GET /", b"x" * 1000),
        ):
            before = gate.rss_kib()
            # To just below the limits first, so that all of it is held at once.
            full = hello + more * ((7 if "line" in label else 31) * KIB // len(more))
            with Crowd(gate.port, count, lambda _, full=full: full) as crowd:  # type: ignore[misc]
                wait_until(lambda: gate.held_fds() >= count, 5, "all are connected")
                crowd.drip(b"", every_s=1.0, until_s=0.5)
                hold(len(crowd.open) == count, f"{label}: {crowd.endings()} below the limit")
                held = gate.rss_kib() - before
                crowd.drip(more, every_s=0.05, until_s=10)
                ends = crowd.endings()
                wanted = "414" if "line" in label else "431"
                hold(ends == {wanted: count}, f"{label}: {ends}")
            peak = max(held, gate.rss_kib() - before)
            hold(peak <= 16 * KIB, f"{label}: RSS grew by {peak} KiB")
            numbers.append(f"{label} {wanted}, RSS {peak:+d} KiB")
            wait_until(lambda: gate.held_fds() <= 5, 8, "all are closed")
        gate.calls()
    return f"{count} connections each: " + "; ".join(numbers)


@check("B3")
def body_limit(ground: Ground) -> str:
    kinds = {
        "static": "/static/hello.txt", "CGI": "/cgi/echo", "FastCGI": "/fastcgi/x",
        "WSGI": "/wsgi/x", "ASGI": "/asgi/x",
    }  # fmt: skip
    waits = []
    with ground.fresh() as gate:
        for kind, target in kinds.items():
            # By Content-Length: the answer comes before any byte of the body is sent.
            head = b"POST %s HTTP/1.1\r\nHost: a.test\r\n" % target.encode()
            announced = head + b"Content-Length: %d\r\n\r\n" % (BODY + 1)
            with Wire(gate.port) as wire:
                began = time.monotonic()
                wire.send(announced)
                answer = wire.answer()
                waits.append(time.monotonic() - began)
                hold(
                    answer.status == 413 and answer.closes,
                    f"{kind}: {answer.status} for the length",
                )
            # A client that sends it all before it reads gets to read the answer too.
            data = bytes(BODY + 1)
            with Wire(gate.port) as wire:
                wire.send(announced)
                wire.send(data)
                talk = wire.all()
                seen = f"{talk.statuses}, ended by {talk.ending}"
                hold(
                    (talk.statuses, talk.ending) == ([413], "eof"),
                    f"{kind}: by length, blindly: {seen}",
                )
            chunk = b"10000\r\n" + bytes(65536) + b"\r\n"
            with Wire(gate.port) as wire:
                wire.send(head + b"Transfer-Encoding: chunked\r\n\r\n")
                wire.send(chunk * (BODY // 65536 + 4))
                wire.send(b"0\r\n\r\n")
                talk = wire.all()
                # Who takes no body at all need not count it, but its answer must be read.
                wanted = [[413], [405]] if kind == "static" else [[413]]
                hold(
                    talk.statuses in wanted,
                    f"{kind}: by chunks: {talk.statuses}, ended by {talk.ending}",
                )
                hold(talk.ending == "eof", f"{kind}: by chunks: ended by {talk.ending}")
        bodies = [c for c in gate.calls() if c["event"] == "body"]
        hold(not bodies, f"a backend was given a whole body: {bodies}")
        for kind, target in kinds.items():
            if kind != "static":
                data = bytes(BODY)
                facts = facts_of(get(gate.port, target, method="POST", body=data))
                hold(
                    facts["body_length"] == BODY,
                    f"{kind}: of 16 MiB {facts['body_length']} arrived",
                )
        gate.calls()
    return (
        f"{', '.join(kinds)}: 413 read by blind senders, by length before the body "
        f"(≤ {max(waits) * 1000:.0f} ms), by chunks; exactly 16 MiB taken"
    )


@check("B4")
def slow_headers(ground: Ground) -> str:
    count = 2000
    with ground.fresh() as gate, ground.others(gate) as others:
        with Crowd(gate.port, count, lambda _: b"G") as crowd:
            head = b"ET / HTTP/1.1\r\nHost: a.test\r\nX: " + b"x" * 100
            for at in range(14):
                crowd.drip(head[at : at + 1], every_s=1.0, until_s=1.0)
                if not crowd.open:
                    break
            hold(not crowd.open, f"{len(crowd.open)} of {count} are open after 14 s")
            last, ends = crowd.last_s, crowd.endings()
        hold(last <= 12, f"the last was closed after {last:.1f} s")
        hold(set(ends) <= {"408", "eof", "reset"}, f"ended by {ends}")
    said = others_are_fine(others.report, others.quiet)
    return f"{count} at 1 byte/s: {ends}, the last after {last:.1f} s; {said}"


@check("B5")
def silent_clients(ground: Ground) -> str:
    count = 2000
    with ground.fresh() as gate, ground.others(gate) as others:
        with Crowd(gate.port, count) as crowd:
            crowd.wait(14)
            hold(not crowd.open, f"{len(crowd.open)} of {count} are open after 14 s")
            last, ends = crowd.last_s, crowd.endings()
        hold(last <= 12, f"the last was closed after {last:.1f} s")
    said = others_are_fine(others.report, others.quiet)
    return f"{count} silent: {ends}, the last after {last:.1f} s; {said}; no TLS, so no handshakes"


@check("B6")
def slow_bodies(ground: Ground) -> str:
    count = 500
    targets = ("/wsgi/x", "/cgi/echo", "/fastcgi/x")

    def hello(number: int) -> bytes:
        target = targets[number % 3]
        return (
            b"POST %s HTTP/1.1\r\nHost: a.test\r\nContent-Length: 100000\r\n\r\n" % target.encode()
        )

    with ground.fresh() as gate:
        before = facts_of(get(gate.port, "/fastcgi/stats"))
        threads = gate.threads()
        with Crowd(gate.port, count, hello) as crowd:
            watcher = _Watcher(gate)
            with watcher:
                crowd.drip(b"x", every_s=1.0, until_s=38)
            left, last, ends = len(crowd.open), 0.0, crowd.endings()
            hold(not left, f"{left} of {count} are open after 38 s: {ends}")
            last = crowd.last_s
        hold(last <= 35, f"the last was closed after {last:.1f} s")
        hold(set(ends) == {"408"}, f"ended by {ends}")
        hold(watcher.children == 0, f"{watcher.children} CGI children ran meanwhile")
        hold(watcher.threads <= threads + 1, f"{watcher.threads - threads} threads more")
        hold(watcher.slowest_ms < 1000, f"a request meanwhile took {watcher.slowest_ms:.0f} ms")
        after = facts_of(get(gate.port, "/fastcgi/stats"))
        # The watcher's own, and the two that ask for the numbers.
        opened = after["accepted"] - before["accepted"] - watcher.looks - 1
        hold(opened == 0, f"{opened} connections to the FastCGI application")
        seen = [call for call in gate.calls() if call["event"] != "body" or call.get("length")]
        hold(not seen, f"an application was called: {seen[:2]}")
    return (
        f"{count} POSTs at 1 byte/s: {ends}, the last after {last:.1f} s; no child, no connection, "
        f"no thread more; {watcher.looks} × 3 requests meanwhile ≤ {watcher.slowest_ms:.0f} ms"
    )


class _Watcher(threading.Thread):
    """Looks every second at what the gateway holds, and whether it answers."""

    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self._gate = gate
        self._is_over = threading.Event()
        self.children = 0
        self.threads = 0
        self.looks = 0
        self.slowest_ms = 0.0
        self.failure = ""

    def __enter__(self) -> _Watcher:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self.join()
        hold(not self.failure, self.failure)

    def run(self) -> None:
        while not self._is_over.wait(1.0):
            self.children = max(self.children, len(self._gate.children()))
            for target in ("/wsgi/ok", "/cgi/ok", "/fastcgi/ok"):
                began = time.monotonic()
                try:
                    status = get(self._gate.port, target).status
                except (Failure, OSError) as error:
                    self.failure = f"{target} meanwhile: {error!r}"
                    return
                self.slowest_ms = max(self.slowest_ms, (time.monotonic() - began) * 1000)
                if status != 200:
                    self.failure = f"{target} meanwhile: {status}"
                    return
            self.threads = max(self.threads, self._gate.threads())
            self.looks += 1


@check("B7")
def stopped_readers(ground: Ground) -> str:
    # As many scripts as run at once; a gateway for each kind, so that each has its own RSS.
    kinds = {
        "file": ("/static/big.bin", 234),
        "ASGI": ("/asgi/stream", 234),
        "CGI": ("/cgi/stream", 32),
    }
    with ThreadPoolExecutor(len(kinds)) as pool:
        said = pool.map(lambda kind: _stop_reading(ground, kind, *kinds[kind]), kinds)
        return "500 that stop reading: " + "; ".join(said)


def _stop_reading(ground: Ground, kind: str, target: str, count: int) -> str:
    with ground.fresh() as gate:
        before = gate.rss_kib()
        with Crowd(
            gate.port, count, lambda _: request(target), receive_buffer=16 * KIB, reads=False
        ) as crowd:
            began = time.monotonic()
            wait_until(lambda: gate.held_fds() >= count, 5, "all are connected")
            peak = ran = 0
            while gate.held_fds() > 5 and time.monotonic() < began + 40:
                peak = max(peak, gate.rss_kib() - before)
                ran = max(ran, len(gate.children()))
                time.sleep(0.2)
            took = time.monotonic() - began
            left = gate.held_fds()
            hold(left <= 5, f"{kind}: {left} descriptors are open after {took:.1f} s")
            hold(took <= 35, f"{kind}: the last was closed after {took:.1f} s")
            hold(peak <= 256 * count, f"{kind}: {peak / count:.0f} KiB each are buffered")
            _see_the_end(crowd)
        if kind == "CGI":
            hold(ran >= count, f"{ran} scripts ran of {count}")
        if kind == "ASGI":
            ended = sum(1 for call in gate.calls() if call["event"] == "stream-ended")
            hold(ended == count, f"{ended} of {count} ASGI streams were told that it is over")
        return f"{count} {kind} ≤ {peak / count:.0f} KiB each, all closed after {took:.1f} s"


def _see_the_end(crowd: Crowd) -> None:
    """Read what is left: every client must see that it did not get all of it."""
    for member in crowd.members.values():
        got = 0
        member.sock.settimeout(2.0)
        try:
            while piece := member.sock.recv(1 << 20):
                got += len(piece)
            hold(got < 10 * MIB, f"client {member.number} got it all")
        except ConnectionError:
            pass
        except TimeoutError:
            raise Failure(f"client {member.number} cannot see the end") from None
